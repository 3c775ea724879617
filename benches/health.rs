//! What 10,000 backends that are checked every 5 s cost: processor time of the whole packet path, from the task that asks to the ring of
//! the guest and back, per kind of thread. The guest's own thread, which answers each SYN, does not count.
//!
//! `cargo bench --bench health`. One guest stands for all backends, one L4 port each.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hostweave::fabric::Fabric;
use hostweave::fabric::spec::{BackendSpec, Desired, FabricConfig, HealthCheck, HealthSpec, PortSpec, SocketMode};
use hostweave::services::health::{Health, Target};
use hostweave_guest::frames::{Body, Frame, L4, Path, Segment};
use hostweave_guest::{Guest, VnetHeader};
use hostweave_switch::MacAddr;
use hostweave_switch::tables::Network;

type Failure = Box<dyn std::error::Error>;

const BACKENDS: u16 = 10_000;
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 10);
const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 10]);
/// How long is measured, in whole intervals.
const MEASURED: Duration = Duration::from_secs(20);
const GUEST: &str = "guest";

fn network() -> Result<Network, Failure> {
    Ok(Network {
        v4: Some(("10.64.0.0/16".parse()?, Ipv4Addr::new(10, 64, 0, 1))),
        learning: true,
        ..Network::bare("default", 4096)
    })
}

fn port(folder: &std::path::Path) -> PortSpec {
    PortSpec {
        uid: uuid::Uuid::new_v4(),
        mac: MAC,
        v4: vec![ADDRESS],
        backend: BackendSpec::VhostUser {
            mode: SocketMode::Listen,
            socket: folder.join("web.sock"),
            incoming_socket: None,
            queues: 1,
            group: None,
            allowed_uids: Vec::new(),
        },
        ..PortSpec::bare("default", "web")
    }
}

/// Answers each SYN until told to stop. Counts them, and the resets that follow.
fn answer(mut guest: Guest, stop: &AtomicBool, counts: &[AtomicU64; 2]) -> Result<(), Failure> {
    let mut frame = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        guest.nic().wait(Duration::from_millis(100))?;
        while let Some((_, header)) = guest.nic().recv_frame(&mut frame)? {
            let Ok(Frame { src_mac, body: Body::Ip { src, dst, l4: L4::Tcp { segment, .. }, .. }, .. }) =
                Frame::parse(&header, &frame)
            else {
                continue;
            };
            counts[usize::from(segment.flags & 4 != 0)].fetch_add(1, Ordering::Relaxed);
            if segment.flags == 2 {
                let answer = Segment {
                    src_port: segment.dst_port,
                    dst_port: segment.src_port,
                    seq: 1,
                    ack: segment.seq.wrapping_add(1),
                    flags: 0x12,
                    window: 65_535,
                };
                let octets = Path::new(MAC.0, src_mac, dst, src).tcp(&answer, &[]);
                guest.nic().push_frame(0, &VnetHeader::default(), &octets)?;
            }
        }
        guest.nic().flush(0)?;
        guest.nic().refill(0)?;
    }
    Ok(())
}

/// Nanoseconds of processor time, by name of the thread.
fn processor() -> Result<BTreeMap<String, u64>, Failure> {
    let mut used = BTreeMap::new();
    for task in std::fs::read_dir("/proc/self/task")? {
        let task = task?.path();
        let name = std::fs::read_to_string(task.join("comm"))?.trim().to_owned();
        let time = std::fs::read_to_string(task.join("schedstat"))?;
        *used.entry(name).or_default() += time.split_whitespace().next().unwrap_or("0").parse::<u64>()?;
    }
    Ok(used)
}

fn main() -> Result<(), Failure> {
    let folder = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let _inside = runtime.enter();
    let (fabric, _events) = Fabric::start(FabricConfig {
        workers: vec![None],
        runtime_dir: folder.path().to_owned(),
        helper: "/proc/self/exe".into(),
        connections_max: 262_144,
    })?;
    fabric.apply(&Desired {
        networks: vec![network()?],
        ports: vec![port(folder.path())].into(),
        ..Desired::default()
    })?;
    let guest = Guest::builder().socket(folder.path().join("web.sock")).mac(MAC.0);
    let guest = guest.ring_size(1024).timeout(Duration::from_secs(10)).connect()?;
    let (stop, counts) = (Arc::new(AtomicBool::new(false)), Arc::new([AtomicU64::new(0), AtomicU64::new(0)]));
    let (told, counted) = (Arc::clone(&stop), Arc::clone(&counts));
    let answering = std::thread::Builder::new().name(GUEST.into());
    let answering = answering.spawn(move || answer(guest, &told, &counted).map_err(|error| error.to_string()))?;

    let spec =
        HealthSpec { check: HealthCheck::Tcp, l4: None, interval_ms: 5_000, timeout_ms: 2_000, rise: 2, fall: 3 };
    let spec = Arc::new(spec);
    let (health, _changes) = Health::new(fabric.sockets());
    let target = |l4| Target::new("default".into(), ADDRESS.into(), Some(l4), Arc::clone(&spec));
    health.replace((1..=BACKENDS).filter_map(target));
    std::thread::sleep(Duration::from_secs(10));

    let (before, asked, started) = (processor()?, health.report(), Instant::now());
    std::thread::sleep(MEASURED);
    let (after, now, took) = (processor()?, health.report(), started.elapsed().as_secs_f64());
    println!("{now:?}");
    let checks = (now.checks - asked.checks) as f64;
    println!("{:.0} checks/s, {} failed", checks / took, now.failures - asked.failures);
    println!("guest: {} SYN, {} RST", counts[0].load(Ordering::Relaxed), counts[1].load(Ordering::Relaxed));
    let mut sum = 0.0;
    for (name, used) in after {
        let used = used.saturating_sub(before.get(&name).copied().unwrap_or(0)) as f64 / 1e9;
        if used > 0.0 {
            println!("{name:<20} {:6.2} % of a core {:6.2} us a check", 100.0 * used / took, 1e6 * used / checks);
        }
        sum += if name == GUEST { 0.0 } else { used };
    }
    println!("without the guest    {:6.2} % of a core {:6.2} us a check", 100.0 * sum / took, 1e6 * sum / checks);
    stop.store(true, Ordering::Relaxed);
    answering.join().map_err(|_| "the guest's thread panicked")??;
    drop(health);
    fabric.shutdown();
    Ok(())
}
