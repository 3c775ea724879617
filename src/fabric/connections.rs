//! The table of connections as the fabric keeps it: where its file lies, what a new run takes over, what a change of ports
//! and policies means for it, and who ends connections whose time has come.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use hostweave_policy::compile::{Compiler, Update};
use hostweave_policy::model::{Endpoint, World};
use hostweave_policy::table::Table;
use hostweave_switch::connection::{Claim, Connections, Ending, Entry, Options};
use hostweave_switch::tables::{NetworkId, Port, PortId, Tables};

use super::ids::IdPool;
use super::spec::{FabricConfig, PolicySpec};
use super::uplink::lifecycle::{decides_otherwise, leads_otherwise};
use super::{Established, Inner, State};

/// Connections looked at in one go, between two of which a worker may have the shard.
const EXPIRE_BUDGET: usize = 64;

/// Records whose blocks are allocated in one go: 8 MiB.
const STEP: u32 = 65_536;

/// Records that are there before the first packet.
const FIRST_STEP: u32 = 8_192;

/// Opens the table under the runtime directory.
pub fn open(config: &FabricConfig, now: u32) -> anyhow::Result<Connections> {
    let path = config.runtime_dir.join("connections");
    let options = Options { capacity: config.connections_max, boot: boot_id(), now };
    let connections = Connections::open(&path, &options).with_context(|| format!("opening {}", path.display()))?;
    let at_once = connections.ever_used().max(FIRST_STEP);
    allocate(&connections, at_once).with_context(|| format!("no room for {}", path.display()))?;
    Ok(connections)
}

/// Names this start of the machine; what stands in a file of another one is void, as the clock began anew.
pub(super) fn boot_id() -> u128 {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    uuid::Uuid::parse_str(text.trim()).map_or(0, |id| id.as_u128())
}

/// Has blocks allocated up to a number of records, so that touching one can never fail.
fn allocate(connections: &Connections, records: u32) -> std::io::Result<()> {
    let before = connections.available();
    let start = if before == 0 { 0 } else { connections.file_len(before) };
    connections.file().allocate(start..connections.file_len(records))?;
    connections.make_available(records);
    Ok(())
}

/// The same for the translations of as many connections as there is room for. Once asked for, [`allocate_all`] goes on with it: hosts
/// without an uplink need none.
pub(super) fn allocate_translations(connections: &Connections) {
    loop {
        let records = connections.available();
        let [(offset, before), (_, len)] =
            [connections.translatable(), records].map(|records| connections.translations_at(records));
        if let Err(error) = connections.file().allocate(offset + before..offset + len) {
            let (room, wanted) = (connections.translatable(), records);
            tracing::warn!(%error, "the runtime directory has room for {room} connections to the outside only, not {wanted}");
            return;
        }
        connections.make_translatable(records);
        // The other thread may have gone a step further meanwhile.
        if connections.available() == records {
            return;
        }
    }
}

/// Allocates the rest of the table, step by step. A file system that is full ends it: the table is smaller then.
pub fn allocate_all(connections: &Connections) {
    while connections.available() < connections.capacity() {
        let next = connections.available().saturating_add(STEP).min(connections.capacity());
        if let Err(error) = allocate(connections, next) {
            let (room, wanted) = (connections.available(), connections.capacity());
            tracing::warn!(%error, "the runtime directory has room for {room} connections only, not {wanted}");
            return;
        }
        if connections.translatable() > 0 {
            allocate_translations(connections);
        }
    }
}

impl State {
    pub(super) fn new(connections: &Connections) -> Self {
        let slots = (0..).zip(connections.port_ids());
        let remembered: std::collections::HashMap<u128, u32> =
            slots.filter_map(|(slot, id)| Some((id?, slot))).collect();
        let taken: HashSet<u32> = remembered.values().copied().collect();
        let port_ids = IdPool::without(&taken);
        State {
            revision: 0,
            compiler: Compiler::new(),
            policy: Arc::new(Table::default()),
            world: Arc::default(),
            policy_revision: 0,
            compile_duration: std::time::Duration::ZERO,
            timeouts: super::Timeouts::default(),
            loose_tcp: false,
            established: Established::default(),
            local: Default::default(),
            epochs: Vec::new(),
            crossings: 1,
            remembered,
            adopted: false,
            wanted: None,
            outside: None,
            uplink: None,
            pools: Arc::default(),
            balance: Default::default(),
            services: Arc::default(),
            networks: Default::default(),
            ports: Default::default(),
            network_ids: IdPool::default(),
            port_ids,
            retired: Vec::new(),
            departed: Vec::new(),
            departed_totals: Default::default(),
            stopping: false,
        }
    }

    /// Compiles policies for the ports that exist now.
    pub(super) fn compile(&mut self, spec: &PolicySpec) -> Update {
        let endpoints = self.ports.values_mut().map(super::PortRuntime::endpoint).collect();
        let world = World {
            default: spec.default,
            infrastructure: spec.infrastructure,
            namespaces: spec.namespaces.clone(),
            endpoints,
            policies: spec.policies.clone(),
            cluster_policies: spec.cluster_policies.clone(),
        };
        let started = Instant::now();
        let update = self.compiler.update(&world);
        self.compile_duration = started.elapsed();
        self.policy_revision += u64::from(!update.changed.is_empty());
        self.policy = Arc::clone(&update.table);
        self.world = Arc::new(world);
        update
    }

    /// Networks about which policy now says something else get a new epoch.
    pub(super) fn bump(&mut self, update: &Update) {
        update.changed.iter().for_each(|network| self.bump_network(*network));
    }

    /// A network gets a new epoch: workers ask connections and policy again about whatever they know of it, and about whatever
    /// leads from one network into another.
    pub(super) fn bump_network(&mut self, NetworkId(id): NetworkId) {
        let index = usize::from(id);
        if self.epochs.len() <= index {
            self.epochs.resize(index + 1, 1);
        }
        // Zero is what an earlier run decided.
        self.epochs[index] = self.epochs[index].checked_add(1).unwrap_or(1);
        self.bump_crossings();
    }

    /// The same for whatever leads from one network into another, or to a Service.
    pub(super) fn bump_crossings(&mut self) {
        self.crossings = self.crossings.wrapping_add(1) & (u32::MAX >> 1);
    }

    /// Fills in the epochs of tables that are about to replace `old`: a network one of whose ports or whose own settings
    /// are different gets a new one.
    pub(super) fn epochs_of(&mut self, tables: &mut Tables, old: &Tables) {
        let mut changed = HashSet::new();
        for index in 0..tables.ports.len().max(old.ports.len()) {
            let port = |tables: &Tables| tables.ports.get(index).cloned().flatten();
            match (port(old), port(tables)) {
                (Some(before), Some(after)) if Arc::ptr_eq(&before, &after) => {}
                (before, after) => changed.extend([before, after].into_iter().flatten().map(|port| port.network)),
            }
        }
        for index in 0..tables.networks.len() {
            let network = |tables: &Tables| tables.networks.get(index).cloned().flatten();
            if network(old) != network(tables) {
                changed.insert(NetworkId(index as u16));
            }
        }
        let elsewhere = decides_otherwise(old, tables);
        if elsewhere || (old.timeouts, old.keep_established) != (tables.timeouts, tables.keep_established) {
            changed.extend((0..tables.networks.len()).map(|index| NetworkId(index as u16)));
        }
        changed.into_iter().for_each(|network| self.bump_network(network));
        if leads_otherwise(old, tables) {
            self.bump_crossings();
        }
        self.epochs.resize(self.epochs.len().max(tables.networks.len()), 1);
        tables.epochs.clone_from(&self.epochs);
        tables.crossings = self.crossings;
    }
}

impl Inner {
    /// Takes over the connections of an earlier run whose ports are there and still have their addresses. Each is decided
    /// anew on its next packet. Before the first plane is published. With an uplink there is room for those that cross.
    pub(super) fn adopt(&self, state: &mut State) {
        if state.uplink.is_some() {
            allocate_translations(&self.connections);
        }
        if std::mem::replace(&mut state.adopted, true) {
            return;
        }
        let vnis: std::collections::HashMap<u32, NetworkId> =
            state.networks.values().map(|network| (network.network.vni, network.id)).collect();
        let ports: std::collections::HashMap<u32, _> =
            state.ports.values().map(|port| (port.id().0, Arc::clone(port.port()))).collect();
        self.adopt_mappings(state);
        let outside = state.uplink.as_ref().map(|uplink| uplink.port().id.0);
        // Whose an attached address is the next packet finds out, as for every connection that crosses.
        let knows = |slot: u32, vni: u32| {
            Some(slot) == outside || ports.get(&slot).is_some_and(|port| vnis.get(&vni) == Some(&port.network))
        };
        let owns = |slot: u32, vni: u32, address: u128| {
            ports.get(&slot).is_some_and(|port| vnis.get(&vni) == Some(&port.network) && port.owns(address))
        };
        let claim = |entry: &Entry| {
            let right = match &entry.translation {
                None => {
                    owns(entry.in_port, entry.vni, entry.key.src()) && owns(entry.out_port, entry.vni, entry.key.dst())
                }
                Some(translation) => {
                    knows(entry.in_port, entry.vni)
                        && knows(entry.out_port, translation.vni)
                        && self.hold_again(&state.pools, outside, entry)
                }
            };
            if right { Claim::Keep } else { Claim::Forget }
        };
        let adopted = self.connections.adopt(&state.timeouts, self.clock.seconds(Instant::now()), claim);
        if adopted.kept + adopted.forgotten > 0 {
            tracing::info!(kept = adopted.kept, forgotten = adopted.forgotten, "connections of the last run");
        }
        if adopted.kept > 0 {
            self.await_guests(state);
        }
        for (_, slot) in std::mem::take(&mut state.remembered) {
            self.connections.set_port_id(slot, 0);
            state.port_ids.give_back(slot);
        }
    }

    /// Shares the table out among the ports that there are.
    pub(super) fn share_connections(&self, state: &State) {
        let internal = state.networks.values().map(|network| &network.port);
        let limits = state.ports.values().chain(internal).map(|port| (port.id().0, port.flows_max()));
        // What begins outside counts for the port that it is for.
        self.connections.share(limits);
    }

    /// Ends the connections of ports that were removed. No worker's plane knows the ports any more.
    pub(super) fn forget_connections_of(&self, gone: &[PortId]) {
        if gone.is_empty() {
            return;
        }
        let gone: HashSet<u32> = gone.iter().map(|port| port.0).collect();
        for entry in self.connections.entries() {
            if gone.contains(&entry.in_port) || gone.contains(&entry.out_port) {
                self.connections.remove(entry.index, entry.generation, Ending::Gone);
            }
        }
    }

    /// Ends the fragments that a removed port left waiting. Workers have let go of it, so its counters are ours.
    pub(super) fn forget_fragments_of(&self, port: &Port) {
        let Some(count) = port.counters.first() else { return };
        self.fragments.forget(port.id, |reason, frames| {
            count.queued.sub(frames);
            count.dropped.add(reason, frames);
        });
    }

    /// Frees connections whose time has come; `after` is called between shards. Called once a second by the maintenance thread.
    pub(super) fn expire_connections(&self, mut after: impl FnMut()) {
        let timeouts = self.plane.load().tables.timeouts;
        let now = self.clock.seconds(Instant::now());
        self.ended.tick(now);
        for shard in 0..Connections::shards() {
            while self.connections.expire(shard, &timeouts, now, EXPIRE_BUDGET) == EXPIRE_BUDGET {}
            after();
        }
    }
}

/// What policy sees of a port.
pub(super) fn endpoint(port: &Port, spec: &super::PortSpec) -> Endpoint {
    Endpoint {
        id: port.id,
        network: port.network,
        namespace: spec.namespace.clone(),
        name: spec.name.clone(),
        labels: spec.labels.clone(),
        named_ports: spec.named_ports.clone(),
    }
}
