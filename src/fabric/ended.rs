//! Connections that end, on their way into the flow log: whoever ends one leaves an event here, and the maintenance thread takes it.
//!
//! Of what ends at once (a flood that evicts its own connections, a port that is removed with many) each port may leave so many
//! per second, as for connections that begin; the others are counted, and the log says so.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64};

use crossbeam_queue::ArrayQueue;
use hostweave_switch::connection::Connections;
use hostweave_switch::limits::PORTS_MAX;

use crate::observe::flow_event::FlowEvent;

/// Events that wait for the maintenance thread at most.
const WAITING_MAX: usize = 8_192;

/// Ends of connections of one port that the log is told of in a second.
const PER_PORT_AND_S: u32 = 1_000;

/// See the file's head.
pub(super) struct Ended {
    events: ArrayQueue<FlowEvent>,
    /// By port: the second in the upper half, events in it in the lower.
    ports: Box<[AtomicU64]>,
    /// Second of now, as the maintenance thread says: who ends a connection may be a worker, which reads no clock for it.
    now: AtomicU32,
    lost: AtomicU64,
}

impl Ended {
    /// Hears of each connection that ends from now on.
    pub(super) fn listen(connections: &Connections, now: u32) -> Arc<Self> {
        let ended = Arc::new(Self {
            events: ArrayQueue::new(WAITING_MAX),
            ports: (0..PORTS_MAX).map(|_| AtomicU64::new(0)).collect(),
            now: AtomicU32::new(now),
            lost: AtomicU64::new(0),
        });
        let told = Arc::clone(&ended);
        connections.on_end(Box::new(move |payer, why, entry| {
            let now = told.now.load(Relaxed);
            let left =
                told.may(payer, now) && entry().is_none_or(|entry| told.leave(FlowEvent::closed(&entry, why, now)));
            if !left {
                told.lost.fetch_add(1, Relaxed);
            }
        }));
        ended
    }

    /// Says what second it is.
    pub(super) fn tick(&self, now: u32) {
        self.now.store(now, Relaxed);
    }

    /// Takes what was left so far, oldest first.
    pub(super) fn take(&self) -> Vec<FlowEvent> {
        let waiting = self.events.len();
        std::iter::from_fn(|| self.events.pop()).take(waiting).collect()
    }

    /// Events that found no room, or were more than their port may cause.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    fn leave(&self, event: FlowEvent) -> bool {
        self.events.push(event).is_ok()
    }

    fn may(&self, port: u32, now: u32) -> bool {
        let Some(count) = self.ports.get(port as usize) else { return false };
        let before = count.load(Relaxed);
        let used = if (before >> 32) as u32 == now { before as u32 } else { 0 };
        // Two at once may count as one: it is a bound, not a balance.
        count.store(u64::from(now) << 32 | u64::from(used.saturating_add(1)), Relaxed);
        used < PER_PORT_AND_S
    }
}
