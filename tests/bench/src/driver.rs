//! The generator's driver: a split ring whose descriptors never change.
//!
//! Descriptor `i` is buffer `i` for ever and element `i` of the available ring names it, so posting a buffer is moving
//! an index. That needs a device which completes in order, as all switches under test do; an element out of order ends
//! the run with an error. One descriptor a frame, no indirection, no notifications unless the switch asks for them.

use anyhow::{Result, bail, ensure};
use hostweave_guest::Nic;
use hostweave_guest::memory::Window;
use hostweave_guest::nic::NicConfig;
use hostweave_guest::queue::HEADER_BYTES;
use hostweave_guest::ring::{Descriptor, RingLayout};

/// Descriptors of every ring under test.
pub const RING_SIZE: u16 = 1024;

/// The parts that both directions share.
struct Ring {
    avail: Window,
    used: Window,
    buffers: Window,
    slot_bytes: usize,
    /// Next index to publish.
    next: u16,
    /// Next used element to look at.
    seen: u16,
    /// Used index read last.
    used_idx: u16,
}

impl Ring {
    fn new(nic: &Nic, layout: RingLayout, buffers: u64, slot_bytes: usize, next: u16) -> Result<Self> {
        let memory = &nic.memory;
        ensure!(layout.size == RING_SIZE, "ring of {}", layout.size);
        Ok(Self {
            avail: memory.window(layout.avail, RingLayout::avail_bytes(layout.size))?,
            used: memory.window(layout.used, RingLayout::used_bytes(layout.size))?,
            buffers: memory.window(buffers, usize::from(layout.size) * slot_bytes)?,
            slot_bytes,
            next,
            seen: 0,
            used_idx: 0,
        })
    }

    /// Buffers that the device gave back and nobody looked at.
    #[inline]
    fn ready(&mut self) -> u16 {
        if self.seen == self.used_idx {
            self.used_idx = self.used.load16_acquire(2);
        }
        self.used_idx.wrapping_sub(self.seen)
    }

    /// The next used element: the buffer's number, which has to be the expected one, and the length.
    #[inline]
    fn take(&mut self) -> Result<(usize, u32)> {
        let slot = usize::from(self.seen % RING_SIZE);
        let id = self.used.load32(4 + 8 * slot);
        let len = self.used.load32(8 + 8 * slot);
        if id as usize != slot {
            bail!("used element {} names buffer {id}: the switch does not complete in order", self.seen);
        }
        self.seen = self.seen.wrapping_add(1);
        Ok((slot, len))
    }

    #[inline]
    fn publish(&mut self, count: u16) {
        self.next = self.next.wrapping_add(count);
        self.avail.store16_release(2, self.next);
    }

    /// Whether the switch sleeps and wants to be woken.
    #[inline]
    fn wants_kick(&self) -> bool {
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        self.used.load16(0) & 1 == 0
    }

    /// No interrupts, and every element names the buffer of its own number.
    fn init(&self) {
        self.avail.store16(0, 1);
        (0..RING_SIZE).for_each(|i| self.avail.store16(4 + 2 * usize::from(i), i));
    }
}

/// One port of the generator: both directions of one card.
pub struct Port {
    /// The card. Its own queues are not used after this.
    pub nic: Nic,
    tx: Ring,
    rx: Ring,
}

impl Port {
    /// What to ask a card for so that it can be driven by this.
    pub fn config(config: &mut NicConfig, frame_bytes: usize, huge: bool) {
        config.ring_size = RING_SIZE;
        config.slot_count = u32::from(RING_SIZE);
        config.tx_slot_bytes = slot_bytes(frame_bytes);
        config.rx_slot_bytes = slot_bytes(frame_bytes);
        config.memory.huge = huge;
    }

    /// Takes a fresh card over.
    pub fn new(nic: Nic) -> Result<Self> {
        let pair = &nic.pairs[0];
        let (rx_layout, tx_layout) = (pair.rx.ring.layout(), pair.tx.ring.layout());
        let (rx_bytes, tx_bytes) = (nic.config.rx_slot_bytes, nic.config.tx_slot_bytes);
        // `Nic::connect` has posted every receive buffer, each in the descriptor of its own number.
        let rx = Ring::new(&nic, rx_layout, pair.rx.slot_gpa(0), rx_bytes, pair.rx.ring.avail_index())?;
        let tx = Ring::new(&nic, tx_layout, pair.tx.slot_gpa(0), tx_bytes, 0)?;
        ensure!(rx.next == RING_SIZE, "{} receive buffers posted", rx.next);
        rx.init();
        tx.init();
        Ok(Self { nic, tx, rx })
    }

    /// Writes the header and frame of transmit buffer `slot` and its descriptor.
    pub fn prepare(&mut self, slot: u16, header: &[u8; HEADER_BYTES], frame: &[u8]) {
        let at = usize::from(slot) * self.tx.slot_bytes;
        self.tx.buffers.write(at, header);
        self.tx.buffers.write(at + HEADER_BYTES, frame);
        let addr = self.nic.pairs[0].tx.slot_gpa(u32::from(slot));
        let len = (HEADER_BYTES + frame.len()) as u32;
        self.nic.pairs[0].tx.ring.write_descriptor(slot, Descriptor { addr, len, flags: 0, next: 0 });
    }

    /// Has descriptor `slot` name the buffer of `other`, which holds the same frame: fewer buffers stay in the caches.
    pub fn share(&mut self, slot: u16, other: u16, frame_bytes: usize) {
        let addr = self.nic.pairs[0].tx.slot_gpa(u32::from(other));
        let len = (HEADER_BYTES + frame_bytes) as u32;
        self.nic.pairs[0].tx.ring.write_descriptor(slot, Descriptor { addr, len, flags: 0, next: 0 });
    }

    /// Number of the transmit buffer that goes next.
    #[inline]
    pub fn next_slot(&self) -> u16 {
        self.tx.next % RING_SIZE
    }

    /// Looks at what was sent; returns how many buffers are free.
    #[inline]
    pub fn reclaim(&mut self) -> Result<u16> {
        for _ in 0..self.tx.ready() {
            self.tx.take()?;
        }
        Ok(RING_SIZE - self.tx.next.wrapping_sub(self.tx.seen))
    }

    /// Asks for the first lines of the next `count` transmit buffers.
    #[inline]
    pub fn prefetch(&self, count: u16) {
        for ahead in 0..count {
            let slot = usize::from(self.tx.next.wrapping_add(ahead) % RING_SIZE);
            self.tx.buffers.prefetch(slot * self.tx.slot_bytes);
            self.tx.buffers.prefetch(slot * self.tx.slot_bytes + 64);
        }
    }

    /// Overwrites octets of the transmit buffer `ahead` places from the next one, from octet `at` of the frame.
    #[inline]
    pub fn patch<const N: usize>(&mut self, ahead: u16, at: usize, octets: &[u8; N]) {
        let slot = usize::from(self.tx.next.wrapping_add(ahead) % RING_SIZE);
        self.tx.buffers.write(slot * self.tx.slot_bytes + HEADER_BYTES + at, octets);
    }

    /// Shows the switch `count` more frames.
    #[inline]
    pub fn send(&mut self, count: u16) -> Result<()> {
        self.tx.publish(count);
        if self.tx.wants_kick() {
            self.nic.pairs[0].tx_kick().write(1)?;
        }
        Ok(())
    }

    /// Calls `check(octets from the buffer's begin, length)` for up to `max` received frames and posts their buffers.
    /// `N` octets are read of each.
    #[inline]
    pub fn receive<const N: usize>(
        &mut self,
        max: u16,
        mut check: impl FnMut(&[u8; N], u32) -> Result<()>,
    ) -> Result<u16> {
        let count = self.rx.ready().min(max);
        for ahead in 0..count {
            let slot = usize::from(self.rx.seen.wrapping_add(ahead) % RING_SIZE);
            (0..N).step_by(64).for_each(|line| self.rx.buffers.prefetch(slot * self.rx.slot_bytes + line));
        }
        for _ in 0..count {
            let (slot, len) = self.rx.take()?;
            let mut octets = [0; N];
            self.rx.buffers.read(slot * self.rx.slot_bytes, &mut octets);
            check(&octets, len)?;
        }
        if count > 0 {
            self.rx.publish(count);
            if self.rx.wants_kick() {
                self.nic.pairs[0].rx_kick().write(1)?;
            }
        }
        Ok(count)
    }

    /// Copies `len` octets of buffer `slot` from this port's transmit buffers to `to`'s receive buffers.
    #[inline]
    pub fn copy_to(&self, to: &Port, slot: usize, len: usize) {
        to.rx.buffers.copy_from(slot * to.rx.slot_bytes, &self.tx.buffers, slot * self.tx.slot_bytes, len);
    }
}

/// Octets of a buffer for frames of `frame_bytes`: whole cache lines, and not a power of two, which would put the
/// first line of every buffer into the same few sets of the caches.
fn slot_bytes(frame_bytes: usize) -> usize {
    let lines = (frame_bytes + HEADER_BYTES).div_ceil(64).max(4) | 1;
    lines * 64
}
