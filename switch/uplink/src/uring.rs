//! A worker's `io_uring`: kicks, signals, frames of network devices and wake-ups, and the only place where it sleeps.
//!
//! # Theory of operation
//!
//! Everything the worker asks for is queued in memory and handed to the kernel by one [`Uring::submit`] a loop.
//! Everything that happens is seen by [`Uring::poll_completions`], which looks at memory and calls the kernel only
//! when a flag in memory says that it holds completions back (`DEFER_TASKRUN`). With nothing to do, [`Uring::wait`]
//! blocks.
//!
//! *Kicks.* A guest's kick eventfd gets one multishot poll for as long as it is known. Such a poll is edge triggered:
//! each write to the eventfd completes once, and a counter that stays above zero completes nothing, so that the eventfd
//! is never read and an idle worker does not spin. It stays while the worker polls the ring anyway; a guest that kicks
//! although it was told not to costs one completion a loop.
//!
//! *Signals* to guests' call eventfds are writes that never wait (`RWF_NOWAIT`) and complete silently.
//!
//! *Frames* go to TAP devices as requests, to packet sockets many at a time with [`Uring::submit`], and, large ones, at once and
//! without a copy (`direct`).
//!
//! *Frames* of network devices are read into buffers that all devices of the worker share. When they run out, the devices
//! that brought the fewest frames lately are served first.
//!
//! Requests go to file descriptors that others may share: those of guests must be eventfds, checked where they are
//! received, because the kernel asks other kinds of files for their state on the worker's time.

use std::collections::HashMap;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use hostweave_switch::payload::Segment;
use hostweave_switch::tables::PortId;

use crate::Error;
use crate::direct::Sends;
use crate::limits::{COMPLETIONS, FRAME_BUFFER, POLLS_ENDED_MAX, READ_BUFFERS, READS_ONE_SHOT, SUBMISSIONS, XDP_AGAIN};
use crate::sys::{Completion, Op, ReadPool, Ring, WritePool};
use crate::xdp_socket::XdpSockets;

mod sending;

pub use crate::waker::Waker;

/// Something that arrived.
#[derive(Debug)]
pub enum Event {
    /// A guest kicked the queue that was armed with this token.
    Kick {
        /// As given to [`Uring::arm_kick`].
        token: u64,
    },
    /// A device brought a frame.
    Frame {
        /// As given when the device was started.
        token: u64,
        /// The frame; goes back by [`Uring::release`].
        frame: Frame,
    },
    /// A device lost a frame: it is of a kind that has no virtio-net header.
    Lost {
        /// As given when the device was started.
        token: u64,
    },
    /// A device did not take a frame that was queued: it is set down, or gone.
    Refused {
        /// The device's port.
        port: PortId,
        /// Octets of the frame.
        octets: usize,
    },
    /// A device or kick will bring nothing more: the device is gone, or its namespace is.
    Failed {
        /// As given when it was started.
        token: u64,
        /// The kernel's answer.
        error: io::Error,
    },
}

/// A frame that the kernel wrote into a buffer of the worker, virtio-net header first.
#[derive(Debug)]
#[must_use = "a frame that is not released is lost to the worker's devices"]
pub struct Frame {
    buffer: u16,
    data: Segment,
}

impl Frame {
    /// Octets, the header included. At least one.
    #[allow(clippy::len_without_is_empty, reason = "an empty frame is never made")]
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// All of it.
    pub(crate) fn data(&self) -> Segment {
        self.data
    }
}

/// How frames are read and written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// By `read` and `write`.
    File,
    /// By `recv` and `send`.
    Socket,
}

/// A file that frames are read from and written to, one a call.
#[derive(Debug)]
pub(crate) struct Stream {
    port: PortId,
    pub(crate) fd: Arc<OwnedFd>,
    pub(crate) kind: Kind,
    /// Octets of a write that are not the packet's.
    overhead: usize,
    /// Frames given to the kernel and not yet taken, by all workers.
    in_flight: AtomicU32,
}

impl Stream {
    pub(crate) fn new(port: PortId, fd: OwnedFd, kind: Kind, overhead: usize) -> Self {
        Self { port, fd: Arc::new(fd), kind, overhead, in_flight: AtomicU32::new(0) }
    }
}

/// An eventfd that is polled.
struct Kick {
    token: u64,
    /// `None` once disarmed: only the end of the request is waited for.
    fd: Option<Arc<OwnedFd>>,
    /// Times in a row that the kernel ended the poll at its first completion.
    ended: u32,
}

/// A device that is read.
struct Reader {
    token: u64,
    /// `None` once stopped or failed: only the end of the requests is waited for.
    device: Option<Arc<Stream>>,
    stopped: bool,
    /// Requests in the kernel.
    requests: u32,
    /// Listed in `starved`.
    starved: bool,
    /// Frames since it was last short of buffers.
    frames: u32,
}

/// One worker's `io_uring`. Belongs to the thread that made it.
pub struct Uring {
    /// `None` only while being dropped.
    ring: Option<Ring>,
    waker: Waker,
    kicks: Vec<Option<Kick>>,
    kick_tokens: HashMap<u64, usize>,
    readers: Vec<Option<Reader>>,
    reader_tokens: HashMap<u64, usize>,
    /// Readers with fewer requests in the kernel than they should have.
    starved: Vec<usize>,
    reads: Option<ReadPool>,
    writes: Option<WritePool>,
    /// Different for each, from 0 on: by it an AF_XDP socket knows whose it is.
    number: usize,
    /// Where frames wait for a kick, or for room.
    kicking: Option<Arc<XdpSockets>>,
    /// Frames for a packet socket.
    sends: Sends,
    /// Which one.
    sending: Option<Arc<Stream>>,
    /// For each write buffer in use, where it goes (which keeps the file open) and how much of it.
    writing: Vec<Option<(Arc<Stream>, usize)>>,
    /// File descriptors that queued requests name: open until submitted.
    named: Vec<Arc<OwnedFd>>,
    events: Vec<Event>,
    signals_refused: u64,
    _thread: PhantomData<*const ()>,
}

/// How many there have been.
static NUMBERS: AtomicUsize = AtomicUsize::new(0);

const SILENT: u64 = 0;
const WAKE: u64 = 1;
const KICK: u64 = 2;
const READ: u64 = 3;
const WRITE: u64 = 4;

fn user_data(kind: u64, index: usize) -> u64 {
    kind << 32 | index as u64
}

impl Uring {
    /// An `io_uring` for the calling thread.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn new() -> Result<Self, Error> {
        Self::with_ring(Ring::new(SUBMISSIONS, COMPLETIONS).map_err(Error::Uring)?)
    }

    fn with_ring(mut ring: Ring) -> Result<Self, Error> {
        let waker = Waker::new().map_err(Error::Uring)?;
        ring.push(Op::Poll { fd: waker.fd() }, user_data(WAKE, 0));
        ring.enter(None).map_err(Error::Uring)?;
        Ok(Self {
            ring: Some(ring),
            waker,
            kicks: Vec::new(),
            kick_tokens: HashMap::new(),
            readers: Vec::new(),
            reader_tokens: HashMap::new(),
            starved: Vec::new(),
            reads: None,
            writes: None,
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            kicking: None,
            sends: Sends::new(),
            sending: None,
            writing: Vec::new(),
            named: Vec::new(),
            events: Vec::with_capacity(COMPLETIONS as usize / 16),
            signals_refused: 0,
            _thread: PhantomData,
        })
    }

    /// What other threads end this worker's sleep with.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Tells each time that `eventfd` is written, by [`Event::Kick`], until it is disarmed; at once when it was written
    /// before. Arming the same eventfd again changes nothing and costs nothing.
    pub fn arm_kick(&mut self, token: u64, eventfd: Arc<OwnedFd>) {
        if let Some(&index) = self.kick_tokens.get(&token) {
            if let Some(kick) = &self.kicks[index]
                && kick.fd.as_ref().is_some_and(|known| Arc::ptr_eq(known, &eventfd))
            {
                return;
            }
            self.disarm(token);
        }
        let index = vacancy(&mut self.kicks);
        self.push(Op::Poll { fd: eventfd.as_raw_fd() }, user_data(KICK, index));
        self.kicks[index] = Some(Kick { token, fd: Some(eventfd), ended: 0 });
        self.kick_tokens.insert(token, index);
    }

    /// Forgets the eventfd: the kernel lets go of it with the next [`Uring::submit`].
    pub fn disarm(&mut self, token: u64) {
        let Some(index) = self.kick_tokens.remove(&token) else { return };
        if let Some(kick) = self.kicks[index].as_mut()
            && let Some(fd) = kick.fd.take()
        {
            self.named.push(fd);
            self.push(Op::Cancel { target: user_data(KICK, index) }, user_data(SILENT, 0));
        }
    }

    /// Adds one to the counter of a guest's call eventfd, with the next [`Uring::submit`]. Never waits; a counter that
    /// is full, or an eventfd without `O_NONBLOCK`, is the guest's loss.
    #[inline]
    pub fn signal(&mut self, eventfd: Arc<OwnedFd>) {
        self.push(Op::Signal { fd: eventfd.as_raw_fd() }, user_data(SILENT, 0));
        self.named.push(eventfd);
    }

    /// Signals that did not reach their eventfd.
    pub fn signals_refused(&self) -> u64 {
        self.signals_refused
    }

    /// Hands what was queued to the kernel. No system call when nothing was.
    #[inline]
    pub fn submit(&mut self) {
        self.flush_sends();
        self.kick_sends();
        if !self.starved.is_empty() {
            self.feed();
        }
        let Some(ring) = self.ring.as_mut() else { return };
        if ring.has_unsubmitted() {
            // A failure leaves the requests queued for the next call.
            let _ = ring.enter(None);
            if !ring.has_unsubmitted() {
                self.named.clear();
            }
        }
    }

    /// Gives out what has arrived. No system call, unless the kernel says in memory that it holds completions back.
    #[inline]
    pub fn poll_completions(&mut self, out: &mut impl FnMut(Event)) {
        let Some(ring) = self.ring.as_mut() else { return };
        if ring.wants_enter() {
            self.feed();
            if let Some(ring) = self.ring.as_mut() {
                let _ = ring.enter(None);
            }
        }
        self.reap();
        self.events.drain(..).for_each(out);
    }

    /// Submits, then sleeps until something arrives, a [`Waker`] is used, or `timeout` is over.
    pub fn wait(&mut self, timeout: Option<Duration>) {
        self.submit();
        self.reap();
        if !self.events.is_empty() || !self.waker.may_sleep() {
            return;
        }
        // Nobody tells when there is room for frames that the kernel did not take.
        let most = if self.kicking.is_some() { XDP_AGAIN } else { Duration::MAX };
        if let Some(ring) = self.ring.as_mut()
            && ring.enter(Some(timeout.map_or(most, |timeout| timeout.min(most)))).is_err()
        {
            // The kernel is out of memory; do not turn its trouble into a busy loop.
            std::thread::sleep(Duration::from_millis(1));
        }
        self.waker.woke();
    }

    /// Submits, then sleeps for `time`, whatever arrives meanwhile: who has more than a few frames to move every time does not
    /// want to be woken for each.
    pub fn nap(&mut self, time: Duration) {
        self.submit();
        if let Some(ring) = self.ring.as_mut()
            && ring.nap(time).is_err()
        {
            std::thread::sleep(time);
        }
    }

    /// Gives a frame's buffer back for the next.
    #[inline]
    pub fn release(&mut self, frame: Frame) {
        if let Some(reads) = self.reads.as_mut() {
            reads.release(frame.buffer, frame.len());
        }
    }

    /// Reads frames of `device` until it is stopped.
    pub(crate) fn start(&mut self, token: u64, device: Arc<Stream>) {
        if let Err(error) = self.ensure_reads() {
            self.events.push(Event::Failed { token, error });
            return;
        }
        self.stop(token);
        let index = vacancy(&mut self.readers);
        let reader = Reader { token, device: Some(device), stopped: false, requests: 0, starved: true, frames: 0 };
        self.readers[index] = Some(reader);
        self.reader_tokens.insert(token, index);
        self.starved.push(index);
    }

    /// Stops reading a device. The kernel has let go of the file when this returns, or soon after.
    pub(crate) fn stop(&mut self, token: u64) {
        let Some(index) = self.reader_tokens.remove(&token) else { return };
        if let Some(reader) = self.readers[index].as_mut() {
            reader.stopped = true;
            if let Some(device) = reader.device.take() {
                self.named.push(Arc::clone(&device.fd));
            }
            self.push(Op::Cancel { target: user_data(READ, index) }, user_data(SILENT, 0));
            self.submit();
            self.reap();
            self.forget_reader(index);
        }
    }

    fn ensure_reads(&mut self) -> io::Result<()> {
        if self.reads.is_none()
            && let Some(ring) = self.ring.as_mut()
        {
            self.reads = Some(ring.read_pool(READ_BUFFERS, FRAME_BUFFER)?);
        }
        Ok(())
    }

    #[inline]
    fn push(&mut self, op: Op, user_data: u64) {
        if let Some(ring) = self.ring.as_mut() {
            ring.push(op, user_data);
        }
    }

    /// Takes completions out of memory, at most as many as fit there.
    #[inline]
    fn reap(&mut self) {
        for _ in 0..COMPLETIONS {
            let Some(completion) = self.ring.as_mut().and_then(Ring::pop) else { return };
            let index = (completion.user_data & u64::from(u32::MAX)) as usize;
            match completion.user_data >> 32 {
                KICK => self.kicked(index, completion),
                READ => self.read(index, completion),
                WRITE => self.written(index, completion),
                // A signal that failed, or a cancellation that came too late.
                SILENT => self.signals_refused += u64::from(completion.result == -libc::EAGAIN),
                _ if !completion.more => self.push(Op::Poll { fd: self.waker.fd() }, user_data(WAKE, 0)),
                _ => {}
            }
        }
    }

    fn kicked(&mut self, index: usize, completion: Completion) {
        let Some(kick) = self.kicks.get_mut(index).and_then(Option::as_mut) else { return };
        let Some(fd) = kick.fd.as_ref().map(|fd| fd.as_raw_fd()) else {
            if !completion.more {
                self.kicks[index] = None;
            }
            return;
        };
        let token = kick.token;
        // The kernel ends a multishot poll when a completion did not fit, and each time on a file that is always ready,
        // which no eventfd is.
        kick.ended = if completion.more { 0 } else { kick.ended + 1 };
        if kick.ended > POLLS_ENDED_MAX || (completion.result < 0 && completion.result != -libc::ECANCELED) {
            let error = if completion.result < 0 { -completion.result } else { libc::EINVAL };
            self.kicks[index] = None;
            self.kick_tokens.remove(&token);
            self.events.push(Event::Failed { token, error: io::Error::from_raw_os_error(error) });
            return;
        }
        self.events.push(Event::Kick { token });
        if !completion.more {
            self.push(Op::Poll { fd }, user_data(KICK, index));
        }
    }

    fn read(&mut self, index: usize, completion: Completion) {
        let (Some(reader), Some(pool)) = (self.readers.get_mut(index).and_then(Option::as_mut), self.reads.as_mut())
        else {
            return;
        };
        if !completion.more {
            reader.requests = reader.requests.saturating_sub(1);
        }
        let len = usize::try_from(completion.result).unwrap_or(0);
        if let Some(buffer) = completion.buffer {
            pool.filled();
            match pool.segment(buffer, 0, len) {
                Some(data) if reader.device.is_some() => {
                    reader.frames = reader.frames.saturating_add(1);
                    self.events.push(Event::Frame { token: reader.token, frame: Frame { buffer, data } });
                }
                _ => pool.provide(buffer),
            }
        }
        let kind = reader.device.as_ref().map(|device| device.kind);
        if completion.result == -libc::EINVAL && kind == Some(Kind::Socket) {
            // A packet socket has taken the frame by then.
            self.events.push(Event::Lost { token: reader.token });
        }
        if reader.device.is_none() {
            self.forget_reader(index);
        } else if completion.result <= 0 && !again(kind, completion.result) {
            let error = io::Error::from_raw_os_error(-completion.result);
            let token = reader.token;
            reader.device = None;
            self.events.push(Event::Failed { token, error });
        } else if !completion.more && !std::mem::replace(&mut reader.starved, true) {
            self.starved.push(index);
        }
    }

    fn written(&mut self, index: usize, completion: Completion) {
        if let Some((device, len)) = self.writing.get_mut(index).and_then(Option::take) {
            device.in_flight.fetch_sub(1, Ordering::Relaxed);
            if completion.result < 0 {
                let octets = len.saturating_sub(device.overhead);
                self.events.push(Event::Refused { port: device.port, octets });
            }
            if let Some(pool) = self.writes.as_mut() {
                pool.recycle(index as u16);
            }
        }
    }

    /// Gives readers that are short of requests new ones, as far as there are buffers.
    fn feed(&mut self) {
        let Some(pool) = self.reads.as_ref() else { return };
        if pool.provided() == 0 {
            return;
        }
        let stride = pool.stride() as u32;
        let readers = &self.readers;
        let frames = |index: &usize| readers.get(*index).and_then(Option::as_ref).map_or(0, |reader| reader.frames);
        self.starved.sort_by_key(frames);
        let Some(ring) = self.ring.as_mut() else { return };
        for index in self.starved.drain(..) {
            let Some(reader) = self.readers.get_mut(index).and_then(Option::as_mut) else { continue };
            reader.starved = false;
            reader.frames = 0;
            let Some(device) = reader.device.as_ref() else {
                if reader.stopped && reader.requests == 0 {
                    self.readers[index] = None;
                }
                continue;
            };
            let fd = device.fd.as_raw_fd();
            let (op, wanted) = match (device.kind, ring.multishot_reads(), ring.multishot_receives()) {
                (Kind::File, true, _) => (Op::ReadMulti { fd }, 1),
                (Kind::File, false, _) => (Op::ReadOnce { fd, len: stride }, READS_ONE_SHOT),
                (Kind::Socket, _, true) => (Op::ReceiveMulti { fd }, 1),
                (Kind::Socket, _, false) => (Op::ReceiveOnce { fd, len: stride }, READS_ONE_SHOT),
            };
            while reader.requests < wanted {
                ring.push(op, user_data(READ, index));
                reader.requests += 1;
            }
        }
    }

    /// Frees the slot of a reader that is over.
    fn forget_reader(&mut self, index: usize) {
        if let Some(reader) = &self.readers[index]
            && reader.stopped
            && reader.requests == 0
            && !reader.starved
        {
            self.readers[index] = None;
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        if let Some(ring) = self.ring.take() {
            ring.close(self.reads.take(), self.writes.take());
        }
    }
}

/// Whether a read that failed may just be tried again.
fn again(kind: Option<Kind>, result: i32) -> bool {
    match -result {
        libc::ENOBUFS | libc::EAGAIN | libc::EINTR | libc::ECANCELED => true,
        // See [`Event::Lost`].
        libc::EINVAL => kind == Some(Kind::Socket),
        _ => false,
    }
}

/// Index of an entry that is free, made if there is none.
fn vacancy<T>(entries: &mut Vec<Option<T>>) -> usize {
    entries.iter().position(Option::is_none).unwrap_or_else(|| {
        entries.push(None);
        entries.len() - 1
    })
}

#[cfg(test)]
#[path = "uring_tests.rs"]
mod tests;
