//! Objects as they are written: one strict type per kind, with the words of the file.
//!
//! These types hold what the author wrote, defaults not filled in, so that `get -o yaml` gives it back unchanged. Their
//! doc comments are what `explain` and the JSON Schema say. Unknown fields are errors (SEMANTICS NP32); where each field
//! stands in the source is kept beside them, by path ([`super::node`]). What is valid is decided in [`super::checked`].

pub mod address_pool;
pub mod cluster_network_policy;
pub mod dns;
pub mod endpoint_slice;
pub mod external_dns;
pub mod guest;
pub mod health_check;
pub mod host_config;
pub mod meta;
pub mod namespace;
pub mod nat_pool;
pub mod network;
pub mod network_policy;
pub mod outlier_detection;
pub mod port;
pub mod selector;
pub mod service;

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de};

pub use address_pool::AddressPool;
pub use cluster_network_policy::ClusterNetworkPolicy;
pub use endpoint_slice::EndpointSlice;
pub use host_config::HostConfig;
pub use meta::Metadata;
pub use namespace::{Namespace, Pod};
pub use nat_pool::NatPool;
pub use network::Network;
pub use network_policy::NetworkPolicy;
pub use port::Port;
pub use service::Service;

/// An object of any kind, as written.
#[derive(Clone, PartialEq, Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum RawObject {
    /// How this host runs hostweave.
    HostConfig(HostConfig),
    /// An isolated L3 network.
    Network(Network),
    /// NAT addresses.
    NatPool(NatPool),
    /// Addresses for Services.
    AddressPool(AddressPool),
    /// A scope for names.
    Namespace(Namespace),
    /// A NIC of a VM or container.
    Port(Port),
    /// Labels of a port, the way Kubernetes writes them.
    Pod(Pod),
    /// An address and a name, and the ports behind them.
    Service(Service),
    /// Backends of a Service without selector.
    EndpointSlice(EndpointSlice),
    /// Who may talk to the ports of a namespace.
    NetworkPolicy(NetworkPolicy),
    /// What the operator decides for all namespaces.
    ClusterNetworkPolicy(ClusterNetworkPolicy),
}

impl RawObject {
    /// What identifies and labels it.
    pub fn metadata(&self) -> &Metadata {
        match self {
            RawObject::HostConfig(object) => &object.metadata,
            RawObject::Network(object) => &object.metadata,
            RawObject::NatPool(object) => &object.metadata,
            RawObject::AddressPool(object) => &object.metadata,
            RawObject::Namespace(object) => &object.metadata,
            RawObject::Port(object) => &object.metadata,
            RawObject::Pod(object) => &object.metadata,
            RawObject::Service(object) => &object.metadata,
            RawObject::EndpointSlice(object) => &object.metadata,
            RawObject::NetworkPolicy(object) => &object.metadata,
            RawObject::ClusterNetworkPolicy(object) => &object.metadata,
        }
    }

    /// As [`Self::metadata`], to change.
    pub fn metadata_mut(&mut self) -> &mut Metadata {
        match self {
            RawObject::HostConfig(object) => &mut object.metadata,
            RawObject::Network(object) => &mut object.metadata,
            RawObject::NatPool(object) => &mut object.metadata,
            RawObject::AddressPool(object) => &mut object.metadata,
            RawObject::Namespace(object) => &mut object.metadata,
            RawObject::Port(object) => &mut object.metadata,
            RawObject::Pod(object) => &mut object.metadata,
            RawObject::Service(object) => &mut object.metadata,
            RawObject::EndpointSlice(object) => &mut object.metadata,
            RawObject::NetworkPolicy(object) => &mut object.metadata,
            RawObject::ClusterNetworkPolicy(object) => &mut object.metadata,
        }
    }
}

/// A name, or the number that the operating system knows it by.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum NameOrId {
    /// The number.
    Id(u32),
    /// The name.
    Name(String),
}

/// By hand: a derived untagged enum could not say what it wants.
impl<'de> Deserialize<'de> for NameOrId {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = NameOrId;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name or a number")
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<NameOrId, E> {
                let unexpected = de::Unexpected::Unsigned(value);
                u32::try_from(value).map(NameOrId::Id).map_err(|_| E::invalid_value(unexpected, &self))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<NameOrId, E> {
                Ok(NameOrId::Name(value.to_owned()))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}
