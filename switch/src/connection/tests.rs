//! Tests of the connection table.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;

use super::*;
use crate::flow::{FlowKey, Kind, NO_QUEUE, TRUST_S};
use crate::tcp_track::Side;
use crate::wire::proto;

mod reverse;
mod room;

struct Host {
    connections: Connections,
    path: PathBuf,
    timeouts: Timeouts,
    free: Mutex<FreeRecords>,
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

const BOOT: u128 = 0x1234;

fn open(path: &std::path::Path, capacity: u32, boot: u128) -> Connections {
    let connections = Connections::open(path, &Options { capacity, boot, now: 100 }).unwrap();
    connections.make_available(capacity);
    connections.share((0..4).map(|port| (port, capacity)));
    connections
}

fn host(capacity: u32) -> Host {
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("hostweave-connections-{}-{serial}", std::process::id()));
    let free = Mutex::new(FreeRecords::new());
    Host { connections: open(&path, capacity, BOOT), path, timeouts: Timeouts::default(), free }
}

fn udp(i: u32) -> FlowKey {
    let (src, dst) = (0xffff_0a00_0001, 0x2001_0db8 << 96 | u128::from(i));
    FlowKey::new(src, dst, i as u16, 53, proto::UDP, Kind::Ports)
}

impl Host {
    fn hash(&self, key: &FlowKey) -> u64 {
        self.connections.keys().hash(key, 7)
    }

    fn commit(&self, key: FlowKey, in_port: u32, now: u32) -> Result<Found, CommitError> {
        self.commit_with(&mut self.free.lock().unwrap(), key, in_port, now)
    }

    fn commit_with(&self, free: &mut FreeRecords, key: FlowKey, in_port: u32, now: u32) -> Result<Found, CommitError> {
        let new = self.new_connection(key, in_port);
        self.connections.commit(&new, &self.timeouts, free, now).map(|committed| committed.found)
    }

    fn new_connection(&self, key: FlowKey, in_port: u32) -> NewConnection {
        NewConnection {
            key,
            hash: self.hash(&key),
            vni: 7,
            in_port,
            out_port: 3,
            basis: [1, 2],
            epoch: 5,
            queue: NO_QUEUE,
            side: Side::default(),
            translation: None,
            receiver_pays: false,
        }
    }

    fn find(&self, key: FlowKey) -> Option<Found> {
        self.connections.find(&key, self.hash(&key), 7)
    }

    fn expire(&self, now: u32) -> usize {
        let before = self.connections.len();
        for shard in 0..Connections::shards() {
            while self.connections.expire(shard, &self.timeouts, now, 64) > 0 {}
        }
        (before - self.connections.len()) as usize
    }
}

#[test]
fn both_directions_find_one_connection_and_other_networks_none() {
    let host = host(1000);
    let found = host.commit(udp(1), 0, 100).unwrap();
    assert_eq!(host.find(udp(1)), Some(found));
    assert_eq!(host.find(udp(1).reversed()), Some(Found { direction: 1, ..found }));
    assert_eq!(host.find(udp(2)), None);
    assert_eq!(host.connections.find(&udp(1), host.hash(&udp(1)), 8), None);
    assert_eq!(host.commit(udp(1), 0, 101).unwrap(), found, "it is there already");
    assert_eq!(host.commit(udp(1).reversed(), 3, 101).unwrap(), Found { direction: 1, ..found });
    assert_eq!((host.connections.len(), host.connections.used_by(0), host.connections.used_by(3)), (1, 1, 0));
    assert!(host.connections.remove(found.index, found.generation, Ending::Flushed));
    assert!(!host.connections.remove(found.index, found.generation, Ending::Flushed));
    assert_eq!(host.find(udp(1)), None);
    assert_eq!(host.connections.used_by(0), 0);
}

#[test]
fn a_ping_is_answered_by_an_answer_only() {
    let host = host(1000);
    let ping = FlowKey::new(1, 2, 0x0008, 8, proto::ICMPV4, Kind::Query);
    host.commit(ping, 0, 100).unwrap();
    assert_eq!(host.find(ping.reversed()).unwrap().direction, 1);
    // The other side asks with an identifier that looks like the type of a request.
    let other = FlowKey::new(2, 1, 0x0008, 8, proto::ICMPV4, Kind::Query);
    assert_eq!(host.find(other), None);
}

#[test]
fn ct12_udp_lives_longer_once_it_is_answered() {
    let host = host(1000);
    let unanswered = host.commit(udp(1), 0, 100).unwrap();
    let answered = host.commit(udp(2), 0, 100).unwrap();
    host.connections.get(answered.index, answered.generation).unwrap().touch(1, 110, 0);
    assert_eq!(host.expire(130), 0);
    assert_eq!(host.expire(131), 1);
    assert!(host.connections.get(unanswered.index, unanswered.generation).is_none());
    assert_eq!(host.expire(290 + TRUST_S), 0);
    assert_eq!(host.expire(291 + TRUST_S), 1);
    assert!(host.connections.is_empty());
}

#[test]
fn a_packet_keeps_a_connection_without_touching_the_wheel() {
    let host = host(1000);
    let found = host.commit(udp(1), 0, 100).unwrap();
    for now in 101..400 {
        host.connections.get(found.index, found.generation).unwrap().touch(0, now, 2);
        assert_eq!(host.expire(now), 0);
    }
    assert_eq!(host.connections.get(found.index, found.generation).unwrap().queue(0), 2);
    assert_eq!(host.expire(399 + 30 + TRUST_S), 0);
    assert_eq!(host.expire(399 + 31 + TRUST_S), 1);
}

#[test]
fn a_tcp_connection_that_ends_goes_soon() {
    let host = host(1000);
    let key = FlowKey::new(1, 2, 1000, 80, proto::TCP, Kind::Ports);
    let found = host.commit(key, 0, 100).unwrap();
    let record = host.connections.get(found.index, found.generation).unwrap();
    let acked = Side { flags: Side::SEEN | Side::ACKED, ..Side::default() };
    for direction in 0..2 {
        record.touch(direction, 100, 0);
        record.set_side(direction, &Side::default(), &acked);
    }
    assert_eq!(host.expire(100 + 60 + 10), 0, "established by now");
    let reset = Side { flags: acked.flags | Side::RST, ..acked };
    record.set_side(0, &acked, &reset);
    record.touch(0, 200, 0);
    host.connections.reschedule(found.index, found.generation, &host.timeouts);
    assert_eq!(host.expire(210 + TRUST_S), 0);
    assert_eq!(host.expire(211 + TRUST_S), 1);
}

#[test]
fn ct11_a_full_port_gives_up_its_own_oldest_unanswered_connection_and_nobody_elses() {
    let host = host(4096);
    host.connections.share([(0, 1000), (1, 1000), (2, 0), (3, 0)].into_iter());
    let theirs: Vec<_> = (0..500).map(|i| host.commit(udp(i), 1, 100).unwrap()).collect();
    let answered: Vec<_> = (500..800).map(|i| host.commit(udp(i), 0, 100).unwrap()).collect();
    for found in &answered {
        host.connections.get(found.index, found.generation).unwrap().touch(1, 100, 0);
    }
    let mut refused = 0;
    for i in 10_000..40_000 {
        refused += u32::from(host.commit(udp(i), 0, 102) == Err(CommitError::Quota));
    }
    assert!(host.connections.used_by(0) <= 1000);
    assert!(host.connections.evicted() > 20_000, "{} evicted, {refused} refused", host.connections.evicted());
    for found in theirs.iter().chain(&answered) {
        assert!(host.connections.get(found.index, found.generation).is_some());
    }
    assert_eq!(host.commit(udp(1_000_000), 2, 102), Err(CommitError::Quota));
}

/// A table that port 0, which was alone, has filled on one worker, and then there is port 1.
fn filled_by_one(answered: bool) -> (Host, Vec<Found>) {
    let host = host(4096);
    host.connections.share([(0, 4096)].into_iter());
    let mut begun = Vec::new();
    for i in 0..5000 {
        match host.commit(udp(i), 0, 100) {
            Ok(found) => begun.push(found),
            // Instead of one of its own, if that is found.
            Err(error) => assert_eq!(error, CommitError::Full),
        }
        if answered && let Some(found) = begun.last() {
            let record = host.connections.get(found.index, found.generation).unwrap();
            record.touch(1, 100, 0);
        }
    }
    assert_eq!(host.connections.used_by(0), 4096 - 4096 / 32);
    host.connections.share([(0, 4096), (1, 4096)].into_iter());
    (host, begun)
}

#[test]
fn ct11_a_port_that_comes_when_the_table_is_full_has_its_share() {
    let (host, _) = filled_by_one(false);
    // On a worker of its own: what another keeps at hand is not for it.
    let mut free = FreeRecords::new();
    let before = host.connections.evicted();
    for i in 10_000..10_000 + 1024 {
        assert!(host.commit_with(&mut free, udp(i), 1, 101).is_ok(), "connection {i} of its share");
    }
    assert_eq!(host.connections.used_by(1), 1024);
    assert_eq!(u64::from(host.connections.used_by(0) + host.connections.used_by(1)), host.connections.len());
    assert!(host.connections.evicted() - before <= 1024 - 100, "the reserve comes first");
    // Behind its share it waits like everybody, or gives up its own.
    let others = host.connections.used_by(0);
    for i in 20_000..22_000 {
        let _ = host.commit_with(&mut free, udp(i), 1, 101);
    }
    assert_eq!((host.connections.used_by(0), host.connections.used_by(1)), (others, 1024));
    // And nobody takes from one that has no more than its share.
    host.connections.share([(0, 4096), (1, 4096), (2, 4096)].into_iter());
    let theirs = host.connections.used_by(1).min(2048 / 3);
    for i in 30_000..31_000 {
        let _ = host.commit_with(&mut free, udp(i), 2, 101);
    }
    assert!(host.connections.used_by(1) >= theirs);
}

#[test]
fn ct11_a_port_that_comes_when_the_table_is_full_of_answered_connections_has_the_reserve() {
    let (host, begun) = filled_by_one(true);
    let mut free = FreeRecords::new();
    let mut refused = 0;
    for i in 10_000..10_000 + 1024 {
        match host.commit_with(&mut free, udp(i), 1, 101) {
            Ok(found) => host.connections.get(found.index, found.generation).unwrap().touch(1, 101, 0),
            Err(error) => {
                assert_eq!(error, CommitError::Full);
                refused += 1;
            }
        }
    }
    // The first worker may have a few at hand.
    let has = host.connections.used_by(1);
    assert!((100..=128).contains(&has), "{has}, {refused} refused");
    for found in &begun {
        assert!(host.connections.get(found.index, found.generation).is_some(), "what was answered stays");
    }
    // Whatever ends is the new port's until it has its share: the other one is beyond its own.
    for found in begun.iter().take(500) {
        assert!(host.connections.remove(found.index, found.generation, Ending::Flushed));
    }
    assert_eq!(host.commit(udp(50_000), 0, 102), Err(CommitError::Full));
    let more = (60_000..61_000).filter(|i| host.commit_with(&mut free, udp(*i), 1, 102).is_ok()).count();
    assert!(more >= 500, "{more}");
}

#[test]
fn the_next_run_adopts_what_is_still_right() {
    let host = host(1000);
    host.connections.set_port_id(0, 77);
    let kept = host.commit(udp(1), 0, 100).unwrap();
    let other = host.commit(udp(2), 1, 100).unwrap();
    let future = host.commit(udp(3), 0, 5000).unwrap();
    let removed = host.commit(udp(4), 0, 100).unwrap();
    host.connections.remove(removed.index, removed.generation, Ending::Flushed);

    let next = open(&host.path, 1000, BOOT);
    next.share([(0, 1000)].into_iter());
    assert_eq!(next.port_ids().next().unwrap(), Some(77));
    let claim = |entry: &Entry| if entry.in_port == 0 { Claim::Keep } else { Claim::Forget };
    assert_eq!(next.adopt(&host.timeouts, 105, claim), Adopted { kept: 1, forgotten: 2 });
    let hash = next.keys().hash(&udp(1), 7);
    assert_eq!(next.find(&udp(1), hash, 7), Some(kept));
    assert_eq!(next.get(kept.index, kept.generation).unwrap().epoch(), 0, "to be decided anew");
    assert!(next.get(other.index, other.generation).is_none());
    assert!(next.get(future.index, future.generation).is_none());
    assert_eq!((next.len(), next.used_by(0)), (1, 1));
    // All other records are free again, each once.
    let mut free = FreeRecords::new();
    let mut indices = std::collections::HashSet::new();
    // One in 32 is held back.
    for i in 100..1068 {
        let key = udp(i);
        let new = NewConnection {
            key,
            hash: next.keys().hash(&key, 7),
            vni: 7,
            in_port: 0,
            out_port: 3,
            basis: [0, 0],
            epoch: 1,
            queue: 0,
            side: Side::default(),
            translation: None,
            receiver_pays: false,
        };
        assert!(indices.insert(next.commit(&new, &host.timeouts, &mut free, 105).unwrap().found.index));
    }
    assert_eq!(next.len(), 969);
    drop(next);

    let other_boot = open(&host.path, 1000, BOOT + 1);
    assert_eq!(other_boot.adopt(&host.timeouts, 105, |_| Claim::Keep), Adopted::default());
    let other_size = open(&host.path, 999, BOOT + 1);
    assert_eq!(other_size.adopt(&host.timeouts, 105, |_| Claim::Keep), Adopted::default());
}

/// The maintenance thread may end what is adopted before all of it is.
#[test]
fn what_ends_while_others_are_adopted_is_free_once() {
    const COUNT: u32 = 200;
    let host = host(1000);
    let begun: Vec<_> = (0..COUNT).map(|i| host.commit(udp(i), 0, 100).unwrap()).collect();
    let next = open(&host.path, 1000, BOOT);
    next.share([(0, 1000)].into_iter());
    let clock = AtomicU32::new(1000);
    let expire = || {
        let now = clock.fetch_add(1, Ordering::Relaxed);
        (0..Connections::shards()).for_each(|shard| _ = next.expire(shard, &host.timeouts, now, 64));
    };
    // All of them have had their time. Some end while the next ones are looked at, the rest right afterwards.
    let claim = |entry: &Entry| {
        expire();
        if entry.index.is_multiple_of(10) { Claim::Forget } else { Claim::Keep }
    };
    let adopted = next.adopt(&host.timeouts, 1000, claim);
    assert_eq!(adopted.kept + adopted.forgotten, COUNT);
    assert!(adopted.forgotten >= COUNT / 11);
    (0..4).for_each(|_| expire());
    assert_eq!((next.len(), next.used_by(0)), (0, 0));
    let mut free = FreeRecords::new();
    let commit = |i| {
        let key = udp(i);
        let new = NewConnection { hash: next.keys().hash(&key, 7), ..host.new_connection(key, 0) };
        next.commit(&new, &host.timeouts, &mut free, 1000).unwrap().found
    };
    let again: Vec<_> = (COUNT..COUNT + 968).map(commit).collect();
    let indices: std::collections::HashSet<u32> = again.iter().map(|found| found.index).collect();
    assert_eq!(indices.len(), again.len(), "one record each");
    assert!(begun.iter().all(|old| indices.contains(&old.index)), "none is lost");
}

#[test]
fn several_workers_agree_on_one_connection() {
    let host = host(20_000);
    let results: Vec<Vec<Found>> = std::thread::scope(|scope| {
        let worker = |reverse: bool| {
            let host = &host;
            move || {
                let key = |i| if reverse { udp(i).reversed() } else { udp(i) };
                let mut free = FreeRecords::new();
                let mut commit = |i| host.commit_with(&mut free, key(i), u32::from(reverse), 100).unwrap();
                (0..5000).map(&mut commit).collect::<Vec<_>>()
            }
        };
        let threads = [scope.spawn(worker(false)), scope.spawn(worker(true))];
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (a, b) in results[0].iter().zip(&results[1]) {
        assert_eq!((a.index, a.generation), (b.index, b.generation));
        assert_ne!((a.direction, b.direction), (1, 1));
    }
    assert_eq!(host.connections.len(), 5000);
    assert_eq!(host.connections.used_by(0) + host.connections.used_by(1), 5000);
}

proptest! {
    /// Against a map: whatever is committed, touched, removed and expired, the table says the same.
    #[test]
    fn the_table_is_a_map_with_deadlines(steps in proptest::collection::vec((0u32..60, 0u8..5), 1..300)) {
        let host = host(128);
        let mut model: HashMap<u32, (Found, u32, bool)> = HashMap::new();
        let mut now = 100;
        for (i, action) in steps {
            match action {
                0 | 1 => {
                    let found = host.commit(udp(i), i % 3, now).unwrap();
                    model.entry(i).or_insert((found, now, false));
                }
                2 => if let Some((found, seen, replied)) = model.get_mut(&i) {
                    host.connections.get(found.index, found.generation).unwrap().touch(1, now, 0);
                    (*seen, *replied) = (now, true);
                },
                3 => if let Some((found, ..)) = model.remove(&i) {
                    prop_assert!(host.connections.remove(found.index, found.generation, Ending::Flushed));
                },
                _ => {
                    now += i;
                    host.expire(now);
                    model.retain(|_, (_, seen, replied)| *seen + if *replied { 180 + TRUST_S } else { 30 } + 1 > now);
                }
            }
            prop_assert_eq!(host.connections.len(), model.len() as u64);
            for (i, (found, ..)) in &model {
                prop_assert_eq!(host.find(udp(*i)), Some(*found));
            }
            prop_assert_eq!(host.connections.entries().count(), model.len());
        }
        for port in 0..3 {
            let count = model.keys().filter(|i| *i % 3 == port).count();
            prop_assert_eq!(host.connections.used_by(port), count as u32);
        }
    }
}

#[test]
fn what_is_found_without_the_lock_is_there() {
    // Two long chains, between which records wander while others look for what stays at the end of one.
    let host = &host(512);
    let of_chain = |chain: u64, from: u32| {
        let lies_there = move |key: &FlowKey| (host.hash(key) ^ host.hash(key) >> 23) & 511 == chain;
        (from..).map(udp).filter(lies_there)
    };
    let stays = of_chain(5, 0).next().unwrap();
    host.commit(stays, 0, 100).unwrap();
    let going = AtomicU32::new(1);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (1..3)
            .map(|worker| {
                let mut free = FreeRecords::new();
                let of = |chain| of_chain(chain, worker * 1_000_000).take(40).collect();
                let chains: [Vec<FlowKey>; 2] = [of(5), of(6)];
                scope.spawn(move || {
                    for round in 0..2_000 {
                        let begun = chains[round % 2].iter().map(|key| host.commit_with(&mut free, *key, worker, 100));
                        for found in begun.collect::<Result<Vec<Found>, _>>().unwrap() {
                            assert!(host.connections.remove(found.index, found.generation, Ending::Flushed));
                        }
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            while going.load(Ordering::Relaxed) != 0 {
                let found = host.find(stays).expect("it stays");
                let record = host.connections.get(found.index, found.generation).expect("it is what was found");
                assert_eq!(record.key(), stays);
            }
        });
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        going.store(0, Ordering::Relaxed);
    });
}

#[test]
fn a_miss_that_is_out_of_date_is_looked_up_again() {
    let host = host(512);
    let (key, other) = (udp(1), udp(2));
    let miss = host.connections.look(&key, host.hash(&key), 7).unwrap_err();
    let first = host.commit(key, 0, 100).unwrap();
    let mut free = FreeRecords::new();
    let after = |miss, key: FlowKey, free: &mut FreeRecords| {
        host.connections.commit_after(miss, &host.new_connection(key, 0), &host.timeouts, free, 100).unwrap().found
    };
    assert_eq!(after(miss, key, &mut free), first);
    assert_eq!(after(Miss::UNKNOWN, key, &mut free), first);
    let miss = host.connections.look(&other, host.hash(&other), 7).unwrap_err();
    let second = after(miss, other, &mut free);
    assert_eq!(host.find(other), Some(second));
    assert_eq!(host.connections.len(), 2);
}

#[test]
fn whoever_ends_a_connection_the_listener_hears_of_it_once_and_why() {
    let host = host(1000);
    let heard = std::sync::Arc::new(Mutex::new(Vec::new()));
    let told = std::sync::Arc::clone(&heard);
    host.connections.on_end(Box::new(move |payer, why, entry| {
        told.lock().unwrap().push((payer, why, entry().unwrap().key));
    }));
    let take = || std::mem::take(&mut *heard.lock().unwrap());
    let found = host.commit(udp(1), 0, 100).unwrap();
    assert!(host.connections.remove(found.index, found.generation, Ending::Reopened));
    assert!(!host.connections.remove(found.index, found.generation, Ending::Gone));
    assert_eq!(take(), [(0, Ending::Reopened, udp(1))]);
    host.commit(udp(2), 3, 100).unwrap();
    assert_eq!(host.expire(131), 1);
    assert_eq!(take(), [(3, Ending::Expired, udp(2))]);
    host.connections.share([(0, 1)].into_iter());
    (10..1000).filter(|i| host.commit(udp(*i), 0, 200).is_ok()).count();
    let evicted = take();
    assert!(host.connections.evicted() > 0);
    assert_eq!(evicted.len() as u64, host.connections.evicted());
    assert!(evicted.iter().all(|(payer, why, _)| (*payer, *why) == (0, Ending::Evicted)));
}
