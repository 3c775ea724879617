//! What RFC 4787, 5382, 5508 and 6888 require of packets and of time, and no other test shows. `nat/RFC.md` lists every clause with its tests.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use hostweave_switch::tcp_track::{self, State as TcpState};

use super::errors::{about, quoted};
use super::*;
use crate::fabric::nat::release;

/// A host in which time ends connections and mappings, as the daemon's maintenance does.
pub(super) struct Timed {
    pub(super) host: Host,
    now: Arc<AtomicU32>,
}

impl Timed {
    pub(super) fn new(host: Host) -> Self {
        let now = Arc::new(AtomicU32::new(host.now));
        let (nat, clock) = (Arc::clone(&host.nat), Arc::clone(&now));
        let told = move |side, hold, entry: &Entry| release(&nat, side, hold, entry, clock.load(Relaxed));
        host.connections.on_release(Box::new(told));
        Self { host, now }
    }

    pub(super) fn wait(&mut self, seconds: u32) {
        self.host.now += seconds;
        self.now.store(self.host.now, Relaxed);
        for shard in 0..Connections::shards() {
            while self.host.connections.expire(shard, &self.host.plane.tables.timeouts, self.host.now, 1000) > 0 {}
        }
        while self.host.nat.expire(self.host.now, 1000, drop) {}
    }

    pub(super) fn mappings(&self) -> u64 {
        self.host.nat.stats().mappings
    }

    /// It is there after `at_least` seconds of silence, and gone a little later: nothing leaks.
    #[track_caller]
    fn lives(&mut self, at_least: u32) {
        self.wait(at_least);
        assert_eq!(self.mappings(), 1, "after {at_least} s");
        // What a cache answered by itself the table may not have seen yet (`TRUST_S`); it looks a second or two late besides.
        self.wait(TRUST_S + 4);
        assert_eq!((self.mappings(), self.host.entries().len()), (0, 0), "{at_least} s and a little more");
    }
}

/// A TCP connection by hand: `A` at 4000, a server at 80, and the L4 port by which the outside knows `A`.
struct Tcp {
    v6: bool,
    l4: u16,
}

impl Tcp {
    fn segment(src_port: u16, dst_port: u16, flags: u8, seq: u32, ack: u32) -> TcpHeader {
        TcpHeader { src_port, dst_port, seq, ack, flags, window: 1000 }
    }

    fn out(&self, flags: u8, seq: u32, ack: u32) -> Vec<u8> {
        out(A, remote(self.v6, 1)).tcp(&Self::segment(4000, 80, flags, seq, ack), b"")
    }

    fn back(&self, flags: u8, seq: u32, ack: u32) -> Vec<u8> {
        inward(remote(self.v6, 1), public(self.v6, POOL)).tcp(&Self::segment(80, self.l4, flags, seq, ack), b"")
    }

    /// A SYN that leaves.
    #[track_caller]
    fn begin(host: &mut Host, v6: bool) -> Self {
        let mut tcp = Self { v6, l4: 0 };
        tcp.l4 = host.through(0, A, &tcp.out(SYN, 100, 0)).unwrap().1.2;
        tcp
    }

    /// The rest of the handshake.
    #[track_caller]
    fn establish(host: &mut Host, v6: bool) -> Self {
        let tcp = Self::begin(host, v6);
        host.through(1, UPLINK, &tcp.back(SYN | ACK, 500, 101)).unwrap();
        host.through(0, A, &tcp.out(ACK, 101, 501)).unwrap();
        tcp
    }
}

#[test]
fn rfc4787_req6_packets_that_leave_keep_a_mapping_and_silence_ends_it() {
    both(|v6| {
        let mut timed = Timed::new(Host::outside());
        let l4 = timed.host.leaves(A, remote(v6, 1), (4000, 7000));
        for _ in 0..10 {
            timed.wait(290);
            assert_eq!(timed.host.leaves(A, remote(v6, 1), (4000, 7000)), l4, "no answer was needed");
        }
        timed.lives(300);
    });
}

#[test]
fn rfc4787_req5_a_mapping_outlives_each_of_its_connections() {
    both(|v6| {
        let mut timed = Timed::new(Host::outside());
        let l4 = timed.host.leaves(A, remote(v6, 1), (4000, 7000));
        timed.wait(200);
        assert_eq!(timed.host.leaves(A, remote(v6, 2), (4000, 7000)), l4);
        timed.wait(200);
        assert_eq!(timed.host.entries().len(), 1, "the first has ended");
        assert_eq!(timed.host.leaves(A, remote(v6, 3), (4000, 7000)), l4, "endpoint-independent to the end");
        timed.lives(300);
    });
}

/// Most guests ask many questions once each: they must not take L4 ports for five minutes.
#[test]
fn rfc4787_req5a_towards_dns_a_connection_lives_as_within_a_network_and_30_s_at_least() {
    both(|v6| {
        let (server, pool) = (remote(v6, 1), public(v6, POOL));
        let mut timed = Timed::new(Host::outside());
        timed.host.leaves(A, server, (4000, 53));
        timed.lives(30);
        // What is answered lives as long as any stream, and no shorter than it is told to.
        let l4 = timed.host.leaves(A, server, (4000, 53));
        timed.host.through(1, UPLINK, &inward(server, pool).udp(53, l4, b"answer")).unwrap();
        timed.lives(180);
        timed.host.plane.tables.timeouts.udp_unreplied = 50;
        timed.host.leaves(A, server, (4000, 53));
        timed.lives(50);
        // By an L4 port that is not that of DNS the mapping is one as any other.
        let l4 = timed.host.leaves(A, server, (4000, 53));
        assert_eq!(timed.host.leaves(A, server, (4000, 5353)), l4);
        timed.wait(100);
        assert_eq!(timed.host.entries().len(), 1);
        timed.lives(200);
        // And so is one whose source is: it is somebody who answers.
        timed.host.leaves(A, server, (53, 4000));
        timed.lives(300);
    });
}

/// What is written down for connections within networks must not cut those behind NAT short (SEMANTICS NA16).
#[test]
fn rfc5382_req5_timeouts_that_are_configured_shorter_end_no_connection_behind_nat() {
    both(|v6| {
        let sctp = |host: &mut Host| {
            let packet = [&4000u16.to_be_bytes()[..], &80u16.to_be_bytes(), &[0; 28]].concat();
            host.to(A, &out(A, remote(v6, 1)).ip(hostweave_switch::wire::proto::SCTP, &packet)).unwrap();
        };
        let other = |host: &mut Host| _ = host.to(A, &out(A, remote(v6, 1)).ip(47, &[0; 16])).unwrap();
        let tcp = |host: &mut Host| _ = Tcp::establish(host, v6);
        let shapes: [&dyn Fn(&mut Host); 3] = [&tcp, &sctp, &other];
        for (begin, lives) in shapes.into_iter().zip([7440, 600, 600]) {
            let mut timed = Timed::new(Host::outside());
            let timeouts = &mut timed.host.plane.tables.timeouts;
            (timeouts.tcp_established, timeouts.sctp, timeouts.other) = (600, 20, 20);
            begin(&mut timed.host);
            timed.lives(lives);
        }
        // A 1:1 address has no mapping that could be somebody else's: there, and within a network, what is written counts.
        let mut timed = Timed::new(Host::outside());
        timed.host.edit_uplink(|uplink| {
            let attached = Owned::Attached { port: PortId(A), inside: Some(mapped(address(A, v6))) };
            uplink.owned.insert(mapped(public(v6, POOL)), attached);
        });
        timed.host.plane.tables.timeouts.tcp_established = 600;
        Tcp::establish(&mut timed.host, v6);
        timed.wait(599);
        assert_eq!((timed.host.entries().len(), timed.mappings()), (1, 0));
        timed.wait(TRUST_S + 4);
        assert_eq!(timed.host.entries().len(), 0);
    });
}

/// The table of connections knows nothing of NAT, and must not forget what that remembers.
#[test]
fn connections_behind_nat_live_as_long_as_nat_says() {
    let (nat, timeouts) = (hostweave_nat::Timers::default(), hostweave_switch::connection::Timeouts::default());
    assert_eq!(
        hostweave_nat::Timers {
            udp: timeouts.mapped_udp,
            dns: timeouts.mapped_dns,
            tcp_established: timeouts.mapped_tcp_established,
            tcp_transitory: timeouts.mapped_tcp,
            icmp: timeouts.mapped_icmp,
            other: timeouts.mapped_other,
        },
        nat
    );
}

#[test]
fn rfc5382_req5_a_connection_behind_nat_lives_as_long_as_its_mapping_must() {
    both(|v6| {
        let syn_sent: fn(&mut Host, bool) = |host, v6| _ = Tcp::begin(host, v6);
        let established: fn(&mut Host, bool) = |host, v6| _ = Tcp::establish(host, v6);
        let closing: fn(&mut Host, bool) = |host, v6| {
            let tcp = Tcp::establish(host, v6);
            host.through(0, A, &tcp.out(FIN | ACK, 101, 501)).unwrap();
        };
        let closed: fn(&mut Host, bool) = |host, v6| {
            let tcp = Tcp::establish(host, v6);
            host.through(0, A, &tcp.out(FIN | ACK, 101, 501)).unwrap();
            host.through(1, UPLINK, &tcp.back(FIN | ACK, 501, 102)).unwrap();
            host.through(0, A, &tcp.out(ACK, 102, 502)).unwrap();
        };
        // RFC 7857 §2.2: nor does a reset end it at once.
        let reset: fn(&mut Host, bool) = |host, v6| {
            let tcp = Tcp::establish(host, v6);
            host.through(1, UPLINK, &tcp.back(RST, 501, 0)).unwrap();
        };
        for (state, transitory) in [(syn_sent, 240), (established, 7440), (closing, 240), (closed, 240), (reset, 240)] {
            let mut timed = Timed::new(Host::outside());
            state(&mut timed.host, v6);
            timed.lives(transitory);
        }
    });
}

#[test]
fn rfc5508_req2_an_echo_behind_nat_is_answered_for_60_s() {
    both(|v6| {
        let mut timed = Timed::new(Host::outside());
        let ident = timed.host.through(0, A, &out(A, remote(v6, 1)).echo_request(7, 1, b"ping")).unwrap().1.2;
        timed.wait(59);
        let [a, b] = ident.to_be_bytes();
        let reply = inward(remote(v6, 1), public(v6, POOL)).icmp(if v6 { 129 } else { 0 }, 0, [a, b, 0, 1], b"ping");
        assert_eq!(timed.host.through(0, UPLINK, &reply).unwrap().0, A);
        timed.lives(60);
    });
}

/// Every error of ICMP that somebody may send, and some that nobody does any more.
fn errors(v6: bool) -> Vec<(u8, u8)> {
    let codes = |kind: u8, codes: std::ops::Range<u8>| codes.map(move |code| (kind, code));
    match v6 {
        false => codes(3, 0..16).chain(codes(4, 0..1)).chain(codes(11, 0..2)).chain(codes(12, 0..3)).collect(),
        true => codes(1, 0..8).chain(codes(2, 0..1)).chain(codes(3, 0..2)).chain(codes(4, 0..3)).collect(),
    }
}

/// RFC 4787 REQ-12, RFC 5382 REQ-10, RFC 5508 REQ-6, RFC 7857 §7.1.
#[test]
fn rfc4787_req12_rfc5382_req10_rfc5508_req6_no_icmp_error_ends_or_prolongs_anything() {
    both(|v6| {
        let mut host = Host::outside();
        let (server, router, pool) = (remote(v6, 1), remote(v6, 200), public(v6, POOL));
        let tcp = Tcp::establish(&mut host, v6);
        let datagram = out(A, server).udp(4000, 53, b"question");
        let echo = out(A, server).echo_request(7, 1, b"ping");
        let outside = [&datagram, &echo, &tcp.out(ACK, 101, 501)].map(|frame| host.frame_through(A, frame).1);
        let l4 = read(&outside[0]).1.2;
        let answer = inward(server, pool).udp(53, l4, b"answer");
        let inside = [&answer, &tcp.back(ACK, 501, 101)].map(|frame| host.frame_through(UPLINK, frame).1);
        host.now += 50;
        let before = host.state();
        let (mut from_outside, mut from_inside) = (0, 0);
        for kind in errors(v6) {
            // Whoever it comes from (REQ-12a).
            for (sent, from) in outside.iter().flat_map(|sent| [(sent, server), (sent, router)]) {
                let error = about(inward(from, pool), kind, [0; 4], sent, 500);
                from_outside += usize::from(host.to(UPLINK, &error) == Ok(A));
            }
            for received in &inside {
                from_inside +=
                    usize::from(host.to(A, &about(out(A, server), kind, [0; 4], received, 500)) == Ok(UPLINK));
            }
            assert_eq!(host.state(), before, "{kind:?}");
        }
        assert!(from_outside >= 6 * 8 && from_inside >= 2 * 8, "and they arrive: {from_outside}, {from_inside}");
        // All goes on, from where it was.
        assert_eq!(host.leaves(A, server, (4000, 53)), l4);
        assert_eq!(host.through(1, UPLINK, &answer).unwrap().0, A);
        assert_eq!(host.through(0, A, &tcp.out(ACK, 101, 501)).unwrap().1.2, tcp.l4);
        assert_eq!(host.through(1, UPLINK, &tcp.back(ACK, 501, 101)).unwrap().0, A);
    });
}

#[test]
fn rfc5508_req4_req5_errors_about_what_has_no_mapping_end_in_silence() {
    both(|v6| {
        let mut host = Host::outside();
        let (server, pool) = (remote(v6, 1), public(v6, POOL));
        let l4 = host.leaves(A, server, (4000, 53));
        let never = [
            (
                UPLINK,
                inward(server, pool),
                Path { ttl: 63, ..Path::new([0; 6], [0; 6], pool, server) }.udp(l4 ^ 1, 53, b"?"),
            ),
            (UPLINK, inward(server, pool), Path::new([0; 6], [0; 6], pool, server).echo_request(l4, 1, b"?")),
            (A, out(A, server), Path::new([0; 6], [0; 6], server, address(A, v6)).udp(54, 4000, b"?")),
            (A, out(A, server), Path::new([0; 6], [0; 6], server, address(A, v6)).echo_request(9, 1, b"?")),
        ];
        let before = host.state();
        for (from, path, packet) in never {
            for kind in errors(v6) {
                let error = about(path, kind, [0; 4], &packet, 500);
                let ended = host.pass(0, from, &error, Offload::default(), &mut Unwatched).err().unwrap();
                assert!(ended.1.is_none(), "{kind:?} from {from}: no error about an error");
            }
        }
        assert_eq!(host.state(), before);
    });
}

/// RFC 5508 REQ-4b, REQ-5b for every type and code, not for one.
#[test]
fn rfc5508_req4_req5_type_and_code_stay_as_they_are() {
    both(|v6| {
        let mut host = Host::outside();
        let (server, pool) = (remote(v6, 1), public(v6, POOL));
        let (_, outside) = host.frame_through(A, &out(A, server).udp(4000, 53, b"question"));
        let l4 = read(&outside).1.2;
        let (_, inside) = host.frame_through(UPLINK, &inward(server, pool).udp(53, l4, b"answer"));
        for kind in errors(v6).into_iter().filter(|kind| v6 || kind.0 != 4) {
            let (to, got) =
                host.frame_through(UPLINK, &about(inward(remote(v6, 200), pool), kind, [0; 4], &outside, 500));
            assert_eq!((to, quoted(&got).1), (A, kind));
            let (to, got) = host.frame_through(A, &about(out(A, server), kind, [0; 4], &inside, 500));
            assert_eq!((to, quoted(&got).1), (UPLINK, kind));
        }
    });
}

#[test]
fn rfc5508_req7_a_query_to_a_one_to_one_address_of_the_host_is_answered() {
    both(|v6| {
        let mut host = Host::outside();
        host.edit_uplink(|uplink| {
            let attached = Owned::Attached { port: PortId(B), inside: Some(mapped(address(B, v6))) };
            uplink.owned.insert(mapped(public(v6, PUBLIC)), attached);
        });
        let (pool, theirs) = (public(v6, POOL), public(v6, PUBLIC));
        for from in [A, D] {
            let (to, seen) = host.through(0, from, &out(from, theirs).echo_request(77, 1, b"ping")).unwrap();
            assert_eq!((to, seen.0, seen.1), (B, pool, address(B, v6)), "from outside, as by the wire");
            let [a, b] = seen.2.to_be_bytes();
            let reply = out(B, pool).icmp(if v6 { 129 } else { 0 }, 0, [a, b, 0, 1], b"ping");
            let inside = if from == D { address(A, v6) } else { address(from, v6) };
            assert_eq!(host.through(1, B, &reply), Ok((from, (theirs, inside, 77, 0))));
        }
    });
}

#[test]
fn rfc5382_req2_a_connection_that_begins_outside_is_a_whole_one_where_the_filter_permits_it() {
    both(|v6| {
        let mut host = Host::with_pool(|pool| pool.filtering = Filtering::EndpointIndependent);
        let (stranger, pool) = (remote(v6, 2), public(v6, POOL));
        let l4 = Tcp::begin(&mut host, v6).l4;
        let steps = [
            (UPLINK, SYN, 10, 0),
            (A, SYN | ACK, 50, 11),
            (UPLINK, ACK, 11, 51),
            (A, ACK, 51, 11),
            (UPLINK, FIN | ACK, 11, 51),
            (A, ACK, 51, 12),
            (A, FIN | ACK, 51, 12),
            (UPLINK, ACK, 12, 52),
        ];
        for (step, (from, flags, seq, ack)) in steps.into_iter().enumerate() {
            let (frame, expected) = match from {
                A => (
                    out(A, stranger).tcp(&Tcp::segment(4000, 9, flags, seq, ack), b""),
                    (UPLINK, (pool, stranger, l4, 9)),
                ),
                _ => (
                    inward(stranger, pool).tcp(&Tcp::segment(9, l4, flags, seq, ack), b""),
                    (A, (stranger, address(A, v6), 9, 4000)),
                ),
            };
            assert_eq!(host.through(step % 2, from, &frame), Ok(expected), "step {step}");
        }
        let entry = host.entries().into_iter().find(|entry| entry.in_port == UPLINK).unwrap();
        assert_eq!(tcp_track::state(&entry.sides[0], &entry.sides[1]), TcpState::TimeWait);
    });
}

#[test]
fn rfc5382_req4_an_unsolicited_syn_hears_nothing_and_a_syn_that_leaves_crosses_it() {
    both(|v6| {
        let mut host = Host::outside();
        let (peer, pool) = (remote(v6, 2), public(v6, POOL));
        // A's socket is known outside by what a server has told.
        let l4 = Tcp::begin(&mut host, v6).l4;
        let theirs = inward(peer, pool).tcp(&Tcp::segment(81, l4, SYN, 900, 0), b"");
        for second in 0..8 {
            host.now = 100 + second;
            let ended = host.pass(0, UPLINK, &theirs, Offload::default(), &mut Unwatched).err().unwrap();
            assert!(ended.0 == DropReason::NatNoMapping && ended.1.is_none(), "silence, then and after 6 s");
        }
        let own = out(A, peer).tcp(&Tcp::segment(4000, 81, SYN, 300, 0), b"");
        assert_eq!(host.through(0, A, &own), Ok((UPLINK, (pool, peer, l4, 81))));
        // It comes again, and this time it is the other half of a simultaneous open.
        assert_eq!(host.through(1, UPLINK, &theirs).map(|(to, _)| to), Ok(A));
        let answer = out(A, peer).tcp(&Tcp::segment(4000, 81, SYN | ACK, 300, 901), b"");
        assert_eq!(host.through(0, A, &answer).map(|(to, _)| to), Ok(UPLINK));
    });
}

/// RFC 4787 REQ-10, RFC 5382 REQ-6: there are no ALGs.
#[test]
fn rfc4787_req10_rfc5382_req6_addresses_in_payloads_are_not_looked_for() {
    both(|v6| {
        let mut host = Host::outside();
        let (server, inside) = (remote(v6, 1), address(A, v6));
        let text = match inside {
            IpAddr::V4(inside) => format!("PORT {},15,160\r\n", inside.to_string().replace('.', ",")),
            IpAddr::V6(inside) => format!("EPRT |2|{inside}|4000|\r\n"),
        };
        let sip = format!(
            "INVITE sip:b@example.org SIP/2.0\r\nVia: SIP/2.0/UDP {inside}:4000\r\nContact: <sip:a@{inside}>\r\n"
        );
        let mut same = |from, frame: Vec<u8>| {
            let got = host.frame_through(from, &frame).1;
            let payload = |frame: &[u8]| match read(frame).0.body {
                Body::Ip { l4: L4::Udp { payload, .. } | L4::Tcp { payload, .. }, .. } => payload,
                other => panic!("{other:?}"),
            };
            assert_eq!(payload(&got), payload(&frame));
            read(&got).1
        };
        let ftp = |flags, seq, ack| Tcp::segment(4000, 21, flags, seq, ack);
        let l4 = same(A, out(A, server).tcp(&ftp(SYN, 1, 0), b"")).2;
        same(UPLINK, inward(server, public(v6, POOL)).tcp(&Tcp::segment(21, l4, SYN | ACK, 9, 2), b""));
        same(A, out(A, server).tcp(&ftp(ACK, 2, 10), text.as_bytes()));
        let l4 = same(A, out(A, server).udp(5060, 5060, sip.as_bytes())).2;
        same(UPLINK, inward(server, public(v6, POOL)).udp(5060, l4, sip.as_bytes()));
        // Nor does any of it open a way in.
        let unasked = inward(server, public(v6, POOL)).tcp(&Tcp::segment(20, 4000, SYN, 1, 0), b"");
        assert_eq!(host.to(UPLINK, &unasked), Err(DropReason::NatNoMapping));
    });
}

#[test]
fn rfc6888_req6_nothing_is_translated_towards_destinations_that_are_exempt() {
    both(|v6| {
        let mut host = Host::outside();
        let exempt = |host: &mut Host, ranges: &[&str]| {
            host.edit_network(NETWORK, |network| {
                network.untranslated = ranges.iter().map(|range| range.parse().unwrap()).collect();
            });
        };
        let (near, far, own) = (remote(v6, 1), remote(v6, 200), address(A, v6));
        let to_near = out(A, near).udp(4000, 53, b"data");
        let ranges = ["198.51.100.0/25", "2001:db8:e::/121"];
        exempt(&mut host, &ranges);
        assert_eq!(host.to(A, &to_near), Err(DropReason::SourceNotOwned), "only from a range that is routed to us");
        let (v4, v6_range) = ("192.0.2.0/24".parse().unwrap(), "2001:db8:0:1::/64".parse().unwrap());
        host.edit_uplink(|uplink| uplink.routed = vec![(v4, NETWORK), (v6_range, NETWORK)]);
        assert_eq!(host.traced(A, &to_near), Ok(UPLINK));
        for _ in 0..3 {
            assert_eq!(host.through(0, A, &to_near), Ok((UPLINK, (own, near, 4000, 53))));
            let answer = inward(near, own).udp(53, 4000, b"answer");
            assert_eq!(host.through(1, UPLINK, &answer), Ok((A, (near, own, 53, 4000))));
        }
        assert_eq!(host.nat.stats().mappings, 0, "it takes nothing of the pool");
        // All else is translated, of the same endpoint too; and nothing unasked comes in, from there or elsewhere.
        let l4 = host.leaves(A, far, (4000, 53));
        assert_eq!(host.leaves(A, remote(v6, 128), (4000, 53)), l4);
        for from in [near, far] {
            assert_eq!(host.to(UPLINK, &inward(from, own).udp(54, 4000, b"?")), Err(DropReason::NatNoMapping));
        }
        // Another network has the same range and no exemption.
        assert_eq!(host.through(0, D, &out(D, near).udp(4000, 53, b"data")).unwrap().1.0, public(v6, POOL));
        // What was exempt and is not any more begins anew, translated; and the other way round.
        exempt(&mut host, &[]);
        host.edit_uplink(|uplink| uplink.routed.clear());
        assert_eq!(host.leaves(A, near, (4000, 53)), l4);
        exempt(&mut host, &ranges);
        host.edit_uplink(|uplink| uplink.routed = vec![(v4, NETWORK), (v6_range, NETWORK)]);
        assert_eq!(host.through(0, A, &to_near), Ok((UPLINK, (own, near, 4000, 53))));
        assert_eq!(host.leaves(A, far, (4000, 53)), l4, "and what had nothing to do with it goes on");
        // Where a network has no way out there is none by this either.
        host.edit_network(NETWORK, |network| (network.egress_v4, network.egress_v6) = (Egress::None, Egress::None));
        assert_eq!(host.to(A, &to_near), Err(DropReason::EgressNone));
    });
}

/// RFC 5508 REQ-8, RFC 6888 REQ-11: the code says whether it was refused or there was no room.
#[test]
fn rfc5508_req8_rfc6888_req11_a_connection_without_mapping_is_dropped_and_told_and_takes_nothing_away() {
    both(|v6| {
        let frames = |port: u16| {
            let way = out(A, remote(v6, 1));
            let syn = Tcp::segment(port, 80, SYN, 1, 0);
            [way.udp(port, 53, b"data"), way.tcp(&syn, b""), way.echo_request(port, 1, b"ping")]
        };
        let told = |host: &mut Host, frame: &[u8]| {
            let ended = host.pass(0, A, frame, Offload::default(), &mut Unwatched).err().unwrap();
            (ended.0, quoted(&ended.1.unwrap()).1)
        };
        // No room.
        let mut host = Host::with_pool(|pool| pool.blocks = 1..=1);
        for port in 2000..2064 {
            frames(port).iter().for_each(|frame| assert_eq!(host.to(A, frame), Ok(UPLINK)));
        }
        let before = host.state();
        for frame in frames(3000) {
            let expected = if v6 { (1, 3) } else { (3, 1) };
            assert_eq!(told(&mut host, &frame), (DropReason::NatPortLimit, expected));
        }
        let after = host.state();
        assert!(after.has_all_of(&before), "no existing mapping makes room for a new one");
        // Not allowed.
        let mut host = Host::with_pool(|pool| pool.workloads.clear());
        for frame in frames(3000) {
            assert_eq!(told(&mut host, &frame), (DropReason::NatNoPool, if v6 { (1, 1) } else { (3, 13) }));
        }
    });
}
