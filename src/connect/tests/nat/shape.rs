//! What packets look like on their way: fragments, partial checksums, GSO frames, checksums that are not there, MSS.

use super::*;

/// The checks of the frame's own parser, for a frame whose checksum is partial.
pub(super) fn partial() -> VnetHeader {
    VnetHeader { flags: VnetHeader::NEEDS_CSUM, ..Default::default() }
}

pub(super) fn offload(v6: bool, csum_offset: u16) -> Offload {
    let csum_start = if v6 { 54 } else { 34 };
    Offload { flags: virtio_net::NEEDS_CSUM, csum_start, csum_offset, ..Offload::default() }
}

#[test]
fn na39_a_partial_checksum_stays_a_correct_partial_checksum() {
    both(|v6| {
        let mut host = Host::outside();
        let server = remote(v6, 1);
        let frames = [
            (out(A, server).udp(4000, 53, b"some data"), 6),
            (
                out(A, server).tcp(&TcpHeader { src_port: 4000, dst_port: 80, flags: SYN, ..Default::default() }, b""),
                16,
            ),
        ];
        for (mut frame, place) in frames {
            hostweave_guest::frames::partial_checksum(&mut frame).unwrap();
            let passed = host.pass(0, A, &frame, offload(v6, place), &mut Unwatched);
            let passed = passed.unwrap_or_else(|ended| panic!("{:?}", ended.0));
            assert!(passed.offload.needs_csum());
            let (_, seen) = read_with(&partial(), &passed.frame);
            assert_eq!((seen.0, seen.1), (public(v6, POOL), server));
            assert_ne!(seen.2, 4000);
        }
    });
}

#[test]
fn gso_frames_cross_whole() {
    both(|v6| {
        let mut host = Host::outside();
        let server = remote(v6, 1);
        let segment = |flags, seq, ack| TcpHeader { src_port: 4000, dst_port: 80, seq, ack, flags, window: 60_000 };
        let (_, seen) = host.through(0, A, &out(A, server).tcp(&segment(SYN, 1, 0), b"")).unwrap();
        let back = |flags, seq, ack| TcpHeader { src_port: 80, dst_port: seen.2, seq, ack, flags, window: 60_000 };
        let answer = inward(server, public(v6, POOL)).tcp(&back(SYN | ACK, 9, 2), b"");
        host.through(0, UPLINK, &answer).unwrap();
        host.through(0, A, &out(A, server).tcp(&segment(ACK, 2, 10), b"")).unwrap();
        let (header, frame) = out(A, server).tcp_gso(&segment(ACK, 2, 10), &[0x5a; 40_000], 1400);
        let gso = Offload {
            gso_type: if v6 { virtio_net::GSO_TCPV6 } else { virtio_net::GSO_TCPV4 },
            gso_size: 1400,
            hdr_len: 54,
            ..offload(v6, 16)
        };
        let passed = host.pass(0, A, &frame, gso, &mut Unwatched).unwrap_or_else(|ended| panic!("{:?}", ended.0));
        assert_eq!((passed.frame.len(), passed.offload.gso_size), (frame.len(), 1400));
        let (parsed, tuple) = read_with(&VnetHeader { flags: header.flags, ..Default::default() }, &passed.frame);
        assert_eq!((tuple.0, tuple.2), (public(v6, POOL), seen.2));
        let Body::Ip { l4: L4::Tcp { payload, .. }, .. } = parsed.body else { panic!() };
        assert_eq!(payload, [0x5a; 40_000]);
        // As long as its segments: 1480 octets do not fit the MTU of 1500 less 40 or 60.
        let gso = Offload { gso_size: 1480, ..gso };
        assert_eq!(host.pass(0, A, &frame, gso, &mut Unwatched).err().unwrap().0, DropReason::MtuExceeded);
    });
}

#[test]
fn a_udp_checksum_that_is_not_there_stays_so() {
    let mut host = Host::outside();
    let mut frame = out(A, remote(false, 1)).udp(4000, 53, b"data");
    frame[40..42].fill(0);
    let passed = host.pass(0, A, &frame, Offload::default(), &mut Unwatched).ok().unwrap();
    assert_eq!(passed.frame[40..42], [0, 0]);
}

/// Two fragments of a datagram: the first with 24 octets of its payload, the second with the rest.
pub(super) fn fragments(path: &Path, datagram: &[u8], ident: u16) -> [Vec<u8>; 2] {
    let l4 = &datagram[path.header_bytes()..];
    let (first, second) = l4.split_at(32);
    [(first, 0u16, true), (second, 4, false)].map(|(part, offset, more)| match path.src {
        IpAddr::V4(_) => {
            let mut frame = path.ip(17, part);
            frame[18..20].copy_from_slice(&ident.to_be_bytes());
            frame[20..22].copy_from_slice(&(offset | u16::from(more) << 13).to_be_bytes());
            let header: &mut [u8; 20] = frame[14..].first_chunk_mut().unwrap();
            hostweave_switch::wire::ipv4::fill_checksum(header);
            frame
        }
        IpAddr::V6(_) => {
            let mut payload = vec![17, 0];
            payload.extend((offset << 3 | u16::from(more)).to_be_bytes());
            payload.extend(u32::from(ident).to_be_bytes());
            payload.extend(part);
            path.ip(44, &payload)
        }
    })
}

/// Puts two fragments together again, and reads the datagram.
#[track_caller]
pub(super) fn reassembled(frames: [Vec<u8>; 2], v6: bool) -> Seen {
    let skip = if v6 { 14 + 40 + 8 } else { 14 + 20 };
    let Body::Ip { src, dst, l4: L4::Other(..), .. } = Frame::parse(&VnetHeader::default(), &frames[0]).unwrap().body
    else {
        panic!()
    };
    let payload = [&frames[0][skip..], &frames[1][skip..]].concat();
    let whole = Path { ttl: 63, ..Path::new([0; 6], [0; 6], src, dst) }.ip(17, &payload);
    let Body::Ip { src: again, .. } = Frame::parse(&VnetHeader::default(), &frames[1]).unwrap().body else { panic!() };
    assert_eq!(again, src);
    read(&whole).1
}

#[test]
fn fragments_are_translated_each_and_fit_together() {
    both(|v6| {
        let mut host = Host::outside();
        let (server, pool) = (remote(v6, 1), public(v6, POOL));
        let path = out(A, server);
        let sent = fragments(&path, &path.udp(4000, 53, &[0x77; 200]), 9);
        let outside = sent.map(|frame| {
            let passed = host.pass(0, A, &frame, Offload::default(), &mut Unwatched);
            let passed = passed.unwrap_or_else(|ended| panic!("{:?}", ended.0));
            assert_eq!(passed.to, UPLINK);
            passed.frame
        });
        let seen = reassembled(outside, v6);
        assert_eq!((seen.0, seen.1, seen.3), (pool, server, 53));
        let path = inward(server, pool);
        let answer = fragments(&path, &path.udp(53, seen.2, &[0x78; 300]), 10);
        let inside =
            answer.map(|frame| host.pass(1, UPLINK, &frame, Offload::default(), &mut Unwatched).ok().unwrap().frame);
        assert_eq!(reassembled(inside, v6), (server, address(A, v6), 53, 4000));
        assert_eq!(host.entries().len(), 1);
    });
}

#[test]
fn na31_datagrams_of_two_insides_with_one_identification_are_told_apart() {
    let mut host = Host::outside();
    let server = remote(false, 1);
    let ident = |frame: &[u8]| u16::from_be_bytes([frame[18], frame[19]]);
    // Flows that are answered leave a short way behind, which must not be another one.
    for from in [A, B, D] {
        let l4 = host.leaves(from, server, (4000, 53));
        host.through(0, UPLINK, &inward(server, public(false, POOL)).udp(53, l4, b"answer")).unwrap();
        host.leaves(from, server, (4000, 53));
    }
    // A is D's namesake in another network, and the two have one outside address: only L4 ports tell them apart.
    let mut distinct = [0; 8];
    for (src_port, distinct) in (4000..).zip(&mut distinct) {
        let mut taken = std::collections::HashSet::new();
        for number in 1..100u16 {
            for from in [A, B, D] {
                let path = out(from, server);
                let sent = fragments(&path, &path.udp(src_port, 53, &[0x77; 200]), number);
                let [first, second] = [0, 1].map(|at: usize| {
                    host.pass(at, from, &sent[at], Offload::default(), &mut Unwatched).ok().unwrap().frame
                });
                assert_eq!(ident(&first), ident(&second), "one datagram");
                taken.insert(ident(&first));
            }
        }
        *distinct = taken.len();
    }
    // Two flows meet by chance once in 500; that three of eight do is no chance.
    let apart = distinct.iter().filter(|distinct| **distinct >= 280).count();
    assert!(apart >= 6, "{distinct:?} of 297");
    // A whole datagram that routers may fragment gets one too; with DF nothing is touched.
    let whole = |df: u8| {
        let mut frame = out(A, server).udp(4000, 53, b"data");
        (frame[18], frame[19], frame[20]) = (0, 7, df);
        hostweave_switch::wire::ipv4::fill_checksum(frame[14..].first_chunk_mut().unwrap());
        frame
    };
    let through =
        |host: &mut Host, frame: &[u8]| host.pass(0, A, frame, Offload::default(), &mut Unwatched).ok().unwrap();
    let (kept, changed) = (through(&mut host, &whole(0x40)).frame, through(&mut host, &whole(0)).frame);
    assert_eq!((ident(&kept), ident(&changed) == 7), (7, false));
    read(&kept);
    read(&changed);
    // What comes back in a quote is what the inside sent.
    let error = inward(server, public(false, POOL)).icmp(3, 3, [0; 4], &changed[14..]);
    let inner = through_from(&mut host, UPLINK, &error);
    assert_eq!(u16::from_be_bytes([inner[14 + 20 + 8 + 4], inner[14 + 20 + 8 + 5]]), 7);
}

fn through_from(host: &mut Host, from: u32, frame: &[u8]) -> Vec<u8> {
    host.pass(0, from, frame, Offload::default(), &mut Unwatched).ok().unwrap().frame
}

/// A SYN with an MSS option behind `before` octets of padding.
fn syn(path: &Path, mss: u16, before: usize) -> Vec<u8> {
    let segment = TcpHeader { src_port: 4000, dst_port: 80, flags: SYN, seq: 1, window: 1000, ..Default::default() };
    let mut options = vec![1; before];
    options.extend([2, 4]);
    options.extend(mss.to_be_bytes());
    options.resize(8, 1);
    let mut frame = path.tcp(&segment, &options);
    let l4 = path.header_bytes();
    // The options are the segment's payload so far: its header takes them in.
    frame[l4 + 12] = 7 << 4;
    let old = u16::from_be_bytes([frame[l4 + 16], frame[l4 + 17]]);
    let new = hostweave_switch::wire::checksum::update(old, 5 << 12 | u16::from(SYN), 7 << 12 | u16::from(SYN));
    frame[l4 + 16..l4 + 18].copy_from_slice(&new.to_be_bytes());
    read(&frame);
    frame
}

#[test]
fn the_mss_is_lowered_only_where_mtus_differ() {
    both(|v6| {
        let headers = if v6 { 60 } else { 40 };
        for before in 0..4 {
            for (mtu, expected) in [(1500, 1460), (1400, 1400 - headers), (9000, 1460)] {
                let mut host = Host::outside();
                host.edit_network(OUTSIDE, |network| network.mtu = mtu);
                let frame = syn(&out(A, remote(v6, 1)), 1460, before);
                let passed = host.pass(0, A, &frame, Offload::default(), &mut Unwatched).ok().unwrap();
                read(&passed.frame);
                let at = if v6 { 54 } else { 34 } + 20 + before + 2;
                let mss = u16::from_be_bytes([passed.frame[at], passed.frame[at + 1]]);
                let expected = if v6 && mtu == 9000 { 1440 } else { expected };
                assert_eq!(mss, expected, "MTU {mtu}, {before} octets before");
            }
        }
    });
}

/// What a backend out there answers to the host's own checks comes back; what the host serves in a network is nobody's out there.
#[test]
fn the_hosts_own_checks_leave_by_a_pool_and_nobody_else_reaches_the_host_by_their_mappings() {
    both(|v6| {
        let mut host = Host::with_pool(|pool| pool.workloads.push(workload(0)));
        host.connections.set_port_id(0, workload(0).uid);
        let (server, pool) = (remote(v6, 1), public(v6, POOL));
        let network = host.plane.tables.networks[0].clone().unwrap();
        let gateway: IpAddr = if v6 { network.v6.unwrap().1.into() } else { network.v4.unwrap().1.into() };
        let check = Path { src: gateway, ..out(0, server) }.udp(5000, 80, b"well?");
        let (to, (src, dst, l4, dst_port)) = host.through(0, 0, &check).unwrap();
        assert_eq!((to, src, dst, dst_port), (UPLINK, pool, server, 80));
        let answer = inward(server, pool).udp(80, l4, b"fine");
        let passed = host.pass(0, UPLINK, &answer, Offload::default(), &mut Unwatched);
        let passed = passed.unwrap_or_else(|ended| panic!("{:?}", ended.0));
        assert_eq!((passed.to, read(&passed.frame).1), (0, (server, gateway, 80, 5000)));
        let other = inward(remote(v6, 2), pool).udp(80, l4, b"?");
        assert_eq!(host.through(0, UPLINK, &other), Err(DropReason::NatNoMapping));
        let from_within = out(A, pool).udp(4000, l4, b"?");
        assert_eq!(host.through(0, A, &from_within), Err(DropReason::NatNoMapping));
    });
}
