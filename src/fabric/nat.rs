//! NAT as the fabric keeps it: where its file lies, and that mappings are given back when connections end.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use hostweave_nat::{End, MappingRef, Nat, Options, Timers};
use hostweave_switch::connection::{Connections, Entry, Hold};
use hostweave_switch::tcp_track::{self, State as TcpState};
use hostweave_switch::wire::proto;

use super::connections::boot_id;
use super::spec::FabricConfig;
use crate::worker::clock::Clock;

/// Opens the table of mappings under the runtime directory.
pub(super) fn open(config: &FabricConfig, now: u32) -> anyhow::Result<Nat> {
    let path = config.runtime_dir.join("nat");
    let options =
        Options { capacity: config.connections_max, boot: boot_id(), now, timers: Timers::default(), seed: None };
    Nat::open(&path, &options).with_context(|| format!("opening {}", path.display()))
}

/// Has each mapping that a connection held given back when the connection ends, whoever ends it.
pub(super) fn give_back(nat: &Arc<Nat>, connections: &Connections, clock: Clock) {
    let nat = Arc::clone(nat);
    connections.on_release(Box::new(move |hold, entry| {
        let Hold { index, generation } = hold;
        let now = clock.seconds(Instant::now());
        let seen = entry.seen[0].max(entry.seen[1]);
        nat.release(MappingRef { index, generation }, seen, now, how(entry));
    }));
}

/// How a connection ended, as mappings want to know it.
fn how(entry: &Entry) -> End {
    let tcp = entry.key.proto() == proto::TCP;
    if tcp && tcp_track::state(&entry.sides[0], &entry.sides[1]) == TcpState::Established {
        return End::Established;
    }
    End::Closed
}
