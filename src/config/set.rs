//! The whole of the objects of a host, checked together.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::checked::{HostConfig, Network, Object, Port, Spec};
use super::diagnostic::{Diagnostic, Diagnostics};
use super::kind::{Kind, ObjectKey};

/// Objects that agree with each other, the built-in ones included. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct ObjectSet {
    objects: Arc<BTreeMap<ObjectKey, Arc<Object>>>,
    host: Arc<HostConfig>,
}

impl ObjectSet {
    /// The object with this key.
    pub fn get(&self, key: &ObjectKey) -> Option<&Arc<Object>> {
        self.objects.get(key)
    }

    /// Every object, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&ObjectKey, &Arc<Object>)> {
        self.objects.iter()
    }

    /// The objects of one kind, by namespace and name.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Arc<Object>> {
        self.objects.iter().filter(move |(key, _)| key.kind == kind).map(|(_, object)| object)
    }

    /// The ports, by namespace and name.
    pub fn ports(&self) -> impl Iterator<Item = (&ObjectKey, &Object, &Port)> {
        self.of_kind(Kind::Port).filter_map(|object| match &object.spec {
            Spec::Port(port) => Some((&object.key, &**object, port)),
            _ => None,
        })
    }

    /// The networks, by name.
    pub fn networks(&self) -> impl Iterator<Item = (&str, &Network)> {
        self.of_kind(Kind::Network).filter_map(|object| match &object.spec {
            Spec::Network(network) => Some((object.key.name.as_str(), network)),
            _ => None,
        })
    }

    /// The network with this name.
    pub fn network(&self, name: &str) -> Option<&Network> {
        match &self.get(&ObjectKey::new(Kind::Network, None, name))?.spec {
            Spec::Network(network) => Some(network),
            _ => None,
        }
    }

    /// How the host runs hostweave; the defaults if nothing is written.
    pub fn host(&self) -> &HostConfig {
        &self.host
    }

    /// Labels of a port: its own and those of the Pod of the same namespace and name.
    pub fn labels(&self, _port: &ObjectKey) -> BTreeMap<String, String> {
        todo!()
    }
}

/// Checks objects together and adds the built-in ones.
///
/// # Errors
/// All problems: duplicate keys, addresses, MACs, VNIs, sockets or devices, names that lead nowhere, addresses outside
/// their network; warnings included.
pub fn check_set(
    _objects: impl IntoIterator<Item = Arc<Object>>,
    _runtime_dir: &Path,
) -> Result<(ObjectSet, Vec<Diagnostic>), Diagnostics> {
    todo!()
}
