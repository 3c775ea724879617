//! From objects and assignments to what the packet path is to do: every default filled in, every name resolved.

use std::path::{Path, PathBuf};

use super::diagnostic::Diagnostic;
use super::ipam::Assignments;
use super::kind::ObjectKey;
use super::set::ObjectSet;
use crate::fabric::spec::Desired;

/// What depends on the host and not on objects.
pub struct HostFacts<'a> {
    /// Folder of sockets.
    pub runtime_dir: &'a Path,
    /// Group id of a group name.
    pub group: &'a dyn Fn(&str) -> Option<u32>,
    /// User id of a user name.
    pub user: &'a dyn Fn(&str) -> Option<u32>,
}

/// What the packet path is to do. A port without assignment, or whose group or user does not exist, is left out; the
/// latter is reported.
pub fn to_desired(_set: &ObjectSet, _assignments: &Assignments, _host: &HostFacts<'_>) -> (Desired, Vec<Diagnostic>) {
    todo!()
}

/// `RUNTIME/ports/NAMESPACE.NAME.sock`: the socket of a listening port that names none. A namespace has no dots, so two
/// ports never share one.
pub fn default_socket(runtime_dir: &Path, port: &ObjectKey) -> PathBuf {
    let namespace = port.namespace.as_deref().unwrap_or_default();
    runtime_dir.join("ports").join(format!("{namespace}.{}.sock", port.name))
}
