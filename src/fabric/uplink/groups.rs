//! Which multicast groups the host listens to at the uplink, and when it says so (MLD, RFC 3810 §6). A queue that knows no clock and sends
//! nothing.
//!
//! New groups are reported at once, all of them a second later again, and all when a router asks. Whoever asks, and however often: all
//! groups are reported once a second at most.

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use hostweave_switch::MacAddr;
use hostweave_switch::wire::ipv6::solicited_node;

use super::owned::unmapped;
use crate::services::mld::{self, Query};
use crate::services::uplink::Frame;

/// Between two reports of all groups (RFC 3810 §9.11, `Unsolicited Report Interval`).
const APART: Duration = Duration::from_secs(1);

/// The longest that an answer waits.
const DELAY_MAX: Duration = Duration::from_secs(5);

/// How long reports are those of MLDv1 after a query of it (RFC 3810 §9.12, `Older Version Querier Present Timeout`, with the defaults of §9).
const OLD_FOR: Duration = Duration::from_secs(260);

/// The groups, and what is to be said about them.
#[derive(Default, Debug)]
pub struct Groups {
    joined: BTreeSet<Ipv6Addr>,
    /// Those that are to be reported now.
    next: VecDeque<Ipv6Addr>,
    /// Whether some of those are new.
    begins: bool,
    /// When all are to be reported again.
    again: Option<Instant>,
    /// When that began last.
    began: Option<Instant>,
    /// A router of MLDv1 was heard.
    old_until: Option<Instant>,
}

impl Groups {
    /// Listens to these from now on.
    pub fn set(&mut self, groups: BTreeSet<Ipv6Addr>, now: Instant) {
        self.next.retain(|group| groups.contains(group));
        let before = self.next.len();
        self.next.extend(groups.difference(&self.joined));
        if self.next.len() > before {
            self.begins = true;
            self.all_at(now + APART);
        }
        self.joined = groups;
    }

    /// The cable is new: nobody there has heard of any of them.
    pub fn restart(&mut self, now: Instant) {
        self.next = self.joined.iter().copied().collect();
        self.begins = true;
        (self.began, self.old_until) = (Some(now), None);
        self.again = Some(now + APART);
    }

    /// A router asks. Hosts that answer spread by their link addresses, the last octet of which is `salt`.
    pub fn asked(&mut self, query: &Query, salt: u8, now: Instant) {
        if query.old {
            self.old_until = Some(now + OLD_FOR);
        }
        if query.group.is_unspecified() || self.joined.contains(&query.group) {
            // At most half of what is granted: the rest is for sending.
            let within = Duration::from_millis(query.within_ms.into()).min(DELAY_MAX);
            self.all_at(now + within * u32::from(salt) / 512);
        }
    }

    fn all_at(&mut self, at: Instant) {
        let earliest = self.began.map_or(at, |began| at.max(began + APART));
        self.again = Some(self.again.map_or(earliest, |again| again.min(earliest)));
    }

    /// At most `max` reports that are to be sent now.
    pub fn take(&mut self, mac: MacAddr, now: Instant, max: usize) -> Vec<Frame> {
        if self.next.is_empty() && self.again.is_some_and(|at| at <= now) {
            (self.again, self.began) = (None, Some(now));
            self.next = self.joined.iter().copied().collect();
        }
        let old = self.old_until.is_some_and(|until| now < until);
        let size = if old { 1 } else { mld::RECORDS_MAX };
        let mut frames = Vec::new();
        while frames.len() < max && !self.next.is_empty() {
            let groups: Vec<Ipv6Addr> = self.next.drain(..self.next.len().min(size)).collect();
            frames.push(match groups[..] {
                [group] if old => mld::old_report(mac, group),
                _ => mld::report(mac, &groups, self.begins),
            });
        }
        self.begins &= !self.next.is_empty();
        frames
    }

    /// When [`Groups::take`] has something.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        if self.next.is_empty() { self.again } else { Some(now) }
    }
}

/// The groups by which neighbours ask for addresses (RFC 4861 §7.2.1).
pub fn of<'a>(owned: impl Iterator<Item = &'a u128>) -> BTreeSet<Ipv6Addr> {
    let v6 = owned.filter_map(|address| match unmapped(*address) {
        IpAddr::V6(v6) => Some(solicited_node(v6)),
        IpAddr::V4(_) => None,
    });
    v6.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x77]);

    fn groups(range: std::ops::Range<u16>) -> BTreeSet<Ipv6Addr> {
        range.map(|last| Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, last)).collect()
    }

    /// Type of ICMPv6 and number of records of what is sent at that time.
    fn sent(groups: &mut Groups, now: Instant, max: usize) -> Vec<(u8, usize)> {
        let frames = groups.take(MAC, now, max);
        frames.iter().map(|frame| (frame[62], if frame[62] == 143 { frame[69].into() } else { 1 })).collect()
    }

    const GENERAL: Query = Query { group: Ipv6Addr::UNSPECIFIED, within_ms: 10_000, old: false };

    #[test]
    fn new_groups_are_reported_at_once_and_all_of_them_a_second_later() {
        let (mut all, start) = (Groups::default(), Instant::now());
        all.set(groups(0..2), start);
        assert_eq!(sent(&mut all, start, 9), [(143, 2)]);
        assert_eq!(sent(&mut all, start, 9), []);
        all.set(groups(1..5), start);
        assert_eq!(sent(&mut all, start, 9), [(143, 3)], "those that are new");
        assert_eq!(sent(&mut all, start + APART, 9), [(143, 4)]);
        assert_eq!(all.due(start + APART), None);
        all.restart(start + 9 * APART);
        assert_eq!(sent(&mut all, start + 9 * APART, 9), [(143, 4)]);
        assert_eq!(sent(&mut all, start + 10 * APART, 9), [(143, 4)]);
        assert_eq!(sent(&mut all, start + 99 * APART, 9), []);
    }

    #[test]
    fn a_flood_of_queries_is_answered_once_a_second() {
        let (mut all, start) = (Groups::default(), Instant::now());
        all.set(groups(0..150), start);
        assert_eq!(sent(&mut all, start, 2), [(143, 60), (143, 60)]);
        assert_eq!(all.due(start), Some(start), "and the rest");
        assert_eq!(sent(&mut all, start, 2), [(143, 30)]);
        let mut count = 0;
        for ms in 0..10_000 {
            let now = start + Duration::from_millis(ms);
            all.asked(&Query { within_ms: 0, ..GENERAL }, 0xff, now);
            all.asked(&GENERAL, 0xff, now);
            count += sent(&mut all, now, 9).iter().map(|(_, records)| records).sum::<usize>();
        }
        assert!((9 * 150..=10 * 150).contains(&count), "{count}");
    }

    #[test]
    fn an_answer_waits_at_most_half_the_time_and_foreign_groups_have_none() {
        let (mut all, start) = (Groups::default(), Instant::now());
        all.set(groups(0..1), start);
        for at in [0, 1] {
            sent(&mut all, start + at * APART, 9);
        }
        let now = start + 9 * APART;
        let ours = *groups(0..1).first().unwrap();
        let foreign = *groups(7..8).first().unwrap();
        all.asked(&Query { group: foreign, ..GENERAL }, 0xff, now);
        assert_eq!(all.due(now), None);
        all.asked(&Query { group: ours, within_ms: 1_000, ..GENERAL }, 0xff, now);
        assert!(all.due(now).unwrap() <= now + Duration::from_millis(500));
        assert_eq!(sent(&mut all, now + Duration::from_millis(500), 9), [(143, 1)]);
        // A router of MLDv1 knows no other reports, for a while.
        all.asked(&Query { old: true, ..GENERAL }, 0, now + 5 * APART);
        all.set(groups(0..3), now + 5 * APART);
        assert_eq!(sent(&mut all, now + 5 * APART, 9), [(131, 1); 2]);
        assert_eq!(sent(&mut all, now + 6 * APART, 9), [(131, 1); 3]);
        all.asked(&GENERAL, 0, now + 5 * APART + OLD_FOR);
        assert_eq!(sent(&mut all, now + 5 * APART + OLD_FOR, 9), [(143, 3)]);
    }
}
