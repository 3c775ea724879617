//! `NetworkPolicy`, checked as Kubernetes checks it (`pkg/apis/networking/validation`), in the words of the compiler.

use hostweave_policy::model::{self, Direction, PolicyName, PortMatch};
use ipnet::IpNet;

use super::annotations::audit;
use super::{Metadata, Origin, range, selector};
use crate::config::kind::ObjectKey;
use crate::config::names;
use crate::config::node::{Document, Path};
use crate::config::problem::Problem;
use crate::config::raw::network_policy as raw;
use crate::config::raw::port::Protocol;

/// Where a policy and its rules are written, for people.
pub(super) struct Places<'a> {
    /// Of the object.
    pub origin: &'a Origin,
    /// Its source.
    pub document: &'a Document,
}

impl Places<'_> {
    /// `file:line` of what stands at `path`, or where the object comes from.
    pub fn of(&self, path: &Path) -> String {
        match (self.origin, self.document.line_of(path)) {
            (Origin::File { file, .. }, line @ 1..) => format!("{file}:{line}"),
            (origin, _) => origin.to_string(),
        }
    }
}

/// Checks what is written; values of fields that have a problem are meaningless.
pub(super) fn check(
    key: &ObjectKey,
    metadata: &Metadata,
    raw: &raw::NetworkPolicySpec,
    places: &Places<'_>,
    problems: &mut Vec<Problem>,
) -> model::NetworkPolicy {
    let spec = Path::of("spec");
    let (ingress_path, egress_path) = (spec.key("ingress"), spec.key("egress"));
    let types_path = spec.key("policyTypes");
    let types = raw.policy_types.as_deref().filter(|types| !types.is_empty());
    if let Some(types) = types.filter(|types| types.len() > 2) {
        let message = format!("{types_path} has {} entries; there are two directions", types.len());
        problems.push(Problem::value(&types_path, "out_of_range", message).label("at most Ingress and Egress"));
    }
    let ingress: Vec<model::Rule> = raw
        .ingress
        .iter()
        .flatten()
        .enumerate()
        .map(|(index, rule)| {
            let path = ingress_path.index(index);
            check_rule((rule.from.as_deref(), "from"), rule.ports.as_deref(), &path, places, problems)
        })
        .collect();
    let egress: Vec<model::Rule> = raw
        .egress
        .iter()
        .flatten()
        .enumerate()
        .map(|(index, rule)| {
            let path = egress_path.index(index);
            check_rule((rule.to.as_deref(), "to"), rule.ports.as_deref(), &path, places, problems)
        })
        .collect();
    // SEMANTICS NP3: without `policyTypes`, Ingress always, Egress only with a rule.
    let isolates_ingress = types.is_none_or(|types| types.contains(&raw::PolicyType::Ingress));
    let isolates_egress = types.map_or(!egress.is_empty(), |types| types.contains(&raw::PolicyType::Egress));
    for (rules, isolates, path, direction) in [
        (&ingress, isolates_ingress, &ingress_path, Direction::Ingress),
        (&egress, isolates_egress, &egress_path, Direction::Egress),
    ] {
        if !isolates && !rules.is_empty() {
            let message = format!("{path} has no effect: {types_path} does not name {direction:?}");
            let problem = Problem::key(path, "no_effect", message).label("has no effect").warning();
            problems.push(problem.help(format!("add {direction:?} to {types_path}, or remove {path}")));
        }
    }
    model::NetworkPolicy {
        name: PolicyName { namespace: key.namespace.clone(), name: key.name.clone() },
        origin: places.origin.to_string(),
        selector: selector::check_required(raw.pod_selector.as_ref(), &spec.key("podSelector"), problems),
        ingress: isolates_ingress.then_some(ingress),
        egress: isolates_egress.then_some(egress),
        audit: audit(metadata, problems),
    }
}

/// Says of a policy that it was applied at run time: its lines are those of a file that may be gone.
pub(super) fn relabel(policy: &mut model::NetworkPolicy, origin: &Origin) {
    policy.origin = origin.to_string();
    for rule in policy.ingress.iter_mut().chain(&mut policy.egress).flatten() {
        rule.origin = origin.to_string();
    }
}

fn check_rule(
    (peers, peers_field): (Option<&[raw::Peer]>, &str),
    ports: Option<&[raw::PolicyPort]>,
    path: &Path,
    places: &Places<'_>,
    problems: &mut Vec<Problem>,
) -> model::Rule {
    let (peers_path, ports_path) = (path.key(peers_field), path.key("ports"));
    let peers = peers.unwrap_or_default().iter().enumerate();
    let ports = ports.unwrap_or_default().iter().enumerate();
    model::Rule {
        origin: places.of(path),
        peers: peers.filter_map(|(index, peer)| check_peer(peer, &peers_path.index(index), problems)).collect(),
        ports: ports.filter_map(|(index, port)| check_port(port, &ports_path.index(index), problems)).collect(),
    }
}

/// `None` stands for a peer with a problem.
fn check_peer(raw: &raw::Peer, path: &Path, problems: &mut Vec<Problem>) -> Option<model::Peer> {
    let namespaces = selector::check_option(raw.namespace_selector.as_ref(), &path.key("namespaceSelector"), problems);
    let ports = selector::check_option(raw.pod_selector.as_ref(), &path.key("podSelector"), problems);
    let selects = namespaces.is_some() || ports.is_some();
    let Some(block) = &raw.ip_block else {
        if !selects {
            let message = format!("{path} names no peer: write podSelector, namespaceSelector or ipBlock");
            let problem = Problem::value(path, "missing_field", message).label("names no peer");
            let parent = path.parent();
            problems.push(
                problem.help(format!(
                    "for anybody, leave out {parent}; for every port, write {{namespaceSelector: {{}}}}"
                )),
            );
            return None;
        }
        return Some(model::Peer::Ports { namespaces, ports });
    };
    let path = path.key("ipBlock");
    // SEMANTICS NP17.
    if selects {
        let message = format!("{path} stands beside a selector; an element has either");
        let problem = Problem::key(&path, "conflict", message).label("not with a selector");
        problems.push(problem.help("write two elements: one with the selectors, one with ipBlock"));
    }
    let cidr = check_cidr(&block.cidr, &path.key("cidr"), problems);
    let mut except = Vec::new();
    for (index, text) in block.except.iter().flatten().enumerate() {
        let path = path.key("except").index(index);
        let Some(hole) = check_cidr(text, &path, problems) else { continue };
        let Some(cidr) = cidr else { continue };
        // Ranges of different families never contain each other.
        if !cidr.contains(&hole) || cidr == hole {
            let reason = match cidr.addr().is_ipv4() == hole.addr().is_ipv4() {
                true if cidr == hole => "is all of cidr, so that nothing is left",
                true => "is not inside cidr",
                false => "is of another IP version than cidr",
            };
            let message = format!("{path} {text} {reason} ({cidr})");
            let problem = Problem::value(&path, "invalid_cidr", message).label("not a part of cidr");
            problems.push(problem.help("each except must be a range inside cidr, smaller than it"));
        }
        except.push(hole);
    }
    cidr.map(|cidr| model::Peer::IpBlock { cidr, except })
}

/// A range of addresses. Bits beyond the prefix are dropped with a warning, as Kubernetes does.
pub(super) fn check_cidr(text: &str, path: &Path, problems: &mut Vec<Problem>) -> Option<IpNet> {
    let refused = |reason: &str, help: String| {
        Problem::value(path, "invalid_cidr", format!("{path} {text:?} {reason}")).label("not a CIDR").help(help)
    };
    let Ok(net) = text.parse::<IpNet>() else {
        let help = match text.parse::<std::net::IpAddr>() {
            Ok(address) => format!("for one address, write {}", IpNet::from(address)),
            Err(_) => "write an address and a prefix length, like 192.0.2.0/24 or 2001:db8::/64".to_owned(),
        };
        problems.push(refused("is not a CIDR", help));
        return None;
    };
    if let IpNet::V6(v6) = net
        && let Some(v4) = v6.addr().to_ipv4_mapped()
        && v6.prefix_len() >= 96
    {
        let help = format!("write {v4}/{}", v6.prefix_len() - 96);
        problems.push(refused("is IPv4 written as IPv6, which no packet has", help));
        return None;
    }
    if net.trunc() != net {
        let message = format!("{path} {text} has bits set beyond its prefix length: taken as {}", net.trunc());
        problems.push(Problem::value(path, "invalid_cidr", message).label(format!("{}", net.trunc())).warning());
    }
    Some(net.trunc())
}

/// `None` stands for an L4 port with a problem.
fn check_port(raw: &raw::PolicyPort, path: &Path, problems: &mut Vec<Problem>) -> Option<PortMatch> {
    let protocol = protocol(raw.protocol.unwrap_or(Protocol::Tcp));
    let (port_path, end_path) = (path.key("port"), path.key("endPort"));
    let mut end_without_number = |what: &str| {
        let message = format!("{end_path} needs a number in {port_path}, which {what}");
        problems.push(Problem::key(&end_path, "conflict", message).label("needs a numeric port"));
    };
    match (&raw.port, raw.end_port) {
        (None, None) => Some(PortMatch::Protocol(protocol)),
        (None, Some(_)) => {
            end_without_number("is not written");
            None
        }
        (Some(raw::PortRef::Name(name)), end) => {
            if end.is_some() {
                end_without_number(&format!("is the name {name:?}"));
            }
            check_port_name(name, &port_path, problems).then(|| PortMatch::Named(protocol, name.clone()))
        }
        (Some(raw::PortRef::Number(first)), end) => {
            let first = l4_port(*first, &port_path, problems)?;
            let last = end.map_or(Some(first), |end| l4_port(end, &end_path, problems))?;
            // SEMANTICS NP16.
            if last < first {
                let message = format!("{end_path} {last} is below {port_path} {first}");
                problems.push(Problem::value(&end_path, "out_of_range", message).label(format!("{first} to 65535")));
            }
            Some(PortMatch::Range(protocol, first, last))
        }
    }
}

/// A number of an L4 port.
pub(super) fn l4_port(number: u32, path: &Path, problems: &mut Vec<Problem>) -> Option<u16> {
    range(Some(number), 1, 65535, path, problems).and_then(|number| u16::try_from(number).ok())
}

/// Whether `name` can be the name of an L4 port (RFC 6335 §5.1); a problem if not.
pub(super) fn check_port_name(name: &str, path: &Path, problems: &mut Vec<Problem>) -> bool {
    let Err(reason) = names::check_port_name(name) else { return true };
    let problem = Problem::value(path, "invalid_name", format!("{path} {name:?} {reason}")).label("not a valid name");
    problems.push(match name.parse::<u16>() {
        Ok(number) => problem.help(format!("write {number} without quotes: in quotes it is a name")),
        Err(_) => problem.help("write a number, or a name out of the namedPorts of the destination"),
    });
    false
}

/// A protocol in the words of the compiler.
pub fn protocol(raw: Protocol) -> model::Protocol {
    match raw {
        Protocol::Tcp => model::Protocol::Tcp,
        Protocol::Udp => model::Protocol::Udp,
        Protocol::Sctp => model::Protocol::Sctp,
    }
}
