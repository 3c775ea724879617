//! Where the uplink is measured: two network namespaces, the host's and the one outside, and the daemon in the first.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, gettid};
use tempfile::TempDir;

use super::{BARE_TAP, Driver, FAR, OUTSIDE, UPLINK};
use crate::generator::SIDES;
use crate::measure::{self, SWITCH_CPU};
use crate::switches;

/// Frames that wait in a TAP device.
const TAP_QUEUE: usize = 20_000;

/// The kernel's address on both TAP devices: the frames that it receives are for it.
const TAP_MAC: &str = "02:00:00:00:00:98";

type Job = Box<dyn FnOnce() + Send>;

/// A thread in a network namespace of its own, which goes with it.
pub struct Namespace {
    jobs: mpsc::Sender<Job>,
    /// Names the namespace, for `ip`.
    pub thread: i32,
}

impl Namespace {
    /// An empty one.
    pub fn new() -> Result<Self> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (ready, made) = mpsc::channel();
        std::thread::Builder::new().name("namespace".into()).spawn(move || {
            let made = unshare(CloneFlags::CLONE_NEWNET).map(|()| gettid().as_raw());
            // Who asked is gone only when the run has failed.
            let _ = ready.send(made);
            inbox.into_iter().for_each(|job| job());
        })?;
        let thread = made.recv()?.context("a network namespace (needs root)")?;
        Ok(Self { jobs, thread })
    }

    /// What `job` says there.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let (answer, result) = mpsc::channel();
        self.jobs
            .send(Box::new(move || drop(answer.send(job()))))
            .map_err(|_| anyhow::anyhow!("the namespace is gone"))?;
        Ok(result.recv()?)
    }

    /// Commands of `ip`, one a line.
    pub fn ip(&self, commands: &str) -> Result<()> {
        let commands = commands.to_owned();
        self.run(move || {
            for command in commands.lines().map(str::trim).filter(|line| !line.is_empty()) {
                let done = Command::new("ip").args(command.split(' ')).output()?;
                ensure!(done.status.success(), "ip {command}: {}", String::from_utf8_lossy(&done.stderr));
            }
            Ok(())
        })?
    }

    /// Frames that an interface there has received.
    pub fn received(&self, interface: &'static str) -> Result<u64> {
        self.run(move || {
            let text = fs::read_to_string("/proc/thread-self/net/dev")?;
            let line = text.lines().find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':'));
            let field = line.and_then(|line| line.split_whitespace().nth(1)).context("no such interface")?;
            Ok(field.parse()?)
        })?
    }
}

/// The daemon with one guest port and an uplink.
pub struct Place {
    /// Where the daemon is.
    pub host: Namespace,
    /// Behind the cable; of a TAP device the host's own kernel is.
    pub far: Option<Namespace>,
    driver: Driver,
    child: Child,
    dir: TempDir,
}

impl Place {
    /// Makes interfaces and starts the daemon.
    pub fn new(driver: Driver, binary: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("hwb").tempdir()?;
        let host = Namespace::new()?;
        let mut far = None;
        if driver != Driver::Tap {
            let other = Namespace::new()?;
            host.ip(&format!(
                "link add {UPLINK} type veth peer name {FAR} netns {}\nlink set {UPLINK} up",
                other.thread
            ))?;
            other.ip(&gateway(FAR))?;
            far = Some(other);
        }
        let (conf, log) = (dir.path().join("conf"), File::create(dir.path().join("log"))?);
        fs::create_dir_all(&conf)?;
        fs::write(conf.join("host.yaml"), objects(driver, dir.path()))?;
        let (binary, control) = (fs::canonicalize(binary)?, dir.path().join("control.sock"));
        let start = move || {
            let mut command = Command::new(binary);
            command.args(["daemon", "--config"]).arg(conf).arg("--control").arg(control);
            command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()
        };
        let child = host.run(start)?.context("starting hostweave")?;
        Ok(Self { host, far, driver, child, dir })
    }

    /// Sets up what the daemon made, once it is there.
    pub fn finish(&self) -> Result<()> {
        if self.driver == Driver::Tap {
            self.host.ip(&format!("link set {UPLINK} address {TAP_MAC}"))?;
            self.host.ip(&gateway(UPLINK))?;
            self.host.ip(&format!("link set {UPLINK} txqueuelen {TAP_QUEUE}"))?;
        }
        Ok(())
    }

    /// Sets up the TAP device of the bare loop like the daemon's: the kernel is to do the same with what it writes.
    pub fn finish_bare(&self) -> Result<()> {
        self.host.ip(&format!("link set {BARE_TAP} address {TAP_MAC} up\nlink set {BARE_TAP} txqueuelen {TAP_QUEUE}"))
    }

    /// The guest's socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("run/ports/default.p0.sock")
    }

    /// Time in which the worker had its CPU and frames to move, so far.
    pub fn busy(&self) -> Result<Busy> {
        let text = switches::metrics(&self.dir.path().join("control.sock"))?;
        let seconds = |state: &str| {
            let wanted = |line: &&str| line.starts_with("hostweave_worker_time_seconds_total") && line.contains(state);
            text.lines().find(wanted).and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
        };
        let times = measure::thread_times(self.child.id());
        let cpu = times.iter().filter(|(_, name, _)| name == "hw-worker-0").map(|(.., ns)| *ns as f64 / 1e9).sum();
        Ok(Busy { cpu, busy: seconds("\"busy\""), polling: seconds("\"polling\"") })
    }

    /// The end of the log.
    pub fn log(&self) -> String {
        let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        log.lines().skip(log.lines().count().saturating_sub(12)).collect::<Vec<_>>().join("\n")
    }

    /// Stops the daemon in its tracks, or lets it go on.
    pub fn pause(&self, pause: bool) -> Result<()> {
        let signal = if pause { Signal::SIGSTOP } else { Signal::SIGCONT };
        Ok(kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?)
    }
}

/// What a worker did so far, in seconds.
pub struct Busy {
    /// CPU time.
    cpu: f64,
    /// With frames, by the clock.
    busy: f64,
    /// Looking for some, by the clock.
    polling: f64,
}

impl Busy {
    /// CPU time with frames, between two readings.
    pub fn until(&self, later: &Busy) -> f64 {
        let (busy, polling) = (later.busy - self.busy, later.polling - self.polling);
        (later.cpu - self.cpu) * busy / (busy + polling)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.pause(false);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An interface as the gateway: it answers for its addresses, and what is sent through it ends there.
fn gateway(interface: &str) -> String {
    let [(v4, _), (v6, _)] = OUTSIDE;
    format!(
        "addr add {v4}/24 dev {interface}\naddr add {v6}/64 dev {interface} nodad\nlink set {interface} up\n\
         route add blackhole default\n-6 route add blackhole default"
    )
}

fn objects(driver: Driver, dir: &Path) -> String {
    let ([(v4, _), (v6, _)], name) = (OUTSIDE, driver.name());
    let (run, state) = (dir.join("run"), dir.join("state"));
    let (run, state) = (run.display(), state.display());
    let mac = SIDES[0].mac.map(|octet| format!("{octet:02x}")).join(":");
    format!(
        "apiVersion: hostweave.dev/v1alpha1\nkind: HostConfig\nmetadata: {{name: bench}}\nspec:\n  \
         workers: {{cpus: [{SWITCH_CPU}]}}\n  paths: {{runtime: {run}, state: {state}}}\n  \
         uplink: {{interface: {UPLINK}, driver: {name}, addresses: [198.51.100.2/24, \"2001:db8:9::2/64\"], gateways: [{v4}, \"{v6}\"]}}\n\
         ---\napiVersion: hostweave.dev/v1alpha1\nkind: Network\nmetadata: {{name: default}}\n\
         spec: {{cidrs: [10.64.0.0/16, \"2001:db8:64::/64\"], egress: {{ipv4: nat, ipv6: nat}}}}\n\
         ---\napiVersion: hostweave.dev/v1alpha1\nkind: NatPool\nmetadata: {{name: pool}}\n\
         spec: {{addresses: [198.51.100.8/29, \"2001:db8:9::8/125\"]}}\n\
         ---\napiVersion: hostweave.dev/v1alpha1\nkind: Port\nmetadata: {{name: p0}}\n\
         spec: {{network: default, mac: \"{mac}\", addresses: [{}, \"{}\"]}}\n",
        SIDES[0].v4, SIDES[0].v6
    )
}
