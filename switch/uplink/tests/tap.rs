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
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hostweave_switch::MacAddr;
use hostweave_switch::packet::Burst;
use hostweave_switch::stage::DropReason;
use hostweave_switch::tables::PortId;
use hostweave_uplink::Error;
use hostweave_uplink::device::Device;
use hostweave_uplink::netns::{TapRequest, delete_tap, open_tap, run_helper};
use hostweave_uplink::uring::{Event, Uring, Waker};
use nix::sched::{CloneFlags, setns};

const MAC_A: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x0a]);
const MAC_B: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x0b]);
const SCENARIOS: &[(&str, fn())] = &[
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
    if let Some(missing) = missing() {
        println!("tap: SKIPPED, this needs {missing}");
        return ExitCode::SUCCESS;
    }
    let filter = arguments.iter().find(|argument| !argument.starts_with('-'));
    let mut failed = 0;
    for (name, scenario) in SCENARIOS {
        if filter.is_some_and(|filter| !name.contains(filter.as_str())) {
            continue;
        }
        let result = std::panic::catch_unwind(scenario);
        println!("test tap::{name} ... {}", if result.is_ok() { "ok" } else { "FAILED" });
        failed += u32::from(result.is_err());
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
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

/// What this machine lacks.
fn missing() -> Option<&'static str> {
    if File::options().read(true).write(true).open("/dev/net/tun").is_err() {
        return Some("/dev/net/tun, and the right to open it");
    }
    let name = format!("hw-up-{}-try", std::process::id());
    let made = Command::new("ip").args(["netns", "add", &name]).stderr(Stdio::null()).status();
    if !made.is_ok_and(|status| status.success()) {
        return Some("root and `ip netns`");
    }
    let _ = Command::new("ip").args(["netns", "del", &name]).status();
    None
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split_whitespace()).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

fn program() -> PathBuf {
    std::env::current_exe().unwrap()
}

/// A network namespace that goes away with the value.
struct Netns(String);

impl Netns {
    fn new(scenario: &str) -> Self {
        let name = format!("hw-up-{}-{scenario}", std::process::id());
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link set lo up"));
        Self(name)
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }

    fn ip(&self, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.0));
    }

    fn output(&self, arguments: &str) -> String {
        let all = format!("netns exec {} {arguments}", self.0);
        let output = Command::new("ip").args(all.split_whitespace()).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn request(&self, mac: MacAddr) -> TapRequest {
        TapRequest { name: "eth0".to_owned(), netns: Some(self.path()), mac, mtu: 1500 }
    }

    /// Runs `body` on a thread of its own inside the namespace.
    fn inside<T: Send + 'static>(&self, body: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let file = File::open(self.path()).unwrap();
        std::thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            body()
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).stderr(Stdio::null()).status();
    }
}

#[derive(Default)]
struct Seen {
    frames: AtomicU64,
    gso: AtomicU64,
    partial: AtomicU64,
    dropped: AtomicU64,
}

/// A wire between two devices, moved by one worker's ring.
struct Wire {
    stop: Arc<AtomicBool>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
    seen: Arc<Seen>,
}

impl Wire {
    fn new(a: Device, b: Device) -> Self {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Seen::default()));
        let (sender, receiver) = std::sync::mpsc::channel();
        let thread = std::thread::spawn({
            let (stop, seen) = (Arc::clone(&stop), Arc::clone(&seen));
            move || {
                let mut uring = Uring::new().unwrap();
                sender.send(uring.waker()).unwrap();
                carry(&mut uring, &[a, b], &stop, &seen);
            }
        });
        Self { stop, waker: receiver.recv().unwrap(), thread: Some(thread), seen }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.waker.wake();
        let joined = self.thread.take().unwrap().join();
        assert!(std::thread::panicking() || joined.is_ok());
    }
}

fn carry(uring: &mut Uring, taps: &[Device; 2], stop: &AtomicBool, seen: &Seen) {
    let mut burst = Burst::new();
    taps[0].start(uring, 0);
    taps[1].start(uring, 1);
    let mut events = Vec::new();
    while !stop.load(Ordering::SeqCst) {
        uring.poll_completions(&mut |event| events.push(event));
        if events.is_empty() {
            uring.wait(Some(Duration::from_secs(1)));
            continue;
        }
        for event in events.drain(..) {
            let Event::Frame { token, frame } = event else { continue };
            let (from, to) = (token as usize, 1 - token as usize);
            let received = taps[from].receive(PortId(from as u32), &frame, &mut burst);
            seen.frames.fetch_add(1, Ordering::Relaxed);
            seen.dropped.fetch_add(u64::from(received.is_err()), Ordering::Relaxed);
            for index in 0..burst.len() {
                let (packet, arena) = burst.packet_mut(index);
                seen.gso.fetch_add(u64::from(packet.meta.offload.is_gso()), Ordering::Relaxed);
                seen.partial.fetch_add(u64::from(packet.meta.offload.needs_csum()), Ordering::Relaxed);
                let sent = taps[to].transmit(packet, arena, uring);
                seen.dropped.fetch_add(u64::from(sent.is_err()), Ordering::Relaxed);
            }
            burst.clear();
            uring.release(frame);
        }
        uring.submit();
    }
    taps[0].stop(uring, 0);
    taps[1].stop(uring, 1);
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

/// Sends a datagram of `len` octets from `a` to `b` and back.
fn echo(a: &Netns, b: &Netns, to: &str, len: usize) {
    let address: SocketAddr = to.parse().unwrap();
    let (ready, listening) = std::sync::mpsc::channel();
    let server = b.inside(move || {
        let socket = UdpSocket::bind(address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        ready.send(()).unwrap();
        let mut octets = [0; 2_000];
        let (len, peer) = socket.recv_from(&mut octets).unwrap();
        socket.send_to(&octets[..len], peer).unwrap();
    });
    listening.recv().unwrap();
    let client = a.inside(move || {
        let socket = UdpSocket::bind(if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let sent: Vec<u8> = (0..len).map(|index| index as u8).collect();
        socket.send_to(&sent, address).unwrap();
        let mut octets = [0; 2_000];
        let received = socket.recv(&mut octets).unwrap();
        assert!(octets[..received] == sent[..]);
    });
    client.join().unwrap();
    server.join().unwrap();
}

/// Sends `len` octets of a pattern from `a` to `b` and compares them.
fn transfer(a: &Netns, b: &Netns, to: &str, len: usize) {
    let address: SocketAddr = to.parse().unwrap();
    let (ready, listening) = std::sync::mpsc::channel();
    let server = b.inside(move || {
        let listener = TcpListener::bind(address).unwrap();
        ready.send(()).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let mut octets = Vec::new();
        stream.read_to_end(&mut octets).unwrap();
        octets
    });
    listening.recv().unwrap();
    let pattern: Vec<u8> = (0..len).map(|index| ((index * 31) >> 3) as u8).collect();
    let sent = pattern.clone();
    let client = a.inside(move || {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap();
        stream.write_all(&sent).unwrap();
    });
    client.join().unwrap();
    assert!(server.join().unwrap() == pattern, "{to}: the octets differ");
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
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(300));
        process.kill().unwrap();
        process.wait().unwrap();
        let started = Instant::now();
        process = daemon(&a, &b);
        assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    }
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
