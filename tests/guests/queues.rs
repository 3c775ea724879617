//! Several queue pairs and several workers: nothing lost that fits into the rings, nothing twice, each flow in order
//! and on one queue; two workers that deliver into one port.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hostweave_guest::frames::{Frame, Path, Segment};
use hostweave_guest::{Guest, VnetHeader};
use hostweave_policy::model::Protocol;
use hostweave_switch::stage::DropReason;

use crate::support::{Host, PATIENCE, Up, eventually, only, paths};

const FLOWS: u32 = 24;
const ROUNDS: u32 = 60;

fn numbered(path: &Path, flow: u32, sequence: u32) -> Vec<u8> {
    path.udp(1_000 + flow as u16, 2_000, &[flow.to_be_bytes(), sequence.to_be_bytes()].concat())
}

/// Source port and sequence number of a numbered frame.
fn number(header: &VnetHeader, frame: &[u8]) -> (u32, u32) {
    let frame = Frame::parse(header, frame).unwrap();
    let payload = frame.udp_payload().unwrap();
    let word = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
    (word(0), word(4))
}

fn exchange(pairs: u16, workers: usize) {
    let mut host = Host::new(workers);
    let (a, b) = (host.port_in("default", "a", 10, pairs), host.port_in("default", "b", 11, pairs));
    let mut from = host.guest(&a).up();
    let mut to = host.guest(&b).up();
    let mut queue_of = HashMap::new();
    let mut next = HashMap::new();
    let mut frame = Vec::new();
    for path in paths(&a, &b) {
        for round in 0..ROUNDS {
            for flow in 0..FLOWS {
                let pair = (flow % u32::from(pairs)) as usize;
                from.nic().push_frame(pair, &VnetHeader::default(), &numbered(&path, flow, round)).unwrap();
            }
            (0..usize::from(pairs)).for_each(|pair| from.nic().flush(pair).unwrap());
            for _ in 0..FLOWS {
                let (queue, header) = to.nic().recv_within(PATIENCE, &mut frame).unwrap();
                let (flow, sequence) = number(&header, &frame);
                let key = (path.src.is_ipv4(), flow);
                assert_eq!(*queue_of.entry(key).or_insert(queue), queue, "flow {key:?} keeps its queue");
                let expected = next.entry(key).or_insert(0);
                assert_eq!(sequence, *expected, "flow {key:?} in order");
                *expected += 1;
            }
        }
    }
    assert!(to.nic().recv_frame(&mut frame).unwrap().is_none(), "nothing twice");
    let queues: std::collections::HashSet<_> = queue_of.values().collect();
    assert!(pairs == 1 || queues.len() > 1, "flows spread over queues: {queue_of:?}");
    from.nic().drain_tx(PATIENCE).unwrap();
    assert_eq!((from.nic().violations(), to.nic().violations()), (vec![], vec![]));
    let sent = u64::from(2 * ROUNDS * FLOWS);
    let totals = host.status("b").totals;
    assert_eq!((host.status("a").totals.forwarded, totals.transmitted, totals.tx_dropped_all()), (sent, sent, 0));
}

#[test]
fn one_queue_pair_on_one_worker() {
    exchange(1, 1);
}

#[test]
fn one_queue_pair_on_two_workers() {
    exchange(1, 2);
}

#[test]
fn four_queue_pairs_on_one_worker() {
    exchange(4, 1);
}

#[test]
fn four_queue_pairs_on_two_workers() {
    exchange(4, 2);
}

#[test]
fn queues_that_a_guest_does_not_use_get_nothing() {
    let mut host = Host::new(1);
    let (a, b) = (host.port("a", 10), host.port_in("default", "b", 11, 4));
    let mut from = host.guest(&a).up();
    let mut to = host.guest(&b).up();
    let path = paths(&a, &b)[0];
    let mut frame = Vec::new();
    for enabled in [1, 4, 2] {
        to.nic().enable_pairs(enabled).unwrap();
        to.nic().frontend.barrier().unwrap();
        for flow in 0..FLOWS {
            from.send_frame(&numbered(&path, flow, 0), &VnetHeader::default()).unwrap();
            let (queue, _) = to.nic().recv_within(PATIENCE, &mut frame).unwrap();
            assert!(queue < enabled, "queue {queue} of {enabled}");
        }
    }
}

/// Sends numbered frames as fast as it can until told to stop; returns how many.
fn flood(guest: &mut Guest, path: &Path, flow: u32, stop: &AtomicBool) -> u64 {
    let (mut sequence, start) = (0, Instant::now());
    // Its own end, too: the receiver may have failed.
    while !stop.load(Ordering::Relaxed) && start.elapsed() < PATIENCE / 4 {
        for _ in 0..16 {
            if guest.nic().push_frame(0, &VnetHeader::default(), &numbered(path, flow, sequence)).is_ok() {
                sequence += 1;
            }
        }
        guest.nic().flush(0).unwrap();
        std::thread::yield_now();
    }
    guest.nic().drain_tx(PATIENCE).unwrap();
    u64::from(sequence)
}

#[test]
fn two_workers_deliver_into_one_port_at_once() {
    let mut host = Host::new(2);
    let receiver = host.port("receiver", 10);
    let senders: Vec<_> = (0..4).map(|n| host.port(&format!("sender{n}"), 11 + n)).collect();
    let mut to = host.guest(&receiver).ring_size(1_024).up();
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut received = 0;
    let mut frame = Vec::new();
    std::thread::scope(|scope| {
        for (flow, spec) in senders.iter().enumerate() {
            let mut guest = host.guest(spec).up();
            let path = paths(spec, &receiver)[flow % 2];
            let (stop, sent) = (&stop, &sent);
            scope.spawn(move || sent.fetch_add(flood(&mut guest, &path, flow as u32, stop), Ordering::Relaxed));
        }
        let mut last: HashMap<u32, u32> = HashMap::new();
        let mut take = |frame: &mut Vec<u8>| {
            let Some((_, header)) = to.nic().recv_frame(frame).unwrap() else { return false };
            let (flow, sequence) = number(&header, frame);
            if let Some(before) = last.insert(flow, sequence) {
                assert!(sequence > before, "flow {flow}: {sequence} behind {before}");
            }
            received += 1;
            true
        };
        let start = Instant::now();
        while start.elapsed().as_millis() < 700 {
            take(&mut frame);
        }
        stop.store(true, Ordering::Relaxed);
        crate::support::eventually("rest", || {
            while take(&mut frame) {}
            let totals = host.status("receiver").totals;
            let forwarded: u64 = senders.iter().map(|spec| host.status(&spec.name).totals.forwarded).sum();
            totals.tx_queued == 0 && forwarded == totals.transmitted + totals.tx_dropped_all() && {
                std::thread::sleep(std::time::Duration::from_millis(5));
                !take(&mut frame) && totals == host.status("receiver").totals
            }
        });
    });
    let totals = host.status("receiver").totals;
    let lost =
        host.tx_dropped("receiver", DropReason::GuestRingFull) + host.tx_dropped("receiver", DropReason::GuestRingBusy);
    assert_eq!(totals.transmitted, received, "every frame that was counted arrived once");
    assert_eq!(totals.transmitted + lost, sent.load(Ordering::Relaxed));
    assert!(host.fabric.worker_reports().iter().all(|worker| worker.packets > 0), "both workers took part");
    assert_eq!(to.nic().violations(), []);
}

/// Sends a frame on a queue pair; returns the queue on which it arrives.
fn over(from: &mut Guest, pair: usize, frame: &[u8], to: &mut Guest) -> usize {
    from.nic().send_frame_on(pair, &VnetHeader::default(), frame).unwrap();
    let mut received = Vec::new();
    to.nic().recv_within(PATIENCE, &mut received).unwrap().0
}

#[test]
fn replies_arrive_on_the_queue_on_which_the_guest_last_sent_the_flow() {
    let mut host = Host::new(2);
    let (a, b) = (host.port_in("default", "a", 10, 4), host.port_in("default", "b", 11, 4));
    let (mut guest_a, mut guest_b) = (host.guest(&a).up(), host.guest(&b).up());
    for (there, back) in paths(&a, &b).into_iter().zip(paths(&b, &a)) {
        let ask = |flow: usize| there.udp(1_000 + flow as u16, 2_000, b"?");
        let answer = |flow: usize| back.udp(2_000, 1_000 + flow as u16, b"!");
        for flow in 0..16 {
            // Every pair of queues, and so every pair of workers.
            let (pair_a, pair_b) = (flow % 4, flow / 4);
            over(&mut guest_a, pair_a, &ask(flow), &mut guest_b);
            assert_eq!(over(&mut guest_b, pair_b, &answer(flow), &mut guest_a), pair_a, "flow {flow}: the answer");
            assert_eq!(over(&mut guest_a, pair_a, &ask(flow), &mut guest_b), pair_b, "flow {flow}: from then on");
        }
        // The guest moves a flow to another queue (its thread went to another CPU): the answers follow within a second.
        for flow in 0..4 {
            let moved = (flow + 1) % 4;
            eventually("the answers follow", || {
                std::thread::sleep(Duration::from_millis(50));
                over(&mut guest_a, moved, &ask(flow), &mut guest_b);
                over(&mut guest_b, 0, &answer(flow), &mut guest_a) == moved
            });
        }
    }
}

#[test]
fn one_tcp_connection_whose_directions_two_workers_have_keeps_one_state() {
    const ROUNDS: u32 = 40;
    let mut host = Host::new(2);
    let (a, b) = (host.port_in("default", "a", 10, 4), host.port_in("default", "b", 11, 4));
    host.desired.policy.policies = vec![only("test", &[(Protocol::Tcp, 80)])];
    host.apply();
    let (mut guest_a, mut guest_b) = (host.guest(&a).up(), host.guest(&b).up());
    let head =
        |from: u16, to: u16, seq, ack, flags| Segment { src_port: from, dst_port: to, seq, ack, flags, window: 4_000 };
    for (there, back) in paths(&a, &b).into_iter().zip(paths(&b, &a)) {
        for flow in 0..16 {
            let (pair_a, pair_b, port) = (usize::from(flow) % 4, usize::from(flow) / 4, 1_000 + flow);
            over(&mut guest_a, pair_a, &there.tcp(&head(port, 80, 100, 0, 2), &[]), &mut guest_b);
            over(&mut guest_b, pair_b, &back.tcp(&head(80, port, 500, 101, 18), &[]), &mut guest_a);
            over(&mut guest_a, pair_a, &there.tcp(&head(port, 80, 101, 501, 16), &[]), &mut guest_b);
            // Far beyond the windows of the beginning: each worker has to see what the other has seen.
            for round in 0..ROUNDS {
                let (seq, ack) = (101 + round * 1_000, 501 + round * 900);
                over(&mut guest_a, pair_a, &there.tcp(&head(port, 80, seq, ack, 16), &[1; 1_000]), &mut guest_b);
                let segment = head(80, port, ack, seq + 1_000, 16);
                assert_eq!(over(&mut guest_b, pair_b, &back.tcp(&segment, &[2; 900]), &mut guest_a), pair_a);
            }
        }
    }
    for name in ["a", "b"] {
        assert_eq!(host.status(name).totals.dropped, [], "{name}");
    }
    // What began at 80 is not allowed any more: all end, whichever worker has the direction.
    host.desired.policy.policies = vec![only("test", &[])];
    host.apply();
    let (seq, ack) = (101 + ROUNDS * 1_000, 501 + ROUNDS * 900);
    let mut sent = 0;
    for (there, back) in paths(&a, &b).into_iter().zip(paths(&b, &a)) {
        for flow in 0..16 {
            let (pair_a, pair_b, port) = (usize::from(flow) % 4, usize::from(flow) / 4, 1_000 + flow);
            let first = there.tcp(&head(port, 80, seq, ack, 16), &[1; 10]);
            let second = back.tcp(&head(80, port, ack, seq, 16), &[2; 10]);
            let ((one, pair_one, frame_one), (two, pair_two, frame_two)) = match flow % 2 {
                0 => ((&mut guest_a, pair_a, first), (&mut guest_b, pair_b, second)),
                _ => ((&mut guest_b, pair_b, second), (&mut guest_a, pair_a, first)),
            };
            one.nic().send_frame_on(pair_one, &VnetHeader::default(), &frame_one).unwrap();
            one.nic().drain_tx(PATIENCE).unwrap();
            two.nic().send_frame_on(pair_two, &VnetHeader::default(), &frame_two).unwrap();
            sent += 1;
        }
    }
    let ended = |reason| host.dropped("a", reason) + host.dropped("b", reason);
    eventually("each connection ends at its first packet", || {
        (ended(DropReason::PolicyDenied), ended(DropReason::NoConnection)) == (sent, sent)
    });
}
