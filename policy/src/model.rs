//! Policies and what they select, valid by construction: `src/config` turns objects into these, [`crate`] compiles them.
//!
//! Read first: <https://kubernetes.io/docs/concepts/services-networking/network-policies/> and NPEP-133 ff. of
//! `kubernetes-sigs/network-policy-api` (`apis/v1alpha2`). Nothing here decides anything about packets.

use std::collections::BTreeMap;
use std::sync::Arc;

use hostweave_switch::tables::{NetworkId, PortId};
use ipnet::IpNet;

/// Labels of a port or namespace.
pub type Labels = BTreeMap<String, String>;

/// Everything that policy depends on. Parts that did not change since the last compilation should be the same `Arc`s.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// What happens in a direction that no policy isolates (`HostConfig.spec.defaultPolicy`, SEMANTICS NP35).
    pub default: DefaultPolicy,
    /// Which traffic of the infrastructure passes whatever policies say (SEMANTICS NP28, NP34).
    pub infrastructure: Infrastructure,
    /// By name. A namespace that an endpoint or policy names and that is missing here has no labels but its implicit one.
    pub namespaces: BTreeMap<String, Arc<Namespace>>,
    /// Every port that is a workload (no internal ports).
    pub endpoints: Vec<Arc<Endpoint>>,
    /// NetworkPolicy v1 objects.
    pub policies: Vec<Arc<NetworkPolicy>>,
    /// ClusterNetworkPolicy v1alpha2 objects.
    pub cluster_policies: Vec<Arc<ClusterNetworkPolicy>>,
}

/// What happens to traffic that no policy speaks about.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum DefaultPolicy {
    /// It passes.
    #[default]
    Allow,
    /// It is dropped.
    Deny,
}

/// Traffic between ports and the host's own services that passes by a built-in rule. Each can be switched off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Infrastructure {
    /// DNS (UDP and TCP 53) from a port to its gateway.
    pub dns: bool,
    /// Metadata (TCP 80) from a port to 169.254.169.254 or fd00:ec2::254.
    pub metadata: bool,
    /// Health probes from the gateway to a port.
    pub health_probes: bool,
}

impl Default for Infrastructure {
    fn default() -> Self {
        Self { dns: true, metadata: true, health_probes: true }
    }
}

/// A scope for names, with labels.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// As written; `kubernetes.io/metadata.name` (SEMANTICS NP8) is added by the compiler, whatever is written.
    pub labels: Labels,
    /// Replaces [`World::default`] for the ports of this namespace.
    pub default: Option<DefaultPolicy>,
}

/// What selectors match: a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// Its index in the switch.
    pub id: PortId,
    /// Its network: selectors of one network's ports match them by (network, address), never an equal address elsewhere
    /// (SEMANTICS SV26).
    pub network: NetworkId,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// Names of its L4 ports.
    pub named_ports: Vec<NamedPort>,
}

/// A name for an L4 port of an endpoint.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NamedPort {
    /// The name.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// The number.
    pub port: u16,
}

/// L4 protocols that policies can name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Protocol {
    /// IANA 6.
    Tcp,
    /// IANA 17.
    Udp,
    /// IANA 132.
    Sctp,
}

/// A label selector (`metav1.LabelSelector`). Without requirements it matches everything.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Selector {
    /// All must hold.
    pub requirements: Vec<Requirement>,
}

/// One requirement of a selector; `matchLabels` entries are `In` with one value.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Requirement {
    /// Label key.
    pub key: String,
    /// What its value must be.
    pub operator: Operator,
}

/// Operators of `matchExpressions` (SEMANTICS NP7).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Operator {
    /// The key is there, with one of the values.
    In(Vec<String>),
    /// The key is not there, or with none of the values.
    NotIn(Vec<String>),
    /// The key is there.
    Exists,
    /// The key is not there.
    DoesNotExist,
}

impl Selector {
    /// Whether labels fulfil all requirements.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|requirement| requirement.matches(labels))
    }
}

impl Requirement {
    /// Whether labels fulfil it.
    pub fn matches(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match &self.operator {
            Operator::In(values) => value.is_some_and(|value| values.contains(value)),
            Operator::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

/// Seen from the port that the policy selects.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Direction {
    /// From the port.
    Egress,
    /// To the port.
    Ingress,
}

/// What identifies a policy object.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PolicyName {
    /// Namespace of a NetworkPolicy; `None` for a ClusterNetworkPolicy.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

/// A NetworkPolicy v1.
#[derive(Clone, PartialEq, Debug)]
pub struct NetworkPolicy {
    /// Namespace and name.
    pub name: PolicyName,
    /// Where it was written (`conf.d/20-shop.yaml:9`), for people. Rules carry their own.
    pub origin: String,
    /// Ports of its namespace that it isolates.
    pub selector: Selector,
    /// Ingress rules; `None` when `policyTypes` (or their default, SEMANTICS NP3) leave the direction alone.
    pub ingress: Option<Vec<Rule>>,
    /// Egress rules, likewise.
    pub egress: Option<Vec<Rule>>,
    /// Would-be denials are reported and not enforced (`policy audit NAME on`).
    pub audit: bool,
}

/// One allow rule of a NetworkPolicy.
#[derive(Clone, PartialEq, Debug)]
pub struct Rule {
    /// Where it was written, for people.
    pub origin: String,
    /// The other side; empty means anybody, outside included (SEMANTICS NP11).
    pub peers: Vec<Peer>,
    /// Empty means any protocol and any L4 port (SEMANTICS NP12).
    pub ports: Vec<PortMatch>,
}

/// One element of `from` or `to`.
#[derive(Clone, PartialEq, Debug)]
pub enum Peer {
    /// Ports by labels. Of the policy's own namespace when `namespaces` is `None` (SEMANTICS NP14).
    Ports {
        /// Which namespaces.
        namespaces: Option<Selector>,
        /// Which ports in them; `None` means all.
        ports: Option<Selector>,
    },
    /// Addresses, whoever has them (SEMANTICS NP17).
    IpBlock {
        /// The range.
        cidr: IpNet,
        /// Holes in it, each within `cidr`.
        except: Vec<IpNet>,
    },
}

/// One element of `ports`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum PortMatch {
    /// Any L4 port of a protocol.
    Protocol(Protocol),
    /// L4 ports `first..=last` (`endPort`; equal for one).
    Range(Protocol, u16, u16),
    /// By name, resolved for each destination port (SEMANTICS NP15).
    Named(Protocol, String),
    /// By name with the protocol that the destination declares (ClusterNetworkPolicy `destinationNamedPort`).
    NamedAny(String),
}

/// Tier of a ClusterNetworkPolicy (SEMANTICS CN1).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Tier {
    /// Before NetworkPolicy v1.
    Admin,
    /// After it.
    Baseline,
}

/// A ClusterNetworkPolicy v1alpha2.
#[derive(Clone, PartialEq, Debug)]
pub struct ClusterNetworkPolicy {
    /// Its name; `namespace` is `None`.
    pub name: PolicyName,
    /// Where it was written, for people.
    pub origin: String,
    /// Its tier.
    pub tier: Tier,
    /// 0 to 1000, lower first; equal priorities by name (SEMANTICS CN2).
    pub priority: u32,
    /// Which namespaces' ports it is about.
    pub namespaces: Selector,
    /// Which ports in them; `None` means all.
    pub ports: Option<Selector>,
    /// Ingress rules, first match wins.
    pub ingress: Vec<ClusterRule>,
    /// Egress rules, first match wins.
    pub egress: Vec<ClusterRule>,
    /// Would-be denials are reported and not enforced.
    pub audit: bool,
}

/// What a ClusterNetworkPolicy rule does (SEMANTICS CN4).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    /// Final: it passes.
    Accept,
    /// Final: it is dropped.
    Deny,
    /// Skips the rest of the tier.
    Pass,
}

/// One rule of a ClusterNetworkPolicy.
#[derive(Clone, PartialEq, Debug)]
pub struct ClusterRule {
    /// Its `name` field, if written.
    pub name: Option<String>,
    /// Where it was written, for people.
    pub origin: String,
    /// What it does.
    pub action: Action,
    /// The other side; at least one.
    pub peers: Vec<ClusterPeer>,
    /// Empty means any protocol and any L4 port.
    pub ports: Vec<PortMatch>,
}

/// One element of a ClusterNetworkPolicy rule's `from` or `to`.
#[derive(Clone, PartialEq, Debug)]
pub enum ClusterPeer {
    /// Ports by labels.
    Ports {
        /// Which namespaces.
        namespaces: Selector,
        /// Which ports in them; `None` means all.
        ports: Option<Selector>,
    },
    /// Addresses, in-cluster destinations too (SEMANTICS CN7). Egress only.
    Networks(Vec<IpNet>),
    /// A peer that this version does not know, or that can match nothing here (`nodes`): it matches nothing in `Accept`;
    /// in `Deny` and `Pass` the result is deny (SEMANTICS CN9).
    Unknown,
}
