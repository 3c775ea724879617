//! Whether somebody takes the connections of a Service: asked at each of its L4 ports and over each IP version, since clients of one are
//! not helped by another.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::SystemTime;

use super::super::spec::{ANY_PROTO, EndpointSpec, ServicePortSpec, ServiceSpec};
use super::choice::{Audience, BackendState, is_active};
use super::frontend::addresses;
use super::history::View;
use crate::observe::synthetic::protocol_name;

/// Where somebody takes connections.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Serving {
    /// At every L4 port, over every IP version that the Service has.
    Everywhere,
    /// Not at these: `http (80/TCP) over IPv6`.
    NotAt(Vec<String>),
    /// At none.
    Nowhere,
}

impl Serving {
    /// Where nobody does, although somebody does elsewhere.
    pub fn gaps(&self) -> &[String] {
        match self {
            Serving::NotAt(places) => places,
            Serving::Everywhere | Serving::Nowhere => &[],
        }
    }
}

/// The backends of a Service, for its `status`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceHealth {
    /// By how they are; only what there is. Each counts once, as its worst endpoint is.
    pub backends: Vec<(BackendState, usize)>,
    /// `None` while that is not known yet.
    pub serving: Option<Serving>,
    /// Whether every client finds somebody, healthy ones among them: somebody serves everywhere, and an endpoint is healthy. A backend may be
    /// and count as ill for another L4 port of its own.
    pub ready: bool,
    /// Since when that is what it is.
    pub since: SystemTime,
}

impl ServiceHealth {
    /// How many there are.
    pub fn total(&self) -> usize {
        self.backends.iter().map(|(_, count)| count).sum()
    }

    /// How many of them are healthy.
    pub fn healthy(&self) -> usize {
        self.count(BackendState::Healthy)
    }

    /// How many are like this.
    pub fn count(&self, state: BackendState) -> usize {
        self.backends.iter().find(|(other, _)| *other == state).map_or(0, |(_, count)| *count)
    }
}

/// Where somebody takes connections, of whatever client.
pub fn serving(view: &View) -> Serving {
    let spec = &view.spec;
    let families = families(spec);
    let mut gaps = Vec::new();
    let mut served = false;
    for (port, states) in spec.ports.iter().zip(&view.states) {
        let endpoints: Vec<(&EndpointSpec, BackendState)> = port.endpoints.iter().zip(states.iter().copied()).collect();
        for ipv4 in &families {
            let audiences = audiences(spec, *ipv4);
            let unserved = |audience: &&Audience| !is_active(spec, &endpoints, *ipv4, **audience);
            let without: Vec<&Audience> = audiences.iter().filter(unserved).collect();
            served |= without.len() < audiences.len();
            if without.len() == audiences.len() {
                gaps.push(place(port, *ipv4));
            } else if let Some(text) = whose(&without) {
                gaps.push(format!("{} for clients {text}", place(port, *ipv4)));
            }
        }
    }
    match (served, gaps.is_empty()) {
        (false, _) => Serving::Nowhere,
        (true, true) => Serving::Everywhere,
        (true, false) => Serving::NotAt(gaps),
    }
}

/// IP versions of a Service, `true` for 4: those of its addresses, else (headless) of its endpoints.
fn families(spec: &ServiceSpec) -> Vec<bool> {
    let of_addresses = addresses(spec).map(|at| at.address.is_ipv4());
    let of_endpoints = spec.ports.iter().flat_map(|port| &port.endpoints).map(|endpoint| endpoint.address.is_ipv4());
    let known: Vec<bool> = of_addresses.collect();
    let known = if known.is_empty() { of_endpoints.collect() } else { known };
    [true, false].into_iter().filter(|ipv4| known.contains(ipv4)).collect()
}

/// The kinds of clients that have an address of a Service in this IP version. Who resolves the name of a headless one is in its network.
fn audiences(spec: &ServiceSpec, ipv4: bool) -> Vec<Audience> {
    let has = |wanted| addresses(spec).any(|at| at.address.is_ipv4() == ipv4 && at.audience == wanted);
    let all = [Audience::Internal, Audience::External, Audience::Any];
    let found: Vec<Audience> = all.into_iter().filter(|audience| has(*audience)).collect();
    if found.is_empty() { vec![Audience::Internal] } else { found }
}

/// Which clients have nobody, in words; `None` where all have somebody.
fn whose(without: &[&Audience]) -> Option<&'static str> {
    match without {
        [] => None,
        [Audience::Internal] => Some("of the cluster address"),
        [Audience::External] => Some("from outside"),
        _ => Some("of addresses out of pools"),
    }
}

/// An L4 port and an IP version in words.
fn place(port: &ServicePortSpec, ipv4: bool) -> String {
    let (first, last) = (*port.l4.start(), *port.l4.end());
    let l4 = match (first, last) {
        (1, u16::MAX) => "all".to_owned(),
        _ if first == last => first.to_string(),
        _ => format!("{first}-{last}"),
    };
    let l4 = match port.proto {
        ANY_PROTO => "no L4 port".to_owned(),
        proto => format!("{l4}/{}", protocol_name(proto).to_uppercase()),
    };
    let version = if ipv4 { "IPv4" } else { "IPv6" };
    match port.name.as_str() {
        "" => format!("{l4} over {version}"),
        name => format!("{name} ({l4}) over {version}"),
    }
}

/// Whom the name of a headless Service does not stand for now: those that are not healthy. Who was there before the daemon started
/// again, for all we know (`awaiting`), keeps its name for as long as it may still come back, and is not out meanwhile for not having been asked.
pub fn absent(view: &View, awaiting: bool) -> BTreeSet<IpAddr> {
    if !view.spec.names_healthy {
        return BTreeSet::new();
    }
    let endpoints =
        view.spec.ports.iter().zip(&view.states).flat_map(|(port, states)| port.endpoints.iter().zip(states));
    let is_absent = |state: BackendState| match state {
        BackendState::Healthy | BackendState::Awaited => false,
        BackendState::Unchecked => !awaiting,
        _ => true,
    };
    endpoints.filter(|(_, state)| is_absent(**state)).map(|(endpoint, _)| endpoint.address).collect()
}
