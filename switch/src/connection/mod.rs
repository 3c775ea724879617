//! Connections: the authoritative records that all workers share and that outlive the process.
//!
//! # Theory of operation
//!
//! [`Connections`] keeps [`Record`]s in a file under the runtime directory. A record says who talks to whom, which rules
//! allowed it, and what each direction has shown. Its key fields are written once, by `commit`, under the lock of one
//! shard; what a direction shows is written by the worker that sees that direction, without a lock.
//!
//! A shard owns the chains of the buckets that belong to it, and a timer wheel. Chains are read without its lock (`shard`). A record stands in one chain and in
//! one slot of the wheel of the same shard from `commit` until it is freed. A packet that finds its connection alive does
//! not touch the wheel: when the record's turn comes, its deadline is worked out from what it shows then, and it is
//! put further back. Only a change to a shorter timeout (a TCP connection that ends) moves a record, under the lock.
//!
//! Chains, wheels, the list of free records and the counts are private memory: a new run of the daemon rebuilds them
//! from the records that are still right (`adopt`).
//!
//! A connection that leads from one network into another, with or without NAT, has a [`Translation`] beside its record, and
//! is also found by the tuple of its answers, through chains of their own. Those have locks of their own, of which one at a time
//! is taken, under a shard's or alone. A NAT mapping that it holds is given back when its record is freed, whoever frees
//! it ([`Connections::on_release`]). Whoever frees a record, and why, [`Connections::on_end`] is told before.
//!
//! Each port has a quota of connections that count for it: those that it begins, and those that come to it from outside
//! ([`NewConnection::receiver_pays`]). A share of the table is guaranteed to it; the rest is for everybody, but for a reserve. A
//! port that may have no more gives up one of its own connections (`room` says which, and which never), or is refused; nobody
//! else's goes. One case is different: shares become smaller when ports are added, and then the table may be full of what
//! earlier ones have beyond theirs. The new port's share comes out of the reserve, and behind that out of connections beyond a
//! share that nobody has answered: of another port's, one that was answered never goes.

mod adopt;
mod challenge;
mod crossing;
mod ending;
mod failure;
mod find;
mod quota;
mod record;
mod room;
mod shard;
mod table;
mod timeouts;
mod translation;

#[cfg(test)]
mod tests;

pub use adopt::{Adopted, Claim};
pub use challenge::Challenges;
pub use crossing::OnRelease;
pub use ending::{Ending, OnEnd};
pub use failure::{Failed, Failures, UNANSWERED_S};
pub use record::{Direction, Entry, Record};
pub use shard::Miss;
pub use table::{CommitError, Committed, Connections, Found, FreeRecords, NewConnection, Options};
pub use timeouts::Timeouts;
pub use translation::{Change, Hold, Translation, change};
