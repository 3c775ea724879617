//! AF_XDP sockets beside the packet sockets of an uplink, which only transmit: a small frame costs the kernel less than half there.
//!
//! They have no program and no receive ring, and copy (`XDP_COPY`), so that nothing changes for what comes in: packet sockets
//! receive it, with the kernel's offloads, which AF_XDP has not. In zero-copy mode a driver would take the buffers of
//! received frames from here too, and the host would be cut off.
//!
//! Each belongs to one transmit queue of the interface. Workers take the one of their number, and the packet socket where
//! another has it at the moment. Linux 5.4 and later (`XDP_USE_NEED_WAKEUP`).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, TryLockError};
use std::time::Instant;

use crate::limits::{XDP_FRAME, XDP_FRAMES, XDP_PATIENCE};
use crate::sys::Region;

/// The sockets of one interface.
#[derive(Debug)]
pub(crate) struct XdpSockets(Box<[Mutex<XdpSocket>]>);

impl XdpSockets {
    /// Opens up to `count`, one for each transmit queue that the interface has.
    pub(crate) fn open(index: u32, count: usize) -> io::Result<Self> {
        let mut sockets = vec![Mutex::new(XdpSocket::open(index, 0)?)];
        for queue in 1..count {
            match XdpSocket::open(index, queue as u32) {
                Ok(socket) => sockets.push(Mutex::new(socket)),
                // It has no more queues.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(Self(sockets.into()))
    }

    /// Does something with the socket of a worker, unless another has it at the moment.
    #[inline]
    pub(crate) fn with<T>(&self, worker: usize, work: impl FnOnce(&mut XdpSocket) -> T) -> Option<T> {
        match self.0[worker % self.0.len()].try_lock() {
            Ok(mut socket) => Some(work(&mut socket)),
            Err(TryLockError::Poisoned(poisoned)) => Some(work(&mut poisoned.into_inner())),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// One AF_XDP socket that transmits.
#[derive(Debug)]
pub(crate) struct XdpSocket {
    /// Closed before the rings are unmapped.
    fd: Option<OwnedFd>,
    frames: Option<Region>,
    transmit: Ring,
    completed: Ring,
    /// Offsets of frames that the kernel does not have.
    free: Vec<u64>,
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
        let frames = Region::take(XDP_FRAMES * XDP_FRAME)?;
        let umem = libc::xdp_umem_reg {
            addr: frames.at(0, 0).as_ptr() as u64,
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
        let offsets = offsets(raw)?;
        let transmit = Ring::map(raw, libc::XDP_PGOFF_TX_RING as u64, &offsets.tx, size_of::<libc::xdp_desc>())?;
        let page = libc::XDP_UMEM_PGOFF_COMPLETION_RING;
        let completed = Ring::map(raw, page, &offsets.cr, size_of::<u64>())?;
        let address = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            sxdp_flags: libc::XDP_COPY | libc::XDP_USE_NEED_WAKEUP,
            sxdp_ifindex: index,
            sxdp_queue_id: queue,
            sxdp_shared_umem_fd: 0,
        };
        bind(raw, &address)?;
        let free = (0..XDP_FRAMES).rev().map(|index| (index * XDP_FRAME) as u64).collect();
        Ok(Self { fd: Some(fd), frames: Some(frames), transmit, completed, free })
    }

    /// Queues a frame that `fill` writes and tells the length of, for the next [`XdpSocket::kick`]. `None` when there is no
    /// room, or `fill` did not want it.
    #[inline]
    pub(crate) fn push(&mut self, fill: impl FnOnce(&mut [u8]) -> Option<usize>) -> Option<()> {
        if self.free.is_empty() {
            self.kick();
        }
        let offset = *self.free.last()?;
        let address = self.frames.as_ref()?.at(offset as usize, XDP_FRAME);
        // SAFETY: frames in `free` are named by no entry of a ring, so the kernel does not read them, and this is the only
        // borrow. JUSTIFICATION: the memory is shared with the kernel and outlives the socket.
        let buffer = unsafe { std::slice::from_raw_parts_mut(address.as_ptr(), XDP_FRAME) };
        let len = fill(buffer).filter(|len| *len <= XDP_FRAME)?;
        self.free.pop();
        let producer = self.transmit.index(self.transmit.producer);
        let next = producer.load(Ordering::Relaxed);
        let entry = libc::xdp_desc { addr: offset, len: len as u32, options: 0 };
        // SAFETY: an entry inside the ring that the kernel has given back: there are as many entries as frames, and this
        // frame was free. JUSTIFICATION: the ring is shared with the kernel.
        unsafe { self.transmit.entry::<libc::xdp_desc>(next).write(entry) };
        producer.store(next.wrapping_add(1), Ordering::Release);
        Some(())
    }

    /// Has the kernel send what is queued, as far as it takes it now, and takes back frames that it has sent.
    pub(crate) fn kick(&mut self) {
        let Some(fd) = self.fd.as_ref().map(AsRawFd::as_raw_fd) else { return };
        let queued = |ring: &Ring| {
            let sent = ring.index(ring.consumer).load(Ordering::Acquire);
            ring.index(ring.producer).load(Ordering::Relaxed).wrapping_sub(sent)
        };
        let mut left = queued(&self.transmit);
        while left > 0 {
            // SAFETY: no data and no address are passed. JUSTIFICATION: `nix` has no form without data.
            let sent = unsafe { libc::sendto(fd, std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0) };
            let before = std::mem::replace(&mut left, queued(&self.transmit));
            // The kernel sends a part with each call. Without progress the rest waits for the next kick.
            if sent < 0 && left == before {
                break;
            }
        }
        let done = self.completed.index(self.completed.producer).load(Ordering::Acquire);
        let consumer = self.completed.index(self.completed.consumer);
        let mut next = consumer.load(Ordering::Relaxed);
        while next != done && self.free.len() < XDP_FRAMES {
            // SAFETY: an entry that the kernel has filled, as its producer says. JUSTIFICATION: as in `push`.
            let offset = unsafe { self.completed.entry::<u64>(next).read() };
            self.free.push(offset);
            next = next.wrapping_add(1);
        }
        consumer.store(next, Ordering::Release);
    }
}

impl Drop for XdpSocket {
    fn drop(&mut self) {
        self.fd = None;
        // The kernel copies what it sends, and receives nothing here.
        if let Some(frames) = self.frames.take() {
            frames.give_back();
        }
    }
}

/// Binds to a queue. The kernel gives one free a while after its last user is gone.
fn bind(fd: RawFd, address: &libc::sockaddr_xdp) -> io::Result<()> {
    let len = size_of::<libc::sockaddr_xdp>() as libc::socklen_t;
    let start = Instant::now();
    loop {
        // SAFETY: the kernel reads `len` octets of an address of the family that it says.
        // JUSTIFICATION: `nix` does not know this family.
        if unsafe { libc::bind(fd, std::ptr::from_ref(address).cast(), len) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EBUSY) || start.elapsed() > XDP_PATIENCE {
            return Err(error);
        }
        std::thread::sleep(XDP_PATIENCE / 50);
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
