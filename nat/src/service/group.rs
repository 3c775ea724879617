//! A set of backends as tables have it, and the pool in which identical ones share their Maglev table.

use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::hash;
use super::maglev::{BACKENDS_MAX, Maglev};
use super::model::Backend;

/// Backends of a frontend. Those that take new connections come first, in the order of their names, as the entries of the table
/// count them.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) backends: Arc<[Backend]>,
    /// How many of them take new connections.
    pub(crate) active: usize,
    pub(crate) table: Maglev,
    /// Indices in the order of addresses.
    by_address: Box<[u32]>,
    /// Of those that take new connections: hashes of names, ascending, with indices.
    by_name: Box<[(u64, u16)]>,
}

impl Group {
    /// Compiles a set; order does not matter.
    pub(crate) fn new(backends: &[Backend], pool: &Pool) -> Self {
        let mut backends: Box<[Backend]> = backends.into();
        backends.sort_unstable_by(|a, b| {
            let key = |backend: &Backend| (backend.address, backend.l4, backend.weight);
            b.active.cmp(&a.active).then_with(|| a.name.cmp(&b.name)).then_with(|| key(a).cmp(&key(b)))
        });
        let active = backends.partition_point(|backend| backend.active).min(BACKENDS_MAX);
        let taking = backends.get(..active).unwrap_or_default();
        let mut by_name: Box<[(u64, u16)]> = (0..).zip(taking).map(|(i, b)| (hash::of_name(&b.name), i)).collect();
        by_name.sort_unstable();
        let mut by_address: Box<[u32]> = (0..).zip(&backends).map(|(i, _)| i).collect();
        by_address.sort_unstable_by_key(|i| backends.get(*i as usize).map(|backend| (backend.address, backend.l4)));
        let table = pool.table(taking);
        Self { active, table, by_address, by_name, backends: backends.into() }
    }

    /// The one that takes new connections and whose name has this hash.
    pub(crate) fn named(&self, hash: u64) -> Option<usize> {
        let at = self.by_name.partition_point(|(of, _)| *of < hash);
        self.by_name.get(at).filter(|(of, _)| *of == hash).map(|(_, index)| usize::from(*index))
    }

    /// Those with this address.
    pub(crate) fn at(&self, address: u128) -> impl Iterator<Item = (usize, &Backend)> {
        let backend = |i: &u32| self.backends.get(*i as usize).map(|backend| (*i as usize, backend));
        let first = self.by_address.partition_point(|i| backend(i).is_some_and(|(_, b)| b.address < address));
        let from = self.by_address.get(first..).unwrap_or_default();
        from.iter().filter_map(backend).take_while(move |(_, backend)| backend.address == address)
    }
}

/// Tables that are in use, by what they were made of. Only control touches it.
#[derive(Default)]
pub(crate) struct Pool {
    tables: Mutex<HashMap<u64, Vec<Member>>>,
    hasher: RandomState,
}

/// What a table was made of, and the table while somebody uses it.
struct Member {
    of: Box<[(Arc<str>, u16)]>,
    table: Weak<[u16]>,
}

impl Pool {
    /// The table of backends in the order of their names: a new one only if nobody has one of the same names and weights.
    fn table(&self, backends: &[Backend]) -> Maglev {
        let same = |of: &[(Arc<str>, u16)]| {
            let alike = |(of, backend): (&(Arc<str>, u16), &Backend)| (&of.0, of.1) == (&backend.name, backend.weight);
            of.len() == backends.len() && of.iter().zip(backends).all(alike)
        };
        let key = |backend: &Backend| (hash::of_name(&backend.name), backend.weight);
        let hash = self.hasher.hash_one(backends.iter().map(key).collect::<Vec<_>>());
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let members = tables.entry(hash).or_default();
        members.retain(|member| member.table.strong_count() > 0);
        let known = members.iter().find(|member| same(&member.of));
        if let Some(table) = known.and_then(|member| Maglev::upgrade(&member.table)) {
            return table;
        }
        let named: Vec<_> = backends.iter().map(|backend| (&*backend.name, backend.weight)).collect();
        let table = Maglev::build(&named);
        let of = backends.iter().map(|backend| (Arc::clone(&backend.name), backend.weight)).collect();
        members.push(Member { of, table: table.downgrade() });
        table
    }

    /// Forgets tables that nobody uses.
    pub(crate) fn sweep(&self) {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        tables.retain(|_, members| {
            members.retain(|member| member.table.strong_count() > 0);
            !members.is_empty()
        });
    }

    /// Tables in use, and octets of their entries.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        let tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let used = tables.values().flatten().filter_map(|member| Maglev::upgrade(&member.table));
        used.fold((0, 0), |(count, octets), table| (count + 1, octets + size_of_val(table.entries())))
    }
}
