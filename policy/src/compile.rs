//! From a [`World`] to a [`Table`], again and again: what did not change is not compiled again.
//!
//! Theory of operation. A port has an identity (`crate::identity`); selectors are selections of identities
//! (`crate::selection`); a policy is a subject selection and rules over selections and address blocks (`crate::resolve`); the
//! policies that select an identity make its tiers (`crate::tier`, `crate::assign`). [`Compiler::update`] finds out which parts
//! of the world are new, carries each change along this chain only as far as it reaches, and publishes a table that shares
//! the rest with the one before.

use std::collections::BTreeSet;
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashSet};
use hostweave_switch::tables::{NetworkId, PortId};

use crate::assign::Assignments;
use crate::class::Declared;
use crate::identity::Identities;
use crate::model::{ClusterNetworkPolicy, DefaultPolicy, Endpoint, Infrastructure, NetworkPolicy, PolicyName, World};
use crate::resolve::{ALL_PORTS, Policy, Resolver, Source};
use crate::selection::Selections;
use crate::slots::Slots;
use crate::table::{Basis, PolicyInfo, PortEntry, RuleId, Stats, Subject, Table};

/// Ports with ids from here on are not compiled: an index that large is a mistake, and a table of that size another.
pub const PORT_ID_BOUND: u32 = 1 << 24;

/// Keeps what it resolved, so that a change costs what changed.
#[derive(Debug, Default)]
pub struct Compiler {
    identities: Identities,
    selections: Selections,
    policies: Slots<Policy>,
    by_name: HashMap<(bool, PolicyName), u32, RandomState>,
    /// Policies that select every port.
    global: Vec<u32>,
    assignments: Assignments,
    rule_numbers: RuleNumbers,

    default: DefaultPolicy,
    infrastructure: Infrastructure,
    endpoints: Vec<Arc<Endpoint>>,
    v1: Vec<Arc<NetworkPolicy>>,
    cluster: Vec<Arc<ClusterNetworkPolicy>>,

    ports: Arc<Vec<PortEntry>>,
    subjects: Arc<Vec<Subject>>,
    declared: Arc<Vec<Arc<[Declared]>>>,
    infos: Arc<Vec<Arc<PolicyInfo>>>,
}

/// What [`Compiler::update`] gives.
#[derive(Clone, Debug)]
pub struct Update {
    /// To be published to the workers.
    pub table: Arc<Table>,
    /// Networks with ports whose decisions may differ from before, sorted: their epochs are to be bumped.
    pub changed: Vec<NetworkId>,
}

/// What one update has touched so far.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub networks: BTreeSet<NetworkId>,
    /// Identities whose policies of a tier are others now.
    pub reassign: [HashSet<u32, RandomState>; 3],
    /// Identities whose [`Subject`] is to be written.
    pub subjects: HashSet<u32, RandomState>,
    /// Policies whose rules of a direction are others now.
    pub policies: HashSet<(u32, usize), RandomState>,
    /// Policies whose peers of a direction are others now, by the same rules.
    pub members: HashSet<(u32, usize), RandomState>,
}

impl Compiler {
    /// Knows nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Compiles `world`. Parts that are the same `Arc` as last time, or equal, are not looked at again. It does not fail: what
    /// cannot match anything matches nothing, and the ports that such a policy selects are isolated all the same (SEMANTICS
    /// NP32). Ports and policies are expected to have distinct ids and names; of several, the last counts.
    pub fn update(&mut self, world: &World) -> Update {
        let mut changes = Changes::default();
        self.update_namespaces(world, &mut changes);
        self.update_ports(world, &mut changes);
        self.update_policies(world, &mut changes);
        if self.selections.changed() {
            self.find_policies_of_changed_selections(&mut changes);
        }
        self.assignments.update(&mut self.identities, &self.selections, &self.policies, &self.global, &mut changes);
        self.selections.settle();
        self.write_subjects(&changes);
        if self.infrastructure != world.infrastructure {
            self.infrastructure = world.infrastructure;
            changes
                .networks
                .extend(self.identities.slots.iter().flat_map(|(_, identity)| &identity.networks).map(|n| n.0));
        }
        let table = Table {
            ports: Arc::clone(&self.ports),
            subjects: Arc::clone(&self.subjects),
            tiers: self.assignments.published(),
            declared: Arc::clone(&self.declared),
            policies: Arc::clone(&self.infos),
            infrastructure: self.infrastructure,
            stats: self.stats(),
        };
        Update { table: Arc::new(table), changed: changes.networks.into_iter().collect() }
    }

    fn update_namespaces(&mut self, world: &World, changes: &mut Changes) {
        let mut changed = self.identities.set_namespaces(&world.namespaces);
        for id in &changed.labels {
            for identity in self.identities_of(*id) {
                self.rematch(identity, changes);
            }
        }
        if self.default != world.default {
            self.default = world.default;
            changed.defaults.extend(self.identities.namespaces.iter().map(|(id, _)| id));
        }
        for identity in changed.defaults.iter().flat_map(|id| self.identities_of(*id)) {
            changes.subjects.insert(identity);
            if let Some(identity) = self.identities.slots.get(identity) {
                changes.networks.extend(identity.networks.iter().map(|(network, _)| *network));
            }
        }
    }

    fn identities_of(&self, namespace: u32) -> Vec<u32> {
        self.identities
            .namespaces
            .get(namespace)
            .map(|entry| entry.identities.iter().copied().collect())
            .unwrap_or_default()
    }

    fn update_ports(&mut self, world: &World, changes: &mut Changes) {
        let (gone, come) = differences(&mut self.endpoints, &world.endpoints);
        let kept: HashSet<PortId, RandomState> = come.iter().map(|endpoint| endpoint.id).collect();
        for endpoint in come {
            self.set_port(&endpoint, changes);
        }
        for endpoint in gone.iter().filter(|endpoint| !kept.contains(&endpoint.id)) {
            self.remove_port(endpoint.id, changes);
        }
    }

    fn set_port(&mut self, endpoint: &Arc<Endpoint>, changes: &mut Changes) {
        let at = endpoint.id.0 as usize;
        if endpoint.id.0 >= PORT_ID_BOUND {
            return;
        }
        if self.ports.len() <= at {
            Arc::make_mut(&mut self.ports).resize(at + 1, PortEntry::UNKNOWN);
        }
        let (identity, new) = self.identities.acquire(endpoint);
        if new {
            self.rematch(identity, changes);
            changes.subjects.insert(identity);
            for identities in &mut changes.reassign {
                identities.insert(identity);
            }
        }
        let declared = self.identities.acquire_declared(&endpoint.named_ports);
        self.write_declared(declared);
        let entry = PortEntry { identity, declared, network: endpoint.network };
        let before = self.ports[at];
        if before != entry {
            Arc::make_mut(&mut self.ports)[at] = entry;
            changes.networks.insert(entry.network);
        }
        self.release(before, changes, before != entry);
    }

    fn remove_port(&mut self, id: PortId, changes: &mut Changes) {
        let at = id.0 as usize;
        if self.ports.get(at).is_some_and(|entry| *entry != PortEntry::UNKNOWN) {
            let before = std::mem::replace(&mut Arc::make_mut(&mut self.ports)[at], PortEntry::UNKNOWN);
            self.release(before, changes, true);
        }
    }

    /// A port gives back what its entry held.
    fn release(&mut self, entry: PortEntry, changes: &mut Changes, differs: bool) {
        if entry == PortEntry::UNKNOWN {
            return;
        }
        // Its peers may have other decisions now: it is no longer the port that it was.
        if differs {
            changes.networks.insert(entry.network);
        }
        self.identities.release_declared(entry.declared);
        if !self.identities.release(entry.identity, entry.network) {
            return;
        }
        let id = entry.identity;
        if let Some(identity) = self.identities.slots.get_mut(id) {
            for selection in std::mem::take(&mut identity.selections) {
                self.selections.set_member(selection, id, false);
            }
            self.assignments.release_all(identity.tiers);
        }
        self.identities.remove(id);
        for identities in &mut changes.reassign {
            identities.remove(&id);
        }
        changes.subjects.insert(id);
    }

    /// Labels of an identity's namespace are others, or the identity is new: finds its selections.
    fn rematch(&mut self, id: u32, changes: &mut Changes) {
        let now = self.selections.matching(&self.identities, id);
        let Some(identity) = self.identities.slots.get_mut(id) else { return };
        let before = std::mem::replace(&mut identity.selections, now.clone());
        for (selections, others, member) in [(&before, &now, false), (&now, &before, true)] {
            for selection in selections.iter().filter(|selection| others.binary_search(selection).is_err()) {
                self.selections.set_member(*selection, id, member);
                let Some(entry) = self.selections.get(*selection) else { continue };
                for policy in &entry.subject_of {
                    if member {
                        identity.policies.push(*policy);
                    } else {
                        identity.policies.retain(|other| other != policy);
                    }
                    if let Some(policy) = self.policies.get(*policy) {
                        changes.reassign[policy.tier].insert(id);
                    }
                }
            }
        }
    }

    fn write_declared(&mut self, id: u32) {
        let Some(list) = self.identities.declared(id) else { return };
        if self.declared.get(id as usize).is_some_and(|known| Arc::ptr_eq(known, list)) {
            return;
        }
        let declared = Arc::make_mut(&mut self.declared);
        if declared.len() <= id as usize {
            declared.resize(id as usize + 1, Arc::new([]));
        }
        declared[id as usize] = Arc::clone(list);
    }

    fn update_policies(&mut self, world: &World, changes: &mut Changes) {
        let (gone_v1, come_v1) = differences(&mut self.v1, &world.policies);
        let (gone_cluster, come_cluster) = differences(&mut self.cluster, &world.cluster_policies);
        let gone: Vec<Source> =
            gone_v1.into_iter().map(Source::V1).chain(gone_cluster.into_iter().map(Source::Cluster)).collect();
        let come: Vec<Source> =
            come_v1.into_iter().map(Source::V1).chain(come_cluster.into_iter().map(Source::Cluster)).collect();
        if gone.is_empty() && come.is_empty() {
            return;
        }
        let kept: HashSet<(bool, PolicyName), RandomState> = come.iter().map(key).collect();
        // What comes first, so that no number of what goes is used for another in the same update.
        for source in come {
            self.set_policy(source, changes);
        }
        for source in gone {
            if kept.contains(&key(&source)) {
                continue;
            }
            if let Some(id) = self.by_name.remove(&key(&source)) {
                self.detach(id, changes);
                if let Some(policy) = self.policies.remove(id) {
                    policy.held().for_each(|selection| self.selections.release(selection, &mut self.identities));
                }
            }
        }
        let mut infos: Vec<Arc<PolicyInfo>> =
            self.policies.iter().map(|(_, policy)| Arc::clone(&policy.info)).collect();
        infos.sort_unstable_by_key(|info| info.first);
        self.infos = Arc::new(infos);
    }

    fn set_policy(&mut self, source: Source, changes: &mut Changes) {
        let key = key(&source);
        let known = self.by_name.get(&key).copied();
        if known.and_then(|id| self.policies.get(id)).is_some_and(|policy| policy.source.same_as(&source)) {
            return;
        }
        let first = self.rule_numbers.take(source.rule_count(), &self.policies);
        let mut resolver = Resolver { identities: &mut self.identities, selections: &mut self.selections };
        let policy = resolver.policy(source, first);
        let Some(id) = known else {
            let id = self.policies.insert(policy);
            self.by_name.insert(key, id);
            self.attach(id, changes);
            return;
        };
        changes.policies.extend([(id, 0), (id, 1)]);
        let reach = |policy: &Policy| (policy.tier, policy.subject, policy.directions.each_ref().map(Option::is_some));
        let moved = self.policies.get(id).is_none_or(|before| reach(before) != reach(&policy));
        if moved {
            self.detach(id, changes);
        }
        let before = self.policies.get_mut(id).map(|slot| std::mem::replace(slot, policy));
        if moved {
            self.attach(id, changes);
        }
        if let Some(before) = before {
            before.held().for_each(|selection| self.selections.release(selection, &mut self.identities));
        }
    }

    fn attach(&mut self, id: u32, changes: &mut Changes) {
        let Some(policy) = self.policies.get(id) else { return };
        let reassign = &mut changes.reassign[policy.tier];
        if policy.subject == ALL_PORTS {
            self.global.push(id);
            reassign.extend(self.identities.slots.iter().map(|(identity, _)| identity));
        } else if let Some(selection) = self.selections.get_mut(policy.subject) {
            selection.subject_of.push(id);
            for member in &selection.members {
                reassign.insert(*member);
                if let Some(identity) = self.identities.slots.get_mut(*member) {
                    identity.policies.push(id);
                }
            }
        }
    }

    fn detach(&mut self, id: u32, changes: &mut Changes) {
        let Some(policy) = self.policies.get(id) else { return };
        let reassign = &mut changes.reassign[policy.tier];
        if policy.subject == ALL_PORTS {
            self.global.retain(|other| *other != id);
            reassign.extend(self.identities.slots.iter().map(|(identity, _)| identity));
        } else if let Some(selection) = self.selections.get_mut(policy.subject) {
            selection.subject_of.retain(|other| *other != id);
            for member in &selection.members {
                reassign.insert(*member);
                if let Some(identity) = self.identities.slots.get_mut(*member) {
                    identity.policies.retain(|other| *other != id);
                }
            }
        }
    }

    fn find_policies_of_changed_selections(&self, changes: &mut Changes) {
        let dirty = |id: &u32| self.selections.get(*id).is_some_and(|selection| selection.dirty);
        for (id, policy) in self.policies.iter() {
            for (direction, resolved) in policy.directions.iter().enumerate() {
                if resolved.iter().flat_map(|resolved| &resolved.rules).any(|rule| rule.selections.iter().any(dirty)) {
                    changes.members.insert((id, direction));
                }
            }
        }
    }

    fn write_subjects(&mut self, changes: &Changes) {
        if changes.subjects.is_empty() {
            return;
        }
        let subjects = Arc::make_mut(&mut self.subjects);
        subjects.resize(self.identities.slots.bound(), Subject::UNUSED);
        for id in &changes.subjects {
            subjects[*id as usize] = self.identities.slots.get(*id).map_or(Subject::UNUSED, |identity| {
                let own = self.identities.namespaces.get(identity.namespace).and_then(|namespace| namespace.default);
                Subject { tiers: identity.tiers, deny: own.unwrap_or(self.default) == DefaultPolicy::Deny }
            });
        }
    }

    fn stats(&self) -> Stats {
        let rules = self.infos.iter().flat_map(|info| &info.rules).filter(|rule| rule.index.is_some()).count();
        let lists = self.declared.iter().map(|list| size_of_val(&**list)).sum::<usize>();
        Stats {
            ports: self.endpoints.len(),
            identities: self.identities.slots.count(),
            policies: self.infos.len(),
            rules,
            tables: self.assignments.count(),
            bytes: size_of_val(&**self.ports) + size_of_val(&**self.subjects) + lists + self.assignments.bytes(),
        }
    }
}

/// Gives out [`RuleId`]s.
#[derive(Debug, Default)]
struct RuleNumbers {
    next: u32,
    /// All numbers were given out once.
    again: bool,
}

impl RuleNumbers {
    /// The first of `count` numbers that no policy has.
    fn take(&mut self, count: usize, policies: &Slots<Policy>) -> RuleId {
        // One even for a policy without rules, so that no two policies begin with the same.
        let count = u32::try_from(count.max(1)).unwrap_or(u32::MAX);
        loop {
            let first = self.next;
            match first.checked_add(count) {
                Some(end) if end <= Self::BOUND => {
                    let overlaps = |policy: &Policy| {
                        let begin = policy.info.first.0;
                        begin < end && first < begin + u32::try_from(policy.info.rules.len()).unwrap_or(0)
                    };
                    match self.again.then(|| policies.iter().find(|(_, policy)| overlaps(policy))).flatten() {
                        Some((_, policy)) => self.next = policy.info.first.0 + policy.info.rules.len() as u32,
                        None => {
                            self.next = end;
                            return RuleId(first);
                        }
                    }
                }
                _ => (self.next, self.again) = (0, true),
            }
        }
    }

    /// The highest number that [`Basis::to_u32`] can pack, and one.
    const BOUND: u32 = u32::MAX - Basis::RULES;
}

impl Source {
    fn same_as(&self, other: &Source) -> bool {
        match (self, other) {
            (Source::V1(a), Source::V1(b)) => Arc::ptr_eq(a, b) || a == b,
            (Source::Cluster(a), Source::Cluster(b)) => Arc::ptr_eq(a, b) || a == b,
            _ => false,
        }
    }
}

fn key(source: &Source) -> (bool, PolicyName) {
    (matches!(source, Source::Cluster(_)), source.name().clone())
}

/// Brings `old` up to `new`; what only one of them has. Equal parts in a common prefix, suffix or at the same place in
/// between cost a comparison of pointers.
fn differences<T: PartialEq>(old: &mut Vec<Arc<T>>, new: &[Arc<T>]) -> (Vec<Arc<T>>, Vec<Arc<T>>) {
    let same = |(a, b): &(&Arc<T>, &Arc<T>)| Arc::ptr_eq(a, b);
    let prefix = old.iter().zip(new).take_while(same).count();
    let suffix = old[prefix..].iter().rev().zip(new[prefix..].iter().rev()).take_while(same).count();
    let middle = &new[prefix..new.len() - suffix];
    if old.len() != new.len() {
        let end = old.len() - suffix;
        let gone = old.splice(prefix..end, middle.iter().cloned()).collect();
        return (gone, middle.to_vec());
    }
    let (mut gone, mut come) = (Vec::new(), Vec::new());
    for (old, new) in old[prefix..].iter_mut().zip(middle) {
        if Arc::ptr_eq(old, new) {
            continue;
        }
        let before = std::mem::replace(old, Arc::clone(new));
        if before != *new {
            gone.push(before);
            come.push(Arc::clone(new));
        }
    }
    (gone, come)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Namespace, Operator, Peer, Requirement, Rule, Selector};

    fn app(value: &str) -> Selector {
        Selector { requirements: vec![Requirement { key: "app".into(), operator: Operator::In(vec![value.into()]) }] }
    }

    /// Ports, namespaces and policies of which everything differs from round to round but the names of policies.
    fn world(round: u32) -> World {
        let (namespace, value) = (format!("namespace-{round}"), format!("app-{round}"));
        let endpoint = |id| Endpoint {
            id: PortId(id),
            network: NetworkId(0),
            namespace: namespace.clone(),
            name: "port".into(),
            labels: [("app".to_owned(), value.clone())].into(),
            named_ports: Vec::new(),
        };
        let peers = vec![
            Peer::Ports { namespaces: None, ports: Some(app(&value)) },
            Peer::Ports { namespaces: Some(app(&value)), ports: None },
        ];
        let policy = NetworkPolicy {
            name: PolicyName { namespace: Some("stays".into()), name: "policy".into() },
            origin: String::new(),
            selector: app(&value),
            ingress: Some(vec![Rule { origin: String::new(), peers, ports: Vec::new() }]),
            egress: None,
            audit: false,
        };
        let name = PolicyName { namespace: Some(namespace.clone()), name: "other".into() };
        let other = NetworkPolicy { name, ..policy.clone() };
        let object =
            Namespace { name: namespace.clone(), labels: [("app".to_owned(), value.clone())].into(), default: None };
        World {
            namespaces: [(namespace.clone(), Arc::new(object))].into(),
            endpoints: (0..3).map(|id| Arc::new(endpoint(id))).collect(),
            policies: vec![Arc::new(policy), Arc::new(other)],
            ..World::default()
        }
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let mut compiler = Compiler::new();
        let sizes = |compiler: &Compiler| {
            let Compiler { identities, selections, policies, assignments, .. } = compiler;
            [identities.counts().to_vec(), selections.counts().to_vec(), vec![policies.count(), assignments.count()]]
                .concat()
        };
        compiler.update(&world(0));
        let first = sizes(&compiler);
        for round in 1..50 {
            compiler.update(&world(round));
            assert_eq!(sizes(&compiler), first, "round {round}");
        }
        compiler.update(&World::default());
        assert!(sizes(&compiler).iter().all(|size| *size == 0), "{:?}", sizes(&compiler));
        assert_eq!(compiler.update(&World::default()).table.stats().tables, 0);
    }

    #[test]
    fn rule_numbers_begin_again_beside_those_in_use() {
        let mut compiler = Compiler::new();
        compiler.update(&world(0));
        let used: Vec<u32> = compiler.infos.iter().map(|info| info.first.0).collect();
        compiler.rule_numbers.next = RuleNumbers::BOUND - 1;
        let first = compiler.rule_numbers.take(3, &compiler.policies);
        assert!(compiler.rule_numbers.again && !used.contains(&first.0));
        assert!(compiler.infos.iter().all(|info| first.0 >= info.first.0 + info.rules.len() as u32));
    }
}
