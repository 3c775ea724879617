//! UDP (RFC 768; over IPv6: RFC 8200 §8.1), and the L4 ports of DHCP.

use std::net::Ipv4Addr;

use super::{be16, checksum, proto};

/// Octets of a UDP header.
pub const HEADER_LEN: usize = 8;

/// Where the checksum stands.
pub const CHECKSUM_OFFSET: u16 = 6;

/// Well-known L4 ports.
pub mod l4_port {
    /// DHCPv4 servers listen here, and send from here.
    pub const DHCPV4_SERVER: u16 = 67;
    /// DHCPv4 clients.
    pub const DHCPV4_CLIENT: u16 = 68;
    /// DHCPv6 servers and relays.
    pub const DHCPV6_SERVER: u16 = 547;
}

/// View of a UDP header.
#[derive(Clone, Copy, Debug)]
pub struct Udp<'a>(&'a [u8; HEADER_LEN]);

impl<'a> Udp<'a> {
    /// `None` when cut off. Only the length is checked.
    #[inline]
    pub fn new_checked(octets: &'a [u8]) -> Option<Self> {
        octets.first_chunk().map(Self)
    }

    /// Source port.
    #[inline]
    pub fn src_port(self) -> u16 {
        be16(self.0, 0)
    }

    /// Destination port.
    #[inline]
    pub fn dst_port(self) -> u16 {
        be16(self.0, 2)
    }

    /// Octets of header and data, as it says itself.
    #[inline]
    #[allow(clippy::len_without_is_empty, reason = "a field of the header")]
    pub fn len(self) -> u16 {
        be16(self.0, 4)
    }

    /// The checksum; zero means none over IPv4.
    #[inline]
    pub fn checksum(self) -> u16 {
        be16(self.0, 6)
    }
}

/// A UDP header as a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Repr {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
}

impl Repr {
    /// Writes the header of a datagram whose data already stands behind it, and the checksum for IPv4. `datagram` is
    /// header and data.
    pub fn emit_v4(&self, datagram: &mut [u8], src: Ipv4Addr, dst: Ipv4Addr) -> Option<()> {
        let len = self.emit_header(datagram)?;
        fill_checksum(datagram, checksum::pseudo_v4(src, dst, proto::UDP, u32::from(len)));
        Some(())
    }

    fn emit_header(&self, datagram: &mut [u8]) -> Option<u16> {
        let len = u16::try_from(datagram.len()).ok()?;
        let header: &mut [u8; HEADER_LEN] = datagram.first_chunk_mut()?;
        header[..2].copy_from_slice(&self.src_port.to_be_bytes());
        header[2..4].copy_from_slice(&self.dst_port.to_be_bytes());
        header[4..6].copy_from_slice(&len.to_be_bytes());
        header[6..].copy_from_slice(&[0, 0]);
        Some(len)
    }
}

/// Whether a datagram's checksum is right, given the sum of its pseudo-header. Over IPv4 a checksum of zero means none;
/// over IPv6 it is an error (RFC 8200 §8.1), so callers look for it first.
pub fn verify(datagram: &[u8], pseudo: u16) -> bool {
    checksum::combine(pseudo, checksum::sum(datagram)) == 0xffff
}

fn fill_checksum(datagram: &mut [u8], pseudo: u16) {
    let sum = !checksum::combine(pseudo, checksum::sum(datagram));
    // RFC 768: a computed zero is sent as all ones, because zero means "no checksum".
    let sum = if sum == 0 { 0xffff } else { sum };
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    const SRC: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const DST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
    const REPR: Repr = Repr { src_port: 68, dst_port: 67 };

    #[test]
    fn construct_and_deconstruct() {
        let mut datagram = [0xa5; 11];
        datagram[8..].copy_from_slice(&[1, 2, 3]);
        REPR.emit_v4(&mut datagram, SRC, DST).unwrap();
        assert_eq!(datagram[..6], [0, 68, 0, 67, 0, 11]);
        let view = Udp::new_checked(&datagram).unwrap();
        assert_eq!((view.src_port(), view.dst_port(), view.len()), (68, 67, 11));
        assert!(verify(&datagram, checksum::pseudo_v4(SRC, DST, proto::UDP, 11)));
        assert!(Udp::new_checked(&datagram[..7]).is_none());
    }

    #[test]
    fn zero_is_sent_as_all_ones() {
        let mut datagram = [0; 10];
        REPR.emit_v4(&mut datagram, SRC, DST).unwrap();
        // The checksum itself as data makes the sum all ones.
        let sum = [datagram[6], datagram[7]];
        datagram[8..].copy_from_slice(&sum);
        REPR.emit_v4(&mut datagram, SRC, DST).unwrap();
        assert_eq!(datagram[6..8], [0xff, 0xff]);
    }

    #[test]
    fn too_short_and_too_long_are_refused() {
        assert!(REPR.emit_v4(&mut [0; 7], SRC, DST).is_none());
        assert!(REPR.emit_v4(&mut vec![0; 65_536], SRC, DST).is_none());
    }
}
