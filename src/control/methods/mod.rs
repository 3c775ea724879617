//! Handlers of the methods, one file per noun: parameters as they are sent, and what is done with them.

pub mod capture;
pub mod conntrack;
pub mod dns;
pub mod doctor;
pub mod event;
pub mod flow;
pub mod nat;
pub mod object;
pub mod policy;
pub mod port;
pub mod probe;
pub mod server;
pub mod service;
pub mod service_list;
pub mod trace;
pub mod uplink;
pub mod whois;
