//! Objects that are valid by construction. The conversion from [`super::raw`] is the only place that can fail; it
//! reports every problem of an object at once. What concerns several objects is checked in [`super::set`].

mod host_config;
mod meta;
mod network;
mod port;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::diagnostic::{Diagnostic, Diagnostics};
use super::kind::ObjectKey;
use super::node::Document;
use super::raw::RawObject;

pub use host_config::{Defaults, HostConfig};
pub use meta::Metadata;
pub use network::Network;
pub use port::{Account, Backend, NamedPort, Port, Tap, VhostUser};

/// Where an object comes from: the only place where it may be changed (UX §2).
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
    HostConfig(HostConfig),
    /// Nothing: a namespace is its metadata.
    Namespace,
    /// An isolated L3 network.
    Network(Network),
    /// A NIC.
    Port(Port),
    /// Nothing: a pod is its metadata.
    Pod,
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
    /// The object that a JSON value describes, as the store or a request holds it.
    ///
    /// # Errors
    /// All its problems, without places.
    pub fn from_json(_value: &serde_json::Value, _origin: Origin) -> Result<(Self, Vec<Diagnostic>), Diagnostics> {
        todo!()
    }

    /// As it was written, as JSON.
    pub fn to_json(&self) -> serde_json::Value {
        todo!()
    }

    /// As it was written, as one YAML document that `apply` takes back unchanged.
    pub fn to_yaml(&self) -> String {
        todo!()
    }

    /// The same object saying which identity and revision it has, for `get -o yaml`.
    #[must_use]
    pub fn with_identity(&self, _uid: Option<uuid::Uuid>, _revision: Option<u64>) -> Self {
        todo!()
    }

    /// Whether both say the same, whatever their origin, revision and identity.
    pub fn says_the_same(&self, _other: &Object) -> bool {
        todo!()
    }
}
