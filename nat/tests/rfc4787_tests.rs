//! RFC 4787 (NAT behaviour for UDP): a test for each requirement that concerns mappings, ports, filtering and timers, in both families.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;

use hostweave_nat::*;
use support::*;

#[test]
fn rfc4787_req1_endpoint_independent_mapping() {
    for family in FAMILIES {
        let world = World::new(spec());
        let from = inside(family, UDP, 0, 5000);
        let first = world.to(&from, remote(family, 1, 80));
        for host in 2..1000 {
            let mapped = world.to(&from, remote(family, host, 80 + host));
            assert_eq!((mapped.outside, mapped.mapping), (first.outside, first.mapping));
            assert!(!mapped.new && first.new && !mapped.bound);
        }
        assert_ne!(world.to(&inside(family, UDP, 0, 5001), remote(family, 1, 80)).outside, first.outside);
        assert_eq!(world.nat.stats().mappings, 2);
    }
}

#[test]
fn rfc4787_req2_paired_pooling() {
    for family in FAMILIES {
        let mut world = World::new(spec());
        // Blocks come and go, and another workload takes what it can: it is the same outside address all the same.
        let mut addresses = BTreeSet::new();
        for l4 in 0..200 {
            for proto in [UDP, TCP, family.icmp] {
                addresses
                    .insert(world.to(&inside(family, proto, 0, 5000 + l4), remote(family, l4, 80)).outside.address);
            }
            world.to(&inside(family, UDP, 1, 5000 + l4), remote(family, l4, 80));
        }
        assert_eq!(addresses.len(), 1);
        assert_eq!(world.nat.leases().filter(|lease| lease.block.uid == 100).count(), 4);
        // When it comes back after a while it is the same one still.
        let entries: Vec<Entry> = world.nat.entries().collect();
        entries.iter().for_each(|entry| world.end(entry.mapping, End::Closed));
        world.wait(1000);
        assert_eq!(world.nat.stats().blocks, 0);
        addresses.insert(world.to(&inside(family, UDP, 0, 9000), remote(family, 1, 80)).outside.address);
        assert_eq!(addresses.len(), 1);
    }
}

#[test]
fn rfc4787_req3_no_port_overloading() {
    for family in FAMILIES {
        let mut spec = spec();
        spec.overload = true;
        let world = World::new(spec);
        let mut outsides = BTreeSet::new();
        let mut refused = 0;
        for port in 0..4 {
            for l4 in 0..300 {
                match world.out(&inside(family, UDP, port, 5000 + l4), remote(family, l4, 80)) {
                    Ok(mapped) => assert!(outsides.insert((mapped.outside.address, mapped.outside.l4))),
                    Err(reason) => {
                        assert_eq!(reason, Refused::PortLimit);
                        refused += 1;
                    }
                }
            }
        }
        assert_eq!((outsides.len(), refused), (4 * 256, 4 * 44), "UDP never shares, whatever the pool says of TCP");
    }
}

/// REQ-3a asks to keep low ports low and high ports high; this NAT never gives out a port below 1024 (a stated deviation).
#[test]
fn rfc4787_req3a_low_ports_are_reserved() {
    for family in FAMILIES {
        let world = World::new(spec());
        for l4 in [0, 1, 53, 500, 1023] {
            assert!(world.to(&inside(family, UDP, 0, l4), remote(family, 1, 80)).outside.l4 >= 1024);
        }
    }
}

#[test]
fn rfc4787_req5_udp_mappings_live_five_minutes() {
    for family in FAMILIES {
        let mut world = World::new(spec());
        let from = inside(family, UDP, 0, 5000);
        let mapped = world.to(&from, remote(family, 1, 4000));
        world.wait(10_000);
        assert!(world.nat.get(mapped.mapping).is_some(), "as long as a connection holds it");
        world.end(mapped.mapping, End::Closed);
        world.wait(299);
        assert!(world.nat.get(mapped.mapping).is_some());
        world.wait(2);
        assert_eq!(world.nat.get(mapped.mapping), None);
        assert_eq!(world.nat.outside_of(&from), None);
    }
}

#[test]
fn rfc4787_req5_the_timer_counts_from_the_last_packet_of_the_last_connection() {
    for family in FAMILIES {
        let mut world = World::new(spec());
        let from = inside(family, UDP, 0, 5000);
        let (one, two) = (world.to(&from, remote(family, 1, 4000)), world.to(&from, remote(family, 2, 4000)));
        let last = world.now + 50;
        world.wait(100);
        world.nat.release(one.mapping, last, world.now, End::Closed);
        world.wait(100);
        world.nat.release(two.mapping, last - 40, world.now, End::Closed);
        world.wait(last + 299 - world.now);
        assert!(world.nat.get(one.mapping).is_some());
        world.wait(2);
        assert_eq!(world.nat.get(one.mapping), None);
    }
}

#[test]
fn rfc4787_req5a_a_mapping_towards_dns_alone_outlives_its_connections_by_30_s() {
    for family in FAMILIES {
        let mut world = World::new(spec());
        let [dns, both] = [5000, 5001].map(|l4| inside(family, UDP, 0, l4));
        let resolver = remote(family, 1, 53);
        let [one, two] = [&dns, &both].map(|from| world.to(from, resolver).mapping);
        let other = world.to(&both, remote(family, 1, 4000)).mapping;
        assert_eq!(other, two);
        [one, two, two].into_iter().for_each(|mapping| world.end(mapping, End::Closed));
        world.wait(32);
        assert!(world.nat.get(one).is_none() && world.nat.get(two).is_some());
    }
}

#[test]
fn rfc4787_req6_outbound_traffic_refreshes() {
    for family in FAMILIES {
        let mut world = World::new(spec());
        let from = inside(family, UDP, 0, 5000);
        let first = world.to(&from, remote(family, 1, 4000));
        world.end(first.mapping, End::Closed);
        for host in 2..10 {
            world.wait(250);
            let again = world.to(&from, remote(family, host, 4000));
            assert_eq!(again.mapping, first.mapping);
            world.end(again.mapping, End::Closed);
        }
        world.wait(301);
        assert_eq!(world.nat.stats().mappings, 0);
    }
}

/// Connections that were let in hold a mapping, so that its L4 port is nobody else's, and keep it open for more of them only as far as the inside
/// answers.
#[test]
fn rfc7857_7_what_is_let_in_does_not_keep_a_mapping_open() {
    for family in FAMILIES {
        let mut world = World::new(PoolSpec { filtering: Filtering::EndpointIndependent, ..spec() });
        let from = inside(family, UDP, 0, 5000);
        let out = world.to(&from, remote(family, 1, 4000));
        let stranger = |world: &World, host| world.back(UDP, out.outside, remote(family, host, 9));
        let silent = stranger(&world, 2).unwrap().mapping;
        world.wait(1000);
        let answered = stranger(&world, 3).unwrap().mapping;
        // The inside's own connection ends; from now on those that were let in hold it alone.
        world.end(out.mapping, End::Closed);
        world.wait(299);
        assert!(stranger(&world, 4).is_ok(), "as long as a mapping lives");
        world.nat.release_unasked(silent, None, world.now, End::Closed);
        world.wait(1);
        assert_eq!(stranger(&world, 5), Err(Unmapped::NoMapping));
        assert!(world.nat.get(out.mapping).is_some(), "held");
        world.nat.refresh(answered, world.now);
        assert!(stranger(&world, 6).is_ok());
        world.wait(301);
        assert_eq!(stranger(&world, 7), Err(Unmapped::NoMapping));
        // A connection of its own opens it again.
        let again = world.to(&from, remote(family, 8, 4000)).mapping;
        assert_eq!(again, out.mapping);
        assert!(stranger(&world, 9).is_ok());
        world.end(again, End::Refused);
        assert_eq!(stranger(&world, 10), Err(Unmapped::NoMapping));
        // Those of 3, 4, 6 and 9: the last one ends it, and what one heard from the inside counts.
        for heard in [None, None, Some(world.now - 200), None] {
            world.nat.release_unasked(answered, heard, world.now, End::Closed);
        }
        world.wait(99);
        assert!(stranger(&world, 11).is_ok());
        world.nat.release_unasked(answered, None, world.now, End::Refused);
        world.wait(2);
        assert_eq!(world.nat.stats().mappings, 0);
    }
}

#[test]
fn rfc4787_req7_networks_that_overlap() {
    for family in FAMILIES {
        let world = World::new(spec());
        // Two networks use the same addresses, and the outside uses them too.
        let one = inside(family, UDP, 0, 5000);
        let two = Inside { port: 1, uid: 101, vni: 4097, ..one };
        let peer = Outside { address: one.address, l4: 5000 };
        let (a, b) = (world.to(&one, peer), world.to(&two, peer));
        assert_ne!(a.outside, b.outside);
        assert_eq!(world.nat.outside_of(&one), Some(a.outside));
        assert_eq!(world.nat.outside_of(&two), Some(b.outside));
    }
}

fn filtered(filtering: Filtering) -> World {
    World::new(PoolSpec { filtering, ..spec() })
}

#[test]
fn rfc4787_req8_endpoint_independent_filtering() {
    for family in FAMILIES {
        let world = filtered(Filtering::EndpointIndependent);
        let from = inside(family, UDP, 0, 5000);
        let mapped = world.to(&from, remote(family, 1, 80));
        let found = world.back(UDP, mapped.outside, remote(family, 999, 1)).unwrap();
        assert_eq!((found.inside, found.mapping), (from, mapped.mapping));
        let beside = Outside { l4: mapped.outside.l4 ^ 1, ..mapped.outside };
        assert_eq!(world.back(UDP, beside, remote(family, 1, 80)), Err(Unmapped::NoMapping));
        assert_eq!(world.back(TCP, mapped.outside, remote(family, 1, 80)), Err(Unmapped::NoMapping));
    }
}

#[test]
fn rfc4787_req8_address_dependent_filtering() {
    for family in FAMILIES {
        let world = filtered(Filtering::AddressDependent);
        let from = inside(family, UDP, 0, 5000);
        let mapped = world.to(&from, remote(family, 1, 80));
        assert_eq!(world.back(UDP, mapped.outside, remote(family, 1, 9999)).unwrap().inside, from);
        assert_eq!(world.back(UDP, mapped.outside, remote(family, 2, 80)), Err(Unmapped::Filtered));
        world.to(&from, remote(family, 2, 7));
        assert_eq!(world.back(UDP, mapped.outside, remote(family, 2, 80)).unwrap().inside, from);
        assert_eq!(world.nat.stats().filtered, 1);
    }
}

#[test]
fn rfc4787_req8_what_is_remembered_of_remotes_is_bounded() {
    for family in FAMILIES {
        let world = filtered(Filtering::AddressDependent);
        let from = inside(family, UDP, 0, 5000);
        let outside = (0..1000).map(|host| world.to(&from, remote(family, host, 80)).outside).last().unwrap();
        let lets_in = |host| world.back(UDP, outside, remote(family, host, 1)).is_ok();
        assert!((1000 - REMOTES_MAX as u16..1000).all(lets_in), "the last ones");
        assert!(!(0..1000 - REMOTES_MAX as u16).any(lets_in), "no others");
    }
}

#[test]
fn rfc4787_req8_address_and_port_dependent_filtering() {
    for family in FAMILIES {
        let world = World::new(spec());
        let mapped = world.to(&inside(family, UDP, 0, 5000), remote(family, 1, 80));
        // What the inside has sent to is a connection, which is found before anybody asks here.
        for from in [remote(family, 1, 80), remote(family, 1, 81), remote(family, 2, 80)] {
            assert_eq!(world.back(UDP, mapped.outside, from), Err(Unmapped::Filtered));
        }
    }
}

#[test]
fn rfc4787_req9_hairpinning_with_the_external_source() {
    for family in FAMILIES {
        for filtering in [Filtering::EndpointIndependent, Filtering::AddressDependent] {
            let world = filtered(filtering);
            let (a, b) = (inside(family, UDP, 0, 5000), inside(family, UDP, 1, 6000));
            let to_b = world.to(&b, remote(family, 1, 80)).outside;
            // What B sees is where A comes from outside; it must be that which its filter knows.
            let as_seen = world.to(&a, to_b).outside;
            if filtering == Filtering::AddressDependent {
                assert_eq!(world.back(UDP, to_b, as_seen), Err(Unmapped::Filtered));
                world.to(&b, as_seen);
            }
            let found = world.back(UDP, to_b, as_seen).unwrap();
            assert_eq!(found.inside, b);
            assert_ne!(as_seen.address, a.address);
        }
    }
}

#[test]
fn rfc4787_req9_what_was_kept_out_makes_the_mapping_that_lets_the_answer_in() {
    for family in FAMILIES {
        for overload in [false, true] {
            let world = World::new(PoolSpec { overload, ..spec() });
            let (a, b) = (inside(family, TCP, 0, 5000), inside(family, TCP, 1, 6000));
            let at_b = world.to(&b, remote(family, 1, 80)).outside;
            let hairpin = |world: &World, to, from| world.nat.hairpin(&world.pools, TCP, to, from, world.now);
            let as_seen = world.nat.outside_of(&a);
            assert_eq!((as_seen, hairpin(&world, at_b, remote(family, 0, 0))), (None, Err(Unmapped::Filtered)));
            world.nat.expect(&world.pools, &a, at_b, world.now).unwrap();
            let at_a = world.nat.outside_of(&a).unwrap();
            assert_eq!(hairpin(&world, at_a, at_b).unwrap().inside, a);
            // Neither from outside, nor another endpoint.
            assert_eq!(world.back(TCP, at_a, at_b), Err(Unmapped::Filtered));
            assert_eq!(hairpin(&world, at_a, Outside { l4: at_b.l4 ^ 1, ..at_b }), Err(Unmapped::Filtered));
            // It lives as long as any mapping that has no connection (RFC 5382 REQ-5).
            let mut other = World::new(spec());
            other.nat.expect(&other.pools, &a, at_b, other.now).unwrap();
            other.wait(other.nat.timers().tcp_transitory - 1);
            assert_eq!(other.nat.stats().mappings, 1);
            other.wait(2);
            assert_eq!(other.nat.stats().mappings, 0);
        }
    }
}

#[test]
fn rfc4787_req11_behaviour_does_not_change_with_conflicts() {
    for family in FAMILIES {
        let world = filtered(Filtering::EndpointIndependent);
        // Everybody wants the same L4 port.
        let froms: Vec<Inside> = (0..10).map(|port| inside(family, UDP, port, 5000)).collect();
        let first: Vec<Mapped> = froms.iter().map(|from| world.to(from, remote(family, 1, 80))).collect();
        for host in 2..50 {
            for (from, first) in froms.iter().zip(&first) {
                assert_eq!(world.to(from, remote(family, host, 80)).outside, first.outside);
                assert_eq!(world.back(UDP, first.outside, remote(family, 1000 - host, 80)).unwrap().inside, *from);
            }
        }
    }
}

/// Port preservation (§4.2.1) within the block, and random ports otherwise (RFC 6056).
#[test]
fn rfc6056_ports_are_random_within_the_block_or_kept_when_they_lie_in_it() {
    for family in FAMILIES {
        let world = World::new(PoolSpec { block_size: 1024, ..spec() });
        let first = world.to(&inside(family, UDP, 0, 80), remote(family, 1, 80)).outside.l4;
        let block = first & !1023;
        let own = block + (first + 1) % 1024;
        assert_eq!(world.to(&inside(family, UDP, 0, own), remote(family, 1, 80)).outside.l4, own);
        let drawn: Vec<u16> =
            (100..200).map(|l4| world.to(&inside(family, UDP, 0, l4), remote(family, 1, 80)).outside.l4).collect();
        assert!(drawn.iter().all(|l4| l4 & !1023 == block));
        let ascents = drawn.windows(2).filter(|pair| pair[0] < pair[1]).count();
        assert!((25..75).contains(&ascents), "{drawn:?}");
    }
}

#[test]
fn rfc7857_req7_udp_tcp_and_icmp_have_port_spaces_of_their_own() {
    for family in FAMILIES {
        let world = World::new(PoolSpec { blocks: 1..=1, ..spec() });
        for proto in [UDP, TCP, family.icmp] {
            let mut taken = BTreeSet::new();
            for l4 in 0..64 {
                taken.insert(world.to(&inside(family, proto, 0, l4), remote(family, 1, 80)).outside.l4);
            }
            assert_eq!(taken.len(), 64);
            assert_eq!(world.out(&inside(family, proto, 0, 64), remote(family, 1, 80)), Err(Refused::PortLimit));
        }
        assert_eq!(world.nat.addresses().map(|address| address.used).max(), Some([64, 64, 64]));
    }
}
