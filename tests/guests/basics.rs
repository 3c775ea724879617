//! Two well-behaved guests.

use std::net::IpAddr;
use std::sync::Arc;

use hostweave_switch::stage::DropReason;

use crate::support::{Host, PATIENCE, Up, addresses, handshake};

#[test]
fn two_guests_get_addresses_and_reach_each_other() {
    let mut host = Host::new(1);
    let (a, b) = (host.port("a", 10), host.port("b", 11));
    let mut guest_a = host.guest(&a).up();
    let mut guest_b = host.guest(&b).up();
    host.settle(&mut guest_a, &a);
    host.settle(&mut guest_b, &b);
    guest_b.tcp_echo_server(7).unwrap();
    let running = guest_b.spawn("b", false).unwrap();
    for address in addresses(&b) {
        guest_a.ping(address, PATIENCE).unwrap();
        let transfer = guest_a.tcp_transfer(address, 7, 1 << 20, PATIENCE).unwrap();
        assert_eq!(transfer.bytes, 1 << 20);
    }
    drop(running);
    assert_eq!(
        host.status("a").totals.dropped_all(),
        host.dropped("a", DropReason::NeighborNoAnswer) + host.dropped("a", DropReason::GroupMembership)
    );
}

#[test]
fn the_gateway_answers_pings_of_both_families() {
    let mut host = Host::new(1);
    let mut guest = host.ready_guest("a", 10);
    for gateway in ["192.0.2.1", "2001:db8:1::1"] {
        guest.ping(gateway.parse::<IpAddr>().unwrap(), PATIENCE).unwrap();
    }
}

#[test]
fn frames_in_one_batch_all_arrive() {
    use hostweave_guest::frames::Path;
    let mut host = Host::new(1);
    let (a, b) = (host.port("a", 10), host.port("b", 11));
    let mut guest_a = host.guest(&a).up();
    let mut guest_b = host.guest(&b).up();
    let path = Path::new(a.mac.0, hostweave_switch::MacAddr::ROUTER.0, a.v4[0], b.v4[0]);
    for len in [18, 100, 200, 1400] {
        for n in 0..20u8 {
            guest_a.nic().push_frame(0, &Default::default(), &path.udp(1, 2, &vec![n; len])).unwrap();
        }
        guest_a.nic().flush(0).unwrap();
        for n in 0..20u8 {
            let (header, frame) = guest_b.recv_frame(PATIENCE).unwrap();
            assert_eq!(
                hostweave_guest::frames::Frame::parse(&header, &frame).unwrap().udp_payload(),
                Some(&vec![n; len][..]),
                "{len}"
            );
        }
    }
}

#[test]
fn gso_frames_cross_whole() {
    use hostweave_guest::frames::{Frame, Path};
    let mut host = Host::new(1);
    let (a, b) = (host.port("a", 10), host.port("b", 11));
    let mut guest_a = host.guest(&a).up();
    let mut guest_b = host.guest(&b).up();
    for (from, to) in addresses(&a).into_iter().zip(addresses(&b)) {
        let path = Path::new(a.mac.0, hostweave_switch::MacAddr::ROUTER.0, from, to);
        let segment = handshake(&mut guest_a, &mut guest_b, &path, 1, 2);
        for len in [2_880, 60_000] {
            let payload: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            let (header, frame) = path.tcp_gso(&segment, &payload, 1_440);
            guest_a.send_frame(&frame, &header).unwrap();
            let (header, frame) = guest_b.recv_frame(PATIENCE).unwrap();
            assert_eq!(header.gso_size, 1_440);
            let parsed = Frame::parse(&header, &frame).unwrap();
            assert_eq!(parsed.tcp().unwrap().1, payload);
        }
    }
}

#[test]
fn a_changed_network_is_advertised_at_once() {
    let mut host = Host::new(1);
    let mut guest = host.ready_guest("a", 10);
    while guest.nic().recv_frame(&mut Vec::new()).unwrap().is_some() {}
    host.desired.networks[0].mtu = 1400;
    host.apply();
    let advertised = |frame: &[u8]| frame.windows(8).any(|option| option == [5, 1, 0, 0, 0, 0, 0x05, 0x78]);
    loop {
        let (_, frame) = guest.recv_frame(PATIENCE).unwrap();
        if frame[54] == 134 && advertised(&frame) {
            return;
        }
    }
}

/// What is said of the whole host is in force whatever else changes with it.
#[test]
fn settings_that_change_together_with_a_port_are_in_force() {
    let mut host = Host::new(1);
    let _port = host.port("a", 10);
    host.apply();
    for (at, loose) in [true, false].into_iter().enumerate() {
        host.desired.loose_tcp = loose;
        let spec = Arc::make_mut(host.desired.ports.last_mut().unwrap());
        spec.labels.insert("at".into(), at.to_string());
        host.apply();
        assert_eq!(host.fabric.plane().tables.loose_tcp, loose);
    }
}
