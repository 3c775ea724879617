//! Packets that no guest sent: what `trace` puts before the stages and `ping` into the packet path, as the port itself would
//! send it. TCP begins with a SYN, ICMP is an echo request, DHCP a request for an address; nothing here is a full protocol.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hostweave_switch::MacAddr;
use hostweave_switch::flow::{FlowKey, Kind};
use hostweave_switch::wire::ethernet::{self, ether_type};
use hostweave_switch::wire::{arp, checksum, dhcp4, dhcp6, icmpv4, icmpv6, ipv4, ipv6, proto, tcp, udp};
use serde::{Deserialize, Serialize};

/// What a packet is to carry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Protocol {
    /// A segment that opens a connection.
    Tcp,
    /// A datagram without data; to a DHCP server, a request for an address.
    Udp,
    /// An echo request, ICMPv6 over IPv6.
    Icmp,
    /// A packet with the beginning of an association.
    Sctp,
    /// A question for the owner of an IPv4 address.
    Arp,
    /// A neighbour solicitation for an IPv6 address.
    Nd,
    /// A router solicitation.
    Rs,
    /// A packet of another IP protocol, by its number; what it carries nobody looks at.
    Other(u8),
}

impl Protocol {
    /// Those that have a name, as it is written behind an address.
    pub const NAMED: [(&str, Protocol); 7] = [
        ("tcp", Protocol::Tcp),
        ("udp", Protocol::Udp),
        ("icmp", Protocol::Icmp),
        ("sctp", Protocol::Sctp),
        ("arp", Protocol::Arp),
        ("nd", Protocol::Nd),
        ("rs", Protocol::Rs),
    ];

    /// From its name, in lower case.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::NAMED.into_iter().find(|(known, _)| *known == name).map(|(_, protocol)| protocol)
    }

    /// From its number.
    pub const fn from_number(number: u8) -> Self {
        match number {
            proto::TCP => Protocol::Tcp,
            proto::UDP => Protocol::Udp,
            proto::SCTP => Protocol::Sctp,
            proto::ICMPV4 | proto::ICMPV6 => Protocol::Icmp,
            other => Protocol::Other(other),
        }
    }

    /// Whether it has L4 ports.
    pub const fn has_ports(self) -> bool {
        matches!(self, Protocol::Tcp | Protocol::Udp | Protocol::Sctp)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self, Self::NAMED.iter().find(|(_, protocol)| protocol == self)) {
            (Protocol::Other(number), _) => write!(f, "protocol {number}"),
            (_, Some((name, _))) => f.write_str(name),
            (_, None) => Ok(()),
        }
    }
}

impl From<Protocol> for String {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Other(number) => number.to_string(),
            named => named.to_string(),
        }
    }
}

impl TryFrom<String> for Protocol {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let number = || text.parse().ok().map(Protocol::from_number);
        Protocol::from_name(&text).or_else(number).ok_or_else(|| format!("{text:?} is no protocol"))
    }
}

/// Addresses and ports of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tuple {
    /// Source address.
    pub src: IpAddr,
    /// Destination address, of the same family.
    pub dst: IpAddr,
    /// What it carries.
    pub protocol: Protocol,
    /// L4 source port; of an echo request its identifier.
    pub src_port: u16,
    /// L4 destination port; of an echo request its sequence number.
    pub dst_port: u16,
}

impl Tuple {
    /// The IP protocol number; 0 for ARP.
    pub fn proto(&self) -> u8 {
        match (self.protocol, self.dst) {
            (Protocol::Tcp, _) => proto::TCP,
            (Protocol::Udp, _) => proto::UDP,
            (Protocol::Sctp, _) => proto::SCTP,
            (Protocol::Icmp, IpAddr::V4(_)) => proto::ICMPV4,
            (Protocol::Icmp, IpAddr::V6(_)) | (Protocol::Nd | Protocol::Rs, _) => proto::ICMPV6,
            (Protocol::Other(number), _) => number,
            (Protocol::Arp, _) => 0,
        }
    }

    /// Of a packet with this key, as far as one can be made. `None` for an answer, which begins nothing.
    pub fn of(key: &FlowKey) -> Option<Self> {
        let [src, dst] = [key.src(), key.dst()].map(|bits| Ipv6Addr::from(bits).to_canonical());
        let (src_port, dst_port) = match key.kind() {
            Kind::Ports => (key.src_port(), key.dst_port()),
            Kind::Query => (key.src_port(), 1),
            Kind::Addresses => (0, 0),
            Kind::Answer => return None,
        };
        Some(Self { src, dst, protocol: Protocol::from_number(key.proto()), src_port, dst_port })
    }

    /// `10.64.0.12:49152`, `[2001:db8::1]:49152`, or the address alone where there are no ports.
    pub fn source(&self) -> String {
        address(self.src, self.protocol.has_ports().then_some(self.src_port))
    }

    /// As [`Self::source`].
    pub fn destination(&self) -> String {
        address(self.dst, self.protocol.has_ports().then_some(self.dst_port))
    }
}

/// An address as people write it, with an L4 port if there is one.
pub fn address(address: IpAddr, port: Option<u16>) -> String {
    match (address, port) {
        (address, None) => address.to_string(),
        (IpAddr::V4(v4), Some(port)) => format!("{v4}:{port}"),
        (IpAddr::V6(v6), Some(port)) => format!("[{v6}]:{port}"),
    }
}

/// An IP protocol by its number, as people know it.
pub fn protocol_name(proto: u8) -> String {
    match proto {
        proto::TCP => "tcp".to_owned(),
        proto::UDP => "udp".to_owned(),
        proto::SCTP => "sctp".to_owned(),
        proto::ICMPV4 => "icmp".to_owned(),
        proto::ICMPV6 => "icmpv6".to_owned(),
        other => format!("protocol {other}"),
    }
}

/// What a TCP segment says apart from its ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TcpFields {
    /// See `hostweave_switch::wire::tcp::flags`.
    pub flags: u8,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
}

impl TcpFields {
    /// The first segment of a connection.
    pub const SYN: TcpFields = TcpFields { flags: tcp::flags::SYN, sequence: 1, acknowledgement: 0 };
}

/// The frame that who has the MAC address `mac` would send, by the router `router`. `None` when the addresses are of two
/// families, or of the wrong one.
pub fn frame(mac: MacAddr, router: MacAddr, tuple: &Tuple) -> Option<Vec<u8>> {
    match (tuple.protocol, tuple.src, tuple.dst) {
        (Protocol::Arp, IpAddr::V4(src), IpAddr::V4(dst)) => Some(arp_request(mac, src, dst)),
        (Protocol::Arp, ..) => None,
        (Protocol::Nd, IpAddr::V6(src), IpAddr::V6(dst)) => neighbor_solicit(mac, src, dst),
        (Protocol::Rs, IpAddr::V6(src), IpAddr::V6(_)) => router_solicit(mac, src),
        (Protocol::Nd | Protocol::Rs, ..) => None,
        // It would not be the protocol of the packet, but a header before that.
        (Protocol::Other(number), IpAddr::V6(_), _) if ipv6::is_extension(number) => None,
        (Protocol::Udp, IpAddr::V4(_), IpAddr::V4(_)) if tuple.dst_port == dhcp4::SERVER_PORT => discover(mac),
        (Protocol::Udp, IpAddr::V6(_), IpAddr::V6(_)) if tuple.dst_port == dhcp6::SERVER_PORT => solicit(mac),
        _ => ip(mac, router, tuple.src, tuple.dst, tuple.proto(), 64, message(tuple, &TcpFields::SYN)?),
    }
}

/// A TCP segment that is not the first.
pub fn tcp_frame(mac: MacAddr, tuple: &Tuple, fields: &TcpFields) -> Option<Vec<u8>> {
    ip(mac, MacAddr::ROUTER, tuple.src, tuple.dst, proto::TCP, 64, message(tuple, fields)?)
}

/// The transport header, without checksum where [`ip`] fills it in.
fn message(tuple: &Tuple, fields: &TcpFields) -> Option<Vec<u8>> {
    let (src_port, dst_port) = (tuple.src_port, tuple.dst_port);
    let both = u32::from(src_port) << 16 | u32::from(dst_port);
    match tuple.protocol {
        Protocol::Tcp => {
            let mut octets = vec![0; tcp::HEADER_LEN];
            let &TcpFields { flags, sequence, acknowledgement } = fields;
            let repr = tcp::Repr { src_port, dst_port, sequence, acknowledgement, flags, window: 65_535 };
            repr.emit(octets.first_chunk_mut()?, 0);
            Some(octets)
        }
        Protocol::Udp => Some(datagram(src_port, dst_port, &[])),
        Protocol::Icmp => {
            let mut octets = vec![0; icmpv4::HEADER_LEN + ECHO_DATA.len()];
            octets[icmpv4::HEADER_LEN..].copy_from_slice(ECHO_DATA);
            match (tuple.src, tuple.dst) {
                (IpAddr::V4(_), _) => icmpv4::emit(&mut octets, icmpv4::kind::ECHO_REQUEST, 0, both)?,
                (IpAddr::V6(src), IpAddr::V6(dst)) => {
                    icmpv6::emit(&mut octets, src, dst, icmpv6::kind::ECHO_REQUEST, 0, both)?;
                }
                _ => return None,
            }
            Some(octets)
        }
        Protocol::Sctp => {
            // RFC 9260 §3.1, §3.3.2: common header with a verification tag of zero, INIT. `trace` alone makes it and it never
            // leaves the process, so that nobody looks at its CRC.
            let mut octets = both.to_be_bytes().to_vec();
            octets.extend([0; 8]);
            octets.extend([1, 0, 0, 20, 0, 0, 0, 1, 0, 0, 0xff, 0xff, 0, 1, 0, 1, 0, 0, 0, 1]);
            Some(octets)
        }
        Protocol::Other(_) => Some(vec![0; OTHER_LEN]),
        Protocol::Arp | Protocol::Nd | Protocol::Rs => None,
    }
}

/// A UDP datagram without checksum.
fn datagram(src_port: u16, dst_port: u16, data: &[u8]) -> Vec<u8> {
    let len = (udp::HEADER_LEN + data.len()) as u16;
    let mut octets = [src_port, dst_port, len, 0].map(u16::to_be_bytes).concat();
    octets.extend(data);
    octets
}

/// An IP packet in a frame, its transport checksum filled in. `None` when the addresses are of two families.
fn ip(
    mac: MacAddr,
    to: MacAddr,
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    ttl: u8,
    mut payload: Vec<u8>,
) -> Option<Vec<u8>> {
    let payload_len = u16::try_from(payload.len()).ok()?;
    let (pseudo, header, kind) = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut header = [0; ipv4::HEADER_LEN];
            ipv4::Repr { src, dst, proto: protocol, ttl, tos: 0, payload_len }.emit(&mut header);
            let pseudo = checksum::pseudo_v4(src, dst, protocol, u32::from(payload_len));
            (pseudo, header.to_vec(), ether_type::IPV4)
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut header = [0; ipv6::HEADER_LEN];
            let repr = ipv6::Repr { src, dst, next_header: protocol, hop_limit: ttl, traffic_class: 0, payload_len };
            repr.emit(&mut header);
            let pseudo = checksum::pseudo_v6(src, dst, protocol, u32::from(payload_len));
            (pseudo, header.to_vec(), ether_type::IPV6)
        }
        _ => return None,
    };
    let at = match protocol {
        proto::TCP => Some(usize::from(tcp::CHECKSUM_OFFSET)),
        proto::UDP => Some(usize::from(udp::CHECKSUM_OFFSET)),
        _ => None,
    };
    if let Some(at) = at {
        let sum = !checksum::combine(pseudo, checksum::sum(&payload));
        // RFC 768: zero would mean that there is none.
        let sum = if sum == 0 && protocol == proto::UDP { 0xffff } else { sum };
        payload.get_mut(at..at + 2)?.copy_from_slice(&sum.to_be_bytes());
    }
    Some(ethernet_frame(mac, to, kind, &[&header[..], &payload].concat()))
}

fn ethernet_frame(src: MacAddr, dst: MacAddr, ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut header = [0; ethernet::HEADER_LEN];
    ethernet::Repr { dst, src, ether_type }.emit(&mut header);
    [&header[..], payload].concat()
}

fn arp_request(mac: MacAddr, src: Ipv4Addr, dst: Ipv4Addr) -> Vec<u8> {
    let mut octets = [0; arp::LEN];
    let message = arp::Message {
        operation: arp::Operation::Request,
        sender_mac: mac,
        sender_ip: src,
        target_mac: MacAddr([0; 6]),
        target_ip: dst,
    };
    message.emit(&mut octets);
    ethernet_frame(mac, MacAddr::BROADCAST, ether_type::ARP, &octets)
}

/// Option with the source link-layer address (RFC 4861 §4.6.1).
const SOURCE_LINK_LAYER: u8 = 1;

/// RFC 4861 §4.1, with the source link-layer address.
fn router_solicit(mac: MacAddr, src: Ipv6Addr) -> Option<Vec<u8>> {
    const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
    let mut octets = vec![0; icmpv6::HEADER_LEN];
    octets.extend([SOURCE_LINK_LAYER, 1]);
    octets.extend(mac.0);
    icmpv6::emit(&mut octets, src, ALL_ROUTERS, icmpv6::kind::ROUTER_SOLICIT, 0, 0)?;
    let link = ethernet::multicast_v6(ALL_ROUTERS);
    ip(mac, link, src.into(), ALL_ROUTERS.into(), proto::ICMPV6, 255, octets)
}

/// RFC 4861 §4.3, with the source link-layer address.
fn neighbor_solicit(mac: MacAddr, src: Ipv6Addr, target: Ipv6Addr) -> Option<Vec<u8>> {
    let mut octets = vec![0; icmpv6::HEADER_LEN];
    octets.extend(target.octets());
    octets.extend([SOURCE_LINK_LAYER, 1]);
    octets.extend(mac.0);
    let group = ipv6::solicited_node(target);
    icmpv6::emit(&mut octets, src, group, icmpv6::kind::NEIGHBOR_SOLICIT, 0, 0)?;
    ip(mac, ethernet::multicast_v6(group), src.into(), group.into(), proto::ICMPV6, 255, octets)
}

/// DHCPDISCOVER (RFC 2131 §4.4.1) of a client without an address.
fn discover(mac: MacAddr) -> Option<Vec<u8>> {
    const ETHERNET: [u8; 2] = [1, 6];
    const CHADDR: usize = 28;
    const COOKIE: [u8; 4] = [99, 130, 83, 99];
    let mut octets = vec![0; dhcp4::MESSAGE_LEN_MIN];
    octets[0] = dhcp4::BOOTREQUEST;
    octets[1..3].copy_from_slice(&ETHERNET);
    octets[CHADDR..CHADDR + 6].copy_from_slice(&mac.0);
    octets[dhcp4::HEADER_LEN - COOKIE.len()..dhcp4::HEADER_LEN].copy_from_slice(&COOKIE);
    let options = [dhcp4::option::MESSAGE_TYPE, 1, dhcp4::message_type::DISCOVER, dhcp4::option::END];
    octets[dhcp4::HEADER_LEN..dhcp4::HEADER_LEN + options.len()].copy_from_slice(&options);
    let payload = datagram(dhcp4::CLIENT_PORT, dhcp4::SERVER_PORT, &octets);
    let (src, dst) = (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::BROADCAST.into());
    ip(mac, MacAddr::BROADCAST, src, dst, proto::UDP, 64, payload)
}

/// Solicit (RFC 8415 §18.2.1) for one address.
fn solicit(mac: MacAddr) -> Option<Vec<u8>> {
    let mut octets = vec![dhcp6::message_type::SOLICIT, 0, 0, 1];
    // DUID-LL of the MAC address (RFC 8415 §11.4), IA_NA without wishes (§21.4).
    octets.extend([0, 1, 0, 10, 0, 3, 0, 1]);
    octets.extend(mac.0);
    octets.extend([0, 3, 0, 12, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    let payload = datagram(dhcp6::CLIENT_PORT, dhcp6::SERVER_PORT, &octets);
    let (src, dst) = (hostweave_switch::tables::link_local(mac), dhcp6::ALL_SERVERS);
    ip(mac, ethernet::multicast_v6(dst), src.into(), dst.into(), proto::UDP, 64, payload)
}

/// Octets of a packet of a protocol that nobody looks into.
const OTHER_LEN: usize = 8;

/// What echo requests carry.
const ECHO_DATA: &[u8; 32] = b"hostweave ping: no guest sent it";

#[cfg(test)]
mod tests {
    use hostweave_switch::packet::{Burst, Meta};
    use hostweave_switch::parse::parse;
    use hostweave_switch::stage::Verdict;

    use super::*;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 7]);

    fn tuple(protocol: Protocol, v6: bool) -> Tuple {
        let (src, dst): (IpAddr, IpAddr) = if v6 {
            ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap())
        } else {
            ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap())
        };
        Tuple { src, dst, protocol, src_port: 49_152, dst_port: 443 }
    }

    #[test]
    fn every_packet_is_one_that_parse_lets_through_in_both_families() {
        for v6 in [false, true] {
            let others = [47, 50, 89, 0].map(Protocol::Other);
            for protocol in Protocol::NAMED.map(|(_, protocol)| protocol).into_iter().chain(others) {
                let tuple = tuple(protocol, v6);
                let Some(frame) = frame(MAC, MacAddr::ROUTER, &tuple) else {
                    let only_v4 = matches!(protocol, Protocol::Arp | Protocol::Other(0));
                    assert!(if v6 { only_v4 } else { matches!(protocol, Protocol::Nd | Protocol::Rs) }, "{protocol}");
                    continue;
                };
                let (verdict, meta) = Burst::new().with_frame(Meta::default(), &frame, frame.len(), |packet, arena| {
                    (parse(packet, arena), packet.meta)
                });
                assert_eq!(verdict, Verdict::Continue, "{protocol} {v6}");
                assert_eq!(meta.proto, tuple.proto(), "{protocol} {v6}");
                if protocol.has_ports() {
                    assert_eq!((meta.src_port, meta.dst_port), (49_152, 443));
                }
            }
        }
    }

    #[test]
    fn checksums_are_right() {
        use smoltcp::wire::{EthernetFrame, IpAddress, Ipv4Packet, Ipv6Packet, TcpPacket, UdpPacket};
        for v6 in [false, true] {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let tuple = tuple(protocol, v6);
                let frame = frame(MAC, MacAddr::ROUTER, &tuple).unwrap();
                let ethernet = EthernetFrame::new_checked(&frame[..]).unwrap();
                let payload = if v6 {
                    Ipv6Packet::new_checked(ethernet.payload()).unwrap().payload().to_vec()
                } else {
                    let packet = Ipv4Packet::new_checked(ethernet.payload()).unwrap();
                    assert!(packet.verify_checksum());
                    packet.payload().to_vec()
                };
                let (src, dst) = (IpAddress::from(tuple.src), IpAddress::from(tuple.dst));
                let right = match protocol {
                    Protocol::Tcp => TcpPacket::new_checked(&payload[..]).unwrap().verify_checksum(&src, &dst),
                    _ => UdpPacket::new_checked(&payload[..]).unwrap().verify_checksum(&src, &dst),
                };
                assert!(right, "{protocol} {v6}");
            }
        }
    }

    #[test]
    fn two_families_make_no_packet() {
        let mixed = Tuple { dst: "2001:db8::2".parse().unwrap(), ..tuple(Protocol::Tcp, false) };
        assert_eq!(frame(MAC, MacAddr::ROUTER, &mixed), None);
    }

    #[test]
    fn protocols_survive_as_text() {
        for (protocol, text) in [(Protocol::Rs, "\"rs\""), (Protocol::Other(47), "\"47\""), (Protocol::Tcp, "\"tcp\"")]
        {
            assert_eq!(serde_json::to_string(&protocol).unwrap(), text);
            assert_eq!(serde_json::from_str::<Protocol>(text).unwrap(), protocol);
        }
        assert_eq!(serde_json::from_str::<Protocol>("\"58\"").unwrap(), Protocol::Icmp);
        assert!(serde_json::from_str::<Protocol>("\"256\"").is_err());
    }

    #[test]
    fn addresses_as_people_write_them() {
        assert_eq!(tuple(Protocol::Tcp, false).destination(), "192.0.2.2:443");
        assert_eq!(tuple(Protocol::Udp, true).source(), "[2001:db8::1]:49152");
        assert_eq!(tuple(Protocol::Icmp, true).destination(), "2001:db8::2");
    }
}
