//! Maglev (Eisenbud et al., NSDI 2016, §3.4): a table of backends in which each has its share, and in which nearly all entries stay
//! when one of them comes or goes. With weights as Envoy, Cilium and Katran have them: a backend takes its turn in as many rounds
//! as its weight is of the greatest.
//!
//! The table is a function of names and weights alone: the same on every host and in every build (SEMANTICS SV8).

use std::sync::{Arc, Weak};

use super::hash;

/// Sizes of tables: primes, so that each permutation visits every entry.
pub const SIZES: [usize; 3] = [4093, 16381, 65537];
/// Entries that a table has for each backend, where a size allows it.
pub const ENTRIES_PER_BACKEND: usize = 400;
/// Backends of one table: what two octets can name, but one value. Those beyond, in the order of their names, get no new
/// connections.
pub const BACKENDS_MAX: usize = FREE as usize;

/// An entry that nobody has taken yet.
const FREE: u16 = u16::MAX;

/// Which backend gets a new connection, by its hash. Clones share the table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Maglev {
    /// Indices of backends. Empty without any.
    entries: Arc<[u16]>,
}

/// A backend while a table is built.
struct Turn {
    /// Where in its permutation it stands.
    at: usize,
    /// The step of its permutation.
    skip: usize,
    weight: u64,
    /// What its weight times the number of the round has to reach.
    due: u64,
}

impl Maglev {
    /// The table of backends with these names and weights, in the order of their names: entries are indices into `backends`.
    /// A weight of zero counts as one.
    pub fn build(backends: &[(&str, u16)]) -> Self {
        debug_assert!(backends.is_sorted_by_key(|(name, _)| *name));
        let backends = backends.get(..BACKENDS_MAX).unwrap_or(backends);
        if backends.is_empty() {
            return Self { entries: Arc::default() };
        }
        let size = size(backends.len());
        let weight = |weight: u16| u64::from(weight.max(1));
        let greatest = backends.iter().map(|backend| weight(backend.1)).max().unwrap_or(1);
        let turn = |&(name, of): &(&str, u16)| {
            let hash = hash::of_name(name);
            let at = (hash >> 32) as usize % size;
            let skip = (hash & 0xffff_ffff) as usize % (size - 1) + 1;
            Turn { at, skip, weight: weight(of), due: 0 }
        };
        let mut turns: Vec<Turn> = backends.iter().map(turn).collect();
        let mut entries = vec![FREE; size];
        let mut left = size;
        for round in 1.. {
            for (index, turn) in (0..).zip(&mut turns) {
                if round * turn.weight < turn.due {
                    continue;
                }
                turn.due += greatest;
                turn.take(&mut entries, index);
                left -= 1;
                if left == 0 {
                    return Self { entries: entries.into() };
                }
            }
        }
        Self { entries: entries.into() }
    }

    /// A handle that does not keep the table.
    pub(crate) fn downgrade(&self) -> Weak<[u16]> {
        Arc::downgrade(&self.entries)
    }

    /// The table, if somebody keeps it.
    pub(crate) fn upgrade(entries: &Weak<[u16]>) -> Option<Self> {
        entries.upgrade().map(|entries| Self { entries })
    }

    /// Index of the backend for a hash; `None` without backends.
    #[inline]
    pub fn pick(&self, hash: u64) -> Option<u16> {
        let at = (u128::from(hash) * self.entries.len() as u128) >> 64;
        self.entries.get(at as usize).copied()
    }

    /// The entries: indices of backends.
    pub fn entries(&self) -> &[u16] {
        &self.entries
    }
}

impl Turn {
    /// Takes the next free entry of its permutation. There must be one.
    fn take(&mut self, entries: &mut [u16], index: u16) {
        loop {
            let at = self.at;
            self.at += self.skip;
            if self.at >= entries.len() {
                self.at -= entries.len();
            }
            if let Some(entry) = entries.get_mut(at)
                && *entry == FREE
            {
                *entry = index;
                return;
            }
        }
    }
}

/// The size of the table of so many backends.
pub fn size(backends: usize) -> usize {
    let wanted = backends.saturating_mul(ENTRIES_PER_BACKEND);
    SIZES.into_iter().find(|size| *size >= wanted).unwrap_or(SIZES[2])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<String> {
        let mut names: Vec<String> = (0..count).map(|i| format!("shop/web-{i}")).collect();
        names.sort();
        names
    }

    fn build(names: &[String], weight: impl Fn(usize) -> u16) -> Maglev {
        let backends: Vec<_> = names.iter().enumerate().map(|(i, name)| (name.as_str(), weight(i))).collect();
        Maglev::build(&backends)
    }

    fn shares(table: &Maglev, backends: usize) -> Vec<usize> {
        let mut shares = vec![0; backends];
        table.entries().iter().for_each(|index| shares[usize::from(*index)] += 1);
        shares
    }

    #[test]
    fn sv8_sizes() {
        let sizes = [1, 10, 11, 40, 41, 163, 164, 1000].map(size);
        assert_eq!(sizes, [4093, 4093, 16381, 16381, 65537, 65537, 65537, 65537]);
        assert_eq!(build(&[], |_| 1).pick(7), None);
    }

    #[test]
    fn sv8_each_of_a_hundred_has_its_share_within_one_percent() {
        let names = names(100);
        for weight in [|_| 1, |i: usize| 100 + (i * 37 % 900) as u16] {
            let table = build(&names, weight);
            let total: usize = (0..100).map(|i| usize::from(weight(i))).sum();
            for (i, share) in shares(&table, 100).into_iter().enumerate() {
                let right = (table.entries().len() * usize::from(weight(i))) as f64 / total as f64;
                assert!((share as f64 / right - 1.0).abs() < 0.01, "{i}: {share} entries instead of {right}");
            }
        }
    }

    #[test]
    fn sv8_whoever_has_little_weight_has_an_entry() {
        let shares = shares(&build(&names(50), |i| if i == 7 { 1 } else { 1000 }), 50);
        assert!((1..=2).contains(&shares[7]), "{}", shares[7]);
    }

    /// Of the entries that the one who leaves did not have, so many go to another backend.
    fn moved(names: &[String], weight: impl Fn(usize) -> u16, gone: usize) -> f64 {
        let before = build(names, &weight);
        let mut rest = names.to_vec();
        rest.remove(gone);
        let after = build(&rest, |i| weight(if i < gone { i } else { i + 1 }));
        assert_eq!(before.entries().len(), after.entries().len());
        let others = before.entries().iter().zip(after.entries()).filter(|(was, _)| usize::from(**was) != gone);
        let (all, moved) = others.fold((0, 0), |(all, moved), (was, is)| {
            (all + 1, moved + usize::from(names[usize::from(*was)] != rest[usize::from(*is)]))
        });
        f64::from(all).recip() * moved as f64
    }

    #[test]
    fn sv8_one_of_a_hundred_that_leaves_takes_its_own_entries_with_it() {
        let names = names(100);
        for gone in [0, 31, 99] {
            let share = moved(&names, |_| 1, gone);
            assert!(share <= 0.02, "{gone}: {share}");
            let share = moved(&names, |i| if i == 31 { 1000 } else { 100 + (i * 37 % 900) as u16 }, gone);
            assert!(share <= 0.02, "{gone}, with weights: {share}");
        }
    }

    /// What every other host and build computes: it never changes.
    #[test]
    fn sv8_golden() {
        let fold = |table: &Maglev| {
            let fold = |hash: u64, entry: &u16| (hash ^ u64::from(*entry)).wrapping_mul(0x0100_0000_01b3);
            table.entries().iter().fold(0xcbf2_9ce4_8422_2325, fold)
        };
        let few = build(&names(3), |_| 1);
        assert_eq!(few.entries()[..12], [2, 2, 0, 0, 2, 1, 1, 0, 0, 2, 0, 2]);
        assert_eq!(fold(&few), 0x9352_aa15_2196_88f7);
        assert_eq!(fold(&build(&names(100), |i| 1 + i as u16)), 0x11b1_6d09_8e0c_01fb);
    }

    #[test]
    fn picks_use_the_whole_table() {
        let table = build(&names(2), |_| 1);
        assert_eq!(table.pick(0), table.entries().first().copied());
        assert_eq!(table.pick(u64::MAX), table.entries().last().copied());
    }
}
