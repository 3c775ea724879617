//! The log of events: the last few thousand things that happened to ports and objects, and a live feed of them.
//!
//! The log is bounded. What falls out of it, and what a slow subscriber misses, is counted and told, never silent.
//! Events come from control and from the fabric, some per second at most, never per packet.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::broadcast;

use super::time::rfc3339;
use crate::config::{Kind, ObjectKey};

/// Events that are kept.
pub const EVENTS_MAX: usize = 4096;

/// Events that a subscriber may be behind before it loses some.
const BACKLOG_MAX: usize = 1024;

/// How an event is to be taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Normal,
    /// Somebody should look.
    Warning,
}

macro_rules! event_types {
    ($($(#[doc = $doc:literal])+ $variant:ident $severity:ident,)+) => {
        /// What kind of thing happened. The list is closed; names are stable.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, JsonSchema)]
        pub enum EventType { $($(#[doc = $doc])+ $variant,)+ }

        impl EventType {
            /// Every type.
            pub const ALL: &'static [EventType] = &[$(EventType::$variant,)+];

            /// The name in JSON and on the command line.
            pub fn name(self) -> &'static str {
                match self { $(EventType::$variant => stringify!($variant),)+ }
            }

            /// How it is to be taken.
            pub fn severity(self) -> Severity {
                match self { $(EventType::$variant => Severity::$severity,)+ }
            }
        }
    };
}

event_types! {
    /// The daemon is ready.
    DaemonStarted Normal,
    /// The daemon is shutting down.
    DaemonStopping Normal,
    /// The configuration files were read again.
    Reloaded Normal,
    /// The configuration files were read again and refused; the old state stays.
    ReloadFailed Warning,
    /// An object is new.
    ObjectCreated Normal,
    /// An object was changed.
    ObjectUpdated Normal,
    /// An object is gone.
    ObjectDeleted Normal,
    /// A VMM connected to the port's socket.
    PortConnected Normal,
    /// The guest's driver started its queues: traffic passes.
    PortRunning Normal,
    /// The guest's driver stopped its queues.
    PortStopped Normal,
    /// The VMM went away.
    PortDisconnected Normal,
    /// The guest or its VMM broke the rules; the port is stopped until it reconnects.
    PortFaulted Warning,
    /// The port's socket or device could not be set up; it is tried again.
    PortAttachFailed Warning,
    /// The guest formed an IPv6 address and may use it.
    AddressLearned Normal,
    /// The guest formed an IPv6 address and may not use it.
    AddressRefused Warning,
    /// The guest declined its DHCP address: somebody else answers for it.
    AddressDeclined Warning,
    /// A DHCP lease was confirmed to the guest.
    LeaseConfirmed Normal,
    /// An upstream DNS server does not answer; it is asked last from now on.
    DnsUpstreamFailed Warning,
    /// An upstream DNS server answers again.
    DnsUpstreamRecovered Normal,
    /// Frames pass the uplink.
    UplinkUp Normal,
    /// No frames pass the uplink any more.
    UplinkDown Warning,
    /// The uplink could not be set up; it is tried again.
    UplinkFailed Warning,
    /// A router at the uplink answers.
    GatewayReachable Normal,
    /// A router at the uplink does not answer.
    GatewayUnreachable Warning,
    /// Somebody else at the uplink claims an address of ours.
    UplinkAddressConflict Warning,
    /// Somebody else at the uplink has an address of ours: it is not used.
    UplinkAddressLost Warning,
    /// Nobody else has that address any more: it is used again.
    UplinkAddressRegained Normal,
    /// A port got L4 ports of a NAT address.
    NatBlockAllocated Normal,
    /// L4 ports of a NAT address are free again.
    NatBlockReleased Normal,
    /// A port wanted more L4 ports of a NAT address than there are.
    NatExhausted Warning,
    /// A port wanted another NAT mapping and the host's table had no room.
    NatTableFull Warning,
    /// A backend of a Service is new, gone, or otherwise than before.
    ServiceBackendChanged Normal,
    /// A backend of a Service fails its checks.
    ServiceBackendUnhealthy Warning,
    /// Clients cannot connect to a backend of a Service: it is out for a while.
    ServiceBackendEjected Warning,
    /// No backend of a Service takes connections.
    ServiceUnavailable Warning,
    /// A backend of a Service takes connections again.
    ServiceAvailable Normal,
    /// A name of a Service is in a real zone now.
    ExternalNameCreated Normal,
    /// It stands for something else.
    ExternalNameUpdated Normal,
    /// It is not there any more.
    ExternalNameRemoved Normal,
    /// A Service does not get a name in a real zone.
    ExternalNameRefused Warning,
}

/// Something that happened.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Number of the event, from 1, without gaps while the daemon runs.
    pub seq: u64,
    /// When, RFC 3339, UTC.
    pub time: String,
    /// What kind of thing happened.
    #[serde(rename = "type")]
    pub event_type: EventType,
    /// How it is to be taken.
    pub severity: Severity,
    /// Kind of the object that it happened to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// Its namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// One sentence.
    pub message: String,
    /// The values in it.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub data: Value,
}

impl Event {
    /// `Port shop/web-0`, or nothing for events of the daemon.
    pub fn object(&self) -> Option<String> {
        Some(ObjectKey::new(self.kind?, self.namespace.as_deref(), self.name.as_deref()?).to_string())
    }
}

/// Which events somebody wants: all conditions that are given must hold.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Filter {
    /// Only these types.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub types: Vec<EventType>,
    /// Only this severity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub severity: Option<Severity>,
    /// Only objects of this kind, such as `Port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Only objects of this namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Only objects with one of these names: `name`, or `namespace/name`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// Only events with one of these addresses among their values.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<std::net::IpAddr>,
    /// The other events instead.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub not: bool,
}

impl Filter {
    /// Only events of one object.
    pub fn of_object(key: &ObjectKey) -> Self {
        Self {
            kind: Some(key.kind.as_str().to_owned()),
            namespace: key.namespace.clone(),
            names: vec![key.name.clone()],
            ..Self::default()
        }
    }

    /// Whether `event` is wanted.
    pub fn wants(&self, event: &Event) -> bool {
        let kind = |word: &String| word.parse::<Kind>().is_ok_and(|kind| event.kind == Some(kind));
        let named = |wanted: &String| {
            let name = event.name.as_deref();
            match wanted.split_once('/') {
                Some((namespace, rest)) => event.namespace.as_deref() == Some(namespace) && name == Some(rest),
                None => name == Some(wanted),
            }
        };
        let address = event.data.get("address").and_then(Value::as_str).and_then(|text| text.parse().ok());
        let holds = (self.types.is_empty() || self.types.contains(&event.event_type))
            && self.severity.is_none_or(|severity| severity == event.severity)
            && self.kind.as_ref().is_none_or(kind)
            && self.namespace.as_ref().is_none_or(|namespace| event.namespace.as_ref() == Some(namespace))
            && (self.names.is_empty() || self.names.iter().any(named))
            && (self.ips.is_empty() || address.is_some_and(|address| self.ips.contains(&address)));
        holds != self.not
    }
}

/// The log.
pub struct EventLog {
    kept: Mutex<Kept>,
    feed: broadcast::Sender<Arc<Event>>,
    lost: AtomicU64,
}

#[derive(Default)]
struct Kept {
    next: u64,
    events: VecDeque<Arc<Event>>,
}

impl Default for EventLog {
    fn default() -> Self {
        let feed = broadcast::Sender::new(BACKLOG_MAX);
        Self { kept: Mutex::default(), feed, lost: AtomicU64::new(0) }
    }
}

impl EventLog {
    /// Adds an event about `object` (or the daemon) now, and logs it.
    pub fn add(&self, event_type: EventType, object: Option<&ObjectKey>, message: impl Into<String>, data: Value) {
        let message = message.into();
        let name = event_type.name();
        let subject = object.map(ToString::to_string);
        match event_type.severity() {
            Severity::Normal => tracing::info!(event = name, object = subject, "{message}"),
            Severity::Warning => tracing::warn!(event = name, object = subject, "{message}"),
        }
        let mut kept = self.lock();
        kept.next += 1;
        let event = Arc::new(Event {
            seq: kept.next,
            time: rfc3339(SystemTime::now()),
            event_type,
            severity: event_type.severity(),
            kind: object.map(|key| key.kind),
            namespace: object.and_then(|key| key.namespace.clone()),
            name: object.map(|key| key.name.clone()),
            message,
            data,
        });
        if kept.events.len() == EVENTS_MAX {
            kept.events.pop_front();
        }
        kept.events.push_back(Arc::clone(&event));
        // Sent under the lock: subscribers see the order of the log. Nobody may be listening.
        let _ = self.feed.send(event);
    }

    /// The last `last` events that `filter` wants, oldest first.
    pub fn list(&self, filter: &Filter, last: usize) -> Vec<Arc<Event>> {
        let kept = self.lock();
        let mut events: Vec<_> =
            kept.events.iter().rev().filter(|event| filter.wants(event)).take(last).cloned().collect();
        events.reverse();
        events
    }

    /// The last `last` events, and a feed that continues exactly there.
    pub fn subscribe(&self, filter: &Filter, last: usize) -> (Vec<Arc<Event>>, broadcast::Receiver<Arc<Event>>) {
        // Events are sent under this lock: none is missed between the two, none is told twice.
        let kept = self.lock();
        let mut events: Vec<_> =
            kept.events.iter().rev().filter(|event| filter.wants(event)).take(last).cloned().collect();
        events.reverse();
        (events, self.feed.subscribe())
    }

    /// How many events there have been.
    pub fn count(&self) -> u64 {
        self.lock().next
    }

    /// How many events subscribers have missed.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Counts events that a subscriber missed.
    pub fn count_lost(&self, count: u64) {
        self.lost.fetch_add(count, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // A panic while holding this lock cannot leave a half-written log.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log_with(count: usize) -> EventLog {
        let log = EventLog::default();
        for number in 0..count {
            let key = ObjectKey::port("shop", &format!("web-{number}"));
            log.add(EventType::PortConnected, Some(&key), "connected", Value::Null);
        }
        log
    }

    #[test]
    fn the_log_is_bounded_and_keeps_the_newest() {
        let log = log_with(EVENTS_MAX + 10);
        let events = log.list(&Filter::default(), usize::MAX);
        assert_eq!(events.len(), EVENTS_MAX);
        assert_eq!(events[0].seq, 11);
        assert_eq!(log.count(), EVENTS_MAX as u64 + 10);
        let last = log.list(&Filter::default(), 2);
        assert_eq!(last.iter().map(|event| event.seq).collect::<Vec<_>>(), [4105, 4106]);
    }

    #[test]
    fn filters_join_and_negate() {
        let log = log_with(2);
        log.add(EventType::PortFaulted, Some(&ObjectKey::port("shop", "web-0")), "bad", Value::Null);
        log.add(EventType::DaemonStarted, None, "ready", Value::Null);
        log.add(
            EventType::LeaseConfirmed,
            Some(&ObjectKey::port("lab", "web-0")),
            "lease",
            serde_json::json!({"address": "10.64.0.10"}),
        );
        let count = |filter: Filter| log.list(&filter, usize::MAX).len();
        assert_eq!(count(Filter::default()), 5);
        assert_eq!(count(Filter::of_object(&ObjectKey::port("shop", "web-0"))), 2);
        assert_eq!(count(Filter { names: vec!["web-0".into()], ..Filter::default() }), 3);
        assert_eq!(count(Filter { names: vec!["lab/web-0".into()], ..Filter::default() }), 1);
        assert_eq!(count(Filter { severity: Some(Severity::Warning), ..Filter::default() }), 1);
        assert_eq!(count(Filter { severity: Some(Severity::Warning), not: true, ..Filter::default() }), 4);
        assert_eq!(count(Filter { ips: vec![[10, 64, 0, 10].into()], ..Filter::default() }), 1);
        let both = Filter { types: vec![EventType::PortFaulted], namespace: Some("lab".into()), ..Filter::default() };
        assert_eq!(count(both), 0);
    }

    #[test]
    fn a_subscription_continues_where_the_list_ends() {
        let log = log_with(3);
        let (past, mut feed) = log.subscribe(&Filter::default(), 2);
        log.add(EventType::DaemonStopping, None, "stopping", Value::Null);
        assert_eq!(past.iter().map(|event| event.seq).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(feed.try_recv().unwrap().seq, 4);
        assert!(feed.try_recv().is_err());
    }
}
