//! Ports that nobody uses cost nothing: the workers sleep, and a kick wakes them.

use std::time::{Duration, Instant};

use hostweave::fabric::WorkerReport;
use hostweave_guest::{Guest, features};
use nix::sys::resource::{UsageWho, getrusage};

use crate::support::{Host, PATIENCE, Up, addresses, eventually};

/// CPU time of this process.
fn cpu_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let both = [usage.user_time(), usage.system_time()];
    both.iter().map(|time| Duration::new(time.tv_sec() as u64, time.tv_usec() as u32 * 1_000)).sum()
}

#[test]
fn two_hundred_idle_ports_leave_the_workers_asleep_and_two_of_them_talk() {
    let mut host = Host::alone(2);
    let specs: Vec<_> = (0..200u8).map(|n| host.spec("default", &format!("p{n}"), 10 + n, 1)).collect();
    host.desired.ports = specs.clone().into();
    host.apply();
    let mut guests: Vec<Guest> =
        specs.iter().map(|spec| host.guest(spec).without(features::ALL_GSO).ring_size(64).up()).collect();
    let asleep = |before: &[WorkerReport], after: &[WorkerReport]| {
        before.iter().zip(after).all(|(before, after)| before.sleeps == after.sleeps)
    };
    let slept_at_least = |part: Duration| {
        let before = host.fabric.worker_reports();
        std::thread::sleep(part);
        asleep(&before, &host.fabric.worker_reports())
    };
    eventually("workers fall asleep and stay so", || slept_at_least(Duration::from_millis(100)));
    let (start, used) = (Instant::now(), cpu_time());
    std::thread::sleep(Duration::from_secs(1));
    let share = (cpu_time() - used).as_secs_f64() / start.elapsed().as_secs_f64();
    assert!(share < 0.05, "{:.1} % of a CPU with nothing to do", share * 100.0);
    // Kicks wake them.
    let mut b = guests.pop().unwrap();
    let mut a = guests.swap_remove(0);
    host.settle(&mut a, &specs[0]);
    host.settle(&mut b, &specs[199]);
    b.tcp_echo_server(7).unwrap();
    let b = b.spawn("b", false).unwrap();
    for address in addresses(&specs[199]) {
        for _ in 0..5 {
            a.ping(address, PATIENCE).unwrap();
            // Long enough for the workers to fall asleep between two pings.
            std::thread::sleep(Duration::from_millis(5));
        }
        a.tcp_transfer(address, 7, 200_000, PATIENCE).unwrap();
    }
    drop(b);
    drop(a);
    eventually("workers fall asleep again", || slept_at_least(Duration::from_millis(100)));
    assert!(host.fabric.worker_reports().iter().all(|worker| worker.asleep_s > 0.5));
}
