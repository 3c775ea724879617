//! What people and programs are told about Services: the `status` of their objects, as a user of Kubernetes expects it.

use std::net::IpAddr;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::controller::{Controller, Snapshot};
use super::outside_view::{attachment_mode, split};
use super::view::problem_of;
use crate::config::checked::{EndpointSlice, Form, Object, Service, Spec, annotations};
use crate::config::outside::{Given, attachments};
use crate::config::raw::RawObject;
use crate::config::{ObjectKey, ObjectSet};
use crate::fabric::balance::choice::BackendState;
use crate::fabric::balance::report::{BackendStatus, ServiceStatus};
use crate::fabric::balance::serving::{ServiceHealth, Serving};
use crate::fabric::spec::{Condition, EndpointSpec, ServicePortSpec, ServiceSpec};
use crate::observe::time::rfc3339_seconds;
use crate::services::external_dns::ExternalRecords;

/// A Service, with what was given to it and who stands behind it.
pub struct ServiceView<'a> {
    controller: &'a Controller,
    snapshot: &'a Snapshot,
    object: &'a Object,
    service: &'a Service,
    given: &'a [Given],
    /// How its backends are; `None` for a Service that has none by its nature.
    health: Option<ServiceHealth>,
}

impl<'a> ServiceView<'a> {
    /// The view of one Service of `snapshot`.
    pub fn new(controller: &'a Controller, snapshot: &'a Snapshot, object: &'a Object, service: &'a Service) -> Self {
        let given = snapshot.services.get(&object.key).map(Vec::as_slice).unwrap_or_default();
        let health = controller.parts.fabric.service_health(&object.key.path());
        Self { controller, snapshot, object, service, given, health }
    }

    /// Its cluster addresses.
    pub fn cluster(&self) -> Vec<IpAddr> {
        cluster_addresses(self.given)
    }

    /// Its addresses of pools.
    pub fn external(&self) -> Vec<IpAddr> {
        self.given.iter().filter(|given| given.pool().is_some()).map(|given| given.address).collect()
    }

    /// What the packet path is told.
    pub fn told(&self) -> Option<&'a ServiceSpec> {
        told(self.snapshot, &self.object.key)
    }

    /// Backends that are healthy, and all of them.
    pub fn backends(&self) -> (usize, usize) {
        self.health.as_ref().map_or((0, 0), |health| (health.healthy(), health.total()))
    }

    /// `status` of the object.
    pub fn status(&self) -> Value {
        let mut status = self.summary();
        status["conditions"] = json!(self.conditions());
        status
    }

    /// The same without its conditions.
    fn summary(&self) -> Value {
        // What clients reach there is the address itself (KEP-1860).
        let ingress = self.external().into_iter().map(|address| json!({"ip": address, "ipMode": "VIP"}));
        let ingress: Vec<Value> = ingress.collect();
        let mut pools: Vec<&str> = self.given.iter().filter_map(Given::pool).collect();
        pools.dedup();
        let mut status = json!({
            "loadBalancer": if ingress.is_empty() { json!({}) } else { json!({"ingress": ingress}) },
            "type": self.type_name(),
            "addresses": self.external(),
            "pools": pools,
            "reason": problem_of(self.snapshot, &self.object.key).map(|problem| &problem.message),
        });
        let mut set = |field: &str, value: Value| status[field] = value;
        match &self.service.form {
            Form::Attach => {
                let attached = attachments(&self.snapshot.set);
                let attached = attached.into_iter().find(|attachment| attachment.service_key() == self.object.key);
                let port = attached.as_ref().map(|attachment| attachment.port.key.path());
                // It has all L4 ports, and one port behind it.
                set("ports", json!(["all"]));
                set("backends", json!(port));
                set("port", json!(port));
                set("mode", json!(attached.map(|attachment| attachment_mode(&self.snapshot.set, &attachment))));
                return status;
            }
            Form::ExternalName(name) => {
                set("externalName", json!(name));
                return status;
            }
            Form::Headless => set("clusterIPs", json!(["None"])),
            Form::ClusterIp | Form::LoadBalancer => set("clusterIPs", json!(self.cluster())),
        }
        let (healthy, all) = self.backends();
        set("network", json!(self.service.network));
        set("ports", json!(self.ports()));
        set("backends", json!(format!("{healthy}/{all}")));
        status
    }

    /// A row of `service.list`.
    pub fn row(&self) -> Value {
        let key = &self.object.key;
        let mut row = json!({
            "namespace": key.namespace,
            "name": key.name,
            "labels": self.object.metadata.labels,
            "origin": self.object.origin.to_string(),
        });
        let status = self.summary();
        for field in [
            "type",
            "network",
            "clusterIPs",
            "addresses",
            "pools",
            "ports",
            "backends",
            "externalName",
            "port",
            "mode",
            "reason",
        ] {
            if !status[field].is_null() {
                row[field] = status[field].clone();
            }
        }
        row
    }

    /// `service.get`, without events.
    pub fn describe(&self) -> Value {
        let mut view = self.row();
        view["conditions"] = json!(self.conditions());
        view["dnsName"] = json!(self.dns_name());
        if let Form::Attach | Form::ExternalName(_) = self.service.form {
            return view;
        }
        let policy = |local: bool| if local { "Local" } else { "Cluster" };
        let balancing = &self.service.balancing;
        view["selector"] = json!(self.service.selector);
        view["endpoints"] = json!(self.endpoints());
        view["notServed"] =
            json!(self.health.iter().flat_map(|health| &health.serving).flat_map(Serving::gaps).collect::<Vec<_>>());
        view["publishNotReadyAddresses"] = json!(balancing.publish_not_ready);
        view["healthCheck"] = json!(self.object.metadata.annotations.get(annotations::HEALTH_CHECK));
        if self.service.balances() {
            view["externalTrafficPolicy"] = json!(policy(balancing.external_local));
            view["internalTrafficPolicy"] = json!(policy(balancing.internal_local));
            view["sessionAffinitySeconds"] = json!(balancing.affinity_s);
            view["sourceRanges"] = json!(balancing.sources);
            view["allDown"] = json!(format!("{:?}", balancing.all_down).to_lowercase());
            view["drain"] = json!(format!("{:?}", balancing.drain).to_lowercase());
        }
        view
    }

    /// The port that has its addresses, the network of that, and which of them nobody has.
    fn attached(&self) -> Option<(String, &'a str, Vec<IpAddr>)> {
        let mut all = attachments(&self.snapshot.set);
        let attachment = all.find(|attachment| attachment.service_key() == self.object.key)?;
        Some((attachment.port.key.path(), attachment.network(), split(self.snapshot, &attachment).1))
    }

    /// Its whole name.
    fn dns_name(&self) -> Option<String> {
        let domain = &self.snapshot.desired.dns.as_ref()?.domain;
        let key = &self.object.key;
        Some(format!("{}.{}.svc.{domain}", key.name, key.namespace.as_deref().unwrap_or_default()))
    }

    /// Its backends in the words of an EndpointSlice, as they are now.
    fn endpoints(&self) -> Vec<Value> {
        let Some(told) = self.told() else { return Vec::new() };
        let status = self.controller.parts.fabric.service_status(&told.name);
        let state = |port: &ServicePortSpec, endpoint: &EndpointSpec| {
            let is_it = |backend: &&BackendStatus| {
                (&backend.port_name, backend.proto, &backend.name) == (&port.name, port.proto, &endpoint.name)
                    && (backend.address, backend.l4) == (endpoint.address, endpoint.l4)
            };
            status.iter().flat_map(|status: &ServiceStatus| &status.backends).find(is_it).map(|backend| backend.state)
        };
        let of = |port: &'a ServicePortSpec| {
            let json = |endpoint| endpoint_json(&port.name, endpoint, state(port, endpoint));
            port.endpoints.iter().map(json).collect::<Vec<_>>()
        };
        told.ports.iter().flat_map(of).collect()
    }

    /// `80/TCP`, as kubectl has it.
    fn ports(&self) -> Vec<String> {
        let text = |port: &crate::config::checked::ServicePort| {
            let protocol = format!("{:?}", port.protocol).to_uppercase();
            match (*port.l4.start(), *port.l4.end()) {
                (1, u16::MAX) => format!("all/{protocol}"),
                (first, last) if first == last => format!("{first}/{protocol}"),
                (first, last) => format!("{first}-{last}/{protocol}"),
            }
        };
        self.service.ports.iter().map(text).collect()
    }

    /// `spec.type` as written.
    pub fn type_name(&self) -> &'static str {
        use crate::config::raw::service::ServiceType;
        let written = match self.object.raw() {
            RawObject::Service(raw) => raw.spec.service_type,
            _ => None,
        };
        match written.unwrap_or(ServiceType::ClusterIP) {
            ServiceType::ClusterIP => "ClusterIP",
            ServiceType::NodePort => "NodePort",
            ServiceType::LoadBalancer => "LoadBalancer",
            ServiceType::ExternalName => "ExternalName",
        }
    }

    /// `status.conditions`: each has all that `metav1.Condition` must have.
    fn conditions(&self) -> Vec<Value> {
        let key = &self.object.key;
        let since = |kind, holds| self.controller.transitions.since(key, kind, holds);
        let mut conditions = Vec::new();
        if self.service.balances() || self.service.has_pool_address() {
            let problem = problem_of(self.snapshot, key);
            let (reason, message) = match problem {
                Some(problem) => ("Refused", problem.message.clone()),
                None => ("Assigned", String::new()),
            };
            let holds = problem.is_none();
            let since = since(ADDRESSES_ASSIGNED, holds);
            conditions.push(self.condition(ADDRESSES_ASSIGNED, holds, reason, message, since));
        }
        if self.service.form == Form::Attach
            && let Some((port, network, unused)) = self.attached()
        {
            let (reason, message) = match unused.as_slice() {
                [] => ("Attached", String::new()),
                [first, ..] => (
                    "NoSuchFamily",
                    format!("{first} is of no use: network {network} of port {port} has no range of its family"),
                ),
            };
            let holds = unused.is_empty();
            conditions.push(self.condition(ATTACHED, holds, reason, message, since(ATTACHED, holds)));
        }
        if let Some(health) = &self.health {
            let (reason, message) = (ready_reason(health), ready_message(health));
            conditions.push(self.condition("BackendsReady", health.ready, reason, message, health.since));
        }
        if !self.service.selector.is_empty() {
            let foreign = self.snapshot.foreign(key);
            let (reason, message) = match foreign {
                Some(message) => ("OtherNetwork", message.to_owned()),
                None => ("OneNetwork", String::new()),
            };
            let holds = foreign.is_none();
            let since = since(BACKENDS_IN_NETWORK, holds);
            conditions.push(self.condition(BACKENDS_IN_NETWORK, holds, reason, message, since));
        }
        let records = self.controller.parts.fabric.external_dns().records_of(&key.path());
        if let Some(ExternalRecords { ready, reason, message, since }) = records {
            conditions.push(self.condition("ExternalRecords", ready, reason, message, since));
        }
        conditions
    }

    fn condition(&self, kind: &str, holds: bool, reason: &str, message: String, since: SystemTime) -> Value {
        let mut condition = json!({
            "type": kind,
            "status": if holds { "True" } else { "False" },
            "reason": reason,
            "message": message,
            "lastTransitionTime": rfc3339_seconds(since),
        });
        // An object of a file has no revision of its own.
        if let Some((_, identity)) = self.snapshot.stored.get(&self.object.key) {
            condition["observedGeneration"] = json!(identity.revision);
        }
        condition
    }
}

/// Whether the Service has the addresses that it asks for.
pub const ADDRESSES_ASSIGNED: &str = "AddressesAssigned";
/// Whether the port that it is attached to has all of its addresses.
pub const ATTACHED: &str = "Attached";
/// Whether all ports that it selects are in its network (SEMANTICS SV24).
pub const BACKENDS_IN_NETWORK: &str = "BackendsInNetwork";

/// Why backends are ready, or not.
fn ready_reason(health: &ServiceHealth) -> &'static str {
    let any = |states: &[BackendState]| states.iter().any(|state| health.count(*state) > 0);
    match health.healthy() {
        _ if health.total() == 0 => "NoBackends",
        _ if health.ready => "Ready",
        1.. => "PortNotServed",
        0 if any(&[BackendState::Unhealthy, BackendState::Ejected, BackendState::Flapping]) => "NoneHealthy",
        0 if any(&[BackendState::Unchecked]) => "NotChecked",
        0 if any(&[BackendState::Stopped, BackendState::Awaited]) => "NotRunning",
        0 if any(&[BackendState::Drained]) => "Drained",
        0 => "NoneReady",
    }
}

/// `1 of 3 backends are healthy; 2 stopped`.
fn ready_message(health: &ServiceHealth) -> String {
    let others = health.backends.iter().filter(|(state, _)| *state != BackendState::Healthy);
    let mut parts = vec![format!("{} of {} backends are healthy", health.healthy(), health.total())];
    parts.extend(others.map(|(state, count)| format!("{count} {}", state.name())));
    parts.extend(
        health.serving.iter().flat_map(Serving::gaps).map(|place| format!("none takes connections at {place}")),
    );
    parts.join("; ")
}

/// `state`: how it is; what its object says where nobody knows.
fn endpoint_json(port: &str, endpoint: &EndpointSpec, state: Option<BackendState>) -> Value {
    let (ready, terminating) = match (state, endpoint.condition) {
        (Some(state), condition) => (state == BackendState::Healthy, condition == Condition::Terminating),
        (None, condition) => (condition == Condition::Ready, condition == Condition::Terminating),
    };
    let serving = ready || state.map_or(terminating, |state| state == BackendState::Terminating);
    let mut view = json!({
        "addresses": [endpoint.address],
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        "state": state.map(BackendState::name),
        "portName": port,
        "port": endpoint.l4,
        "weight": endpoint.weight,
        "internal": endpoint.internal,
        "external": endpoint.external,
    });
    if let (Some(_), Some((namespace, name))) = (endpoint.port, endpoint.name.split_once('/')) {
        view["targetRef"] = json!({"kind": "Port", "namespace": namespace, "name": name});
    }
    view
}

/// The cluster addresses among what a Service was given.
pub fn cluster_addresses(given: &[Given]) -> Vec<IpAddr> {
    given.iter().filter(|given| given.network().is_some()).map(|given| given.address).collect()
}

/// An object as `get` shows it, if it is a Service with what it was given.
pub fn filled(object: &Object, given: &[Given], set: &ObjectSet) -> Object {
    let network = match &object.spec {
        Spec::Service(service) => set.network(&service.network),
        _ => None,
    };
    object.with_cluster_addresses(&cluster_addresses(given), network)
}

/// What the packet path is told about a Service.
pub fn told<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Option<&'a ServiceSpec> {
    let services = &snapshot.desired.services;
    let wanted = (key.namespace.as_deref().unwrap_or_default(), key.name.as_str());
    // They come in the order of their keys.
    let found = services.binary_search_by(|spec| spec.name.split_once('/').unwrap_or_default().cmp(&wanted));
    found.ok().and_then(|at| services.get(at)).map(|spec| &**spec)
}

/// `status` of an EndpointSlice.
pub fn endpoint_slice(object: &Object, slice: &EndpointSlice) -> Value {
    let service = slice
        .service
        .as_deref()
        .map(|name| ObjectKey::new(crate::config::Kind::Service, object.key.namespace.as_deref(), name).path());
    let port =
        |port: &crate::config::checked::EndpointPort| port.port.map_or("all".to_owned(), |port| port.to_string());
    json!({
        "service": service,
        "ports": slice.ports.iter().map(port).collect::<Vec<_>>(),
        "endpoints": slice.endpoints.iter().map(|endpoint| endpoint.address).collect::<Vec<_>>(),
    })
}
