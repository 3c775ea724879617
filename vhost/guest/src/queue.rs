//! A transmit or receive queue: a split ring and the buffers behind it.
//!
//! Every buffer is one *slot* of fixed size. How a slot is cut into descriptors is a [`Split`], so that a test can send
//! the same frame whole, with the header apart, or in pieces of any size, chained or through an indirect table.

use crate::Error;
use crate::features;
use crate::memory::GuestMemory;
use crate::ring::{Piece, RingFeatures, RingLayout, SplitRing, Violation};

/// Octets of the header with `VERSION_1` or `MRG_RXBUF`; without either the last two do not exist.
pub const HEADER_BYTES: usize = 12;

/// Descriptors that one slot is cut into at most.
pub const PIECE_COUNT_MAX: usize = 256;

/// `virtio_net_hdr_v1` (virtio 1.2 §5.1.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// `NEEDS_CSUM` 1, `DATA_VALID` 2.
    pub flags: u8,
    /// 0 none, 1 TCPv4, 4 TCPv6, 5 UDP_L4; 0x80 ECN.
    pub gso_type: u8,
    /// Octets of headers in front of a segment's payload.
    pub hdr_len: u16,
    /// Payload octets of a segment.
    pub gso_size: u16,
    /// Where the checksum begins, from the frame's first octet.
    pub csum_start: u16,
    /// Where to store it, from there.
    pub csum_offset: u16,
    /// Receive: buffers that hold the frame.
    pub num_buffers: u16,
}

impl VnetHeader {
    /// `flags`: the checksum field holds the pseudo header's sum only.
    pub const NEEDS_CSUM: u8 = 1;
    /// `flags`: the checksum was verified.
    pub const DATA_VALID: u8 = 2;
    /// `gso_type`: TCP over IPv4.
    pub const GSO_TCPV4: u8 = 1;
    /// `gso_type`: TCP over IPv6.
    pub const GSO_TCPV6: u8 = 4;
    /// `gso_type`: UDP, either version.
    pub const GSO_UDP_L4: u8 = 5;

    /// The octets in memory.
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        let fields = [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset, self.num_buffers];
        for (i, field) in fields.into_iter().enumerate() {
            bytes[2 + 2 * i..4 + 2 * i].copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    /// Reads the octets back.
    pub fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Self {
        let field = |i: usize| u16::from_le_bytes([bytes[i], bytes[i + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: field(2),
            gso_size: field(4),
            csum_start: field(6),
            csum_offset: field(8),
            num_buffers: field(10),
        }
    }
}

/// How a buffer is cut into descriptors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// Octets of the first pieces; the last number repeats. Empty: one piece. A zero counts as one octet.
    pub sizes: Vec<u32>,
    /// Whether the pieces lie in an indirect table.
    pub indirect: bool,
}

impl Split {
    /// One descriptor for all.
    pub fn whole() -> Self {
        Self::default()
    }

    /// The header in a descriptor of its own, as old drivers do.
    pub fn header_apart() -> Self {
        Self { sizes: vec![HEADER_BYTES as u32, u32::MAX], indirect: false }
    }

    /// Pieces of `bytes` each.
    pub fn every(bytes: u32) -> Self {
        Self { sizes: vec![bytes], indirect: false }
    }

    /// The same through an indirect table.
    pub fn indirect(mut self) -> Self {
        self.indirect = true;
        self
    }

    fn cut(&self, gpa: u64, len: usize, writable: bool, out: &mut Vec<Piece>) {
        out.clear();
        let mut done = 0u32;
        let total = u32::try_from(len).unwrap_or(u32::MAX);
        let mut i = 0;
        while done < total {
            let wish = self.sizes.get(i).or(self.sizes.last()).copied().unwrap_or(u32::MAX).max(1);
            let last = out.len() + 1 == PIECE_COUNT_MAX;
            let len = if last { total - done } else { wish.min(total - done) };
            out.push(Piece { gpa: gpa + u64::from(done), len, writable });
            done += len;
            i += 1;
        }
    }
}

/// Slots of a queue: `count` buffers of `slot_bytes`, and a table for each when chains are indirect.
#[derive(Clone, Copy, Debug)]
pub struct SlotLayout {
    /// First buffer.
    pub gpa: u64,
    /// Number of buffers.
    pub count: u32,
    /// Octets of each.
    pub slot_bytes: usize,
    /// First indirect table.
    pub tables: u64,
}

impl SlotLayout {
    /// Slots from `gpa`, tables first.
    pub fn at(gpa: u64, count: u32, slot_bytes: usize, indirect: bool) -> Self {
        let tables = gpa.next_multiple_of(4096);
        let table_bytes = if indirect { PIECE_COUNT_MAX as u64 * 16 * u64::from(count) } else { 0 };
        Self { gpa: (tables + table_bytes).next_multiple_of(64), count, slot_bytes, tables }
    }

    /// First address behind the slots.
    pub fn end(&self) -> u64 {
        self.gpa + u64::from(self.count) * self.slot_bytes as u64
    }

    fn slot(&self, index: u32) -> u64 {
        self.gpa + u64::from(index) * self.slot_bytes as u64
    }

    fn table(&self, index: u32) -> u64 {
        self.tables + u64::from(index) * (PIECE_COUNT_MAX as u64 * 16)
    }
}

/// Frames from the guest.
#[derive(Debug)]
pub struct TxQueue {
    /// The ring.
    pub ring: SplitRing,
    /// How a frame is cut into descriptors.
    pub split: Split,
    slots: SlotLayout,
    header_bytes: usize,
    free: Vec<u32>,
    pieces: Vec<Piece>,
}

impl TxQueue {
    /// A fresh queue with the negotiated `features`.
    ///
    /// # Errors
    /// When the ring is not in guest memory.
    pub fn new(
        memory: &GuestMemory,
        layout: RingLayout,
        slots: SlotLayout,
        split: Split,
        features: u64,
    ) -> Result<Self, Error> {
        Ok(Self {
            ring: SplitRing::new(memory, layout, ring_features(features))?,
            split,
            slots,
            header_bytes: header_bytes(features),
            free: (0..slots.count).rev().collect(),
            pieces: Vec::new(),
        })
    }

    /// Takes sent buffers back; returns how many.
    pub fn reclaim(&mut self) -> usize {
        let mut count = 0;
        while let Some(used) = self.ring.pop() {
            self.free.push(used.token);
            count += 1;
        }
        count
    }

    /// Writes a frame into a slot and adds it to the ring, unpublished.
    ///
    /// # Errors
    /// [`Error::RingFull`] when the device has all buffers or descriptors; [`Error::FrameTooLong`].
    pub fn push(&mut self, memory: &GuestMemory, header: &VnetHeader, frame: &[u8]) -> Result<(), Error> {
        let room = self.slots.slot_bytes - self.header_bytes;
        if frame.len() > room {
            return Err(Error::FrameTooLong { len: frame.len(), room });
        }
        if self.free.is_empty() {
            self.reclaim();
        }
        let slot = *self.free.last().ok_or(Error::RingFull)?;
        let gpa = self.slots.slot(slot);
        self.split.cut(gpa, self.header_bytes + frame.len(), false, &mut self.pieces);
        let need = if self.split.indirect { 1 } else { self.pieces.len() };
        if self.ring.free_count() < need {
            self.reclaim();
            if self.ring.free_count() < need {
                return Err(Error::RingFull);
            }
        }
        // `reclaim` may have put slots on top of the one chosen.
        let at = self.free.iter().rposition(|&s| s == slot).ok_or(Error::RingFull)?;
        memory.write(gpa, &header.to_bytes()[..self.header_bytes])?;
        memory.write(gpa + self.header_bytes as u64, frame)?;
        let added = if self.split.indirect {
            self.ring.add_indirect(memory, self.slots.table(slot), &self.pieces, slot)?
        } else {
            self.ring.add(&self.pieces, slot)
        };
        if !added {
            return Err(Error::RingFull);
        }
        self.free.swap_remove(at);
        Ok(())
    }

    /// Whether a frame of full size finds a slot and descriptors.
    pub fn has_room(&mut self) -> bool {
        let need = self.descriptors_max();
        if self.free.is_empty() || self.ring.free_count() < need {
            self.reclaim();
        }
        !self.free.is_empty() && self.ring.free_count() >= need
    }

    /// Descriptors of the ring that a full slot takes.
    fn descriptors_max(&mut self) -> usize {
        if self.split.indirect {
            return 1;
        }
        self.split.cut(self.slots.gpa, self.slots.slot_bytes, false, &mut self.pieces);
        self.pieces.len()
    }

    /// Where slot `index` lies: for hostile drivers, which write descriptors by hand.
    pub fn slot_gpa(&self, index: u32) -> u64 {
        self.slots.slot(index % self.slots.count.max(1))
    }
}

/// Frames to the guest.
#[derive(Debug)]
pub struct RxQueue {
    /// The ring.
    pub ring: SplitRing,
    /// How a buffer is cut into descriptors.
    pub split: Split,
    slots: SlotLayout,
    features: u64,
    header_bytes: usize,
    free: Vec<u32>,
    pieces: Vec<Piece>,
    scratch: Vec<u8>,
}

impl RxQueue {
    /// A fresh queue with the negotiated `features`; no buffer is posted yet.
    ///
    /// # Errors
    /// When the ring is not in guest memory.
    pub fn new(
        memory: &GuestMemory,
        layout: RingLayout,
        slots: SlotLayout,
        split: Split,
        features: u64,
    ) -> Result<Self, Error> {
        Ok(Self {
            ring: SplitRing::new(memory, layout, ring_features(features))?,
            split,
            slots,
            features,
            header_bytes: header_bytes(features),
            free: (0..slots.count).rev().collect(),
            pieces: Vec::new(),
            scratch: vec![0; slots.slot_bytes],
        })
    }

    /// Posts free buffers while descriptors last, unpublished; returns how many.
    ///
    /// # Errors
    /// When a buffer is not in guest memory.
    pub fn fill(&mut self, memory: &GuestMemory) -> Result<usize, Error> {
        let mut count = 0;
        while let Some(&slot) = self.free.last() {
            self.split.cut(self.slots.slot(slot), self.slots.slot_bytes, true, &mut self.pieces);
            let added = if self.split.indirect {
                self.ring.free_count() > 0
                    && self.ring.add_indirect(memory, self.slots.table(slot), &self.pieces, slot)?
            } else {
                self.ring.add(&self.pieces, slot)
            };
            if !added {
                break;
            }
            self.free.pop();
            count += 1;
        }
        Ok(count)
    }

    /// Where slot `index` lies: for drivers that handle buffers themselves.
    pub fn slot_gpa(&self, index: u32) -> u64 {
        self.slots.slot(index % self.slots.count.max(1))
    }

    /// Takes the next frame: `frame` is replaced by its octets, without the header.
    ///
    /// # Errors
    /// When a buffer is not in guest memory.
    pub fn pop(&mut self, memory: &GuestMemory, frame: &mut Vec<u8>) -> Result<Option<VnetHeader>, Error> {
        while let Some(first) = self.ring.pop() {
            let header = self.take_buffer(memory, first.token, first.len, frame)?;
            let Some(header) = header else { continue };
            let mergeable = self.features & features::MRG_RXBUF != 0;
            if header.num_buffers == 0 || (!mergeable && header.num_buffers != 1) {
                self.ring.violations.add(Violation::NumBuffers { num: header.num_buffers });
            }
            let more = if mergeable { header.num_buffers.saturating_sub(1) } else { 0 };
            if !self.take_rest(memory, more, frame)? {
                continue;
            }
            self.judge(&header);
            return Ok(Some(header));
        }
        Ok(None)
    }

    /// First buffer of a frame: splits the header off.
    fn take_buffer(
        &mut self,
        memory: &GuestMemory,
        slot: u32,
        len: u32,
        frame: &mut Vec<u8>,
    ) -> Result<Option<VnetHeader>, Error> {
        self.free.push(slot);
        let len = len as usize;
        if len < self.header_bytes {
            self.ring.violations.add(Violation::ShortHeader { len: len as u32 });
            return Ok(None);
        }
        memory.read(self.slots.slot(slot), &mut self.scratch[..len])?;
        let mut bytes = [0; HEADER_BYTES];
        bytes[..self.header_bytes].copy_from_slice(&self.scratch[..self.header_bytes]);
        let mut header = VnetHeader::from_bytes(&bytes);
        if self.header_bytes < HEADER_BYTES {
            header.num_buffers = 1;
        }
        frame.clear();
        frame.extend_from_slice(&self.scratch[self.header_bytes..len]);
        Ok(Some(header))
    }

    /// Further buffers of a merged frame. All were published with the first one (virtio 1.2 §5.1.6.4).
    fn take_rest(&mut self, memory: &GuestMemory, more: u16, frame: &mut Vec<u8>) -> Result<bool, Error> {
        for have in 0..more {
            let Some(used) = self.ring.pop() else {
                self.ring.violations.add(Violation::MissingBuffers { num: more + 1, have: have + 1 });
                return Ok(false);
            };
            self.free.push(used.token);
            let len = used.len as usize;
            memory.read(self.slots.slot(used.token), &mut self.scratch[..len])?;
            frame.extend_from_slice(&self.scratch[..len]);
        }
        Ok(true)
    }

    /// The device must not use an offload which the driver did not accept (virtio 1.2 §5.1.6.4.1).
    fn judge(&mut self, header: &VnetHeader) {
        let has = |bit: u64| self.features & bit != 0;
        let csum_ok = header.flags == 0 || has(features::GUEST_CSUM);
        let gso_ok = match header.gso_type & 0x7f {
            0 => true,
            VnetHeader::GSO_TCPV4 => has(features::GUEST_TSO4),
            VnetHeader::GSO_TCPV6 => has(features::GUEST_TSO6),
            VnetHeader::GSO_UDP_L4 => has(features::GUEST_USO4) || has(features::GUEST_USO6),
            _ => false,
        };
        if !csum_ok || !gso_ok {
            let violation = Violation::NotNegotiated { flags: header.flags, gso_type: header.gso_type };
            self.ring.violations.add(violation);
        }
    }
}

/// Octets of the header under `features`.
pub fn header_bytes(features: u64) -> usize {
    if features & (features::VERSION_1 | features::MRG_RXBUF) != 0 { HEADER_BYTES } else { HEADER_BYTES - 2 }
}

fn ring_features(features: u64) -> RingFeatures {
    RingFeatures { event_idx: features & features::EVENT_IDX != 0, in_order: features & features::IN_ORDER != 0 }
}
