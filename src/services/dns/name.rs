//! Names as keys, and names that stand for addresses (`in-addr.arpa`, `ip6.arpa`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::Name;
use ipnet::IpNet;

/// Octets of the longest name (RFC 1035 §2.3.4).
const NAME_LEN_MAX: usize = 255;

/// A name as it is looked up: its labels with their lengths, in lower case (RFC 4343), without the root.
pub struct Key {
    octets: [u8; NAME_LEN_MAX],
    len: usize,
}

impl Key {
    /// The key of a name.
    pub fn of(name: &Name) -> Self {
        let mut key = Self { octets: [0; NAME_LEN_MAX], len: 0 };
        for label in name.iter() {
            let end = key.len + 1 + label.len();
            // hickory holds no longer names.
            let Some(room) = key.octets.get_mut(key.len..end) else { break };
            room[0] = label.len() as u8;
            for (to, from) in room[1..].iter_mut().zip(label) {
                *to = from.to_ascii_lowercase();
            }
            key.len = end;
        }
        key
    }

    /// The octets.
    pub fn octets(&self) -> &[u8] {
        &self.octets[..self.len]
    }

    /// The keys of the name and of every name above it but the root, longest first.
    pub fn ancestors(&self) -> impl Iterator<Item = &[u8]> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let rest = self.octets().get(at..)?;
            at += 1 + usize::from(*rest.first()?);
            Some(rest)
        })
    }

    /// Whether the name is `zone` or below it.
    pub fn is_within(&self, zone: &[u8]) -> bool {
        self.octets().ends_with(zone) && self.ancestors().any(|name| name.len() == zone.len())
    }
}

/// A name below `origin`. `None` when it would be too long for a name.
pub fn below(origin: &Name, labels: &[&str]) -> Option<Name> {
    let labels = labels.iter().flat_map(|part| part.split('.'));
    let mut name = Name::new();
    for label in labels {
        name = name.append_label(label.as_bytes()).ok()?;
    }
    name.append_domain(origin).ok()
}

/// What a name below `in-addr.arpa` or `ip6.arpa` stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reverse {
    /// The range: a whole address, or the labels that are there.
    pub net: IpNet,
    /// There are more labels, which are no part of an address.
    pub deeper: bool,
}

impl Reverse {
    /// Reads a name; `None` for one outside of the two trees, or of their tops.
    pub fn of(name: &Name) -> Option<Self> {
        let mut labels = name.iter().rev();
        if !labels.next()?.eq_ignore_ascii_case(b"arpa") {
            return None;
        }
        let tree = labels.next()?;
        let (bits, most): (u8, usize) = match tree {
            _ if tree.eq_ignore_ascii_case(b"in-addr") => (8, 4),
            _ if tree.eq_ignore_ascii_case(b"ip6") => (4, 32),
            _ => return None,
        };
        let (mut value, mut count, mut deeper) = (0_u128, 0, false);
        for label in labels {
            match digit(label, bits).filter(|_| count < most) {
                Some(digit) => {
                    count += 1;
                    value = value << bits | u128::from(digit);
                }
                None => {
                    deeper = true;
                    break;
                }
            }
        }
        let prefix_len = count as u8 * bits;
        let address = if bits == 8 {
            IpAddr::V4(Ipv4Addr::from((value as u32).checked_shl(32 - u32::from(prefix_len)).unwrap_or(0)))
        } else {
            IpAddr::V6(Ipv6Addr::from(value.checked_shl(128 - u32::from(prefix_len)).unwrap_or(0)))
        };
        (count > 0).then(|| IpNet::new(address, prefix_len).ok()).flatten().map(|net| Self { net, deeper })
    }
}

/// An octet in decimal, or a nibble in hexadecimal (RFC 1035 §3.5, RFC 3596 §2.5).
fn digit(label: &[u8], bits: u8) -> Option<u8> {
    let text = std::str::from_utf8(label).ok()?;
    let plain = text.bytes().all(|octet| octet.is_ascii_hexdigit());
    match bits {
        8 if plain && (text == "0" || !text.starts_with('0')) => text.parse().ok(),
        4 if plain && text.len() == 1 => u8::from_str_radix(text, 16).ok(),
        _ => None,
    }
}

/// Labels of addresses that the tops of the reverse zones for a range have: cut at the next whole label.
pub fn reverse_depth(range: IpNet) -> usize {
    let (bits, most) = if range.addr().is_ipv4() { (8, 4) } else { (4, 32) };
    usize::from(range.prefix_len()).div_ceil(bits).clamp(1, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    #[test]
    fn keys_compare_without_case_and_at_whole_labels() {
        let (upper, lower) = (Key::of(&name("Web.Shop.Cluster.LOCAL.")), Key::of(&name("web.shop.cluster.local.")));
        assert_eq!(upper.octets(), lower.octets());
        let zone = Key::of(&name("cluster.local."));
        assert!(upper.is_within(zone.octets()) && zone.is_within(zone.octets()));
        assert!(!Key::of(&name("othercluster.local.")).is_within(zone.octets()));
        assert!(!Key::of(&Name::root()).is_within(zone.octets()));
        let above: Vec<usize> = lower.ancestors().map(<[u8]>::len).collect();
        assert_eq!(above, [23, 19, 14, 6]);
    }

    #[test]
    fn reverse_names_are_ranges() {
        for (text, net, deeper) in [
            ("1.2.0.192.in-addr.arpa.", "192.0.2.1/32", false),
            ("2.0.192.IN-ADDR.arpa.", "192.0.2.0/24", false),
            ("x.1.2.0.192.in-addr.arpa.", "192.0.2.1/32", true),
            ("0-63.2.0.192.in-addr.arpa.", "192.0.2.0/24", true),
            ("01.2.0.192.in-addr.arpa.", "192.0.2.0/24", true),
            ("256.2.0.192.in-addr.arpa.", "192.0.2.0/24", true),
            ("8.B.D.0.1.0.0.2.ip6.arpa.", "2001:db8::/32", false),
        ] {
            let net = net.parse().unwrap();
            assert_eq!(Reverse::of(&name(text)), Some(Reverse { net, deeper }), "{text}");
        }
        for text in ["arpa.", "in-addr.arpa.", "x.in-addr.arpa.", "1.2.0.192.in-addr.example.", "."] {
            assert_eq!(Reverse::of(&name(text)), None, "{text}");
        }
        let v6: IpAddr = "2001:db8::1".parse().unwrap();
        assert_eq!(Reverse::of(&Name::from(v6)).unwrap().net, IpNet::from(v6));
    }

    #[test]
    fn reverse_zones_begin_at_whole_labels() {
        for (range, depth) in
            [("10.0.0.0/8", 1), ("10.64.16.0/20", 3), ("192.0.2.0/24", 3), ("2001:db8::/32", 8), ("2001:db8::/33", 9)]
        {
            assert_eq!(reverse_depth(range.parse().unwrap()), depth, "{range}");
        }
    }

    #[test]
    fn a_name_that_is_too_long_is_none() {
        let label = "a".repeat(63);
        assert!(below(&name("cluster.local."), &[&label, &label, &label]).is_some());
        assert!(below(&name("cluster.local."), &[&label, &label, &label, &label]).is_none());
    }
}
