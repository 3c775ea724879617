//! `service.*`: the backends of a Service, how each is and was, and who is drained.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::names::closest;
use crate::config::{Kind, ObjectKey};
use crate::control::controller::{Snapshot, not_found};
use crate::control::error::{ErrorKind, RpcError};
use crate::control::method::Call;
use crate::fabric::balance::history::Change;
use crate::fabric::balance::known::Drained;
use crate::fabric::balance::report::{BackendStatus, ServiceStatus};
use crate::fabric::balance::serving::Serving;
use crate::fabric::spec::{ANY_PROTO, ServiceSpec};
use crate::observe::synthetic::protocol_name;
use crate::observe::time::rfc3339;
use crate::services::health::TargetReport;

/// Parameters of methods that concern one Service.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Name {
    /// Namespace; `default` if left out.
    namespace: Option<String>,
    /// Name.
    name: String,
}

/// Parameters of `service.drain` and `service.undrain`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Drain {
    /// The backend: `namespace/name` of its port, or the address of one that is no port here.
    backend: String,
    /// `namespace/name` of the Service; all Services if left out.
    service: Option<String>,
}

pub fn backends(call: &Call<'_>, params: Name) -> Result<Value, RpcError> {
    let key = ObjectKey::new(Kind::Service, params.namespace.as_deref(), &params.name);
    let snapshot = call.controller.snapshot();
    let name = key.path();
    let fabric = &call.controller.parts.fabric;
    let (Some(spec), Some(status)) = (spec_of(&snapshot, &name), fabric.service_status(&name)) else {
        return Err(no_backends(&key, &snapshot));
    };
    let connections = fabric.service_connections(&name);
    let held = |backend: &BackendStatus| {
        let mine = |(proto, address, l4, _): &&(u8, IpAddr, u16, u64)| {
            // One of a range is asked at the L4 ports of the range.
            let at = backend.l4.map_or(backend.service_l4.clone(), |l4| l4..=l4);
            (*proto, *address) == (backend.proto, backend.address) && at.contains(l4)
        };
        connections.iter().filter(mine).map(|(.., count)| count).sum::<u64>()
    };
    let drained = fabric.drained();
    let backends: Vec<Value> = status
        .backends
        .iter()
        .map(|backend| {
            let mut value = view(backend);
            value["connections"] = json!(held(backend));
            let of_all = Drained { backend: backend.name.clone(), service: None };
            if drained.contains(&of_all) {
                value["drainedOf"] = json!("all Services");
            } else if drained.contains(&Drained { service: Some(name.clone()), ..of_all }) {
                value["drainedOf"] = json!("this Service");
            }
            value
        })
        .collect();
    Ok(json!({
        "service": name,
        "network": spec.network,
        "addresses": addresses(spec),
        "serving": status.serving.as_ref().map(|serving| *serving == Serving::Everywhere),
        "notServed": status.serving.as_ref().map_or(&[][..], Serving::gaps),
        "backends": backends,
        "history": history(&status),
    }))
}

/// All addresses of a Service.
pub fn addresses(spec: &ServiceSpec) -> Vec<IpAddr> {
    spec.cluster.iter().copied().chain(spec.load_balancer.iter().map(|given| given.address)).collect()
}

fn view(backend: &BackendStatus) -> Value {
    json!({
        "backend": backend.name,
        "portName": backend.port_name,
        "protocol": if backend.proto == ANY_PROTO { "any".to_owned() } else { protocol_name(backend.proto) },
        "address": backend.address,
        "l4Port": backend.l4,
        "weight": backend.weight,
        "state": backend.state.name(),
        "internal": backend.internal,
        "external": backend.external,
        "check": backend.check.as_ref().map(check_view),
        "ejection": backend.ejection.as_ref().map(|ejection| {
            json!({"until": rfc3339(ejection.until), "reason": &*ejection.reason})
        }),
    })
}

/// What came of a backend's checks so far.
fn check_view(report: &TargetReport) -> Value {
    let last = report.last.as_ref().map(|last| {
        json!({
            "time": rfc3339(last.at),
            "seconds": last.took.as_secs_f64(),
            "passed": last.passed,
            "reason": &*last.reason,
        })
    });
    json!({"checks": report.checks, "failures": report.failures, "contrary": report.contrary, "last": last})
}

fn history(status: &ServiceStatus) -> Vec<Value> {
    let entry = |change: &Change| {
        json!({
            "time": rfc3339(change.time),
            "backend": &*change.backend,
            "address": change.address,
            "portName": &*change.port_name,
            "from": change.from.map(|state| state.name()),
            "to": change.to.map(|state| state.name()),
            "reason": change.reason.as_deref(),
        })
    };
    status.changes.iter().map(entry).collect()
}

fn spec_of<'a>(snapshot: &'a Snapshot, name: &str) -> Option<&'a ServiceSpec> {
    snapshot.desired.services.iter().find(|spec| spec.name == name).map(|spec| &**spec)
}

/// Why a Service has no backends to show.
fn no_backends(key: &ObjectKey, snapshot: &Snapshot) -> RpcError {
    if snapshot.set.get(key).is_none() {
        return not_found(key, snapshot);
    }
    let message =
        format!("{key} has no backends of its own: it is an ExternalName, or stands for an address of a port");
    RpcError::new(ErrorKind::NotFound, "name", message)
        .help(format!("see: hostweave get services {} -o yaml", key.path()))
}

pub fn drain(call: &Call<'_>, params: Drain) -> Result<Value, RpcError> {
    set(call, params, true)
}

pub fn undrain(call: &Call<'_>, params: Drain) -> Result<Value, RpcError> {
    set(call, params, false)
}

fn set(call: &Call<'_>, params: Drain, drained: bool) -> Result<Value, RpcError> {
    let snapshot = call.controller.snapshot();
    let what = Drained { backend: params.backend, service: params.service };
    // Whoever is gone may still be let off.
    if drained {
        check(&what, &snapshot)?;
    }
    let changed = call.controller.drain(what.clone(), drained)?;
    Ok(json!({"backend": what.backend, "service": what.service, "drained": drained, "changed": changed}))
}

/// Refuses a Service or backend that is not there: a word that was mistyped must not look like a success.
fn check(what: &Drained, snapshot: &Snapshot) -> Result<(), RpcError> {
    if let Some(name) = &what.service
        && spec_of(snapshot, name).is_none()
    {
        let (namespace, short) = name.split_once('/').unwrap_or(("default", name));
        let mut error = no_backends(&ObjectKey::new(Kind::Service, Some(namespace), short), snapshot);
        error.data.field = "service".to_owned();
        return Err(error);
    }
    let services = || {
        let wanted = |spec: &&std::sync::Arc<ServiceSpec>| what.service.as_ref().is_none_or(|name| *name == spec.name);
        snapshot.desired.services.iter().filter(wanted)
    };
    let names =
        || services().flat_map(|spec| &spec.ports).flat_map(|port| &port.endpoints).map(|endpoint| &*endpoint.name);
    if names().any(|name| name == what.backend) {
        return Ok(());
    }
    let whose = what.service.as_ref().map_or("any Service".to_owned(), |name| format!("Service {name}"));
    let error = RpcError::new(ErrorKind::NotFound, "backend", format!("{} is no backend of {whose}", what.backend));
    Err(match (closest(&what.backend, names()), &what.service) {
        (Some(similar), _) => error.help(format!("did you mean {similar}?")),
        (None, Some(name)) => error.help(format!("see: hostweave service backends {name}")),
        (None, None) => error.help("see: hostweave service backends NAME"),
    })
}
