//! One harness for property test and fuzzer: arbitrary octets through parse, guard, route, rewrite and the ICMP error,
//! against fixed tables, with what must hold afterwards asserted. Not part of the packet path.
//!
//! Two networks with the same ranges stand in the tables, so that a packet that left its network would show.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::MacAddr;
use crate::icmp_error::{ErrorKind, icmp_error};
use crate::limits::{FRAME_MAX, GSO_SEGMENTS_MAX, GSO_SIZE_MIN, HEAD_CAPACITY, HEADROOM};
use crate::packet::{Burst, L3, Offload, Packet, virtio_net};
use crate::payload::Segment;
use crate::stage::{DropReason, Verdict};
use crate::tables::{AddressKey, Network, NetworkId, Port, PortId, PortKind, ROUTER_LINK_LOCAL, Tables};
use crate::wire::ethernet::Ethernet;
use crate::wire::ipv4::Ipv4;
use crate::wire::ipv6::Ipv6;
use crate::wire::{checksum, icmpv6};
use crate::{guard, parse, rewrite, route};

/// The internal port of the first network.
pub const INTERNAL: PortId = PortId(0);
/// A guest in the first network.
pub const GUEST_A: PortId = PortId(1);
/// Another guest in the first network.
pub const GUEST_B: PortId = PortId(2);
/// A guest in the second network with the addresses of [`GUEST_B`].
pub const GUEST_C: PortId = PortId(3);
/// The network of the first three.
pub const NETWORK: NetworkId = NetworkId(0);
/// The gateway's IPv4 address.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The gateway's IPv6 address.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// The MAC address of a port of these tables.
pub fn mac(port: PortId) -> MacAddr {
    MacAddr([0x02, 0, 0, 0, 0, 0x10 + port.0 as u8])
}

/// The IPv4 address of a port of these tables.
pub fn v4(port: PortId) -> Ipv4Addr {
    match port {
        INTERNAL => GATEWAY_V4,
        GUEST_C => v4(GUEST_B),
        PortId(id) => Ipv4Addr::new(192, 0, 2, 10 + id as u8),
    }
}

/// The IPv6 address of a port of these tables.
pub fn v6(port: PortId) -> Ipv6Addr {
    match port {
        INTERNAL => GATEWAY_V6,
        GUEST_C => v6(GUEST_B),
        PortId(id) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10 + id as u16),
    }
}

/// The fixed tables.
pub fn tables() -> Tables {
    let mut tables = Tables::default();
    for id in [0, 1] {
        tables.networks.push(Some(Arc::new(Network {
            v4: "192.0.2.0/24".parse().ok().map(|range| (range, GATEWAY_V4)),
            v6: "2001:db8::/64".parse().ok().map(|range| (range, GATEWAY_V6)),
            learning: true,
            internal: if id == 0 { INTERNAL } else { PortId::NONE },
            ..Network::bare(format!("network-{id}"), 100 + id)
        })));
    }
    for id in [INTERNAL, GUEST_A, GUEST_B, GUEST_C] {
        let network = if id == GUEST_C { NetworkId(1) } else { NETWORK };
        tables.set_addresses([(AddressKey::v4(network, v4(id)), id), (AddressKey::v6(network, v6(id)), id)]);
        tables.set_ports([Arc::new(Port {
            id,
            name: format!("default/port-{}", id.0),
            kind: if id == INTERNAL { PortKind::Internal } else { PortKind::VhostUser },
            network,
            mac: mac(id),
            v4: vec![v4(id)],
            v6: vec![v6(id)],
            hostname: format!("port-{}", id.0),
            up: true,
            lease_s: 3600,
            limits: None,
            counters: Arc::new([]),
        })]);
    }
    tables
}

/// Takes arbitrary octets apart into a port, a virtio-net header and a frame, and runs [`check`] on them. The first
/// octet says which fields are put right first, so that mutation reaches behind the first check.
///
/// # Panics
/// When something does not hold that must.
pub fn fuzz_parse(data: &[u8]) {
    thread_local! {
        static STATE: RefCell<(Burst, Tables)> = RefCell::new((Burst::new(), tables()));
    }
    let Some((port, offload, frame)) = prepare(data) else { return };
    STATE.with_borrow_mut(|(burst, tables)| {
        burst.clear();
        let (packet, _) = burst.next_slot(port);
        let len = frame.len().min(HEAD_CAPACITY - HEADROOM);
        packet.slot()[HEADROOM..HEADROOM + len].copy_from_slice(&frame[..len]);
        packet.set_frame(len, 0, 0, 0);
        packet.meta.offload = offload;
        burst.push();
        let (packet, arena) = burst.packet_mut(0);
        let _ = check(tables, packet, arena);
    });
}

/// The port, offload and frame that `data` stands for; `None` when it is too short.
pub fn prepare(data: &[u8]) -> Option<(PortId, Offload, Vec<u8>)> {
    let (choice, data) = data.split_first()?;
    let (header, frame) = data.split_first_chunk::<10>()?;
    let port = if choice & 0x40 != 0 { INTERNAL } else { GUEST_A };
    let word = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let mut offload = Offload::default();
    if choice & 0x80 != 0 {
        offload = Offload {
            flags: header[0],
            gso_type: header[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        };
    }
    let mut frame = frame[..frame.len().min(FRAME_MAX)].to_vec();
    repair(*choice, port, &mut frame);
    if header[0] & 0x40 != 0 {
        offload = plausible(offload, &frame);
    }
    Some((port, offload, frame))
}

/// An offload that asks for what the frame seems to carry; only the size of segments is arbitrary, below 2048.
fn plausible(offload: Offload, frame: &[u8]) -> Offload {
    let at = |at: usize| frame.get(at).copied().unwrap_or(0);
    let (csum_start, proto, tcp_type) = match [at(12), at(13)] {
        [0x08, 0x00] => (34, at(23), virtio_net::GSO_TCPV4),
        _ => (54, at(20), virtio_net::GSO_TCPV6),
    };
    let (csum_offset, gso_type) = if proto == 6 { (16, tcp_type) } else { (6, virtio_net::GSO_UDP_L4) };
    let gso_size = offload.gso_size & 0x7ff;
    Offload { flags: virtio_net::NEEDS_CSUM, gso_type, hdr_len: 0, gso_size, csum_start, csum_offset }
}

/// Puts right what the bits of `choice` ask for: link addresses, EtherType with version and lengths, addresses, and the
/// checksum of the IPv4 header.
fn repair(choice: u8, port: PortId, frame: &mut [u8]) {
    let len = frame.len();
    if choice & 1 != 0 && len >= 14 {
        frame[..6].copy_from_slice(&MacAddr::ROUTER.0);
        frame[6..12].copy_from_slice(&mac(port).0);
    }
    let destination = if choice & 0x20 != 0 { GUEST_B } else { INTERNAL };
    if choice & 2 != 0 && choice & 4 == 0 && len >= 34 {
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14] = 0x40 | (frame[14] & 0x0f).max(5);
        frame[16..18].copy_from_slice(&((len - 14).min(0xffff) as u16).to_be_bytes());
        if choice & 8 != 0 {
            frame[26..30].copy_from_slice(&v4(port).octets());
            frame[30..34].copy_from_slice(&v4(destination).octets());
        }
        let header_len = usize::from(frame[14] & 0x0f) * 4;
        if choice & 0x10 != 0 && len >= 14 + header_len {
            frame[24..26].fill(0);
            let sum = !checksum::sum(&frame[14..14 + header_len]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
    }
    if choice & 2 != 0 && choice & 4 != 0 && len >= 54 {
        frame[12..14].copy_from_slice(&[0x86, 0xdd]);
        frame[14] = 0x60;
        frame[18..20].copy_from_slice(&((len - 54).min(0xffff) as u16).to_be_bytes());
        if choice & 8 != 0 {
            frame[22..38].copy_from_slice(&v6(port).octets());
            frame[38..54].copy_from_slice(&v6(destination).octets());
        }
    }
}

/// Runs one packet through the stages and asserts what must hold. Returns how it ended.
///
/// # Panics
/// When something does not hold that must.
pub fn check(tables: &Tables, packet: &mut Packet, arena: &mut [Segment]) -> Verdict {
    let verdict = stages(tables, packet, arena);
    assert_ne!(verdict, Verdict::Drop(DropReason::Internal));
    verdict
}

fn stages(tables: &Tables, packet: &mut Packet, arena: &mut [Segment]) -> Verdict {
    let received = frame_of(packet, arena);
    let in_port = tables.port(packet.meta.in_port).expect("a port of the tables");
    let network = tables.network(in_port.network).expect("a network of the tables");
    match parse::parse(packet, arena) {
        Verdict::Continue => assert_parsed(packet, &received, arena),
        end => return end,
    }
    match guard::guard(in_port, network, packet) {
        Verdict::Continue => assert_guarded(in_port, packet),
        end => return end,
    }
    let before = frame_of(packet, arena);
    let routed = route::route(tables, in_port.network, packet).and_then(|out| {
        let port = tables.port(out).expect("the route leads to a port");
        route::may_go_on(network, packet, port).map(|()| out)
    });
    match routed {
        Ok(out) => packet.meta.out_port = out,
        Err(reason) => {
            let kind = match reason {
                DropReason::TtlExceeded => ErrorKind::TimeExceeded,
                DropReason::MtuExceeded => ErrorKind::TooBig(1500),
                _ => ErrorKind::NoRoute,
            };
            if icmp_error(packet, arena, network, kind) {
                assert_error(in_port, packet, arena, &before);
            } else {
                assert_eq!(frame_of(packet, arena), before, "a suppressed error leaves the packet alone");
            }
            return Verdict::Drop(reason);
        }
    }
    let out = tables.port(packet.meta.out_port).expect("the route leads to a port");
    assert_eq!(out.network, in_port.network, "no packet leaves its network");
    rewrite::rewrite(packet, network, out).expect("it may go on");
    assert_forwarded(in_port, out, &before, &frame_of(packet, arena));
    Verdict::Forward
}

fn frame_of(packet: &Packet, arena: &[Segment]) -> Vec<u8> {
    let mut frame = vec![0; packet.len()];
    packet.copy_frame(arena, &mut frame).expect("it is as long as the packet");
    frame
}

fn assert_parsed(packet: &Packet, received: &[u8], arena: &[Segment]) {
    let meta = &packet.meta;
    assert!(received.starts_with(&frame_of(packet, arena)), "only the end is cut off");
    assert_eq!(packet.len(), 14 + meta.l3_len as usize);
    if meta.l3 != L3::Arp {
        let [l3, l4, l5] = [meta.layers.l3, meta.layers.l4, meta.layers.l5].map(usize::from);
        assert!(l3 < l4 && l4 <= l5 && l5 <= packet.head().len());
    }
    assert!(meta.fragment || !meta.later_fragment);
    let offload = meta.offload;
    assert_eq!(offload.flags & !virtio_net::NEEDS_CSUM, 0);
    if offload.needs_csum() {
        let end = usize::from(offload.csum_start) + usize::from(offload.csum_offset) + 2;
        assert!(offload.csum_start == meta.layers.l4 && end <= usize::from(meta.layers.l5));
    }
    if offload.is_gso() {
        let (payload, size) = (packet.len() - usize::from(meta.layers.l5), usize::from(offload.gso_size));
        assert!(offload.needs_csum() && offload.hdr_len == meta.layers.l5);
        assert!(size >= GSO_SIZE_MIN && payload > size && payload.div_ceil(size) <= GSO_SEGMENTS_MAX);
    }
}

/// The source of an IP packet.
fn source(frame: &[u8]) -> Option<IpAddr> {
    let header = Ethernet::new_checked(frame)?;
    match header.ether_type() {
        0x0800 => Ipv4::new_checked(&frame[14..]).map(|header| IpAddr::V4(header.src())),
        0x86dd => Ipv6::new_checked(&frame[14..]).map(|header| IpAddr::V6(header.src())),
        _ => None,
    }
}

fn assert_guarded(port: &Port, packet: &Packet) {
    let header = Ethernet::new_checked(packet.head()).expect("parsed");
    assert_eq!(header.src(), port.mac);
    let own = match source(packet.head()) {
        Some(IpAddr::V4(src)) => port.v4.contains(&src) || src.is_unspecified(),
        Some(IpAddr::V6(src)) => {
            let link_local = src.segments()[..4] == [0xfe80, 0, 0, 0];
            let routers = src == ROUTER_LINK_LOCAL && port.kind != PortKind::Internal;
            port.v6.contains(&src) || src.is_unspecified() || (link_local && !routers)
        }
        None => packet.meta.l3 == L3::Arp,
    };
    assert!(own, "a source that is not the port's");
    let advert = packet.meta.l3 == L3::V6
        && packet.meta.proto == 58
        && matches!(packet.meta.dst_port >> 8, 134 | 137)
        && port.kind != PortKind::Internal;
    assert!(!advert, "a router advertisement or redirect of a guest");
}

fn assert_forwarded(port: &Port, out: &Port, before: &[u8], after: &[u8]) {
    let owned = match source(after).expect("only IP is forwarded") {
        IpAddr::V4(src) => port.v4.contains(&src),
        IpAddr::V6(src) => port.v6.contains(&src) || port.kind == PortKind::Internal,
    };
    assert!(owned, "a forwarded packet has a source of its port");
    assert_eq!(after[..6], out.mac.0);
    assert_eq!(after[6..12], MacAddr::ROUTER.0);
    let mut expected = before.to_vec();
    expected[..12].copy_from_slice(&after[..12]);
    let is_v4 = before[14] >> 4 == 4;
    let ttl_at = if is_v4 { 22 } else { 21 };
    if out.kind != PortKind::Internal {
        assert!(before[ttl_at] > 1);
        expected[ttl_at] -= 1;
    }
    if is_v4 {
        let header_len = usize::from(after[14] & 0x0f) * 4;
        assert_eq!(checksum::sum(&after[14..14 + header_len]), 0xffff);
        expected[24..26].copy_from_slice(&after[24..26]);
    }
    assert_eq!(after, expected, "nothing else changes");
}

fn assert_error(port: &Port, packet: &mut Packet, arena: &mut [Segment], about: &[u8]) {
    let frame = frame_of(packet, arena);
    assert_eq!(frame[..6], port.mac.0);
    assert_eq!(frame[6..12], MacAddr::ROUTER.0);
    assert_eq!(packet.meta.out_port, port.id);
    let is_v4 = frame[14] >> 4 == 4;
    let (header_len, limit) = if is_v4 { (20, 576) } else { (40, 1280) };
    assert!(frame.len() <= 14 + limit);
    let quote = &frame[14 + header_len + 8..];
    assert!(about[14..].starts_with(quote), "it quotes the packet as it was received");
    assert_eq!(quote.len(), (about.len() - 14).min(limit - header_len - 8));
    if is_v4 {
        assert_eq!(checksum::sum(&frame[34..]), 0xffff);
        assert_eq!(frame[30..34], about[26..30], "to the sender");
    } else {
        let header = Ipv6::new_checked(&frame[14..]).expect("forty octets");
        assert!(icmpv6::verify(&frame[54..], header.src(), header.dst()));
        assert_eq!(frame[38..54], about[22..38], "to the sender");
    }
    let meta = packet.meta;
    assert_eq!(parse::parse(packet, arena), Verdict::Continue, "an error of ours is well formed");
    assert_eq!(packet.meta.layers.l5, meta.layers.l5);
    assert_eq!((packet.meta.l3_len, packet.meta.proto), (meta.l3_len, meta.proto));
    assert_eq!(packet.meta.dst_port, meta.dst_port);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use proptest::prelude::*;

    /// Arbitrary octets, preceded by a valid frame of every kind that the stages know.
    fn seeds() -> impl Strategy<Value = Vec<u8>> {
        let frame = (
            0usize..testing::samples().len(),
            any::<[u8; 11]>(),
            proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        );
        let mutated = frame.prop_map(|(sample, header, edits)| {
            let mut data = header.to_vec();
            data.extend(&testing::samples()[sample]);
            for (at, value) in edits {
                let at = at.index(data.len());
                data[at] = value;
            }
            data
        });
        prop_oneof![mutated, proptest::collection::vec(any::<u8>(), 0..300)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn stages_hold_on_arbitrary_octets(data in seeds()) {
            fuzz_parse(&data);
        }

        #[test]
        fn stages_hold_when_the_payload_stays_outside(data in seeds(), head in 0usize..116) {
            if let Some((port, offload, frame)) = prepare(&data) {
                let mut burst = testing::burst(port, &frame, head);
                let (packet, arena) = burst.packet_mut(0);
                packet.meta.offload = offload;
                let _ = check(&tables(), packet, arena);
            }
        }
    }

    #[test]
    fn samples_reach_every_stage() {
        let mut ends = std::collections::HashSet::new();
        for sample in testing::samples() {
            let mut burst = testing::burst(GUEST_A, &sample, 116);
            let (packet, arena) = burst.packet_mut(0);
            ends.insert(format!("{:?}", check(&tables(), packet, arena)));
        }
        for end in [
            "Forward",
            "Drop(TtlExceeded)",
            "Drop(NoRoute)",
            "Drop(MtuExceeded)",
            "Drop(NeighborNoAnswer)",
            "Drop(MulticastNotForwarded)",
        ] {
            assert!(ends.contains(end), "{end} not in {ends:?}");
        }
    }
}
