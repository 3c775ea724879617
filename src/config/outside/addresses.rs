//! The addresses of Services. Deterministic, as those of ports are ([`crate::config::ipam`]): a function of the objects and of what
//! was given before. What a Service was given stays its own until it is deleted (SEMANTICS SV21).

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{address_pools, services};
use crate::config::checked::{AddressPool, Families, Object, PoolChoice, PoolType, Service};
use crate::config::diagnostic::Diagnostic;
use crate::config::kind::ObjectKey;
use crate::config::node::Path;
use crate::config::problem::Problem;
use crate::config::set::ObjectSet;

/// An address that a Service was given. Kept in the store, so that it survives restarts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Given {
    /// The address.
    pub address: IpAddr,
    /// Name of the AddressPool that it is of.
    pub pool: String,
}

/// What Services were given: one address of a family, IPv4 first.
pub type ServiceAddresses = BTreeMap<ObjectKey, Vec<Given>>;

/// What [`assign`] decided.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ServicePlan {
    /// Of every Service that could be given what it needs.
    pub addresses: ServiceAddresses,
    /// Services whose addresses are new or differ from the remembered ones: to be written to the store.
    pub changed: Vec<ObjectKey>,
    /// Services that are no more: to be deleted from the store.
    pub freed: Vec<ObjectKey>,
    /// Services that cannot be given what they need.
    pub problems: Vec<Diagnostic>,
}

/// Gives every Service of `set` its addresses: what was remembered first, then what is asked for, then the lowest free ones.
pub fn assign(set: &ObjectSet, remembered: &ServiceAddresses) -> ServicePlan {
    let mut pools = Pools { pools: address_pools(set).collect(), owners: HashMap::new(), next: HashMap::new() };
    let mut plan = ServicePlan::default();
    let mut open = Vec::new();
    for (object, service) in services(set) {
        let old = remembered.get(&object.key).map(Vec::as_slice).unwrap_or_default();
        match pools.recall(object, service, old) {
            Ok(kept) => open.push((object, service, kept)),
            Err(problem) => refused(object, remembered, *problem, &mut plan),
        }
    }
    // Who asks for an address comes before those who take any.
    open.sort_by_key(|(_, service, _)| service.wanted.is_empty());
    for (object, service, mut given) in open {
        match pools.complete(object, service, &mut given) {
            Ok(()) => {
                given.sort_by_key(|given| given.address.is_ipv6());
                if remembered.get(&object.key) != Some(&given) {
                    plan.changed.push(object.key.clone());
                }
                plan.addresses.insert(object.key.clone(), given);
            }
            Err(problem) => refused(object, remembered, *problem, &mut plan),
        }
    }
    plan.freed = remembered.keys().filter(|key| set.get(key).is_none()).cloned().collect();
    plan
}

/// A Service that cannot be given what it needs keeps what it was given, for when it can.
fn refused(object: &Object, remembered: &ServiceAddresses, problem: Problem, plan: &mut ServicePlan) {
    if let Some(old) = remembered.get(&object.key) {
        plan.addresses.insert(object.key.clone(), old.clone());
    }
    plan.problems.push(object.diagnose(problem));
}

/// The pools, and who has what.
struct Pools<'a> {
    pools: Vec<(&'a Object, &'a AddressPool)>,
    /// The Services that have an address; several only if they share it.
    owners: HashMap<IpAddr, Vec<(&'a Object, Option<&'a str>)>>,
    /// Range of a pool at which the search goes on, and how many of its addresses are behind.
    next: HashMap<(&'a str, bool), (usize, u128)>,
}

impl<'a> Pools<'a> {
    /// Whether a Service may have addresses of a pool.
    fn may_use(service: &Service, (object, pool): (&Object, &AddressPool)) -> bool {
        match &service.pool {
            PoolChoice::Type(of) => pool.pool_type == *of,
            PoolChoice::Named(name) => object.key.name == *name,
        }
    }

    /// Takes an address for a Service; `Err` names the owner.
    fn take(&mut self, address: IpAddr, object: &'a Object, service: &'a Service) -> Result<(), &'a Object> {
        let share = service.share.as_deref();
        let owners = self.owners.entry(address).or_default();
        let stranger =
            |(other, key): &&(&'a Object, Option<&str>)| other.key != object.key && (share.is_none() || *key != share);
        if let Some((owner, _)) = owners.iter().find(stranger) {
            return Err(owner);
        }
        owners.push((object, share));
        Ok(())
    }

    /// Keeps what was remembered of a Service, as far as it is still what its author wants.
    fn recall(&mut self, object: &'a Object, service: &'a Service, old: &[Given]) -> Result<Vec<Given>, Box<Problem>> {
        let mut kept = Vec::new();
        for given in old {
            let ipv4 = given.address.is_ipv4();
            let other_wanted = service.wanted.iter().any(|wanted| wanted.is_ipv4() == ipv4 && *wanted != given.address);
            let other_family = match service.families {
                Families::One(wanted) => wanted != ipv4,
                _ => false,
            };
            let pool = self.pools.iter().find(|(pool, _)| pool.key.name == given.pool).copied();
            let other_pool = match (&service.pool, pool) {
                (PoolChoice::Named(name), _) => *name != given.pool,
                (_, Some(pool)) => !Self::may_use(service, pool),
                (_, None) => false,
            };
            if other_wanted || other_family || other_pool {
                continue;
            }
            // It may have moved to another pool.
            let holder =
                self.pools.iter().find(|pool| Self::may_use(service, **pool) && pool.1.contains(given.address));
            let Some((holder, _)) = holder.copied() else {
                let message = format!(
                    "its address {} is in no AddressPool any more that it may use (it was of {})",
                    given.address, given.pool
                );
                let problem = Problem::value(&Path::of("metadata.name"), "conflict", message).label("has that address");
                return Err(Box::new(problem.help("put the address back into the pool, or delete the Service first")));
            };
            self.take(given.address, object, service)
                .map_err(|owner| Box::new(taken(given.address, service, owner)))?;
            kept.push(Given { address: given.address, pool: holder.key.name.clone() });
        }
        Ok(kept)
    }

    /// Gives a Service what it still needs.
    fn complete(
        &mut self,
        object: &'a Object,
        service: &'a Service,
        given: &mut Vec<Given>,
    ) -> Result<(), Box<Problem>> {
        let has = |given: &[Given], ipv4: bool| given.iter().any(|given| given.address.is_ipv4() == ipv4);
        for address in &service.wanted {
            if has(given, address.is_ipv4()) {
                continue;
            }
            given.push(self.wanted(*address, object, service)?);
        }
        let (v4, v6) = (has(given, true), has(given, false));
        let families: &[(bool, bool)] = match service.families {
            // Family, and whether it must be.
            Families::Any if v4 || v6 => &[],
            Families::Any if self.offers(service, true) => &[(true, true)],
            Families::Any => &[(false, true)],
            Families::One(true) => &[(true, true)],
            Families::One(false) => &[(false, true)],
            Families::Prefer => &[(true, false), (false, false)],
            Families::Both => &[(true, true), (false, true)],
        };
        for (ipv4, needed) in families.iter().copied() {
            if has(given, ipv4) || (!needed && !self.offers(service, ipv4)) {
                continue;
            }
            given.push(self.lowest(ipv4, object, service)?);
        }
        if given.is_empty() {
            return Err(Box::new(self.none(service, true)));
        }
        Ok(())
    }

    /// Whether some pool has addresses of a family for a Service.
    fn offers(&self, service: &Service, ipv4: bool) -> bool {
        let has = |pool: &AddressPool| pool.ranges.iter().any(|range| range.is_ipv4() == ipv4);
        self.pools.iter().any(|pool| Self::may_use(service, *pool) && has(pool.1))
    }

    fn wanted(&mut self, address: IpAddr, object: &'a Object, service: &'a Service) -> Result<Given, Box<Problem>> {
        let holder = self.pools.iter().find(|pool| Self::may_use(service, **pool) && pool.1.contains(address)).copied();
        let Some((pool, _)) = holder else {
            let elsewhere = self.pools.iter().find(|(_, pool)| pool.contains(address));
            let message = match elsewhere {
                Some((pool, _)) => format!("address {address} is in {}, which the Service may not use", pool.key),
                None => format!("address {address} is in no AddressPool"),
            };
            let problem = Problem::value(&service.wanted_at, "invalid_address", message).label("not available");
            return Err(Box::new(problem.help(format!("it may use {}", choice(&service.pool)))));
        };
        self.take(address, object, service).map_err(|owner| Box::new(taken(address, service, owner)))?;
        Ok(Given { address, pool: pool.key.name.clone() })
    }

    /// The address of those it shares with, else the lowest free one of the first pool by name that has any.
    fn lowest(&mut self, ipv4: bool, object: &'a Object, service: &'a Service) -> Result<Given, Box<Problem>> {
        let pools: Vec<_> = self.pools.iter().copied().filter(|pool| Self::may_use(service, *pool)).collect();
        if let Some(share) = service.share.as_deref() {
            let shared = self.owners.iter().filter(|(address, owners)| {
                address.is_ipv4() == ipv4 && owners.iter().all(|(_, key)| *key == Some(share))
            });
            let mut shared: Vec<IpAddr> = shared.map(|(address, _)| *address).collect();
            shared.sort_unstable();
            let found = shared.into_iter().find_map(|address| {
                Some((address, pools.iter().find(|(_, pool)| pool.contains(address))?.0.key.name.clone()))
            });
            if let Some((address, pool)) = found
                && self.take(address, object, service).is_ok()
            {
                return Ok(Given { address, pool });
            }
        }
        for (holder, pool) in &pools {
            let name = holder.key.name.as_str();
            let (mut range, mut behind) = self.next.get(&(name, ipv4)).copied().unwrap_or_default();
            while let Some(current) = pool.ranges.get(range) {
                let address = if current.is_ipv4() == ipv4 { current.nth(behind) } else { None };
                let Some(address) = address else {
                    (range, behind) = (range + 1, 0);
                    continue;
                };
                behind += 1;
                // An address that others share is not free either.
                let free = !self.owners.contains_key(&address);
                self.next.insert((name, ipv4), (range, behind));
                if free && self.take(address, object, service).is_ok() {
                    return Ok(Given { address, pool: name.to_owned() });
                }
            }
        }
        Err(Box::new(self.none(service, pools.is_empty())))
    }

    /// There is no address for a Service.
    fn none(&self, service: &Service, no_pool: bool) -> Problem {
        let path = Path::of("spec");
        let choice = choice(&service.pool);
        if no_pool {
            let problem = Problem::key(&path, "not_found", format!("there is no address for it: it may use {choice}"));
            return problem.label("no address").help("apply an AddressPool of that type with addresses of that family");
        }
        let problem = Problem::key(&path, "exhausted", format!("every address that it may use is taken: {choice}"));
        problem.label("no free address").help("delete Services, or add addresses to the pool")
    }
}

/// Which pools a Service may use, for people.
fn choice(pool: &PoolChoice) -> String {
    match pool {
        PoolChoice::Type(PoolType::Public) => "AddressPools of type public".to_owned(),
        PoolChoice::Type(PoolType::Private) => "AddressPools of type private (a public one with the annotation \
             service.beta.kubernetes.io/coreweave-load-balancer-type: public)"
            .to_owned(),
        PoolChoice::Named(name) => format!("AddressPool {name}"),
    }
}

fn taken(address: IpAddr, service: &Service, owner: &Object) -> Problem {
    let path = if service.wanted.contains(&address) { service.wanted_at.clone() } else { Path::of("metadata.name") };
    let message = format!("address {address} belongs to {} ({})", owner.key, owner.origin);
    let problem = Problem::value(&path, "conflict", message).label("taken");
    problem.help("Services share an address when both have the same metallb.universe.tf/allow-shared-ip")
}
