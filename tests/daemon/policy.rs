//! Policies through the command line: apply, get, describe, delete with their namespace.

use crate::support::Daemon;

const POLICY: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web-from-db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
    - from: [{podSelector: {matchLabels: {app: db}}}]
      ports: [{port: 80, endPort: 89}]
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: no-smtp, annotations: {hostweave.dev/audit: \"on\"}}
spec:
  tier: Baseline
  priority: 7
  subject: {namespaces: {}}
  egress: [{name: smtp, action: Deny, to: [{networks: [0.0.0.0/0]}], protocols: [{tcp: {destinationPort: {number: 25}}}]}]
";

#[test]
fn policies_are_shown_in_tables_and_in_words() {
    let daemon = Daemon::started();
    let done = daemon.cli_with(&["apply", "-f", "-"], POLICY);
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (0, "NetworkPolicy shop/web-from-db created\nClusterNetworkPolicy no-smtp created\n"),
        "{}",
        done.stderr
    );
    assert_eq!(
        daemon.ok(&["get", "netpol", "-A"]),
        "NAMESPACE   NAME          POD-SELECTOR   TYPES     MODE      PORTS\n\
         shop        web-from-db   app=web        Ingress   enforce   1\n"
    );
    assert_eq!(
        daemon.ok(&["get", "cnp"]),
        "NAME      TIER       PRIORITY   SUBJECT                         MODE    PORTS\n\
         no-smtp   Baseline   7          every port of every namespace   audit   1\n"
    );
    let text = daemon.ok(&["describe", "networkpolicy", "web-from-db", "-n", "shop"]);
    for line in [
        "Origin:       applied at run time\n",
        "Selects:      1 port: shop/file-0\n",
        "Ingress: isolated; any of these rules allows\n  \
         1. from ports app=db of this namespace, on TCP 80-89 (applied at run time)\n",
        "Egress: not isolated by this policy\n",
        "Events:\n",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    let text = daemon.ok(&["describe", "cnp", "no-smtp"]);
    assert!(text.contains("Ingress: no rules\n") && text.contains("1. smtp: Deny to 0.0.0.0/0, on TCP 25"), "{text}");
    let namespaces = daemon.ok(&["get", "ns"]);
    assert!(namespaces.contains("shop      1       1          allow"), "{namespaces}");

    let yaml = daemon.ok(&["get", "netpol/web-from-db", "-n", "shop", "-o", "yaml"]);
    let done = daemon.cli_with(&["apply", "-f", "-"], &yaml);
    assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("NetworkPolicy shop/web-from-db unchanged\n", ""));
    let json = daemon.json(&["get", "netpol", "web-from-db", "-n", "shop"]);
    assert_eq!(json["status"]["policyTypes"], serde_json::json!(["Ingress"]));
}

#[test]
fn np9_a_namespace_takes_its_policies_with_it() {
    let mut daemon = Daemon::started();
    let lab = "apiVersion: v1\nkind: Namespace\nmetadata: {name: lab}\n---\n".to_owned()
        + &POLICY.replace("namespace: shop", "namespace: lab")
        + "---\napiVersion: hostweave.dev/v1alpha1\nkind: Port\nmetadata: {name: a, namespace: lab, labels: {app: web}}\n";
    let done = daemon.cli_with(&["apply", "-f", "-"], &lab);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let done = daemon.cli(&["delete", "ns", "lab"]);
    assert_eq!(done.code, 5, "{}", done.stdout);
    assert!(done.stderr.contains("Namespace lab still has 1 port: lab/a"), "{}", done.stderr);
    assert!(done.stderr.contains("hostweave port delete lab/a"), "{}", done.stderr);
    daemon.ok(&["port", "delete", "lab/a"]);
    assert_eq!(
        daemon.ok(&["delete", "ns", "lab"]),
        "Namespace lab deleted\nNetworkPolicy lab/web-from-db deleted with its namespace\n"
    );
    assert_eq!(daemon.cli(&["get", "netpol", "lab/web-from-db"]).code, 3);
    daemon.ok(&["get", "cnp", "no-smtp"]);
    assert_eq!(daemon.stop(), 0);
    daemon.start(&[]);
    assert_eq!(daemon.cli(&["get", "netpol", "lab/web-from-db"]).code, 3);
}

#[test]
fn np9_a_namespace_that_leaves_the_files_takes_stored_policies_with_it() {
    let mut daemon = Daemon::started();
    let file = "apiVersion: v1\nkind: Namespace\nmetadata: {name: lab}\n";
    daemon.write("conf/20.yaml", file);
    daemon.signal(nix::sys::signal::Signal::SIGHUP);
    daemon.until("the namespace is there", || daemon.cli(&["get", "ns", "lab"]).code == 0);
    for stopped in [false, true] {
        let done = daemon.cli_with(&["apply", "-f", "-"], &POLICY.replace("namespace: shop", "namespace: lab"));
        assert_eq!(done.code, 0, "{}", done.stderr);
        if stopped {
            assert_eq!(daemon.stop(), 0);
        }
        daemon.write("conf/20.yaml", "");
        if stopped {
            daemon.start(&[]);
        } else {
            daemon.signal(nix::sys::signal::Signal::SIGHUP);
        }
        daemon.until("the policy is gone", || daemon.cli(&["get", "netpol", "lab/web-from-db"]).code == 3);
        daemon.write("conf/20.yaml", file);
        daemon.signal(nix::sys::signal::Signal::SIGHUP);
        daemon.until("the namespace is back", || daemon.cli(&["get", "ns", "lab"]).code == 0);
        assert_eq!(daemon.cli(&["get", "netpol", "lab/web-from-db"]).code, 3);
    }
}

#[test]
fn what_is_wrong_with_a_policy_is_said_at_its_line_and_nothing_is_applied() {
    let daemon = Daemon::started();
    let file = daemon.write("policy.yaml", &POLICY.replace("port: 80,", "port: 80, protocol: tpc,"));
    let done = daemon.cli(&["apply", "-f", file.to_str().unwrap()]);
    assert_eq!(done.code, 5);
    for part in [
        "NetworkPolicy shop/web-from-db: spec.ingress[0].ports[0].protocol \"tpc\" is not one of TCP, UDP, SCTP",
        "policy.yaml:8:36",
        "did you mean TCP?",
        "nothing was applied; 1 other object in this file is valid. See: hostweave explain \
         NetworkPolicy.spec.ingress.ports.protocol",
    ] {
        assert!(done.stderr.contains(part), "{part}\n{}", done.stderr);
    }
    assert_eq!(daemon.cli(&["get", "cnp", "no-smtp"]).code, 3);
    // A warning concerns what was asked for, and does not come again with everything else.
    let typo = POLICY.replace("{app: web}", "{app: wbe}");
    let done = daemon.cli_with(&["apply", "-f", "-"], &typo);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(
        done.stderr.starts_with(
            "Warning: policy shop/web-from-db selects 0 ports (podSelector app=wbe)\n  \
             help: labels in namespace shop: app=web (1 port). Did you mean app=web?\n"
        ),
        "{}",
        done.stderr
    );
    let done = daemon.cli(&["port", "add", "other"]);
    assert!(!done.stderr.contains("selects 0 ports"), "{}", done.stderr);
}
