//! `EndpointSlice`, checked as `ValidateEndpointSlice` of Kubernetes does.

use std::net::IpAddr;

use super::{Metadata, range};
use crate::config::names;
use crate::config::node::Path;
use crate::config::problem::Problem;
use crate::config::ranges::Range;
use crate::config::raw::endpoint_slice as raw;
use crate::config::raw::port::Protocol;
use crate::fabric::spec::Condition;

/// The label that names the Service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Backends and ports of one slice, and addresses of a backend, as Kubernetes limits them.
const ENDPOINTS_MAX: usize = 1_000;
const PORTS_MAX: usize = 100;
const ADDRESSES_MAX: usize = 100;

/// Backends of a Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointSlice {
    /// Name of the Service, in the same namespace.
    pub service: Option<String>,
    /// The backends, in the order written.
    pub endpoints: Vec<Endpoint>,
    /// L4 ports that each of them has.
    pub ports: Vec<EndpointPort>,
}

/// A backend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// What is said about it.
    pub condition: Condition,
    /// Its name in DNS.
    pub hostname: Option<String>,
    /// The host that it runs on.
    pub node: Option<String>,
    /// The zone of that host.
    pub zone: Option<String>,
    /// Zones that it is meant for, where somebody has decided that.
    pub for_zones: Vec<String>,
    /// Hosts that it is meant for, likewise.
    pub for_nodes: Vec<String>,
}

/// An L4 port of the backends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointPort {
    /// Name of the Service's port.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// Number; `None` for the one that the client asked for.
    pub port: Option<u16>,
}

impl EndpointSlice {
    /// Checks what is written; values of fields that have a problem are meaningless.
    pub(super) fn check(metadata: &Metadata, raw: &raw::EndpointSlice, problems: &mut Vec<Problem>) -> Self {
        if raw.address_type == raw::AddressType::FQDN {
            let message = "addressType FQDN is not supported: a backend is an address";
            let problem = Problem::value(&Path::of("addressType"), "refused_field", message).label("IPv4 or IPv6");
            problems.push(problem.help("write a Service of type ExternalName for another name"));
        }
        let path = Path::of("metadata.labels");
        let service = metadata.labels.get(SERVICE_NAME).cloned();
        match &service {
            None => {
                let message = format!("there is no label {SERVICE_NAME}: the slice belongs to no Service");
                let problem = Problem::key(&path, "no_effect", message).warning().label("no Service");
                problems.push(problem);
            }
            Some(name) => {
                if let Err(reason) = names::check_dns_label(name) {
                    let message = format!("label {SERVICE_NAME} {name:?} {reason}");
                    let problem = Problem::value(&path.key(SERVICE_NAME), "invalid_name", message);
                    problems.push(problem.label("not the name of a Service"));
                }
            }
        }
        let endpoints = raw.endpoints.as_deref().unwrap_or_default();
        let ports = raw.ports.as_deref().unwrap_or_default();
        check_count(endpoints.len(), ENDPOINTS_MAX, "endpoints", problems);
        check_count(ports.len(), PORTS_MAX, "ports", problems);
        let numbered = endpoints.iter().enumerate().take(ENDPOINTS_MAX);
        let endpoint =
            |(index, endpoint)| endpoint_of(endpoint, raw.address_type, &Path::of("endpoints").index(index), problems);
        let endpoints = numbered.filter_map(endpoint).collect();
        Self { service, endpoints, ports: ports_of(ports, problems) }
    }
}

fn check_count(count: usize, most: usize, field: &str, problems: &mut Vec<Problem>) {
    if count > most {
        let message = format!("there are {count} {field}; at most {most} are allowed");
        let problem = Problem::value(&Path::of(field), "out_of_range", message).label("too many");
        problems.push(problem.help("a Service may have several EndpointSlices"));
    }
}

fn endpoint_of(
    raw: &raw::Endpoint,
    family: raw::AddressType,
    path: &Path,
    problems: &mut Vec<Problem>,
) -> Option<Endpoint> {
    let addresses = path.key("addresses");
    if raw.addresses.is_empty() || raw.addresses.len() > ADDRESSES_MAX {
        let message = format!("{addresses} has {} addresses; it must have 1 to {ADDRESSES_MAX}", raw.addresses.len());
        problems.push(Problem::value(&addresses, "out_of_range", message).label("one address"));
    }
    let mut first = None;
    for (index, text) in raw.addresses.iter().enumerate().take(ADDRESSES_MAX) {
        let address = text.parse::<IpAddr>().ok().filter(|address| address.to_canonical() == *address);
        let special = address.and_then(|address| Range::from(address).special());
        let reason = match (address, special) {
            (None, _) => "is not an IP address".to_owned(),
            (Some(address), _) if address.is_ipv4() != (family == raw::AddressType::IPv4) => {
                format!("is not of addressType {family}")
            }
            (Some(_), Some(what)) => format!("is in {what}"),
            (Some(_), None) => {
                first = first.or(address);
                continue;
            }
        };
        let path = addresses.index(index);
        problems
            .push(Problem::value(&path, "invalid_address", format!("{path} {text:?} {reason}")).label("not usable"));
    }
    if let Some(hostname) = &raw.hostname
        && let Err(reason) = names::check_dns_label(hostname)
    {
        let path = path.key("hostname");
        let message = format!("{path} {hostname:?} {reason}");
        problems.push(Problem::value(&path, "invalid_name", message).label("not a host name"));
    }
    let hints = |of: fn(&raw::Hints) -> Option<&Vec<raw::Hint>>| {
        raw.hints.as_ref().and_then(of).into_iter().flatten().map(|hint| hint.name.clone()).collect()
    };
    Some(Endpoint {
        address: first?,
        condition: condition_of(raw.conditions.as_ref()),
        hostname: raw.hostname.clone(),
        node: raw.node_name.clone(),
        zone: raw.zone.clone(),
        for_zones: hints(|hints| hints.for_zones.as_ref()),
        for_nodes: hints(|hints| hints.for_nodes.as_ref()),
    })
}

/// What is left out means the best (`EndpointConditions` of Kubernetes; SEMANTICS SV1).
fn condition_of(raw: Option<&raw::Conditions>) -> Condition {
    let ready = raw.and_then(|conditions| conditions.ready).unwrap_or(true);
    let serving = raw.and_then(|conditions| conditions.serving).unwrap_or(ready);
    let terminating = raw.and_then(|conditions| conditions.terminating).unwrap_or(false);
    match (ready, serving && terminating) {
        (true, _) => Condition::Ready,
        (false, true) => Condition::Terminating,
        (false, false) => Condition::NotReady,
    }
}

fn ports_of(raw: &[raw::EndpointPort], problems: &mut Vec<Problem>) -> Vec<EndpointPort> {
    let mut ports: Vec<EndpointPort> = Vec::new();
    for (index, port) in raw.iter().enumerate().take(PORTS_MAX) {
        let path = Path::of("ports").index(index);
        let number = range(port.port, 1, 65_535, &path.key("port"), problems).and_then(|port| u16::try_from(port).ok());
        let name = port.name.clone().unwrap_or_default();
        if !name.is_empty()
            && let Err(reason) = names::check_dns_label(&name)
        {
            let path = path.key("name");
            problems
                .push(Problem::value(&path, "invalid_name", format!("{path} {name:?} {reason}")).label("not a name"));
        }
        if ports.iter().any(|other| other.name == name) {
            let path = path.key("name");
            problems.push(
                Problem::value(&path, "duplicate", format!("{path} {name:?} is given twice")).label("second time"),
            );
        }
        ports.push(EndpointPort { name, protocol: port.protocol.unwrap_or(Protocol::Tcp), port: number });
    }
    ports
}
