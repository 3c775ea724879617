//! Seconds of the monotonic clock: the same for every run of the daemon since the machine was started, so that what is
//! written down in them outlives the process.

use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

/// Turns readings of the clock into seconds.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    /// What the monotonic clock said then.
    at: Duration,
}

impl Clock {
    /// Reads the clock once.
    ///
    /// # Errors
    /// The kernel has no monotonic clock.
    pub fn new() -> nix::Result<Self> {
        let at = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
        Ok(Self { start: Instant::now(), at })
    }

    /// Milliseconds at `now`.
    #[inline]
    pub fn millis(&self, now: Instant) -> u64 {
        // More of them than anything runs.
        (self.at + now.saturating_duration_since(self.start)).as_millis() as u64
    }

    /// Ticks of [`hostweave_switch::rate`] at `now`.
    #[inline]
    pub fn ticks(&self, now: Instant) -> u64 {
        hostweave_switch::rate::ticks((self.at + now.saturating_duration_since(self.start)).as_nanos() as u64)
    }

    /// Whole seconds at `now`.
    #[inline]
    pub fn seconds(&self, now: Instant) -> u32 {
        // 136 years after the machine was started it begins anew.
        (self.at + now.saturating_duration_since(self.start)).as_secs() as u32
    }
}
