//! One file per protocol: offsets, checks, builders.

pub mod dhcp4;
pub mod dhcp6;
pub mod frame;
pub mod writer;
