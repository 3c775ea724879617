//! What looks at packets besides the switch itself: probes of `ping`, whose answers must not reach the guest, and captures.
//!
//! Theory of operation: [`Watch`] is one flag and one pointer that all workers share. While nothing is watched, a burst reads
//! the flag once and goes through code without any trace of watching ([`Nobody`]). Otherwise it goes through the same code
//! with a [`Somebody`], which is told of each packet as it arrives, is decided about, and is delivered. Only then it costs
//! anything, and only then it takes a lock: that of this worker's ring of each capture, with one try, for one burst.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;
use arrayvec::ArrayVec;
use hostweave_switch::connection::Connections;
use hostweave_switch::limits::BURST;
use hostweave_switch::packet::{Burst, Packet};
use hostweave_switch::payload::Segment;
use hostweave_switch::stage::{DropReason, Verdict};
use hostweave_switch::tables::PortId;

use super::capture::{Capture, Ring, Seen};
use super::delivery::Outcome;
use super::probe::Probe;
use crate::connect::Denied;
use crate::datapath::{Context, Lookup};

/// Captures that may run at a time on a host.
pub const CAPTURES_MAX: usize = 4;

/// Probes that may be under way at a time on a host.
pub const PROBES_MAX: usize = 64;

/// What all workers look for.
#[derive(Default)]
pub struct Watch {
    on: AtomicBool,
    watching: ArcSwap<Watching>,
    change: Mutex<()>,
}

/// What there is to look for. Immutable.
#[derive(Clone, Default)]
pub struct Watching {
    /// Probes whose answers are awaited.
    pub probes: Vec<Arc<Probe>>,
    /// Captures that run, with their numbers.
    pub captures: Vec<(u64, Arc<Capture>)>,
}

impl Watch {
    /// Whether anything is watched.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// What is watched now.
    pub fn watching(&self) -> Arc<Watching> {
        self.watching.load_full()
    }

    /// Adds or removes something. `false` from `change` leaves everything as it is.
    pub fn change(&self, change: impl FnOnce(&mut Watching) -> bool) -> bool {
        // A panic under this lock leaves the old pointer or the new one.
        let _change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let mut watching = Watching::clone(&self.watching());
        if !change(&mut watching) {
            return false;
        }
        let on = !watching.probes.is_empty() || !watching.captures.is_empty();
        self.watching.store(Arc::new(watching));
        self.on.store(on, Ordering::Release);
        true
    }
}

/// Told of each packet of a burst.
pub trait Watcher {
    /// Whether anybody is told at all.
    const ON: bool;

    /// The burst, as the port sent it.
    fn arrived(&mut self, _ctx: &Context<'_>, _burst: &Burst) {}

    /// The packet that is under way went through the second half of the pipeline.
    fn spoken(&mut self, _connections: &Connections, _lookup: &Lookup, _denied: Option<Denied>) {}

    /// What became of a packet.
    fn decided(&mut self, _index: usize, _verdict: Verdict) {}

    /// Whether a packet for `to` is the answer to a probe, which ends here.
    fn takes(&mut self, _ctx: &Context<'_>, _packet: &mut Packet, _arena: &mut [Segment], _to: PortId) -> bool {
        false
    }

    /// A packet was handed to `to`.
    fn delivered(&mut self, _packet: &Packet, _arena: &[Segment], _to: PortId, _outcome: &Outcome) {}
}

/// Is told nothing and costs nothing.
pub struct Nobody;

impl Watcher for Nobody {
    const ON: bool = false;
}

/// Is told of everything while something is watched.
pub struct Somebody<'a> {
    watching: &'a Watching,
    captures: ArrayVec<Open<'a>, CAPTURES_MAX>,
    now: Instant,
    /// What policy said about the packet that is under way.
    spoken: Spoken,
    from: PortId,
    vni: u32,
}

/// What policy said.
#[derive(Clone, Copy, Default)]
pub struct Spoken {
    /// The packet has a flow.
    pub flow: bool,
    /// What allowed its connection, egress and ingress.
    pub basis: Option<[u32; 2]>,
    /// What policy said against it.
    pub denied: Option<Denied>,
}

/// A capture for one burst.
struct Open<'a> {
    capture: &'a Capture,
    ring: MutexGuard<'a, Ring>,
    /// Records of the packets as they arrived, [`NO_RECORD`] for those without.
    arrived: [u32; BURST],
}

/// There is no record of a packet.
const NO_RECORD: u32 = u32::MAX;

impl<'a> Somebody<'a> {
    /// For one burst of a worker.
    pub fn new(watching: &'a Watching, worker: usize, now: Instant) -> Self {
        let mut captures = ArrayVec::new();
        for (_, capture) in watching.captures.iter().take(CAPTURES_MAX) {
            if let Some(ring) = capture.try_ring(worker) {
                captures.push(Open { capture, ring, arrived: [NO_RECORD; BURST] });
            }
        }
        Self { watching, captures, now, spoken: Spoken::default(), from: PortId::NONE, vni: 0 }
    }
}

impl Watcher for Somebody<'_> {
    const ON: bool = true;

    fn arrived(&mut self, ctx: &Context<'_>, burst: &Burst) {
        (self.from, self.vni) = (ctx.port.id, ctx.network.vni);
        for open in self.captures.iter_mut().filter(|open| open.capture.wants(ctx.port.id)) {
            for (place, packet) in open.arrived.iter_mut().zip(burst.packets()) {
                let seen = Seen { port: ctx.port.id, to_guest: false, at: self.now };
                *place = open.capture.add(&mut open.ring, &seen, packet, &burst.segments).unwrap_or(NO_RECORD);
            }
        }
    }

    fn spoken(&mut self, connections: &Connections, lookup: &Lookup, denied: Option<Denied>) {
        let wanted = !self.captures.is_empty();
        let found = wanted.then(|| connections.find(&lookup.key, lookup.hash, self.vni)).flatten();
        let entry = found.and_then(|found| connections.entry(found.index, found.generation));
        self.spoken = Spoken { flow: true, basis: entry.map(|entry| entry.basis), denied };
    }

    fn decided(&mut self, index: usize, verdict: Verdict) {
        for open in &mut self.captures {
            if let Some(place) = open.arrived.get(index).copied().filter(|place| *place != NO_RECORD) {
                open.capture.decided(&mut open.ring, place, verdict, &self.spoken);
            }
        }
        if !matches!(verdict, Verdict::Forward) {
            self.spoken = Spoken::default();
        }
    }

    fn takes(&mut self, ctx: &Context<'_>, packet: &mut Packet, arena: &mut [Segment], to: PortId) -> bool {
        self.watching.probes.iter().any(|probe| probe.takes(ctx.network.vni, packet, arena, to))
    }

    fn delivered(&mut self, packet: &Packet, arena: &[Segment], to: PortId, outcome: &Outcome) {
        let spoken = std::mem::take(&mut self.spoken);
        for open in self.captures.iter_mut().filter(|open| open.capture.wants(to)) {
            let seen = Seen { port: to, to_guest: true, at: self.now };
            let Some(place) = open.capture.add(&mut open.ring, &seen, packet, arena) else { continue };
            let verdict = match outcome {
                Outcome::Dropped(reason) => Verdict::Drop(*reason),
                Outcome::Done | Outcome::Busy if to == self.from && !spoken.flow => Verdict::Reply,
                Outcome::Done | Outcome::Busy => Verdict::Forward,
            };
            open.capture.decided(&mut open.ring, place, verdict, &spoken);
        }
    }
}

/// Counted at the port whose guest does not get a probe's answer.
pub const ANSWER_ENDS: DropReason = DropReason::ProbeAnswer;
