//! ICMP through translation: queries, and errors with what they quote (SEMANTICS NA18–NA24, RFC 5508).

use super::*;

/// An error about the packet in `frame`, quoting up to `octets` of it.
pub(super) fn about(path: Path, kind: (u8, u8), rest: [u8; 4], frame: &[u8], octets: usize) -> Vec<u8> {
    let quoted = &frame[14..];
    path.icmp(kind.0, kind.1, rest, &quoted[..quoted.len().min(octets)])
}

pub(super) fn unreachable(v6: bool) -> (u8, u8) {
    if v6 { (1, 4) } else { (3, 3) }
}

/// The packet that an error quotes, as a frame; and its type, code and the word behind the checksum.
#[track_caller]
pub(super) fn quoted(frame: &[u8]) -> (Vec<u8>, (u8, u8), [u8; 4]) {
    let (parsed, _) = read(frame);
    let Body::Ip { l4: L4::Icmp { kind, code, rest, payload }, .. } = parsed.body else { panic!("{parsed:?}") };
    ([&frame[..14], &payload].concat(), (kind, code), rest)
}

impl Host {
    #[track_caller]
    pub(super) fn frame_through(&mut self, from: u32, frame: &[u8]) -> (u32, Vec<u8>) {
        let passed = self.pass(0, from, frame, Offload::default(), &mut Unwatched);
        let passed = passed.unwrap_or_else(|ended| panic!("{:?}", ended.0));
        (passed.to, passed.frame)
    }
}

#[test]
fn na18_echo_through_a_pool() {
    both(|v6| {
        let mut host = Host::outside();
        let (server, pool) = (remote(v6, 1), public(v6, POOL));
        let (to, seen) = host.through(0, A, &out(A, server).echo_request(77, 1, b"ping")).unwrap();
        assert_eq!((to, seen.0, seen.1), (UPLINK, pool, server));
        let ident = seen.2;
        let reply = |ident: u16| {
            let [a, b] = ident.to_be_bytes();
            inward(server, pool).icmp(if v6 { 129 } else { 0 }, 0, [a, b, 0, 1], b"ping")
        };
        for worker in [1, 0] {
            assert_eq!(host.through(worker, UPLINK, &reply(ident)), Ok((A, (server, address(A, v6), 77, 0))));
        }
        // To another remote by the same identifier outside.
        let (_, other) = host.through(1, A, &out(A, remote(v6, 2)).echo_request(77, 1, b"ping")).unwrap();
        assert_eq!(other.2, ident);
        assert_eq!(host.through(0, UPLINK, &reply(ident ^ 1)), Err(DropReason::NatNoMapping));
    });
}

#[test]
fn na20_errors_from_outside_are_translated_whole() {
    both(|v6| {
        let mut host = Host::outside();
        let (server, router, pool) = (remote(v6, 1), remote(v6, 200), public(v6, POOL));
        let header = if v6 { 40 } else { 20 };
        for from in [server, router] {
            let cases: [(&str, Vec<u8>); 3] = [
                ("UDP", out(A, server).udp(4000, 53, b"some data to be quoted")),
                (
                    "TCP",
                    out(A, server).tcp(&TcpHeader { src_port: 1, dst_port: 2, flags: SYN, ..Default::default() }, b""),
                ),
                ("echo", out(A, server).echo_request(9, 1, b"ping")),
            ];
            for (case, sent) in cases {
                let (_, outside) = host.frame_through(A, &sent);
                for octets in [500, header + 8, header + 18] {
                    let error = about(inward(from, pool), unreachable(v6), [0, 0, 5, 0], &outside, octets);
                    let (to, got) = host.frame_through(UPLINK, &error);
                    assert_eq!(to, A, "{case}");
                    let (inner, kind, rest) = quoted(&got);
                    assert_eq!((kind, rest), (unreachable(v6), [0, 0, 5, 0]), "type, code and the rest are kept");
                    let Body::Ip { src, dst, .. } = read(&got).0.body else { panic!() };
                    assert_eq!((src, dst), (from, address(A, v6)));
                    // As the guest sent it, but for the TTL.
                    let (mut inner, mut sent) =
                        (inner[14..].to_vec(), sent[14..14 + octets.min(sent.len() - 14)].to_vec());
                    let ttl = if v6 { 7..8 } else { 8..12 };
                    let ttl = ttl.start..ttl.end;
                    for octets in [&mut inner, &mut sent] {
                        octets[ttl.clone()].fill(0);
                    }
                    assert_eq!(inner, sent, "{case}, {octets} octets");
                }
            }
        }
        let stray = out(A, server).udp(4444, 53, b"never sent");
        let error = about(inward(server, pool), unreachable(v6), [0; 4], &stray, 500);
        assert_eq!(host.to(UPLINK, &error), Err(DropReason::IcmpUnrelated));
    });
}

#[test]
fn na21_errors_of_a_guest_come_from_where_its_peer_knows_it() {
    both(|v6| {
        let mut host = Host::outside();
        let (server, pool) = (remote(v6, 1), public(v6, POOL));
        let l4 = host.leaves(A, server, (4000, 53));
        let answer = inward(server, pool).udp(53, l4, b"answer");
        let (_, inside) = host.frame_through(UPLINK, &answer);
        let error = about(out(A, server), unreachable(v6), [0; 4], &inside, 500);
        let (to, got) = host.frame_through(A, &error);
        assert_eq!(to, UPLINK);
        let Body::Ip { src, dst, .. } = read(&got).0.body else { panic!() };
        assert_eq!((src, dst), (pool, server));
        let (inner, ..) = quoted(&got);
        let header = if v6 { 40 } else { 20 };
        assert_eq!(inner[14 + header..], answer[14 + header..], "ports and checksum are those that the server sent");
        assert_eq!(host.entries().len(), 1);
    });
}

#[test]
fn na22_errors_between_two_guests_behind_one_address() {
    both(|v6| {
        let mut host = Host::with_pool(|pool| pool.filtering = Filtering::EndpointIndependent);
        let pool = public(v6, POOL);
        let theirs = host.leaves(B, remote(v6, 1), (5000, 53));
        let sent = out(A, pool).udp(4000, theirs, b"hello");
        let (to, got) = host.frame_through(A, &sent);
        assert_eq!(to, B);
        let error = about(out(B, pool), unreachable(v6), [0; 4], &got, 500);
        let (to, got) = host.frame_through(B, &error);
        assert_eq!(to, A);
        let Body::Ip { src, dst, .. } = read(&got).0.body else { panic!() };
        assert_eq!((src, dst), (pool, address(A, v6)));
        let (inner, ..) = quoted(&got);
        let header = if v6 { 40 } else { 20 };
        assert_eq!(inner[14 + header..], sent[14 + header..]);
    });
}

#[test]
fn na19_errors_with_a_wrong_checksum_end() {
    both(|v6| {
        let mut host = Host::outside();
        let (server, pool) = (remote(v6, 1), public(v6, POOL));
        let sent = out(A, server).udp(4000, 53, &[7; 600]);
        let (_, outside) = host.frame_through(A, &sent);
        let good = about(inward(server, pool), unreachable(v6), [0; 4], &outside, 548);
        assert_eq!(host.to(UPLINK, &good), Ok(A));
        let mut outer = good.clone();
        *outer.last_mut().unwrap() ^= 1;
        assert_eq!(host.to(UPLINK, &outer), Err(DropReason::ChecksumBad));
        if !v6 {
            let mut broken = outside;
            broken[24] ^= 1;
            let inner = about(inward(server, pool), unreachable(v6), [0; 4], &broken, 548);
            assert_eq!(host.to(UPLINK, &inner), Err(DropReason::ChecksumBad));
        }
        // That of the quoted datagram may be anything.
        let mut broken = host.frame_through(A, &sent).1;
        *broken.last_mut().unwrap() ^= 1;
        let inner = about(inward(server, pool), unreachable(v6), [0; 4], &broken, 700);
        assert_eq!(host.to(UPLINK, &inner), Ok(A));
    });
}

#[test]
fn na24_extensions_behind_a_quote_stay_as_they_are() {
    both(|v6| {
        let mut host = Host::outside();
        let (server, pool) = (remote(v6, 1), public(v6, POOL));
        let header = if v6 { 40 } else { 20 };
        let sent = out(A, server).tcp(&TcpHeader { src_port: 1, dst_port: 2, flags: SYN, ..Default::default() }, b"");
        let (_, outside) = host.frame_through(A, &sent);
        // The quote ends with the eighth octet of TCP; what follows is not TCP's checksum.
        let words = ((header + 8) / if v6 { 8 } else { 4 }) as u8;
        let rest = if v6 { [words, 0, 0, 0] } else { [0, words, 0, 0] };
        let mut message = outside[14..14 + header + 8].to_vec();
        message.extend([0x20, 0, 0x12, 0x34, 0, 8, 1, 1, 9, 9, 9, 9]);
        let error = inward(server, pool).icmp(if v6 { 3 } else { 11 }, 0, rest, &message);
        let (_, got) = host.frame_through(UPLINK, &error);
        let (inner, _, kept) = quoted(&got);
        assert_eq!(kept, rest);
        assert_eq!(inner[14 + header + 8..], message[header + 8..]);
        assert_eq!(inner[14 + header..14 + header + 8], sent[14 + header..14 + header + 8]);
    });
}

#[test]
fn a_packet_that_must_not_go_on_is_told_to_its_sender_as_it_was_sent() {
    both(|v6| {
        let mut host = Host::outside();
        let (server, pool) = (remote(v6, 1), public(v6, POOL));
        let l4 = host.leaves(A, server, (4000, 53));
        let time_exceeded = if v6 { (3, 0) } else { (11, 0) };
        let too_big = if v6 { (2, 0) } else { (3, 4) };
        let refused = |host: &mut Host, from, frame: &[u8]| {
            let ended = host.pass(0, from, frame, Offload::default(), &mut Unwatched).err().unwrap();
            let error = ended.1.unwrap();
            let Body::Ip { src, dst, .. } = read(&error).0.body else { panic!() };
            let (inner, kind, rest) = quoted(&error);
            let cut = inner.len().min(500);
            assert_eq!(inner[14..cut], frame[14..cut], "untranslated");
            (ended.0, src, dst, kind, rest)
        };
        let gateway = if v6 { "2001:db8:0:1::fe".parse::<IpAddr>().unwrap() } else { [192, 0, 2, 254].into() };
        let frame = out(A, server).ttl(1).udp(4000, 53, b"traceroute");
        let expected = (DropReason::TtlExceeded, gateway, address(A, v6), time_exceeded, [0; 4]);
        assert_eq!(refused(&mut host, A, &frame), expected);
        let frame = inward(server, pool).ttl(1).udp(53, l4, b"traceroute");
        let expected = (DropReason::TtlExceeded, public(v6, HOST), server, time_exceeded, [0; 4]);
        assert_eq!(refused(&mut host, UPLINK, &frame), expected);
        // Each side hears of the MTU of the other.
        host.edit_network(OUTSIDE, |network| network.mtu = 1400);
        let mtu = |mtu: u16| [0, 0, (mtu >> 8) as u8, mtu as u8];
        let frame = out(A, server).udp(4000, 53, &[0; 1400]);
        let expected = (DropReason::MtuExceeded, gateway, address(A, v6), too_big, mtu(1400));
        assert_eq!(refused(&mut host, A, &frame), expected);
        assert_eq!(refused(&mut host, A, &out(A, server).udp(4001, 53, &[0; 1400])), expected, "and begins nothing");
        host.edit_network(NETWORK, |network| network.mtu = 1300);
        let frame = inward(server, pool).udp(53, l4, &[0; 1300]);
        let expected = (DropReason::MtuExceeded, public(v6, HOST), server, too_big, mtu(1300));
        assert_eq!(refused(&mut host, UPLINK, &frame), expected);
        assert_eq!(host.entries().len(), 1);
    });
}

/// A frame as a router further on saw it: with destination options and as a first fragment, or with IPv4 options.
fn with_more_headers(frame: &[u8], v6: bool, count: usize) -> Vec<u8> {
    let (mut header, rest) =
        (frame[14..14 + if v6 { 40 } else { 20 }].to_vec(), &frame[14 + if v6 { 40 } else { 20 }..]);
    let more = if v6 {
        let next = std::mem::replace(&mut header[6], 60);
        let mut more = [60, 0, 1, 4, 0, 0, 0, 0].repeat(count - 1);
        let last = more.len() - 8;
        more[last] = 44;
        more.extend([next, 0, 0, 1, 0, 0, 0, 9]);
        more
    } else {
        header[0] += count as u8;
        header[10..12].fill(0);
        [1; 4].repeat(count)
    };
    let mut whole = [header, more].concat();
    if !v6 {
        let sum = !hostweave_switch::wire::checksum::sum(&whole);
        whole[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    [&frame[..14], &whole, rest].concat()
}

#[test]
fn na20_quoted_extension_headers_and_options_are_walked() {
    both(|v6| {
        let mut host = Host::outside();
        let (server, pool) = (remote(v6, 1), public(v6, POOL));
        let sent = out(A, server).udp(4000, 53, b"some data to be quoted");
        let (_, outside) = host.frame_through(A, &sent);
        for count in [2, 8] {
            let seen = with_more_headers(&outside, v6, count);
            let (to, got) =
                host.frame_through(UPLINK, &about(inward(server, pool), unreachable(v6), [0; 4], &seen, 500));
            assert_eq!(to, A);
            let (mut inner, mut expected) = (quoted(&got).0, with_more_headers(&sent, v6, count));
            let ttl = if v6 { 14 + 7..14 + 8 } else { 14 + 8..14 + 12 };
            [&mut inner, &mut expected].into_iter().for_each(|frame| frame[ttl.clone()].fill(0));
            assert_eq!(inner[14..], expected[14..], "{count} headers");
        }
        if v6 {
            // More than we forward, a fragment behind the first, and one that is cut off.
            let quote = |seen: &[u8], octets| about(inward(server, pool), unreachable(v6), [0; 4], seen, octets);
            let mut later = with_more_headers(&outside, v6, 2);
            later[14 + 40 + 8 + 3] = 8;
            let errors = [quote(&with_more_headers(&outside, v6, 9), 500), quote(&later, 500), quote(&later, 40 + 12)];
            for error in errors {
                assert_eq!(host.to(UPLINK, &error), Err(DropReason::IcmpUnrelated));
            }
        }
    });
}

#[test]
fn an_error_whose_quote_ends_before_its_ports_is_unrelated() {
    both(|v6| {
        let mut host = Host::outside();
        let (server, pool) = (remote(v6, 1), public(v6, POOL));
        let (_, outside) = host.frame_through(A, &out(A, server).udp(4000, 53, b"some data to be quoted"));
        // RFC 4884 §4: where the quote ends, in units of 4 octets, or of 8.
        let (enough, kind) = if v6 { ((40 + 8) / 8, 3) } else { ((20 + 8) / 4, 11) };
        for units in 1..=enough {
            let rest = if v6 { [units, 0, 0, 0] } else { [0, units, 0, 0] };
            let error = inward(server, pool).icmp(kind, 0, rest, &outside[14..]);
            let expected = if units < enough { Err(DropReason::IcmpUnrelated) } else { Ok(A) };
            assert_eq!(host.to(UPLINK, &error), expected, "{units} units");
        }
    });
}
