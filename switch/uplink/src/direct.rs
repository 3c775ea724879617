//! Frames that are handed to the kernel by a system call of the worker's own, where that measures faster than its `io_uring`:
//! several small ones to a packet socket at once (`sendmmsg`; a request of the `io_uring` costs a tenth of what the kernel
//! needs for such a frame), and a large one straight from where its sender left it (its copy would cost as much as all the
//! rest). Neither ever waits.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use hostweave_switch::payload::Segment;

use crate::limits::{DIRECT_SEGMENTS_MAX, SENDS_MAX};
use crate::sys::WritePool;

/// Frames for one packet socket, in the buffers of a pool.
pub(crate) struct Sends {
    /// Buffer and octets of each.
    queued: Vec<(u16, usize)>,
    /// Made once; each names the part of its own index.
    messages: Vec<libc::mmsghdr>,
    parts: Box<[libc::iovec]>,
}

impl Sends {
    pub(crate) fn new() -> Self {
        let mut parts: Box<[libc::iovec]> =
            (0..SENDS_MAX).map(|_| libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }).collect();
        let messages = parts
            .iter_mut()
            .map(|part| {
                // SAFETY: zero is valid for every member. JUSTIFICATION: the structure has private padding.
                let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
                message.msg_hdr.msg_iov = part;
                message.msg_hdr.msg_iovlen = 1;
                message
            })
            .collect();
        Self { queued: Vec::with_capacity(SENDS_MAX), messages, parts }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queued.is_empty()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.queued.len() == SENDS_MAX
    }

    /// Adds a buffer that [`WritePool::fill`] returned.
    ///
    /// # Panics
    /// When it is full.
    pub(crate) fn push(&mut self, pool: &WritePool, (index, len): (u16, usize)) {
        let part = &mut self.parts[self.queued.len()];
        part.iov_base = pool.address(index, len).as_ptr().cast();
        part.iov_len = len;
        self.queued.push((index, len));
    }

    /// Sends all of them, gives their buffers back, and tells of those that the kernel did not take: their octets.
    pub(crate) fn flush(&mut self, socket: BorrowedFd<'_>, pool: &mut WritePool, refused: &mut impl FnMut(usize)) {
        let mut done = 0;
        while done < self.queued.len() {
            let count = (self.queued.len() - done) as libc::c_uint;
            let first = self.messages[done..].as_mut_ptr();
            // SAFETY: `count` messages, each of which names one part, which names a buffer of the pool that `fill` has
            // taken out of the free ones: mapped for ever, and nobody writes to it before it is recycled below.
            // JUSTIFICATION: `nix` prepares all messages anew each time.
            let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), first, count, libc::MSG_DONTWAIT) };
            match usize::try_from(sent) {
                Ok(sent) if sent > 0 => done += sent,
                _ => {
                    refused(self.queued[done].1);
                    done += 1;
                }
            }
        }
        self.queued.drain(..).for_each(|(index, _)| pool.recycle(index));
    }
}

/// Writes one frame, which begins with `head` and goes on in `segments`. `None` when it is in too many parts, or the kernel
/// cannot.
pub(crate) fn write(
    fd: BorrowedFd<'_>,
    socket: bool,
    head: &[u8],
    segments: impl Iterator<Item = Segment>,
) -> Option<io::Result<()>> {
    let mut parts = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; DIRECT_SEGMENTS_MAX + 1];
    parts[0] = libc::iovec { iov_base: head.as_ptr().cast_mut().cast(), iov_len: head.len() };
    let mut count = 1;
    for segment in segments {
        let part = parts.get_mut(count)?;
        *part = libc::iovec { iov_base: segment.address().as_ptr().cast(), iov_len: segment.len() };
        count += 1;
    }
    // SAFETY: the kernel only reads `head`, which is borrowed, and segments, which are mapped readable for as long as the
    // packet that they are of is lent to us; it does not return before it has. `count` parts are initialised.
    // JUSTIFICATION: segments cannot be borrowed as slices, which the safe forms want.
    let written = unsafe {
        if socket {
            let mut message: libc::msghdr = std::mem::zeroed();
            message.msg_iov = parts.as_mut_ptr();
            message.msg_iovlen = count as _;
            libc::sendmsg(fd.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT)
        } else {
            libc::pwritev2(fd.as_raw_fd(), parts.as_ptr(), count as libc::c_int, -1, libc::RWF_NOWAIT)
        }
    };
    if written >= 0 {
        return Some(Ok(()));
    }
    let error = io::Error::last_os_error();
    // A kernel whose TAP devices cannot be told not to wait.
    (error.raw_os_error() != Some(libc::EOPNOTSUPP)).then_some(Err(error))
}
