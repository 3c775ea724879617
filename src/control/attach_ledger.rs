//! Which port had which public address of a Service, directly or 1:1, by name and by the clock of the wall: somebody complains about an
//! address days after. Kept in the store: the port and its Service may be deleted by then, the daemon restarted, the host booted anew.
//!
//! It says what the objects said, and is written when that changes. While no daemon runs nobody has anything; what is the same when it
//! is back goes on, and of what is not it is said that it ended at the latest then.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use hostweave_switch::limits::PORTS_MAX;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::ledger::{self, Book, Changes, ENTRIES_MAX, Entry, seconds};
use crate::config::ObjectSet;
use crate::config::outside::address_pools;
use crate::fabric::spec::{Desired, PortSpec};
use crate::store::{ATTACHED, Store};

// What is in force has room: a Service has one address of each family.
const _: () = assert!(2 * PORTS_MAX <= ENTRIES_MAX);

/// A port that had an address.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attached {
    /// Uid of the port.
    pub uid: Uuid,
    /// Its `namespace/name`.
    pub port: String,
    /// Network that it was in when it got the address.
    pub network: String,
    /// The address.
    pub address: IpAddr,
    /// `namespace/name` of the Service.
    pub service: String,
    /// AddressPool that the address was of when the port got it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Whether it was 1:1 NAT.
    pub one_to_one: bool,
    /// Seconds of the Unix clock since which it had it.
    pub since: u64,
    /// Seconds of the Unix clock at which it had it no more; `None` while it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
    /// Whether nobody knows when it ended, but that it was at `until` at the latest.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unheard: bool,
}

impl Attached {
    /// When it began.
    pub fn since(&self) -> SystemTime {
        ledger::time(self.since)
    }

    /// When it ended.
    pub fn until(&self) -> Option<SystemTime> {
        self.until.map(ledger::time)
    }

    /// Whether both say the same of an address. Names of network and pool follow from it.
    fn is_same(&self, other: &Self) -> bool {
        let of = |attached: &Self| (attached.uid, attached.address, attached.one_to_one);
        of(self) == of(other) && self.service == other.service
    }
}

impl Entry for Attached {
    fn place(&self) -> (IpAddr, u16) {
        (self.address, 0)
    }

    fn span(&self) -> (u64, Option<u64>) {
        (self.since, self.until)
    }
}

/// See the file's head.
pub struct AttachLedger(Mutex<State>);

struct State {
    book: Book<Attached>,
    /// Whether what is in force in the book is so by what this daemon was told.
    heard: bool,
}

impl AttachLedger {
    /// As the store has it, by number.
    pub fn new(entries: BTreeMap<u64, Attached>) -> Self {
        Self(Mutex::new(State { book: Book::new(entries), heard: false }))
    }

    /// From `now` on it is as `desired` says, and `before` is what it followed. The first time what is otherwise has ended before.
    pub fn follow(&self, store: &Store, before: &Desired, set: &ObjectSet, desired: &Desired, now: SystemTime) {
        let mut state = self.lock();
        if !state.heard || before.attached != desired.attached {
            state.settle(store, in_force(set, desired), seconds(now));
        }
    }

    /// Who had an address at a time, by their beginning. Times are whole seconds: of the one in which an address went from one port to
    /// another, both.
    pub fn at(&self, address: IpAddr, at: SystemTime) -> Vec<Attached> {
        let at = seconds(at);
        let right = |entry: &&Attached| entry.since <= at && entry.until.is_none_or(|until| at <= until);
        self.lock().book.of(address).filter(right).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// What is not in force any more ends, what is new begins.
    fn settle(&mut self, store: &Store, in_force: Vec<Attached>, now: u64) {
        let mut changes = Changes::default();
        let goes_on = |entry: &Attached| self.book.open_at(entry.place()).filter(|(_, open)| open.is_same(entry));
        let going_on: HashSet<u64> = in_force.iter().filter_map(goes_on).map(|(number, _)| number).collect();
        let mut ended = Vec::new();
        for (number, entry) in self.book.entries.iter().filter(|(_, entry)| entry.until.is_none()) {
            if !going_on.contains(number) {
                // Of an entry whose end could not be written the next one tells.
                let next = self.book.next(*number, entry).map(|next| next.since);
                let until = next.unwrap_or(now).max(entry.since);
                ended.push((*number, Attached { until: Some(until), unheard: !self.heard, ..entry.clone() }));
            }
        }
        for (number, entry) in ended {
            self.book.put(number, entry, &mut changes);
        }
        for entry in in_force {
            if self.book.open_at(entry.place()).is_none() {
                self.book.add(Attached { since: now, ..entry }, &mut changes);
            }
        }
        self.heard = true;
        changes.write(store, ATTACHED, "which port has which attached address");
    }
}

/// What ports have by what is desired; the times are not filled in.
fn in_force(set: &ObjectSet, desired: &Desired) -> Vec<Attached> {
    let attached: HashSet<Uuid> = desired.attached.iter().map(|spec| spec.port).collect();
    let ports = desired.ports.iter().filter(|port| attached.contains(&port.uid));
    let ports: HashMap<Uuid, &PortSpec> = ports.map(|port| (port.uid, &**port)).collect();
    let of = |spec: &crate::fabric::spec::AttachSpec| {
        let port = ports.get(&spec.port)?;
        let pool = address_pools(set).find(|(_, pool)| pool.contains(spec.address));
        Some(Attached {
            uid: spec.port,
            port: format!("{}/{}", port.namespace, port.name),
            network: port.network.clone(),
            address: spec.address,
            service: spec.service.clone(),
            pool: pool.map(|(object, _)| object.key.name.clone()),
            one_to_one: spec.one_to_one,
            since: 0,
            until: None,
            unheard: false,
        })
    };
    desired.attached.iter().filter_map(of).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const ADDRESSES: [&str; 2] = ["203.0.113.7", "2001:db8::7"];

    /// A port `shop/p<uid>` that has an address directly, of the Service `shop/ip`.
    pub fn attached(uid: u128, address: &str) -> Attached {
        Attached {
            uid: Uuid::from_u128(uid),
            port: format!("shop/p{uid}"),
            network: "default".to_owned(),
            address: address.parse().unwrap(),
            service: "shop/ip".to_owned(),
            pool: Some("public".to_owned()),
            one_to_one: false,
            since: 0,
            until: None,
            unheard: false,
        }
    }

    fn both(uid: u128) -> Vec<Attached> {
        ADDRESSES.map(|address| attached(uid, address)).into()
    }

    /// A ledger that has followed from the beginning.
    fn ledger() -> AttachLedger {
        let ledger = AttachLedger::new(BTreeMap::new());
        ledger.lock().heard = true;
        ledger
    }

    /// What is known of an address at a second: uid, beginning, end and whether that is sure.
    fn at(ledger: &AttachLedger, address: &str, second: u64) -> Vec<(u128, u64, Option<u64>, bool)> {
        let had = ledger.at(address.parse().unwrap(), ledger::time(second));
        had.iter().map(|had| (had.uid.as_u128(), had.since, had.until, !had.unheard)).collect()
    }

    #[test]
    fn who_had_an_address_is_known_when_it_moved_and_of_a_second_in_which_it_moves_both_are() {
        let (store, _) = Store::in_memory().unwrap();
        let ledger = ledger();
        ledger.lock().settle(&store, both(1), 100);
        // Somebody else is attached as well, which changes nothing here.
        let with = |uid| [both(uid), vec![attached(9, "203.0.113.9")]].concat();
        ledger.lock().settle(&store, with(1), 150);
        ledger.lock().settle(&store, with(2), 200);
        ledger.lock().settle(&store, Vec::new(), 300);
        for address in ADDRESSES {
            assert!(at(&ledger, address, 99).is_empty() && at(&ledger, address, 301).is_empty());
            let (first, second) = ((1, 100, Some(200), true), (2, 200, Some(300), true));
            assert_eq!((at(&ledger, address, 100), at(&ledger, address, 199)), (vec![first], vec![first]));
            assert_eq!((at(&ledger, address, 200), at(&ledger, address, 300)), (vec![first, second], vec![second]));
        }
        assert_eq!(at(&ledger, "203.0.113.9", 160), [(9, 150, Some(300), true)]);
        assert!(at(&ledger, "203.0.113.8", 160).is_empty(), "nobody's");
    }

    #[test]
    fn the_same_port_by_another_service_or_another_way_is_another_entry() {
        let (store, _) = Store::in_memory().unwrap();
        let ledger = ledger();
        for address in ADDRESSES {
            let one = attached(1, address);
            let other = Attached { service: "shop/other".to_owned(), ..one.clone() };
            let nat = Attached { one_to_one: true, ..other.clone() };
            for (second, entry) in [(100, &one), (200, &other), (300, &nat)] {
                ledger.lock().settle(&store, vec![entry.clone()], second);
            }
            let had = |second| ledger.at(address.parse().unwrap(), ledger::time(second)).remove(0);
            let until = |until, entry: Attached, since| Attached { since, until, ..entry };
            assert_eq!(had(150), until(Some(200), one, 100));
            assert_eq!(had(250), until(Some(300), other, 200));
            assert_eq!(had(350), until(None, nat, 300));
            ledger.lock().settle(&store, Vec::new(), 400);
        }
    }

    #[test]
    fn what_changed_while_no_daemon_ran_has_ended_at_the_latest_when_it_is_back_and_the_rest_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path()).unwrap();
        let ledger = ledger();
        let stays = ["203.0.113.9", "2001:db8::9"].map(|address| attached(3, address));
        ledger.lock().settle(&store, [both(1), stays.to_vec()].concat(), 100);
        drop(store);
        let (store, contents) = Store::open(dir.path()).unwrap();
        let ledger = AttachLedger::new(contents.attached);
        for address in ADDRESSES {
            assert_eq!(at(&ledger, address, 400), [(1, 100, None, true)]);
        }
        ledger.lock().settle(&store, [both(2), stays.to_vec()].concat(), 500);
        // From then on it knows.
        ledger.lock().settle(&store, stays.to_vec(), 600);
        drop(store);
        let (_, contents) = Store::open(dir.path()).unwrap();
        let ledger = AttachLedger::new(contents.attached);
        for address in ADDRESSES {
            assert_eq!(at(&ledger, address, 400), [(1, 100, Some(500), false)]);
            assert_eq!(at(&ledger, address, 550), [(2, 500, Some(600), true)]);
        }
        for stays in stays {
            assert_eq!(at(&ledger, &stays.address.to_string(), 700), [(3, 100, None, true)]);
        }
    }

    #[test]
    fn nothing_attached_at_the_start_ends_what_was_and_unchanged_ones_are_not_looked_at_again() {
        let (store, _) = Store::in_memory().unwrap();
        let entries = both(1).into_iter().map(|entry| Attached { since: 100, ..entry });
        let ledger = AttachLedger::new((0..).zip(entries).collect());
        let (set, nothing) = (ObjectSet::default(), Desired::default());
        ledger.follow(&store, &nothing, &set, &nothing, ledger::time(500));
        ledger.follow(&store, &nothing, &set, &nothing, ledger::time(900));
        for address in ADDRESSES {
            assert_eq!(at(&ledger, address, 300), [(1, 100, Some(500), false)]);
        }
    }

    #[test]
    fn an_entry_whose_end_was_not_written_ends_where_the_next_begins() {
        let (store, _) = Store::in_memory().unwrap();
        for address in ADDRESSES {
            let entry = |uid, since, until| Attached { since, until, ..attached(uid, address) };
            let left = [entry(1, 100, None), entry(2, 200, Some(300)), entry(3, 300, None)];
            let ledger = AttachLedger::new((0..).zip(left).collect());
            ledger.lock().settle(&store, vec![attached(3, address)], 500);
            assert_eq!(at(&ledger, address, 150), [(1, 100, Some(200), false)]);
            assert_eq!(at(&ledger, address, 250), [(2, 200, Some(300), true)]);
            assert_eq!(at(&ledger, address, 600), [(3, 300, None, true)]);
        }
    }

    #[test]
    fn a_clock_that_is_set_back_makes_no_entry_end_before_it_began() {
        let (store, _) = Store::in_memory().unwrap();
        let ledger = ledger();
        ledger.lock().settle(&store, both(1), 1000);
        ledger.lock().settle(&store, both(2), 500);
        for address in ADDRESSES {
            assert_eq!(at(&ledger, address, 1000), [(2, 500, None, true), (1, 1000, Some(1000), true)]);
            assert_eq!(at(&ledger, address, 999), [(2, 500, None, true)]);
        }
    }

    #[test]
    fn the_ledger_is_bounded_and_keeps_what_is_in_force() {
        let (store, _) = Store::in_memory().unwrap();
        let ledger = ledger();
        let old = ["203.0.113.9", "2001:db8::9"].map(|address| attached(7, address)).to_vec();
        ledger.lock().settle(&store, old.clone(), 10);
        let turns = ENTRIES_MAX as u64 / 2;
        let mut state = ledger.lock();
        // Not each turn on its own: what is written is another matter.
        let mut changes = Changes::default();
        for turn in 0..turns {
            for entry in both(turn.into()) {
                state.book.add(Attached { since: 100 + turn, until: Some(101 + turn), ..entry }, &mut changes);
            }
        }
        changes.write(&store, ATTACHED, "");
        drop(state);
        assert_eq!(ledger.lock().book.entries.len(), ENTRIES_MAX);
        for address in ADDRESSES {
            assert!(at(&ledger, address, 100).is_empty(), "the first is gone");
            assert_eq!(at(&ledger, address, 101).len(), 1);
        }
        assert_eq!(at(&ledger, "2001:db8::9", 1 << 40), [(7, 10, None, true)]);
        ledger.lock().settle(&store, old, 1 << 41);
        assert_eq!(ledger.lock().book.entries.len(), ENTRIES_MAX);
    }
}
