//! The uplink of a running fabric, in a network namespace of this program's own: a router's kernel at the other end of
//! the cable, an interface that comes and goes, somebody who lies.
//!
//! Needs root and `ip`; says so and does nothing where they are missing.

#![allow(clippy::unwrap_used, reason = "a test")]

mod drafts;
mod guests;
mod ports;
mod router;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hostweave::fabric::Fabric;
use hostweave::fabric::spec::{Desired, FabricConfig, FabricEvent, Filtering, NatPoolSpec, UplinkDriver, UplinkSpec};
use hostweave::fabric::uplink::UplinkStatus;
use hostweave_switch::MacAddr;
use hostweave_switch::counters::output_closes;
use hostweave_uplink::netlink::interfaces::interface;
use nix::sched::{CloneFlags, unshare};
use tokio::runtime::Runtime;
use tokio::sync::mpsc::UnboundedReceiver;

use router::{Liar, Router, ip};

const SCENARIOS: &[(&str, fn())] = &[
    ("the_host_is_a_neighbour_for_exactly_what_it_owns", neighbour),
    ("addresses_are_announced_when_they_arrive_and_when_the_cable_does", announced),
    ("the_interface_goes_down_away_and_comes_back", comes_and_goes),
    ("a_gateway_that_is_replaced_is_found_and_a_liar_is_not", gateways),
    ("a_draft_does_not_own_what_was_lost_to_somebody_else", drafts::lost),
    ("the_kernel_stays_out_and_gets_its_addresses_back", kernel),
    ("addresses_of_the_kernel_are_refused", held),
    ("a_tap_device_leads_through_the_kernel", tap),
    ("a_flood_of_neighbours_costs_nothing_else", flood),
    ("a_port_with_another_attachment_is_still_behind_its_pool", ports::replaced),
    ("a_port_that_is_deleted_leaves_no_nat_mapping_and_one_that_moves_keeps_its_own", ports::deleted),
    ("one_socket_on_four_queues_and_two_workers_has_one_outside_port", guests::queues),
    ("spoofed_frames_reach_neither_the_uplink_nor_another_port", guests::spoofed),
    ("limits_of_the_uplink_concern_the_uplink_only", guests::rates),
    ("limits_of_the_uplink_count_each_segment_of_a_large_frame", guests::rates_of_large_frames),
];

const PATIENCE: Duration = Duration::from_secs(20);
const ROUTER: [&str; 2] = ["203.0.113.1", "2001:db8:f::1"];
const OWN: [&str; 2] = ["203.0.113.2", "2001:db8:f::2"];
const POOL: [&str; 2] = ["203.0.113.7", "2001:db8:f::7"];

fn main() -> ExitCode {
    if let Some(missing) = missing() {
        println!("uplink: SKIPPED, this needs {missing}");
        return ExitCode::SUCCESS;
    }
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let mut failed = 0;
    for (name, scenario) in SCENARIOS {
        if filter.as_ref().is_some_and(|filter| !name.contains(filter.as_str())) {
            continue;
        }
        // Threads are made in the namespace of the one that makes them: each scenario has one of its own.
        let result = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            ip("link set lo up");
            scenario();
        });
        let ok = result.join().is_ok();
        println!("test uplink::{name} ... {}", if ok { "ok" } else { "FAILED" });
        failed += u32::from(!ok);
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What this machine lacks.
fn missing() -> Option<&'static str> {
    let name = format!("hw-ul-{}-try", std::process::id());
    let made = Command::new("ip").args(["netns", "add", &name]).stderr(Stdio::null()).status();
    if !made.is_ok_and(|status| status.success()) {
        return Some("root and `ip netns`");
    }
    let _ = Command::new("ip").args(["netns", "del", &name]).status();
    None
}

/// A running fabric with an uplink.
struct Host {
    fabric: Arc<Fabric>,
    desired: Desired,
    events: UnboundedReceiver<FabricEvent>,
    seen: Vec<FabricEvent>,
    runtime: Runtime,
    dir: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        Self::with(spec())
    }

    fn with(spec: UplinkSpec) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (fabric, events) = start(&runtime, dir.path());
        let desired = Desired { uplink: Some(spec), nat_pools: vec![pool(&POOL)], ..Desired::default() };
        fabric.apply(&desired).unwrap();
        Self { fabric, desired, events, seen: Vec::new(), runtime, dir }
    }

    fn status(&self) -> UplinkStatus {
        self.fabric.uplink_status().unwrap()
    }

    /// Link address of a gateway, as packets see it.
    fn gateway(&self, address: &str) -> Option<MacAddr> {
        let address: IpAddr = address.parse().unwrap();
        let plane = self.fabric.plane();
        let uplink = plane.tables.uplink.as_deref().unwrap();
        let hops = if address.is_ipv4() { &uplink.v4 } else { &uplink.v6 };
        hops.iter().find(|hop| hop.address == address).unwrap().mac
    }

    fn both_gateways(&self) -> [Option<MacAddr>; 2] {
        ROUTER.map(|address| self.gateway(address))
    }

    fn event(&mut self, what: &str, wanted: impl Fn(&FabricEvent) -> bool) -> FabricEvent {
        let end = Instant::now() + PATIENCE;
        loop {
            while let Ok(event) = self.events.try_recv() {
                self.seen.push(event.clone());
                if wanted(&event) {
                    return event;
                }
            }
            assert!(Instant::now() < end, "no {what} in {:#?}", self.seen);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn up(&mut self) {
        self.event("UplinkUp", |event| matches!(event, FabricEvent::UplinkUp { .. }));
    }

    fn down(&mut self, wanted: &str) {
        let FabricEvent::UplinkDown { reason, .. } =
            self.event("UplinkDown", |event| matches!(event, FabricEvent::UplinkDown { .. }))
        else {
            unreachable!()
        };
        assert_eq!(reason, wanted);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            eventually("the ledger closes", || output_closes(&self.fabric.totals()));
        }
        self.fabric.shutdown();
    }
}

fn start(runtime: &Runtime, dir: &Path) -> (Arc<Fabric>, UnboundedReceiver<FabricEvent>) {
    let config = FabricConfig {
        workers: vec![None; 2],
        runtime_dir: dir.to_owned(),
        helper: PathBuf::from(env!("CARGO_BIN_EXE_hostweave")),
        connections_max: 8_192,
    };
    runtime.block_on(async { Fabric::start(config).unwrap() })
}

fn spec() -> UplinkSpec {
    UplinkSpec {
        interface: "up0".to_owned(),
        driver: UplinkDriver::AfPacket,
        addresses: vec![format!("{}/24", OWN[0]).parse().unwrap(), format!("{}/64", OWN[1]).parse().unwrap()],
        gateways: ROUTER.map(|address| address.parse().unwrap()).to_vec(),
        ..UplinkSpec::default()
    }
}

fn pool(addresses: &[&str]) -> NatPoolSpec {
    NatPoolSpec {
        name: "pool".to_owned(),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        draining: Vec::new(),
        ports: Vec::new(),
        hosts: Default::default(),
        block_size: 64,
        blocks: 1..=1,
        filtering: Filtering::default(),
        overload: false,
        limits: Default::default(),
    }
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn ours() -> MacAddr {
    interface("up0").unwrap().unwrap().mac
}

fn neighbour() {
    let router = Router::new("neigh");
    let mut host = Host::new();
    host.up();
    eventually("both gateways answer", || host.both_gateways() == [Some(router.mac()); 2]);
    for address in OWN {
        eventually(address, || router.ping(address));
        assert_eq!(router.knows(address), Some(ours()));
    }
    for address in POOL {
        assert!(!router.ping(address), "a pool answers no echo");
        assert_eq!(router.knows(address), Some(ours()), "but is a neighbour");
    }
    for stranger in ["203.0.113.99", "2001:db8:f::99"] {
        assert!(!router.ping(stranger));
        assert_eq!(router.knows(stranger), None);
    }
    let status = host.status();
    assert!(status.link && status.reason.is_none() && status.mac == Some(ours()) && status.mtu == 1_500);
    assert_eq!(status.owned.len(), 4);
    // Large echoes, in fragments.
    let arguments = ["netns", "exec", &router.0, "ping", "-n", "-c", "1", "-W", "2", "-s", "8000", OWN[0]];
    assert!(Command::new("ip").args(arguments).stdout(Stdio::null()).status().unwrap().success());
}

fn announced() {
    let router = Router::new("announce");
    // Who is told anew remembers it.
    router.sysctl("ipv4/conf/eth0/arp_accept", "1");
    router.sysctl("ipv6/conf/eth0/accept_untracked_na", "1");
    router.sysctl("ipv6/conf/all/forwarding", "1");
    let mut host = Host::new();
    host.up();
    eventually("announced at the start", || POOL.iter().all(|address| router.knows(address) == Some(ours())));
    let new = ["203.0.113.8", "2001:db8:f::8"];
    assert!(new.iter().all(|address| router.knows(address).is_none()));
    host.desired.nat_pools[0].addresses.extend(new.map(|address| address.parse::<IpAddr>().unwrap()));
    host.fabric.apply(&host.desired).unwrap();
    eventually("announced when they arrive", || new.iter().all(|address| router.knows(address) == Some(ours())));
    // Another owner: what was forgotten is told again.
    router.ip("neigh flush dev eth0");
    ip("link set up0 down");
    host.down("the interface is set down");
    ip("link set up0 address 02:00:00:00:00:99");
    ip("link set up0 up");
    host.up();
    let mac = MacAddr([2, 0, 0, 0, 0, 0x99]);
    assert_eq!(ours(), mac);
    eventually("announced with the cable", || {
        new.iter().chain(&POOL).all(|address| router.knows(address) == Some(mac))
    });
}

fn comes_and_goes() {
    let router = Router::new("flap");
    let mut host = Host::new();
    host.up();
    eventually("the gateways answer", || host.both_gateways() == [Some(router.mac()); 2]);
    router.ip("link set eth0 down");
    host.down("the interface has no carrier");
    eventually("no gateway is known", || host.both_gateways() == [None; 2]);
    router.ip("link set eth0 up");
    router.ip(&format!("addr replace {}/64 dev eth0 nodad", ROUTER[1]));
    host.up();
    eventually("after the carrier", || router.ping(OWN[0]) && router.ping(OWN[1]));
    ip("link set up0 down");
    host.down("the interface is set down");
    ip("link set up0 up");
    host.up();
    eventually("after set down", || router.ping(OWN[0]) && router.ping(OWN[1]));
    ip("link set up0 down");
    ip("link set up0 name up9");
    host.down("the interface is set down");
    eventually("renamed", || host.status().reason.as_deref() == Some("the interface does not exist"));
    ip("link set up9 name up0");
    ip("link set up0 up");
    host.up();
    eventually("after a rename", || router.ping(OWN[0]));
    ip("link del up0");
    host.down("the interface does not exist");
    router.cable();
    host.up();
    eventually("made again", || router.ping(OWN[0]) && router.ping(OWN[1]));
    eventually("and the gateways answer", || host.both_gateways() == [Some(router.mac()); 2]);
    ip("link set up0 mtu 1400");
    eventually("a smaller MTU", || host.fabric.plane().tables.uplink.as_deref().unwrap().mtu == 1_400);
    // Many times in a row.
    for _ in 0..50 {
        ip("link set up0 down");
        ip("link set up0 up");
    }
    eventually("after much flapping", || router.ping(OWN[0]) && router.ping(OWN[1]));
}

fn gateways() {
    let router = Router::new("lies");
    let mut host = Host::new();
    host.up();
    let good = router.mac();
    eventually("the gateways answer", || host.both_gateways() == [Some(good); 2]);
    let evil = MacAddr([2, 0, 0, 0, 0, 0x66]);
    let mut liar = router.liar();
    let (us, nobody) = (ours(), MacAddr::default());
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        for (router, own) in ROUTER.iter().zip(OWN) {
            liar.says(2, us, (evil, router), (us, own));
            liar.says(2, MacAddr::BROADCAST, (evil, router), (MacAddr::BROADCAST, router));
            liar.says(1, MacAddr::BROADCAST, (evil, router), (nobody, router));
            // A question says where its sender is, too.
            liar.says(1, MacAddr::BROADCAST, (evil, router), (nobody, own));
        }
        assert_eq!(host.both_gateways(), [Some(good); 2], "a router that answers keeps its address");
        std::thread::sleep(Duration::from_millis(5));
    }
    for pool in POOL {
        // What is said in a flood is heard in part; later it is heard at once.
        std::thread::sleep(Duration::from_secs(1));
        liar.says(1, MacAddr::BROADCAST, (evil, pool), (nobody, pool));
        let conflict = host.event("a conflict", |event| matches!(event, FabricEvent::UplinkAddressConflict { .. }));
        assert_eq!(conflict, FabricEvent::UplinkAddressConflict { address: pool.parse().unwrap(), mac: evil });
    }
    // The router gets another link address and says so.
    router.sysctl("ipv4/conf/eth0/arp_notify", "1");
    router.sysctl("ipv6/conf/eth0/ndisc_notify", "1");
    let new = MacAddr([2, 0, 0, 0, 0, 0x55]);
    router.ip(&format!("link set eth0 address {new}"));
    eventually("its successor is found", || host.both_gateways() == [Some(new); 2]);
    // It falls silent.
    router.sysctl("ipv4/conf/eth0/arp_ignore", "8");
    router.ip(&format!("addr del {}/64 dev eth0", ROUTER[1]));
    for address in ROUTER {
        liar.says(1, MacAddr::BROADCAST, (evil, address), (nobody, address));
        let dead: IpAddr = address.parse().unwrap();
        host.event("death", |event| *event == FabricEvent::GatewayUnreachable { address: dead });
        eventually("it is not used", || host.gateway(address).is_none());
    }
    router.sysctl("ipv4/conf/eth0/arp_ignore", "0");
    router.ip(&format!("addr add {}/64 dev eth0 nodad", ROUTER[1]));
    eventually("it is back", || host.both_gateways() == [Some(new); 2]);
}

fn kernel() {
    let router = Router::new("kernel");
    let mut host = Host::new();
    host.up();
    let remembered = host.dir.path().join("uplink-hidden");
    assert_eq!(std::fs::read_to_string(&remembered).unwrap(), "up0");
    // Our own kernel gets the addresses, too, and could answer: it must not. It answers ARP for all that it has, and neighbour
    // discovery for what the interface has.
    ip("route add 203.0.113.0/24 dev up0");
    ip("route add 2001:db8:f::/64 dev up0");
    let kernels = |what: &str| {
        ip(&format!("addr {what} {}/32 dev lo", POOL[0]));
        ip(&format!("addr {what} {}/128 dev up0{}", POOL[1], if what == "add" { " nodad" } else { "" }));
    };
    kernels("add");
    for address in POOL {
        assert!(!router.ping(address), "hidden");
        assert_eq!(router.knows(address), Some(ours()));
    }
    host.desired.uplink = None;
    host.desired.nat_pools.clear();
    host.fabric.apply(&host.desired).unwrap();
    assert!(host.fabric.uplink_status().is_none() && host.fabric.plane().tables.uplink.is_none());
    assert!(!remembered.exists());
    eventually("given back", || POOL.iter().all(|address| router.ping(address)));
    // A daemon that was killed leaves it hidden; the next one without an uplink finds that.
    kernels("del");
    host.desired = Desired { uplink: Some(spec()), nat_pools: vec![pool(&POOL)], ..Desired::default() };
    host.fabric.apply(&host.desired).unwrap();
    let left = std::fs::read(&remembered).unwrap();
    let other = tempfile::tempdir().unwrap();
    std::fs::write(other.path().join("uplink-hidden"), left).unwrap();
    kernels("add");
    assert!(!POOL.iter().any(|address| router.ping(address)));
    let (next, _events) = start(&host.runtime, other.path());
    next.apply(&Desired::default()).unwrap();
    eventually("the kernel answers again", || POOL.iter().all(|address| router.ping(address)));
    next.shutdown();
}

fn held() {
    let router = Router::new("held");
    let mut host = Host::new();
    host.up();
    for (address, other) in [("203.0.113.8", "192.0.2.9"), ("2001:db8:f::8", "2001:db8:e::9")] {
        let (length, nodad) = if address.contains(':') { (64, " nodad") } else { (24, "") };
        ip(&format!("addr add {address}/{length} dev up0{nodad}"));
        let (before, owned) = (host.desired.clone(), host.status().owned.len());
        host.desired.nat_pools[0].addresses.push(address.parse().unwrap());
        let wanted = host.desired.clone();
        let refused = |host: &Host| host.fabric.apply(&wanted).unwrap_err().to_string();
        let error = refused(&host);
        assert!(error.contains("use `driver: tap`") && !error.contains("address del"), "the only one: {error}");
        if address.parse::<IpAddr>().unwrap().is_ipv4() {
            // One that goes with it.
            ip("addr add 203.0.113.9/24 dev up0");
            assert!(refused(&host).contains("use `driver: tap`"));
            ip("addr del 203.0.113.9/24 dev up0");
        }
        ip(&format!("addr add {other}/{length} dev up0{nodad}"));
        let error = refused(&host);
        assert!(error.contains(&format!("`ip address del {address}/{length} dev up0`")), "{error}");
        assert_eq!(host.status().owned.len(), owned, "nothing has changed");
        host.fabric.apply(&before).unwrap();
        // After a restart it is no reason not to start, but the uplink waits.
        host.fabric.shutdown();
        (host.fabric, host.events) = start(&host.runtime, host.dir.path());
        host.fabric.apply(&wanted).unwrap();
        let failed = host.event("UplinkFailed", |event| matches!(event, FabricEvent::UplinkFailed { .. }));
        let FabricEvent::UplinkFailed { reason, .. } = failed else { unreachable!() };
        assert!(reason.contains(address) && host.status().reason == Some(reason));
        ip(&format!("addr del {address}/{length} dev up0"));
        ip(&format!("addr del {other}/{length} dev up0"));
        host.up();
        eventually("taken away, it works", || router.ping(OWN[0]) && router.ping(OWN[1]));
    }
}

fn tap() {
    // The kernel is the router: it routes the pool to the device.
    let spec = UplinkSpec { interface: "hw-up".to_owned(), driver: UplinkDriver::Tap, ..spec() };
    let mut host = Host::with(spec);
    host.up();
    let addresses = || {
        ip(&format!("addr add {}/24 dev hw-up", ROUTER[0]));
        ip(&format!("addr add {}/64 dev hw-up nodad", ROUTER[1]));
    };
    addresses();
    let kernel = interface("hw-up").unwrap().unwrap().mac;
    eventually("the kernel answers", || host.both_gateways() == [Some(kernel); 2]);
    let ours = host.status().mac.unwrap();
    assert_ne!(kernel, ours);
    let ping = |target: &str| {
        let mut command = Command::new("ping");
        command.args(["-n", "-c", "1", "-W", "1", target]).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().unwrap().success()
    };
    eventually("the host answers", || ping(OWN[0]) && ping(OWN[1]));
    for address in POOL {
        assert!(!ping(address));
        let output = Command::new("ip").args(["neigh", "show", "to", address]).output().unwrap();
        assert!(String::from_utf8_lossy(&output.stdout).contains(&ours.to_string()), "{address}");
    }
    ip("link del hw-up");
    host.event("UplinkDown", |event| matches!(event, FabricEvent::UplinkDown { .. }));
    host.up();
    addresses();
    eventually("made again", || ping(OWN[0]) && ping(OWN[1]));
}

fn flood() {
    let router = Router::new("flood");
    let mut host = Host::new();
    host.up();
    eventually("the gateways answer", || host.both_gateways() == [Some(router.mac()); 2]);
    let before = host.fabric.totals().iter().map(|totals| totals.originated).sum::<u64>();
    let mut liar = router.liar();
    let nobody = MacAddr::default();
    let started = Instant::now();
    for round in 0..20_000u32 {
        let evil = MacAddr([2, 1, (round >> 16) as u8, (round >> 8) as u8, round as u8, 1]);
        let v6 = round as usize % 2;
        let strangers = [("203.0.113.50", "203.0.113.60"), ("2001:db8:f::50", "2001:db8:f::60")][v6];
        let (from, target) = [strangers, (POOL[v6], POOL[v6]), (ROUTER[v6], POOL[v6])][round as usize % 3];
        liar.says(1, MacAddr::BROADCAST, (evil, from), (nobody, target));
    }
    // On a machine that has no time for the workers, what came before is still in the way, and a full socket loses what comes then.
    eventually("still there", || router.ping(OWN[0]) && router.ping(OWN[1]));
    eventually("the router is known", || host.both_gateways() == [Some(router.mac()); 2]);
    while let Ok(event) = host.events.try_recv() {
        let believed = matches!(event, FabricEvent::GatewayReachable { mac, .. } if mac != router.mac());
        assert!(!believed, "{event:?}");
    }
    // Four questions a second at most about each router that is claimed, and as many about addresses of ours.
    let most = 100 + 32 * started.elapsed().as_secs();
    let after = host.fabric.totals().iter().map(|totals| totals.originated).sum::<u64>();
    assert!(after - before < most, "{} of {most}", after - before);
}
