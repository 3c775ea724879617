//! One connection as it lies in the shared file: two cache lines of atomics.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, fence};

use super::translation::Translation;
use crate::flow::{FlowKey, NO_QUEUE};
use crate::prefetch::prefetch;
use crate::shared::plain_struct;
use crate::tcp_track::Side;
use crate::wheel::Timed;

/// A direction of a connection: 0 is that of the packet which began it, 1 the other.
pub type Direction = usize;

/// What one direction has shown. One writer, the worker that sees the direction.
#[derive(Default)]
#[repr(C)]
struct Shown {
    /// Second of its last packet, plus one; 0 for none.
    seen: AtomicU32,
    end: AtomicU32,
    ack: AtomicU32,
    limit: AtomicU32,
    window_max: AtomicU32,
}

/// A connection. All fields are atomics, because other processes and workers may look at any time; zero is a free record.
#[derive(Default)]
#[repr(C, align(128))]
pub struct Record {
    addresses: [AtomicU64; 4],
    l4: AtomicU64,
    vni: AtomicU32,
    /// Changes whenever the record changes its owner: an index with another generation means somebody else.
    generation: AtomicU32,
    /// Slots of the two ports, the one that began it in the upper half.
    ports: AtomicU32,
    /// What allowed it (packed by the policy crate), egress and ingress.
    basis: [AtomicU32; 2],
    shown: [Shown; 2],
    flags: [AtomicU8; 2],
    scale: [AtomicU8; 2],
    /// Queue pair on which the direction was last sent, plus one; 0 for none.
    queue: [AtomicU8; 2],
    status: AtomicU8,
    /// [`CROSSES`], [`RECEIVER_PAYS`], [`MAPPED`], [`KEPT_BY_ANSWERS`].
    traits: AtomicU8,
    epoch: AtomicU32,
    /// Second in which it began.
    created: AtomicU32,
    /// Next record of the chain, or of the free list.
    pub(super) next: AtomicU32,
    wheel_next: AtomicU32,
    wheel_prev: AtomicU32,
}

const _: () = assert!(size_of::<Record>() == 128);

plain_struct!(Shown { seen, end, ack, limit, window_max });
plain_struct!(Record {
    addresses,
    l4,
    vni,
    generation,
    ports,
    basis,
    shown,
    flags,
    scale,
    queue,
    status,
    traits,
    epoch,
    created,
    next,
    wheel_next,
    wheel_prev,
});

const FREE: u8 = 0;
const VALID: u8 = 1;

/// It has a [`Translation`].
const CROSSES: u8 = 1;
/// It counts for the port that did not begin it.
const RECEIVER_PAYS: u8 = 2;
/// It holds a NAT mapping.
const MAPPED: u8 = 4;
/// It came in by a NAT mapping of its destination, unasked: only what that end sends keeps it (RFC 4787 REQ-6, RFC 7857 §7).
const KEPT_BY_ANSWERS: u8 = 8;

/// A record's plain values, for lists and events.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its place in the table.
    pub index: u32,
    /// Its generation.
    pub generation: u32,
    /// Tuple of the packet that began it.
    pub key: FlowKey,
    /// Network.
    pub vni: u32,
    /// Slot of the port that began it.
    pub in_port: u32,
    /// Slot of the other port.
    pub out_port: u32,
    /// What allowed it, egress and ingress.
    pub basis: [u32; 2],
    /// Second in which it began.
    pub created: u32,
    /// Second of the last packet of each direction; 0 for none.
    pub seen: [u32; 2],
    /// What each direction has shown (TCP).
    pub sides: [Side; 2],
    /// How it crosses into another network, if it does.
    pub translation: Option<Translation>,
}

impl Timed for Record {
    #[inline]
    fn wheel_next(&self) -> &AtomicU32 {
        &self.wheel_next
    }

    #[inline]
    fn wheel_prev(&self) -> &AtomicU32 {
        &self.wheel_prev
    }
}

impl Record {
    /// The tuple of the packet that began it, without scope.
    #[inline]
    pub fn key(&self) -> FlowKey {
        FlowKey { addresses: std::array::from_fn(|i| self.addresses[i].load(Relaxed)), l4: self.l4.load(Relaxed) }
    }

    /// Its network.
    #[inline]
    pub fn vni(&self) -> u32 {
        self.vni.load(Relaxed)
    }

    /// Whether it is in use.
    #[inline]
    pub fn is_valid(&self) -> bool {
        self.status.load(Acquire) == VALID
    }

    /// See [`Entry::generation`].
    #[inline]
    pub fn generation(&self) -> u32 {
        self.generation.load(Acquire)
    }

    /// Whether what was read of it before this is of the connection that had it under this generation. Whoever gives a record to
    /// another connection changes its generation before anything else.
    #[inline]
    pub fn is_still(&self, generation: u32) -> bool {
        // Whatever was read of another connection, this reads the generation of that one or a later one.
        fence(Acquire);
        self.generation.load(Relaxed) == generation
    }

    /// Slot of the port that sends a direction.
    #[inline]
    pub fn port(&self, direction: Direction) -> u32 {
        let ports = self.ports.load(Relaxed);
        if direction == 0 { ports >> 16 } else { ports & 0xffff }
    }

    /// Whether it leads from one network into another.
    #[inline]
    pub fn crosses(&self) -> bool {
        self.has(CROSSES)
    }

    /// Whether it holds a NAT mapping, which ends with it or later.
    #[inline]
    pub(super) fn is_mapped(&self) -> bool {
        self.has(MAPPED)
    }

    /// Whether only answers keep it: it came in by a NAT mapping of its destination, which it holds.
    #[inline]
    pub fn is_kept_by_answers(&self) -> bool {
        self.has(KEPT_BY_ANSWERS)
    }

    #[inline]
    fn has(&self, traits: u8) -> bool {
        self.traits.load(Relaxed) & traits != 0
    }

    /// Slot of the port for whose quota it counts.
    #[inline]
    pub(super) fn payer(&self) -> u32 {
        self.port(usize::from(self.has(RECEIVER_PAYS)))
    }

    /// Epoch of its network when it was last decided; of a connection that crosses, that of all networks.
    #[inline]
    pub fn epoch(&self) -> u32 {
        self.epoch.load(Relaxed)
    }

    /// It was decided anew, with the same result.
    pub fn set_epoch(&self, epoch: u32, basis: [u32; 2]) {
        self.basis[0].store(basis[0], Relaxed);
        self.basis[1].store(basis[1], Relaxed);
        self.epoch.store(epoch, Relaxed);
    }

    /// It goes on without being decided anew.
    pub fn keep_epoch(&self, epoch: u32) {
        self.epoch.store(epoch, Relaxed);
    }

    /// Whether the other side has sent.
    #[inline]
    pub fn is_replied(&self) -> bool {
        self.shown[1].seen.load(Relaxed) != 0
    }

    /// Second in which it began.
    pub fn created(&self) -> u32 {
        self.created.load(Relaxed)
    }

    /// Whether it was answered, or has gone on for two seconds, which says nothing of one that came from outside: names are false
    /// there. Flow caches may trust it then, and it makes room for others only as `room` says.
    #[inline]
    pub fn is_assured(&self) -> bool {
        let goes_on = || self.last_seen(0) >= self.created.load(Relaxed).saturating_add(2);
        self.is_replied() || !self.has(RECEIVER_PAYS) && goes_on()
    }

    /// Second of the last packet of a direction; 0 for none.
    #[inline]
    pub fn last_seen(&self, direction: Direction) -> u32 {
        self.shown[direction].seen.load(Relaxed).saturating_sub(1)
    }

    /// A packet of a direction came, on a queue pair of its sender.
    #[inline]
    pub fn touch(&self, direction: Direction, now: u32, queue: u8) {
        if self.shown[direction].seen.load(Relaxed) != now + 1 {
            self.shown[direction].seen.store(now + 1, Relaxed);
        }
        let queue = queue.wrapping_add(1);
        if self.queue[direction].load(Relaxed) != queue {
            self.queue[direction].store(queue, Relaxed);
        }
    }

    /// Queue pair on which a direction was last sent, [`NO_QUEUE`] before.
    #[inline]
    pub fn queue(&self, direction: Direction) -> u8 {
        self.queue[direction].load(Relaxed).wrapping_sub(1)
    }

    /// What a direction has shown of TCP.
    #[inline]
    pub fn side(&self, direction: Direction) -> Side {
        let shown = &self.shown[direction];
        Side {
            end: shown.end.load(Relaxed),
            ack: shown.ack.load(Relaxed),
            limit: shown.limit.load(Relaxed),
            window_max: shown.window_max.load(Relaxed),
            scale: self.scale[direction].load(Relaxed),
            flags: self.flags[direction].load(Relaxed),
        }
    }

    /// The answering side said that nobody is there (ICMP port unreachable). Not for TCP, which says it itself.
    pub(super) fn refuse(&self) {
        self.flags[1].fetch_or(Side::RST, Relaxed);
    }

    /// Replaces what a direction has shown, where it differs from `old`: a line that did not change stays shared.
    #[inline]
    pub fn set_side(&self, direction: Direction, old: &Side, new: &Side) {
        if old != new {
            self.store_side(direction, new);
        }
    }

    #[inline]
    fn store_side(&self, direction: Direction, new: &Side) {
        let shown = &self.shown[direction];
        shown.end.store(new.end, Relaxed);
        shown.ack.store(new.ack, Relaxed);
        shown.limit.store(new.limit, Relaxed);
        shown.window_max.store(new.window_max, Relaxed);
        self.scale[direction].store(new.scale, Relaxed);
        self.flags[direction].store(new.flags, Relaxed);
    }

    /// Its plain values, but for its translation; `None` when it is free or changes its owner right now.
    pub(super) fn entry(&self, index: u32) -> Option<Entry> {
        let generation = self.generation();
        if !self.is_valid() {
            return None;
        }
        let entry = Entry {
            index,
            generation,
            key: self.key(),
            vni: self.vni(),
            in_port: self.port(0),
            out_port: self.port(1),
            basis: [self.basis[0].load(Relaxed), self.basis[1].load(Relaxed)],
            created: self.created.load(Relaxed),
            seen: [self.last_seen(0), self.last_seen(1)],
            sides: [self.side(0), self.side(1)],
            translation: None,
        };
        self.is_still(generation).then_some(entry)
    }

    /// Asks for both of its lines.
    #[inline]
    pub(super) fn prefetch(&self) {
        prefetch(&self.addresses);
        prefetch(&self.wheel_prev);
    }

    /// Becomes a connection. Only under the lock of its shard, and only while it is free.
    pub(super) fn fill(&self, new: &super::NewConnection, now: u32) {
        // Who still reads what it was before must learn that it is that no more: by the version of the chain that it was in
        // (`super::shard`), or by its generation ([`Record::is_still`]).
        fence(Release);
        for (word, value) in self.addresses.iter().zip(new.key.addresses) {
            word.store(value, Relaxed);
        }
        self.l4.store(new.key.l4 & !0xffff, Relaxed);
        self.vni.store(new.vni, Relaxed);
        self.ports.store(new.in_port << 16 | new.out_port & 0xffff, Relaxed);
        let unasked = new.translation.is_some_and(|translation| translation.held[1].is_some());
        let traits = [
            (new.translation.is_some(), CROSSES),
            (new.receiver_pays, RECEIVER_PAYS),
            (new.is_mapped(), MAPPED),
            (unasked, KEPT_BY_ANSWERS),
        ];
        let traits = traits.iter().fold(0, |traits, (has, bit)| if *has { traits | bit } else { traits });
        self.traits.store(traits, Relaxed);
        self.set_epoch(new.epoch, new.basis);
        self.created.store(now, Relaxed);
        for (direction, side) in [new.side, Side::default()].into_iter().enumerate() {
            self.store_side(direction, &side);
        }
        self.shown[0].seen.store(now + 1, Relaxed);
        self.shown[1].seen.store(0, Relaxed);
        self.queue[0].store(new.queue.wrapping_add(1), Relaxed);
        self.queue[1].store(NO_QUEUE.wrapping_add(1), Relaxed);
        self.status.store(VALID, Release);
    }

    /// Stops being a connection. Only under the lock of its shard.
    pub(super) fn clear(&self) {
        self.status.store(FREE, Release);
        self.generation.store(self.generation.load(Relaxed).wrapping_add(1), Release);
    }
}
