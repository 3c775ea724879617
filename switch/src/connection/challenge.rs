//! SYNs that came on a connection that stands, until the other end has said whether it still knows the connection.
//!
//! Such a SYN changes nothing (RFC 5961 §4.2): an end that knows the connection challenges it. But when both ends have
//! forgotten it (both rebooted) the answer is the SYN-ACK of a new one. It cannot be told from a forged one by the old
//! numbers, only by acknowledging the SYN that passed here. So the latest such SYNs are kept, one a place; what is
//! overwritten comes again, as TCP does.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::table::Found;
use crate::tcp_track::Side;

/// Places; a power of two.
const PLACES: usize = 1024;

/// No connection: indices stay below it.
const NOBODY: u64 = u64::MAX;

/// The latest challenged SYNs of the table's connections.
pub struct Challenges(Box<[Place]>);

struct Place {
    /// Index and generation of the connection. Written last, and taken away first.
    whose: AtomicU64,
    /// `end` and `ack` of the side that the SYN shows.
    numbers: AtomicU64,
    /// `window_max`, direction, `scale` and `flags`.
    rest: AtomicU64,
}

impl Challenges {
    /// None yet.
    pub(super) fn new() -> Self {
        let place = || Place { whose: AtomicU64::new(NOBODY), numbers: AtomicU64::new(0), rest: AtomicU64::new(0) };
        Self((0..PLACES).map(|_| place()).collect())
    }

    /// Keeps the side that a SYN shows which came on connection `on`, in its direction.
    pub fn keep(&self, on: &Found, shown: &Side) {
        let place = self.place(on);
        place.whose.store(NOBODY, Relaxed);
        place.numbers.store(u64::from(shown.end) << 32 | u64::from(shown.ack), Release);
        let low = (on.direction as u64) << 16 | u64::from(shown.scale) << 8 | u64::from(shown.flags);
        let rest = u64::from(shown.window_max) << 32 | low;
        place.rest.store(rest, Release);
        place.whose.store(whose(on), Release);
    }

    /// The side that was kept for connection `on`, of the direction of `on`.
    pub fn kept(&self, on: &Found) -> Option<Side> {
        let place = self.place(on);
        if place.whose.load(Acquire) != whose(on) {
            return None;
        }
        let (numbers, rest) = (place.numbers.load(Acquire), place.rest.load(Acquire));
        // Two writers at once leave a mixture at worst, which no SYN-ACK acknowledges.
        let same = place.whose.load(Relaxed) == whose(on) && (rest >> 16 & 1) as usize == on.direction;
        same.then_some(Side {
            end: (numbers >> 32) as u32,
            ack: numbers as u32,
            limit: 0,
            window_max: (rest >> 32) as u32,
            scale: (rest >> 8) as u8,
            flags: rest as u8,
        })
    }

    fn place(&self, on: &Found) -> &Place {
        &self.0[on.index as usize % PLACES]
    }
}

fn whose(on: &Found) -> u64 {
    u64::from(on.index) << 32 | u64::from(on.generation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_syn_of_a_place_is_kept_for_its_connection_alone() {
        let challenges = Challenges::new();
        let on = |index, generation| Found { index, generation, direction: 0 };
        let shown = |end| Side { end, ack: end - 1, limit: 0, window_max: 0xffff, scale: 14, flags: Side::SEEN };
        assert_eq!(challenges.kept(&on(7, 1)), None);
        challenges.keep(&on(7, 1), &shown(u32::MAX));
        assert_eq!(challenges.kept(&on(7, 1)), Some(shown(u32::MAX)));
        assert_eq!(challenges.kept(&on(7, 2)), None);
        assert_eq!(challenges.kept(&Found { direction: 1, ..on(7, 1) }), None);
        challenges.keep(&Found { direction: 1, ..on(7, 1) }, &shown(9));
        assert_eq!(challenges.kept(&Found { direction: 1, ..on(7, 1) }), Some(shown(9)));
        assert_eq!(challenges.kept(&on(7, 1)), None);
        challenges.keep(&on(7, 1), &shown(u32::MAX));
        challenges.keep(&on(7 + PLACES as u32, 1), &shown(5));
        assert_eq!(challenges.kept(&on(7, 1)), None);
    }
}
