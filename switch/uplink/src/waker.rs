//! How another thread ends a worker's sleep: one flag, and an eventfd that is written only when the worker sleeps.
//!
//! ```text
//! worker: sleeping = true ─► pending? ─ yes ─► do not sleep        others: pending = true ─► sleeping? ─► write
//! ```
//! All four accesses are sequentially consistent: at least one side sees the other.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};

struct Shared {
    eventfd: EventFd,
    pending: AtomicBool,
    sleeping: AtomicBool,
}

/// Ends the sleep of the worker whose [`crate::uring::Uring`] it came from.
#[derive(Clone)]
pub struct Waker(Arc<Shared>);

impl Waker {
    pub(crate) fn new() -> io::Result<Self> {
        let eventfd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self(Arc::new(Shared { eventfd, pending: AtomicBool::new(false), sleeping: AtomicBool::new(false) })))
    }

    /// Makes the worker's present or next [`crate::uring::Uring::wait`] return. Cheap when it is awake, or when
    /// somebody woke it already.
    #[inline]
    pub fn wake(&self) {
        if !self.0.pending.swap(true, Ordering::SeqCst) && self.0.sleeping.load(Ordering::SeqCst) {
            // Fails only when the counter is full: then the eventfd was readable already.
            let _ = self.0.eventfd.write(1);
        }
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.0.eventfd.as_raw_fd()
    }

    /// The worker is about to sleep. Returns `false` when it must not.
    pub(crate) fn may_sleep(&self) -> bool {
        self.0.sleeping.store(true, Ordering::SeqCst);
        if self.0.pending.swap(false, Ordering::SeqCst) {
            self.0.sleeping.store(false, Ordering::SeqCst);
            return false;
        }
        true
    }

    /// The worker is awake again and will look at everything that it may have been woken for.
    pub(crate) fn woke(&self) {
        self.0.sleeping.store(false, Ordering::SeqCst);
        self.0.pending.swap(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_before_the_sleep_prevents_it_once() {
        let waker = Waker::new().unwrap();
        waker.wake();
        waker.wake();
        assert!(!waker.may_sleep());
        assert!(waker.may_sleep());
        assert!(waker.0.eventfd.read().is_err(), "nobody slept, so nothing was written");
        waker.wake();
        waker.wake();
        assert_eq!(waker.0.eventfd.read().unwrap(), 1, "one write for two wakes");
        waker.woke();
        assert!(waker.may_sleep());
    }
}
