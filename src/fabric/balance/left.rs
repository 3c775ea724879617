//! Endpoints that Services had, and have no more: a port that is relabelled, a target port that is another now. As with those that are
//! drained, what is established over TCP goes on, and nothing else does (SEMANTICS SV5).

use std::collections::HashSet;
use std::sync::Arc;

use uuid::Uuid;

use super::super::spec::{Drain, EndpointSpec, ServicePortSpec, ServiceSpec};
use super::outlier::Place;

/// Endpoints that an L4 port of a Service remembers; the connections of those that left before them end.
pub const LEFT_MAX: usize = 256;

/// By L4 port of a Service, those that left last at the end.
pub type Left = Vec<Vec<EndpointSpec>>;

/// A Service as it is, for those who think of another one.
#[derive(Clone)]
pub struct Was {
    /// VNI of its network.
    pub vni: u32,
    /// What it is.
    pub spec: Arc<ServiceSpec>,
    /// Who has left it.
    pub left: Arc<Left>,
    /// Whom clients keep out.
    pub ejected: HashSet<Place>,
}

/// Who has left a Service when it becomes `spec`. A port is there or not; an address outside cannot be seen, and is.
pub fn left(was: Option<&Was>, vni: u32, spec: &ServiceSpec, there: impl Fn(&Uuid) -> bool) -> Left {
    let Some(was) = was.filter(|was| was.vni == vni && spec.drain == Drain::Keep) else { return Left::new() };
    let of = |port: &ServicePortSpec| {
        let is_same =
            |other: &ServicePortSpec| (&other.name, other.proto, &other.l4) == (&port.name, port.proto, &port.l4);
        let Some(at) = was.spec.ports.iter().position(is_same) else { return Vec::new() };
        let now: HashSet<_> = port.endpoints.iter().map(key).collect();
        let before = was.left.get(at).into_iter().flatten();
        let last = was.spec.ports.get(at).into_iter().flat_map(|port| &port.endpoints);
        let gone =
            |endpoint: &&EndpointSpec| !now.contains(&key(endpoint)) && endpoint.port.as_ref().is_none_or(&there);
        let mut left: Vec<EndpointSpec> = before.chain(last).filter(gone).cloned().collect();
        left.drain(..left.len().saturating_sub(LEFT_MAX));
        left
    };
    spec.ports.iter().map(of).collect()
}

fn key(endpoint: &EndpointSpec) -> (&str, std::net::IpAddr, Option<u16>) {
    (&endpoint.name, endpoint.address, endpoint.l4)
}
