//! NetworkPolicy and ClusterNetworkPolicy: what is refused and where, and what the compiler is given.

use hostweave_policy::model::{NetworkPolicy, Operator, Peer, PortMatch, Protocol};

use super::super::policies::{dubious, selected, spec};
use super::*;
use crate::config::checked::Spec;
use crate::fabric::spec::PolicySpec;

pub fn policy(spec: &str) -> String {
    format!("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p}}\nspec: {spec}\n")
}

/// A policy whose only ingress rule is `rule`.
fn rule(rule: &str) -> String {
    policy(&format!("{{podSelector: {{}}, ingress: [{rule}]}}"))
}

fn peer(peer: &str) -> String {
    rule(&format!("{{from: [{peer}]}}"))
}

fn l4(port: &str) -> String {
    rule(&format!("{{ports: [{port}]}}"))
}

pub fn cluster(spec: &str) -> String {
    format!(
        "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: c}}\nspec: {{tier: Admin, priority: 1, {spec}}}\n"
    )
}

pub const EVERYONE: &str = "subject: {namespaces: {}}";

pub fn egress(rule: &str) -> String {
    cluster(&format!("{EVERYONE}, egress: [{rule}]"))
}

/// The one NetworkPolicy of a text, as the compiler gets it.
pub fn model(text: &str) -> Arc<NetworkPolicy> {
    let policies = model_spec(text).policies;
    assert_eq!(policies.len(), 1, "{text}");
    Arc::clone(&policies[0])
}

pub fn model_spec(text: &str) -> PolicySpec {
    let (set, _) = validate(text).unwrap_or_else(|problems| panic!("{text}\n{problems}"));
    spec(&set)
}

/// Whether ingress and egress are isolated, by the number of rules.
fn isolated(text: &str) -> (Option<usize>, Option<usize>) {
    let policy = model(text);
    (policy.ingress.as_ref().map(Vec::len), policy.egress.as_ref().map(Vec::len))
}

/// Message, label and help of the first problem.
pub fn first(text: &str) -> (String, String, String) {
    let diagnostics = match validate(text) {
        Ok((set, mut warnings)) => {
            warnings.extend(dubious(&set, set.iter().map(|(key, _)| key)));
            warnings
        }
        Err(problems) => problems.0,
    };
    let diagnostic = diagnostics.into_iter().next().unwrap_or_else(|| panic!("nothing is wrong with {text}"));
    let label = diagnostic.place.map(|place| place.label).unwrap_or_default();
    (diagnostic.message, label, diagnostic.help.unwrap_or_default())
}

#[test]
fn policies_that_are_refused() {
    check(&[
        (policy("{}"), &["missing_field 4 spec"]),
        (policy("{podSelector: null}"), &["missing_field 4 podSelector"]),
        (policy("{podSelector: all}"), &["wrong_type 4 all"]),
        (policy("{podselector: {}}"), &["unknown_field 4 podselector", "missing_field 4 spec"]),
        (policy("{podSelector: {}, policyTypes: [Inngress]}"), &["unknown_value 4 Inngress"]),
        (policy("{podSelector: {}, policyTypes: [Ingress, Egress, Egress]}"), &["out_of_range 4 policyTypes"]),
        (policy("{podSelector: {app: db}}"), &["unknown_field 4 app"]),
        (policy("{podSelector: {matchLabels: {-x: a}}}"), &["invalid_label 4 -x"]),
        (policy("{podSelector: {matchLabels: {x: a b}}}"), &["invalid_label 4 a b"]),
        (policy("{podSelector: {matchLabels: {x: 1}}}"), &["wrong_type 4 1"]),
        (policy("{podSelector: {matchExpressions: [{key: x, operator: Is}]}}"), &["unknown_value 4 Is"]),
        (policy("{podSelector: {matchExpressions: [{key: x, operator: In}]}}"), &["missing_field 4 In"]),
        (
            policy("{podSelector: {matchExpressions: [{key: x, operator: NotIn, values: []}]}}"),
            &["missing_field 4 NotIn"],
        ),
        (
            policy("{podSelector: {matchExpressions: [{key: x, operator: Exists, values: [a]}]}}"),
            &["conflict 4 values"],
        ),
        (policy("{podSelector: {matchExpressions: [{key: a/b/c, operator: Exists}]}}"), &["invalid_label 4 a/b/c"]),
        (policy("{podSelector: {matchExpressions: [{operator: Exists}]}}"), &["missing_field 4 {"]),
        (
            policy("{podSelector: {matchExpressions: [{key: x, operator: In, values: [a, b c]}]}}"),
            &["invalid_label 4 b c"],
        ),
        (peer("{}"), &["missing_field 4 {"]),
        (peer("{podSelector: null}"), &["missing_field 4 {"]),
        (peer("{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}"), &["conflict 4 ipBlock"]),
        (peer("{namespaceSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}"), &["conflict 4 ipBlock"]),
        (peer("{ipBlock: {}}"), &["missing_field 4 ipBlock"]),
        (peer("{ipBlock: {cidr: 10.0.0.1}}"), &["invalid_cidr 4 10.0.0.1"]),
        (peer("{ipBlock: {cidr: '10.0.0.0/33'}}"), &["invalid_cidr 4 '10.0.0.0/33'"]),
        (peer("{ipBlock: {cidr: '::ffff:10.0.0.0/104'}}"), &["invalid_cidr 4 '::ffff:10.0.0.0/104'"]),
        (peer("{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}"), &["invalid_cidr 4 10.0.0.0/8"]),
        (peer("{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/9]}}"), &["invalid_cidr 4 11.0.0.0/9"]),
        (peer("{ipBlock: {cidr: 10.0.0.0/8, except: [0.0.0.0/0]}}"), &["invalid_cidr 4 0.0.0.0/0"]),
        (peer("{ipBlock: {cidr: 10.0.0.0/8, except: ['2001:db8::/64']}}"), &["invalid_cidr 4 '2001:db8::/64'"]),
        (peer("{ipBlock: {cidr: '2001:db8::/32', except: ['2001:db9::/48']}}"), &["invalid_cidr 4 '2001:db9::/48'"]),
        (l4("{port: 5432, protocol: tpc}"), &["unknown_value 4 tpc"]),
        (l4("{port: 5432, protocol: ICMP}"), &["unknown_value 4 ICMP"]),
        (l4("{port: 0}"), &["out_of_range 4 0"]),
        (l4("{port: 65536}"), &["out_of_range 4 65536"]),
        (l4("{port: -1}"), &["wrong_type 4 -1"]),
        (l4("{port: '80'}"), &["invalid_name 4 '80'"]),
        (l4("{port: Http}"), &["invalid_name 4 Http"]),
        (l4("{port: sixteen-letters-}"), &["invalid_name 4 sixteen-letters-"]),
        (rule("{form: []}"), &["unknown_field 4 form"]),
        (rule("{to: []}"), &["unknown_field 4 to"]),
        (policy("{podSelector: {}}").replace("{name: p}", "{name: p, namespace: shpo}"), &["not_found 3 shpo"]),
    ]);
}

#[test]
fn np16_end_port_needs_a_number_that_is_not_above_it() {
    check(&[
        (l4("{port: 81, endPort: 80}"), &["out_of_range 4 80"]),
        (l4("{port: http, endPort: 80}"), &["conflict 4 endPort"]),
        (l4("{endPort: 80}"), &["conflict 4 endPort"]),
        (l4("{port: 80, endPort: 70000}"), &["out_of_range 4 70000"]),
        (l4("{port: 80, endPort: http}"), &["wrong_type 4 http"]),
    ]);
    let ports = "{port: 80, endPort: 80}, {port: 1, endPort: 65535, protocol: UDP}, {port: 9}, {protocol: SCTP}, {}, {port: http}";
    let policy = model(&l4(ports));
    let ports = &policy.ingress.as_ref().unwrap()[0].ports;
    let expected = [
        PortMatch::Range(Protocol::Tcp, 80, 80),
        PortMatch::Range(Protocol::Udp, 1, 65535),
        PortMatch::Range(Protocol::Tcp, 9, 9),
        PortMatch::Protocol(Protocol::Sctp),
        PortMatch::Protocol(Protocol::Tcp),
        PortMatch::Named(Protocol::Tcp, "http".to_owned()),
    ];
    assert_eq!(*ports, expected);
}

#[test]
fn messages_say_what_where_why_and_what_to_write() {
    let cases = [
        (
            l4("{port: 5432, protocol: tpc}"),
            "spec.ingress[0].ports[0].protocol \"tpc\" is not one of TCP, UDP, SCTP",
            "did you mean TCP?",
            "See: hostweave explain NetworkPolicy.spec.ingress.ports.protocol",
        ),
        (
            l4("{port: '80'}"),
            "spec.ingress[0].ports[0].port \"80\" must contain at least one letter",
            "not a valid name",
            "Write 80 without quotes: in quotes it is a name",
        ),
        (
            l4("{port: 81, endPort: 80}"),
            "spec.ingress[0].ports[0].endPort 80 is below spec.ingress[0].ports[0].port 81",
            "81 to 65535",
            "",
        ),
        (
            policy("{}"),
            "field spec.podSelector is missing",
            "podSelector is required here",
            "Write podSelector: {} to select every port",
        ),
        (
            peer("{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/9]}}"),
            "spec.ingress[0].from[0].ipBlock.except[0] 11.0.0.0/9 is not inside cidr (10.0.0.0/8)",
            "not a part of cidr",
            "Each except must be a range inside cidr, smaller than it",
        ),
        (
            peer("{ipBlock: {cidr: 192.0.2.7}}"),
            "spec.ingress[0].from[0].ipBlock.cidr \"192.0.2.7\" is not a CIDR",
            "not a CIDR",
            "For one address, write 192.0.2.7/32",
        ),
        (
            peer("{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}"),
            "spec.ingress[0].from[0].ipBlock stands beside a selector; an element has either",
            "not with a selector",
            "Write two elements: one with the selectors, one with ipBlock",
        ),
        (
            egress("{action: Accept, to: [{domainNames: ['*.example.com']}]}"),
            "field spec.egress[0].to[0].domainNames is not supported yet by this version: it resolves no names of destinations",
            "not supported yet",
            "Write networks with the addresses instead",
        ),
        (
            egress("{action: Acept, to: [{namespaces: {}}]}"),
            "spec.egress[0].action \"Acept\" is not one of Accept, Deny, Pass",
            "did you mean Accept?",
            "See: hostweave explain ClusterNetworkPolicy.spec.egress.action",
        ),
    ];
    for (text, message, label, help) in cases {
        let help =
            if help.is_empty() { "nothing was applied".to_owned() } else { format!("nothing was applied. {help}") };
        assert_eq!(first(&text), (message.to_owned(), label.to_owned(), help), "{text}");
    }
}

#[test]
fn np32_a_field_is_used_ignored_with_a_warning_or_refused() {
    let whole = policy("{podSelector: {}}") + "status: {}\n";
    check(&[
        (whole, &["ignored_field 5 status"]),
        (
            policy("{podSelector: {}}").replace("{name: p}", "{name: p, creationTimestamp: null, managedFields: []}"),
            &["ignored_field 3 creationTimestamp", "ignored_field 3 managedFields"],
        ),
        (policy("{podSelector: {}, priority: 1}"), &["unknown_field 4 priority"]),
        (
            policy("{podSelector: {}}").replace("{name: p}", "{name: p, ownerReferences: []}"),
            &["refused_field 3 ownerReferences"],
        ),
        (egress("{action: Deny, to: [{namespaces: {}}], ports: []}"), &["refused_field 4 ports"]),
    ]);
}

#[test]
fn np3_policy_types_default_to_ingress_and_to_egress_with_a_rule() {
    for (text, expected) in [
        ("{podSelector: {}}", (Some(0), None)),
        ("{podSelector: {}, policyTypes: null}", (Some(0), None)),
        ("{podSelector: {}, policyTypes: []}", (Some(0), None)),
        ("{podSelector: {}, egress: []}", (Some(0), None)),
        ("{podSelector: {}, egress: null}", (Some(0), None)),
        ("{podSelector: {}, egress: [{}]}", (Some(0), Some(1))),
        ("{podSelector: {}, ingress: [{}], egress: [{}, {}]}", (Some(1), Some(2))),
        ("{podSelector: {}, policyTypes: [Ingress, Egress]}", (Some(0), Some(0))),
    ] {
        assert_eq!(isolated(&policy(text)), expected, "{text}");
    }
}

#[test]
fn np4_egress_alone_leaves_ingress_untouched() {
    assert_eq!(isolated(&policy("{podSelector: {}, policyTypes: [Egress]}")), (None, Some(0)));
    // Rules of a direction that is not isolated have no effect, which is said.
    let text = policy("{podSelector: {}, policyTypes: [Egress], ingress: [{}]}");
    assert_eq!(isolated(&text), (None, Some(0)));
    check(&[(text, &["no_effect 4 ingress"])]);
}

#[test]
fn np5_an_empty_selector_selects_every_port_of_the_namespace() {
    for text in [
        "{podSelector: {}}",
        "{podSelector: {matchLabels: null, matchExpressions: null}}",
        "{podSelector: {matchLabels: {}, matchExpressions: []}}",
    ] {
        assert!(model(&policy(text)).selector.requirements.is_empty(), "{text}");
    }
}

#[test]
fn np7_every_operator_is_understood() {
    let selector = "{podSelector: {matchLabels: {a: b}, matchExpressions: [\
        {key: c, operator: In, values: [d, e]}, {key: f, operator: NotIn, values: [g]}, \
        {key: h, operator: Exists}, {key: i, operator: DoesNotExist, values: []}]}}";
    let operators: Vec<_> = model(&policy(selector)).selector.requirements.iter().map(|r| r.operator.clone()).collect();
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    assert_eq!(
        operators,
        [
            Operator::In(words(&["b"])),
            Operator::In(words(&["d", "e"])),
            Operator::NotIn(words(&["g"])),
            Operator::Exists,
            Operator::DoesNotExist,
        ]
    );
}

#[test]
fn np10_np11_np12_empty_absent_and_null_lists() {
    for (text, rules) in [
        ("{podSelector: {}, ingress: []}", Some(0)),
        ("{podSelector: {}, ingress: null}", Some(0)),
        ("{podSelector: {}, ingress: [{}]}", Some(1)),
    ] {
        assert_eq!(isolated(&policy(text)).0, rules, "{text}");
    }
    for text in ["{}", "{from: null, ports: null}", "{from: [], ports: []}"] {
        let policy = model(&rule(text));
        let rule = &policy.ingress.as_ref().unwrap()[0];
        assert!(rule.peers.is_empty() && rule.ports.is_empty(), "{text}");
    }
}

#[test]
fn np14_selectors_keep_who_is_meant() {
    let peers =
        "{podSelector: {}}, {namespaceSelector: {}}, {namespaceSelector: {}, podSelector: {matchLabels: {a: b}}}";
    let policy = model(&peer(peers));
    let shape: Vec<_> = policy.ingress.as_ref().unwrap()[0]
        .peers
        .iter()
        .map(|peer| match peer {
            Peer::Ports { namespaces, ports } => {
                (namespaces.is_some(), ports.as_ref().map(|ports| ports.requirements.len()))
            }
            Peer::IpBlock { .. } => panic!("{peer:?}"),
        })
        .collect();
    assert_eq!(shape, [(false, Some(0)), (true, None), (true, Some(1))]);
}

#[test]
fn np17_blocks_of_both_families_with_holes() {
    for (cidr, except) in [("10.0.0.0/8", "10.1.0.0/16"), ("2001:db8::/32", "2001:db8:1::/48")] {
        let policy = model(&peer(&format!("{{ipBlock: {{cidr: '{cidr}', except: ['{except}']}}}}")));
        let expected = Peer::IpBlock { cidr: cidr.parse().unwrap(), except: vec![except.parse().unwrap()] };
        assert_eq!(policy.ingress.as_ref().unwrap()[0].peers, [expected]);
    }
    // Kubernetes takes bits beyond the prefix, and means the network.
    let text = peer("{ipBlock: {cidr: 10.77.3.20/24}}");
    check(&[(text.clone(), &["invalid_cidr 4 10.77.3.20/24"])]);
    let expected = Peer::IpBlock { cidr: "10.77.3.0/24".parse().unwrap(), except: Vec::new() };
    assert_eq!(model(&text).ingress.as_ref().unwrap()[0].peers, [expected]);
}

#[test]
fn a_policy_that_selects_nothing_is_warned_of_as_the_manual_shows() {
    let port = |name: &str, app: &str| {
        format!(
            "---\napiVersion: hostweave.dev/v1alpha1\nkind: Port\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {app}}}}}\n"
        )
    };
    let world = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {team: retail}}\n".to_owned()
        + &["db-0", "db-1"].map(|name| port(name, "db")).concat()
        + &["web-0", "web-1", "web-2"].map(|name| port(name, "web")).concat()
        + "---\n";
    let lock_down = |selector: &str| {
        let text = policy(&format!("{{podSelector: {selector}}}"));
        world.clone() + &text.replace("{name: p}", "{name: lock-down, namespace: shop}")
    };
    let warning = |text: &str| {
        let (set, warnings) = validate(text).unwrap_or_else(|problems| panic!("{problems}"));
        assert_eq!(warnings, []);
        dubious(&set, set.iter().map(|(key, _)| key)).iter().map(|warning| warning.render(false)).collect::<String>()
    };
    assert_eq!(
        warning(&lock_down("{matchLabels: {app: databse}}")),
        "Warning: policy shop/lock-down selects 0 ports (podSelector app=databse)\n  \
         help: labels in namespace shop: app=db (2 ports), app=web (3 ports). Did you mean app=db?\n"
    );
    for fine in ["{}", "{matchLabels: {app: db}}", "{matchExpressions: [{key: app, operator: Exists}]}"] {
        assert_eq!(warning(&lock_down(fine)), "", "{fine}");
    }
    let both =
        warning(&lock_down("{matchLabels: {app: db}, matchExpressions: [{key: app, operator: NotIn, values: [db]}]}"));
    assert!(both.contains("(podSelector app=db,app!=db)"), "{both}");
    let lonely = policy("{podSelector: {matchLabels: {app: db}}}");
    assert!(warning(&lonely).contains("help: there are no ports in namespace default yet"), "{}", warning(&lonely));
    let subject = world.clone() + &cluster("subject: {namespaces: {matchLabels: {team: retial}}}");
    assert!(
        warning(&subject)
            .starts_with("Warning: policy c selects 0 ports (subject every port of namespaces team=retial)\n"),
        "{}",
        warning(&subject)
    );
    assert!(
        warning(&subject).contains("team=retail (1 namespace). Did you mean team=retail?"),
        "{}",
        warning(&subject)
    );
}

#[test]
fn np8_a_namespace_has_its_name_as_a_label() {
    let text =
        port("{}") + "---\n" + &cluster("subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: default}}}");
    let set = valid(&text);
    let policy = set.of_kind(Kind::ClusterNetworkPolicy).next().unwrap();
    assert_eq!(selected(&set, policy).into_iter().map(ObjectKey::path).collect::<Vec<_>>(), ["default/p"]);
}

#[test]
fn what_a_policy_selects_is_found_with_and_without_a_wanted_label() {
    let port = |name: &str, app: &str| port("{}").replace("{name: p}", &format!("{{name: {name}, labels: {{{app}}}}}"));
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: c, labels: {app: db}}\n".to_owned();
    let world =
        [port("a", "app: web, tier: x"), port("b", "app: db"), port("c", "tier: y"), pod, port("d", "")].join("---\n");
    for (selector, expected) in [
        ("{}", &["a", "b", "c", "d"][..]),
        ("{matchLabels: {app: db}}", &["b", "c"]),
        ("{matchLabels: {app: db, tier: y}}", &["c"]),
        ("{matchExpressions: [{key: app, operator: In, values: [web, db, web]}]}", &["a", "b", "c"]),
        ("{matchExpressions: [{key: app, operator: NotIn, values: [db]}]}", &["a", "d"]),
        ("{matchExpressions: [{key: tier, operator: Exists}, {key: app, operator: In, values: [web]}]}", &["a"]),
        ("{matchExpressions: [{key: tier, operator: DoesNotExist}]}", &["b", "d"]),
        ("{matchLabels: {app: none}}", &[]),
    ] {
        let set = valid(&(world.clone() + "---\n" + &policy(&format!("{{podSelector: {selector}}}"))));
        let object = set.of_kind(Kind::NetworkPolicy).next().unwrap();
        let names: Vec<&str> = selected(&set, object).into_iter().map(|key| key.name.as_str()).collect();
        assert_eq!(names, expected, "{selector}");
    }
}

#[test]
fn places_of_policies_and_rules_are_lines_or_the_store() {
    let text = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p}
spec:
  podSelector: {}
  ingress:
    - from: []
    - ports:
        - port: 80
  egress: [{}]
";
    let set = valid(text);
    let policy = Arc::clone(&spec(&set).policies[0]);
    assert_eq!(policy.origin, "t.yaml:1");
    let origins = |policy: &NetworkPolicy| -> Vec<String> {
        policy.ingress.iter().chain(&policy.egress).flatten().map(|rule| rule.origin.clone()).collect()
    };
    assert_eq!(origins(&policy), ["t.yaml:7", "t.yaml:8", "t.yaml:10"]);
    let mut object = (**set.of_kind(Kind::NetworkPolicy).next().unwrap()).clone();
    object.set_origin(Origin::Store);
    let Spec::NetworkPolicy(stored) = &object.spec else { panic!("{object:?}") };
    assert_eq!(stored.origin, "applied at run time");
    assert_eq!(origins(stored), ["applied at run time"; 3]);
    assert_eq!(origins(&policy)[0], "t.yaml:7", "the object of the file is another");
    let (again, _) = Object::from_json(&object.to_json(), Origin::Store).unwrap();
    assert_eq!(again.spec, object.spec);
}

#[test]
fn what_did_not_change_is_the_same_pointer() {
    let text = policy("{podSelector: {}}") + "---\n" + &cluster(EVERYONE);
    let set = valid(&text);
    let (first, second) = (spec(&set), spec(&set));
    assert!(Arc::ptr_eq(&first.policies[0], &second.policies[0]));
    assert!(Arc::ptr_eq(&first.cluster_policies[0], &second.cluster_policies[0]));
    // Built-in objects stay as well when everything else is put together again.
    assert!(Arc::ptr_eq(&first.namespaces["default"], &spec(&valid(&port("{}"))).namespaces["default"]));
    // Read again, an object shares what means the same, and only that.
    let key = ObjectKey::new(Kind::NetworkPolicy, None, "p");
    let read_again = |text: &str| {
        let mut object = (**validate(text).unwrap().0.get(&key).unwrap()).clone();
        object.share(set.get(&key).unwrap());
        match &object.spec {
            Spec::NetworkPolicy(policy) => Arc::ptr_eq(policy, &first.policies[0]),
            _ => false,
        }
    };
    assert!(read_again(&text));
    assert!(!read_again(&format!("# a line more\n{text}")), "its line is another");
    assert!(!read_again(&text.replace("podSelector: {}", "podSelector: {}, policyTypes: [Egress]")));
}

#[test]
fn policies_come_back_as_they_were_written() {
    for text in [
        policy(
            "{podSelector: {matchLabels: {a: b}, matchExpressions: []}, policyTypes: [], ingress: [], egress: [{to: [], ports: []}]}",
        ),
        peer(
            "{ipBlock: {cidr: '2001:db8::/32', except: ['2001:db8:1::/48']}}, {podSelector: {}, namespaceSelector: {}}",
        ),
        l4("{port: http, protocol: UDP}, {port: 1, endPort: 2}, {}"),
        egress(
            "{action: Deny, name: x, to: [{networks: [10.0.0.0/8]}], protocols: [{udp: {destinationPort: {number: 53}}}]}",
        ),
    ] {
        let set = valid(&text);
        let object = set.iter().map(|(_, object)| object).find(|object| object.origin != Origin::BuiltIn).unwrap();
        let again = valid(&object.to_yaml());
        assert!(again.get(&object.key).unwrap().says_the_same(object), "{}", object.to_yaml());
        for word in ["policyTypes: []", "ingress: []", "to: []"] {
            assert_eq!(object.to_yaml().contains(word), text.contains(word), "{}", object.to_yaml());
        }
    }
}
