//! ICMP for IPv4 (RFC 792; which errors a router sends and when: RFC 1812 §4.3).

use super::{be16, checksum};

/// Octets of the fixed part of every message.
pub const HEADER_LEN: usize = 8;

/// Message types.
pub mod kind {
    /// Answer to an echo request.
    pub const ECHO_REPLY: u8 = 0;
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 3;
    /// Source quench (deprecated by RFC 6633).
    pub const SOURCE_QUENCH: u8 = 4;
    /// Redirect.
    pub const REDIRECT: u8 = 5;
    /// Echo request, "ping".
    pub const ECHO_REQUEST: u8 = 8;
    /// TTL or reassembly time exceeded.
    pub const TIME_EXCEEDED: u8 = 11;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 12;
    /// Timestamp request.
    pub const TIMESTAMP: u8 = 13;
    /// Timestamp reply.
    pub const TIMESTAMP_REPLY: u8 = 14;
}

/// Codes of [`kind::UNREACHABLE`].
pub mod unreachable {
    /// No route to the destination network.
    pub const NETWORK: u8 = 0;
    /// The host on a connected network does not answer.
    pub const HOST: u8 = 1;
    /// Nothing listens on the L4 port.
    pub const L4_PORT: u8 = 3;
    /// Fragmentation needed and "don't fragment" set; carries the MTU (RFC 1191).
    pub const FRAGMENTATION_NEEDED: u8 = 4;
    /// Communication administratively prohibited (RFC 1812 §5.2.7.1).
    pub const PROHIBITED: u8 = 13;
}

/// View of the fixed part.
#[derive(Clone, Copy, Debug)]
pub struct Icmpv4<'a>(&'a [u8; HEADER_LEN]);

impl<'a> Icmpv4<'a> {
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

    /// Identifier of an echo or timestamp message.
    #[inline]
    pub fn ident(self) -> u16 {
        be16(self.0, 4)
    }

    /// Sequence number of an echo or timestamp message.
    #[inline]
    pub fn sequence(self) -> u16 {
        be16(self.0, 6)
    }
}

/// Whether messages of this type are errors, about which no error may be sent (RFC 1122 §3.2.2).
#[inline]
pub fn is_error(kind: u8) -> bool {
    matches!(
        kind,
        kind::UNREACHABLE | kind::SOURCE_QUENCH | kind::REDIRECT | kind::TIME_EXCEEDED | kind::PARAMETER_PROBLEM
    )
}

/// Whether messages of this type carry an identifier.
#[inline]
pub fn has_ident(kind: u8) -> bool {
    matches!(kind, kind::ECHO_REPLY | kind::ECHO_REQUEST | kind::TIMESTAMP | kind::TIMESTAMP_REPLY)
}

/// Writes the fixed part of a message whose data already stands behind it, and the checksum over all of `message`.
/// `rest` is the second word of the header. `None` when `message` is shorter than a header.
pub fn emit(message: &mut [u8], kind: u8, code: u8, rest: u32) -> Option<()> {
    let header: &mut [u8; HEADER_LEN] = message.first_chunk_mut()?;
    header[..4].copy_from_slice(&[kind, code, 0, 0]);
    header[4..].copy_from_slice(&rest.to_be_bytes());
    let sum = !checksum::sum(message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn construct_and_deconstruct() {
        let mut message = [0xa5; 11];
        message[8..].copy_from_slice(&[1, 2, 3]);
        emit(&mut message, kind::ECHO_REQUEST, 0, 0x1234_0001).unwrap();
        assert_eq!(checksum::sum(&message), 0xffff);
        let view = Icmpv4::new_checked(&message).unwrap();
        assert_eq!((view.kind(), view.code(), view.ident(), view.sequence()), (8, 0, 0x1234, 1));
        assert!(emit(&mut [0; 7], 0, 0, 0).is_none());
    }
}
