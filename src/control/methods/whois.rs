//! `whois.run`: whose an address is, or which port had it or an L4 port of it.
//!
//! Each of `owners` has `kind`, `name` and `text` (for people). What has a past, where `at` is given, and is not marked `"at": "now"`:
//!
//! - `natPool`: `lease` of the L4 port that was asked for, else `leases`, as `nat.lookup` has them.
//! - `service` with an attached address: `port`, its `uid`, whether it is `gone`, `network`, `pool`, `mode` (`direct`, or `nat` for 1:1), `since`,
//!   `until` (`null` while it goes on), and `untilAtLatest`: it ended while no daemon ran, and `until` is when one ran again.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::SystemTime;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::flow::moment;
use super::nat::{Names, address, lease_of, leases_of};
use crate::config::checked::{Network, PoolType};
use crate::config::outside::{Attachment, GivenOf, address_pools, attachments};
use crate::config::{Kind, ObjectKey};
use crate::control::attach_ledger::Attached;
use crate::control::controller::Snapshot;
use crate::control::error::{ErrorKind, RpcError};
use crate::control::method::Call;
use crate::control::outside_view::{mode, split};
use crate::fabric::spec::ServiceSpec;
use crate::observe::synthetic::protocol_name;
use crate::observe::time::{rfc3339, rfc3339_seconds};

/// Parameters of `whois.run`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Run {
    /// The address.
    address: String,
    /// L4 port of a NAT address.
    #[serde(default)]
    l4_port: Option<u16>,
    /// RFC 3339 time, for L4 ports of NAT addresses and for public addresses that are attached to a port; now if left out. Of other owners
    /// only the present ones are known: they are marked by `"at": "now"`.
    #[serde(default)]
    at: Option<String>,
}

pub fn run(call: &Call<'_>, params: Run) -> Result<Value, RpcError> {
    let asked = address("address", &params.address)?;
    let at = moment("at", params.at.as_deref())?;
    let snapshot = call.controller.snapshot();
    let names = Names::new(&snapshot, &call.controller.nat_ledger);
    let of = names.pool(asked).map(|(pool, _)| pool);
    let users = match params.l4_port {
        None => shared(of, leases_of(call, asked, at, &names), at),
        Some(l4) => single(of, l4, lease_of(call, asked, l4, at, &names), at),
    };
    let past = at.filter(|at| *at < SystemTime::now());
    let had = past.map(|at| call.controller.attach_ledger.at(asked, at)).unwrap_or_default();
    let mut owners = ports(&snapshot, asked);
    // What goes on is told once.
    if had.iter().all(|had| had.until.is_some()) {
        owners.extend(service(call, &snapshot, asked));
    }
    owners.extend(networks(&snapshot, asked));
    owners.extend(uplink(&snapshot, asked));
    // An address of a pool that a Service has is the Service's.
    if owners.is_empty() && users.is_none() && had.is_empty() {
        owners.extend(pool(&snapshot, asked));
    }
    if past.is_some() {
        owners.iter_mut().for_each(mark_present);
    }
    owners.splice(..0, had.iter().map(|had| attached(had, params.l4_port, &names)));
    owners.extend(users);
    if owners.is_empty() {
        let now = if past.is_some() { " now, and nobody is known to have had it or L4 ports of it then" } else { "" };
        let error = RpcError::new(ErrorKind::NotFound, "address", format!("{asked} is nobody's here{now}"));
        return Err(error.help("hostweave knows the addresses of networks, ports, Services, pools and its uplink"));
    }
    Ok(json!({"address": asked, "l4Port": params.l4_port, "at": at.map(rfc3339), "owners": owners}))
}

/// Says of an owner that it is the present one, where somebody asked for the past: nobody may take it for the owner then.
fn mark_present(owner: &mut Value) {
    owner["at"] = json!("now");
    owner["text"] = json!(format!("now: {}", owner["text"].as_str().unwrap_or_default()));
}

/// A port that had an attached address: all that it was, whichever L4 port is asked for.
fn attached(had: &Attached, l4: Option<u16>, names: &Names<'_>) -> Value {
    let (port, gone) = names.then(had.uid, Some(&had.port));
    let mut owner = json!({
        "kind": "service",
        "name": had.service,
        "pool": had.pool,
        "network": had.network,
        "port": port,
        "uid": had.uid,
        "gone": gone,
        "mode": mode(had.one_to_one),
        "since": rfc3339(had.since()),
        "until": had.until().map(rfc3339),
        "untilAtLatest": had.unheard,
    });
    let how = if had.one_to_one { " 1:1" } else { "" };
    let since = rfc3339_seconds(had.since());
    let span = match had.until().map(rfc3339_seconds) {
        None => format!("since {since}"),
        Some(until) if had.unheard => format!("from {since} to {until} at the latest (no daemon ran)"),
        Some(until) => format!("from {since} to {until}"),
    };
    let pool = had.pool.as_ref().map(|pool| format!(", of AddressPool {pool}")).unwrap_or_default();
    let all = if l4.is_some() { ", with all its L4 ports" } else { "" };
    owner["text"] = json!(format!("attached{how} to port {} {span}{all}{pool}", port_name(&owner)));
    owner
}

/// Who shares an address of a NAT pool, or shared it at a time; also one that its pool has no more, of which somebody has or had L4 ports.
fn shared(pool: Option<&str>, leases: Vec<Value>, at: Option<SystemTime>) -> Option<Value> {
    if pool.is_none() && leases.is_empty() {
        return None;
    }
    let users: BTreeSet<_> = leases.iter().filter_map(|lease| lease["uid"].as_str()).collect();
    let share = if at.is_some() { "shared" } else { "share" };
    let text = format!("{} ports {share} it{}", users.len(), left(pool));
    Some(json!({"kind": "natPool", "name": pool, "text": text, "leases": leases}))
}

/// Who has an L4 port of such an address, or had it at a time.
fn single(pool: Option<&str>, l4: u16, found: Option<Value>, at: Option<SystemTime>) -> Option<Value> {
    if pool.is_none() && found.is_none() {
        return None;
    }
    let had = if at.is_some() { "had" } else { "has" };
    let text = match &found {
        Some(lease) => format!("port {} {had} L4 port {l4}{}", port_name(lease), left(pool)),
        None => format!("nobody {had} L4 port {l4}"),
    };
    Some(json!({"kind": "natPool", "name": pool, "text": text, "lease": found}))
}

/// What is said of an address that its pool has no more.
fn left(pool: Option<&str>) -> &'static str {
    if pool.is_some() { "" } else { "; it is of no NatPool any more" }
}

/// The name of the port that has or had something, and whether it is gone.
fn port_name(lease: &Value) -> String {
    let name = lease["port"].as_str().or(lease["uid"].as_str()).unwrap_or("?");
    if lease["gone"] == true { format!("{name}, which is gone,") } else { name.to_owned() }
}

/// Ports that have it in their network: equal addresses of two networks are two ports'.
fn ports(snapshot: &Snapshot, asked: IpAddr) -> Vec<Value> {
    let mut owners = Vec::new();
    for (key, _, port) in snapshot.set.ports() {
        let Some(assignment) = snapshot.assignments.get(key) else { continue };
        let how = match asked {
            IpAddr::V4(v4) if assignment.v4 == Some(v4) => "automatic",
            IpAddr::V6(v6) if assignment.v6 == Some(v6) => "automatic",
            IpAddr::V6(v6) if assignment.learned.contains(&v6) => "learned",
            _ if port.fixed().any(|fixed| fixed == asked) => "fixed",
            _ => continue,
        };
        owners.push(json!({
            "kind": "port",
            "name": key.path(),
            "network": port.network,
            "text": format!("{how} address in network {}", port.network),
        }));
    }
    owners
}

fn service(call: &Call<'_>, snapshot: &Snapshot, asked: IpAddr) -> Vec<Value> {
    let has = |key: &ObjectKey| {
        snapshot.services.get(key).and_then(|given| given.iter().find(|given| given.address == asked))
    };
    let services = snapshot.set.of_kind(Kind::Service).filter_map(|object| Some((&object.key, has(&object.key)?)));
    services
        .map(|(key, given)| {
            let attached = attachments(&snapshot.set).find(|attachment| attachment.service_key() == *key);
            let port = attached.as_ref().map(|attachment| attachment.port.key.path());
            let network = attached.as_ref().map(Attachment::network);
            let unused = attached.filter(|attachment| split(snapshot, attachment).1.contains(&asked));
            let what = match (&given.of, &port) {
                (GivenOf::Network(network), _) => format!("cluster address in network {network}"),
                (GivenOf::Pool(pool), Some(port)) => match unused.map(|attachment| attachment.network()) {
                    Some(network) => {
                        format!("of AddressPool {pool}; nobody has it: network {network} of port {port} has no range of its family")
                    }
                    None => format!("attached to port {port}, of AddressPool {pool}"),
                },
                (GivenOf::Pool(pool), None) => format!("of AddressPool {pool}"),
            };
            let spec = snapshot.desired.services.iter().find(|spec| spec.name == key.path());
            json!({
                "kind": "service",
                "name": key.path(),
                "pool": given.pool(),
                "network": given.network().or(network),
                "port": port,
                "text": match spec {
                    Some(spec) => format!("{what}; {}", balanced(call, spec, asked)),
                    None => what,
                },
            })
        })
        .collect()
}

/// The L4 ports of a Service, and how many of its backends take connections to one of its addresses.
fn balanced(call: &Call<'_>, spec: &ServiceSpec, address: IpAddr) -> String {
    let public = spec.load_balancer.iter().any(|given| given.address == address && given.public);
    let ports = spec.ports.iter().map(|port| {
        let (first, last) = (port.l4.start(), port.l4.end());
        let l4 = if first == last { first.to_string() } else { format!("{first}-{last}") };
        format!("{l4}/{}", protocol_name(port.proto))
    });
    let ports = ports.collect::<Vec<_>>().join(", ");
    let status = call.controller.parts.fabric.service_status(&spec.name);
    let backends = status.map(|status| status.backends).unwrap_or_default();
    let of_family = || backends.iter().filter(|backend| backend.address.is_ipv4() == address.is_ipv4());
    let taking = of_family().filter(|backend| if public { backend.external } else { backend.internal }).count();
    format!("{ports}; {taking} of {} backends take connections", of_family().count())
}

/// The range or gateway of a network.
fn networks(snapshot: &Snapshot, asked: IpAddr) -> Vec<Value> {
    let range = |network: &Network| -> Option<(IpNet, IpAddr)> {
        let (net, gateway): (IpNet, IpAddr) = match asked {
            IpAddr::V4(_) => network.v4.map(|(net, gateway)| (net.into(), gateway.into()))?,
            IpAddr::V6(_) => network.v6.map(|(net, gateway)| (net.into(), gateway.into()))?,
        };
        net.contains(&asked).then_some((net, gateway))
    };
    let inside = snapshot.set.networks().filter_map(|(name, network)| Some((name, range(network)?)));
    inside
        .map(|(name, (net, gateway))| {
            let text = match asked == gateway {
                true => format!("gateway of {net}: the switch itself"),
                false => format!("in its range {net}"),
            };
            json!({"kind": "network", "name": name, "text": text})
        })
        .collect()
}

fn uplink(snapshot: &Snapshot, asked: IpAddr) -> Option<Value> {
    let uplink = snapshot.set.host().uplink.as_ref()?;
    let own = uplink.addresses.iter().any(|net| net.addr() == asked);
    let text = match () {
        () if own => "the host's own address at the uplink",
        () if uplink.gateways.contains(&asked) => "a router at the uplink",
        () => return None,
    };
    Some(json!({"kind": "uplink", "name": uplink.interface, "text": text}))
}

/// An AddressPool whose address nobody has.
fn pool(snapshot: &Snapshot, asked: IpAddr) -> Option<Value> {
    let (object, pool) = address_pools(&snapshot.set).find(|(_, pool)| pool.contains(asked))?;
    let word = if pool.pool_type == PoolType::Public { "public" } else { "private" };
    Some(json!({"kind": "addressPool", "name": object.key.name, "text": format!("{word}, given to no Service")}))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use uuid::Uuid;

    use super::*;
    use crate::control::attach_ledger::tests::attached as entry;
    use crate::control::methods::nat::tests::with_port;
    use crate::control::nat_ledger::NatLedger;

    #[test]
    fn who_had_an_attached_address_is_said_with_when_and_how() {
        let uid = Uuid::from_u128(7);
        let snapshot = with_port(uid, "web");
        let names = Names::new(&snapshot, &NatLedger::default());
        for address in ["203.0.113.7", "2001:db8::7"] {
            let had = Attached { port: "shop/web".to_owned(), since: 100, ..entry(7, address) };
            let told = attached(&had, Some(25), &names);
            let text =
                "attached to port shop/web since 1970-01-01T00:01:40Z, with all its L4 ports, of AddressPool public";
            let expected = json!({
                "kind": "service", "name": "shop/ip", "pool": "public", "network": "default", "port": "shop/web", "uid": uid,
                "gone": false, "mode": "direct", "since": "1970-01-01T00:01:40.000000Z", "until": null,
                "untilAtLatest": false, "text": text,
            });
            assert_eq!(told, expected);
            // Another port may have the name by now, and another uid.
            let gone = Attached { uid: Uuid::from_u128(8), until: Some(160), ..had.clone() };
            let told = attached(&Attached { one_to_one: true, pool: None, ..gone.clone() }, None, &names);
            let span = "from 1970-01-01T00:01:40Z to 1970-01-01T00:02:40Z";
            assert_eq!(told["text"], format!("attached 1:1 to port shop/web, which is gone, {span}"));
            assert_eq!((&told["gone"], &told["mode"]), (&json!(true), &json!("nat")));
            assert_eq!((&told["until"], &told["pool"]), (&json!("1970-01-01T00:02:40.000000Z"), &json!(null)));
            let told = attached(&Attached { unheard: true, ..gone }, None, &names);
            let text = format!("{span} at the latest (no daemon ran), of AddressPool public");
            assert!(told["text"].as_str().unwrap().ends_with(&text) && told["untilAtLatest"] == true, "{told}");
        }
    }

    #[test]
    fn a_present_owner_says_so_to_people_and_to_programs() {
        let mut owner = json!({"kind": "port", "name": "shop/web-0", "text": "fixed address in network default"});
        mark_present(&mut owner);
        let marked =
            json!({"kind": "port", "name": "shop/web-0", "text": "now: fixed address in network default", "at": "now"});
        assert_eq!(owner, marked);
    }

    #[test]
    fn who_had_l4_ports_of_an_address_is_known_when_its_pool_has_it_no_more() {
        let lease = json!({"uid": "u", "port": "shop/web-0", "gone": true});
        let at = Some(UNIX_EPOCH);
        let text = |owner: Option<Value>| owner.map(|owner| (owner["name"].clone(), owner["text"].clone()));
        let said = |name: Option<&str>, text: &str| Some((json!(name), json!(text)));
        let (all, one) = (vec![lease.clone()], Some(lease));
        assert_eq!(text(shared(Some("out"), all.clone(), at)), said(Some("out"), "1 ports shared it"));
        assert_eq!(text(shared(None, all, at)), said(None, "1 ports shared it; it is of no NatPool any more"));
        let had = "port shop/web-0, which is gone, had L4 port 1024";
        assert_eq!(text(single(Some("out"), 1024, one.clone(), at)), said(Some("out"), had));
        assert_eq!(text(single(None, 1024, one, at)), said(None, &format!("{had}; it is of no NatPool any more")));
        assert_eq!(text(single(Some("out"), 1024, None, None)), said(Some("out"), "nobody has L4 port 1024"));
        assert_eq!((shared(None, vec![], at), single(None, 1024, None, at)), (None, None));
    }
}
