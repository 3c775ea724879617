//! What control asked for last, by which a change that is about Services or policies alone is known.

use std::sync::Arc;

use hostweave_switch::tables::Network;

use super::spec::{Desired, Ports, ServiceSpec};

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
        self.networks == desired.networks && self.ports == desired.ports
    }

    /// Whether these are the same Services, as far as their names, networks and addresses go. Looks only into those that are others.
    pub fn has_addresses_of(&self, services: &[Arc<ServiceSpec>]) -> bool {
        let same = |(a, b): (&Arc<ServiceSpec>, &Arc<ServiceSpec>)| Arc::ptr_eq(a, b) || has_place_of(a, b);
        self.services.len() == services.len() && self.services.iter().zip(services).all(same)
    }
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
