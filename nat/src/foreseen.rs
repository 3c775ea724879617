//! At which address of its pool a workload's mappings lie, or will lie when it has none yet: all of them at one (SEMANTICS NA1). Policy is asked
//! about it before a mapping is made.

use std::sync::atomic::Ordering::Relaxed;

use crate::model::{Class, Inside, Outside, family};
use crate::outbound::Tenancy;
use crate::pools::Pools;
use crate::table::Nat;

impl Nat {
    /// The outside address that a connection from `inside` to `remote` would have if it began now: that of its mapping, or of the mapping
    /// that would be made; `None` when there would be none. Nothing is taken and nothing changes: another workload may be given the
    /// last room there before. So what depends on the address is asked again, by the one that [`Nat::outbound`] returns, when that is
    /// another.
    pub fn foreseen(&self, pools: &Pools, inside: &Inside, remote: Outside) -> Option<u128> {
        let (class, of) = (Class::of(inside.proto)?, self.tenancy(pools, inside)?);
        let mapped = self.mapped(&of, &class.inside(inside), class.endpoint(remote));
        mapped.or_else(|| Some(self.registry.address(self.foresee(&of)?)?.address()))
    }

    /// The address of a mapping that serves this remote.
    fn mapped(&self, of: &Tenancy, inside: &Inside, remote: Outside) -> Option<u128> {
        let bucket = self.bucket(inside);
        let _shard = self.lock(bucket);
        let record = self.record(self.find(bucket, inside, remote)?)?;
        self.serves(of, record).then(|| record.outside().address)
    }

    fn foresee(&self, of: &Tenancy) -> Option<u32> {
        self.own_address(of).or_else(|| self.returns(of)).or_else(|| self.choose(of))
    }

    /// The address at which a workload has blocks and gets new ones.
    pub(crate) fn own_address(&self, of: &Tenancy) -> Option<u32> {
        let has_block = |at: u32| of.tenant.leases().any(|lease| self.leased_at(lease) == Some(at));
        of.tenant.address().filter(|at| of.is_open(*at) && has_block(*at))
    }

    fn leased_at(&self, lease: u32) -> Option<u32> {
        self.registry.lease(lease).map(|state| state.address.load(Relaxed))
    }

    /// An address that drains no longer, at which the workload has blocks still.
    pub(crate) fn returns(&self, of: &Tenancy) -> Option<u32> {
        of.tenant.leases().filter_map(|lease| self.leased_at(lease)).find(|at| of.is_open(*at))
    }

    /// An address for a workload that has no blocks: the one that it had before, else the emptier of two, else any with room. Which
    /// two does not depend on when it is asked, so that it can be foreseen.
    pub(crate) fn choose(&self, of: &Tenancy) -> Option<u32> {
        let open = &of.pool.open[family(of.address)];
        let granules = usize::from(of.pool.size / crate::address::GRANULE);
        let room = |at: u32| {
            let address = self.registry.address(at).filter(|address| address.may_fit(granules));
            address.map_or(0, |address| address.free_granules() as usize)
        };
        if let Some(at) = of.tenant.address().filter(|at| of.is_open(*at) && room(*at) >= granules) {
            return Some(at);
        }
        let hash = self.keyed(of.tenant.uid());
        let drawn = |draw: u64| open.get((draw & 0xffff_ffff) as usize % open.len().max(1)).copied();
        let two = [drawn(hash)?, drawn(hash >> 32)?];
        let best = two.into_iter().max_by_key(|at| room(*at)).filter(|at| room(*at) >= granules);
        best.or_else(|| open.iter().copied().find(|at| room(*at) >= granules))
    }
}
