//! Public addresses of Services: clients at the uplink and in other networks, and backends beyond the host.

use super::*;

/// A backend that is no port.
fn external(v6: bool) -> Backend {
    Backend { name: "external/1".into(), address: mapped(remote(v6, 50)), ..backend(B, v6) }
}

#[test]
fn a_client_at_the_uplink_is_seen_as_who_it_is_and_answered_from_the_services_address() {
    both(|v6| {
        let mut host = Host::serving(v6, &[backend(B, v6)]);
        let (client, at) = (remote(v6, 1), public(v6, PUBLIC_VIP));
        assert_eq!(host.asks(UPLINK, at, 4000), Ok((B, (client, address(B, v6), 4000, 8080))));
        let answer = out(B, client).udp(8080, 4000, b"answer");
        for worker in [1, 0] {
            assert_eq!(host.through(worker, B, &answer), Ok((UPLINK, (at, client, 80, 4000))));
        }
        assert_eq!(host.connections.used_by(B), 1, "it counts for the backend");
        // By epochs of its own too.
        host.publish();
        assert_eq!(host.through(0, B, &answer).unwrap().1.0, at);
        assert_eq!(host.entries().len(), 1);
        // An error of a router on the way is about what the backend sent.
        let (_, outside) = host.frame_through(B, &answer);
        let error = about(inward(remote(v6, 200), at), unreachable(v6), [0; 4], &outside, 500);
        let (to, got) = host.frame_through(UPLINK, &error);
        let header = if v6 { 40 } else { 20 };
        assert_eq!((to, &quoted(&got).0[14 + header..]), (B, &answer[14 + header..]));
        // Private addresses are not known out there.
        assert_eq!(host.asks(UPLINK, vip(v6), 4000), Err(DropReason::NotOurs));
        // Nobody out there has an address of the backend's network.
        let spoofed = inward(address(A, v6), at).udp(4000, 80, b"?");
        assert_eq!(host.through(0, UPLINK, &spoofed), Err(DropReason::SpoofedIp));
    });
}

#[test]
fn a_network_without_egress_is_reached_through_its_service_all_the_same() {
    both(|v6| {
        let mut host = Host::serving(v6, &[backend(B, v6)]);
        host.edit_network(NETWORK, |network| (network.egress_v4, network.egress_v6) = (Egress::None, Egress::None));
        let (client, at) = (remote(v6, 1), public(v6, PUBLIC_VIP));
        assert_eq!(host.asks(UPLINK, at, 4000).unwrap().0, B);
        assert_eq!(host.through(0, B, &out(B, client).udp(8080, 4000, b"answer")).unwrap().1.0, at);
        assert_eq!(host.asks(A, at, 4000).unwrap().1.0, address(A, v6), "and from within");
        host.plane.tables.uplink = None;
        host.publish();
        assert_eq!(host.asks(A, vip(v6), 4000).unwrap().0, B, "and without an uplink");
        host.publish();
        assert_eq!(host.asks(A, vip(v6), 4000).unwrap().0, B);
    });
}

#[test]
fn sv25_who_comes_from_another_network_is_seen_as_it_leaves() {
    both(|v6| {
        let mut host = Host::serving(v6, &[backend(B, v6)]);
        let (pool, at) = (public(v6, POOL), public(v6, PUBLIC_VIP));
        let (to, seen) = host.asks(D, at, 4000).unwrap();
        assert_eq!((to, seen.0, seen.1, seen.3), (B, pool, address(B, v6), 8080));
        let answer = out(B, pool).udp(8080, seen.2, b"answer");
        // D has the address of A in its own network.
        assert_eq!(host.through(1, B, &answer), Ok((D, (at, address(A, v6), 80, 4000))));
        host.publish();
        assert_eq!(host.asks(D, at, 4000), Ok((to, seen)));
        assert_eq!(host.through(0, B, &answer).unwrap().0, D);
        // The same as everybody else out there sees it.
        let l4 = host.leaves(D, remote(v6, 1), (4000, 53));
        assert_eq!(l4, seen.2);
        // In its own network a port is seen as it is.
        assert_eq!(host.asks(A, at, 4000), Ok((B, (address(A, v6), address(B, v6), 4000, 8080))));
        // One without egress is not let through.
        host.edit_network(OTHER, |network| (network.egress_v4, network.egress_v6) = (Egress::None, Egress::None));
        assert_eq!(host.asks(D, at, 4000), Err(DropReason::EgressNone));
    });
}

#[test]
fn sv13_a_network_has_backends_of_its_own_at_a_public_address_and_shares_other_l4_ports() {
    both(|v6| {
        let mut host = Host::serving(v6, &[backend(B, v6)]);
        let at = public(v6, PUBLIC_VIP);
        let local = FrontendSpec { refusal: Refusal::Drop, ..spec(at, UDP, &[drained(B, v6)]) };
        let within = FrontendSpec { scope: 7, ..spec(at, UDP, &[backend(C, v6)]) };
        let shared = FrontendSpec { service: "test/other".into(), l4: 81..=81, ..spec(at, UDP, &[backend(B, v6)]) };
        let specs = [local, within, shared];
        host.plane.services = Arc::new(Services::compile(&specs, Some(&host.plane.services)));
        host.publish();
        assert_eq!(host.asks(UPLINK, at, 4000), Err(DropReason::ServiceNoLocalBackend));
        assert_eq!(host.asks(D, at, 4000), Err(DropReason::ServiceNoLocalBackend), "another network is outside");
        assert_eq!(host.asks(A, at, 4000).unwrap().0, C);
        for _ in 0..2 {
            let seen = host.through(0, A, &out(A, at).udp(4001, 81, b"?"));
            assert_eq!(seen, Ok((B, (address(A, v6), address(B, v6), 4001, 8080))));
            let answer = path(B, A, v6).udp(8080, 4001, b"answer");
            assert_eq!(host.through(1, B, &answer), Ok((A, (at, address(A, v6), 81, 4001))));
            host.publish();
        }
        assert_eq!(host.through(0, A, &out(A, at).udp(4002, 82, b"?")), Err(DropReason::ServiceNoPort));
    });
}

#[test]
fn a_backend_beyond_the_host_is_reached_as_the_client_leaves() {
    both(|v6| {
        let mut host = Host::serving(v6, &[external(v6)]);
        let (far, pool) = (remote(v6, 50), public(v6, POOL));
        let (to, seen) = host.asks(A, vip(v6), 4000).unwrap();
        assert_eq!((to, seen.0, seen.1, seen.3), (UPLINK, pool, far, 8080));
        let answer = inward(far, pool).udp(8080, seen.2, b"answer");
        for worker in [1, 0] {
            assert_eq!(host.through(worker, UPLINK, &answer), Ok((A, (vip(v6), address(A, v6), 80, 4000))));
        }
        host.publish();
        assert_eq!(host.asks(A, vip(v6), 4000), Ok((UPLINK, seen)));
        assert_eq!(host.entries().len(), 1);
        // The filter of its mapping knows the backend, not the Service.
        let stranger = inward(remote(v6, 51), pool).udp(8080, seen.2, b"?");
        assert_eq!(host.through(0, UPLINK, &stranger), Err(DropReason::NatNoMapping));
        // From outside to the outside: not by us.
        let (reason, told) = host.told(UPLINK, &inward(remote(v6, 1), public(v6, PUBLIC_VIP)).udp(4000, 80, b"?"));
        assert_eq!((reason, told.is_none()), (DropReason::ServiceBackendUnreachable, true));
        host.edit_network(NETWORK, |network| (network.egress_v4, network.egress_v6) = (Egress::None, Egress::None));
        let (reason, told) = host.told(A, &out(A, vip(v6)).udp(4001, 80, b"?"));
        assert_eq!(reason, DropReason::ServiceBackendUnreachable);
        assert_eq!(
            told.and_then(|frame| frame.icmp()),
            Some(if v6 { (1, 3) } else { (3, 1) }),
            "told that it is so now"
        );
    });
}

/// Any other L4 port of the pool's address is somebody else's.
#[test]
fn a_tuple_that_is_taken_behind_a_pool_is_refused_and_no_other_l4_port_taken() {
    both(|v6| {
        let mut host = Host::serving(v6, &[external(v6)]);
        host.leaves(A, remote(v6, 50), (4000, 8080));
        assert_eq!(host.asks(A, vip(v6), 4000), Err(DropReason::NatTupleTaken));
        assert!(host.asks(A, vip(v6), 4001).is_ok());
    });
}

/// DNS at the gateway answers the network, and would answer the world behind a public address.
#[test]
fn what_the_host_answers_itself_is_no_backend() {
    both(|v6| {
        let mut host = Host::outside();
        let internal = host.plane.tables.ports.iter().flatten().find(|port| port.kind == PortKind::Internal).cloned();
        let internal = internal.unwrap();
        let gateway = if v6 { IpAddr::from(internal.v6[0]) } else { IpAddr::from(internal.v4[0]) };
        host = Host::serving(v6, &[Backend { address: mapped(gateway), ..backend(B, v6) }]);
        assert_eq!(host.asks(A, vip(v6), 4000), Err(DropReason::ServiceBackendUnreachable));
        let (reason, _) = host.told(UPLINK, &inward(remote(v6, 1), public(v6, PUBLIC_VIP)).udp(4000, 80, b"?"));
        assert_eq!(reason, DropReason::ServiceBackendUnreachable);
    });
}

#[test]
fn a_backend_that_nobody_has_is_refused() {
    both(|v6| {
        let gone = Backend { address: mapped(address(99, v6)), ..backend(B, v6) };
        let mut host = Host::serving(v6, &[gone]);
        assert_eq!(
            host.asks(A, vip(v6), 4000),
            Err(DropReason::ServiceBackendUnreachable),
            "its network has nobody there"
        );
        let own = Backend { address: mapped(public(v6, HOST)), ..backend(B, v6) };
        host.serve(v6, &[own], |_| {});
        assert_eq!(host.asks(A, vip(v6), 4000), Err(DropReason::ServiceBackendUnreachable), "an address of the host");
        assert_eq!((host.entries().len(), host.nat.stats().mappings), (0, 0));
    });
}

#[test]
fn a_client_of_another_network_never_comes_as_one_of_the_backends_network() {
    both(|v6| {
        // D's network has the range of the backends'.
        let mut host = Host::serving(v6, &[backend(B, v6)]);
        let at = public(v6, PUBLIC_VIP);
        let (to, seen) = host.asks(D, at, 4000).unwrap();
        assert_eq!((to, seen.0), (B, public(v6, POOL)));
        host.edit_network(OTHER, |network| (network.egress_v4, network.egress_v6) = (Egress::Routed, Egress::Routed));
        assert_eq!(host.asks(D, at, 4001), Err(DropReason::SpoofedIp));
        assert_eq!(host.asks(A, at, 4002).unwrap().1.0, address(A, v6), "of the network itself");
    });
}
