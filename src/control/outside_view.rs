//! What people and programs are told about uplink, pools and attached addresses: the `status` of their objects.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::controller::Snapshot;
use crate::config::checked::{AddressPool, NatPool, Network, Object};
use crate::config::outside::{Attachment, Given, attachment, egress_of};
use crate::config::policies::namespace_labels;
use crate::config::{Kind, ObjectKey, ObjectSet};
use hostweave_switch::tables::Egress;

/// Whether the guest sees an attached address.
pub fn attachment_mode(set: &ObjectSet, attachment: &Attachment<'_>) -> &'static str {
    mode(attachment.one_to_one(set))
}

/// How an address is attached.
pub fn mode(one_to_one: bool) -> &'static str {
    if one_to_one { "nat" } else { "direct" }
}

/// The Service whose address a port has: its name, addresses, and whether the guest sees them; and which of them are of no use because
/// the port's network has no range of their family.
pub fn attached(snapshot: &Snapshot, port: &ObjectKey) -> Option<Value> {
    let attachment = attachment(&snapshot.set, port)?;
    let (used, unused) = split(snapshot, &attachment);
    let mode = mode(attachment.one_to_one(&snapshot.set));
    let mut attached = json!({"service": attachment.service_key().path(), "addresses": used, "mode": mode});
    if !unused.is_empty() {
        attached["unused"] = json!(unused);
    }
    Some(attached)
}

/// The addresses of an attachment that its port has, and those that nobody has.
pub fn split(snapshot: &Snapshot, attachment: &Attachment<'_>) -> (Vec<IpAddr>, Vec<IpAddr>) {
    let given = snapshot.services.get(&attachment.service_key()).map(Vec::as_slice).unwrap_or_default();
    let (used, unused) = attachment.split(&snapshot.set, given);
    let addresses = |given: Vec<&Given>| given.iter().map(|given| given.address).collect();
    (addresses(used), addresses(unused))
}

/// The addresses that a guest has on its own NIC because they are attached.
pub fn direct_addresses(snapshot: &Snapshot, port: &ObjectKey) -> Vec<IpAddr> {
    let Some(attachment) = attachment(&snapshot.set, port).filter(|attachment| !attachment.one_to_one(&snapshot.set))
    else {
        return Vec::new();
    };
    split(snapshot, &attachment).0
}

/// `status` of an AddressPool.
pub fn address_pool(snapshot: &Snapshot, object: &Object, pool: &AddressPool) -> Value {
    let services = snapshot
        .services
        .iter()
        .filter(|(_, given)| given.iter().any(|one| one.pool() == Some(object.key.name.as_str())));
    let services: Vec<String> = services.map(|(key, _)| key.path()).collect();
    let mut used: Vec<IpAddr> = snapshot
        .services
        .values()
        .flatten()
        .filter(|given| given.pool() == Some(object.key.name.as_str()))
        .map(|given| given.address)
        .collect();
    used.sort_unstable();
    used.dedup();
    let size = pool.ranges.iter().fold(0_u128, |sum, range| sum.saturating_add(range.count()));
    json!({
        // Beyond 2^53 a number in JSON is not what was written (RFC 8259 §6).
        "size": u64::try_from(size).unwrap_or(u64::MAX).min(1 << 53),
        "inUse": used.len(),
        "services": services,
    })
}

/// `status` of a NatPool, as far as its objects say.
pub fn nat_pool(snapshot: &Snapshot, pool: &NatPool) -> Value {
    let set = &snapshot.set;
    let networks: Vec<&str> = set.networks().map(|(name, _)| name).filter(|name| serves(pool, name)).collect();
    let labels = |name: &str| {
        let namespace = set.get(&ObjectKey::new(Kind::Namespace, None, name));
        namespace.map(|namespace| namespace_labels(namespace)).unwrap_or_default()
    };
    let served = set.ports().filter(|(key, _, port)| {
        let everybody = pool.selector.requirements.is_empty() && pool.namespaces.requirements.is_empty();
        serves(pool, &port.network)
            && (everybody
                || pool.selector.matches(&set.labels_of(key))
                    && pool.namespaces.matches(&labels(key.namespace.as_deref().unwrap_or_default())))
    });
    let blocks = format!("{}-{} of {}", pool.blocks.start(), pool.blocks.end(), pool.block_size);
    json!({
        "addresses": pool.addresses.len(),
        "draining": pool.draining,
        "networks": networks,
        "ports": served.count(),
        "blocks": blocks,
    })
}

fn serves(pool: &NatPool, network: &str) -> bool {
    pool.serves(network, true) || pool.serves(network, false)
}

/// What becomes of packets that leave a network, by family.
pub fn egress(snapshot: &Snapshot, name: &str, network: &Network) -> Value {
    let word = |ipv4| match egress_of(&snapshot.set, name, network, ipv4) {
        Egress::None | Egress::Forbidden => "none",
        Egress::Nat => "nat",
        Egress::Routed => "routed",
    };
    json!({"ipv4": word(true), "ipv6": word(false)})
}
