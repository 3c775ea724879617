//! Policies among the other objects: what the compiler is given, which ports a policy selects, and what is dubious about
//! it. Policies that mean nothing are no errors (their ports may come later), so that the last part warns.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use hostweave_policy::model::{self, Labels, Operator, Selector};

use super::checked::{Object, Spec};
use super::diagnostic::Diagnostic;
use super::kind::{DEFAULT_NAMESPACE, Kind, ObjectKey};
use super::names::closest;
use super::node::Path;
use super::problem::Problem;
use super::set::ObjectSet;
use super::words;
use crate::fabric::spec::PolicySpec;

/// The label that every namespace has (SEMANTICS NP8).
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Labels that a warning lists.
const LABELS_LISTED_MAX: usize = 8;

/// What policy depends on, besides ports. An object that did not change is the same `Arc` as in an earlier call.
pub fn spec(set: &ObjectSet) -> PolicySpec {
    let host = set.host();
    let mut spec = PolicySpec {
        default: host.default_policy,
        infrastructure: host.infrastructure.passes,
        ..PolicySpec::default()
    };
    for object in [Kind::Namespace, Kind::NetworkPolicy, Kind::ClusterNetworkPolicy]
        .map(|kind| set.of_kind(kind))
        .into_iter()
        .flatten()
    {
        match &object.spec {
            Spec::Namespace(namespace) => drop(spec.namespaces.insert(namespace.name.clone(), Arc::clone(namespace))),
            Spec::NetworkPolicy(policy) => spec.policies.push(Arc::clone(policy)),
            Spec::ClusterNetworkPolicy(policy) => spec.cluster_policies.push(Arc::clone(policy)),
            _ => {}
        }
    }
    spec
}

/// The ports that a policy selects, by namespace and name; none for an object of another kind.
pub fn selected<'a>(set: &'a ObjectSet, policy: &Object) -> Vec<&'a ObjectKey> {
    match &policy.spec {
        Spec::NetworkPolicy(policy) => {
            let namespace = policy.name.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
            ports_in(set, namespace, &policy.selector)
        }
        Spec::ClusterNetworkPolicy(policy) => {
            let every = Selector::default();
            let ports = policy.ports.as_ref().unwrap_or(&every);
            let namespaces = namespaces_of(set, &policy.namespaces);
            namespaces.flat_map(|namespace| ports_in(set, namespace, ports)).collect()
        }
        _ => Vec::new(),
    }
}

/// Whether [`ports_in`] finds one.
fn selects_any(set: &ObjectSet, namespace: &str, selector: &Selector) -> bool {
    let matches = |port: &Arc<Object>| selector.matches(&set.labels_of(&port.key));
    match wanted(selector) {
        None => set.of_namespace(Kind::Port, namespace).any(matches),
        Some((key, values)) => {
            values.iter().any(|value| set.ports_with_label(namespace, key, value).iter().any(matches))
        }
    }
}

fn ports_in<'a>(set: &'a ObjectSet, namespace: &str, selector: &Selector) -> Vec<&'a ObjectKey> {
    let matches = |port: &&'a Arc<Object>| selector.matches(&set.labels_of(&port.key));
    let mut ports: Vec<&ObjectKey> = match wanted(selector) {
        None => set.of_namespace(Kind::Port, namespace).filter(matches).map(|port| &port.key).collect(),
        Some((key, values)) => {
            let having = values.iter().flat_map(|value| set.ports_with_label(namespace, key, value));
            having.filter(matches).map(|port| &port.key).collect()
        }
    };
    // Values may come in any order, and more than once.
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// A label that everything that is selected has, with one of these values.
fn wanted(selector: &Selector) -> Option<(&str, &[String])> {
    selector.requirements.iter().find_map(|requirement| match &requirement.operator {
        Operator::In(values) => Some((requirement.key.as_str(), values.as_slice())),
        _ => None,
    })
}

/// Names of the namespaces that a selector selects.
fn namespaces_of<'a>(set: &'a ObjectSet, selector: &'a Selector) -> impl Iterator<Item = &'a str> {
    let named =
        set.of_kind(Kind::Namespace).map(|namespace| (namespace.key.name.as_str(), namespace_labels(namespace)));
    named.filter(|(_, labels)| selector.matches(labels)).map(|(name, _)| name)
}

/// The labels of a namespace, its name included.
pub fn namespace_labels(namespace: &Object) -> Labels {
    let mut labels = namespace.metadata.labels.clone();
    labels.insert(NAME_LABEL.to_owned(), namespace.key.name.clone());
    labels
}

/// What is dubious about those of `keys` that are policies: they select nothing, or their order is left to their names.
pub fn dubious<'a>(set: &ObjectSet, keys: impl IntoIterator<Item = &'a ObjectKey>) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    let mut by_namespace: BTreeMap<&str, Vec<&model::NetworkPolicy>> = BTreeMap::new();
    let mut cluster: Vec<(&Object, &model::ClusterNetworkPolicy)> = Vec::new();
    for object in keys.into_iter().filter_map(|key| set.get(key)) {
        match &object.spec {
            Spec::NetworkPolicy(policy) => {
                let namespace = policy.name.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
                by_namespace.entry(namespace).or_default().push(policy);
            }
            Spec::ClusterNetworkPolicy(policy) => cluster.push((object, policy)),
            _ => {}
        }
    }
    for (namespace, policies) in by_namespace {
        // Without requirement it is about all ports that will be.
        let empty = |policy: &&model::NetworkPolicy| {
            !policy.selector.requirements.is_empty() && !selects_any(set, namespace, &policy.selector)
        };
        let empty: Vec<_> = policies.into_iter().filter(empty).collect();
        if empty.is_empty() {
            continue;
        }
        let ports = set.of_namespace(Kind::Port, namespace);
        let labels: Vec<Cow<'_, Labels>> = ports.map(|port| set.labels_of(&port.key)).collect();
        let index = LabelIndex::new(labels.iter().map(|labels| &**labels));
        for policy in empty {
            let what = format!("podSelector {}", words::selector(&policy.selector));
            let help = index.help(&format!("in namespace {namespace}"), "port", &policy.selector);
            found.push(selects_nothing(Kind::NetworkPolicy, &policy.name, &what, help));
        }
    }
    check_priorities(set, &cluster, &mut found);
    for (object, policy) in cluster {
        if selected(set, object).is_empty() {
            found.extend(subject_selects_nothing(set, policy));
        }
    }
    found
}

/// `policy shop/lock-down selects 0 ports (podSelector app=databse)`.
fn selects_nothing(kind: Kind, name: &model::PolicyName, what: &str, help: String) -> Diagnostic {
    let key = ObjectKey::new(kind, name.namespace.as_deref(), &name.name);
    let message = format!("policy {} selects 0 ports ({what})", key.path());
    Diagnostic::warning("hostweave::policy::selects_nothing", message).with_object(&key).with_help(help)
}

fn subject_selects_nothing(set: &ObjectSet, policy: &model::ClusterNetworkPolicy) -> Option<Diagnostic> {
    let ports = policy.ports.clone().unwrap_or_default();
    if policy.namespaces.requirements.is_empty() && ports.requirements.is_empty() {
        return None;
    }
    let what = format!("subject {}", words::ports(&policy.namespaces, policy.ports.as_ref()));
    let namespaces: Vec<&str> = namespaces_of(set, &policy.namespaces).collect();
    let help = if namespaces.is_empty() {
        let labels: Vec<Labels> = set.of_kind(Kind::Namespace).map(|namespace| namespace_labels(namespace)).collect();
        LabelIndex::new(labels.iter()).help("of namespaces", "namespace", &policy.namespaces)
    } else {
        let inside = namespaces.iter().flat_map(|namespace| set.of_namespace(Kind::Port, namespace));
        let labels: Vec<Cow<'_, Labels>> = inside.map(|port| set.labels_of(&port.key)).collect();
        LabelIndex::new(labels.iter().map(|labels| &**labels)).help("in those namespaces", "port", &ports)
    };
    Some(selects_nothing(Kind::ClusterNetworkPolicy, &policy.name, &what, help))
}

/// SEMANTICS CN2: the order of equal priorities is left open by the API, and by name here.
fn check_priorities(set: &ObjectSet, asked: &[(&Object, &model::ClusterNetworkPolicy)], found: &mut Vec<Diagnostic>) {
    if asked.is_empty() {
        return;
    }
    let mut places: BTreeMap<(model::Tier, u32), Vec<&Object>> = BTreeMap::new();
    for object in set.of_kind(Kind::ClusterNetworkPolicy) {
        if let Spec::ClusterNetworkPolicy(policy) = &object.spec {
            places.entry((policy.tier, policy.priority)).or_default().push(object);
        }
    }
    for (object, policy) in asked {
        let same = places.get(&(policy.tier, policy.priority)).into_iter().flatten();
        let mut others = same.filter(|other| other.key != object.key);
        let Some(other) = others.next() else { continue };
        let more = match others.count() {
            0 => String::new(),
            count => format!(" and {count} more"),
        };
        let message = format!(
            "priority {} in tier {:?} is also that of {} ({}){more}: equal priorities are applied in the order of names",
            policy.priority, policy.tier, other.key, other.origin
        );
        let problem = Problem::value(&Path::of("spec.priority"), "equal_priority", message).label("not unique");
        let problem = problem.warning().help("give each policy of a tier a priority of its own");
        found.push(object.diagnose(problem));
    }
}

/// Which labels there are, and who has them.
struct LabelIndex<'a> {
    all: Vec<&'a Labels>,
    by_label: BTreeMap<(&'a str, &'a str), Vec<&'a Labels>>,
}

impl<'a> LabelIndex<'a> {
    fn new(all: impl Iterator<Item = &'a Labels>) -> Self {
        let all: Vec<&Labels> = all.collect();
        let mut by_label: BTreeMap<(&str, &str), Vec<&Labels>> = BTreeMap::new();
        for labels in &all {
            for (key, value) in *labels {
                by_label.entry((key, value)).or_default().push(labels);
            }
        }
        Self { all, by_label }
    }

    /// `labels in namespace shop: app=db (2 ports), app=web (3 ports). Did you mean app=db?`
    fn help(&self, place: &str, what: &str, selector: &Selector) -> String {
        if self.by_label.is_empty() {
            return match self.all.len() {
                0 => format!("there are no {what}s {place} yet"),
                count => {
                    format!("{} {place} {} no labels", plural(count, what), if count == 1 { "has" } else { "have" })
                }
            };
        }
        let counted = |((key, value), having): (&(&str, &str), &Vec<&Labels>)| {
            format!("{key}={value} ({})", plural(having.len(), what))
        };
        let mut listed: Vec<String> = self.by_label.iter().take(LABELS_LISTED_MAX).map(counted).collect();
        if self.by_label.len() > LABELS_LISTED_MAX {
            listed.push(format!("and {} more", self.by_label.len() - LABELS_LISTED_MAX));
        }
        let meant = self.meant(selector).map(|meant| format!(". Did you mean {meant}?")).unwrap_or_default();
        format!("labels {place}: {}{meant}", listed.join(", "))
    }

    /// The label most like one that the selector wants and nobody has.
    fn meant(&self, selector: &Selector) -> Option<String> {
        let known: Vec<String> = self.by_label.keys().map(|(key, value)| format!("{key}={value}")).collect();
        selector.requirements.iter().find_map(|requirement| {
            let Operator::In(values) = &requirement.operator else { return None };
            let key = requirement.key.as_str();
            let missing = values.iter().find(|value| !self.by_label.contains_key(&(key, value.as_str())))?;
            closest(&format!("{key}={missing}"), known.iter().map(String::as_str)).map(str::to_owned)
        })
    }
}

fn plural(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
