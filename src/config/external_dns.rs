//! Which names Services want in the zone of `HostConfig.spec.externalDNS`, by their annotations, and for which addresses.

use std::sync::Arc;

use super::kind::Kind;
use super::outside::ServiceAddresses;
use super::set::ObjectSet;
use crate::services::external_dns::names;
use crate::services::external_dns::spec::{ExternalDnsSpec, Wanted};

/// What external DNS is told; `None` where the host has no zone.
pub fn spec(set: &ObjectSet, services: &ServiceAddresses) -> Option<Arc<ExternalDnsSpec>> {
    let mut spec = set.host().external_dns.clone()?;
    for object in set.of_kind(Kind::Service) {
        let (names, problems) = names::of(&object.metadata.annotations, &spec);
        if names.is_empty() && problems.is_empty() {
            continue;
        }
        // Addresses inside the network are nobody's business out there; private ones of a pool are (SEMANTICS CW8).
        let given = services.get(&object.key).into_iter().flatten().filter(|given| given.pool().is_some());
        let addresses = given.map(|given| given.address).collect();
        spec.wanted.push(Wanted { service: object.key.path(), names, addresses, problems });
    }
    spec.wanted.sort_by(|a, b| a.service.cmp(&b.service));
    Some(Arc::new(spec))
}
