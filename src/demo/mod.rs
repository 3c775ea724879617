//! The demo: a daemon, guests, and a story that shows what the network does and does not let them do.
//!
//! Nothing here is staged. The daemon is a process of its own, started as a user starts it, in a temporary folder;
//! what is shown comes from its control socket; the guests attach to its vhost-user sockets, with the built-in driver
//! (`hostweave_guest`) or as Linux in QEMU. Each part of the story is checked and ends as passed or failed.

mod daemon;
mod ledger;
mod qemu;
mod run;
mod sampler;
mod story;
mod traffic;
mod trouble;
mod view;

pub use daemon::Folder;
pub use run::{Options, run};
