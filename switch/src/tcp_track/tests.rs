//! Cases of tracking by name: handshakes, windows, resets, closing, reuse.

use super::*;
use crate::fuzz::{GUEST_A, GUEST_B, v4, v6};
use crate::parse::parse;
use crate::stage::Verdict;
use crate::testing::{self, ipv4_frame, ipv6_frame};
use crate::wire::proto;
use flags::{ACK, FIN, PSH, RST, SYN, URG};

/// Both sides, the opener first.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Pair([Side; 2]);

const A: usize = 0;
const B: usize = 1;
/// Initial numbers: both wrap around within the first kilobytes.
const ISS: [u32; 2] = [u32::MAX - 1000, u32::MAX - 2];

fn seg(flags: u8, seq: u32, ack: u32, len: u32) -> Segment {
    Segment { seq, ack, window: 1000, payload_len: len, flags, scale: None, fragment: false }
}

impl Pair {
    fn opened_by(segment: Segment) -> Self {
        Self([first(&segment, false).unwrap(), Side::default()])
    }

    /// Numbers count from the initial ones, so that the first octet of data is 1; the acknowledgement counts with ACK.
    fn segment(from: usize, flags: u8, seq: u32, ack: u32, len: u32) -> Segment {
        let ack = if flags & ACK != 0 { ISS[1 - from].wrapping_add(ack) } else { 0 };
        seg(flags, ISS[from].wrapping_add(seq), ack, len)
    }

    fn send(&mut self, from: usize, segment: Segment) -> Outcome {
        let outcome = track(&self.0[from], &self.0[1 - from], &segment);
        if let Outcome::Pass(side) = outcome {
            self.0[from] = side;
        }
        outcome
    }

    #[track_caller]
    fn passes(&mut self, from: usize, flags: u8, seq: u32, ack: u32, len: u32) {
        self.takes(from, Self::segment(from, flags, seq, ack, len));
    }

    #[track_caller]
    fn takes(&mut self, from: usize, segment: Segment) {
        let outcome = self.send(from, segment);
        assert!(matches!(outcome, Outcome::Pass(_) | Outcome::Challenge(_)), "{outcome:?} {self:?}");
    }

    /// Passes, and nothing changes.
    #[track_caller]
    fn no_effect(&mut self, from: usize, flags: u8, seq: u32, ack: u32, len: u32) {
        let before = *self;
        self.passes(from, flags, seq, ack, len);
        assert_eq!(before, *self);
    }

    #[track_caller]
    fn refused(&mut self, from: usize, flags: u8, seq: u32, ack: u32, len: u32) {
        let outcome = self.send(from, Self::segment(from, flags, seq, ack, len));
        assert_eq!(outcome, Outcome::OutOfWindow, "{self:?}");
    }

    fn state(&self) -> State {
        assert_eq!(state(&self.0[A], &self.0[B]), state(&self.0[B], &self.0[A]));
        state(&self.0[A], &self.0[B])
    }
}

fn syn_sent() -> Pair {
    Pair::opened_by(Pair::segment(A, SYN, 0, 0, 0))
}

fn established() -> Pair {
    let mut pair = syn_sent();
    pair.passes(B, SYN | ACK, 0, 1, 0);
    assert_eq!(pair.state(), State::Opening);
    pair.passes(A, ACK, 1, 1, 0);
    assert_eq!(pair.state(), State::Established);
    pair
}

fn time_wait() -> Pair {
    let mut pair = established();
    pair.passes(A, FIN | ACK, 1, 1, 0);
    pair.passes(B, FIN | ACK, 1, 2, 0);
    assert_eq!(pair.state(), State::Closing);
    pair.passes(A, ACK, 2, 2, 0);
    assert_eq!(pair.state(), State::TimeWait);
    pair
}

#[test]
fn ct1_only_a_syn_begins_a_connection() {
    for flags in 0..64 {
        let one = first(&seg(flags, 1, 0, 0), false);
        let begins = flags & (SYN | ACK | RST | FIN) == SYN;
        assert_eq!(one.is_some(), begins, "{flags:#x}");
        let loose = first(&seg(flags, 1, 0, 0), true);
        assert_eq!(loose.is_some(), begins || flags & (SYN | ACK | RST | FIN) == ACK, "{flags:#x}");
    }
}

#[test]
fn ct1_loose_pick_up_becomes_established_when_both_sides_are_seen() {
    let mut pair = Pair([first(&seg(ACK | PSH, 5_000_000, 77, 100), true).unwrap(), Side::default()]);
    assert_eq!(pair.state(), State::Opening);
    pair.takes(A, seg(ACK, 5_000_100, 77, 100)); // before an answer
    pair.takes(B, seg(ACK, 3_000_000_000, 5_000_200, 10));
    assert_eq!(pair.state(), State::Established);
    pair.takes(A, seg(RST, 1, 0, 0)); // not exact
    assert_eq!(pair.state(), State::Established);
    pair.takes(A, seg(FIN | ACK, 5_000_200, 3_000_000_010, 0));
    pair.takes(B, seg(FIN | ACK, 3_000_000_010, 5_000_201, 0));
    pair.takes(A, seg(ACK, 5_000_201, 3_000_000_011, 0));
    assert_eq!(pair.state(), State::TimeWait);
}

#[test]
fn ct2_out_of_window_rst_and_ack_change_nothing() {
    let mut pair = established();
    let before = pair;
    for seq in [1_000_000, 0x4000_0000, 0x7fff_0000, 0x8fff_0000, 0xf000_0000] {
        pair.refused(A, RST, seq, 0, 0);
        pair.refused(A, RST | ACK, seq, 1, 0);
        pair.refused(A, ACK, seq, 1, 0);
        pair.refused(A, ACK, seq, 1, 100);
        pair.refused(A, FIN | ACK, seq, 1, 0);
        pair.refused(A, SYN | ACK, seq, 1, 0);
        pair.refused(B, ACK, 1, seq, 0);
        pair.refused(B, FIN | ACK, 1, seq, 10);
    }
    assert_eq!(pair, before);
}

#[test]
fn ct3_impossible_flags_are_invalid() {
    let valid = [SYN, SYN | URG, SYN | ACK, RST, RST | ACK, FIN | ACK, FIN | ACK | URG, ACK, ACK | URG];
    for flags in (0..64).map(|flags| flags & !PSH) {
        for mut pair in [syn_sent(), established(), time_wait(), Pair([Side::default(); 2])] {
            for from in [A, B] {
                let outcome = pair.send(from, Pair::segment(from, flags, 1, 1, 0));
                if !valid.contains(&flags) {
                    assert_eq!(outcome, Outcome::Invalid, "{flags:#x}");
                }
            }
        }
    }
    for flags in valid {
        assert!(seg(flags, 0, 0, 0).flags_valid() && seg(flags | PSH | 0xc0, 0, 0, 0).flags_valid(), "{flags:#x}");
    }
}

#[test]
fn ct4_syn_with_a_higher_number_reopens_time_wait() {
    for from in [A, B] {
        let mut pair = time_wait();
        assert_eq!(pair.send(from, Pair::segment(from, SYN, 2, 0, 0)), Outcome::Reopen);
        assert_eq!(pair.send(from, Pair::segment(from, SYN, 500_000, 0, 0)), Outcome::Reopen);
        pair.no_effect(from, SYN, 1, 0, 0);
        pair.no_effect(from, SYN, 0x9000_0000, 0, 0);
    }
}

#[test]
fn ct4_any_syn_reopens_a_connection_that_was_reset() {
    let mut pair = established();
    pair.passes(A, RST, 1, 0, 0);
    assert_eq!(pair.state(), State::Closed);
    assert_eq!(pair.send(A, Pair::segment(A, SYN, 0x9000_0000, 0, 0)), Outcome::Reopen);
    assert_eq!(pair.send(B, Pair::segment(B, SYN, 7, 0, 0)), Outcome::Reopen);
}

#[test]
fn na12_simultaneous_open() {
    let mut pair = syn_sent();
    pair.passes(B, SYN, 0, 0, 0);
    assert_eq!(pair.state(), State::Opening);
    pair.passes(A, SYN | ACK, 0, 1, 0);
    pair.passes(B, SYN | ACK, 0, 1, 0);
    assert_eq!(pair.state(), State::Established);
    pair.passes(A, ACK, 1, 1, 500);
    pair.passes(B, ACK, 1, 501, 500);
    // …and the acknowledgements cross a SYN that is sent again.
    pair.no_effect(A, SYN, 0, 0, 0);
    pair.no_effect(B, SYN | ACK, 0, 1, 0);
}

#[test]
fn na12_simultaneous_open_acknowledged_without_syn() {
    let mut pair = syn_sent();
    pair.passes(B, SYN, 0, 0, 0);
    pair.passes(A, ACK, 1, 1, 0);
    pair.passes(B, ACK, 1, 1, 0);
    assert_eq!(pair.state(), State::Established);
}

#[test]
fn syn_is_sent_again() {
    let mut pair = syn_sent();
    pair.no_effect(A, SYN, 0, 0, 0);
    pair.passes(B, SYN | ACK, 0, 1, 0);
    pair.no_effect(A, SYN, 0, 0, 0);
    pair.no_effect(B, SYN | ACK, 0, 1, 0);
    pair.passes(A, ACK, 1, 1, 0);
    pair.no_effect(B, SYN | ACK, 0, 1, 0);
    assert_eq!(pair.state(), State::Established);
}

#[test]
fn syn_with_another_number_begins_anew_before_an_answer() {
    let mut pair = syn_sent();
    pair.no_effect(A, SYN, 0x8000_1000, 0, 0);
    pair.passes(A, SYN, 64_000, 0, 0);
    pair.refused(B, SYN | ACK, 0, 1, 0);
    pair.passes(B, SYN | ACK, 0, 64_001, 0);
    pair.no_effect(A, SYN, 99_000, 0, 0);
    pair.passes(A, ACK, 64_001, 1, 0);
    assert_eq!(pair.state(), State::Established);
}

#[test]
fn syn_ack_must_acknowledge_the_syn() {
    let mut pair = syn_sent();
    for ack in [0, 2, 1000, u32::MAX, 0x8000_0000] {
        pair.refused(B, SYN | ACK, 0, ack, 0);
    }
    assert_eq!(pair, syn_sent());
}

#[test]
fn syn_cookie_replaces_an_unacknowledged_answer() {
    let mut pair = syn_sent();
    pair.passes(B, SYN | ACK, 0x1234_5678, 1, 0);
    pair.passes(B, SYN | ACK, 0x9876_5432, 1, 0);
    pair.passes(A, ACK, 1, 0x9876_5433, 10);
    assert_eq!(pair.state(), State::Established);
}

#[test]
fn fast_open_carries_data_with_the_syn() {
    let mut pair = Pair::opened_by(Pair::segment(A, SYN, 0, 0, 500));
    // RFC 7413 §4.1.3: the SYN again, without data; the answer acknowledges all, part, or only the SYN.
    pair.no_effect(A, SYN, 0, 0, 0);
    pair.passes(B, SYN | ACK, 0, 501, 0);
    // Data from the server before the handshake ends, and its SYN again.
    pair.passes(B, ACK, 1, 501, 600);
    pair.passes(B, ACK, 601, 501, 400);
    pair.no_effect(B, SYN | ACK, 0, 501, 0);
    pair.passes(A, ACK, 501, 1001, 0);
    assert_eq!(pair.state(), State::Established);
    let mut pair = Pair::opened_by(Pair::segment(A, SYN, 0, 0, 500));
    pair.refused(B, SYN | ACK, 0, 502, 0);
    pair.passes(B, SYN | ACK, 0, 1, 0);
    pair.passes(A, ACK, 1, 1, 500);
}

#[test]
fn split_handshake_is_refused() {
    let mut pair = syn_sent();
    for (flags, len) in [(ACK, 0), (ACK, 10), (FIN | ACK, 0)] {
        assert_eq!(pair.send(B, Pair::segment(B, flags, 1, 1, len)), Outcome::Invalid);
    }
    for flags in [ACK, SYN | ACK, FIN | ACK] {
        assert_eq!(pair.send(A, Pair::segment(A, flags, 1, 1, 0)), Outcome::Invalid, "before an answer");
    }
    assert_eq!(pair, syn_sent());
}

#[test]
fn rfc9293_3_5_1_half_open_connection_is_discovered() {
    // The server remembers an old connection; the client does not, and neither does the switch.
    let mut pair = syn_sent();
    pair.no_effect(B, ACK, 777_000, 0x5000_0000, 0);
    pair.no_effect(A, RST, 0x5000_0000, 0, 0);
    pair.no_effect(A, SYN, 0, 0, 0);
    pair.passes(B, SYN | ACK, 0, 1, 0);
    pair.passes(A, ACK, 1, 1, 0);
    assert_eq!(pair.state(), State::Established);
}

#[test]
fn rfc5961_3_rst_closes_only_at_the_exact_number() {
    let mut pair = established();
    pair.passes(A, ACK, 1, 1, 400);
    for seq in [0, 2, 200, 402, 999] {
        pair.no_effect(A, RST, seq, 0, 0);
        pair.no_effect(A, RST | ACK, seq, 1, 0);
    }
    for seq in [1, 401] {
        let mut pair = pair;
        pair.passes(A, RST, seq, 0, 0);
        assert_eq!(pair.state(), State::Closed, "{seq}");
        // The receiver was not convinced, and the sender goes on: it was not its RST.
        pair.passes(B, ACK, 1, 401, 0);
        pair.passes(A, ACK, 401, 1, 100);
        assert_eq!(pair.state(), State::Established);
    }
}

#[test]
fn rfc5961_4_syn_on_an_established_connection_has_no_effect() {
    let mut pair = established();
    for seq in [0, 1, 500, 1_000_000, 0x8000_0000] {
        pair.no_effect(A, SYN, seq, 0, 0);
        pair.no_effect(B, SYN, seq, 0, 0);
    }
    // The client did restart: the server's challenge is answered by an exact RST, and the next SYN begins anew.
    pair.no_effect(B, ACK, 1, 1, 0);
    pair.passes(A, RST, 1, 0, 0);
    assert_eq!(pair.send(A, Pair::segment(A, SYN, 50_000, 0, 0)), Outcome::Reopen);
}

#[test]
fn rst_refuses_a_connection() {
    let mut pair = syn_sent();
    pair.refused(B, RST, 0, 0, 0);
    for ack in [0, 2, 0x8000_0000] {
        pair.refused(B, RST | ACK, 0, ack, 0);
    }
    pair.passes(B, RST | ACK, 12345, 1, 0);
    assert_eq!(pair.state(), State::Closed);
    assert_eq!(pair.send(A, Pair::segment(A, SYN, 0, 0, 0)), Outcome::Reopen, "the same SYN again");
}

#[test]
fn rst_in_every_other_state() {
    let mut pair = syn_sent();
    pair.no_effect(A, RST, 500, 0, 0);
    pair.passes(A, RST, 1, 0, 0);
    assert_eq!(pair.state(), State::Closed, "SYN-SENT, by the opener");
    let mut received = syn_sent();
    received.passes(B, SYN | ACK, 0, 1, 0);
    for (from, flags, seq) in [(A, RST, 1), (B, RST, 1), (B, RST | ACK, 0xdead_beef)] {
        let mut pair = received;
        pair.passes(from, flags, seq, 1, 0);
        assert_eq!(pair.state(), State::Closed, "SYN-RECEIVED");
    }
    let mut half = established();
    half.passes(A, FIN | ACK, 1, 1, 0);
    for (from, seq) in [(A, 2), (A, 1), (B, 1)] {
        let mut pair = half;
        pair.passes(from, RST, seq, 0, 0);
        assert_eq!(pair.state(), State::Closed, "closing");
    }
    let mut pair = time_wait();
    pair.passes(B, RST, 2, 0, 0);
    assert_eq!(pair.state(), State::Closed);
}

#[test]
fn half_close_lets_the_other_direction_go_on() {
    let mut pair = established();
    pair.passes(A, FIN | ACK, 1, 1, 9);
    pair.passes(B, ACK, 1, 11, 0);
    for i in 0..100 {
        pair.passes(B, ACK, 1 + i * 500, 11, 500);
        pair.passes(A, ACK, 11, 501 + i * 500, 0);
        assert_eq!(pair.state(), State::Closing);
    }
    pair.passes(B, FIN | ACK, 50_001, 11, 0);
    pair.passes(A, ACK, 11, 50_002, 0);
    assert_eq!(pair.state(), State::TimeWait);
}

#[test]
fn simultaneous_close() {
    let mut pair = established();
    pair.passes(A, FIN | ACK, 1, 1, 0);
    pair.passes(B, FIN | ACK, 1, 1, 0);
    assert_eq!(pair.state(), State::Closing);
    pair.passes(A, ACK, 2, 2, 0);
    assert_eq!(pair.state(), State::Closing);
    pair.passes(B, ACK, 2, 2, 0);
    assert_eq!(pair.state(), State::TimeWait);
    // A FIN that is sent again is acknowledged again.
    pair.no_effect(A, FIN | ACK, 1, 2, 0);
    pair.no_effect(B, ACK, 2, 2, 0);
}

#[test]
fn forged_fin_is_forgotten_when_its_side_goes_on() {
    let mut pair = established();
    pair.passes(A, FIN | ACK, 1, 1, 0);
    assert_eq!(pair.state(), State::Closing);
    pair.passes(A, ACK, 1, 1, 500);
    assert_eq!(pair.state(), State::Established);
    // One that ends before what was sent is old or forged.
    pair.no_effect(A, FIN | ACK, 1, 1, 10);
}

#[test]
fn data_behind_the_window_is_refused() {
    let mut pair = established();
    pair.passes(A, ACK, 1001, 1, 100);
    pair.refused(A, ACK, 1102, 1, 1);
    // A window that shrinks does not make data illegal that was allowed before (RFC 9293 §3.8.6).
    let mut pair = established();
    pair.takes(B, Segment { window: 10, ..Pair::segment(B, ACK, 1, 1, 0) });
    pair.passes(A, ACK, 1, 1, 1000);
}

#[test]
fn acknowledgement_of_what_was_not_sent_is_refused() {
    let mut pair = established();
    pair.passes(A, ACK, 1, 1, 300);
    pair.passes(B, ACK, 1, 301, 0);
    pair.refused(B, ACK, 1, 302, 0);
    pair.passes(B, ACK, 1, 0u32.wrapping_sub(65_000), 0);
    pair.refused(B, ACK, 1, 0u32.wrapping_sub(67_000), 0);
}

#[test]
fn zero_window_probes_and_keepalives() {
    let mut pair = established();
    pair.passes(A, ACK, 1, 1, 1000);
    pair.takes(B, Segment { window: 0, ..Pair::segment(B, ACK, 1, 1001, 0) });
    pair.passes(A, ACK, 1001, 1, 1);
    pair.takes(B, Segment { window: 0, ..Pair::segment(B, ACK, 1, 1001, 0) });
    pair.passes(A, ACK, 1000, 1, 0);
    pair.passes(A, ACK, 1000, 1, 1);
    // A FIN right behind a closed window, and acknowledgements after it.
    pair.passes(A, FIN | ACK, 1001, 1, 0);
    pair.passes(A, ACK, 1002, 1, 0);
}

#[test]
fn retransmissions_and_reordering_within_a_window() {
    let mut pair = established();
    for (seq, ack) in [(501, 1), (1, 1), (1, 1), (751, 1), (251, 1)] {
        pair.passes(A, ACK, seq, ack, 250);
    }
    assert_eq!(pair.0[A].end, ISS[A].wrapping_add(1001));
    pair.passes(B, ACK, 1, 1001, 0);
    // The acknowledgement was lost.
    pair.no_effect(A, ACK, 1, 1, 250);
    pair.no_effect(B, ACK, 1, 501, 0);
}

#[test]
fn sequence_numbers_wrap_around_many_times() {
    let mut pair = established();
    let (mut seq, mut total) = (1u32, 0u64);
    while total < 3 << 32 {
        let len = 60_000;
        let segment = Segment { window: 60_000, ..Pair::segment(B, ACK, 1, seq, 0) };
        pair.takes(B, segment);
        pair.passes(A, ACK, seq, 1, len);
        seq = seq.wrapping_add(len);
        total += u64::from(len);
    }
    assert_eq!(pair.state(), State::Established);
}

#[test]
fn rfc7323_windows_scale_only_when_both_syns_say_so() {
    for (a, b, scaled) in
        [(Some(7), Some(3), true), (Some(7), None, false), (None, Some(3), false), (Some(14), Some(0), true)]
    {
        let mut pair = Pair::opened_by(Segment { scale: a, ..Pair::segment(A, SYN, 0, 0, 0) });
        pair.takes(B, Segment { scale: b, ..Pair::segment(B, SYN | ACK, 0, 1, 0) });
        assert_eq!(pair.0[B].window_max, 1000, "the window of a SYN is never scaled");
        pair.passes(A, ACK, 1, 1, 0);
        let shift = if scaled { a.unwrap() } else { 0 };
        assert_eq!(pair.0[A].limit, ISS[B].wrapping_add(1 + (1000 << shift)));
        assert_eq!(pair.0[A].window_max, 1000 << shift);
        pair.refused(B, ACK, 2 + (1000 << shift), 1, 1);
        pair.passes(B, ACK, 1 + (1000 << shift), 1, 1);
    }
}

#[test]
fn gso_frame_counts_as_a_whole() {
    let mut pair = established();
    pair.takes(B, Segment { window: 64_000, ..Pair::segment(B, ACK, 1, 1, 0) });
    pair.passes(A, FIN | ACK | PSH, 1, 1, 63_000);
    pair.passes(B, ACK, 1, 63_002, 0);
    assert!(pair.0[A].acked_by(&pair.0[B]) && pair.0[A].has(Side::FIN));
}

#[test]
fn fragmented_segment_makes_its_connection_liberal() {
    let mut pair = established();
    let segment = Segment { fragment: true, ..Pair::segment(A, ACK, 1, 1, 1000) };
    pair.takes(A, segment);
    assert!(pair.0[A].has(Side::LIBERAL));
    pair.passes(B, ACK, 1, 4001, 0);
    pair.passes(A, ACK, 4001, 1, 10);
    assert_eq!(pair.state(), State::Established);
    let far = Segment { fragment: true, ..Pair::segment(A, ACK, 0x4000_0000, 1, 1000) };
    assert_eq!(established().send(A, far), Outcome::OutOfWindow);
}

#[test]
fn segments_are_read_from_both_families_with_padding_and_options() {
    let mut tcp = testing::tcp(1, 2, &[7; 100]);
    for v6_too in [false, true] {
        let frame = |tcp: &[u8]| match v6_too {
            false => ipv4_frame(v4(GUEST_A), v4(GUEST_B), proto::TCP, 64, tcp),
            true => ipv6_frame(v6(GUEST_A), v6(GUEST_B), proto::TCP, 64, tcp),
        };
        let read = |tcp: &[u8]| {
            let padded = [&frame(tcp)[..], &[0; 9]].concat();
            testing::with(&padded, |packet, arena| {
                assert_eq!(parse(packet, arena), Verdict::Continue);
                Segment::of(packet).unwrap()
            })
        };
        tcp[13] = ACK;
        let segment = Segment { window: 512, ..seg(ACK, 1, 2, 100) };
        assert_eq!(read(&tcp), segment);
        tcp[13] = SYN;
        tcp[20..24].copy_from_slice(&[1, 3, 3, 9]);
        assert_eq!(read(&tcp), Segment { flags: SYN, scale: Some(9), ..segment });
        tcp[13] = ACK;
        assert_eq!(read(&tcp), segment, "the option counts in a SYN only");
    }
}

#[test]
fn malformed_options_count_as_none() {
    for (options, scale) in [
        (&[][..], None),
        (&[3, 3, 7], Some(7)),
        (&[2, 4, 5, 180, 1, 3, 3, 15, 0], Some(14)),
        (&[1, 1, 1, 3, 3], None),
        (&[3, 2, 7, 3, 3, 5], None),
        (&[3, 4, 7, 7], None),
        (&[0, 3, 3, 7], None),
        (&[8, 0, 3, 3, 7], None),
        (&[8, 1, 3, 3, 7], None),
        (&[8, 40, 3, 3, 7], None),
        (&[8], None),
    ] {
        assert_eq!(window_scale(options), scale, "{options:?}");
    }
    assert_eq!(Segment::read(&[0; 40], 30, 50, 60), None);
    assert_eq!(Segment::read(&[0; 60], 30, 45, 60), None);
    assert_eq!(Segment::read(&[0; 60], 30, 50, 49), None);
    assert_eq!(Segment::read(&[0; 60], 50, 30, 60), None);
}
