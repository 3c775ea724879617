//! The task of one target: asks, counts, tells, waits.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::check::{Checked, Prober};
use super::verdict::State;
use super::{Change, Target, lock, schedule};

/// What the task of a target has.
pub struct Watch {
    /// Who is asked.
    pub target: Arc<Target>,
    /// What was found so far.
    pub state: Arc<Mutex<State>>,
    /// Who asks.
    pub prober: Prober,
    /// Who is told.
    pub changes: UnboundedSender<Change>,
    /// Clients could not connect.
    pub suspicion: Arc<Notify>,
    /// From when checks of all targets are counted.
    pub origin: Instant,
}

impl Watch {
    /// Asks for as long as the task lives, first after `first`.
    pub async fn run(self, first: Duration) {
        let interval = self.target.interval();
        let mut random = uuid::Uuid::new_v4().as_u64_pair().1 as u32 | 1;
        let mut begin = Instant::now() + first;
        let mut suspected = false;
        loop {
            sleep_until(begin).await;
            let started = Instant::now();
            let doubted = self.check().await;
            // Xorshift32: only to drift apart.
            random ^= random << 13;
            random ^= random >> 17;
            random ^= random << 5;
            // From when it was due, so that delays do not add up; never in the past.
            begin = self.together(begin + schedule::next(interval, random)).max(Instant::now());
            suspected = (suspected && doubted) || timeout_at(begin, self.suspicion.notified()).await.is_ok();
            if suspected {
                begin = begin.min(started + schedule::soonest(interval));
            }
        }
    }

    fn together(&self, begin: Instant) -> Instant {
        let since = begin.saturating_duration_since(self.origin);
        self.origin + schedule::together(since, self.target.interval())
    }

    /// Asks once. Whether the answer speaks against the verdict, or others before it did.
    async fn check(&self) -> bool {
        let silent = lock(&self.state).is_silent();
        let Checked { finding, took } = self.prober.check(&self.target, silent).await;
        let mut state = lock(&self.state);
        let change = state.note(&self.target.spec, finding, took, SystemTime::now());
        let doubted = state.is_doubted();
        drop(state);
        if let Some(entry) = change {
            let target = Arc::clone(&self.target);
            // Nobody hears when the host is about to stop.
            let _ = self.changes.send(Change { target, healthy: entry.healthy, reason: entry.reason, at: entry.at });
        }
        doubted
    }
}
