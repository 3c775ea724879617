//! hostweave: the network of a hypervisor host in one binary. `ARCHITECTURE.md` is the map.
#![forbid(unsafe_code)]

pub mod config;
pub mod datapath;
pub mod fabric;
pub mod services;
pub mod worker;
