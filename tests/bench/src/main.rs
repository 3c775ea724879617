//! The benchmark suite: one generator against hostweave, `dpdk-testpmd` and Open vSwitch, interleaved in one run.
//!
//! Started by `tests/bench/run`, which builds everything, reserves huge pages and installs the rivals. Prints a table
//! on stdout, progress on stderr, and writes all rounds as JSON. How to read the numbers: ratios first, they survive a
//! noisy machine; absolute rates only from rounds whose calibration loop is within 10 % of its best.

mod cases;
mod config;
mod crossing;
mod driver;
mod firewall;
mod flows;
mod generator;
mod health;
mod measure;
mod report;
mod services;
mod switches;
mod uplink;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use cases::{CASES, Options};
use switches::Kind;

/// Names of the cases that are not throughput.
const OTHER_CASES: [&str; 9] =
    ["instructions", "latency", "start", "idle1000", "memory", "change", "service-change", "health", "uplink"];

/// Idle ports of `idle1000`.
const IDLE_PORT_COUNT: usize = 1000;

/// Measures hostweave side by side with dpdk-testpmd (vhost io forwarder) and Open vSwitch with DPDK.
#[derive(Parser)]
#[command(name = "tests/bench/run")]
struct Args {
    /// Only these cases: udp64, udp64-v6, udp1500, frame32k, gso64k, policy64, policy64-1, policy64-1m, connect64,
    /// nat64, nat64-1m, nat-connect64, attach64, service64, service-connect64 (-v6: policy64, connect64, and those of
    /// NAT, attached addresses and Services but for nat64-1m), instructions, latency, start, idle1000, memory, change,
    /// service-change, health, uplink
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// Paired rounds of each case
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Length of one measurement in ms
    #[arg(long, default_value_t = 2000)]
    time_ms: u64,
    /// Write every round to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Only these switches: hostweave, testpmd, ovs
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "hostweave,testpmd,ovs")]
    switches: Vec<String>,
    /// Of the case `uplink` only these drivers: afPacket, afXdp, tap
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "afPacket,afXdp,tap")]
    drivers: Vec<String>,
    /// The hostweave binary
    #[arg(long, env = "HOSTWEAVE_BIN", default_value = "target/release/hostweave")]
    binary: PathBuf,
    /// Share of its CPU that a switch must have had for a round to count
    #[arg(long, default_value_t = 0.95)]
    cpu_share_min: f64,
    /// Ordinary pages instead of huge ones
    #[arg(long)]
    small_pages: bool,
    /// Receive buffers that are not merged
    #[arg(long)]
    no_mergeable: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let switches = args.switches.iter().map(|name| kind(name)).collect::<Result<Vec<_>>>()?;
    for name in &args.only {
        let known = CASES.iter().any(|case| case.name == name) || OTHER_CASES.contains(&name.as_str());
        ensure!(known, "no case is called {name:?}");
    }
    let wanted = |name: &str| args.only.is_empty() || args.only.iter().any(|only| only == name);
    // A thousand cards have about ten descriptors each here and in the switch.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    measure::pin(measure::GENERATOR_CPU)?;
    let options = Options {
        rounds: args.rounds.max(1),
        time: Duration::from_millis(args.time_ms),
        binary: &args.binary,
        switches: &switches,
        huge: !args.small_pages,
        mergeable: !args.no_mergeable,
        cpu_share_min: args.cpu_share_min,
    };
    let mut report = report::Report::new(&options);
    for group in CASES.chunk_by(|a, b| a.group == b.group) {
        let cases = cases::chosen(group, &switches, wanted);
        report.throughput.extend(cases::throughput(&cases, &options).with_context(|| group[0].group)?);
    }
    if wanted("instructions") && switches.contains(&Kind::Hostweave) {
        for case in CASES.iter().filter(|case| cases::counted(case)) {
            report.instructions.push(cases::instructions(case, &options).context("instructions")?);
        }
    }
    if wanted("latency") {
        report.latency = cases::latency(&options).context("latency")?;
    }
    if wanted("start") {
        report.start = cases::start(&options).context("start")?;
    }
    if wanted("idle1000") && switches.contains(&Kind::Hostweave) {
        report.idle = Some(cases::idle(&options, Kind::Hostweave, IDLE_PORT_COUNT).context("idle1000")?);
    }
    if wanted("memory") && switches.contains(&Kind::Hostweave) {
        report.memory = firewall::memory(&options).context("memory")?;
    }
    if wanted("change") && switches.contains(&Kind::Hostweave) {
        report.change = Some(firewall::change(&options).context("change")?);
    }
    if wanted("service-change") && switches.contains(&Kind::Hostweave) {
        report.service_change = Some(services::change(&options).context("service-change")?);
    }
    if wanted("health") && switches.contains(&Kind::Hostweave) {
        report.health = Some(health::health(&options).context("health")?);
    }
    if wanted("uplink") && switches.contains(&Kind::Hostweave) {
        report.uplink = uplink::measure(&options, &args.drivers).context("uplink")?;
    }
    print!("{report}");
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(&report)?).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn kind(name: &str) -> Result<Kind> {
    match name {
        "hostweave" => Ok(Kind::Hostweave),
        "testpmd" => Ok(Kind::Testpmd),
        "ovs" => Ok(Kind::Ovs),
        other => anyhow::bail!("no switch is called {other:?}: hostweave, testpmd or ovs"),
    }
}
