//! The internal port of a network: the queues between workers and the host's own TCP/IP stack.
//!
//! # Theory of operation
//!
//! A frame for the gateway is copied by the worker into chunks from a free list, and the chain of chunks is pushed to
//! a bounded queue. The first push after the stack last looked rings a doorbell: one pipe for all networks, whose
//! reader wakes the stack of each network that rang. In the other direction the stack takes one chunk a frame, pushes
//! it, and calls `wake`, after which the owning worker takes the frames into its burst, copies them to private slots
//! and gives the chunks back at once. Both queues are lock-free and both free lists are filled when the port is made:
//! a worker neither allocates nor waits, and a stack that is slow costs the network [`DropReason::DeviceQueueFull`]
//! and nobody else anything.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crossbeam_queue::ArrayQueue;
use hostweave_switch::MacAddr;
use hostweave_switch::limits::{HEADROOM, NETWORKS_MAX};
use hostweave_switch::packet::{Burst, Packet};
use hostweave_switch::payload::{Segment, gather};
use hostweave_switch::stage::DropReason;
use hostweave_switch::tables::PortId;
use hostweave_switch::wire::frame::FRAME_LEN_MAX;
use tokio::net::unix::pipe;
use tokio::sync::Notify;

/// Octets of a chunk. A frame from the stack always fits one.
const CHUNK_LEN: usize = 2_048;
/// Chunks towards the stack, of one network: six frames of 64 KiB, or as many small ones.
const CHUNKS_TO_HOST: usize = 192;
/// Shares of the chunks towards the stack; ports whose numbers agree modulo this use one together.
const SHARES: usize = 64;
/// Frames from the stack that wait for the worker, of one network.
const CHUNKS_FROM_HOST: usize = 128;
/// Octets of the longest IP packet that the stack sends: the frame fits a packet's private slot.
pub const STACK_MTU_MAX: usize = FRAME_LEN_MAX - ETHERNET_LEN;
const ETHERNET_LEN: usize = 14;

const _: () = assert!(STACK_MTU_MAX >= hostweave_switch::limits::MTU_MIN as usize && STACK_MTU_MAX <= CHUNK_LEN);

/// Wakes the worker that owns the port.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// Part of a frame; further parts hang on it.
struct Chunk {
    next: Option<Box<Chunk>>,
    len: usize,
    /// Whose share it counts for, while it is under way to the stack.
    share: usize,
    octets: [u8; CHUNK_LEN],
}

/// One direction.
struct FrameQueue {
    free: ArrayQueue<Box<Chunk>>,
    full: ArrayQueue<Box<Chunk>>,
}

impl FrameQueue {
    fn new(chunks: usize) -> Self {
        let queue = Self { free: ArrayQueue::new(chunks), full: ArrayQueue::new(chunks) };
        for _ in 0..chunks {
            queue.give_back(Some(Box::new(Chunk { next: None, len: 0, share: 0, octets: [0; CHUNK_LEN] })));
        }
        queue
    }

    /// A chain of chunks for `len` octets, their lengths set, or `None` when there are not enough.
    fn take_free(&self, mut len: usize) -> Option<Box<Chunk>> {
        let mut chain: Option<Box<Chunk>> = None;
        // The last chunk is taken first: it holds what is left over.
        while len > 0 || chain.is_none() {
            let Some(mut chunk) = self.free.pop() else {
                self.give_back(chain);
                return None;
            };
            chunk.len = match len % CHUNK_LEN {
                0 => len.min(CHUNK_LEN),
                rest => rest,
            };
            len -= chunk.len;
            chunk.next = chain;
            chain = Some(chunk);
        }
        chain
    }

    fn give_back(&self, mut chain: Option<Box<Chunk>>) {
        while let Some(mut chunk) = chain {
            chain = chunk.next.take();
            // The free list has room for every chunk there is.
            let _ = self.free.push(chunk);
        }
    }
}

/// The queues of one network's internal port.
pub struct InternalPort {
    id: PortId,
    to_host: FrameQueue,
    /// Chunks towards the stack that are in use, by share.
    in_use: [AtomicUsize; SHARES],
    from_host: FrameQueue,
    /// The stack was told and has not looked yet.
    rung: AtomicBool,
    /// The stack wanted to send and found no free chunk.
    starved: AtomicBool,
    /// Wakes the stack.
    notify: Arc<Notify>,
    doorbell: Arc<Doorbell>,
    wake: Wake,
}

impl InternalPort {
    /// Queues for the port `id`, empty.
    pub(super) fn new(id: PortId, doorbell: Arc<Doorbell>, wake: Wake) -> Self {
        Self {
            id,
            to_host: FrameQueue::new(CHUNKS_TO_HOST),
            in_use: [const { AtomicUsize::new(0) }; SHARES],
            from_host: FrameQueue::new(CHUNKS_FROM_HOST),
            rung: AtomicBool::new(false),
            starved: AtomicBool::new(false),
            notify: Arc::new(Notify::new()),
            doorbell,
            wake,
        }
    }

    /// Worker: copies a packet to the stack. A GSO frame arrives whole, a partial checksum stays partial: the stack
    /// looks at neither, for the frame never left the host.
    ///
    /// # Errors
    /// `DeviceQueueFull` when the stack does not keep up, or the sender has as many chunks in use as are free: one that
    /// floods leaves the others half of them, two a third.
    pub fn deliver(&self, packet: &Packet, arena: &[Segment]) -> Result<(), DropReason> {
        let start = usize::from(packet.meta.layers.l3).max(ETHERNET_LEN);
        let len = packet.len().checked_sub(start).ok_or(DropReason::FrameTooShort)?;
        let share = packet.meta.in_port.0 as usize % SHARES;
        self.push_to_host(share, len, |at, into| copy_at(packet, arena, start + at, into))
    }

    fn push_to_host(&self, share: usize, len: usize, copy: impl Fn(usize, &mut [u8])) -> Result<(), DropReason> {
        let chunks = len.div_ceil(CHUNK_LEN).max(1);
        if self.in_use[share].load(Ordering::Relaxed) + chunks > self.to_host.free.len() {
            return Err(DropReason::DeviceQueueFull);
        }
        let mut chain = self.to_host.take_free(len).ok_or(DropReason::DeviceQueueFull)?;
        chain.share = share;
        self.in_use[share].fetch_add(chunks, Ordering::Relaxed);
        let mut at = 0;
        let mut next = Some(&mut chain);
        while let Some(chunk) = next {
            let len = chunk.len;
            copy(at, &mut chunk.octets[..len]);
            at += len;
            next = chunk.next.as_mut();
        }
        if let Err(chain) = self.to_host.full.push(chain) {
            self.to_host.give_back(Some(chain));
            self.in_use[share].fetch_sub(chunks, Ordering::Relaxed);
            return Err(DropReason::DeviceQueueFull);
        }
        self.ring();
        Ok(())
    }

    /// Worker: takes frames from the stack into the burst, as many as fit. Returns how many.
    pub fn take(&self, burst: &mut Burst) -> usize {
        let mut frames = 0;
        while burst.has_room(0)
            && let Some(chunk) = self.from_host.full.pop()
        {
            let (packet, _) = burst.next_slot(self.id);
            let frame = &mut packet.slot()[HEADROOM..];
            frame[..6].copy_from_slice(&MacAddr::ROUTER.0);
            frame[6..12].copy_from_slice(&MacAddr::ROUTER.0);
            let version_6 = chunk.octets[0] >> 4 == 6;
            frame[12..ETHERNET_LEN].copy_from_slice(if version_6 { &[0x86, 0xdd] } else { &[0x08, 0x00] });
            frame[ETHERNET_LEN..ETHERNET_LEN + chunk.len].copy_from_slice(&chunk.octets[..chunk.len]);
            packet.set_frame(ETHERNET_LEN + chunk.len, 0, 0, 0);
            burst.push();
            self.from_host.give_back(Some(chunk));
            frames += 1;
        }
        frames
    }

    /// Worker: says that it is done with what it took, so that a stack that waits for room goes on.
    pub fn release(&self) {
        if self.starved.swap(false, Ordering::AcqRel) {
            self.ring();
        }
    }

    /// Wakes the stack, once until it looks.
    fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) && !self.doorbell.ring(&self.notify) {
            self.rung.store(false, Ordering::Release);
        }
    }

    /// Stack: wakes on frames, and whenever something else calls [`InternalPort::nudge`].
    pub(super) fn notify(&self) -> &Arc<Notify> {
        &self.notify
    }

    /// Wakes the stack from the side of tokio.
    pub(super) fn nudge(&self) {
        self.notify.notify_one();
    }

    /// Stack: from here on, new frames ring again. To be called before looking for them.
    pub(super) fn listen(&self) {
        self.rung.swap(false, Ordering::AcqRel);
    }

    /// Stack: the next IP packet from guests, in place of what `into` held. `false` when there is none.
    pub(super) fn receive(&self, into: &mut Vec<u8>) -> bool {
        let Some(chain) = self.to_host.full.pop() else { return false };
        into.clear();
        let (share, mut chunks) = (chain.share, 0);
        let mut next = Some(&chain);
        while let Some(chunk) = next {
            into.extend_from_slice(&chunk.octets[..chunk.len]);
            next = chunk.next.as_ref();
            chunks += 1;
        }
        self.to_host.give_back(Some(chain));
        self.in_use[share].fetch_sub(chunks, Ordering::Relaxed);
        true
    }

    /// Stack: room for a frame, to be filled and sent; `None` when the worker is behind, which [`Self::release`] ends.
    pub(super) fn reserve(&self) -> Option<Reserved<'_>> {
        let chunk = self.from_host.free.pop().or_else(|| {
            self.starved.store(true, Ordering::Release);
            // The worker may have given chunks back before it could see the flag.
            self.from_host.free.pop()
        });
        chunk.map(|chunk| Reserved { port: self, chunk: Some(chunk) })
    }

    /// Stack: tells the worker that frames wait.
    pub(super) fn wake(&self) {
        (self.wake)();
    }
}

/// Room for a frame; given back when it is not sent.
pub(super) struct Reserved<'a> {
    port: &'a InternalPort,
    chunk: Option<Box<Chunk>>,
}

impl Reserved<'_> {
    /// Writes and queues an IP packet of `len` octets. One that is too long is dropped, as is one of no octets.
    pub fn send<R>(mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let fits = (1..=STACK_MTU_MAX).contains(&len);
        let Some(mut chunk) = self.chunk.take_if(|_| fits) else { return fill(&mut vec![0; len]) };
        let result = fill(&mut chunk.octets[..len]);
        chunk.len = len;
        if let Err(chunk) = self.port.from_host.full.push(chunk) {
            self.port.from_host.give_back(Some(chunk));
        }
        result
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.port.from_host.give_back(self.chunk.take());
    }
}

/// Copies from the middle of a packet.
fn copy_at(packet: &Packet, arena: &[Segment], at: usize, into: &mut [u8]) {
    let head = packet.head().get(at..).unwrap_or(&[]);
    let from_head = head.len().min(into.len());
    let (first, rest) = into.split_at_mut(from_head);
    first.copy_from_slice(&head[..from_head]);
    if !rest.is_empty() {
        gather(packet.segments(arena), (at + from_head).saturating_sub(packet.head().len()), rest);
    }
}

/// How workers wake stacks without a lock: a queue of who is to wake, and a pipe whose reader passes it on.
pub(super) struct Doorbell {
    waiting: ArrayQueue<Arc<Notify>>,
    bell: OwnedFd,
}

impl Doorbell {
    /// A doorbell, and the end that [`Doorbell::answer`] reads. To be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the kernel has no descriptor left.
    pub fn new() -> io::Result<(Self, pipe::Receiver)> {
        let (sender, receiver) = pipe::pipe()?;
        // A network rings once until its stack has looked. A stack may look for another reason while its ring waits.
        let waiting = ArrayQueue::new(2 * NETWORKS_MAX);
        Ok((Self { waiting, bell: sender.into_nonblocking_fd()? }, receiver))
    }

    /// `false` when too many wait; then the next frame rings again.
    fn ring(&self, who: &Arc<Notify>) -> bool {
        let queued = self.waiting.push(Arc::clone(who)).is_ok();
        // Fails only when the pipe is full, and then the reader has reason enough to wake.
        let _ = nix::unistd::write(&self.bell, &[1]);
        queued
    }

    /// Passes every ring on. Ends only with an error.
    pub async fn answer(self: Arc<Self>, receiver: pipe::Receiver) -> io::Result<()> {
        let mut rings = [0; 64];
        loop {
            receiver.readable().await?;
            match receiver.try_read(&mut rings) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
            while let Some(who) = self.waiting.pop() {
                who.notify_one();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port() -> (InternalPort, Arc<AtomicUsize>) {
        let (doorbell, _receiver) = Doorbell::new().unwrap();
        let woken = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&woken);
        let wake = Arc::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        (InternalPort::new(PortId(3), Arc::new(doorbell), wake), woken)
    }

    #[tokio::test]
    async fn frames_of_every_length_arrive_in_order_and_whole() {
        let (port, _) = port();
        let mut received = Vec::new();
        for len in [1, 40, CHUNK_LEN - 1, CHUNK_LEN, CHUNK_LEN + 1, 3 * CHUNK_LEN, 65_535] {
            let fill = |at: usize, into: &mut [u8]| {
                for (index, octet) in into.iter_mut().enumerate() {
                    *octet = ((at + index) % 251) as u8;
                }
            };
            port.push_to_host(3, len, fill).unwrap();
            assert!(port.receive(&mut received));
            assert_eq!(received.len(), len);
            assert!(received.iter().enumerate().all(|(index, octet)| *octet == (index % 251) as u8));
        }
        assert!(!port.receive(&mut received));
    }

    #[tokio::test]
    async fn a_full_queue_drops_and_recovers() {
        let (port, _) = port();
        let fill =
            |share: usize| (0..).map_while(|_| port.push_to_host(share, 60, |_, into| into.fill(1)).ok()).count();
        let queued: usize = (0..SHARES).map(fill).sum();
        assert_eq!((queued, port.to_host.free.len()), (CHUNKS_TO_HOST, 0));
        let mut received = Vec::new();
        assert!(port.receive(&mut received) && port.receive(&mut received));
        // Two chunks are free: not enough for three, and nothing is lost by asking.
        assert_eq!(port.push_to_host(SHARES - 1, 3 * CHUNK_LEN, |_, _| ()), Err(DropReason::DeviceQueueFull));
        port.push_to_host(SHARES - 1, 2 * CHUNK_LEN, |_, into| into.fill(2)).unwrap();
        let mut count = 0;
        while port.receive(&mut received) {
            count += 1;
        }
        assert_eq!((count, port.to_host.free.len()), (CHUNKS_TO_HOST - 1, CHUNKS_TO_HOST));
        assert!(port.in_use.iter().all(|chunks| chunks.load(Ordering::Relaxed) == 0));
    }

    #[tokio::test]
    async fn one_guest_that_floods_leaves_room_for_others() {
        let (port, _) = port();
        let flood = |share: usize| (0..).map_while(|_| port.push_to_host(share, 60, |_, _| ()).ok()).count();
        assert_eq!(flood(1), CHUNKS_TO_HOST / 2);
        assert_eq!(flood(2), CHUNKS_TO_HOST / 4);
        assert!(port.push_to_host(3, 20_000, |_, _| ()).is_ok());
        assert_eq!(flood(1), 0);
    }

    #[tokio::test]
    async fn frames_to_guests_get_their_link_header_and_their_room_back() {
        let (port, _) = port();
        for round in 0..3 {
            for index in 0..CHUNKS_FROM_HOST {
                let version = if index % 2 == 0 { 0x45 } else { 0x60 };
                port.reserve().unwrap().send(STACK_MTU_MAX, |packet| packet.fill(version));
            }
            assert!(port.reserve().is_none(), "round {round}");
            let mut burst = Burst::new();
            let mut taken = 0;
            while port.take(&mut burst) > 0 {
                for packet in burst.packets() {
                    let (head, ether_type) = (packet.head(), if taken % 2 == 0 { [8, 0] } else { [0x86, 0xdd] });
                    assert_eq!((head.len(), packet.meta.in_port), (FRAME_LEN_MAX, PortId(3)));
                    assert_eq!((&head[..6], &head[12..14]), (&MacAddr::ROUTER.0[..], &ether_type[..]));
                    taken += 1;
                }
                burst.clear();
                port.release();
            }
            assert_eq!(taken, CHUNKS_FROM_HOST);
        }
    }

    #[tokio::test]
    async fn a_stack_without_room_is_woken_when_there_is_some() {
        let (port, woken) = port();
        let mut reserved: Vec<_> = (0..CHUNKS_FROM_HOST).map(|_| port.reserve().unwrap()).collect();
        assert!(port.reserve().is_none());
        reserved.pop().unwrap().send(20, |packet| packet.fill(0x45));
        port.wake();
        assert_eq!(woken.load(Ordering::Relaxed), 1);
        assert_eq!(port.take(&mut Burst::new()), 1);
        assert!(port.doorbell.waiting.is_empty());
        port.release();
        assert_eq!(port.doorbell.waiting.len(), 1);
        drop(reserved);
        // A frame that is too long is lost, not its room.
        port.reserve().unwrap().send(STACK_MTU_MAX + 1, |_| ());
        assert_eq!((0..CHUNKS_FROM_HOST).map_while(|_| port.reserve().map(std::mem::forget)).count(), CHUNKS_FROM_HOST);
    }
}
