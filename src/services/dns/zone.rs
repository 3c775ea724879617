//! The names of one network: the cluster zone as its ports see it, and the reverse names of its ranges.
//!
//! # Theory of operation
//!
//! A zone is built as a whole from a [`ZoneInput`] and never changes; control replaces it. A name is found by one look
//! into a hash table of lower-case keys. Every name above one that exists is in there, too, without records: it exists
//! (RFC 4592 §2.2.2, RFC 8020), so that NXDOMAIN is said only where nothing is below. Reverse names are found by
//! address, in order, which says the same of them.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use hickory_proto::rr::rdata::{A, AAAA, NS, PTR, SOA, TXT};
use hickory_proto::rr::{Name, RData};
use ipnet::IpNet;

use super::name::{Key, Reverse, below, reverse_depth};
use super::service;
use super::spec::ZoneInput;

/// Seconds that answers of the zone may be kept, and that a name does not exist (SEMANTICS DN8).
pub const TTL_S: u32 = 5;

/// The Kubernetes DNS specification that is followed.
const SCHEMA_VERSION: &str = "1.1.0";

/// The zone of one network.
pub struct Zone {
    apex: Name,
    apex_key: Box<[u8]>,
    nodes: HashMap<Box<[u8]>, Node, foldhash::fast::RandomState>,
    reverse: BTreeMap<IpAddr, Vec<RData>>,
    /// Ports by address, `namespace/name`.
    owners: HashMap<IpAddr, String>,
    ranges: Vec<IpNet>,
    private: Vec<IpNet>,
    soa: RData,
    ns: RData,
}

/// What one name has.
#[derive(Default)]
pub struct Node {
    /// How it is written; the root where nothing was.
    name: Name,
    records: Vec<RData>,
}

/// What a zone knows of a name.
pub enum Found<'z> {
    /// It belongs to nobody here.
    Elsewhere,
    /// It exists; there may be no records.
    Records(&'z [RData], Place),
    /// It does not exist.
    Nothing(Place),
}

/// Which zone a name is in.
pub struct Place {
    /// Top of the zone: the owner of its SOA.
    pub apex: Name,
    /// The name is the top.
    pub at_apex: bool,
    /// It stands for an address.
    pub reverse: bool,
}

impl Zone {
    /// Makes the zone. `serial` must grow with each.
    pub fn new(input: &ZoneInput, serial: u32) -> Self {
        let apex = Name::from_ascii(&input.domain).map(|mut name| {
            name.set_fqdn(true);
            name
        });
        // Control has checked it.
        let apex = apex.unwrap_or_default();
        let server = below(&apex, &["ns", "dns"]).unwrap_or_else(|| apex.clone());
        let contact = below(&apex, &["hostmaster"]).unwrap_or_else(|| apex.clone());
        let mut zone = Self {
            apex_key: Key::of(&apex).octets().into(),
            nodes: HashMap::default(),
            reverse: BTreeMap::new(),
            owners: HashMap::new(),
            ranges: input.ranges.clone(),
            private: input.private.clone(),
            soa: RData::SOA(SOA::new(server.clone(), contact, serial, 7_200, 1_800, 86_400, TTL_S)),
            ns: RData::NS(NS(server.clone())),
            apex,
        };
        zone.nodes.insert(zone.apex_key.clone(), Node { name: zone.apex.clone(), records: Vec::new() });
        let version = RData::TXT(TXT::new(vec![SCHEMA_VERSION.to_owned()]));
        if let Some(name) = below(&zone.apex, &["dns-version"]) {
            zone.insert(&name, version);
        }
        zone.insert_host(&server, &input.gateways, true);
        for port in &input.ports {
            let full_name = format!("{}/{}", port.namespace, port.name);
            port.addresses.iter().for_each(|address| drop(zone.owners.insert(*address, full_name.clone())));
            if let Some(name) = below(&zone.apex, &[&port.name, &port.namespace, "port"]) {
                zone.insert_host(&name, &port.addresses, true);
            }
        }
        input.services.iter().for_each(|service| service::insert(&mut zone, service));
        zone
    }

    /// Top of the cluster zone.
    pub fn apex(&self) -> &Name {
        &self.apex
    }

    /// SOA of the cluster zone and of the reverse zones.
    pub fn soa(&self) -> &RData {
        &self.soa
    }

    /// Their name server.
    pub fn ns(&self) -> &RData {
        &self.ns
    }

    /// The port that has an address, `namespace/name`.
    pub fn owner(&self, address: IpAddr) -> Option<&str> {
        self.owners.get(&address).map(String::as_str)
    }

    /// Adds a record, and with it the names above.
    pub fn insert(&mut self, name: &Name, record: RData) {
        let key = Key::of(name);
        if !key.is_within(&self.apex_key) {
            return;
        }
        for above in key.ancestors().skip(1).take_while(|above| above.len() > self.apex_key.len()) {
            if self.nodes.contains_key(above) {
                break;
            }
            self.nodes.insert(above.into(), Node::default());
        }
        let node = self.nodes.entry(key.octets().into()).or_default();
        node.name = name.clone();
        if !node.records.contains(&record) {
            node.records.push(record);
        }
    }

    /// Adds addresses, and their reverse names where wanted.
    pub fn insert_host(&mut self, name: &Name, addresses: &[IpAddr], reverse: bool) {
        for address in addresses {
            self.insert(name, address_record(*address));
            if reverse {
                let names = self.reverse.entry(*address).or_default();
                let record = RData::PTR(PTR(name.clone()));
                if !names.contains(&record) {
                    names.push(record);
                }
            }
        }
    }

    /// What there is to a name.
    pub fn find(&self, name: &Name) -> Found<'_> {
        let key = Key::of(name);
        if key.is_within(&self.apex_key) {
            let at_apex = key.octets().len() == self.apex_key.len();
            let place = Place { apex: self.apex.clone(), at_apex, reverse: false };
            return match self.nodes.get(key.octets()) {
                Some(node) => Found::Records(&node.records, place),
                None => Found::Nothing(place),
            };
        }
        match Reverse::of(name) {
            Some(reverse) => self.find_reverse(&reverse),
            None => Found::Elsewhere,
        }
    }

    fn find_reverse(&self, wanted: &Reverse) -> Found<'_> {
        let Reverse { net, deeper } = wanted;
        let within = |ranges: &[IpNet]| ranges.iter().find(|range| range.contains(net)).copied();
        let own = within(&self.ranges);
        let Some(range) = own.or_else(|| within(&self.private)) else { return Found::Elsewhere };
        let depth = reverse_depth(range);
        let labels = usize::from(net.prefix_len()) / if net.addr().is_ipv4() { 8 } else { 4 };
        let at_apex = !deeper && labels == depth;
        // A range off a label boundary has several tops; the SOA's owner is the one above what was asked (RFC 2308 §3).
        let apex = Name::from(net.network()).trim_to(depth + 2);
        let place = Place { apex, at_apex, reverse: true };
        let mut names = self.reverse.range(net.network()..=net.broadcast());
        match names.next().filter(|_| own.is_some() && !deeper) {
            Some((address, records)) if IpNet::from(*address) == *net => Found::Records(records, place),
            None if !at_apex => Found::Nothing(place),
            _ => Found::Records(&[], place),
        }
    }

    /// Every record with its owner, in the order of names; the reverse ones last.
    pub fn records(&self) -> Vec<(Name, RData)> {
        let forward = self.nodes.values().flat_map(|node| node.records.iter().map(|record| (&node.name, record)));
        let mut forward: Vec<(Name, RData)> = forward.map(|(name, record)| (name.clone(), record.clone())).collect();
        forward.extend([self.soa.clone(), self.ns.clone()].map(|record| (self.apex.clone(), record)));
        forward.sort_by(|(a, x), (b, y)| (a, u16::from(x.record_type())).cmp(&(b, u16::from(y.record_type()))));
        let reverse = self.reverse.iter().flat_map(|(address, records)| records.iter().map(move |r| (address, r)));
        forward.extend(reverse.map(|(address, record)| (Name::from(*address), record.clone())));
        forward
    }
}

/// An A or AAAA record.
pub fn address_record(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    }
}
