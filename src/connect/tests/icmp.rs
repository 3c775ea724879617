//! ICMP: queries with their answers, and errors about connections (SEMANTICS CT5, NP23).

use super::*;

const UNREACHABLE: (u8, u8) = (3, 1);

/// An ICMP error of `from` to `to` that quotes the IP packet in `frame`, cut as RFC 792 allows it.
fn error_with(kind: u8, from: u32, to: u32, v6: bool, frame: &[u8], octets: usize) -> Vec<u8> {
    let quoted = &frame[14..];
    path(from, to, v6).icmp(kind, 0, [0; 4], &quoted[..quoted.len().min(octets)])
}

fn unreachable(from: u32, to: u32, v6: bool, frame: &[u8]) -> Vec<u8> {
    error_with(if v6 { UNREACHABLE.1 } else { UNREACHABLE.0 }, from, to, v6, frame, 500)
}

#[test]
fn an_echo_is_a_connection_and_its_answer_the_other_direction() {
    both(|v6| {
        let mut host = Host::new();
        let answer = |from, to, id| path(from, to, v6).icmp(if v6 { 129 } else { 0 }, 0, [0, id, 0, 1], b"?");
        assert_eq!(host.to(B, &answer(B, A, 5)), Err(DropReason::NoConnection), "nobody asked");
        assert_eq!(host.to(A, &path(A, B, v6).echo_request(5, 1, b"?")), Ok(B));
        assert_eq!(host.to(B, &answer(B, A, 6)), Err(DropReason::NoConnection), "another question");
        assert_eq!(host.to(C, &answer(C, A, 5)), Err(DropReason::NoConnection), "somebody else was asked");
        assert_eq!(host.to(A, &answer(A, B, 5)), Err(DropReason::NoConnection), "who asks does not answer");
        assert_eq!(host.to(B, &answer(B, A, 5)), Ok(A));
        assert_eq!(host.entry().seen, [100, 100]);
        // The other side's own question with the same identifier is not an answer.
        host.allow_only(&[]);
        assert_eq!(host.to(B, &path(B, A, v6).echo_request(5, 1, b"?")), Err(DropReason::PolicyDenied));
    });
}

#[test]
fn ct5_an_error_about_a_connection_goes_to_the_sender_of_what_it_quotes() {
    both(|v6| {
        let mut host = Host::new();
        // Isolated or not: whoever is part of a connection may complain (SEMANTICS NP23).
        host.allow_only(&[80]);
        let kinds: &[u8] = if v6 { &[1, 2, 3, 4] } else { &[3, 4, 11, 12] };
        let sent = udp(A, B, v6, (1000, 80));
        let answer = udp(B, A, v6, (80, 1000));
        host.queue = 2;
        host.to(A, &sent).unwrap();
        host.queue = 0;
        for kind in kinds {
            assert_eq!(host.send(B, &error_with(*kind, B, A, v6, &sent, 500)), Ok((A, 2)), "type {kind}");
        }
        // The eight octets of RFC 792 are enough, fewer are not.
        let header = if v6 { 40 } else { 20 };
        assert_eq!(host.to(B, &error_with(kinds[0], B, A, v6, &sent, header + 8)), Ok(A));
        assert_eq!(host.to(B, &error_with(kinds[0], B, A, v6, &sent, header + 7)), Err(DropReason::IcmpUnrelated));
        // About the answer: that goes the other way.
        host.to(B, &answer).unwrap();
        assert_eq!(host.to(A, &unreachable(A, B, v6, &answer)), Ok(B));
        assert_eq!(host.entries().len(), 1, "an error begins no connection");
    });
}

#[test]
fn ct5_an_error_about_no_connection_or_in_the_wrong_direction_is_unrelated() {
    both(|v6| {
        let mut host = Host::new();
        let sent = udp(A, B, v6, (1000, 80));
        let unrelated = Err(DropReason::IcmpUnrelated);
        assert_eq!(host.to(B, &unreachable(B, A, v6, &sent)), unrelated, "nothing was sent yet");
        host.to(A, &sent).unwrap();
        assert_eq!(host.to(B, &unreachable(B, A, v6, &udp(A, B, v6, (1000, 81)))), unrelated, "another port");
        assert_eq!(host.to(A, &unreachable(A, B, v6, &sent)), unrelated, "the sender complains to the receiver");
        assert_eq!(host.to(C, &unreachable(C, A, v6, &sent)), unrelated, "somebody else complains");
        assert_eq!(host.to(B, &unreachable(B, C, v6, &sent)), unrelated, "to somebody else");
        assert_eq!(host.to(B, &unreachable(B, A, v6, b"0123456789abcdefgh")), unrelated, "it quotes nothing");
        let other_family = udp(A, B, !v6, (1000, 80));
        assert_eq!(
            host.to(B, &unreachable(B, A, v6, &other_family)),
            unrelated,
            "an IP version that it cannot be about"
        );
        assert_eq!(host.entry().seen, [100, 0], "none of them kept it alive, or answered it");
    });
}

#[test]
fn ct5_an_error_about_a_question_goes_to_who_asked() {
    both(|v6| {
        let mut host = Host::new();
        let question = path(A, B, v6).echo_request(5, 1, b"01234567");
        host.to(A, &question).unwrap();
        assert_eq!(host.to(B, &unreachable(B, A, v6, &question)), Ok(A));
        let other = path(A, B, v6).echo_request(6, 1, b"01234567");
        assert_eq!(host.to(B, &unreachable(B, A, v6, &other)), Err(DropReason::IcmpUnrelated));
    });
}

#[test]
fn ct5_an_error_about_a_connection_that_policy_ends_is_denied() {
    both(|v6| {
        let mut host = Host::new();
        let sent = udp(A, B, v6, (1000, 80));
        host.to(A, &sent).unwrap();
        host.allow_only(&[]);
        assert_eq!(host.to(B, &unreachable(B, A, v6, &sent)), Err(DropReason::PolicyDenied));
    });
}

#[test]
fn ra4_a_redirect_of_a_guest_is_never_related() {
    let mut host = Host::new();
    let sent = udp(A, B, false, (1000, 80));
    host.to(A, &sent).unwrap();
    assert_eq!(host.to(B, &error_with(5, B, A, false, &sent, 500)), Err(DropReason::IcmpUnrelated));
    let sent = udp(A, B, true, (1000, 80));
    host.to(A, &sent).unwrap();
    let redirect = path(B, A, true).ttl(255).icmp(137, 0, [0; 4], &[&[0; 32][..], &sent[14..]].concat());
    assert_eq!(host.to(B, &redirect), Err(DropReason::RouterAdvertisementFromGuest));
}

#[test]
fn ct5_an_error_about_an_error_is_unrelated() {
    both(|v6| {
        let mut host = Host::new();
        let sent = udp(A, B, v6, (1000, 80));
        host.to(A, &sent).unwrap();
        let complaint = unreachable(B, A, v6, &sent);
        host.to(B, &complaint).unwrap();
        assert_eq!(host.to(A, &unreachable(A, B, v6, &complaint)), Err(DropReason::IcmpUnrelated));
    });
}

#[test]
fn who_does_not_answer_udp_is_noted() {
    both(|v6| {
        let mut host = Host::new();
        let failed = |host: &Host| {
            let noted = |failed: Failed| (failed.port, failed.address, failed.l4, failed.client, failed.refused);
            Vec::from_iter(host.connections.take_failures().map(noted))
        };
        let port = if v6 { (1, 4) } else { (3, 3) };
        let error = |kind: (u8, u8), from, sent: &[u8]| path(from, A, v6).icmp(kind.0, kind.1, [0; 4], &sent[14..]);
        let b = |refused| vec![(B, address(B, v6), 80, address(A, v6), refused)];
        // Nobody listens; that a router or a filter says something else is no word of it.
        let sent = udp(A, B, v6, (1000, 80));
        host.to(A, &sent).unwrap();
        let other = if v6 { (1, 1) } else { (3, 13) };
        assert_eq!(host.to(B, &error(other, B, &sent)), Ok(A));
        assert_eq!(failed(&host), []);
        assert_eq!(host.to(B, &error(port, B, &sent)), Ok(A));
        assert_eq!(failed(&host), b(true));
        // One that asks again and again.
        let sent = udp(A, B, v6, (1001, 80));
        for (wait, expected) in [(0, vec![]), (1, vec![]), (2, b(false)), (5, b(false))] {
            host.now += wait;
            host.to(A, &sent).unwrap();
            assert_eq!(failed(&host), expected, "after {wait}");
        }
        // One that is answered never is.
        let sent = udp(A, B, v6, (1002, 80));
        host.to(A, &sent).unwrap();
        host.to(B, &udp(B, A, v6, (80, 1002))).unwrap();
        host.now += 10;
        host.to(A, &sent).unwrap();
        assert_eq!(host.to(B, &error(port, B, &sent)), Ok(A));
        assert_eq!(failed(&host), []);
        // Nor is one that asks once.
        host.to(A, &udp(A, B, v6, (1003, 80))).unwrap();
        host.now += 10;
        assert_eq!(failed(&host), []);
    });
}
