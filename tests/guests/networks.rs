//! What a network is: isolated, routed, without flooding; ICMP errors, learned addresses, ports that are down.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use hostweave::fabric::spec::FabricEvent;
use hostweave_guest::frames::{self, BROADCAST, Body, Frame, L4, Path, Segment};
use hostweave_guest::{Guest, VnetHeader, features};
use hostweave_switch::MacAddr;
use hostweave_switch::stage::DropReason;

use crate::support::{Host, PATIENCE, Up, addresses, eventually, handshake, network, path_to, paths};

/// The ICMP error that the guest gets next: type, code, the four octets behind the checksum.
fn icmp_error(guest: &mut Guest, from: IpAddr) -> (u8, u8, [u8; 4]) {
    let (header, frame) = guest.recv_frame(PATIENCE).unwrap();
    match Frame::parse(&header, &frame).unwrap().body {
        Body::Ip { src, l4: L4::Icmp { kind, code, rest, .. }, .. } => {
            assert_eq!(src, from);
            (kind, code, rest)
        }
        body => panic!("no ICMP error: {body:?}"),
    }
}

fn gateway(version: &Path) -> IpAddr {
    if version.src.is_ipv4() { "192.0.2.1".parse().unwrap() } else { "2001:db8:1::1".parse().unwrap() }
}

#[test]
fn two_networks_with_the_same_addresses_never_meet() {
    let mut host = Host::new(1);
    // The same IPv4 and IPv6 ranges under two names.
    host.desired.networks.push(network("other", 1, 1500));
    let ports = [("default", "a", 10), ("default", "b", 11), ("other", "c", 10), ("other", "d", 11)];
    let specs = ports.map(|(network, name, n)| host.port_in(network, name, n, 1));
    let mut guests: Vec<Guest> = specs.iter().map(|spec| host.guest(spec).up()).collect();
    for (from, to, other) in [(0, 1, 3), (2, 3, 1)] {
        for path in paths(&specs[from], &specs[to]) {
            guests[from].send_frame(&path.udp(1, 2, b"mine"), &VnetHeader::default()).unwrap();
            let (header, frame) = guests[to].recv_frame(PATIENCE).unwrap();
            assert_eq!(Frame::parse(&header, &frame).unwrap().udp_payload(), Some(&b"mine"[..]));
        }
        assert!(guests[other].recv_frame(Duration::from_millis(10)).is_err(), "the namesake hears nothing");
    }
    // An address that exists only over there is unreachable here.
    let lonely = host.port_in("other", "e", 50, 1);
    let mut guest_e = host.guest(&lonely).up();
    for address in addresses(&lonely) {
        let path = path_to(&specs[0], address);
        guests[0].send_frame(&path.udp(1, 2, b"hello?"), &VnetHeader::default()).unwrap();
        let (kind, _, _) = icmp_error(&mut guests[0], gateway(&path));
        assert_eq!(kind, if path.src.is_ipv4() { 3 } else { 1 });
    }
    assert!(guest_e.recv_frame(Duration::from_millis(20)).is_err());
    assert_eq!(host.dropped("a", DropReason::NoRoute), 2);
}

#[test]
fn unknown_destinations_are_told_unreachable() {
    let mut host = Host::new(1);
    let a = host.port("a", 10);
    let mut guest = host.guest(&a).up();
    let cases: [(IpAddr, u8, u8); 4] = [
        ("192.0.2.77".parse().unwrap(), 3, 1),
        ("198.51.100.1".parse().unwrap(), 3, 0),
        ("2001:db8:1::77".parse().unwrap(), 1, 3),
        ("2001:db8:ffff::1".parse().unwrap(), 1, 0),
    ];
    for (to, kind, code) in cases {
        let path = path_to(&a, to);
        guest.send_frame(&path.udp(1, 2, b"?"), &VnetHeader::default()).unwrap();
        assert_eq!(icmp_error(&mut guest, gateway(&path)), (kind, code, [0; 4]), "{to}");
    }
    let totals = host.status("a").totals;
    assert_eq!((totals.dropped, totals.originated), (vec![(DropReason::NoRoute, 2), (DropReason::EgressNone, 2)], 4));
}

#[test]
fn a_packet_whose_hops_are_used_up_is_reported() {
    let mut host = Host::new(1);
    let (a, b) = (host.port("a", 10), host.port("b", 11));
    let mut guest_a = host.guest(&a).up();
    let mut guest_b = host.guest(&b).up();
    for path in paths(&a, &b) {
        for ttl in [0, 1] {
            guest_a.send_frame(&path.ttl(ttl).udp(1, 2, b"?"), &VnetHeader::default()).unwrap();
            let expected = if path.src.is_ipv4() { 11 } else { 3 };
            assert_eq!(icmp_error(&mut guest_a, gateway(&path)), (expected, 0, [0; 4]));
        }
        guest_a.send_frame(&path.ttl(2).udp(1, 2, b"last"), &VnetHeader::default()).unwrap();
        let (header, frame) = guest_b.recv_frame(PATIENCE).unwrap();
        assert!(matches!(Frame::parse(&header, &frame).unwrap().body, Body::Ip { ttl: 1, .. }));
    }
    assert_eq!(host.dropped("a", DropReason::TtlExceeded), 4);
}

#[test]
fn what_is_longer_than_the_mtu_is_reported_segment_by_segment() {
    let mut host = Host::new(1);
    let (a, b) = (host.port("a", 10), host.port("b", 11));
    let mut guest_a = host.guest(&a).mtu(9_000).up();
    let mut guest_b = host.guest(&b).up();
    for path in paths(&a, &b) {
        let ip = path.header_bytes() - 14;
        let [fits, too_long] = [1_500, 1_501].map(|octets| path.udp(1, 2, &vec![7; octets - ip - 8]));
        let segment = handshake(&mut guest_a, &mut guest_b, &path, 1, 2);
        let gso = |octets: usize| path.tcp_gso(&segment, &[9; 20_000], (octets - ip - 20) as u16);
        for (header, frame, goes) in [
            (VnetHeader::default(), fits, true),
            (VnetHeader::default(), too_long, false),
            (gso(1_500).0, gso(1_500).1, true),
            (gso(1_501).0, gso(1_501).1, false),
        ] {
            guest_a.send_frame(&frame, &header).unwrap();
            if goes {
                assert_eq!(guest_b.recv_frame(PATIENCE).unwrap().1.len(), frame.len());
            } else {
                let (kind, code, rest) = icmp_error(&mut guest_a, gateway(&path));
                assert_eq!((kind, code), if path.src.is_ipv4() { (3, 4) } else { (2, 0) });
                assert_eq!(u32::from_be_bytes(rest), 1_500);
            }
        }
    }
    assert_eq!(host.dropped("a", DropReason::MtuExceeded), 4);
}

#[test]
fn na10_what_is_too_long_and_may_be_cut_arrives_in_fragments() {
    let mut host = Host::new(1);
    let (a, b) = (host.port("a", 10), host.port("b", 11));
    let mut guest_a = host.guest(&a).mtu(9_000).up();
    let mut guest_b = host.guest(&b).up();
    for path in paths(&a, &b) {
        let data: Vec<u8> = (0..4_000).map(|at| at as u8).collect();
        for partial in [false, true] {
            let whole = path.udp(1, 2, &data);
            let mut sent = whole.clone();
            let v4 = path.src.is_ipv4();
            if v4 {
                // "Don't fragment" is not set.
                sent[18..22].copy_from_slice(&[0x12, 0x34, 0, 0]);
                hostweave_switch::wire::ipv4::fill_checksum(sent[14..].first_chunk_mut().unwrap());
            }
            let header = if partial { frames::partial_checksum(&mut sent).unwrap() } else { VnetHeader::default() };
            guest_a.send_frame(&sent, &header).unwrap();
            if !v4 {
                // In IPv6 that is left to the sender.
                assert_eq!(icmp_error(&mut guest_a, gateway(&path)).0, 2);
                continue;
            }
            let mut payload: Vec<u8> = Vec::new();
            while payload.len() < 8 + data.len() {
                let (header, frame) = guest_b.recv_frame(PATIENCE).unwrap();
                assert!(
                    frame.len() <= 14 + 1_500
                        && header == VnetHeader { num_buffers: header.num_buffers, ..Default::default() }
                );
                assert_eq!((&frame[18..20], frame[22]), (&[0x12, 0x34][..], 63));
                let flags = u16::from_be_bytes([frame[20], frame[21]]);
                assert_eq!(usize::from(flags & 0x1fff) * 8, payload.len());
                payload.extend(&frame[34..]);
                assert_eq!(flags & 0x2000 != 0, payload.len() < 8 + data.len());
            }
            // With its checksum, which is complete now.
            assert_eq!(payload, whole[34..]);
        }
    }
    // One datagram is one packet, however many frames it becomes.
    assert_eq!(host.status("a").totals.forwarded, 2);
    assert_eq!(host.dropped("a", DropReason::MtuExceeded), 2);
    host.assert_ledger();
}

/// Puts the fragments that a guest receives together until they are `count` packets, in order.
fn reassembled(guest: &mut Guest, count: usize) -> Vec<Vec<u8>> {
    let mut packets: Vec<Vec<u8>> = Vec::new();
    let mut open = false;
    while packets.len() < count || open {
        let (header, frame) = guest.recv_frame(PATIENCE).unwrap();
        assert_eq!(header, VnetHeader { num_buffers: header.num_buffers, ..Default::default() });
        assert!(frame.len() <= 14 + 1_500 && frame[22] == 63);
        assert_eq!(hostweave_switch::wire::checksum::sum(&frame[14..34]), 0xffff);
        let flags = u16::from_be_bytes([frame[20], frame[21]]);
        if !open {
            packets.push(frame[14..34].to_vec());
        }
        let packet = packets.last_mut().unwrap();
        assert_eq!(packet[4..6], frame[18..20], "one identification");
        assert_eq!(usize::from(flags & 0x1fff) * 8, packet.len() - 20);
        packet.extend(&frame[34..]);
        open = flags & 0x2000 != 0;
    }
    packets
}

/// Each segment is a packet of its own: cut where it is too long, and the connection goes on.
#[test]
fn na10_segments_that_are_too_long_and_may_be_cut_arrive_in_fragments() {
    let mut host = Host::new(1);
    let (a, b) = (host.port("a", 10), host.port("b", 11));
    let mut guest_a = host.guest(&a).with(features::HOST_USO).mtu(9_000).up();
    // It takes segments whole, and none of these.
    let mut guest_b = host.guest(&b).up();
    for path in paths(&a, &b) {
        let data: Vec<u8> = (0..20_001_u32).map(|at| ((at * 7) >> 3) as u8).collect();
        let tcp = handshake(&mut guest_a, &mut guest_b, &path, 1, 2);
        let mut datagrams = path.udp(1, 2, &data);
        let udp = frames::partial_checksum(&mut datagrams).unwrap();
        let udp = VnetHeader { gso_type: VnetHeader::GSO_UDP_L4, gso_size: 2_000, ..udp };
        for (l4, (header, mut frame)) in [(20, path.tcp_gso(&tcp, &data, 2_000)), (8, (udp, datagrams))] {
            let v4 = path.src.is_ipv4();
            if v4 {
                frame[18..22].copy_from_slice(&[0xff, 0xfe, 0, 0]);
                hostweave_switch::wire::ipv4::fill_checksum(frame[14..].first_chunk_mut().unwrap());
            }
            guest_a.send_frame(&frame, &header).unwrap();
            if !v4 {
                assert_eq!(icmp_error(&mut guest_a, gateway(&path)).0, 2);
                continue;
            }
            let packets = reassembled(&mut guest_b, 11);
            let mut received: Vec<u8> = Vec::new();
            for (index, packet) in packets.iter().enumerate() {
                // RFC 6864: each has an identification of its own.
                assert_eq!(packet[4..6], 0xfffe_u16.wrapping_add(index as u16).to_be_bytes());
                let l4_len = (packet.len() - 20) as u16;
                let pseudo = [&packet[12..20], &[0, packet[9]], &l4_len.to_be_bytes()].concat();
                let sum = hostweave_switch::wire::checksum::sum(&[&pseudo, &packet[20..]].concat());
                assert_eq!(sum, 0xffff, "the checksum of segment {index}");
                if l4 == 20 {
                    let seq = u32::from_be_bytes(packet[24..28].try_into().unwrap());
                    assert_eq!(seq, tcp.seq.wrapping_add(received.len() as u32));
                    // PSH is said once, by the last.
                    assert_eq!(packet[33] & 8 != 0, tcp.flags & 8 != 0 && index == 10);
                }
                received.extend(&packet[20 + l4..]);
            }
            assert!(received == data);
            if l4 == 20 {
                // What was received is acknowledged: the switch knows that all of it was sent.
                let end = tcp.seq.wrapping_add(data.len() as u32);
                let answer = Segment { src_port: 2, dst_port: 1, seq: tcp.ack, ack: end, ..tcp };
                let back = Path::new(guest_b.mac(), MacAddr::ROUTER.0, path.dst, path.src);
                guest_b.send_frame(&back.tcp(&answer, b"thanks"), &VnetHeader::default()).unwrap();
                let (header, frame) = guest_a.recv_frame(PATIENCE).unwrap();
                assert_eq!(Frame::parse(&header, &frame).unwrap().tcp().map(|(_, data)| data), Some(&b"thanks"[..]));
            }
        }
    }
    let totals = host.status("a").totals;
    assert_eq!(host.dropped("a", DropReason::MtuExceeded), 2, "IPv6 leaves it to the sender");
    assert_eq!(host.dropped("a", DropReason::TcpOutOfWindow), 0);
    // Ten segments in two fragments each and one that fits, of each frame: one packet and twenty more frames.
    assert_eq!(totals.extra_segments, 2 * 20, "{totals:?}");
    host.assert_ledger();
}

/// The second half of a datagram comes before the first, and both are too long for where they go.
#[test]
fn na10_fragments_that_waited_for_their_first_one_are_cut_as_well() {
    let mut host = Host::new(1);
    let (a, b) = (host.port("a", 10), host.port("b", 11));
    let mut guest_a = host.guest(&a).mtu(9_000).up();
    let mut guest_b = host.guest(&b).up();
    let path = path_to(&a, IpAddr::from(b.v4[0]));
    let data: Vec<u8> = (0..7_992).map(|at| at as u8).collect();
    let whole = path.udp(1, 2, &data)[34..].to_vec();
    let half = |at: usize, more: u16| {
        let mut frame = path.ip(17, &whole[at..at + 4_000]);
        let word = (at as u16 / 8) | more << 13;
        frame[18..20].copy_from_slice(&[0x12, 0x34]);
        frame[20..22].copy_from_slice(&word.to_be_bytes());
        hostweave_switch::wire::ipv4::fill_checksum(frame[14..].first_chunk_mut().unwrap());
        frame
    };
    for frame in [half(4_000, 0), half(0, 1)] {
        guest_a.send_frame(&frame, &VnetHeader::default()).unwrap();
    }
    let mut payload = vec![0; whole.len()];
    let mut received = 0;
    while received < whole.len() {
        let (_, frame) = guest_b.recv_frame(PATIENCE).unwrap();
        assert!(frame.len() <= 14 + 1_500);
        let at = usize::from(u16::from_be_bytes([frame[20], frame[21]]) & 0x1fff) * 8;
        payload[at..at + frame.len() - 34].copy_from_slice(&frame[34..]);
        received += frame.len() - 34;
    }
    assert!(payload == whole);
    assert_eq!(host.status("a").totals.forwarded, 2);
    host.assert_ledger();
}

#[test]
fn broadcast_and_multicast_reach_nobody() {
    let mut host = Host::new(1);
    host.desired.networks.push(network("other", 2, 1500));
    let a = host.port("a", 10);
    let others = [host.port("b", 11), host.port_in("other", "c", 12, 1)];
    let mut guest = host.guest(&a).up();
    let mut listeners: Vec<Guest> = others.iter().map(|spec| host.guest(spec).up()).collect();
    let groups: [(frames::Mac, IpAddr); 6] = [
        (BROADCAST, Ipv4Addr::BROADCAST.into()),
        (BROADCAST, Ipv4Addr::new(192, 0, 2, 255).into()),
        (BROADCAST, Ipv4Addr::new(192, 0, 2, 11).into()),
        ([1, 0, 0x5e, 0, 0, 251], Ipv4Addr::new(224, 0, 0, 251).into()),
        ([0x33, 0x33, 0, 0, 0, 1], "ff02::1".parse().unwrap()),
        ([0x33, 0x33, 0, 0, 0, 0xfb], "ff02::fb".parse().unwrap()),
    ];
    for (mac, to) in groups {
        let path = Path { dst_mac: mac, ..path_to(&a, to) };
        guest.send_frame(&path.udp(5_353, 5_353, b"who?"), &VnetHeader::default()).unwrap();
    }
    eventually("all dropped", || host.status("a").totals.dropped_all() == groups.len() as u64);
    assert_eq!(host.dropped("a", DropReason::MulticastNotForwarded), groups.len() as u64);
    for listener in &mut listeners {
        assert!(listener.recv_frame(Duration::from_millis(10)).is_err());
    }
    assert!(guest.recv_frame(Duration::from_millis(10)).is_err(), "no ICMP error about a group");
}

#[test]
fn a_slaac_address_of_the_guest_s_own_choice_is_learned() {
    let mut host = Host::new(1);
    let (mut a, b) = (host.port("a", 10), host.port("b", 11));
    let mut guest_a = host.guest(&a).up();
    let mut guest_b = host.guest(&b).up();
    let chosen: Ipv6Addr = "2001:db8:1::5eed:1".parse().unwrap();
    let probe = frames::neighbor_solicitation(a.mac.0, Ipv6Addr::UNSPECIFIED, chosen);
    let path = Path::new(a.mac.0, MacAddr::ROUTER.0, chosen, b.v6[0]);
    // Before it is known, its packets are spoofed ones.
    guest_a.send_frame(&path.udp(1, 2, b"early"), &VnetHeader::default()).unwrap();
    eventually("drop", || host.dropped("a", DropReason::SpoofedIp) == 1);
    guest_a.send_frame(&probe, &VnetHeader::default()).unwrap();
    host.event(
        "the address",
        |event| matches!(event, FabricEvent::AddressSeen { port, address } if port == "test/a" && *address == chosen),
    );
    a.v6.push(chosen);
    host.desired.ports[0] = a.clone().into();
    host.apply();
    guest_a.send_frame(&path.udp(1, 2, b"known"), &VnetHeader::default()).unwrap();
    let (header, frame) = guest_b.recv_frame(PATIENCE).unwrap();
    assert_eq!(Frame::parse(&header, &frame).unwrap().udp_payload(), Some(&b"known"[..]));
    // And the way back.
    let back = path_to(&b, chosen);
    guest_b.send_frame(&back.udp(2, 1, b"back"), &VnetHeader::default()).unwrap();
    assert_eq!(guest_a.recv_frame(PATIENCE).unwrap().1.len(), back.udp(2, 1, b"back").len());
}

#[test]
fn duplicate_address_detection_for_another_guest_s_address_is_answered() {
    let mut host = Host::new(1);
    let (a, b) = (host.port("a", 10), host.port("b", 11));
    let mut guest = host.guest(&a).up();
    for (target, conflict) in [(b.v6[0], true), ("2001:db8:1::1".parse().unwrap(), true), (a.v6[0], false)] {
        let probe = frames::neighbor_solicitation(a.mac.0, Ipv6Addr::UNSPECIFIED, target);
        guest.send_frame(&probe, &VnetHeader::default()).unwrap();
        if conflict {
            let (header, frame) = guest.recv_frame(PATIENCE).unwrap();
            assert_eq!(Frame::parse(&header, &frame).unwrap().icmp(), Some((136, 0)), "{target}");
            assert_eq!(frame[62..78], target.octets());
        } else {
            eventually("no answer", || host.dropped("a", DropReason::NeighborNoAnswer) == 1);
            assert!(guest.recv_frame(Duration::from_millis(10)).is_err());
        }
    }
}

#[test]
fn a_port_that_is_down_neither_sends_nor_receives() {
    let mut host = Host::new(1);
    let (a, b) = (host.port("a", 10), host.port("b", 11));
    let mut guest_a = host.guest(&a).up();
    let mut guest_b = host.guest(&b).up();
    let path = paths(&a, &b)[0];
    let back = paths(&b, &a)[0];
    host.desired.ports.edit(1).unwrap().up = false;
    host.apply();
    // The worker takes the new tables with one of its next bursts.
    eventually("drops", || {
        guest_a.send_frame(&path.udp(1, 2, b"to"), &VnetHeader::default()).unwrap();
        guest_b.send_frame(&back.udp(1, 2, b"from"), &VnetHeader::default()).unwrap();
        host.dropped("a", DropReason::PortDown) > 0 && host.dropped("b", DropReason::PortDown) > 0
    });
    while guest_b.recv_frame(Duration::from_millis(100)).is_ok() {}
    guest_a.send_frame(&path.udp(1, 2, b"to"), &VnetHeader::default()).unwrap();
    assert!(guest_b.recv_frame(Duration::from_millis(100)).is_err(), "nothing arrives while it is down");
    host.desired.ports.edit(1).unwrap().up = true;
    host.apply();
    eventually("traffic", || {
        guest_a.send_frame(&path.udp(1, 2, b"again"), &VnetHeader::default()).unwrap();
        guest_b.recv_frame(Duration::from_millis(10)).is_ok()
    });
}

#[test]
fn a_port_without_a_guest_is_a_drop_with_a_reason() {
    let mut host = Host::new(1);
    let (a, b) = (host.port("a", 10), host.port("b", 11));
    let mut guest = host.guest(&a).up();
    for path in paths(&a, &b) {
        guest.send_frame(&path.udp(1, 2, b"anybody?"), &VnetHeader::default()).unwrap();
    }
    eventually("drops", || host.tx_dropped("b", DropReason::PortNotRunning) == 2);
}
