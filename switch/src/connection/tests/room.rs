//! Floods that are answered: how long what they leave lives, and what makes room at a port's quota.

use super::*;
use crate::wire::proto::{ICMPV4, TCP, UDP};

/// Connections that a port may have in these tests, in all shards.
const QUOTA: u32 = 1000;

const SYN: Side = Side { end: 1, ack: 1, limit: 0, window_max: 0, scale: 0, flags: Side::SEEN };
const ACKED: Side = Side { flags: Side::SEEN | Side::ACKED, ..SYN };

fn key(proto: u8, i: u32) -> FlowKey {
    let kind = if proto == ICMPV4 { Kind::Query } else { Kind::Ports };
    let dst_port = if proto == ICMPV4 { 8 } else { 80 };
    FlowKey::new(0xffff_c633_0000 + u128::from(i >> 8), 0xffff_0a00_0002, i as u16, dst_port, proto, kind)
}

impl Host {
    fn full_at(quota: u32) -> Self {
        let host = host(8192);
        host.connections.make_translatable(8192);
        host.connections.share([(0, quota), (1, quota), (2, quota), (3, quota)].into_iter());
        host
    }

    /// One from outside to port 3, by a Service say; `held` when NAT has given it something.
    fn crosses(&self, proto: u8, i: u32, held: Option<Hold>, now: u32) -> Result<Found, CommitError> {
        let key = key(proto, i);
        let translation = Translation { reply: key.reversed(), vni: 9, held: [None, held] };
        let side = if proto == TCP { SYN } else { Side::default() };
        let new =
            NewConnection { side, translation: Some(translation), receiver_pays: true, ..self.new_connection(key, 0) };
        let free = &mut self.free.lock().unwrap();
        self.connections.commit(&new, &self.timeouts, free, now).map(|committed| committed.found)
    }

    /// The receiver answers.
    fn answer(&self, found: Found, now: u32) {
        let record = self.record(found);
        record.touch(1, now, 0);
        if record.key().proto() == TCP {
            record.set_side(1, &Side::default(), &ACKED);
        }
    }

    fn shows(&self, found: Found, sides: [Side; 2], now: u32) {
        let record = self.record(found);
        for (direction, side) in sides.iter().enumerate() {
            record.touch(direction, now, 0);
            record.set_side(direction, &record.side(direction), side);
        }
        self.connections.reschedule(found.index, found.generation, &self.timeouts);
    }

    fn record(&self, found: Found) -> &Record {
        self.connections.get(found.index, found.generation).expect("it is there")
    }

    fn is_there(&self, found: &Found) -> bool {
        self.connections.get(found.index, found.generation).is_some()
    }
}

#[test]
fn na16_only_what_holds_a_nat_mapping_lives_as_long_as_one() {
    let host = Host::full_at(8192);
    let held = Hold { index: 1, generation: 1 };
    for (proto, alone, mapped) in [(TCP, 60, 240), (UDP, 30, 300), (ICMPV4, 30, 60)] {
        let plain = host.crosses(proto, 1, None, 100).unwrap();
        let nat = host.crosses(proto, 2, Some(held), 100).unwrap();
        for (found, lives) in [(plain, alone), (nat, mapped)] {
            let timeout = host.timeouts.of(host.record(found));
            assert_eq!(timeout, lives, "protocol {proto}, {found:?}");
        }
    }
    assert_eq!(host.expire(100 + 30), 0);
    assert_eq!(host.expire(100 + 31), 2, "without a mapping: UDP, the ping");
    assert_eq!(host.expire(100 + 61), 2, "TCP; the ping that holds one");
    assert_eq!(host.expire(100 + 240), 0);
    assert_eq!(host.expire(100 + 241), 1);
    assert_eq!(host.expire(100 + 301), 1);
}

/// A port at its quota with connections to it, from now on until `end`, `per_s` a second; each is answered at once. Returns how many
/// of a thousand are refused: rarely a shard has none that may go.
fn flood(host: &Host, proto: u8, end: u32, per_s: u32) -> u32 {
    let mut refused = 0;
    for now in 100..end {
        for i in 0..per_s {
            match host.crosses(proto, 10_000 + (now - 100) * per_s + i, None, now) {
                Ok(found) => host.answer(found, now),
                Err(error) => {
                    assert_eq!(error, CommitError::Quota);
                    refused += 1;
                }
            }
        }
        host.expire(now);
    }
    1000 * refused / ((end - 100) * per_s)
}

#[test]
fn ct11_a_flood_of_syns_that_are_answered_shuts_nobody_out() {
    let host = Host::full_at(QUOTA);
    let open: Vec<_> = (0..200).map(|i| host.crosses(TCP, i, None, 100).unwrap()).collect();
    open.iter().for_each(|found| host.shows(*found, [ACKED; 2], 100));
    let own: Vec<_> = (0..200).map(|i| host.commit(udp(i), 3, 100).unwrap()).collect();
    for found in &own {
        host.record(*found).touch(1, 103, 0);
        host.record(*found).touch(0, 103, 0);
    }
    let refused = flood(&host, TCP, 130, 500);
    assert!(refused < 10, "{refused} of a thousand");
    assert!(host.connections.used_by(3) <= QUOTA);
    assert!(open.iter().chain(&own).all(|found| host.is_there(found)), "what is established stays");
    assert!((5000..5100).filter(|i| host.commit(udp(*i), 3, 130).is_ok()).count() > 90, "nor is the port itself");
}

#[test]
fn ct11_a_flood_of_questions_that_are_answered_shuts_nobody_out_for_long() {
    // Each shard has some of what is old, whichever the next one falls into.
    let host = Host::full_at(4 * QUOTA);
    let streams: Vec<_> = (0..200).map(|i| host.crosses(UDP, i, None, 100).unwrap()).collect();
    for found in &streams {
        host.record(*found).touch(1, 100, 0);
        host.record(*found).touch(0, 102, 0);
    }
    // As many at a time as there is room for until caches have forgotten the oldest of them.
    let refused = flood(&host, UDP, 200, 150);
    assert!(refused < 10, "{refused} of a thousand");
    assert!(host.connections.evicted() > 5000);
    assert!(streams.iter().all(|found| host.is_there(found)));
    let host = Host::full_at(4 * QUOTA);
    let refused = flood(&host, ICMPV4, 200, 150);
    assert!(refused < 10, "{refused} of a thousand");
    assert!(host.connections.evicted() > 1000);
    // No flow cache may be left with one that it trusts, whatever comes.
    let host = Host::full_at(QUOTA);
    let trusted: Vec<_> = (0..QUOTA).map(|i| host.crosses(UDP, i, None, 100).unwrap()).collect();
    trusted.iter().for_each(|found| host.answer(*found, 100));
    assert!(flood(&host, UDP, 100 + 2 * TRUST_S, 100) > 0);
    assert!(trusted.iter().all(|found| host.is_there(found)));
}

#[test]
fn ct11_what_has_ended_makes_room_before_what_is_half_open() {
    let host = Host::full_at(QUOTA);
    let half_open: Vec<_> = (0..QUOTA / 2).map(|i| host.crosses(TCP, i, None, 100).unwrap()).collect();
    half_open.iter().for_each(|found| host.answer(*found, 100));
    let ended: Vec<_> = (QUOTA / 2..QUOTA).map(|i| host.crosses(TCP, i, None, 100).unwrap()).collect();
    let fin = Side { flags: ACKED.flags | Side::FIN, ..ACKED };
    let reset = Side { flags: ACKED.flags | Side::RST, ..ACKED };
    for (i, found) in ended.iter().enumerate() {
        host.shows(*found, if i % 2 == 0 { [fin; 2] } else { [ACKED, reset] }, 100);
    }
    let begin = |i: u32| {
        let found = host.crosses(TCP, 20_000 + i, None, 101).ok()?;
        host.shows(found, [ACKED; 2], 101);
        Some(found)
    };
    let begun: Vec<_> = (0..200).filter_map(begin).collect();
    assert!(begun.len() > 190);
    let left = |all: &[Found]| all.iter().filter(|found| host.is_there(found)).count();
    // In each shard of those that would end soonest.
    assert!(left(&half_open) > left(&ended) + 100, "{} half-open, {} ended", left(&half_open), left(&ended));
    assert_eq!(left(&begun), begun.len());
    assert_eq!(host.connections.evicted(), begun.len() as u64);
}
