//! The book that a ledger keeps: who had what from when to when, by the clock of the wall. Bounded; in memory, and each change of it in
//! the store.
//!
//! What it means that something begins or ends is the ledger's own matter: [`super::nat_ledger`], [`super::attach_ledger`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::store::{LedgerTable, Store};

/// Entries that a book keeps; the one that ended first goes first.
pub const ENTRIES_MAX: usize = 1 << 15;

/// What somebody had for a time.
pub trait Entry: Clone + Serialize {
    /// What it was: an address, and the first L4 port of a part of it; 0 if it is the whole address.
    fn place(&self) -> (IpAddr, u16);

    /// Seconds of the Unix clock since which somebody had it, and at which that ended; `None` while it goes on.
    fn span(&self) -> (u64, Option<u64>);
}

/// The entries.
pub struct Book<E> {
    /// By number, which grows.
    pub entries: BTreeMap<u64, E>,
    /// Numbers of those that are in force, by place.
    pub open: BTreeMap<(IpAddr, u16), u64>,
    /// Those that have ended, by their end and number: which goes first.
    pub ended: BTreeSet<(u64, u64)>,
    /// All, by place, beginning and number.
    pub begun: BTreeSet<(IpAddr, u16, u64, u64)>,
}

/// What is to be written.
pub struct Changes<E> {
    put: BTreeMap<u64, E>,
    gone: Vec<u64>,
}

impl<E> Default for Book<E> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), open: BTreeMap::new(), ended: BTreeSet::new(), begun: BTreeSet::new() }
    }
}

impl<E> Default for Changes<E> {
    fn default() -> Self {
        Self { put: BTreeMap::new(), gone: Vec::new() }
    }
}

impl<E: Entry> Book<E> {
    /// As the store has it, by number.
    pub fn new(entries: BTreeMap<u64, E>) -> Self {
        let mut book = Self::default();
        entries.into_iter().for_each(|(number, entry)| book.enter(number, entry));
        book
    }

    /// The entry in force of a place.
    pub fn open_at(&self, place: (IpAddr, u16)) -> Option<(u64, &E)> {
        let number = self.open.get(&place)?;
        Some((*number, self.entries.get(number)?))
    }

    /// Entries of an address, by first L4 port and beginning.
    pub fn of(&self, address: IpAddr) -> impl Iterator<Item = &E> {
        let all = (address, 0, 0, 0)..=(address, u16::MAX, u64::MAX, u64::MAX);
        self.begun.range(all).filter_map(|(.., number)| self.entries.get(number))
    }

    /// The one that began next after an entry, of the same place.
    pub fn next(&self, number: u64, entry: &E) -> Option<&E> {
        let ((address, first), (since, _)) = (entry.place(), entry.span());
        let later = (address, first, since, number.saturating_add(1))..=(address, first, u64::MAX, u64::MAX);
        let (.., next) = self.begun.range(later).next()?;
        self.entries.get(next)
    }

    /// Adds an entry. What is in force is asked for most, and goes only where nothing has ended.
    pub fn add(&mut self, entry: E, changes: &mut Changes<E>) {
        let number = self.entries.last_key_value().map_or(0, |(last, _)| last + 1);
        self.put(number, entry, changes);
        while self.entries.len() > ENTRIES_MAX {
            let first = self.ended.first().map(|(_, number)| *number);
            let Some(number) = first.or_else(|| self.entries.first_key_value().map(|(number, _)| *number)) else {
                return;
            };
            self.remove(number);
            changes.put.remove(&number);
            changes.gone.push(number);
        }
    }

    /// An entry is otherwise than it was.
    pub fn put(&mut self, number: u64, entry: E, changes: &mut Changes<E>) {
        changes.put.insert(number, entry.clone());
        self.enter(number, entry);
    }

    fn enter(&mut self, number: u64, entry: E) {
        self.remove(number);
        let ((address, first), (since, until)) = (entry.place(), entry.span());
        match until {
            None => drop(self.open.insert((address, first), number)),
            Some(until) => drop(self.ended.insert((until, number))),
        }
        self.begun.insert((address, first, since, number));
        self.entries.insert(number, entry);
    }

    fn remove(&mut self, number: u64) {
        let Some(entry) = self.entries.remove(&number) else { return };
        let ((address, first), (since, until)) = (entry.place(), entry.span());
        self.begun.remove(&(address, first, since, number));
        if let Some(until) = until {
            self.ended.remove(&(until, number));
        }
        // Another may be in force there by now.
        if self.open.get(&(address, first)) == Some(&number) {
            self.open.remove(&(address, first));
        }
    }
}

impl<E: Entry> Changes<E> {
    /// Writes them, in one go. A failure of the disk is logged with `what` was not written: traffic goes on.
    pub fn write(&self, store: &Store, table: LedgerTable, what: &str) {
        if self.put.is_empty() && self.gone.is_empty() {
            return;
        }
        if let Err(error) = store.write_ledger(table, &self.put, &self.gone) {
            tracing::warn!(%error, "{what} could not be written");
        }
    }
}

/// Seconds of the Unix clock; 0 before 1970.
pub fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The other way.
pub fn time(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}
