//! Configures an interface of the host's own, in the calling thread's namespace: addresses, and routes through it
//! (rtnetlink(7)). All of it goes with the interface.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use nix::sys::socket::SockProtocol;

use super::interfaces::interface;
use super::{Message, questions};
use crate::Error;

/// Where the kernel's settings of IPv6 are; missing when it has none.
const IPV6_SETTINGS: &str = "/proc/sys/net/ipv6/conf";

/// Who made a route: an administrator, as `ip route` says it.
const PROTOCOL: u8 = libc::RTPROT_STATIC;

/// `RTNH_F_ONLINK`: the router is at the interface, whatever its subnets.
const ONLINK: u32 = 4;

/// Prefixes that are reached through an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// Where to.
    pub to: IpNet,
    /// The router, of the same family, which need not be in any subnet of the interface.
    pub via: IpAddr,
    /// The host's address that packets have if nobody chose another, of the same family.
    pub from: IpAddr,
}

/// Whether the kernel knows IPv6.
pub fn kernel_has_ipv6() -> bool {
    Path::new(IPV6_SETTINGS).exists()
}

/// Gives an interface addresses, which have no subnet, and adds routes through it. Router advertisements mean nothing at
/// it from then on, so that it never becomes the host's default route; IPv6 works there even where it is switched off
/// elsewhere, if an address asks for it.
///
/// # Errors
/// When the kernel refuses: no such interface, no permission, or the host has a route to the same prefix already. What
/// was done by then stays until the interface goes.
pub fn configure(name: &str, addresses: &[IpAddr], routes: &[Route]) -> Result<(), Error> {
    let failed = |action: String| move |source| Error::Interface { name: name.to_owned(), action, source };
    if kernel_has_ipv6() {
        let set = |setting: &str, value: &str| {
            let path: PathBuf = [IPV6_SETTINGS, name, setting].iter().collect();
            let action = format!("write {value} to {}", path.display());
            std::fs::write(&path, value).map_err(failed(action))
        };
        set("accept_ra", "0")?;
        if addresses.iter().any(IpAddr::is_ipv6) {
            set("disable_ipv6", "0")?;
        }
    }
    let missing = || failed("configure it".to_owned())(io::ErrorKind::NotFound.into());
    let index = interface(name)?.ok_or_else(missing)?.index;
    let mut socket = questions(SockProtocol::NetlinkRoute).map_err(failed("ask the kernel".to_owned()))?;
    for address in addresses {
        match socket.ask(address_message(index, *address)) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            asked => drop(asked.map_err(failed(format!("get the address {address}")))?),
        }
    }
    for route in routes {
        let asked = socket.ask(route_message(index, route));
        asked.map_err(failed(format!("become the host's route to {}", route.to)))?;
    }
    Ok(())
}

fn family(address: IpAddr) -> u8 {
    (if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// `struct ifaddrmsg`: family, prefix length, flags, scope, index.
fn address_message(index: u32, address: IpAddr) -> Message {
    let octets = octets(address);
    // Nobody else has it: the switch says who has which address, so that nobody is asked (RFC 4862 §5.4).
    let flags = if address.is_ipv6() { libc::IFA_F_NODAD as u8 } else { 0 };
    let mut header = vec![family(address), octets.len() as u8 * 8, flags, libc::RT_SCOPE_UNIVERSE];
    header.extend(index.to_ne_bytes());
    let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let mut message = Message::new(libc::RTM_NEWADDR, flags, &header);
    message.put(libc::IFA_LOCAL, &octets).put(libc::IFA_ADDRESS, &octets);
    message
}

/// `struct rtmsg`: family, lengths of destination and source, TOS, table, protocol, scope, type, flags.
fn route_message(index: u32, route: &Route) -> Message {
    let mut header = vec![family(route.via), route.to.prefix_len(), 0, 0, libc::RT_TABLE_MAIN, PROTOCOL];
    header.extend([libc::RT_SCOPE_UNIVERSE, libc::RTN_UNICAST]);
    header.extend(ONLINK.to_ne_bytes());
    let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let mut message = Message::new(libc::RTM_NEWROUTE, flags, &header);
    message.put(libc::RTA_DST, &octets(route.to.network()));
    message.put(libc::RTA_GATEWAY, &octets(route.via));
    message.put(libc::RTA_PREFSRC, &octets(route.from));
    message.put(libc::RTA_OIF, &index.to_ne_bytes());
    message
}
