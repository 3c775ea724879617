//! Kubernetes NetworkPolicy and ClusterNetworkPolicy: what they say ([`model`]), compiled into tables whose lookup does
//! not depend on the number of policies. It knows `switch` and nothing else of ours.
#![forbid(unsafe_code)]

pub mod model;
