//! Which identity has which tiers, and when a tier has to be compiled anew.

use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashSet};

use crate::compile::Changes;
use crate::identity::Identities;
use crate::peers::PeerMap;
use crate::resolve::Policy;
use crate::selection::{Selection, Selections};
use crate::slots::Slots;
use crate::tier::{NO_TIER, Source, Tier, TierPolicy};

/// Policies of one tier that select the same identities in one direction.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct TierKey {
    direction: usize,
    tier: usize,
    /// Sorted.
    policies: Vec<u32>,
}

#[derive(Debug)]
struct TierEntry {
    key: TierKey,
    /// Identities that have it.
    users: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Assignments {
    slots: Slots<TierEntry>,
    by_key: HashMap<TierKey, u32, RandomState>,
    published: Arc<Vec<Option<Arc<Tier>>>>,
    /// Tiers that may have lost their last user.
    idle: Vec<u32>,
    /// By sorted list of selections.
    peer_maps: HashMap<Vec<u32>, Arc<PeerMap>, RandomState>,
}

impl Assignments {
    /// What workers look up in, by number.
    pub(crate) fn published(&self) -> Arc<Vec<Option<Arc<Tier>>>> {
        Arc::clone(&self.published)
    }

    pub(crate) fn count(&self) -> usize {
        self.slots.count()
    }

    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&**self.published) + self.published.iter().flatten().map(|tier| tier.bytes()).sum::<usize>()
    }

    /// An identity is gone.
    pub(crate) fn release_all(&mut self, tiers: [[u32; 3]; 2]) {
        tiers.into_iter().flatten().for_each(|tier| self.release(tier));
    }

    fn release(&mut self, tier: u32) {
        if let Some(entry) = self.slots.get_mut(tier) {
            entry.users -= 1;
            if entry.users == 0 {
                self.idle.push(tier);
            }
        }
    }

    fn acquire(&mut self, key: &TierKey, fresh: &mut HashSet<u32, RandomState>) -> u32 {
        if key.policies.is_empty() {
            return NO_TIER;
        }
        let id = match self.by_key.get(key) {
            Some(id) => *id,
            None => {
                let id = self.slots.insert(TierEntry { key: key.clone(), users: 0 });
                self.by_key.insert(key.clone(), id);
                fresh.insert(id);
                id
            }
        };
        if let Some(entry) = self.slots.get_mut(id) {
            entry.users += 1;
        }
        id
    }

    /// Gives identities their tiers and compiles those that are new or have changed.
    pub(crate) fn update(
        &mut self,
        identities: &mut Identities,
        selections: &Selections,
        policies: &Slots<Policy>,
        global: &[u32],
        changes: &mut Changes,
    ) {
        let mut fresh = HashSet::default();
        self.reassign(identities, policies, global, changes, &mut fresh);
        let idle = std::mem::take(&mut self.idle);
        let mut removed = Vec::new();
        for id in idle {
            if self.slots.get(id).is_some_and(|entry| entry.users == 0)
                && let Some(entry) = self.slots.remove(id)
            {
                self.by_key.remove(&entry.key);
                fresh.remove(&id);
                removed.push(id);
            }
        }
        let stale = self.stale(&fresh, changes);
        if !stale.is_empty() {
            for (_, identity) in identities.slots.iter() {
                if identity.tiers.iter().flatten().any(|tier| stale.contains_key(tier)) {
                    changes.networks.extend(identity.networks.iter().map(|(network, _)| *network));
                }
            }
        }
        if selections.changed() {
            self.peer_maps.retain(|ids, map| {
                let current = |id: &u32| selections.get(*id).is_some_and(|selection| !selection.dirty);
                ids.iter().all(current) && Arc::strong_count(map) > 1
            });
        }
        if removed.is_empty() && fresh.is_empty() && stale.is_empty() {
            return;
        }
        let built: Vec<(u32, Arc<Tier>)> = fresh
            .into_iter()
            .map(|id| (id, false))
            .chain(stale)
            .filter_map(|(id, reuse)| Some((id, self.build(id, reuse, policies, selections)?)))
            .collect();
        let published = Arc::make_mut(&mut self.published);
        published.resize(self.slots.bound(), None);
        removed.into_iter().for_each(|id| published[id as usize] = None);
        built.into_iter().for_each(|(id, tier)| published[id as usize] = Some(tier));
    }

    /// Tiers to be compiled anew, and whether only members of selections have changed.
    fn stale(&self, fresh: &HashSet<u32, RandomState>, changes: &Changes) -> HashMap<u32, bool, RandomState> {
        if changes.policies.is_empty() && changes.members.is_empty() {
            return HashMap::default();
        }
        let old = self.slots.iter().filter(|(id, _)| !fresh.contains(id));
        old.filter_map(|(id, entry)| {
            let any = |of: &HashSet<(u32, usize), RandomState>| {
                entry.key.policies.iter().any(|policy| of.contains(&(*policy, entry.key.direction)))
            };
            let changed = any(&changes.policies);
            (changed || any(&changes.members)).then_some((id, !changed))
        })
        .collect()
    }

    fn reassign(
        &mut self,
        identities: &mut Identities,
        policies: &Slots<Policy>,
        global: &[u32],
        changes: &mut Changes,
        fresh: &mut HashSet<u32, RandomState>,
    ) {
        let mut key = TierKey { direction: 0, tier: 0, policies: Vec::new() };
        for tier in 0..3 {
            key.tier = tier;
            for id in &changes.reassign[tier] {
                let Some(identity) = identities.slots.get_mut(*id) else { continue };
                for direction in 0..2 {
                    key.direction = direction;
                    key.policies.clear();
                    key.policies.extend(global.iter().chain(&identity.policies).filter(|id| {
                        policies
                            .get(**id)
                            .is_some_and(|policy| policy.tier == tier && policy.directions[direction].is_some())
                    }));
                    key.policies.sort_unstable();
                    let now = self.acquire(&key, fresh);
                    let before = std::mem::replace(&mut identity.tiers[direction][tier], now);
                    self.release(before);
                    if now != before {
                        changes.subjects.insert(*id);
                        changes.networks.extend(identity.networks.iter().map(|(network, _)| *network));
                    }
                }
            }
        }
    }

    fn build(&mut self, id: u32, reuse: bool, policies: &Slots<Policy>, selections: &Selections) -> Option<Arc<Tier>> {
        let key = &self.slots.get(id)?.key;
        let mut ordered: Vec<&Policy> = key.policies.iter().filter_map(|id| policies.get(*id)).collect();
        // Equal priorities by name (SEMANTICS CN2).
        ordered.sort_by_key(|policy| (policy.priority, policy.source.name()));
        let ordered: Vec<TierPolicy<'_>> = ordered
            .into_iter()
            .filter_map(|policy| {
                let resolved = policy.directions[key.direction].as_ref()?;
                Some(TierPolicy { info: &policy.info, resolved, isolation: policy.isolation(key.direction) })
            })
            .collect();
        let before = self.published.get(id as usize).and_then(Option::as_ref).filter(|_| reuse);
        let mut source = Shared { maps: &mut self.peer_maps, selections, before: before.map(|tier| &**tier) };
        Some(Arc::new(Tier::new(&ordered, &mut source)))
    }
}

/// What tiers share.
struct Shared<'a> {
    maps: &'a mut HashMap<Vec<u32>, Arc<PeerMap>, RandomState>,
    selections: &'a Selections,
    before: Option<&'a Tier>,
}

impl Source for Shared<'_> {
    fn is_own(&self, selection: u32) -> bool {
        self.selections.get(selection).is_some_and(Selection::is_own)
    }

    fn peer_map(&mut self, selections: Vec<u32>) -> Arc<PeerMap> {
        if let Some(map) = self.maps.get(&selections) {
            return Arc::clone(map);
        }
        let members = selections.iter().filter_map(|id| self.selections.get(*id)).map(|selection| &selection.members);
        let map = Arc::new(PeerMap::new(members));
        self.maps.insert(selections, Arc::clone(&map));
        map
    }

    fn before(&self) -> Option<&Tier> {
        self.before
    }
}
