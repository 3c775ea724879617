//! How long a change of one backend takes to be in force: from the call until no worker uses the tables before it. With few
//! Services and with 10,000 of 10 backends each, beside 10,000 ports: what it costs must not grow with them.
//!
//! `cargo bench --bench services`. The change is a drained backend: a failed check and a guest that stops go the same way.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hostweave::fabric::Fabric;
use hostweave::fabric::balance::known::Drained;
use hostweave::fabric::spec::{
    AllDown, BackendSpec, Condition, Desired, Drain, EndpointSpec, FabricConfig, PortSpec, Refusal, ServicePortSpec,
    ServiceSpec, SocketMode,
};
use hostweave_switch::MacAddr;
use hostweave_switch::tables::{Network, PortId};

type Failure = Box<dyn std::error::Error>;

/// Ports of the host.
const PORTS: u32 = 10_000;

/// Services, first of a small host, then of a large one.
const SERVICES: [u32; 2] = [100, 10_000];

/// Backends of each.
const BACKENDS: u32 = 10;

/// Changes that are timed.
const CHANGES: u32 = 100;

fn port(i: u32, folder: &Path) -> PortSpec {
    let [_, _, a, b] = i.to_be_bytes();
    PortSpec {
        uid: uuid::Uuid::from_u128(i.into()),
        namespace: "shop".into(),
        name: format!("p{i}"),
        network: "default".into(),
        mac: MacAddr([2, 0, 0, 0, a, b]),
        v4: vec![Ipv4Addr::new(10, 64, a, b)],
        v6: Vec::new(),
        hostname: format!("p{i}"),
        up: true,
        backend: BackendSpec::VhostUser {
            mode: SocketMode::Connect,
            socket: folder.join(format!("vmm-{i}.sock")),
            incoming_socket: None,
            queues: 1,
            group: None,
            allowed_uids: Vec::new(),
        },
        labels: Default::default(),
        named_ports: Vec::new(),
        flows_max: 65_536,
        rates: Default::default(),
        metadata: Default::default(),
    }
}

/// Its backends are no ports of this host, so that they run.
fn endpoint(i: u32) -> EndpointSpec {
    let [_, a, b, c] = i.to_be_bytes();
    EndpointSpec {
        name: format!("shop/backend-{i}"),
        port: None,
        address: IpAddr::from([11, a, b, c]),
        l4: Some(8080),
        weight: 100,
        condition: Condition::Ready,
        internal: true,
        external: true,
        rank: 0,
    }
}

fn service(i: u32) -> Arc<ServiceSpec> {
    let [_, _, a, b] = i.to_be_bytes();
    let endpoints = (i * BACKENDS..(i + 1) * BACKENDS).map(endpoint).collect();
    Arc::new(ServiceSpec {
        name: format!("shop/s{i}"),
        network: "default".into(),
        cluster: vec![IpAddr::from([10, 104, a, b])],
        load_balancer: Vec::new(),
        ports: vec![ServicePortSpec { name: "http".into(), proto: 6, l4: 80..=80, endpoints }],
        names_healthy: false,
        internal_local: false,
        external_local: false,
        affinity_s: None,
        sources: Vec::new(),
        refusal_internal: Refusal::Reject,
        refusal_external: Refusal::Reject,
        health: None,
        outlier: None,
        all_down: AllDown::Reject,
        drain: Drain::Keep,
    })
}

fn print(name: &str, mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let median = times[times.len() / 2];
    println!("{name:<50} {:>9.3} {:>9.3} {:>9.3}", ms(times[0]), ms(median), ms(times[times.len() - 1]));
    median
}

/// CPU time of this thread: how long a change takes where nobody else wants the CPU.
fn cpu() -> Result<Duration, Failure> {
    Ok(Duration::from(nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)?))
}

fn main() -> Result<(), Failure> {
    let folder = tempfile::tempdir()?;
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?.1;
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, limit, limit)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let _inside = runtime.enter();
    let (fabric, _events) = Fabric::start(FabricConfig {
        workers: vec![None],
        runtime_dir: folder.path().to_owned(),
        helper: "/proc/self/exe".into(),
        connections_max: 65_536,
    })?;
    println!("{:<50} {:>9} {:>9} {:>9}", "ms", "best", "median", "worst");
    let network = Network {
        name: "default".into(),
        vni: 4096,
        v4: Some(("10.64.0.0/16".parse()?, Ipv4Addr::new(10, 64, 255, 254))),
        v6: None,
        mtu: 1500,
        addressing: Default::default(),
        learning: false,
        domain: None,
        resolvers: Vec::new(),
        internal: PortId::NONE,
        egress_v4: Default::default(),
        egress_v6: Default::default(),
    };
    let mut desired = Desired {
        networks: vec![network],
        ports: (0..PORTS).map(|i| port(i, folder.path())).collect(),
        ..Desired::default()
    };
    fabric.apply(&desired)?;
    let mut medians = Vec::new();
    for count in SERVICES {
        desired.services = (0..count).map(service).collect::<Vec<_>>().into();
        let start = Instant::now();
        fabric.apply(&desired)?;
        print(&format!("{count} Services/applied"), vec![start.elapsed()]);
        let (mut times, mut work) = (Vec::new(), Vec::new());
        for i in 0..CHANGES {
            let of = (i / 2 * 97) % count;
            let what = Drained { backend: endpoint(of * BACKENDS).name, service: Some(format!("shop/s{of}")) };
            let (start, before) = (Instant::now(), cpu()?);
            assert!(fabric.drain(what, i % 2 == 0));
            times.push(start.elapsed());
            work.push(cpu()? - before);
        }
        print(&format!("{count} Services/one backend changed"), times);
        medians.push(print(&format!("{count} Services/one backend changed, CPU time"), work));
    }
    println!(
        "{:.2} times the work with {} as with {} Services",
        medians[1].as_secs_f64() / medians[0].as_secs_f64(),
        SERVICES[1],
        SERVICES[0]
    );
    let sizes = fabric.plane().services.sizes();
    println!("{} addresses, {} tables, {:.1} MB of entries", sizes.addresses, sizes.tables, sizes.octets as f64 / 1e6);
    fabric.shutdown();
    Ok(())
}
