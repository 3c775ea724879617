//! Is the frame well formed? One check for each clause of RFC 791, RFC 1812 §5.2.2, RFC 8200 and RFC 7112.
//!
//! `parse` reads Ethernet, ARP, IPv4, IPv6 and the first transport header of the private head, extends the head as far
//! as headers reach, cuts Ethernet padding, and fills `meta`. It says nothing about who may send what (`guard`) or
//! where a packet goes (`route`). Payload is never looked at, so transport checksums are not verified here; those of
//! neighbour discovery are, in `guard`, for which the whole message is brought into the head.
//!
//! Theory of operation: the first 116 octets hold all headers of plain IPv4 or IPv6 with TCP or UDP. Those are read
//! from one borrowed slice, without a cold branch, and `meta` is written at the end. IPv4 options, fragments, extension
//! headers and other transports are cold and extend the head as they go.

use crate::limits::{HEAD_FIRST, HEAD_MAX, IPV6_EXTENSION_HEADERS_MAX};
use crate::packet::{L3, Layers, Packet};
use crate::payload::Segment;
use crate::stage::{DropReason, Verdict};
use crate::wire::ethernet::{self, Ethernet, ether_type};
use crate::wire::icmpv4::{self, Icmpv4};
use crate::wire::icmpv6::{self, Icmpv6};
use crate::wire::ipv4::{self, Ipv4, OptionError};
use crate::wire::ipv6::{self, Extension, Ipv6, next_header};
use crate::wire::tcp::{self, Tcp};
use crate::wire::udp::{self, Udp};
use crate::wire::{arp, array, be16, checksum, proto};

pub use crate::offload::check_offload;

/// Parses one frame. `Continue`, with `meta` filled in and `meta.offload` checked, or `Drop`.
#[inline(always)]
pub fn parse(packet: &mut Packet, arena: &mut [Segment]) -> Verdict {
    match frame(packet, arena) {
        Ok(()) => Verdict::Continue,
        Err(reason) => Verdict::Drop(reason),
    }
}

#[inline(always)]
fn frame(packet: &mut Packet, arena: &mut [Segment]) -> Result<(), DropReason> {
    // `rx` has copied as much already; another source may have left a shorter head.
    if packet.payload_len() != 0 {
        packet.extend_head(packet.len().min(HEAD_FIRST), arena)?;
    }
    let header = Ethernet::new_checked(packet.head()).ok_or(DropReason::FrameTooShort)?;
    match header.ether_type() {
        ether_type::IPV4 => ipv4(packet, arena)?,
        ether_type::IPV6 => ipv6(packet, arena)?,
        ether_type::ARP => arp(packet, arena)?,
        _ => return Err(DropReason::EtherTypeUnknown),
    }
    check_offload(packet)
}

#[cold]
fn arp(packet: &mut Packet, arena: &mut [Segment]) -> Result<(), DropReason> {
    let message = packet.head().get(L3_START..).and_then(arp::Message::parse);
    message.ok_or(DropReason::ArpInvalid)?;
    let network = NetworkHeader { l3: L3::Arp, proto: 0, l4: 0, end: L3_START + arp::LEN };
    network.write(packet, arena);
    Ok(())
}

#[inline(always)]
fn ipv4(packet: &mut Packet, arena: &mut [Segment]) -> Result<(), DropReason> {
    const MALFORMED: DropReason = DropReason::Ipv4Malformed;
    let head = packet.head();
    let octets = head[L3_START..].first_chunk().ok_or(MALFORMED)?;
    let header = Ipv4::new(octets);
    if octets[0] != VERSION_4_NO_OPTIONS || header.is_fragment() {
        let octets = *octets;
        return ipv4_odd(packet, arena, Ipv4::new(&octets));
    }
    // RFC 1812 §5.2.2 (2): "The IP checksum must be correct."
    if checksum::ipv4_header_sum(octets) != 0xffff {
        return Err(MALFORMED);
    }
    let network = NetworkHeader::v4(header, ipv4::HEADER_LEN, packet.len())?;
    let transport = Transport::read(network.cut(head), network.l4, network.end, network.proto, false)?;
    network.write(packet, arena);
    match transport {
        Some(transport) => transport.write(packet),
        None => other_transport(packet, arena)?,
    }
    Ok(())
}

/// A header with options, or of a fragment, or of another version.
#[cold]
fn ipv4_odd(packet: &mut Packet, arena: &mut [Segment], header: Ipv4<'_>) -> Result<(), DropReason> {
    let header_len = ipv4_options(packet, arena, header)?;
    let network = NetworkHeader::v4(header, header_len, packet.len())?;
    network.write(packet, arena);
    if header.is_fragment() {
        ipv4_fragment(packet, header, network.end - network.l4)?;
    }
    odd_transport(packet, arena, network)
}

/// Checks version, header length, checksum and options. Returns the header's length.
fn ipv4_options(packet: &mut Packet, arena: &mut [Segment], header: Ipv4<'_>) -> Result<usize, DropReason> {
    const MALFORMED: DropReason = DropReason::Ipv4Malformed;
    // RFC 1812 §5.2.2 (3) and (4): "The IP version number must be 4", "The IP header length field must be large enough
    // to hold the minimum length legal IP datagram".
    let len = header.header_len();
    if header.version() != 4 || len < ipv4::HEADER_LEN {
        return Err(MALFORMED);
    }
    need(packet, L3_START + len, arena, MALFORMED)?;
    let octets = packet.head().get(L3_START..L3_START + len).ok_or(MALFORMED)?;
    if checksum::sum(octets) != 0xffff {
        return Err(MALFORMED);
    }
    match ipv4::check_options(&octets[ipv4::HEADER_LEN..]) {
        Ok(()) => Ok(len),
        Err(OptionError::Malformed) => Err(MALFORMED),
        Err(OptionError::SourceRoute) => Err(DropReason::Ipv4Option),
    }
}

fn ipv4_fragment(packet: &mut Packet, header: Ipv4<'_>, len: usize) -> Result<(), DropReason> {
    let offset = header.fragment_offset();
    // RFC 791 §3.2: all fragments but the last are multiples of 8 octets, and no datagram is longer than 65,535.
    if offset + len > usize::from(u16::MAX) || (header.more_fragments() && !len.is_multiple_of(8)) {
        return Err(DropReason::Ipv4Malformed);
    }
    // RFC 3128 §2: a fragment at offset 8 could replace the flags of a TCP header that was looked at.
    if offset == 8 && header.proto() == proto::TCP {
        return Err(DropReason::L4Malformed);
    }
    packet.meta.fragment = true;
    packet.meta.later_fragment = offset > 0;
    Ok(())
}

#[inline(always)]
fn ipv6(packet: &mut Packet, arena: &mut [Segment]) -> Result<(), DropReason> {
    const MALFORMED: DropReason = DropReason::Ipv6Malformed;
    let head = packet.head();
    let octets = head[L3_START..].first_chunk().ok_or(MALFORMED)?;
    let header = Ipv6::new(octets);
    let end = L3_START + ipv6::HEADER_LEN + usize::from(header.payload_len());
    if header.version() != 6 || end > packet.len() {
        return Err(MALFORMED);
    }
    // An IPv4-mapped address on the wire would be an IPv4 address to every table (`AddressKey`).
    if is_mapped(octets, 8) || is_mapped(octets, 24) {
        return Err(DropReason::AddressNotForwardable);
    }
    let network = NetworkHeader { l3: L3::V6, proto: header.next_header(), l4: L3_START + ipv6::HEADER_LEN, end };
    if ipv6::is_extension(network.proto) {
        network.write(packet, arena);
        return ipv6_odd(packet, arena, network);
    }
    let transport = Transport::read(network.cut(head), network.l4, network.end, network.proto, false)?;
    network.write(packet, arena);
    match transport {
        Some(transport) => transport.write(packet),
        None => other_transport(packet, arena)?,
    }
    Ok(())
}

/// A packet with extension headers.
#[cold]
fn ipv6_odd(packet: &mut Packet, arena: &mut [Segment], network: NetworkHeader) -> Result<(), DropReason> {
    let (proto, l4) = ipv6_extensions(packet, arena, network)?;
    let network = NetworkHeader { proto, l4, ..network };
    network.write(packet, arena);
    odd_transport(packet, arena, network)
}

/// Walks the extension headers up to the transport header, or to the payload of a later fragment. Returns what follows
/// and where.
fn ipv6_extensions(
    packet: &mut Packet,
    arena: &mut [Segment],
    network: NetworkHeader,
) -> Result<(u8, usize), DropReason> {
    let NetworkHeader { proto: mut next, l4: mut at, .. } = network;
    let mut count = 0;
    while ipv6::is_extension(next) && !packet.meta.later_fragment {
        if count == IPV6_EXTENSION_HEADERS_MAX {
            return Err(DropReason::Ipv6ExtensionHeaders);
        }
        need(packet, at + 8, arena, DropReason::Ipv6Malformed)?;
        let header = *packet.head()[at..].first_chunk::<8>().ok_or(DropReason::Ipv6Malformed)?;
        let header = Extension::new_checked(next, &header).ok_or(DropReason::Ipv6Malformed)?;
        match next {
            // RFC 8200 §4.1: the hop-by-hop header "is restricted to appear immediately after an IPv6 header only".
            next_header::HOP_BY_HOP if count > 0 => return Err(DropReason::Ipv6ExtensionHeaders),
            // Source routing would carry a packet past what later stages decide about its destination (RFC 5095).
            next_header::ROUTING if header.segments_left() > 0 => return Err(DropReason::Ipv6ExtensionHeaders),
            next_header::FRAGMENT => ipv6_fragment(packet, header, network.end, at)?,
            _ => {}
        }
        at += header.len();
        need(packet, at, arena, DropReason::Ipv6Malformed)?;
        next = header.next_header();
        count += 1;
    }
    Ok((next, at))
}

/// `at` is where the fragment header starts, `end` where the packet ends.
fn ipv6_fragment(packet: &mut Packet, header: Extension<'_>, end: usize, at: usize) -> Result<(), DropReason> {
    // One fragment header a packet: RFC 8200 §4.5 builds fragments from a packet that has none.
    if packet.meta.fragment {
        return Err(DropReason::Ipv6ExtensionHeaders);
    }
    let len = end.checked_sub(at + ipv6::FRAGMENT_LEN).ok_or(DropReason::Ipv6Malformed)?;
    // RFC 8200 §4.5: "If the length of a fragment ... is not a multiple of 8 octets and the M flag of that fragment is
    // 1, then that fragment must be discarded"; and the packet may not exceed 65,535 octets.
    let offset = header.fragment_offset();
    if (header.more_fragments() && !len.is_multiple_of(8)) || offset + len > usize::from(u16::MAX) {
        return Err(DropReason::Ipv6Malformed);
    }
    packet.meta.fragment = true;
    packet.meta.later_fragment = offset > 0;
    Ok(())
}

/// What the network header says, in octets from the first octet of the frame.
#[derive(Clone, Copy)]
struct NetworkHeader {
    l3: L3,
    proto: u8,
    /// Where the transport header starts.
    l4: usize,
    /// Where the packet ends; what follows is Ethernet padding.
    end: usize,
}

impl NetworkHeader {
    /// RFC 1812 §5.2.2 (1) and (5): the link says at least as many octets as the total length, and that covers the
    /// header.
    #[inline]
    fn v4(header: Ipv4<'_>, header_len: usize, frame_len: usize) -> Result<Self, DropReason> {
        let total_len = usize::from(header.total_len());
        let end = L3_START + total_len;
        if total_len < header_len || end > frame_len {
            return Err(DropReason::Ipv4Malformed);
        }
        Ok(Self { l3: L3::V4, proto: header.proto(), l4: L3_START + header_len, end })
    }

    /// The head without padding.
    #[inline]
    fn cut<'a>(&self, head: &'a [u8]) -> &'a [u8] {
        &head[..head.len().min(self.end)]
    }

    /// Writes `meta`, as if there were no transport header, and cuts padding.
    #[inline]
    fn write(&self, packet: &mut Packet, arena: &mut [Segment]) {
        if self.end < packet.len() {
            packet.truncate(self.end, arena);
        }
        let meta = &mut packet.meta;
        meta.l3 = self.l3;
        meta.proto = self.proto;
        meta.l3_len = (self.end - L3_START) as u32;
        meta.layers = Layers { l3: L3_START as u16, l4: self.l4 as u16, l5: self.l4 as u16 };
    }
}

/// What a TCP or UDP header says.
#[derive(Clone, Copy)]
struct Transport {
    l5: usize,
    src_port: u16,
    dst_port: u16,
}

impl Transport {
    /// Reads a TCP or UDP header that starts at `l4` of `head`, in a packet that ends at `end`. `None` when it is
    /// another protocol.
    #[inline(always)]
    fn read(head: &[u8], l4: usize, end: usize, proto: u8, fragment: bool) -> Result<Option<Self>, DropReason> {
        const MALFORMED: DropReason = DropReason::L4Malformed;
        match proto {
            proto::TCP => {
                let header = head.get(l4..).and_then(Tcp::new_checked).ok_or(MALFORMED)?;
                let l5 = l4 + header.header_len();
                if header.header_len() < tcp::HEADER_LEN || l5 > head.len() {
                    return Err(MALFORMED);
                }
                Ok(Some(Self { l5, src_port: header.src_port(), dst_port: header.dst_port() }))
            }
            proto::UDP => {
                let header = head.get(l4..).and_then(Udp::new_checked).ok_or(MALFORMED)?;
                let len = usize::from(header.len());
                // A first fragment carries the length of the whole datagram.
                if len < udp::HEADER_LEN || (l4 + len > end && !fragment) {
                    return Err(MALFORMED);
                }
                let l5 = l4 + udp::HEADER_LEN;
                Ok(Some(Self { l5, src_port: header.src_port(), dst_port: header.dst_port() }))
            }
            _ => Ok(None),
        }
    }

    /// Writes `meta`.
    #[inline]
    fn write(self, packet: &mut Packet) {
        packet.meta.layers.l5 = self.l5 as u16;
        (packet.meta.src_port, packet.meta.dst_port) = (self.src_port, self.dst_port);
    }
}

/// The transport header behind an unusual network header.
fn odd_transport(packet: &mut Packet, arena: &mut [Segment], network: NetworkHeader) -> Result<(), DropReason> {
    if packet.meta.later_fragment {
        return Ok(());
    }
    let (l4, len) = (network.l4, packet.len());
    // There must be room for the longest transport header, so that no later check meets the limit.
    if l4 + TRANSPORT_HEADER_MAX > HEAD_MAX && len > HEAD_MAX {
        return Err(DropReason::HeadersTooLong);
    }
    packet.extend_head(len.min(l4 + TRANSPORT_HEADER_MAX), arena)?;
    let fragment = packet.meta.fragment;
    match Transport::read(packet.head(), l4, network.end, network.proto, fragment)? {
        Some(transport) => transport.write(packet),
        None => other_transport(packet, arena)?,
    }
    Ok(())
}

/// ICMP, ICMPv6 and SCTP. Anything else has no L4 ports and no header that we know.
#[cold]
fn other_transport(packet: &mut Packet, arena: &mut [Segment]) -> Result<(), DropReason> {
    const MALFORMED: DropReason = DropReason::L4Malformed;
    let l4 = usize::from(packet.meta.layers.l4);
    let octets = packet.head().get(l4..).unwrap_or_default();
    let (header_len, ports) = match (packet.meta.l3, packet.meta.proto) {
        (L3::V4, proto::ICMPV4) => {
            let header = Icmpv4::new_checked(octets).ok_or(MALFORMED)?;
            let ident = if icmpv4::has_ident(header.kind()) { header.ident() } else { 0 };
            (icmpv4::HEADER_LEN, (ident, be16(octets, 0)))
        }
        (L3::V6, proto::ICMPV6) => {
            let header = Icmpv6::new_checked(octets).ok_or(MALFORMED)?;
            let ident = if icmpv6::has_ident(header.kind()) { header.ident() } else { 0 };
            let ports = (ident, be16(octets, 0));
            if icmpv6::is_ndp(header.kind()) {
                need(packet, packet.len(), arena, MALFORMED)?;
            }
            (icmpv6::HEADER_LEN, ports)
        }
        (_, proto::SCTP) => {
            let header = octets.first_chunk::<SCTP_HEADER_LEN>().ok_or(MALFORMED)?;
            let ports = (be16(header, 0), be16(header, 2));
            (SCTP_HEADER_LEN, ports)
        }
        _ => return Ok(()),
    };
    (packet.meta.src_port, packet.meta.dst_port) = ports;
    packet.meta.layers.l5 = (l4 + header_len) as u16;
    Ok(())
}

/// Brings the first `len` octets of the frame into the head; `short` when the frame has fewer.
fn need(packet: &mut Packet, len: usize, arena: &mut [Segment], short: DropReason) -> Result<(), DropReason> {
    packet.extend_head(len, arena).map_err(|reason| match reason {
        DropReason::FrameTooShort => short,
        other => other,
    })
}

/// Whether the IPv6 address at `at` is `::ffff:0:0/96`.
#[inline]
fn is_mapped(header: &[u8; ipv6::HEADER_LEN], at: usize) -> bool {
    word(header, at) == 0 && word(header, at + 8) << 32 >> 32 == 0xffff_0000
}

/// Eight octets of an address, in no particular order.
#[inline]
fn word(header: &[u8; ipv6::HEADER_LEN], at: usize) -> u64 {
    u64::from_le_bytes(array(header, at))
}

/// Where the network header starts: there is never a VLAN tag.
const L3_START: usize = ethernet::HEADER_LEN;
const VERSION_4_NO_OPTIONS: u8 = 0x45;
const SCTP_HEADER_LEN: usize = 12;
/// TCP with all its options.
const TRANSPORT_HEADER_MAX: usize = 60;

// The first copy holds all headers of a plain packet.
const _: () = assert!(L3_START + ipv6::HEADER_LEN + TRANSPORT_HEADER_MAX <= HEAD_FIRST);

#[cfg(test)]
mod tests;
