//! Guests that this program brings itself, and what is asked of them: for the demo, and for tests of a running host.
//!
//! They attach to a port's vhost-user socket as any VMM does, with the built-in driver (`hostweave_guest`) or as Linux in
//! QEMU. What they find out goes onto a [`board::Board`], part by part.

pub mod board;
pub mod boot;
pub mod control;
pub mod interrupt;
pub mod lies;
pub mod linux;
pub mod member;
pub mod vm;
