//! Counters, and the two sums that must close.
//!
//! Input, of each port: `received = forwarded + replied + Σ dropped(reason) + queued`. Output, of the whole host:
//! `forwarded + replied + originated + copies + extra segments = transmitted + Σ tx_dropped(reason) + tx_queued`.
//! Each worker owns one [`PortCounters`] of every port and is its only writer, so that adding is a load and a store.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crossbeam_utils::CachePadded;

use crate::stage::{DROP_REASONS, DropReason};

/// A counter with one writer and any number of readers.
#[derive(Default, Debug)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; only the owning worker may.
    #[inline]
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(count), Relaxed);
    }

    /// Takes back what was added too early; only the owning worker may.
    #[inline]
    pub fn sub(&self, count: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(count), Relaxed);
    }

    /// The value now.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// One counter per drop reason.
#[derive(Debug)]
pub struct DropCounters([Counter; DROP_REASONS]);

impl Default for DropCounters {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl DropCounters {
    /// Counts `count` packets that ended for `reason`.
    #[inline]
    pub fn add(&self, reason: DropReason, count: u64) {
        self.0[reason as usize].add(count);
    }

    /// How many ended for `reason`.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason as usize].get()
    }
}

/// One worker's counters of one port. Packets count segments of GSO frames only where a name says so.
#[derive(Default, Debug)]
pub struct PortCounters(CachePadded<PortCountersInner>);

/// The fields of [`PortCounters`].
#[derive(Default, Debug)]
pub struct PortCountersInner {
    /// Frames taken from the port.
    pub received: Counter,
    /// Octets of those frames, without virtio-net headers.
    pub received_bytes: Counter,
    /// Frames from the port that went on to another port.
    pub forwarded: Counter,
    /// Frames from the port that the switch answered itself.
    pub replied: Counter,
    /// Frames from the port that ended, by reason.
    pub dropped: DropCounters,
    /// Frames from the port that wait in a bounded buffer of ours (a gauge).
    pub queued: Counter,
    /// Frames that the switch made itself towards the port (ICMP errors, announcements).
    pub originated: Counter,
    /// Frames beyond the first that software segmentation made for the port.
    pub extra_segments: Counter,
    /// Frames written to the port.
    pub transmitted: Counter,
    /// Octets of those frames.
    pub transmitted_bytes: Counter,
    /// Frames for the port that could not be written, by reason.
    pub tx_dropped: DropCounters,
    /// Frames for the port that wait in a stash of ours (a gauge).
    pub tx_queued: Counter,
    /// Interrupts sent to the guest.
    pub calls: Counter,
    /// Bursts taken from the port.
    pub bursts: Counter,
}

impl std::ops::Deref for PortCounters {
    type Target = PortCountersInner;

    #[inline]
    fn deref(&self) -> &PortCountersInner {
        &self.0
    }
}

/// The counters of all workers of one port, added up. Plain numbers.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub struct PortTotals {
    /// See [`PortCountersInner`]; the names are the same.
    pub received: u64,
    #[allow(missing_docs)]
    pub received_bytes: u64,
    #[allow(missing_docs)]
    pub forwarded: u64,
    #[allow(missing_docs)]
    pub replied: u64,
    #[allow(missing_docs)]
    pub queued: u64,
    #[allow(missing_docs)]
    pub originated: u64,
    #[allow(missing_docs)]
    pub extra_segments: u64,
    #[allow(missing_docs)]
    pub transmitted: u64,
    #[allow(missing_docs)]
    pub transmitted_bytes: u64,
    #[allow(missing_docs)]
    pub tx_queued: u64,
    #[allow(missing_docs)]
    pub calls: u64,
    #[allow(missing_docs)]
    pub bursts: u64,
    /// Reasons with a count above zero, in the order of [`DropReason::ALL`].
    pub dropped: Vec<(DropReason, u64)>,
    /// As `dropped`, for frames towards the port.
    pub tx_dropped: Vec<(DropReason, u64)>,
}

impl PortTotals {
    /// Adds up the workers' counters.
    pub fn of(workers: &[PortCounters]) -> Self {
        let sum = |field: fn(&PortCountersInner) -> &Counter| {
            workers.iter().map(|worker| field(worker).get()).fold(0, u64::wrapping_add)
        };
        let drops = |field: fn(&PortCountersInner) -> &DropCounters| {
            let count = |reason| workers.iter().map(|worker| field(worker).get(reason)).sum::<u64>();
            DropReason::ALL.iter().map(|&reason| (reason, count(reason))).filter(|(_, count)| *count > 0).collect()
        };
        Self {
            received: sum(|c| &c.received),
            received_bytes: sum(|c| &c.received_bytes),
            forwarded: sum(|c| &c.forwarded),
            replied: sum(|c| &c.replied),
            queued: sum(|c| &c.queued),
            originated: sum(|c| &c.originated),
            extra_segments: sum(|c| &c.extra_segments),
            transmitted: sum(|c| &c.transmitted),
            transmitted_bytes: sum(|c| &c.transmitted_bytes),
            tx_queued: sum(|c| &c.tx_queued),
            calls: sum(|c| &c.calls),
            bursts: sum(|c| &c.bursts),
            dropped: drops(|c| &c.dropped),
            tx_dropped: drops(|c| &c.tx_dropped),
        }
    }

    /// Adds another port's totals.
    pub fn add(&mut self, other: &PortTotals) {
        let fields: [(&mut u64, u64); 12] = [
            (&mut self.received, other.received),
            (&mut self.received_bytes, other.received_bytes),
            (&mut self.forwarded, other.forwarded),
            (&mut self.replied, other.replied),
            (&mut self.queued, other.queued),
            (&mut self.originated, other.originated),
            (&mut self.extra_segments, other.extra_segments),
            (&mut self.transmitted, other.transmitted),
            (&mut self.transmitted_bytes, other.transmitted_bytes),
            (&mut self.tx_queued, other.tx_queued),
            (&mut self.calls, other.calls),
            (&mut self.bursts, other.bursts),
        ];
        for (field, more) in fields {
            *field = field.wrapping_add(more);
        }
        for (sums, more) in [(&mut self.dropped, &other.dropped), (&mut self.tx_dropped, &other.tx_dropped)] {
            for (reason, count) in more {
                match sums.iter_mut().find(|(known, _)| known == reason) {
                    Some((_, sum)) => *sum += count,
                    None => sums.push((*reason, *count)),
                }
            }
        }
    }

    /// Frames from the port that ended, all reasons.
    pub fn dropped_all(&self) -> u64 {
        self.dropped.iter().map(|(_, count)| count).sum()
    }

    /// Frames for the port that could not be written, all reasons.
    pub fn tx_dropped_all(&self) -> u64 {
        self.tx_dropped.iter().map(|(_, count)| count).sum()
    }

    /// The input sum: every received frame is accounted for.
    pub fn input_closes(&self) -> bool {
        self.received == self.forwarded + self.replied + self.dropped_all() + self.queued
    }
}

/// The output sum over all ports of a host: every frame that was to be sent is accounted for.
pub fn output_closes<'a>(ports: impl IntoIterator<Item = &'a PortTotals>) -> bool {
    let (mut due, mut done) = (0, 0);
    for port in ports {
        due += port.forwarded + port.replied + port.originated + port.extra_segments;
        done += port.transmitted + port.tx_dropped_all() + port.tx_queued;
    }
    due == done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_add_workers_and_close() {
        let workers: Vec<PortCounters> = (0..2).map(|_| PortCounters::default()).collect();
        workers[0].received.add(3);
        workers[1].received.add(1);
        workers[0].forwarded.add(2);
        workers[0].transmitted.add(2);
        workers[1].dropped.add(DropReason::SpoofedIp, 1);
        assert!(!PortTotals::of(&workers).input_closes());
        workers[0].dropped.add(DropReason::SpoofedIp, 1);
        let totals = PortTotals::of(&workers);
        assert_eq!(totals.dropped, [(DropReason::SpoofedIp, 2)]);
        assert!(totals.input_closes());
        assert!(output_closes([&totals]));
        let mut twice = totals.clone();
        twice.add(&totals);
        assert_eq!((twice.received, twice.transmitted), (8, 4));
        assert_eq!(twice.dropped, [(DropReason::SpoofedIp, 4)]);
        assert!(twice.input_closes());
    }
}
