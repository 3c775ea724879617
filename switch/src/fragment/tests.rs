//! Cases of fragments by their SEMANTICS ids, a comparison with a map of octets, and floods.

use std::collections::HashMap as Map;

use proptest::prelude::*;

use super::*;
use crate::fuzz::{GUEST_A, GUEST_B, v4, v6};
use crate::parse::parse;
use crate::stage::Verdict;
use crate::testing::{self, ipv4_frame, ipv6_frame, udp};
use crate::wire::{ipv4, proto};

mod outside;

const VNI: u32 = 7;

/// A piece of a UDP datagram of `len` octets, its header included: `start..end` of it.
#[derive(Clone, Copy, Debug)]
struct Piece {
    v6: bool,
    ident: u16,
    start: usize,
    end: usize,
    more: bool,
    src_port: u16,
}

fn piece(v6: bool, ident: u16, start: usize, end: usize, more: bool) -> Piece {
    Piece { v6, ident, start, end, more, src_port: 1000 }
}

impl Piece {
    fn frame(self) -> Vec<u8> {
        let datagram = udp(self.src_port, 53, &[7; 4000]);
        let payload = &datagram[self.start..self.end];
        if self.v6 {
            let mut packet = vec![proto::UDP, 0];
            packet.extend((self.start as u16 | u16::from(self.more)).to_be_bytes());
            packet.extend(u32::from(self.ident).to_be_bytes());
            packet.extend(payload);
            ipv6_frame(v6(GUEST_A), v6(GUEST_B), next_header::FRAGMENT, 64, &packet)
        } else {
            let mut frame = ipv4_frame(v4(GUEST_A), v4(GUEST_B), proto::UDP, 64, payload);
            frame[18..20].copy_from_slice(&self.ident.to_be_bytes());
            let flags = (self.start as u16 / 8) | (u16::from(self.more) << 13);
            frame[20..22].copy_from_slice(&flags.to_be_bytes());
            ipv4::fill_checksum(frame[14..34].first_chunk_mut().unwrap());
            frame
        }
    }
}

fn admit_at(fragments: &Fragments, port: PortId, frame: &[u8], now_ms: u64) -> Admit {
    admit_of(fragments, &Tables::default(), port, frame, now_ms)
}

fn admit_of(fragments: &Fragments, tables: &Tables, port: PortId, frame: &[u8], now_ms: u64) -> Admit {
    testing::with(frame, |packet, arena| {
        packet.meta.in_port = port;
        assert_eq!(parse(packet, arena), Verdict::Continue);
        assert!(packet.meta.fragment);
        fragments.admit(packet, arena, tables, VNI, now_ms)
    })
}

fn admit(fragments: &Fragments, piece: Piece) -> Admit {
    admit_at(fragments, GUEST_A, &piece.frame(), 0)
}

#[track_caller]
fn dropped(admit: &Admit, reason: DropReason) {
    assert!(matches!(admit, Admit::Drop(of) if *of == reason), "{admit:?}");
}

#[track_caller]
fn known(admit: &Admit, src_port: u16) {
    let ports = Ports { proto: proto::UDP, src_port, dst_port: 53 };
    assert!(matches!(admit, Admit::Known(of) if *of == ports), "{admit:?}");
}

#[track_caller]
fn first(admit: Admit) -> Vec<QueuedFrame> {
    match admit {
        Admit::First(released) => released,
        other => panic!("{other:?}"),
    }
}

/// What `expire` tells at `now_ms`, of all ports.
fn expire(fragments: &Fragments, now_ms: u64) -> Vec<(PortId, DropReason, u64)> {
    let mut told = Vec::new();
    fragments.expire(now_ms, usize::MAX, |port, reason, count, _| told.push((port, reason, count)));
    told
}

#[test]
fn ct6_later_fragments_have_the_ports_of_the_first() {
    for v6 in [false, true] {
        let fragments = Fragments::new();
        assert!(first(admit(&fragments, piece(v6, 1, 0, 800, true))).is_empty());
        known(&admit(&fragments, piece(v6, 1, 800, 1600, true)), 1000);
        assert_eq!(fragments.usage().datagrams, 1);
        known(&admit(&fragments, piece(v6, 1, 1600, 1607, false)), 1000);
        assert_eq!(fragments.usage(), Usage::default(), "complete");
        // The identification comes again at once, with other ports.
        assert!(first(admit(&fragments, Piece { src_port: 9, ..piece(v6, 1, 0, 800, true) })).is_empty());
        known(&admit(&fragments, piece(v6, 1, 800, 900, false)), 9);
    }
}

#[test]
fn ct6_the_key_is_the_whole_key() {
    let fragments = Fragments::new();
    let (one, two) = (piece(false, 1, 0, 800, true), piece(false, 1, 800, 900, false));
    assert!(first(admit(&fragments, one)).is_empty());
    let frame = two.frame();
    let edited = |at: usize, value: u8| {
        let mut frame = frame.clone();
        frame[at] = value;
        ipv4::fill_checksum(frame[14..34].first_chunk_mut().unwrap());
        admit_at(&fragments, GUEST_A, &frame, 0)
    };
    for (at, case) in [(29, "source"), (33, "destination"), (19, "identification"), (23, "protocol")] {
        assert!(matches!(edited(at, 99), Admit::Queued), "{case}");
    }
    let other_network = testing::with(&frame, |packet, arena| {
        assert_eq!(parse(packet, arena), Verdict::Continue);
        fragments.admit(packet, arena, &Tables::default(), VNI + 1, 0)
    });
    assert!(matches!(other_network, Admit::Queued), "network");
    assert!(matches!(admit(&fragments, piece(true, 1, 800, 900, false)), Admit::Queued), "family");
    known(&admit(&fragments, two), 1000);
}

#[test]
fn ct6_a_datagram_lives_two_seconds_from_its_first_arrival() {
    let fragments = Fragments::new();
    let frames = [piece(true, 1, 0, 800, true), piece(true, 1, 800, 1600, true), piece(true, 1, 1600, 1608, false)];
    let [one, two, three] = frames.map(Piece::frame);
    assert!(first(admit_at(&fragments, GUEST_A, &one, 10_000)).is_empty());
    known(&admit_at(&fragments, GUEST_A, &two, 11_999), 1000);
    assert!(matches!(admit_at(&fragments, GUEST_A, &three, 12_000), Admit::Queued));
    assert_eq!(expire(&fragments, 13_999), []);
    assert_eq!(expire(&fragments, 14_000), [(GUEST_A, DropReason::FragmentTimeout, 1)]);
    assert_eq!((fragments.usage(), expire(&fragments, 99_999)), (Usage::default(), vec![]));
}

#[test]
fn ct7_what_comes_before_the_first_waits_and_comes_after_it() {
    for v6 in [false, true] {
        let fragments = Fragments::new();
        let (two, three) = (piece(v6, 1, 800, 1600, true), piece(v6, 1, 1600, 1700, false));
        assert!(matches!(admit(&fragments, three), Admit::Queued));
        assert!(matches!(admit(&fragments, two), Admit::Queued));
        let octets = two.frame().len() + three.frame().len();
        assert_eq!(fragments.usage(), Usage { datagrams: 1, queued_frames: 2, queued_octets: octets });
        let released = first(admit(&fragments, piece(v6, 1, 0, 800, true)));
        for (queued, sent) in released.iter().zip([three, two]) {
            assert_eq!(queued.frame[..], sent.frame());
            assert_eq!((queued.meta.in_port, queued.meta.proto), (GUEST_A, proto::UDP));
            assert_eq!((queued.meta.src_port, queued.meta.dst_port), (1000, 53));
            assert!(queued.meta.later_fragment && queued.head_len >= usize::from(queued.meta.layers.l4));
        }
        assert_eq!((released.len(), fragments.usage()), (2, Usage::default()));
    }
}

#[test]
fn ct7_what_waits_is_bounded_by_frames_and_octets() {
    let fragments = Fragments::new();
    let later = |ident| piece(false, ident, 8, 16, true);
    // Two of each datagram, so that the limit of datagrams does not come first.
    for ident in 0..FRAGMENTS_QUEUED_PER_PORT_MAX as u16 / 4 {
        for start in [8, 16, 24, 32] {
            assert!(matches!(admit(&fragments, piece(false, ident, start, start + 8, true)), Admit::Queued));
        }
    }
    let full = fragments.usage();
    dropped(&admit(&fragments, later(9999)), DropReason::FragmentQueueFull);
    dropped(&admit(&fragments, piece(false, 1, 40, 48, true)), DropReason::FragmentQueueFull);
    assert_eq!(fragments.usage(), full, "what is refused pushes nothing out");
    // Firsts release, and then there is room.
    assert_eq!(first(admit(&fragments, piece(false, 0, 0, 8, true))).len(), 4);
    assert!(matches!(admit(&fragments, later(9999)), Admit::Queued));
    let fragments = Fragments::new();
    let mut count = 0;
    while let Admit::Queued = admit(&fragments, piece(true, count, 8, 4000, true)) {
        count += 1;
    }
    let usage = fragments.usage();
    assert!(usage.queued_octets <= FRAGMENT_OCTETS_PER_PORT_MAX, "{usage:?}");
    assert!(usage.queued_octets + 4100 > FRAGMENT_OCTETS_PER_PORT_MAX, "{usage:?}");
    assert_eq!(expire(&fragments, 2_000), [(GUEST_A, DropReason::FragmentTimeout, u64::from(count))]);
    assert_eq!(fragments.usage(), Usage::default());
}

#[test]
fn ct8_overlapping_fragments_end_their_datagram() {
    for v6 in [false, true] {
        for (bad, case) in [
            (piece(v6, 1, 792, 1592, true), "one unit before"),
            (piece(v6, 1, 808, 816, true), "inside"),
            (piece(v6, 1, 800, 808, true), "the same start"),
            (piece(v6, 1, 1592, 1700, false), "the last over the one before"),
            (piece(v6, 1, 800, 1600, false), "the same place, but the last"),
            (piece(v6, 1, 900 - 900 % 8, 1000, false), "the last, but not behind the others"),
            (piece(v6, 1, 0, 808, true), "another first, longer"),
            (Piece { src_port: 2000, ..piece(v6, 1, 0, 80, true) }, "another first, other ports"),
        ] {
            let fragments = Fragments::new();
            assert!(first(admit(&fragments, piece(v6, 1, 0, 80, true))).is_empty());
            known(&admit(&fragments, piece(v6, 1, 800, 1600, true)), 1000);
            dropped(&admit(&fragments, bad), DropReason::FragmentOverlap);
            for later in [piece(v6, 1, 0, 80, true), piece(v6, 1, 80, 800, true), piece(v6, 1, 1600, 1601, false)] {
                assert!(matches!(admit(&fragments, later), Admit::Drop(DropReason::FragmentOverlap)), "{case}");
            }
            assert_eq!((fragments.usage().datagrams, expire(&fragments, 2_000)), (1, vec![]), "{case}");
        }
    }
}

#[test]
fn ct8_two_last_fragments_or_data_behind_the_last_contradict() {
    for (bad, case) in [
        (piece(true, 1, 1600, 1601, false), "another last"),
        (piece(true, 1, 1600, 1608, true), "behind the last"),
        (piece(true, 1, 800, 900, false), "the same start, another end"),
    ] {
        let fragments = Fragments::new();
        assert!(first(admit(&fragments, piece(true, 1, 0, 80, true))).is_empty());
        known(&admit(&fragments, piece(true, 1, 800, 888, false)), 1000);
        let admit = admit(&fragments, bad);
        assert!(matches!(admit, Admit::Drop(DropReason::FragmentOverlap)), "{case}: {admit:?}");
    }
}

#[test]
fn ct8_an_exact_second_copy_ends_only_itself() {
    for v6 in [false, true] {
        let fragments = Fragments::new();
        let [one, two, three] = [piece(v6, 1, 0, 80, true), piece(v6, 1, 80, 800, true), piece(v6, 1, 800, 801, false)];
        assert!(matches!(admit(&fragments, two), Admit::Queued));
        dropped(&admit(&fragments, two), DropReason::FragmentOverlap);
        assert_eq!(first(admit(&fragments, one)).len(), 1);
        dropped(&admit(&fragments, one), DropReason::FragmentOverlap);
        dropped(&admit(&fragments, two), DropReason::FragmentOverlap);
        known(&admit(&fragments, three), 1000);
    }
}

#[test]
fn ct8_what_waits_ends_with_its_datagram() {
    let fragments = Fragments::new();
    assert!(matches!(admit(&fragments, piece(false, 1, 80, 160, true)), Admit::Queued));
    assert!(matches!(admit(&fragments, piece(false, 1, 160, 240, true)), Admit::Queued));
    dropped(&admit(&fragments, piece(false, 1, 0, 88, true)), DropReason::FragmentOverlap);
    assert_eq!(fragments.usage(), Usage { datagrams: 1, queued_frames: 0, queued_octets: 0 });
    assert_eq!(expire(&fragments, 1), [(GUEST_A, DropReason::FragmentOverlap, 2)]);
    assert_eq!(expire(&fragments, 2_000), []);
}

#[test]
fn ct8_atomic_fragments_pass_and_are_not_remembered() {
    let fragments = Fragments::new();
    assert!(matches!(admit(&fragments, piece(true, 1, 80, 160, true)), Admit::Queued));
    let before = fragments.usage();
    for _ in 0..3 {
        assert!(first(admit(&fragments, piece(true, 1, 0, 80, false))).is_empty());
    }
    assert_eq!(fragments.usage(), before);
}

#[test]
fn ct9_the_fragment_header_is_found_behind_others() {
    let fragments = Fragments::new();
    let frame = |start: u16, more: bool, payload: &[u8]| {
        // Destination options, fragment, and of the first fragment destination options again.
        let mut packet = vec![next_header::FRAGMENT, 0, 1, 4, 0, 0, 0, 0, next_header::DESTINATION_OPTIONS, 0];
        packet.extend((start | u16::from(more)).to_be_bytes());
        packet.extend([0, 0, 0, 1]);
        packet.extend(payload);
        ipv6_frame(v6(GUEST_A), v6(GUEST_B), next_header::DESTINATION_OPTIONS, 64, &packet)
    };
    let inner = [&[proto::UDP, 0, 1, 4, 0, 0, 0, 0][..], &udp(1000, 53, &[0; 16])].concat();
    assert!(matches!(admit_at(&fragments, GUEST_A, &frame(32, false, b"end"), 0), Admit::Queued));
    let released = first(admit_at(&fragments, GUEST_A, &frame(0, true, &inner), 0));
    assert_eq!((released.len(), released[0].meta.proto), (1, proto::UDP), "the protocol is that of the first");
    assert_eq!(fragments.usage(), Usage::default(), "complete at 35 octets");
}

#[test]
fn ct11_a_port_pushes_out_its_own_oldest_only() {
    let fragments = Fragments::new();
    let other = PortId(GUEST_A.0 + SHARDS as u32);
    assert!(matches!(admit_at(&fragments, other, &piece(true, 1, 8, 16, true).frame(), 0), Admit::Queued));
    assert!(matches!(admit(&fragments, piece(true, 1, 8, 16, true)), Admit::Queued));
    for ident in 2..5000 {
        assert!(first(admit(&fragments, piece(true, ident, 0, 8, true))).is_empty());
    }
    assert_eq!(fragments.usage().datagrams, FRAGMENT_DATAGRAMS_PER_PORT_MAX + 1);
    assert_eq!(expire(&fragments, 1), [(GUEST_A, DropReason::FragmentQueueFull, 1)]);
    known(&admit(&fragments, piece(true, 4999, 8, 16, false)), 1000);
    assert_eq!(first(admit_at(&fragments, other, &piece(true, 1, 0, 8, true).frame(), 0)).len(), 1);
}

#[test]
fn ct11_fragments_of_one_datagram_are_bounded() {
    let fragments = Fragments::new();
    for at in 0..FRAGMENTS_PER_DATAGRAM_MAX {
        let _ = admit(&fragments, piece(false, 1, at * 8, at * 8 + 8, true));
    }
    let next = FRAGMENTS_PER_DATAGRAM_MAX * 8;
    dropped(&admit(&fragments, piece(false, 1, next, next + 8, true)), DropReason::FragmentQueueFull);
}

#[test]
fn pieces_of_nothing_are_malformed() {
    let fragments = Fragments::new();
    dropped(&admit(&fragments, piece(false, 1, 80, 80, false)), DropReason::Ipv4Malformed);
    dropped(&admit(&fragments, piece(true, 1, 80, 80, true)), DropReason::Ipv6Malformed);
    assert_eq!(fragments.usage(), Usage::default());
}

#[test]
fn a_port_that_goes_leaves_nothing_behind() {
    let fragments = Fragments::new();
    assert!(matches!(admit(&fragments, piece(true, 1, 8, 16, true)), Admit::Queued));
    assert!(matches!(admit(&fragments, piece(true, 2, 8, 16, true)), Admit::Queued));
    dropped(&admit(&fragments, piece(true, 2, 0, 16, true)), DropReason::FragmentOverlap);
    let mut told = Vec::new();
    fragments.forget(GUEST_A, |reason, count| told.push((reason, count)));
    assert_eq!(told, [(DropReason::FragmentOverlap, 1), (DropReason::PortDown, 1)]);
    assert_eq!((fragments.usage(), expire(&fragments, 9_999)), (Usage::default(), vec![]));
}

#[test]
fn expiry_keeps_to_its_budget() {
    let fragments = Fragments::new();
    for port in 0..100 {
        assert!(matches!(admit_at(&fragments, PortId(port), &piece(true, 1, 8, 16, true).frame(), 0), Admit::Queued));
    }
    let (mut left, mut told) = (100usize, 0);
    while left > 0 {
        fragments.expire(2_000, 7, |_, _, count, _| told += count);
        left = left.saturating_sub(7);
        assert_eq!(fragments.usage().datagrams, left);
    }
    assert_eq!(told, 100);
}

#[test]
fn workers_share_fragments_and_every_frame_that_waited_comes_out_once() {
    let fragments = Fragments::new();
    let out = AtomicUsize::new(0);
    let waited: usize = std::thread::scope(|scope| {
        let work = |worker: usize| {
            let (fragments, out) = (&fragments, &out);
            move || {
                let mut waited = 0;
                for ident in 0..400u16 {
                    // Two workers see the two halves of each datagram, in either order.
                    let half =
                        if (worker + usize::from(ident)).is_multiple_of(2) { (0, 80, true) } else { (80, 96, false) };
                    let frame = piece(worker < 2, ident, half.0, half.1, half.2).frame();
                    match admit_at(fragments, GUEST_A, &frame, u64::from(ident)) {
                        Admit::Queued => waited += 1,
                        Admit::First(released) => _ = out.fetch_add(released.len(), Ordering::Relaxed),
                        Admit::Known(_) | Admit::Drop(_) => {}
                    }
                }
                waited
            }
        };
        let workers: Vec<_> = (0..4).map(|worker| scope.spawn(work(worker))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).sum()
    });
    let ended: u64 = expire(&fragments, u64::MAX).iter().map(|(_, _, count)| count).sum();
    assert_eq!(waited, out.load(Ordering::Relaxed) + ended as usize);
    assert_eq!(fragments.usage(), Usage::default());
}

/// What should come of a piece, by a map of octets: who brought each, and whether it was the last.
#[derive(Default)]
struct Model {
    bad: bool,
    octets: Map<usize, (usize, usize)>,
    len: Option<usize>,
    port: Option<u16>,
    waiting: usize,
}

#[derive(PartialEq, Debug)]
enum Expected {
    First(usize),
    Known(u16),
    Queued,
    Overlap,
}

impl Model {
    fn admit(&mut self, piece: Piece) -> Expected {
        if piece.start == 0 && !piece.more {
            return Expected::First(0);
        }
        let place = (piece.start, piece.end);
        let there = (piece.start..piece.end).filter_map(|octet| self.octets.get(&octet));
        let (mut any, mut same) = (false, true);
        for of in there {
            (any, same) = (true, same && *of == place);
        }
        let ports_differ = piece.start == 0 && self.port.is_some_and(|port| port != piece.src_port);
        let twice = any && same && !ports_differ && (self.len == Some(piece.end)) != piece.more;
        if twice && !self.bad {
            return Expected::Overlap;
        }
        let highest = self.octets.keys().max().map_or(0, |octet| octet + 1);
        let contradicts = match self.len {
            Some(len) => piece.end > len || (piece.end == len) == piece.more || !piece.more,
            None => !piece.more && highest > piece.end,
        };
        if self.bad || any || contradicts {
            (self.bad, self.waiting) = (true, 0);
            return Expected::Overlap;
        }
        self.octets.extend((piece.start..piece.end).map(|octet| (octet, place)));
        self.len = if piece.more { self.len } else { Some(piece.end) };
        let expected = if piece.start == 0 {
            self.port = Some(piece.src_port);
            Expected::First(std::mem::take(&mut self.waiting))
        } else if let Some(port) = self.port {
            Expected::Known(port)
        } else {
            self.waiting += 1;
            Expected::Queued
        };
        if self.len.is_some_and(|len| self.octets.len() == len) {
            *self = Self::default();
        }
        expected
    }
}

/// Pieces of few datagrams with few boundaries, so that they meet, repeat and overlap.
fn pieces() -> impl Strategy<Value = Vec<Piece>> {
    let piece = (any::<bool>(), 0u16..3, 0usize..6, 1usize..4, any::<bool>(), proptest::bool::weighted(0.1)).prop_map(
        |(v6, ident, start, len, last, odd)| {
            let (start, end) = (start * 8, (start + len) * 8);
            // The whole has six units; some say otherwise.
            let more = if odd && (v6 || start > 0) { last } else { start == 0 || end < 48 };
            Piece {
                v6,
                ident,
                start,
                end: if more || start == 0 { end } else { end - 3 },
                more,
                src_port: 1000 + u16::from(odd),
            }
        },
    );
    proptest::collection::vec(piece, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn fragments_agree_with_a_map_of_octets(pieces in pieces()) {
        let fragments = Fragments::new();
        let mut models: Map<(bool, u16), Model> = Map::new();
        let (mut waited, mut released) = (0, 0);
        for piece in pieces {
            let expected = models.entry((piece.v6, piece.ident)).or_default().admit(piece);
            let got = match admit(&fragments, piece) {
                Admit::First(queued) => {
                    released += queued.len() as u64;
                    Expected::First(queued.len())
                }
                Admit::Known(ports) => Expected::Known(ports.src_port),
                Admit::Queued => {
                    waited += 1;
                    Expected::Queued
                }
                Admit::Drop(reason) => {
                    prop_assert_eq!(reason, DropReason::FragmentOverlap);
                    Expected::Overlap
                }
            };
            prop_assert_eq!(got, expected, "{:?}", piece);
            let waiting: usize = models.values().map(|model| model.waiting).sum();
            prop_assert_eq!(fragments.usage().queued_frames, waiting);
        }
        let ended: u64 = expire(&fragments, 2_000).iter().map(|(_, _, count)| count).sum();
        prop_assert_eq!(waited, released + ended);
        prop_assert_eq!(fragments.usage(), Usage::default());
    }

    /// SEMANTICS CT11: one port floods, the other's datagram goes through; limits hold and nothing leaks.
    #[test]
    fn a_flood_harms_nobody_else(flood in proptest::collection::vec((any::<u16>(), 0usize..400, any::<bool>(), 0u64..5_000), 1..400)) {
        let fragments = Fragments::new();
        let victim = PortId(GUEST_A.0 + SHARDS as u32);
        let [one, two] = [piece(true, 1, 0, 8, true), piece(true, 1, 8, 16, false)].map(Piece::frame);
        prop_assert!(matches!(admit_at(&fragments, victim, &two, 5_000), Admit::Queued));
        let (mut waited, mut left) = (1, 0);
        let mut now_ms = 0;
        for (index, (ident, unit, more, step)) in flood.into_iter().enumerate() {
            now_ms += step / 1_000 * u64::from(index.is_multiple_of(8));
            let frame = piece(ident % 2 == 0, ident % 300, unit * 8, unit * 8 + 8, more || unit == 0).frame();
            match admit_at(&fragments, GUEST_A, &frame, now_ms) {
                Admit::Queued => waited += 1,
                Admit::First(queued) => left += queued.len() as u64,
                Admit::Known(_) | Admit::Drop(_) => {}
            }
            let usage = fragments.usage();
            prop_assert!(usage.datagrams <= FRAGMENT_DATAGRAMS_PER_PORT_MAX + 1);
            prop_assert!(usage.queued_frames <= FRAGMENTS_QUEUED_PER_PORT_MAX + 1);
            prop_assert!(usage.queued_octets <= FRAGMENT_OCTETS_PER_PORT_MAX + two.len());
        }
        let queued = first(admit_at(&fragments, victim, &one, 6_999));
        prop_assert_eq!(queued.len(), 1);
        left += 1 + expire(&fragments, u64::MAX).iter().map(|(_, _, count)| count).sum::<u64>();
        prop_assert_eq!(waited, left);
        prop_assert_eq!(fragments.usage(), Usage::default());
        prop_assert_eq!(fragments.shards.iter().map(|shard| lock(shard).len()).sum::<usize>(), 0);
    }
}
