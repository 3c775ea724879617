//! Tests of `flow.rs`.

use super::*;

fn key(i: u32) -> FlowKey {
    let v4 = |address: u32| 0xffff_0000_0000 | u128::from(address);
    FlowKey::new(v4(0x0a00_0000 + i), v4(0x0a40_0001), (i >> 16) as u16, 53, proto::UDP, Kind::Ports)
}

fn flow(i: u32, round: u32) -> Flow {
    Flow { key: key(i), connection: i, generation: 7, epoch: 3, round, out_port: 5, queue: NO_QUEUE, flags: ASSURED }
}

#[test]
fn a_flow_fits_one_cache_line_and_comes_back_as_it_was() {
    let flow = Flow { queue: 3, flags: REPLY | TCP, ..flow(9, 0x1234_5678) };
    assert_eq!(Flow::of_line(&flow.to_line()), flow);
}

#[test]
fn both_directions_have_one_hash_and_networks_different_ones() {
    let keys = HashKeys::random();
    let v6 = FlowKey::new(1 << 100, 2 << 90, 1, 2, proto::TCP, Kind::Ports);
    let ping = FlowKey::new(1 << 100, 2 << 90, 77, 128, proto::ICMPV6, Kind::Query);
    for key in [key(1), v6, ping] {
        assert_eq!(keys.hash(&key, 5), keys.hash(&key.reversed(), 5));
        assert_ne!(keys.hash(&key, 5), keys.hash(&key, 6));
        assert_eq!(key.reversed().reversed(), key);
    }
    assert_ne!(keys.hash(&v6, 5), HashKeys::random().hash(&v6, 5));
}

#[test]
fn each_flow_is_found_until_the_cache_is_full_and_survivors_are_right() {
    let keys = HashKeys::random();
    let mut cache = FlowCache::new(40_000).unwrap();
    for i in 0..40_000 {
        cache.insert(&flow(i, 1), keys.hash(&key(i), 1));
    }
    // It grew on the way: what was lost then comes in again, and what nobody uses goes first.
    for round in 2..5 {
        for i in 0..40_000 {
            let hash = keys.hash(&key(i), 1);
            match cache.find(&key(i), hash) {
                Some(place) => {
                    assert_eq!(Flow { round: 0, ..cache.get(place) }, flow(i, 0));
                    cache.set(place, &flow(i, round));
                }
                None => cache.insert(&flow(i, round), hash),
            }
        }
    }
    let lost = (0..40_000).filter(|&i| cache.find(&key(i), keys.hash(&key(i), 1)).is_none()).count();
    assert!(lost < 400, "{lost} of 40,000 flows do not fit");
}

#[test]
fn regular_tuples_spread_under_any_keys() {
    let v6 = |low: u32| 0x2001_0db8 << 96 | u128::from(low);
    let v4 = |low: u32| 0xffff_0000_0000 | u128::from(low);
    let tuple = |src, dst, src_port| FlowKey::new(src, dst, src_port, 80, proto::UDP, Kind::Ports);
    let shapes: [(&str, &dyn Fn(u32) -> FlowKey); 4] = [
        ("IPv4 clients", &|i| tuple(v4(0x0a00_0000 + i), v4(0x0a40_0001), 4_000)),
        ("IPv4 ports", &|i| tuple(v4(0x0a00_0000), v4(0x0a40_0001), i as u16)),
        ("IPv6 clients", &|i| tuple(v6(0x0a00_0000 + i), v6(0x0a40_0001), 4_000)),
        ("IPv6 ports", &|i| tuple(v6(0x0a00_0000), v6(0x0a40_0001), i as u16)),
    ];
    const BUCKETS: usize = 4_096;
    for (name, key) in shapes {
        for _ in 0..50 {
            let keys = HashKeys::random();
            let mut load = vec![0u32; BUCKETS];
            for i in 0..8 * BUCKETS as u32 {
                load[(keys.hash(&key(i), 1) >> 52) as usize] += 1;
            }
            // Eight on average; chance puts 30 into one of 4,096 buckets less than once in a hundred million.
            let most = load.iter().max().copied().unwrap_or(0);
            assert!(most < 34, "{name}: {most} of {} in one bucket of {BUCKETS}, {keys:?}", 8 * BUCKETS);
        }
    }
}

#[test]
fn the_oldest_goes_when_there_is_no_room() {
    let keys = HashKeys::random();
    let mut cache = FlowCache::new(1).unwrap();
    let many = (BUCKETS_MIN * PLACES * 2) as u32;
    (many..many * 2).for_each(|i| cache.insert(&flow(i, 900), keys.hash(&key(i), 1)));
    cache.insert(&flow(0, 950), keys.hash(&key(0), 1));
    (1..many / 8).for_each(|i| cache.insert(&flow(i, 950), keys.hash(&key(i), 1)));
    assert!(cache.find(&key(0), keys.hash(&key(0), 1)).is_some(), "the youngest stays");
    assert!(cache.find(&key(many / 8 - 1), keys.hash(&key(many / 8 - 1), 1)).is_some(), "the last one is in");
}

#[test]
fn tags_match_exactly_where_they_are_equal_first() {
    for tag in [1u8, 3, 0x7f, 0x81, 0xff] {
        let tags = u64::from_le_bytes([0, 1, 3, 0x7f, 0x80, 0x81, 0xfe, 0xff]);
        let first = matching(tags, tag).trailing_zeros() as usize / 8;
        assert_eq!(tags.to_le_bytes()[first], tag);
    }
    assert_eq!(matching(0, 1), 0);
}
