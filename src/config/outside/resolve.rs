//! What the packet path is to do about the outside.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use hostweave_nat::{V4, V6};
use hostweave_policy::model::{Labels, Selector};
use hostweave_switch::tables::Egress;
use ipnet::IpNet;

use super::{Given, ServiceAddresses, address_pools, attach_path, attachments, nat_pools};
use crate::config::checked::{NatPool, Network, Object, PoolType, Spec};
use crate::config::diagnostic::Diagnostic;
use crate::config::kind::{DEFAULT_NAMESPACE, Kind, ObjectKey};
use crate::config::policies::namespace_labels;
use crate::config::problem::Problem;
use crate::config::ranges::Range;
use crate::config::set::ObjectSet;
use crate::fabric::spec::{AttachSpec, Desired, NatPoolSpec, PortSpec, internal_uid};

/// What becomes of packets of a family that leave a network: as written, else NAT if a pool serves it.
pub fn egress_of(set: &ObjectSet, name: &str, network: &Network, ipv4: bool) -> Egress {
    let (written, has) = match ipv4 {
        true => (network.egress_v4, network.v4.is_some()),
        false => (network.egress_v6, network.v6.is_some()),
    };
    if has && written == Some(Egress::Forbidden) {
        return Egress::Forbidden;
    }
    if !has || set.host().uplink.is_none() {
        return Egress::None;
    }
    let served = || nat_pools(set).any(|(_, pool)| pool.serves(name, ipv4));
    written.unwrap_or_else(|| if served() { Egress::Nat } else { Egress::None })
}

/// A range of a network whose packets leave as they are, wherever they go or for some destinations, as
/// `fabric::uplink::owned` has it: it is routed to this host.
pub fn routed_range(set: &ObjectSet, name: &str, network: &Network, ipv4: bool) -> Option<IpNet> {
    let range = match ipv4 {
        true => network.v4.map(|(net, _)| IpNet::V4(net)),
        false => network.v6.map(|(net, _)| IpNet::V6(net)),
    };
    let exempt = || network.untranslated.iter().any(|range| range.addr().is_ipv4() == ipv4);
    range.filter(|_| match egress_of(set, name, network, ipv4) {
        Egress::Routed => true,
        Egress::Nat => exempt(),
        _ => false,
    })
}

/// Adds uplink, pools and attached addresses; networks and ports are there already.
pub fn resolve(set: &ObjectSet, given: &ServiceAddresses, desired: &mut Desired) -> Vec<Diagnostic> {
    desired.uplink = set.host().uplink.clone();
    for network in &mut desired.networks {
        let Some(checked) = set.network(&network.name) else { continue };
        network.egress_v4 = egress_of(set, &network.name, checked, true);
        network.egress_v6 = egress_of(set, &network.name, checked, false);
        network.untranslated.clone_from(&checked.untranslated);
    }
    desired.nat_pools = pools_of(set, &desired.networks, &desired.ports);
    let public = address_pools(set).filter(|(_, pool)| pool.pool_type == PoolType::Public);
    desired.public = public.flat_map(|(_, pool)| &pool.ranges).flat_map(Range::prefixes).collect();
    attach(set, given, desired)
}

/// The pools of NAT addresses, and whom they serve.
pub fn pools_of(
    set: &ObjectSet,
    networks: &[hostweave_switch::tables::Network],
    ports: &[Arc<PortSpec>],
) -> Vec<NatPoolSpec> {
    let namespaces: HashMap<&str, Labels> =
        set.of_kind(Kind::Namespace).map(|object| (object.key.name.as_str(), namespace_labels(object))).collect();
    let mut pools: Vec<NatPoolSpec> =
        nat_pools(set).map(|(object, pool)| pool_of(object, pool, &namespaces, ports)).collect();
    for network in networks {
        for (spec, (_, pool)) in pools.iter_mut().zip(nat_pools(set)) {
            for (family, has) in [(V4, network.v4.is_some()), (V6, network.v6.is_some())] {
                if has && serves_host(set, pool, &network.name, family == V4) {
                    spec.hosts[family].push(internal_uid(network.vni));
                }
            }
        }
    }
    pools
}

/// Whether the host's own connections out of a network (health checks) may leave by a pool in a family: as those of anybody there, by one that is for
/// everybody; where there is none, by those for some. Of several the first by name has them.
fn serves_host(set: &ObjectSet, pool: &NatPool, network: &str, ipv4: bool) -> bool {
    let for_all = |pool: &NatPool| pool.namespaces.requirements.is_empty() && pool.selector.requirements.is_empty();
    let any_for_all = || nat_pools(set).any(|(_, other)| other.serves(network, ipv4) && for_all(other));
    pool.serves(network, ipv4) && (for_all(pool) || !any_for_all())
}

fn pool_of(
    object: &Object,
    pool: &NatPool,
    namespaces: &HashMap<&str, Labels>,
    ports: &[Arc<PortSpec>],
) -> NatPoolSpec {
    let matches = |selector: &Selector, labels: &Labels| selector.requirements.is_empty() || selector.matches(labels);
    let serves = |port: &&Arc<PortSpec>| {
        let network = pool.networks.is_empty() || pool.networks.contains(&port.network);
        let namespace = namespaces.get(port.namespace.as_str());
        network
            && namespace.is_some_and(|labels| matches(&pool.namespaces, labels))
            && matches(&pool.selector, &port.labels)
    };
    NatPoolSpec {
        name: object.key.name.clone(),
        addresses: pool.addresses.clone(),
        draining: pool.draining.clone(),
        ports: ports.iter().filter(serves).map(|port| port.uid).collect(),
        hosts: Default::default(),
        block_size: pool.block_size,
        blocks: pool.blocks.clone(),
        filtering: pool.filtering,
        overload: pool.overload,
        limits: pool.limits,
    }
}

/// Gives ports the addresses of their Services. A direct one comes first among the port's: DHCP hands it out.
fn attach(set: &ObjectSet, given: &ServiceAddresses, desired: &mut Desired) -> Vec<Diagnostic> {
    let mut problems = Vec::new();
    let slots: HashMap<(String, String), usize> = desired
        .ports
        .iter()
        .enumerate()
        .map(|(slot, port)| ((port.namespace.clone(), port.name.clone()), slot))
        .collect();
    let mut owners: HashMap<IpAddr, &Object> = HashMap::new();
    for attachment in attachments(set) {
        let (object, service) = (attachment.port, attachment.service_key());
        let namespace = object.key.namespace.clone().unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
        let slot = slots.get(&(namespace, object.key.name.clone())).copied();
        let (Some(port), Some(addresses)) = (slot.and_then(|slot| desired.ports.edit(slot)), given.get(&service))
        else {
            continue;
        };
        let one_to_one = attachment.one_to_one(set);
        let mut refuse = |code, message: String, label: &str, help: &str| {
            let problem = Problem::value(&attach_path(), code, message).label(label).help(help);
            problems.push(attachment.written.diagnose(problem));
        };
        let (used, _) = attachment.split(set, addresses);
        if used.is_empty() {
            let message = format!("Network {} has no range of the family that {service} has", port.network);
            refuse(
                "conflict",
                message,
                "no such family",
                "write spec.ipFamilies in the Service, or give the Network a range",
            );
        }
        for given in used {
            let Some(pool_type) = pool_type(set, given) else { continue };
            if let Some(owner) = owners.get(&given.address) {
                let message = format!("address {} of {service} is attached to {} already", given.address, owner.key);
                refuse("conflict", message, "second owner", "an address sits on one port");
                continue;
            }
            let public = pool_type == PoolType::Public;
            if one_to_one && !public {
                let message = format!(
                    "{service} has {}, a private address: 1:1 NAT stands between the outside and a port",
                    given.address
                );
                refuse("conflict", message, "private", "attach it with mode direct, or take a public address");
                continue;
            }
            owners.insert(given.address, object);
            if public {
                let (port, service) = (port.uid, service.path());
                desired.attached.push(AttachSpec { address: given.address, port, service, one_to_one });
            }
            if !one_to_one {
                match given.address {
                    IpAddr::V4(v4) => port.v4.insert(0, v4),
                    IpAddr::V6(v6) => port.v6.insert(0, v6),
                }
            }
        }
    }
    problems
}

/// Of which type the pool of an address is. Of an address that its pool has lost, which is a problem already, nothing is made.
pub fn pool_type(set: &ObjectSet, given: &Given) -> Option<PoolType> {
    let pool = set.get(&ObjectKey::new(Kind::AddressPool, None, given.pool()?))?;
    match &pool.spec {
        Spec::AddressPool(pool) if pool.contains(given.address) => Some(pool.pool_type),
        _ => None,
    }
}
