//! `egress`, `route`, `ingress`, `commit`: may a new connection begin, and where does it go? And the same question again, of
//! one that began under tables which are gone.

use std::net::Ipv6Addr;

use hostweave_policy::model::Direction;
use hostweave_policy::table::{Basis, Decision, Flow as Question};
use hostweave_switch::connection::{CommitError, NewConnection, Record};
use hostweave_switch::flow::{Flow, FlowKey, Kind, NO_QUEUE, TCP, round};
use hostweave_switch::packet::Packet;
use hostweave_switch::route;
use hostweave_switch::stage::{DropReason, Verdict};
use hostweave_switch::tables::{AddressKey, Port, PortId, PortKind};
use hostweave_switch::tcp_track::{self, Side};
use hostweave_switch::wire::proto;

use super::{Flows, Missed, Opened, Way, way};
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

/// A packet that begins a connection, if it may.
pub(super) fn decide<R: Recorder>(
    ctx: &Context<'_>,
    flows: &mut Flows<'_>,
    lookup: &Lookup,
    missed: Missed,
    packet: &Packet,
    record: &mut R,
) -> Result<Way, DropReason> {
    let out_port = route::route(ctx.tables, ctx.port.network, packet);
    let side = begins(packet, &lookup.key)?;
    let out = out_port.and_then(|id| ctx.tables.port(id).ok_or(DropReason::Internal));
    let allowed = judge(ctx, &mut flows.denied, &lookup.key, ctx.port, out, record)?;
    let out = out?;
    if !out.up {
        return Err(DropReason::PortDown);
    }
    route::may_go_on(ctx.network, packet, out)?;
    if R::MASKED {
        record.stage("commit", Detail::Masked);
        return Ok(Way { out_port: out.id, queue: NO_QUEUE });
    }
    commit(ctx, flows, lookup, missed, out, allowed, side)
}

/// Whether a packet can begin a connection at all (SEMANTICS CT1, CT3). Returns what it shows of TCP.
fn begins(packet: &Packet, key: &FlowKey) -> Result<Side, DropReason> {
    if key.kind() == Kind::Answer {
        return Err(DropReason::NoConnection);
    }
    if key.proto() != proto::TCP {
        return Ok(Side::default());
    }
    let segment = tcp_track::Segment::of(packet).ok_or(DropReason::NoConnection)?;
    tcp_track::first(&segment, false).ok_or(DropReason::NoConnection)
}

/// `egress`, `route`, `ingress`. An error of `route` is told after what the sender's policy says: who may not send learns
/// nothing about who is there.
fn judge<R: Recorder>(
    ctx: &Context<'_>,
    denied: &mut Option<Denied>,
    key: &FlowKey,
    from: &Port,
    out: Result<&Port, DropReason>,
    record: &mut R,
) -> Result<Allowed, DropReason> {
    let to = out.ok();
    let internal = |port: &Port| port.kind == PortKind::Internal;
    let workload = |port: &&Port| !internal(port);
    // Between workloads there is no built-in rule, and nearly all connections are.
    let builtin = to.filter(|to| internal(from) || internal(to)).and_then(|to| {
        let dst = Ipv6Addr::from(key.dst()).to_canonical();
        ctx.policy.builtin(internal(from), internal(to), key.proto(), key.l4_dst_port(), dst)
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
        dst_port: key.l4_dst_port(),
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
        None if workload(&from) => ask(record, "egress", question(Direction::Egress, from, to, key.dst()), out_port)?,
        _ => exempt,
    };
    let to = out.inspect_err(|reason| record.stage("route", Detail::Verdict(Verdict::Drop(*reason))))?;
    record.stage("route", Detail::Port(to.id));
    let ingress = match builtin {
        None if workload(&to) => {
            ask(record, "ingress", question(Direction::Ingress, to, Some(from), key.src()), out_port)?
        }
        _ => exempt,
    };
    Ok(Allowed { egress, ingress })
}

/// `commit`: the only place that adds connections.
fn commit(
    ctx: &Context<'_>,
    flows: &mut Flows<'_>,
    lookup: &Lookup,
    missed: Missed,
    out: &Port,
    allowed: Allowed,
    side: Side,
) -> Result<Way, DropReason> {
    let new = NewConnection {
        key: lookup.key,
        hash: lookup.hash,
        vni: ctx.network.vni,
        in_port: ctx.port.id.0,
        out_port: out.id.0,
        basis: [allowed.egress.basis.to_u32(), allowed.ingress.basis.to_u32()],
        epoch: ctx.epoch,
        queue: ctx.queue,
        side,
    };
    let found = flows.connections.commit_after(missed.connection, &new, &ctx.tables.timeouts, flows.free, ctx.now);
    let found = found.map_err(|error| match error {
        CommitError::Quota => DropReason::ConnectionQuota,
        CommitError::Full => DropReason::ConnectionTableFull,
    })?;
    flows.opened = Some(Opened { out_port: out.id, allowed });
    let flow = Flow {
        key: lookup.key,
        connection: found.index,
        generation: found.generation,
        epoch: ctx.epoch,
        round: round(ctx.now),
        out_port: out.id.0 as u16,
        queue: NO_QUEUE,
        // Whoever answers, or goes on for a while, is assured (`refresh`).
        flags: if lookup.key.proto() == proto::TCP { TCP } else { 0 },
    };
    flows.cache.put(missed.place, &flow, lookup.hash);
    Ok(way(&flow))
}

/// Decides about a connection once more, by the tables of now (SEMANTICS NP31). Its addresses must still belong to its
/// ports, whatever the setting.
pub(super) fn again<R: Recorder>(
    ctx: &Context<'_>,
    denied: &mut Option<Denied>,
    connection: &Record,
    record: &mut R,
) -> Result<(), DropReason> {
    let key = connection.key();
    let (from, to) = ends(ctx, &key, [connection.port(0), connection.port(1)])?;
    // What an earlier run allowed (epoch 0) is judged even where established connections are kept.
    if ctx.tables.keep_established && connection.epoch() != 0 {
        if !R::MASKED {
            connection.keep_epoch(ctx.epoch);
        }
        return Ok(());
    }
    let allowed = judge(ctx, denied, &key, from, Ok(to), record)?;
    if !R::MASKED {
        connection.set_epoch(ctx.epoch, [allowed.egress.basis.to_u32(), allowed.ingress.basis.to_u32()]);
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
    denied: &mut Option<Denied>,
) -> Result<Allowed, DropReason> {
    let (from, to) = ends(ctx, key, ports)?;
    judge(ctx, denied, key, from, Ok(to), &mut Unwatched)
}

/// The ports of a connection, if its addresses are still theirs.
fn ends<'a>(ctx: &Context<'a>, key: &FlowKey, ports: [u32; 2]) -> Result<(&'a Port, &'a Port), DropReason> {
    let owner = |address| ctx.tables.owner(AddressKey { address, network: ctx.port.network });
    let found = [owner(key.src()), owner(key.dst())].map(|id| ctx.tables.port(id?));
    let [Some(from), Some(to)] = found else { return Err(DropReason::NoRoute) };
    if [from.id.0, to.id.0] != ports {
        return Err(DropReason::NoConnection);
    }
    Ok((from, to))
}
