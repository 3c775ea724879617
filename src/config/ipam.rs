//! Address management: which MAC, IPv4 and IPv6 address each port has. Deterministic: a function of the objects and of
//! what was assigned before. What a port was given stays its own until the port is deleted.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use hostweave_switch::MacAddr;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::checked::Port;
use super::diagnostic::Diagnostic;
use super::kind::ObjectKey;
use super::set::ObjectSet;

/// What a port was given. Kept in the store, so that it survives restarts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Assignment {
    /// Identity of the port; a port that is deleted and made again has another.
    pub uid: Uuid,
    /// The network that the addresses belong to.
    pub network: String,
    /// Its MAC address, automatic or fixed.
    #[serde(with = "mac_text")]
    pub mac: MacAddr,
    /// Its automatic IPv4 address; none where fixed ones are written or the network has no IPv4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v4: Option<Ipv4Addr>,
    /// Its automatic IPv6 address; none where fixed ones are written or the network has no IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v6: Option<Ipv6Addr>,
    /// IPv6 addresses that the guest formed by itself, in the order learned (SEMANTICS RA5).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub learned: Vec<Ipv6Addr>,
}

impl Assignment {
    /// All IPv4 addresses of a port: fixed or automatic.
    pub fn all_v4(&self, port: &Port) -> Vec<Ipv4Addr> {
        self.v4.iter().chain(&port.v4).copied().collect()
    }

    /// All IPv6 addresses of a port: automatic, fixed, learned.
    pub fn all_v6(&self, port: &Port) -> Vec<Ipv6Addr> {
        self.v6.iter().chain(&port.v6).chain(&self.learned).copied().collect()
    }
}

/// A MAC address as `02:00:0a:40:00:0a`.
mod mac_text {
    use super::{Deserialize, MacAddr};

    pub fn serialize<S: serde::Serializer>(mac: &MacAddr, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(mac)
    }

    pub fn deserialize<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<MacAddr, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Assignments by port.
pub type Assignments = BTreeMap<ObjectKey, Assignment>;

/// What [`assign`] decided.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Plan {
    /// Of every port that could be given what it needs.
    pub assignments: Assignments,
    /// Ports whose assignment is new or differs from the remembered one: to be written to the store.
    pub changed: Vec<ObjectKey>,
    /// What was remembered for ports that are no more: to be deleted from the store.
    pub freed: Vec<ObjectKey>,
    /// Ports that cannot be given what they need (range exhausted, address taken). A request that causes one is
    /// refused; at start the port stays without traffic.
    pub problems: Vec<Diagnostic>,
}

/// Assigns addresses to every port of `set`. `new_uid` makes the identity of each new port.
pub fn assign(_set: &ObjectSet, _remembered: &Assignments, _new_uid: &mut dyn FnMut() -> Uuid) -> Plan {
    todo!()
}

/// Why an address that a guest formed is not accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LearnError {
    /// No such port, or it has no assignment.
    #[error("the port does not exist")]
    NoPort,
    /// `addressLearning: off`, or the network has no IPv6 /64.
    #[error("the network learns no addresses")]
    Off,
    /// Outside the network's prefix, or the gateway's or the subnet-router anycast address.
    #[error("the address is not one that a guest of this network may form")]
    Outside,
    /// Another port has it.
    #[error("another port has the address")]
    Taken,
    /// The port has formed as many as it may.
    #[error("the port has formed as many addresses as it may")]
    Full,
}

/// Adds an address that a guest formed (SEMANTICS RA5). `Ok(false)`: the port has it already.
///
/// # Errors
/// Why it is not accepted; nothing is changed then.
pub fn learn(
    _set: &ObjectSet,
    _assignments: &mut Assignments,
    _port: &ObjectKey,
    _address: Ipv6Addr,
) -> Result<bool, LearnError> {
    todo!()
}
