//! External DNS: names of Services in a real zone, kept there by dynamic updates.
//!
//! # Theory of operation
//!
//! A task on the control side, in the host's own network namespace, reads the zone from its primary server (`wire`: AXFR), works
//! out what has to change (`plan`), and sends an update for each name, whose prerequisites say what the name had: whoever
//! changes it in between wins, and the next round looks again. A round begins when something else is wanted, after
//! `intervalSeconds`, and when a name's grace has passed. A zone that was right, and whose serial number is the same, is not read again (`settled`). Nothing that is not marked as ours is touched, and nothing is kept
//! here that the zone does not say, so that any run goes on where the last one ended.

pub mod names;
pub mod news;
mod plan;
mod settled;
pub mod spec;
mod wire;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use self::news::News;
use self::plan::{Cause, Denied, plan};
use self::settled::Settled;
use self::spec::ExternalDnsSpec;
use self::wire::{Connection, Failure, Updated};
use crate::fabric::spec::FabricEvent;

/// How soon a round that failed is repeated, at the latest.
const RETRY: Duration = Duration::from_secs(15);
/// Looks at the zone in one round, while others change what we change.
const LOOKS_MAX: usize = 3;
/// How long one round may take.
const ROUND_MAX: Duration = Duration::from_secs(300);

/// What is true of a Service's names: the condition `ExternalRecords` of its status (SEMANTICS CW9).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExternalRecords {
    /// Whether all its names are in the zone.
    pub ready: bool,
    /// `Synced`, `Pending`, `Conflict`, `Refused`, `InvalidName`, `NoAddress` or `ServerFailure`.
    pub reason: &'static str,
    /// In sentences.
    pub message: String,
    /// Since when `ready` is what it is.
    pub since: SystemTime,
}

/// What was counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ExternalDnsReport {
    /// Names that were made, changed or deleted.
    pub updates: u64,
    /// Looks at the zone: its serial number, or all of it.
    pub looks: u64,
    /// Of those, the ones that read all of it.
    pub transfers: u64,
    /// Rounds that failed.
    pub failures: u64,
    /// Names that Services do not get because others have them, in the last round.
    pub conflicts: u64,
    /// Names that Services do not get because the server does not take them, in the last round.
    pub refused: u64,
}

#[derive(Default)]
struct Shared {
    conditions: ArcSwap<BTreeMap<String, ExternalRecords>>,
    updates: AtomicU64,
    looks: AtomicU64,
    transfers: AtomicU64,
    failures: AtomicU64,
    conflicts: AtomicU64,
    refused: AtomicU64,
    /// When it began to look, in seconds of the epoch.
    began_s: AtomicU64,
}

/// Keeps names in a zone.
pub struct ExternalDns {
    told: watch::Sender<Option<Arc<ExternalDnsSpec>>>,
    shared: Arc<Shared>,
    task: AbortHandle,
}

impl Drop for ExternalDns {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ExternalDns {
    /// Without a zone; what becomes of names is told as events. To be called inside a tokio runtime.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(events: UnboundedSender<FabricEvent>) -> Self {
        let (told, listener) = watch::channel(None);
        let shared = Arc::new(Shared::default());
        let task = tokio::spawn(run(listener, Arc::clone(&shared), News::new(events))).abort_handle();
        Self { told, shared, task }
    }

    /// Says what is wanted from now on.
    pub fn update(&self, spec: Option<&Arc<ExternalDnsSpec>>) {
        self.told.send_if_modified(|told| {
            let other = told.as_ref() != spec;
            if other {
                *told = spec.cloned();
            }
            other
        });
    }

    /// What is true of the names of a Service, `namespace/name`; `None` when it asks for none.
    pub fn records_of(&self, service: &str) -> Option<ExternalRecords> {
        let told = self.told.borrow().clone()?;
        if !told.wanted.iter().any(|wanted| wanted.service == service) {
            return None;
        }
        let began = Duration::from_secs(self.shared.began_s.load(Ordering::Relaxed));
        let pending = || ExternalRecords {
            since: SystemTime::UNIX_EPOCH + began,
            ready: false,
            reason: "Pending",
            message: "the zone has not been looked at yet".to_owned(),
        };
        Some(self.shared.conditions.load().get(service).cloned().unwrap_or_else(pending))
    }

    /// What was counted.
    pub fn report(&self) -> ExternalDnsReport {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Shared { updates, looks, transfers, failures, conflicts, refused, .. } = &*self.shared;
        ExternalDnsReport {
            updates: load(updates),
            looks: load(looks),
            transfers: load(transfers),
            failures: load(failures),
            conflicts: load(conflicts),
            refused: load(refused),
        }
    }
}

async fn run(mut told: watch::Receiver<Option<Arc<ExternalDnsSpec>>>, shared: Arc<Shared>, mut news: News) {
    // Since when nobody wants a name.
    let mut unwanted: HashMap<String, Instant> = HashMap::new();
    let mut settled = None;
    loop {
        let spec = told.borrow_and_update().clone();
        if settled.is_none() && shared.conditions.load().is_empty() {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            shared.began_s.store(now.as_secs(), Ordering::Relaxed);
        }
        let Some(spec) = spec else {
            shared.conditions.store(Arc::default());
            settled = None;
            if told.changed().await.is_err() {
                return;
            }
            continue;
        };
        let result = timeout(ROUND_MAX, round(&spec, &mut unwanted, &mut settled, (&shared, &news))).await;
        let result = result.unwrap_or_else(|_| Err(format!("a round took more than {} s", ROUND_MAX.as_secs())));
        let interval = Duration::from_secs(spec.interval_s.into());
        let wait = match &result {
            Ok(_) => until_grace_ends(&unwanted, &spec).map_or(interval, |left| left.min(interval)),
            Err(failure) => {
                tracing::warn!(zone = spec.zone, server = %spec.server, failure, "names of Services are not kept up");
                shared.failures.fetch_add(1, Ordering::Relaxed);
                interval.min(RETRY)
            }
        };
        if let Ok(problems) = &result {
            news.refused(&spec, problems);
        }
        let is_conflict = |denied: &&Denied| denied.cause == Cause::Conflict;
        let denied = result.as_ref().map(Vec::as_slice).unwrap_or_default();
        let conflicts = denied.iter().filter(is_conflict).count();
        shared.conflicts.store(conflicts as u64, Ordering::Relaxed);
        shared.refused.store((denied.len() - conflicts) as u64, Ordering::Relaxed);
        let before = shared.conditions.load_full();
        shared.conditions.store(Arc::new(conditions(&spec, &result, &before, SystemTime::now())));
        if let Ok(Err(_)) = timeout(wait, told.changed()).await {
            return;
        }
    }
}

/// Makes the zone what it is to be. Returns which Services do not get a name, and why.
async fn round(
    spec: &ExternalDnsSpec,
    unwanted: &mut HashMap<String, Instant>,
    settled: &mut Option<Settled>,
    (shared, news): (&Shared, &News),
) -> Result<Vec<Denied>, Failure> {
    shared.looks.fetch_add(1, Ordering::Relaxed);
    let grace = Duration::from_secs(spec.grace_s.into());
    let some_expired = unwanted.values().any(|since| since.elapsed() >= grace);
    let known = settled.take().filter(|known| !some_expired && known.is_of(spec, Instant::now()));
    if let Some(known) = known
        && known.still_holds(spec).await
    {
        return Ok(settled.insert(known).problems.clone());
    }
    for _ in 0..LOOKS_MAX {
        let mut connection = Connection::open(spec).await?;
        let (have, serial) = connection.transfer().await?;
        shared.transfers.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        let none = plan(spec, &have, |_| false).unwanted;
        unwanted.retain(|name, _| none.contains(name));
        for name in none {
            unwanted.entry(name).or_insert(now);
        }
        let expired = |name: &str| unwanted.get(name).is_some_and(|since| now.duration_since(*since) >= grace);
        let plan = plan(spec, &have, expired);
        let conflict = |(service, why)| Denied { service, cause: Cause::Conflict, why };
        let (mut all, mut problems) = (true, plan.conflicts.into_iter().map(conflict).collect::<Vec<_>>());
        for change in &plan.changes {
            match connection.update(change, spec).await? {
                Updated::Done => {
                    shared.updates.fetch_add(1, Ordering::Relaxed);
                    news.changed(spec, change);
                    tracing::info!(
                        name = change.name,
                        deleted = change.after.is_none(),
                        "a name in the zone was changed"
                    );
                }
                Updated::Overtaken => all = false,
                // It is those who want this name that hear of it; the other names are none the worse.
                Updated::Refused(cause, why) => {
                    let wants = spec.wanted.iter().filter(|wanted| wanted.names.contains(&change.name));
                    let denied = |service: &String| Denied { service: service.clone(), cause, why: why.clone() };
                    problems.extend(wants.map(|wanted| denied(&wanted.service)));
                    tracing::warn!(name = change.name, "{why}");
                }
            }
        }
        if all {
            // What was changed now has another serial number, and what was refused is tried again.
            *settled =
                serial.filter(|_| plan.changes.is_empty()).map(|serial| Settled::new(spec, serial, &problems, now));
            return Ok(problems);
        }
    }
    Err("somebody else changes the same names at the same time".to_owned())
}

/// How long until the first name that nobody wants may go.
fn until_grace_ends(unwanted: &HashMap<String, Instant>, spec: &ExternalDnsSpec) -> Option<Duration> {
    let grace = Duration::from_secs(spec.grace_s.into());
    let left = unwanted.values().map(|since| grace.saturating_sub(since.elapsed()));
    left.filter(|left| !left.is_zero()).min()
}

fn conditions(
    spec: &ExternalDnsSpec,
    result: &Result<Vec<Denied>, Failure>,
    before: &BTreeMap<String, ExternalRecords>,
    now: SystemTime,
) -> BTreeMap<String, ExternalRecords> {
    let of = |wanted: &spec::Wanted| {
        let denied: Vec<&Denied> = result.iter().flatten().filter(|denied| denied.service == wanted.service).collect();
        let (ready, reason, message) = match result {
            Err(failure) => (false, "ServerFailure", failure.clone()),
            Ok(_) if !wanted.problems.is_empty() => (false, "InvalidName", wanted.problems.join("; ")),
            Ok(_) if wanted.addresses.is_empty() => {
                (false, "NoAddress", "the Service has no address that a name could stand for".to_owned())
            }
            Ok(_) => match denied.first() {
                Some(first) => {
                    let why: Vec<&str> = denied.iter().map(|denied| denied.why.as_str()).collect();
                    (false, first.cause.name(), why.join("; "))
                }
                None => (true, "Synced", format!("in the zone {}: {}", spec.zone, wanted.names.join(", "))),
            },
        };
        let known = before.get(&wanted.service).filter(|known| known.ready == ready);
        let since = known.map_or(now, |known| known.since);
        (wanted.service.clone(), ExternalRecords { ready, reason, message, since })
    };
    spec.wanted.iter().map(of).collect()
}
