//! `nat.*`: mappings, blocks of L4 ports, and who had which.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::SystemTime;

use hostweave_nat::{Entry, Outside, unmapped};
use hostweave_switch::wire::proto;
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::flow::moment;
use super::server::Empty;
use crate::config::checked::NatPool;
use crate::config::outside::nat_pools;
use crate::control::controller::Snapshot;
use crate::control::error::{ErrorKind, RpcError};
use crate::control::method::Call;
use crate::control::nat_ledger::{NatLease, NatLedger};
use crate::fabric::nat_report::{LeaseView, MappingView};
use crate::observe::synthetic;
use crate::observe::time::rfc3339;

/// Mappings that are listed unless said otherwise.
const LIMIT_DEFAULT: usize = 10_000;

/// Parameters of `nat.list`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct List {
    /// Of these ports, `namespace/name`.
    ports: Vec<String>,
    /// With one of these addresses, inside or outside.
    addresses: Vec<String>,
    /// Of this pool.
    pool: Option<String>,
    /// How many at most; 10000 if left out.
    limit: Option<usize>,
}

/// Parameters of `nat.lookup`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Lookup {
    /// Outside address.
    address: String,
    /// L4 port, or identifier of an ICMP query.
    l4_port: u16,
    /// RFC 3339 time; now if left out.
    #[serde(default)]
    at: Option<String>,
}

/// Ports by uid, for names.
pub struct Names<'a> {
    snapshot: &'a Snapshot,
    ports: HashMap<Uuid, String>,
    /// Names of ports that are gone, as far as they had L4 ports of a NAT address.
    gone: HashMap<Uuid, String>,
}

impl<'a> Names<'a> {
    /// The names of a snapshot, and those that the ledger remembers.
    pub fn new(snapshot: &'a Snapshot, ledger: &NatLedger) -> Self {
        Self { snapshot, ports: snapshot.port_names(), gone: ledger.names() }
    }

    /// `namespace/name` of a port, also of one that is gone; `None` if nobody remembers it.
    pub fn port(&self, uid: Uuid) -> Option<&str> {
        self.ports.get(&uid).or_else(|| self.gone.get(&uid)).map(String::as_str)
    }

    /// Whether there is no such port any more.
    pub fn is_gone(&self, uid: Uuid) -> bool {
        !self.ports.contains_key(&uid)
    }

    /// Name that a port had then, as far as anybody kept it, and whether there is no such port any more. Uids are given out again: that of the
    /// host in a network follows from the network's VNI.
    pub fn then<'b>(&'b self, uid: Uuid, kept: Option<&'b str>) -> (Option<&'b str>, bool) {
        let now = self.ports.get(&uid).map(String::as_str);
        (kept.or_else(|| self.port(uid)), now.is_none() || kept.is_some_and(|kept| now != Some(kept)))
    }

    /// The pool that has an address.
    pub fn pool(&self, address: IpAddr) -> Option<(&'a str, &'a NatPool)> {
        nat_pools(&self.snapshot.set)
            .find(|(_, pool)| pool.ranges.iter().any(|range| range.contains(address)))
            .map(|(object, pool)| (object.key.name.as_str(), pool))
    }

    fn network(&self, vni: u32) -> Option<&'a str> {
        self.snapshot.set.networks().find(|(_, network)| network.vni == vni).map(|(name, _)| name)
    }
}

/// An address, or what is wrong with it.
pub fn address(field: &str, text: &str) -> Result<IpAddr, RpcError> {
    let error = || {
        let error = RpcError::new(ErrorKind::InvalidParams, field, format!("{text:?} is not an IP address"));
        error.help("like 203.0.113.7 or 2001:db8::7")
    };
    text.parse().map_err(|_| error())
}

pub fn list(call: &Call<'_>, params: List) -> Result<Value, RpcError> {
    let snapshot = call.controller.snapshot();
    let names = Names::new(&snapshot, &call.controller.nat_ledger);
    let addresses: Vec<IpAddr> =
        params.addresses.iter().map(|text| address("addresses", text)).collect::<Result<_, _>>()?;
    let wanted = |entry: &Entry| {
        let ends = [entry.inside.address, entry.outside.address].map(unmapped);
        let port = || names.port(Uuid::from_u128(entry.inside.uid));
        (params.ports.is_empty() || port().is_some_and(|name| params.ports.iter().any(|port| port == name)))
            && (addresses.is_empty() || ends.iter().any(|end| addresses.contains(end)))
            && params.pool.as_ref().is_none_or(|wanted| names.pool(ends[1]).is_some_and(|(name, _)| name == wanted))
    };
    let fabric = &call.controller.parts.fabric;
    let (views, total) = fabric.nat_mappings(params.limit.unwrap_or(LIMIT_DEFAULT), wanted);
    let mappings: Vec<Value> = views.iter().map(|view| mapping(view, &names)).collect();
    Ok(json!({"mappings": mappings, "total": total}))
}

fn mapping(view: &MappingView, names: &Names<'_>) -> Value {
    let MappingView { entry, .. } = view;
    let outside = unmapped(entry.outside.address);
    let query = matches!(entry.inside.proto, proto::ICMPV4 | proto::ICMPV6);
    let end = |address: IpAddr, l4: u16| {
        let mut end = json!({"address": address});
        end[if query { "icmpId" } else { "l4Port" }] = json!(l4);
        end
    };
    let remote = |remote: Outside| end(unmapped(remote.address), remote.l4);
    json!({
        "protocol": synthetic::protocol_name(entry.inside.proto),
        "port": names.port(view.port),
        "uid": view.port,
        "gone": names.is_gone(view.port),
        "network": names.network(entry.inside.vni),
        "inside": end(unmapped(entry.inside.address), entry.inside.l4),
        "outside": end(outside, entry.outside.l4),
        "pool": names.pool(outside).map(|(name, _)| name),
        // On an L4 port that several connections share (SEMANTICS NA17).
        "remote": entry.remote.map(remote),
        "connections": entry.holds,
        "ageSeconds": view.age_s,
        "expiresSeconds": view.expires_s,
    })
}

/// NAT pools as others must know them who let their addresses in (SEMANTICS CW10).
pub fn pools(call: &Call<'_>, _: Empty) -> Result<Value, RpcError> {
    let snapshot = call.controller.snapshot();
    let pools = nat_pools(&snapshot.set).map(|(object, pool)| {
        let nets: Vec<IpNet> = pool.addresses.iter().copied().map(IpNet::from).collect();
        json!({
            "name": object.key.name,
            "cidrs": IpNet::aggregate(&nets),
            "addresses": pool.addresses.len(),
            "draining": pool.draining,
            "networks": pool.networks,
        })
    });
    Ok(pools.collect())
}

pub fn stats(call: &Call<'_>, _: Empty) -> Result<Value, RpcError> {
    let snapshot = call.controller.snapshot();
    let names = Names::new(&snapshot, &call.controller.nat_ledger);
    let report = call.controller.parts.fabric.nat_report();
    let addresses: Vec<Value> = report
        .addresses
        .iter()
        .map(|stats| {
            let address = unmapped(stats.address);
            let pool = names.pool(address);
            let [udp, tcp, icmp] = stats.used;
            json!({
                "address": address,
                "pool": pool.map(|(name, _)| name),
                "draining": pool.is_some_and(|(_, pool)| pool.draining.contains(&address)),
                "leasedPorts": stats.leased,
                "totalPorts": stats.total,
                "usedPorts": {"udp": udp, "tcp": tcp, "icmp": icmp},
            })
        })
        .collect();
    let users = report.users.iter().take(USERS_LISTED_MAX);
    let users: Vec<Value> =
        users.map(|(uid, ports)| json!({"port": names.port(*uid), "uid": uid, "gone": names.is_gone(*uid), "leasedPorts": ports})).collect();
    let stats = &report.stats;
    let refused = &stats.refused;
    Ok(json!({
        "mappings": stats.mappings,
        "capacity": stats.capacity,
        "blocks": stats.blocks,
        "refused": {"exhausted": refused.exhausted, "limit": refused.limited, "tableFull": refused.full},
        "overloaded": stats.overloaded,
        "filtered": stats.filtered,
        "eventsLost": stats.events_lost,
        "addresses": addresses,
        "users": users,
    }))
}

/// Users of L4 ports that `nat.stats` lists, the biggest first.
const USERS_LISTED_MAX: usize = 10;

pub fn lookup(call: &Call<'_>, params: Lookup) -> Result<Value, RpcError> {
    let snapshot = call.controller.snapshot();
    let names = Names::new(&snapshot, &call.controller.nat_ledger);
    let outside = address("address", &params.address)?;
    let at = moment("at", params.at.as_deref())?;
    lease_of(call, outside, params.l4_port, at, &names).ok_or_else(|| {
        let place = synthetic::address(outside, Some(params.l4_port));
        let when = at.map(|at| format!(" at {}", rfc3339(at))).unwrap_or_default();
        let had = if at.is_some() { "had" } else { "has" };
        let error = RpcError::new(ErrorKind::NotFound, "address", format!("nobody {had} {place}{when}"));
        match names.pool(outside) {
            // An attached address has a past, too.
            None => {
                let (then, is) = match at {
                    Some(at) => (format!(" --at {}", rfc3339(at)), "was"),
                    None => (String::new(), "is"),
                };
                error.help(format!("{outside} is of no NatPool; hostweave whois {outside}{then} says whose it {is}"))
            }
            Some((pool, _)) => {
                error.help(format!("{outside} is of NatPool {pool}; see: hostweave nat list --ip {outside}"))
            }
        }
    })
}

/// Who has an L4 port, or had it at a time: this boot's leases first, then what is remembered of earlier ones.
pub fn lease_of(call: &Call<'_>, address: IpAddr, l4: u16, at: Option<SystemTime>, names: &Names<'_>) -> Option<Value> {
    let controller = call.controller;
    if let Some(view) = controller.parts.fabric.nat_lookup(address, l4, at) {
        let kept = at.map(|at| controller.nat_ledger.at(address, Some(l4), at)).unwrap_or_default();
        return Some(lease(&view, &kept, names));
    }
    // Where clocks were set in between, entries may overlap: who got it last had it.
    let had = controller.nat_ledger.at(address, Some(l4), at?);
    had.iter().max_by_key(|kept| kept.since).map(|kept| kept_lease(kept, names))
}

/// Blocks of an address and who has them, or had them at a time.
pub fn leases_of(call: &Call<'_>, address: IpAddr, at: Option<SystemTime>, names: &Names<'_>) -> Vec<Value> {
    let controller = call.controller;
    let known = controller.parts.fabric.nat_leases(address, at);
    let kept = at.map(|at| controller.nat_ledger.at(address, None, at)).unwrap_or_default();
    if known.is_empty() {
        return kept.iter().map(|kept| kept_lease(kept, names)).collect();
    }
    known.iter().map(|view| lease(view, &kept, names)).collect()
}

/// A block that is remembered, and who had it.
fn kept_lease(kept: &NatLease, names: &Names<'_>) -> Value {
    let (port, gone) = names.then(kept.uid, kept.port.as_deref());
    json!({
        "port": port,
        "uid": kept.uid,
        "gone": gone,
        "address": kept.address,
        "pool": names.pool(kept.address).map(|(name, _)| name),
        "firstPort": kept.first,
        "lastPort": kept.last,
        "since": rfc3339(kept.since()),
        "until": kept.until().map(rfc3339),
        "mappings": null,
    })
}

/// A block and who has it, or had it at the time of which `kept` is remembered.
fn lease(view: &LeaseView, kept: &[NatLease], names: &Names<'_>) -> Value {
    let block = &view.lease.block;
    let address = unmapped(block.address);
    let same = kept.iter().find(|kept| (kept.uid, kept.first) == (view.port, block.first));
    let (port, gone) = names.then(view.port, same.and_then(|kept| kept.port.as_deref()));
    json!({
        "port": port,
        "uid": view.port,
        "gone": gone,
        "address": address,
        "pool": names.pool(address).map(|(name, _)| name),
        "firstPort": block.first,
        "lastPort": u32::from(block.first) + u32::from(block.size) - 1,
        "since": rfc3339(view.since),
        "until": view.until.map(rfc3339),
        "mappings": view.lease.mappings,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::config::{Assignment, ObjectKey};

    /// What there is where a port of the namespace `shop` has a uid.
    pub fn with_port(uid: Uuid, name: &str) -> Snapshot {
        let assignment = Assignment {
            uid,
            network: "default".to_owned(),
            mac: Default::default(),
            v4: None,
            v6: None,
            learned: Vec::new(),
        };
        let mut snapshot = Snapshot::default();
        snapshot.assignments = Arc::new([(ObjectKey::port("shop", name), assignment)].into());
        snapshot
    }

    /// The uid of the host in a network follows from the VNI, which another network gets when the first is gone.
    #[test]
    fn history_keeps_the_name_that_a_port_had() {
        let uid = Uuid::from_u128(7);
        let snapshot = with_port(uid, "new");
        for address in ["203.0.113.7", "2001:db8::7"] {
            let kept = |port: Option<&str>| NatLease {
                uid,
                port: port.map(str::to_owned),
                address: address.parse().unwrap(),
                first: 1024,
                last: 1535,
                since: 100,
                until: Some(200),
            };
            let ledger = NatLedger::new(BTreeMap::from([(0, kept(Some("shop/old")))]));
            let names = Names::new(&snapshot, &ledger);
            let told = |kept: NatLease| {
                let told = kept_lease(&kept, &names);
                (told["port"].clone(), told["gone"].clone())
            };
            assert_eq!(told(kept(Some("shop/old"))), (json!("shop/old"), json!(true)));
            assert_eq!(told(kept(Some("shop/new"))), (json!("shop/new"), json!(false)));
            assert_eq!(told(kept(None)), (json!("shop/new"), json!(false)));
            let gone = NatLease { uid: Uuid::from_u128(8), ..kept(Some("shop/x")) };
            assert_eq!(told(gone), (json!("shop/x"), json!(true)));
        }
    }
}
