//! `NetworkPolicy` (networking.k8s.io/v1) as written.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de};

use super::Metadata;
use super::port::Protocol;
use super::selector::LabelSelector;

/// Who may talk to the ports of a namespace, and to whom they may talk, as in Kubernetes.
///
/// A port that a policy selects is isolated in the policy's directions: only what a rule of some policy allows passes.
/// Policies add up, their order never matters, and replies always pass. The annotation `hostweave.dev/audit: "on"` makes
/// a policy report what it would deny instead of denying it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkPolicy {
    /// `networking.k8s.io/v1`.
    pub api_version: String,
    /// `NetworkPolicy`.
    pub kind: String,
    /// What identifies and labels it. A policy selects ports of its own namespace.
    pub metadata: Metadata,
    /// Which ports, and what is allowed.
    pub spec: NetworkPolicySpec,
}

/// Which ports, and what is allowed.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkPolicySpec {
    /// Ports of the policy's namespace, by labels. `{}` selects all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(required)]
    pub pod_selector: Option<LabelSelector>,
    /// Directions that the policy isolates. If left out: `Ingress`, and `Egress` too if there is an egress rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2))]
    pub policy_types: Option<Vec<PolicyType>>,
    /// What may reach the selected ports: any of these rules. None: nothing. `[{}]`: everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Vec<IngressRule>>,
    /// What the selected ports may reach: any of these rules. None: nothing. `[{}]`: everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Vec<EgressRule>>,
}

/// A direction, seen from the selected port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub enum PolicyType {
    /// To the port.
    Ingress,
    /// From the port.
    Egress,
}

/// Something that may reach the selected ports: any of `from`, on any of `ports`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IngressRule {
    /// Sources: any of them. Left out or empty: anybody, outside included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Vec<Peer>>,
    /// L4 ports of the selected ports: any of them. Left out or empty: every protocol and L4 port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<PolicyPort>>,
}

/// Something that the selected ports may reach: any of `to`, on any of `ports`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EgressRule {
    /// Destinations: any of them. Left out or empty: anybody, outside included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Vec<Peer>>,
    /// L4 ports of the destination: any of them. Left out or empty: every protocol and L4 port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<PolicyPort>>,
}

/// The other side: ports by labels, or addresses.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Peer {
    /// Ports by labels; of the policy's namespace unless `namespaceSelector` is written beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
    /// Namespaces by labels: all their ports, or those that `podSelector` beside it selects. `{}` is every namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Addresses; not together with a selector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_block: Option<IpBlock>,
}

/// A range of addresses, with holes.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IpBlock {
    /// The range, such as `192.0.2.0/24` or `2001:db8::/64`.
    pub cidr: String,
    /// Ranges inside `cidr`, smaller than it, that are left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub except: Option<Vec<String>>,
}

/// L4 ports of a protocol.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyPort {
    /// `TCP` (default), `UDP` or `SCTP`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// A number, or a name out of the `namedPorts` of the destination. Left out: every L4 port of the protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<PortRef>,
    /// Last L4 port of a range that begins with the number in `port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub end_port: Option<u32>,
}

/// An L4 port by number or name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum PortRef {
    /// 1 to 65535.
    Number(u32),
    /// As the destination names it.
    Name(String),
}

/// By hand: a derived untagged enum could not say what it wants.
impl<'de> Deserialize<'de> for PortRef {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = PortRef;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number or a name")
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<PortRef, E> {
                let unexpected = de::Unexpected::Unsigned(value);
                u32::try_from(value).map(PortRef::Number).map_err(|_| E::invalid_value(unexpected, &self))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<PortRef, E> {
                Ok(PortRef::Name(value.to_owned()))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}
