//! Whole frames of ours: Ethernet, IP and UDP or ICMPv6 headers around a message that the caller writes, with lengths
//! and checksums filled in afterwards. For replies and announcements, not for forwarding, which edits in place.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};

use super::checksum::{self, Sum};
use super::writer::{Full, Writer};
use crate::MacAddr;
use crate::limits::{HEAD_CAPACITY, HEADROOM};
use crate::packet::{Offload, Packet};

/// Octets of the longest frame that fits the private slot of a packet.
pub const FRAME_LEN_MAX: usize = HEAD_CAPACITY - HEADROOM;

/// Replaces `packet` by the frame that `build` writes: no payload, no offload.
///
/// # Errors
/// When it does not fit; then the packet is to be dropped.
pub fn replace(packet: &mut Packet, build: impl FnOnce(&mut [u8]) -> Result<usize, Full>) -> Result<(), Full> {
    packet.set_head_only(FRAME_LEN_MAX);
    let len = build(packet.head_mut())?;
    packet.set_head_only(len);
    packet.meta.offload = Offload::default();
    Ok(())
}

/// A UDP datagram over IPv4 from the router to `mac`. Returns the length of the frame.
///
/// # Errors
/// When `fill` runs out of room.
pub fn udp4(
    frame: &mut [u8],
    mac: MacAddr,
    from: SocketAddrV4,
    to: SocketAddrV4,
    fill: impl FnOnce(&mut Writer<'_>) -> Result<(), Full>,
) -> Result<usize, Full> {
    let mut writer = Writer::new(frame);
    ethernet(&mut writer, mac, ETHERTYPE_IPV4)?;
    ipv4(&mut writer, *from.ip(), *to.ip(), PROTO_UDP)?;
    let len = udp(&mut writer, from.port(), to.port(), fill)?;
    writer.patch_u16(ETHERNET + 2, (IPV4 + len) as u16);
    let header = checksum::sum(&writer.written()[ETHERNET..ETHERNET + IPV4]);
    writer.patch_u16(ETHERNET + 10, !header);
    let pseudo = checksum::pseudo_v4(*from.ip(), *to.ip(), PROTO_UDP, len as u32);
    finish_transport(&mut writer, ETHERNET + IPV4, 6, pseudo);
    Ok(writer.len())
}

/// A UDP datagram over IPv6 from the router to `mac`. Returns the length of the frame.
///
/// # Errors
/// When `fill` runs out of room.
pub fn udp6(
    frame: &mut [u8],
    mac: MacAddr,
    from: SocketAddrV6,
    to: SocketAddrV6,
    fill: impl FnOnce(&mut Writer<'_>) -> Result<(), Full>,
) -> Result<usize, Full> {
    let mut writer = Writer::new(frame);
    ethernet(&mut writer, mac, ETHERTYPE_IPV6)?;
    ipv6(&mut writer, *from.ip(), *to.ip(), PROTO_UDP, TTL)?;
    let len = udp(&mut writer, from.port(), to.port(), fill)?;
    finish_ipv6(&mut writer, *from.ip(), *to.ip(), PROTO_UDP, 6);
    debug_assert_eq!(writer.len(), ETHERNET + IPV6 + len);
    Ok(writer.len())
}

/// An ICMPv6 message with hop limit 255 from the router to `mac`; `fill` writes type, code, two zero octets and the
/// rest. Returns the length of the frame.
///
/// # Errors
/// When `fill` runs out of room.
pub fn icmp6(
    frame: &mut [u8],
    mac: MacAddr,
    from: Ipv6Addr,
    to: Ipv6Addr,
    fill: impl FnOnce(&mut Writer<'_>) -> Result<(), Full>,
) -> Result<usize, Full> {
    let mut writer = Writer::new(frame);
    ethernet(&mut writer, mac, ETHERTYPE_IPV6)?;
    ipv6(&mut writer, from, to, PROTO_ICMPV6, 255)?;
    writer.nested(fill)?;
    finish_ipv6(&mut writer, from, to, PROTO_ICMPV6, 2);
    Ok(writer.len())
}

/// Whether the checksum of a transport message is right; `addresses` is source and destination as in the IP header.
pub fn checksum_valid(proto: u8, addresses: &[u8], message: &[u8]) -> bool {
    let mut total = Sum::new(checksum::sum(addresses));
    total.add(&(u32::from(proto) + message.len() as u32).to_be_bytes());
    total.add(message);
    total.folded() == 0xffff
}

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const PROTO_UDP: u8 = 17;
const PROTO_ICMPV6: u8 = 58;
/// Hop count of datagrams of ours (RFC 1700, "IP time to live").
const TTL: u8 = 64;

fn ethernet(writer: &mut Writer<'_>, to: MacAddr, ethertype: u16) -> Result<(), Full> {
    writer.bytes(&to.0)?;
    writer.bytes(&MacAddr::ROUTER.0)?;
    writer.u16(ethertype)
}

/// Length and checksum stay zero; "don't fragment", so that the identification may be zero (RFC 6864 §4.1).
fn ipv4(writer: &mut Writer<'_>, from: Ipv4Addr, to: Ipv4Addr, proto: u8) -> Result<(), Full> {
    writer.bytes(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, TTL, proto, 0, 0])?;
    writer.bytes(&from.octets())?;
    writer.bytes(&to.octets())
}

/// The payload length stays zero.
fn ipv6(writer: &mut Writer<'_>, from: Ipv6Addr, to: Ipv6Addr, proto: u8, hop_limit: u8) -> Result<(), Full> {
    writer.bytes(&[0x60, 0, 0, 0, 0, 0, proto, hop_limit])?;
    writer.bytes(&from.octets())?;
    writer.bytes(&to.octets())
}

/// Returns the length of header and data.
fn udp(
    writer: &mut Writer<'_>,
    src_port: u16,
    dst_port: u16,
    fill: impl FnOnce(&mut Writer<'_>) -> Result<(), Full>,
) -> Result<usize, Full> {
    let start = writer.len();
    writer.u16(src_port)?;
    writer.u16(dst_port)?;
    writer.u32(0)?;
    writer.nested(fill)?;
    let len = writer.len() - start;
    writer.patch_u16(start + 4, len as u16);
    Ok(len)
}

fn finish_ipv6(writer: &mut Writer<'_>, from: Ipv6Addr, to: Ipv6Addr, proto: u8, checksum_at: usize) {
    let len = writer.len() - ETHERNET - IPV6;
    writer.patch_u16(ETHERNET + 4, len as u16);
    finish_transport(writer, ETHERNET + IPV6, checksum_at, checksum::pseudo_v6(from, to, proto, len as u32));
}

/// Fills in the transport checksum; `pseudo` is the sum of the pseudo-header.
fn finish_transport(writer: &mut Writer<'_>, start: usize, checksum_at: usize, pseudo: u16) {
    // RFC 768: "If the computed checksum is zero, it is transmitted as all ones". The same value to ICMPv6.
    let checksum = match !checksum::combine(pseudo, checksum::sum(&writer.written()[start..])) {
        0 => 0xffff,
        checksum => checksum,
    };
    writer.patch_u16(start + checksum_at, checksum);
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: MacAddr = MacAddr([2, 0, 0, 0, 0, 9]);

    fn verify(frame: &[u8], addresses: std::ops::Range<usize>, start: usize, proto: u8) {
        assert!(checksum_valid(proto, &frame[addresses], &frame[start..]));
    }

    #[test]
    fn udp_over_ipv4_has_lengths_and_checksums() {
        let mut frame = [0xa5; 64];
        let (from, to) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 9));
        let fill = |writer: &mut Writer<'_>| writer.bytes(b"odd");
        let len = udp4(&mut frame, GUEST, SocketAddrV4::new(from, 67), SocketAddrV4::new(to, 68), fill).unwrap();
        let frame = &frame[..len];
        assert_eq!((len, &frame[..6], &frame[6..12]), (ETHERNET + IPV4 + 8 + 3, &GUEST.0[..], &MacAddr::ROUTER.0[..]));
        assert_eq!((&frame[16..18], &frame[34..40]), (&[0, 31][..], &[0, 67, 0, 68, 0, 11][..]));
        assert_eq!(checksum::sum(&frame[14..34]), 0xffff);
        verify(frame, 26..34, 34, 17);
        assert_eq!(&frame[42..], b"odd");
    }

    #[test]
    fn ipv6_messages_have_lengths_and_checksums() {
        let (from, to) = ("fe80::1".parse().unwrap(), "2001:db8::9".parse().unwrap());
        let mut buffer = [0xa5; 80];
        let sockets = (SocketAddrV6::new(from, 547, 0, 0), SocketAddrV6::new(to, 546, 0, 0));
        let len = udp6(&mut buffer, GUEST, sockets.0, sockets.1, |writer| writer.u32(7)).unwrap();
        assert_eq!((len, &buffer[18..22]), (66, &[0, 12, 17, 64][..]));
        verify(&buffer[..len], 22..54, 54, 17);
        let len = icmp6(&mut buffer, GUEST, from, to, |writer| writer.bytes(&[136, 0, 0, 0, 1])).unwrap();
        assert_eq!((len, &buffer[18..22]), (59, &[0, 5, 58, 255][..]));
        verify(&buffer[..len], 22..54, 54, 58);
        assert_eq!(icmp6(&mut buffer[..56], GUEST, from, to, |writer| writer.u32(0)), Err(Full));
    }
}
