//! What leaves networks, by which pool, and what is routed to this host.

use hostweave_nat::{V4, V6};

use super::outside::{UPLINK, all, desired};
use super::*;
use crate::config::outside::ServiceAddresses;
use crate::fabric::spec::internal_uid;

fn named(name: &str, spec: &str) -> String {
    network(spec).replace("{name: n}", &format!("{{name: {name}}}"))
}

#[test]
fn ranges_that_are_routed_to_the_host_do_not_overlap() {
    let pool = nat_pool("a", "{addresses: [203.0.113.1, '2001:db8:aa::1']}");
    let (exempt_v4, exempt_v6) = ("egress: {untranslated: [172.16.0.0/12]}", "egress: {untranslated: ['fd00:9::/32']}");
    let routed = "egress: {ipv6: routed}";
    let both = |first: (&str, &str), second: (&str, &str)| {
        let [first, second] = [first, second].map(|(ranges, more)| format!("{{cidrs: [{ranges}], {more}}}"));
        all(&[host(UPLINK), pool.clone(), named("n", &first), named("o", &second)])
    };
    let (v4, v6) = ("10.1.0.0/16", "'fd00:1::/48'");
    let (dual, dual_too) = ("10.1.0.0/16, 'fd00:1::/48'", "10.1.0.0/16, 'fd00:2::/48'");
    check(&[
        (both((v4, exempt_v4), ("10.1.7.0/24", exempt_v4)), &["conflict 19 untranslated"]),
        (both((v6, exempt_v6), ("'fd00:1:0:7::/64'", exempt_v6)), &["conflict 19 untranslated"]),
        (both(("'fd00:1:0:7::/64'", exempt_v6), (v6, routed)), &["conflict 19 ipv6"]),
        (both((v6, routed), (v6, routed)), &["conflict 19 ipv6"]),
        (both((dual, exempt_v4), (dual_too, exempt_v4)), &["conflict 19 untranslated"]),
        // One of them at least is translated whole, in the family that overlaps; or they lie apart.
        (both((v4, exempt_v4), (v4, "egress: {ipv4: nat}")), &[]),
        (both((dual, exempt_v6), (dual_too, exempt_v6)), &[]),
        (both((v4, exempt_v4), ("10.2.0.0/16", exempt_v4)), &[]),
        (both((v6, exempt_v6), ("'fd00:2::/48'", routed)), &[]),
    ]);
}

#[test]
fn the_hosts_own_connections_leave_by_the_pool_for_everybody_in_each_family() {
    let some = ", selector: {matchLabels: {app: x}}";
    let (v4, v6) = ("203.0.113.1", "'2001:db8:aa::1'");
    let (v4_too, v6_too) = ("203.0.113.2", "'2001:db8:aa::2'");
    let serving = |pools: [(&str, String, &str); 2], cidrs: &str| -> [Vec<String>; 2] {
        let pools = pools.map(|(name, of, more)| nat_pool(name, &format!("{{addresses: [{of}]{more}}}")));
        let network = network(&format!("{{cidrs: [{cidrs}]}}"));
        let (told, ..) = desired(&all(&[host(UPLINK), network, all(&pools)]), &ServiceAddresses::new());
        let host = internal_uid(told.networks.iter().find(|network| network.name == "n").unwrap().vni);
        [V4, V6].map(|family| {
            let serving = told.nat_pools.iter().filter(|pool| pool.hosts[family].contains(&host));
            serving.map(|pool| pool.name.clone()).collect()
        })
    };
    let dual = "10.1.0.0/24, '2001:db8:1::/64'";
    let all_v4 = |name| (name, v4.to_owned(), "");
    let all_v6 = |name| (name, v6.to_owned(), "");
    let all_dual = |name| (name, "203.0.113.3, '2001:db8:aa::3'".to_owned(), "");
    let some_v4 = |name| (name, "203.0.113.4".to_owned(), some);
    let some_dual = |name| (name, format!("{v4_too}, {v6_too}"), some);
    // By that for everybody, whichever name comes first; in a family that it has not, by that for some.
    let [a, b, none]: [&[&str]; 3] = [&["a"], &["b"], &[]];
    for (pools, cidrs, expected) in [
        ([some_dual("a"), all_v4("b")], dual, [b, a]),
        ([all_v4("a"), some_dual("b")], dual, [a, b]),
        ([some_dual("a"), all_v6("b")], dual, [a, b]),
        ([all_v6("a"), some_dual("b")], dual, [b, a]),
        ([some_dual("a"), all_dual("b")], dual, [b, b]),
        ([some_v4("a"), all_v6("b")], dual, [a, b]),
        ([some_v4("a"), all_v4("b")], dual, [b, none]),
        ([all_v4("a"), all_dual("b")], dual, [&["a", "b"], b]),
        ([some_v4("a"), some_dual("b")], dual, [&["a", "b"], b]),
        // A family that the network has not is of no matter.
        ([some_dual("a"), all_v6("b")], "10.1.0.0/24", [a, none]),
        ([all_v4("a"), some_dual("b")], "'2001:db8:1::/64'", [none, b]),
    ] {
        assert_eq!(serving(pools.clone(), cidrs), expected, "{pools:?}");
    }
}
