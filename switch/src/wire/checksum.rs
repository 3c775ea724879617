//! The Internet checksum: RFC 1071 (how to sum), RFC 1624 (how to update), and the pseudo-headers of RFC 9293 §3.1 and
//! RFC 8200 §8.1.
//!
//! A *sum* is the one's complement sum of 16-bit words in network order, folded, not inverted; a *checksum* is its
//! inverse, as it stands in a header. A partial checksum (virtio `NEEDS_CSUM`) is the sum of the pseudo-header.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::array;

/// The sum of octets that come in pieces, of any length each.
#[derive(Clone, Copy, Default, Debug)]
pub struct Sum {
    total: u64,
    odd: bool,
}

impl Sum {
    /// Starts from a folded sum, such as that of a pseudo-header.
    #[inline]
    pub fn new(start: u16) -> Self {
        Self { total: u64::from(start), odd: false }
    }

    /// Adds octets that follow what was added before.
    #[inline]
    pub fn add(&mut self, octets: &[u8]) {
        let part = sum(octets);
        // RFC 1071 §2 (B): a sum over swapped octets is the swapped sum.
        self.total += u64::from(if self.odd { part.swap_bytes() } else { part });
        self.odd ^= octets.len() % 2 == 1;
    }

    /// The folded sum so far.
    #[inline]
    pub fn folded(self) -> u16 {
        fold(self.total)
    }

    /// The checksum of everything added.
    #[inline]
    pub fn checksum(self) -> u16 {
        !self.folded()
    }
}

/// The sum of `octets`; an odd last octet is followed by zero (RFC 1071 §1).
#[inline]
pub fn sum(octets: &[u8]) -> u16 {
    // Words of 32 bits in this machine's order, two at a time: RFC 1071 §2 (B) and (C) allow both. A `u64` cannot
    // overflow below 2^32 words.
    let mut lanes = [0u64; 2];
    let mut chunks = octets.chunks_exact(8);
    for chunk in &mut chunks {
        let word = u64::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3], chunk[4], chunk[5], chunk[6], chunk[7]]);
        lanes[0] += word & 0xffff_ffff;
        lanes[1] += word >> 32;
    }
    let mut total = lanes[0] + lanes[1];
    let mut pairs = chunks.remainder().chunks_exact(2);
    for pair in &mut pairs {
        total += u64::from(u16::from_ne_bytes([pair[0], pair[1]]));
    }
    if let [last] = pairs.remainder() {
        total += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    u16::from_be(fold(total))
}

/// The sum of two sums.
#[inline]
pub fn combine(a: u16, b: u16) -> u16 {
    let (total, carry) = a.overflowing_add(b);
    total + u16::from(carry)
}

/// The sum of a 20-octet IPv4 header; `0xffff` when its checksum is right.
#[inline]
pub fn ipv4_header_sum(header: &[u8; 20]) -> u16 {
    let word = |at: usize| u64::from_ne_bytes(array(header, at));
    let (total, first) = word(0).overflowing_add(word(8));
    let last = u64::from(u32::from_ne_bytes(array(header, 16))) + u64::from(first);
    let (total, second) = total.overflowing_add(last);
    // What carried out of sixty-four bits leaves room for one more.
    let total = total + u64::from(second);
    let (half, carry) = (total as u32).overflowing_add((total >> 32) as u32);
    let half = half + u32::from(carry);
    // Both halves added to both: the upper one takes the carry of the lower one, which is the carry of itself.
    u16::from_be((half.wrapping_add(half.rotate_left(16)) >> 16) as u16)
}

/// The checksum after one 16-bit word it covers changed from `old` to `new` (RFC 1624, equation 3).
#[inline]
pub fn update(checksum: u16, old: u16, new: u16) -> u16 {
    !combine(combine(!checksum, !old), new)
}

/// The checksum after what it covers changed by `difference`, a sum of `~old + new` (RFC 1624, equation 3).
#[inline]
pub fn apply(checksum: u16, difference: u16) -> u16 {
    !combine(!checksum, difference)
}

/// The sum of the IPv4 pseudo-header. `len` counts transport header and data, in octets.
#[inline]
pub fn pseudo_v4(src: Ipv4Addr, dst: Ipv4Addr, proto: u8, len: u32) -> u16 {
    let (src, dst) = (u64::from(u32::from(src)), u64::from(u32::from(dst)));
    fold(src + dst + u64::from(proto) + u64::from(len))
}

/// The sum of the IPv6 pseudo-header. `len` counts the upper-layer packet, in octets.
#[inline]
pub fn pseudo_v6(src: Ipv6Addr, dst: Ipv6Addr, proto: u8, len: u32) -> u16 {
    let addresses = combine(sum(&src.octets()), sum(&dst.octets()));
    fold(u64::from(addresses) + u64::from(proto) + u64::from(len))
}

/// Adds the carries back in until 16 bits are left.
#[inline]
pub fn fold(total: u64) -> u16 {
    let total = (total >> 32) + (total & 0xffff_ffff);
    let total = (total >> 16) + (total & 0xffff);
    let total = (total >> 16) + (total & 0xffff);
    ((total >> 16) + (total & 0xffff)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 §4.1, word by word.
    fn slow(octets: &[u8]) -> u16 {
        let mut total = 0u32;
        for pair in octets.chunks(2) {
            total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }

    #[test]
    fn rfc1071_example() {
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
    }

    #[test]
    fn rfc1624_example() {
        // Section 4: equation 3 gives 0x0000 where RFC 1141 gave 0xffff.
        assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    #[test]
    fn pseudo_header_v6_is_the_sum_of_its_forty_octets() {
        let (src, dst) = (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), Ipv6Addr::LOCALHOST);
        let mut octets = Vec::from(src.octets());
        octets.extend(dst.octets());
        octets.extend([0, 1, 0x00, 0x05, 0, 0, 0, 58]);
        assert_eq!(pseudo_v6(src, dst, 58, 0x0001_0005), slow(&octets));
    }

    proptest! {
        #[test]
        fn sum_is_the_slow_sum(octets in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(sum(&octets), slow(&octets));
        }

        #[test]
        fn pieces_add_up(octets in proptest::collection::vec(any::<u8>(), 0..100), cuts in proptest::collection::vec(0usize..20, 0..8)) {
            let mut rest = &octets[..];
            let mut total = Sum::default();
            for cut in cuts {
                let (part, after) = rest.split_at(cut.min(rest.len()));
                total.add(part);
                rest = after;
            }
            total.add(rest);
            prop_assert_eq!(total.checksum(), !slow(&octets));
        }

        #[test]
        fn update_is_recompute(mut octets in proptest::collection::vec(any::<u8>(), 4..60), at in 0usize..30, new in any::<u16>()) {
            // A header is never all zero, so that its sum has one representation (RFC 1624 §3).
            octets[0] |= 1;
            octets.truncate(octets.len() & !1);
            let at = 2 + at % (octets.len() / 2 - 1) * 2;
            let before = !sum(&octets);
            let old = u16::from_be_bytes([octets[at], octets[at + 1]]);
            octets[at..at + 2].copy_from_slice(&new.to_be_bytes());
            prop_assert_eq!(update(before, old, new), !sum(&octets));
        }
    }
}
