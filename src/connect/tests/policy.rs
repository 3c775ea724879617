//! What policy has to do with connections, new and old.

use super::*;

#[test]
fn np22_replies_pass_and_the_other_way_round_is_judged() {
    both(|v6| {
        let mut host = Host::new();
        host.allow_only(&[80]);
        assert_eq!(host.to(A, &udp(A, B, v6, (1000, 80))), Ok(B));
        assert_eq!(host.to(B, &udp(B, A, v6, (80, 1000))), Ok(A), "A is isolated, but this is a reply");
        assert_eq!(host.to(B, &udp(B, A, v6, (81, 1000))), Err(DropReason::PolicyDenied));
        assert_eq!(host.to(B, &udp(B, A, v6, (80, 1001))), Err(DropReason::PolicyDenied));
        assert_eq!(host.to(C, &udp(C, A, v6, (80, 1000))), Err(DropReason::PolicyDenied));
        assert_eq!(host.entries().len(), 1);
    });
}

#[test]
fn np25_icmp_and_other_protocols_need_a_rule_without_ports() {
    both(|v6| {
        let mut host = Host::new();
        let frames = [path(A, B, v6).echo_request(1, 1, b"?"), path(A, B, v6).ip(47, &[0; 20])];
        for frame in &frames {
            assert_eq!(host.to(A, frame), Ok(B));
        }
        host.allow_only(&[80]);
        for frame in &frames {
            assert_eq!(host.to(A, frame), Err(DropReason::PolicyDenied));
        }
    });
}

#[test]
fn np31_recheck_cuts_what_is_not_allowed_any_more_on_its_next_packet() {
    both(|v6| {
        for first in [A, B] {
            let mut host = Host::new();
            let (sent, answer) = (udp(A, B, v6, (1000, 80)), udp(B, A, v6, (80, 1000)));
            host.to(A, &sent).unwrap();
            host.to(B, &answer).unwrap();
            let before = host.entry();
            // Allowed still, by another rule: it goes on, and says what allows it now.
            host.allow_only(&[80]);
            assert_eq!((host.to(A, &sent), host.to(B, &answer)), (Ok(B), Ok(A)));
            let after = host.entry();
            assert_eq!((after.index, after.generation), (before.index, before.generation));
            assert_ne!(after.basis, before.basis);
            // In the same second: whichever direction speaks first, the connection ends.
            host.allow_only(&[81]);
            let frame = if first == A { &sent } else { &answer };
            assert_eq!(host.to(first, frame), Err(DropReason::PolicyDenied));
            assert_eq!(host.entries(), []);
            assert_eq!(host.to(A, &sent), Err(DropReason::PolicyDenied));
            assert_eq!(host.to(B, &answer), Err(DropReason::PolicyDenied));
        }
    });
}

#[test]
fn np31_recheck_cuts_a_connection_whose_directions_two_workers_have() {
    both(|v6| {
        let mut host = Host::new();
        let (sent, answer) = (udp(A, B, v6, (1000, 80)), udp(B, A, v6, (80, 1000)));
        host.send_with(0, A, &sent, &mut Unwatched).unwrap();
        host.send_with(1, B, &answer, &mut Unwatched).unwrap();
        host.allow_only(&[]);
        assert_eq!(host.send_with(1, B, &answer, &mut Unwatched), Err(DropReason::PolicyDenied));
        assert_eq!(host.send_with(0, A, &sent, &mut Unwatched), Err(DropReason::PolicyDenied));
    });
}

#[test]
fn np31_keep_lets_them_live_and_begins_no_other() {
    both(|v6| {
        let mut host = Host::new();
        let (sent, answer) = (udp(A, B, v6, (1000, 80)), udp(B, A, v6, (80, 1000)));
        host.to(A, &sent).unwrap();
        host.to(B, &answer).unwrap();
        let before = host.entry();
        host.plane.tables.keep_established = true;
        host.allow_only(&[]);
        host.now += 1;
        assert_eq!((host.to(A, &sent), host.to(B, &answer)), (Ok(B), Ok(A)));
        assert_eq!(host.entry().basis, before.basis, "what allowed it is still what it says");
        assert_eq!(host.to(A, &udp(A, B, v6, (1001, 80))), Err(DropReason::PolicyDenied));
        // Back to `recheck`: now it is cut.
        host.plane.tables.keep_established = false;
        host.publish();
        assert_eq!(host.to(A, &sent), Err(DropReason::PolicyDenied));
        assert_eq!(host.entries(), []);
    });
}

#[test]
fn np30_keep_is_not_for_what_an_earlier_run_allowed() {
    both(|v6| {
        for allowed in [true, false] {
            let mut host = Host::new();
            let sent = udp(A, B, v6, (1000, 80));
            host.to(A, &sent).unwrap();
            let entry = host.entry();
            let record = host.connections.get(entry.index, entry.generation).unwrap();
            // As adoption leaves it.
            record.set_epoch(0, entry.basis);
            host.plane.tables.keep_established = true;
            host.allow_only(if allowed { &[80] } else { &[] });
            let expected = if allowed { Ok(B) } else { Err(DropReason::PolicyDenied) };
            assert_eq!(host.to(A, &sent), expected);
            assert_eq!(host.entries().len(), usize::from(allowed));
        }
    });
}

#[test]
fn np35_a_default_of_deny_lets_nothing_begin_and_np29_leaves_the_host_alone() {
    both(|v6| {
        let mut host = Host::new();
        host.world.default = DefaultPolicy::Deny;
        host.publish();
        assert_eq!(host.to(A, &udp(A, B, v6, (1, 2))), Err(DropReason::PolicyDenied));
        assert_eq!(host.entries(), []);
        // The gateway's DNS passes by a built-in rule, until that is switched off (SEMANTICS NP34).
        let gateway = Path { dst: address(0, v6), ..path(A, B, v6) };
        assert_eq!(host.to(A, &gateway.udp(5353, 53, b"?")), Ok(0));
        host.world.infrastructure.dns = false;
        host.publish();
        assert_eq!(host.to(A, &gateway.udp(5354, 53, b"?")), Err(DropReason::PolicyDenied));
        assert_eq!(host.to(A, &gateway.udp(5353, 53, b"?")), Err(DropReason::PolicyDenied), "the old one is cut");
    });
}

#[test]
fn who_may_not_send_learns_nothing_about_who_is_there() {
    both(|v6| {
        let mut host = Host::new();
        host.world.default = DefaultPolicy::Deny;
        host.publish();
        assert_eq!(host.to(A, &udp(A, 99, v6, (1, 2))), Err(DropReason::PolicyDenied), "nobody has the address");
        assert_eq!(host.to(A, &udp(A, B, v6, (1, 2))), Err(DropReason::PolicyDenied), "somebody has");
    });
}

#[test]
fn what_audit_says_of_an_established_connection_is_told_once_a_change() {
    both(|v6| {
        for first in [A, B] {
            let mut host = Host::new();
            let (sent, answer) = (udp(A, B, v6, (1000, 80)), udp(B, A, v6, (80, 1000)));
            host.to(A, &sent).unwrap();
            assert!(host.opened.unwrap().again.is_none(), "it began");
            host.to(B, &answer).unwrap();
            host.allow_only(&[81]);
            let mut policy = (*host.world.policies[0]).clone();
            policy.audit = true;
            host.world.policies = vec![Arc::new(policy)];
            host.publish();
            let frames = [(A, &sent), (B, &answer)];
            let ordered = if first == A { frames } else { [frames[1], frames[0]] };
            host.to(ordered[0].0, ordered[0].1).unwrap();
            let opened = host.opened.unwrap();
            let again = opened.again.unwrap();
            assert_eq!((again.from, opened.out_port, again.key.dst_port()), (PortId(A), PortId(B), 80));
            assert_eq!((opened.allowed.egress.audit, opened.allowed.ingress.audit.is_some()), (None, true));
            for (from, frame) in [ordered[1], ordered[0], ordered[1]] {
                host.to(from, frame).unwrap();
                assert!(host.opened.is_none(), "it was told");
            }
            host.publish();
            host.to(ordered[1].0, ordered[1].1).unwrap();
            assert!(host.opened.is_some_and(|opened| opened.again.is_some()), "another change");
        }
    });
}
