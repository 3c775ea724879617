//! One vhost-user socket: its thread, its queues, its state.
//!
//! The thread listens or connects, serves one connection at a time (the message layer blocks, so each port has its
//! own), and starts over when the other side goes: either end may die and return. It has a small stack and sleeps in
//! the kernel when there is nothing to do. Its state:
//!
//! ```text
//! waiting-for-frontend ──connect──► connected ──first pair runs──► running ──last pair stops──► connected
//!          ▲                            │ end of connection           │
//!          └────────────────────────────┴─────────────────────────────┤
//!          └──── after a second ──── faulted ◄── bad ring or message ─┘
//! ```

use std::cell::Cell;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vhost::vhost_user::{BackendReqHandler, Error as VhostError};

use crate::backend::Backend;
use crate::early;
use crate::fault::Fault;
use crate::queue::{FaultSink, QueuePair};
use crate::socket::{self, Listening, SocketError};
use crate::sys::{self, Peer};

/// Queue pairs of one attachment.
pub const QUEUE_PAIRS_MAX: usize = 16;
/// Stack of the protocol thread, in octets; most of it is never touched.
const STACK: usize = 256 * 1024;
/// Shortest and longest pause between two attempts to connect.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Pause after a fault, so that a guest that faults at once costs nothing.
const FAULT_PAUSE: Duration = Duration::from_secs(1);
/// How long [`Attachment::shutdown`] waits for the thread. A VMM can keep it in the kernel: closing a descriptor that
/// it was sent waits for an answer where that is a file of a FUSE server.
const JOIN_MAX: Duration = Duration::from_secs(5);
/// Messages that a VMM may send at once; a start with 32 rings takes 300, and each connection counts as one hundred.
const MESSAGES_BURST: u32 = 20_000;
/// Messages a second after that. Each may exchange memory mappings, interrupt workers, and become an event.
const MESSAGES_PER_S: u32 = 200;
const CONNECTION_COSTS: u32 = 100;

/// Which side listens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// We listen, the VMM connects.
    Listen,
    /// The VMM listens, we connect and reconnect.
    Connect,
}

/// What an attachment is to be.
#[derive(Clone, Debug)]
pub struct AttachmentConfig {
    /// Which side listens.
    pub mode: Mode,
    /// The socket.
    pub path: PathBuf,
    /// Queue pairs that the guest may use, 1 to [`QUEUE_PAIRS_MAX`].
    pub queue_pairs: usize,
    /// Group that may open the socket (mode 0660); the daemon's own when `None`.
    pub group: Option<u32>,
    /// Users whose VMMs are served; everybody whom the file's permissions let in when empty.
    pub allowed_uids: Vec<u32>,
    /// Octets of IP packet, for the configuration space.
    pub mtu: u16,
    /// The port's MAC, to offer the CONFIG protocol feature to VMMs that cannot do without (crosvm). QEMU and
    /// cloud-hypervisor hold the configuration space themselves, and QEMU warns when it is offered: then `None`.
    pub config_space: Option<[u8; 6]>,
    /// The port's name, for messages.
    pub name: String,
}

/// Why an attachment cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// See [`QUEUE_PAIRS_MAX`].
    #[error("{0} queue pairs were asked for; a port has 1 to {QUEUE_PAIRS_MAX}")]
    QueuePairs(usize),
    /// The socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// No descriptor or thread left.
    #[error("cannot start the thread of port {name}")]
    System {
        /// The port.
        name: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

/// Hears what happens to an attachment, on its thread, before the VMM gets its answer. Must not block for long.
pub trait Observer: Send + Sync {
    /// A VMM connected.
    fn connected(&self, peer: Peer);
    /// Both queues of a pair are started and enabled: poll it once, its driver may not kick again. Comes again when
    /// the kick descriptor of a running pair was exchanged.
    fn queue_started(&self, pair: usize);
    /// A pair is not both any more.
    fn queue_stopped(&self, pair: usize);
    /// The number of running pairs grew, or the first one runs.
    fn started(&self, features: u64, pairs: usize);
    /// No pair runs any more.
    fn stopped(&self);
    /// The connection is over; all queues were stopped before.
    fn disconnected(&self);
    /// The guest or its VMM broke the rules; `disconnected` follows.
    fn fault(&self, reason: &str);
}

/// Where an attachment stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum State {
    /// No VMM is connected.
    #[default]
    WaitingForFrontend,
    /// A VMM is connected, but no queue pair runs.
    Connected,
    /// At least one queue pair runs.
    Running,
    /// The guest or its VMM broke the rules; ends when a VMM connects again.
    Faulted,
}

/// What can be seen of an attachment.
#[derive(Clone, Default, Debug)]
pub struct Status {
    /// Where it stands.
    pub state: State,
    /// Why it faulted last; stays until queues run again.
    pub fault: Option<String>,
    /// Why nobody can connect at the moment (a refused user, a missing socket).
    pub waiting: Option<String>,
    /// The VMM.
    pub peer: Option<Peer>,
    /// Feature bits that the driver took.
    pub features: u64,
    /// Queue pairs that run.
    pub running_pairs: usize,
    /// Octets of guest memory that are mapped.
    pub memory: u64,
    /// Smallest page that memory is mapped with, in octets; zero without memory.
    pub page_size: u64,
    /// The socket.
    pub path: PathBuf,
}

impl Status {
    /// Whether all guest memory is on huge pages.
    pub fn huge_pages(&self) -> bool {
        self.page_size > sys::base_page_size()
    }
}

/// What the thread, the workers and the owner share.
pub(crate) struct Shared {
    config: AttachmentConfig,
    queues: Box<[QueuePair]>,
    active: Arc<AtomicBool>,
    observer: Arc<dyn Observer>,
    status: Mutex<Status>,
    link: Arc<Link>,
}

/// How anybody ends the connection: the thread blocks in it.
struct Link {
    stop: AtomicBool,
    /// Wakes the thread while it waits for a connection.
    wake: std::fs::File,
    connection: Mutex<Option<UnixStream>>,
    /// Set by whoever ends the connection for a reason.
    fault: Mutex<Option<String>>,
    /// The thread is over.
    ended: Mutex<bool>,
    ended_changed: Condvar,
}

/// Says that the thread is over, however it ends.
struct Ending(Arc<Link>);

impl Drop for Ending {
    fn drop(&mut self) {
        *lock(&self.0.ended) = true;
        self.0.ended_changed.notify_all();
    }
}

impl Link {
    fn break_with(&self, reason: &str) {
        lock(&self.fault).get_or_insert_with(|| reason.to_owned());
        self.hang_up(&lock(&self.connection));
    }

    fn hang_up(&self, connection: &Option<UnixStream>) {
        if let Some(connection) = connection {
            // Fails only when the other side is gone already.
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
    }
}

impl FaultSink for Link {
    /// From a worker: only tries the locks, and is asked again with the next burst.
    fn broken(&self, fault: Fault) -> bool {
        let (Ok(mut reason), Ok(connection)) = (self.fault.try_lock(), self.connection.try_lock()) else {
            return false;
        };
        reason.get_or_insert_with(|| fault.to_string());
        self.hang_up(&connection);
        true
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn new(config: AttachmentConfig, observer: Arc<dyn Observer>) -> io::Result<Arc<Self>> {
        let link = Arc::new(Link {
            stop: AtomicBool::new(false),
            wake: sys::eventfd()?,
            connection: Mutex::default(),
            fault: Mutex::default(),
            ended: Mutex::default(),
            ended_changed: Condvar::new(),
        });
        let active = Arc::new(AtomicBool::new(true));
        let sink: Arc<dyn FaultSink> = link.clone();
        let queues = (0..config.queue_pairs).map(|_| QueuePair::new(&active, &sink)).collect();
        let status = Mutex::new(Status { path: config.path.clone(), ..Status::default() });
        Ok(Arc::new(Self { config, queues, active, observer, status, link }))
    }

    pub(crate) fn queues(&self) -> &[QueuePair] {
        &self.queues
    }

    pub(crate) fn config(&self) -> &AttachmentConfig {
        &self.config
    }

    pub(crate) fn set_features(&self, features: u64) {
        lock(&self.status).features = features;
    }

    pub(crate) fn set_memory(&self, len: u64, page_size: u64) {
        let mut status = lock(&self.status);
        (status.memory, status.page_size) = (len, page_size);
    }

    /// A pair starts or stops to run; `count` do now.
    pub(crate) fn pair_changed(&self, pair: usize, runs: bool, count: usize) {
        let features = {
            let mut status = lock(&self.status);
            status.running_pairs = count;
            status.state = if count > 0 { State::Running } else { State::Connected };
            if runs {
                status.fault = None;
            }
            status.features
        };
        if runs {
            self.observer.queue_started(pair);
            self.observer.started(features, count);
        } else {
            self.observer.queue_stopped(pair);
            if count == 0 {
                self.observer.stopped();
            }
        }
    }

    /// A running pair has another kick descriptor.
    pub(crate) fn kick_changed(&self, pair: usize) {
        self.observer.queue_started(pair);
    }

    /// Whether a peer may be served.
    fn admits(&self, peer: Peer) -> bool {
        let allowed = &self.config.allowed_uids;
        allowed.is_empty() || allowed.contains(&peer.uid)
    }
}

/// One vhost-user socket of a port.
pub struct Attachment {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Attachment {
    /// Binds the socket (when listening) and starts the thread. The attachment is active.
    ///
    /// # Errors
    /// When the path is taken or too long, or the system has no descriptor or thread left.
    pub fn start(config: AttachmentConfig, observer: Arc<dyn Observer>) -> Result<Arc<Self>, Error> {
        if !(1..=QUEUE_PAIRS_MAX).contains(&config.queue_pairs) {
            return Err(Error::QueuePairs(config.queue_pairs));
        }
        let system = |source| Error::System { name: config.name.clone(), source };
        socket::check_path(&config.path)?;
        let listening = match config.mode {
            Mode::Listen => Some(Listening::bind(&config.path, config.group)?),
            Mode::Connect => None,
        };
        let thread_name: String = format!("vu-{}", config.name).chars().take(15).collect();
        let shared = Shared::new(config.clone(), observer).map_err(system)?;
        let service = Service { shared: shared.clone(), listening, pace: Pace::new() };
        let ending = Ending(shared.link.clone());
        let body = move || {
            let _ending = ending;
            service.run();
        };
        let thread = std::thread::Builder::new().name(thread_name).stack_size(STACK).spawn(body);
        let thread = thread.map_err(|source| Error::System { name: shared.config.name.clone(), source })?;
        Ok(Arc::new(Self { shared, thread: Mutex::new(Some(thread)) }))
    }

    /// All queue pairs, running or not. Their number never changes.
    pub fn queues(&self) -> &[QueuePair] {
        &self.shared.queues
    }

    /// What can be seen of it now.
    pub fn status(&self) -> Status {
        lock(&self.shared.status).clone()
    }

    /// What it was started with.
    pub fn config(&self) -> &AttachmentConfig {
        &self.shared.config
    }

    /// Lets workers at the queues, or keeps them off: of two attachments of a port, one is active. When this returns
    /// with `false`, no worker touches a queue of this attachment any more.
    pub fn activate(&self, active: bool) {
        self.shared.active.store(active, Ordering::Release);
        if !active {
            for pair in &self.shared.queues {
                drop(pair.from_guest.0.control());
                drop(pair.to_guest.0.control());
            }
        }
    }

    /// Bit per queue pair of which both queues are started, active or not.
    pub fn started_pairs(&self) -> u64 {
        let started = |pair: &QueuePair| pair.from_guest.0.is_started() && pair.to_guest.0.is_started();
        let pairs = self.shared.queues.iter().enumerate().filter(|(_, pair)| started(pair));
        pairs.fold(0, |bits, (index, _)| bits | 1 << index)
    }

    /// Whether the guest itself tells its neighbours where it is after a migration (`VIRTIO_NET_F_GUEST_ANNOUNCE`; its
    /// VMM asks it to). If not, the caller should announce its addresses.
    pub fn announce(&self) -> bool {
        lock(&self.shared.status).features & crate::features::GUEST_ANNOUNCE != 0
    }

    /// Ends the connection because of what the guest did; the state is *faulted* until a VMM connects again. A ring
    /// that breaks under a worker does this by itself.
    pub fn fault(&self, reason: &str) {
        self.shared.link.break_with(reason);
    }

    /// Ends the connection and the thread, and removes the socket. Not on the thread itself. When this returns, no ring
    /// is touched any more. A thread that a VMM keeps in the kernel is left behind after a few seconds.
    pub fn shutdown(&self) {
        let link = &self.shared.link;
        link.stop.store(true, Ordering::SeqCst);
        sys::signal(&link.wake);
        link.hang_up(&lock(&link.connection));
        let Some(thread) = lock(&self.thread).take() else { return };
        let wait = link.ended_changed.wait_timeout_while(lock(&link.ended), JOIN_MAX, |ended| !*ended);
        let ended = *wait.unwrap_or_else(PoisonError::into_inner).0;
        if ended {
            // The thread catches its own panics.
            let _ = thread.join();
            return;
        }
        tracing::error!(
            port = self.shared.config.name,
            "the VMM keeps the port's thread in the kernel; it is left behind"
        );
        // It would have stopped the rings. It holds none of them while it waits.
        self.activate(false);
        for pair in &self.shared.queues {
            pair.from_guest.0.control().stop();
            pair.to_guest.0.control().stop();
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// Serves one connection to its end on the calling thread, for fuzzing. `started` gets the queues first. A panic goes
/// through.
pub(crate) fn serve_here(
    stream: UnixStream,
    config: AttachmentConfig,
    observer: Arc<dyn Observer>,
    started: impl FnOnce(Arc<Shared>),
) -> io::Result<Option<String>> {
    let shared = Shared::new(config, observer)?;
    let service = Service { shared: shared.clone(), listening: None, pace: Pace::new() };
    *lock(&shared.link.connection) = Some(stream.try_clone()?);
    started(shared.clone());
    let backend = Arc::new(Mutex::new(Backend::new(shared.clone())));
    let refused = service.messages(stream, &backend);
    lock(&shared.link.connection).take();
    lock(&backend).close();
    let fault = lock(&shared.link.fault).take();
    Ok(fault.or(refused))
}

/// The thread.
struct Service {
    shared: Arc<Shared>,
    listening: Option<Listening>,
    pace: Pace,
}

/// How much a VMM may still say.
struct Pace(Cell<(u32, Instant)>);

impl Pace {
    fn new() -> Self {
        Self(Cell::new((MESSAGES_BURST, Instant::now())))
    }

    /// Takes what so many messages cost. How long to wait for it, if it is not there.
    fn take(&self, count: u32, now: Instant) -> Option<Duration> {
        let (left, since) = self.0.get();
        let gained = now.saturating_duration_since(since).as_millis() * u128::from(MESSAGES_PER_S) / 1_000;
        let left = left.saturating_add(u32::try_from(gained).unwrap_or(u32::MAX)).min(MESSAGES_BURST);
        let since = if gained > 0 { now } else { since };
        self.0.set((left.saturating_sub(count), since));
        (left < count).then(|| Duration::from_secs(1) * (count - left) / MESSAGES_PER_S)
    }
}

impl Service {
    fn run(self) {
        let mut pause = RETRY.0;
        while !self.stopping() {
            match self.next_connection() {
                Ok(Some(connection)) => {
                    pause = RETRY.0;
                    if self.serve(connection) {
                        self.sleep(FAULT_PAUSE);
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    self.set_waiting(Some(error));
                    self.sleep(pause);
                    pause = (pause * 2).min(RETRY.1);
                }
            }
        }
    }

    fn stopping(&self) -> bool {
        self.shared.link.stop.load(Ordering::SeqCst)
    }

    /// Sleeps unless the attachment is shut down.
    fn sleep(&self, time: Duration) {
        if !self.stopping() {
            let _ = sys::wait_readable([Some(self.shared.link.wake.as_fd()), None], Some(time));
        }
    }

    /// Keeps a VMM that talks without end from costing others anything: its own thread waits.
    fn pay(&self, messages: u32) {
        if let Some(wait) = self.pace.take(messages, Instant::now()) {
            self.sleep(wait);
        }
    }

    fn set_waiting(&self, reason: Option<String>) {
        lock(&self.shared.status).waiting = reason;
    }

    /// Waits for a VMM that may be served, or for the end (`None`).
    fn next_connection(&self) -> Result<Option<(UnixStream, Peer)>, String> {
        let path = &self.shared.config.path;
        let stream = match &self.listening {
            Some(listening) => self.accept(listening.listener()).map_err(|error| format!("accept: {error}"))?,
            None => Some(sys::connect(path).map_err(|error| format!("cannot connect to {}: {error}", path.display()))?),
        };
        let Some(stream) = stream else { return Ok(None) };
        let peer = sys::peer(&stream).map_err(|error| format!("SO_PEERCRED: {error}"))?;
        if !self.shared.admits(peer) {
            return Err(format!(
                "user {} is not among the port's allowed users; process {} was refused",
                peer.uid, peer.pid
            ));
        }
        Ok(Some((stream, peer)))
    }

    fn accept(&self, listener: &UnixListener) -> io::Result<Option<UnixStream>> {
        let fds = [Some(self.shared.link.wake.as_fd()), Some(listener.as_fd())];
        match sys::wait_readable(fds, None)? {
            [true, _] => Ok(None),
            [_, true] => match listener.accept() {
                Ok((stream, _)) => stream.set_nonblocking(false).map(|()| Some(stream)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                Err(error) => Err(error),
            },
            _ => Ok(None),
        }
    }

    /// Serves one connection to its end. True when it ended with a fault.
    fn serve(&self, (stream, peer): (UnixStream, Peer)) -> bool {
        let shared = &self.shared;
        lock(&shared.link.fault).take();
        match stream.try_clone() {
            Ok(clone) => *lock(&shared.link.connection) = Some(clone),
            Err(error) => {
                self.set_waiting(Some(format!("cannot keep the connection: {error}")));
                return true;
            }
        }
        if self.stopping() {
            // Whoever wants an end may have looked before there was a connection to end.
            lock(&shared.link.connection).take();
            return false;
        }
        self.pay(CONNECTION_COSTS);
        {
            let mut status = lock(&shared.status);
            let fault = status.fault.take();
            *status = Status {
                state: State::Connected,
                fault,
                peer: Some(peer),
                path: status.path.clone(),
                ..Status::default()
            };
        }
        let backend = Arc::new(Mutex::new(Backend::new(shared.clone())));
        let ended = std::panic::catch_unwind(AssertUnwindSafe(|| {
            shared.observer.connected(peer);
            self.messages(stream, &backend)
        }));
        lock(&shared.link.connection).take();
        lock(&backend).close();
        let refused = ended.unwrap_or_else(|_| Some("an internal error of the vhost-user thread".to_owned()));
        let fault = lock(&shared.link.fault).take().or(refused);
        if let Some(reason) = &fault {
            tracing::warn!(port = shared.config.name, reason, "vhost-user connection closed");
            shared.observer.fault(reason);
        }
        {
            let mut status = lock(&shared.status);
            let state = if fault.is_some() { State::Faulted } else { State::WaitingForFrontend };
            let kept = fault.clone().or_else(|| status.fault.take());
            *status = Status { state, fault: kept, path: status.path.clone(), ..Status::default() };
        }
        shared.observer.disconnected();
        fault.is_some()
    }

    /// Handles messages until the connection ends; says why if the other side broke the rules.
    fn messages(&self, stream: UnixStream, backend: &Arc<Mutex<Backend>>) -> Option<String> {
        let early = match stream.try_clone() {
            Ok(early) => early,
            Err(error) => return Some(format!("the daemon has no descriptor left for the connection: {error}")),
        };
        let mut handler = BackendReqHandler::from_stream(stream, backend.clone());
        loop {
            self.pay(1);
            let before_features = lock(backend).is_before_features();
            let result = if before_features && early::is_next(&early) {
                early::handle(&early, &mut lock(backend))
            } else {
                handler.handle_request()
            };
            match result {
                Ok(()) => {}
                Err(VhostError::SocketRetry(_)) => {}
                _ if self.stopping() => return None,
                Err(VhostError::Disconnected | VhostError::SocketBroken(_) | VhostError::PartialMessage) => {
                    return None;
                }
                Err(VhostError::ReqHandlerError(error)) => return Some(error.to_string()),
                Err(error) => {
                    return Some(format!(
                        "the VMM sent a vhost-user message that is malformed or not allowed here: {error}"
                    ));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_talks_without_end_waits() {
        let (pace, start) = (Pace::new(), Instant::now());
        assert!((0..MESSAGES_BURST).all(|_| pace.take(1, start).is_none()));
        assert_eq!(pace.take(1, start), Some(Duration::from_millis(5)));
        assert_eq!(pace.take(CONNECTION_COSTS, start), Some(Duration::from_millis(500)));
        let later = start + Duration::from_secs(2);
        assert!((0..2 * MESSAGES_PER_S - 1).all(|_| pace.take(1, later).is_none()));
        assert!(pace.take(2, later).is_some());
        assert!(pace.take(MESSAGES_BURST, later + Duration::from_secs(3600)).is_none());
    }
}
