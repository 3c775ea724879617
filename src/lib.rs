//! hostweave: the network of a hypervisor host in one binary. `ARCHITECTURE.md` is the map.
#![forbid(unsafe_code)]

pub mod bugreport;
pub mod cli;
pub mod config;
pub mod connect;
pub mod connectivity;
pub mod control;
pub mod datapath;
pub mod demo;
pub mod fabric;
pub mod guests;
pub mod observe;
pub mod services;
pub mod store;
pub mod worker;
