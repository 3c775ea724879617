//! Ranges of addresses as objects write them: `203.0.113.7`, `203.0.113.0/26` or `203.0.113.8-203.0.113.15`, and the same
//! for IPv6.

use std::fmt;
use std::net::IpAddr;

use hostweave_switch::tables::{mapped, unmapped};
use ipnet::{IpNet, IpSubnets, Ipv4Subnets, Ipv6Subnets};

/// Addresses from one to another, both included, of one family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Range {
    /// The first, IPv4-mapped for IPv4.
    first: u128,
    /// The last, likewise.
    last: u128,
}

impl Range {
    /// What `text` says.
    ///
    /// # Errors
    /// Why it is no range, as the end of a sentence that begins with the text, and what to write instead.
    pub fn parse(text: &str) -> Result<Self, (String, String)> {
        let example =
            || "write an address, a CIDR or FIRST-LAST, like 203.0.113.0/26 or 2001:db8::8-2001:db8::f".to_owned();
        // IPv4-mapped addresses are how IPv4 is kept here: nobody has them as such.
        let plain = |address: &IpAddr| address.to_canonical() == *address;
        let range = if let Some((first, last)) = text.split_once('-') {
            let parsed = |text: &str| text.trim().parse::<IpAddr>().ok().filter(plain);
            let (Some(first), Some(last)) = (parsed(first), parsed(last)) else {
                return Err(("is not a range of addresses".to_owned(), example()));
            };
            if first.is_ipv4() != last.is_ipv4() || first > last {
                return Err(("ends before it begins".to_owned(), example()));
            }
            Self { first: mapped(first), last: mapped(last) }
        } else if text.contains('/') {
            let net: Option<IpNet> = text.parse().ok().filter(|net: &IpNet| plain(&net.addr()));
            let net = net.ok_or_else(|| ("is not a CIDR".to_owned(), example()))?;
            if net.addr() != net.network() {
                return Err(("has bits set beyond its prefix length".to_owned(), format!("write {}", net.trunc())));
            }
            Self::from(net)
        } else {
            let address: Option<IpAddr> = text.parse().ok().filter(plain);
            Self::from(address.ok_or_else(|| ("is not an address or range".to_owned(), example()))?)
        };
        match range.special() {
            Some(what) => Err((format!("overlaps {what}"), example())),
            None => Ok(range),
        }
    }

    /// What it overlaps that nobody can have as an address of their own.
    pub fn special(&self) -> Option<&'static str> {
        let ranges = [
            ("0.0.0.0/8", "0.0.0.0/8, \"this network\" (RFC 6890)"),
            ("127.0.0.0/8", "127.0.0.0/8, loopback (RFC 6890)"),
            ("169.254.0.0/16", "169.254.0.0/16, link-local (RFC 3927)"),
            ("224.0.0.0/3", "224.0.0.0/3, multicast and reserved (RFC 6890)"),
            ("::/8", "::/8, loopback and IPv4-mapped addresses (RFC 4291)"),
            ("fd00:ec2::254/128", "fd00:ec2::254, where ports find their metadata"),
            ("fe80::/10", "fe80::/10, link-local (RFC 4291)"),
            ("ff00::/8", "ff00::/8, multicast (RFC 4291)"),
        ];
        let overlaps = |net: &str| {
            let net: Option<IpNet> = net.parse().ok();
            // IPv4-mapped addresses stand for IPv4 here, and `::/8` is about the others.
            net.is_some_and(|net| net.addr().is_ipv4() == self.is_ipv4() && self.overlaps(&net.into()))
        };
        ranges.into_iter().find(|(net, _)| overlaps(net)).map(|(_, what)| what)
    }

    /// Whether it is of IPv4.
    pub fn is_ipv4(&self) -> bool {
        self.first().is_ipv4()
    }

    /// The first address.
    pub fn first(&self) -> IpAddr {
        unmapped(self.first)
    }

    /// The last address.
    pub fn last(&self) -> IpAddr {
        unmapped(self.last)
    }

    /// The address that so many come before.
    pub fn nth(&self, before: u128) -> Option<IpAddr> {
        self.first.checked_add(before).filter(|address| *address <= self.last).map(unmapped)
    }

    /// How many addresses it has; as many as can be counted.
    pub fn count(&self) -> u128 {
        (self.last - self.first).saturating_add(1)
    }

    /// Whether it has this address.
    pub fn contains(&self, address: IpAddr) -> bool {
        (self.first..=self.last).contains(&mapped(address))
    }

    /// Whether both have an address in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// The fewest prefixes that have exactly its addresses, in order: 254 at most.
    pub fn prefixes(&self) -> Vec<IpNet> {
        match (self.first(), self.last()) {
            (IpAddr::V4(first), IpAddr::V4(last)) => IpSubnets::V4(Ipv4Subnets::new(first, last, 0)).collect(),
            (IpAddr::V6(first), IpAddr::V6(last)) => IpSubnets::V6(Ipv6Subnets::new(first, last, 0)).collect(),
            _ => Vec::new(),
        }
    }

    /// Its addresses, in order.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        (self.first..=self.last).map(unmapped)
    }
}

impl From<IpNet> for Range {
    fn from(net: IpNet) -> Self {
        Self { first: mapped(net.network()), last: mapped(net.broadcast()) }
    }
}

impl From<IpAddr> for Range {
    fn from(address: IpAddr) -> Self {
        Self { first: mapped(address), last: mapped(address) }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first())?;
        if self.first == self.last { Ok(()) } else { write!(f, "-{}", unmapped(self.last)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_as_few_prefixes_as_can_be() {
        for (range, prefixes) in [
            ("203.0.113.7", &["203.0.113.7/32"][..]),
            ("203.0.113.0/26", &["203.0.113.0/26"]),
            ("203.0.113.1-203.0.113.6", &["203.0.113.1/32", "203.0.113.2/31", "203.0.113.4/31", "203.0.113.6/32"]),
            ("2001:db8::/32", &["2001:db8::/32"]),
            ("2001:db8::1-2001:db8::4", &["2001:db8::1/128", "2001:db8::2/127", "2001:db8::4/128"]),
            ("2001:db8::-2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", &["2001:db8::/32"]),
        ] {
            let found = Range::parse(range).unwrap().prefixes();
            assert_eq!(found.iter().map(IpNet::to_string).collect::<Vec<_>>(), prefixes, "{range}");
        }
        let longest = Range::parse("2000::1-3fff:ffff:ffff:ffff:ffff:ffff:ffff:fffe").unwrap().prefixes();
        assert!(longest.len() <= 254, "{}", longest.len());
    }

    #[test]
    fn ranges_of_both_families_and_every_form() {
        for (text, count, inside, outside) in [
            ("203.0.113.7", 1, "203.0.113.7", "203.0.113.8"),
            ("203.0.113.0/30", 4, "203.0.113.3", "203.0.113.4"),
            ("203.0.113.8-203.0.113.9", 2, "203.0.113.9", "203.0.113.10"),
            ("2001:db8::7", 1, "2001:db8::7", "203.0.113.7"),
            ("2001:db8::/64", 1 << 64, "2001:db8::ffff", "2001:db8:0:1::"),
            ("2001:db8::1 - 2001:db8::3", 3, "2001:db8::3", "2001:db8::4"),
        ] {
            let range = Range::parse(text).unwrap();
            assert_eq!(range.count(), count, "{text}");
            assert!(range.contains(inside.parse().unwrap()) && !range.contains(outside.parse().unwrap()), "{text}");
            assert_eq!(range.addresses().next(), Some(range.first()));
        }
        for bad in [
            "",
            "x",
            "203.0.113.1/24",
            "203.0.113.9-203.0.113.8",
            "203.0.113.9-2001:db8::1",
            "127.0.0.1",
            "224.0.0.1",
            "0.0.0.0/0",
            "::1",
            "::/0",
            "fe80::1",
            "::ffff:203.0.113.7",
            "203.0.113.0/33",
        ] {
            assert!(Range::parse(bad).is_err(), "{bad}");
        }
    }
}
