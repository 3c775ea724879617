//! Random worlds that change step by step, through one compiler, against the oracle: every pair of ports, addresses outside,
//! all protocols, both directions.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod oracle;

use std::sync::Arc;

use hostweave_policy::compile::Compiler;
use hostweave_policy::model::*;
use hostweave_policy::table::{Basis, Decision, Flow, Table};
use hostweave_switch::tables::{NetworkId, PortId};
use ipnet::IpNet;
use oracle::{Reason, judge};
use proptest::prelude::*;

/// Decisions of a generator: numbers drawn by proptest, so that a failure shrinks to a short list of small ones.
struct Choices<'a>(std::slice::Iter<'a, u32>);

impl Choices<'_> {
    fn below(&mut self, bound: usize) -> usize {
        self.0.next().map_or(0, |number| *number as usize % bound)
    }

    fn of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }

    fn some<T>(&mut self, most: usize, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.below(most + 1)).map(|_| make(self)).collect()
    }
}

const KEYS: [&str; 3] = ["app", "role", "env"];
const VALUES: [&str; 3] = ["x", "y", "z"];
const NAMESPACES: [&str; 3] = ["a", "b", "c"];
const NAMES: [&str; 3] = ["http", "dns", "web"];
const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
const NUMBERS: [u16; 6] = [80, 81, 53, 0, 65_535, 8080];
const BLOCKS: [&str; 14] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/29",
    "10.0.0.4/30",
    "10.0.0.3/32",
    "192.0.2.0/24",
    "255.255.255.255/32",
    "::/0",
    "fd00::/64",
    "fd00::4/126",
    "2001:db8::/32",
    "::fffe:0:0/96",
    "8000::/1",
    "::1:0:0:0/80",
];
const OUTSIDE: [&str; 9] = [
    "192.0.2.5",
    "10.0.0.200",
    "255.255.255.255",
    "0.0.0.0",
    "2001:db8::5",
    "::fffe:0:1",
    "::1:0:0:1",
    "ffff::",
    "::1",
];
const PORTS: u32 = 7;

fn labels(choices: &mut Choices<'_>) -> Labels {
    choices.some(3, |c| (c.of(&KEYS).to_owned(), c.of(&VALUES).to_owned())).into_iter().collect()
}

fn requirement(choices: &mut Choices<'_>, keys: &[&str], values: &[&str]) -> Requirement {
    let key = choices.of(keys).to_owned();
    let some = |c: &mut Choices<'_>| c.some(2, |c| c.of(values).to_owned());
    let operator = match choices.below(8) {
        0 => Operator::NotIn(some(choices)),
        1 => Operator::Exists,
        2 => Operator::DoesNotExist,
        3 => Operator::In(some(choices)),
        _ => Operator::In(vec![choices.of(values).to_owned()]),
    };
    Requirement { key, operator }
}

fn ports_selector(choices: &mut Choices<'_>) -> Selector {
    Selector { requirements: choices.some(2, |c| requirement(c, &KEYS, &VALUES)) }
}

fn namespace_selector(choices: &mut Choices<'_>) -> Selector {
    let requirement = |c: &mut Choices<'_>| match c.below(2) {
        0 => requirement(c, &["kubernetes.io/metadata.name"], &NAMESPACES),
        _ => requirement(c, &KEYS, &VALUES),
    };
    Selector { requirements: choices.some(2, requirement) }
}

fn optional<T>(choices: &mut Choices<'_>, make: impl FnOnce(&mut Choices<'_>) -> T) -> Option<T> {
    (choices.below(3) > 0).then(|| make(choices))
}

fn port_match(choices: &mut Choices<'_>) -> PortMatch {
    let protocol = choices.of(&PROTOCOLS);
    match choices.below(4) {
        0 => PortMatch::Protocol(protocol),
        1 => PortMatch::Named(protocol, choices.of(&NAMES).to_owned()),
        2 => PortMatch::NamedAny(choices.of(&NAMES).to_owned()),
        _ => {
            let (a, b) = (choices.of(&NUMBERS), choices.of(&NUMBERS));
            PortMatch::Range(protocol, a.min(b), a.max(b))
        }
    }
}

fn cidr(choices: &mut Choices<'_>) -> IpNet {
    choices.of(&BLOCKS).parse().unwrap()
}

fn v1_rule(choices: &mut Choices<'_>) -> Rule {
    let peer = |c: &mut Choices<'_>| match c.below(3) {
        0 => Peer::IpBlock { cidr: cidr(c), except: c.some(2, cidr) },
        _ => Peer::Ports { namespaces: optional(c, namespace_selector), ports: optional(c, ports_selector) },
    };
    Rule { origin: String::new(), peers: choices.some(2, peer), ports: choices.some(2, port_match) }
}

fn v1_policy(choices: &mut Choices<'_>) -> NetworkPolicy {
    let name = PolicyName { namespace: Some(choices.of(&NAMESPACES).into()), name: choices.of(&["p", "q"]).into() };
    NetworkPolicy {
        name,
        origin: String::new(),
        selector: if choices.below(2) == 0 { Selector::default() } else { ports_selector(choices) },
        ingress: optional(choices, |c| c.some(2, v1_rule)),
        egress: optional(choices, |c| c.some(2, v1_rule)),
        audit: choices.below(5) == 4,
    }
}

fn cluster_rule(choices: &mut Choices<'_>) -> ClusterRule {
    let peer = |c: &mut Choices<'_>| match c.below(8) {
        0 => ClusterPeer::Unknown,
        1 | 2 => ClusterPeer::Networks(c.some(2, cidr)),
        _ => ClusterPeer::Ports { namespaces: namespace_selector(c), ports: optional(c, ports_selector) },
    };
    ClusterRule {
        name: None,
        origin: String::new(),
        action: choices.of(&[Action::Accept, Action::Deny, Action::Pass]),
        peers: choices.some(2, peer),
        ports: choices.some(2, port_match),
    }
}

fn cluster_policy(choices: &mut Choices<'_>) -> ClusterNetworkPolicy {
    ClusterNetworkPolicy {
        name: PolicyName { namespace: None, name: choices.of(&["r", "s", "t"]).into() },
        origin: String::new(),
        tier: choices.of(&[Tier::Admin, Tier::Baseline]),
        priority: choices.below(2) as u32,
        namespaces: namespace_selector(choices),
        ports: optional(choices, ports_selector),
        ingress: choices.some(2, cluster_rule),
        egress: choices.some(2, cluster_rule),
        audit: choices.below(4) == 3,
    }
}

fn endpoint(choices: &mut Choices<'_>) -> Endpoint {
    let named =
        |c: &mut Choices<'_>| NamedPort { name: c.of(&NAMES).into(), protocol: c.of(&PROTOCOLS), port: c.of(&NUMBERS) };
    let id = choices.below(PORTS as usize) as u32;
    Endpoint {
        id: PortId(id),
        network: NetworkId(u16::from(choices.below(6) == 5)),
        namespace: choices.of(&NAMESPACES).into(),
        name: format!("port-{id}"),
        labels: labels(choices),
        named_ports: choices.some(3, named),
    }
}

fn namespace(choices: &mut Choices<'_>) -> Namespace {
    Namespace {
        name: choices.of(&NAMESPACES).into(),
        labels: labels(choices),
        default: choices.of(&[None, None, None, Some(DefaultPolicy::Allow), Some(DefaultPolicy::Deny)]),
    }
}

/// Replaces what has the same key, or adds.
fn put<T>(all: &mut Vec<Arc<T>>, new: T, same: impl Fn(&T, &T) -> bool) {
    match all.iter_mut().find(|old| same(old, &new)) {
        Some(old) => *old = Arc::new(new),
        None => all.push(Arc::new(new)),
    }
}

fn change(world: &mut World, choices: &mut Choices<'_>) {
    match choices.below(14) {
        0..=2 => put(&mut world.endpoints, endpoint(choices), |a, b| a.id == b.id),
        3..=5 => put(&mut world.policies, v1_policy(choices), |a, b| a.name == b.name),
        6 | 7 => put(&mut world.cluster_policies, cluster_policy(choices), |a, b| a.name == b.name),
        8 | 9 => {
            let namespace = namespace(choices);
            world.namespaces.insert(namespace.name.clone(), Arc::new(namespace));
        }
        10 => {
            world.namespaces.remove(choices.of(&NAMESPACES));
            world.default = choices.of(&[DefaultPolicy::Allow, DefaultPolicy::Deny]);
        }
        11 if !world.endpoints.is_empty() => {
            let at = choices.below(world.endpoints.len());
            world.endpoints.remove(at);
        }
        12 => {
            let (v1, cluster) = (world.policies.len(), world.cluster_policies.len());
            if v1 > 0 {
                world.policies.remove(choices.below(v1));
            } else if cluster > 0 {
                world.cluster_policies.remove(choices.below(cluster));
            }
        }
        _ => {
            // The same things, as other objects and in another order.
            world.endpoints = world.endpoints.iter().rev().map(|endpoint| Arc::new((**endpoint).clone())).collect();
            world.policies.reverse();
            world.cluster_policies.reverse();
        }
    }
}

fn flows() -> Vec<Flow> {
    let mut peers: Vec<(Option<PortId>, u128)> = Vec::new();
    for id in 0..PORTS {
        peers.push((Some(PortId(id)), oracle::bits(format!("10.0.0.{id}").parse().unwrap())));
        peers.push((Some(PortId(id)), oracle::bits(format!("fd00::{id}").parse().unwrap())));
    }
    peers.extend(OUTSIDE.map(|address| (None, oracle::bits(address.parse().unwrap()))));
    let l4 = [
        (6, Some(80)),
        (6, Some(81)),
        (17, Some(53)),
        (132, Some(8080)),
        (6, Some(0)),
        (17, Some(65_535)),
        (6, None),
        (1, None),
        (47, None),
    ];
    let mut flows = Vec::new();
    for subject in (0..PORTS).map(PortId) {
        for (peer, peer_address) in &peers {
            for (proto, dst_port) in l4 {
                for direction in [Direction::Egress, Direction::Ingress] {
                    flows.push(Flow { direction, subject, peer: *peer, peer_address: *peer_address, proto, dst_port });
                }
            }
        }
    }
    flows
}

/// Whether the table says what the oracle says, reason and all.
fn agrees(world: &World, table: &Table, flow: &Flow, decision: Decision) -> Result<(), TestCaseError> {
    let verdict = judge(world, flow);
    let place = |id| table.rule(id).map(|rule| ((*rule.policy).clone(), rule.index, rule.direction));
    prop_assert_eq!(decision.allowed, verdict.allowed, "{:?}\n{:?}\n{:?}", flow, decision, verdict);
    let audit = decision.audit.map(|id| place(id).expect("a rule that is there"));
    prop_assert_eq!(audit.clone().map(|(name, index, _)| (name, index)), verdict.audit, "{:?}", flow);
    prop_assert!(audit.is_none_or(|(.., direction)| direction == flow.direction));
    match (decision.basis, verdict.reason) {
        (Basis::NotSelected, Reason::NotSelected)
        | (Basis::HostDefault, Reason::HostDefault)
        | (Basis::NoRule, Reason::NoRule)
        | (Basis::NotCompiled, Reason::NotCompiled)
        | (Basis::Myself, Reason::Myself) => {}
        (Basis::Rule(id), Reason::Cluster(name, index)) => {
            prop_assert_eq!(place(id), Some((name, Some(index), flow.direction)))
        }
        (Basis::Rule(id), Reason::Allowed(rules)) => {
            let (name, index, direction) = place(id).expect("a rule that is there");
            prop_assert_eq!(direction, flow.direction);
            prop_assert!(rules.contains(&(name, index.expect("a rule and not an isolation"))));
        }
        (basis, reason) => prop_assert!(false, "{:?}: {:?} but {:?}", flow, basis, reason),
    }
    Ok(())
}

fn networks_of(world: &World, port: PortId) -> impl Iterator<Item = NetworkId> {
    world.endpoints.iter().filter(move |endpoint| endpoint.id == port).map(|endpoint| endpoint.network)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn every_update_is_as_the_oracle_says(numbers in prop::collection::vec(any::<u32>(), 0..900)) {
        let mut choices = Choices(numbers.iter());
        let (mut compiler, mut world) = (Compiler::new(), World::default());
        let flows = flows();
        let mut before: Option<(World, Vec<Decision>)> = None;
        while choices.0.len() > 0 {
            // A world that is worth asking, then small steps.
            for _ in 0..=if before.is_none() { 24 } else { choices.below(4) } {
                change(&mut world, &mut choices);
            }
            let update = compiler.update(&world);
            let decisions: Vec<Decision> = flows.iter().map(|flow| update.table.decide(flow)).collect();
            for (flow, decision) in flows.iter().zip(&decisions) {
                agrees(&world, &update.table, flow, *decision)?;
            }
            if let Some((old, former)) = before {
                for ((flow, decision), former) in flows.iter().zip(&decisions).zip(former) {
                    if decision.allowed != former.allowed {
                        let mut networks = networks_of(&old, flow.subject).chain(networks_of(&world, flow.subject));
                        prop_assert!(networks.any(|network| update.changed.contains(&network)), "{:?} unannounced", flow);
                    }
                }
            }
            prop_assert!(compiler.update(&world).changed.is_empty(), "the same world changes nothing");
            before = Some((world.clone(), decisions));
        }
    }
}
