//! What one workload may have of the table, and what is left for others (RFC 6888 REQ-4, REQ-5; SEMANTICS NA25); in both families.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use hostweave_nat::*;
use support::*;

const GRE: u8 = 47;

/// Room for this many mappings.
const CAPACITY: u32 = 1 << 12;

/// Twenty workloads, counted by family, of which half of the table is.
const SHARE: u32 = CAPACITY / 2 / 20;

fn world(spec: PoolSpec) -> World {
    World::with(vec![spec], &Options { capacity: CAPACITY, ..options(T0) })
}

/// A pool with ports for everybody, whose workloads may have as many mappings as there is room for.
fn wide() -> PoolSpec {
    PoolSpec { block_size: 4096, blocks: 1..=1, limits: Limits { mappings: Some(u32::MAX), rate: None }, ..spec() }
}

fn udp(world: &World, family: Family, port: u32, count: u32) -> u32 {
    let out = |l4: u32| world.out(&inside(family, UDP, port, l4 as u16), remote(family, 1, 80));
    (1..=count).take_while(|l4| out(*l4).is_ok()).count() as u32
}

#[test]
fn one_workload_cannot_fill_the_table_for_others() {
    for family in FAMILIES {
        let world = world(wide());
        // Three take what they get: by L4 ports, and by protocols without, where each remote is a mapping.
        for port in 0..3 {
            udp(&world, family, port, 60_000);
            let gre = |host| world.out(&inside(family, GRE, port, 0), remote(family, host, 0));
            assert!((1..5000).filter(|host| gre(*host).is_ok()).count() <= CAPACITY as usize / 2);
        }
        let refused = world.out(&inside(family, UDP, 0, 60_001), remote(family, 1, 80));
        assert_eq!(refused, Err(Refused::Full));
        let full = world.nat.stats().refused.full;
        assert!(full > 0);
        for port in 3..10 {
            assert_eq!(udp(&world, family, port, SHARE), SHARE, "{family:?} {port}");
            let more = world.out(&inside(family, UDP, port, 60_001), remote(family, 1, 80));
            assert_eq!(more, Err(Refused::Full), "{family:?} {port}");
        }
        let other = FAMILIES[1 - family.index];
        assert_eq!(udp(&world, other, 0, SHARE), SHARE, "the other family of the first ones too");
        assert!(world.nat.stats().mappings >= u64::from(CAPACITY - 12 * SHARE - 20), "the rest is in use");
    }
}

#[test]
fn shares_follow_workloads_that_come_and_go() {
    for family in FAMILIES {
        let mut world = world(wide());
        let mut held = vec![];
        while let Ok(mapped) = world.out(&inside(family, UDP, 0, 1 + held.len() as u16), remote(family, 1, 80)) {
            held.push(mapped.mapping);
        }
        assert_eq!(held.len() as u32, CAPACITY - 19 * SHARE);
        // Of one that goes nothing is its own any more: what it still holds is counted to what everybody shares.
        let without = |specs: &mut Vec<PoolSpec>| specs[0].workloads.retain(|workload| workload.port != 0);
        world.change(without);
        let share = CAPACITY / 2 / 18;
        assert_eq!(udp(&world, family, 1, 60_000), share, "the rest is held by who is gone");
        held.into_iter().for_each(|mapping| world.end(mapping, End::Closed));
        world.nat.forget(|uid| uid == 100, world.now);
        assert_eq!(udp(&world, family, 2, 60_000), CAPACITY - 17 * share);
        assert_eq!(udp(&world, family, 3, 60_000), share);
    }
}

/// A daemon that was restarted counts what it took over.
#[test]
fn shares_count_what_an_earlier_run_left() {
    for family in FAMILIES {
        let mut world = world(wide());
        let had = udp(&world, family, 0, 60_000);
        let adopted = world.restart_with(&Options { capacity: CAPACITY, ..options(T0) }, |_| Claim::Keep);
        assert_eq!(adopted.kept, had);
        let refused = world.out(&inside(family, UDP, 0, 60_001), remote(family, 1, 80));
        assert_eq!(refused, Err(Refused::Full));
        assert_eq!(udp(&world, family, 1, SHARE), SHARE);
    }
}

/// Mappings that are bound to a remote lie in one chain: of an inside endpoint there are so few that looking through them costs nothing.
#[test]
fn one_inside_endpoint_has_a_bounded_number_of_bound_mappings() {
    for family in FAMILIES {
        let world = world(wide());
        let gre = |port, host| world.out(&inside(family, GRE, port, 0), remote(family, host, 0));
        let made = (1..3000).filter(|host| gre(0, *host).is_ok()).count();
        assert_eq!(made, BOUND_MAX);
        assert_eq!(gre(0, 2999), Err(Refused::PortLimit));
        assert!(gre(0, 1).is_ok(), "what is there goes on");
        assert!(gre(1, 2999).is_ok(), "others do not notice");
    }
}

#[test]
fn shared_l4_ports_are_bounded_by_inside_endpoint() {
    for family in FAMILIES {
        let limits = Limits { mappings: Some(u32::MAX), rate: None };
        let world = world(PoolSpec { block_size: 64, blocks: 1..=1, overload: true, limits, ..spec() });
        // The block is full; one more inside endpoint shares, remote by remote.
        let filler = |l4: u16| world.out(&inside(family, TCP, 0, l4), remote(family, 1, 80));
        (1..=64).for_each(|l4| assert!(filler(l4).is_ok()));
        let shared = |host| world.out(&inside(family, TCP, 0, 9999), remote(family, host, 80));
        let made = (2..3000).filter(|host| shared(*host).is_ok()).count();
        assert_eq!(made, BOUND_MAX);
    }
}

/// Unless the pool says otherwise, a workload has at most as many mappings as an address has L4 ports.
#[test]
fn limits_have_a_default() {
    for family in FAMILIES {
        let world = world(PoolSpec { limits: Limits::default(), ..wide() });
        assert_eq!(udp(&world, family, 0, 60_000), CAPACITY / 4);
        let refused = world.out(&inside(family, UDP, 0, 60_001), remote(family, 1, 80));
        assert_eq!(refused, Err(Refused::PortLimit));
    }
}

fn exhausted(events: Vec<NatEvent>) -> Vec<(u128, u32)> {
    let biggest = |event| match event {
        NatEvent::Exhausted { biggest, ports, .. } => Some((biggest, ports)),
        _ => None,
    };
    events.into_iter().filter_map(biggest).collect()
}

/// SEMANTICS NA40: the host's table is something that can be exhausted, too.
#[test]
fn na40_a_full_table_names_the_biggest_user_once_a_second() {
    for family in FAMILIES {
        let mut world = world(wide());
        let half = udp(&world, family, 3, 20_000);
        assert!(half < 20_000);
        let told = |world: &mut World| {
            let full = |event| if let NatEvent::Full { .. } = event { Some(event) } else { None };
            world.events().into_iter().filter_map(full).collect::<Vec<_>>()
        };
        assert_eq!(told(&mut world), [NatEvent::Full { uid: 103, biggest: 103, mappings: half, at: T0 }]);
        // The others have their shares, and no more.
        for port in [5, 6] {
            assert_eq!(udp(&world, family, port, SHARE + 10), SHARE);
        }
        assert_eq!(told(&mut world), [], "once in this second");
        world.now += 1;
        let refused = world.out(&inside(family, UDP, 5, 60_000), remote(family, 1, 80));
        assert_eq!(refused, Err(Refused::Full));
        assert_eq!(told(&mut world), [NatEvent::Full { uid: 105, biggest: 103, mappings: half, at: T0 + 1 }]);
        // A limit of the workload's own says nothing about the host.
        world.change(|specs| specs[0].limits.mappings = Some(SHARE));
        world.now += 1;
        let refused = world.out(&inside(family, UDP, 5, 60_000), remote(family, 1, 80));
        assert_eq!((refused, told(&mut world)), (Err(Refused::PortLimit), vec![]));
    }
}

/// SEMANTICS NA40: who has most of the address that has no more, wherever else workloads have blocks.
#[test]
fn na40_the_biggest_user_is_that_of_the_address_alone() {
    for family in FAMILIES {
        let spec = PoolSpec { addresses: vec![family.pool(1)], block_size: 4096, blocks: 1..=14, ..wide() };
        let mut world = world(PoolSpec { limits: Limits { mappings: Some(u32::MAX), rate: None }, ..spec });
        // Port 0 has its first block at another address, and most of them at this one.
        world.change(|specs| specs[0].addresses = vec![family.pool(2)]);
        udp(&world, family, 0, 1);
        world.change(|specs| {
            specs[0].addresses = vec![family.pool(1), family.pool(2)];
            specs[0].draining = vec![family.pool(2)];
            specs[0].blocks = 10..=14;
        });
        udp(&world, family, 0, 2);
        world.change(|specs| specs[0].blocks = 4..=14);
        udp(&world, family, 1, 1);
        world.change(|specs| specs[0].blocks = 1..=14);
        (2..10).for_each(|port| _ = udp(&world, family, port, 1));
        assert_eq!(exhausted(world.events()), [(100, 10 * 4096)], "{family:?}");
    }
}

#[test]
fn na40_a_pool_whose_addresses_all_drain_says_so_too() {
    for family in FAMILIES {
        let mut world = world(wide());
        udp(&world, family, 3, 1);
        world.change(|specs| specs[0].draining = specs[0].addresses.clone());
        let refused = world.out(&inside(family, UDP, 4, 1), remote(family, 1, 80));
        assert!(matches!(refused, Err(Refused::Exhausted { .. })), "{refused:?}");
        assert_eq!(exhausted(world.events()).len(), 1);
    }
}

#[test]
fn what_is_refused_is_counted_by_pool_and_reason() {
    for family in FAMILIES {
        let mut world = world(PoolSpec { limits: Limits { mappings: Some(2), rate: None }, ..wide() });
        udp(&world, family, 0, 3);
        let counts = |world: &World| world.nat.refused_by_pool();
        let limited = |limited| RefusedCounts { limited, ..RefusedCounts::default() };
        assert_eq!(counts(&world), [("pool".to_owned(), limited(1))]);
        world.change(|specs| specs[0].filtering = Filtering::EndpointIndependent);
        udp(&world, family, 0, 3);
        assert_eq!(counts(&world), [("pool".to_owned(), limited(2))], "a change of the pool goes on counting");
        world.change(|specs| specs[0].name = "other".to_owned());
        assert_eq!(counts(&world), [("other".to_owned(), limited(0))]);
        assert_eq!(world.nat.stats().refused, limited(2));
    }
}
