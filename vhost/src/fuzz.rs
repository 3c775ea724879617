//! Harnesses for fuzzing: a driver that does anything to its rings while they are used, and frontends that say anything.
//! Not part of the packet path. They panic when something does not hold that must.
//!
//! [`fuzz_rings`] reads its input as a list of small operations on guest memory and on the device. Writes to memory
//! also happen inside `receive`, between chains (its callback for drops), and in one mode from another thread.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use hostweave_switch::limits::{BURST, BURST_SEGMENTS, FRAME_MAX, HEAD_FIRST};
use hostweave_switch::packet::{Burst, Meta, Offload};
use hostweave_switch::parse;
use hostweave_switch::stage::{DropReason, Verdict};
use hostweave_switch::tables::PortId;
use hostweave_switch::wire::frame;

use crate::attachment::{self, Shared};
use crate::fault::Fault;
use crate::features;
use crate::memory::{DirtyLog, GuestMemory, Region, RegionSpec};
use crate::offload::{self, check_offload};
use crate::queue::{CallFd, FaultSink, Queue, QueuePair};
use crate::ring::{RingAddresses, RingFeatures, RingLog, SplitRing};
use crate::{AttachmentConfig, Mode, Observer, Peer, sys};

/// Descriptors of each ring.
const SIZE: u16 = 32;
/// Octets of guest memory: two regions that adjoin in guest addresses, but not in the file.
const MEMORY: u64 = 0x2_0000;
const HALF: u64 = MEMORY / 2;
/// Parts of the transmit ring; those of the receive ring stand [`RECEIVE`] octets later.
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;
const RECEIVE: u64 = 0x1000;
const UVA: u64 = 0x7000_0000_0000;
const PAGE: u64 = 4096;

struct Sink(Mutex<Option<Fault>>);

impl FaultSink for Sink {
    fn broken(&self, fault: Fault) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(fault);
        true
    }
}

/// Octets of the input, in order; zero at its end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn octet(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or(0)
    }

    fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.octet(), self.octet()])
    }

    fn take(&mut self, count: usize) -> &[u8] {
        self.0.split_off(..count.min(self.0.len())).unwrap_or_default()
    }

    /// A guest address: mostly of memory, now and then near an end or far away.
    fn address(&mut self) -> u64 {
        let (kind, low) = (self.octet(), u64::from(self.word()));
        match kind % 8 {
            0..4 => low % MEMORY,
            4 => HALF - 64 + low % 128,
            5 => MEMORY - 64 + low % 128,
            6 => HALF + low % HALF,
            _ => u64::MAX - low,
        }
    }
}

/// A guest with one queue pair and all its memory in one file.
struct Guest {
    file: File,
    log: File,
    memory: Arc<GuestMemory>,
    pair: QueuePair,
    sink: Arc<Sink>,
    features: u64,
    /// Available and used index of both rings, transmit first.
    available: [u16; 2],
    used: [u16; 2],
    /// Nobody else writes memory: what is read twice must be the same.
    alone: bool,
}

/// Feature sets that are tried.
const FEATURES: [u64; 8] = [
    features::OFFERED,
    features::OFFERED & !features::EVENT_IDX,
    features::VERSION_1 | features::MRG_RXBUF,
    features::VERSION_1 | features::INDIRECT_DESC,
    0,
    features::OFFERED & !features::MRG_RXBUF,
    features::OFFERED & !(features::GUEST_TSO4 | features::GUEST_TSO6 | features::GUEST_USO4 | features::GUEST_USO6),
    features::OFFERED & !features::GUEST_CSUM,
];

impl Guest {
    fn new(choice: u8) -> Option<Self> {
        let file = sys::memory_file(MEMORY).ok()?;
        let log = sys::memory_file(PAGE).ok()?;
        let sink = Arc::new(Sink(Mutex::default()));
        let shared: Arc<dyn FaultSink> = sink.clone();
        let pair = QueuePair::new(&Arc::new(AtomicBool::new(true)), &shared);
        let memory = map(&file)?;
        let features = FEATURES[usize::from(choice % 8)];
        let alone = choice & 0x80 == 0;
        let guest = Self { file, log, memory, pair, sink, features, available: [0; 2], used: [0; 2], alone };
        guest.start(0);
        guest.start(1);
        Some(guest)
    }

    fn queue(&self, ring: usize) -> &Queue {
        if ring == 0 { &self.pair.from_guest.0 } else { &self.pair.to_guest.0 }
    }

    /// Starts a ring where it stands. A driver may have put it where none can be.
    fn start(&self, ring: usize) {
        let at = UVA + RECEIVE * ring as u64;
        let used = RECEIVE * ring as u64 + USED;
        let addresses = RingAddresses { descriptors: at, available: at + AVAILABLE, used: at + USED, log: Some(used) };
        let ring_features = RingFeatures {
            event_idx: self.features & features::EVENT_IDX != 0,
            indirect: self.features & features::INDIRECT_DESC != 0,
        };
        let split = SplitRing::new(self.memory.clone(), &addresses, SIZE, self.used[ring], ring_features);
        let (Ok(mut split), Ok(log)) = (split, DirtyLog::map(&self.log, 0, PAGE)) else { return };
        split.set_log(Some(RingLog { log: Arc::new(log), used: Some(used) }));
        let mut control = self.queue(ring).control();
        control.state.features = self.features;
        control.state.header_len = features::header_len(self.features);
        control.state.enabled = true;
        control.state.call = sys::eventfd().ok().map(|fd| CallFd(Arc::new(fd.into())));
        control.state.install(Some(split));
    }

    /// Writes what lies inside of memory. A file that was cut does not grow again.
    fn write(&self, address: u64, octets: &[u8]) {
        let len = self.file.metadata().map_or(0, |file| file.len());
        for (at, octet) in (address.min(MEMORY)..MEMORY).zip(octets) {
            let offset = if at < HALF { at + HALF } else { at - HALF };
            if offset < len {
                let _ = self.file.write_at(&[*octet], offset);
            }
        }
    }

    fn word(&self, address: u64) -> u16 {
        let mut octets = [0; 2];
        let _ = self.file.read_at(&mut octets, address + HALF);
        u16::from_le_bytes(octets)
    }

    /// One change of memory, as the input says.
    fn disturb(&mut self, input: &mut Input<'_>) {
        let choice = input.octet();
        let ring = usize::from(choice >> 7);
        let base = RECEIVE * ring as u64;
        match choice % 8 {
            0 => {
                let address = input.address();
                let count = usize::from(input.octet());
                self.write(address, input.take(count));
            }
            // A descriptor in the table, or in one that an indirect descriptor may point to.
            1..4 => {
                let index = u64::from(input.octet());
                let table = if choice & 0x40 != 0 { 0x3000 } else { base };
                let flags = u16::from(input.octet() % 8);
                let flags = if choice & 0x20 != 0 { flags & 1 | (ring as u16) << 1 } else { flags };
                let (address, len) = (input.address(), u32::from(input.word()));
                let len = if choice & 0x10 != 0 { len << 16 | len } else { len };
                let next = u16::from(input.octet());
                let next = if choice & 0x08 != 0 { index as u16 + 1 } else { next };
                let mut octets = [0; 16];
                octets[..8].copy_from_slice(&address.to_le_bytes());
                octets[8..12].copy_from_slice(&len.to_le_bytes());
                octets[12..14].copy_from_slice(&flags.to_le_bytes());
                octets[14..].copy_from_slice(&next.to_le_bytes());
                self.write(table + 16 * (index % u64::from(SIZE)), &octets);
            }
            // Heads are made available.
            4 | 5 => {
                for _ in 0..=input.octet() % SIZE as u8 {
                    let head = u16::from(input.octet() % (SIZE as u8 + 1));
                    let place = base + AVAILABLE + 4 + 2 * u64::from(self.available[ring] % SIZE);
                    self.write(place, &head.to_le_bytes());
                    self.available[ring] = self.available[ring].wrapping_add(1);
                }
                self.write(base + AVAILABLE + 2, &self.available[ring].to_le_bytes());
            }
            6 => {
                let value = input.word();
                self.write(base + AVAILABLE + 2 * u64::from(choice >> 4 & 1), &value.to_le_bytes());
            }
            // A frame that is worth forwarding, with a header that asks for work.
            _ => {
                let address = input.address();
                let mut octets = [0; 12 + 74];
                octets[..10].copy_from_slice(&[1, 1, 54, 0, 100, 0, 34, 0, 16, 0]);
                octets[24..28].copy_from_slice(&[8, 0, 0x45, 0]);
                octets[35] = 6;
                octets[58] = 0x50;
                octets[usize::from(choice >> 3) % 12] ^= input.octet();
                self.write(address, &octets);
            }
        }
    }

    fn contents(&self) -> Vec<u8> {
        let mut octets = vec![0; MEMORY as usize];
        let _ = self.file.read_at(&mut octets, 0);
        octets
    }

    /// Every page of memory that changed since `before` is marked in the log; forgets the marks.
    fn assert_logged(&self, before: &[u8]) {
        let after = self.contents();
        let mut bits = [0; PAGE as usize];
        let _ = self.log.read_at(&mut bits, 0);
        let _ = self.log.write_at(&[0; PAGE as usize], 0);
        for (page, (old, new)) in before.chunks(PAGE as usize).zip(after.chunks(PAGE as usize)).enumerate() {
            // The file's halves are swapped in guest addresses.
            let page = (page + (HALF / PAGE) as usize) % (MEMORY / PAGE) as usize;
            assert!(old == new || bits[page / 8] & 1 << (page % 8) != 0, "page {page} was written and not logged");
        }
    }
}

fn map(file: &File) -> Option<Arc<GuestMemory>> {
    let first = RegionSpec { gpa: 0, len: HALF, uva: UVA, offset: HALF };
    let second = RegionSpec { gpa: HALF, len: HALF, uva: UVA + MEMORY, offset: 0 };
    let regions: Result<Vec<_>, _> =
        [first, second].into_iter().map(|spec| Region::map(spec, file).map(Arc::new)).collect();
    GuestMemory::new(regions.ok()?).ok().map(Arc::new)
}

/// Rings under a driver that does anything, in any order, also while the device is inside.
///
/// # Panics
/// When something does not hold that must.
pub fn fuzz_rings(data: &[u8]) {
    let mut input = Input(data);
    let Some(mut guest) = Guest::new(input.octet()) else { return };
    if guest.alone {
        return run(&mut guest, &mut input);
    }
    // The other thread writes over everything with octets of the input's end until the device is done.
    let noise = data[data.len() / 2..].to_vec();
    let (file, over) = (guest.file.try_clone(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let Ok(file) = file else { return };
            let mut at = 1u64;
            while !over.load(Ordering::Relaxed) {
                for part in noise.chunks(5) {
                    at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(u64::from(part[0]));
                    // Mostly the rings, else the buffers.
                    let place = if at >> 60 != 0 { HALF + (at >> 32) % 0x2000 } else { (at >> 32) % MEMORY };
                    let len = file.metadata().map_or(0, |file| file.len());
                    let part = &part[..part.len().min(len.saturating_sub(place) as usize)];
                    let _ = file.write_at(part, place);
                }
                if noise.is_empty() {
                    return;
                }
            }
        });
        // It must end also when an assertion below fails.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&mut guest, &mut input)));
        over.store(true, Ordering::Relaxed);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
}

fn run(guest: &mut Guest, input: &mut Input<'_>) {
    let mut burst = Burst::new();
    for _ in 0..200 {
        if input.0.is_empty() {
            break;
        }
        match input.octet() % 16 {
            0..8 => guest.disturb(input),
            8..12 => forward(guest, input, &mut burst),
            12 => notifications(guest),
            13 => {
                let ring = usize::from(input.octet() % 2);
                let stopped = guest.queue(ring).control().state.ring.take().map(|ring| ring.base());
                if let Some(base) = stopped {
                    guest.used[ring] = base;
                }
                guest.start(ring);
            }
            14 => {
                if input.octet() == 0xff {
                    let _ = guest.file.set_len(u64::from(input.octet()) * 512);
                    guest.alone = false;
                }
            }
            _ => {
                let enabled = !input.octet().is_multiple_of(4);
                guest.queue(usize::from(input.octet() % 2)).control().state.enabled = enabled;
            }
        }
    }
}

fn notifications(guest: &Guest) {
    let Some(mut queue) = guest.pair.from_guest.try_claim() else { return };
    queue.enable_notifications();
    queue.disable_notifications();
}

/// A burst out of the transmit ring, and each of its packets into the receive ring.
fn forward(guest: &mut Guest, input: &mut Input<'_>, burst: &mut Burst) {
    let before = guest.alone.then(|| guest.contents());
    let bases = [0, HALF].map(|gpa| guest.memory.slice(gpa, 1).map_or(0, |slice| slice.address().as_ptr() as usize));
    // The callback may not borrow the guest that is claimed: its writes go through the file.
    let (mut drops, mut disturbed, file) = (0, false, &guest.file);
    let Some(mut from) = guest.pair.from_guest.try_claim() else { panic!("nobody else claims it") };
    let result = from.receive(PortId(1), burst, &mut |_| {
        drops += 1;
        if input.octet() % 4 == 1 {
            let place = HALF + u64::from(input.word()) % 0x400;
            let grows = file.metadata().map_or(true, |file| file.len() <= place);
            disturbed |= !grows && file.write_at(&[input.octet()], place).is_ok();
        }
    });
    if let Ok(taken) = result {
        assert_eq!(taken, burst.len() + drops);
        assert!(taken <= BURST);
    }
    let Some(mut to) = guest.pair.to_guest.try_claim() else { panic!("nobody else claims it") };
    for index in 0..burst.len() {
        let (packet, arena) = burst.packet_mut(index);
        assert!((14..=FRAME_MAX).contains(&packet.len()) && arena.len() <= BURST_SEGMENTS);
        for segment in packet.segments(arena) {
            let (start, end) =
                (segment.address().as_ptr() as usize, segment.address().as_ptr() as usize + segment.len());
            let inside = |base: &usize| start >= *base && end <= *base + HALF as usize;
            assert!(bases.iter().any(inside), "a segment outside of guest memory");
        }
        match to.transmit(packet, arena) {
            Ok(frames) => assert!(frames > 0),
            Err(DropReason::GuestRingBroken) => assert!(to.fault().is_some()),
            Err(reason) => assert_ne!(reason, DropReason::Internal),
        }
    }
    burst.clear();
    from.complete();
    to.publish();
    drop((from, to));
    if let Some(before) = before.filter(|_| !disturbed) {
        guest.assert_logged(&before);
        // The driver sees what was taken.
        let state = guest.queue(0).control();
        if let (Some(ring), Ok(1..)) = (&state.state.ring, result) {
            assert_eq!(guest.word(USED + 2), ring.base());
        }
    }
    let told = guest.sink.0.lock().unwrap_or_else(PoisonError::into_inner).is_some();
    assert!(result.is_ok() || told, "a broken ring is told");
}

/// Serves the messages that wait in `stream` on this thread, with a worker inside each time a queue starts. Says why
/// the connection ended, if not by its end.
///
/// # Panics
/// When something does not hold that must.
pub fn serve_messages(stream: UnixStream, queue_pairs: usize, config_space: bool) -> Option<String> {
    let config = AttachmentConfig {
        mode: Mode::Listen,
        path: PathBuf::new(),
        queue_pairs,
        group: None,
        allowed_uids: Vec::new(),
        mtu: 1500,
        config_space: config_space.then_some([2, 0, 0, 0, 0, 1]),
        name: "fuzz".to_owned(),
    };
    let worker = Arc::new(InsideWorker(OnceLock::new()));
    let mut kept = None;
    let started = |shared: Arc<Shared>| {
        let _ = worker.0.set(Arc::downgrade(&shared));
        kept = Some(shared);
    };
    let reason = attachment::serve_here(stream, config, worker.clone(), started).ok()?;
    worker.turn();
    for pair in kept.iter().flat_map(|shared| shared.queues()) {
        assert!(!pair.from_guest.is_running() && !pair.to_guest.is_running(), "nothing runs after the end");
        for queue in [&pair.from_guest.0, &pair.to_guest.0] {
            let control = queue.control();
            assert!(control.state.ring.is_none() && control.state.kick.is_none() && control.state.call.is_none());
        }
    }
    reason
}

/// An observer that does a worker's part.
struct InsideWorker(OnceLock<Weak<Shared>>);

impl InsideWorker {
    fn turn(&self) {
        let Some(shared) = self.0.get().and_then(Weak::upgrade) else { return };
        let mut burst = Burst::new();
        for pair in shared.queues() {
            let Some(mut from) = pair.from_guest.try_claim() else { panic!("the protocol thread holds no claim here") };
            let Some(mut to) = pair.to_guest.try_claim() else { panic!("the protocol thread holds no claim here") };
            let _ = from.receive(PortId(1), &mut burst, &mut |_| ());
            for index in 0..burst.len() {
                let (packet, arena) = burst.packet_mut(index);
                let _ = to.transmit(packet, arena);
            }
            burst.clear();
            from.complete();
            to.publish();
            from.enable_notifications();
        }
    }
}

impl Observer for InsideWorker {
    fn connected(&self, _: Peer) {}
    fn queue_started(&self, _: usize) {
        self.turn();
    }
    fn queue_stopped(&self, _: usize) {
        self.turn();
    }
    fn started(&self, _: u64, _: usize) {
        self.turn();
    }
    fn stopped(&self) {}
    fn disconnected(&self) {}
    fn fault(&self, _: &str) {}
}

/// What a sender asks for, checked, and done in software for a receiver that takes nothing.
///
/// # Panics
/// When something does not hold that must.
pub fn fuzz_offload(data: &[u8]) {
    if let Some((header, frame)) = data.split_first_chunk::<12>() {
        // Anything at all, as it stands in a ring.
        let negotiated = FEATURES[usize::from(header[11] % 8)];
        let head = &frame[..frame.len().min(HEAD_FIRST)];
        if let Ok(offload) = check_offload(header, frame.len(), head, negotiated) {
            let _ = offload::plan(&offload, header[10] & 1 != 0, FEATURES[usize::from(header[10] % 8)]);
            soften(&offload, frame);
        }
    }
    // A frame whose headers agree with it.
    let Some((port, offload, frame)) = hostweave_switch::fuzz::prepare(data) else { return };
    let meta = Meta { in_port: port, offload, ..Meta::default() };
    let parsed = Burst::new().with_frame(meta, &frame, HEAD_FIRST, |packet, arena| {
        let verdict = parse::parse(packet, arena);
        let mut frame = vec![0; packet.len()];
        packet.copy_frame(arena, &mut frame);
        (verdict == Verdict::Continue).then_some((packet.meta, frame))
    });
    if let Some((meta, frame)) = parsed {
        let cut = soften(&meta.offload, &frame);
        assert!(cut || !meta.offload.is_gso(), "what parse lets pass can be cut");
    }
}

/// Completes or cuts a frame and judges the outcome. Whether that could be done.
fn soften(offload: &Offload, frame: &[u8]) -> bool {
    if !offload.is_gso() {
        let mut copy = frame.to_vec();
        return offload::complete_checksum(&mut copy, offload).is_ok();
    }
    let (start, size) = (usize::from(offload.csum_start), usize::from(offload.gso_size));
    let (mut buffer, mut payload, mut segments) = (vec![0; FRAME_MAX], Vec::new(), 0);
    let tcp = usize::from(offload.csum_offset) == 16;
    let emit = |segment: &[u8]| {
        let headers = start + if tcp { usize::from(segment[start + 12] >> 4) * 4 } else { 8 };
        assert!(segment.len() <= headers + size);
        payload.extend_from_slice(&segment[headers..]);
        segments += 1;
        let (proto, addresses) = match segment[12..14] {
            [8, 0] => {
                let header = &segment[14..14 + usize::from(segment[14] & 0x0f) * 4];
                assert_eq!(hostweave_switch::wire::checksum::sum(header), 0xffff, "the IPv4 checksum");
                assert_eq!(segment.len() - 14, usize::from(u16::from_be_bytes([segment[16], segment[17]])));
                (if tcp { 6 } else { 17 }, &segment[26..34])
            }
            _ => (if tcp { 6 } else { 17 }, &segment[22..54]),
        };
        assert!(frame::checksum_valid(proto, addresses, &segment[start..]), "the transport checksum");
        Ok::<(), DropReason>(())
    };
    match offload::segment(frame, offload, &mut buffer, emit) {
        Ok(count) => {
            assert_eq!((count, payload.len().div_ceil(size)), (segments, segments as usize));
            assert!(frame.ends_with(&payload) && !payload.is_empty());
            true
        }
        Err(_) => false,
    }
}
