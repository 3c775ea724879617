//! What the kernel does with packets that are not its own, in the calling thread's namespace: by which interface it sends them on, for
//! whom it answers questions for link addresses in the place of another (proxy ARP and proxy ND), and whether a table of rules is there.

use std::io;
use std::net::IpAddr;

use nix::sys::socket::SockProtocol;

use super::{Attributes, Message, questions};
use crate::Error;

/// Index of the interface by which the kernel would send a packet to an address; `None` when it has no route.
///
/// # Errors
/// When the kernel refuses the question.
pub fn leads_to(address: IpAddr) -> Result<Option<u32>, Error> {
    let octets = octets(address);
    let mut header = [0; ROUTE_HEADER];
    header[..2].copy_from_slice(&[family(address.is_ipv4()), octets.len() as u8 * 8]);
    let mut message = Message::new(libc::RTM_GETROUTE, libc::NLM_F_ACK, &header);
    message.put(libc::RTA_DST, &octets);
    match questions(SockProtocol::NetlinkRoute).and_then(|mut socket| socket.ask(message)) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES)) => {
            Ok(None)
        }
        Err(source) => Err(failed("ask the kernel for a route", source)),
        Ok(answers) => Ok(answers
            .iter()
            .find(|answer| answer.kind == libc::RTM_NEWROUTE)
            .and_then(|answer| read_route(&answer.body))),
    }
}

/// The addresses of a family for which the kernel answers in the place of another, each with the index of the interface.
///
/// # Errors
/// When the kernel refuses the question.
pub fn proxies(ipv4: bool) -> Result<Vec<(IpAddr, u32)>, Error> {
    let mut header = [0; NEIGHBOR_HEADER];
    (header[0], header[NEIGHBOR_FLAGS]) = (family(ipv4), NTF_PROXY);
    let message = Message::new(libc::RTM_GETNEIGH, libc::NLM_F_DUMP, &header);
    let asked = questions(SockProtocol::NetlinkRoute).and_then(|mut socket| socket.ask(message));
    let answers = asked.map_err(|source| failed("ask the kernel for its proxies", source))?;
    Ok(answers.iter().filter_map(|answer| read_proxy(&answer.body)).collect())
}

/// Whether nf_tables has this table of the family `inet`. A kernel without nf_tables has none.
///
/// # Errors
/// When the kernel forbids the question.
pub fn has_table(name: &str) -> Result<bool, Error> {
    has(GETTABLE, &[(1, name)])
}

/// Whether nf_tables has this chain in a table of the family `inet`. A kernel without nf_tables has none.
///
/// # Errors
/// When the kernel forbids the question.
pub fn has_chain(table: &str, name: &str) -> Result<bool, Error> {
    has(GETCHAIN, &[(1, table), (3, name)])
}

/// Whether nf_tables knows what has these names, by attribute.
fn has(what: u16, names: &[(u16, &str)]) -> Result<bool, Error> {
    let kind = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8 | what;
    let mut message = Message::new(kind, libc::NLM_F_ACK, &[libc::NFPROTO_INET as u8, 0, 0, 0]);
    for (attribute, name) in names {
        message.text(*attribute, name);
    }
    match questions(SockProtocol::NetlinkNetFilter).and_then(|mut socket| socket.ask(message)) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EPROTONOSUPPORT | libc::EOPNOTSUPP)) => {
            Ok(false)
        }
        Err(source) => Err(failed("ask the kernel for its rules", source)),
    }
}

fn failed(action: &str, source: io::Error) -> Error {
    Error::Interface { name: "*".to_owned(), action: action.to_owned(), source }
}

fn family(ipv4: bool) -> u8 {
    (if ipv4 { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn read_route(body: &[u8]) -> Option<u32> {
    let (_, attributes) = body.split_first_chunk::<ROUTE_HEADER>()?;
    let (_, index) = Attributes(attributes).find(|(kind, _)| *kind == libc::RTA_OIF)?;
    index.try_into().ok().map(u32::from_ne_bytes)
}

fn read_proxy(body: &[u8]) -> Option<(IpAddr, u32)> {
    let (header, attributes) = body.split_first_chunk::<NEIGHBOR_HEADER>()?;
    let (_, value) = Attributes(attributes).find(|(kind, _)| *kind == NDA_DST)?;
    let address = match value.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(value).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(value).ok()?),
    };
    let proxy = header[NEIGHBOR_FLAGS] & NTF_PROXY != 0;
    proxy.then_some((address, u32::from_ne_bytes([header[4], header[5], header[6], header[7]])))
}

/// `struct rtmsg`: family, lengths of destination and source, TOS, table, protocol, scope, type, flags.
const ROUTE_HEADER: usize = 12;
/// `struct ndmsg`: family, padding, index, state, flags, type.
const NEIGHBOR_HEADER: usize = 12;
const NEIGHBOR_FLAGS: usize = 10;
// `linux/neighbour.h`.
const NTF_PROXY: u8 = 8;
const NDA_DST: u16 = 1;
// `linux/netfilter/nf_tables.h`.
const GETTABLE: u16 = 1;
/// `linux/netfilter/nf_tables.h`.
const GETCHAIN: u16 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_address_leads_to_the_loopback_interface() {
        assert_eq!(leads_to("127.0.0.1".parse().unwrap()).unwrap(), Some(1));
    }

    #[test]
    fn messages_that_are_cut_off_say_nothing() {
        let mut route = vec![0; ROUTE_HEADER];
        route.extend([8, 0, 4, 0, 7, 0, 0, 0]);
        let mut proxy = vec![0; NEIGHBOR_HEADER];
        (proxy[4], proxy[NEIGHBOR_FLAGS]) = (7, NTF_PROXY);
        proxy.extend([8, 0, 1, 0, 192, 0, 2, 7]);
        assert_eq!((read_route(&route), read_proxy(&proxy)), (Some(7), Some(("192.0.2.7".parse().unwrap(), 7))));
        for len in 0..route.len() {
            assert_eq!((read_route(&route[..len]), read_proxy(&proxy[..len])), (None, None), "{len}");
        }
        // A neighbour is no proxy.
        proxy[NEIGHBOR_FLAGS] = 0;
        assert_eq!(read_proxy(&proxy), None);
    }
}
