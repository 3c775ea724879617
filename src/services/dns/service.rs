//! Records of Services, by the Kubernetes DNS specification (`kubernetes/dns docs/specification.md`, §2.3 to §2.5).

use std::net::IpAddr;

use hickory_proto::rr::rdata::{CNAME, SRV};
use hickory_proto::rr::{Name, RData};

use super::name::below;
use super::spec::{EndpointRecords, ServiceRecords, ServiceTarget};
use super::zone::Zone;

/// SRV records of equal rank: clients choose (RFC 2782).
const PRIORITY: u16 = 0;

/// Adds a Service's records.
pub fn insert(zone: &mut Zone, service: &ServiceRecords) {
    let Some(own) = below(zone.apex(), &[&service.name, &service.namespace, "svc"]) else { return };
    match &service.target {
        ServiceTarget::ClusterIp(addresses) => {
            zone.insert_host(&own, addresses, true);
            if !addresses.is_empty() {
                for port in &service.ports {
                    insert_srv(zone, &own, &port.name, port.protocol, port.port, &own);
                }
            }
        }
        ServiceTarget::Headless { endpoints, not_ready } => {
            // None at all: the name does not exist (SEMANTICS DN3).
            for endpoint in endpoints.iter().filter(|endpoint| endpoint.ready || *not_ready) {
                insert_endpoint(zone, &own, service, endpoint);
            }
        }
        ServiceTarget::ExternalName(target) => {
            if let Ok(mut target) = Name::from_ascii(target) {
                target.set_fqdn(true);
                zone.insert(&own, RData::CNAME(CNAME(target)));
            }
        }
    }
}

fn insert_endpoint(zone: &mut Zone, own: &Name, service: &ServiceRecords, endpoint: &EndpointRecords) {
    zone.insert_host(own, &endpoint.addresses, false);
    let named = endpoint.hostname.as_deref();
    // One name for the endpoint where it has one, else one for each address.
    let hosts: Vec<(String, &[IpAddr])> = match named {
        Some(hostname) => vec![(hostname.to_owned(), &endpoint.addresses)],
        None => endpoint.addresses.iter().map(|address| (dashed(*address), std::slice::from_ref(address))).collect(),
    };
    for (host, addresses) in hosts.iter().filter(|(_, addresses)| !addresses.is_empty()) {
        let Some(host) = below(own, &[host]) else { continue };
        // SEMANTICS DN2: only a name that somebody chose is worth a reverse name.
        zone.insert_host(&host, addresses, named.is_some());
        for port in &service.ports {
            // Ports of a Service that have names have different ones.
            let other = endpoint.ports.iter().find(|other| other.name == port.name);
            if let Some(number) = other.map_or(Some(port.port), |other| other.port) {
                insert_srv(zone, own, &port.name, port.protocol, number, &host);
            }
        }
    }
}

/// `_port._proto.service`, for named L4 ports only (SEMANTICS DN1).
fn insert_srv(zone: &mut Zone, own: &Name, port: &str, protocol: &str, number: u16, target: &Name) {
    if port.is_empty() {
        return;
    }
    if let Some(name) = below(own, &[&format!("_{port}"), &format!("_{protocol}")]) {
        zone.insert(&name, RData::SRV(SRV::new(PRIORITY, 100, number, target.clone())));
    }
}

/// A label made of an address.
fn dashed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string().replace('.', "-"),
        IpAddr::V6(address) => address.segments().map(|segment| format!("{segment:x}")).join("-"),
    }
}
