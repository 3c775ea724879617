//! Connections for people: lists with names, states and what allowed them; and forgetting chosen ones.
//!
//! Lists read the shared table and the published plane: nothing waits for them.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Instant;

use hostweave_policy::table::Basis;
use hostweave_switch::connection::{Ending, Entry, Record};
use hostweave_switch::flow::Kind;
use hostweave_switch::tables::{NetworkId, PortId};
use hostweave_switch::tcp_track::{self, State as TcpState};
use hostweave_switch::wire::proto;
use ipnet::IpNet;

use super::plane::Plane;
use super::{Fabric, Inner, flows};
use crate::observe::flow::Policy;

/// States by name: those of TCP, and of everything else.
pub const STATES: [&str; 7] = ["opening", "established", "closing", "time-wait", "closed", "unreplied", "replied"];

/// Which connections are meant: of the values of one condition any, and all conditions.
#[derive(Clone, Debug, Default)]
pub struct ConnectionFilter {
    /// `namespace/name` of either port.
    pub ports: Vec<String>,
    /// Either address is in one of these ranges.
    pub addresses: Vec<IpNet>,
    /// IP protocol numbers.
    pub protocols: Vec<u8>,
    /// Either L4 port.
    pub l4_ports: Vec<u16>,
    /// Names of networks.
    pub networks: Vec<String>,
    /// See [`STATES`].
    pub states: Vec<String>,
}

/// A connection with the names of what it belongs to.
#[derive(Clone, Debug)]
pub struct ConnectionView {
    /// Its record.
    pub entry: Entry,
    /// Its network.
    pub network: String,
    /// The port that began it, and the other; `None` if the port is gone.
    pub ports: [Option<String>; 2],
    /// See [`STATES`].
    pub state: &'static str,
    /// Whether the other side has sent.
    pub replied: bool,
    /// Seconds since it began.
    pub age_s: u32,
    /// Seconds since its last packet.
    pub idle_s: u32,
    /// Seconds until it is forgotten, if nothing more is heard of it.
    pub expires_s: u32,
    /// What allowed it: of the sender, of the receiver.
    pub allowed: [Allowed; 2],
}

/// What allowed one side of a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Allowed {
    /// A rule that is still there.
    Rule(Policy),
    /// A rule that was changed or removed since.
    Gone,
    /// No policy has a say.
    NoPolicy,
    /// A built-in rule, by name.
    BuiltIn(&'static str),
    /// The host's own side.
    Host,
}

impl ConnectionView {
    /// Source and destination address of its first packet.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.entry.key.src(), self.entry.key.dst()].map(|bits| Ipv6Addr::from(bits).to_canonical())
    }
}

/// Names under one plane.
struct Names<'a> {
    plane: &'a Plane,
    networks: HashMap<u32, (NetworkId, &'a str)>,
    now: u32,
}

impl<'a> Names<'a> {
    fn new(inner: &Inner, plane: &'a Plane) -> Self {
        let networks = plane.tables.networks.iter().enumerate().filter_map(|(index, network)| {
            let network = network.as_ref()?;
            Some((network.vni, (NetworkId(u16::try_from(index).ok()?), network.name.as_str())))
        });
        Self { plane, networks: networks.collect(), now: inner.clock.seconds(Instant::now()) }
    }

    fn port(&self, slot: u32) -> Option<&str> {
        self.plane.tables.port(PortId(slot)).map(|port| port.name.as_str())
    }

    fn wants(&self, filter: &ConnectionFilter, entry: &Entry, state: &str) -> bool {
        let key = &entry.key;
        let any = |none: bool, some: bool| none || some;
        let ports = [entry.in_port, entry.out_port].map(|slot| self.port(slot));
        let addresses = [key.src(), key.dst()].map(|bits| Ipv6Addr::from(bits).to_canonical());
        let l4 = [key.src_port(), key.dst_port()];
        let network = self.networks.get(&entry.vni).map(|(_, name)| *name);
        any(filter.ports.is_empty(), filter.ports.iter().any(|port| ports.contains(&Some(port.as_str()))))
            && any(
                filter.addresses.is_empty(),
                filter.addresses.iter().any(|net| addresses.iter().any(|address| net.contains(address))),
            )
            && any(filter.protocols.is_empty(), filter.protocols.contains(&key.proto()))
            && any(
                filter.l4_ports.is_empty(),
                key.kind() == Kind::Ports && filter.l4_ports.iter().any(|port| l4.contains(port)),
            )
            && any(filter.networks.is_empty(), filter.networks.iter().any(|name| network == Some(name.as_str())))
            && any(filter.states.is_empty(), filter.states.iter().any(|name| name == state))
    }

    fn view(&self, entry: Entry, record: &Record, state: &'static str) -> ConnectionView {
        let timeout = self.plane.tables.timeouts.of(record);
        let idle_s = self.now.saturating_sub(entry.seen[0].max(entry.seen[1]));
        ConnectionView {
            network: self
                .networks
                .get(&entry.vni)
                .map_or_else(|| entry.vni.to_string(), |(_, name)| (*name).to_owned()),
            ports: [entry.in_port, entry.out_port].map(|slot| self.port(slot).map(str::to_owned)),
            state,
            replied: record.is_replied(),
            age_s: self.now.saturating_sub(entry.created),
            idle_s,
            expires_s: timeout.saturating_sub(idle_s),
            allowed: entry.basis.map(|bits| self.allowed(bits)),
            entry,
        }
    }

    fn allowed(&self, bits: u32) -> Allowed {
        match Basis::from_u32(bits) {
            Some(Basis::Rule(id)) => match self.plane.policy.rule(id) {
                Some(rule) => Allowed::Rule(flows::policy(rule, self.plane.policy_revision)),
                None => Allowed::Gone,
            },
            Some(Basis::BuiltIn(rule)) => Allowed::BuiltIn(rule.name()),
            Some(Basis::Host) => Allowed::Host,
            _ => Allowed::NoPolicy,
        }
    }
}

/// See [`STATES`].
fn state(record: &Record) -> &'static str {
    if record.key().proto() != proto::TCP {
        return if record.is_replied() { "replied" } else { "unreplied" };
    }
    match tcp_track::state(&record.side(0), &record.side(1)) {
        TcpState::Opening => "opening",
        TcpState::Established => "established",
        TcpState::Closing => "closing",
        TcpState::TimeWait => "time-wait",
        TcpState::Closed => "closed",
    }
}

impl Fabric {
    /// Connections that a filter wants, `limit` at most, and how many there are of them.
    pub fn connections(&self, filter: &ConnectionFilter, limit: usize) -> (Vec<ConnectionView>, usize) {
        let inner = &self.inner;
        let plane = inner.plane.load_full();
        let names = Names::new(inner, &plane);
        let (mut views, mut count) = (Vec::new(), 0);
        for entry in inner.connections.entries() {
            let Some(record) = inner.connections.get(entry.index, entry.generation) else { continue };
            let state = state(record);
            if names.wants(filter, &entry, state) {
                count += 1;
                if views.len() < limit {
                    views.push(names.view(entry, record, state));
                }
            }
        }
        (views, count)
    }

    /// Every connection.
    pub fn live_connections(&self) -> Vec<Entry> {
        self.inner.connections.entries().collect()
    }

    /// Forgets the connections that a filter wants; what workers know of their networks is asked again. Returns how many.
    pub fn flush_connections(&self, filter: &ConnectionFilter) -> usize {
        let inner = &self.inner;
        let plane = inner.plane.load_full();
        let names = Names::new(inner, &plane);
        let (mut count, mut networks) = (0, BTreeSet::new());
        for entry in inner.connections.entries() {
            let Some(record) = inner.connections.get(entry.index, entry.generation) else { continue };
            let flush = || inner.connections.remove(entry.index, entry.generation, Ending::Flushed);
            if names.wants(filter, &entry, state(record)) && flush() {
                count += 1;
                networks.extend(names.networks.get(&entry.vni).map(|(id, _)| id.0));
            }
        }
        if !networks.is_empty() {
            let mut state = inner.lock();
            networks.into_iter().for_each(|network| state.bump_network(NetworkId(network)));
            inner.publish(&mut state);
        }
        count
    }
}
