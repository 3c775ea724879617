//! One workload in one family: its blocks, and what it has used of its limits.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};

use hostweave_switch::quota::{Refusal, Shared};

use crate::model::{BLOCKS_MAX, CLASSES, NO_PORT, Refused};
use crate::record::{load, store};

/// A workload. Blocks are changed under the lock of the blocks, and read without it: a reader may miss one that has just
/// come or see one that has just gone, and finds out when it claims it.
pub(crate) struct Workload {
    uid: [AtomicU64; 2],
    /// Slot of its port, [`NO_PORT`] when no pool serves it.
    pub(crate) port: AtomicU32,
    /// Outside address of its blocks, plus one; before it has any, of those that it had.
    address: AtomicU32,
    count: AtomicU32,
    blocks: [AtomicU32; BLOCKS_MAX as usize],
    /// By class: place in `blocks` where a port was found last.
    hint: [AtomicU32; CLASSES],
    /// Blocks that it keeps while it has mappings.
    pub(crate) keep: AtomicU32,
    /// Mappings that it has.
    pub(crate) mappings: AtomicU32,
    /// Mappings that it may have, and those of them that it may have whatever others do.
    pub(crate) max: AtomicU32,
    pub(crate) guaranteed: AtomicU32,
    /// A second, and mappings that were made in it.
    rate: AtomicU64,
    /// Second since which no pool serves it; 0 while one does.
    pub(crate) gone: AtomicU32,
}

impl Workload {
    pub(crate) fn new(uid: u128) -> Self {
        let this = Self {
            uid: Default::default(),
            port: AtomicU32::new(NO_PORT),
            address: AtomicU32::new(0),
            count: AtomicU32::new(0),
            blocks: [const { AtomicU32::new(0) }; BLOCKS_MAX as usize],
            hint: Default::default(),
            keep: AtomicU32::new(0),
            mappings: AtomicU32::new(0),
            max: AtomicU32::new(0),
            guaranteed: AtomicU32::new(0),
            rate: AtomicU64::new(0),
            gone: AtomicU32::new(0),
        };
        this.rename(uid);
        this
    }

    /// Becomes another workload. Nothing uses it, and it has no blocks.
    pub(crate) fn rename(&self, uid: u128) {
        store(&self.uid, uid);
        self.address.store(0, Relaxed);
        self.rate.store(0, Relaxed);
    }

    /// Whether a pool serves it.
    pub(crate) fn is_served(&self) -> bool {
        self.port.load(Relaxed) != NO_PORT
    }

    #[inline]
    pub(crate) fn uid(&self) -> u128 {
        load(&self.uid)
    }

    /// See [`Workload::address`](struct@Workload).
    #[inline]
    pub(crate) fn address(&self) -> Option<u32> {
        self.address.load(Relaxed).checked_sub(1)
    }

    pub(crate) fn set_address(&self, address: u32) {
        self.address.store(address + 1, Relaxed);
    }

    /// How many blocks it has.
    #[inline]
    pub(crate) fn count(&self) -> u32 {
        self.count.load(Acquire).min(u32::from(BLOCKS_MAX))
    }

    /// A block's lease, by its place.
    #[inline]
    pub(crate) fn lease(&self, at: u32) -> Option<u32> {
        self.blocks.get(at as usize).map(|lease| lease.load(Relaxed))
    }

    /// Leases of its blocks.
    pub(crate) fn leases(&self) -> impl Iterator<Item = u32> {
        self.blocks[..self.count() as usize].iter().map(|lease| lease.load(Relaxed))
    }

    #[inline]
    pub(crate) fn hint(&self, class: usize) -> u32 {
        self.hint.get(class).map_or(0, |hint| hint.load(Relaxed))
    }

    #[inline]
    pub(crate) fn set_hint(&self, class: usize, at: u32) {
        if let Some(hint) = self.hint.get(class).filter(|hint| hint.load(Relaxed) != at) {
            hint.store(at, Relaxed);
        }
    }

    /// It has one more block. Under the lock of the blocks. False: it has as many as it can.
    pub(crate) fn add(&self, lease: u32) -> bool {
        let count = self.count.load(Relaxed);
        let Some(block) = self.blocks.get(count as usize) else { return false };
        block.store(lease, Relaxed);
        self.count.store(count + 1, Release);
        true
    }

    /// It has one block less. Under the lock of the blocks.
    pub(crate) fn remove(&self, lease: u32) {
        let count = self.count();
        let Some(at) = self.leases().position(|own| own == lease) else { return };
        let last = self.blocks[count as usize - 1].load(Relaxed);
        self.blocks[at].store(last, Relaxed);
        self.count.store(count - 1, Release);
    }

    /// One more mapping, within its limits (SEMANTICS NA25).
    ///
    /// # Errors
    /// `PortLimit`, or `Full` when it has its share and the rest of the table is taken.
    #[inline]
    pub(crate) fn begin(&self, shared: &Shared, rate_max: Option<u32>, now: u32) -> Result<(), Refused> {
        // A flood comes here for every packet: what is over is told without a locked operation.
        if rate_max.is_some_and(|max| made_in(self.rate.load(Relaxed), now).1 >= max) {
            return Err(Refused::PortLimit);
        }
        shared.take(&self.mappings, self.max.load(Relaxed), &self.guaranteed).map_err(|refusal| match refusal {
            Refusal::Quota => Refused::PortLimit,
            Refusal::Shared => Refused::Full,
        })?;
        if rate_max.is_some_and(|max| !self.count_one(max, now)) {
            self.end(shared);
            return Err(Refused::PortLimit);
        }
        Ok(())
    }

    /// Counts a mapping that is made in this second, unless there are `max` by now.
    #[inline]
    fn count_one(&self, max: u32, now: u32) -> bool {
        let one_more = |rate: u64| {
            let (second, made) = made_in(rate, now);
            (made < max).then(|| u64::from(second) << 32 | u64::from(made + 1))
        };
        self.rate.fetch_update(Relaxed, Relaxed, one_more).is_ok()
    }

    /// One mapping less.
    #[inline]
    pub(crate) fn end(&self, shared: &Shared) {
        shared.give_back(&self.mappings, &self.guaranteed);
    }
}

/// The second that counts, and mappings that were made in it. Whose clock is behind another worker's counts for that one's second.
#[inline]
fn made_in(rate: u64, now: u32) -> (u32, u32) {
    let second = (rate >> 32) as u32;
    if second >= now { (second, rate as u32) } else { (now, 0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::share::share;

    /// What workers make at once is counted, one by one, also where their clocks are a second apart.
    #[test]
    fn na25_the_rate_is_that_of_all_workers_together() {
        const RATE: u32 = 20_000;
        for apart in [0, 1] {
            let workload = Workload::new(7);
            workload.port.store(0, Relaxed);
            workload.max.store(1_000_000, Relaxed);
            let shared = Shared::default();
            share(&shared, 1_000_000, &[&workload]);
            let make = |now| (0..RATE).filter(|_| workload.begin(&shared, Some(RATE), now).is_ok()).count();
            let made: usize = std::thread::scope(|scope| {
                let workers: Vec<_> = (0..4).map(|i| scope.spawn(move || make(5 + i % 2 * apart))).collect();
                workers.into_iter().map(|worker| worker.join().unwrap()).sum()
            });
            let seconds = 1 + apart as usize;
            assert!((RATE as usize..=RATE as usize * seconds).contains(&made), "{made}");
            assert_eq!(workload.mappings.load(Relaxed) as usize, made, "what was refused gave back what it took");
        }
    }

    #[test]
    fn blocks_come_and_go() {
        let workload = Workload::new(7);
        (10..74).for_each(|lease| assert!(workload.add(lease)));
        assert!(!workload.add(99));
        workload.remove(10);
        workload.remove(1000);
        assert_eq!((workload.count(), workload.lease(0)), (63, Some(73)));
        (11..74).for_each(|lease| workload.remove(lease));
        assert_eq!(workload.leases().count(), 0);
    }

    #[test]
    fn na25_limits_of_state_and_rate() {
        let workload = Workload::new(7);
        workload.port.store(0, Relaxed);
        workload.max.store(3, Relaxed);
        let shared = Shared::default();
        share(&shared, 6, &[&workload]);
        let begin = |rate, now| workload.begin(&shared, rate, now);
        assert!((0..3).all(|_| begin(None, 0).is_ok()));
        assert_eq!(begin(None, 0), Err(Refused::PortLimit));
        workload.end(&shared);
        assert_eq!(begin(Some(1), 5), Ok(()));
        workload.end(&shared);
        assert_eq!(begin(Some(1), 5), Err(Refused::PortLimit), "one in second 5");
        assert_eq!(begin(Some(1), 6), Ok(()));
        assert_eq!(workload.mappings.load(Relaxed), 3);
    }
}
