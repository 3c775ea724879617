//! Where a worker sleeps, and the devices of the host that it reads and writes: an `io_uring` for each worker, TAP
//! devices for containers, and packet sockets for the uplink; and what the kernel must know and tell of the uplink.
//!
//! Read [`uring`] first. It knows the packet of `hostweave-switch` and no other crate of ours.
#![deny(unsafe_code)]

#[allow(unsafe_code, reason = "a system call that reads a program")]
mod bpf;
pub mod device;
#[allow(unsafe_code, reason = "system calls that read frames where they lie")]
mod direct;
mod error;
pub mod limits;
pub mod netlink;
pub mod netns;
pub mod packet_socket;
mod steering;
#[allow(unsafe_code, reason = "memory that the kernel fills, and ioctls")]
mod sys;
pub mod tap_queues;
pub mod uring;
mod waker;
#[allow(unsafe_code, reason = "rings and frames shared with the kernel")]
mod xdp_socket;

pub use error::Error;
