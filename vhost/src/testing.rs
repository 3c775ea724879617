//! A driver for tests: rings and buffers in a memory file, written with `pwrite` as a guest would, good or bad.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use crate::fault::Fault;
use crate::features::{EVENT_IDX, INDIRECT_DESC, MRG_RXBUF, OFFERED, VERSION_1};
use crate::memory::tests::memfd;
use crate::memory::{DirtyLog, GuestMemory, Region, RegionSpec};
use crate::queue::{CallFd, FaultSink, Queue, QueuePair};
use crate::ring::{RingAddresses, RingFeatures, RingLog, SplitRing};
use crate::sys;

/// Descriptors of the test ring.
pub(crate) const SIZE: u16 = 256;
/// The whole of guest memory; two regions that adjoin in guest addresses, but not in the file.
pub(crate) const MEMORY: u64 = 0x40_0000;
/// Where the second region begins.
pub(crate) const SECOND: u64 = 0x20_0000;
const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x8000;
/// Buffers begin here.
pub(crate) const BUFFERS: u64 = 0x1_0000;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// Everything but EVENT_IDX.
pub(crate) const ALL: u64 = OFFERED & !EVENT_IDX;
pub(crate) const NO_OFFLOADS: u64 = VERSION_1 | MRG_RXBUF | INDIRECT_DESC;

#[derive(Default)]
pub(crate) struct Sink(pub(crate) Mutex<Vec<Fault>>, AtomicU32);

impl FaultSink for Sink {
    fn broken(&self, fault: Fault) -> bool {
        self.0.lock().unwrap().push(fault);
        // The first call finds the lock taken.
        self.1.fetch_add(1, Ordering::Relaxed) > 0
    }
}

pub(crate) struct Driver {
    pub(crate) file: File,
    pub(crate) log: File,
    pub(crate) pair: QueuePair,
    pub(crate) sink: Arc<Sink>,
    from_guest: bool,
    available: u16,
    used: u16,
}

impl Driver {
    /// The driver of a transmit queue.
    pub(crate) fn transmit(features: u64) -> Self {
        Self::new(features, true, 0)
    }

    /// The driver of a receive queue.
    pub(crate) fn receive(features: u64) -> Self {
        Self::new(features, false, 0)
    }

    pub(crate) fn new(features: u64, from_guest: bool, base: u16) -> Self {
        let file = memfd(MEMORY);
        let log = memfd(0x1000);
        let sink = Arc::new(Sink::default());
        let shared: Arc<dyn FaultSink> = sink.clone();
        let pair = QueuePair::new(&Arc::new(AtomicBool::new(true)), &shared);
        let driver = Self { file, log, pair, sink, from_guest, available: base, used: base };
        driver.write(AVAILABLE + 2, &base.to_le_bytes());
        driver.write(USED + 2, &base.to_le_bytes());
        driver.install(features, base);
        driver
    }

    pub(crate) fn queue(&self) -> &Queue {
        if self.from_guest { &self.pair.from_guest.0 } else { &self.pair.to_guest.0 }
    }

    pub(crate) fn memory(&self) -> Arc<GuestMemory> {
        let half = MEMORY - SECOND;
        let first = RegionSpec { gpa: 0, len: SECOND, uva: 0x7f00_0000_0000, offset: half };
        let second = RegionSpec { gpa: SECOND, len: half, uva: 0x7e00_0000_0000, offset: 0 };
        let regions = [first, second].map(|spec| Arc::new(Region::map(spec, &self.file).unwrap()));
        Arc::new(GuestMemory::new(regions.into()).unwrap())
    }

    pub(crate) fn addresses(&self) -> RingAddresses {
        let uva = 0x7f00_0000_0000;
        RingAddresses { descriptors: uva, available: uva + AVAILABLE, used: uva + USED, log: Some(USED) }
    }

    pub(crate) fn install(&self, features: u64, base: u16) {
        let ring_features =
            RingFeatures { event_idx: features & EVENT_IDX != 0, indirect: features & INDIRECT_DESC != 0 };
        let ring = SplitRing::new(self.memory(), &self.addresses(), SIZE, base, ring_features).unwrap();
        let mut control = self.queue().control();
        control.state.features = features;
        control.state.header_len = crate::features::header_len(features);
        control.state.enabled = true;
        control.state.call = Some(CallFd(Arc::new(OwnedFd::from(sys::eventfd().unwrap()))));
        control.state.install(Some(ring));
    }

    pub(crate) fn start_log(&self) {
        let log = Arc::new(DirtyLog::map(&self.log, 0, 0x1000).unwrap());
        let mut control = self.queue().control();
        control.state.ring.as_mut().unwrap().set_log(Some(RingLog { log, used: Some(USED) }));
    }

    /// Pages that the log says were written, and forgets them.
    pub(crate) fn logged(&self) -> Vec<u64> {
        let mut bits = [0; 0x1000];
        self.log.read_at(&mut bits, 0).unwrap();
        self.log.write_at(&[0; 0x1000], 0).unwrap();
        (0..0x8000).filter(|page| bits[*page as usize / 8] & 1 << (page % 8) != 0).collect()
    }

    fn offset(gpa: u64) -> u64 {
        if gpa < SECOND { gpa + MEMORY - SECOND } else { gpa - SECOND }
    }

    /// Writes guest memory, octet by octet, so that it may cross regions.
    pub(crate) fn write(&self, gpa: u64, octets: &[u8]) {
        let first = octets.len().min(SECOND.saturating_sub(gpa) as usize);
        self.file.write_all_at(&octets[..first], Self::offset(gpa)).unwrap();
        if first < octets.len() {
            self.file.write_all_at(&octets[first..], Self::offset(gpa + first as u64)).unwrap();
        }
    }

    /// Reads guest memory.
    pub(crate) fn read(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut octets = vec![0; len];
        let first = len.min(SECOND.saturating_sub(gpa) as usize);
        self.file.read_exact_at(&mut octets[..first], Self::offset(gpa)).unwrap();
        if first < len {
            self.file.read_exact_at(&mut octets[first..], Self::offset(gpa + first as u64)).unwrap();
        }
        octets
    }

    pub(crate) fn descriptor_at(&self, table: u64, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let mut octets = [0; 16];
        octets[..8].copy_from_slice(&address.to_le_bytes());
        octets[8..12].copy_from_slice(&len.to_le_bytes());
        octets[12..14].copy_from_slice(&flags.to_le_bytes());
        octets[14..].copy_from_slice(&next.to_le_bytes());
        self.write(table + 16 * u64::from(index), &octets);
    }

    pub(crate) fn descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        self.descriptor_at(0, index, address, len, flags, next);
    }

    /// A chain of buffers in consecutive descriptors from `head` on, made available.
    pub(crate) fn chain(&mut self, head: u16, buffers: &[(u64, u32)], flags: u16) {
        for (at, (address, len)) in buffers.iter().enumerate() {
            let index = head + at as u16;
            let more = if at + 1 < buffers.len() { NEXT } else { 0 };
            self.descriptor(index, *address, *len, flags | more, index + 1);
        }
        self.offer(head);
    }

    pub(crate) fn offer(&mut self, head: u16) {
        self.write(AVAILABLE + 4 + 2 * u64::from(self.available % SIZE), &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        self.set_available_index(self.available);
    }

    pub(crate) fn set_available_index(&self, index: u16) {
        self.write(AVAILABLE + 2, &index.to_le_bytes());
    }

    pub(crate) fn set_available_flags(&self, flags: u16) {
        self.write(AVAILABLE, &flags.to_le_bytes());
    }

    pub(crate) fn set_used_event(&self, index: u16) {
        self.write(AVAILABLE + 4 + 2 * u64::from(SIZE), &index.to_le_bytes());
    }

    pub(crate) fn used_word(&self, at: u64) -> u16 {
        let octets = self.read(USED + at, 2);
        u16::from_le_bytes([octets[0], octets[1]])
    }

    pub(crate) fn used_flags(&self) -> u16 {
        self.used_word(0)
    }

    pub(crate) fn available_event(&self) -> u16 {
        self.used_word(4 + 8 * u64::from(SIZE))
    }

    /// What the device gave back since the last call.
    pub(crate) fn take_used(&mut self) -> Vec<(u32, u32)> {
        let mut out = vec![];
        while self.used != self.used_word(2) {
            let octets = self.read(USED + 4 + 8 * u64::from(self.used % SIZE), 8);
            let word = |at: usize| u32::from_le_bytes(octets[at..at + 4].try_into().unwrap());
            out.push((word(0), word(4)));
            self.used = self.used.wrapping_add(1);
        }
        out
    }
}
