//! Scenarios with guests in this process: real vhost-user over real sockets, `hostweave-guest` as the driver, the
//! daemon's packet path underneath. Nothing here needs root. Each scenario ends with the ledger.

mod basics;
mod support;
