//! What the daemon begins with: objects of files and of the store put together, and what was given or remembered before.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use super::attach_ledger::Attached;
use super::draft::orphans;
use super::error::{ErrorKind, RpcError};
use super::nat_ledger::NatLease;
use super::plan::{self, Before, Identity, Objects, Plan, Stored};
use crate::config::checked::{Object, Origin};
use crate::config::outside::ServiceAddresses;
use crate::config::{Assignments, Diagnostic, Diagnostics, ObjectKey};
use crate::fabric::balance::known::Drained;
use crate::fabric::balance::remembered::Remembered;
use crate::store::{Batch, Contents};

/// What the daemon begins with.
pub struct Initial {
    /// Objects of files and store.
    pub objects: Objects,
    /// What follows from them.
    pub plan: Plan,
    /// Stored objects that files took over.
    pub(super) batch: Batch,
    /// Addresses given before.
    pub(super) assignments: Assignments,
    /// Addresses of Services given before.
    pub(super) services: ServiceAddresses,
    /// Backends drained before.
    pub(super) drained: BTreeSet<Drained>,
    /// What is remembered of backends, by Service.
    pub(super) backends: BTreeMap<String, Remembered>,
    /// Who had which L4 ports of NAT addresses.
    pub(super) nat_leases: BTreeMap<u64, NatLease>,
    /// Which port had which attached address.
    pub(super) attached: BTreeMap<u64, Attached>,
    pub(super) revision: u64,
}

impl Initial {
    /// Puts files and store together.
    ///
    /// # Errors
    /// A stored object is not valid any more, a file claims one without `adopt`, or objects contradict each other.
    pub fn new(files: Vec<Object>, contents: Contents, adopt: bool, runtime: &Path) -> Result<Self, RpcError> {
        let mut stored = Stored::default();
        for (key, record) in contents.objects {
            let (object, _) = Object::from_json(&record.object, Origin::Store)?;
            let identity = Identity { uid: record.uid, revision: record.revision };
            stored.insert_mut(key, (Arc::new(object), identity));
        }
        let (objects, batch) = with_files(files.into_iter().map(Arc::new).collect(), stored, adopt)?;
        let Contents { assignments, services, drained, backends, nat_leases, attached, revision, .. } = contents;
        let before = Before { assignments: &assignments, services: &services, told: Default::default() };
        let plan = plan::plan(&objects, before, runtime)?;
        Ok(Self { objects, plan, batch, assignments, services, drained, backends, nat_leases, attached, revision })
    }
}

/// Objects of files and store together; a file claims a stored object only with `adopt`.
pub(super) fn with_files(
    files: Vec<Arc<Object>>,
    mut stored: Stored,
    adopt: bool,
) -> Result<(Objects, Batch), RpcError> {
    let claimed: Vec<&Arc<Object>> = files.iter().filter(|object| stored.contains_key(&object.key)).collect();
    if !claimed.is_empty() && !adopt {
        let claim = |object: &&Arc<Object>| {
            let message = format!("{} claims an object that was applied at run time", object.origin);
            Diagnostic::error("hostweave::config::origin", message).with_object(&object.key).with_help(format!(
                "start the daemon with --adopt to let the file own it, or remove it first: hostweave delete {} {}",
                object.key.kind,
                object.key.path(),
            ))
        };
        let diagnostics = Diagnostics(claimed.iter().map(claim).collect());
        return Err(RpcError::diagnostics(ErrorKind::Conflict, diagnostics));
    }
    let mut objects_gone: Vec<ObjectKey> = claimed.into_iter().map(|object| object.key.clone()).collect();
    for key in &objects_gone {
        stored.remove_mut(key);
    }
    for key in orphans(&files, &stored) {
        tracing::warn!("{key} is deleted: its namespace is gone");
        stored.remove_mut(&key);
        objects_gone.push(key);
    }
    Ok((Objects { files: Arc::new(files), stored }, Batch { objects_gone, ..Batch::default() }))
}
