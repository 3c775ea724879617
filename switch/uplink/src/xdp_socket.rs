//! AF_XDP sockets beside the packet sockets of an uplink, which only transmit: a small frame costs the kernel less than half there.
//!
//! They have no program and no receive ring, and copy (`XDP_COPY`), so that nothing changes for what comes in: packet sockets
//! receive it, with the kernel's offloads, which AF_XDP has not. In zero-copy mode a driver would take the buffers of
//! received frames from here too, and the host would be cut off.
//!
//! Each belongs to one transmit queue of the interface and to one worker, the first that uses it. Workers without one use
//! the packet socket always, so that the frames of a worker stay in order. Linux 5.4 and later (`XDP_USE_NEED_WAKEUP`).
//!
//! What the interface drops once the kernel has taken it (its queue is full, it has no carrier) looks as if it was sent: a
//! completion says only that the kernel is done with a frame. So it counts as transmitted; see the interface's own counters.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, TryLockError};

use crate::limits::{SOCKET_BUFFER, XDP_FRAME, XDP_FRAMES, XDP_KICKS_MAX, XDP_LINGERING_MAX};
use crate::sys::{self, Region};

/// The sockets of one interface.
#[derive(Debug)]
pub(crate) struct XdpSockets {
    sockets: Box<[Mutex<XdpSocket>]>,
    /// For each, the number of the worker that it belongs to, plus one; 0 before its first use.
    owners: Box<[AtomicUsize]>,
}

impl XdpSockets {
    /// Opens up to `count`, one for each transmit queue that the interface uses. Never waits.
    ///
    /// # Errors
    /// `EBUSY` when another program has a queue, or the kernel is not yet done with the last user of one; `QuotaExceeded` when
    /// interfaces have kept too much memory of sockets that are gone.
    pub(crate) fn open(name: &str, index: u32, count: usize) -> io::Result<Self> {
        let queues = transmit_queues(name)?.clamp(1, count.max(1));
        let open = |queue| XdpSocket::open(index, queue as u32).map(Mutex::new);
        let sockets = (0..queues).map(open).collect::<io::Result<Box<[_]>>>()?;
        Ok(Self { sockets, owners: (0..queues).map(|_| AtomicUsize::new(0)).collect() })
    }

    /// Does something with the socket of a worker. `None` when it has none, or the socket is of no use any more.
    #[inline]
    pub(crate) fn with<T>(&self, worker: usize, work: impl FnOnce(&mut XdpSocket) -> T) -> Option<T> {
        let (at, me) = (worker % self.sockets.len(), worker + 1);
        match self.owners[at].load(Ordering::Relaxed) {
            owner if owner == me => {}
            0 => {
                self.owners[at].compare_exchange(0, me, Ordering::Relaxed, Ordering::Relaxed).ok()?;
            }
            _ => return None,
        }
        // Nobody else takes this lock.
        let mut socket = match self.sockets[at].try_lock() {
            Ok(socket) => socket,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        (!socket.over).then(|| work(&mut socket))
    }
}

/// What became of the frames that were queued.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kicked {
    /// The kernel has taken all of them.
    All,
    /// It takes no more at the moment: kick again soon.
    Part,
    /// It will never take them: the interface is down, gone, or has no such queue any more.
    Over,
}

/// One AF_XDP socket that transmits.
#[derive(Debug)]
pub(crate) struct XdpSocket {
    /// Closed before the rings are unmapped.
    fd: Option<OwnedFd>,
    transmit: Ring,
    chunks: Option<Chunks>,
    /// The kernel does not take what is queued.
    over: bool,
}

/// The memory of a socket's frames, and who has it. It outlives the socket until the kernel has given all of it back:
/// interfaces with `IFF_TX_SKB_NO_LINEAR` send frames from where they lie, also after the socket is closed.
#[derive(Debug)]
struct Chunks {
    /// `None` only while being dropped.
    region: Option<Region>,
    /// Where the kernel gives frames back, also after the socket is closed. `None` before it is mapped.
    completed: Option<Ring>,
    /// Offsets of frames that the kernel does not have.
    free: Vec<u64>,
}

/// Chunks of closed sockets of which the kernel has frames. Those that were queued and never taken do not come back, and
/// the kernel does not say which these are: that memory is lost, on purpose, up to [`XDP_LINGERING_MAX`] times.
static LINGERING: Mutex<Vec<Chunks>> = Mutex::new(Vec::new());

impl Chunks {
    fn take() -> io::Result<Self> {
        let mut lingering = LINGERING.lock().unwrap_or_else(PoisonError::into_inner);
        lingering.retain_mut(|chunks| {
            chunks.reclaim();
            !chunks.are_free()
        });
        if lingering.len() >= XDP_LINGERING_MAX {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let region = Some(Region::take(XDP_FRAMES * XDP_FRAME)?);
        let free = (0..XDP_FRAMES).rev().map(|index| (index * XDP_FRAME) as u64).collect();
        Ok(Self { region, completed: None, free })
    }

    fn are_free(&self) -> bool {
        self.free.len() == XDP_FRAMES
    }

    /// Takes back what the kernel is done with.
    fn reclaim(&mut self) {
        let Some(completed) = &self.completed else { return };
        let done = completed.index(completed.producer).load(Ordering::Acquire);
        let consumer = completed.index(completed.consumer);
        let mut next = consumer.load(Ordering::Relaxed);
        while next != done && self.free.len() < XDP_FRAMES {
            // SAFETY: an entry that the kernel has filled, as its producer says. JUSTIFICATION: as in `push`.
            let offset = unsafe { completed.entry::<u64>(next).read() };
            self.free.push(offset);
            next = next.wrapping_add(1);
        }
        consumer.store(next, Ordering::Release);
    }
}

impl Drop for Chunks {
    fn drop(&mut self) {
        // Otherwise it stays mapped for ever, and nobody gets it.
        if self.are_free()
            && let Some(region) = self.region.take()
        {
            region.give_back();
        }
    }
}

/// A ring that the kernel shares.
#[derive(Debug)]
struct Ring {
    base: NonNull<u8>,
    len: usize,
    producer: usize,
    consumer: usize,
    entries: usize,
}

// SAFETY: addresses of mappings that are this value's own until it is dropped; what the kernel writes there is read by
// atomic operations. JUSTIFICATION: a device is shared by all workers, its sockets behind locks.
unsafe impl Send for Ring {}

impl Ring {
    /// Maps one; each entry has `entry` octets.
    fn map(fd: RawFd, page: u64, offset: &libc::xdp_ring_offset, entry: usize) -> io::Result<Self> {
        let len = offset.desc as usize + XDP_FRAMES * entry;
        // SAFETY: a new shared mapping at an address of the kernel's choice affects no other memory.
        // JUSTIFICATION: the rings of AF_XDP are shared memory.
        let address = unsafe {
            let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE);
            libc::mmap(std::ptr::null_mut(), len, protection, flags, fd, page as libc::off_t)
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(address.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let at = |offset: u64| offset as usize;
        let (producer, consumer, entries) = (at(offset.producer), at(offset.consumer), at(offset.desc));
        Ok(Self { base, len, producer, consumer, entries })
    }

    fn index(&self, offset: usize) -> &AtomicU32 {
        assert!(offset + size_of::<u32>() <= self.len && offset.is_multiple_of(align_of::<u32>()));
        // SAFETY: inside the mapping and aligned, as just checked; both sides use it as an atomic number.
        // JUSTIFICATION: shared memory has no other type.
        unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    /// Place of an entry of type `T`.
    fn entry<T>(&self, index: u32) -> *mut T {
        let offset = self.entries + (index as usize % XDP_FRAMES) * size_of::<T>();
        assert!(offset + size_of::<T>() <= self.len);
        // SAFETY: inside the mapping, as just checked. JUSTIFICATION: pointer arithmetic inside one allocation.
        unsafe { self.base.as_ptr().add(offset).cast() }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own and nothing points there any more. JUSTIFICATION: made by `mmap`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

impl XdpSocket {
    fn open(index: u32, queue: u32) -> io::Result<Self> {
        // SAFETY: makes a file descriptor and touches no memory. JUSTIFICATION: `nix` does not know this family.
        let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made it for us; nobody else knows it. JUSTIFICATION: it arrives as a number.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let raw = fd.as_raw_fd();
        // From here on an error gives the memory back: all of it is free.
        let mut chunks = Chunks::take()?;
        let umem = libc::xdp_umem_reg {
            addr: chunks.region.as_ref().map_or(0, |region| region.at(0, 0).as_ptr() as u64),
            len: (XDP_FRAMES * XDP_FRAME) as u64,
            chunk_size: XDP_FRAME as u32,
            headroom: 0,
            flags: 0,
            tx_metadata_len: 0,
        };
        set(raw, libc::XDP_UMEM_REG, &umem)?;
        set(raw, libc::XDP_UMEM_COMPLETION_RING, &(XDP_FRAMES as u32))?;
        // Nothing is ever received, but without it a socket cannot be bound.
        set(raw, libc::XDP_UMEM_FILL_RING, &2_u32)?;
        set(raw, libc::XDP_TX_RING, &(XDP_FRAMES as u32))?;
        // The kernel charges each frame until the interface has sent it; by default it takes no more than a few dozen.
        let room = |option| sys::set_number(fd.as_fd(), libc::SOL_SOCKET, option, SOCKET_BUFFER as i32);
        room(libc::SO_SNDBUFFORCE).or_else(|_| room(libc::SO_SNDBUF))?;
        let offsets = offsets(raw)?;
        let transmit = Ring::map(raw, libc::XDP_PGOFF_TX_RING as u64, &offsets.tx, size_of::<libc::xdp_desc>())?;
        let page = libc::XDP_UMEM_PGOFF_COMPLETION_RING;
        chunks.completed = Some(Ring::map(raw, page, &offsets.cr, size_of::<u64>())?);
        let address = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            sxdp_flags: libc::XDP_COPY | libc::XDP_USE_NEED_WAKEUP,
            sxdp_ifindex: index,
            sxdp_queue_id: queue,
            sxdp_shared_umem_fd: 0,
        };
        bind(raw, &address)?;
        Ok(Self { fd: Some(fd), transmit, chunks: Some(chunks), over: false })
    }

    /// Queues a frame that `fill` writes and tells the length of, for the next [`XdpSocket::kick`]. `None` when there is no
    /// room, or `fill` did not want it.
    #[inline]
    pub(crate) fn push(&mut self, fill: impl FnOnce(&mut [u8]) -> Option<usize>) -> Option<()> {
        if self.chunks.as_ref()?.free.is_empty() {
            self.kick();
        }
        let chunks = self.chunks.as_mut()?;
        let offset = *chunks.free.last()?;
        let address = chunks.region.as_ref()?.at(offset as usize, XDP_FRAME);
        // SAFETY: frames in `free` are named by no entry of a ring, so the kernel does not read them, and this is the only
        // borrow. JUSTIFICATION: the memory is shared with the kernel and outlives the socket.
        let buffer = unsafe { std::slice::from_raw_parts_mut(address.as_ptr(), XDP_FRAME) };
        let len = fill(buffer).filter(|len| *len <= XDP_FRAME)?;
        chunks.free.pop();
        let producer = self.transmit.index(self.transmit.producer);
        let next = producer.load(Ordering::Relaxed);
        let entry = libc::xdp_desc { addr: offset, len: len as u32, options: 0 };
        // SAFETY: an entry inside the ring that the kernel has given back: there are as many entries as frames, and this
        // frame was free. JUSTIFICATION: the ring is shared with the kernel.
        unsafe { self.transmit.entry::<libc::xdp_desc>(next).write(entry) };
        producer.store(next.wrapping_add(1), Ordering::Release);
        Some(())
    }

    /// Has the kernel send what is queued, as far as it takes it now, and takes back frames that it has sent. Never waits,
    /// and calls the kernel [`XDP_KICKS_MAX`] times at most.
    pub(crate) fn kick(&mut self) -> Kicked {
        let kicked = self.send();
        self.over = kicked == Kicked::Over;
        if let Some(chunks) = self.chunks.as_mut() {
            chunks.reclaim();
        }
        kicked
    }

    fn send(&self) -> Kicked {
        let Some(fd) = self.fd.as_ref().map(AsRawFd::as_raw_fd) else { return Kicked::Over };
        for _ in 0..XDP_KICKS_MAX {
            let before = self.queued();
            if before == 0 {
                return Kicked::All;
            }
            // SAFETY: no data and no address are passed. JUSTIFICATION: `nix` has no form without data.
            if unsafe { libc::sendto(fd, std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0) } >= 0 {
                // The kernel is content, and yet nothing has moved: the interface does not use this queue.
                if self.queued() == before {
                    return Kicked::Over;
                }
                continue;
            }
            match io::Error::last_os_error().raw_os_error() {
                // It sends a part with each call (`EAGAIN`), of which kernels before 6.17 do not tell at once. Or the
                // interface is busy, which looks the same; or it has dropped one (`EBUSY`), and others follow.
                Some(libc::EAGAIN | libc::EBUSY) => {}
                Some(libc::ENOBUFS | libc::ENOMEM | libc::EINTR) => return Kicked::Part,
                _ => return Kicked::Over,
            }
        }
        if self.queued() == 0 { Kicked::All } else { Kicked::Part }
    }

    /// Frames that the kernel has not taken, as far as it tells.
    fn queued(&self) -> u32 {
        let taken = self.transmit.index(self.transmit.consumer).load(Ordering::Acquire);
        self.transmit.index(self.transmit.producer).load(Ordering::Relaxed).wrapping_sub(taken)
    }
}

impl Drop for XdpSocket {
    fn drop(&mut self) {
        // What the kernel did not take in time is not sent late.
        if !self.over {
            self.kick();
        }
        self.fd = None;
        if let Some(chunks) = self.chunks.take_if(|chunks| !chunks.are_free()) {
            LINGERING.lock().unwrap_or_else(PoisonError::into_inner).push(chunks);
        }
    }
}

/// Binds to a queue. The kernel gives one free a while after its last user is gone: until then, `EBUSY`.
fn bind(fd: RawFd, address: &libc::sockaddr_xdp) -> io::Result<()> {
    let len = size_of::<libc::sockaddr_xdp>() as libc::socklen_t;
    // SAFETY: the kernel reads `len` octets of an address of the family that it says.
    // JUSTIFICATION: `nix` does not know this family.
    let result = unsafe { libc::bind(fd, std::ptr::from_ref(address).cast(), len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `linux/ethtool.h`.
const ETHTOOL_GCHANNELS: u32 = 0x3c;

/// `struct ethtool_channels`.
#[repr(C)]
#[derive(Default)]
struct Channels {
    command: u32,
    /// Of receive queues, transmit queues, others, and pairs of both.
    max: [u32; 4],
    /// The same, those in use.
    used: [u32; 4],
}

/// Transmit queues that the interface uses. A socket can be bound to others, but what it queues there is never sent. One, where
/// the interface does not tell.
fn transmit_queues(name: &str) -> io::Result<usize> {
    let socket = sys::packet_socket()?;
    let mut channels = Channels { command: ETHTOOL_GCHANNELS, ..Channels::default() };
    let mut request = sys::interface_request(name);
    request.ifr_ifru.ifru_data = std::ptr::from_mut(&mut channels).cast();
    // SAFETY: the kernel reads the request, and writes to the structure behind it, which has the form that the command wants.
    // JUSTIFICATION: `nix` does not know this request.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    if result == 0 {
        return Ok((channels.used[1] as usize + channels.used[3] as usize).max(1));
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(1),
        error => Err(error),
    }
}

fn set<T>(fd: RawFd, option: libc::c_int, value: &T) -> io::Result<()> {
    let (address, len) = (std::ptr::from_ref(value).cast(), size_of::<T>() as libc::socklen_t);
    // SAFETY: private function; the kernel reads `len` octets, and every caller pairs the option with its type.
    // JUSTIFICATION: `nix` does not know these options.
    let result = unsafe { libc::setsockopt(fd, libc::SOL_XDP, option, address, len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Where producer, consumer and entries of the rings are.
fn offsets(fd: RawFd) -> io::Result<libc::xdp_mmap_offsets> {
    // SAFETY: zero is valid for every member. JUSTIFICATION: the structure has no constructor.
    let mut offsets: libc::xdp_mmap_offsets = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::xdp_mmap_offsets>() as libc::socklen_t;
    let address = std::ptr::from_mut(&mut offsets).cast();
    // SAFETY: the kernel writes at most `len` octets to `offsets`. JUSTIFICATION: `nix` does not know this option.
    let result = unsafe { libc::getsockopt(fd, libc::SOL_XDP, libc::XDP_MMAP_OFFSETS, address, &raw mut len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(offsets) }
}
