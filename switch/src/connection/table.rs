//! The table of connections: commit, free, expire. How one is found: `find`.

use std::io;
use std::path::Path;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crossbeam_utils::CachePadded;

use super::challenge::Challenges;
use super::crossing::Crossings;
use super::ending::{Ending, Listener, OnEnd};
use super::failure::Failures;
use super::quota::Quotas;
use super::record::{Direction, Entry, Record};
use super::shard::{Miss, Shard};
use super::timeouts::Timeouts;
use super::translation::Translation;
use crate::flow::{FlowKey, HashKeys, Kind, TRUST_S};
use crate::limits::{CONNECTIONS_MAX, PORTS_MAX};
use crate::quota::Refusal;
use crate::shared::{Anonymous, SharedFile};
use crate::tcp_track::Side;
use crate::wheel::{NONE, Wheel};
use crate::wire::proto;

/// Locks of the table. Each guards the chains and the wheel of the buckets that belong to it.
const SHARDS: usize = 64;

/// Records that a worker keeps for its next connections, at most. Of few that are left it takes [`KEEP_PART`]: what it has
/// other workers lack.
const KEEP: usize = 64;

/// See [`KEEP`].
const KEEP_PART: u32 = 128;

/// How a table is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// Records, at most [`CONNECTIONS_MAX`].
    pub capacity: u32,
    /// Names this boot: what another one left is not looked at.
    pub boot: u128,
    /// Seconds of the monotonic clock.
    pub now: u32,
}

/// What a new connection is.
#[derive(Clone, Copy, Debug)]
pub struct NewConnection {
    /// Tuple of the packet that begins it.
    pub key: FlowKey,
    /// Its hash.
    pub hash: u64,
    /// Its network.
    pub vni: u32,
    /// Slot of the port that begins it.
    pub in_port: u32,
    /// Slot of the other port.
    pub out_port: u32,
    /// What allowed it, egress and ingress.
    pub basis: [u32; 2],
    /// Epoch of its network.
    pub epoch: u32,
    /// Queue pair of the packet.
    pub queue: u8,
    /// What its first segment shows (TCP).
    pub side: Side,
    /// How it crosses into another network, if it does.
    pub translation: Option<Translation>,
    /// Whether it counts for the other port (its payer) instead of the one that begins it: one that came from outside.
    pub receiver_pays: bool,
}

impl NewConnection {
    /// Whether it holds a NAT mapping.
    #[inline]
    pub(super) fn is_mapped(&self) -> bool {
        self.translation.as_ref().is_some_and(Translation::is_mapped)
    }
}

/// What became of a new connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Committed {
    /// The connection.
    pub found: Found,
    /// Whether it is the new one; else it is one that another worker has just added.
    pub new: bool,
}

/// A connection that was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// Its record.
    pub index: u32,
    /// The record's generation.
    pub generation: u32,
    /// Which direction the key that was looked for has.
    pub direction: Direction,
}

/// Why a connection cannot begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CommitError {
    /// The port has as many as it may, and none of those looked at may make room.
    Quota,
    /// The table is full, or the port has its guaranteed share and the rest of the table is taken.
    Full,
    /// Another connection has the tuple of its answers.
    Taken,
}

/// Free records that a worker has at hand.
#[derive(Default)]
pub struct FreeRecords(Vec<u32>);

/// The shared table.
pub struct Connections {
    pub(super) file: SharedFile,
    pub(super) capacity: u32,
    /// Records whose blocks are allocated.
    available: AtomicU32,
    keys: HashKeys,
    /// First record of each chain.
    pub(super) heads: Anonymous<AtomicU32>,
    shards: Box<[CachePadded<Shard>]>,
    free: Mutex<Free>,
    pub(super) quotas: Quotas,
    challenges: Challenges,
    listener: Listener,
    failures: Failures,
    pub(super) crossings: Crossings,
}

/// Records that nobody has.
struct Free {
    /// First of a list linked through `next`.
    first: u32,
    /// Records in that list.
    listed: u32,
    /// Those from here on were never used.
    fresh: u32,
}

impl Connections {
    /// Opens or makes the table at `path`. Nothing of what is in it counts until it is adopted.
    ///
    /// # Errors
    /// The file cannot be made or mapped.
    pub fn open(path: &Path, options: &Options) -> io::Result<Self> {
        let capacity = options.capacity.clamp(1, CONNECTIONS_MAX);
        let file = super::adopt::open_file(path, capacity, options)?;
        let buckets = (capacity as usize).next_power_of_two();
        Ok(Self {
            file,
            capacity,
            available: AtomicU32::new(0),
            keys: HashKeys::random(),
            heads: Anonymous::filled(buckets, NONE)?,
            shards: (0..SHARDS).map(|_| CachePadded::new(Shard::new(options.now))).collect(),
            free: Mutex::new(Free { first: NONE, listed: 0, fresh: 0 }),
            quotas: Quotas::new(),
            challenges: Challenges::new(),
            listener: Listener::default(),
            failures: Failures::new(),
            crossings: Crossings::new(buckets)?,
        })
    }

    /// Has somebody told of each connection that ends, and why. Once, before there is one. It is told under a shard's lock and must
    /// neither wait nor ask this table.
    pub fn on_end(&self, told: OnEnd) {
        self.listener.set(told);
    }

    /// SYNs on connections that stand.
    pub fn challenges(&self) -> &Challenges {
        &self.challenges
    }

    /// Connections that nobody took.
    pub fn failures(&self) -> &Failures {
        &self.failures
    }

    /// Keys of the flow hash.
    pub fn keys(&self) -> &HashKeys {
        &self.keys
    }

    /// Most connections at a time.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Connections now.
    pub fn len(&self) -> u64 {
        self.shards.iter().map(|shard| u64::from(shard.count())).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Connections that made room for newer ones ([`Ending::Evicted`](super::Ending::Evicted)).
    pub fn evicted(&self) -> u64 {
        self.shards.iter().map(|shard| shard.evicted()).sum()
    }

    /// Connections that count for a port (their payer).
    pub fn used_by(&self, port: u32) -> u32 {
        self.quotas.used(port)
    }

    /// Says which ports there are and how many connections may count for each.
    pub fn share(&self, limits: impl Iterator<Item = (u32, u32)>) {
        self.quotas.share(self.capacity, limits);
    }

    /// The file, to have its blocks allocated.
    pub fn file(&self) -> &SharedFile {
        &self.file
    }

    /// Octets of the file up to a number of records.
    pub fn file_len(&self, records: u32) -> usize {
        super::adopt::RECORDS_AT + records as usize * size_of::<Record>()
    }

    /// Records that were ever used, by earlier runs too.
    pub fn ever_used(&self) -> u32 {
        self.used_mark().load(Relaxed).min(u64::from(self.capacity)) as u32
    }

    /// Blocks of records are allocated up to here: a full file system is an error of ours, not a signal.
    pub fn make_available(&self, records: u32) {
        self.available.store(records.min(self.capacity), Relaxed);
    }

    /// See [`Connections::make_available`].
    pub fn available(&self) -> u32 {
        self.available.load(Relaxed)
    }

    /// All records.
    #[inline]
    pub fn records(&self) -> &[Record] {
        self.file.slice(super::adopt::RECORDS_AT, self.capacity as usize)
    }

    /// The record of an index and generation, if it is still the same connection.
    #[inline]
    pub fn get(&self, index: u32, generation: u32) -> Option<&Record> {
        let record = self.records().get(index as usize)?;
        (record.generation() == generation && record.is_valid()).then_some(record)
    }

    /// Every connection, as it is when its turn comes.
    pub fn entries(&self) -> impl Iterator<Item = Entry> {
        let used = self.lock_free().fresh as usize;
        (0..used).filter_map(|index| self.entry_at(index as u32))
    }

    /// Connections of a part of the table: those of the `count` records from `first` on, and whether the table ends with it.
    pub fn entries_from(&self, first: u32, count: u32) -> (impl Iterator<Item = Entry>, bool) {
        let used = self.lock_free().fresh;
        let end = first.saturating_add(count).min(used);
        ((first..end).filter_map(|index| self.entry_at(index)), end == used)
    }

    /// Adds a connection, or finds the one that another worker has just added.
    ///
    /// # Errors
    /// See [`CommitError`].
    pub fn commit(
        &self,
        new: &NewConnection,
        timeouts: &Timeouts,
        free: &mut FreeRecords,
        now: u32,
    ) -> Result<Committed, CommitError> {
        self.commit_after(Miss::UNKNOWN, new, timeouts, free, now)
    }

    /// The same for a key that [`Connections::look`] did not find.
    ///
    /// # Errors
    /// See [`CommitError`].
    pub fn commit_after(
        &self,
        miss: Miss,
        new: &NewConnection,
        timeouts: &Timeouts,
        free: &mut FreeRecords,
        now: u32,
    ) -> Result<Committed, CommitError> {
        debug_assert!(new.key.kind() != Kind::Answer);
        if free.0.is_empty() {
            self.take_free(free);
        }
        let bucket = self.bucket(new.hash);
        let shard = self.shard(bucket);
        let mut wheel = shard.lock();
        let known = if shard.is_unchanged_since(miss) { None } else { self.find_for(bucket, new) };
        // What looks like the packets of another behind its translation has answers of its own, if it is translated too.
        let is_it = |found: &Found| found.direction == 1 || new.translation.is_none();
        if let Some(found) = known.or_else(|| self.find_reply(bucket, &new.key, new.vni).filter(is_it)) {
            return Ok(Committed { found, new: false });
        }
        let payer = if new.receiver_pays { new.out_port } else { new.in_port };
        let taken = match self.quotas.take(payer) {
            Ok(()) => free.0.pop().or_else(|| self.evict_beyond(shard, &mut wheel, payer)).ok_or_else(|| {
                self.quotas.give_back(payer);
                CommitError::Full
            }),
            Err(Refusal::Quota) => Err(CommitError::Quota),
            Err(Refusal::Shared) => Err(CommitError::Full),
        };
        let index = match taken {
            Ok(index) => index,
            // One of its own makes room, if there is one that may.
            Err(error) => self.evict(shard, &mut wheel, payer, now).ok_or(error)?,
        };
        if let Some(translation) = &new.translation
            && let Err(error) = self.link_reply(index, &new.key, translation)
        {
            free.0.push(index);
            self.quotas.give_back(payer);
            return Err(error);
        }
        let records = self.records();
        let record = &records[index as usize];
        record.fill(new, now);
        let alone = timeouts.of_new(new.key.proto(), &new.side);
        let lives = if new.is_mapped() { timeouts.mapped(&new.key, alone) } else { alone };
        let deadline = now.saturating_add(lives).saturating_add(1);
        self.link(shard, &mut wheel, bucket, records, index, deadline);
        // The next one of this worker, in all likelihood.
        if let Some(next) = free.0.last() {
            records[*next as usize].prefetch();
            if new.translation.is_some() {
                self.prefetch_translation(*next);
            }
        }
        Ok(Committed { found: Found { index, generation: record.generation(), direction: 0 }, new: true })
    }

    /// Puts a filled record into its chain and wheel.
    #[inline]
    fn link(&self, shard: &Shard, wheel: &mut Wheel, bucket: usize, records: &[Record], index: u32, deadline: u32) {
        let record = &records[index as usize];
        shard.change(|| {
            record.next.store(self.heads[bucket].load(Relaxed), Relaxed);
            self.heads[bucket].store(index, Relaxed);
        });
        wheel.insert(records, index, deadline);
        shard.count_more(1);
    }

    /// As [`Connections::link`], for a record that was there before this run.
    pub(super) fn relink_adopted(&self, index: u32, timeouts: &Timeouts) {
        let records = self.records();
        let record = &records[index as usize];
        let bucket = self.bucket(self.keys.hash(&record.key(), record.vni()));
        let shard = self.shard(bucket);
        self.quotas.take_anyway(record.payer());
        self.link(shard, &mut shard.lock(), bucket, records, index, deadline(record, timeouts.of(record)));
    }

    /// Forgets a connection, unless it is another one by now. Returns whether it was there.
    pub fn remove(&self, index: u32, generation: u32, why: Ending) -> bool {
        let Some(record) = self.get(index, generation) else { return false };
        let bucket = self.bucket(self.keys.hash(&record.key(), record.vni()));
        {
            let shard = self.shard(bucket);
            let mut wheel = shard.lock();
            if self.get(index, generation).is_none() {
                return false;
            }
            wheel.remove(self.records(), index);
            self.unlink(shard, bucket, index, why);
            self.quotas.give_back(record.payer());
        }
        self.give_back(&[index]);
        true
    }

    /// A connection has ended or will soon: its deadline came closer.
    pub fn reschedule(&self, index: u32, generation: u32, timeouts: &Timeouts) {
        let Some(record) = self.get(index, generation) else { return };
        let bucket = self.bucket(self.keys.hash(&record.key(), record.vni()));
        let mut wheel = self.shard(bucket).lock();
        if self.get(index, generation).is_some() {
            wheel.remove(self.records(), index);
            wheel.insert(self.records(), index, deadline(record, timeouts.of(record)));
        }
    }

    /// The answering side said that nobody is there (ICMP port unreachable), over UDP.
    pub fn refuse(&self, index: u32, generation: u32) {
        let Some(record) = self.get(index, generation) else { return };
        let bucket = self.bucket(self.keys.hash(&record.key(), record.vni()));
        let _wheel = self.shard(bucket).lock();
        if self.get(index, generation).is_some() && record.key().proto() == proto::UDP {
            record.refuse();
        }
    }

    /// Frees connections of one shard whose time has come, at most `budget` looked at. Returns how many were.
    pub fn expire(&self, shard: usize, timeouts: &Timeouts, now: u32, budget: usize) -> usize {
        let mut freed = [0; KEEP];
        let (mut looked, mut count) = (0, 0);
        {
            let shard = &self.shards[shard];
            let mut wheel = shard.lock();
            while looked < budget && count < KEEP {
                let Some(index) = wheel.due(self.records(), now) else { break };
                looked += 1;
                let record = &self.records()[index as usize];
                let deadline = deadline(record, timeouts.of(record));
                if deadline > now {
                    wheel.insert(self.records(), index, deadline);
                    continue;
                }
                let bucket = self.bucket(self.keys.hash(&record.key(), record.vni()));
                self.unlink(shard, bucket, index, Ending::Expired);
                self.quotas.give_back(record.payer());
                freed[count] = index;
                count += 1;
            }
        }
        self.give_back(&freed[..count]);
        looked
    }

    /// Shards, for [`Connections::expire`].
    pub const fn shards() -> usize {
        SHARDS
    }

    /// Takes a record out of its chain and clears it, all but its ports. Its shard is locked, and it is in no wheel.
    pub(super) fn unlink(&self, shard: &Shard, bucket: usize, index: u32, why: Ending) {
        let records = self.records();
        let mut at = &self.heads[bucket];
        while at.load(Relaxed) != index {
            let next = at.load(Relaxed);
            if next == NONE {
                debug_assert!(false, "a record is in its chain");
                return;
            }
            at = &records[next as usize].next;
        }
        let record = &records[index as usize];
        self.listener.tell(record.payer(), why, &|| self.entry_at(index));
        if record.crosses() {
            self.unlink_reply(index);
        }
        shard.change(|| {
            at.store(record.next.load(Relaxed), Relaxed);
            record.clear();
        });
        shard.count_more(-1);
    }

    #[cold]
    fn take_free(&self, into: &mut FreeRecords) {
        let mut free = self.lock_free();
        let records = self.records();
        let available = self.available.load(Relaxed);
        let left = free.listed + available.saturating_sub(free.fresh);
        let batch = KEEP.min((left / KEEP_PART + 1) as usize);
        while into.0.len() < batch {
            let index = free.first;
            if index != NONE {
                free.listed -= 1;
                free.first = records[index as usize].next.load(Relaxed);
                into.0.push(index);
            } else if free.fresh < available {
                into.0.push(free.fresh);
                free.fresh += 1;
            } else {
                break;
            }
        }
        self.used_mark().fetch_max(u64::from(free.fresh), Relaxed);
    }

    pub(super) fn give_back(&self, indices: &[u32]) {
        if indices.is_empty() {
            return;
        }
        let mut free = self.lock_free();
        for &index in indices {
            self.records()[index as usize].next.store(free.first, Relaxed);
            free.first = index;
            free.listed += 1;
        }
    }

    /// Says which records were used by an earlier run.
    pub(super) fn set_fresh(&self, fresh: u32) {
        self.lock_free().fresh = fresh;
    }

    #[inline]
    pub(super) fn bucket(&self, hash: u64) -> usize {
        // The lower half chooses a bucket of the flow caches, the upper half the other: a mix of both.
        (hash ^ hash >> 23) as usize & (self.heads.len() - 1)
    }

    #[inline]
    pub(super) fn shard(&self, bucket: usize) -> &CachePadded<Shard> {
        &self.shards[bucket % SHARDS]
    }

    fn lock_free(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Second in which a connection that lives so many seconds without a packet ends, if nothing comes.
pub(super) fn deadline(record: &Record, lives: u32) -> u32 {
    // What a flow cache trusts it does not tell of: packets of the last round are not seen here.
    let unseen = if record.is_assured() { TRUST_S } else { 0 };
    let by_sender = if record.is_kept_by_answers() { record.created() } else { record.last_seen(0) };
    let seen = by_sender.max(record.last_seen(1));
    seen.saturating_add(lives).saturating_add(1 + unseen)
}

impl FreeRecords {
    /// None yet; taken from the table as needed.
    pub fn new() -> Self {
        Self(Vec::with_capacity(KEEP + 1))
    }
}

const _: () = assert!(PORTS_MAX <= 1 << 16);
