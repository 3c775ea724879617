//! ClusterNetworkPolicy as packets meet it, SEMANTICS CN1 to CN7, for IPv4 and IPv6.

use hostweave_guest::frames::Path;

use crate::scene::{DENIED, PASSED, Scene};

/// One ClusterNetworkPolicy: `Admin 10 name`, and its rules.
fn cluster(head: &str, rules: &str) -> String {
    let [tier, priority, name] = head.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{head}") };
    format!(
        "---\napiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: {name}}}\n\
         spec: {{tier: {tier}, priority: {priority}, subject: {{namespaces: {{}}}}, {rules}}}\n"
    )
}

/// A NetworkPolicy that isolates `b` for ingress, with rules.
fn v1(rules: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: v1, namespace: test}}\n\
         spec: {{podSelector: {{matchLabels: {{app: b}}}}, ingress: {rules}}}\n"
    )
}

/// A rule about everything that comes from ports with a label.
fn from(action: &str, app: &str) -> String {
    format!(
        "{{action: {action}, from: [{{pods: {{namespaceSelector: {{}}, podSelector: {{matchLabels: {{app: {app}}}}}}}}}]}}"
    )
}

fn ingress(rules: &[String]) -> String {
    format!("ingress: [{}]", rules.join(", "))
}

#[test]
fn cn1_tiers_are_asked_in_order() {
    let mut scene = Scene::new(&["a", "b"]);
    let [accept, deny] = ["Accept", "Deny"].map(|action| ingress(&[from(action, "a")]));
    for (policies, fate) in [
        (cluster("Admin 1 deny", &deny) + &v1("[{}]"), DENIED),
        (cluster("Admin 1 accept", &accept) + &v1("[]"), PASSED),
        (v1("[{}]") + &cluster("Baseline 1 deny", &deny), PASSED),
        (cluster("Baseline 1 deny", &deny), DENIED),
        (cluster("Admin 1 accept", &accept) + &cluster("Baseline 1 deny", &deny), PASSED),
        (cluster("Baseline 1 accept", &accept) + &cluster("Admin 1 deny", &deny), DENIED),
    ] {
        scene.policies(&policies);
        assert_eq!(scene.udp(0, 1, 80), fate, "{policies}");
    }
}

#[test]
fn cn2_the_lower_priority_comes_first_and_equal_ones_by_name() {
    let mut scene = Scene::new(&["a", "b"]);
    let [accept, deny] = ["Accept", "Deny"].map(|action| ingress(&[from(action, "a")]));
    for tier in ["Admin", "Baseline"] {
        for (first, second, fate) in [
            ("9 z", "10 a", PASSED),
            ("0 z", "1000 a", PASSED),
            ("10 a", "10 b", PASSED),
            ("10 b", "10 a", DENIED),
            ("11 a", "10 b", DENIED),
        ] {
            scene.policies(
                &(cluster(&format!("{tier} {first}"), &accept) + &cluster(&format!("{tier} {second}"), &deny)),
            );
            assert_eq!(scene.udp(0, 1, 80), fate, "{tier}: accept {first}, deny {second}");
        }
    }
}

#[test]
fn cn3_the_first_rule_that_matches_counts() {
    let mut scene = Scene::new(&["a", "b", "c"]);
    let (accept, deny) = (from("Accept", "a"), "{action: Deny, from: [{namespaces: {}}]}".to_owned());
    scene.policies(&cluster("Admin 1 p", &ingress(&[accept.clone(), deny.clone()])));
    assert_eq!((scene.udp(0, 1, 80), scene.udp(2, 1, 80)), (PASSED, DENIED));
    scene.policies(&cluster("Admin 1 p", &ingress(&[deny, accept])));
    assert_eq!((scene.udp(0, 1, 80), scene.udp(2, 1, 80)), (DENIED, DENIED));
}

#[test]
fn cn4_pass_skips_the_rest_of_its_tier_and_no_more() {
    let mut scene = Scene::new(&["a", "b"]);
    let pass_deny = ingress(&[from("Pass", "a"), from("Deny", "a")]);
    let deny = ingress(&[from("Deny", "a")]);
    for (policies, fate) in [
        (cluster("Admin 1 p", &pass_deny), PASSED),
        (cluster("Admin 1 p", &pass_deny) + &cluster("Admin 2 later", &deny), PASSED),
        (cluster("Admin 2 p", &pass_deny) + &cluster("Admin 1 before", &deny), DENIED),
        (cluster("Admin 1 p", &pass_deny) + &v1("[]"), DENIED),
        (cluster("Admin 1 p", &pass_deny) + &cluster("Baseline 1 deny", &deny), DENIED),
        (cluster("Baseline 1 p", &pass_deny) + &cluster("Baseline 2 later", &deny), PASSED),
    ] {
        scene.policies(&policies);
        assert_eq!(scene.udp(0, 1, 80), fate, "{policies}");
    }
}

#[test]
fn cn5_baseline_is_not_reached_where_a_network_policy_selects() {
    let mut scene = Scene::new(&["a", "b", "c"]);
    let accept = ingress(&[from("Accept", "a")]);
    scene.policies(&(v1("[]") + &cluster("Baseline 1 accept", &accept)));
    assert_eq!(scene.udp(0, 1, 80), DENIED);
    let deny = ingress(&["{action: Deny, from: [{namespaces: {}}]}".to_owned()]);
    scene.policies(&(v1("[{from: [{podSelector: {matchLabels: {app: a}}}]}]") + &cluster("Baseline 1 deny", &deny)));
    assert_eq!((scene.udp(0, 1, 80), scene.udp(2, 1, 80)), (PASSED, DENIED));
    // Of another port, or of the other direction, Baseline decides.
    assert_eq!((scene.udp(0, 2, 80), scene.udp(1, 2, 80)), (DENIED, DENIED));
}

#[test]
fn cn6_without_a_match_it_passes_and_accept_covers_replies_and_related_errors() {
    let mut scene = Scene::new(&["a", "b", "c"]);
    let rules = ingress(&[from("Accept", "a"), from("Deny", "b")])
        + ", egress: [{action: Deny, to: [{pods: \
         {namespaceSelector: {}, podSelector: {matchLabels: {app: a}}}}]}]";
    scene.policies(&cluster("Admin 1 p", &rules));
    assert_eq!(scene.udp(2, 1, 80), PASSED, "no rule is about c");
    // `b` may begin nothing with `a`, and still answers it.
    assert_eq!(scene.udp(1, 0, 80), DENIED);
    assert_eq!(scene.both(0, 1, |path| path.udp(1_000, 80, b"ask")), PASSED);
    assert_eq!(scene.both(1, 0, |path| path.udp(80, 1_000, b"answer")), PASSED);
    let (there, back) = (scene.paths(0, 1), scene.paths(1, 0));
    for (there, back) in there.iter().zip(&back) {
        let quoted = &there.udp(1_000, 80, b"ask")[14..];
        let (kind, code) = if back.src.is_ipv4() { (3, 3) } else { (1, 4) };
        assert_eq!(scene.deliver(1, 0, back, &back.icmp(kind, code, [0; 4], quoted)), PASSED);
    }
}

#[test]
fn cn7_egress_networks_match_ports_of_the_cluster_and_icmp() {
    let mut scene = Scene::new(&["a", "b", "c"]);
    let addresses: Vec<String> = crate::support::addresses(&scene.host.desired.ports[1])
        .into_iter()
        .map(|address| format!("\"{address}/{}\"", if address.is_ipv4() { 32 } else { 128 }))
        .collect();
    let rule = format!("egress: [{{action: Deny, to: [{{networks: [{}]}}]}}]", addresses.join(", "));
    scene.policies(&cluster("Admin 1 p", &rule));
    let echo = |path: &Path| path.echo_request(7, 1, b"ping");
    assert_eq!((scene.udp(0, 1, 80), scene.both(0, 1, echo)), (DENIED, DENIED));
    assert_eq!((scene.udp(0, 2, 80), scene.both(0, 2, echo)), (PASSED, PASSED));
}
