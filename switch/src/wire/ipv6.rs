//! IPv6 headers and extension headers (RFC 8200), and the address classes a router must know (RFC 4291).

use std::net::Ipv6Addr;

use super::{array, be16};

/// Octets of the fixed header.
pub const HEADER_LEN: usize = 40;

/// Octets of a fragment header (RFC 8200 §4.5).
pub const FRAGMENT_LEN: usize = 8;

/// `ff02::1`, all nodes on the link.
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// `ff02::2`, all routers on the link.
pub const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// Next-header values of extension headers.
pub mod next_header {
    /// Hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// Routing.
    pub const ROUTING: u8 = 43;
    /// Fragment.
    pub const FRAGMENT: u8 = 44;
    /// Authentication header (RFC 4302); its length counts 4-octet units.
    pub const AUTHENTICATION: u8 = 51;
    /// Nothing follows.
    pub const NONE: u8 = 59;
    /// Destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
}

/// View of the fixed header.
#[derive(Clone, Copy, Debug)]
pub struct Ipv6<'a>(&'a [u8; HEADER_LEN]);

impl<'a> Ipv6<'a> {
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

    /// 6 in a good header.
    #[inline]
    pub fn version(self) -> u8 {
        self.0[0] >> 4
    }

    /// DSCP and ECN.
    #[inline]
    pub fn traffic_class(self) -> u8 {
        (be16(self.0, 0) >> 4) as u8
    }

    /// Octets behind the fixed header, extension headers included.
    #[inline]
    pub fn payload_len(self) -> u16 {
        be16(self.0, 4)
    }

    /// What follows the fixed header.
    #[inline]
    pub fn next_header(self) -> u8 {
        self.0[6]
    }

    /// Hop limit.
    #[inline]
    pub fn hop_limit(self) -> u8 {
        self.0[7]
    }

    /// Source address.
    #[inline]
    pub fn src(self) -> Ipv6Addr {
        Ipv6Addr::from(array::<16>(self.0, 8))
    }

    /// Destination address.
    #[inline]
    pub fn dst(self) -> Ipv6Addr {
        Ipv6Addr::from(array::<16>(self.0, 24))
    }
}

/// A fixed header as a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Repr {
    /// Source address.
    pub src: Ipv6Addr,
    /// Destination address.
    pub dst: Ipv6Addr,
    /// What follows.
    pub next_header: u8,
    /// Hop limit; 255 for neighbour discovery.
    pub hop_limit: u8,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Octets behind the header.
    pub payload_len: u16,
}

impl Repr {
    /// Writes the header; the flow label is zero.
    pub fn emit(&self, header: &mut [u8; HEADER_LEN]) {
        header[..4].copy_from_slice(&(6u32 << 28 | u32::from(self.traffic_class) << 20).to_be_bytes());
        header[4..6].copy_from_slice(&self.payload_len.to_be_bytes());
        header[6] = self.next_header;
        header[7] = self.hop_limit;
        header[8..24].copy_from_slice(&self.src.octets());
        header[24..].copy_from_slice(&self.dst.octets());
    }
}

/// Takes one off the hop limit, which must be above zero. `start`: the first octets of the header. By a word, as
/// [`super::ipv4::decrement_ttl`].
#[inline]
pub fn decrement_hop_limit(start: &mut [u8; 20]) {
    debug_assert!(start[7] > 0);
    let with_hop_limit = u64::from_le_bytes(array(start, 2)) - (1 << 40);
    start[2..10].copy_from_slice(&with_hop_limit.to_le_bytes());
}

/// Whether a walk goes on behind this next-header value. Encrypted payload, unknown protocols and "no next header" end
/// it, as transport protocols do.
#[inline]
pub fn is_extension(next: u8) -> bool {
    matches!(
        next,
        next_header::HOP_BY_HOP
            | next_header::ROUTING
            | next_header::FRAGMENT
            | next_header::AUTHENTICATION
            | next_header::DESTINATION_OPTIONS
    )
}

/// One extension header, by its first eight octets.
#[derive(Clone, Copy, Debug)]
pub struct Extension<'a> {
    kind: u8,
    octets: &'a [u8; 8],
}

impl<'a> Extension<'a> {
    /// The header that `kind`, the next-header value before it, announced. `None` when fewer than eight octets are
    /// there: no extension header is shorter.
    #[inline]
    pub fn new_checked(kind: u8, octets: &'a [u8]) -> Option<Self> {
        octets.first_chunk().map(|octets| Self { kind, octets })
    }

    /// What follows it.
    #[inline]
    pub fn next_header(self) -> u8 {
        self.octets[0]
    }

    /// Its length in octets, at most 2048.
    #[inline]
    #[allow(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(self) -> usize {
        match self.kind {
            next_header::FRAGMENT => FRAGMENT_LEN,
            next_header::AUTHENTICATION => (usize::from(self.octets[1]) + 2) * 4,
            _ => (usize::from(self.octets[1]) + 1) * 8,
        }
    }

    /// Of a routing header: nodes still to be visited.
    #[inline]
    pub fn segments_left(self) -> u8 {
        self.octets[3]
    }

    /// Of a fragment header: where the fragment begins in its packet, in octets.
    #[inline]
    pub fn fragment_offset(self) -> usize {
        usize::from(be16(self.octets, 2) & 0xfff8)
    }

    /// Of a fragment header: more follow.
    #[inline]
    pub fn more_fragments(self) -> bool {
        self.octets[3] & 1 != 0
    }
}

/// `fe80::/64`: the only link-local addresses in use (RFC 4291 §2.5.6: the 54 bits after the prefix are zero).
#[inline]
pub fn is_link_local(address: Ipv6Addr) -> bool {
    u128::from(address) >> 64 == 0xfe80 << 48
}

/// The solicited-node multicast address (RFC 4291 §2.7.1).
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from(b) << 8 | u16::from(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPR: Repr = Repr {
        src: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
        dst: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2),
        next_header: 58,
        hop_limit: 255,
        traffic_class: 0xb8,
        payload_len: 0x1234,
    };

    #[test]
    fn construct_and_deconstruct() {
        let mut octets = [0xa5; HEADER_LEN];
        REPR.emit(&mut octets);
        assert_eq!(octets[..8], [0x6b, 0x80, 0, 0, 0x12, 0x34, 58, 255]);
        let view = Ipv6::new_checked(&octets).unwrap();
        assert_eq!((view.version(), view.traffic_class()), (6, 0xb8));
        assert_eq!((view.payload_len(), view.next_header(), view.hop_limit()), (0x1234, 58, 255));
        assert_eq!((view.src(), view.dst()), (REPR.src, REPR.dst));
        assert!(Ipv6::new_checked(&octets[..39]).is_none());
    }

    #[test]
    fn extension_lengths() {
        let octets = [17, 2, 0, 0x09, 0, 0, 0, 0];
        let len = |kind| Extension::new_checked(kind, &octets).unwrap().len();
        assert_eq!(len(next_header::HOP_BY_HOP), 24);
        assert_eq!(len(next_header::AUTHENTICATION), 16);
        assert_eq!(len(next_header::FRAGMENT), 8);
        let fragment = Extension::new_checked(next_header::FRAGMENT, &octets).unwrap();
        assert_eq!((fragment.fragment_offset(), fragment.more_fragments(), fragment.next_header()), (8, true, 17));
        assert!(Extension::new_checked(next_header::FRAGMENT, &octets[..7]).is_none());
    }

    #[test]
    fn address_classes() {
        assert!(is_link_local("fe80::1".parse().unwrap()));
        assert!(!is_link_local("fe80:0:0:1::1".parse().unwrap()));
        assert!(!is_link_local("2001:db8::1".parse().unwrap()));
        assert_eq!(
            solicited_node("2001:db8::12:3456".parse().unwrap()),
            "ff02::1:ff12:3456".parse::<Ipv6Addr>().unwrap()
        );
    }
}
