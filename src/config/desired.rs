//! From objects and assignments to what the packet path is to do: every default filled in, every name resolved.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hostweave_policy::model::NamedPort;
use hostweave_switch::tables::{Domain, Network, PortId};

use super::checked;
use super::diagnostic::Diagnostic;
use super::external_dns;
use super::host_access;
use super::ipam::Assignments;
use super::kind::{Kind, ObjectKey};
use super::node::Path as FieldPath;
use super::outside::{self, ServiceAddresses};
use super::policies;
use super::problem::Problem;
use super::services;
use super::set::ObjectSet;
use crate::fabric::spec::{BackendSpec, Desired, PortSpec, SocketMode};

/// Octets of a UNIX socket path (`sun_path` without its terminating zero, unix(7)).
pub const SOCKET_PATH_MAX: usize = 107;

/// What depends on the host and not on objects.
pub struct HostFacts<'a> {
    /// Folder of sockets.
    pub runtime_dir: &'a Path,
    /// Group id of a group name.
    pub group: &'a dyn Fn(&str) -> Option<u32>,
    /// User id of a user name.
    pub user: &'a dyn Fn(&str) -> Option<u32>,
    /// How the operating system calls the host.
    pub node: &'a dyn Fn() -> String,
}

impl HostFacts<'_> {
    /// Facts of this machine, below `runtime_dir`.
    pub fn system(runtime_dir: &Path) -> HostFacts<'_> {
        HostFacts { runtime_dir, group: &system_group, user: &system_user, node: &system_node }
    }
}

/// Group id by name, as the operating system has it.
pub fn system_group(name: &str) -> Option<u32> {
    nix::unistd::Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw())
}

/// User id by name, as the operating system has it.
pub fn system_user(name: &str) -> Option<u32> {
    nix::unistd::User::from_name(name).ok().flatten().map(|user| user.uid.as_raw())
}

/// How the operating system calls the host.
pub fn system_node() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// How the host is called: by its HostConfig, else by the operating system.
pub fn node_of(set: &ObjectSet, host: &HostFacts<'_>) -> String {
    set.of_kind(Kind::HostConfig).next().map_or_else(host.node, |object| object.key.name.clone())
}

/// What the packet path is to do. A port without assignment is left out; so is one whose group or user does not exist,
/// which is reported. A Service that is as it was told is the same `Arc`.
pub fn to_desired(
    set: &ObjectSet,
    assignments: &Assignments,
    given: &ServiceAddresses,
    told: services::Told<'_>,
    host: &HostFacts<'_>,
) -> (Desired, Vec<Diagnostic>) {
    let mut problems = Vec::new();
    let networks = set.networks().map(|(name, network)| network_of(name, network, set.host())).collect();
    let mut ports = Vec::new();
    for (key, object, port) in set.ports() {
        match port_of(set, assignments, key, port, host) {
            Ok(spec) => ports.extend(spec),
            Err(problem) => problems.push(object.diagnose(problem)),
        }
    }
    let config = set.host();
    let mut desired = Desired {
        networks,
        ports: ports.into(),
        policy: policies::spec(set),
        established: config.established,
        local: config.infrastructure.answers,
        timeouts: config.connections.timeouts,
        loose_tcp: config.connections.loose_tcp,
        uplink: None,
        nat_pools: Vec::new(),
        public: Vec::new(),
        attached: Vec::new(),
        dns: Some(config.dns.clone()),
        external_dns: external_dns::spec(set, given),
        metadata: config.metadata.clone(),
        services: Arc::default(),
    };
    problems.extend(outside::resolve(set, given, &mut desired));
    services::resolve(set, given, &node_of(set, host), told, &mut desired);
    (desired, problems)
}

/// What the packet path is told of a port, but for addresses of Services; `None` without assignment or network.
fn port_of(
    set: &ObjectSet,
    assignments: &Assignments,
    key: &ObjectKey,
    port: &checked::Port,
    host: &HostFacts<'_>,
) -> Result<Option<PortSpec>, Problem> {
    let Some((assignment, network)) = assignments.get(key).zip(set.network(&port.network)) else { return Ok(None) };
    Ok(Some(PortSpec {
        uid: assignment.uid,
        namespace: key.namespace.clone().unwrap_or_default(),
        name: key.name.clone(),
        network: port.network.clone(),
        mac: assignment.mac,
        v4: assignment.all_v4(port),
        v6: assignment.all_v6(port),
        hostname: port.hostname.clone(),
        up: port.up,
        backend: backend_of(key, port, network, set.host(), host)?,
        labels: set.labels(key),
        named_ports: port.named_ports.iter().map(named_port).collect(),
        flows_max: port.flows_max.unwrap_or(set.host().defaults.flows_max),
        rates: port.rates,
        metadata: Arc::clone(&port.metadata),
    }))
}

/// Writes the ports of these keys anew, and whom NAT pools serve: what [`to_desired`] says when nothing else has changed and no address of a
/// Service is attached to any of them. Returns the ports as they were and as they are; `None` where there is a problem to be told.
pub fn change_ports(
    set: &ObjectSet,
    assignments: &Assignments,
    keys: &[ObjectKey],
    host: &HostFacts<'_>,
    desired: &mut Desired,
) -> Option<Vec<Arc<PortSpec>>> {
    let mut concerned = Vec::new();
    for key in keys {
        let spec = match set.get(key).map(|object| &object.spec) {
            Some(checked::Spec::Port(port)) => port_of(set, assignments, key, port, host).ok()?.map(Arc::new),
            _ => None,
        };
        concerned.extend(spec.clone());
        match (desired.ports.place(key.namespace.as_deref().unwrap_or_default(), &key.name), spec) {
            (Ok(at), Some(spec)) => concerned.push(std::mem::replace(desired.ports.get_mut(at)?, spec)),
            (Ok(at), None) => concerned.push(desired.ports.remove(at)),
            (Err(at), Some(spec)) => desired.ports.insert(at, spec),
            (Err(_), None) => {}
        }
    }
    if !desired.nat_pools.is_empty() {
        desired.nat_pools = outside::pools_of(set, &desired.networks, &desired.ports);
    }
    Some(concerned)
}

fn named_port(named: &checked::NamedPort) -> NamedPort {
    NamedPort { name: named.name.clone(), protocol: checked::protocol(named.protocol), port: named.port }
}

fn network_of(name: &str, network: &checked::Network, host: &checked::HostConfig) -> Network {
    let gateways = || {
        let v4 = network.v4.map(|(_, gateway)| gateway.into());
        v4.into_iter().chain(network.v6.map(|(_, gateway)| gateway.into())).collect()
    };
    Network {
        name: name.to_owned(),
        vni: network.vni,
        v4: network.v4,
        v6: network.v6,
        mtu: network.mtu,
        addressing: network.addressing,
        learning: network.learning,
        domain: Some(match &network.domain {
            Some(domain) => Domain::Written(domain.clone()),
            None => Domain::Zone(host.dns.domain.clone()),
        }),
        // The gateway answers DNS.
        resolvers: if network.resolvers.is_empty() { gateways() } else { network.resolvers.clone() },
        // The fabric gives each network its internal port.
        internal: PortId::NONE,
        // What reaches beyond the network comes last.
        egress_v4: Default::default(),
        egress_v6: Default::default(),
        untranslated: Vec::new(),
    }
}

fn backend_of(
    key: &ObjectKey,
    port: &checked::Port,
    network: &checked::Network,
    config: &checked::HostConfig,
    host: &HostFacts<'_>,
) -> Result<BackendSpec, Problem> {
    let vhost_user = match &port.backend {
        checked::Backend::Host(name) => {
            return Ok(host_access::backend(name, network));
        }
        checked::Backend::Tap(tap) => return Ok(BackendSpec::Tap { name: tap.name.clone(), netns: tap.netns.clone() }),
        checked::Backend::VhostUser(vhost_user) => vhost_user,
    };
    let path = FieldPath::of("spec.backend.vhostUser");
    let socket = vhost_user.socket.clone().unwrap_or_else(|| default_socket(host.runtime_dir, key));
    let listens = vhost_user.mode == SocketMode::Listen;
    let group = vhost_user.group.as_ref().or(config.defaults.group.as_ref()).filter(|_| listens);
    let mut allowed_uids = Vec::with_capacity(vhost_user.allowed_users.len());
    for (index, user) in vhost_user.allowed_users.iter().enumerate() {
        allowed_uids.push(resolve(user, "user", host.user, &path.key("allowedUsers").index(index))?);
    }
    Ok(BackendSpec::VhostUser {
        mode: vhost_user.mode,
        incoming_socket: listens.then(|| incoming_socket(&socket)),
        socket,
        queues: vhost_user.queues.unwrap_or(config.defaults.queues),
        group: group.map(|group| resolve(group, "group", host.group, &path.key("group"))).transpose()?,
        allowed_uids,
    })
}

/// The number of a user or group.
pub fn resolve_account(account: &checked::Account, lookup: &dyn Fn(&str) -> Option<u32>) -> Option<u32> {
    match account {
        checked::Account::Id(id) => Some(*id),
        checked::Account::Name(name) => lookup(name),
    }
}

fn resolve(
    account: &checked::Account,
    what: &str,
    lookup: &dyn Fn(&str) -> Option<u32>,
    path: &FieldPath,
) -> Result<u32, Problem> {
    resolve_account(account, lookup).ok_or_else(|| {
        let name = match account {
            checked::Account::Name(name) => name.clone(),
            checked::Account::Id(id) => id.to_string(),
        };
        let problem = Problem::value(path, "not_found", format!("{what} {name} does not exist on this host"));
        problem.label(format!("no such {what}")).help(format!("create it, or write another {what} or its number"))
    })
}

/// `RUNTIME/ports/NAMESPACE.NAME.sock`: the socket of a listening port that names none. A namespace has no dots, so two
/// ports never share one.
pub fn default_socket(runtime_dir: &Path, port: &ObjectKey) -> PathBuf {
    let namespace = port.namespace.as_deref().unwrap_or_default();
    runtime_dir.join("ports").join(format!("{namespace}.{}.sock", port.name))
}

/// The second socket of a listening port, for the incoming side of a live migration on this host. `+` stands in no name
/// of an object.
pub fn incoming_socket(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push("+in");
    PathBuf::from(path)
}
