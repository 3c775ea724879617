//! A shard: the lock of the chains of some buckets, their timer wheel, and the version by which they are read without it.
//!
//! A chain changes only under the lock, and every change makes the version odd before and even after, larger each time. Who
//! reads a chain without the lock looks at the version before and after: if it was even and is the same, nothing
//! moved in between, and what was read is what the lock would have shown. Records themselves are atomics and never unmapped,
//! so a walk through a chain that changes meanwhile ends somewhere, and its result is thrown away.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::wheel::Wheel;

/// See the module.
pub(super) struct Shard {
    version: AtomicU32,
    /// Connections in its chains. Written under the lock.
    count: AtomicU32,
    /// Connections that were given up for newer ones. Written under the lock.
    evicted: AtomicU64,
    wheel: Mutex<Wheel>,
}

/// That a key was in no chain when it was looked for. Good for the commit of that same key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Miss(u32);

impl Miss {
    /// It was not looked for. No version under the lock is odd.
    pub const UNKNOWN: Self = Self(1);
}

impl Shard {
    pub(super) fn new(now: u32) -> Self {
        Self {
            version: AtomicU32::new(0),
            count: AtomicU32::new(0),
            evicted: AtomicU64::new(0),
            wheel: Mutex::new(Wheel::new(now)),
        }
    }

    /// A panic under the lock would end the process (`fabric::or_abort`).
    #[inline]
    pub(super) fn lock(&self) -> MutexGuard<'_, Wheel> {
        self.wheel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `walk` finds in the chains without the lock, and the version that it is true of; `None` when a change came in
    /// between, or `walk` gave up.
    #[inline]
    pub(super) fn read<R>(&self, walk: impl FnOnce() -> Option<R>) -> Option<(R, Miss)> {
        let before = self.version.load(Acquire);
        if before & 1 != 0 {
            return None;
        }
        let found = walk()?;
        // Whatever `walk` read of a change, this reads the version of that change or a later one.
        fence(Acquire);
        (self.version.load(Relaxed) == before).then_some((found, Miss(before)))
    }

    /// Whether no chain has changed since. Under the lock.
    #[inline]
    pub(super) fn is_unchanged_since(&self, miss: Miss) -> bool {
        self.version.load(Relaxed) == miss.0
    }

    /// The version of now. Under the lock.
    #[inline]
    pub(super) fn miss(&self) -> Miss {
        Miss(self.version.load(Relaxed))
    }

    /// Changes chains. Under the lock.
    #[inline]
    pub(super) fn change<R>(&self, change: impl FnOnce() -> R) -> R {
        let version = self.version.load(Relaxed);
        self.version.store(version.wrapping_add(1), Relaxed);
        fence(Release);
        let result = change();
        self.version.store(version.wrapping_add(2), Release);
        result
    }

    /// Connections in its chains.
    pub(super) fn count(&self) -> u32 {
        self.count.load(Relaxed)
    }

    /// One more connection, or one less. Under the lock.
    #[inline]
    pub(super) fn count_more(&self, more: i32) {
        self.count.store(self.count.load(Relaxed).wrapping_add_signed(more), Relaxed);
    }

    /// Connections that were given up.
    pub(super) fn evicted(&self) -> u64 {
        self.evicted.load(Relaxed)
    }

    /// One more was given up. Under the lock.
    #[inline]
    pub(super) fn count_evicted(&self) {
        self.evicted.store(self.evicted.load(Relaxed) + 1, Relaxed);
    }
}
