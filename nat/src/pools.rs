//! Pools, compiled: which pool serves a port, and how its addresses behave. Immutable, published with the plane.

use std::ops::RangeInclusive;

use hostweave_switch::tables::PortId;

use crate::model::{Behaviour, Filtering, PoolError, PoolSpec};
use crate::table::Nat;

/// Pools as workers see them. The empty one serves nobody.
#[derive(Default)]
pub struct Pools {
    pools: Box<[Pool]>,
}

/// One pool.
pub(crate) struct Pool {
    pub(crate) name: String,
    pub(crate) blocks: RangeInclusive<u16>,
    pub(crate) filtering: Filtering,
    pub(crate) overload: bool,
}

impl Pools {
    /// Compiles `specs`. `nat` learns which addresses and workloads there are; nothing that it holds goes away by this.
    ///
    /// # Errors
    /// See [`PoolError`]; nothing has changed then.
    pub fn compile(_nat: &Nat, specs: &[PoolSpec], _now: u32) -> Result<Self, PoolError> {
        let pools = specs.iter().map(|spec| Pool {
            name: spec.name.clone(),
            blocks: spec.blocks.clone(),
            filtering: spec.filtering,
            overload: spec.overload,
        });
        Ok(Self { pools: pools.collect() })
    }

    /// Whether a pool serves a port with an address of a family ([`crate::V4`], [`crate::V6`]).
    pub fn serves(&self, _port: PortId, _family: usize) -> bool {
        false
    }

    /// Name of the pool that an outside address belongs to.
    pub fn pool_of(&self, _address: u128) -> Option<&str> {
        None
    }

    /// How a pool behaves.
    pub fn behaviour(&self, name: &str) -> Option<Behaviour> {
        let pool = self.pools.iter().find(|pool| pool.name == name)?;
        let _ = &pool.blocks;
        Some(Behaviour {
            endpoint_independent_mapping: true,
            paired: true,
            filtering: pool.filtering,
            overload: pool.overload,
        })
    }
}
