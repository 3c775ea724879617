//! A worker: one pinned thread that takes bursts from its sources, runs each packet through [`crate::datapath`],
//! writes it into its destination, and sleeps in its `io_uring` when nothing is left to do.
//!
//! # Theory of operation
//!
//! A source (a guest's transmit queue, a TAP device, an internal port) belongs to one worker. A queue is *hot* while
//! it had packets during the last 100 µs: it is polled in every loop and its guest is told not to kick. When it cools
//! down, notifications are turned on, the ring is looked at once more, and its kick eventfd is handed to the
//! `io_uring`: a cold queue costs nothing. A worker without hot queues blocks in the `io_uring`, where kicks, TAP
//! frames, its mailbox and nothing else wake it.
//!
//! The loop reads the clock once. It never allocates, blocks, or waits for a lock on behalf of a packet.

pub mod delivery;
pub mod pace;
mod sources;
mod stash;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Cache};
use crossbeam_queue::ArrayQueue;
use hostweave_switch::counters::PortCounters;
use hostweave_switch::icmp_error::{self, ErrorKind};
use hostweave_switch::packet::{Burst, Offload, Packet};
use hostweave_switch::payload::Segment;
use hostweave_switch::stage::{DropReason, Verdict};
use hostweave_switch::tables::{Network, PortId};
use hostweave_uplink::uring::Uring;

use crate::datapath;
use crate::fabric::mailbox::{Mailbox, Message};
use crate::fabric::plane::{Plane, SourceKey};
use crate::services::LocalNote;
use delivery::{Delivery, Outcome, counters};
use pace::Pace;
use sources::Sources;
use stash::{Retry, Stash};

/// Notes that a worker may leave for control before it looks; more are lost and counted.
pub const NOTES_MAX: usize = 4_096;

/// Something that a worker saw and control must hear.
#[derive(Clone, Debug)]
pub enum Note {
    /// From the `local` stage.
    Local(PortId, LocalNote),
    /// A source's ring is broken: stop its attachment.
    SourceFault(SourceKey, String),
    /// A destination's ring is broken.
    OutputFault(PortId),
    /// A TAP device failed (gone, or its namespace is).
    TapFailed(PortId, std::io::ErrorKind),
}

/// What a worker shows of itself.
#[derive(Default)]
pub struct WorkerStats {
    /// Nanoseconds spent in loops that moved packets.
    pub busy_ns: AtomicU64,
    /// Nanoseconds spent polling for nothing.
    pub polling_ns: AtomicU64,
    /// Nanoseconds asleep.
    pub asleep_ns: AtomicU64,
    /// Frames taken from sources.
    pub packets: AtomicU64,
    /// Times the worker went to sleep.
    pub sleeps: AtomicU64,
    /// Notes for control that found no room.
    pub notes_lost: AtomicU64,
}

/// What a worker shares with control.
pub struct Shared {
    /// Index of the worker.
    pub index: usize,
    /// The published plane.
    pub plane: Arc<ArcSwap<Plane>>,
    /// Orders.
    pub mailbox: Mailbox,
    /// News.
    pub notes: ArrayQueue<Note>,
    /// The thread that reads the news.
    pub listener: std::thread::Thread,
    /// Time and packets.
    pub stats: WorkerStats,
}

impl Shared {
    /// Leaves a note and wakes the listener.
    pub fn note(&self, note: Note) {
        if self.notes.push(note).is_err() {
            self.stats.notes_lost.fetch_add(1, Ordering::Relaxed);
        }
        self.listener.unpark();
    }
}

/// One worker's private state.
pub struct Worker {
    shared: Arc<Shared>,
    uring: Uring,
    sources: Sources,
    burst: Burst,
    stash: Stash,
    pace: Pace,
    messages: Vec<Message>,
}

impl Worker {
    /// A worker that runs on the calling thread, which must be the one that made `uring`.
    pub fn new(shared: Arc<Shared>, uring: Uring) -> Self {
        Self {
            shared,
            uring,
            sources: Sources::default(),
            burst: Burst::new(),
            stash: Stash::new(),
            pace: Pace::default(),
            messages: Vec::new(),
        }
    }

    /// Runs until [`Message::Stop`].
    pub fn run(mut self) {
        let plane = Arc::clone(&self.shared.plane);
        let mut plane = Cache::new(plane);
        let mut loaded = u64::MAX;
        let mut before = now();
        loop {
            let plane = plane.load();
            if plane.tables.revision != loaded {
                loaded = plane.tables.revision;
                self.plane_changed(plane);
            }
            if self.mail() {
                return;
            }
            let packets = self.turn(plane, before);
            let after = now();
            self.account(packets, after.saturating_duration_since(before));
            before = after;
            if packets == 0 && self.sources.may_sleep() && self.stash.is_empty() {
                before = self.sleep(before);
            }
        }
    }

    /// One loop over everything that may have packets. Returns how many there were.
    fn turn(&mut self, plane: &Plane, now: Instant) -> usize {
        let mut packets = self.completions(plane, now);
        let mut index = 0;
        while let Some(source) = self.sources.hot(index) {
            let taken = self.serve(plane, source, now);
            packets += taken;
            // A source that cooled down left the list, and another took its place.
            if !self.sources.rest(source, taken, now, &mut self.uring) {
                index += 1;
            }
        }
        if !self.stash.is_empty() {
            self.retry_stash(plane, now);
        }
        self.uring.submit();
        packets
    }

    fn mail(&mut self) -> bool {
        self.shared.mailbox.take(&mut self.messages);
        let mut stop = false;
        for message in self.messages.drain(..) {
            match message {
                Message::PlaneChanged => {}
                Message::SourceStarted(key) => self.sources.started(key, &mut self.uring),
                Message::SourceStopped(key) => self.sources.stopped(key, &mut self.uring),
                Message::Stop => stop = true,
            }
        }
        stop
    }

    fn plane_changed(&mut self, plane: &Plane) {
        self.pace.resize(plane.tables.ports.len());
        let mine = plane.sources.get(self.shared.index).map_or(&[][..], Vec::as_slice);
        self.sources.update(mine, &mut self.uring);
    }

    fn account(&self, packets: usize, spent: Duration) {
        let stats = &self.shared.stats;
        let spent = u64::try_from(spent.as_nanos()).unwrap_or(u64::MAX);
        let add = |counter: &AtomicU64, value| counter.store(counter.load(Ordering::Relaxed) + value, Ordering::Relaxed);
        if packets > 0 {
            add(&stats.busy_ns, spent);
            add(&stats.packets, packets as u64);
        } else {
            add(&stats.polling_ns, spent);
        }
    }

    /// Blocks in the `io_uring` until something arrives. Returns the time it woke.
    fn sleep(&mut self, since: Instant) -> Instant {
        self.uring.wait(self.sources.poll_only().then_some(pace::POLL_INTERVAL));
        let woke = now();
        let stats = &self.shared.stats;
        let asleep = u64::try_from(woke.saturating_duration_since(since).as_nanos()).unwrap_or(u64::MAX);
        stats.asleep_ns.store(stats.asleep_ns.load(Ordering::Relaxed) + asleep, Ordering::Relaxed);
        stats.sleeps.store(stats.sleeps.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        woke
    }

    /// Takes the packets in the burst, all from `port`, through the pipeline and into their destinations.
    fn run_burst(&mut self, plane: &Plane, port: PortId, now: Instant) {
        let Some(input) = plane.tables.port(port) else { return };
        let (Some(network), Some(count)) = (plane.tables.network(input.network), input.counters.get(self.shared.index))
        else {
            return;
        };
        let mut out = Delivery::new(plane, self.shared.index);
        let (mut forwarded, mut replied, mut octets) = (0, 0, 0);
        for index in 0..self.burst.len() {
            let (packet, arena) = self.burst.packet_mut(index);
            octets += packet.len() as u64;
            let mut note = None;
            let to = match datapath::process(&plane.tables, input, network, packet, arena, &mut note) {
                Verdict::Forward => {
                    forwarded += 1;
                    packet.meta.out_port
                }
                Verdict::Reply if self.pace.local(port, now) => {
                    replied += 1;
                    port
                }
                Verdict::Reply => {
                    count.dropped.add(DropReason::LocalRateLimited, 1);
                    continue;
                }
                Verdict::Drop(reason) => {
                    count.dropped.add(reason, 1);
                    if !error_reply(packet, arena, network, reason) || !self.pace.icmp_error(port, now) {
                        continue;
                    }
                    count.originated.add(1);
                    port
                }
                Verdict::Continue => {
                    count.dropped.add(DropReason::Internal, 1);
                    continue;
                }
            };
            if matches!(out.deliver(&mut self.uring, packet, arena, to), Outcome::Busy) {
                keep(&mut self.stash, plane, self.shared.index, packet, arena, to, now);
            }
            if let Some(note) = note {
                self.shared.note(Note::Local(port, note));
            }
        }
        out.finish(&mut self.uring);
        count.received.add(self.burst.len() as u64);
        count.received_bytes.add(octets);
        count.forwarded.add(forwarded);
        count.replied.add(replied);
        count.bursts.add(1);
    }

    #[cold]
    fn retry_stash(&mut self, plane: &Plane, now: Instant) {
        let worker = self.shared.index;
        let mut out = Delivery::new(plane, worker);
        let uring = &mut self.uring;
        let left = |to: PortId| counters(plane, to, worker).inspect(|counters| counters.tx_queued.sub(1));
        self.stash.retry(
            now,
            |packet, arena, to| match out.deliver(uring, packet, arena, to) {
                Outcome::Busy => Retry::Busy,
                Outcome::Done | Outcome::Dropped(_) => {
                    left(to);
                    Retry::Over
                }
            },
            |to| {
                if let Some(counters) = left(to) {
                    counters.tx_dropped.add(DropReason::GuestRingBusy, 1);
                }
            },
        );
        out.finish(&mut self.uring);
    }
}

/// Puts a copy of a packet aside whose destination is busy.
#[cold]
fn keep(stash: &mut Stash, plane: &Plane, worker: usize, packet: &Packet, arena: &[Segment], to: PortId, now: Instant) {
    let Some(counters) = counters(plane, to, worker) else { return };
    if stash.push(packet, arena, to, now) {
        counters.tx_queued.add(1);
    } else {
        counters.tx_dropped.add(DropReason::GuestRingBusy, 1);
    }
}

/// Turns a dropped packet into the ICMP error that its sender must hear of, if any.
#[cold]
fn error_reply(packet: &mut Packet, arena: &mut Vec<Segment>, network: &Network, reason: DropReason) -> bool {
    let Some(kind) = icmp_error_for(reason) else { return false };
    packet.meta.offload = Offload::default();
    icmp_error::icmp_error(packet, arena, network, kind)
}

/// Which ICMP error a drop is answered with, if any.
fn icmp_error_for(reason: DropReason) -> Option<ErrorKind> {
    match reason {
        DropReason::TtlExceeded => Some(ErrorKind::TimeExceeded),
        DropReason::NoRoute => Some(ErrorKind::NoRoute),
        DropReason::MtuExceeded => Some(ErrorKind::TooBig),
        _ => None,
    }
}

/// The only reading of the clock on the packet path.
#[inline]
fn now() -> Instant {
    Instant::now()
}

/// This worker's counters for frames that were dropped before they became packets.
fn count_drop(counters: &PortCounters, reason: DropReason) {
    counters.received.add(1);
    counters.dropped.add(reason, 1);
}
