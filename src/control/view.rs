//! What people and programs are told about ports and other objects: JSON with stable names.

use std::net::IpAddr;
use std::path::PathBuf;

use hostweave_policy::model::DefaultPolicy;
use hostweave_switch::counters::PortTotals;
use hostweave_switch::stage::DropReason;
use serde_json::{Map, Value, json};

use super::controller::{Controller, Snapshot};
use super::service_view::ServiceView;
use super::{outside_view, policy_view, service_view};
use crate::config::checked::{Backend, Object, Port, Spec};
use crate::config::desired::{default_socket, incoming_socket};
use crate::config::{Diagnostic, Kind, ObjectKey};
use crate::fabric::spec::{AttachmentStatus, PortStatus, SocketMode};
use crate::fabric::{Affected, AffectedFlow, Impact};
use crate::observe::synthetic::{address, protocol_name};

/// States of a port, as `state` says them. The list is closed.
pub const PORT_STATES: &[&str] =
    &["running", "connected", "waiting-for-frontend", "waiting-for-device", "faulted", "down", "blocked"];

/// A port with its state.
pub struct PortView<'a> {
    /// Its object.
    pub object: &'a Object,
    /// What it says.
    pub port: &'a Port,
    snapshot: &'a Snapshot,
    controller: &'a Controller,
    status: Option<PortStatus>,
}

impl<'a> PortView<'a> {
    /// The view of one port of `snapshot`.
    pub fn new(controller: &'a Controller, snapshot: &'a Snapshot, key: &ObjectKey) -> Option<Self> {
        let object = snapshot.set.get(key)?;
        let Spec::Port(port) = &object.spec else { return None };
        let status = controller.parts.fabric.port_status(&key.path());
        Some(Self { object, port, snapshot, controller, status })
    }

    /// What its attachments say, if the packet path has it.
    pub fn status(&self) -> Option<&PortStatus> {
        self.status.as_ref()
    }

    /// One of [`PORT_STATES`], and why.
    pub fn state(&self) -> (&'static str, Option<String>) {
        if let Some(problem) = problem_of(self.snapshot, &self.object.key) {
            return ("blocked", Some(problem.message.clone()));
        }
        let Some(active) = self.status.as_ref().and_then(|status| status.attachments.first()) else {
            return ("waiting-for-device", None);
        };
        match active.state {
            _ if !self.port.up => ("down", None),
            state => (state, active.fault.clone()),
        }
    }

    /// Whether somebody should look at it.
    pub fn degraded(&self) -> Option<String> {
        let (state, reason) = self.state();
        let bad = matches!(state, "faulted" | "blocked") || state == "waiting-for-device" && reason.is_some();
        let reason = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
        bad.then(|| format!("port {} is {state}{reason}", self.object.key.path()))
    }

    /// The socket and which side listens, for a vhost-user port.
    pub fn socket(&self) -> Option<(SocketMode, PathBuf)> {
        let Backend::VhostUser(backend) = &self.port.backend else { return None };
        let path = backend.socket.clone();
        let path = path.unwrap_or_else(|| default_socket(&self.controller.parts.runtime, &self.object.key));
        Some((backend.mode, path))
    }

    /// The second socket of a listening port.
    pub fn incoming(&self) -> Option<PathBuf> {
        self.socket().filter(|(mode, _)| *mode == SocketMode::Listen).map(|(_, path)| incoming_socket(&path))
    }

    /// Queue pairs offered.
    pub fn queues(&self) -> u16 {
        match &self.port.backend {
            Backend::VhostUser(backend) => backend.queues.unwrap_or(self.snapshot.set.host().defaults.queues),
            Backend::Tap(_) | Backend::Host(_) => 1,
        }
    }

    /// All its addresses, those first that DHCP hands out.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let Some(assignment) = self.snapshot.assignments.get(&self.object.key) else { return Vec::new() };
        let attached = outside_view::direct_addresses(self.snapshot, &self.object.key);
        let own = attached.into_iter().chain(assignment.all_v4(self.port).into_iter().map(IpAddr::from));
        own.chain(assignment.all_v6(self.port).into_iter().map(IpAddr::from)).collect()
    }

    /// `port.get` and the rows of `port.list`.
    pub fn to_json(&self) -> Value {
        let key = &self.object.key;
        let assignment = self.snapshot.assignments.get(key);
        let (state, reason) = self.state();
        let addresses = self.addresses();
        let mut view = json!({
            "namespace": key.namespace,
            "name": key.name,
            "labels": self.snapshot.set.labels(key),
            "network": self.port.network,
            "ip": addresses.first(),
            "addresses": addresses,
            "mac": assignment.map(|assignment| assignment.mac.to_string()),
            "uid": assignment.map(|assignment| assignment.uid),
            "adminState": if self.port.up { "up" } else { "down" },
            "state": state,
            "origin": self.object.origin.to_string(),
        });
        let mut set = |name: &str, value: Value| {
            if let (Value::Object(fields), false) = (&mut view, value.is_null()) {
                fields.insert(name.to_owned(), value);
            }
        };
        set("reason", json!(reason));
        set("learned", assignment.map_or(Value::Null, |assignment| json!(assignment.learned)));
        set("attached", json!(outside_view::attached(self.snapshot, key)));
        if let Some((mode, path)) = self.socket() {
            set("backend", json!("vhostUser"));
            set("mode", json!(if mode == SocketMode::Listen { "listen" } else { "connect" }));
            set("socketPath", json!(path));
            set("queues", json!(self.queues()));
        }
        if let Backend::Tap(tap) = &self.port.backend {
            set("backend", json!("tap"));
            set("device", json!(tap.name));
            set("netns", json!(tap.netns));
        }
        if let Backend::Host(name) = &self.port.backend {
            set("backend", json!("host"));
            set("device", json!(name));
        }
        view
    }

    /// `port.describe` without events.
    pub fn describe(&self) -> Value {
        let mut view = self.to_json();
        if let Value::Object(fields) = &mut view {
            let network = self.snapshot.set.network(&self.port.network);
            fields.insert("mtu".into(), json!(network.map(|network| network.mtu)));
            fields.insert("gateways".into(), json!(network.map(gateways).unwrap_or_default()));
            fields.insert("hostname".into(), json!(self.port.hostname));
            fields.insert("incomingSocketPath".into(), json!(self.incoming()));
            let attachments = self.status.iter().flat_map(|status| &status.attachments).map(attachment).collect();
            fields.insert("attachments".into(), Value::Array(attachments));
            fields.insert("counters".into(), self.counters());
        }
        view
    }

    /// Counters, with drops by reason.
    pub fn counters(&self) -> Value {
        self.status.as_ref().map_or(Value::Null, |status| counters(&status.totals))
    }
}

/// Counters of a port, or of all of them added up.
pub fn counters(totals: &PortTotals) -> Value {
    let drops = |drops: &[(DropReason, u64)]| -> Map<String, Value> {
        drops.iter().map(|(reason, count)| (reason.name().to_owned(), json!(count))).collect()
    };
    json!({
        "receivedPackets": totals.received,
        "receivedBytes": totals.received_bytes,
        "transmittedPackets": totals.transmitted,
        "transmittedBytes": totals.transmitted_bytes,
        "forwarded": totals.forwarded,
        "replied": totals.replied,
        "originated": totals.originated,
        "extraSegments": totals.extra_segments,
        "queued": totals.queued,
        "transmitQueued": totals.tx_queued,
        "interrupts": totals.calls,
        "bursts": totals.bursts,
        "dropped": drops(&totals.dropped),
        "transmitDropped": drops(&totals.tx_dropped),
        "ledgerCloses": totals.input_closes(),
    })
}

fn attachment(status: &AttachmentStatus) -> Value {
    let mut view = json!({
        "path": status.path,
        "state": status.state,
        "active": status.active,
        "queuePairs": status.queue_pairs,
        "features": feature_names(status.features),
    });
    if let Value::Object(fields) = &mut view {
        if let Some(fault) = &status.fault {
            fields.insert("fault".into(), json!(fault));
        }
        if let Some((pid, uid)) = status.peer {
            fields.insert("peer".into(), json!({"pid": pid, "uid": uid}));
        }
        if let Some((bytes, huge)) = status.memory {
            fields.insert("memory".into(), json!({"bytes": bytes, "hugePages": huge}));
        }
    }
    view
}

/// Names of virtio-net feature bits (VIRTIO 1.3 §5.1.3, §6), for people.
fn feature_names(features: u64) -> Vec<String> {
    const NAMES: &[(u32, &str)] = &[
        (0, "csum"),
        (1, "guest_csum"),
        (3, "mtu"),
        (7, "guest_tso4"),
        (8, "guest_tso6"),
        (9, "guest_ecn"),
        (10, "guest_ufo"),
        (11, "host_tso4"),
        (12, "host_tso6"),
        (13, "host_ecn"),
        (14, "host_ufo"),
        (15, "mrg_rxbuf"),
        (16, "status"),
        (17, "ctrl_vq"),
        (21, "guest_announce"),
        (22, "mq"),
        (26, "log_all"),
        (28, "indirect_desc"),
        (29, "event_idx"),
        (30, "protocol_features"),
        (32, "version_1"),
        (33, "access_platform"),
        (34, "ring_packed"),
        (35, "in_order"),
        (54, "guest_uso4"),
        (55, "guest_uso6"),
        (56, "host_uso"),
    ];
    let name = |bit: u32| NAMES.iter().find(|(known, _)| *known == bit).map(|(_, name)| (*name).to_owned());
    (0..64).filter(|bit| features >> bit & 1 == 1).map(|bit| name(bit).unwrap_or(format!("bit_{bit}"))).collect()
}

/// A network's gateways.
fn gateways(network: &crate::config::checked::Network) -> Vec<IpAddr> {
    let v4 = network.v4.map(|(_, gateway)| IpAddr::from(gateway));
    v4.into_iter().chain(network.v6.map(|(_, gateway)| IpAddr::from(gateway))).collect()
}

/// What stands in the way of an object.
pub fn problem_of<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Option<&'a Diagnostic> {
    let name = key.to_string();
    snapshot.problems.iter().find(|problem| problem.object.as_ref() == Some(&name))
}

/// An object with where it comes from and what became of it; its YAML goes back into `apply` unchanged.
pub fn object(controller: &Controller, snapshot: &Snapshot, object: &Object) -> Value {
    let identity = snapshot.stored.get(&object.key).map(|(_, identity)| identity);
    let assigned = snapshot.assignments.get(&object.key).map(|assignment| assignment.uid);
    let given = snapshot.services.get(&object.key).map(Vec::as_slice).unwrap_or_default();
    let filled = service_view::filled(object, given, &snapshot.set);
    let shown = filled
        .with_identity(assigned.or(identity.map(|identity| identity.uid)), identity.map(|identity| identity.revision));
    // The file's author writes neither: `get -o yaml` of a file's object is what the file says.
    let yaml = if identity.is_some() { shown.to_yaml() } else { filled.to_yaml() };
    let mut json = shown.to_json();
    let status = status(controller, snapshot, object);
    if let (Value::Object(fields), false) = (&mut json, status.is_null()) {
        fields.insert("status".into(), status);
    }
    json!({"object": json, "yaml": yaml, "origin": object.origin.to_string()})
}

/// As [`object`], with what takes longer to find out than a list should take.
pub fn described(controller: &Controller, snapshot: &Snapshot, of: &Object) -> Value {
    let mut view = object(controller, snapshot, of);
    if let Spec::NetworkPolicy(_) | Spec::ClusterNetworkPolicy(_) = &of.spec {
        view["object"]["status"] = policy_view::described(&snapshot.set, of);
    }
    view
}

/// What a draft would mean for the traffic that there is.
pub fn impact(impact: &Impact) -> Value {
    json!({
        "connections": impact.connections,
        "broken": affected(&impact.broken),
        "denied": impact.denied,
        "admitted": affected(&impact.admitted),
    })
}

fn affected(affected: &Affected) -> Value {
    let flow = |flow: &AffectedFlow| {
        let ip = |address: u128| IpAddr::from(std::net::Ipv6Addr::from(address)).to_canonical();
        let ports = flow.key.l4_dst_port().is_some();
        json!({
            "from": flow.from,
            "to": flow.to,
            "source": address(ip(flow.key.src()), ports.then(|| flow.key.src_port())),
            "destination": address(ip(flow.key.dst()), flow.key.l4_dst_port()),
            "protocol": protocol_name(flow.key.proto()),
            "why": flow.why,
        })
    };
    json!({"count": affected.count, "flows": affected.named.iter().map(flow).collect::<Vec<_>>()})
}

fn default_policy(policy: DefaultPolicy) -> &'static str {
    match policy {
        DefaultPolicy::Allow => "allow",
        DefaultPolicy::Deny => "deny",
    }
}

fn status(controller: &Controller, snapshot: &Snapshot, object: &Object) -> Value {
    match &object.spec {
        Spec::Port(_) => PortView::new(controller, snapshot, &object.key).map_or(Value::Null, |view| view.to_json()),
        Spec::Network(network) => {
            let ports = snapshot.set.ports().filter(|(_, _, port)| port.network == object.key.name).count();
            let cidrs = network.v4.map(|(net, _)| net.to_string()).into_iter();
            let cidrs: Vec<String> = cidrs.chain(network.v6.map(|(net, _)| net.to_string())).collect();
            let egress = outside_view::egress(snapshot, &object.key.name, network);
            json!({
                "cidrs": cidrs,
                "gateways": gateways(network),
                "mtu": network.mtu,
                "vni": network.vni,
                "ports": ports,
                "egress": egress,
            })
        }
        Spec::HostConfig(host) => json!({
            "workers": host.workers,
            "defaultPolicy": default_policy(host.default_policy),
        }),
        Spec::Namespace(namespace) => {
            let count = |kind| snapshot.set.of_namespace(kind, &object.key.name).count();
            json!({
                "ports": count(Kind::Port),
                "policies": count(Kind::NetworkPolicy),
                "defaultPolicy": default_policy(namespace.default.unwrap_or(snapshot.set.host().default_policy)),
            })
        }
        Spec::NetworkPolicy(_) | Spec::ClusterNetworkPolicy(_) => policy_view::status(&snapshot.set, object),
        Spec::NatPool(pool) => outside_view::nat_pool(snapshot, pool),
        Spec::AddressPool(pool) => outside_view::address_pool(snapshot, object, pool),
        Spec::Service(service) => ServiceView::new(controller, snapshot, object, service).status(),
        Spec::EndpointSlice(slice) => service_view::endpoint_slice(object, slice),
        Spec::Pod => {
            let port = ObjectKey::new(Kind::Port, object.key.namespace.as_deref(), &object.key.name);
            json!({"port": snapshot.set.get(&port).map(|_| port.path())})
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_have_names() {
        assert_eq!(feature_names(1 | 1 << 32 | 1 << 63), ["csum", "version_1", "bit_63"]);
    }
}
