//! What becomes of connections to a Service (SEMANTICS SV10 to SV18).

use std::collections::HashSet;
use std::net::IpAddr;

use super::backends::{Backend, Backends, First, once};
use crate::config::checked::{Form, Object, PoolType, Service, ServicePort, Target};
use crate::config::outside::{Given, pool_type};
use crate::config::raw::port::Protocol;
use crate::config::set::ObjectSet;
use crate::fabric::spec::{
    ANY_PROTO, Condition, EndpointSpec, LoadBalancerAddress, Refusal, ServicePortSpec, ServiceSpec,
};

/// The Service as the packet path is told.
pub fn spec(
    set: &ObjectSet,
    backends: &Backends<'_>,
    object: &Object,
    service: &Service,
    given: &[Given],
    found: &[Backend<'_>],
) -> ServiceSpec {
    let cluster: Vec<IpAddr> =
        given.iter().filter(|given| given.network().is_some()).map(|given| given.address).collect();
    // Of an address that its pool has lost, which is a problem already, nothing is made.
    let of_pool = |given: &Given| {
        Some(LoadBalancerAddress { address: given.address, public: pool_type(set, given)? == PoolType::Public })
    };
    let load_balancer: Vec<LoadBalancerAddress> = given.iter().filter_map(of_pool).collect();
    let families = cluster.iter().copied().chain(load_balancer.iter().map(|address| address.address));
    let mut families: Vec<bool> = families.map(|address| address.is_ipv4()).collect();
    let headless = service.form == Form::Headless;
    if headless {
        let has_v4 = set.network(&service.network).is_none_or(|network| network.v4.is_some());
        families = [true, false].into_iter().filter(|ipv4| service.names(*ipv4, has_v4)).collect();
    }
    let first = backends.first(service, found);
    let balancing = &service.balancing;
    // Nobody at all is a refusal, somebody elsewhere is silence (SV14, SV16).
    let elsewhere = found.iter().any(|backend| !backend.local && backend.condition != Condition::NotReady);
    let refusal = |local: bool| if local && elsewhere { Refusal::Drop } else { Refusal::Reject };
    let of_port = |port: &ServicePort| ServicePortSpec {
        name: port.name.clone(),
        proto: number(port.protocol),
        l4: port.l4.clone(),
        endpoints: endpoints(backends, service, port, found, &first, &families),
    };
    let mut ports: Vec<ServicePortSpec> = service.ports.iter().map(of_port).collect();
    if headless {
        ports.extend(without_l4(backends, service, found, &families, &ports));
    }
    ServiceSpec {
        name: object.key.path(),
        network: service.network.clone(),
        cluster,
        load_balancer,
        ports,
        names_healthy: headless && !balancing.publish_not_ready,
        internal_local: balancing.internal_local,
        external_local: balancing.external_local,
        affinity_s: balancing.affinity_s,
        sources: balancing.sources.clone(),
        refusal_internal: refusal(balancing.internal_local),
        refusal_external: refusal(balancing.external_local),
        health: balancing.health.clone(),
        outlier: balancing.outlier,
        all_down: balancing.all_down,
        drain: balancing.drain,
    }
}

/// Who has an address behind a headless Service and none of its L4 ports: its name stands for them all the same.
fn without_l4(
    backends: &Backends<'_>,
    service: &Service,
    found: &[Backend<'_>],
    families: &[bool],
    ports: &[ServicePortSpec],
) -> Option<ServicePortSpec> {
    let known: HashSet<IpAddr> =
        ports.iter().flat_map(|port| &port.endpoints).map(|endpoint| endpoint.address).collect();
    let is_other = |backend: &&Backend<'_>| backend.addresses.iter().any(|address| !known.contains(address));
    let others: Vec<Backend<'_>> =
        found.iter().filter(is_other).map(|backend| Backend { slice: None, ..backend.clone() }).collect();
    let any = ServicePort { name: String::new(), protocol: Protocol::Tcp, port: 0, l4: 0..=0, target: Target::Same };
    let mut endpoints = endpoints(backends, service, &any, &others, &[], families);
    endpoints.retain(|endpoint| !known.contains(&endpoint.address));
    let port = ServicePortSpec { name: any.name, proto: ANY_PROTO, l4: any.l4, endpoints };
    (!port.endpoints.is_empty()).then_some(port)
}

fn endpoints(
    backends: &Backends<'_>,
    service: &Service,
    port: &ServicePort,
    found: &[Backend<'_>],
    first: &[First],
    families: &[bool],
) -> Vec<EndpointSpec> {
    let balancing = &service.balancing;
    let mut endpoints = Vec::with_capacity(found.len());
    // Ports of a network have no address twice; slices may.
    let mut fresh = once();
    for backend in found {
        let Some(l4) = backend.l4(port) else { continue };
        let rank = backends.rank(backend, first, balancing.prefer);
        for address in &backend.addresses {
            if !families.contains(&address.is_ipv4()) || backend.slice.is_some() && !fresh(*address, l4) {
                continue;
            }
            endpoints.push(EndpointSpec {
                name: backend.name(),
                port: backend.port.map(|port| port.uid),
                address: *address,
                l4,
                weight: backend.weight,
                condition: backend.condition,
                internal: backend.local || !balancing.internal_local,
                external: backend.local || !balancing.external_local,
                rank,
            });
        }
    }
    endpoints
}

/// IP protocol (IANA).
fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}
