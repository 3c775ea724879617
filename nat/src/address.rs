//! One outside address: which L4 ports are taken, by which mapping, and which granules belong to which lease.

use std::io;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};

use hostweave_switch::shared::Anonymous;

use crate::model::{BLOCK_SIZE_MIN, CLASSES, Class, FIRST_L4};
use crate::record::{load, store};

/// L4 ports of a granule: blocks are made of them.
pub(crate) const GRANULE: u16 = BLOCK_SIZE_MIN;
/// Granules of one address.
pub(crate) const GRANULES: usize = (1 << 16) / GRANULE as usize;
/// Granules that are never given out.
pub(crate) const RESERVED: usize = (FIRST_L4 / GRANULE) as usize;
/// [`Address::failed`] while every size may fit.
const FITS: u32 = u32::MAX;

/// State of one outside address. Memory is taken where ports are used.
pub(crate) struct Address {
    address: [AtomicU64; 2],
    /// By class and L4 port: the first mapping there, plus one.
    slots: Anonymous<AtomicU32>,
    /// By class, a bit per L4 port.
    taken: Anonymous<AtomicU64>,
    /// By granule: the lease that has it, plus one.
    owners: Box<[AtomicU32]>,
    /// Granules that leases have.
    pub(crate) leased: AtomicU32,
    /// Smallest number of granules for which there was no room since the last block was given back.
    failed: AtomicU32,
    /// Second in which it was last said that it is exhausted, plus one, and the biggest user then.
    pub(crate) said: AtomicU32,
    pub(crate) biggest: [AtomicU64; 2],
    /// Second since which no pool has it; 0 while one does.
    pub(crate) gone: AtomicU32,
}

impl Address {
    pub(crate) fn new(address: u128) -> io::Result<Self> {
        let this = Self {
            address: Default::default(),
            slots: Anonymous::new(CLASSES << 16)?,
            taken: Anonymous::new(CLASSES << 10)?,
            owners: (0..GRANULES).map(|_| AtomicU32::new(0)).collect(),
            leased: AtomicU32::new(0),
            failed: AtomicU32::new(FITS),
            said: AtomicU32::new(0),
            biggest: Default::default(),
            gone: AtomicU32::new(0),
        };
        this.rename(address);
        Ok(this)
    }

    /// Becomes another address. Nothing uses it.
    pub(crate) fn rename(&self, address: u128) {
        store(&self.address, address);
    }

    #[inline]
    pub(crate) fn address(&self) -> u128 {
        load(&self.address)
    }

    /// First mapping at an L4 port.
    #[inline]
    pub(crate) fn first(&self, class: Class, l4: u16) -> Option<u32> {
        self.slots[(class as usize) << 16 | usize::from(l4)].load(Acquire).checked_sub(1)
    }

    #[inline]
    pub(crate) fn set_first(&self, class: Class, l4: u16, index: Option<u32>) {
        self.slots[(class as usize) << 16 | usize::from(l4)].store(index.map_or(0, |index| index + 1), Release);
    }

    /// Takes one L4 port, if it is free.
    #[inline]
    pub(crate) fn take(&self, class: Class, l4: u16) -> bool {
        let bit = 1 << (l4 % 64);
        self.word(class, l4 / 64).fetch_or(bit, AcqRel) & bit == 0
    }

    /// Takes the first free L4 port of a block at or after a random one.
    #[inline]
    pub(crate) fn take_any(&self, class: Class, first: u16, size: u16, random: u16) -> Option<u16> {
        let start = random & (size - 1);
        // Nearly always there is one in the word in which it begins.
        let word = self.word(class, (first + start) / 64);
        let free = !word.load(Relaxed) & u64::MAX << (start % 64);
        let bit = free & free.wrapping_neg();
        if free != 0 && word.fetch_or(bit, AcqRel) & bit == 0 {
            return Some((first + start) & !63 | bit.trailing_zeros() as u16);
        }
        self.take_after(class, first, size, start)
    }

    /// The same, however full the block is.
    #[inline(never)]
    fn take_after(&self, class: Class, first: u16, size: u16, start: u16) -> Option<u16> {
        let words = size / 64;
        // The word in which it begins is looked at twice: its end first, its beginning last.
        for step in 0..=words {
            let at = first / 64 + (start / 64 + step) % words;
            let mask = match step {
                0 => u64::MAX << (start % 64),
                step if step == words => !(u64::MAX << (start % 64)),
                _ => u64::MAX,
            };
            let word = self.word(class, at);
            loop {
                let free = !word.load(Relaxed) & mask;
                if free == 0 {
                    break;
                }
                let bit = free & free.wrapping_neg();
                if word.fetch_or(bit, AcqRel) & bit == 0 {
                    return Some(at * 64 + bit.trailing_zeros() as u16);
                }
            }
        }
        None
    }

    /// Gives one L4 port back.
    #[inline]
    pub(crate) fn give_back(&self, class: Class, l4: u16) {
        self.word(class, l4 / 64).fetch_and(!(1 << (l4 % 64)), AcqRel);
    }

    /// L4 ports that are taken.
    pub(crate) fn used(&self, class: Class) -> u32 {
        (0..1024).map(|at| self.word(class, at).load(Relaxed).count_ones()).sum()
    }

    #[inline]
    fn word(&self, class: Class, at: u16) -> &AtomicU64 {
        &self.taken[(class as usize) << 10 | usize::from(at)]
    }

    /// Lease that has an L4 port now.
    #[inline]
    pub(crate) fn lease_of(&self, l4: u16) -> Option<u32> {
        self.owners[usize::from(l4 / GRANULE)].load(Acquire).checked_sub(1)
    }

    /// Leases that there are, one entry per granule.
    pub(crate) fn leases(&self) -> impl Iterator<Item = u32> {
        self.owners.iter().filter_map(|owner| owner.load(Relaxed).checked_sub(1))
    }

    /// Whether there may be room for a block.
    #[inline]
    pub(crate) fn may_fit(&self, granules: usize) -> bool {
        (granules as u32) < self.failed.load(Relaxed)
    }

    /// Granules that nobody has.
    pub(crate) fn free_granules(&self) -> u32 {
        ((GRANULES - RESERVED) as u32).saturating_sub(self.leased.load(Relaxed))
    }

    /// First granule of a free block, at or after a random one. Under the lock of the blocks.
    pub(crate) fn find_room(&self, granules: usize, random: u16) -> Option<usize> {
        let places = GRANULES / granules;
        let start = usize::from(random) % places;
        let fits = |place: &usize| {
            let at = place * granules;
            at >= RESERVED && self.owners[at..at + granules].iter().all(|owner| owner.load(Relaxed) == 0)
        };
        let found = (start..places).chain(0..start).find(fits);
        if found.is_none() {
            self.failed.fetch_min(granules as u32, Relaxed);
        }
        found.map(|place| place * granules)
    }

    /// Whether a block is free and may be given out.
    pub(crate) fn is_free(&self, first: u16, size: u16) -> bool {
        let (at, count) = (usize::from(first / GRANULE), usize::from(size / GRANULE));
        at >= RESERVED
            && at + count <= GRANULES
            && self.owners[at..at + count].iter().all(|owner| owner.load(Relaxed) == 0)
    }

    /// Says who has a block: a lease, or nobody. Under the lock of the blocks.
    pub(crate) fn set_owner(&self, first: u16, size: u16, lease: Option<u32>) {
        let (at, count) = (usize::from(first / GRANULE), usize::from(size / GRANULE));
        for owner in &self.owners[at..at + count] {
            owner.store(lease.map_or(0, |lease| lease + 1), Release);
        }
        if lease.is_some() {
            self.leased.fetch_add(count as u32, Relaxed);
        } else {
            self.leased.fetch_sub(count as u32, Relaxed);
            self.failed.store(FITS, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever is taken and given back, a port is handed out only while it is free, and a block is used up entirely.
        #[test]
        fn every_port_of_a_block_is_handed_out_once(
            log_size in 6u32..=12,
            randoms in proptest::collection::vec(any::<u16>(), 1..40),
        ) {
            let address = Address::new(1).unwrap();
            let size = 1u16 << log_size;
            let first = 4096 + 4096;
            let mut taken = std::collections::BTreeSet::new();
            for i in 0..size {
                let random = randoms[usize::from(i) % randoms.len()].wrapping_add(i.wrapping_mul(31));
                let l4 = address.take_any(Class::Tcp, first, size, random).unwrap();
                prop_assert!(l4 >= first && l4 - first < size);
                prop_assert!(taken.insert(l4));
            }
            prop_assert_eq!(address.take_any(Class::Tcp, first, size, randoms[0]), None);
            prop_assert!(address.take_any(Class::Udp, first, size, randoms[0]).is_some(), "classes have spaces of their own");
            let again = first + randoms[0] % size;
            address.give_back(Class::Tcp, again);
            prop_assert_eq!(address.take_any(Class::Tcp, first, size, randoms[0] / 3), Some(again));
            prop_assert_eq!(address.used(Class::Tcp), u32::from(size));
        }
    }

    #[test]
    fn na34_rooms_are_aligned_disjoint_and_above_the_low_ports() {
        let address = Address::new(1).unwrap();
        let mut lease = 0_u16;
        while let Some(at) = address.find_room(16, lease.wrapping_mul(7919)) {
            assert!(at >= RESERVED && at % 16 == 0);
            let first = at as u16 * GRANULE;
            assert!(address.is_free(first, 1024));
            address.set_owner(first, 1024, Some(u32::from(lease)));
            lease += 1;
        }
        assert_eq!(lease, 63);
        assert!(!address.may_fit(16) && address.may_fit(8));
        address.set_owner(1024, 1024, None);
        assert!(address.may_fit(16));
        assert_eq!(address.find_room(16, 40_000), Some(16));
    }
}
