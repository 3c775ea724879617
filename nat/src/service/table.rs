//! What workers look up whether an address is a Service's in.

use std::hash::BuildHasher;
use std::ops::RangeInclusive;
use std::sync::{Arc, OnceLock};

use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashTable};

use super::affinity::Affinity;
use super::frontend::Frontend;
use super::group::{Group, Pool};
use super::model::{Backend, FrontendSpec};

/// Parts of the table that are copied one by one when something in them changes.
const SHARDS: usize = 256;

/// Every Service, immutable. The empty one knows none. A clone is cheap.
#[derive(Clone)]
pub struct Services {
    /// By the hash of scope and address.
    shards: Box<[Arc<HashTable<Entry>>]>,
    hasher: RandomState,
    shared: Arc<Shared>,
    addresses: usize,
}

/// What Services of now have in common with those of before and after.
#[derive(Default)]
struct Shared {
    pool: Pool,
    /// Since there is a frontend that asks for it.
    affinity: OnceLock<Arc<Affinity>>,
}

#[derive(Clone)]
struct Entry {
    scope: u32,
    address: u128,
    slots: Arc<[Slot]>,
}

/// A range of L4 ports of an address; they do not overlap, and are in ascending order.
#[derive(Clone)]
struct Slot {
    proto: u8,
    first: u16,
    last: u16,
    frontend: Arc<Frontend>,
}

/// What an address, protocol and L4 port are.
#[derive(Clone, Copy, Debug)]
pub enum Lookup<'a> {
    /// The address is no Service's.
    None,
    /// The address is a Service's, the L4 port or protocol is not (SEMANTICS SV17).
    Undeclared,
    /// A Service's.
    Frontend(&'a Frontend),
}

/// What Services take.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sizes {
    /// Addresses, each counted per network.
    pub addresses: usize,
    /// Maglev tables, of which several frontends may share one.
    pub tables: usize,
    /// Octets of their entries.
    pub octets: usize,
}

impl Default for Services {
    fn default() -> Self {
        Self {
            shards: vec![Arc::default(); SHARDS].into_boxed_slice(),
            hasher: RandomState::default(),
            shared: Arc::default(),
            addresses: 0,
        }
    }
}

impl Services {
    /// Compiles `specs`. Tables of backends that `previous` has too are taken from there, and what is remembered of clients. Where two specs claim the same L4 port of an
    /// address, the narrower range has it, then the Service whose name comes first.
    pub fn compile(specs: &[FrontendSpec], previous: Option<&Self>) -> Self {
        let mut this = Self::default();
        if let Some(previous) = previous {
            (this.hasher, this.shared) = (previous.hasher.clone(), Arc::clone(&previous.shared));
        }
        let mut groups = Groups::default();
        let mut by_address: HashMap<(u32, u128), Vec<Arc<Frontend>>, RandomState> = HashMap::default();
        for spec in specs {
            let old = previous.and_then(|previous| previous.frontend(spec));
            let frontend = groups.frontend(spec, old, &this.shared);
            by_address.entry((spec.scope, spec.address)).or_default().push(frontend);
        }
        for ((scope, address), frontends) in by_address {
            this.put(scope, address, frontends);
        }
        this.shared.pool.sweep();
        this
    }

    /// These Services, with some of their frontends replaced: each of `changed` takes the place of the one of the same Service, address,
    /// protocol and L4 ports, or is added. For backends that come and go; the cost is that of what changes.
    pub fn replace(&self, changed: &[FrontendSpec]) -> Self {
        let mut this = self.clone();
        let mut groups = Groups::default();
        for spec in changed {
            let old = this.frontend(spec).map(Arc::clone);
            let frontend = groups.frontend(spec, old.as_ref(), &this.shared);
            let mut frontends = this.of(spec.scope, spec.address);
            frontends.retain(|of| !is_same(of.spec(), spec));
            frontends.push(frontend);
            this.put(spec.scope, spec.address, frontends);
        }
        this
    }

    /// What an address is in the network `scope`, a VNI.
    #[inline]
    pub fn lookup(&self, scope: u32, address: u128, proto: u8, l4: u16) -> Lookup<'_> {
        let Some(entry) = self.entry(scope, address) else { return Lookup::None };
        let at = entry.slots.partition_point(|slot| (slot.proto, slot.first) <= (proto, l4));
        match at.checked_sub(1).and_then(|at| entry.slots.get(at)) {
            Some(slot) if slot.proto == proto && l4 <= slot.last => Lookup::Frontend(&slot.frontend),
            _ => Lookup::Undeclared,
        }
    }

    /// Whether an address is a Service's in the network `scope`.
    #[inline]
    pub fn has_address(&self, scope: u32, address: u128) -> bool {
        self.entry(scope, address).is_some()
    }

    /// What is remembered of clients that keep their backends, if any do.
    pub fn affinity(&self) -> Option<&Affinity> {
        self.shared.affinity.get().map(|affinity| &**affinity)
    }

    /// Every frontend, once for each range of its L4 ports that is its own. Not for packets.
    pub fn frontends(&self) -> impl Iterator<Item = &Frontend> {
        let entries = self.shards.iter().flat_map(|shard| shard.iter());
        entries.flat_map(|entry| entry.slots.iter()).map(|slot| &*slot.frontend)
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.addresses == 0
    }

    /// What they take. Not for packets: it counts.
    pub fn sizes(&self) -> Sizes {
        let (tables, octets) = self.shared.pool.sizes();
        Sizes { addresses: self.addresses, tables, octets }
    }

    #[inline]
    fn entry(&self, scope: u32, address: u128) -> Option<&Entry> {
        if self.addresses == 0 {
            return None;
        }
        let hash = self.hasher.hash_one((scope, address));
        let shard = self.shards.get(shard(hash))?;
        shard.find(hash, |entry| entry.address == address && entry.scope == scope)
    }

    /// The frontend that a spec replaces.
    fn frontend(&self, spec: &FrontendSpec) -> Option<&Arc<Frontend>> {
        let slots = &self.entry(spec.scope, spec.address)?.slots;
        slots.iter().map(|slot| &slot.frontend).find(|frontend| is_same(frontend.spec(), spec))
    }

    /// Frontends of an address, each once.
    fn of(&self, scope: u32, address: u128) -> Vec<Arc<Frontend>> {
        let mut frontends: Vec<Arc<Frontend>> = Vec::new();
        for slot in self.entry(scope, address).map(|entry| &*entry.slots).unwrap_or_default() {
            if !frontends.iter().any(|frontend| Arc::ptr_eq(frontend, &slot.frontend)) {
                frontends.push(Arc::clone(&slot.frontend));
            }
        }
        frontends
    }

    /// Makes these the frontends of an address.
    fn put(&mut self, scope: u32, address: u128, frontends: Vec<Arc<Frontend>>) {
        let hash = self.hasher.hash_one((scope, address));
        let Some(shard) = self.shards.get_mut(shard(hash)) else { return };
        let entry = Entry { scope, address, slots: slots(frontends) };
        let table = Arc::make_mut(shard);
        match table.find_mut(hash, |old| old.address == address && old.scope == scope) {
            Some(old) => *old = entry,
            None => {
                let hasher = &self.hasher;
                table.insert_unique(hash, entry, |entry| hasher.hash_one((entry.scope, entry.address)));
                self.addresses += 1;
            }
        }
    }
}

/// Groups that were made while one set of specs is compiled, by the list that they were made of.
#[derive(Default)]
struct Groups(HashMap<*const Backend, Arc<Group>>);

impl Groups {
    fn frontend(&mut self, spec: &FrontendSpec, old: Option<&Arc<Frontend>>, shared: &Shared) -> Arc<Frontend> {
        let same =
            old.filter(|old| Arc::ptr_eq(&old.spec.backends, &spec.backends) || old.spec.backends == spec.backends);
        if let Some(same) = same
            && same.spec == *spec
        {
            return Arc::clone(same);
        }
        // Lists live as long as the specs do, so an address stands for one list.
        let group = same.map(|same| Arc::clone(&same.group)).unwrap_or_else(|| {
            let made = self
                .0
                .entry(spec.backends.as_ptr())
                .or_insert_with(|| Arc::new(Group::new(&spec.backends, &shared.pool)));
            Arc::clone(made)
        });
        Arc::new(Frontend::new(spec.clone(), group, &shared.affinity))
    }
}

fn is_same(a: &FrontendSpec, b: &FrontendSpec) -> bool {
    (a.scope, a.address, a.proto, &a.l4, &a.service) == (b.scope, b.address, b.proto, &b.l4, &b.service)
}

fn shard(hash: u64) -> usize {
    // Other bits than those that the table in the shard goes by.
    (hash >> 40) as usize % SHARDS
}

/// The L4 ports of an address, each of one frontend.
fn slots(mut frontends: Vec<Arc<Frontend>>) -> Arc<[Slot]> {
    let width = |range: &RangeInclusive<u16>| range.end().saturating_sub(*range.start());
    frontends.sort_by(|a, b| {
        let key = |frontend: &Frontend| (width(&frontend.spec().l4), *frontend.spec().l4.start());
        key(a).cmp(&key(b)).then_with(|| a.spec().service.cmp(&b.spec().service))
    });
    let mut slots: Vec<Slot> = Vec::with_capacity(frontends.len());
    for frontend in frontends {
        let spec = frontend.spec();
        // What nobody has yet, as several ranges around those of others.
        let mut next = u32::from(*spec.l4.start());
        let end = u32::from(*spec.l4.end());
        let mut free = Vec::new();
        for taken in slots.iter().filter(|slot| slot.proto == spec.proto) {
            if u32::from(taken.first) > next {
                free.push((next, u32::from(taken.first).saturating_sub(1).min(end)));
            }
            next = next.max(u32::from(taken.last) + 1);
        }
        free.push((next, end));
        let slot = |(first, last): (u32, u32)| {
            let (first, last) = (u16::try_from(first).ok()?, u16::try_from(last).ok()?);
            Some(Slot { proto: spec.proto, first, last, frontend: Arc::clone(&frontend) })
        };
        let new: Vec<Slot> = free.into_iter().filter(|(first, last)| first <= last).filter_map(slot).collect();
        slots.extend(new);
        slots.sort_by_key(|slot| (slot.proto, slot.first));
    }
    slots.into()
}

#[cfg(test)]
mod tests;
