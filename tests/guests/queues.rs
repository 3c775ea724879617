//! Several queue pairs and several workers: nothing lost that fits into the rings, nothing twice, each flow in order
//! and on one queue; two workers that deliver into one port.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use hostweave_guest::frames::{Frame, Path};
use hostweave_guest::{Guest, VnetHeader};
use hostweave_switch::stage::DropReason;

use crate::support::{Host, PATIENCE, Up, paths};

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
