//! TCP segments of connections (SEMANTICS CT1 to CT4).

use super::*;

/// A client of `B:80` with sequence numbers of its own.
fn segment(from: u32, seq: u32, ack: u32, flags: u8) -> TcpHeader {
    let (src_port, dst_port) = if from == B { (80, 1000) } else { (1000, 80) };
    TcpHeader { src_port, dst_port, seq, ack, flags, window: 1000 }
}

impl Host {
    fn tcp(&mut self, worker: usize, from: u32, v6: bool, seq: u32, ack: u32, flags: u8) -> Result<u32, DropReason> {
        let to = if from == B { A } else { B };
        let frame = path(from, to, v6).tcp(&segment(from, seq, ack, flags), &[]);
        self.send_with(worker, from, &frame, &mut Unwatched).map(|(to, _)| to)
    }

    /// Each direction on a worker of its own: `A` sends next at 101, `B` at 501.
    fn open(&mut self, v6: bool) {
        assert_eq!(self.tcp(0, A, v6, 100, 0, SYN), Ok(B));
        assert_eq!(self.tcp(1, B, v6, 500, 101, SYN | ACK), Ok(A));
        assert_eq!(self.tcp(0, A, v6, 101, 501, ACK), Ok(B));
    }
}

#[test]
fn ct1_only_a_syn_begins_a_connection() {
    both(|v6| {
        let mut host = Host::new();
        for flags in [ACK, SYN | ACK, FIN | ACK, RST, RST | ACK, 0, SYN | FIN, SYN | RST] {
            assert_eq!(host.tcp(0, A, v6, 100, 1, flags), Err(DropReason::NoConnection), "{flags:#x}");
        }
        assert_eq!(host.entries(), []);
        host.open(v6);
        assert_eq!(host.entries().len(), 1);
    });
}

#[test]
fn ct1_what_comes_after_the_connection_is_gone_is_dropped_on_both_workers() {
    both(|v6| {
        let mut host = Host::new();
        host.open(v6);
        let entry = host.entry();
        host.connections.remove(entry.index, entry.generation, Ending::Flushed);
        // In the same second, out of both caches.
        assert_eq!(host.tcp(0, A, v6, 101, 501, ACK), Err(DropReason::NoConnection));
        assert_eq!(host.tcp(1, B, v6, 501, 101, ACK), Err(DropReason::NoConnection));
    });
}

#[test]
fn ct2_a_reset_or_ack_out_of_the_window_changes_nothing() {
    both(|v6| {
        let mut host = Host::new();
        host.open(v6);
        let before = host.entry();
        assert_eq!(host.tcp(0, A, v6, 500_000, 501, RST), Err(DropReason::TcpOutOfWindow));
        assert_eq!(host.tcp(0, A, v6, 101, 900_000, ACK), Err(DropReason::TcpOutOfWindow));
        assert_eq!(host.tcp(1, B, v6, 900_000, 101, RST | ACK), Err(DropReason::TcpOutOfWindow));
        assert_eq!(host.entry(), before);
        // In the window but not exact: it passes, so that the other end challenges it, and ends nothing.
        assert_eq!(host.tcp(0, A, v6, 150, 501, RST), Ok(B));
        assert_eq!(host.entry(), before);
        assert_eq!(host.tcp(1, B, v6, 501, 101, ACK), Ok(A));
    });
}

#[test]
fn ct3_flags_that_no_tcp_sends_are_dropped_in_a_connection_too() {
    both(|v6| {
        let mut host = Host::new();
        host.open(v6);
        for flags in [0, SYN | FIN, SYN | RST, FIN, FIN | RST | ACK] {
            assert_eq!(host.tcp(0, A, v6, 101, 501, flags), Err(DropReason::TcpInvalid), "{flags:#x}");
        }
    });
}

#[test]
fn ct4_a_syn_after_the_end_opens_anew() {
    both(|v6| {
        let mut host = Host::new();
        host.open(v6);
        let first = host.entry();
        // Reset by B on the other worker; A's next SYN is a connection of its own.
        assert_eq!(host.tcp(1, B, v6, 501, 101, RST | ACK), Ok(A));
        host.now += 1;
        assert_eq!(host.tcp(0, A, v6, 9_000, 0, SYN), Ok(B));
        let second = host.entry();
        let identity = |entry: &Entry| (entry.index, entry.generation);
        assert_ne!(identity(&second), identity(&first));
        assert_eq!(second.created, 101);
        // Closed in order, TIME_WAIT: a SYN with a higher sequence number reopens, a lower one does not.
        assert_eq!(host.tcp(1, B, v6, 700, 9_001, SYN | ACK), Ok(A));
        assert_eq!(host.tcp(0, A, v6, 9_001, 701, FIN | ACK), Ok(B));
        assert_eq!(host.tcp(1, B, v6, 701, 9_002, FIN | ACK), Ok(A));
        assert_eq!(host.tcp(0, A, v6, 9_002, 702, ACK), Ok(B));
        let _ = host.tcp(0, A, v6, 8_000, 0, SYN);
        assert_eq!(identity(&host.entry()), identity(&second));
        assert_eq!(host.tcp(0, A, v6, 10_000, 0, SYN), Ok(B));
        assert_ne!(identity(&host.entry()), identity(&second));
    });
}

#[test]
fn ct4_policy_decides_about_a_syn_that_reopens() {
    both(|v6| {
        let mut host = Host::new();
        host.plane.tables.keep_established = true;
        host.open(v6);
        assert_eq!(host.tcp(0, A, v6, 101, 501, RST), Ok(B));
        host.allow_only(&[]);
        assert_eq!(host.tcp(0, A, v6, 9_000, 0, SYN), Err(DropReason::PolicyDenied));
        assert_eq!(host.entries(), []);
    });
}

#[test]
fn ct4_simultaneous_open() {
    both(|v6| {
        let mut host = Host::new();
        assert_eq!(host.tcp(0, A, v6, 100, 0, SYN), Ok(B));
        assert_eq!(host.tcp(1, B, v6, 500, 0, SYN), Ok(A));
        assert_eq!(host.tcp(0, A, v6, 100, 501, SYN | ACK), Ok(B));
        assert_eq!(host.tcp(1, B, v6, 500, 101, SYN | ACK), Ok(A));
        assert_eq!(host.tcp(0, A, v6, 101, 501, ACK), Ok(B));
        assert_eq!(host.tcp(1, B, v6, 501, 101, ACK), Ok(A));
        host.entry();
    });
}

#[test]
fn both_ends_begin_anew_at_once() {
    both(|v6| {
        let mut host = Host::new();
        host.open(v6);
        let old = host.entry();
        // A SYN-ACK that answers no SYN is out of the window, and changes nothing.
        assert_eq!(host.tcp(1, B, v6, 80_000_000, 70_000_001, SYN | ACK), Err(DropReason::TcpOutOfWindow));
        assert_eq!(host.entry(), old);
        // Both ends rebooted. A's SYN passes, as one to be challenged; B answers it as a new one.
        assert_eq!(host.tcp(0, A, v6, 70_000_000, 0, SYN), Ok(B));
        assert_eq!(host.tcp(1, B, v6, 80_000_000, 70_000_009, SYN | ACK), Err(DropReason::TcpOutOfWindow));
        assert_eq!(host.tcp(1, B, v6, 501, 101, ACK), Ok(A), "the old connection stands until then");
        assert_eq!(host.tcp(1, B, v6, 80_000_000, 70_000_001, SYN | ACK), Ok(A));
        assert_eq!(host.tcp(0, A, v6, 70_000_001, 80_000_001, ACK), Ok(B));
        assert_eq!(host.tcp(0, A, v6, 101, 501, ACK), Err(DropReason::TcpOutOfWindow), "and is gone now");
        assert_eq!(host.entry().index, old.index);
    });
}

#[test]
fn both_ends_begin_anew_at_once_from_the_other_side() {
    both(|v6| {
        for keep in [false, true] {
            let mut host = Host::new();
            host.plane.tables.keep_established = keep;
            host.open(v6);
            let old = host.entry();
            assert_eq!(host.tcp(0, A, v6, 70_000_000, 80_000_001, SYN | ACK), Err(DropReason::TcpOutOfWindow));
            assert_eq!(host.entry(), old);
            // This time B's SYN comes first, by which a connection begins that goes the other way.
            assert_eq!(host.tcp(1, B, v6, 80_000_000, 0, SYN), Ok(A));
            assert_eq!(host.tcp(0, A, v6, 70_000_000, 80_000_009, SYN | ACK), Err(DropReason::TcpOutOfWindow));
            assert_eq!(host.tcp(0, A, v6, 101, 501, ACK), Ok(B), "the old connection stands until then");
            assert_eq!(host.tcp(0, A, v6, 70_000_000, 80_000_001, SYN | ACK), Err(DropReason::TcpOutOfWindow));
            assert_eq!(host.entries(), [], "and is forgotten");
            // Both come again, as TCP does; policy decides about the first.
            host.now += 1;
            assert_eq!(host.tcp(0, A, v6, 70_000_000, 80_000_001, SYN | ACK), Err(DropReason::NoConnection));
            assert_eq!(host.tcp(1, B, v6, 80_000_000, 0, SYN), Ok(A));
            assert_eq!(host.tcp(0, A, v6, 70_000_000, 80_000_001, SYN | ACK), Ok(B));
            assert_eq!(host.tcp(1, B, v6, 80_000_001, 70_000_001, ACK), Ok(A));
            let new = host.entry();
            assert_eq!((new.in_port, new.out_port), (B, A));
            host.allow_only(&[80]);
            host.connections.remove(new.index, new.generation, Ending::Flushed);
            assert_eq!(host.tcp(1, B, v6, 80_000_000, 0, SYN), Err(DropReason::PolicyDenied), "B may not begin one");
        }
    });
}

#[test]
fn a_segment_that_is_dropped_does_not_prolong_its_connection() {
    both(|v6| {
        let mut host = Host::new();
        // Nor is it an answer.
        assert_eq!(host.tcp(0, A, v6, 100, 0, SYN), Ok(B));
        assert_eq!(host.tcp(1, B, v6, 500, 900, SYN | ACK), Err(DropReason::TcpOutOfWindow));
        assert_eq!(host.entry().seen, [100, 0]);
        let mut host = Host::new();
        host.open(v6);
        let before = host.entry();
        // On the worker whose cache has the flow, and on the other.
        for worker in [0, 1] {
            host.now += TRUST_S;
            assert_eq!(host.tcp(worker, A, v6, 500_000, 501, RST), Err(DropReason::TcpOutOfWindow));
            assert_eq!(host.tcp(worker, B, v6, 900_000, 101, ACK), Err(DropReason::TcpOutOfWindow));
            assert_eq!(host.entry(), before);
        }
        assert_eq!(host.tcp(0, A, v6, 101, 501, ACK), Ok(B));
        assert_eq!(host.entry().seen, [host.now, 100]);
    });
}

#[test]
fn ct1_loose_tcp_picks_up_what_policy_allows() {
    both(|v6| {
        let mut host = Host::new();
        assert_eq!(host.tcp(0, A, v6, 5_000, 9_000, ACK), Err(DropReason::NoConnection), "the default");
        host.plane.tables.loose_tcp = true;
        for flags in [SYN | ACK, FIN | ACK, RST, RST | ACK, 0] {
            assert_eq!(host.tcp(0, A, v6, 5_000, 9_000, flags), Err(DropReason::NoConnection), "{flags:#x}");
        }
        host.allow_only(&[443]);
        assert_eq!(host.tcp(0, A, v6, 5_000, 9_000, ACK), Err(DropReason::PolicyDenied));
        host.allow_only(&[80]);
        // The answerer speaks first: for policy that would be a connection of its own.
        assert_eq!(host.tcp(1, B, v6, 9_000, 5_000, ACK), Err(DropReason::PolicyDenied));
        assert_eq!(host.tcp(0, A, v6, 5_000, 9_000, ACK), Ok(B));
        assert_eq!(host.tcp(1, B, v6, 9_000, 5_000, ACK), Ok(A));
        let entry = host.entry();
        assert_eq!((entry.in_port, entry.out_port), (A, B));
        host.plane.tables.loose_tcp = false;
        host.publish();
        assert_eq!(host.tcp(0, A, v6, 5_000, 9_000, ACK), Ok(B), "what was picked up goes on");
        host.connections.remove(entry.index, entry.generation, Ending::Flushed);
        assert_eq!(host.tcp(0, A, v6, 5_000, 9_000, ACK), Err(DropReason::NoConnection));
    });
}

#[test]
fn both_ends_begin_anew_while_kept_connections_go_on() {
    both(|v6| {
        let mut host = Host::new();
        host.plane.tables.keep_established = true;
        host.open(v6);
        host.allow_only(&[]);
        // What was allowed goes on, but another connection is none of it.
        assert_eq!(host.tcp(0, A, v6, 70_000_000, 0, SYN), Ok(B));
        assert_eq!(host.tcp(1, B, v6, 80_000_000, 70_000_001, SYN | ACK), Err(DropReason::TcpOutOfWindow));
        assert_eq!(host.entries(), []);
        assert_eq!(host.tcp(0, A, v6, 70_000_000, 0, SYN), Err(DropReason::PolicyDenied));
    });
}

#[test]
fn both_directions_on_workers_of_their_own_keep_one_state() {
    both(|v6| {
        let mut host = Host::new();
        host.open(v6);
        for round in 0..200 {
            let (a, b) = (101 + round * 500, 501 + round * 700);
            let frame = path(A, B, v6).tcp(&segment(A, a, b, ACK), &[0; 500]);
            assert_eq!(host.send_with(0, A, &frame, &mut Unwatched).map(|way| way.0), Ok(B), "round {round}");
            let frame = path(B, A, v6).tcp(&segment(B, b, a + 500, ACK), &[0; 700]);
            assert_eq!(host.send_with(1, B, &frame, &mut Unwatched).map(|way| way.0), Ok(A), "round {round}");
        }
        // Far beyond what either first offered; and an old segment is one out of the window on either worker.
        for worker in [0, 1] {
            assert_eq!(host.tcp(worker, A, v6, 101, 501, ACK), Err(DropReason::TcpOutOfWindow));
            assert_eq!(host.tcp(worker, B, v6, 501, 101, ACK), Err(DropReason::TcpOutOfWindow));
        }
    });
}

#[test]
fn who_does_not_take_connections_is_noted() {
    both(|v6| {
        let mut host = Host::new();
        // Which connection it was is told by its place.
        let plain = |failed| Failed { connection: (0, 0), ..failed };
        let failed = |host: &Host| Vec::from_iter(host.connections.take_failures().map(plain));
        let vni = host.plane.tables.network(NETWORK).unwrap().vni;
        let b = |refused, created| Failed {
            vni,
            port: B,
            address: address(B, v6),
            l4: 80,
            asked: address(B, v6),
            proto: hostweave_switch::wire::proto::TCP,
            client_port: A,
            client: address(A, v6),
            refused,
            created,
            connection: (0, 0),
        };
        // Refused.
        assert_eq!(host.tcp(0, A, v6, 100, 0, SYN), Ok(B));
        assert_eq!(failed(&host), []);
        assert_eq!(host.tcp(1, B, v6, 0, 101, RST | ACK), Ok(A));
        assert_eq!((failed(&host), failed(&host)), (vec![b(true, host.now)], vec![]));
        // Silent: the SYN that comes after one second and the one after three.
        host.now += 20;
        assert_eq!(host.tcp(0, A, v6, 9_000, 0, SYN), Ok(B));
        host.now += 1;
        assert_eq!(host.tcp(0, A, v6, 9_000, 0, SYN), Ok(B));
        assert_eq!(failed(&host), []);
        host.now += 2;
        assert_eq!(host.tcp(0, A, v6, 9_000, 0, SYN), Ok(B));
        assert_eq!(failed(&host), [b(false, host.now - 3)]);
        // Answered after all, and reset later by either side; or given up by the client before it was open.
        assert_eq!(host.tcp(1, B, v6, 700, 9_001, SYN | ACK), Ok(A));
        assert_eq!(host.tcp(0, A, v6, 9_001, 701, ACK), Ok(B));
        host.now += 20;
        assert_eq!(host.tcp(0, A, v6, 9_001, 701, ACK), Ok(B));
        assert_eq!(host.tcp(1, B, v6, 701, 9_001, RST | ACK), Ok(A));
        assert_eq!(host.tcp(0, A, v6, 20_000, 0, SYN), Ok(B));
        assert_eq!(host.tcp(1, B, v6, 900, 20_001, SYN | ACK), Ok(A));
        assert_eq!(host.tcp(0, A, v6, 20_001, 901, RST), Ok(B));
        assert_eq!(failed(&host), []);
    });
}
