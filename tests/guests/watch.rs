//! `trace`, `ping`, `capture` and what a dry run says, on a host with guests.

use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use hostweave::control::endpoint::{Endpoint, Ends};
use hostweave::fabric::probe::{AnswerKind, ProbeReport, is_positive};
use hostweave::fabric::spec::Established;
use hostweave::observe::flow_event::{FlowEvent, FlowEventKind};
use hostweave::observe::flow_log::Entry;
use hostweave::observe::trace::{Request, Trace, run};
use hostweave::worker::capture::Drops;
use hostweave_guest::VnetHeader;
use hostweave_guest::frames::Frame;
use hostweave_policy::model::{NetworkPolicy, PolicyName, Selector};
use hostweave_switch::rate::{Rate, Rates};
use hostweave_switch::stage::DropReason;
use hostweave_switch::tables::PortId;

use crate::support::{Host, PATIENCE, Up, addresses, eventually, handshake, paths};

impl Host {
    fn request(&self, from: &str, to: &str) -> Request {
        let end = |field, text| Endpoint::parse(field, text, Some("test")).unwrap();
        let picture = self.fabric.picture();
        let ends = Ends { from: &end("from", from), to: &end("to", to), network: None };
        ends.resolve(&picture, &self.fabric.scene(&picture)).unwrap()
    }

    fn trace(&self, from: &str, to: &str) -> Trace {
        let picture = self.fabric.picture();
        run(&self.fabric.scene(&picture), &self.request(from, to)).unwrap()
    }

    fn ping(&self, from: &str, to: &str) -> ProbeReport {
        self.fabric.ping(&self.request(from, to), PATIENCE).unwrap()
    }

    /// Asks until there is an answer: a guest's first one may get lost while it looks for its neighbour.
    fn insist(&self, from: &str, to: &str) -> ProbeReport {
        let mut last = None;
        eventually("an answer", || {
            let report = self.fabric.ping(&self.request(from, to), Duration::from_millis(500)).unwrap();
            report.answer.is_some() && last.replace(report).is_none()
        });
        last.unwrap()
    }

    /// Isolates every port's ingress.
    fn deny_ingress(&mut self) {
        self.desired.policy.policies = vec![Arc::new(NetworkPolicy {
            name: PolicyName { namespace: Some("test".into()), name: "lock-down".into() },
            origin: "test.yaml:1".into(),
            selector: Selector::default(),
            ingress: Some(Vec::new()),
            egress: None,
            audit: false,
        })];
    }
}

#[test]
fn a_probe_is_answered_by_the_other_guest_and_never_seen_by_its_own() {
    for workers in [1, 2] {
        let mut host = Host::new(workers);
        let (a, b) = (host.port("a", 10), host.port("b", 11));
        let mut guest_a = host.guest(&a).up();
        let mut guest_b = host.guest(&b).up();
        host.settle(&mut guest_a, &a);
        host.settle(&mut guest_b, &b);
        guest_b.tcp_echo_server(7).unwrap();
        let running = guest_b.spawn("b", false).unwrap();
        for address in addresses(&b) {
            let to =
                |port: &str| if address.is_ipv6() { format!("[{address}]{port}") } else { format!("{address}{port}") };
            host.insist("a", &to("/icmp"));
            let before = host.status("a").totals.originated;
            let report = host.ping("a", &to("/icmp"));
            let (answer, rtt) = report.answer.unwrap();
            assert_eq!(answer.kind, AnswerKind::Reply);
            assert!(rtt > Duration::ZERO && rtt < PATIENCE, "{rtt:?}");
            assert!(report.path.allowed() && report.path.to.as_deref() == Some("test/b"), "{}", report.path.text());

            let open = host.ping("a", &to(":7/tcp")).answer.unwrap().0.kind;
            assert!(matches!(open, AnswerKind::Tcp { flags, .. } if flags == 0x12), "{open:?}");
            let closed = host.ping("a", &to(":8/tcp")).answer.unwrap().0.kind;
            assert!(matches!(closed, AnswerKind::Tcp { flags, .. } if flags & 4 != 0), "{closed:?}");
            // Three probes, and the reset of what was opened.
            assert_eq!(host.status("a").totals.originated, before + 4);
        }
        drop(running);
        assert_eq!(host.tx_dropped("a", DropReason::ProbeAnswer), 8);
        while let Ok((header, frame)) = guest_a.recv_frame(Duration::from_millis(50)) {
            let frame = Frame::parse(&header, &frame).unwrap();
            assert!(frame.tcp().is_none(), "an answer reached the guest that had not asked");
        }
        // Nothing of the probes is left: the next ones find the tuples free.
        assert_eq!(host.fabric.impact(&host.fabric.picture(), &[]).connections, 0);
    }
}

#[test]
fn a_probe_without_answer_says_why() {
    let mut host = Host::new(1);
    let (a, b) = (host.port("a", 10), host.port("b", 11));
    let _guest_a = host.guest(&a).up();
    let report = host.ping("a", "b");
    assert_eq!((report.refused, report.answer.is_none()), (Some(DropReason::PortNotRunning), true));
    let report = host.ping("a", "gateway");
    assert!(is_positive(report.answer.unwrap().0.kind));
    assert_eq!(report.path.stages.last().unwrap().result, "REPLY");

    let _guest_b = host.guest(&b).up();
    let silent = host.fabric.ping(&host.request("a", "b:9/tcp"), Duration::from_millis(20)).unwrap();
    assert!(silent.path.allowed() && silent.refused.is_none() && silent.answer.is_none());

    host.deny_ingress();
    host.apply();
    for to in ["192.0.2.11", "2001:db8:1::ff:fe00:b"] {
        let report = host.ping("a", to);
        assert_eq!(report.path.reason.as_deref(), Some("policy_denied"), "{}", report.path.text());
        assert!(report.path.text().contains("default deny: selected by test/lock-down"), "{}", report.path.text());
        // What `trace` says is what happens.
        assert_eq!(host.trace("a", to).stages[2..], report.path.stages[2..]);
    }
    // The gateway may ask whom it likes (health probes); nobody answers here.
    let request = host.request("gateway", "b:9/tcp");
    assert!(host.fabric.ping(&request, Duration::from_millis(20)).unwrap().path.allowed());
}

#[test]
fn a_dry_run_names_the_connections_that_would_break() {
    let mut host = Host::new(1);
    let (a, b) = (host.port("a", 10), host.port("b", 11));
    let mut guest_a = host.guest(&a).up();
    let mut guest_b = host.guest(&b).up();
    for path in paths(&a, &b) {
        handshake(&mut guest_a, &mut guest_b, &path, 40_000, 7);
    }
    let impact = |host: &Host| {
        let draft = host.fabric.draft(&host.desired).unwrap();
        host.fabric.impact(&draft, &[])
    };
    let same = impact(&host);
    assert_eq!((same.connections, same.broken.count), (2, 0));

    host.deny_ingress();
    let denied = impact(&host);
    assert_eq!((denied.connections, denied.broken.count), (2, 2));
    let first = &denied.broken.named[0];
    assert_eq!(
        (first.from.as_str(), first.to.as_str(), first.why.as_str()),
        ("test/a", "test/b", "ingress: default deny: selected by test/lock-down")
    );
    // Nothing was applied: data still passes, and the connections are still there.
    assert_eq!(impact(&host).connections, 2);
    assert!(host.trace("a", "b:7").allowed());

    host.desired.established = Established::Keep;
    assert_eq!(impact(&host).broken.count, 0, "policy leaves what is established alone");
    host.desired.ports.retain(|port| port.name != "b");
    let gone = impact(&host);
    assert_eq!((gone.broken.count, gone.broken.named[0].why.as_str()), (2, "its ports lose their addresses"));

    // A flow that is denied now, and that a draft would admit.
    host.desired.established = Established::Recheck;
    host.desired.ports.push(b.clone().into());
    host.apply();
    host.desired.policy.policies.clear();
    let request = host.request("a", "b:8");
    let flow = hostweave::fabric::DeniedFlow {
        key: hostweave::observe::trace::key(&request.tuple).unwrap(),
        vni: 1,
        from: request.from,
        to: host.request("b", "a").from,
    };
    let draft = host.fabric.draft(&host.desired).unwrap();
    let admitted = host.fabric.impact(&draft, &[flow, flow]).admitted;
    assert_eq!(admitted.count, 2);
    assert_eq!(admitted.named[0].why, "egress: no policy had a say; ingress: no policy had a say");
}

#[test]
fn a_capture_sees_both_directions_with_verdict_and_rule() {
    let mut host = Host::new(2);
    let (a, b) = (host.port("a", 10), host.port("b", 11));
    let mut guest_a = host.guest(&a).up();
    let mut guest_b = host.guest(&b).up();
    let id = |host: &Host, name: &str| host.request(name, "gateway").from;
    let path = paths(&a, &b)[0];
    let nothing = host.fabric.capture(vec![id(&host, "b")], 65_535, Drops::No).unwrap();
    let capture = host.fabric.capture(vec![id(&host, "a")], 60, Drops::Also).unwrap();
    guest_a.send_frame(&path.udp(1, 2, &[0x5a; 100]), &Default::default()).unwrap();
    guest_b.recv_frame(PATIENCE).unwrap();
    let mut back = path;
    (back.src, back.dst, back.src_mac) = (path.dst, path.src, b.mac.0);
    guest_b.send_frame(&back.udp(2, 1, &[0x6b; 100]), &Default::default()).unwrap();
    guest_a.recv_frame(PATIENCE).unwrap();

    host.deny_ingress();
    host.apply();
    guest_a.send_frame(&path.udp(1, 2, &[0x5a; 100]), &Default::default()).unwrap();
    eventually("the packet is denied", || host.dropped("a", DropReason::PolicyDenied) == 1);
    let seen = capture.fetch();
    let all: Vec<(bool, &str, u32, usize)> =
        seen.iter().map(|packet| (packet.to_guest, packet.comment.as_str(), packet.len, packet.octets.len())).collect();
    let rules = "egress: no policy had a say; ingress: no policy had a say";
    assert_eq!(
        all,
        [
            (false, &*format!("forwarded; {rules}"), 142, 60),
            (true, &*format!("forwarded; {rules}"), 142, 60),
            (false, "dropped: policy_denied; default deny: selected by test/lock-down", 142, 60),
        ]
    );
    // As the guest sent it: to the router, from its own address.
    assert_eq!(seen[0].octets[..12], [hostweave_switch::MacAddr::ROUTER.0, a.mac.0].concat());
    assert_eq!(seen[1].octets[..6], a.mac.0);
    assert!(seen[0].at <= seen[1].at && capture.lost() == 0);
    assert_eq!(nothing.fetch().len(), 2, "the other end sees the same two");

    assert!(host.fabric.stop_capture(capture.id()) && !capture.runs() && nothing.runs());
    guest_a.send_frame(&path.udp(1, 2, &[0x5a; 100]), &Default::default()).unwrap();
    eventually("the packet is denied", || host.dropped("a", DropReason::PolicyDenied) == 2);
    assert!(capture.fetch().is_empty());
}

/// IPv6 packets are never cut by the way (RFC 8200 §5).
#[test]
fn a_connection_whose_first_packet_is_cut_is_told() {
    let mut host = Host::new(1);
    let (a, b) = (host.port("a", 10), host.port("b", 11));
    let (mut guest, _receiver) = (host.guest(&a).mtu(9_000).up(), host.guest(&b).up());
    let path = paths(&a, &b).into_iter().find(|path| path.src.is_ipv4()).unwrap();
    let mut frame = path.udp(5_000, 9, &[7; 3_000]);
    frame[18..22].copy_from_slice(&[0, 1, 0, 0]);
    hostweave_switch::wire::ipv4::fill_checksum(frame[14..].first_chunk_mut().unwrap());
    guest.send_frame(&frame, &VnetHeader::default()).unwrap();
    let begun = |entry: &Arc<Entry>| {
        let Entry::Flow(record) = &**entry else { return false };
        matches!(record.event.kind, FlowEventKind::Opened { .. }) && record.event.key.src_port() == 5_000
    };
    eventually("it is told", || host.fabric.flow_log().entries().iter().any(begun));
}

/// What ends behind the stages, or in a queue: each with both ports and the L4 port that was asked for.
#[test]
fn what_its_receiver_does_not_take_is_in_the_flow_log() {
    let packets = |burst| Rates { packets: Some(Rate { per_s: 1, burst }), bits: None };
    let mut host = Host::new(1);
    let [mut a, mut b, c] = [("a", 10), ("b", 11), ("c", 12)].map(|(name, n)| host.spec("default", name, n, 1));
    a.rates.egress = packets(200);
    b.rates.ingress = packets(50);
    host.desired.ports = vec![a.clone(), b.clone(), c.clone()].into();
    host.apply();
    let (mut guest, _receiver) = (host.guest(&a).ring_size(1_024).up(), host.guest(&b).ring_size(1_024).up());
    let port = |name: &str| host.request(name, "gateway").from;
    let logged = |reason: DropReason, to: PortId, l4: u16, v6: bool| {
        let wanted = |entry: &Arc<Entry>| {
            let Entry::Flow(record) = &**entry else { return false };
            let FlowEvent { kind, key, from, to: receiver, .. } = record.event;
            let family = Ipv6Addr::from(key.src()).to_ipv4_mapped().is_none() == v6;
            let ends = [from, receiver] == [port("a"), to] && (to == PortId::NONE || record.destination.port.is_some());
            matches!(kind, FlowEventKind::Dropped { reason: why, .. } if why == reason)
                && ends
                && family
                && key.dst_port() == l4
        };
        eventually(reason.name(), || host.fabric.flow_log().entries().iter().any(wanted));
    };
    for (to_b, to_c) in paths(&a, &b).into_iter().zip(paths(&a, &c)) {
        let v6 = to_b.src.is_ipv6();
        // Nobody is there; the receiver may have no more.
        for (path, l4, count) in [(&to_c, 7, 1), (&to_b, 9, 80)] {
            for _ in 0..count {
                guest.nic().push_frame(0, &VnetHeader::default(), &path.udp(5_000, l4, b"data")).unwrap();
            }
        }
        // A later fragment whose first one never comes.
        let fragment = if v6 {
            to_b.ip(44, &[&[17, 0, 0, 64, 0, 0, 0, 9][..], &[0; 16]].concat())
        } else {
            let mut frame = to_b.ip(17, &[0; 16]);
            frame[20..22].copy_from_slice(&8u16.to_be_bytes());
            frame[24..26].fill(0);
            let sum =
                frame[14..34].chunks(2).fold(0u32, |sum, pair| sum + u32::from(pair[0]) * 256 + u32::from(pair[1]));
            let sum = (sum & 0xffff) + (sum >> 16);
            frame[24..26].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
            frame
        };
        guest.nic().push_frame(0, &VnetHeader::default(), &fragment).unwrap();
        guest.nic().flush(0).unwrap();
        guest.nic().drain_tx(PATIENCE).unwrap();
        logged(DropReason::PortNotRunning, port("c"), 7, v6);
        logged(DropReason::RateLimited, port("b"), 9, v6);
        logged(DropReason::FragmentTimeout, PortId::NONE, 0, v6);
    }
    // Its sender may send no more, either.
    for path in paths(&a, &b) {
        for _ in 0..200 {
            guest.nic().push_frame(0, &VnetHeader::default(), &path.udp(5_000, 10, b"data")).unwrap();
        }
        guest.nic().flush(0).unwrap();
        guest.nic().drain_tx(PATIENCE).unwrap();
        logged(DropReason::RateLimited, port("b"), 10, path.src.is_ipv6());
    }
    assert!(host.dropped("a", DropReason::RateLimited) > 0 && host.tx_dropped("b", DropReason::RateLimited) > 0);
}
