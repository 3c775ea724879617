//! Names of Services (SEMANTICS DN1 to DN6).

use std::net::IpAddr;

use super::backends::{Backend, namespace_of};
use crate::config::checked::{Form, Object, Service, ServicePort as CheckedPort};
use crate::config::outside::{Given, attached_to};
use crate::config::raw::port::Protocol;
use crate::config::set::ObjectSet;
use crate::fabric::spec::Condition;
use crate::services::dns::spec::{EndpointPort, EndpointRecords, ServicePort, ServiceRecords, ServiceTarget};

/// What DNS is told of a Service.
pub fn of(
    set: &ObjectSet,
    object: &Object,
    service: &Service,
    given: &[Given],
    found: &[Backend<'_>],
) -> ServiceRecords {
    let mut network = service.network.as_str();
    let target = match &service.form {
        Form::ExternalName(name) => ServiceTarget::ExternalName(name.clone()),
        Form::Headless => ServiceTarget::Headless {
            endpoints: found.iter().map(|backend| endpoint(set, service, backend)).collect(),
            not_ready: service.balancing.publish_not_ready,
        },
        // A LoadBalancer is known by its cluster addresses, as in Kubernetes.
        Form::ClusterIp | Form::LoadBalancer => {
            let cluster = given.iter().filter(|given| given.network().is_some());
            ServiceTarget::ClusterIp(cluster.map(|given| given.address).collect())
        }
        // It has one address, and that is known where its port is.
        Form::Attach => {
            network = attached_to(set, &object.key).map_or(network, |port| port.network.as_str());
            ServiceTarget::ClusterIp(given.iter().map(|given| given.address).collect())
        }
    };
    ServiceRecords {
        network: network.to_owned(),
        namespace: namespace_of(&object.key).to_owned(),
        name: object.key.name.clone(),
        target,
        ports: service.ports.iter().map(|port| port_of(port, port.port)).collect(),
    }
}

fn endpoint(set: &ObjectSet, service: &Service, backend: &Backend<'_>) -> EndpointRecords {
    let hostname = match backend.slice {
        Some((_, endpoint)) => endpoint.hostname.clone(),
        None => backend.port.map(|port| port.hostname.clone()),
    };
    let has_v4 = set.network(&service.network).is_none_or(|network| network.v4.is_some());
    let wanted = |address: &&IpAddr| service.names(address.is_ipv4(), has_v4);
    // `Some(None)` is the number that the client asked for: the Service's own.
    let own = |port: &CheckedPort| backend.l4(port).map(|l4| l4.unwrap_or(port.port));
    let differs = |port: &&CheckedPort| own(port) != Some(port.port);
    let port = |port: &CheckedPort| EndpointPort { name: port.name.clone(), port: own(port) };
    EndpointRecords {
        hostname,
        addresses: backend.addresses.iter().filter(wanted).copied().collect(),
        ready: backend.condition == Condition::Ready,
        ports: service.ports.iter().filter(differs).map(port).collect(),
    }
}

fn port_of(port: &CheckedPort, number: u16) -> ServicePort {
    ServicePort { name: port.name.clone(), protocol: word(port.protocol), port: number }
}

fn word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}
