//! Turns a packet that was dropped into the ICMP error its sender must hear of (RFC 792, RFC 1812 §4.3; RFC 4443).
//!
//! It comes from the gateway, or from the address that takes nothing, and quotes the packet as it was received, payload included, as far as it may. It is never
//! about another error, a fragment behind the first, or anything whose source is not one host (RFC 1122 §3.2.2, RFC
//! 4443 §2.4 (e)). The caller limits the rate (RFC 1812 §4.3.2.8, RFC 4443 §2.4 (f)).

use std::net::{IpAddr, Ipv4Addr};

use crate::MacAddr;
use crate::packet::{L3, Layers, Meta, Packet};
use crate::payload::{Segment, gather};
use crate::route::{destination, is_broadcast};
use crate::tables::{Network, ROUTER_LINK_LOCAL};
use crate::wire::ethernet::{self, Ethernet, ether_type};
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::{self, Ipv6};
use crate::wire::{icmpv4, icmpv6, proto};

/// What went wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ErrorKind {
    /// TTL or hop limit ran out.
    TimeExceeded,
    /// Nobody has the destination: "host unreachable" or "address unreachable" inside the network's range, where it would
    /// be a neighbour; "network unreachable" or "no route" outside.
    NoRoute,
    /// Longer than this MTU, which the error tells.
    TooBig(u16),
    /// Nothing can be done for it now: "host unreachable" or "address unreachable", which TCP takes for passing (RFC 6888
    /// REQ-11 B, RFC 5461 §2.1).
    Unreachable,
    /// Nothing takes it: "port unreachable" (RFC 1122 §3.2.2.1, RFC 4443 §3.1). It comes from the address that it was sent to.
    L4Port,
    /// It is not allowed out: "communication administratively prohibited" (RFC 1812 §5.2.7.1, RFC 4443 §3.1, RFC 5508 REQ-8).
    Prohibited,
}

/// Replaces `packet`, parsed but not rewritten, by the error about it, addressed to its sender. `false` when there may
/// be none; the packet is as before then.
#[cold]
pub fn icmp_error(packet: &mut Packet, arena: &[Segment], network: &Network, kind: ErrorKind) -> bool {
    let Some(link) = Ethernet::new_checked(packet.head()) else { return false };
    let mac = link.src();
    // RFC 1122 §3.2.2, RFC 4443 §2.4 (e.4): nothing about what was sent to a group of the link.
    if link.dst().is_multicast() || packet.meta.later_fragment {
        return false;
    }
    let done = match packet.meta.l3 {
        L3::V4 => error_v4(packet, arena, network, kind, mac),
        L3::V6 => error_v6(packet, arena, network, kind, mac),
        L3::Arp | L3::None => None,
    };
    done.is_some()
}

fn error_v4(packet: &mut Packet, arena: &[Segment], network: &Network, kind: ErrorKind, mac: MacAddr) -> Option<()> {
    let header = Ipv4::new_checked(packet.head().get(ethernet::HEADER_LEN..)?)?;
    let (src, dst) = (header.src(), header.dst());
    let from = if kind == ErrorKind::L4Port { dst } else { network.v4?.1 };
    let about_error = packet.meta.proto == proto::ICMPV4 && icmpv4::is_error(message_kind(packet)?);
    if about_error || dst.is_multicast() || is_broadcast(network, dst) || !is_one_host_v4(network, src) {
        return None;
    }
    let (kind, code, rest) = match kind {
        ErrorKind::TimeExceeded => (icmpv4::kind::TIME_EXCEEDED, 0, 0),
        ErrorKind::NoRoute if is_neighbor(packet, network) => (icmpv4::kind::UNREACHABLE, icmpv4::unreachable::HOST, 0),
        ErrorKind::NoRoute => (icmpv4::kind::UNREACHABLE, icmpv4::unreachable::NETWORK, 0),
        ErrorKind::TooBig(mtu) => {
            (icmpv4::kind::UNREACHABLE, icmpv4::unreachable::FRAGMENTATION_NEEDED, u32::from(mtu))
        }
        ErrorKind::Unreachable => (icmpv4::kind::UNREACHABLE, icmpv4::unreachable::HOST, 0),
        ErrorKind::L4Port => (icmpv4::kind::UNREACHABLE, icmpv4::unreachable::L4_PORT, 0),
        ErrorKind::Prohibited => (icmpv4::kind::UNREACHABLE, icmpv4::unreachable::PROHIBITED, 0),
    };
    // RFC 1812 §4.3.2.3: as much as possible "without the length of the ICMP datagram exceeding 576 bytes".
    let (mut quote, len) = quote(packet, arena, QUOTE_MAX_V4);
    let message = &mut quote[..icmpv4::HEADER_LEN + len];
    icmpv4::emit(message, kind, code, rest)?;
    let repr = ipv4::Repr {
        src: from,
        dst: src,
        proto: proto::ICMPV4,
        ttl: TTL,
        // RFC 1812 §4.3.2.5: precedence "Internetwork control" (6) for errors.
        tos: 6 << 5,
        payload_len: message.len() as u16,
    };
    replace(packet, L3::V4, ipv4::HEADER_LEN, message, mac, |header| {
        header.first_chunk_mut().map(|header| repr.emit(header))
    })
}

fn error_v6(packet: &mut Packet, arena: &[Segment], network: &Network, kind: ErrorKind, mac: MacAddr) -> Option<()> {
    let header = Ipv6::new_checked(packet.head().get(ethernet::HEADER_LEN..)?)?;
    let (src, dst) = (header.src(), header.dst());
    let about_error = packet.meta.proto == proto::ICMPV6 && icmpv6::is_error(message_kind(packet)?);
    // RFC 4443 §2.4 (e.6): a source "that does not uniquely identify a single node".
    if about_error || dst.is_multicast() || src.is_multicast() || src.is_unspecified() || src.is_loopback() {
        return None;
    }
    let gateway = network.v6.map(|(_, gateway)| gateway).filter(|_| !ipv6::is_link_local(src));
    let from = if kind == ErrorKind::L4Port { dst } else { gateway.unwrap_or(ROUTER_LINK_LOCAL) };
    let (kind, code, rest) = match kind {
        ErrorKind::TimeExceeded => (icmpv6::kind::TIME_EXCEEDED, 0, 0),
        ErrorKind::NoRoute if is_neighbor(packet, network) => {
            (icmpv6::kind::UNREACHABLE, icmpv6::unreachable::ADDRESS, 0)
        }
        ErrorKind::NoRoute => (icmpv6::kind::UNREACHABLE, icmpv6::unreachable::NO_ROUTE, 0),
        ErrorKind::TooBig(mtu) => (icmpv6::kind::PACKET_TOO_BIG, 0, u32::from(mtu)),
        ErrorKind::Unreachable => (icmpv6::kind::UNREACHABLE, icmpv6::unreachable::ADDRESS, 0),
        ErrorKind::L4Port => (icmpv6::kind::UNREACHABLE, icmpv6::unreachable::L4_PORT, 0),
        ErrorKind::Prohibited => (icmpv6::kind::UNREACHABLE, icmpv6::unreachable::PROHIBITED, 0),
    };
    // RFC 4443 §3: "As much of invoking packet as possible without the ICMPv6 packet exceeding the minimum IPv6 MTU".
    let (mut quote, len) = quote(packet, arena, QUOTE_MAX_V6);
    let message = &mut quote[..icmpv6::HEADER_LEN + len];
    icmpv6::emit(message, from, src, kind, code, rest)?;
    let repr = ipv6::Repr {
        src: from,
        dst: src,
        next_header: proto::ICMPV6,
        hop_limit: TTL,
        traffic_class: 0,
        payload_len: message.len() as u16,
    };
    replace(packet, L3::V6, ipv6::HEADER_LEN, message, mac, |header| {
        header.first_chunk_mut().map(|header| repr.emit(header))
    })
}

/// Type of an ICMP message; `parse` kept it.
fn message_kind(packet: &Packet) -> Option<u8> {
    packet.head().get(usize::from(packet.meta.layers.l4)).copied()
}

/// RFC 1812 §4.3.2.7: no error to "a source IP address that does not define a single host".
fn is_one_host_v4(network: &Network, src: Ipv4Addr) -> bool {
    !(src.octets()[0] == 0 || src.is_loopback() || src.is_multicast() || is_broadcast(network, src))
}

/// Whether the destination lies in the network's own range.
fn is_neighbor(packet: &Packet, network: &Network) -> bool {
    match destination(packet) {
        Some(IpAddr::V4(dst)) => network.v4.is_some_and(|(range, _)| range.contains(&dst)),
        Some(IpAddr::V6(dst)) => network.v6.is_some_and(|(range, _)| range.contains(&dst)),
        None => false,
    }
}

/// Room for an ICMP header, and behind it at most `max` octets of the IP packet, with their number. Payload is copied out
/// of the sender's memory here, once, and nothing is decided on it.
fn quote(packet: &Packet, arena: &[Segment], max: usize) -> ([u8; ICMP_HEADER + QUOTE_MAX_V6], usize) {
    let mut message = [0; ICMP_HEADER + QUOTE_MAX_V6];
    let len = (packet.len() - ethernet::HEADER_LEN).min(max);
    let head = &packet.head()[ethernet::HEADER_LEN..];
    let from_head = head.len().min(len);
    let quoted = &mut message[ICMP_HEADER..ICMP_HEADER + len];
    quoted[..from_head].copy_from_slice(&head[..from_head]);
    gather(packet.segments(arena), 0, &mut quoted[from_head..]);
    (message, len)
}

/// Puts `message` into the packet's place, behind an Ethernet header to `mac` and the header that `emit` writes.
fn replace(
    packet: &mut Packet,
    l3: L3,
    header_len: usize,
    message: &[u8],
    mac: MacAddr,
    emit: impl FnOnce(&mut [u8]) -> Option<()>,
) -> Option<()> {
    let l4 = ethernet::HEADER_LEN + header_len;
    packet.set_head_only(l4 + message.len());
    let head = packet.head_mut();
    let ether_type = if l3 == L3::V4 { ether_type::IPV4 } else { ether_type::IPV6 };
    ethernet::Repr { dst: mac, src: MacAddr::ROUTER, ether_type }.emit(head.first_chunk_mut()?);
    emit(&mut head[ethernet::HEADER_LEN..l4])?;
    head[l4..].copy_from_slice(message);
    packet.meta = Meta {
        in_port: packet.meta.in_port,
        out_port: packet.meta.in_port,
        layers: Layers { l3: ethernet::HEADER_LEN as u16, l4: l4 as u16, l5: (l4 + ICMP_HEADER) as u16 },
        l3,
        proto: if l3 == L3::V4 { proto::ICMPV4 } else { proto::ICMPV6 },
        dst_port: u16::from_be_bytes([message[0], message[1]]),
        l3_len: (header_len + message.len()) as u32,
        hash: packet.meta.hash,
        ..Meta::default()
    };
    Some(())
}

const ICMP_HEADER: usize = 8;
const QUOTE_MAX_V4: usize = 576 - ipv4::HEADER_LEN - ICMP_HEADER;
const QUOTE_MAX_V6: usize = 1280 - ipv6::HEADER_LEN - ICMP_HEADER;
/// Hop count of packets of ours.
const TTL: u8 = 64;

const _: () = assert!(icmpv4::HEADER_LEN == ICMP_HEADER && icmpv6::HEADER_LEN == ICMP_HEADER);

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv6Addr;

    use crate::fuzz::{GATEWAY_V4, GATEWAY_V6, GUEST_A, GUEST_B, NETWORK, mac, tables, v4, v6};
    use crate::parse::parse;
    use crate::stage::Verdict;
    use crate::testing::{self, icmpv6_frame, ipv4_frame, ipv6_frame, udp};
    use crate::wire::checksum;

    /// The error about a frame of guest a.
    fn error(frame: &[u8], kind: ErrorKind) -> Option<Vec<u8>> {
        let tables = tables();
        testing::with(frame, |packet, arena| {
            assert_eq!(parse(packet, arena), Verdict::Continue);
            let sent = icmp_error(packet, arena, tables.network(NETWORK).unwrap(), kind);
            sent.then(|| packet.head().to_vec())
        })
    }

    #[test]
    fn time_exceeded_v4() {
        let frame = ipv4_frame(v4(GUEST_A), v4(GUEST_B), 17, 1, &udp(1, 2, b"data"));
        let out = error(&frame, ErrorKind::TimeExceeded).unwrap();
        assert_eq!((&out[..6], &out[6..12]), (&mac(GUEST_A).0[..], &MacAddr::ROUTER.0[..]));
        let header = Ipv4::new_checked(&out[14..]).unwrap();
        assert_eq!((header.src(), header.dst(), header.proto()), (GATEWAY_V4, v4(GUEST_A), 1));
        assert_eq!(checksum::ipv4_header_sum(header.octets()), 0xffff);
        assert_eq!(usize::from(header.total_len()), out.len() - 14);
        assert_eq!(out[34..36], [11, 0]);
        assert_eq!(checksum::sum(&out[34..]), 0xffff);
        assert_eq!(out[42..], frame[14..]);
    }

    #[test]
    fn time_exceeded_v6() {
        let frame = ipv6_frame(v6(GUEST_A), v6(GUEST_B), 17, 1, &udp(1, 2, b"data"));
        let out = error(&frame, ErrorKind::TimeExceeded).unwrap();
        let header = Ipv6::new_checked(&out[14..]).unwrap();
        assert_eq!((header.src(), header.dst(), header.next_header()), (GATEWAY_V6, v6(GUEST_A), 58));
        assert_eq!(usize::from(header.payload_len()), out.len() - 54);
        assert_eq!(out[54..56], [3, 0]);
        assert!(icmpv6::verify(&out[54..], GATEWAY_V6, v6(GUEST_A)));
        assert_eq!(out[62..], frame[14..]);
    }

    #[test]
    fn codes_of_no_route() {
        let about_v4 = |dst| error(&ipv4_frame(v4(GUEST_A), dst, 17, 64, &udp(1, 2, b"")), ErrorKind::NoRoute).unwrap();
        assert_eq!(about_v4([192, 0, 2, 99].into())[34..36], [3, 1], "host unreachable");
        assert_eq!(about_v4([203, 0, 113, 1].into())[34..36], [3, 0], "network unreachable");
        let about_v6 = |dst: &str| {
            let frame = ipv6_frame(v6(GUEST_A), dst.parse().unwrap(), 17, 64, &udp(1, 2, b""));
            error(&frame, ErrorKind::NoRoute).unwrap()
        };
        assert_eq!(about_v6("2001:db8::99")[54..56], [1, 3], "address unreachable");
        assert_eq!(about_v6("2001:db8:1::1")[54..56], [1, 0], "no route");
    }

    #[test]
    fn too_big_tells_the_mtu_and_quotes_payload() {
        let frame = ipv4_frame(v4(GUEST_A), v4(GUEST_B), 17, 64, &udp(1, 2, &[7; 2000]));
        let out = error(&frame, ErrorKind::TooBig(1500)).unwrap();
        assert_eq!(out[34..36], [3, 4]);
        assert_eq!(out[38..42], [0, 0, 5, 220]);
        assert_eq!(out.len(), 14 + 576);
        assert_eq!(out[42..], frame[14..14 + 548]);
        let frame = ipv6_frame(v6(GUEST_A), v6(GUEST_B), 17, 64, &udp(1, 2, &[7; 2000]));
        let out = error(&frame, ErrorKind::TooBig(1500)).unwrap();
        assert_eq!(out[54..56], [2, 0]);
        assert_eq!(out[58..62], [0, 0, 5, 220]);
        assert_eq!(out.len(), 14 + 1280);
        assert_eq!(out[62..], frame[14..14 + 1232]);
    }

    #[test]
    fn link_local_senders_hear_from_the_link_local_router() {
        let src: Ipv6Addr = "fe80::2".parse().unwrap();
        let frame = ipv6_frame(src, "fe80::3".parse().unwrap(), 17, 64, &udp(1, 2, b""));
        let out = error(&frame, ErrorKind::NoRoute).unwrap();
        assert_eq!(Ipv6::new_checked(&out[14..]).unwrap().src(), ROUTER_LINK_LOCAL);
    }

    #[test]
    fn echo_requests_are_answered_about() {
        let echo = ipv4_frame(v4(GUEST_A), v4(GUEST_B), 1, 1, &[8, 0, 0, 0, 0, 1, 0, 1]);
        assert!(error(&echo, ErrorKind::TimeExceeded).is_some());
        let echo = icmpv6_frame(v6(GUEST_A), v6(GUEST_B), 1, &[128, 0, 0, 0, 0, 1, 0, 1]);
        assert!(error(&echo, ErrorKind::TimeExceeded).is_some());
    }

    #[test]
    fn no_error_about_these() {
        let (a4, b4, a6, b6) = (v4(GUEST_A), v4(GUEST_B), v6(GUEST_A), v6(GUEST_B));
        let mut broadcast = ipv4_frame(a4, b4, 17, 64, &udp(1, 2, b""));
        broadcast[..6].fill(0xff);
        let later = [&[17, 0, 0, 16, 0, 0, 0, 1][..], b"later"].concat();
        for (frame, case) in [
            (ipv4_frame(a4, b4, 1, 1, &[3, 1, 0, 0, 0, 0, 0, 0]), "ICMP error"),
            (ipv4_frame(a4, b4, 1, 1, &[5, 1, 0, 0, 0, 0, 0, 0]), "ICMP redirect"),
            (icmpv6_frame(a6, b6, 1, &[1, 0, 0, 0, 0, 0, 0, 0]), "ICMPv6 error"),
            (icmpv6_frame(a6, b6, 1, &[100, 0, 0, 0, 0, 0, 0, 0]), "unknown ICMPv6 error"),
            (broadcast, "broadcast of the link"),
            (ipv4_frame(a4, [224, 0, 0, 1].into(), 17, 64, &udp(1, 2, b"")), "multicast"),
            (ipv4_frame([0, 0, 0, 0].into(), b4, 17, 64, &udp(1, 2, b"")), "unspecified source"),
            (ipv4_frame([192, 0, 2, 255].into(), b4, 17, 64, &udp(1, 2, b"")), "broadcast source"),
            (ipv6_frame(Ipv6Addr::UNSPECIFIED, b6, 17, 64, &udp(1, 2, b"")), "unspecified IPv6 source"),
            (ipv6_frame(a6, b6, 44, 64, &later), "later fragment"),
            (testing::arp_frame(|_| ()), "ARP"),
        ] {
            assert_eq!(error(&frame, ErrorKind::TimeExceeded), None, "{case}");
        }
    }
}
