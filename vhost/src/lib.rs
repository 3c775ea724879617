//! vhost-user backend for virtio-net: sockets and messages, guest memory, split rings, offloads.
//!
//! Read `queue.rs` first: what a worker does with a queue. `claim.rs` says how workers and the protocol thread share
//! one, `backend.rs` what a VMM may say, `attachment.rs` how connections come and go. `unsafe` stands only in
//! `memory.rs`, `ring.rs`, `claim.rs`, `sigbus.rs` and `sys.rs`. The specifications are VIRTIO 1.2 and QEMU's
//! `docs/interop/vhost-user.rst`. Nothing here knows what is in a frame, except to segment it for a receiver that
//! cannot take it whole.
#![deny(unsafe_code)]

mod attachment;
mod backend;
mod chain;
#[allow(unsafe_code, reason = "the inside of a lock")]
mod claim;
mod early;
mod fault;
pub mod features;
#[doc(hidden)]
pub mod fuzz;
#[allow(unsafe_code, reason = "mappings that a guest writes to at any time")]
mod memory;
mod offload;
mod queue;
#[allow(unsafe_code, reason = "rings in guest memory")]
mod ring;
mod scatter;
#[allow(unsafe_code, reason = "signal handler")]
mod sigbus;
mod socket;
#[allow(unsafe_code, reason = "system calls without a safe form")]
mod sys;
#[cfg(test)]
mod testing;

pub use attachment::{Attachment, AttachmentConfig, Error, Mode, Observer, QUEUE_PAIRS_MAX, State, Status};
pub use fault::Fault;
pub use offload::{check_offload, complete_checksum, segment};
pub use queue::{CallFd, FromGuest, FromGuestQueue, QueuePair, ToGuest, ToGuestQueue};
pub use ring::RING_SIZE_MAX;
pub use socket::SocketError;
pub use sys::Peer;
