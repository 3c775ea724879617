//! Mappings that were refused, counted by pool and reason.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::model::{PoolSpec, Refused, RefusedCounts};
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
