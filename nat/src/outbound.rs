//! From inside out: the mapping of an inside endpoint, an L4 port for a new one.

use std::sync::atomic::Ordering::Relaxed;

use hostweave_switch::wire::DNS_L4;

use crate::address::Address;
use crate::model::*;
use crate::pools::{Pool, Pools, Served};
use crate::record::{DNS, NewRecord, Record, TRACKED};
use crate::table::{Nat, Shard};
use crate::workload::Workload as Tenant;

/// L4 ports looked at for one to share.
const SHARE_LOOKS: u16 = 64;
/// Mappings on one shared L4 port.
const SHARED_MAX: usize = 64;

/// A question, with what was found out about it so far.
struct Ask<'a> {
    pools: &'a Pools,
    pool: &'a Pool,
    served: Served,
    tenant: &'a Tenant,
    inside: &'a Inside,
    remote: Outside,
    class: Class,
    now: u32,
}

/// A workload behind its pool.
#[derive(Clone, Copy)]
pub(crate) struct Tenancy<'a> {
    pub(crate) pools: &'a Pools,
    pub(crate) pool: &'a Pool,
    pub(crate) served: Served,
    pub(crate) tenant: &'a Tenant,
    /// Its address that wants out.
    pub(crate) address: u128,
}

impl Tenancy<'_> {
    /// Whether new mappings may lie at an address.
    #[inline]
    pub(crate) fn is_open(&self, address: u32) -> bool {
        self.pools.is_open(address, self.served.pool)
    }
}

impl<'a> Ask<'a> {
    fn tenancy(&self) -> Tenancy<'a> {
        let Self { pools, pool, served, tenant, .. } = *self;
        Tenancy { pools, pool, served, tenant, address: self.inside.address }
    }
}

/// What becomes of a mapping that was found.
enum Fate {
    /// It serves this connection too.
    Use,
    /// It must not be used any more.
    Detach,
    /// It stays, but its L4 port is in use towards this remote by another one: this connection needs a mapping of its own.
    Beside,
}

/// An L4 port that was taken.
#[derive(Clone, Copy)]
struct Place {
    address: u128,
    l4: u16,
    lease: u32,
    bound: bool,
}

impl Nat {
    /// The outside endpoint for a new connection from `inside` to `remote`: the mapping of `inside` if it has one, else a new one.
    /// Takes one hold on it. A worker calls it on a flow miss, after policy: one shard is locked, nothing is allocated.
    ///
    /// # Errors
    /// See [`Refused`]; nothing was taken then.
    pub fn outbound(&self, pools: &Pools, inside: &Inside, remote: Outside, now: u32) -> Result<Mapped, Refused> {
        let class = Class::of(inside.proto).ok_or(Refused::Unsupported(inside.proto))?;
        let Tenancy { pool, served, tenant, .. } = self.tenancy(pools, inside).ok_or(Refused::NoPool)?;
        if class != Class::Addresses {
            return self.mapping_of(&Ask { pools, pool, served, tenant, inside, remote, class, now });
        }
        // L4 ports (those of SCTP) do not tell these apart.
        let (own, remote) = (class.inside(inside), class.endpoint(remote));
        let mapped = self.mapping_of(&Ask { pools, pool, served, tenant, inside: &own, remote, class, now });
        mapped.map(|mapped| class.mapped(mapped, inside.l4))
    }

    /// Who an inside endpoint is to its pool; `None` when no pool serves it.
    #[inline(always)]
    pub(crate) fn tenancy<'a>(&'a self, pools: &'a Pools, inside: &Inside) -> Option<Tenancy<'a>> {
        let served = pools.served(inside.port, family(inside.address))?;
        let (pool, tenant) = (pools.pool(served.pool)?, self.registry.workload(served.workload)?);
        // A slot that changed its owner: fail closed.
        let same = tenant.uid() == inside.uid;
        same.then_some(Tenancy { pools, pool, served, tenant, address: inside.address })
    }

    /// One copy, out of line: in two places the compiler would take its parts out of line.
    #[inline(never)]
    fn mapping_of(&self, ask: &Ask) -> Result<Mapped, Refused> {
        let bucket = self.bucket(ask.inside);
        let mut shard = self.lock(bucket);
        let mut beside = false;
        while let Some(index) = self.find(bucket, ask.inside, ask.remote) {
            match self.fate(ask, index) {
                Fate::Use => return Ok(self.use_again(ask, index)),
                Fate::Detach => self.detach(&mut shard, bucket, index, ask.now),
                Fate::Beside => {
                    beside = true;
                    break;
                }
            }
        }
        self.make(ask, &mut shard, bucket, beside)
    }

    /// `inside` has sent to `remote`, an outside endpoint of this NAT whose filter did not let it in: it has its mapping all the
    /// same, and what that endpoint sends now passes ([`Nat::hairpin`]), as it would had the packet gone out into the world (RFC 4787
    /// REQ-9, RFC 5382 REQ-8: two insides that send to each other meet). As long as the mapping lives.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn expect(&self, pools: &Pools, inside: &Inside, remote: Outside, now: u32) -> Result<(), Refused> {
        let mapped = self.outbound(pools, inside, remote, now)?;
        if let Some(record) = self.valid(mapped.mapping) {
            let _shard = self.lock(self.bucket(&record.inside()));
            self.note_remote(mapped.mapping.index, self.remote_mark(remote));
        }
        self.release(mapped.mapping, now, now, End::Closed);
        Ok(())
    }

    fn fate(&self, ask: &Ask, index: u32) -> Fate {
        let Some(record) = self.record(index).filter(|record| self.serves(&ask.tenancy(), record)) else {
            return Fate::Detach;
        };
        if record.has(TRACKED) && !record.is_bound() && !self.track(index, record, ask.remote) {
            return Fate::Beside;
        }
        Fate::Use
    }

    /// Whether connections may begin by a mapping of the workload's address.
    #[inline(always)]
    pub(crate) fn serves(&self, of: &Tenancy, record: &Record) -> bool {
        let Some(state) = self.registry.lease(record.lease.load(Relaxed)) else { return false };
        let address = state.address.load(Relaxed);
        // The inside address went to another port, or its outside address out of use. Of one that drains, what goes on goes on
        // (SEMANTICS NA37), but nothing begins again.
        let held = record.holds.load(Relaxed) > 0;
        let open = of.is_open(address) || held && of.pools.use_at(address).is_some();
        open && record.uid() == of.tenant.uid()
    }

    fn use_again(&self, ask: &Ask, index: u32) -> Mapped {
        let record = &self.records()[index as usize];
        record.holds.store(record.holds.load(Relaxed).saturating_add(1), Relaxed);
        if ask.remote.l4 != DNS_L4 && record.has(DNS) {
            record.set_state(0, DNS);
        }
        self.note_for_filter(ask, index);
        let bound = record.is_bound();
        Mapped { outside: record.outside(), mapping: record.reference(index), bound, new: false }
    }

    #[inline(always)]
    fn note_for_filter(&self, ask: &Ask, index: u32) {
        if ask.pool.filtering == Filtering::AddressDependent && !(ask.pool.overload && ask.class == Class::Tcp) {
            self.note_remote(index, self.remote_mark(Outside { l4: 0, ..ask.remote }));
        }
    }

    /// Makes a mapping. Its shard is locked.
    #[inline(always)]
    fn make(&self, ask: &Ask, shard: &mut Shard, bucket: usize, beside: bool) -> Result<Mapped, Refused> {
        if let Err(refused) = ask.tenant.begin(&self.shared, ask.pool.rate_max, ask.now) {
            return Err(self.turn_away(ask, refused));
        }
        let Some((index, record)) = self.take_record(shard) else {
            ask.tenant.end(&self.shared);
            return Err(self.turn_away(ask, Refused::Full));
        };
        let placed = match ask.class {
            Class::Addresses => self.place_addresses(ask, index, record),
            Class::Tcp if beside => self.place_shared(ask, shard, index, record).ok_or(Refused::PortLimit),
            _ => match self.place(ask, shard, index, record) {
                Err(refused) if ask.pool.overload && ask.class == Class::Tcp => {
                    self.place_shared(ask, shard, index, record).ok_or(refused)
                }
                placed => placed,
            },
        };
        match placed {
            Ok(place) => {
                self.link(bucket, index, record);
                let outside = Outside { address: place.address, l4: place.l4 };
                Ok(Mapped { outside, mapping: record.reference(index), bound: place.bound, new: true })
            }
            Err(refused) => Err(self.refuse(ask, shard, index, refused)),
        }
    }

    /// Counts and tells what has not even got a record.
    #[cold]
    fn turn_away(&self, ask: &Ask, refused: Refused) -> Refused {
        self.refused(ask.pool, &refused);
        if refused == Refused::Full {
            self.say_full(ask.inside.uid, ask.now);
        }
        refused
    }

    /// Counts and tells what is refused for good: whoever shares an L4 port instead was not refused.
    #[cold]
    fn refuse(&self, ask: &Ask, shard: &mut Shard, index: u32, refused: Refused) -> Refused {
        self.refused(ask.pool, &refused);
        self.give_back(shard, index);
        ask.tenant.end(&self.shared);
        match refused {
            Refused::Exhausted { .. } => self.exhausted(ask),
            refused => refused,
        }
    }

    /// Becomes a mapping at a place.
    #[inline(always)]
    fn fill(&self, ask: &Ask, index: u32, record: &Record, place: &Place) {
        let tracked = if ask.pool.overload && ask.class == Class::Tcp { TRACKED } else { 0 };
        let dns = if ask.class == Class::Udp && ask.remote.l4 == DNS_L4 { DNS } else { 0 };
        let new = NewRecord {
            inside: ask.inside,
            outside: Outside { address: place.address, l4: place.l4 },
            remote: place.bound.then_some(ask.remote),
            workload: ask.served.workload,
            lease: place.lease,
        };
        record.fill(&new, tracked | dns, ask.now);
        if tracked != 0 {
            self.note_remote(index, self.remote_mark(ask.remote));
        }
        self.note_for_filter(ask, index);
    }

    /// Takes an L4 port of the workload's blocks, of which it gets another when they are full.
    #[inline(always)]
    fn place(&self, ask: &Ask, shard: &mut Shard, index: u32, record: &Record) -> Result<Place, Refused> {
        loop {
            let (at, had) = (ask.tenant.address(), ask.tenant.count());
            let (mut open, mut own) = (None, 0);
            if let Some(at) = at
                && ask.pools.is_open(at, ask.served.pool)
                && let Some(address) = self.registry.address(at)
            {
                open = Some(at);
                // No closures here: what they borrow would have to lie in memory.
                let taken = match self.preserve(ask, at, address) {
                    None => self.take_port(ask, at, address, shard, had, &mut own),
                    taken => taken,
                };
                if let Some((l4, lease)) = taken {
                    let place = Place { address: address.address(), l4, lease, bound: false };
                    self.fill(ask, index, record, &place);
                    address.set_first(ask.class, l4, Some(index));
                    return Ok(place);
                }
            }
            self.grow(ask, open.filter(|_| own > 0), own, had)?;
        }
    }

    /// The same L4 port as inside, if it lies in a block of the workload and is free. With its lease.
    #[inline(always)]
    fn preserve(&self, ask: &Ask, at: u32, address: &Address) -> Option<(u16, u32)> {
        let l4 = ask.inside.l4;
        let lease = address.lease_of(l4)?;
        let state = self.registry.lease(lease)?;
        // Nearly always it is somebody else's.
        if state.workload.load(Relaxed) != ask.served.workload
            || !self.enter_at(state, lease, ask.served.workload, at, ask.now)
        {
            return None;
        }
        // It may be another block by now.
        let (first, size) = state.ports();
        if l4 & !size.wrapping_sub(1) == first && address.take(ask.class, l4) {
            state.used[ask.class as usize].fetch_add(1, Relaxed);
            return Some((l4, lease));
        }
        self.leave(lease, ask.now);
        None
    }

    /// A random L4 port of a block of the workload at an address, with its lease. `own` is how many blocks it has there.
    #[inline(always)]
    fn take_port(
        &self,
        ask: &Ask,
        at: u32,
        address: &Address,
        shard: &mut Shard,
        had: u32,
        own: &mut u16,
    ) -> Option<(u16, u32)> {
        let class = ask.class as usize;
        let hint = ask.tenant.hint(class);
        // Of few blocks, whichever had room last; it is left when it is full.
        for step in 0..had {
            let place = if hint + step < had { hint + step } else { (hint + step) % had };
            let lease = ask.tenant.lease(place)?;
            let Some(state) = self.registry.lease(lease) else { continue };
            if state.address.load(Relaxed) != at {
                continue;
            }
            *own += 1;
            let is_full = state.used[class].load(Relaxed) >= state.ports().1.into();
            if is_full || !self.enter_at(state, lease, ask.served.workload, at, ask.now) {
                continue;
            }
            let (first, size) = state.ports();
            if let Some(l4) = address.take_any(ask.class, first, size, shard.random.draw()) {
                state.used[class].fetch_add(1, Relaxed);
                ask.tenant.set_hint(class, place);
                return Some((l4, lease));
            }
            self.leave(lease, ask.now);
        }
        None
    }

    /// Gives a workload another block at the address of its others, or its first ones.
    ///
    /// # Errors
    /// It has as many as it may, or there is none.
    #[cold]
    fn grow(&self, ask: &Ask, address: Option<u32>, own: u16, had: u32) -> Result<(), Refused> {
        let (pool, family) = (ask.pool, family(ask.inside.address));
        let granules = usize::from(pool.size / crate::address::GRANULE);
        if own >= *pool.blocks.end() || had >= BLOCKS_MAX.into() {
            return Err(Refused::PortLimit);
        }
        // What was refused and cannot have changed is refused again without the lock.
        let hopeless = match address {
            Some(at) => !self.registry.address(at).is_some_and(|address| address.may_fit(granules)),
            None => pool.exhausted[family].load(Relaxed) == ask.now.wrapping_add(1),
        };
        if !hopeless {
            let mut blocks = self.registry.blocks();
            if ask.tenant.count() != had {
                // Another worker was faster, or a block went back: look again.
                return Ok(());
            }
            if let Some(at) = self.returns(&ask.tenancy()).filter(|_| address.is_none()) {
                ask.tenant.set_address(at);
                return Ok(());
            }
            let chosen = address.or_else(|| self.choose(&ask.tenancy()));
            let wanted = if address.is_some() { 1 } else { *pool.blocks.start() };
            if let Some(at) = chosen {
                let add = |_: &u16| self.add_block(&mut blocks, ask.served.workload, at, pool.size, ask.now);
                if (0..wanted).take_while(add).count() > 0 {
                    ask.tenant.set_address(at);
                    return Ok(());
                }
            }
        }
        if address.is_none() {
            pool.exhausted[family].store(ask.now.wrapping_add(1), Relaxed);
        }
        Err(Refused::Exhausted { biggest: 0 })
    }

    /// Says, at most once a second for an address, that it has no block left and who has most of them (SEMANTICS NA40).
    fn exhausted(&self, ask: &Ask) -> Refused {
        let (pool, family, now) = (ask.pool, family(ask.inside.address), ask.now);
        let any = || pool.open[family].first().copied().or(pool.first[family]);
        let at = self.own_address(&ask.tenancy()).or_else(any);
        let Some((at, address)) = at.and_then(|at| Some((at, self.registry.address(at)?))) else {
            return Refused::Exhausted { biggest: 0 };
        };
        if address.said.swap(now.wrapping_add(1), Relaxed) != now.wrapping_add(1) {
            let (biggest, ports) = self.biggest(at, address);
            crate::record::store(&address.biggest, biggest);
            self.registry.blocks().say(NatEvent::Exhausted {
                uid: ask.inside.uid,
                address: address.address(),
                biggest,
                ports,
                at: now,
            });
        }
        Refused::Exhausted { biggest: crate::record::load(&address.biggest) }
    }

    /// A protocol without ports: the address alone, if nobody else behind it speaks this protocol with this remote.
    #[cold]
    fn place_addresses(&self, ask: &Ask, index: u32, record: &Record) -> Result<Place, Refused> {
        if self.is_crowded(ask.inside) {
            return Err(Refused::PortLimit);
        }
        let (lease, at) = self.any_block(ask)?;
        let Some(address) = self.registry.address(at) else { return Err(Refused::NoPool) };
        let place = Place { address: address.address(), l4: 0, lease, bound: true };
        let bucket = self.address_bucket(place.address, ask.remote.address, ask.inside.proto);
        let _outside = self.lock_outside(bucket);
        if self.find_addresses(bucket, ask.inside.proto, place.address, ask.remote.address).is_some() {
            self.leave(lease, ask.now);
            return Err(Refused::Unsupported(ask.inside.proto));
        }
        self.fill(ask, index, record, &place);
        record.next_outside.store(self.address_heads[bucket].load(Relaxed), Relaxed);
        self.address_heads[bucket].store(index, Relaxed);
        Ok(place)
    }

    /// A block of the workload, entered, and its address.
    fn any_block(&self, ask: &Ask) -> Result<(u32, u32), Refused> {
        loop {
            let address = ask.tenant.address().filter(|at| ask.pools.is_open(*at, ask.served.pool));
            let had = ask.tenant.count();
            if let Some(at) = address {
                let enter = |lease: &u32| self.enter(*lease, ask.served.workload, at, ask.now);
                if let Some(lease) = ask.tenant.leases().find(enter) {
                    return Ok((lease, at));
                }
            }
            self.grow(ask, None, 0, had)?;
        }
    }

    /// An L4 port that is in use, but not towards this remote (SEMANTICS NA17). Only TCP.
    #[cold]
    fn place_shared(&self, ask: &Ask, shard: &mut Shard, index: u32, record: &Record) -> Option<Place> {
        let at = ask.tenant.address().filter(|at| ask.pools.is_open(*at, ask.served.pool))?;
        let address = self.registry.address(at).filter(|_| !self.is_crowded(ask.inside))?;
        let mark = self.remote_mark(ask.remote);
        for lease in ask.tenant.leases() {
            let Some(state) = self.registry.lease(lease) else { continue };
            if !self.enter_at(state, lease, ask.served.workload, at, ask.now) {
                continue;
            }
            let (first, size) = state.ports();
            let start = shard.random.draw();
            let _outside = self.lock_outside(lease as usize);
            for step in 0..size.min(SHARE_LOOKS) {
                let l4 = first + (start.wrapping_add(step) & (size - 1));
                let Some(head) = address.first(ask.class, l4).filter(|head| self.may_share(*head, ask.remote, mark))
                else {
                    continue;
                };
                let place = Place { address: address.address(), l4, lease, bound: true };
                self.fill(ask, index, record, &place);
                let head = &self.records()[head as usize];
                record.next_outside.store(head.next_outside.load(Relaxed), Relaxed);
                head.next_outside.store(index, Relaxed);
                self.counts.overloaded.fetch_add(1, Relaxed);
                return Some(place);
            }
            drop(_outside);
            self.leave(lease, ask.now);
        }
        None
    }

    /// Whether none of the mappings of an L4 port has a connection with this remote, as far as is known for sure.
    fn may_share(&self, head: u32, remote: Outside, mark: u64) -> bool {
        let (mut next, mut count) = (head, 0);
        while let Some(record) = self.record(next) {
            let free = match record.remote() {
                Some(bound) => bound != remote,
                None => record.has(TRACKED) && self.has_remote(next, mark, u64::MAX) == Some(false),
            };
            count += 1;
            if !free || count >= SHARED_MAX {
                return false;
            }
            next = record.next_outside.load(Relaxed);
        }
        true
    }
}
