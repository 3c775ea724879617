//! `Port`, checked.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;

use hostweave_switch::MacAddr;
use hostweave_switch::limits::CONNECTIONS_MAX;

use super::{Metadata, absolute_path, account, annotations, guest, queues, range, rates};
use crate::config::kind::{DEFAULT_NETWORK, ObjectKey};
use crate::config::node::Path;
use crate::config::problem::Problem;
use crate::config::raw::port::Protocol;
use crate::config::{desired, names, raw};
use crate::fabric::spec::{PortMetadata, PortRates, SocketMode};

/// Fixed addresses of one port.
const ADDRESSES_MAX: usize = 64;

/// A NIC. Defaults that depend on the host are still open (`None`); [`super::super::desired`] fills them in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Port {
    /// Name of its network.
    pub network: String,
    /// What is attached.
    pub backend: Backend,
    /// Fixed MAC address.
    pub mac: Option<MacAddr>,
    /// Fixed IPv4 addresses.
    pub v4: Vec<Ipv4Addr>,
    /// Fixed IPv6 addresses.
    pub v6: Vec<Ipv6Addr>,
    /// Host name for DHCP.
    pub hostname: String,
    /// Names for L4 ports.
    pub named_ports: Vec<NamedPort>,
    /// Administratively up.
    pub up: bool,
    /// Connections that it may have opened at a time, where written.
    pub flows_max: Option<u32>,
    /// What it may send and receive per second.
    pub rates: PortRates,
    /// What its guest is told at its first boot.
    pub metadata: Arc<PortMetadata>,
}

/// What is attached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Backend {
    /// A VM.
    VhostUser(VhostUser),
    /// A container.
    Tap(Tap),
    /// The host itself, through a TAP device of this name that the daemon configures. Written as
    /// `HostConfig.spec.hostAccess`.
    Host(String),
}

/// A vhost-user socket.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct VhostUser {
    /// Which side listens.
    pub mode: SocketMode,
    /// Path, where one is written; always there in `connect` mode.
    pub socket: Option<PathBuf>,
    /// Queue pairs, where written.
    pub queues: Option<u16>,
    /// Group that may open the socket, where written.
    pub group: Option<Account>,
    /// Users whose VMMs may connect; empty means everybody whom the permissions allow.
    pub allowed_users: Vec<Account>,
}

/// A TAP device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tap {
    /// Device name, 1 to 15 octets.
    pub name: String,
    /// Network namespace file; `None` is the host's own.
    pub netns: Option<PathBuf>,
}

/// A user or group of the operating system.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Account {
    /// By number.
    Id(u32),
    /// By name, resolved on the host that uses it.
    Name(String),
}

/// A name for an L4 port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamedPort {
    /// The name.
    pub name: String,
    /// The number.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

impl Port {
    /// Checks what is written; values of fields that have a problem are meaningless.
    pub(super) fn check(
        key: &ObjectKey,
        metadata: &Metadata,
        raw: &raw::port::PortSpec,
        problems: &mut Vec<Problem>,
    ) -> Self {
        check_annotations(metadata, problems);
        let spec = Path::of("spec");
        let network = raw.network.as_deref().unwrap_or(DEFAULT_NETWORK);
        if let Err(reason) = names::check_dns_subdomain(network) {
            let path = spec.key("network");
            let message = format!("{path} {network:?} {reason}");
            problems.push(Problem::value(&path, "invalid_name", message).label("not a valid name"));
        }
        let mut port = Self {
            network: network.to_owned(),
            backend: check_backend(raw.backend.as_ref(), &spec.key("backend"), problems),
            mac: raw.mac.as_deref().and_then(|text| check_mac(text, &spec.key("mac"), problems)),
            v4: Vec::new(),
            v6: Vec::new(),
            hostname: check_hostname(key, raw.hostname.as_deref(), &spec.key("hostname"), problems),
            named_ports: check_named_ports(&raw.named_ports, &spec.key("namedPorts"), problems),
            up: raw.admin_state != Some(raw::port::AdminState::Down),
            flows_max: {
                let flows = raw.limits.as_ref().and_then(|limits| limits.flows);
                range(flows, 1, CONNECTIONS_MAX, &spec.key("limits").key("flows"), problems)
            },
            rates: rates::check(raw.limits.as_ref(), &spec.key("limits"), problems),
            metadata: Arc::new(guest::port(raw.metadata.as_deref(), &spec.key("metadata"), problems)),
        };
        port.check_addresses(&raw.addresses, &spec.key("addresses"), problems);
        port
    }

    /// The fixed addresses, in the order of `spec.addresses` within each family.
    pub fn fixed(&self) -> impl Iterator<Item = IpAddr> {
        self.v4.iter().copied().map(IpAddr::from).chain(self.v6.iter().copied().map(IpAddr::from))
    }

    fn check_addresses(&mut self, addresses: &[String], path: &Path, problems: &mut Vec<Problem>) {
        if addresses.len() > ADDRESSES_MAX {
            let message = format!("{path} has {} addresses; at most {ADDRESSES_MAX} are allowed", addresses.len());
            problems.push(Problem::value(path, "out_of_range", message).label("too many"));
            return;
        }
        for (index, text) in addresses.iter().enumerate() {
            let path = path.index(index);
            let Ok(address) = text.parse::<IpAddr>() else {
                let problem = Problem::value(&path, "invalid_address", format!("{path} {text:?} is not an IP address"));
                let without_length = text.split('/').next().filter(|_| text.contains('/'));
                problems.push(match without_length.filter(|address| address.parse::<IpAddr>().is_ok()) {
                    Some(address) => problem.label("without prefix length").help(format!("write {address}")),
                    None => problem.label("not an address"),
                });
                continue;
            };
            if self.fixed().any(|known| known == address) {
                let message = format!("{path} {address} is listed twice");
                problems.push(Problem::value(&path, "duplicate", message).label("second time"));
                continue;
            }
            match address {
                IpAddr::V4(v4) => self.v4.push(v4),
                IpAddr::V6(v6) => self.v6.push(v6),
            }
        }
    }
}

/// What annotations of a port, or of its Pod, say.
pub(super) fn check_annotations(metadata: &Metadata, problems: &mut Vec<Problem>) {
    annotations::attach_mode(metadata, problems);
    annotations::check_weight(metadata, problems);
    let Some(service) = metadata.annotations.get(annotations::ATTACH) else { return };
    if let Err(reason) = names::check_dns_label(service) {
        let message = format!("annotation {} {service:?} {reason}", annotations::ATTACH);
        let problem = Problem::value(&annotations::path_of(annotations::ATTACH), "invalid_name", message);
        problems.push(problem.label("not the name of a Service").help("a Service of the same namespace, without it"));
    }
}

fn check_backend(raw: Option<&raw::port::Backend>, path: &Path, problems: &mut Vec<Problem>) -> Backend {
    let none = raw::port::Backend::default();
    let raw = raw.unwrap_or(&none);
    match (&raw.vhost_user, &raw.tap) {
        (Some(_), Some(_)) => {
            let message = format!("{path} has both vhostUser and tap; a port has one of them");
            problems.push(Problem::key(path, "conflict", message).label("vhostUser and tap"));
            Backend::VhostUser(VhostUser::default())
        }
        (vhost_user, None) => {
            let default = raw::port::VhostUser::default();
            let raw = vhost_user.as_ref().unwrap_or(&default);
            Backend::VhostUser(check_vhost_user(raw, &path.key("vhostUser"), problems))
        }
        (None, Some(tap)) => Backend::Tap(check_tap(tap, &path.key("tap"), problems)),
    }
}

fn check_vhost_user(raw: &raw::port::VhostUser, path: &Path, problems: &mut Vec<Problem>) -> VhostUser {
    let mode = match raw.mode {
        None | Some(raw::port::SocketMode::Listen) => SocketMode::Listen,
        Some(raw::port::SocketMode::Connect) => SocketMode::Connect,
    };
    let group_path = path.key("group");
    if mode == SocketMode::Connect {
        if raw.socket_path.is_none() {
            let message = format!("field {} is missing: connect mode needs the VMM's socket", path.key("socketPath"));
            let problem = Problem::key(&path.key("mode"), "missing_field", message).label("needs socketPath");
            problems.push(problem.help("for QEMU: the path of `-chardev socket,path=…,server=on`"));
        }
        if raw.group.is_some() {
            let message = format!("{group_path} has no meaning in connect mode: the VMM makes the socket");
            problems.push(Problem::key(&group_path, "conflict", message).label("remove it"));
        }
    }
    let users = raw.allowed_users.iter().enumerate();
    VhostUser {
        mode,
        socket: raw.socket_path.as_ref().map(|text| socket_path(text, mode, &path.key("socketPath"), problems)),
        queues: queues(raw.queues, &path.key("queues"), problems),
        group: raw.group.as_ref().map(|group| account(group, &group_path, problems)),
        allowed_users: users
            .map(|(index, user)| account(user, &path.key("allowedUsers").index(index), problems))
            .collect(),
    }
}

/// An absolute path that fits into `sun_path`, beside a second one where hostweave listens (migration).
fn socket_path(text: &str, mode: SocketMode, path: &Path, problems: &mut Vec<Problem>) -> PathBuf {
    let socket = absolute_path(text, path, problems);
    let longest = match mode {
        SocketMode::Listen => desired::incoming_socket(&socket),
        SocketMode::Connect => socket.clone(),
    };
    let len = longest.as_os_str().len();
    if len > desired::SOCKET_PATH_MAX {
        let message = format!(
            "{path} makes a socket path of {len} octets; the kernel allows {} (unix(7), sun_path)",
            desired::SOCKET_PATH_MAX
        );
        problems.push(Problem::value(path, "out_of_range", message).label("too long"));
    }
    socket
}

fn check_tap(raw: &raw::port::Tap, path: &Path, problems: &mut Vec<Problem>) -> Tap {
    if let Err(reason) = names::check_device_name(&raw.name) {
        let path = path.key("name");
        let message = format!("{path} {:?} {reason}", raw.name);
        problems.push(Problem::value(&path, "invalid_name", message).label("not a device name"));
    }
    let netns = raw.netns.as_ref().map(|text| absolute_path(text, &path.key("netns"), problems));
    Tap { name: raw.name.clone(), netns }
}

fn check_mac(text: &str, path: &Path, problems: &mut Vec<Problem>) -> Option<MacAddr> {
    let reason = match text.parse::<MacAddr>() {
        Err(error) => error.to_string(),
        Ok(mac) if mac.is_multicast() => {
            format!("{mac} is a group address; a NIC needs a unicast one (first octet even)")
        }
        Ok(mac) if mac == MacAddr::ROUTER => format!("{mac} is the gateway's own address in every network"),
        Ok(MacAddr([0, 0, 0, 0, 0, 0])) => "00:00:00:00:00:00 is no address".to_owned(),
        Ok(mac) => return Some(mac),
    };
    problems.push(Problem::value(path, "invalid_mac", format!("{path}: {reason}")).label("not usable"));
    None
}

/// The name that DHCP hands out: written, or made of the port's name, where dots would make it a domain.
fn check_hostname(key: &ObjectKey, written: Option<&str>, path: &Path, problems: &mut Vec<Problem>) -> String {
    let Some(hostname) = written else {
        let mut label = key.name.replace('.', "-");
        label.truncate(
            (0..=names::LABEL_MAX.min(label.len())).rev().find(|at| label.is_char_boundary(*at)).unwrap_or(0),
        );
        return label.trim_end_matches('-').to_owned();
    };
    if let Err(reason) = names::check_dns_label(hostname) {
        let message = format!("{path} {hostname:?} {reason}");
        problems.push(Problem::value(path, "invalid_name", message).label("not a host name"));
    }
    hostname.to_owned()
}

fn check_named_ports(raw: &[raw::port::NamedPort], path: &Path, problems: &mut Vec<Problem>) -> Vec<NamedPort> {
    let mut seen = HashSet::new();
    let mut checked = Vec::with_capacity(raw.len());
    for (index, named) in raw.iter().enumerate() {
        let path = path.index(index);
        if let Err(reason) = names::check_port_name(&named.name) {
            let path = path.key("name");
            let message = format!("{path} {:?} {reason}", named.name);
            problems.push(Problem::value(&path, "invalid_name", message).label("not a valid name"));
        }
        let number = range(Some(named.port), 1, 65535, &path.key("port"), problems).unwrap_or(1);
        let protocol = named.protocol.unwrap_or(Protocol::Tcp);
        // Kubernetes requires names to be unique within a Pod, whatever the protocol.
        if !seen.insert(named.name.as_str()) {
            let path = path.key("name");
            let message = format!("{path} {:?} is given twice", named.name);
            problems.push(Problem::value(&path, "duplicate", message).label("second time"));
        }
        checked.push(NamedPort { name: named.name.clone(), port: u16::try_from(number).unwrap_or(1), protocol });
    }
    checked
}
