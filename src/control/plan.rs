//! From the objects that are to exist to everything that follows from them: the checked set, the addresses, what the
//! packet path is to do. Reads the host's users and groups; changes nothing.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use hostweave_uplink::netlink::interfaces;
use rpds::RedBlackTreeMapSync;
use uuid::Uuid;

use super::controller::{Action, Snapshot};
use super::error::{ErrorKind, RpcError};
use crate::config::checked::Object;
use crate::config::desired::{HostFacts, node_of, to_desired};
use crate::config::outside::{self, ServiceAddresses, addresses};
use crate::config::services::Told;
use crate::config::{
    Assignments, Diagnostic, Diagnostics, Kind, ObjectKey, ObjectSet, check_set, external_dns, ipam, policies, services,
};
use crate::fabric::spec::{Desired, PortSpec};
use crate::fabric::uplink::owned::same_addresses;

/// What the daemon gave a stored object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Told apart from an object of the same name before or after it.
    pub uid: Uuid,
    /// Revision of its last change.
    pub revision: u64,
}

/// Objects applied at run time. A clone shares with it all that does not change.
pub type Stored = RedBlackTreeMapSync<ObjectKey, (Arc<Object>, Identity)>;

/// The objects that are to exist, by origin. Cheap to clone, and to change where they are applied at run time.
#[derive(Clone, Default)]
pub struct Objects {
    /// From files, in the order read.
    pub files: Arc<Vec<Arc<Object>>>,
    /// Applied at run time.
    pub stored: Stored,
}

impl Objects {
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
    pub assignments: Arc<Assignments>,
    /// Ports whose addresses are to be written to the store.
    pub assigned: Vec<ObjectKey>,
    /// Ports whose addresses are to be deleted from it.
    pub freed: Vec<ObjectKey>,
    /// Addresses of every Service.
    pub services: Arc<ServiceAddresses>,
    /// Services whose addresses are to be written to the store.
    pub services_assigned: Vec<ObjectKey>,
    /// Services whose addresses are to be deleted from it.
    pub services_freed: Vec<ObjectKey>,
    /// What the packet path is to do.
    pub desired: Desired,
    /// Ports that cannot be given what they need: they pass no traffic.
    pub problems: Vec<Diagnostic>,
    /// What is dubious.
    pub warnings: Vec<Diagnostic>,
    /// Services that were worked out; all others are as they were.
    pub services_planned: usize,
}

impl Plan {
    /// What is dubious about those of `keys` that are policies, Services or EndpointSlices, or take part in an attachment.
    pub fn dubious<'a>(&'a self, keys: impl Iterator<Item = &'a ObjectKey>) -> Vec<Diagnostic> {
        let keys: Vec<&ObjectKey> = keys.collect();
        let mut dubious = policies::dubious(&self.set, keys.iter().copied());
        dubious.extend(services::dubious(&self.set, &self.desired.ports, keys.iter().copied()));
        dubious.extend(outside::dubious(&self.set, &self.services, keys));
        dubious
    }
}

/// What was given and planned before, which stays where it can.
#[derive(Clone, Copy)]
pub struct Before<'a> {
    /// Addresses of ports.
    pub assignments: &'a Assignments,
    /// Addresses of Services.
    pub services: &'a ServiceAddresses,
    /// What the packet path and DNS were told of Services.
    pub told: Told<'a>,
}

impl<'a> From<&'a Snapshot> for Before<'a> {
    fn from(snapshot: &'a Snapshot) -> Self {
        Self { assignments: &snapshot.assignments, services: &snapshot.services, told: Told::of(&snapshot.desired) }
    }
}

/// Plans.
///
/// # Errors
/// The objects contradict each other: all problems.
pub fn plan(objects: &Objects, before: Before<'_>, runtime_dir: &Path) -> Result<Plan, Diagnostics> {
    let (set, warnings) = check_set(objects.all(), runtime_dir)?;
    let ipam = ipam::assign(&set, before.assignments, &mut Uuid::new_v4);
    let services = addresses::assign(&set, before.services);
    let others = services.changed.iter().chain(&services.freed);
    let changed = before.told.changed.map(|changed| changed.iter().chain(others).cloned().collect::<HashSet<_>>());
    let told = Told { changed: changed.as_ref(), ..before.told };
    let told = Before { assignments: &ipam.assignments, services: &services.addresses, told };
    let (desired, mut problems) = desired(&set, told, runtime_dir);
    problems.extend(ipam.problems.into_iter().chain(services.problems));
    Ok(Plan {
        services_planned: set.of_kind(Kind::Service).count(),
        set,
        assignments: Arc::new(ipam.assignments),
        assigned: ipam.changed,
        freed: ipam.freed,
        services: Arc::new(services.addresses),
        services_assigned: services.changed,
        services_freed: services.freed,
        desired,
        problems,
        warnings,
    })
}

/// What [`plan`] says after `changes` of what was planned before; costs what changed where nothing but namespaces, policies, Services,
/// EndpointSlices and ports by themselves did. What lacks something is planned again with all others: what it waits for may be there now.
///
/// # Errors
/// As [`plan`].
pub fn replan(
    objects: &Objects,
    changes: &[(Action, Arc<Object>)],
    before: &Snapshot,
    runtime_dir: &Path,
) -> Result<Plan, Diagnostics> {
    let changed = changes.iter().filter(|(action, _)| *action != Action::Unchanged);
    let changed: Vec<_> = changed.map(|(action, object)| (*action == Action::Deleted, object)).collect();
    if before.problems.is_empty()
        && let Some(plan) = in_steps(&changed, before, runtime_dir)?
    {
        return Ok(plan);
    }
    // Services that neither a port nor anything else of these concerns are as they were.
    let simple = |object: &&Arc<Object>| {
        use Kind::{ClusterNetworkPolicy, EndpointSlice, Namespace, NetworkPolicy, Pod, Port, Service};
        matches!(
            object.key.kind,
            Port | Pod | Service | EndpointSlice | Namespace | NetworkPolicy | ClusterNetworkPolicy
        )
    };
    let concerned = services::concerned(&before.set, changed.iter().map(|(_, object)| *object));
    let only = changed.iter().all(|(_, object)| simple(object)).then_some(&concerned);
    let told = Told { changed: only, ..Told::of(&before.desired) };
    plan(objects, Before { told, ..Before::from(before) }, runtime_dir)
}

/// [`replan`], where it costs what changed: each with whether it is gone. `None` where everything is to be planned.
fn in_steps(
    changed: &[(bool, &Arc<Object>)],
    before: &Snapshot,
    runtime_dir: &Path,
) -> Result<Option<Plan>, Diagnostics> {
    let Some(set) = before.set.with_changes(changed, runtime_dir).transpose()? else { return Ok(None) };
    let desired = Desired { policy: policies::spec(&set), ..before.desired.clone() };
    let mut plan = Plan {
        assignments: Arc::clone(&before.assignments),
        services: Arc::clone(&before.services),
        warnings: before.warnings.clone(),
        desired,
        set,
        ..Plan::default()
    };
    let mut concerned = services::concerned(&before.set, changed.iter().map(|(_, object)| *object));
    let Some(of_ports) = change_ports(&mut plan, changed, before, runtime_dir) else { return Ok(None) };
    concerned.extend(of_ports);
    concerned.retain(|key| key.kind == Kind::Service);
    if !concerned.is_empty() {
        // EndpointSlices have no say in the addresses of Services, nor in their names outside.
        if changed.iter().any(|(_, object)| object.key.kind == Kind::Service) {
            let given = addresses::assign(&plan.set, &before.services);
            concerned.extend(given.changed.iter().cloned());
            plan.desired.external_dns = external_dns::spec(&plan.set, &given.addresses);
            plan.services = Arc::new(given.addresses);
            (plan.services_assigned, plan.services_freed, plan.problems) = (given.changed, given.freed, given.problems);
        }
        plan.services_planned = concerned.len();
        let node = node_of(&plan.set, &HostFacts::system(runtime_dir));
        services::resolve_again(&plan.set, &plan.services, &node, &concerned, &mut plan.desired);
    }
    Ok(Some(plan))
}

/// Plans the ports among `changed`, or those of Pods. Returns the Services that this concerns; `None` where there is a problem to be told.
fn change_ports(
    plan: &mut Plan,
    changed: &[(bool, &Arc<Object>)],
    before: &Snapshot,
    runtime_dir: &Path,
) -> Option<Vec<ObjectKey>> {
    let of_port = |(_, object): &(bool, &Arc<Object>)| match object.key.kind {
        Kind::Port | Kind::Pod => Some(ObjectKey { kind: Kind::Port, ..object.key.clone() }),
        _ => None,
    };
    let ports: Vec<ObjectKey> = changed.iter().filter_map(of_port).collect();
    if ports.is_empty() {
        return Some(Vec::new());
    }
    if ports.iter().any(|key| before.set.get(key).is_some() != plan.set.get(key).is_some()) {
        let ipam = ipam::assign(&plan.set, &before.assignments, &mut Uuid::new_v4);
        if !ipam.problems.is_empty() {
            return None;
        }
        plan.assignments = Arc::new(ipam.assignments);
        (plan.assigned, plan.freed) = (ipam.changed, ipam.freed);
    }
    let host = HostFacts::system(runtime_dir);
    let specs = crate::config::desired::change_ports(&plan.set, &plan.assignments, &ports, &host, &mut plan.desired)?;
    let specs: Vec<&PortSpec> = specs.iter().map(|spec| &**spec).collect();
    // Labels mean nothing to EndpointSlices, and are what changes most.
    let relabelled = |(gone, object): &(bool, &Arc<Object>)| match before.set.get(&object.key) {
        Some(old) => !gone && old.spec == object.spec && old.metadata.annotations == object.metadata.annotations,
        None => object.key.kind != Kind::Port && object.key.kind != Kind::Pod,
    };
    let places: &[&PortSpec] = if changed.iter().all(relabelled) { &[] } else { &specs };
    Some(services::concerned_by(&plan.set, &specs, places))
}

/// What the packet path is to do for objects whose addresses are given.
pub fn desired(set: &ObjectSet, given: Before<'_>, runtime_dir: &Path) -> (Desired, Vec<Diagnostic>) {
    to_desired(set, given.assignments, given.services, given.told, &HostFacts::system(runtime_dir))
}

/// Refuses a plan that makes a new problem, or has addresses at the uplink that the kernel of this host holds.
///
/// # Errors
/// The new problems, at their objects; or the kernel does not answer.
pub fn refuse_new(plan: &Plan, before: &Snapshot) -> Result<(), RpcError> {
    refuse_new_problems(plan, &before.problems)?;
    refuse_addresses_of_the_kernel(plan, &before.desired)
}

/// Refuses a plan with addresses at the uplink that the kernel of this host holds, if it has others there than `before`: what the kernel was
/// given later does not stand in the way of other changes.
///
/// # Errors
/// Each such address, at the object that it comes from; or the kernel does not answer.
fn refuse_addresses_of_the_kernel(plan: &Plan, before: &Desired) -> Result<(), RpcError> {
    if plan.desired.uplink.is_none() || same_addresses(&plan.desired, before) {
        return Ok(());
    }
    let found = outside::held(&plan.set, &interfaces::addresses().map_err(anyhow::Error::from)?);
    if found.is_empty() { Ok(()) } else { Err(Diagnostics(found).into()) }
}

/// Refuses a plan that makes a new problem; what was wrong before does not stand in the way of other changes.
///
/// # Errors
/// The new problems.
fn refuse_new_problems(plan: &Plan, known: &[Diagnostic]) -> Result<(), RpcError> {
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
