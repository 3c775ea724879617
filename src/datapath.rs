//! The packet path: every stage, in the order in which packets meet it, on one screen.
//!
//! ```text
//! rx ─ parse ─ guard ─ local ─ flow ──hit──────────────────────────────────────► rewrite ─ tx
//!                      reply ◄┘ └miss─ conn ──hit─ (fill the cache) ────────────┘
//!                       └miss─► dnat ─ egress ─ route ─ ingress ─ snat ─ commit ─┘
//! ```
//!
//! `rx` and `tx` are the worker's ([`crate::worker`]): they know rings and devices. What stands between them are these
//! two functions, and this file alone knows the order of what every packet meets: [`classify`] looks at the packet alone,
//! [`forward`] at what is known of its flow. The order of what only a connection's first packet meets, `dnat` to `commit`, is
//! that of `begin` in `connect/decide.rs`. A burst goes through the first as a whole before the second begins, so that the lines that the second
//! needs are on their way by then. `trace` calls the same two with a [`Recorder`].

use hostweave_nat::Pools;
use hostweave_nat::service::Services;
use hostweave_policy::table::Table;
use hostweave_switch::flow::{FlowKey, HashKeys, NOWHERE, round, stamp};
use hostweave_switch::packet::Packet;
use hostweave_switch::payload::Segment;
use hostweave_switch::stage::{DropReason, Verdict};
use hostweave_switch::tables::{Network, Port, Tables};
use hostweave_switch::{cross, guard, parse, rewrite};

use crate::connect::{self, Flows, Part, Step, Way};
use crate::fabric::plane::Plane;
use crate::observe::recorder::{Detail, Recorder};
use crate::services::{self, LocalContext, LocalNote};

/// Where a packet stands, and when. The same for a whole burst.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Networks, ports, addresses.
    pub tables: &'a Tables,
    /// Who may talk to whom.
    pub policy: &'a Table,
    /// The port that sent it.
    pub port: &'a Port,
    /// Its network.
    pub network: &'a Network,
    /// Who has NAT addresses.
    pub pools: &'a Pools,
    /// Addresses of Services, and who stands behind them.
    pub services: &'a Services,
    /// Epoch of that network.
    pub epoch: u32,
    /// Epoch of whatever leaves it.
    pub crossing_epoch: u32,
    /// What a flow of that network shows that needs no look, and one that leaves it ([`stamp`]).
    pub stamp: u64,
    /// See [`Context::stamp`].
    pub crossing_stamp: u64,
    /// Queue pair on which it was sent.
    pub queue: u8,
    /// Seconds of the monotonic clock.
    pub now: u32,
}

impl<'a> Context<'a> {
    /// Of packets that queue pair `queue` of `port` sent.
    #[inline]
    pub fn new(plane: &'a Plane, port: &'a Port, network: &'a Network, queue: u8, now: u32) -> Self {
        let epoch = plane.tables.epoch(port.network);
        let crossing_epoch = plane.tables.crossing_epoch();
        let (tables, policy, pools, services) = (&plane.tables, &*plane.policy, &*plane.pools, &*plane.services);
        let [stamp, crossing_stamp] = [epoch, crossing_epoch].map(|epoch| stamp(epoch, round(now)));
        Self {
            tables,
            policy,
            port,
            network,
            pools,
            services,
            epoch,
            crossing_epoch,
            stamp,
            crossing_stamp,
            queue,
            now,
        }
    }
}

/// What a packet's flow is looked up by. One cache line.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub struct Lookup {
    /// Its tuple, and the port that sent it.
    pub key: FlowKey,
    /// Hash of the tuple and the network.
    pub hash: u64,
    /// Where in the worker's cache it is expected ([`hostweave_switch::flow::FlowCache::expect`]).
    pub expected: u32,
}

impl Default for Lookup {
    fn default() -> Self {
        Self { key: FlowKey::default(), hash: 0, expected: NOWHERE }
    }
}

impl Lookup {
    /// Of a packet with this key in the network with this VNI; it is not expected anywhere yet.
    #[inline(always)]
    pub fn new(keys: &HashKeys, key: FlowKey, vni: u32) -> Self {
        Self { key, hash: keys.hash(&key, vni), expected: NOWHERE }
    }
}

/// `parse`, `guard`, `local`. `Continue` when the packet goes on to [`forward`]; `note` holds what control must hear of it.
#[inline(always)]
pub fn classify<R: Recorder>(
    ctx: &Context<'_>,
    packet: &mut Packet,
    arena: &mut [Segment],
    note: &mut Option<LocalNote>,
    record: &mut R,
) -> Verdict {
    macro_rules! stage {
        ($name:literal, $verdict:expr) => {
            let verdict = $verdict;
            record.stage($name, Detail::Verdict(verdict));
            if verdict != Verdict::Continue {
                return verdict;
            }
        };
    }
    if !ctx.port.up {
        return Verdict::Drop(DropReason::PortDown);
    }
    stage!("parse", parse::parse(packet, arena));
    if services::is_for_others(packet) && !R::MASKED {
        // The source address of a flow that is known needs no look; `connect::flow` sees to that of any other.
        return guard::link(ctx.port, packet);
    }
    stage!("guard", guard::guard(ctx.port, ctx.network, packet));
    let local = LocalContext { tables: ctx.tables, port: ctx.port, network: ctx.network, services: ctx.services };
    stage!("local", services::local(&local, packet, arena, note));
    Verdict::Continue
}

/// `flow`, and on a miss `conn`, `dnat`, `egress`, `route`, `ingress`, `snat`, `commit` ([`crate::connect`]); then `rewrite`.
/// `Forward` leaves the rewritten packet with `meta.out_port` set.
#[inline(always)]
pub fn forward<'a, R: Recorder>(
    ctx: &Context<'a>,
    flows: &mut Flows<'a>,
    lookup: &Lookup,
    packet: &mut Packet,
    arena: &mut [Segment],
    record: &mut R,
) -> Verdict {
    let way = match connect::ready(ctx, flows, lookup) {
        Ok(way) => {
            record.stage("flow", Detail::Hit);
            way
        }
        Err(place) => {
            if let Some(place) = place
                && let Some(way) = connect::crossed(ctx, flows, place, packet)
            {
                record.stage("flow", Detail::Hit);
                return done(lookup, way, packet, record);
            }
            // What is not ready is told apart out of line: the common case keeps its registers.
            match connect::flow(ctx, flows, lookup, place, packet, arena, record) {
                Ok(Step::Stay(way)) => way,
                Ok(Step::Crossed(way)) => return done(lookup, way, packet, record),
                Ok(Step::Cross { way, part }) => return cross(ctx, flows, lookup, way, part, packet, record),
                Err(reason) => return Verdict::Drop(reason),
            }
        }
    };
    let out = match out_port(ctx, way) {
        Ok(out) => out,
        Err(reason) => return Verdict::Drop(reason),
    };
    if let Err(reason) = rewrite::rewrite(packet, ctx.network, out) {
        return Verdict::Drop(reason);
    }
    done(lookup, way, packet, record)
}

/// `rewrite` of a packet that leaves its network, from its connection and the tables. What was found out serves its flow's next packets.
#[inline(never)]
fn cross<R: Recorder>(
    ctx: &Context<'_>,
    flows: &mut Flows<'_>,
    lookup: &Lookup,
    way: Way,
    part: Part,
    packet: &mut Packet,
    record: &mut R,
) -> Verdict {
    let out = match out_port(ctx, way) {
        Ok(out) => out,
        Err(reason) => return Verdict::Drop(reason),
    };
    let of = match part {
        Part::Flow(place) => Some(connect::found(&flows.cache.get(place))),
        Part::Connection(found) => Some(found),
        Part::Done => None,
    };
    let change = of.map(|found| flows.connections.change(&found));
    if change == Some(None) {
        // Another worker has given it up since this one looked at it.
        return Verdict::Drop(DropReason::NoConnection);
    }
    let hash = lookup.hash as u32;
    match cross::cross(packet, ctx.tables, ctx.port.network, out, hash, change.flatten().as_ref()) {
        Ok(rewriting) => {
            if let (Part::Flow(place), Some(rewriting)) = (part, rewriting) {
                flows.cache.set_rewriting(place, rewriting);
            }
            done(lookup, way, packet, record)
        }
        // What a trace shows was not really translated.
        Err(DropReason::SourceNotOwned) if R::MASKED => done(lookup, way, packet, record),
        Err(reason) => Verdict::Drop(reason),
    }
}

/// The port that a packet goes to, if it is up.
#[inline(always)]
fn out_port<'a>(ctx: &Context<'a>, way: Way) -> Result<&'a Port, DropReason> {
    match ctx.tables.port(way.out_port) {
        Some(out) if out.up => Ok(out),
        Some(_) => Err(DropReason::PortDown),
        None => Err(DropReason::Internal),
    }
}

#[inline(always)]
fn done<R: Recorder>(lookup: &Lookup, way: Way, packet: &mut Packet, record: &mut R) -> Verdict {
    packet.meta.out_port = way.out_port;
    packet.meta.queue = way.queue;
    packet.meta.hash = lookup.hash as u32;
    record.stage("rewrite", Detail::Verdict(Verdict::Forward));
    Verdict::Forward
}
