//! Tells the neighbours at the uplink which addresses are here: each three times, a second apart, when it arrives or the
//! cable does (RFC 5227 §2.3, RFC 4861 §7.2.6). A queue that knows no clock and sends nothing.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Times that an address is announced (RFC 4861 §10, `MAX_NEIGHBOR_ADVERTISEMENT`).
const TIMES: u8 = 3;
/// Between two of them (RFC 4861 §10, `RETRANS_TIMER`).
const APART: Duration = Duration::from_secs(1);

/// Announcements that wait, in the order in which they are due.
#[derive(Default, Debug)]
pub struct Announcements(VecDeque<Waiting>);

#[derive(Debug)]
struct Waiting {
    due: Instant,
    address: IpAddr,
    left: u8,
}

impl Announcements {
    /// Has addresses announced, from now on.
    pub fn add(&mut self, addresses: impl IntoIterator<Item = IpAddr>, now: Instant) {
        let new: Vec<IpAddr> = addresses.into_iter().collect();
        let known: std::collections::HashSet<&IpAddr> = new.iter().collect();
        self.0.retain(|waiting| !known.contains(&waiting.address));
        // Before those that have waited for their next time: they are due now.
        for address in new.into_iter().rev() {
            self.0.push_front(Waiting { due: now, address, left: TIMES });
        }
    }

    /// Has an address announced a single time, now, beside what waits (RFC 5227 §2.4).
    pub fn once(&mut self, address: IpAddr, now: Instant) {
        self.0.push_front(Waiting { due: now, address, left: 1 });
    }

    /// Announces only these addresses from now on.
    pub fn retain(&mut self, keep: impl Fn(&IpAddr) -> bool) {
        self.0.retain(|waiting| keep(&waiting.address));
    }

    /// At most `max` addresses that are to be announced now.
    pub fn take(&mut self, now: Instant, max: usize) -> Vec<IpAddr> {
        let mut due = Vec::new();
        while due.len() < max && self.is_due(now) {
            let Some(waiting) = self.0.pop_front() else { break };
            due.push(waiting.address);
            if waiting.left > 1 {
                self.0.push_back(Waiting { due: now + APART, left: waiting.left - 1, ..waiting });
            }
        }
        due
    }

    /// Whether something is to be announced now.
    pub fn is_due(&self, now: Instant) -> bool {
        self.0.front().is_some_and(|waiting| waiting.due <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(range: std::ops::Range<u8>) -> Vec<IpAddr> {
        range.map(|last| IpAddr::from([192, 0, 2, last])).collect()
    }

    #[test]
    fn each_address_three_times_a_second_apart() {
        let (mut waiting, start) = (Announcements::default(), Instant::now());
        waiting.add(addresses(0..5), start);
        let mut told: Vec<(u32, IpAddr)> = Vec::new();
        for tenth in 0..100u32 {
            let now = start + Duration::from_millis(100) * tenth;
            told.extend(waiting.take(now, 2).into_iter().map(|address| (tenth, address)));
        }
        for address in addresses(0..5) {
            let times: Vec<u32> = told.iter().filter(|(_, told)| *told == address).map(|(tenth, _)| *tenth).collect();
            assert_eq!(times.len(), 3);
            assert!(times[1] - times[0] >= 10 && times[2] - times[1] >= 10 && times[2] <= 25, "{times:?}");
        }
        assert!(!waiting.is_due(start + Duration::from_secs(3600)));
    }

    #[test]
    fn an_address_that_is_announced_anew_begins_anew_and_one_that_left_is_not_announced() {
        let (mut waiting, start) = (Announcements::default(), Instant::now());
        waiting.add(addresses(0..2), start);
        assert_eq!(waiting.take(start, 9), addresses(0..2));
        waiting.add(addresses(1..3), start);
        assert_eq!(waiting.take(start, 9), addresses(1..3));
        waiting.retain(|address| *address == addresses(1..2)[0]);
        assert_eq!(waiting.take(start + APART, 9), addresses(1..2));
        assert!(waiting.take(start + APART, 9).is_empty());
        assert_eq!(waiting.take(start + 2 * APART, 9), addresses(1..2));
        assert!(waiting.take(start + 9 * APART, 9).is_empty());
    }
}
