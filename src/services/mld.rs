//! Multicast listener discovery at the uplink (MLDv2, RFC 3810; MLDv1, RFC 2710): the host as a listener of the solicited-node groups of its
//! addresses. A switch that snoops (RFC 4541) forwards solicitations for them to nobody who does not say so.
//!
//! IPv4 needs nothing of that kind: ARP is broadcast.

use std::net::Ipv6Addr;

use hostweave_switch::packet::Packet;
use hostweave_switch::payload::Segment;
use hostweave_switch::wire::{checksum, frame};
use hostweave_switch::{MacAddr, limits};

use super::PROTO_ICMPV6;
use super::uplink::{Frame, group_mac};

/// ICMPv6 types.
pub const QUERY: u8 = 130;
const REPORT_V1: u8 = 131;
const REPORT_V2: u8 = 143;

/// Records in one report: with all headers it fits the smallest MTU of IPv6, 1280 octets.
pub const RECORDS_MAX: usize = 60;

/// RFC 3810 §5.2.14: "Version 2 Multicast Listener Reports are sent with an IP destination address of FF02:0:0:0:0:0:0:16".
const ALL_MLDV2_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);

/// The host has no link-local address at the uplink. RFC 3590 §4: "The unspecified address (::) is used" then, which snooping switches accept.
const SOURCE: Ipv6Addr = Ipv6Addr::UNSPECIFIED;

/// Record types (RFC 3810 §5.2.12): who listens already, and who begins to.
const MODE_IS_EXCLUDE: u8 = 2;
const CHANGE_TO_EXCLUDE: u8 = 4;

/// Router alert (RFC 2711) in a hop-by-hop header: "Datagram contains a Multicast Listener Discovery message", then PadN of nothing.
const ROUTER_ALERT: [u8; 8] = [PROTO_ICMPV6, 0, 5, 2, 0, 0, 1, 0];

/// Octets of a query of MLDv1, and of the shortest one of MLDv2 (RFC 3810 §8.1).
const QUERY_V1_LEN: usize = 24;
const QUERY_V2_LEN: usize = 28;

/// What a router asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Query {
    /// About whom; unspecified: about all groups.
    pub group: Ipv6Addr,
    /// Answers are to come within so many milliseconds.
    pub within_ms: u32,
    /// By MLDv1.
    pub old: bool,
}

impl Query {
    /// Reads a query; `None` for what RFC 3810 §6.2 tells listeners to ignore: a source that is not link-local, a hop limit other than 1, no
    /// hop-by-hop header, a wrong checksum or length.
    pub fn read(packet: &mut Packet, arena: &mut [Segment]) -> Option<Self> {
        let (l3, l4) = (usize::from(packet.meta.layers.l3), usize::from(packet.meta.layers.l4));
        let end = l3 + packet.meta.l3_len as usize;
        if packet.meta.fragment || packet.meta.offload.is_gso() || end > limits::HEAD_MAX {
            return None;
        }
        packet.extend_head(end, arena).ok()?;
        // A checksum left to the device cannot be wrong.
        let partial = packet.meta.offload.needs_csum();
        let head = packet.head();
        let (ip, message) = (head.get(l3..l3 + 40)?, head.get(l4..end)?);
        let source = Ipv6Addr::from(*ip.get(8..24)?.first_chunk::<16>()?);
        let by_router = source.is_unicast_link_local() && ip[7] == 1 && ip[6] == 0;
        if !by_router || !(partial || frame::checksum_valid(PROTO_ICMPV6, &ip[8..40], message)) {
            return None;
        }
        let old = message.len() == QUERY_V1_LEN;
        if !old && message.len() < QUERY_V2_LEN {
            return None;
        }
        let code = u16::from_be_bytes([*message.get(4)?, *message.get(5)?]);
        let group = Ipv6Addr::from(*message.get(8..24)?.first_chunk::<16>()?);
        Some(Self { group, within_ms: if old { code.into() } else { response_delay(code) }, old })
    }
}

/// Milliseconds of a maximum response code (RFC 3810 §5.1.3).
fn response_delay(code: u16) -> u32 {
    if code < 0x8000 {
        return code.into();
    }
    let (exponent, mantissa) = (code >> 12 & 7, u32::from(code & 0x0fff));
    (mantissa | 0x1000) << (exponent + 3)
}

/// The report that this host listens to `groups`, at most [`RECORDS_MAX`]: begins to, or still does.
pub fn report(mac: MacAddr, groups: &[Ipv6Addr], begins: bool) -> Frame {
    let groups = &groups[..groups.len().min(RECORDS_MAX)];
    let kind = if begins { CHANGE_TO_EXCLUDE } else { MODE_IS_EXCLUDE };
    let mut message = vec![REPORT_V2, 0, 0, 0, 0, 0, 0, groups.len() as u8];
    for group in groups {
        message.extend_from_slice(&[kind, 0, 0, 0]);
        message.extend_from_slice(&group.octets());
    }
    framed(mac, SOURCE, ALL_MLDV2_ROUTERS, message)
}

/// The same of one group for a router of MLDv1, which goes to the group itself (RFC 2710 §3.6).
pub fn old_report(mac: MacAddr, group: Ipv6Addr) -> Frame {
    let message = [&[REPORT_V1, 0, 0, 0, 0, 0, 0, 0][..], &group.octets()].concat();
    framed(mac, SOURCE, group, message)
}

fn framed(mac: MacAddr, source: Ipv6Addr, to: Ipv6Addr, mut message: Vec<u8>) -> Frame {
    let pseudo = checksum::pseudo_v6(source, to, PROTO_ICMPV6, message.len() as u32);
    let sum = !checksum::combine(pseudo, checksum::sum(&message));
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let len = (ROUTER_ALERT.len() + message.len()) as u16;
    let mut frame = Vec::with_capacity(14 + 40 + usize::from(len));
    frame.extend_from_slice(&group_mac(to).0);
    frame.extend_from_slice(&mac.0);
    frame.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0]);
    frame.extend_from_slice(&len.to_be_bytes());
    // Next header: hop-by-hop options. Hop limit 1.
    frame.extend_from_slice(&[0, 1]);
    frame.extend_from_slice(&source.octets());
    frame.extend_from_slice(&to.octets());
    frame.extend_from_slice(&ROUTER_ALERT);
    frame.append(&mut message);
    frame
}

#[cfg(test)]
#[path = "mld_tests.rs"]
mod tests;
