//! Annotations of CoreWeave and MetalLB: which mean something here, which are refused, which are only named.

use super::outside::{PUBLIC, service};
use super::*;

#[test]
fn annotations_for_us_that_mean_nothing_are_named_and_a_misspelt_one_is_told_apart() {
    let service = |annotation: &str| service("s", &format!("{PUBLIC}, {annotation}"));
    let port = |annotation: &str| port("{}").replace("name: p", &format!("name: p, annotations: {{{annotation}}}"));
    for (text, meant) in [
        (port("net.coreweave.cloud/attachLoadBalancerIP: s"), "net.coreweave.cloud/attachLoadbalancerIP"),
        (port("vpc.coreweave.cloud/names: x"), "vpc.coreweave.cloud/name"),
        (port("hostweave.dev/wieght: '5'"), "hostweave.dev/weight"),
        (service("metallb.universe.tf/loadbalancerIP: 203.0.113.1"), "metallb.universe.tf/loadBalancerIPs"),
        (service("metallb.universe.tf/allow-sharedip: x"), "metallb.universe.tf/allow-shared-ip"),
        (
            service("service.beta.kubernetes.io/coreweave-loadbalancer-type: public"),
            "service.beta.kubernetes.io/coreweave-load-balancer-type",
        ),
    ] {
        let (_, warnings) = validate(&text).unwrap_or_else(|problems| panic!("{text}\n{problems}"));
        let [warning] = &warnings[..] else { panic!("{text}\n{warnings:?}") };
        assert!(warning.code.ends_with("ignored_field"), "{warning:?}");
        let place = warning.place.as_ref().unwrap();
        assert_eq!(place.label, format!("did you mean {meant}?"), "{warning:?}");
    }
    let network = network("{cidrs: [10.0.0.0/24]}");
    let on = |kind: &str, annotation: &str| kind.replace("name: n", &format!("name: n, annotations: {{{annotation}}}"));
    check(&[
        (
            service("net.coreweave.cloud/attachLoadbalancerIP: x"),
            &["ignored_field 5 net.coreweave.cloud/attachLoadbalancerIP"],
        ),
        (on(&network, "vpc.coreweave.cloud/name: x"), &["ignored_field 3 vpc.coreweave.cloud/name"]),
    ]);
    // Somebody else's, and what MetalLB itself writes.
    valid(&service(
        "metallb.universe.tf/ip-allocated-from-pool: x, coreweave.cloud/x: y, service.beta.kubernetes.io/aws-x: y",
    ));
}

#[test]
fn cw12_other_nics_than_the_ordinary_one_are_refused() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\n".to_owned();
    for object in [port("{}"), pod] {
        let with = |annotations: &str| object.replace("name: p", &format!("name: p, annotations: {{{annotations}}}"));
        let off = "not_yet_supported 3 vpc.coreweave.cloud/kubernetes-networking";
        check(&[
            (with("vpc.coreweave.cloud/name: 'a,b'"), &["not_yet_supported 3 vpc.coreweave.cloud/name"]),
            (with("vpc.coreweave.cloud/kubernetes-networking: \"false\""), &[off]),
            (with("vpc.coreweave.cloud/kubernetes-networking: false"), &["wrong_type 3 false"]),
            (with("vpc.coreweave.cloud/kubernetes-networking: flase"), &["unknown_value 3 flase"]),
        ]);
        let text = with("vpc.coreweave.cloud/kubernetes-networking: 'true'");
        assert!(
            validate(&text).is_ok_and(|(_, warnings)| warnings.iter().all(|warning| !warning.message.contains("vpc")))
        );
    }
}
