//! Frames for the unit tests of the stages, and bursts that hold them as `rx` would leave them.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ptr::NonNull;

use crate::MacAddr;
use crate::fuzz::{GUEST_A, GUEST_B, mac, v4, v6};
use crate::limits::HEADROOM;
use crate::packet::{Burst, Packet};
use crate::payload::Segment;
use crate::tables::PortId;
use crate::wire::ethernet::{self, ether_type};
use crate::wire::{arp, icmpv4, icmpv6, ipv4, ipv6, ndp, proto, tcp, udp};

/// A burst with one frame: up to `head` octets in the head, the rest in two segments.
#[allow(unsafe_code, reason = "segments of a test's own octets")]
pub fn burst(port: PortId, frame: &[u8], head: usize) -> Burst {
    let mut burst = Burst::new();
    let (head, rest) = frame.split_at(head.min(frame.len()));
    // Leaked, so that segments may point there as long as they like.
    let rest: &'static [u8] = Vec::from(rest).leak();
    let (packet, arena) = burst.next_slot(port);
    packet.slot()[HEADROOM..HEADROOM + head.len()].copy_from_slice(head);
    let (one, two) = rest.split_at(rest.len() / 3);
    let mut count = 0;
    for part in [one, two].into_iter().filter(|part| !part.is_empty()) {
        // SAFETY: the octets are never freed and never written. JUSTIFICATION: there is no other constructor.
        arena.push(unsafe { Segment::new(NonNull::from(part).cast(), part.len() as u32) });
        count += 1;
    }
    packet.set_frame(head.len(), 0, count, rest.len());
    burst.push();
    burst
}

/// Calls `test` with a frame from guest a, as `rx` leaves it.
pub fn with<R>(frame: &[u8], test: impl FnOnce(&mut Packet, &mut Vec<Segment>) -> R) -> R {
    let mut burst = burst(GUEST_A, frame, crate::limits::HEAD_FIRST);
    let (packet, arena) = burst.packet_mut(0);
    test(packet, arena)
}

/// An Ethernet frame from guest a to `dst`.
pub fn frame_to(dst: MacAddr, ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0xa5; 14];
    ethernet::Repr { dst, src: mac(GUEST_A), ether_type }.emit(frame.first_chunk_mut().unwrap());
    frame.extend(payload);
    frame
}

/// An IPv4 packet in a frame from guest a.
pub fn ipv4_frame(src: Ipv4Addr, dst: Ipv4Addr, proto: u8, ttl: u8, payload: &[u8]) -> Vec<u8> {
    let link = if dst.is_multicast() || dst.is_broadcast() { MacAddr::BROADCAST } else { MacAddr::ROUTER };
    let mut packet = vec![0xa5; 20];
    let repr = ipv4::Repr { src, dst, proto, ttl, tos: 0, payload_len: payload.len() as u16 };
    repr.emit(packet.first_chunk_mut().unwrap());
    packet.extend(payload);
    frame_to(link, ether_type::IPV4, &packet)
}

/// An IPv6 packet in a frame from guest a.
pub fn ipv6_frame(src: Ipv6Addr, dst: Ipv6Addr, next_header: u8, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
    let link = if dst.is_multicast() { ethernet::multicast_v6(dst) } else { MacAddr::ROUTER };
    let mut packet = vec![0xa5; 40];
    let repr = ipv6::Repr { src, dst, next_header, hop_limit, traffic_class: 0, payload_len: payload.len() as u16 };
    repr.emit(packet.first_chunk_mut().unwrap());
    packet.extend(payload);
    frame_to(link, ether_type::IPV6, &packet)
}

/// A UDP datagram without checksum.
pub fn udp(src_port: u16, dst_port: u16, data: &[u8]) -> Vec<u8> {
    let mut datagram = vec![0xa5; 8];
    datagram.extend(data);
    udp::Repr { src_port, dst_port }.emit_v4(&mut datagram, Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST).unwrap();
    datagram[6..8].fill(0);
    datagram
}

/// A TCP segment with twelve octets of options and no checksum.
pub fn tcp(src_port: u16, dst_port: u16, data: &[u8]) -> Vec<u8> {
    let mut segment = vec![0xa5; 20];
    let repr = tcp::Repr { src_port, dst_port, sequence: 1, acknowledgement: 2, flags: tcp::flags::ACK, window: 512 };
    repr.emit(segment.first_chunk_mut().unwrap(), 0);
    segment[12] = 8 << 4;
    segment.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    segment.extend(data);
    segment
}

/// An ICMPv6 message with its checksum, in a frame from guest a.
pub fn icmpv6_frame(src: Ipv6Addr, dst: Ipv6Addr, hop_limit: u8, message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    icmpv6::fill_checksum(&mut message, src, dst).unwrap();
    ipv6_frame(src, dst, proto::ICMPV6, hop_limit, &message)
}

/// A neighbour solicitation or advertisement without checksum.
pub fn neighbor(kind: u8, flags: u8, target: Ipv6Addr, option: Option<(u8, MacAddr)>) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, flags, 0, 0, 0];
    message.extend(target.octets());
    if let Some((kind, mac)) = option {
        message.extend([kind, 1]);
        message.extend(mac.0);
    }
    message
}

/// An ARP request of guest a, in a frame.
pub fn arp_frame(edit: impl FnOnce(&mut arp::Message)) -> Vec<u8> {
    let mut message = arp::Message {
        operation: arp::Operation::Request,
        sender_mac: mac(GUEST_A),
        sender_ip: v4(GUEST_A),
        target_mac: MacAddr([0; 6]),
        target_ip: v4(GUEST_B),
    };
    edit(&mut message);
    let mut octets = [0xa5; arp::LEN];
    message.emit(&mut octets);
    frame_to(MacAddr::BROADCAST, ether_type::ARP, &octets)
}

/// Frames of guest a, at least one for each branch; nearly all are valid.
pub fn samples() -> Vec<Vec<u8>> {
    let (a4, b4, a6, b6) = (v4(GUEST_A), v4(GUEST_B), v6(GUEST_A), v6(GUEST_B));
    let mut echo = vec![1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
    icmpv4::emit(&mut echo, icmpv4::kind::ECHO_REQUEST, 0, 0x0001_0002).unwrap();
    let fragment = |next: u8, offset: u16, payload: &[u8]| {
        let mut packet = vec![next, 0];
        packet.extend(offset.to_be_bytes());
        packet.extend([0, 0, 0, 1]);
        packet.extend(payload);
        packet
    };
    let solicit = neighbor(icmpv6::kind::NEIGHBOR_SOLICIT, 0, b6, Some((ndp::option::SOURCE_LINK_LAYER, mac(GUEST_A))));
    let hop_by_hop = [&[proto::UDP, 0, 5, 2, 0, 0, 1, 0][..], &udp(1, 2, b"hop by hop")].concat();
    vec![
        ipv4_frame(a4, b4, proto::UDP, 64, &udp(1000, 2000, b"data")),
        ipv4_frame(a4, b4, proto::TCP, 64, &tcp(1000, 2000, &[7; 1400])),
        ipv4_frame(a4, b4, proto::TCP, 1, &tcp(1000, 2000, &[7; 1400])),
        ipv4_frame(a4, b4, proto::ICMPV4, 64, &echo),
        ipv4_frame(a4, Ipv4Addr::new(192, 0, 2, 99), proto::UDP, 64, &udp(1, 2, b"nobody")),
        ipv4_frame(a4, b4, proto::UDP, 64, &udp(1, 2, &[0; 2000])),
        ipv4_frame(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, proto::UDP, 64, &udp(68, 67, &[0; 300])),
        ipv4_frame(a4, b4, 47, 64, b"GRE"),
        ipv6_frame(a6, b6, proto::UDP, 64, &udp(1000, 2000, b"data")),
        ipv6_frame(a6, b6, proto::TCP, 64, &tcp(1000, 2000, &[7; 1400])),
        ipv6_frame(a6, b6, proto::TCP, 1, &tcp(1000, 2000, &[7; 1400])),
        ipv6_frame(a6, b6, ipv6::next_header::HOP_BY_HOP, 64, &hop_by_hop),
        ipv6_frame(a6, b6, ipv6::next_header::FRAGMENT, 64, &fragment(proto::UDP, 1, &udp(1, 2, &[0; 16]))),
        ipv6_frame(a6, b6, ipv6::next_header::FRAGMENT, 64, &fragment(proto::UDP, 16, b"later")),
        icmpv6_frame(a6, ipv6::solicited_node(b6), 255, &solicit),
        icmpv6_frame(a6, b6, 64, &[128, 0, 0, 0, 0, 1, 0, 2, 3, 4]),
        icmpv6_frame(a6, ipv6::ALL_NODES, 255, &[134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]),
        ipv4_frame(a4, b4, proto::TCP, 64, &tcp(1000, 2000, b"")[..24]),
        arp_frame(|_| ()),
    ]
}
