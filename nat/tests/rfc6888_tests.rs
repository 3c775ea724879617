//! RFC 6888 (carrier-grade NAT), RFC 7422 and what SEMANTICS §5 adds: limits, blocks, their log, draining, exhaustion; in both families.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;

use hostweave_nat::*;
use support::*;

fn fill(world: &World, family: Family, port: u32, count: u16) -> Vec<Mapped> {
    let map = |l4| world.out(&inside(family, UDP, port, 2000 + l4), remote(family, 1, 80));
    (0..count).map_while(|l4| map(l4).ok()).collect()
}

/// A pool with one address, of fifteen blocks, for sixteen workloads.
fn one_address(family: Family) -> PoolSpec {
    PoolSpec {
        addresses: vec![family.pool(1)],
        workloads: (0..16).map(|port| Workload { port, uid: 100 + u128::from(port) }).collect(),
        block_size: 4096,
        limits: Limits { mappings: Some(8192), rate: None },
        ..spec()
    }
}

fn release_all(world: &World) {
    let entries: Vec<Entry> = world.nat.entries().collect();
    for entry in entries {
        (0..entry.holds).for_each(|_| world.end(entry.mapping, End::Closed));
    }
}

#[test]
fn rfc6888_req2_all_mappings_of_a_workload_have_one_address_even_when_it_is_full() {
    for family in FAMILIES {
        // Each address has room for 63 workloads with 1024 ports.
        let mut spec = PoolSpec { block_size: 1024, blocks: 1..=1, ..spec() };
        spec.workloads = (0..126).map(|port| Workload { port, uid: 100 + u128::from(port) }).collect();
        let mut world = World::new(spec);
        for port in 0..126 {
            assert_eq!(fill(&world, family, port, 1).len(), 1, "both addresses are used up to their last block");
        }
        world.change(|specs| specs[0].blocks = 1..=4);
        // A workload that would need more does not get it from another address, when one block is free there.
        let victim = world.nat.leases().find(|lease| lease.block.address == mapped(family.pool(1))).unwrap();
        let entry = world.nat.entries().find(|entry| entry.inside.uid == victim.block.uid).unwrap();
        world.end(entry.mapping, End::Closed);
        world.wait(300 + HOLD_S + 2);
        assert!(world.nat.lookup(victim.block.address, victim.block.first, None).is_none());
        let other = world.nat.leases().find(|lease| lease.block.address == mapped(family.pool(2))).unwrap();
        let port = (other.block.uid - 100) as u32;
        let asked = (2000..3100).map(|l4| world.out(&inside(family, UDP, port, l4), remote(family, 1, 80)));
        let (got, refused): (Vec<_>, Vec<_>) = asked.partition(Result::is_ok);
        assert!(got.iter().flatten().all(|mapped| mapped.outside.address == other.block.address));
        assert!(refused.len() > 70 && refused.iter().all(|why| matches!(why, Err(Refused::Exhausted { .. }))));
    }
}

/// REQ-3: any size, no need to be contiguous.
#[test]
fn rfc6888_req3_pools_of_any_addresses() {
    for family in FAMILIES {
        let addresses: Vec<_> = [3, 50, 7, 211, 90].map(|host| family.pool(host)).to_vec();
        let world = World::new(PoolSpec { addresses: addresses.clone(), ..spec() });
        for port in 0..10 {
            let outside = world.to(&inside(family, TCP, port, 1), remote(family, 1, 80)).outside;
            assert!(addresses.contains(&unmapped(outside.address)));
            assert_eq!(world.pools.pool_of(outside.address), Some("pool"));
        }
    }
}

#[test]
fn rfc6888_req4_ports_of_a_workload_are_limited_and_no_existing_mapping_is_deleted() {
    for family in FAMILIES {
        let world = World::new(PoolSpec { blocks: 1..=2, ..spec() });
        let held = fill(&world, family, 0, 1000);
        assert_eq!(held.len(), 128);
        for l4 in 0..50 {
            let more = world.out(&inside(family, UDP, 0, 9000 + l4), remote(family, 1, 80));
            assert_eq!(more, Err(Refused::PortLimit));
        }
        assert!(held.iter().all(|mapped| world.nat.get(mapped.mapping).is_some()));
        assert_eq!(fill(&world, family, 1, 1000).len(), 128, "others do not notice");
        assert_eq!(world.nat.stats().refused.limited, 52);
    }
}

#[test]
fn rfc6888_req5_state_and_rate_of_a_workload_are_limited() {
    for family in FAMILIES {
        let limits = Limits { mappings: Some(100), rate: Some(30) };
        let mut world = World::new(PoolSpec { limits, ..spec() });
        assert_eq!(fill(&world, family, 0, 1000).len(), 30);
        let mut count = 30;
        for second in 1..10 {
            world.wait(1);
            count += (0..1000)
                .map_while(|l4| world.out(&inside(family, TCP, 0, second * 1000 + l4), remote(family, 1, 80)).ok())
                .count();
        }
        assert_eq!(count, 100);
        assert_eq!(fill(&world, family, 1, 10).len(), 10);
    }
}

#[test]
fn rfc6888_req5_the_table_is_full_for_new_mappings_only() {
    for family in FAMILIES {
        let world = World::with(vec![spec()], &Options { capacity: 100, ..options(T0) });
        let mut held = vec![];
        for port in 0..10 {
            held.extend(fill(&world, family, port, 100));
        }
        assert!(held.len() <= 100 && held.len() >= 75, "{}", held.len());
        let refused = world.out(&inside(family, UDP, 9, 9999), remote(family, 1, 80));
        assert!(matches!(refused, Err(Refused::Full | Refused::PortLimit)), "{refused:?}");
        assert!(held.iter().all(|mapped| world.nat.get(mapped.mapping).is_some()));
    }
}

/// REQ-8 and SEMANTICS NA27: 120 s between the end of a block's last mapping and another workload's first.
#[test]
fn rfc6888_req8_a_port_is_held_for_120_s_before_another_workload_has_it() {
    for family in FAMILIES {
        let mut world = World::new(PoolSpec { blocks: 1..=1, ..one_address(family) });
        // Fifteen of sixteen workloads take the whole address.
        let held: Vec<Mapped> =
            (0..15).map(|port| world.to(&inside(family, UDP, port, 1), remote(family, 1, 80))).collect();
        let late = inside(family, UDP, 15, 1);
        world.end(held[3].mapping, End::Closed);
        while world.nat.get(held[3].mapping).is_some() {
            assert!(matches!(world.out(&late, remote(family, 1, 80)), Err(Refused::Exhausted { .. })));
            world.wait(1);
        }
        let ended = world.now;
        assert!(ended >= T0 + 300);
        while world.now < ended + HOLD_S {
            assert!(matches!(world.out(&late, remote(family, 1, 80)), Err(Refused::Exhausted { .. })), "{}", world.now);
            world.wait(1);
        }
        world.wait(1);
        let mapped = world.to(&late, remote(family, 1, 80));
        assert_eq!(mapped.outside.l4 / 4096, held[3].outside.l4 / 4096);
    }
}

#[test]
fn rfc6888_req8_the_same_workload_has_its_block_again_at_once() {
    for family in FAMILIES {
        let mut world = World::new(PoolSpec { blocks: 1..=1, ..spec() });
        let first = world.to(&inside(family, UDP, 0, 5000), remote(family, 1, 80));
        let block = world.nat.lookup(first.outside.address, first.outside.l4, None).unwrap().block;
        for _ in 0..10 {
            release_all(&world);
            world.wait(301 + HOLD_S / 2);
            assert_eq!(world.nat.stats().mappings, 0);
            let again = world.to(&inside(family, UDP, 0, 5000), remote(family, 1, 80)).outside;
            assert_eq!(world.nat.lookup(again.address, again.l4, None).unwrap().block, block);
        }
        assert_eq!(world.events().len(), 1);
    }
}

/// REQ-12 and SEMANTICS NA28: the log says who had which ports when, and nothing about destinations; one entry per block.
#[test]
fn rfc6888_req12_blocks_are_logged_once_when_they_come_and_once_when_they_go() {
    for family in FAMILIES {
        let mut world = World::new(PoolSpec { blocks: 2..=3, ..spec() });
        let mapped = fill(&world, family, 0, 150);
        let events = world.events();
        let allocated: Vec<Block> = events
            .iter()
            .map(|event| match event {
                NatEvent::Allocated { block, at: T0 } => *block,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(allocated.len(), 3);
        assert!(allocated.iter().all(|block| block.uid == 100 && block.size == 64));
        for mapped in mapped {
            let outside = mapped.outside;
            let has = |block: &&Block| block.address == outside.address && outside.l4 / 64 * 64 == block.first;
            assert_eq!(allocated.iter().filter(has).count(), 1);
        }
        release_all(&world);
        world.wait(301 + HOLD_S + 2);
        let mut released = BTreeSet::new();
        for event in world.events() {
            let NatEvent::Released { block, since, at } = event else { panic!("{event:?}") };
            assert!(since == T0 && at >= T0 + 300 + HOLD_S && allocated.contains(&block));
            released.insert(block.first);
        }
        assert_eq!(released.len(), 3);
        assert_eq!(world.nat.addresses().map(|address| address.leased).sum::<u32>(), 0);
    }
}

/// A workload with mappings keeps as many blocks as it gets at once; others that are empty go back.
#[test]
fn blocks_grow_between_minimum_and_maximum_and_shrink_again() {
    for family in FAMILIES {
        let mut world = World::new(PoolSpec { blocks: 2..=8, ..spec() });
        assert_eq!(fill(&world, family, 0, 1).len(), 1);
        assert_eq!(world.nat.stats().blocks, 2);
        fill(&world, family, 0, 500);
        assert_eq!(world.nat.stats().blocks, 8);
        // All but one mapping end.
        let entries: Vec<Entry> = world.nat.entries().collect();
        for entry in &entries[1..] {
            (0..entry.holds).for_each(|_| world.end(entry.mapping, End::Closed));
        }
        world.wait(301 + 2 * HOLD_S + 2);
        assert_eq!((world.nat.stats().mappings, world.nat.stats().blocks), (1, 2));
    }
}

/// SEMANTICS NA32, RFC 7422: (address, L4 port, time) → workload.
#[test]
fn na32_who_had_an_outside_port_at_a_time() {
    for family in FAMILIES {
        let mut world = World::new(PoolSpec { blocks: 1..=1, ..one_address(family) });
        let mut had = vec![];
        for port in 0..16 {
            let Ok(mapped) = world.out(&inside(family, UDP, port, 5000), remote(family, 1, 80)) else { continue };
            had.push((mapped.outside, world.now, 100 + u128::from(port)));
        }
        assert_eq!(had.len(), 15);
        release_all(&world);
        let first_free = world.now + 300 + HOLD_S;
        world.wait(301 + HOLD_S + 10);
        let second = world.to(&inside(family, UDP, 15, 1), remote(family, 1, 80)).outside;
        let now = world.now;
        for (outside, _, uid) in &had {
            let who = |at| world.nat.lookup(outside.address, outside.l4, at).map(|lease| lease.block.uid);
            assert_eq!(who(Some(T0)), Some(*uid));
            assert_eq!(who(Some(first_free - 1)), Some(*uid));
            assert_eq!(who(Some(T0 - 1)), None);
            let again = outside.l4 / 4096 == second.l4 / 4096;
            assert_eq!(who(None), again.then_some(115));
            assert_eq!(who(Some(now)), again.then_some(115));
        }
        // The answer does not go with the process.
        world.restart(|_| Claim::Keep);
        for (outside, _, uid) in &had {
            let lease = world.nat.lookup(outside.address, outside.l4, Some(T0 + 5)).unwrap();
            assert_eq!(lease.block.uid, *uid);
        }
        assert_eq!(world.nat.lookup(second.address, second.l4, None).unwrap().block.uid, 115);
        assert_eq!(world.nat.lookup(second.address, 1023, None), None);
    }
}

#[test]
fn the_history_of_blocks_is_bounded_and_the_oldest_goes() {
    for family in FAMILIES {
        let mut spec = spec();
        spec.addresses = vec![family.pool(1)];
        // 1024 leases: the smallest table.
        let mut world = World::with(vec![spec], &Options { capacity: 512, ..options(T0) });
        let mut times = vec![];
        for round in 0..1100 {
            let mapped = world.to(&inside(family, family.icmp, round % 10, 7), remote(family, 1, 0));
            times.push((mapped.outside, world.now));
            release_all(&world);
            world.wait(61 + HOLD_S + 1);
            assert_eq!(world.nat.stats().blocks, 0);
        }
        let found = |(outside, at): &(Outside, u32)| world.nat.lookup(outside.address, outside.l4, Some(*at)).is_some();
        assert!(!times[..76].iter().any(found));
        assert!(times[76..].iter().all(found));
    }
}

#[test]
fn na37_a_draining_address_keeps_what_goes_on_and_takes_nothing_new() {
    for family in FAMILIES {
        let mut world = World::new(PoolSpec { filtering: Filtering::EndpointIndependent, ..spec() });
        let (busy, idle) = (inside(family, UDP, 0, 5000), inside(family, UDP, 0, 5001));
        let [held, ended] = [&busy, &idle].map(|from| world.to(from, remote(family, 1, 80)));
        world.end(ended.mapping, End::Closed);
        let old = unmapped(held.outside.address);
        world.change(|specs| specs[0].draining = vec![old]);
        // What goes on goes on, and stays endpoint-independent.
        assert_eq!(world.to(&busy, remote(family, 2, 80)).outside, held.outside);
        assert!(world.back(UDP, held.outside, remote(family, 3, 80)).is_ok());
        // What had ended, and what is new, has another address.
        assert_eq!(world.back(UDP, ended.outside, remote(family, 3, 80)), Err(Unmapped::NoMapping));
        for from in [idle, inside(family, UDP, 0, 5002), inside(family, TCP, 1, 1)] {
            assert_ne!(unmapped(world.to(&from, remote(family, 1, 80)).outside.address), old);
        }
        (0..3).for_each(|_| world.end(held.mapping, End::Closed));
        world.wait(302 + HOLD_S + 2);
        let left = world.nat.addresses().find(|stats| stats.address == mapped(old)).unwrap();
        assert_eq!((left.leased, left.used), (0, [0, 0, 0]));
        // Back in use.
        world.change(|specs| specs[0].draining.clear());
        let used = (0..10)
            .map(|port| unmapped(world.to(&inside(family, TCP, port, 9), remote(family, 1, 80)).outside.address));
        assert!(used.collect::<Vec<_>>().contains(&old));
    }
}

#[test]
fn an_address_that_leaves_its_pool_is_used_by_nobody_any_more() {
    for family in FAMILIES {
        let mut world = World::new(PoolSpec { filtering: Filtering::EndpointIndependent, ..spec() });
        let from = inside(family, UDP, 0, 5000);
        let before = world.to(&from, remote(family, 1, 80));
        world.change(|specs| specs[0].addresses.retain(|address| mapped(*address) != before.outside.address));
        assert_eq!(world.back(UDP, before.outside, remote(family, 1, 80)), Err(Unmapped::NoMapping));
        let after = world.to(&from, remote(family, 1, 80));
        assert_ne!(after.outside.address, before.outside.address);
        // The connection that held it ends at some time.
        world.end(before.mapping, End::Closed);
        assert_eq!(world.nat.outside_of(&from), Some(after.outside));
        world.wait(302 + HOLD_S + 2);
        assert_eq!(world.nat.get(before.mapping), None);
        assert!(world.nat.get(after.mapping).is_some());
        assert_eq!(world.nat.addresses().filter(|address| address.leased > 0).count(), 1);
    }
}

#[test]
fn na40_exhaustion_names_the_biggest_user_once_a_second() {
    for family in FAMILIES {
        let mut world = World::new(PoolSpec { blocks: 6..=6, ..one_address(family) });
        world.to(&inside(family, UDP, 3, 1), remote(family, 1, 80));
        world.change(|specs| specs[0].blocks = 1..=2);
        for port in 4..13 {
            world.to(&inside(family, TCP, port, 1), remote(family, 1, 80));
        }
        world.events();
        for _ in 0..3 {
            world.wait(1);
            for l4 in 0..100 {
                let refused = world.out(&inside(family, TCP, 14, l4), remote(family, 1, 80));
                assert_eq!(refused, Err(Refused::Exhausted { biggest: 103 }));
            }
            let events = world.events();
            let [NatEvent::Exhausted { uid: 114, address, biggest: 103, ports: 24_576, at }] = events[..] else {
                panic!("{events:?}")
            };
            assert_eq!((unmapped(address), at), (family.pool(1), world.now));
        }
        assert_eq!(world.nat.stats().refused.exhausted, 300);
    }
}

/// A workload that has a block, needs another and does not get it, hears the same as one that has none.
#[test]
fn na40_growth_can_be_exhausted_too() {
    for family in FAMILIES {
        let mut world = World::new(PoolSpec { blocks: 1..=2, ..one_address(family) });
        for port in 0..15 {
            world.to(&inside(family, TCP, port, 1), remote(family, 1, 80));
        }
        world.events();
        let refused = (0..5000).find_map(|l4| world.out(&inside(family, TCP, 5, 9 + l4), remote(family, 1, 80)).err());
        assert!(matches!(refused, Some(Refused::Exhausted { biggest: 100.. })), "{refused:?}");
        assert!(matches!(world.events()[..], [NatEvent::Exhausted { uid: 105, ports: 4096, .. }]));
    }
}

#[test]
fn the_first_pool_by_name_that_has_the_family_serves_a_port() {
    let [v4, v6] = FAMILIES;
    let pool = |name: &str, addresses: Vec<_>, ports: std::ops::Range<u32>| PoolSpec {
        name: name.into(),
        addresses,
        workloads: ports.map(|port| Workload { port, uid: 100 + u128::from(port) }).collect(),
        ..spec()
    };
    let mut specs = vec![
        pool("c", vec![v4.pool(5), v6.pool(5)], 0..10),
        pool("a", vec![v4.pool(3)], 0..2),
        pool("b", vec![v6.pool(4)], 1..3),
    ];
    // And, in one family, whom it serves in that one.
    specs[1].in_family[V4] = vec![Workload { port: 11, uid: 111 }];
    specs[0].in_family[V6] = vec![Workload { port: 11, uid: 111 }];
    let world = World::with(specs, &options(T0));
    let name = |family, port| {
        let outside = world.to(&inside(family, UDP, port, 1), remote(family, 1, 80)).outside;
        world.pools.pool_of(outside.address).unwrap()
    };
    assert_eq!([0, 1, 2, 3].map(|port| name(v4, port)), ["a", "a", "c", "c"]);
    assert_eq!([0, 1, 2, 3].map(|port| name(v6, port)), ["c", "b", "b", "c"]);
    assert_eq!([v4, v6].map(|family| name(family, 11)), ["a", "c"]);
    assert_eq!(world.out(&inside(v4, UDP, 10, 1), remote(v4, 1, 80)), Err(Refused::NoPool));
    assert!(!world.pools.serves(hostweave_switch::tables::PortId(10), V4));
}

#[test]
fn a_port_that_took_over_a_slot_or_an_address_gets_nothing_of_the_one_before() {
    for family in FAMILIES {
        let mut world = World::new(PoolSpec { filtering: Filtering::EndpointIndependent, ..spec() });
        let old = inside(family, UDP, 0, 5000);
        let before = world.to(&old, remote(family, 1, 80));
        world.change(|specs| specs[0].workloads[0].uid = 555);
        let new = Inside { uid: 555, ..old };
        assert_eq!(world.out(&old, remote(family, 1, 80)), Err(Refused::NoPool));
        assert_eq!(world.back(UDP, before.outside, remote(family, 1, 80)), Err(Unmapped::NoMapping));
        assert_eq!(world.nat.outside_of(&new), None);
        let after = world.to(&new, remote(family, 1, 80));
        assert_ne!(after.outside, before.outside);
        assert_eq!(world.back(UDP, after.outside, remote(family, 1, 80)).unwrap().inside, new);
        let block = |outside: Outside| world.nat.lookup(outside.address, outside.l4, None).unwrap().block.uid;
        assert_eq!((block(before.outside), block(after.outside)), (100, 555));
        assert!(world.nat.get(before.mapping).is_some(), "held");
    }
}

/// Not even TCP that was established keeps a block for a port that is gone, beyond the quarantine (SEMANTICS NA27).
#[test]
fn a_port_that_is_gone_leaves_its_block_to_others_after_120_s() {
    for family in FAMILIES {
        let mut world = World::new(spec());
        let [gone, other, stays] = [0, 1, 2].map(|port| inside(family, TCP, port, 5000));
        let ends = [gone, other, stays].map(|from| world.to(&from, remote(family, 1, 80)).mapping);
        world.events();
        ends.into_iter().for_each(|mapping| world.end(mapping, End::Established));
        let held = world.to(&other, remote(family, 2, 80)).mapping;
        world.nat.forget(|uid| [gone.uid, other.uid].contains(&uid), world.now);
        assert_eq!(ends.map(|mapping| world.nat.get(mapping).is_some()), [false, true, true]);
        // What a connection holds waits for its end.
        world.end(held, End::Established);
        world.nat.forget(|uid| uid == other.uid, world.now);
        assert_eq!(ends.map(|mapping| world.nat.get(mapping).is_some()), [false, false, true]);
        world.wait(HOLD_S - 1);
        assert_eq!(world.events(), []);
        world.wait(2);
        let released = |event: NatEvent| match event {
            NatEvent::Released { block, .. } => block.uid,
            other => panic!("{other:?}"),
        };
        let mut released: Vec<u128> = world.events().into_iter().map(released).collect();
        released.sort_unstable();
        assert_eq!(released, [gone.uid, other.uid]);
    }
}

#[test]
fn what_never_began_leaves_nothing_behind() {
    for family in FAMILIES {
        let world = World::new(spec());
        let from = inside(family, UDP, 0, 5000);
        let mapped = world.to(&from, remote(family, 1, 80));
        world.end(mapped.mapping, End::Refused);
        assert_eq!((world.nat.stats().mappings, world.nat.get(mapped.mapping)), (0, None));
        // One that was there before stays.
        let mapped = world.to(&from, remote(family, 1, 80));
        world.end(mapped.mapping, End::Closed);
        world.end(world.to(&from, remote(family, 2, 80)).mapping, End::Refused);
        assert!(world.nat.get(mapped.mapping).is_some());
    }
}

#[test]
fn pools_that_cannot_be_are_refused_and_named() {
    let world = World::new(spec());
    let compile = |specs: &[PoolSpec]| Pools::compile(&world.nat, specs, T0).err().map(|error| error.to_string());
    let other = PoolSpec { name: "other".into(), ..spec() };
    let twice = compile(&[spec(), other]).unwrap();
    assert_eq!(twice, "NAT address 198.51.100.1 of pool other is also an address of pool pool");
    for block_size in [0, 32, 100, 8192] {
        assert!(compile(&[PoolSpec { block_size, ..spec() }]).unwrap().contains("block size"));
    }
    #[allow(clippy::reversed_empty_ranges, reason = "it is to be refused")]
    for blocks in [0..=1, 2..=1, 1..=65] {
        assert!(compile(&[PoolSpec { blocks, ..spec() }]).unwrap().contains("blocks"));
    }
    assert!(compile(&[PoolSpec { addresses: vec![], ..spec() }, PoolSpec { addresses: vec![], ..spec() }]).is_some());
    assert_eq!(compile(&[]), None);
}
