//! TCP connections as values: what each side has shown, and whether a segment fits to it (RFC 9293, RFC 5961; SEMANTICS
//! CT1–CT4, NA12). No clock, no memory, no table: `commit` keeps the sides, and the worker that sees a direction is the
//! only writer of its [`Side`].
//!
//! Theory of operation, after Guido van Rooij, "Real stateful TCP packet filtering in IP Filter". Four bounds hold for
//! each segment of a connection. Its data does not begin behind what the receiver offered (`receiver.limit`), and ends
//! no more than a window before the end of what the sender has sent. It does not acknowledge what the receiver has not
//! sent (`receiver.end`), nor less than a window before what the sender acknowledged already (RFC 5961 §5.2). Because a side writes only what it said
//! itself, each bound is a comparison with one field of one side. A plain segment between two sides that both have
//! acknowledged is four subtractions and one branch; everything else is cold.
//!
//! What could be forged has no effect before it is proven: an RST closes only at the exact sequence number (RFC 5961
//! §3.2), a SYN on a synchronised connection changes nothing (§4.2), and both pass, so that the receiver can challenge
//! them. A FIN or RST behind which its side sends new data was not its own, and is forgotten.
//!
//! When both ends forget a connection at once (both reboot) and reuse its ports, the new SYN-ACK does not fit to the old
//! numbers. It fits to the SYN that it acknowledges, which passed before ([`Outcome::Challenge`]): [`both_anew`].
//!
//! Not here: timers, urgent data, checksums, timestamps (RFC 7323 PAWS), and SACK blocks, which only narrow the bounds.
//! A split handshake whose first answer is an ACK is refused; one that begins with a SYN cannot be told from a
//! simultaneous open, and the direction stays that of the first SYN.

use crate::packet::Packet;
use crate::wire::ethernet;
use crate::wire::tcp::{self, Tcp, flags};

/// What one direction of a connection has shown; all zero before its first segment. Sequence numbers wrap around.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Side {
    /// Behind the last octet sent; SYN and FIN count one each.
    pub end: u32,
    /// Highest acknowledgement number sent. Before the first: what acknowledges its SYN (initial number plus one).
    pub ack: u32,
    /// Highest of acknowledgement number plus window: how far the other side may send. Unused before the first.
    pub limit: u32,
    /// The largest window shown, in octets.
    pub window_max: u32,
    /// Window scale of its SYN, 0 to 14; in force when both SYNs had one (RFC 7323 §2.2).
    pub scale: u8,
    /// See [`Side::SEEN`] and those that follow.
    pub flags: u8,
}

impl Side {
    /// Has sent a SYN, or was picked up.
    pub const SEEN: u8 = 0x01;
    /// Has acknowledged what the other side sent.
    pub const ACKED: u8 = 0x02;
    /// Has sent a FIN, which ends at `end`.
    pub const FIN: u8 = 0x04;
    /// Has reset the connection.
    pub const RST: u8 = 0x08;
    /// Its SYN had a window scale.
    pub const SCALED: u8 = 0x10;
    /// Numbers are not known for sure (picked up in mid-stream, or segments in IP fragments): nothing is checked against
    /// them, and an RST still has to be exact.
    pub const LIBERAL: u8 = 0x20;

    /// The side after its SYN (with or without ACK).
    fn opened(segment: &Segment) -> Self {
        let mut side = Self {
            end: segment.end(),
            ack: segment.seq.wrapping_add(1),
            limit: 0,
            window_max: u32::from(segment.window),
            scale: segment.scale.unwrap_or(0),
            flags: Self::SEEN | if segment.scale.is_some() { Self::SCALED } else { 0 },
        };
        if segment.has(flags::ACK) {
            side.acknowledge(segment.ack, u32::from(segment.window));
        }
        side.liberal_if(segment.fragment)
    }

    /// The side as its first segment shows it in mid-stream.
    fn picked_up(segment: &Segment) -> Self {
        let mut side = Self { end: segment.end(), flags: Self::SEEN, ..Self::default() };
        side.acknowledge(segment.ack, u32::from(segment.window));
        side.flags |= if segment.has(flags::FIN) { Self::FIN } else { 0 };
        side.liberal_if(true)
    }

    #[inline]
    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    fn with(self, flag: u8) -> Self {
        Self { flags: self.flags | flag, ..self }
    }

    fn liberal_if(self, yes: bool) -> Self {
        if yes { self.with(Self::LIBERAL) } else { self }
    }

    /// Whether `ack` acknowledges the SYN of a side that has not acknowledged anything itself.
    fn syn_acked_by(&self, ack: u32) -> bool {
        at_or_after(ack, self.ack) && at_or_after(self.end, ack)
    }

    /// Whether `other` has acknowledged all of it.
    fn acked_by(&self, other: &Side) -> bool {
        other.has(Self::ACKED) && at_or_after(other.ack, self.end)
    }

    /// Takes the first acknowledgement; [`Side::advance`] takes those that follow.
    fn acknowledge(&mut self, ack: u32, window: u32) {
        self.ack = ack;
        self.limit = ack.wrapping_add(window.max(1));
        self.window_max = self.window_max.max(window);
        self.flags |= Self::ACKED;
    }

    /// Octets that `segment` of this side offers.
    #[inline]
    fn window(&self, receiver: &Side, segment: &Segment) -> u32 {
        let scaled = self.flags & receiver.flags & Self::SCALED != 0;
        u32::from(segment.window) << if scaled { self.scale } else { 0 }
    }

    /// The side after a segment without SYN, which ends at `end`.
    #[inline]
    fn advance(&self, receiver: &Side, segment: &Segment, end: u32) -> Self {
        let new = distance(end, self.end) > 0;
        let window = self.window(receiver, segment);
        // One octet more than nothing: a probe of a closed window, or a FIN, stands there (RFC 9293 §3.8.6.1).
        let limit = segment.ack.wrapping_add(window.max(1));
        Self {
            end: if new { end } else { self.end },
            ack: later(self.ack, segment.ack),
            limit: later(self.limit, limit),
            window_max: self.window_max.max(window),
            scale: self.scale,
            flags: if new { self.flags & !(Self::FIN | Self::RST) } else { self.flags },
        }
    }
}

/// What is looked at of one segment, or of a GSO frame that stands for several.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number; counts with the flag ACK.
    pub ack: u32,
    /// Window as in the header, not scaled.
    pub window: u16,
    /// Octets of payload, of the whole frame.
    pub payload_len: u32,
    /// See [`tcp::flags`]; PSH, ECE and CWR do not matter.
    pub flags: u8,
    /// Window scale, of a SYN; at most 14.
    pub scale: Option<u8>,
    /// The first fragment of a packet: there is more payload than `payload_len` says.
    pub fragment: bool,
}

impl Segment {
    /// Reads the segment whose header is `head[l4..l5]`, options included, and whose packet ends at `end`, all in octets
    /// from the first octet of the frame. `None` when the header is not there as a whole.
    #[inline]
    pub fn read(head: &[u8], l4: usize, l5: usize, end: usize) -> Option<Self> {
        let octets = head.get(l4..l5)?;
        let header = Tcp::new_checked(octets)?;
        let flags = header.flags();
        let scale = if flags & flags::SYN != 0 { window_scale(&octets[tcp::HEADER_LEN..]) } else { None };
        Some(Self {
            seq: header.sequence(),
            ack: header.acknowledgement(),
            window: header.window(),
            payload_len: end.checked_sub(l5)? as u32,
            flags,
            scale,
            fragment: false,
        })
    }

    /// Reads the segment of a parsed TCP packet. `None` of a later fragment.
    #[inline]
    pub fn of(packet: &Packet) -> Option<Self> {
        let meta = &packet.meta;
        if meta.later_fragment {
            return None;
        }
        let end = ethernet::HEADER_LEN + meta.l3_len as usize;
        let segment = Self::read(packet.head(), usize::from(meta.layers.l4), usize::from(meta.layers.l5), end)?;
        Some(Self { fragment: meta.fragment, ..segment })
    }

    /// Behind its last octet; SYN and FIN count one each.
    #[inline]
    fn end(&self) -> u32 {
        let flags = u32::from(self.has(flags::SYN)) + u32::from(self.has(flags::FIN));
        self.seq.wrapping_add(self.payload_len).wrapping_add(flags)
    }

    #[inline]
    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Whether a TCP sends such flags at all.
    fn flags_valid(&self) -> bool {
        use flags::{ACK, FIN, RST, SYN, URG};
        const SYN_ACK: u8 = SYN | ACK;
        const RST_ACK: u8 = RST | ACK;
        const FIN_ACK: u8 = FIN | ACK;
        match self.flags & (FIN | SYN | RST | ACK) {
            SYN | ACK | FIN_ACK => true,
            SYN_ACK | RST | RST_ACK => !self.has(URG),
            _ => false,
        }
    }
}

/// Where a connection is, by both sides.
///
/// ```text
/// Opening ──both have acknowledged──► Established ──a FIN──► Closing ──both FINs acknowledged──► TimeWait
///    └────────────── an exact RST, from any state ──────────────► Closed
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// SYN sent, or received: a side has not acknowledged yet. Also one that was picked up and not answered.
    Opening,
    /// Both sides have acknowledged.
    Established,
    /// A FIN was sent; the other direction may stay open for long (half-close).
    Closing,
    /// Both FINs are acknowledged.
    TimeWait,
    /// Reset.
    Closed,
}

/// The state of the connection between `a` and `b`, in any order.
#[inline]
pub fn state(a: &Side, b: &Side) -> State {
    let (any, both) = (a.flags | b.flags, a.flags & b.flags);
    if any & (Side::FIN | Side::RST) == 0 {
        return if both & Side::ACKED != 0 { State::Established } else { State::Opening };
    }
    if any & Side::RST != 0 {
        State::Closed
    } else if both & Side::FIN != 0 && a.acked_by(b) && b.acked_by(a) {
        State::TimeWait
    } else {
        State::Closing
    }
}

/// What becomes of a segment of a known connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Outcome {
    /// It goes on; the new value of the sender's side, which may be the old one.
    Pass(Side),
    /// `tcp_out_of_window`; nothing changes (SEMANTICS CT2).
    OutOfWindow,
    /// `tcp_invalid`; nothing changes (SEMANTICS CT3).
    Invalid,
    /// A SYN on a connection that stands. It goes on, and nothing changes; the value is what it shows, for [`both_anew`].
    Challenge(Side),
    /// A SYN of a new connection between the same ends: forget the old one and decide anew (SEMANTICS CT4).
    Reopen,
}

/// Judges a segment of a known connection. Pass `receiver` as it was not earlier than the receiver of the segment's data
/// last sent through here.
#[inline]
pub fn track(sender: &Side, receiver: &Side, segment: &Segment) -> Outcome {
    const KINDS: u8 = flags::FIN | flags::SYN | flags::RST | flags::ACK;
    const SURE: u8 = Side::ACKED | Side::LIBERAL;
    let plain = segment.flags & KINDS == flags::ACK
        && sender.flags & SURE == Side::ACKED
        && receiver.flags & SURE == Side::ACKED
        && !segment.fragment;
    if !plain {
        return special(sender, receiver, segment);
    }
    let end = segment.seq.wrapping_add(segment.payload_len);
    if in_window(sender, receiver, segment, end) {
        Outcome::Pass(sender.advance(receiver, segment, end))
    } else {
        Outcome::OutOfWindow
    }
}

/// The sender's side of a new connection. A SYN begins one, and nothing else (SEMANTICS CT1), unless `loose`: then an
/// ACK or data picks up a connection that began before. `None`: no connection begins with this segment.
pub fn first(segment: &Segment, loose: bool) -> Option<Side> {
    use flags::{ACK, FIN, RST, SYN};
    match segment.flags & (FIN | SYN | RST | ACK) {
        SYN => Some(Side::opened(segment)),
        ACK if loose => Some(Side::picked_up(segment)),
        _ => None,
    }
}

/// The sides of a connection that both ends have begun anew without an end of the old one: `opener` as its SYN showed it
/// ([`Outcome::Challenge`]), and the sender of `segment`. `None` unless that is a SYN-ACK which acknowledges the SYN.
pub fn both_anew(opener: &Side, segment: &Segment) -> Option<[Side; 2]> {
    let answers = segment.has(flags::SYN) && segment.has(flags::ACK) && segment.flags_valid();
    (answers && opener.syn_acked_by(segment.ack)).then(|| [*opener, Side::opened(segment)])
}

/// The four bounds, between two sides that both have acknowledged.
#[inline]
fn in_window(sender: &Side, receiver: &Side, segment: &Segment, end: u32) -> bool {
    // All four at once: a difference that is negative sets the sign of the whole.
    let late = distance(end.wrapping_add(receiver.window_max.max(WINDOW_MIN)), sender.end);
    let acked = distance(receiver.end, segment.ack);
    let stale = distance(segment.ack.wrapping_add(sender.window_max.max(WINDOW_MIN)), sender.ack);
    let offered = distance(receiver.limit, segment.seq);
    // What follows immediately is never too early: a FIN may have gone one beyond the limit.
    (late | acked | stale | offered) >= 0 || ((late | acked | stale) >= 0 && at_or_after(sender.end, segment.seq))
}

/// The bounds of the sequence number alone, for any two sides that were seen.
fn seq_in_window(sender: &Side, receiver: &Side, segment: &Segment) -> bool {
    if (sender.flags | receiver.flags) & Side::LIBERAL != 0 {
        return true;
    }
    // Without an acknowledgement, the window counts from where the sender is (data behind a SYN-ACK, RFC 7413).
    let limit = if receiver.has(Side::ACKED) {
        later(receiver.limit, sender.end)
    } else {
        sender.end.wrapping_add(receiver.window_max)
    };
    let oldest = sender.end.wrapping_sub(receiver.window_max.max(WINDOW_MIN));
    at_or_after(limit, segment.seq) && at_or_after(segment.end(), oldest)
}

/// The bounds of the acknowledgement number alone, for any two sides that were seen.
fn ack_in_window(sender: &Side, receiver: &Side, ack: u32) -> bool {
    if (sender.flags | receiver.flags) & Side::LIBERAL != 0 {
        return true;
    }
    if !receiver.has(Side::ACKED) {
        return receiver.syn_acked_by(ack);
    }
    // The first acknowledgement has no history: it cannot be older than the window of the SYN.
    let oldest = if sender.has(Side::ACKED) {
        sender.ack.wrapping_sub(sender.window_max.max(WINDOW_MIN))
    } else {
        receiver.end.wrapping_sub(sender.window_max)
    };
    at_or_after(receiver.end, ack) && at_or_after(ack, oldest)
}

/// Everything but a plain segment of an established connection.
#[cold]
fn special(sender: &Side, receiver: &Side, segment: &Segment) -> Outcome {
    if !segment.flags_valid() {
        return Outcome::Invalid;
    }
    if segment.has(flags::RST) {
        return reset(sender, receiver, segment);
    }
    match (segment.has(flags::SYN), segment.has(flags::ACK)) {
        (true, false) => syn(sender, receiver, segment),
        (true, true) => syn_ack(sender, receiver, segment),
        (false, _) => data(sender, receiver, segment),
    }
}

/// RFC 5961 §3.2: "If the RST bit is set and the sequence number exactly matches the next expected sequence number
/// (RCV.NXT), then TCP MUST reset the connection." In the window, but elsewhere, the receiver sends a challenge.
fn reset(sender: &Side, receiver: &Side, segment: &Segment) -> Outcome {
    let acks = segment.has(flags::ACK);
    let closed = Outcome::Pass(sender.with(Side::RST));
    // In SYN-SENT "the RST is acceptable if the ACK field acknowledges the SYN" (RFC 9293 §3.5.3).
    let syn_sent = receiver.has(Side::SEEN) && !receiver.has(Side::ACKED);
    if syn_sent && acks && receiver.syn_acked_by(segment.ack) {
        return closed;
    }
    if !sender.has(Side::SEEN) {
        return match receiver.has(Side::LIBERAL) {
            true if segment.seq == receiver.ack => closed,
            true => Outcome::Pass(*sender),
            false => Outcome::OutOfWindow,
        };
    }
    // The receiver expects what it acknowledged last, or what it was sent since.
    if segment.seq == sender.end || (receiver.has(Side::ACKED) && segment.seq == receiver.ack) {
        return closed;
    }
    // Against a side that has shown nothing there is nothing to check. That is how a host whose SYN met an old
    // connection ends the latter (RFC 9293 §3.5.1, figure 9).
    if !receiver.has(Side::SEEN) || seq_in_window(sender, receiver, segment) {
        Outcome::Pass(*sender)
    } else {
        Outcome::OutOfWindow
    }
}

fn syn(sender: &Side, receiver: &Side, segment: &Segment) -> Outcome {
    let next = segment.seq.wrapping_add(1);
    match state(sender, receiver) {
        // Nobody remembers a connection that was reset.
        State::Closed => return Outcome::Reopen,
        // RFC 9293 §3.6.1: a new SYN is accepted if it "assigns its initial sequence number for the new connection to be
        // larger than the largest sequence number it used on the previous connection incarnation". If not, the other
        // end says so.
        State::TimeWait if distance(segment.seq, sender.end) >= 0 => return Outcome::Reopen,
        _ => {}
    }
    if !sender.has(Side::SEEN) {
        // Simultaneous open (RFC 9293 §3.5, figure 7), or the other direction of one that was picked up.
        let open = receiver.has(Side::SEEN) && !receiver.has(Side::ACKED);
        return Outcome::Pass(if open { Side::opened(segment) } else { *sender });
    }
    if sender.has(Side::ACKED) {
        // RFC 5961 §4.2: "the receiver MUST send a challenge ACK", whatever the sequence number.
        return Outcome::Challenge(Side::opened(segment));
    }
    if next == sender.ack {
        // Again, perhaps without its data or its options (RFC 7413 §4.1.3); the first one may be the one that is answered.
        let again = Side::opened(segment);
        let end = later(sender.end, again.end);
        let window_max = sender.window_max.max(again.window_max);
        return Outcome::Pass(Side { end, window_max, ..*sender });
    }
    // The sender gave up and tries anew from the same port. Numbers grow, so an old duplicate does not come here.
    let anew = !receiver.has(Side::SEEN) && distance(segment.seq, sender.end) >= 0;
    Outcome::Pass(if anew { Side::opened(segment) } else { *sender })
}

fn syn_ack(sender: &Side, receiver: &Side, segment: &Segment) -> Outcome {
    if !receiver.has(Side::SEEN) {
        return Outcome::Invalid;
    }
    let answers = ack_in_window(sender, receiver, segment.ack);
    if !sender.has(Side::SEEN) {
        // Mid-stream there was no SYN to answer.
        let opened = Side::opened(segment).liberal_if(receiver.has(Side::LIBERAL));
        return if answers { Outcome::Pass(opened) } else { Outcome::OutOfWindow };
    }
    if !sender.has(Side::ACKED) {
        // Simultaneous open: the SYN again, now with an acknowledgement.
        if segment.seq.wrapping_add(1) != sender.ack || !answers {
            return Outcome::OutOfWindow;
        }
        let mut side = Side { end: later(sender.end, segment.end()), ..*sender };
        side.acknowledge(segment.ack, u32::from(segment.window));
        return Outcome::Pass(side);
    }
    if !receiver.has(Side::ACKED) && answers && !sender.has(Side::FIN) {
        // Again, before it was acknowledged. A listener under load may answer with a new number (SYN cookies, RFC 4987 §3.6).
        let same = at_or_after(sender.end, segment.end()) && seq_in_window(sender, receiver, segment);
        return Outcome::Pass(if same { *sender } else { Side::opened(segment) });
    }
    if answers && seq_in_window(sender, receiver, segment) { Outcome::Pass(*sender) } else { Outcome::OutOfWindow }
}

/// A segment with ACK, without SYN or RST.
fn data(sender: &Side, receiver: &Side, segment: &Segment) -> Outcome {
    let end = segment.end();
    if !sender.has(Side::SEEN) {
        return unseen(sender, receiver, segment, end);
    }
    if !receiver.has(Side::SEEN) {
        // Only of a connection that was picked up are there such segments before an answer.
        let liberal = sender.has(Side::LIBERAL);
        return if liberal {
            Outcome::Pass(with_fin(sender.advance(receiver, segment, end), segment, end))
        } else {
            Outcome::Invalid
        };
    }
    if !seq_in_window(sender, receiver, segment) || !ack_in_window(sender, receiver, segment.ack) {
        return Outcome::OutOfWindow;
    }
    let side = if sender.has(Side::ACKED) {
        sender.advance(receiver, segment, end)
    } else {
        let mut side = Side { end: later(sender.end, end), ..*sender };
        side.acknowledge(segment.ack, sender.window(receiver, segment));
        side
    };
    Outcome::Pass(with_fin(side, segment, end).liberal_if(segment.fragment))
}

fn with_fin(side: Side, segment: &Segment, end: u32) -> Side {
    if segment.has(flags::FIN) && end == side.end { side.with(Side::FIN) } else { side }
}

/// The first segment of the other direction, which is not a SYN.
fn unseen(sender: &Side, receiver: &Side, segment: &Segment, end: u32) -> Outcome {
    if receiver.has(Side::LIBERAL) {
        return Outcome::Pass(Side::picked_up(segment));
    }
    // A host that remembers an old connection answers a SYN with an ACK, which the other end resets (RFC 9293 §3.5.1,
    // figure 9; RFC 5961 §4.2). An ACK of the new SYN without a SYN is a split handshake.
    let challenge = segment.seq == end && receiver.has(Side::SEEN) && !receiver.syn_acked_by(segment.ack);
    if challenge { Outcome::Pass(*sender) } else { Outcome::Invalid }
}

/// The window scale among the options of a SYN (RFC 7323 §2.2). Malformed options end the search.
#[cold]
fn window_scale(mut options: &[u8]) -> Option<u8> {
    loop {
        options = match *options {
            [OPTION_NOP, ref rest @ ..] => rest,
            // RFC 7323 §2.3: a shift above 14 counts as 14.
            [OPTION_WINDOW_SCALE, 3, shift, ..] => return Some(shift.min(SCALE_MAX)),
            [kind, len, ..] if kind != OPTION_END && len >= 2 => options.get(usize::from(len)..)?,
            _ => return None,
        };
    }
}

/// How far `a` is behind `b` in sequence space (RFC 9293 §3.4).
#[inline]
fn distance(a: u32, b: u32) -> i32 {
    a.wrapping_sub(b) as i32
}

#[inline]
fn at_or_after(a: u32, b: u32) -> bool {
    distance(a, b) >= 0
}

#[inline]
fn later(a: u32, b: u32) -> u32 {
    if at_or_after(a, b) { a } else { b }
}

/// Octets by which a segment may always be late, as in van Rooij's paper: windows shrink, and paths reorder.
const WINDOW_MIN: u32 = 66_000;
/// Largest window scale (RFC 7323 §2.3).
const SCALE_MAX: u8 = 14;
const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_WINDOW_SCALE: u8 = 3;

// A window is less than half of the sequence space, so that comparisons hold.
const _: () = assert!((u16::MAX as u64) << SCALE_MAX < 1 << 30);

#[cfg(test)]
mod tests;

#[cfg(test)]
#[path = "tcp_track/exchange_tests.rs"]
mod exchange_tests;
