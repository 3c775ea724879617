//! As whom the outside sees the sender of a packet.

use hostweave_nat::{Outside, V4, family};
use hostweave_switch::flow::FlowKey;
use hostweave_switch::tables::{Port, Tables};

use super::Flows;
use super::outside::{Source, inside, source_l4};
use crate::datapath::Context;

/// As whom the outside sees the sender of a packet now; `None` when that is not settled yet.
pub(super) fn shown(tables: &Tables, flows: &Flows<'_>, port: &Port, key: &FlowKey, source: Source) -> Option<Outside> {
    let l4 = source_l4(key);
    match source {
        Source::Own => Some(Outside { address: key.src(), l4 }),
        Source::Public(address) | Source::Gateway(address) => Some(Outside { address, l4 }),
        Source::Pool => {
            let vni = tables.network(port.network)?.vni;
            flows.nat.outside_of(&inside(flows, port, vni, key))
        }
    }
}

/// As whom the outside will see the sender of a packet for one of its addresses: what a filter there knows it by (RFC 4787 REQ-9). Of one that
/// has no mapping yet the address is foreseen and the L4 port is not: it is zero, which no mapping has.
pub(super) fn sender(ctx: &Context<'_>, flows: &Flows<'_>, key: &FlowKey, source: Source, remote: Outside) -> Outside {
    let Some(address) = address(ctx, flows, key, source, remote) else { return NOBODY };
    let known = shown(ctx.tables, flows, ctx.port, key, source);
    known.filter(|shown| shown.address == address).unwrap_or(Outside { address, l4: 0 })
}

/// What an endpoint is called that nobody has.
pub(super) const NOBODY: Outside = Outside { address: 0xffff_0000_0000, l4: 0 };

/// The address that receivers beyond the network see the sender by, for their rules about addresses. A port that has no mapping yet is known by
/// the address that its pool would give it now: should it get another one, `decide` asks again. `None` when it would get none.
pub(super) fn address(
    ctx: &Context<'_>,
    flows: &Flows<'_>,
    key: &FlowKey,
    source: Source,
    remote: Outside,
) -> Option<u128> {
    match source {
        Source::Own => Some(key.src()),
        Source::Public(address) | Source::Gateway(address) => Some(address),
        Source::Pool => flows.nat.foreseen(ctx.pools, &inside(flows, ctx.port, ctx.network.vni, key), remote),
    }
}

/// An address of the family of `address` that nobody has.
pub(super) fn nobody(address: u128) -> u128 {
    if family(address) == V4 { NOBODY.address } else { 0 }
}
