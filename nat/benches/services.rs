//! What 10,000 Services with 100,000 backends cost: `cargo bench -p hostweave-nat --bench services`. Some ten seconds; a table of
//! times and sizes. No two of them have the same backends, so no table is shared.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hostweave_nat::service::hash::of_tuple;
use hostweave_nat::service::{Asking, Backend, FrontendSpec, Lookup, Refusal, Services};

const SERVICES: u32 = 10_000;
const BACKENDS: u32 = 10;
const ROUNDS: u32 = 101;
const TCP: u8 = 6;

/// `10.0.0.0` and on, IPv4-mapped.
fn address(base: u32, i: u32) -> u128 {
    0xffff_0000_0000 | u128::from(base + i)
}

fn spec(i: u32, rename: Option<u32>) -> FrontendSpec {
    let backend = |k: u32| {
        let name = match rename {
            Some(round) if k == 0 => format!("ns-{}/web-{i}-{k}-{round}", i % 100),
            _ => format!("ns-{}/web-{i}-{k}", i % 100),
        };
        let address = address(0x0a00_0000, i * BACKENDS + k);
        Backend { name: name.into(), address, l4: Some(8080), weight: 1, active: true, ejected: false }
    };
    FrontendSpec {
        service: format!("ns-{}/web-{i}", i % 100).into(),
        port_name: "http".into(),
        scope: 100,
        address: address(0x0a60_0000, i),
        proto: TCP,
        l4: 80..=80,
        vni: 100,
        sources: Arc::default(),
        affinity_s: None,
        backends: (0..BACKENDS).map(backend).collect(),
        begun: Default::default(),
        refusal: Refusal::Reject,
    }
}

fn median(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort_unstable();
    (times[times.len() / 2], times[times.len() - 1])
}

/// Kilobytes of this process in memory.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

fn main() {
    let specs: Vec<FrontendSpec> = (0..SERVICES).map(|i| spec(i, None)).collect();
    let before = resident();
    let start = Instant::now();
    let mut services = Services::compile(&specs, None);
    println!("compile all                    {:>12.1?}", start.elapsed());
    let sizes = services.sizes();
    println!("  {} addresses, {} tables, {} octets of entries", sizes.addresses, sizes.tables, sizes.octets);
    println!("  {} MB more in memory", (resident() - before) / 1000);
    let start = Instant::now();
    black_box(Services::compile(&specs, Some(&services)));
    println!("compile all again, no change   {:>12.1?}", start.elapsed());
    let (mut replace, mut free, mut compile) = (vec![], vec![], vec![]);
    for round in 0..ROUNDS {
        let changed = [spec(round * 97 % SERVICES, Some(round))];
        let start = Instant::now();
        let next = services.replace(&changed);
        replace.push(start.elapsed());
        let old = std::mem::replace(&mut services, next);
        let start = Instant::now();
        drop(old);
        free.push(start.elapsed());
        let start = Instant::now();
        services.replace(&[FrontendSpec { refusal: Refusal::Drop, ..changed[0].clone() }]);
        compile.push(start.elapsed());
    }
    let line = |name, times| {
        let (median, most) = median(times);
        println!("{name} {median:>12.1?} {most:>12.1?} at most");
    };
    line("replace one backend's name    ", replace);
    line("free what was before          ", free);
    line("replace one, backends the same", compile);
    lookups(&services);
}

/// What a new connection pays.
fn lookups(services: &Services) {
    const COUNT: u32 = 1 << 20;
    let start = Instant::now();
    for i in 0..COUNT {
        black_box(services.lookup(100, address(0x0b00_0000, i % SERVICES), TCP, 80));
    }
    println!("address that is no Service's   {:>12.1?} each", start.elapsed() / COUNT);
    let start = Instant::now();
    for i in 0..COUNT {
        let dst = address(0x0a60_0000, i.wrapping_mul(7919) % SERVICES);
        let Lookup::Frontend(frontend) = services.lookup(100, dst, TCP, 80) else { panic!("not found") };
        let hash = of_tuple(1, dst, i as u16, 80, TCP);
        let asking = Asking { hash, client: 1, l4: 80, attempt: 0, now: 1 };
        black_box(frontend.choose(&asking).expect("a backend"));
    }
    println!("look up and choose, at random  {:>12.1?} each", start.elapsed() / COUNT);
}
