//! A worker: one pinned thread that takes bursts from its sources, runs each packet through [`crate::datapath`],
//! writes it into its destination, and sleeps in its `io_uring` when nothing is left to do.
//!
//! # Theory of operation
//!
//! A source (a guest's transmit queue, a TAP device, an internal port) belongs to one worker. A queue is *hot* while
//! it had packets during the last 100 µs: it is polled in every loop and its guest is told not to kick. When it cools
//! down, notifications are turned on, the ring is looked at once more, and its kick eventfd is handed to the
//! `io_uring`: a cold queue costs nothing. A worker without hot queues blocks in the `io_uring`, where kicks, devices'
//! frames, its mailbox and nothing else wake it. While it moves bulk data it naps between two looks (`idle`).
//!
//! The loop reads the clock once. It never allocates, blocks, or waits for a lock on behalf of a packet.

pub(crate) mod burst;
pub mod capture;
pub mod clock;
pub mod delivery;
mod ended;
mod idle;
mod oversize;
pub mod pace;
pub mod probe;
mod sources;
mod stash;
pub mod verdicts;
pub mod watch;

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Cache};
use crossbeam_queue::ArrayQueue;
use hostweave_nat::Nat;
use hostweave_switch::connection::{Connections, FreeRecords};
use hostweave_switch::flow::{FlowCache, NO_QUEUE};
use hostweave_switch::fragment::Fragments;
use hostweave_switch::limits::{BURST, HEAD_FIRST};
use hostweave_switch::packet::{Burst, Meta, Packet};
use hostweave_switch::stage::DropReason;
use hostweave_switch::tables::PortId;
use hostweave_switch::wire::frame::FRAME_LEN_MAX;
use hostweave_uplink::device::Device;
use hostweave_uplink::uring::{Event, Frame, Uring};
use hostweave_vhost::FromGuestQueue;

use crate::datapath::Lookup;
use crate::fabric::mailbox::{Mailbox, Message};
use crate::fabric::plane::{Plane, Source, SourceKey};
use crate::observe::flow_event::FlowEvent;
use crate::services::{ALL_NODES, LocalNote, MULTICAST_ALL_NODES, router_advertisement};
use burst::{teller, why_ended};
use clock::Clock;
use delivery::{Delivery, Outcome, counters};
use idle::Load;
use oversize::Released;
use pace::Pace;
use sources::Sources;
use stash::{Retry, Stash};
use verdicts::Verdicts;
use watch::Watch;

/// Events for the flow log that a worker may leave before control looks; more are lost and counted.
pub const FLOWS_MAX: usize = 8_192;

/// Notes that a worker may leave for control before it looks; more are lost and counted.
pub const NOTES_MAX: usize = 4_096;

/// Something that a worker saw and control must hear.
#[derive(Clone, Debug)]
pub enum Note {
    /// From the `local` stage.
    Local(PortId, LocalNote),
    /// A device failed (gone, or its namespace is).
    DeviceFailed(PortId, std::io::ErrorKind),
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
    /// Events for the flow log that found no room, or were more than their port may cause.
    pub flows_lost: AtomicU64,
    /// What policy said about new connections and packets that it denied.
    pub verdicts: Verdicts,
}

/// What a worker shares with control.
pub struct Shared {
    /// Index of the worker.
    pub index: usize,
    /// The published plane.
    pub plane: Arc<ArcSwap<Plane>>,
    /// The connections of all workers.
    pub connections: Arc<Connections>,
    /// NAT mappings and blocks of all workers.
    pub nat: Arc<Nat>,
    /// Fragments of all workers.
    pub fragments: Arc<Fragments>,
    /// Seconds of the monotonic clock.
    pub clock: Clock,
    /// What happened to connections, for the flow log.
    pub flows: ArrayQueue<FlowEvent>,
    /// Whether the thread that takes the flow log's events sleeps until it is woken.
    pub flows_awaited: AtomicBool,
    /// Orders.
    pub mailbox: Mailbox,
    /// News.
    pub notes: ArrayQueue<Note>,
    /// The thread that reads the news.
    pub listener: std::thread::Thread,
    /// Revision of the tables that the worker works with; it looks at no older ones any more.
    pub revision: AtomicU64,
    /// Time and packets.
    pub stats: WorkerStats,
    /// Probes and captures, of all workers.
    pub watch: Arc<Watch>,
}

impl Shared {
    /// Leaves an event for the flow log; one that finds no room is counted. Whoever takes them is woken once, and then looks
    /// by itself for as long as there are some.
    pub fn log(&self, event: FlowEvent) {
        if self.flows.push(event).is_err() {
            add(&self.stats.flows_lost, 1);
        }
        if self.flows_awaited.load(Ordering::Acquire) && self.flows_awaited.swap(false, Ordering::AcqRel) {
            self.listener.unpark();
        }
    }

    /// Leaves a note and wakes the listener.
    pub fn note(&self, note: Note) {
        if self.notes.push(note).is_err() {
            add(&self.stats.notes_lost, 1);
        }
        self.listener.unpark();
    }
}

/// One worker's private state.
pub struct Worker {
    path: Path,
    sources: Sources,
    messages: Vec<Message>,
    events: Vec<Event>,
}

impl Worker {
    /// A worker that runs on the calling thread, which must be the one that made `uring`.
    pub fn new(shared: Arc<Shared>, uring: Uring, cache: FlowCache) -> Self {
        let path = Path {
            shared,
            uring,
            cache,
            burst: Burst::new(),
            frames: Vec::with_capacity(BURST),
            frames_of: PortId::NONE,
            lookups: vec![Lookup::default(); BURST].into(),
            free: FreeRecords::new(),
            released: Vec::new(),
            stash: Stash::new(),
            pace: Pace::default(),
            load: Load::default(),
        };
        Self { path, sources: Sources::default(), messages: Vec::new(), events: Vec::new() }
    }

    /// Runs until [`Message::Stop`].
    pub fn run(mut self) {
        let mut published = Cache::new(Arc::clone(&self.path.shared.plane));
        let mut loaded = u64::MAX;
        let mut before = now();
        loop {
            let plane = published.load();
            if plane.tables.revision != loaded {
                loaded = plane.tables.revision;
                self.path.shared.revision.store(loaded, Ordering::Release);
                self.plane_changed(plane);
            }
            if self.mail(plane, before) {
                return;
            }
            let packets = self.turn(plane, before);
            let after = now();
            self.path.account(packets, after.saturating_duration_since(before));
            before = after;
            if packets == 0 && self.path.stash.is_empty() {
                before = self.rest_from(before);
            }
        }
    }

    /// Waits for more to do, if there is nothing to poll, or a stream that may wait. Returns the time.
    fn rest_from(&mut self, since: Instant) -> Instant {
        if self.sources.may_sleep() {
            let poll_only = self.sources.poll_only();
            return self.path.sleep(since, |uring| uring.wait(poll_only.then_some(idle::POLL_INTERVAL)));
        }
        // The last look at the queue may have found a kick, of a ring that was not visited since.
        if self.path.load.is_bulk() && !self.sources.has_news() {
            return self.path.sleep(since, |uring| uring.nap(idle::NAP));
        }
        since
    }

    /// One loop over everything that may have packets. Returns how many there were.
    fn turn(&mut self, plane: &Plane, now: Instant) -> usize {
        let mut packets = self.completions(plane, now);
        let mut position = 0;
        while let Some(index) = self.sources.hot(position) {
            let taken = match self.sources.visit(index) {
                Some((key, source, tell)) => self.path.serve(plane, key, source, tell, now),
                None => 0,
            };
            packets += taken;
            if !self.sources.rest(index, taken, now, &mut self.path.uring) {
                position += 1;
            }
        }
        if !self.path.stash.is_empty() {
            self.path.retry_stash(plane, now);
        }
        // Twice at most: what is cut is not cut again.
        while !self.path.released.is_empty() {
            self.path.release(plane, now);
        }
        if !self.path.shared.fragments.is_idle() {
            self.path.expire_fragments(plane, now);
        }
        if self.path.load.is_bulk() {
            // A stream is acknowledged as soon as it was sent: the guest hears of both at once.
            packets += self.completions(plane, now);
        }
        self.path.uring.submit();
        packets
    }

    /// Kicks and frames of devices that arrived in the completion queue.
    fn completions(&mut self, plane: &Plane, now: Instant) -> usize {
        let events = &mut self.events;
        self.path.uring.poll_completions(&mut |event| events.push(event));
        let mut packets = 0;
        for event in self.events.drain(..) {
            match event {
                Event::Kick { token } => self.sources.kicked(token),
                Event::Frame { token, frame } => {
                    if let Some((key, Source::Device(device))) = self.sources.by_token(token) {
                        packets += 1;
                        self.path.take_frame(plane, key.port, device, frame, now);
                    } else {
                        self.path.uring.release(frame);
                    }
                }
                Event::Refused { port, octets } => {
                    if let Some(count) = counters(plane, port, self.path.shared.index) {
                        // It was counted when it was queued.
                        count.transmitted.sub(1);
                        count.transmitted_bytes.sub(octets as u64);
                        count.tx_dropped.add(DropReason::DeviceError, 1);
                    }
                    self.path.log_ended(plane, [PortId::NONE, port], DropReason::DeviceError, now);
                }
                Event::Lost { token } => {
                    if let Some((key, _)) = self.sources.by_token(token)
                        && let Some(count) = counters(plane, key.port, self.path.shared.index)
                    {
                        count.received.add(1);
                        count.dropped.add(DropReason::GsoBad, 1);
                        self.path.log_ended(plane, [key.port, PortId::NONE], DropReason::GsoBad, now);
                    }
                }
                Event::Failed { token, error } => {
                    if let Some((key, _)) = self.sources.by_token(token) {
                        self.path.shared.note(Note::DeviceFailed(key.port, error.kind()));
                    }
                }
            }
        }
        self.path.run_frames(plane, now);
        packets
    }

    fn mail(&mut self, plane: &Plane, now: Instant) -> bool {
        self.path.shared.mailbox.take(&mut self.messages);
        let mut stop = false;
        for message in self.messages.drain(..) {
            match message {
                Message::PlaneChanged => {}
                Message::SourceStarted(key) => self.sources.started(key),
                Message::SourceStopped(key) => self.sources.stopped(key, &mut self.path.uring),
                Message::Advertise(port) => self.path.advertise(plane, port, now),
                Message::Originate(port, frames) => {
                    frames.iter().for_each(|frame| self.path.originate(plane, port, frame, now));
                }
                Message::Probe(shot) => self.path.shoot(plane, &shot, now),
                Message::Stop => stop = true,
            }
        }
        stop
    }

    fn plane_changed(&mut self, plane: &Plane) {
        self.path.pace.resize(plane.tables.ports.len());
        let mine = plane.sources.get(self.path.shared.index).map_or(&[][..], |sources| &**sources);
        self.sources.update(mine, &mut self.path.uring);
    }
}

/// What a burst needs on its way, apart from the sources.
struct Path {
    shared: Arc<Shared>,
    uring: Uring,
    burst: Burst,
    /// Frames of a device whose payloads the burst names, and the device's port.
    frames: Vec<Frame>,
    frames_of: PortId,
    lookups: Box<[Lookup]>,
    cache: FlowCache,
    free: FreeRecords,
    /// Fragments whose first one came with the burst that is under way, and pieces of packets that were cut.
    released: Vec<Released>,
    stash: Stash,
    pace: Pace,
    load: Load,
}

impl Path {
    fn account(&mut self, packets: usize, spent: Duration) {
        let stats = &self.shared.stats;
        let spent = u64::try_from(spent.as_nanos()).unwrap_or(u64::MAX);
        if packets > 0 {
            add(&stats.busy_ns, spent);
            add(&stats.packets, packets as u64);
            self.load.moved(packets);
        } else {
            add(&stats.polling_ns, spent);
        }
    }

    /// Blocks in the `io_uring`. Returns the time it woke.
    fn sleep(&mut self, since: Instant, wait: impl FnOnce(&mut Uring)) -> Instant {
        wait(&mut self.uring);
        let woke = now();
        let asleep = woke.saturating_duration_since(since).as_nanos();
        add(&self.shared.stats.asleep_ns, u64::try_from(asleep).unwrap_or(u64::MAX));
        add(&self.shared.stats.sleeps, 1);
        woke
    }

    /// Takes one burst from a source. Returns how many frames it had.
    #[inline]
    fn serve(&mut self, plane: &Plane, key: SourceKey, source: &Source, tell: bool, now: Instant) -> usize {
        match source {
            Source::Vhost(attachment, pair) => match attachment.queues().get(*pair) {
                Some(pair) => self.serve_guest(plane, key, &pair.from_guest, tell, now),
                None => 0,
            },
            Source::Internal(internal) => {
                let frames = internal.take(&mut self.burst);
                if frames > 0 {
                    self.run_burst(plane, key.port, NO_QUEUE, now);
                    self.burst.clear();
                    internal.release();
                }
                frames
            }
            Source::Device(_) => 0,
        }
    }

    /// `rx` from a guest. The ring stays claimed until the burst was delivered: payloads are copied straight from
    /// the guest's memory, which nobody can take away meanwhile.
    #[inline]
    fn serve_guest(
        &mut self,
        plane: &Plane,
        key: SourceKey,
        queue: &FromGuestQueue,
        tell: bool,
        now: Instant,
    ) -> usize {
        let port = key.port;
        let Some(mut ring) = queue.try_claim() else { return 0 };
        if tell {
            ring.disable_notifications();
        }
        let count = counters(plane, port, self.shared.index);
        let mut teller = teller(&self.shared, &mut self.pace, plane, now);
        let mut dropped = 0;
        // A broken ring has told its port's own thread, which stops it.
        let _ = ring.receive(port, &mut self.burst, &mut |reason| {
            dropped += 1;
            if let Some(count) = count {
                count.received.add(1);
                count.dropped.add(reason, 1);
            }
            teller.ended([port, PortId::NONE], FlowEvent::no_tuple(), reason);
        });
        if !self.burst.is_empty() {
            // At most 16 queue pairs.
            self.run_burst(plane, port, key.pair as u8, now);
        }
        let frames = self.burst.len() + dropped;
        self.burst.clear();
        if frames > 0
            && let Some(call) = ring.complete()
        {
            self.uring.signal(call.into());
        }
        frames
    }

    /// `rx` from a device: a frame that the kernel wrote into a buffer of ours. Those of one device make a burst.
    fn take_frame(&mut self, plane: &Plane, port: PortId, device: &Device, frame: Frame, now: Instant) {
        if self.frames_of != port || self.frames.len() == BURST || !self.burst.has_room(1) {
            self.run_frames(plane, now);
            self.frames_of = port;
        }
        match device.receive(port, &frame, &mut self.burst) {
            Ok(()) => self.frames.push(frame),
            Err(reason) => {
                self.uring.release(frame);
                if let Some(count) = counters(plane, port, self.shared.index) {
                    count.received.add(1);
                    count.dropped.add(reason, 1);
                }
                self.log_ended(plane, [port, PortId::NONE], reason, now);
            }
        }
    }

    /// Takes the frames that a device brought through the pipeline.
    fn run_frames(&mut self, plane: &Plane, now: Instant) {
        if self.frames.is_empty() {
            return;
        }
        self.run_burst(plane, self.frames_of, NO_QUEUE, now);
        self.burst.clear();
        for frame in self.frames.drain(..) {
            self.uring.release(frame);
        }
    }

    /// Sends a router advertisement that nobody asked for, so that the lifetimes of the last one never run out.
    #[cold]
    fn advertise(&mut self, plane: &Plane, port: PortId, now: Instant) {
        if !plane.tables.local.ra {
            return;
        }
        let Some(output) = plane.tables.port(port) else { return };
        let Some(network) = plane.tables.network(output.network) else { return };
        let mut frame = [0; FRAME_LEN_MAX];
        let Ok(len) = router_advertisement(network, output, MULTICAST_ALL_NODES, ALL_NODES, &mut frame) else { return };
        self.originate(plane, port, &frame[..len], now);
    }

    /// Tells the flow log of a frame that is no more, or was none.
    #[cold]
    fn log_ended(&mut self, plane: &Plane, ends: [PortId; 2], reason: DropReason, now: Instant) {
        teller(&self.shared, &mut self.pace, plane, now).ended(ends, FlowEvent::no_tuple(), reason);
    }

    /// Sends a frame of the host's own, which fits a packet's private slot.
    #[cold]
    fn originate(&mut self, plane: &Plane, port: PortId, frame: &[u8], now: Instant) {
        let worker = self.shared.index;
        let Some(count) = counters(plane, port, worker) else { return };
        let Path { shared, uring, stash, burst, pace, .. } = self;
        let mut out = Delivery::new(plane, worker, 1, shared.clock.ticks(now));
        count.originated.add(1);
        burst.with_frame(Meta::default(), frame, HEAD_FIRST, |packet, arena| {
            let outcome = out.deliver(uring, packet, arena, port);
            if let Some(reason) = why_ended(stash, plane, worker, packet, arena, port, &outcome, now) {
                teller(shared, pace, plane, now).undelivered(packet, None, port, reason);
            }
        });
        out.finish(uring);
    }

    #[cold]
    fn retry_stash(&mut self, plane: &Plane, now: Instant) {
        let worker = self.shared.index;
        let mut out = Delivery::new(plane, worker, 1, self.shared.clock.ticks(now));
        let Path { shared, uring, stash, pace, .. } = self;
        let left = |to: PortId| counters(plane, to, worker).inspect(|counters| counters.tx_queued.sub(1));
        // Both tell of what ended.
        let teller = RefCell::new(teller(shared, pace, plane, now));
        let told = |packet: &Packet, to, reason| teller.borrow_mut().undelivered(packet, None, to, reason);
        stash.retry(
            now,
            |packet, arena, to| {
                let outcome = out.deliver(uring, packet, arena, to);
                if matches!(outcome, Outcome::Busy) {
                    return Retry::Busy;
                }
                left(to);
                if let Outcome::Dropped(reason) = outcome {
                    told(packet, to, reason);
                }
                Retry::Over
            },
            |packet, to| {
                if let Some(counters) = left(to) {
                    counters.tx_dropped.add(DropReason::GuestRingBusy, 1);
                }
                told(packet, to, DropReason::GuestRingBusy);
            },
        );
        out.finish(&mut self.uring);
    }
}

/// The only reading of the clock on the packet path.
#[inline]
fn now() -> Instant {
    Instant::now()
}

/// Adds to a counter of which this thread is the only writer.
#[inline]
fn add(counter: &AtomicU64, value: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(value), Ordering::Relaxed);
}
