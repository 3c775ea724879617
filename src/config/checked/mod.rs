//! Objects that are valid by construction. The conversion from [`super::raw`] is the only place that can fail; it
//! reports every problem of an object at once. What concerns several objects is checked in [`super::set`].

pub mod annotations;
mod cluster_network_policy;
mod dns;
mod endpoint_slice;
mod external_dns;
mod guest;
mod host_config;
mod meta;
mod network;
mod network_policy;
mod pools;
mod port;
mod rates;
mod selector;
mod service;
mod uplink;

use std::fmt;
use std::path::{Component, PathBuf};
use std::sync::Arc;

use hostweave_policy::model;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::de;
use super::diagnostic::{Diagnostic, Diagnostics};
use super::kind::{Kind, ObjectKey};
use super::node::{Document, Node, Path, Value};
use super::problem::Problem;
use super::raw::{NameOrId, RawObject};

pub use endpoint_slice::{Endpoint, EndpointPort, EndpointSlice, SERVICE_NAME};
pub use host_config::{Connections, Defaults, HostAccess, HostConfig, Infrastructure};
pub use meta::Metadata;
pub use network::{MTU_DEFAULT, Network, default_services_v4, default_services_v6};
use network_policy::Places;
pub use network_policy::protocol;
pub use pools::{AddressPool, NatPool, PoolType};
pub use port::{Account, Backend, NamedPort, Port, Tap, VhostUser};
pub use service::{Balancing, Families, Form, PoolChoice, Prefer, Service, ServicePort, Target};

/// Queue pairs of one port.
const QUEUES_MAX: u32 = 16;

/// Where an object comes from: the only place where it may be changed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum Origin {
    /// A configuration file.
    File {
        /// The file.
        file: String,
        /// Line of the object's first field, from 1.
        line: u32,
    },
    /// Applied at run time, kept in the store.
    Store,
    /// Exists without being written.
    BuiltIn,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { file, line } => write!(f, "{file}:{line}"),
            Origin::Store => f.write_str("applied at run time"),
            Origin::BuiltIn => f.write_str("built in"),
        }
    }
}

/// What a kind has beyond metadata.
#[derive(Clone, PartialEq, Debug)]
pub enum Spec {
    /// How the host runs hostweave.
    HostConfig(Box<HostConfig>),
    /// Its labels, and what its annotations decide.
    Namespace(Arc<model::Namespace>),
    /// An isolated L3 network.
    Network(Network),
    /// NAT addresses.
    NatPool(NatPool),
    /// Addresses for Services.
    AddressPool(AddressPool),
    /// A NIC.
    Port(Port),
    /// Nothing: a pod is its metadata.
    Pod,
    /// An address and a name, and the ports behind them.
    Service(Service),
    /// Backends of a Service.
    EndpointSlice(EndpointSlice),
    /// Who may talk to the ports of a namespace. The same `Arc` as long as the object is the same: what depends on it need
    /// not be compiled again.
    NetworkPolicy(Arc<model::NetworkPolicy>),
    /// What the operator decides for all namespaces, likewise.
    ClusterNetworkPolicy(Arc<model::ClusterNetworkPolicy>),
}

/// A valid object.
#[derive(Clone, Debug)]
pub struct Object {
    /// What identifies it.
    pub key: ObjectKey,
    /// Labels and what else `metadata` says.
    pub metadata: Metadata,
    /// What the kind has beyond metadata.
    pub spec: Spec,
    /// Where it comes from.
    pub origin: Origin,
    /// As it was written, defaults not filled in.
    raw: Arc<RawObject>,
    /// Where each field stands in the source, for later diagnostics.
    document: Option<Arc<Document>>,
}

impl Object {
    /// The object that one document of a source describes.
    ///
    /// # Errors
    /// All its problems.
    pub fn from_document(
        document: Arc<Document>,
        kind: Kind,
        origin: Origin,
    ) -> Result<(Self, Vec<Diagnostic>), Diagnostics> {
        let mut problems = Vec::new();
        let parts = check_kind(&Places { origin: &origin, document: &document }, kind, &mut problems);
        let name = match &parts {
            Some((_, key, ..)) => key.to_string(),
            None => unchecked_name(&document, kind),
        };
        let diagnostics = problems.into_iter().map(|problem| problem.diagnose(&name, Some(&document))).collect();
        let diagnostics = Diagnostics(diagnostics);
        match parts {
            Some((raw, key, metadata, spec)) if !diagnostics.has_errors() => {
                // What has no source has no places to keep.
                let document = (!document.source.text.is_empty()).then_some(document);
                Ok((Self { key, metadata, spec, origin, raw: Arc::new(raw), document }, diagnostics.0))
            }
            _ => Err(diagnostics),
        }
    }

    /// The object that a JSON value describes, as the store or a request holds it.
    ///
    /// # Errors
    /// All its problems, without places.
    pub fn from_json(value: &serde_json::Value, origin: Origin) -> Result<(Self, Vec<Diagnostic>), Diagnostics> {
        let document = Document { source: Arc::default(), root: Node::from(value) };
        let kind = super::load::kind_of(&document)?;
        Self::from_document(Arc::new(document), kind, origin)
    }

    /// As it was written, as JSON.
    pub fn to_json(&self) -> serde_json::Value {
        // The types of `raw` have text keys and finite numbers only: there is nothing that JSON cannot say.
        serde_json::to_value(&*self.raw).unwrap_or_default()
    }

    /// As it was written, as one YAML document that `apply` takes back unchanged.
    pub fn to_yaml(&self) -> String {
        // As for JSON, nothing in `raw` can fail to be written.
        serde_saphyr::to_string(&*self.raw).unwrap_or_default()
    }

    /// The same object saying which identity and revision it has, for `get -o yaml`.
    #[must_use]
    pub fn with_identity(&self, uid: Option<Uuid>, revision: Option<u64>) -> Self {
        let mut object = self.clone();
        let metadata = Arc::make_mut(&mut object.raw).metadata_mut();
        metadata.uid = uid.map(|uid| uid.to_string());
        metadata.resource_version = revision.map(|revision| revision.to_string());
        object.metadata.uid = uid;
        object.metadata.resource_version = revision;
        object
    }

    /// Whether both say the same, whatever their origin, revision and identity.
    pub fn says_the_same(&self, other: &Object) -> bool {
        let plain = |object: &Object| object.with_identity(None, None).raw;
        plain(self) == plain(other)
    }

    /// Says that it comes from somewhere else: an object of a file that was applied at run time lives in the store.
    pub fn set_origin(&mut self, origin: Origin) {
        match &mut self.spec {
            Spec::NetworkPolicy(policy) => network_policy::relabel(Arc::make_mut(policy), &origin),
            Spec::ClusterNetworkPolicy(policy) => cluster_network_policy::relabel(Arc::make_mut(policy), &origin),
            _ => {}
        }
        self.origin = origin;
    }

    /// Takes over what `before`, an earlier reading of the same file, means, where it means the same: what was compiled
    /// from it stays good.
    pub fn share(&mut self, before: &Object) {
        if self.spec == before.spec {
            self.spec = before.spec.clone();
        }
    }

    /// As it was written.
    pub fn raw(&self) -> &RawObject {
        &self.raw
    }

    /// An object that exists without being written.
    pub(super) fn built_in(raw: RawObject, key: ObjectKey, spec: Spec) -> Self {
        let metadata = Metadata { labels: raw.metadata().labels.clone(), ..Metadata::default() };
        Self { key, metadata, spec, origin: Origin::BuiltIn, raw: Arc::new(raw), document: None }
    }

    /// An error about a field of this object, at its place where the source is known.
    pub(super) fn diagnose(&self, problem: Problem) -> Diagnostic {
        problem.diagnose(&self.key.to_string(), self.document.as_deref())
    }
}

/// Reads and checks; the parts are there whenever the object could be read, even if it has problems.
fn check_kind(
    places: &Places<'_>,
    kind: Kind,
    problems: &mut Vec<Problem>,
) -> Option<(RawObject, ObjectKey, Metadata, Spec)> {
    let document = places.document;
    let raw = match kind {
        Kind::HostConfig => read(document, kind, problems).map(RawObject::HostConfig),
        Kind::Network => read(document, kind, problems).map(RawObject::Network),
        Kind::Namespace => read(document, kind, problems).map(RawObject::Namespace),
        Kind::NatPool => read(document, kind, problems).map(RawObject::NatPool),
        Kind::AddressPool => read(document, kind, problems).map(RawObject::AddressPool),
        Kind::Service => read(document, kind, problems).map(RawObject::Service),
        Kind::EndpointSlice => read(document, kind, problems).map(RawObject::EndpointSlice),
        Kind::Port => read(document, kind, problems).map(RawObject::Port),
        Kind::Pod => read(document, kind, problems).map(RawObject::Pod),
        Kind::NetworkPolicy => read(document, kind, problems).map(RawObject::NetworkPolicy),
        Kind::ClusterNetworkPolicy => read(document, kind, problems).map(RawObject::ClusterNetworkPolicy),
    }?;
    let mut found = Vec::new();
    let (key, metadata) = Metadata::check(raw.metadata(), kind, &mut found);
    annotations::check_known(kind, &metadata, &mut found);
    let spec = match &raw {
        RawObject::HostConfig(raw) => Spec::HostConfig(Box::new(HostConfig::check(&key.name, &raw.spec, &mut found))),
        RawObject::Network(raw) => Spec::Network(Network::check(&key.name, &raw.spec, &mut found)),
        RawObject::Namespace(_) => Spec::Namespace(Arc::new(namespace(&key, &metadata, &mut found))),
        RawObject::NatPool(raw) => Spec::NatPool(NatPool::check(&raw.spec, &mut found)),
        RawObject::AddressPool(raw) => Spec::AddressPool(AddressPool::check(&raw.spec, &mut found)),
        RawObject::Service(raw) => Spec::Service(Service::check(&metadata, &raw.spec, &mut found)),
        RawObject::EndpointSlice(raw) => Spec::EndpointSlice(EndpointSlice::check(&metadata, raw, &mut found)),
        RawObject::Port(raw) => Spec::Port(Port::check(&key, &metadata, &raw.spec, &mut found)),
        RawObject::Pod(_) => {
            port::check_annotations(&metadata, &mut found);
            Spec::Pod
        }
        RawObject::NetworkPolicy(raw) => {
            Spec::NetworkPolicy(Arc::new(network_policy::check(&key, &metadata, &raw.spec, places, &mut found)))
        }
        RawObject::ClusterNetworkPolicy(raw) => Spec::ClusterNetworkPolicy(Arc::new(cluster_network_policy::check(
            &key, &metadata, &raw.spec, places, &mut found,
        ))),
    };
    // A value that could not be read was left out: what is missing because of that was reported at its place.
    found.retain(|problem: &Problem| !problems.iter().any(|known| known.path.0.starts_with(&problem.path.0)));
    problems.append(&mut found);
    Some((raw, key, metadata, spec))
}

/// A namespace in the words of the compiler.
fn namespace(key: &ObjectKey, metadata: &Metadata, problems: &mut Vec<Problem>) -> model::Namespace {
    let choices = [("allow", model::DefaultPolicy::Allow), ("deny", model::DefaultPolicy::Deny)];
    model::Namespace {
        name: key.name.clone(),
        labels: metadata.labels.clone(),
        default: annotations::choice(metadata, annotations::DEFAULT_POLICY, choices, problems),
    }
}

fn read<'de, T: Deserialize<'de>>(document: &'de Document, kind: Kind, problems: &mut Vec<Problem>) -> Option<T> {
    let (value, found) = de::read(document, kind);
    problems.extend(found);
    value
}

/// How an object that could not be read is called: by what can be found of its name.
fn unchecked_name(document: &Document, kind: Kind) -> String {
    let text = |key: &str| {
        let metadata = document.root.get("metadata")?;
        match &metadata.get(key)?.value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        }
    };
    match text("name") {
        Some(name) => ObjectKey::new(kind, text("namespace"), name).to_string(),
        None => kind.to_string(),
    }
}

/// A number within its limits, or a problem.
fn range(value: Option<u32>, least: u32, most: u32, path: &Path, problems: &mut Vec<Problem>) -> Option<u32> {
    let value = value?;
    if (least..=most).contains(&value) {
        return Some(value);
    }
    let message = format!("{path} {value} is out of range: {least} to {most} are allowed");
    problems.push(Problem::value(path, "out_of_range", message).label(format!("{least} to {most}")));
    None
}

/// A number of queue pairs.
fn queues(value: Option<u32>, path: &Path, problems: &mut Vec<Problem>) -> Option<u16> {
    range(value, 1, QUEUES_MAX, path, problems).and_then(|queues| u16::try_from(queues).ok())
}

/// An absolute path without `..`, which would make two spellings of one file.
fn absolute_path(text: &str, path: &Path, problems: &mut Vec<Problem>) -> PathBuf {
    let file = PathBuf::from(text);
    let climbs = file.components().any(|part| matches!(part, Component::ParentDir));
    if !file.is_absolute() || climbs || text.contains('\0') {
        let message = format!("{path} {text:?} must be an absolute path without ..");
        problems.push(Problem::value(path, "invalid_path", message).label("not an absolute path"));
    }
    file
}

/// A user or group as written.
fn account(raw: &NameOrId, path: &Path, problems: &mut Vec<Problem>) -> Account {
    match raw {
        // The kernel takes -1 for "leave unchanged" (chown(2)).
        NameOrId::Id(u32::MAX) => {
            problems.push(Problem::value(path, "out_of_range", format!("{path} {} is no id", u32::MAX)).label("no id"));
            Account::Id(u32::MAX)
        }
        NameOrId::Id(id) => Account::Id(*id),
        NameOrId::Name(name) => {
            if name.is_empty() || name.len() > 32 || name.contains(|c: char| c.is_whitespace() || ":/\0".contains(c)) {
                let message = format!("{path} {name:?} is not the name of a user or group");
                problems.push(Problem::value(path, "invalid_name", message).label("not a name"));
            }
            Account::Name(name.clone())
        }
    }
}
