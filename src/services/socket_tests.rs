//! Sockets against a guest: a second smoltcp stack at the worker's side of the frame queues, in place of worker, rings
//! and a VM. Every frame of the host goes through `parse` and `guard` on its way, as in a worker.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use hostweave_switch::limits::HEAD_FIRST;
use hostweave_switch::packet::{Burst, Layers, Meta};
use hostweave_switch::stage::{DropReason, Verdict};
use hostweave_switch::tables::{METADATA_V4, METADATA_V6, Network, Port, PortId, PortKind};
use hostweave_switch::{MacAddr, guard, parse};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium};
use smoltcp::socket::{tcp, udp};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{HardwareAddress, IpCidr, Ipv4Packet, TcpPacket};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::internal::InternalPort;
use super::sockets::{Listener, Peer, Place, Sockets};
use super::stack::{CONNECTIONS_PER_PEER_MAX, STREAM_BUFFER_LEN};
use super::testing::{A_V4, A_V6, B_V4, GATEWAY_V4, GATEWAY_V6, GUEST_A, World};

const LIMIT: Duration = Duration::from_secs(30);

/// Packets on their way to and from the guest's stack.
#[derive(Default)]
struct Wire {
    rx: VecDeque<Vec<u8>>,
    tx: VecDeque<Vec<u8>>,
}

struct RxToken(Vec<u8>);

struct TxToken<'a>(&'a mut VecDeque<Vec<u8>>);

impl smoltcp::phy::RxToken for RxToken {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl smoltcp::phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut packet = vec![0; len];
        let result = fill(&mut packet);
        self.0.push_back(packet);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = RxToken;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, _: StackInstant) -> Option<(RxToken, TxToken<'_>)> {
        Some((RxToken(self.rx.pop_front()?), TxToken(&mut self.tx)))
    }

    fn transmit(&mut self, _: StackInstant) -> Option<TxToken<'_>> {
        Some(TxToken(&mut self.tx))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 1450;
        capabilities
    }
}

struct GuestStack {
    interface: Interface,
    sockets: SocketSet<'static>,
    wire: Wire,
    /// Segments that went to the host as parts of a longer frame.
    merged: usize,
}

/// A guest with the addresses of A and, to be two guests for the host, B's IPv4 address.
struct Guest {
    stack: Arc<Mutex<GuestStack>>,
    pump: tokio::task::JoinHandle<()>,
    wake: Arc<Notify>,
}

impl Guest {
    /// A guest in a new network of `sockets`.
    fn new(sockets: &Sockets, name: &str, merge: bool) -> Self {
        let network = Network { name: name.to_owned(), ..World::new().network };
        let wake = Arc::new(Notify::new());
        let waker = Arc::clone(&wake);
        let port = sockets.add_network(&network, Arc::new(move || waker.notify_one()));
        let mut wire = Wire::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = 1;
        let mut interface = Interface::new(config, &mut wire, StackInstant::ZERO);
        interface.update_ip_addrs(|addresses| {
            for (address, prefix_len) in [(IpAddr::V4(A_V4), 24), (IpAddr::V4(B_V4), 24), (IpAddr::V6(A_V6), 64)] {
                addresses.push(IpCidr::new(address.into(), prefix_len)).unwrap();
            }
        });
        let stack = GuestStack { interface, sockets: SocketSet::new(Vec::new()), wire, merged: 0 };
        let stack = Arc::new(Mutex::new(stack));
        let pump = tokio::spawn(pump(Arc::clone(&stack), port, network, Arc::clone(&wake), merge));
        Self { stack, pump, wake }
    }

    fn with<R>(&self, handle: SocketHandle, with: impl FnOnce(&mut tcp::Socket<'static>) -> R) -> R {
        let result = with(self.stack.lock().unwrap().sockets.get_mut(handle));
        self.wake.notify_one();
        result
    }

    fn open(&self, from: IpAddr, src_port: u16, to: SocketAddr) -> SocketHandle {
        let stack = &mut *self.stack.lock().unwrap();
        let buffer = || tcp::SocketBuffer::new(vec![0; 65_535]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.connect(stack.interface.context(), (to.ip(), to.port()), (from, src_port)).unwrap();
        let handle = stack.sockets.add(socket);
        self.wake.notify_one();
        handle
    }

    fn listen(&self, port: u16) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 65_535]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.listen(port).unwrap();
        self.stack.lock().unwrap().sockets.add(socket)
    }

    /// Waits until `condition` says yes.
    async fn until<R>(&self, handle: SocketHandle, condition: impl Fn(&mut tcp::Socket<'static>) -> Option<R>) -> R {
        let wait = poll_fn(|cx| {
            let stack = &mut *self.stack.lock().unwrap();
            let socket = stack.sockets.get_mut::<tcp::Socket<'_>>(handle);
            if let Some(result) = condition(socket) {
                return Poll::Ready(result);
            }
            socket.register_recv_waker(cx.waker());
            socket.register_send_waker(cx.waker());
            Poll::Pending
        });
        let result = timeout(LIMIT, wait).await.expect("the guest waited in vain");
        self.wake.notify_one();
        result
    }

    async fn established(&self, handle: SocketHandle) {
        self.until(handle, |socket| (socket.state() == tcp::State::Established).then_some(())).await;
    }

    async fn closed(&self, handle: SocketHandle) {
        self.until(handle, |socket| (socket.state() == tcp::State::Closed).then_some(())).await;
    }

    /// Sends `data` and reads as many octets.
    async fn exchange(&self, handle: SocketHandle, data: &[u8]) -> Vec<u8> {
        let (mut sent, mut received) = (0, Vec::new());
        while received.len() < data.len() {
            let (to, from) = self
                .until(handle, |socket| {
                    let to = if sent < data.len() { socket.send_slice(&data[sent..]).unwrap_or(0) } else { 0 };
                    let mut buffer = vec![0; 65_535];
                    let len = if socket.can_recv() { socket.recv_slice(&mut buffer).unwrap() } else { 0 };
                    buffer.truncate(len);
                    assert!(socket.is_open(), "closed after {sent} octets sent");
                    (to + len > 0).then_some((to, buffer))
                })
                .await;
            sent += to;
            received.extend(from);
        }
        received
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

/// What a worker does.
async fn pump(
    stack: Arc<Mutex<GuestStack>>,
    port: Arc<InternalPort>,
    network: Network,
    wake: Arc<Notify>,
    merge: bool,
) {
    let started = Instant::now();
    let internal = Port { id: PortId(0), kind: PortKind::Internal, mac: MacAddr::ROUTER, ..World::new().port };
    let mut burst = Burst::new();
    loop {
        {
            let stack = &mut *stack.lock().unwrap();
            while port.take(&mut burst) > 0 {
                for index in 0..burst.len() {
                    let (packet, arena) = burst.packet_mut(index);
                    assert_eq!(packet.meta.in_port, PortId(0));
                    assert_eq!(parse::parse(packet, arena), Verdict::Continue);
                    assert_eq!(guard::guard(&internal, &network, packet), Verdict::Continue);
                    let mut frame = vec![0; packet.len()];
                    packet.copy_frame(arena, &mut frame).unwrap();
                    stack.wire.rx.push_back(frame.split_off(14));
                }
                burst.clear();
                port.release();
            }
            let now = StackInstant::from_micros(started.elapsed().as_micros() as i64);
            let GuestStack { interface, sockets, wire, merged } = stack;
            interface.poll(now, wire, sockets);
            while let Some(mut packet) = wire.tx.pop_front() {
                while merge && wire.tx.front().is_some_and(|next| append(&mut packet, next)) {
                    wire.tx.pop_front();
                    *merged += 1;
                }
                // A full queue drops, as it does for a worker; TCP goes on.
                let _ = deliver(&mut burst, &port, &packet);
            }
        }
        let _ = timeout(Duration::from_millis(1), wake.notified()).await;
    }
}

fn deliver(burst: &mut Burst, port: &InternalPort, packet: &[u8]) -> Result<(), DropReason> {
    let version_6 = packet[0] >> 4 == 6;
    let ether_type: [u8; 2] = if version_6 { [0x86, 0xdd] } else { [8, 0] };
    let frame = [&MacAddr::ROUTER.0[..], &GUEST_A.0, &ether_type, packet].concat();
    let meta = Meta { in_port: PortId(1), layers: Layers { l3: 14, ..Layers::default() }, ..Meta::default() };
    burst.with_frame(meta, &frame, HEAD_FIRST, |packet, arena| port.deliver(packet, arena))
}

/// Appends the next segment of the same flow, as a guest that knows TSO would have sent both in one frame.
fn append(packet: &mut Vec<u8>, next: &[u8]) -> bool {
    let parse = |bytes: &[u8]| {
        let ip = Ipv4Packet::new_checked(bytes).ok()?;
        let tcp = TcpPacket::new_checked(ip.payload()).ok()?;
        let header = 20 + usize::from(tcp.header_len());
        Some((ip.src_addr(), tcp.src_port(), tcp.dst_port(), tcp.seq_number(), header, tcp.payload().len()))
    };
    let (Some(a), Some(b)) = (parse(packet), parse(next)) else { return false };
    let follows = (a.0, a.1, a.2, a.3 + a.5, a.4) == (b.0, b.1, b.2, b.3, b.4);
    if !follows || a.5 == 0 || b.5 == 0 || packet.len() + b.5 > 65_535 {
        return false;
    }
    packet.extend_from_slice(&next[b.4..]);
    let len = packet.len() as u16;
    let mut ip = Ipv4Packet::new_unchecked(&mut packet[..]);
    ip.set_total_len(len);
    ip.fill_checksum();
    true
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index * 7 + index / 251) as u8).collect()
}

/// Accepts connections and sends back what they say, until the network ends. The peers go to the returned list.
fn echo(listener: Listener) -> Arc<Mutex<Vec<Peer>>> {
    let peers = Arc::new(Mutex::new(Vec::new()));
    let list = Arc::clone(&peers);
    tokio::spawn(async move {
        while let Ok((stream, peer)) = listener.accept().await {
            list.lock().unwrap().push(peer);
            tokio::spawn(async move {
                let (mut from, mut to) = tokio::io::split(stream);
                let _ = tokio::io::copy(&mut from, &mut to).await;
                let _ = to.shutdown().await;
            });
        }
    });
    peers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tcp_echo_of_a_mebibyte_over_both_families_and_in_two_equal_networks() {
    let sockets = Sockets::new().unwrap();
    let data = pattern(1 << 20);
    for name in ["red", "blue"] {
        let guest = Guest::new(&sockets, name, false);
        let peers = echo(sockets.listen(name, 7).unwrap());
        for (index, (from, to)) in
            [(IpAddr::V4(A_V4), IpAddr::V4(GATEWAY_V4)), (A_V6.into(), GATEWAY_V6.into())].into_iter().enumerate()
        {
            let handle = guest.open(from, 5000, SocketAddr::new(to, 7));
            guest.established(handle).await;
            assert!(guest.exchange(handle, &data).await == data);
            guest.with(handle, tcp::Socket::close);
            guest.until(handle, |socket| (!socket.may_recv()).then_some(())).await;
            let expected = Peer { network: name.into(), address: from, port: 5000 };
            assert_eq!(peers.lock().unwrap()[index], expected);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_of_many_segments_arrive_whole() {
    let sockets = Sockets::new().unwrap();
    let guest = Guest::new(&sockets, "default", true);
    echo(sockets.listen("default", 7).unwrap());
    let handle = guest.open(A_V4.into(), 5000, (GATEWAY_V4, 7).into());
    guest.established(handle).await;
    let data = pattern(1 << 20);
    assert!(guest.exchange(handle, &data).await == data);
    assert!(guest.stack.lock().unwrap().merged > 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_connections_at_once() {
    let sockets = Sockets::new().unwrap();
    let guest = Guest::new(&sockets, "default", false);
    echo(sockets.listen("default", 7).unwrap());
    for round in 0..3u16 {
        let open = |index| guest.open(A_V4.into(), 5000 + 100 * round + index, (GATEWAY_V4, 7).into());
        let handles: Vec<_> = (0..100).map(open).collect();
        for (index, handle) in handles.iter().enumerate() {
            guest.established(*handle).await;
            let data = pattern(1000 + index);
            assert!(guest.exchange(*handle, &data).await == data);
        }
        // Connections that the guest closed must not count against it in the next round.
        for handle in handles {
            guest.with(handle, tcp::Socket::close);
            guest.until(handle, |socket| (!socket.may_recv()).then_some(())).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_direction_ends_by_itself() {
    let sockets = Sockets::new().unwrap();
    let guest = Guest::new(&sockets, "default", false);
    let listener = sockets.listen("default", 80).unwrap();
    let handle = guest.open(A_V4.into(), 5000, (GATEWAY_V4, 80).into());
    let (mut stream, peer) = timeout(LIMIT, listener.accept()).await.unwrap().unwrap();
    assert_eq!((peer.address, stream.local_addr()), (A_V4.into(), (GATEWAY_V4, 80).into()));
    guest.established(handle).await;
    guest.with(handle, |socket| {
        socket.send_slice(b"GET /").unwrap();
        socket.close();
    });
    let mut question = Vec::new();
    timeout(LIMIT, stream.read_to_end(&mut question)).await.unwrap().unwrap();
    assert_eq!(question, b"GET /");
    stream.write_all(b"hello").await.unwrap();
    drop(stream);
    let answer = guest.until(handle, |socket| (!socket.may_recv() || socket.recv_queue() == 5).then_some(())).await;
    assert_eq!(answer, ());
    let mut buffer = [0; 16];
    assert_eq!(guest.with(handle, |socket| socket.recv_slice(&mut buffer)), Ok(5));
    guest.until(handle, |socket| (socket.recv_slice(&mut [0]) == Err(tcp::RecvError::Finished)).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resets_are_seen_on_both_sides() {
    let sockets = Sockets::new().unwrap();
    let guest = Guest::new(&sockets, "default", false);
    let listener = sockets.listen("default", 80).unwrap();
    let handle = guest.open(A_V4.into(), 5000, (GATEWAY_V4, 80).into());
    let (mut stream, _) = timeout(LIMIT, listener.accept()).await.unwrap().unwrap();
    guest.established(handle).await;
    guest.with(handle, tcp::Socket::abort);
    let error = timeout(LIMIT, stream.read(&mut [0; 8])).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(stream.write(b"x").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
    // A stream that is dropped with octets unread resets (RFC 2525 §2.17).
    let handle = guest.open(A_V6.into(), 5001, (GATEWAY_V6, 80).into());
    let (mut stream, _) = timeout(LIMIT, listener.accept()).await.unwrap().unwrap();
    guest.established(handle).await;
    guest.with(handle, |socket| socket.send_slice(b"unread").unwrap());
    assert_eq!(timeout(LIMIT, stream.read_u8()).await.unwrap().unwrap(), b'u');
    drop(stream);
    guest.closed(handle).await;
    // Nobody listens there, or no longer.
    guest.closed(guest.open(A_V4.into(), 5002, (GATEWAY_V4, 81).into())).await;
    let waiting = guest.open(A_V4.into(), 5003, (GATEWAY_V4, 80).into());
    guest.established(waiting).await;
    drop(listener);
    guest.closed(waiting).await;
    guest.closed(guest.open(A_V4.into(), 5004, (GATEWAY_V4, 80).into())).await;
    assert!(sockets.listen("default", 80).is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_connect_to_guests() {
    let sockets = Sockets::new().unwrap();
    let guest = Guest::new(&sockets, "default", false);
    for (from, to) in [(None, IpAddr::V4(A_V4)), (Some(GATEWAY_V6.into()), IpAddr::V6(A_V6))] {
        let handle = guest.listen(8080);
        let mut stream = sockets.connect("default", from, SocketAddr::new(to, 8080)).await.unwrap();
        let gateway = if to.is_ipv4() { IpAddr::V4(GATEWAY_V4) } else { GATEWAY_V6.into() };
        assert_eq!((stream.local_addr().ip(), stream.peer().address), (gateway, to));
        stream.write_all(b"probe").await.unwrap();
        guest.until(handle, |socket| (socket.recv_queue() == 5).then_some(())).await;
        guest.with(handle, |socket| socket.send_slice(b"fine").unwrap());
        let mut answer = [0; 4];
        timeout(LIMIT, stream.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(&answer, b"fine");
        let error = sockets.connect("default", from, SocketAddr::new(to, 9)).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        guest.with(handle, tcp::Socket::abort);
    }
    let elsewhere = Some(B_V4.into());
    let error = sockets.connect("default", elsewhere, (A_V4, 8080).into()).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
    let error = sockets.connect("none", None, (A_V4, 8080).into()).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagrams_go_both_ways_and_answers_leave_from_the_asked_address() {
    let sockets = Sockets::new().unwrap();
    let guest = Guest::new(&sockets, "default", false);
    let socket = sockets.udp_bind("default", 53).unwrap();
    assert_eq!(sockets.udp_bind("default", 53).err().unwrap().kind(), ErrorKind::AddrInUse);
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 8], vec![0; 8192]);
    for (from, to) in [(IpAddr::V4(A_V4), IpAddr::V4(GATEWAY_V4)), (A_V6.into(), GATEWAY_V6.into())] {
        let handle = {
            let mut client = udp::Socket::new(buffer(), buffer());
            client.bind((from, 4000)).unwrap();
            client.send_slice(b"who?", (to, 53)).unwrap();
            guest.stack.lock().unwrap().sockets.add(client)
        };
        let mut data = [0; 64];
        let asked = timeout(LIMIT, socket.recv_from(&mut data)).await.unwrap().unwrap();
        let peer = Peer { network: "default".into(), address: from, port: 4000 };
        assert_eq!((&data[..asked.len], asked.peer, asked.local), (&b"who?"[..], peer, to));
        let remote = SocketAddr::new(from, 4000);
        let too_long = vec![0; 1400];
        let error = socket.send_to(&too_long, Some(to), remote).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        socket.send_to(b"you", Some(to), remote).await.unwrap();
        let received = async {
            loop {
                tokio::time::sleep(Duration::from_millis(1)).await;
                let mut stack = guest.stack.lock().unwrap();
                if let Ok((data, metadata)) = stack.sockets.get_mut::<udp::Socket<'_>>(handle).recv() {
                    return (data.to_vec(), IpAddr::from(metadata.endpoint.addr), metadata.endpoint.port);
                }
            }
        };
        assert_eq!(timeout(LIMIT, received).await.unwrap(), (b"you".to_vec(), to, 53));
    }
    drop(socket);
    assert!(sockets.udp_bind("default", 53).is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_guest_cannot_use_up_what_another_needs() {
    let sockets = Sockets::new().unwrap();
    let guest = Guest::new(&sockets, "default", false);
    let listener = sockets.listen("default", 7).unwrap();
    let to = SocketAddr::from((GATEWAY_V4, 7));
    // A opens all that it may, accepted and held, and one more.
    let (mut held, mut handles) = (Vec::new(), Vec::new());
    for index in 0..CONNECTIONS_PER_PEER_MAX as u16 {
        let handle = guest.open(A_V4.into(), 5000 + index, to);
        handles.push(handle);
        held.push(timeout(LIMIT, listener.accept()).await.unwrap().unwrap());
        guest.established(handle).await;
    }
    let beyond = guest.open(A_V4.into(), 6000, to);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(guest.with(beyond, |socket| socket.state()), tcp::State::SynSent);
    // A does not read what it is sent, either.
    let (slow, _) = &mut held[0];
    let stuck = timeout(Duration::from_millis(300), slow.write_all(&vec![0; 65_535 + 2 * STREAM_BUFFER_LEN])).await;
    assert!(stuck.is_err());
    // B is served all the same.
    let other = guest.open(B_V4.into(), 5000, to);
    let (stream, peer) = timeout(LIMIT, listener.accept()).await.unwrap().unwrap();
    assert_eq!(peer.address, IpAddr::from(B_V4));
    let (mut from, mut into) = tokio::io::split(stream);
    tokio::spawn(async move { tokio::io::copy(&mut from, &mut into).await });
    let data = pattern(100_000);
    assert!(guest.exchange(other, &data).await == data);
    // What A gives back, it may use again: its retransmitted SYN is taken.
    held.truncate(64);
    handles.drain(64..).for_each(|handle| guest.with(handle, tcp::Socket::close));
    held.push(timeout(LIMIT, listener.accept()).await.unwrap().unwrap());
    guest.established(beyond).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn networks_come_and_go_at_run_time() {
    let sockets = Sockets::new().unwrap();
    let guest = Guest::new(&sockets, "default", false);
    let listener = sockets.listen("default", 7).unwrap();
    assert_eq!(sockets.listen("default", 7).err().unwrap().kind(), ErrorKind::AddrInUse);
    let handle = guest.open(A_V4.into(), 5000, (GATEWAY_V4, 7).into());
    let (mut stream, _) = timeout(LIMIT, listener.accept()).await.unwrap().unwrap();
    guest.established(handle).await;
    // A changed network goes on with what it has.
    let network = Network { name: "default".to_owned(), mtu: 1300, ..World::new().network };
    sockets.update_network(&network);
    stream.write_all(b"still here").await.unwrap();
    guest.until(handle, |socket| (socket.recv_queue() == 10).then_some(())).await;
    let accept = tokio::spawn(async move { listener.accept().await.err().map(|error| error.kind()) });
    sockets.remove_network("default");
    assert_eq!(timeout(LIMIT, accept).await.unwrap().unwrap(), Some(ErrorKind::NotConnected));
    let error = timeout(LIMIT, stream.read(&mut [0; 8])).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(sockets.listen("default", 7).err().unwrap().kind(), ErrorKind::NotFound);
    guest.closed(handle).await;
    let again = Guest::new(&sockets, "default", false);
    echo(sockets.listen("default", 7).unwrap());
    let handle = again.open(A_V4.into(), 5000, (GATEWAY_V4, 7).into());
    again.established(handle).await;
    assert_eq!(again.exchange(handle, b"again").await, b"again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_of_the_gateway_and_the_same_of_metadata_are_two() {
    let sockets = Sockets::new().unwrap();
    let guest = Guest::new(&sockets, "default", false);
    let gateway = sockets.listen("default", 80).unwrap();
    let metadata = sockets.listen_at("default", Place::Metadata, 80).unwrap();
    let servers: [(IpAddr, IpAddr, &Listener); 4] = [
        (A_V4.into(), GATEWAY_V4.into(), &gateway),
        (A_V4.into(), METADATA_V4.into(), &metadata),
        (A_V6.into(), GATEWAY_V6.into(), &gateway),
        (A_V6.into(), METADATA_V6.into(), &metadata),
    ];
    for (src_port, (from, to, listener)) in (5000..).zip(servers) {
        guest.open(from, src_port, (to, 80).into());
        let (stream, peer) = timeout(LIMIT, listener.accept()).await.unwrap().unwrap();
        assert_eq!((stream.local_addr(), peer.port), ((to, 80).into(), src_port));
    }
    drop(metadata);
    let refused = guest.open(A_V4.into(), 5010, (METADATA_V4, 80).into());
    guest.closed(refused).await;
    // What the host begins itself comes from the gateway.
    guest.listen(7);
    let stream = sockets.connect("default", None, (A_V4, 7).into()).await.unwrap();
    assert_eq!(stream.local_addr().ip(), IpAddr::V4(GATEWAY_V4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_with_an_address_that_moves_end_and_others_stay() {
    let sockets = Sockets::new().unwrap();
    let guest = Guest::new(&sockets, "default", false);
    echo(sockets.listen("default", 7).unwrap());
    let moves = guest.open(A_V4.into(), 5000, (GATEWAY_V4, 7).into());
    let stays = guest.open(B_V4.into(), 5001, (GATEWAY_V4, 7).into());
    guest.established(moves).await;
    guest.established(stays).await;
    sockets.reset_peer("default", A_V4.into());
    guest.closed(moves).await;
    assert_eq!(guest.exchange(stays, b"still here").await, b"still here");
}
