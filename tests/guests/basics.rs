//! Two well-behaved guests.

use std::net::IpAddr;

use hostweave_switch::stage::DropReason;

use crate::support::{Host, PATIENCE, addresses};

#[test]
fn two_guests_get_addresses_and_reach_each_other() {
    let mut host = Host::new(1);
    let (a, b) = (host.port("a", 10), host.port("b", 11));
    let mut guest_a = host.guest(&a).connect().unwrap();
    let mut guest_b = host.guest(&b).connect().unwrap();
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
    assert_eq!(host.status("a").totals.dropped_all(), host.dropped("a", DropReason::NeighborNoAnswer) + host.dropped("a", DropReason::GroupMembership));
}

#[test]
fn the_gateway_answers_pings_of_both_families() {
    let mut host = Host::new(1);
    let mut guest = host.ready_guest("a", 10);
    for gateway in ["192.0.2.1", "2001:db8:1::1"] {
        guest.ping(gateway.parse::<IpAddr>().unwrap(), PATIENCE).unwrap();
    }
}
