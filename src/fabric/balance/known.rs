//! What is known of endpoints besides what objects say: whose ports run, what checks said, and who was drained; and which Services
//! each of it concerns.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::super::spec::EndpointSpec;
use super::choice::Known;
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
    services: Vec<Arc<str>>,
}

/// See the module.
#[derive(Clone, Default)]
pub struct Facts {
    /// Whether ports run, by uid.
    running: HashMap<Uuid, bool>,
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
            running: endpoint.port.is_none_or(|port| self.running.get(&port) == Some(&true)),
            awaited: self.awaiting && endpoint.port.is_some_and(|port| !self.seen.contains(&port)),
            drained: self.is_drained(service, &endpoint.name),
            healthy: match check {
                Check::None => Some(true),
                Check::Impossible => None,
                Check::Target(target) => self.targets.get(target).and_then(|checked| checked.verdict.healthy),
            },
        }
    }

    /// The same for a Service that is only thought of: what nobody knows is as one would wish.
    pub fn supposed(&self, service: &str, endpoint: &EndpointSpec, check: &Check) -> Known {
        let known = self.known(service, endpoint, check);
        Known {
            running: endpoint.port.is_none_or(|port| self.running.get(&port) != Some(&false)),
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
    pub fn set_running(&mut self, port: Uuid, running: bool) -> &[Arc<str>] {
        if running {
            self.seen.insert(port);
        }
        let before = self.running.insert(port, running);
        if before.unwrap_or(false) != running { self.by_port.get(&port).map_or(&[], Vec::as_slice) } else { &[] }
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
    }

    /// What a check said. Returns the Services for which that is news.
    pub fn set_verdict(&mut self, target: &Target, healthy: bool, reason: &str) -> &[Arc<str>] {
        let Some(checked) = self.targets.get_mut(target) else { return &[] };
        let news = checked.verdict.healthy != Some(healthy);
        checked.verdict = Verdict { healthy: Some(healthy), reason: reason.into() };
        if news { &checked.services } else { &[] }
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
            Checked { verdict: Verdict { healthy: inherited, reason }, services: Vec::new() }
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
