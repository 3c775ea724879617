//! What policies mean, written down sentence by sentence and without any regard for speed. It shares the model's types with
//! the crate and nothing else: not even how a selector matches.

use std::net::{IpAddr, Ipv6Addr};

use hostweave_policy::model::*;
use hostweave_policy::table::Flow;
use ipnet::IpNet;

/// Why the oracle decided as it did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reason {
    NotCompiled,
    Myself,
    /// Any of these v1 rules (policy, index) allows it: which one is told is up to the implementation.
    Allowed(Vec<(PolicyName, usize)>),
    NoRule,
    /// A cluster rule: policy, index.
    Cluster(PolicyName, usize),
    NotSelected,
    HostDefault,
}

/// Verdict of the oracle.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    pub allowed: bool,
    pub reason: Reason,
    /// Policy in audit mode that would have denied it, with the index of a cluster rule.
    pub audit: Option<(PolicyName, Option<usize>)>,
}

/// May this new connection pass?
pub fn judge(world: &World, flow: &Flow) -> Verdict {
    let deny = |reason| Verdict { allowed: false, reason, audit: None };
    let Some(subject) = world.endpoints.iter().find(|endpoint| endpoint.id == flow.subject) else {
        return deny(Reason::NotCompiled);
    };
    if flow.peer == Some(flow.subject) {
        return Verdict { allowed: true, reason: Reason::Myself, audit: None };
    }
    // "podSelector never matches an equal address in another network."
    let peer = world.endpoints.iter().map(|e| &**e).find(|e| Some(e.id) == flow.peer && e.network == subject.network);
    let judge = Judge { world, flow, subject, peer };
    let mut audit = None;

    if let Some(verdict) = judge.cluster(Tier::Admin, &mut audit) {
        return verdict;
    }
    let isolating = judge.isolating();
    let allowing = judge.allowing(&isolating);
    if !allowing.is_empty() {
        return Verdict { allowed: true, reason: Reason::Allowed(allowing), audit };
    }
    if isolating.iter().any(|policy| !policy.audit) {
        return deny(Reason::NoRule);
    }
    if audit.is_none() {
        audit = isolating.iter().map(|policy| (policy.name.clone(), None)).min();
    }
    if let Some(verdict) = judge.cluster(Tier::Baseline, &mut audit) {
        return verdict;
    }
    let namespace = world.namespaces.get(&subject.namespace);
    match namespace.and_then(|namespace| namespace.default).unwrap_or(world.default) {
        DefaultPolicy::Allow => Verdict { allowed: true, reason: Reason::NotSelected, audit },
        DefaultPolicy::Deny => deny(Reason::HostDefault),
    }
}

struct Judge<'a> {
    world: &'a World,
    flow: &'a Flow,
    subject: &'a Endpoint,
    peer: Option<&'a Endpoint>,
}

impl Judge<'_> {
    /// "A pod is isolated for ingress if there is any NetworkPolicy that both selects the pod and has Ingress in its policyTypes."
    fn isolating(&self) -> Vec<&NetworkPolicy> {
        let mut found = Vec::new();
        for policy in &self.world.policies {
            let has_type = match self.flow.direction {
                Direction::Ingress => policy.ingress.is_some(),
                Direction::Egress => policy.egress.is_some(),
            };
            let own = policy.name.namespace.as_deref() == Some(self.subject.namespace.as_str());
            if has_type && own && selects(&policy.selector, &self.subject.labels) {
                found.push(&**policy);
            }
        }
        found
    }

    /// "The only allowed connections are those allowed by the ingress list of some NetworkPolicy that applies to the pod."
    fn allowing(&self, policies: &[&NetworkPolicy]) -> Vec<(PolicyName, usize)> {
        let mut found = Vec::new();
        for policy in policies {
            let rules = match self.flow.direction {
                Direction::Ingress => policy.ingress.as_ref(),
                Direction::Egress => policy.egress.as_ref(),
            };
            for (index, rule) in rules.into_iter().flatten().enumerate() {
                // "If this field is empty or missing, this rule matches all sources."
                let from = rule.peers.is_empty() || rule.peers.iter().any(|peer| self.is_peer(policy, peer));
                if from && self.is_port(&rule.ports) {
                    found.push((policy.name.clone(), index));
                }
            }
        }
        found
    }

    fn is_peer(&self, policy: &NetworkPolicy, peer: &Peer) -> bool {
        match peer {
            Peer::Ports { namespaces, ports } => {
                let Some(endpoint) = self.peer else { return false };
                let in_namespace = match namespaces {
                    // "selects the pods matching podSelector in the policy's own namespace."
                    None => policy.name.namespace.as_ref() == Some(&endpoint.namespace),
                    Some(selector) => selects(selector, &self.namespace_labels(endpoint)),
                };
                in_namespace && ports.as_ref().is_none_or(|selector| selects(selector, &endpoint.labels))
            }
            Peer::IpBlock { cidr, except } => self.is_within(cidr) && !except.iter().any(|hole| self.is_within(hole)),
        }
    }

    fn namespace_labels(&self, endpoint: &Endpoint) -> Labels {
        let mut labels = Labels::new();
        if let Some(namespace) = self.world.namespaces.get(&endpoint.namespace) {
            labels.extend(namespace.labels.clone());
        }
        labels.insert("kubernetes.io/metadata.name".into(), endpoint.namespace.clone());
        labels
    }

    fn is_within(&self, cidr: &IpNet) -> bool {
        let address = Ipv6Addr::from_bits(self.flow.peer_address);
        match (address.to_ipv4_mapped(), cidr) {
            (Some(address), IpNet::V4(cidr)) => cidr.contains(&address),
            (None, IpNet::V6(cidr)) => cidr.contains(&address),
            _ => false,
        }
    }

    fn is_port(&self, ports: &[PortMatch]) -> bool {
        if ports.is_empty() {
            return true;
        }
        let protocol = match self.flow.proto {
            6 => Protocol::Tcp,
            17 => Protocol::Udp,
            132 => Protocol::Sctp,
            _ => return false,
        };
        let Some(number) = self.flow.dst_port else { return false };
        let destination = match self.flow.direction {
            Direction::Ingress => Some(self.subject),
            Direction::Egress => self.peer,
        };
        let declares = |name: &str| {
            destination.is_some_and(|endpoint| {
                endpoint.named_ports.iter().any(|p| p.name == name && p.port == number && p.protocol == protocol)
            })
        };
        ports.iter().any(|port| match port {
            PortMatch::Protocol(wanted) => *wanted == protocol,
            PortMatch::Range(wanted, first, last) => *wanted == protocol && *first <= number && number <= *last,
            PortMatch::Named(wanted, name) => *wanted == protocol && declares(name),
            PortMatch::NamedAny(name) => declares(name),
        })
    }

    /// "Policies with lower priority values are checked before"; the first rule that matches decides, `Pass` skips the tier.
    fn cluster(&self, tier: Tier, audit: &mut Option<(PolicyName, Option<usize>)>) -> Option<Verdict> {
        let mut policies: Vec<&ClusterNetworkPolicy> =
            self.world.cluster_policies.iter().map(|policy| &**policy).filter(|policy| policy.tier == tier).collect();
        policies.sort_by(|a, b| (a.priority, &a.name.name).cmp(&(b.priority, &b.name.name)));
        for policy in policies {
            let in_namespace = selects(&policy.namespaces, &self.namespace_labels(self.subject));
            if !in_namespace || policy.ports.as_ref().is_some_and(|selector| !selects(selector, &self.subject.labels)) {
                continue;
            }
            let rules = match self.flow.direction {
                Direction::Ingress => &policy.ingress,
                Direction::Egress => &policy.egress,
            };
            for (index, rule) in rules.iter().enumerate() {
                let Some(action) = self.action(rule) else { continue };
                let reason = Reason::Cluster(policy.name.clone(), index);
                match action {
                    Action::Accept => return Some(Verdict { allowed: true, reason, audit: audit.clone() }),
                    Action::Deny if policy.audit => {
                        if audit.is_none() {
                            *audit = Some((policy.name.clone(), Some(index)));
                        }
                    }
                    Action::Deny => return Some(Verdict { allowed: false, reason, audit: None }),
                    Action::Pass => return None,
                }
            }
        }
        None
    }

    /// What a rule does to the flow, if it matches.
    fn action(&self, rule: &ClusterRule) -> Option<Action> {
        // "Accept: treat as matching no traffic. Deny and Pass: treat the rule as a 'Deny all' rule."
        if rule.peers.iter().any(|peer| matches!(peer, ClusterPeer::Unknown)) && rule.action != Action::Accept {
            return Some(Action::Deny);
        }
        let matches = rule.peers.iter().any(|peer| match peer {
            ClusterPeer::Ports { namespaces, ports } => self.peer.is_some_and(|endpoint| {
                selects(namespaces, &self.namespace_labels(endpoint))
                    && ports.as_ref().is_none_or(|selector| selects(selector, &endpoint.labels))
            }),
            ClusterPeer::Networks(networks) => networks.iter().any(|network| self.is_within(network)),
            ClusterPeer::Unknown => false,
        });
        (matches && self.is_port(&rule.ports)).then_some(rule.action)
    }
}

/// "The requirements are ANDed. An empty label selector matches all objects."
fn selects(selector: &Selector, labels: &Labels) -> bool {
    for requirement in &selector.requirements {
        let value = labels.get(&requirement.key);
        let holds = match (&requirement.operator, value) {
            (Operator::In(values), Some(value)) => values.iter().any(|v| v == value),
            (Operator::In(_), None) => false,
            (Operator::NotIn(values), Some(value)) => values.iter().all(|v| v != value),
            (Operator::NotIn(_), None) => true,
            (Operator::Exists, value) => value.is_some(),
            (Operator::DoesNotExist, value) => value.is_none(),
        };
        if !holds {
            return false;
        }
    }
    true
}

/// An address in the space of [`Flow::peer_address`].
pub fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}
