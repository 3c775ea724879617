//! A change in the making: wishes carried out on a copy of the objects, before anything is checked or written.

use std::collections::HashSet;
use std::sync::Arc;

use uuid::Uuid;

use super::controller::{Action, Edit, Snapshot, not_found};
use super::error::{ErrorKind, RpcError};
use super::plan::{Identity, Objects, Stored};
use super::service_view::filled;
use crate::config::checked::{Object, Origin, Spec};
use crate::config::host_access::NAMESPACE as HOST_NAMESPACE;
use crate::config::kind::DEFAULT_NAMESPACE;
use crate::config::raw::RawObject;
use crate::config::raw::service::ServiceType;
use crate::config::{Diagnostic, Kind, ObjectKey};
use crate::store::{Batch, StoredObject};

/// Ports that an error names.
const PORTS_LISTED_MAX: usize = 5;

/// A change in the making.
pub struct Draft {
    /// What is to exist.
    pub objects: Objects,
    /// What became of each object that was asked for, or that went with one.
    pub changes: Vec<(Action, Arc<Object>)>,
    /// The difference for the store.
    pub batch: Batch,
    /// Of the change.
    pub revision: u64,
}

impl Draft {
    /// Carries out one wish.
    ///
    /// # Errors
    /// It contradicts an object's origin or revision, or what is to be deleted is not there.
    pub fn edit(&mut self, edit: Edit, before: &Snapshot) -> Result<(), RpcError> {
        match edit {
            Edit::Put(object) => self.put(*object, before),
            Edit::Delete { key, must_exist } => self.delete(&key, must_exist, before),
        }
    }

    fn put(&mut self, mut object: Object, before: &Snapshot) -> Result<(), RpcError> {
        let key = object.key.clone();
        check_origin(&key, before)?;
        if self.changes.iter().any(|(_, other)| other.key == key) {
            return Err(conflict(&key, "duplicate", format!("{key} is written twice"), "leave one of them out"));
        }
        if let Spec::HostConfig(host) = &object.spec
            && (host.runtime_dir.is_some() || host.state_dir.is_some())
        {
            let message = "spec.paths can only be written in a configuration file: it says where the store is";
            return Err(conflict(&key, "origin", message, "write it under the folder given by --config"));
        }
        let known = self.objects.stored.get(&key).cloned();
        check_revision(&object, known.as_ref().map(|(_, identity)| *identity), before)?;
        if let Some((old, _)) = &known {
            check_class(old, &object)?;
        }
        object.set_origin(Origin::Store);
        let object = Arc::new(object);
        let action = match &known {
            None => Action::Created,
            Some((old, _)) if old.says_the_same(&object) || as_shown(old, before).says_the_same(&object) => {
                Action::Unchanged
            }
            Some(_) => Action::Updated,
        };
        if action != Action::Unchanged {
            let uid = known.map_or_else(Uuid::new_v4, |(_, identity)| identity.uid);
            let identity = Identity { uid, revision: self.revision };
            self.batch.objects.push((key.clone(), record(&object, identity)));
            self.objects.stored.insert_mut(key, (Arc::clone(&object), identity));
        }
        self.changes.push((action, object));
        Ok(())
    }

    fn delete(&mut self, key: &ObjectKey, must_exist: bool, before: &Snapshot) -> Result<(), RpcError> {
        check_origin(key, before)?;
        if let Some(object) = self.remove(key) {
            self.batch.objects_gone.push(key.clone());
            self.changes.push((Action::Deleted, object));
            return Ok(());
        }
        if before.set.get(key).is_some() {
            return Err(conflict(key, "origin", format!("{key} is built in"), "apply your own to change it"));
        }
        if must_exist { Err(not_found(key, before)) } else { Ok(()) }
    }

    /// Deletes what goes with the namespaces that were deleted (SEMANTICS NP9).
    ///
    /// # Errors
    /// A namespace still has ports.
    pub fn cascade(&mut self) -> Result<(), RpcError> {
        let deleted = |(action, object): &&(Action, Arc<Object>)| {
            *action == Action::Deleted && object.key.kind == Kind::Namespace && object.key.name != DEFAULT_NAMESPACE
        };
        let gone: Vec<ObjectKey> = self.changes.iter().filter(deleted).map(|(_, object)| object.key.clone()).collect();
        for namespace in gone {
            let inside = |key: &&ObjectKey| key.namespace.as_ref() == Some(&namespace.name);
            let ports: Vec<String> =
                self.objects.keys().filter(inside).filter(|key| key.kind == Kind::Port).map(ObjectKey::path).collect();
            if let Some(first) = ports.first() {
                let count = ports.len();
                let message = format!(
                    "{namespace} still has {count} port{}: {}",
                    if count == 1 { "" } else { "s" },
                    listed(&ports)
                );
                let help = format!("delete them first: hostweave port delete {first}");
                return Err(conflict(&namespace, "conflict", message, &help));
            }
            let put = |key: &ObjectKey| self.changes.iter().any(|(_, object)| object.key == *key);
            let stored = self.objects.stored.keys().filter(inside);
            let with_it: Vec<ObjectKey> =
                stored.filter(|key| goes_with_namespace(key.kind) && !put(key)).cloned().collect();
            for key in with_it {
                let Some(object) = self.remove(&key) else { continue };
                self.batch.objects_gone.push(key);
                self.changes.push((Action::Deleted, object));
            }
        }
        Ok(())
    }

    fn remove(&mut self, key: &ObjectKey) -> Option<Arc<Object>> {
        let (object, _) = self.objects.stored.get(key).cloned()?;
        self.objects.stored.remove_mut(key);
        Some(object)
    }
}

/// What comes from a file is changed only there.
fn check_origin(key: &ObjectKey, before: &Snapshot) -> Result<(), RpcError> {
    let from_file = |object: &&Arc<Object>| matches!(object.origin, Origin::File { .. });
    let Some(object) = before.set.get(key).filter(from_file) else { return Ok(()) };
    let message = format!("{key} comes from {} and is changed only there", object.origin);
    Err(conflict(key, "origin", message, "edit that file, then reload the daemon (SIGHUP)"))
}

/// A LoadBalancer stays with whom it was given to (SEMANTICS SV23).
fn check_class(old: &Object, new: &Object) -> Result<(), RpcError> {
    let class = |object: &Object| match object.raw() {
        RawObject::Service(raw) if raw.spec.service_type == Some(ServiceType::LoadBalancer) => {
            Some(raw.spec.load_balancer_class.clone())
        }
        _ => None,
    };
    match (class(old), class(new)) {
        (Some(old), Some(written)) if old != written => {
            let word = |class: Option<String>| class.unwrap_or_else(|| "left out".to_owned());
            let message = format!(
                "{}: spec.loadBalancerClass cannot be changed; it was {}, and is {}",
                new.key,
                word(old),
                word(written)
            );
            Err(conflict(&new.key, "conflict", message, "delete the Service first, or make it a ClusterIP"))
        }
        _ => Ok(()),
    }
}

/// An object as `get` shows it, which may be applied again.
fn as_shown(object: &Object, before: &Snapshot) -> Object {
    let given = before.services.get(&object.key).map(Vec::as_slice).unwrap_or_default();
    filled(object, given, &before.set)
}

/// The first of several names.
fn listed(names: &[String]) -> String {
    let more = if names.len() > PORTS_LISTED_MAX { ", …" } else { "" };
    names.iter().take(PORTS_LISTED_MAX).map(String::as_str).collect::<Vec<_>>().join(", ") + more
}

/// Optimistic concurrency: what was read before must still be so.
fn check_revision(object: &Object, known: Option<Identity>, before: &Snapshot) -> Result<(), RpcError> {
    let key = &object.key;
    let help = format!("read it again: hostweave get {} {} -o yaml", key.kind, key.path());
    if let Some(wanted) = object.metadata.resource_version
        && known.map(|identity| identity.revision) != Some(wanted)
    {
        let now = known.map_or("it does not exist".to_owned(), |identity| format!("it is at {}", identity.revision));
        let message = format!("{key} was changed by somebody else: metadata.resourceVersion is {wanted}, {now}");
        return Err(conflict(key, "revision", message, &help));
    }
    let uid = known.map(|identity| before.assignments.get(key).map_or(identity.uid, |assignment| assignment.uid));
    if let Some(wanted) = object.metadata.uid
        && uid != Some(wanted)
    {
        let message = format!("{key} is another object than the one that was read: metadata.uid {wanted} is gone");
        return Err(conflict(key, "revision", message, &help));
    }
    Ok(())
}

fn conflict(key: &ObjectKey, code: &str, message: impl Into<String>, help: &str) -> RpcError {
    let code = format!("hostweave::config::{code}");
    let diagnostic = Diagnostic::error(&code, message).with_help(help);
    let mut error = RpcError::diagnostics(ErrorKind::Conflict, diagnostic.into());
    "name".clone_into(&mut error.data.field);
    tracing::debug!(object = %key, %error, "a change was refused");
    error
}

/// Whether objects of a kind go with their namespace (SEMANTICS NP9). Ports do not: no NIC is unplugged by the way.
fn goes_with_namespace(kind: Kind) -> bool {
    matches!(kind, Kind::NetworkPolicy | Kind::Pod | Kind::Service | Kind::EndpointSlice)
}

/// Stored objects whose namespace is gone, and that go with it.
pub fn orphans(files: &[Arc<Object>], stored: &Stored) -> Vec<ObjectKey> {
    let keys = files.iter().map(|object| &object.key).chain(stored.keys());
    let named = keys.filter(|key| key.kind == Kind::Namespace).map(|key| key.name.as_str());
    let mut objects = files.iter().chain(stored.values().map(|(object, _)| object));
    let host_access =
        objects.any(|object| matches!(&object.spec, Spec::HostConfig(host) if host.host_access.is_some()));
    let built_in = host_access.then_some(HOST_NAMESPACE);
    let namespaces: HashSet<&str> = named.chain([DEFAULT_NAMESPACE]).chain(built_in).collect();
    let is_orphan = |key: &&ObjectKey| {
        goes_with_namespace(key.kind) && key.namespace.as_deref().is_some_and(|name| !namespaces.contains(name))
    };
    stored.keys().filter(is_orphan).cloned().collect()
}

/// An object as the store keeps it.
pub fn record(object: &Object, identity: Identity) -> StoredObject {
    let object = object.with_identity(None, None).to_json();
    StoredObject { uid: identity.uid, revision: identity.revision, object }
}
