//! Scenarios with guests in this process: real vhost-user over real sockets, `hostweave-guest` as the driver, the
//! daemon's packet path underneath. Nothing here needs root. Each scenario ends with the ledger.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod basics;
mod cluster_policy;
mod dns;
mod established;
mod floods;
mod health;
mod hostile;
mod idle;
mod metadata;
mod migration;
mod networks;
mod offloads;
mod policy;
mod queues;
mod rates;
mod restart;
mod scene;
mod services;
mod sockets;
mod support;
mod watch;
