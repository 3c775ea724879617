//! A host with networks and ports, and guests on them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use hostweave::fabric::Fabric;
use hostweave::fabric::spec::{BackendSpec, Desired, FabricConfig, FabricEvent, PortSpec, PortStatus, SocketMode};
use hostweave_guest::frames::{Frame, Path, Segment};
use hostweave_guest::{Guest, GuestBuilder, VnetHeader};
use hostweave_policy::model::{NetworkPolicy, PolicyName, PortMatch, Protocol, Rule, Selector};
use hostweave_switch::MacAddr;
use hostweave_switch::counters::{PortTotals, output_closes};
use hostweave_switch::stage::DropReason;
use hostweave_switch::tables::Network;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::UnboundedReceiver;
use uuid::Uuid;

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Held by every host, exclusively by those that look at the whole process (descriptors, CPU time).
static PROCESS: RwLock<()> = RwLock::new(());

#[allow(dead_code, reason = "guards are only held")]
enum Share {
    Shared(RwLockReadGuard<'static, ()>),
    Alone(RwLockWriteGuard<'static, ()>),
}

/// A running packet path in a folder of its own.
pub struct Host {
    pub fabric: Arc<Fabric>,
    pub desired: Desired,
    events: UnboundedReceiver<FabricEvent>,
    pub seen: Vec<FabricEvent>,
    pub runtime: Runtime,
    dir: tempfile::TempDir,
    /// Dropped last: the next host starts when this one is gone.
    #[allow(dead_code, reason = "held")]
    share: Share,
}

impl Host {
    /// `workers` threads and the network `default` (192.0.2.0/24, 2001:db8:1::/64).
    pub fn new(workers: usize) -> Self {
        Self::start(workers, Share::Shared(PROCESS.read().unwrap_or_else(PoisonError::into_inner)))
    }

    /// As [`Host::new`], with no other host in the process.
    pub fn alone(workers: usize) -> Self {
        Self::start(workers, Share::Alone(PROCESS.write().unwrap_or_else(PoisonError::into_inner)))
    }

    fn start(workers: usize, share: Share) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (fabric, events) = start_fabric(&runtime, workers, dir.path());
        let desired = Desired { networks: vec![network("default", 1, 1500)], ..Desired::default() };
        Self { fabric, desired, events, seen: Vec::new(), runtime, dir, share }
    }

    /// Ends the packet path and starts another one with the same sockets, as a restart of the daemon does.
    pub fn restart(&mut self) {
        let workers = self.fabric.worker_reports().len();
        self.fabric.shutdown();
        (self.fabric, self.events) = start_fabric(&self.runtime, workers, self.dir.path());
        self.apply();
    }

    /// Adds a port and applies. `n` becomes the last octet of its addresses and MAC.
    pub fn port(&mut self, name: &str, n: u8) -> PortSpec {
        self.port_in("default", name, n, 1)
    }

    /// As [`Host::port`], in a network, with that many queue pairs.
    pub fn port_in(&mut self, network: &str, name: &str, n: u8, queues: u16) -> PortSpec {
        let spec = self.spec(network, name, n, queues);
        self.desired.ports.push(spec.clone().into());
        self.apply();
        spec
    }

    pub fn apply(&self) {
        self.fabric.apply(&self.desired).unwrap();
    }

    /// A port that is not applied yet.
    pub fn spec(&self, network: &str, name: &str, n: u8, queues: u16) -> PortSpec {
        let network = self.desired.networks.iter().find(|known| known.name == network).unwrap();
        let mac = mac(n);
        let v4 = network.v4.map(|(net, _)| Ipv4Addr::from(u32::from(net.network()) + u32::from(n)));
        let v6 = network.v6.map(|(net, _)| {
            let mut octets = net.network().octets();
            octets[8..].copy_from_slice(&mac.eui64());
            Ipv6Addr::from(octets)
        });
        PortSpec {
            uid: Uuid::new_v4(),
            network: network.name.clone(),
            mac,
            v4: v4.into_iter().collect(),
            v6: v6.into_iter().collect(),
            backend: BackendSpec::VhostUser {
                mode: SocketMode::Listen,
                socket: self.dir.path().join(format!("{name}.sock")),
                incoming_socket: Some(self.dir.path().join(format!("{name}.incoming.sock"))),
                queues,
                group: None,
                allowed_uids: Vec::new(),
            },
            ..PortSpec::bare("test", name)
        }
    }

    /// A guest builder for a port.
    pub fn guest(&self, spec: &PortSpec) -> GuestBuilder {
        let BackendSpec::VhostUser { socket, queues, .. } = &spec.backend else { panic!("not a vhost-user port") };
        let builder =
            Guest::builder().profile(hostweave_guest::Profile::Dpdk).socket(socket).mac(spec.mac.0).timeout(PATIENCE);
        builder.pairs(usize::from(*queues))
    }

    /// A guest with its addresses from DHCP and RA, on a new port.
    pub fn ready_guest(&mut self, name: &str, n: u8) -> Guest {
        let spec = self.port(name, n);
        let mut guest = self.guest(&spec).up();
        self.settle(&mut guest, &spec);
        guest
    }

    /// Gets a guest its addresses and checks that they are the port's.
    pub fn settle(&self, guest: &mut Guest, spec: &PortSpec) {
        if let Some(address) = spec.v4.first() {
            assert_eq!(guest.dhcp(PATIENCE).unwrap().address, *address);
        }
        if let Some(address) = spec.v6.first() {
            assert_eq!(guest.slaac(PATIENCE).unwrap(), *address);
        }
    }

    pub fn status(&self, name: &str) -> PortStatus {
        self.fabric.port_status(&format!("test/{name}")).unwrap()
    }

    pub fn dropped(&self, name: &str, reason: DropReason) -> u64 {
        count(&self.status(name).totals.dropped, reason)
    }

    pub fn tx_dropped(&self, name: &str, reason: DropReason) -> u64 {
        count(&self.status(name).totals.tx_dropped, reason)
    }

    /// Waits for an event.
    pub fn event(&mut self, what: &str, mut wanted: impl FnMut(&FabricEvent) -> bool) -> FabricEvent {
        let end = Instant::now() + PATIENCE;
        loop {
            while let Ok(event) = self.events.try_recv() {
                self.seen.push(event.clone());
                if wanted(&event) {
                    return event;
                }
            }
            assert!(Instant::now() < end, "no {what} in {:#?}", self.seen);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Asserts both sums of the ledger, once traffic has come to rest.
    pub fn assert_ledger(&self) {
        let end = Instant::now() + PATIENCE;
        loop {
            let before: Vec<PortTotals> = self.fabric.totals();
            std::thread::sleep(Duration::from_millis(20));
            let totals = self.fabric.totals();
            let quiet = before == totals;
            let input = totals.iter().all(PortTotals::input_closes);
            if quiet && input && output_closes(&totals) {
                return;
            }
            assert!(Instant::now() < end, "the ledger does not close (quiet: {quiet}): {totals:#?}");
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            while let Ok(event) = self.events.try_recv() {
                self.seen.push(event);
            }
            eprintln!("events: {:#?}", self.seen);
            eprintln!("ports: {:#?}", self.fabric.port_statuses());
        } else {
            self.assert_ledger();
        }
        self.fabric.shutdown();
    }
}

fn start_fabric(
    runtime: &Runtime,
    workers: usize,
    dir: &std::path::Path,
) -> (Arc<Fabric>, UnboundedReceiver<FabricEvent>) {
    let config = FabricConfig {
        workers: vec![None; workers],
        runtime_dir: dir.to_owned(),
        helper: PathBuf::from(env!("CARGO_BIN_EXE_hostweave")),
        connections_max: 65_536,
    };
    runtime.block_on(async { Fabric::start(config).unwrap() })
}

fn count(reasons: &[(DropReason, u64)], wanted: DropReason) -> u64 {
    reasons.iter().find(|(reason, _)| *reason == wanted).map_or(0, |(_, count)| *count)
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, condition: impl FnMut() -> bool) {
    within(PATIENCE, what, condition);
}

/// The same, with more or less patience.
pub fn within(patience: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + patience;
    while !condition() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub fn mac(n: u8) -> MacAddr {
    MacAddr([0x02, 0, 0, 0, 0, n])
}

/// A network `192.0.2.0/24` and `2001:db8:<vni>::/64`, so that two of them overlap in IPv4.
pub fn network(name: &str, vni: u16, mtu: u16) -> Network {
    let v6 = Ipv6Addr::new(0x2001, 0xdb8, vni, 0, 0, 0, 0, 0);
    Network {
        v4: Some(("192.0.2.0/24".parse().unwrap(), Ipv4Addr::new(192, 0, 2, 1))),
        v6: Some((ipnet::Ipv6Net::new(v6, 64).unwrap(), Ipv6Addr::from(u128::from(v6) + 1))),
        mtu,
        learning: true,
        ..Network::bare(name, u32::from(vni))
    }
}

/// The port's addresses, IPv4 first.
pub fn addresses(spec: &PortSpec) -> Vec<IpAddr> {
    spec.addresses().collect()
}

/// The way from one port to another: IPv4 first.
pub fn paths(from: &PortSpec, to: &PortSpec) -> Vec<Path> {
    let pairs = addresses(from).into_iter().zip(addresses(to));
    pairs.map(|(src, dst)| Path::new(from.mac.0, MacAddr::ROUTER.0, src, dst)).collect()
}

/// The way from a port to an address of the same version as one of its own.
pub fn path_to(from: &PortSpec, to: impl Into<IpAddr>) -> Path {
    let to = to.into();
    let src = from.addresses().find(|address| address.is_ipv4() == to.is_ipv4()).unwrap();
    Path::new(from.mac.0, MacAddr::ROUTER.0, src, to)
}

/// Connects and waits until the backend has started the rings: a frame for this guest is then delivered.
pub trait Up {
    fn up(self) -> Guest;
}

impl Up for GuestBuilder {
    fn up(self) -> Guest {
        let mut guest = self.connect().unwrap();
        guest.nic().frontend.barrier().unwrap();
        guest
    }
}

/// A policy that isolates every port of a namespace for ingress, and lets these L4 ports in; none of them lets nothing in.
pub fn only(namespace: &str, ports: &[(Protocol, u16)]) -> Arc<NetworkPolicy> {
    let ports: Vec<_> = ports.iter().map(|(protocol, port)| PortMatch::Range(*protocol, *port, *port)).collect();
    // A rule without ports would be one for all ports (SEMANTICS NP12).
    let rule = (!ports.is_empty()).then(|| Rule { origin: String::new(), peers: Vec::new(), ports });
    Arc::new(NetworkPolicy {
        name: PolicyName { namespace: Some(namespace.into()), name: "only".into() },
        origin: String::new(),
        selector: Selector::default(),
        ingress: Some(rule.into_iter().collect()),
        egress: None,
        audit: false,
    })
}

/// Opens a TCP connection with bare segments, so that the switch lets data through. Returns the segment that data of `from`
/// begins with.
pub fn handshake(from: &mut Guest, to: &mut Guest, path: &Path, src_port: u16, dst_port: u16) -> Segment {
    let data = Segment { src_port, dst_port, seq: 1_001, ack: 5_001, flags: ACK, window: 65_535 };
    handshake_before(from, to, path, &data);
    data
}

/// Opens the TCP connection in which `data` may follow; again, if it is open already.
pub fn handshake_before(from: &mut Guest, to: &mut Guest, path: &Path, data: &Segment) {
    const SYN: u8 = 2;
    let back = Path::new(to.mac(), MacAddr::ROUTER.0, path.dst, path.src);
    let (src_port, dst_port, window) = (data.src_port, data.dst_port, 65_535);
    let (seq, ack) = (data.seq.wrapping_sub(1), data.ack.wrapping_sub(1));
    send_segment(from, to, path, &Segment { src_port, dst_port, seq, ack: 0, flags: SYN, window });
    let (src_port, dst_port) = (dst_port, src_port);
    send_segment(to, from, &back, &Segment { src_port, dst_port, seq: ack, ack: data.seq, flags: SYN | ACK, window });
    send_segment(from, to, path, &Segment { flags: ACK, ..*data });
}

const ACK: u8 = 16;

/// Sends a segment without data and waits until it arrived.
pub fn send_segment(from: &mut Guest, to: &mut Guest, path: &Path, segment: &Segment) {
    from.send_frame(&path.tcp(segment, &[]), &VnetHeader::default()).unwrap();
    loop {
        let (header, frame) = to.recv_frame(PATIENCE).unwrap();
        let frame = Frame::parse(&header, &frame).unwrap();
        if frame.tcp().is_some_and(|(got, _)| (got.seq, got.flags) == (segment.seq, segment.flags)) {
            return;
        }
    }
}
