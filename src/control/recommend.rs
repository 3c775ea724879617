//! NetworkPolicies from what was seen: the smallest that allow every connection of the flow log and of the connection table,
//! and nothing else.
//!
//! Rules are about what policy saw: of a Service the backend and its own L4 port, of another network an address.
//!
//! Ports of one namespace with the same labels are a group, and each group that was seen gets one policy, which isolates it in
//! both directions. Its selector means exactly that group: labels that other groups have and it has not must not exist.
//! The same log gives the same text.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use hostweave_policy::model::{Endpoint, Protocol};
use hostweave_policy::table::Basis;
use hostweave_switch::connection::Entry as Connection;
use hostweave_switch::flow::{FlowKey, Kind};
use hostweave_switch::tables::PortId;
use serde_json::{Value, json};

use crate::fabric::plane::Plane;
use crate::observe::flow_event::FlowEventKind;
use crate::observe::flow_log::Entry;
use crate::observe::flow_record::Party;

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

/// A connection that there is, whatever the flow log remembers of it.
#[derive(Clone, Copy, Debug)]
pub struct Live {
    /// Tuple of the packet that began it.
    pub key: FlowKey,
    /// The same as the other side sees it, where that is another one.
    pub there: Option<FlowKey>,
    /// Its network.
    pub vni: u32,
    /// The port that began it, and the other.
    pub ports: [PortId; 2],
    /// What allowed it: egress and ingress.
    pub basis: [Basis; 2],
}

impl Live {
    /// Of the connection table. `None` if what allowed it is not known.
    pub fn of(entry: &Connection) -> Option<Self> {
        let [Some(egress), Some(ingress)] = entry.basis.map(Basis::from_u32) else { return None };
        let there = entry.translation.map(|how| how.reply.reversed());
        let ports = [PortId(entry.in_port), PortId(entry.out_port)];
        Some(Self { key: entry.key, there, vni: entry.vni, ports, basis: [egress, ingress] })
    }
}

/// A connection with those that it is between.
struct Seen<'a> {
    /// Sender and receiver.
    ends: [&'a Party; 2],
    key: FlowKey,
    there: FlowKey,
    /// Egress and ingress.
    basis: [Basis; 2],
}

/// Recommends policies for the ports of a namespace, or of all. Connections of `live` that the log has too are one.
pub fn recommend(plane: &Plane, entries: &[Arc<Entry>], live: &[Live], namespace: Option<&str>) -> Recommendation {
    let parties: HashMap<PortId, Party> =
        plane.world.endpoints.iter().map(|endpoint| (endpoint.id, Party::workload(endpoint, 0, None))).collect();
    let mut logged = HashSet::new();
    let mut seen = Vec::new();
    for entry in entries {
        let Entry::Flow(record) = &**entry else { continue };
        let FlowEventKind::Opened { egress, ingress, .. } = record.event.kind else { continue };
        let key = record.event.key;
        logged.insert((record.event.vni, key, record.event.there.unwrap_or(key)));
        let ends = [&*record.source, &*record.destination];
        seen.push(Seen { ends, key, there: record.event.there.unwrap_or(key), basis: [egress, ingress] });
    }
    let other = Party::default();
    for Live { key, there, vni, ports, basis } in live {
        let key = key.unscoped();
        // One L4 port may have served a Service's client twice, and have got to two backends.
        if !logged.contains(&(*vni, key, there.unwrap_or(key))) {
            let ends = ports.map(|port| parties.get(&port).unwrap_or(&other));
            seen.push(Seen { ends, key, there: there.unwrap_or(key), basis: *basis });
        }
    }
    of_connections(plane, &seen, namespace)
}

fn of_connections(plane: &Plane, seen: &[Seen<'_>], namespace: Option<&str>) -> Recommendation {
    let mut groups: BTreeMap<Group, [Rules; 2]> = BTreeMap::new();
    let mut notes = BTreeSet::new();
    let mut flows = 0;
    let wanted = |group: &Group| namespace.is_none_or(|namespace| group.namespace == namespace);
    for seen in seen {
        let [source, destination] = seen.ends.map(group);
        if ![&source, &destination].into_iter().flatten().any(wanted) {
            continue;
        }
        flows += 1;
        let Some(l4) = seen.l4() else {
            notes.insert(seen.no_ports());
            continue;
        };
        let [from, to] = seen.peers([&source, &destination]);
        // Of another network nobody's named ports are known.
        let named =
            |group: Option<&Group>| L4 { name: group.and_then(|group| name_of(plane, group, l4)), ..L4::of(l4) };
        let receiver = destination.as_ref();
        let [out, inward] = [receiver.filter(|_| !seen.is_apart()), receiver].map(named);
        // What passes by a built-in rule, or from a port to itself, needs none.
        let needs_none = |basis| matches!(basis, Basis::BuiltIn(_) | Basis::Myself);
        let [egress, ingress] = seen.basis;
        let sides = [(&source, 1, to, out, egress), (&destination, 0, from, inward, ingress)];
        for (group, direction, peer, l4, basis) in sides {
            if let Some(group) = group.as_ref().filter(|group| wanted(group)) {
                let rules = groups.entry(group.clone()).or_default();
                if !needs_none(basis) {
                    rules[direction].entry(peer).or_default().insert(l4);
                }
            }
        }
    }
    let known: BTreeSet<Group> = plane.world.endpoints.iter().map(|endpoint| of_endpoint(endpoint)).collect();
    let mut names = BTreeSet::new();
    let policies = groups.iter().map(|(group, rules)| policy(group, rules, &known, &mut names)).collect();
    Recommendation { policies, flows, notes: notes.into_iter().collect() }
}

impl Seen<'_> {
    /// Between ports of two networks, of which neither knows the other's (SEMANTICS SV26).
    fn is_apart(&self) -> bool {
        let [from, to] = self.ends;
        from.workload && to.workload && from.network != to.network
    }

    /// As whom the receiver's policy saw the sender, and the sender's the receiver (`connect::decide`, SEMANTICS NP21).
    fn peers(&self, [source, destination]: [&Option<Group>; 2]) -> [Peer; 2] {
        let address = |address: u128| Peer::Address(Ipv6Addr::from(address).to_canonical());
        if self.is_apart() {
            return [address(self.there.src()), address(self.key.dst())];
        }
        let peer = |group: &Option<Group>, bits| group.clone().map_or_else(|| address(bits), Peer::Group);
        [peer(source, self.key.src()), peer(destination, self.there.dst())]
    }

    /// The L4 port that policy judged: the backend's own.
    fn l4(&self) -> Option<(Protocol, u16)> {
        let protocol = Protocol::from_number(self.key.proto())?;
        (self.key.kind() == Kind::Ports).then(|| (protocol, self.there.dst_port()))
    }

    fn no_ports(&self) -> String {
        let end = |party: &Party, address: u128| {
            party.port.clone().unwrap_or_else(|| Ipv6Addr::from(address).to_canonical().to_string())
        };
        let (key, [from, to]) = (&self.key, self.ends);
        format!(
            "from {} to {}, IP protocol {}: a NetworkPolicy can allow it only together with everything else",
            end(from, key.src()),
            end(to, key.dst()),
            key.proto()
        )
    }
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

impl L4 {
    /// Without a name.
    fn of((protocol, port): (Protocol, u16)) -> Self {
        let protocol = match protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        };
        Self { protocol, port, name: None }
    }
}

/// A name that every port of a group has for an L4 port.
fn name_of(plane: &Plane, group: &Group, (protocol, port): (Protocol, u16)) -> Option<String> {
    let mut members = plane.world.endpoints.iter().filter(|endpoint| of_endpoint(endpoint) == *group);
    let names = |endpoint: &Endpoint| -> BTreeSet<String> {
        let here = endpoint.named_ports.iter().filter(|named| (named.protocol, named.port) == (protocol, port));
        here.map(|named| named.name.clone()).collect()
    };
    let first = names(members.next()?);
    let common = members.fold(first, |common, endpoint| common.intersection(&names(endpoint)).cloned().collect());
    common.into_iter().next()
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
    use hostweave_switch::tables::NetworkId;
    use hostweave_switch::wire::proto;

    use super::super::super::observe::flow_record::tests::{denied, key, opened, record};
    use super::*;
    use crate::observe::flow_record::FlowRecord;

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
        let found = recommend(&plane, &entries(seen), &[], None);
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
        assert!(recommend(&plane, &entries(vec![denied()]), &[], None).policies.is_empty());
        assert!(recommend(&plane, &entries(vec![opened(6, 1, 2, Kind::Ports)]), &[], Some("lab")).policies.is_empty());
    }

    /// An address of either family, and its single-address range.
    fn host(v6: bool, last: u16) -> (u128, String) {
        match v6 {
            true => (u128::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last)), format!("2001:db8::{last:x}/128")),
            false => {
                let v4 = std::net::Ipv4Addr::new(203, 0, 113, last as u8);
                (u128::from(v4.to_ipv6_mapped()), format!("{v4}/32"))
            }
        }
    }

    /// A connection of `cache-0` to port 80 of a Service, and what it becomes: from `as_whom` to port 5432 of `backend`.
    fn balanced(v6: bool, as_whom: Option<u16>, backend: u16) -> FlowRecord {
        let (client, vip) = (host(v6, 12).0, host(v6, 200).0);
        let key = |src, dst, l4| hostweave_switch::flow::FlowKey::new(src, dst, 40_000, l4, proto::TCP, Kind::Ports);
        let mut record = opened(proto::TCP, 0, 0, Kind::Ports);
        record.event.key = key(client, vip, 80);
        let shown = as_whom.map_or(client, |last| host(v6, last).0);
        record.event.there = Some(key(shown, host(v6, backend).0, 5432));
        record
    }

    #[test]
    fn np21_traffic_to_a_service_is_allowed_to_the_backend_and_its_own_port() {
        let named = endpoint(31, "db-0", &[("app", "db")], &[("psql", 5432), ("http", 80)]);
        let plane = plane(vec![endpoint(12, "cache-0", &[("app", "cache")], &[]), named]);
        for v6 in [false, true] {
            let found = recommend(&plane, &entries(vec![balanced(v6, None, 31)]), &[], None);
            let ports = json!([{"port": "psql", "protocol": "TCP"}]);
            let db = json!({"podSelector": {"matchLabels": {"app": "db"}}});
            let cache = json!({"podSelector": {"matchLabels": {"app": "cache"}}});
            assert_eq!(found.policies[0]["spec"]["egress"], json!([{"to": [db], "ports": ports}]));
            assert_eq!(found.policies[1]["spec"]["ingress"], json!([{"from": [cache], "ports": ports}]));

            // A backend out there is the address that policy judged, not that of the Service.
            let mut beyond = balanced(v6, Some(7), 99);
            beyond.destination = Arc::default();
            let found = recommend(&plane, &entries(vec![beyond]), &[], None);
            let block = json!({"ipBlock": {"cidr": host(v6, 99).1}});
            let ports = json!([{"port": 5432, "protocol": "TCP"}]);
            assert_eq!(found.policies[0]["spec"]["egress"], json!([{"to": [block], "ports": ports}]));
        }
    }

    #[test]
    fn sv26_a_peer_of_another_network_is_the_address_that_policy_saw() {
        let there =
            Endpoint { network: NetworkId(1), ..(*endpoint(31, "db-0", &[("app", "db")], &[("psql", 5432)])).clone() };
        let plane = plane(vec![endpoint(12, "cache-0", &[("app", "cache")], &[]), Arc::new(there)]);
        for v6 in [false, true] {
            let mut record = balanced(v6, Some(7), 31);
            Arc::make_mut(&mut record.destination).network = Some(NetworkId(1));
            let found = recommend(&plane, &entries(vec![record]), &[], None);
            let block = |last| json!([{"ipBlock": {"cidr": host(v6, last).1}}]);
            // Of another network no named port is known, and the receiver's own are.
            let (number, name) =
                (json!([{"port": 5432, "protocol": "TCP"}]), json!([{"port": "psql", "protocol": "TCP"}]));
            assert_eq!(found.policies[0]["spec"]["egress"], json!([{"to": block(200), "ports": number}]));
            assert_eq!(found.policies[1]["spec"]["ingress"], json!([{"from": block(7), "ports": name}]));
        }
    }

    #[test]
    fn connections_older_than_the_log_count_and_none_twice() {
        let plane = plane(vec![
            endpoint(12, "cache-0", &[("app", "cache")], &[]),
            endpoint(31, "db-0", &[("app", "db")], &[("psql", 5432)]),
        ]);
        let live = |record: &FlowRecord| Live {
            key: record.event.key,
            there: record.event.there,
            vni: 1,
            ports: [PortId(12), PortId(31)],
            basis: [Basis::NotSelected; 2],
        };
        let (old, known) = (balanced(false, None, 31), opened(proto::UDP, 40_001, 53, Kind::Ports));
        let both = [live(&old), live(&known)];
        let found = recommend(&plane, &entries(vec![known]), &both, None);
        assert_eq!(found.flows, 2);
        let ports = json!([{"port": "psql", "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]);
        assert_eq!(found.policies[1]["spec"]["ingress"][0]["ports"], ports);
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
