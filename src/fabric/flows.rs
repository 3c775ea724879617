//! From the queues of the workers into the flow log: gives events the names of those that they are about, and the policies
//! that decided.
//!
//! Runs on the maintenance thread and reads the published plane only: neither a worker nor a change ever waits for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use hostweave_nat::service::Lookup;
use hostweave_policy::model::{Direction, Endpoint as PolicyEndpoint};
use hostweave_policy::table::{Basis, RuleId, RuleInfo};
use hostweave_switch::MacAddr;
use hostweave_switch::tables::{AddressKey, NetworkId, OUTSIDE_VNI, PortId, PortKind};
use uuid::Uuid;

use super::Inner;
use super::plane::Plane;
use crate::observe::flow::{Endpoint, LABEL_ORIGIN, LABEL_RULE, Policy};
use crate::observe::flow_event::{FlowEvent, FlowEventKind};
use crate::observe::flow_log::LostAt;
use crate::observe::flow_record::{FlowRecord, Party, Reasons};
use crate::worker::FLOWS_MAX;

/// Events of one worker that are taken before another's turn: what it may leave.
const TAKEN_AT_ONCE: usize = FLOWS_MAX;

/// How often a worker's losses are told at most: each is a record, and a flood must not push everything else out.
const LOST_EVERY: Duration = Duration::from_secs(1);

/// Numbers that Cilium reserves (`pkg/identity`): the host, the world, and how many there are.
const HOST: u32 = 1;
const WORLD: u32 = 2;
const RESERVED: u32 = 256;

/// What the thread knows of names and policies under one plane, and of what was lost.
#[derive(Default)]
pub struct Drain {
    names: Names,
    /// By worker, and last for connections that ended: losses told so far, and when.
    told: Vec<(u64, Option<Instant>)>,
}

impl Drain {
    /// Takes what workers left. Returns whether there was something.
    pub fn run(&mut self, inner: &Inner) -> bool {
        let mut busy = false;
        for (index, worker) in inner.workers.iter().enumerate() {
            let mut events = Vec::new();
            while events.len() < TAKEN_AT_ONCE
                && let Some(event) = worker.flows.pop()
            {
                events.push(event);
            }
            if !events.is_empty() {
                busy = true;
                self.log(inner, events);
            }
            self.lost(inner, LostAt::Worker(index), worker.stats.flows_lost.load(Ordering::Relaxed));
        }
        self.ended(inner) || busy
    }

    /// Takes the connections that ended. Returns whether there was one.
    pub fn ended(&mut self, inner: &Inner) -> bool {
        let events = inner.ended.take();
        let busy = !events.is_empty();
        if busy {
            self.log(inner, events);
        }
        self.lost(inner, LostAt::Ends, inner.ended.lost());
        busy
    }

    /// Says what was lost so far at one place, now and then.
    fn lost(&mut self, inner: &Inner, place: LostAt, lost: u64) {
        self.told.resize(inner.workers.len() + 1, (0, None));
        let index = if let LostAt::Worker(index) = place { index } else { inner.workers.len() };
        let (told, at) = &mut self.told[index];
        if lost != *told && at.is_none_or(|at| at.elapsed() >= LOST_EVERY) {
            inner.flow_log.add_lost(place, lost.wrapping_sub(*told));
            (*told, *at) = (lost, Some(Instant::now()));
        }
    }

    /// Learns the names of now, so that those of ports which go are still known when their connections end.
    pub fn follow(&mut self, inner: &Inner) {
        self.names.follow(&inner.plane.load());
    }

    /// Adds events to the log, in their order.
    pub fn log(&mut self, inner: &Inner, events: Vec<FlowEvent>) {
        let plane = inner.plane.load();
        self.names.follow(&plane);
        // The workers' clock has seconds only; most events are taken in the moment they happen.
        let (now, seconds) = (SystemTime::now(), inner.clock.seconds(Instant::now()));
        let names = &mut self.names;
        inner.flow_log.add(events.into_iter().map(|event| {
            let late = u64::from(seconds.saturating_sub(event.at));
            let time = if late > 1 { now - Duration::from_secs(late) } else { now };
            names.record(&plane, event, time)
        }));
    }
}

/// Names under one plane.
#[derive(Default)]
struct Names {
    revision: u64,
    endpoints: HashMap<PortId, Arc<PolicyEndpoint>>,
    parties: HashMap<PortId, Arc<Party>>,
    /// Ports of earlier planes whose connections may still end. Numbers are used again late.
    gone: HashMap<PortId, Arc<Party>>,
    /// MAC addresses and identities, for those that go.
    known: HashMap<PortId, (MacAddr, u32)>,
    rules: HashMap<RuleId, Arc<Policy>>,
    world: Option<Arc<Party>>,
}

impl Names {
    /// Forgets what another plane said.
    fn follow(&mut self, plane: &Plane) {
        if self.revision == plane.tables.revision {
            return;
        }
        let endpoints: HashMap<PortId, Arc<PolicyEndpoint>> =
            plane.world.endpoints.iter().map(|endpoint| (endpoint.id, Arc::clone(endpoint))).collect();
        let mut gone = std::mem::take(&mut self.gone);
        gone.retain(|id, _| plane.tables.port(*id).is_none());
        for (id, endpoint) in self.endpoints.drain().filter(|(id, _)| plane.tables.port(*id).is_none()) {
            let (mac, identity) = self.known.get(&id).copied().unzip();
            gone.insert(id, Arc::new(Party::workload(&endpoint, identity.unwrap_or(0), mac)));
        }
        let ports = plane.tables.ports.iter().flatten();
        let known = ports.map(|port| (port.id, (port.mac, identity(plane, port.id)))).collect();
        *self = Self { revision: plane.tables.revision, endpoints, gone, known, ..Self::default() };
    }

    fn record(&mut self, plane: &Plane, event: FlowEvent, time: SystemTime) -> FlowRecord {
        let network = plane.tables.port(event.from).map(|port| port.network);
        let source = self.party(plane, Some(event.from));
        let to = Some(event.to).filter(|to| *to != PortId::NONE);
        let to = to.or_else(|| owner(plane, network?, event.key.dst()));
        let destination = self.party(plane, to);
        let reasons = self.reasons(plane, &event, to);
        let service = service(plane, &event);
        FlowRecord { time, id: Uuid::nil(), event, source, destination, service, reasons }
    }

    fn party(&mut self, plane: &Plane, port: Option<PortId>) -> Arc<Party> {
        if let Some(party) = port.and_then(|id| self.gone.get(&id)) {
            return Arc::clone(party);
        }
        let known = port.and_then(|id| plane.tables.port(id));
        let Some(port) = known else {
            let world = self.world.get_or_insert_with(|| Arc::new(reserved(WORLD, "reserved:world")));
            return Arc::clone(world);
        };
        if let Some(party) = self.parties.get(&port.id) {
            return Arc::clone(party);
        }
        let endpoint = self.endpoints.get(&port.id);
        let party = Arc::new(match endpoint {
            Some(endpoint) if port.kind != PortKind::Internal => {
                Party::workload(endpoint, identity(plane, port.id), Some(port.mac))
            }
            // Who is behind the uplink is not of this host.
            _ if port.kind == PortKind::Uplink => {
                Party { port: Some(port.name.clone()), ..reserved(WORLD, "reserved:world") }
            }
            _ => Party { mac: Some(port.mac), port: Some(port.name.clone()), ..reserved(HOST, "reserved:host") },
        });
        self.parties.insert(port.id, Arc::clone(&party));
        party
    }

    fn reasons(&mut self, plane: &Plane, event: &FlowEvent, to: Option<PortId>) -> Reasons {
        let mut reasons = Reasons::default();
        match event.kind {
            FlowEventKind::Opened { egress, ingress, audit } | FlowEventKind::Audited { egress, ingress, audit } => {
                reasons.allowed = [egress, ingress].map(|basis| self.allowing(plane, basis));
                for (denied, rule) in reasons.denied.iter_mut().zip(audit) {
                    denied.extend(rule.and_then(|rule| self.rule(plane, rule)));
                }
            }
            FlowEventKind::Dropped { denied: Some((direction, basis)), .. } => {
                let subject = if direction == Direction::Egress { Some(event.from) } else { to };
                reasons.denied[index(direction)] = self.denying(plane, basis, subject, direction);
            }
            FlowEventKind::Dropped { .. } | FlowEventKind::Closed(_) | FlowEventKind::Sample => {}
        }
        reasons
    }

    fn allowing(&mut self, plane: &Plane, basis: Basis) -> Vec<Arc<Policy>> {
        match basis {
            Basis::Rule(id) => self.rule(plane, id).into_iter().collect(),
            Basis::BuiltIn(rule) => vec![Arc::new(of_host(plane, rule.name()))],
            _ => Vec::new(),
        }
    }

    fn denying(
        &mut self,
        plane: &Plane,
        basis: Basis,
        subject: Option<PortId>,
        direction: Direction,
    ) -> Vec<Arc<Policy>> {
        match (basis, subject) {
            (Basis::Rule(id), _) => self.rule(plane, id).into_iter().collect(),
            (Basis::HostDefault, _) => vec![Arc::new(of_host(plane, "default-deny"))],
            (Basis::NoRule, Some(subject)) => {
                let isolating = plane.policy.isolating(subject, direction);
                let one = |policy: &Arc<hostweave_policy::table::PolicyInfo>| {
                    let labels = vec![format!("{LABEL_ORIGIN}{}", policy.origin)];
                    let namespace = policy.name.namespace.clone().unwrap_or_default();
                    let (name, revision) = (policy.name.name.clone(), plane.policy_revision.to_string());
                    Arc::new(Policy { name, namespace, labels, revision, kind: "NetworkPolicy".into() })
                };
                isolating.map(one).collect()
            }
            _ => Vec::new(),
        }
    }

    /// `None` if its policy has changed since: then nobody knows any more what it said.
    fn rule(&mut self, plane: &Plane, id: RuleId) -> Option<Arc<Policy>> {
        if let Some(policy) = self.rules.get(&id) {
            return Some(Arc::clone(policy));
        }
        let policy = Arc::new(policy(plane.policy.rule(id)?, plane.policy_revision));
        self.rules.insert(id, Arc::clone(&policy));
        Some(policy)
    }
}

/// Hubble's number of a port's identity.
fn identity(plane: &Plane, port: PortId) -> u32 {
    plane.policy.identity(port).map_or(0, |identity| identity.saturating_add(RESERVED))
}

/// The Service that a packet was sent to.
fn service(plane: &Plane, event: &FlowEvent) -> Option<Arc<str>> {
    let (key, l4) = (&event.key, event.key.l4_dst_port()?);
    [event.vni, OUTSIDE_VNI].into_iter().find_map(|scope| {
        match plane.services.lookup(scope, key.dst(), key.proto(), l4) {
            Lookup::Frontend(frontend) => Some(Arc::clone(&frontend.spec().service)),
            Lookup::Undeclared | Lookup::None => None,
        }
    })
}

fn index(direction: Direction) -> usize {
    usize::from(direction == Direction::Ingress)
}

fn owner(plane: &Plane, network: NetworkId, address: u128) -> Option<PortId> {
    plane.tables.owner(AddressKey { address, network })
}

fn reserved(identity: u32, label: &str) -> Party {
    Party { endpoint: Endpoint { identity, labels: vec![label.to_owned()], ..Endpoint::default() }, ..Party::default() }
}

/// What is said by the host's own configuration.
fn of_host(plane: &Plane, name: &str) -> Policy {
    let revision = plane.policy_revision.to_string();
    Policy { name: name.to_owned(), revision, kind: "HostConfig".into(), ..Policy::default() }
}

/// A rule as Hubble's policy.
pub fn policy(rule: &RuleInfo, revision: u64) -> Policy {
    let number = rule.name.clone().or_else(|| rule.index.map(|index| (index + 1).to_string()));
    let origin = Some(format!("{LABEL_ORIGIN}{}", rule.origin));
    Policy {
        name: rule.policy.name.clone(),
        namespace: rule.policy.namespace.clone().unwrap_or_default(),
        labels: origin.into_iter().chain(number.map(|number| format!("{LABEL_RULE}{number}"))).collect(),
        revision: revision.to_string(),
        kind: if rule.tier.is_some() { "ClusterNetworkPolicy" } else { "NetworkPolicy" }.into(),
    }
}
