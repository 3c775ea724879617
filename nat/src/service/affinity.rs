//! `sessionAffinity: ClientIP` (SEMANTICS SV10): which backend a client had last, and when.
//!
//! New connections of a client go by its address anyway, so it keeps its backend while the set of backends is the same, whether it is
//! known here or not. What is known here is what outlives a change of that set. The table is of a fixed size, in sets of
//! [`WAYS`]: a client whose set is full of others that may still come back is not remembered, and one Service never has more than
//! half of a set, so that a flood of clients of one takes nobody else's place.

use std::sync::{Mutex, PoisonError};

use super::hash;

/// Clients that are remembered at once, over all Services.
pub const CLIENTS_MAX: usize = 1 << 18;
/// Entries among which one client's is looked for.
pub const WAYS: usize = 8;
/// Those of one Service among them.
pub const WAYS_OF_ONE: usize = WAYS / 2;
const LOCKS: usize = 64;
const SETS_PER_LOCK: usize = CLIENTS_MAX / WAYS / LOCKS;

/// An entry: client (two words), identity of the frontend, hash of the backend's name, last use and timeout. All zero: none.
/// Plain words, so that memory that nobody has used stays untouched.
type Entry = [u64; 5];
type Set = [Entry; WAYS];

/// Which client had which backend. Shared by all workers, and kept over changes of tables.
pub struct Affinity {
    shards: Box<[Mutex<Box<[Set]>>]>,
}

impl Default for Affinity {
    fn default() -> Self {
        let shard = |_| Mutex::new(vec![[[0; 5]; WAYS]; SETS_PER_LOCK].into_boxed_slice());
        Self { shards: (0..LOCKS).map(shard).collect() }
    }
}

impl std::fmt::Debug for Affinity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Affinity").finish_non_exhaustive()
    }
}

impl Affinity {
    /// What `client` had at the frontend `identity` at most `timeout` seconds ago: the hash of a backend's name.
    pub(crate) fn find(&self, identity: u64, client: u128, now: u32, timeout: u32) -> Option<u64> {
        self.set(identity, client, |set| {
            let entry = set.iter().find(|entry| is_of(entry, identity, client))?;
            (now.wrapping_sub(last(entry)) <= timeout).then_some(entry[3])
        })?
    }

    /// Remembers that `client` has `backend` now.
    pub(crate) fn keep(&self, identity: u64, client: u128, backend: u64, now: u32, timeout: u32) {
        let new =
            [(client >> 64) as u64, client as u64, identity, backend, u64::from(now) << 32 | u64::from(timeout.max(1))];
        self.set(identity, client, |set| {
            let known = set.iter().position(|entry| is_of(entry, identity, client));
            let place = known.or_else(|| {
                let live = |entry: &&Entry| !is_over(entry, now);
                let own = set.iter().filter(live).filter(|entry| entry[2] == identity).count();
                if own >= WAYS_OF_ONE { None } else { set.iter().position(|entry| is_over(entry, now)) }
            });
            if let Some(entry) = place.and_then(|at| set.get_mut(at)) {
                *entry = new;
            }
        });
    }

    fn set<T>(&self, identity: u64, client: u128, then: impl FnOnce(&mut Set) -> T) -> Option<T> {
        let hash = hash::of_client(identity, client) as usize;
        let shard = self.shards.get(hash % LOCKS)?;
        let mut sets = shard.lock().unwrap_or_else(PoisonError::into_inner);
        Some(then(sets.get_mut(hash / LOCKS % SETS_PER_LOCK)?))
    }
}

fn is_of(entry: &Entry, identity: u64, client: u128) -> bool {
    entry[4] != 0 && entry[2] == identity && entry[..2] == [(client >> 64) as u64, client as u64]
}

fn last(entry: &Entry) -> u32 {
    (entry[4] >> 32) as u32
}

/// Whether nobody needs it any more.
fn is_over(entry: &Entry, now: u32) -> bool {
    entry[4] == 0 || now.wrapping_sub(last(entry)) > entry[4] as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sv10_counts_from_the_last_use() {
        let affinity = Affinity::default();
        affinity.keep(1, 7, 42, 1000, 60);
        assert_eq!(affinity.find(1, 7, 1060, 60), Some(42));
        assert_eq!(affinity.find(1, 7, 1061, 60), None);
        affinity.keep(1, 7, 42, 1050, 60);
        assert_eq!(affinity.find(1, 7, 1110, 60), Some(42));
        // A shorter time that was configured since counts at once.
        assert_eq!(affinity.find(1, 7, 1110, 30), None);
        assert_eq!(affinity.find(2, 7, 1050, 60), None, "another frontend");
        assert_eq!(affinity.find(1, 8, 1050, 60), None, "another client");
    }

    #[test]
    fn a_client_at_second_zero_is_remembered() {
        let affinity = Affinity::default();
        affinity.keep(0, 0, 0, 0, 0);
        assert_eq!(affinity.find(0, 0, 0, 0), Some(0));
        assert_eq!(affinity.find(0, 1, 0, 0), None);
    }

    #[test]
    fn a_flood_of_one_frontend_leaves_room_for_others() {
        let affinity = Affinity::default();
        for client in 0..2 * CLIENTS_MAX as u128 {
            affinity.keep(1, client, 5, 10, 3600);
        }
        let own = (0..2 * CLIENTS_MAX as u128).filter(|client| affinity.find(1, *client, 10, 3600).is_some()).count();
        assert!(own <= CLIENTS_MAX / 2, "{own}");
        assert!(own > CLIENTS_MAX * 2 / 5, "{own}");
        affinity.keep(2, 99, 6, 10, 3600);
        assert_eq!(affinity.find(2, 99, 10, 3600), Some(6));
        // Those whose time is over make room.
        affinity.keep(1, 1 << 100, 7, 10 + 3601, 3600);
        assert_eq!(affinity.find(1, 1 << 100, 10 + 3601, 3600), Some(7));
    }
}
