//! Between two NAT mappings of the host (RFC 4787 REQ-9, RFC 5382 REQ-8), where the pool lets in only whom its ports have sent to.

use super::*;

/// Two guests, each known to the other by what a server has told it; the first may be of another network. `[guest, outside L4 port]`.
fn known(host: &mut Host, v6: bool, from: u32) -> [(u32, u16); 2] {
    [(from, host.leaves(from, remote(v6, 1), (4000, 3478))), (B, host.leaves(B, remote(v6, 1), (5000, 3478)))]
}

fn datagram(v6: bool, from: u32, to: u16) -> Vec<u8> {
    let own = if from == B { 5000 } else { 4000 };
    out(from, public(v6, POOL)).udp(own, to, b"punch")
}

#[test]
fn rfc4787_req9_both_sides_send_first_and_meet() {
    both(|v6| {
        for from in [A, D] {
            let mut host = Host::outside();
            let [(a, at_a), (b, at_b)] = known(&mut host, v6, from);
            let pool = public(v6, POOL);
            let there = datagram(v6, a, at_b);
            assert_eq!(host.through(0, a, &there), Err(DropReason::NatNoMapping), "the other has not sent yet");
            let inside = address(A, v6);
            assert_eq!(host.through(1, b, &datagram(v6, b, at_a)), Ok((a, (pool, inside, at_b, 4000))));
            assert_eq!(host.through(0, a, &there), Ok((b, (pool, address(b, v6), at_a, 5000))));
            // Nobody else is let in by that: a third one, and the world.
            let third = out(C, pool).udp(6000, at_a, b"?");
            assert_eq!(host.through(0, C, &third), Err(DropReason::NatNoMapping));
            let spoofed = inward(remote(v6, 9), pool).udp(at_b, at_a, b"?");
            assert_eq!(host.through(0, UPLINK, &spoofed), Err(DropReason::NatNoMapping));
        }
    });
}

#[test]
fn rfc4787_req9_the_first_packet_makes_the_mapping_that_the_answer_needs() {
    both(|v6| {
        let mut host = Host::outside();
        let at_b = host.leaves(B, remote(v6, 1), (5000, 3478));
        // A has never sent before. What it is seen as, B is told by somebody else.
        assert_eq!(host.through(0, A, &datagram(v6, A, at_b)), Err(DropReason::NatNoMapping));
        let at_a = host.leaves(A, remote(v6, 1), (4000, 3478));
        assert_eq!(host.through(0, B, &datagram(v6, B, at_a)).map(|(to, _)| to), Ok(A));
    });
}

#[test]
fn rfc5382_req8_tcp_opened_from_both_sides_at_once() {
    both(|v6| {
        let mut host = Host::outside();
        let pool = public(v6, POOL);
        let syn = |from: u32, src_port: u16, dst_port: u16, flags: u8, seq: u32, ack: u32| {
            let segment = TcpHeader { src_port, dst_port, seq, ack, flags, window: 65_535 };
            out(from, pool).tcp(&segment, &[])
        };
        let to_server = |host: &mut Host, from: u32, src_port: u16| {
            let segment = TcpHeader { src_port, dst_port: 80, seq: 1, ack: 0, flags: SYN, window: 65_535 };
            host.through(0, from, &out(from, remote(v6, 1)).tcp(&segment, &[])).unwrap().1.2
        };
        let (at_a, at_b) = (to_server(&mut host, A, 4000), to_server(&mut host, B, 5000));
        let first = syn(A, 4000, at_b, SYN, 100, 0);
        let ended = host.pass(0, A, &first, Offload::default(), &mut Unwatched).err().unwrap();
        assert!(ended.0 == DropReason::NatNoMapping && ended.1.is_none(), "silence (RFC 5382 REQ-4)");
        let crossed = host.through(0, B, &syn(B, 5000, at_a, SYN, 900, 0));
        assert_eq!(crossed, Ok((A, (pool, address(A, v6), at_b, 4000))));
        // A is in SYN-SENT and answers the crossing SYN with a SYN-ACK of its own number (RFC 9293 §3.5).
        let answer = host.through(0, A, &syn(A, 4000, at_b, SYN | ACK, 100, 901));
        assert_eq!(answer, Ok((B, (pool, address(B, v6), at_a, 5000))));
        assert!(host.through(0, B, &syn(B, 5000, at_a, ACK, 901, 101)).is_ok());
        assert!(host.through(0, A, &syn(A, 4000, at_b, ACK, 101, 901)).is_ok());
    });
}

#[test]
fn rfc4787_req9_a_filter_by_address_knows_a_sender_without_mapping_by_the_address_it_gets() {
    both(|v6| {
        for from in [A, D] {
            let mut host = Host::with_pool(|pool| pool.filtering = Filtering::AddressDependent);
            let pool = public(v6, POOL);
            let at_b = host.leaves(B, remote(v6, 1), (5000, 3478));
            let there = datagram(v6, from, at_b);
            assert_eq!(host.traced(from, &there), Err(DropReason::NatNoMapping), "B has not sent to that address");
            // To whom does not matter, as long as it is there.
            assert_eq!(host.through(1, B, &datagram(v6, B, 9)), Err(DropReason::NatNoMapping));
            let before = host.nat.stats().mappings;
            assert_eq!(host.traced(from, &there), Ok(B));
            assert_eq!(host.nat.stats().mappings, before, "a trace makes none");
            let (to, seen) = host.through(0, from, &there).unwrap();
            assert_eq!((to, seen.0, seen.1, seen.3), (B, pool, address(B, v6), 5000), "its very first packet");
            let answer = host.through(1, B, &datagram(v6, B, seen.2)).unwrap();
            assert_eq!(answer, (from, (pool, if from == D { address(A, v6) } else { address(from, v6) }, at_b, 4000)));
        }
    });
}

/// An L4 port is not foreseen: who filters by it does not take one that is unknown for one that is zero.
#[test]
fn a_sender_without_mapping_is_not_port_zero() {
    both(|v6| {
        let mut host = Host::outside();
        let at_b = host.leaves(B, remote(v6, 1), (5000, 3478));
        let _ = host.through(0, B, &datagram(v6, B, 0));
        assert_eq!(host.through(0, A, &datagram(v6, A, at_b)), Err(DropReason::NatNoMapping));
    });
}

#[test]
fn a_denied_first_packet_opens_nothing() {
    both(|v6| {
        let mut host = Host::outside();
        let [(a, at_a), (b, at_b)] = known(&mut host, v6, A);
        host.allow_only(&[]);
        let policy = NetworkPolicy { ingress: None, egress: Some(Vec::new()), ..(*host.world.policies[0]).clone() };
        host.world.policies = vec![Arc::new(policy)];
        host.publish();
        assert_eq!(host.through(0, a, &datagram(v6, a, at_b)), Err(DropReason::PolicyDenied));
        host.world.policies.clear();
        host.publish();
        assert_eq!(host.through(0, b, &datagram(v6, b, at_a)), Err(DropReason::NatNoMapping));
    });
}
