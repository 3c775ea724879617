//! A daemon that died: what the next one takes over from the file, and what it does not believe.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;

use hostweave_nat::*;
use proptest::prelude::*;
use support::*;

/// What connections know of their mappings.
struct Held {
    mapping: MappingRef,
    inside: Inside,
    outside: Outside,
    remote: Outside,
}

/// A NAT in use: mappings of all kinds, some held, some not.
fn in_use(family: Family) -> (World, Vec<Held>) {
    let world = World::new(PoolSpec { overload: true, filtering: Filtering::AddressDependent, ..spec() });
    let mut held = vec![];
    for i in 0..400u16 {
        let proto = [TCP, UDP, family.icmp, 47, TCP, TCP][usize::from(i) % 6];
        let l4 = if proto == 47 { 0 } else { 3000 + i };
        let from = inside(family, proto, u32::from(i) % 2, l4);
        let to = remote(family, i, if proto == 47 { 0 } else { 443 });
        let Ok(mapped) = world.out(&from, to) else { continue };
        if i % 5 == 0 {
            world.end(mapped.mapping, End::Closed);
        } else {
            held.push(Held { mapping: mapped.mapping, inside: from, outside: mapped.outside, remote: to });
        }
    }
    assert!(world.nat.stats().mappings > 350);
    (world, held)
}

fn hold(world: &World, held: &Held) -> bool {
    world.nat.hold(&world.pools, held.mapping, &held.inside, held.outside, held.remote, false)
}

#[test]
fn na38_mappings_and_blocks_survive_a_crash() {
    for family in FAMILIES {
        let (mut world, held) = in_use(family);
        let before: BTreeMap<u32, Entry> = world.nat.entries().map(|entry| (entry.mapping.index, entry)).collect();
        let blocks: BTreeSet<_> = world.nat.leases().map(|lease| (lease.block.address, lease.block.first)).collect();
        world.now += 5;
        let adopted = world.restart(|_| Claim::Keep);
        assert_eq!((adopted.kept as usize, adopted.forgotten), (before.len(), 0));
        assert_eq!(adopted.blocks as usize, blocks.len());
        for entry in world.nat.entries() {
            let old = &before[&entry.mapping.index];
            assert_eq!((entry.mapping, entry.inside, entry.outside), (old.mapping, old.inside, old.outside));
            assert_eq!((entry.remote, entry.created, entry.holds), (old.remote, old.created, 0));
        }
        assert!(held.iter().all(|held| hold(&world, held)));
        for held in &held {
            // The same endpoint again, and what it lets in.
            assert_eq!(world.to(&held.inside, held.remote).mapping, held.mapping);
            assert!(world.nat.outside_of(&held.inside).is_some());
            let back = world.back(held.inside.proto, held.outside, held.remote).unwrap();
            assert_eq!((back.inside, back.mapping), (held.inside, held.mapping));
            (0..3).for_each(|_| world.end(held.mapping, End::Closed));
        }
        world.wait(605 + 2 * HOLD_S);
        let stats = world.nat.stats();
        assert_eq!((stats.mappings, stats.blocks), (0, 0));
        assert!(world.nat.addresses().all(|address| address.leased == 0 && address.used == [0; 3]));
    }
}

/// Its time is over for all but the connection that holds it, which takes hold of it again before anything ends.
#[test]
fn na38_a_mapping_that_was_held_beyond_its_time_is_held_again() {
    for family in FAMILIES {
        let mut world = World::new(spec());
        let (from, to) = (inside(family, UDP, 0, 3000), remote(family, 1, 443));
        let mapped = world.to(&from, to);
        // Another connection by it ends: from then on it has a time.
        assert_eq!(world.to(&from, remote(family, 2, 443)).mapping, mapped.mapping);
        world.end(mapped.mapping, End::Closed);
        let unheld = world.to(&inside(family, UDP, 0, 4000), to).mapping;
        world.now += 1;
        world.end(unheld, End::Closed);
        world.now += 400;
        assert!(world.nat.get(mapped.mapping).is_some_and(|entry| entry.until != 0 && entry.until < world.now));
        assert_eq!(world.restart(|_| Claim::Keep).kept, 2);
        let held = Held { mapping: mapped.mapping, inside: from, outside: mapped.outside, remote: to };
        assert!(hold(&world, &held), "{family:?}");
        world.wait(1000);
        assert_eq!(world.to(&from, to).mapping, mapped.mapping);
        assert!(world.nat.get(unheld).is_none(), "nobody held that one");
        (0..2).for_each(|_| world.end(mapped.mapping, End::Closed));
        world.wait(301);
        assert_eq!(world.nat.stats().mappings, 0);
    }
}

/// Somebody may end what is adopted before all of it is.
#[test]
fn what_ends_while_others_are_adopted_is_free_once() {
    let (mut world, held) = in_use(FAMILIES[0]);
    held.iter().for_each(|held| world.end(held.mapping, End::Closed));
    let count = world.nat.stats().mappings;
    world.now += 10_000;
    let nat = Nat::open(&world.folder.path().join("nat"), &options(world.now)).unwrap();
    nat.make_available(nat.capacity());
    let pools = Pools::compile(&nat, &world.specs, world.now).unwrap();
    let mut now = world.now;
    let adopted = nat.adopt(&pools, world.now, |_| {
        now += 100;
        while nat.expire(now, 1 << 16, |_| ()) {}
        if now % 700 == 0 { Claim::Forget } else { Claim::Keep }
    });
    assert_eq!(u64::from(adopted.kept + adopted.forgotten), count);
    (world.nat, world.pools, world.now) = (nat, pools, now + 10_000);
    world.wait(2 * HOLD_S);
    assert_eq!(world.nat.stats().mappings, 0);
    let mapped: Vec<_> = (0..200)
        .map(|i| world.to(&inside(FAMILIES[0], UDP, i % 10, 5000 + i as u16), remote(FAMILIES[0], 1, 443)))
        .collect();
    let indices: BTreeSet<u32> = mapped.iter().map(|mapped| mapped.mapping.index).collect();
    assert_eq!(indices.len(), mapped.len(), "one record each");
}

/// Who needs two mappings asks for both before it holds one: what it then does not take is others'.
#[test]
fn na38_a_mapping_that_is_only_asked_for_stays_what_it_was() {
    for family in FAMILIES {
        let (mut world, held) = in_use(family);
        world.restart(|_| Claim::Keep);
        let may = |world: &World, held: &Held| {
            world.nat.may_hold(&world.pools, held.mapping, &held.inside, held.outside, held.remote)
        };
        for held in &held {
            let other = Outside { l4: held.outside.l4 ^ 1, address: held.outside.address ^ 1 };
            let before = world.nat.get(held.mapping);
            assert!(may(&world, held));
            assert!(!may(&world, &Held { outside: other, ..*held }));
            assert!(!may(&world, &Held { inside: Inside { uid: 9, ..held.inside }, ..*held }));
            assert!(!may(&world, &Held { mapping: MappingRef { generation: 99, ..held.mapping }, ..*held }));
            assert_eq!(world.nat.get(held.mapping), before);
        }
        assert!(held.iter().all(|held| hold(&world, held)));
        held.iter().for_each(|held| world.end(held.mapping, End::Closed));
        world.wait(605 + 2 * HOLD_S);
        assert_eq!(world.nat.stats().mappings, 0);
    }
}

/// A block of which each L4 port is taken over TCP, and one of them twice: by a mapping for all remotes and by one that is bound. Which of
/// the two comes first in the file is `bound_first`. Every mapping is held, by the remote that is told.
fn shared(family: Family, bound_first: bool) -> (World, Vec<(Inside, Outside, Mapped)>) {
    let mut world = World::new(PoolSpec { overload: true, blocks: 1..=1, ..spec() });
    let before: Vec<_> = (0..60).map(|i| world.to(&inside(family, UDP, 1, 2000 + i), remote(family, 1, 53))).collect();
    let mut all = Vec::new();
    for i in 0..64 {
        let (from, to) = (inside(family, TCP, 0, 3000 + i), remote(family, 1, 80));
        all.push((from, to, world.to(&from, to)));
    }
    assert!(all.iter().all(|(.., mapped)| !mapped.bound));
    if bound_first {
        before.iter().for_each(|mapped| world.end(mapped.mapping, End::Closed));
        world.wait(301);
    }
    for i in 0..200 {
        let (from, to) = (inside(family, TCP, 0, 4000 + i), remote(family, 2 + i, 80));
        let mapped = world.to(&from, to);
        assert!(mapped.bound);
        let (.., beside) = all.iter().find(|(.., other)| other.outside == mapped.outside).unwrap();
        if (mapped.mapping.index < beside.mapping.index) == bound_first {
            all.push((from, to, mapped));
            return (world, all);
        }
        world.end(mapped.mapping, End::Closed);
    }
    panic!("none lies there");
}

#[test]
fn an_l4_port_that_is_shared_counts_once_after_a_crash() {
    for family in FAMILIES {
        for bound_first in [false, true] {
            let (mut world, all) = shared(family, bound_first);
            world.restart(|_| Claim::Keep);
            for (from, to, mapped) in &all {
                assert!(world.nat.hold(&world.pools, mapped.mapping, from, mapped.outside, *to, false));
            }
            // All are taken, until one that is nobody else's goes: its L4 port is for whoever comes next, alone.
            let (.., shared) = all.last().unwrap();
            let (.., gone) = all.iter().find(|(.., mapped)| mapped.outside != shared.outside).unwrap();
            let next = |world: &World, l4| {
                let mapped = world.out(&inside(family, TCP, 0, l4), remote(family, 999, 80)).ok();
                mapped.filter(|mapped| !mapped.bound).map(|mapped| mapped.outside)
            };
            assert_eq!(next(&world, 5000), None);
            world.end(gone.mapping, End::Closed);
            world.wait(301);
            assert_eq!(next(&world, 5001), Some(gone.outside), "bound first: {bound_first}");
            assert_eq!(next(&world, 5002), None);
        }
    }
}

#[test]
fn what_no_connection_holds_after_a_crash_ends_by_its_timer() {
    for family in FAMILIES {
        let (mut world, _) = in_use(family);
        world.restart(|_| Claim::Keep);
        world.wait(7441);
        assert_eq!(world.nat.stats().mappings, 0);
    }
}

#[test]
fn a_hold_must_be_of_the_same_connection() {
    let family = FAMILIES[0];
    let (mut world, held) = in_use(family);
    world.restart(|_| Claim::Keep);
    let right = held.iter().find(|held| held.inside.proto == UDP).unwrap();
    let is = |mapping, inside: &Inside, outside, remote| {
        world.nat.hold(&world.pools, mapping, inside, outside, remote, false)
    };
    let Held { mapping, inside, outside, remote } = *right;
    assert!(!is(MappingRef { generation: mapping.generation + 1, ..mapping }, &inside, outside, remote));
    assert!(!is(MappingRef { index: u32::MAX, ..mapping }, &inside, outside, remote));
    assert!(!is(mapping, &Inside { l4: inside.l4 ^ 1, ..inside }, outside, remote));
    assert!(!is(mapping, &Inside { uid: 1, ..inside }, outside, remote));
    assert!(!is(mapping, &Inside { port: 5, ..inside }, outside, remote));
    assert!(!is(mapping, &inside, Outside { l4: outside.l4 ^ 1, ..outside }, remote));
    assert!(is(mapping, &inside, outside, remote));
}

#[test]
fn a_file_of_another_boot_size_or_layout_is_void() {
    let family = FAMILIES[0];
    for options in [Options { boot: 8, ..options(T0) }, Options { capacity: 1 << 13, ..options(T0) }] {
        let (mut world, _) = in_use(family);
        assert_eq!(world.restart_with(&options, |_| panic!("nothing is asked")), Adopted::default());
        assert_eq!(world.nat.history().count(), 0);
        assert!(world.out(&inside(family, UDP, 0, 1), remote(family, 1, 1)).is_ok());
    }
    let (mut world, _) = in_use(family);
    overwrite(&world, 0, &0x4857_4e41_54ff_u64.to_ne_bytes());
    assert_eq!(world.restart(|_| Claim::Keep), Adopted::default());
}

#[test]
fn mappings_of_ports_or_addresses_that_are_gone_are_forgotten() {
    for family in FAMILIES {
        // Control says so.
        let (mut world, held) = in_use(family);
        let count = world.nat.stats().mappings;
        let adopted = world.restart(|entry| if entry.inside.uid == 101 { Claim::Keep } else { Claim::Forget });
        assert_eq!(u64::from(adopted.kept + adopted.forgotten), count);
        assert!(world.nat.entries().all(|entry| entry.inside.uid == 101) && adopted.kept > 100);
        assert!(held.iter().all(|held| hold(&world, held) == (held.inside.uid == 101)));
        // No pool serves the port: its block stays its own until it has been empty for long enough.
        let (mut world, _) = in_use(family);
        world.specs[0].workloads.retain(|workload| workload.uid == 101);
        world.restart(|_| Claim::Keep);
        assert!(world.nat.entries().all(|entry| entry.inside.uid == 101));
        assert!(world.nat.leases().any(|lease| lease.block.uid == 100));
        world.wait(HOLD_S + 1);
        assert!(!world.nat.leases().any(|lease| lease.block.uid == 100));
        // No pool has the address: what was there is history.
        let (mut world, _) = in_use(family);
        let leases: Vec<Lease> = world.nat.leases().collect();
        world.specs[0].addresses = vec![family.pool(9)];
        assert_eq!(world.restart(|_| Claim::Keep).kept, 0);
        assert_eq!(world.nat.leases().count(), 0);
        let block = leases[0].block;
        assert_eq!(world.nat.lookup(block.address, block.first, Some(T0 - 1)), None);
        world.now += 100;
        world.restart(|_| Claim::Keep);
        assert_eq!(world.nat.history().filter(|lease| lease.until == Some(T0)).count(), leases.len());
    }
}

fn overwrite(world: &World, at: u64, octets: &[u8]) {
    let file = std::fs::File::options().read(true).write(true).open(world.folder.path().join("nat")).unwrap();
    file.write_all_at(octets, at).unwrap();
}

fn octets(world: &World, at: u64, len: usize) -> Vec<u8> {
    let file = std::fs::File::open(world.folder.path().join("nat")).unwrap();
    let mut octets = vec![0; len];
    file.read_exact_at(&mut octets, at).unwrap();
    octets
}

const LEASES_AT: u64 = 4096;
const LEASE: u64 = 64;
const RECORD: u64 = 128;

fn records_at(world: &World) -> u64 {
    LEASES_AT + u64::from(world.nat.capacity() / 4) * LEASE
}

/// What must be true of anything that a NAT believes.
fn check(world: &World) {
    let pool: BTreeSet<u128> = world.specs[0].addresses.iter().map(|address| mapped(*address)).collect();
    let mut granules = BTreeSet::new();
    for lease in world.nat.leases() {
        let Block { uid, address, first, size } = lease.block;
        assert!(pool.contains(&address) && uid != 0 && first >= 1024 && lease.since <= world.now);
        for granule in 0..size / 64 {
            assert!(granules.insert((address, first / 64 + granule)), "blocks do not overlap");
        }
    }
    let (mut outsides, mut insides) = (BTreeMap::new(), BTreeSet::new());
    for entry in world.nat.entries() {
        let Entry { inside, outside, remote, .. } = entry;
        assert!(
            (100..110).contains(&inside.uid) && inside.port == (inside.uid - 100) as u32 && entry.created <= world.now
        );
        assert!(insides.insert((
            inside.vni,
            inside.address,
            inside.l4,
            inside.proto,
            remote.map(|to| (to.address, to.l4))
        )));
        let place = (outside.address, outside.l4, inside.proto, remote.map(|to| (to.address, to.l4)));
        assert!(outsides.insert(place, inside.uid).is_none());
        if [UDP, TCP, 1, 58].contains(&inside.proto) {
            assert_eq!(world.nat.lookup(outside.address, outside.l4, None).unwrap().block.uid, inside.uid);
        }
    }
}

/// Goes on with it, and all must come back in the end.
fn go_on(world: &mut World, family: Family, held: &[Held]) {
    let mine: Vec<&Held> = held.iter().filter(|held| hold(world, held)).collect();
    for i in 0..300u16 {
        let from =
            inside(family, [UDP, TCP, 47][usize::from(i) % 3], u32::from(i) % 3, if i % 3 == 2 { 0 } else { 9000 + i });
        let to = remote(family, i % 7, if i % 3 == 2 { 0 } else { 80 });
        if let Ok(mapped) = world.out(&from, to) {
            let _ = world.back(from.proto, mapped.outside, to);
        }
        check_some(world, i);
    }
    mine.iter().for_each(|held| world.end(held.mapping, End::Closed));
    let entries: Vec<Entry> = world.nat.entries().collect();
    for entry in entries {
        (0..entry.holds).for_each(|_| world.end(entry.mapping, End::Closed));
    }
    world.wait(7441);
    world.wait(2 * HOLD_S + 2);
    let stats = world.nat.stats();
    assert_eq!((stats.mappings, stats.blocks), (0, 0));
    assert!(world.nat.addresses().all(|address| address.leased == 0 && address.used == [0; 3]));
}

fn check_some(world: &World, i: u16) {
    if i.is_multiple_of(60) {
        check(world);
    }
}

/// One thing that somebody did to the file.
#[derive(Clone, Debug)]
enum Damage {
    /// Some octets of leases, or of mappings, are others.
    Write { leases: bool, at: u64, octets: Vec<u8> },
    /// A lease, or a mapping, is there once more.
    Copy { leases: bool, from: u64, to: u64 },
    /// The mark of what was ever used.
    Used(u64),
}

fn damage() -> impl Strategy<Value = Damage> {
    // Few values, so that what one writes makes sense somewhere.
    let octet = prop_oneof![Just(0u8), Just(1), Just(2), Just(100), Just(255), any::<u8>()];
    let write = (any::<bool>(), 0u64..64 * 400, proptest::collection::vec(octet, 1..40))
        .prop_map(|(leases, at, octets)| Damage::Write { leases, at: if leases { at % 1024 } else { at }, octets });
    let copy = (any::<bool>(), 0u64..400, 0u64..400).prop_map(|(leases, from, to)| {
        let count = if leases { 12 } else { 400 };
        Damage::Copy { leases, from: from % count, to: to % count }
    });
    prop_oneof![8 => write, 6 => copy, 1 => any::<u64>().prop_map(Damage::Used), 1 => (0u64..500).prop_map(Damage::Used)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_damaged_is_forgotten_and_never_believed(
        v6 in any::<bool>(),
        damages in proptest::collection::vec(damage(), 1..30),
    ) {
        let family = FAMILIES[usize::from(v6)];
        let (mut world, held) = in_use(family);
        let records = records_at(&world);
        for damage in damages {
            let place = |leases| if leases { (LEASES_AT, LEASE) } else { (records, RECORD) };
            match damage {
                Damage::Write { leases, at, octets } => overwrite(&world, place(leases).0 + at, &octets),
                Damage::Copy { leases, from, to } => {
                    let (start, size) = place(leases);
                    let copied = octets(&world, start + from * size, size as usize);
                    overwrite(&world, start + to * size, &copied);
                }
                Damage::Used(used) => overwrite(&world, 32, &used.to_ne_bytes()),
            }
        }
        world.now += 3;
        world.restart(|_| Claim::Keep);
        check(&world);
        go_on(&mut world, family, &held);
    }

    #[test]
    fn pure_garbage_is_nothing(v6 in any::<bool>(), seed in any::<u64>()) {
        let family = FAMILIES[usize::from(v6)];
        let (mut world, held) = in_use(family);
        let mut state = seed | 1;
        let mut garbage = vec![0u8; 1 << 17];
        for word in garbage.chunks_exact_mut(8) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Many small numbers: valid marks, flags, counts.
            word.copy_from_slice(&(state >> (state >> 58)).to_ne_bytes());
        }
        overwrite(&world, LEASES_AT, &garbage);
        overwrite(&world, records_at(&world), &garbage);
        world.restart(|_| Claim::Keep);
        check(&world);
        go_on(&mut world, family, &held);
    }
}
