//! Services for people: their backends and how each is, what became of them lately, who is drained.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use hostweave_nat::service::FrontendSpec;
use hostweave_switch::tables::OUTSIDE_VNI;

use super::super::Fabric;
use super::super::spec::EndpointSpec;
use super::super::uplink::owned::unmapped;
use super::choice::{Audience, BackendState, active};
use super::history::Change;
use super::known::{Check, Drained};
use super::outlier::Ejection;
use super::remembered::Remembered;
use super::serving::{ServiceHealth, Serving};
use super::{Balance, Held};
use crate::services::health::{Target, TargetReport};

/// A Service as it is now.
#[derive(Clone, Debug)]
pub struct ServiceStatus {
    /// Of all its L4 ports.
    pub backends: Vec<BackendStatus>,
    /// The last changes, oldest first.
    pub changes: Vec<Change>,
    /// Where somebody takes connections; `None` while that is not known yet.
    pub serving: Option<Serving>,
}

/// A backend of an L4 port of a Service.
#[derive(Clone, Debug)]
pub struct BackendStatus {
    /// Name of the Service's L4 port; empty for none.
    pub port_name: String,
    /// IP protocol.
    pub proto: u8,
    /// L4 ports, as clients see them.
    pub service_l4: RangeInclusive<u16>,
    /// Its name: `namespace/port`, or an address.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// Its L4 port; `None` for the one that the client asked for.
    pub l4: Option<u16>,
    /// Share of new connections relative to others.
    pub weight: u16,
    /// How it is.
    pub state: BackendState,
    /// Whether new connections of clients in the network go there.
    pub internal: bool,
    /// Whether those of others do.
    pub external: bool,
    /// What is asked of it; `None` for nothing.
    pub target: Option<Arc<Target>>,
    /// What came of that.
    pub check: Option<TargetReport>,
    /// Why clients' connections keep it out, and how long; `None` when they do not.
    pub ejection: Option<Ejection>,
}

/// How many backends a Service has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceCounts {
    /// `namespace/name`.
    pub service: Arc<str>,
    /// Where somebody takes connections; `None` while that is not known yet.
    pub serving: Option<Serving>,
    /// Backends that were ejected for what clients saw, so far.
    pub ejections: u64,
    /// Connections that have begun to it, at addresses that it has or had.
    pub connections: u64,
    /// By how they are; only what there is. An endpoint of several L4 ports counts as often.
    pub backends: Vec<(BackendState, usize)>,
}

impl Fabric {
    /// A Service with its backends, by `namespace/name`.
    pub fn service_status(&self, name: &str) -> Option<ServiceStatus> {
        let mut status = self.inner.lock().balance.status(name)?;
        for backend in &mut status.backends {
            backend.check = backend.target.as_ref().and_then(|target| self.inner.health.target(target));
        }
        Some(status)
    }

    /// How the backends of a Service are, by `namespace/name`.
    pub fn service_health(&self, name: &str) -> Option<ServiceHealth> {
        self.inner.lock().balance.health(name)
    }

    /// Connections of a Service by backend: protocol, its address and L4 port, how many. Looks at every connection.
    pub fn service_connections(&self, name: &str) -> Vec<(u8, IpAddr, u16, u64)> {
        let frontends = match self.inner.lock().balance.services.get(name) {
            Some(held) => held.frontends.clone(),
            None => return Vec::new(),
        };
        let mut counts: BTreeMap<(u8, IpAddr, u16), u64> = BTreeMap::new();
        for entry in self.inner.connections.entries() {
            let (Some(translation), Some(l4)) = (&entry.translation, entry.key.l4_dst_port()) else { continue };
            let of = |spec: &&FrontendSpec| {
                (spec.address, spec.proto) == (entry.key.dst(), entry.key.proto())
                    && spec.l4.contains(&l4)
                    // A public address is the same from everywhere.
                    && (spec.scope == OUTSIDE_VNI || spec.scope == entry.vni)
            };
            if frontends.iter().any(|spec| of(&spec)) {
                let reply = &translation.reply;
                *counts.entry((reply.proto(), unmapped(reply.src()), reply.src_port())).or_default() += 1;
            }
        }
        counts.into_iter().map(|((proto, address, l4), count)| (proto, address, l4, count)).collect()
    }

    /// Every Service, by name.
    pub fn service_counts(&self) -> Vec<ServiceCounts> {
        let mut counts: Vec<_> = self.inner.lock().balance.counts().collect();
        counts.sort_unstable_by(|a, b| a.service.cmp(&b.service));
        counts
    }

    /// Drains a backend, or undoes that: new connections go elsewhere, those over TCP that there are go on unless the Service resets
    /// them. In force when this returns. Returns whether something is different.
    pub fn drain(&self, what: Drained, drained: bool) -> bool {
        let mut state = self.inner.lock();
        let news = state.balance.set_drained(what, drained);
        if self.inner.republish_services(&mut state).packet_path {
            self.inner.wait_until_in_force(state.revision);
        }
        news
    }

    /// What was to be remembered of Services' backends in the run before. Before anything is applied.
    pub fn restore_backends(&self, all: BTreeMap<String, Remembered>) {
        let now = (self.inner.clock.seconds(Instant::now()), SystemTime::now());
        self.inner.lock().balance.restore(all, now);
    }

    /// What is to be remembered of Services' backends otherwise than the last time somebody asked; `None` for nothing.
    pub fn backends_to_store(&self) -> Vec<(Arc<str>, Option<Remembered>)> {
        self.inner.lock().balance.take_to_store()
    }

    /// What [`Fabric::backends_to_store`] gave could not be written.
    pub fn backends_not_stored(&self, taken: Vec<(Arc<str>, Option<Remembered>)>) {
        self.inner.lock().balance.put_back_to_store(taken);
    }

    /// All that was drained.
    pub fn drained(&self) -> Vec<Drained> {
        self.inner.lock().balance.drained().iter().cloned().collect()
    }
}

impl Balance {
    pub(super) fn status(&self, name: &str) -> Option<ServiceStatus> {
        let held = self.services.get(name)?;
        let view = held.view.as_ref()?;
        let mut backends = Vec::new();
        let ports = view.spec.ports.iter().zip(&view.states).zip(&held.checks);
        for (index, ((port, states), checks)) in ports.enumerate() {
            let endpoints: Vec<(&EndpointSpec, BackendState)> =
                port.endpoints.iter().zip(states.iter().copied()).collect();
            let takes = |audience| takes(held, &endpoints, audience);
            let (internal, external) = (takes(Audience::Internal), takes(Audience::External));
            for (at, (endpoint, state)) in endpoints.iter().enumerate() {
                let target = match checks.get(at) {
                    Some(Check::Target(target)) => Some(Arc::clone(target)),
                    _ => None,
                };
                backends.push(BackendStatus {
                    port_name: port.name.clone(),
                    proto: port.proto,
                    service_l4: port.l4.clone(),
                    name: endpoint.name.clone(),
                    address: endpoint.address,
                    l4: endpoint.l4,
                    weight: endpoint.weight,
                    state: *state,
                    internal: internal.get(at) == Some(&true),
                    external: external.get(at) == Some(&true),
                    target,
                    check: None,
                    ejection: held.ejection(index, at).filter(|_| *state == BackendState::Ejected).cloned(),
                });
            }
        }
        Some(ServiceStatus { backends, changes: held.changes.iter().cloned().collect(), serving: held.serving.clone() })
    }

    pub(super) fn health(&self, name: &str) -> Option<ServiceHealth> {
        let held = self.services.get(name)?;
        let view = held.view.as_ref()?;
        let mut worst: HashMap<&str, BackendState> = HashMap::new();
        for (port, states) in view.spec.ports.iter().zip(&view.states) {
            for (endpoint, state) in port.endpoints.iter().zip(states) {
                let known = worst.entry(&endpoint.name).or_insert(*state);
                *known = (*known).max(*state);
            }
        }
        let mut counts: BTreeMap<BackendState, usize> = BTreeMap::new();
        worst.into_values().for_each(|state| *counts.entry(state).or_default() += 1);
        Some(ServiceHealth {
            backends: counts.into_iter().collect(),
            serving: held.serving.clone(),
            ready: held.ready.0,
            since: held.ready.1,
        })
    }

    pub(super) fn counts(&self) -> impl Iterator<Item = ServiceCounts> {
        self.services.values().map(|held| ServiceCounts {
            service: Arc::clone(&held.name),
            serving: held.serving.clone(),
            ejections: held.outliers.ejections,
            connections: held.begun.count(),
            backends: held.view.as_ref().map(|view| view.counts()).unwrap_or_default(),
        })
    }
}

/// Which endpoints take new connections of an audience, family by family.
fn takes(held: &Held, endpoints: &[(&EndpointSpec, BackendState)], audience: Audience) -> Vec<bool> {
    let mut takes = vec![false; endpoints.len()];
    for ipv4 in [true, false] {
        let family = |endpoint: &EndpointSpec| endpoint.address.is_ipv4() == ipv4;
        let indices: Vec<usize> =
            endpoints.iter().enumerate().filter(|(_, (endpoint, _))| family(endpoint)).map(|(at, _)| at).collect();
        let members: Vec<_> = indices.iter().filter_map(|at| endpoints.get(*at).copied()).collect();
        for (at, active) in indices.into_iter().zip(active(&held.spec, &members, audience)) {
            takes[at] = active;
        }
    }
    takes
}
