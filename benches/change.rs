//! How long one change of policy takes to reach every flow, with 10,000 ports' policies loaded: [`Fabric::apply`] from the
//! call until no worker uses the tables before it, and the part of it that the compiler takes. And how long policies of
//! 100,000 ports take to compile cold.
//!
//! `cargo bench --bench change`. The ports are real: each waits for a VMM that would listen, which costs a thread and a
//! descriptor. Above the fabric stand the objects of control (parsed, checked, stored): the case `change` of
//! `tests/bench/run` measures with them, over the control socket.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hostweave::fabric::Fabric;
use hostweave::fabric::spec::{BackendSpec, Desired, FabricConfig, PortSpec, SocketMode};
use hostweave_policy::compile::Compiler;
use hostweave_policy::model::*;
use hostweave_switch::MacAddr;
use hostweave_switch::tables::{Network, NetworkId, PortId};

type Failure = Box<dyn std::error::Error>;

/// Ports of the host.
const PORTS: u32 = 10_000;

/// Ports of the cold compilation.
const PORTS_COLD: u32 = 100_000;

/// Policies, each of one application of a namespace, and their rules.
const POLICIES: u32 = 1_000;
const RULES: u32 = 10;

/// Ports of a namespace, and applications among them.
const NAMESPACE_PORTS: u32 = 100;
const APPLICATIONS: u32 = 10;

/// Changes that are timed.
const CHANGES: u32 = 50;

fn namespace(port: u32) -> String {
    format!("team-{}", port / NAMESPACE_PORTS)
}

fn labels(port: u32) -> Labels {
    let app = format!("app-{}", port % APPLICATIONS);
    [("app".to_owned(), app), ("set".to_owned(), format!("set-{port}"))].into()
}

fn is(key: &str, value: String) -> Selector {
    Selector { requirements: vec![Requirement { key: key.into(), operator: Operator::In(vec![value]) }] }
}

/// The `i`-th policy, with rules for L4 ports from `first` on.
fn policy(i: u32, first: u16) -> Arc<NetworkPolicy> {
    let rule = |n: u32| {
        let peer = match n % 3 {
            0 => Peer::Ports { namespaces: None, ports: Some(is("app", format!("app-{n}"))) },
            1 => {
                Peer::Ports { namespaces: Some(Selector::default()), ports: Some(is("set", format!("set-{}", i * n))) }
            }
            _ => Peer::IpBlock {
                cidr: ipnet::IpNet::V4(ipnet::Ipv4Net::new_assert([10, 65, n as u8, 0].into(), 24)),
                except: vec![],
            },
        };
        let port = first + n as u16;
        Rule { origin: String::new(), peers: vec![peer], ports: vec![PortMatch::Range(Protocol::Tcp, port, port)] }
    };
    Arc::new(NetworkPolicy {
        name: PolicyName {
            namespace: Some(namespace(i / APPLICATIONS * NAMESPACE_PORTS)),
            name: format!("app-{}", i % APPLICATIONS),
        },
        origin: String::new(),
        selector: is("app", format!("app-{}", i % APPLICATIONS)),
        ingress: Some((0..RULES).map(rule).collect()),
        egress: None,
        audit: false,
    })
}

fn port(i: u32, folder: &Path) -> PortSpec {
    let [_, _, a, b] = i.to_be_bytes();
    PortSpec {
        uid: uuid::Uuid::new_v4(),
        mac: MacAddr([2, 0, 0, 0, a, b]),
        v4: vec![Ipv4Addr::new(10, 64, a, b)],
        v6: vec![Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 1, i as u16)],
        backend: BackendSpec::VhostUser {
            mode: SocketMode::Connect,
            socket: folder.join(format!("vmm-{i}.sock")),
            incoming_socket: None,
            queues: 1,
            group: None,
            allowed_uids: Vec::new(),
        },
        labels: labels(i),
        ..PortSpec::bare(namespace(i), format!("p{i}"))
    }
}

fn network() -> Result<Network, Failure> {
    Ok(Network {
        v4: Some(("10.64.0.0/16".parse()?, Ipv4Addr::new(10, 64, 255, 254))),
        v6: Some(("2001:db8::/64".parse()?, "2001:db8::fffe".parse()?)),
        learning: true,
        ..Network::bare("default", 4096)
    })
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn print(name: &str, mut ms: Vec<f64>) {
    ms.sort_by(f64::total_cmp);
    println!("{name:<60} {:>9.3} {:>9.3} {:>9.3}", ms[0], ms[ms.len() / 2], ms[ms.len() - 1]);
}

fn main() -> Result<(), Failure> {
    let folder = tempfile::tempdir()?;
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?.1;
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, limit, limit)?;
    println!("{:<60} {:>9} {:>9} {:>9}", "ms", "best", "median", "worst");
    compiler()?;

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let _inside = runtime.enter();
    let (fabric, _events) = Fabric::start(FabricConfig {
        workers: vec![None],
        runtime_dir: folder.path().to_owned(),
        helper: "/proc/self/exe".into(),
        connections_max: 65_536,
    })?;
    let mut desired = Desired {
        networks: vec![network()?],
        ports: (0..PORTS).map(|i| port(i, folder.path())).collect(),
        ..Desired::default()
    };
    desired.policy.policies = (0..POLICIES).map(|i| policy(i, 1000)).collect();
    let start = Instant::now();
    fabric.apply(&desired)?;
    print(&format!("apply/{PORTS} ports/cold, with their threads"), vec![milliseconds(start.elapsed())]);
    let mut ms = Vec::new();
    for i in 0..CHANGES {
        desired.policy.policies[500] = policy(500, 2000 + i as u16);
        let start = Instant::now();
        fabric.apply(&desired)?;
        ms.push(milliseconds(start.elapsed()));
    }
    print(&format!("apply/{PORTS} ports/one policy changed"), ms);
    fabric.shutdown();
    Ok(())
}

/// The compiler alone: cold, and one policy changed.
fn compiler() -> Result<(), Failure> {
    for ports in [PORTS, PORTS_COLD] {
        let endpoint = |i: u32| {
            let (namespace, name, labels) = (namespace(i), format!("p{i}"), labels(i));
            Arc::new(Endpoint {
                id: PortId(i),
                network: NetworkId(0),
                namespace,
                name,
                labels,
                named_ports: Vec::new(),
            })
        };
        let mut world = World {
            endpoints: (0..ports).map(endpoint).collect(),
            policies: (0..POLICIES).map(|i| policy(i, 1000)).collect(),
            ..World::default()
        };
        let mut compiler = Compiler::new();
        let start = Instant::now();
        let mut table = compiler.update(&world).table;
        print(&format!("compile/{ports} ports/cold"), vec![milliseconds(start.elapsed())]);
        let mut ms = Vec::new();
        for i in 0..CHANGES {
            world.policies[500] = policy(500, 2000 + i as u16);
            let start = Instant::now();
            table = compiler.update(&world).table;
            ms.push(milliseconds(start.elapsed()));
        }
        std::hint::black_box(table);
        print(&format!("compile/{ports} ports/one policy changed"), ms);
    }
    Ok(())
}
