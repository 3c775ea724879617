//! The host's own interface in a network (`HostConfig.spec.hostAccess`): a port like any other that nobody writes, in a
//! namespace of its own. So addresses, policies, counters and DNS need to know nothing about it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;

use hostweave_switch::tables::ROUTER_LINK_LOCAL;
use ipnet::IpNet;
use serde_json::json;

use super::checked::{Backend, HostAccess, HostConfig, Network, Object, Origin, Spec};
use super::diagnostic::{Diagnostic, Diagnostics};
use super::kind::{Kind, ObjectKey};
use super::names::closest;
use super::node::Path;
use super::problem::Problem;
use crate::fabric::spec::{BackendSpec, HostRoute};

/// Namespace of the port; there without being written as long as the port is.
pub const NAMESPACE: &str = "hostweave-system";

/// Name of the port.
const NAME: &str = "host";

/// Label of the port, by which policies select it; its value is `true`.
const LABEL: &str = "hostweave.dev/host-access";

/// Adds port and namespace, if the host asks for them. A written namespace stays.
pub fn add(objects: &mut BTreeMap<ObjectKey, Arc<Object>>, host: &HostConfig, found: &mut Vec<Diagnostic>) {
    let Some(access) = &host.host_access else { return };
    if !objects.contains_key(&ObjectKey::new(Kind::Network, None, &access.network)) {
        let networks = objects.keys().filter(|key| key.kind == Kind::Network).map(|key| key.name.as_str());
        let similar = closest(&access.network, networks);
        let label = similar.map_or("not there".to_owned(), |similar| format!("did you mean {similar}?"));
        let message = format!("Network {} does not exist", access.network);
        let problem = Problem::value(&Path::of("spec.hostAccess.network"), "not_found", message).label(label);
        let written = objects.values().find(|object| object.key.kind == Kind::HostConfig);
        return found.extend(written.map(|object| object.diagnose(problem)));
    }
    let (namespace, port) = match made(access) {
        Ok(made) => made,
        Err(problems) => return found.extend(problems.0),
    };
    objects.entry(namespace.key.clone()).or_insert_with(|| Arc::new(namespace));
    match objects.entry(port.key.clone()) {
        Entry::Vacant(slot) => drop(slot.insert(Arc::new(port))),
        Entry::Occupied(other) => {
            let message = format!("{} is the host's own port, which HostConfig.spec.hostAccess makes", port.key);
            let problem = Problem::value(&Path::of("metadata.name"), "conflict", message).label("taken");
            found.push(other.get().diagnose(problem.help("give this port another name")));
        }
    }
}

/// What would have been written.
fn made(access: &HostAccess) -> Result<(Object, Object), Diagnostics> {
    let namespace = json!({
        "apiVersion": Kind::Namespace.api_version(),
        "kind": Kind::Namespace.to_string(),
        "metadata": {"name": NAMESPACE},
    });
    let port = json!({
        "apiVersion": Kind::Port.api_version(),
        "kind": Kind::Port.to_string(),
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": {LABEL: "true"}},
        "spec": {"network": access.network, "backend": {"tap": {"name": access.interface}}},
    });
    let (namespace, _) = Object::from_json(&namespace, Origin::BuiltIn)?;
    let (mut port, _) = Object::from_json(&port, Origin::BuiltIn)?;
    if let Spec::Port(port) = &mut port.spec {
        port.backend = Backend::Host(access.interface.clone());
    }
    Ok((namespace, port))
}

/// The device, and how the host reaches the network: everything through the gateway, Services too, as other ports do.
pub fn backend(device: &str, network: &Network) -> BackendSpec {
    let v4 = network.v4.map(|(net, gateway)| (IpNet::V4(net), IpAddr::V4(gateway)));
    let v6 = network.v6.map(|(net, _)| (IpNet::V6(net), IpAddr::V6(ROUTER_LINK_LOCAL)));
    let routes = v4.into_iter().chain(v6).flat_map(|(own, via)| {
        let services = network.service_ranges().filter(move |to| to.addr().is_ipv4() == via.is_ipv4());
        std::iter::once(own).chain(services).map(move |to| HostRoute { to, via })
    });
    BackendSpec::Host { name: device.to_owned(), mtu: network.mtu, routes: routes.collect() }
}
