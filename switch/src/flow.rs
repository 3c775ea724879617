//! Flows: the key of a packet, and each worker's own cache of what was decided about it.
//!
//! # Theory of operation
//!
//! A [`Flow`] is one direction of a connection with a ready-made decision, in one cache line. The cache is private to a
//! worker: no atomics, no locks. It only ever answers what the connection table would; losing an entry costs a look
//! there. An entry is trusted while its *epoch* is its network's (tables and policies have not changed) and its *round* is
//! the current one ([`TRUST_S`] seconds). Otherwise, and as long as its connection is not *assured*, the connection itself
//! is asked, which is also when it learns that it is alive. A connection that is assured and was told of a packet within
//! two rounds is never freed without a new epoch, so nothing stale is ever trusted; one that the packet did not keep alive is not trusted
//! when its end is near (`Timeouts::may_trust`).
//!
//! Each key has two buckets of eight places. A bucket's tags and ages lie together in sixteen octets, so that
//! a lookup touches one line of tags and the line of the entry. When both buckets are full the oldest entry goes.
//! The cache begins small and grows as it fills; what was in it is then looked up once more.

use crate::connection::Direction;
use crate::packet::{L3, Packet};
use crate::prefetch::prefetch;
use crate::rewriting::Rewriting;
use crate::shared::{Anonymous, Line, Pair};
use crate::wire::ethernet;
use crate::wire::{icmpv4, icmpv6, proto};

/// The tuple of a packet, for both families: IPv4 addresses are IPv4-mapped.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
#[repr(C)]
pub struct FlowKey {
    /// Source and destination address, each as two words of network order.
    pub addresses: [u64; 4],
    /// Source port, destination port, protocol, [`Kind`], and a scope that the caller gives.
    pub l4: u64,
}

/// What the L4 ports of a key are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// L4 ports.
    Ports = 0,
    /// Of an ICMP query: source port is the identifier, destination port the type of the request.
    Query = 1,
    /// Of its answer, the other way round.
    Answer = 2,
    /// There are none: the connection is that of two addresses.
    Addresses = 3,
}

impl FlowKey {
    /// The key of a parsed packet. `None` for ARP.
    #[inline(always)]
    pub fn of(packet: &Packet, scope: u16) -> Option<Self> {
        const L3: usize = ethernet::HEADER_LEN;
        let head = packet.head();
        let addresses = match packet.meta.l3 {
            L3::V4 => {
                let head: &[u8; L3 + 20] = head.first_chunk()?;
                let word = |at: usize| u64::from(u32::from_be_bytes(std::array::from_fn(|i| head[at + i])));
                [0, MAPPED | word(L3 + 12), 0, MAPPED | word(L3 + 16)]
            }
            L3::V6 => {
                let head: &[u8; L3 + 40] = head.first_chunk()?;
                let word = |at: usize| u64::from_be_bytes(std::array::from_fn(|i| head[at + i]));
                [word(L3 + 8), word(L3 + 16), word(L3 + 24), word(L3 + 32)]
            }
            L3::Arp | L3::None => return None,
        };
        let meta = &packet.meta;
        let (src_port, dst_port, kind) = match meta.proto {
            proto::TCP | proto::UDP | proto::SCTP => (meta.src_port, meta.dst_port, Kind::Ports),
            proto::ICMPV4 | proto::ICMPV6 => query(meta.proto, meta.src_port, (meta.dst_port >> 8) as u8),
            _ => (0, 0, Kind::Addresses),
        };
        Some(Self { addresses, l4: pack(src_port, dst_port, meta.proto, kind, scope) })
    }

    /// A key of its parts. Addresses are IPv4-mapped for IPv4.
    pub fn new(src: u128, dst: u128, src_port: u16, dst_port: u16, proto: u8, kind: Kind) -> Self {
        let words = |address: u128| [(address >> 64) as u64, address as u64];
        let ([a, b], [c, d]) = (words(src), words(dst));
        Self { addresses: [a, b, c, d], l4: pack(src_port, dst_port, proto, kind, 0) }
    }

    /// Source address.
    #[inline]
    pub fn src(&self) -> u128 {
        u128::from(self.addresses[0]) << 64 | u128::from(self.addresses[1])
    }

    /// Destination address.
    #[inline]
    pub fn dst(&self) -> u128 {
        u128::from(self.addresses[2]) << 64 | u128::from(self.addresses[3])
    }

    /// Source port, or what [`Kind`] says.
    #[inline]
    pub fn src_port(&self) -> u16 {
        (self.l4 >> 48) as u16
    }

    /// Destination port, or what [`Kind`] says.
    #[inline]
    pub fn dst_port(&self) -> u16 {
        (self.l4 >> 32) as u16
    }

    /// IANA protocol number.
    #[inline]
    pub fn proto(&self) -> u8 {
        (self.l4 >> 24) as u8
    }

    /// What the ports are.
    #[inline]
    pub fn kind(&self) -> Kind {
        match (self.l4 >> 16) as u8 & 3 {
            0 => Kind::Ports,
            1 => Kind::Query,
            2 => Kind::Answer,
            _ => Kind::Addresses,
        }
    }

    /// The same without scope: what the connection table keeps.
    #[inline]
    pub fn unscoped(&self) -> Self {
        Self { l4: self.l4 & !0xffff, ..*self }
    }

    /// The key of the other direction, without scope.
    #[inline]
    pub fn reversed(&self) -> Self {
        let [a, b, c, d] = self.addresses;
        let kind = match self.kind() {
            Kind::Query => Kind::Answer,
            Kind::Answer => Kind::Query,
            kind => kind,
        };
        Self { addresses: [c, d, a, b], l4: pack(self.dst_port(), self.src_port(), self.proto(), kind, 0) }
    }

    /// The L4 destination port, where the protocol has one.
    #[inline]
    pub fn l4_dst_port(&self) -> Option<u16> {
        (self.kind() == Kind::Ports).then(|| self.dst_port())
    }
}

/// Identifier and type of an ICMP message as ports. A query and its answer are two directions of one connection.
#[cold]
pub fn query(protocol: u8, ident: u16, kind: u8) -> (u16, u16, Kind) {
    const ECHO_REPLY_V6: u8 = 129;
    const ECHO_REQUEST_V6: u8 = 128;
    let (request, answer) = match (protocol, kind) {
        (proto::ICMPV4, icmpv4::kind::ECHO_REQUEST | icmpv4::kind::TIMESTAMP) => (kind, false),
        (proto::ICMPV4, icmpv4::kind::ECHO_REPLY) => (icmpv4::kind::ECHO_REQUEST, true),
        (proto::ICMPV4, icmpv4::kind::TIMESTAMP_REPLY) => (icmpv4::kind::TIMESTAMP, true),
        (proto::ICMPV6, ECHO_REQUEST_V6) => (kind, false),
        (proto::ICMPV6, ECHO_REPLY_V6) => (ECHO_REQUEST_V6, true),
        _ => return (0, 0, Kind::Addresses),
    };
    if answer { (u16::from(request), ident, Kind::Answer) } else { (ident, u16::from(request), Kind::Query) }
}

/// Whether an ICMP message is an error about another packet.
#[inline]
pub fn is_icmp_error(protocol: u8, kind: u8) -> bool {
    match protocol {
        proto::ICMPV4 => icmpv4::is_error(kind),
        proto::ICMPV6 => icmpv6::is_error(kind),
        _ => false,
    }
}

#[inline]
fn pack(src_port: u16, dst_port: u16, proto: u8, kind: Kind, scope: u16) -> u64 {
    u64::from(src_port) << 48
        | u64::from(dst_port) << 32
        | u64::from(proto) << 24
        | u64::from(kind as u8) << 16
        | u64::from(scope)
}

/// `::ffff:0:0/96`, the lower word.
const MAPPED: u64 = 0xffff_0000_0000;

/// Keys of the flow hash, drawn at start: who does not know them cannot make tuples collide.
#[derive(Clone, Copy, Debug)]
pub struct HashKeys([u64; 4]);

impl HashKeys {
    /// Keys out of 32 random octets.
    pub fn new(random: [u64; 4]) -> Self {
        // Odd: these multiply.
        Self([random[0], random[1] | 1, random[2] | 1, random[3]])
    }

    /// Keys that nobody outside this process knows.
    pub fn random() -> Self {
        use std::hash::{BuildHasher, Hasher};
        // `RandomState` is seeded by the operating system and differs with every call.
        let word = |i: u64| {
            let mut hasher = std::hash::RandomState::new().build_hasher();
            hasher.write_u64(i);
            hasher.finish()
        };
        Self::new([word(0), word(1), word(2), word(3)])
    }

    /// The same for both directions of a flow. `vni` keeps equal addresses of different networks apart.
    ///
    /// The clients of one server are the multiples of one number, which one key in fourteen leaves lumped
    /// together; the last one spreads them.
    #[inline(always)]
    pub fn hash(&self, key: &FlowKey, vni: u32) -> u64 {
        let [k0, k1, k2, k3] = self.0;
        let [a, b, c, d] = key.addresses;
        let scope = u64::from(vni & 0xff_ffff) << 8 | u64::from(key.proto());
        if a | c == 0 {
            // An IPv4 address, an L4 port and half of the scope are one word: no two inputs are alike.
            let end = |low: u64, port: u16| (low & 0xffff_ffff) << 16 | u64::from(port);
            let (src, dst) = (end(b, key.src_port()), end(d, key.dst_port()));
            return mix(mix(src.min(dst) ^ k0 ^ scope >> 16 << 48, src.max(dst) ^ k1 ^ scope << 48), k2);
        }
        let end =
            |high: u64, low: u64, port: u16| mix(high ^ k0, low ^ k1).wrapping_add(u64::from(port).wrapping_mul(k2));
        let (src, dst) = (end(a, b, key.src_port()), end(c, d, key.dst_port()));
        mix(mix(src.min(dst) ^ k3, src.max(dst) ^ scope.wrapping_mul(k2)), k1)
    }
}

/// One folded multiplication.
#[inline]
fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// Seconds for which a flow is trusted without a look at its connection, which lives that much longer for it.
pub const TRUST_S: u32 = 4;

/// The period of trust that a second lies in.
#[inline]
pub fn round(seconds: u32) -> u32 {
    seconds / TRUST_S
}

/// What was decided about one direction of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flow {
    /// Its key; the scope is the port that sends it.
    pub key: FlowKey,
    /// Index of the connection's record.
    pub connection: u32,
    /// Generation of that record.
    pub generation: u32,
    /// Epoch of the network when it was decided.
    pub epoch: u32,
    /// [`round`] in which the connection was last asked.
    pub round: u32,
    /// Where it goes.
    pub out_port: u16,
    /// Receive queue of the destination, [`NO_QUEUE`] for one by hash.
    pub queue: u8,
    /// `REPLY`, `ASSURED`, `TCP`, `CROSSES`.
    pub flags: u8,
}

/// The connection's other direction started it.
pub const REPLY: u8 = 1;
/// The connection may be trusted for a round.
pub const ASSURED: u8 = 2;
/// It is TCP: each segment is tracked.
pub const TCP: u8 = 4;

/// It leads from one network into another: what crosses has to become something else.
pub const CROSSES: u8 = 8;

/// No place of a cache.
pub const NOWHERE: u32 = u32::MAX;

/// The destination has not sent yet: its receive queue is chosen by hash.
pub const NO_QUEUE: u8 = u8::MAX;

/// Epoch and round as a flow keeps them.
#[inline]
pub fn stamp(epoch: u32, round: u32) -> u64 {
    u64::from(epoch) << 32 | u64::from(round)
}

impl Flow {
    /// Which direction of its connection it is.
    #[inline]
    pub fn direction(&self) -> Direction {
        usize::from(self.flags & REPLY != 0)
    }

    #[inline]
    fn to_line(self) -> Line {
        let [a, b, c, d] = self.key.addresses;
        let pair = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
        let place = u64::from(self.out_port) << 16 | u64::from(self.queue) << 8 | u64::from(self.flags);
        Line([a, b, c, d, self.key.l4, pair(self.connection, self.generation), stamp(self.epoch, self.round), place])
    }

    #[inline]
    fn of_line(line: &Line) -> Self {
        let [a, b, c, d, l4, record, when, place] = line.0;
        Self {
            key: FlowKey { addresses: [a, b, c, d], l4 },
            connection: (record >> 32) as u32,
            generation: record as u32,
            epoch: (when >> 32) as u32,
            round: when as u32,
            out_port: (place >> 16) as u16,
            queue: (place >> 8) as u8,
            flags: place as u8,
        }
    }
}

/// Tags and ages of the eight places of a bucket, an octet each: a tag of zero is an empty place, an age the low seven bits of
/// the round in which the place was written last, and [`AGE_CROSSES`].
type Bucket = Pair;

const TAGS: usize = 0;
const AGES: usize = 1;

/// The flow crosses: there is a line of rewriting to be asked for besides its own.
const AGE_CROSSES: u8 = 0x80;

/// The word of a line that names the connection's record.
const RECORD: usize = 5;

/// Places of a bucket.
const PLACES: usize = 8;

/// Buckets that a new cache uses.
const BUCKETS_MIN: usize = 512;

/// How many times more buckets a full cache takes.
const GROWTH: usize = 4;

/// A worker's cache of flows.
pub struct FlowCache {
    buckets: Anonymous<Bucket>,
    lines: Anonymous<Line>,
    /// Of flows that cross, at the same place: a [`Rewriting`]. No page is touched until there is one.
    rewritings: Anonymous<Line>,
    /// Buckets in use now.
    active: usize,
    filled: usize,
}

impl FlowCache {
    /// A cache for up to `flows` flows.
    ///
    /// # Errors
    /// The kernel refuses the memory.
    pub fn new(flows: usize) -> std::io::Result<Self> {
        // At four fifths of its places taken, both buckets of a flow are full with a chance of one in hundreds.
        let buckets = (flows * 5 / 4).div_ceil(PLACES).max(BUCKETS_MIN);
        Ok(Self {
            buckets: Anonymous::new(buckets)?,
            lines: Anonymous::new(buckets * PLACES)?,
            rewritings: Anonymous::new(buckets * PLACES)?,
            active: first_step(buckets),
            filled: 0,
        })
    }

    /// Whether what it holds lies in the nearest caches anyway: there is nothing to ask for ahead.
    #[inline]
    pub fn is_small(&self) -> bool {
        self.active <= BUCKETS_MIN * GROWTH
    }

    /// Asks for the tags of a hash.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        let [first, second] = self.places(hash);
        prefetch(&self.buckets[first]);
        prefetch(&self.buckets[second]);
    }

    /// Where the flow of this hash most likely stands, by its tags, which should have been asked for; its line is asked for now.
    /// [`NOWHERE`] when no tag is its own.
    #[inline]
    pub fn expect(&self, hash: u64) -> u32 {
        let [first, second] = self.places(hash);
        match self.expect_in(first, hash) {
            NOWHERE => self.expect_in(second, hash),
            place => place,
        }
    }

    #[inline(always)]
    fn expect_in(&self, bucket: usize, hash: u64) -> u32 {
        let Pair([tags, ages]) = self.buckets[bucket];
        let matches = matching(tags, tag(hash));
        if matches == 0 {
            return NOWHERE;
        }
        let line = bucket * PLACES + matches.trailing_zeros() as usize / 8;
        prefetch(&self.lines[line]);
        // A match is the top bit of its octet, as is `AGE_CROSSES`.
        if ages & matches & matches.wrapping_neg() != 0 {
            prefetch(&self.rewritings[line]);
        }
        line as u32
    }

    /// The record that the flow at an expected place has to ask, because it shows none of these stamps. Its line should have been
    /// asked for.
    #[inline]
    pub fn asks(&self, expected: u32, stamps: [u64; 2]) -> Option<u32> {
        let line = &self.lines.get(expected as usize)?.0;
        let current = line[6] == stamps[0] || line[6] == stamps[1];
        (!current).then_some((line[RECORD] >> 32) as u32)
    }

    /// Where a packet goes, if its flow is here and nothing has to be asked: it was looked at during this round and epoch
    /// ([`stamp`]), and its connection is assured, not TCP, and does not cross. `expected` is where it probably stands
    /// ([`FlowCache::expect`]).
    ///
    /// # Errors
    /// Where the flow stands, if it does, when something has to be asked.
    #[inline(always)]
    pub fn look(&self, key: &FlowKey, hash: u64, expected: u32, stamp: u64) -> Result<(u16, u8), Option<usize>> {
        let place = expected as usize;
        match self.lines.get(place) {
            Some(Line(line)) if holds(line, key) => ready(line, stamp).ok_or(Some(place)),
            _ => self.look_around(key, hash, stamp),
        }
    }

    /// The same for a flow that does not stand where it was expected.
    #[inline(never)]
    fn look_around(&self, key: &FlowKey, hash: u64, stamp: u64) -> Result<(u16, u8), Option<usize>> {
        let place = self.find(key, hash).ok_or(None)?;
        ready(&self.lines[place].0, stamp).ok_or(Some(place))
    }

    /// Where the flow of a key stands.
    #[inline]
    pub fn find(&self, key: &FlowKey, hash: u64) -> Option<usize> {
        let [first, second] = self.places(hash);
        match self.find_in(first, key, hash) {
            None => self.find_in(second, key, hash),
            found => found,
        }
    }

    #[inline]
    fn find_in(&self, bucket: usize, key: &FlowKey, hash: u64) -> Option<usize> {
        let mut matches = matching(self.buckets[bucket].0[TAGS], tag(hash));
        while matches != 0 {
            let place = bucket * PLACES + matches.trailing_zeros() as usize / 8;
            if holds(&self.lines[place].0, key) {
                return Some(place);
            }
            matches &= matches - 1;
        }
        None
    }

    /// As [`FlowCache::look`], of a flow that crosses, at its place; its stamp is that of all networks. With what its packets become.
    #[inline(always)]
    pub fn ready_to_cross(&self, place: usize, stamp: u64) -> Option<(u16, u8, Rewriting)> {
        let Line(line) = self.lines.get(place)?;
        let way = line[7];
        // First of all: of a flow that stays no line of rewriting is touched.
        if way as u8 & (ASSURED | TCP | CROSSES) != ASSURED | CROSSES || line[6] != stamp {
            return None;
        }
        let rewriting = Rewriting::of_line(self.rewritings.get(place)?, line[RECORD])?;
        Some(((way >> 16) as u16, (way >> 8) as u8, rewriting))
    }

    /// What packets of the flow at a place become, if that was kept since the flow was last written there: under the epoch and round
    /// that the flow shows.
    #[inline(always)]
    pub fn rewriting(&self, place: usize) -> Option<Rewriting> {
        Rewriting::of_line(self.rewritings.get(place)?, self.lines[place].0[RECORD])
    }

    /// Keeps what packets of the flow at a place become.
    #[inline]
    pub fn set_rewriting(&mut self, place: usize, rewriting: Rewriting) {
        self.rewritings[place] = rewriting.to_line(self.lines[place].0[RECORD]);
    }

    /// The flow at a place that [`FlowCache::find`] gave.
    #[inline]
    pub fn get(&self, place: usize) -> Flow {
        Flow::of_line(&self.lines[place])
    }

    /// Writes a flow back to its place.
    #[inline]
    pub fn set(&mut self, place: usize, flow: &Flow) {
        self.lines[place] = flow.to_line();
        let mut age = flow.round as u8 & !AGE_CROSSES;
        if flow.flags & CROSSES != 0 {
            // Whatever was found out about it is found out again.
            self.rewritings[place] = Line([0; 8]);
            age |= AGE_CROSSES;
        }
        set_octet(&mut self.buckets[place / PLACES].0[AGES], place % PLACES, age);
    }

    /// Adds a flow, or replaces the one with its key.
    pub fn insert(&mut self, flow: &Flow, hash: u64) {
        self.put(self.find(&flow.key, hash), flow, hash);
    }

    /// The same for a flow that [`FlowCache::find`] has just been asked for: where it stands, if it does. Returns where it stands now.
    /// Inlined, so that the flow goes from registers into its line.
    #[inline]
    pub fn put(&mut self, place: Option<usize>, flow: &Flow, hash: u64) -> usize {
        if let Some(place) = place {
            self.set(place, flow);
            return place;
        }
        let (bucket, place) = self.room(hash, flow.round);
        let tags = &mut self.buckets[bucket].0[TAGS];
        self.filled += usize::from(tags.to_le_bytes()[place] == 0);
        set_octet(tags, place, tag(hash));
        let place = bucket * PLACES + place;
        self.set(place, flow);
        if self.filled * 5 > self.active * PLACES * 4 {
            self.grow();
        }
        place
    }

    /// Asks for the line in which a new flow of this hash will most likely stand.
    #[inline]
    pub fn prefetch_room(&self, hash: u64, round: u32, may_cross: bool) {
        let (bucket, place) = self.room(hash, round);
        prefetch(&self.lines[bucket * PLACES + place]);
        if may_cross {
            prefetch(&self.rewritings[bucket * PLACES + place]);
        }
    }

    /// Bucket and place for a new flow: in the emptier bucket, so that both stay even; where both are full, the oldest goes.
    fn room(&self, hash: u64, round: u32) -> (usize, usize) {
        let [first, second] = self.places(hash);
        let [of_first, of_second] = [first, second].map(|bucket| empty(self.buckets[bucket].0[TAGS]));
        if of_first | of_second == 0 {
            return self.oldest([first, second], round as u8);
        }
        let (bucket, room) = if count(of_first) >= count(of_second) { (first, of_first) } else { (second, of_second) };
        (bucket, room.trailing_zeros() as usize / 8)
    }

    /// The place of two full buckets that was written longest ago.
    fn oldest(&self, buckets: [usize; 2], now: u8) -> (usize, usize) {
        // All sixteen at once: vector instructions.
        let mut ages = [0; 2 * PLACES];
        for (half, bucket) in ages.chunks_exact_mut(PLACES).zip(buckets) {
            half.copy_from_slice(&self.buckets[bucket].0[AGES].to_le_bytes());
        }
        ages.iter_mut().for_each(|age| *age = now.wrapping_sub(*age) & !AGE_CROSSES);
        let most = ages.iter().fold(0, |most: u8, age| most.max(*age));
        let at = ages.iter().position(|age| *age == most).unwrap_or(0);
        (buckets[at / PLACES], at % PLACES)
    }

    /// Takes more buckets into use. What is cached is found no more, and looked up once again.
    #[cold]
    fn grow(&mut self) {
        if self.active == self.buckets.len() {
            return;
        }
        self.active = (self.active * GROWTH).min(self.buckets.len());
        // What was filled stays so until its age gives it away: there is nothing to clear.
        let used = self.active;
        if used * PLACES * size_of::<Line>() >= HUGE {
            self.lines.advise_huge(used * PLACES);
            self.rewritings.advise_huge(used * PLACES);
        }
    }

    /// The two buckets of a hash.
    #[inline]
    fn places(&self, hash: u64) -> [usize; 2] {
        let scaled = |word: u64| (((word & 0xffff_ffff) * self.active as u64) >> 32) as usize;
        [scaled(hash >> 32), scaled(hash)]
    }
}

/// Whether a line is that of a key.
#[inline(always)]
fn holds(line: &[u64; 8], key: &FlowKey) -> bool {
    let [a, b, c, d] = key.addresses;
    (line[0] ^ a) | (line[1] ^ b) | (line[2] ^ c) | (line[3] ^ d) | (line[4] ^ key.l4) == 0
}

/// Port and receive queue of a flow that may be followed as it is ([`FlowCache::look`]).
#[inline(always)]
fn ready(line: &[u64; 8], stamp: u64) -> Option<(u16, u8)> {
    let way = line[7];
    let ready = line[6] == stamp && way as u8 & (ASSURED | TCP | CROSSES) == ASSURED;
    ready.then_some(((way >> 16) as u16, (way >> 8) as u8))
}

/// From where on huge pages serve a cache better: two of them.
const HUGE: usize = 4 << 20;

/// The first size of a cache whose last is `buckets`: growing by [`GROWTH`] reaches it exactly.
fn first_step(mut buckets: usize) -> usize {
    while buckets.div_ceil(GROWTH) >= BUCKETS_MIN {
        buckets = buckets.div_ceil(GROWTH);
    }
    buckets
}

/// Never zero; of bits that hardly choose a bucket.
#[inline]
fn tag(hash: u64) -> u8 {
    (hash >> 8) as u8 | 1
}

/// The top bit of each octet of `tags` that equals `tag`; octets above a match may be marked falsely, keys tell.
#[inline]
fn matching(tags: u64, tag: u8) -> u64 {
    const LOW: u64 = 0x0101_0101_0101_0101;
    let differs = tags ^ (LOW * u64::from(tag));
    differs.wrapping_sub(LOW) & !differs & LOW << 7
}

/// A bit in each octet of `tags` that is an empty place: a tag's lowest bit is set.
#[inline]
fn empty(tags: u64) -> u64 {
    !tags & 0x0101_0101_0101_0101
}

/// How many octets of a word have their lowest bit set, of which no other is.
#[inline]
fn count(bits: u64) -> u64 {
    bits.wrapping_mul(0x0101_0101_0101_0101) >> 56
}

#[inline]
fn set_octet(word: &mut u64, place: usize, value: u8) {
    let shift = 8 * place;
    *word = *word & !(0xff << shift) | u64::from(value) << shift;
}

#[cfg(test)]
#[path = "flow_tests.rs"]
mod tests;
