//! TCP headers (RFC 9293 §3.1). Nothing here follows a connection.

use super::{be16, be32};

/// Octets of a header without options.
pub const HEADER_LEN: usize = 20;

/// Where the checksum stands.
pub const CHECKSUM_OFFSET: u16 = 16;

/// Bits of octet 13.
pub mod flags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer counts.
    pub const URG: u8 = 0x20;
}

/// View of a TCP header without its options.
#[derive(Clone, Copy, Debug)]
pub struct Tcp<'a>(&'a [u8; HEADER_LEN]);

impl<'a> Tcp<'a> {
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

    /// Sequence number.
    #[inline]
    pub fn sequence(self) -> u32 {
        be32(self.0, 4)
    }

    /// Acknowledgement number.
    #[inline]
    pub fn acknowledgement(self) -> u32 {
        be32(self.0, 8)
    }

    /// Octets of the header, options included, as it says itself.
    #[inline]
    pub fn header_len(self) -> usize {
        usize::from(self.0[12] >> 4) * 4
    }

    /// See [`flags`].
    #[inline]
    pub fn flags(self) -> u8 {
        self.0[13]
    }

    /// Receive window, not scaled.
    #[inline]
    pub fn window(self) -> u16 {
        be16(self.0, 14)
    }

    /// The checksum.
    #[inline]
    pub fn checksum(self) -> u16 {
        be16(self.0, 16)
    }
}

/// A TCP header without options.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Repr {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// See [`flags`].
    pub flags: u8,
    /// Receive window, unscaled.
    pub window: u16,
}

impl Repr {
    /// Writes the header with `checksum`: that of the pseudo-header alone where it is completed later.
    pub fn emit(&self, header: &mut [u8; HEADER_LEN], checksum: u16) {
        header[..2].copy_from_slice(&self.src_port.to_be_bytes());
        header[2..4].copy_from_slice(&self.dst_port.to_be_bytes());
        header[4..8].copy_from_slice(&self.sequence.to_be_bytes());
        header[8..12].copy_from_slice(&self.acknowledgement.to_be_bytes());
        header[12] = 5 << 4;
        header[13] = self.flags;
        header[14..16].copy_from_slice(&self.window.to_be_bytes());
        header[16..18].copy_from_slice(&checksum.to_be_bytes());
        header[18..].copy_from_slice(&[0, 0]);
    }
}

/// Lowers the MSS option of a SYN to `max`, where it is above, and keeps the checksum right; one that is `partial` covers no
/// options yet. `segment` is the header with its options.
pub fn clamp_mss(segment: &mut [u8], max: u16, partial: bool) {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const MSS: u8 = 2;
    let mut at = HEADER_LEN;
    while let Some(kind) = segment.get(at).copied() {
        let len = match kind {
            END => return,
            NO_OPERATION => 1,
            _ => match segment.get(at + 1) {
                // RFC 9293 §3.1: the length counts both octets before the value.
                Some(len) if *len >= 2 => usize::from(*len),
                _ => return,
            },
        };
        if (kind, len) == (MSS, 4) && segment.len() >= at + 4 {
            let old = be16(segment, at + 2);
            if old > max {
                segment[at + 2..at + 4].copy_from_slice(&max.to_be_bytes());
                if !partial {
                    // At an odd place its octets are halves of two words: a sum over swapped octets is the swapped sum.
                    let word = |value: u16| if at.is_multiple_of(2) { value } else { value.swap_bytes() };
                    let checksum = super::checksum::update(be16(segment, 16), word(old), word(max));
                    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
                }
            }
            return;
        }
        at += len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn construct_and_deconstruct() {
        let repr = Repr {
            src_port: 40_000,
            dst_port: 443,
            sequence: 0x0102_0304,
            acknowledgement: 0x0506_0708,
            flags: flags::SYN | flags::ACK,
            window: 512,
        };
        let mut octets = [0xa5; HEADER_LEN];
        repr.emit(&mut octets, 0xbeef);
        assert_eq!(octets, [0x9c, 0x40, 1, 0xbb, 1, 2, 3, 4, 5, 6, 7, 8, 0x50, 0x12, 2, 0, 0xbe, 0xef, 0, 0]);
        let view = Tcp::new_checked(&octets).unwrap();
        assert_eq!((view.src_port(), view.dst_port(), view.header_len()), (40_000, 443, 20));
        assert_eq!((view.sequence(), view.acknowledgement()), (repr.sequence, repr.acknowledgement));
        assert_eq!((view.flags(), view.checksum()), (0x12, 0xbeef));
        assert!(Tcp::new_checked(&octets[..19]).is_none());
    }
}
