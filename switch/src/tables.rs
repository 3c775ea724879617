//! The immutable tables that control publishes and workers read.
//!
//! Control builds a whole [`Tables`], swaps the pointer, and workers pick it up at the start of their next burst.
//! Nothing in here is ever written after it was published; counters are atomics beside it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use ipnet::{Ipv4Net, Ipv6Net};

use crate::MacAddr;
use crate::claimed::Claimed;
use crate::connection::Timeouts;
use crate::counters::PortCounters;
use crate::heard::Heard;
use crate::on_link::OnLink;
use crate::rate::RateLimits;

/// Index of a port in [`Tables::ports`], below [`crate::limits::PORTS_MAX`]. Reused after a port is deleted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PortId(pub u32);

impl PortId {
    /// No port.
    pub const NONE: PortId = PortId(u32::MAX);
}

/// Index of a network in [`Tables::networks`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NetworkId(pub u16);

/// How ports get their addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Addressing {
    /// The prefix length of the network's CIDR; the switch answers ARP and ND for every address in it.
    #[default]
    Network,
    /// /32 and /128 with option 121 and RA.
    Host,
}

/// An isolated L3 network.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Network {
    /// Its name, as in the object.
    pub name: String,
    /// Virtual network identifier, 24 bits.
    pub vni: u32,
    /// IPv4 range and the gateway's address in it.
    pub v4: Option<(Ipv4Net, Ipv4Addr)>,
    /// IPv6 range and the gateway's address in it.
    pub v6: Option<(Ipv6Net, Ipv6Addr)>,
    /// Octets of IP packet.
    pub mtu: u16,
    /// How ports get their addresses.
    pub addressing: Addressing,
    /// Whether addresses that guests form themselves are learned (SEMANTICS RA5).
    pub learning: bool,
    /// Where guests look for short names, which DHCP and RA tell them.
    pub domain: Option<Domain>,
    /// Resolvers that DHCP and RA hand out.
    pub resolvers: Vec<IpAddr>,
    /// The port behind which the host's own services of this network listen; owns the gateway's addresses, and those of
    /// metadata ([`METADATA_V4`], [`METADATA_V6`]).
    pub internal: PortId,
    /// What becomes of IPv4 packets that leave it.
    pub egress_v4: Egress,
    /// What becomes of IPv6 packets that leave it.
    pub egress_v6: Egress,
    /// Destinations beyond it to which nothing is translated that is elsewhere (RFC 6888 REQ-6).
    pub untranslated: Vec<ipnet::IpNet>,
}

impl Network {
    /// One without addresses and services, for packets of 1500 octets, that nothing leaves.
    pub fn bare(name: impl Into<String>, vni: u32) -> Self {
        Self {
            name: name.into(),
            vni,
            v4: None,
            v6: None,
            mtu: 1500,
            addressing: Addressing::default(),
            learning: false,
            domain: None,
            resolvers: Vec::new(),
            internal: PortId::NONE,
            egress_v4: Egress::default(),
            egress_v6: Egress::default(),
            untranslated: Vec::new(),
        }
    }

    /// What becomes of packets that leave it for an address.
    pub fn egress_to(&self, dst: IpAddr) -> Egress {
        match if dst.is_ipv4() { self.egress_v4 } else { self.egress_v6 } {
            Egress::Nat if self.untranslated.iter().any(|range| range.contains(&dst)) => Egress::Routed,
            egress => egress,
        }
    }
}

/// Where the guests of a network look for short names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Domain {
    /// There alone, as the network says.
    Written(String),
    /// Below the zone of Services, such as `cluster.local`: among the Services of the port's own namespace, then among all of them, then in
    /// the zone itself.
    Zone(String),
}

impl Domain {
    /// The domain itself.
    pub fn as_str(&self) -> &str {
        let (Self::Written(domain) | Self::Zone(domain)) = self;
        domain
    }
}

/// What kind of thing is attached to a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortKind {
    /// A VM over vhost-user.
    VhostUser,
    /// A container over TAP.
    Tap,
    /// The host's own services.
    Internal,
    /// The way out of the host; see [`Uplink`].
    Uplink,
}

/// What becomes of packets of one family that leave a network (`Network.spec.egress`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Egress {
    /// They do not leave: nothing serves them.
    #[default]
    None,
    /// They do not leave: so it is written. Who tries hears that it is forbidden (RFC 1812 §5.2.7.1).
    Forbidden,
    /// From an address of a NAT pool.
    Nat,
    /// From the port's own address: the host owns the network's range at the uplink.
    Routed,
}

impl Egress {
    /// Whether packets leave.
    pub fn leaves(self) -> bool {
        matches!(self, Self::Nat | Self::Routed)
    }
}

/// The network beyond the uplink; that of an object is never zero.
pub const OUTSIDE_VNI: u32 = 0;

/// A router at the uplink.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NextHop {
    /// Its address.
    pub address: IpAddr,
    /// Its link address; `None` while nobody has answered.
    pub mac: Option<MacAddr>,
}

/// Whose an address at the uplink is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owned {
    /// The host's own, and of nobody else: ICMP errors come from it.
    Host,
    /// Of a NAT pool.
    Nat,
    /// A Service's: connections to it go to its backends.
    Service,
    /// Attached: the port has it on its own NIC, or by 1:1 NAT behind `inside` (IPv4-mapped for IPv4).
    Attached {
        /// The port.
        port: PortId,
        /// Its address behind 1:1 NAT; `None` when the guest itself has the public one.
        inside: Option<u128>,
    },
}

/// The way out of the host. Its port lies in a network of its own, which no object names.
#[derive(Clone, Debug)]
pub struct Uplink {
    /// Its port, of [`PortKind::Uplink`].
    pub port: PortId,
    /// The network of that port.
    pub network: NetworkId,
    /// Its link address.
    pub mac: MacAddr,
    /// IEEE 802.1Q tag of all its frames.
    pub vlan: Option<u16>,
    /// Octets of IP packet.
    pub mtu: u16,
    /// Whether the device has a carrier and is up.
    pub link: bool,
    /// Routers of IPv4, at equal cost.
    pub v4: Vec<NextHop>,
    /// Routers of IPv6, at equal cost.
    pub v6: Vec<NextHop>,
    /// Who is reached without a router.
    pub on_link: OnLink,
    /// Every single address that the host owns there, IPv4-mapped for IPv4. Only these are answered for.
    pub owned: HashMap<u128, Owned, RandomState>,
    /// Of those that are attached by 1:1 NAT, the public one by port and family (`ipv4`): whichever of its addresses the port sends from
    /// ([`Uplink::one_to_one`]).
    pub public: HashMap<(PortId, bool), u128, RandomState>,
    /// Addresses that were given up while they were in use: connections that began with them go on, none begins.
    pub kept: HashMap<u128, Owned, RandomState>,
    /// Prefixes that are routed to the host, with the network they belong to (`egress: routed`).
    pub routed: Vec<(ipnet::IpNet, NetworkId)>,
    /// Addresses that are not known to be the host's alone, owned or not, and who claims them: no neighbour is answered about them.
    pub unsettled: HashMap<u128, Arc<Claimed>, RandomState>,
    /// Which neighbours there deliver.
    pub heard: Arc<Heard>,
}

impl Uplink {
    /// One with a carrier that owns nothing and knows no router, for packets of 1500 octets.
    pub fn bare(port: PortId, network: NetworkId, mac: MacAddr) -> Self {
        Self {
            port,
            network,
            mac,
            vlan: None,
            mtu: 1500,
            link: true,
            v4: Vec::new(),
            v6: Vec::new(),
            on_link: OnLink::default(),
            owned: Default::default(),
            public: Default::default(),
            kept: Default::default(),
            routed: Vec::new(),
            unsettled: Default::default(),
            heard: Default::default(),
        }
    }

    /// What [`Uplink::public`] is for these addresses. Of several of a port the lowest: it must not depend on the order of the map.
    pub fn one_to_one(owned: &HashMap<u128, Owned, RandomState>) -> HashMap<(PortId, bool), u128, RandomState> {
        let mut public = HashMap::default();
        for (&address, owner) in owned {
            if let Owned::Attached { port, inside: Some(_) } = *owner {
                let lowest = public.entry((port, is_ipv4(address))).or_insert(address);
                *lowest = address.min(*lowest);
            }
        }
        public
    }

    /// The address as which a port's packets from `src` leave, if it has one by 1:1 NAT.
    #[inline]
    pub fn public_of(&self, port: PortId, src: u128) -> Option<u128> {
        self.public.get(&(port, is_ipv4(src))).copied()
    }

    /// Whose an address is, or was when connections began that still use it.
    pub fn known(&self, address: u128) -> Option<&Owned> {
        self.owned.get(&address).or_else(|| self.kept.get(&address))
    }

    /// Whether packets for an address are the host's to take at the uplink: it owns that, or the address's range is routed to it.
    pub fn is_ours(&self, address: u128) -> bool {
        self.owned.contains_key(&address) || self.is_routed(address)
    }

    /// Whether an address lies in a range that is routed to the host.
    pub fn is_routed(&self, address: u128) -> bool {
        let address = Ipv6Addr::from(address).to_canonical();
        self.routed.iter().any(|(range, _)| range.contains(&address))
    }

    /// Whether an address lies in a range that is routed to the host for this network.
    pub fn is_routed_to(&self, address: u128, network: NetworkId) -> bool {
        let address = Ipv6Addr::from(address).to_canonical();
        self.routed.iter().any(|(range, id)| *id == network && range.contains(&address))
    }
}

/// A port as the packet path sees it. Identity, not attachment.
#[derive(Clone, Debug)]
pub struct Port {
    /// Its index.
    pub id: PortId,
    /// `namespace/name`.
    pub name: String,
    /// What is attached.
    pub kind: PortKind,
    /// Its network.
    pub network: NetworkId,
    /// The MAC that the guest must use.
    pub mac: MacAddr,
    /// IPv4 addresses; the first is what DHCP hands out. Source addresses must be among them.
    pub v4: Vec<Ipv4Addr>,
    /// Global IPv6 addresses, the automatic one first, then fixed, then learned ones.
    pub v6: Vec<Ipv6Addr>,
    /// Host name for DHCP option 12.
    pub hostname: String,
    /// Administratively up.
    pub up: bool,
    /// Lease time that DHCP hands out, in seconds.
    pub lease_s: u32,
    /// What it may send and receive per second, where that is limited.
    pub limits: Option<Arc<RateLimits>>,
    /// Counters, one set per worker.
    pub counters: Arc<[PortCounters]>,
}

impl Port {
    /// Whether an address, IPv4-mapped for IPv4, is one of its own.
    pub fn owns(&self, address: u128) -> bool {
        let address = Ipv6Addr::from(address);
        match address.to_ipv4_mapped() {
            Some(v4) => self.v4.contains(&v4),
            None => self.v6.contains(&address),
        }
    }

    /// The link-local address that the guest's MAC implies (RFC 4291 §2.5.6).
    pub fn link_local(&self) -> Ipv6Addr {
        link_local(self.mac)
    }
}

/// `fe80::/64` with the EUI-64 of `mac`.
pub fn link_local(mac: MacAddr) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets[..2].copy_from_slice(&[0xfe, 0x80]);
    octets[8..].copy_from_slice(&mac.eui64());
    Ipv6Addr::from(octets)
}

/// The router's link-local address in every network, on every host (SEMANTICS RA1).
pub const ROUTER_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Where every port finds its metadata, in every network (as on EC2). Link-local, but answered for as the gateway is.
pub const METADATA_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// The same over IPv6. No network may have it in its range.
pub const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x254);

/// An address as tables and keys have it: IPv4-mapped for IPv4.
#[inline]
pub fn mapped(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_ipv6_mapped()),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

/// The address that tables and keys have so.
pub fn unmapped(address: u128) -> IpAddr {
    Ipv6Addr::from(address).to_canonical()
}

/// Whether that is one of IPv4.
#[inline]
pub const fn is_ipv4(address: u128) -> bool {
    address >> 32 == 0xffff
}

/// Key of the address table: IPv4 addresses are IPv4-mapped, one key type for both families.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct AddressKey {
    /// The address, IPv4-mapped for IPv4.
    pub address: u128,
    /// The network it lives in.
    pub network: NetworkId,
}

impl AddressKey {
    /// Key of an address in a network.
    #[inline]
    pub fn new(network: NetworkId, address: IpAddr) -> Self {
        Self { address: mapped(address), network }
    }

    /// Key of an IPv4 address.
    #[inline]
    pub fn v4(network: NetworkId, address: Ipv4Addr) -> Self {
        Self { address: 0xffff_0000_0000 | u128::from(u32::from(address)), network }
    }

    /// Key of an IPv6 address. An IPv4-mapped one never comes here: `parse` refuses it on the wire.
    #[inline]
    pub fn v6(network: NetworkId, address: Ipv6Addr) -> Self {
        Self { address: u128::from(address), network }
    }
}

/// Who owns which address. Exact matches only: every local destination is a host route.
pub type AddressTable = HashMap<AddressKey, PortId, RandomState>;

/// What the switch answers itself, before policy (SEMANTICS NP34).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LocalServices {
    /// DHCP and DHCPv6.
    pub dhcp: bool,
    /// Router advertisements.
    pub ra: bool,
    /// Echo to the gateway.
    pub ping: bool,
    /// ARP of ports.
    pub arp: bool,
    /// Neighbour solicitations of ports.
    pub nd: bool,
}

impl Default for LocalServices {
    fn default() -> Self {
        Self { dhcp: true, ra: true, ping: true, arp: true, nd: true }
    }
}

/// Everything the packet path reads.
#[derive(Clone, Default)]
pub struct Tables {
    /// Grows by one with each publication.
    pub revision: u64,
    /// By [`NetworkId`].
    pub networks: Vec<Option<Arc<Network>>>,
    /// By [`PortId`].
    pub ports: Arc<[Option<Arc<Port>>]>,
    /// Host routes.
    pub addresses: Arc<AddressTable>,
    /// By [`NetworkId`]: changes whenever a decision about a packet of that network may come out differently. Never zero.
    pub epochs: Vec<u32>,
    /// Changes whenever one of `epochs` does, or what the host owns at the uplink: the epoch of whatever leads from one network
    /// into another.
    pub crossings: u32,
    /// How long connections live.
    pub timeouts: Timeouts,
    /// Whether TCP in mid-stream begins a connection (SEMANTICS CT1).
    pub loose_tcp: bool,
    /// What the switch answers itself.
    pub local: LocalServices,
    /// Whether connections that policy does not allow any more go on (`HostConfig.spec.established: keep`).
    pub keep_established: bool,
    /// The way out of the host, if there is one.
    pub uplink: Option<Arc<Uplink>>,
}

impl Tables {
    /// Adds ports, or replaces those of the same ids. The list is copied once: give all that there are.
    pub fn set_ports(&mut self, ports: impl IntoIterator<Item = Arc<Port>>) {
        let mut all = self.ports.to_vec();
        for port in ports {
            let index = port.id.0 as usize;
            all.resize(all.len().max(index + 1), None);
            all[index] = Some(port);
        }
        self.ports = all.into();
    }

    /// Adds addresses and the ports that own them. Copies the table if a clone of it is in use.
    pub fn set_addresses(&mut self, addresses: impl IntoIterator<Item = (AddressKey, PortId)>) {
        Arc::make_mut(&mut self.addresses).extend(addresses);
    }

    /// The port with this id, if it exists.
    #[inline]
    pub fn port(&self, id: PortId) -> Option<&Port> {
        self.ports.get(id.0 as usize)?.as_deref()
    }

    /// The network with this id, if it exists.
    #[inline]
    pub fn network(&self, id: NetworkId) -> Option<&Network> {
        self.networks.get(usize::from(id.0))?.as_deref()
    }

    /// Epoch of a network.
    #[inline]
    pub fn epoch(&self, id: NetworkId) -> u32 {
        self.epochs.get(usize::from(id.0)).copied().unwrap_or(1)
    }

    /// Epoch of whatever leads from one network into another. Never that of a network.
    #[inline]
    pub fn crossing_epoch(&self) -> u32 {
        const CROSSING: u32 = 1 << 31;
        CROSSING | self.crossings
    }

    /// The network with this VNI, if it exists. Not for every packet.
    pub fn network_of_vni(&self, vni: u32) -> Option<NetworkId> {
        let at = self.networks.iter().position(|network| network.as_ref().is_some_and(|network| network.vni == vni))?;
        u16::try_from(at).ok().map(NetworkId)
    }

    /// Who owns an address in a network.
    #[inline]
    pub fn owner(&self, key: AddressKey) -> Option<PortId> {
        self.addresses.get(&key).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_addresses_of_two_networks_have_two_owners() {
        let address = IpAddr::from([10, 64, 0, 10]);
        let mut tables = Tables::default();
        tables.set_addresses([0, 1].map(|id| (AddressKey::new(NetworkId(id), address), PortId(u32::from(id) + 1))));
        assert_eq!(tables.owner(AddressKey::new(NetworkId(0), address)), Some(PortId(1)));
        assert_eq!(tables.owner(AddressKey::new(NetworkId(1), address)), Some(PortId(2)));
        assert_eq!(tables.owner(AddressKey::new(NetworkId(2), address)), None);
    }
}
