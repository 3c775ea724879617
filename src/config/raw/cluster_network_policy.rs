//! `ClusterNetworkPolicy` (policy.networking.k8s.io/v1alpha2) as written: `apis/v1alpha2/clusternetworkpolicy_types.go`
//! of `kubernetes-sigs/network-policy-api`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Metadata;
use super::selector::LabelSelector;

/// What the operator decides for ports of all namespaces, before (`Admin`) or after (`Baseline`) what the namespaces'
/// own NetworkPolicies say.
///
/// The first rule that matches decides. The annotation `hostweave.dev/audit: "on"` makes a policy report what it would
/// deny instead of denying it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterNetworkPolicy {
    /// `policy.networking.k8s.io/v1alpha2`.
    pub api_version: String,
    /// `ClusterNetworkPolicy`.
    pub kind: String,
    /// What identifies and labels it. It has no namespace.
    pub metadata: Metadata,
    /// Whom it is about, when it comes, and its rules.
    pub spec: ClusterNetworkPolicySpec,
}

/// Whom it is about, when it comes, and its rules.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterNetworkPolicySpec {
    /// `Admin` comes before NetworkPolicies and cannot be overridden; `Baseline` comes after them, for ports that no
    /// NetworkPolicy isolates.
    pub tier: Tier,
    /// 0 to 1000: order within the tier, lower first. Equal priorities are applied by name.
    #[schemars(range(max = 1000))]
    pub priority: u32,
    /// The ports that it is about.
    pub subject: Subject,
    /// Rules for what reaches the ports, at most 25; the first that matches decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 25))]
    pub ingress: Option<Vec<ClusterIngressRule>>,
    /// Rules for what the ports send, at most 25; the first that matches decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 25))]
    pub egress: Option<Vec<ClusterEgressRule>>,
}

/// When a policy comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub enum Tier {
    /// Before NetworkPolicies.
    Admin,
    /// After NetworkPolicies.
    Baseline,
}

/// Ports: exactly one of `namespaces` and `pods`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Subject {
    /// All ports of namespaces, by labels of the namespaces. `{}` is every namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<LabelSelector>,
    /// Ports by their labels and those of their namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<NamespacedPods>,
}

/// Ports by their labels and those of their namespaces.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NamespacedPods {
    /// Namespaces by labels; every namespace if left out or `{}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Ports in them by labels; `{}` is every port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(required)]
    pub pod_selector: Option<LabelSelector>,
}

/// A rule for what reaches the ports.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterIngressRule {
    /// Name for people, at most 100 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 100))]
    pub name: Option<String>,
    /// What happens: `Accept`, `Deny` or `Pass`.
    pub action: Action,
    /// Sources, 1 to 25: any of them.
    #[schemars(length(min = 1, max = 25))]
    pub from: Vec<ClusterIngressPeer>,
    /// L4 ports of the ports that the policy is about, 1 to 25. Left out: every protocol and L4 port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 25))]
    pub protocols: Option<Vec<ClusterProtocol>>,
}

/// A rule for what the ports send.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterEgressRule {
    /// Name for people, at most 100 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 100))]
    pub name: Option<String>,
    /// What happens: `Accept`, `Deny` or `Pass`.
    pub action: Action,
    /// Destinations, 1 to 25: any of them.
    #[schemars(length(min = 1, max = 25))]
    pub to: Vec<ClusterEgressPeer>,
    /// L4 ports of the destination, 1 to 25. Left out: every protocol and L4 port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 25))]
    pub protocols: Option<Vec<ClusterProtocol>>,
}

/// What a rule does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub enum Action {
    /// It passes, finally, with its replies.
    Accept,
    /// It is dropped, finally.
    Deny,
    /// The rest of the tier is skipped.
    Pass,
}

/// A source: exactly one of the fields.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterIngressPeer {
    /// All ports of namespaces, by labels of the namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<LabelSelector>,
    /// Ports by their labels and those of their namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<NamespacedPods>,
}

/// A destination: exactly one of the fields.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterEgressPeer {
    /// All ports of namespaces, by labels of the namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<LabelSelector>,
    /// Ports by their labels and those of their namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<NamespacedPods>,
    /// Hosts by labels. There are no Node objects here, so the peer is unknown: it matches nothing in `Accept`, and makes
    /// `Deny` and `Pass` deny everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<LabelSelector>,
    /// Addresses as CIDRs, 1 to 25; addresses of ports are matched as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 25))]
    pub networks: Option<Vec<String>>,
    /// Names of destinations. Refused by this version: it resolves no names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain_names: Option<Vec<String>>,
}

/// L4 ports of a protocol: exactly one of the fields.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterProtocol {
    /// TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<ClusterL4>,
    /// UDP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp: Option<ClusterL4>,
    /// SCTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sctp: Option<ClusterL4>,
    /// A name out of the `namedPorts` of the destination, with the protocol that it declares. Not together with peers
    /// that have no named ports (networks, nodes).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_named_port: Option<String>,
}

/// L4 ports.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterL4 {
    /// L4 ports of the destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(required)]
    pub destination_port: Option<DestinationPort>,
}

/// L4 ports: exactly one of `number` and `range`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DestinationPort {
    /// One, 1 to 65535.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub number: Option<u32>,
    /// Several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<PortRange>,
}

/// L4 ports from `start` to `end`, both included.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortRange {
    /// The first, 1 to 65535.
    #[schemars(range(min = 1, max = 65535))]
    pub start: u32,
    /// The last, greater than `start`.
    #[schemars(range(min = 1, max = 65535))]
    pub end: u32,
}
