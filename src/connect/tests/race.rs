//! Two workers begin one connection at once, from both of its ends: between one's look and its commit the other commits.

use hostweave_switch::connection::{NewConnection, Timeouts};
use hostweave_switch::tcp_track::Side;

use super::*;

/// Commits a connection each time that another one was looked for and not found.
pub(super) struct Between {
    connections: Arc<Connections>,
    new: NewConnection,
    now: u32,
    committed: usize,
}

impl Between {
    pub(super) fn new(host: &Host, new: NewConnection) -> Self {
        Self { connections: Arc::clone(&host.connections), new, now: host.now, committed: 0 }
    }
}

impl Recorder for Between {
    const MASKED: bool = false;
    fn stage(&mut self, name: &'static str, detail: Detail) {
        if name == "conn" && matches!(detail, Detail::Miss) {
            let mut free = FreeRecords::new();
            self.connections.commit(&self.new, &Timeouts::default(), &mut free, self.now).unwrap();
            self.committed += 1;
        }
    }
}

/// The connection that a frame of B begins at another host that is like this one.
fn begun_by_b(host: &Host, frame: &[u8]) -> NewConnection {
    let mut other = Host::new();
    assert_eq!(other.to(B, frame), Ok(A));
    new_connection(host, &other.entry())
}

/// The same connection as in the table of another host.
pub(super) fn new_connection(host: &Host, entry: &Entry) -> NewConnection {
    NewConnection {
        key: entry.key,
        hash: host.connections.keys().hash(&entry.key, entry.vni),
        vni: entry.vni,
        in_port: entry.in_port,
        out_port: entry.out_port,
        basis: entry.basis,
        epoch: host.plane.tables.epochs[0],
        queue: 0,
        side: entry.sides[0],
        translation: entry.translation,
        receiver_pays: false,
    }
}

/// A sends its first packet while B's commits; returns the host.
fn at_once(of_a: &[u8], of_b: &[u8]) -> Host {
    let mut host = Host::new();
    let new = begun_by_b(&host, of_b);
    let mut between = Between::new(&host, new);
    assert_eq!(host.send_with(0, A, of_a, &mut between).map(|way| way.0), Ok(B), "its first packet");
    assert_eq!(between.committed, 1);
    let entry = host.entry();
    assert_eq!((entry.in_port, entry.out_port), (B, A), "of both there is one");
    assert!(entry.seen[1] != 0, "which A has answered");
    host
}

#[test]
fn both_ends_begin_a_udp_connection_at_once() {
    both(|v6| {
        let mut host = at_once(&udp(A, B, v6, (1, 2)), &udp(B, A, v6, (2, 1)));
        assert_eq!(host.to(A, &udp(A, B, v6, (1, 2))), Ok(B));
        assert_eq!(host.to(B, &udp(B, A, v6, (2, 1))), Ok(A));
    });
}

#[test]
fn both_ends_begin_a_connection_by_address_pair_at_once() {
    both(|v6| {
        let frames = [(A, B), (B, A)].map(|(from, to)| path(from, to, v6).ip(253, b"whatever it is"));
        at_once(&frames[0], &frames[1]);
    });
}

#[test]
fn ct4_both_ends_open_a_tcp_connection_at_once_on_two_workers() {
    both(|v6| {
        let syn = |from, to, ports: (u16, u16), seq| {
            let segment = TcpHeader { src_port: ports.0, dst_port: ports.1, seq, flags: SYN, window: 1000, ack: 0 };
            path(from, to, v6).tcp(&segment, &[])
        };
        let mut host = at_once(&syn(A, B, (1000, 80), 100), &syn(B, A, (80, 1000), 500));
        let seen = host.entry().sides.map(|side| side.flags & Side::SEEN);
        assert_eq!(seen, [Side::SEEN; 2]);
        for (from, seq, ack, flags) in
            [(A, 100, 501, SYN | ACK), (B, 500, 101, SYN | ACK), (A, 101, 501, ACK), (B, 501, 101, ACK)]
        {
            let to = if from == A { B } else { A };
            let ports = if from == A { (1000, 80) } else { (80, 1000) };
            let segment = TcpHeader { src_port: ports.0, dst_port: ports.1, seq, flags, window: 1000, ack };
            assert_eq!(host.to(from, &path(from, to, v6).tcp(&segment, &[])), Ok(to));
        }
        host.entry();
    });
}

#[test]
fn a_reverse_that_comes_and_goes_is_looked_for_once() {
    both(|v6| {
        let mut host = Host::new();
        let mut new = begun_by_b(&host, &udp(B, A, v6, (2, 1)));
        // Of a port that has these addresses no more: whoever finds it ends it, and looks no further.
        (new.in_port, new.out_port) = (C, C);
        let mut between = Between::new(&host, new);
        let sent = host.send_with(0, A, &udp(A, B, v6, (1, 2)), &mut between);
        assert_eq!(sent, Err(DropReason::NatTupleTaken));
        assert_eq!(between.committed, 2);
    });
}
