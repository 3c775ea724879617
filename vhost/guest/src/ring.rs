//! Split virtqueue, driver side (virtio 1.2 §2.7).
//!
//! Theory of operation. `add` takes descriptors off the free list, writes a chain (or one descriptor that points to an
//! indirect table, which the caller owns) and puts its head into the available ring, unseen as yet. `publish` moves the
//! available index with release order and tells whether the device wants a kick. `pop` takes what the device has used.
//!
//! The ring is a judge: every used element is checked (an id that is outstanding, exactly once; a length the chain can
//! hold; an index that does not run ahead) and every breach is kept as a [`Violation`]. The free list is first in, first
//! out, so descriptors are used in table order while the device completes in order, which is what IN_ORDER asks for.

use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::{
    VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_USED_F_NO_NOTIFY,
};

use crate::Error;
use crate::memory::{GuestMemory, Window};

/// Octets of one descriptor.
pub const DESC_BYTES: usize = 16;

/// Breaches that a ring remembers; later ones are only counted.
pub const VIOLATION_COUNT_MAX: usize = 32;

/// Where a ring's three parts lie in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingLayout {
    /// Number of descriptors, a power of two.
    pub size: u16,
    /// Descriptor table.
    pub desc: u64,
    /// Available ring.
    pub avail: u64,
    /// Used ring.
    pub used: u64,
}

impl RingLayout {
    /// The parts one after the other from `gpa`, each on a page of its own.
    pub fn at(size: u16, gpa: u64) -> Self {
        let desc = gpa.next_multiple_of(4096);
        let avail = (desc + 16 * u64::from(size)).next_multiple_of(4096);
        let used = (avail + Self::avail_bytes(size) as u64).next_multiple_of(4096);
        Self { size, desc, avail, used }
    }

    /// First address behind the ring.
    pub fn end(&self) -> u64 {
        self.used + Self::used_bytes(self.size) as u64
    }

    /// Octets of the available ring, event field included.
    pub fn avail_bytes(size: u16) -> usize {
        6 + 2 * usize::from(size)
    }

    /// Octets of the used ring, event field included.
    pub fn used_bytes(size: u16) -> usize {
        6 + 8 * usize::from(size)
    }
}

/// What was negotiated about rings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingFeatures {
    /// `VIRTIO_F_EVENT_IDX`.
    pub event_idx: bool,
    /// `VIRTIO_F_IN_ORDER`.
    pub in_order: bool,
}

/// One buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Guest physical address.
    pub gpa: u64,
    /// Octets.
    pub len: u32,
    /// Whether the device writes it.
    pub writable: bool,
}

/// One descriptor as it stands in a table: for drivers that do not keep to the rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest physical address.
    pub addr: u64,
    /// Octets.
    pub len: u32,
    /// `NEXT` 1, `WRITE` 2, `INDIRECT` 4.
    pub flags: u16,
    /// Next descriptor of the chain.
    pub next: u16,
}

impl Descriptor {
    /// The octets in memory.
    pub fn to_bytes(self) -> [u8; DESC_BYTES] {
        let mut bytes = [0; DESC_BYTES];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }

    /// Reads the octets back.
    pub fn from_bytes(bytes: &[u8; DESC_BYTES]) -> Self {
        let all = u128::from_le_bytes(*bytes);
        Self { addr: all as u64, len: (all >> 64) as u32, flags: (all >> 96) as u16, next: (all >> 112) as u16 }
    }
}

/// A chain which the device gave back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// What the driver called the chain.
    pub token: u32,
    /// Octets that the device says it wrote; already checked against the chain.
    pub len: u32,
}

/// Something a device must not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The used index moved further than buffers are outstanding.
    #[error("used index {index} is {ahead} ahead with {outstanding} buffers outstanding")]
    UsedIndex {
        /// The index read.
        index: u16,
        /// Distance from the last one handled.
        ahead: u16,
        /// Buffers that the device has.
        outstanding: u16,
    },
    /// The id is not the head of an outstanding chain.
    #[error("used id {id} is not outstanding")]
    UsedId {
        /// The id read.
        id: u32,
    },
    /// More octets than the chain can take.
    #[error("used length {len} exceeds the chain's {room}")]
    UsedLen {
        /// The length read.
        len: u32,
        /// Octets the device may write there.
        room: u32,
    },
    /// With IN_ORDER: not the oldest outstanding chain, nor the end of a batch from there.
    #[error("used id {id} out of order, expected {expected}")]
    OutOfOrder {
        /// The id read.
        id: u32,
        /// The oldest outstanding head.
        expected: u16,
    },
    /// `num_buffers` says more buffers than were used.
    #[error("num_buffers {num} but only {have} used")]
    MissingBuffers {
        /// The number in the header.
        num: u16,
        /// Used elements that were there.
        have: u16,
    },
    /// `num_buffers` is 0, or not 1 without MRG_RXBUF.
    #[error("num_buffers {num} is wrong")]
    NumBuffers {
        /// The number in the header.
        num: u16,
    },
    /// The used length does not even hold the header.
    #[error("used length {len} is shorter than the header")]
    ShortHeader {
        /// The length read.
        len: u32,
    },
    /// A header field needs an offload which the driver did not accept.
    #[error("header flags {flags:#x} and gso_type {gso_type:#x} were not negotiated")]
    NotNegotiated {
        /// `flags` of the header.
        flags: u8,
        /// `gso_type` of the header.
        gso_type: u8,
    },
}

/// Breaches seen on a ring: the first few, and how many in all.
#[derive(Clone, Debug, Default)]
pub struct Violations {
    /// The first [`VIOLATION_COUNT_MAX`].
    pub list: Vec<Violation>,
    /// All of them.
    pub count: u64,
}

impl Violations {
    /// Remembers one.
    pub fn add(&mut self, violation: Violation) {
        self.count += 1;
        if self.list.len() < VIOLATION_COUNT_MAX {
            self.list.push(violation);
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Chain {
    outstanding: bool,
    count: u16,
    writable: u32,
    token: u32,
}

/// One split ring and the driver's private state of it.
#[derive(Debug)]
pub struct SplitRing {
    layout: RingLayout,
    features: RingFeatures,
    desc: Window,
    avail: Window,
    used: Window,
    mask: u16,
    avail_idx: u16,
    published_idx: u16,
    last_used: u16,
    used_cache: u16,
    free: VecDeque<u16>,
    next: Vec<u16>,
    chains: Vec<Chain>,
    order: VecDeque<u16>,
    batch: VecDeque<Used>,
    outstanding: u16,
    /// What the device did wrong.
    pub violations: Violations,
}

impl SplitRing {
    /// A fresh ring; its memory is zeroed.
    ///
    /// # Errors
    /// When a part does not lie in one region.
    pub fn new(memory: &GuestMemory, layout: RingLayout, features: RingFeatures) -> Result<Self, Error> {
        let size = usize::from(layout.size);
        let desc = memory.window(layout.desc, size * DESC_BYTES)?;
        let avail = memory.window(layout.avail, RingLayout::avail_bytes(layout.size))?;
        let used = memory.window(layout.used, RingLayout::used_bytes(layout.size))?;
        for window in [&desc, &avail, &used] {
            window.write(0, &vec![0; window.len()]);
        }
        Ok(Self {
            layout,
            features,
            desc,
            avail,
            used,
            mask: layout.size.wrapping_sub(1),
            avail_idx: 0,
            published_idx: 0,
            last_used: 0,
            used_cache: 0,
            free: (0..layout.size).collect(),
            next: vec![0; size],
            chains: vec![Chain::default(); size],
            order: VecDeque::with_capacity(size),
            batch: VecDeque::new(),
            outstanding: 0,
            violations: Violations::default(),
        })
    }

    /// Where the ring lies.
    pub fn layout(&self) -> RingLayout {
        self.layout
    }

    /// Descriptors that can still be taken.
    #[inline]
    pub fn free_count(&self) -> usize {
        self.free.len()
    }

    /// Chains that the device has, published or not.
    #[inline]
    pub fn outstanding(&self) -> u16 {
        self.outstanding
    }

    /// Writes one descriptor as it is, whatever it says. For hostile drivers.
    pub fn write_descriptor(&self, index: u16, descriptor: Descriptor) {
        self.desc.write(usize::from(index) * DESC_BYTES, &descriptor.to_bytes());
    }

    /// Puts any head into the available ring, without a chain behind it. For hostile drivers.
    pub fn offer_raw(&mut self, head: u16) {
        self.avail.store16(4 + 2 * usize::from(self.avail_idx & self.mask), head);
        self.avail_idx = self.avail_idx.wrapping_add(1);
    }

    /// Moves the available index by `by` without filling the elements between. For hostile drivers.
    pub fn jump_avail(&mut self, by: u16) {
        self.avail_idx = self.avail_idx.wrapping_add(by);
    }

    /// Adds a chain of `pieces`; false, and nothing done, when there are too few descriptors.
    #[inline]
    pub fn add(&mut self, pieces: &[Piece], token: u32) -> bool {
        if pieces.is_empty() || self.free.len() < pieces.len() {
            return false;
        }
        let Some(head) = self.free.pop_front() else { return false };
        let mut writable = 0u32;
        let mut index = head;
        for (i, piece) in pieces.iter().enumerate() {
            let last = i + 1 == pieces.len();
            let next = if last { 0 } else { self.free.pop_front().unwrap_or(0) };
            let flags = if last { 0 } else { VRING_DESC_F_NEXT as u16 }
                | if piece.writable { VRING_DESC_F_WRITE as u16 } else { 0 };
            self.put(index, piece.gpa, piece.len, flags, next);
            self.next[usize::from(index)] = next;
            if piece.writable {
                writable = writable.saturating_add(piece.len);
            }
            index = next;
        }
        self.offer(head, pieces.len() as u16, writable, token);
        true
    }

    /// Adds one descriptor that points to a table at `table` with `pieces` in it; false when none is free.
    ///
    /// # Errors
    /// When the table is not guest memory.
    pub fn add_indirect(
        &mut self,
        memory: &GuestMemory,
        table: u64,
        pieces: &[Piece],
        token: u32,
    ) -> Result<bool, Error> {
        let mut bytes = Vec::with_capacity(pieces.len() * DESC_BYTES);
        for (i, piece) in pieces.iter().enumerate() {
            let last = i + 1 == pieces.len();
            let flags = if last { 0 } else { VRING_DESC_F_NEXT as u16 }
                | if piece.writable { VRING_DESC_F_WRITE as u16 } else { 0 };
            let next = if last { 0 } else { (i + 1) as u16 };
            bytes.extend(Descriptor { addr: piece.gpa, len: piece.len, flags, next }.to_bytes());
        }
        memory.write(table, &bytes)?;
        let Some(head) = self.free.pop_front() else { return Ok(false) };
        self.put(head, table, bytes.len() as u32, VRING_DESC_F_INDIRECT as u16, 0);
        let writable = pieces.iter().filter(|p| p.writable).map(|p| p.len).fold(0, u32::saturating_add);
        self.offer(head, 1, writable, token);
        Ok(true)
    }

    #[inline]
    fn put(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = usize::from(index) * DESC_BYTES;
        self.desc.store64(at, addr);
        self.desc.store64(at + 8, u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48);
    }

    #[inline]
    fn offer(&mut self, head: u16, count: u16, writable: u32, token: u32) {
        self.chains[usize::from(head)] = Chain { outstanding: true, count, writable, token };
        self.outstanding += 1;
        if self.features.in_order {
            self.order.push_back(head);
        }
        self.offer_raw(head);
    }

    /// Shows the device everything added so far. True when it wants a kick for it (virtio 1.2 §2.7.13.4).
    #[inline]
    pub fn publish(&mut self) -> bool {
        let old = self.published_idx;
        let new = self.avail_idx;
        if old == new {
            return false;
        }
        self.avail.store16_release(2, new);
        self.published_idx = new;
        // The index must be visible before the device's wish is read: it may be about to sleep.
        fence(Ordering::SeqCst);
        if self.features.event_idx {
            let event = self.used.load16(4 + 8 * usize::from(self.layout.size));
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.used.load16(0) & VRING_USED_F_NO_NOTIFY as u16 == 0
        }
    }

    /// Takes the oldest chain that the device gave back.
    #[inline]
    pub fn pop(&mut self) -> Option<Used> {
        if let Some(used) = self.batch.pop_front() {
            return Some(used);
        }
        while self.last_used != self.used_cache || self.refresh() {
            let at = 4 + 8 * usize::from(self.last_used & self.mask);
            let element = self.used.load32(at);
            let len = self.used.load32(at + 4);
            if self.features.in_order {
                if let Some(used) = self.pop_in_order(element, len) {
                    return Some(used);
                }
                continue;
            }
            self.last_used = self.last_used.wrapping_add(1);
            match u16::try_from(element).ok().filter(|&h| self.is_outstanding(h)) {
                Some(head) => return Some(self.release(head, len)),
                None => self.violations.add(Violation::UsedId { id: element }),
            }
        }
        None
    }

    /// Used elements that are there, without taking one.
    #[inline]
    pub fn used_count(&mut self) -> usize {
        self.refresh();
        self.batch.len() + usize::from(self.used_cache.wrapping_sub(self.last_used))
    }

    /// Reads the used index; true when there is something new.
    #[inline]
    fn refresh(&mut self) -> bool {
        let index = self.used.load16_acquire(2);
        let ahead = index.wrapping_sub(self.last_used);
        if ahead > self.outstanding {
            let outstanding = self.outstanding;
            if index != self.used_cache {
                self.violations.add(Violation::UsedIndex { index, ahead, outstanding });
            }
            self.used_cache = self.last_used;
            return false;
        }
        self.used_cache = index;
        ahead != 0
    }

    /// With IN_ORDER one element may stand for a batch: it names the last chain (virtio 1.2 §2.7.11).
    fn pop_in_order(&mut self, element: u32, len: u32) -> Option<Used> {
        let at = self.order.iter().position(|&head| u32::from(head) == element);
        let ready = usize::from(self.used_cache.wrapping_sub(self.last_used));
        let Some(at) = at.filter(|&at| at < ready) else {
            let expected = self.order.front().copied().unwrap_or(u16::MAX);
            self.violations.add(Violation::OutOfOrder { id: element, expected });
            self.last_used = self.last_used.wrapping_add(1);
            return None;
        };
        for i in 0..=at {
            let Some(head) = self.order.pop_front() else { break };
            // Chains skipped in a batch count as written completely.
            let len = if i == at { len } else { self.chains[usize::from(head)].writable };
            let used = self.release(head, len);
            self.batch.push_back(used);
            self.last_used = self.last_used.wrapping_add(1);
        }
        self.batch.pop_front()
    }

    #[inline]
    fn is_outstanding(&self, head: u16) -> bool {
        self.chains.get(usize::from(head)).is_some_and(|chain| chain.outstanding)
    }

    #[inline]
    fn release(&mut self, head: u16, len: u32) -> Used {
        let chain = self.chains[usize::from(head)];
        self.chains[usize::from(head)].outstanding = false;
        self.outstanding -= 1;
        let mut index = head;
        for _ in 0..chain.count {
            self.free.push_back(index);
            index = self.next[usize::from(index)];
        }
        if len > chain.writable {
            self.violations.add(Violation::UsedLen { len, room: chain.writable });
        }
        Used { token: chain.token, len: len.min(chain.writable) }
    }

    /// Asks the device to interrupt when it has used something, or not to.
    /// After switching on, look at the ring once more before sleeping.
    pub fn set_interrupts(&mut self, on: bool) {
        if self.features.event_idx {
            let event = if on { self.last_used } else { self.last_used.wrapping_sub(1) };
            self.avail.store16(4 + 2 * usize::from(self.layout.size), event);
        } else {
            self.avail.store16(0, if on { 0 } else { VRING_AVAIL_F_NO_INTERRUPT as u16 });
        }
        fence(Ordering::SeqCst);
    }

    /// Index from which a new backend has to go on when the old one died: everything before it was used.
    pub fn base_from_memory(&self) -> u16 {
        self.used.load16_acquire(2)
    }

    /// Index of the next chain to be published.
    pub fn avail_index(&self) -> u16 {
        self.published_idx
    }

    /// The used ring as octets, to see whether it is still being written.
    pub fn used_snapshot(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.used.len()];
        self.used.read(0, &mut bytes);
        bytes
    }
}
