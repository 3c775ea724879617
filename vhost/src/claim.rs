//! The lock of a virtqueue: workers try, the protocol thread waits.
//!
//! A worker claims a queue for a burst with a plain load and one compare-and-swap, and never waits. The protocol
//! thread, which stops rings and exchanges guest memory, announces itself in `wanted`: workers then leave the queue
//! alone, so that it wins after at most one burst. Whoever holds the claim owns what is inside; its release is a
//! Release store, so that the next holder sees everything. After the protocol thread has held a claim, no worker can
//! still be touching what it took away (SEMANTICS VU5, VU7).

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

#[cfg(loom)]
use loom::cell::UnsafeCell;
#[cfg(not(loom))]
use std::cell::UnsafeCell;

/// A value that one thread at a time may touch.
pub struct Claim<T> {
    /// Control threads that wait for the claim; workers keep off while it is not zero.
    wanted: AtomicU32,
    held: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: `held` admits one thread at a time to the value, with Acquire on the way in and Release on the way out, so
// sharing the cell only ever moves `&mut T` between threads. JUSTIFICATION: a `Mutex` cannot give control priority
// over workers, and its `try_lock` costs a second atomic read-modify-write on release.
unsafe impl<T: Send> Sync for Claim<T> {}

impl<T> Claim<T> {
    /// Nobody holds it.
    pub fn new(value: T) -> Self {
        Self { wanted: AtomicU32::new(0), held: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// The value, unless somebody else holds it or control wants it. Never waits.
    #[inline]
    pub fn try_claim(&self) -> Option<Claimed<'_, T>> {
        if self.wanted.load(Ordering::Relaxed) != 0 {
            return None;
        }
        self.take()
    }

    /// Waits until the value is free: at most one burst of one worker. Not for workers.
    pub fn claim_blocking(&self) -> Claimed<'_, T> {
        self.wanted.fetch_add(1, Ordering::Relaxed);
        let mut attempts = 0;
        let claimed = loop {
            if let Some(claimed) = self.take() {
                break claimed;
            }
            wait(attempts);
            attempts += 1;
        };
        self.wanted.fetch_sub(1, Ordering::Relaxed);
        claimed
    }

    #[inline]
    fn take(&self) -> Option<Claimed<'_, T>> {
        self.held.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).ok()?;
        Some(Claimed {
            claim: self,
            value_of: std::marker::PhantomData,
            #[cfg(loom)]
            value: Some(self.value.get_mut()),
        })
    }
}

#[cfg(not(loom))]
fn wait(attempts: u32) {
    match attempts {
        0..64 => std::hint::spin_loop(),
        64..128 => std::thread::yield_now(),
        _ => std::thread::sleep(std::time::Duration::from_micros(10)),
    }
}

#[cfg(loom)]
fn wait(_attempts: u32) {
    loom::thread::yield_now();
}

/// The value, while it is held.
pub struct Claimed<'a, T> {
    claim: &'a Claim<T>,
    /// A guard is as shareable as the `&mut T` it stands for.
    value_of: std::marker::PhantomData<&'a mut T>,
    /// Loom's proof that nobody else is inside; given up before the release store.
    #[cfg(loom)]
    value: Option<loom::cell::MutPtr<T>>,
}

impl<T> std::ops::Deref for Claimed<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        #[cfg(not(loom))]
        let value = self.claim.value.get();
        #[cfg(loom)]
        let value = self.value.as_ref().map_or(std::ptr::null_mut(), |pointer| pointer.with(|value| value));
        // SAFETY: this guard exists, so `held` is set by it and nobody else reaches the value; the borrow ends with
        // the guard. JUSTIFICATION: the inside of a lock.
        unsafe { &*value }
    }
}

impl<T> std::ops::DerefMut for Claimed<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        #[cfg(not(loom))]
        let value = self.claim.value.get();
        #[cfg(loom)]
        let value = self.value.as_ref().map_or(std::ptr::null_mut(), |pointer| pointer.with(|value| value));
        // SAFETY: as in `deref`, and the guard itself is borrowed mutably. JUSTIFICATION: the inside of a lock.
        unsafe { &mut *value }
    }
}

impl<T> Drop for Claimed<'_, T> {
    #[inline]
    fn drop(&mut self) {
        #[cfg(loom)]
        drop(self.value.take());
        self.claim.held.store(false, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn workers_keep_off_while_control_wants_it() {
        let claim = Claim::new(0);
        let held = claim.try_claim().unwrap();
        assert!(claim.try_claim().is_none());
        drop(held);
        claim.wanted.store(1, Ordering::Relaxed);
        assert!(claim.try_claim().is_none());
        claim.wanted.store(0, Ordering::Relaxed);
        assert!(claim.try_claim().is_some());
    }

    #[test]
    fn control_and_two_workers_never_meet_inside() {
        let claim = Arc::new(Claim::new((0u64, 0u64)));
        let stop = Arc::new(AtomicBool::new(false));
        let bursts = Arc::new(AtomicU64::new(0));
        let workers: Vec<_> = (0..2)
            .map(|_| {
                let (claim, stop, bursts) = (claim.clone(), stop.clone(), bursts.clone());
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let Some(mut inside) = claim.try_claim() else { continue };
                        inside.0 += 1;
                        assert_eq!(inside.0, inside.1 + 1);
                        inside.1 += 1;
                        drop(inside);
                        bursts.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let mut control = 0;
        for _ in 0..2_000 {
            let mut inside = claim.claim_blocking();
            inside.0 += 1;
            inside.1 += 1;
            control += 1;
        }
        while bursts.load(Ordering::Relaxed) == 0 {
            std::thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
        for worker in workers {
            worker.join().unwrap();
        }
        let inside = claim.try_claim().unwrap();
        assert_eq!(inside.0, bursts.load(Ordering::Relaxed) + control);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;

    /// Two workers and control: exclusive inside, everything visible to the next holder, control always gets in.
    #[test]
    fn workers_and_control() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let claim = Arc::new(Claim::new(0u32));
            let workers: Vec<_> = (0..2)
                .map(|_| {
                    let claim = claim.clone();
                    loom::thread::spawn(move || match claim.try_claim() {
                        Some(mut inside) => {
                            *inside += 1;
                            1
                        }
                        None => 0,
                    })
                })
                .collect();
            *claim.claim_blocking() += 1;
            let bursts: u32 = workers.into_iter().map(|worker| worker.join().unwrap()).sum();
            assert_eq!(*claim.claim_blocking(), bursts + 1);
        });
    }
}
