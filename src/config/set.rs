//! The whole of the objects of a host, checked together.

use std::borrow::Cow;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, OnceLock};

use hostweave_policy::model;
use hostweave_switch::MacAddr;
use hostweave_switch::limits::{NETWORKS_MAX, PORTS_MAX};
use hostweave_switch::tables::Addressing;
use ipnet::{Ipv4Net, Ipv6Net};
use rpds::RedBlackTreeMapSync;

use super::checked::{
    Backend, EndpointSlice, Form, HostConfig, MTU_DEFAULT, Network, Object, Origin, Port, Spec, default_services_v4,
    default_services_v6,
};
use super::desired::{SOCKET_PATH_MAX, default_socket, incoming_socket};
use super::diagnostic::{Diagnostic, Diagnostics};
use super::host_access;
use super::kind::{DEFAULT_NAMESPACE, DEFAULT_NETWORK, Kind, ObjectKey};
use super::names::closest;
use super::node::Path as FieldPath;
use super::outside;
use super::problem::Problem;
use super::raw::{self, RawObject};

mod lone;

/// The built-in network: a private range (RFC 1918) for IPv4, and a unique local prefix (RFC 4193) for IPv6.
const DEFAULT_V4: (Ipv4Net, Ipv4Addr) =
    (Ipv4Net::new_assert(Ipv4Addr::new(10, 64, 0, 0), 16), Ipv4Addr::new(10, 64, 0, 1));
const DEFAULT_V6: (Ipv6Net, Ipv6Addr) = (
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd68, 0x7700, 0x64, 0, 0, 0, 0, 0), 64),
    Ipv6Addr::new(0xfd68, 0x7700, 0x64, 0, 0, 0, 0, 1),
);
const DEFAULT_VNI: u32 = 4096;

/// Objects that agree with each other, the built-in ones included. Cheap to clone, also to change a clone: what did not change is
/// shared.
#[derive(Clone, Debug, Default)]
pub struct ObjectSet {
    objects: RedBlackTreeMapSync<ObjectKey, Arc<Object>>,
    slices: Slices,
    host: Arc<HostConfig>,
    ports_by_label: Arc<OnceLock<PortsByLabel>>,
}

/// EndpointSlices by the key of their Service and their own.
type Slices = RedBlackTreeMapSync<(ObjectKey, ObjectKey), Arc<Object>>;

/// Ports by namespace, label key and label value.
type PortsByLabel = HashMap<(String, String, String), Vec<Arc<Object>>>;

impl ObjectSet {
    /// The object with this key.
    pub fn get(&self, key: &ObjectKey) -> Option<&Arc<Object>> {
        self.objects.get(key)
    }

    /// Every object, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&ObjectKey, &Arc<Object>)> {
        self.objects.iter()
    }

    /// The objects of one kind, by namespace and name.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Arc<Object>> {
        // Keys begin with their kind; nothing stands before no namespace and no name.
        let first = ObjectKey { kind, namespace: None, name: String::new() };
        self.objects.range(first..).take_while(move |(key, _)| key.kind == kind).map(|(_, object)| object)
    }

    /// The ports, by namespace and name.
    pub fn ports(&self) -> impl Iterator<Item = (&ObjectKey, &Object, &Port)> {
        self.of_kind(Kind::Port).filter_map(|object| match &object.spec {
            Spec::Port(port) => Some((&object.key, &**object, port)),
            _ => None,
        })
    }

    /// The networks, by name.
    pub fn networks(&self) -> impl Iterator<Item = (&str, &Network)> {
        self.of_kind(Kind::Network).filter_map(|object| match &object.spec {
            Spec::Network(network) => Some((object.key.name.as_str(), network)),
            _ => None,
        })
    }

    /// The network with this name.
    pub fn network(&self, name: &str) -> Option<&Network> {
        match &self.get(&ObjectKey::new(Kind::Network, None, name))?.spec {
            Spec::Network(network) => Some(network),
            _ => None,
        }
    }

    /// How the host runs hostweave; the defaults if nothing is written.
    pub fn host(&self) -> &HostConfig {
        &self.host
    }

    /// The objects of one kind in one namespace, by name.
    pub fn of_namespace<'a>(&'a self, kind: Kind, namespace: &str) -> impl Iterator<Item = &'a Arc<Object>> + use<'a> {
        // No name is empty: this stands before all of them.
        let first = ObjectKey { kind, namespace: Some(namespace.to_owned()), name: String::new() };
        let all = self.objects.range(first.clone()..).map(|(_, object)| object);
        all.take_while(move |object| object.key.kind == kind && object.key.namespace == first.namespace)
    }

    /// The ports of a namespace that have a label, their Pods' included, by name. The first call for a set looks at every
    /// port, the others do not.
    pub fn ports_with_label(&self, namespace: &str, key: &str, value: &str) -> &[Arc<Object>] {
        let by_label = self.ports_by_label.get_or_init(|| {
            let mut by_label = PortsByLabel::new();
            for port in self.of_kind(Kind::Port) {
                let namespace = port.key.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
                for (key, value) in self.labels_of(&port.key).iter() {
                    let label = (namespace.to_owned(), key.clone(), value.clone());
                    by_label.entry(label).or_default().push(Arc::clone(port));
                }
            }
            by_label
        });
        let label = (namespace.to_owned(), key.to_owned(), value.to_owned());
        by_label.get(&label).map(Vec::as_slice).unwrap_or_default()
    }

    /// The EndpointSlices of a Service, by name.
    pub fn slices_of(&self, service: &ObjectKey) -> impl Iterator<Item = &EndpointSlice> + use<'_> {
        // Nothing stands before no name.
        let none = ObjectKey { kind: Kind::EndpointSlice, namespace: service.namespace.clone(), name: String::new() };
        let first = (service.clone(), none);
        let all = self.slices.range(first..);
        let service = service.clone();
        all.take_while(move |((of, _), _)| *of == service).filter_map(|(_, object)| match &object.spec {
            Spec::EndpointSlice(slice) => Some(slice),
            _ => None,
        })
    }

    fn add_slice(&mut self, object: &Arc<Object>) {
        if let Some(service) = service_of(object) {
            self.slices.insert_mut((service, object.key.clone()), Arc::clone(object));
        }
    }

    /// This set with objects written or, where the flag says so, deleted on which nobody else's addresses depend: namespaces, policies,
    /// Services, EndpointSlices, and ports and Pods that are `lone`. Looks at nothing else. `None` if other objects are among them, a
    /// namespace is deleted, the labels of one choose whom a NAT pool serves, a Service is attached to a port, or there is anything to be
    /// said about a port.
    ///
    /// # Errors
    /// A policy of a namespace that does not exist; a Service of a network or pool that does not.
    pub fn with_changes(
        &self,
        changes: &[(bool, &Arc<Object>)],
        runtime_dir: &Path,
    ) -> Option<Result<Self, Diagnostics>> {
        let chooses = self.of_kind(Kind::NatPool).next().is_some();
        let attached =
            |object: &Arc<Object>| matches!(&object.spec, Spec::Service(service) if service.form == Form::Attach);
        let independent = |(gone, object): &(bool, &Arc<Object>)| match object.key.kind {
            Kind::NetworkPolicy | Kind::ClusterNetworkPolicy | Kind::EndpointSlice => true,
            Kind::Namespace => !gone && !chooses,
            Kind::Service => !attached(object) && !self.get(&object.key).is_some_and(attached),
            Kind::Port | Kind::Pod => lone::is_lone(self, *gone, object),
            _ => false,
        };
        if !changes.iter().all(independent) {
            return None;
        }
        let mut set = self.clone();
        let of_ports = |(_, object): &&(bool, &Arc<Object>)| matches!(object.key.kind, Kind::Port | Kind::Pod);
        if changes.iter().any(|change| of_ports(&change)) {
            set.ports_by_label = Arc::default();
        }
        for (gone, object) in changes {
            if let Some(service) = set.get(&object.key).and_then(|old| service_of(old)) {
                set.slices.remove_mut(&(service, object.key.clone()));
            }
            if *gone {
                set.objects.remove_mut(&object.key);
            } else {
                set.objects.insert_mut(object.key.clone(), Arc::clone(object));
                set.add_slice(object);
            }
        }
        if !lone::fit(self, &set, changes.iter().filter(of_ports), runtime_dir) {
            return None;
        }
        let mut found = Vec::new();
        for (_, object) in changes.iter().filter(|(gone, object)| !gone && object.key.kind.is_namespaced()) {
            check_namespace(&set, &object.key, object, &mut found);
            if let Spec::Service(service) = &object.spec {
                outside::check_service(&set, object, service, &mut found);
            }
        }
        Some(if found.is_empty() { Ok(set) } else { Err(Diagnostics(found)) })
    }

    /// Labels of a port: its own and those of the Pod of the same namespace and name.
    pub fn labels(&self, port: &ObjectKey) -> BTreeMap<String, String> {
        self.labels_of(port).into_owned()
    }

    /// As [`Self::labels`], without a copy where no Pod adds any.
    pub fn labels_of(&self, port: &ObjectKey) -> Cow<'_, BTreeMap<String, String>> {
        let pod = self.get(&ObjectKey::new(Kind::Pod, port.namespace.as_deref(), &port.name));
        let own = self.get(port).map(|object| &object.metadata.labels);
        match (pod, own) {
            (None, None) => Cow::default(),
            (None, Some(own)) => Cow::Borrowed(own),
            (Some(pod), own) => {
                let mut labels = pod.metadata.labels.clone();
                labels.extend(own.into_iter().flatten().map(|(key, value)| (key.clone(), value.clone())));
                Cow::Owned(labels)
            }
        }
    }
}

/// The Service that an EndpointSlice is of; `None` for other objects, too.
pub(super) fn service_of(object: &Object) -> Option<ObjectKey> {
    let Spec::EndpointSlice(slice) = &object.spec else { return None };
    Some(ObjectKey::new(Kind::Service, object.key.namespace.as_deref(), slice.service.as_deref()?))
}

/// Checks objects together and adds the built-in ones. `runtime_dir` is where sockets go that name no path.
///
/// # Errors
/// All problems: duplicate keys, addresses, MACs, VNIs, sockets or devices, names that lead nowhere, addresses outside
/// their network; warnings included.
pub fn check_set(
    objects: impl IntoIterator<Item = Arc<Object>>,
    runtime_dir: &Path,
) -> Result<(ObjectSet, Vec<Diagnostic>), Diagnostics> {
    let mut found = Vec::new();
    let mut by_key: BTreeMap<ObjectKey, Arc<Object>> = BTreeMap::new();
    for object in objects {
        match by_key.entry(object.key.clone()) {
            Entry::Vacant(slot) => {
                slot.insert(object);
            }
            Entry::Occupied(first) => found.push(written_twice(&object, &first.get().origin)),
        }
    }
    for object in BUILT_IN.iter() {
        by_key.entry(object.key.clone()).or_insert_with(|| Arc::clone(object));
    }
    let host = check_host_config(&by_key, &mut found);
    host_access::add(&mut by_key, &host, &mut found);
    let objects = by_key.into_iter().collect();
    let mut set =
        ObjectSet { objects, host: Arc::new(host), slices: Slices::default(), ports_by_label: Arc::default() };
    for slice in set.clone().of_kind(Kind::EndpointSlice) {
        set.add_slice(slice);
    }
    check_counts(&set, &mut found);
    check_vnis(&set, &mut found);
    let mut claims = Claims::default();
    for (key, object, port) in set.ports() {
        check_namespace(&set, key, object, &mut found);
        check_port(&set, object, port, &mut claims, &mut found);
        check_attachment(object, port, runtime_dir, &mut claims, &mut found);
    }
    for object in
        [Kind::NetworkPolicy, Kind::Service, Kind::EndpointSlice].into_iter().flat_map(|kind| set.of_kind(kind))
    {
        check_namespace(&set, &object.key, object, &mut found);
    }
    for pod in set.of_kind(Kind::Pod) {
        check_namespace(&set, &pod.key, pod, &mut found);
        check_pod(&set, pod, &mut found);
    }
    outside::check(&set, &mut found);
    Diagnostics(found).or(set)
}

/// What may belong to one port only.
#[derive(PartialEq, Eq, Hash)]
enum Claim<'a> {
    Address(&'a str, IpAddr),
    Mac(&'a str, MacAddr),
    Socket(PathBuf),
    Device(Option<&'a Path>, &'a str),
}

/// Who has what.
#[derive(Default)]
struct Claims<'a>(HashMap<Claim<'a>, &'a Object>);

impl<'a> Claims<'a> {
    /// Takes `claim` for `object`, or says who has it.
    fn take(&mut self, claim: Claim<'a>, object: &'a Object) -> Option<&'a Object> {
        let owner = *self.0.entry(claim).or_insert(object);
        (owner.key != object.key).then_some(owner)
    }
}

/// The namespace and the network that exist without being written: always the same ones, as what follows from them is.
static BUILT_IN: LazyLock<[Arc<Object>; 2]> = LazyLock::new(|| built_in().map(Arc::new));

fn built_in() -> [Object; 2] {
    let metadata = |name: &str| raw::Metadata { name: name.to_owned(), ..raw::Metadata::default() };
    let namespace = raw::Namespace {
        api_version: Kind::Namespace.api_version().to_owned(),
        kind: Kind::Namespace.to_string(),
        metadata: metadata(DEFAULT_NAMESPACE),
    };
    let (v4, v6) = (DEFAULT_V4, DEFAULT_V6);
    let network = raw::Network {
        api_version: Kind::Network.api_version().to_owned(),
        kind: Kind::Network.to_string(),
        metadata: metadata(DEFAULT_NETWORK),
        spec: raw::network::NetworkSpec {
            cidrs: vec![v4.0.to_string(), v6.0.to_string()],
            mtu: Some(u32::from(MTU_DEFAULT)),
            vni: Some(DEFAULT_VNI),
            ..raw::network::NetworkSpec::default()
        },
    };
    let checked = Network {
        v4: Some(v4),
        v6: Some(v6),
        services_v4: Some(default_services_v4(v4.0)),
        services_v6: Some(default_services_v6(v6.0)),
        mtu: MTU_DEFAULT,
        vni: DEFAULT_VNI,
        addressing: Addressing::Network,
        learning: true,
        domain: None,
        resolvers: Vec::new(),
        egress_v4: None,
        egress_v6: None,
        untranslated: Vec::new(),
    };
    let namespace_key = ObjectKey::new(Kind::Namespace, None, DEFAULT_NAMESPACE);
    let network_key = ObjectKey::new(Kind::Network, None, DEFAULT_NETWORK);
    let namespace_spec =
        model::Namespace { name: DEFAULT_NAMESPACE.to_owned(), labels: model::Labels::new(), default: None };
    [
        Object::built_in(RawObject::Namespace(namespace), namespace_key, Spec::Namespace(Arc::new(namespace_spec))),
        Object::built_in(RawObject::Network(network), network_key, Spec::Network(checked)),
    ]
}

fn written_twice(object: &Object, first: &Origin) -> Diagnostic {
    let path = FieldPath::of("metadata").key("name");
    let problem = Problem::value(&path, "duplicate", format!("it exists already ({first})")).label("second one");
    object.diagnose(problem.help("an object has one origin: change it there, or give this one another name"))
}

fn check_host_config(objects: &BTreeMap<ObjectKey, Arc<Object>>, found: &mut Vec<Diagnostic>) -> HostConfig {
    let mut hosts = objects.values().filter(|object| object.key.kind == Kind::HostConfig);
    let Some(first) = hosts.next() else { return HostConfig::default() };
    for other in hosts {
        let message = format!("a host has one HostConfig; {} is there already ({})", first.key.name, first.origin);
        let problem = Problem::value(&FieldPath::of("metadata.name"), "duplicate", message).label("second one");
        found.push(other.diagnose(problem));
    }
    match &first.spec {
        Spec::HostConfig(host) => HostConfig::clone(host),
        _ => HostConfig::default(),
    }
}

/// The packet path has room for so many. Each network has an internal port.
fn check_counts(set: &ObjectSet, found: &mut Vec<Diagnostic>) {
    let networks = set.of_kind(Kind::Network).count();
    let ports = set.of_kind(Kind::Port).count() + networks;
    for (what, count, most) in
        [("networks", networks, NETWORKS_MAX), ("ports (with one per network)", ports, PORTS_MAX)]
    {
        if count > most {
            let message = format!("there are {count} {what}; a host has room for {most}");
            found.push(Diagnostic::error("hostweave::config::out_of_range", message));
        }
    }
}

fn check_vnis(set: &ObjectSet, found: &mut Vec<Diagnostic>) {
    let mut owners: HashMap<u32, &Object> = HashMap::new();
    for object in set.of_kind(Kind::Network) {
        let Spec::Network(network) = &object.spec else { continue };
        let Some(other) = owners.insert(network.vni, object) else { continue };
        // The one without a written VNI is the one to change; built-in ones cannot be.
        let written = |object: &Object| matches!(object.raw(), RawObject::Network(raw) if raw.spec.vni.is_some());
        let swap = object.origin == Origin::BuiltIn || (written(object) && !written(other));
        let (object, other) = if swap { (other, &**object) } else { (&**object, other) };
        let message = format!("VNI {} belongs to {} already", network.vni, other.key);
        let problem = Problem::value(&FieldPath::of("spec.vni"), "conflict", message).label("not unique");
        found.push(object.diagnose(problem.help("write a vni that no other Network has")));
    }
}

fn check_namespace(set: &ObjectSet, key: &ObjectKey, object: &Object, found: &mut Vec<Diagnostic>) {
    let name = key.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    if set.get(&ObjectKey::new(Kind::Namespace, None, name)).is_some() {
        return;
    }
    let known = set.of_kind(Kind::Namespace).map(|namespace| namespace.key.name.as_str());
    let label = closest(name, known).map_or("not there".to_owned(), |similar| format!("did you mean {similar}?"));
    let message = format!("namespace {name} does not exist");
    let problem = Problem::value(&FieldPath::of("metadata.namespace"), "not_found", message).label(label);
    found.push(object.diagnose(
        problem.help(format!("apply it as well: {{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}")),
    ));
}

/// Network, addresses and MAC.
fn check_port<'a>(
    set: &'a ObjectSet,
    object: &'a Object,
    port: &'a Port,
    claims: &mut Claims<'a>,
    found: &mut Vec<Diagnostic>,
) {
    let Some(network) = set.network(&port.network) else {
        let label = match closest(&port.network, set.networks().map(|(name, _)| name)) {
            Some(similar) => format!("did you mean {similar}?"),
            None => "not there".to_owned(),
        };
        let message = format!("Network {} does not exist", port.network);
        found.push(object.diagnose(Problem::value(&FieldPath::of("spec.network"), "not_found", message).label(label)));
        return;
    };
    for address in port.fixed() {
        let path = address_path(object, address);
        if let Err(reason) = network.check_address(address) {
            let message = format!("address {address} {reason} (Network {})", port.network);
            found.push(object.diagnose(Problem::value(&path, "invalid_address", message).label("not usable here")));
        } else if let Some(owner) = claims.take(Claim::Address(&port.network, address), object) {
            let message =
                format!("address {address} of Network {} belongs to {} ({})", port.network, owner.key, owner.origin);
            found.push(object.diagnose(Problem::value(&path, "conflict", message).label("taken")));
        }
    }
    if let Some(mac) = port.mac
        && let Some(owner) = claims.take(Claim::Mac(&port.network, mac), object)
    {
        let message = format!("MAC {mac} belongs to {} ({}) in Network {}", owner.key, owner.origin, port.network);
        found.push(object.diagnose(Problem::value(&FieldPath::of("spec.mac"), "conflict", message).label("taken")));
    }
}

/// `spec.addresses[i]` of a fixed address.
fn address_path(object: &Object, address: IpAddr) -> FieldPath {
    let path = FieldPath::of("spec.addresses");
    let RawObject::Port(raw) = object.raw() else { return path };
    let index = raw.spec.addresses.iter().position(|text| text.parse() == Ok(address));
    index.map_or(path.clone(), |index| path.index(index))
}

/// Socket or device.
fn check_attachment<'a>(
    object: &'a Object,
    port: &'a Port,
    runtime_dir: &Path,
    claims: &mut Claims<'a>,
    found: &mut Vec<Diagnostic>,
) {
    let (path, what, claim) = match &port.backend {
        Backend::VhostUser(vhost_user) => {
            let socket = vhost_user.socket.clone().unwrap_or_else(|| default_socket(runtime_dir, &object.key));
            let len = incoming_socket(&socket).as_os_str().len();
            if vhost_user.socket.is_none() && len > SOCKET_PATH_MAX {
                let message = format!(
                    "namespace and name make a socket path of {len} octets below {}; the kernel allows {SOCKET_PATH_MAX}",
                    runtime_dir.display()
                );
                let problem =
                    Problem::value(&FieldPath::of("metadata.name"), "out_of_range", message).label("too long");
                found.push(
                    object.diagnose(problem.help("shorten the name, or write spec.backend.vhostUser.socketPath")),
                );
            }
            let what = format!("socket {}", socket.display());
            ("spec.backend.vhostUser.socketPath", what, Claim::Socket(socket))
        }
        Backend::Tap(tap) => {
            let place =
                tap.netns.as_ref().map_or("the host's namespace".to_owned(), |netns| netns.display().to_string());
            let what = format!("device {} in {place}", tap.name);
            ("spec.backend.tap.name", what, Claim::Device(tap.netns.as_deref(), &tap.name))
        }
        Backend::Host(name) => {
            let what = format!("device {name} in the host's namespace");
            ("spec.backend.tap.name", what, Claim::Device(None, name))
        }
    };
    if let Some(owner) = claims.take(claim, object) {
        let message = format!("{what} belongs to {} ({})", owner.key, owner.origin);
        found.push(object.diagnose(Problem::value(&FieldPath::of(path), "conflict", message).label("taken")));
    }
}

/// A Pod speaks about the Port of its name, and must not contradict it.
fn check_pod(set: &ObjectSet, pod: &Object, found: &mut Vec<Diagnostic>) {
    let key = ObjectKey::new(Kind::Port, pod.key.namespace.as_deref(), &pod.key.name);
    let Some(port) = set.get(&key) else {
        let message = format!("there is no {key}: the labels of this Pod apply to nothing");
        found.push(pod.diagnose(Problem::value(&FieldPath::of("metadata.name"), "not_found", message).warning()));
        return;
    };
    for (name, value) in &pod.metadata.labels {
        if let Some(other) = port.metadata.labels.get(name)
            && other != value
        {
            let message = format!("label {name} is {value:?} here and {other:?} in {key} ({})", port.origin);
            let path = FieldPath::of("metadata.labels").key(name);
            found.push(pod.diagnose(Problem::value(&path, "conflict", message).label("contradicts the Port")));
        }
    }
}
