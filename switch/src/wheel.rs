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
    /// Where [`Wheel::sweep`] goes on: a slot, and the next record in it.
    hand: (u32, u32),
}

impl Wheel {
    /// An empty one. `now` is the second whose turn it is.
    pub fn new(now: u32) -> Self {
        Self { slots: [NONE; (SLOTS * LEVELS) as usize], filled: [0; LEVELS as usize], current: now, hand: (0, NONE) }
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
        if self.hand.1 == index {
            self.hand.1 = next;
        }
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

    /// Of `looks` records in the slots that come first, those of the last level left out, the first one of the lowest rank; `rank` is
    /// `None` for those that are not wanted, and whoever ranks 0 is not to be bettered. Within a slot the newest come first.
    pub fn soonest<T: Timed>(&self, records: &[T], looks: usize, rank: impl Fn(&T) -> Option<u8>) -> Option<u32> {
        let mut best = Best { looks, found: None };
        for level in 0..2 {
            let now = self.current >> (level * BITS);
            // The slot of now comes last and is nearly empty: left out.
            let mut ahead = self.filled[level as usize].rotate_right(now % SLOTS) & !1;
            while ahead != 0 {
                let slot = level * SLOTS + (now + ahead.trailing_zeros()) % SLOTS;
                ahead &= ahead - 1;
                let mut index = self.slots[slot as usize];
                while index != NONE {
                    let record = &records[index as usize];
                    if best.is_over(index, rank(record)) {
                        return best.index();
                    }
                    index = record.wheel_next().load(Relaxed);
                }
            }
        }
        best.index()
    }

    /// The same among the `looks` records that come next on a round through all slots but those of the last level: each time it goes on
    /// where it ended, so that every record is looked at in its turn, however many others would end sooner.
    pub fn sweep<T: Timed>(&mut self, records: &[T], looks: usize, rank: impl Fn(&T) -> Option<u8>) -> Option<u32> {
        let mut best = Best { looks, found: None };
        let (mut slot, mut index) = self.hand;
        loop {
            if index == NONE {
                let Some(next) = self.filled_after(slot) else { break };
                (slot, index) = (next, self.slots[next as usize]);
            }
            let record = &records[index as usize];
            let over = best.is_over(index, rank(record));
            index = record.wheel_next().load(Relaxed);
            if over {
                break;
            }
        }
        self.hand = (slot, index);
        best.index()
    }

    /// The slot of the first two levels that comes after another, of those with a record in them; in the end that one itself.
    fn filled_after(&self, slot: u32) -> Option<u32> {
        let filled = u128::from(self.filled[1]) << SLOTS | u128::from(self.filled[0]);
        let after = filled.rotate_right(slot + 1);
        (after != 0).then(|| (slot + 1 + after.trailing_zeros()) % (2 * SLOTS))
    }
}

/// The best of a number of records.
struct Best {
    /// How many may be looked at yet.
    looks: usize,
    found: Option<(u8, u32)>,
}

impl Best {
    /// One more was looked at; whether it was the last.
    #[inline]
    fn is_over(&mut self, index: u32, rank: Option<u8>) -> bool {
        if let Some(rank) = rank
            && self.found.is_none_or(|(best, _)| rank < best)
        {
            self.found = Some((rank, index));
        }
        self.looks = self.looks.saturating_sub(1);
        self.looks == 0 || rank == Some(0)
    }

    fn index(&self) -> Option<u32> {
        self.found.map(|(_, index)| index)
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

    /// Whoever is behind any number of others has its turn, wherever records come from and go to meanwhile.
    #[test]
    fn a_sweep_comes_round_to_every_record() {
        const LOOKS: usize = 10;
        let records = records(700);
        let mut wheel = Wheel::new(1000);
        for index in 0..700 {
            wheel.insert(&records, index, 1001 + index * 7 % 4000);
        }
        let (mut seen, mut left) = (vec![0; 700], vec![true; 700]);
        for round in 0..70 {
            let looked = std::cell::RefCell::new(Vec::new());
            let at = |record: &Record| {
                let index = records.iter().position(|other| std::ptr::eq(other, record)).unwrap();
                looked.borrow_mut().push(index);
                None
            };
            assert_eq!(wheel.sweep(&records, LOOKS, at), None);
            let looked = looked.into_inner();
            assert_eq!(looked.len(), LOOKS);
            looked.iter().for_each(|index| seen[*index] += 1);
            // Some go, among them the one at which it would go on.
            for index in [looked[0], (wheel.hand.1 as usize).min(699)] {
                if std::mem::take(&mut left[index]) {
                    seen[index] = 1;
                    wheel.remove(&records, index as u32);
                }
            }
            if round == 30 {
                (0..700).filter(|index| left[*index] && seen[*index] > 0).take(50).for_each(|index| {
                    wheel.remove(&records, index as u32);
                    wheel.insert(&records, index as u32, 1001 + index as u32);
                });
            }
        }
        assert!(seen.iter().all(|seen| *seen > 0), "{seen:?}");
    }

    #[test]
    fn the_lowest_rank_is_taken_and_of_equals_the_first() {
        let records = records(6);
        let mut wheel = Wheel::new(1000);
        (0..6).for_each(|index| wheel.insert(&records, index, 1010 + index));
        let rank = |ranks: [Option<u8>; 6]| {
            let records = &records;
            move |record: &Record| ranks[records.iter().position(|other| std::ptr::eq(other, record)).unwrap()]
        };
        let ranks = rank([None, Some(3), Some(2), Some(2), None, Some(0)]);
        assert_eq!(wheel.soonest(&records, 6, ranks), Some(5));
        assert_eq!(wheel.soonest(&records, 5, ranks), Some(2));
        assert_eq!(wheel.soonest(&records, 2, ranks), Some(1));
        assert_eq!(wheel.soonest(&records, 1, ranks), None);
        assert_eq!([(); 4].map(|()| wheel.sweep(&records, 3, ranks)), [Some(2), Some(5), Some(2), Some(5)]);
        (0..6).for_each(|index| wheel.remove(&records, index));
        assert_eq!((wheel.soonest(&records, 6, ranks), wheel.sweep(&records, 6, ranks)), (None, None));
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
