//! Random connections, in both directions, ends, time, drains and crashes, judged by an oracle that knows only what SEMANTICS §5 says: a
//! list of mappings, searched from end to end.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use hostweave_nat::*;
use proptest::prelude::*;
use support::*;

#[derive(Clone, Debug)]
enum Step {
    Out {
        port: u32,
        l4: u16,
        proto: u8,
        host: u16,
        dst: u16,
    },
    /// A packet to the outside endpoint of some mapping.
    In {
        at: usize,
        host: u16,
        dst: u16,
    },
    /// Some connection ends.
    End {
        at: usize,
        established: bool,
    },
    /// What was just begun is refused.
    Refuse {
        port: u32,
        l4: u16,
    },
    Wait {
        seconds: u32,
    },
    Drain {
        first: bool,
    },
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let proto = prop_oneof![Just(UDP), Just(TCP), Just(1), Just(47)];
    let out = (0u32..3, 0u16..90, proto, 0u16..4, prop_oneof![Just(53u16), Just(80)])
        .prop_map(|(port, l4, proto, host, dst)| Step::Out { port, l4, proto, host, dst });
    let step = prop_oneof![
        24 => out,
        3 => (any::<usize>(), 0u16..5, prop_oneof![Just(53u16), Just(80)]).prop_map(|(at, host, dst)| Step::In { at, host, dst }),
        8 => (any::<usize>(), any::<bool>()).prop_map(|(at, established)| Step::End { at, established }),
        1 => (0u32..3, 0u16..90).prop_map(|(port, l4)| Step::Refuse { port, l4 }),
        2 => prop_oneof![1u32..40, 200u32..500].prop_map(|seconds| Step::Wait { seconds }),
        1 => any::<bool>().prop_map(|first| Step::Drain { first }),
        1 => Just(Step::Restart),
    ];
    // A burst of one workload's TCP, so that blocks fill up.
    let burst = (0u32..3, 30u16..90, 0u16..4).prop_map(|(port, count, host)| {
        (0..count).map(|l4| Step::Out { port, l4, proto: TCP, host, dst: 80 }).collect::<Vec<_>>()
    });
    let steps = prop_oneof![12 => step.prop_map(|step| vec![step]), 1 => burst];
    proptest::collection::vec(steps, 1..150).prop_map(|steps| steps.concat())
}

/// What the oracle knows of a mapping.
#[derive(Clone, Debug)]
struct Known {
    inside: Inside,
    outside: Outside,
    /// The remote that it is bound to.
    bound: Option<Outside>,
    reference: MappingRef,
    holds: u32,
    /// Of them, those of connections that were let in.
    unasked: u32,
    until: u32,
    dns: bool,
    remotes: BTreeSet<(u128, u16)>,
}

#[derive(Clone, Debug)]
struct Connection {
    mapping: MappingRef,
    inside: Inside,
    outside: Outside,
    remote: Outside,
    unasked: bool,
}

struct Oracle {
    family: Family,
    world: World,
    known: Vec<Known>,
    connections: Vec<Connection>,
    /// By outside address and L4 port: who had it last, and until when.
    last: BTreeMap<(u128, u16), (u128, u32)>,
    drained: bool,
}

fn portless(proto: u8) -> bool {
    proto == 47
}

impl Oracle {
    fn spec(&self) -> &PoolSpec {
        &self.world.specs[0]
    }

    fn is_draining(&self, address: u128) -> bool {
        self.spec().draining.contains(&unmapped(address))
    }

    fn find(&self, mapping: MappingRef) -> Option<usize> {
        self.known.iter().position(|known| known.reference == mapping)
    }

    /// Forgets what is over. Nothing lives longer or shorter than it should.
    fn tick(&mut self) {
        let now = self.world.now;
        for known in &self.known {
            let lives = known.holds > 0 || known.until > now;
            assert_eq!(self.world.nat.get(known.reference).is_some(), lives, "at {now}: {known:?}");
        }
        let over: Vec<Known> = self.known.extract_if(.., |known| known.holds == 0 && known.until <= now).collect();
        over.iter().for_each(|known| self.ended(known, known.until));
    }

    fn ended(&mut self, known: &Known, at: u32) {
        let place = (known.outside.address, known.outside.l4);
        if !portless(known.inside.proto)
            && self.known.iter().all(|other| (other.outside.address, other.outside.l4) != place)
        {
            self.last.insert(place, (known.inside.uid, at));
        }
    }

    fn wait(&mut self, seconds: u32) {
        for _ in 0..seconds {
            self.world.wait(1);
            self.tick();
        }
    }

    fn out(&mut self, from: &Inside, to: Outside) -> Option<MappingRef> {
        let now = self.world.now;
        let mine = |known: &Known| known.inside == *from && known.bound.is_none_or(|bound| bound == to);
        let idle_drained = |known: &Known| known.holds == 0 && self.is_draining(known.outside.address);
        // A mapping of a draining address that nothing holds ends when somebody would begin anew with it.
        let gone: Vec<Known> = self.known.iter().filter(|known| mine(known) && idle_drained(known)).cloned().collect();
        let exact = self.known.iter().find(|known| mine(known) && known.bound.is_some() && !idle_drained(known));
        let all = self.known.iter().find(|known| mine(known) && known.bound.is_none() && !idle_drained(known));
        let expected = exact.or(all).cloned();
        let mapped = match self.world.out(from, to) {
            Ok(mapped) => mapped,
            Err(refused) => {
                self.refused(from, to, refused, expected.as_ref());
                self.known.retain(|known| self.world.nat.get(known.reference).is_some());
                gone.iter().for_each(|known| self.ended(known, now));
                return None;
            }
        };
        self.known.retain(|known| self.world.nat.get(known.reference).is_some());
        for known in gone {
            if self.find(known.reference).is_none() {
                self.ended(&known, now);
            }
        }
        match expected.filter(|known| known.reference == mapped.mapping) {
            Some(known) => assert_eq!((mapped.outside, mapped.new), (known.outside, false)),
            None => self.begins(from, to, &mapped, all_of(&self.known, from)),
        }
        let at = self.find(mapped.mapping).unwrap();
        let known = &mut self.known[at];
        known.holds += 1;
        known.dns &= to.l4 == 53;
        known.remotes.insert((to.address, to.l4));
        let connection =
            Connection { mapping: mapped.mapping, inside: *from, outside: mapped.outside, remote: to, unasked: false };
        // No two connections look alike from outside.
        let tuple = |it: &Connection| (it.inside.proto, it.outside, it.remote);
        let twin = self.connections.iter().find(|other| tuple(other) == tuple(&connection));
        assert!(
            twin.is_none_or(|twin| twin.inside == *from || portless(from.proto) && twin.inside.uid == from.uid),
            "{twin:?}"
        );
        self.connections.push(connection);
        Some(mapped.mapping)
    }

    /// A new mapping must be one that may be.
    fn begins(&mut self, from: &Inside, to: Outside, mapped: &Mapped, serves_all: bool) {
        assert!(mapped.new);
        let outside = mapped.outside;
        assert!(self.spec().addresses.contains(&unmapped(outside.address)) && !self.is_draining(outside.address));
        let sharers: Vec<&Known> = self
            .known
            .iter()
            .filter(|known| known.outside == outside && known.inside.proto == from.proto && !portless(from.proto))
            .collect();
        if mapped.bound {
            assert!(portless(from.proto) || from.proto == TCP && self.spec().overload && !sharers.is_empty());
            assert!(sharers.iter().all(|known| known.inside.uid == from.uid));
        } else {
            assert!(sharers.is_empty(), "{from:?} got {outside:?} of {sharers:?}");
            assert!(!serves_all, "an inside endpoint has one mapping that serves all");
        }
        if !portless(from.proto) {
            assert!(outside.l4 >= 1024);
            let holder = self.world.nat.lookup(outside.address, outside.l4, None).unwrap().block;
            assert_eq!(holder.uid, from.uid);
            if let Some((uid, at)) = self.last.get(&(outside.address, outside.l4)) {
                assert!(*uid == from.uid || self.world.now >= at + HOLD_S, "{outside:?} was {uid}'s until {at}");
            }
        } else {
            let same = |known: &&Known| known.inside.proto == from.proto && known.outside == outside;
            assert!(!self.known.iter().filter(same).any(|known| known.bound == Some(to)));
        }
        self.known.push(Known {
            inside: *from,
            outside,
            bound: mapped.bound.then_some(to),
            reference: mapped.mapping,
            holds: 0,
            unasked: 0,
            until: 0,
            dns: from.proto == UDP,
            remotes: BTreeSet::new(),
        });
    }

    /// A refusal must have its reason.
    fn refused(&self, from: &Inside, to: Outside, refused: Refused, expected: Option<&Known>) {
        let beside = from.proto == TCP && self.spec().overload;
        assert!(expected.is_none() || beside, "{from:?} has {expected:?} and was refused: {refused:?}");
        let leases: Vec<Lease> = self.world.nat.leases().collect();
        let own = leases.iter().filter(|lease| lease.block.uid == from.uid);
        match refused {
            Refused::PortLimit if !self.drained && !beside => {
                assert_eq!(own.count(), usize::from(*self.spec().blocks.end()));
                let ports =
                    self.known.iter().filter(|known| known.inside.uid == from.uid && known.inside.proto == from.proto);
                assert_eq!(ports.count(), 64 * usize::from(*self.spec().blocks.end()));
            }
            Refused::PortLimit => {}
            Refused::Unsupported(47) => {
                let other = |known: &&Known| known.inside.proto == 47 && known.bound == Some(to);
                assert!(self.known.iter().filter(other).any(|known| known.inside.uid != from.uid || self.drained));
            }
            Refused::Exhausted { .. } => assert!(self.spec().draining.len() == 2, "{leases:?}"),
            other => panic!("{other:?}"),
        }
    }

    fn back(&mut self, at: usize, from: Outside) {
        let Some(known) = self.known.get(at % self.known.len().max(1)).cloned() else { return };
        let from = if portless(known.inside.proto) { Outside { l4: 0, ..from } } else { from };
        let answer = self.world.back(known.inside.proto, known.outside, from);
        let same: Vec<&Known> = self
            .known
            .iter()
            .filter(|other| other.outside == known.outside && other.inside.proto == known.inside.proto)
            .collect();
        let bound = same.iter().find(|other| other.bound == Some(from));
        let Some(meant) = bound.or_else(|| same.iter().find(|other| other.bound.is_none())) else {
            assert_eq!(answer, Err(Unmapped::NoMapping));
            return;
        };
        let passes = match self.spec().filtering {
            Filtering::EndpointIndependent => true,
            Filtering::AddressDependent => meant.remotes.iter().any(|(address, _)| *address == from.address),
            Filtering::AddressAndPortDependent => false,
        };
        if !passes {
            assert_eq!(answer, Err(Unmapped::Filtered), "{meant:?}");
        } else if meant.holds == meant.unasked
            && (self.is_draining(meant.outside.address) || meant.until <= self.world.now)
        {
            assert_eq!(answer, Err(Unmapped::NoMapping));
        } else {
            let found = answer.unwrap();
            assert_eq!((found.inside, found.mapping), (meant.inside, meant.reference));
            let (inside, mapping, outside) = (meant.inside, meant.reference, meant.outside);
            self.connections.push(Connection { mapping, inside, outside, remote: from, unasked: true });
            let at = self.find(mapping).unwrap();
            self.known[at].holds += 1;
            self.known[at].unasked += 1;
            if self.spec().overload && inside.proto == TCP {
                self.known[at].remotes.insert((from.address, from.l4));
            }
        }
    }

    fn end(&mut self, at: usize, how: End) {
        if self.connections.is_empty() {
            return;
        }
        let connection = self.connections.swap_remove(at % self.connections.len());
        let now = self.world.now;
        match connection.unasked {
            true => self.world.end_unasked(connection.mapping, how),
            false => self.world.end(connection.mapping, how),
        }
        let at = self.find(connection.mapping).unwrap();
        let known = &mut self.known[at];
        known.holds -= 1;
        known.unasked -= u32::from(connection.unasked);
        let first = known.until == 0;
        let timer = match known.inside.proto {
            UDP if known.dns => 30,
            UDP => 300,
            TCP if how == End::Established => 7440,
            TCP => 240,
            47 => 600,
            _ => 60,
        };
        // What was refused is no traffic, and makes nothing live longer.
        if how == End::Refused {
            if first && known.holds == 0 {
                let known = self.known.swap_remove(at);
                self.ended(&known, now);
            }
            return;
        }
        known.until = known.until.max(now + timer);
    }

    fn drain(&mut self, first: bool) {
        let address = self.family.pool(if first { 1 } else { 2 });
        self.drained = true;
        self.world.change(|specs| {
            let draining = &mut specs[0].draining;
            match draining.iter().position(|own| *own == address) {
                Some(at) => drop(draining.swap_remove(at)),
                None => draining.push(address),
            }
        });
    }

    fn restart(&mut self) {
        let adopted = self.world.restart(|_| Claim::Keep);
        assert_eq!((adopted.kept as usize, adopted.forgotten), (self.known.len(), 0));
        for connection in &self.connections {
            let Connection { mapping, inside, outside, remote, unasked } = connection;
            let held = self.world.nat.hold(&self.world.pools, *mapping, inside, *outside, *remote, *unasked);
            assert!(held, "{connection:?}");
        }
        for known in &mut self.known {
            let mine = self.connections.iter().filter(|connection| connection.mapping == known.reference);
            known.remotes = mine.map(|connection| (connection.remote.address, connection.remote.l4)).collect();
            known.remotes.extend(known.bound.map(|bound| (bound.address, bound.l4)));
            known.dns = false;
        }
    }

    /// Every workload within its limits, on one address unless one was drained.
    fn check(&self) {
        let leases: Vec<Lease> = self.world.nat.leases().collect();
        let entries: Vec<Entry> = self.world.nat.entries().collect();
        assert_eq!(entries.len(), self.known.len());
        for workload in &self.spec().workloads {
            let own: Vec<&Lease> = leases.iter().filter(|lease| lease.block.uid == workload.uid).collect();
            let addresses: BTreeSet<u128> = own.iter().map(|lease| lease.block.address).collect();
            for address in &addresses {
                let blocks = own.iter().filter(|lease| lease.block.address == *address);
                assert!(blocks.count() <= usize::from(*self.spec().blocks.end()));
            }
            assert!(addresses.len() <= 1 || self.drained);
        }
    }
}

/// Whether an inside endpoint has a mapping that serves all, which is not on its way out.
fn all_of(known: &[Known], from: &Inside) -> bool {
    known.iter().any(|known| known.inside == *from && known.bound.is_none())
}

fn run(family: Family, filtering: Filtering, overload: bool, blocks: u16, steps: &[Step]) {
    let spec = PoolSpec {
        addresses: vec![family.pool(1), family.pool(2)],
        workloads: (0..3).map(|port| Workload { port, uid: 100 + u128::from(port) }).collect(),
        blocks: 1..=blocks,
        filtering,
        overload,
        ..spec()
    };
    let world = World::new(spec);
    let mut oracle =
        Oracle { family, world, known: vec![], connections: vec![], last: BTreeMap::new(), drained: false };
    for step in steps {
        match *step {
            Step::Out { port, l4, proto, host, dst } => {
                let proto = if proto == 1 { family.icmp } else { proto };
                let (l4, dst) = if portless(proto) { (0, 0) } else { (2000 + l4, dst) };
                oracle.out(&inside(family, proto, port, l4), remote(family, host, dst));
            }
            Step::In { at, host, dst } => oracle.back(at, remote(family, host, dst)),
            Step::End { at, established } => {
                oracle.end(at, if established { End::Established } else { End::Closed });
            }
            Step::Refuse { port, l4 } => {
                if oracle.out(&inside(family, UDP, port, 2000 + l4), remote(family, 9, 80)).is_some() {
                    oracle.end(oracle.connections.len() - 1, End::Refused);
                }
            }
            Step::Wait { seconds } => oracle.wait(seconds),
            Step::Drain { first } => oracle.drain(first),
            Step::Restart => oracle.restart(),
        }
        oracle.check();
    }
    while !oracle.connections.is_empty() {
        oracle.end(0, End::Closed);
    }
    oracle.wait(700);
    if !oracle.known.is_empty() {
        oracle.world.wait(8000);
    }
    oracle.world.wait(2 * HOLD_S + 2);
    let stats = oracle.world.nat.stats();
    assert_eq!((stats.mappings, stats.blocks), (0, 0));
    assert!(oracle.world.nat.addresses().all(|address| address.leased == 0 && address.used == [0; 3]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_two_workloads_share_and_everything_comes_back(
        v6 in any::<bool>(),
        overload in any::<bool>(),
        blocks in 1u16..=2,
        filtering in prop_oneof![
            Just(Filtering::EndpointIndependent),
            Just(Filtering::AddressDependent),
            Just(Filtering::AddressAndPortDependent),
        ],
        steps in steps(),
    ) {
        run(FAMILIES[usize::from(v6)], filtering, overload, blocks, &steps);
    }
}
