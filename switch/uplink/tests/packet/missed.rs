//! Frames that the kernel drops because nobody reads them as fast as they come.

use std::net::{IpAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hostweave_uplink::netlink::interfaces::send_drops;

use super::{Netns, PATIENCE, Scene, queues};

/// Neighbours that do not answer, one of each family.
const SILENT: [&str; 2] = ["192.0.2.77", "2001:db8::77"];

/// Has `a` send datagrams by its `eth0` to a neighbour, who need not be there, until it is `enough`.
fn flood(a: &Netns, neighbour: &str, mut enough: impl FnMut() -> bool) {
    a.ip(&format!("neigh replace {neighbour} lladdr 02:00:00:00:00:77 dev eth0"));
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, address) = (Arc::clone(&stop), neighbour.parse::<IpAddr>().unwrap());
    let sender = a.inside(move || {
        let socket = UdpSocket::bind(if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
        while !stopped.load(Ordering::Relaxed) {
            // A queue that is full is what is wanted.
            let _ = socket.send_to(&[0; 1_400], (address, 9));
        }
    });
    let end = Instant::now() + PATIENCE;
    let mut done = enough();
    while !done && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
        done = enough();
    }
    stop.store(true, Ordering::Relaxed);
    sender.join().unwrap();
    assert!(done, "{neighbour}");
}

pub fn by_sockets() {
    let scene = Scene::new("missed");
    let sockets = scene.host.open_group("left", None, 2);
    scene.addresses("eth0");
    let take = || sockets.iter().map(|socket| u64::from(socket.take_missed().unwrap().unwrap())).sum::<u64>();
    assert_eq!(take(), 0);
    for neighbour in SILENT {
        flood(&scene.a, neighbour, || take() > 0);
        take();
        assert_eq!(take(), 0, "what was told is not told again");
    }
}

pub fn by_interface() {
    let (a, devices) = queues::scene("missed-tap", 1);
    assert_eq!(devices[0].take_missed().unwrap(), None);
    let drops = || a.inside(|| send_drops("eth0").unwrap()).join().unwrap();
    for neighbour in SILENT {
        let before = drops();
        flood(&a, neighbour, || drops() > before);
    }
    let arguments = ["netns", "exec", a.name(), "cat", "/sys/class/net/eth0/statistics/tx_dropped"];
    // The kernel may say something of its own meanwhile, to a queue that is full.
    let before = drops();
    let output = Command::new("ip").args(arguments).output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).trim().parse().unwrap();
    assert!((before..=drops()).contains(&shown), "{shown}");
    assert!(a.inside(|| send_drops("hw-none").is_err()).join().unwrap());
}
