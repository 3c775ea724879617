//! The thread between workers and control: hands notes on, tries again what could not be attached, frees planes that no worker holds any more.
//!
//! It sleeps until a worker leaves a note, and looks around once a second.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use hostweave_switch::tables::PortId;

use super::flows::Drain;
use super::samples::Samples;
use super::spec::FabricEvent;
use super::{Inner, State};
use crate::services::LocalNote;
use crate::worker::Note;

/// How often failed attachments are tried again and retired planes looked at.
const PERIOD: Duration = Duration::from_secs(1);

/// How often the flow log is filled while there is something for it.
const FLOWS_PERIOD: Duration = Duration::from_millis(10);

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
        super::nat::allocate_all(&inner.nat);
    }
    let mut advertised = Instant::now();
    let mut expired = Instant::now();
    let mut looked = Instant::now();
    let mut drain = Drain::default();
    let mut samples = Samples::default();
    let mut again: Option<Instant> = None;
    loop {
        let pause = {
            let Some(inner) = inner.upgrade() else { return };
            let pause = take_flows(&inner, &mut drain);
            let noted = inner.workers.iter().any(|worker| !worker.notes.is_empty());
            let links = inner.links_changed.swap(false, Ordering::AcqRel) | inner.sought.has_woken();
            let due = again.is_some_and(|at| at <= Instant::now());
            if pause != PERIOD && !(noted || links || due) && looked.elapsed() < PERIOD {
                drop(inner);
                std::thread::park_timeout(pause);
                continue;
            }
            looked = Instant::now();
            let mut news = News::default();
            for worker in &inner.workers {
                while let Some(note) = worker.notes.pop() {
                    handle(&inner, note, &mut news);
                }
            }
            if expired.elapsed() >= PERIOD {
                expired = Instant::now();
                drain.follow(&inner);
                // What an earlier run left is held by nobody until all of it was looked at, and nothing ends meanwhile.
                if inner.lock().adopted {
                    inner.expire_connections(|| _ = drain.ended(&inner));
                    inner.expire_mappings();
                }
                let now = inner.clock.seconds(expired);
                inner.heed_failures(now);
                let sampled = samples.take(&inner.connections, now);
                drain.log(&inner, sampled);
                if !inner.fragments.is_idle() {
                    // Only workers may count what has waited too long.
                    inner.workers.iter().take(1).for_each(|worker| worker.mailbox.wake());
                }
            }
            let mut state = inner.lock();
            if state.stopping {
                return;
            }
            look_around(&inner, &mut state, &news.failed);
            let attended = inner.attend_uplink(&mut state, &news.outside, &news.failed);
            again = inner.finish_attending(&mut state, attended);
            if advertised.elapsed() >= ADVERTISE_EVERY {
                advertised = Instant::now();
                state.ports.values().for_each(|port| inner.advertise(port));
            }
            again.map_or(pause, |at| pause.min(at.saturating_duration_since(Instant::now())))
        };
        std::thread::park_timeout(pause);
    }
}

/// What workers left.
#[derive(Default)]
struct News {
    /// Ports whose devices failed.
    failed: Vec<PortId>,
    /// What neighbours at the uplink said.
    outside: Vec<LocalNote>,
}

/// Takes what workers left for the flow log. Returns how long nobody needs to look: while there are events this thread
/// looks by itself, and only when there are none does it ask to be woken.
fn take_flows(inner: &Inner, drain: &mut Drain) -> Duration {
    let await_flows = |awaited| {
        inner.workers.iter().for_each(|worker| worker.flows_awaited.store(awaited, Ordering::Release));
    };
    if drain.run(inner) {
        await_flows(false);
        return FLOWS_PERIOD;
    }
    await_flows(true);
    // What came before a worker saw that.
    if drain.run(inner) { FLOWS_PERIOD } else { PERIOD }
}

fn handle(inner: &Arc<Inner>, note: Note, news: &mut News) {
    match note {
        Note::Local(id, note) => {
            let plane = inner.plane.load();
            let Some(port) = plane.tables.port(id) else { return };
            let port = port.name.clone();
            inner.event(match note {
                LocalNote::RouterHeard { .. }
                | LocalNote::NeighborHeard { .. }
                | LocalNote::AddressConflict(..)
                | LocalNote::ListenersAsked(_) => {
                    return news.outside.push(note);
                }
                LocalNote::AddressSeen(address) => FabricEvent::AddressSeen { port, address },
                LocalNote::AddressDeclined(address) => FabricEvent::AddressDeclined { port, address },
                LocalNote::LeaseConfirmed(address) => FabricEvent::LeaseConfirmed { port, address },
            });
        }
        Note::DeviceFailed(id, error) => {
            tracing::warn!(port = id.0, %error, "a network device failed");
            news.failed.push(id);
        }
    }
}

fn look_around(inner: &Arc<Inner>, state: &mut State, failed: &[PortId]) {
    let mut changed = false;
    for port in state.ports.values_mut() {
        if failed.contains(&port.id()) || port.tap_is_orphaned() {
            port.tap_failed();
            inner.port_news.add(port.name());
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
        inner.port_news.add(port.name());
        attached.extend(port.output().is_some().then(|| port.id()));
    }
    if !attached.is_empty() {
        inner.publish(state);
        state.ports.values().filter(|port| attached.contains(&port.id())).for_each(|port| port.open_gate());
    }
    state.purge();
}
