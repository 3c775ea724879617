//! What a Service is to the packet path: a frontend for each of its addresses and L4 ports.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use hostweave_nat::service::{Backend, Begun, FrontendSpec, Refusal};
use hostweave_switch::tables::OUTSIDE_VNI;
use ipnet::IpNet;

use super::super::spec::{EndpointSpec, ServiceSpec};
use super::super::uplink::owned::mapped;
use super::choice::{Audience, BackendState, backends};

/// An address of a Service.
pub struct Address {
    /// The address.
    pub address: IpAddr,
    /// Whether it is what others see at the host's uplink; else it is what the Service's network sees.
    pub public: bool,
    /// Who connects there.
    pub audience: Audience,
}

/// All addresses of a Service, once for each kind of client.
pub fn addresses(service: &ServiceSpec) -> impl Iterator<Item = Address> {
    let inside = |address: &IpAddr| Address { address: *address, public: false, audience: Audience::Internal };
    let of_pools = service.load_balancer.iter().map(|given| Address {
        address: given.address,
        public: given.public,
        audience: if given.public { Audience::External } else { Audience::Any },
    });
    // Clients in its own network are no others, wherever the address is known (SEMANTICS SV13).
    let is_local = service.ports.iter().flat_map(|port| &port.endpoints).any(|endpoint| !endpoint.external);
    let public = service.load_balancer.iter().filter(move |given| given.public && is_local);
    let within = public.map(|given| Address { address: given.address, public: false, audience: Audience::Any });
    service.cluster.iter().map(inside).chain(of_pools).chain(within)
}

/// The frontends of a Service whose network has this VNI, as its endpoints are now: `states` by L4 port, in the order of its
/// endpoints. `left`: who was an endpoint, by L4 port. `begun`: where its connections are counted.
pub fn frontends(
    service: &ServiceSpec,
    vni: u32,
    states: &[Vec<BackendState>],
    left: &[Vec<EndpointSpec>],
    begun: &Begun,
) -> Vec<FrontendSpec> {
    let name: Arc<str> = service.name.as_str().into();
    let sources: Arc<[IpNet]> = service.sources.as_slice().into();
    let nowhere: Arc<[IpNet]> = [].into();
    let mut frontends = Vec::new();
    for (at, (port, states)) in service.ports.iter().zip(states).enumerate() {
        let left = left.get(at).map(Vec::as_slice).unwrap_or_default();
        let endpoints: Vec<(&EndpointSpec, BackendState)> = port.endpoints.iter().zip(states.iter().copied()).collect();
        let port_name: Arc<str> = port.name.as_str().into();
        // Addresses of one family and audience share their backends.
        let mut shared: HashMap<(Audience, bool), Arc<[Backend]>> = HashMap::new();
        for at in addresses(service) {
            let ipv4 = at.address.is_ipv4();
            let make = || backends(service, &endpoints, left, at.audience, ipv4);
            let backends = Arc::clone(shared.entry((at.audience, ipv4)).or_insert_with(make));
            let awaited = |(endpoint, state): &(&EndpointSpec, BackendState)| {
                endpoint.address.is_ipv4() == ipv4 && *state == BackendState::Awaited
            };
            frontends.push(FrontendSpec {
                service: Arc::clone(&name),
                port_name: Arc::clone(&port_name),
                scope: if at.public { OUTSIDE_VNI } else { vni },
                address: mapped(at.address),
                proto: port.proto,
                l4: port.l4.clone(),
                vni,
                // SEMANTICS SV18: of addresses out of pools only.
                sources: Arc::clone(if at.audience == Audience::Internal { &nowhere } else { &sources }),
                affinity_s: service.affinity_s,
                backends,
                begun: begun.clone(),
                refusal: match at.audience {
                    _ if endpoints.iter().any(awaited) => Refusal::Drop,
                    Audience::Internal => service.refusal_internal,
                    Audience::External => service.refusal_external,
                    Audience::Any => Refusal::Reject,
                },
            });
        }
    }
    frontends
}
