//! Which endpoints of a Service take connections (SEMANTICS SV1 to SV5). A decision over what is known: it keeps nothing.

use std::sync::Arc;

use hostweave_nat::service::Backend;

use super::super::spec::{AllDown, Condition, Drain, EndpointSpec, ServiceSpec};
use super::super::uplink::owned::mapped;

/// How an endpoint is, in a word: the first of these that is so.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum BackendState {
    /// It takes connections, if its traffic policy admits the client.
    Healthy,
    /// It ends, and answers still: the second choice.
    Terminating,
    /// Somebody drained it.
    Drained,
    /// Its port, or its object, is not ready.
    NotReady,
    /// It came and went too often, and is held out for a while.
    Flapping,
    /// Its guest was there before the daemon started again, for all we know, and has not come back yet.
    Awaited,
    /// Its port is down, or nobody is attached to it.
    Stopped,
    /// It was not asked yet whether it is healthy.
    Unchecked,
    /// It failed its checks.
    Unhealthy,
    /// Clients could not connect to it, and it is out for a while.
    Ejected,
}

impl BackendState {
    /// Every one, in order.
    pub const ALL: [BackendState; 10] = [
        BackendState::Healthy,
        BackendState::Terminating,
        BackendState::Drained,
        BackendState::NotReady,
        BackendState::Flapping,
        BackendState::Awaited,
        BackendState::Stopped,
        BackendState::Unchecked,
        BackendState::Unhealthy,
        BackendState::Ejected,
    ];

    /// Its name in JSON, metrics and tables.
    pub fn name(self) -> &'static str {
        match self {
            BackendState::Healthy => "healthy",
            BackendState::Terminating => "terminating",
            BackendState::Drained => "drained",
            BackendState::NotReady => "not-ready",
            BackendState::Flapping => "flapping",
            BackendState::Awaited => "awaited",
            BackendState::Stopped => "stopped",
            BackendState::Unchecked => "unchecked",
            BackendState::Unhealthy => "unhealthy",
            BackendState::Ejected => "ejected",
        }
    }
}

/// What is known of an endpoint besides what its object says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Known {
    /// Whether a guest, or a device, is behind its port (SEMANTICS SV2).
    pub running: bool,
    /// Whether it is held out for having come and gone too often ([`damping`](super::damping)).
    pub held: bool,
    /// Whether it may still come back: the daemon has just started again, and nobody was there yet.
    pub awaited: bool,
    /// Whether somebody asked for no new connections.
    pub drained: bool,
    /// What its checks say; `None` before the first verdict. Without checks it is healthy.
    pub healthy: Option<bool>,
}

impl Known {
    /// How an endpoint of this condition is.
    pub fn state(self, condition: Condition) -> BackendState {
        match (self, condition) {
            (Known { drained: true, .. }, _) => BackendState::Drained,
            (_, Condition::NotReady) => BackendState::NotReady,
            (Known { held: true, .. }, _) => BackendState::Flapping,
            (Known { running: false, awaited: true, .. }, _) => BackendState::Awaited,
            (Known { running: false, .. }, _) => BackendState::Stopped,
            (Known { healthy: None, .. }, _) => BackendState::Unchecked,
            (Known { healthy: Some(false), .. }, _) => BackendState::Unhealthy,
            (_, Condition::Terminating) => BackendState::Terminating,
            (_, Condition::Ready) => BackendState::Healthy,
        }
    }
}

/// Who connects.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Audience {
    /// Clients of a cluster address.
    Internal,
    /// Clients of an address at the uplink.
    External,
    /// Clients in the network of an address out of a pool: as if the policy were `Cluster` (SEMANTICS SV13).
    Any,
}

impl Audience {
    fn admits(self, endpoint: &EndpointSpec) -> bool {
        match self {
            Audience::Internal => endpoint.internal,
            Audience::External => endpoint.external,
            Audience::Any => true,
        }
    }

    /// Whether near endpoints come first.
    fn prefers(self, service: &ServiceSpec) -> bool {
        match self {
            Audience::Internal => !service.internal_local,
            Audience::External => !service.external_local,
            Audience::Any => true,
        }
    }
}

/// Which of these endpoints take connections of `audience`. Families have nothing to do with each other.
pub fn active(service: &ServiceSpec, endpoints: &[(&EndpointSpec, BackendState)], audience: Audience) -> Vec<bool> {
    let pick = |wanted: &dyn Fn(&EndpointSpec, BackendState) -> bool| -> Vec<bool> {
        let each = endpoints.iter();
        each.map(|(endpoint, state)| audience.admits(endpoint) && wanted(endpoint, *state)).collect()
    };
    let is_healthy = |endpoint: &EndpointSpec, state| state == BackendState::Healthy && audience.admits(endpoint);
    let healthy = endpoints.iter().filter(|(endpoint, state)| is_healthy(endpoint, *state));
    // The nearest of those that can: a preference that overflows (SEMANTICS SV15).
    if let Some(nearest) = healthy.map(|(endpoint, _)| endpoint.rank).min() {
        let prefers = audience.prefers(service);
        return pick(&|endpoint, state| is_healthy(endpoint, state) && (!prefers || endpoint.rank == nearest));
    }
    // KEP-1669: better than nobody.
    let terminating = pick(&|_, state| state == BackendState::Terminating);
    if terminating.contains(&true) {
        return terminating;
    }
    // Others may have gone since: what clients saw then is no reason to refuse them now.
    let ejected = pick(&|_, state| state == BackendState::Ejected);
    if ejected.contains(&true) || service.all_down == AllDown::Reject {
        return ejected;
    }
    // One that was never asked gets nothing even then (SEMANTICS SV3).
    pick(&|endpoint, state| state == BackendState::Unhealthy && endpoint.condition == Condition::Ready)
}

/// The backends of one L4 port of a Service for `audience`, of one family, in the order of their names: all that connections may
/// go on with. An endpoint that takes no new ones keeps those that it has, unless they are to be reset; so do those that have `left`.
pub fn backends(
    service: &ServiceSpec,
    endpoints: &[(&EndpointSpec, BackendState)],
    left: &[EndpointSpec],
    audience: Audience,
    ipv4: bool,
) -> Arc<[Backend]> {
    let family: Vec<(&EndpointSpec, BackendState)> =
        endpoints.iter().filter(|(endpoint, _)| endpoint.address.is_ipv4() == ipv4).copied().collect();
    let active = active(service, &family, audience);
    let mut backends: Vec<Backend> = family
        .iter()
        .zip(active)
        .filter(|((_, state), active)| *active || service.drain == Drain::Keep || goes_on(*state))
        .map(|((endpoint, state), active)| Backend {
            ejected: !active && *state == BackendState::Ejected,
            ..backend(endpoint, active)
        })
        .chain(left.iter().filter(|endpoint| endpoint.address.is_ipv4() == ipv4).map(|left| backend(left, false)))
        .collect();
    backends.sort_unstable_by(|a, b| (&a.name, a.address, a.l4).cmp(&(&b.name, b.address, b.l4)));
    backends.into()
}

/// Whether connections go on also where they are reset when an endpoint leaves: it has not left. A daemon that has just
/// started has checked nobody yet; and one that takes no new connections may serve those that it has well.
fn goes_on(state: BackendState) -> bool {
    matches!(state, BackendState::Healthy | BackendState::Unchecked | BackendState::Awaited | BackendState::Ejected)
}

fn backend(endpoint: &EndpointSpec, active: bool) -> Backend {
    let EndpointSpec { name, address, l4, weight, .. } = endpoint;
    Backend { name: name.as_str().into(), address: mapped(*address), l4: *l4, weight: *weight, active, ejected: false }
}

/// Whether any endpoint of an IP version takes connections of `audience`.
pub fn is_active(
    service: &ServiceSpec,
    endpoints: &[(&EndpointSpec, BackendState)],
    ipv4: bool,
    audience: Audience,
) -> bool {
    let family: Vec<_> = endpoints.iter().filter(|(endpoint, _)| endpoint.address.is_ipv4() == ipv4).copied().collect();
    active(service, &family, audience).contains(&true)
}
