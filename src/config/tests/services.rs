//! Services: Kubernetes' documented behaviours at the level of objects.

use std::ops::RangeInclusive;

use super::outside::{all, desired, ips, pools};
use super::*;
use crate::config::outside::ServiceAddresses;
use crate::fabric::spec::{AllDown, Condition, Desired, Drain, EndpointSpec, Refusal, ServiceSpec};
use crate::services::dns::spec::{ServiceRecords, ServiceTarget};

/// A Service with annotations, as JSON, which is YAML.
pub(super) fn service(annotations: &str, spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web, annotations: {{{annotations}}}}}\nspec: {spec}\n")
}

pub(super) fn web(more: &str) -> String {
    service("", &format!("{{selector: {{app: web}}, ports: [{{port: 80}}]{more}}}"))
}

/// A port with label `app: web`.
pub(super) fn backend(name: &str, metadata: &str, spec: &str) -> String {
    port(&format!("{{{spec}}}")).replace("{name: p}", &format!("{{name: {name}, labels: {{app: web}}{metadata}}}"))
}

pub(super) fn backends() -> String {
    all(&[backend("a", "", ""), backend("b", "", "")])
}

/// An EndpointSlice of the Service.
pub(super) fn slice(name: &str, family: &str, endpoints: &str, ports: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, labels: \
         {{kubernetes.io/service-name: web}}}}\naddressType: {family}\nendpoints: {endpoints}\nports: {ports}\n"
    )
}

fn host_in_zone(zone: &str) -> String {
    host("{}").replace("{name: h}", &format!("{{name: h, labels: {{topology.kubernetes.io/zone: {zone}}}}}"))
}

pub(super) fn told(objects: &[String]) -> Desired {
    let (told, _, problems) = desired(&all(objects), &ServiceAddresses::new());
    assert_eq!(problems, Vec::<String>::new());
    told
}

/// The only Service.
pub(super) fn one(objects: &[String]) -> ServiceSpec {
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
        assert!(eligible(&spec, |it| it.internal && it.external).len() == spec.ports[0].endpoints.len(), "no policy");
        // Those that come first, `/`, those that come next.
        let ranked = |rank: u8| {
            let names = eligible(&spec, |it| it.rank == rank);
            names.iter().map(|name| name.trim_start_matches("192.0.2.").to_owned()).collect::<String>()
        };
        [0, 1, 2].map(ranked).join("/").trim_end_matches('/').to_owned()
    };
    for (zone, prefer, expected) in [
        ("east", "", "123"),
        ("east", ", trafficDistribution: PreferSameZone", "12/3"),
        ("east", ", trafficDistribution: PreferClose", "12/3"),
        ("east", ", trafficDistribution: PreferSameNode", "1/2/3"),
        ("north", ", trafficDistribution: PreferSameZone", "123"),
    ] {
        assert_eq!(near(zone, &three, prefer), expected, "{zone}{prefer}");
    }
    // A preferred node without backend: the zone is next.
    let others = three.replace("nodeName: h", "nodeName: g");
    assert_eq!(near("east", &others, ", trafficDistribution: PreferSameNode"), "12/3");
    // One that does not say where it is makes the preference void, as in Kubernetes.
    let silent = format!("{three}, {{addresses: [192.0.2.4]}}");
    assert_eq!(near("east", &silent, ", trafficDistribution: PreferSameZone"), "1234");
    // Hints are somebody's decision, whatever the Service prefers.
    let hinted = "{addresses: [192.0.2.1], hints: {forZones: [{name: west}]}}, \
                  {addresses: [192.0.2.2], hints: {forZones: [{name: east}, {name: west}]}}";
    assert_eq!(
        (near("west", hinted, ""), near("east", hinted, ""), near("south", hinted, "")),
        ("12".into(), "2/1".into(), "12".into())
    );
    let node = "{addresses: [192.0.2.1], hints: {forNodes: [{name: h}]}}, {addresses: [192.0.2.2], hints: {forNodes: [{name: i}]}}";
    assert_eq!(near("east", node, ""), "1/2");
    // One that is not ready has no say.
    let dead = format!("{three}, {{addresses: [192.0.2.4], conditions: {{ready: false}}}}");
    assert_eq!(near("east", &dead, ", trafficDistribution: PreferSameZone"), "124/3");
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

fn records(objects: &[String]) -> Vec<ServiceRecords> {
    told(objects).dns.unwrap().services.iter().map(|of| ServiceRecords::clone(of)).collect()
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
    let spec = one(&objects);
    assert!(spec.names_healthy && spec.cluster.is_empty() && spec.load_balancer.is_empty());
    // One without the L4 port has a name, and so a state.
    let names: Vec<Vec<String>> =
        spec.ports.iter().map(|port| port.endpoints.iter().map(|it| it.name.clone()).collect()).collect();
    assert_eq!(names, [vec!["default/a", "default/b"], vec!["default/c"]]);
    let ServiceTarget::Headless { endpoints, not_ready } = records(&objects)[0].target.clone() else { panic!() };
    assert!(!not_ready);
    let seen = |at: usize| {
        let endpoint = &endpoints[at];
        let ports: Vec<Option<u16>> = endpoint.ports.iter().map(|port| port.port).collect();
        (endpoint.hostname.as_deref(), endpoint.addresses.len(), endpoint.ready, ports)
    };
    assert_eq!(seen(0), (Some("a"), 1, true, vec![Some(8080)]));
    assert_eq!(seen(1), (Some("b"), 1, true, vec![]));
    assert_eq!(seen(2), (Some("c"), 1, false, vec![None]));
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

/// As in Kubernetes: one family where nothing else is written, both where nobody can tell of which endpoints will be.
#[test]
fn headless_names_stand_for_addresses_of_the_families_of_the_service() {
    let v6_only = network("{cidrs: ['2001:db8:7::/64']}").replace("name: n", "name: default");
    let families = |more: &str, selector: bool, network: &[String]| {
        let (selector, found) = match selector {
            true => ("selector: {app: web}, ", backends()),
            false => (
                "",
                all(&[
                    slice("v4", "IPv4", "[{addresses: [192.0.2.1], hostname: a}]", "[{port: 80}]"),
                    slice("v6", "IPv6", "[{addresses: ['2001:db8::1'], hostname: a}]", "[{port: 80}]"),
                ]),
            ),
        };
        let spec = format!("{{clusterIP: None, {selector}ports: [{{port: 80}}]{more}}}");
        let objects = [network, &[found, service("", &spec)]].concat();
        let ServiceTarget::Headless { endpoints, .. } = records(&objects)[0].target.clone() else { panic!() };
        let named: std::collections::BTreeSet<bool> =
            endpoints.iter().flat_map(|endpoint| &endpoint.addresses).map(|address| address.is_ipv6()).collect();
        let checked: std::collections::BTreeSet<bool> =
            one(&objects).ports[0].endpoints.iter().map(|endpoint| endpoint.address.is_ipv6()).collect();
        assert_eq!(named, checked, "{more}");
        named.into_iter().map(|ipv6| if ipv6 { "6" } else { "4" }).collect::<String>()
    };
    for (more, with, without) in [
        ("", "4", "46"),
        (", ipFamilyPolicy: SingleStack", "4", "4"),
        (", ipFamilyPolicy: PreferDualStack", "46", "46"),
        (", ipFamilyPolicy: RequireDualStack", "46", "46"),
        (", ipFamilies: [IPv6]", "6", "6"),
        (", ipFamilies: [IPv6, IPv4]", "46", "46"),
    ] {
        assert_eq!((families(more, true, &[]), families(more, false, &[])), (with.into(), without.into()), "{more}");
    }
    assert_eq!(families("", true, &[v6_only]), "6");
}
