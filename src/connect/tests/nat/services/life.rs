//! What becomes of connections when backends come and go, and clients that keep theirs.

use super::*;

#[test]
fn sv5_a_drained_backend_keeps_its_tcp_connections_and_gets_no_new_ones() {
    both(|v6| {
        let mut host = Host::serving(v6, &[backend(B, v6), backend(C, v6)]);
        let to_b = (5000..5100).find(|port| host.opens(v6, *port) == B).unwrap();
        let udp_to_b = port_to(&mut host, v6, B);
        host.serve(v6, &[drained(B, v6), backend(C, v6)], |_| {});
        assert_eq!(host.says(v6, to_b), Ok(B), "established TCP goes on");
        assert_eq!(host.asks(A, vip(v6), udp_to_b).unwrap().0, C, "UDP selects again with its next packet");
        for port in 6000..6050 {
            assert_eq!(host.opens(v6, port), C);
        }
        assert_eq!(host.says(v6, to_b), Ok(B));
        // Its answers too, and back it comes.
        let answer = path(B, A, v6).tcp(&tcp(8080, to_b, ACK, 501, 101), b"");
        assert_eq!(host.through(1, B, &answer).unwrap().0, A);
        host.serve(v6, &[backend(B, v6), backend(C, v6)], |_| {});
        assert_eq!(host.says(v6, to_b), Ok(B));
    });
}

/// An association has state at its backend alone, as a TCP connection has.
#[test]
fn sv5_a_drained_backend_keeps_the_sctp_associations_that_it_has_answered() {
    both(|v6| {
        let mut host = Host::outside();
        let serve = |host: &mut Host, backends: &[Backend]| {
            host.plane.services = Arc::new(Services::compile(&[spec(vip(v6), SCTP, backends)], None));
            host.publish();
        };
        // (A checksum of zero: there is none, RFC 9653.)
        let chunk = |from: u16, to: u16, kind: u8| {
            [&from.to_be_bytes()[..], &to.to_be_bytes(), &[0; 8], &[kind], &[0; 19]].concat()
        };
        serve(&mut host, &[backend(B, v6)]);
        for port in [4000, 4001] {
            let init = out(A, vip(v6)).ip(SCTP, &chunk(port, 80, 1));
            assert_eq!(host.through(0, A, &init).unwrap().0, B);
        }
        let ack = path(B, A, v6).ip(SCTP, &chunk(8080, 4000, 2));
        assert_eq!(host.through(1, B, &ack).unwrap().0, A);
        serve(&mut host, &[drained(B, v6), backend(C, v6)]);
        let data = |port: u16| out(A, vip(v6)).ip(SCTP, &chunk(port, 80, 0));
        assert_eq!(host.through(0, A, &data(4000)).unwrap().0, B, "answered: it goes on");
        assert_eq!(host.through(0, A, &data(4001)).unwrap().0, C, "nobody has answered it");
        serve(&mut host, &[backend(C, v6)]);
        assert_eq!(host.through(0, A, &data(4000)).unwrap().0, C, "its backend is gone");
    });
}

#[test]
fn sv9_a_syn_that_nobody_has_answered_selects_again_when_its_backend_drains() {
    both(|v6| {
        let mut host = Host::serving(v6, &[backend(B, v6)]);
        let syn = out(A, vip(v6)).tcp(&tcp(4000, 80, SYN, 100, 0), b"");
        assert_eq!(host.through(0, A, &syn).unwrap().0, B);
        host.serve(v6, &[drained(B, v6), backend(C, v6)], |_| {});
        assert_eq!(host.through(0, A, &syn).unwrap().0, C);
        assert_eq!(host.entries().len(), 1);
    });
}

#[test]
fn sv9_what_goes_to_a_backend_that_is_gone_ends_and_its_syn_selects_again() {
    both(|v6| {
        let mut host = Host::serving(v6, &[backend(B, v6)]);
        host.opens(v6, 4000);
        let udp_port = port_to(&mut host, v6, B);
        host.serve(v6, &[backend(C, v6)], |_| {});
        assert_eq!(host.says(v6, 4000), Err(DropReason::ServiceEnded));
        assert_eq!(host.opens(v6, 4000), C);
        assert_eq!(host.asks(A, vip(v6), udp_port).unwrap().0, C, "UDP at once");
        // What the old one still says is no answer of the Service.
        let late = path(B, A, v6).udp(8080, udp_port, b"late");
        assert_eq!(host.through(1, B, &late).unwrap().1.0, address(B, v6));
    });
}

#[test]
fn connections_to_backends_that_stay_are_not_touched() {
    both(|v6| {
        let mut host = Host::serving(v6, &[backend(B, v6), backend(C, v6)]);
        let had: Vec<(u16, u32)> = (5000..5100).map(|port| (port, host.opens(v6, port))).collect();
        let before = host.entries();
        for backends in [vec![backend(B, v6), backend(C, v6)], vec![backend(C, v6), backend(B, v6)]] {
            host.serve(v6, &backends, |_| {});
            had.iter().for_each(|(port, to)| assert_eq!(host.says(v6, *port), Ok(*to)));
        }
        host.serve(v6, &[backend(B, v6)], |_| {});
        for (port, to) in &had {
            let expected = if *to == B { Ok(B) } else { Err(DropReason::ServiceEnded) };
            assert_eq!(host.says(v6, *port), expected);
        }
        let stay = |entry: &Entry| entry.out_port == B;
        let ids = |entries: &[Entry]| -> Vec<_> {
            entries.iter().filter(|entry| stay(entry)).map(|entry| (entry.index, entry.generation)).collect()
        };
        assert_eq!(ids(&before), ids(&host.entries()));
    });
}

#[test]
fn an_l4_port_or_service_that_goes_away_takes_its_connections_with_it() {
    both(|v6| {
        let mut host = Host::serving(v6, &[backend(B, v6)]);
        host.opens(v6, 4000);
        host.serve(v6, &[backend(B, v6)], |spec| spec.l4 = 81..=81);
        assert_eq!(host.says(v6, 4000), Err(DropReason::ServiceEnded));
        let mut host = Host::serving(v6, &[backend(B, v6)]);
        host.opens(v6, 4000);
        host.plane.services = Arc::default();
        host.publish();
        // The address is not the Service's any more: as any other that the network does not have.
        assert_eq!(host.says(v6, 4000), Err(DropReason::NoConnection));
    });
}

#[test]
fn a_backends_address_that_moves_ends_its_connections() {
    both(|v6| {
        let mut host = Host::serving(v6, &[backend(B, v6)]);
        host.opens(v6, 4000);
        host.plane.tables.set_addresses([(AddressKey::new(NETWORK, address(B, v6)), PortId(C))]);
        host.publish();
        assert_eq!(host.says(v6, 4000), Err(DropReason::ServiceEnded));
    });
}

#[test]
fn np31_what_is_established_goes_on_where_policy_is_kept_but_not_to_a_backend_that_is_gone() {
    both(|v6| {
        let mut host = Host::serving(v6, &[backend(B, v6)]);
        host.plane.tables.keep_established = true;
        host.opens(v6, 4000);
        host.allow_only(&[]);
        assert_eq!(host.says(v6, 4000), Ok(B));
        host.serve(v6, &[backend(C, v6)], |_| {});
        assert_eq!(host.says(v6, 4000), Err(DropReason::NoConnection), "no word to whom policy denies");
    });
}

#[test]
fn sv10_a_client_keeps_its_backend_over_changes_and_for_its_time() {
    both(|v6| {
        let affine = |spec: &mut FrontendSpec| spec.affinity_s = Some(60);
        let mut host = Host::serving_as(v6, &[backend(B, v6), backend(C, v6)], affine);
        let first = host.asks(A, vip(v6), 4000).unwrap().0;
        let other = if first == B { C } else { B };
        for port in 4001..4050 {
            assert_eq!(host.asks(A, vip(v6), port).unwrap().0, first);
        }
        assert_eq!(host.asks(A, public(v6, PUBLIC_VIP), 4060).unwrap().0, first, "over all addresses of its L4 port");
        // It drains and the client moves; then it stays with its new one, though the old one is back.
        host.serve(v6, &[drained(first, v6), backend(other, v6)], affine);
        assert_eq!(host.asks(A, vip(v6), 4100).unwrap().0, other);
        host.serve(v6, &[backend(B, v6), backend(C, v6)], affine);
        host.now += 60;
        assert_eq!(host.asks(A, vip(v6), 4101).unwrap().0, other);
        host.now += 60;
        assert_eq!(host.asks(A, vip(v6), 4102).unwrap().0, other, "counted from its last connection");
        host.now += 61;
        assert_eq!(host.asks(A, vip(v6), 4103).unwrap().0, first, "as the table has it");
    });
}

#[test]
fn a_refused_connection_is_not_remembered() {
    both(|v6| {
        let affine = |spec: &mut FrontendSpec| spec.affinity_s = Some(60);
        let mut host = Host::serving_as(v6, &[backend(B, v6)], affine);
        host.allow_only(&[]);
        assert_eq!(host.asks(A, vip(v6), 4000), Err(DropReason::PolicyDenied));
        host.world.policies.clear();
        host.serve(v6, &[backend(B, v6), backend(C, v6)], affine);
        let fresh = Host::serving_as(v6, &[backend(B, v6), backend(C, v6)], affine).asks(A, vip(v6), 4000);
        assert_eq!(host.asks(A, vip(v6), 4000), fresh);
    });
}

#[test]
fn sv5_a_client_whose_backend_is_gone_hears_a_reset_that_it_takes() {
    both(|v6| {
        for left in [vec![backend(C, v6)], vec![]] {
            let mut host = Host::serving(v6, &[backend(B, v6)]);
            host.opens(v6, 4000);
            host.serve(v6, &left, |_| {});
            let segment = out(A, vip(v6)).tcp(&tcp(4000, 80, ACK, 101, 501), b"more");
            for _ in 0..2 {
                let (reason, told) = host.told(A, &segment);
                let told = told.expect("a reset, and again if it was lost");
                let Body::Ip { src, dst, .. } = told.body else { panic!() };
                assert_eq!((reason, src, dst), (DropReason::ServiceEnded, vip(v6), address(A, v6)));
                // RFC 9293 §3.10.7.1: what the client expects next, from whom it talks to.
                let (reset, _) = told.tcp().expect("TCP");
                assert_eq!((reset.src_port, reset.dst_port, reset.flags, reset.seq), (80, 4000, RST, 501));
            }
            assert_eq!(host.entries(), []);
            let reset = out(A, vip(v6)).tcp(&tcp(4000, 80, RST, 101, 0), b"");
            assert!(host.told(A, &reset).1.is_none(), "never about a reset");
        }
    });
}

#[test]
fn nobody_hears_a_reset_who_may_not_begin_a_connection_or_is_out_there() {
    both(|v6| {
        let mut host = Host::serving(v6, &[backend(B, v6)]);
        let segment = tcp(4000, 80, ACK, 101, 501);
        let outside = inward(remote(v6, 1), public(v6, PUBLIC_VIP)).tcp(&segment, b"");
        let (reason, told) = host.told(UPLINK, &outside);
        assert_eq!((reason, told.is_none()), (DropReason::NoConnection, true), "another host may know it");
        host.allow_only(&[81]);
        for to in [vip(v6), public(v6, PUBLIC_VIP)] {
            let (reason, told) = host.told(A, &out(A, to).tcp(&segment, b""));
            assert_eq!((reason, told.is_none()), (DropReason::NoConnection, true));
        }
    });
}
