//! Several workers and the maintenance thread at once.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use hostweave_nat::*;
use support::*;

/// An outside endpoint of a protocol, towards one remote where that matters.
type Key = (Outside, u8, Option<Outside>);
/// Who holds it, and how many times.
type Holders = Mutex<HashMap<Key, (Inside, u32)>>;

fn worker(world: &World, family: Family, seed: u64, now: &AtomicU32, holders: &Holders) {
    let mut state = seed;
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut held = vec![];
    for _ in 0..20_000 {
        if held.len() > 200 || random(3) == 0 && !held.is_empty() {
            let (mapping, key) = held.swap_remove(random(held.len() as u64) as usize);
            let_go(holders, &key);
            let now = now.load(Relaxed);
            world.nat.release(mapping, now, now, if random(2) == 0 { End::Refused } else { End::Closed });
            continue;
        }
        // All workers work for the same few ports, as those of a guest with several queues.
        let (proto, port) = ([UDP, TCP, TCP, family.icmp][random(4) as usize], random(3) as u32);
        let from = inside(family, proto, port, 2000 + random(150) as u16);
        let to = remote(family, random(20) as u16, 443);
        match world.nat.outbound(&world.pools, &from, to, now.load(Relaxed)) {
            Ok(mapped) => {
                let key = (mapped.outside, proto, mapped.bound.then_some(to));
                let mut holders = holders.lock().unwrap();
                let (owner, count) = holders.entry(key).or_insert((from, 0));
                assert_eq!(*owner, from, "{mapped:?} is somebody else's");
                *count += 1;
                drop(holders);
                assert!(world.nat.get(mapped.mapping).is_some_and(|entry| entry.outside == mapped.outside));
                if let Ok(back) = world.nat.inbound(&world.pools, proto, mapped.outside, to, now.load(Relaxed)) {
                    assert!(back.inside == from || !mapped.bound);
                    let now = now.load(Relaxed);
                    world.nat.release_unasked(back.mapping, Some(now), now, End::Closed);
                }
                held.push((mapped.mapping, key));
            }
            Err(refused) => assert!(matches!(refused, Refused::PortLimit | Refused::Full), "{refused:?}"),
        }
    }
    let now = now.load(Relaxed);
    for (mapping, key) in held {
        let_go(holders, &key);
        world.nat.release(mapping, now, now, End::Closed);
    }
}

/// Before the mapping is given back: from then on somebody else may have the endpoint.
fn let_go(holders: &Holders, key: &Key) {
    let mut holders = holders.lock().unwrap();
    let count = &mut holders.get_mut(key).unwrap().1;
    *count -= 1;
    if *count == 0 {
        holders.remove(key);
    }
}

#[test]
fn workers_never_share_an_outside_endpoint_and_everything_comes_back() {
    for family in FAMILIES {
        let filtering = Filtering::EndpointIndependent;
        let mut world = World::new(PoolSpec { overload: true, blocks: 1..=2, filtering, ..spec() });
        let (now, holders) = (AtomicU32::new(T0), Holders::default());
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|seed| {
                    let (world, now, holders) = (&world, &now, &holders);
                    scope.spawn(move || worker(world, family, seed, now, holders))
                })
                .collect();
            // Time flies: mappings and blocks end while others begin.
            while !workers.iter().all(|worker| worker.is_finished()) {
                let now = now.fetch_add(7, Relaxed);
                world.nat.expire(now, 64, |_| {});
                std::thread::yield_now();
            }
            workers.into_iter().for_each(|worker| worker.join().unwrap());
        });
        world.now = now.load(Relaxed);
        world.wait(310 + 2 * HOLD_S);
        let stats = world.nat.stats();
        assert_eq!((stats.mappings, stats.blocks), (0, 0));
        assert!(world.nat.addresses().all(|address| address.leased == 0 && address.used == [0; 3]));
    }
}
