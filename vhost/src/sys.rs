//! The few system calls that have no safe form in the standard library: waiting on two descriptors, who is at the
//! other end of a socket, page size of a memory file.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Who is at the other end of a UNIX socket (`SO_PEERCRED`), as of its `connect` or `listen`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Its process.
    pub pid: i32,
    /// Its effective user.
    pub uid: u32,
}

/// Reads `SO_PEERCRED`.
///
/// # Errors
/// What `getsockopt` says.
pub fn peer(socket: &UnixStream) -> io::Result<Peer> {
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `credentials` and `len` are valid for writes of the sizes given. JUSTIFICATION: no safe wrapper in std.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut len,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Peer { pid: credentials.pid, uid: credentials.uid })
}

/// Connects without waiting for a listener that does not accept, then blocks like any stream.
///
/// # Errors
/// What the system says; `WouldBlock` when the listener's queue is full.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    // SAFETY: all-zero is a valid `sockaddr_un`. JUSTIFICATION: C structure.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let octets = path.as_os_str().as_bytes();
    if octets.len() >= address.sun_path.len() {
        return Err(io::Error::from(io::ErrorKind::InvalidFilename));
    }
    for (to, from) in address.sun_path.iter_mut().zip(octets) {
        *to = *from as libc::c_char;
    }
    // SAFETY: plain integers. JUSTIFICATION: std only connects blocking.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and ours. JUSTIFICATION: as above.
    let stream: UnixStream = unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) };
    let len = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: `address` is valid for `len` octets and its path ends with a zero. JUSTIFICATION: as above.
    if unsafe { libc::connect(fd, (&raw const address).cast(), len) } < 0 {
        return Err(io::Error::last_os_error());
    }
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Looks at what arrives next without taking it. Blocks until there is something; returns how many octets, zero at
/// the end.
///
/// # Errors
/// What `recv` says, but never `EINTR`.
pub fn peek(socket: &UnixStream, into: &mut [u8]) -> io::Result<usize> {
    loop {
        // SAFETY: `into` is ours and as long as said. JUSTIFICATION: `UnixStream::peek` is not stable.
        let count = unsafe { libc::recv(socket.as_raw_fd(), into.as_mut_ptr().cast(), into.len(), libc::MSG_PEEK) };
        if let Ok(count) = usize::try_from(count) {
            return Ok(count);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Waits until one of two descriptors is readable (or hung up), or `timeout` is over. Says which.
///
/// # Errors
/// What `poll` says, but never `EINTR`.
pub fn wait_readable(fds: [Option<BorrowedFd<'_>>; 2], timeout: Option<Duration>) -> io::Result<[bool; 2]> {
    let mut polls =
        fds.map(|fd| libc::pollfd { fd: fd.map_or(-1, |fd| fd.as_raw_fd()), events: libc::POLLIN, revents: 0 });
    let millis = timeout.map_or(-1, |timeout| i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX));
    loop {
        // SAFETY: the array is valid for its length during the call. JUSTIFICATION: no safe wrapper in std.
        let result = unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, millis) };
        if result >= 0 {
            return Ok(polls.map(|poll| poll.revents != 0));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Sets `O_NONBLOCK`.
///
/// # Errors
/// What `fcntl` says.
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: plain integers. JUSTIFICATION: no safe wrapper in std.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    // SAFETY: plain integers. JUSTIFICATION: no safe wrapper in std.
    if flags < 0 || unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A new eventfd, not blocking, closed on exec.
///
/// # Errors
/// What `eventfd` says.
pub fn eventfd() -> io::Result<File> {
    // SAFETY: plain integers. JUSTIFICATION: no safe wrapper in std.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and ours. JUSTIFICATION: as above.
    Ok(unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) })
}

/// A new memory file of `len` octets, for tests and fuzzing.
///
/// # Errors
/// What `memfd_create` and `ftruncate` say.
pub fn memory_file(len: u64) -> io::Result<File> {
    // SAFETY: a constant name. JUSTIFICATION: no safe wrapper in std.
    let fd = unsafe { libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and ours. JUSTIFICATION: as above.
    let file: File = unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) };
    file.set_len(len)?;
    Ok(file)
}

/// Adds one to an eventfd. A full counter already means a signal, so nothing can go wrong that matters.
pub fn signal(fd: impl AsFd) {
    let one = 1u64;
    // SAFETY: eight octets of ours. JUSTIFICATION: no safe write on a borrowed descriptor in std.
    unsafe { libc::write(fd.as_fd().as_raw_fd(), (&raw const one).cast(), size_of::<u64>()) };
}

/// The page size with which a memory file is mapped: that of its hugetlbfs, or the system's for one of tmpfs (memfd,
/// `/dev/shm`). `None` for every other file, whose pages may have to be waited for: a worker that touches one would
/// sleep until the disk, or whoever pretends to be one, answers.
///
/// # Errors
/// What `fstatfs` says.
pub fn memory_page(file: &File) -> io::Result<Option<u64>> {
    /// `HUGETLBFS_MAGIC` of `linux/magic.h`.
    const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;
    /// `TMPFS_MAGIC` of `linux/magic.h`.
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    // SAFETY: all-zero is a valid `statfs`. JUSTIFICATION: C structure, filled by the kernel.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `stat` is valid for writes. JUSTIFICATION: no safe wrapper in std.
    if unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut stat) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(match stat.f_type as i64 {
        HUGETLBFS_MAGIC => Some(stat.f_bsize as u64),
        TMPFS_MAGIC => Some(base_page_size()),
        _ => None,
    })
}

/// The system's page size.
pub fn base_page_size() -> u64 {
    // SAFETY: a plain integer. JUSTIFICATION: no safe wrapper in std.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn waiting_says_which_one_is_readable() {
        let (mut a, b) = (eventfd().unwrap(), eventfd().unwrap());
        let fds = [Some(a.as_fd()), Some(b.as_fd())];
        assert_eq!(wait_readable(fds, Some(Duration::ZERO)).unwrap(), [false, false]);
        a.write_all(&1u64.to_ne_bytes()).unwrap();
        assert_eq!(wait_readable([Some(a.as_fd()), Some(b.as_fd())], None).unwrap(), [true, false]);
    }

    #[test]
    fn connecting_does_not_wait_for_a_listener_that_is_asleep() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        assert_eq!(connect(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mut kept = vec![];
        let full = loop {
            match connect(&path) {
                Ok(stream) => kept.push(stream),
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        drop(listener);
    }

    #[test]
    fn peer_of_a_pair_is_this_process() {
        let (a, _b) = UnixStream::pair().unwrap();
        assert_eq!(peer(&a).unwrap().pid, std::process::id() as i32);
    }
}
