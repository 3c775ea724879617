//! The shared file: its header, the ports that its records speak of, and what a new run takes over from it.
//!
//! ```text
//! 0        magic with layout, capacity, boot, records ever used
//! 4096     persistent id of the port in each slot
//! RECORDS  records
//!          translations, one a record
//! ```
//!
//! Translations take blocks of the file only where connections lead from one network into another.
//!
//! A run that finds a file of the same layout, size and boot looks at each record that says it is valid, asks control
//! whether it still makes sense, and forgets the rest. Anything doubtful is forgotten: the connection is then refused or begun
//! anew by its next packet, as policy says.

use std::io;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::record::{Entry, Record};
use super::table::{Connections, Options};
use super::timeouts::Timeouts;
use super::translation::TranslationLine;
use crate::limits::PORTS_MAX;
use crate::shared::{SharedFile, plain_struct};

/// "HWCONN" and a version of the layout that this file and `record.rs` describe.
const MAGIC: u64 = 0x4857_434f_4e4e_0003;

const PORTS_AT: usize = 4096;
pub(super) const RECORDS_AT: usize = PORTS_AT + PORTS_MAX * size_of::<PortName>();

/// Where the translations lie.
pub(super) fn translations_at(capacity: u32) -> usize {
    RECORDS_AT + capacity as usize * size_of::<Record>()
}

#[repr(C)]
struct Header {
    /// Written last.
    magic: AtomicU64,
    capacity: AtomicU64,
    boot: [AtomicU64; 2],
    /// Records from here on were never used.
    used: AtomicU64,
}

/// Persistent id of a port, as two words; zero for none.
#[repr(C)]
struct PortName([AtomicU64; 2]);

plain_struct!(Header { magic, capacity, boot, used });
plain_struct!(PortName { 0 });

/// What control says of a record of an earlier run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claim {
    /// Both ports are there and still own the addresses.
    Keep,
    /// Not any more.
    Forget,
}

/// What became of the records of an earlier run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Adopted {
    /// Taken over.
    pub kept: u32,
    /// Valid records that were forgotten.
    pub forgotten: u32,
}

/// Opens the file; one of another layout, size or boot is begun anew.
pub(super) fn open_file(path: &Path, capacity: u32, options: &Options) -> io::Result<SharedFile> {
    let len = translations_at(capacity) + capacity as usize * size_of::<TranslationLine>();
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

impl Connections {
    fn names(&self) -> &[PortName] {
        self.file.slice(PORTS_AT, PORTS_MAX)
    }

    /// Records from here on were never used.
    pub(super) fn used_mark(&self) -> &AtomicU64 {
        &header(&self.file).used
    }

    /// Persistent ids of the ports in all slots; `None` where there is none.
    pub fn port_ids(&self) -> impl Iterator<Item = Option<u128>> {
        self.names().iter().map(|PortName([high, low])| {
            let id = u128::from(high.load(Relaxed)) << 64 | u128::from(low.load(Relaxed));
            (id != 0).then_some(id)
        })
    }

    /// Persistent id of the port in a slot; zero where there is none.
    pub fn port_id(&self, slot: u32) -> u128 {
        let Some(PortName([high, low])) = self.names().get(slot as usize) else { return 0 };
        u128::from(high.load(Relaxed)) << 64 | u128::from(low.load(Relaxed))
    }

    /// Says which port a slot is, for the next run.
    pub fn set_port_id(&self, slot: u32, id: u128) {
        if let Some(PortName([high, low])) = self.names().get(slot as usize) {
            high.store((id >> 64) as u64, Relaxed);
            low.store(id as u64, Relaxed);
        }
    }

    /// Takes over what an earlier run left: each valid record that `claim` keeps. Before any worker uses the table.
    pub fn adopt(&self, timeouts: &Timeouts, now: u32, mut claim: impl FnMut(&Entry) -> Claim) -> Adopted {
        let mut adopted = Adopted::default();
        let used = self.used_mark().load(Relaxed).min(u64::from(self.available())) as u32;
        // Not looked for afterwards: one that is kept is in its wheel, and may be freed, and listed, by then.
        let mut free = Vec::new();
        for (index, record) in (0..used).zip(self.records()) {
            if record.is_valid() {
                if self.adopt_one(index, record, now, &mut claim).is_some() {
                    self.relink_adopted(index, timeouts);
                    adopted.kept += 1;
                    continue;
                }
                record.clear();
                adopted.forgotten += 1;
            }
            free.push(index);
        }
        self.set_fresh(used);
        self.give_back(&free);
        adopted
    }

    /// `None`: it is to be forgotten.
    fn adopt_one(&self, index: u32, record: &Record, now: u32, claim: &mut impl FnMut(&Entry) -> Claim) -> Option<()> {
        let entry = self.entry_at(index)?;
        let newest = entry.seen[0].max(entry.seen[1]);
        let right = newest <= now && self.is_right(&entry);
        let linked = |translation| self.link_reply(index, &entry.key, &translation).is_ok();
        // A claim may take hold of a mapping: what is asked before must not fail afterwards.
        if !right || !entry.translation.is_none_or(linked) {
            return None;
        }
        if claim(&entry) == Claim::Forget {
            self.forget_reply(index);
            return None;
        }
        // Decided by tables that are gone: the next packet decides anew.
        record.set_epoch(0, [0, 0]);
        Some(())
    }
}
