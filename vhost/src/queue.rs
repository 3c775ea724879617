//! A guest's virtqueues as workers use them: frames out of the one, into the other.
//!
//! Theory of operation. A worker claims a queue for one burst ([`FromGuestQueue::try_claim`],
//! [`ToGuestQueue::try_claim`]) and gets a guard. `receive` takes up to 64 chains: headers are copied once into the
//! packet's private slot, the payload stays behind as segments. `transmit` writes the private head, then copies the
//! payload straight from the sender's memory. Nothing is visible to either driver before `complete` and `publish`
//! store the used index, once per burst. The guard of the sender's queue lives until the burst is cleared, so its
//! memory cannot vanish under the segments. The protocol thread takes the same claim to start, stop or move a ring.

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrayvec::ArrayVec;
use hostweave_switch::limits::{BURST, BURST_SEGMENTS, FRAME_MAX, HEAD_FIRST, HEADROOM};
use hostweave_switch::packet::{Burst, Packet};
use hostweave_switch::payload::Segment;
use hostweave_switch::stage::DropReason;
use hostweave_switch::tables::PortId;

use crate::chain;
use crate::claim::{Claim, Claimed};
use crate::fault::Fault;
use crate::memory::GuestSlice;
use crate::offload::{self, check_offload};
use crate::ring::{Descriptor, SplitRing};
use crate::scatter;
use crate::sigbus;

/// Descriptors of chains that one visit of a transmit queue follows before the worker turns to others: at most so many
/// cache misses. 64 GSO frames in pages of 4 KiB have 1,200.
const DESCRIPTORS_MAX: u32 = 4_096;
/// Octets of frames that one visit takes, and a frame more: what a receiver without offloads costs several copies of.
const OCTETS_MAX: usize = 1 << 20;

/// An eventfd that interrupts the guest. Stays open until the last clone is gone, so it may be written later.
#[derive(Clone, Debug)]
pub struct CallFd(pub(crate) Arc<OwnedFd>);

impl From<CallFd> for Arc<OwnedFd> {
    fn from(call: CallFd) -> Self {
        call.0
    }
}

/// Hears of a ring that broke. Called by workers, so it must not block; `false` asks to be told again.
pub(crate) trait FaultSink: Send + Sync {
    /// Stops the port. May be called more than once.
    fn broken(&self, fault: Fault) -> bool;
}

/// What the claim protects.
pub(crate) struct QueueState {
    /// The ring while it is started.
    pub(crate) ring: Option<SplitRing>,
    /// `SET_VRING_ENABLE`.
    pub(crate) enabled: bool,
    /// What the driver took.
    pub(crate) features: u64,
    /// Octets of the virtio-net header.
    pub(crate) header_len: usize,
    pub(crate) call: Option<CallFd>,
    pub(crate) kick: Option<Arc<OwnedFd>>,
    fault: Option<Fault>,
    fault_told: bool,
    /// [`sigbus::faults`] when this queue last looked.
    faults_seen: u32,
    sink: Arc<dyn FaultSink>,
}

impl QueueState {
    /// A new ring, or none: what was wrong before is forgotten.
    pub(crate) fn install(&mut self, ring: Option<SplitRing>) {
        self.ring = ring;
        (self.fault, self.fault_told) = (None, false);
        self.faults_seen = sigbus::faults();
        // Starting it has touched memory already.
        if self.ring.as_ref().is_some_and(SplitRing::poisoned) {
            self.broken(Fault::MemoryShrank);
        }
    }

    /// Marks the ring as broken and tells the port's thread.
    #[cold]
    fn broken(&mut self, fault: Fault) {
        let fault = *self.fault.get_or_insert(fault);
        if !self.fault_told {
            self.fault_told = self.sink.broken(fault);
        }
    }

    /// Once per burst: whether some memory file shrank, and if so, whether it was ours.
    #[inline]
    fn check_memory(&mut self) {
        let faults = sigbus::faults();
        if faults != self.faults_seen {
            self.faults_seen = faults;
            if self.ring.as_ref().is_some_and(SplitRing::poisoned) {
                self.broken(Fault::MemoryShrank);
            }
        }
    }

    fn publish(&mut self) -> Option<CallFd> {
        self.check_memory();
        if self.ring.as_mut()?.publish() { self.call.clone() } else { None }
    }
}

/// One virtqueue of either direction. Different workers use neighbouring queues: none shares a line (or the line that
/// is fetched along with it) with another.
#[repr(align(128))]
pub(crate) struct Queue {
    claim: Claim<QueueState>,
    /// Started and enabled; a hint, the truth is behind the claim.
    running: AtomicBool,
    /// Whether the attachment is the active one.
    active: Arc<AtomicBool>,
}

impl Queue {
    fn new(active: Arc<AtomicBool>, sink: Arc<dyn FaultSink>) -> Self {
        let state = QueueState {
            ring: None,
            enabled: false,
            features: 0,
            header_len: 12,
            call: None,
            kick: None,
            fault: None,
            fault_told: false,
            faults_seen: 0,
            sink,
        };
        Self { claim: Claim::new(state), running: AtomicBool::new(false), active }
    }

    #[inline]
    fn try_claim(&self) -> Option<Claimed<'_, QueueState>> {
        if !self.active.load(Ordering::Acquire) {
            return None;
        }
        self.claim.try_claim()
    }

    #[inline]
    fn is_running(&self) -> bool {
        self.running.load(Ordering::Relaxed) && self.active.load(Ordering::Relaxed)
    }

    /// Started and enabled, whether or not the attachment is active.
    pub(crate) fn is_started(&self) -> bool {
        self.running.load(Ordering::Relaxed)
    }

    /// For the protocol thread: waits for the burst that goes on, then owns the ring.
    pub(crate) fn control(&self) -> Control<'_> {
        Control { queue: self, state: self.claim.claim_blocking() }
    }
}

/// The protocol thread's claim; keeps the hint true.
pub(crate) struct Control<'a> {
    queue: &'a Queue,
    pub(crate) state: Claimed<'a, QueueState>,
}

impl Control<'_> {
    /// Takes everything away that workers could touch.
    pub(crate) fn stop(&mut self) {
        self.state.install(None);
        (self.state.kick, self.state.call) = (None, None);
    }
}

impl Drop for Control<'_> {
    fn drop(&mut self) {
        let running = self.state.ring.is_some() && self.state.enabled;
        self.queue.running.store(running, Ordering::Relaxed);
    }
}

/// A guest's transmit queue.
pub struct FromGuestQueue(pub(crate) Queue);

impl FromGuestQueue {
    /// Claims the queue for one burst; `None` when somebody else has it or the attachment is not active. Never waits.
    #[inline]
    pub fn try_claim(&self) -> Option<FromGuest<'_>> {
        Some(FromGuest { state: self.0.try_claim()? })
    }

    /// Whether the queue is started, enabled and active. A hint.
    #[inline]
    pub fn is_running(&self) -> bool {
        self.0.is_running()
    }
}

/// A guest's transmit queue, claimed for one burst.
pub struct FromGuest<'a> {
    state: Claimed<'a, QueueState>,
}

impl FromGuest<'_> {
    /// Takes chains while the burst has room. The first 116 octets of each frame are copied to the packet's head, the
    /// rest becomes segments; the offload header is checked against the frame. A frame that is no frame ends through
    /// `drops`, and a queue that is not enabled drops all (`queue_disabled`). Returns how many chains were taken,
    /// dropped ones included. The burst must be cleared before this guard is dropped: its segments point into memory
    /// that only the guard keeps.
    ///
    /// # Errors
    /// A broken ring. Packets that were taken before stay in the burst: the fault then comes with the next call.
    pub fn receive(
        &mut self,
        port: PortId,
        burst: &mut Burst,
        drops: &mut dyn FnMut(DropReason),
    ) -> Result<usize, Fault> {
        self.state.check_memory();
        if let Some(fault) = self.state.fault {
            self.state.broken(fault);
            return Err(fault);
        }
        let QueueState { ring: Some(ring), enabled, features, header_len, .. } = &mut *self.state else {
            return Ok(0);
        };
        let mut receiver = Receiver {
            header_len: *header_len,
            features: *features,
            enabled: *enabled,
            port,
            burst,
            drops,
            followed: 0,
            octets: 0,
        };
        let (taken, fault) = receiver.run(ring);
        match fault {
            None => Ok(taken),
            Some(fault) => {
                self.state.broken(fault);
                if taken > 0 { Ok(taken) } else { Err(fault) }
            }
        }
    }

    /// Gives everything that was received back to the driver, which sees it now. The guest's eventfd, if it wants to
    /// be interrupted.
    #[inline]
    pub fn complete(&mut self) -> Option<CallFd> {
        self.state.publish()
    }

    /// Asks the driver to kick. True when work arrived meanwhile: then do not sleep.
    pub fn enable_notifications(&mut self) -> bool {
        self.state.ring.as_mut().is_some_and(SplitRing::enable_notifications)
    }

    /// Asks the driver not to kick.
    pub fn disable_notifications(&mut self) {
        if let Some(ring) = &mut self.state.ring {
            ring.disable_notifications();
        }
    }

    /// The eventfd that the driver kicks; `None` when the ring is stopped or its VMM asked for polling.
    pub fn kick(&self) -> Option<Arc<OwnedFd>> {
        self.state.kick.clone()
    }

    /// Whether the ring is started without a kick eventfd: then it must be polled.
    pub fn must_poll(&self) -> bool {
        self.state.ring.is_some() && self.state.kick.is_none()
    }
}

/// What became of a chain.
enum Taken {
    Packet,
    Drop(DropReason),
    /// Its segments do not fit this burst any more.
    NoRoom,
}

/// One call of `receive`.
struct Receiver<'b> {
    header_len: usize,
    features: u64,
    enabled: bool,
    port: PortId,
    burst: &'b mut Burst,
    drops: &'b mut dyn FnMut(DropReason),
    /// Descriptors of chains that were followed.
    followed: u32,
    /// Octets of frames that were taken.
    octets: usize,
}

impl Receiver<'_> {
    fn run(&mut self, ring: &mut SplitRing) -> (usize, Option<Fault>) {
        let room = BURST - self.burst.len();
        let count = match ring.available() {
            Ok(available) => usize::from(available).min(room),
            Err(fault) => return (0, Some(fault)),
        };
        let mut heads = ArrayVec::<u16, BURST>::new();
        let fault = self.take(ring, count, &mut heads).err();
        for head in &heads {
            ring.finish(*head, 0);
        }
        (heads.len(), fault)
    }

    /// Two passes: the first asks for the buffers' lines while it reads descriptors, the second copies.
    fn take(&mut self, ring: &SplitRing, count: usize, heads: &mut ArrayVec<u16, BURST>) -> Result<(), Fault> {
        let mut chains = ArrayVec::<(u16, Descriptor, Option<GuestSlice<'_>>), BURST>::new();
        let mut fault = None;
        for offset in 0..count {
            match ring.peek(offset as u16) {
                Ok((head, first)) => {
                    let slice = if first.is_single() { ring.memory().slice(first.address, first.len) } else { None };
                    if let Some(slice) = &slice {
                        slice.prefetch();
                    }
                    ring.prefetch_used(offset as u16);
                    chains.push((head, first, slice));
                }
                Err(bad) => {
                    fault = Some(bad);
                    break;
                }
            }
        }
        for (head, first, slice) in &chains {
            match self.take_chain(ring, first, *slice)? {
                Taken::Packet => self.burst.push(),
                Taken::Drop(reason) => (self.drops)(reason),
                Taken::NoRoom => return Ok(()),
            }
            heads.push(*head);
            if self.followed >= DESCRIPTORS_MAX || self.octets >= OCTETS_MAX {
                // The rest is for the next visit: others share this worker.
                return Ok(());
            }
        }
        fault.map_or(Ok(()), Err)
    }

    #[inline]
    fn take_chain(
        &mut self,
        ring: &SplitRing,
        first: &Descriptor,
        slice: Option<GuestSlice<'_>>,
    ) -> Result<Taken, Fault> {
        if !self.enabled {
            return Ok(Taken::Drop(DropReason::QueueDisabled));
        }
        match slice {
            Some(slice) if !first.is_writable() => Ok(self.take_single(slice)),
            _ => self.take_scattered(ring, *first),
        }
    }

    /// The whole chain is one buffer in one region.
    #[inline]
    fn take_single(&mut self, slice: GuestSlice<'_>) -> Taken {
        let (header_len, len) = (self.header_len, slice.len());
        if let Err(reason) = check_len(len, header_len) {
            return Taken::Drop(reason);
        }
        let copied = len.min(header_len + HEAD_FIRST);
        if len > copied && self.burst.segments.len() == BURST_SEGMENTS {
            return Taken::NoRoom;
        }
        let (packet, arena) = self.burst.next_slot(self.port);
        slice.read(&mut packet.slot()[HEADROOM - header_len..HEADROOM - header_len + copied]);
        let at = arena.len();
        if len > copied {
            arena.push(slice.part(copied, len - copied).segment());
        }
        packet.set_frame(copied - header_len, at, arena.len() - at, len - copied);
        self.octets += len;
        match set_offload(packet, header_len, self.features) {
            Ok(()) => Taken::Packet,
            Err(reason) => {
                arena.truncate(at);
                Taken::Drop(reason)
            }
        }
    }

    /// Several buffers, or one across regions. Never inlined: single buffers keep their registers.
    #[inline(never)]
    fn take_scattered(&mut self, ring: &SplitRing, first: Descriptor) -> Result<Taken, Fault> {
        let header_len = self.header_len;
        let (packet, arena) = self.burst.next_slot(self.port);
        let start = arena.len();
        let result = chain::collect(ring, first, arena, &mut self.followed);
        let taken = match result {
            Ok(Some(len)) => match check_len(len, header_len) {
                Ok(()) => chain::fill(packet, arena, start, len, header_len)
                    .and_then(|()| set_offload(packet, header_len, self.features))
                    .map_or_else(Taken::Drop, |()| Taken::Packet),
                Err(reason) => Taken::Drop(reason),
            },
            Ok(None) if start == 0 => Taken::Drop(DropReason::TooManySegments),
            Ok(None) => Taken::NoRoom,
            Err(fault) => {
                arena.truncate(start);
                return Err(fault);
            }
        };
        match taken {
            Taken::Packet => self.octets += packet.len(),
            _ => arena.truncate(start),
        }
        Ok(taken)
    }
}

#[inline]
fn check_len(len: usize, header_len: usize) -> Result<(), DropReason> {
    const ETHERNET: usize = 14;
    if len < header_len + ETHERNET {
        return Err(DropReason::FrameTooShort);
    }
    if len > header_len + FRAME_MAX {
        return Err(DropReason::FrameTooLong);
    }
    Ok(())
}

/// Checks the virtio-net header, which stands before the frame in the slot.
#[inline]
fn set_offload(packet: &mut Packet, header_len: usize, features: u64) -> Result<(), DropReason> {
    let start = HEADROOM - header_len;
    if offload::is_plain(&packet.slot()[start..start + 10]) {
        return Ok(());
    }
    set_asked(packet, start, features)
}

/// The same of a header, at `start` of the slot, that asks for something.
#[inline(never)]
fn set_asked(packet: &mut Packet, start: usize, features: u64) -> Result<(), DropReason> {
    let mut header = [0; offload::HEADER_MAX];
    header[..10].copy_from_slice(&packet.slot()[start..start + 10]);
    packet.meta.offload = check_offload(&header, packet.len(), packet.head(), features)?;
    Ok(())
}

/// A guest's receive queue.
pub struct ToGuestQueue(pub(crate) Queue);

impl ToGuestQueue {
    /// Claims the queue for one burst; `None` when somebody else has it or the attachment is not active. Never waits.
    #[inline]
    pub fn try_claim(&self) -> Option<ToGuest<'_>> {
        Some(ToGuest { state: self.0.try_claim()?, lost: 0, followed: Cell::new(0) })
    }

    /// Whether the queue is started, enabled and active. A hint.
    #[inline]
    pub fn is_running(&self) -> bool {
        self.0.is_running()
    }
}

/// Chains between a frame and the one whose buffer is asked for: a line of another core takes as long as eight packets.
const AHEAD: u16 = 8;

/// A guest's receive queue, claimed for one burst.
pub struct ToGuest<'a> {
    state: Claimed<'a, QueueState>,
    /// Segments that found no room.
    lost: u32,
    /// See [`scatter::Receiver`].
    followed: Cell<u32>,
}

impl ToGuest<'_> {
    /// Writes one frame into receive buffers. Returns how many frames that were, more than one when it had to be
    /// segmented for this receiver. The driver sees them after [`ToGuest::publish`].
    ///
    /// # Errors
    /// Why the frame ends here; nothing of it was delivered then. If only some of its segments fit, those are
    /// delivered and [`ToGuest::take_lost`] counts the others.
    #[inline]
    pub fn transmit(&mut self, packet: &Packet, arena: &[Segment]) -> Result<u32, DropReason> {
        let state = &mut *self.state;
        if state.fault.is_some() {
            return Err(DropReason::GuestRingBroken);
        }
        let Some(ring) = &mut state.ring else {
            return Err(DropReason::PortNotRunning);
        };
        if !state.enabled {
            return Err(DropReason::QueueDisabled);
        }
        let receiver =
            scatter::Receiver { header_len: state.header_len, features: state.features, followed: &self.followed };
        let result = if packet.meta.offload.is_none() {
            receiver.write(ring, &offload::PLAIN, packet.head(), packet.segments(arena)).map(|()| scatter::Written::ONE)
        } else {
            receiver.write_offloaded(ring, packet, arena)
        };
        match result {
            Ok(written) => {
                self.lost += written.lost;
                Ok(written.frames)
            }
            Err(scatter::Refused::Drop(reason)) => Err(reason),
            Err(scatter::Refused::Fault(fault)) => {
                state.broken(fault);
                Err(DropReason::GuestRingBroken)
            }
        }
    }

    /// Segments that software segmentation made, but for which the ring had no room, since the last call. They are
    /// not in what [`ToGuest::transmit`] returned: extra segments that ended as `guest_ring_full`.
    #[inline]
    pub fn take_lost(&mut self) -> u32 {
        std::mem::take(&mut self.lost)
    }

    /// Asks for what the first frames need. Call it once, before the first [`ToGuest::transmit`] of up to `count`.
    #[inline]
    pub fn prefetch(&mut self, count: usize) {
        if let Some(ring) = &mut self.state.ring {
            // An impossible index is found by the first frame.
            let available = ring.available().unwrap_or(0);
            let ahead = count.min(usize::from(AHEAD.min(available))) as u16;
            (0..ahead).for_each(|offset| ring.prefetch_ahead(offset));
        }
    }

    /// Shows the driver what was written: one store. The guest's eventfd, if it wants to be interrupted.
    #[inline]
    pub fn publish(&mut self) -> Option<CallFd> {
        self.state.publish()
    }

    /// Why the ring is broken, if it is.
    pub fn fault(&self) -> Option<Fault> {
        self.state.fault
    }
}

/// A transmit and a receive queue.
pub struct QueuePair {
    /// What the guest sends.
    pub from_guest: FromGuestQueue,
    /// What it receives.
    pub to_guest: ToGuestQueue,
}

impl QueuePair {
    pub(crate) fn new(active: &Arc<AtomicBool>, sink: &Arc<dyn FaultSink>) -> Self {
        Self {
            from_guest: FromGuestQueue(Queue::new(active.clone(), sink.clone())),
            to_guest: ToGuestQueue(Queue::new(active.clone(), sink.clone())),
        }
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
