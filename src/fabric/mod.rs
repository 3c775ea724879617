//! The running packet path: workers, ports and what is attached to them.
//!
//! Control says what is to exist ([`Fabric::apply`]); this module makes it so and publishes one immutable
//! [`plane::Plane`] to the workers. It decides nothing about packets.
//!
//! A *port* (identity, addresses, counters) and its *attachments* (sockets, memory, rings) are two things: a port has
//! none, one, or, during a live migration on this host, two, of which one is active: the one whose guest last
//! started its queues.

mod apply;
pub mod balance;
pub mod capture;
mod check;
mod connections;
pub mod conntrack;
mod ended;
mod flows;
mod host_access;
mod ids;
pub mod mailbox;
mod maintenance;
pub(crate) mod nat;
pub mod nat_report;
mod observer;
pub mod plane;
mod port;
pub mod probe;
mod publish;
pub mod report;
mod samples;
pub mod spec;
mod start;
pub mod uplink;
mod wanted;
mod what_if;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use hostweave_nat::service::Services;
use hostweave_nat::{Nat, Pools};
use hostweave_policy::compile::Compiler;
use hostweave_policy::model::World;
use hostweave_policy::table::Table;
use hostweave_switch::connection::Connections;
use hostweave_switch::counters::PortTotals;
use hostweave_switch::fragment::Fragments;
use hostweave_switch::limits::WORKERS_MAX;
use hostweave_switch::on_link::Sought;
use hostweave_switch::tables::{Network, NetworkId, Port, PortId};
use tokio::sync::mpsc;

pub use flows::policy as policy_of;

use crate::observe::flow_log::FlowLog;
use crate::services::dns::Dns;
use crate::services::external_dns::ExternalDns;
use crate::services::health::Health;
use crate::services::metadata::Metadata;
use crate::services::sockets::Sockets;
use crate::worker::clock::Clock;
use crate::worker::watch::Watch;
use crate::worker::{Shared, WorkerStats};
use balance::Balance;
use balance::lifecycle::PortNews;
use check::check;
use ended::Ended;
use ids::IdPool;
use mailbox::Message;
use plane::Plane;
use port::PortRuntime;
use spec::{Established, FabricConfig, FabricEvent, LocalServices, PortSpec, PortStatus, Timeouts};
use start::{Seat, or_abort, start_worker};
use uplink::UplinkRuntime;
use uplink::owned::Outside;
use wanted::Wanted;
pub use what_if::{Affected, AffectedFlow, DeniedFlow, Impact, Picture, newly_admitted};

/// The running packet path.
pub struct Fabric {
    inner: Arc<Inner>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What the fabric's own threads share.
struct Inner {
    config: FabricConfig,
    plane: Arc<ArcSwap<Plane>>,
    workers: Vec<Arc<Shared>>,
    state: Mutex<State>,
    events: mpsc::UnboundedSender<FabricEvent>,
    sockets: Sockets,
    dns: Dns,
    health: Health,
    /// Ports that Services are to look at.
    port_news: Arc<PortNews>,
    metadata: Metadata,
    external_dns: ExternalDns,
    connections: Arc<Connections>,
    ended: Arc<Ended>,
    nat: Arc<Nat>,
    fragments: Arc<Fragments>,
    clock: Clock,
    flow_log: Arc<FlowLog>,
    watch: Arc<Watch>,
    /// Neighbours at the uplink that packets are for.
    sought: Arc<Sought>,
    /// Whether some interface of the host may have changed.
    links_changed: AtomicBool,
    /// Whether a thread listens for that.
    links_watched: AtomicBool,
    stopping: AtomicBool,
}

/// What exists, by name.
struct State {
    revision: u64,
    compiler: Compiler,
    /// Policies as compiled last, with what control said then.
    policy: Arc<Table>,
    /// What it was compiled from.
    world: Arc<World>,
    /// Compilations that changed something.
    policy_revision: u64,
    /// How long the last compilation took.
    compile_duration: Duration,
    timeouts: Timeouts,
    loose_tcp: bool,
    established: Established,
    local: LocalServices,
    /// By [`NetworkId`]; see [`Tables::epochs`].
    epochs: Vec<u32>,
    /// See [`Tables::crossings`].
    crossings: u32,
    /// Slots of ports that an earlier run knew, by the ports' ids; taken back by whoever comes first.
    remembered: HashMap<u128, u32>,
    /// Whether connections of an earlier run were looked at.
    adopted: bool,
    /// What was asked for last.
    wanted: Option<Wanted>,
    /// What was asked for outside of them last.
    outside: Option<Outside>,
    uplink: Option<UplinkRuntime>,
    /// Pools of NAT addresses as compiled last.
    pools: Arc<Pools>,
    /// What is known of Services and their backends.
    balance: Balance,
    /// Services as compiled last.
    services: Arc<Services>,
    networks: HashMap<String, NetworkRuntime>,
    ports: HashMap<String, PortRuntime>,
    network_ids: IdPool,
    port_ids: IdPool,
    /// Planes that a worker may still hold. Control frees them, never a worker.
    retired: Vec<Arc<Plane>>,
    /// Ports that were removed and that a worker may still count for.
    departed: Vec<Arc<Port>>,
    /// What all ports counted that are gone for good: without it the ledger of the host would not close.
    departed_totals: PortTotals,
    stopping: bool,
}

struct NetworkRuntime {
    id: NetworkId,
    network: Arc<Network>,
    /// The internal port.
    port: PortRuntime,
}

/// One worker's share of time, for `status` and metrics.
#[derive(Clone, Copy, Debug, Default)]
pub struct WorkerReport {
    /// Seconds spent moving packets.
    pub busy_s: f64,
    /// Seconds spent polling for nothing.
    pub polling_s: f64,
    /// Seconds asleep.
    pub asleep_s: f64,
    /// Frames taken from sources.
    pub packets: u64,
    /// Times the worker went to sleep.
    pub sleeps: u64,
    /// Notes for control that were lost.
    pub notes_lost: u64,
}

impl Fabric {
    /// Starts the workers. Must be called inside a tokio runtime, which then also runs the sockets of internal ports.
    ///
    /// # Errors
    /// When the kernel refuses an `io_uring`, a thread or a CPU.
    pub fn start(config: FabricConfig) -> anyhow::Result<(Arc<Fabric>, mpsc::UnboundedReceiver<FabricEvent>)> {
        if config.workers.is_empty() || config.workers.len() > WORKERS_MAX {
            bail!("a host has 1 to {WORKERS_MAX} workers, not {}", config.workers.len());
        }
        let (events, receiver) = mpsc::unbounded_channel();
        let plane = Arc::new(ArcSwap::from_pointee(Plane::default()));
        let (listener, wait_for_inner) = maintenance::spawn()?;
        let clock = Clock::new().context("reading the clock")?;
        let connections = Arc::new(connections::open(&config, clock.seconds(Instant::now()))?);
        let nat = Arc::new(nat::open(&config, clock.seconds(Instant::now()))?);
        nat::give_back(&nat, &connections, clock);
        let ended = Ended::listen(&connections, clock.seconds(Instant::now()));
        let fragments = Arc::new(Fragments::new());
        let watch = Arc::new(Watch::default());
        let mut workers = Vec::new();
        let mut threads = Vec::new();
        for (index, cpu) in config.workers.iter().enumerate() {
            let seat = Seat {
                index,
                cpu: *cpu,
                count: config.workers.len(),
                plane: Arc::clone(&plane),
                connections: Arc::clone(&connections),
                nat: Arc::clone(&nat),
                fragments: Arc::clone(&fragments),
                clock,
                watch: Arc::clone(&watch),
                listener: listener.thread().clone(),
            };
            let (shared, thread) = start_worker(seat)?;
            workers.push(shared);
            threads.push(thread);
        }
        let sought = Arc::new(Sought::new(listener.thread().clone()));
        threads.push(listener);
        let state = Mutex::new(State::new(&connections));
        let sockets = Sockets::new().context("starting the host's own services")?;
        let dns = Dns::new(sockets.clone(), events.clone());
        let metadata = Metadata::new(sockets.clone()).context("making the key of metadata tokens")?;
        let (health, verdicts) = Health::new(sockets.clone());
        let (external_dns, flow_log, port_news) =
            (ExternalDns::new(events.clone()), Arc::new(FlowLog::default()), Arc::new(PortNews::default()));
        let (links_changed, links_watched, stopping) = Default::default();
        #[rustfmt::skip]
        let inner = Arc::new(Inner {
            config, plane, workers, state, events, sockets, dns, metadata, health, port_news, external_dns, connections, ended, nat,
            fragments, clock, flow_log, watch, sought, links_changed, links_watched, stopping,
        });
        wait_for_inner.send(Arc::downgrade(&inner)).context("the maintenance thread ended at once")?;
        threads.push(balance::lifecycle::spawn(&inner, verdicts)?);
        Ok((Arc::new(Fabric { inner, threads: Mutex::new(threads) }), receiver))
    }

    /// State and counters of a port, by `namespace/name`.
    pub fn port_status(&self, port: &str) -> Option<PortStatus> {
        self.inner.lock().ports.get(port).map(PortRuntime::status)
    }

    /// State and counters of every port, internal ports included (named `network/<name>/internal`).
    pub fn port_statuses(&self) -> Vec<(String, PortStatus)> {
        let state = self.inner.lock();
        let ports = state.ports.values().chain(state.networks.values().map(|network| &network.port));
        ports.map(|port| (port.name().to_owned(), port.status())).collect()
    }

    /// Counters of all ports, for the ledger; the last entry adds up those that were removed.
    pub fn totals(&self) -> Vec<PortTotals> {
        let state = self.inner.lock();
        let ports = state.ports.values().chain(state.networks.values().map(|network| &network.port));
        let mut gone = state.departed_totals.clone();
        state.departed.iter().for_each(|port| gone.add(&PortTotals::of(&port.counters)));
        let uplink = state.uplink.as_ref().map(UplinkRuntime::totals);
        ports.map(|port| port.status().totals).chain(uplink).chain([gone]).collect()
    }

    /// Time and packets of each worker.
    pub fn worker_reports(&self) -> Vec<WorkerReport> {
        self.inner.workers.iter().map(|worker| report(&worker.stats)).collect()
    }

    /// What workers decide by now.
    pub fn plane(&self) -> Arc<Plane> {
        self.inner.plane.load_full()
    }

    /// What happened to connections.
    pub fn flow_log(&self) -> &Arc<FlowLog> {
        &self.inner.flow_log
    }

    /// Sockets inside the networks, for the host's own services.
    pub fn sockets(&self) -> Sockets {
        self.inner.sockets.clone()
    }

    /// Stops all attachments and workers and waits for them. TAP devices stay: containers keep them.
    pub fn shutdown(&self) {
        self.inner.stopping.store(true, Ordering::Relaxed);
        let (ports, uplink): (Vec<PortRuntime>, _) = {
            let mut state = self.inner.lock();
            state.stopping = true;
            (state.ports.drain().map(|(_, port)| port).collect(), state.uplink.take())
        };
        self.inner.publish(&mut self.inner.lock());
        for mut port in ports {
            port.detach(&self.inner.config, false);
        }
        uplink.into_iter().for_each(|uplink| self.inner.close_uplink(uplink));
        self.inner.port_news.wake();
        for worker in &self.inner.workers {
            worker.mailbox.send(Message::Stop);
            worker.listener.unpark();
        }
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a worker or maintenance thread panicked");
            }
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn event(&self, event: FabricEvent) {
        // Nobody listens during shutdown.
        let _ = self.events.send(event);
    }

    /// Has a router advertisement sent to a port.
    fn advertise(&self, port: &PortRuntime) {
        let worker = plane::owner(port.id(), 0, self.workers.len());
        self.workers[worker].mailbox.send(Message::Advertise(port.id()));
    }

    /// Returns the networks that were there before and are different now.
    fn update_networks(&self, state: &mut State, desired: &[Network]) -> Vec<NetworkId> {
        let mut changed = Vec::new();
        let names: HashSet<&str> = desired.iter().map(|network| network.name.as_str()).collect();
        let State { networks, network_ids, port_ids, departed, .. } = state;
        networks.retain(|name, network| {
            let keep = names.contains(name.as_str());
            if !keep {
                self.sockets.remove_network(name);
                network_ids.give_back(u32::from(network.id.0));
                port_ids.give_back(network.port.id().0);
                departed.push(Arc::clone(network.port.port()));
            }
            keep
        });
        for wanted in desired {
            let known = state.networks.get(&wanted.name).map(|network| (network.id, network.port.id()));
            let uid = spec::internal_uid(wanted.vni).as_u128();
            let (id, port_id) = known.unwrap_or_else(|| {
                // `check` bounds the number of networks and ports far below the types' ranges.
                let slot = state.remembered.remove(&uid).unwrap_or_else(|| state.port_ids.take());
                (NetworkId(state.network_ids.take() as u16), PortId(slot))
            });
            // NAT knows the host's own connections by it.
            self.connections.set_port_id(port_id.0, uid);
            let network = Arc::new(Network { internal: port_id, ..wanted.clone() });
            match state.networks.get_mut(&wanted.name) {
                Some(runtime) if runtime.network == network => {}
                Some(runtime) => {
                    changed.push(id);
                    self.sockets.update_network(&network);
                    runtime.port.set_network(&network);
                    runtime.network = network;
                }
                None => {
                    let port = PortRuntime::internal(self, port_id, id, &network);
                    state.networks.insert(wanted.name.clone(), NetworkRuntime { id, network, port });
                }
            }
        }
        changed
    }

    /// Takes out the ports that are no longer wanted, or wanted with another backend or network.
    fn remove_ports(&self, state: &mut State, desired: &[Arc<PortSpec>]) -> Vec<PortRuntime> {
        let wanted: HashMap<String, &Arc<PortSpec>> = desired.iter().map(|spec| (spec.full_name(), spec)).collect();
        let stays = |port: &PortRuntime| wanted.get(port.name()).is_some_and(|spec| port.may_become(spec));
        let names: Vec<String> =
            state.ports.values().filter(|port| !stays(port)).map(|port| port.name().to_owned()).collect();
        let gone: Vec<PortRuntime> = names.iter().filter_map(|name| state.ports.remove(name)).collect();
        for port in &gone {
            state.port_ids.give_back(port.id().0);
            state.departed.push(Arc::clone(port.port()));
        }
        gone
    }

    fn update_port(self: &Arc<Self>, state: &mut State, spec: &PortSpec) -> anyhow::Result<()> {
        let name = spec.full_name();
        let network = &state.networks.get(&spec.network).context("a port's network was checked before")?;
        let (network_id, mtu) = (network.id, network.network.mtu);
        if let Some(port) = state.ports.get_mut(&name) {
            port.set_spec(spec);
            return Ok(());
        }
        let uid = spec.uid.as_u128();
        let slot = state.remembered.remove(&uid).unwrap_or_else(|| state.port_ids.take());
        self.connections.set_port_id(slot, uid);
        let mut port = PortRuntime::new(self, PortId(slot), network_id, mtu, spec);
        port.attach(self);
        state.ports.insert(name, port);
        Ok(())
    }
}

/// How long a worker may take to let go of a plane: it is one burst, unless the kernel took the CPU from it.
const LET_GO_LIMIT: Duration = Duration::from_millis(200);

impl State {
    /// Waits until the workers have let go of every plane but the published one, and with it of devices that are to
    /// be removed or opened anew.
    fn wait_for_workers(&mut self) {
        let end = Instant::now() + LET_GO_LIMIT;
        self.purge();
        while !self.retired.is_empty() && Instant::now() < end {
            std::thread::sleep(Duration::from_micros(100));
            self.purge();
        }
    }

    /// Frees the planes that no worker holds any more.
    fn purge(&mut self) {
        self.retired.retain(|plane| Arc::strong_count(plane) > 1);
        let State { departed, departed_totals, .. } = self;
        departed.retain(|port| {
            let held = Arc::strong_count(port) > 1;
            if !held {
                departed_totals.add(&PortTotals::of(&port.counters));
            }
            held
        });
    }
}

fn report(stats: &WorkerStats) -> WorkerReport {
    use std::sync::atomic::Ordering::Relaxed;
    let seconds = |counter: &std::sync::atomic::AtomicU64| counter.load(Relaxed) as f64 / 1e9;
    WorkerReport {
        busy_s: seconds(&stats.busy_ns),
        polling_s: seconds(&stats.polling_ns),
        asleep_s: seconds(&stats.asleep_ns),
        packets: stats.packets.load(Relaxed),
        sleeps: stats.sleeps.load(Relaxed),
        notes_lost: stats.notes_lost.load(Relaxed),
    }
}
