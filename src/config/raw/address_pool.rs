//! `AddressPool` as written.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Metadata;

/// Addresses for Services. A Service keeps the address that it was given until it is deleted.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AddressPool {
    /// `hostweave.dev/v1alpha1`.
    pub api_version: String,
    /// `AddressPool`.
    pub kind: String,
    /// `name` is what the annotation `metallb.universe.tf/address-pool` of a Service refers to. Pools have no namespace.
    pub metadata: Metadata,
    /// Its addresses.
    pub spec: AddressPoolSpec,
}

/// Addresses for Services.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AddressPoolSpec {
    /// `public`: the host owns them at the uplink. `private`: they are known inside a network only.
    #[serde(rename = "type")]
    pub pool_type: PoolType,
    /// Addresses, CIDRs and ranges of both families, such as `[203.0.113.0/26, 2001:db8:9::/64]`.
    #[schemars(length(min = 1, max = 256))]
    pub addresses: Vec<String>,
}

/// Who can reach an address of a pool.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum PoolType {
    /// Everybody.
    Public,
    /// Ports of the same network.
    Private,
}
