//! Addresses of Services out of AddressPools (SEMANTICS CW1, CW2).

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use super::address_pools;
use super::addresses::{Given, GivenOf, asks_otherwise};
use crate::config::checked::{AddressPool, Families, Form, Object, PoolChoice, PoolType, Service};
use crate::config::node::Path;
use crate::config::problem::Problem;
use crate::config::raw::port::Protocol;
use crate::config::set::ObjectSet;

/// The pools, and who has what.
pub(super) struct Pools<'a> {
    pools: Vec<(&'a Object, &'a AddressPool)>,
    /// The Services that have an address; several only if they share it.
    owners: HashMap<IpAddr, Vec<(&'a Object, &'a Service)>>,
    /// Addresses that are shared, by key.
    shared: HashMap<&'a str, BTreeSet<IpAddr>>,
    /// Range of a pool at which the search goes on, and how many of its addresses are behind.
    next: HashMap<(&'a str, bool), (usize, u128)>,
}

/// Why an address is not to be had: who has it, and what both would have at it, if they share it otherwise.
type Taken<'a> = (&'a Object, Option<Clash>);

/// What two Services cannot both have at an address.
enum Clash {
    /// An L4 port.
    Port(Protocol, u16),
    /// All of them: one is attached.
    Everything,
}

impl<'a> Pools<'a> {
    pub fn new(set: &'a ObjectSet) -> Self {
        let pools = address_pools(set).collect();
        Self { pools, owners: HashMap::new(), shared: HashMap::new(), next: HashMap::new() }
    }

    /// Whether a Service may have addresses of a pool.
    fn may_use(service: &Service, (object, pool): (&Object, &AddressPool)) -> bool {
        match &service.pool {
            PoolChoice::Type(of) => pool.pool_type == *of,
            PoolChoice::Named(name) => object.key.name == *name,
        }
    }

    /// Takes an address for a Service; `Err` names an owner.
    fn take(&mut self, address: IpAddr, object: &'a Object, service: &'a Service) -> Result<(), Taken<'a>> {
        let share = service.share.as_deref();
        let owners = self.owners.entry(address).or_default();
        for (owner, other) in owners.iter().filter(|(owner, _)| owner.key != object.key) {
            if share.is_none() || other.share.as_deref() != share {
                return Err((owner, None));
            }
            if let Some(clash) = clash(service, other) {
                return Err((owner, Some(clash)));
            }
        }
        owners.push((object, service));
        if let Some(share) = share {
            self.shared.entry(share).or_default().insert(address);
        }
        Ok(())
    }

    /// Keeps what was remembered of a Service, as far as it is still what its author wants.
    pub fn recall(
        &mut self,
        object: &'a Object,
        service: &'a Service,
        old: &[Given],
        kept: &mut Vec<Given>,
    ) -> Result<(), Box<Problem>> {
        for given in old {
            let Some(given_pool) = given.pool() else { continue };
            let pool = self.pools.iter().find(|(pool, _)| pool.key.name == given_pool).copied();
            let other_pool = match (&service.pool, pool) {
                (PoolChoice::Named(name), _) => name != given_pool,
                (_, Some(pool)) => !Self::may_use(service, pool),
                (_, None) => false,
            };
            if other_pool || asks_otherwise(service, &service.wanted, given.address) {
                continue;
            }
            // It may have moved to another pool.
            let holder =
                self.pools.iter().find(|pool| Self::may_use(service, **pool) && pool.1.contains(given.address));
            let Some((holder, _)) = holder.copied() else {
                let message = format!(
                    "its address {} is in no AddressPool any more that it may use (it was of {})",
                    given.address, given_pool
                );
                let problem = Problem::value(&Path::of("metadata.name"), "conflict", message).label("has that address");
                return Err(Box::new(problem.help("put the address back into the pool, or delete the Service first")));
            };
            self.take(given.address, object, service)
                .map_err(|taken_by| Box::new(taken(given.address, service, taken_by)))?;
            kept.push(Given { address: given.address, of: GivenOf::Pool(holder.key.name.clone()) });
        }
        Ok(())
    }

    /// The families of an attached address, and whether the Service must have them.
    pub fn families(&self, service: &Service, kept: &[Given]) -> Vec<(bool, bool)> {
        let asked = service.wanted.iter().map(IpAddr::is_ipv4);
        let known: Vec<bool> = kept.iter().map(|given| given.address.is_ipv4()).chain(asked).collect();
        match service.families {
            Families::Any if !known.is_empty() => known.into_iter().map(|ipv4| (ipv4, true)).collect(),
            Families::Any => vec![(self.offers(service, true), true)],
            Families::One(ipv4) => vec![(ipv4, true)],
            Families::Prefer => vec![(true, false), (false, false)],
            Families::Both => vec![(true, true), (false, true)],
        }
    }

    /// Gives a Service what it still needs of these families.
    pub fn complete(
        &mut self,
        object: &'a Object,
        service: &'a Service,
        families: &[(bool, bool)],
        given: &mut Vec<Given>,
    ) -> Result<(), Box<Problem>> {
        let has = |given: &[Given], ipv4: bool| given.iter().any(|given| given.address.is_ipv4() == ipv4);
        for address in &service.wanted {
            if has(given, address.is_ipv4()) {
                continue;
            }
            given.push(self.wanted(*address, object, service)?);
        }
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
    pub fn offers(&self, service: &Service, ipv4: bool) -> bool {
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
        self.take(address, object, service).map_err(|taken_by| Box::new(taken(address, service, taken_by)))?;
        Ok(Given { address, of: GivenOf::Pool(pool.key.name.clone()) })
    }

    /// The address of those it shares with, else the lowest free one of the first pool by name that has any.
    fn lowest(&mut self, ipv4: bool, object: &'a Object, service: &'a Service) -> Result<Given, Box<Problem>> {
        let pools: Vec<_> = self.pools.iter().copied().filter(|pool| Self::may_use(service, *pool)).collect();
        if let Some(shared) = service.share.as_deref().and_then(|share| self.shared.get(share)) {
            let found = shared.iter().filter(|address| address.is_ipv4() == ipv4).find_map(|address| {
                Some((*address, pools.iter().find(|(_, pool)| pool.contains(*address))?.0.key.name.clone()))
            });
            if let Some((address, pool)) = found {
                self.take(address, object, service).map_err(|taken_by| Box::new(taken(address, service, taken_by)))?;
                return Ok(Given { address, of: GivenOf::Pool(pool) });
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
                    return Ok(Given { address, of: GivenOf::Pool(name.to_owned()) });
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

/// What two Services cannot both have at an address that they share. Attached ones are told apart by their ports, of which one has the
/// address.
fn clash(a: &Service, b: &Service) -> Option<Clash> {
    match (a.form == Form::Attach, b.form == Form::Attach) {
        (true, true) => return None,
        (false, false) => {}
        _ => return Some(Clash::Everything),
    }
    a.ports.iter().find_map(|port| {
        let meets = |other: &&crate::config::checked::ServicePort| {
            other.protocol == port.protocol && other.l4.start() <= port.l4.end() && port.l4.start() <= other.l4.end()
        };
        let other = b.ports.iter().find(meets)?;
        Some(Clash::Port(port.protocol, *port.l4.start().max(other.l4.start())))
    })
}

fn taken(address: IpAddr, service: &Service, (owner, clash): Taken<'_>) -> Problem {
    let path = if service.wanted.contains(&address) { service.wanted_at.clone() } else { Path::of("metadata.name") };
    let message = format!("address {address} belongs to {} ({})", owner.key, owner.origin);
    let shared = |what: String| {
        let message = format!("{what} of the shared address {address} belongs to {} ({})", owner.key, owner.origin);
        Problem::value(&Path::of("spec.ports"), "conflict", message).label("taken")
    };
    match clash {
        None => {
            let problem = Problem::value(&path, "conflict", message).label("taken");
            problem.help("Services share an address when both have the same metallb.universe.tf/allow-shared-ip")
        }
        Some(Clash::Port(protocol, port)) => shared(format!("{} {port}", format!("{protocol:?}").to_uppercase()))
            .help("Services that share an address have different L4 ports: change one, or its allow-shared-ip"),
        Some(Clash::Everything) => shared("every L4 port".to_owned())
            .help("an attached address has all L4 ports: give one of the Services another allow-shared-ip"),
    }
}
