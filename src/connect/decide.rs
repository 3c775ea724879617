//! `egress`, `route`, `ingress`, `commit`: may a new connection begin, and where does it go? (`dnat` and `snat` around them:
//! `outside`.) [`begin`] is the order of the stages that a connection's first packet meets. And the same question again, of
//! one that began under tables which are gone.

use std::net::Ipv6Addr;

use hostweave_policy::model::Direction;
use hostweave_policy::table::{Basis, Decision, Flow as Question};
use hostweave_switch::connection::{CommitError, Committed, Ending, Found, NewConnection, Record, Translation};
use hostweave_switch::cross;
use hostweave_switch::flow::{CROSSES, Flow, FlowKey, Kind, NO_QUEUE, TCP, round};
use hostweave_switch::packet::Packet;
use hostweave_switch::route;
use hostweave_switch::stage::{DropReason, Verdict};
use hostweave_switch::tables::{AddressKey, Owned, Port, PortId, PortKind};
use hostweave_switch::tcp_track::{self, Side};
use hostweave_switch::wire::proto;

use super::outside::{self, Plan, Source};
use super::seen;
use super::service;
use super::{Again, Flows, Missed, Opened, Part, Step, Way, step};
use crate::datapath::{Context, Lookup};
use crate::observe::recorder::{Detail, Recorder, Unwatched};

/// What policy said for a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Allowed {
    /// Of the sender.
    pub egress: Decision,
    /// Of the receiver.
    pub ingress: Decision,
}

/// What policy said against a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Denied {
    /// Whose policy: the sender's or the receiver's.
    pub direction: Direction,
    /// What it said.
    pub decision: Decision,
    /// Where the packet was going.
    pub out_port: PortId,
}

/// A packet that begins a connection, if it may. `None` when another worker has begun that connection from its other end since
/// it was looked for: it is to be looked for again.
pub(super) fn decide<'a, R: Recorder>(
    ctx: &Context<'a>,
    flows: &mut Flows<'a>,
    lookup: &Lookup,
    missed: Missed,
    packet: &mut Packet,
    record: &mut R,
) -> Result<Option<Step>, DropReason> {
    // What was told of one that is gone is not this one's.
    flows.opened = None;
    let side = match begins(ctx, packet, &lookup.key) {
        Err(reason) => return Err(why_not(ctx, flows, &lookup.key, packet, reason)),
        Ok(side) => side,
    };
    let mut attempt = 0;
    loop {
        match begin(ctx, flows, lookup, missed, packet, side, attempt, record) {
            // Two connections of a client to a backend, by a Service and by its own addresses, may not be one there.
            Err(Refused::Taken) if attempt + 1 < service::ATTEMPTS => attempt += 1,
            Err(Refused::Taken) => return Err(DropReason::NatTupleTaken),
            Err(Refused::Begun) => return Ok(None),
            Err(Refused::Drop(reason)) => return Err(reason),
            Ok(step) => return Ok(Some(step)),
        }
    }
}

/// Why a connection does not begin.
enum Refused {
    /// Its answers would be those of another connection; it may be tried in another way.
    Taken,
    /// Another worker has just begun it, from its other end.
    Begun,
    /// This reason.
    Drop(DropReason),
}

impl From<DropReason> for Refused {
    fn from(reason: DropReason) -> Self {
        Self::Drop(reason)
    }
}

/// One attempt of [`decide`]: `dnat`, `egress`, `route`, `ingress`, `snat`, `commit`, in this order.
#[allow(clippy::too_many_arguments, reason = "what `decide` was given")]
fn begin<'a, R: Recorder>(
    ctx: &Context<'a>,
    flows: &mut Flows<'a>,
    lookup: &Lookup,
    missed: Missed,
    packet: &mut Packet,
    side: Side,
    attempt: u32,
    record: &mut R,
) -> Result<Step, Refused> {
    let plan = outside::plan(ctx, flows, &lookup.key, packet, attempt, record);
    let asked = Asked::of(ctx, flows, &lookup.key, &plan);
    let allowed = judge(ctx, &mut flows.denied, &asked, record).inspect_err(|reason| {
        if *reason == DropReason::NatNoMapping && !R::MASKED {
            outside::expect(ctx, flows, &lookup.key, &plan);
        }
    })?;
    let out = plan.to?;
    if !out.up {
        return Err(DropReason::PortDown.into());
    }
    let may_differ = plan.may_differ();
    let taken = |refused| match refused {
        Refused::Taken if !may_differ => Refused::Drop(DropReason::NatTupleTaken),
        refused => refused,
    };
    let Some(source) = plan.source else {
        route::may_go_on(ctx.network, packet, out)?;
        return commit(ctx, flows, lookup, missed, out, allowed, side, None, record).map_err(taken);
    };
    let uplink = ctx.tables.uplink.as_deref().filter(|uplink| uplink.port == out.id);
    cross::may_cross(packet, ctx.tables, uplink, out, plan.dst.address, lookup.hash as u32)?;
    let (translation, held) = outside::snat(ctx, flows, &lookup.key, &plan, out, source, record)?;
    flows.connections.expect_reply(&translation);
    let allowed = match asked.seen_otherwise(source, &translation).filter(|_| !R::MASKED) {
        Some(asked) => judge(ctx, &mut flows.denied, &asked, record)?,
        None => allowed,
    };
    // By 1:1 NAT several addresses of a port have one, and each keeps its L4 port: also what has come in there may have these answers.
    let may_meet = may_differ || matches!(source, Source::Public(_));
    if may_meet && is_answered_otherwise::<R>(ctx, flows, &lookup.key, &translation) {
        return Err(taken(Refused::Taken));
    }
    let step = commit(ctx, flows, lookup, missed, out, allowed, side, Some(translation), record).map_err(taken)?;
    if held.is_shared()
        && let Some(opened) = &mut flows.opened
    {
        opened.shared = true;
    }
    // Of another worker's connection, which is the same, that one holds the mappings.
    if flows.opened.is_some() {
        held.keep();
        plan.held.keep();
        plan.service.inspect(|service| service.begun(lookup.key.src(), ctx.now));
    }
    Ok(step)
}

/// Whether another connection has the tuple of the answers: one that the client began by the backend's own address, or by another of its
/// Services. One that is over makes room. The very same one, which another worker has just begun, is found by `commit`.
fn is_answered_otherwise<R: Recorder>(
    ctx: &Context<'_>,
    flows: &Flows<'_>,
    key: &FlowKey,
    translation: &Translation,
) -> bool {
    let (reply, vni) = (&translation.reply, translation.vni);
    let hash = flows.connections.keys().hash(reply, vni);
    let Some(found) = flows.connections.find(reply, hash, vni) else { return false };
    let is_it = flows.connections.get(found.index, found.generation).is_some_and(|record| {
        let same = record.key() == key.unscoped() && record.vni() == ctx.network.vni;
        same && flows.connections.translation(found.index, found.generation).as_ref() == Some(translation)
    });
    !is_it && !makes_room::<R>(ctx, flows, found)
}

/// Whether a connection is over, and does not stand in the way of another: then it is forgotten. Linux does the same with TCP
/// (`nf_nat_used_tuple_harder`); the backend has the last word, whose own connection may not be.
fn makes_room<R: Recorder>(ctx: &Context<'_>, flows: &Flows<'_>, found: Found) -> bool {
    let Some(record) = flows.connections.get(found.index, found.generation) else { return true };
    let is_over = ctx.tables.timeouts.is_over(record, ctx.now);
    if is_over && !R::MASKED {
        flows.connections.remove(found.index, found.generation, Ending::Reopened);
    }
    is_over
}

/// Whether a packet can begin a connection at all (SEMANTICS CT1, CT3). Returns what it shows of TCP.
#[inline(always)]
fn begins(ctx: &Context<'_>, packet: &Packet, key: &FlowKey) -> Result<Side, DropReason> {
    if key.kind() == Kind::Answer {
        return Err(DropReason::NoConnection);
    }
    if key.proto() != proto::TCP {
        return Ok(Side::default());
    }
    let segment = tcp_track::Segment::of(packet).ok_or(DropReason::NoConnection)?;
    // To which backend of a Service a connection went nobody knows any more.
    let loose = ctx.tables.loose_tcp && service::scope(ctx, ctx.port, key.dst()).is_none();
    tcp_track::first(&segment, loose).ok_or(DropReason::NoConnection)
}

/// What a packet that cannot begin a connection ended of, where there is more to say than `reason`.
#[cold]
fn why_not(ctx: &Context<'_>, flows: &Flows<'_>, key: &FlowKey, packet: &Packet, reason: DropReason) -> DropReason {
    if has_ended(ctx, flows, key, packet) {
        return DropReason::ServiceEnded;
    }
    let owner = || ctx.tables.uplink.as_deref()?.owned.get(&key.dst());
    // Of whatever comes to an address of a pool it is true that nobody there has asked for it (SEMANTICS NA36).
    let unasked = ctx.port.kind == PortKind::Uplink && owner() == Some(&Owned::Nat);
    if unasked { DropReason::NatNoMapping } else { reason }
}

/// What a client beyond the uplink is told of its connection to a Service which has just been found to have ended: this host had it, so no
/// other has. Once: what comes later could be anybody's ([`has_ended`]). `None` where there is nothing to tell.
#[cold]
pub(super) fn ends_here(ctx: &Context<'_>, flows: &Flows<'_>, flow: &Flow, packet: &Packet) -> Option<DropReason> {
    let from_client = ctx.port.kind == PortKind::Uplink && flow.direction() == 0;
    let goes_on = || begins(ctx, packet, &flow.key).is_err() && may_begin(ctx, flows, &flow.key, packet);
    (from_client && goes_on()).then_some(DropReason::ServiceEnded)
}

/// Whether a packet that cannot begin a connection is a client's to a Service whose connection has ended with its backend: of a port of this
/// host, which would know any connection of its own, and might begin one there. Out there another host with the Service's address
/// may know it.
#[cold]
fn has_ended(ctx: &Context<'_>, flows: &Flows<'_>, key: &FlowKey, packet: &Packet) -> bool {
    ctx.port.kind != PortKind::Uplink && may_begin(ctx, flows, key, packet)
}

/// Whether a connection over TCP to a Service might begin, if it had a backend.
fn may_begin(ctx: &Context<'_>, flows: &Flows<'_>, key: &FlowKey, packet: &Packet) -> bool {
    if key.proto() != proto::TCP || service::scope(ctx, ctx.port, key.dst()).is_none() {
        return false;
    }
    let plan = outside::plan(ctx, flows, key, packet, 0, &mut Unwatched);
    let asked = Asked::of(ctx, flows, key, &plan);
    let judged = judge(ctx, &mut None, &asked, &mut Unwatched);
    matches!(judged, Ok(_) | Err(DropReason::ServiceNoPort | DropReason::ServiceNoBackend))
}

/// What policy is asked about.
#[derive(Clone, Copy)]
struct Asked<'a> {
    key: FlowKey,
    from: &'a Port,
    to: Result<&'a Port, DropReason>,
    /// Destination, as the receiver has it.
    dst_port: Option<u16>,
    /// What the sender's policy sees as the destination.
    dst: u128,
    /// What the receiver's policy sees as the source.
    src: u128,
}

impl<'a> Asked<'a> {
    /// A connection that does not cross, or is not known to.
    fn plain(key: FlowKey, from: &'a Port, to: Result<&'a Port, DropReason>) -> Self {
        Self { key, from, to, dst_port: key.l4_dst_port(), dst: key.dst(), src: key.src() }
    }

    fn of(ctx: &Context<'a>, flows: &Flows<'_>, key: &FlowKey, plan: &Plan<'a>) -> Self {
        let plain = Self::plain(*key, ctx.port, plan.to);
        let (Ok(to), Some(source)) = (plan.to, plan.source) else { return plain };
        let address = || {
            let remote = outside::destination(&plan.asked);
            seen::address(ctx, flows, key, source, remote).unwrap_or(seen::nobody(key.src()))
        };
        plain.crossing(to, plan.dst.address, plan.dst.l4, address)
    }

    /// The same question once more, where the sender's mapping was not made yet when it was asked and lies at another address than was
    /// foreseen: policy judges by the address that the packet has.
    fn seen_otherwise(&self, source: Source, translation: &Translation) -> Option<Self> {
        let to = self.to.ok()?;
        let src = translation.reply.dst();
        let foreseen = source == Source::Pool && self.from.network != to.network && to.kind != PortKind::Uplink;
        (foreseen && src != self.src).then_some(Self { src, ..*self })
    }

    /// One that crosses: policy sees the inside address of a destination and the real source, of the same network.
    /// Addresses of another one mean nothing there: who is in it is seen as from outside.
    fn crossing(self, to: &Port, dst: u128, l4: u16, shown: impl FnOnce() -> u128) -> Self {
        let dst_port = self.dst_port.map(|_| l4);
        if self.from.network == to.network {
            return Self { dst_port, dst, ..self };
        }
        // What a Service gives to somebody out there is judged by where it goes (SEMANTICS NP21); nobody's ingress policy is.
        if self.from.kind == PortKind::Uplink || to.kind == PortKind::Uplink {
            return Self { dst_port, dst, ..self };
        }
        Self { dst_port, src: shown(), ..self }
    }
}

/// `egress`, `route`, `ingress`. An error of `route` is told after what the sender's policy says: who may not send learns
/// nothing about who is there.
fn judge<R: Recorder>(
    ctx: &Context<'_>,
    denied: &mut Option<Denied>,
    asked: &Asked<'_>,
    record: &mut R,
) -> Result<Allowed, DropReason> {
    let (key, from, to) = (&asked.key, asked.from, asked.to.ok());
    let internal = |port: &Port| port.kind == PortKind::Internal;
    let workload = |port: &&Port| matches!(port.kind, PortKind::VhostUser | PortKind::Tap);
    // Between workloads there is no built-in rule, and nearly all connections are.
    let builtin = to.filter(|to| internal(from) || internal(to)).and_then(|to| {
        let dst = Ipv6Addr::from(asked.dst).to_canonical();
        ctx.policy.infrastructure().builtin(internal(from), internal(to), key.proto(), asked.dst_port, dst)
    });
    if let Some(rule) = builtin {
        record.stage("egress", Detail::BuiltIn(rule));
    }
    let exempt = Decision { allowed: true, basis: builtin.map_or(Basis::Host, Basis::BuiltIn), audit: None };
    let question = |direction, subject: &Port, peer: Option<&Port>, peer_address| Question {
        direction,
        subject: subject.id,
        peer: peer.filter(workload).map(|port| port.id),
        peer_address,
        proto: key.proto(),
        dst_port: asked.dst_port,
    };
    let mut ask = |record: &mut R, name, question: Question, out_port| {
        let decision = ctx.policy.decide(&question);
        record.stage(name, Detail::Policy(question, decision));
        if decision.allowed {
            return Ok(decision);
        }
        if decision.basis == Basis::NotCompiled {
            return Err(DropReason::PolicyPending);
        }
        *denied = Some(Denied { direction: question.direction, decision, out_port });
        Err(DropReason::PolicyDenied)
    };
    let out_port = to.map_or(PortId::NONE, |port| port.id);
    let egress = match builtin {
        None if workload(&from) => ask(record, "egress", question(Direction::Egress, from, to, asked.dst), out_port)?,
        _ => exempt,
    };
    let to = asked.to.inspect_err(|reason| record.stage("route", Detail::Verdict(Verdict::Drop(*reason))))?;
    record.stage("route", Detail::Port(to.id));
    let ingress = match builtin {
        None if workload(&to) => {
            ask(record, "ingress", question(Direction::Ingress, to, Some(from), asked.src), out_port)?
        }
        _ => exempt,
    };
    Ok(Allowed { egress, ingress })
}

/// `commit`: the only place that adds connections.
#[allow(clippy::too_many_arguments, reason = "what was decided, each part by another stage")]
fn commit<R: Recorder>(
    ctx: &Context<'_>,
    flows: &mut Flows<'_>,
    lookup: &Lookup,
    missed: Missed,
    out: &Port,
    allowed: Allowed,
    side: Side,
    translation: Option<Translation>,
    record: &mut R,
) -> Result<Step, Refused> {
    if R::MASKED {
        record.stage("commit", Detail::Masked);
        let way = Way { out_port: out.id, queue: NO_QUEUE };
        return Ok(if translation.is_some() { Step::Cross { way, part: Part::Done } } else { Step::Stay(way) });
    }
    let epoch = if translation.is_some() { ctx.crossing_epoch } else { ctx.epoch };
    let new = NewConnection {
        key: lookup.key,
        hash: lookup.hash,
        vni: ctx.network.vni,
        in_port: ctx.port.id.0,
        out_port: out.id.0,
        basis: [allowed.egress.basis.to_u32(), allowed.ingress.basis.to_u32()],
        epoch,
        queue: ctx.queue,
        side,
        translation,
        receiver_pays: ctx.port.kind == PortKind::Uplink,
    };
    let committed = flows.connections.commit_after(missed.connection, &new, &ctx.tables.timeouts, flows.free, ctx.now);
    let committed = match committed {
        Ok(committed) if committed.new => committed,
        other => committed_otherwise(ctx, flows, &new, other)?,
    };
    let found = committed.found;
    if committed.new {
        let there = translation.map(|translation| translation.reply.reversed());
        flows.opened = Some(Opened { out_port: out.id, allowed, there, again: None, shared: false });
    }
    let crosses = if translation.is_some() { CROSSES } else { 0 };
    let flow = Flow {
        key: lookup.key,
        connection: found.index,
        generation: found.generation,
        epoch,
        round: round(ctx.now),
        out_port: out.id.0 as u16,
        queue: NO_QUEUE,
        // Whoever answers, or goes on for a while, is assured (`seen_now`).
        flags: crosses | if lookup.key.proto() == proto::TCP { TCP } else { 0 },
    };
    let place = flows.cache.put(missed.place, &flow, lookup.hash);
    Ok(step(&flow, Some(place)))
}

/// What becomes of a connection that was not simply added: another worker was first, one that is over makes room, or it is refused.
#[cold]
fn committed_otherwise(
    ctx: &Context<'_>,
    flows: &mut Flows<'_>,
    new: &NewConnection,
    first: Result<Committed, CommitError>,
) -> Result<Committed, Refused> {
    let is_it = |flows: &Flows<'_>, found: &Found| {
        found.direction == 0 && flows.connections.translation(found.index, found.generation) == new.translation
    };
    // Its other end was first.
    let is_begun = |flows: &Flows<'_>, found: &Found| {
        new.translation.is_none() && flows.connections.translation(found.index, found.generation).is_none()
    };
    let taken = |error| matches!(error, CommitError::Taken);
    let committed = match first {
        Ok(committed) if is_it(flows, &committed.found) => return Ok(committed),
        Ok(committed) if is_begun(flows, &committed.found) => return Err(Refused::Begun),
        Err(error) if !taken(error) => Err(error),
        _ => {
            let (reply, vni) = match &new.translation {
                Some(translation) => (translation.reply, translation.vni),
                None => (new.key.reversed(), new.vni),
            };
            let found = flows.connections.find(&reply, flows.connections.keys().hash(&reply, vni), vni);
            if !found.is_some_and(|found| makes_room::<Unwatched>(ctx, flows, found)) {
                return Err(Refused::Taken);
            }
            flows.connections.commit(new, &ctx.tables.timeouts, flows.free, ctx.now)
        }
    };
    match committed {
        Ok(committed) if committed.new || is_it(flows, &committed.found) => Ok(committed),
        // Another worker was first, and with something else: the next packet finds that.
        Ok(_) | Err(CommitError::Taken) => Err(Refused::Taken),
        Err(CommitError::Quota) => Err(DropReason::ConnectionQuota.into()),
        Err(CommitError::Full) => Err(DropReason::ConnectionTableFull.into()),
    }
}

/// Decides about a connection once more, by the tables of now (SEMANTICS NP31). Its addresses must still belong to its
/// ports, whatever the setting.
pub(super) fn again<R: Recorder>(
    ctx: &Context<'_>,
    flows: &mut Flows<'_>,
    connection: &Record,
    translation: Option<Translation>,
    record: &mut R,
) -> Result<(), DropReason> {
    let key = connection.key();
    let ports = [connection.port(0), connection.port(1)];
    let asked = ends(ctx, &key, ports, translation.as_ref(), connection.is_replied())?;
    let epoch = if translation.is_some() { ctx.crossing_epoch } else { ctx.epoch };
    // What an earlier run allowed (epoch 0) is judged even where established connections are kept.
    if ctx.tables.keep_established && connection.epoch() != 0 {
        if !R::MASKED {
            connection.keep_epoch(epoch);
        }
        return Ok(());
    }
    let allowed = judge(ctx, &mut flows.denied, &asked, record)?;
    if !R::MASKED {
        connection.set_epoch(epoch, [allowed.egress.basis.to_u32(), allowed.ingress.basis.to_u32()]);
        // Told once of a connection and change: the other direction finds the epoch as it is to be.
        if allowed.egress.audit.is_some() || allowed.ingress.audit.is_some() {
            let there = translation.map(|translation| translation.reply.reversed());
            let again = Again { key, vni: connection.vni(), from: PortId(ports[0]) };
            flows.opened =
                Some(Opened { out_port: PortId(ports[1]), allowed, there, again: Some(again), shared: false });
        }
    }
    Ok(())
}

/// What the tables of `ctx` say about a connection with the tuple `key` between `ports`, whatever they said when it began:
/// for `apply --dry-run`. `denied` then holds what policy said against it.
///
/// # Errors
/// Why it would end.
pub fn anew(
    ctx: &Context<'_>,
    key: &FlowKey,
    ports: [u32; 2],
    translation: Option<&Translation>,
    denied: &mut Option<Denied>,
) -> Result<Allowed, DropReason> {
    let asked = ends(ctx, key, ports, translation, true)?;
    judge(ctx, denied, &asked, &mut Unwatched)
}

/// The ends of a connection, if its addresses are still theirs.
fn ends<'a>(
    ctx: &Context<'a>,
    key: &FlowKey,
    ports: [u32; 2],
    translation: Option<&Translation>,
    answered: bool,
) -> Result<Asked<'a>, DropReason> {
    if let Some(translation) = translation {
        let (from, to) = outside::still(ctx, key, translation, ports, answered)?;
        let there = translation.reply.reversed();
        let plain = Asked::plain(*key, from, Ok(to));
        return Ok(plain.crossing(to, there.dst(), there.dst_port(), || there.src()));
    }
    let owner = |address| ctx.tables.owner(AddressKey { address, network: ctx.port.network });
    let found = [owner(key.src()), owner(key.dst())].map(|id| ctx.tables.port(id?));
    let [Some(from), Some(to)] = found else { return Err(DropReason::NoRoute) };
    if [from.id.0, to.id.0] != ports {
        return Err(DropReason::NoConnection);
    }
    Ok(Asked::plain(*key, from, Ok(to)))
}
