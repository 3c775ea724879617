//! Most of what is `unsafe` in this crate (the rest is in `direct` and `xdp_socket`): the memory that the kernel reads and writes for us, the submission of
//! requests that name it, the `ioctl`s of TUN devices, and packet sockets. Everything it offers is safe to call.
//!
//! Memory of frames is taken from the system once and never given back (see [`Region`]): whatever still points there,
//! a request in flight or a [`Segment`] of a burst, points at mapped memory for the life of the process.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hostweave_switch::payload::Segment;
use io_uring::types::{BufRingEntry, CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, cqueue, opcode, squeue};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use crate::limits::{LARGE_READ_BUFFERS, LARGE_READ_MIN};

/// What an eventfd is written with.
static ONE: [u8; 8] = 1u64.to_ne_bytes();

/// Identifies the one buffer group of a ring.
const BUFFER_GROUP: u16 = 0;

/// Page-aligned anonymous memory that is never unmapped. A region that is dropped waits for the next one who asks for
/// that size.
#[derive(Debug)]
pub(crate) struct Region {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a region is an address range that stays mapped for ever; whoever holds the value is its only user.
// JUSTIFICATION: returned regions are kept in a static list and may be taken by another thread.
unsafe impl Send for Region {}

static RETURNED: Mutex<Vec<Region>> = Mutex::new(Vec::new());

impl Region {
    /// At least `len` octets. The content is whatever was there.
    pub(crate) fn take(len: usize) -> io::Result<Self> {
        let mut returned = RETURNED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = returned.iter().position(|region| region.len == len) {
            return Ok(returned.swap_remove(index));
        }
        drop(returned);
        // SAFETY: a new private anonymous mapping at an address of the kernel's choice affects no other memory.
        // JUSTIFICATION: the standard library cannot allocate pages that the kernel may fill behind our back.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(address.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(Self { base, len })
    }

    /// Lets somebody else use it. Only for memory that no request in flight names any more.
    pub(crate) fn give_back(self) {
        RETURNED.lock().unwrap_or_else(PoisonError::into_inner).push(self);
    }

    /// The address `offset` octets in.
    ///
    /// # Panics
    /// When that lies outside.
    pub(crate) fn at(&self, offset: usize, len: usize) -> NonNull<u8> {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len));
        // SAFETY: inside the mapping, as just checked. JUSTIFICATION: pointer arithmetic inside one allocation.
        unsafe { self.base.add(offset) }
    }
}

/// Buffers that the kernel picks from to receive frames: a ring of provided buffers.
pub(crate) struct ReadPool {
    entries: Region,
    buffers: Region,
    stride: usize,
    count: u16,
    /// Entries ever provided, modulo 2^16; what the kernel sees as the tail.
    tail: u16,
    /// Buffers that the kernel may fill now.
    provided: u16,
    /// Buffers that it does not get while large frames come.
    spare: Vec<u16>,
}

impl ReadPool {
    /// Octets of each buffer.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// Buffers that the kernel may fill now.
    pub(crate) fn provided(&self) -> u16 {
        self.provided
    }

    /// Notes that the kernel filled one.
    pub(crate) fn filled(&mut self) {
        self.provided = self.provided.saturating_sub(1);
    }

    /// Takes a buffer back that a frame of `len` octets was in, for the next. The kernel fills buffers in the order in which it
    /// got them: while large frames come it has only a few, so that these are used again and again, and all of them again with small ones.
    ///
    /// # Panics
    /// When `index` is not one of this pool.
    pub(crate) fn release(&mut self, index: u16, len: usize) {
        if len >= LARGE_READ_MIN && self.provided >= LARGE_READ_BUFFERS {
            self.spare.push(index);
            return;
        }
        self.provide(index);
        if len < LARGE_READ_MIN
            && let Some(index) = self.spare.pop()
        {
            self.provide(index);
        }
    }

    /// Gives a buffer to the kernel.
    ///
    /// # Panics
    /// When `index` is not one of this pool.
    pub(crate) fn provide(&mut self, index: u16) {
        assert!(index < self.count && self.provided < self.count);
        let slot = usize::from(self.tail & (self.count - 1)) * size_of::<BufRingEntry>();
        let entry = self.entries.at(slot, size_of::<BufRingEntry>()).cast::<BufRingEntry>();
        let address = self.buffers.at(usize::from(index) * self.stride, self.stride);
        // SAFETY: `entry` is one of the `count` entries of the registered ring, which is zeroed plain data; the kernel
        // reads it only after the tail below says so. The buffer is mapped for ever. The tail lies in the unused field
        // of the first entry, aligned to two octets (io_uring_register_buf_ring(3)).
        // JUSTIFICATION: the ring is shared with the kernel, and the crate offers only this interface.
        unsafe {
            (*entry.as_ptr()).set_addr(address.as_ptr() as u64);
            (*entry.as_ptr()).set_len(self.stride as u32);
            (*entry.as_ptr()).set_bid(index);
            self.tail = self.tail.wrapping_add(1);
            let tail = BufRingEntry::tail(self.entries.base.as_ptr().cast()).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
        self.provided += 1;
    }

    /// `len` octets of a filled buffer from `offset` on; `None` when there is none or it lies outside.
    pub(crate) fn segment(&self, index: u16, offset: usize, len: usize) -> Option<Segment> {
        if index >= self.count || len == 0 || offset.checked_add(len)? > self.stride {
            return None;
        }
        let address = self.buffers.at(usize::from(index) * self.stride + offset, len);
        // SAFETY: regions are never unmapped, so the range stays readable for ever; the content may change once the
        // buffer is provided again, which a segment allows. JUSTIFICATION: there is no other constructor.
        Some(unsafe { Segment::new(address, len as u32) })
    }
}

/// Buffers that frames are built in for writing.
pub(crate) struct WritePool {
    buffers: Region,
    stride: usize,
    free: Vec<u16>,
}

impl WritePool {
    /// `count` buffers of `stride` octets.
    pub(crate) fn new(count: u16, stride: usize) -> io::Result<Self> {
        let buffers = Region::take(usize::from(count) * stride)?;
        Ok(Self { buffers, stride, free: (0..count).rev().collect() })
    }

    /// Whether no buffer is free.
    pub(crate) fn is_empty(&self) -> bool {
        self.free.is_empty()
    }

    /// Lets `fill` write to a free buffer and say how much it wrote. Returns which buffer, now in use, and how much;
    /// `None` when none is free or `fill` did not want it.
    pub(crate) fn fill(&mut self, fill: impl FnOnce(&mut [u8]) -> Option<usize>) -> Option<(u16, usize)> {
        let index = *self.free.last()?;
        let address = self.buffers.at(usize::from(index) * self.stride, self.stride);
        // SAFETY: a buffer in `free` is named by no request in flight (`recycle` is called once its completion was
        // seen), so that for the time of this borrow of the pool nobody else touches it.
        // JUSTIFICATION: the memory must outlive the pool, which the standard library's types do not do.
        let buffer = unsafe { std::slice::from_raw_parts_mut(address.as_ptr(), self.stride) };
        let len = fill(buffer)?;
        assert!(len <= self.stride);
        self.free.pop();
        Some((index, len))
    }

    /// Where the first `len` octets of a buffer lie.
    ///
    /// # Panics
    /// When there is no such buffer.
    pub(crate) fn address(&self, index: u16, len: usize) -> NonNull<u8> {
        self.buffers.at(usize::from(index) * self.stride, len)
    }

    /// Takes a buffer back whose write has completed.
    pub(crate) fn recycle(&mut self, index: u16) {
        debug_assert!(!self.free.contains(&index));
        self.free.push(index);
    }
}

/// A request to the kernel.
#[derive(Clone, Copy)]
pub(crate) enum Op {
    /// Tell every time that `fd` becomes readable.
    Poll { fd: RawFd },
    /// End all requests with this user data; silent.
    Cancel { target: u64 },
    /// Add one to an eventfd; silent when it works; never waits.
    Signal { fd: RawFd },
    /// Read into provided buffers until they run out.
    ReadMulti { fd: RawFd },
    /// Read once into a provided buffer of `len` octets.
    ReadOnce { fd: RawFd, len: u32 },
    /// Receive from a socket into provided buffers until they run out.
    ReceiveMulti { fd: RawFd },
    /// Receive from a socket once into a provided buffer of `len` octets.
    ReceiveOnce { fd: RawFd, len: u32 },
}

/// One completion.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Completion {
    pub(crate) user_data: u64,
    /// Octets or events, or a negated `errno`.
    pub(crate) result: i32,
    /// Which provided buffer was filled.
    pub(crate) buffer: Option<u16>,
    /// Whether more completions of the same request follow.
    pub(crate) more: bool,
}

/// How completions come about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// Only when we look, which we do when a flag in memory says so (Linux 6.1).
    Deferred,
    /// When the thread enters the kernel anyway (Linux 5.19).
    Cooperative,
    /// By interrupting the thread.
    Plain,
}

impl Mode {
    /// Best first.
    pub(crate) const ALL: [Self; 3] = [Self::Deferred, Self::Cooperative, Self::Plain];
}

/// The io_uring, with the buffers its requests name.
pub(crate) struct Ring {
    io: IoUring,
    multishot_reads: bool,
    multishot_receives: bool,
    /// Requests that did not fit the submission queue; nearly always empty.
    backlog: Vec<squeue::Entry>,
}

impl Ring {
    /// A ring that only the calling thread will use, with the best mode that the kernel knows.
    pub(crate) fn new(entries: u32, completions: u32) -> io::Result<Self> {
        let mut result = Err(io::ErrorKind::Unsupported.into());
        for mode in Mode::ALL {
            result = Self::with_mode(mode, entries, completions);
            if result.is_ok() {
                break;
            }
        }
        result
    }

    /// A ring that works as on a kernel that knows this mode and no better one.
    pub(crate) fn with_mode(mode: Mode, entries: u32, completions: u32) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder.dontfork().setup_clamp().setup_cqsize(completions);
        match mode {
            Mode::Deferred => {
                builder.setup_submit_all().setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag()
            }
            Mode::Cooperative => builder.setup_submit_all().setup_coop_taskrun().setup_taskrun_flag(),
            Mode::Plain => &mut builder,
        };
        let io = builder.build(entries)?;
        let mut probe = Probe::new();
        let probed = io.submitter().register_probe(&mut probe).is_ok();
        let multishot_reads = mode == Mode::Deferred && probed && probe.is_supported(opcode::ReadMulti::CODE);
        // Linux 6.0, so wherever that mode is.
        let multishot_receives = mode == Mode::Deferred;
        Ok(Self { io, multishot_reads, multishot_receives, backlog: Vec::new() })
    }

    /// Whether one request reads any number of frames (Linux 6.7).
    pub(crate) fn multishot_reads(&self) -> bool {
        self.multishot_reads
    }

    /// Whether one request receives any number of frames from a socket.
    pub(crate) fn multishot_receives(&self) -> bool {
        self.multishot_receives
    }

    /// Makes `count` (a power of two) buffers and tells the kernel.
    pub(crate) fn read_pool(&mut self, count: u16, stride: usize) -> io::Result<ReadPool> {
        assert!(count.is_power_of_two());
        let entries = Region::take((usize::from(count) * size_of::<BufRingEntry>()).next_multiple_of(4096))?;
        // SAFETY: the mapping is that long, nobody else uses it, and zero is a valid entry.
        // JUSTIFICATION: a returned region still holds the entries of its last user.
        unsafe { std::ptr::write_bytes(entries.base.as_ptr(), 0, entries.len) };
        let buffers = Region::take(usize::from(count) * stride)?;
        // SAFETY: page aligned, `count` entries long, mapped for ever.
        // JUSTIFICATION: the crate's function is unsafe.
        unsafe {
            self.io.submitter().register_buf_ring_with_flags(entries.base.as_ptr() as u64, count, BUFFER_GROUP, 0)?
        };
        let spare = Vec::with_capacity(usize::from(count));
        let mut pool = ReadPool { entries, buffers, stride, count, tail: 0, provided: 0, spare };
        (0..count).for_each(|index| pool.provide(index));
        Ok(pool)
    }

    /// Queues a request for the next [`Ring::enter`]. `fd`s must stay open until then.
    pub(crate) fn push(&mut self, op: Op, user_data: u64) {
        let entry = match op {
            Op::Poll { fd } => opcode::PollAdd::new(Fd(fd), libc::POLLIN as u32).multi(true).build(),
            Op::Cancel { target } => opcode::AsyncCancel2::new(CancelBuilder::user_data(target).all())
                .build()
                .flags(squeue::Flags::SKIP_SUCCESS),
            Op::Signal { fd } => opcode::Write::new(Fd(fd), ONE.as_ptr(), ONE.len() as u32)
                .rw_flags(libc::RWF_NOWAIT)
                .build()
                .flags(squeue::Flags::SKIP_SUCCESS),
            Op::ReadMulti { fd } => opcode::ReadMulti::new(Fd(fd), 0, BUFFER_GROUP).build(),
            Op::ReadOnce { fd, len } => opcode::Read::new(Fd(fd), std::ptr::null_mut(), len)
                .buf_group(BUFFER_GROUP)
                .build()
                .flags(squeue::Flags::BUFFER_SELECT),
            Op::ReceiveMulti { fd } => opcode::RecvMulti::new(Fd(fd), BUFFER_GROUP).build(),
            Op::ReceiveOnce { fd, len } => opcode::Recv::new(Fd(fd), std::ptr::null_mut(), len)
                .buf_group(BUFFER_GROUP)
                .build()
                .flags(squeue::Flags::BUFFER_SELECT),
        };
        self.push_entry(entry.user_data(user_data));
    }

    /// Queues a write of the first `len` octets of a buffer that [`WritePool::fill`] returned.
    pub(crate) fn push_write(&mut self, fd: RawFd, pool: &WritePool, (index, len): (u16, usize), user_data: u64) {
        let address = pool.address(index, len);
        let entry = opcode::Write::new(Fd(fd), address.as_ptr(), len as u32).build();
        self.push_entry(entry.user_data(user_data));
    }

    fn push_entry(&mut self, entry: squeue::Entry) {
        if self.backlog.is_empty() && self.try_push(&entry) {
            return;
        }
        let entered = self.enter(None);
        if !(entered.is_ok() && self.backlog.is_empty() && self.try_push(&entry)) {
            self.backlog.push(entry);
        }
    }

    fn try_push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: memory named by an entry is `ONE` or lies in a region, both mapped for ever; while a write is in
        // flight its buffer is not in `free`, and provided buffers are read only after their completion.
        // JUSTIFICATION: the crate's function is unsafe.
        unsafe { self.io.submission().push(entry).is_ok() }
    }

    /// Whether a call of [`Ring::enter`] would find something to do: completions that the kernel holds back.
    pub(crate) fn wants_enter(&mut self) -> bool {
        let queue = self.io.submission();
        queue.taskrun() || queue.cq_overflow()
    }

    /// Whether requests wait to be submitted.
    pub(crate) fn has_unsubmitted(&mut self) -> bool {
        !self.backlog.is_empty() || !self.io.submission().is_empty()
    }

    /// Submits what was queued and collects completions. With a `wait`, sleeps until there is a completion or that
    /// time is over (`Duration::MAX`: for ever).
    pub(crate) fn enter(&mut self, wait: Option<Duration>) -> io::Result<()> {
        let result = match wait {
            None => self.io.submit(),
            Some(Duration::MAX) => self.io.submit_and_wait(1),
            Some(time) => self.wait(1, time),
        };
        self.entered(result)
    }

    /// Submits what was queued, then sleeps for `time`, whatever completes meanwhile.
    pub(crate) fn nap(&mut self, time: Duration) -> io::Result<()> {
        // More than there ever are: the kernel takes as many as fit its queue for it.
        let result = self.wait(i32::MAX as usize, time);
        self.entered(result)
    }

    fn wait(&self, completions: usize, time: Duration) -> io::Result<usize> {
        let time = Timespec::new().sec(time.as_secs()).nsec(time.subsec_nanos());
        self.io.submitter().submit_with_args(completions, &SubmitArgs::new().timespec(&time))
    }

    fn entered(&mut self, result: io::Result<usize>) -> io::Result<()> {
        let backlog = std::mem::take(&mut self.backlog);
        for entry in backlog {
            if !(self.backlog.is_empty() && self.try_push(&entry)) {
                self.backlog.push(entry);
            }
        }
        match result {
            Ok(_) => Ok(()),
            // Not failures: time is over, a signal came, or completions must be taken first.
            Err(error) => match error.raw_os_error() {
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// The next completion in memory; no system call.
    pub(crate) fn pop(&mut self) -> Option<Completion> {
        let entry = self.io.completion().next()?;
        Some(Completion {
            user_data: entry.user_data(),
            result: entry.result(),
            buffer: cqueue::buffer_select(entry.flags()),
            more: cqueue::more(entry.flags()),
        })
    }

    /// Ends all requests, then lets the memory go. When the kernel does not confirm in time, the memory is kept for
    /// ever instead.
    pub(crate) fn close(mut self, reads: Option<ReadPool>, writes: Option<WritePool>) {
        let _ = self.enter(None);
        let cancelled = self.io.submitter().register_sync_cancel(Some(Timespec::new().sec(1)), CancelBuilder::any());
        let idle = match cancelled {
            Ok(()) => true,
            Err(error) => error.raw_os_error() == Some(libc::ENOENT),
        };
        let unregistered = reads.is_none() || self.io.submitter().unregister_buf_ring(BUFFER_GROUP).is_ok();
        drop(self.io);
        if !(idle && unregistered) {
            return;
        }
        if let Some(pool) = reads {
            pool.entries.give_back();
            pool.buffers.give_back();
        }
        if let Some(pool) = writes {
            pool.buffers.give_back();
        }
    }
}

/// Passes a pointer to `argument` to an `ioctl`.
fn ioctl<T>(fd: BorrowedFd<'_>, request: libc::c_ulong, argument: &mut T) -> io::Result<()> {
    // SAFETY: private function; every caller below pairs the request with the type that the kernel reads and writes.
    // JUSTIFICATION: `ioctl` has no safe form.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, std::ptr::from_mut(argument)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Passes a number to an `ioctl`.
fn ioctl_value(fd: BorrowedFd<'_>, request: libc::c_ulong, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: private function; every caller below uses a request that takes a number.
    // JUSTIFICATION: `ioctl` has no safe form.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, value) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

pub(crate) fn interface_request(name: &str) -> libc::ifreq {
    // SAFETY: zero is valid for the name and for every member of the union.
    // JUSTIFICATION: the structure has no constructor.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

/// What kind of TAP device is made or taken over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Queues {
    /// It has one queue.
    One,
    /// Each who takes it over adds one.
    Several,
}

/// Makes or takes over the TAP device `name` (`TUNSETIFF`), with virtio-net headers and without `tun_pi`.
pub(crate) fn tun_attach(tun: BorrowedFd<'_>, name: &str, queues: Queues) -> io::Result<()> {
    let mut request = interface_request(name);
    let several = if queues == Queues::Several { libc::IFF_MULTI_QUEUE } else { 0 };
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | several) as libc::c_short;
    ioctl(tun, libc::TUNSETIFF as _, &mut request)
}

/// Has a program choose the queue of each frame that the kernel sends (`TUNSETSTEERINGEBPF`), or none.
pub(crate) fn tun_steer(tun: BorrowedFd<'_>, program: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut program: libc::c_int = program.map_or(-1, |program| program.as_raw_fd());
    ioctl(tun, libc::TUNSETSTEERINGEBPF as _, &mut program)
}

/// Whether the device outlives its owner (`TUNSETPERSIST`).
pub(crate) fn tun_set_persistent(tun: BorrowedFd<'_>, persistent: bool) -> io::Result<()> {
    ioctl_value(tun, libc::TUNSETPERSIST as _, libc::c_ulong::from(persistent))
}

/// Octets of the header before each frame (`TUNSETVNETHDRSZ`).
pub(crate) fn tun_set_header_len(tun: BorrowedFd<'_>, len: usize) -> io::Result<()> {
    let mut len = len as libc::c_int;
    ioctl(tun, libc::TUNSETVNETHDRSZ as _, &mut len)
}

/// Header fields are little endian, whatever the host (`TUNSETVNETLE`).
pub(crate) fn tun_set_little_endian(tun: BorrowedFd<'_>) -> io::Result<()> {
    let mut yes: libc::c_int = 1;
    ioctl(tun, libc::TUNSETVNETLE as _, &mut yes)
}

/// Which offloads the device may leave to us (`TUNSETOFFLOAD`, `TUN_F_*`).
pub(crate) fn tun_set_offload(tun: BorrowedFd<'_>, flags: libc::c_uint) -> io::Result<()> {
    ioctl_value(tun, libc::TUNSETOFFLOAD as _, libc::c_ulong::from(flags))
}

/// The MAC address of an interface, through any socket of its namespace.
pub(crate) fn interface_mac(socket: BorrowedFd<'_>, name: &str) -> io::Result<[u8; 6]> {
    let mut request = interface_request(name);
    ioctl(socket, libc::SIOCGIFHWADDR as _, &mut request)?;
    // SAFETY: the kernel just filled this member. JUSTIFICATION: the structure holds a union.
    let data = unsafe { request.ifr_ifru.ifru_hwaddr.sa_data };
    Ok(std::array::from_fn(|index| data[index] as u8))
}

/// Sets the MAC address of an interface.
pub(crate) fn set_interface_mac(socket: BorrowedFd<'_>, name: &str, mac: [u8; 6]) -> io::Result<()> {
    let mut request = interface_request(name);
    let mut address = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: [0; 14] };
    for (to, from) in address.sa_data.iter_mut().zip(mac) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_hwaddr = address;
    ioctl(socket, libc::SIOCSIFHWADDR as _, &mut request)
}

/// The MTU of an interface, in octets of IP packet.
pub(crate) fn interface_mtu(socket: BorrowedFd<'_>, name: &str) -> io::Result<i32> {
    let mut request = interface_request(name);
    ioctl(socket, libc::SIOCGIFMTU as _, &mut request)?;
    // SAFETY: the kernel just filled this member. JUSTIFICATION: the structure holds a union.
    Ok(unsafe { request.ifr_ifru.ifru_mtu })
}

/// Sets the MTU of an interface, in octets of IP packet.
pub(crate) fn set_interface_mtu(socket: BorrowedFd<'_>, name: &str, mtu: u16) -> io::Result<()> {
    let mut request = interface_request(name);
    request.ifr_ifru.ifru_mtu = i32::from(mtu);
    ioctl(socket, libc::SIOCSIFMTU as _, &mut request)
}

/// Sets an interface administratively up; other flags stay.
pub(crate) fn set_interface_up(socket: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let mut request = interface_request(name);
    ioctl(socket, libc::SIOCGIFFLAGS as _, &mut request)?;
    // SAFETY: the kernel just filled this member. JUSTIFICATION: the structure holds a union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    ioctl(socket, libc::SIOCSIFFLAGS as _, &mut request)
}

/// Asks an `ETHTOOL_G*` question whose answer is a number, through any socket of the interface's namespace.
pub(crate) fn ethtool_value(socket: BorrowedFd<'_>, name: &str, question: u32) -> io::Result<u32> {
    /// `struct ethtool_value`.
    #[repr(C)]
    struct Value {
        cmd: u32,
        data: u32,
    }
    let mut value = Value { cmd: question, data: 0 };
    let mut request = interface_request(name);
    request.ifr_ifru.ifru_data = std::ptr::from_mut(&mut value).cast();
    ioctl(socket, libc::SIOCETHTOOL as _, &mut request)?;
    // SAFETY: the kernel has written through the pointer to a structure that lives here. JUSTIFICATION: the compiler must not take it
    // for unchanged.
    Ok(unsafe { std::ptr::read_volatile(&raw const value.data) })
}

/// A packet socket that receives nothing until it is bound (packet(7)).
pub(crate) fn packet_socket() -> io::Result<OwnedFd> {
    // SAFETY: makes a file descriptor and touches no memory. JUSTIFICATION: `nix` makes such sockets, but with the
    // protocol of its choice, which receives at once.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this file descriptor for us; nobody else knows it.
    // JUSTIFICATION: it arrives as a number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets an option of a socket.
fn set_option<T>(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    let (address, len) = (std::ptr::from_ref(value).cast(), size_of::<T>() as libc::socklen_t);
    // SAFETY: private function; the kernel reads `len` octets of `value`, and every caller below pairs the option with
    // its type. JUSTIFICATION: `nix` does not know these options.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, address, len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets an option that is a number.
pub(crate) fn set_number(socket: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    set_option(socket, level, name, &value)
}

/// Reads an option into `value`, which any octets are a value of.
fn option<T>(socket: BorrowedFd<'_>, level: i32, name: i32, mut value: T) -> io::Result<T> {
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: private function; the kernel writes at most `len` octets to `value`, and every caller below asks for numbers.
    // JUSTIFICATION: `nix` does not know these options.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, std::ptr::from_mut(&mut value).cast(), &raw mut len)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// An option that is a number.
pub(crate) fn number(socket: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<i32> {
    option(socket, level, name, 0)
}

/// Frames that a packet socket had no room for since this was last asked (`PACKET_STATISTICS`).
pub(crate) fn packet_drops(socket: BorrowedFd<'_>) -> io::Result<u32> {
    // `struct tpacket_stats`: frames, and those of them that were dropped.
    let [_, drops] = option(socket, libc::SOL_PACKET, PACKET_STATISTICS, [0_u32; 2])?;
    Ok(drops)
}

/// `linux/if_packet.h`.
const PACKET_STATISTICS: i32 = 6;

/// Has the program choose among the packet sockets of a group (`PACKET_FANOUT_DATA`).
pub(crate) fn steer(socket: BorrowedFd<'_>, program: &mut [libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: program.len() as libc::c_ushort, filter: program.as_mut_ptr() };
    set_option(socket, libc::SOL_PACKET, libc::PACKET_FANOUT_DATA, &program)
}

/// Lets only frames pass for which the program returns other than zero (`SO_ATTACH_FILTER`).
pub(crate) fn attach_filter(socket: BorrowedFd<'_>, program: &mut [libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: program.len() as libc::c_ushort, filter: program.as_mut_ptr() };
    set_option(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// Has the interface receive more than what is for it (`PACKET_ADD_MEMBERSHIP`, `PACKET_MR_*`), while the socket is open.
pub(crate) fn join(socket: BorrowedFd<'_>, index: u32, kind: i32) -> io::Result<()> {
    let request = libc::packet_mreq {
        mr_ifindex: index as libc::c_int,
        mr_type: kind as libc::c_ushort,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    set_option(socket, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &request)
}

/// Binds a packet socket to an interface. If it `receives`, frames of all protocols arrive from now on, or else none.
pub(crate) fn bind_packet(socket: BorrowedFd<'_>, index: u32, receives: bool) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as libc::c_ushort,
        sll_protocol: if receives { (libc::ETH_P_ALL as u16).to_be() } else { 0 },
        sll_ifindex: index as libc::c_int,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the kernel reads `len` octets of an address of the family that it says.
    // JUSTIFICATION: `nix` has no constructor for this address.
    let result = unsafe { libc::bind(socket.as_raw_fd(), std::ptr::from_ref(&address).cast(), len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Receives one octet and at most one file descriptor. No octet: the other end is closed.
pub(crate) fn receive_octet(socket: BorrowedFd<'_>) -> io::Result<(Option<u8>, Option<OwnedFd>)> {
    let mut octet = [0; 1];
    let mut octets = [IoSliceMut::new(&mut octet)];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut octets, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let count = message.bytes;
    let mut received = None;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            for fd in fds {
                // SAFETY: the kernel has just made this file descriptor for us; nobody else knows it.
                // JUSTIFICATION: it arrives as a number.
                received = Some(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    Ok(((count == 1).then_some(octet[0]), received))
}
