//! How many connections each port may have begun (SEMANTICS CT11): a limit, and within it a guaranteed share.
//!
//! What ports have beyond their guaranteed share comes out of one pool, which is the table less all guarantees. So the
//! connections of one port, however many, never take another's share. A part of the pool ([`RESERVE`]) is held back for the
//! shares of ports that come later, which the table would else be too full for until connections end.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use crate::limits::PORTS_MAX;

/// One in so many records is held back for ports that come later.
const RESERVE: u32 = 32;

/// Count and limit of one port.
#[derive(Default)]
struct Port {
    used: AtomicU32,
    max: AtomicU32,
}

/// Counts of all ports.
pub(super) struct Quotas {
    ports: Box<[Port]>,
    /// Connections that each port may have whatever others do.
    guaranteed: AtomicU32,
    /// Connections beyond guarantees: how many there are, and may be.
    shared_used: AtomicU32,
    shared_max: AtomicU32,
}

/// Why a port may not begin another connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    /// It has as many as it may.
    Quota,
    /// It has its share, and the rest of the table is taken.
    Shared,
}

impl Quotas {
    pub(super) fn new() -> Self {
        Self {
            ports: (0..PORTS_MAX).map(|_| Port::default()).collect(),
            guaranteed: AtomicU32::new(0),
            shared_used: AtomicU32::new(0),
            shared_max: AtomicU32::new(0),
        }
    }

    /// Shares `capacity` records out: half is guaranteed in equal parts to the ports given with their limits, to none more
    /// than its limit. Of the other half [`RESERVE`] is nobody's.
    pub(super) fn share(&self, capacity: u32, limits: impl Iterator<Item = (u32, u32)>) {
        let mut maxima = Vec::new();
        for (port, max) in limits {
            self.ports[port as usize % PORTS_MAX].max.store(max, Relaxed);
            maxima.push(max);
        }
        let guaranteed = capacity / 2 / u32::try_from(maxima.len()).unwrap_or(u32::MAX).max(1);
        let reserved: u32 = maxima.iter().map(|max| guaranteed.min(*max)).sum();
        self.guaranteed.store(guaranteed, Relaxed);
        self.shared_max.store(capacity - reserved - capacity / RESERVE, Relaxed);
        let beyond = |port: &Port| port.used.load(Relaxed).saturating_sub(guaranteed);
        self.shared_used.store(self.ports.iter().map(beyond).sum(), Relaxed);
    }

    /// One more for a port, within its limits.
    #[inline]
    pub(super) fn take(&self, port: u32) -> Result<(), Refusal> {
        let quota = &self.ports[port as usize % PORTS_MAX];
        let max = quota.max.load(Relaxed);
        let mut before = quota.used.load(Relaxed);
        // Never more for a moment than there may be: whoever gives one back meanwhile would take it for one beyond the share. A flood
        // comes here for every packet: what is full is told without a locked operation.
        loop {
            if before >= max {
                return Err(Refusal::Quota);
            }
            let beyond = before >= self.guaranteed.load(Relaxed);
            if beyond && !self.take_shared() {
                return Err(Refusal::Shared);
            }
            match quota.used.compare_exchange_weak(before, before + 1, Relaxed, Relaxed) {
                Ok(_) => return Ok(()),
                Err(now) => before = now,
            }
            if beyond {
                self.give_back_shared();
            }
        }
    }

    /// One more beyond guarantees, if there is room.
    fn take_shared(&self) -> bool {
        let max = self.shared_max.load(Relaxed);
        self.shared_used.fetch_update(Relaxed, Relaxed, |used| (used < max).then_some(used + 1)).is_ok()
    }

    fn give_back_shared(&self) {
        // `share` may have counted anew in between: never below zero.
        let _ = self.shared_used.fetch_update(Relaxed, Relaxed, |used| Some(used.saturating_sub(1)));
    }

    /// One more for a port, whatever the limits: the connection is there already.
    pub(super) fn take_anyway(&self, port: u32) {
        if self.ports[port as usize % PORTS_MAX].used.fetch_add(1, Relaxed) >= self.guaranteed.load(Relaxed) {
            self.shared_used.fetch_add(1, Relaxed);
        }
    }

    /// One less.
    #[inline]
    pub(super) fn give_back(&self, port: u32) {
        let before = self.ports[port as usize % PORTS_MAX].used.fetch_sub(1, Relaxed);
        if before > self.guaranteed.load(Relaxed) {
            self.give_back_shared();
        }
    }

    /// Whether a port has no more than its guaranteed share.
    pub(super) fn is_within_share(&self, port: u32) -> bool {
        self.used(port) <= self.guaranteed.load(Relaxed)
    }

    /// Connections that a port has begun.
    pub(super) fn used(&self, port: u32) -> u32 {
        self.ports[port as usize % PORTS_MAX].used.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ct11_a_greedy_port_leaves_every_other_its_share() {
        let quotas = Quotas::new();
        quotas.share(1000, [(0, 10_000), (1, 10_000), (2, 100)].into_iter());
        let greedy = std::iter::repeat_with(|| quotas.take(0)).take_while(Result::is_ok).count();
        assert_eq!(greedy, 1000 - 166 - 100 - 1000 / 32);
        assert_eq!(quotas.take(0), Err(Refusal::Shared));
        assert_eq!((0..166).filter(|_| quotas.take(1).is_ok()).count(), 166);
        assert_eq!(quotas.take(1), Err(Refusal::Shared));
        assert_eq!(std::iter::repeat_with(|| quotas.take(2)).take_while(Result::is_ok).count(), 100);
        assert_eq!(quotas.take(2), Err(Refusal::Quota));
        quotas.give_back(0);
        assert_eq!(quotas.take(1), Ok(()));
        assert_eq!(quotas.take(0), Err(Refusal::Shared));
        (0..167).for_each(|_| quotas.give_back(1));
        assert_eq!(quotas.used(1), 0);
        assert_eq!(quotas.take(0), Ok(()));
    }

    /// What three workers do at once at a limit leaves every count as if one had done it after the other.
    #[test]
    fn ct11_counts_are_exact_whatever_happens_at_once() {
        const BEYOND: u32 = 10;
        // At its own limit, which is its share; and at its share, when the rest of the table is taken.
        for (max, others) in [(16, 16 + BEYOND), (64, 46)] {
            let quotas = Quotas::new();
            quotas.share(64, [(0, max), (1, 64)].into_iter());
            assert!((0..others).all(|_| quotas.take(1).is_ok()));
            assert!((0..15).all(|_| quotas.take(0).is_ok()));
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        for _ in 0..3_000_000 {
                            if quotas.take(0).is_ok() {
                                quotas.give_back(0);
                            }
                        }
                    });
                }
            });
            assert_eq!((quotas.used(0), quotas.used(1)), (15, others));
            assert_eq!(quotas.shared_used.load(Relaxed), others - 16, "beyond shares");
        }
    }
}
