//! The task of one target: asks, counts, tells, waits.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{Instant, sleep_until};

use super::check::Prober;
use super::verdict::State;
use super::{Change, Target, lock, schedule};

/// Asks a target for as long as it lives, first after `first`.
pub async fn watch(
    target: Arc<Target>,
    state: Arc<Mutex<State>>,
    prober: Prober,
    changes: UnboundedSender<Change>,
    first: Duration,
) {
    let mut random = uuid::Uuid::new_v4().as_u64_pair().1 as u32 | 1;
    let mut begin = Instant::now() + first;
    loop {
        sleep_until(begin).await;
        let started = Instant::now();
        let finding = prober.check(&target).await;
        let change = lock(&state).note(&target.spec, finding, started.elapsed(), SystemTime::now());
        if let Some(entry) = change {
            let change =
                Change { target: Arc::clone(&target), healthy: entry.healthy, reason: entry.reason, at: entry.at };
            // Nobody hears when the host is about to stop.
            let _ = changes.send(change);
        }
        // Xorshift32: only to drift apart.
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        // From when it was due, so that delays do not add up; never in the past.
        begin = (begin + schedule::next(target.interval(), random)).max(Instant::now());
    }
}
