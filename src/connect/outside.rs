//! `dnat`, `route` and `snat`: where the first packet of a connection goes, within its network or beyond, and as what it
//! arrives there.
//!
//! What is decided by tables is a [`Plan`] (for Services in [`service`]); it may hold one NAT mapping, that of its destination. The source's is taken last,
//! when policy has allowed everything ([`snat`]). Holds give themselves back unless `commit` keeps them ([`Held`]).

use std::net::Ipv6Addr;

use hostweave_nat::service::hash::of_tuple;
use hostweave_nat::{Arrival, End, Inside, MappingRef, Nat, Outside, Refused, family};
use hostweave_switch::connection::{Entry, Hold, Translation};
use hostweave_switch::flow::{FlowKey, Kind};
use hostweave_switch::packet::Packet;
use hostweave_switch::route;
use hostweave_switch::stage::{DropReason, Verdict};
use hostweave_switch::tables::{AddressKey, Egress, NetworkId, Owned, Port, PortId, PortKind, Tables, Uplink};
use hostweave_switch::wire::proto;

use super::Flows;
use super::seen::{NOBODY, sender, shown};
use super::service::{self, Pinned};
use crate::datapath::Context;
use crate::observe::recorder::{Detail, Recorder};

/// Where the first packet of a connection is to go.
pub(super) struct Plan<'a> {
    /// The port; or why there is none, which is told after the sender's policy.
    pub to: Result<&'a Port, DropReason>,
    /// The destination as its receiver has it.
    pub dst: Outside,
    /// How it leaves its network, or as whom it reaches a Service's backend; `None` when it goes on as it is.
    pub source: Option<Source>,
    /// Another L4 port for its sender, where its own would make two connections one.
    pub l4: Option<u16>,
    /// What it would have been sent as without a Service in between: whom its NAT mapping is for.
    pub asked: FlowKey,
    /// The Service's backend that was chosen.
    pub service: Option<Pinned<'a>>,
    /// The mapping of the destination.
    pub held: Held<'a>,
    /// The address that its filter knew the sender by; `None` where none was asked.
    pub admitted: Option<u128>,
}

impl Plan<'_> {
    /// Whether its receiver may see its sender with another L4 port, where its own would make two connections one there. Not what leaves
    /// for the world, nor by a mapping: that is how others know it (RFC 4787 REQ-1).
    pub fn may_differ(&self) -> bool {
        let stays = || self.to.is_ok_and(|to| to.kind != PortKind::Uplink);
        let mapped = || self.source == Some(Source::Pool) || self.held.mapping.is_some();
        self.asked.kind() == Kind::Ports && (self.service.is_some() || stays() && !mapped())
    }
}

/// As whom a packet leaves its network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Source {
    /// As whom it was sent.
    Own,
    /// As this address, by 1:1 NAT.
    Public(u128),
    /// As an address of a pool.
    Pool,
    /// As the gateway: what a port sends to itself, by a Service (SEMANTICS SV19).
    Gateway(u128),
}

/// A mapping that is held until a connection keeps it.
pub(super) struct Held<'a> {
    nat: &'a Nat,
    mapping: Option<MappingRef>,
    now: u32,
    /// It is that of the destination: the packet was let in.
    unasked: bool,
    /// Whether it lies on an L4 port that others use too (SEMANTICS NA17).
    shared: bool,
}

impl<'a> Held<'a> {
    pub fn none(flows: &Flows<'a>) -> Self {
        Self { nat: flows.nat, mapping: None, now: 0, unasked: false, shared: false }
    }

    /// That of the source.
    fn asked(flows: &Flows<'a>, mapping: MappingRef, now: u32) -> Self {
        Self { nat: flows.nat, mapping: Some(mapping), now, unasked: false, shared: false }
    }

    /// That of the destination.
    fn unasked(flows: &Flows<'a>, mapping: MappingRef, now: u32) -> Self {
        Self { nat: flows.nat, mapping: Some(mapping), now, unasked: true, shared: false }
    }

    /// Whether it lies on an L4 port that others use too (SEMANTICS NA17).
    pub fn is_shared(&self) -> bool {
        self.shared
    }

    /// As a connection keeps it. It is still given back when this ends.
    fn hold(&self) -> Option<Hold> {
        self.mapping.map(|MappingRef { index, generation }| Hold { index, generation })
    }

    /// A connection keeps it.
    pub fn keep(mut self) {
        self.mapping = None;
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        match self.mapping.take() {
            Some(mapping) if self.unasked => self.nat.release_unasked(mapping, None, self.now, End::Refused),
            Some(mapping) => self.nat.release(mapping, self.now, self.now, End::Refused),
            None => {}
        }
    }
}

/// Where a packet goes for which there is no connection. `attempt` counts plans before this one that would have had the answers of another
/// connection, and that may differ ([`Plan::may_differ`]).
pub(super) fn plan<'a, R: Recorder>(
    ctx: &Context<'a>,
    flows: &Flows<'a>,
    key: &FlowKey,
    packet: &Packet,
    attempt: u32,
    record: &mut R,
) -> Plan<'a> {
    let of_service = || service::scope(ctx, ctx.port, key.dst());
    // The client has another connection to the same backend, and the same L4 port there: its answers would be these.
    let l4 = (attempt > 0).then(|| other_l4(key, attempt));
    let dst = destination(key);
    let held = Held::none(flows);
    let stays = |to| Plan { to, dst, source: None, l4: None, asked: *key, service: None, held, admitted: None };
    if ctx.port.kind == PortKind::Uplink {
        if let Some(scope) = of_service() {
            return service::plan(ctx, flows, key, scope, attempt, record);
        }
        let to = receiver::<R>(ctx, flows, key, destination_of_remote(key));
        return Plan { l4, ..crossing(ctx, flows, key, to, Source::Own, record) };
    }
    let routed = route::route(ctx.tables, ctx.port.network, packet);
    // No address is a port's and a Service's.
    if routed.is_err()
        && let Some(scope) = of_service()
    {
        return service::plan(ctx, flows, key, scope, attempt, record);
    }
    match routed {
        Ok(id) => {
            let plan = stays(ctx.tables.port(id).ok_or(DropReason::Internal));
            Plan { source: l4.map(|_| Source::Own), l4, ..plan }
        }
        Err(DropReason::NoRoute) if route::leads_out(ctx.network, packet) => {
            let source = source(ctx.tables, ctx.port, key.src(), key.dst());
            let to = source.and_then(|source| leave::<R>(ctx, flows, key, source));
            Plan { l4, ..crossing(ctx, flows, key, to, source.unwrap_or(Source::Own), record) }
        }
        Err(reason) => stays(Err(reason)),
    }
}

/// Another L4 port for the client, as its backend sees it: out of those that hosts give to their own connections (RFC 6335 §6).
pub(super) fn other_l4(key: &FlowKey, attempt: u32) -> u16 {
    const FIRST: u16 = 49152;
    let hash = of_tuple(key.dst(), key.src(), key.src_port(), attempt as u16, key.proto());
    FIRST | (hash >> 48) as u16
}

/// Who gets a packet from outside its network.
struct Receiver<'a> {
    port: &'a Port,
    /// The destination as it has it.
    inside: Outside,
    /// The mapping of that.
    mapping: Option<MappingRef>,
    /// See [`Plan::admitted`].
    admitted: Option<u128>,
}

fn crossing<'a, R: Recorder>(
    ctx: &Context<'a>,
    flows: &Flows<'a>,
    key: &FlowKey,
    to: Result<Receiver<'a>, DropReason>,
    source: Source,
    record: &mut R,
) -> Plan<'a> {
    let dst = destination(key);
    let plan = |to, dst, held, admitted| {
        let source = Some(source);
        Plan { to, dst, source, l4: None, asked: *key, service: None, held, admitted }
    };
    match to {
        Ok(Receiver { port, inside, mapping, admitted }) => {
            if inside != dst {
                record.stage("dnat", Detail::Destination(inside.address, inside.l4));
            }
            let held = mapping.map_or(Held::none(flows), |mapping| Held::unasked(flows, mapping, ctx.now));
            plan(Ok(port), inside, held, admitted)
        }
        Err(reason) => {
            if ctx.port.kind == PortKind::Uplink {
                record.stage("dnat", Detail::Verdict(Verdict::Drop(reason)));
            }
            plan(Err(reason), dst, Held::none(flows), None)
        }
    }
}

/// A packet that leaves its network, for the uplink or, if its destination is an address of the host there, for whoever has it
/// (RFC 4787 REQ-9): that never touches the wire.
fn leave<'a, R: Recorder>(
    ctx: &Context<'a>,
    flows: &Flows<'a>,
    key: &FlowKey,
    source: Source,
) -> Result<Receiver<'a>, DropReason> {
    let uplink = ctx.tables.uplink.as_deref().ok_or(DropReason::EgressNone)?;
    if uplink.is_ours(key.dst()) {
        // Filters know senders by what they look like from outside.
        let from = sender(ctx, flows, key, source, destination(key));
        return receiver::<R>(ctx, flows, key, from);
    }
    let port = ctx.tables.port(uplink.port).ok_or(DropReason::UplinkDown)?;
    Ok(Receiver { port, inside: destination(key), mapping: None, admitted: None })
}

/// Who gets a packet to an address of the host at the uplink (SEMANTICS NA36, DA1).
fn receiver<'a, R: Recorder>(
    ctx: &Context<'a>,
    flows: &Flows<'a>,
    key: &FlowKey,
    from: Outside,
) -> Result<Receiver<'a>, DropReason> {
    let uplink = ctx.tables.uplink.as_deref().ok_or(DropReason::NotOurs)?;
    let dst = destination(key);
    let (port, inside, mapping) = match uplink.owned.get(&key.dst()) {
        Some(Owned::Host) => return Err(DropReason::GatewayNoService),
        // Of one that the table of Services does not know.
        Some(Owned::Service) => return Err(DropReason::ServiceNoPort),
        Some(Owned::Attached { port, inside }) => {
            let inside = Outside { address: inside.unwrap_or(key.dst()), l4: dst.l4 };
            (*port, inside, None)
        }
        // Of an ICMP query the identifier is the sender's own; whom it is for it does not say.
        Some(Owned::Nat) if key.kind() == Kind::Ports => {
            let (inside, mapping) = mapping_at::<R>(ctx, flows, key.proto(), dst, from)?;
            (PortId(inside.port), Outside { address: inside.address, l4: inside.l4 }, mapping)
        }
        Some(Owned::Nat) => return Err(DropReason::NatNoMapping),
        None if uplink.is_routed(key.dst()) => return Err(DropReason::NatNoMapping),
        None => return Err(DropReason::NotOurs),
    };
    let held = mapping.map(|mapping| Held::unasked(flows, mapping, ctx.now));
    let to = ctx.tables.port(port).ok_or(DropReason::NatNoMapping)?;
    // Who answers the host itself is part of a connection already; nobody else reaches what it serves in a network.
    if to.kind == PortKind::Internal || !has(ctx.tables, to, inside.address) {
        return Err(DropReason::NatNoMapping);
    }
    if is_impostor(ctx.tables, ctx.port, to, from.address) {
        return Err(DropReason::SpoofedIp);
    }
    if let Some(held) = held {
        held.keep();
    }
    Ok(Receiver { port: to, inside, mapping, admitted: mapping.map(|_| from.address) })
}

/// Who is behind an outside endpoint, and by which mapping, which is held then. A trace holds none.
fn mapping_at<R: Recorder>(
    ctx: &Context<'_>,
    flows: &Flows<'_>,
    proto: u8,
    to: Outside,
    from: Outside,
) -> Result<(Inside, Option<MappingRef>), DropReason> {
    let (nat, pools, now, hairpin) = (flows.nat, ctx.pools, ctx.now, ctx.port.kind != PortKind::Uplink);
    let found = match hairpin {
        _ if R::MASKED => nat.peek(&Arrival { pools, proto, to, from, now, hairpin }).map(|inside| (inside, None)),
        true => nat.hairpin(pools, proto, to, from, now).map(|found| (found.inside, Some(found.mapping))),
        false => nat.inbound(pools, proto, to, from, now).map(|found| (found.inside, Some(found.mapping))),
    };
    found.map_err(|_| DropReason::NatNoMapping)
}

/// Whether a port has an address, of its network or attached.
fn has(tables: &Tables, port: &Port, address: u128) -> bool {
    let attached = Owned::Attached { port: port.id, inside: None };
    owner_in(tables, port, address)
        || tables.uplink.as_ref().is_some_and(|uplink| uplink.owned.get(&address) == Some(&attached))
}

/// Whether a port has an address of its network.
fn owner_in(tables: &Tables, port: &Port, address: u128) -> bool {
    tables.owner(AddressKey { address, network: port.network }) == Some(port.id)
}

/// Whether a port had an address attached that was given up while it was in use.
fn had(tables: &Tables, port: &Port, address: u128) -> bool {
    let attached = Owned::Attached { port: port.id, inside: None };
    tables.uplink.as_ref().is_some_and(|uplink| uplink.kept.get(&address) == Some(&attached))
}

/// Whether an address lies in the range of a network.
pub(super) fn is_within(tables: &Tables, network: NetworkId, address: u128) -> bool {
    let Some(network) = tables.network(network) else { return false };
    let address = Ipv6Addr::from(address);
    match address.to_ipv4_mapped() {
        Some(address) => network.v4.is_some_and(|(range, _)| range.contains(&address)),
        None => network.v6.is_some_and(|(range, _)| range.contains(&address)),
    }
}

/// Whether the sender of a packet, seen as `address`, would enter another network as somebody of that one: nobody outside has its
/// addresses, and its policies could not tell.
pub(super) fn is_impostor(tables: &Tables, from: &Port, to: &Port, address: u128) -> bool {
    to.kind != PortKind::Uplink && from.network != to.network && is_within(tables, to.network, address)
}

/// A packet to a NAT address of the host that nobody has let in: it went no further, but its sender has a mapping by it, which lets the
/// answer in (RFC 4787 REQ-9).
pub(super) fn expect(ctx: &Context<'_>, flows: &Flows<'_>, key: &FlowKey, plan: &Plan<'_>) {
    if plan.source == Some(Source::Pool) && key.kind() == Kind::Ports {
        let inside = inside(flows, ctx.port, ctx.network.vni, key);
        // Refused or not, the packet ends.
        let _ = flows.nat.expect(ctx.pools, &inside, destination(key), ctx.now);
    }
}

/// As whom a port's packets from `src`, one of its own addresses, leave its network for `dst`.
///
/// # Errors
/// `EgressNone`.
pub(super) fn source(tables: &Tables, port: &Port, src: u128, dst: u128) -> Result<Source, DropReason> {
    let uplink = tables.uplink.as_deref().ok_or(DropReason::EgressNone)?;
    if let Some(Owned::Attached { port: owner, inside: None }) = uplink.owned.get(&src)
        && *owner == port.id
    {
        return Ok(Source::Own);
    }
    if let Some(public) = uplink.public_of(port.id, src) {
        return Ok(Source::Public(public));
    }
    match egress(tables, port, dst) {
        Egress::None | Egress::Forbidden => Err(DropReason::EgressNone),
        Egress::Nat => Ok(Source::Pool),
        Egress::Routed => Ok(Source::Own),
    }
}

/// What becomes of packets that leave a port's network for an address.
fn egress(tables: &Tables, port: &Port, dst: u128) -> Egress {
    let dst = Ipv6Addr::from(dst).to_canonical();
    tables.network(port.network).map_or(Egress::None, |network| network.egress_to(dst))
}

/// `snat`, the last that is done before a connection begins: as whom it leaves. How it crosses, and the mapping of its source.
///
/// # Errors
/// Why it cannot leave. It never leaves as it is (SEMANTICS NA35).
pub(super) fn snat<'a, R: Recorder>(
    ctx: &Context<'a>,
    flows: &Flows<'a>,
    key: &FlowKey,
    plan: &Plan<'a>,
    to: &Port,
    source: Source,
    record: &mut R,
) -> Result<(Translation, Held<'a>), DropReason> {
    let mut held = Held::none(flows);
    let mut outside = match source {
        Source::Own | Source::Public(_) | Source::Gateway(_) => {
            shown(ctx.tables, flows, ctx.port, key, source).unwrap_or(NOBODY)
        }
        Source::Pool if R::MASKED => {
            if !ctx.pools.serves(ctx.port.id, family(key.src())) {
                record.stage("snat", Detail::Verdict(Verdict::Drop(DropReason::NatNoPool)));
                return Err(DropReason::NatNoPool);
            }
            let known = shown(ctx.tables, flows, ctx.port, key, source);
            record.stage("snat", Detail::Source(known.map(|outside| (outside.address, outside.l4))));
            known.unwrap_or(NOBODY)
        }
        Source::Pool => {
            let inside = inside(flows, ctx.port, ctx.network.vni, key);
            let remote = destination(&plan.asked);
            let mapped = flows.nat.outbound(ctx.pools, &inside, remote, ctx.now).map_err(refusal);
            let mapped = mapped.inspect_err(|reason| record.stage("snat", Detail::Verdict(Verdict::Drop(*reason))))?;
            held = Held::asked(flows, mapped.mapping, ctx.now);
            // Another worker took the place that was foreseen: whom the filter let in is not who comes.
            if plan.admitted.is_some_and(|address| address != mapped.outside.address) {
                return Err(DropReason::NatNoMapping);
            }
            held.shared = mapped.bound && key.kind() == Kind::Ports && key.proto() == proto::TCP;
            mapped.outside
        }
    };
    if let Some(l4) = plan.l4 {
        // What the NAT gave is one tenant's, every other port of the pool somebody else's or nobody's.
        if source == Source::Pool {
            return Err(DropReason::NatTupleTaken);
        }
        outside.l4 = l4;
    }
    if (source != Source::Own || plan.l4.is_some()) && !(R::MASKED && source == Source::Pool) {
        record.stage("snat", Detail::Source(Some((outside.address, outside.l4))));
    }
    // Who had no address of a pool before this has one now.
    if is_impostor(ctx.tables, ctx.port, to, outside.address) {
        return Err(DropReason::SpoofedIp);
    }
    if outside != NOBODY && plan.service.is_some_and(|service| !service.admits(outside.address)) {
        return Err(DropReason::ServiceSource);
    }
    let vni = ctx.tables.network(to.network).ok_or(DropReason::Internal)?.vni;
    let (src_port, dst_port) = match key.kind() {
        Kind::Ports => (outside.l4, plan.dst.l4),
        Kind::Query | Kind::Answer => (outside.l4, key.dst_port()),
        Kind::Addresses => (0, 0),
    };
    let there = FlowKey::new(outside.address, plan.dst.address, src_port, dst_port, key.proto(), key.kind());
    let translation = Translation { reply: there.reversed(), vni, held: [held.hold(), plan.held.hold()] };
    Ok((translation, held))
}

/// One end of a connection that has a NAT mapping.
#[derive(Clone, Copy, Debug)]
pub struct MappedEnd {
    /// The end within its network.
    pub inside: Inside,
    /// The same as the outside sees it.
    pub outside: Outside,
    /// Who it talks to, as the outside sees it.
    pub remote: Outside,
}

/// Of a connection that crosses, the ends whose mappings it may hold: that of its source, and that of its destination. `uplink` is
/// the slot of that port.
pub fn held_ends(
    entry: &Entry,
    translation: &Translation,
    uplink: Option<u32>,
    uid: impl Fn(u32) -> u128,
) -> [MappedEnd; 2] {
    let (key, there) = (&entry.key, translation.reply.reversed());
    let end = |port: u32, vni, key: &FlowKey| Inside {
        port,
        uid: uid(port),
        vni,
        address: key.src(),
        l4: source_l4(key),
        proto: key.proto(),
    };
    let shown = Outside { address: there.src(), l4: source_l4(&there) };
    // Behind a Service may be somebody out there.
    let remote = if Some(entry.out_port) == uplink { destination(&there) } else { destination(key) };
    let from = MappedEnd { inside: end(entry.in_port, entry.vni, key), outside: shown, remote };
    let to = end(entry.out_port, translation.vni, &translation.reply);
    [from, MappedEnd { inside: to, outside: destination(key), remote: shown }]
}

fn refusal(refused: Refused) -> DropReason {
    match refused {
        Refused::NoPool => DropReason::NatNoPool,
        Refused::Exhausted { .. } => DropReason::NatExhausted,
        Refused::PortLimit => DropReason::NatPortLimit,
        Refused::Full => DropReason::NatTableFull,
        Refused::Unsupported(_) => DropReason::NatUnsupported,
    }
}

/// The inside endpoint that a packet comes from.
pub(super) fn inside(flows: &Flows<'_>, port: &Port, vni: u32, key: &FlowKey) -> Inside {
    Inside { uid: flows.connections.port_id(port.id.0), ..endpoint(port, vni, key) }
}

/// The same of nobody known by name.
pub(super) fn endpoint(port: &Port, vni: u32, key: &FlowKey) -> Inside {
    Inside { port: port.id.0, uid: 0, vni, address: key.src(), l4: source_l4(key), proto: key.proto() }
}

/// L4 port or identifier of a packet's sender.
pub(super) fn source_l4(key: &FlowKey) -> u16 {
    match key.kind() {
        Kind::Ports | Kind::Query => key.src_port(),
        Kind::Answer | Kind::Addresses => 0,
    }
}

/// The endpoint that a packet is for, as it says.
pub(super) fn destination(key: &FlowKey) -> Outside {
    Outside { address: key.dst(), l4: key.l4_dst_port().unwrap_or(0) }
}

/// The endpoint of a remote that sends a packet.
fn destination_of_remote(key: &FlowKey) -> Outside {
    destination(&key.reversed())
}

/// Whether a port's packets for `dst` would still be shown as they are.
///
/// # Errors
/// `EgressNone`.
pub(super) fn still_shows(
    tables: &Tables,
    from: &Port,
    key: &FlowKey,
    there: &FlowKey,
    dst: u128,
) -> Result<bool, DropReason> {
    let uplink = tables.uplink.as_deref().ok_or(DropReason::EgressNone)?;
    // A connection that began from a pool goes on from there when the port has got an address of its own since.
    let pooled = uplink.known(there.src()) == Some(&Owned::Nat);
    let by_pool = pooled && egress(tables, from, dst) == Egress::Nat;
    // Nor does one from an address that was given up while it was in use.
    let kept = match uplink.kept.get(&there.src()) {
        // By 1:1 NAT it stands for every address of the port, which this one is.
        Some(Owned::Attached { port, inside }) => *port == from.id && (inside.is_some() || there.src() == key.src()),
        _ => false,
    };
    if kept {
        return Ok(true);
    }
    Ok(match source(tables, from, key.src(), dst)? {
        _ if by_pool => true,
        Source::Own => there.src() == key.src(),
        Source::Public(public) => there.src() == public,
        Source::Pool | Source::Gateway(_) => false,
    })
}

/// Whether what a connection was given when it began is still its own: addresses of its ports, addresses at the uplink, the backend
/// of a Service. `answered`: whether anybody has answered it.
///
/// # Errors
/// `NoConnection` when it is not, or `EgressNone`.
pub(super) fn still<'a>(
    ctx: &Context<'a>,
    key: &FlowKey,
    translation: &Translation,
    ports: [u32; 2],
    answered: bool,
) -> Result<(&'a Port, &'a Port), DropReason> {
    let tables = ctx.tables;
    let [Some(from), Some(to)] = ports.map(|port| tables.port(PortId(port))) else {
        return Err(DropReason::NoConnection);
    };
    let there = translation.reply.reversed();
    let owns = |port: &Port, address| has(tables, port, address) || had(tables, port, address);
    if let Some(scope) = service::scope(ctx, from, key.dst()).or_else(|| service::scope_kept(ctx, key.dst())) {
        let ours = from.kind == PortKind::Uplink || owns(from, key.src());
        let right = ours && service::still(ctx, key, translation, scope, [from, to], answered)?;
        return if right { Ok((from, to)) } else { Err(DropReason::NoConnection) };
    }
    // Within its network, as itself but for its L4 port.
    let stays = from.network == to.network && there.src() == key.src() && there.dst() == key.dst();
    if stays && owns(from, key.src()) && owner_in(tables, to, key.dst()) {
        return Ok((from, to));
    }
    let uplink: &Uplink =
        tables.uplink.as_deref().ok_or(if stays { DropReason::NoConnection } else { DropReason::EgressNone })?;
    if from.kind == PortKind::Uplink {
        if uplink.port != from.id || uplink.is_ours(key.src()) {
            return Err(DropReason::NoConnection);
        }
    } else if !owns(from, key.src()) || !still_shows(tables, from, key, &there, key.dst())? {
        return Err(DropReason::NoConnection);
    }
    let right = if to.kind == PortKind::Uplink {
        let ours = uplink.is_ours(key.dst());
        // Where the destination was given to a port of the network since, that one is meant.
        let local = tables.owner(AddressKey { address: key.dst(), network: from.network }).is_some();
        uplink.port == to.id && !ours && !local && there.dst() == key.dst()
    } else {
        let attached = match uplink.known(key.dst()) {
            Some(Owned::Nat) => true,
            Some(Owned::Attached { port, inside }) => *port == to.id && inside.unwrap_or(key.dst()) == there.dst(),
            _ => false,
        };
        attached && owns(to, there.dst()) && !is_impostor(tables, from, to, there.src())
    };
    if right { Ok((from, to)) } else { Err(DropReason::NoConnection) }
}
