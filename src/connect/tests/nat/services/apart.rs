//! One client reaches one backend in two ways, by its Service and by an address of the host that is the backend's own, from one L4 port: the
//! answers would have one tuple, so the backend sees the later connection from another L4 port, as Linux does (`nf_nat`).

use crate::connect::tests::race::{Between, new_connection};

use super::*;

const OWN: u16 = 11;

/// `B`, a backend of the Service, is known outside as `PUBLIC` and `D`, a client of another network, as `OWN` (1:1 NAT).
fn known(v6: bool) -> Host {
    let mut host = Host::serving(v6, &[backend(B, v6)]);
    give(&mut host, v6, PUBLIC, B, address(B, v6));
    give(&mut host, v6, OWN, D, address(A, v6));
    host
}

fn give(host: &mut Host, v6: bool, last: u16, port: u32, inside: IpAddr) {
    let attached = Owned::Attached { port: PortId(port), inside: Some(mapped(inside)) };
    host.edit_uplink(|uplink| {
        uplink.owned.insert(mapped(public(v6, last)), attached);
    });
}

/// The way of a client's packets, and as whom its packets leave its network.
fn client(from: u32, to: IpAddr) -> (Path, IpAddr) {
    let v6 = to.is_ipv6();
    if from == UPLINK { (inward(remote(v6, 1), to), remote(v6, 1)) } else { (out(from, to), public(v6, OWN)) }
}

/// Where a client may ask, in either order, and on which L4 port.
fn ways(v6: bool) -> [[(IpAddr, u16); 2]; 2] {
    let (service, own) = ((public(v6, PUBLIC_VIP), 80), (public(v6, PUBLIC), 8080));
    [[service, own], [own, service]]
}

#[test]
fn a_service_and_its_backends_own_address_are_told_apart_over_udp() {
    both(|v6| {
        for (from, [first, second]) in [UPLINK, D].into_iter().flat_map(|from| ways(v6).map(|ways| (from, ways))) {
            let mut host = known(v6);
            let mut asks = |to: (IpAddr, u16)| {
                let (way, seen_as) = client(from, to.0);
                let (backend, seen) = host.through(0, from, &way.udp(4000, to.1, b"question")).unwrap();
                assert_eq!((backend, seen.0, seen.1, seen.3), (B, seen_as, address(B, v6), 8080));
                seen.2
            };
            let l4 = [first, second].map(&mut asks);
            assert_eq!(l4[0], 4000);
            assert!(l4[1] >= 49152, "another L4 port: {}", l4[1]);
            assert_eq!([first, second].map(&mut asks), l4, "and they stay so");
            for worker in [1, 0] {
                for (to, l4) in [(first, l4[0]), (second, l4[1])] {
                    let (way, seen_as) = client(from, to.0);
                    let answer = out(B, seen_as).udp(8080, l4, b"answer");
                    assert_eq!(host.through(worker, B, &answer), Ok((from, (to.0, way.src, to.1, 4000))));
                }
                // By tables of later, too.
                host.publish();
            }
            assert_eq!(host.entries().len(), 2);
            host.allow_only(&[80]);
            for to in [first, second] {
                let frame = client(from, to.0).0.udp(4000, to.1, b"question");
                assert_eq!(host.through(0, from, &frame), Err(DropReason::PolicyDenied), "as its receiver has it");
            }
        }
    });
}

#[test]
fn a_service_and_its_backends_own_address_are_told_apart_over_tcp() {
    both(|v6| {
        for (from, ways) in [UPLINK, D].into_iter().flat_map(|from| ways(v6).map(|ways| (from, ways))) {
            let mut host = known(v6);
            let mut seen_from = Vec::new();
            for (to, isn) in ways.into_iter().zip([100, 900]) {
                let (way, seen_as) = client(from, to.0);
                let (backend, seen) = host.through(0, from, &way.tcp(&tcp(4000, to.1, SYN, isn, 0), b"")).unwrap();
                assert_eq!((backend, seen.0, seen.1, seen.3), (B, seen_as, address(B, v6), 8080));
                let answer = out(B, seen_as).tcp(&tcp(8080, seen.2, SYN | ACK, 500, isn + 1), b"");
                assert_eq!(host.through(1, B, &answer), Ok((from, (to.0, way.src, to.1, 4000))));
                let data = way.tcp(&tcp(4000, to.1, ACK, isn + 1, 501), b"data");
                assert_eq!(host.through(0, from, &data), Ok((B, seen)));
                seen_from.push(seen.2);
            }
            assert!(seen_from[0] == 4000 && seen_from[1] >= 49152, "{seen_from:?}");
            assert_eq!(host.entries().len(), 2);
        }
    });
}

#[test]
fn two_addresses_of_one_port_are_told_apart() {
    both(|v6| {
        let mut host = known(v6);
        let other = public(v6, OWN + 1);
        give(&mut host, v6, OWN + 1, B, address(B, v6));
        let mut seen_from = Vec::new();
        for to in [public(v6, PUBLIC), other] {
            let (backend, seen) = host.through(0, UPLINK, &inward(remote(v6, 1), to).udp(4000, 53, b"?")).unwrap();
            assert_eq!((backend, seen.3), (B, 53));
            let answer = out(B, remote(v6, 1)).udp(53, seen.2, b"answer");
            assert_eq!(host.through(1, B, &answer).unwrap(), (UPLINK, (to, remote(v6, 1), 53, 4000)));
            seen_from.push(seen.2);
        }
        assert!(seen_from[0] == 4000 && seen_from[1] >= 49152, "{seen_from:?}");
    });
}

/// A port whose own network is routed is shown as it is wherever it goes, so also to its neighbour by that one's outside address.
#[test]
fn what_stays_in_the_network_and_what_comes_by_an_address_of_the_host_are_told_apart() {
    both(|v6| {
        let (direct, by_own) = ((address(B, v6), 8080), (public(v6, PUBLIC), 8080));
        for [first, second] in [[direct, by_own], [by_own, direct]] {
            let mut host = known(v6);
            host.edit_network(NETWORK, |net| (net.egress_v4, net.egress_v6) = (Egress::Routed, Egress::Routed));
            let l4 = [first, second].map(|to| {
                let frame = out(A, to.0).udp(4000, to.1, b"question");
                let (backend, seen) = host.through(0, A, &frame).unwrap();
                assert_eq!((backend, seen.0, seen.1, seen.3), (B, address(A, v6), address(B, v6), 8080));
                seen.2
            });
            assert!(l4[0] == 4000 && l4[1] >= 49152, "{l4:?}");
            for (to, l4) in [first, second].into_iter().zip(l4) {
                let answer = out(B, address(A, v6)).udp(8080, l4, b"answer");
                assert_eq!(host.through(1, B, &answer), Ok((A, (to.0, address(A, v6), 8080, 4000))));
            }
        }
    });
}

#[test]
fn icmp_errors_about_what_was_told_apart_are_about_what_was_sent() {
    both(|v6| {
        for (from, [first, second]) in [UPLINK, D].into_iter().flat_map(|from| ways(v6).map(|ways| (from, ways))) {
            let mut host = known(v6);
            let header = if v6 { 40 } else { 20 };
            for (to, name) in [(first, "first"), (second, "second")] {
                let (way, seen_as) = client(from, to.0);
                let sent = way.udp(4000, to.1, b"a question to be quoted");
                let (_, there) = host.frame_through(from, &sent);
                let l4 = read(&there).1.2;
                let error = about(out(B, seen_as), unreachable(v6), [0; 4], &there, 500);
                let (back, got) = host.frame_through(B, &error);
                let Body::Ip { src, dst, .. } = read(&got).0.body else { panic!() };
                assert_eq!((back, src, dst), (from, to.0, way.src), "{name}: of the backend");
                assert_eq!(quoted(&got).0[14 + header..], sent[14 + header..], "{name}: as the client sent it");
                let answer = out(B, seen_as).udp(8080, l4, b"an answer to be quoted");
                let (_, outside) = host.frame_through(B, &answer);
                let error = about(way, unreachable(v6), [0; 4], &outside, 500);
                let (back, got) = host.frame_through(from, &error);
                let Body::Ip { dst, .. } = read(&got).0.body else { panic!() };
                assert_eq!((back, dst), (B, address(B, v6)), "{name}: of the client");
                assert_eq!(quoted(&got).0[14 + header..], answer[14 + header..], "{name}: as the backend sent it");
            }
        }
    });
}

/// What is known to the world keeps its L4 ports: a mapping of a pool is one endpoint for all (RFC 4787 REQ-1), and another port of the pool's
/// address somebody else's.
#[test]
fn what_a_pool_gave_keeps_its_l4_port() {
    both(|v6| {
        let mut host = known(v6);
        host.edit_uplink(|uplink| {
            uplink.owned.remove(&mapped(public(v6, OWN)));
        });
        let [[service, own], _] = ways(v6);
        let ask = |to: (IpAddr, u16)| out(D, to.0).udp(4000, to.1, b"question");
        let (_, seen) = host.through(0, D, &ask(service)).unwrap();
        assert_eq!(seen.0, public(v6, POOL));
        assert_eq!(host.through(0, D, &ask(own)), Err(DropReason::NatTupleTaken));
        assert_eq!(host.leaves(D, remote(v6, 1), (4000, 53)), seen.2);
    });
}

#[test]
fn another_workers_first_packet_of_the_same_connection_is_no_other_connection() {
    both(|v6| {
        for to in [(public(v6, PUBLIC_VIP), 80), (public(v6, PUBLIC), 8080)] {
            let frame = inward(remote(v6, 1), to.0).udp(4000, to.1, b"question");
            let mut other = known(v6);
            other.through(0, UPLINK, &frame).unwrap();
            let mut host = known(v6);
            let mut between = Between::new(&host, new_connection(&host, &other.entry()));
            assert_eq!(host.send_with(0, UPLINK, &frame, &mut between).map(|(to, _)| to), Ok(B));
            assert_eq!(host.entry().translation, other.entry().translation, "of both there is one");
        }
    });
}

/// Once the connection to the Service is over, what the backend sends to the client from those L4 ports is its own.
#[test]
fn a_backend_that_begins_with_the_reverse_of_what_was_told_apart_is_told_apart_too() {
    both(|v6| {
        let mut host = Host::serving(v6, &[backend(B, v6)]);
        assert_eq!(host.asks(A, vip(v6), 4000).unwrap().0, B);
        let direct = out(A, address(B, v6)).udp(4000, 8080, b"question");
        let (to, seen) = host.through(0, A, &direct).unwrap();
        assert!(to == B && seen.2 >= 49152, "{seen:?}");
        let served = host.entries().into_iter().find(|entry| entry.key.dst() == mapped(vip(v6))).unwrap();
        assert!(host.connections.remove(served.index, served.generation, Ending::Flushed));
        let own = out(B, address(A, v6)).udp(8080, 4000, b"its own question");
        let (to, its) = host.through(1, B, &own).unwrap();
        assert_eq!((to, its.0, its.1, its.3), (A, address(B, v6), address(A, v6), 4000));
        assert!(its.2 >= 49152, "another L4 port: {}", its.2);
        for worker in [0, 1] {
            assert_eq!(host.through(worker, A, &direct), Ok((B, seen)));
            assert_eq!(host.through(worker, B, &own), Ok((A, its)));
            let answer = out(B, address(A, v6)).udp(8080, seen.2, b"answer");
            let back = (A, (address(B, v6), address(A, v6), 8080, 4000));
            assert_eq!(host.through(worker, B, &answer), Ok(back));
            let answer = out(A, address(B, v6)).udp(4000, its.2, b"answer");
            let back = (B, (address(A, v6), address(B, v6), 4000, 8080));
            assert_eq!(host.through(worker, A, &answer), Ok(back));
            host.publish();
        }
        assert_eq!(host.entries().len(), 2);
    });
}
