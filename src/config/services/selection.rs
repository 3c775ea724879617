//! Which Services a port that changed concerns: those that select it now or did before, and those whose EndpointSlices have its addresses.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::backends::namespace_of;
use crate::config::checked::Service;
use crate::config::kind::{Kind, ObjectKey};
use crate::config::outside;
use crate::config::set::ObjectSet;
use crate::fabric::spec::PortSpec;

/// Ports that are looked at one by one; with more of them all Services are worked out again.
const PORTS_MAX: usize = 256;

/// The Services that may be others: `changed`, and those that ports concern which are not as they were `before`. `None` for all of them.
pub fn concerned(
    set: &ObjectSet,
    before: &[Arc<PortSpec>],
    ports: &[Arc<PortSpec>],
    changed: &HashSet<ObjectKey>,
) -> Option<HashSet<ObjectKey>> {
    let others = others(before, ports, changed);
    if others.len() > PORTS_MAX {
        return None;
    }
    Some(changed.iter().cloned().chain(of_ports(set, &others)).collect())
}

/// The Services that ports concern, as they were or as they are.
pub fn of_ports(set: &ObjectSet, ports: &[&PortSpec]) -> Vec<ObjectKey> {
    concerned_by(set, ports, ports)
}

/// The same: of `ports` their labels, of `places` whose addresses EndpointSlices have.
pub fn concerned_by(set: &ObjectSet, ports: &[&PortSpec], places: &[&PortSpec]) -> Vec<ObjectKey> {
    let mut concerned = Vec::new();
    if ports.is_empty() {
        return concerned;
    }
    let addresses: HashSet<(&str, IpAddr)> =
        places.iter().flat_map(|port| port.addresses().map(|address| (port.network.as_str(), address))).collect();
    for (object, service) in outside::services(set) {
        let has = match service.selector.is_empty() {
            false => ports.iter().any(|port| selects(namespace_of(&object.key), service, port)),
            true if addresses.is_empty() => false,
            true => {
                let mut endpoints = set.slices_of(&object.key).flat_map(|slice| &slice.endpoints);
                endpoints.any(|endpoint| addresses.contains(&(service.network.as_str(), endpoint.address)))
            }
        };
        if has {
            concerned.push(object.key.clone());
        }
    }
    concerned
}

fn selects(namespace: &str, service: &Service, port: &PortSpec) -> bool {
    port.namespace == namespace && service.selector.iter().all(|(key, value)| port.labels.get(key) == Some(value))
}

/// Ports that are not as they were, as they were and as they are.
fn others<'a>(
    before: &'a [Arc<PortSpec>],
    ports: &'a [Arc<PortSpec>],
    changed: &HashSet<ObjectKey>,
) -> Vec<&'a PortSpec> {
    let name = |port: &'a Arc<PortSpec>| (port.namespace.as_str(), port.name.as_str());
    // Shares of new connections are no part of what a port is told.
    let touched: HashSet<(&str, &str)> = changed
        .iter()
        .filter(|key| matches!(key.kind, Kind::Port | Kind::Pod))
        .map(|key| (namespace_of(key), key.name.as_str()))
        .collect();
    let mut old: HashMap<_, &Arc<PortSpec>> = before.iter().map(|port| (name(port), port)).collect();
    let mut others = Vec::new();
    for port in ports {
        match old.remove(&name(port)) {
            Some(was) if was == port && !touched.contains(&name(port)) => {}
            was => others.extend(was.into_iter().chain([port]).map(|port| &**port)),
        }
    }
    others.extend(old.into_values().map(|port| &**port));
    others
}
