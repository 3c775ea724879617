//! The words of NAT: what a pool is, what an endpoint is, and the answers that a translation may get.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use hostweave_switch::tables::is_ipv4;
pub use hostweave_switch::tables::{mapped, unmapped};
use hostweave_switch::wire::proto;

/// Smallest block, in L4 ports.
pub const BLOCK_SIZE_MIN: u16 = 64;
/// Largest block, in L4 ports.
pub const BLOCK_SIZE_MAX: u16 = 4096;
/// Blocks that one workload may have.
pub const BLOCKS_MAX: u16 = 64;
/// L4 ports below are never given out (SEMANTICS NA34).
pub const FIRST_L4: u16 = 1024;
/// Outside addresses of a host that pools may have.
pub const ADDRESSES_MAX: usize = 4096;
/// Mappings of one workload and family, unless its pool says otherwise: as many as there are L4 ports. A table that has less than
/// four times as much room gives a quarter of it.
pub const MAPPINGS_DEFAULT: u32 = 1 << 16;
/// Mappings of one inside endpoint that are bound to a remote ([`Mapped::bound`]): they are looked through one by one.
pub const BOUND_MAX: usize = 256;
/// Seconds for which a block that is not used any more is kept from other workloads (RFC 6888 REQ-8, SEMANTICS NA27).
pub const HOLD_S: u32 = 120;
/// Remotes of one mapping that are remembered: for address-dependent filtering those that unasked packets are let in from; the
/// longest known one goes first.
pub const REMOTES_MAX: usize = 64;

/// Who may send to a NAT mapping from outside (RFC 4787 §5).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Filtering {
    /// Anybody.
    EndpointIndependent,
    /// Addresses that the inside has sent to.
    AddressDependent,
    /// Addresses and L4 ports that the inside has sent to.
    #[default]
    AddressAndPortDependent,
}

/// A port of the host that a pool serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Workload {
    /// Slot of the port ([`hostweave_switch::tables::PortId`]).
    pub port: u32,
    /// Its uid, which outlives slots. Not zero.
    pub uid: u128,
}

/// Addresses for ports without a public one (`NatPool`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolSpec {
    /// Name of the object.
    pub name: String,
    /// Its addresses, both families, each once and in one pool.
    pub addresses: Vec<IpAddr>,
    /// Addresses that take no new mappings; part of `addresses`.
    pub draining: Vec<IpAddr>,
    /// Ports that it serves. The first pool by name that serves a port, with an address of the family, has it.
    pub workloads: Vec<Workload>,
    /// Ports that it serves in one family alone ([`V4`], [`V6`]), whatever addresses it has besides; likewise.
    pub in_family: [Vec<Workload>; 2],
    /// L4 ports per block, a power of two, [`BLOCK_SIZE_MIN`] to [`BLOCK_SIZE_MAX`].
    pub block_size: u16,
    /// Blocks that a workload gets at once, and at most; 1 to [`BLOCKS_MAX`].
    pub blocks: RangeInclusive<u16>,
    /// Who may send to a mapping from outside.
    pub filtering: Filtering,
    /// Whether TCP connections to different destinations may share an L4 port when the blocks are full (SEMANTICS NA17).
    pub overload: bool,
    /// What one workload may have, besides blocks.
    pub limits: Limits,
}

/// What one workload may have, besides blocks (RFC 6888 REQ-4, REQ-5; SEMANTICS NA25).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Limits {
    /// Mappings at a time in each family, at least 1; `None`: [`MAPPINGS_DEFAULT`], or a quarter of the table if that is less. Whatever it
    /// says, half of the table is shared out in equal parts, and nobody takes another's part.
    pub mappings: Option<u32>,
    /// New mappings in one second in each family, at least 1; `None`: any number.
    pub rate: Option<u32>,
}

impl Limits {
    /// Mappings at a time in a table of this capacity.
    pub(crate) fn mappings(&self, capacity: u32) -> u32 {
        self.mappings.unwrap_or((capacity / 4).min(MAPPINGS_DEFAULT)).max(1)
    }
}

/// How long a mapping outlives the last packet of its last connection, in seconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timers {
    /// UDP (RFC 4787 REQ-5: at least two minutes, five recommended).
    pub udp: u32,
    /// UDP that was only sent to the L4 port of DNS (REQ-5a allows less for well-known ports).
    pub dns: u32,
    /// TCP that nobody has ended (RFC 5382 REQ-5: at least 2 h 4 min).
    pub tcp_established: u32,
    /// TCP that was never established, or that was ended (REQ-5: at least four minutes).
    pub tcp_transitory: u32,
    /// ICMP queries (RFC 5508 REQ-2: at least 60 s).
    pub icmp: u32,
    /// Protocols without ports.
    pub other: u32,
}

impl Default for Timers {
    fn default() -> Self {
        Self { udp: 300, dns: 30, tcp_established: 7440, tcp_transitory: 240, icmp: 60, other: 600 }
    }
}

/// One end of a flow inside.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Inside {
    /// Slot of its port.
    pub port: u32,
    /// Uid of its port.
    pub uid: u128,
    /// Its network.
    pub vni: u32,
    /// Its address, IPv4-mapped for IPv4.
    pub address: u128,
    /// L4 port, identifier of an ICMP query, 0 for protocols that have neither. Of protocols whose ports are not translated (all but TCP and
    /// UDP) it comes back unchanged.
    pub l4: u16,
    /// Protocol number of the IP header.
    pub proto: u8,
}

/// An endpoint outside: a mapping's own, or a remote.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Outside {
    /// The address, IPv4-mapped for IPv4.
    pub address: u128,
    /// L4 port, identifier of an ICMP query, 0 for protocols that have neither.
    pub l4: u16,
}

/// Names a mapping. Another generation means that it is gone.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MappingRef {
    /// Its place in the table.
    pub index: u32,
    /// Its generation.
    pub generation: u32,
}

/// A connection outward may begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapped {
    /// What the outside sees as its source.
    pub outside: Outside,
    /// The mapping. One hold on it is the caller's, who gives it back by [`release`](crate::Nat::release).
    pub mapping: MappingRef,
    /// Whether the mapping is bound to this remote: TCP on a shared L4 port (SEMANTICS NA17), or a protocol without ports. The
    /// flow record says so.
    pub bound: bool,
    /// Whether the mapping is new.
    pub new: bool,
}

/// A packet from outside has a mapping and passes its filter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// Where it goes.
    pub inside: Inside,
    /// The mapping. One hold on it is the caller's, who gives it back by [`release`](crate::Nat::release).
    pub mapping: MappingRef,
}

/// Why a connection outward cannot begin. The packet is dropped, never sent untranslated (SEMANTICS NA35).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// No pool serves the port with an address of the family.
    NoPool,
    /// The pool has no block left. An event names the biggest user ([`NatEvent::Exhausted`]).
    Exhausted {
        /// Uid of the workload that has most L4 ports of the pool's address.
        biggest: u128,
    },
    /// The workload has used up its blocks or another of its limits, or the inside endpoint has [`BOUND_MAX`] mappings.
    PortLimit,
    /// There is no room for another mapping on this host, beyond what is kept for other workloads. An event names the biggest user
    /// ([`NatEvent::Full`]).
    Full,
    /// A protocol without ports that somebody else speaks with this remote from the same outside address, or one whose
    /// checksum covers addresses in a way that cannot be translated.
    Unsupported(u8),
}

/// Why a packet from outside ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unmapped {
    /// Nobody has this outside endpoint.
    NoMapping,
    /// The filter does not let this remote in.
    Filtered,
}

/// How a connection that held a mapping ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// TCP that was established and that neither side has closed or reset.
    Established,
    /// Any other, of any protocol: for TCP one that was closed, reset, or never established.
    Closed,
    /// It never began: what came after the mapping refused it. A mapping that was made for it alone goes at once, another lives no longer
    /// for it.
    Refused,
}

/// A block that begins or ends to be a workload's (SEMANTICS NA28; the fields of RFC 8158 §5.6.3).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Block {
    /// Uid of the workload.
    pub uid: u128,
    /// Outside address, IPv4-mapped for IPv4.
    pub address: u128,
    /// First L4 port.
    pub first: u16,
    /// L4 ports.
    pub size: u16,
}

/// What control logs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NatEvent {
    /// A workload got a block.
    Allocated {
        /// Which.
        block: Block,
        /// Second of the monotonic clock.
        at: u32,
    },
    /// A block is free again. It was not used in the [`HOLD_S`] seconds before.
    Released {
        /// Which.
        block: Block,
        /// Second in which the workload got it.
        since: u32,
        /// Second of the monotonic clock.
        at: u32,
    },
    /// A workload needed a block and there was none; at most once a second for each address (SEMANTICS NA40).
    Exhausted {
        /// Uid of the workload that went without.
        uid: u128,
        /// Outside address, IPv4-mapped for IPv4.
        address: u128,
        /// Uid of the workload that has most L4 ports of it.
        biggest: u128,
        /// How many those are.
        ports: u32,
        /// Second of the monotonic clock.
        at: u32,
    },
    /// A workload needed a mapping and there was no room for it in the table; at most once a second.
    Full {
        /// Uid of the workload that went without.
        uid: u128,
        /// Uid of the workload that has most mappings, in both families, when this is told.
        biggest: u128,
        /// How many those are.
        mappings: u32,
        /// Second of the monotonic clock.
        at: u32,
    },
    /// Before this were others, of which there was no room for: what became of blocks [`Nat::history`](crate::Nat::history) tells.
    Lost,
}

/// Who has, or had, an outside L4 port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lease {
    /// The block.
    pub block: Block,
    /// Second in which the workload got it.
    pub since: u32,
    /// Second in which it was free again; `None` while the workload has it.
    pub until: Option<u32>,
    /// Mappings in it now.
    pub mappings: u32,
}

/// A mapping's plain values, for lists and adoption.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Names it.
    pub mapping: MappingRef,
    /// The inside endpoint. `port` is [`NO_PORT`] when no pool serves the workload now.
    pub inside: Inside,
    /// The outside endpoint.
    pub outside: Outside,
    /// The remote it is bound to, if it is.
    pub remote: Option<Outside>,
    /// Connections that hold it.
    pub holds: u32,
    /// Second in which it began.
    pub created: u32,
    /// Second until which it lives without connections; of one that is held, 0 or that of an earlier connection.
    pub until: u32,
}

/// Slot of a port that no pool serves now.
pub const NO_PORT: u32 = u32::MAX;

/// Numbers of the whole NAT.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Mappings now, and most at a time.
    pub mappings: u64,
    /// See `mappings`.
    pub capacity: u64,
    /// Blocks that workloads have.
    pub blocks: u64,
    /// Mappings that were refused.
    pub refused: RefusedCounts,
    /// Mappings on shared L4 ports that were made (SEMANTICS NA17).
    pub overloaded: u64,
    /// Packets from outside that a filter kept out.
    pub filtered: u64,
    /// Events that were lost because nobody took them in time.
    pub events_lost: u64,
}

/// How many mappings were refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RefusedCounts {
    /// Because the pool had no block left.
    pub exhausted: u64,
    /// Because of a limit of the workload.
    pub limited: u64,
    /// Because the table was full, but for what is kept for other workloads.
    pub full: u64,
}

/// Numbers of one outside address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AddressStats {
    /// The address, IPv4-mapped for IPv4.
    pub address: u128,
    /// L4 ports that lie in blocks of workloads.
    pub leased: u32,
    /// L4 ports that blocks can be made of.
    pub total: u32,
    /// L4 ports in use: UDP, TCP, ICMP identifiers.
    pub used: [u32; 3],
}

/// Why pools cannot be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PoolError {
    /// Two pools, or one twice.
    #[error("NAT address {address} of pool {pool} is also an address of pool {other}")]
    Twice {
        /// The address.
        address: IpAddr,
        /// The second one.
        pool: String,
        /// The first one.
        other: String,
    },
    /// Not a power of two between the limits.
    #[error("block size {size} of NAT pool {pool} is not a power of two from {BLOCK_SIZE_MIN} to {BLOCK_SIZE_MAX}")]
    BlockSize {
        /// The pool.
        pool: String,
        /// What it says.
        size: u16,
    },
    /// Not between the limits.
    #[error("NAT pool {pool} gives a workload {min} to {max} blocks; it must be 1 to {BLOCKS_MAX}, the smaller first")]
    Blocks {
        /// The pool.
        pool: String,
        /// Smallest number.
        min: u16,
        /// Largest number.
        max: u16,
    },
    /// Two pools of one name.
    #[error("there are two NAT pools of the name {0}")]
    Name(String),
    /// More than the host has room for.
    #[error("there is room for {ADDRESSES_MAX} NAT addresses on a host, and {0} is one more")]
    TooManyAddresses(IpAddr),
    /// The kernel gives no memory for another address.
    #[error("no memory for NAT address {0}")]
    Memory(IpAddr),
    /// More ports than the host has room for.
    #[error("there is no room for another workload behind NAT pool {0}")]
    TooManyWorkloads(String),
}

/// Families, as indices.
pub const V4: usize = 0;
/// See [`V4`].
pub const V6: usize = 1;

/// Family of an address of a key.
#[inline]
pub const fn family(address: u128) -> usize {
    if is_ipv4(address) { V4 } else { V6 }
}

/// Spaces of L4 ports, each of its own (RFC 7857 §7; SEMANTICS NA30).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Class {
    Udp = 0,
    Tcp = 1,
    /// Identifiers of queries.
    Icmp = 2,
    /// None: the mapping is that of two addresses.
    Addresses = 3,
}

/// Classes that have ports.
pub(crate) const CLASSES: usize = 3;

impl Class {
    /// Of a protocol; `None` when it cannot be translated: its checksum covers the addresses and is not ours to fix (UDP-Lite,
    /// DCCP), or it authenticates them (AH, RFC 4302).
    #[inline]
    pub(crate) fn of(protocol: u8) -> Option<Self> {
        const DCCP: u8 = 33;
        const AH: u8 = 51;
        const UDP_LITE: u8 = 136;
        match protocol {
            proto::UDP => Some(Self::Udp),
            proto::TCP => Some(Self::Tcp),
            proto::ICMPV4 | proto::ICMPV6 => Some(Self::Icmp),
            DCCP | AH | UDP_LITE => None,
            _ => Some(Self::Addresses),
        }
    }

    /// An inside endpoint as mappings know it: where only addresses are translated, L4 ports (those of SCTP) do not tell apart.
    #[inline]
    pub(crate) fn inside(self, inside: &Inside) -> Inside {
        Inside { l4: if self == Self::Addresses { 0 } else { inside.l4 }, ..*inside }
    }

    /// The same of an endpoint outside.
    #[inline]
    pub(crate) fn endpoint(self, outside: Outside) -> Outside {
        Outside { l4: if self == Self::Addresses { 0 } else { outside.l4 }, ..outside }
    }

    /// An answer, where only addresses are translated with the L4 port that was asked for.
    #[inline]
    pub(crate) fn mapped(self, mapped: Mapped, l4: u16) -> Mapped {
        if self == Self::Addresses { Mapped { outside: Outside { l4, ..mapped.outside }, ..mapped } } else { mapped }
    }
}
