//! Cluster addresses of Services: those inside a network, out of its `serviceCIDRs` (SEMANTICS SV25).

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::addresses::{Given, GivenOf, asks_otherwise, family};
use crate::config::checked::{Object, Service};
use crate::config::node::Path;
use crate::config::problem::Problem;
use crate::config::ranges::Range;
use crate::config::set::ObjectSet;

/// The cluster addresses of all networks, and who has them.
pub(super) struct Clusters<'a> {
    networks: HashMap<&'a str, Vec<IpNet>>,
    owners: HashMap<(&'a str, IpAddr), &'a Object>,
    /// How many addresses of a range are behind the search.
    next: HashMap<(&'a str, bool), u128>,
}

impl<'a> Clusters<'a> {
    pub fn new(set: &'a ObjectSet) -> Self {
        let networks = set.networks().map(|(name, network)| (name, network.service_ranges().collect())).collect();
        Self { networks, owners: HashMap::new(), next: HashMap::new() }
    }

    /// Whether a Service's network has cluster addresses of a family.
    pub fn offers(&self, service: &Service, ipv4: bool) -> bool {
        self.range(service, ipv4).is_some()
    }

    fn range(&self, service: &Service, ipv4: bool) -> Option<IpNet> {
        self.networks.get(service.network.as_str())?.iter().find(|net| net.addr().is_ipv4() == ipv4).copied()
    }

    /// Takes an address for a Service; `Err` names the owner.
    fn take(&mut self, address: IpAddr, object: &'a Object, service: &'a Service) -> Result<(), &'a Object> {
        let owner = *self.owners.entry((service.network.as_str(), address)).or_insert(object);
        if owner.key == object.key { Ok(()) } else { Err(owner) }
    }

    /// Keeps what was remembered of a Service, as far as it is still what its author wants.
    pub fn recall(
        &mut self,
        object: &'a Object,
        service: &'a Service,
        old: &[Given],
        kept: &mut Vec<Given>,
    ) -> Result<(), Box<Problem>> {
        for given in old.iter().filter(|given| given.network() == Some(service.network.as_str())) {
            let ipv4 = given.address.is_ipv4();
            if asks_otherwise(service, &service.cluster_wanted, given.address) {
                continue;
            }
            if !self.range(service, ipv4).is_some_and(|net| usable(net, given.address)) {
                let message = format!(
                    "its cluster address {} is in no range of Network {} any more",
                    given.address, service.network
                );
                let problem = Problem::value(&Path::of("metadata.name"), "conflict", message).label("has that address");
                let help = "put the range back into spec.serviceCIDRs of the Network, or delete the Service first";
                return Err(Box::new(problem.help(help)));
            }
            self.take(given.address, object, service).map_err(|owner| taken(given.address, service, owner))?;
            kept.push(given.clone());
        }
        Ok(())
    }

    /// Gives a Service what it still needs of these families, which its network has where they are needed.
    pub fn complete(
        &mut self,
        object: &'a Object,
        service: &'a Service,
        families: &[(bool, bool)],
        kept: &mut Vec<Given>,
    ) -> Result<(), Box<Problem>> {
        let given = |address| Given { address, of: GivenOf::Network(service.network.clone()) };
        for address in &service.cluster_wanted {
            if kept.iter().any(|given| given.address == *address) {
                continue;
            }
            let range = self.range(service, address.is_ipv4());
            if !range.is_some_and(|net| usable(net, *address)) {
                return Err(Box::new(self.outside(*address, service)));
            }
            self.take(*address, object, service).map_err(|owner| taken(*address, service, owner))?;
            kept.push(given(*address));
        }
        for (ipv4, _) in families.iter().copied() {
            let Some(net) = self.range(service, ipv4) else { continue };
            if kept.iter().all(|given| given.address.is_ipv4() != ipv4) {
                kept.push(given(self.lowest(net, object, service)?));
            }
        }
        Ok(())
    }

    fn lowest(&mut self, net: IpNet, object: &'a Object, service: &'a Service) -> Result<IpAddr, Box<Problem>> {
        let range = Range::from(net);
        let place = (service.network.as_str(), net.addr().is_ipv4());
        // The first is the network's own.
        let mut behind = self.next.get(&place).copied().unwrap_or(1);
        while let Some(address) = range.nth(behind) {
            behind += 1;
            if usable(net, address) && self.take(address, object, service).is_ok() {
                self.next.insert(place, behind);
                return Ok(address);
            }
        }
        self.next.insert(place, behind);
        let message = format!("every cluster address of {net} (Network {}) is taken", service.network);
        let problem = Problem::key(&Path::of("spec"), "exhausted", message).label("no free address");
        Err(Box::new(problem.help("delete Services, or use a Network with larger serviceCIDRs")))
    }

    fn outside(&self, address: IpAddr, service: &Service) -> Problem {
        let ranges = self.networks.get(service.network.as_str()).into_iter().flatten();
        let ranges = ranges.map(ToString::to_string).collect::<Vec<_>>().join(" and ");
        let message = format!(
            "{} {address} is no {} address for a Service of Network {}: those are in {ranges}",
            service.cluster_wanted_at,
            family(address.is_ipv4()),
            service.network
        );
        let problem = Problem::value(&service.cluster_wanted_at, "invalid_address", message).label("not available");
        problem.help("leave it out to be given one; an object of another cluster has that cluster's addresses")
    }
}

/// Whether a Service may have an address of a range: not its first, and not the last of IPv4.
fn usable(net: IpNet, address: IpAddr) -> bool {
    let last = net.addr().is_ipv4() && address == net.broadcast();
    net.contains(&address) && address != net.network() && !last
}

fn taken(address: IpAddr, service: &Service, owner: &Object) -> Box<Problem> {
    let asked = service.cluster_wanted.contains(&address);
    let path = if asked { service.cluster_wanted_at.clone() } else { Path::of("metadata.name") };
    let message = format!("cluster address {address} belongs to {} ({})", owner.key, owner.origin);
    Box::new(Problem::value(&path, "conflict", message).label("taken").help("leave it out to be given a free one"))
}
