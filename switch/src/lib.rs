//! The shared vocabulary of hostweave: the packet, the wire formats, the stages that need nothing but tables, and the
//! tables themselves. It knows no other crate of ours (ARCHITECTURE.md, "dependency star").
#![deny(unsafe_code)]

pub mod claimed;
pub mod connection;
pub mod counters;
pub mod cross;
pub mod flow;
pub mod fragment;
#[doc(hidden)]
pub mod fuzz;
pub mod guard;
pub mod heard;
pub mod icmp_error;
pub mod limits;
pub mod mac;
pub mod offload;
pub mod on_link;
pub mod packet;
pub mod parse;
#[allow(unsafe_code, reason = "segments point into memory that somebody else may write")]
pub mod payload;
#[allow(unsafe_code, reason = "prefetch instructions")]
pub mod prefetch;
pub mod quota;
pub mod rate;
pub mod rewrite;
pub mod rewriting;
pub mod route;
mod sctp;
#[allow(unsafe_code, reason = "mappings that outlive the process")]
pub mod shared;
pub mod split;
pub mod stage;
pub mod tables;
pub mod tcp_reset;
pub mod tcp_track;
#[cfg(test)]
mod testing;
pub mod translate;
pub mod wheel;
pub mod wire;

pub use mac::MacAddr;
