//! What is measured: one function a kind of case.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hostweave_guest::frames::{self, Body, Frame};
use hostweave_guest::frontend::Endpoint;
use hostweave_guest::{Mode, Nic, NicConfig, VnetHeader, features};

use crate::crossing::Way;
use crate::driver::Port;
use crate::flows::Flows;
use crate::generator::{Generator, SIDES, Traffic};
use crate::measure::{self, Spread};
use crate::switches::{Kind, Needs, Switch};

/// Payload octets of a segment in GSO frames.
const GSO_SIZE: u16 = 1448;

/// Octets of a GSO frame: 45 segments' payload and the headers.
const GSO_FRAME_BYTES: usize = 54 + 45 * GSO_SIZE as usize;

/// Traffic before a measurement, so that caches and branch predictors know it.
pub const WARM_UP: Duration = Duration::from_millis(200);

/// A throughput case.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// As on the command line.
    pub name: &'static str,
    /// What is sent.
    pub traffic: Traffic,
    /// Octets of a frame.
    pub frame_bytes: usize,
    /// Which flows.
    pub flows: Flows,
    /// Whether the ports are isolated by policies, and connections are followed.
    pub policy: bool,
    /// What the switch does to their addresses.
    pub way: Way,
    /// Cases with the same word are measured side by side, and all are told by the first.
    pub group: &'static str,
}

impl Case {
    const fn plain(name: &'static str, traffic: Traffic, frame_bytes: usize) -> Self {
        Self { name, traffic, frame_bytes, flows: Flows::Cycle(64), policy: false, way: Way::Stay, group: name }
    }

    /// Frames of 64 octets between ports that policies isolate but for them.
    pub const fn policy(name: &'static str, traffic: Traffic, flows: Flows) -> Self {
        Self { name, traffic, frame_bytes: 64, flows, policy: true, way: Way::Stay, group: name }
    }

    /// The same, translated on the way.
    const fn crossing(name: &'static str, traffic: Traffic, flows: Flows, way: Way) -> Self {
        Self { way, ..Self::policy(name, traffic, flows) }
    }

    /// Beside others.
    const fn within(self, group: &'static str) -> Self {
        Self { group, ..self }
    }
}

/// The throughput cases.
pub const CASES: &[Case] = &[
    Case::plain("udp64", Traffic::Udp4, 64),
    Case::plain("udp64-v6", Traffic::Udp6, 64),
    Case::plain("udp1500", Traffic::Udp4, 1500),
    Case::plain("frame32k", Traffic::Udp4, 32 << 10),
    Case::plain("gso64k", Traffic::Gso4 { gso_size: GSO_SIZE }, GSO_FRAME_BYTES),
    Case::policy("policy64", Traffic::Udp4, Flows::Cycle(1000)).within("crossing"),
    Case::crossing("nat64", Traffic::Udp4, Flows::Cycle(1000), Way::Nat).within("crossing"),
    Case::crossing("attach64", Traffic::Udp4, Flows::Cycle(1000), Way::Attached).within("crossing"),
    Case::crossing("service64", Traffic::Udp4, Flows::Cycle(1000), SERVICE).within("crossing"),
    Case::policy("policy64-v6", Traffic::Udp6, Flows::Cycle(1000)).within("crossing-v6"),
    Case::crossing("nat64-v6", Traffic::Udp6, Flows::Cycle(1000), Way::Nat).within("crossing-v6"),
    Case::crossing("attach64-v6", Traffic::Udp6, Flows::Cycle(1000), Way::Attached).within("crossing-v6"),
    Case::crossing("service64-v6", Traffic::Udp6, Flows::Cycle(1000), SERVICE).within("crossing-v6"),
    Case::policy("policy64-1", Traffic::Udp4, Flows::Cycle(1)).within("flows"),
    Case::policy("policy64-1m", Traffic::Udp4, Flows::Cycle(1_000_000)).within("flows"),
    Case::crossing("nat64-1m", Traffic::Udp4, Flows::Cycle(1_000_000), Way::Nat),
    Case::policy("connect64", Traffic::Udp4, Flows::New),
    Case::policy("connect64-v6", Traffic::Udp6, Flows::New),
    Case::crossing("nat-connect64", Traffic::Udp4, Flows::New, Way::Nat),
    Case::crossing("nat-connect64-v6", Traffic::Udp6, Flows::New, Way::Nat),
    Case::crossing("service-connect64", Traffic::Udp4, Flows::New, SERVICE_RANGE),
    Case::crossing("service-connect64-v6", Traffic::Udp6, Flows::New, SERVICE_RANGE),
];

/// A Service of one L4 port.
const SERVICE: Way = Way::Service { range: false };

/// A Service of as many as there are, where new flows need them.
const SERVICE_RANGE: Way = Way::Service { range: true };

/// The cases of a group that are measured, each with the switches that it is measured with. What all are told by is there also where
/// nobody asked for it, with hostweave alone.
pub fn chosen<'a>(
    group: &'a [Case],
    switches: &'a [Kind],
    is_wanted: impl Fn(&str) -> bool,
) -> Vec<(&'a Case, &'a [Kind])> {
    let mut list: Vec<_> = group.iter().filter(|case| is_wanted(case.name)).map(|case| (case, switches)).collect();
    if let (Some(first), false) = (group.first(), list.is_empty())
        && !is_wanted(first.name)
        && switches.contains(&Kind::Hostweave)
    {
        list.insert(0, (first, &[Kind::Hostweave]));
    }
    list
}

/// Connections for which there is room by itself.
const FLOWS_BY_DEFAULT: u32 = 10_000;

impl Case {
    /// What it needs of a switch.
    pub fn needs(&self) -> Needs {
        Needs {
            frame_bytes: self.frame_bytes,
            gso: matches!(self.traffic, Traffic::Gso4 { .. }),
            ports: 2,
            policy: self.policy,
            way: self.way,
            new_connections: self.flows == Flows::New,
            table: (self.flows.to_open() > FLOWS_BY_DEFAULT).then_some(self.flows.to_open() / 8 * 13),
            callgrind: false,
        }
    }
}

/// One switch in one round.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Round {
    /// Which round: the same number for all switches that were measured side by side.
    pub number: usize,
    /// Millions of frames a second that arrived.
    pub mpps: f64,
    /// Gbit/s of frames that arrived.
    pub gbit: f64,
    /// Frames lost.
    pub lost: u64,
    /// Frames that waited for the switch on average: near 768 the switch was the limit, near 0 the generator.
    pub backlog: f64,
    /// CPU time of the switch's busiest thread by wall time.
    pub cpu_share: f64,
    /// Busy cycles per packet by the switch's own account, if it keeps one.
    pub busy_cycles: Option<f64>,
    /// The calibration loop before this measurement, ms.
    pub calibration_ms: f64,
    /// A cache line's way from CPU to CPU before this measurement, ns.
    pub line_ns: f64,
}

/// One switch in all rounds of a case.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Series {
    /// The switch.
    pub switch: Kind,
    /// The rounds in which its CPU share was high enough.
    pub rounds: Vec<Round>,
    /// Rounds thrown away.
    pub discarded: usize,
}

impl Series {
    /// Median and quartiles of something.
    pub fn spread(&self, of: impl Fn(&Round) -> f64) -> Spread {
        Spread::of(&self.rounds.iter().map(of).collect::<Vec<_>>())
    }
}

/// A case with all its series.
#[derive(Debug, serde::Serialize)]
pub struct Outcome {
    /// The case.
    pub case: &'static str,
    /// Octets of a frame.
    pub frame_bytes: usize,
    /// Word of the cases that were measured side by side.
    pub group: &'static str,
    /// One for each switch.
    pub series: Vec<Series>,
    /// Gbit/s of one thread's `memcpy` over the same buffers, with the other CPU busy, in each round.
    pub memcpy_gbit: Vec<f64>,
}

/// Options of all cases.
#[derive(Clone, Debug)]
pub struct Options<'a> {
    /// Paired rounds.
    pub rounds: usize,
    /// Length of one measurement.
    pub time: Duration,
    /// The hostweave binary.
    pub binary: &'a Path,
    /// Switches to measure.
    pub switches: &'a [Kind],
    /// Whether to use huge pages.
    pub huge: bool,
    /// Whether the guests merge receive buffers.
    pub mergeable: bool,
    /// Share of its CPU that a switch must have had.
    pub cpu_share_min: f64,
}

/// Features that the generator's cards accept: what Linux does, but polled.
fn wish(options: &Options<'_>, gso: bool) -> u64 {
    let mut wish = features::VERSION_1 | features::INDIRECT_DESC | features::CSUM | features::GUEST_CSUM;
    if options.mergeable {
        wish |= features::MRG_RXBUF;
    }
    if gso { wish | features::ALL_GSO } else { wish }
}

/// Connects both sides of a generator to a switch, and opens the flows through it.
pub fn attach(switch: &mut Switch, case: &Case, options: &Options<'_>) -> Result<Generator> {
    let needs = case.needs();
    let mut ports = Vec::new();
    let endpoints: Vec<_> =
        (0..2).map(|i| Endpoint::new(&switch.socket(i).0, switch.socket(i).1)).collect::<Result<_, _>>()?;
    for (i, endpoint) in endpoints.into_iter().enumerate() {
        let mut config = NicConfig::new(switch.socket(i).0);
        config.features = wish(options, needs.gso);
        config.mtu = needs.mtu();
        config.timeout = Duration::from_secs(20);
        Port::config(&mut config, case.frame_bytes, options.huge);
        let nic = Nic::connect_on(config, endpoint).with_context(|| format!("port {i} of {}", switch.kind.name()));
        if nic.is_err() {
            switch.check_alive()?;
        }
        ports.push(Port::new(nic?)?);
    }
    let (Some(b), Some(mut a)) = (ports.pop(), ports.pop()) else { anyhow::bail!("no ports") };
    let routers = match switch.kind {
        Kind::Hostweave => [ask_router(&mut a)?; 2],
        _ => [SIDES[1].mac, SIDES[0].mac],
    };
    Generator::new(a, b, (case.traffic, case.flows, case.way), case.frame_bytes, routers).with_context(|| {
        let drops = if switch.kind == Kind::Hostweave { switch.drops().unwrap_or_default() } else { Vec::new() };
        format!("flows of {} through {} {}", case.name, switch.kind.name(), drops.join(", "))
    })
}

/// Asks for the gateway by ARP, as a guest does.
pub fn ask_router(port: &mut Port) -> Result<frames::Mac> {
    let gateway = std::net::Ipv4Addr::new(10, 64, 0, 1);
    let request = frames::arp_request(SIDES[0].mac, SIDES[0].v4, gateway);
    let mut router = None;
    let start = Instant::now();
    while router.is_none() {
        ensure!(start.elapsed() < Duration::from_secs(10), "no ARP answer from {gateway}");
        port.reclaim()?;
        port.prepare(port.next_slot(), &VnetHeader::default().to_bytes(), &request);
        port.send(1)?;
        let asked = Instant::now();
        while router.is_none() && asked.elapsed() < Duration::from_millis(100) {
            port.receive::<54>(64, |octets, _| {
                let frame = Frame::parse(&VnetHeader::default(), &octets[12..]);
                if let Ok(Frame { body: Body::Arp { operation: 2, sender, .. }, .. }) = frame {
                    router = (sender.1 == gateway).then_some(sender.0);
                }
                Ok(())
            })?;
        }
    }
    router.context("no router")
}

/// Runs throughput cases side by side: all switches of all of them up at once, one after the other in every round.
pub fn throughput(cases: &[(&Case, &[Kind])], options: &Options<'_>) -> Result<Vec<Outcome>> {
    let mut rigs = Vec::new();
    for (case, switches) in cases {
        for &kind in switches.iter().filter(|kind| kind.can(case.needs())) {
            let mut switch = Switch::start_for(kind, case, options)?;
            let generator = attach(&mut switch, case, options)?;
            switch.pause()?;
            rigs.push((*case, switch, generator, Series { switch: kind, rounds: Vec::new(), discarded: 0 }));
        }
    }
    let mut memcpy_gbit = Vec::new();
    for round in 0..options.rounds {
        for (case, switch, generator, series) in &mut rigs {
            let result =
                measure_one(round, switch, generator, options).with_context(|| switch.kind.name().to_owned())?;
            eprintln!(
                "  {} round {}: {:9} {:7.3} Mpps {:6.1} Gbit/s, lost {}, backlog {:.0}, CPU {:.2}, calibration {:.2} ms, line {:.0} ns",
                case.name,
                round + 1,
                switch.kind.name(),
                result.mpps,
                result.gbit,
                result.lost,
                result.backlog,
                result.cpu_share,
                result.calibration_ms,
                result.line_ns,
            );
            if result.cpu_share >= options.cpu_share_min { series.rounds.push(result) } else { series.discarded += 1 }
        }
        if let Some((_, _, generator, _)) = rigs.first() {
            memcpy_gbit.push(memcpy_with_busy_sibling(generator, options.time / 4));
        }
    }
    let mut outcomes: Vec<Outcome> = cases
        .iter()
        .map(|(case, _)| {
            let memcpy_gbit = memcpy_gbit.clone();
            Outcome {
                case: case.name,
                frame_bytes: case.frame_bytes,
                group: case.group,
                series: Vec::new(),
                memcpy_gbit,
            }
        })
        .collect();
    for (case, .., series) in rigs {
        outcomes
            .iter_mut()
            .filter(|outcome| outcome.case == case.name)
            .for_each(|outcome| outcome.series.extend([series.clone()]));
    }
    Ok(outcomes)
}

/// One switch, one round.
pub fn measure_one(
    number: usize,
    switch: &mut Switch,
    generator: &mut Generator,
    options: &Options<'_>,
) -> Result<Round> {
    let calibration_ms = measure::calibrate().as_secs_f64() * 1e3;
    let line_ns = measure::line_transfer_ns();
    switch.resume()?;
    switch.forget_connections()?;
    // Long enough to meet each of many flows, and more than once.
    let warm_up = generator.run(WARM_UP * (1 + generator.flows().to_open() / 200_000))?;
    switch.clear_cycles()?;
    let before = measure::thread_times(switch.pid());
    let sample = generator.run(options.time)?;
    let after = measure::thread_times(switch.pid());
    let busy_cycles = switch.busy_cycles()?;
    switch.check_alive()?;
    switch.check_connections(warm_up.frames + sample.frames)?;
    if sample.lost > 0 && switch.kind == Kind::Hostweave {
        eprintln!("  lost {}; dropped since the start: {}", sample.lost, switch.drops()?.join(", "));
    }
    switch.pause()?;
    let seconds = sample.elapsed.as_secs_f64();
    let cpu = measure::busiest(&before, &after).map_or(Duration::ZERO, |(_, time)| time);
    Ok(Round {
        number,
        mpps: sample.frames as f64 / seconds / 1e6,
        gbit: sample.frames as f64 * generator.frame_bytes as f64 * 8.0 / seconds / 1e9,
        lost: sample.lost,
        backlog: sample.backlog(),
        cpu_share: cpu.as_secs_f64() / seconds,
        busy_cycles,
        calibration_ms,
        line_ns,
    })
}

/// `memcpy` on the switch's CPU while the generator's CPU is as busy as it is during a measurement.
fn memcpy_with_busy_sibling(generator: &Generator, time: Duration) -> f64 {
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Not pinned is not wrong, only less precise.
            let _ = measure::pin(measure::GENERATOR_CPU);
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                std::hint::black_box(0);
            }
        });
        let copy = scope.spawn(|| {
            let _ = measure::pin(measure::SWITCH_CPU);
            generator.memcpy(time)
        });
        let gbit = copy.join().unwrap_or(0.0);
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        gbit
    })
}

impl Switch {
    /// Starts one for a case.
    pub fn start_for(kind: Kind, case: &Case, options: &Options<'_>) -> Result<Self> {
        Self::start(kind, case.needs(), options.binary)
    }
}

/// Latency of single frames, and of the first frame after a rest.
#[derive(Debug, serde::Serialize)]
pub struct Latency {
    /// The switch.
    pub switch: Kind,
    /// Median, ns.
    pub p50_ns: u64,
    /// 99 %, ns.
    pub p99_ns: u64,
    /// 99.9 %, ns.
    pub p999_ns: u64,
    /// Median of a frame after 20 ms of silence, ns.
    pub from_idle_p50_ns: u64,
}

/// One way through the switch, frame by frame.
pub fn latency(options: &Options<'_>) -> Result<Vec<Latency>> {
    let mut list = Vec::new();
    for &kind in options.switches {
        let mut switch = Switch::start_for(kind, &CASES[0], options)?;
        let mut generator = attach(&mut switch, &CASES[0], options)?;
        generator.run(WARM_UP)?;
        let mut all = generator.latencies(100_000)?;
        let mut idle = Vec::new();
        for _ in 0..50 {
            std::thread::sleep(Duration::from_millis(20));
            idle.extend(generator.latencies(1)?);
        }
        let (mut all, mut idle) = (std::mem::take(&mut all), idle);
        all.sort_unstable();
        idle.sort_unstable();
        let at = |share: f64| all[((all.len() - 1) as f64 * share) as usize];
        list.push(Latency {
            switch: kind,
            p50_ns: at(0.5),
            p99_ns: at(0.99),
            p999_ns: at(0.999),
            from_idle_p50_ns: idle[idle.len() / 2],
        });
    }
    Ok(list)
}

/// Start of the process to the first frame forwarded.
#[derive(Debug, serde::Serialize)]
pub struct Start {
    /// The switch.
    pub switch: Kind,
    /// Each start, ms.
    pub ms: Vec<f64>,
}

/// Starts each switch again and again.
pub fn start(options: &Options<'_>) -> Result<Vec<Start>> {
    // Nothing is opened before: the first frame is what is waited for.
    let case = Case { flows: Flows::Cycle(0), ..CASES[0] };
    let mut list: Vec<_> = options.switches.iter().map(|&switch| Start { switch, ms: Vec::new() }).collect();
    for _ in 0..options.rounds {
        for entry in &mut list {
            let mut switch = Switch::start_for(entry.switch, &case, options)?;
            let mut generator = attach(&mut switch, &case, options)?;
            let attached = Instant::now();
            let mut last = None::<Instant>;
            while !generator.arrived()? {
                ensure!(attached.elapsed() < Duration::from_secs(10), "{} forwards nothing", switch.kind.name());
                if last.is_none_or(|t| t.elapsed() > Duration::from_millis(1)) {
                    generator.a.reclaim()?;
                    generator.post_one()?;
                    last = Some(Instant::now());
                }
            }
            entry.ms.push(switch.started.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok(list)
}

/// What a thousand idle ports cost.
#[derive(Debug, serde::Serialize)]
pub struct Idle {
    /// The switch.
    pub switch: Kind,
    /// Idle ports attached.
    pub ports: usize,
    /// Mpps of two busy ports alone, each round.
    pub alone_mpps: Vec<f64>,
    /// Mpps of two busy ports among the idle ones, each round.
    pub among_mpps: Vec<f64>,
    /// Share of one CPU that the whole process takes when nobody sends.
    pub idle_cpu_share: f64,
    /// Growth of resident private memory for each idle port, KiB: the rings themselves are the guest's.
    pub kib_per_port: f64,
}

/// Two busy ports alone and among `ports` idle ones, in pairs; only for switches that can have so many.
pub fn idle(options: &Options<'_>, kind: Kind, ports: usize) -> Result<Idle> {
    let case = &CASES[0];
    let mut alone = Switch::start_for(kind, case, options)?;
    let mut alone_generator = attach(&mut alone, case, options)?;
    alone_generator.run(WARM_UP)?;
    let kib_alone = measure::private_kib(alone.pid()).unwrap_or(0);
    alone.pause()?;
    let mut among = Switch::start(kind, Needs { ports: ports + 2, ..case.needs() }, options.binary)?;
    let mut among_generator = attach(&mut among, case, options)?;
    let mut cards = Vec::new();
    for i in 0..ports {
        let (socket, mode) = among.socket(i + 2);
        ensure!(mode == Mode::Client, "{} connects by itself", kind.name());
        let mut config = NicConfig::new(socket);
        config.ring_size = 64;
        cards.push(Nic::connect(config).with_context(|| format!("idle port {i}"))?);
    }
    among_generator.run(WARM_UP)?;
    let kib_among = measure::private_kib(among.pid()).unwrap_or(0);
    let idle_cpu_share = idle_cpu(&among);
    among.pause()?;
    let (mut alone_mpps, mut among_mpps) = (Vec::new(), Vec::new());
    for round in 0..options.rounds {
        alone_mpps.push(measure_one(round, &mut alone, &mut alone_generator, options)?.mpps);
        among_mpps.push(measure_one(round, &mut among, &mut among_generator, options)?.mpps);
    }
    let kib_per_port = (kib_among as f64 - kib_alone as f64) / ports as f64;
    Ok(Idle { switch: kind, ports, alone_mpps, among_mpps, idle_cpu_share, kib_per_port })
}

/// CPU share of all threads together over a while in which nobody sends.
fn idle_cpu(switch: &Switch) -> f64 {
    std::thread::sleep(Duration::from_millis(500));
    let total = || measure::thread_times(switch.pid()).iter().map(|(.., ns)| *ns).sum::<u64>();
    let (before, start) = (total(), Instant::now());
    std::thread::sleep(Duration::from_secs(3));
    Duration::from_nanos(total() - before).as_secs_f64() / start.elapsed().as_secs_f64()
}

/// Instructions of a switch per packet.
#[derive(Debug, serde::Serialize)]
pub struct Instructions {
    /// The case.
    pub case: &'static str,
    /// The switch.
    pub switch: Kind,
    /// Instructions of the whole process by frames that arrived, with the switch as the bottleneck.
    pub per_packet: f64,
}

/// Whether the instructions of a case are counted: not where the kernel is asked for an uplink, which valgrind knows too little of
/// (`tests/bench/instructions` counts what crosses).
pub fn counted(case: &Case) -> bool {
    case.frame_bytes <= 1500 && case.flows.to_open() <= 1000 && !case.way.leaves()
}

/// Runs a case under callgrind, where the switch is so slow that it never polls in vain.
/// Only for hostweave: DPDK programs do not get through callgrind.
pub fn instructions(case: &Case, options: &Options<'_>) -> Result<Instructions> {
    let kind = Kind::Hostweave;
    let mut switch = Switch::start(kind, Needs { callgrind: true, ..case.needs() }, options.binary)?;
    let mut generator = attach(&mut switch, case, options)?;
    generator.run(Duration::from_secs(1))?;
    switch.count_instructions()?;
    let sample = generator.run(Duration::from_secs(4))?;
    let count = switch.instructions()?;
    switch.check_alive()?;
    ensure!(sample.frames > 1000, "only {} frames under callgrind", sample.frames);
    Ok(Instructions { case: case.name, switch: kind, per_packet: count as f64 / sample.frames as f64 })
}
