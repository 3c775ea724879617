//! Connections that nobody took: their SYN was answered by a reset, or by nothing; what they sent over UDP by ICMP port unreachable, or
//! by nothing although they asked again.
//!
//! Workers note them where a packet is looked at out of line anyway: a reset of a connection that was not open yet, an ICMP error, and a
//! SYN or question that comes again. So no packet of an open connection pays. One place for each of many connections; what is overwritten before somebody
//! looked is lost, and comes again with the next client.

use std::net::IpAddr;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Relaxed, Release};

use super::record::Entry;
use super::table::Connections;
use crate::tables::unmapped;
use crate::tcp_track::Side;
use crate::wire::proto;

/// Places; a power of two.
const PLACES: usize = 256;

/// No connection: indices stay below it.
const NOBODY: u64 = u64::MAX;

/// A SYN that comes again this many seconds after the first has not been answered: two others came before it (RFC 6298 §2). Who asks
/// again over UDP waits about as long.
pub const UNANSWERED_S: u32 = 3;

/// The latest of them.
pub struct Failures(Box<[AtomicU64]>);

/// Who did not take a connection, and whose.
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
    /// The address that the client asked: its own, or that of a Service.
    pub asked: IpAddr,
    /// IP protocol: TCP or UDP.
    pub proto: u8,
    /// Slot of the client's port.
    pub client_port: u32,
    /// The client's address.
    pub client: IpAddr,
    /// Whether it refused the connection (TCP reset, ICMP port unreachable); else it did not answer.
    pub refused: bool,
    /// Second in which the connection began.
    pub created: u32,
    /// The connection's index and generation.
    pub connection: (u32, u32),
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
        let (vni, address, l4) = entry.answerer();
        Self {
            vni,
            port: entry.out_port,
            address,
            l4,
            asked: unmapped(entry.key.dst()),
            proto: entry.key.proto(),
            client_port: entry.in_port,
            client: unmapped(entry.key.src()),
            refused: entry.sides[1].flags & Side::RST != 0,
            created: entry.created,
            connection: (entry.index, entry.generation),
        }
    }
}

impl Entry {
    /// The side that was to answer: VNI, address and L4 port, behind any translation.
    pub fn answerer(&self) -> (u32, IpAddr, u16) {
        match &self.translation {
            Some(translation) => (translation.vni, unmapped(translation.reply.src()), translation.reply.src_port()),
            None => (self.vni, unmapped(self.key.dst()), self.key.dst_port()),
        }
    }

    /// Whether it was answered: over TCP by anything but a reset, over UDP at all.
    pub fn is_taken(&self) -> bool {
        match self.key.proto() {
            proto::TCP => self.sides[1].flags & Side::SEEN != 0,
            proto::UDP => self.seen[1] != 0,
            _ => false,
        }
    }
}
