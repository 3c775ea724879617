//! From outside in: who is behind an outside endpoint, and may this remote send to it. Holds, and how they end.

use std::sync::MutexGuard;
use std::sync::atomic::Ordering::Relaxed;

use crate::model::*;
use crate::pools::{Pool, Pools, Use};
use crate::record::{DNS, RESTORED, Record, TIMED, TRACKED};
use crate::table::{Nat, Shard};

/// Compares the address of a remote only ([`Nat::remote_mark`]).
const ADDRESS: u64 = !0xffff;

/// A packet for an outside endpoint that belongs to no connection.
#[derive(Clone, Copy)]
pub struct Arrival<'a> {
    /// The pools of now.
    pub pools: &'a Pools,
    /// IP protocol.
    pub proto: u8,
    /// The outside endpoint.
    pub to: Outside,
    /// Who sends, as the outside sees it.
    pub from: Outside,
    /// Seconds of the monotonic clock.
    pub now: u32,
    /// Whether it comes from inside.
    pub hairpin: bool,
}

/// A mapping that takes a packet. Its shard stays locked as long as this lives.
struct Found<'a> {
    index: u32,
    record: &'a Record,
    /// Where the packet goes.
    inside: Inside,
    _shard: MutexGuard<'a, Shard>,
}

impl Found<'_> {
    /// Whether its remotes are noted, so that others may have its L4 port towards those that are not.
    fn is_tracked(&self) -> bool {
        self.record.has(TRACKED) && !self.record.is_bound()
    }
}

impl Nat {
    /// Who is behind an outside endpoint, for a packet from outside that belongs to no connection. The filter of the pool is
    /// applied (SEMANTICS NA6): with address-and-port-dependent filtering nothing that has no connection passes. Takes one hold.
    ///
    /// # Errors
    /// See [`Unmapped`].
    pub fn inbound(&self, pools: &Pools, proto: u8, to: Outside, from: Outside, now: u32) -> Result<Mapping, Unmapped> {
        self.arrives(&Arrival { pools, proto, to, from, now, hairpin: false })
    }

    /// The same for a packet from inside (RFC 4787 REQ-9), whose sender's own outside endpoint is `from`. Here the filter also
    /// knows whom the inside has sent to without reaching them ([`Nat::expect`]).
    ///
    /// # Errors
    /// See [`Unmapped`].
    pub fn hairpin(&self, pools: &Pools, proto: u8, to: Outside, from: Outside, now: u32) -> Result<Mapping, Unmapped> {
        self.arrives(&Arrival { pools, proto, to, from, now, hairpin: true })
    }

    /// What [`Nat::inbound`], or [`Nat::hairpin`], would find, for those who only ask: nothing is held, noted or counted.
    ///
    /// # Errors
    /// See [`Unmapped`].
    pub fn peek(&self, arrival: &Arrival<'_>) -> Result<Inside, Unmapped> {
        let found = self.let_in(arrival)?;
        if found.is_tracked() {
            let _outside = self.lock_outside(found.record.lease.load(Relaxed) as usize);
            if self.is_taken(found.record, arrival.from) {
                return Err(Unmapped::NoMapping);
            }
        }
        Ok(found.inside)
    }

    fn arrives(&self, arrival: &Arrival<'_>) -> Result<Mapping, Unmapped> {
        let found = self.let_in(arrival).inspect_err(|unmapped| {
            if *unmapped == Unmapped::Filtered {
                self.counts.filtered.fetch_add(1, Relaxed);
            }
        })?;
        let Found { index, record, inside, .. } = found;
        if found.is_tracked() && !self.track(index, record, arrival.from) {
            return Err(Unmapped::NoMapping);
        }
        record.holds.store(record.holds.load(Relaxed) + 1, Relaxed);
        record.count_unasked(1);
        Ok(Mapping { inside, mapping: record.reference(index) })
    }

    /// The mapping that takes a packet, if there is one and its filter lets the packet in. Changes nothing.
    fn let_in(&self, arrival: &Arrival<'_>) -> Result<Found<'_>, Unmapped> {
        let &Arrival { pools, proto, to, from, now, hairpin } = arrival;
        let class = Class::of(proto).ok_or(Unmapped::NoMapping)?;
        let (at, used) = pools.use_of(to.address).ok_or(Unmapped::NoMapping)?;
        let index = self.at_outside(at, class, proto, to, from).ok_or(Unmapped::NoMapping)?;
        let record = self.record(index).ok_or(Unmapped::NoMapping)?;
        let inside = record.inside();
        let shard = self.lock(self.bucket(&inside));
        // It may have ended, and its record be another's, until the lock was ours.
        let same = record.is_valid() && record.inside() == inside && record.proto() == proto;
        if !same || record.outside() != class.endpoint(to) {
            return Err(Unmapped::NoMapping);
        }
        let port = self.port_of(record).ok_or(Unmapped::NoMapping)?;
        // The L4 port of a sender without a mapping is not known yet, and zero.
        let expected =
            hairpin && from.l4 != 0 && self.has_remote(index, self.remote_mark(from), u64::MAX) == Some(true);
        if !expected {
            self.filter(pools, index, record, used, from)?;
        }
        // Its time may be over although nobody has ended it yet, or others that were let in hold it: they do not keep it open (RFC 7857 §7).
        let over = used.draining || record.until.load(Relaxed) <= now;
        if record.holds.load(Relaxed) <= record.unasked() && over || record.holds_too_many() {
            return Err(Unmapped::NoMapping);
        }
        let l4 = if class == Class::Addresses { to.l4 } else { inside.l4 };
        Ok(Found { index, record, inside: Inside { port, l4, ..inside }, _shard: shard })
    }

    /// The mapping at an outside endpoint: of several, the one that is bound to the remote. What is found may be gone already.
    fn at_outside(&self, at: u32, class: Class, proto: u8, to: Outside, from: Outside) -> Option<u32> {
        if class == Class::Addresses {
            let bucket = self.address_bucket(to.address, from.address, proto);
            let _outside = self.lock_outside(bucket);
            return self.find_addresses(bucket, proto, to.address, from.address);
        }
        let address = self.registry.address(at)?;
        let first = address.first(class, to.l4)?;
        let record = self.record(first)?;
        if class != Class::Tcp || !record.is_bound() && self.record(record.next_outside.load(Relaxed)).is_none() {
            return Some(first);
        }
        let lease = address.lease_of(to.l4)?;
        let _outside = self.lock_outside(lease as usize);
        let (mut next, mut found) = (address.first(class, to.l4)?, None);
        while let Some(record) = self.record(next) {
            match record.remote() {
                None => found = Some(next),
                Some(bound) if bound == from => return Some(next),
                Some(_) => {}
            }
            next = record.next_outside.load(Relaxed);
        }
        found
    }

    fn filter(&self, pools: &Pools, index: u32, record: &Record, used: Use, from: Outside) -> Result<(), Unmapped> {
        let filtering = pools.pool(used.pool).map(|pool| pool.filtering).unwrap_or_default();
        let passes = match filtering {
            // What is bound to a remote is of no use to others.
            Filtering::EndpointIndependent | Filtering::AddressDependent if record.is_bound() => {
                record.remote().is_some_and(|bound| bound.address == from.address)
            }
            Filtering::EndpointIndependent => true,
            Filtering::AddressDependent => self.has_remote(index, self.remote_mark(from), ADDRESS) == Some(true),
            Filtering::AddressAndPortDependent => false,
        };
        if passes { Ok(()) } else { Err(Unmapped::Filtered) }
    }

    /// Slot of the port behind a mapping; `None` when no pool serves it any more.
    pub(crate) fn port_of(&self, record: &Record) -> Option<u32> {
        let workload = self.registry.workload(record.workload.load(Relaxed))?;
        let port = workload.port.load(Relaxed);
        (port != NO_PORT && workload.uid() == record.uid()).then_some(port)
    }

    /// The outside endpoint that `inside` has now, without making or holding one: for ICMP errors that it sends (RFC 5508 REQ-5)
    /// and for lists. Of mappings that are bound to a remote any.
    pub fn outside_of(&self, inside: &Inside) -> Option<Outside> {
        let class = Class::of(inside.proto)?;
        let endpoint = class.inside(inside);
        let bucket = self.bucket(&endpoint);
        let _shard = self.lock(bucket);
        let index = self.find_any(bucket, &endpoint)?;
        let record = self.record(index)?;
        let outside = record.outside();
        let l4 = if class == Class::Addresses { inside.l4 } else { outside.l4 };
        (record.uid() == inside.uid).then_some(Outside { l4, ..outside })
    }

    /// A connection that the inside began has ended and gives its hold back. `seen` is the second of its last packet, from which the timer counts.
    pub fn release(&self, mapping: MappingRef, seen: u32, now: u32, how: End) {
        // What was refused is no traffic: it makes nothing live longer (RFC 4787 REQ-6).
        self.give_back_hold(mapping, Some(seen).filter(|_| how != End::Refused), now, how, false);
    }

    /// The same of one that was let in ([`Nat::inbound`], [`Nat::hairpin`]). `heard` is the second of the last packet that the inside sent on it, from
    /// which the timer counts: what others send prolongs nothing (RFC 7857 §7).
    pub fn release_unasked(&self, mapping: MappingRef, heard: Option<u32>, now: u32, how: End) {
        self.give_back_hold(mapping, heard.filter(|_| how != End::Refused), now, how, true);
    }

    /// The inside has sent on a connection that was let in, at the second `heard` (RFC 4787 REQ-6): more may be let in for as long as a mapping lives.
    pub fn refresh(&self, mapping: MappingRef, heard: u32) {
        let Some(record) = self.valid(mapping) else { return };
        let _shard = self.lock(self.bucket(&record.inside()));
        if self.valid(mapping).is_some() {
            // Whoever it answers is no DNS server.
            record.set_state(0, DNS);
            let until = heard.saturating_add(self.timer(record, End::Closed));
            record.until.store(until.max(record.until.load(Relaxed)), Relaxed);
        }
    }

    fn give_back_hold(&self, mapping: MappingRef, seen: Option<u32>, now: u32, how: End, unasked: bool) {
        let Some(record) = self.valid(mapping) else { return };
        let bucket = self.bucket(&record.inside());
        let mut shard = self.lock(bucket);
        if self.valid(mapping).is_none() {
            return;
        }
        let holds = record.holds.load(Relaxed).saturating_sub(1);
        record.holds.store(holds, Relaxed);
        if unasked {
            record.count_unasked(-1);
        }
        let fresh = record.until.load(Relaxed) == 0;
        if let Some(seen) = seen {
            let until = seen.saturating_add(self.timer(record, how));
            record.until.store(until.max(record.until.load(Relaxed)).max(1), Relaxed);
        }
        if holds > 0 {
            return;
        }
        if seen.is_none() && fresh {
            self.free(&mut shard, bucket, mapping.index, now);
        } else if !record.has(TIMED) {
            self.set_timer(&mut shard, mapping.index);
        }
    }

    /// Whether [`Nat::hold`] would take hold, for those who need two holds or none.
    pub fn may_hold(
        &self,
        pools: &Pools,
        mapping: MappingRef,
        inside: &Inside,
        outside: Outside,
        remote: Outside,
    ) -> bool {
        let Some(record) = self.valid(mapping) else { return false };
        let _shard = self.lock(self.bucket(&record.inside()));
        self.held_by(pools, mapping, inside, outside, remote).is_some()
    }

    /// A mapping, its pool, and how the mapping writes the remote, if it is what a connection of an earlier run held. Its shard is locked.
    fn held_by<'a>(
        &'a self,
        pools: &'a Pools,
        mapping: MappingRef,
        inside: &Inside,
        outside: Outside,
        remote: Outside,
    ) -> Option<(&'a Record, &'a Pool, Outside)> {
        let class = Class::of(inside.proto)?;
        let (inside, outside, remote) = (&class.inside(inside), class.endpoint(outside), class.endpoint(remote));
        let record = self.valid(mapping)?;
        let right = mapping.index < self.fresh()
            && record.is_of(inside)
            && record.uid() == inside.uid
            && record.outside() == outside
            && record.remote().is_none_or(|bound| bound == remote)
            && self.port_of(record) == Some(inside.port)
            && !record.holds_too_many();
        let (_, used) = pools.use_of(outside.address).filter(|_| right)?;
        Some((record, pools.pool(used.pool)?, remote))
    }

    /// Takes a hold for a connection of an earlier run, whose mapping is to be this one; `unasked`: one that was let in. False: it is not, forget the
    /// connection.
    pub fn hold(
        &self,
        pools: &Pools,
        mapping: MappingRef,
        inside: &Inside,
        outside: Outside,
        remote: Outside,
        unasked: bool,
    ) -> bool {
        let Some(record) = self.valid(mapping) else { return false };
        let mut shard = self.lock(self.bucket(&record.inside()));
        let Some((record, pool, remote)) = self.held_by(pools, mapping, inside, outside, remote) else { return false };
        if pool.filtering == Filtering::AddressDependent || pool.overload {
            let l4 = if record.has(TRACKED) { remote.l4 } else { 0 };
            let _outside = self.lock_outside(record.lease.load(Relaxed) as usize);
            self.note_remote(mapping.index, self.remote_mark(Outside { l4, ..remote }));
        }
        if record.has(RESTORED) {
            // Its timer is not that of a connection: it must not be what the next one is measured by.
            if record.has(TIMED) {
                shard.wheel.remove(self.records(), mapping.index);
            }
            record.set_state(0, RESTORED | TIMED);
            record.until.store(0, Relaxed);
        }
        record.holds.store(record.holds.load(Relaxed) + 1, Relaxed);
        record.count_unasked(i32::from(unasked));
        true
    }

    /// A mapping's values, if it is still there.
    pub fn get(&self, mapping: MappingRef) -> Option<Entry> {
        self.valid(mapping).and_then(|record| self.entry_of(mapping.index, record))
    }

    pub(crate) fn entry_of(&self, index: u32, record: &Record) -> Option<Entry> {
        let mut entry = record.entry(index)?;
        entry.inside.port = self.port_of(record).unwrap_or(NO_PORT);
        Some(entry)
    }

    pub(crate) fn valid(&self, mapping: MappingRef) -> Option<&Record> {
        let record = self.record(mapping.index)?;
        (record.generation() == mapping.generation && record.is_valid()).then_some(record)
    }
}
