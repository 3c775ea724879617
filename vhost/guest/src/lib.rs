//! The driver's side of a virtio-net card: a vhost-user frontend, split rings and a guest with a TCP/IP stack.
//!
//! Used by the demo, the tests and the benchmarks to judge a backend over real sockets with real shared memory. It
//! knows no other crate of hostweave, on purpose: it must not share a misunderstanding with what it judges.
//!
//! From the bottom: `memory` (shared guest RAM, the only unsafe), `wire` (messages), `frontend` (what VMMs say),
//! `ring` and `queue` (the driver), `nic` (all of it together, raw frames), `guest` (a stack: DHCP, SLAAC, ping, TCP,
//! UDP), `frames` (hand-made frames and their checks), `hostile` (every way to misbehave that has a name).

pub mod device;
mod error;
pub mod features;
pub mod frames;
pub mod frontend;
mod guest;
pub mod hostile;
pub mod memory;
pub mod nic;
pub mod queue;
pub mod ring;
mod service;
mod spawn;
pub mod wire;

pub use error::Error;
pub use frontend::{Mode, Profile};
pub use guest::{Guest, GuestBuilder, Lease, TCP_BUFFER_BYTES, Transfer};
pub use memory::MemoryConfig;
pub use nic::{Nic, NicConfig};
pub use queue::{Split, VnetHeader};
pub use ring::Violation;
pub use spawn::GuestHandle;
