//! What is read from the machine: CPU pinning, CPU time of a thread, memory of a process, the calibration loop.

use std::fs;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// The generator's CPU.
pub const GENERATOR_CPU: usize = 0;

/// The switches' CPU.
pub const SWITCH_CPU: usize = 1;

/// Dependent steps of one calibration: about 15 ms.
const CALIBRATION_STEPS: u64 = 10_000_000;

/// Pins the calling thread.
pub fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("pinning to CPU {cpu}"))
}

/// A fixed piece of work: how long it took tells how busy the neighbours are.
pub fn calibrate() -> Duration {
    let start = Instant::now();
    let mut x = black_box(1u64);
    for _ in 0..CALIBRATION_STEPS {
        // Xorshift: no compiler finds a shorter way to the end.
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
    }
    black_box(x);
    start.elapsed()
}

/// How long a cache line takes from one CPU to the other, ns: the best of many short exchanges.
///
/// On a virtual machine this changes while it runs, by a factor of 2 and more, with the real cores on which the host
/// puts the two virtual ones; small frames follow it. Rounds compare only within one such phase.
pub fn line_transfer_ns() -> f64 {
    const BATCHES: u64 = 40;
    const EXCHANGES: u64 = 200;
    let ball = AtomicU64::new(0);
    let play = |cpu: usize, turn: u64| {
        // Not pinned is not wrong, only less precise.
        let _ = pin(cpu);
        let mut best = f64::INFINITY;
        for batch in 0..BATCHES {
            let start = Instant::now();
            for i in 0..EXCHANGES {
                let mine = 2 * (batch * EXCHANGES + i) + turn;
                while ball.load(Ordering::Acquire) != mine {
                    std::hint::spin_loop();
                }
                ball.store(mine + 1, Ordering::Release);
            }
            best = best.min(start.elapsed().as_nanos() as f64 / (2 * EXCHANGES) as f64);
        }
        best
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| play(SWITCH_CPU, 1));
        let best = play(GENERATOR_CPU, 0);
        // The other player's result says the same.
        let _ = other.join();
        best
    })
}

/// CPU time of every thread of a process: (thread id, name, ns).
pub fn thread_times(pid: u32) -> Vec<(u32, String, u64)> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    tasks
        .flatten()
        .filter_map(|task| {
            let tid = task.file_name().to_str()?.parse().ok()?;
            let schedstat = fs::read_to_string(task.path().join("schedstat")).ok()?;
            let name = fs::read_to_string(task.path().join("comm")).ok()?.trim().to_owned();
            Some((tid, name, schedstat.split(' ').next()?.parse().ok()?))
        })
        .collect()
}

/// CPU time of the calling thread so far, s.
pub fn own_cpu_s() -> Result<f64> {
    let schedstat = fs::read_to_string("/proc/thread-self/schedstat")?;
    let ns: u64 = schedstat.split(' ').next().context("an empty schedstat")?.parse()?;
    Ok(ns as f64 / 1e9)
}

/// The thread that ran most between two readings: its name and how long it ran.
pub fn busiest(before: &[(u32, String, u64)], after: &[(u32, String, u64)]) -> Option<(String, Duration)> {
    let ran = |(tid, name, ns): &(u32, String, u64)| {
        let old = before.iter().find(|(other, ..)| other == tid).map_or(0, |(.., ns)| *ns);
        (name.clone(), Duration::from_nanos(ns.saturating_sub(old)))
    };
    after.iter().map(ran).max_by_key(|(_, time)| *time)
}

/// How long all threads of a name ran between two readings.
pub fn time_of(name: &str, before: &[(u32, String, u64)], after: &[(u32, String, u64)]) -> Duration {
    let total = |times: &[(u32, String, u64)]| {
        times.iter().filter(|(_, other, _)| other == name).map(|(.., ns)| *ns).sum::<u64>()
    };
    Duration::from_nanos(total(after).saturating_sub(total(before)))
}

/// Clock of the first CPU as the kernel states it, Hz.
pub fn cpu_hz() -> f64 {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mhz =
        info.lines().find_map(|line| line.strip_prefix("cpu MHz")?.split_once(": ")?.1.trim().parse::<f64>().ok());
    mhz.unwrap_or(1000.0) * 1e6
}

/// Resident memory of a process in KiB without what it shares: guest memory, rings included, is the guests'.
pub fn private_kib(pid: u32) -> Option<u64> {
    status_kib(pid, "RssAnon:")
}

/// All resident memory of a process in KiB: private, of shared mappings, of files. Huge pages of guests are not in it.
pub fn resident_kib(pid: u32) -> Option<u64> {
    ["RssAnon:", "RssShmem:", "RssFile:"].into_iter().map(|name| status_kib(pid, name)).sum()
}

fn status_kib(pid: u32, name: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Median and the quartiles around it.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Spread {
    /// Median.
    pub median: f64,
    /// First quartile.
    pub q1: f64,
    /// Third quartile.
    pub q3: f64,
}

impl Spread {
    /// Of a list; all zero when it is empty.
    pub fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let place = share * sorted.len().saturating_sub(1) as f64;
            let (low, high) = (place.floor() as usize, place.ceil() as usize);
            let (Some(&a), Some(&b)) = (sorted.get(low), sorted.get(high)) else { return 0.0 };
            a + (b - a) * (place - place.floor())
        };
        Self { median: at(0.5), q1: at(0.25), q3: at(0.75) }
    }
}
