//! A NAT for tests: a file of its own, a clock that the test turns, two families at a time.
#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses what it needs; a test may panic")]

use std::net::IpAddr;
use std::path::PathBuf;

use hostweave_nat::*;

/// The start of time.
pub const T0: u32 = 1000;

pub const UDP: u8 = 17;
pub const TCP: u8 = 6;

/// One family of addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Family {
    pub index: usize,
    /// Protocol number of its ICMP.
    pub icmp: u8,
}

pub const FAMILIES: [Family; 2] = [Family { index: V4, icmp: 1 }, Family { index: V6, icmp: 58 }];

impl Family {
    pub fn inside(&self, host: u8) -> u128 {
        key(&self.pick(format!("10.64.0.{host}"), format!("fd00:64::{host:x}")))
    }

    pub fn pool(&self, host: u8) -> IpAddr {
        self.pick(format!("198.51.100.{host}"), format!("2001:db8:100::{host:x}")).parse().unwrap()
    }

    pub fn remote(&self, host: u16) -> u128 {
        key(&self.pick(format!("203.0.{}.{}", host >> 8, host & 255), format!("2001:db8:200::{host:x}")))
    }

    fn pick(&self, v4: String, v6: String) -> String {
        if self.index == V4 { v4 } else { v6 }
    }
}

fn key(text: &str) -> u128 {
    mapped(text.parse().unwrap())
}

/// A NAT and its pools.
pub struct World {
    pub nat: Nat,
    pub pools: Pools,
    pub specs: Vec<PoolSpec>,
    pub folder: tempfile::TempDir,
    pub now: u32,
    pub events: Vec<NatEvent>,
}

pub fn options(now: u32) -> Options {
    Options { capacity: 1 << 14, boot: 7, now, timers: Timers::default(), seed: Some(1) }
}

/// A pool with two addresses of each family that serves ports 0 to 9, whose uids are 100 to 109.
pub fn spec() -> PoolSpec {
    PoolSpec {
        name: "pool".into(),
        addresses: FAMILIES.iter().flat_map(|family| [family.pool(1), family.pool(2)]).collect(),
        draining: vec![],
        workloads: (0..10).map(|port| Workload { port, uid: 100 + u128::from(port) }).collect(),
        in_family: Default::default(),
        block_size: 64,
        blocks: 1..=4,
        filtering: Filtering::AddressAndPortDependent,
        overload: false,
        limits: Limits::default(),
    }
}

impl World {
    pub fn new(spec: PoolSpec) -> Self {
        Self::with(vec![spec], &options(T0))
    }

    pub fn with(specs: Vec<PoolSpec>, options: &Options) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let nat = open(folder.path().join("nat"), options);
        let pools = Pools::compile(&nat, &specs, options.now).unwrap();
        nat.adopt(&pools, options.now, |_| Claim::Keep);
        Self { nat, pools, specs, folder, now: options.now, events: vec![] }
    }

    /// Publishes other pools.
    pub fn change(&mut self, change: impl FnOnce(&mut Vec<PoolSpec>)) {
        change(&mut self.specs);
        self.pools = Pools::compile(&self.nat, &self.specs, self.now).unwrap();
    }

    /// The daemon dies and comes back.
    pub fn restart(&mut self, claim: impl FnMut(&Entry) -> Claim) -> Adopted {
        self.restart_with(&options(self.now), claim)
    }

    pub fn restart_with(&mut self, options: &Options, claim: impl FnMut(&Entry) -> Claim) -> Adopted {
        self.nat = open(self.folder.path().join("nat"), options);
        self.pools = Pools::compile(&self.nat, &self.specs, self.now).unwrap();
        self.nat.adopt(&self.pools, self.now, claim)
    }

    pub fn out(&self, inside: &Inside, remote: Outside) -> Result<Mapped, Refused> {
        self.nat.outbound(&self.pools, inside, remote, self.now)
    }

    pub fn to(&self, inside: &Inside, remote: Outside) -> Mapped {
        self.out(inside, remote).unwrap()
    }

    pub fn back(&self, proto: u8, to: Outside, from: Outside) -> Result<Mapping, Unmapped> {
        self.nat.inbound(&self.pools, proto, to, from, self.now)
    }

    pub fn end(&self, mapping: MappingRef, how: End) {
        self.nat.release(mapping, self.now, self.now, how);
    }

    /// As [`World::end`], of a connection that was let in and answered just now.
    pub fn end_unasked(&self, mapping: MappingRef, how: End) {
        self.nat.release_unasked(mapping, Some(self.now), self.now, how);
    }

    /// Time passes, second by second.
    pub fn wait(&mut self, seconds: u32) {
        for _ in 0..seconds {
            self.now += 1;
            while self.nat.expire(self.now, 1 << 16, |event| self.events.push(event)) {}
        }
    }

    /// Blocks that came and went since the last time.
    pub fn events(&mut self) -> Vec<NatEvent> {
        self.nat.expire(self.now, 0, |event| self.events.push(event));
        std::mem::take(&mut self.events)
    }
}

fn open(path: PathBuf, options: &Options) -> Nat {
    let nat = Nat::open(&path, options).unwrap();
    nat.make_available(nat.capacity());
    nat
}

/// An endpoint of port `port` (uid 100 more) with an address that says so.
pub fn inside(family: Family, proto: u8, port: u32, l4: u16) -> Inside {
    Inside { port, uid: 100 + u128::from(port), vni: 4096, address: family.inside(10 + port as u8), l4, proto }
}

pub fn remote(family: Family, host: u16, l4: u16) -> Outside {
    Outside { address: family.remote(host), l4 }
}
