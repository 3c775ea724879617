//! Connections that lead from one network into another: found by the tuple of their answers, and what they hold given back.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crossbeam_utils::CachePadded;

use super::record::{Direction, Entry};
use super::table::{CommitError, Connections, Found};
use super::translation::{Change, Hold, Translation, TranslationLine};
use crate::flow::FlowKey;
use crate::prefetch::prefetch;
use crate::shared::Anonymous;

/// Locks of the chains.
const LOCKS: usize = 64;

/// Told what a connection held when it ends: the mapping of the side that began it (0), or of the other (1).
pub type OnRelease = Box<dyn Fn(Direction, Hold, &Entry) + Send + Sync>;

/// Chains of the translations, and who is told when one ends.
pub(super) struct Crossings {
    /// First of each chain, as index plus one. No page is touched until there is one.
    heads: Anonymous<AtomicU32>,
    locks: Box<[CachePadded<Mutex<()>>]>,
    /// Translations whose blocks are allocated.
    available: AtomicU32,
    released: OnceLock<OnRelease>,
}

impl Crossings {
    pub(super) fn new(buckets: usize) -> std::io::Result<Self> {
        let heads = Anonymous::new(buckets)?;
        heads.advise_huge(buckets);
        Ok(Self {
            heads,
            locks: (0..LOCKS).map(|_| CachePadded::default()).collect(),
            available: AtomicU32::new(0),
            released: OnceLock::new(),
        })
    }

    fn lock(&self, bucket: usize) -> MutexGuard<'_, ()> {
        self.locks[bucket % LOCKS].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connections {
    /// Has somebody told of each NAT mapping that a connection held, when the connection ends. Once, before there is one. It
    /// is told under a shard's lock and must not ask this table.
    pub fn on_release(&self, told: OnRelease) {
        // A second one would mean two owners of the mappings.
        let first = self.crossings.released.set(told).is_ok();
        debug_assert!(first);
    }

    /// Where the translations of that many records lie in the file: their offset and length, in octets.
    pub fn translations_at(&self, records: u32) -> (usize, usize) {
        let len = records.min(self.capacity) as usize * size_of::<TranslationLine>();
        (super::adopt::translations_at(self.capacity), len)
    }

    /// Blocks of translations are allocated up to here: connections with records beyond cannot cross.
    pub fn make_translatable(&self, records: u32) {
        self.crossings.available.fetch_max(records.min(self.capacity), Relaxed);
    }

    /// See [`Connections::make_translatable`].
    pub fn translatable(&self) -> u32 {
        self.crossings.available.load(Relaxed)
    }

    fn lines(&self) -> &[TranslationLine] {
        self.file.slice(super::adopt::translations_at(self.capacity), self.capacity as usize)
    }

    /// What a packet of a direction of a connection that crosses has to become. `None` when it is gone: since it was looked at, its
    /// record may have become another's.
    #[inline]
    pub fn change(&self, found: &Found) -> Option<Change> {
        let record = self.records().get(found.index as usize)?;
        let line = self.lines().get(found.index as usize)?;
        let change = line.change(record, found.direction);
        record.is_still(found.generation).then_some(change)
    }

    /// How a connection crosses, if it does, and is still there.
    pub fn translation(&self, index: u32, generation: u32) -> Option<Translation> {
        let record = self.records().get(index as usize)?;
        let translation = self.translation_at(index);
        translation.filter(|_| record.is_still(generation))
    }

    /// The same of whatever connection has a record.
    fn translation_at(&self, index: u32) -> Option<Translation> {
        let record = self.records().get(index as usize)?;
        record.crosses().then(|| self.lines().get(index as usize).map(TranslationLine::read)).flatten()
    }

    /// The plain values of the connection with this index and generation, if it is still the same.
    pub fn entry(&self, index: u32, generation: u32) -> Option<Entry> {
        self.entry_at(index).filter(|entry| entry.generation == generation)
    }

    pub(super) fn entry_at(&self, index: u32) -> Option<Entry> {
        let record = self.records().get(index as usize)?;
        let entry = record.entry(index)?;
        let entry = Entry { translation: self.translation_at(index), ..entry };
        record.is_still(entry.generation).then_some(entry)
    }

    /// Asks for what [`Connections::find_reply`] reads first.
    #[inline]
    pub(super) fn prefetch_reply(&self, bucket: usize) {
        prefetch(&self.crossings.heads[bucket]);
    }

    /// Asks for the translation of a record.
    #[inline]
    pub(super) fn prefetch_translation(&self, index: u32) {
        if let Some(line) = self.lines().get(index as usize) {
            prefetch(line);
        }
    }

    /// Asks for the chain that a translation will be put into.
    #[inline]
    pub fn expect_reply(&self, translation: &Translation) {
        self.prefetch_reply(self.reply_bucket(translation));
    }

    /// Looks a packet's connection up by the tuple of the answers, and its reverse. Most chains are empty.
    #[inline]
    pub(super) fn find_reply(&self, bucket: usize, key: &FlowKey, vni: u32) -> Option<Found> {
        // What another worker is just adding is found by `commit`.
        if self.crossings.heads[bucket].load(Relaxed) == 0 {
            return None;
        }
        self.find_reply_locked(bucket, key, vni)
    }

    #[inline(never)]
    fn find_reply_locked(&self, bucket: usize, key: &FlowKey, vni: u32) -> Option<Found> {
        let _chain = self.crossings.lock(bucket);
        self.find_reply_in(bucket, key, vni)
    }

    fn find_reply_in(&self, bucket: usize, key: &FlowKey, vni: u32) -> Option<Found> {
        let (same, reverse) = (key.unscoped(), key.reversed());
        let lines = self.lines();
        let mut next = self.crossings.heads[bucket].load(Relaxed);
        while let Some(index) = next.checked_sub(1) {
            let line = &lines[index as usize];
            let found = line.reply();
            if line.vni() == vni && (found == same || found == reverse) {
                let generation = self.records()[index as usize].generation();
                return Some(Found { index, generation, direction: usize::from(found == same) });
            }
            next = line.next.load(Relaxed);
        }
        None
    }

    /// Writes the translation of a record that is still free and puts it into its chain.
    pub(super) fn link_reply(&self, index: u32, key: &FlowKey, translation: &Translation) -> Result<(), CommitError> {
        if index >= self.translatable() {
            return Err(CommitError::Full);
        }
        let bucket = self.reply_bucket(translation);
        let _chain = self.crossings.lock(bucket);
        if self.find_reply_in(bucket, &translation.reply, translation.vni).is_some() {
            return Err(CommitError::Taken);
        }
        let line = &self.lines()[index as usize];
        line.write(key, translation);
        let head = &self.crossings.heads[bucket];
        line.next.store(head.load(Relaxed), Relaxed);
        head.store(index + 1, Relaxed);
        Ok(())
    }

    /// Takes the translation of a connection that ends out of its chain and gives back what it held. The record is still
    /// valid, and its shard locked.
    #[cold]
    pub(super) fn unlink_reply(&self, index: u32) {
        let Some(translation) = self.forget_reply(index) else { return };
        let (Some(told), Some(entry)) = (self.crossings.released.get(), self.entry_at(index)) else { return };
        for (side, hold) in translation.held.into_iter().enumerate() {
            hold.inspect(|hold| told(side, *hold, &entry));
        }
    }

    /// Takes the translation of a connection out of its chain.
    pub(super) fn forget_reply(&self, index: u32) -> Option<Translation> {
        let translation = self.translation_at(index)?;
        let bucket = self.reply_bucket(&translation);
        let _chain = self.crossings.lock(bucket);
        let lines = self.lines();
        let mut at = &self.crossings.heads[bucket];
        loop {
            let Some(next) = at.load(Relaxed).checked_sub(1) else {
                debug_assert!(false, "a translation is in its chain");
                return Some(translation);
            };
            if next == index {
                at.store(lines[index as usize].next.load(Relaxed), Relaxed);
                return Some(translation);
            }
            at = &lines[next as usize].next;
        }
    }

    /// Whether the translation that an earlier run left in a record makes sense.
    pub(super) fn is_right(&self, entry: &Entry) -> bool {
        let Some(translation) = &entry.translation else { return true };
        let reply = &translation.reply;
        let kind = entry.key.reversed().kind();
        entry.index < self.translatable() && reply.proto() == entry.key.proto() && reply.kind() == kind
    }

    fn reply_bucket(&self, translation: &Translation) -> usize {
        self.bucket(self.keys().hash(&translation.reply, translation.vni))
    }
}
