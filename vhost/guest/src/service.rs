//! What a guest offers to others while it is polled: TCP echo, TCP sink, UDP echo.
//!
//! A TCP service has a few listening sockets; one that was closed by its client listens again.

use smoltcp::iface::SocketHandle;
use smoltcp::socket::{tcp, udp};

use crate::Error;
use crate::guest::{Guest, tcp_socket, udp_socket};

/// Connections that a TCP service holds at once.
pub const CONNECTION_COUNT: usize = 4;

/// Largest datagram that UDP echo answers, in octets.
const DATAGRAM_BYTES_MAX: usize = 9000;

/// One service of a guest.
pub struct Service {
    kind: Kind,
    port: u16,
    sockets: Vec<SocketHandle>,
    bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    TcpEcho,
    TcpSink,
    UdpEcho,
}

impl Service {
    pub(crate) fn tcp_echo(guest: &mut Guest, port: u16) -> Result<(), Error> {
        Self::tcp(guest, port, Kind::TcpEcho)
    }

    pub(crate) fn tcp_sink(guest: &mut Guest, port: u16) -> Result<(), Error> {
        Self::tcp(guest, port, Kind::TcpSink)
    }

    fn tcp(guest: &mut Guest, port: u16, kind: Kind) -> Result<(), Error> {
        let mut sockets = Vec::new();
        for _ in 0..CONNECTION_COUNT {
            let mut socket = tcp_socket();
            socket.listen(port).map_err(|e| Error::Stack { what: format!("listening on TCP {port}: {e}") })?;
            sockets.push(guest.sockets.add(socket));
        }
        guest.services.push(Self { kind, port, sockets, bytes: 0 });
        Ok(())
    }

    pub(crate) fn udp_echo(guest: &mut Guest, port: u16) -> Result<(), Error> {
        let mut socket = udp_socket(DATAGRAM_BYTES_MAX);
        socket.bind(port).map_err(|e| Error::Stack { what: format!("UDP port {port}: {e}") })?;
        let sockets = vec![guest.sockets.add(socket)];
        guest.services.push(Self { kind: Kind::UdpEcho, port, sockets, bytes: 0 });
        Ok(())
    }

    /// Gives every service of a guest its turn; true when one moved octets.
    pub(crate) fn run_all(guest: &mut Guest) -> bool {
        let mut services = std::mem::take(&mut guest.services);
        let mut worked = false;
        for service in &mut services {
            let before = service.bytes;
            for i in 0..service.sockets.len() {
                let handle = service.sockets[i];
                match service.kind {
                    Kind::UdpEcho => service.run_udp(guest.sockets.get_mut::<udp::Socket>(handle)),
                    _ => service.run_tcp(guest.sockets.get_mut::<tcp::Socket>(handle)),
                }
            }
            worked |= service.bytes != before;
        }
        guest.services = services;
        worked
    }

    fn run_tcp(&mut self, socket: &mut tcp::Socket<'static>) {
        while socket.can_recv() {
            let room =
                if self.kind == Kind::TcpSink { usize::MAX } else { socket.send_capacity() - socket.send_queue() };
            let mut data = Vec::new();
            let taken = socket.recv(|octets| {
                let count = octets.len().min(room);
                data.extend_from_slice(&octets[..count]);
                (count, count)
            });
            match taken {
                Ok(count) if count > 0 => self.bytes += count as u64,
                _ => break,
            }
            if self.kind == Kind::TcpEcho && socket.send_slice(&data).is_err() {
                break;
            }
        }
        // The client has ended its direction: end ours when everything is answered.
        if socket.state() == tcp::State::CloseWait && !socket.can_recv() && socket.send_queue() == 0 {
            socket.close();
        }
        if !socket.is_open() {
            // Cannot fail on a closed socket and a port that was good before.
            let _ = socket.listen(self.port);
        }
    }

    fn run_udp(&mut self, socket: &mut udp::Socket<'static>) {
        while socket.can_recv() && socket.can_send() {
            let Ok((data, from)) = socket.recv().map(|(data, from)| (data.to_vec(), from)) else { break };
            self.bytes += data.len() as u64;
            if socket.send_slice(&data, from.endpoint).is_err() {
                break;
            }
        }
    }
}
