//! Connections that nobody took: their SYN was answered by a reset, or by nothing.
//!
//! Workers note them where a packet is looked at out of line anyway: a reset of a connection that was not open yet, and a SYN that comes
//! again. So no packet of an open connection pays. One place for each of many connections; what is overwritten before somebody
//! looked is lost, and comes again with the next client.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Relaxed, Release};

use super::record::Entry;
use super::table::Connections;

/// Places; a power of two.
const PLACES: usize = 256;

/// No connection: indices stay below it.
const NOBODY: u64 = u64::MAX;

/// A SYN that comes again this many seconds after the first has not been answered: two others came before it (RFC 6298 §2).
pub const UNANSWERED_S: u32 = 3;

/// The latest of them.
pub struct Failures(Box<[AtomicU64]>);

/// Who did not take a connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Failed {
    /// Its network.
    pub vni: u32,
    /// Slot of its port.
    pub port: u32,
    /// Its address.
    pub address: IpAddr,
    /// Its L4 port.
    pub l4: u16,
}

impl Failures {
    /// None yet.
    pub(super) fn new() -> Self {
        Self((0..PLACES).map(|_| AtomicU64::new(NOBODY)).collect())
    }

    /// Notes a connection.
    pub fn note(&self, index: u32, generation: u32) {
        self.0[index as usize % PLACES].store(u64::from(index) << 32 | u64::from(generation), Release);
    }
}

impl Connections {
    /// Takes what was noted since the last time.
    pub fn take_failures(&self) -> impl Iterator<Item = Failed> {
        self.failures().0.iter().filter_map(|place| {
            if place.load(Relaxed) == NOBODY {
                return None;
            }
            let noted = place.swap(NOBODY, AcqRel);
            self.entry((noted >> 32) as u32, noted as u32).map(|entry| Failed::of(&entry))
        })
    }
}

impl Failed {
    /// The side that was to answer.
    fn of(entry: &Entry) -> Self {
        let (address, l4, vni) = match &entry.translation {
            Some(translation) => (translation.reply.src(), translation.reply.src_port(), translation.vni),
            None => (entry.key.dst(), entry.key.dst_port(), entry.vni),
        };
        Self { vni, port: entry.out_port, address: Ipv6Addr::from(address).to_canonical(), l4 }
    }
}
