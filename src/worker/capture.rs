//! A capture: copies of packets, in a bounded ring per worker, for whoever asked. `crate::fabric` starts and drains it.
//!
//! A packet from a guest is copied as it arrived and its verdict is filled in when there is one; a packet to a guest is copied
//! as it was delivered. What finds no room is counted. Rings are allocated by whoever drains them, never by a worker.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use hostweave_policy::model::Direction;
use hostweave_switch::packet::Packet;
use hostweave_switch::payload::Segment;
use hostweave_switch::stage::{DropReason, Verdict};
use hostweave_switch::tables::PortId;

use super::watch::Spoken;

/// Octets that a worker may leave before they are fetched.
const RING_OCTETS: usize = 4 << 20;

/// Packets that a worker may leave before they are fetched.
const RING_RECORDS: usize = 16_384;

/// Which packets are wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Drops {
    /// Those that go on.
    No,
    /// Those that are dropped, too.
    Also,
    /// Only those that are dropped.
    Only,
}

/// A capture that runs.
pub struct Capture {
    /// Sorted.
    ports: Vec<PortId>,
    /// Octets of each frame that are copied.
    snaplen: usize,
    drops: Drops,
    /// By worker.
    rings: Vec<Mutex<Ring>>,
    /// Packets that found no room.
    lost: AtomicU64,
    /// The same moment by both clocks.
    began: (Instant, SystemTime),
}

/// One worker's packets.
#[derive(Default)]
pub struct Ring {
    /// Octets, one frame behind the other.
    pub octets: Vec<u8>,
    /// What there is to say about them.
    pub records: Vec<Record>,
}

/// One packet.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// When: time since the epoch of UNIX.
    pub at: Duration,
    /// Whose.
    pub port: PortId,
    /// Delivered to the guest; otherwise, sent by it.
    pub to_guest: bool,
    /// Octets of the frame.
    pub len: u32,
    /// Octets of it in the ring.
    pub captured: u32,
    /// What became of it; `None` if that is not known, or nobody wants to see it.
    pub verdict: Option<Verdict>,
    /// What allowed its connection, egress and ingress.
    pub basis: Option<[u32; 2]>,
    /// Whose policy denied it, that port, and the basis.
    pub denied: Option<(Direction, PortId, u32)>,
}

/// Where a packet is seen.
pub struct Seen {
    /// The port.
    pub port: PortId,
    /// On its way to the guest.
    pub to_guest: bool,
    /// When.
    pub at: Instant,
}

impl Ring {
    fn with_room() -> Self {
        Self { octets: Vec::with_capacity(RING_OCTETS), records: Vec::with_capacity(RING_RECORDS) }
    }
}

impl Capture {
    /// A capture of `ports`, with `workers` rings.
    pub fn new(mut ports: Vec<PortId>, snaplen: usize, drops: Drops, workers: usize) -> Self {
        ports.sort_unstable();
        let rings = (0..workers).map(|_| Mutex::new(Ring::with_room())).collect();
        Self { ports, snaplen, drops, rings, lost: AtomicU64::new(0), began: (Instant::now(), SystemTime::now()) }
    }

    /// Whether a port's packets are wanted.
    pub fn wants(&self, port: PortId) -> bool {
        self.ports.binary_search(&port).is_ok()
    }

    /// Packets that found no room so far.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// What the workers have left since the last call.
    pub fn drain(&self) -> Vec<Ring> {
        let fetch = |ring: &Mutex<Ring>| {
            if ring.lock().unwrap_or_else(PoisonError::into_inner).records.is_empty() {
                return None;
            }
            let empty = Ring::with_room();
            // Held for one exchange: a worker that tries meanwhile loses a burst, and counts it.
            Some(std::mem::replace(&mut *ring.lock().unwrap_or_else(PoisonError::into_inner), empty))
        };
        self.rings.iter().filter_map(fetch).collect()
    }

    /// This worker's ring, unless it is being drained at this moment.
    pub(super) fn try_ring(&self, worker: usize) -> Option<MutexGuard<'_, Ring>> {
        let ring = self.rings.get(worker)?.try_lock().ok();
        if ring.is_none() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        ring
    }

    /// Copies a packet. Returns the number of its record, if there was room.
    pub(super) fn add(&self, ring: &mut Ring, seen: &Seen, packet: &Packet, arena: &[Segment]) -> Option<u32> {
        let captured = packet.len().min(self.snaplen);
        let first = ring.octets.len();
        if ring.octets.capacity() - first < captured || ring.records.capacity() == ring.records.len() {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        ring.octets.resize(first + captured, 0);
        let copied = packet.copy_prefix(arena, &mut ring.octets[first..]);
        debug_assert_eq!(copied, captured);
        let (instant, system) = self.began;
        let since = seen.at.saturating_duration_since(instant);
        ring.records.push(Record {
            at: system.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default() + since,
            port: seen.port,
            to_guest: seen.to_guest,
            len: u32::try_from(packet.len()).unwrap_or(u32::MAX),
            captured: captured as u32,
            verdict: None,
            basis: None,
            denied: None,
        });
        Some(ring.records.len() as u32 - 1)
    }

    /// Fills in what became of a packet.
    pub(super) fn decided(&self, ring: &mut Ring, place: u32, verdict: Verdict, spoken: &Spoken) {
        let Some(record) = ring.records.get_mut(place as usize) else { return };
        let is_drop = matches!(verdict, Verdict::Drop(_));
        if is_drop && self.drops == Drops::No || !is_drop && self.drops == Drops::Only {
            return;
        }
        record.verdict = Some(verdict);
        record.basis = spoken.basis;
        let denied = spoken.denied.filter(|_| matches!(verdict, Verdict::Drop(DropReason::PolicyDenied)));
        record.denied = denied.map(|denied| {
            let subject = if denied.direction == Direction::Egress { record.port } else { denied.out_port };
            (denied.direction, subject, denied.decision.basis.to_u32())
        });
    }
}

#[cfg(test)]
mod tests {
    use hostweave_switch::packet::Meta;

    use super::*;

    fn add(capture: &Capture, len: usize) -> Option<u32> {
        add_with(capture, len, Verdict::Drop(DropReason::NoRoute))
    }

    fn add_with(capture: &Capture, len: usize, verdict: Verdict) -> Option<u32> {
        let frame = vec![0x5a; len];
        let mut burst = hostweave_switch::packet::Burst::new();
        let seen = Seen { port: PortId(1), to_guest: false, at: Instant::now() };
        let mut ring = capture.try_ring(0).unwrap();
        burst.with_frame(Meta::default(), &frame, frame.len().min(64), |packet, arena| {
            let place = capture.add(&mut ring, &seen, packet, arena);
            if let Some(place) = place {
                capture.decided(&mut ring, place, verdict, &Spoken::default());
            }
            place
        })
    }

    #[test]
    fn frames_are_cut_and_what_finds_no_room_is_counted() {
        let capture = Capture::new(vec![PortId(1)], 1_000, Drops::Also, 1);
        assert!(capture.wants(PortId(1)) && !capture.wants(PortId(2)));
        let mut kept = 0;
        while add(&capture, 1_500).is_some() {
            kept += 1;
        }
        assert_eq!(kept, RING_OCTETS / 1_000);
        assert_eq!(capture.lost(), 1);
        let rings = capture.drain();
        assert_eq!((rings.len(), rings[0].records.len()), (1, kept));
        assert!(rings[0].octets.iter().all(|octet| *octet == 0x5a));
        assert_eq!((rings[0].records[0].len, rings[0].records[0].captured), (1_500, 1_000));
        assert!(capture.drain().is_empty());
        assert_eq!(add(&capture, 60), Some(0), "there is room again");
    }

    #[test]
    fn small_frames_are_bounded_by_their_number() {
        let capture = Capture::new(vec![PortId(1)], 65_535, Drops::Also, 1);
        let kept = std::iter::from_fn(|| add(&capture, 60)).count();
        assert_eq!((kept, capture.lost()), (RING_RECORDS, 1));
    }

    #[test]
    fn drops_only_on_request() {
        let (dropped, passed) = (Verdict::Drop(DropReason::NoRoute), Verdict::Forward);
        for (drops, expected) in [
            (Drops::Also, [Some(dropped), Some(passed)]),
            (Drops::No, [None, Some(passed)]),
            (Drops::Only, [Some(dropped), None]),
        ] {
            let capture = Capture::new(vec![PortId(1)], 100, drops, 1);
            for verdict in [dropped, passed] {
                add_with(&capture, 60, verdict);
            }
            let drained = capture.drain();
            let verdicts: Vec<_> = drained[0].records.iter().map(|record| record.verdict).collect();
            assert_eq!(verdicts, expected, "{drops:?}");
        }
    }

    #[test]
    fn a_ring_that_is_being_drained_loses_a_burst_and_counts_it() {
        let capture = Capture::new(vec![PortId(1)], 100, Drops::Also, 1);
        let held = capture.try_ring(0).unwrap();
        assert!(capture.try_ring(0).is_none());
        drop(held);
        assert_eq!(capture.lost(), 1);
    }
}
