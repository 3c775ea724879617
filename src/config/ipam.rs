//! Address management: which MAC, IPv4 and IPv6 address each port has. Deterministic: a function of the objects and of
//! what was assigned before. What a port was given stays its own until the port is deleted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hostweave_switch::MacAddr;
use hostweave_switch::limits::LEARNED_ADDRESSES_MAX;
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::checked::{Network, Port};
use super::diagnostic::Diagnostic;
use super::kind::ObjectKey;
use super::node::Path;
use super::problem::Problem;
use super::set::ObjectSet;

/// Hashed MAC addresses that are tried for one port.
const MAC_ATTEMPTS: u32 = 1024;

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

/// Assigns addresses to every port of `set`, in O(n log n). `new_uid` makes the identity of each new port.
///
/// Fixed addresses come first, then what was remembered, then the lowest free one. A fixed address that another port
/// was given before is refused: a running guest does not lose its address because of somebody else.
pub fn assign(set: &ObjectSet, remembered: &Assignments, new_uid: &mut dyn FnMut() -> Uuid) -> Plan {
    let mut pools: BTreeMap<&str, Pool> = set.networks().map(|(name, network)| (name, Pool::new(network))).collect();
    let mut plan = Plan::default();
    for (key, _, port) in set.ports() {
        if let Some(pool) = pools.get_mut(port.network.as_str()) {
            pool.reserve_fixed(key, port);
        }
    }
    let mut drafts = Vec::new();
    for (key, object, port) in set.ports() {
        let Some(pool) = pools.get_mut(port.network.as_str()) else { continue };
        drafts.push((object, port, pool.recall(key, port, remembered.get(key), &mut plan.problems, set)));
    }
    for (object, port, mut draft) in drafts {
        let Some(pool) = pools.get_mut(port.network.as_str()) else { continue };
        if pool.refused.contains(&object.key) {
            continue;
        }
        let uid = draft.uid.unwrap_or_else(&mut *new_uid);
        match pool.complete(&object.key, port, uid, &mut draft) {
            Ok(assignment) => {
                if remembered.get(&object.key) != Some(&assignment) {
                    plan.changed.push(object.key.clone());
                }
                plan.assignments.insert(object.key.clone(), assignment);
            }
            Err(problem) => plan.problems.push(object.diagnose(problem)),
        }
    }
    plan.freed = remembered.keys().filter(|key| set.get(key).is_none()).cloned().collect();
    plan
}

/// What is kept of a remembered assignment.
#[derive(Default)]
struct Draft {
    uid: Option<Uuid>,
    mac: Option<MacAddr>,
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
    learned: Vec<Ipv6Addr>,
}

/// What a port cannot share with another of its network.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Item {
    Address(IpAddr),
    Mac(MacAddr),
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Item::Address(address) => write!(f, "address {address}"),
            Item::Mac(mac) => write!(f, "MAC {mac}"),
        }
    }
}

/// The addresses of one network.
struct Pool<'a> {
    network: &'a Network,
    owners: HashMap<Item, &'a ObjectKey>,
    /// Where the search for the lowest free address goes on; everything below is taken.
    next_v4: u32,
    next_v6: u128,
    /// Ports whose fixed addresses somebody else was given before.
    refused: BTreeSet<ObjectKey>,
}

impl<'a> Pool<'a> {
    fn new(network: &'a Network) -> Self {
        Self {
            network,
            owners: HashMap::new(),
            next_v4: network.v4.map_or(0, |(net, _)| u32::from(net.network())),
            next_v6: network.v6.map_or(0, |(net, _)| u128::from(net.network())),
            refused: BTreeSet::new(),
        }
    }

    /// The prefix in which guests form their addresses themselves.
    fn slaac(&self) -> Option<Ipv6Net> {
        self.network.v6.map(|(net, _)| net).filter(|net| net.prefix_len() == 64)
    }

    fn reserve_fixed(&mut self, key: &'a ObjectKey, port: &Port) {
        for address in port.fixed() {
            self.owners.insert(Item::Address(address), key);
        }
        if let Some(mac) = port.mac {
            self.owners.insert(Item::Mac(mac), key);
        }
    }

    /// Takes `item` for `key`; `Err` names the owner.
    fn take(&mut self, item: Item, key: &'a ObjectKey) -> Result<(), &'a ObjectKey> {
        let owner = *self.owners.entry(item).or_insert(key);
        if owner == key { Ok(()) } else { Err(owner) }
    }

    /// Keeps what was remembered of a port, as far as it still fits. Reports those who claim what it has.
    fn recall(
        &mut self,
        key: &'a ObjectKey,
        port: &Port,
        remembered: Option<&Assignment>,
        problems: &mut Vec<Diagnostic>,
        set: &ObjectSet,
    ) -> Draft {
        let Some(old) = remembered else { return Draft::default() };
        let mut keep = |pool: &mut Self, item: Item| match pool.take(item, key) {
            Ok(()) => true,
            Err(owner) => {
                let problem = taken(item, key);
                if pool.refused.insert(owner.clone())
                    && let Some(object) = set.get(owner)
                {
                    problems.push(object.diagnose(problem));
                }
                // From now on it is the old owner's.
                pool.owners.insert(item, key);
                true
            }
        };
        let mut draft = Draft { uid: Some(old.uid), ..Draft::default() };
        let moved = old.network != port.network;
        draft.mac = match port.mac {
            Some(mac) => Some(mac),
            None if moved => self.take(Item::Mac(old.mac), key).is_ok().then_some(old.mac),
            None => keep(self, Item::Mac(old.mac)).then_some(old.mac),
        };
        if moved {
            return draft;
        }
        let network = self.network;
        let fits = |address: IpAddr| network.check_address(address).is_ok();
        let v4 = old.v4.filter(|v4| port.v4.is_empty() && fits(IpAddr::V4(*v4)));
        draft.v4 = v4.filter(|v4| keep(self, Item::Address(IpAddr::V4(*v4))));
        let v6 = old.v6.filter(|v6| port.v6.is_empty() && fits(IpAddr::V6(*v6)));
        draft.v6 = v6.filter(|v6| self.slaac().is_none() && keep(self, Item::Address(IpAddr::V6(*v6))));
        if network.learning && self.slaac().is_some() {
            let fits = old.learned.iter().filter(|v6| fits(IpAddr::V6(**v6)) && !port.v6.contains(*v6));
            draft.learned = fits.copied().filter(|v6| keep(self, Item::Address(IpAddr::V6(*v6)))).collect();
        }
        draft
    }

    /// Gives a port what it still needs.
    fn complete(
        &mut self,
        key: &'a ObjectKey,
        port: &Port,
        uid: Uuid,
        draft: &mut Draft,
    ) -> Result<Assignment, Problem> {
        let v4 = match (draft.v4, self.network.v4) {
            (Some(v4), _) => Some(v4),
            (None, Some((net, _))) if port.v4.is_empty() => Some(self.lowest_v4(net, key)?),
            (None, _) => None,
        };
        let mac = match draft.mac {
            Some(mac) => mac,
            None => match port.mac {
                Some(mac) => mac,
                None => self.automatic_mac(v4.or(port.v4.first().copied()), port, uid, key)?,
            },
        };
        let v6 = match (draft.v6, self.network.v6) {
            (Some(v6), _) => Some(v6),
            (None, Some((net, _))) if port.v6.is_empty() => Some(self.automatic_v6(net, mac, key)?),
            (None, _) => None,
        };
        let mut learned = std::mem::take(&mut draft.learned);
        learned.retain(|address| Some(*address) != v6);
        Ok(Assignment { uid, network: port.network.clone(), mac, v4, v6, learned })
    }

    fn lowest_v4(&mut self, net: Ipv4Net, key: &'a ObjectKey) -> Result<Ipv4Addr, Problem> {
        let last = u32::from(net.broadcast());
        while self.next_v4 < last {
            let address = Ipv4Addr::from(self.next_v4);
            self.next_v4 += 1;
            if self.network.check_address(address.into()).is_ok()
                && self.take(Item::Address(address.into()), key).is_ok()
            {
                return Ok(address);
            }
        }
        Err(exhausted(&net.to_string()))
    }

    /// In a /64 the address that the guest forms from its MAC (SEMANTICS RA5), else the lowest free one.
    fn automatic_v6(&mut self, net: Ipv6Net, mac: MacAddr, key: &'a ObjectKey) -> Result<Ipv6Addr, Problem> {
        if net.prefix_len() == 64 {
            let address = eui64_address(net, mac);
            self.network.check_address(address.into()).map_err(|reason| {
                let message = format!("its automatic IPv6 address {address} {reason}");
                Problem::key(&Path::of("spec"), "conflict", message).help("write another mac, or a fixed address")
            })?;
            let item = Item::Address(address.into());
            return self.take(item, key).map(|()| address).map_err(|owner| taken(item, owner));
        }
        let last = u128::from(net.broadcast());
        while self.next_v6 <= last {
            let address = Ipv6Addr::from(self.next_v6);
            self.next_v6 = self.next_v6.saturating_add(1);
            if self.network.check_address(address.into()).is_ok()
                && self.take(Item::Address(address.into()), key).is_ok()
            {
                return Ok(address);
            }
        }
        Err(exhausted(&net.to_string()))
    }

    /// `02:00` and the IPv4 address, so that a person recognises it; `02:01` and a hash of the identity where there is
    /// none or that one is taken. Locally administered, and never the router's. One whose SLAAC address another guest has
    /// formed already counts as taken: nobody can keep a port from coming by squatting on its address.
    fn automatic_mac(
        &mut self,
        v4: Option<Ipv4Addr>,
        port: &Port,
        uid: Uuid,
        key: &'a ObjectKey,
    ) -> Result<MacAddr, Problem> {
        let slaac = self.slaac().filter(|_| port.v6.is_empty());
        let readable = v4.map(|v4| {
            let [a, b, c, d] = v4.octets();
            MacAddr([0x02, 0x00, a, b, c, d])
        });
        let hashed = (0..MAC_ATTEMPTS).map(|attempt| {
            let [a, b, c, d] = fnv1a(uid.as_bytes(), attempt).to_be_bytes();
            MacAddr([0x02, 0x01, a, b, c, d])
        });
        let squatted = |pool: &Self, mac: MacAddr| {
            let address = slaac.map(|net| Item::Address(eui64_address(net, mac).into()));
            address.is_some_and(|address| pool.owners.get(&address).is_some_and(|owner| *owner != key))
        };
        let mut candidates = readable.into_iter().chain(hashed);
        let free = candidates.find(|mac| !squatted(self, *mac) && self.take(Item::Mac(*mac), key).is_ok());
        free.ok_or_else(|| {
            Problem::key(&Path::of("spec"), "exhausted", "no free MAC address was found").help("write spec.mac")
        })
    }
}

/// The address that a guest with this MAC forms in a /64 (RFC 4862 §5.5.3, RFC 4291 appendix A).
fn eui64_address(net: Ipv6Net, mac: MacAddr) -> Ipv6Addr {
    let identifier = u64::from_be_bytes(mac.eui64());
    Ipv6Addr::from(u128::from(net.network()) | u128::from(identifier))
}

/// FNV-1a of `bytes`, then of `attempt`. Part of what is stored: it must not change.
fn fnv1a(bytes: &[u8], attempt: u32) -> u32 {
    let all = bytes.iter().copied().chain(attempt.to_be_bytes());
    all.fold(0x811c_9dc5, |hash: u32, octet| (hash ^ u32::from(octet)).wrapping_mul(0x0100_0193))
}

fn taken(item: Item, owner: &ObjectKey) -> Problem {
    let path = match item {
        Item::Address(_) => Path::of("spec.addresses"),
        Item::Mac(_) => Path::of("spec.mac"),
    };
    let problem = Problem::value(&path, "conflict", format!("{item} was given to {owner} and is in use"));
    problem.label("taken").help(format!("choose another one, or write the one that {owner} shall have in its object"))
}

fn exhausted(range: &str) -> Problem {
    let message = format!("every address of {range} is in use");
    Problem::value(&Path::of("spec.network"), "exhausted", message)
        .label("no free address")
        .help("delete ports, or use a Network with a larger range")
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

/// Adds an address that a guest formed (SEMANTICS RA5: first owner wins). `Ok(false)`: the port has it already.
///
/// # Errors
/// Why it is not accepted; nothing is changed then.
pub fn learn(
    set: &ObjectSet,
    assignments: &mut Assignments,
    port: &ObjectKey,
    address: Ipv6Addr,
) -> Result<bool, LearnError> {
    let network_name = assignments.get(port).map(|own| own.network.clone()).ok_or(LearnError::NoPort)?;
    let network = set.network(&network_name).ok_or(LearnError::NoPort)?;
    if !network.learning || network.v6.is_none_or(|(net, _)| net.prefix_len() != 64) {
        return Err(LearnError::Off);
    }
    network.check_address(address.into()).map_err(|_| LearnError::Outside)?;
    for (key, _, other) in set.ports().filter(|(_, _, other)| other.network == network_name) {
        let has = other.v6.contains(&address)
            || assignments.get(key).is_some_and(|own| own.v6 == Some(address) || own.learned.contains(&address));
        if has {
            return if key == port { Ok(false) } else { Err(LearnError::Taken) };
        }
    }
    let own = assignments.get_mut(port).ok_or(LearnError::NoPort)?;
    if own.learned.len() >= LEARNED_ADDRESSES_MAX {
        return Err(LearnError::Full);
    }
    own.learned.push(address);
    Ok(true)
}
