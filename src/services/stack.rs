//! One network's TCP/IP stack: smoltcp behind the internal port, and the table of who listens and who is connected.
//!
//! # Theory of operation
//!
//! A task per network calls [`Stack::drive`] when frames arrived, when a stream has something to send, or when a timer
//! of TCP is due. Before a SYN is shown to smoltcp, a socket for it is made if somebody listens and the limits allow
//! (smoltcp has no backlog: a socket in LISTEN takes one connection). A SYN beyond a limit is dropped, not reset, so
//! that the guest tries again. When the handshake is over the connection waits in the listener's queue.
//!
//! Limits are per network, per listener and per guest address, so that one guest cannot use up what others need.

mod device;
pub mod question;

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use hostweave_switch::tables::{METADATA_V4, METADATA_V6, Network, ROUTER_LINK_LOCAL};
use smoltcp::iface::{Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{self, State};
use smoltcp::time::{Duration as StackDuration, Instant as StackInstant};
use smoltcp::wire::{HardwareAddress, IpCidr, IpProtocol, IpVersion, Ipv4Packet, Ipv6Packet, TcpPacket};
use tokio::time::Instant;

use self::device::StackDevice;
use self::question::{Heard, Questions};
use super::internal::{InternalPort, STACK_MTU_MAX};

/// TCP connections of one network, in every state.
pub const CONNECTIONS_MAX: usize = 512;
/// TCP connections of one guest address.
pub const CONNECTIONS_PER_PEER_MAX: usize = 128;
/// Connections of one listener that are being opened or wait for `accept`.
pub const BACKLOG_MAX: usize = 128;
/// Octets that a connection buffers in each direction.
pub const STREAM_BUFFER_LEN: usize = 32 * 1024;
/// The same of one that is opened for a short exchange.
pub const BRIEF_BUFFER_LEN: usize = 4 * 1024;
/// How long the other side may take for the handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may take to end after its stream was dropped.
const LINGER: Duration = Duration::from_secs(60);
/// An idle connection is probed this often.
const KEEP_ALIVE: StackDuration = StackDuration::from_secs(30);
/// A connection ends when the other side was silent for so long.
const SILENCE_MAX: StackDuration = StackDuration::from_secs(90);
/// Packets that are processed before other tasks get their turn.
const INGRESS_BATCH: usize = 64;
/// Rounds over all sockets before other tasks get their turn.
const EGRESS_ROUNDS: usize = 16;
/// How long to wait for the worker when it has all buffers; its release of one comes before, normally.
const STARVED_RETRY: Duration = Duration::from_millis(10);

const _: () = assert!(BACKLOG_MAX <= CONNECTIONS_MAX && CONNECTIONS_PER_PEER_MAX <= CONNECTIONS_MAX);

/// Both ends of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Tuple {
    /// The guest.
    pub remote: SocketAddr,
    /// Ours.
    pub local: SocketAddr,
}

/// At which of our addresses a service listens.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Place {
    /// Those of the gateway, link-local included.
    Gateway,
    /// Those of metadata, which are no others'.
    Metadata,
}

impl Place {
    fn of(address: IpAddr) -> Self {
        if [IpAddr::V4(METADATA_V4), IpAddr::V6(METADATA_V6)].contains(&address) {
            Self::Metadata
        } else {
            Self::Gateway
        }
    }
}

/// Where connections come in.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Door {
    /// The addresses.
    pub place: Place,
    /// The TCP port.
    pub port: u16,
}

impl Door {
    fn of(local: SocketAddr) -> Self {
        Self { place: Place::of(local.ip()), port: local.port() }
    }
}

/// Who waits for connections on a TCP port.
#[derive(Default)]
pub struct Listening {
    ready: VecDeque<(SocketHandle, Tuple)>,
    /// Connections in their handshake.
    opening: usize,
    waker: Option<Waker>,
}

impl Listening {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// What becomes of a connection when its stream is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// It ends in order, unless octets were left unread.
    Close,
    /// It is reset.
    Reset,
}

/// Who has a connection now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Owner {
    /// The handshake is not over; gone at the deadline.
    Opening(Instant),
    /// It waits in the listener's queue, or a stream has it.
    Held,
    /// The stream was dropped; gone at the deadline.
    Lingering(Instant),
}

struct Connection {
    tuple: Tuple,
    owner: Owner,
}

/// The stack of one network.
pub struct Stack {
    interface: Interface,
    device: StackDevice,
    /// All sockets of smoltcp.
    pub sockets: SocketSet<'static>,
    /// Who listens.
    pub listeners: HashMap<Door, Listening>,
    connections: HashMap<SocketHandle, Connection>,
    by_tuple: HashMap<Tuple, SocketHandle>,
    per_peer: HashMap<IpAddr, usize>,
    /// What guests were asked in one packet.
    pub questions: Questions,
    /// Bound UDP ports.
    pub udp_ports: HashMap<u16, SocketHandle>,
    /// Addresses of ours, for the check of what a caller binds to.
    addresses: Vec<IpAddr>,
    next_port: u16,
    started: Instant,
    /// The network is gone.
    pub closed: bool,
}

impl Stack {
    /// A stack without sockets. `seed` must be random: sequence and port numbers start from it.
    pub fn new(network: &Network, port: Arc<InternalPort>, seed: u64) -> Self {
        let mut device = StackDevice { port, mtu: 0, frame: Vec::new(), sent: false, starved: false };
        let started = Instant::now();
        let (interface, addresses) = interface(network, &mut device, seed);
        Self {
            interface,
            device,
            sockets: SocketSet::new(Vec::new()),
            listeners: HashMap::new(),
            connections: HashMap::new(),
            by_tuple: HashMap::new(),
            per_peer: HashMap::new(),
            questions: Questions::new(seed),
            udp_ports: HashMap::new(),
            addresses,
            next_port: EPHEMERAL.start() + (seed % 16_384) as u16,
            started,
            closed: false,
        }
    }

    /// Takes over changed addresses or MTU. Connections to an address that is gone end by their timeout.
    pub fn reconfigure(&mut self, network: &Network, seed: u64) {
        (self.interface, self.addresses) = interface(network, &mut self.device, seed);
    }

    /// Ends everything; streams see a reset, listeners an error.
    pub fn close(&mut self) {
        self.closed = true;
        for handle in self.connections.keys() {
            self.sockets.get_mut::<tcp::Socket<'_>>(*handle).abort();
        }
        for handle in self.udp_ports.values() {
            self.sockets.get_mut::<smoltcp::socket::udp::Socket<'_>>(*handle).close();
        }
        for listening in self.listeners.values_mut() {
            listening.wake();
        }
        self.questions.close();
    }

    /// Whether an address is one of the network's gateway addresses, or one of metadata.
    pub fn is_local(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }

    /// Moves everything that can move at `now`. Returns how long nothing will be due; `None` until something happens.
    pub fn drive(&mut self, now: Instant) -> Option<Duration> {
        let time = self.time(now);
        self.device.port.listen();
        self.device.starved = false;
        let mut received = 0;
        while received < INGRESS_BATCH && self.receive(time, now) {
            received += 1;
        }
        self.questions.send(&mut self.device);
        for _ in 0..EGRESS_ROUNDS {
            if self.interface.poll_egress(time, &mut self.device, &mut self.sockets) == PollResult::None {
                break;
            }
        }
        self.sweep(now);
        if std::mem::take(&mut self.device.sent) {
            self.device.port.wake();
        }
        if self.device.starved {
            return Some(STARVED_RETRY);
        }
        if received == INGRESS_BATCH {
            return Some(Duration::ZERO);
        }
        let stack = self.interface.poll_delay(time, &self.sockets).map(Duration::from);
        let deadline = self.connections.values().filter_map(|connection| match connection.owner {
            Owner::Opening(deadline) | Owner::Lingering(deadline) => Some(deadline),
            Owner::Held => None,
        });
        let deadline = deadline.min().map(|deadline| deadline.saturating_duration_since(now));
        [stack, deadline].into_iter().flatten().min()
    }

    /// Processes one packet from guests. `false` when there was none, or no room for the answer.
    fn receive(&mut self, time: StackInstant, now: Instant) -> bool {
        if self.device.frame.is_empty() {
            let Self { device, .. } = self;
            if !device.port.receive(&mut device.frame) {
                return false;
            }
            match self.questions.hear(&device.frame, &self.addresses) {
                Heard::Other => {}
                Heard::Answer => {
                    device.frame.clear();
                    return true;
                }
            }
            if let Some(tuple) = syn(&device.frame)
                && !self.admit(tuple, now)
            {
                self.device.frame.clear();
                return true;
            }
        }
        let result = self.interface.poll_ingress_single(time, &mut self.device, &mut self.sockets);
        result != PollIngressSingleResult::None
    }

    /// Makes a socket for a connection that a guest opens. `false` when the SYN is to be ignored.
    fn admit(&mut self, tuple: Tuple, now: Instant) -> bool {
        if let Some(handle) = self.by_tuple.get(&tuple).copied() {
            // A retransmission, or the same ports again: RFC 1122 §4.2.2.13 lets a SYN reopen what is in TIME-WAIT.
            let waits = self.sockets.get::<tcp::Socket<'_>>(handle).state() == State::TimeWait;
            if !waits || !self.is_lingering(handle) {
                return true;
            }
            self.remove(handle);
        }
        let door = Door::of(tuple.local);
        let Some(listening) = self.listeners.get(&door) else { return true };
        if listening.opening + listening.ready.len() >= BACKLOG_MAX || !self.make_room(tuple.remote.ip()) {
            return false;
        }
        let mut socket = new_socket(STREAM_BUFFER_LEN);
        if socket.listen((tuple.local.ip(), tuple.local.port())).is_err() {
            return false;
        }
        self.insert(socket, tuple, Owner::Opening(now + HANDSHAKE_TIMEOUT));
        if let Some(listening) = self.listeners.get_mut(&door) {
            listening.opening += 1;
        }
        true
    }

    /// Whether another connection with `peer` is within the limits, after what only waits for time was given up.
    fn make_room(&mut self, peer: IpAddr) -> bool {
        let fits = |stack: &Self| {
            stack.connections.len() < CONNECTIONS_MAX
                && stack.per_peer.get(&peer).is_none_or(|count| *count < CONNECTIONS_PER_PEER_MAX)
        };
        if fits(self) {
            return true;
        }
        let sockets = &self.sockets;
        let waits = |handle: &SocketHandle| sockets.get::<tcp::Socket<'_>>(*handle).state() == State::TimeWait;
        let over: Vec<_> = self.connections.keys().filter(|handle| waits(handle)).copied().collect();
        for handle in over {
            if self.is_lingering(handle) {
                self.remove(handle);
            }
        }
        fits(self)
    }

    fn is_lingering(&self, handle: SocketHandle) -> bool {
        self.connections.get(&handle).is_some_and(|connection| matches!(connection.owner, Owner::Lingering(_)))
    }

    /// Opens a connection to a guest.
    pub fn connect(&mut self, from: IpAddr, to: SocketAddr, buffer_len: usize) -> Option<(SocketHandle, Tuple)> {
        if !self.make_room(to.ip()) {
            return None;
        }
        let tuple = self.ephemeral(from, to)?;
        let mut socket = new_socket(buffer_len);
        socket.connect(self.interface.context(), (to.ip(), to.port()), (from, tuple.local.port())).ok()?;
        Some((self.insert(socket, tuple, Owner::Held), tuple))
    }

    /// A source address of the gateway for a destination.
    pub fn source_for(&self, to: IpAddr) -> Option<IpAddr> {
        let gateway = |address: &IpAddr| self.is_local(*address) && Place::of(*address) == Place::Gateway;
        self.interface.get_source_address(&to.into()).map(IpAddr::from).filter(gateway)
    }

    /// Octets of the longest datagram to an address.
    pub fn datagram_len_max(&self, to: IpAddr) -> usize {
        self.device.mtu - if to.is_ipv4() { 20 + 8 } else { 40 + 8 }
    }

    fn ephemeral(&mut self, from: IpAddr, to: SocketAddr) -> Option<Tuple> {
        for _ in EPHEMERAL {
            self.next_port = if self.next_port >= *EPHEMERAL.end() { *EPHEMERAL.start() } else { self.next_port + 1 };
            let tuple = Tuple { remote: to, local: SocketAddr::new(from, self.next_port) };
            if !self.by_tuple.contains_key(&tuple) && !self.listeners.contains_key(&Door::of(tuple.local)) {
                return Some(tuple);
            }
        }
        None
    }

    /// The next connection of a listener, or `waker` is called when there is one. `None` when nobody listens there.
    pub fn accept(&mut self, door: Door, waker: &Waker) -> Option<Option<(SocketHandle, Tuple)>> {
        let listening = self.listeners.get_mut(&door)?;
        let next = listening.ready.pop_front();
        if next.is_none() {
            listening.waker = Some(waker.clone());
        }
        Some(next)
    }

    /// Stops listening. Connections that nobody accepted are reset.
    pub fn stop_listening(&mut self, door: Door) {
        let Some(listening) = self.listeners.remove(&door) else { return };
        let opening = self.connections.iter().filter(|(_, connection)| {
            matches!(connection.owner, Owner::Opening(_)) && Door::of(connection.tuple.local) == door
        });
        let handles: Vec<_> = opening.map(|(handle, _)| *handle).collect();
        for handle in handles.into_iter().chain(listening.ready.into_iter().map(|(handle, _)| handle)) {
            self.sockets.get_mut::<tcp::Socket<'_>>(handle).abort();
            self.linger(handle);
        }
    }

    /// A stream was dropped: ends its connection in order, or by a reset when octets were left unread (RFC 2525
    /// §2.17: the other side must learn that they were lost).
    pub fn release(&mut self, handle: SocketHandle, end: End) {
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        if end == End::Reset || socket.recv_queue() > 0 || matches!(socket.state(), State::SynSent | State::SynReceived)
        {
            socket.abort();
        } else {
            socket.close();
        }
        self.linger(handle);
    }

    /// Resets every connection with an address: it belongs to somebody else from now on.
    pub fn reset_peer(&mut self, peer: IpAddr) {
        for (handle, connection) in &self.connections {
            if connection.tuple.remote.ip() == peer {
                self.sockets.get_mut::<tcp::Socket<'_>>(*handle).abort();
            }
        }
    }

    fn linger(&mut self, handle: SocketHandle) {
        if let Some(connection) = self.connections.get_mut(&handle) {
            connection.owner = Owner::Lingering(Instant::now() + LINGER);
        }
    }

    fn insert(&mut self, socket: tcp::Socket<'static>, tuple: Tuple, owner: Owner) -> SocketHandle {
        let handle = self.sockets.add(socket);
        self.connections.insert(handle, Connection { tuple, owner });
        self.by_tuple.insert(tuple, handle);
        *self.per_peer.entry(tuple.remote.ip()).or_default() += 1;
        handle
    }

    fn remove(&mut self, handle: SocketHandle) {
        let Some(Connection { tuple, .. }) = self.connections.remove(&handle) else { return };
        self.sockets.remove(handle);
        self.by_tuple.remove(&tuple);
        if let Some(count) = self.per_peer.get_mut(&tuple.remote.ip()) {
            *count -= 1;
            if *count == 0 {
                self.per_peer.remove(&tuple.remote.ip());
            }
        }
    }

    /// Hands finished handshakes to their listeners and removes what has ended.
    fn sweep(&mut self, now: Instant) {
        let mut over = Vec::new();
        for (handle, connection) in &mut self.connections {
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(*handle);
            // A reset that is not sent yet keeps the socket: smoltcp forgets the peer when it has sent it.
            let ended = socket.state() == State::Closed && socket.remote_endpoint().is_none();
            match connection.owner {
                Owner::Held => {}
                Owner::Lingering(deadline) => {
                    if ended || now >= deadline + Duration::from_secs(1) {
                        over.push(*handle);
                    } else if now >= deadline || socket.recv_queue() > 0 {
                        socket.abort();
                    }
                }
                Owner::Opening(deadline) => {
                    let door = Door::of(connection.tuple.local);
                    let Some(listening) = self.listeners.get_mut(&door) else { continue };
                    match socket.state() {
                        State::SynReceived if now < deadline => {}
                        // Its SYN still waits for room for the answer.
                        State::Listen if !self.device.frame.is_empty() => {}
                        State::Closed | State::Listen | State::SynReceived => {
                            socket.abort();
                            listening.opening -= 1;
                            connection.owner = Owner::Lingering(now);
                        }
                        _ => {
                            listening.opening -= 1;
                            connection.owner = Owner::Held;
                            listening.ready.push_back((*handle, connection.tuple));
                            listening.wake();
                        }
                    }
                }
            }
        }
        for handle in over {
            self.remove(handle);
        }
    }

    fn time(&self, now: Instant) -> StackInstant {
        let elapsed = now.saturating_duration_since(self.started);
        StackInstant::from_micros(i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX))
    }
}

/// Ports for connections of ours (RFC 6335 §6).
const EPHEMERAL: std::ops::RangeInclusive<u16> = 49_152..=65_535;

fn new_socket(buffer_len: usize) -> tcp::Socket<'static> {
    let buffer = || tcp::SocketBuffer::new(vec![0; buffer_len]);
    let mut socket = tcp::Socket::new(buffer(), buffer());
    socket.set_keep_alive(Some(KEEP_ALIVE));
    socket.set_timeout(Some(SILENCE_MAX));
    // Services write whole answers; a delay of small segments and of acknowledgements would only cost latency.
    socket.set_nagle_enabled(false);
    socket.set_ack_delay(None);
    socket
}

/// An interface with the gateway's addresses, those of metadata, and a default route: the switch is next to everything.
fn interface(network: &Network, device: &mut StackDevice, seed: u64) -> (Interface, Vec<IpAddr>) {
    device.mtu = usize::from(network.mtu).min(STACK_MTU_MAX);
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = seed;
    let mut interface = Interface::new(config, device, StackInstant::ZERO);
    let v4 = network.v4.map(|(range, gateway)| (IpAddr::V4(gateway), range.prefix_len()));
    let v6 = network.v6.map(|(range, gateway)| (IpAddr::V6(gateway), range.prefix_len()));
    let others = [(ROUTER_LINK_LOCAL.into(), 64), (METADATA_V4.into(), 32), (METADATA_V6.into(), 128)];
    let own = || v4.into_iter().chain(v6).chain(others);
    interface.update_ip_addrs(|addresses| {
        for (address, prefix_len) in own() {
            // There is room for eight (`iface-max-addr-count-8`).
            let _ = addresses.push(IpCidr::new(address.into(), prefix_len));
        }
    });
    if let Some((_, gateway)) = network.v4 {
        let _ = interface.routes_mut().add_default_ipv4_route(gateway);
    }
    if let Some((_, gateway)) = network.v6 {
        let _ = interface.routes_mut().add_default_ipv6_route(gateway);
    }
    (interface, own().map(|(address, _)| address).collect())
}

/// Both ends of a connection that a packet opens: SYN without ACK.
fn syn(packet: &[u8]) -> Option<Tuple> {
    let (source, destination, segment): (IpAddr, IpAddr, &[u8]) = match IpVersion::of_packet(packet).ok()? {
        IpVersion::Ipv4 => {
            let packet = Ipv4Packet::new_checked(packet).ok()?;
            let tcp = packet.next_header() == IpProtocol::Tcp && packet.frag_offset() == 0;
            (packet.src_addr().into(), packet.dst_addr().into(), tcp.then(|| packet.payload())?)
        }
        IpVersion::Ipv6 => {
            let packet = Ipv6Packet::new_checked(packet).ok()?;
            let tcp = packet.next_header() == IpProtocol::Tcp;
            (packet.src_addr().into(), packet.dst_addr().into(), tcp.then(|| packet.payload())?)
        }
    };
    let segment = TcpPacket::new_checked(segment).ok()?;
    let opens = segment.syn() && !segment.ack() && !segment.rst();
    opens.then(|| Tuple {
        remote: SocketAddr::new(source, segment.src_port()),
        local: SocketAddr::new(destination, segment.dst_port()),
    })
}
