//! How control speaks to a worker: a queue that the worker looks at between bursts, behind one flag.
//!
//! The flag is a plain load for the worker. Sending wakes the worker when it sleeps in its `io_uring`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hostweave_switch::tables::PortId;
use hostweave_uplink::uring::Waker;

use super::plane::SourceKey;
use crate::services::uplink::Frame;
use crate::worker::probe::Shot;

/// What a worker is told.
#[derive(Clone, Debug)]
pub enum Message {
    /// A new plane was published.
    PlaneChanged,
    /// The guest's driver started this queue: poll it, then wait for its kicks.
    SourceStarted(SourceKey),
    /// The queue stopped: forget its kick.
    SourceStopped(SourceKey),
    /// Send a router advertisement to every guest behind this port (RFC 4861 §6.2.4).
    Advertise(PortId),
    /// Send frames of the host's own to whatever is behind this port.
    Originate(PortId, Arc<[Frame]>),
    /// Send a frame for a port (`hostweave ping`).
    Probe(Arc<Shot>),
    /// End the thread.
    Stop,
}

impl PartialEq for Message {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Message::PlaneChanged, Message::PlaneChanged) | (Message::Stop, Message::Stop) => true,
            (Message::SourceStarted(a), Message::SourceStarted(b)) => a == b,
            (Message::SourceStopped(a), Message::SourceStopped(b)) => a == b,
            (Message::Advertise(a), Message::Advertise(b)) => a == b,
            (Message::Originate(a, x), Message::Originate(b, y)) => a == b && x == y,
            (Message::Probe(a), Message::Probe(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

/// One worker's mailbox.
pub struct Mailbox {
    pending: AtomicBool,
    messages: Mutex<Vec<Message>>,
    waker: Waker,
}

impl Mailbox {
    /// A mailbox for the worker that `waker` wakes.
    pub fn new(waker: Waker) -> Self {
        Self { pending: AtomicBool::new(false), messages: Mutex::new(Vec::new()), waker }
    }

    /// Leaves a message and wakes the worker.
    pub fn send(&self, message: Message) {
        {
            let mut messages = self.lock();
            // The same news twice is the same news.
            if messages.last() != Some(&message) {
                messages.push(message);
            }
            self.pending.store(true, Ordering::Release);
        }
        self.waker.wake();
    }

    /// Wakes the worker without a message (frames of an internal port wait).
    pub fn wake(&self) {
        self.waker.wake();
    }

    /// Swaps the waiting messages into `into`, which must be empty. One relaxed load when there are none.
    #[inline]
    pub fn take(&self, into: &mut Vec<Message>) {
        if self.pending.load(Ordering::Relaxed) {
            let mut messages = self.lock();
            self.pending.store(false, Ordering::Relaxed);
            std::mem::swap(&mut *messages, into);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Message>> {
        // A panic while holding this lock cannot leave a half-written Vec.
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
