//! Connections that are there already: what a restart of the daemon and a change of policy leave of them (SEMANTICS CT1,
//! NP30, NP31).

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hostweave::fabric::spec::{Established, PortSpec};
use hostweave_guest::frames::{Frame, Path, Segment};
use hostweave_guest::{Guest, VnetHeader};
use hostweave_policy::model::{DefaultPolicy, Protocol};
use hostweave_switch::stage::DropReason;

use crate::floods::SetOnDrop;
use crate::support::{Host, PATIENCE, Up, eventually, only, paths};

/// Connections to each of [`PORTS`], of each family.
const EACH: u16 = 100;
const PORTS: [u16; 3] = [80, 81, 82];

/// A client and a server with bare segments, and the connections between them.
struct Pair {
    client: Guest,
    server: Guest,
    paths: Vec<(Path, Path)>,
}

/// Path, source port, destination port.
type Name = (usize, u16, u16);

fn names() -> Vec<Name> {
    let ports = PORTS.iter().flat_map(|port| (0..EACH).map(|i| (1_000 + i, *port)));
    ports.flat_map(|(src, dst)| (0..2).map(move |path| (path, src, dst))).collect()
}

impl Pair {
    fn new(host: &Host, a: &PortSpec, b: &PortSpec) -> Self {
        let guest = |spec| host.guest(spec).ring_size(1_024).up();
        Self { client: guest(a), server: guest(b), paths: paths(a, b).into_iter().zip(paths(b, a)).collect() }
    }

    /// A segment of the client or of the server: numbers as they are after the handshake, before any data.
    fn segment(&self, name: Name, client: bool, flags: u8, payload: &[u8]) -> Vec<u8> {
        let (path, src, dst) = name;
        let ((there, back), syn) = (self.paths[path], u32::from(flags & 2 != 0));
        if client {
            let ack = if flags & 16 == 0 { 0 } else { 501 };
            let (seq, window) = (101 - syn, 4_000);
            there.tcp(&Segment { src_port: src, dst_port: dst, seq, ack, flags, window }, payload)
        } else {
            let (seq, ack, window) = (501 - syn, 101, 4_000);
            back.tcp(&Segment { src_port: dst, dst_port: src, seq, ack, flags, window }, payload)
        }
    }

    /// Sends a segment of each connection, of the client or of the server; returns those that arrive.
    fn send(&mut self, names: &[Name], client: bool, flags: u8, payload: &[u8]) -> HashSet<Name> {
        let mut arrived = HashSet::new();
        let chunks = names.chunks(64);
        let last = chunks.len() - 1;
        for (number, some) in chunks.enumerate() {
            let frames: Vec<_> = some.iter().map(|name| self.segment(*name, client, flags, payload)).collect();
            let (from, to) = match client {
                true => (&mut self.client, &mut self.server),
                false => (&mut self.server, &mut self.client),
            };
            for frame in frames {
                from.nic().push_frame(0, &VnetHeader::default(), &frame).unwrap();
            }
            from.nic().flush(0).unwrap();
            from.nic().drain_tx(PATIENCE).unwrap();
            // All that is going to come has been delivered, or waits for another worker's hand for an instant.
            let mut frame = Vec::new();
            let patience = Duration::from_millis(if number < last { 5 } else { 100 });
            while let Ok((_, header)) = to.nic().recv_within(patience, &mut frame) {
                let parsed = Frame::parse(&header, &frame).unwrap();
                let Some((segment, data)) = parsed.tcp() else { continue };
                assert_eq!((segment.flags, data), (flags, payload));
                let (src, dst) = match client {
                    true => (segment.src_port, segment.dst_port),
                    false => (segment.dst_port, segment.src_port),
                };
                let path = usize::from(frame[12] != 8);
                assert!(arrived.insert((path, src, dst)), "nothing arrives twice");
            }
        }
        arrived
    }

    /// Opens all connections.
    fn open(&mut self, names: &[Name]) {
        for (client, flags) in [(true, 2), (false, 18), (true, 16)] {
            assert_eq!(self.send(names, client, flags, &[]).len(), names.len(), "flags {flags}");
        }
    }
}

fn to_port(port: u16) -> HashSet<Name> {
    names().into_iter().filter(|name| name.2 == port).collect()
}

/// A host on which these TCP ports may be reached, and no others.
fn host(ports: &[u16]) -> (Host, Pair) {
    let mut host = Host::new(2);
    host.desired.policy.default = DefaultPolicy::Deny;
    allow(&mut host, ports);
    let (a, b) = (host.port("a", 10), host.port("b", 11));
    let pair = Pair::new(&host, &a, &b);
    (host, pair)
}

fn allow(host: &mut Host, ports: &[u16]) {
    let ports: Vec<_> = ports.iter().map(|port| (Protocol::Tcp, *port)).collect();
    let mut policy = (*only("test", &ports)).clone();
    // Egress is open: one rule that names nobody.
    let rule = hostweave_policy::model::Rule { origin: String::new(), peers: Vec::new(), ports: Vec::new() };
    policy.egress = Some(vec![rule]);
    host.desired.policy.policies = vec![std::sync::Arc::new(policy)];
}

#[test]
fn ct1_np30_connections_survive_a_restart_and_those_that_policy_forbids_by_then_do_not() {
    for established in [Established::Recheck, Established::Keep] {
        let (mut host, mut pair) = host(&PORTS);
        host.desired.established = established;
        host.apply();
        pair.open(&names());
        // While nothing runs, 82 is forbidden.
        allow(&mut host, &PORTS[..2]);
        host.restart();
        for guest in [&mut pair.client, &mut pair.server] {
            eventually("the guest is connected again", || {
                guest.nic().is_connected() || guest.nic().reconnect().is_ok()
            });
            guest.nic().frontend.barrier().unwrap();
        }
        // Counters began anew. 80 is spoken to by the client, 81 by the server first.
        let (first, second, third) = (to_port(80), to_port(81), to_port(82));
        let list = |names: &HashSet<Name>| names.iter().copied().collect::<Vec<_>>();
        assert_eq!(pair.send(&list(&first), true, 16, b"on"), first);
        assert_eq!(pair.send(&list(&second), false, 16, b"on"), second);
        assert_eq!((host.status("a").totals.dropped, host.status("b").totals.dropped), (vec![], vec![]));
        assert_eq!(pair.send(&list(&third), false, 16, b"on"), HashSet::new());
        assert_eq!(
            host.dropped("b", DropReason::PolicyDenied),
            third.len() as u64,
            "each by its first packet, exactly"
        );
        assert_eq!(pair.send(&list(&third), true, 16, b"on"), HashSet::new());
        assert_eq!(host.dropped("a", DropReason::NoConnection), third.len() as u64, "and then there is none");
        // A connection that never was.
        let stray = [(0, 9_000, 80), (1, 9_000, 80)];
        assert_eq!(pair.send(&stray, true, 16, b"on"), HashSet::new());
        assert_eq!(host.dropped("a", DropReason::NoConnection), third.len() as u64 + 2);
        // What goes on is judged by the policy of now from here on, in both modes.
        assert_eq!(pair.send(&list(&first), false, 16, b"back"), first);
        assert_eq!(pair.send(&list(&second), true, 16, b"back"), second);
    }
}

#[test]
fn ct1_a_port_that_is_gone_by_the_restart_leaves_no_connection_to_the_next_with_its_address() {
    let (mut host, mut pair) = host(&PORTS);
    pair.open(&names());
    // Another port gets the address and the name: another identity.
    for spec in host.desired.ports.iter_mut().filter(|spec| spec.name == "b") {
        std::sync::Arc::make_mut(spec).uid = uuid::Uuid::new_v4();
    }
    host.restart();
    for guest in [&mut pair.client, &mut pair.server] {
        eventually("the guest is connected again", || guest.nic().is_connected() || guest.nic().reconnect().is_ok());
        guest.nic().frontend.barrier().unwrap();
    }
    assert_eq!(pair.send(&names(), true, 16, b"on"), HashSet::new());
    assert_eq!(host.dropped("a", DropReason::NoConnection), names().len() as u64);
    assert_eq!(pair.send(&names(), false, 16, b"on"), HashSet::new());
    assert_eq!(host.dropped("b", DropReason::NoConnection), names().len() as u64);
    pair.open(&names()[..10]);
}

#[test]
fn np31_a_policy_change_cuts_or_keeps_what_is_established() {
    for established in [Established::Recheck, Established::Keep] {
        let (mut host, mut pair) = host(&PORTS);
        host.desired.established = established;
        host.apply();
        pair.open(&names());
        allow(&mut host, &PORTS[..2]);
        host.apply();
        let kept: HashSet<_> =
            names().into_iter().filter(|name| name.2 != 82 || established == Established::Keep).collect();
        assert_eq!(pair.send(&names(), true, 16, b"on"), kept);
        assert_eq!(pair.send(&names(), false, 16, b"on"), kept);
        let cut = (names().len() - kept.len()) as u64;
        assert_eq!(host.dropped("a", DropReason::PolicyDenied), cut);
        assert_eq!(host.dropped("b", DropReason::NoConnection), cut);
        // New ones are judged by the policy of now.
        let new = [(0, 9_000, 82), (1, 9_000, 82)];
        assert_eq!(pair.send(&new, true, 2, &[]), HashSet::new());
        // The policy goes, and the host's default is left: a change like any other.
        host.desired.policy.policies.clear();
        host.apply();
        let left = if established == Established::Keep { kept } else { HashSet::new() };
        assert_eq!(pair.send(&names(), true, 16, b"on"), left);
    }
}

#[test]
fn np33_no_packet_is_lost_that_both_old_and_new_policy_allow() {
    let (mut host, mut pair) = host(&PORTS);
    let held: Vec<_> = to_port(80).into_iter().collect();
    pair.open(&held);
    let (begins, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let _stop = SetOnDrop(&stop);
        let (begins, stop) = (&begins, &stop);
        let traffic = scope.spawn(move || {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                // What is established, in both directions, and what begins: all of it arrives, each time.
                assert_eq!(pair.send(&held[..50], true, 16, b"on").len(), 50);
                assert_eq!(pair.send(&held[..50], false, 16, b"on").len(), 50);
                let new: Vec<_> = (0..60).map(|i| (i % 2, 2_000 + (number * 60 + i as u16) % 60_000, 81)).collect();
                assert_eq!(pair.send(&new, true, 2, &[]).len(), 60);
                number += 1;
                begins.fetch_add(60, Ordering::Relaxed);
            }
        });
        for round in 0..40 {
            let ports: &[u16] = if round % 2 == 0 { &[80, 81] } else { &[81, 83, 80, 82] };
            allow(&mut host, ports);
            if round % 5 == 0 {
                host.desired.policy.policies.push(only("elsewhere", &[]));
            }
            host.apply();
            std::thread::sleep(Duration::from_millis(15));
        }
        stop.store(true, Ordering::Relaxed);
        traffic.join().unwrap();
    });
    assert!(begins.load(Ordering::Relaxed) > 60);
    assert_eq!((host.status("a").totals.dropped, host.status("b").totals.dropped), (vec![], vec![]));
}
