//! What the author of a Service may not have meant. No errors: backends may come later.

use std::collections::HashMap;
use std::sync::Arc;

use super::backends::{Backends, namespace_of};
use crate::config::checked::{Form, Object, SERVICE_NAME, Service, Spec};
use crate::config::diagnostic::Diagnostic;
use crate::config::kind::{Kind, ObjectKey};
use crate::config::names::closest;
use crate::config::node::Path;
use crate::config::outside::{service, services};
use crate::config::problem::Problem;
use crate::config::set::ObjectSet;
use crate::fabric::spec::PortSpec;

/// Ports that a warning names.
const PORTS_LISTED_MAX: usize = 5;

/// What is dubious about those of `keys` that are Services or EndpointSlices.
pub fn dubious<'a>(
    set: &'a ObjectSet,
    ports: &'a [Arc<PortSpec>],
    keys: impl IntoIterator<Item = &'a ObjectKey>,
) -> Vec<Diagnostic> {
    let of_us = |object: &&std::sync::Arc<Object>| matches!(object.spec, Spec::Service(_) | Spec::EndpointSlice(_));
    let objects: Vec<_> = keys.into_iter().filter_map(|key| set.get(key)).filter(of_us).collect();
    if objects.is_empty() {
        return Vec::new();
    }
    let backends = Backends::new(set, "", ports);
    let mut found = Vec::new();
    for object in objects {
        match &object.spec {
            Spec::Service(service) => {
                found.extend(of_service(&backends, object, service).map(|it| object.diagnose(it)))
            }
            Spec::EndpointSlice(slice) => {
                let problem = slice.service.as_deref().and_then(|name| of_slice(set, object, name));
                found.extend(problem.map(|problem| object.diagnose(problem)));
            }
            _ => {}
        }
    }
    found
}

/// Why the backends of a Service may not be those that are meant.
pub(super) fn of_service(backends: &Backends<'_>, object: &Object, service: &Service) -> Option<Problem> {
    if !matches!(service.form, Form::ClusterIp | Form::LoadBalancer | Form::Headless) || service.selector.is_empty() {
        return None;
    }
    let path = Path::of("spec.selector");
    let selected = backends.selected(&object.key, &service.selector);
    let labels: Vec<String> = service.selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let labels = labels.join(",");
    if selected.is_empty() {
        let message = format!("it selects 0 ports of namespace {} ({labels})", namespace_of(&object.key));
        let problem = Problem::key(&path, "selects_nothing", message).warning().label("no port has these labels");
        return Some(problem.help("connections to it are refused until there are some"));
    }
    let (own, other): (Vec<&PortSpec>, Vec<&PortSpec>) =
        selected.into_iter().partition(|port| port.network == service.network);
    if let Some(message) = of_other_networks(&other, service) {
        let problem = Problem::key(&path, "other_network", message).warning().label("ports of other networks");
        let networks = other.first().map(|port| port.network.clone()).unwrap_or_default();
        return Some(problem.help(format!(
            "a Service belongs to one network: write the annotation hostweave.dev/network: {networks}, or another Service for them"
        )));
    }
    if backends.slices(&object.key).next().is_some() {
        let message = "its EndpointSlices are ignored: a Service with a selector has the ports that it selects";
        return Some(Problem::key(&path, "ignored_field", message).warning().label("has a selector"));
    }
    without_l4(&own, service)
}

fn of_other_networks(ports: &[&PortSpec], service: &Service) -> Option<String> {
    if ports.is_empty() {
        return None;
    }
    let names: Vec<String> = ports.iter().take(PORTS_LISTED_MAX).map(|port| port.full_name()).collect();
    let more = if ports.len() > PORTS_LISTED_MAX { ", …" } else { "" };
    let (count, network, names) = (ports.len(), &service.network, names.join(", "));
    Some(format!("{count} of the ports that it selects are not in Network {network}, and are ignored: {names}{more}"))
}

/// The Services that select ports of other networks than theirs, with what is said about that (SEMANTICS SV24).
pub fn foreign(set: &ObjectSet, ports: &[Arc<PortSpec>]) -> HashMap<ObjectKey, String> {
    foreign_among(set, ports, |_| true)
}

/// The same of the Services that are `wanted`.
pub fn foreign_among(
    set: &ObjectSet,
    ports: &[Arc<PortSpec>],
    wanted: impl Fn(&ObjectKey) -> bool,
) -> HashMap<ObjectKey, String> {
    let backends = Backends::new(set, "", ports);
    let of = |(object, service): (&Object, &Service)| {
        if service.selector.is_empty() || !wanted(&object.key) {
            return None;
        }
        let mut selected = backends.selected(&object.key, &service.selector);
        selected.retain(|port| port.network != service.network);
        Some((object.key.clone(), of_other_networks(&selected, service)?))
    };
    services(set).filter_map(of).collect()
}

/// A named L4 port that no backend has.
fn without_l4(ports: &[&PortSpec], service: &Service) -> Option<Problem> {
    use crate::config::checked::{Target, protocol};
    service.ports.iter().enumerate().find_map(|(index, port)| {
        let Target::Named(name) = &port.target else { return None };
        let has = |of: &&&PortSpec| {
            of.named_ports.iter().any(|named| named.name == *name && named.protocol == protocol(port.protocol))
        };
        let count = ports.iter().filter(has).count();
        if count == ports.len() {
            return None;
        }
        let path = Path::of("spec.ports").index(index).key("targetPort");
        let missing: Vec<String> =
            ports.iter().filter(|port| !has(port)).take(PORTS_LISTED_MAX).map(|port| port.full_name()).collect();
        let known = ports.iter().flat_map(|port| &port.named_ports).map(|named| named.name.as_str());
        let label = closest(name, known).filter(|similar| similar != name);
        let message = format!(
            "{} of its {} ports have no L4 port {name:?} and get no connections there: {}",
            ports.len() - count,
            ports.len(),
            missing.join(", ")
        );
        let problem = Problem::value(&path, "no_such_port", message).warning();
        let problem = problem.label(label.map_or("not there".to_owned(), |similar| format!("did you mean {similar}?")));
        Some(problem.help("write it in Port.spec.namedPorts, with that protocol"))
    })
}

/// An EndpointSlice of a Service that is not there, or does not take it.
fn of_slice(set: &ObjectSet, object: &Object, name: &str) -> Option<Problem> {
    let key = ObjectKey::new(Kind::Service, object.key.namespace.as_deref(), name);
    let path = Path::of("metadata.labels").key(SERVICE_NAME);
    let problem =
        |message: String, label: &str| Some(Problem::value(&path, "no_effect", message).warning().label(label));
    match service(set, &key) {
        None => problem(format!("{key} does not exist"), "not there"),
        Some((_, service)) if !service.selector.is_empty() => {
            problem(format!("{key} has a selector: it has the ports that it selects"), "ignored")
        }
        Some((_, Service { form: Form::Attach | Form::ExternalName(_), .. })) => {
            problem(format!("{key} has no backends"), "ignored")
        }
        Some(_) => None,
    }
}
