//! What control asked for last, by which a change that is about Services or policies alone is known.

use std::collections::HashSet;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use hostweave_switch::tables::Network;
use uuid::Uuid;

use super::spec::{Desired, PortSpec, Ports, ServiceSpec};

/// Ports that are taken over one by one; with more of them everything is looked at.
const PORTS_MAX: usize = 256;

/// What was asked for last. Cheap to make: ports and Services are shared.
pub(super) struct Wanted {
    networks: Vec<Network>,
    ports: Ports,
    services: Arc<Vec<Arc<ServiceSpec>>>,
}

impl Wanted {
    /// What is asked for now.
    pub fn of(desired: &Desired) -> Self {
        let Desired { networks, ports, services, .. } = desired;
        Self { networks: networks.clone(), ports: ports.clone(), services: Arc::clone(services) }
    }

    /// Whether `desired` has the same networks and ports.
    pub fn is_of(&self, desired: &Desired) -> bool {
        self.has_networks_of(desired) && self.ports == desired.ports
    }

    /// Whether `desired` has the same networks.
    pub fn has_networks_of(&self, desired: &Desired) -> bool {
        self.networks == desired.networks
    }

    /// The ports that `desired` has otherwise; `None` if they are many.
    pub fn other_ports<'a>(&self, desired: &'a Desired) -> Option<PortChanges<'a>> {
        let (gone, come) = differing(&self.ports, &desired.ports);
        let (gone, come) = (self.ports.get(gone)?, desired.ports.get(come)?);
        // Between the first and the last that changed others are the same.
        let pointers = |ports: &[Arc<PortSpec>]| ports.iter().map(Arc::as_ptr).collect::<HashSet<_>>();
        let (before, after) = (pointers(gone), pointers(come));
        let gone: Vec<_> = gone.iter().filter(|port| !after.contains(&Arc::as_ptr(port))).cloned().collect();
        let come: Vec<_> = come.iter().filter(|port| !before.contains(&Arc::as_ptr(port))).collect();
        let place = |port: &PortSpec| {
            let addresses: Vec<IpAddr> = port.addresses().collect();
            (port.uid, port.namespace.clone(), port.name.clone(), port.network.clone(), addresses)
        };
        let may_stay = |(a, b): (&Arc<PortSpec>, &&Arc<PortSpec>)| {
            place(a) == place(b) && a.backend == b.backend && a.mac == b.mac
        };
        let limits = gone.iter().zip(&come).any(|(a, b)| a.flows_max != b.flows_max);
        let places = gone.len() != come.len() || !gone.iter().zip(&come).all(may_stay);
        (gone.len() <= PORTS_MAX && come.len() <= PORTS_MAX).then_some(PortChanges { gone, come, places, limits })
    }

    /// Whether these are the same Services, as far as their names, networks and addresses go. Looks only into those that are others.
    pub fn has_addresses_of(&self, services: &[Arc<ServiceSpec>]) -> bool {
        let same = |(a, b): (&Arc<ServiceSpec>, &Arc<ServiceSpec>)| Arc::ptr_eq(a, b) || has_place_of(a, b);
        self.services.len() == services.len() && self.services.iter().zip(services).all(same)
    }
}

/// Ports that are others than were asked for last.
pub(super) struct PortChanges<'a> {
    /// As they were.
    pub gone: Vec<Arc<PortSpec>>,
    /// As they are.
    pub come: Vec<&'a Arc<PortSpec>>,
    /// Whether anything is different about which ports there are, their addresses and what is attached.
    pub places: bool,
    /// Whether how many connections they may begin is.
    pub limits: bool,
}

impl PortChanges<'_> {
    /// Uids of ports that are gone for good; another port of the same name is another one.
    pub fn uids_gone(&self) -> HashSet<Uuid> {
        let there: HashSet<Uuid> = self.come.iter().map(|spec| spec.uid).collect();
        self.gone.iter().map(|spec| spec.uid).filter(|uid| !there.contains(uid)).collect()
    }
}

/// What two lists have between their common beginning and their common end.
pub(super) fn differing<T>(a: &[Arc<T>], b: &[Arc<T>]) -> (Range<usize>, Range<usize>) {
    let same = |(a, b): &(&Arc<T>, &Arc<T>)| Arc::ptr_eq(a, b);
    let first = a.iter().zip(b).take_while(same).count();
    let most = a.len().min(b.len()) - first;
    let last = a.iter().rev().zip(b.iter().rev()).take(most).take_while(same).count();
    (first..a.len() - last, first..b.len() - last)
}

fn has_place_of(a: &ServiceSpec, b: &ServiceSpec) -> bool {
    (&a.name, &a.network, &a.cluster, &a.load_balancer) == (&b.name, &b.network, &b.cluster, &b.load_balancer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fabric::spec::LoadBalancerAddress;

    #[test]
    fn other_backends_are_the_same_addresses_and_another_address_is_not() {
        let spec = ServiceSpec::bare;
        let desired =
            Desired { services: Arc::new(vec![Arc::new(spec("a/a")), Arc::new(spec("a/b"))]), ..Desired::default() };
        let wanted = Wanted::of(&desired);
        let with = |other: ServiceSpec| [Arc::clone(&desired.services[0]), Arc::new(other)];
        assert!(wanted.is_of(&desired) && wanted.has_addresses_of(&desired.services));
        assert!(wanted.has_addresses_of(&with(ServiceSpec { affinity_s: Some(7), ..spec("a/b") })));
        for address in ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()] {
            let of_pool = vec![LoadBalancerAddress { address, public: true }];
            assert!(!wanted.has_addresses_of(&with(ServiceSpec { cluster: vec![address], ..spec("a/b") })));
            assert!(!wanted.has_addresses_of(&with(ServiceSpec { load_balancer: of_pool, ..spec("a/b") })));
        }
        assert!(!wanted.has_addresses_of(&with(spec("a/c"))));
        assert!(!wanted.has_addresses_of(&with(ServiceSpec { network: "m".to_owned(), ..spec("a/b") })));
        assert!(!wanted.has_addresses_of(&desired.services[..1]));
    }
}
