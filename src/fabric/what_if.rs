//! Questions to the packet path that change nothing: the tables as they are, as a draft would make them, and what a draft
//! would mean for the connections that there are.
//!
//! A draft is compiled whole and by itself, and never published. Networks and ports that stay keep their numbers, so that the
//! live connections can be judged by the draft's tables; new ones get numbers that nobody has.

use std::collections::{HashMap, HashSet};
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use hostweave_nat::service::Services;
use hostweave_nat::{Nat, Pools};
use hostweave_policy::compile::Compiler;
use hostweave_policy::model::{Direction, World};
use hostweave_policy::table::Basis;
use hostweave_switch::connection::{Entry as Connection, Translation};
use hostweave_switch::flow::{FlowKey, NO_QUEUE};
use hostweave_switch::stage::{DropReason, Verdict};
use hostweave_switch::tables::{Network, NetworkId, Port, PortId, Tables, Uplink};

use super::balance::known::Facts;
use super::balance::left::Was;
use super::nat::{POOLS, pool_spec};
use super::plane::Plane;
use super::port::{internal_port, port_of};
use super::publish::addresses_of;
use super::spec::{Desired, Established, internal_uid};
use super::uplink::owned::{Outside, routed};
use super::uplink::settle::Lost;
use super::{Fabric, State, balance, check, connections};
use crate::connect::{self, Denied};
use crate::datapath::Context;
use crate::observe::flow_event::FlowEventKind;
use crate::observe::flow_log::Entry;
use crate::observe::recorder::{Detail, Recorder};
use crate::observe::synthetic::Tuple;
use crate::observe::trace::{Request, Scene, basis_text, denied_text, port_name, walk};

/// Broken connections that are named; more are only counted.
const NAMED_MAX: usize = 20;

/// Tables and what their policies were compiled from.
#[derive(Clone)]
pub struct Picture {
    /// Tables and compiled policies; of a draft, without sources and outputs.
    pub plane: Arc<Plane>,
    /// What the policies were compiled from.
    pub world: Arc<World>,
}

impl Picture {
    /// The tables of a host that has nothing but what `desired` says.
    ///
    /// # Errors
    /// `desired` contradicts itself.
    pub fn of(desired: &Desired) -> anyhow::Result<Self> {
        Known::default().draft(desired, None)
    }
}

/// What a draft would mean for the traffic that there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Impact {
    /// Live connections.
    pub connections: u64,
    /// Those that are allowed now and that the draft would end.
    pub broken: Affected,
    /// Denied flows that were asked about.
    pub denied: u64,
    /// Those that the draft would allow.
    pub admitted: Affected,
}

/// How many, and the first of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Affected {
    /// How many.
    pub count: u64,
    /// The first.
    pub named: Vec<AffectedFlow>,
}

/// A connection or denied flow that the draft treats otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AffectedFlow {
    /// Tuple of the packet that began it.
    pub key: FlowKey,
    /// The port that began it.
    pub from: String,
    /// The other one.
    pub to: String,
    /// What decides: the rule, its file and line, or why there is no way.
    pub why: String,
}

/// A flow that was denied and may be judged again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DeniedFlow {
    /// Its tuple.
    pub key: FlowKey,
    /// Its network.
    pub vni: u32,
    /// Who sent it.
    pub from: PortId,
    /// Who would have received it; [`PortId::NONE`] if that is not known.
    pub to: PortId,
}

impl Affected {
    fn add(&mut self, flow: impl FnOnce() -> AffectedFlow) {
        self.count += 1;
        if self.named.len() < NAMED_MAX {
            self.named.push(flow());
        }
    }
}

impl Fabric {
    /// The tables as they are.
    pub fn picture(&self) -> Picture {
        // Under the lock: the plane and the world that its policies were compiled from belong together.
        let state = self.inner.lock();
        Picture { plane: self.inner.plane.load_full(), world: Arc::clone(&state.world) }
    }

    /// The tables as `desired` would make them. Nothing is published.
    ///
    /// # Errors
    /// `desired` contradicts itself or a limit of the host.
    pub fn draft(&self, desired: &Desired) -> anyhow::Result<Picture> {
        check(desired)?;
        let known = Known::of(&self.inner.lock());
        known.draft(desired, Some(&self.inner.nat))
    }

    /// A picture beside the live connections, now.
    pub fn scene<'a>(&'a self, picture: &'a Picture) -> Scene<'a> {
        Scene {
            plane: &picture.plane,
            world: &picture.world,
            connections: &self.inner.connections,
            nat: &self.inner.nat,
            now: self.inner.clock.seconds(Instant::now()),
            unchosen: Some(self),
        }
    }

    /// What policy denied lately, as far as the flow log remembers: each once, whatever its source port.
    pub fn denied_lately(&self) -> Vec<DeniedFlow> {
        let mut known = HashSet::new();
        let mut denied = Vec::new();
        for entry in self.inner.flow_log.entries() {
            let Entry::Flow(record) = &*entry else { continue };
            let event = &record.event;
            let by_policy = matches!(event.kind, FlowEventKind::Dropped { reason: DropReason::PolicyDenied, .. });
            if !by_policy {
                continue;
            }
            let key = event.key;
            if known.insert((key.src(), key.dst(), key.proto(), key.dst_port(), event.vni)) {
                denied.push(DeniedFlow { key, vni: event.vni, from: event.from, to: event.to });
            }
        }
        denied
    }

    /// What `draft` would mean for the live connections, and for flows that were denied.
    pub fn impact(&self, draft: &Picture, denied: &[DeniedFlow]) -> Impact {
        let live = self.picture();
        let (before, after) = (Judge::new(&live.plane), Judge::new(&draft.plane));
        let mut impact = Impact { denied: denied.len() as u64, ..Impact::default() };
        for entry in self.inner.connections.entries() {
            impact.connections += 1;
            let ports = [entry.in_port, entry.out_port];
            let judge = |judge: &Judge<'_>| judge.judge(&entry.key, entry.vni, ports, entry.translation.as_ref());
            let Err(why) = judge(&after) else { continue };
            // What ends anyway is not this draft's doing.
            if judge(&before).is_err() {
                continue;
            }
            impact.broken.add(|| affected(&live.plane.tables, &entry, after.text(&why)));
        }
        // The table has no order of its own.
        impact.broken.named.sort_by_key(|flow| (flow.from.clone(), flow.to.clone(), flow.key.src(), flow.key.dst()));
        impact.admitted = newly_admitted(&self.scene(&live), &self.scene(draft), denied);
        impact
    }
}

/// Which denied flows a draft would let pass, as `trace` finds out: where they go is decided anew, by either's tables.
pub fn newly_admitted(live: &Scene<'_>, draft: &Scene<'_>, denied: &[DeniedFlow]) -> Affected {
    let mut admitted = Affected::default();
    for flow in denied {
        let passes = |scene: &Scene<'_>| {
            let network = scene.plane.tables.network(scene.plane.tables.port(flow.from)?.network)?;
            let request = Request { from: flow.from, tuple: Tuple::of(&flow.key)? };
            let mut allowed = Allowed::default();
            let verdict = walk(scene, &request, &mut allowed).ok()?;
            (network.vni == flow.vni && verdict == Verdict::Forward).then_some(allowed)
        };
        let Some(allowed) = passes(draft).filter(|_| passes(live).is_none()) else { continue };
        let to = match flow.to {
            PortId::NONE => Ipv6Addr::from(flow.key.dst()).to_canonical().to_string(),
            to => port_name(&live.plane.tables, to),
        };
        let from = port_name(&live.plane.tables, flow.from);
        let [egress, ingress] = allowed.0.map(|basis| basis_text(&draft.plane.policy, basis.to_u32()));
        let why = format!("egress: {egress}; ingress: {ingress}");
        admitted.add(|| AffectedFlow { key: flow.key, from, to, why });
    }
    admitted
}

/// What let a packet pass: the sender's policy, and the receiver's.
struct Allowed([Basis; 2]);

impl Default for Allowed {
    fn default() -> Self {
        // Sides that are the host's own are not asked.
        Self([Basis::Host; 2])
    }
}

impl Recorder for Allowed {
    const MASKED: bool = true;

    fn stage(&mut self, _name: &'static str, detail: Detail) {
        match detail {
            Detail::BuiltIn(rule) => self.0 = [Basis::BuiltIn(rule); 2],
            Detail::Policy(flow, decision) => {
                self.0[usize::from(flow.direction == Direction::Ingress)] = decision.basis
            }
            _ => {}
        }
    }
}

fn affected(tables: &Tables, entry: &Connection, why: String) -> AffectedFlow {
    let [from, to] = [entry.in_port, entry.out_port].map(|port| port_name(tables, PortId(port)));
    AffectedFlow { key: entry.key, from, to, why }
}

/// Asks one plane about tuples.
struct Judge<'a> {
    plane: &'a Plane,
    networks: HashMap<u32, NetworkId>,
}

/// Why a connection would end.
struct Refused {
    reason: DropReason,
    denied: Option<Denied>,
    ports: [u32; 2],
}

impl<'a> Judge<'a> {
    fn new(plane: &'a Plane) -> Self {
        let networks = (0..).zip(&plane.tables.networks);
        let networks = networks.filter_map(|(id, network)| Some((network.as_ref()?.vni, NetworkId(id)))).collect();
        Self { plane, networks }
    }

    fn context(&self, vni: u32, from: u32) -> Option<Context<'a>> {
        let id = *self.networks.get(&vni)?;
        let (tables, port) = (&self.plane.tables, self.plane.tables.port(PortId(from))?);
        (port.network == id).then(|| Some(Context::new(self.plane, port, tables.network(id)?, NO_QUEUE, 0)))?
    }

    /// Of a connection, which the setting `established: keep` protects from policy.
    fn judge(
        &self,
        key: &FlowKey,
        vni: u32,
        ports: [u32; 2],
        translation: Option<&Translation>,
    ) -> Result<(), Refused> {
        let mut denied = None;
        let refused = |reason, denied| Refused { reason, denied, ports };
        let ctx = self.context(vni, ports[0]).ok_or_else(|| refused(DropReason::NoRoute, None))?;
        let up = |port: u32| self.plane.tables.port(PortId(port)).is_none_or(|port| port.up);
        if !ports.into_iter().all(up) {
            return Err(refused(DropReason::PortDown, None));
        }
        match connect::anew(&ctx, key, ports, translation, &mut denied) {
            Ok(_) => Ok(()),
            Err(reason) if self.plane.tables.keep_established && by_policy(reason) => Ok(()),
            Err(reason) => Err(refused(reason, denied)),
        }
    }

    fn text(&self, refused: &Refused) -> String {
        let Some(denied) = refused.denied else {
            return match refused.reason {
                DropReason::NoRoute | DropReason::NoConnection => "its ports lose their addresses".to_owned(),
                DropReason::PortDown => "a port is set down".to_owned(),
                reason => reason.name().to_owned(),
            };
        };
        let (word, subject) = match denied.direction {
            Direction::Egress => ("egress", refused.ports[0]),
            Direction::Ingress => ("ingress", refused.ports[1]),
        };
        format!("{word}: {}", denied_text(&self.plane.policy, PortId(subject), denied.direction, denied.decision))
    }
}

fn by_policy(reason: DropReason) -> bool {
    matches!(reason, DropReason::PolicyDenied | DropReason::PolicyPending)
}

/// Numbers that are taken.
#[derive(Default)]
struct Known {
    networks: HashMap<String, (NetworkId, PortId)>,
    ports: HashMap<String, (PortId, Arc<Port>)>,
    /// One in which no live connection was decided.
    epoch: u32,
    /// See [`Tables::crossings`]; likewise.
    crossings: u32,
    /// The uplink as it is, with its network and port.
    uplink: Option<(Uplink, Arc<Network>, Arc<Port>)>,
    /// Addresses that somebody else there has: a draft does not get them back.
    lost: Lost,
    /// What is known of Services' backends.
    facts: Facts,
    known: HashMap<Arc<str>, Was>,
    /// Services as they are: most of their tables are those of the draft.
    services: Arc<Services>,
    /// Identities of the ports' objects: another one of the same name is another port.
    specs: HashMap<String, uuid::Uuid>,
}

impl Known {
    fn of(state: &State) -> Self {
        let networks =
            state.networks.iter().map(|(name, network)| (name.clone(), (network.id, network.port.id()))).collect();
        let ports =
            state.ports.iter().map(|(name, port)| (name.clone(), (port.id(), Arc::clone(port.port())))).collect();
        let specs = state.ports.iter().filter_map(|(name, port)| Some((name.clone(), port.uid()?))).collect();
        // One that no live connection was decided in: each is decided by the draft.
        let epoch = state.epochs.iter().max().map_or(1, |last| last.checked_add(1).unwrap_or(1));
        let crossings = state.crossings.wrapping_add(1);
        let uplink = state.uplink.as_ref().map(|uplink| {
            let (_, network) = uplink.network();
            (uplink.table(), Arc::clone(network), Arc::clone(uplink.port()))
        });
        let lost = state.uplink.as_ref().map(|uplink| uplink.lost_addresses()).unwrap_or_default();
        let (facts, known) = (state.balance.facts().clone(), state.balance.services());
        let services = Arc::clone(&state.services);
        Self { networks, ports, epoch, crossings, specs, uplink, lost, facts, known, services }
    }

    fn draft(&self, desired: &Desired, nat: Option<&Nat>) -> anyhow::Result<Picture> {
        let outside = self.uplink.as_ref().map(|(uplink, ..)| (uplink.network.0, uplink.port.0));
        let internal = self.networks.values().map(|(_, port)| port.0);
        let taken = internal.chain(self.ports.values().map(|(id, _)| id.0)).chain(outside.map(|(_, port)| port));
        let taken: HashSet<u32> = taken.collect();
        let mut free_ports = (0..).filter(|id| !taken.contains(id)).map(PortId);
        let taken = self.networks.values().map(|(id, _)| id.0).chain(outside.map(|(network, _)| network));
        let taken: HashSet<u16> = taken.collect();
        let mut free_networks = (0..).filter(|id| !taken.contains(id)).map(NetworkId);
        let mut tables = Tables {
            timeouts: desired.timeouts,
            loose_tcp: desired.loose_tcp,
            local: desired.local,
            keep_established: desired.established == Established::Keep,
            ..Tables::default()
        };
        let (mut networks, mut ports) = (HashMap::new(), Vec::new());
        let mut slots = Vec::with_capacity(desired.ports.len());
        for wanted in &desired.networks {
            let fresh = || Some((free_networks.next()?, free_ports.next()?));
            let Some((id, port)) = self.networks.get(&wanted.name).copied().or_else(fresh) else { continue };
            let network = Arc::new(Network { internal: port, ..wanted.clone() });
            networks.insert(wanted.name.as_str(), id);
            slots.push((internal_uid(wanted.vni), port.0));
            ports.push(Arc::new(internal_port(port, id, &network, Arc::default())));
            let index = usize::from(id.0);
            tables.networks.resize(tables.networks.len().max(index + 1), None);
            tables.networks[index] = Some(network);
        }
        let mut endpoints = Vec::with_capacity(desired.ports.len());
        for spec in &desired.ports {
            let name = spec.full_name();
            let Some(network) = networks.get(spec.network.as_str()).copied() else { continue };
            let stays =
                |(_, port): &&(PortId, Arc<Port>)| port.network == network && self.specs.get(&name) == Some(&spec.uid);
            let known = self.ports.get(&name).filter(stays).map(|(id, _)| *id);
            let Some(id) = known.or_else(|| free_ports.next()) else { continue };
            let port = Arc::new(port_of(id, network, spec, None, Arc::default()));
            endpoints.push(Arc::new(connections::endpoint(&port, spec)));
            slots.push((spec.uid, id.0));
            ports.push(port);
        }
        tables.set_addresses(ports.iter().flat_map(|port| addresses_of(port)));
        tables.set_ports(ports);
        let policy = &desired.policy;
        let world = World {
            default: policy.default,
            infrastructure: policy.infrastructure,
            namespaces: policy.namespaces.clone(),
            endpoints,
            policies: policy.policies.clone(),
            cluster_policies: policy.cluster_policies.clone(),
        };
        let policy = Compiler::new().update(&world).table;
        let slots: HashMap<uuid::Uuid, u32> = slots.into_iter().collect();
        let lost = desired.uplink.as_ref().map(|spec| self.lost.clone().under(spec)).unwrap_or_default();
        self.add_uplink(&mut tables, desired, &lost);
        let pool = |pool| pool_spec(pool, &lost, |uid| slots.get(&uid).copied());
        let specs: Vec<_> = desired.nat_pools.iter().map(pool).collect();
        let pools = Arc::new(Pools::draft(nat, &specs).context(POOLS)?);
        let frontends = balance::draft(&self.facts, &self.known, &desired.networks, &desired.services);
        let services = Arc::new(Services::compile(&frontends, Some(&self.services)));
        tables.epochs = vec![self.epoch; tables.networks.len()];
        tables.crossings = self.crossings;
        let plane = Plane { tables, policy, pools, services, ..Plane::default() };
        Ok(Picture { plane: Arc::new(plane), world: Arc::new(world) })
    }

    /// The uplink as it is, with what the host would own there. One that is not there yet leads nowhere.
    fn add_uplink(&self, tables: &mut Tables, desired: &Desired, lost: &Lost) {
        let (Some((uplink, network, port)), Some(_)) = (&self.uplink, &desired.uplink) else { return };
        let slots: HashMap<uuid::Uuid, (PortId, &super::PortSpec)> = desired
            .ports
            .iter()
            .filter_map(|spec| {
                let name = spec.full_name();
                let port = tables.ports.iter().flatten().find(|port| port.name == name)?;
                Some((spec.uid, (port.id, &**spec)))
            })
            .collect();
        let [owned, kept] = lost.split(&Outside::of(desired).owners(|uid| slots.get(uid).copied()));
        let networks = (0..).map(NetworkId).zip(&tables.networks);
        let routed = routed(networks.filter_map(|(id, network)| Some((id, &**network.as_ref()?))));
        let public = Uplink::one_to_one(&owned);
        let new = Uplink { owned, kept, public, routed, ..uplink.clone() };
        let index = usize::from(uplink.network.0);
        tables.networks.resize(tables.networks.len().max(index + 1), None);
        tables.networks[index] = Some(Arc::clone(network));
        tables.set_addresses(addresses_of(port));
        tables.set_ports([Arc::clone(port)]);
        tables.uplink = Some(Arc::new(new));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fabric::spec::{Filtering, NatPoolSpec};

    #[test]
    fn what_apply_would_refuse_of_pools_a_draft_refuses_in_the_same_words() {
        let pool = |blocks| NatPoolSpec {
            name: "a".to_owned(),
            addresses: vec!["203.0.113.1".parse().unwrap()],
            draining: Vec::new(),
            ports: Vec::new(),
            hosts: Default::default(),
            block_size: 64,
            blocks,
            filtering: Filtering::default(),
            overload: false,
            limits: Default::default(),
        };
        let draft = |blocks| Picture::of(&Desired { nat_pools: vec![pool(blocks)], ..Desired::default() });
        assert!(draft(1..=64).is_ok());
        let error = format!("{:#}", draft(1..=65).err().unwrap());
        assert_eq!(
            error,
            "setting up the NAT pools: NAT pool a gives a workload 1 to 65 blocks; it must be 1 to 64, the smaller first"
        );
    }
}
