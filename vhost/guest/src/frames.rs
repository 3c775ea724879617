//! Hand-made frames and their checks: Ethernet, ARP, IPv4, IPv6, ICMP, ND, UDP, TCP.
//!
//! For tests that need a frame no stack would send, and for judging a received frame octet by octet. RFC 791, 826,
//! 768, 792, 4443, 4861, 8200, 9293. A builder makes what it is told, right or wrong; [`Frame::parse`] is strict and
//! says what is wrong. It does *not* know options, extension headers or fragments beyond stepping over IPv4 options.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::queue::VnetHeader;

/// A hardware address.
pub type Mac = [u8; 6];

/// All stations.
pub const BROADCAST: Mac = [0xff; 6];
/// EtherType of IPv4.
pub const ETHER_IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ETHER_ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const ETHER_IPV6: u16 = 0x86dd;
/// IP protocol numbers.
pub const ICMP: u8 = 1;
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// ICMP for IPv6.
pub const ICMPV6: u8 = 58;
/// Octets of an Ethernet header.
pub const ETHER_BYTES: usize = 14;

/// Where an IP packet comes from and goes to, with the hardware addresses of this hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Sender's hardware address.
    pub src_mac: Mac,
    /// Receiver's hardware address; the router's in a routed network.
    pub dst_mac: Mac,
    /// Source address.
    pub src: IpAddr,
    /// Destination address, of the same version.
    pub dst: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
}

impl Path {
    /// A path with TTL 64.
    pub fn new(src_mac: Mac, dst_mac: Mac, src: impl Into<IpAddr>, dst: impl Into<IpAddr>) -> Self {
        Self { src_mac, dst_mac, src: src.into(), dst: dst.into(), ttl: 64 }
    }

    /// The same with another TTL or hop limit.
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// Octets of Ethernet and IP header.
    pub fn header_bytes(&self) -> usize {
        ETHER_BYTES + if self.src.is_ipv4() { 20 } else { 40 }
    }

    /// An IP packet with any payload.
    pub fn ip(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::with_capacity(self.header_bytes() + payload.len());
        frame.extend(self.dst_mac);
        frame.extend(self.src_mac);
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                frame.extend(ETHER_IPV4.to_be_bytes());
                frame.extend(ipv4_header(src, dst, protocol, self.ttl, payload.len()));
            }
            (src, dst) => {
                frame.extend(ETHER_IPV6.to_be_bytes());
                frame.extend([0x60, 0, 0, 0]);
                frame.extend((payload.len() as u16).to_be_bytes());
                frame.extend([protocol, self.ttl]);
                frame.extend(to_v6(src).octets());
                frame.extend(to_v6(dst).octets());
            }
        }
        frame.extend(payload);
        frame
    }

    /// A UDP datagram with a full checksum.
    pub fn udp(&self, src_port: u16, dst_port: u16, payload: &[u8]) -> Vec<u8> {
        let mut l4 = Vec::with_capacity(8 + payload.len());
        l4.extend(src_port.to_be_bytes());
        l4.extend(dst_port.to_be_bytes());
        l4.extend(((8 + payload.len()) as u16).to_be_bytes());
        l4.extend([0, 0]);
        l4.extend(payload);
        let sum = match fold(pseudo_sum(self.src, self.dst, UDP, l4.len()) + sum(&l4)) {
            0xffff => 0xffff,
            folded => !folded,
        };
        l4[6..8].copy_from_slice(&sum.to_be_bytes());
        self.ip(UDP, &l4)
    }

    /// A TCP segment without options, with a full checksum.
    pub fn tcp(&self, segment: &Segment, payload: &[u8]) -> Vec<u8> {
        let mut l4 = Vec::with_capacity(20 + payload.len());
        l4.extend(segment.src_port.to_be_bytes());
        l4.extend(segment.dst_port.to_be_bytes());
        l4.extend(segment.seq.to_be_bytes());
        l4.extend(segment.ack.to_be_bytes());
        l4.extend([0x50, segment.flags]);
        l4.extend(segment.window.to_be_bytes());
        l4.extend([0, 0, 0, 0]);
        l4.extend(payload);
        let checksum = !fold(pseudo_sum(self.src, self.dst, TCP, l4.len()) + sum(&l4));
        l4[16..18].copy_from_slice(&checksum.to_be_bytes());
        self.ip(TCP, &l4)
    }

    /// A TCP frame to be cut by the receiver into segments of `gso_size` octets, with its header.
    pub fn tcp_gso(&self, segment: &Segment, payload: &[u8], gso_size: u16) -> (VnetHeader, Vec<u8>) {
        let mut frame = self.tcp(segment, payload);
        let mut header = partial_checksum(&mut frame).unwrap_or_default();
        header.gso_type = if self.src.is_ipv4() { VnetHeader::GSO_TCPV4 } else { VnetHeader::GSO_TCPV6 };
        header.gso_size = gso_size;
        (header, frame)
    }

    /// An ICMP or ICMPv6 message: type, code, the four octets behind the checksum, and the rest.
    pub fn icmp(&self, kind: u8, code: u8, rest: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let mut l4 = vec![kind, code, 0, 0];
        l4.extend(rest);
        l4.extend(payload);
        let (protocol, pseudo) = match self.src {
            IpAddr::V4(_) => (ICMP, 0),
            IpAddr::V6(_) => (ICMPV6, pseudo_sum(self.src, self.dst, ICMPV6, l4.len())),
        };
        let checksum = !fold(pseudo + sum(&l4));
        l4[2..4].copy_from_slice(&checksum.to_be_bytes());
        self.ip(protocol, &l4)
    }

    /// An echo request.
    pub fn echo_request(&self, id: u16, seq: u16, payload: &[u8]) -> Vec<u8> {
        let kind = if self.src.is_ipv4() { 8 } else { 128 };
        let ([a, b], [c, d]) = (id.to_be_bytes(), seq.to_be_bytes());
        self.icmp(kind, 0, [a, b, c, d], payload)
    }
}

/// Fields of a TCP header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// FIN 1, SYN 2, RST 4, PSH 8, ACK 16.
    pub flags: u8,
    /// Window.
    pub window: u16,
}

/// An ARP packet for Ethernet and IPv4: operation 1 asks, 2 answers.
pub fn arp(operation: u16, ether: (Mac, Mac), sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let (src_mac, dst_mac) = ether;
    let mut frame = Vec::with_capacity(42);
    frame.extend(dst_mac);
    frame.extend(src_mac);
    frame.extend(ETHER_ARP.to_be_bytes());
    frame.extend([0, 1, 8, 0, 6, 4]);
    frame.extend(operation.to_be_bytes());
    frame.extend(sender.0);
    frame.extend(sender.1.octets());
    frame.extend(target.0);
    frame.extend(target.1.octets());
    frame
}

/// An ARP request for `target` from `mac` and `sender`, broadcast.
pub fn arp_request(mac: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    arp(1, (mac, BROADCAST), (mac, sender), ([0; 6], target))
}

/// A neighbour solicitation for `target`; from `::` it is a duplicate address probe (RFC 4862 §5.4.2).
pub fn neighbor_solicitation(mac: Mac, src: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let group = solicited_node(target);
    let mut body = target.octets().to_vec();
    if !src.is_unspecified() {
        body.extend([1, 1]);
        body.extend(mac);
    }
    Path::new(mac, multicast_mac(group), src, group).ttl(255).icmp(135, 0, [0; 4], &body)
}

/// A neighbour advertisement: `flags` are the first octet, router 0x80, solicited 0x40, override 0x20.
pub fn neighbor_advertisement(path: Path, target: Ipv6Addr, target_mac: Mac, flags: u8) -> Vec<u8> {
    let mut body = target.octets().to_vec();
    body.extend([2, 1]);
    body.extend(target_mac);
    path.ttl(255).icmp(136, 0, [flags, 0, 0, 0], &body)
}

/// The link-local address of a MAC (RFC 4291, appendix A).
pub fn link_local(mac: Mac) -> Ipv6Addr {
    eui64(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), mac)
}

/// The address of a MAC in a /64.
pub fn eui64(prefix: Ipv6Addr, mac: Mac) -> Ipv6Addr {
    let mut octets = prefix.octets();
    octets[8..].copy_from_slice(&[mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]]);
    Ipv6Addr::from(octets)
}

/// The solicited-node group of an address (RFC 4291 §2.7.1).
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from(b) << 8 | u16::from(c))
}

/// The MAC of an IPv6 multicast group (RFC 2464 §7).
pub fn multicast_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

/// What a received frame is, every length and checksum verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Sender's hardware address.
    pub src_mac: Mac,
    /// Receiver's hardware address.
    pub dst_mac: Mac,
    /// The rest.
    pub body: Body,
}

/// What is behind the Ethernet header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// ARP for Ethernet and IPv4.
    Arp {
        /// 1 asks, 2 answers.
        operation: u16,
        /// Sender.
        sender: (Mac, Ipv4Addr),
        /// Target.
        target: (Mac, Ipv4Addr),
    },
    /// IPv4 or IPv6.
    Ip {
        /// Source.
        src: IpAddr,
        /// Destination.
        dst: IpAddr,
        /// TTL or hop limit.
        ttl: u8,
        /// What is behind the IP header.
        l4: L4,
    },
    /// Another EtherType.
    Other(u16),
}

/// What is behind the IP header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum L4 {
    /// UDP.
    Udp {
        /// Source port.
        src_port: u16,
        /// Destination port.
        dst_port: u16,
        /// Payload.
        payload: Vec<u8>,
    },
    /// TCP.
    Tcp {
        /// The header.
        segment: Segment,
        /// Payload behind the options.
        payload: Vec<u8>,
    },
    /// ICMP or ICMPv6.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// The four octets behind the checksum.
        rest: [u8; 4],
        /// What follows.
        payload: Vec<u8>,
    },
    /// Another protocol, or a fragment.
    Other(u8, Vec<u8>),
}

impl Frame {
    /// Reads a frame. With `NEEDS_CSUM` in `header` only the pseudo header's sum is expected in its place.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(header: &VnetHeader, frame: &[u8]) -> Result<Self, String> {
        let dst_mac = *frame.first_chunk::<6>().ok_or("shorter than a MAC")?;
        let src_mac = *frame.get(6..).and_then(|f| f.first_chunk::<6>()).ok_or("shorter than two MACs")?;
        let ether = be16(frame, 12)?;
        let rest = &frame[ETHER_BYTES..];
        let body = match ether {
            ETHER_ARP => parse_arp(rest)?,
            ETHER_IPV4 => parse_ipv4(header, rest)?,
            ETHER_IPV6 => parse_ipv6(header, rest)?,
            other => Body::Other(other),
        };
        Ok(Self { src_mac, dst_mac, body })
    }

    /// The UDP payload, if it is one.
    pub fn udp_payload(&self) -> Option<&[u8]> {
        match &self.body {
            Body::Ip { l4: L4::Udp { payload, .. }, .. } => Some(payload),
            _ => None,
        }
    }

    /// The TCP header and payload, if it is one.
    pub fn tcp(&self) -> Option<(&Segment, &[u8])> {
        match &self.body {
            Body::Ip { l4: L4::Tcp { segment, payload }, .. } => Some((segment, payload)),
            _ => None,
        }
    }

    /// Type and code, if it is ICMP or ICMPv6.
    pub fn icmp(&self) -> Option<(u8, u8)> {
        match &self.body {
            Body::Ip { l4: L4::Icmp { kind, code, .. }, .. } => Some((*kind, *code)),
            _ => None,
        }
    }
}

fn parse_arp(data: &[u8]) -> Result<Body, String> {
    if data.len() < 28 || data[..6] != [0, 1, 8, 0, 6, 4] {
        return Err(format!("not ARP for Ethernet and IPv4: {data:02x?}"));
    }
    let mac = |i: usize| -> Mac { std::array::from_fn(|k| data[i + k]) };
    let ip = |i: usize| Ipv4Addr::new(data[i], data[i + 1], data[i + 2], data[i + 3]);
    Ok(Body::Arp { operation: be16(data, 6)?, sender: (mac(8), ip(14)), target: (mac(18), ip(24)) })
}

fn parse_ipv4(header: &VnetHeader, data: &[u8]) -> Result<Body, String> {
    let first = *data.first().ok_or("no IPv4 header")?;
    let header_len = usize::from(first & 15) * 4;
    if first >> 4 != 4 || header_len < 20 || data.len() < header_len {
        return Err(format!("IPv4 version or length {first:#x} with {} octets", data.len()));
    }
    let total = usize::from(be16(data, 2)?);
    if total < header_len || total > data.len() {
        return Err(format!("IPv4 total length {total} with {} octets", data.len()));
    }
    if fold(sum(&data[..header_len])) != 0xffff {
        return Err("IPv4 header checksum".into());
    }
    let ip = |i: usize| IpAddr::from([data[i], data[i + 1], data[i + 2], data[i + 3]]);
    let (src, dst) = (ip(12), ip(16));
    let payload = &data[header_len..total];
    // A fragment has an offset or more to come.
    let l4 = if be16(data, 6)? & 0x3fff != 0 {
        L4::Other(data[9], payload.to_vec())
    } else {
        parse_l4(header, data[9], (src, dst), payload)?
    };
    Ok(Body::Ip { src, dst, ttl: data[8], l4 })
}

fn parse_ipv6(header: &VnetHeader, data: &[u8]) -> Result<Body, String> {
    if data.len() < 40 || data[0] >> 4 != 6 {
        return Err(format!("no IPv6 header in {} octets", data.len()));
    }
    let len = usize::from(be16(data, 4)?);
    if len > data.len() - 40 {
        return Err(format!("IPv6 payload length {len} with {} octets", data.len() - 40));
    }
    let ip = |i: usize| IpAddr::from(std::array::from_fn::<u8, 16, _>(|k| data[i + k]));
    let (src, dst) = (ip(8), ip(24));
    let l4 = parse_l4(header, data[6], (src, dst), &data[40..40 + len])?;
    Ok(Body::Ip { src, dst, ttl: data[7], l4 })
}

fn parse_l4(header: &VnetHeader, protocol: u8, ends: (IpAddr, IpAddr), data: &[u8]) -> Result<L4, String> {
    let pseudo = pseudo_sum(ends.0, ends.1, protocol, data.len());
    let partial = header.flags & VnetHeader::NEEDS_CSUM != 0;
    // With a partial checksum the field holds the pseudo header's sum.
    let intact = |at: usize| match partial {
        true => be16(data, at).is_ok_and(|field| field == fold(pseudo)),
        false => fold(pseudo + sum(data)) == 0xffff,
    };
    match protocol {
        UDP => {
            let len = usize::from(be16(data, 4)?);
            if len != data.len() {
                return Err(format!("UDP length {len} with {} octets", data.len()));
            }
            if be16(data, 6)? != 0 && !intact(6) {
                return Err("UDP checksum".into());
            }
            Ok(L4::Udp { src_port: be16(data, 0)?, dst_port: be16(data, 2)?, payload: data[8..].to_vec() })
        }
        TCP => {
            let offset = usize::from(*data.get(12).ok_or("short TCP header")? >> 4) * 4;
            if offset < 20 || data.len() < offset {
                return Err(format!("TCP data offset {offset} with {} octets", data.len()));
            }
            if !intact(16) {
                return Err("TCP checksum".into());
            }
            let segment = Segment {
                src_port: be16(data, 0)?,
                dst_port: be16(data, 2)?,
                seq: u32::from(be16(data, 4)?) << 16 | u32::from(be16(data, 6)?),
                ack: u32::from(be16(data, 8)?) << 16 | u32::from(be16(data, 10)?),
                flags: data[13],
                window: be16(data, 14)?,
            };
            Ok(L4::Tcp { segment, payload: data[offset..].to_vec() })
        }
        ICMP | ICMPV6 => {
            let pseudo = if protocol == ICMPV6 { pseudo } else { 0 };
            let [kind, code, _, _, a, b, c, d] = *data.first_chunk::<8>().ok_or("short ICMP")?;
            if fold(pseudo + sum(data)) != 0xffff {
                return Err("ICMP checksum".into());
            }
            Ok(L4::Icmp { kind, code, rest: [a, b, c, d], payload: data[8..].to_vec() })
        }
        other => Ok(L4::Other(other, data.to_vec())),
    }
}

/// Turns a frame's full TCP or UDP checksum into a partial one, as a guest with `CSUM` sends it.
/// None when it is neither TCP nor UDP, or a fragment.
pub fn partial_checksum(frame: &mut [u8]) -> Option<VnetHeader> {
    let (protocol, l4, ends) = match be16(frame, 12).ok()? {
        ETHER_IPV4 => {
            let header_len = usize::from(frame.get(14)? & 15) * 4;
            if be16(frame, 20).ok()? & 0x3fff != 0 {
                return None;
            }
            let ip = |i: usize| frame.get(i..).and_then(|f| f.first_chunk::<4>()).map(|o| IpAddr::from(*o));
            (*frame.get(23)?, ETHER_BYTES + header_len, (ip(26)?, ip(30)?))
        }
        ETHER_IPV6 => {
            let ip = |i: usize| frame.get(i..).and_then(|f| f.first_chunk::<16>()).map(|o| IpAddr::from(*o));
            (*frame.get(20)?, ETHER_BYTES + 40, (ip(22)?, ip(38)?))
        }
        _ => return None,
    };
    let (offset, l4_header) = match protocol {
        TCP => (16, usize::from(*frame.get(l4 + 12)? >> 4) * 4),
        UDP => (6, 8),
        _ => return None,
    };
    let partial = fold(pseudo_sum(ends.0, ends.1, protocol, frame.len().checked_sub(l4)?));
    frame.get_mut(l4 + offset..l4 + offset + 2)?.copy_from_slice(&partial.to_be_bytes());
    Some(VnetHeader {
        flags: VnetHeader::NEEDS_CSUM,
        hdr_len: u16::try_from(l4 + l4_header).ok()?,
        csum_start: u16::try_from(l4).ok()?,
        csum_offset: offset as u16,
        ..VnetHeader::default()
    })
}

/// Completes a partial checksum as a receiver does.
///
/// # Errors
/// When the field lies outside the frame.
pub fn complete_checksum(header: &VnetHeader, frame: &mut [u8]) -> Result<(), String> {
    if header.flags & VnetHeader::NEEDS_CSUM == 0 {
        return Ok(());
    }
    let start = usize::from(header.csum_start);
    let at = start + usize::from(header.csum_offset);
    if at + 2 > frame.len() {
        return Err(format!("checksum at {start} + {} in {} octets", header.csum_offset, frame.len()));
    }
    let checksum = match !fold(sum(&frame[start..])) {
        0 => 0xffff,
        other => other,
    };
    frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    Ok(())
}

fn ipv4_header(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, ttl: u8, payload: usize) -> [u8; 20] {
    let mut header = [0; 20];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&((20 + payload) as u16).to_be_bytes());
    header[6] = 0x40; // Don't fragment.
    header[8] = ttl;
    header[9] = protocol;
    header[12..16].copy_from_slice(&src.octets());
    header[16..].copy_from_slice(&dst.octets());
    let checksum = !fold(sum(&header));
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    header
}

fn to_v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

fn be16(data: &[u8], at: usize) -> Result<u16, String> {
    let octets = data.get(at..).and_then(|d| d.first_chunk::<2>());
    octets.map(|o| u16::from_be_bytes(*o)).ok_or_else(|| format!("{} octets end before octet {at}", data.len()))
}

/// The unfolded sum of 16-bit words (RFC 1071).
fn sum(data: &[u8]) -> u64 {
    let (pairs, tail) = data.as_chunks::<2>();
    let words: u64 = pairs.iter().map(|pair| u64::from(u16::from_be_bytes(*pair))).sum();
    words + tail.first().map_or(0, |&last| u64::from(last) << 8)
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn pseudo_sum(src: IpAddr, dst: IpAddr, protocol: u8, len: usize) -> u64 {
    let addresses = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => sum(&src.octets()) + sum(&dst.octets()),
        (src, dst) => sum(&to_v6(src).octets()) + sum(&to_v6(dst).octets()),
    };
    addresses + u64::from(protocol) + len as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Mac = [2, 0, 0, 0, 0, 1];
    const B: Mac = [2, 0, 0, 0, 0, 2];

    fn paths() -> [Path; 2] {
        let v4 = Path::new(A, B, Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2));
        let v6 =
            Path::new(A, B, "2001:db8::1".parse::<Ipv6Addr>().unwrap(), "2001:db8::2".parse::<Ipv6Addr>().unwrap());
        [v4, v6]
    }

    #[test]
    fn what_is_built_parses_back() {
        for path in paths() {
            for len in [0, 1, 18, 1400] {
                let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
                let udp = Frame::parse(&VnetHeader::default(), &path.udp(1000, 2000, &payload)).unwrap();
                assert_eq!(udp.udp_payload(), Some(&payload[..]));
                let segment = Segment { src_port: 1, dst_port: 2, seq: 0xdead_beef, ack: 7, flags: 16, window: 99 };
                let tcp = Frame::parse(&VnetHeader::default(), &path.tcp(&segment, &payload)).unwrap();
                assert_eq!(tcp.tcp(), Some((&segment, &payload[..])));
                let echo = Frame::parse(&VnetHeader::default(), &path.echo_request(5, 6, &payload)).unwrap();
                assert_eq!(echo.icmp(), Some((if path.src.is_ipv4() { 8 } else { 128 }, 0)));
            }
        }
    }

    #[test]
    fn one_wrong_octet_is_found() {
        for path in paths() {
            let good = path.udp(1, 2, b"payload");
            for at in ETHER_BYTES..good.len() {
                let mut bad = good.clone();
                bad[at] ^= 0x10;
                let same = Frame::parse(&VnetHeader::default(), &bad);
                // IPv6 has no checksum over traffic class, flow label and hop limit.
                let uncovered =
                    path.src.is_ipv6() && (at < ETHER_BYTES + 4 && at > ETHER_BYTES || at == ETHER_BYTES + 7);
                assert_eq!(same.is_ok(), uncovered, "octet {at}");
            }
        }
    }

    #[test]
    fn a_partial_checksum_completes_to_the_full_one() {
        for path in paths() {
            for full in [path.udp(1, 2, b"odd"), path.tcp(&Segment::default(), b"even")] {
                let mut frame = full.clone();
                let header = partial_checksum(&mut frame).unwrap();
                assert_ne!(frame, full);
                Frame::parse(&header, &frame).unwrap();
                complete_checksum(&header, &mut frame).unwrap();
                assert_eq!(frame, full);
            }
        }
    }

    #[test]
    fn neighbour_discovery_goes_to_the_right_groups() {
        let target: Ipv6Addr = "2001:db8::1:2".parse().unwrap();
        let frame = neighbor_solicitation(A, link_local(A), target);
        let parsed = Frame::parse(&VnetHeader::default(), &frame).unwrap();
        assert_eq!(parsed.dst_mac, [0x33, 0x33, 0xff, 1, 0, 2]);
        assert_eq!(parsed.icmp(), Some((135, 0)));
        assert_eq!(link_local(A).to_string(), "fe80::ff:fe00:1");
        let asked = arp_request(A, Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let Body::Arp { operation, sender, .. } = Frame::parse(&VnetHeader::default(), &asked).unwrap().body else {
            panic!("not ARP");
        };
        assert_eq!((operation, sender), (1, (A, Ipv4Addr::new(10, 0, 0, 1))));
    }
}
