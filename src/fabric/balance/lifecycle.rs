//! Services as part of the fabric: the thread that hears what became of backends, and has the packet path told.
//!
//! Protocol threads and checks only leave a note; whatever waits for a lock happens on the thread of this module. So a frontend's
//! thread never waits for control, which may be waiting for that thread.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use hostweave_nat::service::Services;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedReceiver;

use super::super::connections::allocate_translations;
use super::super::spec::{Desired, FabricEvent};
use super::super::{Inner, State};
use super::{News, Told};
use crate::services::health;

/// Verdicts taken at once.
const BATCH_MAX: usize = 1024;

/// Changes of the packet path or of names in a second that guests and checks may cause: each has every connection to a Service looked at
/// again, or the zone of a network built anew. What comes alone is in force at once; what comes soon after waits, and is taken together.
const PUBLICATIONS_MAX: u32 = 10;

/// How long guests of an earlier run are awaited: a VMM connects again every second or so.
const AWAITED: Duration = Duration::from_secs(5);

/// Ports that something happened to, for the thread. Each once, however often: guests cause it.
#[derive(Default)]
pub struct PortNews {
    /// `namespace/name`.
    ports: Mutex<HashSet<String>>,
    /// From now on guests of an earlier run are awaited.
    awaiting: AtomicBool,
    notify: Notify,
}

impl PortNews {
    /// Something happened to a port.
    pub fn add(&self, port: &str) {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        if !ports.contains(port) {
            ports.insert(port.to_owned());
        }
        drop(ports);
        self.notify.notify_one();
    }

    /// Guests of an earlier run are awaited for a while.
    fn await_guests(&self) {
        self.awaiting.store(true, Ordering::Relaxed);
        self.notify.notify_one();
    }

    /// Has the thread look around.
    pub fn wake(&self) {
        self.notify.notify_one();
    }

    fn take(&self) -> HashSet<String> {
        std::mem::take(&mut *self.ports.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Starts the thread. It ends when the fabric is gone or stopping.
pub(in crate::fabric) fn spawn(
    inner: &Arc<Inner>,
    verdicts: UnboundedReceiver<health::Change>,
) -> anyhow::Result<JoinHandle<()>> {
    let (inner, news, runtime) = (Arc::downgrade(inner), Arc::clone(&inner.port_news), Handle::current());
    let body = move || super::super::or_abort(|| run(&inner, &news, &runtime, verdicts));
    std::thread::Builder::new().name("hw-services".into()).spawn(body).context("starting a thread")
}

fn run(inner: &Weak<Inner>, news: &PortNews, runtime: &Handle, mut verdicts: UnboundedReceiver<health::Change>) {
    let mut batch = Vec::new();
    let (mut awaited_until, mut held_until) = (None, None);
    loop {
        runtime.block_on(async {
            let next = [awaited_until, held_until].into_iter().flatten().min();
            let timer = tokio::time::sleep_until(next.unwrap_or_else(Instant::now).into());
            tokio::select! {
                () = news.notify.notified() => {}
                _ = verdicts.recv_many(&mut batch, BATCH_MAX) => {}
                () = timer, if next.is_some() => {}
            }
        });
        let Some(inner) = inner.upgrade() else { return };
        if inner.stopping.load(Ordering::Relaxed) {
            return;
        }
        if news.awaiting.swap(false, Ordering::Relaxed) {
            awaited_until = Some(Instant::now() + AWAITED);
        }
        if awaited_until.take_if(|until| *until <= Instant::now()).is_some() {
            inner.lock().balance.set_awaiting(false);
        }
        let told;
        (told, held_until) = inner.hear(&batch, &news.take());
        batch.clear();
        drop(inner);
        if told.anybody() {
            std::thread::sleep(Duration::from_secs(1) / PUBLICATIONS_MAX);
        }
    }
}

impl Inner {
    /// Takes in what became of backends. Returns who was told, and when somebody who is held out may come back.
    fn hear(&self, verdicts: &[health::Change], ports: &HashSet<String>) -> (Told, Option<Instant>) {
        let mut state = self.lock();
        let now = Instant::now();
        let State { ports: runtimes, balance, .. } = &mut *state;
        for change in verdicts {
            balance.set_verdict(&change.target, change.healthy, &change.reason, now);
        }
        for port in ports.iter().filter_map(|name| runtimes.get(name)) {
            if let Some(uid) = port.uid() {
                balance.set_running(uid, port.runs(), now);
            }
        }
        balance.release(now);
        let told = self.republish_services(&mut state);
        (told, state.balance.facts().next_release())
    }

    /// Works out what is new, and publishes it with everything else as it is. Returns for whom there was something.
    pub(in crate::fabric) fn republish_services(&self, state: &mut State) -> Told {
        let told = self.settle_services(state);
        if told.packet_path {
            self.publish_services(state);
        }
        told
    }

    /// Takes over what control wants of Services; ports are there already. It is published by the caller.
    pub(in crate::fabric) fn update_services(&self, state: &mut State, desired: &Desired) {
        state.balance.update(&desired.networks, &desired.services);
        if !state.balance.drained().is_empty() {
            let ports: HashSet<String> = desired.ports.iter().map(|port| port.full_name()).collect();
            state.balance.retain_drained(&ports);
        }
        self.settle_services(state);
        // Somebody may be held out since the thread looked last.
        self.port_news.wake();
    }

    /// Connections of an earlier run were adopted: its guests come back one by one, in seconds, and connections must not end for that.
    /// It is published by the caller.
    pub(in crate::fabric) fn await_guests(&self, state: &mut State) {
        state.balance.set_awaiting(true);
        self.settle_services(state);
        self.port_news.await_guests();
    }

    /// Looks at all ports: whether they run.
    pub(in crate::fabric) fn look_at_ports(state: &mut State) {
        let State { ports, balance, .. } = state;
        let running: HashMap<uuid::Uuid, bool> =
            ports.values().filter_map(|port| Some((port.uid()?, port.runs()))).collect();
        balance.retain_ports(|port| running.contains_key(port));
        let now = Instant::now();
        running.into_iter().for_each(|(port, runs)| balance.set_running(port, runs, now));
    }

    /// Works out what is new about Services, and tells DNS. Returns who was told or, the packet path, must be.
    fn settle_services(&self, state: &mut State) -> Told {
        let mut settled = state.balance.settle(SystemTime::now());
        if !settled.start.is_empty() || !settled.stop.is_empty() {
            self.health.replace(state.balance.targets().map(|target| health::Target::clone(target)));
            // A check that was only changed has a verdict already, and says nothing as long as that stays.
            for target in &settled.start {
                if let Some(healthy) = self.health.verdict(target) {
                    state.balance.set_verdict(target, healthy, "as before the check was changed", Instant::now());
                }
            }
            settled.add(state.balance.settle(SystemTime::now()));
        }
        let told = settled.told();
        if told.packet_path {
            let old = &state.services;
            state.services = if settled.gone {
                let all: Vec<_> = state.balance.frontends().cloned().collect();
                Arc::new(Services::compile(&all, Some(old)))
            } else {
                Arc::new(old.replace(&settled.frontends))
            };
            state.bump_crossings();
            // Their connections are translated.
            if !state.services.is_empty() && self.connections.translatable() == 0 {
                allocate_translations(&self.connections);
            }
        }
        if told.names {
            self.dns.set_absent(std::mem::take(&mut settled.absent));
        }
        settled.news.drain(..).for_each(|news| self.event(event_of(news)));
        told
    }
}

fn event_of(news: News) -> FabricEvent {
    match news {
        News::Backend { service, change } => FabricEvent::ServiceBackend { service, change },
        News::Serving { service, serving, counts } => FabricEvent::ServiceServing { service, serving, counts },
    }
}
