//! A whole report, with names that somebody would know again.

use std::net::IpAddr;

use serde_json::json;

use super::*;

/// What must not be found in a redacted report.
const ORIGINAL: [&str; 27] = [
    "shop",
    "web-0",
    "frontend",
    "acme",
    "tier",
    "gold",
    "corp-net",
    "eth7",
    "uplinkpool",
    "box1",
    "jane",
    "10.64.0.12",
    "10.64.0.0",
    "10.64.0.1",
    "2001:db8:64::c",
    "2001:db8:64::",
    "198.51.100.9",
    "02:00:0a:40:00:0c",
    "edge-17",
    "10-64-0-12",
    "2001-db8-64--c",
    "c.0.0.0",
    "12.0.64.10",
    "likes spaces",
    "hunter22",
    "intranet.example",
    "20-shop",
];

fn documents() -> Vec<Document> {
    let port = json!([{"origin": "/srv/jane/20-shop.yaml:9", "object": {
        "apiVersion": "hostweave.dev/v1alpha1", "kind": "Port",
        "metadata": {"namespace": "shop", "name": "web-0", "labels": {"app": "frontend", "acme/tier": "gold"},
            "annotations": {"acme/owner": "likes spaces, and jane"}},
        "spec": {"network": "corp-net", "backend": {"tap": {"name": "eth7", "netns": "/run/netns/box1"}},
            "limits": {"flows": 512}, "metadata": {"userData": "pw: hunter22"}, "state": "allow"},
        "status": {"state": "running", "addresses": ["10.64.0.12", "2001:db8:64::c"], "mac": "02:00:0a:40:00:0c",
            "socketPath": "/run/hostweave/ports/shop.web-0.sock"},
    }}]);
    let network = json!([{"origin": "applied at run time", "object": {"kind": "Network", "metadata": {"name": "corp-net"},
        "spec": {"cidrs": ["10.64.0.0/16", "2001:db8:64::/64"], "egress": {"ipv4": "nat"}},
        "status": {"gateways": ["10.64.0.1"], "ports": 1}}}]);
    let pool = json!([{"object": {"kind": "NatPool", "metadata": {"name": "uplinkpool"},
        "spec": {"addresses": ["198.51.100.9/32"], "domain": "intranet.example"}}}]);
    let log = "2026-11-26T15:30:01.120334Z INFO Port shop/web-0 created (/srv/jane/20-shop.yaml:9) ip=10.64.0.12:8080\n\
               edge-17 asks 10-64-0-12.shop.port.cluster.local and 2001-db8-64--c.shop, [2001:db8:64::c]:443 pw: hunter22\n\
               c.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.4.6.0.0.8.b.d.0.1.0.0.2.ip6.arpa 12.0.64.10.in-addr.arpa\n\
               02:00:0a:40:00:0c is web-0's, shop-keeper; corp-net 10.64.0.0/16, webster is nobody's\n";
    vec![
        Document::json("objects/ports.json", port),
        Document::json("objects/networks.json", network),
        Document::json("objects/natpools.json", pool),
        Document::json("stats.json", json!({"ports": {"shop/web-0": {"dropped": {"policy_denied": 3}}}, "app": 1})),
        Document::text("metrics.txt", "hostweave_port_state{port=\"shop/web-0\",state=\"running\"} 1\n"),
        Document::text("log.txt", log),
    ]
}

fn redacted() -> Vec<Document> {
    finished(
        documents(),
        &["a port: shop/web-0 is gone".to_owned()],
        true,
        &["edge-17".to_owned(), "/srv/jane".to_owned()],
    )
}

#[test]
fn nothing_of_the_original_is_in_a_redacted_report() {
    let all: String = redacted().iter().map(Document::to_text).collect();
    for original in ORIGINAL {
        assert!(!all.contains(original), "{original} is in\n{all}");
    }
    for kept in [
        "policy_denied",
        "running",
        "\"nat\"",
        "hostweave_port_state",
        "cluster.local",
        "/run/hostweave/ports/",
        "512",
        "2026-11-26T15:30:01.120334Z",
    ] {
        assert!(all.contains(kept), "{kept} is not in\n{all}");
    }
}

#[test]
fn the_same_is_always_replaced_by_the_same() {
    let report = redacted();
    let find = |name: &str| report.iter().find(|document| document.name == name).unwrap();
    let Body::Json(ports) = &find("objects/ports.json").body else { panic!("JSON") };
    let object = &ports[0]["object"];
    let path = format!(
        "{}/{}",
        object["metadata"]["namespace"].as_str().unwrap(),
        object["metadata"]["name"].as_str().unwrap()
    );
    assert_eq!(path, "ns-1/port-1");
    assert!(find("metrics.txt").to_text().contains(&format!("port=\"{path}\"")));
    assert!(find("stats.json").to_text().contains(&format!("\"{path}\"")));
    assert!(find("README.txt").to_text().contains(&format!("a port: {path} is gone")));
    assert_eq!(object["status"]["socketPath"], "/run/hostweave/ports/ns-1.port-1.sock");
    let log = find("log.txt").to_text();
    let address = object["status"]["addresses"][0].as_str().unwrap();
    assert!(log.contains(&format!("ip={address}:8080")) && log.contains(&address.replace('.', "-")), "{log}");
    // The structure of the network is kept: the address lies in the network, and so does the gateway.
    let Body::Json(networks) = &find("objects/networks.json").body else { panic!("JSON") };
    let cidr: ipnet::IpNet = networks[0]["object"]["spec"]["cidrs"][0].as_str().unwrap().parse().unwrap();
    assert_eq!((cidr, cidr.prefix_len()), (cidr.trunc(), 16));
    for text in [address, networks[0]["object"]["status"]["gateways"][0].as_str().unwrap()] {
        assert!(cidr.contains(&text.parse::<IpAddr>().unwrap()), "{text} is not in {cidr}");
    }
    assert_eq!(networks[0]["object"]["metadata"]["name"], object["spec"]["network"]);
    assert!(log.contains("webster is nobody's") && log.contains("-keeper"), "only whole words are names: {log}");
}

#[test]
fn a_short_prefix_never_comes_out_as_it_was() {
    // Eight free bits: one key in 256 leaves each as it is, and some other the one in the place of the other.
    let both = json!([{"object": {"kind": "Network", "metadata": {"name": "n"}, "spec": {"cidrs": ["192.168.7.0/24", "192.168.9.0/24"]}}}]);
    for _ in 0..300 {
        let documents = vec![Document::json("objects/networks.json", both.clone())];
        let text = Redactor::new(&documents, &[]).all(documents)[0].to_text();
        assert!(!text.contains("192.168.7.0/24") && !text.contains("192.168.9.0/24"), "{text}");
    }
}

proptest::proptest! {
    #[test]
    fn whatever_stands_around_them_names_and_addresses_are_replaced(before in "\\PC*", after in "\\PC*") {
        let redactor = Redactor::new(&documents(), &[]);
        let log = Document::text("log.txt", format!("{before} shop/web-0,[2001:db8:64::c]:443 10.64.0.12/16 {after}"));
        let text = redactor.all(vec![log])[0].to_text();
        for original in ["shop/web-0", "2001:db8:64::c", " 10.64.0.12/16 "] {
            proptest::prop_assert!(!text.contains(original), "{} is in {}", original, text);
        }
    }
}

#[test]
fn without_redaction_only_secrets_are_missing() {
    let report = finished(documents(), &[], false, &[]);
    let all: String = report.iter().map(Document::to_text).collect();
    assert!(all.contains("10.64.0.12") && all.contains("likes spaces") && !all.contains("hunter22"));
    assert!(report[0].name == "README.txt" && !report[0].to_text().contains("Not in it"));
}
