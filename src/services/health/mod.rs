//! Active health checks of the backends of Services (SEMANTICS SV2, SV3, SV6).
//!
//! # Interface
//!
//! A [`Target`] is what is asked: an address and L4 port in a network, and a [`HealthSpec`]. Services that ask the same of the same
//! backend share one target. [`Health::replace`] takes all targets that are to be checked; what stays goes on undisturbed. A change
//! of a verdict arrives as [`Change`] at the receiver that [`Health::new`] gave out; [`Health::verdict`] says how things stand, so a
//! receiver that takes changes in batches (`recv_many`) need only look there. A target that was removed may still have changes
//! in the channel. A target without a verdict has not been asked yet and must get no traffic.
//!
//! # Theory of operation
//!
//! Each target has a task (`watch`): it sleeps, checks, counts (`verdict`), sleeps. The first check decides; from then on it takes
//! `rise` successes or `fall` failures in a row to change the verdict. Checks of new targets are spread (`schedule`). Each kind of
//! check is a file; all of them go through [`Sockets`], so they begin at the gateway's address and take the way of any packet
//! into the network: `trace`, `observe` and `capture` see them, and they pass policy by the built-in rule `builtin/health-probes`
//! (SEMANTICS NP28). Whatever a backend does, a check is over at its timeout.
//!
//! What clients see speeds checks up ([`Health::suspect`]): a backend that refuses or ignores a client's SYN is asked at once, and until the
//! matter is settled again after an eighth of the interval.

mod check;
mod dialer;
mod grpc;
mod http;
#[cfg(test)]
mod peer_tests;
mod ping;
mod schedule;
mod tcp;
#[cfg(test)]
mod tests;
mod tls;
mod udp;
mod verdict;
mod watch;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use uuid::Uuid;

use self::check::{Check, Prober};
use self::verdict::State;
use self::watch::Watch;
use super::sockets::Sockets;
use crate::fabric::spec::{HealthCheck, HealthSpec};

pub use self::verdict::HISTORY_MAX;

/// What is asked of whom.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Target {
    network: Arc<str>,
    /// Whose address it is: what was said about another port that had it means nothing.
    port: Option<Uuid>,
    address: IpAddr,
    l4: u16,
    spec: Arc<HealthSpec>,
}

impl Target {
    /// A target. `l4` is the backend's own L4 port; `None` when it has none of its own. The result is `None` when the check
    /// needs an L4 port and neither says which.
    pub fn new(network: Arc<str>, address: IpAddr, l4: Option<u16>, spec: Arc<HealthSpec>) -> Option<Self> {
        let l4 = match spec.check {
            HealthCheck::Icmp => 0,
            _ => spec.l4.or(l4).filter(|port| *port != 0)?,
        };
        Some(Self { network, port: None, address, l4, spec })
    }

    /// The same of a port: another one that gets the address is another target.
    pub fn of_port(self, port: Option<Uuid>) -> Self {
        Self { port, ..self }
    }

    /// Name of the network.
    pub fn network(&self) -> &str {
        &self.network
    }

    /// Address of the backend.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// L4 port that is asked; 0 for ICMP.
    pub fn l4(&self) -> u16 {
        self.l4
    }

    /// What is asked.
    pub fn spec(&self) -> &HealthSpec {
        &self.spec
    }

    fn interval(&self) -> Duration {
        Duration::from_millis(self.spec.interval_ms.into())
    }

    fn timeout(&self) -> Duration {
        Duration::from_millis(self.spec.timeout_ms.into())
    }
}

/// A verdict that changed, or was reached for the first time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// About whom.
    pub target: Arc<Target>,
    /// The verdict.
    pub healthy: bool,
    /// What the deciding check found, for people.
    pub reason: Arc<str>,
    /// When.
    pub at: SystemTime,
}

/// What is known of a target, for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TargetReport {
    /// The verdict; `None` before the first check.
    pub healthy: Option<bool>,
    /// Checks in a row that speak against the verdict.
    pub contrary: u8,
    /// Checks so far.
    pub checks: u64,
    /// Of those, the ones that failed.
    pub failures: u64,
    /// The last check: when it began, how long it took, whether it succeeded, and what it found.
    pub last: Option<LastCheck>,
    /// The last [`HISTORY_MAX`] changes, oldest first.
    pub history: Vec<HistoryEntry>,
}

/// One check.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LastCheck {
    /// When it was over.
    pub at: SystemTime,
    /// How long it took.
    pub took: Duration,
    /// Whether it succeeded.
    pub passed: bool,
    /// What it found.
    pub reason: Arc<str>,
}

/// One change of a verdict.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HistoryEntry {
    /// When.
    pub at: SystemTime,
    /// The verdict from then on.
    pub healthy: bool,
    /// What the deciding check found.
    pub reason: Arc<str>,
}

/// Numbers over all targets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HealthReport {
    /// Targets that are healthy.
    pub healthy: usize,
    /// Targets that are not.
    pub unhealthy: usize,
    /// Targets that were not asked yet.
    pub unknown: usize,
    /// Checks of the present targets.
    pub checks: u64,
    /// Of those, the ones that failed.
    pub failures: u64,
}

/// The checks of all targets. They end when it is dropped.
pub struct Health {
    prober: Prober,
    runtime: Handle,
    changes: UnboundedSender<Change>,
    origin: Instant,
    watched: Mutex<HashMap<Arc<Target>, Watched>>,
}

struct Watched {
    state: Arc<Mutex<State>>,
    suspicion: Arc<Notify>,
    task: AbortHandle,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Health {
    /// No targets yet, and where changes of verdicts arrive. To be called inside a tokio runtime, on which checks run.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(sockets: Sockets) -> (Self, UnboundedReceiver<Change>) {
        Self::with(Arc::new(check::Checks::new(sockets)))
    }

    fn with(prober: Arc<dyn Check>) -> (Self, UnboundedReceiver<Change>) {
        let (changes, receiver) = unbounded_channel();
        (
            Self { prober, runtime: Handle::current(), changes, origin: Instant::now(), watched: Mutex::default() },
            receiver,
        )
    }

    /// Checks these targets from now on, and no others. A target whose [`HealthSpec`] alone is another keeps its verdict and history: it
    /// is asked at once, and its next verdict is reached as any later one is.
    pub fn replace(&self, targets: impl IntoIterator<Item = Target>) {
        let mut watched = lock(&self.watched);
        let mut old = std::mem::take(&mut *watched);
        let mut new = Vec::new();
        for target in targets {
            if let Some((target, known)) = old.remove_entry(&target) {
                watched.insert(target, known);
            } else if !watched.contains_key(&target) {
                new.push(target);
            }
        }
        let place = |target: &Target| (Arc::clone(&target.network), target.port, target.address, target.l4);
        let gone: HashMap<_, _> = old.iter().map(|(target, known)| (place(target), &known.state)).collect();
        let fresh = new.len();
        for (index, target) in new.into_iter().enumerate() {
            let state = gone.get(&place(&target)).map_or_else(State::default, |state| lock(state).carried_over());
            let target = Arc::new(target);
            let first = schedule::first(index, fresh, target.interval());
            watched.entry(Arc::clone(&target)).or_insert_with(|| self.watch(target, state, first));
        }
    }

    fn watch(&self, target: Arc<Target>, state: State, first: Duration) -> Watched {
        let (state, suspicion) = (Arc::new(Mutex::new(state)), Arc::new(Notify::new()));
        let watch = Watch {
            target,
            state: Arc::clone(&state),
            prober: Arc::clone(&self.prober),
            changes: self.changes.clone(),
            suspicion: Arc::clone(&suspicion),
            origin: self.origin,
        };
        Watched { state, suspicion, task: self.runtime.spawn(watch.run(first)).abort_handle() }
    }

    /// Clients could not connect to these backends, each a network's name and an address, as the packet path has seen
    /// (`Connections::take_failures`). They are asked at once, and again soon while the answer speaks against them: what a client says
    /// decides nothing here (but see `fabric::balance::outlier`). Looks at all targets: to be called with many, now and then.
    pub fn suspect<'a>(&self, backends: impl IntoIterator<Item = (&'a str, IpAddr)>) {
        let backends: HashSet<_> = backends.into_iter().collect();
        if backends.is_empty() {
            return;
        }
        for (target, known) in &*lock(&self.watched) {
            if backends.contains(&(target.network(), target.address)) && lock(&known.state).healthy() == Some(true) {
                known.suspicion.notify_one();
            }
        }
    }

    /// Whether a target is healthy; `None` before its first check, and of one that is not checked.
    pub fn verdict(&self, target: &Target) -> Option<bool> {
        lock(&self.watched).get(target).and_then(|known| lock(&known.state).healthy())
    }

    /// What is known of a target; `None` of one that is not checked.
    pub fn target(&self, target: &Target) -> Option<TargetReport> {
        lock(&self.watched).get(target).map(|known| lock(&known.state).report())
    }

    /// Numbers over all targets.
    pub fn report(&self) -> HealthReport {
        let mut report = HealthReport::default();
        for known in lock(&self.watched).values() {
            let state = lock(&known.state);
            *match state.healthy() {
                Some(true) => &mut report.healthy,
                Some(false) => &mut report.unhealthy,
                None => &mut report.unknown,
            } += 1;
            report.checks += state.checks();
            report.failures += state.failures();
        }
        report
    }
}

/// Nothing that is half done under these locks matters: each value is complete in itself.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
