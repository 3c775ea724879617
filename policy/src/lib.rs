//! Kubernetes NetworkPolicy and ClusterNetworkPolicy: what they say ([`model`]), compiled ([`compile`]) into tables whose
//! lookup does not depend on the number of policies ([`table`]), and why a verdict is what it is ([`explain`]). It knows
//! `switch` and nothing else of ours.
#![forbid(unsafe_code)]

pub mod compile;

pub mod explain;
pub mod infrastructure;
pub mod model;
pub mod table;

mod assign;
mod class;
mod identity;
mod intervals;
mod peers;
mod resolve;
mod selection;
mod slots;
mod tier;
