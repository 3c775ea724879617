//! What reaches beyond the networks: uplink, NAT pools, Services and the ports that have their addresses.
//!
//! `check` refuses what contradicts itself, `addresses` gives each Service its address, `resolve` says what the packet
//! path is to do.

pub mod addresses;
mod check;
mod cluster;
mod dubious;
mod held;
mod pools;
mod resolve;

use std::net::IpAddr;

use super::checked::{AddressPool, NatPool, Object, Port, Service, Spec, annotations};
use super::kind::{Kind, ObjectKey};
use super::node::Path;
use super::set::ObjectSet;

pub use addresses::{Given, GivenOf, ServiceAddresses, ServicePlan};
pub(super) use check::{check, check_service};
pub use dubious::dubious;
pub use held::held;
pub use resolve::{egress_of, routed_range};
pub(super) use resolve::{pool_type, pools_of, resolve};

/// A port that has the address of a Service.
#[derive(Clone, Copy)]
pub struct Attachment<'a> {
    /// The port.
    pub port: &'a Object,
    /// Where the annotation stands: the port or its Pod.
    pub written: &'a Object,
    /// Name of the Service, in the port's namespace.
    pub service: &'a str,
}

impl Attachment<'_> {
    /// Key of the Service.
    pub fn service_key(&self) -> ObjectKey {
        ObjectKey::new(Kind::Service, self.port.key.namespace.as_deref(), self.service)
    }

    /// Whether packets are translated 1:1: as the port says, else as the Service does.
    pub fn one_to_one(&self, set: &ObjectSet) -> bool {
        let on_port = annotation(set, self.port, annotations::ATTACH_MODE).map(|(_, mode)| mode == "nat");
        let on_service = service(set, &self.service_key()).and_then(|(_, service)| service.one_to_one);
        on_port.or(on_service).unwrap_or(false)
    }
}

impl<'a> Attachment<'a> {
    /// Name of the network that the port is in.
    pub fn network(&self) -> &'a str {
        match &self.port.spec {
            Spec::Port(port) => &port.network,
            _ => "",
        }
    }

    /// Splits what the Service was given into addresses that the port has, and those that are of no use: its network has no range of
    /// their family.
    pub fn split(&self, set: &ObjectSet, given: &'a [Given]) -> (Vec<&'a Given>, Vec<&'a Given>) {
        let network = set.network(self.network());
        given.iter().partition(|given| {
            network.is_some_and(|network| match given.address {
                IpAddr::V4(_) => network.v4.is_some(),
                IpAddr::V6(_) => network.v6.is_some(),
            })
        })
    }
}

/// Where the annotation stands that attaches an address.
fn attach_path() -> Path {
    annotations::path_of(annotations::ATTACH)
}

/// The ports that have the address of a Service, by namespace and name.
pub fn attachments(set: &ObjectSet) -> impl Iterator<Item = Attachment<'_>> {
    set.ports().filter_map(|(key, _, _)| attachment(set, key))
}

/// The Service whose address a port has.
pub fn attachment<'a>(set: &'a ObjectSet, port: &ObjectKey) -> Option<Attachment<'a>> {
    let port = &**set.get(port)?;
    let (written, service) = annotation(set, port, annotations::ATTACH)?;
    Some(Attachment { port, written, service })
}

/// The port that has the address of a Service.
pub fn attached_to<'a>(set: &'a ObjectSet, service: &ObjectKey) -> Option<&'a Port> {
    let attached = attachments(set).find(|attachment| attachment.service_key() == *service)?;
    match &attached.port.spec {
        Spec::Port(port) => Some(port),
        _ => None,
    }
}

/// An annotation of a port, or of the Pod of its name, and where it stands.
fn annotation<'a>(set: &'a ObjectSet, port: &'a Object, key: &str) -> Option<(&'a Object, &'a str)> {
    let pod = set.get(&ObjectKey::new(Kind::Pod, port.key.namespace.as_deref(), &port.key.name));
    let written = [Some(port), pod.map(|pod| &**pod)];
    written.into_iter().flatten().find_map(|object| Some((object, object.metadata.annotations.get(key)?.as_str())))
}

/// A Service.
pub fn service<'a>(set: &'a ObjectSet, key: &ObjectKey) -> Option<(&'a Object, &'a Service)> {
    let object = &**set.get(key)?;
    match &object.spec {
        Spec::Service(service) => Some((object, service)),
        _ => None,
    }
}

/// The Services, by namespace and name.
pub fn services(set: &ObjectSet) -> impl Iterator<Item = (&Object, &Service)> {
    set.of_kind(Kind::Service).filter_map(|object| match &object.spec {
        Spec::Service(service) => Some((&**object, service)),
        _ => None,
    })
}

/// The pools of NAT addresses, by name.
pub fn nat_pools(set: &ObjectSet) -> impl Iterator<Item = (&Object, &NatPool)> {
    set.of_kind(Kind::NatPool).filter_map(|object| match &object.spec {
        Spec::NatPool(pool) => Some((&**object, pool)),
        _ => None,
    })
}

/// The pools of addresses for Services, by name.
pub fn address_pools(set: &ObjectSet) -> impl Iterator<Item = (&Object, &AddressPool)> {
    set.of_kind(Kind::AddressPool).filter_map(|object| match &object.spec {
        Spec::AddressPool(pool) => Some((&**object, pool)),
        _ => None,
    })
}
