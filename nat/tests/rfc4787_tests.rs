//! RFC 4787 (NAT behaviour for UDP): a test for each requirement that concerns mappings, ports, filtering and timers.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use hostweave_nat::*;
use support::*;

#[test]
fn rfc4787_req1_endpoint_independent_mapping() {
    for family in FAMILIES {
        let world = World::new(spec());
        let from = inside(family, UDP, 0, 5000);
        let first = world.to(&from, remote(family, 1, 80));
        for host in 2..1000 {
            let mapped = world.to(&from, remote(family, host, 80 + host));
            assert_eq!((mapped.outside, mapped.mapping), (first.outside, first.mapping));
            assert!(!mapped.new && first.new);
        }
        assert_ne!(world.to(&inside(family, UDP, 0, 5001), remote(family, 1, 80)).outside, first.outside);
        assert_eq!(world.nat.stats().mappings, 2);
    }
}
