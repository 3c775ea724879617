//! The table and the JSON.

use std::fmt::{self, Display, Formatter};

use crate::cases::{Idle, Instructions, Latency, Options, Outcome, Round, Series, Start};
use crate::firewall::{Change, Memory};
use crate::health::{HealthCost, INTERVAL_S};
use crate::measure::Spread;
use crate::services::ServiceChange;
use crate::switches::Kind;

/// Calibration may be this much above its best for an absolute rate to count.
const CALIBRATION_SLACK: f64 = 1.10;

/// Everything that was measured.
#[derive(Debug, serde::Serialize)]
pub struct Report {
    cpu: String,
    kernel: String,
    rounds: usize,
    time_ms: u128,
    huge_pages: bool,
    mergeable: bool,
    /// Throughput cases.
    pub throughput: Vec<Outcome>,
    /// Instructions per packet.
    pub instructions: Vec<Instructions>,
    /// One-way latency.
    pub latency: Vec<Latency>,
    /// Start to first frame.
    pub start: Vec<Start>,
    /// A thousand idle ports.
    pub idle: Option<Idle>,
    /// Memory of a connection.
    pub memory: Vec<Memory>,
    /// A change of policy.
    pub change: Option<Change>,
    /// A change of a Service's backend.
    pub service_change: Option<ServiceChange>,
    /// Health checks.
    pub health: Option<HealthCost>,
    /// Beside bare loops.
    pub uplink: Vec<crate::uplink::Row>,
}

impl Report {
    /// An empty one that knows the machine.
    pub fn new(options: &Options<'_>) -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Self {
            cpu: model.map_or_else(String::new, |(_, name)| name.to_owned()),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            rounds: options.rounds,
            time_ms: options.time.as_millis(),
            huge_pages: options.huge,
            mergeable: options.mergeable,
            throughput: Vec::new(),
            instructions: Vec::new(),
            latency: Vec::new(),
            start: Vec::new(),
            idle: None,
            memory: Vec::new(),
            change: None,
            service_change: None,
            health: None,
            uplink: Vec::new(),
        }
    }

    /// Best calibration of all rounds, ms.
    fn best_calibration(&self) -> f64 {
        let rounds = self.throughput.iter().flat_map(|o| &o.series).flat_map(|s| &s.rounds);
        rounds.map(|r| r.calibration_ms).fold(f64::INFINITY, f64::min)
    }
}

/// Ratio of ours to theirs, round by round.
fn ratio(ours: &Series, theirs: &Series, of: impl Fn(&Round) -> f64) -> Option<Spread> {
    let partner = |round: &Round| theirs.rounds.iter().find(|other| other.number == round.number);
    let pairs: Vec<f64> = ours.rounds.iter().filter_map(|round| Some(of(round) / of(partner(round)?))).collect();
    (!pairs.is_empty()).then(|| Spread::of(&pairs))
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} · Linux {} · {} rounds of {} ms", self.cpu, self.kernel, self.rounds, self.time_ms)?;
        if !self.throughput.is_empty() {
            self.table(f)?;
            self.groups(f)?;
        }
        for i in &self.instructions {
            writeln!(f, "{:20} {:10} {:.0} instructions a packet", i.case, i.switch.name(), i.per_packet)?;
        }
        for l in &self.latency {
            let us = |ns: u64| ns as f64 / 1e3;
            let (p50, p99, p999, idle) = (us(l.p50_ns), us(l.p99_ns), us(l.p999_ns), us(l.from_idle_p50_ns));
            let name = l.switch.name();
            writeln!(f, "latency   {name:10} p50 {p50:.2} p99 {p99:.2} p99.9 {p999:.2} µs; from idle {idle:.1} µs")?;
        }
        for s in &self.start {
            let spread = Spread::of(&s.ms);
            let best = s.ms.iter().copied().fold(f64::INFINITY, f64::min);
            writeln!(f, "start     {:10} median {:.0} ms, best {best:.0} ms", s.switch.name(), spread.median)?;
        }
        if let Some(idle) = &self.idle {
            let pairs: Vec<f64> = idle.among_mpps.iter().zip(&idle.alone_mpps).map(|(a, b)| a / b).collect();
            let (name, ports, ratio) = (idle.switch.name(), idle.ports, Spread::of(&pairs).median);
            let (cpu, kib) = (idle.idle_cpu_share * 100.0, idle.kib_per_port);
            writeln!(
                f,
                "idle      {name:10} {ports} idle ports: rate x{ratio:.3}, CPU {cpu:.2} %, {kib:.1} KiB a port"
            )?;
        }
        for m in &self.memory {
            let (family, count, table, octets) = (m.family, m.connections, m.table, m.octets);
            writeln!(
                f,
                "memory    hostweave  {octets:.0} octets a connection, {family}, {count} in a table for {table}"
            )?;
        }
        for row in &self.uplink {
            writeln!(f, "{}", crate::uplink::line(row))?;
        }
        self.changes(f)
    }
}

impl Report {
    /// What changes cost, and checks.
    fn changes(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Some(change) = &self.change {
            let (spread, worst) = (Spread::of(&change.ms), change.ms.iter().copied().fold(0.0, f64::max));
            let best = change.ms.iter().copied().fold(f64::INFINITY, f64::min);
            let (ports, count, frames, lost) = (change.ports, change.under_traffic, change.frames, change.lost);
            let (median, cpu) = (spread.median, change.cpu_ms);
            writeln!(
                f,
                "change    hostweave  {ports} ports: median {median:.1} ms, best {best:.1}, worst {worst:.1}, \
                 CPU {cpu:.1}; {count} under traffic: {lost} of {frames} frames lost"
            )?;
        }
        if let Some(change) = &self.service_change {
            let (median, worst) = (Spread::of(&change.ms).median, change.ms.iter().copied().fold(0.0, f64::max));
            let (services, backends, mb, cpu) =
                (change.services, change.backends, change.kib as f64 * 1024.0 / 1e6, change.cpu_ms);
            let (count, frames, lost) = (change.under_traffic, change.frames, change.lost);
            writeln!(
                f,
                "service-change hostweave {services} Services, {backends} backends, {mb:.0} MB: median {median:.1} ms, \
                 worst {worst:.1}, CPU {cpu:.1}; {count} under traffic: {lost} of {frames} frames lost"
            )?;
        }
        if let Some(health) = &self.health {
            let (count, rate) = (health.backends, health.checks_per_s);
            let (share, idle) = (health.cpu_share * 100.0, health.idle_share * 100.0);
            let threads = health.threads.iter().map(|(name, share)| format!("{name} {:.2}", share * 100.0));
            let threads = threads.collect::<Vec<_>>().join(", ");
            writeln!(
                f,
                "health    hostweave  {count} backends every {INTERVAL_S} s, {rate:.0} checks/s: {share:.1} % of a core \
                 ({threads}); {idle:.1} % without"
            )?;
        }
        Ok(())
    }

    /// Rates of the cases of a group by that of its first, of each switch, round by round.
    fn groups(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for group in self.throughput.chunk_by(|a, b| a.group == b.group) {
            let [first, others @ ..] = group else { continue };
            for (other, series) in
                others.iter().flat_map(|other| other.series.iter().map(move |series| (other, series)))
            {
                let partner = first.series.iter().find(|partner| partner.switch == series.switch);
                let Some(spread) = partner.and_then(|partner| ratio(series, partner, |r| r.mpps)) else { continue };
                let (name, median, q1, q3) = (series.switch.name(), spread.median, spread.q1, spread.q3);
                writeln!(f, "{} by {}: {name:10} {median:.2} ({q1:.2}-{q3:.2})", other.case, first.case)?;
            }
        }
        Ok(())
    }

    fn table(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:20} {:10} {:>8} {:>17} {:>8} {:>8} {:>10} {:>7} {:>7} {:>6} {:>16} {:>6}",
            "case",
            "switch",
            "Mpps",
            "IQR",
            "best",
            "Gbit/s",
            "busy cyc/p",
            "backlog",
            "line ns",
            "lost",
            "ours/theirs",
            "rounds"
        )?;
        let limit = self.best_calibration() * CALIBRATION_SLACK;
        for outcome in &self.throughput {
            let ours = outcome.series.iter().find(|s| s.switch == Kind::Hostweave);
            for series in &outcome.series {
                let mpps = series.spread(|r| r.mpps);
                let quiet = series.rounds.iter().filter(|r| r.calibration_ms <= limit).map(|r| r.mpps);
                let best = quiet.fold(0.0, f64::max);
                let cycles: Vec<f64> = series.rounds.iter().filter_map(|r| r.busy_cycles).collect();
                let cycles = if cycles.is_empty() { "-".into() } else { format!("{:.0}", Spread::of(&cycles).median) };
                let ratio = ours
                    .filter(|ours| ours.switch != series.switch)
                    .and_then(|ours| ratio(ours, series, |r| r.mpps))
                    .map_or_else(|| "-".into(), |r| format!("{:.2} ({:.2}-{:.2})", r.median, r.q1, r.q3));
                writeln!(
                    f,
                    "{:20} {:10} {:8.3} {:>17} {:8.3} {:8.1} {:>10} {:7.0} {:7.0} {:>6} {:>16} {:>6}",
                    outcome.case,
                    series.switch.name(),
                    mpps.median,
                    format!("{:.3}-{:.3}", mpps.q1, mpps.q3),
                    best,
                    series.spread(|r| r.gbit).median,
                    cycles,
                    series.spread(|r| r.backlog).median,
                    series.spread(|r| r.line_ns).median,
                    series.rounds.iter().map(|r| r.lost).sum::<u64>(),
                    ratio,
                    format!("{}/{}", series.rounds.len(), series.rounds.len() + series.discarded),
                )?;
            }
            let memcpy = Spread::of(&outcome.memcpy_gbit);
            writeln!(f, "{:20} {:10} {:>44} {:8.1}", outcome.case, "memcpy", "", memcpy.median)?;
        }
        Ok(())
    }
}
