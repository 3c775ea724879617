//! Services: Kubernetes' documented behaviours at the level of objects, what is refused, and addresses that stay.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::outside::{all, desired, ips, pools};
use super::*;
use crate::config::outside::{ServiceAddresses, addresses};
use crate::fabric::spec::{
    AllDown, Condition, Desired, Drain, EndpointSpec, HealthCheck, HealthSpec, Refusal, ServiceSpec,
};
use crate::services::dns::spec::{ServiceRecords, ServiceTarget};

/// A Service with annotations, as JSON, which is YAML.
fn service(annotations: &str, spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web, annotations: {{{annotations}}}}}\nspec: {spec}\n")
}

fn web(more: &str) -> String {
    service("", &format!("{{selector: {{app: web}}, ports: [{{port: 80}}]{more}}}"))
}

/// A port with label `app: web`.
fn backend(name: &str, metadata: &str, spec: &str) -> String {
    port(&format!("{{{spec}}}")).replace("{name: p}", &format!("{{name: {name}, labels: {{app: web}}{metadata}}}"))
}

fn backends() -> String {
    all(&[backend("a", "", ""), backend("b", "", "")])
}

/// An EndpointSlice of the Service.
fn slice(name: &str, family: &str, endpoints: &str, ports: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, labels: \
         {{kubernetes.io/service-name: web}}}}\naddressType: {family}\nendpoints: {endpoints}\nports: {ports}\n"
    )
}

fn host_in_zone(zone: &str) -> String {
    host("{}").replace("{name: h}", &format!("{{name: h, labels: {{topology.kubernetes.io/zone: {zone}}}}}"))
}

fn told(objects: &[String]) -> Desired {
    let (told, _, problems) = desired(&all(objects), &ServiceAddresses::new());
    assert_eq!(problems, Vec::<String>::new());
    told
}

/// The only Service.
fn one(objects: &[String]) -> ServiceSpec {
    let told = told(objects);
    assert_eq!(told.services.len(), 1);
    ServiceSpec::clone(&told.services[0])
}

/// `name address l4`, of the endpoints of the first port.
fn endpoints(spec: &ServiceSpec) -> Vec<String> {
    let text = |endpoint: &EndpointSpec| {
        let l4 = endpoint.l4.map_or("same".to_owned(), |l4| l4.to_string());
        format!("{} {} {l4}", endpoint.name, endpoint.address)
    };
    spec.ports[0].endpoints.iter().map(text).collect()
}

/// Who is eligible, by name.
fn eligible(spec: &ServiceSpec, of: impl Fn(&EndpointSpec) -> bool) -> Vec<String> {
    spec.ports[0].endpoints.iter().filter(|endpoint| of(endpoint)).map(|endpoint| endpoint.name.clone()).collect()
}

#[test]
fn a_cluster_ip_service_has_an_address_and_the_ports_that_it_selects() {
    let spec = one(&[backends(), backend("other", "", "").replace("app: web", "app: db"), web("")]);
    assert_eq!((spec.name.as_str(), spec.network.as_str()), ("default/web", "default"));
    assert_eq!(spec.cluster, ips(&["10.104.0.1"]));
    assert_eq!(spec.load_balancer, []);
    assert_eq!(endpoints(&spec), ["default/a 10.64.0.2 80", "default/b 10.64.0.3 80"]);
    let port = &spec.ports[0];
    assert_eq!((port.proto, port.l4.clone(), port.name.as_str()), (6, 80..=80, ""));
    let endpoint = &port.endpoints[0];
    assert!(endpoint.port.is_some() && endpoint.internal && endpoint.external);
    assert_eq!((endpoint.weight, endpoint.condition), (100, Condition::Ready));
    assert_eq!((spec.affinity_s, spec.sources.len(), spec.health.clone()), (None, 0, None));
    assert_eq!((spec.refusal_internal, spec.refusal_external), (Refusal::Reject, Refusal::Reject));
    assert_eq!((spec.all_down, spec.drain), (AllDown::Reject, Drain::Keep));
}

#[test]
fn pods_labels_count_and_every_label_of_the_selector_must_match() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {tier: front}}\n".to_owned();
    let both = web("").replace("{app: web}", "{app: web, tier: front}");
    assert_eq!(endpoints(&one(&[backends(), pod, both])), ["default/a 10.64.0.2 80"]);
    // Other namespaces are not concerned.
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n".to_owned();
    let elsewhere = backend("c", ", namespace: shop", "");
    assert_eq!(endpoints(&one(&[backends(), namespace, elsewhere, web("")])).len(), 2);
}

#[test]
fn sv7_named_target_ports_are_resolved_per_backend() {
    let named = |name: &str, port: u16, protocol: &str| {
        backend(name, "", &format!("namedPorts: [{{name: http, port: {port}, protocol: {protocol}}}]"))
    };
    let spec = one(&[
        named("a", 8080, "TCP"),
        named("b", 9090, "TCP"),
        named("c", 8080, "UDP"),
        backend("d", "", ""),
        web("").replace("{port: 80}", "{port: 80, targetPort: http}"),
    ]);
    assert_eq!(endpoints(&spec), ["default/a 10.64.0.2 8080", "default/b 10.64.0.3 9090"]);
    // Left out it is the Service's own number, and a number is what it says.
    let target = |target: &str| {
        let service = web("").replace("{port: 80}", &format!("{{port: 80{target}}}"));
        one(&[backends(), service]).ports[0].endpoints[0].l4
    };
    assert_eq!((target(""), target(", targetPort: 8080"), target(", targetPort: 0")), (Some(80), Some(8080), Some(80)));
}

#[test]
fn several_ports_ranges_and_mixed_protocols() {
    let ports = "[{name: sip, port: 5060, protocol: UDP, targetPort: 15060}, {name: media, port: 30000, protocol: UDP}, \
                 {name: sig, port: 5060, protocol: SCTP}, {name: any, port: 1}]";
    let range = "hostweave.dev/port-range: 'media=30000-32767, any=all'";
    let spec = one(&[backends(), service(range, &format!("{{selector: {{app: web}}, ports: {ports}}}"))]);
    let ports: Vec<(&str, u8, RangeInclusive<u16>, Option<u16>)> =
        spec.ports.iter().map(|port| (port.name.as_str(), port.proto, port.l4.clone(), port.endpoints[0].l4)).collect();
    assert_eq!(
        ports,
        [
            ("sip", 17, 5060..=5060, Some(15060)),
            ("media", 17, 30000..=32767, None),
            ("sig", 132, 5060..=5060, Some(5060)),
            ("any", 6, 1..=65535, None)
        ]
    );
    // One port needs no name.
    let alone = service("hostweave.dev/port-range: '80-90'", "{selector: {app: web}, ports: [{port: 80}]}");
    assert_eq!(one(&[backends(), alone]).ports[0].l4, 80..=90);
}

#[test]
fn sv10_affinity_is_three_hours_unless_written() {
    for (written, expected) in [
        ("", None),
        (", sessionAffinity: None", None),
        (", sessionAffinity: ClientIP", Some(10_800)),
        (", sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}", Some(60)),
    ] {
        assert_eq!(one(&[backends(), web(written)]).affinity_s, expected, "{written}");
    }
}

#[test]
fn sv1_conditions_of_slices_and_ports() {
    let of = |conditions: &str| {
        let slice = slice("s", "IPv4", &format!("[{{addresses: [192.0.2.1]{conditions}}}]"), "[{port: 80}]");
        one(&[slice, service("", "{ports: [{port: 80}]}")]).ports[0].endpoints[0].condition
    };
    use Condition::{NotReady, Ready, Terminating};
    for (written, expected) in [
        ("", Ready),
        (", conditions: {}", Ready),
        (", conditions: {ready: true}", Ready),
        (", conditions: {ready: false}", NotReady),
        (", conditions: {ready: false, serving: true}", NotReady),
        (", conditions: {ready: false, serving: true, terminating: true}", Terminating),
        (", conditions: {ready: false, serving: false, terminating: true}", NotReady),
        (", conditions: {ready: null, serving: null, terminating: null}", Ready),
    ] {
        assert_eq!(of(written), expected, "{written}");
    }
    // A port that is down takes no connections, but if the Service wants all.
    let down = backend("a", "", "adminState: down");
    let condition = |more: &str| one(&[down.clone(), web(more)]).ports[0].endpoints[0].condition;
    assert_eq!((condition(""), condition(", publishNotReadyAddresses: true")), (NotReady, Ready));
}

#[test]
fn a_service_without_selector_has_the_addresses_of_its_slices() {
    let v4 = slice(
        "v4",
        "IPv4",
        "[{addresses: [192.0.2.1, 192.0.2.9]}, {addresses: [10.64.0.2]}, {addresses: [192.0.2.1]}]",
        "[{name: http, port: 8080}, {name: other, port: 1}]",
    );
    let v6 = slice("v6", "IPv6", "[{addresses: ['2001:db8:1::1'], hostname: six}]", "[{name: http}]");
    let both = "{ipFamilyPolicy: RequireDualStack, ports: [{name: http, port: 80}]}";
    let spec = one(&[backend("a", "", ""), v4.clone(), v6.clone(), service("", both)]);
    assert_eq!(
        endpoints(&spec),
        ["default/a 10.64.0.2 8080", "192.0.2.1 192.0.2.1 8080", "2001:db8:1::1 2001:db8:1::1 same"]
    );
    let known: Vec<bool> = spec.ports[0].endpoints.iter().map(|endpoint| endpoint.port.is_some()).collect();
    assert_eq!(known, [true, false, false]);
    // A slice of another protocol, name or family has nothing for it.
    let none = |slice: String| endpoints(&one(&[slice, service("", "{ports: [{name: http, port: 80}]}")])).len();
    assert_eq!(none(v4.replace("name: http, port", "name: http, protocol: UDP, port")), 0);
    assert_eq!(none(v4.replace("name: http", "name: https")), 0);
    assert_eq!(none(v6), 0);
    assert_eq!(none(v4), 2);
}

#[test]
fn sv12_sv14_local_policies_and_who_is_refused_how() {
    let near = "{addresses: [192.0.2.1], nodeName: h}";
    let far = "{addresses: [192.0.2.2], nodeName: far}";
    let with = |endpoints: &str, policy: &str| {
        let service = service("", &format!("{{type: LoadBalancer, ports: [{{port: 80}}]{policy}}}"));
        one(&[host("{}"), pools(), slice("s", "IPv4", endpoints, "[{port: 80}]"), service])
    };
    let both = format!("[{near}, {far}]");
    let cluster = with(&both, "");
    assert_eq!(eligible(&cluster, |it| it.internal).len(), 2);
    assert_eq!(eligible(&cluster, |it| it.external).len(), 2);
    let local = with(&both, ", externalTrafficPolicy: Local");
    assert_eq!(eligible(&local, |it| it.internal).len(), 2, "SV13");
    assert_eq!(eligible(&local, |it| it.external), ["192.0.2.1"]);
    let internal = with(&both, ", internalTrafficPolicy: Local");
    assert_eq!(eligible(&internal, |it| it.internal), ["192.0.2.1"]);
    assert_eq!(eligible(&internal, |it| it.external).len(), 2);
    // Backends elsewhere only: silence. None at all: a refusal (SV16).
    let all_local = ", externalTrafficPolicy: Local, internalTrafficPolicy: Local";
    let refusals = |endpoints: &str, policy: &str| {
        let spec = with(endpoints, policy);
        (spec.refusal_internal, spec.refusal_external)
    };
    use Refusal::{Drop, Reject};
    let far = format!("[{far}]");
    assert_eq!(refusals(&far, ""), (Reject, Reject));
    assert_eq!(refusals(&far, all_local), (Drop, Drop));
    assert_eq!(refusals(&far, ", externalTrafficPolicy: Local"), (Reject, Drop));
    assert_eq!(refusals("[]", all_local), (Reject, Reject));
    // Ports of this host are here.
    let spec = one(&[backends(), pools(), web(&format!(", type: LoadBalancer{all_local}"))]);
    assert_eq!(eligible(&spec, |it| it.internal && it.external).len(), 2);
}

#[test]
fn sv15_preferences_overflow_where_nobody_is_near() {
    let endpoint = |address: u8, node: &str, zone: &str| {
        format!("{{addresses: [192.0.2.{address}], nodeName: {node}, zone: {zone}}}")
    };
    let three = [endpoint(1, "h", "east"), endpoint(2, "i", "east"), endpoint(3, "j", "west")].join(", ");
    let near = |zone: &str, endpoints: &str, prefer: &str| {
        let service = service("", &format!("{{ports: [{{port: 80}}]{prefer}}}"));
        let spec = one(&[host_in_zone(zone), slice("s", "IPv4", &format!("[{endpoints}]"), "[{port: 80}]"), service]);
        eligible(&spec, |it| it.internal)
            .iter()
            .map(|name| name.trim_start_matches("192.0.2.").to_owned())
            .collect::<Vec<_>>()
            .join("")
    };
    for (zone, prefer, expected) in [
        ("east", "", "123"),
        ("east", ", trafficDistribution: PreferSameZone", "12"),
        ("east", ", trafficDistribution: PreferClose", "12"),
        ("east", ", trafficDistribution: PreferSameNode", "1"),
        ("north", ", trafficDistribution: PreferSameZone", "123"),
    ] {
        assert_eq!(near(zone, &three, prefer), expected, "{zone}{prefer}");
    }
    // A preferred node without backend: the zone is next.
    let others = three.replace("nodeName: h", "nodeName: g");
    assert_eq!(near("east", &others, ", trafficDistribution: PreferSameNode"), "12");
    // One that does not say where it is makes the preference void, as in Kubernetes.
    let silent = format!("{three}, {{addresses: [192.0.2.4]}}");
    assert_eq!(near("east", &silent, ", trafficDistribution: PreferSameZone"), "1234");
    // Hints are somebody's decision, whatever the Service prefers.
    let hinted = "{addresses: [192.0.2.1], hints: {forZones: [{name: west}]}}, \
                  {addresses: [192.0.2.2], hints: {forZones: [{name: east}, {name: west}]}}";
    assert_eq!(
        (near("west", hinted, ""), near("east", hinted, ""), near("south", hinted, "")),
        ("12".into(), "2".into(), "12".into())
    );
    let node = "{addresses: [192.0.2.1], hints: {forNodes: [{name: h}]}}, {addresses: [192.0.2.2], hints: {forNodes: [{name: i}]}}";
    assert_eq!(near("east", node, ""), "1");
    // One that is not ready has no say.
    let dead = format!("{three}, {{addresses: [192.0.2.4], conditions: {{ready: false}}}}");
    assert_eq!(near("east", &dead, ", trafficDistribution: PreferSameZone"), "124");
}

#[test]
fn sv18_source_ranges_by_field_and_by_the_older_annotation() {
    let load_balancer = web(", type: LoadBalancer, loadBalancerSourceRanges: [192.0.2.0/24, ' 2001:db8::/32']");
    let sources: Vec<String> =
        one(&[pools(), backends(), load_balancer]).sources.iter().map(ToString::to_string).collect();
    assert_eq!(sources, ["192.0.2.0/24", "2001:db8::/32"]);
    let older = "service.beta.kubernetes.io/load-balancer-source-ranges: '192.0.2.0/24, 2001:db8::/32'";
    let spec = "{type: LoadBalancer, selector: {app: web}, ports: [{port: 80}]}";
    assert_eq!(one(&[pools(), backends(), service(older, spec)]).sources.len(), 2);
}

#[test]
fn weights_stand_on_the_port_or_its_pod() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: b, annotations: {hostweave.dev/weight: '7'}}\n".to_owned();
    let heavy = backend("a", ", annotations: {hostweave.dev/weight: '1000'}", "");
    let spec = one(&[heavy, backend("b", "", ""), backend("c", "", ""), pod, web("")]);
    let weights: Vec<u16> = spec.ports[0].endpoints.iter().map(|endpoint| endpoint.weight).collect();
    assert_eq!(weights, [1000, 7, 100]);
}

#[test]
fn families_follow_the_network_and_the_service() {
    let only = |cidrs: &str| network(&format!("{{cidrs: [{cidrs}]}}")).replace("name: n", "name: default");
    let v6_only = only("'2001:db8:5::/64'");
    for (network, written, expected) in [
        (String::new(), "", &["10.104.0.1"][..]),
        (String::new(), ", ipFamilies: [IPv6]", &["fd68:7700:68::1"]),
        (String::new(), ", ipFamilyPolicy: PreferDualStack", &["10.104.0.1", "fd68:7700:68::1"]),
        (
            String::new(),
            ", ipFamilies: [IPv6, IPv4], ipFamilyPolicy: RequireDualStack",
            &["10.104.0.1", "fd68:7700:68::1"],
        ),
        (String::new(), ", clusterIP: 10.104.9.9", &["10.104.9.9"]),
        (String::new(), ", clusterIPs: ['fd68:7700:68::9', 10.104.9.9]", &["10.104.9.9", "fd68:7700:68::9"]),
        (v6_only.clone(), "", &["fd68:7700:68::1"]),
        (v6_only.clone(), ", ipFamilyPolicy: PreferDualStack", &["fd68:7700:68::1"]),
        (only("10.0.0.0/8"), "", &["172.30.0.1"]),
        (only("'fd00::/8'"), "", &["fc68:7700:68::1"]),
    ] {
        let objects = [network, backends(), web(written)];
        let spec = one(&objects.map(|text| text).into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>());
        assert_eq!(spec.cluster, ips(expected), "{written}");
        // Backends of its families, and no others.
        let has = |ipv4| spec.ports[0].endpoints.iter().any(|endpoint| endpoint.address.is_ipv4() == ipv4);
        let wants = |ipv4| spec.cluster.iter().any(|address| address.is_ipv4() == ipv4);
        assert_eq!((has(true), has(false)), (wants(true), wants(false)), "{written}");
    }
    let (_, _, problems) =
        desired(&all(&[v6_only, backends(), web(", ipFamilyPolicy: RequireDualStack")]), &ServiceAddresses::new());
    assert_eq!(problems, ["Network default has no IPv4 range"]);
}

#[test]
fn a_load_balancer_has_an_address_of_a_pool_besides() {
    let public = "service.beta.kubernetes.io/coreweave-load-balancer-type: public";
    let spec = |annotations: &str, more: &str| {
        let spec = format!("{{type: LoadBalancer, selector: {{app: web}}, ports: [{{port: 80}}]{more}}}");
        let spec = one(&[pools(), backends(), service(annotations, &spec)]);
        let external: Vec<(String, bool)> =
            spec.load_balancer.iter().map(|address| (address.address.to_string(), address.public)).collect();
        (spec.cluster, external)
    };
    let text = |address: &str, public| vec![(address.to_owned(), public)];
    assert_eq!(spec("", ""), (ips(&["10.104.0.1"]), text("10.96.0.0", false)));
    assert_eq!(spec(public, ""), (ips(&["10.104.0.1"]), text("203.0.113.0", true)));
    assert_eq!(spec(public, ", ipFamilies: [IPv6]"), (ips(&["fd68:7700:68::1"]), text("2001:db8:aa::1", true)));
    assert_eq!(spec(public, ", ipFamilyPolicy: RequireDualStack").1.len(), 2);
    // The private pool has no IPv6.
    assert_eq!(spec("", ", ipFamilyPolicy: PreferDualStack").1, text("10.96.0.0", false));
    // Another class's Services have no such address (SV23); nor have node ports one.
    let (told, _, problems) = desired(
        &all(&[pools(), backends(), web(", type: LoadBalancer, loadBalancerClass: example.com/lb")]),
        &ServiceAddresses::new(),
    );
    assert_eq!((told.services[0].load_balancer.len(), problems.len()), (0, 0));
    assert_eq!(one(&[backends(), web(", type: NodePort")]).cluster.len(), 1);
}

#[test]
fn cw2_a_shared_address_has_each_l4_port_once() {
    let shared = |name: &str, ports: &str, range: &str| {
        let annotations = format!("metallb.universe.tf/allow-shared-ip: x{range}");
        let spec = format!("{{type: LoadBalancer, selector: {{app: web}}, ports: {ports}}}");
        service(&annotations, &spec).replace("name: web, annotations", &format!("name: {name}, annotations"))
    };
    let result = |a: String, b: String| {
        let (told, _, problems) = desired(&all(&[pools(), backends(), a, b]), &ServiceAddresses::new());
        let addresses: Vec<IpAddr> =
            told.services.iter().flat_map(|spec| &spec.load_balancer).map(|address| address.address).collect();
        (addresses, problems)
    };
    let same = ips(&["10.96.0.0", "10.96.0.0"]);
    for (a, b, fits) in [
        (shared("a", "[{port: 80}]", ""), shared("b", "[{port: 443}]", ""), true),
        (shared("a", "[{port: 53}]", ""), shared("b", "[{port: 53, protocol: UDP}]", ""), true),
        (shared("a", "[{port: 80}]", ""), shared("b", "[{port: 80, targetPort: 8080}]", ""), false),
        (shared("a", "[{port: 80}]", ""), shared("b", "[{port: 70}]", ", hostweave.dev/port-range: '60-90'"), false),
        (shared("a", "[{port: 80}]", ""), shared("b", "[{port: 70}]", ", hostweave.dev/port-range: all"), false),
    ] {
        let (addresses, problems) = result(a, b);
        if fits {
            assert_eq!((addresses, problems), (same.clone(), Vec::new()));
        } else {
            assert_eq!(problems.len(), 1);
            assert!(
                problems[0].contains("TCP 80 of the shared address 10.96.0.0 belongs to Service default/a"),
                "{problems:?}"
            );
        }
    }
    // One that is attached has all of them.
    let attach = super::outside::service("a", "metallb.universe.tf/allow-shared-ip: x");
    let (_, problems) = result(attach, shared("b", "[{port: 80}]", ""));
    assert!(problems[0].contains("every L4 port of the shared address"), "{problems:?}");
}

#[test]
fn sv21_cluster_addresses_stay_and_have_one_owner() {
    let named =
        |name: &str, more: &str| web(more).replace("name: web, annotations", &format!("name: {name}, annotations"));
    let three = all(&[named("a", ""), named("b", ""), named("c", "")]);
    let (_, first, _) = desired(&three, &ServiceAddresses::new());
    let of = |plan: &addresses::ServicePlan, name: &str| {
        plan.addresses[&ObjectKey::new(Kind::Service, None, name)][0].address.to_string()
    };
    assert_eq!((of(&first, "a"), of(&first, "c")), ("10.104.0.1".into(), "10.104.0.3".into()));
    // `a` goes, `0` comes and takes what is free.
    let (_, second, _) = desired(&all(&[named("b", ""), named("c", ""), named("a0", "")]), &first.addresses);
    assert_eq!(
        (of(&second, "a0"), of(&second, "b"), of(&second, "c")),
        ("10.104.0.1".into(), "10.104.0.2".into(), "10.104.0.3".into())
    );
    assert_eq!(second.freed, [ObjectKey::new(Kind::Service, None, "a")]);
    // What somebody has, nobody else gets by asking.
    let (_, _, problems) = desired(&all(&[named("b", ""), named("a0", ", clusterIP: 10.104.0.2")]), &first.addresses);
    assert!(problems[0].contains("cluster address 10.104.0.2 belongs to Service default/b"), "{problems:?}");
    // Two that ask for one.
    let asks = ", clusterIP: 10.104.0.7";
    let (_, _, problems) = desired(&all(&[named("a", asks), named("b", asks)]), &ServiceAddresses::new());
    assert_eq!(problems.len(), 1);
    // Nobody may have these.
    for address in ["10.104.0.0", "10.104.255.255", "10.105.0.1", "10.64.0.1", "10.64.0.2"] {
        let (_, _, problems) = desired(&named("a", &format!(", clusterIP: {address}")), &ServiceAddresses::new());
        assert!(
            problems[0].contains("is no IPv4 address for a Service of Network default: those are in 10.104.0.0/16"),
            "{problems:?}"
        );
    }
    // A range that shrinks under an address is a problem, and the Service keeps it.
    let smaller = network("{cidrs: [10.64.0.0/16], serviceCIDRs: [10.99.0.0/24]}").replace("name: n", "name: default");
    let (_, plan, problems) = desired(&all(&[named("a", ""), smaller]), &first.addresses);
    assert!(
        problems[0].contains("its cluster address 10.104.0.1 is in no range of Network default any more"),
        "{problems:?}"
    );
    assert_eq!(of(&plan, "a"), "10.104.0.1");
    // Each network has its own; a Service that moves gets another.
    let n = network("{cidrs: [10.64.0.0/16]}");
    let in_n = |name: &str| named(name, "").replace("annotations: {", "annotations: {hostweave.dev/network: n");
    let (told, plan, problems) = desired(&all(&[n, named("a", ""), in_n("b"), in_n("c")]), &first.addresses);
    assert_eq!((of(&plan, "a"), of(&plan, "b"), problems), ("10.104.0.1".into(), "10.104.0.1".into(), Vec::new()));
    assert_eq!(told.services[1].network, "n");
    // It is one Service that changes its type.
    let (_, plan, _) = desired(&all(&[pools(), named("b", ", type: LoadBalancer")]), &first.addresses);
    let given: Vec<String> = plan.addresses.values().flatten().map(|given| given.address.to_string()).collect();
    assert_eq!(given, ["10.96.0.0", "10.104.0.2"]);
    // A full range.
    let tiny = network("{cidrs: [10.64.0.0/16], serviceCIDRs: [10.99.0.0/30]}").replace("name: n", "name: default");
    let (_, _, problems) = desired(&all(&[tiny, three]), &ServiceAddresses::new());
    assert_eq!(problems, ["every cluster address of 10.99.0.0/30 (Network default) is taken"]);
}

/// Whatever comes and goes, whoever stays keeps what it has, and nobody shares.
#[test]
fn addresses_are_stable_under_any_sequence_of_changes() {
    let mut state = 0x2545_f491_u32;
    let mut random = |below: u32| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state % below
    };
    let forms = ["", ", ipFamilyPolicy: PreferDualStack", ", ipFamilies: [IPv6]", ", type: LoadBalancer"];
    let mut there: BTreeMap<u32, usize> = BTreeMap::new();
    let mut given = ServiceAddresses::new();
    for _ in 0..120 {
        let name = random(12);
        if there.remove(&name).is_none() {
            there.insert(name, random(4) as usize);
        }
        let one = |(name, form): (&u32, &usize)| {
            web(forms[*form]).replace("name: web, annotations", &format!("name: s{name}, annotations"))
        };
        let texts: Vec<String> = there.iter().map(one).collect();
        let (told, plan, problems) = desired(&all(&[vec![pools()], texts].concat()), &given);
        assert_eq!(problems, Vec::<String>::new());
        for (key, before) in &given {
            assert!(plan.addresses.get(key).is_none_or(|now| now == before), "{key}");
        }
        assert_eq!(plan.addresses.len(), there.len());
        let mut all: Vec<IpAddr> = plan.addresses.values().flatten().map(|given| given.address).collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        assert_eq!(told.services.len(), there.len());
        given = plan.addresses;
    }
}

#[test]
fn an_equal_service_is_the_same_arc() {
    let text = all(&[backends(), web("")]);
    let set = validate(&text).unwrap().0;
    let mut count = 0;
    let assigned = crate::config::ipam::assign(&set, &Assignments::new(), &mut || {
        count += 1;
        uuid::Uuid::from_u128(count)
    });
    let given = addresses::assign(&set, &ServiceAddresses::new()).addresses;
    let facts = crate::config::desired::HostFacts::system(Path::new("/run"));
    let plan = |assigned: &crate::config::ipam::Plan, before: &[Arc<ServiceSpec>]| {
        let told = crate::config::services::Told { services: before, ..Default::default() };
        crate::config::desired::to_desired(&set, &assigned.assignments, &given, told, &facts).0.services
    };
    let first = plan(&assigned, &[]);
    let second = plan(&assigned, &first);
    assert!(Arc::ptr_eq(&first[0], &second[0]));
    let mut moved = assigned.clone();
    moved.assignments.values_mut().for_each(|assignment| assignment.v4 = Some([10, 64, 9, 9].into()));
    assert!(!Arc::ptr_eq(&first[0], &plan(&moved, &first)[0]));
}

fn records(objects: &[String]) -> Vec<ServiceRecords> {
    told(objects).dns.unwrap().services
}

#[test]
fn dn1_names_of_every_form() {
    let cluster = &records(&[backends(), web("")])[0];
    assert_eq!(
        (cluster.network.as_str(), cluster.namespace.as_str(), cluster.name.as_str()),
        ("default", "default", "web")
    );
    assert_eq!(cluster.target, ServiceTarget::ClusterIp(ips(&["10.104.0.1"])));
    assert_eq!((cluster.ports[0].protocol, cluster.ports[0].port), ("tcp", 80));
    // As in Kubernetes, the name of a LoadBalancer is its cluster address.
    let balancer = &records(&[pools(), web(", type: LoadBalancer")])[0];
    assert_eq!(balancer.target, ServiceTarget::ClusterIp(ips(&["10.104.0.1"])));
    let external = &records(&[service("", "{type: ExternalName, externalName: db.example.com.}")])[0];
    assert_eq!(external.target, ServiceTarget::ExternalName("db.example.com".into()));
    let attached = super::outside::attached("p", "s", "");
    let attached = &records(&[
        host(super::outside::UPLINK),
        pools(),
        attached,
        super::outside::service("s", super::outside::PUBLIC),
    ])[0];
    assert_eq!(attached.target, ServiceTarget::ClusterIp(ips(&["203.0.113.0"])));
    // Reverse names of cluster addresses are ours.
    let ranges = told(&[network("{cidrs: [10.1.0.0/24]}")]).dns.unwrap().service_ranges;
    let ranges: Vec<String> = ranges.iter().map(|range| format!("{} {}", range.network, range.net)).collect();
    assert_eq!(ranges, ["default 10.104.0.0/16", "default fd68:7700:68::/112", "n 10.104.0.0/16"]);
}

#[test]
fn dn3_headless_names_stand_for_the_backends() {
    let named = |name: &str, port: u16| backend(name, "", &format!("namedPorts: [{{name: http, port: {port}}}]"));
    let down = backend("c", "", "adminState: down");
    let headless = |more: &str| {
        service(
            "",
            &format!(
                "{{clusterIP: None, selector: {{app: web}}, ports: [{{name: http, port: 80, targetPort: http}}]{more}}}"
            ),
        )
    };
    let objects = [named("a", 8080), named("b", 80), down, headless("")];
    assert!(told(&objects).services.is_empty());
    let ServiceTarget::Headless { endpoints, not_ready } = records(&objects)[0].target.clone() else { panic!() };
    assert!(!not_ready);
    let seen: Vec<(Option<&str>, usize, bool, Vec<Option<u16>>)> = endpoints
        .iter()
        .map(|it| {
            (it.hostname.as_deref(), it.addresses.len(), it.ready, it.ports.iter().map(|port| port.port).collect())
        })
        .collect();
    assert_eq!(
        seen,
        [(Some("a"), 2, true, vec![Some(8080)]), (Some("b"), 2, true, vec![]), (Some("c"), 2, false, vec![None])]
    );
    let one_family = records(&[backends(), headless(", ipFamilies: [IPv6], publishNotReadyAddresses: true")]);
    let ServiceTarget::Headless { endpoints, not_ready } = &one_family[0].target else { panic!() };
    assert!(*not_ready && endpoints[0].addresses.len() == 1 && endpoints[0].addresses[0].is_ipv6());
    // Without selector, too; no port is needed for a name.
    let slices = slice(
        "s",
        "IPv4",
        "[{addresses: [192.0.2.1], hostname: one}, {addresses: [192.0.2.2]}]",
        "[{name: http, port: 81}]",
    );
    let ServiceTarget::Headless { endpoints, .. } =
        &records(&[slices, service("", "{clusterIP: None, ports: [{name: http, port: 80}]}")])[0].target
    else {
        panic!()
    };
    assert_eq!((endpoints[0].hostname.as_deref(), endpoints[0].ports[0].port), (Some("one"), Some(81)));
    assert_eq!(endpoints[1].hostname, None);
    valid(&service("", "{clusterIP: None, selector: {app: web}}"));
}

fn health(text: &str) -> HealthSpec {
    let service =
        service(&format!("hostweave.dev/health-check: '{text}'"), "{selector: {app: web}, ports: [{port: 80}]}");
    one(&[backends(), service]).health.unwrap()
}

#[test]
fn sv2_health_checks_of_every_type() {
    let http = |tls, path: &str, host: Option<&str>, statuses| HealthCheck::Http {
        tls,
        path: path.to_owned(),
        host: host.map(str::to_owned),
        statuses,
    };
    let udp = |send: &[u8], expect: &[u8]| HealthCheck::Udp { send: send.to_vec(), expect: expect.to_vec() };
    for (text, check) in [
        ("{type: tcp}", HealthCheck::Tcp),
        ("{type: icmp}", HealthCheck::Icmp),
        ("{type: http}", http(false, "/", None, 200..=399)),
        (
            "{type: https, path: /healthz?full=1, host: web.example.com, status: 200-204}",
            http(true, "/healthz?full=1", Some("web.example.com"), 200..=204),
        ),
        ("{type: http, status: 204}", http(false, "/", None, 204..=204)),
        ("{type: grpc, service: shop.Cart}", HealthCheck::Grpc { service: "shop.Cart".into() }),
        ("{type: udp, send: ping, expect: pong}", udp(b"ping", b"pong")),
        ("{type: udp, send: \"hex:00fF\"}", udp(&[0, 255], b"")),
    ] {
        let spec = health(text);
        assert_eq!(spec.check, check, "{text}");
        assert_eq!((spec.l4, spec.interval_ms, spec.timeout_ms, spec.rise, spec.fall), (None, 5000, 2000, 2, 3));
    }
    let spec = health("{type: tcp, port: 8080, interval: 500ms, rise: 1, fall: 10}");
    assert_eq!((spec.l4, spec.interval_ms, spec.timeout_ms, spec.rise, spec.fall), (Some(8080), 500, 500, 1, 10));
    assert_eq!(health("{type: tcp, interval: 1m, timeout: 3s}").timeout_ms, 3000);
    let choices = "hostweave.dev/all-down: panic, hostweave.dev/drain: reset";
    let spec = one(&[backends(), service(choices, "{selector: {app: web}, ports: [{port: 80}]}")]);
    assert_eq!((spec.all_down, spec.drain), (AllDown::Panic, Drain::Reset));
}

#[test]
fn health_checks_that_are_refused() {
    let annotation = "hostweave.dev/health-check";
    for (text, code, says) in [
        ("", "missing_field", "it is empty"),
        ("{type: [}", "syntax", ""),
        ("{path: /}", "missing_field", "field type is missing"),
        ("{type: htp}", "unknown_value", "\"htp\" is not one of tcp, http, https, grpc, icmp, udp"),
        ("{type: http, intervall: 5s}", "unknown_field", "unknown field intervall"),
        ("{type: http, interval: 5}", "wrong_type", "interval must be text"),
        ("{type: http, interval: 5 s}", "wrong_value", "is not a time such as 5s"),
        ("{type: http, interval: 50ms}", "out_of_range", "100ms to 3600000ms"),
        ("{type: http, interval: 1s, timeout: 2s}", "out_of_range", "10ms to 1000ms"),
        ("{type: http, rise: 0}", "out_of_range", "rise 0 is out of range: 1 to 100"),
        ("{type: http, port: 0}", "out_of_range", "port 0 is out of range: 1 to 65535"),
        ("{type: http, path: healthz}", "invalid_path", "must begin with /"),
        ("{type: http, path: \"/a b\"}", "invalid_path", "visible ASCII"),
        ("{type: http, path: \"/a\\r\\nX: y\"}", "invalid_path", "visible ASCII"),
        ("{type: http, host: \"a\\r\\nb\"}", "invalid_name", "host"),
        ("{type: http, status: 99}", "out_of_range", "100 to 599"),
        ("{type: http, status: 399-200}", "out_of_range", "100 to 599"),
        ("{type: tcp, path: /}", "conflict", "path has no meaning with type tcp"),
        ("{type: icmp, port: 7}", "conflict", "port has no meaning with type icmp"),
        ("{type: grpc, send: x}", "conflict", "send has no meaning with type grpc"),
        ("{type: udp, send: \"hex:0\"}", "wrong_value", "not hexadecimal"),
    ] {
        let text = service(&format!("{annotation}: '{text}'"), "{ports: [{port: 80}]}");
        let problems = validate(&text).unwrap_err().0;
        let problem = &problems[0];
        assert!(problem.code.ends_with(code) && problem.message.contains(says), "{text}\n{problem:?}");
        assert_eq!(problem.field.as_deref(), Some("metadata.annotations.hostweave.dev/health-check"));
        assert_eq!(problem.place.as_ref().unwrap().line, 3);
    }
    let range = format!("hostweave.dev/port-range: all, {annotation}: '{{type: tcp}}'");
    let problems = validate(&service(&range, "{ports: [{port: 80}]}")).unwrap_err().0;
    assert!(problems[0].message.contains("port is missing"), "{problems:?}");
}

#[test]
fn services_that_are_refused() {
    let spec = |text: &str| service("", text);
    let ranged = |range: &str, ports: &str| {
        service(&format!("hostweave.dev/port-range: '{range}'"), &format!("{{ports: {ports}}}"))
    };
    let two = "[{name: a, port: 80}, {name: b, port: 90}]";
    check(&[
        (spec("{}"), &["missing_field 4 spec"]),
        (spec("{ports: []}"), &["missing_field 4 spec"]),
        (spec("{ports: [{port: 0}]}"), &["out_of_range 4 0"]),
        (spec("{ports: [{port: 80, targetPort: 65536}]}"), &["out_of_range 4 65536"]),
        (spec("{ports: [{port: 80, targetPort: HTTP}]}"), &["invalid_name 4 HTTP"]),
        (spec("{ports: [{port: 80, protocol: ICMP}]}"), &["unknown_value 4 ICMP"]),
        (spec("{ports: [{port: 80}, {name: b, port: 90}]}"), &["missing_field 4 {"]),
        (spec("{ports: [{name: a, port: 80}, {name: a, port: 90}]}"), &["duplicate 4 a"]),
        (spec("{ports: [{name: a, port: 80}, {name: b, port: 80}]}"), &["duplicate 4 80"]),
        (spec("{ports: [{name: a_b, port: 80}]}"), &["invalid_name 4 a_b"]),
        (spec("{ports: [{port: 80}], selector: {'a b': c}}"), &["invalid_label 4 'a b'"]),
        (spec("{ports: [{port: 80}], clusterIP: nowhere}"), &["invalid_address 4 nowhere"]),
        (spec("{ports: [{port: 80}], clusterIPs: [10.104.0.1, 10.104.0.2]}"), &["duplicate 4 clusterIPs"]),
        (spec("{ports: [{port: 80}], clusterIP: 10.104.0.1, clusterIPs: [10.104.0.2]}"), &["conflict 4 10.104.0.1"]),
        (spec("{ports: [{port: 80}], clusterIP: 10.104.0.1, ipFamilies: [IPv6]}"), &["conflict 4 10.104.0.1"]),
        (spec("{ports: [{port: 80}], externalIPs: [192.0.2.1]}"), &["refused_field 4 externalIPs"]),
        (
            spec("{ports: [{port: 80}], loadBalancerSourceRanges: [192.0.2.0/24]}"),
            &["conflict 4 loadBalancerSourceRanges"],
        ),
        (
            spec("{ports: [{port: 80}], type: LoadBalancer, loadBalancerSourceRanges: [192.0.2.0]}"),
            &["invalid_cidr 4 192.0.2.0"],
        ),
        (spec("{ports: [{port: 80}], loadBalancerClass: a/b}"), &["conflict 4 loadBalancerClass"]),
        (spec("{ports: [{port: 80}], sessionAffinityConfig: {clientIP: {}}}"), &["conflict 4 sessionAffinityConfig"]),
        (
            spec(
                "{ports: [{port: 80}], sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}}",
            ),
            &["out_of_range 4 86401"],
        ),
        (spec("{ports: [{port: 80}], trafficDistribution: PreferNobody}"), &["unknown_value 4 PreferNobody"]),
        (spec("{ports: [{port: 80}], type: LoadBalancer, clusterIP: None}"), &["conflict 4 None"]),
        (spec("{ports: [{port: 80}], selektor: {app: web}}"), &["unknown_field 4 selektor"]),
        (spec("{type: ExternalName}"), &["missing_field 4 type"]),
        (spec("{type: ExternalName, externalName: a_b}"), &["invalid_name 4 a_b"]),
        (service("hostweave.dev/network: nowhere", "{ports: [{port: 80}]}"), &["not_found 3 nowhere"]),
        (service("hostweave.dev/all-down: open", "{ports: [{port: 80}]}"), &["unknown_value 3 open"]),
        (service("hostweave.dev/drain: now", "{ports: [{port: 80}]}"), &["unknown_value 3 now"]),
        (service("hostweave.dev/weigth: '5'", "{ports: [{port: 80}]}"), &["ignored_field 3 hostweave.dev/weigth"]),
        (ranged("90-80", "[{port: 80}]"), &["invalid_range 3 '90-80'"]),
        (ranged("0-80", "[{port: 80}]"), &["invalid_range 3 '0-80'"]),
        (ranged("81-90", "[{port: 80}]"), &["invalid_range 3 '81-90'"]),
        (ranged("70-90", "[{port: 80, targetPort: 8080}]"), &["invalid_range 3 '70-90'"]),
        (ranged("70-85", two), &["invalid_range 3 '70-85'"]),
        (ranged("c=70-85", two), &["invalid_range 3 'c=70-85'"]),
        (ranged("a=70-85,a=70-86", two), &["invalid_range 3 'a=70-85,a=70-86'"]),
        (ranged("a=70-95", two), &["duplicate 4 90"]),
        (backend("a", ", annotations: {hostweave.dev/weight: '0'}", ""), &["out_of_range 3 '0'"]),
        (backend("a", ", annotations: {hostweave.dev/weight: heavy}", ""), &["out_of_range 3 heavy"]),
        // A Service that spreads connections sits on no port.
        (all(&[super::outside::attached("p", "web", ""), web("")]), &["conflict 3 web"]),
    ]);
}

#[test]
fn fields_without_effect_are_warned_of_and_kubernetes_own_defaults_are_not() {
    let spec = |text: &str| service("", text);
    check(&[
        (spec("{ports: [{port: 80, nodePort: 30080}]}"), &["ignored_field 4 nodePort"]),
        (spec("{type: NodePort, ports: [{port: 80}]}"), &["ignored_field 4 type"]),
        (spec("{ports: [{port: 80}], healthCheckNodePort: 30001}"), &["ignored_field 4 healthCheckNodePort"]),
        (spec("{ports: [{port: 80}], externalTrafficPolicy: Local}"), &["ignored_field 4 externalTrafficPolicy"]),
        (spec("{ports: [{port: 80}], loadBalancerIP: 192.0.2.1}"), &["ignored_field 4 loadBalancerIP"]),
        (spec("{ports: [{port: 80}], externalName: a.example}"), &["ignored_field 4 externalName"]),
        (spec("{type: ExternalName, externalName: a.example, selector: {a: b}}"), &["ignored_field 4 selector"]),
        (spec("{type: LoadBalancer, loadBalancerClass: a/b, ports: [{port: 80}]}"), &["ignored_field 4 a/b"]),
    ]);
    // What `kubectl get -o yaml` says of a Service, without the addresses of that cluster.
    valid(&all(&[
        "apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: default
spec:
  allocateLoadBalancerNodePorts: true
  externalTrafficPolicy: Cluster
  internalTrafficPolicy: Cluster
  ipFamilies:
  - IPv4
  ipFamilyPolicy: SingleStack
  ports:
  - appProtocol: http
    name: http
    port: 80
    protocol: TCP
    targetPort: 8080
  selector:
    app: web
  sessionAffinity: None
  type: LoadBalancer
"
        .to_owned(),
        pools(),
    ]));
}

#[test]
fn slices_that_are_refused() {
    let of = |endpoints: &str| slice("s", "IPv4", endpoints, "[{port: 80}]");
    let ports = |ports: &str| slice("s", "IPv4", "[]", ports);
    check(&[
        (of("[{addresses: []}]"), &["out_of_range 5 addresses"]),
        (of("[{addresses: [x]}]"), &["invalid_address 5 x"]),
        (of("[{addresses: ['2001:db8::1']}]"), &["invalid_address 5 '2001:db8::1'"]),
        (of("[{addresses: [127.0.0.1]}]"), &["invalid_address 5 127.0.0.1"]),
        (of("[{addresses: [169.254.169.254]}]"), &["invalid_address 5 169.254.169.254"]),
        (of("[{addresses: [192.0.2.1], hostname: a.b}]"), &["invalid_name 5 a.b"]),
        (of("[{addresses: [192.0.2.1], ready: true}]"), &["unknown_field 5 ready"]),
        (ports("[{port: 0}]"), &["out_of_range 6 0"]),
        (ports("[{port: 1}, {port: 2}]"), &["duplicate 6 {"]),
        (slice("s", "FQDN", "[]", "[]"), &["refused_field 4 FQDN"]),
        (slice("s", "IPv5", "[]", "[]"), &["unknown_value 4 IPv5"]),
        (slice("s", "IPv4", "[]", "[]").replace("kubernetes.io/service-name: web", "a: b"), &["no_effect 3 labels"]),
    ]);
    // As Kubernetes writes them.
    valid(&slice(
        "web-abc",
        "IPv4",
        "[{addresses: [192.0.2.1], conditions: {ready: true, serving: true, terminating: false}, nodeName: n, zone: z, \
         targetRef: {kind: Pod, name: p, namespace: default, uid: u}, hints: {forZones: [{name: z}]}}]",
        "[{name: '', port: 80, protocol: TCP, appProtocol: http}]",
    ));
}

#[test]
fn da5_cluster_addresses_are_nobody_elses() {
    let net = |cidrs: &str| network(&format!("{{cidrs: [10.1.0.0/16], serviceCIDRs: [{cidrs}]}}"));
    check(&[
        (net("10.1.4.0/24"), &["invalid_cidr 4 10.1.4.0/24"]),
        (net("10.96.0.1/16"), &["invalid_cidr 4 10.96.0.1/16"]),
        (net("'2001:db8::/112'"), &["invalid_cidr 4 '2001:db8::/112'"]),
        (net("10.96.0.0/16, 10.97.0.0/16"), &["invalid_cidr 4 10.97.0.0/16"]),
        (net("127.0.0.0/16"), &["invalid_cidr 4 127.0.0.0/16"]),
        (
            all(&[net("10.96.0.0/16"), address_pool("p", "{type: private, addresses: [10.96.3.0/24]}")]),
            &["conflict 9 10.96.3.0/24"],
        ),
        // Those that nobody wrote, too.
        (address_pool("p", "{type: private, addresses: [10.104.3.0/24]}"), &["conflict 4 10.104.3.0/24"]),
    ]);
}

#[test]
fn what_is_dubious_about_services() {
    let dubious = |objects: &[String]| -> Vec<String> {
        let told = told(objects);
        let set = validate(&all(objects)).unwrap().0;
        let found = crate::config::services::dubious(&set, &told.ports, set.iter().map(|(key, _)| key));
        found.iter().map(|it| format!("{} {}", it.code.rsplit("::").next().unwrap(), it.message)).collect()
    };
    assert_eq!(dubious(&[backends(), web("")]), Vec::<String>::new());
    assert_eq!(dubious(&[web("")]), ["selects_nothing it selects 0 ports of namespace default (app=web)"]);
    let n = network("{cidrs: [10.1.0.0/24]}");
    let elsewhere = backend("x", "", "network: n");
    let found = dubious(&[n, backends(), elsewhere, web("")]);
    assert_eq!(
        found,
        ["other_network 1 of the ports that it selects are not in Network default, and are ignored: default/x"]
    );
    let named = backend("c", "", "namedPorts: [{name: http, port: 8080}]");
    let found = dubious(&[backends(), named, web("").replace("{port: 80}", "{port: 80, targetPort: htpp}")]);
    assert!(found[0].starts_with("no_such_port 3 of its 3 ports have no L4 port \"htpp\""), "{found:?}");
    let endpoints = slice("s", "IPv4", "[{addresses: [192.0.2.1]}]", "[{port: 80}]");
    assert_eq!(dubious(std::slice::from_ref(&endpoints)), ["no_effect Service default/web does not exist"]);
    let found = dubious(&[backends(), web(""), endpoints]);
    assert!(found[0].contains("its EndpointSlices are ignored") && found[1].contains("has a selector"), "{found:?}");
}

#[test]
fn a_service_is_shown_with_what_it_was_given_and_may_be_applied_again() {
    let shown = |spec: &str, given: &[&str]| {
        let set = valid(&service("", spec));
        let object = Arc::clone(set.of_kind(Kind::Service).next().unwrap());
        let shown = object.with_cluster_addresses(&ips(given));
        // It is valid, and says itself again.
        let source = Source { name: "t".to_owned(), text: shown.to_yaml() };
        let again = load_sources(vec![source]).unwrap().objects.remove(0);
        assert!(again.with_cluster_addresses(&ips(given)).says_the_same(&shown));
        shown.to_json()["spec"].clone()
    };
    let spec = shown("{ports: [{port: 80}]}", &["10.104.0.1"]);
    assert_eq!((&spec["type"], &spec["clusterIP"]), (&"ClusterIP".into(), &"10.104.0.1".into()));
    assert_eq!(spec["clusterIPs"], serde_json::json!(["10.104.0.1"]));
    assert_eq!((&spec["ipFamilies"][0], &spec["ipFamilyPolicy"]), (&"IPv4".into(), &"SingleStack".into()));
    let both = &["10.104.0.1", "fd68:7700:68::1"];
    let spec = shown("{ports: [{port: 80}], ipFamilies: [IPv6, IPv4], ipFamilyPolicy: PreferDualStack}", both);
    assert_eq!(spec["clusterIPs"], serde_json::json!(["fd68:7700:68::1", "10.104.0.1"]));
    assert_eq!(spec["ipFamilyPolicy"], "PreferDualStack");
    let spec = shown("{ports: [{port: 80}], clusterIP: None}", &[]);
    assert_eq!(spec["clusterIPs"], serde_json::json!(["None"]));
    let spec = shown("{type: ExternalName, externalName: a.example}", &[]);
    assert!(spec.get("clusterIP").is_none());
}
