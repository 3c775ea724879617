//! Policies in words, for tables, `describe` and diagnostics. What a rule means is the compiler's business; this says only
//! what is written in it.

use hostweave_policy::model::{
    Action, ClusterPeer, ClusterRule, Direction, Operator, Peer, PortMatch, Protocol, Requirement, Rule, Selector,
};

/// A selector as `-l` takes it: `app=db,tier in (a,b),!old`; `{}` for one that selects everything.
pub fn selector(selector: &Selector) -> String {
    if selector.requirements.is_empty() {
        return "{}".to_owned();
    }
    selector.requirements.iter().map(requirement).collect::<Vec<_>>().join(",")
}

fn requirement(requirement: &Requirement) -> String {
    let key = &requirement.key;
    match &requirement.operator {
        Operator::In(values) if values.len() == 1 => format!("{key}={}", values[0]),
        Operator::NotIn(values) if values.len() == 1 => format!("{key}!={}", values[0]),
        Operator::In(values) => format!("{key} in ({})", values.join(",")),
        Operator::NotIn(values) => format!("{key} notin ({})", values.join(",")),
        Operator::Exists => key.clone(),
        Operator::DoesNotExist => format!("!{key}"),
    }
}

/// `ports app=db of namespaces team=retail`: a subject or peer.
pub fn ports(namespaces: &Selector, ports: Option<&Selector>) -> String {
    let ports = match ports.filter(|ports| !ports.requirements.is_empty()) {
        Some(ports) => format!("ports {}", selector(ports)),
        None => "every port".to_owned(),
    };
    if namespaces.requirements.is_empty() {
        return format!("{ports} of every namespace");
    }
    format!("{ports} of namespaces {}", selector(namespaces))
}

/// One rule of a NetworkPolicy: `from ports app=web of this namespace, on TCP 5432`.
pub fn rule(rule: &Rule, direction: Direction) -> String {
    let peers: Vec<String> = rule.peers.iter().map(peer).collect();
    format!("{} {}, {}", preposition(direction), any_of(&peers, "anybody"), l4(&rule.ports))
}

/// One rule of a ClusterNetworkPolicy: `Deny from every port of namespaces team=lab, on TCP 22`.
pub fn cluster_rule(rule: &ClusterRule, direction: Direction) -> String {
    let action = match rule.action {
        Action::Accept => "Accept",
        Action::Deny => "Deny",
        Action::Pass => "Pass",
    };
    let name = rule.name.as_ref().map(|name| format!("{name}: ")).unwrap_or_default();
    let peers: Vec<String> = rule.peers.iter().map(cluster_peer).collect();
    format!("{name}{action} {} {}, {}", preposition(direction), any_of(&peers, "nobody"), l4(&rule.ports))
}

fn preposition(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    }
}

fn any_of(words: &[String], none: &str) -> String {
    if words.is_empty() { none.to_owned() } else { words.join(" or ") }
}

fn peer(peer: &Peer) -> String {
    match peer {
        Peer::Ports { namespaces: Some(namespaces), ports: of } => ports(namespaces, of.as_ref()),
        Peer::Ports { namespaces: None, ports: Some(of) } if !of.requirements.is_empty() => {
            format!("ports {} of this namespace", selector(of))
        }
        Peer::Ports { namespaces: None, .. } => "every port of this namespace".to_owned(),
        Peer::IpBlock { cidr, except } if except.is_empty() => cidr.to_string(),
        Peer::IpBlock { cidr, except } => {
            let except: Vec<String> = except.iter().map(ToString::to_string).collect();
            format!("{cidr} except {}", except.join(", "))
        }
    }
}

fn cluster_peer(peer: &ClusterPeer) -> String {
    match peer {
        ClusterPeer::Ports { namespaces, ports: of } => ports(namespaces, of.as_ref()),
        ClusterPeer::Networks(networks) => networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or "),
        ClusterPeer::Unknown => "nodes (unknown here)".to_owned(),
    }
}

fn l4(ports: &[PortMatch]) -> String {
    if ports.is_empty() {
        return "on every protocol and L4 port".to_owned();
    }
    format!("on {}", ports.iter().map(l4_port).collect::<Vec<_>>().join(" or "))
}

fn l4_port(port: &PortMatch) -> String {
    match port {
        PortMatch::Protocol(of) => format!("every {} port", protocol(*of)),
        PortMatch::Range(of, first, last) if first == last => format!("{} {first}", protocol(*of)),
        PortMatch::Range(of, first, last) => format!("{} {first}-{last}", protocol(*of)),
        PortMatch::Named(of, name) => format!("{} {name}", protocol(*of)),
        PortMatch::NamedAny(name) => name.clone(),
    }
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    }
}
