//! `ClusterNetworkPolicy`, checked by the validation rules that `apis/v1alpha2` of `kubernetes-sigs/network-policy-api`
//! carries, in the words of the compiler.

use hostweave_policy::model::{self, ClusterPeer, PolicyName, PortMatch, Protocol, Selector};

use super::annotations::audit;
use super::network_policy::{Places, check_cidr, check_port_name, l4_port};
use super::{Metadata, Origin, range, selector};
use crate::config::kind::ObjectKey;
use crate::config::node::Path;
use crate::config::problem::Problem;
use crate::config::raw::cluster_network_policy as raw;
use crate::config::raw::selector::LabelSelector;

/// Rules of a direction, peers and protocols of a rule, networks of a peer (SEMANTICS CN3).
const LIST_MAX: usize = 25;

/// Characters of the name of a rule.
const RULE_NAME_MAX: usize = 100;

/// Highest `priority` (SEMANTICS CN2).
const PRIORITY_MAX: u32 = 1000;

/// Checks what is written; values of fields that have a problem are meaningless.
pub(super) fn check(
    key: &ObjectKey,
    metadata: &Metadata,
    raw: &raw::ClusterNetworkPolicySpec,
    places: &Places<'_>,
    problems: &mut Vec<Problem>,
) -> model::ClusterNetworkPolicy {
    let spec = Path::of("spec");
    let priority = range(Some(raw.priority), 0, PRIORITY_MAX, &spec.key("priority"), problems).unwrap_or(PRIORITY_MAX);
    let subject = &raw.subject;
    let (namespaces, ports) =
        check_pods(subject.namespaces.as_ref(), subject.pods.as_ref(), &spec.key("subject"), problems)
            .unwrap_or_default();
    let (ingress_path, egress_path) = (spec.key("ingress"), spec.key("egress"));
    let (ingress, egress) = (raw.ingress.as_deref().unwrap_or_default(), raw.egress.as_deref().unwrap_or_default());
    check_count(ingress.len(), 0, &ingress_path, "rules", problems);
    check_count(egress.len(), 0, &egress_path, "rules", problems);
    let ingress = ingress.iter().enumerate();
    let ingress = ingress.map(|(index, rule)| check_ingress(rule, &ingress_path.index(index), places, problems));
    let ingress = ingress.collect();
    let egress = egress.iter().enumerate();
    let egress = egress.map(|(index, rule)| check_egress(rule, &egress_path.index(index), places, problems));
    model::ClusterNetworkPolicy {
        name: PolicyName { namespace: None, name: key.name.clone() },
        origin: places.origin.to_string(),
        tier: match raw.tier {
            raw::Tier::Admin => model::Tier::Admin,
            raw::Tier::Baseline => model::Tier::Baseline,
        },
        priority,
        namespaces,
        ports,
        ingress,
        egress: egress.collect(),
        audit: audit(metadata, problems),
    }
}

/// Says of a policy that it was applied at run time: its lines are those of a file that may be gone.
pub(super) fn relabel(policy: &mut model::ClusterNetworkPolicy, origin: &Origin) {
    policy.origin = origin.to_string();
    for rule in policy.ingress.iter_mut().chain(&mut policy.egress) {
        rule.origin = origin.to_string();
    }
}

fn check_ingress(
    raw: &raw::ClusterIngressRule,
    path: &Path,
    places: &Places<'_>,
    problems: &mut Vec<Problem>,
) -> model::ClusterRule {
    let from = path.key("from");
    check_count(raw.from.len(), 1, &from, "peers", problems);
    let peers = raw.from.iter().enumerate().filter_map(|(index, peer)| {
        let pods = check_pods(peer.namespaces.as_ref(), peer.pods.as_ref(), &from.index(index), problems);
        pods.map(|(namespaces, ports)| ClusterPeer::Ports { namespaces, ports })
    });
    let peers = peers.collect();
    model::ClusterRule {
        name: check_rule_name(raw.name.as_deref(), path, problems),
        origin: places.of(path),
        action: action(raw.action),
        peers,
        ports: check_protocols(raw.protocols.as_deref(), None, path, problems),
    }
}

fn check_egress(
    raw: &raw::ClusterEgressRule,
    path: &Path,
    places: &Places<'_>,
    problems: &mut Vec<Problem>,
) -> model::ClusterRule {
    let to = path.key("to");
    check_count(raw.to.len(), 1, &to, "peers", problems);
    let peers = raw.to.iter().enumerate();
    let peers = peers.filter_map(|(index, peer)| check_egress_peer(peer, raw.action, &to.index(index), problems));
    let peers = peers.collect();
    // SEMANTICS CN8.
    let nameless = raw.to.iter().find_map(|peer| match peer {
        _ if peer.networks.is_some() => Some("networks"),
        _ if peer.nodes.is_some() => Some("nodes"),
        _ if peer.domain_names.is_some() => Some("domainNames"),
        _ => None,
    });
    model::ClusterRule {
        name: check_rule_name(raw.name.as_deref(), path, problems),
        origin: places.of(path),
        action: action(raw.action),
        peers,
        ports: check_protocols(raw.protocols.as_deref(), nameless, path, problems),
    }
}

/// Namespaces, and ports in them; `None` stands for a problem.
fn check_pods(
    namespaces: Option<&LabelSelector>,
    pods: Option<&raw::NamespacedPods>,
    path: &Path,
    problems: &mut Vec<Problem>,
) -> Option<(Selector, Option<Selector>)> {
    let fields = [("namespaces", namespaces.is_some()), ("pods", pods.is_some())];
    let fine = check_one_of(&fields, path, problems);
    let namespaces = selector::check_option(namespaces, &path.key("namespaces"), problems);
    let pods = pods.map(|pods| {
        let path = path.key("pods");
        let namespaces = pods.namespace_selector.as_ref();
        let namespaces = selector::check_option(namespaces, &path.key("namespaceSelector"), problems);
        let ports = selector::check_required(pods.pod_selector.as_ref(), &path.key("podSelector"), problems);
        (namespaces.unwrap_or_default(), Some(ports))
    });
    pods.or(namespaces.map(|namespaces| (namespaces, None))).filter(|_| fine)
}

fn check_egress_peer(
    raw: &raw::ClusterEgressPeer,
    action: raw::Action,
    path: &Path,
    problems: &mut Vec<Problem>,
) -> Option<ClusterPeer> {
    if raw.domain_names.is_some() {
        let path = path.key("domainNames");
        let message =
            format!("field {path} is not supported yet by this version: it resolves no names of destinations");
        let problem = Problem::key(&path, "not_yet_supported", message).label("not supported yet");
        problems.push(problem.help("write networks with the addresses instead"));
        return None;
    }
    if raw.networks.is_none() && raw.nodes.is_none() {
        let fields = [
            ("namespaces", raw.namespaces.is_some()),
            ("pods", raw.pods.is_some()),
            ("nodes", false),
            ("networks", false),
        ];
        if !check_one_of(&fields, path, problems) {
            return None;
        }
        let pods = check_pods(raw.namespaces.as_ref(), raw.pods.as_ref(), path, problems);
        return pods.map(|(namespaces, ports)| ClusterPeer::Ports { namespaces, ports });
    }
    let fields = [
        ("namespaces", raw.namespaces.is_some()),
        ("pods", raw.pods.is_some()),
        ("nodes", raw.nodes.is_some()),
        ("networks", raw.networks.is_some()),
    ];
    check_one_of(&fields, path, problems);
    if let Some(nodes) = &raw.nodes {
        let path = path.key("nodes");
        selector::check(nodes, &path, problems);
        // SEMANTICS CN9.
        let effect = match action {
            raw::Action::Accept => "allows nothing by it",
            raw::Action::Deny | raw::Action::Pass => "denies everything",
        };
        let message =
            format!("{path} selects nothing: there are no Node objects here, so this {action:?} rule {effect}");
        problems.push(Problem::key(&path, "no_effect", message).label("selects nothing").warning());
        return Some(ClusterPeer::Unknown);
    }
    let path = path.key("networks");
    let texts = raw.networks.as_deref().unwrap_or_default();
    check_count(texts.len(), 1, &path, "CIDRs", problems);
    let mut networks = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        let path = path.index(index);
        let Some(net) = check_cidr(text, &path, problems) else { continue };
        if networks.contains(&net) {
            let message = format!("{path} {text} is listed twice");
            problems.push(Problem::value(&path, "duplicate", message).label("second time"));
        }
        networks.push(net);
    }
    Some(ClusterPeer::Networks(networks))
}

/// `nameless` is a peer of the rule that has no named ports.
fn check_protocols(
    raw: Option<&[raw::ClusterProtocol]>,
    nameless: Option<&str>,
    rule: &Path,
    problems: &mut Vec<Problem>,
) -> Vec<PortMatch> {
    let Some(raw) = raw else { return Vec::new() };
    let path = rule.key("protocols");
    if raw.is_empty() {
        let message = format!("{path} is empty: it needs at least one entry");
        let problem = Problem::value(&path, "out_of_range", message).label("1 to 25");
        problems.push(problem.help("for every protocol and L4 port, leave protocols out"));
    }
    check_count(raw.len(), 0, &path, "entries", problems);
    let one =
        |(index, raw): (usize, &raw::ClusterProtocol)| check_protocol(raw, nameless, &path.index(index), problems);
    raw.iter().enumerate().filter_map(one).collect()
}

fn check_protocol(
    raw: &raw::ClusterProtocol,
    nameless: Option<&str>,
    path: &Path,
    problems: &mut Vec<Problem>,
) -> Option<PortMatch> {
    let fields = [
        ("tcp", raw.tcp.is_some()),
        ("udp", raw.udp.is_some()),
        ("sctp", raw.sctp.is_some()),
        ("destinationNamedPort", raw.destination_named_port.is_some()),
    ];
    if !check_one_of(&fields, path, problems) {
        return None;
    }
    if let Some(name) = &raw.destination_named_port {
        let path = path.key("destinationNamedPort");
        if let Some(peer) = nameless {
            let message = format!("{path} {name} has no meaning: {peer} of this rule have no named ports");
            problems.push(Problem::value(&path, "conflict", message).label("write tcp, udp or sctp"));
        }
        return check_port_name(name, &path, problems).then(|| PortMatch::NamedAny(name.clone()));
    }
    let l4 = [(&raw.tcp, Protocol::Tcp, "tcp"), (&raw.udp, Protocol::Udp, "udp"), (&raw.sctp, Protocol::Sctp, "sctp")];
    let (l4, protocol, field) =
        l4.into_iter().find_map(|(l4, protocol, field)| Some((l4.as_ref()?, protocol, field)))?;
    let path = path.key(field);
    let Some(port) = &l4.destination_port else {
        let message = format!("{path} is empty: destinationPort is missing");
        let problem = Problem::key(&path, "missing_field", message).label("destinationPort is required here");
        problems.push(problem.help("for every L4 port, write {destinationPort: {range: {start: 1, end: 65535}}}"));
        return None;
    };
    let path = path.key("destinationPort");
    if !check_one_of(&[("number", port.number.is_some()), ("range", port.range.is_some())], &path, problems) {
        return None;
    }
    let (first, last) = match (&port.range, port.number) {
        (Some(range), _) => {
            let path = path.key("range");
            let first = l4_port(range.start, &path.key("start"), problems)?;
            let last = l4_port(range.end, &path.key("end"), problems)?;
            if first >= last {
                let message = format!("{path} must have start below end, not {first} and {last}");
                problems.push(Problem::key(&path, "out_of_range", message).label("start must be below end"));
            }
            (first, last)
        }
        (None, number) => {
            let number = l4_port(number?, &path.key("number"), problems)?;
            (number, number)
        }
    };
    Some(PortMatch::Range(protocol, first, last))
}

/// Whether exactly one of the fields is written; a problem if not.
fn check_one_of(fields: &[(&str, bool)], path: &Path, problems: &mut Vec<Problem>) -> bool {
    let written: Vec<&str> = fields.iter().filter(|(_, written)| *written).map(|(name, _)| *name).collect();
    let all = fields.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    match written.as_slice() {
        [_] => return true,
        [] => {
            let message = format!("{path} is empty: write exactly one of {all}");
            problems.push(Problem::key(path, "missing_field", message).label(format!("one of {all}")));
        }
        several => {
            let several = several.join(" and ");
            let message = format!("{path} has {several}; exactly one of {all} is allowed");
            problems.push(Problem::key(path, "conflict", message).label(several));
        }
    }
    false
}

/// Lists have a smallest and a largest length.
fn check_count(count: usize, least: usize, path: &Path, what: &str, problems: &mut Vec<Problem>) {
    if !(least..=LIST_MAX).contains(&count) {
        let message = format!("{path} has {count} {what}; {least} to {LIST_MAX} are allowed");
        problems.push(Problem::value(path, "out_of_range", message).label(format!("{least} to {LIST_MAX}")));
    }
}

fn check_rule_name(name: Option<&str>, rule: &Path, problems: &mut Vec<Problem>) -> Option<String> {
    let name = name.filter(|name| !name.is_empty())?;
    let count = name.chars().count();
    if count > RULE_NAME_MAX {
        let path = rule.key("name");
        let message = format!("{path} has {count} characters; at most {RULE_NAME_MAX} are allowed");
        problems.push(Problem::value(&path, "out_of_range", message).label("too long"));
    }
    Some(name.to_owned())
}

fn action(raw: raw::Action) -> model::Action {
    match raw {
        raw::Action::Accept => model::Action::Accept,
        raw::Action::Deny => model::Action::Deny,
        raw::Action::Pass => model::Action::Pass,
    }
}
