//! Neighbours on the uplink's own link: what is for a host in one of our subnets there goes straight to it, not by a router
//! (RFC 1122 §3.3.1.1, RFC 4861 §5.2).
//!
//! Control asks who they are; workers say whom they want. Until somebody has answered, packets take a router as if he were farther away:
//! nothing is lost, and a guest that scans a subnet gains nothing by it (RFC 6583).

use std::net::IpAddr;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{AcqRel, Relaxed, Release};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Thread;

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use ipnet::IpNet;

use crate::MacAddr;
use crate::tables::{PortId, mapped};

/// Addresses that are wanted at once, at most, and by one port.
const SOUGHT_MAX: usize = 32;
/// See [`SOUGHT_MAX`].
const SOUGHT_BY_PORT: usize = 4;

/// A neighbour that answers.
#[derive(Debug)]
pub struct Neighbor {
    /// Its link address.
    pub mac: MacAddr,
    /// Whether packets went there since control last looked.
    used: AtomicBool,
}

impl Neighbor {
    /// One at this link address, to whom nothing has been sent.
    pub fn new(mac: MacAddr) -> Self {
        Self { mac, used: AtomicBool::new(false) }
    }

    /// Whether packets went there since this was last asked.
    pub fn was_used(&self) -> bool {
        self.used.load(Relaxed) && self.used.swap(false, Relaxed)
    }
}

/// Whom workers want to know the link address of.
#[derive(Default, Debug)]
pub struct Sought {
    list: Mutex<Vec<(PortId, u128)>>,
    /// Whether control was woken, or looks by itself soon.
    awake: AtomicBool,
    /// Whether it was woken and has not seen that yet.
    woken: AtomicBool,
    /// Control's thread.
    listener: Option<Thread>,
}

impl Sought {
    /// What wakes this thread.
    pub fn new(listener: Thread) -> Self {
        Self { listener: Some(listener), ..Self::default() }
    }

    /// A port's packets are for somebody of whom nothing is known. Control is woken unless it is awake. What does not fit is
    /// wanted again by the next packet.
    #[cold]
    pub fn note(&self, port: PortId, address: u128) {
        let Ok(mut list) = self.list.try_lock() else { return };
        let by_port = list.iter().filter(|(by, _)| *by == port).count();
        if list.len() >= SOUGHT_MAX || by_port >= SOUGHT_BY_PORT || list.iter().any(|(_, known)| *known == address) {
            return;
        }
        list.push((port, address));
        drop(list);
        if !self.awake.swap(true, AcqRel) {
            self.woken.store(true, Release);
            self.listener.iter().for_each(Thread::unpark);
        }
    }

    /// Takes what there is. If there is something whoever takes looks again soon, without being woken ([`Sought::is_awaited`]).
    pub fn take(&self) -> Vec<(PortId, u128)> {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = std::mem::take(&mut *list);
        // Under the lock: whoever comes after wakes.
        self.awake.store(!taken.is_empty(), Release);
        taken
    }

    /// Whether to look again soon.
    pub fn is_awaited(&self) -> bool {
        self.awake.load(Relaxed)
    }

    /// Whether control was woken since this was last asked.
    pub fn has_woken(&self) -> bool {
        self.woken.load(Relaxed) && self.woken.swap(false, AcqRel)
    }
}

/// A range of addresses whose owners are neighbours.
#[derive(Clone, Copy, Debug)]
struct Subnet {
    first: u128,
    mask: u128,
    /// All of its host bits, where these alone make no host's address: IPv4, but for /31 (RFC 3021) and /32.
    broadcast: Option<u128>,
}

impl Subnet {
    fn of(net: &IpNet) -> Self {
        let bits = u32::from(net.max_prefix_len() - net.prefix_len());
        let mask = u128::MAX.checked_shl(bits).unwrap_or(0);
        let broadcast = (net.addr().is_ipv4() && bits > 1).then_some(!mask);
        Self { first: mapped(net.network()), mask, broadcast }
    }

    #[inline]
    fn has(&self, address: u128) -> bool {
        let host = address & !self.mask;
        address & self.mask == self.first && self.broadcast.is_none_or(|broadcast| host != 0 && host != broadcast)
    }
}

/// Who is on the link, as packets see it.
#[derive(Clone, Default, Debug)]
pub struct OnLink {
    subnets: Vec<Subnet>,
    neighbors: HashMap<u128, Arc<Neighbor>, RandomState>,
    sought: Arc<Sought>,
}

impl OnLink {
    /// Of these subnets, with those who are known there.
    pub fn new(
        subnets: &[IpNet],
        neighbors: impl IntoIterator<Item = (IpAddr, Arc<Neighbor>)>,
        sought: Arc<Sought>,
    ) -> Self {
        let neighbors = neighbors.into_iter().map(|(address, neighbor)| (mapped(address), neighbor)).collect();
        Self { subnets: subnets.iter().map(Subnet::of).collect(), neighbors, sought }
    }

    /// Whether whoever has an address is on the link.
    #[inline]
    pub fn has(&self, address: u128) -> bool {
        self.subnets.iter().any(|subnet| subnet.has(address))
    }

    /// The link address of a neighbour.
    pub fn mac_of(&self, address: u128) -> Option<MacAddr> {
        self.neighbors.get(&address).map(|neighbor| neighbor.mac)
    }

    /// Where packets of `port` to an address go if it is a neighbour's; whoever is not known yet is asked for.
    #[inline]
    pub fn next_hop(&self, port: PortId, address: u128) -> Option<MacAddr> {
        if self.has(address) { self.neighbor(port, address) } else { None }
    }

    fn neighbor(&self, port: PortId, address: u128) -> Option<MacAddr> {
        let Some(neighbor) = self.neighbors.get(&address) else {
            self.sought.note(port, address);
            return None;
        };
        // The line stays everybody's.
        if !neighbor.used.load(Relaxed) {
            neighbor.used.store(true, Relaxed);
        }
        Some(neighbor.mac)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::unmapped;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 9]);

    fn address(text: &str) -> u128 {
        mapped(text.parse().unwrap())
    }

    fn on_link(subnets: &[&str], known: &[&str]) -> OnLink {
        let subnets: Vec<IpNet> = subnets.iter().map(|net| net.parse().unwrap()).collect();
        let known = known.iter().map(|address| (address.parse().unwrap(), Arc::new(Neighbor::new(MAC))));
        OnLink::new(&subnets, known, Arc::default())
    }

    #[test]
    fn who_is_a_neighbour() {
        let link = on_link(&["198.51.100.2/24", "192.0.2.0/31", "203.0.113.9/32", "2001:db8::2/64"], &[]);
        for neighbour in ["198.51.100.1", "198.51.100.254", "192.0.2.0", "192.0.2.1", "2001:db8::1", "2001:db8::ffff:1"]
        {
            assert!(link.has(address(neighbour)), "{neighbour}");
        }
        for other in ["198.51.100.0", "198.51.100.255", "198.51.101.1", "192.0.2.2", "2001:db8:0:1::1", "::1"] {
            assert!(!link.has(address(other)), "{other}");
        }
        assert!(!on_link(&[], &[]).has(address("198.51.100.1")));
        assert!(on_link(&["0.0.0.0/0"], &[]).has(address("198.51.100.1")));
        assert!(!on_link(&["0.0.0.0/0"], &[]).has(address("2001:db8::1")), "another family");
    }

    #[test]
    fn who_is_known_is_sent_to_and_who_is_not_is_wanted() {
        for (subnet, known, other, far) in [
            ("198.51.100.2/24", "198.51.100.7", "198.51.100.8", "192.0.2.1"),
            ("2001:db8::2/64", "2001:db8::7", "2001:db8::8", "2001:db8:1::1"),
        ] {
            let link = on_link(&[subnet], &[known]);
            let neighbor = &link.neighbors[&address(known)];
            assert!(!neighbor.was_used());
            assert_eq!(link.next_hop(PortId(1), address(known)), Some(MAC));
            assert!(neighbor.was_used() && !neighbor.was_used());
            assert_eq!([other, other, far].map(|to| link.next_hop(PortId(1), address(to))), [None; 3]);
            let wanted: Vec<_> =
                link.sought.take().into_iter().map(|(port, to)| (port.0, unmapped(to).to_string())).collect();
            assert_eq!(wanted, [(1, other.to_owned())], "once");
            assert!(link.sought.has_woken() && !link.sought.has_woken());
            link.next_hop(PortId(1), address(far));
            link.next_hop(PortId(1), address(other));
            assert!(link.sought.is_awaited() && !link.sought.has_woken(), "it looks again by itself");
            assert_eq!(link.sought.take().len(), 1);
            assert!(link.sought.take().is_empty() && !link.sought.is_awaited());
        }
    }

    #[test]
    fn a_port_that_wants_many_leaves_room_for_others() {
        let wanted = Sought::default();
        (0..1000).for_each(|host| wanted.note(PortId(1), host));
        wanted.note(PortId(2), 5000);
        let taken = wanted.take();
        assert_eq!((taken.len(), taken.last()), (SOUGHT_BY_PORT + 1, Some(&(PortId(2), 5000))));
        (0..1000).for_each(|port| wanted.note(PortId(port), u128::from(port)));
        assert_eq!(wanted.take().len(), SOUGHT_MAX);
    }
}
