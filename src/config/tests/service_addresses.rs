//! Addresses of Services: which they get, that they stay, and that nobody else has them.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use super::outside::{all, desired, ips, pools};
use super::services::{backends, one, service, web};
use super::*;
use crate::config::outside::{ServiceAddresses, addresses};
use crate::fabric::spec::ServiceSpec;

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
        (only("'fd68::/16'"), "", &["fc68:7700:68::1"]),
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
fn a_service_is_shown_with_what_it_was_given_and_may_be_applied_again() {
    let shown = |spec: &str, given: &[&str]| {
        let set = valid(&service("", spec));
        let object = Arc::clone(set.of_kind(Kind::Service).next().unwrap());
        let network = set.network("default");
        let shown = object.with_cluster_addresses(&ips(given), network);
        // It is valid, and says itself again.
        let source = Source { name: "t".to_owned(), text: shown.to_yaml() };
        let again = load_sources(vec![source]).unwrap().objects.remove(0);
        assert!(again.with_cluster_addresses(&ips(given), network).says_the_same(&shown));
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
    for (spec, families, policy) in [
        ("clusterIP: None", &["IPv4", "IPv6"][..], "RequireDualStack"),
        ("clusterIP: None, selector: {app: web}", &["IPv4"], "SingleStack"),
        ("clusterIP: None, selector: {app: web}, ipFamilies: [IPv6]", &["IPv6"], "SingleStack"),
        (
            "clusterIP: None, selector: {app: web}, ipFamilyPolicy: PreferDualStack",
            &["IPv4", "IPv6"],
            "PreferDualStack",
        ),
    ] {
        let spec = shown(&format!("{{ports: [{{port: 80}}], {spec}}}"), &[]);
        assert_eq!(spec["clusterIPs"], serde_json::json!(["None"]));
        assert_eq!((&spec["ipFamilies"], &spec["ipFamilyPolicy"]), (&serde_json::json!(families), &policy.into()));
    }
    let spec = shown("{type: ExternalName, externalName: a.example}", &[]);
    assert!(spec.get("clusterIP").is_none());
}

/// 10,000 Services of ten ports each: what did not change is not made again, whoever else changed.
#[test]
fn ten_thousand_services_are_told_again_only_where_they_changed() {
    let count = 10_000;
    let port = |i: usize| {
        format!(
            "{{apiVersion: hostweave.dev/v1alpha1, kind: Port, metadata: {{name: p{i}, labels: {{app: a{}}}}}}}\n",
            i % 1000
        )
    };
    let of = |i: usize, port: u16| {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: s{i}}}, \
             spec: {{selector: {{app: a{}}}, ports: [{{port: {port}}}]}}}}\n",
            i % 1000
        )
    };
    let texts: Vec<String> = (0..count).flat_map(|i| [port(i), of(i, 80)]).collect();
    let set = validate(&texts.join("---\n")).unwrap().0;
    let assigned = crate::config::ipam::assign(&set, &Assignments::new(), &mut uuid::Uuid::new_v4).assignments;
    let given = addresses::assign(&set, &ServiceAddresses::new()).addresses;
    let facts = crate::config::desired::HostFacts::system(Path::new("/run"));
    let first = crate::config::desired::to_desired(&set, &assigned, &given, Default::default(), &facts).0;
    let backends: usize = first.services.iter().map(|service| service.ports[0].endpoints.len()).sum();
    assert_eq!((first.services.len(), backends), (count, 10 * count));
    let changed = load_sources(vec![Source { name: "t".to_owned(), text: of(7, 81) }]).unwrap().objects;
    let changed: Vec<Arc<Object>> = changed.into_iter().map(Arc::new).collect();
    let after = set.with_changes(&[(false, &changed[0])], Path::new("/run/hostweave")).unwrap().unwrap();
    let concerned = crate::config::services::concerned(&set, changed.iter());
    assert_eq!(concerned.len(), 1);
    let mut then = first.clone();
    let again = addresses::assign(&after, &given);
    crate::config::services::resolve_again(&after, &given, "", &concerned, &mut then);
    let mut full = first.clone();
    crate::config::services::resolve(&after, &given, "", crate::config::services::Told::of(&first), &mut full);
    assert_eq!((again.addresses, again.changed), (given.clone(), Vec::new()));
    let same = first.services.iter().zip(&*then.services).filter(|(a, b)| Arc::ptr_eq(a, b)).count();
    assert_eq!(same, count - 1);
    assert_eq!(format!("{:?}", full.services), format!("{:?}", then.services));
    // A name has a number in SRV records, which is another now.
    assert!(!Arc::ptr_eq(&first.dns.as_ref().unwrap().services, &then.dns.as_ref().unwrap().services));
    crate::config::services::resolve_again(&set, &given, "", &concerned, &mut then);
    assert_eq!(first.dns.unwrap().services, then.dns.unwrap().services);
}

#[test]
fn a_port_that_changes_has_only_the_services_worked_out_that_it_concerns() {
    let port = |i: usize, app: &str, weight: u16| {
        format!(
            "{{apiVersion: hostweave.dev/v1alpha1, kind: Port, metadata: {{name: p{i}, labels: {{app: {app}}}, \
             annotations: {{hostweave.dev/weight: \"{weight}\"}}}}}}\n"
        )
    };
    let service = |i: usize| {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: s{i}}}, spec: {{selector: {{app: a{i}}}, \
             ipFamilyPolicy: PreferDualStack, ports: [{{port: 80}}]}}}}\n"
        )
    };
    let slice = |address: &str| {
        format!(
            "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {{name: e, \
             labels: {{kubernetes.io/service-name: by-slice}}}}, endpoints: [{{addresses: [{address}]}}], ports: [{{port: 80}}]}}\n"
        )
    };
    let by_slice = "{apiVersion: v1, kind: Service, metadata: {name: by-slice}, spec: {ports: [{port: 80}]}}\n";
    let plan = |texts: &[String], assigned: &Assignments, told: crate::config::services::Told<'_>| {
        let set = validate(&texts.join("---\n")).unwrap().0;
        let assigned = crate::config::ipam::assign(&set, assigned, &mut uuid::Uuid::new_v4).assignments;
        let given = addresses::assign(&set, &ServiceAddresses::new()).addresses;
        let facts = crate::config::desired::HostFacts::system(Path::new("/run"));
        let desired = crate::config::desired::to_desired(&set, &assigned, &given, Default::default(), &facts).0;
        let mut then = desired.clone();
        let count = crate::config::services::resolve(&set, &given, "", told, &mut then);
        assert_eq!(format!("{:?}", desired.services), format!("{:?}", then.services));
        assert_eq!(format!("{:?}", desired.dns), format!("{:?}", then.dns));
        (desired, assigned, count)
    };
    let services = || (0..20).map(service).chain([by_slice.to_owned()]);
    let ports = |changed: &str| -> Vec<String> {
        let of = |i: usize| if i == 3 { changed.to_owned() } else { port(i, &format!("a{i}"), 100) };
        (0..20).map(of).filter(|text| !text.is_empty()).collect()
    };
    let all = |ports: Vec<String>, slice: &str| ports.into_iter().chain(services()).chain([slice.to_owned()]).collect();
    let texts: Vec<String> = all(ports(&port(3, "a3", 100)), &slice("10.64.200.200"));
    let (first, assigned, count) = plan(&texts, &Assignments::new(), Default::default());
    assert_eq!(count, 21, "nothing was told before");
    let address = first.ports.iter().find(|port| port.name == "p3").unwrap().v4[0].to_string();
    let of_port: HashSet<ObjectKey> = [ObjectKey::new(Kind::Port, None, "p3")].into();
    for (what, changed, wanted) in [
        ("nothing", port(3, "a3", 100), 1),
        ("relabelled", port(3, "a5", 100), 2),
        ("relabelled out", port(3, "other", 100), 1),
        ("another weight", port(3, "a3", 7), 1),
        ("gone", String::new(), 1),
    ] {
        let told =
            crate::config::services::Told { changed: Some(&of_port), ..crate::config::services::Told::of(&first) };
        let (_, _, count) = plan(&all(ports(&changed), &slice("10.64.200.200")), &assigned, told);
        assert_eq!(count, wanted, "{what}");
    }
    // One that a slice names concerns that Service.
    let texts: Vec<String> = all(ports(&port(3, "a3", 100)), &slice(&address));
    let (first, assigned, _) = plan(&texts, &Assignments::new(), Default::default());
    let told = crate::config::services::Told { changed: Some(&of_port), ..crate::config::services::Told::of(&first) };
    let (_, _, count) = plan(&all(ports(&port(3, "other", 100)), &slice(&address)), &assigned, told);
    assert_eq!(count, 2);
}
