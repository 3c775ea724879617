//! Time: what ends mappings and blocks, called by the maintenance thread about once a second.

use std::sync::atomic::Ordering::Relaxed;

use crate::model::{MappingRef, NatEvent};
use crate::record::TIMED;
use crate::table::Nat;

/// Records looked at in one go, between two of which a worker may have the shard.
const AT_ONCE: usize = 64;

impl Nat {
    /// Ends mappings and blocks whose time has come, and hands out what happened since the last time. Of each shard, and of blocks, at
    /// most `budget` are looked at; returns whether there may be more.
    pub fn expire(&self, now: u32, budget: usize, events: impl FnMut(NatEvent)) -> bool {
        let mut more = false;
        for shard in 0..self.shards() {
            let mut left = budget;
            while left > 0 {
                let looked = self.expire_shard(shard, now, left.min(AT_ONCE));
                left -= looked;
                if looked == 0 {
                    break;
                }
            }
            more |= left == 0;
        }
        let mut left = budget;
        while left > 0 {
            let looked = self.reclaim(now, left.min(AT_ONCE));
            left -= looked;
            if looked == 0 {
                break;
            }
        }
        self.take_events(events);
        more || left == 0
    }

    fn expire_shard(&self, at: usize, now: u32, budget: usize) -> usize {
        // A shard is that of the bucket of its own number.
        let mut shard = self.lock(at);
        for looked in 0..budget {
            let Some(index) = shard.wheel.due(self.records(), now) else { return looked };
            let Some(record) = self.record(index) else { continue };
            record.set_state(0, TIMED);
            if record.holds.load(Relaxed) > 0 {
                // It will have a timer again when it is given back.
                continue;
            }
            if record.until.load(Relaxed) > now {
                self.set_timer(&mut shard, index);
            } else {
                self.free(&mut shard, self.bucket(&record.inside()), index, now);
            }
        }
        budget
    }

    /// Ends the mappings of ports that are gone, by their uids, at once: their timers are for somebody who may go on. Those that connections
    /// hold stay, so that connections are to end first. Looks at mappings until it has seen all of theirs, and locks only the shards of those
    /// that it ends.
    pub fn forget(&self, is_gone: impl Fn(u128) -> bool, now: u32) {
        let theirs = self.registry.workloads().filter(|(_, workload)| is_gone(workload.uid()));
        let mut left: u32 = theirs.map(|(_, workload)| workload.mappings.load(Relaxed)).sum();
        let used = self.fresh().min(self.capacity());
        for (index, record) in (0..used).zip(self.records()) {
            if left == 0 {
                return;
            }
            if record.is_valid() && is_gone(record.uid()) {
                left -= 1;
                self.end_unheld(MappingRef { index, generation: record.generation() }, now);
            }
        }
    }

    fn end_unheld(&self, mapping: MappingRef, now: u32) {
        let Some(record) = self.valid(mapping) else { return };
        let bucket = self.bucket(&record.inside());
        let mut shard = self.lock(bucket);
        if self.valid(mapping).is_some() && record.holds.load(Relaxed) == 0 {
            self.free(&mut shard, bucket, mapping.index, now);
        }
    }

    /// Hands out what happened since the last time, oldest first.
    fn take_events(&self, mut taker: impl FnMut(NatEvent)) {
        // One by one: the lock is not held while somebody writes a log.
        loop {
            let Some(mut event) = self.registry.blocks().take_event() else { return };
            if let NatEvent::Full { biggest, mappings, .. } = &mut event {
                (*biggest, *mappings) = self.biggest_of_all();
            }
            taker(event);
        }
    }
}
