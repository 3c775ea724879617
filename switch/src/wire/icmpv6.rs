//! ICMPv6 (RFC 4443). Neighbour discovery messages are in `ndp`.

use std::net::Ipv6Addr;

use super::{be16, checksum, proto};

/// Octets of the fixed part of every message known here.
pub const HEADER_LEN: usize = 8;

/// Message types.
pub mod kind {
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 1;
    /// Packet too big; carries the MTU.
    pub const PACKET_TOO_BIG: u8 = 2;
    /// Hop limit or reassembly time exceeded.
    pub const TIME_EXCEEDED: u8 = 3;
    /// Echo request, "ping".
    pub const ECHO_REQUEST: u8 = 128;
    /// Answer to an echo request.
    pub const ECHO_REPLY: u8 = 129;
    /// Multicast listener query (RFC 2710, RFC 3810).
    pub const MLD_QUERY: u8 = 130;
    /// Multicast listener report, version 1.
    pub const MLD_REPORT: u8 = 131;
    /// Multicast listener done, version 1.
    pub const MLD_DONE: u8 = 132;
    /// Router solicitation (RFC 4861 §4.1).
    pub const ROUTER_SOLICIT: u8 = 133;
    /// Router advertisement.
    pub const ROUTER_ADVERT: u8 = 134;
    /// Neighbour solicitation.
    pub const NEIGHBOR_SOLICIT: u8 = 135;
    /// Neighbour advertisement.
    pub const NEIGHBOR_ADVERT: u8 = 136;
    /// Redirect.
    pub const REDIRECT: u8 = 137;
    /// Multicast listener report, version 2.
    pub const MLD2_REPORT: u8 = 143;
}

/// Codes of [`kind::UNREACHABLE`].
pub mod unreachable {
    /// No route to the destination.
    pub const NO_ROUTE: u8 = 0;
    /// Communication with destination administratively prohibited.
    pub const PROHIBITED: u8 = 1;
    /// The address does not answer.
    pub const ADDRESS: u8 = 3;
    /// Nothing listens on the L4 port.
    pub const L4_PORT: u8 = 4;
}

/// View of the fixed part.
#[derive(Clone, Copy, Debug)]
pub struct Icmpv6<'a>(&'a [u8; HEADER_LEN]);

impl<'a> Icmpv6<'a> {
    /// `None` when cut off. Only the length is checked.
    #[inline]
    pub fn new_checked(octets: &'a [u8]) -> Option<Self> {
        octets.first_chunk().map(Self)
    }

    /// Message type, see [`kind`].
    #[inline]
    pub fn kind(self) -> u8 {
        self.0[0]
    }

    /// Code.
    #[inline]
    pub fn code(self) -> u8 {
        self.0[1]
    }

    /// Identifier of an echo message.
    #[inline]
    pub fn ident(self) -> u16 {
        be16(self.0, 4)
    }

    /// Sequence number of an echo message.
    #[inline]
    pub fn sequence(self) -> u16 {
        be16(self.0, 6)
    }
}

/// Whether messages of this type forbid an error about them: errors (RFC 4443 §2.1) and redirects (§2.4 e.2).
#[inline]
pub fn is_error(kind: u8) -> bool {
    kind < 128 || kind == kind::REDIRECT
}

/// Whether messages of this type carry an identifier.
#[inline]
pub fn has_ident(kind: u8) -> bool {
    matches!(kind, kind::ECHO_REQUEST | kind::ECHO_REPLY)
}

/// Neighbour discovery: solicitations, advertisements and redirects (RFC 4861 §4).
#[inline]
pub fn is_ndp(kind: u8) -> bool {
    matches!(kind, kind::ROUTER_SOLICIT..=kind::REDIRECT)
}

/// Multicast listener discovery: queries, reports and done (RFC 2710, RFC 3810).
#[inline]
pub fn is_mld(kind: u8) -> bool {
    kind == kind::MLD_QUERY || is_mld_report(kind)
}

/// What a multicast listener sends (RFC 2710, RFC 3810).
#[inline]
pub fn is_mld_report(kind: u8) -> bool {
    matches!(kind, kind::MLD_REPORT | kind::MLD_DONE | kind::MLD2_REPORT)
}

/// Writes the fixed part of a message whose data already stands behind it, and the checksum over all of `message`.
/// `rest` is the second word of the header. `None` when `message` is shorter than a header.
pub fn emit(message: &mut [u8], src: Ipv6Addr, dst: Ipv6Addr, kind: u8, code: u8, rest: u32) -> Option<()> {
    let header: &mut [u8; HEADER_LEN] = message.first_chunk_mut()?;
    header[..4].copy_from_slice(&[kind, code, 0, 0]);
    header[4..].copy_from_slice(&rest.to_be_bytes());
    fill_checksum(message, src, dst)
}

/// Computes the checksum of a message and writes it. `None` when `message` is too short to have one.
pub fn fill_checksum(message: &mut [u8], src: Ipv6Addr, dst: Ipv6Addr) -> Option<()> {
    message.get_mut(2..4)?.copy_from_slice(&[0, 0]);
    let sum = !sum_with_pseudo(message, src, dst);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    Some(())
}

/// Whether the checksum of a whole message is right.
pub fn verify(message: &[u8], src: Ipv6Addr, dst: Ipv6Addr) -> bool {
    sum_with_pseudo(message, src, dst) == 0xffff
}

fn sum_with_pseudo(message: &[u8], src: Ipv6Addr, dst: Ipv6Addr) -> u16 {
    let pseudo = checksum::pseudo_v6(src, dst, proto::ICMPV6, message.len() as u32);
    checksum::combine(pseudo, checksum::sum(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SRC: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    const DST: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);

    #[test]
    fn construct_and_deconstruct() {
        let mut message = [0xa5; 11];
        emit(&mut message, SRC, DST, kind::ECHO_REQUEST, 0, 0x1234_0001).unwrap();
        assert!(verify(&message, SRC, DST) && verify(&message, DST, SRC));
        assert!(!verify(&message, SRC, SRC));
        let view = Icmpv6::new_checked(&message).unwrap();
        assert_eq!((view.kind(), view.code(), view.ident(), view.sequence()), (128, 0, 0x1234, 1));
        assert!(emit(&mut [0; 7], SRC, DST, 0, 0, 0).is_none());
    }

    #[test]
    fn classes() {
        assert!(is_error(1) && is_error(127) && is_error(137) && !is_error(128));
        assert!(!is_ndp(132) && is_ndp(133) && is_ndp(137) && !is_ndp(138));
        assert!(is_mld_report(143) && !is_mld_report(130));
        assert!([130, 131, 132, 143].into_iter().all(is_mld) && !is_mld(129) && !is_mld(133));
    }
}
