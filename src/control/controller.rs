//! The daemon's state, and the only way to change it.
//!
//! # Theory of operation
//!
//! Readers take the current [`Snapshot`]. A change takes the writer's lock and goes through five steps: put the new
//! objects together, check them (`super::plan`), write the difference to the store, hand the result to the packet
//! path, publish the new snapshot. A failure of the first two changes nothing; if the packet path refuses, the store is
//! put back as it was.
//!
//! Everything here blocks on the disk: call it off the runtime's threads.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Instant, SystemTime};

use anyhow::Context;
use arc_swap::ArcSwap;
use hostweave_switch::tables::Network;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::broadcast;
use uuid::Uuid;

use super::attach_ledger::AttachLedger;
use super::draft::{Draft, record};
use super::error::{ErrorKind, RpcError};
use super::initial::{Initial, with_files};
use super::nat_ledger::{NatLease, NatLedger};
use super::plan::{self, Before, Objects, Plan, Stored};
use super::selector::Selector;
use super::service_view::{ADDRESSES_ASSIGNED, ATTACHED, BACKENDS_IN_NETWORK};
use super::transitions::{self, Transitions};
use crate::config::checked::Object;
use crate::config::desired::system_node;
use crate::config::outside::ServiceAddresses;
use crate::config::{Assignments, Diagnostic, Diagnostics, Kind, ObjectKey, ObjectSet, load_paths, services};
use crate::fabric::balance::known::Drained;
use crate::fabric::spec::{Desired, internal_uid};
use crate::fabric::{Fabric, Impact, Picture};
use crate::observe::events::{EventLog, EventType};
use crate::store::{Batch, Store};

/// Changes of objects that a watcher may be behind.
const CHANGES_BACKLOG_MAX: usize = 4096;

/// What exists now.
#[derive(Default)]
pub struct Snapshot {
    /// Objects, checked together, built-in ones included.
    pub set: ObjectSet,
    /// Addresses of ports.
    pub assignments: Arc<Assignments>,
    /// Addresses of Services.
    pub services: Arc<ServiceAddresses>,
    /// Objects that were applied at run time, with their identities.
    pub stored: Stored,
    /// Grows with every change of objects.
    pub revision: u64,
    /// Ports that cannot be given what they need.
    pub problems: Vec<Diagnostic>,
    /// What is dubious about the objects together.
    pub warnings: Vec<Diagnostic>,
    /// What the packet path was asked to do.
    pub desired: Desired,
    /// Worked out when somebody asks first.
    foreign: OnceLock<HashMap<ObjectKey, String>>,
}

impl Snapshot {
    /// Names of ports, `namespace/name`, by uid. Those of the host itself, for its health checks, too.
    pub fn port_names(&self) -> HashMap<Uuid, String> {
        let ports = self.assignments.iter().map(|(key, assignment)| (assignment.uid, key.path()));
        let internal = |network: &Network| (internal_uid(network.vni), format!("network/{}/internal", network.name));
        ports.chain(self.desired.networks.iter().map(internal)).collect()
    }

    /// What is said about a Service that selects ports of other networks (SEMANTICS SV24); `None` if it does not.
    pub fn foreign(&self, key: &ObjectKey) -> Option<&str> {
        let all = self.foreign.get_or_init(|| services::foreign(&self.set, &self.desired.ports));
        all.get(key).map(String::as_str)
    }
}

/// What became of an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is new.
    Created,
    /// It says something else than before.
    Updated,
    /// It says the same as before.
    Unchanged,
    /// It is gone.
    Deleted,
}

/// A change of one object, for those who watch.
#[derive(Clone, Debug)]
pub struct ObjectChange {
    /// Revision of the change.
    pub revision: u64,
    /// What became of it.
    pub action: Action,
    /// The object, as it is now or was last.
    pub object: Arc<Object>,
}

/// One wish.
#[derive(Clone, Debug)]
pub enum Edit {
    /// Create or change.
    Put(Box<Object>),
    /// Delete; whether that nothing is there is an error.
    Delete {
        /// Which one.
        key: ObjectKey,
        /// Whether it must be there.
        must_exist: bool,
    },
}

/// How wishes are carried out.
#[derive(Clone, Debug, Default)]
pub struct EditOptions {
    /// Only say what would happen.
    pub dry_run: bool,
    /// With `dry_run`: also say what it would mean for the live connections.
    pub impact: bool,
    /// Also delete stored objects that match and are not among those put.
    pub prune: Option<Selector>,
}

/// What was changed.
#[derive(Debug)]
pub struct Applied {
    /// Revision afterwards.
    pub revision: u64,
    /// Every object that was asked for, and what was pruned.
    pub changes: Vec<(Action, Arc<Object>)>,
    /// What is dubious.
    pub warnings: Vec<Diagnostic>,
    /// What it would mean for the live connections, where that was asked.
    pub impact: Option<Impact>,
}

/// What the controller is made of.
pub struct Parts {
    /// Configuration files and folders.
    pub config: Vec<PathBuf>,
    /// Folder of sockets.
    pub runtime: PathBuf,
    /// Whether a file may take over an object that was applied at run time.
    pub adopt: bool,
    /// The packet path.
    pub fabric: Arc<Fabric>,
    /// Everything durable.
    pub store: Store,
    /// What happens.
    pub events: Arc<EventLog>,
}

/// The daemon's state.
pub struct Controller {
    /// What it is made of.
    pub parts: Parts,
    /// When the daemon started.
    pub started: Instant,
    /// Since when conditions are what they are.
    pub transitions: Transitions,
    snapshot: ArcSwap<Snapshot>,
    writer: Mutex<Objects>,
    changes: broadcast::Sender<Arc<ObjectChange>>,
    reload_failure: Mutex<Option<String>>,
    /// Who had which L4 ports of NAT addresses.
    pub nat_ledger: NatLedger,
    /// Which port had which attached address.
    pub attach_ledger: AttachLedger,
    /// Drained backends as the store has them. Only under the writer's lock.
    drained: Mutex<BTreeSet<Drained>>,
}

impl Controller {
    /// The state at start: files and store together. Ports that cannot be given what they need stay without traffic.
    ///
    /// # Errors
    /// The objects contradict each other, or the packet path refuses them.
    pub fn start(parts: Parts, initial: Initial, started: Instant) -> anyhow::Result<Arc<Self>> {
        let controller = Self {
            parts,
            started,
            transitions: Transitions::new(),
            snapshot: ArcSwap::from_pointee(Snapshot {
                assignments: Arc::new(initial.assignments),
                services: Arc::new(initial.services),
                revision: initial.revision,
                ..Snapshot::default()
            }),
            writer: Mutex::new(Objects::default()),
            changes: broadcast::Sender::new(CHANGES_BACKLOG_MAX),
            reload_failure: Mutex::new(None),
            nat_ledger: NatLedger::new(initial.nat_leases),
            attach_ledger: AttachLedger::new(initial.attached),
            drained: Mutex::new(initial.drained.clone()),
        };
        {
            let mut writer = controller.lock();
            controller.parts.fabric.restore_backends(initial.backends);
            for what in initial.drained {
                controller.parts.fabric.drain(what, true);
            }
            controller.settle(&mut writer, initial.objects, initial.plan, initial.batch, &[])?;
        }
        controller.recall_nat_leases(false);
        Ok(Arc::new(controller))
    }

    /// What became of L4 ports of NAT addresses while no daemon ran, or `unheard`: while one ran that did not hear of it.
    pub(super) fn recall_nat_leases(&self, unheard: bool) {
        let names = self.snapshot().port_names();
        let known = self.parts.fabric.nat_history();
        let known = known.iter().map(|view| NatLease::new(view, names.get(&view.port).cloned())).collect();
        self.nat_ledger.reconcile(&self.parts.store, known, unheard, SystemTime::now());
    }

    /// What exists now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Changes of objects from now on.
    pub fn watch(&self) -> broadcast::Receiver<Arc<ObjectChange>> {
        self.changes.subscribe()
    }

    /// Why the last reload failed, if it did.
    pub fn reload_failure(&self) -> Option<String> {
        self.reload_failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What this host calls itself: the name of its `HostConfig`, or what the kernel says.
    pub fn node_name(&self) -> String {
        let snapshot = self.snapshot();
        let host = snapshot.set.of_kind(crate::config::Kind::HostConfig).next();
        host.map_or_else(system_node, |object| object.key.name.clone())
    }

    /// Carries out wishes, all or none.
    ///
    /// # Errors
    /// A wish contradicts an object's origin or revision, the result is not valid, or it cannot be carried out.
    pub fn edit(&self, edits: Vec<Edit>, options: &EditOptions) -> Result<Applied, RpcError> {
        self.edit_with(options, |_, _| Ok(edits))
    }

    /// As [`Self::edit`], with wishes that depend on what exists; nothing changes in between.
    ///
    /// # Errors
    /// As [`Self::edit`], and those of `wishes`.
    pub fn edit_with(
        &self,
        options: &EditOptions,
        wishes: impl FnOnce(&Snapshot, &Objects) -> Result<Vec<Edit>, RpcError>,
    ) -> Result<Applied, RpcError> {
        let mut writer = self.lock();
        let before = self.snapshot();
        let mut edits = wishes(&before, &writer)?;
        if let Some(selector) = &options.prune {
            prune(&mut edits, &writer, selector);
        }
        let revision = before.revision + 1;
        let mut draft = Draft { objects: writer.clone(), changes: Vec::new(), batch: Batch::default(), revision };
        let mut refused = Vec::new();
        for edit in edits {
            if let Err(error) = draft.edit(edit, &before) {
                refused.push(error);
            }
        }
        refuse(refused)?;
        draft.cascade()?;
        let plan = plan::replan(&draft.objects, &draft.changes, &before, &self.parts.runtime)?;
        plan::refuse_new(&plan, &before)?;
        let changed = draft.changes.iter().any(|(action, _)| *action != Action::Unchanged);
        let dubious = plan.dubious(draft.changes.iter().map(|(_, object)| &object.key));
        let warnings = plan.warnings.iter().cloned().chain(dubious).collect();
        let mut applied = Applied { revision: before.revision, changes: draft.changes.clone(), warnings, impact: None };
        if options.dry_run && options.impact {
            applied.impact = Some(self.impact(&plan)?);
        }
        if options.dry_run || !changed {
            return Ok(applied);
        }
        self.settle(&mut writer, draft.objects, plan, draft.batch, &draft.changes)?;
        Ok(Applied { revision: self.snapshot().revision, ..applied })
    }

    /// The packet path's tables if `objects` were applied, which they are not. Other than `apply`, this takes the place of
    /// what comes from files, too: people try out a file before they put it where it belongs.
    ///
    /// # Errors
    /// The objects contradict each other, what exists, or a limit.
    pub fn what_if(&self, objects: Vec<Object>) -> Result<Picture, RpcError> {
        let before = self.snapshot();
        let mut wanted = self.lock().clone();
        for object in objects {
            let files = Arc::make_mut(&mut wanted.files);
            files.retain(|known| known.key != object.key);
            wanted.stored.remove_mut(&object.key);
            files.push(Arc::new(object));
        }
        let plan = plan::plan(&wanted, (&*before).into(), &self.parts.runtime)?;
        plan::refuse_new(&plan, &before)?;
        Ok(self.parts.fabric.draft(&plan.desired)?)
    }

    /// What a plan would mean for the live connections.
    fn impact(&self, plan: &Plan) -> Result<Impact, RpcError> {
        let fabric = &self.parts.fabric;
        Ok(fabric.impact(&fabric.draft(&plan.desired)?, &fabric.denied_lately()))
    }

    /// Reads the configuration files again. What is wrong changes nothing.
    ///
    /// # Errors
    /// All problems of all files.
    pub fn reload(&self) -> Result<Applied, RpcError> {
        let result = self.try_reload();
        let mut failure = self.reload_failure.lock().unwrap_or_else(PoisonError::into_inner);
        match &result {
            Ok(applied) => {
                *failure = None;
                let count = applied.changes.len();
                let message = format!("configuration read again: {count} objects changed");
                self.parts.events.add(EventType::Reloaded, None, message, json!({"changed": count}));
            }
            Err(error) => {
                *failure = Some(error.to_string());
                let message = format!("configuration not reloaded, the old one stays: {error}");
                self.parts.events.add(EventType::ReloadFailed, None, message, Value::Null);
            }
        }
        result
    }

    fn try_reload(&self) -> Result<Applied, RpcError> {
        let loaded = load_paths(&self.parts.config)?;
        let mut writer = self.lock();
        let before = self.snapshot();
        let files = reread(loaded.objects, &writer.files);
        let (objects, batch) = with_files(files, writer.stored.clone(), self.parts.adopt)?;
        let plan = plan::plan(&objects, (&*before).into(), &self.parts.runtime)?;
        plan::refuse_new(&plan, &before)?;
        let changes = difference(&before.set, &plan.set);
        let dubious = plan.dubious(plan.set.iter().map(|(key, _)| key));
        let warnings = loaded.warnings.into_iter().chain(plan.warnings.iter().cloned()).chain(dubious).collect();
        if plan.set.host().workers != before.set.host().workers {
            tracing::warn!("HostConfig.spec.workers was changed: it takes effect when the daemon is restarted");
        }
        if plan.set.host().connections.max != before.set.host().connections.max {
            tracing::warn!("HostConfig.spec.connections.max was changed: it takes effect when the daemon is restarted");
        }
        self.settle(&mut writer, objects, plan, batch, &changes)?;
        Ok(Applied { revision: self.snapshot().revision, changes, warnings, impact: None })
    }

    /// Remembers addresses that changed under a change that came from below, and hands them to the packet path.
    ///
    /// # Errors
    /// The disk fails, or the packet path refuses; nothing has changed then.
    pub fn with_assignments(
        &self,
        change: impl FnOnce(&ObjectSet, &mut Assignments) -> Vec<ObjectKey>,
    ) -> anyhow::Result<()> {
        let _writer = self.lock();
        let before = self.snapshot();
        let mut assignments = Assignments::clone(&before.assignments);
        let changed = change(&before.set, &mut assignments);
        if changed.is_empty() {
            return Ok(());
        }
        let of = |assignments: &Assignments| {
            changed.iter().filter_map(|key| Some((key.clone(), assignments.get(key)?.clone()))).collect()
        };
        let batch = Batch { assignments: of(&assignments), revision: before.revision, ..Batch::default() };
        let back = Batch { assignments: of(&before.assignments), revision: before.revision, ..Batch::default() };
        let given = Before { assignments: &assignments, ..(&*before).into() };
        let (desired, _) = plan::desired(&before.set, given, &self.parts.runtime);
        self.parts.store.commit(&batch)?;
        if let Err(error) = self.parts.fabric.apply(&desired) {
            self.parts.store.commit(&back).context("putting the store back")?;
            return Err(error);
        }
        self.snapshot.store(Arc::new(Snapshot {
            set: before.set.clone(),
            assignments: Arc::new(assignments),
            services: Arc::clone(&before.services),
            stored: before.stored.clone(),
            revision: before.revision,
            problems: before.problems.clone(),
            warnings: before.warnings.clone(),
            desired,
            foreign: OnceLock::new(),
        }));
        Ok(())
    }

    /// Drains a backend of Services, or undoes that. Returns whether something is different.
    ///
    /// # Errors
    /// The disk fails; nothing has changed then.
    pub fn drain(&self, what: Drained, drained: bool) -> anyhow::Result<bool> {
        let _writer = self.lock();
        let fabric = &self.parts.fabric;
        let mut all: BTreeSet<Drained> = fabric.drained().into_iter().collect();
        let changed = if drained { all.insert(what.clone()) } else { all.remove(&what) };
        if changed {
            self.remember_drained(all)?;
            fabric.drain(what, drained);
        }
        Ok(changed)
    }

    /// Writes which backends are drained, if the store has others.
    fn remember_drained(&self, all: BTreeSet<Drained>) -> Result<(), crate::store::Error> {
        let mut known = self.drained.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != all {
            let batch = Batch { drained: Some(all.clone()), revision: self.snapshot().revision, ..Batch::default() };
            self.parts.store.commit(&batch)?;
            *known = all;
        }
        Ok(())
    }

    /// Writes what is to be known of Services' backends after a restart, where that is different.
    ///
    /// # Errors
    /// The disk fails.
    pub fn remember_backends(&self) -> Result<(), crate::store::Error> {
        let _writer = self.lock();
        self.write_backends()
    }

    /// The same under the writer's lock.
    fn write_backends(&self) -> Result<(), crate::store::Error> {
        let backends = self.parts.fabric.backends_to_store();
        if backends.is_empty() {
            return Ok(());
        }
        let batch = Batch { backends, revision: self.snapshot().revision, ..Batch::default() };
        let written = self.parts.store.commit(&batch);
        if written.is_err() {
            self.parts.fabric.backends_not_stored(batch.backends);
        }
        written
    }

    /// Writes, hands to the packet path, publishes, tells.
    fn settle(
        &self,
        writer: &mut MutexGuard<'_, Objects>,
        objects: Objects,
        plan: Plan,
        mut batch: Batch,
        changes: &[(Action, Arc<Object>)],
    ) -> Result<(), RpcError> {
        let before = self.snapshot();
        let assignment = |key: &ObjectKey| Some((key.clone(), plan.assignments.get(key)?.clone()));
        batch.assignments = plan.assigned.iter().filter_map(assignment).collect();
        batch.assignments_gone.clone_from(&plan.freed);
        let given = |key: &ObjectKey| Some((key.clone(), plan.services.get(key)?.clone()));
        batch.services = plan.services_assigned.iter().filter_map(given).collect();
        batch.services_gone.clone_from(&plan.services_freed);
        let revision = before.revision + u64::from(!batch.is_empty() || !changes.is_empty());
        batch.revision = revision;
        let written = revision != before.revision;
        if written {
            let failed = |error: crate::store::Error| anyhow::Error::from(error).context("nothing was applied");
            self.parts.store.commit(&batch).map_err(failed)?;
        }
        if let Err(error) = self.parts.fabric.apply(&plan.desired) {
            if written {
                let back = undo(&batch, writer, &before);
                self.parts.store.commit(&back).map_err(|error| anyhow::Error::from(error).context("undoing"))?;
            }
            return Err(RpcError::new(ErrorKind::Exhausted, "", format!("nothing was applied: {error:#}")));
        }
        tracing::debug!(revision, services = plan.services_planned, "planned and in force");
        let stored = objects.stored.clone();
        **writer = objects;
        let Plan { set, assignments, services, problems, warnings, desired, .. } = plan;
        let foreign = OnceLock::new();
        let snapshot = Snapshot { set, assignments, services, stored, revision, problems, warnings, desired, foreign };
        self.note_transitions(&before, &snapshot, changes);
        let (store, now) = (&self.parts.store, SystemTime::now());
        self.attach_ledger.follow(store, &before.desired, &snapshot.set, &snapshot.desired, now);
        self.snapshot.store(Arc::new(snapshot));
        // Those of ports and Services that are gone were let off.
        if let Err(error) = self.remember_drained(self.parts.fabric.drained().into_iter().collect()) {
            tracing::warn!(%error, "drained backends that are gone may be drained again after a restart");
        }
        if let Err(error) = self.write_backends() {
            tracing::warn!(%error, "connections to backends that left their Service will not survive a restart");
        }
        self.tell(revision, changes);
        Ok(())
    }

    /// Takes down which conditions of Services are others from now on.
    fn note_transitions(&self, before: &Snapshot, now: &Snapshot, changes: &[(Action, Arc<Object>)]) {
        for (action, object) in changes.iter().filter(|(_, object)| object.key.kind == Kind::Service) {
            match action {
                Action::Deleted => {
                    self.transitions.forget(&object.key, &[ADDRESSES_ASSIGNED, ATTACHED, BACKENDS_IN_NETWORK])
                }
                Action::Created => self.transitions.created(&object.key),
                Action::Updated | Action::Unchanged => {}
            }
        }
        for (key, condition, holds) in transitions::of_services(before, now, changes) {
            self.transitions.note(&key, condition, holds);
        }
        let named = |snapshot: &Snapshot| -> BTreeSet<String> {
            snapshot.problems.iter().filter_map(|problem| problem.object.clone()).collect()
        };
        let (old, new) = (named(before), named(now));
        if old == new {
            return;
        }
        for object in now.set.of_kind(Kind::Service) {
            let name = object.key.to_string();
            if old.contains(&name) != new.contains(&name) {
                self.transitions.note(&object.key, ADDRESSES_ASSIGNED, !new.contains(&name));
            }
        }
    }

    fn tell(&self, revision: u64, changes: &[(Action, Arc<Object>)]) {
        for (action, object) in changes {
            let (event, word) = match action {
                Action::Created => (EventType::ObjectCreated, "created"),
                Action::Updated => (EventType::ObjectUpdated, "changed"),
                Action::Deleted => (EventType::ObjectDeleted, "deleted"),
                Action::Unchanged => continue,
            };
            let message = format!("{} {word} ({})", object.key, object.origin);
            self.parts.events.add(event, Some(&object.key), message, json!({"revision": revision}));
            // Nobody may be watching.
            let _ = self.changes.send(Arc::new(ObjectChange { revision, action: *action, object: Arc::clone(object) }));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Objects> {
        // The objects are replaced in one assignment: a panic leaves the old or the new ones.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Objects that were read again; what means the same as before shares what was made of it.
fn reread(objects: Vec<Object>, before: &[Arc<Object>]) -> Vec<Arc<Object>> {
    let before: HashMap<&ObjectKey, &Arc<Object>> = before.iter().map(|object| (&object.key, object)).collect();
    let share = |mut object: Object| {
        if let Some(before) = before.get(&object.key) {
            object.share(before);
        }
        Arc::new(object)
    };
    objects.into_iter().map(share).collect()
}

/// The batch that takes `batch` back.
fn undo(batch: &Batch, objects: &Objects, before: &Snapshot) -> Batch {
    let mut back = Batch { revision: before.revision, ..Batch::default() };
    for key in batch.objects.iter().map(|(key, _)| key).chain(&batch.objects_gone) {
        match objects.stored.get(key) {
            Some((object, identity)) => back.objects.push((key.clone(), record(object, *identity))),
            None => back.objects_gone.push(key.clone()),
        }
    }
    for key in batch.assignments.iter().map(|(key, _)| key).chain(&batch.assignments_gone) {
        match before.assignments.get(key) {
            Some(assignment) => back.assignments.push((key.clone(), assignment.clone())),
            None => back.assignments_gone.push(key.clone()),
        }
    }
    for key in batch.services.iter().map(|(key, _)| key).chain(&batch.services_gone) {
        match before.services.get(key) {
            Some(given) => back.services.push((key.clone(), given.clone())),
            None => back.services_gone.push(key.clone()),
        }
    }
    back
}

/// One error for several.
fn refuse(mut refused: Vec<RpcError>) -> Result<(), RpcError> {
    if refused.len() <= 1 {
        return refused.pop().map_or(Ok(()), Err);
    }
    let kind = refused[0].data.kind;
    let diagnostics = refused.iter().flat_map(|error| error.to_diagnostics().0).collect();
    Err(RpcError::diagnostics(kind, Diagnostics(diagnostics)))
}

/// Adds deletions of stored objects that match and are not put.
fn prune(edits: &mut Vec<Edit>, objects: &Objects, selector: &Selector) {
    let put = |key: &ObjectKey| edits.iter().any(|edit| matches!(edit, Edit::Put(object) if object.key == *key));
    let gone: Vec<ObjectKey> = objects
        .stored
        .iter()
        .filter(|(key, (object, _))| selector.matches(&object.metadata.labels) && !put(key))
        .map(|(key, _)| key.clone())
        .collect();
    edits.extend(gone.into_iter().map(|key| Edit::Delete { key, must_exist: false }));
}

/// What a reload changed.
fn difference(before: &ObjectSet, after: &ObjectSet) -> Vec<(Action, Arc<Object>)> {
    let mut changes = Vec::new();
    for (key, object) in after.iter() {
        match before.get(key) {
            None => changes.push((Action::Created, Arc::clone(object))),
            Some(old) if !old.says_the_same(object) => changes.push((Action::Updated, Arc::clone(object))),
            Some(_) => {}
        }
    }
    let gone = before.iter().filter(|(key, _)| after.get(key).is_none());
    changes.extend(gone.map(|(_, object)| (Action::Deleted, Arc::clone(object))));
    changes
}

/// The error for an object that is not there, with the name that may have been meant.
pub fn not_found(key: &ObjectKey, snapshot: &Snapshot) -> RpcError {
    let error = RpcError::new(ErrorKind::NotFound, "name", format!("{key} does not exist"));
    let same_kind = || snapshot.set.of_kind(key.kind).map(|object| &object.key);
    if let Some(other) = same_kind().find(|other| other.name == key.name) {
        return error.help(format!("there is {other}: use -n {}", other.namespace.as_deref().unwrap_or_default()));
    }
    let names = same_kind().filter(|other| other.namespace == key.namespace).map(|other| other.name.as_str());
    match crate::config::names::closest(&key.name, names) {
        Some(name) => error.help(format!("did you mean {name}?")),
        None => error.help(format!("see what there is: hostweave get {}", key.kind.plural())),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use uuid::Uuid;

    use super::*;
    use crate::config::ipam::learn;
    use crate::config::{Kind, Source, load_sources, policies};
    use crate::control::draft::orphans;
    use crate::control::plan::Identity;
    use crate::fabric::spec::FabricConfig;

    const NETWORK: &str = "\
        {apiVersion: hostweave.dev/v1alpha1, kind: Network, metadata: {name: default}, \
         spec: {cidrs: [10.64.0.0/24, \"2001:db8:64::/64\"]}}\n";

    struct Host {
        controller: Arc<Controller>,
        dir: tempfile::TempDir,
        runtime: tokio::runtime::Runtime,
    }

    impl Drop for Host {
        fn drop(&mut self) {
            self.controller.parts.fabric.shutdown();
        }
    }

    fn objects(text: &str) -> Vec<Edit> {
        let source = Source { name: "test.yaml".to_owned(), text: text.to_owned() };
        load_sources(vec![source]).unwrap().objects.into_iter().map(|object| Edit::Put(Box::new(object))).collect()
    }

    fn port(name: &str) -> String {
        format!("---\n{{apiVersion: hostweave.dev/v1alpha1, kind: Port, metadata: {{name: {name}}}}}\n")
    }

    /// A controller with a running packet path and the store of `dir`.
    fn host(dir: tempfile::TempDir) -> Host {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let entered = runtime.enter();
        std::fs::create_dir_all(dir.path().join("ports")).unwrap();
        let config = FabricConfig {
            workers: vec![None],
            runtime_dir: dir.path().to_owned(),
            helper: "/proc/self/exe".into(),
            connections_max: 4096,
        };
        let (fabric, _events) = Fabric::start(config).unwrap();
        let (store, contents) = Store::open(dir.path()).unwrap();
        let initial = Initial::new(Vec::new(), contents, false, dir.path()).unwrap();
        let parts = Parts {
            config: Vec::new(),
            runtime: dir.path().to_owned(),
            adopt: false,
            fabric,
            store,
            events: Arc::new(EventLog::default()),
        };
        let controller = Controller::start(parts, initial, Instant::now()).unwrap();
        drop(entered);
        Host { controller, dir, runtime }
    }

    impl Host {
        fn apply(&self, text: &str) -> Result<Applied, RpcError> {
            let _entered = self.runtime.enter();
            self.controller.edit(objects(text), &EditOptions::default())
        }

        /// The same host after a restart.
        fn restarted(mut self) -> Host {
            let dir = std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap());
            drop(self);
            host(dir)
        }

        fn learn(&self, address: &str) -> bool {
            let mut learned = false;
            let address: Ipv6Addr = address.parse().unwrap();
            let change = |set: &ObjectSet, assignments: &mut Assignments| {
                learned = learn(set, assignments, &ObjectKey::port("default", "a"), address) == Ok(true);
                if learned { vec![ObjectKey::port("default", "a")] } else { Vec::new() }
            };
            self.controller.with_assignments(change).unwrap();
            learned
        }
    }

    #[test]
    fn conditions_of_services_change_when_they_do_and_not_when_somebody_looks() {
        let host = host(tempfile::tempdir().unwrap());
        let other = NETWORK.replace("default", "other").replace("10.64", "10.65").replace(":64:", ":65:");
        let port = |network: &str| {
            format!(
                "---\n{{apiVersion: hostweave.dev/v1alpha1, kind: Port, metadata: {{name: a, labels: {{app: web}}}}, \
                 spec: {{network: {network}}}}}\n"
            )
        };
        let service = "---\n{apiVersion: v1, kind: Service, metadata: {name: web}, \
             spec: {selector: {app: web}, ports: [{port: 80}]}}\n";
        host.apply(&format!("{NETWORK}---\n{other}{}{service}", port("default"))).unwrap();
        let key = ObjectKey::new(Kind::Service, Some("default"), "web");
        let foreign = |host: &Host| host.controller.snapshot().foreign(&key).is_some();
        let since = |holds| host.controller.transitions.since(&key, BACKENDS_IN_NETWORK, holds);
        assert!(!foreign(&host));
        let gone = || vec![Edit::Delete { key: ObjectKey::port("default", "a"), must_exist: true }];
        for (network, holds) in [("other", false), ("default", true)] {
            host.controller.edit(gone(), &EditOptions::default()).unwrap();
            let begin = SystemTime::now();
            host.apply(&port(network)).unwrap();
            let end = SystemTime::now();
            assert_eq!(foreign(&host), !holds);
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert!(holds || (begin..=end).contains(&since(holds)), "{network}");
            assert!(since(holds) <= end, "{network}");
        }
    }

    #[test]
    fn addresses_that_a_guest_formed_survive_a_restart_and_go_with_the_port() {
        let host = host(tempfile::tempdir().unwrap());
        host.apply(&format!("{NETWORK}{}", port("a"))).unwrap();
        assert!(host.learn("2001:db8:64::5"));
        assert!(!host.learn("2001:db8:64::5"), "it has it already");
        assert!(!host.learn("2001:db8:65::5"), "outside its network");
        let host = host.restarted();
        let key = ObjectKey::port("default", "a");
        let learned = |host: &Host| host.controller.snapshot().assignments[&key].learned.clone();
        assert_eq!(learned(&host), ["2001:db8:64::5".parse::<Ipv6Addr>().unwrap()]);
        let gone = Edit::Delete { key: key.clone(), must_exist: true };
        host.controller.edit(vec![gone], &EditOptions::default()).unwrap();
        host.apply(&port("a")).unwrap();
        assert!(learned(&host).is_empty());
    }

    #[test]
    fn what_the_packet_path_refuses_is_undone() {
        let host = host(tempfile::tempdir().unwrap());
        host.apply(&format!("{NETWORK}{}", port("a"))).unwrap();
        let before = host.controller.snapshot();
        // From now on the packet path refuses everything.
        host.controller.parts.fabric.shutdown();
        let error = host.apply(&port("b")).unwrap_err();
        assert!(error.message.contains("nothing was applied"), "{error}");
        let gone = Edit::Delete { key: ObjectKey::port("default", "a"), must_exist: true };
        host.controller.edit(vec![gone], &EditOptions::default()).unwrap_err();
        assert_eq!(host.controller.snapshot().revision, before.revision);

        let host = host.restarted();
        let after = host.controller.snapshot();
        assert_eq!(after.revision, before.revision);
        assert_eq!(after.assignments, before.assignments);
        let identities = |snapshot: &Snapshot| -> Vec<(ObjectKey, Identity)> {
            snapshot.stored.iter().map(|(key, (_, identity))| (key.clone(), *identity)).collect()
        };
        assert_eq!(identities(&after), identities(&before));
        assert!(after.set.get(&ObjectKey::port("default", "b")).is_none());
    }

    #[test]
    fn nothing_is_written_when_nothing_changes() {
        let host = host(tempfile::tempdir().unwrap());
        let first = host.apply(&format!("{NETWORK}{}", port("a"))).unwrap();
        let again = host.apply(&format!("{NETWORK}{}", port("a"))).unwrap();
        assert_eq!(again.revision, first.revision);
        assert!(again.changes.iter().all(|(action, _)| *action == Action::Unchanged));
    }

    #[test]
    fn the_same_object_twice_is_an_error() {
        let host = host(tempfile::tempdir().unwrap());
        let error = host.apply(&format!("{}{}", port("a"), port("a"))).unwrap_err();
        assert!(error.message.contains("written twice"), "{error}");
        assert_eq!(host.controller.snapshot().set.of_kind(Kind::Port).count(), 0);
    }

    fn shop_policy(name: &str) -> String {
        format!(
            "---\n{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}, namespace: shop}}, \
             spec: {{podSelector: {{matchLabels: {{app: {name}}}}}}}}}\n"
        )
    }

    fn namespace(name: &str) -> String {
        format!("---\n{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}\n")
    }

    fn shop_port() -> String {
        port("web").replace("{name: web}", "{name: web, namespace: shop, labels: {app: a}}")
    }

    fn kinds(applied: &Applied) -> Vec<String> {
        applied.changes.iter().map(|(action, object)| format!("{action:?} {}", object.key)).collect()
    }

    #[test]
    fn np9_deleting_a_namespace_removes_its_policies_and_never_a_port() {
        let host = host(tempfile::tempdir().unwrap());
        let first = host.apply(&[namespace("shop"), shop_policy("a"), shop_policy("b"), shop_port()].concat()).unwrap();
        // Only what selects nothing is dubious.
        let warnings: Vec<&str> = first.warnings.iter().map(|warning| warning.message.as_str()).collect();
        assert_eq!(warnings, ["policy shop/b selects 0 ports (podSelector app=b)"]);
        let delete = |kind, name: &str| {
            let _entered = host.runtime.enter();
            let gone = Edit::Delete { key: ObjectKey::new(kind, Some("shop"), name), must_exist: true };
            host.controller.edit(vec![gone], &EditOptions::default())
        };
        let error = delete(Kind::Namespace, "shop").unwrap_err();
        assert!(error.message.contains("Namespace shop still has 1 port: shop/web"), "{error}");
        assert_eq!(host.controller.snapshot().revision, first.revision);
        delete(Kind::Port, "web").unwrap();
        let gone = delete(Kind::Namespace, "shop").unwrap();
        assert_eq!(
            kinds(&gone),
            ["Deleted Namespace shop", "Deleted NetworkPolicy shop/a", "Deleted NetworkPolicy shop/b"]
        );
        let empty = |host: &Host| host.controller.snapshot().set.of_kind(Kind::NetworkPolicy).count() == 0;
        assert!(empty(&host));
        // From the store as well: a new namespace of that name begins without them.
        let host = host.restarted();
        host.apply(&namespace("shop")).unwrap();
        assert!(empty(&host));
    }

    #[test]
    fn a_policy_needs_its_namespace() {
        let host = host(tempfile::tempdir().unwrap());
        let error = host.apply(&shop_policy("a")).unwrap_err();
        assert!(error.to_diagnostics().to_string().contains("namespace shop does not exist"), "{error}");
    }

    #[test]
    fn policies_whose_namespace_left_the_files_are_orphans() {
        let stored = |text: &str| {
            let source = Source { name: "t".to_owned(), text: text.to_owned() };
            let objects = load_sources(vec![source]).unwrap().objects;
            let identity = Identity { uid: Uuid::new_v4(), revision: 1 };
            objects.into_iter().map(|object| (object.key.clone(), (Arc::new(object), identity))).collect()
        };
        let files = |text: &str| -> Vec<Arc<Object>> {
            let source = Source { name: "t".to_owned(), text: text.to_owned() };
            load_sources(vec![source]).unwrap().objects.into_iter().map(Arc::new).collect()
        };
        let paths = |keys: Vec<ObjectKey>| keys.iter().map(ObjectKey::path).collect::<Vec<_>>();
        let policy = shop_policy("a");
        assert_eq!(paths(orphans(&files(&namespace("shop")), &stored(&policy))), Vec::<String>::new());
        assert_eq!(paths(orphans(&files(""), &stored(&(policy.clone() + &namespace("shop"))))), Vec::<String>::new());
        assert_eq!(paths(orphans(&files(&namespace("other")), &stored(&policy))), ["shop/a"]);
        assert_eq!(paths(orphans(&files(""), &stored(&policy.replace("shop", "default")))), Vec::<String>::new());
        let of_host = policy.replace("shop", "hostweave-system");
        assert_eq!(paths(orphans(&files(""), &stored(&of_host))), ["hostweave-system/a"]);
        let access = "{apiVersion: hostweave.dev/v1alpha1, kind: HostConfig, metadata: {name: h}, \
                       spec: {hostAccess: {network: default}}}";
        assert_eq!(paths(orphans(&files(access), &stored(&of_host))), Vec::<String>::new());
        // Ports stay, and so stop the daemon: somebody must decide about them.
        assert_eq!(paths(orphans(&files(""), &stored(&shop_port()))), Vec::<String>::new());
    }

    #[test]
    fn an_applied_policy_lives_in_the_store_and_is_compiled_once() {
        let host = host(tempfile::tempdir().unwrap());
        let text = [namespace("shop"), shop_policy("a")].concat();
        host.apply(&text).unwrap();
        let policy = |host: &Host| Arc::clone(&policies::spec(&host.controller.snapshot().set).policies[0]);
        let before = policy(&host);
        assert_eq!(before.origin, "applied at run time");
        host.apply(&(text + &shop_port())).unwrap();
        assert!(Arc::ptr_eq(&before, &policy(&host)));
        host.apply(&shop_policy("a").replace("app: a", "app: x")).unwrap();
        assert!(!Arc::ptr_eq(&before, &policy(&host)));
    }

    /// A Service with or without selector, headless, or of a pool.
    fn service(name: &str, form: u32) -> String {
        let spec = ["selector: {app: a}, ", "", "clusterIP: None, ", "type: LoadBalancer, "][form as usize];
        format!(
            "---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: shop, \
             annotations: {{external-dns.alpha.kubernetes.io/hostname: {name}.example.org}}}}, \
             spec: {{{spec}ports: [{{port: 80}}]}}}}\n"
        )
    }

    fn slice(name: &str, service: &str, address: u32) -> String {
        format!(
            "---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: {name}, namespace: shop, \
             labels: {{kubernetes.io/service-name: {service}}}}}, addressType: IPv4, \
             endpoints: [{{addresses: [192.0.2.{address}]}}], ports: [{{port: 80}}]}}\n"
        )
    }

    const POOL: &str = "---\n{apiVersion: hostweave.dev/v1alpha1, kind: AddressPool, metadata: {name: p}, \
                        spec: {type: private, addresses: [203.0.113.0/24]}}\n";

    /// Nobody answers there.
    const ZONE: &str = "---\n{apiVersion: hostweave.dev/v1alpha1, kind: HostConfig, metadata: {name: h}, spec: {externalDNS: \
                        {server: '127.0.0.1:1', zone: example.org, tsig: {name: k, secretFile: /nowhere}}}}\n";

    /// Whatever is changed in whatever order, what was planned in steps is what is planned at once.
    #[test]
    fn plans_in_steps_are_those_from_scratch() {
        let host = host(tempfile::tempdir().unwrap());
        host.apply(&[ZONE.to_owned(), POOL.to_owned(), namespace("shop"), shop_port()].concat()).unwrap();
        let mut state = 0x9e37_79b9_u32;
        let mut random = |below: u32| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state % below
        };
        let (mut in_steps, mut refused) = (0, 0);
        for _ in 0..250 {
            let name = ["a", "b", "c"][random(3) as usize];
            let policy = shop_policy(name).replace(&format!("app: {name}"), ["app: x", "app: y"][random(2) as usize]);
            let labels = format!("metadata: {{labels: {{team: t{}}}, name: shop}}", random(3));
            let before = host.controller.snapshot();
            let delete = |key| Edit::Delete { key, must_exist: false };
            let edits = match random(11) {
                kind @ 8.. => some_port(kind, [random(2), random(3), random(4)]),
                7 => vec![delete(ObjectKey::new(
                    [Kind::Service, Kind::EndpointSlice][random(2) as usize],
                    Some("shop"),
                    name,
                ))],
                0 => vec![delete(ObjectKey::new(crate::config::Kind::NetworkPolicy, Some("shop"), name))],
                1 => vec![delete(
                    before.set.ports().next().map_or(ObjectKey::port("shop", "none"), |(key, ..)| key.clone()),
                )],
                kind => {
                    let text = match kind {
                        2 => shop_port(),
                        5 => service(name, random(4)),
                        6 => slice(name, ["a", "b", "c"][random(3) as usize], random(2)),
                        3 => namespace("shop").replace("metadata: {name: shop}", &labels),
                        _ => policy,
                    };
                    let source = Source { name: "t".to_owned(), text };
                    let objects = load_sources(vec![source]).unwrap().objects;
                    objects.into_iter().map(|object| Edit::Put(Box::new(object))).collect()
                }
            };
            if let Err(error) = host.controller.edit(edits, &EditOptions::default()) {
                // The one address that is asked for is the other port's, or a Pod contradicts its port.
                assert_eq!(error.data.kind, ErrorKind::Invalid, "{error}");
                assert_eq!(host.controller.snapshot().revision, before.revision);
                refused += 1;
                continue;
            }
            let after = host.controller.snapshot();
            in_steps +=
                u32::from(after.revision > before.revision && Arc::ptr_eq(&after.assignments, &before.assignments));
            let runtime = &host.controller.parts.runtime;
            let scratch = plan::plan(&host.controller.lock(), (&*after).into(), runtime).unwrap();
            assert_eq!(after.set.iter().count(), scratch.set.iter().count());
            let same = after.set.iter().zip(scratch.set.iter()).all(|(a, b)| a.0 == b.0 && Arc::ptr_eq(a.1, b.1));
            assert!(same);
            assert_eq!(after.assignments, scratch.assignments);
            assert_eq!(after.services, scratch.services);
            assert_eq!(format!("{:?}", after.desired), format!("{:?}", scratch.desired));
            assert_eq!(format!("{:?}", after.warnings), format!("{:?}", scratch.warnings));
            is_in_force(&host, &after.desired);
        }
        assert!(in_steps > 20 && refused < 50, "{in_steps} {refused}");
    }

    /// A port or a Pod, written or deleted, by three choices.
    fn some_port(kind: u32, [which, label, how]: [u32; 3]) -> Vec<Edit> {
        let name = ["a", "b"][which as usize];
        let key = |kind| ObjectKey::new(kind, Some("shop"), name);
        let labels = ["{app: a}", "{app: b}", "{team: t}"][label as usize];
        let spec = ["{}", "{adminState: down}", "{addresses: [10.64.0.9]}", "{flows: 7}"][how as usize]
            .replace("flows: 7", "limits: {flows: 7}");
        let weight = ["", ", annotations: {hostweave.dev/weight: \"7\"}"][usize::from(how == 3)];
        let metadata = format!("metadata: {{name: {name}, namespace: shop, labels: {labels}{weight}}}");
        match kind {
            8 if how == 0 => {
                [Kind::Pod, Kind::Port].map(|kind| Edit::Delete { key: key(kind), must_exist: false }).into()
            }
            9 if how == 1 => vec![Edit::Delete { key: key(Kind::Pod), must_exist: false }],
            9 => {
                let port = format!("{{apiVersion: hostweave.dev/v1alpha1, kind: Port, {metadata}, spec: {spec}}}\n");
                objects(&format!("{port}---\n{{apiVersion: v1, kind: Pod, {metadata}}}\n"))
            }
            _ => {
                let port = format!("{{apiVersion: hostweave.dev/v1alpha1, kind: Port, {metadata}, spec: {spec}}}\n");
                let gone = Edit::Delete { key: key(Kind::Pod), must_exist: false };
                std::iter::once(gone).chain(objects(&port)).collect()
            }
        }
    }

    #[test]
    fn a_port_that_contradicts_its_pod_is_refused_whichever_comes_second() {
        let host = host(tempfile::tempdir().unwrap());
        let port = |labels: &str| {
            format!(
                "{{apiVersion: hostweave.dev/v1alpha1, kind: Port, metadata: {{name: a, namespace: shop, labels: {labels}}}, spec: {{}}}}\n---\n"
            )
        };
        let pod = |app: &str| {
            format!(
                "{{apiVersion: v1, kind: Pod, metadata: {{name: a, namespace: shop, labels: {{app: {app}}}}}}}\n---\n"
            )
        };
        host.apply(&[&namespace("shop"), "---\n", &port("{team: t}"), &pod("a")].concat()).unwrap();
        let error = host.apply(&port("{team: t, app: b}")).unwrap_err();
        assert!(error.to_string().contains("label app is"), "{error}");
        host.apply(&port("{team: t, app: a}")).unwrap();
        assert!(host.apply(&pod("b")).is_err());
        // Everything is planned for this.
        host.apply(&namespace("other")).unwrap();
    }

    /// What workers have is what they would have if everything had been put in force at once.
    #[track_caller]
    fn is_in_force(host: &Host, desired: &Desired) {
        let fabric = &host.controller.parts.fabric;
        let (plane, whole) = (fabric.plane(), fabric.draft(desired).unwrap().plane);
        let ports = |plane: &crate::fabric::plane::Plane| {
            let text = |port: &hostweave_switch::tables::Port| {
                format!("{} {} {} {:?} {:?} {}", port.id.0, port.name, port.mac, port.v4, port.v6, port.up)
            };
            plane.tables.ports.iter().flatten().map(|port| text(port)).collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(ports(&plane), ports(&whole));
        for port in plane.tables.ports.iter().flatten() {
            for address in port.v4.iter().copied().map(std::net::IpAddr::V4) {
                let key = hostweave_switch::tables::AddressKey::new(port.network, address);
                assert_eq!(plane.tables.owner(key), Some(port.id), "{address}");
            }
        }
        assert_eq!(plane.tables.addresses.len(), whole.tables.addresses.len());
        let endpoints = |world: &hostweave_policy::model::World| {
            let text = |of: &Arc<hostweave_policy::model::Endpoint>| format!("{} {} {:?}", of.id.0, of.name, of.labels);
            world.endpoints.iter().map(text).collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(endpoints(&plane.world), endpoints(&fabric.draft(desired).unwrap().world));
        // Nobody runs, which a draft does not suppose of those that it does not know: names and addresses of backends.
        let frontends = |plane: &crate::fabric::plane::Plane| {
            let backend = |of: &hostweave_nat::service::Backend| {
                format!("{} {:x} {:?} {}", of.name, of.address, of.l4, of.weight)
            };
            let text = |of: &hostweave_nat::service::Frontend| {
                let spec = of.spec();
                let backends: Vec<String> = spec.backends.iter().map(backend).collect();
                format!("{} {:x} {} {:?} {backends:?}", spec.service, spec.address, spec.proto, spec.l4)
            };
            plane.services.frontends().map(text).collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(frontends(&plane), frontends(&whole));
    }

    /// A port that is relabelled, put down, added or removed is planned for its own Services, and what has nothing to do with it is the same
    /// list as before.
    #[test]
    fn a_changed_port_is_planned_for_its_own_services_only() {
        let host = host(tempfile::tempdir().unwrap());
        let service = |i: u32| service(&format!("s{i}"), 0).replace("app: a", &format!("app: a{i}"));
        let of = |name: &str, app: u32, spec: &str| {
            let metadata = format!("{{name: {name}, namespace: shop, labels: {{app: a{app}}}}}");
            format!("---\n{{apiVersion: hostweave.dev/v1alpha1, kind: Port, metadata: {metadata}, spec: {spec}}}\n")
        };
        let ports: String = (0..50).map(|i| of(&format!("p{i}"), i, "{}")).collect();
        host.apply(&(namespace("shop") + &(0..50).map(service).collect::<String>() + &ports)).unwrap();
        let steps = |edits: Vec<Edit>| {
            let before = host.controller.snapshot();
            let table = Arc::clone(&host.controller.parts.fabric.plane().tables.addresses);
            {
                let _entered = host.runtime.enter();
                host.controller.edit(edits, &EditOptions::default()).unwrap();
            }
            let after = host.controller.snapshot();
            is_in_force(&host, &after.desired);
            let others = |a: &[Arc<crate::fabric::spec::PortSpec>], b: &[Arc<crate::fabric::spec::PortSpec>]| {
                b.iter().filter(|port| !a.iter().any(|other| Arc::ptr_eq(port, other))).count()
            };
            let services = after
                .desired
                .services
                .iter()
                .filter(|spec| !before.desired.services.iter().any(|other| Arc::ptr_eq(spec, other)));
            let same_addresses = Arc::ptr_eq(&table, &host.controller.parts.fabric.plane().tables.addresses);
            (others(&before.desired.ports, &after.desired.ports), services.count(), same_addresses)
        };
        assert_eq!(steps(objects(&of("p7", 8, "{}"))), (1, 2, true), "relabelled");
        assert_eq!(steps(objects(&of("p7", 8, "{adminState: down}"))), (1, 1, true), "not ready");
        assert_eq!(steps(objects(&of("p7", 8, "{}"))), (1, 1, true), "ready");
        assert_eq!(steps(objects(&of("new", 9, "{}"))), (1, 1, false), "added");
        let gone = Edit::Delete { key: ObjectKey::port("shop", "new"), must_exist: true };
        assert_eq!(steps(vec![gone]), (0, 1, false), "removed");
        // Everything, if an address might be another's.
        let error = host.apply(&of("other", 9, "{addresses: [10.64.0.3]}").replace("---", "")).unwrap_err();
        assert!(error.to_string().contains("10.64.0.3"), "{error}");
    }

    /// Of 300 Services with EndpointSlices one is worked out when a backend of it changes: no other, and no list that says the same.
    #[test]
    fn a_changed_endpoint_slice_is_planned_for_its_own_service_only() {
        let host = host(tempfile::tempdir().unwrap());
        let own = |i: u32, address: u32| slice(&format!("s{i}"), &format!("s{i}"), address);
        let services = (0..300).map(|i| service(&format!("s{i}"), 1) + &own(i, 1));
        host.apply(&(namespace("shop") + &services.collect::<String>())).unwrap();
        let planned = |edits: &[Edit]| {
            let writer = host.controller.lock();
            let before = host.controller.snapshot();
            let (batch, revision) = (Batch::default(), before.revision + 1);
            let mut draft = Draft { objects: writer.clone(), changes: Vec::new(), batch, revision };
            edits.iter().for_each(|edit| draft.edit(edit.clone(), &before).unwrap());
            let runtime = &host.controller.parts.runtime;
            let plan = plan::replan(&draft.objects, &draft.changes, &before, runtime).unwrap();
            let pairs = before.desired.services.iter().zip(plan.desired.services.iter());
            let others = pairs.filter(|(a, b)| !Arc::ptr_eq(a, b)).count();
            let names = |desired: &Desired| Arc::clone(&desired.dns.as_ref().unwrap().services);
            let same_names = Arc::ptr_eq(&names(&before.desired), &names(&plan.desired));
            (plan.services_planned, others, same_names, before.desired.ports == plan.desired.ports)
        };
        assert_eq!(planned(&objects(&own(7, 2))), (1, 1, true, true));
        assert_eq!(planned(&objects(&own(7, 1))), (0, 0, true, true));
        assert_eq!(planned(&objects(&(own(7, 2) + &own(8, 2)))), (2, 2, true, true));
        // One that moves from a Service to another is about both.
        assert_eq!(planned(&objects(&slice("s7", "s9", 2))), (2, 2, true, true));
        let gone = ObjectKey::new(Kind::EndpointSlice, Some("shop"), "s7");
        assert_eq!(planned(&[Edit::Delete { key: gone, must_exist: true }]), (1, 1, true, true));
    }

    #[test]
    fn what_was_drained_survives_a_restart_and_goes_with_the_port() {
        let host = host(tempfile::tempdir().unwrap());
        let service = "---\n{apiVersion: v1, kind: Service, metadata: {name: web}, \
                       spec: {selector: {app: web}, ports: [{port: 80}]}}\n";
        let port = port("a").replace("{name: a}", "{name: a, labels: {app: web}}");
        host.apply(&[NETWORK, &port, service].concat()).unwrap();
        let what = Drained { backend: "default/a".to_owned(), service: Some("default/web".to_owned()) };
        assert!(host.controller.drain(what.clone(), true).unwrap());
        assert!(!host.controller.drain(what.clone(), true).unwrap(), "it is already");
        let host = host.restarted();
        assert_eq!(host.controller.parts.fabric.drained(), std::slice::from_ref(&what));
        let gone = Edit::Delete { key: ObjectKey::port("default", "a"), must_exist: true };
        host.controller.edit(vec![gone], &EditOptions::default()).unwrap();
        host.apply(&port).unwrap();
        assert!(host.controller.parts.fabric.drained().is_empty(), "another port of that name");
        let host = host.restarted();
        assert!(!host.controller.drain(what, false).unwrap());
    }

    #[test]
    fn who_left_a_service_keeps_its_connections_over_a_restart_and_goes_with_the_port() {
        let host = host(tempfile::tempdir().unwrap());
        let service = "---\n{apiVersion: v1, kind: Service, metadata: {name: web}, \
                       spec: {selector: {app: web}, ports: [{port: 80}]}}\n";
        let labelled = |app: &str| port("a").replace("{name: a}", &format!("{{name: a, labels: {{app: {app}}}}}"));
        let backends = |host: &Host| -> Vec<(String, bool)> {
            let plane = host.controller.parts.fabric.plane();
            let of = |frontend: &hostweave_nat::service::Frontend| frontend.spec().backends.clone();
            let all: Vec<_> = plane.services.frontends().map(of).collect();
            all.iter().flat_map(|of| of.iter().map(|of| (of.name.to_string(), of.active))).collect()
        };
        host.apply(&[NETWORK, &labelled("web"), service].concat()).unwrap();
        host.apply(&labelled("other")).unwrap();
        let left = [("default/a".to_owned(), false)];
        assert_eq!(backends(&host), left);
        let host = host.restarted();
        assert_eq!(backends(&host), left);
        // It is written once, not with each restart; and forgotten with the port.
        assert!(host.controller.parts.fabric.backends_to_store().is_empty());
        let host = host.restarted();
        assert_eq!(backends(&host), left);
        let gone = Edit::Delete { key: ObjectKey::port("default", "a"), must_exist: true };
        host.controller.edit(vec![gone], &EditOptions::default()).unwrap();
        assert_eq!(backends(&host), []);
        let host = host.restarted();
        assert_eq!(backends(&host), []);
    }

    #[test]
    fn paths_of_the_host_cannot_be_applied_at_run_time() {
        let host = host(tempfile::tempdir().unwrap());
        let text = "{apiVersion: hostweave.dev/v1alpha1, kind: HostConfig, metadata: {name: h}, \
                     spec: {paths: {state: /tmp/x}}}";
        assert_eq!(host.apply(text).unwrap_err().data.kind, ErrorKind::Conflict);
    }
}
