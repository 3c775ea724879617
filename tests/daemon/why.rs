//! Why was this dropped? `trace`, `apply --dry-run`, `ping` and `capture` through the command line, with guests on the ports.

use std::net::IpAddr;
use std::process::Stdio;
use std::time::Duration;

use hostweave_guest::frames::Path;
use hostweave_guest::{Guest, Profile};
use pcap_file::pcapng::{Block, PcapNgReader};

use crate::support::{Daemon, hostweave};

const DB: &str = "\
apiVersion: hostweave.dev/v1alpha1
kind: Port
metadata: {name: db-0, namespace: shop, labels: {app: db}}
spec: {mac: 02:00:00:00:00:31, addresses: [10.64.0.31, \"2001:db8:64::31\"]}
---
apiVersion: hostweave.dev/v1alpha1
kind: Port
metadata: {name: cache-0, namespace: shop, labels: {app: cache}}
spec: {mac: 02:00:00:00:00:12, addresses: [10.64.0.12, \"2001:db8:64::12\"]}
";

const POLICY: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db-only-from-web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
    - from: [{podSelector: {matchLabels: {app: web}}}]
      ports: [{port: 5432, protocol: TCP}]
";

fn daemon() -> Daemon {
    let mut daemon = Daemon::new();
    daemon.write("conf/20-db.yaml", DB);
    daemon.start(&[]);
    daemon
}

fn guest(daemon: &Daemon, name: &str, mac: u8) -> Guest {
    let socket = daemon.path(&format!("run/ports/shop.{name}.sock"));
    let builder = Guest::builder().profile(Profile::Dpdk).socket(socket).mac([2, 0, 0, 0, 0, mac]);
    let mut guest = builder.timeout(Duration::from_secs(20)).connect().unwrap();
    guest.nic().frontend.barrier().unwrap();
    guest
}

/// From `cache-0` to `db-0`.
fn path(v6: bool) -> Path {
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    let (src, dst) = if v6 { ("2001:db8:64::12", "2001:db8:64::31") } else { ("10.64.0.12", "10.64.0.31") };
    Path::new([2, 0, 0, 0, 0, 0x12], hostweave_switch::MacAddr::ROUTER.0, address(src), address(dst))
}

#[test]
fn trace_says_what_would_happen_and_with_files_what_would_if() {
    let daemon = daemon();
    let file = daemon.write("20-shop.yaml", POLICY);
    let file = file.to_str().unwrap();
    let allowed = daemon.cli(&["trace", "--from", "shop/cache-0", "--to", "shop/db-0:5432"]);
    assert_eq!(allowed.code, 0, "{}", allowed.stderr);
    assert!(allowed.stdout.contains(" 5 ingress   ALLOWED  no ingress policy selects db-0\n"), "{}", allowed.stdout);
    assert!(allowed.stdout.ends_with("exit 0\n"), "{}", allowed.stdout);

    let denied = daemon.cli(&["trace", "-n", "shop", "--from", "cache-0", "--to", "db-0:5432/tcp", "-f", file]);
    assert_eq!(denied.code, 1);
    let origin = format!(" 5 ingress   DENIED   shop/db-only-from-web  {file}:7\n");
    assert!(denied.stdout.contains(&origin), "{}", denied.stdout);
    assert!(denied.stdout.contains("cache-0 has app=cache; rule 1 wants app=web\n"), "{}", denied.stdout);
    // It was not applied, and is not here for the next one either.
    assert_eq!(daemon.cli(&["get", "netpol", "shop/db-only-from-web"]).code, 3);
    assert_eq!(daemon.cli(&["trace", "--from", "shop/cache-0", "--to", "shop/db-0:5432"]).code, 0);

    // What comes from a file of the daemon may be tried out, too; over IPv6, by the socket that changes nothing.
    let down = daemon.write(
        "down.yaml",
        &DB.replace("app: db", "app: db, x: y")
            .replace("{mac: 02:00:00:00:00:31", "{adminState: down, mac: 02:00:00:00:00:31"),
    );
    let observe = daemon.path("run/observe.sock");
    let arguments = [
        "--control",
        observe.to_str().unwrap(),
        "trace",
        "--from",
        "2001:db8:64::12",
        "--to",
        "[2001:db8:64::31]:53/udp",
    ];
    assert_eq!(daemon.cli(&arguments).code, 0);
    let done = daemon.cli(&[&arguments[..], &["-f", down.to_str().unwrap(), "-o", "json"]].concat());
    assert_eq!(done.code, 1, "{}", done.stderr);
    let json: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!((json["verdict"].as_str(), json["reason"].as_str()), (Some("DROPPED"), Some("port_down")));

    for (arguments, code, part) in [
        (["--from", "shop/chache-0", "--to", "shop/db-0"], 3, "did you mean shop/cache-0?"),
        (["--from", "10.64.0.99", "--to", "shop/db-0"], 3, "no port of network default has 10.64.0.99"),
        (["--from", "shop/cache-0", "--to", "shop/db-0/tcp"], 2, "tcp needs an L4 port"),
        (["--from", "10.64.0.12", "--to", "2001:db8:64::31"], 5, "an address of the same family"),
    ] {
        let done = daemon.cli(&[&["trace"][..], &arguments].concat());
        assert_eq!(done.code, code, "{}", done.stderr);
        assert!(done.stderr.contains(part), "{part}\n{}", done.stderr);
    }
    let bad = daemon.write("bad.yaml", &POLICY.replace("protocol: TCP", "protocol: tpc"));
    let arguments = ["trace", "--from", "shop/cache-0", "--to", "shop/db-0", "-f", bad.to_str().unwrap()];
    let done = daemon.cli(&arguments);
    assert_eq!(done.code, 5);
    assert!(done.stderr.contains("did you mean TCP?"), "{}", done.stderr);
}

#[test]
fn a_dry_run_says_what_would_break_and_what_would_pass() {
    let daemon = daemon();
    let (mut cache, mut db) = (guest(&daemon, "cache-0", 0x12), guest(&daemon, "db-0", 0x31));
    for v6 in [false, true] {
        cache.send_frame(&path(v6).udp(40_000, 53, b"x"), &Default::default()).unwrap();
        db.recv_frame(Duration::from_secs(20)).unwrap();
    }
    let done = daemon.cli_with(&["apply", "--dry-run", "-f", "-"], POLICY);
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (
            0,
            "NetworkPolicy shop/db-only-from-web created (dry run)\n\
             live connections: 2, of which 2 would break:\n  \
               shop/cache-0 10.64.0.12:40000 -> shop/db-0 10.64.0.31:53 udp  ingress: default deny: selected by shop/db-only-from-web\n  \
               shop/cache-0 [2001:db8:64::12]:40000 -> shop/db-0 [2001:db8:64::31]:53 udp  ingress: default deny: selected by shop/db-only-from-web\n"
        ),
        "{}",
        done.stderr
    );
    daemon.cli_with(&["apply", "-f", "-"], POLICY);
    cache.send_frame(&path(false).udp(40_000, 53, b"x"), &Default::default()).unwrap();
    let wider =
        POLICY.replace("app: web", "app: cache").replace("port: 5432, protocol: TCP", "port: 53, protocol: UDP");
    daemon.until("the denied flow is known", || {
        let done = daemon.cli_with(&["apply", "--dry-run", "-f", "-"], &wider);
        done.stdout.contains("denied lately: 1, of which 1 would pass:\n")
            && done.stdout.contains("ingress: rule 1 of shop/db-only-from-web  applied at run time\n")
    });
}

#[test]
fn ping_sends_a_real_probe_and_says_why_there_is_no_answer() {
    let daemon = daemon();
    let done = daemon.cli(&["ping", "shop/cache-0", "gateway", "-c", "1"]);
    assert_eq!(done.code, 0, "{}{}", done.stdout, done.stderr);
    assert!(done.stdout.contains("probe 1 to gateway of default 10.64.0.1: echo reply, ttl 64, "), "{}", done.stdout);
    assert!(done.stdout.contains("1 sent, 1 answered, round trip "), "{}", done.stdout);

    let done = daemon.cli(&["ping", "shop/cache-0", "shop/db-0", "-c", "1"]);
    assert_eq!(done.code, 1);
    assert!(done.stdout.contains("10.64.0.31: port_not_running: "), "{}", done.stdout);

    let _db = guest(&daemon, "db-0", 0x31);
    let done = daemon.cli(&["ping", "shop/cache-0", "2001:db8:64::31", "-c", "1", "-W", "50ms"]);
    assert_eq!(done.code, 1);
    assert!(done.stdout.contains("no answer in 50 ms: the guest got the probe"), "{}", done.stdout);

    daemon.cli_with(&["apply", "-f", "-"], POLICY);
    let done = daemon.cli(&["ping", "shop/cache-0", "shop/db-0", "--tcp", "5432"]);
    assert_eq!(done.code, 1);
    assert!(done.stdout.contains("cache-0 has app=cache; rule 1 wants app=web\n"), "{}", done.stdout);
    assert!(done.stdout.contains("policy_denied: ") && done.stdout.contains("1 sent, 0 answered\n"), "{}", done.stdout);

    let observe = daemon.path("run/observe.sock");
    let done = daemon.cli(&["--control", observe.to_str().unwrap(), "ping", "shop/cache-0", "gateway"]);
    assert_eq!(done.code, 6, "{}", done.stderr);
}

#[test]
fn a_capture_is_written_as_pcapng_while_it_runs() {
    let daemon = daemon();
    let (mut cache, mut db) = (guest(&daemon, "cache-0", 0x12), guest(&daemon, "db-0", 0x31));
    daemon.cli_with(&["apply", "-f", "-"], POLICY);
    let file = daemon.path("x.pcapng");
    let mut capture = hostweave()
        .env("HOSTWEAVE_CONTROL", daemon.control())
        .args(["capture", "-n", "shop", "cache-0", "db-0", "--drops", "-w"])
        .arg(&file)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let blocks = || {
        let octets = std::fs::read(&file).unwrap_or_default();
        let Ok(mut reader) = PcapNgReader::new(&octets[..]) else { return Vec::new() };
        std::iter::from_fn(|| Some(reader.next_block()?.ok()?.into_owned())).collect::<Vec<Block<'static>>>()
    };
    let interfaces = |blocks: &[Block<'static>]| {
        let names = blocks.iter().cloned().filter_map(Block::into_interface_description);
        names.map(|block| format!("{:?}", block.options)).collect::<Vec<_>>()
    };
    daemon.until("the interfaces are written", || interfaces(&blocks()).len() == 2);
    assert!(interfaces(&blocks())[0].contains("IfName(\"shop/cache-0\"), IfDescription(\"app=cache\")"));

    // One that is denied; one back, which is not.
    cache.send_frame(&path(false).udp(40_000, 53, b"to the database"), &Default::default()).unwrap();
    let there = path(false);
    let back = Path::new([2, 0, 0, 0, 0, 0x31], there.dst_mac, there.dst, there.src);
    db.send_frame(&back.udp(53, 40_001, b"from the database"), &Default::default()).unwrap();
    cache.recv_frame(Duration::from_secs(20)).unwrap();
    let packets = |blocks: &[Block<'static>]| {
        let packets = blocks.iter().cloned().filter_map(Block::into_enhanced_packet);
        packets.map(|block| (block.interface_id, format!("{:?}", block.options))).collect::<Vec<_>>()
    };
    daemon.until("three packets are written, live", || packets(&blocks()).len() == 3);
    let mut seen = packets(&blocks());
    seen.sort();
    let rules = "egress: no policy had a say; ingress: no policy had a say";
    assert_eq!(
        seen,
        [
            (
                0,
                "[Comment(\"dropped: policy_denied; default deny: selected by shop/db-only-from-web\"), Flags(1)]"
                    .to_owned()
            ),
            (0, format!("[Comment(\"forwarded; {rules}\"), Flags(2)]")),
            (1, format!("[Comment(\"forwarded; {rules}\"), Flags(1)]")),
        ]
    );
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(capture.id()).unwrap()),
        nix::sys::signal::Signal::SIGINT,
    )
    .unwrap();
    assert!(capture.wait().unwrap().success());
    let statistics = blocks().into_iter().filter_map(Block::into_interface_statistics).count();
    assert_eq!(statistics, 2, "what was lost stands at the end");

    // As text, until the number is reached; and nothing of it on the socket that changes nothing.
    let observe = daemon.path("run/observe.sock");
    let done = daemon.cli(&["--control", observe.to_str().unwrap(), "capture", "shop/db-0"]);
    assert_eq!(done.code, 6, "{}", done.stderr);
    let done = daemon.cli(&["capture", "shop/nobody"]);
    assert_eq!(done.code, 3, "{}", done.stderr);
}
