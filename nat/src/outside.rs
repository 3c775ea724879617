//! The table seen from outside: which mappings have an outside endpoint, and how they leave it.

use std::sync::atomic::Ordering::Relaxed;

use crate::address::Address;
use crate::model::{Class, Outside};
use crate::record::Record;
use crate::table::Nat;

/// What a mapping leaves behind when nobody finds it any more.
pub(crate) struct Left {
    /// Index of the outside address, class and L4 port, if no other mapping is there.
    port: Option<(u32, Class, u16)>,
}

impl Nat {
    /// The mapping without ports of an outside address and a remote. The chain's lock is held.
    pub(crate) fn find_addresses(&self, bucket: usize, proto: u8, outside: u128, remote: u128) -> Option<u32> {
        let records = self.records();
        let mut index = self.address_heads[bucket].load(Relaxed);
        while let Some(record) = records.get(index as usize) {
            let same = record.proto() == proto
                && record.outside().address == outside
                && record.remote().is_some_and(|bound| bound.address == remote);
            if same {
                return Some(index);
            }
            index = record.next_outside.load(Relaxed);
        }
        None
    }

    /// Remembers the remote of a TCP mapping whose L4 port may be shared; false: another mapping there is bound to this remote. The
    /// shard of the mapping is locked.
    pub(crate) fn track(&self, index: u32, record: &Record, remote: Outside) -> bool {
        let _outside = self.lock_outside(record.lease.load(Relaxed) as usize);
        if self.is_taken(record, remote) {
            return false;
        }
        self.note_remote(index, self.remote_mark(remote));
        true
    }

    /// Whether another mapping at the same outside endpoint is bound to a remote. That endpoint is locked.
    pub(crate) fn is_taken(&self, record: &Record, remote: Outside) -> bool {
        let mut next = record.next_outside.load(Relaxed);
        while let Some(other) = self.record(next) {
            if other.remote() == Some(remote) {
                return true;
            }
            next = other.next_outside.load(Relaxed);
        }
        false
    }

    /// From now on nobody finds a mapping by its outside endpoint. Its shard is locked.
    pub(crate) fn leave_outside(&self, index: u32, record: &Record) -> Left {
        let nothing = Left { port: None };
        let lease = record.lease.load(Relaxed);
        let Some(at) = self.registry.lease(lease).map(|state| state.address.load(Relaxed)) else { return nothing };
        let (Some(class), Some(address)) = (Class::of(record.proto()), self.registry.address(at)) else {
            return nothing;
        };
        let outside = record.outside();
        match class {
            Class::Addresses => {
                let Some(remote) = record.remote() else { return nothing };
                let bucket = self.address_bucket(outside.address, remote.address, record.proto());
                let _outside = self.lock_outside(bucket);
                let head = &self.address_heads[bucket];
                if head.load(Relaxed) == index {
                    head.store(record.next_outside.load(Relaxed), Relaxed);
                } else {
                    self.unlink_after(head.load(Relaxed), index, record);
                }
                nothing
            }
            Class::Tcp => {
                let _outside = self.lock_outside(lease as usize);
                let first = address.first(class, outside.l4);
                if first != Some(index) {
                    first.inspect(|first| self.unlink_after(*first, index, record));
                    return nothing;
                }
                let next = record.next_outside.load(Relaxed);
                let next = self.record(next).map(|_| next);
                address.set_first(class, outside.l4, next);
                Left { port: next.is_none().then_some((at, class, outside.l4)) }
            }
            Class::Udp | Class::Icmp => {
                address.set_first(class, outside.l4, None);
                Left { port: Some((at, class, outside.l4)) }
            }
        }
    }

    /// Takes a record out of a chain that begins with another.
    fn unlink_after(&self, first: u32, index: u32, record: &Record) {
        let mut at = self.record(first);
        while let Some(other) = at {
            let next = other.next_outside.load(Relaxed);
            if next == index {
                return other.next_outside.store(record.next_outside.load(Relaxed), Relaxed);
            }
            at = self.record(next);
        }
        debug_assert!(false, "a record is in its chain");
    }

    /// What a mapping left behind is free for the next one.
    pub(crate) fn free_place(&self, left: Left, lease: u32, now: u32) {
        if let Some((at, class, l4)) = left.port {
            if let Some(address) = self.registry.address(at) {
                address.give_back(class, l4);
            }
            if let Some(used) = self.registry.lease(lease).and_then(|state| state.used.get(class as usize)) {
                used.fetch_sub(1, Relaxed);
            }
        }
        self.leave(lease, now);
    }

    /// The workload that has most L4 ports of an address, and how many of it: looks at each granule once, and at the blocks of each
    /// workload about once.
    pub(crate) fn biggest(&self, at: u32, address: &Address) -> (u128, u32) {
        let registry = &self.registry;
        let here = |lease: &u32| registry.lease(*lease).is_some_and(|state| state.address.load(Relaxed) == at);
        let ports = |lease: u32| registry.lease(lease).map_or(0, |state| u32::from(state.ports().1));
        let mut last = None;
        let sizes = address.leases().filter_map(|lease| {
            let workload = registry.workload(registry.lease(lease)?.workload.load(Relaxed))?;
            // Each is counted for the first of its blocks here only.
            let fresh = last != Some(lease) && workload.leases().find(here) == Some(lease);
            last = Some(lease);
            fresh.then(|| (workload.uid(), workload.leases().filter(here).map(ports).sum()))
        });
        sizes.max_by_key(|(_, ports)| *ports).unwrap_or((0, 0))
    }
}
