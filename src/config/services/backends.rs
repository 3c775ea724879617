//! Who stands behind a Service: ports by their labels, or the addresses of EndpointSlices (SEMANTICS SV1).

use std::cell::OnceCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::ZONE_LABEL;
use crate::config::checked::{Endpoint, EndpointSlice, Prefer, Service, ServicePort, Target, annotations, protocol};
use crate::config::kind::{DEFAULT_NAMESPACE, Kind, ObjectKey};
use crate::config::set::ObjectSet;
use crate::fabric::spec::{Condition, PortSpec};

/// Ports by namespace, label and value.
type ByLabel<'a> = HashMap<(&'a str, &'a str, &'a str), Vec<usize>>;

/// Who may stand behind Services: the ports of a host and its EndpointSlices, by what finds them.
pub struct Backends<'a> {
    node: &'a str,
    zone: Option<&'a str>,
    ports: &'a [Arc<PortSpec>],
    set: &'a ObjectSet,
    by_label: OnceCell<ByLabel<'a>>,
    /// By network and address.
    by_address: OnceCell<HashMap<(&'a str, IpAddr), usize>>,
    /// Shares of new connections that are written, by namespace and name.
    weights: OnceCell<HashMap<(&'a str, &'a str), u16>>,
    /// Whether it is asked about so few Services that to look through the ports costs less than to sort them.
    few: bool,
}

/// Services that count as few.
const FEW_MAX: usize = 8;

/// Someone who stands behind a Service.
#[derive(Clone)]
pub struct Backend<'a> {
    /// The port; `None` for an address that is nobody's here.
    pub port: Option<&'a PortSpec>,
    /// What an EndpointSlice says.
    pub slice: Option<(&'a EndpointSlice, &'a Endpoint)>,
    /// Its addresses, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// What the objects say about it.
    pub condition: Condition,
    /// Share of new connections.
    pub weight: u16,
    /// Whether it runs on this host.
    pub local: bool,
}

/// Which backends come first (SEMANTICS SV15).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum First {
    /// Those that are meant for this host.
    Node,
    /// Those that are meant for this zone.
    Zone,
}

impl<'a> Backends<'a> {
    /// Those of this host, which is called `node`. What is sorted is sorted when it is needed.
    pub fn new(set: &'a ObjectSet, node: &'a str, ports: &'a [Arc<PortSpec>]) -> Self {
        let host = set.of_kind(Kind::HostConfig).next();
        let zone = host.and_then(|host| host.metadata.labels.get(ZONE_LABEL)).map(String::as_str);
        let (by_label, by_address, weights) = Default::default();
        Self { node, zone, ports, set, by_label, by_address, weights, few: false }
    }

    /// The same, to be asked about so many Services.
    pub fn for_some(set: &'a ObjectSet, node: &'a str, ports: &'a [Arc<PortSpec>], services: usize) -> Self {
        Self { few: services <= FEW_MAX, ..Self::new(set, node, ports) }
    }

    fn ports_by_label(&self) -> ByLabel<'a> {
        let mut by_label = ByLabel::new();
        for (slot, port) in self.ports.iter().enumerate() {
            for (key, value) in &port.labels {
                by_label.entry((port.namespace.as_str(), key.as_str(), value.as_str())).or_default().push(slot);
            }
        }
        by_label
    }

    /// The objects that they are among.
    pub fn set(&self) -> &'a ObjectSet {
        self.set
    }

    /// Those of a Service of its network, by name.
    pub fn of(&self, key: &ObjectKey, service: &Service) -> Vec<Backend<'a>> {
        if service.selector.is_empty() {
            return self.of_slices(key, service);
        }
        let selected = self.selected(key, &service.selector).into_iter();
        selected.filter(|port| port.network == service.network).map(|port| self.of_port(port, service)).collect()
    }

    /// The ports that a selector selects in the namespace of a Service, of whatever network.
    pub fn selected(&self, key: &ObjectKey, selector: &BTreeMap<String, String>) -> Vec<&'a PortSpec> {
        let namespace = namespace_of(key);
        if self.few {
            let has = |port: &&PortSpec| {
                port.namespace == namespace && selector.iter().all(|(key, value)| port.labels.get(key) == Some(value))
            };
            return self.ports.iter().map(|port| &**port).filter(has).collect();
        }
        let labels = selector.iter().map(|(key, value)| (namespace, key.as_str(), value.as_str()));
        let by_label = self.by_label.get_or_init(|| self.ports_by_label());
        let having = labels.map(|label| by_label.get(&label).map(Vec::as_slice).unwrap_or_default());
        let fewest = having.min_by_key(|slots| slots.len()).unwrap_or_default();
        let ports = fewest.iter().map(|slot| &*self.ports[*slot]);
        let matches = |port: &&PortSpec| selector.iter().all(|(key, value)| port.labels.get(key) == Some(value));
        // One label is what they were found by.
        ports.filter(|port| selector.len() == 1 || matches(port)).collect()
    }

    /// The EndpointSlices of a Service.
    pub fn slices(&self, key: &ObjectKey) -> impl Iterator<Item = &'a EndpointSlice> + use<'a> {
        self.set.slices_of(key)
    }

    fn of_port(&self, port: &'a PortSpec, service: &Service) -> Backend<'a> {
        let (v4, v6) = (port.v4.first().copied().map(IpAddr::V4), port.v6.first().copied().map(IpAddr::V6));
        let ready = port.up || service.balancing.publish_not_ready;
        Backend {
            port: Some(port),
            slice: None,
            addresses: v4.into_iter().chain(v6).collect(),
            condition: if ready { Condition::Ready } else { Condition::NotReady },
            weight: self.weight(port),
            local: true,
        }
    }

    /// An address that several slices have counts once, with the best that is said about it.
    fn of_slices(&self, key: &ObjectKey, service: &Service) -> Vec<Backend<'a>> {
        let mut found: Vec<Backend<'a>> = Vec::new();
        for slice in self.slices(key) {
            for endpoint in &slice.endpoints {
                found.push(self.of_endpoint(slice, endpoint, service));
            }
        }
        let rank = |condition| match condition {
            Condition::Ready => 0,
            Condition::Terminating => 1,
            Condition::NotReady => 2,
        };
        found.sort_by_key(|backend| (backend.addresses.first().copied(), rank(backend.condition)));
        found
    }

    fn of_endpoint(&self, slice: &'a EndpointSlice, endpoint: &'a Endpoint, service: &Service) -> Backend<'a> {
        let port = self.port_at(&service.network, endpoint.address);
        let condition = match (service.balancing.publish_not_ready, port) {
            (true, _) => Condition::Ready,
            (false, Some(port)) if !port.up => Condition::NotReady,
            (false, _) => endpoint.condition,
        };
        Backend {
            port,
            slice: Some((slice, endpoint)),
            addresses: vec![endpoint.address],
            condition,
            weight: port.map_or(annotations::WEIGHT_DEFAULT, |port| self.weight(port)),
            local: port.is_some() || endpoint.node.as_deref() == Some(self.node),
        }
    }

    fn port_at(&self, network: &str, address: IpAddr) -> Option<&'a PortSpec> {
        let by_address = self.by_address.get_or_init(|| {
            let addresses = |(slot, port): (usize, &'a Arc<PortSpec>)| {
                port.addresses().map(move |address| ((port.network.as_str(), address), slot))
            };
            self.ports.iter().enumerate().flat_map(addresses).collect()
        });
        by_address.get(&(network, address)).map(|slot| &*self.ports[*slot])
    }

    fn weight(&self, port: &PortSpec) -> u16 {
        let weights = self.weights.get_or_init(|| weights(self.set));
        if weights.is_empty() {
            return annotations::WEIGHT_DEFAULT;
        }
        let written = weights.get(&(port.namespace.as_str(), port.name.as_str()));
        written.copied().unwrap_or(annotations::WEIGHT_DEFAULT)
    }

    /// Which of the backends of a Service come first, and which next: what somebody has decided (hints), and what the Service
    /// prefers. As in Kubernetes, only if every ready one says where it belongs, and some belong here (`pkg/proxy/topology.go`).
    pub fn first(&self, service: &Service, backends: &[Backend<'_>]) -> Vec<First> {
        let prefer = service.balancing.prefer;
        let ready = || backends.iter().filter(|backend| backend.condition == Condition::Ready);
        let fits = |first: First| {
            let belongs: Option<Vec<bool>> = ready().map(|backend| self.belongs(backend, first, prefer)).collect();
            belongs.is_some_and(|belongs| belongs.contains(&true))
        };
        let asked: &[First] = if prefer == Some(Prefer::Zone) { &[First::Zone] } else { &[First::Node, First::Zone] };
        asked.iter().copied().filter(|first| fits(*first)).collect()
    }

    /// How near a backend is, 0 for those that come first. What is not ready is the second choice of everybody: it has no rank.
    pub fn rank(&self, backend: &Backend<'_>, first: &[First], prefer: Option<Prefer>) -> u8 {
        if backend.condition != Condition::Ready {
            return 0;
        }
        let at = first.iter().position(|first| self.belongs(backend, *first, prefer) == Some(true));
        u8::try_from(at.unwrap_or(first.len())).unwrap_or(u8::MAX)
    }

    /// Whether a backend is among those that come first; `None` if it does not say. Where the Service prefers some and nobody has
    /// decided, a backend is meant for where it runs.
    fn belongs(&self, backend: &Backend<'_>, first: First, prefer: Option<Prefer>) -> Option<bool> {
        let endpoint = backend.slice.map(|(_, endpoint)| endpoint);
        let (hints, at) = match first {
            First::Node => (endpoint.map(|endpoint| &endpoint.for_nodes), Some(self.node)),
            First::Zone => (endpoint.map(|endpoint| &endpoint.for_zones), self.zone),
        };
        let at = at?;
        if let Some(hints) = hints.filter(|hints| !hints.is_empty()) {
            return Some(hints.iter().any(|hint| hint == at));
        }
        prefer?;
        let written = match first {
            First::Zone => endpoint.and_then(|endpoint| endpoint.zone.as_deref()),
            First::Node => endpoint.and_then(|endpoint| endpoint.node.as_deref()),
        };
        let here = backend.local && (first == First::Node || written.is_none());
        if here { Some(true) } else { written.map(|written| written == at) }
    }
}

impl Backend<'_> {
    /// What balancing is keyed by.
    pub fn name(&self) -> String {
        match (self.port, self.addresses.first()) {
            (Some(port), _) => port.full_name(),
            (None, Some(address)) => address.to_string(),
            (None, None) => String::new(),
        }
    }

    /// Its L4 port behind a port of the Service, `Some(None)` for the one that the client asked for; `None` if it has none.
    pub fn l4(&self, port: &ServicePort) -> Option<Option<u16>> {
        if let Some((slice, _)) = self.slice {
            let same = |other: &&crate::config::checked::EndpointPort| {
                other.name == port.name && other.protocol == port.protocol
            };
            let found = slice.ports.iter().find(same)?;
            return Some(found.port.filter(|_| port.target != Target::Same));
        }
        match &port.target {
            Target::Same => Some(None),
            Target::Number(number) => Some(Some(*number)),
            Target::Named(name) => {
                let protocol = protocol(port.protocol);
                let named = self.port.iter().flat_map(|port| &port.named_ports);
                named
                    .into_iter()
                    .find(|named| named.name == *name && named.protocol == protocol)
                    .map(|named| Some(named.port))
            }
        }
    }
}

/// Shares of new connections that are written: on the Port, else on its Pod.
fn weights(set: &ObjectSet) -> HashMap<(&str, &str), u16> {
    let mut weights = HashMap::new();
    for object in [Kind::Pod, Kind::Port].into_iter().flat_map(|kind| set.of_kind(kind)) {
        if object.metadata.annotations.is_empty() {
            continue;
        }
        if let Some(weight) =
            object.metadata.annotations.get(annotations::WEIGHT).and_then(|text| annotations::weight(text))
        {
            weights.insert((namespace_of(&object.key), object.key.name.as_str()), weight);
        }
    }
    weights
}

/// Drops what was seen before: no (address, L4 port) twice.
pub fn once<'s>() -> impl FnMut(IpAddr, Option<u16>) -> bool + 's {
    let mut seen = HashSet::new();
    move |address, l4| seen.insert((address, l4))
}

pub(super) fn namespace_of(key: &ObjectKey) -> &str {
    key.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE)
}
