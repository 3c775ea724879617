//! Backends that come and go are held out for longer and longer, as routers do with routes that flap (RFC 2439): each time that one leaves or
//! comes back, connections of everybody are looked at again, so a broken or hostile one must not do that as often as it can.
//!
//! Leaving is always in force at once; what is put off is coming back. While a backend is held out nothing that it does is news.

use std::time::{Duration, Instant};

/// Departures that cost nothing: firmware, boot loader and kernel of a guest each reset the device, and a guest may boot twice.
pub const DEPARTURES_FREE: u32 = 6;

/// After so long without another one a departure is forgotten.
pub const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

/// How long the first departure beyond those holds a backend out. Each further one doubles it.
pub const HOLD_MIN: Duration = Duration::from_secs(1);

/// It is never held out for longer.
pub const HOLD_MAX: Duration = Duration::from_secs(256);

/// How a backend has behaved lately.
#[derive(Clone, Default, Debug)]
pub struct Damper {
    departures: u32,
    /// From when on departures are being forgotten.
    since: Option<Instant>,
    held: Option<Hold>,
}

#[derive(Clone, Copy, Debug)]
struct Hold {
    length: Duration,
    until: Instant,
}

impl Damper {
    /// The backend has left. Returns whether it is held out by that.
    pub fn left(&mut self, now: Instant) -> bool {
        if self.held.is_some() {
            return false;
        }
        let quiet = self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let forgotten = u32::try_from(quiet.as_secs() / FORGOTTEN_AFTER.as_secs()).unwrap_or(u32::MAX);
        self.departures = self.departures.saturating_sub(forgotten).saturating_add(1);
        let Some(doubled) = self.departures.checked_sub(DEPARTURES_FREE + 1) else {
            self.since = Some(now);
            return false;
        };
        let length = HOLD_MIN.saturating_mul(1_u32.checked_shl(doubled).unwrap_or(u32::MAX)).min(HOLD_MAX);
        self.since = Some(now + length);
        self.held = Some(Hold { length, until: now + length });
        true
    }

    /// Until when the backend is held out, if it is.
    pub fn held_until(&self) -> Option<Instant> {
        self.held.map(|hold| hold.until)
    }

    /// Ends what has lasted long enough. Returns whether something ended.
    pub fn release(&mut self, now: Instant) -> bool {
        self.held.take_if(|hold| hold.until <= now).is_some()
    }

    /// Why the backend is held out, in a few words.
    pub fn reason(&self) -> Option<String> {
        let hold = self.held?;
        Some(format!(
            "it left {} times in a short time, and is held out for {} s",
            self.departures,
            hold.length.as_secs()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_leaves_again_and_again_is_held_out_for_longer_and_longer() {
        let mut now = Instant::now();
        let mut damper = Damper::default();
        for _ in 0..DEPARTURES_FREE {
            assert!(!damper.left(now));
        }
        let mut lengths = Vec::new();
        for _ in 0..10 {
            assert!(damper.left(now));
            assert!(!damper.left(now), "what happens meanwhile does not count");
            let until = damper.held_until().unwrap();
            assert!(!damper.release(until - Duration::from_millis(1)));
            assert!(damper.release(until) && damper.held_until().is_none());
            lengths.push((until - now).as_secs());
            now = until;
        }
        assert_eq!(lengths, [1, 2, 4, 8, 16, 32, 64, 128, 256, 256]);
    }

    #[test]
    fn departures_are_forgotten() {
        let start = Instant::now();
        let mut damper = Damper::default();
        for hour in 0..100 {
            assert!(!damper.left(start + Duration::from_secs(3600) * hour), "a guest that restarts every hour");
        }
        for _ in 0..DEPARTURES_FREE {
            damper.left(start);
        }
        assert!(damper.held_until().is_some());
        assert!(damper.reason().unwrap().contains("left 7 times"), "{:?}", damper.reason());
        assert!(damper.release(start + Duration::from_secs(400_000)));
        assert!(!damper.left(start + Duration::from_secs(500_000)));
    }
}
