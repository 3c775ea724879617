//! Control: the daemon's state and the socket through which people and programs change it.
//!
//! ```text
//! line or HTTP ── rpc::parse ──► method::prepare ──► handler ──► controller ──► store ──► fabric ──► answer
//! files (start, SIGHUP) ─────────────────────────────────────────────▲
//! fabric events (guest's addresses, faults) ─────────────────────────┘
//! ```
//!
//! One writer at a time. A change is checked whole, written to disk, handed to the packet path, and only then answered.
//! Readers take a snapshot and wait for nobody.

pub mod attach_args;
pub mod attach_ledger;
pub mod connection;
pub mod controller;
pub mod daemon;
pub mod doctor;
mod draft;
pub mod endpoint;
pub mod error;
mod fabric_events;
mod http;
pub mod initial;
mod ledger;
pub mod matrix;
pub mod method;
mod methods;
pub mod nat_ledger;
mod outside_view;
pub mod paths;
mod plan;
mod policy_view;
pub mod recommend;
pub mod rpc;
pub mod selector;
mod service_manager;
pub mod service_view;
pub mod socket;
pub mod transitions;
mod uplink_view;
pub mod view;
