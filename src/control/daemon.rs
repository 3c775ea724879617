//! The life of the daemon: start, reload, stop.
//!
//! Start does only what must be done before the first packet: files are read, the store is opened, the packet path
//! starts, ports are set up. The control socket is bound first, so that a second daemon is refused before it touches
//! anything; clients that connect early wait until everything is there.

use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use super::connection::{Server, serve};
use super::controller::{Controller, Parts};
use super::error::{ErrorKind, RpcError};
use super::initial::Initial;
use super::paths::{Paths, observe_of};
use super::rpc::Response;
use super::socket::{Client, ControlSocket, GROUP, Permissions};
use super::{fabric_events, service_manager};
use crate::config::checked::{Account, HostConfig, Object, Spec};
use crate::config::load_paths;
use crate::fabric::Fabric;
use crate::fabric::spec::{FabricConfig, FabricEvent};
use crate::observe::events::{EventLog, EventType};
use crate::store::Store;

/// Connections to one socket at a time.
const CLIENTS_MAX: usize = 128;

/// How long connections may take to end when the daemon stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Threads of the runtime: control has little to do.
const RUNTIME_THREADS: usize = 2;

/// What the command line says. What it leaves out is in `HostConfig`, or is the default.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Configuration: folders or files.
    pub config: Vec<PathBuf>,
    /// Control socket.
    pub control: Option<PathBuf>,
    /// Folder of sockets.
    pub runtime: Option<PathBuf>,
    /// Folder of the store.
    pub state: Option<PathBuf>,
    /// The user's own folders instead of the system's.
    pub rootless: bool,
    /// Files may take over objects that were applied at run time.
    pub adopt: bool,
}

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// It could not start: an [`RpcError`] where the configuration is wrong, anything else where the host refuses.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let started = Instant::now();
    // Files and sockets are private until they are opened to a group.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .thread_name("hw-control")
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let result = runtime.block_on(async { Daemon::start(options, started)?.run().await });
    // Threads that still write to disk are waited for; nothing else is left.
    runtime.shutdown_timeout(STOP_TIMEOUT);
    result
}

/// Each port needs several descriptors, and the usual soft limit of 1024 is for programs that use `select(2)`.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// A running daemon.
struct Daemon {
    controller: Arc<Controller>,
    events: mpsc::UnboundedReceiver<FabricEvent>,
    control: ControlSocket,
    observe: ControlSocket,
}

/// Where everything is, once the files were read.
struct Layout {
    config: Vec<PathBuf>,
    runtime: PathBuf,
    state: PathBuf,
    control: PathBuf,
}

impl Layout {
    fn new(options: &Options, defaults: &Paths, host: Option<&HostConfig>, config: Vec<PathBuf>) -> Self {
        let written = |path: fn(&HostConfig) -> &Option<PathBuf>| host.and_then(|host| path(host).clone());
        let runtime = options.runtime.clone().or_else(|| written(|host| &host.runtime_dir));
        let state = options.state.clone().or_else(|| written(|host| &host.state_dir));
        let runtime = runtime.unwrap_or_else(|| defaults.runtime.clone());
        let control = options.control.clone().unwrap_or_else(|| runtime.join("control.sock"));
        Self { config, control, runtime, state: state.unwrap_or_else(|| defaults.state.clone()) }
    }
}

impl Daemon {
    fn start(options: &Options, started: Instant) -> anyhow::Result<Self> {
        let defaults = if options.rootless { Paths::rootless() } else { Paths::system() };
        let config = if options.config.is_empty() { existing(defaults.config.clone()) } else { options.config.clone() };
        let loaded = load_paths(&config).map_err(RpcError::from)?;
        let host = loaded.objects.iter().find_map(host_config).cloned();
        let layout = Layout::new(options, &defaults, host.as_ref(), config);
        make_folder(&layout.runtime, 0o755)?;
        make_folder(&layout.runtime.join("ports"), 0o755)?;
        make_folder(&layout.state, 0o700)?;
        let gid = control_gid(host.as_ref(), options.rootless)?;
        let mode = if gid.is_some() { 0o660 } else { 0o600 };
        let control = ControlSocket::bind(&layout.control, Permissions { mode, gid })?;
        let observe = ControlSocket::bind(&observe_of(&layout.control), Permissions { mode, gid })?;

        let (store, contents) = Store::open(&layout.state)?;
        let initial = Initial::new(loaded.objects, contents, options.adopt, &layout.runtime)?;
        let warnings = loaded.warnings.iter().chain(&initial.plan.warnings).chain(&initial.plan.problems);
        warnings.for_each(|warning| tracing::warn!(help = warning.help, "{warning}"));
        let (fabric, events) = Fabric::start(FabricConfig {
            workers: initial.plan.set.host().workers.clone(),
            runtime_dir: layout.runtime.clone(),
            helper: "/proc/self/exe".into(),
            connections_max: initial.plan.set.host().connections.max,
        })?;
        let parts = Parts {
            config: layout.config,
            runtime: layout.runtime,
            adopt: options.adopt,
            fabric,
            store,
            events: Arc::new(EventLog::default()),
        };
        let controller = Controller::start(parts, initial, started)?;
        Ok(Self { controller, events, control, observe })
    }

    async fn run(self) -> anyhow::Result<()> {
        let Self { controller, events, control, observe } = self;
        let mut hangup = signal(SignalKind::hangup())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (stop, stopping) = watch::channel(false);
        let server = Server { controller: Arc::clone(&controller), stopping };
        let mut tasks = JoinSet::new();
        tasks.spawn(fabric_events::run(Arc::clone(&controller), events));
        tasks.spawn(service_manager::watch(Arc::clone(&controller)));
        let mut doors = JoinSet::new();
        doors.spawn(accept(control, false, server.clone()));
        doors.spawn(accept(observe, true, server));
        announce(&controller);
        loop {
            tokio::select! {
                _ = hangup.recv() => reload(&controller).await,
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
        }
        service_manager::stopping();
        controller.parts.events.add(EventType::DaemonStopping, None, "the daemon stops", json!(null));
        // Sockets are unlinked when their doors close; connections finish what they are doing.
        stop.send_replace(true);
        let closed = async { while doors.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_TIMEOUT, closed).await.is_err() {
            tracing::warn!("connections were cut off");
        }
        doors.shutdown().await;
        tasks.shutdown().await;
        tokio::task::spawn_blocking(move || controller.parts.fabric.shutdown()).await?;
        Ok(())
    }
}

/// Says that everything is there.
fn announce(controller: &Controller) {
    let snapshot = controller.snapshot();
    let (ports, networks) = (snapshot.set.ports().count(), snapshot.set.networks().count());
    let ready_ms = controller.started.elapsed().as_millis();
    let message = format!("ready in {ready_ms} ms: {networks} networks, {ports} ports");
    let data = json!({"ports": ports, "networks": networks, "version": env!("CARGO_PKG_VERSION")});
    controller.parts.events.add(EventType::DaemonStarted, None, message, data);
    service_manager::ready();
}

async fn reload(controller: &Arc<Controller>) {
    service_manager::reloading();
    let controller = Arc::clone(controller);
    let result = tokio::task::spawn_blocking(move || controller.reload()).await;
    if let Ok(Err(error)) = result {
        // What the file says at which line, as `validate` shows it.
        eprint!("{}", error.to_diagnostics().render(false));
    }
    service_manager::ready();
}

/// Accepts connections until the daemon stops, then waits for those that are open.
async fn accept(socket: ControlSocket, read_only: bool, server: Server) {
    let places = Arc::new(Semaphore::new(CLIENTS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = socket.listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            () = server.stopped() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors: others may end meanwhile.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(client) = Client::of(&stream, read_only) else { continue };
        match Arc::clone(&places).try_acquire_owned() {
            Ok(place) => {
                let server = server.clone();
                connections.spawn(async move {
                    serve(stream, client, server).await;
                    drop(place);
                });
            }
            Err(_) => turn_away(&stream),
        }
    }
    drop(socket);
    while connections.join_next().await.is_some() {}
}

/// Tells a client that there are too many.
fn turn_away(stream: &tokio::net::UnixStream) {
    let message = format!("{CLIENTS_MAX} clients are connected already");
    let error = RpcError::new(ErrorKind::Exhausted, "", message);
    let line = format!("{}\n", Response { id: None, result: Err(error) }.to_value());
    // A fresh connection has room for one line; if not, the client sees the end of the connection.
    let _ = stream.try_write(line.as_bytes());
}

/// A default path is used if it is there; one that somebody names must be.
fn existing(path: PathBuf) -> Vec<PathBuf> {
    if path.exists() { vec![path] } else { Vec::new() }
}

fn host_config(object: &Object) -> Option<&HostConfig> {
    match &object.spec {
        Spec::HostConfig(host) => Some(host),
        _ => None,
    }
}

/// The group that may use the sockets: the one written, else `hostweave` where it exists.
fn control_gid(host: Option<&HostConfig>, rootless: bool) -> anyhow::Result<Option<u32>> {
    let by_name = |name: &str| nix::unistd::Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw());
    match host.and_then(|host| host.control_group.as_ref()) {
        Some(Account::Id(gid)) => Ok(Some(*gid)),
        Some(Account::Name(name)) => match by_name(name) {
            Some(gid) => Ok(Some(gid)),
            None => bail!("HostConfig.spec.control.group: there is no group {name:?} on this host"),
        },
        None if rootless => Ok(None),
        None => Ok(by_name(GROUP)),
    }
}

/// Makes a folder, or checks that the one that is there is not somebody else's: others could replace what is in it.
fn make_folder(path: &Path, mode: u32) -> anyhow::Result<()> {
    let parent = path.parent().filter(|parent| !parent.exists());
    if let Some(parent) = parent {
        std::fs::create_dir_all(parent).with_context(|| format!("cannot make the folder {}", parent.display()))?;
    }
    match std::fs::DirBuilder::new().mode(mode).create(path) {
        Ok(()) => {
            // The mode, whatever the umask.
            std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))?;
            Ok(())
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let owner = std::fs::metadata(path)?.uid();
            let own = nix::unistd::geteuid().as_raw();
            if own != 0 && owner != own {
                bail!("the folder {} belongs to user {owner}; this daemon runs as {own}", path.display());
            }
            Ok(())
        }
        Err(error) => Err(error).with_context(|| {
            format!("cannot make the folder {} (without root: hostweave daemon --rootless)", path.display())
        }),
    }
}
