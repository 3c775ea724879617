//! The stages `flow`, `conn`, `dnat`, `egress`, `route`, `ingress`, `snat` and `commit`: which connection a packet belongs to,
//! and whether a new one may begin. `connection` has the order of the first two, `begin` in `decide` that of the others.
//!
//! Theory of operation: nearly every packet finds its flow in this worker's cache, and if that was checked against its
//! connection in the current round (four seconds) and the current epoch, nothing else is looked at ([`ready`], [`crossed`]). Otherwise the
//! connection is asked (`looked_at`): is it still there, is it still allowed? Without a flow the shared table is asked
//! (`connection`), and without a connection policy is (`decide`). Only `commit` adds connections.
//!
//! A TCP segment also has to fit into its connection, each time (SEMANTICS CT1–CT4). An ICMP error is no connection of
//! its own: it goes where the packet that it speaks about came from, if that belongs to one (CT5).
//!
//! A connection that leads from one network into another (out by the uplink, in from there, or back by an address that the host
//! owns there) *crosses*: its flows are marked, and what crosses becomes something else on its last step. Its decision rests on
//! two networks and on what the host owns, so it is made anew whenever any of them changes: all that cross share one epoch.

pub mod ahead;
mod decide;
mod outside;
mod related;
mod seen;
mod service;

use hostweave_nat::{MappingRef, Nat};
use hostweave_switch::MacAddr;
use hostweave_switch::connection::{Connections, Ending, Found, FreeRecords, Hold, Miss, Record, UNANSWERED_S};
use hostweave_switch::flow::{
    ASSURED, CROSSES, Flow, FlowCache, FlowKey, NO_QUEUE, REPLY, TCP, TRUST_S, is_icmp_error, round, stamp,
};
use hostweave_switch::guard;
use hostweave_switch::packet::{L3, Packet};
use hostweave_switch::payload::Segment;
use hostweave_switch::stage::DropReason;
use hostweave_switch::tables::{PortId, PortKind};
use hostweave_switch::tcp_track::{self, Outcome, Side, State};
use hostweave_switch::wire::proto;
use hostweave_switch::wire::tcp::flags;

use crate::datapath::{Context, Lookup};
use crate::observe::recorder::{Detail, Recorder};

pub use decide::{Allowed, Denied, anew};
pub use outside::held_ends;
pub use related::quoted;

const SYN_ACK: u8 = flags::SYN | flags::ACK;

/// What a worker knows of flows and connections.
pub struct Flows<'a> {
    /// Its own cache.
    pub cache: &'a mut FlowCache,
    /// The table of all workers.
    pub connections: &'a Connections,
    /// Mappings and blocks of all workers.
    pub nat: &'a Nat,
    /// Records for its next connections.
    pub free: &'a mut FreeRecords,
    /// What policy said against the packet, when it was dropped for `PolicyDenied`.
    pub denied: Option<Denied>,
    /// The connection that the packet began, or that a policy in audit mode has something to say about now.
    pub opened: Option<Opened>,
}

/// A connection that has just begun, or see [`Opened::again`].
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// Where it goes.
    pub out_port: PortId,
    /// What allowed it.
    pub allowed: Allowed,
    /// Its tuple as the other side sees it, if it crosses into another network.
    pub there: Option<FlowKey>,
    /// Whether its L4 port there is one that others use too (SEMANTICS NA17).
    pub shared: bool,
    /// It did not begin just now: policy was asked about it again, and one in audit mode would deny it.
    pub again: Option<Again>,
}

/// A connection that there was.
#[derive(Clone, Copy, Debug)]
pub struct Again {
    /// Tuple of the packet that began it.
    pub key: FlowKey,
    /// Its network.
    pub vni: u32,
    /// The port that began it.
    pub from: PortId,
}

/// Where a packet's flow and connection were looked for and are not, so that nobody looks twice.
#[derive(Clone, Copy)]
struct Missed {
    /// Its place in the cache, where a flow of another connection stands.
    place: Option<usize>,
    /// In the table.
    connection: Miss,
}

/// Where a packet goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Way {
    /// The port.
    pub out_port: PortId,
    /// Its receive queue, [`NO_QUEUE`] for one by hash.
    pub queue: u8,
}

/// What a packet does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// It goes to a port of its own network.
    Stay(Way),
    /// It leaves its network, and has become what it has to become.
    Crossed(Way),
    /// It leaves its network.
    Cross {
        /// Where to.
        way: Way,
        /// What it has to become.
        part: Part,
    },
}

/// What a packet that crosses has to become.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// What the flow at this place of the cache becomes.
    Flow(usize),
    /// What this direction of this connection becomes.
    Connection(Found),
    /// It is that already.
    Done,
}

/// The way of a packet that stays in its network, if nothing has to be asked: its flow is in the cache, was looked at during this
/// round and epoch, and is assured and not TCP.
///
/// # Errors
/// Where in the cache its flow stands, if it does.
#[inline(always)]
pub fn ready(ctx: &Context<'_>, flows: &Flows<'_>, lookup: &Lookup) -> Result<Way, Option<usize>> {
    let (out_port, queue) = flows.cache.look(&lookup.key, lookup.hash, lookup.expected, ctx.stamp)?;
    Ok(Way { out_port: PortId(u32::from(out_port)), queue })
}

/// The same of a packet that crosses, which it has done then.
#[inline(always)]
pub fn crossed(ctx: &Context<'_>, flows: &Flows<'_>, place: usize, packet: &mut Packet) -> Option<Way> {
    let (out_port, queue, rewriting) = flows.cache.ready_to_cross(place, ctx.crossing_stamp)?;
    let way = Way { out_port: PortId(u32::from(out_port)), queue };
    let up = ctx.tables.port(way.out_port).is_some_and(|out| out.up);
    (up && rewriting.apply_udp(packet)).then_some(way)
}

/// Finds a packet's way: its flow stands at `place` of the cache, and has to be looked at, or is not there.
///
/// # Errors
/// Why it ends here.
#[inline(never)]
pub fn flow<'a, R: Recorder>(
    ctx: &Context<'a>,
    flows: &mut Flows<'a>,
    lookup: &Lookup,
    place: Option<usize>,
    packet: &mut Packet,
    arena: &mut [Segment],
    record: &mut R,
) -> Result<Step, DropReason> {
    if let Some(place) = place
        && let Some(result) = known(ctx, flows, place, packet, record)
    {
        return result;
    }
    record.stage("flow", Detail::Miss);
    connection(ctx, flows, lookup, place, packet, arena, record)
}

/// Whether a segment whose flow stands at this place has become what it has to become: what that is was found out before.
#[inline(always)]
fn rewritten(ctx: &Context<'_>, flows: &Flows<'_>, place: usize, flow: &Flow, packet: &mut Packet) -> bool {
    let Some(rewriting) = flows.cache.rewriting(place) else { return false };
    ctx.tables.port(PortId(u32::from(flow.out_port))).is_some_and(|out| out.up) && rewriting.apply_tcp(packet)
}

/// Where a flow leads; `place` is where it stands in the cache as it is.
#[inline]
fn step(flow: &Flow, place: Option<usize>) -> Step {
    let way = way(flow);
    if flow.flags & CROSSES == 0 {
        return Step::Stay(way);
    }
    let part = place.map_or(Part::Connection(found(flow)), Part::Flow);
    Step::Cross { way, part }
}

#[inline]
fn way(flow: &Flow) -> Way {
    Way { out_port: PortId(u32::from(flow.out_port)), queue: flow.queue }
}

/// A flow that is in the cache, of a connection that has to be looked at. `None` when it is not that connection's any
/// more, or begins a new one.
#[inline]
fn known<R: Recorder>(
    ctx: &Context<'_>,
    flows: &mut Flows<'_>,
    place: usize,
    packet: &mut Packet,
    record: &mut R,
) -> Option<Result<Step, DropReason>> {
    let flow = flows.cache.get(place);
    let connection = flows.connections.get(flow.connection, flow.generation)?;
    // What crosses has the epoch of all networks, which is never that of one.
    let new = if flow.flags & CROSSES == 0 { ctx.stamp } else { ctx.crossing_stamp };
    if stamp(flow.epoch, flow.round) != new || flow.flags & ASSURED == 0 {
        return looked_at(ctx, flows, place, flow, packet, record);
    }
    if flow.flags & TCP != 0 {
        match segment(ctx, flows, &flow, connection, packet) {
            Ok(true) => {}
            Ok(false) => return None,
            Err(reason) => return Some(Err(reason)),
        }
    }
    Some(Ok(hit(ctx, flows, place, &flow, packet, record)))
}

/// The same of a flow that was not looked at during this round and epoch, or is not assured. What does not fit to its
/// connection leaves no trace there.
#[inline(never)]
fn looked_at<R: Recorder>(
    ctx: &Context<'_>,
    flows: &mut Flows<'_>,
    place: usize,
    mut flow: Flow,
    packet: &mut Packet,
    record: &mut R,
) -> Option<Result<Step, DropReason>> {
    match still_allowed(ctx, flows, &flow, record) {
        Some(Ok(())) => {}
        Some(Err(reason)) => return Some(Err(reason)),
        None => return decide::ends_here(ctx, flows, &flow, packet).map(Err),
    }
    let connection = flows.connections.get(flow.connection, flow.generation)?;
    if flow.flags & TCP != 0 {
        match segment(ctx, flows, &flow, connection, packet) {
            Ok(true) => {}
            Ok(false) => return None,
            Err(reason) => return Some(Err(reason)),
        }
    }
    if !R::MASKED {
        seen_now(ctx, flows, &mut flow, connection);
        if !connection.is_still(flow.generation) {
            return None;
        }
        flows.cache.set(place, &flow);
        delivered(ctx, packet);
    }
    Some(Ok(hit(ctx, flows, place, &flow, packet, record)))
}

/// Where a packet of a flow in the cache goes.
#[inline(always)]
fn hit<R: Recorder>(
    ctx: &Context<'_>,
    flows: &Flows<'_>,
    place: usize,
    flow: &Flow,
    packet: &mut Packet,
    record: &mut R,
) -> Step {
    record.stage("flow", Detail::Hit);
    if R::MASKED {
        return step(flow, None);
    }
    if flow.flags & (TCP | CROSSES) == TCP | CROSSES && rewritten(ctx, flows, place, flow, packet) {
        return Step::Crossed(way(flow));
    }
    step(flow, Some(place))
}

/// Whether a flow's connection may go on. `None` when policy has to decide about a new connection, because this one is gone.
fn still_allowed<R: Recorder>(
    ctx: &Context<'_>,
    flows: &mut Flows<'_>,
    flow: &Flow,
    record: &mut R,
) -> Option<Result<(), DropReason>> {
    let connection = flows.connections.get(flow.connection, flow.generation)?;
    let (translation, epoch) = match flow.flags & CROSSES {
        0 => (None, ctx.epoch),
        _ => (Some(flows.connections.translation(flow.connection, flow.generation)?), ctx.crossing_epoch),
    };
    if connection.epoch() != epoch
        && let Err(reason) = decide::again(ctx, flows, connection, translation, record)
    {
        // An address that moved: what its new owner sends, or is sent, is a connection of its own.
        let moved = matches!(reason, DropReason::NoConnection | DropReason::NoRoute);
        if !R::MASKED {
            let why = if reason == DropReason::PolicyDenied { Ending::Denied } else { Ending::Gone };
            flows.connections.remove(flow.connection, flow.generation, why);
        }
        return if moved { None } else { Some(Err(reason)) };
    }
    Some(Ok(()))
}

/// Brings a connection up to date with a packet that is part of it, and the flow with the connection.
#[inline]
fn seen_now(ctx: &Context<'_>, flows: &Flows<'_>, flow: &mut Flow, connection: &Record) {
    let direction = flow.direction();
    let first = connection.last_seen(direction) != ctx.now;
    touch(ctx, flows, flow, connection);
    flow.epoch = if flow.flags & CROSSES == 0 { ctx.epoch } else { ctx.crossing_epoch };
    flow.round = round(ctx.now);
    flow.queue = connection.queue(1 - direction);
    flow.out_port = connection.port(1 - direction) as u16;
    flow.flags &= !ASSURED;
    if ctx.tables.timeouts.may_trust(connection, ctx.now) {
        flow.flags |= ASSURED;
    }
    // A stream that nobody answers comes here with every packet.
    if first && !connection.is_replied() && (flow.flags & TCP != 0 || flow.key.proto() == proto::UDP) {
        unanswered(ctx, flows, flow, connection);
    }
}

/// A packet of a connection came.
#[inline]
fn touch(ctx: &Context<'_>, flows: &Flows<'_>, flow: &Flow, connection: &Record) {
    let direction = flow.direction();
    if direction == 1 && connection.is_kept_by_answers() {
        let (protocol, side) = (flow.key.proto(), connection.side(1));
        let wants_none = protocol == proto::TCP && side.flags & Side::RST != 0;
        if wants_none || !has_answered(protocol, &side) {
            return;
        }
        refresh(ctx, flows, flow);
    }
    connection.touch(direction, ctx.now, ctx.queue);
}

/// Whether the side that a connection was let in to has said more than that it wants none: that keeps neither the connection nor its NAT mapping (RFC
/// 7857 §7.1).
pub fn has_answered(protocol: u8, side: &Side) -> bool {
    protocol != proto::TCP || side.flags & Side::SEEN != 0
}

/// The inside sends on a connection that its NAT mapping let in: the mapping lives on (RFC 4787 REQ-6).
#[cold]
fn refresh(ctx: &Context<'_>, flows: &Flows<'_>, flow: &Flow) {
    let held =
        flows.connections.translation(flow.connection, flow.generation).and_then(|translation| translation.held[1]);
    if let Some(Hold { index, generation }) = held {
        // What the cache answers by itself for a while is not seen here.
        flows.nat.refresh(MappingRef { index, generation }, ctx.now.saturating_add(TRUST_S));
    }
}

/// A packet of a known connection came in at the uplink: whoever brought it is there.
#[inline]
fn delivered(ctx: &Context<'_>, packet: &Packet) {
    if ctx.port.kind == PortKind::Uplink
        && let Some(uplink) = ctx.tables.uplink.as_deref()
        && let Some(&mac) = packet.head().get(6..12).and_then(|mac| mac.first_chunk())
    {
        uplink.heard.note(MacAddr(mac), packet.meta.l3 == L3::V4, ctx.now);
    }
}

/// A TCP segment of a known connection. `false` when it begins a new one in its place.
#[inline]
fn segment(
    ctx: &Context<'_>,
    flows: &Flows<'_>,
    flow: &Flow,
    connection: &Record,
    packet: &Packet,
) -> Result<bool, DropReason> {
    // Of a later fragment there is nothing to see; the first one was looked at.
    let Some(segment) = tcp_track::Segment::of(packet) else { return Ok(true) };
    let direction = flow.direction();
    if segment.flags & SYN_ACK == SYN_ACK
        && let Some(result) = both_anew(ctx, flows, flow, connection, &segment)
    {
        return result;
    }
    let (sender, receiver) = (connection.side(direction), connection.side(1 - direction));
    match tcp_track::track(&sender, &receiver, &segment) {
        Outcome::Pass(side) => {
            connection.set_side(direction, &sender, &side);
            if (side.flags | receiver.flags) & (Side::FIN | Side::RST) != 0 {
                ending(ctx, flows, flow, [sender, side, receiver]);
            }
            Ok(true)
        }
        Outcome::Challenge(shown) => {
            flows.connections.challenges().keep(&found(flow), &shown);
            Ok(true)
        }
        Outcome::OutOfWindow => Err(DropReason::TcpOutOfWindow),
        Outcome::Invalid => Err(DropReason::TcpInvalid),
        Outcome::Reopen => {
            flows.connections.remove(flow.connection, flow.generation, Ending::Reopened);
            Ok(false)
        }
    }
}

/// What becomes of a SYN-ACK that answers a SYN on its connection as one that its sender does not know: both ends have
/// forgotten the connection and begin another in its place. Policy has decided about that one by the same tables, unless
/// what was allowed earlier goes on, or it begins at the other end: then the old one is forgotten, and the SYN, when it
/// comes again, is decided anew. `None` of any other.
#[cold]
fn both_anew(
    ctx: &Context<'_>,
    flows: &Flows<'_>,
    flow: &Flow,
    connection: &Record,
    segment: &tcp_track::Segment,
) -> Option<Result<bool, DropReason>> {
    let direction = 1 - flow.direction();
    let challenge = flows.connections.challenges().kept(&Found { direction, ..found(flow) })?;
    let [opener, answerer] = tcp_track::both_anew(&challenge, segment)?;
    if ctx.tables.keep_established || direction != 0 {
        flows.connections.remove(flow.connection, flow.generation, Ending::Reopened);
        return Some(Err(DropReason::TcpOutOfWindow));
    }
    connection.set_side(0, &connection.side(0), &opener);
    connection.set_side(1, &connection.side(1), &answerer);
    flows.connections.reschedule(flow.connection, flow.generation, &ctx.tables.timeouts);
    Some(Ok(true))
}

/// The direction of a connection that a flow is.
pub fn found(flow: &Flow) -> Found {
    Found { index: flow.connection, generation: flow.generation, direction: flow.direction() }
}

/// A connection that has begun to end may be forgotten sooner.
#[cold]
fn ending(ctx: &Context<'_>, flows: &Flows<'_>, flow: &Flow, [before, after, receiver]: [Side; 3]) {
    // When it ends counts from now.
    if let Some(connection) = flows.connections.get(flow.connection, flow.generation) {
        touch(ctx, flows, flow, connection);
    }
    let state = tcp_track::state(&after, &receiver);
    if state != State::Established && state != tcp_track::state(&before, &receiver) {
        flows.connections.reschedule(flow.connection, flow.generation, &ctx.tables.timeouts);
        if state == State::Closed && flow.direction() == 1 && receiver.flags & Side::ACKED == 0 {
            failed(ctx, flows, &found(flow));
        }
    }
}

/// Nobody has answered a connection: does it ask again?
#[cold]
fn unanswered(ctx: &Context<'_>, flows: &Flows<'_>, flow: &Flow, connection: &Record) {
    let waits = ctx.now.saturating_sub(connection.created());
    if waits >= UNANSWERED_S && connection.side(1).flags & Side::SEEN == 0 {
        failed(ctx, flows, &found(flow));
    }
}

/// Nobody took a connection. Of checks whoever asks knows it anyway.
#[cold]
fn failed(ctx: &Context<'_>, flows: &Flows<'_>, found: &Found) {
    let Some(connection) = flows.connections.get(found.index, found.generation) else { return };
    let asked_by = ctx.tables.port(PortId(connection.port(0)));
    if asked_by.is_some_and(|port| port.kind != PortKind::Internal) {
        flows.connections.failures().note(found.index, found.generation);
    }
}

/// Whether a packet has one of the two tuples of a connection that crosses; it may have been found by the reverse of one.
fn is_part(flows: &Flows<'_>, connection: &Record, found: &Found, key: &FlowKey) -> bool {
    let key = key.unscoped();
    match found.direction {
        0 => key == connection.key(),
        _ => {
            let translation = flows.connections.translation(found.index, found.generation);
            translation.is_some_and(|translation| translation.reply == key)
        }
    }
}

/// `conn`: a packet whose flow is not in the cache.
#[cold]
#[inline(never)]
fn connection<'a, R: Recorder>(
    ctx: &Context<'a>,
    flows: &mut Flows<'a>,
    lookup: &Lookup,
    place: Option<usize>,
    packet: &mut Packet,
    arena: &mut [Segment],
    record: &mut R,
) -> Result<Step, DropReason> {
    guard::source(ctx.port, ctx.network, packet)?;
    if ctx.port.kind == PortKind::Uplink {
        guard::outside(ctx.tables.uplink.as_deref().ok_or(DropReason::NotOurs)?, packet)?;
    }
    if is_icmp_error(lookup.key.proto(), (packet.meta.dst_port >> 8) as u8) && !packet.meta.later_fragment {
        return related::related(ctx, flows, packet, arena, record);
    }
    // Once more when another worker has begun the same connection from its other end in between: now there is one.
    for _ in 0..2 {
        let missed = match standing(ctx, flows, lookup, place, packet, record)? {
            Ok(step) => return Ok(step),
            Err(missed) => missed,
        };
        record.stage("conn", Detail::Miss);
        if let Some(step) = decide::decide(ctx, flows, lookup, missed, packet, record)? {
            return Ok(step);
        }
    }
    Err(DropReason::NatTupleTaken)
}

/// The way of a packet whose connection stands in the table, or where it was looked for in vain.
fn standing<R: Recorder>(
    ctx: &Context<'_>,
    flows: &mut Flows<'_>,
    lookup: &Lookup,
    place: Option<usize>,
    packet: &Packet,
    record: &mut R,
) -> Result<Result<Step, Missed>, DropReason> {
    let mut missed = Missed { place, connection: Miss::UNKNOWN };
    // Twice at most: a connection that is removed on the way is not found again.
    for _ in 0..2 {
        let found = match flows.connections.look(&lookup.key, lookup.hash, ctx.network.vni) {
            Ok(found) => found,
            Err(none) => {
                missed.connection = none;
                break;
            }
        };
        let Some(connection) = flows.connections.get(found.index, found.generation) else { continue };
        // Sent to a backend as if by a Service, but not to the Service: a connection of its own (`decide` tells the two apart).
        if connection.crosses() && !is_part(flows, connection, &found, &lookup.key) {
            break;
        }
        record.stage("conn", Detail::Connection(found));
        // The address moved to another port since: what that one sends is no part of this connection.
        if connection.port(found.direction) != ctx.port.id.0 {
            if !R::MASKED {
                flows.connections.remove(found.index, found.generation, Ending::Gone);
            }
            break;
        }
        let mut flow = Flow {
            key: lookup.key,
            connection: found.index,
            generation: found.generation,
            epoch: 0,
            round: 0,
            out_port: connection.port(1 - found.direction) as u16,
            queue: NO_QUEUE,
            flags: if found.direction == 1 { REPLY } else { 0 }
                | if connection.crosses() { CROSSES } else { 0 }
                | if lookup.key.proto() == proto::TCP { TCP } else { 0 },
        };
        match still_allowed(ctx, flows, &flow, record) {
            Some(result) => result?,
            None => match decide::ends_here(ctx, flows, &flow, packet) {
                Some(reason) => return Err(reason),
                None => continue,
            },
        }
        if R::MASKED {
            return Ok(Ok(step(&flow, None)));
        }
        let Some(connection) = flows.connections.get(found.index, found.generation) else { continue };
        if flow.flags & TCP != 0 && !segment(ctx, flows, &flow, connection, packet)? {
            continue;
        }
        seen_now(ctx, flows, &mut flow, connection);
        if !connection.is_still(found.generation) {
            continue;
        }
        delivered(ctx, packet);
        let place = flows.cache.put(place, &flow, lookup.hash);
        return Ok(Ok(step(&flow, Some(place))));
    }
    Ok(Err(missed))
}

#[cfg(test)]
mod tests;
