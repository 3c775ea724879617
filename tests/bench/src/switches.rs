//! The switches under test, as processes: started, stopped for a while, and read out.
//!
//! hostweave with all it always does; `dpdk-testpmd` as a vhost io forwarder, which does no switching at all; Open
//! vSwitch with DPDK and one rule from each port to the other, or what a case asks for. What they are told stands in [`crate::config`]. Each polls
//! on the same CPU; while one is measured the others are stopped (`SIGSTOP`). Everything lives in temporary directories
//! and ends with the run.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hostweave_guest::Mode;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::config::{self, TIMEOUT_S};
use crate::crossing::Way;
use crate::measure::{self, SWITCH_CPU};

/// How long a switch may take to come up or to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Which switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Ours.
    Hostweave,
    /// `dpdk-testpmd --forward-mode=io`.
    Testpmd,
    /// Open vSwitch with DPDK.
    Ovs,
}

impl Kind {
    /// As in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hostweave => "hostweave",
            Self::Testpmd => "testpmd io",
            Self::Ovs => "OVS-DPDK",
        }
    }
}

/// What lets hostweave sleep under valgrind.
const VALGRIND_SHIM: &str = include_str!("../valgrind_io_uring.c");

/// Largest frame that Open vSwitch takes without segmentation offload (`NETDEV_DPDK_MAX_PKT_LEN`), in octets.
const OVS_FRAME_BYTES_MAX: usize = 9_728;

/// Connections that Open vSwitch may have, by `dpctl/ct-set-maxconns`; 3,000,000 if nothing is said.
const OVS_CONNECTIONS_MAX: &str = "40000000";

/// What a case needs of a switch.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// Largest frame in octets.
    pub frame_bytes: usize,
    /// Whether frames are larger than the MTU allows, to be cut by the receiver.
    pub gso: bool,
    /// Ports, at least 2.
    pub ports: usize,
    /// Whether the ports have policies, and connections are followed.
    pub policy: bool,
    /// What it does to addresses.
    pub way: Way,
    /// Whether each frame begins a connection.
    pub new_connections: bool,
    /// Connections that there must be room for; `None` for what the switch has by itself.
    pub table: Option<u32>,
    /// Whether to run it under callgrind, which counts instructions.
    pub callgrind: bool,
}

impl Needs {
    /// IP MTU of the network.
    pub fn mtu(self) -> usize {
        if self.gso || self.frame_bytes <= 1514 { 1500 } else { 65_520 }
    }
}

impl Kind {
    /// Whether the switch can do the case at all.
    pub fn can(self, needs: Needs) -> bool {
        match self {
            Self::Hostweave => true,
            // It knows no connections, so it cannot begin any, nor translate.
            Self::Testpmd => !needs.new_connections && !needs.way.translates(),
            Self::Ovs => {
                matches!(needs.way, Way::Stay | Way::Nat) && (needs.gso || needs.frame_bytes <= OVS_FRAME_BYTES_MAX)
            }
        }
    }
}

/// A running switch.
pub struct Switch {
    /// Which.
    pub kind: Kind,
    /// When its process was started.
    pub started: Instant,
    children: Vec<Child>,
    stdin: Option<ChildStdin>,
    /// Busy seconds and packets of hostweave when counting began.
    baseline: (f64, f64),
    needs: Needs,
    dir: TempDir,
    /// Folder in memory, as the runtime directory of a host is.
    runtime: TempDir,
}

impl Switch {
    /// Starts one. Its sockets need not exist yet; see [`Switch::socket`].
    ///
    /// # Errors
    /// When a program is missing or does not come up.
    pub fn start(kind: Kind, needs: Needs, binary: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("hwb").tempdir()?;
        let memory = Path::new("/dev/shm");
        let memory = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let runtime = tempfile::Builder::new().prefix("hwb").tempdir_in(memory)?;
        let (children, baseline) = (Vec::new(), (0.0, 0.0));
        let mut this = Self { kind, started: Instant::now(), children, stdin: None, baseline, needs, dir, runtime };
        match kind {
            Kind::Hostweave => this.start_hostweave(needs, binary)?,
            Kind::Testpmd => this.start_testpmd(needs)?,
            Kind::Ovs => this.start_ovs(needs)?,
        }
        Ok(this)
    }

    /// The socket of port `i`, and who listens on it.
    pub fn socket(&self, i: usize) -> (PathBuf, Mode) {
        match self.kind {
            Kind::Hostweave => (self.runtime.path().join(format!("ports/default.p{i}.sock")), Mode::Client),
            Kind::Testpmd => (self.path(&format!("p{i}.sock")), Mode::Client),
            Kind::Ovs => (self.path(&format!("p{i}.sock")), Mode::Server),
        }
    }

    /// Process id of the one that forwards.
    pub fn pid(&self) -> u32 {
        self.children.last().map_or(0, Child::id)
    }

    /// Its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Stops it in its tracks.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets it go on.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        for child in &self.children {
            kill(Pid::from_raw(i32::try_from(child.id())?), signal)?;
        }
        Ok(())
    }

    /// Fails with the end of the log when the process has ended.
    pub fn check_alive(&mut self) -> Result<()> {
        for child in &mut self.children {
            if let Some(status) = child.try_wait()? {
                let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(12).collect();
                let tail: Vec<&str> = tail.into_iter().rev().collect();
                bail!("{} ended with {status}:\n{}", self.kind.name(), tail.join("\n"));
            }
        }
        Ok(())
    }

    /// The command of the process that forwards, under callgrind if asked for.
    fn forwarder(&self, program: impl AsRef<std::ffi::OsStr>, needs: Needs) -> Result<Command> {
        if needs.way.leaves() {
            // Its uplink is a device in a network namespace of its own, with nobody at the other end.
            let mut command = self.command("unshare")?;
            command.arg("--net").arg(program);
            return Ok(command);
        }
        if !needs.callgrind {
            return self.command(program);
        }
        let shim = self.path("valgrind_io_uring.so");
        let mut cc = self.command("cc")?;
        cc.args(["-O2", "-shared", "-fPIC", "-x", "c", "-o"]).arg(&shim).arg("-").stdin(Stdio::piped());
        let mut cc = cc.spawn().context("cc")?;
        cc.stdin.take().context("cc")?.write_all(VALGRIND_SHIM.as_bytes())?;
        ensure!(cc.wait()?.success(), "cc of the shim: see {}", self.path("log").display());
        let mut command = self.command("valgrind")?;
        command.env("LD_PRELOAD", &shim);
        command.args([
            "--tool=callgrind",
            "--instr-atstart=no",
            &format!("--callgrind-out-file={}", self.path("callgrind").display()),
        ]);
        command.arg(program);
        Ok(command)
    }

    /// Begins to count, under callgrind.
    pub fn count_instructions(&self) -> Result<()> {
        self.callgrind_control("--instr=on")
    }

    /// Instructions of the whole process since [`Switch::count_instructions`].
    pub fn instructions(&self) -> Result<u64> {
        self.callgrind_control("--dump=bench")?;
        let dump = fs::read_dir(self.dir.path())?
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("callgrind."))
            .max_by_key(|entry| entry.metadata().and_then(|m| m.modified()).ok())
            .context("no dump of callgrind")?;
        let text = String::from_utf8_lossy(&fs::read(dump.path())?).into_owned();
        let total = text.lines().find_map(|line| line.strip_prefix("totals: ").or(line.strip_prefix("summary: ")));
        total.and_then(|n| n.trim().parse().ok()).context("no total in the dump of callgrind")
    }

    fn callgrind_control(&self, what: &str) -> Result<()> {
        let mut command = Command::new("callgrind_control");
        let output = command.arg(what).arg(self.pid().to_string()).env("PATH", "/usr/bin:/bin").output()?;
        ensure!(output.status.success(), "callgrind_control {what}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let log = File::options().create(true).append(true).open(self.path("log"))?;
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.env("XDG_RUNTIME_DIR", self.dir.path()).env("OVS_RUNDIR", self.dir.path());
        command.env("OVS_LOGDIR", self.dir.path()).env("OVS_DBDIR", self.dir.path());
        Ok(command)
    }

    fn start_testpmd(&mut self, needs: Needs) -> Result<()> {
        // One buffer a frame, as large as they come: 65,535 octets with 128 of headroom.
        let (mbuf, count) = if needs.frame_bytes > 1600 { (65_535, 6_144) } else { (2_176, 32_768) };
        let mut command = self.command("stdbuf")?;
        command.args(["-oL", "dpdk-testpmd"]);
        command.args(["--lcores", &format!("0@0,1@{SWITCH_CPU}"), "--in-memory", "--no-pci"]);
        command.args(["-m", "1024", "--no-telemetry", "--file-prefix=hwb"]);
        for i in 0..needs.ports {
            let tso = u8::from(needs.gso);
            command.arg(format!("--vdev=net_vhost{i},iface={},tso={tso}", self.socket(i).0.display()));
        }
        command.args(["--", "-i", "--forward-mode=io", "--nb-cores=1", "--txd=1024", "--rxd=1024"]);
        command.args(["--record-core-cycles", "--auto-start", &format!("--mbuf-size={mbuf}")]);
        command.arg(format!("--total-num-mbufs={count}"));
        if needs.frame_bytes > 1600 {
            command.arg(format!("--max-pkt-len={}", needs.frame_bytes + 4));
        }
        let mut child = command.stdin(Stdio::piped()).spawn().context("dpdk-testpmd (package dpdk-dev)")?;
        self.stdin = child.stdin.take();
        self.children.push(child);
        self.wait_for(|this| (0..needs.ports).all(|i| this.socket(i).0.exists()))
    }

    fn start_ovs(&mut self, needs: Needs) -> Result<()> {
        let (db, remote) = (self.path("conf.db"), format!("unix:{}", self.path("db.sock").display()));
        let schema = "/usr/share/openvswitch/vswitch.ovsschema";
        ensure!(self.command("ovsdb-tool")?.arg("create").arg(&db).arg(schema).status()?.success(), "ovsdb-tool");
        let server = self.command("ovsdb-server")?.arg(&db).arg(format!("--remote=p{remote}")).spawn()?;
        self.children.push(server);
        self.wait_for(|this| this.path("db.sock").exists())?;
        self.vsctl(&["--no-wait", "init"])?;
        let mask = format!("other_config:pmd-cpu-mask={:#x}", 1 << SWITCH_CPU);
        let mut set = vec!["--no-wait", "set", "Open_vSwitch", ".", "other_config:dpdk-init=true", &mask];
        set.extend([
            "other_config:dpdk-extra=--in-memory --no-pci --no-telemetry",
            "other_config:dpdk-socket-mem=1536",
        ]);
        if needs.gso {
            set.push("other_config:userspace-tso-enable=true");
        }
        self.vsctl(&set)?;
        let binary = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
        // Each has a device `ovs-netdev`: two at once need a network namespace of their own.
        let mut command = self.command("unshare")?;
        command.args(["--net", binary, &remote]);
        let child = command.spawn().context("unshare, or package openvswitch-switch-dpdk")?;
        self.children.push(child);
        self.vsctl(&["add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev"])?;
        for i in 0..needs.ports {
            let port = format!("p{i}");
            let socket = format!("options:vhost-server-path={}", self.socket(i).0.display());
            let mut add = vec!["add-port", "br0", &port, "--", "set", "interface", &port, "type=dpdkvhostuserclient"];
            let (of, mtu) = (format!("ofport_request={}", i + 1), format!("mtu_request={}", needs.mtu()));
            add.extend([socket.as_str(), &of, &mtu]);
            self.vsctl(&add)?;
        }
        self.ofctl(&["del-flows", "br0"])?;
        for rule in config::ovs(needs.policy, needs.way) {
            self.ofctl(&["add-flow", "br0", &rule])?;
        }
        if needs.policy {
            self.appctl(&["dpctl/ct-set-maxconns", OVS_CONNECTIONS_MAX])?;
            let udp = ["udp_first", "udp_single", "udp_multiple"].map(|key| format!("{key}={TIMEOUT_S}"));
            // OVS 3.1 has no `add-dp`.
            let datapath = ["--", "--id=@dp", "create", "Datapath", "datapath_version=0", "--"];
            self.vsctl(&[&datapath[..], &["set", "Open_vSwitch", ".", "datapaths:netdev=@dp"]].concat())?;
            let mut timeouts = vec!["add-zone-tp", "netdev", "zone=0"];
            timeouts.extend(udp.iter().map(String::as_str));
            self.vsctl(&timeouts)?;
        }
        Ok(())
    }

    /// Forgets all connections of Open vSwitch, where each frame begins one: its table would only fill. hostweave's port is
    /// at its quota instead and gives up a connection for each new one.
    pub fn forget_connections(&self) -> Result<()> {
        if self.needs.new_connections && self.kind == Kind::Ovs {
            self.appctl(&["dpctl/flush-conntrack"])?;
            // Freed by another thread, after a grace period.
            std::thread::sleep(Duration::from_millis(500));
        }
        Ok(())
    }

    /// Fails when Open vSwitch has forwarded frames of new connections without remembering the connections, as it does when
    /// its table is full.
    pub fn check_connections(&self, frames: u64) -> Result<()> {
        if self.needs.new_connections && self.kind == Kind::Ovs {
            let count = self.appctl(&["dpctl/ct-get-nconns"])?;
            let count: u64 = count.trim().parse().with_context(|| format!("ct-get-nconns: {count:?}"))?;
            ensure!(count >= frames, "{frames} new connections, but Open vSwitch knows {count}");
        }
        Ok(())
    }

    fn vsctl(&self, args: &[&str]) -> Result<()> {
        let db = format!("--db=unix:{}", self.path("db.sock").display());
        let status = self.command("ovs-vsctl")?.args([&db, "--timeout=30", "--retry"]).args(args).status()?;
        ensure!(status.success(), "ovs-vsctl {args:?}: see {}", self.path("log").display());
        Ok(())
    }

    fn ofctl(&self, args: &[&str]) -> Result<()> {
        let status = self.command("ovs-ofctl")?.args(args).status()?;
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(12).collect();
        let last = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
        ensure!(status.success(), "ovs-ofctl {args:?}: {last}");
        Ok(())
    }

    fn start_hostweave(&mut self, needs: Needs, binary: &Path) -> Result<()> {
        let conf = self.path("conf");
        fs::create_dir_all(&conf)?;
        fs::write(conf.join("host.yaml"), config::hostweave(&needs, self.runtime.path(), &self.path("state")))?;
        let child = self
            .forwarder(binary, needs)?
            .args(["daemon", "--config"])
            .arg(&conf)
            .arg("--control")
            .arg(self.path("control.sock"))
            .spawn()
            .with_context(|| format!("starting {}", binary.display()))?;
        self.started = Instant::now();
        self.children.push(child);
        Ok(())
    }

    fn wait_for(&mut self, ready: impl Fn(&Self) -> bool) -> Result<()> {
        let start = Instant::now();
        while !ready(self) {
            self.check_alive()?;
            ensure!(start.elapsed() < PATIENCE, "{} did not come up", self.kind.name());
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Forgets what was counted so far, where the switch counts busy cycles.
    pub fn clear_cycles(&mut self) -> Result<()> {
        match self.kind {
            Kind::Testpmd => self.say("clear fwd stats all\n"),
            Kind::Ovs => self.appctl(&["dpif-netdev/pmd-stats-clear"]).map(drop),
            Kind::Hostweave => {
                self.baseline = self.worker_totals()?;
                Ok(())
            }
        }
    }

    /// Busy cycles per packet since [`Switch::clear_cycles`], by the switch's own account.
    pub fn busy_cycles(&mut self) -> Result<Option<f64>> {
        match self.kind {
            Kind::Testpmd => {
                let before = fs::metadata(self.path("log"))?.len();
                self.say("show fwd stats all\n")?;
                let start = Instant::now();
                while start.elapsed() < Duration::from_secs(2) {
                    let log = fs::read(self.path("log"))?;
                    let fresh =
                        String::from_utf8_lossy(log.get(usize::try_from(before)?..).unwrap_or(&[])).into_owned();
                    if let Some(number) = after(&fresh, "CPU cycles/packet=") {
                        return Ok(Some(number));
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
                Ok(None)
            }
            Kind::Ovs => {
                Ok(after(&self.appctl(&["dpif-netdev/pmd-stats-show"])?, "avg processing cycles per packet: "))
            }
            Kind::Hostweave => {
                let ((busy, packets), (busy_before, packets_before)) = (self.worker_totals()?, self.baseline);
                let moved = packets - packets_before;
                Ok((moved > 0.0).then(|| (busy - busy_before) / moved * measure::cpu_hz()))
            }
        }
    }

    /// Seconds in which hostweave's workers moved packets, and how many they moved.
    fn worker_totals(&self) -> Result<(f64, f64)> {
        let text = metrics(&self.path("control.sock"))?;
        let sum = |name: &str, label: &str| -> f64 {
            let lines = text.lines().filter(|line| line.starts_with(name) && line.contains(label));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
        };
        Ok((sum("hostweave_worker_time_seconds_total", "state=\"busy\""), sum("hostweave_worker_packets_total", "")))
    }

    /// Why hostweave dropped frames of the two ports under test so far; empty when it dropped none.
    pub fn drops(&self) -> Result<Vec<String>> {
        let text = metrics(&self.path("control.sock"))?;
        let ours = |line: &&str| line.starts_with("hostweave_port_drops_total{port=\"default/p");
        Ok(text.lines().filter(ours).filter(|line| !line.ends_with(" 0")).map(str::to_owned).collect())
    }

    fn say(&mut self, line: &str) -> Result<()> {
        if let Some(stdin) = &mut self.stdin {
            stdin.write_all(line.as_bytes())?;
        }
        Ok(())
    }

    fn appctl(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new("ovs-appctl");
        let control = self.path(&format!("ovs-vswitchd-dpdk.{}.ctl", self.pid()));
        command.arg("-t").arg(control).args(args).env("OVS_RUNDIR", self.dir.path());
        Ok(String::from_utf8_lossy(&command.stderr(Stdio::null()).output()?.stdout).into_owned())
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        // The processes may have ended already; a stopped one has to go on to end.
        let _ = self.resume();
        for child in self.children.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What a daemon of hostweave counts, as its control socket says.
pub fn metrics(control: &Path) -> Result<String> {
    let mut stream = UnixStream::connect(control)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: hostweave\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// The number that follows `label`.
fn after(text: &str, label: &str) -> Option<f64> {
    let rest = &text[text.find(label)? + label.len()..];
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    rest[..end].parse().ok()
}
