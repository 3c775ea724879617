//! `Network`, checked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hostweave_switch::limits::{MTU_MAX, MTU_MIN};
use hostweave_switch::tables::{Addressing, Egress};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::network_policy::check_cidr;
use super::range;
use crate::config::names;
use crate::config::node::Path;
use crate::config::problem::Problem;
use crate::config::ranges::Range;
use crate::config::raw;

/// MTU of a network that names none, in octets of IP packet.
pub const MTU_DEFAULT: u16 = 1500;

/// Virtual network identifiers have 24 bits (RFC 7348 §5).
const VNI_MAX: u32 = (1 << 24) - 1;

/// The longest prefixes: room for the gateway and at least one port.
const V4_PREFIX_MAX: u8 = 30;
const V6_PREFIX_MAX: u8 = 126;

/// Resolvers that DHCP and RA hand out.
const RESOLVERS_MAX: usize = 8;
/// Ranges that a network may reach untranslated.
const UNTRANSLATED_MAX: usize = 64;

/// An isolated L3 network, every default filled in. At least one of `v4` and `v6` is there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Network {
    /// IPv4 range and the gateway in it.
    pub v4: Option<(Ipv4Net, Ipv4Addr)>,
    /// IPv6 range and the gateway in it.
    pub v6: Option<(Ipv6Net, Ipv6Addr)>,
    /// Cluster addresses of IPv4; there whenever `v4` is.
    pub services_v4: Option<Ipv4Net>,
    /// Cluster addresses of IPv6; there whenever `v6` is.
    pub services_v6: Option<Ipv6Net>,
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
    /// What becomes of packets that leave, where written.
    pub egress_v4: Option<Egress>,
    /// Likewise.
    pub egress_v6: Option<Egress>,
    /// Destinations to which nothing is translated.
    pub untranslated: Vec<IpNet>,
}

impl Network {
    /// Checks what is written; values of fields that have a problem are meaningless.
    pub(super) fn check(name: &str, raw: &raw::network::NetworkSpec, problems: &mut Vec<Problem>) -> Self {
        let spec = Path::of("spec");
        let mut network = Self {
            v4: None,
            v6: None,
            services_v4: None,
            services_v6: None,
            mtu: range(raw.mtu, u32::from(MTU_MIN), u32::from(MTU_MAX), &spec.key("mtu"), problems)
                .and_then(|mtu| u16::try_from(mtu).ok())
                .unwrap_or(MTU_DEFAULT),
            vni: range(raw.vni, 1, VNI_MAX, &spec.key("vni"), problems).unwrap_or_else(|| derived_vni(name)),
            addressing: match raw.addressing {
                None | Some(raw::network::Addressing::Network) => Addressing::Network,
                Some(raw::network::Addressing::Host) => Addressing::Host,
            },
            learning: raw.address_learning != Some(raw::network::OnOff::Off),
            domain: None,
            resolvers: Vec::new(),
            egress_v4: None,
            egress_v6: None,
            untranslated: Vec::new(),
        };
        network.set_egress(raw.egress.as_ref(), &spec.key("egress"), problems);
        network.check_cidrs(&raw.cidrs, &spec.key("cidrs"), problems);
        network.check_gateways(&raw.gateways, &spec.key("gateways"), problems);
        network.check_service_cidrs(&raw.service_cidrs, &spec.key("serviceCIDRs"), problems);
        if let Some(dns) = &raw.dns {
            network.check_dns(dns, &spec.key("dns"), problems);
        }
        network
    }

    /// Whether `address` is in the network's range and may be a port's: not the gateway's, and not one that the range
    /// itself uses (network and broadcast address; subnet-router anycast, RFC 4291 §2.6.1).
    ///
    /// # Errors
    /// The reason, as the end of a sentence that begins with the address.
    pub fn check_address(&self, address: IpAddr) -> Result<(), String> {
        let (range, gateway, first, last): (IpNet, IpAddr, IpAddr, Option<IpAddr>) = match address {
            IpAddr::V4(_) => match self.v4 {
                Some((net, gateway)) => {
                    (net.into(), gateway.into(), net.network().into(), Some(net.broadcast().into()))
                }
                None => return Err("is IPv4, and the network has no IPv4 range".to_owned()),
            },
            IpAddr::V6(_) => match self.v6 {
                Some((net, gateway)) => (net.into(), gateway.into(), net.network().into(), None),
                None => return Err("is IPv6, and the network has no IPv6 range".to_owned()),
            },
        };
        if !range.contains(&address) {
            Err(format!("is outside {range}"))
        } else if address == gateway {
            Err("is the gateway's address".to_owned())
        } else if address == first {
            Err(format!("is the network address of {range}"))
        } else if Some(address) == last {
            Err(format!("is the broadcast address of {range}"))
        } else {
            Ok(())
        }
    }

    /// Its ranges of cluster addresses.
    pub fn service_ranges(&self) -> impl Iterator<Item = IpNet> + use<> {
        self.services_v4.map(IpNet::V4).into_iter().chain(self.services_v6.map(IpNet::V6))
    }

    fn check_service_cidrs(&mut self, cidrs: &[String], path: &Path, problems: &mut Vec<Problem>) {
        for (index, text) in cidrs.iter().enumerate() {
            let path = path.index(index);
            let result = parse_cidr(text).and_then(|net| self.check_service_cidr(net).map(|()| net));
            match result {
                Ok(IpNet::V4(net)) => self.services_v4 = Some(net),
                Ok(IpNet::V6(net)) => self.services_v6 = Some(net),
                Err((reason, help)) => {
                    let problem = Problem::value(&path, "invalid_cidr", format!("{path} {text:?} {reason}"));
                    problems.push(problem.label("not usable").help(help));
                }
            }
        }
        let (v4, v6) = (self.v4.map(|(net, _)| net), self.v6.map(|(net, _)| net));
        self.services_v4 = v4.map(|own| self.services_v4.unwrap_or_else(|| default_services_v4(own)));
        self.services_v6 = v6.map(|own| self.services_v6.unwrap_or_else(|| default_services_v6(own)));
    }

    /// Whether a range may be that of the network's Services.
    fn check_service_cidr(&self, net: IpNet) -> Result<(), (String, String)> {
        let help = "write a range that is in no Network's cidrs and no pool, like 10.104.0.0/16".to_owned();
        let (own, seen) = match net {
            IpNet::V4(_) => (self.v4.map(|(own, _)| IpNet::V4(own)), self.services_v4.is_some()),
            IpNet::V6(_) => (self.v6.map(|(own, _)| IpNet::V6(own)), self.services_v6.is_some()),
        };
        let Some(own) = own else {
            return Err(("is of a family that spec.cidrs has not: no port could be reached by it".to_owned(), help));
        };
        if seen {
            return Err(("is a second range of its family".to_owned(), help));
        }
        if Range::from(own).overlaps(&Range::from(net)) {
            return Err((format!("overlaps {own} of spec.cidrs: its addresses are given to ports"), help));
        }
        Ok(())
    }

    fn set_egress(&mut self, raw: Option<&raw::network::NetworkEgress>, path: &Path, problems: &mut Vec<Problem>) {
        let Some(raw) = raw else { return };
        self.egress_v4 = raw.ipv4.map(|egress| match egress {
            raw::network::EgressV4::Nat => Egress::Nat,
            raw::network::EgressV4::None => Egress::Forbidden,
        });
        self.egress_v6 = raw.ipv6.map(|egress| match egress {
            raw::network::EgressV6::Nat => Egress::Nat,
            raw::network::EgressV6::Routed => Egress::Routed,
            raw::network::EgressV6::None => Egress::Forbidden,
        });
        let path = path.key("untranslated");
        if raw.untranslated.len() > UNTRANSLATED_MAX {
            let message =
                format!("{path} has {} ranges; at most {UNTRANSLATED_MAX} are allowed", raw.untranslated.len());
            problems.push(Problem::value(&path, "out_of_range", message).label("too many"));
        }
        for (index, text) in raw.untranslated.iter().enumerate() {
            let path = path.index(index);
            self.untranslated.extend(check_cidr(text, &path, problems));
        }
    }

    fn check_cidrs(&mut self, cidrs: &[String], path: &Path, problems: &mut Vec<Problem>) {
        if cidrs.is_empty() {
            let message = "spec.cidrs is empty: a network needs an IPv4 range, an IPv6 range, or both";
            problems.push(Problem::value(path, "missing_field", message).label("for example [10.64.0.0/16]"));
        }
        for (index, text) in cidrs.iter().enumerate() {
            let path = path.index(index);
            let net = match parse_cidr(text) {
                Ok(net) => net,
                Err((reason, help)) => {
                    let problem = Problem::value(&path, "invalid_cidr", format!("{path} {text:?} {reason}"));
                    problems.push(problem.label("not usable").help(help));
                    continue;
                }
            };
            let taken = match net {
                IpNet::V4(net) => self.v4.replace((net, first_host_v4(net))).is_some(),
                IpNet::V6(net) => self.v6.replace((net, first_host_v6(net))).is_some(),
            };
            if taken {
                let family = if net.addr().is_ipv4() { "IPv4" } else { "IPv6" };
                let message =
                    format!("{path} {text} is a second {family} range; a network has at most one of each family");
                problems.push(Problem::value(&path, "duplicate", message).label(format!("second {family} range")));
            }
        }
    }

    fn check_gateways(&mut self, gateways: &[String], path: &Path, problems: &mut Vec<Problem>) {
        let (mut seen_v4, mut seen_v6) = (false, false);
        for (index, text) in gateways.iter().enumerate() {
            let path = path.index(index);
            let mut report = |reason: &str| {
                let problem = Problem::value(&path, "invalid_address", format!("{path} {text:?} {reason}"));
                problems.push(problem.label("not usable as gateway"));
            };
            let Ok(address) = text.parse::<IpAddr>() else {
                report("is not an IP address");
                continue;
            };
            let seen = if address.is_ipv4() { &mut seen_v4 } else { &mut seen_v6 };
            if std::mem::replace(seen, true) {
                report("is a second gateway of its family");
                continue;
            }
            // While it is being checked it must not be compared with the default it replaces.
            let previous = (self.v4, self.v6);
            match address {
                IpAddr::V4(v4) => self.v4 = self.v4.map(|(net, _)| (net, other_v4(net, v4))),
                IpAddr::V6(v6) => self.v6 = self.v6.map(|(net, _)| (net, other_v6(net, v6))),
            }
            let result = self.check_address(address);
            (self.v4, self.v6) = previous;
            match (result, address) {
                (Err(reason), _) => report(&reason),
                (Ok(()), IpAddr::V4(v4)) => self.v4 = self.v4.map(|(net, _)| (net, v4)),
                (Ok(()), IpAddr::V6(v6)) => self.v6 = self.v6.map(|(net, _)| (net, v6)),
            }
        }
    }

    fn check_dns(&mut self, dns: &raw::network::NetworkDns, path: &Path, problems: &mut Vec<Problem>) {
        if let Some(domain) = &dns.domain {
            let path = path.key("domain");
            let plain = domain.strip_suffix('.').unwrap_or(domain);
            if let Err(reason) = names::check_dns_subdomain(plain) {
                let message = format!("{path} {domain:?} {reason}");
                problems.push(Problem::value(&path, "invalid_name", message).label("not a domain"));
            }
            self.domain = Some(plain.to_owned());
        }
        let path = path.key("servers");
        if dns.servers.len() > RESOLVERS_MAX {
            let message = format!("{path} has {} addresses; at most {RESOLVERS_MAX} are allowed", dns.servers.len());
            problems.push(Problem::value(&path, "out_of_range", message).label("too many"));
        }
        for (index, text) in dns.servers.iter().enumerate() {
            let path = path.index(index);
            match text.parse::<IpAddr>() {
                Ok(address) if !address.is_unspecified() && !address.is_multicast() => self.resolvers.push(address),
                _ => {
                    let message = format!("{path} {text:?} is not the IP address of a resolver");
                    problems.push(Problem::value(&path, "invalid_address", message).label("not an address"));
                }
            }
        }
    }
}

/// A range that a network may have, or the reason and what to write instead.
fn parse_cidr(text: &str) -> Result<IpNet, (String, String)> {
    let example = "write an address and a prefix length, like 10.64.0.0/16 or 2001:db8:64::/64".to_owned();
    let net: IpNet = text.parse().map_err(|_| ("is not a CIDR".to_owned(), example.clone()))?;
    if net.addr() != net.network() {
        return Err(("has bits set beyond its prefix length".to_owned(), format!("write {}", net.trunc())));
    }
    let longest = if net.addr().is_ipv4() { V4_PREFIX_MAX } else { V6_PREFIX_MAX };
    if net.prefix_len() > longest || net.prefix_len() < 8 {
        let reason = format!("has prefix length {}; 8 to {longest} are allowed", net.prefix_len());
        return Err((reason, "a network needs room for its gateway and its ports".to_owned()));
    }
    if let Some(what) = Range::from(net).special() {
        return Err((format!("overlaps {what}"), example));
    }
    Ok(net)
}

/// Cluster addresses of IPv4 where nothing is written: in the range that Kubernetes has (10.96.0.0/12), or in OpenShift's. A function
/// of the network's own range, so that addresses stay whatever else there is; no range of a network overlaps both.
pub fn default_services_v4(own: Ipv4Net) -> Ipv4Net {
    let first = Ipv4Net::new_assert(Ipv4Addr::new(10, 104, 0, 0), 16);
    let second = Ipv4Net::new_assert(Ipv4Addr::new(172, 30, 0, 0), 16);
    if Range::from(IpNet::V4(own)).overlaps(&IpNet::V4(first).into()) { second } else { first }
}

/// Likewise of IPv6: unique local addresses (RFC 4193), of either half.
pub fn default_services_v6(own: Ipv6Net) -> Ipv6Net {
    let net = |first| Ipv6Net::new_assert(Ipv6Addr::new(first, 0x7700, 0x68, 0, 0, 0, 0, 0), 112);
    let (first, second) = (net(0xfd68), net(0xfc68));
    if Range::from(IpNet::V6(own)).overlaps(&IpNet::V6(first).into()) { second } else { first }
}

/// The first address after the network's own: the gateway unless another is written.
fn first_host_v4(net: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(net.network()).saturating_add(1))
}

/// As [`first_host_v4`]; the network's own is the subnet-router anycast address.
fn first_host_v6(net: Ipv6Net) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(net.network()).saturating_add(1))
}

/// Any host address of the range but this one.
fn other_v4(net: Ipv4Net, address: Ipv4Addr) -> Ipv4Addr {
    let first = first_host_v4(net);
    if first == address { Ipv4Addr::from(u32::from(first).saturating_add(1)) } else { first }
}

/// Any host address of the range but this one.
fn other_v6(net: Ipv6Net, address: Ipv6Addr) -> Ipv6Addr {
    let first = first_host_v6(net);
    if first == address { Ipv6Addr::from(u128::from(first).saturating_add(1)) } else { first }
}

/// The VNI of a network that names none: the upper half of the 24 bits, by FNV-1a of the name. The same on every host,
/// so that hosts with the same objects agree; two names that meet are refused where objects are checked together.
fn derived_vni(name: &str) -> u32 {
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, octet| (hash ^ u32::from(octet)).wrapping_mul(0x0100_0193));
    0x80_0000 | ((hash >> 23) ^ hash) & 0x7f_ffff
}
