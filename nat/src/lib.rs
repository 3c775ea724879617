//! NAT egress: workloads without a public address reach the outside from the addresses of a pool, one direction only
//! (SEMANTICS §5; RFC 4787, 5382, 5508, 6888). It knows `switch` and nothing else of ours.
//!
//! # Theory of operation
//!
//! A *workload* is a port of the host. When it first sends to the outside it gets *blocks*: ranges of L4 ports of one
//! address of its pool, the same range for all protocols. A block is *leased* to one workload at a time; each lease is a record
//! that says who had it from when to when, which is all that has to be logged (RFC 7422, SEMANTICS NA28).
//!
//! A *mapping* ties an inside endpoint (network, address, L4 port, protocol) to an outside endpoint (address, L4 port out of
//! a block). It is made by the first connection of the inside endpoint, serves all remotes, is *held* by the connections that use
//! it, and outlives the last one by a timer. Packets of known connections do not come here: what a
//! connection needs of its mapping it has copied.
//!
//! Mappings and leases lie in a shared file and outlive the process. Everything else (chains, bitmaps, counts, timer wheels) is
//! private memory that the next run rebuilds from the records it finds right (`adopt`).
//!
//! Locks, in the order in which they may nest: a *shard* guards chains by inside endpoint, the life of the mappings in them, and a
//! timer wheel; an *outside* lock guards L4 ports that several destination-bound mappings share; *blocks* guards leases.
//! A new mapping takes its shard; blocks only when a workload needs one more. L4 ports are claimed by an atomic operation on
//! a bitmap.
//!
//! IPv4 and IPv6 (NAPT66) are the same: addresses are `u128`, IPv4-mapped for IPv4.
#![deny(unsafe_code)]

pub mod model;
pub mod service;

mod address;
mod adopt;
mod blocks;
mod expire;
mod foreseen;
mod inbound;
mod list;
mod outbound;
mod outside;
mod pools;
mod random;
mod record;
mod refusals;
mod share;
mod table;
mod workload;

pub use adopt::{Adopted, Claim};
pub use inbound::Arrival;
pub use model::*;
pub use pools::Pools;
pub use table::{MAPPINGS_MAX, Nat, Options};
