//! Services that spread connections, and names of all of them: what the packet path and the DNS server are told.
//!
//! `backends` finds who stands behind a Service, `balance` says what becomes of its connections, `records` of its name, `dubious` what
//! its author may not have meant, `selection` which Services a port concerns. Addresses are given by [`super::outside`].

mod backends;
mod balance;
mod dubious;
mod records;
mod selection;

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::checked::{Form, Object, Service, Spec};
use super::kind::{DEFAULT_NAMESPACE, Kind, ObjectKey};
use super::outside::{self, ServiceAddresses};
use super::set::{ObjectSet, service_of};
use crate::fabric::spec::{Desired, PortSpec, ServiceSpec};
use crate::services::dns::spec::{ServiceRange, ServiceRecords};

pub use backends::{Backend, Backends};
pub use dubious::{dubious, foreign, foreign_among};
pub use selection::{concerned as concerned_by_change, concerned_by};

/// The label of a HostConfig that says in which zone the host stands, as Kubernetes has it on nodes.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// What was told of Services the last time.
#[derive(Clone, Copy, Default)]
pub struct Told<'a> {
    /// To the packet path.
    pub services: &'a [Arc<ServiceSpec>],
    /// To DNS.
    pub records: Option<&'a Arc<Vec<Arc<ServiceRecords>>>>,
    /// The Services that may be others since, where nothing else is; `None` for all of them.
    pub changed: Option<&'a HashSet<ObjectKey>>,
    /// The ports as they were then, where these may be others too: Services that `changed` does not have follow from what became of
    /// them. `changed` has the ports whose objects changed as well, or their Pods'.
    pub ports: &'a [Arc<PortSpec>],
}

impl<'a> Told<'a> {
    /// All that was told.
    pub fn of(desired: &'a Desired) -> Self {
        Self {
            services: &desired.services,
            records: desired.dns.as_ref().map(|dns| &dns.services),
            changed: None,
            ports: &desired.ports,
        }
    }
}

/// What was told before, in the order of the objects then: found without an index as long as none came or went.
struct Known<'a, T> {
    list: &'a [T],
    /// Namespace and name.
    name: fn(&'a T) -> (&'a str, &'a str),
    /// The place behind the one that was found last.
    next: usize,
    places: OnceCell<HashMap<(&'a str, &'a str), usize>>,
}

impl<'a, T> Known<'a, T> {
    fn new(list: &'a [T], name: fn(&'a T) -> (&'a str, &'a str)) -> Self {
        Self { list, name, next: 0, places: OnceCell::new() }
    }

    fn find(&mut self, name: (&str, &str)) -> Option<&'a T> {
        let (list, name_of) = (self.list, self.name);
        let mut place = self.next;
        if list.get(place).map(name_of) != Some(name) {
            let places = || list.iter().enumerate().map(|(place, it)| (name_of(it), place)).collect();
            place = *self.places.get_or_init(places).get(&name)?;
        }
        self.next = place + 1;
        list.get(place)
    }
}

/// Adds the Services; networks, ports and their addresses are there already. A Service that is as it was told is the same `Arc`. Returns
/// how many were worked out.
pub fn resolve(set: &ObjectSet, given: &ServiceAddresses, node: &str, told: Told<'_>, desired: &mut Desired) -> usize {
    let ports = desired.ports.clone();
    let changed = told.changed.and_then(|changed| selection::concerned(set, told.ports, &ports, changed));
    // Who cannot have changed is not looked at.
    let is_same = |object: &Object| changed.as_ref().is_some_and(|changed| !changed.contains(&object.key));
    let mut worked_out = 0;
    let backends = Backends::new(set, node, &ports);
    let mut specs = Known::new(told.services, |spec| name_of_spec(spec));
    let known_records = told.records.map(|records| records.as_slice()).unwrap_or_default();
    let mut names = Known::new(known_records, |of| name_of_records(of));
    let (mut services, mut records) = (Vec::new(), Vec::new());
    for (object, service) in outside::services(set) {
        let name = (backends::namespace_of(&object.key), object.key.name.as_str());
        let known = if service.has_backends() { specs.find(name) } else { None };
        let old = names.find(name);
        if is_same(object)
            && let Some(of) = old
        {
            records.push(Arc::clone(of));
            services.extend(known.map(Arc::clone));
            continue;
        }
        worked_out += 1;
        let (of, spec) = work_out(&backends, given, object, service, (old, known));
        records.push(of);
        services.extend(spec);
    }
    desired.services = Arc::new(services);
    if let Some(dns) = &mut desired.dns {
        let ranges = set.networks().flat_map(|(name, network)| network.service_ranges().map(move |net| (name, net)));
        dns.service_ranges = ranges.map(|(network, net)| ServiceRange { network: network.to_owned(), net }).collect();
        let same = |known: &&Arc<Vec<Arc<ServiceRecords>>>| {
            known.len() == records.len() && known.iter().zip(&records).all(|(a, b)| Arc::ptr_eq(a, b))
        };
        dns.services = match told.records.filter(same) {
            Some(known) => Arc::clone(known),
            None => Arc::new(records),
        };
    }
    worked_out
}

/// What [`resolve`] does, for those Services alone that may be others than `desired` says: it has all that was told before, and
/// nothing else has changed. Costs what the `concerned` do.
pub fn resolve_again(
    set: &ObjectSet,
    given: &ServiceAddresses,
    node: &str,
    concerned: &HashSet<ObjectKey>,
    desired: &mut Desired,
) {
    let ports = desired.ports.clone();
    let backends = Backends::for_some(set, node, &ports, concerned.len());
    for key in concerned.iter().filter(|key| key.kind == Kind::Service) {
        let name = (backends::namespace_of(key), key.name.as_str());
        let place = desired.services.binary_search_by(|spec| name_of_spec(spec).cmp(&name));
        let known = desired.dns.as_ref().map(|dns| &dns.services);
        let records_place = known.map_or(Err(0), |known| known.binary_search_by(|of| name_of_records(of).cmp(&name)));
        let before =
            (records_place.ok().and_then(|at| known?.get(at)), place.ok().and_then(|at| desired.services.get(at)));
        let (of, spec) = match outside::service(set, key) {
            Some((object, service)) => {
                let (of, spec) = work_out(&backends, given, object, service, before);
                (Some(of), spec)
            }
            None => (None, None),
        };
        put(&mut desired.services, place, spec);
        if let Some(dns) = &mut desired.dns {
            put(&mut dns.services, records_place, of);
        }
    }
}

/// What DNS and the packet path are told of one Service: what they were told before, if it is the same.
fn work_out(
    backends: &Backends<'_>,
    given: &ServiceAddresses,
    object: &Object,
    service: &Service,
    (old_records, old_spec): (Option<&Arc<ServiceRecords>>, Option<&Arc<ServiceSpec>>),
) -> (Arc<ServiceRecords>, Option<Arc<ServiceSpec>>) {
    let set = backends.set();
    let given = given.get(&object.key).map(Vec::as_slice).unwrap_or_default();
    let found = match service.form {
        Form::Attach | Form::ExternalName(_) => Vec::new(),
        _ => backends.of(&object.key, service),
    };
    let spec = service.has_backends().then(|| balance::spec(set, backends, object, service, given, &found));
    (
        same_or_new(old_records, records::of(set, object, service, given, &found)),
        spec.map(|spec| same_or_new(old_spec, spec)),
    )
}

fn same_or_new<T: PartialEq>(old: Option<&Arc<T>>, new: T) -> Arc<T> {
    old.filter(|old| ***old == new).map_or_else(|| Arc::new(new), Arc::clone)
}

/// Writes, inserts or removes one element of a list that is shared: it is copied only if that makes a difference.
fn put<T>(list: &mut Arc<Vec<Arc<T>>>, place: Result<usize, usize>, new: Option<Arc<T>>) {
    match (place, new) {
        (Ok(at), Some(new)) if list.get(at).is_some_and(|old| !Arc::ptr_eq(old, &new)) => Arc::make_mut(list)[at] = new,
        (Ok(at), None) => drop(Arc::make_mut(list).remove(at)),
        (Err(at), Some(new)) => Arc::make_mut(list).insert(at, new),
        (Ok(_), Some(_)) | (Err(_), None) => {}
    }
}

/// Namespace and name.
fn name_of_spec(spec: &ServiceSpec) -> (&str, &str) {
    spec.name.split_once('/').unwrap_or((DEFAULT_NAMESPACE, &spec.name))
}

/// Namespace and name.
fn name_of_records(records: &ServiceRecords) -> (&str, &str) {
    (&records.namespace, &records.name)
}

/// The Services that changes of Services and EndpointSlices are about, as they were `before` and as they are; ports and Pods themselves.
pub fn concerned<'a>(before: &ObjectSet, changed: impl Iterator<Item = &'a Arc<Object>>) -> HashSet<ObjectKey> {
    let concerned = |object: &Object| match &object.spec {
        Spec::Service(_) | Spec::Port(_) | Spec::Pod => Some(object.key.clone()),
        _ => service_of(object),
    };
    let both = |object: &'a Arc<Object>| [Some(object.clone()), before.get(&object.key).cloned()];
    changed.flat_map(both).flatten().filter_map(|object| concerned(&object)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_are_found_in_order_and_out_of_it_also_where_some_came_or_went() {
        let list: Vec<String> = ["a/a", "a/b", "b/a", "c/a"].map(str::to_owned).into();
        let name = |it: &'static str| it.split_once('/').unwrap();
        for asked in [
            ["a/a", "a/b", "b/a", "c/a"].as_slice(),
            &["a/b", "c/a"],
            &["a/a", "a/aa", "a/b", "b/a", "bb/a", "c/a", "d/a"],
            &["c/a", "a/a", "c/a"],
        ] {
            let mut known = Known::new(&list, |it| it.split_once('/').unwrap());
            for it in asked {
                let expected = list.iter().find(|other| other == it);
                assert_eq!(known.find(name(it)), expected, "{it} of {asked:?}");
            }
        }
    }
}
