//! Is the frame well formed? One check for each clause of RFC 791, RFC 1812 §5.2.2, RFC 8200 and RFC 7112.
//!
//! `parse` reads Ethernet, ARP, IPv4, IPv6 and the first transport header of the private head, extends the head as far
//! as headers reach, cuts Ethernet padding, and fills `meta`. It says nothing about who may send what (`guard`) or
//! where a packet goes (`route`). Payload is never looked at, so transport checksums are not verified here; those of
//! neighbour discovery are, in `guard`, for which the whole message is brought into the head.
//!
//! Theory of operation: plain IPv4 or IPv6 with TCP or UDP takes no cold branch and copies each fixed header once to
//! the stack, so that one length check covers all its fields. Options, fragments and extension headers are cold.

use std::net::Ipv4Addr;

use crate::limits::IPV6_EXTENSION_HEADERS_MAX;
use crate::packet::{L3, Packet};
use crate::payload::Segment;
use crate::stage::{DropReason, Verdict};
use crate::wire::ethernet::{self, Ethernet, ether_type};
use crate::wire::icmpv4::{self, Icmpv4};
use crate::wire::icmpv6::{self, Icmpv6};
use crate::wire::ipv4::{self, Ipv4, OptionError};
use crate::wire::ipv6::{self, Extension, Ipv6, next_header};
use crate::wire::tcp::{self, Tcp};
use crate::wire::udp::{self, Udp};
use crate::wire::{arp, be16, checksum, proto};

pub use crate::offload::check_offload;

/// Parses one frame. `Continue`, with `meta` filled in and `meta.offload` checked, or `Drop`.
#[inline]
pub fn parse(packet: &mut Packet, arena: &mut [Segment]) -> Verdict {
    match frame(packet, arena) {
        Ok(()) => Verdict::Continue,
        Err(reason) => Verdict::Drop(reason),
    }
}

#[inline]
fn frame(packet: &mut Packet, arena: &mut [Segment]) -> Result<(), DropReason> {
    packet.extend_head(L3_START, arena)?;
    let header = Ethernet::new_checked(packet.head()).ok_or(DropReason::FrameTooShort)?;
    let kind = header.ether_type();
    packet.meta.layers.l3 = L3_START as u16;
    match kind {
        ether_type::IPV4 => ipv4(packet, arena)?,
        ether_type::IPV6 => ipv6(packet, arena)?,
        ether_type::ARP => arp(packet, arena)?,
        _ => return Err(DropReason::EtherTypeUnknown),
    }
    check_offload(packet)
}

#[cold]
fn arp(packet: &mut Packet, arena: &mut [Segment]) -> Result<(), DropReason> {
    need(packet, L3_START + arp::LEN, arena, DropReason::ArpInvalid)?;
    arp::Message::parse(&packet.head()[L3_START..]).ok_or(DropReason::ArpInvalid)?;
    packet.truncate(L3_START + arp::LEN, arena);
    packet.meta.l3 = L3::Arp;
    packet.meta.l3_len = arp::LEN as u32;
    Ok(())
}

#[inline]
fn ipv4(packet: &mut Packet, arena: &mut [Segment]) -> Result<(), DropReason> {
    const MALFORMED: DropReason = DropReason::Ipv4Malformed;
    need(packet, L3_START + ipv4::HEADER_LEN, arena, MALFORMED)?;
    let octets = *packet.head()[L3_START..].first_chunk().ok_or(MALFORMED)?;
    let header = Ipv4::new(&octets);
    let mut header_len = ipv4::HEADER_LEN;
    if octets[0] != VERSION_4_NO_OPTIONS {
        header_len = ipv4_options(packet, arena, header)?;
    } else if checksum::ipv4_header_sum(&octets) != 0xffff {
        // RFC 1812 §5.2.2 (2): "The IP checksum must be correct."
        return Err(MALFORMED);
    }
    // RFC 1812 §5.2.2 (1) and (5): the link says at least as many octets as the total length, and that covers the header.
    let total_len = usize::from(header.total_len());
    if total_len < header_len || L3_START + total_len > packet.len() {
        return Err(MALFORMED);
    }
    packet.truncate(L3_START + total_len, arena);
    packet.meta.l3 = L3::V4;
    packet.meta.l3_len = total_len as u32;
    packet.meta.proto = header.proto();
    packet.meta.layers.l4 = (L3_START + header_len) as u16;
    if header.is_fragment() {
        ipv4_fragment(packet, header, total_len - header_len)?;
    }
    let ports = transport(packet, arena)?;
    let endpoint = |address: Ipv4Addr, port: u16| u64::from(u32::from(address)) << 16 | u64::from(port);
    packet.meta.hash = flow_hash(endpoint(header.src(), ports.0), endpoint(header.dst(), ports.1));
    Ok(())
}

/// Checks version, header length, checksum and options of a header that is not just twenty octets of IPv4. Returns its
/// length.
#[cold]
fn ipv4_options(packet: &mut Packet, arena: &mut [Segment], header: Ipv4<'_>) -> Result<usize, DropReason> {
    const MALFORMED: DropReason = DropReason::Ipv4Malformed;
    // RFC 1812 §5.2.2 (3) and (4): "The IP version number must be 4", "The IP header length field must be large enough
    // to hold the minimum length legal IP datagram".
    let len = header.header_len();
    if header.version() != 4 || len < ipv4::HEADER_LEN {
        return Err(MALFORMED);
    }
    need(packet, L3_START + len, arena, MALFORMED)?;
    let octets = packet.head().get(L3_START..L3_START + len).ok_or(MALFORMED)?;
    if checksum::sum(octets) != 0xffff {
        return Err(MALFORMED);
    }
    match ipv4::check_options(&octets[ipv4::HEADER_LEN..]) {
        Ok(()) => Ok(len),
        Err(OptionError::Malformed) => Err(MALFORMED),
        Err(OptionError::SourceRoute) => Err(DropReason::Ipv4Option),
    }
}

#[cold]
fn ipv4_fragment(packet: &mut Packet, header: Ipv4<'_>, len: usize) -> Result<(), DropReason> {
    let offset = header.fragment_offset();
    // RFC 791 §3.2: all fragments but the last are multiples of 8 octets, and no datagram is longer than 65,535.
    if offset + len > usize::from(u16::MAX) || (header.more_fragments() && !len.is_multiple_of(8)) {
        return Err(DropReason::Ipv4Malformed);
    }
    // RFC 3128 §2: a fragment at offset 8 could replace the flags of a TCP header that was looked at.
    if offset == 8 && header.proto() == proto::TCP {
        return Err(DropReason::L4Malformed);
    }
    packet.meta.fragment = true;
    packet.meta.later_fragment = offset > 0;
    Ok(())
}

#[inline]
fn ipv6(packet: &mut Packet, arena: &mut [Segment]) -> Result<(), DropReason> {
    const MALFORMED: DropReason = DropReason::Ipv6Malformed;
    need(packet, L3_START + ipv6::HEADER_LEN, arena, MALFORMED)?;
    let octets = *packet.head()[L3_START..].first_chunk().ok_or(MALFORMED)?;
    let header = Ipv6::new(&octets);
    let total_len = ipv6::HEADER_LEN + usize::from(header.payload_len());
    if header.version() != 6 || L3_START + total_len > packet.len() {
        return Err(MALFORMED);
    }
    let (src, dst) = (u128::from(header.src()), u128::from(header.dst()));
    // An IPv4-mapped address on the wire would be an IPv4 address to every table (`AddressKey`).
    if src >> 32 == 0xffff || dst >> 32 == 0xffff {
        return Err(DropReason::AddressNotForwardable);
    }
    packet.truncate(L3_START + total_len, arena);
    packet.meta.l3 = L3::V6;
    packet.meta.l3_len = total_len as u32;
    packet.meta.proto = header.next_header();
    packet.meta.layers.l4 = (L3_START + ipv6::HEADER_LEN) as u16;
    if ipv6::is_extension(header.next_header()) {
        ipv6_extensions(packet, arena)?;
    }
    let ports = transport(packet, arena)?;
    let endpoint = |address: u128, port: u16| {
        mix(address as u64 ^ HASH_KEYS[2], (address >> 64) as u64 ^ HASH_KEYS[3]).wrapping_add(u64::from(port))
    };
    packet.meta.hash = flow_hash(endpoint(src, ports.0), endpoint(dst, ports.1));
    Ok(())
}

/// Walks the extension headers up to the transport header, or to the payload of a later fragment.
#[cold]
fn ipv6_extensions(packet: &mut Packet, arena: &mut [Segment]) -> Result<(), DropReason> {
    let mut at = L3_START + ipv6::HEADER_LEN;
    let mut next = packet.meta.proto;
    let mut count = 0;
    while ipv6::is_extension(next) && !packet.meta.later_fragment {
        if count == IPV6_EXTENSION_HEADERS_MAX {
            return Err(DropReason::Ipv6ExtensionHeaders);
        }
        need(packet, at + 8, arena, DropReason::Ipv6Malformed)?;
        let header = *packet.head()[at..].first_chunk::<8>().ok_or(DropReason::Ipv6Malformed)?;
        let header = Extension::new_checked(next, &header).ok_or(DropReason::Ipv6Malformed)?;
        match next {
            // RFC 8200 §4.1: the hop-by-hop header "is restricted to appear immediately after an IPv6 header only".
            next_header::HOP_BY_HOP if count > 0 => return Err(DropReason::Ipv6ExtensionHeaders),
            // Source routing would carry a packet past what later stages decide about its destination (RFC 5095).
            next_header::ROUTING if header.segments_left() > 0 => return Err(DropReason::Ipv6ExtensionHeaders),
            next_header::FRAGMENT => ipv6_fragment(packet, header, at)?,
            _ => {}
        }
        at += header.len();
        need(packet, at, arena, DropReason::Ipv6Malformed)?;
        next = header.next_header();
        count += 1;
    }
    packet.meta.proto = next;
    packet.meta.layers.l4 = at as u16;
    Ok(())
}

fn ipv6_fragment(packet: &mut Packet, header: Extension<'_>, at: usize) -> Result<(), DropReason> {
    // One fragment header a packet: RFC 8200 §4.5 builds fragments from a packet that has none.
    if packet.meta.fragment {
        return Err(DropReason::Ipv6ExtensionHeaders);
    }
    let behind = at + ipv6::FRAGMENT_LEN - L3_START;
    let len = (packet.meta.l3_len as usize).checked_sub(behind).ok_or(DropReason::Ipv6Malformed)?;
    // RFC 8200 §4.5: "If the length of a fragment ... is not a multiple of 8 octets and the M flag of that fragment is
    // 1, then that fragment must be discarded"; and the packet may not exceed 65,535 octets.
    let offset = header.fragment_offset();
    if (header.more_fragments() && !len.is_multiple_of(8)) || offset + len > usize::from(u16::MAX) {
        return Err(DropReason::Ipv6Malformed);
    }
    packet.meta.fragment = true;
    packet.meta.later_fragment = offset > 0;
    Ok(())
}

/// Reads the transport header. Returns the L4 ports that the flow hash takes: none of fragments, so that all fragments
/// of a packet go the same way, and none of ICMP, whose two directions have different types.
#[inline]
fn transport(packet: &mut Packet, arena: &mut [Segment]) -> Result<(u16, u16), DropReason> {
    const MALFORMED: DropReason = DropReason::L4Malformed;
    let l4 = usize::from(packet.meta.layers.l4);
    packet.meta.layers.l5 = l4 as u16;
    if packet.meta.later_fragment {
        return Ok((0, 0));
    }
    let (header_len, ports) = match packet.meta.proto {
        proto::TCP => {
            need(packet, l4 + tcp::HEADER_LEN, arena, MALFORMED)?;
            let header = Tcp::new_checked(&packet.head()[l4..]).ok_or(MALFORMED)?;
            let header_len = header.header_len();
            if header_len < tcp::HEADER_LEN {
                return Err(MALFORMED);
            }
            let ports = (header.src_port(), header.dst_port());
            need(packet, l4 + header_len, arena, MALFORMED)?;
            (header_len, ports)
        }
        proto::UDP => {
            need(packet, l4 + udp::HEADER_LEN, arena, MALFORMED)?;
            let header = Udp::new_checked(&packet.head()[l4..]).ok_or(MALFORMED)?;
            let len = usize::from(header.len());
            // A first fragment carries the length of the whole datagram.
            if len < udp::HEADER_LEN || (l4 + len > packet.len() && !packet.meta.fragment) {
                return Err(MALFORMED);
            }
            (udp::HEADER_LEN, (header.src_port(), header.dst_port()))
        }
        _ => return other_transport(packet, arena, l4),
    };
    packet.meta.layers.l5 = (l4 + header_len) as u16;
    (packet.meta.src_port, packet.meta.dst_port) = ports;
    Ok(if packet.meta.fragment { (0, 0) } else { ports })
}

/// ICMP, ICMPv6 and SCTP. Anything else has no L4 ports and no header that we know.
#[cold]
fn other_transport(packet: &mut Packet, arena: &mut [Segment], l4: usize) -> Result<(u16, u16), DropReason> {
    const MALFORMED: DropReason = DropReason::L4Malformed;
    let meta = &mut packet.meta;
    match (meta.l3, meta.proto) {
        (L3::V4, proto::ICMPV4) => {
            need(packet, l4 + icmpv4::HEADER_LEN, arena, MALFORMED)?;
            let header = Icmpv4::new_checked(&packet.head()[l4..]).ok_or(MALFORMED)?;
            let ident = if icmpv4::has_ident(header.kind()) { header.ident() } else { 0 };
            let kind_and_code = be16(&[header.kind(), header.code()], 0);
            (packet.meta.src_port, packet.meta.dst_port) = (ident, kind_and_code);
            packet.meta.layers.l5 = (l4 + icmpv4::HEADER_LEN) as u16;
            Ok((0, 0))
        }
        (L3::V6, proto::ICMPV6) => {
            need(packet, l4 + icmpv6::HEADER_LEN, arena, MALFORMED)?;
            let header = Icmpv6::new_checked(&packet.head()[l4..]).ok_or(MALFORMED)?;
            let ident = if icmpv6::has_ident(header.kind()) { header.ident() } else { 0 };
            let kind_and_code = be16(&[header.kind(), header.code()], 0);
            if icmpv6::is_ndp(header.kind()) {
                need(packet, packet.len(), arena, MALFORMED)?;
            }
            (packet.meta.src_port, packet.meta.dst_port) = (ident, kind_and_code);
            packet.meta.layers.l5 = (l4 + icmpv6::HEADER_LEN) as u16;
            Ok((0, 0))
        }
        (_, proto::SCTP) => {
            need(packet, l4 + SCTP_HEADER_LEN, arena, MALFORMED)?;
            let header = packet.head()[l4..].first_chunk::<4>().ok_or(MALFORMED)?;
            let ports = (be16(header, 0), be16(header, 2));
            (packet.meta.src_port, packet.meta.dst_port) = ports;
            packet.meta.layers.l5 = (l4 + SCTP_HEADER_LEN) as u16;
            Ok(if packet.meta.fragment { (0, 0) } else { ports })
        }
        _ => Ok((0, 0)),
    }
}

/// Brings the first `len` octets of the frame into the head; `short` when the frame has fewer.
#[inline]
fn need(packet: &mut Packet, len: usize, arena: &mut [Segment], short: DropReason) -> Result<(), DropReason> {
    packet.extend_head(len, arena).map_err(|reason| match reason {
        DropReason::FrameTooShort => short,
        other => other,
    })
}

/// The same for both directions of a flow: the ends are ordered first. It only chooses among receive queues, so
/// constants serve as keys: who makes them collide fills one queue of the guest that he talks to.
#[inline]
fn flow_hash(a: u64, b: u64) -> u32 {
    let hash = mix(a.min(b) ^ HASH_KEYS[0], a.max(b) ^ HASH_KEYS[1]);
    (hash ^ hash >> 32) as u32
}

/// One folded multiplication.
#[inline]
fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// Where the network header starts: there is never a VLAN tag.
const L3_START: usize = ethernet::HEADER_LEN;
const VERSION_4_NO_OPTIONS: u8 = 0x45;
const SCTP_HEADER_LEN: usize = 12;
/// Digits of pi, as in Blowfish.
const HASH_KEYS: [u64; 4] =
    [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344, 0xa409_3822_299f_31d0, 0x082e_fa98_ec4e_6c89];
