//! What ports have in common: an identity is a namespace and a set of labels. Selectors are matched against identities, so
//! that a thousand equal ports cost as much as one. The network is no part of it: whether two ports share theirs is compared
//! when a connection is judged (SEMANTICS SV26).

use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashSet, HashTable};
use hostweave_switch::tables::NetworkId;

use crate::class::Declared;
use crate::model::{DefaultPolicy, Endpoint, Labels, NamedPort, Namespace};
use crate::slots::Slots;
use crate::tier::NO_TIER;

/// The label that every namespace carries (SEMANTICS NP8).
pub(crate) const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// A namespace that a port or a policy is in.
#[derive(Debug)]
pub(crate) struct NamespaceEntry {
    pub name: String,
    /// With [`NAME_LABEL`].
    pub labels: Labels,
    pub default: Option<DefaultPolicy>,
    pub identities: HashSet<u32, RandomState>,
    /// Identities and selections that name it.
    users: usize,
}

/// A namespace and labels that at least one port has.
#[derive(Debug)]
pub(crate) struct Identity {
    /// The first port that had it, for its labels.
    like: Arc<Endpoint>,
    hash: u64,
    pub namespace: u32,
    /// Networks of its ports, with the number of ports in each.
    pub networks: Vec<(NetworkId, u32)>,
    /// Selections that it is a member of, sorted.
    pub selections: Vec<u32>,
    /// Policies that select it, without those that select every port.
    pub policies: Vec<u32>,
    /// By direction and tier.
    pub tiers: [[u32; 3]; 2],
}

impl Identity {
    pub(crate) fn labels(&self) -> &Labels {
        &self.like.labels
    }
}

/// All identities and namespaces, with the indexes in which selectors look for them.
#[derive(Debug, Default)]
pub(crate) struct Identities {
    pub slots: Slots<Identity>,
    by_content: HashTable<u32>,
    pub namespaces: Slots<NamespaceEntry>,
    by_name: HashMap<String, u32, RandomState>,
    /// Namespace objects as last given.
    written: BTreeMap<String, Arc<Namespace>>,
    /// Identities by the hash of a label, and of its key alone. Strangers with an equal hash may be among them.
    by_label: HashMap<u64, HashSet<u32, RandomState>, RandomState>,
    hasher: RandomState,
    /// Numbers of the names of L4 ports. Never given back: a host has few distinct ones.
    names: HashMap<String, u32, RandomState>,
    declared: Slots<(Arc<[Declared]>, usize)>,
    by_declared: HashMap<Arc<[Declared]>, u32, RandomState>,
}

/// What changed with [`Identities::set_namespaces`].
#[derive(Debug, Default)]
pub(crate) struct NamespaceChanges {
    /// Namespaces with other labels.
    pub labels: Vec<u32>,
    /// Namespaces with another default.
    pub defaults: Vec<u32>,
}

impl Identities {
    /// Hash of a label (or of a key alone), with whatever tells apart where it is looked for.
    pub(crate) fn hash_label(&self, place: u64, key: &str, value: Option<&str>) -> u64 {
        self.hasher.hash_one((place, key, value))
    }

    /// The identities that may have this label (or this key, with any value).
    pub(crate) fn with_label(&self, key: &str, value: Option<&str>) -> Option<&HashSet<u32, RandomState>> {
        self.by_label.get(&self.hash_label(0, key, value))
    }

    /// Number of a namespace's entry, if a port or policy is in it.
    pub(crate) fn namespace_named(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    pub(crate) fn acquire_namespace(&mut self, name: &str) -> u32 {
        if let Some(id) = self.namespace_named(name) {
            self.use_namespace(id);
            return id;
        }
        let (labels, default) = effective(name, self.written.get(name));
        let entry = NamespaceEntry { name: name.to_owned(), labels, default, identities: HashSet::default(), users: 1 };
        let id = self.namespaces.insert(entry);
        self.by_name.insert(name.to_owned(), id);
        id
    }

    /// One more user of a namespace that has one.
    pub(crate) fn use_namespace(&mut self, id: u32) {
        if let Some(entry) = self.namespaces.get_mut(id) {
            entry.users += 1;
        }
    }

    pub(crate) fn release_namespace(&mut self, id: u32) {
        if let Some(entry) = self.namespaces.get_mut(id) {
            entry.users -= 1;
            if entry.users == 0 {
                self.by_name.remove(&entry.name);
                self.namespaces.remove(id);
            }
        }
    }

    /// Takes over the namespace objects.
    pub(crate) fn set_namespaces(&mut self, namespaces: &BTreeMap<String, Arc<Namespace>>) -> NamespaceChanges {
        let mut changes = NamespaceChanges::default();
        let mut pairs = self.written.iter().zip(namespaces);
        if self.written.len() == namespaces.len()
            && pairs.all(|((name, written), (other, now))| name == other && Arc::ptr_eq(written, now))
        {
            return changes;
        }
        for (id, entry) in self.namespaces.iter_mut() {
            let now = namespaces.get(&entry.name);
            let before = self.written.get(&entry.name);
            if now.map(Arc::as_ptr) == before.map(Arc::as_ptr) {
                continue;
            }
            let (labels, default) = effective(&entry.name, now);
            if entry.labels != labels {
                entry.labels = labels;
                changes.labels.push(id);
            }
            if entry.default != default {
                entry.default = default;
                changes.defaults.push(id);
            }
        }
        self.written.clone_from(namespaces);
        changes
    }

    /// The identity of a port, and whether it is new.
    pub(crate) fn acquire(&mut self, endpoint: &Arc<Endpoint>) -> (u32, bool) {
        let hash = self.hasher.hash_one((&endpoint.namespace, &endpoint.labels));
        let slots = &self.slots;
        let same = |id: &u32| {
            slots.get(*id).is_some_and(|identity| {
                identity.hash == hash
                    && identity.like.namespace == endpoint.namespace
                    && identity.like.labels == endpoint.labels
            })
        };
        let found = self.by_content.find(hash, same).copied();
        let id = found.unwrap_or_else(|| self.insert(endpoint, hash));
        if let Some(identity) = self.slots.get_mut(id) {
            match identity.networks.iter_mut().find(|(network, _)| *network == endpoint.network) {
                Some((_, count)) => *count += 1,
                None => identity.networks.push((endpoint.network, 1)),
            }
        }
        (id, found.is_none())
    }

    fn insert(&mut self, endpoint: &Arc<Endpoint>, hash: u64) -> u32 {
        let namespace = self.acquire_namespace(&endpoint.namespace);
        let id = self.slots.insert(Identity {
            like: Arc::clone(endpoint),
            hash,
            namespace,
            networks: Vec::new(),
            selections: Vec::new(),
            policies: Vec::new(),
            tiers: [[NO_TIER; 3]; 2],
        });
        let slots = &self.slots;
        self.by_content.insert_unique(hash, id, |id| slots.get(*id).map_or(0, |identity| identity.hash));
        if let Some(entry) = self.namespaces.get_mut(namespace) {
            entry.identities.insert(id);
        }
        for (key, value) in &endpoint.labels {
            for value in [None, Some(value.as_str())] {
                self.by_label.entry(self.hash_label(0, key, value)).or_default().insert(id);
            }
        }
        id
    }

    /// A port of this network no longer has it. True if it was the last: then [`Self::remove`] is due.
    pub(crate) fn release(&mut self, id: u32, network: NetworkId) -> bool {
        let Some(identity) = self.slots.get_mut(id) else { return false };
        if let Some((_, count)) = identity.networks.iter_mut().find(|(known, _)| *known == network) {
            *count -= 1;
        }
        identity.networks.retain(|(_, count)| *count > 0);
        identity.networks.is_empty()
    }

    /// Forgets an identity that no port has and that no selection has as a member.
    pub(crate) fn remove(&mut self, id: u32) {
        let Some(identity) = self.slots.remove(id) else { return };
        if let Ok(entry) = self.by_content.find_entry(identity.hash, |other| *other == id) {
            entry.remove();
        }
        for (key, value) in identity.labels() {
            for value in [None, Some(value.as_str())] {
                let hash = self.hash_label(0, key, value);
                if let Some(ids) = self.by_label.get_mut(&hash) {
                    ids.remove(&id);
                    if ids.is_empty() {
                        self.by_label.remove(&hash);
                    }
                }
            }
        }
        if let Some(entry) = self.namespaces.get_mut(identity.namespace) {
            entry.identities.remove(&id);
        }
        self.release_namespace(identity.namespace);
    }

    /// Number of a name of L4 ports.
    pub(crate) fn name(&mut self, name: &str) -> u32 {
        if let Some(id) = self.names.get(name) {
            return *id;
        }
        let id = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        self.names.insert(name.to_owned(), id);
        id
    }

    /// Number of a list of named ports.
    pub(crate) fn acquire_declared(&mut self, ports: &[NamedPort]) -> u32 {
        let mut list: Vec<Declared> = ports
            .iter()
            .map(|port| Declared { protocol: port.protocol, port: port.port, name: self.name(&port.name) })
            .collect();
        list.sort_unstable();
        list.dedup();
        if let Some(id) = self.by_declared.get(&*list) {
            if let Some((_, users)) = self.declared.get_mut(*id) {
                *users += 1;
            }
            return *id;
        }
        let list: Arc<[Declared]> = list.into();
        let id = self.declared.insert((Arc::clone(&list), 1));
        self.by_declared.insert(list, id);
        id
    }

    pub(crate) fn release_declared(&mut self, id: u32) {
        if let Some((list, users)) = self.declared.get_mut(id) {
            *users -= 1;
            if *users == 0 {
                self.by_declared.remove(list);
                self.declared.remove(id);
            }
        }
    }

    /// Sizes of what grows with ports and namespaces.
    #[cfg(test)]
    pub(crate) fn counts(&self) -> [usize; 7] {
        let (slots, content) = (self.slots.count(), self.by_content.len());
        let (namespaces, names) = (self.namespaces.count(), self.by_name.len());
        [slots, content, namespaces, names, self.by_label.len(), self.declared.count(), self.by_declared.len()]
    }

    /// The list with a number.
    pub(crate) fn declared(&self, id: u32) -> Option<&Arc<[Declared]>> {
        self.declared.get(id).map(|(list, _)| list)
    }
}

/// Labels and default of a namespace that may not have been written.
fn effective(name: &str, written: Option<&Arc<Namespace>>) -> (Labels, Option<DefaultPolicy>) {
    let mut labels = written.map(|namespace| namespace.labels.clone()).unwrap_or_default();
    labels.insert(NAME_LABEL.to_owned(), name.to_owned());
    (labels, written.and_then(|namespace| namespace.default))
}
