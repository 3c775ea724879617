//! Mappings and blocks.

use std::io;
use std::path::Path;

use crate::model::*;
use crate::pools::Pools;

/// How a NAT is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// Mappings at a time.
    pub capacity: u32,
    /// Names this boot: what another one left is not looked at.
    pub boot: u128,
    /// Seconds of the monotonic clock.
    pub now: u32,
    /// How long mappings live.
    pub timers: Timers,
    /// What L4 ports are drawn from; `None` asks the operating system.
    pub seed: Option<u64>,
}

/// Mappings and port blocks, shared by all workers.
pub struct Nat {
    timers: Timers,
}

/// What control says of a mapping of an earlier run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claim {
    /// The port is there and still owns the inside address.
    Keep,
    /// Not any more.
    Forget,
}

/// What became of what an earlier run left.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Adopted {
    /// Mappings taken over.
    pub kept: u32,
    /// Mappings that were forgotten.
    pub forgotten: u32,
    /// Blocks taken over.
    pub blocks: u32,
}

impl Nat {
    /// Opens or makes the table at `path`. Nothing of what is in it counts until it is adopted. Order at a start: `open`, have blocks
    /// of the file allocated ([`Nat::make_available`]), [`Pools::compile`], [`Nat::adopt`], [`Nat::hold`] for each adopted connection.
    ///
    /// # Errors
    /// The file cannot be made or mapped.
    pub fn open(_path: &Path, options: &Options) -> io::Result<Self> {
        Ok(Self { timers: options.timers })
    }

    /// How long mappings live.
    pub fn timers(&self) -> &Timers {
        &self.timers
    }

    /// The outside endpoint for a new connection from `inside` to `remote`: the mapping of `inside` if it has one, else a new one.
    /// Takes one hold on it. A worker calls it on a flow miss, after policy, with one shard locked and without allocating.
    ///
    /// # Errors
    /// See [`Refused`]; nothing was taken then.
    pub fn outbound(&self, _pools: &Pools, _inside: &Inside, _remote: Outside, _now: u32) -> Result<Mapped, Refused> {
        Err(Refused::NoPool)
    }

    /// Who is behind an outside endpoint, for a packet that belongs to no connection: unasked from outside, or from inside (hairpin;
    /// `from` is then the sender's own outside endpoint, RFC 4787 REQ-9). The filter of the pool is applied (SEMANTICS NA6); with
    /// address-and-port-dependent filtering nothing that has no connection passes. Takes one hold.
    ///
    /// # Errors
    /// See [`Unmapped`].
    pub fn inbound(
        &self,
        _pools: &Pools,
        _proto: u8,
        _to: Outside,
        _from: Outside,
        _now: u32,
    ) -> Result<Mapping, Unmapped> {
        Err(Unmapped::NoMapping)
    }

    /// The outside endpoint that `inside` has now, without making or holding one: for ICMP errors that it sends (RFC 5508 REQ-5)
    /// and for lists.
    pub fn outside_of(&self, _inside: &Inside) -> Option<Outside> {
        None
    }

    /// A connection has ended and gives its hold back. `seen` is the second of its last packet, from which the timer counts.
    pub fn release(&self, _mapping: MappingRef, _seen: u32, _now: u32, _how: End) {}

    /// Takes a hold for a connection of an earlier run, whose mapping is to be this one. False: it is not, forget the connection.
    pub fn hold(
        &self,
        _pools: &Pools,
        _mapping: MappingRef,
        _inside: &Inside,
        _outside: Outside,
        _remote: Outside,
    ) -> bool {
        false
    }

    /// A mapping's values, if it is still there.
    pub fn get(&self, _mapping: MappingRef) -> Option<Entry> {
        None
    }
}
