//! `Network` as written.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Metadata;

/// An isolated L3 network: ports of one network reach each other, ports of different networks never do, even if their
/// addresses are equal.
///
/// If no Network named `default` is written, one exists with `cidrs: [10.64.0.0/16, fd68:7700:64::/64]`, MTU 1500 and
/// VNI 4096.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Network {
    /// `hostweave.dev/v1alpha1`.
    pub api_version: String,
    /// `Network`.
    pub kind: String,
    /// What identifies and labels it. Networks have no namespace.
    pub metadata: Metadata,
    /// Addresses and properties.
    pub spec: NetworkSpec,
}

/// Addresses and properties of a network.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkSpec {
    /// Address ranges: one IPv4 CIDR, one IPv6 CIDR, or one of each, such as `[10.64.0.0/16, 2001:db8:64::/64]`. In an
    /// IPv6 /64 guests form their addresses themselves (SLAAC); other prefix lengths need DHCPv6.
    #[schemars(length(min = 1, max = 2))]
    pub cidrs: Vec<String>,
    /// Ranges of the cluster addresses of Services of this network, at most one of each family, outside of `cidrs`. If left out,
    /// `10.104.0.0/16` and `fd68:7700:68::/112` for the families that the network has (`172.30.0.0/16` and `fc68:7700:68::/112` where
    /// `cidrs` overlap them).
    #[serde(default, rename = "serviceCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    pub service_cidrs: Vec<String>,
    /// The gateway's address in each CIDR; the first host address of a CIDR if left out. The switch owns it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    pub gateways: Vec<String>,
    /// Largest IP packet in octets, 1280 to 65520; 1500 if left out. Guests learn it from virtio, DHCP and RA.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1280, max = 65520))]
    pub mtu: Option<u32>,
    /// Virtual network identifier, 1 to 16777215, unique; derived from the name if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16_777_215))]
    pub vni: Option<u32>,
    /// How ports get their addresses: `network` (default) with the prefix length of the CIDR, or `host` as /32 and /128
    /// with routes to the gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addressing: Option<Addressing>,
    /// Whether IPv6 addresses that guests form themselves (RFC 7217, RFC 8981) are learned and accepted: `on` (default)
    /// or `off`. At most 8 a port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address_learning: Option<OnOff>,
    /// What DHCP and RA tell guests about name resolution.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<NetworkDns>,
    /// What becomes of packets that leave the network by the uplink.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<NetworkEgress>,
}

/// What becomes of packets that leave the network by the uplink. What has an attached address of its port as source leaves with that one,
/// whatever is written here, and so does all of a port whose address is attached by 1:1 NAT; but what a guest with an address of its own there
/// sends from its private one is subject to this as anybody else's.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkEgress {
    /// `nat` or `none`; `nat` if left out and a NatPool with an IPv4 address serves the network, else `none`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<EgressV4>,
    /// `nat`, `routed` or `none`; `nat` if left out and a NatPool with an IPv6 address serves the network, else `none`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<EgressV6>,
    /// CIDRs to which nothing is translated where the family is `nat`, at most 64: ports reach them with their own addresses, as with `routed`, and who
    /// answers there needs a route for the network's range to this host. At the uplink the range is this host's, for all networks: what comes for it is the network's,
    /// and no other network with such ranges may overlap it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub untranslated: Vec<String>,
}

/// What becomes of IPv4 packets that leave.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum EgressV4 {
    /// They leave with an address of a NatPool.
    Nat,
    /// They are dropped.
    None,
}

/// What becomes of IPv6 packets that leave.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum EgressV6 {
    /// They leave with an address of a NatPool.
    Nat,
    /// They leave with the port's own address: the network's IPv6 range is routed to this host. What nobody asked for does
    /// not come in.
    Routed,
    /// They are dropped.
    None,
}

/// How ports get their addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Addressing {
    /// The prefix length of the CIDR; the switch answers ARP and ND for every address in it.
    Network,
    /// /32 and /128, with DHCP option 121 and RA.
    Host,
}

/// A switch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum OnOff {
    /// On.
    On,
    /// Off.
    Off,
}

/// What DHCP and RA tell guests about name resolution.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkDns {
    /// The one search domain, such as `corp.example`; if left out, those of a pod: `<namespace>.svc.cluster.local` with the namespace of the port,
    /// `svc.cluster.local`, `cluster.local` (or what `HostConfig.spec.dns.clusterDomain` says).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Addresses of resolvers, at most 8; the gateway, which answers DNS, if left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub servers: Vec<String>,
}
