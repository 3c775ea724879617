//! What the firewall costs besides time per packet: memory of a connection, and how long a change of policy takes.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::cases::{Case, Options, WARM_UP, attach};
use crate::config;
use crate::flows::{DST_PORT_FIRST, Flows};
use crate::generator::Traffic;
use crate::measure;
use crate::switches::{Kind, Needs, Switch};

/// Connections of which the memory is measured.
const CONNECTIONS: u32 = 1_000_000;

/// The smallest table in which two ports of one network may have so many between them: the share of the host's own services
/// is kept for them.
const TABLE: u32 = CONNECTIONS + (1 << 16) + 64;

/// Connections of the daemon that is compared with: they go through each buffer of each ring once.
const CONNECTIONS_BEFORE: u32 = 4_096;

/// Its table: as small as there is one for them.
const TABLE_BEFORE: u32 = 8_192;

/// Memory of connections.
#[derive(Debug, serde::Serialize)]
pub struct Memory {
    /// IP version.
    pub family: &'static str,
    /// Connections, each seen in both directions by one worker.
    pub connections: u32,
    /// Connections that there is room for.
    pub table: u32,
    /// Resident memory (RssAnon, RssShmem, RssFile) that a connection adds, in octets.
    pub octets: f64,
}

/// Resident memory with a million connections less that with a few thousand in a table that is no larger, for each family.
pub fn memory(options: &Options<'_>) -> Result<Vec<Memory>> {
    let families = [("IPv4", Traffic::Udp4), ("IPv6", Traffic::Udp6)];
    families
        .into_iter()
        .map(|(family, traffic)| {
            let before = resident(traffic, CONNECTIONS_BEFORE, TABLE_BEFORE, options)?;
            let after = resident(traffic, CONNECTIONS, TABLE, options)?;
            let octets = (after as f64 - before as f64) * 1024.0 / f64::from(CONNECTIONS - CONNECTIONS_BEFORE);
            eprintln!("  memory {family}: {before} KiB before, {after} KiB after");
            Ok(Memory { family, connections: CONNECTIONS, table: TABLE, octets })
        })
        .collect()
}

/// KiB resident of a daemon with so many connections, half of them begun by either port.
fn resident(traffic: Traffic, connections: u32, table: u32, options: &Options<'_>) -> Result<u64> {
    let half = connections / 2;
    let case = Case::policy("memory", traffic, Flows::Cycle(half));
    let needs = Needs { table: Some(table), ..case.needs() };
    let mut switch = Switch::start(Kind::Hostweave, needs, options.binary)?;
    let mut generator = attach(&mut switch, &case, options)?;
    generator.open_from_b(0, half)?;
    generator.prepare()?;
    generator.run(WARM_UP)?;
    switch.check_alive()?;
    measure::resident_kib(switch.pid()).context("resident memory")
}

/// Ports whose policies are loaded.
const PORTS: usize = 10_000;

/// Changes that are timed, without traffic.
const CHANGES: usize = 20;

/// Changes under traffic.
const CHANGES_UNDER_TRAFFIC: usize = 100;

/// Name of the threads of the daemon that serve its control socket.
pub const CONTROL_THREADS: &str = "hw-control";

/// How long a daemon with so many ports may take to come up.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a change of policy takes.
#[derive(Debug, serde::Serialize)]
pub struct Change {
    /// Ports, each selected by a policy.
    pub ports: usize,
    /// From the request on the control socket to its answer, ms: read, checked, stored, compiled, published.
    pub ms: Vec<f64>,
    /// CPU time of the daemon's control threads for each, ms: does not depend on the neighbours.
    pub cpu_ms: f64,
    /// Changes while two ports exchanged frames that all policies allow.
    pub under_traffic: usize,
    /// Frames that arrived meanwhile.
    pub frames: u64,
    /// Frames that did not.
    pub lost: u64,
    /// Frames that arrived behind ones that were sent later.
    pub late: u64,
}

/// Changes a policy of a host with 10,000 ports, over the control socket: at rest for the time it takes, and while frames pass
/// that every one of the policies allows.
pub fn change(options: &Options<'_>) -> Result<Change> {
    let case = Case::policy("change", Traffic::Udp4, Flows::Cycle(1000));
    let mut switch = Switch::start(Kind::Hostweave, Needs { ports: PORTS, ..case.needs() }, options.binary)?;
    let started = Instant::now();
    while !switch.socket(1).0.exists() {
        switch.check_alive()?;
        ensure!(started.elapsed() < PATIENCE, "the daemon with {PORTS} ports did not come up");
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut control = Control::connect(&switch)?;
    control.apply(&config::policies(PORTS))?;
    let mut generator = attach(&mut switch, &case, options)?;
    let mut ms = Vec::new();
    let before = measure::thread_times(switch.pid());
    for i in 0..CHANGES {
        let text = config::neighbours_policy(50, 5, 2000 + i);
        let start = Instant::now();
        control.apply(&text)?;
        ms.push(start.elapsed().as_secs_f64() * 1e3);
        eprintln!("  change {i}: {:.2} ms", ms[i]);
    }
    let cpu_ms = measure::time_of(CONTROL_THREADS, &before, &measure::thread_times(switch.pid())).as_secs_f64() * 1e3
        / CHANGES as f64;
    let done = AtomicBool::new(false);
    let (mut frames, mut lost, mut late) = (0, 0, 0);
    std::thread::scope(|scope| {
        let changes = scope.spawn(|| {
            let result = (0..CHANGES_UNDER_TRAFFIC).try_for_each(|i| control.apply(&passing(i)));
            done.store(true, Ordering::Relaxed);
            result
        });
        while !done.load(Ordering::Relaxed) {
            let sample = generator.run(WARM_UP)?;
            frames += sample.frames;
            lost += sample.lost;
            late += sample.late;
        }
        changes.join().map_err(|_| anyhow::anyhow!("the thread that changes policies panicked"))?
    })?;
    switch.check_alive()?;
    if lost > 0 {
        eprintln!("  change: {lost} frames lost: {}", switch.drops()?.join(", "));
    }
    Ok(Change { ports: PORTS, ms, cpu_ms, under_traffic: CHANGES_UNDER_TRAFFIC, frames, lost, late })
}

/// The `i`-th change under traffic: policies of the two ports that always allow what passes between them, or of another port.
fn passing(i: usize) -> String {
    let first = DST_PORT_FIRST - (i / 3 % 100) as u16;
    match i % 3 {
        0 => config::policy(0, 1, first),
        1 => config::policy(1, 0, first),
        _ => config::neighbours_policy(i % 99, i % 10, 3000 + i),
    }
}

/// A client of the control socket.
pub struct Control(BufReader<UnixStream>);

impl Control {
    /// Connects to a daemon that runs.
    ///
    /// # Errors
    /// It does not listen.
    pub fn connect(switch: &Switch) -> Result<Self> {
        let stream = UnixStream::connect(switch.path("control.sock")).context("the control socket")?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Applies objects, and waits until the daemon says that they hold.
    ///
    /// # Errors
    /// It refuses them, or does not answer in time.
    pub fn apply(&mut self, text: &str) -> Result<()> {
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": "object.apply",
                             "params": {"sources": [{"name": "change.yaml", "text": text}]}});
        self.0.get_mut().write_all(format!("{request}\n").as_bytes())?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let answer: Value = serde_json::from_str(&line).context("an answer of the daemon")?;
        match answer.get("error") {
            None => Ok(()),
            Some(error) => bail!("object.apply: {error}"),
        }
    }
}
