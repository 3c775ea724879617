//! DNS at every network's gateway.
//!
//! # Theory of operation
//!
//! A `server` for each network listens on UDP and TCP port 53 of the gateway's addresses, behind the internal port.
//! A query is read (`message`), answered from the network's `zone` by the Kubernetes DNS specification (`answer`,
//! `service`), or, if it is about nobody here, from the cache or by the host's upstream servers (`forward`,
//! `exchange`, `upstream`). Names in the cluster zone and reverse names of any network's ranges are never asked
//! elsewhere; what a network does not have does not exist for it.
//!
//! Control hands over what exists ([`Dns::update`]); zones are built anew where something changed and swapped in.

mod answer;
mod cache;
mod counters;
mod exchange;
mod forward;
mod message;
mod name;
mod server;
mod service;
pub mod spec;
#[cfg(test)]
mod tests;
mod upstream;
mod zone;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use hostweave_switch::tables::Network;
use ipnet::IpNet;
use tokio::runtime::Handle;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::AbortHandle;

pub use counters::DnsReport;

use self::counters::Counters;
use self::forward::Forwarder;
use self::message::{Origin, UDP_PAYLOAD};
use self::server::{Handled, Server, serve_tcp, serve_udp};
use self::spec::{DnsSpec, EndpointRecords, PORT, PortRecords, ServiceRecords, ServiceTarget, ZoneInput};
use self::upstream::Upstreams;
use self::zone::{TTL_S, Zone};
use super::sockets::Sockets;
use crate::fabric::spec::{Desired, FabricEvent};

/// The DNS servers of all networks.
pub struct Dns {
    sockets: Sockets,
    runtime: Handle,
    forwarder: Arc<Forwarder>,
    counters: Arc<Counters>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By name of the network.
    served: HashMap<String, Served>,
    upstreams: Option<(Option<Vec<SocketAddr>>, Vec<IpAddr>)>,
    /// As told last.
    spec: Option<DnsSpec>,
    /// By `namespace/name` of headless Services: endpoints that they do not stand for now.
    absent: HashMap<String, BTreeSet<IpAddr>>,
    /// Of the zones: grows with each.
    serial: u32,
}

impl State {
    /// What a Service's name stands for now.
    fn present(&self, service: &Arc<ServiceRecords>) -> Arc<ServiceRecords> {
        let ServiceTarget::Headless { endpoints, not_ready: false } = &service.target else {
            return Arc::clone(service);
        };
        let absent = if self.absent.is_empty() { None } else { self.absent.get(&service.full_name()) };
        let Some(absent) = absent.filter(|absent| !absent.is_empty()) else { return Arc::clone(service) };
        let present = |endpoint: &EndpointRecords| {
            let mut endpoint = endpoint.clone();
            endpoint.addresses.retain(|address| !absent.contains(address));
            (!endpoint.addresses.is_empty()).then_some(endpoint)
        };
        let target =
            ServiceTarget::Headless { endpoints: endpoints.iter().filter_map(present).collect(), not_ready: false };
        Arc::new(ServiceRecords { target, ..ServiceRecords::clone(service) })
    }
}

struct Served {
    input: ZoneInput,
    server: Arc<Server>,
    tasks: [AbortHandle; 2],
}

impl Drop for Served {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

/// A record, for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecordText {
    /// Owner.
    pub name: String,
    /// Seconds.
    pub ttl: u32,
    /// Type.
    pub kind: String,
    /// Data in the form of zone files (RFC 1035 §5.1).
    pub data: String,
}

/// What a query found, for people.
#[derive(Clone, Debug)]
pub struct Looked {
    /// RCODE.
    pub code: String,
    /// Whether the zone says so.
    pub authoritative: bool,
    /// `cluster` or `reverse` (the zone), `special`, `cache`, `upstream`, or `failed`.
    pub source: &'static str,
    /// The server that answered, if it was asked now.
    pub server: Option<SocketAddr>,
    /// Answer section.
    pub answers: Vec<RecordText>,
    /// Authority section.
    pub authorities: Vec<RecordText>,
    /// How long it took.
    pub took: Duration,
}

impl Dns {
    /// No networks yet. To be called inside a tokio runtime. What happens to upstream servers is told to `events`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(sockets: Sockets, events: UnboundedSender<FabricEvent>) -> Self {
        let counters = Arc::new(Counters::default());
        let forwarder = Forwarder::new(Upstreams::new(events), Arc::clone(&counters));
        Self { sockets, runtime: Handle::current(), forwarder, counters, state: Mutex::default() }
    }

    /// As [`Dns::update`], where networks and ports are those of last time.
    pub fn update_spec(&self, desired: &Desired) {
        let told = self.state.lock().unwrap_or_else(PoisonError::into_inner).spec == desired.dns;
        if !told {
            self.update(desired);
        }
    }

    /// Serves what exists. The networks must have their stacks.
    pub fn update(&self, desired: &Desired) {
        let Desired { dns, networks, ports, .. } = desired;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.spec.clone_from(dns);
        let Some(spec) = dns else {
            state.served.clear();
            return;
        };
        let service_nets = spec.service_ranges.iter().map(|range| range.net);
        let private: Vec<IpNet> = networks.iter().flat_map(ranges).chain(service_nets).collect();
        let own: Vec<IpAddr> = networks.iter().flat_map(gateways).collect();
        let upstreams = (spec.upstreams.clone(), own);
        if state.upstreams.as_ref() != Some(&upstreams) {
            self.forwarder.upstreams.configure(upstreams.0.as_deref(), upstreams.1.clone());
            let other = state.upstreams.as_ref().is_some_and(|(before, _)| *before != upstreams.0);
            if other {
                self.forwarder.forget();
            }
            state.upstreams = Some(upstreams);
        }
        let mut by_network: HashMap<&str, Vec<PortRecords>> = HashMap::new();
        for port in ports {
            by_network.entry(&port.network).or_default().push(PortRecords {
                namespace: port.namespace.clone(),
                name: port.name.clone(),
                addresses: port.addresses().collect(),
            });
        }
        if !state.absent.is_empty() {
            let there: HashSet<String> = spec.services.iter().map(|service| service.full_name()).collect();
            state.absent.retain(|name, _| there.contains(name));
        }
        state.served.retain(|name, _| networks.iter().any(|network| network.name == *name));
        for network in networks {
            let of_services = spec.service_ranges.iter().filter(|range| range.network == network.name);
            let services = spec.services.iter().filter(|service| service.network == network.name);
            let services = services.map(|service| state.present(service));
            let input = ZoneInput {
                domain: spec.domain.clone(),
                gateways: gateways(network).collect(),
                ranges: ranges(network).chain(of_services.map(|range| range.net)).collect(),
                private: private.clone(),
                ports: by_network.remove(network.name.as_str()).unwrap_or_default(),
                services: services.collect(),
            };
            self.serve(&mut state, &network.name, input);
        }
    }

    /// From now on the names of these headless Services, `namespace/name`, do not stand for these of their endpoints, and for all others.
    /// Zones with such a name are built anew.
    pub fn set_absent(&self, news: Vec<(Arc<str>, BTreeSet<IpAddr>)>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed: HashMap<String, ZoneInput> = HashMap::new();
        for (name, absent) in news {
            if absent.is_empty() {
                state.absent.remove(&*name);
            } else {
                state.absent.insert(name.as_ref().to_owned(), absent);
            }
            let services = state.spec.as_ref().map(|spec| Arc::clone(&spec.services)).unwrap_or_default();
            let wanted = name.split_once('/').unwrap_or_default();
            let key = |of: &Arc<ServiceRecords>| (&*of.namespace, &*of.name).cmp(&wanted);
            let Some(told) = services.binary_search_by(key).ok().and_then(|at| services.get(at)) else { continue };
            let Some(served) = state.served.get(&told.network) else { continue };
            let input = changed.entry(told.network.clone()).or_insert_with(|| served.input.clone());
            let Ok(at) = input.services.binary_search_by(key) else { continue };
            input.services[at] = state.present(told);
        }
        for (network, input) in changed {
            self.serve(&mut state, &network, input);
        }
    }

    fn serve(&self, state: &mut State, network: &str, input: ZoneInput) {
        if state.served.get(network).is_some_and(|served| served.input == input) {
            return;
        }
        // From the clock, so that it grows over restarts (RFC 1982).
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
        state.serial = state.serial.wrapping_add(1).max(now as u32);
        let zone = Arc::new(Zone::new(&input, state.serial));
        if let Some(served) = state.served.get_mut(network) {
            served.server.zone.store(zone);
            served.input = input;
            return;
        }
        let server = Arc::new(Server {
            zone: ArcSwap::new(zone),
            forwarder: Arc::clone(&self.forwarder),
            counters: Arc::clone(&self.counters),
        });
        let bound = self.sockets.udp_bind(network, PORT).and_then(|udp| Ok((udp, self.sockets.listen(network, PORT)?)));
        match bound {
            Ok((udp, tcp)) => {
                let udp = self.runtime.spawn(serve_udp(Arc::clone(&server), udp)).abort_handle();
                let tcp = self.runtime.spawn(serve_tcp(Arc::clone(&server), tcp)).abort_handle();
                state.served.insert(network.to_owned(), Served { input, server, tasks: [udp, tcp] });
            }
            Err(error) => tracing::error!(network, %error, "DNS is not answered in a network"),
        }
    }

    /// Asks as a guest of a network would.
    ///
    /// # Errors
    /// There is no such network, or the name or type is none; a sentence.
    pub fn look_up(&self, network: &str, name: &str, kind: &str) -> Result<Looked, String> {
        let kind: RecordType =
            kind.to_ascii_uppercase().parse().map_err(|_| format!("{kind:?} is no type of record"))?;
        let name = match name.parse::<IpAddr>() {
            Ok(address) => Name::from(address),
            Err(_) => Name::from_ascii(name).map_err(|error| format!("{name:?} is no name: {error}"))?,
        };
        let server = self.server(network)?;
        let began = Instant::now();
        let mut message = Message::new(0, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        let mut query = Query::query(name, kind);
        query.name.set_fqdn(true);
        message.queries.push(query);
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_PAYLOAD).set_version(0);
        message.edns = Some(edns);
        let octets = message.to_vec().map_err(|error| error.to_string())?;
        let (reply, origin, server) = match server.handle(&octets, false) {
            Handled::Reply(reply, origin) => (reply, origin, None),
            Handled::Later(pending) => {
                let (reply, by) = self.runtime.block_on(server.ask(&Arc::from("host"), *pending));
                (reply, by.map_or(Origin::Failed, |_| Origin::Upstream), by)
            }
            Handled::Nothing => return Err("the query was not understood".to_owned()),
        };
        let reply = Message::from_vec(&reply).map_err(|error| error.to_string())?;
        let text = |record: &hickory_proto::rr::Record| RecordText {
            name: record.name.to_ascii(),
            ttl: record.ttl,
            kind: record.record_type().to_string(),
            data: record.data.to_string(),
        };
        Ok(Looked {
            code: format!("{:?}", reply.metadata.response_code).to_uppercase(),
            authoritative: reply.metadata.authoritative,
            source: origin.name(),
            server,
            answers: reply.answers.iter().map(text).collect(),
            authorities: reply.authorities.iter().map(text).collect(),
            took: began.elapsed(),
        })
    }

    /// Every record that guests of a network may see.
    ///
    /// # Errors
    /// There is no such network; a sentence.
    pub fn records(&self, network: &str) -> Result<Vec<RecordText>, String> {
        let zone = self.server(network)?.zone.load_full();
        let text = |(name, data): (Name, hickory_proto::rr::RData)| RecordText {
            name: name.to_ascii(),
            ttl: TTL_S,
            kind: data.record_type().to_string(),
            data: data.to_string(),
        };
        Ok(zone.records().into_iter().map(text).collect())
    }

    fn server(&self, network: &str) -> Result<Arc<Server>, String> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let served = state.served.get(network).map(|served| Arc::clone(&served.server));
        served.ok_or_else(|| format!("there is no network {network:?} with DNS"))
    }

    /// What was counted, and how the upstream servers are.
    pub fn report(&self) -> DnsReport {
        let upstreams = self.forwarder.upstreams.all();
        let upstreams = upstreams.iter().map(|server| (server.address.to_string(), !server.is_down())).collect();
        DnsReport { cached: self.forwarder.cached(), upstreams, ..self.counters.report() }
    }
}

fn ranges(network: &Network) -> impl Iterator<Item = IpNet> {
    let v4 = network.v4.map(|(range, _)| IpNet::V4(range.trunc()));
    v4.into_iter().chain(network.v6.map(|(range, _)| IpNet::V6(range.trunc())))
}

fn gateways(network: &Network) -> impl Iterator<Item = IpAddr> {
    let v4 = network.v4.map(|(_, gateway)| IpAddr::V4(gateway));
    v4.into_iter().chain(network.v6.map(|(_, gateway)| IpAddr::V6(gateway)))
}

/// A zone by itself, without a network and without anybody to ask: for benchmarks and fuzzing.
pub struct Answers(Server);

impl Answers {
    /// The zone of an input.
    pub fn new(input: &ZoneInput) -> Self {
        let counters = Arc::new(Counters::default());
        let upstreams = Upstreams::new(tokio::sync::mpsc::unbounded_channel().0);
        upstreams.configure(Some(&[]), Vec::new());
        let forwarder = Forwarder::new(upstreams, Arc::clone(&counters));
        Self(Server { zone: ArcSwap::from_pointee(Zone::new(input, 1)), forwarder, counters })
    }

    /// What is answered to a datagram; nothing where the zone has no answer.
    pub fn answer(&self, datagram: &[u8]) -> Option<Vec<u8>> {
        match self.0.handle(datagram, true) {
            Handled::Reply(reply, _) => Some(reply),
            Handled::Later(_) | Handled::Nothing => None,
        }
    }
}
