//! What control asks of the packet path: the desired networks and ports, with everything resolved.
//!
//! Control (objects, IPAM, store) produces a [`Desired`]; [`super::Fabric::apply`] makes it so. What happens below
//! (a VMM connects, a guest forms an address) comes back as [`FabricEvent`].

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::{Deref, DerefMut, RangeInclusive};
use std::path::PathBuf;
use std::sync::Arc;

pub use hostweave_nat::Filtering;
pub use hostweave_nat::service::Refusal;
use hostweave_policy::model::{
    ClusterNetworkPolicy, DefaultPolicy, Infrastructure, Labels, NamedPort, Namespace, NetworkPolicy,
};
use hostweave_switch::MacAddr;
pub use hostweave_switch::connection::Timeouts;
pub use hostweave_switch::rate::PortRates;
pub use hostweave_switch::tables::LocalServices;
use hostweave_switch::tables::Network;
use hostweave_switch::wire::proto;
use ipnet::IpNet;
use uuid::Uuid;

use super::balance::choice::BackendState;
use super::balance::history::Change;
use super::balance::serving::Serving;
use super::nat_report::LeaseView;
pub use crate::services::dns::spec::DnsSpec;
pub use crate::services::external_dns::news::NameChange;
pub use crate::services::external_dns::spec::ExternalDnsSpec;
pub use crate::services::metadata::spec::{MetadataSpec, PortMetadata};

/// Connections that a host has room for, where nothing is written.
pub const CONNECTIONS_MAX_DEFAULT: u32 = 1 << 18;

/// Connections that a port may have opened at a time, where nothing is written.
pub const FLOWS_MAX_DEFAULT: u32 = 1 << 16;

/// How the packet path is laid out. Fixed for the life of the process.
#[derive(Clone, Debug)]
pub struct FabricConfig {
    /// One worker per entry, pinned to that CPU; `None` leaves placement to the kernel.
    pub workers: Vec<Option<usize>>,
    /// Folder of sockets and shared mappings.
    pub runtime_dir: PathBuf,
    /// Executable for `attach-netns`; normally `/proc/self/exe`.
    pub helper: PathBuf,
    /// Connections that the host has room for.
    pub connections_max: u32,
}

/// Everything that is to exist.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// Networks, by unique name. `internal` is filled in by the fabric.
    pub networks: Vec<Network>,
    /// Ports, by unique (namespace, name).
    pub ports: Ports,
    /// What policy depends on, besides ports.
    pub policy: PolicySpec,
    /// What becomes of established connections when policies change.
    pub established: Established,
    /// What the host answers itself, before policy.
    pub local: LocalServices,
    /// When an idle connection is forgotten.
    pub timeouts: Timeouts,
    /// Whether TCP in mid-stream begins a connection (SEMANTICS CT1).
    pub loose_tcp: bool,
    /// The way out of the host.
    pub uplink: Option<UplinkSpec>,
    /// Pools of NAT addresses, by unique name.
    pub nat_pools: Vec<NatPoolSpec>,
    /// Ranges that Services have their public addresses from: routed to this host, whether somebody has an address or not.
    pub public: Vec<IpNet>,
    /// Public addresses that sit on one port each; no address twice.
    pub attached: Vec<AttachSpec>,
    /// DNS at the gateways; `None` for none.
    pub dns: Option<DnsSpec>,
    /// Names of Services in a real zone; `None` for none.
    pub external_dns: Option<Arc<ExternalDnsSpec>>,
    /// Metadata for guests; `None` for none.
    pub metadata: Option<MetadataSpec>,
    /// Services that spread connections, by namespace and name.
    pub services: Arc<Vec<Arc<ServiceSpec>>>,
}

/// A list of ports, by namespace and name where it comes of objects. Cheap to clone, and to compare with its own clone: a change of policy
/// costs nothing per port, that of a port a pointer for each.
#[derive(Clone, Debug, Default)]
pub struct Ports(Arc<Vec<Arc<PortSpec>>>);

impl Ports {
    /// A port that is to be changed, where it is; its own copy of it.
    pub fn edit(&mut self, at: usize) -> Option<&mut PortSpec> {
        Arc::make_mut(&mut self.0).get_mut(at).map(Arc::make_mut)
    }

    /// Where a port of this namespace and name stands, or would stand.
    ///
    /// # Errors
    /// Where it would.
    pub fn place(&self, namespace: &str, name: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|port| (port.namespace.as_str(), port.name.as_str()).cmp(&(namespace, name)))
    }
}

impl PartialEq for Ports {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl Deref for Ports {
    type Target = Vec<Arc<PortSpec>>;

    fn deref(&self) -> &Vec<Arc<PortSpec>> {
        &self.0
    }
}

/// Copies the list if a clone of it is in use.
impl DerefMut for Ports {
    fn deref_mut(&mut self) -> &mut Vec<Arc<PortSpec>> {
        Arc::make_mut(&mut self.0)
    }
}

impl From<Vec<PortSpec>> for Ports {
    fn from(ports: Vec<PortSpec>) -> Self {
        ports.into_iter().collect()
    }
}

impl FromIterator<PortSpec> for Ports {
    fn from_iter<I: IntoIterator<Item = PortSpec>>(ports: I) -> Self {
        Self(Arc::new(ports.into_iter().map(Arc::new).collect()))
    }
}

impl<'a> IntoIterator for &'a Ports {
    type Item = &'a Arc<PortSpec>;
    type IntoIter = std::slice::Iter<'a, Arc<PortSpec>>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

/// The way out of the host (`HostConfig.spec.uplink`).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct UplinkSpec {
    /// Interface of the daemon's own network namespace.
    pub interface: String,
    /// How frames get there.
    pub driver: UplinkDriver,
    /// The host's own addresses at the uplink, each with the length of its subnet.
    pub addresses: Vec<IpNet>,
    /// Default routers, at equal cost, of both families.
    pub gateways: Vec<IpAddr>,
    /// IEEE 802.1Q tag, 1 to 4094.
    pub vlan: Option<u16>,
    /// Octets of IP packet; `None` takes the interface's.
    pub mtu: Option<u16>,
    /// What happens to an address that somebody else there has, too.
    pub on_conflict: OnConflict,
}

/// What happens to an address of ours at the uplink that somebody else there has, too.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnConflict {
    /// It is probed before it is announced, and not used if somebody answers; once it is ours it is defended whatever others say
    /// (RFC 5227 §2.4 (c)).
    #[default]
    Defend,
    /// It is probed; later it is defended once, and given up when it is claimed again (RFC 5227 §2.4 (b)). Two forged frames do.
    Yield,
    /// It is used without asking. A claim is an event.
    Ignore,
}

/// How frames get to the uplink.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum UplinkDriver {
    /// A packet socket on an existing interface.
    #[default]
    AfPacket,
    /// A TAP device, which the kernel routes from and to.
    Tap,
    /// As with `AfPacket`, but small frames leave by an AF_XDP socket.
    AfXdp,
}

/// Addresses for ports without a public one (`NatPool`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NatPoolSpec {
    /// Name of the object.
    pub name: String,
    /// Its addresses, both families, each once.
    pub addresses: Vec<IpAddr>,
    /// Addresses that take no new connections; part of `addresses`.
    pub draining: Vec<IpAddr>,
    /// Uids of the ports that it serves; control has resolved networks and selectors. The first pool by name that serves
    /// a port, with an address of the family, has it.
    pub ports: Vec<Uuid>,
    /// By family of addresses ([`V4`](hostweave_nat::V4), [`V6`](hostweave_nat::V6)): who the host itself is in networks that it leaves by this
    /// pool ([`internal_uid`]).
    pub hosts: [Vec<Uuid>; 2],
    /// L4 ports per block, a power of two, 64 to 4096.
    pub block_size: u16,
    /// Blocks that a workload gets at once, and at most.
    pub blocks: RangeInclusive<u16>,
    /// Who may send to a mapping from outside (RFC 4787 §5).
    pub filtering: Filtering,
    /// Whether TCP connections to different destinations may share an L4 port when the block is full (SEMANTICS NA17).
    pub overload: bool,
    /// What one port may have, besides blocks (SEMANTICS NA25).
    pub limits: hostweave_nat::Limits,
}

/// A public address on one port (SEMANTICS DA1 to DA6).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AttachSpec {
    /// The address.
    pub address: IpAddr,
    /// Uid of the port.
    pub port: Uuid,
    /// `namespace/name` of the Service that it belongs to.
    pub service: String,
    /// Whether the guest does not see it: 1:1 NAT to its first private address of the family.
    pub one_to_one: bool,
}

/// Who the host itself is in a network, to NAT: whom blocks of L4 ports are leased to. The same for a VNI in every run, and nobody's
/// else: version 8 of RFC 9562, which objects do not get.
pub fn internal_uid(vni: u32) -> Uuid {
    const INTERNAL: u128 = 0x686f_7374_7765_8076_8065_0000_0000_0000;
    Uuid::from_u128(INTERNAL | u128::from(vni))
}

/// A Service that spreads connections over backends (SEMANTICS §2).
#[derive(Clone, PartialEq, Debug)]
pub struct ServiceSpec {
    /// `namespace/name`.
    pub name: String,
    /// Name of its network: that of its backends, and of the clients of its cluster addresses.
    pub network: String,
    /// Addresses inside the network: `clusterIPs`.
    pub cluster: Vec<IpAddr>,
    /// Addresses out of pools: `status.loadBalancer.ingress`.
    pub load_balancer: Vec<LoadBalancerAddress>,
    /// Its L4 ports.
    pub ports: Vec<ServicePortSpec>,
    /// Headless: its name stands for its backends, for those that are healthy. It has no addresses.
    pub names_healthy: bool,
    /// `internalTrafficPolicy: Local`: ranks mean nothing to clients in the network.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`: ranks mean nothing to others.
    pub external_local: bool,
    /// `sessionAffinity: ClientIP`: for how many seconds.
    pub affinity_s: Option<u32>,
    /// `loadBalancerSourceRanges`; empty for everybody.
    pub sources: Vec<IpNet>,
    /// What clients in the network get when no backend is eligible for them.
    pub refusal_internal: Refusal,
    /// What others get.
    pub refusal_external: Refusal,
    /// Active checks; `None` for none.
    pub health: Option<HealthSpec>,
    /// When backends that clients cannot connect to are ejected; `None` for never.
    pub outlier: Option<OutlierSpec>,
    /// What happens when all backends that are ready fail their checks.
    pub all_down: AllDown,
    /// What becomes of TCP connections to a backend that takes no new ones.
    pub drain: Drain,
}

impl ServiceSpec {
    /// One of the network `default` without addresses, ports and checks, that refuses clients by rejecting them.
    pub fn bare(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            network: "default".to_owned(),
            cluster: Vec::new(),
            load_balancer: Vec::new(),
            ports: Vec::new(),
            names_healthy: false,
            internal_local: false,
            external_local: false,
            affinity_s: None,
            sources: Vec::new(),
            refusal_internal: Refusal::Reject,
            refusal_external: Refusal::Reject,
            health: None,
            outlier: None,
            all_down: AllDown::Reject,
            drain: Drain::Keep,
        }
    }
}

/// An address of a Service out of an AddressPool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LoadBalancerAddress {
    /// The address.
    pub address: IpAddr,
    /// Whether the host owns it at its uplink; else it is known in the Service's network only.
    pub public: bool,
}

/// IP protocol of the endpoints of a headless Service that have none of its L4 ports: no protocol has this number on its own.
pub const ANY_PROTO: u8 = 0;

/// L4 ports of a Service, and who stands behind them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePortSpec {
    /// Its name; empty for none.
    pub name: String,
    /// IP protocol: TCP, UDP or SCTP.
    pub proto: u8,
    /// L4 ports, as clients see them.
    pub l4: RangeInclusive<u16>,
    /// All endpoints, one per address, whatever their state; no (address, L4 port) twice.
    pub endpoints: Vec<EndpointSpec>,
}

/// An address and L4 port that a Service may send connections to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointSpec {
    /// What balancing is keyed by: `namespace/port`, or the address of an endpoint that is no port.
    pub name: String,
    /// Uid of the port; `None` for an address of an EndpointSlice that is nobody's here.
    pub port: Option<Uuid>,
    /// Its address.
    pub address: IpAddr,
    /// L4 port; `None` for the one that the client asked for.
    pub l4: Option<u16>,
    /// Share of new connections relative to others, 1 to 1000.
    pub weight: u16,
    /// What the objects say about it.
    pub condition: Condition,
    /// Whether it is eligible for clients in the network (`internalTrafficPolicy`).
    pub internal: bool,
    /// Whether it is eligible for others (`externalTrafficPolicy`).
    pub external: bool,
    /// How near it is (`trafficDistribution`, hints): of those that take connections the lowest rank that there is gets them (SEMANTICS SV15).
    pub rank: u8,
}

/// What the objects say about an endpoint. Whether it runs and is healthy is for the fabric to find out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Condition {
    /// It takes connections.
    Ready,
    /// It ends, and still answers: the second choice, where none is ready (SEMANTICS SV1).
    Terminating,
    /// It takes none.
    NotReady,
}

/// What happens when all ready backends fail their checks (SEMANTICS SV4).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AllDown {
    /// Clients are refused.
    #[default]
    Reject,
    /// All of them get connections.
    Panic,
}

/// What becomes of TCP connections to a backend that takes no new ones (SEMANTICS SV5).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Drain {
    /// They go on.
    #[default]
    Keep,
    /// They end.
    Reset,
}

/// Passive ejection of a Service's backends: from connections that clients could not open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutlierSpec {
    /// Failures in a row, of two clients at least, that eject a backend.
    pub consecutive_failures: u8,
    /// Seconds that the first ejection lasts, 1 to 3600.
    pub base_ejection_s: u32,
    /// Share of the backends that may be out at once, 1 to 100; one may be, all never.
    pub max_ejection_percent: u8,
}

/// Active checks of a Service's backends (SEMANTICS SV2).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct HealthSpec {
    /// What is asked.
    pub check: HealthCheck,
    /// L4 port; `None` for each backend's own.
    pub l4: Option<u16>,
    /// From one question to the next, in milliseconds, 100 to 3600000.
    pub interval_ms: u32,
    /// How long an answer is waited for, in milliseconds, at most the interval.
    pub timeout_ms: u32,
    /// Answers in a row that make it healthy.
    pub rise: u8,
    /// Failures in a row that make it unhealthy.
    pub fall: u8,
}

impl HealthSpec {
    /// Whether an L4 port of this IP protocol can be asked so: where the check has an L4 port of its own it is for the backend as a whole.
    pub fn speaks_to(&self, proto: u8) -> bool {
        self.l4.is_some() || self.check.protocol().is_none_or(|spoken| spoken == proto)
    }
}

/// What is asked of a backend.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum HealthCheck {
    /// It accepts a TCP connection.
    Tcp,
    /// `GET path` is answered with a status of `statuses`.
    Http {
        /// Over TLS, whatever the certificate.
        tls: bool,
        /// Path and query.
        path: String,
        /// `Host`; `None` for the backend's address.
        host: Option<String>,
        /// Statuses that are right.
        statuses: RangeInclusive<u16>,
    },
    /// `grpc.health.v1.Health/Check` says `SERVING`.
    Grpc {
        /// Name of the service, empty for the server as a whole.
        service: String,
    },
    /// It answers an echo request.
    Icmp,
    /// It answers a datagram.
    Udp {
        /// What is sent.
        send: Vec<u8>,
        /// What the answer begins with; empty for any.
        expect: Vec<u8>,
    },
}

impl HealthCheck {
    /// The IP protocol that it speaks to an L4 port; `None` if it asks none.
    pub fn protocol(&self) -> Option<u8> {
        match self {
            HealthCheck::Tcp | HealthCheck::Http { .. } | HealthCheck::Grpc { .. } => Some(proto::TCP),
            HealthCheck::Udp { .. } => Some(proto::UDP),
            HealthCheck::Icmp => None,
        }
    }
}

/// What policy depends on, besides ports: the fabric adds an endpoint for each port and has a
/// [`World`](hostweave_policy::model::World). An object that did not change is the same `Arc` as last time.
#[derive(Clone, Debug, Default)]
pub struct PolicySpec {
    /// What happens in a direction that no policy isolates.
    pub default: DefaultPolicy,
    /// What passes whatever policies say.
    pub infrastructure: Infrastructure,
    /// By name.
    pub namespaces: BTreeMap<String, Arc<Namespace>>,
    /// By namespace and name.
    pub policies: Vec<Arc<NetworkPolicy>>,
    /// By name.
    pub cluster_policies: Vec<Arc<ClusterNetworkPolicy>>,
}

/// What becomes of established connections when policies change (SEMANTICS NP31).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Established {
    /// What is no longer allowed is cut on its next packet.
    #[default]
    Recheck,
    /// They live until they end.
    Keep,
}

/// One port, with its addresses assigned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortSpec {
    /// Identity that survives renames of nothing and restarts of everything.
    pub uid: Uuid,
    /// Namespace of the object.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// Name of its network.
    pub network: String,
    /// MAC address of the guest's NIC.
    pub mac: MacAddr,
    /// IPv4 addresses; the first is handed out by DHCP.
    pub v4: Vec<Ipv4Addr>,
    /// IPv6 addresses, the automatic one first; learned ones last.
    pub v6: Vec<Ipv6Addr>,
    /// Host name for DHCP.
    pub hostname: String,
    /// Administratively up.
    pub up: bool,
    /// What is attached.
    pub backend: BackendSpec,
    /// What selectors match: its own labels and its Pod's.
    pub labels: Labels,
    /// Names of its L4 ports.
    pub named_ports: Vec<NamedPort>,
    /// Connections that it may have opened at a time.
    pub flows_max: u32,
    /// What it may send and receive per second.
    pub rates: PortRates,
    /// What its guest is told at its first boot.
    pub metadata: Arc<PortMetadata>,
}

impl PortSpec {
    /// A TAP device of the network `default`, which is up and has no addresses.
    pub fn bare(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        let name = name.into();
        Self {
            uid: Uuid::nil(),
            namespace: namespace.into(),
            network: "default".to_owned(),
            mac: MacAddr::default(),
            v4: Vec::new(),
            v6: Vec::new(),
            hostname: name.clone(),
            up: true,
            backend: BackendSpec::Tap { name: name.clone(), netns: None },
            labels: Labels::new(),
            named_ports: Vec::new(),
            flows_max: FLOWS_MAX_DEFAULT,
            rates: PortRates::default(),
            metadata: Arc::default(),
            name,
        }
    }

    /// `namespace/name`, how people and events name the port.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// All its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = std::net::IpAddr> {
        let v4 = self.v4.iter().copied().map(std::net::IpAddr::V4);
        v4.chain(self.v6.iter().copied().map(std::net::IpAddr::V6))
    }
}

/// What is attached to a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BackendSpec {
    /// A VM.
    VhostUser {
        /// Whether hostweave listens or connects.
        mode: SocketMode,
        /// Main socket.
        socket: PathBuf,
        /// Second socket, for the incoming side of a live migration on this host (`listen` mode only).
        incoming_socket: Option<PathBuf>,
        /// Queue pairs offered, 1 to 16.
        queues: u16,
        /// Group that may open the socket.
        group: Option<u32>,
        /// Users whose VMMs may connect; empty allows everybody whom the file's permissions allow.
        allowed_uids: Vec<u32>,
    },
    /// A container.
    Tap {
        /// Device name, at most 15 octets.
        name: String,
        /// Network namespace file; `None` is the daemon's own.
        netns: Option<PathBuf>,
    },
    /// The host itself: a TAP device in the daemon's own namespace, which the daemon configures and which goes with it.
    Host {
        /// Device name, at most 15 octets.
        name: String,
        /// MTU in octets of IP packet, the network's.
        mtu: u16,
        /// What the host reaches through it.
        routes: Vec<HostRoute>,
    },
}

/// Prefixes that the host reaches through an interface of its own in a network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostRoute {
    /// Where to.
    pub to: IpNet,
    /// The network's gateway, of the same family.
    pub via: IpAddr,
}

/// Which side of a vhost-user connection listens.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SocketMode {
    /// hostweave listens, the VMM connects.
    #[default]
    Listen,
    /// The VMM listens, hostweave connects and reconnects.
    Connect,
}

/// Something that happened below control. `port` is `namespace/name`.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the fields are what their names say: port as `namespace/name`, the socket's path")]
pub enum FabricEvent {
    /// A VMM connected (process and user of the peer).
    Connected { port: String, socket: PathBuf, pid: i32, uid: u32 },
    /// The guest's driver started queue pairs: the port passes traffic.
    Started { port: String, socket: PathBuf, features: u64, queue_pairs: u16 },
    /// Orderly stop of the queues (driver unloaded, VM paused or migrated away).
    Stopped { port: String, socket: PathBuf },
    /// The other side went away.
    Disconnected { port: String, socket: PathBuf },
    /// The guest or its VMM broke the rules; the port is stopped until it reconnects.
    Fault { port: String, socket: PathBuf, reason: String },
    /// The port could not be set up (socket path taken, TAP refused); it is retried.
    AttachFailed { port: String, reason: String },
    /// The guest announced an address of its network by duplicate address detection.
    AddressSeen { port: String, address: Ipv6Addr },
    /// The guest declined its DHCP address: somebody else answers for it.
    AddressDeclined { port: String, address: Ipv4Addr },
    /// A DHCP lease was confirmed to the guest.
    LeaseConfirmed { port: String, address: std::net::IpAddr },
    /// An upstream DNS server does not answer, or, without a reason, answers again.
    DnsUpstream { server: String, failure: Option<String> },
    /// Frames pass the uplink.
    UplinkUp { interface: String, mtu: u16 },
    /// No frames pass the uplink any more.
    UplinkDown { interface: String, reason: String },
    /// The uplink could not be set up; it is tried again.
    UplinkFailed { interface: String, reason: String },
    /// A router at the uplink answers.
    GatewayReachable { address: IpAddr, mac: MacAddr },
    /// A router at the uplink does not answer.
    GatewayUnreachable { address: IpAddr },
    /// Somebody else at the uplink claims an address of ours, which goes on.
    UplinkAddressConflict { address: IpAddr, mac: MacAddr },
    /// Somebody else at the uplink has an address of ours: it is not used.
    UplinkAddressLost { address: IpAddr, mac: MacAddr },
    /// Nobody else has it any more.
    UplinkAddressRegained { address: IpAddr },
    /// A port got L4 ports of a NAT address.
    NatBlockAllocated { lease: LeaseView, port: Option<String> },
    /// They are free again.
    NatBlockReleased { lease: LeaseView, port: Option<String> },
    /// More happened to L4 ports than was told: `Fabric::nat_history` knows.
    NatEventsLost,
    /// A port wanted more and there were none; `biggest` is the port that has most of the address, `ports` how many.
    NatExhausted { port: String, pool: String, address: IpAddr, biggest: String, ports: u32 },
    /// A port wanted another NAT mapping and the host's table had no room; `biggest` is the port that has most, `mappings` how many.
    NatTableFull { port: String, biggest: String, mappings: u32 },
    /// A backend of a Service, by `namespace/name`, is otherwise than before.
    ServiceBackend { service: Arc<str>, change: Change },
    /// No backend of a Service takes connections, or one does again; with its backends by how they are.
    ServiceServing { service: Arc<str>, serving: Serving, counts: Vec<(BackendState, usize)> },
    /// A name of a Service in a real zone came, changed or went.
    ExternalName { service: String, name: String, zone: String, what: NameChange },
    /// A Service does not get a name there.
    ExternalNameRefused { service: String, zone: String, reason: String },
}

/// What `port describe` shows of a port's attachments.
#[derive(Clone, Debug, Default)]
pub struct PortStatus {
    /// One per socket (or the TAP device), the active one first.
    pub attachments: Vec<AttachmentStatus>,
    /// Counters, added up over workers.
    pub totals: hostweave_switch::counters::PortTotals,
}

/// State of one attachment.
#[derive(Clone, Debug, Default)]
pub struct AttachmentStatus {
    /// Socket path, or TAP device.
    pub path: PathBuf,
    /// `waiting-for-frontend`, `connected`, `running`, `faulted`.
    pub state: &'static str,
    /// Why it is faulted, in a sentence.
    pub fault: Option<String>,
    /// Whether the port's traffic uses this attachment.
    pub active: bool,
    /// Process and user of the peer.
    pub peer: Option<(i32, u32)>,
    /// Negotiated virtio features.
    pub features: u64,
    /// Started queue pairs.
    pub queue_pairs: u16,
    /// Guest memory mapped, in octets, and whether it is on huge pages.
    pub memory: Option<(u64, bool)>,
}
