//! The split virtqueue, device side (VIRTIO 1.2 §2.7), and nothing about networking.
//!
//! Theory of operation. The available index is read once (Acquire) when the shadow says that nothing is left. Each
//! descriptor is read exactly once, into a local. Used elements are written as buffers are finished, but the driver
//! sees them only when [`SplitRing::publish`] stores the used index, once per burst. Everything the driver writes is
//! hostile: indices are masked or checked, chains end after as many descriptors as the ring has, and the three parts
//! of the ring lie in one region each, checked when the ring starts. A packed ring would be a second type with these
//! same methods.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering, fence};

use crate::fault::Fault;
use crate::memory::{DirtyLog, GuestMemory, Translator, prefetch_write};

/// Largest ring, in descriptors.
pub const RING_SIZE_MAX: u16 = 4096;
/// Entries that an indirect table may have even when the ring is smaller.
const INDIRECT_MAX: u16 = 1024;

const DESC_F_NEXT: u16 = 1;
const DESC_F_WRITE: u16 = 2;
const DESC_F_INDIRECT: u16 = 4;
const AVAIL_F_NO_INTERRUPT: u16 = 1;
const USED_F_NO_NOTIFY: u16 = 1;

/// One descriptor, as it was when it was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Descriptor {
    /// Guest physical address.
    pub address: u64,
    /// Octets.
    pub len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn from_words([address, rest]: [u64; 2]) -> Self {
        Self { address, len: rest as u32, flags: (rest >> 32) as u16, next: (rest >> 48) as u16 }
    }

    /// The whole chain is this one buffer.
    #[inline]
    pub fn is_single(&self) -> bool {
        self.flags & (DESC_F_NEXT | DESC_F_INDIRECT) == 0
    }

    /// The device writes it.
    #[inline]
    pub fn is_writable(&self) -> bool {
        self.flags & DESC_F_WRITE != 0
    }
}

/// Where a ring lies, in the VMM's addresses (`SET_VRING_ADDR`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingAddresses {
    /// Descriptor table.
    pub descriptors: u64,
    /// Driver area.
    pub available: u64,
    /// Device area.
    pub used: u64,
    /// Guest physical address of the used ring for the dirty log, when `VHOST_VRING_F_LOG` is set.
    pub log: Option<u64>,
}

/// Ring addresses that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// Outside the shared memory, or across a region's end.
    #[error("the {part} at VMM address {address:#x} with {len} octets is not inside one shared memory region")]
    Outside {
        /// Which part.
        part: &'static str,
        /// Where.
        address: u64,
        /// Octets.
        len: usize,
    },
    /// Not aligned as VIRTIO 1.2 §2.7 demands.
    #[error("the {part} at VMM address {address:#x} is not aligned to {align} octets")]
    Misaligned {
        /// Which part.
        part: &'static str,
        /// Where.
        address: u64,
        /// Octets.
        align: usize,
    },
}

/// What the driver negotiated that concerns rings.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct RingFeatures {
    /// `VIRTIO_F_EVENT_IDX`.
    pub event_idx: bool,
    /// `VIRTIO_F_INDIRECT_DESC`.
    pub indirect: bool,
}

/// The dirty log as one ring uses it.
pub struct RingLog {
    /// The log.
    pub log: Arc<DirtyLog>,
    /// Guest physical address of the used ring, if the VMM wants it logged.
    pub used: Option<u64>,
}

/// How far a ring is, to go back to when a frame does not fit.
#[derive(Clone, Copy)]
pub struct Position {
    next_avail: u16,
    next_used: u16,
}

/// Pointers to the three parts. Valid while the snapshot that they were made from lives.
#[derive(Clone, Copy)]
struct Parts {
    descriptors: *const [u64; 2],
    available: *const u16,
    used: *mut u16,
}

/// A running split virtqueue.
pub struct SplitRing {
    parts: Parts,
    size: u16,
    mask: u16,
    next_avail: u16,
    /// The available index when it was last read.
    avail_shadow: u16,
    next_used: u16,
    /// The used index that the driver was last shown.
    published: u16,
    features: RingFeatures,
    /// The next publication signals whatever the driver says: it may wait for what a backend before us forgot.
    signal_first: bool,
    /// Whether the driver was last told to kick.
    notify: bool,
    /// A locked operation on a line of ours is the cheapest full fence on x86.
    fence_word: AtomicU32,
    log: Option<RingLog>,
    memory: Translator,
}

// SAFETY: the pointers stay inside mappings that `memory` keeps, and a ring is only used by whoever claimed its queue.
// JUSTIFICATION: raw pointers are not `Send` by themselves.
unsafe impl Send for SplitRing {}

impl SplitRing {
    /// Starts a ring of `size` descriptors (a power of two, at most [`RING_SIZE_MAX`]) at index `base`.
    ///
    /// # Errors
    /// When a part is misaligned or not inside one region.
    pub fn new(
        memory: Arc<GuestMemory>,
        addresses: &RingAddresses,
        size: u16,
        base: u16,
        features: RingFeatures,
    ) -> Result<Self, RingError> {
        debug_assert!(size.is_power_of_two() && size <= RING_SIZE_MAX);
        let parts = Parts::find(&memory, addresses, size, features)?;
        let mut ring = Self {
            parts,
            size,
            mask: size - 1,
            next_avail: base,
            avail_shadow: base,
            next_used: base,
            published: base,
            features,
            signal_first: true,
            notify: true,
            fence_word: AtomicU32::new(0),
            log: None,
            memory: Translator::new(memory),
        };
        // A backend before us may have taken descriptors that it never gave back: in order, so they are those between
        // its used index and `base`. They are taken again (SEMANTICS VU6).
        let used = ring.used_index().load(Ordering::Acquire);
        if base.wrapping_sub(used) <= size {
            (ring.next_avail, ring.avail_shadow, ring.next_used, ring.published) = (used, used, used, used);
        }
        Ok(ring)
    }

    /// Follows the ring into another memory snapshot or to other addresses; indices stay.
    ///
    /// # Errors
    /// As [`SplitRing::new`]; the ring is then unchanged and must be stopped.
    pub fn relocate(&mut self, memory: Arc<GuestMemory>, addresses: &RingAddresses) -> Result<(), RingError> {
        self.publish();
        self.parts = Parts::find(&memory, addresses, self.size, self.features)?;
        self.memory = Translator::new(memory);
        Ok(())
    }

    /// From now on every write to guest memory is logged, or none is. The used ring is marked as a whole, because
    /// what was written before is not known to the log.
    pub fn set_log(&mut self, log: Option<RingLog>) {
        self.log = log;
        if let Some(RingLog { log, used: Some(used) }) = &self.log {
            log.mark(*used, u64::from(self.size) * 8 + 6);
        }
    }

    /// The index for `GET_VRING_BASE`.
    pub fn base(&self) -> u16 {
        self.next_avail
    }

    /// Translates guest addresses.
    #[inline]
    pub fn memory(&self) -> &Translator {
        &self.memory
    }

    /// Marks guest memory as written, if a migration is going on.
    #[inline]
    pub fn log_write(&self, gpa: u64, len: usize) {
        if let Some(log) = &self.log {
            log.log.mark(gpa, len as u64);
        }
    }

    /// Whether the log's or the guest's memory file shrank.
    pub fn poisoned(&self) -> bool {
        self.memory.memory().poisoned() || self.log.as_ref().is_some_and(|log| log.log.poisoned())
    }

    /// How many chains are available. Reads the driver's index only when none is left of the last time.
    ///
    /// # Errors
    /// When the driver's index is impossible.
    #[inline]
    pub fn available(&mut self) -> Result<u16, Fault> {
        match self.avail_shadow.wrapping_sub(self.next_avail) {
            0 => self.refresh(),
            ready => Ok(ready),
        }
    }

    /// How many chains are available by the last reading.
    #[inline]
    pub fn available_hint(&self) -> u16 {
        self.avail_shadow.wrapping_sub(self.next_avail)
    }

    #[inline]
    fn refresh(&mut self) -> Result<u16, Fault> {
        let index = self.avail_index().load(Ordering::Acquire);
        let ahead = index.wrapping_sub(self.next_avail);
        if ahead > self.size {
            return Err(Fault::AvailableIndex { index, next: self.next_avail, ahead, size: self.size });
        }
        self.avail_shadow = index;
        Ok(ahead)
    }

    /// The head of the chain `offset` places after the next one, and its first descriptor. Read once: keep it.
    ///
    /// # Errors
    /// When the head is no descriptor.
    #[inline]
    pub fn peek(&self, offset: u16) -> Result<(u16, Descriptor), Fault> {
        let place = usize::from(self.next_avail.wrapping_add(offset) & self.mask);
        // SAFETY: `place < size`, and the available ring was checked for `size` entries. JUSTIFICATION: guest memory.
        let head = unsafe { self.parts.available.add(2 + place).read_volatile() };
        if head >= self.size {
            return Err(Fault::HeadOutOfRange { head, size: self.size });
        }
        Ok((head, self.descriptor(head)))
    }

    /// One descriptor; `index` must be below the ring's size.
    #[inline]
    fn descriptor(&self, index: u16) -> Descriptor {
        debug_assert!(index < self.size);
        // SAFETY: callers checked `index < size`, and the table was checked for `size` entries and alignment.
        // JUSTIFICATION: guest memory.
        Descriptor::from_words(unsafe { self.parts.descriptors.add(usize::from(index & self.mask)).read_volatile() })
    }

    /// Calls `each` for every buffer of the chain that starts with `first`, in order, until it says that it wants no
    /// more (`false`). Empty buffers are left out. Returns how many descriptors were read.
    ///
    /// # Errors
    /// When the chain itself is bad as far as it was read, or `each` says so.
    #[inline]
    pub fn walk(
        &self,
        first: Descriptor,
        mut each: impl FnMut(Descriptor) -> Result<bool, Fault>,
    ) -> Result<u16, Fault> {
        let mut descriptor = first;
        for count in 1..=self.size {
            if descriptor.flags & DESC_F_INDIRECT != 0 {
                return self.walk_indirect(descriptor, each).map(|indirect| count + indirect);
            }
            if (descriptor.len > 0 && !each(descriptor)?) || descriptor.flags & DESC_F_NEXT == 0 {
                return Ok(count);
            }
            if descriptor.next >= self.size {
                return Err(Fault::NextOutOfRange { next: descriptor.next, size: self.size });
            }
            descriptor = self.descriptor(descriptor.next);
        }
        Err(Fault::ChainTooLong(self.size))
    }

    fn walk_indirect(
        &self,
        table: Descriptor,
        mut each: impl FnMut(Descriptor) -> Result<bool, Fault>,
    ) -> Result<u16, Fault> {
        if !self.features.indirect {
            return Err(Fault::IndirectNotNegotiated);
        }
        if table.flags & DESC_F_NEXT != 0 {
            return Err(Fault::IndirectWithNext);
        }
        let count = match u16::try_from(table.len / 16) {
            Ok(count) if count > 0 && table.len.is_multiple_of(16) && count <= self.size.max(INDIRECT_MAX) => count,
            _ => return Err(Fault::IndirectLength(table.len)),
        };
        let mut index = 0;
        for read in 1..=count {
            let outside = || Fault::OutsideMemory { address: table.address, len: table.len };
            let address = table.address.checked_add(u64::from(index) * 16).ok_or_else(outside)?;
            let slice = self.memory.slice(address, 16).ok_or_else(outside)?;
            // SAFETY: 16 octets inside the mapping, perhaps not aligned. JUSTIFICATION: guest memory, read once.
            let descriptor =
                Descriptor::from_words(unsafe { slice.address().cast::<[u64; 2]>().as_ptr().read_unaligned() });
            if descriptor.flags & DESC_F_INDIRECT != 0 {
                return Err(Fault::IndirectNested);
            }
            if (descriptor.len > 0 && !each(descriptor)?) || descriptor.flags & DESC_F_NEXT == 0 {
                return Ok(read);
            }
            if descriptor.next >= count {
                return Err(Fault::NextOutOfRange { next: descriptor.next, size: count });
            }
            index = descriptor.next;
        }
        Err(Fault::ChainTooLong(count))
    }

    /// Takes the next chain and gives it back with `len` octets written. The driver sees it after
    /// [`SplitRing::publish`].
    #[inline]
    pub fn finish(&mut self, head: u16, len: u32) {
        let place = usize::from(self.next_used & self.mask);
        // SAFETY: `place < size`, and the used ring was checked for `size` elements of 8 octets after 4.
        // JUSTIFICATION: guest memory.
        unsafe {
            let element = self.parts.used.cast::<u8>().add(4 + 8 * place).cast::<u64>();
            element.write_unaligned(u64::from(head) | u64::from(len) << 32);
        }
        self.next_avail = self.next_avail.wrapping_add(1);
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Asks for what a frame needs that is written `offset` chains from now: its buffer's first lines and its used
    /// element. The descriptor is read again when its turn comes, and only that reading counts.
    #[inline]
    pub fn prefetch_ahead(&self, offset: u16) {
        if self.available_hint() > offset
            && let Ok((_, first)) = self.peek(offset)
            && let Some(slice) = self.memory.slice(first.address, first.len)
        {
            slice.prefetch_write();
        }
        self.prefetch_used(offset);
    }

    /// Asks for the line of the used element `offset` places from now, once for each line.
    #[inline]
    pub fn prefetch_used(&self, offset: u16) {
        let place = self.next_used.wrapping_add(offset) & self.mask;
        // Eight elements a line, and they begin 4 octets behind its start.
        if place & 7 == 0 {
            prefetch_write(self.parts.used.wrapping_add(2 + 4 * usize::from(place)).cast(), 65);
        }
    }

    /// How far the ring is.
    #[inline]
    pub fn position(&self) -> Position {
        Position { next_avail: self.next_avail, next_used: self.next_used }
    }

    /// Goes back to where it was; nothing was published since.
    #[cold]
    pub fn rewind(&mut self, position: Position) {
        if self.log.is_some() {
            // Nobody reads these elements, but they were written.
            self.log_used(position.next_used, self.next_used);
        }
        self.next_avail = position.next_avail;
        self.next_used = position.next_used;
    }

    /// Shows the driver everything that was finished: one store of the used index. Says whether the driver wants to
    /// be interrupted.
    #[inline]
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next_used);
        if old == new {
            return false;
        }
        self.used_index().store(new, Ordering::Release);
        self.published = new;
        if self.log.is_some() {
            // After the store: what is marked before it is written may be read, sent and forgotten in between.
            self.log_used(old, new);
        }
        self.full_fence();
        if self.signal_first {
            self.signal_first = false;
            return true;
        }
        if self.features.event_idx {
            // VIRTIO 1.2 §2.7.7.2: interrupt when the used index has passed `used_event`.
            let event = self.read_available(2 + usize::from(self.size));
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.read_available(0) & AVAIL_F_NO_INTERRUPT == 0
        }
    }

    #[cold]
    fn log_used(&self, old: u16, new: u16) {
        let Some(RingLog { log, used: Some(used) }) = &self.log else { return };
        let count = u64::from(new.wrapping_sub(old));
        let first = u64::from(old & self.mask);
        let until_end = count.min(u64::from(self.size) - first);
        log.mark(*used + 2, 2);
        log.mark(*used + 4 + 8 * first, 8 * until_end);
        if count > until_end {
            log.mark(*used + 4, 8 * (count - until_end));
        }
    }

    /// Asks the driver to kick when it makes more available. True when it already has: then do not sleep.
    pub fn enable_notifications(&mut self) -> bool {
        if self.features.event_idx {
            self.write_used(2 + 4 * usize::from(self.size), self.next_avail);
        } else if !self.notify {
            self.write_used(0, 0);
        }
        self.notify = true;
        self.full_fence();
        // An impossible index is found by the next `available`.
        self.avail_index().load(Ordering::Acquire) != self.next_avail
    }

    /// Asks the driver not to kick. With EVENT_IDX the event index simply stays behind, where the driver has passed it.
    pub fn disable_notifications(&mut self) {
        if self.notify {
            self.notify = false;
            if self.features.event_idx {
                self.write_used(2 + 4 * usize::from(self.size), self.next_avail.wrapping_sub(1));
            } else {
                self.write_used(0, USED_F_NO_NOTIFY);
            }
        }
    }

    /// Writes a 16-bit word of the device area, `index` counted in words.
    fn write_used(&mut self, index: usize, value: u16) {
        debug_assert!(index <= 2 + 4 * usize::from(self.size));
        // SAFETY: the device area was checked for all words up to the event index. JUSTIFICATION: guest memory.
        unsafe { self.parts.used.add(index).write_volatile(value) };
        if let Some(RingLog { log, used: Some(used) }) = &self.log {
            log.mark(*used + 2 * index as u64, 2);
        }
    }

    /// Reads a 16-bit word of the driver area.
    #[inline]
    fn read_available(&self, index: usize) -> u16 {
        debug_assert!(index <= 2 + usize::from(self.size));
        // SAFETY: the driver area was checked for all words up to the event index. JUSTIFICATION: guest memory.
        unsafe { self.parts.available.add(index).read_volatile() }
    }

    #[inline]
    fn avail_index(&self) -> &AtomicU16 {
        // SAFETY: inside the driver area, aligned to 2, and only ever reached as an atomic. JUSTIFICATION: guest memory.
        unsafe { AtomicU16::from_ptr(self.parts.available.add(1).cast_mut()) }
    }

    #[inline]
    fn used_index(&self) -> &AtomicU16 {
        // SAFETY: inside the device area, aligned to 2, and only ever reached as an atomic. JUSTIFICATION: guest memory.
        unsafe { AtomicU16::from_ptr(self.parts.used.add(1)) }
    }

    /// Stores before it are seen by the driver before loads after it are done.
    #[inline]
    fn full_fence(&self) {
        if cfg!(target_arch = "x86_64") {
            // `lock add` on a line of ours is a full fence at a ninth of the price of `mfence`.
            self.fence_word.fetch_add(1, Ordering::SeqCst);
        } else {
            fence(Ordering::SeqCst);
        }
    }
}

impl Parts {
    fn find(
        memory: &GuestMemory,
        addresses: &RingAddresses,
        size: u16,
        features: RingFeatures,
    ) -> Result<Self, RingError> {
        let size = usize::from(size);
        // VIRTIO 1.2 §2.7: `used_event` and `avail_event` follow the rings only with EVENT_IDX.
        let event = if features.event_idx { 2 } else { 0 };
        let descriptors = part(memory, "descriptor table", addresses.descriptors, 16 * size, 16)?;
        let available = part(memory, "available ring", addresses.available, 4 + 2 * size + event, 2)?;
        let used = part(memory, "used ring", addresses.used, 4 + 8 * size + event, 4)?;
        Ok(Self { descriptors: descriptors.cast(), available: available.cast(), used: used.cast() })
    }
}

fn part(
    memory: &GuestMemory,
    part: &'static str,
    address: u64,
    len: usize,
    align: usize,
) -> Result<*mut u8, RingError> {
    let outside = || RingError::Outside { part, address, len };
    let gpa = memory.guest_address(address).ok_or_else(outside)?;
    let slice = memory.slice(gpa, len as u32).ok_or_else(outside)?;
    let pointer = slice.address().as_ptr();
    if !(pointer as usize).is_multiple_of(align) {
        return Err(RingError::Misaligned { part, address, align });
    }
    Ok(pointer)
}
