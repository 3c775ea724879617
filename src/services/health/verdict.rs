//! What the checks of one target have found: counting, verdict, history.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::check::Finding;
use super::{HistoryEntry, LastCheck, TargetReport};
use crate::fabric::spec::HealthSpec;

/// Changes that are remembered of a target.
pub const HISTORY_MAX: usize = 32;

/// One target's checks so far.
#[derive(Default)]
pub struct State {
    healthy: Option<bool>,
    /// Checks in a row that spoke against the verdict.
    contrary: u8,
    checks: u64,
    failures: u64,
    last: Option<LastCheck>,
    /// The last check failed, and took all the time that it had.
    silent: bool,
    history: VecDeque<HistoryEntry>,
}

impl State {
    /// Takes in a check. The result is the change, if the verdict is another one now.
    pub fn note(
        &mut self,
        spec: &HealthSpec,
        finding: Finding,
        took: Duration,
        at: SystemTime,
    ) -> Option<HistoryEntry> {
        let (passed, reason): (_, Arc<str>) = match finding {
            Ok(text) => (true, text.into()),
            Err(text) => (false, text.into()),
        };
        self.checks += 1;
        self.failures += u64::from(!passed);
        self.silent = !passed && took >= Duration::from_millis(spec.timeout_ms.into());
        self.last = Some(LastCheck { at, took, passed, reason: Arc::clone(&reason) });
        let enough = match self.healthy {
            None => 1,
            Some(healthy) if healthy == passed => {
                self.contrary = 0;
                return None;
            }
            Some(true) => spec.fall,
            Some(false) => spec.rise,
        };
        self.contrary = self.contrary.saturating_add(1);
        if self.contrary < enough {
            return None;
        }
        self.contrary = 0;
        self.healthy = Some(passed);
        let change = HistoryEntry { at, healthy: passed, reason };
        if self.history.len() == HISTORY_MAX {
            self.history.pop_front();
        }
        self.history.push_back(change.clone());
        Some(change)
    }

    /// The state of a target whose specification is another one from now on.
    pub fn carried_over(&self) -> Self {
        Self { healthy: self.healthy, history: self.history.clone(), ..Self::default() }
    }

    /// The verdict.
    pub fn healthy(&self) -> Option<bool> {
        self.healthy
    }

    /// Whether the last checks spoke against the verdict.
    pub fn is_doubted(&self) -> bool {
        self.contrary > 0
    }

    /// Whether the last check was over only at its timeout.
    pub fn is_silent(&self) -> bool {
        self.silent
    }

    /// Checks so far.
    pub fn checks(&self) -> u64 {
        self.checks
    }

    /// Of those, the ones that failed.
    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// For people.
    pub fn report(&self) -> TargetReport {
        TargetReport {
            healthy: self.healthy,
            contrary: self.contrary,
            checks: self.checks,
            failures: self.failures,
            last: self.last.clone(),
            history: self.history.iter().cloned().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fabric::spec::HealthCheck;

    fn spec(rise: u8, fall: u8) -> HealthSpec {
        HealthSpec { check: HealthCheck::Tcp, l4: None, interval_ms: 5000, timeout_ms: 2000, rise, fall }
    }

    /// Verdicts after each of the checks, `+` and `-`.
    fn verdicts(rise: u8, fall: u8, checks: &str) -> String {
        let mut state = State::default();
        let note = |check| {
            let finding = if check == '+' { Ok("fine".into()) } else { Err("not fine".into()) };
            let before = state.healthy();
            let change = state.note(&spec(rise, fall), finding, Duration::ZERO, SystemTime::UNIX_EPOCH);
            assert_eq!(change.is_some(), before != state.healthy());
            assert_eq!(change.map(|change| Some(change.healthy)), (before != state.healthy()).then(|| state.healthy()));
            if state.healthy() == Some(true) { 'H' } else { 'u' }
        };
        checks.chars().map(note).collect()
    }

    #[test]
    fn rise_and_fall() {
        for (rise, fall, checks, expected) in [
            (2, 3, "+", "H"),
            (2, 3, "-", "u"),
            (2, 3, "+--+---+", "HHHHHHuu"),
            (2, 3, "-+-++--+---", "uuuuHHHHHHu"),
            (1, 1, "+-+-", "HuHu"),
            (10, 10, "+---------+----------+", "HHHHHHHHHHHHHHHHHHHHuu"),
            (255, 255, "-+-", "uuu"),
        ] {
            assert_eq!(verdicts(rise, fall, checks), expected, "{rise} {fall} {checks}");
        }
    }

    #[test]
    fn the_last_changes_are_remembered() {
        let mut state = State::default();
        for round in 0..100 {
            let finding = if round % 2 == 0 { Ok(format!("{round}").into()) } else { Err(format!("{round}").into()) };
            state.note(&spec(1, 1), finding, Duration::from_millis(round), SystemTime::UNIX_EPOCH).unwrap();
        }
        let report = state.report();
        assert_eq!((report.checks, report.failures, report.healthy), (100, 50, Some(false)));
        let rounds: Vec<usize> = report.history.iter().map(|entry| entry.reason.parse().unwrap()).collect();
        assert_eq!(rounds, Vec::from_iter(100 - HISTORY_MAX..100));
        assert!(report.history.iter().enumerate().all(|(index, entry)| entry.healthy == (index % 2 == 0)));
        let last = report.last.unwrap();
        assert_eq!((&*last.reason, last.passed, last.took), ("99", false, Duration::from_millis(99)));
        let other = state.carried_over().report();
        assert_eq!((other.healthy, other.history, other.checks), (Some(false), report.history, 0));
    }
}
