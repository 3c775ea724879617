//! Limits of what many have of one table: each may have so many, of which some are guaranteed to it. What all have beyond their
//! guaranteed shares comes out of the rest, so that none, however many it has, takes another's share.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

/// Why one may have no more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// It has as many as it may.
    Quota,
    /// It has its share, and the rest of the table is taken.
    Shared,
}

/// What all have together beyond their shares, and may have.
#[derive(Default)]
pub struct Shared {
    used: AtomicU32,
    max: AtomicU32,
}

impl Shared {
    /// Sets what was counted anew. Whoever takes one or gives one back between the count and this is missed, or counted twice: one for each
    /// worker that is about to, until the next time, as nothing of the old count is kept.
    pub fn set(&self, used: u32, max: u32) {
        self.max.store(max, Relaxed);
        self.used.store(used, Relaxed);
    }

    /// How many there are beyond shares.
    pub fn used(&self) -> u32 {
        self.used.load(Relaxed)
    }

    /// How many there may be.
    pub fn max(&self) -> u32 {
        self.max.load(Relaxed)
    }

    /// One more for one who has `used`, within its limits.
    ///
    /// # Errors
    /// Says which limit it has reached.
    #[inline]
    pub fn take(&self, used: &AtomicU32, max: u32, guaranteed: &AtomicU32) -> Result<(), Refusal> {
        let mut before = used.load(Relaxed);
        // Never more for a moment than there may be: whoever gives one back meanwhile would take it for one beyond the share. A flood
        // comes here for every packet: what is full is told without a locked operation.
        loop {
            if before >= max {
                return Err(Refusal::Quota);
            }
            let beyond = before >= guaranteed.load(Relaxed);
            if beyond && !self.take_beyond() {
                return Err(Refusal::Shared);
            }
            match used.compare_exchange_weak(before, before + 1, Relaxed, Relaxed) {
                Ok(_) => return Ok(()),
                Err(now) => before = now,
            }
            if beyond {
                self.give_back_beyond();
            }
        }
    }

    /// One more for one who has `used`, whatever the limits: it is there already.
    pub fn take_anyway(&self, used: &AtomicU32, guaranteed: &AtomicU32) {
        if used.fetch_add(1, Relaxed) >= guaranteed.load(Relaxed) {
            self.used.fetch_add(1, Relaxed);
        }
    }

    /// One less for one who has `used`.
    #[inline]
    pub fn give_back(&self, used: &AtomicU32, guaranteed: &AtomicU32) {
        if used.fetch_sub(1, Relaxed) > guaranteed.load(Relaxed) {
            self.give_back_beyond();
        }
    }

    #[inline]
    fn take_beyond(&self) -> bool {
        let max = self.max.load(Relaxed);
        self.used.fetch_update(Relaxed, Relaxed, |used| (used < max).then_some(used + 1)).is_ok()
    }

    #[inline]
    fn give_back_beyond(&self) {
        // `set` may have counted anew in between: never below zero.
        let _ = self.used.fetch_update(Relaxed, Relaxed, |used| Some(used.saturating_sub(1)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What three workers do at once at a limit leaves every count as if one had done it after the other.
    #[test]
    fn counts_are_exact_whatever_happens_at_once() {
        const SHARE: u32 = 16;
        const BEYOND: u32 = 10;
        // At its own limit, which is its share; and at its share, when the rest is taken.
        for (max, shared_max) in [(SHARE, BEYOND + 1), (64, BEYOND)] {
            let (used, guaranteed, shared) = (AtomicU32::new(SHARE - 1), AtomicU32::new(SHARE), Shared::default());
            shared.set(BEYOND, shared_max);
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        for _ in 0..3_000_000 {
                            if shared.take(&used, max, &guaranteed).is_ok() {
                                shared.give_back(&used, &guaranteed);
                            }
                        }
                    });
                }
            });
            assert_eq!((used.load(Relaxed), shared.used()), (SHARE - 1, BEYOND));
        }
    }

    #[test]
    fn what_was_counted_anew_in_between_is_never_below_zero() {
        let (used, guaranteed, shared) = (AtomicU32::new(5), AtomicU32::new(2), Shared::default());
        shared.set(0, 10);
        shared.give_back(&used, &guaranteed);
        assert_eq!(shared.used(), 0);
        shared.take_anyway(&used, &guaranteed);
        assert_eq!((used.load(Relaxed), shared.used()), (5, 1));
    }
}
