//! Checks against guests that are stacks of their own, and against a prober that answers as told (time is paused there).

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::timeout;

use super::check::{Checking, Checks, Finding};
use super::*;
use crate::services::lab::Lab;
use crate::services::sockets::Sockets;
use crate::services::testing::{A_V4, A_V6, B_V4, FREE_V6};

const LIMIT: Duration = Duration::from_secs(30);

fn spec(check: HealthCheck, interval_ms: u32, timeout_ms: u32) -> Arc<HealthSpec> {
    Arc::new(HealthSpec { check, l4: None, interval_ms, timeout_ms, rise: 2, fall: 3 })
}

fn target(address: IpAddr, l4: u16, check: HealthCheck) -> Target {
    Target::new("default".into(), address, Some(l4), spec(check, 5_000, 2_000)).unwrap()
}

/// Asks once.
async fn once(sockets: &Sockets, target: &Target) -> Finding {
    let checks = Checks::new(sockets.clone());
    timeout(LIMIT, checks.check(target, false)).await.expect("a check ends").finding
}

fn udp(expect: &[u8]) -> HealthCheck {
    HealthCheck::Udp { send: b"ping".to_vec(), expect: expect.to_vec() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_listens_passes_and_its_program_never_hears_of_it() {
    let lab = Lab::new();
    let guest = lab.guest(A_V4, A_V6);
    let listener = guest.listen("default", 80).unwrap();
    for address in [IpAddr::from(A_V4), A_V6.into()] {
        for _ in 0..300 {
            // More than the listener's queue holds.
            assert_eq!(
                once(&lab.sockets, &target(address, 80, HealthCheck::Tcp)).await,
                Ok("connection accepted".into())
            );
        }
        assert_eq!(once(&lab.sockets, &target(address, 81, HealthCheck::Tcp)).await, Err("connection refused".into()));
    }
    let accepted = timeout(Duration::from_millis(100), listener.accept()).await;
    assert!(accepted.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn echo_and_datagrams_over_both_families() {
    let lab = Lab::new();
    let guest = lab.guest(A_V4, A_V6);
    let server = guest.udp_bind("default", 9000).unwrap();
    tokio::spawn(async move {
        let mut data = [0; 64];
        while let Ok(asked) = server.recv_from(&mut data).await {
            assert_eq!(&data[..asked.len], b"ping");
            let to = (asked.peer.address, asked.peer.port).into();
            server.send_to(b"pong\x00", Some(asked.local), to).await.unwrap();
        }
    });
    for address in [IpAddr::from(A_V4), A_V6.into()] {
        let check = |check| target(address, 9000, check);
        assert_eq!(once(&lab.sockets, &check(HealthCheck::Icmp)).await, Ok("echo reply".into()));
        for expect in [&b""[..], b"po", b"pong\x00"] {
            assert_eq!(once(&lab.sockets, &check(udp(expect))).await, Ok("expected answer".into()));
        }
        let wrong = "unexpected answer of 5 octets: \"pong\\x00\"";
        assert_eq!(once(&lab.sockets, &check(udp(b"pong!"))).await, Err(wrong.into()));
        assert_eq!(once(&lab.sockets, &check(udp(b"pong\x00\x00"))).await, Err(wrong.into()));
        // Nobody is bound there: ICMP says so.
        let refused = once(&lab.sockets, &target(address, 9001, udp(b""))).await.unwrap_err();
        assert!(refused.starts_with("port unreachable (ICMP"), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_is_a_failure_at_the_timeout_and_says_what_was_waited_for() {
    let lab = Lab::new();
    for address in [IpAddr::from(B_V4), FREE_V6.into()] {
        for (check, reason) in [
            (HealthCheck::Tcp, "no answer to a SYN within 200ms"),
            (HealthCheck::Icmp, "no echo reply within 200ms"),
            (udp(b""), "no answer to the datagram within 200ms"),
        ] {
            let target = Target::new("default".into(), address, Some(80), spec(check, 200, 200)).unwrap();
            assert_eq!(once(&lab.sockets, &target).await, Err(reason.into()));
        }
    }
    let elsewhere = Target::new("none".into(), A_V4.into(), Some(80), spec(HealthCheck::Tcp, 200, 200)).unwrap();
    assert_eq!(once(&lab.sockets, &elsewhere).await, Err("the network is gone".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_syn_is_sent_again() {
    let lab = Lab::new();
    let guest = lab.guest(A_V4, A_V6);
    let _listener = guest.listen("default", 80).unwrap();
    lab.lose(1);
    assert!(once(&lab.sockets, &target(A_V4.into(), 80, HealthCheck::Tcp)).await.is_ok());
    assert_eq!(lab.lost(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_stops_and_one_that_starts_again() {
    let lab = Lab::new();
    let guest = lab.guest(A_V4, A_V6);
    let listener = guest.listen("default", 80).unwrap();
    let (health, mut changes) = Health::new(lab.sockets.clone());
    let check =
        |address: IpAddr| Target::new("default".into(), address, Some(80), spec(HealthCheck::Tcp, 100, 2_000)).unwrap();
    let targets = [check(A_V4.into()), check(A_V6.into()), check(B_V4.into())];
    health.replace(targets.clone());
    let mut next = async |count| {
        let mut seen = Vec::new();
        while seen.len() < count {
            let change = timeout(LIMIT, changes.recv()).await.unwrap().unwrap();
            seen.push((change.target.address(), change.healthy, change.reason.to_string()));
        }
        seen.sort();
        seen
    };
    let of_guest =
        |healthy, reason: &str| [A_V4.into(), A_V6.into()].map(|address| (address, healthy, reason.to_owned()));
    let mut expected = of_guest(true, "connection accepted").to_vec();
    expected.insert(1, (B_V4.into(), false, "no answer to a SYN within 2s".to_owned()));
    assert_eq!(next(3).await, expected);
    drop(listener);
    assert_eq!(next(2).await, of_guest(false, "connection refused"));
    assert_eq!(health.verdict(&targets[0]), Some(false));
    let _listener = guest.listen("default", 80).unwrap();
    assert_eq!(next(2).await, of_guest(true, "connection accepted"));
    lab.freeze(&[A_V4.into(), A_V6.into()]);
    assert_eq!(next(2).await, of_guest(false, "no answer to a SYN within 2s"));
    let report = health.target(&targets[1]).unwrap();
    assert_eq!(Vec::from_iter(report.history.iter().map(|entry| entry.healthy)), [true, false, true, false]);
    let totals = health.report();
    assert_eq!((totals.healthy, totals.unhealthy, totals.unknown), (0, 3, 0));
    health.replace([]);
    assert_eq!((health.report(), health.verdict(&targets[0])), (HealthReport::default(), None));
}

/// Answers as told.
#[derive(Default)]
struct Told {
    fails: AtomicBool,
    hangs: AtomicBool,
    /// There is no room for it for longer than its timeout.
    waits: AtomicBool,
    /// Checks of those that said nothing the last time.
    silent: AtomicUsize,
    asked: AtomicUsize,
    under_way: AtomicUsize,
}

impl Check for Told {
    fn check<'a>(&'a self, target: &'a Target, silent: bool) -> Checking<'a> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.silent.fetch_add(silent.into(), Ordering::Relaxed);
        Box::pin(async move {
            let watch = check::Stopwatch::new();
            let finding = self.answer(target, &watch).await;
            watch.over(finding)
        })
    }
}

impl Told {
    async fn answer(&self, target: &Target, watch: &check::Stopwatch) -> Finding {
        if self.waits.load(Ordering::Relaxed) {
            tokio::time::sleep(2 * target.timeout()).await;
        }
        watch.begin();
        self.under_way.fetch_add(1, Ordering::Relaxed);
        let deadline = check::Deadline::new(target);
        let answer = async {
            if self.hangs.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        let finding = deadline.step("no answer", answer).await;
        self.under_way.fetch_sub(1, Ordering::Relaxed);
        finding?;
        if self.fails.load(Ordering::Relaxed) { Err("told to fail".into()) } else { Ok("told so".into()) }
    }
}

fn some(count: u32) -> Vec<Target> {
    let spec = spec(HealthCheck::Tcp, 5_000, 2_000);
    let address = |index: u32| IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 + index));
    (0..count)
        .map(|index| Target::new("default".into(), address(index), Some(80), Arc::clone(&spec)).unwrap())
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_falls_silent_is_out_after_interval_times_fall_and_the_timeout() {
    let told = Arc::new(Told::default());
    let (health, mut changes) = Health::with(Arc::clone(&told) as Prober);
    health.replace(some(50));
    for _ in 0..50 {
        assert!(changes.recv().await.unwrap().healthy);
    }
    // At any time between two checks.
    tokio::time::sleep(Duration::from_millis(3_210)).await;
    told.hangs.store(true, Ordering::Relaxed);
    let frozen = Instant::now();
    let mut last = Duration::ZERO;
    for _ in 0..50 {
        let change = changes.recv().await.unwrap();
        assert_eq!((change.healthy, &*change.reason), (false, "no answer within 2s"));
        last = frozen.elapsed();
        assert!(last >= Duration::from_secs(2 * 5 * 15 / 16 + 2), "after {last:?}");
    }
    assert!(last <= Duration::from_secs(3 * 5 + 2), "after {last:?}");
}

/// A host full of frozen guests has others wait, too: that is no silence of theirs.
#[tokio::test(start_paused = true)]
async fn what_a_check_waits_for_room_is_no_silence_of_the_backend() {
    let told = Arc::new(Told::default());
    let (health, _changes) = Health::with(Arc::clone(&told) as Prober);
    told.fails.store(true, Ordering::Relaxed);
    told.waits.store(true, Ordering::Relaxed);
    health.replace(some(1));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(told.asked.load(Ordering::Relaxed) > 5);
    assert_eq!(told.silent.load(Ordering::Relaxed), 0);
    let target = &some(1)[0];
    assert_eq!(health.target(target).unwrap().last.unwrap().took, Duration::ZERO);
    // One that says nothing is silent.
    told.waits.store(false, Ordering::Relaxed);
    told.hangs.store(true, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(told.silent.load(Ordering::Relaxed) > 1);
}

#[tokio::test(start_paused = true)]
async fn many_targets_spread_over_the_interval() {
    let told = Arc::new(Told::default());
    let (health, _changes) = Health::with(Arc::clone(&told) as Prober);
    health.replace(some(10_000));
    assert_eq!(health.report().unknown, 10_000);
    tokio::time::sleep(Duration::from_secs(20)).await;
    // 207 are expected, and 20 more when the window sees eleven steps of `schedule::together` instead of ten; chance adds 15 or so
    // (its root), so the bounds are six of those away.
    for _ in 0..50 {
        let before = told.asked.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(100)).await;
        let asked = told.asked.load(Ordering::Relaxed) - before;
        assert!((100..=330).contains(&asked), "{asked} in 100 ms");
    }
    assert_eq!(health.report().healthy, 10_000);
}

#[tokio::test(start_paused = true)]
async fn what_stays_is_not_disturbed_and_what_goes_is_not_asked_any_more() {
    let told = Arc::new(Told::default());
    let (health, mut changes) = Health::with(Arc::clone(&told) as Prober);
    let mut targets = some(3);
    health.replace(targets.clone());
    assert_eq!(health.verdict(&targets[0]), None);
    for _ in 0..3 {
        changes.recv().await.unwrap();
    }
    let checks = |index: usize, targets: &[Target]| health.target(&targets[index]).map(|report| report.checks);
    assert_eq!(checks(0, &targets), Some(1));
    // The same again, twice in the list; one that hangs in its check goes.
    told.hangs.store(true, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(5_010)).await;
    assert_eq!(told.under_way.load(Ordering::Relaxed), 3);
    let gone = targets.remove(2);
    health.replace(targets.iter().chain(&targets).cloned());
    tokio::task::yield_now().await;
    told.hangs.store(false, Ordering::Relaxed);
    assert_eq!((health.target(&gone), checks(0, &targets)), (None, Some(1)));
    let asked = told.asked.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(50)).await;
    let rounds = told.asked.load(Ordering::Relaxed) - asked;
    assert!((18..=22).contains(&rounds), "{rounds} rounds of two targets");
    assert!(changes.try_recv().is_err(), "nobody's verdict changed");
    // Another check of the same backend: its verdict goes on, and is looked at anew at once.
    told.fails.store(true, Ordering::Relaxed);
    let other = spec(HealthCheck::Icmp, 1_000, 500);
    let other = Arc::new(HealthSpec { check: HealthCheck::Tcp, ..(*other).clone() });
    let changed = Target::new("default".into(), targets[0].address(), Some(80), other).unwrap();
    health.replace([changed.clone(), targets[1].clone()]);
    assert_eq!((health.verdict(&changed), health.verdict(&targets[0])), (Some(true), None));
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    let report = health.target(&changed).unwrap();
    assert_eq!((report.healthy, report.history.len()), (Some(false), 2));
    // A second Service that asks something else of it begins without a verdict.
    let beside = Target::new("default".into(), targets[1].address(), Some(80), spec(udp(b""), 5_000, 2_000)).unwrap();
    health.replace([targets[1].clone(), beside.clone()]);
    assert_eq!(health.verdict(&beside), None);
    drop(health);
    let asked = told.asked.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(50)).await;
    assert_eq!(told.asked.load(Ordering::Relaxed), asked);
}

#[tokio::test(start_paused = true)]
async fn what_clients_see_speeds_checks_up_and_decides_nothing() {
    let told = Arc::new(Told::default());
    let (health, mut changes) = Health::with(Arc::clone(&told) as Prober);
    let targets = some(2);
    health.replace(targets.clone());
    for _ in 0..2 {
        changes.recv().await.unwrap();
    }
    let suspect = |index: usize| health.suspect([("default", targets[index].address()), ("default", A_V4.into())]);
    // A hostile client may say what it likes.
    let asked = told.asked.load(Ordering::Relaxed);
    for _ in 0..1_000 {
        suspect(0);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let checks = told.asked.load(Ordering::Relaxed) - asked;
    assert!((85..=95).contains(&checks), "{checks} in 50 s: eight an interval of one, one of the other");
    assert!(changes.try_recv().is_err());
    assert_eq!(health.target(&targets[1]).unwrap().contrary, 0);
    // One that is down indeed is out soon, the other in its time.
    told.fails.store(true, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let down = Instant::now();
    suspect(0);
    let change = changes.recv().await.unwrap();
    assert_eq!((&*change.target, change.healthy), (&targets[0], false));
    assert!(down.elapsed() <= Duration::from_secs(2), "{:?}", down.elapsed());
    assert_eq!(&*changes.recv().await.unwrap().target, &targets[1]);
    assert!(down.elapsed() > Duration::from_secs(9), "{:?}", down.elapsed());
    // Nobody is asked more often to come back.
    suspect(0);
    let asked = told.asked.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(25)).await;
    assert!(told.asked.load(Ordering::Relaxed) - asked <= 11);
}

#[test]
fn targets_without_a_port_to_ask() {
    let new = |l4, own, check| {
        let spec = HealthSpec { l4, ..(*spec(check, 5_000, 2_000)).clone() };
        Target::new("default".into(), A_V4.into(), own, Arc::new(spec)).map(|target| target.l4())
    };
    assert_eq!(new(None, None, HealthCheck::Tcp), None);
    assert_eq!(new(None, Some(0), HealthCheck::Tcp), None);
    assert_eq!(new(None, Some(80), HealthCheck::Tcp), Some(80));
    assert_eq!(new(Some(8080), Some(80), HealthCheck::Tcp), Some(8080));
    assert_eq!(new(Some(8080), None, HealthCheck::Icmp), Some(0));
}
