//! `Port`, checked.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use hostweave_switch::MacAddr;

use crate::config::raw::port::Protocol;
use crate::fabric::spec::SocketMode;

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
}

/// What is attached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Backend {
    /// A VM.
    VhostUser(VhostUser),
    /// A container.
    Tap(Tap),
}

/// A vhost-user socket.
#[derive(Clone, PartialEq, Eq, Debug)]
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
