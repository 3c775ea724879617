//! A policy object, ready to be put into tiers: selectors and names replaced by numbers, address blocks by spans.

use std::sync::Arc;

use hostweave_switch::tables::mapped;
use ipnet::IpNet;

use crate::class::PortRange;
use crate::identity::Identities;
use crate::model::{
    Action, ClusterNetworkPolicy, ClusterPeer, ClusterRule, Direction, NetworkPolicy, Peer, PolicyName, PortMatch,
    Protocol, Rule, Selector, Tier,
};
use crate::selection::{Scope, SelectionKey, Selections};
use crate::table::{PolicyInfo, RuleId, RuleInfo};
use crate::tier::{V4_MAPPED, is_v4};

/// The selection of every port: it has no list of members.
pub(crate) const ALL_PORTS: u32 = u32::MAX;

/// A policy object as it came.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    V1(Arc<NetworkPolicy>),
    Cluster(Arc<ClusterNetworkPolicy>),
}

/// What the compiler knows of one policy object.
#[derive(Debug)]
pub(crate) struct Policy {
    pub source: Source,
    pub info: Arc<PolicyInfo>,
    /// 0 Admin, 1 NetworkPolicy v1, 2 Baseline (SEMANTICS CN1).
    pub tier: usize,
    /// Cluster priority; 0 for v1, where order does not matter (SEMANTICS NP1, CN2).
    pub priority: u32,
    /// Selection of the ports that it is about.
    pub subject: u32,
    /// By direction; `None` where the policy leaves it alone.
    pub directions: [Option<Resolved>; 2],
}

/// The rules of one direction.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub rules: Vec<ResolvedRule>,
}

/// One rule.
#[derive(Debug)]
pub(crate) struct ResolvedRule {
    pub id: RuleId,
    pub action: Action,
    /// The other side does not matter, be it a port or outside (SEMANTICS NP11).
    pub anybody: bool,
    /// The other side is in one of these.
    pub selections: Vec<u32>,
    /// Or its address in one of these spans (first, last), none of which has addresses of both families.
    pub blocks: Vec<(u128, u128)>,
    /// `None`: any protocol.
    pub ports: Option<Box<[PortRange]>>,
}

/// Where resolving finds and leaves its numbers.
pub(crate) struct Resolver<'a> {
    pub identities: &'a mut Identities,
    pub selections: &'a mut Selections,
}

impl Policy {
    /// Selections that it holds, peers and subject, to be released with it.
    pub(crate) fn held(&self) -> impl Iterator<Item = u32> {
        let rules = self.directions.iter().flatten().flat_map(|resolved| &resolved.rules);
        rules.flat_map(|rule| rule.selections.iter().copied()).chain([self.subject])
    }

    /// The rule number that stands for the isolation itself.
    pub(crate) fn isolation(&self, direction: usize) -> Option<RuleId> {
        matches!(self.source, Source::V1(_)).then(|| RuleId(self.info.first.0 + direction as u32))
    }
}

impl Source {
    pub(crate) fn name(&self) -> &PolicyName {
        match self {
            Source::V1(policy) => &policy.name,
            Source::Cluster(policy) => &policy.name,
        }
    }

    /// Rule numbers that it needs: its rules, and for v1 its isolation in each direction.
    pub(crate) fn rule_count(&self) -> usize {
        match self {
            Source::V1(policy) => {
                2 + [&policy.ingress, &policy.egress].into_iter().flatten().map(Vec::len).sum::<usize>()
            }
            Source::Cluster(policy) => policy.ingress.len() + policy.egress.len(),
        }
    }
}

impl Resolver<'_> {
    /// `first`: the first of [`Source::rule_count`] unused rule numbers.
    pub(crate) fn policy(&mut self, source: Source, first: RuleId) -> Policy {
        match &source {
            Source::V1(policy) => self.v1(&Arc::clone(policy), source, first),
            Source::Cluster(policy) => self.cluster(&Arc::clone(policy), source, first),
        }
    }

    fn v1(&mut self, policy: &NetworkPolicy, source: Source, first: RuleId) -> Policy {
        let namespace = policy.name.namespace.as_deref().unwrap_or_default();
        let name = Arc::new(policy.name.clone());
        let mut infos: Vec<RuleInfo> =
            DIRECTIONS.iter().map(|direction| isolation(policy, &name, *direction)).collect();
        let mut id = first.0 + 2;
        let mut direction = |resolver: &mut Self, direction: Direction, rules: Option<&Vec<Rule>>| {
            let rules = rules?.iter().enumerate().map(|(index, rule)| {
                infos.push(RuleInfo {
                    policy: Arc::clone(&name),
                    tier: None,
                    direction,
                    index: Some(index),
                    name: None,
                    origin: rule.origin.clone(),
                    action: Action::Accept,
                    audit: policy.audit,
                });
                id += 1;
                resolver.v1_rule(namespace, rule, RuleId(id - 1))
            });
            Some(Resolved { rules: rules.collect() })
        };
        let egress = direction(self, Direction::Egress, policy.egress.as_ref());
        let ingress = direction(self, Direction::Ingress, policy.ingress.as_ref());
        let subject = self.own(namespace, policy.selector.clone());
        let info = PolicyInfo {
            name,
            origin: policy.origin.clone(),
            tier: None,
            audit: policy.audit,
            first,
            rules: infos.into(),
        };
        Policy { source, info: Arc::new(info), tier: 1, priority: 0, subject, directions: [egress, ingress] }
    }

    fn v1_rule(&mut self, namespace: &str, rule: &Rule, id: RuleId) -> ResolvedRule {
        let (mut selections, mut blocks) = (Vec::new(), Vec::new());
        for peer in &rule.peers {
            match peer {
                Peer::Ports { namespaces: None, ports } => {
                    selections.push(self.own(namespace, ports.clone().unwrap_or_default()));
                }
                Peer::Ports { namespaces: Some(namespaces), ports } => {
                    selections.push(self.any(namespaces.clone(), ports.clone().unwrap_or_default()));
                }
                Peer::IpBlock { cidr, except } => blocks.extend(spans(*cidr, except)),
            }
        }
        let ports = self.ports(&rule.ports);
        ResolvedRule { id, action: Action::Accept, anybody: rule.peers.is_empty(), selections, blocks, ports }
    }

    fn cluster(&mut self, policy: &ClusterNetworkPolicy, source: Source, first: RuleId) -> Policy {
        let name = Arc::new(policy.name.clone());
        let mut infos = Vec::new();
        let mut id = first.0;
        let mut direction = |resolver: &mut Self, direction: Direction, rules: &[ClusterRule]| {
            let resolved = rules.iter().enumerate().map(|(index, rule)| {
                let resolved = resolver.cluster_rule(rule, RuleId(id));
                id += 1;
                infos.push(RuleInfo {
                    policy: Arc::clone(&name),
                    tier: Some(policy.tier),
                    direction,
                    index: Some(index),
                    name: rule.name.clone(),
                    origin: rule.origin.clone(),
                    action: resolved.action,
                    audit: policy.audit,
                });
                resolved
            });
            // "CNPs with no ingress rules do not affect ingress traffic."
            (!rules.is_empty()).then(|| Resolved { rules: resolved.collect() })
        };
        let egress = direction(self, Direction::Egress, &policy.egress);
        let ingress = direction(self, Direction::Ingress, &policy.ingress);
        let subject = self.any(policy.namespaces.clone(), policy.ports.clone().unwrap_or_default());
        let info = PolicyInfo {
            name,
            origin: policy.origin.clone(),
            tier: Some(policy.tier),
            audit: policy.audit,
            first,
            rules: infos.into(),
        };
        let tier = if policy.tier == Tier::Admin { 0 } else { 2 };
        Policy { source, info: Arc::new(info), tier, priority: policy.priority, subject, directions: [egress, ingress] }
    }

    fn cluster_rule(&mut self, rule: &ClusterRule, id: RuleId) -> ResolvedRule {
        // SEMANTICS CN9. The API: for Deny and Pass rules, "fail closed" means "treat the rule as a 'Deny all' rule".
        if rule.action != Action::Accept && rule.peers.contains(&ClusterPeer::Unknown) {
            return ResolvedRule {
                id,
                action: Action::Deny,
                anybody: true,
                selections: vec![],
                blocks: vec![],
                ports: None,
            };
        }
        let (mut selections, mut blocks) = (Vec::new(), Vec::new());
        for peer in &rule.peers {
            match peer {
                ClusterPeer::Ports { namespaces, ports } => {
                    selections.push(self.any(namespaces.clone(), ports.clone().unwrap_or_default()));
                }
                ClusterPeer::Networks(networks) => {
                    blocks.extend(networks.iter().flat_map(|network| spans(*network, &[])))
                }
                ClusterPeer::Unknown => {}
            }
        }
        let ports = self.ports(&rule.ports);
        ResolvedRule { id, action: rule.action, anybody: false, selections, blocks, ports }
    }

    fn ports(&mut self, ports: &[PortMatch]) -> Option<Box<[PortRange]>> {
        if ports.is_empty() {
            return None;
        }
        let mut ranges = Vec::with_capacity(ports.len());
        for port in ports {
            match port {
                PortMatch::Protocol(protocol) => ranges.push(PortRange::Numbers(*protocol, 0, u16::MAX)),
                PortMatch::Range(protocol, first, last) => ranges.push(PortRange::Numbers(*protocol, *first, *last)),
                PortMatch::Named(protocol, name) => {
                    ranges.push(PortRange::Named(*protocol, self.identities.name(name)))
                }
                PortMatch::NamedAny(name) => {
                    let name = self.identities.name(name);
                    ranges.extend(
                        [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(|protocol| PortRange::Named(protocol, name)),
                    );
                }
            }
        }
        Some(ranges.into())
    }

    fn own(&mut self, namespace: &str, ports: Selector) -> u32 {
        let namespace = self.identities.acquire_namespace(namespace);
        let id = self.selections.acquire(SelectionKey { scope: Scope::Own(namespace), ports }, self.identities);
        // The selection holds the namespace from now on.
        self.identities.release_namespace(namespace);
        id
    }

    fn any(&mut self, namespaces: Selector, ports: Selector) -> u32 {
        if namespaces.requirements.is_empty() && ports.requirements.is_empty() {
            return ALL_PORTS;
        }
        self.selections.acquire(SelectionKey { scope: Scope::Matching(namespaces), ports }, self.identities)
    }
}

/// In the order of [`direction_index`].
pub(crate) const DIRECTIONS: [Direction; 2] = [Direction::Egress, Direction::Ingress];

/// Index of a direction in arrays of both.
#[inline]
pub(crate) fn direction_index(direction: Direction) -> usize {
    match direction {
        Direction::Egress => 0,
        Direction::Ingress => 1,
    }
}

fn isolation(policy: &NetworkPolicy, name: &Arc<PolicyName>, direction: Direction) -> RuleInfo {
    RuleInfo {
        policy: Arc::clone(name),
        tier: None,
        direction,
        index: None,
        name: None,
        origin: policy.origin.clone(),
        action: Action::Deny,
        audit: policy.audit,
    }
}

/// An address block without its holes (SEMANTICS NP17), as spans of the space in which IPv4 is mapped. An IPv6 block never
/// contains IPv4 addresses, whatever its numbers: `::/0` is not everything.
pub(crate) fn spans(cidr: IpNet, except: &[IpNet]) -> Vec<(u128, u128)> {
    let mut holes: Vec<(u128, u128)> =
        except.iter().filter(|hole| hole.addr().is_ipv4() == cidr.addr().is_ipv4()).map(bounds).collect();
    if cidr.addr().is_ipv6() {
        holes.push((V4_MAPPED, V4_MAPPED + u128::from(u32::MAX)));
    }
    holes.sort_unstable();
    let (mut from, last) = bounds(&cidr);
    let mut spans = Vec::new();
    for (hole_first, hole_last) in holes {
        if hole_first > last || hole_last < from {
            continue;
        }
        if hole_first > from {
            spans.push((from, hole_first - 1));
        }
        match hole_last.checked_add(1) {
            Some(next) if next <= last => from = next,
            _ => return spans,
        }
    }
    spans.push((from, last));
    debug_assert!(spans.iter().all(|(first, last)| is_v4(*first) == is_v4(*last)));
    spans
}

fn bounds(cidr: &IpNet) -> (u128, u128) {
    (mapped(cidr.network()), mapped(cidr.broadcast()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(cidr: &str, except: &[&str]) -> Vec<String> {
        let except: Vec<IpNet> = except.iter().map(|cidr| cidr.parse().unwrap()).collect();
        let text = |bits: u128| std::net::IpAddr::from(std::net::Ipv6Addr::from_bits(bits)).to_canonical().to_string();
        spans(cidr.parse().unwrap(), &except)
            .iter()
            .map(|(first, last)| format!("{}-{}", text(*first), text(*last)))
            .collect()
    }

    #[test]
    fn np17_holes_are_cut_out() {
        assert_eq!(written("192.0.2.0/24", &[]), ["192.0.2.0-192.0.2.255"]);
        assert_eq!(
            written("192.0.2.77/24", &["192.0.2.16/28", "192.0.2.0/28", "192.0.2.20/32", "192.0.2.255/32"]),
            ["192.0.2.32-192.0.2.254"]
        );
        assert_eq!(written("0.0.0.0/0", &["255.0.0.0/8"]), ["0.0.0.0-254.255.255.255"]);
        assert_eq!(written("2001:db8::/32", &["2001:db8:0:1::/64"]).len(), 2);
        assert_eq!(written("192.0.2.0/24", &["0.0.0.0/0"]).len(), 0, "a hole larger than the block");
    }

    #[test]
    fn every_ipv6_address_is_no_ipv4_address() {
        let spans = spans("::/0".parse().unwrap(), &[]);
        assert_eq!(spans, [(0, V4_MAPPED - 1), (V4_MAPPED + (1 << 32), u128::MAX)]);
        assert_eq!(written("::ffff:192.0.2.0/120", &[]).len(), 0);
    }
}
