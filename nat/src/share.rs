//! Who may have how much of the table (RFC 6888 REQ-4; SEMANTICS NA25): half of it is guaranteed to workloads in equal parts, and
//! what they have beyond comes out of the rest. So the mappings of one, however many, never take another's share.

use std::sync::atomic::Ordering::Relaxed;

use hostweave_switch::quota::Shared;

use crate::table::{Nat, lock};
use crate::workload::Workload;

impl Nat {
    /// Shares the table out to the workloads that pools serve now.
    pub(crate) fn share_out(&self) {
        let _sharing = lock(&self.sharing);
        let workloads: Vec<_> = self.registry.workloads().map(|(_, workload)| workload).collect();
        share(&self.shared, self.available(), &workloads);
    }
}

/// Shares `capacity` mappings out anew: half of them in equal parts to the workloads that pools serve, to none more than its limit.
pub(crate) fn share(shared: &Shared, capacity: u32, workloads: &[&Workload]) {
    let served = workloads.iter().filter(|workload| workload.is_served()).count();
    let part = capacity / 2 / u32::try_from(served).unwrap_or(u32::MAX).max(1);
    let (mut reserved, mut used) = (0_u32, 0_u32);
    for workload in workloads {
        let guaranteed = if workload.is_served() { part.min(workload.max.load(Relaxed)) } else { 0 };
        workload.guaranteed.store(guaranteed, Relaxed);
        reserved += guaranteed;
        used = used.saturating_add(workload.mappings.load(Relaxed).saturating_sub(guaranteed));
    }
    shared.set(used, capacity.saturating_sub(reserved));
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::sync::atomic::Ordering::SeqCst;

    use super::*;
    use crate::table::Options;
    use crate::{Timers, V4};

    /// The file grows while pools are compiled: what was shared out last is what there is.
    #[test]
    fn the_last_share_is_that_of_all_that_is_available() {
        let folder = tempfile::tempdir().unwrap();
        let options = Options { capacity: 1 << 12, boot: 7, now: 1, timers: Timers::default(), seed: Some(1) };
        let nat = Nat::open(&folder.path().join("nat"), &options).unwrap();
        // Workloads, so that it takes time to share.
        (0..500).for_each(|uid| assert!(nat.tenant(uid, V4).is_some()));
        for round in 0..1000 {
            let grown = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !grown.load(SeqCst) {
                        nat.share_out();
                    }
                });
                (1..=8).for_each(|step| nat.make_available(step * nat.capacity() / 8));
                grown.store(true, SeqCst);
            });
            assert_eq!(nat.shared.max(), nat.capacity(), "round {round}");
        }
    }
}
