//! What the compiler and a decision cost: `cargo bench -p hostweave-policy`. A few seconds; a table of times, and the ratio
//! that is promised where one is. `decide` walks over ports and peers at random, so that tables larger than the caches are
//! seen as they are.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hostweave_policy::compile::Compiler;
use hostweave_policy::model::*;
use hostweave_policy::table::{Flow, Table};
use hostweave_switch::tables::{NetworkId, PortId};

/// A world with `ports` ports of `label_sets` distinct label sets in namespaces of 100 label sets, and `policies` policies
/// with `rules` rules each. Selectors name an application, of which every namespace has ten.
fn world(ports: u32, label_sets: u32, policies: u32, rules: u32) -> World {
    let labels =
        |pairs: &[(&str, String)]| pairs.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    let namespace = |i: u32| format!("team-{}", i % (label_sets / 100).max(1));
    let endpoint = |i: u32| {
        let set = i % label_sets;
        Arc::new(Endpoint {
            id: PortId(i),
            network: NetworkId((i % 16) as u16),
            namespace: namespace(set),
            name: format!("port-{i}"),
            labels: labels(&[
                ("app", format!("app-{}", set / 100 % 10)),
                ("set", format!("set-{set}")),
                ("env", "prod".into()),
            ]),
            named_ports: vec![NamedPort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
        })
    };
    let namespaces = (0..label_sets.div_ceil(100)).map(|i| {
        let name = namespace(i);
        let labels = labels(&[("team", name.clone()), ("tier", format!("tier-{}", i % 10))]);
        (name.clone(), Arc::new(Namespace { name, labels, default: None }))
    });
    World {
        namespaces: namespaces.collect(),
        endpoints: (0..ports).map(endpoint).collect(),
        policies: (0..policies).map(|i| Arc::new(policy(i, &namespace(i), rules, 0))).collect(),
        ..World::default()
    }
}

fn is(key: &str, value: String) -> Selector {
    Selector { requirements: vec![Requirement { key: key.into(), operator: Operator::In(vec![value]) }] }
}

fn policy(i: u32, namespace: &str, rules: u32, shift: u16) -> NetworkPolicy {
    let rule = |rule: u32| {
        let peer = match rule % 4 {
            0 => Peer::Ports { namespaces: None, ports: Some(is("app", format!("app-{}", rule % 10))) },
            1 => Peer::Ports { namespaces: Some(is("tier", format!("tier-{}", rule % 10))), ports: None },
            2 => Peer::IpBlock {
                cidr: format!("10.{}.{}.0/24", rule / 256 % 256, rule % 256).parse().expect("a block"),
                except: vec![],
            },
            _ => Peer::IpBlock {
                cidr: format!("2001:db8:{i:x}:{:x}::/64", rule % 65_536).parse().expect("a block"),
                except: vec![],
            },
        };
        let port = 1000 + (rule % 10_000) as u16 + shift;
        Rule { origin: String::new(), peers: vec![peer], ports: vec![PortMatch::Range(Protocol::Tcp, port, port)] }
    };
    NetworkPolicy {
        name: PolicyName { namespace: Some(namespace.into()), name: format!("policy-{i}") },
        origin: String::new(),
        // Together they select every port.
        selector: if rules < 100_000 { is("app", format!("app-{}", i / 100 % 10)) } else { Selector::default() },
        ingress: Some((0..rules).map(rule).collect()),
        egress: Some(vec![Rule { origin: String::new(), peers: vec![], ports: vec![] }]),
        audit: false,
    }
}

fn random(state: &mut u64) -> u64 {
    // Knuth's MMIX generator; the upper bits are good enough to scatter accesses.
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

/// Nanoseconds a decision: the best of some runs over prepared flows.
fn decide(table: &Table, ports: u32) -> f64 {
    let mut state = 1;
    let flows: Vec<Flow> = (0..1 << 16)
        .map(|_| {
            let subject = PortId((random(&mut state) % u64::from(ports)) as u32);
            let near = PortId((random(&mut state) % u64::from(ports)) as u32);
            let inside = random(&mut state).is_multiple_of(2);
            let address = 0xffff_0a00_0000 + u128::from(random(&mut state) & 0xff_ffff);
            Flow {
                direction: Direction::Ingress,
                subject,
                peer: inside.then_some(near),
                peer_address: address,
                proto: 6,
                dst_port: Some(1000 + (random(&mut state) % 10_000) as u16),
            }
        })
        .collect();
    let run = || {
        let start = Instant::now();
        for flow in &flows {
            black_box(table.decide(black_box(flow)));
        }
        start.elapsed().as_secs_f64() * 1e9 / flows.len() as f64
    };
    (0..9).map(|_| run()).fold(f64::MAX, f64::min)
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn main() {
    decisions();
    cold();
    for ports in [10_000, 100_000] {
        changes(ports);
    }
}

fn decisions() {
    println!("{:<64} {:>12}", "decide: ports, policies x rules", "ns");
    let cases = [
        (10_000, 10_000, 0, 0),
        (10_000, 10_000, 1000, 1),
        (10_000, 10_000, 1000, 10),
        (10_000, 10_000, 1000, 100),
        (10_000, 100, 0, 0),
        (10_000, 100, 1, 1),
        (10_000, 100, 1, 100_000),
        (100_000, 10_000, 0, 0),
        (100_000, 10_000, 1000, 1),
        (100_000, 10_000, 1000, 100),
    ];
    for (ports, sets, policies, rules) in cases {
        let table = Compiler::new().update(&world(ports, sets, policies, rules)).table;
        let name = format!("decide/{ports} ports/{policies} x {rules}");
        let stats = table.stats();
        println!("{name:<64} {:>12.1}   tables {} {} KB", decide(&table, ports), stats.tables, stats.bytes >> 10);
    }
}

fn cold() {
    println!("\n{:<64} {:>12}", "compile", "ms");
    for (ports, sets, policies, rules) in
        [(100_000, 10_000, 1000, 10), (100_000, 100_000, 1000, 10), (100_000, 10_000, 1000, 100)]
    {
        let world = world(ports, sets, policies, rules);
        let start = Instant::now();
        black_box(Compiler::new().update(&world));
        let name = format!("cold/{ports} ports/{sets} label sets/{policies} x {rules}");
        println!("{name:<64} {:>12.1}", milliseconds(start.elapsed()));
    }
}

fn changes(ports: u32) {
    let mut world = world(ports, 10_000, 1000, 10);
    let mut compiler = Compiler::new();
    let mut published = compiler.update(&world).table;
    let mut step = |name: &str, change: &mut dyn FnMut(&mut World, u32)| {
        let mut times: Vec<f64> = (0..20)
            .map(|i| {
                change(&mut world, i);
                let start = Instant::now();
                published = compiler.update(&world).table;
                milliseconds(start.elapsed())
            })
            .collect();
        times.sort_unstable_by(f64::total_cmp);
        println!("{:<64} {:>12.3}   worst {:.3}", format!("{name}/{ports} ports/1000 x 10"), times[10], times[19]);
    };
    step("nothing changed", &mut |_, _| {});
    step("one policy changed", &mut |world, i| {
        let old = &world.policies[500];
        let namespace = old.name.namespace.clone().expect("a namespace");
        world.policies[500] = Arc::new(policy(500, &namespace, 10, i as u16 + 1));
    });
    step("one port's label changed", &mut |world, i| {
        let mut endpoint = (*world.endpoints[77]).clone();
        endpoint.labels.insert("app".into(), format!("app-{}", i % 10));
        world.endpoints[77] = Arc::new(endpoint);
    });
    step("one namespace's label changed", &mut |world, i| {
        let mut namespace = (*world.namespaces["team-3"]).clone();
        namespace.labels.insert("tier".into(), format!("tier-{}", i % 10));
        world.namespaces.insert("team-3".into(), Arc::new(namespace));
    });
    black_box(&published);
}
