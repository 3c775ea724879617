//! What two kernels say to each other.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use super::netns::Netns;

/// Sends a datagram of `len` octets from `a` to `b` and back.
pub fn echo(a: &Netns, b: &Netns, to: &str, len: usize) {
    let address: SocketAddr = to.parse().unwrap();
    let (ready, listening) = std::sync::mpsc::channel();
    let server = b.inside(move || {
        let socket = UdpSocket::bind(address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        ready.send(()).unwrap();
        let mut octets = [0; 2_000];
        let (len, peer) = socket.recv_from(&mut octets).unwrap();
        socket.send_to(&octets[..len], peer).unwrap();
    });
    listening.recv().unwrap();
    let client = a.inside(move || {
        let socket = UdpSocket::bind(if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let sent: Vec<u8> = (0..len).map(|index| index as u8).collect();
        socket.send_to(&sent, address).unwrap();
        let mut octets = [0; 2_000];
        let received = socket.recv(&mut octets).unwrap();
        assert!(octets[..received] == sent[..]);
    });
    client.join().unwrap();
    server.join().unwrap();
}

/// Sends `len` octets of a pattern from `a` to `b` and compares them.
pub fn transfer(a: &Netns, b: &Netns, to: &str, len: usize) {
    let address: SocketAddr = to.parse().unwrap();
    let (ready, listening) = std::sync::mpsc::channel();
    let server = b.inside(move || {
        let listener = TcpListener::bind(address).unwrap();
        ready.send(()).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let mut octets = Vec::new();
        stream.read_to_end(&mut octets).unwrap();
        octets
    });
    listening.recv().unwrap();
    let pattern: Vec<u8> = (0..len).map(|index| ((index * 31) >> 3) as u8).collect();
    let sent = pattern.clone();
    let client = a.inside(move || {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap();
        stream.write_all(&sent).unwrap();
    });
    client.join().unwrap();
    assert!(server.join().unwrap() == pattern, "{to}: the octets differ");
}
