//! Mappings that were refused, counted by pool and reason.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::model::{NatEvent, PoolSpec, Refused, RefusedCounts};
use crate::pools::Pool;
use crate::table::{Nat, lock};

/// How many mappings were refused.
#[derive(Default)]
pub(crate) struct Refusals {
    exhausted: AtomicU64,
    limited: AtomicU64,
    full: AtomicU64,
}

impl Refusals {
    fn count(&self, refused: &Refused) {
        let counter = match refused {
            Refused::Exhausted { .. } => &self.exhausted,
            Refused::PortLimit => &self.limited,
            Refused::Full => &self.full,
            Refused::NoPool | Refused::Unsupported(_) => return,
        };
        counter.fetch_add(1, Relaxed);
    }

    pub(crate) fn counts(&self) -> RefusedCounts {
        let [exhausted, limited, full] =
            [&self.exhausted, &self.limited, &self.full].map(|counter| counter.load(Relaxed));
        RefusedCounts { exhausted, limited, full }
    }
}

impl Nat {
    /// Counts a mapping that was refused.
    #[cold]
    pub(crate) fn refused(&self, pool: &Pool, refused: &Refused) {
        pool.refused.count(refused);
        self.counts.refused.count(refused);
    }

    /// Says, at most once a second, that there is no room for a workload (SEMANTICS NA40). Who has most is found out by whoever tells it: a
    /// worker has no time to look at all.
    pub(crate) fn say_full(&self, uid: u128, now: u32) {
        if self.counts.full_said.swap(now.wrapping_add(1), Relaxed) != now.wrapping_add(1) {
            self.registry.blocks().say(NatEvent::Full { uid, biggest: 0, mappings: 0, at: now });
        }
    }

    /// The workload that has most mappings, and how many.
    pub(crate) fn biggest_of_all(&self) -> (u128, u32) {
        let mut mappings = BTreeMap::<u128, u32>::new();
        for (_, workload) in self.registry.workloads() {
            *mappings.entry(workload.uid()).or_default() += workload.mappings.load(Relaxed);
        }
        mappings.into_iter().max_by_key(|(_, mappings)| *mappings).unwrap_or_default()
    }

    /// What was refused by each pool that there is, by its name.
    pub fn refused_by_pool(&self) -> Vec<(String, RefusedCounts)> {
        lock(&self.refusals).iter().map(|(name, refusals)| (name.clone(), refusals.counts())).collect()
    }

    /// The counters of the pool of a name.
    pub(crate) fn refusals_of(&self, name: &str) -> Arc<Refusals> {
        Arc::clone(lock(&self.refusals).entry(name.to_owned()).or_default())
    }

    /// Forgets those of pools that are gone.
    pub(crate) fn keep_refusals(&self, pools: &[PoolSpec]) {
        lock(&self.refusals).retain(|name, _| pools.iter().any(|pool| pool.name == *name));
    }
}

/// Counters by name of the pool.
pub(crate) type ByPool = BTreeMap<String, Arc<Refusals>>;
