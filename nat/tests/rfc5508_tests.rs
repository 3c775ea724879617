//! RFC 5508 (NAT behaviour for ICMP), what concerns mappings of queries, and protocols without ports; in both families.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use hostweave_nat::*;
use support::*;

const GRE: u8 = 47;
const SCTP: u8 = 132;

#[test]
fn rfc5508_req1_query_mappings_are_endpoint_independent_by_identifier() {
    for family in FAMILIES {
        let world = World::new(spec());
        let from = inside(family, family.icmp, 0, 7);
        let first = world.to(&from, remote(family, 1, 0));
        for host in 2..100 {
            assert_eq!(world.to(&from, remote(family, host, 0)).outside, first.outside);
        }
        let other = world.to(&inside(family, family.icmp, 1, 7), remote(family, 1, 0));
        assert_ne!(other.outside, first.outside, "equal identifiers of two workloads are kept apart");
    }
}

#[test]
fn rfc5508_req2_query_mappings_live_60_s() {
    for family in FAMILIES {
        let mut world = World::new(spec());
        let mapped = world.to(&inside(family, family.icmp, 0, 7), remote(family, 1, 0));
        world.end(mapped.mapping, End::Closed);
        world.wait(59);
        assert!(world.nat.get(mapped.mapping).is_some());
        world.wait(2);
        assert_eq!(world.nat.get(mapped.mapping), None);
    }
}

/// The source of an error that an inside host sends is its mapping's.
#[test]
fn rfc5508_req5_the_mapping_of_an_endpoint_is_found_without_making_one() {
    for family in FAMILIES {
        let world = World::new(spec());
        let from = inside(family, UDP, 0, 5000);
        assert_eq!(world.nat.outside_of(&from), None);
        let mapped = world.to(&from, remote(family, 1, 80));
        assert_eq!(world.nat.outside_of(&from), Some(mapped.outside));
        assert_eq!(world.nat.outside_of(&Inside { l4: 5001, ..from }), None);
        assert_eq!(world.nat.outside_of(&Inside { uid: 999, ..from }), None);
        assert_eq!(world.nat.stats().mappings, 1);
    }
}

#[test]
fn protocols_without_ports_have_the_address_alone_one_workload_per_remote() {
    for family in FAMILIES {
        let mut spec = PoolSpec { filtering: Filtering::EndpointIndependent, ..spec() };
        spec.addresses = vec![family.pool(1)];
        let mut world = World::new(spec);
        let [a, b] = [0, 1].map(|port| inside(family, GRE, port, 0));
        let mapped = world.to(&a, remote(family, 1, 0));
        assert!(mapped.bound && mapped.outside.l4 == 0);
        assert_eq!(world.to(&a, remote(family, 1, 0)).mapping, mapped.mapping);
        assert_eq!(world.back(GRE, mapped.outside, remote(family, 1, 0)).unwrap().inside, a);
        assert_eq!(world.back(GRE, mapped.outside, remote(family, 2, 0)), Err(Unmapped::NoMapping));
        // Towards the same remote nobody else; towards another, or in another protocol, anybody.
        assert_eq!(world.out(&b, remote(family, 1, 0)), Err(Refused::Unsupported(GRE)));
        assert!(world.out(&b, remote(family, 2, 0)).is_ok());
        assert!(world.out(&inside(family, 50, 1, 0), remote(family, 1, 0)).is_ok());
        assert_eq!(world.nat.lookup(mapped.outside.address, 0, None), None, "it has no L4 port");
        (0..3).for_each(|_| world.end(mapped.mapping, End::Closed));
        world.wait(602);
        assert_eq!(world.to(&b, remote(family, 1, 0)).outside, mapped.outside);
    }
}

#[test]
fn sctp_keeps_its_ports() {
    for family in FAMILIES {
        let world = World::new(PoolSpec { filtering: Filtering::EndpointIndependent, ..spec() });
        let from = inside(family, SCTP, 0, 5000);
        let to = remote(family, 1, 3868);
        let mapped = world.to(&from, to);
        assert_eq!(mapped.outside.l4, 5000);
        assert_eq!(world.nat.outside_of(&from), Some(mapped.outside));
        assert_eq!(world.to(&Inside { l4: 5001, ..from }, to).mapping, mapped.mapping);
        assert_eq!(world.back(SCTP, Outside { l4: 6000, ..mapped.outside }, to).unwrap().inside.l4, 6000);
        assert!(world.nat.hold(&world.pools, mapped.mapping, &from, mapped.outside, to, false));
    }
}

#[test]
fn protocols_whose_checksum_covers_addresses_are_refused() {
    for family in FAMILIES {
        let world = World::new(spec());
        for proto in [33, 51, 136] {
            assert_eq!(world.out(&inside(family, proto, 0, 1), remote(family, 1, 1)), Err(Refused::Unsupported(proto)));
        }
        assert_eq!(world.nat.stats().blocks, 0);
    }
}
