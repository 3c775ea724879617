//! Who may talk to whom: every pair of ports, asked of the table that workers decide by.
//!
//! Ports that policy cannot tell apart are one group: same namespace, labels, named ports and network, and addresses in the
//! same ranges of every `ipBlock`. What may pass between two groups is constant between the L4 ports that some policy
//! names, so that one question for each such interval finds all of it. Of a port with several addresses those that policies tell
//! apart are asked about one by one. With an uplink the world is a group, too: addresses that no policy means in particular.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hostweave_policy::model::{ClusterPeer, Direction, NamedPort, Peer, PortMatch, Protocol, World};
use hostweave_policy::table::{Basis, Decision, Flow};
use hostweave_switch::tables::{NetworkId, PortId, mapped};
use hostweave_switch::wire::proto;
use ipnet::IpNet;
use serde_json::{Value, json};

use super::error::{ErrorKind, RpcError};
use super::selector::Selector;
use crate::fabric::plane::Plane;
use crate::fabric::policy_of;
use crate::observe::flow_text;

/// Ports that are shown one by one; more are shown in groups.
const SINGLE_MAX: usize = 16;

/// What everybody behind the uplink is called.
const WORLD: &str = "world";

/// Questions of one matrix: a second of work or so.
const QUESTIONS_MAX: usize = 20_000_000;

/// Protocols with L4 ports.
const PROTOCOLS: [(Protocol, &str, u8); 3] =
    [(Protocol::Tcp, "tcp", proto::TCP), (Protocol::Udp, "udp", proto::UDP), (Protocol::Sctp, "sctp", proto::SCTP)];

/// What is asked.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// Only this L4 port; of TCP, unless `protocol` says otherwise.
    pub l4_port: Option<u16>,
    /// `tcp`, `udp`, `sctp` or `icmp`.
    pub protocol: Option<String>,
    /// Only ports of this namespace.
    pub namespace: Option<String>,
    /// Only ports with these labels.
    pub selector: Selector,
}

/// Ports that policy cannot tell apart.
struct Group {
    name: String,
    namespace: String,
    labels: BTreeMap<String, String>,
    network: NetworkId,
    ports: Vec<String>,
    /// One of them; `None` for the world.
    id: Option<PortId>,
    /// IPv4 and IPv6: one for each set of ranges that addresses of theirs are in.
    addresses: [Vec<u128>; 2],
}

/// What may pass between two addresses.
struct Answer {
    family: &'static str,
    ends: [u128; 2],
    /// By interval.
    passes: Vec<bool>,
    /// What both sides say about the first interval.
    first: Option<[Option<Decision>; 2]>,
}

/// An interval of L4 ports of one protocol; `None` for whatever has no L4 ports.
#[derive(Clone, Copy)]
struct Interval {
    name: &'static str,
    proto: u8,
    ports: Option<(u16, u16)>,
}

/// The matrix as JSON: groups, and each pair of them with what may pass.
///
/// # Errors
/// It is too large, or the protocol makes no sense.
pub fn matrix(plane: &Plane, question: &Question) -> Result<Value, RpcError> {
    let intervals = intervals(&plane.world, question)?;
    let groups = groups(plane, question);
    let addresses: usize = groups.iter().flat_map(|group| &group.addresses).map(Vec::len).sum();
    let questions = addresses.saturating_mul(addresses).saturating_mul(intervals.len() * 2);
    if questions > QUESTIONS_MAX {
        let message =
            format!("{} groups of ports and {} intervals of L4 ports are too many", groups.len(), intervals.len());
        let error = RpcError::new(ErrorKind::Exhausted, "namespace", message);
        return Err(error.help("ask for one namespace (-n), ports with some labels (-l), or one L4 port (--port)"));
    }
    let mut pairs = Vec::new();
    for from in &groups {
        for to in &groups {
            pairs.push(pair(plane, from, to, &intervals));
        }
    }
    let groups: Vec<Value> = groups
        .iter()
        .map(|group| {
            let network = group.id.and_then(|_| plane.tables.network(group.network));
            let network = network.map(|network| network.name.as_str());
            json!({
                "name": group.name, "namespace": group.namespace, "labels": group.labels, "network": network,
                "ports": group.ports,
            })
        })
        .collect();
    Ok(json!({"groups": groups, "pairs": pairs, "policyRevision": plane.policy_revision}))
}

fn pair(plane: &Plane, from: &Group, to: &Group, intervals: &[Interval]) -> Value {
    let mut pair = json!({"from": from.name, "to": to.name});
    let reason = match (from.id, to.id) {
        (Some(_), Some(_)) if from.network != to.network => Some("another network"),
        (None, None) => Some("not by this host"),
        _ => None,
    };
    if let Some(reason) = reason {
        (pair["allowed"], pair["allows"], pair["reason"]) = (json!(false), json!([]), json!(reason));
        return pair;
    }
    let mut found = Vec::new();
    for (family, (sources, destinations)) in ["ipv4", "ipv6"].into_iter().zip(from.addresses.iter().zip(&to.addresses))
    {
        for ends in sources.iter().flat_map(|source| destinations.iter().map(|destination| [*source, *destination])) {
            let ask = |interval: &Interval| decide(plane, (from, ends[0]), (to, ends[1]), interval);
            let answers: Vec<[Option<Decision>; 2]> = intervals.iter().map(ask).collect();
            let passes = answers.iter().map(|answer| answer.iter().all(|side| side.is_some_and(|side| side.allowed)));
            found.push(Answer { family, ends, passes: passes.collect(), first: answers.first().copied() });
        }
    }
    pair["allowed"] = json!(found.iter().any(|answer| answer.passes.contains(&true)));
    pair["allows"] = json!(allows(intervals, &found));
    if let ([_], Some(Answer { first: Some([egress, ingress]), .. })) = (intervals, found.first()) {
        let because = |group: &Group, decision: &Option<Decision>, direction| {
            Some(because(plane, group.id?, (*decision)?, direction))
        };
        pair["egress"] = json!(because(from, egress, Direction::Egress));
        pair["ingress"] = json!(because(to, ingress, Direction::Ingress));
    }
    pair
}

/// What may pass, in words: with the family, or both addresses, only where that makes a difference.
fn allows(intervals: &[Interval], found: &[Answer]) -> Vec<String> {
    let same = |answers: &[&Answer]| answers.windows(2).all(|two| two[0].passes == two[1].passes);
    let with = |label: &str, answer: &Answer| {
        let label = label.to_owned();
        words(intervals, &answer.passes).into_iter().map(move |word| format!("{label}{word}"))
    };
    let all: Vec<&Answer> = found.iter().collect();
    let Some(first) = all.first() else { return Vec::new() };
    if same(&all) {
        return with("", first).collect();
    }
    let mut allows = Vec::new();
    for family in ["ipv4", "ipv6"] {
        let of: Vec<&Answer> = found.iter().filter(|answer| answer.family == family).collect();
        match of.first() {
            Some(first) if same(&of) => allows.extend(with(&format!("{family}:"), first)),
            _ => allows.extend(of.iter().flat_map(|answer| {
                let [from, to] = answer.ends.map(|bits| std::net::Ipv6Addr::from(bits).to_canonical());
                with(&format!("{from}>{to}:"), answer).collect::<Vec<_>>()
            })),
        }
    }
    allows
}

/// What both sides say; the receiver is not asked where the sender may not. The world says nothing.
fn decide(plane: &Plane, from: (&Group, u128), to: (&Group, u128), interval: &Interval) -> [Option<Decision>; 2] {
    let is_v4 = IpAddr::from(std::net::Ipv6Addr::from(to.1)).to_canonical().is_ipv4();
    let question = |direction, subject: PortId, peer: Option<PortId>, peer_address| Flow {
        direction,
        subject,
        peer,
        peer_address,
        proto: if interval.ports.is_none() && !is_v4 { proto::ICMPV6 } else { interval.proto },
        dst_port: interval.ports.map(|(first, _)| first),
    };
    // A port cannot be blocked from itself, but another one of its group can.
    let peer = if from.0.id == to.0.id && from.0.ports.len() > 1 { other_of(plane, from.0) } else { to.0.id };
    let free = Decision { allowed: true, basis: Basis::Host, audit: None };
    let egress = from.0.id.map(|subject| plane.policy.decide(&question(Direction::Egress, subject, peer, to.1)));
    let ingress = || {
        let decide = |subject| plane.policy.decide(&question(Direction::Ingress, subject, from.0.id, from.1));
        peer.map_or(free, decide)
    };
    let egress = egress.unwrap_or(free);
    [Some(egress), egress.allowed.then(ingress)]
}

fn other_of(plane: &Plane, group: &Group) -> Option<PortId> {
    let named = |name: &String| plane.tables.ports.iter().flatten().find(|port| port.name == *name).map(|port| port.id);
    group.ports.get(1).and_then(named).or(group.id)
}

/// Why, in words.
fn because(plane: &Plane, subject: PortId, decision: Decision, direction: Direction) -> String {
    let rule = |id| match plane.policy.rule(id) {
        Some(rule) => flow_text::policy(&policy_of(rule, plane.policy_revision)),
        None => "a rule that is gone".to_owned(),
    };
    let isolating = || {
        let names = plane.policy.isolating(subject, direction);
        let names: Vec<String> = names.map(|policy| format!("{} {}", path(&policy.name), policy.origin)).collect();
        names.join(", ")
    };
    let text = match decision.basis {
        Basis::Rule(id) if decision.allowed => format!("allowed by {}", rule(id)),
        Basis::Rule(id) => format!("denied by {}", rule(id)),
        Basis::NoRule => format!("denied: isolated by {}", isolating()),
        Basis::HostDefault => "denied by default".to_owned(),
        Basis::NotCompiled => "denied: not compiled yet".to_owned(),
        _ => "allowed: no policy has a say".to_owned(),
    };
    match decision.audit {
        Some(id) => format!("{text}; audited by {}", rule(id)),
        None => text,
    }
}

fn path(name: &hostweave_policy::model::PolicyName) -> String {
    name.namespace.as_ref().map_or_else(|| name.name.clone(), |namespace| format!("{namespace}/{}", name.name))
}

/// `tcp/80-89`, `udp`, `icmp`, or `all`.
fn words(intervals: &[Interval], passes: &[bool]) -> Vec<String> {
    if passes.iter().all(|passes| *passes) && intervals.len() > 1 {
        return vec!["all".to_owned()];
    }
    // Neighbours join.
    let mut joined: Vec<Interval> = Vec::new();
    for (interval, _) in intervals.iter().zip(passes).filter(|(_, passes)| **passes) {
        match (joined.last_mut(), interval.ports) {
            (Some(Interval { name, ports: Some((_, last)), .. }), Some((first, end)))
                if *name == interval.name && last.checked_add(1) == Some(first) =>
            {
                *last = end;
            }
            _ => joined.push(*interval),
        }
    }
    joined
        .iter()
        .map(|Interval { name, ports, .. }| match ports {
            None | Some((0, u16::MAX)) => (*name).to_owned(),
            Some((first, last)) if first == last => format!("{name}/{first}"),
            Some((first, last)) => format!("{name}/{first}-{last}"),
        })
        .collect()
}

/// The intervals of L4 ports between which nothing changes.
fn intervals(world: &World, question: &Question) -> Result<Vec<Interval>, RpcError> {
    let others = Interval { name: "icmp", proto: proto::ICMPV4, ports: None };
    let wanted = question.protocol.as_deref().or(question.l4_port.map(|_| "tcp")).map(str::to_ascii_lowercase);
    let known = |word: &str| word == "icmp" || PROTOCOLS.iter().any(|(_, name, _)| *name == word);
    if let Some(word) = wanted.as_deref().filter(|word| !known(word)) {
        let message = format!("{word:?} is not one of tcp, udp, sctp, icmp");
        return Err(RpcError::new(ErrorKind::InvalidParams, "protocol", message));
    }
    let wants = |name: &str| wanted.as_deref().is_none_or(|wanted| wanted == name);
    let mut all = Vec::new();
    for (protocol, name, number) in PROTOCOLS.into_iter().filter(|(_, name, _)| wants(name)) {
        if let Some(port) = question.l4_port {
            all.push(Interval { name, proto: number, ports: Some((port, port)) });
            continue;
        }
        let begins: Vec<u16> = begins(world, protocol).into_iter().collect();
        for (index, first) in begins.iter().enumerate() {
            let last = begins.get(index + 1).map_or(u16::MAX, |next| next - 1);
            all.push(Interval { name, proto: number, ports: Some((*first, last)) });
        }
    }
    all.extend(wants("icmp").then_some(others));
    Ok(all)
}

/// L4 ports at which some policy may begin to say something else.
fn begins(world: &World, protocol: Protocol) -> BTreeSet<u16> {
    let mut begins = BTreeSet::from([0]);
    let mut add = |first: u16, last: u16| {
        begins.insert(first);
        begins.extend(last.checked_add(1));
    };
    let v1 = world.policies.iter().flat_map(|policy| [&policy.ingress, &policy.egress]).flatten().flatten();
    let cluster = world.cluster_policies.iter().flat_map(|policy| policy.ingress.iter().chain(&policy.egress));
    for port in v1.flat_map(|rule| &rule.ports).chain(cluster.flat_map(|rule| &rule.ports)) {
        match port {
            PortMatch::Range(of, first, last) if *of == protocol => add(*first, *last),
            PortMatch::Range(..) | PortMatch::Protocol(_) | PortMatch::Named(..) | PortMatch::NamedAny(_) => {}
        }
    }
    let named = world.endpoints.iter().flat_map(|endpoint| &endpoint.named_ports);
    named.filter(|named| named.protocol == protocol).for_each(|named| add(named.port, named.port));
    begins
}

/// Every range that some policy names.
fn ranges(world: &World) -> Vec<IpNet> {
    let mut ranges = BTreeSet::new();
    let v1 = world.policies.iter().flat_map(|policy| [&policy.ingress, &policy.egress]).flatten().flatten();
    for peer in v1.flat_map(|rule| &rule.peers) {
        if let Peer::IpBlock { cidr, except } = peer {
            ranges.insert(*cidr);
            ranges.extend(except);
        }
    }
    let cluster = world.cluster_policies.iter().flat_map(|policy| policy.ingress.iter().chain(&policy.egress));
    for peer in cluster.flat_map(|rule| &rule.peers) {
        if let ClusterPeer::Networks(networks) = peer {
            ranges.extend(networks);
        }
    }
    ranges.into_iter().collect()
}

/// Groups of the ports that are asked about, by name.
fn groups(plane: &Plane, question: &Question) -> Vec<Group> {
    type Key<'a> =
        (&'a str, &'a BTreeMap<String, String>, u16, Vec<&'a NamedPort>, [Vec<Vec<bool>>; 2], Option<&'a str>);
    let ranges = ranges(&plane.world);
    let wanted = |endpoint: &&std::sync::Arc<hostweave_policy::model::Endpoint>| {
        question.namespace.as_ref().is_none_or(|namespace| endpoint.namespace == *namespace)
            && question.selector.matches(&endpoint.labels)
    };
    let mut endpoints: Vec<_> = plane.world.endpoints.iter().filter(wanted).collect();
    endpoints.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    let single = endpoints.len() <= SINGLE_MAX;
    let mut groups: BTreeMap<Key<'_>, Group> = BTreeMap::new();
    for endpoint in endpoints {
        let Some(port) = plane.tables.port(endpoint.id) else { continue };
        let v4 = port.v4.iter().map(|address| IpAddr::from(*address));
        let v6 = port.v6.iter().filter(|address| !is_link_local(**address)).map(|address| IpAddr::from(*address));
        // Of addresses that policies cannot tell apart, one.
        let mut inside: [BTreeMap<Vec<bool>, u128>; 2] = Default::default();
        for address in v4.chain(v6) {
            let within = ranges.iter().map(|range| range.contains(&address)).collect();
            inside[usize::from(address.is_ipv6())].entry(within).or_insert(mapped(address));
        }
        let addresses = inside.each_ref().map(|of| of.values().copied().collect());
        let inside: [Vec<Vec<bool>>; 2] = inside.map(|of| of.into_keys().collect());
        let key = (
            endpoint.namespace.as_str(),
            &endpoint.labels,
            endpoint.network.0,
            endpoint.named_ports.iter().collect(),
            inside,
            single.then_some(endpoint.name.as_str()),
        );
        let group = groups.entry(key).or_insert_with(|| Group {
            name: String::new(),
            namespace: endpoint.namespace.clone(),
            labels: endpoint.labels.clone(),
            network: endpoint.network,
            ports: Vec::new(),
            id: Some(endpoint.id),
            addresses,
        });
        group.ports.push(port.name.clone());
    }
    let mut groups: Vec<Group> = groups.into_values().collect();
    let mut seen = BTreeMap::<String, usize>::new();
    for group in &mut groups {
        let labels: Vec<String> = group.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        group.name = match &group.ports[..] {
            [one] => one.clone(),
            ports => format!("{}:{} ({})", group.namespace, labels.join(","), ports.len()),
        };
        let count = seen.entry(group.name.clone()).or_default();
        *count += 1;
        if *count > 1 {
            group.name += &format!("#{count}");
        }
    }
    if plane.tables.uplink.is_some() {
        groups.push(world(&ranges));
    }
    groups
}

/// Whoever is behind the uplink: addresses that lie in as few ranges of the policies as any.
fn world(ranges: &[IpNet]) -> Group {
    let documentation: [IpAddr; 2] = [[203, 0, 113, 1].into(), [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into()];
    let behind = ranges.iter().filter_map(|range| match range.broadcast() {
        IpAddr::V4(last) => u32::from(last).checked_add(1).map(|next| IpAddr::V4(next.into())),
        IpAddr::V6(last) => u128::from(last).checked_add(1).map(|next| IpAddr::V6(next.into())),
    });
    let all: Vec<IpAddr> = documentation.into_iter().chain(behind).collect();
    let inside = |address: &IpAddr| ranges.iter().filter(|range| range.contains(address)).count();
    let addresses = [false, true].map(|v6| {
        let least = all.iter().filter(|address| address.is_ipv6() == v6).min_by_key(|address| inside(address));
        least.map(|address| mapped(*address)).into_iter().collect()
    });
    let (name, namespace, labels, ports) = (WORLD.to_owned(), String::new(), BTreeMap::new(), Vec::new());
    Group { name, namespace, labels, network: NetworkId(u16::MAX), ports, id: None, addresses }
}

fn is_link_local(address: std::net::Ipv6Addr) -> bool {
    address.segments()[0] & 0xffc0 == 0xfe80
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_intervals_join_and_whole_protocols_have_no_ports() {
        let tcp = |first, last| Interval { name: "tcp", proto: 6, ports: Some((first, last)) };
        let udp = Interval { name: "udp", proto: 17, ports: Some((0, u16::MAX)) };
        let icmp = Interval { name: "icmp", proto: 1, ports: None };
        let all = [tcp(0, 79), tcp(80, 80), tcp(81, u16::MAX), udp, icmp];
        assert_eq!(words(&all, &[true; 5]), ["all"]);
        assert_eq!(words(&all, &[true, true, true, false, false]), ["tcp"]);
        assert_eq!(words(&all, &[false, true, false, true, true]), ["tcp/80", "udp", "icmp"]);
        assert_eq!(words(&all, &[false, true, true, false, false]), ["tcp/80-65535"]);
        assert!(words(&all, &[false; 5]).is_empty());
        assert_eq!(words(&all[1..2], &[true]), ["tcp/80"]);
    }
}
