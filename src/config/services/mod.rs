//! Services that spread connections, and names of all of them: what the packet path and the DNS server are told.
//!
//! `backends` finds who stands behind a Service, `balance` says what becomes of its connections, `records` of its name, `dubious` what
//! its author may not have meant. Addresses are given by [`super::outside`].

mod backends;
mod balance;
mod dubious;
mod records;

use std::collections::HashMap;
use std::sync::Arc;

use super::checked::Form;
use super::kind::Kind;
use super::outside::{ServiceAddresses, services};
use super::set::ObjectSet;
use crate::fabric::spec::{Desired, ServiceSpec};
use crate::services::dns::spec::ServiceRange;

pub use backends::{Backend, Backends};
pub use dubious::dubious;

/// The label of a HostConfig that says in which zone the host stands, as Kubernetes has it on nodes.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// Adds the Services; networks, ports and their addresses are there already. A Service that is as it was in `before` is the same `Arc`.
pub(super) fn resolve(
    set: &ObjectSet,
    given: &ServiceAddresses,
    node: &str,
    before: &[Arc<ServiceSpec>],
    desired: &mut Desired,
) {
    let ports = desired.ports.clone();
    if set.of_kind(Kind::Service).next().is_some() {
        let backends = Backends::new(set, node, &ports);
        let before: HashMap<&str, &Arc<ServiceSpec>> = before.iter().map(|spec| (spec.name.as_str(), spec)).collect();
        let mut records = Vec::new();
        for (object, service) in services(set) {
            let given = given.get(&object.key).map(Vec::as_slice).unwrap_or_default();
            let found = match service.form {
                Form::Attach | Form::ExternalName(_) => Vec::new(),
                _ => backends.of(&object.key, service),
            };
            records.push(records::of(set, object, service, given, &found));
            if service.balances() {
                let spec = balance::spec(set, &backends, object, service, given, &found);
                let known = before.get(spec.name.as_str()).filter(|known| ****known == spec);
                desired.services.push(known.map_or_else(|| Arc::new(spec), |known| Arc::clone(known)));
            }
        }
        if let Some(dns) = &mut desired.dns {
            dns.services = records;
        }
    }
    if let Some(dns) = &mut desired.dns {
        let ranges = set.networks().flat_map(|(name, network)| network.service_ranges().map(move |net| (name, net)));
        dns.service_ranges = ranges.map(|(network, net)| ServiceRange { network: network.to_owned(), net }).collect();
    }
}
