//! One port at run time: its identity in the tables, and what is attached to it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use hostweave_policy::model::Endpoint;
use hostweave_switch::MacAddr;
use hostweave_switch::counters::{PortCounters, PortTotals};
use hostweave_switch::rate::RateLimits;
use hostweave_switch::tables::{
    METADATA_V4, METADATA_V6, Network, NetworkId, Port, PortId, PortKind, ROUTER_LINK_LOCAL,
};
use hostweave_uplink::device::Device;
use hostweave_uplink::netns::{TapRequest, delete_tap, make_transient, open_tap};
use hostweave_vhost::{Attachment, AttachmentConfig, Mode, State};

use super::Inner;
use super::host_access;
use super::observer::{Gate, PortObserver};
use super::plane::{Output, Source, SourceKey, VhostOutput};
use super::spec::{
    AttachmentStatus, BackendSpec, FabricConfig, FabricEvent, HostRoute, PortSpec, PortStatus, SocketMode,
};

/// Seconds for which DHCP leases an address; the address itself stays with the port for life.
const LEASE_S: u32 = 86_400;

/// Connections that the host's own services may begin in one network.
const INTERNAL_FLOWS_MAX: u32 = 65_536;

/// One port at run time.
pub struct PortRuntime {
    port: Arc<Port>,
    /// `None` for an internal port.
    spec: Option<PortSpec>,
    mtu: u16,
    output: Option<Arc<Output>>,
    sources: Vec<(SourceKey, Source)>,
    /// Held back until the plane that knows the port is published.
    gate: Gate,
    /// Counts attachments over the life of the port, so that a source's key is never used twice.
    serial: u32,
    /// Why the last attempt to attach failed.
    failure: Option<String>,
    /// What policy sees of it; the same as long as nothing of it changes.
    endpoint: Option<Arc<Endpoint>>,
}

impl PortRuntime {
    /// A port with nothing attached yet.
    pub fn new(inner: &Inner, id: PortId, network: NetworkId, mtu: u16, spec: &PortSpec) -> Self {
        let counters = (0..inner.workers.len()).map(|_| PortCounters::default()).collect();
        Self {
            port: Arc::new(port_of(id, network, spec, RateLimits::new(&spec.rates), counters)),
            spec: Some(spec.clone()),
            mtu,
            output: None,
            sources: Vec::new(),
            gate: Gate::default(),
            serial: 0,
            failure: None,
            endpoint: None,
        }
    }

    /// The internal port of a network.
    pub fn internal(inner: &Inner, id: PortId, network_id: NetworkId, network: &Arc<Network>) -> Self {
        let key = SourceKey { port: id, attachment: 0, pair: 0 };
        let owner = super::plane::owner(id, 0, inner.workers.len());
        let worker = Arc::clone(&inner.workers[owner]);
        let wake = Arc::new(move || worker.mailbox.send(super::Message::SourceStarted(key)));
        let internal = inner.sockets.add_network(network, wake);
        let counters = (0..inner.workers.len()).map(|_| PortCounters::default()).collect();
        Self {
            port: Arc::new(internal_port(id, network_id, network, counters)),
            spec: None,
            mtu: network.mtu,
            output: Some(Arc::new(Output::Internal(Arc::clone(&internal)))),
            sources: vec![(key, Source::Internal(internal))],
            gate: Gate::default(),
            serial: 1,
            failure: None,
            endpoint: None,
        }
    }

    /// The internal port owns the gateway's addresses, which may change with the network.
    pub fn set_network(&mut self, network: &Network) {
        let Port { id, network: network_id, counters, .. } = &*self.port;
        self.port = Arc::new(internal_port(*id, *network_id, network, Arc::clone(counters)));
        self.mtu = network.mtu;
    }

    /// Its identity in the tables.
    pub fn port(&self) -> &Arc<Port> {
        &self.port
    }

    /// Index in the tables.
    pub fn id(&self) -> PortId {
        self.port.id
    }

    /// `namespace/name`.
    pub fn name(&self) -> &str {
        &self.port.name
    }

    /// Where its packets go.
    pub fn output(&self) -> Option<&Arc<Output>> {
        self.output.as_ref()
    }

    /// Where its packets come from.
    pub fn sources(&self) -> &[(SourceKey, Source)] {
        &self.sources
    }

    /// Whether it can take over this spec without a new attachment.
    pub fn may_become(&self, wanted: &PortSpec) -> bool {
        self.spec.as_ref().is_some_and(|spec| {
            let same_device = match spec.backend {
                BackendSpec::VhostUser { .. } => true,
                BackendSpec::Tap { .. } => spec.mac == wanted.mac,
                BackendSpec::Host { .. } => {
                    spec.mac == wanted.mac && host_access::own_addresses(spec).eq(host_access::own_addresses(wanted))
                }
            };
            spec.uid == wanted.uid && spec.network == wanted.network && spec.backend == wanted.backend && same_device
        })
    }

    /// Takes over addresses, labels' consequences and state. Limits that stay the same go on as they are: a new label is no new burst.
    pub fn set_spec(&mut self, spec: &PortSpec) {
        if self.spec.as_ref() != Some(spec) {
            let same = self.spec.as_ref().is_some_and(|before| before.rates == spec.rates);
            let limits = if same { self.port.limits.clone() } else { RateLimits::new(&spec.rates) };
            let counters = Arc::clone(&self.port.counters);
            self.port = Arc::new(port_of(self.port.id, self.port.network, spec, limits, counters));
            self.spec = Some(spec.clone());
            self.endpoint = None;
        }
    }

    /// What policy sees of it.
    pub fn endpoint(&mut self) -> Arc<Endpoint> {
        let make = || match &self.spec {
            Some(spec) => Arc::new(super::connections::endpoint(&self.port, spec)),
            None => unreachable!("internal ports are no endpoints"),
        };
        Arc::clone(self.endpoint.get_or_insert_with(make))
    }

    /// Identity of its object; `None` for an internal port.
    pub fn uid(&self) -> Option<uuid::Uuid> {
        self.spec.as_ref().map(|spec| spec.uid)
    }

    /// Connections that it may begin.
    pub fn flows_max(&self) -> u32 {
        self.spec.as_ref().map_or(INTERNAL_FLOWS_MAX, |spec| spec.flows_max)
    }

    /// Whether it waits for another attempt to attach.
    pub fn wants_attachment(&self) -> bool {
        self.output.is_none() && self.spec.is_some()
    }

    /// Whether somebody is behind it who can answer (SEMANTICS SV2): a device, or a guest that runs. One that moves to the port's other
    /// socket (live migration) stands still for a moment, and runs all the while.
    pub fn runs(&self) -> bool {
        self.port.up
            && match self.output.as_deref() {
                Some(Output::Vhost(output)) => output.running.load(Ordering::Relaxed) != 0 || moves(output),
                Some(Output::Device(_) | Output::Internal(_)) => true,
                None => false,
            }
    }

    /// Sets up what the spec asks for. A failure is reported as an event and kept for the next attempt.
    pub fn attach(&mut self, inner: &Arc<Inner>) {
        let Some(spec) = self.spec.clone() else { return };
        self.gate = Gate::default();
        let result = match &spec.backend {
            BackendSpec::VhostUser { .. } => self.attach_vhost(inner, &spec),
            BackendSpec::Tap { name, netns } => self.attach_tap(inner, &spec, name, netns.clone()),
            BackendSpec::Host { name, routes, .. } => self.attach_host(inner, &spec, name, routes),
        };
        let failure = result.err().map(|error| format!("{error:#}"));
        if failure.is_some() && failure != self.failure {
            let reason = failure.clone().unwrap_or_default();
            inner.event(FabricEvent::AttachFailed { port: self.name().to_owned(), reason });
        }
        self.failure = failure;
    }

    fn attach_vhost(&mut self, inner: &Arc<Inner>, spec: &PortSpec) -> anyhow::Result<()> {
        let BackendSpec::VhostUser { mode, socket, incoming_socket, queues, group, allowed_uids } = &spec.backend
        else {
            return Ok(());
        };
        let mut attachments = Vec::new();
        let mut sources = Vec::new();
        for path in std::iter::once(socket).chain(incoming_socket) {
            let serial = self.serial;
            self.serial += 1;
            let config = AttachmentConfig {
                name: self.port.name.clone(),
                mode: match mode {
                    SocketMode::Listen => Mode::Listen,
                    SocketMode::Connect => Mode::Connect,
                },
                path: path.clone(),
                queue_pairs: usize::from(*queues),
                group: *group,
                allowed_uids: allowed_uids.clone(),
                mtu: self.mtu,
                config_space: None,
            };
            let observer = PortObserver::new(inner, &self.port, serial, attachments.len(), path, &self.gate);
            match Attachment::start(config, Arc::new(observer)) {
                Ok(attachment) => {
                    for pair in 0..usize::from(*queues) {
                        let key = SourceKey { port: self.port.id, attachment: serial, pair: pair as u16 };
                        sources.push((key, Source::Vhost(Arc::clone(&attachment), pair)));
                    }
                    attachments.push(attachment);
                }
                Err(error) => {
                    self.gate.open(None);
                    attachments.iter().for_each(|attachment: &Arc<Attachment>| attachment.shutdown());
                    return Err(error.into());
                }
            }
        }
        self.output = Some(Arc::new(Output::Vhost(VhostOutput {
            attachments,
            active: AtomicUsize::new(0),
            running: AtomicU64::new(0),
            change: std::sync::Mutex::default(),
            switching: Mutex::new(()),
        })));
        self.sources = sources;
        Ok(())
    }

    fn attach_tap(&mut self, inner: &Inner, spec: &PortSpec, name: &str, netns: Option<PathBuf>) -> anyhow::Result<()> {
        let request = TapRequest { name: name.to_owned(), netns, mac: spec.mac, mtu: self.mtu };
        let device = open_tap(&inner.config.helper, &request)?;
        let tap = Device::tap(device, self.port.id)?;
        self.attached_device(inner, name, tap);
        Ok(())
    }

    fn attach_host(&mut self, inner: &Inner, spec: &PortSpec, name: &str, routes: &[HostRoute]) -> anyhow::Result<()> {
        let request = TapRequest { name: name.to_owned(), netns: None, mac: spec.mac, mtu: self.mtu };
        host_access::check(spec, name, routes)?;
        let device = open_tap(&inner.config.helper, &request)?;
        make_transient(&device)?;
        let tap = Device::tap(device, self.port.id)?;
        host_access::set_up(spec, name, routes)?;
        self.attached_device(inner, name, tap);
        Ok(())
    }

    fn attached_device(&mut self, inner: &Inner, name: &str, tap: Device) {
        let tap = Arc::new(tap);
        let key = SourceKey { port: self.port.id, attachment: self.serial, pair: 0 };
        self.serial += 1;
        self.output = Some(Arc::new(Output::Device(Arc::clone(&tap))));
        self.sources = vec![(key, Source::Device(tap))];
        inner.event(FabricEvent::Started {
            port: self.name().to_owned(),
            socket: PathBuf::from(name),
            features: 0,
            queue_pairs: 1,
        });
    }

    /// The plane knows the port: attachments may tell what happens.
    pub fn open_gate(&self) {
        self.gate.open(self.output.clone());
    }

    /// Whether the TAP device is in a namespace that was deleted, and perhaps made again: only we keep it alive.
    pub fn tap_is_orphaned(&self) -> bool {
        matches!(self.output.as_deref(), Some(Output::Device(tap)) if !tap.namespace_is_current())
    }

    /// Forgets a device that failed; the next attempt makes a new one.
    pub fn tap_failed(&mut self) {
        if matches!(self.output.as_deref(), Some(Output::Device(_))) {
            self.output = None;
            self.sources.clear();
        }
    }

    /// Ends all attachments. `delete` also removes what outlives the process (a container's device).
    pub fn detach(&mut self, config: &FabricConfig, delete: bool) {
        self.gate.open(self.output.clone());
        if let Some(Output::Vhost(output)) = self.output.as_deref() {
            output.attachments.iter().for_each(|attachment| attachment.shutdown());
        }
        self.output = None;
        self.sources.clear();
        if delete && let Some(PortSpec { backend: BackendSpec::Tap { name, netns }, mac, .. }) = &self.spec {
            let request = TapRequest { name: name.clone(), netns: netns.clone(), mac: *mac, mtu: self.mtu };
            if let Err(error) = delete_tap(&config.helper, &request) {
                tracing::warn!(port = self.name(), %error, "the port's TAP device could not be removed");
            }
        }
    }

    /// What `port describe` shows.
    pub fn status(&self) -> PortStatus {
        PortStatus { attachments: self.attachments(), totals: PortTotals::of(&self.port.counters) }
    }

    fn attachments(&self) -> Vec<AttachmentStatus> {
        let failed = |path: PathBuf, fault: Option<String>| AttachmentStatus {
            path,
            state: "waiting-for-device",
            fault,
            ..AttachmentStatus::default()
        };
        match (self.output.as_deref(), self.spec.as_ref().map(|spec| &spec.backend)) {
            (Some(Output::Vhost(output)), _) => vhost_statuses(output),
            (Some(Output::Device(_)), Some(BackendSpec::Tap { name, .. } | BackendSpec::Host { name, .. })) => {
                vec![AttachmentStatus {
                    path: PathBuf::from(name),
                    state: "running",
                    active: true,
                    queue_pairs: 1,
                    ..AttachmentStatus::default()
                }]
            }
            (None, Some(BackendSpec::Tap { name, .. } | BackendSpec::Host { name, .. })) => {
                vec![failed(PathBuf::from(name), self.failure.clone())]
            }
            (None, Some(BackendSpec::VhostUser { socket, .. })) => vec![failed(socket.clone(), self.failure.clone())],
            _ => Vec::new(),
        }
    }
}

/// Whether VMMs are at both sockets.
fn moves(output: &VhostOutput) -> bool {
    let connected =
        |attachment: &&Arc<Attachment>| matches!(attachment.status().state, State::Connected | State::Running);
    output.attachments.iter().filter(connected).count() > 1
}

fn vhost_statuses(output: &VhostOutput) -> Vec<AttachmentStatus> {
    let active = output.active.load(Ordering::Relaxed);
    let mut statuses: Vec<AttachmentStatus> = Vec::new();
    for (index, attachment) in output.attachments.iter().enumerate() {
        let status = attachment.status();
        let huge_pages = status.huge_pages();
        let status = AttachmentStatus {
            path: status.path,
            state: match status.state {
                State::WaitingForFrontend => "waiting-for-frontend",
                State::Connected => "connected",
                State::Running => "running",
                State::Faulted => "faulted",
            },
            fault: status.fault.or(status.waiting),
            active: index == active,
            peer: status.peer.map(|peer| (peer.pid, peer.uid)),
            features: status.features,
            queue_pairs: status.running_pairs as u16,
            memory: (status.memory > 0).then_some((status.memory, huge_pages)),
        };
        statuses.insert(if status.active { 0 } else { statuses.len() }, status);
    }
    statuses
}

/// The internal port of a network as the tables have it: it owns the gateway's addresses and those of metadata.
pub fn internal_port(id: PortId, network_id: NetworkId, network: &Network, counters: Arc<[PortCounters]>) -> Port {
    Port {
        id,
        name: format!("network/{}/internal", network.name),
        kind: PortKind::Internal,
        network: network_id,
        mac: MacAddr::ROUTER,
        v4: network.v4.map(|(_, gateway)| gateway).into_iter().chain([METADATA_V4]).collect(),
        v6: network.v6.map(|(_, gateway)| gateway).into_iter().chain([ROUTER_LINK_LOCAL, METADATA_V6]).collect(),
        hostname: String::new(),
        up: true,
        lease_s: LEASE_S,
        limits: None,
        counters,
    }
}

/// A port as the tables have it.
pub fn port_of(
    id: PortId,
    network: NetworkId,
    spec: &PortSpec,
    limits: Option<Arc<RateLimits>>,
    counters: Arc<[PortCounters]>,
) -> Port {
    Port {
        id,
        name: spec.full_name(),
        kind: match spec.backend {
            BackendSpec::VhostUser { .. } => PortKind::VhostUser,
            BackendSpec::Tap { .. } | BackendSpec::Host { .. } => PortKind::Tap,
        },
        network,
        mac: spec.mac,
        v4: spec.v4.clone(),
        v6: spec.v6.clone(),
        hostname: spec.hostname.clone(),
        up: spec.up,
        lease_s: LEASE_S,
        limits,
        counters,
    }
}
