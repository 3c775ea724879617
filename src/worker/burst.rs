//! One burst through the pipeline: all packets through `classify`, then each through `forward` and into its destination.

use std::time::Instant;

use hostweave_switch::counters::PortCounters;
use hostweave_switch::flow::{FlowKey, NO_QUEUE};
use hostweave_switch::fragment::Admit;
use hostweave_switch::icmp_error::{self, ErrorKind};
use hostweave_switch::limits::BURST;
use hostweave_switch::packet::{L3, Offload, Packet};
use hostweave_switch::payload::Segment;
use hostweave_switch::rate::RateLimits;
use hostweave_switch::stage::{DropReason, Verdict};
use hostweave_switch::tables::{Egress, PortId, PortKind};
use hostweave_switch::tcp_reset::tcp_reset;
use hostweave_switch::wire::proto;

use super::delivery::{Delivery, Outcome};
use super::ended::{self, Teller};
use super::oversize::{self, Released};
use super::pace::Pace;
use super::stash::Stash;
use super::watch::{ANSWER_ENDS, Nobody, Somebody, Watcher};
use super::{Note, Path, Shared, add, counters};
use crate::connect::{Denied, Flows, Opened, ahead};
use crate::datapath::{self, Context, Lookup};
use crate::fabric::plane::Plane;
use crate::observe::flow_event::FlowEvent;
use crate::observe::recorder::Unwatched;
use crate::services::LocalNote;
use crate::services::uplink::come_from;

const _: () = assert!(BURST <= 64, "a bit for each packet of a burst");

/// What became of a packet that had waited.
enum Done {
    /// It is on its way.
    Sent,
    /// It waits again, in pieces.
    Cut,
}

/// Fragments looked at in one loop for being too old.
const FRAGMENTS_BUDGET: usize = 16;

impl Path {
    /// Takes the packets in the burst, all from queue pair `queue` of `port`, through the pipeline and into their
    /// destinations.
    #[inline]
    pub(super) fn run_burst(&mut self, plane: &Plane, port: PortId, queue: u8, now: Instant) {
        if self.shared.watch.is_on() {
            return self.run_watched(plane, port, queue, now);
        }
        self.run(plane, port, queue, now, &mut Nobody);
    }

    /// The same, while somebody watches.
    #[cold]
    #[inline(never)]
    fn run_watched(&mut self, plane: &Plane, port: PortId, queue: u8, now: Instant) {
        let watching = self.shared.watch.watching();
        let worker = self.shared.index;
        self.run(plane, port, queue, now, &mut Somebody::new(&watching, worker, now));
    }

    #[allow(
        clippy::needless_range_loop,
        reason = "the burst is changed in the loop; an iterator costs 20 instructions"
    )]
    fn run<W: Watcher>(&mut self, plane: &Plane, port: PortId, queue: u8, now: Instant, watcher: &mut W) {
        let Some(input) = plane.tables.port(port) else { return };
        let (Some(network), Some(count)) = (plane.tables.network(input.network), input.counters.get(self.shared.index))
        else {
            return;
        };
        let ctx = Context::new(plane, input, network, queue, self.shared.clock.seconds(now));
        let mut verdicts = [Verdict::Continue; BURST];
        watcher.arrived(&ctx, &self.burst);
        self.classify_all(&ctx, &mut verdicts, now);
        let (limits, ticks) = (input.limits.as_deref(), self.shared.clock.ticks(now));
        let mut out = Delivery::new(plane, self.shared.index, self.burst.len(), ticks);
        let (mut forwarded, mut replied, mut octets) = (0, 0, 0);
        for index in 0..self.burst.len() {
            octets += self.burst.packets()[index].len() as u64;
            let verdict = match verdicts[index] {
                Verdict::Continue => self.forward(&ctx, index, now, watcher),
                Verdict::Drop(reason) => self.refused(&ctx, index, reason, now),
                ended => ended,
            };
            let (packet, arena) = self.burst.packet_mut(index);
            let verdict = limits.map_or(verdict, |limits| within(limits, verdict, plane, packet, ticks));
            watcher.decided(index, verdict);
            let to = match verdict {
                Verdict::Forward => {
                    forwarded += 1;
                    packet.meta.out_port
                }
                Verdict::Reply if self.pace.local(port, &packet.meta, now) => {
                    replied += 1;
                    // The answer goes to the queue on which the question came.
                    packet.meta.queue = queue;
                    port
                }
                Verdict::Reply => {
                    count.dropped.add(DropReason::LocalRateLimited, 1);
                    teller(&self.shared, &mut self.pace, plane, now).unanswered(packet, port);
                    continue;
                }
                Verdict::Drop(reason) => {
                    count.dropped.add(reason, 1);
                    teller(&self.shared, &mut self.pace, plane, now).limited(packet, &self.lookups[index].key, reason);
                    let made = error_reply(packet, arena, &ctx, reason);
                    if !made || !self.pace.error(port, packet.meta.proto, reason, now) {
                        continue;
                    }
                    count.originated.add(1);
                    port
                }
                Verdict::Queued => {
                    count.queued.add(1);
                    continue;
                }
                Verdict::Continue => {
                    count.dropped.add(DropReason::Internal, 1);
                    continue;
                }
            };
            if W::ON && watcher.takes(&ctx, packet, arena, to) {
                counters(plane, to, self.shared.index).inspect(|count| count.tx_dropped.add(ANSWER_ENDS, 1));
                continue;
            }
            // Behind a packet that waits for the same port, or its flow would be out of order.
            let behind = !self.stash.is_empty() && self.stash.holds(to);
            let outcome = if behind { Outcome::Busy } else { out.deliver(&mut self.uring, packet, arena, to) };
            watcher.delivered(packet, arena, to, &outcome);
            if !matches!(outcome, Outcome::Done) {
                self.not_done(plane, index, verdict, to, &outcome, now);
            }
        }
        out.finish(&mut self.uring);
        self.load.add(octets);
        account(count, [self.burst.len() as u64, octets, forwarded, replied]);
    }

    /// Sends the fragments that waited for a first one of the burst before, and packets that were cut. The burst is empty.
    #[cold]
    pub(super) fn release(&mut self, plane: &Plane, now: Instant) {
        for Released { queued: frame, piece } in std::mem::take(&mut self.released) {
            let port = frame.meta.in_port;
            let Some(input) = plane.tables.port(port) else { continue };
            let (Some(network), Some(count)) =
                (plane.tables.network(input.network), input.counters.get(self.shared.index))
            else {
                continue;
            };
            let ctx = Context::new(plane, input, network, NO_QUEUE, self.shared.clock.seconds(now));
            let ticks = self.shared.clock.ticks(now);
            let mut out = Delivery::new(plane, self.shared.index, 1, ticks);
            let Path { shared, uring, burst, cache, free, stash, released, pace, .. } = self;
            let mut teller = teller(shared, pace, plane, now);
            let extra = piece.is_some_and(|piece| !piece.first);
            if !extra {
                // Counts are per worker, and another one may have queued it: only their sum is never below zero.
                count.queued.sub(1);
            }
            let ended = burst.with_frame(frame.meta, &frame.frame, frame.head_len, |packet, arena| {
                if let Some(piece) = piece {
                    piece.parse(packet, arena)?;
                }
                let key = FlowKey::of(packet, port.0 as u16).ok_or(DropReason::Internal)?;
                let lookup = Lookup::new(shared.connections.keys(), key, network.vni);
                let (connections, nat) = (&shared.connections, &shared.nat);
                let mut flows = Flows { cache, connections, nat, free, denied: None, opened: None };
                let verdict = datapath::forward(&ctx, &mut flows, &lookup, packet, arena, &mut Unwatched);
                let (opened, denied) = (flows.opened, flows.denied);
                let is_cut = verdict == Verdict::Drop(DropReason::MtuExceeded) && piece.is_none();
                if opened.is_some() || matches!(verdict, Verdict::Drop(_)) && !is_cut {
                    ended::judged(shared, teller.may(port), (&ctx, &lookup, packet), verdict, opened, denied);
                }
                match verdict {
                    Verdict::Forward => {}
                    // What waited for its first fragment may be cut as that may.
                    Verdict::Drop(reason @ DropReason::MtuExceeded) if is_cut => {
                        released.extend(oversize::cut(packet, arena, narrow(&ctx, packet)).ok_or(reason)?);
                        return Ok(Done::Cut);
                    }
                    Verdict::Drop(reason) => return Err(reason),
                    _ => return Err(DropReason::Internal),
                }
                let to = packet.meta.out_port;
                let limits = input.limits.as_deref();
                let verdict =
                    limits.map_or(Verdict::Forward, |limits| within(limits, Verdict::Forward, plane, packet, ticks));
                let outcome = match verdict {
                    Verdict::Drop(reason) => {
                        teller.undelivered(packet, Some(lookup.key), to, reason);
                        return Err(reason);
                    }
                    _ if stash.holds(to) => Outcome::Busy,
                    _ => out.deliver(uring, packet, arena, to),
                };
                if let Some(reason) = why_ended(stash, plane, shared.index, packet, arena, to, &outcome, now) {
                    teller.undelivered(packet, Some(lookup.key), to, reason);
                }
                Ok(Done::Sent)
            });
            match ended {
                Ok(Done::Cut) => count.queued.add(1),
                Ok(Done::Sent) if extra => count.extra_segments.add(1),
                Ok(Done::Sent) => count.forwarded.add(1),
                Err(reason) if extra => {
                    count.extra_segments.add(1);
                    count.tx_dropped.add(reason, 1);
                }
                Err(reason) => count.dropped.add(reason, 1),
            }
            out.finish(uring);
        }
    }

    /// Ends fragments whose first one never came.
    #[cold]
    pub(super) fn expire_fragments(&mut self, plane: &Plane, now: Instant) {
        let Path { shared, pace, .. } = self;
        let mut teller = teller(shared, pace, plane, now);
        shared.fragments.expire(shared.clock.millis(now), FRAGMENTS_BUDGET, |port, reason, frames, last| {
            if let Some(count) = counters(plane, port, shared.index) {
                count.queued.sub(frames);
                count.dropped.add(reason, frames);
            }
            teller.ended([port, PortId::NONE], last, reason);
        });
    }

    /// A packet that its destination did not take, or not yet; unless its verdict is `Forward`, one of the switch's own.
    #[cold]
    #[inline(never)]
    fn not_done(&mut self, plane: &Plane, index: usize, verdict: Verdict, to: PortId, outcome: &Outcome, now: Instant) {
        let (packet, arena) = self.burst.packet_mut(index);
        let why = why_ended(&mut self.stash, plane, self.shared.index, packet, arena, to, outcome, now);
        if let Some(reason) = why {
            let key = (verdict == Verdict::Forward).then(|| self.lookups[index].key);
            teller(&self.shared, &mut self.pace, plane, now).undelivered(packet, key, to, reason);
        }
    }

    /// The first half of the pipeline for the whole burst, before the second begins: what that needs of the flow cache and of the
    /// connection table is on its way by then.
    #[inline(never)]
    #[allow(clippy::needless_range_loop, reason = "as in `run`")]
    fn classify_all(&mut self, ctx: &Context<'_>, verdicts: &mut [Verdict; BURST], now: Instant) {
        let mut wanted = 0u64;
        for index in 0..self.burst.len() {
            verdicts[index] = self.classify(ctx, index, now);
            if verdicts[index] == Verdict::Continue {
                ahead::tags(&self.cache, &self.lookups[index]);
                wanted |= 1 << index;
            }
        }
        let lookups = &mut self.lookups[..self.burst.len()];
        ahead::expect(ctx, &self.cache, &self.shared.connections, &self.shared.nat, lookups, wanted);
    }

    /// The first half, for one packet. `Continue` leaves what its flow is looked up by in `lookups`.
    #[inline(always)]
    fn classify(&mut self, ctx: &Context<'_>, index: usize, now: Instant) -> Verdict {
        let (packet, arena) = self.burst.packet_mut(index);
        let mut note = None;
        let mut verdict = datapath::classify(ctx, packet, arena, &mut note, &mut Unwatched);
        if note.is_some() {
            tell(&self.shared, &mut self.pace, ctx.port.id, note, now);
        }
        if verdict == Verdict::Continue && packet.meta.fragment {
            verdict = fragment(&self.shared, &mut self.released, ctx, packet, arena, now);
        }
        if verdict != Verdict::Continue {
            return verdict;
        }
        // `PORTS_MAX` fits.
        let Some(key) = FlowKey::of(packet, ctx.port.id.0 as u16) else {
            return Verdict::Drop(DropReason::NeighborNoAnswer);
        };
        self.lookups[index] = Lookup::new(self.shared.connections.keys(), key, ctx.network.vni);
        Verdict::Continue
    }

    /// The second half, for one packet.
    #[inline(always)]
    fn forward<W: Watcher>(&mut self, ctx: &Context<'_>, index: usize, now: Instant, watcher: &mut W) -> Verdict {
        let lookup = &self.lookups[index];
        let mut flows = Flows {
            cache: &mut self.cache,
            connections: &self.shared.connections,
            nat: &self.shared.nat,
            free: &mut self.free,
            denied: None,
            opened: None,
        };
        let (packet, arena) = self.burst.packet_mut(index);
        let verdict = datapath::forward(ctx, &mut flows, lookup, packet, arena, &mut Unwatched);
        let (opened, denied) = (flows.opened, flows.denied);
        watcher.spoken(&self.shared.connections, lookup, denied);
        if opened.is_some() || matches!(verdict, Verdict::Drop(_)) {
            if verdict == Verdict::Drop(DropReason::MtuExceeded) && self.cut(ctx, index) {
                if opened.is_some() {
                    self.log(ctx, index, Verdict::Queued, opened, denied, now);
                }
                return Verdict::Queued;
            }
            self.log(ctx, index, verdict, opened, denied, now);
        }
        verdict
    }

    /// Puts a packet aside in pieces that fit where it goes, if it may be cut.
    #[cold]
    fn cut(&mut self, ctx: &Context<'_>, index: usize) -> bool {
        let (packet, arena) = self.burst.packet_mut(index);
        let pieces = oversize::cut(packet, arena, narrow(ctx, packet));
        let may = pieces.is_some();
        self.released.extend(pieces.into_iter().flatten());
        may
    }

    /// Tells the flow log of a packet that began a connection or ended.
    #[cold]
    fn log(
        &mut self,
        ctx: &Context<'_>,
        index: usize,
        verdict: Verdict,
        opened: Option<Opened>,
        denied: Option<Denied>,
        now: Instant,
    ) {
        let may = self.may_log(ctx.port.id, now);
        let packet = (ctx, &self.lookups[index], &self.burst.packets()[index]);
        ended::judged(&self.shared, may, packet, verdict, opened, denied);
    }

    /// A packet that ended in the first half.
    #[cold]
    fn refused(&mut self, ctx: &Context<'_>, index: usize, reason: DropReason, now: Instant) -> Verdict {
        // A frame without IP header has no tuple.
        let key = FlowKey::of(&self.burst.packets()[index], 0);
        let key = key.or_else(|| (reason != DropReason::NeighborNoAnswer).then(FlowEvent::no_tuple));
        if let Some(key) = key
            && self.may_log(ctx.port.id, now)
        {
            let event = FlowEvent::dropped(ctx, &key, &self.burst.packets()[index], reason, None);
            self.shared.log(event);
        }
        Verdict::Drop(reason)
    }

    fn may_log(&mut self, port: PortId, now: Instant) -> bool {
        ended::may_log(&self.shared, &mut self.pace, port, now)
    }
}

/// Who tells the flow log of packets that end where no stage sees them.
pub(super) fn teller<'a>(shared: &'a Shared, pace: &'a mut Pace, plane: &'a Plane, now: Instant) -> Teller<'a> {
    Teller { shared, pace, plane, now }
}

/// Why a packet has ended that was handed to its destination. One whose destination is busy is kept, if there is room.
#[cold]
#[allow(clippy::too_many_arguments, reason = "what `keep` needs")]
pub(super) fn why_ended(
    stash: &mut Stash,
    plane: &Plane,
    worker: usize,
    packet: &Packet,
    arena: &[Segment],
    to: PortId,
    outcome: &Outcome,
    now: Instant,
) -> Option<DropReason> {
    match outcome {
        Outcome::Done => None,
        Outcome::Busy if keep(stash, plane, worker, packet, arena, to, now) => None,
        Outcome::Busy => Some(DropReason::GuestRingBusy),
        Outcome::Dropped(reason) => Some(*reason),
    }
}

/// Adds a burst to its port's counters: frames, octets, forwarded, replied.
#[inline]
fn account(count: &PortCounters, [frames, octets, forwarded, replied]: [u64; 4]) {
    count.received.add(frames);
    count.received_bytes.add(octets);
    count.forwarded.add(forwarded);
    count.replied.add(replied);
    count.bursts.add(1);
}

/// Leaves a note for control, if the port may cause another one now.
#[cold]
fn tell(shared: &Shared, pace: &mut Pace, port: PortId, note: Option<LocalNote>, now: Instant) {
    let Some(note) = note else { return };
    let may = match note {
        LocalNote::RouterHeard { contradicts: false, .. } => pace.router(port, now),
        LocalNote::NeighborHeard { .. } => pace.answer(port, now),
        LocalNote::AddressConflict(..) => pace.conflict(port, now),
        LocalNote::ListenersAsked(_) => pace.query(port, now),
        _ => pace.note(port, now),
    };
    match may {
        true => shared.note(Note::Local(port, note)),
        false => add(&shared.stats.notes_lost, 1),
    }
}

/// A fragment: a later one takes the L4 ports of its first, or waits for it (SEMANTICS CT6, CT7).
#[cold]
fn fragment(
    shared: &Shared,
    released: &mut Vec<Released>,
    ctx: &Context<'_>,
    packet: &mut Packet,
    arena: &[Segment],
    now: Instant,
) -> Verdict {
    match shared.fragments.admit(packet, arena, ctx.tables, ctx.network.vni, shared.clock.millis(now)) {
        Admit::Known(ports) => ports.write(&mut packet.meta),
        Admit::First(frames) => released.extend(frames.into_iter().map(Released::from)),
        Admit::Queued => return Verdict::Queued,
        Admit::Drop(reason) => return Verdict::Drop(reason),
    }
    Verdict::Continue
}

/// Puts a copy of a packet aside whose destination is busy. Whether there was room; if not, that is counted.
#[cold]
pub(super) fn keep(
    stash: &mut Stash,
    plane: &Plane,
    worker: usize,
    packet: &Packet,
    arena: &[Segment],
    to: PortId,
    now: Instant,
) -> bool {
    let Some(counters) = counters(plane, to, worker) else { return false };
    let kept = stash.push(packet, arena, to, now);
    match kept {
        true => counters.tx_queued.add(1),
        false => counters.tx_dropped.add(DropReason::GuestRingBusy, 1),
    }
    kept
}

/// What becomes of a packet of a sender that may send only so much.
#[inline(never)]
fn within(limits: &RateLimits, verdict: Verdict, plane: &Plane, packet: &Packet, ticks: u64) -> Verdict {
    if verdict != Verdict::Forward {
        return verdict;
    }
    let uplink = plane.tables.uplink.as_ref().is_some_and(|uplink| uplink.port == packet.meta.out_port);
    if limits.egress(packet, uplink, ticks) { Verdict::Forward } else { Verdict::Drop(DropReason::RateLimited) }
}

/// Turns a dropped packet into the ICMP error or TCP reset that its sender must hear of, if any.
#[cold]
pub(crate) fn error_reply(packet: &mut Packet, arena: &mut [Segment], ctx: &Context<'_>, reason: DropReason) -> bool {
    let Some(kind) = icmp_error_for(ctx, packet, reason) else { return false };
    if kind == ErrorKind::L4Port && packet.meta.proto == proto::TCP {
        return tcp_reset(packet);
    }
    let outside = ctx.port.kind == PortKind::Uplink;
    // There an error comes from an address of the host, or not at all.
    if outside && kind != ErrorKind::L4Port && packet.meta.l3 == L3::V6 && ctx.network.v6.is_none() {
        return false;
    }
    packet.meta.offload = Offload::default();
    let made = icmp_error::icmp_error(packet, arena, ctx.network, kind);
    if made && outside {
        come_from(packet.head_mut(), ctx.port.mac);
    }
    made
}

/// The MTU that a packet exceeds. Of one that leaves its network it is that of the one that it would have entered.
fn narrow(ctx: &Context<'_>, packet: &Packet) -> u16 {
    let out = ctx.tables.port(packet.meta.out_port);
    out.and_then(|out| ctx.tables.network(out.network)).unwrap_or(ctx.network).mtu
}

/// Whether it is written that a packet's family does not leave its network.
fn is_forbidden(ctx: &Context<'_>, packet: &Packet) -> bool {
    let egress = if packet.meta.l3 == L3::V4 { ctx.network.egress_v4 } else { ctx.network.egress_v6 };
    egress == Egress::Forbidden
}

/// Which ICMP error a drop is answered with, if any.
///
/// Nobody outside hears why something did not reach an inside that they cannot see (SEMANTICS NA13, NA36): only what a router
/// on the way must say (RFC 1812 §4.3, RFC 5508 REQ-10). A Service is there for everybody who may use it (SEMANTICS SV16, SV17).
fn icmp_error_for(ctx: &Context<'_>, packet: &Packet, reason: DropReason) -> Option<ErrorKind> {
    let kind = match reason {
        DropReason::TtlExceeded => return Some(ErrorKind::TimeExceeded),
        DropReason::MtuExceeded => return Some(ErrorKind::TooBig(narrow(ctx, packet))),
        DropReason::ServiceNoPort | DropReason::ServiceNoBackend | DropReason::ServiceEnded => {
            return Some(ErrorKind::L4Port);
        }
        // What is written is policy (SEMANTICS §5); a network without egress is a router without a default route (RFC 1812 §5.2.7.1).
        DropReason::EgressNone if is_forbidden(ctx, packet) => ErrorKind::Prohibited,
        DropReason::NoRoute | DropReason::EgressNone | DropReason::UplinkDown => ErrorKind::NoRoute,
        // SEMANTICS NA23: what may pass by itself, and what does not.
        DropReason::NatExhausted
        | DropReason::NatPortLimit
        | DropReason::NatTableFull
        | DropReason::NatTupleTaken
        | DropReason::ServiceBackendUnreachable
        | DropReason::NextHopUnresolved => ErrorKind::Unreachable,
        DropReason::NatNoPool | DropReason::NatUnsupported => ErrorKind::Prohibited,
        _ => return None,
    };
    (ctx.port.kind != PortKind::Uplink).then_some(kind)
}
