//! IP fragments without reassembly: which L4 ports a fragment behind the first belongs to (SEMANTICS CT6–CT9; RFC 815,
//! RFC 5722, RFC 8200 §4.5).
//!
//! Theory of operation: the first fragment of a datagram has its transport header; [`Fragments`] remembers the ports by
//! (source, destination, identification, protocol, network), and later fragments ask for them. One that comes before the
//! first is copied and waits; the first takes along what waited. Where each fragment lay is noted, so that a datagram
//! whose fragments overlap or contradict each other ends there, while an exact second copy only ends itself. When a
//! datagram is complete it is forgotten: its identification may come again at once.
//!
//! Everything is bounded, and a port can only push out its own: at a port's limit its oldest datagram goes, at the
//! host's limit too, and a port that has none is refused. What comes from outside, where nobody's limit would bound a
//! sender, counts for whoever has its destination (`Payer`), and has a limit of the host of its own. Frames that waited and
//! end without an answer to `admit` are told by [`Fragments::expire`]. Locks are per group of ports, and only fragments
//! take them.
//!
//! Not here: `parse` has refused fragments that break a rule by themselves (beyond 65,535 octets, not a multiple of 8,
//! RFC 3128, RFC 7112). Time is an argument, in milliseconds of any clock that does not go back.

use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use crate::flow::{FlowKey, Kind};
use crate::limits::{
    FRAGMENT_DATAGRAMS_MAX, FRAGMENT_DATAGRAMS_PER_PORT_MAX, FRAGMENT_LIFETIME_MS, FRAGMENT_OCTETS_MAX,
    FRAGMENT_OCTETS_PER_PORT_MAX, FRAGMENT_SHARED_RECEIVERS, FRAGMENTS_PER_DATAGRAM_MAX, FRAGMENTS_QUEUED_PER_PORT_MAX,
    IPV6_EXTENSION_HEADERS_MAX,
};
use crate::packet::{L3, Meta, Packet};
use crate::payload::Segment;
use crate::stage::DropReason;
use crate::tables::{AddressKey, Owned, PortId, Tables, Uplink, mapped};
use crate::wire::be32;
use crate::wire::ethernet;
use crate::wire::ipv4::Ipv4;
use crate::wire::ipv6::{self, Extension, Ipv6, next_header};

/// What the fragments of one datagram have in common (RFC 791 §3.2, RFC 8200 §4.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FragmentKey {
    /// Source address; IPv4 as IPv4-mapped.
    pub src: u128,
    /// Destination address; IPv4 as IPv4-mapped.
    pub dst: u128,
    /// Identification: 16 bits of IPv4, 32 of IPv6.
    pub ident: u32,
    /// The protocol of IPv4. Zero of IPv6, where the value may differ from fragment to fragment and "only the value from
    /// the Offset zero fragment packet is used for reassembly" (RFC 8200 §4.5).
    pub proto: u8,
    /// Virtual network identifier.
    pub vni: u32,
}

/// What one fragment says about itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fragment {
    /// Its datagram.
    pub key: FragmentKey,
    /// Its first octet in the datagram's payload.
    pub start: u32,
    /// Behind its last octet.
    pub end: u32,
    /// More fragments follow.
    pub more: bool,
}

impl Fragment {
    /// Reads the fragment's place from a packet that `parse` has marked as one. `None` of any other.
    pub fn read(packet: &Packet, vni: u32) -> Option<Self> {
        let meta = &packet.meta;
        if !meta.fragment {
            return None;
        }
        let head = packet.head();
        let l3 = usize::from(meta.layers.l3);
        let end = ethernet::HEADER_LEN + meta.l3_len as usize;
        let (key, at, start, more) = match meta.l3 {
            L3::V4 => {
                let header = Ipv4::new_checked(head.get(l3..)?)?;
                let key = FragmentKey {
                    src: mapped(IpAddr::V4(header.src())),
                    dst: mapped(IpAddr::V4(header.dst())),
                    ident: u32::from(header.ident()),
                    proto: header.proto(),
                    vni,
                };
                (key, l3 + header.header_len(), header.fragment_offset(), header.more_fragments())
            }
            L3::V6 => {
                let header = Ipv6::new_checked(head.get(l3..)?)?;
                let at = fragment_header(head, header.next_header(), l3 + ipv6::HEADER_LEN)?;
                let octets: &[u8; ipv6::FRAGMENT_LEN] = head.get(at..)?.first_chunk()?;
                let fragment = Extension::new_checked(next_header::FRAGMENT, octets)?;
                let (src, dst) = (mapped(IpAddr::V6(header.src())), mapped(IpAddr::V6(header.dst())));
                let key = FragmentKey { src, dst, ident: be32(octets, 4), proto: 0, vni };
                (key, at + ipv6::FRAGMENT_LEN, fragment.fragment_offset(), fragment.more_fragments())
            }
            L3::Arp | L3::None => return None,
        };
        let len = end.checked_sub(at)?;
        Some(Self { key, start: start as u32, end: (start + len) as u32, more })
    }

    /// A whole datagram that says it is a fragment (RFC 6946).
    fn is_atomic(&self) -> bool {
        self.start == 0 && !self.more
    }
}

/// What only the first fragment says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ports {
    /// The transport protocol, after extension headers.
    pub proto: u8,
    /// As in [`Meta::src_port`].
    pub src_port: u16,
    /// As in [`Meta::dst_port`].
    pub dst_port: u16,
}

impl Ports {
    /// Those of a packet that was parsed.
    pub fn of(meta: &Meta) -> Self {
        Self { proto: meta.proto, src_port: meta.src_port, dst_port: meta.dst_port }
    }

    /// Writes them to a later fragment's `meta`, as if it had the transport header.
    pub fn write(self, meta: &mut Meta) {
        (meta.proto, meta.src_port, meta.dst_port) = (self.proto, self.src_port, self.dst_port);
    }
}

/// A fragment that waited: a copy of the whole frame.
#[derive(Debug)]
pub struct QueuedFrame {
    /// As it was at `admit`; once released, with the first fragment's [`Ports`].
    pub meta: Meta,
    /// Octets of the frame that were in the head: those that hold its headers, for [`crate::packet::Burst::with_frame`].
    pub head_len: usize,
    /// All octets of the frame.
    pub frame: Box<[u8]>,
}

/// What became of a fragment.
#[derive(Debug)]
#[must_use]
pub enum Admit {
    /// A later fragment of a datagram whose first one is known: its ports, see [`Ports::write`].
    Known(Ports),
    /// A first fragment, or an atomic one: `meta` has its ports already. The frames waited for it: they come after it on
    /// the same way, and not through `admit` again.
    First(Vec<QueuedFrame>),
    /// Copied; it waits for the first. It comes back from `admit` of the first, or is counted by `expire`.
    Queued,
    /// It ends here.
    Drop(DropReason),
}

/// How much is remembered and waits, on the whole host.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Usage {
    /// Datagrams of which fragments are remembered.
    pub datagrams: usize,
    /// Frames that wait.
    pub queued_frames: usize,
    /// Their octets.
    pub queued_octets: usize,
}

/// Whose limits a fragment counts against.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Payer {
    /// Where it came in.
    port: PortId,
    of: Of,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Of {
    /// Whoever sent it.
    Sender,
    /// The port that has its destination.
    Receiver(PortId),
    /// Of an address of many, NAT's or a Service's: one of [`FRAGMENT_SHARED_RECEIVERS`], by source and destination. A sender
    /// that writes one source fills one.
    Shared(u32),
    /// Nobody has its destination.
    Nobody,
}

impl Payer {
    /// Its group.
    fn shard(self) -> usize {
        let of = match self.of {
            Of::Sender | Of::Nobody => 0,
            Of::Receiver(port) => port.0,
            Of::Shared(number) => number,
        };
        self.port.0.wrapping_add(of) as usize % SHARDS
    }
}

/// The fragments of one host, shared by its workers.
pub struct Fragments {
    shards: Box<[Mutex<Shard>]>,
    /// Of ports, and from outside.
    totals: [Total; 2],
    /// By which those share that have one address.
    keys: RandomState,
    /// Where the next `expire` begins.
    cursor: AtomicUsize,
}

type Shard = HashMap<Payer, PortFragments, RandomState>;

impl Default for Fragments {
    fn default() -> Self {
        Self::new()
    }
}

/// The port that has an address of a range that is routed to the host.
fn routed_to(tables: &Tables, uplink: &Uplink, address: u128) -> Option<PortId> {
    let ip = Ipv6Addr::from(address).to_canonical();
    let networks = uplink.routed.iter().filter(|(range, _)| range.contains(&ip)).map(|(_, network)| *network);
    networks.filter_map(|network| tables.owner(AddressKey { address, network })).next()
}

impl Fragments {
    /// Nothing remembered.
    pub fn new() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, totals: Default::default(), keys: RandomState::default(), cursor: AtomicUsize::new(0) }
    }

    /// What becomes of a packet with `meta.fragment`, which came from `meta.in_port` into the network `vni` and is past
    /// `guard`.
    pub fn admit(&self, packet: &Packet, arena: &[Segment], tables: &Tables, vni: u32, now_ms: u64) -> Admit {
        let Some(fragment) = Fragment::read(packet, vni) else { return Admit::Drop(DropReason::Internal) };
        if fragment.is_atomic() {
            return Admit::First(Vec::new());
        }
        // A piece of nothing has no place among the others.
        if fragment.start == fragment.end {
            let v4 = packet.meta.l3 == L3::V4;
            return Admit::Drop(if v4 { DropReason::Ipv4Malformed } else { DropReason::Ipv6Malformed });
        }
        let payer = self.payer(packet.meta.in_port, &fragment.key, tables);
        let total = self.total(payer);
        let mut shard = lock(&self.shards[payer.shard()]);
        let port = shard.entry(payer).or_insert_with(|| PortFragments::new(total));
        port.expire(now_ms, usize::MAX, total);
        port.admit(total, fragment, packet, arena, now_ms).unwrap_or_else(Admit::Drop)
    }

    fn payer(&self, port: PortId, key: &FragmentKey, tables: &Tables) -> Payer {
        let Some(uplink) = tables.uplink.as_deref().filter(|uplink| uplink.port == port) else {
            return Payer { port, of: Of::Sender };
        };
        let of = match uplink.known(key.dst) {
            Some(Owned::Attached { port, .. }) => Of::Receiver(*port),
            Some(Owned::Host | Owned::Nat | Owned::Service) => {
                let hash = self.keys.hash_one((key.src, key.dst)) as u32;
                Of::Shared(hash % FRAGMENT_SHARED_RECEIVERS)
            }
            None => routed_to(tables, uplink, key.dst).map_or(Of::Nobody, Of::Receiver),
        };
        Payer { port, of }
    }

    fn total(&self, payer: Payer) -> &Total {
        let [ports, outside] = &self.totals;
        if payer.of == Of::Sender { ports } else { outside }
    }

    /// Forgets what is older than [`FRAGMENT_LIFETIME_MS`], at most `budget` datagrams, and tells of each port how many
    /// frames that waited (since the last call) have ended, and why: their first fragment never came
    /// (`FragmentTimeout`), their datagram was pushed out (`FragmentQueueFull`), or turned out bad (`FragmentOverlap`). With
    /// them the addresses and protocol of the last such datagram.
    pub fn expire(&self, now_ms: u64, mut budget: usize, mut ended: impl FnMut(PortId, DropReason, u64, FlowKey)) {
        if self.is_idle() {
            return;
        }
        let first = self.cursor.load(Ordering::Relaxed);
        for step in 0..SHARDS {
            let index = (first + step) % SHARDS;
            lock(&self.shards[index]).retain(|&payer, fragments| {
                let total = self.total(payer);
                budget -= fragments.expire(now_ms, budget, total);
                fragments.tell(|reason, count, last| ended(payer.port, reason, count, last));
                let keep = !fragments.datagrams.is_empty();
                total.ports.fetch_sub(usize::from(!keep), Ordering::Relaxed);
                keep
            });
            if budget == 0 {
                self.cursor.store(index, Ordering::Relaxed);
                return;
            }
        }
    }

    /// Forgets all of a port that goes away, and tells of its frames as [`Fragments::expire`] does; those that still
    /// waited count as `PortDown`.
    pub fn forget(&self, port: PortId, mut ended: impl FnMut(DropReason, u64)) {
        for shard in &self.shards {
            lock(shard).retain(|&payer, fragments| {
                if payer.port != port {
                    return true;
                }
                let total = self.total(payer);
                while !fragments.datagrams.is_empty() {
                    fragments.remove(0, Some(DropReason::PortDown), total);
                }
                fragments.tell(|reason, count, _| ended(reason, count));
                total.ports.fetch_sub(1, Ordering::Relaxed);
                false
            });
        }
    }

    /// Whether nothing is remembered.
    #[inline]
    pub fn is_idle(&self) -> bool {
        self.totals.iter().all(|total| total.ports.load(Ordering::Relaxed) == 0)
    }

    /// For metrics.
    pub fn usage(&self) -> Usage {
        let sum =
            |of: fn(&Total) -> &AtomicUsize| self.totals.iter().map(|total| of(total).load(Ordering::Relaxed)).sum();
        Usage {
            datagrams: sum(|total| &total.datagrams),
            queued_frames: sum(|total| &total.queued_frames),
            queued_octets: sum(|total| &total.queued_octets),
        }
    }
}

/// Nothing panics half-way through a change; a poisoned lock is as good as any.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sums over all ports, or over all that comes from outside. Written under the lock of any shard, so limits may be passed by one entry a worker.
#[derive(Default)]
struct Total {
    datagrams: AtomicUsize,
    queued_frames: AtomicUsize,
    queued_octets: AtomicUsize,
    /// Those that have a [`PortFragments`], be it empty.
    ports: AtomicUsize,
}

/// The fragments of one port, or for one from outside, oldest datagram first.
#[derive(Default)]
struct PortFragments {
    datagrams: Vec<Datagram>,
    queued_frames: usize,
    queued_octets: usize,
    /// Frames that waited and have ended, by [`REASONS`], and of whose datagram the last of them was.
    ended: [(u64, FlowKey); REASONS.len()],
}

impl PortFragments {
    fn new(total: &Total) -> Self {
        total.ports.fetch_add(1, Ordering::Relaxed);
        Self::default()
    }

    fn admit(
        &mut self,
        total: &Total,
        fragment: Fragment,
        packet: &Packet,
        arena: &[Segment],
        now_ms: u64,
    ) -> Result<Admit, DropReason> {
        let known = self.datagrams.iter().position(|datagram| datagram.key == fragment.key);
        let ports = (fragment.start == 0).then(|| Ports::of(&packet.meta));
        let waits = ports.is_none() && known.is_none_or(|at| self.datagrams[at].ports.is_none());
        // Before anything is pushed out for it.
        if waits && known.is_none_or(|at| !self.datagrams[at].overlap) {
            self.has_room_to_wait(packet.len(), total)?;
        }
        let at = match known {
            Some(at) => at,
            None => self.insert(fragment.key, now_ms, total)?,
        };
        match self.datagrams[at].place(fragment, ports) {
            Place::New => {}
            Place::Duplicate => return Err(DropReason::FragmentOverlap),
            Place::TooMany => return Err(DropReason::FragmentQueueFull),
            Place::Overlap => {
                self.end_queued(at, DropReason::FragmentOverlap, total);
                self.datagrams[at].overlap = true;
                return Err(DropReason::FragmentOverlap);
            }
        }
        if waits {
            self.queue(at, packet, arena, total)?;
            return Ok(Admit::Queued);
        }
        let first = ports.is_some();
        let ports = ports.or(self.datagrams[at].ports).ok_or(DropReason::Internal)?;
        let mut released = self.take_queued(at, total);
        released.iter_mut().for_each(|queued| ports.write(&mut queued.meta));
        if self.datagrams[at].is_complete() {
            self.remove(at, None, total);
        }
        debug_assert!(first || released.is_empty(), "nothing waits once the first is known");
        Ok(if first { Admit::First(released) } else { Admit::Known(ports) })
    }

    /// A new datagram at the end, after the oldest went if there is no room. Returns where.
    fn insert(&mut self, key: FragmentKey, now_ms: u64, total: &Total) -> Result<usize, DropReason> {
        let host_full = total.datagrams.load(Ordering::Relaxed) >= FRAGMENT_DATAGRAMS_MAX;
        if self.datagrams.len() >= FRAGMENT_DATAGRAMS_PER_PORT_MAX || host_full {
            if self.datagrams.is_empty() {
                return Err(DropReason::FragmentQueueFull);
            }
            self.remove(0, Some(DropReason::FragmentQueueFull), total);
        }
        total.datagrams.fetch_add(1, Ordering::Relaxed);
        self.datagrams.push(Datagram::new(key, now_ms.saturating_add(FRAGMENT_LIFETIME_MS)));
        Ok(self.datagrams.len() - 1)
    }

    fn has_room_to_wait(&self, len: usize, total: &Total) -> Result<(), DropReason> {
        let room = self.queued_frames < FRAGMENTS_QUEUED_PER_PORT_MAX
            && self.queued_octets + len <= FRAGMENT_OCTETS_PER_PORT_MAX
            && total.queued_octets.load(Ordering::Relaxed) + len <= FRAGMENT_OCTETS_MAX;
        if room { Ok(()) } else { Err(DropReason::FragmentQueueFull) }
    }

    fn queue(&mut self, at: usize, packet: &Packet, arena: &[Segment], total: &Total) -> Result<(), DropReason> {
        let mut frame = vec![0; packet.len()].into_boxed_slice();
        packet.copy_frame(arena, &mut frame).ok_or(DropReason::Internal)?;
        self.queued_frames += 1;
        self.queued_octets += frame.len();
        total.queued_frames.fetch_add(1, Ordering::Relaxed);
        total.queued_octets.fetch_add(frame.len(), Ordering::Relaxed);
        let head_len = packet.head().len();
        self.datagrams[at].queued.push(QueuedFrame { meta: packet.meta, head_len, frame });
        Ok(())
    }

    fn take_queued(&mut self, at: usize, total: &Total) -> Vec<QueuedFrame> {
        let queued = std::mem::take(&mut self.datagrams[at].queued);
        let octets = queued.iter().map(|queued| queued.frame.len()).sum();
        self.queued_frames -= queued.len();
        self.queued_octets -= octets;
        total.queued_frames.fetch_sub(queued.len(), Ordering::Relaxed);
        total.queued_octets.fetch_sub(octets, Ordering::Relaxed);
        queued
    }

    fn end_queued(&mut self, at: usize, reason: DropReason, total: &Total) {
        let queued = self.take_queued(at, total);
        let Some(last) = queued.last() else { return };
        if let Some(index) = REASONS.iter().position(|of| *of == reason) {
            let FragmentKey { src, dst, .. } = self.datagrams[at].key;
            // The protocol as `parse` has it: of IPv6 the key does not say.
            let key = FlowKey::new(src, dst, 0, 0, last.meta.proto, Kind::Addresses);
            self.ended[index] = (self.ended[index].0 + queued.len() as u64, key);
        }
    }

    /// Forgets a datagram; what still waits ends for `reason`.
    fn remove(&mut self, at: usize, reason: Option<DropReason>, total: &Total) {
        if let Some(reason) = reason {
            self.end_queued(at, reason, total);
        }
        self.datagrams.remove(at);
        total.datagrams.fetch_sub(1, Ordering::Relaxed);
    }

    /// Returns how many datagrams went, at most `budget`.
    fn expire(&mut self, now_ms: u64, budget: usize, total: &Total) -> usize {
        let old = self.datagrams.iter().take(budget).take_while(|datagram| datagram.deadline_ms <= now_ms).count();
        for at in 0..old {
            self.end_queued(at, DropReason::FragmentTimeout, total);
        }
        self.datagrams.drain(..old);
        total.datagrams.fetch_sub(old, Ordering::Relaxed);
        old
    }

    fn tell(&mut self, mut ended: impl FnMut(DropReason, u64, FlowKey)) {
        for ((count, last), reason) in self.ended.iter_mut().zip(REASONS).filter(|((count, _), _)| *count > 0) {
            ended(reason, std::mem::take(count), *last);
        }
    }
}

/// One datagram, by what is known of it.
struct Datagram {
    key: FragmentKey,
    deadline_ms: u64,
    /// Of the first fragment, once it came.
    ports: Option<Ports>,
    /// Where fragments lay, in order, as (start, end); no two overlap.
    places: Vec<(u32, u32)>,
    /// Octets of the whole payload, once the last fragment came.
    len: Option<u32>,
    queued: Vec<QueuedFrame>,
    /// It is bad; all that comes of it ends.
    overlap: bool,
}

enum Place {
    New,
    Duplicate,
    Overlap,
    TooMany,
}

impl Datagram {
    fn new(key: FragmentKey, deadline_ms: u64) -> Self {
        Self { key, deadline_ms, ports: None, places: Vec::new(), len: None, queued: Vec::new(), overlap: false }
    }

    /// Notes where a fragment lies. RFC 5722 §4: "if any of the fragments ... overlap ..., the entire datagram (as well
    /// as any constituent fragments, including those not yet received) MUST be silently discarded". RFC 8200 §4.5 lets
    /// exact duplicates go without harm to the others.
    fn place(&mut self, fragment: Fragment, ports: Option<Ports>) -> Place {
        let Fragment { start, end, more, .. } = fragment;
        if self.overlap {
            return Place::Overlap;
        }
        let at = self.places.partition_point(|place| place.0 < start);
        let last = self.places.last().map_or(0, |place| place.1);
        if self.places.get(at) == Some(&(start, end)) {
            let same = (self.len == Some(end)) != more && (ports.is_none() || ports == self.ports);
            return if same { Place::Duplicate } else { Place::Overlap };
        }
        // Nothing lies behind the last fragment, and there is one last.
        let beyond = if more { self.len.is_some_and(|len| end >= len) } else { self.len.is_some() || last > end };
        let before = at.checked_sub(1).map_or(0, |at| self.places[at].1);
        let after = self.places.get(at).map_or(u32::MAX, |place| place.0);
        if beyond || before > start || end > after {
            return Place::Overlap;
        }
        if self.places.len() == FRAGMENTS_PER_DATAGRAM_MAX {
            return Place::TooMany;
        }
        self.places.insert(at, (start, end));
        self.len = if more { self.len } else { Some(end) };
        self.ports = ports.or(self.ports);
        Place::New
    }

    fn is_complete(&self) -> bool {
        self.len.is_some_and(|len| self.places.iter().map(|(start, end)| end - start).sum::<u32>() == len)
    }
}

/// Where the fragment header stands among the extension headers, which `parse` has walked before.
fn fragment_header(head: &[u8], mut next: u8, mut at: usize) -> Option<usize> {
    for _ in 0..IPV6_EXTENSION_HEADERS_MAX {
        if next == next_header::FRAGMENT {
            return Some(at);
        }
        if !ipv6::is_extension(next) {
            return None;
        }
        let header = Extension::new_checked(next, head.get(at..)?)?;
        (next, at) = (header.next_header(), at + header.len());
    }
    None
}

/// Groups of ports that share a lock.
const SHARDS: usize = 64;

/// Why frames that waited may end.
const REASONS: [DropReason; 4] =
    [DropReason::FragmentTimeout, DropReason::FragmentQueueFull, DropReason::FragmentOverlap, DropReason::PortDown];

#[cfg(test)]
mod tests;
