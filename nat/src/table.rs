//! The NAT as a whole: its file, its shards, and the life of a record in them.

use std::io;
use std::path::Path;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crossbeam_utils::CachePadded;
use hostweave_switch::flow::{FlowKey, HashKeys, Kind};
use hostweave_switch::prefetch::prefetch;
use hostweave_switch::quota::Shared;
use hostweave_switch::shared::{Anonymous, SharedFile};
use hostweave_switch::wheel::{NONE, Wheel};

use crate::adopt;
use crate::blocks::Registry;
use crate::model::*;
use crate::random::{Random, siphash13};
use crate::record::{DETACHED, DNS, LeaseRecord, Record, TIMED};
use crate::refusals::{ByPool, Refusals};

/// Mappings that a host may have room for.
pub const MAPPINGS_MAX: u32 = 1 << 22;

/// Most locks of the chains by inside endpoint.
const SHARDS_MAX: u32 = 64;
/// Locks of the chains by outside endpoint.
const OUTSIDE_LOCKS: usize = 64;
/// Chains of mappings without ports.
const ADDRESS_BUCKETS: usize = 4096;
/// Records that a shard keeps for its next mappings.
const KEEP: u32 = 64;

/// How a NAT is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// Mappings at a time, at most [`MAPPINGS_MAX`].
    pub capacity: u32,
    /// Names this boot: what another one left is not looked at.
    pub boot: u128,
    /// Seconds of the monotonic clock.
    pub now: u32,
    /// How long mappings live.
    pub timers: Timers,
    /// What L4 ports are drawn from; `None` asks the operating system.
    pub seed: Option<u64>,
}

/// Mappings and port blocks, shared by all workers.
pub struct Nat {
    pub(crate) file: SharedFile,
    capacity: u32,
    /// Where records begin in the file, in octets.
    records_at: usize,
    /// Records whose blocks are allocated.
    available: AtomicU32,
    timers: Timers,
    keys: HashKeys,
    /// Key of what is kept of remotes.
    remote_key: [u64; 2],
    /// First record of each chain by inside endpoint.
    heads: Anonymous<AtomicU32>,
    shards: Box<[CachePadded<Mutex<Shard>>]>,
    keep: usize,
    free: Mutex<Free>,
    /// First record of each chain of mappings without ports.
    pub(crate) address_heads: Box<[AtomicU32]>,
    outside_locks: Box<[CachePadded<Mutex<()>>]>,
    /// By mapping: the remotes that its inside has sent to. Memory is taken where pools need it.
    remotes: Anonymous<[AtomicU64; REMOTES_MAX]>,
    pub(crate) registry: Registry,
    /// Mappings beyond guaranteed shares.
    pub(crate) shared: Shared,
    /// Whoever shares out reads what there is to share under it: what one read is not written after what another read later.
    pub(crate) sharing: Mutex<()>,
    pub(crate) refusals: Mutex<ByPool>,
    pub(crate) counts: Counts,
}

/// What a shard's lock guards, besides its chains.
pub(crate) struct Shard {
    pub(crate) wheel: Wheel,
    /// Records at hand.
    pub(crate) free: Vec<u32>,
    pub(crate) random: Random,
}

/// Records that nobody has.
struct Free {
    /// First of a list linked through `next`.
    first: u32,
    /// Those from here on were never used.
    fresh: u32,
}

/// Counters.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) mappings: AtomicU64,
    pub(crate) refused: Refusals,
    /// Second in which it was said that the table is full, plus one.
    pub(crate) full_said: AtomicU32,
    pub(crate) overloaded: AtomicU64,
    pub(crate) filtered: AtomicU64,
}

impl Nat {
    /// Opens or makes the table at `path`. Nothing of what is in it counts until it is adopted. Order at a start: `open`, have the
    /// file's blocks allocated ([`Nat::file`], [`Nat::make_available`]), [`Pools::compile`](crate::Pools::compile), [`Nat::adopt`],
    /// [`Nat::hold`] for each adopted connection.
    ///
    /// # Errors
    /// The file cannot be made or mapped.
    pub fn open(path: &Path, options: &Options) -> io::Result<Self> {
        let capacity = options.capacity.clamp(1, MAPPINGS_MAX);
        let leases = adopt::leases_of(capacity);
        let file = adopt::open_file(path, capacity, options)?;
        let count = (capacity / 64).next_power_of_two().clamp(1, SHARDS_MAX);
        let keep = (capacity / count / 4).clamp(1, KEEP) as usize;
        let shard = |stream: u32| Shard {
            wheel: Wheel::new(options.now),
            free: Vec::with_capacity(2 * keep),
            random: Random::new(options.seed, u64::from(stream)),
        };
        let mut keys = Random::new(options.seed, u64::MAX - 1);
        let mut word = || (0..4).fold(0, |word, _| word << 16 | u64::from(keys.draw()));
        Ok(Self {
            file,
            capacity,
            records_at: adopt::records_at(capacity),
            available: AtomicU32::new(0),
            timers: options.timers,
            remote_key: [word(), word()],
            keys: HashKeys::new([word(), word(), word(), word()]),
            heads: Anonymous::filled((capacity as usize).next_power_of_two().max(count as usize), NONE)?,
            shards: (0..count).map(|stream| CachePadded::new(Mutex::new(shard(stream)))).collect(),
            keep,
            free: Mutex::new(Free { first: NONE, fresh: 0 }),
            address_heads: (0..ADDRESS_BUCKETS).map(|_| AtomicU32::new(NONE)).collect(),
            outside_locks: (0..OUTSIDE_LOCKS).map(|_| CachePadded::new(Mutex::new(()))).collect(),
            remotes: Anonymous::new(capacity as usize)?,
            registry: Registry::new(leases, options.seed),
            shared: Shared::default(),
            sharing: Mutex::default(),
            refusals: Mutex::default(),
            counts: Counts::default(),
        })
    }

    /// How long mappings live.
    pub fn timers(&self) -> &Timers {
        &self.timers
    }

    /// Most mappings at a time.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The file, to have its blocks allocated.
    pub fn file(&self) -> &SharedFile {
        &self.file
    }

    /// Octets of the file up to a number of mappings.
    pub fn file_len(&self, mappings: u32) -> usize {
        adopt::records_at(self.capacity) + mappings as usize * size_of::<Record>()
    }

    /// Mappings that were ever there at a time, in earlier runs too.
    pub fn ever_used(&self) -> u32 {
        self.used_mark().load(Relaxed).min(u64::from(self.capacity)) as u32
    }

    /// Blocks of the file are allocated up to this number of mappings: a full file system is an error of ours, not a signal.
    pub fn make_available(&self, mappings: u32) {
        self.available.store(mappings.min(self.capacity), Relaxed);
        self.share_out();
    }

    /// See [`Nat::make_available`].
    pub fn available(&self) -> u32 {
        self.available.load(Relaxed)
    }

    #[inline]
    pub(crate) fn records(&self) -> &[Record] {
        self.file.slice(self.records_at, self.capacity as usize)
    }

    pub(crate) fn lease_records(&self) -> &[LeaseRecord] {
        self.file.slice(adopt::LEASES_AT, adopt::leases_of(self.capacity) as usize)
    }

    #[inline]
    pub(crate) fn record(&self, index: u32) -> Option<&Record> {
        self.records().get(index as usize)
    }

    /// Chain of an inside endpoint.
    #[inline]
    pub(crate) fn bucket(&self, inside: &Inside) -> usize {
        let key = FlowKey::new(inside.address, 0, inside.l4, 0, inside.proto, Kind::Ports);
        let hash = self.keys.hash(&key, inside.vni);
        (hash ^ hash >> 23) as usize & (self.heads.len() - 1)
    }

    /// Asks for the head of the chain of the inside endpoint of a connection that may leave, and says which chain that is.
    #[inline]
    pub fn ask(&self, inside: &Inside) -> usize {
        let bucket = self.bucket(inside);
        prefetch(&self.heads[bucket]);
        bucket
    }

    /// Asks for the first mapping of a chain whose head was asked for.
    #[inline]
    pub fn ask_chain(&self, bucket: usize) {
        let head = self.heads.get(bucket).map_or(NONE, |head| head.load(Relaxed));
        if let Some(record) = self.record(head) {
            record.prefetch();
        }
    }

    /// Chain of a mapping without ports.
    #[inline]
    pub(crate) fn address_bucket(&self, outside: u128, remote: u128, proto: u8) -> usize {
        let key = FlowKey::new(outside, remote, 0, 0, proto, Kind::Addresses);
        let hash = self.keys.hash(&key, 0);
        (hash ^ hash >> 23) as usize & (ADDRESS_BUCKETS - 1)
    }

    #[inline]
    pub(crate) fn lock(&self, bucket: usize) -> MutexGuard<'_, Shard> {
        lock(&self.shards[bucket & (self.shards.len() - 1)])
    }

    pub(crate) fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Lock of chains by outside endpoint; `at` is a lease or the chain of a mapping without ports.
    #[inline]
    pub(crate) fn lock_outside(&self, at: usize) -> MutexGuard<'_, ()> {
        lock(&self.outside_locks[at % OUTSIDE_LOCKS])
    }

    /// The mapping of an inside endpoint that serves a remote: one that is bound to it, else one that serves all. Its shard is locked.
    #[inline]
    pub(crate) fn find(&self, bucket: usize, inside: &Inside, remote: Outside) -> Option<u32> {
        let records = self.records();
        let mut found = None;
        let mut index = self.heads[bucket].load(Relaxed);
        while let Some(record) = records.get(index as usize) {
            if record.is_of(inside) {
                match record.remote() {
                    None => found = Some(index),
                    Some(bound) if bound == remote => return Some(index),
                    Some(_) => {}
                }
            }
            index = record.next.load(Relaxed);
        }
        found
    }

    /// Any mapping of an inside endpoint, one that serves all remotes before others. Its shard is locked.
    pub(crate) fn find_any(&self, bucket: usize, inside: &Inside) -> Option<u32> {
        let records = self.records();
        let (mut found, mut index) = (None, self.heads[bucket].load(Relaxed));
        while let Some(record) = records.get(index as usize) {
            if record.is_of(inside) {
                found = Some(index);
                if !record.is_bound() {
                    break;
                }
            }
            index = record.next.load(Relaxed);
        }
        found
    }

    /// Whether an inside endpoint has as many mappings that are bound to a remote as it may. Its shard is locked.
    pub(crate) fn is_crowded(&self, inside: &Inside) -> bool {
        let (mut bound, mut index) = (0, self.heads[self.bucket(inside)].load(Relaxed));
        while let Some(record) = self.record(index) {
            bound += usize::from(record.is_bound() && record.is_of(inside));
            index = record.next.load(Relaxed);
        }
        bound >= BOUND_MAX
    }

    /// Puts a filled record into the chain of its inside endpoint. Its shard is locked.
    #[inline]
    pub(crate) fn link(&self, bucket: usize, index: u32, record: &Record) {
        record.next.store(self.heads[bucket].load(Relaxed), Relaxed);
        self.heads[bucket].store(index, Relaxed);
        self.counts.mappings.fetch_add(1, Relaxed);
    }

    /// Takes a record out of that chain. Its shard is locked.
    pub(crate) fn unlink(&self, bucket: usize, index: u32) {
        let records = self.records();
        let Some(record) = records.get(index as usize) else { return };
        let mut at = &self.heads[bucket];
        loop {
            let next = at.load(Relaxed);
            if next == index {
                return at.store(record.next.load(Relaxed), Relaxed);
            }
            match records.get(next as usize) {
                Some(other) => at = &other.next,
                None => return debug_assert!(false, "a record is in its chain"),
            }
        }
    }

    /// The mapping of an inside endpoint must not be used any more: it goes, or lives on for those who hold it. Its shard is locked.
    pub(crate) fn detach(&self, shard: &mut Shard, bucket: usize, index: u32, now: u32) {
        let Some(record) = self.record(index) else { return };
        if record.holds.load(Relaxed) == 0 {
            return self.free(shard, bucket, index, now);
        }
        self.unlink(bucket, index);
        record.set_state(DETACHED, 0);
    }

    /// Ends a mapping that nobody holds. Its shard is locked.
    pub(crate) fn free(&self, shard: &mut Shard, bucket: usize, index: u32, now: u32) {
        let Some(record) = self.record(index) else { return };
        if !record.has(DETACHED) {
            self.unlink(bucket, index);
        }
        if record.has(TIMED) {
            shard.wheel.remove(self.records(), index);
        }
        // First nobody finds it by its outside endpoint, then it is nobody's, then its L4 port is free.
        let place = self.leave_outside(index, record);
        record.clear();
        self.free_place(place, record.lease.load(Relaxed), now);
        if let Some(workload) = self.registry.workload(record.workload.load(Relaxed)) {
            workload.end(&self.shared);
        }
        self.counts.mappings.fetch_sub(1, Relaxed);
        self.give_back(shard, index);
    }

    /// Puts a mapping that nobody holds where its end will be found. Its shard is locked.
    pub(crate) fn set_timer(&self, shard: &mut Shard, index: u32) {
        let Some(record) = self.record(index) else { return };
        let until = record.until.load(Relaxed);
        if record.has(TIMED) {
            shard.wheel.remove(self.records(), index);
        }
        shard.wheel.insert(self.records(), index, until);
        record.set_state(TIMED, 0);
    }

    /// Seconds that a mapping outlives the last packet of a connection that ended.
    pub(crate) fn timer(&self, record: &Record, how: End) -> u32 {
        match (Class::of(record.proto()), how) {
            (Some(Class::Udp), _) if record.has(DNS) => self.timers.dns,
            (Some(Class::Udp), _) => self.timers.udp,
            (Some(Class::Tcp), End::Established) => self.timers.tcp_established,
            (Some(Class::Tcp), _) => self.timers.tcp_transitory,
            (Some(Class::Icmp), _) => self.timers.icmp,
            _ => self.timers.other,
        }
    }

    /// A record for a new mapping, out of those that the shard has at hand.
    #[inline]
    pub(crate) fn take_record(&self, shard: &mut Shard) -> Option<(u32, &Record)> {
        if shard.free.is_empty() {
            self.refill(shard);
        }
        let index = shard.free.pop()?;
        Some((index, self.record(index)?))
    }

    /// Gives one back.
    pub(crate) fn give_back(&self, shard: &mut Shard, index: u32) {
        shard.free.push(index);
        if shard.free.len() >= 2 * self.keep {
            let rest = shard.free.drain(self.keep..);
            self.give_back_all(rest);
        }
    }

    /// Gives records back to everybody.
    pub(crate) fn give_back_all(&self, indices: impl Iterator<Item = u32>) {
        let mut free = lock(&self.free);
        for index in indices {
            if let Some(record) = self.record(index) {
                record.next.store(free.first, Relaxed);
                free.first = index;
            }
        }
    }

    #[cold]
    fn refill(&self, shard: &mut Shard) {
        let mut free = lock(&self.free);
        let (records, available) = (self.records(), self.available.load(Relaxed));
        while shard.free.len() < self.keep {
            if let Some(record) = records.get(free.first as usize) {
                shard.free.push(free.first);
                free.first = record.next.load(Relaxed);
            } else if free.fresh < available {
                // A mark that is too low may hide records of an earlier run: they were not adopted.
                records.get(free.fresh as usize).filter(|record| record.is_valid()).inspect(|record| record.clear());
                shard.free.push(free.fresh);
                free.fresh += 1;
            } else {
                break;
            }
        }
        self.used_mark().fetch_max(u64::from(free.fresh), Relaxed);
        drop(free);
        if shard.free.is_empty() && self.counts.mappings.load(Relaxed) < u64::from(available) {
            self.borrow(shard);
        }
    }

    /// The last records lie with other shards: a workload's share must not depend on which. Those that are locked are passed over.
    fn borrow(&self, shard: &mut Shard) {
        for other in &self.shards {
            let Ok(mut other) = other.try_lock() else { continue };
            if !other.free.is_empty() {
                let rest = other.free.len() / 2;
                return shard.free.extend(other.free.drain(rest..));
            }
        }
    }

    /// Records from here on were never used.
    pub(crate) fn fresh(&self) -> u32 {
        lock(&self.free).fresh
    }

    /// See [`Nat::fresh`].
    pub(crate) fn set_fresh(&self, fresh: u32) {
        lock(&self.free).fresh = fresh;
    }

    /// A hash whose key nobody else knows.
    #[inline]
    pub(crate) fn keyed(&self, value: u128) -> u64 {
        let [high, low] = [(value >> 64) as u64, value as u64];
        siphash13([self.remote_key[0], self.remote_key[1] ^ high], low)
    }

    /// What is kept of a remote: 48 bits that stand for its address, and its L4 port. Nobody outside can find another address with the
    /// same bits.
    #[inline]
    pub(crate) fn remote_mark(&self, remote: Outside) -> u64 {
        let hash = self.keyed(remote.address);
        // Zero is no remote.
        (hash & !0xffff).max(1 << 16) | u64::from(remote.l4)
    }

    /// Remembers a remote of a mapping. When there are too many, the one that has been there longest goes.
    #[inline]
    pub(crate) fn note_remote(&self, index: u32, mark: u64) {
        let (Some(record), Some(marks)) = (self.record(index), self.remotes.get(index as usize)) else { return };
        let count = record.remotes.load(SeqCst);
        let known = (count as usize).min(REMOTES_MAX);
        if marks[..known].iter().any(|own| own.load(Relaxed) == mark) {
            return;
        }
        marks[count as usize % REMOTES_MAX].store(mark, Relaxed);
        // Beyond the limit what counts is only that it is beyond, and which is next.
        let next = if count as usize >= 2 * REMOTES_MAX { count + 1 - REMOTES_MAX as u32 } else { count + 1 };
        record.remotes.store(next, SeqCst);
    }

    /// Whether a mapping has sent to a remote, compared in the bits of `mask`; `None` when it has had too many to be sure.
    pub(crate) fn has_remote(&self, index: u32, mark: u64, mask: u64) -> Option<bool> {
        let (record, marks) = (self.record(index)?, self.remotes.get(index as usize)?);
        let count = record.remotes.load(SeqCst) as usize;
        let known = &marks[..count.min(REMOTES_MAX)];
        let found = known.iter().any(|own| (own.load(Relaxed) ^ mark) & mask == 0);
        if found || count <= REMOTES_MAX { Some(found) } else { None }
    }
}

/// A panic under a lock ends the process (the fabric sees to it).
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
