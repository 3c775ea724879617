//! ARP for IPv4 over Ethernet (RFC 826, RFC 5227). Other hardware and protocols are not known.

use std::net::Ipv4Addr;

use super::{array, be16};
use crate::MacAddr;

/// Octets of an ARP message for IPv4 over Ethernet.
pub const LEN: usize = 28;

/// What an ARP message does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Asks who has the target's IPv4 address.
    Request,
    /// Tells that the sender has its address.
    Reply,
}

/// An ARP message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    /// Request or reply.
    pub operation: Operation,
    /// The sender's MAC.
    pub sender_mac: MacAddr,
    /// The sender's address; unspecified in a probe (RFC 5227 §1.1).
    pub sender_ip: Ipv4Addr,
    /// The target's MAC; zero in a request.
    pub target_mac: MacAddr,
    /// The target's address.
    pub target_ip: Ipv4Addr,
}

impl Message {
    /// Reads a message; `None` when it is cut off, not for IPv4 over Ethernet, or neither request nor reply.
    pub fn parse(octets: &[u8]) -> Option<Self> {
        let octets: &[u8; LEN] = octets.first_chunk()?;
        if octets[..6] != HARDWARE_AND_PROTOCOL {
            return None;
        }
        let operation = match be16(octets, 6) {
            1 => Operation::Request,
            2 => Operation::Reply,
            _ => return None,
        };
        Some(Self {
            operation,
            sender_mac: MacAddr(array(octets, 8)),
            sender_ip: Ipv4Addr::from(array::<4>(octets, 14)),
            target_mac: MacAddr(array(octets, 18)),
            target_ip: Ipv4Addr::from(array::<4>(octets, 24)),
        })
    }

    /// Writes the message.
    pub fn emit(&self, octets: &mut [u8; LEN]) {
        octets[..6].copy_from_slice(&HARDWARE_AND_PROTOCOL);
        octets[6..8].copy_from_slice(match self.operation {
            Operation::Request => &[0, 1],
            Operation::Reply => &[0, 2],
        });
        octets[8..14].copy_from_slice(&self.sender_mac.0);
        octets[14..18].copy_from_slice(&self.sender_ip.octets());
        octets[18..24].copy_from_slice(&self.target_mac.0);
        octets[24..].copy_from_slice(&self.target_ip.octets());
    }

    /// The reply to this request: `mac` has the target's address.
    pub fn reply(&self, mac: MacAddr) -> Self {
        Self {
            operation: Operation::Reply,
            sender_mac: mac,
            sender_ip: self.target_ip,
            target_mac: self.sender_mac,
            target_ip: self.sender_ip,
        }
    }

    /// Whether it asks for an address before using it (RFC 5227 §2.1.1).
    pub fn is_probe(&self) -> bool {
        self.operation == Operation::Request && self.sender_ip.is_unspecified()
    }

    /// Whether it announces the sender's own address (RFC 5227 §2.3, gratuitous ARP).
    pub fn is_announcement(&self) -> bool {
        self.sender_ip == self.target_ip
    }
}

/// Ethernet (1), IPv4 (0x0800), 6 and 4 octets of address.
const HARDWARE_AND_PROTOCOL: [u8; 6] = [0, 1, 8, 0, 6, 4];

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: Message = Message {
        operation: Operation::Request,
        sender_mac: MacAddr([2, 0, 0, 0, 0, 1]),
        sender_ip: Ipv4Addr::new(192, 0, 2, 1),
        target_mac: MacAddr([0; 6]),
        target_ip: Ipv4Addr::new(192, 0, 2, 2),
    };

    #[rustfmt::skip]
    const OCTETS: [u8; LEN] = [
        0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 192, 0, 2, 1,
        0, 0, 0, 0, 0, 0, 192, 0, 2, 2,
    ];

    #[test]
    fn deconstruct_and_construct() {
        assert_eq!(Message::parse(&OCTETS), Some(REQUEST));
        let mut octets = [0xa5; LEN];
        REQUEST.emit(&mut octets);
        assert_eq!(octets, OCTETS);
    }

    #[test]
    fn reply_swaps_and_fills_in() {
        let mac = MacAddr([2, 0, 0, 0, 0, 9]);
        let reply = REQUEST.reply(mac);
        assert_eq!((reply.sender_mac, reply.sender_ip), (mac, REQUEST.target_ip));
        assert_eq!((reply.target_mac, reply.target_ip), (REQUEST.sender_mac, REQUEST.sender_ip));
    }

    #[test]
    fn odd_messages_are_refused() {
        assert_eq!(Message::parse(&OCTETS[..27]), None);
        for (at, value, case) in [
            (1, 6, "IEEE 802"),
            (2, 0x86, "IPv6"),
            (4, 8, "EUI-64"),
            (5, 16, "16 octets"),
            (7, 3, "RARP"),
            (7, 0, "zero"),
        ] {
            let mut octets = OCTETS;
            octets[at] = value;
            assert_eq!(Message::parse(&octets), None, "{case}");
        }
    }

    #[test]
    fn probe_and_announcement() {
        assert!(Message { sender_ip: Ipv4Addr::UNSPECIFIED, ..REQUEST }.is_probe());
        assert!(!REQUEST.is_probe() && !REQUEST.is_announcement());
        assert!(Message { target_ip: REQUEST.sender_ip, ..REQUEST }.is_announcement());
    }
}
