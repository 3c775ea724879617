//! A map from disjoint intervals to values: built once, looked up often.
//!
//! A static search tree over the sorted starts: each level holds every [`FANOUT`]-th key of the one below, so that a lookup
//! reads one line a level for 32-bit keys (five lines at 100,000 intervals, the upper ones always in the cache) instead of
//! the seventeen of a binary search.

/// Keys compared a level: one cache line of 32-bit keys.
const FANOUT: usize = 16;
/// More than enough for as many keys as fit into memory: 16^9.
const LEVELS_MAX: usize = 9;

/// Values of intervals that begin at sorted keys and end where the next begins.
#[derive(Debug)]
pub(crate) struct Intervals<K, V> {
    /// All levels, the lowest (every start) first.
    nodes: Box<[[K; FANOUT]]>,
    /// Where each level begins in `nodes`.
    offsets: [u32; LEVELS_MAX],
    levels: usize,
    values: Box<[V]>,
}

/// What can be searched: the highest key fills up the last node of a level.
pub(crate) trait Key: Copy + Ord {
    const MAX: Self;
}

impl Key for u32 {
    const MAX: Self = u32::MAX;
}

impl Key for u128 {
    const MAX: Self = u128::MAX;
}

impl<K: Key, V: Copy + PartialEq> Intervals<K, V> {
    /// `entries`: (start, value), sorted by start, without duplicates of it. Neighbours with one value become one.
    pub(crate) fn new(entries: impl IntoIterator<Item = (K, V)>) -> Self {
        let (mut starts, mut values): (Vec<K>, Vec<V>) = (Vec::new(), Vec::new());
        for (start, value) in entries {
            if values.last() != Some(&value) {
                starts.push(start);
                values.push(value);
            }
        }
        let (mut nodes, mut offsets, mut levels) = (Vec::new(), [0; LEVELS_MAX], 0);
        while levels < LEVELS_MAX {
            offsets[levels] = to_u32(nodes.len());
            levels += 1;
            nodes.extend(starts.chunks(FANOUT).map(|keys| {
                let mut node = [K::MAX; FANOUT];
                node[..keys.len()].copy_from_slice(keys);
                node
            }));
            if starts.len() <= FANOUT {
                break;
            }
            starts = starts.into_iter().step_by(FANOUT).collect();
        }
        Self { nodes: nodes.into(), offsets, levels, values: values.into() }
    }

    /// Value of the interval that `key` lies in; `None` before the first.
    #[inline]
    pub(crate) fn get(&self, key: K) -> Option<V> {
        let mut at = 0;
        for level in (0..self.levels).rev() {
            let node = self.nodes.get(self.offsets[level] as usize + at)?;
            let below = below(node, key);
            // Only the top level can have no key that is low enough.
            at = at * FANOUT + below.checked_sub(1)?;
            if key == K::MAX {
                // What fills up the node was counted too.
                at = at.min(self.last(level));
            }
        }
        self.values.get(at).copied()
    }

    /// Index of the last key of a level.
    fn last(&self, level: usize) -> usize {
        (self.values.len() - 1) / FANOUT.pow(u32::try_from(level).unwrap_or(0))
    }

    /// Number of intervals.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    /// Memory, in octets.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&*self.nodes) + size_of_val(&*self.values)
    }
}

/// How many keys of a node are at or below `key`: a binary search without a branch that could be mispredicted.
#[inline]
fn below<K: Key>(node: &[K; FANOUT], key: K) -> usize {
    let mut count = 0;
    for step in [8, 4, 2, 1] {
        count += if node[count + step - 1] <= key { step } else { 0 };
    }
    count + usize::from(node[count] <= key)
}

const _: () = assert!(FANOUT == 16, "the steps of `below` are those of sixteen keys");

fn to_u32(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_answers_as_a_linear_search_does() {
        for count in [0_u32, 1, 2, 15, 16, 17, 255, 256, 257, 4095, 4096, 4097, 70_000] {
            let intervals = Intervals::new((0..count).map(|i| (10 + i * 3, i)));
            assert_eq!(intervals.len(), count as usize);
            assert_eq!(intervals.get(9), None, "before the first of {count}");
            for key in (10..10 + count * 3).step_by(if count > 1000 { 7 } else { 1 }) {
                assert_eq!(intervals.get(key), Some((key - 10) / 3), "{key} of {count}");
            }
            assert_eq!(intervals.get(u32::MAX), count.checked_sub(1), "after the last of {count}");
            assert_eq!(intervals.get(u32::MAX - 1), count.checked_sub(1), "after the last of {count}");
        }
    }

    #[test]
    fn neighbours_with_one_value_become_one() {
        let intervals = Intervals::new([(0_u32, 1), (5, 1), (9, 2), (12, 2), (20, 1)]);
        assert_eq!(intervals.len(), 3);
        assert_eq!([0, 8, 9, 19, 20].map(|key| intervals.get(key)), [1, 1, 2, 2, 1].map(Some));
    }
}
