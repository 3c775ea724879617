//! What people and programs are told about policies: what they select now, and their rules in words.

use hostweave_policy::model::{ClusterNetworkPolicy, ClusterRule, Direction, NetworkPolicy, Rule};
use serde_json::{Value, json};

use crate::config::checked::{Object, Spec};
use crate::config::{ObjectKey, ObjectSet, policies, words};

/// `status` of a policy in lists; null for an object of another kind.
pub fn status(set: &ObjectSet, object: &Object) -> Value {
    let mode = |audit: bool| if audit { "audit" } else { "enforce" };
    let ports = policies::selected(set, object).len();
    match &object.spec {
        Spec::NetworkPolicy(policy) => json!({
            "podSelector": words::selector(&policy.selector),
            "policyTypes": types(policy),
            "mode": mode(policy.audit),
            "ports": ports,
        }),
        Spec::ClusterNetworkPolicy(policy) => json!({
            "tier": format!("{:?}", policy.tier),
            "priority": policy.priority,
            "subject": words::ports(&policy.namespaces, policy.ports.as_ref()),
            "mode": mode(policy.audit),
            "ports": ports,
        }),
        _ => Value::Null,
    }
}

/// As [`status`], with the ports by name and every rule in words: what `describe` shows.
pub fn described(set: &ObjectSet, object: &Object) -> Value {
    let mut status = status(set, object);
    let rules = match &object.spec {
        Spec::NetworkPolicy(policy) => json!({
            "ingress": policy.ingress.as_deref().map(|rules| rules_in_words(rules, Direction::Ingress)),
            "egress": policy.egress.as_deref().map(|rules| rules_in_words(rules, Direction::Egress)),
        }),
        Spec::ClusterNetworkPolicy(policy) => cluster_rules_in_words(policy),
        _ => return status,
    };
    if let Value::Object(fields) = &mut status {
        fields.insert("selects".into(), policies::selected(set, object).into_iter().map(ObjectKey::path).collect());
        fields.insert("rules".into(), rules);
    }
    status
}

/// The directions that a policy isolates, as `policyTypes` names them, its default filled in (SEMANTICS NP3).
fn types(policy: &NetworkPolicy) -> Vec<&'static str> {
    let ingress = policy.ingress.is_some().then_some("Ingress");
    ingress.into_iter().chain(policy.egress.is_some().then_some("Egress")).collect()
}

fn rules_in_words(rules: &[Rule], direction: Direction) -> Vec<Value> {
    rules.iter().map(|rule| json!({"text": words::rule(rule, direction), "origin": rule.origin})).collect()
}

fn cluster_rules_in_words(policy: &ClusterNetworkPolicy) -> Value {
    let of = |rules: &[ClusterRule], direction| -> Vec<Value> {
        let one = |rule: &ClusterRule| json!({"text": words::cluster_rule(rule, direction), "origin": rule.origin});
        rules.iter().map(one).collect()
    };
    json!({"ingress": of(&policy.ingress, Direction::Ingress), "egress": of(&policy.egress, Direction::Egress)})
}
