//! A guest: a card with a TCP/IP stack (`smoltcp`) behind it.
//!
//! Everything blocking (`dhcp`, `ping`, `tcp_transfer`) polls the guest's own stack while it waits, so a guest can be
//! driven by one thread. Two guests that talk to each other each need a thread: [`Guest::spawn`] gives a guest one,
//! which polls it and runs what it is handed. Services (echo, sink) run whenever the guest is polled.

mod builder;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::socket::{dhcpv4, icmp, tcp, udp};
use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpAddress, IpCidr, Ipv4Cidr};

use crate::Error;
use crate::device::Phy;
use crate::frames::Mac;
use crate::nic::{Nic, NicConfig};
use crate::queue::VnetHeader;
use crate::service::Service;

pub use builder::GuestBuilder;

/// Octets of each TCP buffer.
pub const TCP_BUFFER_BYTES: usize = 256 << 10;

/// Longest sleep of a blocking operation between two polls.
const SLICE: Duration = Duration::from_millis(5);

/// How long a ping waits before it asks again.
const PING_AGAIN: Duration = Duration::from_millis(500);

/// What DHCP gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The address.
    pub address: Ipv4Addr,
    /// Its prefix length.
    pub prefix_len: u8,
    /// Default gateway.
    pub gateway: Option<Ipv4Addr>,
    /// Name servers.
    pub dns: Vec<Ipv4Addr>,
    /// The server's identifier.
    pub server: Ipv4Addr,
}

/// What a TCP transfer did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Octets that arrived and were verified.
    pub bytes: u64,
    /// How long it took.
    pub elapsed: Duration,
}

/// A running guest.
pub struct Guest {
    mac: Mac,
    pub(crate) phy: Phy,
    pub(crate) iface: Interface,
    pub(crate) sockets: SocketSet<'static>,
    pub(crate) services: Vec<Service>,
    dhcp: Option<SocketHandle>,
    lease: Option<Lease>,
    epoch: Instant,
    next_port: u16,
}

impl Guest {
    /// A Linux-like guest under QEMU, MAC `02:00:00:00:00:01`, until told otherwise.
    pub fn builder() -> GuestBuilder {
        GuestBuilder {
            nic: NicConfig::new(PathBuf::new()),
            mac: [2, 0, 0, 0, 0, 1],
            addresses: Vec::new(),
            gateways: Vec::new(),
            slaac: true,
        }
    }

    /// The hardware address.
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// The card.
    pub fn nic(&mut self) -> &mut Nic {
        &mut self.phy.nic
    }

    /// The card, to look at.
    pub fn nic_ref(&self) -> &Nic {
        &self.phy.nic
    }

    /// The device with its capture.
    pub fn phy(&mut self) -> &mut Phy {
        &mut self.phy
    }

    /// Every address the guest has, with prefix lengths.
    pub fn addresses(&self) -> Vec<(IpAddr, u8)> {
        self.iface.ip_addrs().iter().map(|cidr| (cidr.address().into(), cidr.prefix_len())).collect()
    }

    /// The first IPv4 address.
    pub fn ipv4(&self) -> Option<Ipv4Addr> {
        self.iface.ipv4_addr()
    }

    /// The first IPv6 address that is not link-local.
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        self.addresses().into_iter().find_map(|(address, _)| match address {
            IpAddr::V6(v6) if !v6.is_unicast_link_local() => Some(v6),
            _ => None,
        })
    }

    /// What DHCP gave last.
    pub fn lease(&self) -> Option<&Lease> {
        self.lease.as_ref()
    }

    /// Lets the stack handle what came in and what is due. True when something happened.
    pub fn poll(&mut self, now: Instant) -> bool {
        let stamp = smoltcp::time::Instant::from_micros(
            i64::try_from(now.saturating_duration_since(self.epoch).as_micros()).unwrap_or(i64::MAX),
        );
        let before = self.phy.nic.counters;
        self.iface.poll(stamp, &mut self.phy, &mut self.sockets);
        let worked = Service::run_all(self);
        if worked {
            self.iface.poll(stamp, &mut self.phy, &mut self.sockets);
        }
        self.take_dhcp_event();
        worked || before != self.phy.nic.counters
    }

    /// Polls, and sleeps until a frame comes or `timeout` is over when there was nothing to do.
    ///
    /// # Errors
    /// When waiting fails.
    pub fn poll_or_wait(&mut self, timeout: Duration) -> Result<(), Error> {
        let now = Instant::now();
        if self.poll(now) {
            return Ok(());
        }
        let stamp = smoltcp::time::Instant::from_micros(
            i64::try_from(now.saturating_duration_since(self.epoch).as_micros()).unwrap_or(i64::MAX),
        );
        let due =
            self.iface.poll_delay(stamp, &self.sockets).map_or(timeout, |d| Duration::from_micros(d.total_micros()));
        let sleep = due.min(timeout);
        if sleep.is_zero() { Ok(()) } else { self.phy.nic.wait(sleep) }
    }

    /// Polls until `done` gives something.
    ///
    /// # Errors
    /// [`Error::Timeout`] naming `what`; [`Error::Disconnected`].
    pub fn run_until<T>(
        &mut self,
        what: &str,
        timeout: Duration,
        mut done: impl FnMut(&mut Self) -> Option<T>,
    ) -> Result<T, Error> {
        let start = Instant::now();
        loop {
            if let Some(value) = done(self) {
                return Ok(value);
            }
            if start.elapsed() >= timeout {
                return Err(Error::timeout(what, timeout));
            }
            if !self.phy.nic.is_connected() {
                return Err(Error::Disconnected);
            }
            self.poll_or_wait(SLICE)?;
        }
    }

    /// Asks for an address by DHCPv4 and takes it, with the default route. Renewal goes on while polled.
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub fn dhcp(&mut self, timeout: Duration) -> Result<Lease, Error> {
        self.lease = None;
        match self.dhcp {
            Some(handle) => self.sockets.get_mut::<dhcpv4::Socket>(handle).reset(),
            None => self.dhcp = Some(self.sockets.add(dhcpv4::Socket::new())),
        }
        self.run_until("DHCP lease", timeout, |guest| guest.lease.clone())
    }

    fn take_dhcp_event(&mut self) {
        let Some(handle) = self.dhcp else { return };
        let (address, lease) = match self.sockets.get_mut::<dhcpv4::Socket>(handle).poll() {
            None => return,
            Some(dhcpv4::Event::Deconfigured) => (None, None),
            Some(dhcpv4::Event::Configured(config)) => {
                let lease = Lease {
                    address: config.address.address(),
                    prefix_len: config.address.prefix_len(),
                    gateway: config.router,
                    dns: config.dns_servers.to_vec(),
                    server: config.server.identifier,
                };
                (Some(config.address), Some(lease))
            }
        };
        self.take_ipv4(address, lease.as_ref().and_then(|l| l.gateway));
        self.lease = lease;
    }

    fn take_ipv4(&mut self, address: Option<Ipv4Cidr>, gateway: Option<Ipv4Addr>) {
        self.iface.update_ip_addrs(|list| {
            list.retain(|cidr| !matches!(cidr, IpCidr::Ipv4(_)));
            if let Some(address) = address {
                let _ = list.push(IpCidr::Ipv4(address));
            }
        });
        self.iface.routes_mut().remove_default_ipv4_route();
        if let Some(gateway) = gateway {
            // A table of 4 with one route of ours in it.
            let _ = self.iface.routes_mut().add_default_ipv4_route(gateway);
        }
    }

    /// Waits for an address from a router advertisement.
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub fn slaac(&mut self, timeout: Duration) -> Result<Ipv6Addr, Error> {
        self.run_until("router advertisement with a prefix", timeout, |guest| guest.ipv6())
    }

    /// Pings until an answer comes; returns its round trip.
    ///
    /// # Errors
    /// [`Error::Timeout`], or when the guest has no address of that version.
    pub fn ping(&mut self, to: impl Into<IpAddr>, timeout: Duration) -> Result<Duration, Error> {
        self.ping_with(to.into(), 56, 64, timeout)
    }

    /// Pings with `bytes` of payload and a given TTL or hop limit.
    ///
    /// # Errors
    /// As for [`Guest::ping`].
    pub fn ping_with(&mut self, to: IpAddr, bytes: usize, ttl: u8, timeout: Duration) -> Result<Duration, Error> {
        let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 4 * (bytes + 64)]);
        let mut socket = icmp::Socket::new(buffer(), buffer());
        socket.set_hop_limit(Some(ttl));
        let ident = self.take_port();
        socket.bind(icmp::Endpoint::Ident(ident)).map_err(|e| Error::Stack { what: format!("ping: {e}") })?;
        let handle = self.sockets.add(socket);
        let result = self.ping_on(handle, ident, to, bytes, timeout);
        self.sockets.remove(handle);
        result
    }

    fn ping_on(
        &mut self,
        handle: SocketHandle,
        ident: u16,
        to: IpAddr,
        bytes: usize,
        timeout: Duration,
    ) -> Result<Duration, Error> {
        let remote = IpAddress::from(to);
        let local = self
            .iface
            .get_source_address(&remote)
            .ok_or_else(|| Error::Stack { what: format!("ping to {to} without an address of its own") })?;
        let data: Vec<u8> = (0..bytes).map(|i| i as u8).collect();
        let request = echo_request(local, remote, ident, &data);
        let start = Instant::now();
        let mut sent: Option<Instant> = None;
        self.run_until(&format!("echo reply from {to}"), timeout, |guest| {
            let socket = guest.sockets.get_mut::<icmp::Socket>(handle);
            // The first answer is lost while the other side's stack resolves our address, so once is not enough.
            if sent.is_none_or(|at| at.elapsed() > PING_AGAIN) && socket.send_slice(&request, remote).is_ok() {
                sent = Some(Instant::now());
            }
            let (packet, from) = socket.recv().ok()?;
            let round_trip = || sent.unwrap_or(start).elapsed();
            (from == remote && packet.get(8..) == Some(&data[..]) && is_echo_reply(remote, packet)).then(round_trip)
        })
    }

    /// Serves TCP echo on a port whenever the guest is polled.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn tcp_echo_server(&mut self, port: u16) -> Result<(), Error> {
        Service::tcp_echo(self, port)
    }

    /// Swallows TCP on a port whenever the guest is polled.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn tcp_sink_server(&mut self, port: u16) -> Result<(), Error> {
        Service::tcp_sink(self, port)
    }

    /// Serves UDP echo on a port whenever the guest is polled.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn udp_echo_server(&mut self, port: u16) -> Result<(), Error> {
        Service::udp_echo(self, port)
    }

    /// Sends `bytes` to an echo server and verifies every octet that comes back.
    ///
    /// # Errors
    /// When the connection fails, the time is over, or an octet is wrong.
    pub fn tcp_transfer(
        &mut self,
        to: impl Into<IpAddr>,
        port: u16,
        bytes: u64,
        timeout: Duration,
    ) -> Result<Transfer, Error> {
        self.tcp_client(to.into(), port, bytes, true, timeout)
    }

    /// Sends `bytes` to a sink and waits until all are acknowledged.
    ///
    /// # Errors
    /// When the connection fails or the time is over.
    pub fn tcp_send(
        &mut self,
        to: impl Into<IpAddr>,
        port: u16,
        bytes: u64,
        timeout: Duration,
    ) -> Result<Transfer, Error> {
        self.tcp_client(to.into(), port, bytes, false, timeout)
    }

    fn tcp_client(
        &mut self,
        to: IpAddr,
        port: u16,
        bytes: u64,
        echo: bool,
        timeout: Duration,
    ) -> Result<Transfer, Error> {
        let handle = self.tcp_connect(to, port, timeout)?;
        let start = Instant::now();
        let (mut sent, mut back) = (0u64, 0u64);
        let mut wrong = None;
        let result = self.run_until(&format!("TCP transfer to {to} port {port}"), timeout, |guest| {
            let socket = guest.sockets.get_mut::<tcp::Socket>(handle);
            while sent < bytes && socket.can_send() {
                let count = socket.send(|room| fill(room, sent, bytes)).unwrap_or(0);
                sent += count as u64;
                if count == 0 {
                    break;
                }
            }
            while socket.can_recv() && wrong.is_none() {
                let taken = socket.recv(|data| {
                    let bad = data.iter().zip(back..).find(|&(&octet, at)| octet != pattern(at));
                    (data.len(), (data.len(), bad.map(|(_, at)| at)))
                });
                let Ok((count, bad)) = taken else { break };
                wrong = bad;
                back += count as u64;
            }
            let done = sent == bytes && if echo { back >= bytes } else { socket.send_queue() == 0 };
            let dead = !socket.is_active();
            (done || dead || wrong.is_some()).then_some(done)
        });
        let elapsed = start.elapsed();
        self.close(handle);
        match (result?, wrong) {
            (_, Some(at)) => Err(Error::Stack { what: format!("TCP octet {at}: it came back changed") }),
            (true, None) => Ok(Transfer { bytes, elapsed }),
            (false, None) => Err(Error::Stack { what: format!("TCP to {to} port {port}: closed by the other side") }),
        }
    }

    /// Opens a TCP connection; the handle is for [`Guest::tcp_socket`].
    ///
    /// # Errors
    /// When it is refused or does not stand in time.
    pub fn tcp_connect(&mut self, to: IpAddr, port: u16, timeout: Duration) -> Result<SocketHandle, Error> {
        let local = self.take_port();
        let handle = self.sockets.add(tcp_socket());
        let socket = self.sockets.get_mut::<tcp::Socket>(handle);
        let connected = socket.connect(self.iface.context(), (IpAddress::from(to), port), local);
        if let Err(e) = connected {
            self.sockets.remove(handle);
            return Err(Error::Stack { what: format!("TCP connect to {to} port {port}: {e}") });
        }
        let state = self.run_until(&format!("TCP connection to {to} port {port}"), timeout, |guest| {
            let socket = guest.sockets.get_mut::<tcp::Socket>(handle);
            (socket.may_send() || !socket.is_open()).then(|| socket.may_send())
        });
        match state {
            Ok(true) => Ok(handle),
            other => {
                self.sockets.remove(handle);
                other?;
                Err(Error::Stack { what: format!("TCP connect to {to} port {port}: refused") })
            }
        }
    }

    /// A socket opened before.
    pub fn tcp_socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut::<tcp::Socket>(handle)
    }

    /// Closes a connection and lets the end reach the other side.
    pub fn close(&mut self, handle: SocketHandle) {
        self.sockets.get_mut::<tcp::Socket>(handle).close();
        let gone = |guest: &mut Self| (!guest.sockets.get_mut::<tcp::Socket>(handle).may_recv()).then_some(());
        // The other side may be gone already; then there is nobody to tell.
        let _ = self.run_until("end of connection", Duration::from_millis(200), gone);
        self.sockets.remove(handle);
    }

    /// Sends one datagram and waits for the answer.
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub fn udp_exchange(
        &mut self,
        to: impl Into<IpAddr>,
        port: u16,
        payload: &[u8],
        timeout: Duration,
    ) -> Result<Vec<u8>, Error> {
        let to = to.into();
        let mut socket = udp_socket(payload.len().max(2048) + 64);
        let local = self.take_port();
        socket.bind(local).map_err(|e| Error::Stack { what: format!("UDP port {local}: {e}") })?;
        let sent = socket.send_slice(payload, (IpAddress::from(to), port));
        sent.map_err(|e| Error::Stack { what: format!("UDP to {to}: {e}") })?;
        let handle = self.sockets.add(socket);
        let answer = self.run_until(&format!("UDP answer from {to} port {port}"), timeout, |guest| {
            let socket = guest.sockets.get_mut::<udp::Socket>(handle);
            socket.recv().ok().map(|(data, _)| data.to_vec())
        });
        self.sockets.remove(handle);
        answer
    }

    /// Sends a raw frame past the stack.
    ///
    /// # Errors
    /// As for [`Nic::send_frame`].
    pub fn send_frame(&mut self, frame: &[u8], header: &VnetHeader) -> Result<(), Error> {
        self.phy.nic.send_frame(header, frame)
    }

    /// Takes a raw frame before the stack sees it: header and octets.
    ///
    /// # Errors
    /// As for [`Nic::recv_within`].
    pub fn recv_frame(&mut self, timeout: Duration) -> Result<(VnetHeader, Vec<u8>), Error> {
        let mut frame = Vec::new();
        let (_, header) = self.phy.nic.recv_within(timeout, &mut frame)?;
        Ok((header, frame))
    }

    /// Whether the guest's card negotiated a feature.
    pub fn has(&self, feature: u64) -> bool {
        self.phy.nic.features() & feature == feature
    }

    fn take_port(&mut self) -> u16 {
        let port = self.next_port;
        self.next_port = if port == u16::MAX { 49_152 } else { port + 1 };
        port
    }
}

/// Octet `at` of every transfer: its period shares no factor with any segment size.
fn pattern(at: u64) -> u8 {
    (at % 251) as u8
}

/// Fills `room` with the pattern from octet `sent`, up to `total`: how much, twice, as the socket wants it.
fn fill(room: &mut [u8], sent: u64, total: u64) -> (usize, usize) {
    let count = room.len().min(usize::try_from(total - sent).unwrap_or(usize::MAX));
    for (octet, at) in room[..count].iter_mut().zip(sent..) {
        *octet = pattern(at);
    }
    (count, count)
}

pub(crate) fn tcp_socket() -> tcp::Socket<'static> {
    let buffer = || tcp::SocketBuffer::new(vec![0; TCP_BUFFER_BYTES]);
    let mut socket = tcp::Socket::new(buffer(), buffer());
    socket.set_ack_delay(None);
    // Without it every loss in a full ring is followed by a whole window of losses.
    socket.set_congestion_control(tcp::CongestionControl::Reno);
    socket
}

pub(crate) fn udp_socket(bytes: usize) -> udp::Socket<'static> {
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 32], vec![0; 8 * bytes]);
    udp::Socket::new(buffer(), buffer())
}

fn echo_request(local: IpAddress, remote: IpAddress, ident: u16, data: &[u8]) -> Vec<u8> {
    let checksums = smoltcp::phy::ChecksumCapabilities::default();
    match (local, remote) {
        (IpAddress::Ipv6(src), IpAddress::Ipv6(dst)) => {
            let repr = Icmpv6Repr::EchoRequest { ident, seq_no: 1, data };
            let mut bytes = vec![0; repr.buffer_len()];
            repr.emit(&src, &dst, &mut Icmpv6Packet::new_unchecked(&mut bytes), &checksums);
            bytes
        }
        _ => {
            let repr = Icmpv4Repr::EchoRequest { ident, seq_no: 1, data };
            let mut bytes = vec![0; repr.buffer_len()];
            repr.emit(&mut Icmpv4Packet::new_unchecked(&mut bytes), &checksums);
            bytes
        }
    }
}

fn is_echo_reply(remote: IpAddress, packet: &[u8]) -> bool {
    let kind = if matches!(remote, IpAddress::Ipv4(_)) { 0 } else { 129 };
    packet.first() == Some(&kind)
}
