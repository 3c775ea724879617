//! How long a change of one backend takes to be in force: from the call until no worker uses the tables before it. With few
//! Services and with 10,000 of 10 backends each, beside 10,000 ports: what it costs must not grow with them.
//!
//! `cargo bench --bench services`. First below control: the change is a drained backend, and a failed check and a guest that stops go the
//! same way. Then objects that are applied, checked, stored and planned: an EndpointSlice, and ports that are relabelled, put down, added
//! and removed.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hostweave::config::{ObjectKey, Source, load_sources};
use hostweave::control::controller::{Controller, Edit, EditOptions, Parts};
use hostweave::control::initial::Initial;
use hostweave::fabric::Fabric;
use hostweave::fabric::balance::known::Drained;
use hostweave::fabric::spec::{
    BackendSpec, Condition, Desired, EndpointSpec, FabricConfig, PortSpec, ServicePortSpec, ServiceSpec, SocketMode,
};
use hostweave::store::Store;
use hostweave_switch::MacAddr;
use hostweave_switch::tables::Network;

type Failure = Box<dyn std::error::Error>;

/// Ports of the host.
const PORTS: u32 = 10_000;

/// Services, first of a small host, then of a large one.
const SERVICES: [u32; 2] = [100, 10_000];

/// Backends of each.
const BACKENDS: u32 = 10;

/// Changes that are timed.
const CHANGES: u32 = 100;

/// The same, of objects.
const OBJECTS_CHANGED: u32 = 20;

fn port(i: u32, folder: &Path) -> PortSpec {
    let [_, _, a, b] = i.to_be_bytes();
    PortSpec {
        uid: uuid::Uuid::from_u128(i.into()),
        mac: MacAddr([2, 0, 0, 0, a, b]),
        v4: vec![Ipv4Addr::new(10, 64, a, b)],
        backend: BackendSpec::VhostUser {
            mode: SocketMode::Connect,
            socket: folder.join(format!("vmm-{i}.sock")),
            incoming_socket: None,
            queues: 1,
            group: None,
            allowed_uids: Vec::new(),
        },
        ..PortSpec::bare("shop", format!("p{i}"))
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
        cluster: vec![IpAddr::from([10, 104, a, b])],
        ports: vec![ServicePortSpec { name: "http".into(), proto: 6, l4: 80..=80, endpoints }],
        ..ServiceSpec::bare(&format!("shop/s{i}"))
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
        v4: Some(("10.64.0.0/16".parse()?, Ipv4Addr::new(10, 64, 255, 254))),
        ..Network::bare("default", 4096)
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
    objects()
}

fn edits(text: String) -> Vec<Edit> {
    let loaded = load_sources(vec![Source { name: "bench".to_owned(), text }]);
    loaded.unwrap_or_default().objects.into_iter().map(|object| Edit::Put(Box::new(object))).collect()
}

/// A port, which is a backend of a Service of ten.
fn port_object(i: u32, app: u32, state: &str) -> String {
    format!(
        "---\n{{apiVersion: hostweave.dev/v1alpha1, kind: Port, metadata: {{name: p{i}, labels: {{app: a{app}}}}}, \
         spec: {{adminState: {state}, backend: {{vhostUser: {{mode: connect, socketPath: /nowhere/{i}.sock}}}}}}}}\n"
    )
}

/// A Service of ports (those of the first thousand), or of an EndpointSlice.
fn service_object(i: u32) -> String {
    let selector = if i < PORTS / BACKENDS { format!("selector: {{app: a{i}}}, ") } else { String::new() };
    format!(
        "---\n{{apiVersion: v1, kind: Service, metadata: {{name: s{i}}}, \
         spec: {{{selector}ports: [{{name: http, port: 80, targetPort: 8080}}]}}}}\n"
    )
}

fn slice_object(i: u32, variant: u32) -> String {
    let address =
        |n: u32| format!("{{addresses: [11.{}.{}.{}]}}", i / 256, i % 256, if n == 0 { 16 + variant } else { n });
    let endpoints: Vec<String> = (0..BACKENDS).map(address).collect();
    format!(
        "---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: s{i}, \
         labels: {{kubernetes.io/service-name: s{i}}}}}, addressType: IPv4, ports: [{{name: http, port: 8080}}], \
         endpoints: [{}]}}\n",
        endpoints.join(", ")
    )
}

/// The i-th change of a kind.
type Change = Box<dyn Fn(u32) -> Vec<Edit>>;

/// Through control, with everything that stands above the packet path.
fn objects() -> Result<(), Failure> {
    let folder = tempfile::tempdir()?;
    let (fabric, _events) = Fabric::start(FabricConfig {
        workers: vec![None],
        runtime_dir: folder.path().to_owned(),
        helper: "/proc/self/exe".into(),
        connections_max: 65_536,
    })?;
    let (store, contents) = Store::in_memory()?;
    let initial = Initial::new(Vec::new(), contents, false, folder.path())?;
    let parts = Parts {
        config: Vec::new(),
        runtime: folder.path().to_owned(),
        adopt: false,
        fabric: Arc::clone(&fabric),
        store,
        events: Arc::default(),
    };
    let controller = Controller::start(parts, initial, Instant::now())?;
    let apply = |edits: Vec<Edit>| controller.edit(edits, &EditOptions::default());
    let network = "{apiVersion: hostweave.dev/v1alpha1, kind: Network, metadata: {name: default}, \
                   spec: {cidrs: [10.64.0.0/16, \"2001:db8:64::/64\"]}}\n";
    let ports: String = (0..PORTS).map(|i| port_object(i, i / BACKENDS, "up")).collect();
    apply(edits(network.to_owned() + &ports))?;
    for first in (0..SERVICES[1]).step_by(2_500) {
        let some = first..first + 2_500;
        let slices = some.clone().filter(|i| *i >= PORTS / BACKENDS).map(|i| slice_object(i, 0));
        apply(edits(some.map(service_object).chain(slices).collect()))?;
    }
    let changes: [(&str, Change); 5] = [
        ("an EndpointSlice", Box::new(|i| edits(slice_object(5_000 + i, 1 + i)))),
        ("a port relabelled", Box::new(|i| edits(port_object(i * 97, i + 500, "up")))),
        ("a port put down", Box::new(|i| edits(port_object(i * 101 + 1, 7, "down")))),
        ("a port added", Box::new(|i| edits(port_object(PORTS + i, i, "up")))),
        (
            "a port removed",
            Box::new(|i| {
                vec![Edit::Delete { key: ObjectKey::port("default", &format!("p{}", PORTS + i)), must_exist: true }]
            }),
        ),
    ];
    for (name, change) in changes {
        let (mut times, mut work) = (Vec::new(), Vec::new());
        for i in 0..OBJECTS_CHANGED {
            let wishes = change(i);
            let (start, before) = (Instant::now(), cpu()?);
            apply(wishes)?;
            times.push(start.elapsed());
            work.push(cpu()? - before);
        }
        print(&format!("applied/{name}"), times);
        print(&format!("applied/{name}, CPU time"), work);
    }
    fabric.shutdown();
    Ok(())
}
