//! `trace` of packets that come in at the uplink or leave by it, and what a draft means for those that are denied.

use std::net::IpAddr;

use hostweave_nat::{Filtering, Inside, Outside, PoolSpec, Pools, Workload};
use hostweave_policy::compile::Compiler;
use hostweave_switch::MacAddr;
use hostweave_switch::tables::{Egress, NextHop, OUTSIDE_VNI, mapped};

use super::*;
use crate::fabric::{DeniedFlow, newly_admitted};

const OUTSIDE: NetworkId = NetworkId(1);
const UPLINK: PortId = PortId(40);
const UPLINK_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0xff, 1]);
const GATEWAY_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0xff, 2]);

/// Somebody out there, an address of the host at the uplink, and `db-0`.
fn remote(v6: bool) -> &'static str {
    if v6 { "2001:db8:e::80" } else { "203.0.113.80" }
}

fn public(v6: bool, last: u8) -> IpAddr {
    let text = if v6 { format!("2001:db8:f::{last}") } else { format!("198.51.100.{last}") };
    text.parse().unwrap()
}

fn db(v6: bool) -> IpAddr {
    if v6 { "2001:db8:64::31" } else { "10.64.0.31" }.parse().unwrap()
}

fn with_l4(address: IpAddr, l4: u16) -> String {
    std::net::SocketAddr::new(address, l4).to_string()
}

impl Host {
    /// With an uplink: `.7` and `.8` are a pool's, `.9` is attached to `db-0`, `.10` is its by 1:1 NAT, `.20` is a Service's.
    fn outside(more: &str) -> Self {
        let mut host = Self::new(more);
        let id = |host: &Self, name: &str| {
            host.picture.plane.tables.ports.iter().flatten().find(|port| port.name == name).unwrap().id
        };
        let (db_0, web_0) = (id(&host, "shop/db-0"), id(&host, "shop/web-0"));
        host.nat.make_available(16);
        let workload = |port: PortId| Workload { port: port.0, uid: u128::from(port.0) + 1000 };
        for port in [db_0, web_0] {
            host.connections.set_port_id(port.0, workload(port).uid);
        }
        let pool = PoolSpec {
            name: "pool".to_owned(),
            addresses: vec![public(false, 7), public(true, 7)],
            draining: Vec::new(),
            workloads: [db_0, web_0].map(workload).to_vec(),
            in_family: Default::default(),
            block_size: 64,
            blocks: 1..=4,
            filtering: Filtering::EndpointIndependent,
            overload: false,
            limits: Default::default(),
        };
        let pools = Pools::compile(&host.nat, &[pool], 100).unwrap();
        let plane = std::sync::Arc::make_mut(&mut host.picture.plane);
        plane.pools = std::sync::Arc::new(pools);
        let tables = &mut plane.tables;
        let inside = tables.networks[0].as_deref().unwrap().clone();
        let leaves = Network { egress_v4: Egress::Nat, egress_v6: Egress::Nat, ..inside.clone() };
        let none = Network { name: "(outside)".into(), vni: OUTSIDE_VNI, v4: None, v6: None, ..inside };
        tables.networks = vec![Some(std::sync::Arc::new(leaves)), Some(std::sync::Arc::new(none))];
        tables.epochs = vec![1; 2];
        let some = tables.port(db_0).unwrap().clone();
        let (v4, v6) = (Vec::new(), Vec::new());
        let name = "uplink".to_owned();
        let port = Port { id: UPLINK, name, network: OUTSIDE, mac: UPLINK_MAC, kind: PortKind::Uplink, v4, v6, ..some };
        tables.set_ports([std::sync::Arc::new(port)]);
        let owned = [false, true].into_iter().flat_map(|v6| {
            let one_to_one = Owned::Attached { port: db_0, inside: Some(mapped(db(v6))) };
            [
                (mapped(public(v6, 7)), Owned::Nat),
                (mapped(public(v6, 9)), Owned::Attached { port: db_0, inside: None }),
                (mapped(public(v6, 10)), one_to_one),
                (mapped(public(v6, 20)), Owned::Service),
            ]
        });
        let gateway = |v6| NextHop { address: public(v6, 254), mac: Some(GATEWAY_MAC) };
        let mut uplink = Uplink {
            v4: vec![gateway(false)],
            v6: vec![gateway(true)],
            owned: owned.collect(),
            ..Uplink::bare(UPLINK, OUTSIDE, UPLINK_MAC)
        };
        uplink.public = Uplink::one_to_one(&uplink.owned);
        tables.uplink = Some(std::sync::Arc::new(uplink));
        host
    }

    /// A Service at the public address, with `db-0` behind it.
    fn serve(&mut self, v6: bool) {
        let plane = std::sync::Arc::make_mut(&mut self.picture.plane);
        let vni = plane.tables.network(NetworkId(0)).unwrap().vni;
        let backend = Backend {
            name: "shop/db-0".into(),
            address: mapped(db(v6)),
            l4: Some(5432),
            weight: 1,
            active: true,
            ejected: false,
        };
        let spec = FrontendSpec {
            service: "shop/db".into(),
            port_name: "sql".into(),
            scope: OUTSIDE_VNI,
            address: mapped(public(v6, 20)),
            proto: 6,
            l4: 80..=80,
            vni,
            sources: [].into(),
            affinity_s: None,
            backends: [backend].into(),
            refusal: Refusal::Reject,
            begun: Default::default(),
        };
        plane.services = std::sync::Arc::new(Services::compile(&[spec], None));
    }

    /// The same host without policies.
    fn relaxed(&self) -> Picture {
        let mut picture = self.picture.clone();
        let mut world = (*picture.world).clone();
        world.policies.clear();
        let plane = std::sync::Arc::make_mut(&mut picture.plane);
        plane.policy = Compiler::new().update(&world).table;
        picture.world = std::sync::Arc::new(world);
        picture
    }
}

fn stages(trace: &Trace) -> Vec<(String, String)> {
    trace.stages.iter().map(|stage| (stage.stage.clone(), stage.result.clone())).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
}

#[test]
fn from_outside_to_an_attached_address() {
    let host = Host::outside(DB_ONLY_FROM_WEB);
    assert_eq!(
        host.trace("203.0.113.80", "198.51.100.9:5432").text(),
        " 1 guard     ok       uplink  203.0.113.80:49152 -> shop/db-0 198.51.100.9:5432 tcp
 2 conn      new      no connection with these addresses and ports
 3 route     network  port shop/db-0
 4 ingress   DENIED   shop/db-only-from-web  20-shop.yaml:9
                      203.0.113.80 is no port of this network; rule 1 wants app=web
                      default deny: selected by shop/db-only-from-web
 verdict DROPPED (policy_denied)                                              exit 1
"
    );
    let open = Host::outside("");
    for v6 in [false, true] {
        for last in [9, 10] {
            let trace = open.trace(remote(v6), &with_l4(public(v6, last), 5432));
            assert!(trace.allowed(), "{}", trace.text());
            let translated = stages(&trace).contains(&("dnat".to_owned(), "changed".to_owned()));
            assert_eq!((translated, trace.to.as_deref()), (last == 10, Some("shop/db-0")), "{}", trace.text());
        }
        // By its name, the address that it is known by outside; as `uplink`, from the router.
        let named = open.request("uplink", &format!("shop/db-0{}", if v6 { "/58" } else { "/1" }));
        assert_eq!((named.from, named.tuple.protocol), (UPLINK, Protocol::Icmp));
        let (family, last) = (if v6 { "58" } else { "1" }, if v6 { 10 } else { 9 });
        let echo = open.request(remote(v6), &format!("shop/db-0/{family}"));
        // 2001:db8:f::10 is written in hexadecimal.
        assert_eq!(echo.tuple.dst, public(v6, 9).min(public(v6, last)));
    }
}

#[test]
fn from_outside_to_a_service() {
    for v6 in [false, true] {
        let mut host = Host::outside("");
        host.serve(v6);
        let trace = host.trace(remote(v6), &with_l4(public(v6, 20), 80));
        let expected = [
            ("guard", "ok"),
            ("conn", "new"),
            ("dnat", "service"),
            ("route", "network"),
            ("ingress", "ALLOWED"),
            ("commit", "ok"),
        ];
        assert_eq!(stages(&trace), pairs(&expected), "{}", trace.text());
        let closed = host.trace(remote(v6), &with_l4(public(v6, 20), 81));
        assert_eq!(closed.reason.as_deref(), Some("service_no_port"));
        let echo = host.trace(remote(v6), &format!("{}/icmp", public(v6, 20)));
        assert_eq!(echo.verdict, Ended::Replied, "{}", echo.text());
    }
}

#[test]
fn from_outside_to_a_nat_mapping() {
    for v6 in [false, true] {
        let host = Host::outside("");
        let request = host.request("web-0:40000", &with_l4(remote(v6).parse().unwrap(), 80));
        let (from, uid) = (request.from.0, u128::from(request.from.0) + 1000);
        let vni = host.picture.plane.tables.network(NetworkId(0)).unwrap().vni;
        let inside = Inside { port: from, uid, vni, address: mapped(request.tuple.src), l4: 40_000, proto: 6 };
        let remote_end = Outside { address: mapped(request.tuple.dst), l4: 80 };
        let pools = &host.picture.plane.pools;
        let outside = host.nat.outbound(pools, &inside, remote_end, 100).unwrap().outside;
        let at = |l4| with_l4(public(v6, 7), l4);
        // RFC 4787 §5: anybody may answer.
        for from in [with_l4(remote(v6).parse().unwrap(), 80), "uplink".to_owned()] {
            let trace = host.trace(&from, &at(outside.l4));
            assert!(trace.allowed(), "{}", trace.text());
            assert!(trace.text().contains("route     network  port shop/web-0"), "{}", trace.text());
        }
        let other = host.trace(remote(v6), &at(outside.l4.wrapping_add(1)));
        assert_eq!((other.reason.as_deref(), other.verdict), (Some("nat_no_mapping"), Ended::Dropped));
    }
}

#[test]
fn from_outside_what_is_not_ours_and_what_nobody_has() {
    let host = Host::outside("");
    for v6 in [false, true] {
        let stranger = if v6 { "[2001:db8:d::1]:80" } else { "192.0.2.77:80" };
        assert_eq!(host.trace(remote(v6), stranger).reason.as_deref(), Some("not_ours"));
        let martian = if v6 { "fe80::99" } else { "127.0.0.1" };
        let trace = host.trace(martian, &with_l4(public(v6, 9), 80));
        assert_eq!(trace.reason.as_deref(), Some("address_not_forwardable"), "{}", trace.text());
        // Addresses of the network itself are its ports', and the hosts' own nobody else's.
        for ours in [if v6 { "2001:db8:64::99".parse().unwrap() } else { "10.64.0.99".parse().unwrap() }, public(v6, 7)]
        {
            let end = |field, text: &str| Endpoint::parse(field, text, Some("shop")).unwrap();
            let (from, to) = (end("from", &ours.to_string()), end("to", &with_l4(public(v6, 9), 80)));
            let ends = Ends { from: &from, to: &to, network: None };
            assert!(ends.resolve(&host.picture, &host.scene()).is_err(), "{ours}");
        }
    }
    let none = Host::new("");
    let end = |field, text| Endpoint::parse(field, text, None).unwrap();
    let (from, to) = (end("from", "uplink"), end("to", "10.64.0.31:80"));
    let error = Ends { from: &from, to: &to, network: None }.resolve(&none.picture, &none.scene()).unwrap_err();
    assert_eq!(error.message, "this host has no uplink");
}

#[test]
fn other_protocols_and_router_solicitations() {
    let host = Host::outside(DB_ONLY_FROM_WEB);
    for v6 in [false, true] {
        let trace = host.trace("web-0", &format!("{}/47", db(v6)));
        let lacks = "rule 1 matches all but the protocol: only rules without ports match protocol 47 (it has tcp 5432)";
        assert_eq!((trace.reason.as_deref(), trace.allowed()), (Some("policy_denied"), false));
        assert!(trace.text().contains(lacks), "{}", trace.text());
        let trace = host.trace(if v6 { "2001:db8:64::10" } else { "web-0" }, &format!("shop/cache-0/{}", 89));
        assert!(trace.allowed() && trace.text().contains(" protocol 89"), "{}", trace.text());
    }
    let trace = host.trace("web-0", "gateway/rs");
    let detail = "router discovery: the gateway of network default answers with a router advertisement";
    assert_eq!((trace.verdict, trace.stages.last().unwrap().detail.as_str()), (Ended::Replied, detail));
}

/// What was denied on its way to a Service, to the world, and from there, would pass without the policy; and nothing twice.
#[test]
fn a_draft_admits_what_crosses() {
    const LOCKED: &str = "---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: lock-down, namespace: shop}, spec: {podSelector: {}, policyTypes: [Ingress, Egress]}}
";
    for v6 in [false, true] {
        let mut host = Host::outside(LOCKED);
        host.serve(v6);
        let draft = host.relaxed();
        let after = Scene { plane: &draft.plane, world: &draft.world, ..host.scene() };
        let web = if v6 { "2001:db8:64::10" } else { "10.64.0.10" };
        for (from, to) in [
            (web, with_l4(public(v6, 20), 80)),
            (web, with_l4(remote(v6).parse().unwrap(), 443)),
            (remote(v6), with_l4(public(v6, 9), 22)),
            (remote(v6), format!("{}/icmp", public(v6, 10))),
            (web, format!("{}/47", db(v6))),
        ] {
            let request = host.request(from, &to);
            let vni = if request.from == UPLINK {
                OUTSIDE_VNI
            } else {
                host.picture.plane.tables.network(NetworkId(0)).unwrap().vni
            };
            let flow = DeniedFlow { key: key(&request.tuple).unwrap(), vni, from: request.from, to: PortId::NONE };
            let admitted = newly_admitted(&host.scene(), &after, &[flow]);
            assert_eq!(admitted.count, 1, "{from} {to}: {}", host.trace(from, &to).text());
            assert!(admitted.named[0].why.contains("no policy had a say"), "{}", admitted.named[0].why);
            assert_eq!(newly_admitted(&after, &after, &[flow]).count, 0, "it passes already");
            assert_eq!(newly_admitted(&host.scene(), &host.scene(), &[flow]).count, 0, "it is still denied");
            let other = DeniedFlow { vni: 77, ..flow };
            assert_eq!(newly_admitted(&host.scene(), &after, &[other]).count, 0, "that port is in another network");
        }
    }
}

#[test]
fn audited_policies_deny_nothing_and_are_not_said_to() {
    let audited = DB_ONLY_FROM_WEB.replace(
        "db-only-from-web, namespace: shop",
        "watched, namespace: shop, annotations: {hostweave.dev/audit: \"on\"}",
    );
    let host = Host::new(&format!("{DB_ONLY_FROM_WEB}{audited}"));
    for from in ["10.64.0.12", "2001:db8:64::12"] {
        let to = if from.contains(':') { "[2001:db8:64::31]:5432" } else { "10.64.0.31:5432" };
        let text = host.trace(from, to).text();
        assert!(text.contains("default deny: selected by shop/db-only-from-web\n"), "{text}");
    }
    let db_0 = host.request("db-0", "gateway").from;
    let said = default_deny_text(&host.picture.plane.policy, db_0, Direction::Ingress);
    assert_eq!(said, "default deny: selected by shop/db-only-from-web");
}

const CLUSTER: &str = "---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: guarded}
spec:
  tier: Admin
  priority: 7
  subject: {namespaces: {}}
  ingress:
    - {name: web, action: Accept, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}}], protocols: [{tcp: {destinationPort: {number: 80}}}]}
    - {name: rest, action: Deny, from: [{namespaces: {}}]}
";

#[test]
fn the_nearest_miss_of_cluster_policies_and_of_the_default() {
    let host = Host::new(CLUSTER);
    let default = CLUSTER.replace("    - {name: rest, action: Deny, from: [{namespaces: {}}]}\n", "");
    let strict = Host::new(&format!(
        "---\n{{apiVersion: hostweave.dev/v1alpha1, kind: HostConfig, metadata: {{name: host-a}}, spec: {{defaultPolicy: deny}}}}\n{default}  egress: [{{action: Accept, to: [{{namespaces: {{}}}}]}}]\n"
    ));
    for host in [host, strict] {
        for (from, to) in [("10.64.0.10", "10.64.0.31:81"), ("2001:db8:64::10", "[2001:db8:64::31]:81")] {
            let text = host.trace(from, to).text();
            assert!(
                text.contains("nearest of guarded: rule 1 matches all but port 81 (it has tcp 80)  20-shop.yaml:"),
                "{text}"
            );
        }
        let text = host.trace("cache-0", "db-0:80").text();
        assert!(text.contains("nearest of guarded: cache-0 has app=cache; rule 1 wants app=web"), "{text}");
    }
}

/// `policy matrix`: every address of a port is judged, and so is the world.
#[test]
fn a_matrix_judges_every_address_and_the_world() {
    use crate::control::matrix::{Question, matrix};
    const MORE: &str = "---
{apiVersion: hostweave.dev/v1alpha1, kind: Port, metadata: {name: two-0, namespace: shop}, spec: {addresses: [10.64.0.14, 10.64.0.140]}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db-near, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress]
  ingress:
    - from: [{ipBlock: {cidr: 10.64.0.0/28}}, {ipBlock: {cidr: \"2001:db8:e::/48\"}}]
      ports: [{port: 5432, protocol: TCP}]
";
    let mut host = Host::outside(MORE);
    let plane = std::sync::Arc::make_mut(&mut host.picture.plane);
    plane.world = std::sync::Arc::clone(&host.picture.world);
    let found = matrix(plane, &Question::default()).unwrap();
    let pair = |from: &str, to: &str| {
        let pairs = found["pairs"].as_array().unwrap();
        pairs.iter().find(|pair| pair["from"] == from && pair["to"] == to).unwrap().clone()
    };
    let near = pair("shop/two-0", "shop/db-0");
    assert_eq!(
        (&near["allowed"], &near["allows"]),
        (&true.into(), &serde_json::json!(["10.64.0.14>10.64.0.31:tcp/5432"]))
    );
    assert_eq!(pair("shop/web-0", "shop/db-0")["allows"], serde_json::json!(["ipv4:tcp/5432"]));
    for (from, to, allows) in
        [("world", "shop/db-0", "[]"), ("world", "shop/web-0", "[\"all\"]"), ("shop/db-0", "world", "[\"all\"]")]
    {
        assert_eq!(pair(from, to)["allows"].to_string(), allows, "{from} {to}");
    }
    assert_eq!(pair("world", "world")["reason"], "not by this host");
    // What is asked about one L4 port says why.
    let one = matrix(plane, &Question { l4_port: Some(22), ..Question::default() }).unwrap();
    let denied = one["pairs"]
        .as_array()
        .unwrap()
        .iter()
        .find(|pair| pair["from"] == "world" && pair["to"] == "shop/db-0")
        .unwrap();
    assert!(denied["ingress"].as_str().unwrap().starts_with("denied: isolated by shop/db-near"), "{denied}");
    // Without a way out there is no world.
    let plane = std::sync::Arc::make_mut(&mut host.picture.plane);
    plane.tables.uplink = None;
    assert!(!matrix(plane, &Question::default()).unwrap().to_string().contains("world"));
}
