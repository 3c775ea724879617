//! What `trace` prints, to the letter.

use std::path::Path;

use hostweave_nat::service::{Backend, FrontendSpec, Refusal, Services};
use hostweave_switch::connection::{Connections, FreeRecords, NewConnection, Options};
use hostweave_switch::tables::NetworkId;
use hostweave_switch::tcp_track::Side;

use super::*;
use crate::config::desired::{HostFacts, to_desired};
use crate::config::{Assignments, Source, check_set, ipam, load_sources};
use crate::control::endpoint::{Endpoint, Ends};
use crate::fabric::Picture;

const HOST: &str = "\
{apiVersion: hostweave.dev/v1alpha1, kind: Network, metadata: {name: default}, spec: {cidrs: [10.64.0.0/24, \"2001:db8:64::/64\"]}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: retail}}}
---
{apiVersion: hostweave.dev/v1alpha1, kind: Port, metadata: {name: web-0, namespace: shop, labels: {app: web}}, spec: {addresses: [10.64.0.10, \"2001:db8:64::10\"]}}
---
{apiVersion: hostweave.dev/v1alpha1, kind: Port, metadata: {name: cache-0, namespace: shop, labels: {app: cache}}, spec: {addresses: [10.64.0.12, \"2001:db8:64::12\"]}}
---
{apiVersion: hostweave.dev/v1alpha1, kind: Port, metadata: {name: db-0, namespace: shop, labels: {app: db}}, spec: {addresses: [10.64.0.31, \"2001:db8:64::31\"]}}
";

const DB_ONLY_FROM_WEB: &str = "---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db-only-from-web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress]
  ingress:
    - from: [{podSelector: {matchLabels: {app: web}}}]
      ports: [{port: 5432, protocol: TCP}]
";

struct Host {
    picture: Picture,
    connections: Connections,
    nat: Nat,
    unchosen: Option<Box<dyn Unchosen>>,
    _dir: tempfile::TempDir,
}

impl Host {
    fn new(more: &str) -> Self {
        let source = |name: &str, text: &str| Source { name: name.to_owned(), text: text.to_owned() };
        let loaded = load_sources(vec![source("10.yaml", HOST), source("20-shop.yaml", more)]).unwrap();
        let objects = loaded.objects.into_iter().map(std::sync::Arc::new);
        let (set, _) = check_set(objects, Path::new("/run")).unwrap();
        let mut number = 0;
        let assigned = ipam::assign(&set, &Assignments::default(), &mut || {
            number += 1;
            uuid::Uuid::from_u128(number)
        });
        let (desired, problems) = to_desired(
            &set,
            &assigned.assignments,
            &Default::default(),
            Default::default(),
            &HostFacts::system(Path::new("/run")),
        );
        assert!(problems.is_empty(), "{problems:?}");
        let dir = tempfile::tempdir().unwrap();
        let options = Options { capacity: 1024, boot: 1, now: 0 };
        let connections = Connections::open(&dir.path().join("connections"), &options).unwrap();
        connections.make_available(1024);
        connections.share((0..16).map(|port| (port, 1024)));
        let options =
            hostweave_nat::Options { capacity: 16, boot: 1, now: 0, timers: Default::default(), seed: Some(1) };
        let nat = Nat::open(&dir.path().join("nat"), &options).unwrap();
        Self { picture: Picture::of(&desired).unwrap(), connections, nat, unchosen: None, _dir: dir }
    }

    fn scene(&self) -> Scene<'_> {
        Scene {
            plane: &self.picture.plane,
            world: &self.picture.world,
            connections: &self.connections,
            nat: &self.nat,
            now: 100,
            unchosen: self.unchosen.as_deref(),
        }
    }

    fn request(&self, from: &str, to: &str) -> Request {
        let end = |field, text| Endpoint::parse(field, text, Some("shop")).unwrap();
        let ends = Ends { from: &end("from", from), to: &end("to", to), network: None };
        ends.resolve(&self.picture, &self.scene()).unwrap()
    }

    fn trace(&self, from: &str, to: &str) -> Trace {
        run(&self.scene(), &self.request(from, to)).unwrap()
    }

    /// Puts a connection into the table as `commit` does.
    fn connect(&self, from: &str, to: &str, epoch: u32) {
        let Request { from, tuple } = self.request(from, to);
        let tables = &self.picture.plane.tables;
        let port = tables.port(from).unwrap();
        let network = tables.network(port.network).unwrap();
        let key = key(&tuple).unwrap();
        let new = NewConnection {
            key,
            hash: self.connections.keys().hash(&key, network.vni),
            vni: network.vni,
            in_port: from.0,
            out_port: tables.owner(AddressKey::new(port.network, tuple.dst)).unwrap().0,
            basis: [Basis::NotSelected.to_u32(), Basis::NotSelected.to_u32()],
            epoch,
            queue: 0,
            side: Side::default(),
            translation: None,
            receiver_pays: false,
        };
        self.connections.commit(&new, &tables.timeouts, &mut FreeRecords::new(), 88).unwrap();
    }
}

fn assert_text(more: &str, from: &str, to: &str, expected: &str) {
    let trace = Host::new(more).trace(from, to);
    assert_eq!(trace.text(), expected, "{from} -> {to}:\n{}", trace.text());
    let json = serde_json::to_value(&trace).unwrap();
    assert_eq!(serde_json::from_value::<Trace>(json).unwrap(), trace);
}

#[test]
fn allowed_by_a_rule() {
    assert_text(
        DB_ONLY_FROM_WEB,
        "web-0",
        "db-0:5432",
        " 1 guard     ok       shop/web-0  10.64.0.10:49152 -> shop/db-0 10.64.0.31:5432 tcp
 2 conn      new      no connection with these addresses and ports
 3 egress    ALLOWED  no egress policy selects web-0
 4 route     local    port shop/db-0
 5 ingress   ALLOWED  shop/db-only-from-web  20-shop.yaml:9
                      rule 1 of shop/db-only-from-web allows it
 6 commit    ok       here the connection would begin
 verdict FORWARDED                                                            exit 0
",
    );
}

#[test]
fn denied_with_the_nearest_rule_and_what_it_lacks() {
    assert_text(
        DB_ONLY_FROM_WEB,
        "cache-0",
        "db-0:5432/tcp",
        " 1 guard     ok       shop/cache-0  10.64.0.12:49152 -> shop/db-0 10.64.0.31:5432 tcp
 2 conn      new      no connection with these addresses and ports
 3 egress    ALLOWED  no egress policy selects cache-0
 4 route     local    port shop/db-0
 5 ingress   DENIED   shop/db-only-from-web  20-shop.yaml:9
                      cache-0 has app=cache; rule 1 wants app=web
                      default deny: selected by shop/db-only-from-web
 verdict DROPPED (policy_denied)                                              exit 1
",
    );
}

#[test]
fn denied_for_the_port_alone_over_ipv6() {
    assert_text(
        DB_ONLY_FROM_WEB,
        "2001:db8:64::10",
        "[2001:db8:64::31]:8080",
        " 1 guard     ok       shop/web-0  [2001:db8:64::10]:49152 -> shop/db-0 [2001:db8:64::31]:8080 tcp
 2 conn      new      no connection with these addresses and ports
 3 egress    ALLOWED  no egress policy selects web-0
 4 route     local    port shop/db-0
 5 ingress   DENIED   shop/db-only-from-web  20-shop.yaml:9
                      rule 1 matches all but port 8080 (it has tcp 5432)
                      default deny: selected by shop/db-only-from-web
 verdict DROPPED (policy_denied)                                              exit 1
",
    );
}

#[test]
fn default_deny_names_who_selects() {
    let policy = "---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: lock-down, namespace: shop}, spec: {podSelector: {}, policyTypes: [Egress]}}
";
    assert_text(
        policy,
        "web-0",
        "db-0/icmp",
        " 1 guard     ok       shop/web-0  10.64.0.10 -> shop/db-0 10.64.0.31 icmp
 2 conn      new      no connection with these addresses and ports
 3 egress    DENIED   shop/lock-down  20-shop.yaml:2
                      default deny: selected by shop/lock-down
 verdict DROPPED (policy_denied)                                              exit 1
",
    );
}

#[test]
fn np35_the_hosts_default_deny() {
    let host = "---
{apiVersion: hostweave.dev/v1alpha1, kind: HostConfig, metadata: {name: host-a}, spec: {defaultPolicy: deny}}
";
    assert_text(
        host,
        "web-0",
        "db-0:53/udp",
        " 1 guard     ok       shop/web-0  10.64.0.10:49152 -> shop/db-0 10.64.0.31:53 udp
 2 conn      new      no connection with these addresses and ports
 3 egress    DENIED   default policy deny: no egress policy selects web-0
 verdict DROPPED (policy_denied)                                              exit 1
",
    );
}

#[test]
fn np34_builtin_rules_for_the_gateway() {
    let host = "---
{apiVersion: hostweave.dev/v1alpha1, kind: HostConfig, metadata: {name: host-a}, spec: {defaultPolicy: deny}}
";
    assert_text(
        host,
        "web-0",
        "gateway:53/udp",
        " 1 guard     ok       shop/web-0  10.64.0.10:49152 -> gateway of default 10.64.0.1:53 udp
 2 conn      new      no connection with these addresses and ports
 3 egress    ALLOWED  builtin/dns
                      DNS to the gateway passes whatever policies say
 4 route     local    the gateway of default
 5 commit    ok       here the connection would begin
 verdict FORWARDED                                                            exit 0
",
    );
    assert_text(
        host,
        "gateway",
        "web-0:8080",
        " 1 guard     ok       gateway of default  10.64.0.1:49152 -> shop/web-0 10.64.0.10:8080 tcp
 2 conn      new      no connection with these addresses and ports
 3 ingress   ALLOWED  builtin/health-probes
                      anything from the gateway passes whatever policies say
 4 route     local    port shop/web-0
 5 commit    ok       here the connection would begin
 verdict FORWARDED                                                            exit 0
",
    );
}

#[test]
fn a_cluster_policy_denies_by_name() {
    let policy = "---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: no-cache}
spec:
  tier: Admin
  priority: 7
  subject: {namespaces: {}}
  egress:
    - {name: keep-out, action: Deny, to: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: cache}}}}]}
";
    assert_text(
        policy,
        "web-0",
        "cache-0:80",
        " 1 guard     ok       shop/web-0  10.64.0.10:49152 -> shop/cache-0 10.64.0.12:80 tcp
 2 conn      new      no connection with these addresses and ports
 3 egress    DENIED   no-cache  20-shop.yaml:10
                      rule 1 (keep-out) of no-cache denies it
 verdict DROPPED (policy_denied)                                              exit 1
",
    );
}

#[test]
fn an_address_that_nobody_has() {
    assert_text(
        "",
        "web-0",
        "10.64.0.99:80",
        " 1 guard     ok       shop/web-0  10.64.0.10:49152 -> 10.64.0.99:80 tcp
 2 conn      new      no connection with these addresses and ports
 3 egress    ALLOWED  no egress policy selects web-0
 4 route     DROP     no_route
                      No port owns the destination address, and no route leads to it.
 verdict DROPPED (no_route)                                                   exit 1
",
    );
}

/// The Service `shop/db` at an address, with `db-0` behind it and a backend that drains.
fn served(at: &str, backend: &str) -> Host {
    let mut host = Host::new(DB_ONLY_FROM_WEB);
    let plane = std::sync::Arc::make_mut(&mut host.picture.plane);
    let network = NetworkId(0);
    let mapped = |text: &str| AddressKey::new(network, text.parse().unwrap()).address;
    let vni = plane.tables.network(network).unwrap().vni;
    let backend = |name: &str, active: bool| Backend {
        name: name.into(),
        address: mapped(backend) + u128::from(!active),
        l4: Some(5432),
        weight: 1,
        active,
        ejected: false,
    };
    let spec = FrontendSpec {
        service: "shop/db".into(),
        port_name: "sql".into(),
        scope: vni,
        address: mapped(at),
        proto: 6,
        l4: 5000..=5000,
        vni,
        sources: [].into(),
        affinity_s: None,
        backends: [backend("shop/db-0", true), backend("shop/db-1", false)].into(),
        refusal: Refusal::Reject,
        begun: Default::default(),
    };
    plane.services = std::sync::Arc::new(Services::compile(&[spec], None));
    host
}

#[test]
fn a_service_and_its_backend() {
    assert_eq!(
        served("10.96.0.20", "10.64.0.31").trace("web-0", "10.96.0.20:5000").text(),
        " 1 guard     ok       shop/web-0  10.64.0.10:49152 -> 10.96.0.20:5000 tcp
 2 conn      new      no connection with these addresses and ports
 3 dnat      service  10.96.0.20:5000 -> 10.64.0.31:5432 (shop/db-0; maglev 1/2 active)
                      Service shop/db, port sql
 4 egress    ALLOWED  no egress policy selects web-0
 5 route     local    port shop/db-0
 6 ingress   ALLOWED  shop/db-only-from-web  20-shop.yaml:9
                      rule 1 of shop/db-only-from-web allows it
 7 commit    ok       here the connection would begin
 verdict FORWARDED                                                            exit 0
"
    );
    let host = served("2001:db8:96::20", "2001:db8:64::31");
    let trace = host.trace("2001:db8:64::10", "[2001:db8:96::20]:5000");
    let dnat = trace.stages.iter().find(|stage| stage.stage == "dnat").unwrap();
    let detail = "[2001:db8:96::20]:5000 -> [2001:db8:64::31]:5432 (shop/db-0; maglev 1/2 active)";
    assert_eq!((trace.allowed(), dnat.detail.as_str()), (true, detail));
    let trace = host.trace("2001:db8:64::10", "[2001:db8:96::20]:5001");
    assert_eq!(trace.reason.as_deref(), Some("service_no_port"));
    let trace = host.trace("2001:db8:64::10", "2001:db8:96::20/icmp");
    assert_eq!(trace.stages.last().unwrap().detail, "echo: the Service at 2001:db8:96::20 answers");
}

/// Who was not chosen, as a test says.
struct Said;

impl Unchosen for Said {
    fn unchosen(&self, service: &str, port_name: &str, ipv4: bool) -> Vec<String> {
        vec![format!("not one of {service} {port_name} {ipv4}")]
    }
}

#[test]
fn a_service_says_why_others_were_not_chosen() {
    for (at, backend, from, ipv4) in [
        ("10.96.0.20", "10.64.0.31", "10.64.0.10", "true"),
        ("2001:db8:96::20", "2001:db8:64::31", "2001:db8:64::10", "false"),
    ] {
        let host = Host { unchosen: Some(Box::new(Said)), ..served(at, backend) };
        let to = if at.contains(':') { format!("[{at}]:5000") } else { format!("{at}:5000") };
        let trace = host.trace(from, &to);
        let dnat = trace.stages.iter().find(|stage| stage.stage == "dnat").unwrap();
        assert_eq!(dnat.lines, ["Service shop/db, port sql".to_owned(), format!("not one of shop/db sql {ipv4}")]);
    }
}

#[test]
fn the_host_answers_itself() {
    for (to, detail) in [
        (
            "gateway/icmp",
            "shop/web-0  10.64.0.10 -> gateway of default 10.64.0.1 icmp|echo: the gateway of network default answers",
        ),
        (
            "gateway:67/udp",
            "shop/web-0  10.64.0.10:49152 -> gateway of default 10.64.0.1:67 udp|DHCP: the gateway of network default answers",
        ),
        (
            "[2001:db8:64::1]:547/udp",
            "shop/web-0  [2001:db8:64::10]:49152 -> gateway of default [2001:db8:64::1]:547 udp|DHCPv6: the gateway of network default answers",
        ),
        (
            "db-0/arp",
            "shop/web-0  10.64.0.10 -> shop/db-0 10.64.0.31 arp|ARP: the gateway of network default answers with the router's MAC address",
        ),
        (
            "db-0/nd",
            "shop/web-0  2001:db8:64::10 -> shop/db-0 2001:db8:64::31 nd|neighbour discovery: the gateway of network default answers with the router's MAC address",
        ),
    ] {
        let (guard, local) = detail.split_once('|').unwrap();
        let verdict = format!("{:78}exit 0", " verdict REPLIED");
        assert_text(
            "",
            "web-0",
            to,
            &format!(" 1 guard     ok       {guard}\n 2 local     REPLY    {local}\n{verdict}\n"),
        );
    }
}

#[test]
fn an_established_connection_says_so_and_is_judged_again_when_the_tables_changed() {
    let host = Host::new(DB_ONLY_FROM_WEB);
    let epoch = host.picture.plane.tables.epochs[0];
    host.connect("web-0:40000", "db-0:5432", epoch);
    assert_eq!(
        host.trace("web-0:40000", "db-0:5432").text(),
        " 1 guard     ok       shop/web-0  10.64.0.10:40000 -> shop/db-0 10.64.0.31:5432 tcp
 2 conn      known    established connection, begun by shop/web-0 12s ago
                      egress allowed: no policy had a say
                      ingress allowed: no policy had a say
 verdict FORWARDED                                                            exit 0
"
    );
    // Of an epoch before, and not allowed any more: it would be cut, and is not, because only `trace` asks.
    host.connect("cache-0:40000", "db-0:5432", epoch + 1);
    let trace = host.trace("cache-0:40000", "db-0:5432");
    let results: Vec<(&str, &str)> =
        trace.stages.iter().map(|stage| (stage.stage.as_str(), stage.result.as_str())).collect();
    assert_eq!(
        results,
        [("guard", "ok"), ("conn", "known"), ("egress", "ALLOWED"), ("route", "local"), ("ingress", "DENIED")]
    );
    assert_eq!((trace.verdict, trace.reason.as_deref()), (Ended::Dropped, Some("policy_denied")));
    assert_eq!(host.connections.len(), 2);
    // Another one would be new: its source port is one that no connection has.
    host.connect("web-0:49152", "db-0:5432", epoch);
    assert_eq!(host.request("web-0", "db-0:5432").tuple.src_port, 49_153);
}

#[test]
fn a_port_that_is_down_and_policies_in_audit_mode() {
    let down = "---
{apiVersion: hostweave.dev/v1alpha1, kind: Port, metadata: {name: down-0, namespace: shop}, spec: {addresses: [10.64.0.40], adminState: down}}
";
    let host = Host::new(down);
    let stages = |trace: &Trace| trace.stages.iter().map(|stage| stage.stage.clone()).collect::<Vec<_>>();
    let trace = host.trace("down-0", "web-0:80");
    assert_eq!((stages(&trace), trace.reason.as_deref()), (vec!["rx".to_owned()], Some("port_down")));
    let trace = host.trace("web-0", "down-0:80");
    assert_eq!((trace.stages.last().unwrap().detail.as_str(), trace.allowed()), ("port_down", false));

    let audit =
        DB_ONLY_FROM_WEB.replace("namespace: shop}", "namespace: shop, annotations: {hostweave.dev/audit: \"on\"}}");
    let trace = Host::new(&audit).trace("cache-0", "db-0:5432");
    assert!(trace.allowed());
    let ingress = trace.stages.iter().find(|stage| stage.stage == "ingress").unwrap();
    assert_eq!(ingress.lines.last().unwrap(), "audit: shop/db-only-from-web would deny it  20-shop.yaml:2");
}

#[path = "trace_outside_tests.rs"]
mod outside;
