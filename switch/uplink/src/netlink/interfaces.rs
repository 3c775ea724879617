//! What the kernel says about interfaces and their addresses, and that something about interfaces has changed.
//!
//! News carry no state: whoever hears [`Watch::wait`] return asks again for what it needs. So none can be missed, in
//! whatever order they come, and a flood of them is one.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use hostweave_switch::MacAddr;
use nix::sys::socket::SockProtocol;

use super::{Answer, Attributes, Message, Netlink, questions};
use crate::{Error, sys};

/// An Ethernet interface, as it is now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interface {
    /// Its index; another one after it was deleted and made again.
    pub index: u32,
    /// Its link address.
    pub mac: MacAddr,
    /// Octets of IP packet.
    pub mtu: u32,
    /// Set up.
    pub up: bool,
    /// Set up, and a cable with something at the other end.
    pub carrier: bool,
}

/// The interface with this name in the calling thread's namespace; `None` when there is none.
///
/// # Errors
/// When the kernel refuses the question, or the interface is no Ethernet.
pub fn interface(name: &str) -> Result<Option<Interface>, Error> {
    let failed = |source| about(name, source);
    let answers = match ask(name) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
        asked => asked.map_err(failed)?,
    };
    let found = answers.iter().find_map(|answer| read_link(&answer.body));
    found.map(Some).ok_or_else(|| failed(io::Error::other("it is no Ethernet interface")))
}

/// Gives the interface with this name in the calling thread's namespace another MTU, in octets of IP packet.
///
/// # Errors
/// When there is no such interface, its driver takes no such MTU, or the kernel forbids it.
pub fn set_mtu(name: &str, mtu: u16) -> Result<(), Error> {
    let failed = |source| Error::Interface { name: name.to_owned(), action: format!("set its MTU to {mtu}"), source };
    // Interface requests work on any socket; this family exists everywhere.
    let socket = UnixDatagram::unbound().map_err(failed)?;
    sys::set_interface_mtu(socket.as_fd(), name, mtu).map_err(failed)
}

/// How many queues of the TAP device with this name somebody has, in the calling thread's namespace.
///
/// # Errors
/// When the kernel refuses the question, or the interface is no TAP device that can have several.
pub(crate) fn tap_queues(name: &str) -> Result<u32, Error> {
    let answers = ask(name).map_err(|source| about(name, source))?;
    let found = answers.iter().find_map(|answer| read_queues(&answer.body));
    found.ok_or_else(|| about(name, io::Error::other("it is no TAP device with several queues")))
}

/// Frames that the kernel sent by the interface with this name, since that was made, and that were dropped there. For a TAP device those
/// that nobody read as fast.
///
/// # Errors
/// When the kernel refuses the question, or there is no such interface.
pub fn send_drops(name: &str) -> Result<u64, Error> {
    let answers = ask(name).map_err(|source| about(name, source))?;
    let found = answers.iter().find_map(|answer| read_send_drops(&answer.body));
    found.ok_or_else(|| about(name, io::Error::other("it has no counters")))
}

fn about(name: &str, source: io::Error) -> Error {
    Error::Interface { name: name.to_owned(), action: "ask the kernel about it".into(), source }
}

/// What the kernel knows of the interface with this name.
fn ask(name: &str) -> io::Result<Vec<Answer>> {
    let mut message = Message::new(libc::RTM_GETLINK, libc::NLM_F_ACK, &[0; LINK_HEADER]);
    message.text(libc::IFLA_IFNAME, name);
    let mut answers = questions(SockProtocol::NetlinkRoute)?.ask(message)?;
    answers.retain(|answer| answer.kind == libc::RTM_NEWLINK);
    Ok(answers)
}

/// An address that the kernel holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Held {
    /// The address.
    pub address: IpAddr,
    /// Length of its subnet's prefix.
    pub prefix: u8,
    /// Where it is.
    pub interface: String,
    /// Of IPv4: it goes with the first address of its subnet there.
    pub secondary: bool,
}

/// Every address that the kernel holds in the calling thread's namespace.
///
/// # Errors
/// When the kernel refuses the question.
pub fn addresses() -> Result<Vec<Held>, Error> {
    let failed =
        |source| Error::Interface { name: "*".to_owned(), action: "ask the kernel for addresses".into(), source };
    let mut socket = questions(SockProtocol::NetlinkRoute).map_err(failed)?;
    let links = Message::new(libc::RTM_GETLINK, libc::NLM_F_DUMP, &[0; LINK_HEADER]);
    let links = socket.ask(links).map_err(failed)?;
    let names: HashMap<u32, String> = links.iter().filter_map(|answer| read_name(&answer.body)).collect();
    let message = Message::new(libc::RTM_GETADDR, libc::NLM_F_DUMP, &[0; ADDRESS_HEADER]);
    let answers = socket.ask(message).map_err(failed)?;
    let new = answers.iter().filter(|answer| answer.kind == libc::RTM_NEWADDR);
    Ok(new.filter_map(|answer| read_address(&answer.body, &names)).collect())
}

/// Hears that something about interfaces has changed.
pub struct Watch(Netlink);

impl Watch {
    /// Listens in the calling thread's namespace.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn new(patience: Duration) -> Result<Self, Error> {
        let opened = Netlink::open(SockProtocol::NetlinkRoute, libc::RTMGRP_LINK as u32, patience);
        opened.map(Self).map_err(|source| Error::Interface {
            name: "*".to_owned(),
            action: "listen for changes".to_owned(),
            source,
        })
    }

    /// Waits for news; `false` when there were none in time.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn wait(&self) -> io::Result<bool> {
        self.0.wait()
    }
}

/// `struct ifinfomsg`: family, type, index, flags, change mask.
const LINK_HEADER: usize = 16;
/// `struct ifaddrmsg`: family, prefix length, flags, scope, index.
const ADDRESS_HEADER: usize = 8;

fn read_link(body: &[u8]) -> Option<Interface> {
    let (header, attributes) = body.split_first_chunk::<LINK_HEADER>()?;
    let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if u16::from_ne_bytes([header[2], header[3]]) != libc::ARPHRD_ETHER {
        return None;
    }
    let (index, flags) = (word(4), word(8) as i32);
    let (mut mac, mut mtu) = (None, None);
    for (kind, value) in Attributes(attributes) {
        match kind {
            libc::IFLA_ADDRESS => mac = value.try_into().ok().map(MacAddr),
            libc::IFLA_MTU => mtu = value.try_into().ok().map(u32::from_ne_bytes),
            _ => {}
        }
    }
    let up = flags & libc::IFF_UP != 0;
    let carrier = up && flags & libc::IFF_RUNNING != 0 && flags & libc::IFF_LOWER_UP != 0;
    Some(Interface { index, mac: mac?, mtu: mtu?, up, carrier })
}

/// The eighth counter of `struct rtnl_link_stats64`.
fn read_send_drops(body: &[u8]) -> Option<u64> {
    let (_, counters) = Attributes(body.get(LINK_HEADER..)?).find(|(kind, _)| *kind == IFLA_STATS64)?;
    Some(u64::from_ne_bytes(*counters.get(7 * 8..)?.first_chunk()?))
}

/// Queues of a TAP device, those that are switched off included.
fn read_queues(body: &[u8]) -> Option<u32> {
    let find =
        |octets, wanted| Attributes(octets).find(|(kind, _)| *kind == wanted).map(|(_, value): (u16, &[u8])| value);
    let details = find(find(body.get(LINK_HEADER..)?, libc::IFLA_LINKINFO)?, libc::IFLA_INFO_DATA)?;
    let number = |kind| find(details, kind)?.try_into().ok().map(u32::from_ne_bytes);
    Some(number(IFLA_TUN_NUM_QUEUES)?.saturating_add(number(IFLA_TUN_NUM_DISABLED_QUEUES).unwrap_or(0)))
}

/// `linux/if_link.h`.
const IFLA_STATS64: u16 = 23;
const IFLA_TUN_NUM_QUEUES: u16 = 8;
const IFLA_TUN_NUM_DISABLED_QUEUES: u16 = 9;

/// Index and name of an interface of any kind.
fn read_name(body: &[u8]) -> Option<(u32, String)> {
    let (header, attributes) = body.split_first_chunk::<LINK_HEADER>()?;
    let (_, name) = Attributes(attributes).find(|(kind, _)| *kind == libc::IFLA_IFNAME)?;
    let index = u32::from_ne_bytes([header[4], header[5], header[6], header[7]]);
    Some((index, String::from_utf8_lossy(name).trim_end_matches('\0').to_owned()))
}

fn read_address(body: &[u8], names: &HashMap<u32, String>) -> Option<Held> {
    let (header, attributes) = body.split_first_chunk::<ADDRESS_HEADER>()?;
    let read = |value: &[u8]| match i32::from(header[0]) {
        libc::AF_INET => value.try_into().ok().map(|octets: [u8; 4]| IpAddr::V4(Ipv4Addr::from(octets))),
        libc::AF_INET6 => value.try_into().ok().map(|octets: [u8; 16]| IpAddr::V6(Ipv6Addr::from(octets))),
        _ => None,
    };
    let find = |wanted| Attributes(attributes).find(|(kind, _)| *kind == wanted).and_then(|(_, value)| read(value));
    // On a point-to-point interface the other one is the peer's.
    let address = find(libc::IFA_LOCAL).or_else(|| find(libc::IFA_ADDRESS))?;
    let index = u32::from_ne_bytes([header[4], header[5], header[6], header[7]]);
    let interface = names.get(&index).cloned().unwrap_or_default();
    // Of IPv6 the same flag means a temporary address.
    let secondary = address.is_ipv4() && header[2] & libc::IFA_F_SECONDARY as u8 != 0;
    Some(Held { address, prefix: header[1], interface, secondary })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_has_its_address_and_is_no_ethernet() {
        let wanted =
            Held { address: Ipv4Addr::LOCALHOST.into(), prefix: 8, interface: "lo".to_owned(), secondary: false };
        assert!(addresses().unwrap().contains(&wanted));
        assert!(interface("lo").is_err());
        assert_eq!(interface("hw-none").unwrap(), None);
    }

    #[test]
    fn messages_that_are_cut_off_say_nothing() {
        let mut link = vec![0; LINK_HEADER];
        link[2..4].copy_from_slice(&libc::ARPHRD_ETHER.to_ne_bytes());
        link[4] = 7;
        link[8..12].copy_from_slice(&(libc::IFF_UP as u32).to_ne_bytes());
        link.extend([10, 0, 1, 0, 2, 0, 0, 0, 0, 9, 0, 0]);
        link.extend([8, 0, 4, 0, 0xdc, 5, 0, 0]);
        let mac = MacAddr([2, 0, 0, 0, 0, 9]);
        let wanted = Interface { index: 7, mac, mtu: 1500, up: true, carrier: false };
        assert_eq!(read_link(&link), Some(wanted));
        for len in 0..link.len() {
            assert_eq!(read_link(&link[..len]), None, "{len}");
            assert_eq!(read_queues(&link[..len]), None, "{len}");
            assert_eq!(read_send_drops(&link[..len]), None, "{len}");
            assert_eq!(read_address(&link[..len.min(ADDRESS_HEADER)], &HashMap::new()), None);
        }
    }
}
