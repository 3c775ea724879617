//! Handlers of the methods, one file per noun: parameters as they are sent, and what is done with them.

pub mod conntrack;
pub mod event;
pub mod flow;
pub mod object;
pub mod port;
pub mod server;
pub mod trace;
