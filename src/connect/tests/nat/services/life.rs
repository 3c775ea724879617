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

/// It has not left, and is back soon: what it serves over UDP goes on, and what it never answered finds another.
#[test]
fn an_ejected_backend_keeps_what_it_has_answered_over_udp_and_nothing_else() {
    both(|v6| {
        let mut host = Host::serving(v6, &[backend(B, v6)]);
        for port in [4000, 4001] {
            assert_eq!(host.asks(A, vip(v6), port).unwrap().0, B);
        }
        let answer = path(B, A, v6).udp(8080, 4000, b"answer");
        assert_eq!(host.through(1, B, &answer).unwrap().0, A);
        // That one asks again and again is no answer.
        host.now += 3;
        assert_eq!(host.asks(A, vip(v6), 4001).unwrap().0, B);
        host.serve(v6, &[Backend { ejected: true, ..drained(B, v6) }, backend(C, v6)], |_| {});
        for _ in 0..2 {
            assert_eq!(host.asks(A, vip(v6), 4000).unwrap().0, B);
            assert_eq!(host.asks(A, vip(v6), 4001).unwrap().0, C);
        }
        assert_eq!(host.asks(A, vip(v6), 4002).unwrap().0, C);
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
fn sv9_a_syn_that_was_sent_again_without_an_answer_selects_again_too() {
    both(|v6| {
        let mut host = Host::serving(v6, &[backend(B, v6)]);
        let syn = out(A, vip(v6)).tcp(&tcp(4000, 80, SYN, 100, 0), b"");
        for wait in [0, 1, 2] {
            host.now += wait;
            assert_eq!(host.through(0, A, &syn).unwrap().0, B);
        }
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
fn a_client_beyond_the_uplink_hears_a_reset_of_a_connection_that_this_host_had() {
    both(|v6| {
        for from_cache in [true, false] {
            let mut host = Host::serving(v6, &[backend(B, v6)]);
            let (client, at) = (remote(v6, 1), public(v6, PUBLIC_VIP));
            let sent = |flags, seq, ack| inward(client, at).tcp(&tcp(4000, 80, flags, seq, ack), b"");
            assert_eq!(host.through(0, UPLINK, &sent(SYN, 100, 0)).unwrap().0, B);
            let answer = out(B, client).tcp(&tcp(8080, 4000, SYN | ACK, 500, 101), b"");
            assert_eq!(host.through(1, B, &answer).unwrap().0, UPLINK);
            assert_eq!(host.through(0, UPLINK, &sent(ACK, 101, 501)).unwrap().0, B);
            host.serve(v6, &[backend(C, v6)], |_| {});
            let worker = usize::from(!from_cache);
            let ended =
                host.pass(worker, UPLINK, &sent(ACK, 101, 501), Offload::default(), &mut Unwatched).err().unwrap();
            let told = read(&ended.1.expect("a reset")).0;
            let Body::Ip { src, dst, .. } = told.body else { panic!() };
            assert_eq!((ended.0, src, dst), (DropReason::ServiceEnded, at, client));
            assert_eq!((told.src_mac, told.dst_mac), (UPLINK_MAC.0, GATEWAY_MAC.0));
            let (reset, _) = told.tcp().expect("TCP");
            assert_eq!((reset.src_port, reset.dst_port, reset.flags, reset.seq), (80, 4000, RST, 501));
            // From now on it is as unknown as any.
            let (reason, told) = host.told(UPLINK, &sent(ACK, 101, 501));
            assert_eq!((reason, told.is_none()), (DropReason::NoConnection, true));
            assert_eq!(host.through(0, UPLINK, &sent(SYN, 9_000, 0)).unwrap().0, C, "and a SYN selects again");
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

/// How a connection of `A` from L4 port 4000 ends.
#[derive(Clone, Copy, PartialEq, Debug)]
enum End {
    Reset,
    Closed,
}

impl Host {
    /// Opens a TCP connection of `A` from L4 port 4000, by way of `to` (an address and L4 port), with its backend `B`, as which it shows the
    /// client's L4 port `shown`.
    #[track_caller]
    fn opens_by(&mut self, v6: bool, to: (IpAddr, u16), isn: u32) -> Seen {
        let frame = |flags, seq, ack| out(A, to.0).tcp(&tcp(4000, to.1, flags, seq, ack), b"");
        let (backend, seen) = self.through(0, A, &frame(SYN, isn, 0)).unwrap();
        assert_eq!(backend, B);
        let answer = path(B, A, v6).tcp(&tcp(8080, seen.2, SYN | ACK, 500, isn + 1), b"");
        let (client, back) = self.through(1, B, &answer).unwrap();
        assert_eq!((client, back), (A, (to.0, address(A, v6), to.1, 4000)));
        self.through(0, A, &frame(ACK, isn + 1, 501)).unwrap();
        seen
    }

    /// Ends it.
    #[track_caller]
    fn ends(&mut self, v6: bool, to: (IpAddr, u16), isn: u32, end: End) {
        let mine = |flags, seq, ack| out(A, to.0).tcp(&tcp(4000, to.1, flags, seq, ack), b"");
        let its = |flags, seq, ack| path(B, A, v6).tcp(&tcp(8080, 4000, flags, seq, ack), b"");
        if end == End::Reset {
            self.through(1, B, &its(RST, 501, 0)).unwrap();
            return;
        }
        self.through(0, A, &mine(FIN | ACK, isn + 1, 501)).unwrap();
        self.through(1, B, &its(FIN | ACK, 501, isn + 2)).unwrap();
        self.through(0, A, &mine(ACK, isn + 2, 502)).unwrap();
    }
}

#[test]
fn a_connection_that_has_ended_makes_room_for_one_by_the_other_way_to_its_backend() {
    both(|v6| {
        let (service, direct) = ((vip(v6), 80), (address(B, v6), 8080));
        for end in [End::Reset, End::Closed] {
            for [first, second] in [[service, direct], [direct, service]] {
                let mut host = Host::serving(v6, &[backend(B, v6)]);
                host.opens_by(v6, first, 100);
                host.ends(v6, first, 100, end);
                // Whatever its number is: the backend itself says if that does not do.
                let seen = host.opens_by(v6, second, 50);
                assert_eq!(seen, (address(A, v6), address(B, v6), 4000, 8080), "{end:?}: as it is");
                assert_eq!(host.entries().len(), 1, "{end:?}");
            }
        }
    });
}

#[test]
fn udp_that_was_silent_for_as_long_as_it_lives_within_a_network_makes_room_for_the_other_way() {
    both(|v6| {
        let mut host = Host::serving(v6, &[backend(B, v6)]);
        assert_eq!(host.asks(A, vip(v6), 4000).unwrap().0, B);
        host.now += 20;
        let direct = out(A, address(B, v6)).udp(4000, 8080, b"question");
        assert_ne!(host.through(0, A, &direct).unwrap().1.2, 4000, "it may be answered still");
        host.now += 12;
        let direct = out(A, address(B, v6)).udp(4000, 8080, b"question");
        assert_ne!(host.through(1, A, &direct).unwrap().1.2, 4000, "what has begun goes on as it did");
        let mut host = Host::serving(v6, &[backend(B, v6)]);
        assert_eq!(host.asks(A, vip(v6), 4000).unwrap().0, B);
        host.now += 32;
        assert_eq!(host.to(A, &direct), Ok(B));
        assert_eq!(host.entry().translation, None);
    });
}

#[test]
fn a_live_connection_to_a_service_and_one_to_its_backend_itself_from_one_l4_port_are_told_apart() {
    both(|v6| {
        let (service, direct) = ((vip(v6), 80), (address(B, v6), 8080));
        for [first, second] in [[service, direct], [direct, service]] {
            let mut host = Host::serving(v6, &[backend(B, v6)]);
            assert_eq!(host.opens_by(v6, first, 100).2, 4000);
            let other = host.opens_by(v6, second, 900).2;
            assert!(other >= 49152, "another L4 port: {other}");
            for _ in 0..2 {
                for (to, l4, ack) in [(first, 4000, 101), (second, other, 901)] {
                    let answer = path(B, A, v6).tcp(&tcp(8080, l4, ACK, 501, ack), b"data");
                    assert_eq!(host.through(1, B, &answer), Ok((A, (to.0, address(A, v6), to.1, 4000))));
                    let more = out(A, to.0).tcp(&tcp(4000, to.1, ACK, ack, 501), b"more");
                    assert_eq!(host.through(0, A, &more), Ok((B, (address(A, v6), address(B, v6), l4, 8080))));
                }
                // By tables of later, too.
                host.publish();
            }
            assert_eq!(host.entries().len(), 2);
            // Policy is asked about both as they are sent.
            host.allow_only(&[80]);
            for (to, ack) in [(first, 101), (second, 901)] {
                let more = out(A, to.0).tcp(&tcp(4000, to.1, ACK, ack, 501), b"more");
                assert_eq!(host.through(0, A, &more), Err(DropReason::PolicyDenied));
            }
        }
    });
}

#[test]
fn one_to_the_backend_itself_by_another_l4_port_ends_with_the_addresses_that_it_goes_to() {
    both(|v6| {
        let (service, direct) = ((vip(v6), 80), (address(B, v6), 8080));
        let mut host = Host::serving(v6, &[backend(B, v6)]);
        host.opens_by(v6, service, 100);
        host.opens_by(v6, direct, 900);
        host.plane.tables.set_addresses([(AddressKey::new(NETWORK, address(B, v6)), PortId(C))]);
        host.publish();
        let more = out(A, direct.0).tcp(&tcp(4000, 8080, ACK, 901, 501), b"more");
        assert_eq!(host.through(0, A, &more), Err(DropReason::NoConnection));
    });
}
