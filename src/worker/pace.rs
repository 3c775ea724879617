//! How often a port may make the switch itself do something: answers of `local`, ICMP errors, notes for control.
//!
//! Token buckets, one set per port and worker, refilled from the burst's clock reading.

use std::time::Instant;

use hostweave_switch::packet::Meta;
use hostweave_switch::stage::DropReason;
use hostweave_switch::tables::PortId;
use hostweave_switch::wire::proto;

use crate::services;

/// Answers of `local` a port may ask for, per second and worker; a flood of pings to the gateway costs no more.
const LOCAL_PER_S: u32 = 10_000;
/// Burst of answers.
const LOCAL_BURST: u32 = 1_000;
/// Answers to ARP and neighbour discovery, per second and worker. On their own: at the uplink anybody on the Internet may ask for
/// echoes, and whoever does must not make the host's addresses vanish from its link.
const NEIGHBOURS_PER_S: u32 = 10_000;
/// Burst of those.
const NEIGHBOURS_BURST: u32 = 1_000;
/// ICMP errors sent to a port, per second and worker (RFC 1812 §4.3.2.8, RFC 4443 §2.4 (f)).
const ICMP_ERRORS_PER_S: u32 = 100;
/// Burst of ICMP errors.
const ICMP_ERRORS_BURST: u32 = 50;
/// ICMP errors which say how long a packet may be, per second and worker. On their own, because paths do not work without (RFC 1191,
/// RFC 8201), whoever has other errors sent; and more, because behind the uplink are many. None is longer than what it is about.
const TOO_BIG_PER_S: u32 = 1_000;
/// Burst of those.
const TOO_BIG_BURST: u32 = 1_000;
/// TCP resets to a port, per second and worker. One is no longer than what it answers, and who asks waits for it; behind the uplink
/// are many.
const RESETS_PER_S: u32 = 10_000;
/// ... at once.
const RESETS_BURST: u32 = 1_000;
/// Notes for control that a port may cause, per second and worker: each costs work elsewhere, and all ports of a worker
/// share one bounded queue of them.
const NOTES_PER_S: u32 = 8;
/// Burst of notes: a guest that boots leases two addresses and forms a few.
const NOTES_BURST: u32 = 32;

/// Notes about somebody else at the uplink who claims an address of ours, per second and worker. On their own, too: whoever claims
/// routers' addresses hides none of them.
const CONFLICTS_PER_S: u32 = 8;
/// Burst of notes about claims.
const CONFLICTS_BURST: u32 = 32;

/// Notes about what routers at the uplink answer, per second and worker. On their own: whoever claims their addresses, or
/// ours, cannot keep control from hearing them.
const ROUTERS_PER_S: u32 = 64;
/// Burst of notes about routers.
const ROUTERS_BURST: u32 = 128;

/// Notes about what other neighbours at the uplink answer, per second and worker.
const ANSWERS_PER_S: u32 = 128;
/// Burst of those.
const ANSWERS_BURST: u32 = 256;

/// Notes about routers at the uplink that ask who listens to multicast, per second and worker. They are answered once a second at most.
const QUERIES_PER_S: u32 = 4;
/// Burst of those.
const QUERIES_BURST: u32 = 8;

/// Events for the flow log that a port may cause, per second and worker: a flood of new connections or drops must not drown
/// what others do. Each new connection is one.
const FLOW_EVENTS_PER_S: u32 = 1_000;
/// Burst of events.
const FLOW_EVENTS_BURST: u32 = 2_000;

/// Tokens, refilled with time.
#[derive(Clone, Copy)]
struct Bucket {
    tokens: u32,
    /// When it was refilled.
    at: Instant,
    /// When somebody last asked: for each packet of a burst it is the same.
    asked: Instant,
}

impl Bucket {
    fn take(&mut self, now: Instant, per_s: u32, burst: u32) -> bool {
        if now != self.asked {
            self.asked = now;
            self.refill(now, per_s, burst);
        }
        let had = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        had
    }

    fn refill(&mut self, now: Instant, per_s: u32, burst: u32) {
        // In 64 bits: a division of 128 costs more than all the rest.
        let elapsed = now.saturating_duration_since(self.at);
        let elapsed_us = elapsed.as_secs().saturating_mul(1_000_000) + u64::from(elapsed.subsec_micros());
        let whole = elapsed_us.saturating_mul(u64::from(per_s)) / 1_000_000;
        if whole > 0 {
            let whole = u32::try_from(whole).unwrap_or(u32::MAX);
            self.tokens = self.tokens.saturating_add(whole).min(burst);
            self.at = now;
        }
    }
}

/// What one port has left.
#[derive(Clone, Copy)]
struct Buckets {
    local: Bucket,
    neighbours: Bucket,
    icmp_errors: Bucket,
    too_big: Bucket,
    resets: Bucket,
    notes: Bucket,
    conflicts: Bucket,
    routers: Bucket,
    answers: Bucket,
    queries: Bucket,
    flow_events: Bucket,
}

/// The buckets of every port, as one worker sees them.
#[derive(Default)]
pub struct Pace {
    ports: Vec<Option<Buckets>>,
}

impl Pace {
    /// Makes room for ports below `count`; called when a new plane arrives, so that the packet path never grows it.
    pub fn resize(&mut self, count: usize) {
        self.ports.resize(count, None);
    }

    /// Whether the answer of `local` to a packet of this port may be sent now.
    #[inline]
    pub fn local(&mut self, port: PortId, meta: &Meta, now: Instant) -> bool {
        self.buckets(port, now).is_none_or(|buckets| match services::is_of_neighbours(meta) {
            true => buckets.neighbours.take(now, NEIGHBOURS_PER_S, NEIGHBOURS_BURST),
            false => buckets.local.take(now, LOCAL_PER_S, LOCAL_BURST),
        })
    }

    /// Whether an ICMP error about a packet that ended for `reason`, or a reset if `proto` is TCP, may be sent to this port now.
    #[inline]
    pub fn error(&mut self, port: PortId, proto: u8, reason: DropReason, now: Instant) -> bool {
        self.buckets(port, now).is_some_and(|buckets| match (proto, reason) {
            (proto::TCP, _) => buckets.resets.take(now, RESETS_PER_S, RESETS_BURST),
            (_, DropReason::MtuExceeded) => buckets.too_big.take(now, TOO_BIG_PER_S, TOO_BIG_BURST),
            _ => buckets.icmp_errors.take(now, ICMP_ERRORS_PER_S, ICMP_ERRORS_BURST),
        })
    }

    /// Whether control may hear of another thing that this port did now.
    #[cold]
    pub fn note(&mut self, port: PortId, now: Instant) -> bool {
        self.buckets(port, now).is_some_and(|buckets| buckets.notes.take(now, NOTES_PER_S, NOTES_BURST))
    }

    /// Whether control may hear now of somebody else at the uplink, behind this port, who claims an address of ours.
    #[cold]
    pub fn conflict(&mut self, port: PortId, now: Instant) -> bool {
        self.buckets(port, now).is_some_and(|buckets| buckets.conflicts.take(now, CONFLICTS_PER_S, CONFLICTS_BURST))
    }

    /// Whether control may hear of a router at the uplink, behind this port, now.
    #[cold]
    pub fn router(&mut self, port: PortId, now: Instant) -> bool {
        self.buckets(port, now).is_some_and(|buckets| buckets.routers.take(now, ROUTERS_PER_S, ROUTERS_BURST))
    }

    /// Whether control may hear of another neighbour at the uplink, behind this port, now.
    #[cold]
    pub fn answer(&mut self, port: PortId, now: Instant) -> bool {
        self.buckets(port, now).is_some_and(|buckets| buckets.answers.take(now, ANSWERS_PER_S, ANSWERS_BURST))
    }

    /// Whether control may hear now of a router at the uplink, behind this port, that asks who listens.
    #[cold]
    pub fn query(&mut self, port: PortId, now: Instant) -> bool {
        self.buckets(port, now).is_some_and(|buckets| buckets.queries.take(now, QUERIES_PER_S, QUERIES_BURST))
    }

    /// Whether the flow log may hear of another thing that happened to packets of this port.
    #[cold]
    pub fn flow_event(&mut self, port: PortId, now: Instant) -> bool {
        let buckets = self.buckets(port, now);
        buckets.is_some_and(|buckets| buckets.flow_events.take(now, FLOW_EVENTS_PER_S, FLOW_EVENTS_BURST))
    }

    fn buckets(&mut self, port: PortId, now: Instant) -> Option<&mut Buckets> {
        let full = |tokens| Bucket { tokens, at: now, asked: now };
        let slot = self.ports.get_mut(port.0 as usize)?;
        Some(slot.get_or_insert_with(|| Buckets {
            local: full(LOCAL_BURST),
            neighbours: full(NEIGHBOURS_BURST),
            icmp_errors: full(ICMP_ERRORS_BURST),
            too_big: full(TOO_BIG_BURST),
            resets: full(RESETS_BURST),
            notes: full(NOTES_BURST),
            conflicts: full(CONFLICTS_BURST),
            routers: full(ROUTERS_BURST),
            answers: full(ANSWERS_BURST),
            queries: full(QUERIES_BURST),
            flow_events: full(FLOW_EVENTS_BURST),
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hostweave_switch::packet::L3;

    use super::*;

    const TTL: DropReason = DropReason::TtlExceeded;

    /// An ICMP message as `parse` sees it, or ARP.
    fn question(l3: L3, proto: u8, kind: u8) -> Meta {
        Meta { l3, proto, dst_port: u16::from(kind) << 8, ..Meta::default() }
    }

    #[test]
    fn a_flood_of_pings_or_of_short_lived_packets_leaves_what_links_and_paths_need() {
        let mut pace = Pace::default();
        pace.resize(1);
        let (port, now) = (PortId(0), Instant::now());
        let pings = [question(L3::V4, proto::ICMPV4, 8), question(L3::V6, proto::ICMPV6, 128)];
        let answered = (0..100_000).filter(|i| pace.local(port, &pings[i % 2], now)).count();
        assert_eq!(answered, LOCAL_BURST as usize);
        let arp = question(L3::Arp, 0, 0);
        let solicitation = question(L3::V6, proto::ICMPV6, 135);
        assert!(pace.local(port, &arp, now) && pace.local(port, &solicitation, now));
        let dhcp = Meta { l3: L3::V4, proto: proto::UDP, dst_port: 67, ..Meta::default() };
        assert!(!pace.local(port, &dhcp, now), "what else there is shares");
        let errors = (0..10_000).filter(|_| pace.error(port, proto::ICMPV4, TTL, now)).count();
        assert_eq!(errors, ICMP_ERRORS_BURST as usize);
        let too_big = (0..10_000).filter(|_| pace.error(port, proto::ICMPV4, DropReason::MtuExceeded, now)).count();
        assert_eq!(too_big, TOO_BIG_BURST as usize);
    }

    #[test]
    fn bucket_empties_and_refills_with_time() {
        let mut pace = Pace::default();
        pace.resize(1);
        let start = Instant::now();
        let taken = (0..200).filter(|_| pace.error(PortId(0), proto::ICMPV4, TTL, start)).count();
        assert_eq!(taken, ICMP_ERRORS_BURST as usize);
        let later = start + Duration::from_millis(100);
        let taken = (0..200).filter(|_| pace.error(PortId(0), proto::ICMPV4, TTL, later)).count();
        assert_eq!(taken, (ICMP_ERRORS_PER_S / 10) as usize);
        assert!(!pace.error(PortId(9), proto::TCP, TTL, later), "an unknown port gets nothing");
    }

    #[test]
    fn a_port_that_floods_control_leaves_the_others_their_notes() {
        let mut pace = Pace::default();
        pace.resize(2);
        let start = Instant::now();
        let told = (0..1_000_000).filter(|_| pace.note(PortId(0), start)).count();
        assert_eq!(told, NOTES_BURST as usize);
        assert!(pace.note(PortId(1), start));
        assert!(pace.note(PortId(0), start + Duration::from_secs(1)));
        assert!(pace.router(PortId(0), start), "routers are heard in any case");
        let conflicts = (0..1_000_000).filter(|_| pace.conflict(PortId(0), start)).count();
        assert_eq!(conflicts, CONFLICTS_BURST as usize, "whoever floods claims of routers hides none of an address");
        assert!(told + conflicts < super::super::NOTES_MAX, "one port cannot fill the queue that all share");
    }
}
