//! Who had which blocks of outside L4 ports, by name and by the clock of the wall (RFC 6888 REQ-12; SEMANTICS NA28, NA32). Kept in
//! the store: the question "who had this at that time" is asked when the port is long deleted, the daemon restarted, the host
//! booted anew.
//!
//! The packet path's own table knows the leases of this boot to the second, and is asked first for those that are in force.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::fabric::nat_report::LeaseView;
use crate::store::Store;

/// Leases that are kept; the oldest goes first. A block that nobody uses goes back after two minutes: of a busy host these are
/// days, and the log of the daemon has them all.
pub const LEASES_MAX: usize = 1 << 15;

/// A block of L4 ports of one port.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NatLease {
    /// Uid of the port.
    pub uid: Uuid,
    /// `namespace/name` that it had, where that was known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// Outside address.
    pub address: IpAddr,
    /// First L4 port.
    pub first: u16,
    /// Last L4 port.
    pub last: u16,
    /// Seconds of the Unix clock since which it had it.
    pub since: u64,
    /// Seconds of the Unix clock at which it was free again; `None` while the port has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
}

impl NatLease {
    /// Of a block that begins to be a port's.
    pub fn new(view: &LeaseView, port: Option<String>) -> Self {
        let block = &view.lease.block;
        Self {
            uid: view.port,
            port,
            address: hostweave_nat::unmapped(block.address),
            first: block.first,
            last: block.first + (block.size.max(1) - 1),
            since: seconds(view.since),
            until: view.until.map(seconds),
        }
    }

    /// When it began.
    pub fn since(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.since)
    }

    /// When it ended.
    pub fn until(&self) -> Option<SystemTime> {
        self.until.map(|until| UNIX_EPOCH + Duration::from_secs(until))
    }

    fn is_same_block(&self, other: &Self) -> bool {
        (self.uid, self.address, self.first) == (other.uid, other.address, other.first)
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// See the file's head.
#[derive(Default)]
pub struct NatLedger(Mutex<BTreeMap<u64, NatLease>>);

/// What is to be written.
#[derive(Default)]
struct Changes {
    put: BTreeMap<u64, NatLease>,
    gone: Vec<u64>,
}

impl NatLedger {
    /// As the store has it, by number.
    pub fn new(leases: BTreeMap<u64, NatLease>) -> Self {
        Self(Mutex::new(leases))
    }

    /// Writes what began (`until` is `None`) and what ended, in one go. A failure of the disk is logged: what happened is in the log
    /// of events, and traffic goes on.
    pub fn record(&self, store: &Store, happened: Vec<NatLease>) {
        let mut leases = self.lock();
        let mut changes = Changes::default();
        for lease in happened {
            enter(&mut leases, lease, &mut changes);
        }
        write(store, &changes);
    }

    /// Puts in order what happened while nobody listened: `known` is every lease, in force or ended, that the packet path knows. What was
    /// in force before and is not known any more was lost with the host, some time before `now`.
    pub fn reconcile(&self, store: &Store, known: Vec<NatLease>, now: SystemTime) {
        let mut leases = self.lock();
        let mut changes = Changes::default();
        let in_force: Vec<NatLease> = known.iter().filter(|lease| lease.until.is_none()).cloned().collect();
        for lease in known.into_iter().filter(|lease| lease.until.is_some()) {
            if leases.values().any(|open| open.until.is_none() && open.is_same_block(&lease)) {
                enter(&mut leases, lease, &mut changes);
            }
        }
        let lost = |lease: &NatLease| lease.until.is_none() && !in_force.iter().any(|known| known.is_same_block(lease));
        let ended: Vec<NatLease> = leases.values().filter(|lease| lost(lease)).cloned().collect();
        for lease in ended {
            enter(&mut leases, NatLease { until: Some(seconds(now)), ..lease }, &mut changes);
        }
        for lease in in_force {
            if !leases.values().any(|open| open.until.is_none() && open.is_same_block(&lease)) {
                enter(&mut leases, lease, &mut changes);
            }
        }
        write(store, &changes);
    }

    /// Who had an address, or one L4 port of it, at a time; by first L4 port.
    pub fn at(&self, address: IpAddr, l4: Option<u16>, at: SystemTime) -> Vec<NatLease> {
        let at = seconds(at);
        let right = |lease: &&NatLease| {
            lease.address == address
                && l4.is_none_or(|l4| (lease.first..=lease.last).contains(&l4))
                && lease.since <= at
                && lease.until.is_none_or(|until| at < until)
        };
        let mut found: Vec<NatLease> = self.lock().values().filter(right).cloned().collect();
        found.sort_by_key(|lease| lease.first);
        found
    }

    /// Name that a port had last, deleted or not.
    pub fn name(&self, uid: Uuid) -> Option<String> {
        self.lock().values().rev().find(|lease| lease.uid == uid)?.port.clone()
    }

    /// Every name that is known.
    pub fn names(&self) -> HashMap<Uuid, String> {
        self.lock().values().filter_map(|lease| Some((lease.uid, lease.port.clone()?))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, NatLease>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A lease begins, or the one that is in force ends.
fn enter(leases: &mut BTreeMap<u64, NatLease>, lease: NatLease, changes: &mut Changes) {
    // What begins ends nothing: a block is free before it is given out again.
    let is_open = |open: &NatLease| open.until.is_none() && open.is_same_block(&lease);
    let open = lease.until.and_then(|_| leases.iter().rev().find(|(_, open)| is_open(open)));
    let (number, entry) = match open {
        Some((number, open)) => (*number, NatLease { until: lease.until, ..open.clone() }),
        None => (leases.last_key_value().map_or(0, |(last, _)| last + 1), lease),
    };
    leases.insert(number, entry.clone());
    changes.put.insert(number, entry);
    while leases.len() > LEASES_MAX
        && let Some((number, _)) = leases.pop_first()
    {
        changes.put.remove(&number);
        changes.gone.push(number);
    }
}

fn write(store: &Store, changes: &Changes) {
    if changes.put.is_empty() && changes.gone.is_empty() {
        return;
    }
    if let Err(error) = store.write_nat_leases(&changes.put, &changes.gone) {
        tracing::warn!(%error, "who has which L4 ports of a NAT address could not be written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(uid: u128, address: &str, first: u16, since: u64) -> NatLease {
        let port = Some(format!("shop/p{uid}"));
        let address = address.parse().unwrap();
        NatLease { uid: Uuid::from_u128(uid), port, address, first, last: first + 511, since, until: None }
    }

    fn time(second: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(second)
    }

    const ADDRESSES: [&str; 2] = ["203.0.113.7", "2001:db8::7"];

    #[test]
    fn who_had_it_is_known_after_a_restart_with_the_name_it_had() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path()).unwrap();
        let ledger = NatLedger::default();
        for address in ADDRESSES {
            ledger.record(&store, vec![lease(1, address, 1024, 100)]);
            // The name is gone when the block is given back.
            ledger.record(&store, vec![NatLease { port: None, until: Some(200), ..lease(1, address, 1024, 100) }]);
            ledger.record(&store, vec![lease(2, address, 1024, 300)]);
        }
        drop(store);
        let (_, contents) = Store::open(dir.path()).unwrap();
        let ledger = NatLedger::new(contents.nat_leases);
        for address in ADDRESSES.map(|address| address.parse().unwrap()) {
            let had = |l4, second| ledger.at(address, Some(l4), time(second)).first().map(|lease| lease.port.clone());
            assert_eq!(had(1535, 150), Some(Some("shop/p1".to_owned())));
            assert_eq!((had(1536, 150), had(1100, 99), had(1100, 200), had(1100, 299)), (None, None, None, None));
            assert_eq!(had(1024, 300), Some(Some("shop/p2".to_owned())));
            assert_eq!(ledger.at(address, None, time(150)).len(), 1);
        }
        assert_eq!(ledger.name(Uuid::from_u128(1)).as_deref(), Some("shop/p1"));
    }

    #[test]
    fn what_was_in_force_when_the_host_died_ends_and_what_nobody_heard_of_begins() {
        let (store, _) = Store::in_memory().unwrap();
        let ledger = NatLedger::default();
        let [v4, v6] = ADDRESSES;
        ledger.record(&store, vec![lease(1, v4, 1024, 100), lease(1, v6, 1024, 100), lease(2, v4, 2048, 100)]);
        let known = vec![
            NatLease { until: Some(150), ..lease(1, v4, 1024, 100) },
            lease(2, v4, 2048, 101),
            lease(3, v6, 4096, 140),
        ];
        ledger.reconcile(&store, known, time(500));
        let until = |address: &str, l4, at| {
            ledger.at(address.parse().unwrap(), Some(l4), time(at)).first().map(|lease| (lease.since, lease.until))
        };
        assert_eq!(until(v4, 1024, 149), Some((100, Some(150))), "the packet path knew when");
        assert_eq!(until(v6, 1024, 400), Some((100, Some(500))), "nobody knows when");
        assert_eq!(until(v4, 2048, 600), Some((100, None)), "goes on");
        assert_eq!(until(v6, 4096, 600), Some((140, None)));
    }

    #[test]
    fn the_ledger_is_bounded_and_forgets_the_oldest() {
        let (store, _) = Store::in_memory().unwrap();
        let ledger = NatLedger::default();
        let all = (0..LEASES_MAX as u64 + 10).map(|n| lease(n.into(), "203.0.113.7", 1024, n));
        ledger.record(&store, all.collect());
        assert_eq!(ledger.lock().len(), LEASES_MAX);
        assert!(ledger.at("203.0.113.7".parse().unwrap(), None, time(9)).is_empty());
        assert_eq!(ledger.at("203.0.113.7".parse().unwrap(), None, time(10)).len(), 1);
    }
}
