//! Which Services a port that changed concerns: those that select it now or did before, and those whose EndpointSlices have its addresses.

use std::collections::{HashMap, HashSet};

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
    before: &[PortSpec],
    ports: &[PortSpec],
    changed: &HashSet<ObjectKey>,
) -> Option<HashSet<ObjectKey>> {
    let mut services = changed.clone();
    let others = others(before, ports, changed);
    if others.is_empty() {
        return Some(services);
    }
    if others.len() > PORTS_MAX {
        return None;
    }
    for (object, service) in outside::services(set) {
        let has = |port: &&PortSpec| match service.selector.is_empty() {
            false => selects(namespace_of(&object.key), service, port),
            true => {
                let mut endpoints = set.slices_of(&object.key).flat_map(|slice| &slice.endpoints);
                port.network == service.network
                    && endpoints.any(|endpoint| port.addresses().any(|address| address == endpoint.address))
            }
        };
        if others.iter().any(has) {
            services.insert(object.key.clone());
        }
    }
    Some(services)
}

fn selects(namespace: &str, service: &Service, port: &PortSpec) -> bool {
    port.namespace == namespace && service.selector.iter().all(|(key, value)| port.labels.get(key) == Some(value))
}

/// Ports that are not as they were, as they were and as they are.
fn others<'a>(before: &'a [PortSpec], ports: &'a [PortSpec], changed: &HashSet<ObjectKey>) -> Vec<&'a PortSpec> {
    let name = |port: &'a PortSpec| (port.namespace.as_str(), port.name.as_str());
    // Shares of new connections are no part of what a port is told.
    let touched: HashSet<(&str, &str)> = changed
        .iter()
        .filter(|key| matches!(key.kind, Kind::Port | Kind::Pod))
        .map(|key| (namespace_of(key), key.name.as_str()))
        .collect();
    let mut old: HashMap<_, &PortSpec> = before.iter().map(|port| (name(port), port)).collect();
    let mut others = Vec::new();
    for port in ports {
        match old.remove(&name(port)) {
            Some(was) if was == port && !touched.contains(&name(port)) => {}
            was => others.extend(was.into_iter().chain([port])),
        }
    }
    others.extend(old.into_values());
    others
}
