//! Ends of a packet as people write them: `shop/web-0`, `10.64.0.31:5432/tcp`, `[2001:db8::1]:53/udp`, `gateway:53`,
//! `shop/db-0:postgres`, `uplink` for whoever is out there. For `trace` and `ping`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hostweave_policy::model::Protocol as PolicyProtocol;
use hostweave_switch::tables::{
    AddressKey, Network, NetworkId, Owned, Port, PortId, PortKind, ROUTER_LINK_LOCAL, Tables, Uplink, mapped,
};

use super::error::{ErrorKind, RpcError};
use crate::config::kind::DEFAULT_NAMESPACE;
use crate::fabric::Picture;
use crate::observe::synthetic::{Protocol, Tuple};
use crate::observe::trace::{Request, Scene, free_source_port};

/// Name of the network where none is written.
const DEFAULT_NETWORK: &str = "default";

/// Somebody out there, where nobody is known (RFC 5737, RFC 3849).
const SOMEBODY_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const SOMEBODY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// One end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    who: Who,
    l4: Option<L4>,
    protocol: Option<Protocol>,
    /// The parameter that it came in.
    field: &'static str,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Who {
    /// `namespace/name`.
    Port(String),
    Address(IpAddr),
    Gateway,
    /// Whoever is out there.
    Uplink,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum L4 {
    Number(u16),
    Name(String),
}

impl Endpoint {
    /// Reads one. A name without namespace is one of `namespace`.
    ///
    /// # Errors
    /// It makes no sense; the error names `field`.
    pub fn parse(field: &'static str, text: &str, namespace: Option<&str>) -> Result<Self, RpcError> {
        let (rest, protocol) = match text.rsplit_once('/') {
            Some((rest, word)) if !rest.is_empty() => match protocol(rest, &word.to_ascii_lowercase()) {
                Some(protocol) => (rest, Some(protocol)),
                None => (text, None),
            },
            _ => (text, None),
        };
        let bad = |what: &str| {
            RpcError::new(ErrorKind::InvalidParams, field, format!("{text:?}: {what}")).help(
                "write NAMESPACE/PORT or an address, then :L4PORT and /tcp, /udp, /sctp, /icmp or the number of another protocol, such as shop/db-0:5432/tcp",
            )
        };
        let (name, l4) = split(rest).ok_or_else(|| bad("a [ without ]"))?;
        let l4 = match l4 {
            None => None,
            Some(word) if word.bytes().all(|octet| octet.is_ascii_digit()) => match word.parse() {
                Ok(number) if number > 0 => Some(L4::Number(number)),
                _ => return Err(bad("an L4 port is 1 to 65535")),
            },
            Some(word) => Some(L4::Name(word.to_owned())),
        };
        let who = match (name.parse(), name) {
            (Ok(address), _) => Who::Address(address),
            (Err(_), "") => return Err(bad("the port or address is missing")),
            (Err(_), "gateway") => Who::Gateway,
            (Err(_), "uplink") => Who::Uplink,
            (Err(_), name) if name.contains('/') => Who::Port(name.to_owned()),
            (Err(_), name) => Who::Port(format!("{}/{name}", namespace.unwrap_or(DEFAULT_NAMESPACE))),
        };
        Ok(Self { who, l4, protocol, field })
    }

    fn error(&self, kind: ErrorKind, message: impl Into<String>) -> RpcError {
        RpcError::new(kind, self.field, message)
    }
}

/// What stands behind the last slash, if it is a protocol. A number is one behind an address or a whole name: `lab/47` is a port.
fn protocol(end: &str, word: &str) -> Option<Protocol> {
    let whole = || end.contains(['/', ':']) || end.parse::<IpAddr>().is_ok() || matches!(end, "gateway" | "uplink");
    let number = || word.bytes().all(|octet| octet.is_ascii_digit()).then(|| word.parse().ok()).flatten();
    Protocol::from_name(word).or_else(|| number().filter(|_| whole()).map(Protocol::from_number))
}

/// The name and what stands behind its colon.
fn split(text: &str) -> Option<(&str, Option<&str>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (address, rest) = rest.split_once(']')?;
        return Some((address, rest.strip_prefix(':')));
    }
    match text.rsplit_once(':') {
        // An IPv6 address without brackets has no port.
        Some((name, _)) if name.contains(':') => Some((text, None)),
        Some((name, port)) => Some((name, Some(port))),
        None => Some((text, None)),
    }
}

/// A packet's two ends and the network in question.
pub struct Ends<'a> {
    /// Who sends.
    pub from: &'a Endpoint,
    /// Where to.
    pub to: &'a Endpoint,
    /// The network, where the ends do not say it.
    pub network: Option<&'a str>,
}

impl Ends<'_> {
    /// Finds ports and addresses.
    ///
    /// # Errors
    /// There is no such port, network or address, or no packet between the two.
    pub fn resolve(&self, picture: &Picture, scene: &Scene<'_>) -> Result<Request, RpcError> {
        let tables = &picture.plane.tables;
        if let Some(uplink) = self.uplink(tables)? {
            return self.outside_request(picture, scene, uplink);
        }
        let (id, network) = self.network(tables)?;
        let sender = self.sender(tables, id, network)?;
        let receiver = match &self.to.who {
            Who::Port(name) => Some(by_name(tables, name).ok_or_else(|| no_port(self.to, name, tables))?),
            Who::Gateway => tables.port(network.internal),
            Who::Address(address) => tables.owner(AddressKey::new(id, *address)).and_then(|port| tables.port(port)),
            Who::Uplink => {
                return Err(self.to.error(ErrorKind::InvalidParams, "write the address of somebody out there"));
            }
        };
        let ends = [candidates(&self.from.who, Some(sender)), candidates(&self.to.who, receiver)];
        self.request(picture, scene, sender, receiver, ends)
    }

    /// The uplink, if the packet comes from there: nobody of this host has the source address.
    fn uplink<'t>(&self, tables: &'t Tables) -> Result<Option<&'t Uplink>, RpcError> {
        let uplink = tables.uplink.as_deref();
        match &self.from.who {
            Who::Uplink if uplink.is_none() => Err(self.from.error(ErrorKind::NotFound, "this host has no uplink")),
            Who::Uplink => Ok(uplink),
            Who::Address(address) if self.network.is_none() => {
                Ok(uplink.filter(|uplink| is_foreign(tables, uplink, *address)))
            }
            _ => Ok(None),
        }
    }

    /// A packet that comes in at the uplink.
    fn outside_request(&self, picture: &Picture, scene: &Scene<'_>, uplink: &Uplink) -> Result<Request, RpcError> {
        let tables = &picture.plane.tables;
        let sender = tables
            .port(uplink.port)
            .ok_or_else(|| self.from.error(ErrorKind::Unavailable, "the uplink is not there yet"))?;
        let sources = match &self.from.who {
            Who::Address(address) => vec![*address],
            // Whoever it is, the router sends it; where none is known, somebody of the documentation does.
            _ => [(&uplink.v4, IpAddr::V4(SOMEBODY_V4)), (&uplink.v6, IpAddr::V6(SOMEBODY_V6))]
                .map(|(gateways, other)| gateways.first().map_or(other, |gateway| gateway.address))
                .to_vec(),
        };
        let attached = |address: IpAddr| match uplink.owned.get(&mapped(address)) {
            Some(Owned::Attached { port, .. }) => tables.port(*port),
            _ => None,
        };
        let (receiver, destinations) = match &self.to.who {
            Who::Port(name) => {
                let port = by_name(tables, name).ok_or_else(|| no_port(self.to, name, tables))?;
                (Some(port), outside_addresses(uplink, port))
            }
            Who::Address(address) => (attached(*address), vec![*address]),
            Who::Gateway | Who::Uplink => {
                let message = "from outside, write an address or a port";
                return Err(self.to.error(ErrorKind::InvalidParams, message));
            }
        };
        self.request(picture, scene, sender, receiver, [sources, destinations])
    }

    /// A packet from one of some addresses to one of others.
    fn request(
        &self,
        picture: &Picture,
        scene: &Scene<'_>,
        sender: &Port,
        receiver: Option<&Port>,
        ends: [Vec<IpAddr>; 2],
    ) -> Result<Request, RpcError> {
        let (protocol, dst_port) = self.l4(picture, receiver)?;
        let (src, dst) = self.addresses(ends, protocol)?;
        let network = picture
            .plane
            .tables
            .network(sender.network)
            .ok_or_else(|| self.from.error(ErrorKind::Unavailable, "its network is not there yet"))?;
        let src_port = match &self.from.l4 {
            Some(L4::Number(number)) => *number,
            Some(L4::Name(_)) => {
                return Err(self.from.error(ErrorKind::InvalidParams, "a source port is a number"));
            }
            None => {
                let tuple = Tuple { src, dst, protocol, src_port: 0, dst_port };
                free_source_port(scene, network, &tuple)
            }
        };
        Ok(Request { from: sender.id, tuple: Tuple { src, dst, protocol, src_port, dst_port } })
    }

    /// That of the sender, else that of the receiver, else the one that is named.
    fn network<'t>(&self, tables: &'t Tables) -> Result<(NetworkId, &'t Network), RpcError> {
        let of_port = |end: &Endpoint| match &end.who {
            Who::Port(name) => by_name(tables, name).map(|port| Some(port.network)).ok_or(no_port(end, name, tables)),
            _ => Ok(None),
        };
        let id = match (of_port(self.from)?, self.network) {
            (Some(id), None) => Some(id),
            (sender, Some(wanted)) => {
                let id = network_id(tables, wanted).ok_or_else(|| {
                    RpcError::new(ErrorKind::NotFound, "network", format!("network {wanted} does not exist"))
                        .help("see what there is: hostweave get networks")
                })?;
                if sender.is_some_and(|sender| sender != id) {
                    return Err(self.from.error(ErrorKind::Conflict, format!("that port is not in network {wanted}")));
                }
                Some(id)
            }
            (None, None) => match of_port(self.to)? {
                Some(id) => Some(id),
                None => network_id(tables, DEFAULT_NETWORK),
            },
        };
        id.and_then(|id| Some((id, tables.network(id)?))).ok_or_else(|| {
            RpcError::new(ErrorKind::NotFound, "network", "there is no network default: say which with --network")
        })
    }

    fn sender<'t>(&self, tables: &'t Tables, id: NetworkId, network: &Network) -> Result<&'t Port, RpcError> {
        let found = match &self.from.who {
            Who::Port(name) => by_name(tables, name),
            Who::Gateway => tables.port(network.internal),
            Who::Address(address) => tables.owner(AddressKey::new(id, *address)).and_then(|port| tables.port(port)),
            Who::Uplink => None,
        };
        found.ok_or_else(|| match &self.from.who {
            Who::Port(name) => no_port(self.from, name, tables),
            Who::Address(address) => self
                .from
                .error(ErrorKind::NotFound, format!("no port of network {} has {address}", network.name))
                .help("a packet begins at a port (hostweave port list -A), or at the uplink with an address that no network has"),
            Who::Gateway | Who::Uplink => {
                self.from.error(ErrorKind::NotFound, format!("network {} has no gateway", network.name))
            }
        })
    }

    /// Protocol and destination port; an echo request where nothing is said.
    fn l4(&self, picture: &Picture, receiver: Option<&Port>) -> Result<(Protocol, u16), RpcError> {
        let wanted = self.to.protocol.or(self.from.protocol);
        match (&self.to.l4, wanted) {
            (Some(L4::Number(number)), protocol) => {
                let protocol = protocol.unwrap_or(Protocol::Tcp);
                if !protocol.has_ports() {
                    return Err(self.to.error(ErrorKind::InvalidParams, format!("{protocol} has no L4 ports")));
                }
                Ok((protocol, *number))
            }
            (Some(L4::Name(name)), wanted) => {
                let endpoint =
                    receiver.and_then(|port| picture.world.endpoints.iter().find(|endpoint| endpoint.id == port.id));
                let named = endpoint.into_iter().flat_map(|endpoint| &endpoint.named_ports);
                let mut named = named.map(|named| (&named.name, of_policy(named.protocol), named.port));
                let found = named
                    .find(|(known, protocol, _)| *known == name && wanted.is_none_or(|wanted| wanted == *protocol));
                found.map(|(_, protocol, port)| (protocol, port)).ok_or_else(|| {
                    let message = format!("{name:?} is no number, and no named port of the destination");
                    self.to.error(ErrorKind::NotFound, message)
                })
            }
            (None, None) => Ok((Protocol::Icmp, 1)),
            (None, Some(Protocol::Other(number))) => Ok((Protocol::Other(number), 0)),
            (None, Some(protocol)) if !protocol.has_ports() => Ok((protocol, 1)),
            (None, Some(protocol)) => {
                let help = format!("write the port before it, such as :5432/{protocol}");
                Err(self.to.error(ErrorKind::InvalidParams, format!("{protocol} needs an L4 port")).help(help))
            }
        }
    }

    /// Addresses of one family, IPv4 where both have both.
    fn addresses(
        &self,
        [sources, destinations]: [Vec<IpAddr>; 2],
        protocol: Protocol,
    ) -> Result<(IpAddr, IpAddr), RpcError> {
        let fits = |address: &IpAddr| match protocol {
            Protocol::Arp => address.is_ipv4(),
            Protocol::Nd | Protocol::Rs => address.is_ipv6(),
            _ => true,
        };
        let pairs = destinations.iter().filter(|address| fits(address)).flat_map(|dst| {
            sources.iter().filter(move |src| src.is_ipv4() == dst.is_ipv4()).map(move |src| (*src, *dst))
        });
        let mut pairs = pairs.collect::<Vec<_>>();
        pairs.sort_by_key(|(src, _)| src.is_ipv6());
        pairs.first().copied().ok_or_else(|| {
            self.to
                .error(ErrorKind::Invalid, format!("there is no {protocol} packet from one end to the other"))
                .help("both ends need an address of the same family")
        })
    }
}

/// Addresses that an end may stand for.
fn candidates(who: &Who, port: Option<&Port>) -> Vec<IpAddr> {
    if let Who::Address(address) = who {
        return vec![*address];
    }
    let Some(port) = port else { return Vec::new() };
    let v6 = port.v6.iter().filter(|address| **address != ROUTER_LINK_LOCAL).map(|address| IpAddr::V6(*address));
    port.v4.iter().map(|address| IpAddr::V4(*address)).chain(v6).collect()
}

/// Whether an address is nobody's on this host: of no network, and none of those at the uplink.
fn is_foreign(tables: &Tables, uplink: &Uplink, address: IpAddr) -> bool {
    let within = |network: &Network| match address {
        IpAddr::V4(v4) => network.v4.is_some_and(|(range, _)| range.contains(&v4)),
        IpAddr::V6(v6) => network.v6.is_some_and(|(range, _)| range.contains(&v6)),
    };
    let known = (0..).map(NetworkId).zip(&tables.networks).filter(|(id, _)| *id != uplink.network);
    let mut known = known.filter_map(|(id, network)| Some((id, network.as_deref()?)));
    !known.any(|(id, network)| within(network) || tables.owner(AddressKey::new(id, address)).is_some())
        && !uplink.is_ours(mapped(address))
}

/// Addresses by which the outside knows a port: those that are attached to it, or else its own.
fn outside_addresses(uplink: &Uplink, port: &Port) -> Vec<IpAddr> {
    let ours = |owned: &Owned| matches!(owned, Owned::Attached { port: owner, .. } if *owner == port.id);
    let attached = uplink.owned.iter().filter(|(_, owned)| ours(owned));
    let mut public: Vec<IpAddr> = attached.map(|(bits, _)| Ipv6Addr::from(*bits).to_canonical()).collect();
    // The table has no order of its own.
    public.sort_unstable();
    let own = candidates(&Who::Gateway, Some(port));
    let rest = own.into_iter().filter(|own| public.iter().all(|known| known.is_ipv4() != own.is_ipv4()));
    let rest: Vec<IpAddr> = rest.collect();
    public.into_iter().chain(rest).collect()
}

fn by_name<'t>(tables: &'t Tables, name: &str) -> Option<&'t Port> {
    tables
        .ports
        .iter()
        .flatten()
        .map(|port| &**port)
        .find(|port| port.name == name && matches!(port.kind, PortKind::VhostUser | PortKind::Tap))
}

fn network_id(tables: &Tables, name: &str) -> Option<NetworkId> {
    let named = |network: &Option<std::sync::Arc<Network>>| network.as_ref().is_some_and(|known| known.name == name);
    u16::try_from(tables.networks.iter().position(named)?).ok().map(NetworkId)
}

fn no_port(end: &Endpoint, name: &str, tables: &Tables) -> RpcError {
    let error = end.error(ErrorKind::NotFound, format!("Port {name} does not exist"));
    let names = tables.ports.iter().flatten().map(|port| port.name.as_str());
    match crate::config::names::closest(name, names) {
        Some(similar) => error.help(format!("did you mean {similar}?")),
        None => error.help("see what there is: hostweave port list -A"),
    }
}

fn of_policy(protocol: PolicyProtocol) -> Protocol {
    match protocol {
        PolicyProtocol::Tcp => Protocol::Tcp,
        PolicyProtocol::Udp => Protocol::Udp,
        PolicyProtocol::Sctp => Protocol::Sctp,
    }
}

/// `namespace/name` of ports that a command names, as the tables number them.
///
/// # Errors
/// There is no such port.
pub fn port_id(tables: &Tables, name: &str) -> Result<PortId, RpcError> {
    let end = Endpoint { who: Who::Gateway, l4: None, protocol: None, field: "ports" };
    by_name(tables, name).map(|port| port.id).ok_or_else(|| no_port(&end, name, tables))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (Who, Option<L4>, Option<Protocol>) {
        let end = Endpoint::parse("to", text, Some("shop")).unwrap();
        (end.who, end.l4, end.protocol)
    }

    #[test]
    fn ends_as_people_write_them() {
        let port = |name: &str| Who::Port(name.to_owned());
        let number = |number| Some(L4::Number(number));
        let address = |text: &str| Who::Address(text.parse().unwrap());
        for (text, expected) in [
            ("web-0", (port("shop/web-0"), None, None)),
            ("lab/web-0", (port("lab/web-0"), None, None)),
            ("lab/web-0/icmp", (port("lab/web-0"), None, Some(Protocol::Icmp))),
            ("web-0:80", (port("shop/web-0"), number(80), None)),
            ("lab/web-0:80/UDP", (port("lab/web-0"), number(80), Some(Protocol::Udp))),
            ("lab/web-0:http", (port("lab/web-0"), Some(L4::Name("http".into())), None)),
            ("10.64.0.31:5432/tcp", (address("10.64.0.31"), number(5432), Some(Protocol::Tcp))),
            ("2001:db8::1", (address("2001:db8::1"), None, None)),
            ("2001:db8::1/icmp", (address("2001:db8::1"), None, Some(Protocol::Icmp))),
            ("[2001:db8::1]:53/udp", (address("2001:db8::1"), number(53), Some(Protocol::Udp))),
            ("gateway:53/udp", (Who::Gateway, number(53), Some(Protocol::Udp))),
            ("gateway", (Who::Gateway, None, None)),
            ("uplink", (Who::Uplink, None, None)),
            ("lab/47", (port("lab/47"), None, None)),
            ("lab/web-0/47", (port("lab/web-0"), None, Some(Protocol::Other(47)))),
            ("2001:db8::1/58", (address("2001:db8::1"), None, Some(Protocol::Icmp))),
            ("gateway/rs", (Who::Gateway, None, Some(Protocol::Rs))),
        ] {
            assert_eq!(parsed(text), expected, "{text}");
        }
    }

    #[test]
    fn what_makes_no_sense_names_the_parameter() {
        for text in ["", ":80", "web:0", "web:65536", "[2001:db8::1"] {
            let error = Endpoint::parse("from", text, None).unwrap_err();
            assert_eq!((error.data.kind, error.data.field.as_str()), (ErrorKind::InvalidParams, "from"), "{text}");
        }
    }
}
