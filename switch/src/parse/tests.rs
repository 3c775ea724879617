//! `parse`: each odd case by name.

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
    assert_eq!(verdict(&edited(udp, 6, &[0x1f, 0xff])), Err(DropReason::Ipv4Malformed), "ping of death");
    assert_eq!(verdict(&edited(udp_v4(), 6, &[0x20, 0])), Err(DropReason::Ipv4Malformed), "12 octets, and more follow");
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
    assert_eq!(verdict(&with(proto::UDP, 1, &udp[..7])), Err(DropReason::Ipv6Malformed), "7 octets, and more follow");
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
