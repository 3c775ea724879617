//! `NatPool` as written.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Metadata;
use super::selector::LabelSelector;

/// Addresses from which ports without a public address of their own reach the outside.
///
/// If several pools serve a port, it uses the first by name that has an address of the family.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NatPool {
    /// `hostweave.dev/v1alpha1`.
    pub api_version: String,
    /// `NatPool`.
    pub kind: String,
    /// What identifies and labels it. Pools have no namespace.
    pub metadata: Metadata,
    /// Addresses, and whom they serve.
    pub spec: NatPoolSpec,
}

/// Addresses, and whom they serve.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NatPoolSpec {
    /// Addresses, CIDRs and ranges of both families, such as `[198.51.100.0/29, 2001:db8:9::10-2001:db8:9::1f]`; at most
    /// 4096 addresses together. Packets to them must reach this host: they lie in the uplink's subnet, or are routed here.
    #[schemars(length(min = 1))]
    pub addresses: Vec<String>,
    /// Names of the Networks that it serves; all of them if left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<String>,
    /// Ports that it serves, by their labels; all ports of its networks if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
    /// Namespaces whose ports it serves, by their labels; all of them if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// How many L4 ports of an address a workload gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_block: Option<PortBlock>,
    /// Who may send to a mapping from outside: `addressAndPortDependent` (default), `addressDependent` or
    /// `endpointIndependent` (RFC 4787 §5).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filtering: Option<Filtering>,
    /// Whether TCP connections to different destinations may share an L4 port once the workload's blocks are full; `true`
    /// if left out. Without it, connections are refused then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overload: Option<bool>,
    /// What one port may have of the host's table of NAT mappings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<NatLimits>,
    /// Addresses, CIDRs and ranges of `addresses` that take no new connections; those that there are go on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub draining: Vec<String>,
}

/// How many L4 ports of an address a workload gets, in blocks of equal size, at most 64 of them.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortBlock {
    /// L4 ports of one block, a power of two from 64 to 4096; 512 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 64, max = 4096))]
    pub size: Option<u32>,
    /// L4 ports that a workload gets with its first connection, a multiple of `size`; one block if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 64, max = 64512))]
    pub min: Option<u32>,
    /// L4 ports that a workload has at most, a multiple of `size`; 4096, or `min` if that is more, if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 64, max = 64512))]
    pub max: Option<u32>,
}

/// What one port may have of the host's table of NAT mappings, in each family (RFC 6888 REQ-4 and REQ-5). What is over a limit is
/// refused; no mapping ends by it. Whatever is written, half of the table is shared out to all ports that pools serve, in equal
/// parts which nobody else can take.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NatLimits {
    /// Mappings at a time; 65536, or a quarter of the table if that is less, if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4194304))]
    pub mappings: Option<u32>,
    /// New mappings in one second; any number if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4194304))]
    pub new_mappings_per_second: Option<u32>,
}

/// Who may send to a mapping from outside (RFC 4787 §5).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Filtering {
    /// Anybody; what nobody asked for is a new connection, which policy judges.
    EndpointIndependent,
    /// Addresses that the inside has sent to; likewise.
    AddressDependent,
    /// Addresses and L4 ports that the inside has sent to: nothing unasked comes in.
    AddressAndPortDependent,
}
