//! `Network`, checked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hostweave_switch::tables::Addressing;
use ipnet::{Ipv4Net, Ipv6Net};

/// An isolated L3 network, every default filled in. At least one of `v4` and `v6` is there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Network {
    /// IPv4 range and the gateway in it.
    pub v4: Option<(Ipv4Net, Ipv4Addr)>,
    /// IPv6 range and the gateway in it.
    pub v6: Option<(Ipv6Net, Ipv6Addr)>,
    /// Octets of IP packet.
    pub mtu: u16,
    /// 1 to 16777215.
    pub vni: u32,
    /// How ports get their addresses.
    pub addressing: Addressing,
    /// Whether addresses that guests form themselves are learned.
    pub learning: bool,
    /// Search domain.
    pub domain: Option<String>,
    /// Resolvers.
    pub resolvers: Vec<IpAddr>,
}
