//! Why a verdict is what it is, in words: for `trace`. Off the packet path, slow, on the policies as written. It never decides:
//! the verdict is the table's, and this only says which rule came nearest to another one.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use hostweave_switch::tables::PortId;
use ipnet::IpNet;

use crate::identity::NAME_LABEL;
use crate::model::{
    Action, ClusterPeer, ClusterRule, Direction, Endpoint, Labels, Operator, Peer, PolicyName, PortMatch, Protocol,
    Requirement, Rule, Selector, World,
};
use crate::table::{Basis, Decision, Flow, PolicyInfo, RuleInfo, Table};

/// What there is to say about a decision.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The table's verdict.
    pub decision: Decision,
    /// Policies that have a say about the subject in this direction, in the order in which they are asked.
    pub selecting: Vec<Arc<PolicyInfo>>,
    /// The rule that decided, if one did.
    pub rule: Option<RuleInfo>,
    /// Of a connection that is denied: the rule that nearly allowed it, if there is any. Where a rule denies it, one that is asked before.
    pub miss: Option<Miss>,
    /// What a policy in audit mode would have denied it with.
    pub audit: Option<RuleInfo>,
    /// One sentence, lower case, without a full stop: `cache-0 has app=cache; rule 1 wants app=web`.
    pub sentence: String,
}

/// A rule that does not match, and what it lacks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Miss {
    /// Its policy.
    pub policy: PolicyName,
    /// Its place in the list of rules of this direction, from 0.
    pub index: usize,
    /// Where it was written.
    pub origin: String,
    /// What it lacks.
    pub sentence: String,
    /// Conditions that do not hold: the fewer, the nearer.
    distance: usize,
}

/// Explains what `table` says about `flow`. `world` is what the table was compiled from.
pub fn explain(world: &World, table: &Table, flow: &Flow) -> Explanation {
    let decision = table.decide(flow);
    let asked = Asked {
        world,
        flow,
        subject: endpoint(world, flow.subject),
        peer: flow.peer.and_then(|peer| endpoint(world, peer)),
    };
    let selecting: Vec<Arc<PolicyInfo>> = table.selecting(flow.subject, flow.direction).cloned().collect();
    let rule = match decision.basis {
        Basis::Rule(id) => table.rule(id).cloned(),
        _ => None,
    };
    let isolating: Vec<&PolicyInfo> =
        selecting.iter().filter(|policy| policy.isolates()).map(|policy| &**policy).collect();
    let miss = match decision.basis {
        Basis::NoRule => asked.nearest(&isolating),
        Basis::HostDefault => asked.nearest_cluster(&selecting, None),
        Basis::Rule(_) if !decision.allowed => {
            rule.as_ref().and_then(|rule| asked.nearest_cluster(&selecting, Some(rule)))
        }
        _ => None,
    };
    let audit = decision.audit.and_then(|id| table.rule(id)).cloned();
    let sentence = match (decision.basis, &rule, &miss) {
        (Basis::Rule(_), Some(rule), _) => decided_by(rule),
        (Basis::Rule(_), None, _) => "decided by a rule that is no longer there".to_owned(),
        (Basis::NoRule, _, Some(miss)) => miss.sentence.clone(),
        (Basis::NoRule, _, None) => format!("default deny: selected by {}", names(&isolating)),
        (Basis::NotCompiled, ..) => "its policy is not compiled yet".to_owned(),
        (Basis::Myself, ..) => "a port cannot be blocked from itself".to_owned(),
        (Basis::NotSelected, ..) => asked.nothing_matches(&selecting),
        // `decide` says neither; the caller who does has no need of an explanation.
        (Basis::BuiltIn(rule), ..) => format!("{} allows it whatever policies say", rule.name()),
        (Basis::Host, ..) => "it is the host's own, which no policy selects".to_owned(),
        (Basis::HostDefault, ..) => format!("default policy deny: {}", asked.nothing_matches(&selecting)),
    };
    Explanation { decision, selecting, rule, miss, audit, sentence }
}

impl std::fmt::Display for PolicyName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// The question, with the names of both sides looked up.
struct Asked<'a> {
    world: &'a World,
    flow: &'a Flow,
    subject: Option<&'a Endpoint>,
    peer: Option<&'a Endpoint>,
}

impl Asked<'_> {
    /// The rule with the fewest conditions that do not hold; of equals the first.
    fn nearest(&self, isolating: &[&PolicyInfo]) -> Option<Miss> {
        let policies =
            isolating.iter().filter_map(|info| self.world.policies.iter().find(|policy| policy.name == *info.name));
        let misses = policies.flat_map(|policy| {
            let rules = match self.flow.direction {
                Direction::Ingress => &policy.ingress,
                Direction::Egress => &policy.egress,
            };
            rules.iter().flatten().enumerate().map(|(index, rule)| self.miss(&policy.name, index, rule))
        });
        misses.min_by_key(|miss| miss.distance)
    }

    /// The same of ClusterNetworkPolicies that accept, up to the rule that denied.
    fn nearest_cluster(&self, selecting: &[Arc<PolicyInfo>], denied: Option<&RuleInfo>) -> Option<Miss> {
        let mut misses: Vec<Miss> = Vec::new();
        for info in selecting.iter().filter(|info| info.tier.is_some() && !info.audit) {
            let policy = self.world.cluster_policies.iter().find(|policy| policy.name == *info.name)?;
            let rules = match self.flow.direction {
                Direction::Ingress => &policy.ingress,
                Direction::Egress => &policy.egress,
            };
            let last = denied.filter(|rule| *rule.policy == policy.name).map(|rule| rule.index.unwrap_or(0));
            let asked = rules.iter().enumerate().take(last.unwrap_or(rules.len()));
            let accepting = asked.filter(|(_, rule)| rule.action == Action::Accept);
            let allowing = accepting.filter_map(|(index, rule)| Some((index, as_allowing(rule)?)));
            misses.extend(allowing.map(|(index, rule)| self.miss(&policy.name, index, &rule)));
            if last.is_some() {
                break;
            }
        }
        misses.into_iter().min_by_key(|miss| miss.distance)
    }

    fn miss(&self, policy: &PolicyName, index: usize, rule: &Rule) -> Miss {
        let number = index + 1;
        let peer = self.peer_lacks(policy, rule, number);
        let ports = self.ports_lack(&rule.ports);
        let (distance, sentence) = match (peer, ports) {
            (None, None) => (0, format!("rule {number} matches")),
            (None, Some(lack)) => (1, format!("rule {number} matches all but {lack}")),
            (Some((distance, sentence)), None) => (distance, sentence),
            // Both sides of it: further away than any that lacks one.
            (Some((distance, sentence)), Some(lack)) => {
                (distance + FAR, format!("{sentence}, and {lack} does not match"))
            }
        };
        Miss { policy: policy.clone(), index, origin: rule.origin.clone(), sentence, distance }
    }

    /// What the peer lacks for the element of the rule that is nearest to it.
    fn peer_lacks(&self, policy: &PolicyName, rule: &Rule, number: usize) -> Option<(usize, String)> {
        let mut nearest: Option<(usize, String)> = None;
        for peer in &rule.peers {
            let (distance, sentence) = match peer {
                Peer::IpBlock { cidr, except } => self.block_lacks(*cidr, except, number)?,
                Peer::Ports { namespaces, ports } => {
                    let ports = ports.clone().unwrap_or_default();
                    self.selector_lacks(policy, namespaces.as_ref(), &ports, number)?
                }
            };
            if nearest.as_ref().is_none_or(|(least, _)| distance < *least) {
                nearest = Some((distance, sentence));
            }
        }
        nearest
    }

    fn block_lacks(&self, cidr: IpNet, except: &[IpNet], number: usize) -> Option<(usize, String)> {
        let address = self.address();
        if !cidr.contains(&address) {
            return Some((2, format!("{address} is not in {cidr}, which rule {number} wants")));
        }
        let hole = except.iter().find(|hole| hole.contains(&address))?;
        Some((1, format!("{address} is in {hole}, which rule {number} excepts")))
    }

    fn selector_lacks(
        &self,
        policy: &PolicyName,
        namespaces: Option<&Selector>,
        ports: &Selector,
        number: usize,
    ) -> Option<(usize, String)> {
        let wanted = |selector: &Selector| match &selector.requirements[..] {
            [] => "any port".to_owned(),
            requirements => requirements.iter().map(text).collect::<Vec<_>>().join(", "),
        };
        let Some(peer) = self.peer.filter(|peer| self.subject.is_some_and(|subject| subject.network == peer.network))
        else {
            let address = self.address();
            return Some((3, format!("{address} is no port of this network; rule {number} wants {}", wanted(ports))));
        };
        let mut lacks: Vec<(String, String)> = Vec::new();
        match namespaces {
            None if policy.namespace.as_ref() != Some(&peer.namespace) => {
                let own = policy.namespace.clone().unwrap_or_default();
                lacks.push((format!("{} is in namespace {}", peer.name, peer.namespace), format!("namespace {own}")));
            }
            None => {}
            Some(selector) => {
                let labels = self.namespace_labels(&peer.namespace);
                for requirement in failing(selector, &labels) {
                    let has = has(&labels, &requirement.key);
                    lacks.push((
                        format!("namespace {} {has}", peer.namespace),
                        format!("a namespace with {}", text(requirement)),
                    ));
                }
            }
        }
        for requirement in failing(ports, &peer.labels) {
            lacks.push((format!("{} {}", peer.name, has(&peer.labels, &requirement.key)), text(requirement)));
        }
        let (has, wants): (Vec<String>, Vec<String>) = lacks.into_iter().unzip();
        (!has.is_empty()).then(|| (has.len(), format!("{}; rule {number} wants {}", has.join(", "), wants.join(", "))))
    }

    fn namespace_labels(&self, name: &str) -> Labels {
        let mut labels = self.world.namespaces.get(name).map(|namespace| namespace.labels.clone()).unwrap_or_default();
        labels.insert(NAME_LABEL.to_owned(), name.to_owned());
        labels
    }

    /// What the destination port lacks: `port 8080 (it has tcp 80)`.
    fn ports_lack(&self, ports: &[PortMatch]) -> Option<String> {
        if ports.is_empty() {
            return None;
        }
        let has = ports.iter().map(port_text).collect::<Vec<_>>().join(", ");
        let Some((protocol, port)) = Protocol::from_number(self.flow.proto).zip(self.flow.dst_port) else {
            return Some(format!(
                "the protocol: only rules without ports match {} (it has {has})",
                protocol_text(self.flow)
            ));
        };
        let destination = if self.flow.direction == Direction::Ingress { self.subject } else { self.peer };
        let declares = |name: &str| {
            destination.is_some_and(|to| {
                to.named_ports
                    .iter()
                    .any(|named| named.name == name && (named.protocol, named.port) == (protocol, port))
            })
        };
        let matches = |wanted: &PortMatch| match wanted {
            PortMatch::Protocol(wanted) => *wanted == protocol,
            PortMatch::Range(wanted, first, last) => *wanted == protocol && (*first..=*last).contains(&port),
            PortMatch::Named(wanted, name) => *wanted == protocol && declares(name),
            PortMatch::NamedAny(name) => declares(name),
        };
        if ports.iter().any(matches) {
            return None;
        }
        let right_port = ports
            .iter()
            .any(|wanted| matches!(wanted, PortMatch::Range(_, first, last) if (*first..=*last).contains(&port)));
        if right_port {
            return Some(format!("protocol {} (it has {has})", protocol_name(protocol)));
        }
        Some(format!("port {port} (it has {has})"))
    }

    fn address(&self) -> IpAddr {
        IpAddr::V6(Ipv6Addr::from_bits(self.flow.peer_address)).to_canonical()
    }

    fn nothing_matches(&self, selecting: &[Arc<PolicyInfo>]) -> String {
        let name = self.subject.map_or("the port", |subject| subject.name.as_str());
        let direction = match self.flow.direction {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        };
        if selecting.is_empty() {
            return format!("no {direction} policy selects {name}");
        }
        let all: Vec<&PolicyInfo> = selecting.iter().map(|policy| &**policy).collect();
        format!("no rule in force matches of those that select {name}: {}", names(&all))
    }
}

/// A rule that accepts, as a NetworkPolicy would have it. A peer that nothing is known of matches nobody (SEMANTICS CN9); `None` where all
/// are such.
fn as_allowing(rule: &ClusterRule) -> Option<Rule> {
    let peer = |peer: &ClusterPeer| match peer {
        ClusterPeer::Ports { namespaces, ports } => {
            vec![Peer::Ports { namespaces: Some(namespaces.clone()), ports: ports.clone() }]
        }
        ClusterPeer::Networks(networks) => {
            networks.iter().map(|cidr| Peer::IpBlock { cidr: *cidr, except: Vec::new() }).collect()
        }
        ClusterPeer::Unknown => Vec::new(),
    };
    let peers: Vec<Peer> = rule.peers.iter().flat_map(peer).collect();
    // None at all would mean anybody.
    (!peers.is_empty()).then(|| Rule { origin: rule.origin.clone(), peers, ports: rule.ports.clone() })
}

/// Distance of a rule that lacks both the peer and the port, beyond every rule that lacks one.
const FAR: usize = 1000;

fn endpoint(world: &World, id: PortId) -> Option<&Endpoint> {
    world.endpoints.iter().find(|endpoint| endpoint.id == id).map(|endpoint| &**endpoint)
}

fn names(policies: &[&PolicyInfo]) -> String {
    policies.iter().map(|policy| policy.name.to_string()).collect::<Vec<_>>().join(", ")
}

fn decided_by(rule: &RuleInfo) -> String {
    let number = rule.index.map_or(0, |index| index + 1);
    let verb = match (rule.tier, rule.action) {
        (None, _) => "allows",
        (Some(_), Action::Accept) => "accepts",
        (Some(_), Action::Deny) => "denies",
        (Some(_), Action::Pass) => "passes on",
    };
    match &rule.name {
        Some(name) => format!("rule {number} ({name}) of {} {verb} it", rule.policy),
        None => format!("rule {number} of {} {verb} it", rule.policy),
    }
}

fn failing<'a>(selector: &'a Selector, labels: &'a Labels) -> impl Iterator<Item = &'a Requirement> {
    selector.requirements.iter().filter(|requirement| !requirement.matches(labels))
}

/// `has app=cache`, `has no label app`.
fn has(labels: &Labels, key: &str) -> String {
    match labels.get(key) {
        Some(value) => format!("has {key}={value}"),
        None => format!("has no label {key}"),
    }
}

fn text(requirement: &Requirement) -> String {
    let key = &requirement.key;
    match &requirement.operator {
        Operator::In(values) => match &values[..] {
            [value] => format!("{key}={value}"),
            values => format!("{key} in ({})", values.join(", ")),
        },
        Operator::NotIn(values) => format!("{key} not in ({})", values.join(", ")),
        Operator::Exists => format!("a label {key}"),
        Operator::DoesNotExist => format!("no label {key}"),
    }
}

fn port_text(port: &PortMatch) -> String {
    match port {
        PortMatch::Protocol(protocol) => protocol_name(*protocol).to_owned(),
        PortMatch::Range(protocol, first, last) if first == last => format!("{} {first}", protocol_name(*protocol)),
        PortMatch::Range(protocol, first, last) => format!("{} {first}-{last}", protocol_name(*protocol)),
        PortMatch::Named(protocol, name) => format!("{} {name}", protocol_name(*protocol)),
        PortMatch::NamedAny(name) => name.clone(),
    }
}

fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

fn protocol_text(flow: &Flow) -> String {
    match (flow.proto, Protocol::from_number(flow.proto)) {
        (1, _) => "icmp".to_owned(),
        (58, _) => "icmpv6".to_owned(),
        (_, Some(protocol)) => format!("{} without a known port", protocol_name(protocol)),
        (other, None) => format!("protocol {other}"),
    }
}
