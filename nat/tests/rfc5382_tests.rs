//! RFC 5382 (NAT behaviour for TCP) and SEMANTICS NA17, our declared exception: a test for each requirement that concerns mappings,
//! ports, filtering and timers, in both families.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;

use hostweave_nat::*;
use support::*;

#[test]
fn rfc5382_req1_endpoint_independent_mapping() {
    for family in FAMILIES {
        let world = World::new(spec());
        let from = inside(family, TCP, 0, 5000);
        let first = world.to(&from, remote(family, 1, 80));
        for host in 2..200 {
            assert_eq!(world.to(&from, remote(family, host, 443)).outside, first.outside);
        }
    }
}

/// Of a simultaneous open the inbound SYN belongs to the connection that the outbound one began; an inbound one that crosses before
/// is let in by the filters that say so.
#[test]
fn rfc5382_req3_filtering_is_that_of_udp() {
    for family in FAMILIES {
        let cases = [
            (Filtering::EndpointIndependent, [true, true, true]),
            (Filtering::AddressDependent, [true, true, false]),
            (Filtering::AddressAndPortDependent, [false, false, false]),
        ];
        for (filtering, passes) in cases {
            let world = World::new(PoolSpec { filtering, ..spec() });
            let mapped = world.to(&inside(family, TCP, 0, 5000), remote(family, 1, 80));
            let froms = [remote(family, 1, 80), remote(family, 1, 81), remote(family, 2, 80)];
            for (from, passes) in froms.into_iter().zip(passes) {
                assert_eq!(world.back(TCP, mapped.outside, from).is_ok(), passes, "{filtering:?} {from:?}");
            }
        }
    }
}

fn lives(how: End, at_least: u32) {
    for family in FAMILIES {
        let mut world = World::new(spec());
        let mapped = world.to(&inside(family, TCP, 0, 5000), remote(family, 1, 80));
        world.end(mapped.mapping, how);
        world.wait(at_least - 1);
        assert!(world.nat.get(mapped.mapping).is_some());
        world.wait(2);
        assert_eq!(world.nat.get(mapped.mapping), None);
    }
}

#[test]
fn rfc5382_req5_established_connections_keep_their_mapping_for_2_h_4_min() {
    lives(End::Established, 7440);
}

#[test]
fn rfc5382_req5_transitory_connections_keep_their_mapping_for_4_min() {
    lives(End::Closed, 240);
}

#[test]
fn rfc5382_req5_a_shorter_end_does_not_take_the_longer_one_s_time() {
    for family in FAMILIES {
        let mut world = World::new(spec());
        let from = inside(family, TCP, 0, 5000);
        let (one, two) = (world.to(&from, remote(family, 1, 80)), world.to(&from, remote(family, 2, 80)));
        world.end(one.mapping, End::Established);
        world.end(two.mapping, End::Closed);
        world.wait(7000);
        assert!(world.nat.get(one.mapping).is_some());
    }
}

#[test]
fn rfc5382_req7_no_port_overloading_unless_the_pool_allows_it() {
    for family in FAMILIES {
        let world = World::new(spec());
        for l4 in 0..256 {
            assert!(!world.to(&inside(family, TCP, 0, 2000 + l4), remote(family, l4, 80)).bound);
        }
        assert_eq!(world.out(&inside(family, TCP, 0, 9000), remote(family, 999, 80)), Err(Refused::PortLimit));
    }
}

#[test]
fn rfc5382_req8_hairpinning() {
    for family in FAMILIES {
        let world = World::new(PoolSpec { filtering: Filtering::EndpointIndependent, ..spec() });
        let (a, b) = (inside(family, TCP, 0, 5000), inside(family, TCP, 1, 6000));
        let to_b = world.to(&b, remote(family, 1, 80)).outside;
        let as_seen = world.to(&a, to_b).outside;
        assert_eq!(world.back(TCP, to_b, as_seen).unwrap().inside, b);
        // Even to itself.
        assert_eq!(world.back(TCP, as_seen, as_seen).unwrap().inside, a);
    }
}

/// A pool that allows overload, with one workload whose only block is full of TCP mappings, each towards a remote of its own.
fn full(family: Family, filtering: Filtering) -> World {
    let world = World::new(PoolSpec { overload: true, blocks: 1..=1, filtering, ..spec() });
    for l4 in 0..64 {
        assert!(
            !world.to(&inside(family, TCP, 0, 2000 + l4), remote(family, l4, 80)).bound,
            "not before the block is full"
        );
    }
    world
}

#[test]
fn na17_overload_only_when_full_only_tcp_only_towards_other_remotes_and_flagged() {
    for family in FAMILIES {
        let world = full(family, Filtering::default());
        let mut tuples: BTreeSet<(u128, u16, u128, u16)> = (0..64)
            .map(|l4| {
                let (from, to) = (inside(family, TCP, 0, 2000 + l4), remote(family, l4, 80));
                let outside = world.to(&from, to).outside;
                (outside.address, outside.l4, to.address, to.l4)
            })
            .collect();
        for l4 in 0..500 {
            // The same few remotes again and again, other L4 ports of theirs too.
            let to = remote(family, l4 % 5, 80 + l4 % 3);
            match world.out(&inside(family, TCP, 0, 3000 + l4), to) {
                Ok(mapped) => {
                    assert!(mapped.bound && mapped.new);
                    let outside = mapped.outside;
                    assert!(
                        tuples.insert((outside.address, outside.l4, to.address, to.l4)),
                        "no connection is like another"
                    );
                    assert_eq!(world.nat.get(mapped.mapping).unwrap().remote, Some(to));
                }
                Err(refused) => assert_eq!(refused, Refused::PortLimit),
            }
        }
        assert!(world.nat.stats().overloaded > 400);
        assert!(world.out(&inside(family, UDP, 0, 1), remote(family, 1, 80)).is_ok(), "UDP has room of its own");
    }
}

#[test]
fn na17_who_shares_an_l4_port_was_not_refused_for_want_of_one() {
    for family in FAMILIES {
        // As many blocks as workloads: nobody gets a second one.
        let workloads = (0..63).map(|port| Workload { port, uid: 100 + u128::from(port) }).collect();
        let addresses = vec![family.pool(1)];
        let mut world = World::new(PoolSpec { addresses, workloads, block_size: 1024, overload: true, ..spec() });
        let out = |world: &World, proto, port, l4| world.out(&inside(family, proto, port, l4), remote(family, l4, 80));
        (0..63).for_each(|port| assert!(out(&world, UDP, port, 1).is_ok()));
        (0..1024).for_each(|l4| assert!(!out(&world, TCP, 0, l4).unwrap().bound));
        world.events();
        assert!(out(&world, TCP, 0, 3000).unwrap().bound);
        let stats = world.nat.stats();
        assert_eq!((stats.refused, stats.overloaded), (RefusedCounts::default(), 1));
        assert_eq!(world.events(), [], "nobody is told that somebody went without");
        // UDP shares nothing.
        let refused = (2..1500).filter(|l4| out(&world, UDP, 0, *l4).is_err()).count() as u64;
        assert_eq!(refused, 1498 - 1023);
        assert_eq!(world.nat.stats().refused, RefusedCounts { exhausted: refused, ..Default::default() });
        let told = world.events();
        assert!(matches!(told[..], [NatEvent::Exhausted { uid: 100, ports: 1024, .. }]), "{told:?}");
    }
}

#[test]
fn na17_a_mapping_that_serves_all_does_not_use_what_another_has_towards_a_remote() {
    for family in FAMILIES {
        let world = full(family, Filtering::default());
        let to = remote(family, 777, 80);
        let bound = world.to(&inside(family, TCP, 0, 9000), to);
        let entries: Vec<Entry> = world.nat.entries().collect();
        let host = entries.iter().find(|entry| entry.outside == bound.outside && entry.remote.is_none()).unwrap();
        // The owner of that L4 port goes to the same remote: not from there.
        let other = world.to(&host.inside, to);
        assert!(other.bound);
        assert_ne!(other.outside, bound.outside);
        // To any other it does.
        assert_eq!(world.to(&host.inside, remote(family, 778, 80)).outside, host.outside);
        // The same connection again has the same mapping.
        assert_eq!(world.to(&host.inside, to).mapping, other.mapping);
        assert_eq!(world.to(&inside(family, TCP, 0, 9000), to).mapping, bound.mapping);
    }
}

#[test]
fn na17_a_shared_port_is_free_when_its_last_mapping_ends_in_any_order() {
    for family in FAMILIES {
        let mut world = full(family, Filtering::default());
        let bound: Vec<Mapped> =
            (0..100).map(|l4| world.to(&inside(family, TCP, 0, 9000 + l4), remote(family, 900 + l4, 80))).collect();
        let entries: Vec<Entry> = world.nat.entries().collect();
        assert_eq!(entries.len(), 164);
        entries.iter().filter(|entry| entry.remote.is_none()).for_each(|entry| world.end(entry.mapping, End::Closed));
        world.wait(242);
        assert_eq!(world.nat.stats().mappings, 100);
        // The ports of those that are left are still taken.
        let left: BTreeSet<u16> = bound.iter().map(|mapped| mapped.outside.l4).collect();
        let used = world.nat.addresses().map(|address| address.used[1]).max();
        assert_eq!(used, Some(left.len() as u32));
        for l4 in 0..64 - left.len() as u16 {
            let mapped = world.to(&inside(family, TCP, 0, l4), remote(family, 1, 80));
            assert!(!mapped.bound && !left.contains(&mapped.outside.l4));
        }
        let entries: Vec<Entry> = world.nat.entries().collect();
        entries.iter().for_each(|entry| world.end(entry.mapping, End::Closed));
        world.wait(242 + HOLD_S + 2);
        assert_eq!((world.nat.stats().mappings, world.nat.stats().blocks), (0, 0));
    }
}

#[test]
fn na17_what_is_bound_lets_in_its_own_remote_only() {
    for family in FAMILIES {
        let world = full(family, Filtering::EndpointIndependent);
        let to = remote(family, 777, 80);
        let from = inside(family, TCP, 0, 9000);
        let bound = world.to(&from, to);
        assert_eq!(world.back(TCP, bound.outside, to).unwrap().inside, from);
        // Whoever else comes means the mapping that serves all.
        let other = world.back(TCP, bound.outside, remote(family, 778, 80)).unwrap();
        assert!(world.nat.get(other.mapping).unwrap().remote.is_none() && other.inside != from);
    }
}
