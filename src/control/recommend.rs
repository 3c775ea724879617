//! NetworkPolicies from what was seen: the smallest that allow every connection of the flow log, and nothing else.
//!
//! Ports of one namespace with the same labels are a group, and each group that was seen gets one policy, which isolates it in
//! both directions. Its selector means exactly that group: labels that other groups have and it has not must not exist.
//! The same log gives the same text.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use hostweave_policy::model::{Endpoint, Protocol};
use hostweave_policy::table::Basis;
use hostweave_switch::flow::Kind;
use hostweave_switch::wire::proto;
use serde_json::{Value, json};

use crate::fabric::plane::Plane;
use crate::observe::flow_event::FlowEventKind;
use crate::observe::flow_log::Entry;
use crate::observe::flow_record::{FlowRecord, Party};

/// Octets of a policy's name before the number that tells it from others.
const NAME_LEN_MAX: usize = 48;

/// Begins every name.
const PREFIX: &str = "recommended";

/// Namespace and labels.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Group {
    namespace: String,
    labels: BTreeMap<String, String>,
}

/// The other side of a rule.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Peer {
    Group(Group),
    Address(IpAddr),
}

/// An L4 port, by name where every port of the receiving group has that name for it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct L4 {
    protocol: &'static str,
    port: u16,
    name: Option<String>,
}

/// Rules of one direction: who, on what.
type Rules = BTreeMap<Peer, BTreeSet<L4>>;

/// What is recommended.
#[derive(Debug)]
pub struct Recommendation {
    /// NetworkPolicies as JSON, in order of namespace and name.
    pub policies: Vec<Value>,
    /// Connections that it rests on.
    pub flows: usize,
    /// What could not be expressed.
    pub notes: Vec<String>,
}

/// Recommends policies for the ports of a namespace, or of all.
pub fn recommend(plane: &Plane, entries: &[Arc<Entry>], namespace: Option<&str>) -> Recommendation {
    let mut groups: BTreeMap<Group, [Rules; 2]> = BTreeMap::new();
    let mut notes = BTreeSet::new();
    let mut flows = 0;
    let wanted = |group: &Group| namespace.is_none_or(|namespace| group.namespace == namespace);
    for entry in entries {
        let Entry::Flow(record) = &**entry else { continue };
        let FlowEventKind::Opened { egress, ingress, .. } = record.event.kind else { continue };
        let (source, destination) = (group(&record.source), group(&record.destination));
        if ![&source, &destination].into_iter().flatten().any(wanted) {
            continue;
        }
        flows += 1;
        let Some(l4) = l4(record, plane, destination.as_ref()) else {
            notes.insert(no_ports(record));
            continue;
        };
        let key = &record.event.key;
        let [from, to] = [(&source, key.src()), (&destination, key.dst())].map(|(group, address)| match group {
            Some(group) => Peer::Group(group.clone()),
            None => Peer::Address(Ipv6Addr::from(address).to_canonical()),
        });
        // What passes by a built-in rule needs none.
        let builtin = |basis| matches!(basis, Basis::BuiltIn(_));
        for (group, direction, peer, basis) in [(&source, 1, to, egress), (&destination, 0, from, ingress)] {
            if let Some(group) = group.as_ref().filter(|group| wanted(group)) {
                let rules = groups.entry(group.clone()).or_default();
                if !builtin(basis) {
                    rules[direction].entry(peer).or_default().insert(l4.clone());
                }
            }
        }
    }
    let known: BTreeSet<Group> = plane.world.endpoints.iter().map(|endpoint| of_endpoint(endpoint)).collect();
    let mut names = BTreeSet::new();
    let policies = groups.iter().map(|(group, rules)| policy(group, rules, &known, &mut names)).collect();
    Recommendation { policies, flows, notes: notes.into_iter().collect() }
}

fn group(party: &Party) -> Option<Group> {
    let label = |label: &String| {
        let (key, value) = label.strip_prefix("k8s:")?.split_once('=')?;
        Some((key.to_owned(), value.to_owned()))
    };
    party.workload.then(|| Group {
        namespace: party.endpoint.namespace.clone(),
        labels: party.endpoint.labels.iter().filter_map(label).collect(),
    })
}

fn of_endpoint(endpoint: &Endpoint) -> Group {
    Group { namespace: endpoint.namespace.clone(), labels: endpoint.labels.clone() }
}

fn l4(record: &FlowRecord, plane: &Plane, destination: Option<&Group>) -> Option<L4> {
    let key = &record.event.key;
    let (protocol, number) = match key.proto() {
        proto::TCP => ("TCP", Protocol::Tcp),
        proto::UDP => ("UDP", Protocol::Udp),
        proto::SCTP => ("SCTP", Protocol::Sctp),
        _ => return None,
    };
    if key.kind() != Kind::Ports {
        return None;
    }
    let port = key.dst_port();
    let name = destination.and_then(|group| {
        let mut members = plane.world.endpoints.iter().filter(|endpoint| of_endpoint(endpoint) == *group).peekable();
        let names = |endpoint: &Endpoint| -> BTreeSet<String> {
            let here = endpoint.named_ports.iter().filter(|named| (named.protocol, named.port) == (number, port));
            here.map(|named| named.name.clone()).collect()
        };
        let first = names(members.peek()?);
        let common = members.fold(first, |common, endpoint| common.intersection(&names(endpoint)).cloned().collect());
        common.into_iter().next()
    });
    Some(L4 { protocol, port, name })
}

fn no_ports(record: &FlowRecord) -> String {
    let end = |party: &Party, address: u128| {
        party.port.clone().unwrap_or_else(|| Ipv6Addr::from(address).to_canonical().to_string())
    };
    let key = &record.event.key;
    format!(
        "from {} to {}, IP protocol {}: a NetworkPolicy can allow it only together with everything else",
        end(&record.source, key.src()),
        end(&record.destination, key.dst()),
        key.proto()
    )
}

fn policy(
    group: &Group,
    [ingress, egress]: &[Rules; 2],
    known: &BTreeSet<Group>,
    names: &mut BTreeSet<String>,
) -> Value {
    let rules = |rules: &Rules, side: &str| -> Vec<Value> {
        // Peers on the same L4 ports are one rule.
        let mut by_ports: BTreeMap<&BTreeSet<L4>, Vec<&Peer>> = BTreeMap::new();
        rules.iter().for_each(|(peer, ports)| by_ports.entry(ports).or_default().push(peer));
        let one = |(ports, peers): (&BTreeSet<L4>, Vec<&Peer>)| {
            let peers: Vec<Value> = peers.into_iter().map(|peer| to_peer(peer, group, known)).collect();
            json!({side: peers, "ports": ports.iter().map(to_port).collect::<Vec<_>>()})
        };
        by_ports.into_iter().map(one).collect()
    };
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name(group, names), "namespace": group.namespace},
        "spec": {
            "podSelector": selector(group, known),
            "policyTypes": ["Ingress", "Egress"],
            "ingress": rules(ingress, "from"),
            "egress": rules(egress, "to"),
        },
    })
}

/// Selects this group and no other one that is known in its namespace.
fn selector(group: &Group, known: &BTreeSet<Group>) -> Value {
    let more = known.iter().filter(|other| {
        let covers = group.labels.iter().all(|(key, value)| other.labels.get(key) == Some(value));
        other.namespace == group.namespace && *other != group && covers
    });
    let keys: BTreeSet<&String> =
        more.flat_map(|other| other.labels.keys()).filter(|key| !group.labels.contains_key(*key)).collect();
    let mut selector = json!({});
    if !group.labels.is_empty() {
        selector["matchLabels"] = json!(group.labels);
    }
    if !keys.is_empty() {
        let absent = |key: &&String| json!({"key": key, "operator": "DoesNotExist"});
        selector["matchExpressions"] = keys.iter().map(absent).collect();
    }
    selector
}

fn to_peer(peer: &Peer, subject: &Group, known: &BTreeSet<Group>) -> Value {
    match peer {
        Peer::Group(group) if group.namespace == subject.namespace => json!({"podSelector": selector(group, known)}),
        Peer::Group(group) => json!({
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": group.namespace}},
            "podSelector": selector(group, known),
        }),
        Peer::Address(address) => json!({"ipBlock": {"cidr": ipnet::IpNet::from(*address).to_string()}}),
    }
}

fn to_port(l4: &L4) -> Value {
    match &l4.name {
        Some(name) => json!({"port": name, "protocol": l4.protocol}),
        None => json!({"port": l4.port, "protocol": l4.protocol}),
    }
}

/// `recommended-db`, from the values of the labels; with a number where another group has that name.
fn name(group: &Group, names: &mut BTreeSet<String>) -> String {
    let words = group.labels.values().map(|value| {
        let plain = value.to_ascii_lowercase();
        plain.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect::<String>()
    });
    let joined = [PREFIX.to_owned()].into_iter().chain(words).collect::<Vec<_>>().join("-");
    let mut base: String = joined.chars().take(NAME_LEN_MAX).collect();
    base.truncate(base.trim_end_matches('-').len());
    let mut name = base.clone();
    let mut number = 1;
    while !names.insert(format!("{}/{name}", group.namespace)) {
        number += 1;
        name = format!("{base}-{number}");
    }
    name
}

#[cfg(test)]
mod tests {
    use hostweave_policy::model::{NamedPort, World};
    use hostweave_switch::tables::{NetworkId, PortId};

    use super::super::super::observe::flow_record::tests::{denied, key, opened, record};
    use super::*;

    fn endpoint(id: u32, name: &str, labels: &[(&str, &str)], named: &[(&str, u16)]) -> Arc<Endpoint> {
        let named_port =
            |(name, port): &(&str, u16)| NamedPort { name: (*name).into(), protocol: Protocol::Tcp, port: *port };
        Arc::new(Endpoint {
            id: PortId(id),
            network: NetworkId(0),
            namespace: "shop".into(),
            name: name.into(),
            labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            named_ports: named.iter().map(named_port).collect(),
        })
    }

    fn plane(endpoints: Vec<Arc<Endpoint>>) -> Plane {
        Plane { world: Arc::new(World { endpoints, ..World::default() }), ..Plane::default() }
    }

    fn entries(records: Vec<FlowRecord>) -> Vec<Arc<Entry>> {
        records.into_iter().map(|record| Arc::new(Entry::Flow(Box::new(record)))).collect()
    }

    #[test]
    fn what_was_seen_is_allowed_by_group_and_named_port() {
        let plane = plane(vec![
            endpoint(12, "cache-0", &[("app", "cache")], &[]),
            endpoint(31, "db-0", &[("app", "db")], &[("psql", 5432)]),
            endpoint(32, "db-x", &[("app", "db"), ("debug", "yes")], &[]),
        ]);
        let seen = vec![
            opened(proto::TCP, 40000, 5432, Kind::Ports),
            opened(proto::TCP, 40001, 5432, Kind::Ports),
            opened(proto::UDP, 40001, 53, Kind::Ports),
            opened(proto::ICMPV4, 1, 8, Kind::Query),
            denied(),
            record(
                FlowEventKind::Closed(hostweave_switch::connection::Ending::Expired),
                key(proto::TCP, 1, 2, Kind::Ports),
            ),
        ];
        let found = recommend(&plane, &entries(seen), None);
        assert_eq!((found.flows, found.policies.len(), found.notes.len()), (4, 2, 1));
        assert!(found.notes[0].starts_with("from shop/cache-0 to shop/db-0, IP protocol 1"), "{:?}", found.notes);
        let db =
            json!({"matchLabels": {"app": "db"}, "matchExpressions": [{"key": "debug", "operator": "DoesNotExist"}]});
        let cache = json!({"matchLabels": {"app": "cache"}});
        let ports = json!([{"port": "psql", "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]);
        assert_eq!(found.policies[0]["metadata"], json!({"name": "recommended-cache", "namespace": "shop"}));
        assert_eq!(found.policies[0]["spec"]["ingress"], json!([]));
        assert_eq!(found.policies[0]["spec"]["egress"], json!([{"to": [{"podSelector": db}], "ports": ports}]));
        assert_eq!(found.policies[1]["spec"]["podSelector"], db);
        assert_eq!(found.policies[1]["spec"]["ingress"], json!([{"from": [{"podSelector": cache}], "ports": ports}]));
        assert!(recommend(&plane, &entries(vec![denied()]), None).policies.is_empty());
        assert!(recommend(&plane, &entries(vec![opened(6, 1, 2, Kind::Ports)]), Some("lab")).policies.is_empty());
    }

    #[test]
    fn names_are_valid_and_never_twice() {
        let group = |value: &str| Group {
            namespace: "shop".into(),
            labels: BTreeMap::from([("app".to_owned(), value.to_owned())]),
        };
        let mut names = BTreeSet::new();
        let all: Vec<String> = ["A.b", "a-b", &"x".repeat(63), ""].map(|value| name(&group(value), &mut names)).into();
        assert_eq!(all[..2], ["recommended-a-b", "recommended-a-b-2"]);
        for name in all {
            assert!(crate::config::names::check_dns_subdomain(&name).is_ok(), "{name}");
        }
    }
}
