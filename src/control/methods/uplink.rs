//! `uplink.get`: the way out, as it is.

use std::net::IpAddr;

use hostweave_switch::MacAddr;
use hostweave_switch::tables::{NextHop, Owned};
use serde_json::{Value, json};

use super::server::Empty;
use crate::config::outside::{attachments, nat_pools};
use crate::control::controller::Snapshot;
use crate::control::error::{ErrorKind, RpcError};
use crate::control::method::Call;
use crate::control::view::counters;
use crate::fabric::spec::UplinkDriver;
use crate::fabric::uplink::UplinkStatus;
use crate::fabric::uplink::owned::public_addresses;

pub fn get(call: &Call<'_>, _: Empty) -> Result<Value, RpcError> {
    let Some(status) = call.controller.parts.fabric.uplink_status() else {
        let error = RpcError::new(ErrorKind::NotFound, "", "there is no uplink: ports reach only each other");
        return Err(error.help("write HostConfig.spec.uplink. See: hostweave explain HostConfig.spec.uplink"));
    };
    let snapshot = call.controller.snapshot();
    let owned: Vec<Value> = status.owned.iter().map(|(address, owner)| owner_of(&snapshot, *address, owner)).collect();
    Ok(json!({
        "interface": status.spec.interface,
        "driver": match status.spec.driver { UplinkDriver::AfPacket => "afPacket", UplinkDriver::Tap => "tap", UplinkDriver::AfXdp => "afXdp" },
        "link": status.link,
        "reason": status.reason,
        "mac": status.mac.map(|mac| mac.to_string()),
        "mtu": status.mtu,
        "vlan": status.spec.vlan,
        "addresses": status.spec.addresses,
        "gateways": status.gateways.iter().map(hop).collect::<Vec<_>>(),
        "neighbors": status.neighbors.iter().map(hop).collect::<Vec<_>>(),
        "owned": owned,
        "conflicts": conflicts(&status),
        "routed": status.routed,
        "counters": counters(&status.totals),
        "missedPackets": status.missed,
    }))
}

fn hop(hop: &NextHop) -> Value {
    let state = if hop.mac.is_some() { "reachable" } else { "unresolved" };
    json!({"address": hop.address, "mac": hop.mac.map(|mac| mac.to_string()), "state": state})
}

/// Addresses that somebody else has, so that they are not used, and those that somebody else claims and that are used all the same.
fn conflicts(status: &UplinkStatus) -> Vec<Value> {
    let conflict = |used: bool| move |(address, mac): &(IpAddr, MacAddr)| json!({"type": "Conflict", "address": address, "mac": mac.to_string(), "used": used});
    status.lost.iter().map(conflict(false)).chain(status.contested.iter().map(conflict(true))).collect()
}

/// Whose an address at the uplink is, by the names of objects.
fn owner_of(snapshot: &Snapshot, address: IpAddr, owner: &Owned) -> Value {
    match owner {
        Owned::Host => json!({"address": address, "owner": "host"}),
        Owned::Nat => {
            let has = |(_, pool): &(_, &crate::config::checked::NatPool)| pool.addresses.contains(&address);
            let pool = nat_pools(&snapshot.set).find(has).map(|(object, _)| object.key.name.as_str());
            json!({"address": address, "owner": "natPool", "name": pool})
        }
        Owned::Service => {
            let has = |name: &&(&str, IpAddr)| name.1 == address;
            let services: Vec<&str> = public_addresses(&snapshot.desired)
                .collect::<Vec<_>>()
                .iter()
                .filter(has)
                .map(|(name, _)| *name)
                .collect();
            json!({"address": address, "owner": "service", "name": services.first(), "services": services})
        }
        Owned::Attached { inside, .. } => {
            let service = snapshot.services.iter().find(|(_, given)| given.iter().any(|one| one.address == address));
            let port = service
                .and_then(|(key, _)| attachments(&snapshot.set).find(|attachment| attachment.service_key() == *key));
            json!({
                "address": address,
                "owner": "service",
                "name": service.map(|(key, _)| key.path()),
                "port": port.map(|attachment| attachment.port.key.path()),
                "mode": if inside.is_some() { "nat" } else { "direct" },
            })
        }
    }
}
