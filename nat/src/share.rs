//! Who may have how much of the table (RFC 6888 REQ-4; SEMANTICS NA25): half of it is guaranteed to workloads in equal parts, and
//! what they have beyond comes out of the rest. So the mappings of one, however many, never take another's share.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use crate::workload::Workload;

/// Mappings beyond guaranteed shares.
#[derive(Default)]
pub(crate) struct Shared {
    used: AtomicU32,
    max: AtomicU32,
}

impl Shared {
    /// Shares `capacity` mappings out anew: half of them in equal parts to the workloads that pools serve, to none more than its limit.
    pub(crate) fn share(&self, capacity: u32, workloads: &[&Workload]) {
        let served = workloads.iter().filter(|workload| workload.is_served()).count();
        let part = capacity / 2 / u32::try_from(served).unwrap_or(u32::MAX).max(1);
        let (mut reserved, mut used) = (0_u32, 0_u32);
        for workload in workloads {
            let guaranteed = if workload.is_served() { part.min(workload.max.load(Relaxed)) } else { 0 };
            workload.guaranteed.store(guaranteed, Relaxed);
            reserved += guaranteed;
            used = used.saturating_add(workload.mappings.load(Relaxed).saturating_sub(guaranteed));
        }
        self.max.store(capacity.saturating_sub(reserved), Relaxed);
        self.used.store(used, Relaxed);
    }

    /// One more mapping beyond a share; false: there is no room.
    #[inline]
    pub(crate) fn take(&self) -> bool {
        // A flood comes here for every packet: what is full is told without a locked operation.
        if self.used.load(Relaxed) >= self.max.load(Relaxed) {
            return false;
        }
        if self.used.fetch_add(1, Relaxed) >= self.max.load(Relaxed) {
            self.give_back();
            return false;
        }
        true
    }

    /// One less. `share` may have counted anew in between: never below zero.
    #[inline]
    pub(crate) fn give_back(&self) {
        let _ = self.used.fetch_update(Relaxed, Relaxed, |used| Some(used.saturating_sub(1)));
    }
}
