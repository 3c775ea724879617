//! What a mapping costs a new connection: `cargo bench -p hostweave-nat`. A few seconds; a table of times, and the ratio of many pools to
//! one, which is to be about 1.
//!
//! `cargo bench -p hostweave-nat -- count` makes 100,000 mappings and nothing else: for callgrind, with
//! `--toggle-collect='*Nat*outbound*'`.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use hostweave_nat::*;

/// Workloads, and addresses of all pools together.
const WORKLOADS: u32 = 1000;
/// Mappings of each.
const EACH: u16 = 100;
const ROUNDS: u32 = 7;

struct Bench {
    nat: Nat,
    pools: Pools,
    insides: Vec<Inside>,
    _folder: tempfile::TempDir,
}

impl Bench {
    /// The same addresses and workloads, in one pool or in many.
    fn new(pools: u32) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let options = Options { capacity: 1 << 18, boot: 1, now: 0, timers: Timers::default(), seed: None };
        let nat = Nat::open(&folder.path().join("nat"), &options).expect("a file");
        nat.make_available(nat.capacity());
        let of = |pool: u32| (0..WORKLOADS).filter(move |i| i % pools == pool);
        let specs: Vec<PoolSpec> = (0..pools)
            .map(|pool| PoolSpec {
                name: format!("pool-{pool:04}"),
                addresses: of(pool).map(|i| IpAddr::from(Ipv4Addr::from(0xc633_0000 + i))).collect(),
                draining: vec![],
                workloads: of(pool).map(|port| Workload { port, uid: 1 + u128::from(port) }).collect(),
                in_family: Default::default(),
                block_size: 64,
                blocks: 2..=8,
                filtering: Filtering::default(),
                overload: false,
                limits: Limits::default(),
            })
            .collect();
        let pools = Pools::compile(&nat, &specs, 0).expect("pools");
        // Each connection comes from another workload than the one before, and from an L4 port far from its last.
        let inside = |i: u32| {
            let port = i % WORKLOADS;
            let address = 0xffff_0a40_0000 + u128::from(port);
            let l4 = 1024 + (i / WORKLOADS * 7919 % 60_000) as u16;
            Inside { port, uid: 1 + u128::from(port), vni: 4096, address, l4, proto: 17 }
        };
        let insides = (0..WORKLOADS * u32::from(EACH)).map(inside).collect();
        Self { nat, pools, insides, _folder: folder }
    }

    /// Time for all connections to one remote.
    fn connect(&self, host: u32, taken: &mut Vec<MappingRef>) -> Duration {
        let remote = Outside { address: 0xffff_cb00_7100 + u128::from(host), l4: 443 };
        taken.clear();
        let start = Instant::now();
        for inside in &self.insides {
            let mapped = self.nat.outbound(&self.pools, black_box(inside), remote, 1).expect("there is room");
            taken.push(mapped.mapping);
        }
        start.elapsed()
    }

    fn end(&self, taken: &[MappingRef], how: End) {
        taken.iter().for_each(|mapping| self.nat.release(*mapping, 1, 1, how));
    }
}

fn main() {
    if std::env::args().any(|argument| argument == "count") {
        let bench = Bench::new(1);
        bench.connect(1, &mut Vec::with_capacity(bench.insides.len()));
        return;
    }
    println!("{:<12} {:>16} {:>16} {:>16}", "pools", "new, ns", "again, ns", "release, ns");
    let benches = [1, WORKLOADS].map(|pools| (pools, Bench::new(pools)));
    let mut best = [[f64::MAX; 3]; 2];
    // Turn by turn, so that what the machine does besides meets both.
    for round in 0..ROUNDS {
        for ((_, bench), best) in benches.iter().zip(&mut best) {
            let (mut first, mut second) =
                (Vec::with_capacity(bench.insides.len()), Vec::with_capacity(bench.insides.len()));
            let new = bench.connect(1, &mut first);
            let again = bench.connect(2, &mut second);
            let start = Instant::now();
            bench.end(&first, End::Refused);
            let release = start.elapsed();
            bench.end(&second, End::Refused);
            // The first round gives blocks out.
            if round > 0 {
                for (best, time) in best.iter_mut().zip([new, again, release]) {
                    *best = best.min(time.as_secs_f64() * 1e9 / bench.insides.len() as f64);
                }
            }
        }
    }
    for ((pools, _), [new, again, release]) in benches.iter().zip(best) {
        println!("{pools:<12} {new:>16.1} {again:>16.1} {release:>16.1}");
    }
    println!("\n{WORKLOADS} pools to 1: {:.2}", best[1][0] / best[0][0]);
}
