//! How a worker that finds nothing to do waits for more: it polls, naps, or sleeps until somebody wakes it.

use std::time::Duration;

/// How long a source without packets is polled before the worker waits for its kick: a guest's kick costs it a VM
/// exit, so flapping is worse than a little polling.
pub const HOT: Duration = Duration::from_micros(100);

/// How long a worker sleeps when all that is left to poll are rings without a kick (VIRTIO poll mode).
pub const POLL_INTERVAL: Duration = Duration::from_micros(100);

/// How long a worker sleeps between two looks at hot rings while it moves bulk data: what a stream sends in that time fits a ring many
/// times over. Short, because somebody may wait for each large frame, too: who reads a file block by block.
pub const NAP: Duration = Duration::from_micros(25);

/// Octets of a frame from which on frames are bulk data, on average of both directions: segments and their acknowledgements.
const BULK_MIN: u64 = 4_096;

/// What a worker moved lately.
#[derive(Default)]
pub struct Load {
    /// Frames, of each loop an eighth less with each that follows and moves something.
    frames: u64,
    /// Their octets, alike.
    octets: u64,
    /// Octets of this loop.
    now: u64,
}

impl Load {
    /// A burst has so many octets.
    #[inline]
    pub fn add(&mut self, octets: u64) {
        self.now += octets;
    }

    /// A loop that moved something is over.
    #[inline]
    pub fn moved(&mut self, frames: usize) {
        const SCALE: u64 = 8;
        self.frames = self.frames - self.frames / 8 + SCALE * frames as u64;
        self.octets = self.octets - self.octets / 8 + SCALE * std::mem::take(&mut self.now);
    }

    /// Whether it is bulk data.
    pub fn is_bulk(&self) -> bool {
        self.frames > 0 && self.octets >= self.frames * BULK_MIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_and_their_acknowledgements_are_bulk_data_and_questions_are_not() {
        let mut load = Load::default();
        let moved = |load: &mut Load, frames, octets| {
            load.add(octets);
            load.moved(frames);
        };
        assert!(!load.is_bulk(), "nothing yet");
        moved(&mut load, 1, 1_514);
        assert!(!load.is_bulk());
        for _ in 0..20 {
            moved(&mut load, 2, 65_000);
            moved(&mut load, 1, 66);
        }
        assert!(load.is_bulk());
        for _ in 0..30 {
            moved(&mut load, 1, 100);
        }
        assert!(!load.is_bulk(), "what was is over");
    }
}
