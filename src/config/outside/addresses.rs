//! The addresses of Services. Deterministic, as those of ports are ([`crate::config::ipam`]): a function of the objects and of what
//! was given before. What a Service was given stays its own until it is deleted (SEMANTICS SV21).

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::cluster::Clusters;
use super::pools::Pools;
use super::services;
use crate::config::checked::{Families, Form, Object, Service};
use crate::config::diagnostic::Diagnostic;
use crate::config::kind::ObjectKey;
use crate::config::node::Path;
use crate::config::problem::Problem;
use crate::config::set::ObjectSet;

/// An address that a Service was given. Kept in the store, so that it survives restarts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Given {
    /// The address.
    pub address: IpAddr,
    /// What it is out of.
    #[serde(flatten)]
    pub of: GivenOf,
}

/// What an address of a Service is out of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum GivenOf {
    /// The AddressPool of this name.
    Pool(String),
    /// The `serviceCIDRs` of the Network of this name: a cluster address.
    Network(String),
}

impl Given {
    /// Name of the AddressPool that it is of.
    pub fn pool(&self) -> Option<&str> {
        match &self.of {
            GivenOf::Pool(name) => Some(name),
            GivenOf::Network(_) => None,
        }
    }

    /// Name of the Network, of a cluster address.
    pub fn network(&self) -> Option<&str> {
        match &self.of {
            GivenOf::Network(name) => Some(name),
            GivenOf::Pool(_) => None,
        }
    }
}

/// What Services were given: of a pool and of the cluster addresses one of a family each, pools first, IPv4 first.
pub type ServiceAddresses = BTreeMap<ObjectKey, Vec<Given>>;

/// What [`assign`] decided.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ServicePlan {
    /// Of every Service that could be given what it needs.
    pub addresses: ServiceAddresses,
    /// Services whose addresses are new or differ from the remembered ones: to be written to the store.
    pub changed: Vec<ObjectKey>,
    /// Services that have no addresses any more: to be deleted from the store.
    pub freed: Vec<ObjectKey>,
    /// Services that cannot be given what they need.
    pub problems: Vec<Diagnostic>,
}

/// Gives every Service of `set` its addresses: what was remembered first, then what is asked for, then the lowest free ones.
pub fn assign(set: &ObjectSet, remembered: &ServiceAddresses) -> ServicePlan {
    let (mut pools, mut clusters) = (Pools::new(set), Clusters::new(set));
    let mut plan = ServicePlan::default();
    let mut open = Vec::new();
    let with_addresses = |(_, service): &(&Object, &Service)| service.has_pool_address() || service.balances();
    for (object, service) in services(set).filter(with_addresses) {
        let old = remembered.get(&object.key).map(Vec::as_slice).unwrap_or_default();
        let mut kept = Kept::default();
        match recall(&mut pools, &mut clusters, object, service, old, &mut kept) {
            Ok(()) => open.push((object, service, kept)),
            Err(problem) => refused(object, remembered, *problem, &mut plan),
        }
    }
    // Who asks for an address comes before those who take any.
    open.sort_by_key(|(_, service, _)| service.wanted.is_empty() && service.cluster_wanted.is_empty());
    for (object, service, mut kept) in open {
        match complete(&mut pools, &mut clusters, object, service, &mut kept) {
            Ok(()) => {
                let Kept { mut pool, mut cluster } = kept;
                pool.sort_by_key(|given| given.address.is_ipv6());
                cluster.sort_by_key(|given| given.address.is_ipv6());
                pool.append(&mut cluster);
                if remembered.get(&object.key) != Some(&pool) {
                    plan.changed.push(object.key.clone());
                }
                plan.addresses.insert(object.key.clone(), pool);
            }
            Err(problem) => refused(object, remembered, *problem, &mut plan),
        }
    }
    plan.freed = remembered.keys().filter(|key| !plan.addresses.contains_key(key)).cloned().collect();
    plan
}

/// What a Service keeps, and gets.
#[derive(Default)]
pub(super) struct Kept {
    pub pool: Vec<Given>,
    pub cluster: Vec<Given>,
}

fn recall<'a>(
    pools: &mut Pools<'a>,
    clusters: &mut Clusters<'a>,
    object: &'a Object,
    service: &'a Service,
    old: &[Given],
    kept: &mut Kept,
) -> Result<(), Box<Problem>> {
    if service.has_pool_address() {
        pools.recall(object, service, old, &mut kept.pool)?;
    }
    if service.balances() {
        clusters.recall(object, service, old, &mut kept.cluster)?;
    }
    Ok(())
}

fn complete<'a>(
    pools: &mut Pools<'a>,
    clusters: &mut Clusters<'a>,
    object: &'a Object,
    service: &'a Service,
    kept: &mut Kept,
) -> Result<(), Box<Problem>> {
    if service.form == Form::Attach {
        let families = pools.families(service, &kept.pool);
        return pools.complete(object, service, &families, &mut kept.pool);
    }
    let families = families(pools, clusters, service, kept);
    let missing = |(ipv4, needed): &&(bool, bool)| *needed && !clusters.offers(service, *ipv4);
    if let Some((ipv4, _)) = families.iter().find(missing) {
        let message = format!("Network {} has no {} range", service.network, family(*ipv4));
        let problem = Problem::value(&Path::of("spec.ipFamilies"), "conflict", message).label("no such family");
        return Err(Box::new(problem.help("leave the family out, or give the Network a range of it")));
    }
    clusters.complete(object, service, &families, &mut kept.cluster)?;
    if service.form == Form::LoadBalancer {
        pools.complete(object, service, &families, &mut kept.pool)?;
    }
    Ok(())
}

/// The families of a Service that spreads connections, and whether it must have them. A family that its network has not is of no
/// use: backends are there.
fn families(pools: &Pools<'_>, clusters: &Clusters<'_>, service: &Service, kept: &Kept) -> Vec<(bool, bool)> {
    let has = |ipv4: bool| clusters.offers(service, ipv4);
    match service.families {
        Families::One(ipv4) => vec![(ipv4, true)],
        Families::Both => vec![(true, true), (false, true)],
        Families::Prefer => [true, false].into_iter().filter(|ipv4| has(*ipv4)).map(|ipv4| (ipv4, false)).collect(),
        Families::Any => {
            let asked = service.cluster_wanted.iter().chain(&service.wanted).map(IpAddr::is_ipv4);
            let kept = kept.cluster.iter().chain(&kept.pool).map(|given| given.address.is_ipv4());
            let (asked, kept): (Vec<bool>, Vec<bool>) = (asked.collect(), kept.collect());
            let known = if asked.is_empty() { kept } else { asked };
            if !known.is_empty() {
                return [true, false]
                    .into_iter()
                    .filter(|ipv4| known.contains(ipv4))
                    .map(|ipv4| (ipv4, true))
                    .collect();
            }
            let reachable =
                |ipv4: bool| has(ipv4) && (service.form != Form::LoadBalancer || pools.offers(service, ipv4));
            let first = [true, false].into_iter().find(|ipv4| reachable(*ipv4));
            vec![(first.unwrap_or_else(|| has(true)), true)]
        }
    }
}

/// Whether the author of a Service has asked for another address than `had` in that family, or for none.
pub(super) fn asks_otherwise(service: &Service, wanted: &[IpAddr], had: IpAddr) -> bool {
    let ipv4 = had.is_ipv4();
    wanted.iter().any(|wanted| wanted.is_ipv4() == ipv4 && *wanted != had)
        || matches!(service.families, Families::One(one) if one != ipv4)
}

/// A family, for people.
pub(super) fn family(ipv4: bool) -> &'static str {
    if ipv4 { "IPv4" } else { "IPv6" }
}

/// A Service that cannot be given what it needs keeps what it was given, for when it can.
fn refused(object: &Object, remembered: &ServiceAddresses, problem: Problem, plan: &mut ServicePlan) {
    if let Some(old) = remembered.get(&object.key) {
        plan.addresses.insert(object.key.clone(), old.clone());
    }
    plan.problems.push(object.diagnose(problem));
}
