//! From the objects that are to exist to everything that follows from them: the checked set, the addresses, what the
//! packet path is to do. Reads the host's users and groups; changes nothing.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use uuid::Uuid;

use super::error::{ErrorKind, RpcError};
use crate::config::checked::Object;
use crate::config::desired::{HostFacts, to_desired};
use crate::config::outside::{ServiceAddresses, ServicePlan, addresses};
use crate::config::{Assignments, Diagnostic, Diagnostics, ObjectKey, ObjectSet, check_set, ipam};
use crate::fabric::spec::Desired;

/// What the daemon gave a stored object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Told apart from an object of the same name before or after it.
    pub uid: Uuid,
    /// Revision of its last change.
    pub revision: u64,
}

/// The objects that are to exist, by origin.
#[derive(Clone, Default)]
pub struct Objects {
    /// From files, in the order read.
    pub files: Vec<Arc<Object>>,
    /// Applied at run time.
    pub stored: BTreeMap<ObjectKey, (Arc<Object>, Identity)>,
}

impl Objects {
    /// The object of a file with this key.
    pub fn file(&self, key: &ObjectKey) -> Option<&Arc<Object>> {
        self.files.iter().find(|object| object.key == *key)
    }

    /// Keys of all of them.
    pub fn keys(&self) -> impl Iterator<Item = &ObjectKey> {
        self.files.iter().map(|object| &object.key).chain(self.stored.keys())
    }

    fn all(&self) -> impl Iterator<Item = Arc<Object>> {
        self.files.iter().chain(self.stored.values().map(|(object, _)| object)).map(Arc::clone)
    }
}

/// Everything that follows from the objects.
#[derive(Clone, Default)]
pub struct Plan {
    /// The objects, checked together.
    pub set: ObjectSet,
    /// Addresses of every port.
    pub ipam: ipam::Plan,
    /// Addresses of every Service.
    pub services: ServicePlan,
    /// What the packet path is to do.
    pub desired: Desired,
    /// Ports that cannot be given what they need: they pass no traffic.
    pub problems: Vec<Diagnostic>,
    /// What is dubious.
    pub warnings: Vec<Diagnostic>,
}

/// Plans.
///
/// # Errors
/// The objects contradict each other: all problems.
pub fn plan(
    objects: &Objects,
    remembered: &Assignments,
    given: &ServiceAddresses,
    runtime_dir: &Path,
) -> Result<Plan, Diagnostics> {
    let (set, warnings) = check_set(objects.all(), runtime_dir)?;
    let ipam = ipam::assign(&set, remembered, &mut Uuid::new_v4);
    let services = addresses::assign(&set, given);
    let (desired, mut problems) = desired(&set, &ipam.assignments, &services.addresses, runtime_dir);
    problems.extend(ipam.problems.iter().chain(&services.problems).cloned());
    Ok(Plan { set, ipam, services, desired, problems, warnings })
}

/// What the packet path is to do for objects that were planned before.
pub fn desired(
    set: &ObjectSet,
    assignments: &Assignments,
    given: &ServiceAddresses,
    runtime_dir: &Path,
) -> (Desired, Vec<Diagnostic>) {
    let group = |name: &str| nix::unistd::Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw());
    let user = |name: &str| nix::unistd::User::from_name(name).ok().flatten().map(|user| user.uid.as_raw());
    to_desired(set, assignments, given, &HostFacts { runtime_dir, group: &group, user: &user })
}

/// Refuses a plan that makes a new problem; what was wrong before does not stand in the way of other changes.
///
/// # Errors
/// The new problems.
pub fn refuse_new_problems(plan: &Plan, known: &[Diagnostic]) -> Result<(), RpcError> {
    let same = |a: &Diagnostic, b: &Diagnostic| a.object == b.object && a.code == b.code && a.field == b.field;
    let is_new = |problem: &&Diagnostic| !known.iter().any(|known| same(known, problem));
    let new: Vec<Diagnostic> = plan.problems.iter().filter(is_new).cloned().collect();
    if new.is_empty() {
        return Ok(());
    }
    let exhausted = new.iter().all(|problem| problem.code.ends_with("exhausted"));
    let kind = if exhausted { ErrorKind::Exhausted } else { ErrorKind::Invalid };
    Err(RpcError::diagnostics(kind, Diagnostics(new)))
}
