//! Frames arrive right whatever sender and receiver negotiated: mergeable buffers, checksum and segmentation offload,
//! indirect descriptors, event index, buffers in pieces; IPv4 and IPv6.

use std::time::Instant;

use hostweave_guest::frames::{Frame, Path, Segment, partial_checksum};
use hostweave_guest::{Guest, GuestBuilder, MemoryConfig, Profile, Split, VnetHeader, features};
use hostweave_switch::MacAddr;

use crate::support::{Host, PATIENCE, Up, addresses, handshake_before, network, path_to, paths};

/// What a driver takes.
#[derive(Clone, Copy, Debug)]
struct Shape {
    mergeable: bool,
    offloads: bool,
    /// `EVENT_IDX` and `INDIRECT_DESC`.
    modern_ring: bool,
}

fn shapes() -> impl Iterator<Item = Shape> {
    (0..8).map(|bits| Shape { mergeable: bits & 1 != 0, offloads: bits & 2 != 0, modern_ring: bits & 4 != 0 })
}

impl Shape {
    fn dress(self, mut builder: GuestBuilder) -> GuestBuilder {
        builder = builder.with(features::ALL_OFFLOADS);
        if !self.mergeable {
            builder = builder.without(features::MRG_RXBUF);
        }
        if !self.offloads {
            builder = builder.without(features::ALL_OFFLOADS);
        }
        if self.modern_ring {
            builder.splits(Split::header_apart().indirect(), Split::whole())
        } else {
            builder.without(features::EVENT_IDX | features::INDIRECT_DESC).splits(Split::header_apart(), Split::whole())
        }
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

/// Frames whose payloads add up to `len` octets. Each is checked: addresses, checksums, what was negotiated.
fn receive(guest: &mut Guest, path: &Path, len: usize, what: &str) -> Vec<(VnetHeader, Frame)> {
    let (mut frames, mut octets) = (Vec::new(), 0);
    let end = Instant::now() + PATIENCE;
    while frames.is_empty() || octets < len {
        assert!(Instant::now() < end);
        let (header, frame) = guest.recv_frame(PATIENCE).unwrap_or_else(|error| panic!("{what}: {error}"));
        let parsed = Frame::parse(&header, &frame).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(parsed.src_mac, MacAddr::ROUTER.0, "{what}");
        assert_eq!(parsed.dst_mac, guest.mac(), "{what}");
        if !guest.has(features::GUEST_CSUM) {
            assert_eq!(header.flags & VnetHeader::NEEDS_CSUM, 0, "{what}: a partial checksum that was not negotiated");
        }
        if !guest.has(features::GUEST_TSO4) {
            assert_eq!((header.gso_type, header.gso_size), (0, 0), "{what}: segmentation that was not negotiated");
            assert!(frame.len() <= guest.nic_ref().config.mtu + 14, "{what}: {} octets", frame.len());
        }
        let hardware = if path.src.is_ipv4() { frame[22] } else { frame[21] };
        assert_eq!(hardware, path.ttl - 1, "{what}: the router counts one hop");
        octets += parsed.udp_payload().or(parsed.tcp().map(|(_, payload)| payload)).unwrap().len();
        frames.push((header, parsed));
    }
    frames
}

fn small_frames(from: &mut Guest, to: &mut Guest, path: &Path, sizes: &[usize], what: &str) {
    for &size in sizes {
        let payload = pattern(size - path.header_bytes() - 8);
        let mut frame = path.udp(1_000, 2_000, &payload);
        assert_eq!(frame.len(), size);
        for partial in [false, true] {
            if partial && !from.has(features::CSUM) {
                continue;
            }
            let header = if partial { partial_checksum(&mut frame).unwrap() } else { VnetHeader::default() };
            from.send_frame(&frame, &header).unwrap();
            let what = format!("{what}, {size} octets, partial {partial}");
            let got = receive(to, path, payload.len(), &what);
            assert_eq!(got.len(), 1, "{what}");
            assert_eq!(got[0].1.udp_payload(), Some(&payload[..]), "{what}");
        }
    }
}

fn tcp_gso(from: &mut Guest, to: &mut Guest, path: &Path, len: usize, mss: u16, what: &str) {
    let payload = pattern(len);
    let segment = Segment { src_port: 1, dst_port: 2, seq: u32::MAX - 1_000, ack: 7, flags: 0x19, window: 9 };
    handshake_before(from, to, path, &segment);
    let (header, frame) = path.tcp_gso(&segment, &payload, mss);
    from.send_frame(&frame, &header).unwrap();
    let got = receive(to, path, len, what);
    if to.has(features::GUEST_TSO4) {
        assert_eq!(got.len(), 1, "{what}: a GSO frame crosses whole");
        assert_eq!(got[0].0.gso_size, mss, "{what}");
    } else {
        assert_eq!(got.len(), len.div_ceil(usize::from(mss)), "{what}");
    }
    let mut done = 0;
    let count = got.len();
    for (index, (_, frame)) in got.iter().enumerate() {
        let (header, octets) = frame.tcp().unwrap();
        assert_eq!(header.seq, segment.seq.wrapping_add(done as u32), "{what}");
        assert_eq!(octets, &payload[done..done + octets.len()], "{what}");
        // FIN and PSH belong to the last segment.
        assert_eq!(header.flags, if index + 1 == count { 0x19 } else { 0x10 }, "{what}, segment {index}");
        assert_eq!((header.src_port, header.dst_port, header.ack, header.window), (1, 2, 7, 9), "{what}");
        done += octets.len();
    }
}

fn udp_gso(from: &mut Guest, to: &mut Guest, path: &Path, what: &str) {
    let payload = pattern(10_000);
    let mut frame = path.udp(5, 6, &payload);
    let mut header = partial_checksum(&mut frame).unwrap();
    (header.gso_type, header.gso_size) = (VnetHeader::GSO_UDP_L4, 1_200);
    from.send_frame(&frame, &header).unwrap();
    let got = receive(to, path, payload.len(), what);
    let whole = to.has(features::GUEST_USO4);
    assert_eq!(got.len(), if whole { 1 } else { 9 }, "{what}");
    let octets: Vec<u8> = got.iter().flat_map(|(_, frame)| frame.udp_payload().unwrap()).copied().collect();
    assert_eq!(octets, payload, "{what}");
}

#[test]
fn every_sender_reaches_every_receiver() {
    let mut host = Host::new(1);
    let (a, b) = (host.port("a", 10), host.port("b", 11));
    for sender in shapes() {
        let mut from = sender.dress(host.guest(&a)).ring_size(128).up();
        for receiver in shapes().filter(|shape| shape.modern_ring == sender.modern_ring) {
            let mut to = receiver.dress(host.guest(&b)).ring_size(128).up();
            for path in paths(&a, &b) {
                let what = format!("{sender:?} to {receiver:?}, {}", path.dst);
                small_frames(&mut from, &mut to, &path, &[62, 115, 116, 117, 128, 1_000, 1_513, 1_514], &what);
                if sender.offloads {
                    tcp_gso(&mut from, &mut to, &path, 20_001, 1_400, &what);
                    tcp_gso(&mut from, &mut to, &path, 64_000, 1_440, &what);
                    udp_gso(&mut from, &mut to, &path, &what);
                }
            }
            assert_eq!(to.nic().violations(), []);
        }
        from.nic().drain_tx(PATIENCE).unwrap();
        assert_eq!(from.nic().violations(), []);
    }
    for name in ["a", "b"] {
        let totals = host.status(name).totals;
        assert_eq!((totals.dropped_all(), totals.tx_dropped_all()), (0, 0), "{totals:?}");
    }
    assert!(host.status("b").totals.extra_segments > 0);
}

#[test]
fn frames_of_60_to_9000_octets_arrive_in_any_pieces() {
    let mut host = Host::new(1);
    host.desired.networks = vec![network("default", 1, 9_000)];
    let (a, b) = (host.port("a", 10), host.port("b", 11));
    let memory = MemoryConfig { regions: vec![72 << 10, 4_096, 40 << 10, 0], ..MemoryConfig::default() };
    let sizes = [62, 100, 116, 117, 511, 512, 513, 1_514, 1_526, 2_048, 4_095, 4_096, 4_097, 8_999, 9_014];
    let cuts = [
        (Split::whole(), Split::whole()),
        (Split::header_apart(), Split::header_apart()),
        (Split::every(7), Split::every(100)),
        (Split::every(700).indirect(), Split::every(900).indirect()),
        (
            Split { sizes: vec![3, 4, 5, 1, 13, 1_000], indirect: false },
            Split { sizes: vec![5, 7, 33, 800], indirect: true },
        ),
    ];
    for mergeable in [true, false] {
        for (tx, rx) in &cuts {
            let dress = |builder: GuestBuilder| {
                let builder = if mergeable { builder } else { builder.without(features::MRG_RXBUF) };
                builder.mtu(9_000).without(features::ALL_GSO).splits(tx.clone(), rx.clone()).memory(memory.clone())
            };
            // A chain of pieces takes as many descriptors as it has pieces.
            let mut from = dress(host.guest(&a)).ring_size(1_024).up();
            let mut to = dress(host.guest(&b)).ring_size(512).up();
            let what = format!("mergeable {mergeable}, {tx:?} to {rx:?}");
            for path in paths(&a, &b) {
                small_frames(&mut from, &mut to, &path, &sizes, &what);
            }
            from.nic().drain_tx(PATIENCE).unwrap();
            assert_eq!((from.nic().violations(), to.nic().violations()), (vec![], vec![]), "{what}");
        }
    }
}

#[test]
fn jumbo_segments_are_cut_for_a_receiver_without_offloads() {
    let mut host = Host::new(1);
    host.desired.networks = vec![network("default", 1, 9_000)];
    let (a, b) = (host.port("a", 10), host.port("b", 11));
    let mut from = host.guest(&a).mtu(9_000).up();
    for mergeable in [true, false] {
        let bare = Shape { mergeable, offloads: false, modern_ring: true };
        let mut to = bare.dress(host.guest(&b)).mtu(9_000).up();
        for path in paths(&a, &b) {
            tcp_gso(&mut from, &mut to, &path, 60_000, 8_900, &format!("mergeable {mergeable}, {}", path.dst));
        }
    }
}

#[test]
fn tcp_goes_both_ways_between_drivers_of_every_shape() {
    let mut host = Host::new(1);
    let (a, b) = (host.port("a", 10), host.port("b", 11));
    for (index, (client, server)) in shapes().zip(shapes().collect::<Vec<_>>().into_iter().rev()).enumerate() {
        let profile = [Profile::Qemu, Profile::Dpdk, Profile::CloudHypervisor][index % 3];
        let connect = |builder: GuestBuilder, shape: Shape| shape.dress(builder).profile(profile).up();
        let mut guest_a = connect(host.guest(&a), client);
        let mut guest_b = connect(host.guest(&b), server);
        host.settle(&mut guest_a, &a);
        host.settle(&mut guest_b, &b);
        guest_b.tcp_echo_server(7).unwrap();
        let guest_b = guest_b.spawn("b", false).unwrap();
        for address in addresses(&b) {
            // The server has one socket: it refuses who comes before it listens again.
            let mut attempts = (0..5).map(|_| guest_a.tcp_transfer(address, 7, 300_000, PATIENCE));
            let last = attempts.find(|result| !matches!(result, Err(error) if error.to_string().contains("refused")));
            last.expect("it listens again").unwrap_or_else(|error| panic!("{client:?}: {error}"));
        }
        let mut guest_b = guest_b.stop().unwrap();
        guest_a.nic().drain_tx(PATIENCE).unwrap();
        assert_eq!((guest_a.nic().violations(), guest_b.nic().violations()), (vec![], vec![]));
        assert_eq!((guest_a.phy().bad_checksum_fields, guest_b.phy().bad_checksum_fields), (0, 0));
    }
}

#[test]
fn a_guest_that_sends_to_itself_gets_its_frame_through_the_router() {
    let mut host = Host::new(1);
    let a = host.port("a", 10);
    let mut guest = host.guest(&a).up();
    for address in addresses(&a) {
        let path = path_to(&a, address);
        let payload = pattern(500);
        let mut frame = path.udp(1, 2, &payload);
        let header = partial_checksum(&mut frame).unwrap();
        guest.send_frame(&frame, &header).unwrap();
        let got = receive(&mut guest, &path, payload.len(), "to itself");
        assert_eq!(got[0].1.udp_payload(), Some(&payload[..]));
    }
}
