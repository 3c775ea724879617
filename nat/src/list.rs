//! What people ask: `nat list`, `nat stats`, `nat lookup`.

use std::sync::atomic::Ordering::Relaxed;

use crate::model::*;
use crate::table::Nat;

impl Nat {
    /// Every mapping, as it is when its turn comes.
    pub fn entries(&self) -> impl Iterator<Item = Entry> {
        let used = self.fresh().min(self.capacity());
        (0..used).zip(self.records()).filter_map(|(index, record)| self.entry_of(index, record))
    }

    /// Who has an outside L4 port now, or had it at a second of the monotonic clock (SEMANTICS NA32). The past reaches back as
    /// far as leases are kept: as many as the host may have blocks, the oldest go first.
    pub fn lookup(&self, address: u128, l4: u16, at: Option<u32>) -> Option<Lease> {
        let current = self.current(address, l4);
        let Some(at) = at else { return current };
        if let Some(lease) = current.filter(|lease| lease.since <= at) {
            return Some(lease);
        }
        let right = |lease: &Lease| {
            lease.block.address == address
                && lease.block.first <= l4
                && l4 - lease.block.first < lease.block.size
                && lease.since <= at
                && lease.until.is_some_and(|until| at < until)
        };
        self.history().find(right)
    }

    fn current(&self, address: u128, l4: u16) -> Option<Lease> {
        let blocks = self.registry.blocks();
        let at = *blocks.by_address.get(&address)?;
        let lease = self.registry.address(at)?.lease_of(l4)?;
        let state = self.registry.lease(lease)?;
        let record = self.lease_records().get(lease as usize)?;
        Some(Lease { mappings: state.users(), ..record.lease()? })
    }

    /// Leases that are in force.
    pub fn leases(&self) -> impl Iterator<Item = Lease> {
        self.history().filter(|lease| lease.until.is_none())
    }

    /// Leases in force and leases that have ended, in no order.
    pub fn history(&self) -> impl Iterator<Item = Lease> {
        let fresh = self.registry.blocks().fresh as usize;
        let records = self.lease_records().iter().take(fresh).enumerate();
        records.filter_map(|(index, record)| {
            let mut lease = record.lease()?;
            // Written anew while it was read: it is neither the one nor the other.
            if record.lease() != Some(lease) {
                return None;
            }
            if lease.until.is_none() {
                lease.mappings = self.registry.lease(index as u32)?.users();
            }
            Some(lease)
        })
    }

    /// Numbers of the whole.
    pub fn stats(&self) -> Stats {
        let (blocks, events_lost) = self.block_counts();
        let counts = &self.counts;
        Stats {
            mappings: counts.mappings.load(Relaxed),
            capacity: self.capacity().into(),
            blocks,
            refused: counts.refused.counts(),
            overloaded: counts.overloaded.load(Relaxed),
            filtered: counts.filtered.load(Relaxed),
            events_lost,
        }
    }

    /// Numbers of each outside address that a pool has, or that still has blocks.
    pub fn addresses(&self) -> impl Iterator<Item = AddressStats> {
        use crate::address::{GRANULE, GRANULES, RESERVED};
        let there = self
            .registry
            .addresses()
            .filter(|(_, address)| address.gone.load(Relaxed) == 0 || address.leased.load(Relaxed) > 0);
        there.map(|(_, address)| AddressStats {
            address: address.address(),
            leased: address.leased.load(Relaxed) * u32::from(GRANULE),
            total: (GRANULES - RESERVED) as u32 * u32::from(GRANULE),
            used: [Class::Udp, Class::Tcp, Class::Icmp].map(|class| address.used(class)),
        })
    }
}
