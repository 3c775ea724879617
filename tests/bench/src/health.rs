//! What health checks of many backends cost: processor time of the whole daemon, from the task that asks to the ring of the guest and back.
//!
//! One guest stands for all backends, one L4 port each, and answers each SYN; the check resets it. Its own time does not count.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hostweave_guest::frames::{Body, Frame, L4, Path, Segment};
use hostweave_guest::{Guest, VnetHeader};

use crate::cases::{Case, Options};
use crate::config;
use crate::firewall::Control;
use crate::flows::Flows;
use crate::generator::{SIDES, Traffic};
use crate::measure;
use crate::switches::{Kind, Switch};

/// Services, each of which asks [`PER_SERVICE`] backends.
const SERVICES: u16 = 100;

/// Backends of a Service: L4 ports of the guest.
const PER_SERVICE: u16 = 100;

/// Seconds between two checks of a backend.
pub const INTERVAL_S: u64 = 5;

/// How long the first checks may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long is measured: whole intervals.
const MEASURED: Duration = Duration::from_secs(4 * INTERVAL_S);

/// Processor time of health checks.
#[derive(Debug, serde::Serialize)]
pub struct HealthCost {
    /// Backends that were checked.
    pub backends: u32,
    /// Checks a second, as the guest counted SYNs.
    pub checks_per_s: f64,
    /// Share of a core that each kind of thread took.
    pub threads: Vec<(String, f64)>,
    /// Share of a core of the whole daemon.
    pub cpu_share: f64,
    /// The same before there were checks.
    pub idle_share: f64,
}

/// Checks 10,000 backends every 5 s by TCP, all of which are well.
pub fn health(options: &Options<'_>) -> Result<HealthCost> {
    let case = Case::policy("health", Traffic::Udp4, Flows::Cycle(1));
    let mut switch = Switch::start(Kind::Hostweave, case.needs(), options.binary)?;
    let guest = Guest::builder().socket(switch.socket(1).0).mac(SIDES[1].mac).ring_size(1024);
    let guest = guest.timeout(Duration::from_secs(20)).connect().context("the guest")?;
    let (stop, asked) = (AtomicBool::new(false), Asked::default());
    std::thread::scope(|scope| {
        let answering = scope.spawn(|| answer(guest, &stop, &asked));
        let result = measured(&mut switch, &asked);
        stop.store(true, Ordering::Relaxed);
        answering.join().map_err(|_| anyhow::anyhow!("the guest's thread panicked"))??;
        result
    })
}

/// What the guest saw of checks.
#[derive(Default)]
struct Asked {
    /// SYNs.
    begun: AtomicU64,
    /// Resets: its SYN-ACK was taken.
    settled: AtomicU64,
}

impl Asked {
    fn counts(&self) -> (u64, u64) {
        (self.begun.load(Ordering::Relaxed), self.settled.load(Ordering::Relaxed))
    }
}

fn measured(switch: &mut Switch, asked: &Asked) -> Result<HealthCost> {
    let backends = u32::from(SERVICES) * u32::from(PER_SERVICE);
    let mut control = Control::connect(switch)?;
    std::thread::sleep(Duration::from_secs(1));
    let idle = shares(switch, Duration::from_secs(5));
    let objects: String = (0..SERVICES).map(|i| config::checked(i, PER_SERVICE, INTERVAL_S)).collect();
    control.apply(&objects)?;
    let started = Instant::now();
    while asked.counts().0 < 2 * u64::from(backends) {
        switch.check_alive()?;
        ensure!(started.elapsed() < PATIENCE, "{} checks in {PATIENCE:?}", asked.counts().0);
        std::thread::sleep(Duration::from_millis(100));
    }
    let (before, start) = (asked.counts(), Instant::now());
    let threads = shares(switch, MEASURED);
    let after = asked.counts();
    let (checks, settled) = (after.0 - before.0, after.1 - before.1);
    ensure!(settled * 100 >= checks * 99, "{settled} of {checks} checks were settled");
    let checks_per_s = checks as f64 / start.elapsed().as_secs_f64();
    let wanted = f64::from(backends) / INTERVAL_S as f64;
    ensure!((0.8..1.2).contains(&(checks_per_s / wanted)), "{checks_per_s:.0} checks/s, not {wanted:.0}");
    let sum = |list: &[(String, f64)]| list.iter().map(|(_, share)| share).sum();
    Ok(HealthCost { backends, checks_per_s, cpu_share: sum(&threads), threads, idle_share: sum(&idle) })
}

/// Share of a core of each kind of thread over a while.
fn shares(switch: &Switch, time: Duration) -> Vec<(String, f64)> {
    let (before, start) = (measure::thread_times(switch.pid()), Instant::now());
    std::thread::sleep(time);
    let (after, took) = (measure::thread_times(switch.pid()), start.elapsed().as_secs_f64());
    let mut names: Vec<_> = after.iter().map(|(_, name, _)| name.clone()).collect();
    names.sort();
    names.dedup();
    let share = |name: &String| measure::time_of(name, &before, &after).as_secs_f64() / took;
    names.into_iter().map(|name| (name.clone(), share(&name))).filter(|(_, share)| *share > 0.0).collect()
}

/// Answers each SYN until told to stop, and counts.
fn answer(mut guest: Guest, stop: &AtomicBool, asked: &Asked) -> Result<()> {
    const SYN: u8 = 2;
    const RST: u8 = 4;
    const ACK: u8 = 16;
    let mut frame = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        guest.nic().wait(Duration::from_millis(100))?;
        while let Some((_, header)) = guest.nic().recv_frame(&mut frame)? {
            let Ok(Frame { src_mac, body: Body::Ip { src, dst, l4: L4::Tcp { segment, .. }, .. }, .. }) =
                Frame::parse(&header, &frame)
            else {
                continue;
            };
            if segment.flags == SYN {
                asked.begun.fetch_add(1, Ordering::Relaxed);
                let (src_port, dst_port, ack) = (segment.dst_port, segment.src_port, segment.seq.wrapping_add(1));
                let answer = Segment { src_port, dst_port, seq: 1, ack, flags: SYN | ACK, window: u16::MAX };
                let octets = Path::new(SIDES[1].mac, src_mac, dst, src).tcp(&answer, &[]);
                guest.nic().push_frame(0, &VnetHeader::default(), &octets)?;
            } else if segment.flags & RST != 0 {
                asked.settled.fetch_add(1, Ordering::Relaxed);
            }
        }
        guest.nic().flush(0)?;
        guest.nic().refill(0)?;
    }
    Ok(())
}
