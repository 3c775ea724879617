//! Selections: what a selector of a policy selects, kept up to date as ports and labels come and go.
//!
//! Equal selectors share one. A new selection finds its members through the index of labels; a new identity finds its
//! selections through the same index the other way round: each selection waits under one label that its members must have (its
//! anchors). So neither ever looks at all pairs.

use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashSet};

use crate::identity::{Identities, NAME_LABEL};
use crate::model::{Operator, Requirement, Selector};
use crate::slots::Slots;

/// Which namespaces a selection is about.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Scope {
    /// The one that the policy is in (SEMANTICS NP14).
    Own(u32),
    /// Those whose labels match.
    Matching(Selector),
}

/// What makes two selections the same.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct SelectionKey {
    pub scope: Scope,
    pub ports: Selector,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Selection {
    key: SelectionKey,
    /// Identities.
    pub members: HashSet<u32, RandomState>,
    /// Policies of which it is the subject.
    pub subject_of: Vec<u32>,
    users: usize,
    /// Whether members came or went since [`Selections::settle`].
    pub dirty: bool,
}

/// All selections of all policies.
#[derive(Debug, Default)]
pub(crate) struct Selections {
    slots: Slots<Selection>,
    by_key: HashMap<SelectionKey, u32, RandomState>,
    anchors: HashMap<u64, Vec<u32>, RandomState>,
    dirty: Vec<u32>,
}

impl SelectionKey {
    fn matches(&self, identities: &Identities, id: u32) -> bool {
        let Some(identity) = identities.slots.get(id) else { return false };
        let in_scope = match &self.scope {
            Scope::Own(namespace) => *namespace == identity.namespace,
            Scope::Matching(selector) => identities
                .namespaces
                .get(identity.namespace)
                .is_some_and(|namespace| selector.matches(&namespace.labels)),
        };
        in_scope && self.ports.matches(identity.labels())
    }

    /// Places of which a member's labels have one.
    fn anchors(&self, identities: &Identities) -> Vec<u64> {
        let (scope, namespaces): (u64, &[Requirement]) = match &self.scope {
            Scope::Own(namespace) => (own_place(*namespace), &[]),
            Scope::Matching(selector) => (OF_ANY, &selector.requirements),
        };
        let places = [(scope, self.ports.requirements.as_slice()), (OF_NAMESPACE, namespaces)];
        for (place, requirements) in places {
            for requirement in requirements {
                if let Operator::In(values) = &requirement.operator {
                    let mut anchors: Vec<u64> = values
                        .iter()
                        .map(|value| identities.hash_label(place, &requirement.key, Some(value)))
                        .collect();
                    anchors.sort_unstable();
                    anchors.dedup();
                    return anchors;
                }
            }
        }
        for (place, requirements) in places {
            if let Some(requirement) = requirements.iter().find(|requirement| requirement.operator == Operator::Exists)
            {
                return vec![identities.hash_label(place, &requirement.key, None)];
            }
        }
        vec![identities.hash_label(scope, "", None)]
    }

    /// Identities among which all members are: the shortest list that an index has.
    fn candidates<'a>(&self, identities: &'a Identities) -> Vec<u32> {
        let mut best: Option<Vec<&'a HashSet<u32, RandomState>>> = None;
        let mut consider = |lists: Vec<&'a HashSet<u32, RandomState>>| {
            let length = |lists: &[&HashSet<u32, RandomState>]| lists.iter().map(|list| list.len()).sum::<usize>();
            if best.as_ref().is_none_or(|best| length(&lists) < length(best)) {
                best = Some(lists);
            }
        };
        for requirement in &self.ports.requirements {
            match &requirement.operator {
                Operator::In(values) => {
                    let values: HashSet<&String, RandomState> = values.iter().collect();
                    consider(values.iter().filter_map(|v| identities.with_label(&requirement.key, Some(v))).collect());
                }
                Operator::Exists => consider(identities.with_label(&requirement.key, None).into_iter().collect()),
                Operator::NotIn(_) | Operator::DoesNotExist => {}
            }
        }
        let of = |id: u32| identities.namespaces.get(id).map(|namespace| &namespace.identities);
        match &self.scope {
            Scope::Own(namespace) => consider(of(*namespace).into_iter().collect()),
            Scope::Matching(selector) if selector.requirements.is_empty() => {}
            Scope::Matching(selector) => consider(match named(selector) {
                Some(names) => {
                    let ids: HashSet<u32, RandomState> =
                        names.iter().filter_map(|n| identities.namespace_named(n)).collect();
                    ids.into_iter().filter_map(of).collect()
                }
                None => {
                    let matching = identities.namespaces.iter().filter(|(_, entry)| selector.matches(&entry.labels));
                    matching.map(|(_, entry)| &entry.identities).collect()
                }
            }),
        }
        match best {
            Some(lists) => lists.into_iter().flatten().copied().collect(),
            None => identities.slots.iter().map(|(id, _)| id).collect(),
        }
    }
}

impl Selection {
    /// Whether it is of the ports of a policy's own namespace.
    pub(crate) fn is_own(&self) -> bool {
        matches!(self.key.scope, Scope::Own(_))
    }
}

impl Selections {
    pub(crate) fn get(&self, id: u32) -> Option<&Selection> {
        self.slots.get(id)
    }

    pub(crate) fn get_mut(&mut self, id: u32) -> Option<&mut Selection> {
        self.slots.get_mut(id)
    }

    /// Finds or makes a selection, and its members with it. To be released as often.
    pub(crate) fn acquire(&mut self, key: SelectionKey, identities: &mut Identities) -> u32 {
        if let Some(id) = self.by_key.get(&key) {
            if let Some(selection) = self.slots.get_mut(*id) {
                selection.users += 1;
            }
            return *id;
        }
        if let Scope::Own(namespace) = key.scope {
            identities.use_namespace(namespace);
        }
        let members: HashSet<u32, RandomState> =
            key.candidates(identities).into_iter().filter(|id| key.matches(identities, *id)).collect();
        let selection = Selection { key: key.clone(), members, subject_of: Vec::new(), users: 1, dirty: true };
        let id = self.slots.insert(selection);
        self.dirty.push(id);
        for anchor in key.anchors(identities) {
            self.anchors.entry(anchor).or_default().push(id);
        }
        if let Some(selection) = self.slots.get(id) {
            for member in &selection.members {
                if let Some(identity) = identities.slots.get_mut(*member)
                    && let Err(at) = identity.selections.binary_search(&id)
                {
                    identity.selections.insert(at, id);
                }
            }
        }
        self.by_key.insert(key, id);
        id
    }

    pub(crate) fn release(&mut self, id: u32, identities: &mut Identities) {
        match self.slots.get_mut(id) {
            Some(selection) if selection.users > 1 => {
                selection.users -= 1;
                return;
            }
            Some(_) => {}
            None => return,
        }
        let Some(selection) = self.slots.remove(id) else { return };
        for anchor in selection.key.anchors(identities) {
            if let Some(ids) = self.anchors.get_mut(&anchor) {
                ids.retain(|other| *other != id);
                if ids.is_empty() {
                    self.anchors.remove(&anchor);
                }
            }
        }
        for member in &selection.members {
            if let Some(identity) = identities.slots.get_mut(*member)
                && let Ok(at) = identity.selections.binary_search(&id)
            {
                identity.selections.remove(at);
            }
        }
        self.by_key.remove(&selection.key);
        if let Scope::Own(namespace) = selection.key.scope {
            identities.release_namespace(namespace);
        }
    }

    /// The selections that an identity belongs to, sorted.
    pub(crate) fn matching(&self, identities: &Identities, id: u32) -> Vec<u32> {
        let Some(identity) = identities.slots.get(id) else { return Vec::new() };
        let mut places = Vec::new();
        for scope in [own_place(identity.namespace), OF_ANY] {
            places.push(identities.hash_label(scope, "", None));
            for (key, value) in identity.labels() {
                places.push(identities.hash_label(scope, key, None));
                places.push(identities.hash_label(scope, key, Some(value)));
            }
        }
        if let Some(namespace) = identities.namespaces.get(identity.namespace) {
            for (key, value) in &namespace.labels {
                places.push(identities.hash_label(OF_NAMESPACE, key, None));
                places.push(identities.hash_label(OF_NAMESPACE, key, Some(value)));
            }
        }
        let mut found: Vec<u32> =
            places.iter().filter_map(|place| self.anchors.get(place)).flatten().copied().collect();
        found.sort_unstable();
        found.dedup();
        found.retain(|selection| {
            self.slots.get(*selection).is_some_and(|selection| selection.key.matches(identities, id))
        });
        found
    }

    /// Sizes of what grows with policies.
    #[cfg(test)]
    pub(crate) fn counts(&self) -> [usize; 4] {
        [self.slots.count(), self.by_key.len(), self.anchors.len(), self.dirty.len()]
    }

    /// An identity becomes or ceases to be a member.
    pub(crate) fn set_member(&mut self, selection: u32, identity: u32, member: bool) {
        let Some(entry) = self.slots.get_mut(selection) else { return };
        let changed = if member { entry.members.insert(identity) } else { entry.members.remove(&identity) };
        if changed && !entry.dirty {
            entry.dirty = true;
            self.dirty.push(selection);
        }
    }

    /// Whether any selection changed since [`Self::settle`].
    pub(crate) fn changed(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Everything that depends on what changed has been renewed.
    pub(crate) fn settle(&mut self) {
        for id in self.dirty.drain(..) {
            if let Some(selection) = self.slots.get_mut(id) {
                selection.dirty = false;
            }
        }
    }
}

/// Names of the only namespaces that can match, where a selector says so.
fn named(selector: &Selector) -> Option<&[String]> {
    selector.requirements.iter().find_map(|requirement| match &requirement.operator {
        Operator::In(values) if requirement.key == NAME_LABEL => Some(values.as_slice()),
        _ => None,
    })
}

/// Labels of ports in any namespace.
const OF_ANY: u64 = 1;
/// Labels of namespaces.
const OF_NAMESPACE: u64 = 2;

/// Labels of the ports of one namespace. (0 is the index of identities.)
fn own_place(namespace: u32) -> u64 {
    3 + u64::from(namespace)
}
