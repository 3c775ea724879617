//! Uplink, NAT pools, Services and attached addresses: what is refused, and what the packet path is told.

use std::net::IpAddr;

use hostweave_nat::Limits;
use hostweave_switch::rate::{Rate, Rates};
use hostweave_switch::tables::Egress;
use uuid::Uuid;

use super::*;
use crate::config::desired::{HostFacts, to_desired};
use crate::config::ipam::assign;
use crate::config::outside::{ServiceAddresses, ServicePlan, addresses};
use crate::fabric::spec::{AttachSpec, Desired, Filtering, PortRates, UplinkDriver, internal_uid};

pub(super) const UPLINK: &str = "{uplink: {interface: eth1, addresses: [198.51.100.2/24, '2001:db8:9::2/64'], \
                      gateways: [198.51.100.1, 'fe80::1']}}";

/// CoreWeave's own example, word for word (SEMANTICS CW3).
pub(super) fn service(name: &str, annotations: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata:
  name: {name}
  annotations: {{{annotations}}}
spec:
  externalTrafficPolicy: Local
  type: LoadBalancer
  ports:
    - name: attach # Do not change
      port: 1
      protocol: TCP
      targetPort: attach # Do not change
  selector:
    coreweave.cloud/ignore: ignore # Do not change
"
    )
}

pub(super) const PUBLIC: &str = "service.beta.kubernetes.io/coreweave-load-balancer-type: public";

/// A port that has the address of a Service.
pub(super) fn attached(name: &str, service: &str, more: &str) -> String {
    let metadata =
        format!("{{name: {name}, annotations: {{net.coreweave.cloud/attachLoadbalancerIP: {service}{more}}}}}");
    port("{}").replace("{name: p}", &metadata)
}

pub(super) fn all(objects: &[String]) -> String {
    objects.join("---\n")
}

pub(super) fn pools() -> String {
    address_pool("public", "{type: public, addresses: [203.0.113.0/30, '2001:db8:aa::1-2001:db8:aa::2']}")
        + "---\n"
        + &address_pool("private", "{type: private, addresses: [10.96.0.0/24]}")
}

/// What the packet path is told, with ports 1, 2, … by name.
pub(super) fn desired(text: &str, given: &ServiceAddresses) -> (Desired, ServicePlan, Vec<String>) {
    let set = validate(text).unwrap_or_else(|problems| panic!("{text}\n{problems}")).0;
    let mut count = 0;
    let plan = assign(&set, &Assignments::new(), &mut || {
        count += 1;
        Uuid::from_u128(count)
    });
    let services = addresses::assign(&set, given);
    let (desired, problems) = to_desired(
        &set,
        &plan.assignments,
        &services.addresses,
        Default::default(),
        &HostFacts::system(Path::new("/run")),
    );
    let problems = services.problems.iter().chain(&problems).map(|problem| problem.message.clone()).collect();
    (desired, services, problems)
}

pub(super) fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn rates_are_checked_and_reach_the_packet_path() {
    let limits = |text: &str| port(&format!("{{limits: {{{text}}}}}"));
    check(&[
        (limits("egress: {packetsPerSecond: 0}"), &["out_of_range 4 0"]),
        (limits("ingress: {bitsPerSecond: 999}"), &["out_of_range 4 999"]),
        (limits("uplink: {egress: {packetsPerSecond: 1000000001}}"), &["out_of_range 4 1000000001"]),
        (limits("uplink: {ingress: {bitsPerSecond: 1000, burstBits: 0}}"), &["out_of_range 4 0"]),
        (limits("egress: {burstPackets: 5}"), &["conflict 4 burstPackets"]),
        (limits("egress: {packetPerSecond: 5}"), &["unknown_field 4 packetPerSecond"]),
        (limits("txMbps: 1000"), &["refused_field 4 txMbps"]),
    ]);
    let rates = |text: &str| desired(&limits(text), &ServiceAddresses::new()).0.ports[0].rates;
    assert_eq!(rates("flows: 5"), PortRates::default());
    let told =
        rates("egress: {packetsPerSecond: 1000}, uplink: {ingress: {bitsPerSecond: 100000000000, burstBits: 8}}");
    assert_eq!(told.egress, Rates { packets: Some(Rate { per_s: 1_000, burst: 64 }), bits: None });
    assert_eq!(told.uplink_ingress.bits, Some(Rate { per_s: 100_000_000_000, burst: 8 }));
    assert_eq!(
        rates("ingress: {bitsPerSecond: 1000000000}").ingress.bits,
        Some(Rate { per_s: 1_000_000_000, burst: 20_000_000 })
    );
}

#[test]
fn uplinks_that_are_refused() {
    let uplink = |fields: &str| host(&format!("{{uplink: {{{fields}}}}}"));
    check(&[
        (uplink(""), &["missing_field 4 uplink"]),
        (uplink("interface: sixteen-octets-x"), &["invalid_name 4 sixteen-octets-x"]),
        (uplink("interface: e, driver: dpdk"), &["unknown_value 4 dpdk"]),
        (uplink("interface: e, vlan: 4095"), &["out_of_range 4 4095"]),
        (uplink("interface: e, driver: tap, vlan: 5"), &["conflict 4 vlan"]),
        (uplink("interface: e, mtu: 1000"), &["out_of_range 4 1000"]),
        (uplink("interface: e, addresses: [198.51.100.2]"), &["invalid_address 4 198.51.100.2"]),
        (uplink("interface: e, addresses: [198.51.100.0/24]"), &["invalid_address 4 198.51.100.0/24"]),
        (uplink("interface: e, addresses: [198.51.100.255/24]"), &["invalid_address 4 198.51.100.255/24"]),
        (uplink("interface: e, addresses: [127.0.0.1/8]"), &["invalid_address 4 127.0.0.1/8"]),
        (uplink("interface: e, addresses: ['2001:db8::/64']"), &["invalid_address 4 '2001:db8::/64'"]),
        (uplink("interface: e, addresses: ['fe80::2/64']"), &["invalid_address 4 'fe80::2/64'"]),
        (uplink("interface: e, addresses: [198.51.100.2/24, 198.51.100.2/25]"), &["duplicate 4 198.51.100.2/25"]),
        (
            uplink("interface: e, addresses: [198.51.100.2/24], gateways: [203.0.113.1]"),
            &["invalid_address 4 203.0.113.1"],
        ),
        (
            uplink("interface: e, addresses: ['2001:db8::2/64'], gateways: ['2001:db8:1::1']"),
            &["invalid_address 4 '2001:db8:1::1'"],
        ),
        (uplink("interface: e, addresses: [198.51.100.2/24], gateways: [198.51.100.2]"), &["conflict 4 198.51.100.2"]),
        (
            uplink("interface: e, addresses: [198.51.100.2/24], gateways: [198.51.100.1, 198.51.100.1]"),
            &["duplicate 4 198.51.100.1"],
        ),
    ]);
    valid(&uplink("interface: e, driver: auto"));
    // Both addresses of a /31 and of a /127 are hosts (RFC 3021, RFC 6164).
    valid(&uplink(
        "interface: e, addresses: [198.51.100.0/31, '2001:db8::/127'], gateways: [198.51.100.1, '2001:db8::1']",
    ));
}

#[test]
fn pools_that_are_refused() {
    let nat = |spec: &str| host(UPLINK) + "---\n" + &nat_pool("a", spec);
    check(&[
        (nat("{}"), &["missing_field 9 spec"]),
        (nat("{addresses: []}"), &["missing_field 9 addresses"]),
        (nat("{addresses: [203.0.113.1/24]}"), &["invalid_address 9 203.0.113.1/24"]),
        (nat("{addresses: ['::1']}"), &["invalid_address 9 '::1'"]),
        (nat("{addresses: [203.0.113.0/19]}"), &["invalid_address 9 203.0.113.0/19"]),
        (nat("{addresses: [203.0.0.0/16]}"), &["out_of_range 9 addresses"]),
        (nat("{addresses: ['2001:db8:aa::/64']}"), &["out_of_range 9 addresses"]),
        (nat("{addresses: [203.0.113.0/30, 203.0.113.2]}"), &["duplicate 9 203.0.113.2"]),
        (nat("{addresses: [203.0.113.0/30], draining: [203.0.113.4]}"), &["not_found 9 draining"]),
        (nat("{addresses: [203.0.113.0/30], networks: [defualt]}"), &["not_found 9 defualt"]),
        (nat("{addresses: [203.0.113.1], portBlock: {size: 100}}"), &["out_of_range 9 100"]),
        (nat("{addresses: [203.0.113.1], portBlock: {size: 8192}}"), &["out_of_range 9 8192"]),
        (nat("{addresses: [203.0.113.1], portBlock: {min: 700}}"), &["out_of_range 9 700"]),
        (nat("{addresses: [203.0.113.1], portBlock: {min: 1024, max: 512}}"), &["out_of_range 9 512"]),
        // 64 blocks at most, of whatever size.
        (nat("{addresses: [203.0.113.1], portBlock: {size: 64, max: 8192}}"), &["out_of_range 9 8192"]),
        (nat("{addresses: [203.0.113.1], portBlock: {size: 64, min: 8192}}"), &["out_of_range 9 8192"]),
        (nat("{addresses: [203.0.113.1], portBlock: {max: 64512}}"), &["out_of_range 9 64512"]),
        (nat("{addresses: [203.0.113.1], portBlock: {size: 64, max: 4096}}"), &[]),
        (nat("{addresses: [203.0.113.1], portBlock: {size: 1024, min: 64512}}"), &[]),
        (nat("{addresses: [203.0.113.1], limits: {mappings: 0}}"), &["out_of_range 9 0"]),
        (nat("{addresses: [203.0.113.1], limits: {mappings: 4194305}}"), &["out_of_range 9 4194305"]),
        (nat("{addresses: [203.0.113.1], limits: {newMappingsPerSecond: 0}}"), &["out_of_range 9 0"]),
        (nat("{addresses: [198.51.100.240/28]}"), &["invalid_address 9 198.51.100.240/28"]),
        (nat("{addresses: [198.51.100.0]}"), &["invalid_address 9 198.51.100.0"]),
        (nat("{addresses: ['2001:db8:9::/127']}"), &["invalid_address 9 '2001:db8:9::/127'"]),
        (
            host(UPLINK) + "---\n" + &address_pool("a", "{type: public, addresses: [198.51.100.255]}"),
            &["invalid_address 9 198.51.100.255"],
        ),
        (nat("{addresses: [198.51.100.240-198.51.100.254, '2001:db8:9::4/126', 203.0.113.0/24]}"), &[]),
        (nat("{addresses: [203.0.113.1], filtering: none}"), &["unknown_value 9 none"]),
        (nat("{addresses: [203.0.113.1], selector: {matchLabel: {a: b}}}"), &["unknown_field 9 matchLabel"]),
        (nat_pool("a", "{addresses: [203.0.113.1]}"), &["no_effect 3 a"]),
        (address_pool("a", "{addresses: [203.0.113.1]}"), &["missing_field 4 spec"]),
        (address_pool("a", "{type: open, addresses: [203.0.113.1]}"), &["unknown_value 4 open"]),
        (address_pool("a", "{type: public, addresses: [x]}"), &["invalid_address 4 x"]),
    ]);
}

#[test]
fn too_many_blocks_are_refused_with_a_size_that_is_large_enough() {
    for (block, help) in [
        ("{size: 64, max: 4160}", "Write size: 128"),
        ("{max: 64512}", "Write size: 1024"),
        ("{size: 64, min: 64512}", "Write size: 1024"),
    ] {
        let spec = format!("{{addresses: [203.0.113.1], portBlock: {block}}}");
        let problems = validate(&(host(UPLINK) + "---\n" + &nat_pool("a", &spec))).unwrap_err();
        let [problem] = &problems.0[..] else { panic!("{problems}") };
        assert!(problem.help.as_ref().is_some_and(|told| told.ends_with(help)), "{problem:?}");
    }
}

#[test]
fn da5_an_address_has_one_owner_and_both_are_named() {
    let nat = |addresses: &str| nat_pool("a", &format!("{{addresses: [{addresses}]}}"));
    let public = |addresses: &str| address_pool("b", &format!("{{type: public, addresses: [{addresses}]}}"));
    let uplink = host(UPLINK);
    for (text, early, late) in [
        // Uplink and pools.
        (all(&[uplink.clone(), nat("198.51.100.2")]), "HostConfig h", "NatPool a"),
        (all(&[uplink.clone(), nat("'2001:db8:9::2'")]), "HostConfig h", "NatPool a"),
        (all(&[uplink.clone(), nat("198.51.100.0/29")]), "HostConfig h", "NatPool a"),
        (all(&[uplink.clone(), public("198.51.100.1")]), "HostConfig h", "AddressPool b"),
        // Pools among themselves.
        (all(&[uplink.clone(), nat("203.0.113.0/29"), public("203.0.113.7")]), "NatPool a", "AddressPool b"),
        (all(&[uplink.clone(), nat("'2001:db8:aa::7'"), public("'2001:db8:aa::/64'")]), "NatPool a", "AddressPool b"),
        (
            all(&[uplink.clone(), nat("203.0.113.1"), nat("203.0.113.1").replace("name: a", "name: c")]),
            "NatPool a",
            "NatPool c",
        ),
        // Networks.
        (all(&[uplink.clone(), nat("10.64.3.4")]), "Network default", "NatPool a"),
        (all(&[uplink.clone(), public("'fd68:7700:64::5'")]), "Network default", "AddressPool b"),
        (all(&[uplink.clone(), public("10.0.0.0/9")]), "Network default", "AddressPool b"),
        (all(&[uplink.clone(), network("{cidrs: [198.51.100.0/28, '2001:db8:1::/64']}")]), "Network n", "HostConfig h"),
    ] {
        let problems = validate(&text).unwrap_err();
        let named = problems.0.iter().any(|problem| {
            problem.code.ends_with("conflict")
                && problem.object.as_deref() == Some(late)
                && problem.message.contains(early)
                && problem.place.is_some()
        });
        assert!(named, "{text}\n{problems}");
    }
    // Neighbours are no conflict, nor is a pool in the uplink's subnet, nor are equal networks.
    valid(&all(&[
        uplink,
        nat("198.51.100.8/29, 203.0.113.0-203.0.113.6"),
        public("203.0.113.7, 203.0.113.8/29"),
        network("{cidrs: [10.64.0.0/16]}"),
    ]));
}

#[test]
fn services_that_are_refused() {
    let plain = service("s", PUBLIC);
    let with = |from: &str, to: &str| {
        assert!(plain.contains(from), "{from}");
        plain.replace(from, to)
    };
    check(&[
        (with("port: 1", "port: 80"), &["wrong_value 9 ports"]),
        (with("targetPort: attach", "targetPort: 80"), &["wrong_value 9 ports"]),
        (with("type: public", "type: open"), &["unknown_value 5 open"]),
        (with(PUBLIC, "metallb.universe.tf/address-pool: public-ord1"), &["not_found 5 public-ord1"]),
        (
            with(PUBLIC, &format!("{PUBLIC}, metallb.universe.tf/address-pool: public")) + "---\n" + &pools(),
            &["conflict 5 metallb.universe.tf/address-pool"],
        ),
        (with("spec:\n", "spec:\n  loadBalancerIP: nowhere\n"), &["invalid_address 7 nowhere"]),
        (
            with("spec:\n", "spec:\n  loadBalancerSourceRanges: [192.0.2.0/24]\n"),
            &["refused_field 7 loadBalancerSourceRanges"],
        ),
        (with("spec:\n", "spec:\n  sessionAffinity: ClientIP\n"), &["ignored_field 7 sessionAffinity"]),
        (with("spec:\n", "spec:\n  ipFamilies: [IPv4, IPv4]\n"), &["duplicate 7 ipFamilies"]),
        (
            with("name: s", "name: s, namespace: shop")
                .replace("  name: s, namespace: shop", "  name: s\n  namespace: shop"),
            &["not_found 5 shop"],
        ),
        (attached("p", "bastoin", "") + "---\n" + &service("bastion", PUBLIC), &["not_found 3 bastoin"]),
        (attached("p", "s", ", hostweave.dev/attach-mode: both") + "---\n" + &plain, &["unknown_value 3 both"]),
        // SEMANTICS DA3.
        (all(&[attached("a", "s", ""), attached("b", "s", ""), plain.clone()]), &["conflict 8 s"]),
    ]);
}

#[test]
fn cw1_addresses_come_from_the_pool_that_annotations_choose() {
    for (annotations, expected) in [
        (PUBLIC, &["203.0.113.0"][..]),
        ("", &["10.96.0.0"]),
        ("service.beta.kubernetes.io/coreweave-load-balancer-type: private", &["10.96.0.0"]),
        ("metallb.universe.tf/address-pool: public", &["203.0.113.0"]),
        (
            "metallb.universe.tf/address-pool: public, metallb.universe.tf/loadBalancerIPs: 203.0.113.2",
            &["203.0.113.2"],
        ),
        (
            "metallb.universe.tf/address-pool: public, metallb.universe.tf/loadBalancerIPs: '2001:db8:aa::2,203.0.113.2'",
            &["203.0.113.2", "2001:db8:aa::2"],
        ),
    ] {
        let (_, plan, problems) = desired(&all(&[pools(), service("s", annotations)]), &ServiceAddresses::new());
        assert_eq!(problems, Vec::<String>::new(), "{annotations}");
        let given: Vec<IpAddr> = plan.addresses.values().flatten().map(|given| given.address).collect();
        assert_eq!(given, ips(expected), "{annotations}");
    }
    for (spec, expected) in [
        ("ipFamilyPolicy: PreferDualStack", Ok(&["203.0.113.0", "2001:db8:aa::1"][..])),
        ("ipFamilyPolicy: RequireDualStack", Ok(&["203.0.113.0", "2001:db8:aa::1"])),
        ("ipFamilies: [IPv6]", Ok(&["2001:db8:aa::1"])),
        ("loadBalancerIP: 203.0.113.3", Ok(&["203.0.113.3"])),
        ("loadBalancerIP: 10.96.0.1", Err("which the Service may not use")),
        ("loadBalancerIP: 192.0.2.1", Err("is in no AddressPool")),
    ] {
        let service = service("s", PUBLIC).replace("spec:\n", &format!("spec:\n  {spec}\n"));
        let (_, plan, problems) = desired(&all(&[pools(), service]), &ServiceAddresses::new());
        let given: Vec<IpAddr> = plan.addresses.values().flatten().map(|given| given.address).collect();
        match expected {
            Ok(expected) => assert_eq!((given, problems), (ips(expected), Vec::new()), "{spec}"),
            Err(reason) => assert!(given.is_empty() && problems[0].contains(reason), "{spec}: {problems:?}"),
        }
    }
}

#[test]
fn sv21_a_service_keeps_its_address_and_cw2_shares_it_only_with_its_own() {
    let three: Vec<String> = ["a", "b", "c"].map(|name| service(name, PUBLIC)).to_vec();
    let (_, first, _) = desired(&all(&[pools(), all(&three)]), &ServiceAddresses::new());
    let address = |plan: &ServicePlan, name: &str| {
        plan.addresses.get(&ObjectKey::new(Kind::Service, None, name)).map(|given| given[0].address.to_string())
    };
    assert_eq!(address(&first, "b").as_deref(), Some("203.0.113.1"));
    // `a` goes, `d` comes: it takes what is free, and nobody else changes.
    let then = all(&[pools(), service("d", PUBLIC), all(&three[1..])]);
    let (_, second, _) = desired(&then, &first.addresses);
    assert_eq!(address(&second, "b").as_deref(), Some("203.0.113.1"));
    assert_eq!(address(&second, "d").as_deref(), Some("203.0.113.0"));
    assert_eq!(second.freed, [ObjectKey::new(Kind::Service, None, "a")]);
    assert_eq!(second.changed, [ObjectKey::new(Kind::Service, None, "d")]);
    // A pool that loses an address that is in use is a problem, and the Service keeps it.
    let smaller = then.replace("203.0.113.0/30", "203.0.113.2/31");
    let (_, third, problems) = desired(&smaller, &second.addresses);
    assert!(
        problems.iter().any(|problem| problem.contains("203.0.113.1 is in no AddressPool any more")),
        "{problems:?}"
    );
    assert_eq!(third.addresses[&ObjectKey::new(Kind::Service, None, "b")][0].address.to_string(), "203.0.113.1");
    // Its author may want another.
    let moved = then.replacen(&three[1], &service("b", ""), 1);
    let (_, fourth, _) = desired(&moved, &second.addresses);
    assert_eq!(address(&fourth, "b").as_deref(), Some("10.96.0.0"));

    let key = |name: &str, key: &str| service(name, &format!("{PUBLIC}, metallb.universe.tf/allow-shared-ip: {key}"));
    let shared = all(&[pools(), key("a", "x"), key("b", "x"), key("c", "y")]);
    let (_, plan, problems) = desired(&shared, &ServiceAddresses::new());
    assert!(problems.is_empty());
    let of = |name: &str| address(&plan, name).unwrap();
    assert_eq!((of("a"), of("c")), (of("b"), "203.0.113.1".to_owned()));
    // The pool has four.
    let five: Vec<String> = ["a", "b", "c", "d", "e"].map(|name| service(name, PUBLIC)).to_vec();
    let (_, plan, problems) = desired(&all(&[pools(), all(&five)]), &ServiceAddresses::new());
    assert_eq!((plan.addresses.len(), problems.len()), (4, 1));
}

#[test]
fn da1_an_attached_address_comes_first_at_its_port() {
    let both = service("s", PUBLIC).replace("spec:\n", "spec:\n  ipFamilyPolicy: PreferDualStack\n");
    let text = |port: String, service: &str| all(&[host(UPLINK), pools(), port, service.to_owned()]);
    let (told, _, problems) = desired(&text(attached("p", "s", ""), &both), &ServiceAddresses::new());
    assert_eq!(problems, Vec::<String>::new());
    let port = &told.ports[0];
    assert_eq!(port.v4.iter().map(ToString::to_string).collect::<Vec<_>>(), ["203.0.113.0", "10.64.0.2"]);
    assert_eq!(port.v6[0].to_string(), "2001:db8:aa::1");
    let spec = |address: &str, one_to_one| AttachSpec {
        address: address.parse().unwrap(),
        port: port.uid,
        service: "default/s".to_owned(),
        one_to_one,
    };
    assert_eq!(told.attached, [spec("203.0.113.0", false), spec("2001:db8:aa::1", false)]);
    // 1:1 NAT: the guest keeps its own.
    for (port, service) in [
        (attached("p", "s", ", hostweave.dev/attach-mode: nat"), both.clone()),
        (attached("p", "s", ""), both.replace(PUBLIC, &format!("{PUBLIC}, hostweave.dev/attach-mode: nat"))),
    ] {
        let (told, _, problems) = desired(&text(port, &service), &ServiceAddresses::new());
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!(told.ports[0].v4.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.64.0.2"]);
        assert_eq!(told.attached, [spec("203.0.113.0", true), spec("2001:db8:aa::1", true)]);
    }
    // A private one stays inside: nothing outside knows it, and it is not translated.
    let private = service("s", "");
    let (told, _, problems) = desired(&text(attached("p", "s", ""), &private), &ServiceAddresses::new());
    assert_eq!((told.attached, problems), (Vec::new(), Vec::new()));
    assert_eq!(told.ports[0].v4[0].to_string(), "10.96.0.0");
    let nat = attached("p", "s", ", hostweave.dev/attach-mode: nat");
    let (told, _, problems) = desired(&text(nat, &private), &ServiceAddresses::new());
    assert!(told.attached.is_empty() && problems[0].contains("a private address"), "{problems:?}");
}

#[test]
fn a_pods_annotation_attaches_too_and_a_shared_address_has_one_port() {
    let pod =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p, annotations: {net.coreweave.cloud/attachLoadbalancerIP: s}}\n";
    let text = all(&[host(UPLINK), pools(), port("{}"), pod.to_owned(), service("s", PUBLIC)]);
    assert_eq!(desired(&text, &ServiceAddresses::new()).0.attached.len(), 1);
    let shared = format!("{PUBLIC}, metallb.universe.tf/allow-shared-ip: x");
    let two = [
        host(UPLINK),
        pools(),
        attached("a", "s", ""),
        attached("b", "t", ""),
        service("s", &shared),
        service("t", &shared),
    ];
    let (told, _, problems) = desired(&all(&two), &ServiceAddresses::new());
    assert_eq!(told.attached.len(), 1);
    assert!(problems[0].contains("is attached to Port default/a already"), "{problems:?}");
    // An IPv6 address needs an IPv6 network.
    let v6 = service("s", PUBLIC).replace("spec:\n", "spec:\n  ipFamilies: [IPv6]\n");
    let v4 = network("{cidrs: [10.1.0.0/24]}").replace("name: n", "name: default");
    let (told, _, problems) =
        desired(&all(&[host(UPLINK), pools(), v4, attached("p", "s", ""), v6]), &ServiceAddresses::new());
    assert!(told.attached.is_empty() && problems[0].contains("has no range of the family"), "{problems:?}");
}

#[test]
fn an_attached_address_of_a_family_that_the_network_lacks_is_nobodys_and_is_named() {
    let both = service("s", PUBLIC).replace("spec:\n", "spec:\n  ipFamilyPolicy: RequireDualStack\n");
    let said = |text: &str, services: &ServicePlan, kind, namespace: Option<&str>, name| -> Vec<String> {
        let set = validate(text).unwrap().0;
        let key = ObjectKey::new(kind, namespace, name);
        let found = crate::config::outside::dubious(&set, &services.addresses, [&key]);
        found.into_iter().map(|doubt| doubt.message).collect()
    };
    for (cidr, used, unused, family) in [
        ("10.1.0.0/24", "203.0.113.0", "2001:db8:aa::1", "IPv6"),
        ("'2001:db8:1::/64'", "2001:db8:aa::1", "203.0.113.0", "IPv4"),
    ] {
        let one = network(&format!("{{cidrs: [{cidr}]}}")).replace("name: n", "name: default");
        for mode in ["", ", hostweave.dev/attach-mode: nat"] {
            let text = all(&[host(UPLINK), pools(), one.clone(), attached("p", "s", mode), both.clone()]);
            let (told, services, problems) = desired(&text, &ServiceAddresses::new());
            assert_eq!(problems, Vec::<String>::new());
            assert_eq!(told.attached.iter().map(|attach| attach.address).collect::<Vec<_>>(), ips(&[used]));
            let doubt =
                format!("address {unused} of Service default/s is of no use: Network default has no {family} range");
            for (kind, namespace, name) in [
                (Kind::Port, Some("default"), "p"),
                (Kind::Pod, Some("default"), "p"),
                (Kind::Service, Some("default"), "s"),
                (Kind::Network, None, "default"),
            ] {
                assert_eq!(
                    said(&text, &services, kind, namespace, name),
                    std::slice::from_ref(&doubt),
                    "{kind:?}{mode}"
                );
            }
            assert!(said(&text, &services, Kind::Port, Some("default"), "q").is_empty());
        }
    }
    // With both there is no doubt.
    let text = all(&[host(UPLINK), pools(), attached("p", "s", ""), both]);
    let (_, services, _) = desired(&text, &ServiceAddresses::new());
    assert!(said(&text, &services, Kind::Port, Some("default"), "p").is_empty());
}

#[test]
fn pools_serve_the_ports_that_they_name() {
    let labelled = |name: &str, label: &str| {
        port("{}").replace("{name: p}", &format!("{{name: {name}, namespace: shop, labels: {{app: {label}}}}}"))
    };
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {team: a}}\n".to_owned();
    let told = |spec: &str| {
        let pool = nat_pool("a", &format!("{{addresses: [203.0.113.0/31, '2001:db8:aa::1']{spec}}}"));
        let ports = [labelled("x", "x"), labelled("y", "y"), port("{network: n}")];
        let network = network("{cidrs: [10.1.0.0/24, '2001:db8:1::/64']}");
        desired(&all(&[host(UPLINK), namespace.clone(), network, pool, all(&ports)]), &ServiceAddresses::new()).0
    };
    for (spec, expected) in [
        ("", &["p", "x", "y", "@default", "@n"][..]),
        (", networks: [n]", &["p", "@n"]),
        (", networks: [default]", &["x", "y", "@default"]),
        (", selector: {matchLabels: {app: x}}", &["x", "@default", "@n"]),
        (", selector: {matchExpressions: [{key: app, operator: NotIn, values: [x]}]}", &["p", "y", "@default", "@n"]),
        (", namespaceSelector: {matchLabels: {team: a}}", &["x", "y", "@default", "@n"]),
        (", namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: default}}", &["p", "@default", "@n"]),
    ] {
        let told = told(spec);
        // The host's own checks of backends beyond it leave by a pool too.
        let host = |uid: &Uuid| told.networks.iter().find(|network| internal_uid(network.vni) == *uid);
        let name = |uid: &Uuid| match told.ports.iter().find(|port| port.uid == *uid) {
            Some(port) => port.name.clone(),
            None => format!("@{}", host(uid).unwrap().name),
        };
        let pool = &told.nat_pools[0];
        for hosts in &pool.hosts {
            assert_eq!(pool.ports.iter().chain(hosts).map(name).collect::<Vec<_>>(), expected, "{spec}");
        }
    }
    let pool = &told(
        ", portBlock: {size: 256, min: 512, max: 1024}, filtering: addressDependent, overload: false, \
                     draining: [203.0.113.1]",
    )
    .nat_pools[0];
    assert_eq!((pool.block_size, pool.blocks.clone()), (256, 2..=4));
    assert_eq!((pool.filtering, pool.overload), (Filtering::AddressDependent, false));
    assert_eq!(pool.addresses, ips(&["203.0.113.0", "203.0.113.1", "2001:db8:aa::1"]));
    assert_eq!(pool.draining, ips(&["203.0.113.1"]));
    let limited = |written: &str| told(&format!(", limits: {written}")).nat_pools[0].limits;
    assert_eq!(limited("{mappings: 1000}"), Limits { mappings: Some(1000), rate: None });
    assert_eq!(limited("{newMappingsPerSecond: 50}"), Limits { mappings: None, rate: Some(50) });
    let plain = &told("").nat_pools[0];
    assert_eq!(plain.limits, Limits::default());
    assert_eq!((plain.block_size, plain.blocks.clone(), plain.overload), (512, 1..=8, true));
    assert_eq!(plain.filtering, Filtering::AddressAndPortDependent);
}

#[test]
fn egress_is_nat_where_a_pool_serves_and_else_nothing() {
    let egress = |pool: &str, written: &str| {
        let network = network(&format!("{{cidrs: [10.1.0.0/24, '2001:db8:1::/64']{written}}}"));
        let pool = nat_pool("a", pool);
        let (told, ..) = desired(&all(&[host(UPLINK), network, pool]), &ServiceAddresses::new());
        let network = told.networks.iter().find(|network| network.name == "n").unwrap();
        (network.egress_v4, network.egress_v6)
    };
    use Egress::{Forbidden, Nat, None, Routed};
    assert_eq!(egress("{addresses: [203.0.113.1]}", ""), (Nat, None));
    assert_eq!(egress("{addresses: ['2001:db8:aa::1']}", ""), (None, Nat));
    assert_eq!(egress("{addresses: [203.0.113.1, '2001:db8:aa::1'], networks: [default]}", ""), (None, None));
    assert_eq!(egress("{addresses: [203.0.113.1]}", ", egress: {ipv4: none, ipv6: routed}"), (Forbidden, Routed));
    assert_eq!(egress("{addresses: [203.0.113.1]}", ", egress: {ipv6: none}"), (Nat, Forbidden));
    assert_eq!(egress("{addresses: [203.0.113.1]}", ", egress: {ipv6: nat}"), (Nat, Nat));
    check(&[
        (all(&[host(UPLINK), network("{cidrs: ['2001:db8:1::/64'], egress: {ipv6: nat}}")]), &["no_effect 9 nat"]),
        (network("{cidrs: ['2001:db8:1::/64'], egress: {ipv6: routed}}"), &["no_effect 4 routed"]),
        (all(&[host(UPLINK), network("{cidrs: ['2001:db8:1::/64'], egress: {ipv4: nat}}")]), &["no_effect 9 nat"]),
        (network("{cidrs: [10.1.0.0/24], egress: {ipv4: routed}}"), &["unknown_value 4 routed"]),
    ]);
    // Destinations that are exempt (RFC 6888 REQ-6).
    let exempt = |ranges: &str| {
        network(&format!("{{cidrs: [10.1.0.0/24, '2001:db8:1::/64'], egress: {{untranslated: [{ranges}]}}}}"))
    };
    let pools = nat_pool("a", "{addresses: [203.0.113.1]}");
    let (told, ..) = desired(&all(&[host(UPLINK), exempt("172.16.0.0/12"), pools.clone()]), &ServiceAddresses::new());
    let network = told.networks.iter().find(|network| network.name == "n").unwrap();
    assert_eq!(network.untranslated, ["172.16.0.0/12".parse().unwrap()]);
    let many = (0..65).map(|number| format!("172.16.{number}.0/24")).collect::<Vec<_>>().join(", ");
    check(&[
        (all(&[host(UPLINK), exempt("172.16.0.0/12, 'fd00::/8'"), pools.clone()]), &["no_effect 9 'fd00::/8'"]),
        (exempt("172.16.0.0/12"), &["no_effect 4 172.16.0.0/12"]),
        (all(&[host(UPLINK), exempt("172.16.0.0/33"), pools.clone()]), &["invalid_cidr 9 172.16.0.0/33"]),
        (all(&[host(UPLINK), exempt(&many), pools]), &["out_of_range 9 untranslated"]),
    ]);
    let told = desired(&host(UPLINK), &ServiceAddresses::new()).0.uplink.unwrap();
    assert_eq!(
        (told.interface.as_str(), told.driver, told.vlan, told.mtu),
        ("eth1", UplinkDriver::AfPacket, Option::None, Option::None)
    );
    assert_eq!(told.gateways, ips(&["198.51.100.1", "fe80::1"]));
}
