//! One mapping, and one lease of a block, as they lie in the shared file: lines of atomics. Zero is a free record.
//!
//! A mapping's fields are written under the lock of its shard; they are read without it only to find out which shard that is, or
//! for lists, which check the generation before and after.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};

use hostweave_switch::prefetch::prefetch;
use hostweave_switch::shared::plain_struct;
use hostweave_switch::wheel::{NONE, Timed};

use crate::model::{Block, Entry, Inside, Lease, MappingRef, NO_PORT, Outside};

const FREE: u32 = 0;
const VALID: u32 = 1;
/// A lease that has ended: history.
const ENDED: u32 = 2;

/// The mapping serves one remote only.
pub(crate) const BOUND: u8 = 1;

/// State of a mapping that is private to this run.
/// It stands in the wheel.
pub(crate) const TIMED: u32 = 1;
/// It was only used towards the L4 port of DNS.
pub(crate) const DNS: u32 = 2;
/// It is not in the chain of its inside endpoint any more: it only lives for the connections that hold it.
pub(crate) const DETACHED: u32 = 4;

/// All its remotes are noted, so that its L4 port may be shared.
pub(crate) const TRACKED: u32 = 8;

/// From this bit on: connections that hold it and were begun by others ([`Record::unasked`]).
const UNASKED_SHIFT: u32 = 8;

/// As many as can be counted.
const UNASKED_MAX: u32 = u32::MAX >> UNASKED_SHIFT;

/// It was held when an earlier run ended: `until` is for the case that none of its connections is taken over.
pub(crate) const RESTORED: u32 = 16;

/// A mapping: two cache lines, the first of which is what a lookup by inside endpoint needs.
#[derive(Default)]
#[repr(C, align(128))]
pub(crate) struct Record {
    inside: [AtomicU64; 2],
    uid: [AtomicU64; 2],
    /// L4 ports inside, outside, of the remote; protocol; flags.
    ends: AtomicU64,
    vni: AtomicU32,
    /// Next in the chain of its inside bucket, or of the list of free records.
    pub(crate) next: AtomicU32,
    /// Connections that hold it.
    pub(crate) holds: AtomicU32,
    /// [`TIMED`] and so on.
    pub(crate) state: AtomicU32,
    /// Index of its workload.
    pub(crate) workload: AtomicU32,
    /// Index of the lease of its block.
    pub(crate) lease: AtomicU32,
    outside: [AtomicU64; 2],
    remote: [AtomicU64; 2],
    generation: AtomicU32,
    status: AtomicU32,
    /// Second until which it lives when nobody holds it. 0: nobody ever gave a hold back.
    pub(crate) until: AtomicU32,
    created: AtomicU32,
    /// Next of those that share its outside endpoint.
    pub(crate) next_outside: AtomicU32,
    wheel_next: AtomicU32,
    wheel_prev: AtomicU32,
    /// Remotes noted so far.
    pub(crate) remotes: AtomicU32,
}

const _: () = assert!(size_of::<Record>() == 128);

plain_struct!(Record {
    inside,
    uid,
    ends,
    vni,
    next,
    holds,
    state,
    workload,
    lease,
    outside,
    remote,
    generation,
    status,
    until,
    created,
    next_outside,
    wheel_next,
    wheel_prev,
    remotes,
});

impl Timed for Record {
    #[inline]
    fn wheel_next(&self) -> &AtomicU32 {
        &self.wheel_next
    }

    #[inline]
    fn wheel_prev(&self) -> &AtomicU32 {
        &self.wheel_prev
    }
}

/// The values that a mapping begins with.
pub(crate) struct NewRecord<'a> {
    pub(crate) inside: &'a Inside,
    pub(crate) outside: Outside,
    /// The remote that it is bound to.
    pub(crate) remote: Option<Outside>,
    pub(crate) workload: u32,
    pub(crate) lease: u32,
}

#[inline]
pub(crate) fn load(words: &[AtomicU64; 2]) -> u128 {
    u128::from(words[0].load(Relaxed)) << 64 | u128::from(words[1].load(Relaxed))
}

#[inline]
pub(crate) fn store(words: &[AtomicU64; 2], value: u128) {
    words[0].store((value >> 64) as u64, Relaxed);
    words[1].store(value as u64, Relaxed);
}

#[inline]
fn pack(inside: u16, outside: u16, remote: u16, proto: u8, flags: u8) -> u64 {
    u64::from(inside) << 48
        | u64::from(outside) << 32
        | u64::from(remote) << 16
        | u64::from(proto) << 8
        | u64::from(flags)
}

impl Record {
    #[inline]
    pub(crate) fn is_valid(&self) -> bool {
        self.status.load(Acquire) == VALID
    }

    /// Asks for its lines.
    #[inline]
    pub(crate) fn prefetch(&self) {
        prefetch(&self.inside);
        prefetch(&self.outside);
    }

    #[inline]
    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(Acquire)
    }

    #[inline]
    pub(crate) fn proto(&self) -> u8 {
        (self.ends.load(Relaxed) >> 8) as u8
    }

    #[inline]
    pub(crate) fn flags(&self) -> u8 {
        self.ends.load(Relaxed) as u8
    }

    #[inline]
    pub(crate) fn is_bound(&self) -> bool {
        self.flags() & BOUND != 0
    }

    /// Whether its inside endpoint is this one, whoever's.
    #[inline]
    pub(crate) fn is_of(&self, inside: &Inside) -> bool {
        let ends = self.ends.load(Relaxed);
        (ends >> 48) as u16 == inside.l4
            && (ends >> 8) as u8 == inside.proto
            && self.vni.load(Relaxed) == inside.vni
            && load(&self.inside) == inside.address
    }

    #[inline]
    pub(crate) fn uid(&self) -> u128 {
        load(&self.uid)
    }

    /// The inside endpoint, of no slot.
    #[inline]
    pub(crate) fn inside(&self) -> Inside {
        let ends = self.ends.load(Relaxed);
        Inside {
            port: NO_PORT,
            uid: self.uid(),
            vni: self.vni.load(Relaxed),
            address: load(&self.inside),
            l4: (ends >> 48) as u16,
            proto: (ends >> 8) as u8,
        }
    }

    #[inline]
    pub(crate) fn outside(&self) -> Outside {
        Outside { address: load(&self.outside), l4: (self.ends.load(Relaxed) >> 32) as u16 }
    }

    /// The remote that it is bound to.
    #[inline]
    pub(crate) fn remote(&self) -> Option<Outside> {
        let ends = self.ends.load(Relaxed);
        (ends as u8 & BOUND != 0).then(|| Outside { address: load(&self.remote), l4: (ends >> 16) as u16 })
    }

    /// Sets and clears bits of its state. Under the lock of its shard.
    #[inline]
    pub(crate) fn set_state(&self, set: u32, clear: u32) {
        self.state.store(self.state.load(Relaxed) & !clear | set, Relaxed);
    }

    #[inline]
    pub(crate) fn has(&self, state: u32) -> bool {
        self.state.load(Relaxed) & state != 0
    }

    /// More holds than can be counted.
    #[inline]
    pub(crate) fn holds_too_many(&self) -> bool {
        self.holds.load(Relaxed) >= u32::MAX / 2 || self.unasked() == UNASKED_MAX
    }

    /// Of its holds, those of connections that others began, by its filter: they do not keep it open for more of them.
    #[inline]
    pub(crate) fn unasked(&self) -> u32 {
        self.state.load(Relaxed) >> UNASKED_SHIFT
    }

    /// One more of them, or one less. Under the lock of its shard.
    pub(crate) fn count_unasked(&self, more: i32) {
        let unasked = self.unasked().saturating_add_signed(more).min(UNASKED_MAX);
        self.set_state(unasked << UNASKED_SHIFT, UNASKED_MAX << UNASKED_SHIFT);
    }

    #[inline]
    pub(crate) fn reference(&self, index: u32) -> MappingRef {
        MappingRef { index, generation: self.generation() }
    }

    /// Becomes a mapping with one hold. Under the lock of its shard, while it is free.
    #[inline]
    pub(crate) fn fill(&self, new: &NewRecord, state: u32, now: u32) {
        let remote = new.remote.unwrap_or(Outside { address: 0, l4: 0 });
        let flags = if new.remote.is_some() { BOUND } else { 0 };
        store(&self.inside, new.inside.address);
        store(&self.uid, new.inside.uid);
        store(&self.outside, new.outside.address);
        store(&self.remote, remote.address);
        self.ends.store(pack(new.inside.l4, new.outside.l4, remote.l4, new.inside.proto, flags), Relaxed);
        self.vni.store(new.inside.vni, Relaxed);
        self.holds.store(1, Relaxed);
        self.state.store(state, Relaxed);
        self.workload.store(new.workload, Relaxed);
        self.lease.store(new.lease, Relaxed);
        self.until.store(0, Relaxed);
        self.created.store(now, Relaxed);
        self.next_outside.store(NONE, Relaxed);
        self.remotes.store(0, Relaxed);
        self.status.store(VALID, Release);
    }

    /// Stops being a mapping. Under the lock of its shard.
    #[inline]
    pub(crate) fn clear(&self) {
        self.status.store(FREE, Release);
        self.generation.store(self.generation.load(Relaxed).wrapping_add(1), Release);
    }

    /// Its values, of no slot; `None` when it is free or changes its owner right now.
    pub(crate) fn entry(&self, index: u32) -> Option<Entry> {
        let generation = self.generation();
        if !self.is_valid() {
            return None;
        }
        let entry = Entry {
            mapping: MappingRef { index, generation },
            inside: self.inside(),
            outside: self.outside(),
            remote: self.remote(),
            holds: self.holds.load(Relaxed),
            created: self.created.load(Relaxed),
            until: self.until.load(Relaxed),
        };
        (self.generation() == generation).then_some(entry)
    }
}

/// A lease: who has a block, or had it.
#[derive(Default)]
#[repr(C, align(64))]
pub(crate) struct LeaseRecord {
    uid: [AtomicU64; 2],
    address: [AtomicU64; 2],
    /// First L4 port in the upper half, number of them in the lower.
    ports: AtomicU32,
    since: AtomicU32,
    until: AtomicU32,
    status: AtomicU32,
    spare: [AtomicU64; 2],
}

plain_struct!(LeaseRecord { uid, address, ports, since, until, status, spare });

impl LeaseRecord {
    /// Begins. Under the lock of the blocks.
    pub(crate) fn fill(&self, block: &Block, now: u32) {
        self.status.store(FREE, Release);
        store(&self.uid, block.uid);
        store(&self.address, block.address);
        self.ports.store(u32::from(block.first) << 16 | u32::from(block.size), Relaxed);
        self.since.store(now, Relaxed);
        self.until.store(0, Relaxed);
        self.status.store(VALID, Release);
    }

    /// Becomes history. Under the lock of the blocks.
    pub(crate) fn end(&self, now: u32) {
        self.until.store(now, Relaxed);
        self.status.store(ENDED, Release);
    }

    /// Is forgotten.
    pub(crate) fn clear(&self) {
        self.status.store(FREE, Release);
    }

    #[inline]
    pub(crate) fn uid(&self) -> u128 {
        load(&self.uid)
    }

    pub(crate) fn since(&self) -> u32 {
        self.since.load(Relaxed)
    }

    pub(crate) fn block(&self) -> Block {
        let ports = self.ports.load(Relaxed);
        Block { uid: self.uid(), address: load(&self.address), first: (ports >> 16) as u16, size: ports as u16 }
    }

    /// Its values; `None` when it is free, or says neither that it is active nor that it has ended.
    pub(crate) fn lease(&self) -> Option<Lease> {
        let until = match self.status.load(Acquire) {
            VALID => None,
            ENDED => Some(self.until.load(Relaxed)),
            _ => return None,
        };
        Some(Lease { block: self.block(), since: self.since.load(Relaxed), until, mappings: 0 })
    }
}
