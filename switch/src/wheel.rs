//! A hierarchical timer wheel over records, linked through the records themselves: connections, and NAT mappings.
//!
//! Three levels of 64 slots: seconds, minutes (64 s), hours (4096 s). A record that is due later than the
//! last level reaches is looked at when that comes round. Whatever is found in a slot whose time has come is handed to
//! the caller, who frees it or puts it back with its new deadline.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

/// Marks the link back of the first record of a slot.
const HEAD: u32 = 1 << 31;
/// No record. Indices are below 2^31.
pub const NONE: u32 = u32::MAX;

const SLOTS: u32 = 64;
const BITS: u32 = 6;
const LEVELS: u32 = 3;

/// What can stand in a wheel: it has room for two links, which are the wheel's as long as it stands there.
pub trait Timed {
    /// The next one in its slot.
    fn wheel_next(&self) -> &AtomicU32;
    /// The one before it in its slot, or the slot itself.
    fn wheel_prev(&self) -> &AtomicU32;
}

/// The wheel of one shard.
pub struct Wheel {
    slots: [u32; (SLOTS * LEVELS) as usize],
    /// Slots with a record in them, a bit each, by level.
    filled: [u64; LEVELS as usize],
    /// The second whose slots are being emptied.
    current: u32,
}

impl Wheel {
    /// An empty one. `now` is the second whose turn it is.
    pub fn new(now: u32) -> Self {
        Self { slots: [NONE; (SLOTS * LEVELS) as usize], filled: [0; LEVELS as usize], current: now }
    }

    /// Puts a record where it will be found at `deadline`, or soon after now if that is past.
    pub fn insert<T: Timed>(&mut self, records: &[T], index: u32, deadline: u32) {
        let deadline = deadline.max(self.current.wrapping_add(1));
        let ahead = deadline - self.current;
        let slot = if ahead < SLOTS {
            deadline % SLOTS
        } else if ahead < SLOTS << BITS {
            SLOTS + (deadline >> BITS) % SLOTS
        } else {
            let farthest = self.current + (SLOTS << (2 * BITS)) - (1 << (2 * BITS));
            2 * SLOTS + (deadline.min(farthest) >> (2 * BITS)) % SLOTS
        };
        let record = &records[index as usize];
        let first = self.slots[slot as usize];
        record.wheel_next().store(first, Relaxed);
        record.wheel_prev().store(HEAD | slot, Relaxed);
        if first != NONE {
            records[first as usize].wheel_prev().store(index, Relaxed);
        }
        self.slots[slot as usize] = index;
        self.filled[(slot / SLOTS) as usize] |= 1 << (slot % SLOTS);
    }

    /// Takes a record out.
    pub fn remove<T: Timed>(&mut self, records: &[T], index: u32) {
        let record = &records[index as usize];
        let (next, prev) = (record.wheel_next().load(Relaxed), record.wheel_prev().load(Relaxed));
        if prev & HEAD != 0 {
            let slot = prev & !HEAD;
            self.slots[slot as usize] = next;
            if next == NONE {
                self.filled[(slot / SLOTS) as usize] &= !(1 << (slot % SLOTS));
            }
        } else {
            records[prev as usize].wheel_next().store(next, Relaxed);
        }
        if next != NONE {
            records[next as usize].wheel_prev().store(prev, Relaxed);
        }
    }

    /// Takes out the next record whose time has come by `now`; `None` when there is none left.
    pub fn due<T: Timed>(&mut self, records: &[T], now: u32) -> Option<u32> {
        loop {
            let t = self.current;
            let levels = if t.is_multiple_of(1 << (2 * BITS)) {
                3
            } else if t.is_multiple_of(SLOTS) {
                2
            } else {
                1
            };
            for level in 0..levels {
                let index = self.slots[(level * SLOTS + (t >> (level * BITS)) % SLOTS) as usize];
                if index != NONE {
                    self.remove(records, index);
                    return Some(index);
                }
            }
            if self.current >= now {
                return None;
            }
            self.current += 1;
        }
    }

    /// The first record that is `wanted`, among `looks` records of the slots that come first, those of the last level left out.
    /// Within a slot the newest come first.
    pub fn soonest<T: Timed>(&self, records: &[T], mut looks: usize, wanted: impl Fn(&T) -> bool) -> Option<u32> {
        for level in 0..2 {
            let now = self.current >> (level * BITS);
            // The slot of now comes last and is nearly empty: left out.
            let mut ahead = self.filled[level as usize].rotate_right(now % SLOTS) & !1;
            while ahead != 0 {
                let slot = level * SLOTS + (now + ahead.trailing_zeros()) % SLOTS;
                ahead &= ahead - 1;
                let mut index = self.slots[slot as usize];
                while index != NONE {
                    if looks == 0 {
                        return None;
                    }
                    looks -= 1;
                    let record = &records[index as usize];
                    if wanted(record) {
                        return Some(index);
                    }
                    index = record.wheel_next().load(Relaxed);
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Default)]
    struct Record(AtomicU32, AtomicU32);

    impl Timed for Record {
        fn wheel_next(&self) -> &AtomicU32 {
            &self.0
        }
        fn wheel_prev(&self) -> &AtomicU32 {
            &self.1
        }
    }

    fn records(count: usize) -> Vec<Record> {
        (0..count).map(|_| Record::default()).collect()
    }

    proptest! {
        /// Each record comes out once, at or after its deadline, and within a slot of its level, if it is put back as long as it is not due.
        #[test]
        fn everything_comes_out_exactly_when_due(
            start in 0u32..100_000,
            deadlines in proptest::collection::vec(1u32..300_000, 1..60),
            removed in proptest::collection::vec(any::<bool>(), 60),
        ) {
            let records = records(deadlines.len());
            let mut wheel = Wheel::new(start);
            for (index, ahead) in deadlines.iter().enumerate() {
                wheel.insert(&records, index as u32, start + ahead);
            }
            let mut left: Vec<Option<u32>> = deadlines.iter().map(|ahead| Some(start + ahead)).collect();
            for (index, gone) in removed.iter().take(deadlines.len()).enumerate() {
                if *gone {
                    wheel.remove(&records, index as u32);
                    left[index] = None;
                }
            }
            let mut now = start;
            while left.iter().any(Option::is_some) {
                now += 1 + now % 7;
                prop_assert!(now < start + 310_000);
                while let Some(index) = wheel.due(&records, now) {
                    let deadline = left[index as usize].expect("it was not removed before");
                    if deadline <= wheel.current {
                        prop_assert!(now - deadline < 8, "late: {} for {deadline}", now);
                        left[index as usize] = None;
                    } else {
                        wheel.insert(&records, index, deadline);
                    }
                }
                prop_assert!(left.iter().flatten().all(|deadline| *deadline + 8 > now));
            }
        }
    }
}
