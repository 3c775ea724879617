//! What a packet costs from `flow` to `rewrite`, by what is known of its connection: a hit among few and many flows, a new
//! connection under few and many rules and labels, a connection that is decided again after a change of policy.
//!
//! `cargo bench --bench connections` prints ns a packet of all of them, everything in one thread and as hot as it gets.
//! `cargo bench --bench connections -- NAME FAMILY PACKETS` runs one, for callgrind with
//! `--toggle-collect='connections::measured'`; with `--wait` it says `ready` when what it measures begins and waits for a
//! line, so that only that has to be instrumented (`tests/bench/instructions`).
//!
//! `service-…` are the same by a Service.
//!
//! Two guests of one network exchange 64-octet UDP frames, made in place: no rings, no `parse`. The policy isolates both
//! of them in both directions, and one rule in its midst allows what they send. Other ports exist for policy alone.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Instant;

use hostweave::connect::{Flows, ahead};
use hostweave::datapath::{self, Context, Lookup};
use hostweave::fabric::plane::Plane;
use hostweave::observe::recorder::Unwatched;
use hostweave_guest::frames::Path;
use hostweave_nat::Nat;
use hostweave_nat::service::{Backend, FrontendSpec, Refusal, Services};
use hostweave_policy::compile::Compiler;
use hostweave_policy::model::*;
use hostweave_switch::connection::{Connections, FreeRecords, Options};
use hostweave_switch::flow::{FlowCache, FlowKey};
use hostweave_switch::fuzz::{GUEST_A, GUEST_B, NETWORK, mac, tables, v4, v6};
use hostweave_switch::limits::{BURST, HEADROOM};
use hostweave_switch::packet::Burst;
use hostweave_switch::stage::Verdict;
use hostweave_switch::tables::{PortId, Tables, mapped};
use hostweave_switch::{MacAddr, parse};

type Failure = Box<dyn std::error::Error>;

/// What happens to each measured packet.
#[derive(Clone, Copy, PartialEq)]
enum What {
    /// Its flow is in the cache, and nothing has to be asked.
    Hit,
    /// It begins a connection.
    New,
    /// Its connection was decided under an older epoch.
    Recheck,
}

/// One measurement.
#[derive(Clone, Copy)]
struct Scenario {
    name: &'static str,
    what: What,
    /// Flows that are known before.
    flows: u32,
    /// Rules of the policy of both guests, in each direction; without any there is no policy.
    rules: u32,
    /// Ports with labels of their own.
    endpoints: u32,
    /// Connections that the port may have beyond those that are known before.
    more: u32,
    /// Services of ten backends each. With any, what is sent goes to the first one's address, and by it to the other guest.
    services: u32,
}

const SCENARIOS: [Scenario; 17] = [
    Scenario { name: "hit-1", what: What::Hit, flows: 1, rules: 100, endpoints: 2, more: u32::MAX, services: 0 },
    Scenario { name: "hit-1000", what: What::Hit, flows: 1000, rules: 100, endpoints: 2, more: u32::MAX, services: 0 },
    Scenario {
        name: "hit-1000000",
        what: What::Hit,
        flows: 1_000_000,
        rules: 100,
        endpoints: 2,
        more: u32::MAX,
        services: 0,
    },
    Scenario { name: "new-0-rules", what: What::New, flows: 4096, rules: 0, endpoints: 2, more: u32::MAX, services: 0 },
    Scenario {
        name: "new-1000-rules",
        what: What::New,
        flows: 4096,
        rules: 1000,
        endpoints: 2,
        more: u32::MAX,
        services: 0,
    },
    Scenario {
        name: "new-100000-rules",
        what: What::New,
        flows: 4096,
        rules: 100_000,
        endpoints: 2,
        more: u32::MAX,
        services: 0,
    },
    Scenario { name: "new-full-port", what: What::New, flows: 64, rules: 100, endpoints: 2, more: 4096, services: 0 },
    Scenario {
        name: "new-2-labels",
        what: What::New,
        flows: 4096,
        rules: 100,
        endpoints: 2,
        more: u32::MAX,
        services: 0,
    },
    Scenario {
        name: "new-10000-labels",
        what: What::New,
        flows: 4096,
        rules: 100,
        endpoints: 10_000,
        more: u32::MAX,
        services: 0,
    },
    Scenario {
        name: "new-100000-labels",
        what: What::New,
        flows: 4096,
        rules: 100,
        endpoints: 100_000,
        more: u32::MAX,
        services: 0,
    },
    Scenario {
        name: "service-hit-1",
        what: What::Hit,
        flows: 1,
        rules: 100,
        endpoints: 2,
        more: u32::MAX,
        services: 1,
    },
    Scenario {
        name: "service-new",
        what: What::New,
        flows: 4096,
        rules: 100,
        endpoints: 2,
        more: u32::MAX,
        services: 1,
    },
    Scenario {
        name: "service-new-10000",
        what: What::New,
        flows: 4096,
        rules: 100,
        endpoints: 2,
        more: u32::MAX,
        services: 10_000,
    },
    Scenario {
        name: "service-recheck",
        what: What::Recheck,
        flows: 1024,
        rules: 100,
        endpoints: 2,
        more: u32::MAX,
        services: 1,
    },
    Scenario {
        name: "recheck-0-rules",
        what: What::Recheck,
        flows: 1024,
        rules: 0,
        endpoints: 2,
        more: u32::MAX,
        services: 0,
    },
    Scenario {
        name: "recheck-1000-rules",
        what: What::Recheck,
        flows: 1024,
        rules: 1000,
        endpoints: 2,
        more: u32::MAX,
        services: 0,
    },
    Scenario {
        name: "recheck-100000-rules",
        what: What::Recheck,
        flows: 1024,
        rules: 100_000,
        endpoints: 2,
        more: u32::MAX,
        services: 0,
    },
];

/// Packets measured where nothing is said.
const PACKETS: u32 = 1 << 19;

/// What a worker knows of flows, and its burst.
struct State {
    cache: FlowCache,
    connections: Connections,
    nat: Nat,
    free: FreeRecords,
    burst: Burst,
    lookups: [Lookup; BURST],
}

/// No packet asks it.
fn nat_options(now: u32) -> hostweave_nat::Options {
    hostweave_nat::Options { capacity: 1024, boot: 1, now, timers: hostweave_nat::Timers::default(), seed: None }
}

/// A burst of parsed packets from `flow` to `rewrite`, asked for ahead as the worker does. Returns how many go on.
#[inline(never)]
fn measured(ctx: &Context<'_>, state: &mut State) -> usize {
    let State { cache, connections, nat, free, burst, lookups } = state;
    let count = burst.len();
    for (packet, lookup) in burst.packets().iter().zip(lookups.iter_mut()) {
        let Some(key) = FlowKey::of(packet, ctx.port.id.0 as u16) else { return 0 };
        *lookup = Lookup::new(connections.keys(), key, ctx.network.vni);
        ahead::tags(cache, lookup);
    }
    // A burst of 64 has all bits.
    ahead::expect(ctx, cache, connections, nat, &mut lookups[..count], u64::MAX);
    let mut forwarded = 0;
    for (index, lookup) in lookups[..count].iter().enumerate() {
        let (packet, arena) = burst.packet_mut(index);
        let mut flows = Flows { cache, connections, nat, free, denied: None, opened: None };
        let verdict = datapath::forward(ctx, &mut flows, lookup, packet, arena, &mut Unwatched);
        forwarded += usize::from(black_box(verdict) == Verdict::Forward);
    }
    forwarded
}

/// Fills the burst with a packet of each flow.
fn fill(state: &mut State, path: &Path, flows: impl Iterator<Item = u32>) -> Result<(), Failure> {
    state.burst.clear();
    for flow in flows {
        let (src, dst) = (10_000 + (flow % 50_000) as u16, 5_000 + (flow / 50_000) as u16);
        let frame = path.udp(src, dst, &[0x5a; 2]);
        let (packet, arena) = state.burst.next_slot(GUEST_A);
        packet.slot()[HEADROOM..HEADROOM + frame.len()].copy_from_slice(&frame);
        packet.set_frame(frame.len(), 0, 0, 0);
        if parse::parse(packet, arena) != Verdict::Continue {
            return Err("a frame does not pass `parse`".into());
        }
        state.burst.push();
    }
    Ok(())
}

/// Sends packets of the flows of a range in turn, not in their order; ns a packet of each burst.
fn pass(
    ctx: &Context<'_>,
    state: &mut State,
    path: &Path,
    flows: std::ops::Range<u32>,
    packets: u32,
) -> Result<Vec<f64>, Failure> {
    let count = u64::from(flows.end - flows.start);
    // A stride without a common divisor goes once through all of them.
    let stride = (count * 618 / 1000..count).find(|stride| gcd(*stride, count) == 1).unwrap_or(0);
    let flow = |i: u32| flows.start + (u64::from(i) * stride % count) as u32;
    let mut samples = Vec::new();
    for first in (0..packets).step_by(BURST) {
        let last = packets.min(first + BURST as u32);
        fill(state, path, (first..last).map(flow))?;
        let start = Instant::now();
        let forwarded = measured(ctx, state);
        samples.push(start.elapsed().as_nanos() as f64 / f64::from(last - first));
        if forwarded != (last - first) as usize {
            return Err(format!("{forwarded} of {} packets go on", last - first).into());
        }
    }
    Ok(samples)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn is(key: &str, value: String) -> Selector {
    Selector { requirements: vec![Requirement { key: key.into(), operator: Operator::In(vec![value]) }] }
}

/// The ports and the policy of a scenario.
fn world(scenario: &Scenario) -> World {
    let endpoint = |id: u32| {
        let name = format!("port-{id}");
        let near = id == GUEST_A.0 || id == GUEST_B.0;
        let label = if near { "guest".to_owned() } else { format!("app-{id}") };
        Arc::new(Endpoint {
            id: PortId(id),
            network: NETWORK,
            namespace: if near { "default".to_owned() } else { format!("team-{}", id / 100) },
            labels: [("app".to_owned(), label), ("env".to_owned(), "prod".to_owned())].into(),
            named_ports: Vec::new(),
            name,
        })
    };
    // Numbers 0 and 3 are those of an internal port and of a port of the other network.
    let others = (4..).take(scenario.endpoints.saturating_sub(2) as usize);
    let rule = |i: u32| {
        let peer = match i % 4 {
            0 => {
                Peer::Ports { namespaces: Some(Selector::default()), ports: Some(is("app", format!("app-{}", i + 4))) }
            }
            1 => Peer::Ports { namespaces: None, ports: Some(is("env", format!("env-{}", i % 10))) },
            2 => Peer::IpBlock {
                cidr: ipnet::IpNet::V4(ipnet::Ipv4Net::new_assert([10, (i >> 8) as u8, i as u8, 0].into(), 24)),
                except: vec![],
            },
            _ => Peer::IpBlock {
                cidr: ipnet::IpNet::V6(ipnet::Ipv6Net::new_assert(
                    [0x2001, 0xdb9, (i >> 16) as u16, i as u16, 0, 0, 0, 0].into(),
                    64,
                )),
                except: vec![],
            },
        };
        let port = 1000 + (i % 10_000) as u16;
        Rule { origin: String::new(), peers: vec![peer], ports: vec![PortMatch::Range(Protocol::Tcp, port, port)] }
    };
    let rules = || {
        let mut rules: Vec<Rule> = (1..scenario.rules).map(rule).collect();
        let guests = Peer::Ports { namespaces: None, ports: Some(is("app", "guest".into())) };
        let allowed = PortMatch::Range(Protocol::Udp, 5000, u16::MAX);
        rules.insert(rules.len() / 2, Rule { origin: String::new(), peers: vec![guests], ports: vec![allowed] });
        Some(rules)
    };
    let policy = || {
        Arc::new(NetworkPolicy {
            name: PolicyName { namespace: Some("default".into()), name: "guests".into() },
            origin: String::new(),
            selector: Selector::default(),
            ingress: rules(),
            egress: rules(),
            audit: false,
        })
    };
    World {
        endpoints: [GUEST_A.0, GUEST_B.0].into_iter().chain(others).map(endpoint).collect(),
        policies: (scenario.rules > 0).then(policy).into_iter().collect(),
        ..World::default()
    }
}

/// Address of a Service.
fn vip(six: bool, service: u32) -> IpAddr {
    if six {
        Ipv6Addr::from((0x2001_0db8_0096 << 80) + u128::from(service)).into()
    } else {
        Ipv4Addr::from(0x0a60_0000 + service).into()
    }
}

/// The Services of a scenario. All backends of the first one are the other guest, at ten L4 ports.
fn services(scenario: &Scenario, six: bool, vni: u32) -> Services {
    let guest = if six { mapped(v6(GUEST_B).into()) } else { mapped(v4(GUEST_B).into()) };
    let backend = |service: u32, i: u32| Backend {
        name: format!("default/web-{service}-{i}").into(),
        address: if service == 0 { guest } else { mapped(Ipv4Addr::from(0x0b00_0000 + service * 10 + i).into()) },
        l4: Some(6000 + i as u16),
        weight: 1,
        active: true,
        ejected: false,
    };
    let spec = |service: u32| FrontendSpec {
        service: format!("default/web-{service}").into(),
        port_name: "".into(),
        scope: vni,
        address: mapped(vip(six, service)),
        proto: 17,
        l4: 1..=u16::MAX,
        vni,
        sources: [].into(),
        affinity_s: None,
        backends: (0..10).map(|i| backend(service, i)).collect(),
        refusal: Refusal::Reject,
        begun: Default::default(),
    };
    Services::compile(&(0..scenario.services).map(spec).collect::<Vec<_>>(), None)
}

/// Packets of the first guest, at a second.
fn context(plane: &Plane, now: u32) -> Result<Context<'_>, Failure> {
    let port = plane.tables.port(GUEST_A).ok_or("no port")?;
    let network = plane.tables.network(port.network).ok_or("no network")?;
    Ok(Context::new(plane, port, network, 0, now))
}

/// Runs one scenario; ns a packet of each burst. `begin` is called before what is measured.
fn run(scenario: &Scenario, six: bool, packets: u32, begin: impl FnOnce()) -> Result<Vec<f64>, Failure> {
    let mut path = match six {
        true => Path::new(mac(GUEST_A).0, MacAddr::ROUTER.0, v6(GUEST_A), v6(GUEST_B)),
        false => Path::new(mac(GUEST_A).0, MacAddr::ROUTER.0, v4(GUEST_A), v4(GUEST_B)),
    };
    if scenario.services > 0 {
        path.dst = vip(six, 0);
    }
    let tables = Tables { epochs: vec![1; 2], ..tables() };
    let mut plane = Plane { tables, policy: Compiler::new().update(&world(scenario)).table, ..Plane::default() };
    let vni = plane.tables.network(NETWORK).ok_or("no network")?.vni;
    plane.services = Arc::new(services(scenario, six, vni));
    let now = 100;
    let folder = tempfile::tempdir()?;
    let new = if scenario.what == What::New { packets } else { 0 };
    // A port that is full has filled its flow cache too.
    let capacity = match scenario.more {
        u32::MAX => (2 * (scenario.flows + new)).max(1 << 16),
        more => scenario.flows + more,
    };
    let options = Options { capacity, boot: 1, now: now - 10 };
    let mut state = State {
        cache: FlowCache::new(2 * capacity as usize)?,
        connections: Connections::open(&folder.path().join("connections"), &options)?,
        nat: Nat::open(&folder.path().join("nat"), &nat_options(options.now))?,
        free: FreeRecords::new(),
        burst: Burst::new(),
        lookups: [Lookup::default(); BURST],
    };
    state.connections.make_available(capacity);
    state.connections.make_translatable(capacity);
    state.connections.share([(GUEST_A.0, capacity)].into_iter());
    let known = 0..scenario.flows;
    pass(&context(&plane, now)?, &mut state, &path, known.clone(), scenario.flows)?;
    // They go on for long enough to be assured.
    let now = now + 3;
    pass(&context(&plane, now)?, &mut state, &path, known.clone(), scenario.flows)?;
    begin();
    let mut samples = Vec::new();
    match scenario.what {
        What::Hit => samples = pass(&context(&plane, now)?, &mut state, &path, known, packets)?,
        What::New => {
            samples = pass(&context(&plane, now)?, &mut state, &path, known.end..known.end + packets, packets)?;
        }
        What::Recheck => {
            for _ in 0..packets.div_ceil(scenario.flows) {
                plane.tables.epochs.iter_mut().for_each(|epoch| *epoch += 1);
                plane.tables.crossings += 1;
                samples.extend(pass(&context(&plane, now)?, &mut state, &path, known.clone(), scenario.flows)?);
            }
        }
    }
    Ok(samples)
}

fn main() -> Result<(), Failure> {
    let (flags, arguments): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|a| a.starts_with("--"));
    if let Some(name) = arguments.first() {
        let scenario = SCENARIOS.iter().find(|scenario| scenario.name == name).ok_or("no such scenario")?;
        let six = arguments.get(1).is_some_and(|family| family == "ipv6");
        let packets = arguments.get(2).map_or(Ok(PACKETS), |text| text.parse())?;
        let begin = || {
            if flags.iter().any(|flag| flag == "--wait") {
                println!("ready");
                // Whoever waits for us writes a line; if nobody does, there is nothing to wait for.
                let _ = std::io::stdin().read_line(&mut String::new());
            }
        };
        run(scenario, six, packets, begin)?;
        return Ok(());
    }
    println!("{:<24} {:>10} {:>10} {:>10} {:>10}", "ns a packet", "IPv4 best", "median", "IPv6 best", "median");
    for scenario in &SCENARIOS {
        print!("{:<24}", scenario.name);
        for six in [false, true] {
            let mut samples = run(scenario, six, PACKETS, || ())?;
            samples.sort_by(f64::total_cmp);
            print!(" {:>10.1} {:>10.1}", samples[0], samples[samples.len() / 2]);
        }
        println!();
    }
    Ok(())
}
