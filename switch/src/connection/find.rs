//! The connection of a packet: by the tuple that began it, the reverse of that, or, of one that crosses, by the tuple of its answers.
//!
//! Of one that crosses the reverse of what it began with says little: the answers have another tuple where it is translated. Who sends what looks
//! like it may have a connection of his own, or answer another one: that is found before, and what is left is for the packet path to
//! judge.

use std::sync::atomic::Ordering::Relaxed;

use super::record::Record;
use super::shard::Miss;
use super::table::{Connections, Found, NewConnection};
use crate::flow::FlowKey;
use crate::prefetch::prefetch;
use crate::wheel::NONE;

/// Records of a chain looked at without the lock: a longer way means that chains change under the reader.
const WALK_MAX: usize = 64;

impl Connections {
    /// Looks a packet's connection up.
    pub fn find(&self, key: &FlowKey, hash: u64, vni: u32) -> Option<Found> {
        self.look(key, hash, vni).ok()
    }

    /// As [`Connections::find`]. A miss spares [`Connections::commit_after`] of the same key another look, if nothing has changed
    /// by then.
    ///
    /// # Errors
    /// There is no such connection.
    pub fn look(&self, key: &FlowKey, hash: u64, vni: u32) -> Result<Found, Miss> {
        let bucket = self.bucket(hash);
        let shard = self.shard(bucket);
        let read = shard.read(|| self.walk(bucket, key, vni, WALK_MAX));
        let (found, miss) = read.unwrap_or_else(|| self.look_locked(bucket, key, vni));
        match found {
            Some(found) if found.direction == 1 && self.crosses(found) => {
                self.behind_reverse(bucket, key, vni).or(Some(found))
            }
            Some(found) => Some(found),
            None => self.find_reply(bucket, key, vni),
        }
        .ok_or(miss)
    }

    fn crosses(&self, found: Found) -> bool {
        self.records().get(found.index as usize).is_some_and(Record::crosses)
    }

    /// The connection that began with this tuple, or whose answers have it, where another that crosses was found which began with the reverse: what
    /// that one's answers are like is another matter.
    #[cold]
    fn behind_reverse(&self, bucket: usize, key: &FlowKey, vni: u32) -> Option<Found> {
        let begun = {
            let _wheel = self.shard(bucket).lock();
            self.find_begun(bucket, key, vni)
        };
        begun.or_else(|| self.find_reply(bucket, key, vni).filter(|found| found.direction == 1))
    }

    /// The connection that began with a tuple, under the lock.
    fn find_begun(&self, bucket: usize, key: &FlowKey, vni: u32) -> Option<Found> {
        let (records, same) = (self.records(), key.unscoped());
        let mut index = self.heads[bucket].load(Relaxed);
        while index != NONE {
            let record = &records[index as usize];
            if record.vni() == vni && record.key() == same {
                return Some(Found { index, generation: record.generation(), direction: 0 });
            }
            index = record.next.load(Relaxed);
        }
        None
    }

    /// The connection of a new one's tuple, under the lock. Not one that began with the reverse and crosses, if the new one crosses, too: each has
    /// answers of its own.
    #[cold]
    pub(super) fn find_for(&self, bucket: usize, new: &NewConnection) -> Option<Found> {
        let found = self.find_in(bucket, &new.key, new.vni)?;
        let apart = found.direction == 1 && new.translation.is_some() && self.crosses(found);
        if apart { self.find_begun(bucket, &new.key, new.vni) } else { Some(found) }
    }

    #[cold]
    fn look_locked(&self, bucket: usize, key: &FlowKey, vni: u32) -> (Option<Found>, Miss) {
        let shard = self.shard(bucket);
        let _wheel = shard.lock();
        (self.find_in(bucket, key, vni), shard.miss())
    }

    /// Asks for what a look for a hash reads first.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        let bucket = self.bucket(hash);
        prefetch(&self.heads[bucket]);
        self.prefetch_reply(bucket);
    }

    /// Asks for a record.
    #[inline]
    pub fn prefetch_record(&self, index: u32) {
        if let Some(record) = self.records().get(index as usize) {
            record.prefetch();
        }
    }

    /// Asks for the first record of the chain of a hash, which should have been asked for.
    #[inline]
    pub fn prefetch_chain(&self, hash: u64) {
        self.prefetch_record(self.heads[self.bucket(hash)].load(Relaxed));
    }

    /// The connection of a key, under the lock.
    #[cold]
    fn find_in(&self, bucket: usize, key: &FlowKey, vni: u32) -> Option<Found> {
        // No chain is longer than the table.
        self.walk(bucket, key, vni, usize::MAX).flatten()
    }

    /// The same among the first `most` records of the chain; `None` when there are more.
    #[inline(always)]
    fn walk(&self, bucket: usize, key: &FlowKey, vni: u32, most: usize) -> Option<Option<Found>> {
        let mut index = self.heads[bucket].load(Relaxed);
        if index == NONE {
            return Some(None);
        }
        let (same, reverse) = (key.unscoped(), key.reversed());
        let records = self.records();
        for _ in 0..most {
            let record = &records[index as usize];
            let found = record.key();
            if record.vni() == vni && (found == same || found == reverse) {
                // Of a query, the direction is in the kind.
                let direction = usize::from(found != same);
                return Some(Some(Found { index, generation: record.generation(), direction }));
            }
            index = record.next.load(Relaxed);
            if index == NONE {
                return Some(None);
            }
        }
        None
    }
}
