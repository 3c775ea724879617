//! One file per protocol: offsets, checks, builders. Nothing here knows a port, a network or a table.
//!
//! A *view* (`Ipv4<'a>`, `Udp<'a>`, …) reads fields of octets whose length it checked once, in `new_checked`. A *value*
//! (`Repr`, `arp::Message`, `ndp::RouterAdvert`, …) has only legal states and is written by `emit`. All numbers are in
//! host order once they left the octets. Offsets within a file count from the first octet of its own header.

pub mod arp;
pub mod checksum;
pub mod dhcp4;
pub mod dhcp6;
pub mod ethernet;
pub mod frame;
pub mod icmpv4;
pub mod icmpv6;
pub mod ipv4;
pub mod ipv6;
pub mod ndp;
pub mod tcp;
pub mod udp;
pub mod writer;

/// Transport protocol numbers (IANA "Assigned Internet Protocol Numbers").
pub mod proto {
    /// ICMP, RFC 792.
    pub const ICMPV4: u8 = 1;
    /// IGMP, RFC 3376.
    pub const IGMP: u8 = 2;
    /// TCP, RFC 9293.
    pub const TCP: u8 = 6;
    /// UDP, RFC 768.
    pub const UDP: u8 = 17;
    /// ICMPv6, RFC 4443.
    pub const ICMPV6: u8 = 58;
    /// SCTP, RFC 9260.
    pub const SCTP: u8 = 132;
}

/// L4 port of DNS (RFC 1035 §4.2).
pub const DNS_L4: u16 = 53;

/// Two octets in network order.
///
/// # Panics
/// When `at + 2` is beyond the end; views check their length first.
#[inline]
pub(crate) fn be16(octets: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([octets[at], octets[at + 1]])
}

/// Four octets in network order. Panics as [`be16`] does.
#[inline]
pub(crate) fn be32(octets: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]])
}

/// An array out of octets. Panics as [`be16`] does.
#[inline]
pub(crate) fn array<const N: usize>(octets: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&octets[at..at + N]);
    out
}
