//! `dnat` to Services: which backend the first packet of a connection gets, and whether a connection that has begun may go on with
//! it (SEMANTICS §2).
//!
//! A private address of a Service is known in its network, a public one at the uplink and in every network of the host (SV25).
//! Who sends to one within the Service's own network stays there: the backend sees the real source, whatever the network's egress
//! is, and so do policies. A port of another network is shown as it is when it leaves. A client at the uplink keeps its source.

use std::sync::atomic::Ordering::Relaxed;

use hostweave_nat::Outside;
use hostweave_nat::service::hash::of_tuple;
use hostweave_nat::service::{Asking, Backend, Chosen, Frontend, Lookup, Refusal};
use hostweave_switch::connection::Translation;
use hostweave_switch::flow::{FlowKey, Kind};
use hostweave_switch::stage::{DropReason, Verdict};
use hostweave_switch::tables::{AddressKey, NetworkId, OUTSIDE_VNI, Owned, Port, PortKind, Tables, is_ipv4};

use super::Flows;
use super::outside::{self, Held, Plan, Source};
use super::seen;
use crate::datapath::Context;
use crate::observe::recorder::{Balanced, Detail, Recorder};

/// Looks for a backend, when what would answer the client is another connection's already: its own to the backend itself, from the same
/// L4 port. From half of them on the client's L4 port changes too: with a single backend nothing else helps.
pub(super) const ATTEMPTS: u32 = 8;

/// Who has been chosen for a connection.
#[derive(Clone, Copy)]
pub(super) struct Pinned<'a> {
    frontend: &'a Frontend,
    backend: &'a Backend,
    /// It was not settled yet as whom the client is seen.
    unseen: bool,
}

impl Pinned<'_> {
    /// The connection has begun.
    pub fn begun(&self, client: u128, now: u32) {
        self.frontend.begun(client, &self.backend.name, now);
    }

    /// Whether a client of a NAT pool, which is seen as `client`, may use the Service (SEMANTICS SV18). Of others that was looked at.
    pub fn admits(&self, client: u128) -> bool {
        !self.unseen || self.frontend.admits(client)
    }
}

/// In which scope a destination is a Service's, seen from a port of `network`: a VNI, or that of the uplink.
pub(super) fn scope(ctx: &Context<'_>, from: &Port, address: u128) -> Option<u32> {
    if ctx.services.is_empty() {
        return None;
    }
    if from.kind != PortKind::Uplink {
        let vni = ctx.tables.network(from.network)?.vni;
        if ctx.services.has_address(vni, address) {
            return Some(vni);
        }
    }
    is_public(ctx.tables, address).then_some(OUTSIDE_VNI)
}

/// The same, for a connection that began when an address was still ours.
pub(super) fn scope_kept(ctx: &Context<'_>, address: u128) -> Option<u32> {
    let kept = ctx.tables.uplink.as_ref().is_some_and(|uplink| uplink.kept.get(&address) == Some(&Owned::Service));
    kept.then_some(OUTSIDE_VNI)
}

fn is_public(tables: &Tables, address: u128) -> bool {
    tables.uplink.as_ref().is_some_and(|uplink| uplink.owned.get(&address) == Some(&Owned::Service))
}

/// Where a packet to a Service's address goes. `attempt` counts looks before.
pub(super) fn plan<'a, R: Recorder>(
    ctx: &Context<'a>,
    flows: &Flows<'a>,
    key: &FlowKey,
    scope: u32,
    attempt: u32,
    record: &mut R,
) -> Plan<'a> {
    let none = |reason| Plan {
        to: Err(reason),
        dst: outside::destination(key),
        source: None,
        l4: None,
        asked: *key,
        service: None,
        held: Held::none(flows),
        admitted: None,
    };
    let (frontend, chosen) = match choose(ctx, key, scope, attempt) {
        Ok(chosen) => chosen,
        Err(reason) => {
            record.stage("dnat", Detail::Verdict(Verdict::Drop(reason)));
            return none(reason);
        }
    };
    let Chosen { backend, l4, why } = chosen;
    let found = frontend.spec().scope;
    record.stage("dnat", Detail::Service(Balanced { scope: found, to: (backend.address, l4), why }));
    let way = way(ctx, flows, key, frontend, backend, l4);
    if let Err(reason) = way {
        record.stage("dnat", Detail::Verdict(Verdict::Drop(reason)));
    }
    let (to, source, asked, unseen) = match way {
        Ok(Way { to, source, asked, unseen }) => (Ok(to), source, asked, unseen),
        Err(reason) => (Err(reason), Source::Own, *key, false),
    };
    let other = attempt >= ATTEMPTS / 2 && key.kind() == Kind::Ports;
    let l4_of = other.then(|| outside::other_l4(key, attempt));
    let dst = Outside { address: backend.address, l4 };
    let service = Some(Pinned { frontend, backend, unseen });
    let source = Some(source);
    Plan { to, dst, source, l4: l4_of, asked, service, held: Held::none(flows), admitted: None }
}

/// Of a public address a network knows the L4 ports of its own Services, which may be for it as they are for nobody else (SEMANTICS SV13);
/// others that share the address are found as by everybody.
fn frontend<'a>(ctx: &Context<'a>, scope: u32, key: &FlowKey, l4: u16) -> Option<&'a Frontend> {
    match ctx.services.lookup(scope, key.dst(), key.proto(), l4) {
        Lookup::Frontend(frontend) => Some(frontend),
        Lookup::Undeclared if scope != OUTSIDE_VNI && is_public(ctx.tables, key.dst()) => {
            frontend(ctx, OUTSIDE_VNI, key, l4)
        }
        _ => None,
    }
}

fn choose<'a>(
    ctx: &Context<'a>,
    key: &FlowKey,
    scope: u32,
    attempt: u32,
) -> Result<(&'a Frontend, Chosen<'a>), DropReason> {
    let l4 = key.l4_dst_port().ok_or(DropReason::ServiceNoPort)?;
    let frontend = frontend(ctx, scope, key, l4).ok_or(DropReason::ServiceNoPort)?;
    let hash = of_tuple(key.src(), key.dst(), key.src_port(), l4, key.proto());
    let attempt = attempt % (ATTEMPTS / 2);
    let asking = Asking { hash, client: key.src(), l4, attempt, now: ctx.now };
    let chosen = frontend.choose(&asking).map_err(|refusal| match refusal {
        Refusal::Reject => DropReason::ServiceNoBackend,
        Refusal::Drop => DropReason::ServiceNoLocalBackend,
    })?;
    Ok((frontend, chosen))
}

/// How a packet gets to a backend.
struct Way<'a> {
    to: &'a Port,
    source: Source,
    /// As what it would have been sent without a Service in between.
    asked: FlowKey,
    unseen: bool,
}

fn way<'a>(
    ctx: &Context<'a>,
    flows: &Flows<'a>,
    key: &FlowKey,
    frontend: &Frontend,
    backend: &Backend,
    l4: u16,
) -> Result<Way<'a>, DropReason> {
    const UNREACHABLE: DropReason = DropReason::ServiceBackendUnreachable;
    let tables = ctx.tables;
    let network = network_of(ctx, frontend).ok_or(UNREACHABLE)?;
    let outside = ctx.port.kind == PortKind::Uplink;
    let own = !outside && network == ctx.port.network;
    let Some(to) = tables.owner(AddressKey { address: backend.address, network }) else {
        // Beyond the host, where the client's packets go by the uplink as all others of its network do.
        let asked = FlowKey::new(key.src(), backend.address, key.src_port(), l4, key.proto(), key.kind());
        if outside || !is_beyond_host(tables, network, backend.address) {
            return Err(UNREACHABLE);
        }
        let source = outside::source(tables, ctx.port, key.src(), backend.address).map_err(|_| UNREACHABLE)?;
        let uplink = tables.uplink.as_ref().and_then(|uplink| tables.port(uplink.port));
        let to = uplink.ok_or(UNREACHABLE)?;
        let unseen = admitted(ctx, flows, frontend, key, if own { Source::Own } else { source }, to)?;
        return Ok(Way { to, source, asked, unseen });
    };
    let to = tables.port(to).ok_or(DropReason::Internal)?;
    // What the host answers itself is for its own network: DNS behind a public address would be an open resolver.
    if to.kind == PortKind::Internal {
        return Err(UNREACHABLE);
    }
    let source = if own && to.id == ctx.port.id {
        // Nobody takes a packet from himself (SEMANTICS SV19).
        Source::Gateway(gateway(tables, network, backend.address).ok_or(UNREACHABLE)?)
    } else if own || outside {
        Source::Own
    } else {
        outside::source(tables, ctx.port, key.src(), key.dst())?
    };
    let unseen = admitted(ctx, flows, frontend, key, if own { Source::Own } else { source }, to)?;
    Ok(Way { to, source, asked: *key, unseen })
}

/// Whether the client, as the Service sees it, may use it (SEMANTICS SV18), and its backend, behind `to`, may see it so. `Ok(true)` when
/// that is to be asked once more: a pool may give it another address than is foreseen.
fn admitted(
    ctx: &Context<'_>,
    flows: &Flows<'_>,
    frontend: &Frontend,
    key: &FlowKey,
    source: Source,
    to: &Port,
) -> Result<bool, DropReason> {
    // A backend out there changes nothing about whose mapping it is.
    if let Some(address) = seen::address(ctx, flows, key, source, outside::destination(key)) {
        if outside::is_impostor(ctx.tables, ctx.port, to, address) {
            return Err(DropReason::SpoofedIp);
        }
        if !frontend.admits(address) {
            return Err(DropReason::ServiceSource);
        }
    }
    Ok(source == Source::Pool)
}

/// The network of a frontend's backends. Where it was found is remembered, for clients outside.
fn network_of(ctx: &Context<'_>, frontend: &Frontend) -> Option<NetworkId> {
    let vni = frontend.spec().vni;
    if ctx.network.vni == vni {
        return Some(ctx.port.network);
    }
    let known = NetworkId(frontend.network.load(Relaxed));
    if ctx.tables.network(known).is_some_and(|network| network.vni == vni) {
        return Some(known);
    }
    let found = ctx.tables.network_of_vni(vni)?;
    frontend.network.store(found.0, Relaxed);
    Some(found)
}

/// Whether an address that no port has is to be looked for out there, whatever the network's egress is: not within the network, and nobody's on this host.
fn is_beyond_host(tables: &Tables, network: NetworkId, address: u128) -> bool {
    let Some(uplink) = tables.uplink.as_deref() else { return false };
    !outside::is_within(tables, network, address) && !uplink.is_ours(address)
}

/// The gateway's address in the family of `address`.
fn gateway(tables: &Tables, network: NetworkId, address: u128) -> Option<u128> {
    let network_of = tables.network(network)?;
    let gateway =
        if is_ipv4(address) { network_of.v4.map(|(_, g)| g.into()) } else { network_of.v6.map(|(_, g)| g.into()) };
    gateway.map(|gateway| AddressKey::new(network, gateway).address)
}

/// Whether a connection to a Service goes on with what it was given when it began: the backend, and the source that it shows. If not,
/// what comes next is a connection of its own, and gets another backend (SEMANTICS SV5, SV9).
///
/// # Errors
/// `EgressNone`.
pub(super) fn still<'a>(
    ctx: &Context<'a>,
    key: &FlowKey,
    translation: &Translation,
    scope: u32,
    [from, to]: [&'a Port; 2],
    answered: bool,
) -> Result<bool, DropReason> {
    let tables = ctx.tables;
    let there = translation.reply.reversed();
    let Some(frontend) = frontend(ctx, scope, key, key.dst_port()) else { return Ok(false) };
    let standing = frontend.standing(key.dst_port(), there.dst(), there.dst_port());
    let Some(network) = network_of(ctx, frontend) else { return Ok(false) };
    let owner = tables.owner(AddressKey { address: there.dst(), network });
    let reaches = match to.kind {
        PortKind::Uplink => owner.is_none() && is_beyond_host(tables, network, there.dst()),
        PortKind::Internal => false,
        _ => owner == Some(to.id),
    };
    let own = from.kind != PortKind::Uplink && network == from.network;
    let shows = if from.kind == PortKind::Uplink {
        let foreign = tables.uplink.as_ref().is_some_and(|uplink| uplink.port == from.id && !uplink.is_ours(key.src()));
        foreign && there.src() == key.src()
    } else if own && to.id == from.id {
        gateway(tables, network, there.dst()) == Some(there.src())
    } else if own && to.kind != PortKind::Uplink {
        there.src() == key.src()
    } else {
        // Beyond the host the backend is where its packets go.
        let dst = if to.kind == PortKind::Uplink { there.dst() } else { key.dst() };
        outside::still_shows(tables, from, key, &there, dst)?
    };
    let admits = frontend.admits(if own { key.src() } else { there.src() });
    let goes_on = standing.goes_on(key.proto(), answered);
    Ok(goes_on && reaches && shows && admits && !outside::is_impostor(tables, from, to, there.src()))
}
