//! What a guest is like, chosen before it starts: its card, its addresses, its offloads.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};

use super::Guest;
use crate::Error;
use crate::device::Phy;
use crate::frames::{Mac, link_local};
use crate::frontend::{Mode, Profile};
use crate::memory::MemoryConfig;
use crate::nic::{Nic, NicConfig};
use crate::queue::Split;

/// Chooses what a guest is like.
#[derive(Clone, Debug)]
pub struct GuestBuilder {
    pub(super) nic: NicConfig,
    pub(super) mac: Mac,
    pub(super) addresses: Vec<(IpAddr, u8)>,
    pub(super) gateways: Vec<IpAddr>,
    pub(super) slaac: bool,
}

impl GuestBuilder {
    /// The socket to connect to, or to listen on.
    pub fn socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.nic.socket = path.into();
        self
    }

    /// Who listens on the socket.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.nic.mode = mode;
        self
    }

    /// Whose order of messages.
    pub fn profile(mut self, profile: Profile) -> Self {
        self.nic.profile = profile;
        self
    }

    /// The hardware address.
    pub fn mac(mut self, mac: Mac) -> Self {
        self.mac = mac;
        self
    }

    /// Virtio features to accept, exactly.
    pub fn features(mut self, mask: u64) -> Self {
        self.nic.features = mask;
        self
    }

    /// Accept these features too.
    pub fn with(mut self, mask: u64) -> Self {
        self.nic.features |= mask;
        self
    }

    /// Do not accept these features.
    pub fn without(mut self, mask: u64) -> Self {
        self.nic.features &= !mask;
        self
    }

    /// Queue pairs.
    pub fn pairs(mut self, pairs: usize) -> Self {
        self.nic.pairs = pairs.max(1);
        self
    }

    /// Descriptors of each ring, a power of two.
    pub fn ring_size(mut self, size: u16) -> Self {
        self.nic.ring_size = size;
        self
    }

    /// IP MTU in octets.
    pub fn mtu(mut self, mtu: usize) -> Self {
        self.nic.mtu = mtu;
        self
    }

    /// How transmitted frames and receive buffers are cut into descriptors.
    pub fn splits(mut self, tx: Split, rx: Split) -> Self {
        (self.nic.tx_split, self.nic.rx_split) = (tx, rx);
        self
    }

    /// How guest memory is laid out.
    pub fn memory(mut self, memory: MemoryConfig) -> Self {
        self.nic.memory = memory;
        self
    }

    /// How long connecting and each reply may take.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.nic.timeout = timeout;
        self
    }

    /// A fixed address, with the gateway if there is one.
    pub fn address(mut self, address: impl Into<IpAddr>, prefix_len: u8, gateway: Option<IpAddr>) -> Self {
        self.addresses.push((address.into(), prefix_len));
        self.gateways.extend(gateway);
        self
    }

    /// Whether to take addresses from router advertisements (default: yes).
    pub fn slaac(mut self, on: bool) -> Self {
        self.slaac = on;
        self
    }

    /// Anything else about the card.
    pub fn nic(mut self, change: impl FnOnce(&mut NicConfig)) -> Self {
        change(&mut self.nic);
        self
    }

    /// Connects the card and brings the stack up.
    ///
    /// # Errors
    /// As for [`Nic::connect`].
    pub fn connect(self) -> Result<Guest, Error> {
        let nic = Nic::connect(self.nic.clone())?;
        self.build(nic)
    }

    /// Brings the stack up on a card that is connected already.
    ///
    /// # Errors
    /// When an address cannot be taken.
    pub fn build(self, nic: Nic) -> Result<Guest, Error> {
        let mut phy = Phy::new(nic);
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(self.mac)));
        config.slaac = self.slaac;
        config.random_seed = self.mac.iter().fold(0x9e37_79b9, |seed, &octet| seed * 31 + u64::from(octet));
        let epoch = Instant::now();
        let mut iface = Interface::new(config, &mut phy, smoltcp::time::Instant::ZERO);
        iface.update_ip_addrs(|list| {
            let fixed = self.addresses.iter().map(|&(address, len)| IpCidr::new(address.into(), len));
            let own = IpCidr::new(IpAddr::V6(link_local(self.mac)).into(), 64);
            for cidr in std::iter::once(own).chain(fixed) {
                // A list of 8; more addresses than that are not given to one guest.
                let _ = list.push(cidr);
            }
        });
        for gateway in &self.gateways {
            let added = match *gateway {
                IpAddr::V4(v4) => iface.routes_mut().add_default_ipv4_route(v4).map(drop),
                IpAddr::V6(v6) => iface.routes_mut().add_default_ipv6_route(v6).map(drop),
            };
            added.map_err(|e| Error::Stack { what: format!("route to {gateway}: {e}") })?;
        }
        Ok(Guest {
            mac: self.mac,
            phy,
            iface,
            sockets: SocketSet::new(Vec::new()),
            services: Vec::new(),
            dhcp: None,
            lease: None,
            epoch,
            next_port: 49_152,
        })
    }
}
