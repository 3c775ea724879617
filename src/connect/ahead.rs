//! Between the two halves of the pipeline: asks for what the second needs of the flow cache, of the connection table, and of NAT, for
//! all packets of a burst, so that it is on its way when their turn comes.
//!
//! Three passes, because each learns from what the one before asked for where the next line stands: the tags of a bucket, the line
//! of a flow, the record of a connection. Of a small cache tags and records lie near enough.

use hostweave_nat::{Nat, V4, V6, family};
use hostweave_switch::connection::Connections;
use hostweave_switch::flow::{FlowCache, NOWHERE, round};
use hostweave_switch::limits::BURST;

use super::outside;
use crate::datapath::{Context, Lookup};

/// No chain of mappings has this number.
const NO_CHAIN: usize = usize::MAX;

/// Asks for the tags of a packet's flow: the first pass, as soon as its hash is known.
#[inline(always)]
pub fn tags(cache: &FlowCache, lookup: &Lookup) {
    if !cache.is_small() {
        cache.prefetch(lookup.hash);
    }
}

/// The other passes, over the packets that go on to `forward`, a bit each in `wanted`. Leaves in their lookups where their flows
/// are expected.
#[inline]
pub fn expect(
    ctx: &Context<'_>,
    cache: &FlowCache,
    connections: &Connections,
    nat: &Nat,
    lookups: &mut [Lookup],
    wanted: u64,
) {
    let mut unknown = 0u64;
    for (index, lookup) in lookups.iter_mut().enumerate() {
        if wanted >> index & 1 == 0 {
            continue;
        }
        lookup.expected = cache.expect(lookup.hash);
        if lookup.expected == NOWHERE {
            connections.prefetch(lookup.hash);
            unknown |= 1 << index;
        }
    }
    if !cache.is_small() {
        records(ctx, cache, connections, lookups, wanted & !unknown);
    }
    if unknown != 0 {
        newcomers(ctx, cache, connections, nat, lookups, unknown);
    }
}

/// Asks for the connections that packets without a flow may belong to, for the mappings that they will have if they leave, and for the
/// places in the cache that their flows will take.
#[inline(never)]
fn newcomers(
    ctx: &Context<'_>,
    cache: &FlowCache,
    connections: &Connections,
    nat: &Nat,
    lookups: &[Lookup],
    unknown: u64,
) {
    let is_unknown = |index: &usize| unknown >> index & 1 != 0;
    let has_pool = [V4, V6].map(|family| ctx.pools.serves(ctx.port.id, family));
    let services = !ctx.services.is_empty();
    let mut chains = [NO_CHAIN; BURST];
    for index in (0..lookups.len()).filter(is_unknown) {
        let Lookup { key, hash, .. } = &lookups[index];
        let may_leave = has_pool[family(key.src())];
        cache.prefetch_room(*hash, round(ctx.now), may_leave || services);
        if may_leave {
            chains[index] = nat.ask(&outside::endpoint(ctx.port, ctx.network.vni, key));
        }
    }
    for index in (0..lookups.len()).filter(is_unknown) {
        connections.prefetch_chain(lookups[index].hash);
        nat.ask_chain(chains[index]);
    }
}

/// Asks for the records of connections that will be asked because their flows were last looked at in another round or epoch.
fn records(ctx: &Context<'_>, cache: &FlowCache, connections: &Connections, lookups: &[Lookup], known: u64) {
    for (index, lookup) in lookups.iter().enumerate() {
        if known >> index & 1 != 0
            && let Some(record) = cache.asks(lookup.expected, [ctx.stamp, ctx.crossing_stamp])
        {
            connections.prefetch_record(record);
        }
    }
}
