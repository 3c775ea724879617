//! Addresses that stand for others: two that had their first n bits in common still have (as Crypto-PAn does it).
//!
//! Bit by bit, an address is flipped or not as a keyed hash of the bits before says. The key lives as long as the report
//! is made. The first bits stay, so that private and public addresses can be told apart.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The switch's own, the same on all hosts (`hostweave_switch::MacAddr::ROUTER`).
const KEPT_MACS: [[u8; 6]; 3] = [hostweave_switch::MacAddr::ROUTER.0, [0; 6], [0xff; 6]];

/// Stands for addresses; a key of its own.
#[derive(Default)]
pub struct Scrambler(RandomState);

impl Scrambler {
    /// What stands for an address.
    pub fn ip(&self, address: IpAddr) -> IpAddr {
        match address {
            IpAddr::V4(v4) => match kept_v4(v4) {
                32 => v4.into(),
                kept => Ipv4Addr::from(self.bits(u128::from(u32::from(v4)), 32, kept) as u32).into(),
            },
            IpAddr::V6(v6) => match kept_v6(v6) {
                128 => v6.into(),
                kept => Ipv6Addr::from(self.bits(u128::from(v6), 128, kept)).into(),
            },
        }
    }

    /// What stands for a hardware address: whether it is a group's and whether it is locally administered stay.
    pub fn mac(&self, mac: [u8; 6]) -> [u8; 6] {
        if KEPT_MACS.contains(&mac) {
            return mac;
        }
        let mut bytes = [0; 6];
        bytes.copy_from_slice(&self.0.hash_one(("mac", mac)).to_be_bytes()[..6]);
        bytes[0] = bytes[0] & !3 | mac[0] & 3;
        bytes
    }

    fn bits(&self, address: u128, width: u32, kept: u32) -> u128 {
        let flip = |before: u32| {
            let prefix = if before == 0 { 0 } else { address >> (width - before) };
            u128::from(self.0.hash_one((width, before, prefix)) & 1) << (width - 1 - before)
        };
        (kept..width).fold(address, |image, before| image ^ flip(before))
    }
}

/// How many bits of an address say nothing about its owner, and stay.
pub fn kept(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(v4) => kept_v4(v4),
        IpAddr::V6(v6) => kept_v6(v6),
    }
}

fn kept_v4(address: Ipv4Addr) -> u32 {
    let [a, b, ..] = address.octets();
    match (a, b) {
        // This host, loopback, broadcast, multicast groups of protocols, link-local services.
        (0 | 127 | 255, _) | (224, 0) | (169, 254) => 32,
        (192, 168) => 16,
        (172, 16..=31) => 12,
        (100, 64..=127) => 10,
        _ => 8,
    }
}

fn kept_v6(address: Ipv6Addr) -> u32 {
    let last = address.segments()[7];
    match address.segments() {
        // Unspecified, loopback, and the router's link-local address.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] | [0xfe80, 0, 0, 0, 0, 0, 0, 1] => 128,
        // Groups of protocols, which have small numbers; others say whose neighbour is looked for.
        [0xff00..=0xffff, 0, 0, 0, 0, 0, 0, _] if last < 0x1000 => 128,
        _ => 16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn common(a: IpAddr, b: IpAddr) -> u32 {
        match (a, b) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (u32::from(a) ^ u32::from(b)).leading_zeros(),
            (IpAddr::V6(a), IpAddr::V6(b)) => (u128::from(a) ^ u128::from(b)).leading_zeros(),
            _ => 0,
        }
    }

    #[test]
    fn what_addresses_have_in_common_they_still_have() {
        let scrambler = Scrambler::default();
        let texts = [
            "10.64.0.1",
            "10.64.0.2",
            "10.64.1.2",
            "10.128.0.1",
            "198.51.100.7",
            "198.51.100.8",
            "2001:db8:64::1",
            "2001:db8:64::2",
            "2001:db8:65::1",
            "fd00::1",
            "fd00:0:0:1::1",
        ];
        let addresses: Vec<IpAddr> = texts.iter().map(|text| text.parse().unwrap()).collect();
        for a in &addresses {
            for b in &addresses {
                assert_eq!(common(*a, *b), common(scrambler.ip(*a), scrambler.ip(*b)), "{a} {b}");
            }
            assert_eq!(scrambler.ip(*a), scrambler.ip(*a), "the same one always by the same");
        }
        assert!(addresses.iter().filter(|address| scrambler.ip(**address) == **address).count() < 2);
        assert!(addresses.iter().any(|address| Scrambler::default().ip(*address) != scrambler.ip(*address)));
    }

    #[test]
    fn what_says_nothing_about_anybody_stays() {
        let scrambler = Scrambler::default();
        for text in [
            "0.0.0.0",
            "127.0.0.1",
            "255.255.255.255",
            "224.0.0.1",
            "169.254.169.254",
            "::",
            "::1",
            "ff02::1",
            "fe80::1",
        ] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(scrambler.ip(address), address);
        }
        let private = scrambler.ip("192.168.7.9".parse().unwrap()).to_string();
        assert!(private.starts_with("192.168."), "{private}");
        for mac in KEPT_MACS {
            assert_eq!(scrambler.mac(mac), mac);
        }
        let mac = scrambler.mac([2, 0, 10, 64, 0, 12]);
        assert!(mac[0] & 3 == 2 && mac != [2, 0, 10, 64, 0, 12]);
    }
}
