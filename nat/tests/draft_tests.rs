//! Drafts of pools: what would be, with the NAT left as it is.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use hostweave_nat::*;
use hostweave_switch::tables::PortId;
use support::*;

#[test]
fn what_is_prepared_has_room_and_changes_nothing_else() {
    for family in FAMILIES {
        let world = World::new(spec());
        let mapped = world.to(&inside(family, UDP, 0, 5000), remote(family, 1, 80));
        let before = world.nat.stats();
        let other = PoolSpec { name: "other".into(), addresses: vec![family.pool(9)], ..spec() };
        let twice = [other.clone(), PoolSpec { name: "twice".into(), ..other.clone() }];
        assert!(matches!(Pools::prepare(&world.nat, &twice), Err(PoolError::Twice { .. })));
        let odd = PoolSpec { block_size: 65, ..other.clone() };
        assert!(matches!(Pools::prepare(&world.nat, &[odd]), Err(PoolError::BlockSize { .. })));
        Pools::prepare(&world.nat, std::slice::from_ref(&other)).unwrap();
        assert_eq!(world.nat.stats(), before);
        // The pools of now serve on, and nobody that they serve is on its way out.
        assert_eq!(world.to(&inside(family, UDP, 0, 5000), remote(family, 2, 80)).mapping, mapped.mapping);
        assert!(world.out(&inside(family, UDP, 9, 5000), remote(family, 1, 80)).is_ok());
    }
}

#[test]
fn a_draft_says_whom_pools_would_serve_and_leaves_the_nat_as_it_is() {
    for family in FAMILIES {
        let world = World::new(spec());
        let from = inside(family, UDP, 0, 5000);
        let before = world.to(&from, remote(family, 1, 80));
        let state = |world: &World| (world.nat.stats(), world.nat.addresses().collect::<Vec<_>>());
        let untouched = state(&world);
        // Another pool, which serves a port that nobody knows yet; the one of now is gone.
        let other = PoolSpec {
            name: "other".into(),
            addresses: vec![family.pool(9)],
            workloads: vec![Workload { port: 20, uid: 120 }],
            ..spec()
        };
        for nat in [Some(&world.nat), None] {
            let draft = Pools::draft(nat, std::slice::from_ref(&other)).unwrap();
            assert!(draft.serves(PortId(20), family.index) && !draft.serves(PortId(0), family.index));
            let twice = [other.clone(), PoolSpec { name: "twice".into(), ..other.clone() }];
            assert!(matches!(Pools::draft(nat, &twice), Err(PoolError::Twice { .. })));
        }
        assert_eq!(state(&world), untouched);
        // What goes on goes on, by the pools of now.
        assert_eq!(world.to(&from, remote(family, 2, 80)).outside, before.outside);
        assert!(world.nat.outside_of(&from).is_some());
    }
}
