//! Sockets inside the networks, for the host's own services: tokio streams that carry the guest's (network, address,
//! port). No service opens a kernel socket inside a workload network.
//!
//! Each network has its own TCP/IP stack (`super::stack`) behind its internal port. A service names the network; the
//! same L4 port in two networks is two listeners. Networks come and go at run time: streams of one that goes away see
//! a reset, its listeners an error. Nothing here runs on a worker.

mod asked;

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use hostweave_switch::tables::Network;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::{tcp, udp};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout};

pub use self::asked::{Answer, Asked, QUESTIONS_MAX, Question};
use super::internal::{Doorbell, InternalPort, Wake};
pub use super::stack::Place;
use super::stack::{BRIEF_BUFFER_LEN, Door, End, HANDSHAKE_TIMEOUT, Listening, STREAM_BUFFER_LEN, Stack, Tuple};

/// TCP ports that services may listen on, of one network.
pub const LISTENERS_MAX: usize = 64;
/// UDP ports that services may bind, of one network.
pub const UDP_SOCKETS_MAX: usize = 64;
/// Datagrams that a UDP socket buffers in each direction.
pub const UDP_DATAGRAMS_MAX: usize = 64;
/// Octets of datagrams that a UDP socket buffers in each direction.
pub const UDP_BUFFER_LEN: usize = 64 * 1024;

/// Every network's sockets. Clones are the same thing.
#[derive(Clone)]
pub struct Sockets {
    networks: Arc<Mutex<HashMap<String, Arc<Shared>>>>,
    doorbell: Arc<Doorbell>,
    runtime: Handle,
}

/// One network: its stack, and the port that it lies behind.
struct Shared {
    name: Arc<str>,
    stack: Mutex<Stack>,
    port: Arc<InternalPort>,
}

/// The guest's end of a connection or datagram.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Peer {
    /// Name of the network.
    pub network: Arc<str>,
    /// Address in that network; `guard` has made sure that it is the sender's.
    pub address: IpAddr,
    /// L4 port.
    pub port: u16,
}

impl Sockets {
    /// No networks yet. To be called inside a tokio runtime, on which the stacks run from then on.
    ///
    /// # Errors
    /// When the kernel has no file descriptor left.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new() -> io::Result<Self> {
        let runtime = Handle::current();
        let (doorbell, receiver) = Doorbell::new()?;
        let doorbell = Arc::new(doorbell);
        let answer = Arc::clone(&doorbell).answer(receiver);
        runtime.spawn(async move {
            if let Err(error) = answer.await {
                tracing::error!(%error, "the host's own services no longer hear from guests");
            }
        });
        Ok(Self { networks: Arc::default(), doorbell, runtime })
    }

    /// Starts the stack of a network. `wake` is called when frames wait for the worker that owns the port; the port is
    /// the network's `internal`.
    pub fn add_network(&self, network: &Network, wake: Wake) -> Arc<InternalPort> {
        let port = Arc::new(InternalPort::new(network.internal, Arc::clone(&self.doorbell), wake));
        let stack = Mutex::new(Stack::new(network, Arc::clone(&port), random()));
        let shared = Arc::new(Shared { name: network.name.as_str().into(), stack, port: Arc::clone(&port) });
        let old = lock(&self.networks).insert(network.name.clone(), Arc::clone(&shared));
        if let Some(old) = old {
            old.close();
        }
        self.runtime.spawn(run(shared));
        port
    }

    /// Takes over changed addresses or MTU of a network.
    pub fn update_network(&self, network: &Network) {
        if let Ok(shared) = self.network(&network.name) {
            shared.stack().reconfigure(network, random());
            shared.port.nudge();
        }
    }

    /// Ends a network's stack, and every stream and listener in it.
    pub fn remove_network(&self, name: &str) {
        let shared = lock(&self.networks).remove(name);
        if let Some(shared) = shared {
            shared.close();
        }
    }

    /// Ends every TCP connection with an address of a network: it belongs to somebody else from now on, who must not see
    /// what was meant for the owner before.
    pub fn reset_peer(&self, network: &str, address: IpAddr) {
        if let Ok(shared) = self.network(network) {
            shared.stack().reset_peer(address);
            shared.port.nudge();
        }
    }

    /// Listens on a TCP port of the gateway's addresses of a network.
    ///
    /// # Errors
    /// `NotFound` without that network, `AddrInUse` when somebody listens there, `InvalidInput` for port 0,
    /// `QuotaExceeded` beyond [`LISTENERS_MAX`].
    pub fn listen(&self, network: &str, port: u16) -> io::Result<Listener> {
        self.listen_at(network, Place::Gateway, port)
    }

    /// As [`Sockets::listen`], at other addresses.
    ///
    /// # Errors
    /// Those of `listen`.
    pub fn listen_at(&self, network: &str, place: Place, port: u16) -> io::Result<Listener> {
        let shared = self.network(network)?;
        let door = Door { place, port };
        let mut stack = shared.stack();
        check_bind(port, stack.listeners.contains_key(&door), stack.listeners.len() >= LISTENERS_MAX)?;
        stack.listeners.insert(door, Listening::default());
        drop(stack);
        Ok(Listener { shared, door })
    }

    /// Connects to a guest, from an address of the gateway (chosen to fit when `None`).
    ///
    /// # Errors
    /// `NotFound` without that network, `AddrNotAvailable` when `from` is not the gateway's, `QuotaExceeded` beyond
    /// the limits of connections, `ConnectionRefused` and `TimedOut` as the guest answers or does not.
    pub async fn connect(&self, network: &str, from: Option<IpAddr>, to: SocketAddr) -> io::Result<Stream> {
        self.open(network, from, to, STREAM_BUFFER_LEN, End::Close).await
    }

    /// Connects to a guest for a short exchange: little is buffered, and dropping the stream resets the connection, so that nothing of
    /// it is left whatever the guest does.
    ///
    /// # Errors
    /// As [`Sockets::connect`].
    pub async fn connect_briefly(&self, network: &str, to: SocketAddr) -> io::Result<Stream> {
        self.open(network, None, to, BRIEF_BUFFER_LEN, End::Reset).await
    }

    async fn open(
        &self,
        network: &str,
        from: Option<IpAddr>,
        to: SocketAddr,
        buffer_len: usize,
        end: End,
    ) -> io::Result<Stream> {
        let shared = self.network(network)?;
        let stream = {
            let mut stack = shared.stack();
            let from = from.or_else(|| stack.source_for(to.ip())).filter(|from| stack.is_local(*from));
            let from = from.filter(|from| from.is_ipv4() == to.is_ipv4()).ok_or(io::ErrorKind::AddrNotAvailable)?;
            let (handle, tuple) = stack.connect(from, to, buffer_len).ok_or(io::ErrorKind::QuotaExceeded)?;
            Stream::new(&shared, handle, tuple, end)
        };
        shared.port.nudge();
        timeout(HANDSHAKE_TIMEOUT, poll_fn(|cx| stream.poll_connected(cx))).await??;
        Ok(stream)
    }

    /// Binds a UDP port on the gateway's addresses of a network.
    ///
    /// # Errors
    /// As [`Sockets::listen`], with [`UDP_SOCKETS_MAX`].
    pub fn udp_bind(&self, network: &str, port: u16) -> io::Result<UdpSocket> {
        let shared = self.network(network)?;
        let mut stack = shared.stack();
        check_bind(port, stack.udp_ports.contains_key(&port), stack.udp_ports.len() >= UDP_SOCKETS_MAX)?;
        let buffer =
            || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; UDP_DATAGRAMS_MAX], vec![0; UDP_BUFFER_LEN]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(port).map_err(|_| io::ErrorKind::InvalidInput)?;
        let handle = stack.sockets.add(socket);
        stack.udp_ports.insert(port, handle);
        drop(stack);
        Ok(UdpSocket { shared, handle, port })
    }

    fn network(&self, name: &str) -> io::Result<Arc<Shared>> {
        let shared = lock(&self.networks).get(name).map(Arc::clone);
        shared.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("there is no network {name:?}")))
    }
}

fn check_bind(port: u16, taken: bool, full: bool) -> io::Result<()> {
    match (port, taken, full) {
        (0, ..) => Err(io::ErrorKind::InvalidInput.into()),
        (_, true, _) => Err(io::ErrorKind::AddrInUse.into()),
        (_, _, true) => Err(io::ErrorKind::QuotaExceeded.into()),
        _ => Ok(()),
    }
}

/// Drives the stack of one network until it is closed and everything that was to be sent is.
async fn run(shared: Arc<Shared>) {
    let mut last_turns = 8;
    loop {
        let wait = {
            let mut stack = shared.stack();
            // A few more turns send the resets of a network that ends.
            if stack.closed {
                last_turns -= 1;
                if last_turns == 0 {
                    return;
                }
            }
            stack.drive(Instant::now())
        };
        let notified = shared.port.notify().notified();
        match wait {
            Some(wait) if wait.is_zero() => tokio::task::yield_now().await,
            Some(wait) => drop(timeout(wait, notified).await),
            None => notified.await,
        }
    }
}

impl Shared {
    fn stack(&self) -> MutexGuard<'_, Stack> {
        lock(&self.stack)
    }

    fn close(&self) {
        self.stack().close();
        self.port.nudge();
    }

    fn peer(&self, address: SocketAddr) -> Peer {
        Peer { network: Arc::clone(&self.name), address: address.ip(), port: address.port() }
    }
}

/// A TCP port that takes connections. Dropping it resets those that nobody accepted.
pub struct Listener {
    shared: Arc<Shared>,
    door: Door,
}

impl Listener {
    /// The next connection. Safe to cancel. One task at a time: the last one to ask is woken.
    ///
    /// # Errors
    /// `NotConnected` when the network is gone.
    pub async fn accept(&self) -> io::Result<(Stream, Peer)> {
        poll_fn(|cx| {
            let mut stack = self.shared.stack();
            if stack.closed {
                return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
            }
            match stack.accept(self.door, cx.waker()) {
                Some(Some((handle, tuple))) => {
                    let stream = Stream::new(&self.shared, handle, tuple, End::Close);
                    let peer = stream.peer();
                    Poll::Ready(Ok((stream, peer)))
                }
                Some(None) => Poll::Pending,
                None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
            }
        })
        .await
    }

    /// The TCP port.
    pub fn port(&self) -> u16 {
        self.door.port
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.shared.stack().stop_listening(self.door);
        self.shared.port.nudge();
    }
}

/// A TCP connection with a guest. Dropping it closes it in order, or resets it when octets were left unread.
pub struct Stream {
    shared: Arc<Shared>,
    handle: SocketHandle,
    tuple: Tuple,
    end: End,
}

impl Stream {
    fn new(shared: &Arc<Shared>, handle: SocketHandle, tuple: Tuple, end: End) -> Self {
        Self { shared: Arc::clone(shared), handle, tuple, end }
    }

    /// The guest's end.
    pub fn peer(&self) -> Peer {
        self.shared.peer(self.tuple.remote)
    }

    /// Our end.
    pub fn local_addr(&self) -> SocketAddr {
        self.tuple.local
    }

    fn with<R>(&self, with: impl FnOnce(&mut tcp::Socket<'static>) -> R) -> R {
        with(self.shared.stack().sockets.get_mut(self.handle))
    }

    fn poll_connected(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        self.with(|socket| match socket.state() {
            tcp::State::SynSent | tcp::State::SynReceived => {
                socket.register_recv_waker(cx.waker());
                Poll::Pending
            }
            tcp::State::Closed => Poll::Ready(Err(io::ErrorKind::ConnectionRefused.into())),
            _ => Poll::Ready(Ok(())),
        })
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let result = self.with(|socket| {
            if socket.can_recv() || !socket.may_recv() {
                return match socket.recv_slice(buffer.initialize_unfilled()) {
                    Ok(len) => {
                        buffer.advance(len);
                        Poll::Ready(Ok(()))
                    }
                    Err(tcp::RecvError::Finished) => Poll::Ready(Ok(())),
                    Err(tcp::RecvError::InvalidState) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                };
            }
            socket.register_recv_waker(cx.waker());
            Poll::Pending
        });
        if result.is_ready() {
            // The window may have opened.
            self.shared.port.nudge();
        }
        result
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let result = self.with(|socket| {
            if !socket.may_send() {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            if data.is_empty() || socket.can_send() {
                return Poll::Ready(socket.send_slice(data).map_err(|_| io::ErrorKind::BrokenPipe.into()));
            }
            socket.register_send_waker(cx.waker());
            Poll::Pending
        });
        if result.is_ready() {
            self.shared.port.nudge();
        }
        result
    }

    /// Nothing to do: what was written is on its way.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Ends our direction, after what was written before.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(tcp::Socket::close);
        self.shared.port.nudge();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.stack().release(self.handle, self.end);
        self.shared.port.nudge();
    }
}

/// A UDP port on the gateway's addresses.
pub struct UdpSocket {
    shared: Arc<Shared>,
    handle: SocketHandle,
    port: u16,
}

/// Where a datagram came from and which of our addresses it was sent to: the answer must come from there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Datagram {
    /// Octets of payload; more than fit the buffer were cut off.
    pub len: usize,
    /// The guest.
    pub peer: Peer,
    /// Our address.
    pub local: IpAddr,
}

impl UdpSocket {
    /// The next datagram. Safe to cancel. One task at a time: the last one to ask is woken.
    ///
    /// # Errors
    /// `NotConnected` when the network is gone.
    pub async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<Datagram> {
        poll_fn(|cx| {
            let mut stack = self.shared.stack();
            if stack.closed {
                return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
            }
            let socket = stack.sockets.get_mut::<udp::Socket<'_>>(self.handle);
            let Ok((data, metadata)) = socket.recv() else {
                socket.register_recv_waker(cx.waker());
                return Poll::Pending;
            };
            let len = data.len().min(buffer.len());
            buffer[..len].copy_from_slice(&data[..len]);
            let remote = SocketAddr::new(metadata.endpoint.addr.into(), metadata.endpoint.port);
            let local = metadata.local_address.map_or(remote.ip(), IpAddr::from);
            Poll::Ready(Ok(Datagram { len, peer: self.shared.peer(remote), local }))
        })
        .await
    }

    /// Sends a datagram, from one of our addresses (chosen to fit when `None`). Waits while the buffer is full; one task at
    /// a time.
    ///
    /// # Errors
    /// `InvalidInput` when it does not fit the network's MTU or `to` is no unicast address, `AddrNotAvailable` when
    /// `from` is not the gateway's, `NotConnected` when the network is gone.
    pub async fn send_to(&self, data: &[u8], from: Option<IpAddr>, to: SocketAddr) -> io::Result<()> {
        poll_fn(|cx| match self.try_send(data, from, to, Some(cx)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            sent => Poll::Ready(sent),
        })
        .await
    }

    /// As [`UdpSocket::send_to`], from any task, without waiting.
    ///
    /// # Errors
    /// `WouldBlock` when the buffer is full, and those of `send_to`.
    pub fn try_send_to(&self, data: &[u8], from: IpAddr, to: SocketAddr) -> io::Result<()> {
        self.try_send(data, Some(from), to, None)
    }

    fn try_send(
        &self,
        data: &[u8],
        from: Option<IpAddr>,
        to: SocketAddr,
        waiter: Option<&mut Context<'_>>,
    ) -> io::Result<()> {
        let mut stack = self.shared.stack();
        if stack.closed {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let from = from.or_else(|| stack.source_for(to.ip())).filter(|from| stack.is_local(*from));
        let from = from.filter(|from| from.is_ipv4() == to.is_ipv4()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        if data.len() > stack.datagram_len_max(to.ip()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut metadata = udp::UdpMetadata::from((to.ip(), to.port()));
        metadata.local_address = Some(from.into());
        let socket = stack.sockets.get_mut::<udp::Socket<'_>>(self.handle);
        let sent = match socket.send_slice(data, metadata) {
            Ok(()) => Ok(()),
            Err(udp::SendError::Unaddressable) => Err(io::ErrorKind::InvalidInput.into()),
            Err(udp::SendError::BufferFull) => {
                if let Some(waiter) = waiter {
                    socket.register_send_waker(waiter.waker());
                }
                Err(io::ErrorKind::WouldBlock.into())
            }
        };
        drop(stack);
        self.shared.port.nudge();
        sent
    }

    /// The UDP port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        let mut stack = self.shared.stack();
        stack.udp_ports.remove(&self.port);
        stack.sockets.remove(self.handle);
    }
}

/// A panic while one of these locks is held cannot leave what it guards half-written in a way that matters: every
/// table of the stack is checked on use.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From the kernel's generator, for sequence and port numbers.
fn random() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().1
}
