//! Ethernet II frames (RFC 894, RFC 2464) and the group addresses that IP multicast maps to. No VLAN tags: a routed
//! network has none (SEMANTICS AR3).

use std::net::Ipv6Addr;

use super::{array, be16};
use crate::MacAddr;

/// Octets of an Ethernet header.
pub const HEADER_LEN: usize = 14;

/// EtherTypes (IANA "IEEE 802 Numbers").
pub mod ether_type {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// An IEEE 802.1Q tag follows.
    pub const VLAN: u16 = 0x8100;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
}

/// View of an Ethernet header.
#[derive(Clone, Copy, Debug)]
pub struct Ethernet<'a>(&'a [u8; HEADER_LEN]);

impl<'a> Ethernet<'a> {
    /// `None` when the frame is shorter than a header.
    #[inline]
    pub fn new_checked(frame: &'a [u8]) -> Option<Self> {
        frame.first_chunk().map(Self)
    }

    /// Destination address.
    #[inline]
    pub fn dst(self) -> MacAddr {
        MacAddr(array(self.0, 0))
    }

    /// Source address.
    #[inline]
    pub fn src(self) -> MacAddr {
        MacAddr(array(self.0, 6))
    }

    /// EtherType, or a length below 1536 in an IEEE 802.3 frame.
    #[inline]
    pub fn ether_type(self) -> u16 {
        be16(self.0, 12)
    }
}

/// An Ethernet header as a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Repr {
    /// Destination address.
    pub dst: MacAddr,
    /// Source address.
    pub src: MacAddr,
    /// One of [`ether_type`].
    pub ether_type: u16,
}

impl Repr {
    /// Reads a header.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let view = Ethernet::new_checked(frame)?;
        Some(Self { dst: view.dst(), src: view.src(), ether_type: view.ether_type() })
    }

    /// Writes the header.
    #[inline]
    pub fn emit(&self, header: &mut [u8; HEADER_LEN]) {
        set_addresses(header, self.dst, self.src);
        header[12..].copy_from_slice(&self.ether_type.to_be_bytes());
    }
}

/// Replaces both addresses.
#[inline]
pub fn set_addresses(header: &mut [u8; HEADER_LEN], dst: MacAddr, src: MacAddr) {
    header[..6].copy_from_slice(&dst.0);
    header[6..12].copy_from_slice(&src.0);
}

/// The same in the first octets of a frame, as two words: who copies the frame by words right afterwards gets them straight out of
/// the processor's store buffer, and need not wait until everything stored before has reached the cache.
#[inline]
pub fn set_addresses_by_words(frame: &mut [u8; 16], dst: MacAddr, src: MacAddr) {
    let number = |MacAddr([a, b, c, d, e, f]): MacAddr| u64::from_le_bytes([a, b, c, d, e, f, 0, 0]);
    let (dst, src) = (number(dst), number(src));
    let rest = u64::from_le_bytes(array(frame, 8)) >> 32 << 32;
    frame[..8].copy_from_slice(&(dst | src << 48).to_le_bytes());
    frame[8..].copy_from_slice(&(src >> 16 | rest).to_le_bytes());
}

/// The group address of an IPv6 multicast address (RFC 2464 §7).
pub fn multicast_v6(group: Ipv6Addr) -> MacAddr {
    let [.., a, b, c, d] = group.octets();
    MacAddr([0x33, 0x33, a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPR: Repr =
        Repr { dst: MacAddr([2, 0, 0, 0, 0, 1]), src: MacAddr([2, 0, 0, 0, 0, 2]), ether_type: ether_type::IPV6 };

    #[test]
    fn emit_then_parse() {
        let mut frame = [0xa5; 20];
        REPR.emit(frame.first_chunk_mut().unwrap());
        assert_eq!(frame, [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5]);
        assert_eq!(Repr::parse(&frame), Some(REPR));
        assert_eq!(Repr::parse(&frame[..13]), None);
    }

    #[test]
    fn solicited_node_maps_to_its_group() {
        let group = "ff02::1:ff12:3456".parse().unwrap();
        assert_eq!(multicast_v6(group), MacAddr([0x33, 0x33, 0xff, 0x12, 0x34, 0x56]));
    }
}
