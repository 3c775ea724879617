//! What workers are told: a plane is built from what exists, or made of the last one where only a part changed, and its pointer is swapped.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hostweave_switch::tables::{AddressKey, AddressTable, Port, PortId, Tables};

use super::mailbox::Message;
use super::plane::{self, Plane};
use super::spec::Established;
use super::wanted::PortChanges;
use super::{Inner, State};
use crate::worker::Shared;

/// How long control waits for workers to take over a plane before it acknowledges it all the same: a worker that the kernel
/// gives no time to for that long passes no packets either.
const TAKE_OVER_LIMIT: Duration = Duration::from_secs(2);

/// The addresses of a port, and its id.
pub(super) fn addresses_of(port: &Port) -> impl Iterator<Item = (AddressKey, PortId)> {
    let v4 = port.v4.iter().map(|address| AddressKey::v4(port.network, *address));
    v4.chain(port.v6.iter().map(|address| AddressKey::v6(port.network, *address))).map(|key| (key, port.id))
}

impl State {
    /// Writes what is said of connections and local services of the whole host.
    fn settings(&self, tables: &mut Tables) {
        tables.revision = self.revision;
        tables.timeouts = self.timeouts;
        tables.loose_tcp = self.loose_tcp;
        tables.local = self.local;
        tables.keep_established = self.established == Established::Keep;
    }
}

impl Inner {
    /// Builds a plane from what exists, swaps the pointer and tells the workers.
    pub(super) fn publish(&self, state: &mut State) {
        state.revision += 1;
        let mut tables = Tables::default();
        state.settings(&mut tables);
        let (mut outputs, mut sources) = (Vec::new(), vec![Vec::new(); self.workers.len()]);
        let mut addresses = AddressTable::default();
        for runtime in state.networks.values() {
            let index = usize::from(runtime.id.0);
            if tables.networks.len() <= index {
                tables.networks.resize(index + 1, None);
            }
            tables.networks[index] = Some(Arc::clone(&runtime.network));
        }
        let internal = || state.networks.values().map(|network| &network.port);
        for runtime in state.ports.values().chain(internal()) {
            let port = runtime.port();
            let index = port.id.0 as usize;
            outputs.resize(outputs.len().max(index + 1), None);
            addresses.extend(addresses_of(port));
            outputs[index] = runtime.output().cloned();
            for (key, source) in runtime.sources() {
                sources[plane::owner(key.port, usize::from(key.pair), self.workers.len())].push((*key, source.clone()));
            }
        }
        tables.set_ports(state.ports.values().chain(internal()).map(|runtime| Arc::clone(runtime.port())));
        tables.addresses = Arc::new(addresses);
        if let Some(uplink) = &state.uplink {
            uplink.add_to(&mut tables, &mut outputs, &mut sources);
        }
        let (outputs, sources) = (outputs.into(), sources.into_iter().map(Arc::from).collect());
        self.swap(state, Plane { tables, outputs, sources, ..Plane::default() });
    }

    /// Publishes policies and settings that changed, with networks and ports as they are: the most frequent change, and the
    /// one that must be fast.
    pub(super) fn publish_policy(&self, state: &mut State) {
        state.revision += 1;
        let mut plane = Plane::clone(&self.plane.load());
        state.settings(&mut plane.tables);
        self.swap(state, plane);
    }

    /// Publishes ports that changed, and policies, Services and pools, with everything else as it is: the ports have the same addresses and
    /// attachments.
    pub(super) fn publish_ports(&self, state: &mut State, changes: &PortChanges<'_>) {
        state.revision += 1;
        let mut plane = Plane::clone(&self.plane.load());
        state.settings(&mut plane.tables);
        let changed = changes.come.iter().filter_map(|spec| state.ports.get(&spec.full_name()));
        plane.tables.set_ports(changed.map(|runtime| Arc::clone(runtime.port())));
        self.swap(state, plane);
    }

    /// Publishes Services that changed, with everything else as it is: backends come and go more often than policies.
    pub(super) fn publish_services(&self, state: &mut State) {
        state.revision += 1;
        let mut plane = Plane::clone(&self.plane.load());
        plane.tables.revision = state.revision;
        plane.tables.crossings = state.crossings;
        plane.services = Arc::clone(&state.services);
        self.hand_over(state, plane);
    }

    /// Gives a plane its epochs and policies, swaps the pointer and tells the workers.
    fn swap(&self, state: &mut State, mut plane: Plane) {
        state.epochs_of(&mut plane.tables, &self.plane.load().tables);
        plane.policy = Arc::clone(&state.policy);
        plane.pools = Arc::clone(&state.pools);
        plane.services = Arc::clone(&state.services);
        plane.world = Arc::clone(&state.world);
        plane.policy_revision = state.policy_revision;
        self.hand_over(state, plane);
    }

    /// Swaps the pointer and tells the workers.
    fn hand_over(&self, state: &mut State, plane: Plane) {
        state.retired.push(self.plane.swap(Arc::new(plane)));
        for worker in &self.workers {
            worker.mailbox.send(Message::PlaneChanged);
        }
        state.purge();
    }

    /// What is acknowledged holds: waits until no worker looks at a plane before this one, so that no packet that is sent
    /// from then on meets the old tables.
    pub(super) fn wait_until_in_force(&self, revision: u64) {
        let end = Instant::now() + TAKE_OVER_LIMIT;
        let lags = |worker: &Arc<Shared>| worker.revision.load(Ordering::Acquire) < revision;
        while self.workers.iter().any(lags) && Instant::now() < end {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}
