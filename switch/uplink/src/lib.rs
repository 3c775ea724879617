//! Where a worker sleeps, and the devices of the host that it reads and writes: an `io_uring` for each worker, and TAP
//! devices for containers.
//!
//! Read [`uring`] first. It knows the packet of `hostweave-switch` and no other crate of ours.
#![deny(unsafe_code)]

mod error;
pub mod limits;
pub mod netns;
#[allow(unsafe_code, reason = "memory that the kernel fills, and ioctls")]
mod sys;
pub mod tap;
pub mod uring;
mod waker;

pub use error::Error;
