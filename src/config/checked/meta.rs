//! `metadata`, checked as Kubernetes checks it.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::config::kind::{Kind, ObjectKey};
use crate::config::names;
use crate::config::node::Path;
use crate::config::problem::Problem;
use crate::config::raw;

/// Labels and what else `metadata` says, beyond the key.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Metadata {
    /// What selectors match.
    pub labels: BTreeMap<String, String>,
    /// Free text.
    pub annotations: BTreeMap<String, String>,
    /// Revision that the stored object must have, where one was written.
    pub resource_version: Option<u64>,
    /// Identity that the stored object must have, where one was written.
    pub uid: Option<Uuid>,
}

impl Metadata {
    /// Checks what is written; values of fields that have a problem are meaningless.
    pub(super) fn check(raw: &raw::Metadata, kind: Kind, problems: &mut Vec<Problem>) -> (ObjectKey, Self) {
        let path = Path::of("metadata");
        check_name(kind, &raw.name, &path.key("name"), problems);
        if let Some(namespace) = &raw.namespace {
            check_namespace(kind, namespace, &path.key("namespace"), problems);
        }
        check_labels(&raw.labels, &path.key("labels"), problems);
        check_annotations(&raw.annotations, &path.key("annotations"), problems);
        let resource_version = raw.resource_version.as_ref().and_then(|text| {
            let path = path.key("resourceVersion");
            parsed(text, &path, "a revision as `get -o yaml` prints it", problems)
        });
        let uid = raw.uid.as_ref().and_then(|text| parsed(text, &path.key("uid"), "a UUID", problems));
        let metadata = Self { labels: raw.labels.clone(), annotations: raw.annotations.clone(), resource_version, uid };
        (ObjectKey::new(kind, raw.namespace.as_deref(), &raw.name), metadata)
    }
}

/// `text` as a value of `T`, or a problem.
fn parsed<T: std::str::FromStr>(text: &str, path: &Path, wanted: &str, problems: &mut Vec<Problem>) -> Option<T> {
    let value = text.parse().ok();
    if value.is_none() {
        problems
            .push(Problem::value(path, "wrong_value", format!("{path} {text:?} is not {wanted}")).label("remove it"));
    }
    value
}

fn check_name(kind: Kind, name: &str, path: &Path, problems: &mut Vec<Problem>) {
    let result = match kind {
        Kind::Namespace | Kind::Service => names::check_dns_label(name),
        Kind::HostConfig
        | Kind::Network
        | Kind::NatPool
        | Kind::AddressPool
        | Kind::Port
        | Kind::Pod
        | Kind::EndpointSlice
        | Kind::NetworkPolicy
        | Kind::ClusterNetworkPolicy => names::check_dns_subdomain(name),
    };
    if let Err(reason) = result {
        problems.push(name_problem(path, name, &reason));
    }
}

fn check_namespace(kind: Kind, namespace: &str, path: &Path, problems: &mut Vec<Problem>) {
    if !kind.is_namespaced() {
        let message = format!("{kind} objects have no namespace");
        problems.push(Problem::key(path, "wrong_value", message).label("remove it"));
    } else if let Err(reason) = names::check_dns_label(namespace) {
        problems.push(name_problem(path, namespace, &reason));
    }
}

/// A name that breaks the rules; suggests the lower-case one where that is all that is wrong.
fn name_problem(path: &Path, name: &str, reason: &str) -> Problem {
    let problem = Problem::value(path, "invalid_name", format!("{path} {name:?} {reason}")).label("not a valid name");
    let suggestion = name.to_ascii_lowercase().replace(['_', ' '], "-");
    if suggestion != name && names::check_dns_label(&suggestion).is_ok() {
        return problem.help(format!("write {suggestion}"));
    }
    problem
}

fn check_labels(labels: &BTreeMap<String, String>, path: &Path, problems: &mut Vec<Problem>) {
    for (key, value) in labels {
        let path = path.key(key);
        if let Err(reason) = names::check_label_key(key) {
            let message = format!("the key of label {key:?} {reason}");
            problems.push(Problem::key(&path, "invalid_label", message).label("not a valid key"));
        }
        if let Err(reason) = names::check_label_value(value) {
            let message = format!("the value of label {key}, {value:?}, {reason}");
            let problem = Problem::value(&path, "invalid_label", message).label("not a valid value");
            problems.push(problem.help("free text belongs in metadata.annotations"));
        }
    }
}

fn check_annotations(annotations: &BTreeMap<String, String>, path: &Path, problems: &mut Vec<Problem>) {
    for key in annotations.keys() {
        // Kubernetes compares annotation keys in lower case (`ValidateAnnotations`), so upper-case prefixes pass.
        if let Err(reason) = names::check_label_key(&key.to_ascii_lowercase()) {
            let message = format!("the key of annotation {key:?} {reason}");
            problems.push(Problem::key(&path.key(key), "invalid_annotation", message).label("not a valid key"));
        }
    }
    let total: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    if total > names::ANNOTATIONS_BYTES_MAX {
        let message =
            format!("the annotations have {total} octets; at most {} are allowed", names::ANNOTATIONS_BYTES_MAX);
        problems.push(Problem::key(path, "out_of_range", message).label("too large"));
    }
}
