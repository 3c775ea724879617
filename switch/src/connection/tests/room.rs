//! Floods that are answered: how long what they leave lives, and what makes room at a port's quota.

use super::*;
use crate::wire::proto::{ICMPV4, ICMPV6, SCTP, TCP, UDP};

/// Connections that a port may have in these tests, in all shards.
const QUOTA: u32 = 1000;

/// Seconds until no cache trusts what it did.
const UNTRUSTED: u32 = 2 * TRUST_S;

/// A protocol without L4 ports.
const GRE: u8 = 47;

const SYN: Side = Side { end: 1, ack: 1, limit: 0, window_max: 0, scale: 0, flags: Side::SEEN };
const ACKED: Side = Side { flags: Side::SEEN | Side::ACKED, ..SYN };

/// Clients over IPv4 and IPv6 by turns.
fn key(proto: u8, i: u32) -> FlowKey {
    let (src, dst) = match i % 2 {
        0 => (0xffff_c633_0000 + u128::from(i >> 8), 0xffff_0a00_0002),
        _ => ((0x2001_0db8 << 96) + u128::from(i >> 8), 0x2001_0db8 << 96 | 0xa00_0002),
    };
    match proto {
        ICMPV4 | ICMPV6 => {
            FlowKey::new(src, dst, i as u16, if i.is_multiple_of(2) { 8 } else { 128 }, proto, Kind::Query)
        }
        GRE => FlowKey::new(src << 16 | u128::from(i & 0xffff), dst, 0, 0, proto, Kind::Addresses),
        _ => FlowKey::new(src, dst, i as u16, 80, proto, Kind::Ports),
    }
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
    // Each shard has some that are half-open, whichever the next one falls into.
    let host = Host::full_at(2 * QUOTA);
    let open: Vec<_> = (0..200).map(|i| host.crosses(TCP, i, None, 100).unwrap()).collect();
    open.iter().for_each(|found| host.shows(*found, [ACKED; 2], 100));
    let own: Vec<_> = (0..200).map(|i| host.commit(udp(i), 3, 100).unwrap()).collect();
    for found in &own {
        host.record(*found).touch(1, 103, 0);
        host.record(*found).touch(0, 103, 0);
    }
    let refused = flood(&host, TCP, 130, 500);
    assert!(refused < 10, "{refused} of a thousand");
    assert!(host.connections.used_by(3) <= 2 * QUOTA);
    assert!(open.iter().chain(&own).all(|found| host.is_there(found)), "what is established stays");
    assert!((5000..5100).filter(|i| host.commit(udp(*i), 3, 130).is_ok()).count() > 90, "nor is the port itself");
}

#[test]
fn ct11_a_flood_of_questions_that_are_answered_shuts_nobody_out_for_long() {
    // Each shard has some of what is old, whichever the next one falls into.
    let host = Host::full_at(4 * QUOTA);
    let streams: Vec<_> = (0..200).map(|i| host.crosses(UDP, i, None, 10).unwrap()).collect();
    for found in &streams {
        host.record(*found).touch(1, 100, 0);
        host.record(*found).touch(0, 110, 0);
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

/// Who asks again under the same false name, answered or not, shuts nobody out.
#[test]
fn ct11_a_flood_under_false_names_that_come_twice_shuts_nobody_out() {
    for proto in [UDP, ICMPV4, ICMPV6, SCTP, GRE] {
        for answered in [false, true] {
            let host = Host::full_at(QUOTA);
            // Two hundred that go on, and are silent for as long as they were there.
            let streams: Vec<_> = (0..200).map(|i| host.crosses(proto, i, None, 40).unwrap()).collect();
            for found in &streams {
                host.answer(*found, 40);
                (0..2).for_each(|direction| host.record(*found).touch(direction, 100, 0));
            }
            for i in 200..QUOTA {
                let found = host.crosses(proto, i, None, 100).unwrap();
                host.record(found).touch(0, 103, 0);
                if answered {
                    (100..104).step_by(3).for_each(|now| host.answer(found, now));
                }
            }
            assert!(
                host.crosses(proto, 5000, None, 103 + UNTRUSTED).is_err() == answered,
                "caches trust what is answered"
            );
            let now = 103 + UNTRUSTED + 1;
            let begun = (6000..6200).filter(|i| host.crosses(proto, *i, None, now).is_ok()).count();
            assert!(begun > 180, "{begun} of 200, protocol {proto}, answered: {answered}");
            assert!(streams.iter().all(|found| host.is_there(found)), "protocol {proto}, answered: {answered}");
        }
    }
}

#[test]
fn ct11_one_way_what_comes_from_outside_is_never_assured_and_what_a_port_sends_is() {
    let host = Host::full_at(QUOTA);
    let (outside, own) = (host.crosses(UDP, 1, None, 100).unwrap(), host.commit(udp(1), 3, 100).unwrap());
    for found in [outside, own] {
        host.record(found).touch(0, 130, 0);
    }
    assert_eq!([outside, own].map(|found| host.record(found).is_assured()), [false, true]);
    host.answer(outside, 131);
    assert!(host.record(outside).is_assured());
}

/// The wheels are those of all ports: what another one has there, with shorter times and however many, hides nothing.
#[test]
fn ct11_what_a_neighbour_has_does_not_stand_in_the_way() {
    let host = Host::full_at(QUOTA);
    host.connections.share([(0, 8192), (3, QUOTA)].into_iter());
    let half_open: Vec<_> = (0..QUOTA).map(|i| host.crosses(TCP, i, None, 100).unwrap()).collect();
    half_open.iter().for_each(|found| host.answer(*found, 100));
    // A hundred in each shard that end sooner, of which some end and come every second.
    let mut churned = 10_000;
    let mut churn = |now, count| {
        (churned..churned + count).for_each(|i| _ = host.commit(udp(i), 0, now));
        churned += count;
        host.expire(now);
    };
    churn(101, 6400);
    let (mut begun, mut tries) = (0, 0);
    for now in 102..122 {
        churn(now, 200);
        for i in 0..20 {
            // As whoever wants to connect does: again, if there is no answer.
            let key = 20_000 + now * 100 + i;
            let mut again = (0..6).map(|_| {
                tries += 1;
                host.crosses(TCP, key, None, now)
            });
            begun += u32::from(again.any(|result| result.is_ok()));
        }
    }
    assert!(begun > 395, "{begun} of 400");
    // Two for each, roughly: half of what is looked at in turn is the neighbour's.
    assert!(tries < 1200, "{tries} for 400");
    assert!(host.connections.used_by(0) > 5000);
}

/// Where only answers keep a connection, a cache does not trust it beyond its end.
#[test]
fn na6_a_connection_that_answers_keep_is_not_trusted_when_it_may_end() {
    let host = Host::full_at(QUOTA);
    let found = host.crosses(UDP, 1, Some(Hold { index: 1, generation: 1 }), 100).unwrap();
    host.answer(found, 101);
    let (record, mut trusted) = (host.record(found), 0);
    for now in 102.. {
        record.touch(0, now, 0);
        if host.timeouts.may_trust(record, now) {
            trusted = now;
        }
        host.expire(now);
        if !host.is_there(&found) {
            assert!(trusted > 102 + 290 && trusted + UNTRUSTED < now, "trusted at {trusted}, ended at {now}");
            break;
        }
    }
    let stream = host.commit(udp(1), 3, 100).unwrap();
    host.record(stream).touch(1, 100, 0);
    assert!(host.timeouts.may_trust(host.record(stream), 100 + 180), "a packet of any other puts its end off");
}
