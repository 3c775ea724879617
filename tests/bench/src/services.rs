//! What many Services cost besides time per packet: how long a change of one backend takes, and memory.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::cases::{Case, Options, WARM_UP, attach};
use crate::config;
use crate::crossing::Way;
use crate::firewall::{CONTROL_THREADS, Control};
use crate::flows::Flows;
use crate::generator::Traffic;
use crate::measure;
use crate::switches::{Kind, Switch};

/// Services beside the one under test.
pub const SERVICES: usize = 10_000;

/// Backends of each, in an EndpointSlice.
pub const BACKENDS: usize = 10;

/// Services in one request: what a request may hold is bounded.
const PER_REQUEST: usize = 5_000;

/// Changes that are timed, without traffic.
const CHANGES: usize = 20;

/// Changes under traffic.
const CHANGES_UNDER_TRAFFIC: usize = 100;

/// What a change of one backend takes.
#[derive(Debug, serde::Serialize)]
pub struct ServiceChange {
    /// Services loaded.
    pub services: usize,
    /// Backends of all of them.
    pub backends: usize,
    /// KiB of resident memory that they added to the daemon: objects, tables, and what the allocator kept of reading them.
    pub kib: u64,
    /// From the request on the control socket to its answer, ms: read, checked, stored, worked out, published.
    pub ms: Vec<f64>,
    /// CPU time of the daemon's control threads for each, ms: does not depend on the neighbours.
    pub cpu_ms: f64,
    /// Changes while two ports exchanged frames through another Service.
    pub under_traffic: usize,
    /// Frames that arrived meanwhile.
    pub frames: u64,
    /// Frames that did not.
    pub lost: u64,
}

/// Loads Services over the control socket, then changes one backend of one of them again and again: at rest for the time it takes, and
/// while frames pass through another Service.
pub fn change(options: &Options<'_>) -> Result<ServiceChange> {
    let way = Way::Service { range: false };
    let case = Case { way, ..Case::policy("service-change", Traffic::Udp4, Flows::Cycle(1000)) };
    let mut switch = Switch::start(Kind::Hostweave, case.needs(), options.binary)?;
    let mut generator = attach(&mut switch, &case, options)?;
    generator.run(WARM_UP)?;
    let resident = |switch: &Switch| measure::resident_kib(switch.pid()).context("resident memory");
    let before = resident(&switch)?;
    let mut control = Control::connect(&switch)?;
    for first in (0..SERVICES).step_by(PER_REQUEST) {
        let services = first..SERVICES.min(first + PER_REQUEST);
        let text: String = services.map(|i| config::service(i) + &config::backends(i, BACKENDS, 0)).collect();
        control.apply(&text)?;
    }
    let kib = resident(&switch)?.saturating_sub(before);
    let mut ms = Vec::new();
    let times = measure::thread_times(switch.pid());
    for i in 0..CHANGES {
        // Each time another Service: its first backend gives way to another one.
        let text = config::backends(i * 479 % SERVICES, BACKENDS, 1);
        let start = Instant::now();
        control.apply(&text)?;
        ms.push(start.elapsed().as_secs_f64() * 1e3);
        eprintln!("  service-change {i}: {:.2} ms", ms[i]);
    }
    let spent = measure::time_of(CONTROL_THREADS, &times, &measure::thread_times(switch.pid()));
    let done = AtomicBool::new(false);
    let (mut frames, mut lost) = (0, 0);
    std::thread::scope(|scope| {
        let changes = scope.spawn(|| {
            let mut change = |i: usize| control.apply(&config::backends(i * 31 % SERVICES, BACKENDS, 1 + i % 9));
            let result = (0..CHANGES_UNDER_TRAFFIC).try_for_each(&mut change);
            done.store(true, Ordering::Relaxed);
            result
        });
        while !done.load(Ordering::Relaxed) {
            let sample = generator.run(WARM_UP)?;
            frames += sample.frames;
            lost += sample.lost;
        }
        changes.join().map_err(|_| anyhow::anyhow!("the thread that changes backends panicked"))?
    })?;
    switch.check_alive()?;
    if lost > 0 {
        eprintln!("  service-change: {lost} frames lost: {}", switch.drops()?.join(", "));
    }
    Ok(ServiceChange {
        services: SERVICES,
        backends: SERVICES * BACKENDS,
        kib,
        ms,
        cpu_ms: spent.as_secs_f64() * 1e3 / CHANGES as f64,
        under_traffic: CHANGES_UNDER_TRAFFIC,
        frames,
        lost,
    })
}
