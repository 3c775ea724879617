//! Pools, Services and attached addresses, as people meet them; NAT, whois and doctor.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::support::Daemon;

const POOLS: &str = "\
apiVersion: hostweave.dev/v1alpha1
kind: AddressPool
metadata: {name: public-ord1}
spec: {type: public, addresses: [203.0.113.0/30, \"2001:db8:aa::/126\"]}
---
apiVersion: hostweave.dev/v1alpha1
kind: NatPool
metadata: {name: ord1}
spec: {addresses: [198.51.100.8/30, \"2001:db8:bb::1\"]}
";

/// CoreWeave's form, and a port that has the address.
fn attached(port: &str, service: &str) -> String {
    format!(
        "\
apiVersion: hostweave.dev/v1alpha1
kind: Port
metadata: {{name: {port}, namespace: shop, annotations: {{net.coreweave.cloud/attachLoadbalancerIP: {service}}}}}
---
apiVersion: v1
kind: Service
metadata:
  name: {service}
  namespace: shop
  annotations: {{service.beta.kubernetes.io/coreweave-load-balancer-type: public}}
spec:
  externalTrafficPolicy: Local
  ipFamilyPolicy: PreferDualStack
  type: LoadBalancer
  ports: [{{name: attach, port: 1, protocol: TCP, targetPort: attach}}]
  selector: {{coreweave.cloud/ignore: ignore}}
"
    )
}

#[test]
fn a_service_keeps_its_address_over_a_restart_and_says_who_has_it() {
    let mut daemon = Daemon::started();
    daemon.apply(POOLS);
    let dry = daemon.cli_with(&["apply", "-f", "-", "--dry-run=server"], &attached("a", "ip"));
    assert!(dry.code == 0 && dry.stdout.contains("Service shop/ip created (dry run)"), "{}{}", dry.stdout, dry.stderr);
    daemon.apply(&attached("other", "first"));
    daemon.apply(&attached("a", "ip"));
    daemon.ok(&["delete", "port", "shop/other"]);
    daemon.ok(&["delete", "svc", "shop/first"]);
    let ingress = |daemon: &Daemon| {
        let service = daemon.json(&["get", "svc", "ip", "-n", "shop"]);
        service["status"]["loadBalancer"]["ingress"].clone()
    };
    let expected =
        serde_json::json!([{"ip": "203.0.113.1", "ipMode": "VIP"}, {"ip": "2001:db8:aa::1", "ipMode": "VIP"}]);
    assert_eq!(ingress(&daemon), expected);
    // As after a crash: what a user was told is on disk.
    daemon.kill();
    daemon.start(&[]);
    assert_eq!(ingress(&daemon), expected);
    let port = daemon.json(&["get", "port", "shop/a"])["status"].clone();
    assert_eq!(port["addresses"][0], "203.0.113.1");
    assert_eq!(port["attached"]["service"], "shop/ip");
    let table = daemon.ok(&["get", "svc", "-n", "shop"]);
    assert!(table.contains("203.0.113.1,2001:db8:aa::1") && table.contains("all       shop/a"), "{table}");
    assert!(daemon.ok(&["describe", "svc", "shop/ip"]).contains("203.0.113.1"));
    assert!(daemon.ok(&["get", "addresspools"]).contains("public-ord1"));
    assert!(daemon.ok(&["get", "natpools"]).contains("1-8 of 512"));
}

#[test]
fn an_attached_address_that_the_network_cannot_have_is_warned_of_and_shown_as_nobodys() {
    let daemon = Daemon::started();
    let applied = daemon.cli_with(&["apply", "-f", "-"], POOLS);
    assert_eq!(applied.code, 0, "{}", applied.stderr);
    for (name, cidr, family, ipv4) in
        [("four", "10.9.0.0/24", "IPv6", true), ("six", "2001:db8:66::/64", "IPv4", false)]
    {
        let text = attached(name, &format!("{name}-ip")).replace("PreferDualStack", "RequireDualStack").replacen(
            "---",
            &format!(
                "spec: {{network: {name}}}\n---\napiVersion: hostweave.dev/v1alpha1\nkind: Network\nmetadata: {{name: {name}}}\n\
                 spec: {{cidrs: [\"{cidr}\"]}}\n---"
            ),
            1,
        );
        let done = daemon.apply(&text);
        let doubt = format!("is of no use: Network {name} has no {family} range");
        assert!(done.stderr.contains(&doubt), "{}", done.stderr);
        let service = daemon.json(&["get", "svc", &format!("{name}-ip"), "-n", "shop"]);
        let given: Vec<&str> = service["status"]["loadBalancer"]["ingress"]
            .as_array()
            .unwrap()
            .iter()
            .map(|address| address["ip"].as_str().unwrap())
            .collect();
        let (used, unused) = if ipv4 { (given[0], given[1]) } else { (given[1], given[0]) };
        let status = daemon.json(&["get", "port", &format!("shop/{name}")])["status"].clone();
        assert_eq!(status["attached"]["addresses"], serde_json::json!([used]));
        assert_eq!(status["attached"]["unused"], serde_json::json!([unused]));
        let own: Vec<&str> = status["addresses"].as_array().unwrap().iter().filter_map(|one| one.as_str()).collect();
        assert!(own.contains(&used) && !own.contains(&unused), "{own:?}");
        let conditions = service["status"]["conditions"].as_array().unwrap();
        let attached = conditions.iter().find(|condition| condition["type"] == "Attached").unwrap();
        assert_eq!((attached["status"].as_str(), attached["reason"].as_str()), (Some("False"), Some("NoSuchFamily")));
        let described = daemon.ok(&["describe", "svc", &format!("shop/{name}-ip")]);
        assert!(described.contains("is of no use"), "{described}");
        assert!(daemon.ok(&["whois", unused]).contains("nobody has it"), "{}", daemon.ok(&["whois", unused]));
        assert!(daemon.ok(&["whois", used]).contains(&format!("attached to port shop/{name}")));
    }
}

#[test]
fn what_contradicts_itself_is_refused_and_names_both() {
    let daemon = Daemon::started();
    let apply = |text: &str| daemon.cli_with(&["apply", "-f", "-"], text);
    assert_eq!(apply(&(POOLS.to_owned() + "---\n" + &attached("a", "ip"))).code, 0);
    let refused = |text: &str, words: &[&str]| {
        let done = apply(text);
        assert_eq!(done.code, 5, "{text}\n{}{}", done.stdout, done.stderr);
        for word in words {
            assert!(done.stderr.contains(word), "{word} is not in\n{}", done.stderr);
        }
    };
    // SEMANTICS DA3.
    let second = attached("b", "ip").split("---").next().unwrap().to_owned();
    refused(&second, &["Port shop/b", "Service shop/ip is attached to Port shop/a", "attachLoadbalancerIP"]);
    // SEMANTICS DA5.
    let pool = |addresses: &str| {
        POOLS.split("---").nth(1).unwrap().replace("ord1}", "other}").replace("198.51.100.8/30", addresses)
    };
    refused(&pool("203.0.113.2"), &["NatPool other", "AddressPool public-ord1"]);
    refused(&pool("10.64.0.9"), &["NatPool other", "Network default"]);
    // The address of a Service does not go away with a pool.
    let gone = daemon.cli(&["delete", "addresspool", "public-ord1"]);
    assert!(gone.code == 5 && gone.stderr.contains("203.0.113.0"), "{}{}", gone.stdout, gone.stderr);
    // A move between ports is one apply.
    let bare = "apiVersion: hostweave.dev/v1alpha1\nkind: Port\nmetadata: {name: a, namespace: shop}\n---\n";
    let done = apply(&(bare.to_owned() + &second));
    assert_eq!(done.code, 0, "{}{}", done.stdout, done.stderr);
    assert_eq!(daemon.json(&["get", "svc", "ip", "-n", "shop"])["status"]["port"], "shop/b");
}

#[test]
fn cw10_the_cidrs_of_nat_pools_are_listed_for_allow_lists() {
    let daemon = Daemon::started();
    assert_eq!(daemon.json(&["nat", "pools"]), serde_json::json!([]));
    let pool = |name: &str, addresses: &str| {
        format!(
            "apiVersion: hostweave.dev/v1alpha1\nkind: NatPool\nmetadata: {{name: {name}}}\nspec: {{addresses: [{addresses}]}}\n---\n"
        )
    };
    // Neighbouring ranges are one CIDR.
    let text = pool("a", "198.51.100.8-198.51.100.11, 198.51.100.12/30, 198.51.100.17, \"2001:db8:bb::/126\"")
        + &pool("b", "203.0.113.4/31");
    daemon.apply(&text);
    let expected = "198.51.100.8/29\n198.51.100.17/32\n2001:db8:bb::/126\n203.0.113.4/31\n";
    assert_eq!(daemon.ok(&["nat", "pools", "--cidr"]), expected);
    assert_eq!(daemon.ok(&["nat", "pools", "b", "--cidr"]), "203.0.113.4/31\n");
    assert_eq!(daemon.json(&["nat", "pools", "b", "--cidr"]), serde_json::json!(["203.0.113.4/31"]));
    assert_eq!(daemon.json(&["nat", "pools"])[0]["addresses"], 13);
    let table = daemon.ok(&["nat", "pools"]);
    assert!(table.contains("b      203.0.113.4/31"), "{table}");
    let missing = daemon.cli(&["nat", "pools", "c"]);
    assert!(missing.code == 3 && missing.stderr.contains("no NatPool \"c\""), "{}", missing.stderr);
}

#[test]
fn whois_and_nat_answer_or_say_what_to_ask() {
    let daemon = Daemon::started();
    let text = POOLS.to_owned() + "---\n" + &attached("a", "ip");
    daemon.apply(&text);
    for (asked, kind, name) in [
        ("203.0.113.0", "service", "shop/ip"),
        ("2001:db8:aa::", "service", "shop/ip"),
        ("203.0.113.1", "addressPool", "public-ord1"),
        ("198.51.100.9", "natPool", "ord1"),
        ("[2001:db8:bb::1]:40000", "natPool", "ord1"),
        ("10.64.0.1", "network", "default"),
        ("10.64.0.2", "port", "shop/file-0"),
    ] {
        let answer = daemon.json(&["whois", asked]);
        let owner = &answer["owners"][0];
        assert_eq!((owner["kind"].as_str(), owner["name"].as_str()), (Some(kind), Some(name)), "{asked}: {answer}");
        // Who has it now need not have had it then; of L4 ports it is known.
        let present = kind != "natPool";
        assert!(owner.get("at").is_none(), "{answer}");
        let (then, shown) = (daemon.json(&["whois", asked, "--at", "5m"]), daemon.cli(&["whois", asked, "--at", "5m"]));
        for owner in then["owners"].as_array().unwrap() {
            let marked = owner["at"] == "now" && owner["text"].as_str().unwrap().starts_with("now: ");
            assert_eq!(marked, owner["kind"] != "natPool", "{asked}: {then}");
        }
        assert_eq!(
            shown.stdout.contains("now: ") && shown.stderr.contains("need not have been"),
            present,
            "{}",
            shown.stdout
        );
        let future = daemon.json(&["whois", asked, "--at", "2999-01-01T00:00:00Z"]);
        assert!(future["owners"].as_array().unwrap().iter().all(|owner| owner.get("at").is_none()), "{future}");
    }
    let nobody = daemon.cli(&["whois", "192.0.2.1"]);
    assert!(nobody.code == 3 && nobody.stderr.contains("192.0.2.1 is nobody's"), "{}", nobody.stderr);
    assert!(daemon.ok(&["whois", "198.51.100.9:40000"]).contains("nobody has L4 port 40000"));
    assert_eq!(daemon.json(&["nat", "list"]), serde_json::json!([]));
    assert_eq!(daemon.json(&["nat", "stats"])["mappings"], 0);
    for place in ["198.51.100.9:40000", "[2001:db8:bb::1]:40000"] {
        for at in [&[][..], &["--at", "5m"]] {
            let done = daemon.cli(&[&["nat", "lookup", place], at].concat());
            assert_eq!(done.code, 3, "{}{}", done.stdout, done.stderr);
            assert!(done.stderr.contains("is of NatPool ord1"), "{}", done.stderr);
        }
    }
    assert_eq!(daemon.cli(&["nat", "lookup", "198.51.100.9"]).code, 2);
    assert_eq!(daemon.cli(&["nat", "lookup", "198.51.100.9:1", "--at", "noon"]).code, 2);
}

/// The time, in another second than any before: an address that goes from one port to another in one is told as both's.
fn later(daemon: &Daemon) -> String {
    let second = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    for _ in 0..2 {
        let begin = second();
        daemon.until("the next second", || second() != begin);
    }
    hostweave::observe::time::rfc3339_seconds(SystemTime::now() - Duration::from_secs(1))
}

#[test]
fn who_had_an_attached_address_is_known_when_it_moved_over_a_crash_and_when_all_is_deleted() {
    let mut daemon = Daemon::started();
    let bare = "apiVersion: hostweave.dev/v1alpha1\nkind: Port\nmetadata: {name: a, namespace: shop}\n---\n";
    let direct = attached("b", "ip");
    let nat =
        direct.replacen("attachLoadbalancerIP: ip", "attachLoadbalancerIP: ip, hostweave.dev/attach-mode: nat", 1);
    let mut times = Vec::new();
    for text in [POOLS.to_owned() + "---\n" + &attached("a", "ip"), bare.to_owned() + &direct, nat] {
        daemon.apply(&text);
        times.push(later(&daemon));
    }
    let two = ["203.0.113.0", "2001:db8:aa::"];
    let owners = |daemon: &Daemon, asked: &str, at: &str| daemon.json(&["whois", asked, "--at", at])["owners"].clone();
    let answers = |daemon: &Daemon, gone: bool| {
        let expected = [("shop/a", "direct", true), ("shop/b", "direct", true), ("shop/b", "nat", gone)];
        for (at, (port, mode, over)) in times.iter().zip(expected) {
            for asked in [two[0], two[1], "203.0.113.0:25", "[2001:db8:aa::]:25"] {
                let all = owners(daemon, asked, at);
                let owner = &all[0];
                let told = (owner["port"].as_str(), owner["mode"].as_str(), owner["name"].as_str());
                assert_eq!(told, (Some(port), Some(mode), Some("shop/ip")), "{asked} {at}: {all}");
                assert_eq!((&owner["pool"], &owner["network"]), (&json!("public-ord1"), &json!("default")), "{all}");
                assert_eq!(owner["gone"], gone && port == "shop/b", "{all}");
                assert_eq!((owner["until"].is_null(), &owner["untilAtLatest"]), (!over, &json!(false)), "{all}");
                // Who has it now is told besides, if that is another.
                let now: Vec<&serde_json::Value> =
                    all.as_array().unwrap().iter().filter(|owner| owner["at"] == "now").collect();
                assert_eq!(now.len(), usize::from(over && !gone), "{all}");
            }
        }
    };
    answers(&daemon, false);
    let shown = daemon.cli(&["whois", two[0], "--at", &times[2]]);
    assert!(shown.stdout.contains("attached 1:1 to port shop/b since ") && shown.stderr.is_empty(), "{}", shown.stderr);
    daemon.ok(&["delete", "port", "shop/b"]);
    daemon.ok(&["delete", "svc", "shop/ip"]);
    let after = later(&daemon);
    for restarted in [false, true] {
        if restarted {
            daemon.kill();
            daemon.start(&[]);
        }
        answers(&daemon, true);
        for address in two {
            let all = owners(&daemon, address, &after);
            assert!(all[0]["at"] == "now" && all[0]["kind"] == "addressPool", "{all}");
        }
    }
    // What changes while no daemon runs.
    let mut file = |port: &str| {
        daemon.kill();
        daemon.write("conf/20.yaml", &attached(port, "file-ip"));
        daemon.start(&[]);
        later(&daemon)
    };
    let (at_c, at_d) = (file("c"), file("d"));
    for address in two {
        let (c, d) = (owners(&daemon, address, &at_c), owners(&daemon, address, &at_d));
        assert_eq!(
            (&c[0]["port"], &c[0]["gone"], &c[0]["untilAtLatest"]),
            (&json!("shop/c"), &json!(true), &json!(true))
        );
        assert_eq!((&d[0]["port"], &d[0]["until"], d.as_array().unwrap().len()), (&json!("shop/d"), &json!(null), 1));
    }
}

#[test]
fn doctor_and_uplink_say_what_is_missing_and_what_to_do() {
    let mut daemon = Daemon::started();
    let findings = |daemon: &Daemon| -> Vec<serde_json::Value> {
        let done = daemon.cli(&["doctor", "-o", "json"]);
        let findings: Vec<serde_json::Value> = serde_json::from_str(&done.stdout).unwrap();
        let bad = findings.iter().any(|finding| finding["severity"] == "warning" || finding["severity"] == "error");
        assert_eq!(done.code, i32::from(bad), "{}{}", done.stdout, done.stderr);
        for finding in &findings {
            assert_eq!(finding["help"].is_string(), finding["severity"] != "ok", "{finding}");
        }
        findings
    };
    let error = |findings: &[serde_json::Value], check: &str, word: &str| {
        findings.iter().any(|finding| {
            finding["check"] == check
                && finding["severity"] == "error"
                && finding["message"].as_str().unwrap().contains(word)
        })
    };
    assert!(daemon.ok(&["status"]).contains("\nuplink: none\n"));
    let done = daemon.cli(&["uplink", "get"]);
    assert!(done.code == 3 && done.stderr.contains("HostConfig.spec.uplink"), "{}", done.stderr);
    assert!(!findings(&daemon).iter().any(|finding| finding["check"] == "uplink"), "nothing wants out");
    daemon.apply(POOLS);
    assert!(error(&findings(&daemon), "uplink", "NatPool ord1 needs an uplink"));
    // An interface that is not there: everything that follows is said.
    let host = "\
apiVersion: hostweave.dev/v1alpha1
kind: HostConfig
metadata: {name: h}
spec:
  uplink: {interface: hw-no-such-if, addresses: [198.51.100.2/24, \"2001:db8:9::2/64\"], gateways: [198.51.100.1], mtu: 1400}
";
    let done = daemon.cli_with(&["apply", "-f", "-"], host);
    assert_eq!(done.code, 0, "{}{}", done.stdout, done.stderr);
    let uplink = daemon.json(&["uplink", "get"]);
    assert_eq!((uplink["interface"].as_str(), uplink["link"].as_bool()), (Some("hw-no-such-if"), Some(false)));
    assert_eq!(uplink["gateways"][0]["state"], "unresolved");
    let text = daemon.ok(&["uplink", "get"]);
    assert!(text.contains("hw-no-such-if down") && text.contains("NAT addresses"), "{text}");
    let done = daemon.cli(&["status", "-o", "json"]);
    let status: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    let degraded: Vec<&str> = status["degraded"].as_array().unwrap().iter().filter_map(|one| one.as_str()).collect();
    let missing = "uplink: nothing passes hw-no-such-if: the interface does not exist";
    assert!(done.code == 1 && degraded == [missing], "{}", done.stdout);
    assert_eq!(status["uplink"]["gateways"], serde_json::json!({"up": 0, "total": 1}));
    let screen = daemon.cli(&["status"]);
    let line = "uplink: hw-no-such-if down (the interface does not exist)   routers: 0 of 1 answer\n";
    assert!(screen.code == 1 && screen.stdout.contains(line) && screen.stdout.contains(missing), "{}", screen.stdout);
    let found = findings(&daemon);
    assert!(error(&found, "uplink", "hw-no-such-if"), "{found:?}");
    let beyond =
        found.iter().find(|finding| finding["severity"] == "warning" && finding["check"] == "gateway").unwrap();
    assert!(beyond["message"].as_str().unwrap().contains("no IPv6 router"), "{beyond}");
    assert!(error(&found, "gateway", "198.51.100.1"), "{found:?}");
    let mtu = found.iter().find(|finding| finding["check"] == "mtu").unwrap();
    assert!(mtu["message"].as_str().unwrap().contains("network default has MTU 1500"), "{mtu}");
    assert!(daemon.ok(&["get", "network", "default", "-o", "yaml"]).contains("10.64.0.0/24"));
    daemon.kill();
    let done = daemon.cli(&["doctor"]);
    assert!(
        done.code == 1 && done.stdout.contains("no daemon answers") && done.stdout.contains("kernel"),
        "{}",
        done.stdout
    );
}
