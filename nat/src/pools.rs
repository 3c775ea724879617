//! Pools, compiled: which pool serves a port, and how its addresses behave. Immutable, published with the plane.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use hostweave_switch::limits::PORTS_MAX;
use hostweave_switch::tables::PortId;

use crate::model::*;
use crate::refusals::Refusals;
use crate::table::Nat;

/// No pool.
const NONE: u32 = u32::MAX;

/// Pools as workers see them. The empty one serves nobody.
#[derive(Default)]
pub struct Pools {
    pools: Box<[Pool]>,
    /// By slot of the port and family.
    served: Box<[[Served; 2]]>,
    /// By index of the outside address in the NAT.
    uses: Box<[Use]>,
    by_address: HashMap<u128, u32, RandomState>,
}

/// One pool.
pub(crate) struct Pool {
    name: String,
    /// L4 ports per block.
    pub(crate) size: u16,
    /// Blocks that a workload gets at once, and at most.
    pub(crate) blocks: RangeInclusive<u16>,
    pub(crate) filtering: Filtering,
    pub(crate) overload: bool,
    /// New ones in a second.
    pub(crate) rate_max: Option<u32>,
    /// Mappings that were refused, by [`Refusals`]. The pool of that name after a change goes on counting.
    pub(crate) refused: Arc<Refusals>,
    /// By family: its first address, even if that drains.
    pub(crate) first: [Option<u32>; 2],
    /// By family: addresses that take new mappings.
    pub(crate) open: [Box<[u32]>; 2],
    /// By family: second in which no address had room for a block, plus one.
    pub(crate) exhausted: [AtomicU32; 2],
}

/// Who serves a port.
#[derive(Clone, Copy)]
pub(crate) struct Served {
    /// Index of the pool.
    pub(crate) pool: u32,
    /// Index of the workload in the NAT.
    pub(crate) workload: u32,
}

/// What an outside address is used for.
#[derive(Clone, Copy)]
pub(crate) struct Use {
    /// Index of the pool.
    pub(crate) pool: u32,
    /// It takes no new mappings.
    pub(crate) draining: bool,
}

impl Pools {
    /// Compiles `specs`. `nat` learns which addresses and workloads there are; no mapping goes away by this.
    ///
    /// # Errors
    /// See [`PoolError`].
    pub fn compile(nat: &Nat, specs: &[PoolSpec], now: u32) -> Result<Self, PoolError> {
        let workload = |workload: &Workload, family, spec: &PoolSpec| nat.register_workload(workload, family, spec);
        let this = Self::build(specs, |address| register(nat, address), |name| nat.refusals_of(name), workload)?;
        nat.retire(&this.by_address, &this.served, now);
        nat.share_out();
        nat.keep_refusals(specs);
        Ok(this)
    }

    /// Does what can fail of [`Pools::compile`], before it is known which ports there will be: `nat` has room for the addresses afterwards, and
    /// is else as it was.
    ///
    /// # Errors
    /// See [`PoolError`].
    pub fn prepare(nat: &Nat, specs: &[PoolSpec]) -> Result<(), PoolError> {
        check(specs)?;
        specs.iter().flat_map(|spec| &spec.addresses).try_for_each(|address| register(nat, *address).map(drop))
    }

    /// What [`Pools::compile`] would make of `specs`, for those who only ask: `nat` stays as it is. Nobody has mappings at addresses
    /// that it does not know.
    ///
    /// # Errors
    /// See [`PoolError`].
    pub fn draft(nat: Option<&Nat>, specs: &[PoolSpec]) -> Result<Self, PoolError> {
        let address = |address| Ok(nat.and_then(|nat| nat.known_address(mapped(address))));
        let workload = |workload: &Workload, family, _: &PoolSpec| {
            Some(nat.and_then(|nat| nat.known_workload(workload.uid, family)).unwrap_or(NONE))
        };
        Self::build(specs, address, |_| Arc::default(), workload)
    }

    fn build(
        specs: &[PoolSpec],
        index_of: impl Fn(IpAddr) -> Result<Option<u32>, PoolError>,
        refusals: impl Fn(&str) -> Arc<Refusals>,
        workload: impl Fn(&Workload, usize, &PoolSpec) -> Option<u32>,
    ) -> Result<Self, PoolError> {
        check(specs)?;
        let mut specs: Vec<&PoolSpec> = specs.iter().collect();
        specs.sort_by(|a, b| a.name.cmp(&b.name));
        let mut this = Self::default();
        let (mut pools, mut uses) = (Vec::new(), Vec::new());
        for (index, spec) in (0..).zip(&specs) {
            let (mut open, mut first) = ([Vec::new(), Vec::new()], [None, None]);
            for &address in &spec.addresses {
                let key = mapped(address);
                let Some(at) = index_of(address)? else { continue };
                let draining = spec.draining.contains(&address);
                if uses.len() <= at as usize {
                    uses.resize(at as usize + 1, Use { pool: NONE, draining: false });
                }
                uses[at as usize] = Use { pool: index, draining };
                this.by_address.insert(key, at);
                first[family(key)].get_or_insert(at);
                if !draining {
                    open[family(key)].push(at);
                }
            }
            pools.push(Pool {
                name: spec.name.clone(),
                size: spec.block_size,
                blocks: spec.blocks.clone(),
                filtering: spec.filtering,
                overload: spec.overload,
                rate_max: spec.limits.rate,
                refused: refusals(&spec.name),
                first,
                open: open.map(Vec::into_boxed_slice),
                exhausted: Default::default(),
            });
        }
        let served = served(&specs, workload)?;
        (this.pools, this.uses, this.served) = (pools.into(), uses.into(), served.into());
        Ok(this)
    }

    /// Whether a pool serves a port with an address of a family ([`V4`], [`V6`]).
    #[inline]
    pub fn serves(&self, port: PortId, family: usize) -> bool {
        self.served(port.0, family).is_some()
    }

    /// Name of the pool that an outside address belongs to.
    pub fn pool_of(&self, address: u128) -> Option<&str> {
        let (_, used) = self.use_of(address)?;
        Some(&self.pool(used.pool)?.name)
    }

    /// Who serves a port.
    #[inline]
    pub(crate) fn served(&self, port: u32, family: usize) -> Option<Served> {
        let served = self.served.get(port as usize)?[family & 1];
        (served.pool != NONE).then_some(served)
    }

    #[inline]
    pub(crate) fn pool(&self, index: u32) -> Option<&Pool> {
        self.pools.get(index as usize)
    }

    /// What an outside address is used for, by its index.
    #[inline]
    pub(crate) fn use_at(&self, address: u32) -> Option<Use> {
        self.uses.get(address as usize).copied().filter(|used| used.pool != NONE)
    }

    /// Index of an outside address, and what it is used for.
    #[inline]
    pub(crate) fn use_of(&self, address: u128) -> Option<(u32, Use)> {
        let at = *self.by_address.get(&address)?;
        Some((at, self.use_at(at)?))
    }

    /// Whether new mappings of a pool may lie at an address.
    #[inline]
    pub(crate) fn is_open(&self, address: u32, pool: u32) -> bool {
        // No pool has the number that an address of none has.
        let Some(used) = self.uses.get(address as usize) else { return false };
        used.pool == pool && pool != NONE && !used.draining
    }
}

impl Served {
    pub(crate) const NOBODY: Self = Self { pool: NONE, workload: NONE };
}

/// Index of an address in the NAT, which knows it from now on.
fn register(nat: &Nat, address: IpAddr) -> Result<Option<u32>, PoolError> {
    nat.register_address(mapped(address)).map(Some).map_err(|full| match full {
        Some(_) => PoolError::Memory(address),
        None => PoolError::TooManyAddresses(address),
    })
}

/// Who serves each port: the first pool by name that has an address of the family.
fn served(
    specs: &[&PoolSpec],
    index_of: impl Fn(&Workload, usize, &PoolSpec) -> Option<u32>,
) -> Result<Vec<[Served; 2]>, PoolError> {
    let mut served = Vec::new();
    for (index, spec) in (0..).zip(specs) {
        for family in [V4, V6] {
            if !spec.addresses.iter().any(|address| crate::family(mapped(*address)) == family) {
                continue;
            }
            for workload in spec.workloads.iter().chain(&spec.in_family[family]) {
                let too_many = || PoolError::TooManyWorkloads(spec.name.clone());
                let slot = Some(workload.port as usize).filter(|slot| *slot < PORTS_MAX).ok_or_else(too_many)?;
                if served.len() <= slot {
                    served.resize(slot + 1, [Served::NOBODY; 2]);
                }
                if served[slot][family].pool == NONE {
                    let at = index_of(workload, family, spec).ok_or_else(too_many)?;
                    served[slot][family] = Served { pool: index, workload: at };
                }
            }
        }
    }
    Ok(served)
}

fn check(specs: &[PoolSpec]) -> Result<(), PoolError> {
    let mut seen: HashMap<IpAddr, &str> = HashMap::new();
    let mut names = BTreeSet::new();
    for spec in specs {
        let pool = || spec.name.clone();
        for &address in &spec.addresses {
            if let Some(other) = seen.insert(address, &spec.name) {
                return Err(PoolError::Twice { address, pool: pool(), other: other.into() });
            }
        }
        if !spec.block_size.is_power_of_two() || !(BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX).contains(&spec.block_size) {
            return Err(PoolError::BlockSize { pool: pool(), size: spec.block_size });
        }
        let (min, max) = (*spec.blocks.start(), *spec.blocks.end());
        if min == 0 || min > max || max > BLOCKS_MAX {
            return Err(PoolError::Blocks { pool: pool(), min, max });
        }
        if !names.insert(&spec.name) {
            return Err(PoolError::Name(pool()));
        }
    }
    match seen.len().checked_sub(ADDRESSES_MAX) {
        Some(1..) => Err(PoolError::TooManyAddresses(*seen.keys().next().unwrap_or(&IpAddr::from([0; 4])))),
        _ => Ok(()),
    }
}
