//! TAP devices in network namespaces, with the kernel's own TCP/IP on both sides.
//!
//! Needs root, `/dev/net/tun` and `ip`; says so and does nothing where they are missing. Each scenario makes
//! namespaces of its own and removes them. This program is also the helper: started with `attach-netns` it does what
//! `hostweave attach-netns` does.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hostweave_switch::MacAddr;
use hostweave_switch::packet::Burst;
use hostweave_switch::stage::DropReason;
use hostweave_switch::tables::PortId;
use hostweave_uplink::Error;
use hostweave_uplink::device::Device;
use hostweave_uplink::netns::{TapRequest, delete_tap, open_tap, run_helper};
use hostweave_uplink::uring::{Event, Uring};

mod support;

use support::netns::{Netns, Scenario, ip, run};
use support::traffic::{echo, transfer};
use support::wire::Wire;

const MAC_A: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x0a]);
const MAC_B: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x0b]);
const SCENARIOS: &[Scenario] = &[
    ("datagrams_and_tcp_with_offloads_between_two_namespaces", datagrams_and_tcp),
    ("a_device_survives_its_owner_and_keeps_its_connections", survives_its_owner),
    ("a_device_survives_kill_9_and_is_taken_over_at_once", survives_kill),
    ("a_deleted_namespace_is_noticed", deleted_namespace),
    ("a_device_that_is_set_down_refuses_frames", device_down),
    ("requests_that_cannot_work_say_why", refusals),
    ("deleting_removes_the_device", deleting),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "attach-netns") {
        return helper(&arguments[1..]);
    }
    if arguments.first().is_some_and(|first| first == "wire") {
        let open = |path: &String, mac| {
            let request = TapRequest { name: "eth0".to_owned(), netns: Some(path.into()), mac, mtu: 1500 };
            Device::tap(open_tap(&program(), &request).unwrap(), PortId(3)).unwrap()
        };
        let _wire = Wire::new(open(&arguments[1], MAC_A), open(&arguments[2], MAC_B));
        println!("ready");
        std::thread::sleep(Duration::from_secs(60));
        return ExitCode::SUCCESS;
    }
    if File::options().read(true).write(true).open("/dev/net/tun").is_err() {
        println!("tap: SKIPPED, this needs /dev/net/tun, and the right to open it");
        return ExitCode::SUCCESS;
    }
    run("tap", SCENARIOS)
}

fn helper(arguments: &[String]) -> ExitCode {
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name).unwrap();
        arguments[at + 1].clone()
    };
    let request = TapRequest {
        name: value("--name"),
        netns: Some(value("--netns").into()),
        mac: value("--mac").parse().unwrap(),
        mtu: value("--mtu").parse().unwrap(),
    };
    let delete = arguments.iter().any(|argument| argument == "--delete");
    match run_helper(&request, delete, std::io::stdin().as_fd()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn program() -> PathBuf {
    std::env::current_exe().unwrap()
}

impl Netns {
    fn request(&self, mac: MacAddr) -> TapRequest {
        TapRequest { name: "eth0".to_owned(), netns: Some(self.path()), mac, mtu: 1500 }
    }
}

fn open(netns: &Netns, mac: MacAddr) -> Device {
    Device::tap(open_tap(&program(), &netns.request(mac)).unwrap(), PortId(3)).unwrap()
}

fn addresses(a: &Netns, b: &Netns) {
    for (netns, host) in [(a, 1), (b, 2)] {
        netns.ip(&format!("addr add 192.0.2.{host}/24 dev eth0"));
        netns.ip(&format!("addr add 2001:db8::{host}/64 dev eth0 nodad"));
    }
}

fn datagrams_and_tcp() {
    let (a, b) = (Netns::new("a"), Netns::new("b"));
    let wire = Wire::new(open(&a, MAC_A), open(&b, MAC_B));
    addresses(&a, &b);
    for address in ["192.0.2.2:5000", "[2001:db8::2]:5000"] {
        for len in [1, 100, 1_400, 1_472] {
            echo(&a, &b, address, len);
        }
    }
    transfer(&a, &b, "192.0.2.2:5001", 20_000_000);
    transfer(&a, &b, "[2001:db8::2]:5001", 20_000_000);
    let seen = &wire.seen;
    assert!(seen.gso.load(Ordering::Relaxed) > 100, "GSO frames pass whole");
    assert!(seen.partial.load(Ordering::Relaxed) > 100, "partial checksums pass");
    // 40 MB in far fewer frames than segments of 1,448 octets.
    assert!(seen.frames.load(Ordering::Relaxed) < 20_000, "{}", seen.frames.load(Ordering::Relaxed));
    assert_eq!(seen.dropped.load(Ordering::Relaxed), 0);
    assert!(a.output("ip link show eth0").contains("02:00:00:00:00:0a"));
}

fn survives_its_owner() {
    let (a, b) = (Netns::new("a"), Netns::new("b"));
    let wire = Wire::new(open(&a, MAC_A), open(&b, MAC_B));
    addresses(&a, &b);
    a.ip("route add 198.51.100.0/24 via 192.0.2.2");
    let address = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 2), 5002));
    let (ready, listening) = std::sync::mpsc::channel();
    let server = b.inside(move || {
        let listener = TcpListener::bind(address).unwrap();
        ready.send(()).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    });
    listening.recv().unwrap();
    let client = a.inside(move || TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap());
    let mut client = client.join().unwrap();
    client.write_all(b"before, ").unwrap();
    std::thread::sleep(Duration::from_millis(100));
    drop(wire);
    client.write_all(b"meanwhile, ").unwrap();
    let wire = Wire::new(open(&a, MAC_A), open(&b, MAC_B));
    client.write_all(b"after").unwrap();
    drop(client);
    assert_eq!(server.join().unwrap(), "before, meanwhile, after");
    assert!(a.output("ip addr show dev eth0").contains("192.0.2.1/24"));
    assert!(a.output("ip -6 addr show dev eth0").contains("2001:db8::1/64"));
    assert!(a.output("ip route").contains("198.51.100.0/24"));
    drop(wire);
}

/// A process that carries frames between two namespaces, as a daemon does.
fn daemon(a: &Netns, b: &Netns) -> std::process::Child {
    let mut child =
        Command::new(program()).arg("wire").args([a.path(), b.path()]).stdout(Stdio::piped()).spawn().unwrap();
    let mut ready = [0; 5];
    child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    child
}

fn survives_kill() {
    let (a, b) = (Netns::new("a"), Netns::new("b"));
    let mut process = daemon(&a, &b);
    addresses(&a, &b);
    let address = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 2), 5003));
    let (ready, listening) = std::sync::mpsc::channel();
    let server = b.inside(move || {
        let listener = TcpListener::bind(address).unwrap();
        ready.send(()).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        std::io::copy(&mut stream, &mut std::io::sink()).unwrap()
    });
    listening.recv().unwrap();
    let client = a.inside(move || {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap();
        let started = Instant::now();
        let mut sent = 0;
        while started.elapsed() < Duration::from_secs(4) {
            stream.write_all(&[7; 10_000]).unwrap();
            sent += 10_000;
        }
        sent
    });
    let mut took = Vec::new();
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(300));
        process.kill().unwrap();
        process.wait().unwrap();
        let started = Instant::now();
        process = daemon(&a, &b);
        took.push(started.elapsed());
    }
    // One that waits for something waits each time.
    assert!(took.iter().any(|took| *took < Duration::from_secs(2)), "{took:?}");
    assert_eq!(client.join().unwrap(), server.join().unwrap());
    process.kill().unwrap();
    process.wait().unwrap();
}

fn deleted_namespace() {
    let a = Netns::new("a");
    let tap = open(&a, MAC_A);
    assert!(tap.namespace_is_current());
    ip(&format!("netns del {}", a.0));
    assert!(!tap.namespace_is_current());
    ip(&format!("netns add {}", a.0));
    assert!(!tap.namespace_is_current(), "made again, it is another one");
    let tap = open(&a, MAC_A);
    assert!(tap.namespace_is_current());
    // The device goes, the namespace stays: the kernel says so.
    let mut uring = Uring::new().unwrap();
    tap.start(&mut uring, 4);
    uring.submit();
    a.ip("link del eth0");
    let mut failed = 0;
    let started = Instant::now();
    while failed == 0 && started.elapsed() < Duration::from_secs(5) {
        uring.wait(Some(Duration::from_millis(100)));
        uring.poll_completions(&mut |event| match event {
            Event::Failed { token: 4, .. } => failed += 1,
            Event::Frame { .. } => {}
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(failed, 1);
    tap.stop(&mut uring, 4);
    drop(tap);
    let tap = open(&a, MAC_A);
    assert_eq!(tap.name(), "eth0");
}

fn device_down() {
    let (a, b) = (Netns::new("a"), Netns::new("b"));
    let (from, to) = (open(&a, MAC_A), open(&b, MAC_B));
    let mut uring = Uring::new().unwrap();
    from.start(&mut uring, 1);
    b.ip("link set eth0 down");
    a.ip("addr add 192.0.2.1/24 dev eth0");
    let mut burst = Burst::new();
    let (mut refused, started) = (0, Instant::now());
    while refused == 0 && started.elapsed() < Duration::from_secs(10) {
        // Somebody asks for an address: an ARP request.
        let asking = a.inside(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(&[1], "192.0.2.9:9").unwrap());
        asking.join().unwrap();
        let mut events = Vec::new();
        uring.wait(Some(Duration::from_millis(50)));
        uring.poll_completions(&mut |event| events.push(event));
        for event in events {
            let frame = match event {
                Event::Frame { frame, .. } => frame,
                Event::Refused { port: PortId(3), octets } if octets >= 42 => {
                    refused += 1;
                    continue;
                }
                other => panic!("{other:?}"),
            };
            from.receive(PortId(1), &frame, &mut burst).unwrap();
            let (packet, arena) = burst.packet_mut(0);
            assert_eq!(to.transmit(packet, arena, &mut uring), Ok::<(), DropReason>(()));
            burst.clear();
            uring.release(frame);
        }
        uring.submit();
    }
    assert!(refused > 0);
}

fn refusals() {
    let a = Netns::new("a");
    let with = |change: fn(&mut TapRequest)| {
        let mut request = a.request(MAC_A);
        change(&mut request);
        open_tap(&program(), &request).unwrap_err().to_string()
    };
    assert!(with(|request| request.name = "a-name-that-is-too-long".to_owned()).contains("1 to 15 octets"));
    assert!(with(|request| request.name = "tap%d".to_owned()).contains("device name"));
    assert!(with(|request| request.netns = Some("/run/netns/hw-none".into())).contains("does not exist"));
    assert!(with(|request| request.netns = Some("/etc/hostname".into())).contains("is not a network namespace"));
    assert!(with(|request| request.name = "lo".to_owned()).contains("no TAP device"));
    let tap = open(&a, MAC_A);
    let text = with(|_| {});
    assert!(text.contains("in use"), "{text}");
    drop(tap);
    let error = open_tap(Path::new("/nonexistent/hostweave"), &a.request(MAC_A)).unwrap_err();
    assert!(matches!(error, Error::Helper { .. }));
    let error = open_tap(Path::new("/bin/true"), &a.request(MAC_A)).unwrap_err();
    assert!(matches!(error, Error::HelperSilent(_)), "{error}");
}

fn deleting() {
    let a = Netns::new("a");
    let request = a.request(MAC_A);
    let tap = open(&a, MAC_A);
    assert!(a.output("ip link").contains("eth0"));
    drop(tap);
    assert!(a.output("ip link").contains("eth0"), "it is persistent");
    delete_tap(&program(), &request).unwrap();
    assert!(!a.output("ip link").contains("eth0"));
    delete_tap(&program(), &request).unwrap();
    drop(a);
    delete_tap(&program(), &request).unwrap();
}
