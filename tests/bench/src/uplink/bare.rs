//! The bare loops: nothing but the frames of a case, written to an interface or read from it, a batch with each system call.
//!
//! Packet sockets by `sendmmsg` and `recvmmsg`; TAP devices by an `io_uring`, which has no other call for several frames.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use super::Drained;
use anyhow::{Context, Result, ensure};
use io_uring::{IoUring, opcode, types};

/// Frames with one system call.
pub const BATCH: usize = 64;

/// Octets of a socket's buffer, as the daemon has.
const SOCKET_BUFFER: libc::c_int = 8 << 20;

/// Where frames are written to and read from; each has a virtio-net header in front.
pub enum Interface {
    /// A packet socket, with headers of 10 octets.
    Packet(OwnedFd),
    /// A TAP device, with headers of 12 octets.
    Tap(OwnedFd),
}

impl Interface {
    /// A packet socket on an interface of this thread's namespace. Without `receives` it is for writing.
    pub fn packet(name: &str, receives: bool) -> Result<Self> {
        // SAFETY: makes a file descriptor and touches no memory. JUSTIFICATION: `nix` binds the protocol at once.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        ensure!(fd >= 0, "a packet socket: {}", io::Error::last_os_error());
        // SAFETY: just made, and nobody else's. JUSTIFICATION: it arrives as a number.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let options = [
            (libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1),
            (libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1),
            (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, SOCKET_BUFFER),
            (libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SOCKET_BUFFER),
        ];
        for (level, option, value) in options {
            let (address, len) = (std::ptr::from_ref(&value).cast(), size_of::<libc::c_int>() as libc::socklen_t);
            // SAFETY: the kernel reads a number. JUSTIFICATION: `nix` does not know these options.
            let result = unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, address, len) };
            ensure!(result == 0, "option {option} of a packet socket: {}", io::Error::last_os_error());
        }
        let protocol = if receives { (libc::ETH_P_ALL as u16).to_be() } else { 0 };
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: protocol,
            sll_ifindex: nix::net::if_::if_nametoindex(name).context(name.to_owned())? as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the kernel reads `len` octets. JUSTIFICATION: `nix` has no constructor for this address.
        let result = unsafe { libc::bind(fd.as_raw_fd(), std::ptr::from_ref(&address).cast(), len) };
        ensure!(result == 0, "binding to {name}: {}", io::Error::last_os_error());
        Ok(Self::Packet(fd))
    }

    /// A TAP device that it makes, set up as the daemon's.
    pub fn tap(name: &str) -> Result<Self> {
        let fd = OwnedFd::from(File::options().read(true).write(true).open("/dev/net/tun")?);
        // SAFETY: zero is valid for every member. JUSTIFICATION: the structure has no constructor.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
        let mut len: libc::c_int = super::TAP_HEADER as libc::c_int;
        let offload = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
        // SAFETY: each request with what the kernel reads and writes for it. JUSTIFICATION: `ioctl` has no safe form.
        let results = unsafe {
            [
                libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request),
                libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, &raw mut len),
                libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD as _, libc::c_ulong::from(offload)),
            ]
        };
        ensure!(results.iter().all(|result| *result >= 0), "TAP device {name}: {}", io::Error::last_os_error());
        Ok(Self::Tap(fd))
    }

    fn fd(&self) -> RawFd {
        match self {
            Self::Packet(fd) | Self::Tap(fd) => fd.as_raw_fd(),
        }
    }
}

/// Buffers for the frames of one system call.
pub struct Frames {
    buffers: Vec<Vec<u8>>,
    /// Point into `buffers`.
    parts: Vec<libc::iovec>,
    ring: IoUring,
}

impl Frames {
    /// A batch of this frame, or room for a batch of frames like it.
    pub fn new(frame: &[u8]) -> Result<Self> {
        let mut buffers = vec![frame.to_vec(); BATCH];
        let part = |buffer: &mut Vec<u8>| libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        let parts = buffers.iter_mut().map(part).collect();
        let ring = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(BATCH as u32)?;
        Ok(Self { buffers, parts, ring })
    }

    /// The first `count` frames.
    pub fn get(&self, count: usize) -> &[Vec<u8>] {
        self.buffers.get(..count).unwrap_or_default()
    }

    /// Names each of the first `count` buffers in a message of its own.
    fn messages(&mut self, count: usize) -> Vec<libc::mmsghdr> {
        // SAFETY: zero is valid for every member. JUSTIFICATION: the structure has no constructor.
        let empty = || unsafe { std::mem::zeroed::<libc::mmsghdr>() };
        let message = |part: &mut libc::iovec| {
            let mut message = empty();
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
            message
        };
        self.parts.iter_mut().take(count).map(message).collect()
    }

    /// Queues one request for a buffer.
    fn push(&mut self, index: usize, entry: impl FnOnce(*mut u8, u32) -> io_uring::squeue::Entry) -> Result<()> {
        let buffer = self.buffers.get_mut(index).context("a buffer")?;
        let entry = entry(buffer.as_mut_ptr(), buffer.len() as u32).user_data(index as u64);
        // SAFETY: both are this value's, and whoever queues requests waits for all of them before it returns.
        // JUSTIFICATION: the crate's function is unsafe.
        unsafe { self.ring.submission().push(&entry) }.context("the ring is full")
    }
}

/// Writes batches until `time` is over.
pub fn write(interface: &Interface, frame: &[u8], time: Duration) -> Result<()> {
    let mut frames = Frames::new(frame)?;
    let start = Instant::now();
    let mut messages = frames.messages(BATCH);
    while start.elapsed() < time {
        match interface {
            Interface::Packet(fd) => {
                // SAFETY: messages name buffers of `frames`, which lives on. JUSTIFICATION: `nix` prepares them each time.
                let sent = unsafe { libc::sendmmsg(fd.as_raw_fd(), messages.as_mut_ptr(), BATCH as u32, 0) };
                ensure!(sent > 0 || io::Error::last_os_error().raw_os_error() == Some(libc::ENOBUFS), "sendmmsg");
            }
            Interface::Tap(_) => {
                let fd = types::Fd(interface.fd());
                for index in 0..BATCH {
                    frames.push(index, |address, len| opcode::Write::new(fd, address, len).build())?;
                }
                frames.ring.submit_and_wait(BATCH)?;
                ensure!(frames.ring.completion().all(|done| done.result() > 0), "a write failed");
            }
        }
    }
    Ok(())
}

/// Reads what is there, up to a batch, and does not wait. The frames are in the first buffers (packet socket).
pub fn read(interface: &Interface, frames: &mut Frames) -> Result<usize> {
    match interface {
        Interface::Packet(fd) => {
            let mut messages = frames.messages(BATCH);
            let (address, flags) = (messages.as_mut_ptr(), libc::MSG_DONTWAIT);
            // SAFETY: messages name buffers of `frames`, which lives on. JUSTIFICATION: `nix` prepares them each time.
            let got = unsafe { libc::recvmmsg(fd.as_raw_fd(), address, BATCH as u32, flags, std::ptr::null_mut()) };
            Ok(usize::try_from(got).unwrap_or(0))
        }
        Interface::Tap(_) => {
            let fd = types::Fd(interface.fd());
            for index in 0..BATCH {
                let read = |address, len| opcode::Read::new(fd, address, len).rw_flags(libc::RWF_NOWAIT).build();
                frames.push(index, read)?;
            }
            frames.ring.submit_and_wait(BATCH)?;
            Ok(frames.ring.completion().filter(|done| done.result() > 0).count())
        }
    }
}

/// Reads `count` frames, or what there is.
pub fn drain(interface: &Interface, like: &[u8], count: usize) -> Result<Drained> {
    let mut frames = Frames::new(like)?;
    let mut drained = Drained::new();
    while drained.goes_on(count) {
        drained.add(read(interface, &mut frames)?);
    }
    Ok(drained)
}

/// Writes `count` frames to a packet socket, whose interface may be slower: it waits then.
pub fn send(interface: &Interface, frame: &[u8], count: usize) -> Result<()> {
    let mut frames = Frames::new(frame)?;
    let mut messages = frames.messages(BATCH);
    let mut left = count;
    while left > 0 {
        let batch = left.min(BATCH) as u32;
        // SAFETY: messages name buffers of `frames`, which lives on. JUSTIFICATION: `nix` prepares them each time.
        let sent = unsafe { libc::sendmmsg(interface.fd(), messages.as_mut_ptr(), batch, 0) };
        ensure!(sent > 0, "sendmmsg: {}", io::Error::last_os_error());
        left -= sent as usize;
    }
    Ok(())
}
