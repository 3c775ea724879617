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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MacAddr;
    use crate::fuzz::{GUEST_A, GUEST_B, v4, v6};
    use crate::packet::Meta;
    use crate::testing::{self, frame_to, icmpv6_frame, ipv4_frame, ipv6_frame};
    use crate::wire::ipv6::next_header::{DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, ROUTING};

    fn meta(frame: &[u8]) -> Result<Meta, DropReason> {
        testing::with(frame, |packet, arena| match parse(packet, arena) {
            Verdict::Continue => Ok(packet.meta),
            Verdict::Drop(reason) => Err(reason),
            other => panic!("{other:?}"),
        })
    }

    fn verdict(frame: &[u8]) -> Result<(), DropReason> {
        meta(frame).map(|_| ())
    }

    fn udp_v4() -> Vec<u8> {
        ipv4_frame(v4(GUEST_A), v4(GUEST_B), proto::UDP, 64, &testing::udp(1000, 2000, b"data"))
    }

    fn udp_v6() -> Vec<u8> {
        ipv6_frame(v6(GUEST_A), v6(GUEST_B), proto::UDP, 64, &testing::udp(1000, 2000, b"data"))
    }

    /// An IPv6 packet with `chain` before a UDP datagram.
    fn chain(first: u8, chain: &[&[u8]]) -> Vec<u8> {
        let payload = [&chain.concat()[..], &testing::udp(1000, 2000, b"data1234")].concat();
        ipv6_frame(v6(GUEST_A), v6(GUEST_B), first, 64, &payload)
    }

    /// Changes octets of an IPv4 header and puts its checksum right.
    fn edited(mut frame: Vec<u8>, at: usize, octets: &[u8]) -> Vec<u8> {
        frame[14 + at..14 + at + octets.len()].copy_from_slice(octets);
        let end = 14 + (usize::from(frame[14] & 0x0f) * 4).clamp(20, frame.len() - 14);
        frame[24..26].fill(0);
        let sum = !checksum::sum(&frame[14..end]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame
    }

    #[test]
    fn plain_udp_over_both() {
        let meta4 = meta(&udp_v4()).unwrap();
        assert_eq!((meta4.l3, meta4.proto, meta4.src_port, meta4.dst_port, meta4.l3_len), (L3::V4, 17, 1000, 2000, 32));
        assert_eq!((meta4.layers.l3, meta4.layers.l4, meta4.layers.l5), (14, 34, 42));
        let meta6 = meta(&udp_v6()).unwrap();
        assert_eq!((meta6.l3, meta6.proto, meta6.src_port, meta6.dst_port, meta6.l3_len), (L3::V6, 17, 1000, 2000, 52));
        assert_eq!((meta6.layers.l3, meta6.layers.l4, meta6.layers.l5), (14, 54, 62));
    }

    #[test]
    fn tcp_options_belong_to_the_header() {
        let frame = ipv4_frame(v4(GUEST_A), v4(GUEST_B), proto::TCP, 64, &testing::tcp(1, 2, b"data"));
        assert_eq!(meta(&frame).unwrap().layers.l5, 34 + 32);
    }

    #[test]
    fn padding_is_cut_off() {
        let mut frame = udp_v4();
        frame.resize(200, 0xa5);
        testing::with(&frame, |packet, arena| {
            assert_eq!(parse(packet, arena), Verdict::Continue);
            assert_eq!((packet.len(), packet.meta.l3_len), (46, 32));
        });
    }

    #[test]
    fn both_directions_hash_alike() {
        let (a, b) = (v4(GUEST_A), v4(GUEST_B));
        let there = meta(&ipv4_frame(a, b, proto::UDP, 64, &testing::udp(1000, 2000, b""))).unwrap().hash;
        let back = meta(&ipv4_frame(b, a, proto::UDP, 64, &testing::udp(2000, 1000, b""))).unwrap().hash;
        let other = meta(&ipv4_frame(b, a, proto::UDP, 64, &testing::udp(1000, 2000, b""))).unwrap().hash;
        assert!(there == back && there != other);
        let (a, b) = (v6(GUEST_A), v6(GUEST_B));
        let there = meta(&ipv6_frame(a, b, proto::UDP, 64, &testing::udp(1000, 2000, b""))).unwrap().hash;
        let back = meta(&ipv6_frame(b, a, proto::UDP, 64, &testing::udp(2000, 1000, b""))).unwrap().hash;
        let other = meta(&ipv6_frame(b, a, proto::UDP, 64, &testing::udp(1000, 2000, b""))).unwrap().hash;
        assert!(there == back && there != other);
    }

    #[test]
    fn flows_spread_over_queues() {
        let mut queues = [0; 4];
        for port in 0..256 {
            let frame = ipv4_frame(v4(GUEST_A), v4(GUEST_B), proto::UDP, 64, &testing::udp(40_000 + port, 80, b""));
            queues[meta(&frame).unwrap().hash as usize % 4] += 1;
        }
        assert!(queues.iter().all(|count| (32..=96).contains(count)), "{queues:?}");
    }

    #[test]
    fn short_frames_by_layer() {
        assert_eq!(verdict(&[0; 13]), Err(DropReason::FrameTooShort));
        assert_eq!(verdict(&udp_v4()[..33]), Err(DropReason::Ipv4Malformed));
        assert_eq!(verdict(&udp_v6()[..53]), Err(DropReason::Ipv6Malformed));
        assert_eq!(verdict(&testing::arp_frame(|_| ())[..41]), Err(DropReason::ArpInvalid));
        assert_eq!(verdict(&udp_v4()[..45]), Err(DropReason::Ipv4Malformed), "total length beyond the frame");
        assert_eq!(verdict(&udp_v6()[..65]), Err(DropReason::Ipv6Malformed), "payload length beyond the frame");
    }

    #[test]
    fn ether_types_that_are_not_known() {
        for (ether_type, case) in [(0x8100, "802.1Q"), (0x88a8, "802.1ad"), (0x8035, "RARP"), (46, "802.3 length")] {
            assert_eq!(
                verdict(&frame_to(MacAddr::ROUTER, ether_type, &[0; 46])),
                Err(DropReason::EtherTypeUnknown),
                "{case}"
            );
        }
    }

    #[test]
    fn ipv4_headers_that_are_wrong() {
        for (at, octets, case) in [
            (0, &[0x65][..], "version"),
            (0, &[0x44], "header length below 20"),
            (0, &[0x4f], "header length beyond the packet"),
            (2, &[0, 19], "total length below the header"),
        ] {
            assert_eq!(verdict(&edited(udp_v4(), at, octets)), Err(DropReason::Ipv4Malformed), "{case}");
        }
        let mut frame = udp_v4();
        frame[24] ^= 1;
        assert_eq!(verdict(&frame), Err(DropReason::Ipv4Malformed), "checksum");
    }

    #[test]
    fn ipv4_options() {
        let with = |options: [u8; 4]| {
            let payload = [&options[..], &testing::udp(1000, 2000, b"data")].concat();
            edited(ipv4_frame(v4(GUEST_A), v4(GUEST_B), proto::UDP, 64, &payload), 0, &[0x46])
        };
        let meta = meta(&with([148, 4, 0, 0])).unwrap();
        assert_eq!((meta.layers.l4, meta.dst_port), (38, 2000));
        assert_eq!(verdict(&with([131, 3, 4, 0])), Err(DropReason::Ipv4Option));
        assert_eq!(verdict(&with([137, 3, 4, 0])), Err(DropReason::Ipv4Option));
        assert_eq!(verdict(&with([7, 9, 4, 0])), Err(DropReason::Ipv4Malformed));
        let mut frame = with([148, 4, 0, 0]);
        frame[36] ^= 1;
        assert_eq!(verdict(&frame), Err(DropReason::Ipv4Malformed), "the checksum covers options");
    }

    #[test]
    fn ipv4_fragments() {
        let udp = ipv4_frame(v4(GUEST_A), v4(GUEST_B), proto::UDP, 64, &testing::udp(1000, 2000, &[7; 16]));
        let first = meta(&edited(udp.clone(), 6, &[0x20, 0])).unwrap();
        assert!(first.fragment && !first.later_fragment && first.dst_port == 2000);
        let later = meta(&edited(udp.clone(), 6, &[0, 5])).unwrap();
        assert!(later.fragment && later.later_fragment);
        assert_eq!((later.src_port, later.dst_port, later.layers.l4, later.layers.l5), (0, 0, 34, 34));
        assert_eq!(first.hash, later.hash, "all fragments of a datagram go the same way");
        assert_eq!(verdict(&edited(udp, 6, &[0x1f, 0xff])), Err(DropReason::Ipv4Malformed), "ping of death");
        assert_eq!(
            verdict(&edited(udp_v4(), 6, &[0x20, 0])),
            Err(DropReason::Ipv4Malformed),
            "12 octets, and more follow"
        );
        let tcp = ipv4_frame(v4(GUEST_A), v4(GUEST_B), proto::TCP, 64, &testing::tcp(1, 2, &[7; 16]));
        assert_eq!(verdict(&edited(tcp, 6, &[0, 1])), Err(DropReason::L4Malformed), "RFC 3128");
    }

    #[test]
    fn transport_headers_that_are_wrong() {
        let tcp = |octets: &[u8]| ipv4_frame(v4(GUEST_A), v4(GUEST_B), proto::TCP, 64, octets);
        let udp = |octets: &[u8]| ipv6_frame(v6(GUEST_A), v6(GUEST_B), proto::UDP, 64, octets);
        assert_eq!(verdict(&tcp(&testing::tcp(1, 2, b"")[..19])), Err(DropReason::L4Malformed));
        assert_eq!(verdict(&tcp(&testing::tcp(1, 2, b"")[..31])), Err(DropReason::L4Malformed), "options cut off");
        let mut segment = testing::tcp(1, 2, b"");
        segment[12] = 4 << 4;
        assert_eq!(verdict(&tcp(&segment)), Err(DropReason::L4Malformed), "data offset below 20");
        assert_eq!(verdict(&udp(&testing::udp(1, 2, b"")[..7])), Err(DropReason::L4Malformed));
        for (len, case) in [(7, "shorter than its header"), (13, "longer than the packet")] {
            let mut datagram = testing::udp(1, 2, b"data");
            datagram[5] = len;
            assert_eq!(verdict(&udp(&datagram)), Err(DropReason::L4Malformed), "{case}");
        }
        let icmp = ipv4_frame(v4(GUEST_A), v4(GUEST_B), proto::ICMPV4, 64, &[8, 0, 0, 0, 0, 1, 0]);
        assert_eq!(verdict(&icmp), Err(DropReason::L4Malformed));
    }

    #[test]
    fn unknown_transport_has_no_ports() {
        // SEMANTICS CT10. ICMP of the other IP version is as unknown as GRE.
        for (proto, case) in [(47, "GRE"), (50, "ESP"), (58, "ICMPv6 over IPv4")] {
            let meta = meta(&ipv4_frame(v4(GUEST_A), v4(GUEST_B), proto, 64, &[1, 2, 3, 4, 5, 6, 7, 8])).unwrap();
            assert_eq!((meta.src_port, meta.dst_port, meta.layers.l5), (0, 0, 34), "{case}");
        }
    }

    #[test]
    fn icmp_type_and_identifier() {
        let meta4 = meta(&ipv4_frame(v4(GUEST_A), v4(GUEST_B), 1, 64, &[8, 0, 0, 0, 0x12, 0x34, 0, 1])).unwrap();
        assert_eq!((meta4.src_port, meta4.dst_port), (0x1234, 0x0800));
        let meta6 = meta(&icmpv6_frame(v6(GUEST_A), v6(GUEST_B), 64, &[1, 3, 0, 0, 0x12, 0x34, 0, 1])).unwrap();
        assert_eq!((meta6.src_port, meta6.dst_port), (0, 0x0103), "errors have no identifier");
    }

    #[test]
    fn ipv6_headers_that_are_wrong() {
        let mut frame = udp_v6();
        frame[14] = 0x40;
        assert_eq!(verdict(&frame), Err(DropReason::Ipv6Malformed), "version");
        let mapped = v4(GUEST_B).to_ipv6_mapped();
        for (src, dst) in [(v6(GUEST_A), mapped), (mapped, v6(GUEST_B))] {
            let frame = ipv6_frame(src, dst, proto::UDP, 64, &testing::udp(1, 2, b""));
            assert_eq!(verdict(&frame), Err(DropReason::AddressNotForwardable), "IPv4-mapped");
        }
    }

    const PAD: [u8; 6] = [1, 4, 0, 0, 0, 0];

    fn header(next: u8, rest: [u8; 6]) -> Vec<u8> {
        [&[next, 0][..], &rest].concat()
    }

    #[test]
    fn extension_headers_are_walked() {
        let meta = meta(&chain(HOP_BY_HOP, &[&header(DESTINATION_OPTIONS, PAD), &header(proto::UDP, PAD)])).unwrap();
        assert_eq!((meta.proto, meta.dst_port, meta.layers.l4), (proto::UDP, 2000, 70));
        // AH counts 4-octet units: 24 octets here.
        let authentication = [&[proto::UDP, 4, 0, 0][..], &[0; 20]].concat();
        assert_eq!(self::meta(&chain(51, &[&authentication])).unwrap().layers.l4, 78);
        let routed = header(proto::UDP, [0, 0, 0, 0, 0, 0]);
        assert_eq!(self::meta(&chain(ROUTING, &[&routed])).unwrap().dst_port, 2000, "no segments left");
    }

    #[test]
    fn extension_headers_that_are_refused() {
        let reason = |first, headers: &[&[u8]]| verdict(&chain(first, headers)).unwrap_err();
        let second = [&header(HOP_BY_HOP, PAD)[..], &header(proto::UDP, PAD)];
        assert_eq!(reason(DESTINATION_OPTIONS, &second), DropReason::Ipv6ExtensionHeaders, "hop-by-hop not first");
        let routed = header(proto::UDP, [0, 1, 0, 0, 0, 0]);
        assert_eq!(reason(ROUTING, &[&routed]), DropReason::Ipv6ExtensionHeaders, "RFC 5095");
        let more = header(DESTINATION_OPTIONS, PAD);
        let nine: Vec<&[u8]> = vec![&more; IPV6_EXTENSION_HEADERS_MAX + 1];
        assert_eq!(reason(DESTINATION_OPTIONS, &nine), DropReason::Ipv6ExtensionHeaders, "too many");
        let atomic = header(FRAGMENT, [0; 6]);
        assert_eq!(reason(FRAGMENT, &[&atomic, &atomic]), DropReason::Ipv6ExtensionHeaders, "two fragment headers");
        let cut = ipv6_frame(v6(GUEST_A), v6(GUEST_B), HOP_BY_HOP, 64, &[proto::UDP, 2, 0, 0, 0, 0, 0, 0]);
        assert_eq!(verdict(&cut), Err(DropReason::Ipv6Malformed), "cut off");
        let long = [&[proto::UDP, 63, 1, 4][..], &[0; 508]].concat();
        assert_eq!(reason(HOP_BY_HOP, &[&long]), DropReason::HeadersTooLong, "beyond 512 octets");
    }

    #[test]
    fn ipv6_fragments() {
        let with = |next: u8, offset: u16, payload: &[u8]| {
            let [a, b] = offset.to_be_bytes();
            let packet = [&[next, 0, a, b, 0, 0, 0, 1][..], payload].concat();
            ipv6_frame(v6(GUEST_A), v6(GUEST_B), FRAGMENT, 64, &packet)
        };
        let udp = testing::udp(1000, 2000, &[7; 16]);
        let first = meta(&with(proto::UDP, 1, &udp)).unwrap();
        assert!(first.fragment && !first.later_fragment && first.dst_port == 2000);
        let atomic = meta(&with(proto::UDP, 0, &udp)).unwrap();
        assert_eq!((atomic.dst_port, atomic.later_fragment), (2000, false), "SEMANTICS CT8");
        let later = meta(&with(DESTINATION_OPTIONS, 16, b"odd")).unwrap();
        assert!(later.later_fragment);
        assert_eq!((later.proto, later.layers.l4, later.layers.l5, later.dst_port), (DESTINATION_OPTIONS, 62, 62, 0));
        assert_eq!(
            verdict(&with(proto::UDP, 1, &udp[..7])),
            Err(DropReason::Ipv6Malformed),
            "7 octets, and more follow"
        );
        assert_eq!(verdict(&with(proto::TCP, 1, &udp[..8])), Err(DropReason::L4Malformed), "RFC 7112");
        assert_eq!(verdict(&with(proto::UDP, 0xfff8, &udp)), Err(DropReason::Ipv6Malformed), "beyond 65,535 octets");
    }

    #[test]
    fn neighbour_discovery_is_in_the_head_as_a_whole() {
        let mut message = testing::neighbor(135, 0, v6(GUEST_B), None);
        message.resize(24 + 256, 0);
        let frame = icmpv6_frame(v6(GUEST_A), v6(GUEST_B), 255, &message);
        testing::with(&frame, |packet, arena| {
            assert_eq!(parse(packet, arena), Verdict::Continue);
            assert_eq!((packet.head().len(), packet.payload_len()), (frame.len(), 0));
        });
        message.resize(480, 0);
        let frame = icmpv6_frame(v6(GUEST_A), v6(GUEST_B), 255, &message);
        assert_eq!(verdict(&frame), Err(DropReason::HeadersTooLong));
    }

    #[test]
    fn arp_is_fixed() {
        let mut frame = testing::arp_frame(|_| ());
        assert_eq!(meta(&frame).unwrap().l3, L3::Arp);
        frame[14] = 1;
        assert_eq!(verdict(&frame), Err(DropReason::ArpInvalid));
    }
}
