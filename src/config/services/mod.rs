//! Services that spread connections, and names of all of them: what the packet path and the DNS server are told.
//!
//! `backends` finds who stands behind a Service, `balance` says what becomes of its connections, `records` of its name, `dubious` what
//! its author may not have meant. Addresses are given by [`super::outside`].

mod backends;
mod balance;
mod dubious;
mod records;

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::checked::{Form, Object, Spec};
use super::kind::{Kind, ObjectKey};
use super::outside::ServiceAddresses;
use super::set::ObjectSet;
use crate::fabric::spec::{Desired, ServiceSpec};
use crate::services::dns::spec::{ServiceRange, ServiceRecords};

pub use backends::{Backend, Backends};
pub use dubious::dubious;

/// The label of a HostConfig that says in which zone the host stands, as Kubernetes has it on nodes.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// What was told of Services the last time.
#[derive(Clone, Copy, Default)]
pub struct Told<'a> {
    /// To the packet path.
    pub services: &'a [Arc<ServiceSpec>],
    /// To DNS.
    pub records: &'a [ServiceRecords],
    /// The Services that may be others since, where nothing else is; `None` for all of them.
    pub changed: Option<&'a HashSet<ObjectKey>>,
}

impl<'a> Told<'a> {
    /// All that was told, of which all may have changed.
    pub fn of(desired: &'a Desired) -> Self {
        let records = desired.dns.as_ref().map(|dns| dns.services.as_slice()).unwrap_or_default();
        Self { services: &desired.services, records, changed: None }
    }
}

/// Adds the Services; networks, ports and their addresses are there already. A Service that is as it was told is the same `Arc`.
pub fn resolve(set: &ObjectSet, given: &ServiceAddresses, node: &str, told: Told<'_>, desired: &mut Desired) {
    let ports = desired.ports.clone();
    let backends = OnceCell::new();
    let specs: HashMap<&str, &Arc<ServiceSpec>> = told.services.iter().map(|spec| (spec.name.as_str(), spec)).collect();
    // Who cannot have changed is not looked at.
    let is_same = |object: &Object| told.changed.is_some_and(|changed| !changed.contains(&object.key));
    let names: HashMap<(&str, &str), &ServiceRecords> = match told.changed {
        Some(_) => told.records.iter().map(|of| ((of.namespace.as_str(), of.name.as_str()), of)).collect(),
        None => HashMap::new(),
    };
    let (mut services, mut records) = (Vec::new(), Vec::new());
    for (object, service) in super::outside::services(set) {
        let path = object.key.path();
        let known = specs.get(path.as_str()).copied();
        if is_same(object)
            && let Some(of) = names.get(&(backends::namespace_of(&object.key), object.key.name.as_str()))
        {
            records.push((*of).clone());
            services.extend(known.map(Arc::clone));
            continue;
        }
        let backends = backends.get_or_init(|| Backends::new(set, node, &ports));
        let given = given.get(&object.key).map(Vec::as_slice).unwrap_or_default();
        let found = match service.form {
            Form::Attach | Form::ExternalName(_) => Vec::new(),
            _ => backends.of(&object.key, service),
        };
        records.push(records::of(set, object, service, given, &found));
        if service.balances() {
            let spec = balance::spec(set, backends, object, service, given, &found);
            let known = known.filter(|known| ***known == spec);
            services.push(known.map_or_else(|| Arc::new(spec), Arc::clone));
        }
    }
    desired.services = services;
    if let Some(dns) = &mut desired.dns {
        let ranges = set.networks().flat_map(|(name, network)| network.service_ranges().map(move |net| (name, net)));
        dns.service_ranges = ranges.map(|(network, net)| ServiceRange { network: network.to_owned(), net }).collect();
        dns.services = records;
    }
}

/// The Services that changes of Services and EndpointSlices are about, as they were `before` and as they are.
pub fn concerned<'a>(before: &ObjectSet, changed: impl Iterator<Item = &'a Arc<Object>>) -> HashSet<ObjectKey> {
    let of_slice = |object: &Object| match &object.spec {
        Spec::EndpointSlice(slice) => {
            let name = slice.service.as_deref()?;
            Some(ObjectKey::new(Kind::Service, object.key.namespace.as_deref(), name))
        }
        Spec::Service(_) => Some(object.key.clone()),
        _ => None,
    };
    let both = |object: &'a Arc<Object>| [Some(object.clone()), before.get(&object.key).cloned()];
    changed.flat_map(both).flatten().filter_map(|object| of_slice(&object)).collect()
}
