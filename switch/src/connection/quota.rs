//! How many connections may count for each port, their payer (SEMANTICS CT11): a limit, and within it a guaranteed share.
//!
//! What ports have beyond their guaranteed share comes out of one pool, which is the table less all guarantees. So the
//! connections of one port, however many, never take another's share. A part of the pool ([`RESERVE`]) is held back for the
//! shares of ports that come later, which the table would else be too full for until connections end.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use crate::limits::PORTS_MAX;
use crate::quota::{Refusal, Shared};

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
    /// Connections beyond guarantees.
    shared: Shared,
}

impl Quotas {
    pub(super) fn new() -> Self {
        Self {
            ports: (0..PORTS_MAX).map(|_| Port::default()).collect(),
            guaranteed: AtomicU32::new(0),
            shared: Shared::default(),
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
        let beyond = |port: &Port| port.used.load(Relaxed).saturating_sub(guaranteed);
        let used = self.ports.iter().map(beyond).sum();
        self.shared.set(used, capacity - reserved - capacity / RESERVE);
    }

    /// One more for a port, within its limits.
    #[inline]
    pub(super) fn take(&self, port: u32) -> Result<(), Refusal> {
        let port = self.port(port);
        self.shared.take(&port.used, port.max.load(Relaxed), &self.guaranteed)
    }

    /// One more for a port, whatever the limits: the connection is there already.
    pub(super) fn take_anyway(&self, port: u32) {
        self.shared.take_anyway(&self.port(port).used, &self.guaranteed);
    }

    /// One less.
    #[inline]
    pub(super) fn give_back(&self, port: u32) {
        self.shared.give_back(&self.port(port).used, &self.guaranteed);
    }

    /// Whether a port has no more than its guaranteed share.
    pub(super) fn is_within_share(&self, port: u32) -> bool {
        self.used(port) <= self.guaranteed.load(Relaxed)
    }

    /// Connections that count for a port.
    pub(super) fn used(&self, port: u32) -> u32 {
        self.port(port).used.load(Relaxed)
    }

    #[inline]
    fn port(&self, port: u32) -> &Port {
        &self.ports[port as usize % PORTS_MAX]
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
}
