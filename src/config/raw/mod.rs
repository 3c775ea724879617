//! Objects as they are written: one strict type per kind, with the words of the file.
//!
//! These types hold what the author wrote, defaults not filled in, so that `get -o yaml` gives it back unchanged. Their
//! doc comments are what `explain` and the JSON Schema say. Unknown fields are errors (SEMANTICS NP32); where each field
//! stands in the source is kept beside them, by path ([`super::node`]). What is valid is decided in [`super::checked`].

pub mod host_config;
pub mod meta;
pub mod namespace;
pub mod network;
pub mod port;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use host_config::HostConfig;
pub use meta::Metadata;
pub use namespace::{Namespace, Pod};
pub use network::Network;
pub use port::Port;

/// An object of any kind, as written.
#[derive(Clone, PartialEq, Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum RawObject {
    /// How this host runs hostweave.
    HostConfig(HostConfig),
    /// An isolated L3 network.
    Network(Network),
    /// A scope for names.
    Namespace(Namespace),
    /// A NIC of a VM or container.
    Port(Port),
    /// Labels of a port, the way Kubernetes writes them.
    Pod(Pod),
}

/// A name, or the number that the operating system knows it by.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum NameOrId {
    /// The number.
    Id(u32),
    /// The name.
    Name(String),
}
