//! Which identity has which tiers, and when a tier has to be compiled anew.

use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashSet};

use crate::compile::Changes;
use crate::identity::Identities;
use crate::resolve::Policy;
use crate::selection::Selections;
use crate::slots::Slots;
use crate::tier::{NO_TIER, PeerMap, Tier, TierPolicy};

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
        let stale: HashSet<u32, RandomState> = if changes.policies.is_empty() {
            HashSet::default()
        } else {
            let of = |key: &TierKey| key.policies.iter().any(|id| changes.policies.contains(&(*id, key.direction)));
            self.slots.iter().filter(|(id, entry)| !fresh.contains(id) && of(&entry.key)).map(|(id, _)| id).collect()
        };
        if !stale.is_empty() {
            for (_, identity) in identities.slots.iter() {
                if identity.tiers.iter().flatten().any(|tier| stale.contains(tier)) {
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
        let built: Vec<(u32, Arc<Tier>)> =
            fresh.into_iter().chain(stale).filter_map(|id| Some((id, self.build(id, policies, selections)?))).collect();
        let published = Arc::make_mut(&mut self.published);
        published.resize(self.slots.bound(), None);
        removed.into_iter().for_each(|id| published[id as usize] = None);
        built.into_iter().for_each(|(id, tier)| published[id as usize] = Some(tier));
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

    fn build(&mut self, id: u32, policies: &Slots<Policy>, selections: &Selections) -> Option<Arc<Tier>> {
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
        let maps = &mut self.peer_maps;
        Some(Arc::new(Tier::new(&ordered, |ids| {
            if let Some(map) = maps.get(&ids) {
                return Arc::clone(map);
            }
            let members = ids.iter().filter_map(|id| selections.get(*id)).map(|selection| &selection.members);
            let map = Arc::new(PeerMap::new(members));
            maps.insert(ids, Arc::clone(&map));
            map
        })))
    }
}
