//! Between the two halves of the pipeline: asks for what the second needs of the flow cache and of the connection table, for all
//! packets of a burst, so that it is on its way when their turn comes.
//!
//! Three passes, because each learns from what the one before asked for where the next line stands: the tags of a bucket, the line
//! of a flow, the record of a connection. Of a small cache tags and records lie near enough.

use hostweave_switch::connection::Connections;
use hostweave_switch::flow::{FlowCache, NOWHERE, round};

use crate::datapath::{Context, Lookup};

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
pub fn expect(ctx: &Context<'_>, cache: &FlowCache, connections: &Connections, lookups: &mut [Lookup], wanted: u64) {
    let mut unknown = 0u64;
    for (index, lookup) in lookups.iter_mut().enumerate() {
        if wanted >> index & 1 == 0 {
            continue;
        }
        lookup.expected = cache.expect(lookup.hash);
        if lookup.expected == NOWHERE {
            connections.prefetch(lookup.hash);
            cache.prefetch_room(lookup.hash, round(ctx.now));
            unknown |= 1 << index;
        }
    }
    if !cache.is_small() {
        records(ctx, cache, connections, lookups, wanted & !unknown);
    }
    while unknown != 0 {
        connections.prefetch_chain(lookups[unknown.trailing_zeros() as usize].hash);
        unknown &= unknown - 1;
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
