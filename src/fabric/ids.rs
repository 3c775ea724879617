//! Indices of networks and ports.

use std::collections::{HashSet, VecDeque};

/// Small numbers, reused late: they index tables, and a frame that waits in a stash names its port by one.
#[derive(Default)]
pub(super) struct IdPool {
    next: u32,
    free: VecDeque<u32>,
}

impl IdPool {
    /// Numbers that rest before the first of them is used again.
    const RESTING: usize = 256;

    /// One in which some numbers are taken already; those between them are free.
    pub(super) fn without(taken: &HashSet<u32>) -> Self {
        let next = taken.iter().max().map_or(0, |last| last + 1);
        Self { next, free: (0..next).filter(|id| !taken.contains(id)).collect() }
    }

    pub(super) fn take(&mut self) -> u32 {
        if self.free.len() > Self::RESTING
            && let Some(id) = self.free.pop_front()
        {
            return id;
        }
        self.next += 1;
        self.next - 1
    }

    pub(super) fn give_back(&mut self, id: u32) {
        self.free.push_back(id);
    }
}
