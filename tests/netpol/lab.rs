//! A packet path with a guest for each pod: real vhost-user, real frames. Nothing waits for a time-out: a frame that does not
//! arrive was counted as dropped, and the counters say when every frame sent has been dealt with.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hostweave::fabric::Fabric;
use hostweave::fabric::balance::serving::Serving;
use hostweave::fabric::spec::{
    BackendSpec, Condition, Desired, EndpointSpec, FabricConfig, FabricEvent, PortSpec, ServicePortSpec, ServiceSpec,
    SocketMode,
};
use hostweave_guest::features::VERSION_1;
use hostweave_guest::frames::{Frame, Path};
use hostweave_guest::nic::{Nic, NicConfig};
use hostweave_guest::{Profile, VnetHeader};
use hostweave_policy::model::Infrastructure;
use hostweave_switch::MacAddr;
use hostweave_switch::connection::Timeouts;
use hostweave_switch::counters::{PortTotals, output_closes};
use hostweave_switch::stage::DropReason;
use hostweave_switch::tables::Network;
use tokio::sync::mpsc::UnboundedReceiver;
use uuid::Uuid;

use crate::cluster::{Cluster, Pod};

/// How long the packet path may take to deal with a handful of frames, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Connections that a host has room for: those of a file, as long as they live.
const CONNECTIONS_MAX: u32 = 1 << 18;

/// Descriptors of a guest's rings. No more frames than that are on their way to it at a time.
pub const RING_SIZE: u16 = 256;

/// The network that all pods are in.
pub const NETWORK: &str = "cluster";

/// Its port to the host's own services.
pub const INTERNAL: &str = "network/cluster/internal";

/// The host.
pub struct Lab {
    pub fabric: Arc<Fabric>,
    pub runtime: tokio::runtime::Runtime,
    _events: UnboundedReceiver<FabricEvent>,
    desired: Desired,
    /// The network with its own gateway.
    network: Network,
    /// By pod.
    seats: BTreeMap<String, Seat>,
    /// Seats that there have been.
    seats_made: u32,
    dir: tempfile::TempDir,
}

/// A pod's port, and the guest on it.
struct Seat {
    /// Which case, and the pod's number in it: a pod that is made anew gets a new port.
    pod: (usize, u32),
    address: IpAddr,
    spec: PortSpec,
    nic: Nic,
    /// Frames sent.
    sent: u64,
}

impl Lab {
    /// A host with one network, which all addresses are in.
    ///
    /// # Errors
    /// When the machine refuses something.
    pub fn new(pods: &[IpAddr]) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir().context("a folder for sockets")?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let config = FabricConfig {
            workers: vec![None],
            runtime_dir: dir.path().to_owned(),
            helper: "/proc/self/exe".into(),
            connections_max: CONNECTIONS_MAX,
        };
        let (fabric, events) = runtime.block_on(async { Fabric::start(config) })?;
        let network = network(pods);
        let desired = Desired { networks: vec![network.clone()], timeouts: short_timeouts(), ..Desired::default() };
        Ok(Self { fabric, runtime, _events: events, desired, network, seats: BTreeMap::new(), seats_made: 0, dir })
    }

    /// Makes ports, labels and policies those of the world as it is now. Acknowledged when this returns.
    ///
    /// # Errors
    /// When the fabric refuses, or a guest cannot connect.
    pub fn apply(&mut self, case: usize, cluster: &Cluster) -> anyhow::Result<()> {
        let stays = |seat: &Seat, pod: &Pod| {
            seat.address == pod.address && (seat.pod == (case, pod.serial) || seat.pod.0 != case)
        };
        self.seats.retain(|name, seat| cluster.pods.get(name).is_some_and(|pod| !pod.external && stays(seat, pod)));
        let mut new = Vec::new();
        self.desired.ports.clear();
        for (name, pod) in cluster.inside() {
            let mut spec = match self.seats.get_mut(name) {
                Some(seat) => {
                    seat.pod = (case, pod.serial);
                    seat.spec.clone()
                }
                None => {
                    let spec = self.spec(pod);
                    new.push((name.clone(), (case, pod.serial), pod.address, spec.clone()));
                    spec
                }
            };
            spec.labels.clone_from(&pod.labels);
            spec.named_ports.clone_from(&pod.ports);
            self.desired.ports.push(spec.into());
        }
        self.desired.policy = cluster.policy_spec();
        // The cases know no rules of ours.
        self.desired.policy.infrastructure = Infrastructure { dns: false, metadata: false, health_probes: false };
        self.desired.networks = vec![self.network.clone()];
        self.desired.services = Arc::default();
        self.fabric.apply(&self.desired)?;
        for (name, pod, address, spec) in new {
            let nic = connect(&spec).with_context(|| format!("the guest of {name}"))?;
            self.seats.insert(name, Seat { pod, address, spec, nic, sent: 0 });
        }
        Ok(())
    }

    /// Puts a Service before each of these pods, with an L4 port of its own ([`service_l4`]) for each L4 port of theirs, by IP protocol,
    /// until the next [`Lab::apply`]. Each has a backend when this returns.
    ///
    /// # Errors
    /// When the fabric refuses, or a pod is not there.
    pub fn serve(&mut self, wanted: &BTreeMap<String, BTreeSet<(u8, u16)>>) -> anyhow::Result<()> {
        let services = wanted.iter().map(|(pod, l4)| self.service(pod, l4).map(Arc::new));
        self.desired.services = Arc::new(services.collect::<anyhow::Result<_>>()?);
        self.fabric.apply(&self.desired)?;
        let end = Instant::now() + PATIENCE;
        // What guests have done is heard of in a moment.
        while !self.fabric.service_counts().iter().all(|counts| counts.serving == Some(Serving::Everywhere)) {
            if Instant::now() > end {
                bail!("not every Service has its backend: {:?}", self.fabric.service_counts());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn service(&self, pod: &str, l4: &BTreeSet<(u8, u16)>) -> anyhow::Result<ServiceSpec> {
        let seat = self.seats.get(pod).with_context(|| format!("no guest {pod}"))?;
        let port = |(proto, l4): &(u8, u16)| ServicePortSpec {
            name: format!("p{proto}-{l4}"),
            proto: *proto,
            l4: service_l4(*l4)..=service_l4(*l4),
            endpoints: vec![EndpointSpec {
                name: pod.to_owned(),
                port: Some(seat.spec.uid),
                address: seat.address,
                l4: Some(*l4),
                weight: 1,
                condition: Condition::Ready,
                internal: true,
                external: true,
                rank: 0,
            }],
        };
        Ok(ServiceSpec {
            network: NETWORK.to_owned(),
            cluster: vec![self.service_address(pod)?],
            ports: l4.iter().map(port).collect(),
            ..ServiceSpec::bare(pod)
        })
    }

    /// The address of the Service before a pod: none that a pod or anybody outside has.
    ///
    /// # Errors
    /// When the pod is not there.
    pub fn service_address(&self, pod: &str) -> anyhow::Result<IpAddr> {
        let at = self.seats.keys().position(|name| name == pod).with_context(|| format!("no guest {pod}"))?;
        let number = u32::try_from(at)? + 1;
        let seat = self.seats.get(pod).with_context(|| format!("no guest {pod}"))?;
        Ok(match seat.address {
            IpAddr::V4(_) => Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 0)) + number).into(),
            IpAddr::V6(_) => Ipv6Addr::from((0x2001_0002_u128 << 96) | u128::from(number)).into(),
        })
    }

    /// Gives the gateway an address, until the next [`Lab::apply`].
    ///
    /// # Errors
    /// When the fabric refuses.
    pub fn take_address(&mut self, address: IpAddr) -> anyhow::Result<()> {
        let mut network = self.network.clone();
        match address {
            IpAddr::V4(address) => network.v4.iter_mut().for_each(|(_, gateway)| *gateway = address),
            IpAddr::V6(address) => network.v6.iter_mut().for_each(|(_, gateway)| *gateway = address),
        }
        self.desired.networks = vec![network];
        self.fabric.apply(&self.desired)
    }

    /// Whether it is the address of a pod.
    pub fn has(&self, address: IpAddr) -> bool {
        self.seats.values().any(|seat| seat.address == address)
    }

    /// The way from one pod to another.
    pub fn path(&self, from: &str, to: IpAddr) -> anyhow::Result<Path> {
        let seat = self.seats.get(from).with_context(|| format!("no guest {from}"))?;
        Ok(Path::new(seat.spec.mac.0, MacAddr::ROUTER.0, seat.address, to))
    }

    /// Puts a frame into a guest's transmit queue.
    pub fn push(&mut self, from: &str, frame: &[u8]) -> anyhow::Result<()> {
        let seat = self.seats.get_mut(from).with_context(|| format!("no guest {from}"))?;
        seat.nic.push_frame(0, &VnetHeader::default(), frame)?;
        seat.sent += 1;
        Ok(())
    }

    /// Sends everything pushed and waits until all of it has arrived or was dropped.
    ///
    /// # Errors
    /// When frames are neither there nor dropped in the end.
    pub fn settle(&mut self) -> anyhow::Result<BTreeMap<String, PortTotals>> {
        for seat in self.seats.values_mut() {
            seat.nic.flush(0)?;
        }
        self.rest()
    }

    /// The next frame that a guest has got, if there is one.
    ///
    /// # Errors
    /// When it is no frame.
    pub fn take(&mut self, pod: &str) -> anyhow::Result<Option<Frame>> {
        let seat = self.seats.get_mut(pod).with_context(|| format!("no guest {pod}"))?;
        let mut frame = Vec::new();
        let found = seat.nic.recv_frame(&mut frame)?;
        found.map(|(_, header)| Frame::parse(&header, &frame).map_err(anyhow::Error::msg)).transpose()
    }

    /// As [`Lab::settle`]; returns what arrived where.
    ///
    /// # Errors
    /// Likewise.
    pub fn exchange(&mut self) -> anyhow::Result<Vec<(String, Frame)>> {
        let totals = self.settle()?;
        let mut arrived = Vec::new();
        for (name, seat) in &mut self.seats {
            let due = totals.get(name).map_or(0, |totals| totals.transmitted);
            let end = Instant::now() + PATIENCE;
            let mut frame = Vec::new();
            while seat.nic.counters.rx_frames < due {
                match seat.nic.recv_frame(&mut frame)? {
                    Some((_, header)) => {
                        let frame = Frame::parse(&header, &frame).map_err(anyhow::Error::msg)?;
                        arrived.push((name.clone(), frame));
                    }
                    None if Instant::now() > end => bail!("{name} was sent a frame that is not in its ring"),
                    None => std::thread::yield_now(),
                }
            }
        }
        Ok(arrived)
    }

    /// Frames of each pod that were dropped so far, by reason.
    ///
    /// # Errors
    /// When a port is not there.
    pub fn dropped(&self) -> anyhow::Result<BTreeMap<String, Vec<(DropReason, u64)>>> {
        let dropped = |name: &String| Ok((name.clone(), self.totals_of(name)?.dropped));
        self.seats.keys().map(dropped).collect()
    }

    /// Frames of a port that policy dropped so far.
    ///
    /// # Errors
    /// When it is not there.
    pub fn denied(&self, port: &str) -> anyhow::Result<u64> {
        let dropped = self.totals_of(port)?.dropped;
        Ok(dropped.iter().find(|(reason, _)| *reason == DropReason::PolicyDenied).map_or(0, |(_, count)| *count))
    }

    /// Frames of a port that were dropped so far.
    ///
    /// # Errors
    /// When it is not there.
    pub fn dropped_of(&self, port: &str) -> anyhow::Result<u64> {
        Ok(self.totals_of(port)?.dropped_all())
    }

    fn totals_of(&self, name: &str) -> anyhow::Result<PortTotals> {
        let inside = self.fabric.port_status(name);
        // Internal ports are found among all of them only.
        let find = || self.fabric.port_statuses().into_iter().find(|(port, _)| port == name).map(|(_, status)| status);
        Ok(inside.or_else(find).with_context(|| format!("no port {name}"))?.totals)
    }

    /// Waits until every frame sent is accounted for.
    fn rest(&self) -> anyhow::Result<BTreeMap<String, PortTotals>> {
        let read = |name: &String| Ok((name.clone(), self.totals_of(name)?));
        let end = Instant::now() + PATIENCE;
        loop {
            let totals: BTreeMap<String, PortTotals> = self.seats.keys().map(read).collect::<anyhow::Result<_>>()?;
            let taken = |(name, seat): (&String, &Seat)| {
                let Some(totals) = totals.get(name) else { return false };
                totals.received == seat.sent && totals.queued == 0 && totals.tx_queued == 0 && totals.input_closes()
            };
            if self.seats.iter().all(taken) && output_closes(&self.fabric.totals()) {
                // The first port was read before the last one's frames were dealt with.
                return self.seats.keys().map(read).collect();
            }
            if Instant::now() > end {
                bail!("the packet path does not come to rest: {totals:#?}");
            }
            std::thread::sleep(Duration::from_micros(20));
        }
    }

    fn spec(&mut self, pod: &Pod) -> PortSpec {
        self.seats_made += 1;
        let number = self.seats_made;
        let [a, b, c, d] = number.to_be_bytes();
        let socket = self.dir.path().join(format!("{number}.sock"));
        let (v4, v6) = match pod.address {
            IpAddr::V4(address) => (vec![address], Vec::new()),
            IpAddr::V6(address) => (Vec::new(), vec![address]),
        };
        PortSpec {
            uid: Uuid::new_v4(),
            network: NETWORK.into(),
            mac: MacAddr([0x02, 0, a, b, c, d]),
            v4,
            v6,
            backend: BackendSpec::VhostUser {
                mode: SocketMode::Listen,
                socket,
                incoming_socket: None,
                queues: 1,
                group: None,
                allowed_uids: Vec::new(),
            },
            flows_max: CONNECTIONS_MAX,
            ..PortSpec::bare(&pod.namespace, &pod.name)
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.fabric.shutdown();
    }
}

/// The Service's L4 port for one of its backend: another one.
pub const fn service_l4(l4: u16) -> u16 {
    const FAR: u16 = 10_000;
    if l4 < u16::MAX - FAR { l4 + FAR } else { l4 - FAR }
}

/// A guest without offloads, whose rings run: a frame for it is delivered.
fn connect(spec: &PortSpec) -> anyhow::Result<Nic> {
    let BackendSpec::VhostUser { socket, .. } = &spec.backend else { bail!("not a vhost-user port") };
    let config = NicConfig {
        profile: Profile::Dpdk,
        features: VERSION_1,
        ring_size: RING_SIZE,
        timeout: PATIENCE,
        ..NicConfig::new(socket)
    };
    let nic = Nic::connect(config)?;
    nic.frontend.barrier()?;
    Ok(nic)
}

/// Nothing here lasts: what was judged may be forgotten.
fn short_timeouts() -> Timeouts {
    const SECONDS: u32 = 20;
    Timeouts {
        tcp_established: SECONDS,
        tcp_opening: SECONDS,
        tcp_closing: SECONDS,
        tcp_time_wait: SECONDS,
        tcp_closed: 1,
        udp_unreplied: SECONDS,
        udp_stream: SECONDS,
        icmp: SECONDS,
        sctp: SECONDS,
        other: SECONDS,
        ..Timeouts::default()
    }
}

/// A network for addresses: as narrow as it can be with a gateway that is none of them.
fn network(pods: &[IpAddr]) -> Network {
    let v4: Vec<u128> = pods.iter().filter_map(|ip| as_v4(*ip)).map(|ip| u128::from(u32::from(ip))).collect();
    let v6: Vec<u128> = pods.iter().filter_map(|ip| as_v6(*ip)).map(u128::from).collect();
    let v4 = cover(&v4, 32).map(|(len, range, gateway)| {
        let range = ipnet::Ipv4Net::new_assert(Ipv4Addr::from(range as u32), len);
        (range, Ipv4Addr::from(gateway as u32))
    });
    let v6 = cover(&v6, 128)
        .map(|(len, range, gateway)| (ipnet::Ipv6Net::new_assert(Ipv6Addr::from(range), len), Ipv6Addr::from(gateway)));
    Network { v4, v6, ..Network::bare(NETWORK, 1) }
}

const fn as_v4(ip: IpAddr) -> Option<Ipv4Addr> {
    match ip {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    }
}

const fn as_v6(ip: IpAddr) -> Option<Ipv6Addr> {
    match ip {
        IpAddr::V4(_) => None,
        IpAddr::V6(ip) => Some(ip),
    }
}

/// Prefix length, first address and gateway of the narrowest range of `bits`-bit addresses that has all of `addresses`
/// between its first and its last and one more; `None` for none.
fn cover(addresses: &[u128], bits: u32) -> Option<(u8, u128, u128)> {
    let (least, most) = (*addresses.iter().min()?, *addresses.iter().max()?);
    (0..=bits).rev().find_map(|len| {
        let hosts = 1_u128.checked_shl(bits - len).map_or(u128::MAX, |size| size - 1);
        let (first, last) = (least & !hosts, least | hosts);
        let inside = first < least && most < last;
        let gateway = (first.saturating_add(1)..last).find(|ip| !addresses.contains(ip));
        gateway.filter(|_| inside).map(|gateway| (len as u8, first, gateway))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_all_pods_and_another_address_for_the_gateway() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let (range, gateway) = network(&[ip("10.0.0.1"), ip("10.0.0.2")]).v4.unwrap();
        assert_eq!((range.to_string(), gateway.to_string()), ("10.0.0.0/29".into(), "10.0.0.3".into()));
        let (range, gateway) = network(&[ip("10.0.0.255"), ip("10.0.1.0")]).v4.unwrap();
        assert_eq!((range.to_string(), gateway.to_string()), ("10.0.0.0/23".into(), "10.0.0.1".into()));
        let (range, gateway) = network(&[ip("1.0.0.1"), ip("200.0.0.1")]).v4.unwrap();
        assert_eq!((range.to_string(), gateway.to_string()), ("0.0.0.0/0".into(), "0.0.0.1".into()));
        let (range, gateway) = network(&[ip("fd77:1::10"), ip("fd77:4::1")]).v6.unwrap();
        assert_eq!((range.to_string(), gateway.to_string()), ("fd77::/29".into(), "fd77::1".into()));
        assert_eq!(network(&[]).v4, None);
    }
}
