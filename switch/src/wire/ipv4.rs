//! IPv4 headers (RFC 791; what a router checks: RFC 1812 §5.2.2; options: RFC 7126).

use std::net::Ipv4Addr;

use super::{array, be16, checksum};

/// Octets of a header without options.
pub const HEADER_LEN: usize = 20;

/// View of an IPv4 header without its options.
#[derive(Clone, Copy, Debug)]
pub struct Ipv4<'a>(&'a [u8; HEADER_LEN]);

impl<'a> Ipv4<'a> {
    /// `None` when cut off. Only the length is checked.
    #[inline]
    pub fn new_checked(octets: &'a [u8]) -> Option<Self> {
        octets.first_chunk().map(Self)
    }

    /// A view of octets known to be long enough.
    #[inline]
    pub fn new(octets: &'a [u8; HEADER_LEN]) -> Self {
        Self(octets)
    }

    /// The octets themselves.
    #[inline]
    pub fn octets(self) -> &'a [u8; HEADER_LEN] {
        self.0
    }

    /// 4 in a good header.
    #[inline]
    pub fn version(self) -> u8 {
        self.0[0] >> 4
    }

    /// Octets of the header, options included, as it says itself.
    #[inline]
    pub fn header_len(self) -> usize {
        usize::from(self.0[0] & 0x0f) * 4
    }

    /// Octets of the packet, header included.
    #[inline]
    pub fn total_len(self) -> u16 {
        be16(self.0, 2)
    }

    /// Identification.
    #[inline]
    pub fn ident(self) -> u16 {
        be16(self.0, 4)
    }

    /// "More fragments".
    #[inline]
    pub fn more_fragments(self) -> bool {
        self.0[6] & 0x20 != 0
    }

    /// Where this fragment begins in its datagram, in octets.
    #[inline]
    pub fn fragment_offset(self) -> usize {
        usize::from(be16(self.0, 6) & 0x1fff) * 8
    }

    /// Any fragment: more follow, or some came before.
    #[inline]
    pub fn is_fragment(self) -> bool {
        be16(self.0, 6) & 0x3fff != 0
    }

    /// Time to live.
    #[inline]
    pub fn ttl(self) -> u8 {
        self.0[8]
    }

    /// Transport protocol.
    #[inline]
    pub fn proto(self) -> u8 {
        self.0[9]
    }

    /// Source address.
    #[inline]
    pub fn src(self) -> Ipv4Addr {
        Ipv4Addr::from(array::<4>(self.0, 12))
    }

    /// Destination address.
    #[inline]
    pub fn dst(self) -> Ipv4Addr {
        Ipv4Addr::from(array::<4>(self.0, 16))
    }
}

/// An IPv4 header without options, of a packet that is no fragment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Repr {
    /// Source address.
    pub src: Ipv4Addr,
    /// Destination address.
    pub dst: Ipv4Addr,
    /// Transport protocol.
    pub proto: u8,
    /// Time to live.
    pub ttl: u8,
    /// Type of service: DSCP and ECN.
    pub tos: u8,
    /// Octets behind the header.
    pub payload_len: u16,
}

impl Repr {
    /// Writes the header and its checksum. "Don't fragment" is set, so that the identification may be zero
    /// (RFC 6864 §4.1).
    pub fn emit(&self, header: &mut [u8; HEADER_LEN]) {
        header[0] = 0x45;
        header[1] = self.tos;
        header[2..4].copy_from_slice(&(self.payload_len.saturating_add(HEADER_LEN as u16)).to_be_bytes());
        header[4..6].copy_from_slice(&[0, 0]);
        header[6..8].copy_from_slice(&[0x40, 0]);
        header[8] = self.ttl;
        header[9] = self.proto;
        header[12..16].copy_from_slice(&self.src.octets());
        header[16..].copy_from_slice(&self.dst.octets());
        fill_checksum(header);
    }
}

/// Computes the checksum of a header without options, and writes it.
pub fn fill_checksum(header: &mut [u8; HEADER_LEN]) {
    header[10..12].copy_from_slice(&[0, 0]);
    let sum = checksum::ipv4_header_sum(header);
    header[10..12].copy_from_slice(&(!sum).to_be_bytes());
}

/// Takes one off the TTL and updates the checksum (RFC 1624). The TTL must be above zero. By words, as
/// [`super::ethernet::set_addresses_by_words`]: the two that lie at multiples of eight octets in a frame.
#[inline]
pub fn decrement_ttl(header: &mut [u8; HEADER_LEN]) {
    debug_assert!(header[8] > 0);
    let with_ttl = u64::from_le_bytes(array(header, 2)) - (1 << 48);
    let rest = u64::from_le_bytes(array(header, 10));
    // TTL is the upper octet of its word, so the checksum grows by 0x0100, with end-around carry. 0xffff is written
    // as zero, as equation 3 of RFC 1624 does.
    let sum = u32::from((rest as u16).swap_bytes()) + 0x0100;
    let checksum = (sum + u32::from(sum >= 0xffff)) as u16;
    let with_checksum = rest >> 16 << 16 | u64::from(checksum.swap_bytes());
    header[2..10].copy_from_slice(&with_ttl.to_le_bytes());
    header[10..18].copy_from_slice(&with_checksum.to_le_bytes());
}

/// What is wrong with IPv4 options.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OptionError {
    /// An option is cut off or shorter than its own header.
    Malformed,
    /// Loose or strict source routing (RFC 7126 §4.3, §4.4: drop by default).
    SourceRoute,
}

/// Walks the options of a header (the octets between octet 20 and the header's end).
///
/// # Errors
/// The first thing that is wrong.
pub fn check_options(mut options: &[u8]) -> Result<(), OptionError> {
    while let [kind, rest @ ..] = options {
        match *kind {
            OPTION_END => return Ok(()),
            OPTION_NO_OPERATION => options = rest,
            OPTION_LOOSE_SOURCE_ROUTE | OPTION_STRICT_SOURCE_ROUTE => return Err(OptionError::SourceRoute),
            _ => {
                let len = usize::from(*rest.first().ok_or(OptionError::Malformed)?);
                if len < 2 {
                    return Err(OptionError::Malformed);
                }
                options = options.get(len..).ok_or(OptionError::Malformed)?;
            }
        }
    }
    Ok(())
}

const OPTION_END: u8 = 0;
const OPTION_NO_OPERATION: u8 = 1;
const OPTION_LOOSE_SOURCE_ROUTE: u8 = 131;
const OPTION_STRICT_SOURCE_ROUTE: u8 = 137;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REPR: Repr = Repr {
        src: Ipv4Addr::new(192, 0, 2, 1),
        dst: Ipv4Addr::new(192, 0, 2, 2),
        proto: super::super::proto::UDP,
        ttl: 64,
        tos: 0,
        payload_len: 8,
    };

    #[rustfmt::skip]
    const OCTETS: [u8; HEADER_LEN] = [
        0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, 17, 0xb6, 0xcd, 192, 0, 2, 1, 192, 0, 2, 2,
    ];

    #[test]
    fn construct() {
        let mut octets = [0xa5; HEADER_LEN];
        REPR.emit(&mut octets);
        assert_eq!(octets, OCTETS);
        assert_eq!(checksum::ipv4_header_sum(&octets), 0xffff);
    }

    #[test]
    fn deconstruct() {
        let view = Ipv4::new_checked(&OCTETS).unwrap();
        assert_eq!((view.version(), view.header_len(), view.total_len(), view.ident()), (4, 20, 28, 0));
        assert!(!view.more_fragments() && !view.is_fragment());
        assert_eq!((view.fragment_offset(), view.ttl(), view.proto()), (0, 64, 17));
        assert_eq!((view.src(), view.dst()), (REPR.src, REPR.dst));
        assert!(Ipv4::new_checked(&OCTETS[..19]).is_none());
    }

    #[test]
    fn fragment_fields() {
        let mut octets = OCTETS;
        octets[6..8].copy_from_slice(&[0x20, 0x02]);
        let view = Ipv4::new(&octets);
        assert!(view.more_fragments() && view.is_fragment());
        assert_eq!(view.fragment_offset(), 16);
    }

    #[test]
    fn options_by_name() {
        assert_eq!(check_options(&[]), Ok(()));
        assert_eq!(check_options(&[1, 1, 0, 131]), Ok(()), "nothing counts behind the end");
        assert_eq!(check_options(&[148, 4, 0, 0]), Ok(()), "router alert");
        assert_eq!(check_options(&[1, 131, 3, 4]), Err(OptionError::SourceRoute), "loose");
        assert_eq!(check_options(&[137, 3, 4, 0]), Err(OptionError::SourceRoute), "strict");
        assert_eq!(check_options(&[1, 1, 1, 7]), Err(OptionError::Malformed), "no length");
        assert_eq!(check_options(&[7, 0, 0, 0]), Err(OptionError::Malformed), "length zero");
        assert_eq!(check_options(&[7, 5, 0, 0]), Err(OptionError::Malformed), "cut off");
    }

    proptest! {
        #[test]
        fn decrement_is_recompute(mut octets in any::<[u8; HEADER_LEN]>()) {
            octets[0] = 0x45;
            octets[8] |= 1;
            fill_checksum(&mut octets);
            let mut expected = octets;
            decrement_ttl(&mut octets);
            expected[8] -= 1;
            fill_checksum(&mut expected);
            prop_assert_eq!(octets, expected);
        }
    }
}
