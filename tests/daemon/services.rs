//! Services as people meet them: addresses that stay, what `get` shows, names, and what is refused.

use serde_json::{Value, json};

use crate::support::Daemon;

const OBJECTS: &str = "\
apiVersion: hostweave.dev/v1alpha1
kind: AddressPool
metadata: {name: private}
spec: {type: private, addresses: [192.0.2.0/24]}
---
apiVersion: hostweave.dev/v1alpha1
kind: Port
metadata: {name: a, namespace: shop, labels: {app: web}}
spec: {namedPorts: [{name: http, port: 8080}]}
---
apiVersion: hostweave.dev/v1alpha1
kind: Port
metadata: {name: b, namespace: shop, labels: {app: web}}
spec: {namedPorts: [{name: http, port: 9090}], adminState: down}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: v1
kind: Service
metadata: {name: front, namespace: shop}
spec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: all, namespace: shop}
spec: {clusterIP: None, selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: mail, namespace: shop}
spec: {type: ExternalName, externalName: web.shop.svc.cluster.local}
";

fn names(daemon: &Daemon, name: &str, kind: &str) -> Vec<String> {
    let answer = daemon.json(&["dns", "query", name, kind]);
    let mut data: Vec<String> = answer["answers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|answer| answer["data"].as_str().unwrap().to_owned())
        .collect();
    data.sort();
    data
}

#[test]
fn a_service_has_addresses_that_stay_and_is_shown_as_kubernetes_shows_it() {
    let mut daemon = Daemon::started();
    daemon.apply(OBJECTS);
    let service = |daemon: &Daemon, name: &str| daemon.json(&["get", "svc", name, "-n", "shop"]);
    let front = service(&daemon, "front");
    assert_eq!(front["status"]["loadBalancer"], json!({"ingress": [{"ip": "192.0.2.0", "ipMode": "VIP"}]}));
    assert_eq!(front["spec"]["ipFamilies"], json!(["IPv4"]));
    let web = service(&daemon, "web");
    assert_eq!(web["status"]["loadBalancer"], json!({}));
    assert_eq!(web["spec"]["type"], "ClusterIP");
    let addresses = web["spec"]["clusterIPs"].clone();
    assert_eq!(addresses.as_array().map(Vec::len), Some(2));
    assert_eq!(web["spec"]["clusterIP"], addresses[0]);
    let condition = |service: &Value, kind: &str| {
        let all = service["status"]["conditions"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|condition| condition["type"] == kind).unwrap()
    };
    assert_eq!(condition(&web, "AddressesAssigned")["status"], "True");
    let ready = condition(&web, "BackendsReady");
    // One has no guest, the other is down.
    assert_eq!((&ready["status"], &ready["reason"]), (&json!("False"), &json!("NotRunning")));
    assert_eq!(ready["message"], "0 of 2 backends are healthy; 1 not-ready; 1 stopped");
    assert_eq!(condition(&web, "BackendsInNetwork")["status"], "True");
    for condition in web["status"]["conditions"].as_array().unwrap() {
        assert!(condition["lastTransitionTime"].as_str().unwrap().ends_with('Z'), "{condition}");
        assert!(condition["observedGeneration"].as_u64().unwrap() > 0, "{condition}");
    }

    // What is shown may be applied again: nothing changes.
    for format in ["yaml", "json"] {
        let shown = daemon.ok(&["get", "svc", "web", "-n", "shop", "-o", format]);
        assert!(shown.contains("clusterIPs"), "{shown}");
        let done = daemon.apply(&shown);
        let said = done.stdout + &done.stderr;
        assert!(said.contains("Service shop/web unchanged"), "{said}");
    }
    // As after a crash: what a user was told is on disk.
    daemon.kill();
    daemon.start(&[]);
    assert_eq!(service(&daemon, "web")["spec"]["clusterIPs"], addresses);
    assert_eq!(service(&daemon, "front")["status"]["loadBalancer"], front["status"]["loadBalancer"]);
    // A Service that is deleted gives its addresses back.
    daemon.ok(&["delete", "svc", "shop/web"]);
    let asks = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: x}}\nspec: {{clusterIP: {}, ports: [{{port: 80}}]}}\n",
        addresses[0]
    );
    daemon.apply(&asks);
}

#[test]
fn services_are_listed_and_described_and_have_names() {
    let daemon = Daemon::started();
    daemon.apply(OBJECTS);
    let table = daemon.ok(&["service", "list", "-n", "shop"]);
    for part in ["NAME", "CLUSTER-IP", "80/TCP", "0/2", "192.0.2.0", "None", "web.shop.svc.cluster.local"] {
        assert!(table.contains(part), "{part}\n{table}");
    }
    assert_eq!(daemon.json(&["service", "list", "-n", "shop"]).as_array().map(Vec::len), Some(4));
    let text = daemon.ok(&["service", "describe", "shop/web"]);
    for part in ["web.shop.svc.cluster.local", "shop/a", "8080", "9090", "stopped", "not ready", "Events:"] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let web = daemon.json(&["service", "describe", "shop/web"])["service"].clone();
    let cluster: Vec<String> =
        web["clusterIPs"].as_array().unwrap().iter().map(|address| address.as_str().unwrap().to_owned()).collect();
    let endpoint = web["endpoints"].as_array().unwrap().iter().find(|endpoint| endpoint["port"] == 9090).unwrap();
    assert_eq!(endpoint["conditions"], json!({"ready": false, "serving": false, "terminating": false}));
    assert_eq!(endpoint["targetRef"], json!({"kind": "Port", "namespace": "shop", "name": "b"}));
    let missing = daemon.cli(&["service", "describe", "shop/wed"]);
    assert!(missing.code == 3 && missing.stderr.contains("did you mean web?"), "{}", missing.stderr);

    assert_eq!(names(&daemon, "web.shop.svc.cluster.local", "A"), cluster[..1]);
    assert_eq!(names(&daemon, "web.shop.svc.cluster.local", "AAAA"), cluster[1..]);
    assert_eq!(names(&daemon, &cluster[0], "PTR"), ["web.shop.svc.cluster.local."]);
    assert_eq!(names(&daemon, &cluster[1], "PTR"), ["web.shop.svc.cluster.local."]);
    assert_eq!(
        names(&daemon, "_http._tcp.web.shop.svc.cluster.local", "SRV"),
        ["0 100 80 web.shop.svc.cluster.local."]
    );
    // Nobody runs behind the headless one (SEMANTICS SV2, DN3).
    for name in ["all", "a.all", "file-0.all", "_http._tcp.all"] {
        let answer = daemon.cli(&["dns", "query", &format!("{name}.shop.svc.cluster.local"), "A"]);
        assert!((answer.stdout.clone() + &answer.stderr).contains("NXDOMAIN"), "{name}: {}", answer.stdout);
    }
    assert!(daemon.ok(&["service", "backends", "shop/all"]).contains("stopped"));
    // It may stand for all of them all the same, each under a name of its own and at its own number.
    let headless = OBJECTS.split("---\n").find(|object| object.contains("name: all,")).unwrap();
    daemon.apply(&headless.replace("clusterIP: None,", "clusterIP: None, publishNotReadyAddresses: true,"));
    assert_eq!(
        names(&daemon, "_http._tcp.all.shop.svc.cluster.local", "SRV"),
        ["0 100 8080 a.all.shop.svc.cluster.local.", "0 100 9090 b.all.shop.svc.cluster.local."]
    );
    // One family, as in Kubernetes.
    assert_eq!(daemon.cli(&["dns", "query", "a.all.shop.svc.cluster.local", "AAAA"]).code, 1);
    // One without that L4 port has an address all the same.
    assert_eq!(names(&daemon, "file-0.all.shop.svc.cluster.local", "A").len(), 1);
    assert_eq!(names(&daemon, "a.all.shop.svc.cluster.local", "A").len(), 1);
    assert!(names(&daemon, "mail.shop.svc.cluster.local", "A").contains(&cluster[0]));
    let owner = |address: &str| daemon.json(&["whois", address])["owners"][0].clone();
    let front = daemon.json(&["get", "svc", "front", "-n", "shop"]);
    assert_eq!((&owner(&cluster[0])["name"], &owner("192.0.2.0")["name"]), (&json!("shop/web"), &json!("shop/front")));
    assert_eq!(owner(front["spec"]["clusterIP"].as_str().unwrap())["network"], "default");
}

#[test]
fn what_services_cannot_have_is_refused_and_what_is_dubious_is_said() {
    let daemon = Daemon::started();
    daemon.apply(OBJECTS);
    let address = daemon.json(&["get", "svc", "web", "-n", "shop"])["spec"]["clusterIP"].clone();
    let service = |name: &str, spec: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{ports: [{{port: 80}}], {spec}}}\n"
        )
    };
    for (text, words) in [
        (service("x", &format!("clusterIP: {address}")), &["belongs to Service shop/web"][..]),
        (service("x", "clusterIP: 10.104.0.0"), &["is no IPv4 address for a Service"]),
        (
            service("x", "type: LoadBalancer, loadBalancerClass: hostweave.dev/load-balanced"),
            &["another load balancer's"],
        ),
        (service("x", "selector: {app: wbe}"), &["selects 0 ports of namespace shop (app=wbe)"]),
        (service("front", "type: LoadBalancer, loadBalancerClass: a/b"), &["loadBalancerClass cannot be changed"]),
    ] {
        let done = daemon.cli_with(&["apply", "-f", "-", "--dry-run=server"], &text);
        for word in words {
            assert!(done.stderr.contains(word), "{word} is not in\n{}{}", done.stdout, done.stderr);
        }
    }
}
