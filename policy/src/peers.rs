//! Which class a peer's identity falls into: a hash table that is built once and asked for every new connection.
//!
//! Identities are small numbers that we give out ourselves, so a multiplication scatters them well enough and nobody can make
//! them collide on purpose. Key and value lie side by side, and a look is one line of memory nearly always.

use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashSet};

use crate::tier::{in_order, intern};

/// Which classes the identities fall into that selectors match. Shared by tiers whose rules use the same selections.
#[derive(Debug)]
pub(crate) struct PeerMap {
    /// Identity and index of `signatures`, at the first free place from that of its hash on. A power of two, never full.
    places: Box<[(u32, u32)]>,
    /// Bits of the hash that are no place.
    shift: u32,
    /// Positions in the list of selections, sorted.
    pub signatures: Vec<Box<[u32]>>,
}

/// No identity: an empty place.
const EMPTY: u32 = u32::MAX;

/// Nearest odd number to 2³² by the golden ratio (Knuth, volume 3, §6.4).
const SCATTER: u32 = 0x9e37_79b9;

impl PeerMap {
    /// From the members of each selection of a list.
    pub(crate) fn new<'a>(members: impl Iterator<Item = &'a HashSet<u32, RandomState>>) -> Self {
        let mut pairs: Vec<(u32, u32)> = Vec::new();
        for (at, members) in (0..).zip(members) {
            pairs.extend(members.iter().map(|identity| (*identity, at)));
        }
        pairs.sort_unstable();
        let of_each = || pairs.chunk_by(|a, b| a.0 == b.0);
        // At most two thirds of the places are taken.
        let bits = (of_each().count() * 3 / 2 + 1).next_power_of_two().trailing_zeros().max(1);
        let mut map =
            Self { places: vec![(EMPTY, 0); 1 << bits].into(), shift: u32::BITS - bits, signatures: Vec::new() };
        let mut signatures: HashMap<Box<[u32]>, u32, RandomState> = HashMap::default();
        let mut signature = Vec::new();
        for of_one in of_each() {
            signature.clear();
            signature.extend(of_one.iter().map(|(_, at)| *at));
            let class = intern(&mut signatures, &signature);
            map.insert(of_one[0].0, class);
        }
        map.signatures = in_order(signatures);
        map
    }

    fn insert(&mut self, identity: u32, class: u32) {
        let mut at = self.place(identity);
        while self.places[at].0 != EMPTY {
            at = self.after(at);
        }
        self.places[at] = (identity, class);
    }

    /// The class of an identity that some selector matches.
    #[inline]
    pub(crate) fn get(&self, identity: u32) -> Option<u32> {
        let mut at = self.place(identity);
        loop {
            match self.places[at] {
                (found, class) if found == identity => return Some(class),
                (EMPTY, _) => return None,
                _ => at = self.after(at),
            }
        }
    }

    #[inline]
    fn place(&self, identity: u32) -> usize {
        (identity.wrapping_mul(SCATTER) >> self.shift) as usize
    }

    #[inline]
    fn after(&self, at: usize) -> usize {
        (at + 1) & (self.places.len() - 1)
    }

    /// Memory, in octets.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&*self.places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_identity_has_the_selections_that_it_is_a_member_of() {
        for count in [0_u32, 1, 2, 3, 100, 10_000] {
            let all: Vec<HashSet<u32, RandomState>> =
                (2..5).map(|step| (0..count).map(|i| i * 7).step_by(step).collect()).collect();
            let map = PeerMap::new(all.iter());
            for identity in 0..count * 7 + 10 {
                let expected: Vec<u32> =
                    (0..).zip(&all).filter(|(_, members)| members.contains(&identity)).map(|(at, _)| at).collect();
                let found = map.get(identity).map(|class| map.signatures[class as usize].to_vec());
                assert_eq!(found.unwrap_or_default(), expected, "{identity} of {count}");
            }
            assert!(map.places.iter().any(|place| place.0 == EMPTY));
        }
    }
}
