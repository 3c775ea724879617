//! What happens below control: events of the fabric become events of the log, and addresses that guests formed become
//! assignments (SEMANTICS RA5).
//!
//! Guests cause most of these events, so each port has a budget per minute; what exceeds it is counted, not told. Blocks of L4 ports
//! are outside of it: there are only so many, and each is told when it begins and when it ends (RFC 6888 REQ-12), whatever else its
//! port does.

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;

use super::controller::Controller;
use super::nat_ledger::NatLease;
use crate::config::ipam::{LearnError, learn};
use crate::config::{Kind, ObjectKey};
use crate::fabric::balance::choice::BackendState;
use crate::fabric::balance::history::Change;
use crate::fabric::balance::serving::Serving;
use crate::fabric::spec::{FabricEvent, NameChange};
use crate::observe::events::{EventLog, EventType};
use crate::observe::time::rfc3339;

/// Events that one port may cause in [`WINDOW`].
const EVENTS_PER_WINDOW: u32 = 60;

/// See [`EVENTS_PER_WINDOW`].
const WINDOW: Duration = Duration::from_secs(60);

/// Events taken at once: addresses learned together cost one write to disk.
const BATCH_MAX: usize = 256;

/// Takes events until the fabric is gone.
pub async fn run(controller: Arc<Controller>, mut events: UnboundedReceiver<FabricEvent>) {
    let mut budgets = Budgets::default();
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while events.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let taken = std::mem::take(&mut batch);
        let controller = Arc::clone(&controller);
        // Learning an address writes to disk.
        let handled = tokio::task::spawn_blocking(move || {
            handle(&controller, taken, &mut budgets);
            budgets
        });
        budgets = match handled.await {
            Ok(budgets) => budgets,
            Err(error) => {
                tracing::error!(%error, "an event of the packet path could not be handled");
                Budgets::default()
            }
        };
    }
}

fn handle(controller: &Controller, events: Vec<FabricEvent>, budgets: &mut Budgets) {
    let mut seen: Vec<(ObjectKey, Ipv6Addr)> = Vec::new();
    // Who was ejected, or is back, is known after a restart.
    if events.iter().any(|event| matches!(event, FabricEvent::ServiceBackend { .. }))
        && let Err(error) = controller.remember_backends()
    {
        tracing::warn!(%error, "backends that are ejected will not be after a restart");
    }
    let (mut leases, mut lost) = (Vec::new(), false);
    for event in events {
        let event = match event {
            FabricEvent::NatEventsLost => {
                lost = true;
                continue;
            }
            FabricEvent::NatBlockAllocated { lease, port } | FabricEvent::NatBlockReleased { lease, port } => {
                let lease = named(controller, &leases, NatLease::new(&lease, port));
                tell_block(&controller.parts.events, &lease);
                leases.push(lease);
                continue;
            }
            event => event,
        };
        match &event {
            FabricEvent::AddressSeen { port, address, .. } => seen.extend(key_of(port).map(|key| (key, *address))),
            _ => tell_event(&controller.parts.events, budgets, event),
        }
    }
    controller.nat_ledger.record(&controller.parts.store, leases);
    if lost {
        controller.recall_nat_leases(true);
    }
    if seen.is_empty() {
        return;
    }
    let mut outcomes = Vec::new();
    let result = controller.with_assignments(|set, assignments| {
        let mut changed = Vec::new();
        for (key, address) in seen {
            let outcome = learn(set, assignments, &key, address);
            if outcome == Ok(true) && !changed.contains(&key) {
                changed.push(key.clone());
            }
            outcomes.push((key, address, outcome));
        }
        changed
    });
    for (key, address, outcome) in outcomes {
        let data = json!({"address": address});
        match (&result, outcome) {
            (_, Ok(false) | Err(LearnError::NoPort)) => {}
            (Ok(()), Ok(true)) => {
                let message = format!("the guest formed {address} and may use it");
                tell(&controller.parts.events, budgets, EventType::AddressLearned, Some(&key), message, data);
            }
            (Err(error), Ok(true)) => {
                let message = format!("the guest formed {address}, which could not be remembered: {error:#}");
                tell(&controller.parts.events, budgets, EventType::AddressRefused, Some(&key), message, data);
            }
            (_, Err(reason)) => {
                let message = format!("the guest formed {address} and may not use it: {reason}");
                tell(&controller.parts.events, budgets, EventType::AddressRefused, Some(&key), message, data);
            }
        }
    }
}

/// A lease with the name that its port has, or had last.
fn named(controller: &Controller, recent: &[NatLease], mut lease: NatLease) -> NatLease {
    let last = || recent.iter().rev().find(|other| other.uid == lease.uid).and_then(|other| other.port.clone());
    let now = || {
        let snapshot = controller.snapshot();
        let port = snapshot.assignments.iter().find(|(_, assignment)| assignment.uid == lease.uid);
        port.map(|(key, _)| key.path())
    };
    lease.port = lease.port.or_else(last).or_else(|| controller.nat_ledger.name(lease.uid)).or_else(now);
    lease
}

/// A block begins or ends to be a port's. It is told whatever the port's budget, and whether or not the port is still there.
fn tell_block(events: &EventLog, lease: &NatLease) {
    let key = lease.port.as_deref().and_then(key_of);
    let (event_type, verb) = match lease.until {
        None => (EventType::NatBlockAllocated, "got"),
        Some(_) => (EventType::NatBlockReleased, "gave back"),
    };
    let NatLease { uid, address, first, last, .. } = lease;
    let who = if key.is_some() { String::new() } else { format!("port {uid} ") };
    let message = format!("{who}{verb} the L4 ports {first} to {last} of {address}");
    let data = json!({
        "address": address,
        "firstPort": first,
        "lastPort": last,
        "uid": uid,
        "port": lease.port,
        "since": rfc3339(lease.since()),
        "until": lease.until().map(rfc3339),
    });
    events.add(event_type, key.as_ref(), message, data);
}

/// An event of the packet path, with the object that it is about.
fn tell_event(events: &EventLog, budgets: &mut Budgets, event: FabricEvent) {
    let key = match port_of(&event) {
        Some(port) => key_of(port),
        None => service_of(&event),
    };
    // Of internal ports nothing is told, but that the host, or a port that is gone, goes without L4 ports.
    let went_without = matches!(event, FabricEvent::NatExhausted { .. } | FabricEvent::NatTableFull { .. });
    let is_told = key.is_some() || port_of(&event).is_none() || went_without;
    if is_told {
        let (event_type, message, data) = describe(event);
        tell(events, budgets, event_type, key.as_ref(), message, data);
    }
}

fn tell(
    events: &EventLog,
    budgets: &mut Budgets,
    event_type: EventType,
    key: Option<&ObjectKey>,
    message: String,
    data: Value,
) {
    let whose = key.map_or(Whose::Uplink(event_type), |key| Whose::Object(key.clone()));
    if budgets.take(&whose, Instant::now()) {
        events.add(event_type, key, message, data);
    } else {
        events.count_lost(1);
    }
}

/// `namespace/name` as a key. Internal ports of networks have no object.
fn key_of(port: &str) -> Option<ObjectKey> {
    let (namespace, name) = port.split_once('/')?;
    (!name.contains('/')).then(|| ObjectKey::port(namespace, name))
}

/// The Service that an event is about.
fn service_of(event: &FabricEvent) -> Option<ObjectKey> {
    let service: &str = match event {
        FabricEvent::ServiceBackend { service, .. } | FabricEvent::ServiceServing { service, .. } => service,
        FabricEvent::ExternalName { service, .. } | FabricEvent::ExternalNameRefused { service, .. } => service,
        _ => return None,
    };
    let (namespace, name) = service.split_once('/')?;
    Some(ObjectKey::new(Kind::Service, Some(namespace), name))
}

/// The port that an event is about; `None` for those of Services, of the uplink and of DNS.
fn port_of(event: &FabricEvent) -> Option<&str> {
    match event {
        FabricEvent::Connected { port, .. }
        | FabricEvent::Started { port, .. }
        | FabricEvent::Stopped { port, .. }
        | FabricEvent::Disconnected { port, .. }
        | FabricEvent::Fault { port, .. }
        | FabricEvent::AttachFailed { port, .. }
        | FabricEvent::AddressSeen { port, .. }
        | FabricEvent::AddressDeclined { port, .. }
        | FabricEvent::LeaseConfirmed { port, .. }
        | FabricEvent::NatExhausted { port, .. }
        | FabricEvent::NatTableFull { port, .. } => Some(port),
        FabricEvent::DnsUpstream { .. }
        | FabricEvent::NatBlockAllocated { .. }
        | FabricEvent::NatBlockReleased { .. }
        | FabricEvent::NatEventsLost
        | FabricEvent::ServiceBackend { .. }
        | FabricEvent::ServiceServing { .. }
        | FabricEvent::ExternalName { .. }
        | FabricEvent::ExternalNameRefused { .. }
        | FabricEvent::UplinkUp { .. }
        | FabricEvent::UplinkDown { .. }
        | FabricEvent::UplinkFailed { .. }
        | FabricEvent::GatewayReachable { .. }
        | FabricEvent::GatewayUnreachable { .. }
        | FabricEvent::UplinkAddressConflict { .. }
        | FabricEvent::UplinkAddressLost { .. }
        | FabricEvent::UplinkAddressRegained { .. } => None,
    }
}

fn describe(event: FabricEvent) -> (EventType, String, Value) {
    match event {
        FabricEvent::Connected { socket, pid, uid, .. } => {
            let message = format!("a VMM connected (process {pid}, user {uid})");
            (EventType::PortConnected, message, json!({"socketPath": socket, "pid": pid, "uid": uid}))
        }
        FabricEvent::Started { socket, features, queue_pairs, .. } => {
            let message = format!("running with {queue_pairs} queue pair{}", if queue_pairs == 1 { "" } else { "s" });
            let data = json!({"socketPath": socket, "features": features, "queuePairs": queue_pairs});
            (EventType::PortRunning, message, data)
        }
        FabricEvent::Stopped { socket, .. } => {
            (EventType::PortStopped, "the guest's driver stopped its queues".to_owned(), json!({"socketPath": socket}))
        }
        FabricEvent::Disconnected { socket, .. } => {
            (EventType::PortDisconnected, "the VMM went away".to_owned(), json!({"socketPath": socket}))
        }
        FabricEvent::Fault { socket, reason, .. } => {
            (EventType::PortFaulted, format!("stopped: {reason}"), json!({"socketPath": socket, "reason": reason}))
        }
        FabricEvent::AttachFailed { reason, .. } => {
            let message = format!("could not be set up and is tried again: {reason}");
            (EventType::PortAttachFailed, message, json!({"reason": reason}))
        }
        FabricEvent::AddressSeen { address, .. } => {
            (EventType::AddressLearned, format!("the guest formed {address}"), json!({"address": address}))
        }
        FabricEvent::AddressDeclined { address, .. } => {
            let message = format!("the guest declined {address}: another machine seems to have it");
            (EventType::AddressDeclined, message, json!({"address": address}))
        }
        FabricEvent::LeaseConfirmed { address, .. } => {
            (EventType::LeaseConfirmed, format!("the guest leased {address}"), json!({"address": address}))
        }
        FabricEvent::NatExhausted { port, pool, address, biggest, ports } => {
            let whom = if key_of(&port).is_some() { "it" } else { &port };
            let message = format!(
                "NAT pool {pool} has no more L4 ports of {address} for {whom} (largest user: {biggest}, {ports} L4 ports)"
            );
            let data = json!({"pool": pool, "address": address, "biggest": biggest, "ports": ports});
            (EventType::NatExhausted, message, data)
        }
        FabricEvent::NatTableFull { port, biggest, mappings } => {
            let whom = if key_of(&port).is_some() { "it" } else { &port };
            let message = format!(
                "the host has no room for more NAT mappings for {whom} (largest user: {biggest}, {mappings} mappings)"
            );
            (EventType::NatTableFull, message, json!({"biggest": biggest, "mappings": mappings}))
        }
        FabricEvent::DnsUpstream { server, failure: Some(reason) } => {
            let message = format!("DNS server {server} does not answer: {reason}");
            (EventType::DnsUpstreamFailed, message, json!({"server": server, "reason": reason}))
        }
        FabricEvent::DnsUpstream { server, failure: None } => {
            (EventType::DnsUpstreamRecovered, format!("DNS server {server} answers again"), json!({"server": server}))
        }
        FabricEvent::ServiceBackend { change, .. } => describe_backend(&change),
        FabricEvent::ServiceServing { serving, counts, .. } => describe_serving(&serving, &counts),
        FabricEvent::ExternalName { name, zone, what, .. } => describe_name(&name, &zone, what),
        FabricEvent::ExternalNameRefused { zone, reason, .. } => {
            let message = format!("not in the zone {zone}: {reason}");
            (EventType::ExternalNameRefused, message, json!({"zone": zone, "reason": reason}))
        }
        event => describe_outside(&event),
    }
}

/// What became of a backend of a Service.
fn describe_backend(change: &Change) -> (EventType, String, Value) {
    let Change { backend, address, port_name, from, to, reason, .. } = change;
    let at = if port_name.is_empty() { String::new() } else { format!(" of {port_name}") };
    let why = reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    let message = match (from, to) {
        (_, None) => format!("{backend} ({address}){at} is no backend any more"),
        (None, Some(to)) => format!("{backend} ({address}){at} is a new backend, {}{why}", to.name()),
        (Some(from), Some(to)) => format!("{backend} ({address}){at} is {}, and was {}{why}", to.name(), from.name()),
    };
    let data = json!({
        "backend": &**backend,
        "address": address,
        "portName": &**port_name,
        "from": from.map(BackendState::name),
        "to": to.map(BackendState::name),
        "reason": reason.as_deref(),
    });
    let event_type = match to {
        Some(BackendState::Unhealthy) => EventType::ServiceBackendUnhealthy,
        Some(BackendState::Ejected) => EventType::ServiceBackendEjected,
        _ => EventType::ServiceBackendChanged,
    };
    (event_type, message, data)
}

/// What became of a name in a real zone.
fn describe_name(name: &str, zone: &str, what: NameChange) -> (EventType, String, Value) {
    let (event_type, became) = match what {
        NameChange::Created => (EventType::ExternalNameCreated, "is in"),
        NameChange::Updated => (EventType::ExternalNameUpdated, "was changed in"),
        NameChange::Removed => (EventType::ExternalNameRemoved, "was removed from"),
    };
    (event_type, format!("{name} {became} the zone {zone}"), json!({"name": name, "zone": zone}))
}

/// Whether a Service has a backend that takes connections.
fn describe_serving(serving: &Serving, counts: &[(BackendState, usize)]) -> (EventType, String, Value) {
    let named: Vec<String> = counts.iter().map(|(state, count)| format!("{count} {}", state.name())).collect();
    let backends = if named.is_empty() { "it has none".to_owned() } else { named.join(", ") };
    let mut data: serde_json::Map<_, _> =
        counts.iter().map(|(state, count)| (state.name().into(), json!(count))).collect();
    let (kind, message) = match serving {
        Serving::Everywhere => (EventType::ServiceAvailable, format!("a backend takes connections again ({backends})")),
        Serving::NotAt(places) => {
            data.insert("notServed".into(), json!(places));
            let places = places.join(", ");
            (EventType::ServiceUnavailable, format!("no backend takes connections at {places}: {backends}"))
        }
        Serving::Nowhere => (EventType::ServiceUnavailable, format!("no backend takes connections: {backends}")),
    };
    (kind, message, data.into())
}

/// The same for what happens at the uplink.
fn describe_outside(event: &FabricEvent) -> (EventType, String, Value) {
    match event {
        FabricEvent::UplinkUp { interface, mtu } => {
            let message = format!("the uplink {interface} is up, with packets of up to {mtu} octets");
            (EventType::UplinkUp, message, json!({"interface": interface, "mtu": mtu}))
        }
        FabricEvent::UplinkDown { interface, reason } => {
            let message = format!("the uplink {interface} is down: {reason}");
            (EventType::UplinkDown, message, json!({"interface": interface, "reason": reason}))
        }
        FabricEvent::UplinkFailed { interface, reason } => {
            let message = format!("the uplink {interface} could not be set up and is tried again: {reason}");
            (EventType::UplinkFailed, message, json!({"interface": interface, "reason": reason}))
        }
        FabricEvent::GatewayReachable { address, mac } => {
            let message = format!("the gateway {address} answers, from {mac}");
            (EventType::GatewayReachable, message, json!({"address": address, "mac": mac.to_string()}))
        }
        FabricEvent::UplinkAddressConflict { address, mac } => {
            let message = format!("{mac} at the uplink claims our address {address}");
            (EventType::UplinkAddressConflict, message, json!({"address": address, "mac": mac.to_string()}))
        }
        FabricEvent::UplinkAddressLost { address, mac } => {
            let message =
                format!("{mac} at the uplink has our address {address}: it is not used until nobody else has it");
            (EventType::UplinkAddressLost, message, json!({"address": address, "mac": mac.to_string()}))
        }
        FabricEvent::UplinkAddressRegained { address } => {
            let message = format!("nobody else at the uplink has our address {address} any more: it is used");
            (EventType::UplinkAddressRegained, message, json!({"address": address}))
        }
        FabricEvent::GatewayUnreachable { address } => {
            let message = format!("the gateway {address} does not answer");
            (EventType::GatewayUnreachable, message, json!({"address": address}))
        }
        other => unreachable!("{other:?} is about a port"),
    }
}

/// Who causes events.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Whose {
    /// A port.
    Object(ObjectKey),
    /// Neighbours at the uplink, one kind of event for itself: what anybody can cause there must not hide the rest.
    Uplink(EventType),
}

/// How many events each port has caused lately.
#[derive(Default)]
struct Budgets(HashMap<Whose, (Instant, u32)>);

impl Budgets {
    /// Whether one more event of this port may be told.
    fn take(&mut self, key: &Whose, now: Instant) -> bool {
        if !self.0.contains_key(key) {
            // What is old says nothing: ports that are gone leave no trace.
            self.0.retain(|_, (since, _)| now.duration_since(*since) < WINDOW);
        }
        let (since, count) = self.0.entry(key.clone()).or_insert((now, 0));
        if now.duration_since(*since) >= WINDOW {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        *count <= EVENTS_PER_WINDOW
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_port_cannot_flood_the_log() {
        let mut budgets = Budgets::default();
        let (noisy, quiet) = (ObjectKey::port("a", "noisy"), ObjectKey::port("a", "quiet"));
        let (noisy, quiet) = (Whose::Object(noisy), Whose::Object(quiet));
        let start = Instant::now();
        let told = (0..1000).filter(|_| budgets.take(&noisy, start)).count();
        assert_eq!(told, EVENTS_PER_WINDOW as usize);
        assert!(budgets.take(&quiet, start));
        let claims = Whose::Uplink(EventType::UplinkAddressConflict);
        assert_eq!((0..1000).filter(|_| budgets.take(&claims, start)).count(), EVENTS_PER_WINDOW as usize);
        assert!(budgets.take(&Whose::Uplink(EventType::UplinkDown), start));
        assert!(budgets.take(&noisy, start + WINDOW));
    }

    /// RFC 6888 REQ-12: neither by its port's other events nor by its deletion does a block stay out of the log.
    #[test]
    fn every_block_is_told_whoever_had_it() {
        let events = EventLog::default();
        for address in ["203.0.113.7", "2001:db8::7"] {
            let lease = |port: Option<&str>, until| NatLease {
                uid: uuid::Uuid::from_u128(7),
                port: port.map(str::to_owned),
                address: address.parse().unwrap(),
                first: 1024,
                last: 1535,
                since: 1_795_447_801,
                until,
            };
            for _ in 0..2 * EVENTS_PER_WINDOW {
                tell_block(&events, &lease(Some("shop/web-0"), None));
                tell_block(&events, &lease(Some("shop/web-0"), Some(1_795_447_901)));
            }
            tell_block(&events, &lease(None, Some(1_795_447_901)));
            let told = events.list(&Default::default(), 1000);
            let (last, before) = (&told[told.len() - 1], &told[told.len() - 2]);
            assert_eq!(before.object().as_deref(), Some("Port shop/web-0"));
            assert_eq!(before.message, format!("gave back the L4 ports 1024 to 1535 of {address}"));
            let data = json!({
                "address": address, "firstPort": 1024, "lastPort": 1535, "uid": "00000000-0000-0000-0000-000000000007",
                "port": "shop/web-0", "since": "2026-11-23T15:30:01.000000Z", "until": "2026-11-23T15:31:41.000000Z",
            });
            assert_eq!(before.data, data);
            assert_eq!((last.object(), last.message.contains("port 00000000")), (None, true), "{last:?}");
            assert_eq!(last.data["uid"], data["uid"]);
        }
        assert_eq!(events.count(), 2 * (4 * u64::from(EVENTS_PER_WINDOW) + 1));
    }

    /// The host itself, for its checks of backends beyond it, and a port that was deleted meanwhile.
    #[test]
    fn exhaustion_is_told_of_whom_has_no_object_too() {
        let events = EventLog::default();
        let mut budgets = Budgets::default();
        let ports = ["shop/web-0", "network/default/internal", "00000000-0000-0000-0000-000000000007"];
        for address in ["203.0.113.7", "2001:db8::7"] {
            for port in ports {
                let (port, pool, biggest) = (port.to_owned(), "out".to_owned(), "shop/web-1".to_owned());
                let address = address.parse().unwrap();
                tell_event(
                    &events,
                    &mut budgets,
                    FabricEvent::NatExhausted { port, pool, address, biggest, ports: 512 },
                );
            }
            let told = events.list(&Default::default(), 3);
            let told: Vec<_> = told.iter().map(|event| (event.object(), event.message.as_str())).collect();
            let message = |whom| {
                format!(
                    "NAT pool out has no more L4 ports of {address} for {whom} (largest user: shop/web-1, 512 L4 ports)"
                )
            };
            let [own, host, gone] = ["it", ports[1], ports[2]].map(message);
            let object = Some("Port shop/web-0".to_owned());
            assert_eq!(told, [(object, &*own), (None, &*host), (None, &*gone)]);
        }
        for port in ports {
            let (port, biggest) = (port.to_owned(), "shop/web-1".to_owned());
            tell_event(&events, &mut budgets, FabricEvent::NatTableFull { port, biggest, mappings: 9 });
        }
        let told = events.list(&Default::default(), 3);
        for (event, whom) in told.iter().zip(["it", ports[1], ports[2]]) {
            let message =
                format!("the host has no room for more NAT mappings for {whom} (largest user: shop/web-1, 9 mappings)");
            assert_eq!((event.message.as_str(), &event.data["biggest"]), (&*message, &json!("shop/web-1")));
        }
    }

    #[test]
    fn internal_ports_have_no_object() {
        assert_eq!(key_of("shop/web-0"), Some(ObjectKey::port("shop", "web-0")));
        assert_eq!(key_of("network/default/internal"), None);
    }
}
