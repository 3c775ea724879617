//! Flow log, connections and policies of a daemon with real guests on its ports, through the command line.

use std::net::IpAddr;
use std::time::Duration;

use hostweave_guest::frames::{Path, Segment};
use hostweave_guest::{Guest, Profile, VnetHeader};
use serde_json::{Value, json};

use crate::support::{Daemon, Line, http};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

const ROUTER: [u8; 6] = hostweave_switch::MacAddr::ROUTER.0;

const SYN: u8 = 2;

/// Three ports, and a policy that lets only one of them talk to another. The policy's rule stands in line 22.
const SHOP: &str = "\
apiVersion: hostweave.dev/v1alpha1
kind: Port
metadata: {name: web-0, namespace: shop, labels: {app: web}}
spec: {network: default, mac: \"02:00:00:00:00:01\"}
---
apiVersion: hostweave.dev/v1alpha1
kind: Port
metadata: {name: cache-0, namespace: shop, labels: {app: cache}}
spec: {network: default, mac: \"02:00:00:00:00:02\"}
---
apiVersion: hostweave.dev/v1alpha1
kind: Port
metadata: {name: db-0, namespace: shop, labels: {app: db}}
spec: {network: default, mac: \"02:00:00:00:00:03\", namedPorts: [{name: psql, port: 5432, protocol: TCP}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db-only-from-web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
    - from: [{podSelector: {matchLabels: {app: web}}}]
      ports: [{port: psql, protocol: TCP}]
";

/// A daemon with the ports of [`SHOP`] and a guest on each.
struct Shop {
    daemon: Daemon,
    guests: Vec<(&'static str, Guest)>,
}

impl Shop {
    fn new(objects: &str) -> Self {
        let mut daemon = Daemon::new();
        daemon.write("conf/20.yaml", objects);
        daemon.start(&[]);
        let names = ["web-0", "cache-0", "db-0"];
        let guest = |(number, name): (usize, &'static str)| {
            let socket = daemon.path(&format!("run/ports/shop.{name}.sock"));
            let mac = [2, 0, 0, 0, 0, u8::try_from(number).unwrap() + 1];
            let builder = Guest::builder().profile(Profile::Dpdk).socket(socket).mac(mac).timeout(PATIENCE);
            let mut guest = builder.connect().unwrap();
            guest.nic().frontend.barrier().unwrap();
            (name, guest)
        };
        let guests = names.into_iter().enumerate().map(guest).collect();
        Self { daemon, guests }
    }

    /// A port's address of a family.
    fn address(&self, name: &str, v6: bool) -> IpAddr {
        let port = self.daemon.json(&["port", "get", name, "-n", "shop"]);
        let addresses = port["addresses"].as_array().unwrap().iter();
        addresses
            .map(|address| address.as_str().unwrap().parse().unwrap())
            .find(|ip: &IpAddr| ip.is_ipv6() == v6)
            .unwrap()
    }

    fn path(&mut self, from: &str, to: &str, v6: bool) -> Path {
        let (src, dst) = (self.address(from, v6), self.address(to, v6));
        Path::new(self.guest(from).mac(), ROUTER, src, dst)
    }

    fn guest(&mut self, name: &str) -> &mut Guest {
        self.guests.iter_mut().find(|(known, _)| *known == name).map(|(_, guest)| guest).unwrap()
    }

    fn send(&mut self, from: &str, frame: &[u8]) {
        self.guest(from).send_frame(frame, &VnetHeader::default()).unwrap();
    }

    /// Sends the first segment of a TCP connection.
    fn syn(&mut self, from: &str, to: &str, src_port: u16, dst_port: u16, v6: bool) {
        let path = self.path(from, to, v6);
        let segment = Segment { src_port, dst_port, seq: 1_000, ack: 0, flags: SYN, window: 65_535 };
        self.send(from, &path.tcp(&segment, &[]));
    }

    /// Flows that `observe` shows for some flags, once there are as many.
    fn observed(&self, flags: &[&str], count: usize) -> Vec<Value> {
        let mut flows = Vec::new();
        self.daemon.until(&format!("{count} flows for {flags:?}"), || {
            let text = self.daemon.ok(&[&["observe", "--last", "1000", "-o", "json"], flags].concat());
            flows = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            flows.len() >= count
        });
        assert_eq!(flows.len(), count, "{flags:?}: {flows:#?}");
        flows
    }
}

#[test]
fn a_denied_packet_is_observed_with_ports_reason_rule_and_line() {
    let mut shop = Shop::new(SHOP);
    for v6 in [false, true] {
        shop.syn("cache-0", "db-0", 40_000, 5432, v6);
        shop.syn("web-0", "db-0", 40_001, 5432, v6);
    }
    let denied = shop.observed(&["--verdict", "DROPPED", "--to-port", "5432"], 2);
    let flow = &denied[0]["flow"];
    for (pointer, expected) in [
        ("/drop_reason_desc", json!("POLICY_DENIED")),
        ("/drop_reason", json!(133)),
        ("/source/pod_name", json!("cache-0")),
        ("/source/namespace", json!("shop")),
        ("/source/labels", json!(["k8s:app=cache"])),
        ("/destination/pod_name", json!("db-0")),
        ("/l4/TCP/flags", json!({"SYN": true})),
        ("/traffic_direction", json!("INGRESS")),
        ("/event_type/type", json!(5)),
        ("/IP/ipVersion", json!("IPv4")),
        ("/ingress_denied_by/0/name", json!("db-only-from-web")),
        ("/ethernet/source", json!("02:00:00:00:00:02")),
    ] {
        assert_eq!(flow.pointer(pointer), Some(&expected), "{pointer} in {flow:#}");
    }
    assert_eq!(denied[1]["flow"]["IP"]["ipVersion"], "IPv6");
    let text = shop.daemon.ok(&["observe", "--from-pod", "shop/cache", "--protocol", "tcp", "--ip-version", "4"]);
    assert!(
        text.contains("shop/cache-0:40000 -> shop/db-0:5432 policy-verdict INGRESS DROPPED POLICY_DENIED by"),
        "{text}"
    );
    assert!(
        text.contains("by shop/db-only-from-web ") && text.contains("20.yaml:16 (policy_denied; TCP Flags: SYN)"),
        "{text}"
    );
    let opened = shop.observed(&["--type", "new", "--to-pod", "shop/db-0", "--to-ip", "10.64.0.0/16"], 1);
    let flow = &opened[0]["flow"];
    assert_eq!((&flow["verdict"], &flow["source"]["pod_name"]), (&json!("FORWARDED"), &json!("web-0")));
    assert_eq!(flow["ingress_allowed_by"][0]["labels"][1], "hostweave:rule=1");
    assert!(flow["ingress_allowed_by"][0]["labels"][0].as_str().unwrap().ends_with("20.yaml:22"), "{flow:#}");
    assert!(
        flow["uuid"].as_str().unwrap().len() == 36 && flow["node_name"].as_str().is_some_and(|name| !name.is_empty())
    );

    // What a port may not send, and what no connection has.
    let mut path = shop.path("cache-0", "web-0", false);
    path.src = "10.64.0.99".parse().unwrap();
    shop.send("cache-0", &path.udp(1, 2, b"liar"));
    let spoofed = shop.observed(&["--drop-reason-desc", "spoofed_ip"], 1);
    assert_eq!(
        (&spoofed[0]["flow"]["interface"]["name"], &spoofed[0]["flow"]["drop_reason"]),
        (&json!("shop/cache-0"), &json!(132))
    );
    let path = shop.path("web-0", "cache-0", false);
    shop.send("web-0", &path.echo_request(7, 1, b"hello"));
    let ping = shop.observed(&["--protocol", "icmp", "--pod", "shop/cache"], 1);
    assert_eq!(ping[0]["flow"]["l4"], json!({"ICMPv4": {"type": 8, "code": 0}}));
    shop.observed(&["--pod", "shop/cache", "--not", "--protocol", "icmp", "--not", "--verdict", "FORWARDED"], 3);
    shop.observed(&["--label", "app=db", "--verdict", "FORWARDED", "--verdict", "DROPPED", "--protocol", "tcp"], 4);
    shop.observed(&["--since", "1h", "-n", "lab"], 0);
    assert_eq!(shop.daemon.cli(&["observe", "--verdict", "DENIED"]).code, 2);

    // A file of flows is read with the same filters, and looks the same.
    let all = shop.daemon.ok(&["observe", "--last", "1000", "-o", "jsonpb"]);
    let file = shop.daemon.write("flows.json", &all);
    let file = file.to_str().unwrap();
    let live = shop.daemon.ok(&["observe", "--last", "1000", "--verdict", "DROPPED"]);
    assert_eq!(shop.daemon.ok(&["observe", "--input-file", file, "--verdict", "DROPPED"]), live);
    let table = shop.daemon.ok(&["observe", "--input-file", file, "-o", "table", "--last", "1"]);
    assert!(table.starts_with("TIMESTAMP") && table.lines().count() == 2, "{table}");
    assert!(shop.daemon.ok(&["observe", "--input-file", file, "-o", "dict"]).contains("     VERDICT: INGRESS DROPPED"));
    assert_eq!(shop.daemon.cli(&["observe", "--input-file", "/nonexistent"]).code, 3);
}

#[test]
fn flows_are_subscribed_to_on_the_read_only_socket() {
    let mut shop = Shop::new(SHOP);
    let mut line = Line::connect(&shop.daemon.path("run/observe.sock"));
    let answer = line.call("flow.subscribe", json!({"filter": {"verdict": ["DROPPED"], "protocol": ["tcp"]}}));
    let subscription = answer["result"].as_u64().unwrap();
    shop.syn("web-0", "db-0", 40_001, 5432, false);
    shop.syn("cache-0", "db-0", 40_000, 5432, false);
    let event = line.receive().unwrap();
    assert_eq!((&event["method"], &event["params"]["subscription"]), (&json!("flow.event"), &json!(subscription)));
    assert_eq!(event["params"]["result"]["flow"]["source"]["pod_name"], "cache-0");
    assert_eq!(line.call("flow.unsubscribe", json!({"subscription": subscription}))["result"], true);
    shop.syn("cache-0", "db-0", 40_002, 5432, false);
    shop.observed(&["--from-port", "40002"], 1);
    let answer = line.call("flow.unsubscribe", json!({"subscription": subscription}));
    assert_eq!(answer["error"]["data"]["kind"], "NotFound", "{answer}");
    let answer = line.call("flow.list", json!({"filter": {"verdict": ["NO"]}}));
    assert_eq!(answer["error"]["data"]["field"], "filter.verdict");
    let answer = line.call("conntrack.flush", json!({"all": true}));
    assert_eq!(answer["error"]["data"]["kind"], "Denied");
}

#[test]
fn a_flood_is_told_as_lost_events() {
    let mut shop = Shop::new(SHOP);
    let path = shop.path("cache-0", "db-0", false);
    // More than the burst that a port may cause.
    for number in 1..=4_000_u16 {
        let frame = path.udp(10_000 + number, 9, b"flood");
        shop.guest("cache-0").nic().push_frame(0, &VnetHeader::default(), &frame).unwrap();
        if number % 64 == 63 || number == 4_000 {
            shop.guest("cache-0").nic().flush(0).unwrap();
            shop.guest("cache-0").nic().drain_tx(PATIENCE).unwrap();
        }
    }
    shop.daemon.until("losses are told", || {
        shop.daemon.ok(&["observe", "--last", "5000"]).contains("events LOST in worker 0")
    });
    let (_, metrics) = http(&shop.daemon.control(), "GET /metrics", "");
    let value = |name: &str| -> u64 {
        let line =
            metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}\n{metrics}"));
        line.trim().parse().unwrap()
    };
    assert!(value("hostweave_flowlog_lost_events_total") > 0);
    let denied = "hostweave_policy_verdicts_total{direction=\"ingress\",action=\"dropped\",match=\"none\"}";
    assert_eq!(value(denied), 4_000, "counted, whatever is logged");
    assert_eq!(value("hostweave_policy_rules"), 1);
    assert!(value("hostweave_conntrack_capacity") > 0);
    let status = shop.daemon.json(&["status"]);
    assert_eq!(status["policy"]["networkPolicies"], 1);
    assert!(status["flows"]["lost"].as_u64().unwrap() > 0);
    assert!(shop.daemon.ok(&["status"]).contains("policies: 1 and 0 of the cluster, 1 rules"));
}

#[test]
fn connections_are_listed_and_flushed() {
    let mut shop = Shop::new(SHOP);
    shop.syn("web-0", "db-0", 40_001, 5432, false);
    shop.syn("web-0", "db-0", 40_001, 5432, true);
    let path = shop.path("web-0", "cache-0", false);
    shop.send("web-0", &path.udp(5000, 53, b"ask"));
    let list = |flags: &[&str]| -> Vec<Value> {
        shop.daemon.json(&[&["conntrack", "list"], flags].concat()).as_array().unwrap().clone()
    };
    shop.daemon.until("three connections", || list(&[]).len() == 3);
    let tcp = &list(&["--protocol", "tcp", "--ip", "10.64.0.0/24"])[0];
    for (pointer, expected) in [
        ("/network", json!("default")),
        ("/source/port", json!("shop/web-0")),
        ("/destination/port", json!("shop/db-0")),
        ("/destination/l4Port", json!(5432)),
        ("/state", json!("opening")),
        ("/replied", json!(false)),
        ("/egressAllowedBy/by", json!("none")),
        ("/ingressAllowedBy/by", json!("rule")),
        ("/ingressAllowedBy/policy/name", json!("db-only-from-web")),
    ] {
        assert_eq!(tcp.pointer(pointer), Some(&expected), "{pointer} in {tcp:#}");
    }
    let expires = tcp["expiresSeconds"].as_u64().unwrap();
    assert!(expires > 30 && expires <= 60, "{expires}");
    for (flags, count) in [
        (&["--pod", "shop/cache-0"][..], 1),
        (&["--pod", "db-0", "-n", "shop"], 2),
        (&["--port", "53"], 1),
        (&["--state", "unreplied", "--state", "opening"], 3),
        (&["--network", "other"], 0),
        (&["--ip", "2001:db8::/32"], 1),
    ] {
        assert_eq!(list(flags).len(), count, "{flags:?}");
    }
    let text = shop.daemon.ok(&["conntrack", "list", "--port", "5432"]);
    assert!(text.contains("shop/web-0:40001") && text.contains("shop/db-only-from-web rule 1"), "{text}");
    assert_eq!(shop.daemon.cli(&["conntrack", "list", "--state", "open"]).code, 2);
    let done = shop.daemon.cli(&["conntrack", "flush"]);
    assert_eq!((done.code, done.stderr.contains("--all")), (2, true), "{}", done.stderr);
    assert_eq!(shop.daemon.ok(&["conntrack", "flush", "--protocol", "tcp"]), "2 connections flushed\n");
    assert_eq!(list(&[]).len(), 1);
    // Its next packet begins it anew, although the worker knew it a moment ago.
    assert_eq!(shop.daemon.ok(&["conntrack", "flush", "--all"]), "1 connection flushed\n");
    shop.send("web-0", &path.udp(5000, 53, b"again"));
    shop.observed(&["--type", "new", "--to-port", "53"], 2);
}

#[test]
fn the_matrix_says_who_may_talk_to_whom() {
    let shop = Shop::new(SHOP);
    let text = shop.daemon.ok(&["policy", "matrix", "-n", "shop"]);
    let row =
        |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().split_whitespace().collect::<Vec<_>>();
    assert_eq!(row("FROM"), ["FROM", "\\", "TO", "shop/cache-0", "shop/db-0", "shop/file-0", "shop/web-0"]);
    assert_eq!(row("shop/web-0"), ["shop/web-0", "all", "tcp/5432", "all", "all"]);
    // The port of the daemon's own folder is app=web, too.
    assert_eq!(row("shop/file-0"), ["shop/file-0", "all", "tcp/5432", "all", "all"]);
    assert_eq!(row("shop/cache-0"), ["shop/cache-0", "all", "-", "all", "all"]);
    let json = shop.daemon.json(&["policy", "matrix", "--port", "5432", "-n", "shop"]);
    let pair = |from: &str, to: &str| {
        let pairs = json["pairs"].as_array().unwrap().iter();
        pairs.into_iter().find(|pair| pair["from"] == from && pair["to"] == to).unwrap().clone()
    };
    assert_eq!(pair("shop/web-0", "shop/db-0")["allowed"], true);
    let denied = pair("shop/cache-0", "shop/db-0");
    assert_eq!(denied["allowed"], false);
    assert!(denied["ingress"].as_str().unwrap().starts_with("denied: isolated by shop/db-only-from-web "), "{denied}");
    assert_eq!(shop.daemon.cli(&["policy", "matrix", "--protocol", "tpc"]).code, 2);
    let list = shop.daemon.ok(&["policy", "list"]);
    assert!(
        list.contains("db-only-from-web   -      app=db    1       1               -              enforce"),
        "{list}"
    );
}

#[test]
fn many_equal_ports_are_one_group_of_the_matrix() {
    let daemon = Daemon::started();
    let ports: String = (0..40)
        .map(|number| {
            format!(
                "---\napiVersion: hostweave.dev/v1alpha1\nkind: Port\nmetadata: {{name: p{number}, namespace: shop, labels: {{app: {}}}}}\n",
                if number < 20 { "a" } else { "b" }
            )
        })
        .collect();
    let policy = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a, namespace: shop}\nspec:\n  \
                  podSelector: {matchLabels: {app: a}}\n  ingress: [{from: [{podSelector: {matchLabels: {app: a}}}]}]\n";
    assert_eq!(daemon.cli_with(&["apply", "-f", "-"], &(ports + policy)).code, 0);
    let json = daemon.json(&["policy", "matrix"]);
    let groups: Vec<&str> =
        json["groups"].as_array().unwrap().iter().map(|group| group["name"].as_str().unwrap()).collect();
    assert_eq!(groups, ["shop:app=a (20)", "shop:app=b (20)", "shop/file-0"]);
    let allows: Vec<bool> =
        json["pairs"].as_array().unwrap().iter().map(|pair| pair["allowed"].as_bool().unwrap()).collect();
    assert_eq!(allows, [true, true, true, false, true, true, false, true, true]);
}

#[test]
fn audit_mode_reports_and_does_not_enforce() {
    // The policy is stored, the ports stand in a file.
    let (ports, policy) = SHOP.rsplit_once("---\n").unwrap();
    let mut shop = Shop::new(ports);
    assert_eq!(shop.daemon.cli_with(&["apply", "-f", "-"], policy).code, 0);
    let done = shop.daemon.cli(&["policy", "audit", "shop/db-only-from-web", "on"]);
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (0, "NetworkPolicy shop/db-only-from-web only reports what it would deny\n")
    );
    shop.syn("cache-0", "db-0", 40_000, 5432, false);
    let audited = shop.observed(&["--verdict", "AUDIT"], 1);
    assert_eq!(audited[0]["flow"]["ingress_denied_by"][0]["name"], "db-only-from-web");
    let text = shop.daemon.ok(&["observe", "--verdict", "AUDIT"]);
    assert!(text.contains("new INGRESS AUDIT by shop/db-only-from-web"), "{text}");
    assert!(shop.daemon.ok(&["policy", "list", "-n", "shop"]).contains("audit"));
    let done = shop.daemon.cli(&["policy", "audit", "db-only-from-web", "on", "-n", "shop"]);
    assert!(done.stdout.contains("already"), "{}", done.stdout);
    shop.daemon.ok(&["policy", "audit", "db-only-from-web", "off", "-n", "shop"]);
    shop.syn("cache-0", "db-0", 40_001, 5432, false);
    shop.observed(&["--verdict", "DROPPED", "--protocol", "tcp"], 1);
    let yaml = shop.daemon.ok(&["get", "netpol", "db-only-from-web", "-n", "shop", "-o", "yaml"]);
    assert!(!yaml.contains("hostweave.dev/audit"), "{yaml}");
    assert_eq!(shop.daemon.cli(&["policy", "audit", "nothing", "on"]).code, 3);
}

#[test]
fn audit_of_a_policy_from_a_file_is_refused_with_the_file() {
    let shop = Shop::new(SHOP);
    let done = shop.daemon.cli(&["policy", "audit", "shop/db-only-from-web", "on"]);
    assert_eq!(done.code, 5);
    assert!(done.stderr.contains("20.yaml"), "{}", done.stderr);
}

#[test]
fn what_is_recommended_allows_what_was_seen_and_nothing_else() {
    let (ports, _) = SHOP.rsplit_once("---\n").unwrap();
    let mut shop = Shop::new(ports);
    for v6 in [false, true] {
        shop.syn("web-0", "db-0", 40_001, 5432, v6);
    }
    let path = shop.path("web-0", "cache-0", false);
    shop.send("web-0", &path.udp(5000, 53, b"ask"));
    shop.observed(&["--type", "new", "--not", "--protocol", "icmp"], 3);
    let yaml = shop.daemon.ok(&["policy", "recommend", "-n", "shop"]);
    assert_eq!(yaml, shop.daemon.ok(&["policy", "recommend", "-n", "shop"]), "the same log gives the same text");
    assert!(yaml.contains("psql") && yaml.contains("recommended-db"), "{yaml}");
    let done = shop.daemon.cli_with(&["apply", "-f", "-"], &yaml);
    assert_eq!((done.code, done.stderr.contains("Warning")), (0, false), "{}\n{yaml}", done.stderr);
    let text = shop.daemon.ok(&["policy", "matrix", "-n", "shop"]);
    let row =
        |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().split_whitespace().collect::<Vec<_>>();
    assert_eq!(row("shop/cache-0"), ["shop/cache-0", "all", "-", "-", "-"]);
    assert_eq!(row("shop/db-0"), ["shop/db-0", "-", "all", "-", "-"]);
    assert_eq!(row("shop/web-0"), ["shop/web-0", "udp/53", "tcp/5432", "-", "all"]);
    // And so decides the packet path.
    shop.daemon.ok(&["conntrack", "flush", "--all"]);
    let since = ["--since", "1h"];
    for v6 in [false, true] {
        shop.syn("web-0", "db-0", 41_000, 5432, v6);
        shop.syn("web-0", "db-0", 41_000, 5433, v6);
        shop.syn("cache-0", "db-0", 41_000, 5432, v6);
    }
    shop.observed(&[&since[..], &["--from-port", "41000", "--verdict", "FORWARDED"]].concat(), 2);
    shop.observed(&[&since[..], &["--from-port", "41000", "--verdict", "DROPPED"]].concat(), 4);
}

#[test]
fn events_of_ports_are_still_there() {
    let daemon = Daemon::started();
    daemon.ok(&["port", "add", "a"]);
    let text = daemon.ok(&["observe", "--type", "port", "--last", "20"]);
    assert!(text.contains("DaemonStarted") && text.contains("Port default/a"), "{text}");
    let done = daemon.cli(&["observe", "--type", "port", "--type", "drop"]);
    assert_eq!((done.code, done.stderr.contains("two lists")), (2, true), "{}", done.stderr);
    assert_eq!(daemon.cli(&["observe", "--type", "port", "--verdict", "DROPPED"]).code, 2);
    assert_eq!(daemon.cli(&["status", "-o", "compact"]).code, 2);
}

/// A host that denies by default, with a cluster policy, and connections that are soon forgotten.
const STRICT: &str = "\
---
apiVersion: hostweave.dev/v1alpha1
kind: HostConfig
metadata: {name: host-a}
spec:
  defaultPolicy: deny
  connections: {timeouts: {udpUnreplied: 1}}
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: web-out}
spec:
  tier: Admin
  priority: 7
  subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}}
  egress:
    - {name: no-smtp, action: Deny, to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 25}}}]}
    - {name: dns, action: Accept, to: [{namespaces: {}}], protocols: [{udp: {destinationPort: {number: 53}}}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: cache-open, namespace: shop}
spec:
  podSelector: {matchLabels: {app: cache}}
  ingress: [{}]
";

#[test]
fn np35_cn4_defaults_and_cluster_rules_are_named_and_connections_end() {
    let (ports, _) = SHOP.rsplit_once("---\n").unwrap();
    let mut shop = Shop::new(&(ports.to_owned() + STRICT));
    shop.syn("db-0", "cache-0", 40_000, 80, false);
    shop.syn("web-0", "cache-0", 40_001, 25, true);
    let path = shop.path("web-0", "cache-0", false);
    shop.send("web-0", &path.udp(5000, 53, b"ask"));
    let denied = |shop: &Shop, port: &str| {
        shop.observed(&["--verdict", "DROPPED", "--to-port", port], 1).remove(0)["flow"].take()
    };
    let default = denied(&shop, "80");
    assert_eq!((&default["traffic_direction"], &default["node_name"]), (&json!("EGRESS"), &json!("host-a")));
    assert_eq!(default["egress_denied_by"][0]["name"], "default-deny", "{default:#}");
    let smtp = &denied(&shop, "25")["egress_denied_by"][0];
    assert_eq!((&smtp["kind"], &smtp["name"]), (&json!("ClusterNetworkPolicy"), &json!("web-out")));
    assert_eq!(smtp["labels"][1], "hostweave:rule=no-smtp");
    let dns = &shop.observed(&["--type", "new", "--to-port", "53"], 1)[0]["flow"];
    assert_eq!(dns["egress_allowed_by"][0]["labels"][1], "hostweave:rule=dns");
    assert_eq!(dns["ingress_allowed_by"][0]["name"], "cache-open");
    let closed = &shop.observed(&["--type", "closed"], 1)[0]["flow"];
    assert_eq!((&closed["event_type"]["type"], &closed["l4"]["UDP"]["destination_port"]), (&json!(4), &json!(53)));
    assert!(shop.daemon.json(&["conntrack", "list"]).as_array().unwrap().is_empty());
    let text = shop.daemon.ok(&["observe", "--type", "closed"]);
    assert!(text.contains("shop/web-0:5000 -> shop/cache-0:53 closed FORWARDED (closed: expired; UDP)"), "{text}");
}

#[test]
fn connections_that_make_room_or_go_with_their_port_are_closed_in_the_log_with_their_names() {
    let (ports, _) = SHOP.rsplit_once("---\n").unwrap();
    let limited = ports.replace("mac: \"02:00:00:00:00:02\"", "mac: \"02:00:00:00:00:02\", limits: {flows: 16}");
    let mut shop = Shop::new(&limited);
    for v6 in [false, true] {
        let path = shop.path("web-0", "cache-0", v6);
        shop.send("web-0", &path.udp(5000, 53, b"ask"));
        let path = shop.path("cache-0", "db-0", v6);
        for port in 6000..6100 {
            shop.send("cache-0", &path.udp(port, 53, b"ask"));
        }
    }
    for version in ["4", "6"] {
        let filter = ["--type", "closed", "--from-pod", "shop/cache-0", "--ip-version", version];
        shop.daemon.until("a connection to be evicted", || {
            let text = shop.daemon.ok(&[&["observe", "--last", "5000"], &filter[..]].concat());
            text.contains("-> shop/db-0:53 closed FORWARDED (closed: evicted; UDP)")
        });
    }
    let without: Vec<&str> = limited.split("---\n").filter(|object| !object.contains("name: cache-0")).collect();
    shop.daemon.write("conf/20.yaml", &without.join("---\n"));
    shop.daemon.signal(nix::sys::signal::Signal::SIGHUP);
    shop.daemon.until("both connections of web-0 to end with the port of their receiver", || {
        let text = shop.daemon.ok(&["observe", "--last", "5000", "--type", "closed", "--from-pod", "shop/web-0"]);
        let gone = "shop/web-0:5000 -> shop/cache-0:53 closed FORWARDED (closed: port or address gone; UDP)";
        text.matches(gone).count() == 2
    });
}
