//! Direct attach, 1:1 NAT and routed ranges (SEMANTICS DA1–DA5).

use super::*;

/// B has the public address on its own NIC.
fn direct() -> Host {
    let mut host = Host::outside();
    attach(&mut host, B);
    host
}

fn attach(host: &mut Host, id: u32) {
    for v6 in [false, true] {
        host.edit_uplink(|uplink| {
            uplink.owned.insert(mapped(public(v6, PUBLIC)), Owned::Attached { port: PortId(id), inside: None });
        });
        host.plane.tables.set_addresses([(AddressKey::new(NETWORK, public(v6, PUBLIC)), PortId(id))]);
    }
    let tables = &mut host.plane.tables;
    for port in Arc::make_mut(&mut tables.ports).iter_mut().flatten() {
        let mut new = (**port).clone();
        new.v4.retain(|address| *address != public(false, PUBLIC));
        new.v6.retain(|address| *address != public(true, PUBLIC));
        if new.id == PortId(id) {
            let [IpAddr::V4(v4), IpAddr::V6(v6)] = [false, true].map(|v6| public(v6, PUBLIC)) else { unreachable!() };
            new.v4.push(v4);
            new.v6.push(v6);
        }
        *port = Arc::new(new);
    }
    host.publish();
}

fn one_to_one() -> Host {
    let mut host = Host::outside();
    host.edit_uplink(|uplink| {
        for v6 in [false, true] {
            let attached = Owned::Attached { port: PortId(B), inside: Some(mapped(address(B, v6))) };
            uplink.owned.insert(mapped(public(v6, PUBLIC)), attached);
        }
    });
    host
}

#[test]
fn da1_da2_an_attached_address_is_the_guests_own_both_ways() {
    both(|v6| {
        let mut host = direct();
        let (server, own) = (remote(v6, 1), public(v6, PUBLIC));
        let sent = Path { src: own, ..out(B, server) };
        assert_eq!(host.through(0, B, &sent.udp(4000, 53, b"data")), Ok((UPLINK, (own, server, 4000, 53))));
        let back = inward(server, own);
        assert_eq!(host.through(1, UPLINK, &back.udp(53, 4000, b"answer")), Ok((B, (server, own, 53, 4000))));
        assert_eq!(host.entries().len(), 1);
        // Unasked: any protocol, any port, as policy allows.
        assert_eq!(host.through(0, UPLINK, &back.udp(9, 10, b"hello")), Ok((B, (server, own, 9, 10))));
        assert_eq!(host.through(0, UPLINK, &back.ip(47, b"any protocol!")).unwrap().0, B);
        assert_eq!(host.through(0, UPLINK, &back.echo_request(7, 1, b"?")), Ok((B, (server, own, 7, 0))));
        assert_eq!(host.through(0, B, &sent.udp(10, 9, b"answer")), Ok((UPLINK, (own, server, 10, 9))));
        host.allow_only(&[80]);
        assert_eq!(host.through(0, UPLINK, &back.udp(9, 11, b"hello")), Err(DropReason::PolicyDenied), "DA4");
        assert_eq!(host.through(0, UPLINK, &back.udp(9, 80, b"hello")).unwrap().0, B);
        // From its private address it leaves through the pool as anybody else; nobody else has its address.
        host.leaves(B, server, (4000, 53));
        let stolen = Path { src: own, ..out(A, server) };
        assert_eq!(host.to(A, &stolen.udp(1, 2, b"data")), Err(DropReason::SpoofedIp));
    });
}

#[test]
fn without_egress_a_port_leaves_from_its_attached_address_and_not_from_its_private_one() {
    both(|v6| {
        for none in [Egress::None, Egress::Forbidden] {
            let mut host = direct();
            host.edit_network(NETWORK, |network| (network.egress_v4, network.egress_v6) = (none, none));
            let (server, own) = (remote(v6, 1), public(v6, PUBLIC));
            let sent = Path { src: own, ..out(B, server) };
            assert_eq!(host.through(0, B, &sent.udp(4000, 53, b"data")), Ok((UPLINK, (own, server, 4000, 53))));
            let back = inward(server, own);
            assert_eq!(host.through(1, UPLINK, &back.udp(53, 4000, b"answer")), Ok((B, (server, own, 53, 4000))));
            assert_eq!(host.to(B, &out(B, server).udp(4000, 53, b"data")), Err(DropReason::EgressNone), "{none:?}");
            // By 1:1 NAT the guest has no other address to choose.
            let mut host = one_to_one();
            host.edit_network(NETWORK, |network| (network.egress_v4, network.egress_v6) = (none, none));
            let sent = out(B, server);
            assert_eq!(host.through(0, B, &sent.udp(4000, 53, b"data")), Ok((UPLINK, (own, server, 4000, 53))));
        }
    });
}

#[test]
fn an_attached_address_that_moves_takes_no_connection_along() {
    both(|v6| {
        let mut host = direct();
        let (server, own) = (remote(v6, 1), public(v6, PUBLIC));
        let sent = Path { src: own, ..out(B, server) };
        host.through(0, B, &sent.udp(4000, 53, b"data")).unwrap();
        attach(&mut host, C);
        assert_eq!(host.to(B, &sent.udp(4000, 53, b"data")), Err(DropReason::SpoofedIp));
        let answer = inward(server, own).udp(53, 4000, b"answer");
        assert_eq!(host.through(0, UPLINK, &answer).unwrap().0, C, "a connection of its own");
    });
}

#[test]
fn one_to_one_nat_translates_addresses_and_nothing_else() {
    both(|v6| {
        let mut host = one_to_one();
        let (server, own) = (remote(v6, 1), public(v6, PUBLIC));
        let sent = out(B, server);
        assert_eq!(host.through(0, B, &sent.udp(4000, 53, b"data")), Ok((UPLINK, (own, server, 4000, 53))));
        let back = inward(server, own);
        let inside = address(B, v6);
        assert_eq!(host.through(1, UPLINK, &back.udp(53, 4000, b"answer")), Ok((B, (server, inside, 53, 4000))));
        assert_eq!(host.through(0, UPLINK, &back.udp(9, 10, b"hello")), Ok((B, (server, inside, 9, 10))));
        assert_eq!(host.through(0, UPLINK, &back.echo_request(7, 1, b"?")), Ok((B, (server, inside, 7, 0))));
        let (reply, kind) = (out(B, server), if v6 { 129 } else { 0 });
        assert_eq!(host.through(0, B, &reply.icmp(kind, 0, [0, 7, 0, 1], b"?")), Ok((UPLINK, (own, server, 7, 0))));
        assert_eq!(host.through(0, UPLINK, &back.ip(47, b"any protocol!")), Ok((B, (server, inside, 0, 0))));
        assert_eq!(host.through(0, B, &sent.ip(47, b"any protocol!")), Ok((UPLINK, (own, server, 0, 0))));
        assert_eq!(host.nat.stats().mappings, 0, "no pool has a part in it");
        // From inside the network, by the public address: as from outside.
        let (to, seen) = host.through(0, A, &out(A, own).udp(1, 2, b"hello")).unwrap();
        assert_eq!((to, seen.0, seen.1, seen.3), (B, public(v6, POOL), inside, 2));
        assert_eq!(
            host.through(0, B, &out(B, public(v6, POOL)).udp(2, seen.2, b"x")),
            Ok((A, (own, address(A, v6), 2, 1)))
        );
    });
}

/// Another address of B, such as one that it has formed by itself (RFC 8981).
fn another(v6: bool) -> IpAddr {
    if v6 { Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0xabcd, 0, 0, 7).into() } else { [192, 0, 2, 77].into() }
}

fn one_to_one_with_another() -> Host {
    let mut host = one_to_one();
    let mut port = (**host.plane.tables.ports[B as usize].as_ref().unwrap()).clone();
    let [IpAddr::V4(v4), IpAddr::V6(v6)] = [false, true].map(another) else { unreachable!() };
    (port.v4, port.v6) = ([port.v4, vec![v4]].concat(), [port.v6, vec![v6]].concat());
    host.plane.tables.set_addresses([false, true].map(|v6| (AddressKey::new(NETWORK, another(v6)), PortId(B))));
    host.plane.tables.set_ports([Arc::new(port)]);
    host.publish();
    host
}

#[test]
fn one_to_one_nat_is_for_every_address_of_the_guest() {
    both(|v6| {
        let mut host = one_to_one_with_another();
        let (server, own, inside) = (remote(v6, 1), public(v6, PUBLIC), another(v6));
        let (sent, back) = (Path { src: inside, ..out(B, server) }, inward(server, own));
        for worker in [0, 1] {
            assert_eq!(host.through(worker, B, &sent.udp(4000, 53, b"data")), Ok((UPLINK, (own, server, 4000, 53))));
            let answer = back.udp(53, 4000, b"answer");
            assert_eq!(host.through(worker, UPLINK, &answer), Ok((B, (server, inside, 53, 4000))));
        }
        assert_eq!(host.through(0, B, &sent.echo_request(7, 1, b"?")), Ok((UPLINK, (own, server, 7, 0))));
        let reply = back.icmp(if v6 { 129 } else { 0 }, 0, [0, 7, 0, 1], b"?");
        assert_eq!(host.through(1, UPLINK, &reply), Ok((B, (server, inside, 7, 0))));
        assert_eq!(host.nat.stats().mappings, 0, "no pool has a part in it");
        // What comes unasked is for the first one, even from who talks to the other.
        let first = address(B, v6);
        assert_eq!(host.through(0, UPLINK, &back.udp(9, 10, b"hello")), Ok((B, (server, first, 9, 10))));
        // Whose it is not may not use it.
        let stolen = Path { src: inside, ..out(A, server) };
        assert_eq!(host.to(A, &stolen.udp(1, 2, b"data")), Err(DropReason::SpoofedIp));
        // An address that is given up is in use until its connections end, whichever address inside they have.
        host.edit_uplink(|uplink| {
            let owner = uplink.owned.remove(&mapped(own)).unwrap();
            uplink.kept.insert(mapped(own), owner);
        });
        assert_eq!(host.through(0, B, &sent.udp(4000, 53, b"data")), Ok((UPLINK, (own, server, 4000, 53))));
        let answer = back.udp(53, 4000, b"answer");
        assert_eq!(host.through(1, UPLINK, &answer), Ok((B, (server, inside, 53, 4000))));
    });
}

/// L4 ports stay as they are, so two addresses of a guest can want the same outside endpoint towards one remote: one of them has it.
#[test]
fn two_addresses_behind_one_public_address_are_never_mixed_up() {
    both(|v6| {
        let mut host = one_to_one_with_another();
        let (server, own, first, second) = (remote(v6, 1), public(v6, PUBLIC), address(B, v6), another(v6));
        let way = |src, to| Path { src, ..out(B, to) };
        let syn =
            |src_port| TcpHeader { src_port, dst_port: 80, seq: 1, flags: SYN, window: 1000, ..Default::default() };
        let shapes = |path: Path| {
            let tcp = path.tcp(&syn(4000), b"");
            [path.udp(4000, 53, b"data"), tcp, path.echo_request(7, 1, b"ping"), path.ip(47, b"any protocol!")]
        };
        for at in 0..4 {
            let shape = |path: &Path| shapes(*path)[at].clone();
            assert_eq!(host.to(B, &shape(&way(second, server))), Ok(UPLINK));
            let before = host.entries().len();
            assert_eq!(host.traced(B, &shape(&way(first, server))), Err(DropReason::NatTupleTaken));
            for _ in 0..2 {
                assert_eq!(host.to(B, &shape(&way(first, server))), Err(DropReason::NatTupleTaken));
            }
            assert_eq!(host.entries().len(), before);
            assert_eq!(host.to(B, &shape(&way(first, remote(v6, 2)))), Ok(UPLINK), "towards another it is free");
            assert_eq!(host.to(B, &shape(&way(second, server))), Ok(UPLINK), "and what goes on goes on");
        }
        let back = inward(server, own);
        assert_eq!(host.through(1, UPLINK, &back.udp(53, 4000, b"x")), Ok((B, (server, second, 53, 4000))));
        // What has come in to the first has its answers, and the other none of them.
        assert_eq!(host.through(0, UPLINK, &back.udp(9, 10, b"hello")), Ok((B, (server, first, 9, 10))));
        assert_eq!(host.to(B, &way(second, server).udp(10, 9, b"mine")), Err(DropReason::NatTupleTaken));
        let answer = way(first, server).udp(10, 9, b"answer");
        assert_eq!(host.through(1, B, &answer), Ok((UPLINK, (own, server, 10, 9))));
        assert_eq!(host.through(0, UPLINK, &back.udp(9, 10, b"more")), Ok((B, (server, first, 9, 10))));
    });
}

#[test]
fn a_routed_range_leaves_as_it_is_and_nothing_unasked_comes_in() {
    both(|v6| {
        let mut host = Host::outside();
        host.edit_network(NETWORK, |network| (network.egress_v4, network.egress_v6) = (Egress::Routed, Egress::Routed));
        let server = remote(v6, 1);
        let frame = out(A, server).udp(4000, 53, b"data");
        assert_eq!(host.to(A, &frame), Err(DropReason::SourceNotOwned), "the range is not routed to us");
        let (v4, v6_range) = ("192.0.2.0/24".parse().unwrap(), "2001:db8:0:1::/64".parse().unwrap());
        host.edit_uplink(|uplink| uplink.routed = vec![(v4, NETWORK), (v6_range, NETWORK)]);
        assert_eq!(host.through(0, A, &frame), Ok((UPLINK, (address(A, v6), server, 4000, 53))));
        let back = inward(server, address(A, v6));
        assert_eq!(
            host.through(0, UPLINK, &back.udp(53, 4000, b"answer")),
            Ok((A, (server, address(A, v6), 53, 4000)))
        );
        assert_eq!(host.through(0, UPLINK, &back.udp(53, 4001, b"?")), Err(DropReason::NatNoMapping));
        let from_ours = inward(address(B, v6), address(A, v6)).udp(53, 4000, b"?");
        assert_eq!(host.through(0, UPLINK, &from_ours), Err(DropReason::SpoofedIp));
        // A guest of another network has the same address and no such range.
        host.edit_network(OTHER, |network| (network.egress_v4, network.egress_v6) = (Egress::Routed, Egress::Routed));
        assert_eq!(host.to(D, &out(D, server).udp(4000, 53, b"data")), Err(DropReason::NatTupleTaken));
        assert_eq!(host.to(D, &out(D, server).udp(4001, 53, b"data")), Err(DropReason::SourceNotOwned));
    });
}

#[test]
fn a_connection_from_a_pool_goes_on_when_its_port_gets_an_address_of_its_own() {
    both(|v6| {
        let mut host = Host::outside();
        let l4 = host.leaves(B, remote(v6, 1), (4000, 53));
        host.edit_uplink(|uplink| {
            let attached = Owned::Attached { port: PortId(B), inside: Some(mapped(address(B, v6))) };
            uplink.owned.insert(mapped(public(v6, PUBLIC)), attached);
        });
        assert_eq!(host.leaves(B, remote(v6, 1), (4000, 53)), l4);
        let other = out(B, remote(v6, 1)).udp(4001, 53, b"data");
        assert_eq!(host.through(0, B, &other), Ok((UPLINK, (public(v6, PUBLIC), remote(v6, 1), 4001, 53))));
        // An address that is the pool's no more ends what came from it.
        host.edit_uplink(|uplink| {
            uplink.owned.remove(&mapped(public(v6, POOL)));
        });
        let frame = out(B, remote(v6, 1)).udp(4000, 53, b"data");
        assert_eq!(host.through(0, B, &frame), Ok((UPLINK, (public(v6, PUBLIC), remote(v6, 1), 4000, 53))));
    });
}

#[test]
fn nobody_of_another_network_comes_as_one_of_the_receivers() {
    both(|v6| {
        // D's network has the range of A's and B's.
        let mut host = Host::outside();
        let at = public(v6, PUBLIC);
        host.edit_uplink(|uplink| {
            let attached = Owned::Attached { port: PortId(D), inside: Some(mapped(address(A, v6))) };
            uplink.owned.insert(mapped(at), attached);
        });
        let egress = |host: &mut Host, to| {
            host.edit_network(NETWORK, |network| (network.egress_v4, network.egress_v6) = (to, to));
        };
        let frame = |port| out(B, at).udp(port, 53, b"data");
        // As the pool's address it is a stranger.
        let (to, seen) = host.through(0, B, &frame(4000)).unwrap();
        assert_eq!((to, seen.0), (D, public(v6, POOL)));
        egress(&mut host, Egress::Routed);
        assert_eq!(host.to(B, &frame(4001)), Err(DropReason::SpoofedIp));
        // Nor when the range comes to be the receiver's later.
        let (v4, v6_range) = ("10.0.0.0/8".parse().unwrap(), "2001:db8:7::/64".parse().unwrap());
        let before = host.plane.tables.networks[2].clone().unwrap();
        host.edit_network(OTHER, |network| {
            network.v4 = network.v4.map(|(_, gateway)| (v4, gateway));
            network.v6 = network.v6.map(|(_, gateway)| (v6_range, gateway));
        });
        assert_eq!(host.through(0, B, &frame(4002)).unwrap().1.0, address(B, v6));
        host.edit_network(OTHER, |network| (network.v4, network.v6) = (before.v4, before.v6));
        assert_eq!(host.to(B, &frame(4002)), Err(DropReason::SpoofedIp));
    });
}

/// Whoever sends to a public address under false names gets no record that a cache relies on: it may go at any time.
#[test]
fn ct11_one_way_from_outside_each_packet_asks_for_its_connection() {
    both(|v6| {
        let mut host = one_to_one();
        let frame = inward(remote(v6, 1), public(v6, PUBLIC)).udp(514, 514, b"log");
        let arrives = |host: &mut Host, frame: &[u8]| host.through(0, UPLINK, frame).map(|(to, _)| to);
        for _ in 0..5 {
            assert_eq!(arrives(&mut host, &frame), Ok(B));
            host.now += 2;
        }
        let [before] = host.entries()[..] else { panic!("one connection") };
        assert_eq!((before.seen, before.out_port), ([108, 0], B), "a stream that nobody answers goes on");
        let end = |host: &Host, entry: &Entry| host.connections.remove(entry.index, entry.generation, Ending::Evicted);
        assert!(end(&host, &before));
        assert_eq!(arrives(&mut host, &frame), Ok(B), "and begins again");
        assert_eq!(host.entry().created, 110);
        // Answered, it may be relied on for a round.
        let answer = out(B, remote(v6, 1)).udp(514, 514, b"ack");
        assert_eq!(host.through(0, B, &answer).map(|(to, _)| to), Ok(UPLINK));
        assert_eq!([(); 2].map(|()| arrives(&mut host, &frame)), [Ok(B); 2]);
        assert!(host.connections.get(host.entry().index, host.entry().generation).unwrap().is_assured());
    });
}
