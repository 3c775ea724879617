//! `HostConfig` as written.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Metadata, NameOrId};

/// How this host runs hostweave. At most one; without one, every field has its default.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HostConfig {
    /// `hostweave.dev/v1alpha1`.
    pub api_version: String,
    /// `HostConfig`.
    pub kind: String,
    /// `name` is the host's name.
    pub metadata: Metadata,
    /// Workers, paths and defaults.
    #[serde(default)]
    pub spec: HostConfigSpec,
}

/// Workers, paths and defaults.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HostConfigSpec {
    /// Region or site of the host, as a DNS label, such as `ord1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Threads that move packets. Changes take effect at the next start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<Workers>,
    /// Folders. Changes take effect at the next start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paths: Option<Paths>,
    /// The control socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<Control>,
    /// What happens in a direction of a port that no policy isolates: `allow` (default), or `deny` for zero trust on every
    /// port. A namespace replaces it by its annotation `hostweave.dev/default-policy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_policy: Option<DefaultPolicy>,
    /// What becomes of established connections when policies change: `recheck` (default) or `keep`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub established: Option<Established>,
    /// Traffic between ports and the host's own services, which passes whatever policies say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub infrastructure: Option<Infrastructure>,
    /// DNS at the gateways.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<super::dns::Dns>,
    /// Names of Services in a real zone.
    #[serde(default, rename = "externalDNS", skip_serializing_if = "Option::is_none")]
    pub external_dns: Option<Box<super::external_dns::ExternalDns>>,
    /// Metadata at 169.254.169.254 of all networks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<super::guest::HostMetadata>,
    /// The table of connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<Connections>,
    /// What ports get that do not say otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defaults: Option<Defaults>,
    /// The way out of the host; ports reach only each other if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<Uplink>,
    /// An interface of the host itself in a network: `ssh` from the host into a VM, monitoring; none if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_access: Option<HostAccess>,
    /// Where objects and addresses are kept: `embedded: {}` (default), one file in the state folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<Store>,
}

/// An interface of the host itself in a network: the Port `hostweave-system/host`, with the label
/// `hostweave.dev/host-access: "true"`. The daemon makes the device, gives it the port's addresses and adds routes to the
/// network; all of it goes with the daemon.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HostAccess {
    /// Name of the Network.
    pub network: String,
    /// Name of the device, at most 15 octets; `hostweave0` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
}

/// The way out of the host: an interface at which hostweave is an IP host of its own, beside the kernel.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Uplink {
    /// Interface, at most 15 octets: an existing one for `afPacket` and `afXdp`, the TAP device to make for `tap`.
    pub interface: String,
    /// How frames get there: `afPacket` (default, and what `auto` means), `afXdp` (small frames leave faster) or `tap` (the kernel routes).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<UplinkDriver>,
    /// hostweave's own addresses there, each with the length of its subnet, such as `[198.51.100.2/24, 2001:db8:9::2/64]`.
    /// The kernel must not have them. They say who is a neighbour: a router, or a host that packets go to directly.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub addresses: Vec<String>,
    /// Default routers, at equal cost, each in a subnet of `addresses` or link-local.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub gateways: Vec<String>,
    /// IEEE 802.1Q tag of all frames, 1 to 4094; none if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4094))]
    pub vlan: Option<u32>,
    /// Largest IP packet in octets, 1280 to 65520; the interface's if left out. With `driver: tap` the device gets it; of another
    /// interface it is at most what that has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1280, max = 65520))]
    pub mtu: Option<u32>,
    /// What happens to an address that somebody else there has, too: `defend` (default), `yield` or `ignore`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address_conflicts: Option<AddressConflicts>,
}

/// What happens to an address at the uplink that somebody else there has, too.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum AddressConflicts {
    /// An address is probed before it is announced (RFC 5227, RFC 4862). One that somebody else has is not used until nobody else has
    /// it; one that is claimed later is defended, at most every ten seconds, and never given up.
    Defend,
    /// The same, but an address that is claimed a second time within ten seconds is given up. Anybody at the uplink can take addresses
    /// away by that.
    Yield,
    /// Nothing is probed; claims are only reported. For segments where a router answers for every address (proxy ARP).
    Ignore,
}

/// How frames get to the uplink.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum UplinkDriver {
    /// `afPacket`: the one that does best for most hosts.
    Auto,
    /// A packet socket on an existing interface, which the kernel uses as well.
    AfPacket,
    /// A TAP device, which the kernel routes from and to: for hosts with a single address. `hostweave doctor` prints the
    /// commands.
    Tap,
    /// As `afPacket`, but frames up to a page leave by an AF_XDP socket, which takes more of them per second. They pass the
    /// interface's queueing discipline by.
    AfXdp,
}

/// Threads that move packets: either `cpus` or `count`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Workers {
    /// One worker per CPU listed, pinned to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Vec<u32>>,
    /// That many workers, placed by the kernel; 1 if neither is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub count: Option<u32>,
}

/// Folders, absolute.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Paths {
    /// Sockets; `/run/hostweave` (rootless: `$XDG_RUNTIME_DIR/hostweave`) if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// The store; `/var/lib/hostweave` (rootless: `$XDG_STATE_HOME/hostweave`) if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
}

/// The control socket.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Control {
    /// Group (name or number) that may use it; `hostweave` if that group exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<NameOrId>,
}

/// What happens to traffic that no policy speaks about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum DefaultPolicy {
    /// It passes.
    Allow,
    /// It is dropped, on every port.
    Deny,
}

/// What becomes of established connections when policies change.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Established {
    /// What is no longer allowed is cut on its next packet.
    Recheck,
    /// They live until they end; only new connections are judged by the new policies.
    Keep,
}

/// Traffic between ports and the host's own services, which passes whatever policies say. Each can be switched off.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Infrastructure {
    /// DNS (UDP and TCP 53) from a port to its gateway; `true` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<bool>,
    /// Metadata (TCP 80) from a port to 169.254.169.254 or fd00:ec2::254; `true` if left out. What is served there, and
    /// whether, says `spec.metadata`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<bool>,
    /// Health probes from the gateway to a port; `true` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_probes: Option<bool>,
    /// DHCP and DHCPv6, answered for every port; `true` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dhcp: Option<bool>,
    /// IPv6 router advertisements; `true` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ra: Option<bool>,
    /// Answers to ARP of ports; `true` if left out. Without them guests need static entries for their gateway, which has
    /// the router's MAC address. The uplink is another matter: what the host owns there it answers for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arp: Option<bool>,
    /// Answers to IPv6 neighbour solicitations of ports; `true` if left out. As `arp`; and addresses that guests form
    /// themselves are not learned, because it is by these that they are seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nd: Option<bool>,
    /// Answers of the gateway to ICMP and ICMPv6 echo; `true` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ping: Option<bool>,
}

/// The table of connections.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Connections {
    /// Connections that the host has room for, 1024 to 67108864; 262144 if left out. Changes take effect at the next
    /// start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1024, max = 67_108_864))]
    pub max: Option<u32>,
    /// Whether a TCP segment in mid-stream that belongs to no known connection begins one, if policies allow it in its
    /// direction; `false` if left out: only a SYN does. For a host that takes over guests whose connections it has not
    /// seen. Sequence numbers of what was picked up are not checked, and nothing is picked up that goes to a Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loose_tcp: Option<bool>,
    /// When an idle connection is forgotten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
}

/// When a connection without packets is forgotten, in seconds, 1 to 2678400 (31 days) each. What leaves the network lives longer where NAT must
/// remember it: TCP 7440 (not established 240), UDP 300 (to port 53 30), ICMP echo 60, other protocols 600 at least.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Timeouts {
    /// TCP with both directions open; 7440 if left out (RFC 5382 REQ-5).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_678_400))]
    pub tcp_established: Option<u32>,
    /// TCP before the handshake is complete; 60 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_678_400))]
    pub tcp_opening: Option<u32>,
    /// TCP after the first FIN; 240 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_678_400))]
    pub tcp_closing: Option<u32>,
    /// TCP after both FINs, in TIME-WAIT; 60 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_678_400))]
    pub tcp_time_wait: Option<u32>,
    /// TCP after a RST; 10 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_678_400))]
    pub tcp_closed: Option<u32>,
    /// UDP that was not answered; 30 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_678_400))]
    pub udp_unreplied: Option<u32>,
    /// UDP in both directions; 180 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_678_400))]
    pub udp_stream: Option<u32>,
    /// ICMP and ICMPv6 echo; 30 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_678_400))]
    pub icmp: Option<u32>,
    /// SCTP; 210 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_678_400))]
    pub sctp: Option<u32>,
    /// Any other IP protocol; 600 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_678_400))]
    pub other: Option<u32>,
}

/// What ports get that do not say otherwise.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Defaults {
    /// Queue pairs of a vhost-user port, 1 to 16; 1 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16))]
    pub queues: Option<u32>,
    /// Group (name or number) that may open vhost-user sockets; the daemon's own if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<NameOrId>,
    /// Connections that a port may have opened at a time, 1 to 67108864; 65536 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 67_108_864))]
    pub flows: Option<u32>,
}

/// Where objects and addresses are kept.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Store {
    /// One file in the state folder. Has no fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedded: Option<Embedded>,
}

/// One file in the state folder.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Embedded {}
