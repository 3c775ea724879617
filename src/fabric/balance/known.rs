//! What is known of endpoints besides what objects say: whose ports run, what checks said, and who was drained; and which Services
//! each of it concerns.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::super::spec::EndpointSpec;
use super::choice::Known;
use super::damping::Damper;
use crate::services::health::Target;

/// What a target's checks said last.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// `None` before the first verdict.
    pub healthy: Option<bool>,
    /// Why, in a few words.
    pub reason: Arc<str>,
}

/// Somebody wants no new connections there.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Drained {
    /// Name of the backend, as [`EndpointSpec::name`].
    pub backend: String,
    /// Name of the Service; `None` for all of them.
    pub service: Option<String>,
}

#[derive(Clone)]
struct Checked {
    verdict: Verdict,
    damper: Damper,
    services: Vec<Arc<str>>,
}

#[derive(Clone, Default)]
struct Runs {
    running: bool,
    damper: Damper,
}

/// See the module.
#[derive(Clone, Default)]
pub struct Facts {
    /// Whether ports run, by uid.
    running: HashMap<Uuid, Runs>,
    /// Those that are held out.
    held_ports: HashSet<Uuid>,
    held_targets: HashSet<Arc<Target>>,
    /// Those that ran at any time in this run.
    seen: HashSet<Uuid>,
    /// Whether guests of an earlier run are awaited.
    awaiting: bool,
    drained: BTreeSet<Drained>,
    targets: HashMap<Arc<Target>, Checked>,
    by_port: HashMap<Uuid, Vec<Arc<str>>>,
}

impl Facts {
    /// What is known of an endpoint of a Service that is checked as `target` says.
    pub fn known(&self, service: &str, endpoint: &EndpointSpec, check: &Check) -> Known {
        Known {
            running: endpoint.port.is_none_or(|port| self.runs(&port) == Some(true)),
            held: self.damper(endpoint, check).is_some(),
            awaited: self.awaiting && endpoint.port.is_some_and(|port| !self.seen.contains(&port)),
            drained: self.is_drained(service, &endpoint.name),
            healthy: match check {
                Check::None => Some(true),
                Check::Impossible => None,
                Check::Target(target) => self.targets.get(target).and_then(|checked| checked.verdict.healthy),
            },
        }
    }

    /// Whether there is a port, running or not.
    pub fn has_port(&self, port: &Uuid) -> bool {
        self.running.contains_key(port)
    }

    fn runs(&self, port: &Uuid) -> Option<bool> {
        self.running.get(port).map(|runs| runs.running)
    }

    /// What holds an endpoint out, if something does.
    fn damper(&self, endpoint: &EndpointSpec, check: &Check) -> Option<&Damper> {
        // Nearly always.
        if self.held_ports.is_empty() && self.held_targets.is_empty() {
            return None;
        }
        let of_port = endpoint.port.and_then(|port| self.running.get(&port)).map(|runs| &runs.damper);
        let of_target = match check {
            Check::Target(target) => self.targets.get(target).map(|checked| &checked.damper),
            _ => None,
        };
        of_port.into_iter().chain(of_target).find(|damper| damper.held_until().is_some())
    }

    /// Why an endpoint is as it is, where somebody said: what holds it out, else its checks.
    pub fn reason(&self, endpoint: &EndpointSpec, check: &Check) -> Option<Arc<str>> {
        if let Some(held) = self.damper(endpoint, check) {
            return held.reason().map(Arc::from);
        }
        match check {
            Check::Target(target) => self.verdict(target).map(|verdict| Arc::clone(&verdict.reason)),
            _ => None,
        }
    }

    /// The same for a Service that is only thought of: what nobody knows is as one would wish.
    pub fn supposed(&self, service: &str, endpoint: &EndpointSpec, check: &Check) -> Known {
        let known = self.known(service, endpoint, check);
        Known {
            running: endpoint.port.is_none_or(|port| self.runs(&port) != Some(false)),
            healthy: known.healthy.or(Some(true)),
            ..known
        }
    }

    /// What a target's checks said last, if it is one.
    pub fn verdict(&self, target: &Target) -> Option<&Verdict> {
        self.targets.get(target).map(|checked| &checked.verdict)
    }

    /// Every target.
    pub fn targets(&self) -> impl Iterator<Item = &Arc<Target>> {
        self.targets.keys()
    }

    /// Whether a backend takes no new connections of a Service because somebody said so.
    pub fn is_drained(&self, service: &str, backend: &str) -> bool {
        // Nearly always.
        if self.drained.is_empty() {
            return false;
        }
        let of = |service: Option<&str>| Drained { backend: backend.to_owned(), service: service.map(str::to_owned) };
        self.drained.contains(&of(None)) || self.drained.contains(&of(Some(service)))
    }

    /// All that was drained.
    pub fn drained(&self) -> &BTreeSet<Drained> {
        &self.drained
    }

    /// Drains, or undoes that. Returns whether something is different.
    pub fn set_drained(&mut self, what: Drained, drained: bool) -> bool {
        if drained { self.drained.insert(what) } else { self.drained.remove(&what) }
    }

    /// Forgets what was drained and is gone.
    pub fn retain_drained(&mut self, there: impl Fn(&Drained) -> bool) {
        self.drained.retain(there);
    }

    /// Whether a port runs. Returns the Services for which that is news.
    pub fn set_running(&mut self, port: Uuid, running: bool, now: Instant) -> &[Arc<str>] {
        if running {
            self.seen.insert(port);
        }
        let runs = self.running.entry(port).or_default();
        if std::mem::replace(&mut runs.running, running) == running || runs.damper.held_until().is_some() {
            return &[];
        }
        if !running && runs.damper.left(now) {
            self.held_ports.insert(port);
        }
        self.by_port.get(&port).map_or(&[], Vec::as_slice)
    }

    /// Ends what has held backends out for long enough. Returns the Services for which that is news.
    pub fn release(&mut self, now: Instant) -> Vec<Arc<str>> {
        let Self { running, held_ports, held_targets, targets, by_port, .. } = self;
        let mut concerned = Vec::new();
        held_ports.retain(|port| {
            let Some(runs) = running.get_mut(port) else { return false };
            if runs.damper.release(now) {
                concerned.extend(by_port.get(port).into_iter().flatten().map(Arc::clone));
            }
            runs.damper.held_until().is_some()
        });
        held_targets.retain(|target| {
            let Some(checked) = targets.get_mut(target) else { return false };
            if checked.damper.release(now) {
                concerned.extend(checked.services.iter().map(Arc::clone));
            }
            checked.damper.held_until().is_some()
        });
        concerned
    }

    /// When the next backend that is held out may come back.
    pub fn next_release(&self) -> Option<Instant> {
        let ports = self.held_ports.iter().filter_map(|port| self.running.get(port)?.damper.held_until());
        let targets = self.held_targets.iter().filter_map(|target| self.targets.get(target)?.damper.held_until());
        ports.chain(targets).min()
    }

    /// Whether guests of an earlier run are awaited.
    pub fn awaiting(&self) -> bool {
        self.awaiting
    }

    /// From now on guests of an earlier run are awaited, or are not any more.
    pub fn set_awaiting(&mut self, awaiting: bool) {
        self.awaiting = awaiting;
    }

    /// Forgets ports that are gone.
    pub fn retain_ports(&mut self, there: impl Fn(&Uuid) -> bool) {
        self.running.retain(|port, _| there(port));
        self.seen.retain(|port| there(port));
        self.held_ports.retain(|port| there(port));
    }

    /// What a check said. Returns the Services for which that is news.
    pub fn set_verdict(&mut self, target: &Target, healthy: bool, reason: &str, now: Instant) -> &[Arc<str>] {
        let Some((target, _)) = self.targets.get_key_value(target) else { return &[] };
        let target = Arc::clone(target);
        let Some(checked) = self.targets.get_mut(&target) else { return &[] };
        let before = checked.verdict.healthy.replace(healthy);
        checked.verdict.reason = reason.into();
        if before == Some(healthy) || checked.damper.held_until().is_some() {
            return &[];
        }
        if before == Some(true) && checked.damper.left(now) {
            self.held_targets.insert(target);
        }
        &checked.services
    }

    /// A Service has this endpoint from now on. A target that is new begins as `inherited` says; returns whether it is.
    pub fn add(&mut self, service: &Arc<str>, endpoint: &EndpointSpec, check: &Check, inherited: Option<bool>) -> bool {
        if let Some(port) = endpoint.port {
            self.by_port.entry(port).or_default().push(Arc::clone(service));
        }
        let Check::Target(target) = check else { return false };
        let mut new = false;
        let checked = self.targets.entry(Arc::clone(target)).or_insert_with(|| {
            new = true;
            let reason = "as before the check was changed".into();
            let verdict = Verdict { healthy: inherited, reason };
            Checked { verdict, damper: Damper::default(), services: Vec::new() }
        });
        checked.services.push(Arc::clone(service));
        new
    }

    /// A Service does not have this endpoint any more. Returns whether nobody wants its target.
    pub fn remove(&mut self, service: &Arc<str>, endpoint: &EndpointSpec, check: &Check) -> bool {
        if let Some(port) = endpoint.port
            && let Some(services) = self.by_port.get_mut(&port)
        {
            remove_one(services, service);
            if services.is_empty() {
                self.by_port.remove(&port);
            }
        }
        let Check::Target(target) = check else { return false };
        let Some(checked) = self.targets.get_mut(target) else { return false };
        remove_one(&mut checked.services, service);
        checked.services.is_empty()
    }

    /// Forgets a target that nobody wants. Returns whether it did.
    pub fn forget(&mut self, target: &Target) -> bool {
        let unwanted = self.targets.get(target).is_some_and(|checked| checked.services.is_empty());
        self.held_targets.retain(|held| !unwanted || **held != *target);
        unwanted && self.targets.remove(target).is_some()
    }
}

fn remove_one(services: &mut Vec<Arc<str>>, service: &Arc<str>) {
    if let Some(at) = services.iter().position(|other| other == service) {
        services.swap_remove(at);
    }
}

/// How an endpoint is checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Check {
    /// Not at all.
    None,
    /// It is to be, and nothing says on which L4 port.
    Impossible,
    /// Like this.
    Target(Arc<Target>),
}
