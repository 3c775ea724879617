//! Who comes in by the filter of a NAT mapping: what he sends keeps neither his connection nor the mapping, what the inside answers does (RFC 4787
//! REQ-6, RFC 7857 §7).

use super::errors::{about, unreachable};
use super::required::Timed;
use super::*;

/// A host whose pool lets anybody in, and the L4 port outside of `A` at 4000.
fn open(v6: bool) -> (Timed, u16) {
    let mut host = Host::with_pool(|pool| pool.filtering = Filtering::EndpointIndependent);
    let l4 = host.leaves(A, remote(v6, 1), (4000, 7000));
    (Timed::new(host), l4)
}

/// A datagram of somebody out there from an L4 port of his.
fn comes(host: &mut Host, v6: bool, from: (u16, u16), l4: u16) -> Result<u32, DropReason> {
    let frame = inward(remote(v6, from.0), public(v6, POOL)).udp(from.1, l4, b"?");
    host.through(0, UPLINK, &frame).map(|(to, _)| to)
}

#[test]
fn rfc7857_7_what_one_stranger_sends_keeps_a_mapping_for_no_longer() {
    both(|v6| {
        let (mut timed, l4) = open(v6);
        timed.wait(280);
        let mut last = 0;
        for second in (280..2000).step_by(20) {
            if comes(&mut timed.host, v6, (9, 9), l4).is_ok() {
                last = second;
            }
            timed.wait(20);
        }
        // He is let in while what the inside sent keeps the mapping (300 s), and his connection lives for as long, which he does not prolong.
        assert!((560..=600).contains(&last), "{last}");
        assert_eq!((timed.mappings(), timed.host.entries().len()), (0, 0));
        assert_eq!(comes(&mut timed.host, v6, (9, 9), l4), Err(DropReason::NatNoMapping));
    });
}

#[test]
fn rfc7857_7_nor_what_ever_others_send() {
    both(|v6| {
        let (mut timed, l4) = open(v6);
        let mut last = 0;
        for (from, second) in (100..).zip((0..2000).step_by(20)) {
            if comes(&mut timed.host, v6, (from % 50 + 2, from), l4).is_ok() {
                last = second;
            }
            timed.wait(20);
        }
        assert!((280..=320).contains(&last), "as long as what the inside sent keeps it: {last}");
        assert_eq!((timed.mappings(), timed.host.entries().len()), (0, 0));
    });
}

#[test]
fn rfc4787_req6_what_the_inside_answers_keeps_its_mapping() {
    both(|v6| {
        let (mut timed, l4) = open(v6);
        let answer = out(A, remote(v6, 9)).udp(4000, 9, b"answer");
        for other in 100..110 {
            assert_eq!(comes(&mut timed.host, v6, (9, 9), l4), Ok(A));
            let seen = (UPLINK, (public(v6, POOL), remote(v6, 9), l4, 9));
            assert_eq!(timed.host.through(1, A, &answer), Ok(seen));
            timed.wait(290);
            // By its answers alone, everybody is let in still.
            assert_eq!(comes(&mut timed.host, v6, (10, other), l4), Ok(A));
        }
        // Packets of the inside keep the connection, too: it was the same all the time.
        let answered = timed.host.entries().into_iter().find(|entry| entry.key.src_port() == 9).unwrap();
        assert!(answered.created < timed.host.now - 2800);
        timed.wait(320);
        assert_eq!(timed.mappings(), 0);
    });
}

#[test]
fn rfc4787_req6_one_that_the_inside_began_keeps_its_mapping_open_for_others() {
    both(|v6| {
        let (mut timed, l4) = open(v6);
        for from in 100..110 {
            timed.wait(290);
            assert_eq!(timed.host.leaves(A, remote(v6, 1), (4000, 7000)), l4);
            assert_eq!(comes(&mut timed.host, v6, (9, from), l4), Ok(A));
        }
    });
}

/// Of a hairpin each end has a mapping: what leaves by the one keeps that, and not the other.
#[test]
fn rfc4787_req6_hairpins_keep_the_mapping_of_whoever_sends() {
    both(|v6| {
        let (mut timed, at_a) = open(v6);
        let at_b = timed.host.leaves(B, remote(v6, 1), (5000, 7000));
        let sent = out(B, public(v6, POOL)).udp(5000, at_a, b"?");
        for _ in 0..50 {
            let _ = timed.host.through(0, B, &sent);
            timed.wait(20);
        }
        assert_eq!(timed.host.through(0, B, &sent), Err(DropReason::NatNoMapping), "A is silent");
        assert_eq!(timed.host.leaves(B, remote(v6, 1), (5000, 7000)), at_b);
        assert_eq!(timed.mappings(), 1);
    });
}

#[test]
fn rfc7857_7_1_resets_and_icmp_errors_keep_no_mapping() {
    both(|v6| {
        let mut host = Host::with_pool(|pool| pool.filtering = Filtering::EndpointIndependent);
        let segment =
            |src_port, dst_port, flags, seq, ack| TcpHeader { src_port, dst_port, seq, ack, flags, window: 9 };
        let syn = out(A, remote(v6, 1)).tcp(&segment(4000, 80, SYN, 100, 0), b"");
        let tcp = host.through(0, A, &syn).unwrap().1.2;
        let udp = host.leaves(A, remote(v6, 1), (4000, 7000));
        let mut timed = Timed::new(host);
        let (mut resets, mut errors) = (0, 0);
        for (from, _) in (1000..).zip(0..100) {
            let (pool, stranger) = (public(v6, POOL), remote(v6, 9));
            let syn = inward(stranger, pool).tcp(&segment(from, tcp, SYN, 100, 0), b"");
            if timed.host.through(0, UPLINK, &syn).is_ok() {
                let reset = out(A, stranger).tcp(&segment(4000, from, RST | ACK, 0, 101), b"");
                assert_eq!(timed.host.through(0, A, &reset).map(|(to, _)| to), Ok(UPLINK));
                resets += 1;
            }
            let sent = inward(stranger, pool).udp(9, udp, b"a question to be quoted");
            if let Ok(passed) = timed.host.pass(0, UPLINK, &sent, Offload::default(), &mut Unwatched) {
                let error = about(out(A, stranger), unreachable(v6), [0; 4], &passed.frame, 500);
                assert_eq!(timed.host.to(A, &error), Ok(UPLINK));
                errors += 1;
            }
            timed.wait(20);
        }
        assert!((10..=14).contains(&resets) && (14..=32).contains(&errors), "{resets} resets, {errors} errors");
        assert_eq!((timed.mappings(), timed.host.entries().len()), (0, 0));
    });
}

/// Nor does a worker's cache let him in for a moment longer than his connection is there.
#[test]
fn rfc7857_7_a_stranger_is_let_in_for_as_long_as_his_connection_is_there() {
    both(|v6| {
        let (mut timed, l4) = open(v6);
        comes(&mut timed.host, v6, (9, 9), l4).unwrap();
        let answer = out(A, remote(v6, 9)).udp(4000, 9, b"!");
        assert_eq!(timed.host.through(0, A, &answer).map(|(to, _)| to), Ok(UPLINK));
        let mut without = 0;
        for second in 0..800 {
            timed.wait(1);
            let passes = comes(&mut timed.host, v6, (9, 9), l4).is_ok();
            let there = timed.host.entries().iter().any(|entry| entry.in_port == UPLINK);
            assert_eq!(passes, there, "after {second} s");
            without += u32::from(!there);
        }
        assert!(without > 100, "{without}");
    });
}
