//! SEMANTICS §1 as text tables: a world, then lines `from to protocol port -> verdict`. A verdict is what egress of the one
//! and ingress of the other say together (NP20), for the IPv4 and the IPv6 addresses of ports (NP26); the oracle must agree.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod oracle;

use std::net::IpAddr;
use std::sync::Arc;

use hostweave_policy::compile::Compiler;
use hostweave_policy::explain::explain;
use hostweave_policy::model::*;
use hostweave_policy::table::{Basis, Flow, Table};
use hostweave_switch::tables::{NetworkId, PortId};

/// Ports, one a line: `namespace/name label=value… name:protocol:number… [net=1]`.
fn ports(text: &str) -> World {
    let mut world = World::default();
    for (id, line) in (0..).zip(text.lines().map(str::trim).filter(|line| !line.is_empty())) {
        let mut words = line.split_whitespace();
        let (namespace, name) = words.next().unwrap().split_once('/').unwrap();
        let (mut labels, mut named_ports, mut network) = (Labels::new(), Vec::new(), NetworkId(0));
        for word in words {
            if let Some(("net", number)) = word.split_once('=') {
                network = NetworkId(number.parse().unwrap());
            } else if let Some((key, value)) = word.split_once('=') {
                labels.insert(key.into(), value.into());
            } else {
                let parts: Vec<&str> = word.split(':').collect();
                named_ports.push(NamedPort {
                    name: parts[0].into(),
                    protocol: protocol(parts[1]),
                    port: parts[2].parse().unwrap(),
                });
            }
        }
        let endpoint =
            Endpoint { id: PortId(id), network, namespace: namespace.into(), name: name.into(), labels, named_ports };
        world.endpoints.push(Arc::new(endpoint));
    }
    world
}

/// The ports of most tests.
fn shop() -> World {
    let mut world = ports(
        "shop/web    app=web http:tcp:80
         shop/db     app=db tier=back sql:tcp:5432 http:tcp:8080 http:udp:8081
         shop/cache  app=cache tier=back
         admin/ops   app=ops
         admin/web   app=web http:tcp:8000",
    );
    world.namespaces.insert("admin".into(), namespace("admin", "team=platform"));
    world
}

fn protocol(name: &str) -> Protocol {
    match name {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        other => panic!("{other}"),
    }
}

fn namespace(name: &str, labels: &str) -> Arc<Namespace> {
    let labels = labels.split_whitespace().map(|label| label.split_once('=').unwrap());
    Arc::new(Namespace {
        name: name.into(),
        labels: labels.map(|(k, v)| (k.into(), v.into())).collect(),
        default: None,
    })
}

/// `app=db`, `app!=db`, `app`, `!app`, several with spaces.
fn selector(text: &str) -> Selector {
    let requirement = |word: &str| {
        let (key, operator) = if let Some((key, values)) = word.split_once("!=") {
            (key, Operator::NotIn(values.split('|').map(Into::into).collect()))
        } else if let Some((key, values)) = word.split_once('=') {
            (key, Operator::In(values.split('|').map(Into::into).collect()))
        } else if let Some(key) = word.strip_prefix('!') {
            (key, Operator::DoesNotExist)
        } else {
            (word, Operator::Exists)
        };
        Requirement { key: key.into(), operator }
    };
    Selector { requirements: text.split_whitespace().map(requirement).collect() }
}

/// `tcp`, `tcp:80`, `tcp:80-90`, `tcp:http`, `*:http`.
fn port_matches(text: &str) -> Vec<PortMatch> {
    let one = |word: &str| {
        let Some((proto, port)) = word.split_once(':') else { return PortMatch::Protocol(protocol(word)) };
        if proto == "*" {
            return PortMatch::NamedAny(port.into());
        }
        let (first, last) = port.split_once('-').unwrap_or((port, port));
        match (first.parse(), last.parse()) {
            (Ok(first), Ok(last)) => PortMatch::Range(protocol(proto), first, last),
            _ => PortMatch::Named(protocol(proto), port.into()),
        }
    };
    text.split_whitespace().map(one).collect()
}

fn pods(labels: &str) -> Peer {
    Peer::Ports { namespaces: None, ports: Some(selector(labels)) }
}

fn pods_of(namespaces: &str, labels: Option<&str>) -> Peer {
    Peer::Ports { namespaces: Some(selector(namespaces)), ports: labels.map(selector) }
}

fn block(cidr: &str, except: &[&str]) -> Peer {
    Peer::IpBlock { cidr: cidr.parse().unwrap(), except: except.iter().map(|cidr| cidr.parse().unwrap()).collect() }
}

fn rule(peers: Vec<Peer>, ports: &str) -> Rule {
    Rule { origin: "shop.yaml:9".into(), peers, ports: port_matches(ports) }
}

/// A policy of namespace `shop`.
fn policy(name: &str, labels: &str, ingress: Option<Vec<Rule>>, egress: Option<Vec<Rule>>) -> NetworkPolicy {
    let name = PolicyName { namespace: Some("shop".into()), name: name.into() };
    NetworkPolicy { name, origin: "shop.yaml:1".into(), selector: selector(labels), ingress, egress, audit: false }
}

fn with(mut world: World, policies: Vec<NetworkPolicy>) -> World {
    world.policies.extend(policies.into_iter().map(Arc::new));
    world
}

fn cluster(
    name: &str,
    tier: Tier,
    priority: u32,
    ingress: Vec<ClusterRule>,
    egress: Vec<ClusterRule>,
) -> ClusterNetworkPolicy {
    ClusterNetworkPolicy {
        name: PolicyName { namespace: None, name: name.into() },
        origin: "cluster.yaml:1".into(),
        tier,
        priority,
        namespaces: Selector::default(),
        ports: None,
        ingress,
        egress,
        audit: false,
    }
}

fn act(action: Action, peers: Vec<ClusterPeer>, ports: &str) -> ClusterRule {
    ClusterRule { name: None, origin: "cluster.yaml:5".into(), action, peers, ports: port_matches(ports) }
}

fn all_pods(namespaces: &str) -> ClusterPeer {
    ClusterPeer::Ports { namespaces: selector(namespaces), ports: None }
}

fn networks(cidrs: &[&str]) -> ClusterPeer {
    ClusterPeer::Networks(cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect())
}

fn with_cluster(mut world: World, policies: Vec<ClusterNetworkPolicy>) -> World {
    world.cluster_policies.extend(policies.into_iter().map(Arc::new));
    world
}

/// Ports have 10.0.0.ID and fd00::ID; other names are addresses outside.
fn side(world: &World, name: &str, v6: bool) -> Option<(Option<PortId>, u128)> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return (address.is_ipv6() == v6).then(|| (None, oracle::bits(address)));
    }
    let found = world.endpoints.iter().find(|endpoint| format!("{}/{}", endpoint.namespace, endpoint.name) == name);
    let id = found.unwrap_or_else(|| panic!("no port {name}")).id;
    let address = if v6 { format!("fd00::{}", id.0) } else { format!("10.0.0.{}", id.0) };
    Some((Some(id), oracle::bits(address.parse().unwrap())))
}

fn l4(protocol: &str, port: &str, v6: bool) -> (u8, Option<u16>) {
    let proto = match protocol {
        "tcp" => 6,
        "udp" => 17,
        "sctp" => 132,
        "icmp" if v6 => 58,
        "icmp" => 1,
        "gre" => 47,
        other => panic!("{other}"),
    };
    (proto, port.parse().ok())
}

fn judge(world: &World, table: &Table, flow: &Flow) -> bool {
    let decision = table.decide(flow);
    let verdict = oracle::judge(world, flow);
    assert_eq!(decision.allowed, verdict.allowed, "{flow:?}: table {decision:?}, oracle {verdict:?}");
    decision.allowed
}

fn check_with(compiler: &mut Compiler, world: &World, table: &str) {
    let compiled = compiler.update(world).table;
    for line in table.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [from, to, protocol, port, "->", verdict] = words[..] else { panic!("{line}") };
        let mut judged = 0;
        for v6 in [false, true] {
            let (Some((from, from_address)), Some((to, to_address))) = (side(world, from, v6), side(world, to, v6))
            else {
                continue;
            };
            let (proto, dst_port) = l4(protocol, port, v6);
            let flow = |direction, subject, peer, peer_address| Flow {
                direction,
                subject,
                peer,
                peer_address,
                proto,
                dst_port,
            };
            let egress =
                from.is_none_or(|port| judge(world, &compiled, &flow(Direction::Egress, port, to, to_address)));
            let ingress =
                to.is_none_or(|port| judge(world, &compiled, &flow(Direction::Ingress, port, from, from_address)));
            let verdict_now = if egress && ingress { "allow" } else { "deny" };
            assert_eq!(verdict_now, verdict, "{line} (IPv{})", if v6 { 6 } else { 4 });
            judged += 1;
        }
        assert!(judged > 0, "{line}: both sides of one family");
    }
}

fn check(world: &World, table: &str) {
    check_with(&mut Compiler::new(), world, table);
}

#[test]
fn np1_rules_of_all_policies_add_up() {
    let world = with(
        shop(),
        vec![
            policy("a", "app=db", Some(vec![rule(vec![pods("app=web")], "tcp:5432")]), None),
            policy("b", "tier=back", Some(vec![rule(vec![pods("app=cache")], "tcp:6379")]), None),
        ],
    );
    check(
        &world,
        "shop/web    shop/db     tcp 5432 -> allow
         shop/cache  shop/db     tcp 6379 -> allow
         shop/web    shop/db     tcp 6379 -> deny
         shop/web    shop/cache  tcp 5432 -> deny
         admin/web   shop/db     tcp 5432 -> deny",
    );
}

#[test]
fn np2_np4_isolation_is_per_direction() {
    check(
        &with(shop(), vec![policy("no-egress", "app=db", None, Some(vec![]))]),
        "shop/db   shop/web   tcp 80   -> deny
         shop/db   192.0.2.9  udp 53   -> deny
         shop/web  shop/db    tcp 5432 -> allow
         192.0.2.9 shop/db    tcp 5432 -> allow
         shop/web  admin/ops  tcp 22   -> allow",
    );
}

#[test]
fn np5_np10_an_empty_selector_isolates_the_namespace_and_no_other() {
    check(
        &with(shop(), vec![policy("deny-all", "", Some(vec![]), None)]),
        "admin/ops  shop/web   tcp  80 -> deny
         shop/db    shop/cache tcp  80 -> deny
         192.0.2.9  shop/cache icmp -  -> deny
         2001:db8::9 shop/db   tcp  80 -> deny
         shop/web   admin/ops  tcp  80 -> allow",
    );
    check(
        &with(
            shop(),
            vec![
                policy("deny-all", "", Some(vec![]), None),
                policy("allow-all", "", Some(vec![rule(vec![], "")]), None),
            ],
        ),
        "admin/ops  shop/web   tcp  80 -> allow
         192.0.2.9  shop/cache icmp -  -> allow
         2001:db8::9 shop/db   gre  -  -> allow",
    );
}

#[test]
fn np6_labels_count_as_they_are_now() {
    let mut compiler = Compiler::new();
    let allow = |peer| with(shop(), vec![policy("p", "app=db", Some(vec![rule(vec![peer], "")]), None)]);
    let mut world = allow(pods_of("team=platform", Some("app=ops")));
    check_with(&mut compiler, &world, "admin/ops shop/db tcp 22 -> allow");
    world.namespaces.insert("admin".into(), namespace("admin", "team=other"));
    check_with(&mut compiler, &world, "admin/ops shop/db tcp 22 -> deny");
    world.namespaces.insert("admin".into(), namespace("admin", "team=platform"));
    let mut ops = (*world.endpoints[3]).clone();
    ops.labels.insert("app".into(), "retired".into());
    world.endpoints[3] = Arc::new(ops);
    check_with(&mut compiler, &world, "admin/ops shop/db tcp 22 -> deny\nadmin/ops shop/cache tcp 22 -> allow");
    let mut cache = (*world.endpoints[2]).clone();
    cache.labels.insert("app".into(), "db".into());
    world.endpoints[2] = Arc::new(cache);
    check_with(&mut compiler, &world, "admin/ops shop/cache tcp 22 -> deny");
}

#[test]
fn np7_not_in_and_does_not_exist_match_what_lacks_the_key() {
    for (wanted, web, db) in [
        ("tier!=front", "allow", "allow"),
        ("tier!=back", "allow", "deny"),
        ("!tier", "allow", "deny"),
        ("tier", "deny", "allow"),
        ("tier=back|front", "deny", "allow"),
    ] {
        let world = with(shop(), vec![policy("p", "app=cache", Some(vec![rule(vec![pods(wanted)], "")]), None)]);
        check(&world, &format!("shop/web shop/cache tcp 80 -> {web}\nshop/db shop/cache tcp 80 -> {db}"));
    }
}

#[test]
fn np8_namespaces_carry_their_name() {
    let allow = rule(vec![pods_of("kubernetes.io/metadata.name=admin", None)], "");
    let mut world = with(shop(), vec![policy("p", "app=db", Some(vec![allow]), None)]);
    let table = "admin/ops shop/db tcp 22 -> allow\nshop/web shop/db tcp 22 -> deny";
    check(&world, table);
    // Written or not, and whatever is written.
    world.namespaces.remove("admin");
    check(&world, table);
    world.namespaces.insert("shop".into(), namespace("shop", "kubernetes.io/metadata.name=admin"));
    check(&world, table);
}

#[test]
fn np11_no_peers_means_anybody_np12_ports_limit_the_protocol() {
    check(
        &with(shop(), vec![policy("p", "app=db", Some(vec![rule(vec![], "tcp")]), None)]),
        "admin/ops  shop/db tcp  1 -> allow
         192.0.2.9  shop/db tcp  65535 -> allow
         192.0.2.9  shop/db udp  1 -> deny
         192.0.2.9  shop/db sctp 1 -> deny
         192.0.2.9  shop/db icmp - -> deny
         192.0.2.9  shop/db tcp  - -> deny",
    );
}

#[test]
fn np13_np14_elements_are_or_and_both_selectors_of_one_are_and() {
    let both = vec![rule(vec![pods_of("team=platform", Some("app=web"))], "")];
    check(
        &with(shop(), vec![policy("p", "app=db", Some(both), None)]),
        "admin/web shop/db tcp 1 -> allow
         admin/ops shop/db tcp 1 -> deny
         shop/web  shop/db tcp 1 -> deny",
    );
    let either = vec![rule(vec![pods_of("team=platform", None), pods("app=web")], "")];
    check(
        &with(shop(), vec![policy("p", "app=db", Some(either), None)]),
        "admin/web  shop/db tcp 1 -> allow
         admin/ops  shop/db tcp 1 -> allow
         shop/web   shop/db tcp 1 -> allow
         shop/cache shop/db tcp 1 -> deny",
    );
    check(
        &with(shop(), vec![policy("p", "app=db", Some(vec![rule(vec![pods_of("", None)], "")]), None)]),
        "admin/web  shop/db tcp 1 -> allow
         shop/cache shop/db tcp 1 -> allow
         10.0.0.77  shop/db tcp 1 -> deny
         192.0.2.9  shop/db tcp 1 -> deny",
    );
}

#[test]
fn np15_named_port_per_destination() {
    check(
        &with(shop(), vec![policy("out", "app=cache", None, Some(vec![rule(vec![], "tcp:http")]))]),
        "shop/cache shop/web  tcp 80   -> allow
         shop/cache shop/db   tcp 8080 -> allow
         shop/cache admin/web tcp 8000 -> allow
         shop/cache shop/db   tcp 80   -> deny
         shop/cache shop/db   udp 8081 -> deny
         shop/cache shop/db   tcp 8081 -> deny
         shop/cache admin/ops tcp 80   -> deny
         shop/cache 192.0.2.9 tcp 80   -> deny",
    );
    check(
        &with(shop(), vec![policy("in", "", Some(vec![rule(vec![pods("")], "udp:http tcp:sql")]), None)]),
        "shop/web   shop/db  udp 8081 -> allow
         shop/web   shop/db  tcp 5432 -> allow
         shop/web   shop/db  tcp 8080 -> deny
         shop/cache shop/web tcp 80   -> deny",
    );
    // A destination that is named by its address keeps its names.
    check(
        &with(
            shop(),
            vec![policy(
                "out",
                "app=cache",
                None,
                Some(vec![rule(vec![block("10.0.0.0/8", &[]), block("fd00::/8", &[])], "tcp:http")]),
            )],
        ),
        "shop/cache shop/db   tcp 8080 -> allow
         shop/cache shop/db   tcp 8081 -> deny",
    );
}

#[test]
fn np16_end_port_is_inclusive() {
    check(
        &with(shop(), vec![policy("p", "app=db", Some(vec![rule(vec![], "udp:100-200 sctp:0-1 tcp:65535")]), None)]),
        "shop/web shop/db udp 99    -> deny
         shop/web shop/db udp 100   -> allow
         shop/web shop/db udp 200   -> allow
         shop/web shop/db udp 201   -> deny
         shop/web shop/db tcp 100   -> deny
         shop/web shop/db sctp 0    -> allow
         shop/web shop/db sctp 2    -> deny
         shop/web shop/db tcp 65535 -> allow
         shop/web shop/db tcp 65534 -> deny",
    );
}

#[test]
fn np17_blocks_with_holes_in_both_families() {
    let blocks = vec![block("192.0.2.0/24", &["192.0.2.16/28"]), block("2001:db8::/32", &["2001:db8:1::/48"])];
    check(
        &with(shop(), vec![policy("p", "app=db", Some(vec![rule(blocks, "")]), None)]),
        "192.0.2.15    shop/db tcp 1  -> allow
         192.0.2.16    shop/db tcp 1  -> deny
         192.0.2.31    shop/db tcp 1  -> deny
         192.0.2.32    shop/db icmp - -> allow
         192.0.3.0     shop/db tcp 1  -> deny
         2001:db8::1   shop/db tcp 1  -> allow
         2001:db8:1::1 shop/db tcp 1  -> deny
         2001:db8:2::  shop/db icmp - -> allow
         2001:db9::    shop/db tcp 1  -> deny",
    );
    check(
        &with(shop(), vec![policy("p", "app=db", Some(vec![rule(vec![block("::/0", &[])], "")]), None)]),
        "192.0.2.1 shop/db tcp 1 -> deny\n2001:db8::1 shop/db tcp 1 -> allow",
    );
}

#[test]
fn np18_a_hole_does_not_deny_what_another_rule_allows() {
    let rules = vec![
        rule(vec![block("192.0.2.0/24", &["192.0.2.16/28"])], ""),
        rule(vec![block("192.0.2.20/32", &[])], "tcp:80"),
    ];
    check(
        &with(shop(), vec![policy("p", "app=db", Some(rules), None)]),
        "192.0.2.20 shop/db tcp 80 -> allow
         192.0.2.20 shop/db tcp 81 -> deny
         192.0.2.21 shop/db tcp 80 -> deny",
    );
}

#[test]
fn np20_both_sides_must_allow() {
    let egress = policy("out", "app=web", None, Some(vec![rule(vec![pods("app=db")], "tcp:5432")]));
    let ingress = policy("in", "app=db", Some(vec![rule(vec![pods("app=web")], "tcp:5432 tcp:8080")]), None);
    check(
        &with(shop(), vec![egress, ingress]),
        "shop/web   shop/db tcp 5432 -> allow
         shop/web   shop/db tcp 8080 -> deny
         shop/cache shop/db tcp 5432 -> deny
         shop/web   shop/cache tcp 5432 -> deny",
    );
}

#[test]
fn np24_nobody_is_blocked_from_itself() {
    let world = with(shop(), vec![policy("none", "", Some(vec![]), Some(vec![]))]);
    check(&world, "shop/db shop/db tcp 5432 -> allow\nshop/db shop/web tcp 80 -> deny");
}

#[test]
fn np25_other_protocols_need_a_rule_without_ports() {
    check(
        &with(
            shop(),
            vec![policy(
                "p",
                "app=db",
                Some(vec![rule(vec![pods("app=web")], ""), rule(vec![pods("app=cache")], "tcp udp sctp")]),
                None,
            )],
        ),
        "shop/web   shop/db icmp - -> allow
         shop/web   shop/db gre  - -> allow
         shop/cache shop/db icmp - -> deny
         shop/cache shop/db gre  - -> deny
         shop/cache shop/db sctp 9 -> allow",
    );
}

#[test]
fn np27_dns_over_tcp_needs_its_own_rule() {
    check(
        &with(shop(), vec![policy("p", "app=web", None, Some(vec![rule(vec![], "udp:53")]))]),
        "shop/web 192.0.2.53 udp 53 -> allow\nshop/web 192.0.2.53 tcp 53 -> deny",
    );
}

#[test]
fn np30_a_port_that_is_not_compiled_passes_nothing() {
    let table = Compiler::new().update(&shop()).table;
    let flow = Flow {
        direction: Direction::Ingress,
        subject: PortId(9),
        peer: Some(PortId(0)),
        peer_address: 0,
        proto: 6,
        dst_port: Some(1),
    };
    assert_eq!(table.decide(&flow).basis, Basis::NotCompiled);
    assert!(!table.decide(&flow).allowed && table.identity(PortId(9)).is_none() && table.identity(PortId(0)).is_some());
}

#[test]
fn np35_default_deny_and_its_exceptions_by_namespace() {
    let mut world = with(shop(), vec![policy("p", "app=db", Some(vec![rule(vec![], "tcp:5432")]), None)]);
    world.default = DefaultPolicy::Deny;
    world.namespaces.insert(
        "admin".into(),
        Arc::new(Namespace { name: "admin".into(), labels: Labels::new(), default: Some(DefaultPolicy::Allow) }),
    );
    check(
        &world,
        "admin/ops shop/db   tcp 5432 -> allow
         admin/ops shop/web  tcp 80   -> deny
         shop/web  admin/ops tcp 22   -> deny
         192.0.2.9 admin/ops tcp 22   -> allow
         shop/db   shop/db   tcp 80   -> allow",
    );
}

#[test]
fn sv26_a_selector_does_not_match_a_port_of_another_network() {
    let mut world = ports("shop/web app=web\nshop/db app=db\nshop/far app=web net=1");
    world = with(world, vec![policy("p", "app=db", Some(vec![rule(vec![pods("app=web")], "")]), None)]);
    check(&world, "shop/web shop/db tcp 1 -> allow\nshop/far shop/db tcp 1 -> deny");
    world.policies = vec![Arc::new(policy(
        "p",
        "app=db",
        Some(vec![rule(vec![block("10.0.0.0/8", &[]), block("fd00::/8", &[])], "")]),
        None,
    ))];
    check(&world, "shop/far shop/db tcp 1 -> allow");
}

#[test]
fn cn1_cn5_tiers_in_order() {
    let v1 = policy("p", "app=db", Some(vec![rule(vec![pods("app=web")], "")]), None);
    let admin = cluster(
        "admin",
        Tier::Admin,
        1,
        vec![
            act(Action::Accept, vec![all_pods("team=platform")], "tcp:22"),
            act(Action::Deny, vec![all_pods("")], "tcp:23"),
        ],
        vec![],
    );
    let baseline = cluster("baseline", Tier::Baseline, 1, vec![act(Action::Deny, vec![all_pods("")], "")], vec![]);
    check(
        &with_cluster(with(shop(), vec![v1]), vec![admin, baseline]),
        "admin/ops  shop/db    tcp 22 -> allow
         shop/web   shop/db    tcp 23 -> deny
         shop/web   shop/db    tcp 80 -> allow
         admin/ops  shop/db    tcp 80 -> deny
         admin/ops  shop/cache tcp 22 -> allow
         admin/ops  shop/cache tcp 80 -> deny
         192.0.2.9  shop/cache tcp 80 -> allow",
    );
}

#[test]
fn cn2_cn3_priority_then_name_then_place() {
    let rules = |action| vec![act(action, vec![all_pods("")], "tcp:80")];
    let decide = |policies| {
        check(&with_cluster(shop(), policies), "shop/web shop/db tcp 80 -> allow\nshop/web shop/db tcp 81 -> allow")
    };
    decide(vec![
        cluster("a", Tier::Admin, 2, rules(Action::Deny), vec![]),
        cluster("b", Tier::Admin, 1, rules(Action::Accept), vec![]),
    ]);
    decide(vec![
        cluster("b", Tier::Admin, 1, rules(Action::Deny), vec![]),
        cluster("a", Tier::Admin, 1, rules(Action::Accept), vec![]),
    ]);
    let both = [rules(Action::Accept), rules(Action::Deny)].concat();
    decide(vec![cluster("a", Tier::Admin, 1, both, vec![])]);
}

#[test]
fn cn4_pass_skips_the_rest_of_its_tier_only() {
    let pass = act(Action::Pass, vec![all_pods("team=platform")], "");
    let deny = act(Action::Deny, vec![all_pods("")], "");
    let admin = cluster("a", Tier::Admin, 1, vec![pass, deny.clone()], vec![]);
    check(
        &with_cluster(shop(), vec![admin.clone()]),
        "admin/ops shop/db tcp 1 -> allow\nshop/web shop/db tcp 1 -> deny",
    );
    let baseline = cluster("b", Tier::Baseline, 1, vec![deny], vec![]);
    check(
        &with_cluster(shop(), vec![admin, baseline]),
        "admin/ops shop/db tcp 1 -> deny\nshop/web shop/db tcp 1 -> deny",
    );
}

#[test]
fn cn7_networks_match_ports_and_icmp_too() {
    let deny = act(Action::Deny, vec![networks(&["10.0.0.0/8", "fd00::/8", "192.0.2.0/24"])], "");
    check(
        &with_cluster(shop(), vec![cluster("a", Tier::Admin, 1, vec![], vec![deny])]),
        "shop/web shop/db     tcp 1  -> deny
         shop/web shop/db     icmp - -> deny
         shop/web 192.0.2.1   tcp 1  -> deny
         shop/web 192.0.3.1   tcp 1  -> allow
         shop/web 2001:db8::1 tcp 1  -> allow
         shop/web shop/web    tcp 1  -> allow",
    );
}

#[test]
fn cn8_a_destination_named_port_has_the_protocol_that_is_declared() {
    let deny = act(Action::Deny, vec![all_pods("")], "*:http");
    check(
        &with_cluster(shop(), vec![cluster("a", Tier::Admin, 1, vec![], vec![deny])]),
        "shop/cache shop/db  tcp 8080 -> deny
         shop/cache shop/db  udp 8081 -> deny
         shop/cache shop/db  tcp 8081 -> allow
         shop/cache shop/web tcp 80   -> deny
         shop/cache shop/web udp 80   -> allow",
    );
}

#[test]
fn cn9_an_unknown_peer_fails_closed() {
    let unknown = |action| {
        with_cluster(
            shop(),
            vec![cluster("a", Tier::Admin, 1, vec![], vec![act(action, vec![ClusterPeer::Unknown], "tcp:80")])],
        )
    };
    check(&unknown(Action::Accept), "shop/web shop/db tcp 80 -> allow");
    for action in [Action::Deny, Action::Pass] {
        check(
            &unknown(action),
            "shop/web shop/db tcp 80 -> deny\nshop/web 192.0.2.1 udp 9 -> deny\nshop/db shop/db tcp 1 -> allow",
        );
    }
    let accept = act(Action::Accept, vec![ClusterPeer::Unknown, all_pods("")], "");
    let deny = act(Action::Deny, vec![networks(&["0.0.0.0/0", "::/0"])], "");
    check(
        &with_cluster(shop(), vec![cluster("a", Tier::Admin, 1, vec![], vec![accept, deny])]),
        "shop/web shop/db tcp 80 -> allow\nshop/web 192.0.2.1 tcp 80 -> deny",
    );
}

fn ingress(world: &World, from: &str, to: &str, protocol: &str, port: &str) -> Flow {
    let (peer, peer_address) = side(world, from, false).unwrap();
    let (proto, dst_port) = l4(protocol, port, false);
    Flow {
        direction: Direction::Ingress,
        subject: side(world, to, false).unwrap().0.unwrap(),
        peer,
        peer_address,
        proto,
        dst_port,
    }
}

#[test]
fn audit_mode_reports_and_lets_pass() {
    let mut audited = policy("p", "app=db", Some(vec![rule(vec![pods("app=web")], "")]), None);
    audited.audit = true;
    let mut world = with(shop(), vec![audited]);
    let mut compiler = Compiler::new();
    let table = compiler.update(&world).table;
    let would = table.decide(&ingress(&world, "shop/cache", "shop/db", "tcp", "80"));
    assert!(would.allowed);
    let told = table.rule(would.audit.expect("a would-be denial")).expect("its rule");
    assert_eq!((told.policy.name.as_str(), told.index, told.action), ("p", None, Action::Deny));
    assert_eq!(table.decide(&ingress(&world, "shop/web", "shop/db", "tcp", "80")).audit, None);
    // Another policy in force still denies; then there is nothing to report.
    world = with(world, vec![policy("q", "app=db", Some(vec![]), None)]);
    let table = compiler.update(&world).table;
    let denied = table.decide(&ingress(&world, "shop/cache", "shop/db", "tcp", "80"));
    assert_eq!((denied.allowed, denied.basis, denied.audit), (false, Basis::NoRule, None));
    assert!(table.decide(&ingress(&world, "shop/web", "shop/db", "tcp", "80")).allowed, "its rules are in force");
}

#[test]
fn rule_numbers_last_as_long_as_their_policy() {
    let keep = policy("keep", "app=db", Some(vec![rule(vec![pods("app=web")], "")]), None);
    let mut world = with(shop(), vec![policy("change", "app=web", Some(vec![rule(vec![], "tcp:1")]), None), keep]);
    let mut compiler = Compiler::new();
    let rule_of = |table: &Table, flow: &Flow| match table.decide(flow).basis {
        Basis::Rule(id) => id,
        other => panic!("{other:?}"),
    };
    let (kept, changed) =
        (ingress(&world, "shop/web", "shop/db", "tcp", "1"), ingress(&world, "shop/db", "shop/web", "tcp", "1"));
    let before = compiler.update(&world).table;
    world.policies[0] = Arc::new(policy("change", "app=web", Some(vec![rule(vec![], "tcp:1-2")]), None));
    let after = compiler.update(&world).table;
    assert_eq!(rule_of(&before, &kept), rule_of(&after, &kept));
    assert_ne!(rule_of(&before, &changed), rule_of(&after, &changed));
    assert_eq!(after.rule(rule_of(&before, &changed)), None, "no number stands for another rule");
    assert_eq!(after.rule(rule_of(&after, &changed)).unwrap().origin, "shop.yaml:9");
}

#[test]
fn a_change_tells_the_networks_that_it_reaches() {
    let mut world = ports("shop/web app=web\nshop/db app=db\nother/far app=web net=1\nother/away app=db net=2");
    let mut compiler = Compiler::new();
    assert_eq!(compiler.update(&world).changed, [0, 1, 2].map(NetworkId));
    world = with(world, vec![policy("p", "app=db", Some(vec![]), None)]);
    assert_eq!(compiler.update(&world).changed, [NetworkId(0)]);
    world.namespaces.insert("other".into(), namespace("other", "team=x"));
    assert_eq!(compiler.update(&world).changed, [], "no policy looks at this label");
    world.default = DefaultPolicy::Deny;
    assert_eq!(compiler.update(&world).changed, [0, 1, 2].map(NetworkId));
    world.endpoints.remove(3);
    assert_eq!(compiler.update(&world).changed, [NetworkId(2)]);
    world.policies = world.policies.iter().map(|policy| Arc::new((**policy).clone())).collect();
    assert_eq!(compiler.update(&world).changed, [], "equal is the same");
}

#[test]
fn explanations_name_the_nearest_miss() {
    let db = policy("db-only-from-web", "app=db", Some(vec![rule(vec![pods("app=web")], "tcp:5432 udp:53")]), None);
    let cluster = cluster("no-telnet", Tier::Admin, 1, vec![act(Action::Deny, vec![all_pods("")], "tcp:23")], vec![]);
    let world = with_cluster(with(shop(), vec![db, policy("closed", "app=cache", Some(vec![]), None)]), vec![cluster]);
    let table = Compiler::new().update(&world).table;
    let cases = [
        ("shop/cache shop/db tcp 5432", "cache has app=cache; rule 1 wants app=web"),
        ("shop/web shop/db tcp 5432", "rule 1 of shop/db-only-from-web allows it"),
        ("shop/web shop/db tcp 8080", "rule 1 matches all but port 8080 (it has tcp 5432, udp 53)"),
        ("shop/web shop/db udp 5432", "rule 1 matches all but protocol udp (it has tcp 5432, udp 53)"),
        (
            "shop/web shop/db icmp -",
            "rule 1 matches all but the protocol: only rules without ports match icmp (it has tcp 5432, udp 53)",
        ),
        ("admin/web shop/db tcp 5432", "web is in namespace admin; rule 1 wants namespace shop"),
        ("192.0.2.9 shop/db tcp 5432", "192.0.2.9 is no port of this network; rule 1 wants app=web"),
        ("shop/web shop/cache tcp 80", "default deny: selected by shop/closed"),
        ("shop/db shop/web tcp 23", "rule 1 of no-telnet denies it"),
        ("shop/db shop/web tcp 80", "no rule in force matches of those that select web: no-telnet"),
        ("shop/db shop/db tcp 80", "a port cannot be blocked from itself"),
    ];
    for (line, sentence) in cases {
        let words: Vec<&str> = line.split_whitespace().collect();
        let flow = ingress(&world, words[0], words[1], words[2], words[3]);
        let explanation = explain(&world, &table, &flow);
        assert_eq!(explanation.sentence, sentence, "{line}");
        assert_eq!(explanation.decision, table.decide(&flow));
        assert!(explanation.miss.is_none_or(|miss| miss.origin == "shop.yaml:9"));
    }
    let egress = Flow { direction: Direction::Egress, ..ingress(&world, "shop/web", "shop/cache", "tcp", "80") };
    assert_eq!(explain(&world, &table, &egress).sentence, "no egress policy selects cache");
    assert_eq!(table.isolating(PortId(1), Direction::Ingress).count(), 1);
    assert_eq!(table.selecting(PortId(1), Direction::Ingress).count(), 2);
}
