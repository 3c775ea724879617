//! NetworkPolicy as packets meet it: what the conformance cases leave open. Each test is named after its line in SEMANTICS, and
//! holds for IPv4 and IPv6.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};

use hostweave::fabric::spec::Established;
use hostweave_guest::VnetHeader;
use hostweave_guest::frames::{self, Body, Frame, L4, Path, Segment};
use hostweave_policy::model::{DefaultPolicy, Infrastructure};
use hostweave_switch::MacAddr;
use hostweave_switch::stage::DropReason;

use crate::scene::{DENIED, PASSED, Scene};
use crate::support::{PATIENCE, eventually, handshake, path_to};

const GATEWAYS: [&str; 2] = ["192.0.2.1", "2001:db8:1::1"];

/// NetworkPolicies of namespace `test`: name and spec, one a line.
fn policies(lines: &[(&str, &str)]) -> String {
    let one = |(name, spec): &(&str, &str)| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
             metadata: {{name: {name}, namespace: test}}\nspec: {{{spec}}}\n"
        )
    };
    lines.iter().map(one).collect::<Vec<_>>().join("---\n")
}

fn namespace(labels: &str) -> String {
    format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: test, labels: {{{labels}}}}}\n")
}

/// Nobody begins anything with `b`, nor `b` with anybody.
const CLOSED: (&str, &str) = ("closed", "podSelector: {matchLabels: {app: b}}, policyTypes: [Ingress, Egress]");
/// `a` reaches `b` on TCP and UDP 80.
const OPEN: (&str, &str) = (
    "open",
    "podSelector: {matchLabels: {app: b}}, ingress: [{from: [{podSelector: {matchLabels: {app: a}}}], \
     ports: [{port: 80}, {port: 80, protocol: UDP}]}]",
);
/// Nobody begins anything with `a`.
const SHY: (&str, &str) = ("shy", "podSelector: {matchLabels: {app: a}}, policyTypes: [Ingress]");

#[test]
fn np6_labels_of_ports_and_namespaces_are_matched_as_they_are_now() {
    let mut scene = Scene::new(&["a", "b"]);
    let of = |from: &str| format!("podSelector: {{matchLabels: {{app: b}}}}, ingress: [{{from: [{from}]}}]");
    scene.policies(&policies(&[("p", &of("{podSelector: {matchLabels: {role: client}}}"))]));
    assert_eq!(scene.udp(0, 1, 80), DENIED);
    scene.label(0, "app=a role=client");
    assert_eq!(scene.udp(0, 1, 80), PASSED);
    scene.label(0, "app=a role=other");
    assert_eq!(scene.udp(0, 1, 80), DENIED);
    // The policy no longer selects the receiver.
    scene.label(1, "app=c");
    assert_eq!(scene.udp(0, 1, 80), PASSED);
    scene.label(1, "app=b");
    let by_namespace = policies(&[("p", &of("{namespaceSelector: {matchLabels: {team: x}}}"))]);
    for (labels, fate) in [("", DENIED), ("team: x", PASSED), ("team: y", DENIED)] {
        scene.policies(&(by_namespace.clone() + &namespace(labels)));
        assert_eq!(scene.udp(0, 1, 80), fate, "{labels}");
    }
}

#[test]
fn np22_replies_pass_whatever_is_said_of_their_direction() {
    let mut scene = Scene::new(&["a", "b"]);
    scene.policies(&policies(&[CLOSED, OPEN, SHY]));
    assert_eq!(scene.both(0, 1, |path| path.udp(1_000, 80, b"ask")), PASSED);
    assert_eq!(scene.both(1, 0, |path| path.udp(80, 1_000, b"answer")), PASSED);
    assert_eq!(scene.both(1, 0, |path| path.udp(80, 1_001, b"no answer")), DENIED);
    assert_eq!(scene.both(1, 0, |path| path.udp(81, 1_000, b"no answer")), DENIED);
    for path in scene.paths(0, 1) {
        let [from, to] = scene.guests.get_disjoint_mut([0, 1]).unwrap();
        let data = handshake(from, to, &path, 1_000, 80);
        let back = Path::new(to.mac(), MacAddr::ROUTER.0, path.dst, path.src);
        let segment = Segment { src_port: 80, dst_port: 1_000, seq: data.ack, ack: data.seq, ..data };
        assert_eq!(scene.deliver(1, 0, &back, &back.tcp(&segment, b"answer")), PASSED);
    }
}

#[test]
fn np23_icmp_errors_about_an_allowed_flow_pass_and_others_do_not() {
    let mut scene = Scene::new(&["a", "b", "c"]);
    scene.policies(&policies(&[CLOSED, OPEN, SHY]));
    // "Fragmentation needed" or "packet too big", which path MTU discovery needs, and "port unreachable".
    let errors = |path: &Path, quoted: &[u8]| -> [Vec<u8>; 2] {
        match path.src {
            IpAddr::V4(_) => [path.icmp(3, 4, [0, 0, 5, 0], quoted), path.icmp(3, 3, [0; 4], quoted)],
            IpAddr::V6(_) => [path.icmp(2, 0, [0, 0, 5, 0], quoted), path.icmp(1, 4, [0; 4], quoted)],
        }
    };
    for (there, back) in scene.paths(0, 1).into_iter().zip(scene.paths(1, 0)) {
        let sent = there.udp(1_000, 80, b"ask");
        assert_eq!(scene.deliver(0, 1, &there, &sent), PASSED);
        for error in errors(&back, &sent[frames::ETHER_BYTES..]) {
            assert_eq!(scene.deliver(1, 0, &back, &error), PASSED);
        }
        // About a flow that never was; and about one that was, from somebody else.
        let never = there.udp(1_000, 81, b"ask");
        for error in errors(&back, &never[frames::ETHER_BYTES..]) {
            assert_eq!(scene.fate(1, &error), Err(DropReason::IcmpUnrelated));
        }
        let stranger = path_to(&scene.host.desired.ports[2], there.src);
        for error in errors(&stranger, &sent[frames::ETHER_BYTES..]) {
            assert_eq!(scene.fate(2, &error), Err(DropReason::IcmpUnrelated));
        }
    }
}

#[test]
fn np24_a_port_is_not_blocked_from_itself() {
    let mut scene = Scene::new(&["a", "b"]);
    scene.policies(&policies(&[("nothing", "podSelector: {}, policyTypes: [Ingress, Egress]")]));
    scene.host.desired.policy.default = DefaultPolicy::Deny;
    scene.host.apply();
    assert_eq!(scene.udp(1, 1, 80), PASSED);
    assert_eq!(scene.udp(0, 1, 80), DENIED);
}

#[test]
fn np25_echo_and_other_protocols_need_a_rule_without_ports() {
    const GRE: u8 = 47;
    const SCTP: u8 = 132;
    let sctp =
        |path: &Path| path.ip(SCTP, &[&[4, 0, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0][..], &[1, 0, 0, 20], &[1; 16]].concat());
    let mut scene = Scene::new(&["a", "b"]);
    let with = |ports: &str| {
        format!("podSelector: {{matchLabels: {{app: b}}}}, ingress: [{{from: [{{podSelector: {{}}}}]{ports}}}]")
    };
    for (id, (ports, others, sctp_fate)) in (1..).zip([
        (", ports: [{port: 80}, {protocol: UDP}]", DENIED, DENIED),
        (", ports: [{protocol: SCTP}]", DENIED, PASSED),
        ("", PASSED, PASSED),
        (", ports: []", PASSED, PASSED),
    ]) {
        scene.policies(&policies(&[("p", &with(ports))]));
        assert_eq!(scene.both(0, 1, |path| path.echo_request(id, 1, b"ping")), others, "{ports}");
        assert_eq!(scene.both(0, 1, |path| path.ip(GRE, &[0; 16])), others, "{ports}");
        assert_eq!(scene.both(0, 1, sctp), sctp_fate, "{ports}");
        // No connection of an earlier turn may let it pass again.
        scene.policies(&policies(&[CLOSED]));
        assert_eq!(scene.both(0, 1, |path| path.ip(GRE, &[0; 16])), DENIED);
        assert_eq!(scene.both(0, 1, sctp), DENIED);
    }
}

/// Nobody is reached by the port `new`.
const MUTE: (&str, &str) = ("mute", "podSelector: {matchLabels: {app: new}}, policyTypes: [Egress]");
const EARLY_FRAMES: u64 = 50;

/// Every frame that `new` sent, from the first on, ended because of policy.
fn assert_silenced(scene: &Scene) {
    eventually("all frames are dealt with", || scene.host.status("new").totals.received >= EARLY_FRAMES);
    let totals = scene.host.status("new").totals;
    let [denied, pending] =
        [DropReason::PolicyDenied, DropReason::PolicyPending].map(|why| scene.host.dropped("new", why));
    assert_eq!((totals.forwarded, denied + pending), (0, totals.received), "{totals:?}");
}

fn send_early(guest: &mut hostweave_guest::Guest, path: &Path) {
    for n in 0..EARLY_FRAMES {
        guest.send_frame(&path.udp(n as u16 + 1, 80, b"early"), &VnetHeader::default()).unwrap();
    }
}

#[test]
fn np30_a_new_port_passes_nothing_before_its_policy() {
    let mut scene = Scene::new(&["a", "b"]);
    scene.policies(&policies(&[MUTE]));
    for _ in 0..10 {
        let mut spec = scene.host.spec("default", "new", 20, 1);
        spec.labels.insert("app".into(), "new".into());
        let builder = scene.host.guest(&spec);
        let path = path_to(&spec, scene.host.desired.ports[0].v4[0]);
        // The guest is there before the port is, and sends as soon as its rings are set up.
        let guest = std::thread::spawn(move || {
            let mut guest = retry(|| builder.clone().connect());
            send_early(&mut guest, &path);
            guest
        });
        scene.host.desired.ports.push(spec.into());
        scene.host.apply();
        let guest = guest.join().unwrap();
        assert_silenced(&scene);
        drop(guest);
        scene.host.desired.ports.pop();
        scene.host.apply();
    }
}

#[test]
fn np30_a_port_passes_nothing_before_its_policy_after_a_restart() {
    let mut scene = Scene::new(&["a", "new"]);
    scene.policies(&policies(&[MUTE]));
    let mut guest = scene.guests.pop().unwrap();
    let path = scene.paths(1, 0)[0];
    let guest = std::thread::spawn(move || {
        while guest.nic().is_connected() {
            std::thread::sleep(std::time::Duration::from_micros(100));
        }
        retry(|| guest.nic().reconnect());
        send_early(&mut guest, &path);
        guest
    });
    scene.host.restart();
    let guest = guest.join().unwrap();
    assert_silenced(&scene);
    drop(guest);
}

fn retry<T, E>(mut attempt: impl FnMut() -> Result<T, E>) -> T {
    let mut result = None;
    eventually("the backend is there", || {
        result = attempt().ok();
        result.is_some()
    });
    result.unwrap()
}

#[test]
fn np31_recheck_cuts_on_the_next_packet_and_nothing_that_is_still_allowed() {
    let mut scene = Scene::new(&["a", "b"]);
    for next in [0, 1] {
        scene.policies(&policies(&[CLOSED, OPEN]));
        let there = |path: &Path| path.udp(1_000 + next, 80, b"ask");
        let back = |path: &Path| path.udp(80, 1_000 + next, b"answer");
        assert_eq!((scene.both(0, 1, there), scene.both(1, 0, back)), (PASSED, PASSED));
        // Another policy changes: what both allow goes on, in both directions.
        scene.policies(&policies(&[CLOSED, OPEN, SHY]));
        assert_eq!((scene.both(0, 1, there), scene.both(1, 0, back)), (PASSED, PASSED));
        // Whoever sends next is cut.
        scene.policies(&policies(&[CLOSED, SHY]));
        assert_eq!(if next == 0 { scene.both(0, 1, there) } else { scene.both(1, 0, back) }, DENIED);
        assert_eq!((scene.both(0, 1, there), scene.both(1, 0, back)), (DENIED, DENIED));
    }
    // TCP: the segment in the middle of a connection is cut, not taken for a new one.
    scene.policies(&policies(&[CLOSED, OPEN]));
    let paths = scene.paths(0, 1);
    let mut segments = Vec::new();
    for path in &paths {
        let [from, to] = scene.guests.get_disjoint_mut([0, 1]).unwrap();
        segments.push(handshake(from, to, path, 1_000, 80));
    }
    scene.policies(&policies(&[CLOSED]));
    for (path, segment) in paths.iter().zip(&segments) {
        assert_eq!(scene.fate(0, &path.tcp(segment, b"more")), DENIED);
        assert_eq!(scene.fate(0, &path.tcp(segment, b"more")), Err(DropReason::NoConnection));
    }
}

#[test]
fn np31_keep_lets_established_connections_live() {
    let mut scene = Scene::new(&["a", "b"]);
    scene.host.desired.established = Established::Keep;
    scene.policies(&policies(&[CLOSED, OPEN]));
    assert_eq!(scene.both(0, 1, |path| path.udp(1_000, 80, b"ask")), PASSED);
    let paths = scene.paths(0, 1);
    let mut segments = Vec::new();
    for path in &paths {
        let [from, to] = scene.guests.get_disjoint_mut([0, 1]).unwrap();
        segments.push(handshake(from, to, path, 1_000, 80));
    }
    scene.policies(&policies(&[CLOSED]));
    assert_eq!(scene.both(1, 0, |path| path.udp(80, 1_000, b"answer")), PASSED);
    assert_eq!(scene.both(0, 1, |path| path.udp(1_000, 80, b"more")), PASSED);
    for (path, segment) in paths.iter().zip(&segments) {
        assert_eq!(scene.deliver(0, 1, path, &path.tcp(segment, b"more")), PASSED);
    }
    assert_eq!(scene.both(0, 1, |path| path.udp(1_001, 80, b"ask")), DENIED, "a new flow");
    // With the next change to `recheck` it is over.
    scene.host.desired.established = Established::Recheck;
    scene.host.apply();
    assert_eq!(scene.both(0, 1, |path| path.udp(1_000, 80, b"more")), DENIED);
}

#[test]
fn np33_no_packet_is_judged_by_half_of_a_change() {
    const TURNS: u16 = 400;
    let mut scene = Scene::new(&["a", "b"]);
    let open = |port: u16| {
        let rule = format!("ingress: [{{ports: [{{port: {port}, protocol: UDP}}]}}]");
        let name = if port == 1 { "one" } else { "two" };
        (name, format!("podSelector: {{matchLabels: {{app: b}}}}, {rule}"))
    };
    let mut halves = Vec::new();
    for (name, spec) in [open(1), open(2)] {
        scene.policies(&policies(&[(name, &spec)]));
        halves.push(scene.host.desired.clone());
    }
    let (fabric, stop) = (std::sync::Arc::clone(&scene.host.fabric), AtomicBool::new(false));
    let before = scene.host.status("a").totals;
    let sent = std::thread::scope(|scope| {
        let changer = scope.spawn(|| {
            let mut changes = 0;
            while !stop.load(Ordering::Relaxed) {
                halves.iter().for_each(|half| fabric.apply(half).unwrap());
                changes += 2;
            }
            changes
        });
        let paths = paths_of(&halves[0]);
        let mut sent = 0;
        for turn in 0..TURNS {
            // Both are published at once and so in one burst, which meets one set of policies: it allows one of them.
            for path in &paths {
                for dst_port in [1, 2] {
                    let frame = path.udp(1_000 + turn, dst_port, b"?");
                    scene.guests[0].nic().push_frame(0, &VnetHeader::default(), &frame).unwrap();
                    sent += 1;
                }
            }
            scene.guests[0].nic().flush(0).unwrap();
            let due = before.received + sent;
            eventually("the burst is dealt with", || {
                let now = scene.host.status("a").totals;
                now.received == due && now.input_closes()
            });
            let now = scene.host.status("a").totals;
            assert_eq!(now.forwarded - before.forwarded, sent / 2, "turn {turn}: neither or both");
            while scene.guests[1].recv_frame(std::time::Duration::ZERO).is_ok() {}
        }
        stop.store(true, Ordering::Relaxed);
        assert!(changer.join().unwrap() > 10, "policies changed meanwhile");
        sent
    });
    assert_eq!(scene.host.dropped("a", DropReason::PolicyDenied), sent / 2);
    scene.host.apply();
}

#[test]
fn np33_what_was_acknowledged_holds_for_the_next_packet() {
    let mut scene = Scene::new(&["a", "b"]);
    for turn in 0..200 {
        scene.policies(&policies(&[CLOSED]));
        assert_eq!(scene.udp(0, 1, 80), DENIED, "turn {turn}");
        scene.policies(&policies(&[CLOSED, OPEN]));
        assert_eq!(scene.udp(0, 1, 80), PASSED, "turn {turn}");
    }
}

fn paths_of(desired: &hostweave::fabric::spec::Desired) -> Vec<Path> {
    crate::support::paths(&desired.ports[0], &desired.ports[1])
}

#[test]
fn np34_np35_a_host_that_denies_by_default_still_serves_its_guests() {
    let mut scene = Scene::new(&["a", "b"]);
    scene.host.desired.policy.default = DefaultPolicy::Deny;
    scene.host.apply();
    assert_eq!((scene.udp(0, 1, 80), scene.udp(1, 0, 80)), (DENIED, DENIED));
    assert_eq!(scene.both(0, 1, |path| path.echo_request(1, 1, b"ping")), DENIED);
    // DHCP, router advertisements and solicitations, ARP and ND for the gateway, echo to it.
    let spec = scene.host.desired.ports[0].clone();
    scene.host.settle(&mut scene.guests[0], &spec);
    for gateway in GATEWAYS {
        scene.guests[0].ping(gateway.parse::<IpAddr>().unwrap(), PATIENCE).unwrap();
    }
    // DNS passes by a rule that can be switched off, other services of the gateway by none.
    let to_gateway = |scene: &mut Scene, dst_port: u16, src_port: u16| {
        let fates = GATEWAYS.map(|gateway| {
            let path = path_to(&spec, gateway.parse::<IpAddr>().unwrap());
            let fate = scene.fate(0, &path.udp(src_port, dst_port, b"?"));
            if fate.is_ok() {
                // Nobody serves DNS here: "port unreachable", related to the flow. A second answer to a ping may come first.
                let echo = |frame: &Frame| matches!(frame.body, Body::Ip { l4: L4::Icmp { kind: 0 | 129, .. }, .. });
                let answer = std::iter::repeat_with(|| scene.next(0)).find(|frame| !echo(frame)).unwrap();
                assert!(matches!(answer.body, Body::Ip { src, l4: L4::Icmp { .. }, .. } if src == path.dst));
            }
            fate
        });
        assert_eq!(fates[0], fates[1]);
        fates[0]
    };
    assert_eq!((to_gateway(&mut scene, 53, 1_000), to_gateway(&mut scene, 54, 1_000)), (PASSED, DENIED));
    scene.host.desired.policy.infrastructure = Infrastructure { dns: false, ..Infrastructure::default() };
    scene.host.apply();
    assert_eq!(to_gateway(&mut scene, 53, 1_001), DENIED);
    // One direction of each end allowed by policy is enough (SEMANTICS NP20); a namespace may be excepted.
    scene.policies(&policies(&[
        ("out", "podSelector: {matchLabels: {app: a}}, egress: [{to: [{podSelector: {matchLabels: {app: b}}}]}], policyTypes: [Egress]"),
        ("in", "podSelector: {matchLabels: {app: b}}, ingress: [{from: [{podSelector: {matchLabels: {app: a}}}]}]"),
    ]));
    assert_eq!((scene.udp(0, 1, 80), scene.udp(1, 0, 80)), (PASSED, DENIED));
    scene.policies(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: test, annotations: {hostweave.dev/default-policy: allow}}\n",
    );
    assert_eq!((scene.udp(0, 1, 80), scene.udp(1, 0, 80)), (PASSED, PASSED));
}

#[test]
fn np28_probes_from_the_gateway_pass_by_a_rule_that_can_be_switched_off() {
    let mut scene = Scene::new(&["a"]);
    scene.host.desired.policy.default = DefaultPolicy::Deny;
    scene.host.apply();
    let socket = scene.host.fabric.sockets().udp_bind("default", 9_999).unwrap();
    let addresses = crate::support::addresses(&scene.host.desired.ports[0]);
    let internal = "network/default/internal";
    let denied = |scene: &Scene| {
        let statuses = scene.host.fabric.port_statuses();
        let (_, status) = statuses.iter().find(|(name, _)| name == internal).unwrap();
        status
            .totals
            .dropped
            .iter()
            .filter(|(reason, _)| *reason == DropReason::PolicyDenied)
            .map(|(_, n)| *n)
            .sum::<u64>()
    };
    for (dst_port, address) in (1..).zip(&addresses) {
        let to = SocketAddr::new(*address, dst_port);
        scene.host.runtime.block_on(socket.send_to(b"alive?", None, to)).unwrap();
        assert!(matches!(scene.next(0).body, Body::Ip { l4: L4::Udp { .. }, .. }));
    }
    scene.host.desired.policy.infrastructure = Infrastructure { health_probes: false, ..Infrastructure::default() };
    scene.host.apply();
    for (count, address) in (1..).zip(&addresses) {
        let to = SocketAddr::new(*address, 100);
        scene.host.runtime.block_on(socket.send_to(b"alive?", None, to)).unwrap();
        eventually("the probe is denied", || denied(&scene) == count);
    }
}
