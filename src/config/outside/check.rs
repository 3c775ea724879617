//! Contradictions: an address that two would have, names that lead nowhere, an address attached twice.

use std::collections::HashMap;
use std::net::IpAddr;

use hostweave_switch::tables::Egress;
use ipnet::IpNet;

use super::{address_pools, attach_path, attachments, egress_of, nat_pools, routed_range, service, services};
use crate::config::checked::{Form, Object, PoolChoice, PoolType, Service, Spec, annotations};
use crate::config::diagnostic::Diagnostic;
use crate::config::kind::{Kind, ObjectKey};
use crate::config::names::closest;
use crate::config::node::Path;
use crate::config::problem::Problem;
use crate::config::ranges::Range;
use crate::config::set::ObjectSet;

/// Checks what objects say about the outside against each other.
pub fn check(set: &ObjectSet, found: &mut Vec<Diagnostic>) {
    check_addresses(set, found);
    check_edges(set, found);
    check_pools(set, found);
    check_services(set, found);
    check_attachments(set, found);
    check_egress(set, found);
    check_routed(set, found);
}

/// Addresses that somebody has.
pub(super) struct Holding<'a> {
    pub range: Range,
    pub object: &'a Object,
    pub path: Path,
    /// `in spec.addresses`, for people.
    what: &'static str,
    /// Whether it is the host's own at the uplink.
    pub outside: bool,
}

/// Everything that has addresses outside of the networks. Those who come first are in the right.
pub(super) fn holdings(set: &ObjectSet) -> Vec<Holding<'_>> {
    let mut holdings = Vec::new();
    let uplink = set.of_kind(Kind::HostConfig).next().and_then(|object| match &object.spec {
        Spec::HostConfig(host) => host.uplink.as_ref().map(|uplink| (&**object, uplink)),
        _ => None,
    });
    if let Some((object, uplink)) = uplink {
        let addresses = uplink.addresses.iter().map(IpNet::addr);
        for (path, what, addresses, outside) in [
            (Path::of("spec.uplink.addresses"), "address of the uplink", addresses.collect::<Vec<IpAddr>>(), true),
            (Path::of("spec.uplink.gateways"), "gateway of the uplink", uplink.gateways.clone(), false),
        ] {
            let holding =
                |address: IpAddr| Holding { range: address.into(), object, path: path.clone(), what, outside };
            holdings.extend(addresses.into_iter().map(holding));
        }
    }
    let path = Path::of("spec.addresses");
    let nat = nat_pools(set).map(|(object, pool)| (object, &pool.ranges, true));
    let services = address_pools(set).map(|(object, pool)| (object, &pool.ranges, pool.pool_type == PoolType::Public));
    for (object, ranges, outside) in nat.chain(services) {
        let holding = |(index, range): (usize, &Range)| Holding {
            range: *range,
            object,
            path: path.index(index),
            what: "range of the pool",
            outside,
        };
        holdings.extend(ranges.iter().enumerate().map(holding));
    }
    holdings
}

/// No address has two owners (SEMANTICS DA5).
fn check_addresses(set: &ObjectSet, found: &mut Vec<Diagnostic>) {
    let holdings = holdings(set);
    let mut order: Vec<usize> = (0..holdings.len()).collect();
    order.sort_by_key(|index| (holdings[*index].range, *index));
    // Of those before, the one that reaches farthest.
    let mut reaching: Option<usize> = None;
    for index in order.iter().copied() {
        let this = &holdings[index];
        if let Some(other) = reaching.map(|other| &holdings[other])
            && other.range.overlaps(&this.range)
            && other.object.key != this.object.key
        {
            let (late, early) = if other.object.key > this.object.key { (other, this) } else { (this, other) };
            let range = if late.range.count() < early.range.count() { late.range } else { early.range };
            let message = format!(
                "{range} is in {} and in {} ({}): {} there",
                late.object.key, early.object.key, early.object.origin, early.what
            );
            let problem = Problem::value(&late.path, "conflict", message).label("taken");
            found.push(late.object.diagnose(problem.help("an address has one owner: take it out of one of them")));
        }
        if reaching.is_none_or(|other| holdings[other].range.last() < this.range.last()) {
            reaching = Some(index);
        }
    }
    check_networks(set, &holdings, &order, found);
}

/// Pools have no address that is the uplink's subnet's own: nobody out there takes a packet from its broadcast address, nor sends one
/// to it (RFC 1122 §3.2.1.3), and every router answers for the first one (RFC 4291 §2.6.1). In a prefix that is only routed here they
/// are addresses as any other.
fn check_edges(set: &ObjectSet, found: &mut Vec<Diagnostic>) {
    let Some(uplink) = &set.host().uplink else { return };
    let mut edges: Vec<(IpAddr, &str, IpNet)> = Vec::new();
    // RFC 3021 and RFC 6164: in a /31 or /127 both are hosts.
    for net in uplink.addresses.iter().filter(|net| net.max_prefix_len() - net.prefix_len() > 1) {
        let first = if net.addr().is_ipv4() { "address of the subnet" } else { "subnet-router anycast address" };
        edges.push((net.network(), first, *net));
        if net.addr().is_ipv4() {
            edges.push((net.broadcast(), "broadcast address", *net));
        }
    }
    let nat = nat_pools(set).map(|(object, pool)| (object, &pool.ranges));
    for (object, ranges) in nat.chain(address_pools(set).map(|(object, pool)| (object, &pool.ranges))) {
        for (index, range) in ranges.iter().enumerate() {
            let Some((edge, what, net)) = edges.iter().find(|(edge, ..)| range.contains(*edge)) else { continue };
            let path = Path::of("spec.addresses").index(index);
            let message = format!("{range} has {edge}, the {what} of {}, in which the uplink is", net.trunc());
            let problem = Problem::value(&path, "invalid_address", message).label("not usable");
            let next = || (range.nth(1), range.nth(range.count().saturating_sub(2)));
            let help = match next() {
                (Some(second), _) if *edge == range.first() => format!("write {second}-{}", range.last()),
                (Some(_), Some(before)) if *edge == range.last() => format!("write {}-{before}", range.first()),
                _ => "leave it out".to_owned(),
            };
            found.push(object.diagnose(problem.help(help)));
        }
    }
}

/// Addresses outside are none of a network's. Each network is looked for among the sorted ranges.
fn check_networks(set: &ObjectSet, holdings: &[Holding<'_>], order: &[usize], found: &mut Vec<Diagnostic>) {
    for object in set.of_kind(Kind::Network) {
        let Spec::Network(network) = &object.spec else { continue };
        let v4 = network.v4.map(|(net, _)| IpNet::V4(net));
        let own = v4.into_iter().chain(network.v6.map(|(net, _)| IpNet::V6(net)));
        let ports = ("given to ports", "use addresses that are in no Network's cidrs");
        let services = ("cluster addresses of Services", "use others, or write spec.serviceCIDRs in the Network");
        let ranges = own.map(|net| (net, ports)).chain(network.service_ranges().map(|net| (net, services)));
        for (net, (what, help)) in ranges {
            let range = Range::from(net);
            // Where nothing else is wrong, ranges do not overlap: they end in the order in which they begin.
            let first = order.partition_point(|index| holdings[*index].range.last() < range.first());
            let inside = order.iter().skip(first).map(|index| &holdings[*index]);
            for holding in inside.take_while(|holding| holding.range.first() <= range.last()) {
                let message = format!(
                    "{} lies in {net} of {} ({}): its addresses are {what}",
                    holding.range, object.key, object.origin
                );
                let problem = Problem::value(&holding.path, "conflict", message).label("inside a network");
                found.push(holding.object.diagnose(problem.help(help)));
            }
        }
    }
}

fn check_pools(set: &ObjectSet, found: &mut Vec<Diagnostic>) {
    for (object, pool) in nat_pools(set) {
        for (index, name) in pool.networks.iter().enumerate() {
            if set.network(name).is_none() {
                let path = Path::of("spec.networks").index(index);
                let problem = Problem::value(&path, "not_found", format!("Network {name} does not exist"));
                found.push(object.diagnose(problem.label(meant(name, set.networks().map(|(name, _)| name)))));
            }
        }
        if set.host().uplink.is_none() {
            let message = format!("{} has no effect: HostConfig.spec.uplink is not written", object.key);
            let problem = Problem::value(&Path::of("metadata.name"), "no_effect", message).label("no uplink");
            found.push(object.diagnose(problem.warning()));
        }
    }
}

fn check_services(set: &ObjectSet, found: &mut Vec<Diagnostic>) {
    services(set).for_each(|(object, service)| check_service(set, object, service, found));
}

/// What a Service names is there.
pub fn check_service(set: &ObjectSet, object: &Object, service: &Service, found: &mut Vec<Diagnostic>) {
    check_network(set, object, service, found);
    let PoolChoice::Named(name) = &service.pool else { return };
    if !service.has_pool_address() || set.get(&ObjectKey::new(Kind::AddressPool, None, name)).is_some() {
        return;
    }
    let known = address_pools(set).map(|(pool, _)| pool.key.name.as_str());
    let label = meant(name, known);
    let message = format!("AddressPool {name} does not exist");
    let problem = Problem::value(&annotations::path_of(annotations::POOL), "not_found", message).label(label);
    let kind = if name.starts_with("private") { PoolType::Private } else { PoolType::Public };
    found.push(object.diagnose(problem.help(format!(
        "apply it as well: {{apiVersion: hostweave.dev/v1alpha1, kind: AddressPool, metadata: {{name: {name}}}, \
         spec: {{type: {}, addresses: […]}}}}",
        if kind == PoolType::Public { "public" } else { "private" }
    ))));
}

/// A Service that is known in a network needs it.
fn check_network(set: &ObjectSet, object: &Object, service: &Service, found: &mut Vec<Diagnostic>) {
    if service.form == Form::Attach || set.network(&service.network).is_some() {
        return;
    }
    let label = meant(&service.network, set.networks().map(|(name, _)| name));
    let path = annotations::path_of(annotations::NETWORK);
    let message = format!("Network {} does not exist", service.network);
    found.push(object.diagnose(Problem::value(&path, "not_found", message).label(label)));
}

/// SEMANTICS DA3: at most one workload at a time.
fn check_attachments(set: &ObjectSet, found: &mut Vec<Diagnostic>) {
    let mut owners: HashMap<ObjectKey, &Object> = HashMap::new();
    for attachment in attachments(set) {
        let key = attachment.service_key();
        let mut refuse = |code, message: String, label: String, help: &str| {
            let problem = Problem::value(&attach_path(), code, message).label(label);
            found.push(attachment.written.diagnose(problem.help(help)));
        };
        let target = service(set, &key).map(|(_, service)| &service.form);
        if target.is_some_and(|form| *form != Form::Attach) {
            let message = format!("{key} spreads connections: its address cannot sit on one port");
            let help =
                "attach a Service with the selector coreweave.cloud/ignore: ignore. See: hostweave explain Service";
            refuse("conflict", message, "not for direct attach".to_owned(), help);
        } else if target.is_none() {
            let known = set.of_namespace(Kind::Service, key.namespace.as_deref().unwrap_or_default());
            let known: Vec<String> = known.map(|service| service.key.name.clone()).collect();
            let label = meant(&key.name, known.iter().map(String::as_str));
            refuse(
                "not_found",
                format!("{key} does not exist"),
                label,
                "a Port has the address of a Service of its namespace",
            );
        } else if let Some(owner) = owners.get(&key) {
            let message = format!("{key} is attached to {} ({}) already", owner.key, owner.origin);
            let help = "an address sits on one port: take the annotation away there first, in the same apply";
            refuse("conflict", message, "second owner".to_owned(), help);
        } else {
            owners.insert(key, attachment.port);
        }
    }
}

/// Networks whose traffic would not leave, though it is written that it does.
fn check_egress(set: &ObjectSet, found: &mut Vec<Diagnostic>) {
    for object in set.of_kind(Kind::Network) {
        let Spec::Network(network) = &object.spec else { continue };
        for (egress, ipv4, family) in [(network.egress_v4, true, "ipv4"), (network.egress_v6, false, "ipv6")] {
            let path = Path::of("spec.egress").key(family);
            let has = if ipv4 { network.v4.is_some() } else { network.v6.is_some() };
            let warning = match egress {
                None | Some(Egress::None | Egress::Forbidden) => continue,
                _ if !has => {
                    format!("{path} has no effect: the network has no {} range", if ipv4 { "IPv4" } else { "IPv6" })
                }
                _ if set.host().uplink.is_none() => {
                    format!("{path} has no effect: HostConfig.spec.uplink is not written")
                }
                Some(Egress::Nat) if !nat_pools(set).any(|(_, pool)| pool.serves(&object.key.name, ipv4)) => {
                    format!("{path} is nat, and no NatPool has addresses of that family for it: nothing leaves")
                }
                Some(_) => continue,
            };
            found.push(object.diagnose(Problem::value(&path, "no_effect", warning).label("no effect").warning()));
        }
        for (index, range) in network.untranslated.iter().enumerate() {
            let ipv4 = range.addr().is_ipv4();
            if egress_of(set, &object.key.name, network, ipv4) == Egress::Nat {
                continue;
            }
            let path = Path::of("spec.egress.untranslated").index(index);
            let family = if ipv4 { "IPv4" } else { "IPv6" };
            let warning =
                format!("{path} {range} has no effect: no {family} packet that leaves the network is translated");
            found.push(object.diagnose(Problem::value(&path, "no_effect", warning).label("no effect").warning()));
        }
    }
}

/// Ranges that are routed to this host belong to one network each: by the destination alone a packet from the uplink finds its network.
fn check_routed(set: &ObjectSet, found: &mut Vec<Diagnostic>) {
    let mut routed: Vec<(IpNet, &Object, Egress)> = Vec::new();
    for object in set.of_kind(Kind::Network) {
        let Spec::Network(network) = &object.spec else { continue };
        let name = &object.key.name;
        for ipv4 in [true, false] {
            let range = routed_range(set, name, network, ipv4).map(|range| range.trunc());
            routed.extend(range.map(|range| (range, &**object, egress_of(set, name, network, ipv4))));
        }
    }
    // Prefixes lie in each other or apart: what overlaps others lies in the one before that reaches farthest.
    routed.sort_by_key(|(range, object, _)| (range.network(), range.prefix_len(), &object.key));
    let mut outer: Option<(IpNet, &Object, Egress)> = None;
    for this in routed {
        let Some(other) = outer.filter(|(range, ..)| range.contains(&this.0)) else {
            outer = Some(this);
            continue;
        };
        let (late, early) = if other.1.key > this.1.key { (other, this) } else { (this, other) };
        let message = format!(
            "{} of {} and {} of {} ({}) overlap, and both are routed to this host: nobody could tell whose a packet to there is",
            late.0, late.1.key, early.0, early.1.key, early.1.origin
        );
        let path = Path::of("spec.egress").key(if late.2 == Egress::Nat { "untranslated" } else { "ipv6" });
        let problem = Problem::key(&path, "conflict", message).label("routed twice");
        found.push(late.1.diagnose(problem.help("translate all that leaves one of them, or give it another range")));
    }
}

/// What stands under the mark of a name that leads nowhere.
fn meant<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    closest(name, known).map_or("not there".to_owned(), |similar| format!("did you mean {similar}?"))
}
