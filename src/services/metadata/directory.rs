//! Who has which address: what a request is answered for follows from (network, source address) alone, which `guard` has
//! checked. Nothing that a request says decides it.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use hostweave_switch::tables::Network;
use ipnet::IpNet;
use uuid::Uuid;

use super::spec::{MetadataSpec, Tokens};
use crate::fabric::spec::{AttachSpec, Desired, PortSpec, Ports};

/// A network's name and an address in it.
type Key = (Arc<str>, IpAddr);

/// All ports by address. Cheap to clone.
#[derive(Clone, Default)]
pub struct Directory {
    spec: MetadataSpec,
    /// Whether DHCP answers.
    dhcp: bool,
    ports: Ports,
    networks: Arc<HashMap<Arc<str>, Network>>,
    /// Public addresses by port.
    attached: Arc<HashMap<Uuid, Vec<AttachSpec>>>,
    /// Index in `ports`.
    by_address: Arc<HashMap<Key, usize>>,
    /// Addresses that change their owner just now, and have none meanwhile.
    moving: Arc<HashSet<Key>>,
}

/// A port, with what is told about it.
#[derive(Clone, Copy)]
pub struct Workload<'a> {
    /// The port.
    pub port: &'a PortSpec,
    /// Its network.
    pub network: &'a Network,
    /// Public addresses that sit on it.
    pub attached: &'a [AttachSpec],
    /// What is told about the host.
    pub spec: &'a MetadataSpec,
    /// Whether DHCP answers.
    pub dhcp: bool,
}

impl Directory {
    /// What is to exist.
    pub fn new(desired: &Desired, spec: &MetadataSpec) -> Self {
        let networks: HashMap<Arc<str>, Network> =
            desired.networks.iter().map(|network| (Arc::from(network.name.as_str()), network.clone())).collect();
        let mut attached: HashMap<Uuid, Vec<AttachSpec>> = HashMap::new();
        for attach in &desired.attached {
            attached.entry(attach.port).or_default().push(attach.clone());
        }
        let mut by_address = HashMap::with_capacity(2 * desired.ports.len());
        for (index, port) in desired.ports.iter().enumerate() {
            let Some((network, _)) = networks.get_key_value(port.network.as_str()) else { continue };
            // What the guest has on its own NIC it may send from.
            let own = attached.get(&port.uid).into_iter().flatten();
            let own = own.filter(|attach| !attach.one_to_one).map(|attach| attach.address);
            for address in port.addresses().chain(own) {
                by_address.insert((Arc::clone(network), address), index);
            }
        }
        Self {
            spec: spec.clone(),
            dhcp: desired.local.dhcp,
            ports: desired.ports.clone(),
            networks: Arc::new(networks),
            attached: Arc::new(attached),
            by_address: Arc::new(by_address),
            moving: Arc::default(),
        }
    }

    /// The same for ports that say something else of themselves, and have the same addresses.
    pub fn with_ports(&self, ports: &Ports) -> Self {
        Self { ports: ports.clone(), ..self.clone() }
    }

    /// Whose an address is.
    pub fn find(&self, network: &Arc<str>, address: IpAddr) -> Option<Workload<'_>> {
        let key = (Arc::clone(network), address);
        if self.moving.contains(&key) {
            return None;
        }
        let port = self.ports.get(*self.by_address.get(&key)?)?;
        Some(Workload {
            port,
            network: self.networks.get(network)?,
            attached: self.attached.get(&port.uid).map(Vec::as_slice).unwrap_or_default(),
            spec: &self.spec,
            dhcp: self.dhcp,
        })
    }

    /// The same without the addresses that belong to others, or to nobody, in `next`; and which those are.
    pub fn without_moved(&self, next: &Self) -> (Self, Vec<(Arc<str>, IpAddr)>) {
        let owner = |directory: &Self, key: &Key| directory.find(&key.0, key.1).map(|workload| workload.port.uid);
        let moved = self.by_address.keys().filter(|key| owner(self, key) != owner(next, key));
        let moved: HashSet<Key> = moved.cloned().collect();
        let list = moved.iter().cloned().collect();
        (Self { moving: Arc::new(moved), ..self.clone() }, list)
    }
}

impl Workload<'_> {
    /// Whether reading needs a token.
    pub fn tokens(&self) -> Tokens {
        self.port.metadata.tokens.unwrap_or(self.spec.tokens)
    }

    /// `i-` and 17 hexadecimal digits, as EC2 has them; the same for the life of the port.
    pub fn instance_id(&self) -> String {
        let digits = self.port.uid.simple().to_string();
        format!("i-{}", digits.get(..17).unwrap_or(&digits))
    }

    /// Public addresses, of one family.
    pub fn public(&self, v4: bool) -> impl Iterator<Item = IpAddr> {
        self.attached.iter().map(|attach| attach.address).filter(move |address| address.is_ipv4() == v4)
    }

    /// The network's ranges: IPv4, IPv6.
    pub fn ranges(&self) -> (Option<IpNet>, Option<IpNet>) {
        let v4 = self.network.v4.map(|(range, _)| IpNet::V4(range.trunc()));
        (v4, self.network.v6.map(|(range, _)| IpNet::V6(range.trunc())))
    }
}
