//! What a port's attachments tell: runs on their protocol threads, before the frontend gets its answer.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use hostweave_switch::tables::{Port, PortId};
use hostweave_vhost::{Observer, Peer};

use super::Inner;
use super::mailbox::Message;
use super::plane::{Output, SourceKey, VhostOutput, owner};
use super::spec::FabricEvent;

/// Holds protocol threads back until workers know the port. Cheap to clone.
#[derive(Clone, Default)]
pub struct Gate(Arc<OnceLock<Option<Weak<Output>>>>);

impl Gate {
    /// Lets everybody pass; `output` is what they act on.
    pub fn open(&self, output: Option<Arc<Output>>) {
        let _ = self.0.set(output.map(|output| Arc::downgrade(&output)));
    }

    fn output(&self) -> Option<Arc<Output>> {
        self.0.wait().as_ref()?.upgrade()
    }
}

/// Observer of one attachment of a port.
pub struct PortObserver {
    inner: Weak<Inner>,
    id: PortId,
    name: String,
    serial: u32,
    /// Index among the port's attachments.
    index: usize,
    socket: PathBuf,
    gate: Gate,
    /// Bit per queue pair that runs on this attachment.
    running: Mutex<u64>,
}

impl PortObserver {
    /// Observer of the `index`-th attachment of `port`, whose sources carry `serial`.
    pub fn new(inner: &Arc<Inner>, port: &Port, serial: u32, index: usize, socket: &Path, gate: &Gate) -> Self {
        Self {
            inner: Arc::downgrade(inner),
            id: port.id,
            name: port.name.clone(),
            serial,
            index,
            socket: socket.to_owned(),
            gate: gate.clone(),
            running: Mutex::new(0),
        }
    }

    fn event(&self, make: impl FnOnce(String, PathBuf) -> FabricEvent) {
        if let Some(inner) = self.inner.upgrade() {
            inner.event(make(self.name.clone(), self.socket.clone()));
        }
    }

    /// Services want to know whether the port runs.
    fn tell_services(&self) {
        if let Some(inner) = self.inner.upgrade() {
            inner.port_news.add(&self.name);
        }
    }

    fn tell_worker(&self, pair: usize, message: fn(SourceKey) -> Message) {
        self.tell_worker_of(self.serial, pair, message);
    }

    fn tell_worker_of(&self, serial: u32, pair: usize, message: fn(SourceKey) -> Message) {
        if let Some(inner) = self.inner.upgrade() {
            let key = SourceKey { port: self.id, attachment: serial, pair: pair as u16 };
            inner.workers[owner(self.id, pair, inner.workers.len())].mailbox.send(message(key));
        }
    }

    /// Makes this attachment the one that the port's traffic uses: its guest is the one that runs now. Only while
    /// `switching` is held.
    fn activate(output: &VhostOutput, active: usize) {
        if output.active.swap(active, Ordering::Relaxed) != active {
            output.running.store(0, Ordering::Relaxed);
        }
        for (index, attachment) in output.attachments.iter().enumerate() {
            attachment.activate(index == active);
        }
    }

    /// The guest here has ended. One that runs on the port's other socket has the traffic then: it is the source of a
    /// migration that failed.
    fn hand_back(&self, output: &VhostOutput) {
        for (index, attachment) in output.attachments.iter().enumerate().filter(|(index, _)| *index != self.index) {
            let started = attachment.started_pairs();
            if started != 0 {
                Self::activate(output, index);
                output.running.store(started, Ordering::Relaxed);
                // Serials of a port's attachments follow each other.
                let serial = self.serial.wrapping_sub(self.index as u32).wrapping_add(index as u32);
                let pairs = (0..attachment.queues().len()).filter(|pair| started >> pair & 1 != 0);
                pairs.for_each(|pair| self.tell_worker_of(serial, pair, Message::SourceStarted));
                return;
            }
        }
    }
}

impl Observer for PortObserver {
    fn connected(&self, peer: Peer) {
        // Nothing may run before the workers know the port.
        self.gate.output();
        self.event(|port, socket| FabricEvent::Connected { port, socket, pid: peer.pid, uid: peer.uid });
    }

    fn queue_started(&self, pair: usize) {
        if let Some(output) = self.gate.output()
            && let Output::Vhost(output) = &*output
        {
            let _change = output.change.lock().unwrap_or_else(PoisonError::into_inner);
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            *running |= 1 << pair;
            let _switching = output.switching.lock().unwrap_or_else(PoisonError::into_inner);
            Self::activate(output, self.index);
            output.running.store(*running, Ordering::Relaxed);
        }
        self.tell_worker(pair, Message::SourceStarted);
        self.tell_services();
    }

    fn queue_stopped(&self, pair: usize) {
        if let Some(output) = self.gate.output()
            && let Output::Vhost(output) = &*output
        {
            let _change = output.change.lock().unwrap_or_else(PoisonError::into_inner);
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            *running &= !(1 << pair);
            if output.active.load(Ordering::Relaxed) == self.index {
                output.running.store(*running, Ordering::Relaxed);
                if *running == 0 {
                    self.hand_back(output);
                }
            }
        }
        self.tell_worker(pair, Message::SourceStopped);
        self.tell_services();
    }

    fn started(&self, features: u64, pairs: usize) {
        let queue_pairs = pairs as u16;
        self.event(|port, socket| FabricEvent::Started { port, socket, features, queue_pairs });
    }

    fn stopped(&self) {
        self.event(|port, socket| FabricEvent::Stopped { port, socket });
    }

    fn disconnected(&self) {
        self.tell_services();
        self.event(|port, socket| FabricEvent::Disconnected { port, socket });
    }

    fn fault(&self, reason: &str) {
        let reason = reason.to_owned();
        self.event(|port, socket| FabricEvent::Fault { port, socket, reason });
    }
}
