//! What became of the backends of a Service lately: for people who ask why.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use super::super::spec::{EndpointSpec, ServiceSpec};
use super::choice::BackendState;

/// Changes that a Service remembers.
pub const CHANGES_MAX: usize = 16;

/// Why a backend is back.
const EJECTION_OVER: &str = "its ejection is over";

/// A backend is otherwise than before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// When.
    pub time: SystemTime,
    /// The backend.
    pub backend: Arc<str>,
    /// Its address.
    pub address: IpAddr,
    /// Name of the Service's L4 port; empty for none.
    pub port_name: Arc<str>,
    /// How it was; `None` for a backend that is new.
    pub from: Option<BackendState>,
    /// How it is; `None` for one that is no endpoint any more.
    pub to: Option<BackendState>,
    /// Why, where its checks or its clients said so, or it is held out.
    pub reason: Option<Arc<str>>,
}

/// A Service's endpoints, and how each is.
#[derive(Clone, Debug)]
pub struct View {
    /// The Service.
    pub spec: Arc<ServiceSpec>,
    /// By L4 port and endpoint, as in `spec`.
    pub states: Vec<Vec<BackendState>>,
}

/// What tells endpoints of a Service apart: L4 port by protocol and name, and the backend by name, address and L4 port.
type Key<'a> = (u8, &'a str, &'a str, IpAddr, Option<u16>);

impl View {
    fn by_key(&self) -> impl Iterator<Item = (Key<'_>, BackendState, (usize, usize))> {
        self.spec.ports.iter().zip(&self.states).enumerate().flat_map(|(index, (port, states))| {
            let each = port.endpoints.iter().zip(states).enumerate();
            each.map(move |(at, (endpoint, state))| {
                let EndpointSpec { name, address, l4, .. } = endpoint;
                ((port.proto, port.name.as_str(), name.as_str(), *address, *l4), *state, (index, at))
            })
        })
    }

    /// Endpoints by how they are; only what there is.
    pub fn counts(&self) -> Vec<(BackendState, usize)> {
        let count = |wanted| self.states.iter().flatten().filter(|state| **state == wanted).count();
        BackendState::ALL.into_iter().map(|state| (state, count(state))).filter(|(_, count)| *count > 0).collect()
    }

    /// What is different from before. `reason` says why an endpoint of this view is as it is, where that is known.
    pub fn changes_since(
        &self,
        before: &View,
        now: SystemTime,
        reason: impl Fn(usize, usize) -> Option<Arc<str>>,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        if Arc::ptr_eq(&self.spec, &before.spec) && self.states == before.states {
            return changes;
        }
        let mut add = |(_, port_name, backend, address, _): Key<'_>, from, to, reason| {
            let (backend, port_name) = (backend.into(), port_name.into());
            changes.push(Change { time: now, backend, address, port_name, from, to, reason });
        };
        let mut old: HashMap<Key<'_>, BackendState> = before.by_key().map(|(key, state, _)| (key, state)).collect();
        for (key, state, (port, endpoint)) in self.by_key() {
            let from = old.remove(&key);
            if from != Some(state) {
                let has_reason = matches!(
                    state,
                    BackendState::Unhealthy
                        | BackendState::Healthy
                        | BackendState::Terminating
                        | BackendState::Ejected
                        | BackendState::Flapping
                );
                let back = (from, state) == (Some(BackendState::Ejected), BackendState::Healthy);
                let why = || if back { Some(EJECTION_OVER.into()) } else { reason(port, endpoint) };
                add(key, from, Some(state), has_reason.then(why).flatten());
            }
        }
        let mut gone: Vec<_> = old.into_iter().collect();
        gone.sort_unstable_by_key(|(key, _)| *key);
        gone.into_iter().for_each(|(key, state)| add(key, Some(state), None, None));
        changes
    }
}
