//! TAP devices in network namespaces: making them, taking them over, removing them.
//!
//! # Theory of operation
//!
//! Devices are persistent (`TUNSETPERSIST`): when the daemon ends, however it ends, a container keeps its device with
//! its addresses, routes and connections, and the next daemon takes it over by name.
//!
//! The daemon's own threads never enter a namespace. [`open_tap`] starts `hostweave attach-netns` with one end of a
//! socket pair as its standard input; the helper ([`run_helper`]) enters the namespace, sets the device up and sends
//! its file descriptor back, or a sentence.
//!
//! A TAP file descriptor keeps the namespace it was opened in alive, even after its last process ended and its name was
//! removed. Whoever holds one must look at [`Namespace::is_current`] from time to time and let go.

use std::fs::File;
use std::io::{self, IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hostweave_switch::MacAddr;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::Error;
use crate::limits::DEVICE_NAME_MAX;
use crate::sys;

/// How long the helper may take.
const HELPER_LIMIT: Duration = Duration::from_secs(5);

/// How long a device may be busy: after a daemon was killed the kernel takes a moment to close its `io_uring`.
pub(crate) const BUSY_LIMIT: Duration = Duration::from_secs(2);

/// Interruptions of one call that are put up with.
const INTERRUPTIONS_MAX: usize = 1_000;

/// Octets of a sentence that the helper may send.
const SENTENCE_MAX: u64 = 4_096;

const OPENED: u8 = b'+';
const REFUSED: u8 = b'-';
const DELETED: u8 = b'.';

/// Which device is wanted, and how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TapRequest {
    /// Name of the device, 1 to 15 octets.
    pub name: String,
    /// Network namespace file; `None` is the daemon's own.
    pub netns: Option<PathBuf>,
    /// MAC address of the device, which is the container's.
    pub mac: MacAddr,
    /// MTU in octets of IP packet.
    pub mtu: u16,
}

/// A device that is ready for [`crate::device::Device::tap`].
#[derive(Debug)]
pub struct TapDevice {
    /// The device.
    pub fd: OwnedFd,
    /// Its name.
    pub name: String,
    /// Where it is; `None` in the daemon's own namespace.
    pub namespace: Option<Namespace>,
}

/// A network namespace that was entered by name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Namespace {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Namespace {
    fn of(path: &Path) -> Result<Self, Error> {
        let metadata = std::fs::metadata(path).map_err(|error| namespace_error(path, &error))?;
        Ok(Self { path: path.to_owned(), device: metadata.dev(), inode: metadata.ino() })
    }

    /// Whether the path still names the namespace that was entered: `false` after it was deleted, or deleted and made
    /// again.
    pub fn is_current(&self) -> bool {
        Self::of(&self.path).is_ok_and(|now| now == *self)
    }
}

/// Makes the device, or takes over the one that an earlier daemon left. Blocks for up to 5 s: not for workers.
/// `helper` is the executable that knows `attach-netns`.
///
/// # Errors
/// Bad names, missing namespaces or capabilities, a device that another process uses, or that is no TAP device.
pub fn open_tap(helper: &Path, request: &TapRequest) -> Result<TapDevice, Error> {
    check_name(&request.name)?;
    let (fd, namespace) = match &request.netns {
        None => (attach(request)?, None),
        Some(path) => {
            let namespace = Namespace::of(path)?;
            let fd = ask_helper(helper, request, path, false)?.ok_or_else(|| silent(request))?;
            (fd, Some(namespace))
        }
    };
    Ok(TapDevice { fd, name: request.name.clone(), namespace })
}

/// Has the device go with its last file descriptor, however this process ends: for one whose other side is the host
/// itself, which has nothing to keep.
///
/// # Errors
/// When the kernel refuses.
pub fn make_transient(device: &TapDevice) -> Result<(), Error> {
    let failed = |error| device_error(&device.name, "make it go with the daemon", error);
    sys::tun_set_persistent(device.fd.as_fd(), false).map_err(failed)
}

/// Removes the device. Nothing happens when it, or its namespace, does not exist. Whoever uses it must have let go.
/// Blocks for up to 5 s.
///
/// # Errors
/// As [`open_tap`].
pub fn delete_tap(helper: &Path, request: &TapRequest) -> Result<(), Error> {
    check_name(&request.name)?;
    match &request.netns {
        None => delete(request),
        Some(path) if !path.exists() => Ok(()),
        Some(path) => ask_helper(helper, request, path, true).map(drop),
    }
}

/// The helper process: enters the namespace of `request` and answers on `socket`, its standard input. The process must
/// end afterwards.
///
/// # Errors
/// When the answer cannot be sent. What goes wrong before is the answer.
pub fn run_helper(request: &TapRequest, delete_device: bool, socket: BorrowedFd<'_>) -> io::Result<()> {
    let entered = check_name(&request.name).and_then(|()| request.netns.as_deref().map_or(Ok(()), enter));
    let done = entered.and_then(|()| match delete_device {
        true => delete(request).map(|()| None),
        false => attach(request).map(Some),
    });
    match done {
        Ok(Some(device)) => send(socket, &[OPENED], Some(device.as_fd())),
        Ok(None) => send(socket, &[DELETED], None),
        Err(error) => {
            let mut answer = vec![REFUSED];
            answer.extend_from_slice(sentence(&error).as_bytes());
            answer.truncate(SENTENCE_MAX as usize);
            send(socket, &answer, None)
        }
    }
}

fn enter(path: &Path) -> Result<(), Error> {
    let file = File::open(path).map_err(|error| namespace_error(path, &error))?;
    setns(&file, CloneFlags::CLONE_NEWNET).map_err(|errno| match errno {
        nix::Error::EINVAL => {
            Error::Namespace { path: path.to_owned(), reason: "is not a network namespace".to_owned() }
        }
        errno => namespace_error(path, &io::Error::from(errno)),
    })
}

fn send(socket: BorrowedFd<'_>, answer: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let fds = fd.map(|fd| [fd.as_raw_fd()]);
    let control: Vec<_> = fds.iter().map(|fds| ControlMessage::ScmRights(fds)).collect();
    let octets = [IoSlice::new(answer)];
    let send = || Ok(sendmsg::<()>(socket.as_raw_fd(), &octets, &control, MsgFlags::MSG_NOSIGNAL, None)?);
    let sent = patiently(send)?;
    if sent == answer.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Starts the helper and waits for its answer.
fn ask_helper(helper: &Path, request: &TapRequest, netns: &Path, delete: bool) -> Result<Option<OwnedFd>, Error> {
    let not_started = |source| Error::Helper { program: helper.to_owned(), source };
    let (ours, theirs) = UnixStream::pair().map_err(not_started)?;
    ours.set_read_timeout(Some(HELPER_LIMIT)).map_err(not_started)?;
    let mut command = Command::new(helper);
    command.arg("attach-netns").arg("--netns").arg(netns).args(["--name", &request.name]);
    command.args(["--mac", &request.mac.to_string(), "--mtu", &request.mtu.to_string()]);
    if delete {
        command.arg("--delete");
    }
    command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(not_started)?;
    // The command holds the other end of the pair: without it, the end of the helper ends the stream.
    drop(command);
    let answer = receive_answer(ours, request);
    if matches!(answer, Err(Error::HelperTimeout { .. })) {
        let _ = child.kill();
    }
    reap(&mut child);
    answer
}

/// Repeats a call that was interrupted: a signal, or the kernel taking down an `io_uring` that the thread had, may
/// interrupt any call with a time limit.
fn patiently<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..INTERRUPTIONS_MAX {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

fn receive_answer(mut socket: UnixStream, request: &TapRequest) -> Result<Option<OwnedFd>, Error> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            Error::HelperTimeout { name: request.name.clone(), limit: HELPER_LIMIT }
        }
        _ => silent(request),
    };
    let (kind, fd) = patiently(|| sys::receive_octet(socket.as_fd())).map_err(failed)?;
    match kind {
        Some(OPENED) => fd.map(Some).ok_or_else(|| silent(request)),
        Some(DELETED) => Ok(None),
        Some(REFUSED) => {
            let mut sentence = Vec::new();
            socket.by_ref().take(SENTENCE_MAX).read_to_end(&mut sentence).map_err(failed)?;
            Err(Error::Reported(String::from_utf8_lossy(&sentence).into_owned()))
        }
        _ => Err(silent(request)),
    }
}

/// Waits for a child that has answered, or was killed; it has nothing left to do.
fn reap(child: &mut Child) {
    let started = Instant::now();
    while started.elapsed() < HELPER_LIMIT {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// Makes or takes over the device, in the namespace of the calling thread.
pub(crate) fn attach(request: &TapRequest) -> Result<OwnedFd, Error> {
    let device = own(&request.name)?;
    set_up(device.as_fd(), request)?;
    Ok(device)
}

/// Sets a device that was made or taken over up as it is wanted, and has it stay.
pub(crate) fn set_up(device: BorrowedFd<'_>, request: &TapRequest) -> Result<(), Error> {
    let name = request.name.as_str();
    let failed = |action: &'static str| move |error| device_error(name, action, error);
    // Interface requests work on any socket; this family exists everywhere.
    let socket = UnixDatagram::unbound().map_err(failed("open a socket"))?;
    let socket = socket.as_fd();
    let mac = request.mac.0;
    if sys::interface_mac(socket, name).map_err(failed("read its MAC address"))? != mac {
        sys::set_interface_mac(socket, name, mac).map_err(failed("set its MAC address"))?;
    }
    if sys::interface_mtu(socket, name).map_err(failed("read its MTU"))? != i32::from(request.mtu) {
        sys::set_interface_mtu(socket, name, request.mtu).map_err(failed("set its MTU"))?;
    }
    sys::set_interface_up(socket, name).map_err(failed("set it up"))?;
    // Last: a device that could not be set up does not stay.
    sys::tun_set_persistent(device, true).map_err(failed("make it persistent"))
}

/// Removes the device from the namespace of the calling thread.
fn delete(request: &TapRequest) -> Result<(), Error> {
    // One that does not exist is made by this, and goes with the file descriptor.
    let device = own(&request.name)?;
    sys::tun_set_persistent(device.as_fd(), false).map_err(|error| device_error(&request.name, "make it go", error))
}

/// Becomes the owner of the device, which is made if it does not exist.
fn own(name: &str) -> Result<OwnedFd, Error> {
    let tun = open_tun(name)?;
    let started = Instant::now();
    loop {
        match sys::tun_attach(tun.as_fd(), name, sys::Queues::One) {
            Ok(()) => return Ok(tun),
            Err(error) => match error.raw_os_error() {
                Some(libc::EBUSY) if started.elapsed() < BUSY_LIMIT => std::thread::sleep(Duration::from_millis(10)),
                Some(libc::EBUSY) => return Err(Error::Busy(name.to_owned())),
                Some(libc::EINVAL) => return Err(Error::NotTap(name.to_owned())),
                _ => return Err(device_error(name, "attach to it", error)),
            },
        }
    }
}

/// A file descriptor that a device can be made or taken over with. It belongs to the namespace of the calling thread.
pub(crate) fn open_tun(name: &str) -> Result<OwnedFd, Error> {
    let opened = File::options().read(true).write(true).open("/dev/net/tun");
    opened.map(OwnedFd::from).map_err(|error| device_error(name, "open /dev/net/tun", error))
}

/// Names that the kernel takes, without the patterns (`tap%d`) that it would replace.
pub(crate) fn check_name(name: &str) -> Result<(), Error> {
    let legal = |octet: u8| octet.is_ascii_graphic() && !matches!(octet, b'/' | b':' | b'%');
    let bad = name.is_empty() || name.len() > DEVICE_NAME_MAX || matches!(name, "." | "..");
    if bad || !name.bytes().all(legal) {
        return Err(Error::DeviceName(name.to_owned()));
    }
    Ok(())
}

fn silent(request: &TapRequest) -> Error {
    Error::HelperSilent(request.name.clone())
}

fn namespace_error(path: &Path, error: &io::Error) -> Error {
    let reason = match error.kind() {
        io::ErrorKind::NotFound => "does not exist".to_owned(),
        io::ErrorKind::PermissionDenied => "no permission to enter it; the daemon needs CAP_SYS_ADMIN".to_owned(),
        _ => error.to_string(),
    };
    Error::Namespace { path: path.to_owned(), reason }
}

pub(crate) fn device_error(name: &str, action: &str, source: io::Error) -> Error {
    let (name, action) = (name.to_owned(), action.to_owned());
    match source.kind() {
        io::ErrorKind::PermissionDenied => Error::Permission { name, action },
        _ => Error::Device { name, action, source },
    }
}

/// An error with its causes, in one line.
fn sentence(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_kernel_takes() {
        for name in ["eth0", "a", "tap-web.1", "exactly15octets"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", ".", "..", "a/b", "a:b", "a b", "tap%d", "sixteen-octets-x", "tab\t", "nul\0", "\u{e9}th0"] {
            assert!(matches!(check_name(name), Err(Error::DeviceName(_))), "{name}");
        }
    }

    #[test]
    fn answers_of_a_helper() {
        let request = TapRequest { name: "eth0".to_owned(), netns: None, mac: MacAddr::default(), mtu: 1500 };
        let answer = |octets: &[u8], fd: Option<BorrowedFd<'_>>| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            if !octets.is_empty() {
                send(theirs.as_fd(), octets, fd).unwrap();
            }
            drop(theirs);
            receive_answer(ours, &request)
        };
        let file = File::open("/dev/null").unwrap();
        assert!(answer(&[OPENED], Some(file.as_fd())).unwrap().is_some());
        assert!(answer(&[DELETED], None).unwrap().is_none());
        assert!(matches!(answer(b"-what went wrong", None), Err(Error::Reported(text)) if text == "what went wrong"));
        for nonsense in [&[][..], &[OPENED], b"?"] {
            assert!(matches!(answer(nonsense, None), Err(Error::HelperSilent(_))));
        }
    }

    #[test]
    fn a_helper_that_says_nothing_is_not_waited_for() {
        let request = TapRequest { name: "eth0".to_owned(), netns: None, mac: MacAddr::default(), mtu: 1500 };
        let (ours, _theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert!(matches!(receive_answer(ours, &request), Err(Error::HelperTimeout { .. })));
    }
}
