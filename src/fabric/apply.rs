//! What control asks for is made so: everything, or where little has changed that much.
//!
//! # Theory of operation
//!
//! Control asks for everything each time. What is the same as last time is the same pointer, so what changed is found without looking into the
//! rest ([`Wanted`](super::wanted)). Policies and Services alone, or a few ports beside them, are taken over by themselves; whatever else
//! changed, or is doubtful about ports, goes the long way, which compares and builds all.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::bail;
use hostweave_switch::limits::PORTS_MAX;
use hostweave_switch::tables::{AddressKey, PortId};
use uuid::Uuid;

use super::check::check;
use super::plane::Plane;
use super::port::PortRuntime;
use super::spec::{Desired, PortSpec};
use super::uplink::Attended;
use super::wanted::{PortChanges, Wanted};
use super::{Fabric, Inner, State};

impl Fabric {
    /// Makes the running state equal to `desired`. What did not change goes on undisturbed.
    ///
    /// A port whose device or socket cannot be set up now does not fail the call: it is reported as
    /// [`AttachFailed`](super::spec::FabricEvent::AttachFailed) and tried again every second.
    ///
    /// # Errors
    /// When `desired` contradicts itself or a limit of the host is reached; nothing has changed then.
    pub fn apply(&self, desired: &Desired) -> anyhow::Result<()> {
        let inner = &self.inner;
        let mut state = inner.lock();
        if state.stopping {
            bail!("the daemon is shutting down");
        }
        if state.asks_the_same(desired) {
            if !state.wanted.as_ref().is_some_and(|wanted| wanted.has_addresses_of(&desired.services)) {
                check(desired)?;
            }
            state.take_settings(desired);
            inner.update_services(&mut state, desired);
            let update = state.compile(&desired.policy);
            state.bump(&update);
            inner.publish_policy(&mut state);
            inner.wait_until_in_force(state.revision);
            inner.dns.update_spec(desired);
            inner.metadata.update_spec(desired);
            inner.external_dns.update(desired.external_dns.as_ref());
            state.wanted = Some(Wanted::of(desired));
            return Ok(());
        }
        if inner.apply_ports(&mut state, desired)? {
            return Ok(());
        }
        check(desired)?;
        inner.check_outside(&state, desired)?;
        // Before anything has changed.
        inner.prepare_pools(&desired.nat_pools)?;
        state.take_settings(desired);
        inner.metadata.withdraw(desired);
        let known = state.slots();
        let changed = inner.update_networks(&mut state, &desired.networks);
        let gone = inner.remove_ports(&mut state, &desired.ports);
        let lost = state.lost_of(known, &desired.ports);
        inner.part_with(&mut state, gone, lost, |name| desired.ports.iter().any(|spec| spec.full_name() == name));
        for spec in &desired.ports {
            inner.update_port(&mut state, spec)?;
        }
        Inner::look_at_ports(&mut state);
        inner.update_services(&mut state, desired);
        let retired = inner.update_uplink(&mut state, desired);
        state.pools = inner.compile_pools(&state, &desired.nat_pools)?;
        let attended = inner.attend_uplink(&mut state, &[], &[]);
        let update = state.compile(&desired.policy);
        state.bump(&update);
        inner.adopt(&mut state);
        inner.share_connections(&state);
        inner.publish(&mut state);
        inner.wait_until_in_force(state.revision);
        inner.forget_connections_of(&retired.iter().map(|uplink| uplink.port().id).collect::<Vec<_>>());
        inner.dns.update(desired);
        inner.metadata.update(desired);
        inner.external_dns.update(desired.external_dns.as_ref());
        inner.finish_attending(&mut state, Attended { changed: false, ..attended });
        retired.into_iter().for_each(|uplink| inner.close_uplink(uplink));
        state.wanted = Some(Wanted::of(desired));
        for port in state.ports.values() {
            port.open_gate();
            // RFC 4861 §6.2.4: a router tells of changes at once.
            if changed.contains(&port.port().network) {
                inner.advertise(port);
            }
        }
        Ok(())
    }
}

impl State {
    /// Takes over what is said of connections and local services of the whole host.
    fn take_settings(&mut self, desired: &Desired) {
        self.timeouts = desired.timeouts;
        self.loose_tcp = desired.loose_tcp;
        self.established = desired.established;
        self.local = desired.local;
    }
}

impl Inner {
    /// [`Fabric::apply`] where a few ports, policies and Services are all that has changed. Returns whether it is so, and done.
    fn apply_ports(self: &Arc<Self>, state: &mut State, desired: &Desired) -> anyhow::Result<bool> {
        let Some(changes) = state.asks_for_other_ports(desired) else { return Ok(false) };
        if !state.can_take(&self.plane.load(), &changes, desired) {
            return Ok(false);
        }
        let others_served = state.outside.as_ref().is_none_or(|outside| outside.nat_pools != desired.nat_pools);
        if others_served {
            self.prepare_pools(&desired.nat_pools)?;
        }
        state.take_settings(desired);
        if changes.places {
            self.metadata.withdraw(desired);
        }
        let gone = state.take_out(&changes);
        // Pools know ports by their slots: one with another attachment has another.
        let others_served = others_served || !gone.is_empty();
        let come = |name: &str| changes.come.iter().any(|spec| spec.full_name() == name);
        let uids_gone = changes.uids_gone();
        let slots = gone.iter().filter_map(|port| Some((port.uid()?, port.id().0)));
        let lost = slots.filter(|(uid, _)| uids_gone.contains(uid)).collect();
        self.part_with(state, gone, lost, come);
        for spec in &changes.come {
            self.update_port(state, spec)?;
        }
        Self::look_at(state, &changes);
        self.update_services(state, desired);
        if others_served {
            state.pools = self.compile_pools(state, &desired.nat_pools)?;
            state.outside.iter_mut().for_each(|outside| outside.nat_pools.clone_from(&desired.nat_pools));
        }
        let update = state.compile(&desired.policy);
        state.bump(&update);
        if changes.places || changes.limits {
            self.share_connections(state);
        }
        match changes.places {
            true => self.publish(state),
            false => self.publish_ports(state, &changes),
        }
        self.wait_until_in_force(state.revision);
        match changes.places {
            true => self.dns.update(desired),
            false => self.dns.update_spec(desired),
        }
        self.metadata.update_ports(desired, changes.places);
        self.external_dns.update(desired.external_dns.as_ref());
        state.wanted = Some(Wanted::of(desired));
        let opened = changes.come.iter().filter_map(|spec| state.ports.get(&spec.full_name()));
        opened.for_each(PortRuntime::open_gate);
        Ok(true)
    }

    /// Has workers let go of ports that were taken out, detaches them, and ends their connections; of those that are `lost`, by their uids,
    /// connections and mappings. At once: if anything failed before, nobody would know of them any more. Whether a name `comes` again
    /// is asked for.
    fn part_with(
        &self,
        state: &mut State,
        gone: Vec<PortRuntime>,
        lost: HashMap<Uuid, u32>,
        comes: impl Fn(&str) -> bool,
    ) {
        if gone.is_empty() && lost.is_empty() {
            return;
        }
        self.publish(state);
        state.wait_for_workers();
        self.wait_until_in_force(state.revision);
        let ids: Vec<PortId> = gone.iter().map(PortRuntime::id).chain(lost.values().copied().map(PortId)).collect();
        for mut port in gone {
            self.forget_fragments_of(port.port());
            port.detach(&self.config, !comes(port.name()));
        }
        self.forget_connections_of(&ids);
        self.forget_mappings_of(&lost.into_keys().collect());
    }

    /// Looks at ports that changed: whether they run.
    fn look_at(state: &mut State, changes: &PortChanges<'_>) {
        let State { ports, balance, .. } = state;
        let gone = changes.uids_gone();
        if !gone.is_empty() {
            balance.retain_ports(|port| !gone.contains(port));
        }
        let now = Instant::now();
        for (spec, port) in changes.come.iter().filter_map(|spec| Some((spec, ports.get(&spec.full_name())?))) {
            balance.set_running(spec.uid, port.runs(), now);
        }
    }
}

impl State {
    /// Whether networks and ports are those that were asked for last: then policies are all that may have changed.
    fn asks_the_same(&self, desired: &Desired) -> bool {
        let (Some(wanted), Some(outside)) = (&self.wanted, &self.outside) else { return false };
        wanted.is_of(desired)
            && outside.is_of(desired)
            && (wanted.has_addresses_of(&desired.services) || outside.has_services_of(desired))
    }

    /// The ports that are others than were asked for last, if they are few and nothing else has changed but policies, Services and whom NAT
    /// pools serve.
    fn asks_for_other_ports<'a>(&self, desired: &'a Desired) -> Option<PortChanges<'a>> {
        let (wanted, outside) = (self.wanted.as_ref()?, self.outside.as_ref()?);
        let same = wanted.has_networks_of(desired)
            && outside.has_places_of(desired)
            && wanted.has_addresses_of(&desired.services);
        same.then(|| wanted.other_ports(desired)).flatten()
    }

    /// Whether these changes contradict nothing, and mean nothing to anybody else: no address changes from one owner to another, and none
    /// at the uplink sits on any of the ports.
    fn can_take(&self, plane: &Plane, changes: &PortChanges<'_>, desired: &Desired) -> bool {
        let attached: HashSet<Uuid> = desired.attached.iter().map(|attach| attach.port).collect();
        let PortChanges { gone, come, .. } = changes;
        let is_free = |spec: &&Arc<PortSpec>| attached.is_empty() || !attached.contains(&spec.uid);
        if !gone.iter().chain(come.iter().copied()).all(|spec| is_free(&spec)) {
            return false;
        }
        let room = desired.ports.len() + desired.networks.len() + usize::from(desired.uplink.is_some()) <= PORTS_MAX;
        let mut names = HashSet::new();
        let mut owners = HashSet::new();
        let mut alone = |spec: &&Arc<PortSpec>| {
            let Some(network) = self.networks.get(&spec.network) else { return false };
            let name = spec.full_name();
            let own = self.ports.get(&name);
            let is_nobodys = |address: IpAddr| {
                let key = AddressKey::new(network.id, address);
                let owned = plane.tables.owner(key).is_some_and(|id| own.is_none_or(|port| port.id() != id));
                !owned && !self.services.has_address(network.network.vni, key.address)
            };
            let mut addresses = spec.addresses();
            let free = addresses.all(|address| owners.insert((network.id, address)) && is_nobodys(address));
            let known =
                own.is_none_or(|_| gone.iter().any(|old| (&old.namespace, &old.name) == (&spec.namespace, &spec.name)));
            free && known && names.insert(name)
        };
        room && come.iter().copied().all(|spec| alone(&spec))
    }

    /// Slots of ports that were `known`, and of the host's own in networks that were, and are gone for good: they do not only move.
    fn lost_of(&self, mut known: HashMap<Uuid, u32>, desired: &[Arc<PortSpec>]) -> HashMap<Uuid, u32> {
        let there = self.slots();
        known.retain(|uid, _| !there.contains_key(uid));
        if !known.is_empty() {
            desired.iter().for_each(|spec| _ = known.remove(&spec.uid));
        }
        known
    }

    /// Takes out the ports that are no longer wanted, or wanted with another backend or network.
    fn take_out(&mut self, changes: &PortChanges<'_>) -> Vec<PortRuntime> {
        let mut out = Vec::new();
        for old in &changes.gone {
            let same = |new: &&&Arc<PortSpec>| (&old.namespace, &old.name) == (&new.namespace, &new.name);
            let new = changes.come.iter().find(same);
            let name = old.full_name();
            let stays = |port: &PortRuntime| new.is_some_and(|new| port.may_become(new));
            if self.ports.get(&name).is_some_and(|port| !stays(port)) {
                out.extend(self.ports.remove(&name));
            }
        }
        for port in &out {
            self.port_ids.give_back(port.id().0);
            self.departed.push(Arc::clone(port.port()));
        }
        out
    }
}
