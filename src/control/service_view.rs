//! What people and programs are told about Services: the `status` of their objects, as a user of Kubernetes expects it.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::controller::Snapshot;
use super::outside_view::{attachment_mode, split};
use super::view::problem_of;
use crate::config::ObjectKey;
use crate::config::checked::{EndpointSlice, Form, Object, Service, annotations};
use crate::config::outside::{Given, attachments};
use crate::config::raw::RawObject;
use crate::fabric::spec::{Condition, EndpointSpec, ServicePortSpec, ServiceSpec};
use crate::services::dns::spec::{EndpointRecords, ServiceRecords, ServiceTarget};

/// A Service, with what was given to it and who stands behind it.
pub struct ServiceView<'a> {
    snapshot: &'a Snapshot,
    object: &'a Object,
    service: &'a Service,
    given: &'a [Given],
}

impl<'a> ServiceView<'a> {
    /// The view of one Service of `snapshot`.
    pub fn new(snapshot: &'a Snapshot, object: &'a Object, service: &'a Service) -> Self {
        let given = snapshot.services.get(&object.key).map(Vec::as_slice).unwrap_or_default();
        Self { snapshot, object, service, given }
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

    /// Backends that are ready, and all of them, as far as objects say.
    pub fn backends(&self) -> (usize, usize) {
        if let Some(told) = self.told() {
            let Some(port) = told.ports.iter().max_by_key(|port| port.endpoints.len()) else { return (0, 0) };
            let mut all: Vec<(&str, bool)> = port
                .endpoints
                .iter()
                .map(|endpoint| (endpoint.name.as_str(), endpoint.condition == Condition::Ready))
                .collect();
            // One of both families counts once.
            all.sort_unstable();
            all.dedup_by_key(|(name, _)| *name);
            return (all.iter().filter(|(_, ready)| *ready).count(), all.len());
        }
        match records(self.snapshot, &self.object.key).map(|records| &records.target) {
            Some(ServiceTarget::Headless { endpoints, .. }) => {
                (endpoints.iter().filter(|endpoint| endpoint.ready).count(), endpoints.len())
            }
            _ => (0, 0),
        }
    }

    /// `status` of the object.
    pub fn status(&self) -> Value {
        let ingress: Vec<Value> = self.external().iter().map(|address| json!({"ip": address})).collect();
        let mut pools: Vec<&str> = self.given.iter().filter_map(Given::pool).collect();
        pools.dedup();
        let mut status = json!({
            "loadBalancer": if ingress.is_empty() { json!({}) } else { json!({"ingress": ingress}) },
            "conditions": self.conditions(),
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
        let (ready, all) = self.backends();
        set("network", json!(self.service.network));
        set("ports", json!(self.ports()));
        set("backends", json!(format!("{ready}/{all}")));
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
        let status = self.status();
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
        view["publishNotReadyAddresses"] = json!(balancing.publish_not_ready);
        if self.service.balances() {
            view["externalTrafficPolicy"] = json!(policy(balancing.external_local));
            view["internalTrafficPolicy"] = json!(policy(balancing.internal_local));
            view["sessionAffinitySeconds"] = json!(balancing.affinity_s);
            view["sourceRanges"] = json!(balancing.sources);
            view["healthCheck"] = json!(self.object.metadata.annotations.get(annotations::HEALTH_CHECK));
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

    /// Its backends in the words of an EndpointSlice, as far as objects say.
    fn endpoints(&self) -> Vec<Value> {
        if let Some(told) = self.told() {
            let of =
                |port: &'a ServicePortSpec| port.endpoints.iter().map(|endpoint| endpoint_json(&port.name, endpoint));
            return told.ports.iter().flat_map(of).collect();
        }
        let Some(ServiceTarget::Headless { endpoints, .. }) =
            records(self.snapshot, &self.object.key).map(|records| &records.target)
        else {
            return Vec::new();
        };
        let json = |endpoint: &EndpointRecords| {
            json!({
                "addresses": endpoint.addresses,
                "hostname": endpoint.hostname,
                "conditions": {"ready": endpoint.ready},
            })
        };
        endpoints.iter().map(json).collect()
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

    /// `status.conditions`.
    fn conditions(&self) -> Vec<Value> {
        let condition = |kind: &str, holds: bool, reason: &str, message: String| json!({"type": kind, "status": if holds { "True" } else { "False" }, "reason": reason, "message": message});
        let mut conditions = Vec::new();
        if self.service.balances() || self.service.has_pool_address() {
            let problem = problem_of(self.snapshot, &self.object.key);
            conditions.push(match problem {
                Some(problem) => condition("AddressesAssigned", false, "Refused", problem.message.clone()),
                None => condition("AddressesAssigned", true, "Assigned", String::new()),
            });
        }
        if self.service.form == Form::Attach {
            conditions.extend(self.attached().map(|(port, network, unused)| match unused.as_slice() {
                [] => condition("Attached", true, "Attached", String::new()),
                [first, ..] => {
                    let message =
                        format!("{first} is of no use: network {network} of port {port} has no range of its family");
                    condition("Attached", false, "NoSuchFamily", message)
                }
            }));
        }
        if matches!(self.service.form, Form::ClusterIp | Form::LoadBalancer | Form::Headless) {
            let (ready, all) = self.backends();
            let reason = match (ready, all) {
                (_, 0) => "NoBackends",
                (0, _) => "NoneReady",
                _ => "Ready",
            };
            conditions.push(condition(
                "BackendsReady",
                ready > 0,
                reason,
                format!("{ready} of {all} backends are ready"),
            ));
        }
        conditions
    }
}

fn endpoint_json(port: &str, endpoint: &EndpointSpec) -> Value {
    let (ready, terminating) = match endpoint.condition {
        Condition::Ready => (true, false),
        Condition::Terminating => (false, true),
        Condition::NotReady => (false, false),
    };
    let mut view = json!({
        "addresses": [endpoint.address],
        "conditions": {"ready": ready, "serving": ready || terminating, "terminating": terminating},
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

/// What the packet path is told about a Service.
pub fn told<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Option<&'a ServiceSpec> {
    let services = &snapshot.desired.services;
    let wanted = (key.namespace.as_deref().unwrap_or_default(), key.name.as_str());
    // They come in the order of their keys.
    let found = services.binary_search_by(|spec| spec.name.split_once('/').unwrap_or_default().cmp(&wanted));
    found.ok().and_then(|at| services.get(at)).map(|spec| &**spec)
}

/// What DNS is told about a Service.
fn records<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Option<&'a ServiceRecords> {
    let services = &snapshot.desired.dns.as_ref()?.services;
    let wanted = (key.namespace.as_deref().unwrap_or_default(), key.name.as_str());
    let found = services.binary_search_by(|of| (of.namespace.as_str(), of.name.as_str()).cmp(&wanted));
    found.ok().and_then(|at| services.get(at)).map(|of| &**of)
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
