//! Live migration on one host: a port with two attachments, of which the one whose guest runs has the traffic; the
//! dirty log; and what happens when a migration fails.

use std::collections::BTreeSet;

use hostweave::fabric::spec::{BackendSpec, PortSpec};
use hostweave_guest::frames::{Frame, Path};
use hostweave_guest::{Guest, GuestBuilder, Nic, VnetHeader, features};
use hostweave_switch::stage::DropReason;

use crate::support::{Host, PATIENCE, Up, eventually, handshake, paths};

const PAGE: usize = 4_096;

/// The VMM that a guest migrates to.
fn incoming(host: &Host, spec: &PortSpec) -> GuestBuilder {
    let BackendSpec::VhostUser { incoming_socket: Some(socket), .. } = &spec.backend else { panic!() };
    host.guest(spec).socket(socket)
}

/// A frame goes `path` from one guest to the other.
fn reaches(from: &mut Guest, to: &mut Guest, path: &Path, payload: &[u8]) {
    from.send_frame(&path.udp(1, 2, payload), &VnetHeader::default()).unwrap();
    loop {
        let (header, frame) = to.recv_frame(PATIENCE).unwrap();
        if Frame::parse(&header, &frame).unwrap().udp_payload() == Some(payload) {
            return;
        }
    }
}

/// Index of the socket that has the port's traffic: 0 main, 1 incoming.
fn active(host: &Host, spec: &PortSpec) -> Option<usize> {
    let BackendSpec::VhostUser { socket, .. } = &spec.backend else { panic!() };
    let attachments = host.status(&spec.name).attachments;
    let active: Vec<_> = attachments.iter().filter(|attachment| attachment.active).collect();
    assert_eq!(active.len(), 1, "{attachments:?}");
    (active[0].state == "running").then_some(usize::from(active[0].path != *socket))
}

#[test]
fn traffic_follows_a_guest_to_the_incoming_socket_and_back() {
    for pairs in [1, 2] {
        let mut host = Host::new(2);
        let (a, b) = (host.port_in("default", "a", 10, pairs), host.port_in("default", "b", 11, pairs));
        let mut peer = host.guest(&b).up();
        let mut guest = host.guest(&a).up();
        let (to, from) = (paths(&b, &a), paths(&a, &b));
        for round in 0..4u8 {
            assert_eq!(active(&host, &a), Some(usize::from(round % 2)));
            for path in &to {
                reaches(&mut peer, &mut guest, path, &[round, 1]);
            }
            for path in &from {
                reaches(&mut guest, &mut peer, path, &[round, 2]);
            }
            // The source stops first, as QEMU does; nothing is delivered to it from then on.
            guest.nic().stop().unwrap();
            let used = guest.nic().pairs[0].rx.ring.used_snapshot();
            peer.send_frame(&to[0].udp(1, 2, b"between"), &VnetHeader::default()).unwrap();
            eventually("the frame between", || {
                host.tx_dropped("a", DropReason::PortNotRunning) == u64::from(round) + 1
            });
            assert_eq!(guest.nic().pairs[0].rx.ring.used_snapshot(), used);
            assert_eq!(guest.nic().violations(), []);
            let there = if round % 2 == 0 { incoming(&host, &a) } else { host.guest(&a) };
            let destination = there.up();
            drop(std::mem::replace(&mut guest, destination));
        }
    }
}

#[test]
fn a_destination_that_starts_before_the_source_stops_has_the_traffic() {
    let mut host = Host::new(1);
    let (a, b) = (host.port("a", 10), host.port("b", 11));
    let mut peer = host.guest(&b).up();
    let mut source = host.guest(&a).up();
    let mut destination = incoming(&host, &a).up();
    assert_eq!(active(&host, &a), Some(1));
    let used = source.nic().pairs[0].rx.ring.used_snapshot();
    for path in paths(&b, &a) {
        reaches(&mut peer, &mut destination, &path, b"there");
    }
    source.nic().stop().unwrap();
    assert_eq!(source.nic().pairs[0].rx.ring.used_snapshot(), used);
    assert_eq!(active(&host, &a), Some(1), "the end of the source changes nothing");
    reaches(&mut destination, &mut peer, &paths(&a, &b)[1], b"from there");
}

#[test]
fn a_failed_migration_gives_the_traffic_back() {
    let mut host = Host::new(2);
    let (a, b) = (host.port("a", 10), host.port("b", 11));
    let mut peer = host.guest(&b).up();
    let mut source = host.guest(&a).up();
    let (to, from) = (paths(&b, &a)[0], paths(&a, &b)[1]);
    // It fails before the destination ran.
    let bases = source.nic().stop().unwrap();
    source.nic().resume(&bases).unwrap();
    source.nic().frontend.barrier().unwrap();
    reaches(&mut peer, &mut source, &to, b"one");
    // It fails when the destination ran, and the source goes on.
    let bases = source.nic().stop().unwrap();
    let mut destination = incoming(&host, &a).up();
    reaches(&mut peer, &mut destination, &to, b"two");
    drop(destination);
    source.nic().resume(&bases).unwrap();
    source.nic().frontend.barrier().unwrap();
    assert_eq!(active(&host, &a), Some(0));
    reaches(&mut peer, &mut source, &to, b"three");
    reaches(&mut source, &mut peer, &from, b"four");
    // The destination ends while the source never stopped.
    let destination = incoming(&host, &a).up();
    assert_eq!(active(&host, &a), Some(1));
    drop(destination);
    eventually("the source is active again", || active(&host, &a) == Some(0));
    reaches(&mut peer, &mut source, &to, b"five");
    reaches(&mut source, &mut peer, &from, b"six");
    assert_eq!((source.nic().violations(), peer.nic().violations()), (vec![], vec![]));
}

/// All memory of a card, page by page, with its addresses.
fn snapshot(nic: &Nic) -> Vec<(u64, Vec<u8>)> {
    let regions = nic.memory.regions().iter().map(|region| (region.gpa(), region.len()));
    let read = |(gpa, len): (u64, usize)| {
        let mut octets = vec![0; len];
        nic.memory.read(gpa, &mut octets).unwrap();
        octets.chunks(PAGE).enumerate().map(|(page, octets)| (gpa + (page * PAGE) as u64, octets.to_vec())).collect()
    };
    regions.flat_map::<Vec<_>, _>(read).collect()
}

#[test]
fn the_dirty_log_misses_no_page_that_was_written() {
    for mergeable in [true, false] {
        let mut host = Host::new(1);
        let (a, b) = (host.port("a", 10), host.port("b", 11));
        let mut from = host.guest(&a).up();
        let builder = host.guest(&b).ring_size(64);
        let mut to = if mergeable { builder } else { builder.without(features::MRG_RXBUF) }.up();
        to.nic().start_logging().unwrap();
        // Turning it on marks the used rings as a whole.
        to.nic().take_dirty_pages().unwrap();
        for (version, path) in paths(&a, &b).into_iter().enumerate() {
            // No octet is written again as it was: a changed page shows.
            let fill = |n: usize, len: usize| vec![(16 * (version + 1) + n) as u8; len];
            let segment = handshake(&mut from, &mut to, &path, 1, 2);
            to.nic().take_dirty_pages().unwrap();
            let frames = [
                (VnetHeader::default(), path.udp(1, 2, &fill(0, 20))),
                (VnetHeader::default(), path.udp(1, 2, &fill(1, 1_400))),
                path.tcp_gso(&segment, &fill(2, 20_000), 1_440),
                path.tcp_gso(&segment, &fill(3, 60_000), 1_440),
            ];
            for (header, frame) in frames {
                let before = snapshot(to.nic());
                from.send_frame(&frame, &header).unwrap();
                let mut dirty = BTreeSet::new();
                let mut missing = Vec::new();
                eventually("every changed page is in the log", || {
                    let now = snapshot(to.nic());
                    let changed = before.iter().zip(&now).filter(|(old, new)| old != new).map(|(old, _)| old.0);
                    let changed: Vec<u64> = changed.collect();
                    dirty.extend(to.nic().take_dirty_pages().unwrap());
                    missing = changed.iter().filter(|page| !dirty.contains(page)).copied().collect();
                    changed.len() > frame.len() / PAGE
                        && missing.is_empty()
                        && to.nic().pairs[0].rx.ring.used_count() > 0
                });
                to.recv_frame(PATIENCE).unwrap();
                // What it sends writes its used ring.
                let used = to.nic().pairs[0].tx.ring.layout().used & !(PAGE as u64 - 1);
                to.nic().take_dirty_pages().unwrap();
                to.send_frame(&paths(&b, &a)[0].udp(3, 4, b"back"), &VnetHeader::default()).unwrap();
                to.nic().drain_tx(PATIENCE).unwrap();
                eventually("the used ring is in the log", || to.nic().take_dirty_pages().unwrap().contains(&used));
                from.recv_frame(PATIENCE).unwrap();
            }
        }
        to.nic().stop_logging().unwrap();
        to.nic().take_dirty_pages().unwrap();
        reaches(&mut from, &mut to, &paths(&a, &b)[0], b"not logged any more");
        assert_eq!(to.nic().take_dirty_pages().unwrap(), [0u64; 0]);
        assert_eq!(to.nic().violations(), []);
    }
}
