//! The shared file: its header, and what a new run takes over from it.
//!
//! ```text
//! 0        magic with layout, capacity, boot, records ever used
//! LEASES   leases of blocks, in force and ended
//! RECORDS  mappings
//! ```
//!
//! A run that finds a file of the same layout, size and boot first looks at the leases: each must be of an address that a pool
//! has, well formed, and not overlap one that was taken over before. Then at the mappings: each must lie in a lease of its own
//! workload, where nobody else is. What does not fit is forgotten: the mapping ends, nobody else's traffic is touched.

use std::io;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};

use hostweave_switch::shared::{SharedFile, plain_struct};

use crate::model::*;
use crate::pools::Pools;
use crate::record::{BOUND, DETACHED, LeaseRecord, RESTORED, Record, TRACKED};
use crate::table::{Nat, Options};

/// "HWNAT" and a version of the layout that this file and `record.rs` describe.
const MAGIC: u64 = 0x4857_4e41_5400_0001;

pub(crate) const LEASES_AT: usize = 4096;

/// What control says of a mapping of an earlier run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claim {
    /// The port is there and still owns the inside address.
    Keep,
    /// Not any more.
    Forget,
}

/// What became of what an earlier run left.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Adopted {
    /// Mappings taken over.
    pub kept: u32,
    /// Mappings that were forgotten.
    pub forgotten: u32,
    /// Blocks taken over.
    pub blocks: u32,
}

#[repr(C)]
struct Header {
    /// Written last.
    magic: AtomicU64,
    capacity: AtomicU64,
    boot: [AtomicU64; 2],
    /// Mappings from here on were never used.
    used: AtomicU64,
}

plain_struct!(Header { magic, capacity, boot, used });

/// Leases that there is room for, beside a number of mappings.
pub(crate) fn leases_of(capacity: u32) -> u32 {
    (capacity / 4).clamp(1024, 1 << 18)
}

/// Where mappings begin.
pub(crate) fn records_at(capacity: u32) -> usize {
    LEASES_AT + leases_of(capacity) as usize * size_of::<LeaseRecord>()
}

/// Opens the file; one of another layout, size or boot is begun anew.
pub(crate) fn open_file(path: &Path, capacity: u32, options: &Options) -> io::Result<SharedFile> {
    let len = records_at(capacity) + capacity as usize * size_of::<Record>();
    let boot = [(options.boot >> 64) as u64, options.boot as u64];
    let (file, existed) = SharedFile::open(path, len)?;
    if existed {
        let header = header(&file);
        let same = header.magic.load(Acquire) == MAGIC
            && header.capacity.load(Relaxed) == u64::from(capacity)
            && header.boot.iter().zip(boot).all(|(word, boot)| word.load(Relaxed) == boot);
        if same {
            return Ok(file);
        }
        drop(file);
        std::fs::remove_file(path)?;
        return open_file(path, capacity, options);
    }
    let header = header(&file);
    header.capacity.store(u64::from(capacity), Relaxed);
    header.boot.iter().zip(boot).for_each(|(word, boot)| word.store(boot, Relaxed));
    header.magic.store(MAGIC, Release);
    Ok(file)
}

fn header(file: &SharedFile) -> &Header {
    &file.slice::<Header>(0, 1)[0]
}

impl Nat {
    /// Mappings from here on were never used.
    pub(crate) fn used_mark(&self) -> &AtomicU64 {
        &header(&self.file).used
    }

    /// Takes over what an earlier run left: blocks of addresses that `pools` have, and in them each mapping that `claim` keeps. Before any
    /// worker uses the table, once. Mappings are held by nobody until [`Nat::hold`].
    pub fn adopt(&self, pools: &Pools, now: u32, mut claim: impl FnMut(&Entry) -> Claim) -> Adopted {
        let mut adopted = Adopted { blocks: self.adopt_leases(pools, now), ..Adopted::default() };
        let used = self.ever_used().min(self.available());
        // Not looked for afterwards: one that is kept has a timer, and may be freed, and listed, by then.
        let mut free = Vec::new();
        for (index, record) in (0..used).zip(self.records()) {
            if record.is_valid() {
                let entry = record.entry(index);
                let kept = entry.and_then(|entry| self.adopt_mapping(pools, index, record, &entry, now, &mut claim));
                if kept.is_some() {
                    adopted.kept += 1;
                    continue;
                }
                record.clear();
                adopted.forgotten += 1;
            }
            free.push(index);
        }
        self.share_out();
        self.set_fresh(used);
        self.give_back_all(free.into_iter());
        adopted
    }

    fn adopt_leases(&self, pools: &Pools, now: u32) -> u32 {
        let mut kept = 0;
        let mut ended = Vec::new();
        let mut last = 0;
        for (index, record) in (0..).zip(self.lease_records()) {
            let Some(lease) = record.lease() else { continue };
            let block = lease.block;
            let times = lease.since <= now && lease.until.is_none_or(|until| until <= now && lease.since <= until);
            if !times || block.uid == 0 || !is_well_formed(&block) {
                record.clear();
                continue;
            }
            last = index + 1;
            if lease.until.is_none() && self.adopt_lease(pools, index, &block, now).is_some() {
                kept += 1;
                continue;
            }
            if lease.until.is_none() {
                record.end(now);
            }
            ended.push((lease.until.unwrap_or(now), index));
        }
        ended.sort_unstable();
        let mut blocks = self.registry.blocks();
        blocks.fresh = last;
        // Records between those that say something are free: they come first.
        let free = (0..last).filter(|index| self.lease_records()[*index as usize].lease().is_none());
        blocks.ended.extend(free.chain(ended.into_iter().map(|(_, index)| index)));
        kept
    }

    fn adopt_lease(&self, pools: &Pools, index: u32, block: &Block, now: u32) -> Option<()> {
        let (at, _) = pools.use_of(block.address)?;
        let address = self.registry.address(at).filter(|address| address.is_free(block.first, block.size))?;
        // Of a port that is gone it is kept from others until it has been empty for long enough.
        let workload = self.tenant(block.uid, family(block.address))?;
        let tenant = self.registry.workload(workload).filter(|tenant| tenant.count() < BLOCKS_MAX.into())?;
        let mut blocks = self.registry.blocks();
        self.open_block(&mut blocks, index, block, workload, at, now);
        if tenant.address().is_none() || !pools.use_at(at).is_some_and(|used| used.draining) {
            tenant.set_address(at);
        }
        debug_assert_eq!(address.lease_of(block.first), Some(index));
        Some(())
    }

    fn adopt_mapping(
        &self,
        pools: &Pools,
        index: u32,
        record: &Record,
        entry: &Entry,
        now: u32,
        claim: &mut impl FnMut(&Entry) -> Claim,
    ) -> Option<()> {
        let (inside, outside) = (&entry.inside, entry.outside);
        let class = Class::of(inside.proto)?;
        let (at, used) = pools.use_of(outside.address)?;
        let address = self.registry.address(at)?;
        let workload = self.registry.blocks().by_workload.get(&(inside.uid, family(outside.address))).copied()?;
        let tenant = self.registry.workload(workload)?;
        let lease = match class {
            Class::Addresses => tenant
                .leases()
                .find(|lease| self.registry.lease(*lease).is_some_and(|state| state.address.load(Relaxed) == at))?,
            _ => address.lease_of(outside.l4)?,
        };
        let sound = record.flags() & !BOUND == 0
            && family(inside.address) == family(outside.address)
            && entry.created <= now
            && (class != Class::Addresses || inside.l4 == 0 && outside.l4 == 0 && record.is_bound())
            && (!record.is_bound() || matches!(class, Class::Addresses | Class::Tcp));
        let known = Entry { inside: Inside { port: tenant.port.load(Relaxed), ..*inside }, ..*entry };
        if !sound || known.inside.port == NO_PORT || claim(&known) == Claim::Forget {
            return None;
        }
        let state = self.registry.lease(lease)?;
        if !self.enter(lease, workload, at, now) {
            return None;
        }
        let overload = pools.pool(used.pool).is_some_and(|pool| pool.overload);
        let tracked = if overload && class == Class::Tcp { TRACKED } else { 0 };
        let restored = if entry.until == 0 { RESTORED } else { 0 };
        record.adopt(workload, lease, tracked | restored);
        let longest = now.saturating_add(self.timer(record, End::Established));
        let until = match entry.until {
            0 => longest,
            until => until.min(longest),
        };
        record.until.store(until.max(1), Relaxed);
        let bucket = self.bucket(inside);
        let mut shard = self.lock(bucket);
        let Some(taken) = self.adopt_place(bucket, index, record, entry, class, at) else {
            drop(shard);
            self.leave(lease, now);
            return None;
        };
        // One that is shared is taken once, by whichever of them stands first in the file.
        if taken {
            state.used[class as usize].fetch_add(1, SeqCst);
        }
        tenant.mappings.fetch_add(1, Relaxed);
        self.link(bucket, index, record);
        self.set_timer(&mut shard, index);
        Some(())
    }

    /// Puts a mapping at its outside endpoint, if nobody is there, or only such as it may share it with. Returns whether it took an L4
    /// port that was free.
    fn adopt_place(
        &self,
        bucket: usize,
        index: u32,
        record: &Record,
        entry: &Entry,
        class: Class,
        at: u32,
    ) -> Option<bool> {
        let (inside, outside) = (&entry.inside, entry.outside);
        let remote = entry.remote.unwrap_or(Outside { address: 0, l4: 0 });
        // Of two for one inside endpoint and remote, the second is forgotten. One that serves all and one that is bound may be beside
        // each other.
        let twice = self.find(bucket, inside, remote).and_then(|other| self.record(other));
        if twice.is_some_and(|other| other.remote() == entry.remote) {
            return None;
        }
        let address = self.registry.address(at)?;
        if class == Class::Addresses {
            let bucket = self.address_bucket(outside.address, remote.address, inside.proto);
            if remote.l4 != 0 || self.find_addresses(bucket, inside.proto, outside.address, remote.address).is_some() {
                return None;
            }
            record.next_outside.store(self.address_heads[bucket].load(Relaxed), Relaxed);
            self.address_heads[bucket].store(index, Relaxed);
            return Some(false);
        }
        if address.take(class, outside.l4) {
            address.set_first(class, outside.l4, Some(index));
            return Some(true);
        }
        let head = address.first(class, outside.l4).and_then(|first| self.record(first))?;
        // Who shares an L4 port has the same block, hence the same workload.
        let mut next = address.first(class, outside.l4);
        let (mut all, mut clash) = (0, false);
        while let Some(other) = next.and_then(|next| self.record(next)) {
            all += u32::from(!other.is_bound());
            clash |= other.remote() == entry.remote;
            next = Some(other.next_outside.load(Relaxed));
        }
        if clash || !record.is_bound() && all > 0 {
            return None;
        }
        if record.is_bound() {
            record.next_outside.store(head.next_outside.load(Relaxed), Relaxed);
            head.next_outside.store(index, Relaxed);
        } else {
            record.next_outside.store(address.first(class, outside.l4)?, Relaxed);
            address.set_first(class, outside.l4, Some(index));
        }
        Some(false)
    }
}

impl Record {
    /// Begins to be of this run: what only another run knew is gone.
    fn adopt(&self, workload: u32, lease: u32, state: u32) {
        self.workload.store(workload, Relaxed);
        self.lease.store(lease, Relaxed);
        self.holds.store(0, Relaxed);
        self.set_state(state, u32::MAX);
        self.next_outside.store(u32::MAX, Relaxed);
        self.remotes.store(0, Relaxed);
        debug_assert!(!self.has(DETACHED));
    }
}

/// Whether it can be a block at all.
fn is_well_formed(block: &Block) -> bool {
    block.size.is_power_of_two()
        && (BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX).contains(&block.size)
        && block.first.is_multiple_of(block.size)
        && block.first >= FIRST_L4
}
