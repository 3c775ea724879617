//! ClusterNetworkPolicy, and what host, namespaces and ports say about policy.

use hostweave_policy::model::{Action, ClusterPeer, DefaultPolicy, PortMatch, Protocol, Tier};

use super::super::policies::{dubious, spec};
use super::policies::{EVERYONE, cluster, egress, first, model, model_spec, policy};
use super::*;
use crate::fabric::spec::{CONNECTIONS_MAX_DEFAULT, Established, FLOWS_MAX_DEFAULT, LocalServices, Timeouts};

#[test]
fn cluster_policies_that_are_refused() {
    let many = |one: &str| vec![one; 26].join(", ");
    let rule = "{action: Deny, to: [{namespaces: {}}]}";
    let ports =
        |protocols: &str| egress(&format!("{{action: Deny, to: [{{namespaces: {{}}}}], protocols: {protocols}}}"));
    check(&[
        (cluster(""), &["missing_field 4 spec"]),
        (cluster("subject: {}"), &["missing_field 4 subject"]),
        (cluster("subject: {namespaces: {}, pods: {podSelector: {}}}"), &["conflict 4 subject"]),
        (cluster("subject: {pods: {}}"), &["missing_field 4 pods"]),
        (cluster("subject: {pods: {namespaceSelector: {}}}"), &["missing_field 4 pods"]),
        (cluster(EVERYONE).replace("priority: 1,", "priority: 1001,"), &["out_of_range 4 1001"]),
        (cluster(EVERYONE).replace("priority: 1,", "priority: -1,"), &["wrong_type 4 -1"]),
        (cluster(EVERYONE).replace("priority: 1,", ""), &["missing_field 4 spec"]),
        (cluster(EVERYONE).replace("Admin", "Amdin"), &["unknown_value 4 Amdin"]),
        (cluster(EVERYONE).replace("{name: c}", "{name: c, namespace: default}"), &["wrong_value 3 namespace"]),
        (cluster(&format!("{EVERYONE}, egress: [{}]", many(rule))), &["out_of_range 4 egress"]),
        (egress(&format!("{{action: Deny, to: [{}]}}", many("{namespaces: {}}"))), &["out_of_range 4 to"]),
        (egress("{action: Deny}"), &["missing_field 4 {"]),
        (egress("{action: Deny, to: []}"), &["out_of_range 4 to"]),
        (egress("{action: Deny, to: [{}]}"), &["missing_field 4 {"]),
        (egress("{action: Deny, to: [{namespaces: {}, networks: [10.0.0.0/8]}]}"), &["conflict 4 {"]),
        (egress("{action: Deny, to: [{networks: []}]}"), &["out_of_range 4 networks"]),
        (egress("{action: Deny, to: [{networks: [ten]}]}"), &["invalid_cidr 4 ten"]),
        (egress("{action: Deny, to: [{networks: [10.0.0.0/8, 10.0.0.0/8]}]}"), &["duplicate 4 10.0.0.0/8"]),
        (
            egress(&rule.replace("{action", &format!("{{name: {}, action", "x".repeat(101)))),
            &[&format!("out_of_range 4 {}", "x".repeat(101))],
        ),
        (
            cluster(&format!("{EVERYONE}, ingress: [{{action: Deny, from: [{{networks: [10.0.0.0/8]}}]}}]")),
            &["unknown_field 4 networks"],
        ),
        (ports("[]"), &["out_of_range 4 protocols"]),
        (ports("[{}]"), &["missing_field 4 {"]),
        (ports("[{tcp: {}}]"), &["missing_field 4 tcp"]),
        (ports("[{tcp: {destinationPort: {}}}]"), &["missing_field 4 destinationPort"]),
        (ports("[{tcp: {destinationPort: {number: 0}}}]"), &["out_of_range 4 0"]),
        (ports("[{tcp: {destinationPort: {number: 1, range: {start: 1, end: 2}}}}]"), &["conflict 4 destinationPort"]),
        (ports("[{tcp: {destinationPort: {range: {start: 2, end: 2}}}}]"), &["out_of_range 4 range"]),
        (ports("[{tcp: {destinationPort: {number: 1}}, udp: {destinationPort: {number: 1}}}]"), &["conflict 4 {"]),
        (ports("[{icmp: {}}]"), &["unknown_field 4 icmp"]),
        (ports("[{destinationNamedPort: '80'}]"), &["invalid_name 4 '80'"]),
    ]);
}

#[test]
fn cn3_the_order_of_rules_and_everything_in_them_is_kept() {
    let text = cluster(&format!(
        "{EVERYONE}, ingress: [\
         {{name: a, action: Pass, from: [{{pods: {{namespaceSelector: {{}}, podSelector: {{matchLabels: {{a: b}}}}}}}}]}}, \
         {{action: Deny, from: [{{namespaces: {{}}}}], protocols: [{{sctp: {{destinationPort: {{range: {{start: 1, end: 9}}}}}}}}, \
         {{destinationNamedPort: http}}]}}]"
    ));
    let spec = model_spec(&text);
    let policy = &spec.cluster_policies[0];
    assert_eq!((policy.tier, policy.priority, policy.egress.len()), (Tier::Admin, 1, 0));
    assert_eq!(policy.ingress.iter().map(|rule| rule.action).collect::<Vec<_>>(), [Action::Pass, Action::Deny]);
    assert_eq!(policy.ingress[0].name.as_deref(), Some("a"));
    assert_eq!(
        policy.ingress[1].ports,
        [PortMatch::Range(Protocol::Sctp, 1, 9), PortMatch::NamedAny("http".to_owned())]
    );
    assert!(
        matches!(&policy.ingress[0].peers[0], ClusterPeer::Ports { ports: Some(ports), .. } if ports.requirements.len() == 1)
    );
    assert!(matches!(&policy.ingress[1].peers[0], ClusterPeer::Ports { ports: None, .. }));
    let rules = vec!["{action: Deny, from: [{namespaces: {}}]}"; 25].join(", ");
    assert_eq!(model_spec(&cluster(&format!("{EVERYONE}, ingress: [{rules}]"))).cluster_policies[0].ingress.len(), 25);
}

#[test]
fn cn2_equal_priorities_in_a_tier_are_warned_of() {
    let two = cluster(EVERYONE) + "---\n" + &cluster(EVERYONE).replace("name: c", "name: d");
    let (message, label, help) = first(&two);
    assert_eq!(
        message,
        "priority 1 in tier Admin is also that of ClusterNetworkPolicy d (t.yaml:6): equal priorities are applied in \
         the order of names"
    );
    assert_eq!((label.as_str(), help.as_str()), ("not unique", "give each policy of a tier a priority of its own"));
    let (set, _) = validate(&two.replacen("Admin", "Baseline", 1)).unwrap();
    assert_eq!(dubious(&set, set.iter().map(|(key, _)| key)), []);
}

#[test]
fn cn8_named_ports_are_not_for_peers_that_have_none() {
    for to in ["{networks: [10.0.0.0/8]}", "{nodes: {}}"] {
        let text = egress(&format!("{{action: Accept, to: [{to}], protocols: [{{destinationNamedPort: http}}]}}"));
        assert!(summary(&text).contains(&"conflict 4 http".to_owned()), "{:?}", summary(&text));
    }
    valid(&egress("{action: Accept, to: [{namespaces: {}}], protocols: [{destinationNamedPort: http}]}"));
}

#[test]
fn cn9_nodes_are_unknown_here_and_that_is_said() {
    for (action, effect) in
        [("Accept", "allows nothing by it"), ("Deny", "denies everything"), ("Pass", "denies everything")]
    {
        let text = egress(&format!("{{action: {action}, to: [{{nodes: {{}}}}]}}"));
        check(&[(text.clone(), &["no_effect 4 nodes"])]);
        assert!(first(&text).0.ends_with(effect), "{}", first(&text).0);
        assert_eq!(model_spec(&text).cluster_policies[0].egress[0].peers, [ClusterPeer::Unknown]);
    }
}

#[test]
fn annotations_decide_and_are_checked() {
    let namespace = |annotations: &str| {
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: n, annotations: {{{annotations}}}}}\n")
    };
    let default = |text: &str| model_spec(text).namespaces["n"].default;
    assert_eq!(default(&namespace("")), None);
    assert_eq!(default(&namespace("hostweave.dev/default-policy: deny")), Some(DefaultPolicy::Deny));
    assert_eq!(default(&namespace("hostweave.dev/default-policy: allow")), Some(DefaultPolicy::Allow));
    let audited = |word: &str| {
        policy("{podSelector: {}}")
            .replace("{name: p}", &format!("{{name: p, annotations: {{hostweave.dev/audit: {word}}}}}"))
    };
    assert!(model(&audited("'on'")).audit && model(&audited("on")).audit && !model(&audited("'off'")).audit);
    check(&[
        (namespace("hostweave.dev/default-policy: dney"), &["unknown_value 3 dney"]),
        (audited("maybe"), &["unknown_value 3 maybe"]),
        (audited("true"), &["wrong_type 3 true"]),
        (namespace("hostweave.dev/defalt-policy: deny"), &["ignored_field 3 hostweave.dev/defalt-policy"]),
        (
            port("{}").replace("{name: p}", "{name: p, annotations: {hostweave.dev/audit: 'on'}}"),
            &["ignored_field 3 hostweave.dev/audit"],
        ),
    ]);
    assert_eq!(first(&namespace("hostweave.dev/defalt-policy: deny")).1, "did you mean hostweave.dev/default-policy?");
}

#[test]
fn the_host_decides_what_no_policy_says() {
    let default = valid("");
    let host_config = default.host();
    assert_eq!(host_config.default_policy, DefaultPolicy::Allow);
    assert_eq!(host_config.established, Established::Recheck);
    assert_eq!(
        (host_config.connections.max, host_config.defaults.flows_max),
        (CONNECTIONS_MAX_DEFAULT, FLOWS_MAX_DEFAULT)
    );
    assert_eq!(host_config.connections.timeouts, Timeouts::default());
    // The help says the numbers that the program has.
    let timeouts = Timeouts::default();
    for (field, default) in [
        ("HostConfig.spec.connections.max", CONNECTIONS_MAX_DEFAULT),
        ("HostConfig.spec.defaults.flows", FLOWS_MAX_DEFAULT),
        ("Port.spec.limits.flows", FLOWS_MAX_DEFAULT),
        ("HostConfig.spec.connections.timeouts.tcpEstablished", timeouts.tcp_established),
        ("HostConfig.spec.connections.timeouts.tcpOpening", timeouts.tcp_opening),
        ("HostConfig.spec.connections.timeouts.tcpClosing", timeouts.tcp_closing),
        ("HostConfig.spec.connections.timeouts.tcpTimeWait", timeouts.tcp_time_wait),
        ("HostConfig.spec.connections.timeouts.tcpClosed", timeouts.tcp_closed),
        ("HostConfig.spec.connections.timeouts.udpUnreplied", timeouts.udp_unreplied),
        ("HostConfig.spec.connections.timeouts.udpStream", timeouts.udp_stream),
        ("HostConfig.spec.connections.timeouts.icmp", timeouts.icmp),
        ("HostConfig.spec.connections.timeouts.sctp", timeouts.sctp),
        ("HostConfig.spec.connections.timeouts.other", timeouts.other),
    ] {
        let text = explain::explain(field).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            text.contains(&format!("{default} if left out")) || text.contains(&format!("({default}) if left")),
            "{text}"
        );
    }
    let set = valid(&host(
        "{defaultPolicy: deny, established: keep, infrastructure: {dns: false, ping: false, nd: false}, \
         connections: {max: 4096, looseTcp: true, timeouts: {tcpEstablished: 100, other: 1}}, defaults: {flows: 7}}",
    ));
    assert_eq!(spec(&set).default, DefaultPolicy::Deny);
    let infrastructure = spec(&set).infrastructure;
    assert_eq!((infrastructure.dns, infrastructure.metadata, infrastructure.health_probes), (false, true, true));
    let host_config = set.host();
    assert_eq!(
        host_config.infrastructure.answers,
        LocalServices { ping: false, nd: false, ..LocalServices::default() }
    );
    assert_eq!(host_config.established, Established::Keep);
    assert!(host_config.connections.loose_tcp);
    assert_eq!((host_config.connections.max, host_config.defaults.flows_max), (4096, 7));
    let expected = Timeouts { tcp_established: 100, other: 1, ..Timeouts::default() };
    assert_eq!(host_config.connections.timeouts, expected);
    check(&[
        (host("{defaultPolicy: dney}"), &["unknown_value 4 dney"]),
        (host("{established: drop}"), &["unknown_value 4 drop"]),
        (host("{infrastructure: {dns: 'yes'}}"), &["wrong_type 4 'yes'"]),
        (host("{infrastructure: {arp: 1}}"), &["wrong_type 4 1"]),
        (host("{connections: {looseTcp: 'yes'}}"), &["wrong_type 4 'yes'"]),
        (host("{infrastructure: {ntp: true}}"), &["unknown_field 4 ntp"]),
        (host("{connections: {max: 1000}}"), &["out_of_range 4 1000"]),
        (host("{connections: {timeouts: {icmp: 0}}}"), &["out_of_range 4 0"]),
        (host("{connections: {timeouts: {icmp: 30s}}}"), &["wrong_type 4 30s"]),
        (host("{connections: {timeouts: {tcp: 30}}}"), &["unknown_field 4 tcp"]),
        (host("{defaults: {flows: 0}}"), &["out_of_range 4 0"]),
        (port("{limits: {flows: 0}}"), &["out_of_range 4 0"]),
        (port("{limits: {txMbps: 10}}"), &["refused_field 4 txMbps"]),
    ]);
}

#[test]
fn ports_carry_what_policy_needs() {
    let text = port("{limits: {flows: 9}, namedPorts: [{name: http, port: 80}, {name: dns, port: 53, protocol: UDP}]}")
        .replace("{name: p}", "{name: p, labels: {a: b}}")
        + "---\napiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: {c: d}}\n---\n"
        + &port("{}").replace("name: p", "name: q")
        + "---\n"
        + &host("{defaults: {flows: 5}}");
    let set = valid(&text);
    let mut count = 0;
    let mut new_uid = || {
        count += 1;
        uuid::Uuid::from_u128(count)
    };
    let plan = crate::config::ipam::assign(&set, &Assignments::new(), &mut new_uid);
    let facts = desired::HostFacts::system(Path::new("/run/hostweave"));
    let (desired, problems) =
        desired::to_desired(&set, &plan.assignments, &Default::default(), Default::default(), &facts);
    assert_eq!(problems, []);
    let [p, q] = desired.ports.as_slice() else { panic!("{desired:?}") };
    assert_eq!((p.flows_max, q.flows_max), (9, 5));
    assert_eq!(p.labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>(), ["a=b", "c=d"]);
    let named: Vec<_> = p.named_ports.iter().map(|n| (n.name.as_str(), n.protocol, n.port)).collect();
    assert_eq!(named, [("http", Protocol::Tcp, 80), ("dns", Protocol::Udp, 53)]);
    assert!(q.labels.is_empty() && q.named_ports.is_empty());
}
