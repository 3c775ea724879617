//! Neighbour discovery messages that hosts send (RFC 4861 §4), and their options.
//!
//! `parse` takes a whole ICMPv6 message whose type is known and checks what RFC 4861 §6.1 and §7.1 ask of its body: length,
//! code, options. Hop limit, checksum and addresses are the caller's to check: they are outside the message.

use std::net::Ipv6Addr;

use super::{array, icmpv6::kind};
use crate::MacAddr;

/// Octets of a neighbour solicitation or advertisement without options.
pub const NEIGHBOR_LEN: usize = 24;

/// Octets of a router solicitation without options.
pub const ROUTER_SOLICIT_LEN: usize = 8;

/// Octets of a link-layer address option of Ethernet.
pub const LINK_LAYER_LEN: usize = 8;

/// Option types.
pub mod option {
    /// Source link-layer address.
    pub const SOURCE_LINK_LAYER: u8 = 1;
    /// Target link-layer address.
    pub const TARGET_LINK_LAYER: u8 = 2;
}

/// The options of a message: pairs of type and whole option, its header included.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a>(&'a [u8]);

impl<'a> Options<'a> {
    /// `None` when an option has length zero or is cut off: RFC 4861 §4.6, "Nodes MUST silently discard an ND packet
    /// that contains an option with length zero."
    pub fn new_checked(octets: &'a [u8]) -> Option<Self> {
        let mut rest = octets;
        while !rest.is_empty() {
            let len = usize::from(*rest.get(1)?) * 8;
            if len == 0 {
                return None;
            }
            rest = rest.get(len..)?;
        }
        Some(Self(octets))
    }

    /// The link-layer address of the first option of type `kind`, when it is an Ethernet address.
    pub fn link_layer(self, kind: u8) -> Option<MacAddr> {
        let (_, option) = self.find(|&(found, _)| found == kind)?;
        (option.len() == LINK_LAYER_LEN).then(|| MacAddr(array(option, 2)))
    }

    /// Whether every option of type `kind` holds `mac`.
    pub fn all_link_layer(self, kind: u8, mac: MacAddr) -> bool {
        self.filter(|&(found, _)| found == kind)
            .all(|(_, option)| option.len() == LINK_LAYER_LEN && option[2..] == mac.0)
    }

    fn find(mut self, test: impl FnMut(&(u8, &'a [u8])) -> bool) -> Option<(u8, &'a [u8])> {
        Iterator::find(&mut self, test)
    }
}

impl<'a> Iterator for Options<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let len = usize::from(*self.0.get(1)?) * 8;
        let (option, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some((*option.first()?, option))
    }
}

/// A router solicitation (RFC 4861 §4.1).
#[derive(Clone, Copy, Debug)]
pub struct RouterSolicit<'a> {
    /// Its options.
    pub options: Options<'a>,
}

impl<'a> RouterSolicit<'a> {
    /// `None` when RFC 4861 §6.1.1 says to discard the message.
    pub fn parse(message: &'a [u8]) -> Option<Self> {
        let options = body(message, kind::ROUTER_SOLICIT, ROUTER_SOLICIT_LEN)?;
        Some(Self { options })
    }
}

/// A neighbour solicitation (RFC 4861 §4.3).
#[derive(Clone, Copy, Debug)]
pub struct NeighborSolicit<'a> {
    /// Whose link-layer address is asked for.
    pub target: Ipv6Addr,
    /// Its options.
    pub options: Options<'a>,
}

impl<'a> NeighborSolicit<'a> {
    /// `None` when RFC 4861 §7.1.1 says to discard the message.
    pub fn parse(message: &'a [u8]) -> Option<Self> {
        let options = body(message, kind::NEIGHBOR_SOLICIT, NEIGHBOR_LEN)?;
        let target = Ipv6Addr::from(array::<16>(message, 8));
        (!target.is_multicast()).then_some(Self { target, options })
    }
}

/// A neighbour advertisement (RFC 4861 §4.4).
#[derive(Clone, Copy, Debug)]
pub struct NeighborAdvert<'a> {
    /// Whether it answers a solicitation.
    pub solicited: bool,
    /// Whose link-layer address is told.
    pub target: Ipv6Addr,
    /// Its options.
    pub options: Options<'a>,
}

impl<'a> NeighborAdvert<'a> {
    /// `None` when RFC 4861 §7.1.2 says to discard the message.
    pub fn parse(message: &'a [u8]) -> Option<Self> {
        let options = body(message, kind::NEIGHBOR_ADVERT, NEIGHBOR_LEN)?;
        let target = Ipv6Addr::from(array::<16>(message, 8));
        (!target.is_multicast()).then_some(Self { solicited: message[4] & FLAG_SOLICITED != 0, target, options })
    }
}

/// Checks type, code and length, and returns the options.
fn body(message: &[u8], kind: u8, len: usize) -> Option<Options<'_>> {
    let (fixed, options) = message.split_at_checked(len)?;
    if fixed[0] != kind || fixed[1] != 0 {
        return None;
    }
    Options::new_checked(options)
}

const FLAG_SOLICITED: u8 = 0x40;

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 9]);

    fn solicit(options: &[u8]) -> Vec<u8> {
        let mut message = vec![kind::NEIGHBOR_SOLICIT, 0, 0, 0, 0, 0, 0, 0];
        message.extend(TARGET.octets());
        message.extend(options);
        message
    }

    #[test]
    fn solicitation_with_source_link_layer() {
        let message = solicit(&[1, 1, 2, 0, 0, 0, 0, 9]);
        let parsed = NeighborSolicit::parse(&message).unwrap();
        assert_eq!(parsed.target, TARGET);
        assert_eq!(parsed.options.link_layer(option::SOURCE_LINK_LAYER), Some(MAC));
        assert_eq!(parsed.options.link_layer(option::TARGET_LINK_LAYER), None);
        assert!(parsed.options.all_link_layer(option::SOURCE_LINK_LAYER, MAC));
        assert!(!parsed.options.all_link_layer(option::SOURCE_LINK_LAYER, MacAddr::ROUTER));
    }

    #[test]
    fn every_link_layer_option_counts() {
        let message = solicit(&[1, 1, 2, 0, 0, 0, 0, 9, 1, 1, 2, 0, 0, 0, 0, 8]);
        let parsed = NeighborSolicit::parse(&message).unwrap();
        assert!(!parsed.options.all_link_layer(option::SOURCE_LINK_LAYER, MAC));
    }

    #[test]
    fn odd_messages_are_refused() {
        assert!(NeighborSolicit::parse(&solicit(&[1, 0, 0, 0, 0, 0, 0, 0])).is_none(), "option of length zero");
        assert!(NeighborSolicit::parse(&solicit(&[1, 2, 0, 0, 0, 0, 0, 0])).is_none(), "option cut off");
        assert!(NeighborSolicit::parse(&solicit(&[1])).is_none(), "half an option header");
        assert!(NeighborSolicit::parse(&solicit(&[])[..23]).is_none(), "cut off");
        let mut message = solicit(&[]);
        message[1] = 1;
        assert!(NeighborSolicit::parse(&message).is_none(), "code");
        let mut message = solicit(&[]);
        message[8] = 0xff;
        assert!(NeighborSolicit::parse(&message).is_none(), "multicast target");
        assert!(NeighborAdvert::parse(&solicit(&[])).is_none(), "another type");
    }

    #[test]
    fn advertisement_with_target_link_layer() {
        let mut message = solicit(&[2, 1, 2, 0, 0, 0, 0, 9]);
        message[0] = kind::NEIGHBOR_ADVERT;
        message[4] = 0x60;
        let parsed = NeighborAdvert::parse(&message).unwrap();
        assert!(parsed.solicited);
        assert_eq!((parsed.target, parsed.options.link_layer(option::TARGET_LINK_LAYER)), (TARGET, Some(MAC)));
    }
}
