//! Leases of blocks: who gets one, when it goes back, who had it (RFC 7422, RFC 6888 REQ-8).
//!
//! A block that has had no mapping for [`HOLD_S`] seconds goes back, and is free for anybody at once: the time for which it must
//! not serve another workload is spent while it is still the first one's, who may use it again at any moment. A workload
//! with mappings keeps as many blocks as its pool says that it gets at once.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Mutex, MutexGuard, OnceLock};

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use hostweave_switch::limits::PORTS_MAX;

use crate::address::Address;
use crate::model::*;
use crate::random::Random;
use crate::table::{Nat, lock};
use crate::workload::Workload as Tenant;

/// Workloads in both families; as many again may still be on their way out.
const TENANTS_MAX: usize = 4 * PORTS_MAX;
/// Events that wait for somebody to take them.
const EVENTS_MAX: usize = 4096;
/// Marks [`LeaseState::users`] of a block that nobody has.
const CLOSED: u32 = 1 << 31;

/// What this run knows of a lease, by its index.
pub(crate) struct LeaseState {
    /// Mappings in the block. With [`CLOSED`], nobody has it.
    users: AtomicU32,
    /// L4 ports taken, by class.
    pub(crate) used: [AtomicU32; CLASSES],
    /// Second in which a mapping last ended.
    idle: AtomicU32,
    /// It waits in `Blocks::idle`.
    queued: AtomicBool,
    /// Index of the workload.
    pub(crate) workload: AtomicU32,
    /// Index of the outside address.
    pub(crate) address: AtomicU32,
    /// First L4 port in the upper half, number of them in the lower.
    ports: AtomicU32,
}

/// Addresses, workloads and leases, by index.
pub(crate) struct Registry {
    addresses: Box<[OnceLock<Box<Address>>]>,
    tenants: Box<[OnceLock<Box<Tenant>>]>,
    leases: Box<[LeaseState]>,
    blocks: Mutex<Blocks>,
}

/// What the lock of the blocks guards.
pub(crate) struct Blocks {
    pub(crate) by_address: HashMap<u128, u32, RandomState>,
    pub(crate) by_workload: HashMap<(u128, usize), u32, RandomState>,
    addresses: u32,
    tenants: u32,
    /// Leases from here on were never used.
    pub(crate) fresh: u32,
    /// Those that have ended, oldest first: they are used again when there is no other.
    pub(crate) ended: VecDeque<u32>,
    /// Leases whose block had become empty, each with the second from which to count.
    idle: VecDeque<(u32, u32)>,
    /// Blocks that workloads have.
    active: u32,
    events: VecDeque<NatEvent>,
    events_lost: u64,
    /// Some were lost, and nobody was told.
    untold: bool,
    random: Random,
}

impl Registry {
    pub(crate) fn new(leases: u32, seed: Option<u64>) -> Self {
        let state = || LeaseState {
            users: AtomicU32::new(CLOSED),
            used: Default::default(),
            idle: AtomicU32::new(0),
            queued: AtomicBool::new(false),
            workload: AtomicU32::new(u32::MAX),
            address: AtomicU32::new(u32::MAX),
            ports: AtomicU32::new(0),
        };
        let blocks = Blocks {
            by_address: HashMap::default(),
            by_workload: HashMap::default(),
            addresses: 0,
            tenants: 0,
            fresh: 0,
            ended: VecDeque::with_capacity(leases as usize),
            idle: VecDeque::with_capacity(leases as usize),
            active: 0,
            events: VecDeque::with_capacity(EVENTS_MAX),
            events_lost: 0,
            untold: false,
            random: Random::new(seed, u64::MAX),
        };
        Self {
            addresses: (0..ADDRESSES_MAX).map(|_| OnceLock::new()).collect(),
            tenants: (0..TENANTS_MAX).map(|_| OnceLock::new()).collect(),
            leases: (0..leases).map(|_| state()).collect(),
            blocks: Mutex::new(blocks),
        }
    }

    #[inline]
    pub(crate) fn address(&self, at: u32) -> Option<&Address> {
        self.addresses.get(at as usize)?.get().map(Box::as_ref)
    }

    #[inline]
    pub(crate) fn workload(&self, at: u32) -> Option<&Tenant> {
        self.tenants.get(at as usize)?.get().map(Box::as_ref)
    }

    #[inline]
    pub(crate) fn lease(&self, at: u32) -> Option<&LeaseState> {
        self.leases.get(at as usize)
    }

    pub(crate) fn blocks(&self) -> MutexGuard<'_, Blocks> {
        lock(&self.blocks)
    }

    /// All addresses that there are or were.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = (u32, &Address)> {
        (0..).zip(&self.addresses).map_while(|(at, address)| Some((at, address.get()?.as_ref())))
    }

    pub(crate) fn workloads(&self) -> impl Iterator<Item = (u32, &Tenant)> {
        (0..).zip(&self.tenants).map_while(|(at, tenant)| Some((at, tenant.get()?.as_ref())))
    }
}

impl LeaseState {
    /// First L4 port and number of them.
    #[inline]
    pub(crate) fn ports(&self) -> (u16, u16) {
        let ports = self.ports.load(Relaxed);
        ((ports >> 16) as u16, ports as u16)
    }

    /// Mappings in it.
    pub(crate) fn users(&self) -> u32 {
        self.users.load(Relaxed) & !CLOSED
    }
}

impl Blocks {
    /// What happened is kept until somebody takes it.
    pub(crate) fn say(&mut self, event: NatEvent) {
        if self.events.len() < EVENTS_MAX {
            self.events.push_back(event);
        } else {
            self.events_lost += 1;
            self.untold = true;
        }
    }

    /// The event that has waited longest.
    pub(crate) fn take_event(&mut self) -> Option<NatEvent> {
        self.events.pop_front().or_else(|| std::mem::take(&mut self.untold).then_some(NatEvent::Lost))
    }
}

impl Nat {
    /// Index of an outside address, which is there from now on. `Err`: no room for another (`None`), or no memory.
    pub(crate) fn register_address(&self, address: u128) -> Result<u32, Option<io::Error>> {
        let registry = &self.registry;
        let mut blocks = registry.blocks();
        let found = blocks.by_address.get(&address).copied();
        let at = match found {
            Some(at) => at,
            None if (blocks.addresses as usize) < ADDRESSES_MAX => {
                let at = blocks.addresses;
                let made = Box::new(Address::new(address).map_err(Some)?);
                let _ = registry.addresses[at as usize].set(made);
                blocks.addresses += 1;
                at
            }
            None => {
                let unused = |(_, other): &(u32, &Address)| {
                    let gone = other.gone.load(Relaxed);
                    gone != 0 && other.leased.load(Relaxed) == 0
                };
                // One that has been gone longest: no worker knows it any more.
                let longest = registry.addresses().filter(unused).min_by_key(|(_, other)| other.gone.load(Relaxed));
                let (at, other) = longest.ok_or(None)?;
                blocks.by_address.remove(&other.address());
                other.rename(address);
                at
            }
        };
        blocks.by_address.insert(address, at);
        if let Some(address) = registry.address(at) {
            address.gone.store(0, Relaxed);
        }
        Ok(at)
    }

    /// Index of an outside address, if it is there.
    pub(crate) fn known_address(&self, address: u128) -> Option<u32> {
        self.registry.blocks().by_address.get(&address).copied()
    }

    /// Index of a workload in a family, if it is there.
    pub(crate) fn known_workload(&self, uid: u128, family: usize) -> Option<u32> {
        self.registry.blocks().by_workload.get(&(uid, family)).copied()
    }

    /// Index of a workload in a family, which is there from now on; `None`: no room for another.
    pub(crate) fn register_workload(&self, workload: &Workload, family: usize, pool: &PoolSpec) -> Option<u32> {
        let at = self.tenant(workload.uid, family)?;
        let tenant = self.registry.workload(at)?;
        tenant.port.store(workload.port, Relaxed);
        tenant.keep.store((*pool.blocks.start()).into(), Relaxed);
        tenant.max.store(pool.limits.mappings(self.capacity()), Relaxed);
        tenant.gone.store(0, Relaxed);
        Some(at)
    }

    /// Index of a workload, which is there from now on.
    pub(crate) fn tenant(&self, uid: u128, family: usize) -> Option<u32> {
        let registry = &self.registry;
        let mut blocks = registry.blocks();
        if let Some(&at) = blocks.by_workload.get(&(uid, family)) {
            return Some(at);
        }
        let at = if (blocks.tenants as usize) < TENANTS_MAX {
            let at = blocks.tenants;
            let _ = registry.tenants[at as usize].set(Box::new(Tenant::new(uid)));
            blocks.tenants += 1;
            at
        } else {
            let unused = |(_, other): &(u32, &Tenant)| {
                other.gone.load(Relaxed) != 0 && other.count() == 0 && other.mappings.load(Relaxed) == 0
            };
            let longest = registry.workloads().filter(unused).min_by_key(|(_, other)| other.gone.load(Relaxed));
            let (at, other) = longest?;
            blocks.by_workload.retain(|_, own| *own != at);
            other.rename(uid);
            at
        };
        blocks.by_workload.insert((uid, family), at);
        Some(at)
    }

    /// Workloads and addresses of no pool have had their time, as soon as nothing of them is left.
    pub(crate) fn retire(
        &self,
        addresses: &HashMap<u128, u32, RandomState>,
        served: &[[crate::pools::Served; 2]],
        now: u32,
    ) {
        let mut serves = vec![false; TENANTS_MAX];
        for workload in served.iter().flatten() {
            if let Some(serves) = serves.get_mut(workload.workload as usize) {
                *serves = true;
            }
        }
        for (at, tenant) in self.registry.workloads().filter(|(at, _)| !serves[*at as usize]) {
            debug_assert!((at as usize) < TENANTS_MAX);
            tenant.port.store(NO_PORT, Relaxed);
            tenant.keep.store(0, Relaxed);
            let _ = tenant.gone.compare_exchange(0, now.max(1), Relaxed, Relaxed);
        }
        for (_, address) in self.registry.addresses().filter(|(_, address)| !addresses.contains_key(&address.address()))
        {
            let _ = address.gone.compare_exchange(0, now.max(1), Relaxed, Relaxed);
        }
    }

    /// Gives a workload a block of an address. The blocks are locked.
    pub(crate) fn add_block(&self, blocks: &mut Blocks, workload: u32, address: u32, size: u16, now: u32) -> bool {
        let registry = &self.registry;
        let (Some(tenant), Some(outside)) = (registry.workload(workload), registry.address(address)) else {
            return false;
        };
        if tenant.count() >= BLOCKS_MAX.into() {
            return false;
        }
        let random = blocks.random.draw();
        let Some(granule) = outside.find_room(usize::from(size / crate::address::GRANULE), random) else {
            return false;
        };
        let Some(lease) = self.take_lease(blocks) else { return false };
        let first = granule as u16 * crate::address::GRANULE;
        let block = Block { uid: tenant.uid(), address: outside.address(), first, size };
        if let Some(record) = self.lease_records().get(lease as usize) {
            record.fill(&block, now);
        }
        self.open_block(blocks, lease, &block, workload, address, now);
        blocks.say(NatEvent::Allocated { block, at: now });
        true
    }

    /// A lease is in force. The blocks are locked.
    pub(crate) fn open_block(
        &self,
        blocks: &mut Blocks,
        lease: u32,
        block: &Block,
        workload: u32,
        address: u32,
        now: u32,
    ) {
        let registry = &self.registry;
        let (Some(tenant), Some(outside)) = (registry.workload(workload), registry.address(address)) else { return };
        let Some(state) = registry.lease(lease) else { return };
        state.used.iter().for_each(|used| used.store(0, Relaxed));
        state.workload.store(workload, Relaxed);
        state.address.store(address, Relaxed);
        state.ports.store(u32::from(block.first) << 16 | u32::from(block.size), Relaxed);
        state.idle.store(now, Relaxed);
        // Whoever comes for the previous owner's sake may be counted for a moment: the count stays right.
        state.users.fetch_and(!CLOSED, SeqCst);
        outside.set_owner(block.first, block.size, Some(lease));
        tenant.add(lease);
        blocks.active += 1;
        // It goes back if nothing ever lies in it.
        state.queued.store(true, SeqCst);
        blocks.idle.push_back((lease, now));
    }

    /// A lease record that is free, else the one that ended first.
    fn take_lease(&self, blocks: &mut Blocks) -> Option<u32> {
        if (blocks.fresh as usize) < self.registry.leases.len() {
            blocks.fresh += 1;
            return Some(blocks.fresh - 1);
        }
        blocks.ended.pop_front()
    }

    /// One more mapping in a block of a workload at an address; false if the block is somebody else's by now. Once entered, it stays
    /// what it is.
    #[inline]
    pub(crate) fn enter(&self, lease: u32, workload: u32, address: u32, now: u32) -> bool {
        self.registry.lease(lease).is_some_and(|state| self.enter_at(state, lease, workload, address, now))
    }

    /// The same of a lease whose state is at hand.
    #[inline]
    pub(crate) fn enter_at(&self, state: &LeaseState, lease: u32, workload: u32, address: u32, now: u32) -> bool {
        if state.users.fetch_add(1, SeqCst) & CLOSED != 0 {
            state.users.fetch_sub(1, SeqCst);
            return false;
        }
        let right = state.workload.load(Acquire) == workload && state.address.load(Relaxed) == address;
        if !right {
            self.leave(lease, now);
        }
        right
    }

    /// A mapping in a block ended.
    pub(crate) fn leave(&self, lease: u32, now: u32) {
        let Some(state) = self.registry.lease(lease) else { return };
        // Before it is counted out: nobody sees an empty block with an old time.
        state.idle.fetch_max(now, SeqCst);
        if state.users.fetch_sub(1, SeqCst) == 1 && !state.queued.swap(true, SeqCst) {
            self.registry.blocks().idle.push_back((lease, now));
        }
    }

    /// Ends leases of blocks that have been empty for long enough. Returns how many were looked at, at most `budget`.
    pub(crate) fn reclaim(&self, now: u32, budget: usize) -> usize {
        let mut blocks = self.registry.blocks();
        for looked in 0..budget {
            let due = blocks.idle.front().is_some_and(|(_, since)| since.saturating_add(HOLD_S) <= now);
            let Some((lease, _)) = due.then(|| blocks.idle.pop_front()).flatten() else { return looked };
            self.reclaim_one(&mut blocks, lease, now);
        }
        budget
    }

    fn reclaim_one(&self, blocks: &mut Blocks, lease: u32, now: u32) {
        let registry = &self.registry;
        let (Some(state), Some(record)) = (registry.lease(lease), self.lease_records().get(lease as usize)) else {
            return;
        };
        state.queued.store(false, SeqCst);
        if state.users.load(SeqCst) != 0 {
            return;
        }
        let (Some(tenant), Some(address)) =
            (registry.workload(state.workload.load(Relaxed)), registry.address(state.address.load(Relaxed)))
        else {
            return;
        };
        let recent = state.idle.load(SeqCst).saturating_add(HOLD_S) > now;
        let kept = tenant.mappings.load(Relaxed) > 0 && tenant.count() <= tenant.keep.load(Relaxed);
        let ended = !recent && !kept && state.users.compare_exchange(0, CLOSED, SeqCst, SeqCst).is_ok();
        if !ended {
            // Still empty for too short a time, or in use again and empty once more: someone may have queued it meanwhile.
            if !state.queued.swap(true, SeqCst) {
                let since = if kept { now } else { state.idle.load(SeqCst) };
                blocks.idle.push_back((lease, since));
            }
            return;
        }
        let (first, size) = state.ports();
        let block = Block { uid: tenant.uid(), address: address.address(), first, size };
        tenant.remove(lease);
        address.set_owner(first, size, None);
        record.end(now);
        blocks.ended.push_back(lease);
        blocks.active -= 1;
        blocks.say(NatEvent::Released { block, since: record.since(), at: now });
    }

    /// Blocks in use, and events lost.
    pub(crate) fn block_counts(&self) -> (u64, u64) {
        let blocks = self.registry.blocks();
        (blocks.active.into(), blocks.events_lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_takes_events_hears_once_that_some_were_lost() {
        let registry = Registry::new(1, Some(1));
        let mut blocks = registry.blocks();
        let block = Block { uid: 1, address: 2, first: 1024, size: 64 };
        for round in 1..=2 {
            (0..EVENTS_MAX).for_each(|_| blocks.say(NatEvent::Allocated { block, at: 3 }));
            (0..5).for_each(|_| blocks.say(NatEvent::Released { block, since: 3, at: 4 }));
            let told: Vec<_> = std::iter::from_fn(|| blocks.take_event()).collect();
            assert!(told[..EVENTS_MAX].iter().all(|event| *event == NatEvent::Allocated { block, at: 3 }));
            assert_eq!((&told[EVENTS_MAX..], blocks.events_lost), (&[NatEvent::Lost][..], 5 * round));
        }
    }
}
