//! What the scenarios in network namespaces share: namespaces, a wire of ours between two devices, kernels that talk over it.

#![allow(dead_code, reason = "each program uses a part")]

pub mod netns;
pub mod traffic;
pub mod wire;
