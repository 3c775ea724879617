//! `Port` as written.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Metadata, NameOrId};

/// A NIC of a VM or container. Selectors match its labels as they match a Pod's in Kubernetes.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Port {
    /// `hostweave.dev/v1alpha1`.
    pub api_version: String,
    /// `Port`.
    pub kind: String,
    /// What identifies and labels it.
    pub metadata: Metadata,
    /// Network, addresses and what is attached.
    #[serde(default)]
    pub spec: PortSpec,
}

/// Network, addresses and what is attached.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortSpec {
    /// Name of its Network; `default` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// What is attached: exactly one of `vhostUser` (a VM; the default) and `tap` (a container).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<Backend>,
    /// MAC address of the guest's NIC, such as `02:00:0a:40:00:1f`; automatic if left out. Anything else the guest sends
    /// from is dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Fixed addresses out of the network's CIDRs; the first IPv4 and the first IPv6 are what DHCP hands out. A family
    /// without a fixed address gets an automatic one, which stays the same until the port is deleted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// Host name that DHCP hands out; the port's name if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Names for L4 ports of the guest, for policies and services.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub named_ports: Vec<NamedPort>,
    /// `up` (default), or `down`: the link is down and no traffic passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_state: Option<AdminState>,
    /// What the port may use at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// What the guest finds at 169.254.169.254, beside its addresses: user data, SSH keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Box<super::guest::PortMetadata>>,
}

/// What a port may use at most.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limits {
    /// Connections that the port may have opened at a time, 1 to 67108864; `HostConfig.spec.defaults.flows` (65536) if
    /// left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 67_108_864))]
    pub flows: Option<u32>,
    /// What the guest may send, to wherever it goes; unlimited if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Rates>,
    /// What the guest may receive, from wherever it comes; unlimited if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Rates>,
    /// What passes the uplink, besides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<UplinkLimits>,
}

/// What passes the uplink.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UplinkLimits {
    /// What the guest may send through the uplink; unlimited if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Rates>,
    /// What the guest may receive from the uplink; unlimited if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Rates>,
}

/// Packets and bits per second. A frame of several segments (GSO) counts as all of them.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rates {
    /// Packets per second, 1 to 1000000000; unlimited if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub packets_per_second: Option<u64>,
    /// Packets at once after a pause, 1 to 1000000000; as many as in 20 milliseconds, at least 64, if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub burst_packets: Option<u64>,
    /// Bits of Ethernet frames per second, 1000 to 1000000000000; unlimited if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1000, max = 1_000_000_000_000_u64))]
    pub bits_per_second: Option<u64>,
    /// Bits at once after a pause, 1 to 1000000000000; as many as in 20 milliseconds, at least 1048576, if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000_000_u64))]
    pub burst_bits: Option<u64>,
}

/// What is attached: exactly one of the two.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Backend {
    /// A VM, over a vhost-user socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vhost_user: Option<VhostUser>,
    /// A container or anything else with a kernel NIC, over a TAP device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<Tap>,
}

/// A vhost-user socket.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VhostUser {
    /// `listen` (default): hostweave listens and the VMM connects. `connect`: the VMM listens (QEMU `server=on`) and
    /// hostweave connects, again and again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<SocketMode>,
    /// Path of the socket, absolute, at most 107 octets. Required for `connect`; `listen` uses
    /// `RUNTIME/ports/NAMESPACE.NAME.sock` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_path: Option<String>,
    /// Queue pairs offered, 1 to 16; `HostConfig.spec.defaults.queues` (1) if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16))]
    pub queues: Option<u32>,
    /// Group (name or number) that may open a listening socket; `HostConfig.spec.defaults.group` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<NameOrId>,
    /// Users (names or numbers) whose VMMs may connect; everybody whom the socket's permissions allow if left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_users: Vec<NameOrId>,
}

/// Which side listens.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum SocketMode {
    /// hostweave listens, the VMM connects.
    Listen,
    /// The VMM listens, hostweave connects.
    Connect,
}

/// A TAP device.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tap {
    /// Name of the device, at most 15 octets.
    pub name: String,
    /// Network namespace file in which the device stands, such as `/run/netns/web`; the host's own if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<String>,
}

/// A name for an L4 port of the guest.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NamedPort {
    /// Name, as policies and services say it: at most 15 lower case letters, digits and `-`, with at least one letter.
    pub name: String,
    /// Number, 1 to 65535.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u32,
    /// `TCP` (default), `UDP` or `SCTP`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
}

/// An L4 protocol, as Kubernetes spells it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// Whether the link is up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum AdminState {
    /// Traffic passes.
    Up,
    /// The link is down.
    Down,
}
