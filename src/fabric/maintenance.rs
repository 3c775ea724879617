//! The thread between workers and control: hands notes on, tries again what could not be attached, frees planes that no worker holds any more.
//!
//! It sleeps until a worker leaves a note, and looks around once a second.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use hostweave_switch::tables::PortId;

use super::spec::FabricEvent;
use super::{Inner, State};
use crate::services::LocalNote;
use crate::worker::Note;

/// How often failed attachments are tried again and retired planes looked at.
const PERIOD: Duration = Duration::from_secs(1);

/// How often a router advertisement goes to every port: RFC 4861 §6.2.1, `MaxRtrAdvInterval`, whose lifetimes are
/// three times that and more.
const ADVERTISE_EVERY: Duration = Duration::from_secs(600);

/// Starts the thread. It begins its work when it is sent the fabric, and ends when that is gone or stopping.
pub fn spawn() -> anyhow::Result<(JoinHandle<()>, SyncSender<Weak<Inner>>)> {
    let (sender, receiver) = sync_channel(1);
    let body = move || super::or_abort(|| run(&receiver));
    let thread = std::thread::Builder::new().name("hw-maintenance".into()).spawn(body).context("starting a thread")?;
    Ok((thread, sender))
}

fn run(receiver: &Receiver<Weak<Inner>>) {
    let Ok(inner) = receiver.recv() else { return };
    if let Some(inner) = inner.upgrade() {
        super::connections::allocate_all(&inner.connections);
    }
    let mut advertised = Instant::now();
    let mut expired = Instant::now();
    loop {
        {
            let Some(inner) = inner.upgrade() else { return };
            let mut failed_taps = Vec::new();
            for worker in &inner.workers {
                while let Some(note) = worker.notes.pop() {
                    handle(&inner, note, &mut failed_taps);
                }
            }
            if expired.elapsed() >= PERIOD {
                expired = Instant::now();
                inner.expire_connections(|_| ());
                if !inner.fragments.is_idle() {
                    // Only workers may count what has waited too long.
                    inner.workers.iter().take(1).for_each(|worker| worker.mailbox.wake());
                }
            }
            let mut state = inner.lock();
            if state.stopping {
                return;
            }
            look_around(&inner, &mut state, &failed_taps);
            if advertised.elapsed() >= ADVERTISE_EVERY {
                advertised = Instant::now();
                state.ports.values().for_each(|port| inner.advertise(port));
            }
        }
        std::thread::park_timeout(PERIOD);
    }
}

fn handle(inner: &Arc<Inner>, note: Note, failed_taps: &mut Vec<PortId>) {
    match note {
        Note::Local(id, note) => {
            let plane = inner.plane.load();
            let Some(port) = plane.tables.port(id) else { return };
            let port = port.name.clone();
            inner.event(match note {
                LocalNote::AddressSeen(address) => FabricEvent::AddressSeen { port, address },
                LocalNote::AddressDeclined(address) => FabricEvent::AddressDeclined { port, address },
                LocalNote::LeaseConfirmed(address) => FabricEvent::LeaseConfirmed { port, address },
            });
        }
        Note::TapFailed(id, error) => {
            tracing::warn!(port = id.0, %error, "a TAP device failed");
            failed_taps.push(id);
        }
    }
}

fn look_around(inner: &Arc<Inner>, state: &mut State, failed_taps: &[PortId]) {
    let mut changed = false;
    for port in state.ports.values_mut() {
        if failed_taps.contains(&port.id()) || port.tap_is_orphaned() {
            port.tap_failed();
            changed = true;
        }
    }
    if changed {
        // Workers let go of the old devices before new ones take their names.
        inner.publish(state);
    }
    let mut attached = Vec::new();
    for port in state.ports.values_mut().filter(|port| port.wants_attachment()) {
        port.attach(inner);
        attached.extend(port.output().is_some().then(|| port.id()));
    }
    if !attached.is_empty() {
        inner.publish(state);
        state.ports.values().filter(|port| attached.contains(&port.id())).for_each(|port| port.open_gate());
    }
    state.purge();
}
