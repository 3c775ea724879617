//! Who had which blocks of outside L4 ports, by name and by the clock of the wall (RFC 6888 REQ-12; SEMANTICS NA28, NA32). Kept in
//! the store: the question "who had this at that time" is asked when the port is long deleted, the daemon restarted, the host
//! booted anew.
//!
//! The packet path's own table knows the leases of this boot to the second, and is asked first for those that are in force. A block that
//! nobody uses goes back after two minutes: of a busy host the book has days, and the log of the daemon all.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::ledger::{self, Book, Changes, ENTRIES_MAX, Entry, seconds};
use crate::fabric::nat_report::LeaseView;
use crate::store::{NAT_LEASES, Store};

/// Seconds by which two accounts of one beginning may differ: the packet path counts seconds of the monotonic clock. A block that was
/// given back stays empty for longer than that (`hostweave_nat::HOLD_S`).
const SAME_TIME_S: u64 = 5;

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
        ledger::time(self.since)
    }

    /// When it ended.
    pub fn until(&self) -> Option<SystemTime> {
        self.until.map(ledger::time)
    }

    fn is_same_block(&self, other: &Self) -> bool {
        (self.uid, self.address, self.first) == (other.uid, other.address, other.first)
    }

    /// Whether both began at the same time, of one block and port.
    fn is_same_time(&self, other: &Self) -> bool {
        self.since.abs_diff(other.since) <= SAME_TIME_S
    }
}

impl Entry for NatLease {
    fn place(&self) -> (IpAddr, u16) {
        (self.address, self.first)
    }

    fn span(&self) -> (u64, Option<u64>) {
        (self.since, self.until)
    }
}

/// See the file's head.
#[derive(Default)]
pub struct NatLedger(Mutex<Book<NatLease>>);

impl NatLedger {
    /// As the store has it, by number.
    pub fn new(leases: BTreeMap<u64, NatLease>) -> Self {
        Self(Mutex::new(Book::new(leases)))
    }

    /// Writes what began (`until` is `None`) and what ended, in one go. A failure of the disk is logged: what happened is in the log
    /// of events, and traffic goes on.
    pub fn record(&self, store: &Store, happened: Vec<NatLease>) {
        let mut book = self.lock();
        let mut changes = Changes::default();
        for lease in happened {
            match lease.until {
                None => book.begin(lease, &mut changes),
                Some(until) => book.end(lease, until, &mut changes),
            }
        }
        changes.write(store, NAT_LEASES, UNWRITTEN);
    }

    /// Puts in order what happened while nobody listened: `known` is every lease, in force or ended, that the packet path knows, in any
    /// order. What was in force before and is not known any more was lost with the host, some time before `now`. Of what has begun and
    /// ended meanwhile it must be said that it was `unheard`: a clock that was set makes what is known look like that.
    pub fn reconcile(&self, store: &Store, mut known: Vec<NatLease>, unheard: bool, now: SystemTime) {
        known.sort_by_key(|lease| lease.since);
        let mut book = self.lock();
        let mut changes = Changes::default();
        let (ended, in_force): (Vec<NatLease>, Vec<NatLease>) =
            known.into_iter().partition(|lease| lease.until.is_some());
        for lease in ended {
            // A block has many owners in turn, and one owner may have it many times: only its beginning tells which time that was.
            let Some(until) = lease.until else { continue };
            let open = book.open_of(&lease).is_some_and(|(_, open)| open.is_same_time(&lease));
            if open || unheard && book.has_room_for(until) && book.known(&lease).is_none() {
                book.end(lease, until, &mut changes);
            }
        }
        book.end_lost(&in_force, seconds(now), &mut changes);
        for lease in in_force {
            if book.open_of(&lease).is_none() {
                book.begin(lease, &mut changes);
            }
        }
        changes.write(store, NAT_LEASES, UNWRITTEN);
    }

    /// Who had an address, or one L4 port of it, at a time; by first L4 port.
    pub fn at(&self, address: IpAddr, l4: Option<u16>, at: SystemTime) -> Vec<NatLease> {
        let at = seconds(at);
        let right = |lease: &&NatLease| {
            l4.is_none_or(|l4| (lease.first..=lease.last).contains(&l4))
                && lease.since <= at
                && lease.until.is_none_or(|until| at < until)
        };
        self.lock().of(address).filter(right).cloned().collect()
    }

    /// Name that a port had last, deleted or not.
    pub fn name(&self, uid: Uuid) -> Option<String> {
        self.lock().entries.values().rev().find(|lease| lease.uid == uid)?.port.clone()
    }

    /// Every name that is known.
    pub fn names(&self) -> HashMap<Uuid, String> {
        self.lock().entries.values().filter_map(|lease| Some((lease.uid, lease.port.clone()?))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Book<NatLease>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book<NatLease> {
    /// The entry in force of the block of a lease, if the same port has it.
    fn open_of(&self, lease: &NatLease) -> Option<(u64, &NatLease)> {
        self.open_at(lease.place()).filter(|(_, open)| open.is_same_block(lease))
    }

    /// The entry of a lease, in force or ended.
    fn known(&self, lease: &NatLease) -> Option<u64> {
        let at = |since, number| (lease.address, lease.first, since, number);
        let first = at(lease.since.saturating_sub(SAME_TIME_S), 0);
        let last = at(lease.since.saturating_add(SAME_TIME_S), u64::MAX);
        let mut numbers = self.begun.range(first..=last).rev().map(|(.., number)| *number);
        numbers.find(|number| self.entries.get(number).is_some_and(|other| other.is_same_block(lease)))
    }

    /// Whether a lease that ended then would not be the first that goes.
    fn has_room_for(&self, until: u64) -> bool {
        self.entries.len() < ENTRIES_MAX || self.ended.first().is_some_and(|(oldest, _)| *oldest < until)
    }

    /// A lease begins. What a daemon hears while it starts, or has lost events, it may have read from the packet path already: that is
    /// entered once.
    fn begin(&mut self, mut lease: NatLease, changes: &mut Changes<NatLease>) {
        if self.known(&lease).is_some() {
            return;
        }
        // Entries in force do not overlap: those before the first that ends too early end earlier still.
        let before = self.open.range(..=(lease.address, lease.last)).rev();
        let before = before.filter_map(|(_, number)| Some((*number, self.entries.get(number)?.clone())));
        let overlaps = |other: &NatLease| other.address == lease.address && other.last >= lease.first;
        let overlapping: Vec<_> = before.take_while(|(_, other)| overlaps(other)).collect();
        for (number, other) in overlapping {
            if other.since <= lease.since {
                // Nobody heard of its end, which was before this.
                self.put(number, NatLease { until: Some(lease.since), ..other }, changes);
            } else {
                // Heard late: it has ended, and whoever came after it is known.
                lease.until = Some(lease.until.map_or(other.since, |until| until.min(other.since)));
            }
        }
        self.add(lease, changes);
    }

    /// A lease has ended. Its times are those that the packet path tells now: both by the same clock.
    fn end(&mut self, lease: NatLease, until: u64, changes: &mut Changes<NatLease>) {
        // Told twice, or after somebody else had the block.
        let told = self.known(&lease);
        let open = self.open_of(&lease).filter(|(_, open)| until.saturating_add(SAME_TIME_S) >= open.since);
        match told.or(open.map(|(number, _)| number)) {
            Some(number) => {
                let port =
                    self.entries.get(&number).and_then(|entry| entry.port.clone()).or_else(|| lease.port.clone());
                self.put(number, NatLease { port, ..lease }, changes);
            }
            None => self.add(lease, changes),
        }
    }

    /// Ends what is in force here and nowhere else.
    fn end_lost(&mut self, in_force: &[NatLease], now: u64, changes: &mut Changes<NatLease>) {
        let in_force: HashMap<_, u64> =
            in_force.iter().map(|lease| ((lease.uid, lease.address, lease.first), lease.since)).collect();
        let mut lost = Vec::new();
        for (number, entry) in self.entries.iter().filter(|(_, entry)| entry.until.is_none()) {
            let later = self.open.get(&(entry.address, entry.first)).is_some_and(|later| later != number);
            let known = in_force.get(&(entry.uid, entry.address, entry.first)).copied();
            let goes_on = known.is_some_and(|since| since <= entry.since.saturating_add(SAME_TIME_S));
            if later || !goes_on {
                // Of an entry whose end could not be written the next one tells.
                let next = self.next(*number, entry).map(|next| next.since);
                let until = next.or(known).unwrap_or(now).max(entry.since);
                lost.push((*number, NatLease { until: Some(until), ..entry.clone() }));
            }
        }
        for (number, entry) in lost {
            self.put(number, entry, changes);
        }
    }
}

/// What is not written when the disk fails: it is in the log of events all the same.
const UNWRITTEN: &str = "who has which L4 ports of a NAT address";

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

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
            // It had the block before, too, which is told last: no order.
            NatLease { until: Some(60), ..lease(1, v4, 1024, 20) },
            NatLease { until: Some(60), ..lease(1, v6, 1024, 20) },
            NatLease { until: Some(60), ..lease(2, v4, 2048, 20) },
            lease(2, v4, 2048, 101),
            lease(3, v6, 4096, 140),
        ];
        ledger.reconcile(&store, known, false, time(500));
        let until = |address: &str, l4, at| {
            ledger.at(address.parse().unwrap(), Some(l4), time(at)).first().map(|lease| (lease.since, lease.until))
        };
        assert_eq!(until(v4, 1024, 149), Some((100, Some(150))), "the packet path knew when");
        assert_eq!(until(v6, 1024, 400), Some((100, Some(500))), "nobody knows when");
        assert_eq!(until(v4, 2048, 600), Some((100, None)), "goes on");
        assert_eq!(until(v6, 4096, 600), Some((140, None)));
    }

    #[test]
    fn an_end_that_could_not_be_written_is_where_the_next_one_begins() {
        let (store, _) = Store::in_memory().unwrap();
        for address in ADDRESSES {
            let block = |uid, since, until| NatLease { until, ..lease(uid, address, 1024, since) };
            let kept = [block(1, 100, None), block(2, 200, Some(300)), block(3, 400, None)];
            let ledger = NatLedger::new((0..).zip(kept).collect());
            ledger.reconcile(&store, vec![block(3, 400, None)], false, time(500));
            let at = |second| ledger.at(address.parse().unwrap(), Some(1024), time(second));
            assert_eq!(at(150), [block(1, 100, Some(200))]);
            assert_eq!(at(250), [block(2, 200, Some(300))]);
            assert_eq!((at(350), at(450)), (vec![], vec![block(3, 400, None)]));
        }
    }

    #[test]
    fn an_older_lease_of_a_block_does_not_end_the_one_in_force() {
        for [older, newer] in [[0, 1], [1, 0]] {
            let (store, _) = Store::in_memory().unwrap();
            let ledger = NatLedger::default();
            for address in ADDRESSES {
                ledger.record(&store, vec![lease(1, address, 1024, 1000)]);
                let both = [(100, Some(300)), (1000, Some(1700))];
                let known = [older, newer].map(|at: usize| {
                    let (since, until) = both[at];
                    NatLease { until, ..lease(1, address, 1024, since) }
                });
                ledger.reconcile(&store, known.to_vec(), false, time(5000));
                let had = ledger.at(address.parse().unwrap(), Some(1024), time(1500));
                assert_eq!(had, [NatLease { until: Some(1700), ..lease(1, address, 1024, 1000) }]);
            }
        }
    }

    #[test]
    fn what_is_told_twice_while_the_daemon_starts_is_entered_once() {
        let (store, _) = Store::in_memory().unwrap();
        let ledger = NatLedger::default();
        for address in ADDRESSES {
            let block = |since, until| NatLease { until, ..lease(1, address, 1024, since) };
            ledger.reconcile(&store, vec![block(100, Some(250)), block(400, None)], false, time(500));
            // The events of the same wait in their queue.
            ledger.record(&store, vec![block(101, None), block(100, Some(250)), block(401, None)]);
            let at = |second| ledger.at(address.parse().unwrap(), Some(1024), time(second));
            assert_eq!(at(200), [block(100, Some(250))]);
            assert_eq!((at(300), at(450)), (Vec::new(), vec![block(400, None)]));
            ledger.record(&store, vec![block(401, Some(700)), block(401, Some(700))]);
            assert_eq!(at(650), [block(401, Some(700))]);
            assert!(at(800).is_empty(), "none stays open");
        }
        assert!(ledger.lock().open.is_empty());
        assert_eq!(ledger.lock().entries.len(), 4);
    }

    #[test]
    fn a_lease_whose_end_nobody_heard_of_ends_where_the_next_begins() {
        let (store, _) = Store::in_memory().unwrap();
        let ledger = NatLedger::default();
        for address in ADDRESSES {
            let whole = NatLease { last: 2047, ..lease(1, address, 1024, 100) };
            ledger.record(&store, vec![whole, lease(2, address, 2048, 100)]);
            // Of another size: a part of it.
            ledger.record(&store, vec![lease(3, address, 1536, 900)]);
            let had = |l4, second| -> Vec<Uuid> {
                let had = ledger.at(address.parse().unwrap(), Some(l4), time(second));
                had.iter().map(|lease| lease.uid).collect()
            };
            assert_eq!(had(1600, 899), [Uuid::from_u128(1)]);
            assert_eq!((had(1600, 900), had(1100, 900)), (vec![Uuid::from_u128(3)], vec![]));
            assert_eq!(had(2048, 2000), [Uuid::from_u128(2)], "the neighbour's");
        }
    }

    #[test]
    fn entries_that_an_earlier_version_left_open_twice_end_at_the_next_start() {
        let (store, _) = Store::in_memory().unwrap();
        let [v4, v6] = ADDRESSES;
        let left = [lease(1, v4, 1024, 100), lease(1, v6, 1024, 100), lease(1, v4, 1024, 101), lease(1, v6, 1024, 101)];
        let ledger = NatLedger::new((0..).zip(left).collect());
        ledger.reconcile(&store, vec![lease(1, v4, 1024, 100), lease(1, v6, 1024, 100)], false, time(500));
        for address in ADDRESSES {
            assert_eq!(ledger.at(address.parse().unwrap(), None, time(600)), [lease(1, address, 1024, 101)]);
        }
    }

    #[test]
    fn an_end_has_its_times_by_one_clock() {
        let (store, _) = Store::in_memory().unwrap();
        let ledger = NatLedger::default();
        for address in ADDRESSES {
            ledger.record(&store, vec![lease(1, address, 1024, 100)]);
            // The clock was set an hour on in between.
            let ended = NatLease { port: None, until: Some(3900), ..lease(1, address, 1024, 3700) };
            ledger.record(&store, vec![ended]);
            let kept = NatLease { until: Some(3900), ..lease(1, address, 1024, 3700) };
            assert_eq!(ledger.at(address.parse().unwrap(), None, time(3800)), [kept]);
            assert!(ledger.at(address.parse().unwrap(), None, time(200)).is_empty());
        }
    }

    #[test]
    fn the_ledger_is_bounded_and_forgets_the_oldest() {
        let (store, _) = Store::in_memory().unwrap();
        let ledger = NatLedger::default();
        let all = (0..ENTRIES_MAX as u64 + 10).map(|n| lease(n.into(), "203.0.113.7", 1024, n));
        ledger.record(&store, all.collect());
        assert_eq!(ledger.lock().entries.len(), ENTRIES_MAX);
        assert!(ledger.at("203.0.113.7".parse().unwrap(), None, time(9)).is_empty());
        assert_eq!(ledger.at("203.0.113.7".parse().unwrap(), None, time(10)).len(), 1);
    }

    #[test]
    fn na32_what_is_in_force_is_kept_when_newer_ones_have_ended() {
        let (store, _) = Store::in_memory().unwrap();
        let ledger = NatLedger::default();
        for address in ADDRESSES {
            // Had for months.
            ledger.record(&store, vec![lease(1, address, 1024, 100)]);
        }
        let ended = |n: u64| NatLease { until: Some(309 + n), ..lease(2, ADDRESSES[0], 2048, 300 + n) };
        ledger.record(&store, (0..ENTRIES_MAX as u64).map(|n| ended(10 * n)).collect());
        // One that ended first of all is heard of last.
        ledger.record(&store, vec![NatLease { until: Some(250), ..lease(3, ADDRESSES[1], 2048, 200) }]);
        assert_eq!(ledger.lock().entries.len(), ENTRIES_MAX);
        let had = |address: &str, l4, at| ledger.at(address.parse().unwrap(), Some(l4), time(at)).len();
        for address in ADDRESSES {
            assert_eq!(had(address, 1024, 1_000_000), 1, "in force");
        }
        assert_eq!([305, 315, 325].map(|at| had(ADDRESSES[0], 2048, at)), [0, 0, 1], "the first two ended first");
        assert_eq!(had(ADDRESSES[1], 2048, 220), 0);
        // Where nothing has ended, the oldest goes.
        let ledger = NatLedger::default();
        let all = (0..ENTRIES_MAX as u64 + 1).map(|n| {
            let address = std::net::Ipv4Addr::from(0xc633_6400 + n as u32);
            NatLease { address: address.into(), ..lease(1, ADDRESSES[0], 1024, n) }
        });
        ledger.record(&store, all.collect());
        assert_eq!(ledger.lock().entries.len(), ENTRIES_MAX);
        assert!(!ledger.lock().entries.contains_key(&0) && ledger.lock().open.len() == ENTRIES_MAX);
    }

    #[test]
    fn na32_what_nobody_heard_of_is_entered_afterwards() {
        let (store, _) = Store::in_memory().unwrap();
        let ledger = NatLedger::default();
        for address in ADDRESSES {
            let block = |uid, since, until| NatLease { until, ..lease(uid, address, 1024, since) };
            ledger.record(&store, vec![block(1, 100, None)]);
            // Lost: its end, another port's turn, and that it has it again.
            let known = vec![block(1, 700, None), block(2, 300, Some(600)), block(1, 100, Some(250))];
            for _ in 0..2 {
                ledger.reconcile(&store, known.clone(), true, time(900));
                let at = |second| ledger.at(address.parse().unwrap(), Some(1024), time(second));
                assert_eq!((at(200), at(275)), (vec![block(1, 100, Some(250))], vec![]));
                assert_eq!((at(400), at(650)), (vec![block(2, 300, Some(600))], vec![]));
                assert_eq!(at(1000), [block(1, 700, None)]);
            }
            // What waited in the queue is heard late.
            ledger.record(&store, vec![block(2, 301, None), block(2, 301, Some(601)), block(1, 701, None)]);
            let at = |second| ledger.at(address.parse().unwrap(), Some(1024), time(second)).len();
            assert_eq!((at(200), at(400), at(650), at(1000)), (1, 1, 0, 1));
        }
        assert_eq!(ledger.lock().entries.len(), 6);
    }
}
