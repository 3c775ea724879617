//! One frame into receive buffers: in one piece, over several, cut into segments.

use std::cell::{Cell, RefCell};

use hostweave_switch::limits::FRAME_MAX;
use hostweave_switch::packet::{L3, Packet};
use hostweave_switch::payload::Segment;
use hostweave_switch::stage::DropReason;

use crate::fault::Fault;
use crate::features;
use crate::memory::GuestSlice;
use crate::offload::{self, HEADER_MAX, Plan};
use crate::ring::SplitRing;

/// Descriptors that one claim of a receive queue follows. A burst of 64 KiB frames needs 3,000 of 1.5 KiB each.
pub(crate) const DESCRIPTORS_MAX: u32 = 8_192;
/// Where `num_buffers` stands in the header.
const NUM_BUFFERS: usize = 10;

/// Why a frame was not written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refused {
    /// It ends here.
    Drop(DropReason),
    /// The ring is broken.
    Fault(Fault),
}

impl From<DropReason> for Refused {
    fn from(reason: DropReason) -> Self {
        Self::Drop(reason)
    }
}

impl From<Fault> for Refused {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// What the receiver negotiated, and how much it may still cost.
#[derive(Clone, Copy)]
pub(crate) struct Receiver<'a> {
    pub(crate) header_len: usize,
    pub(crate) features: u64,
    /// Descriptors that were followed since the queue was claimed, those of plain single buffers left out.
    pub(crate) followed: &'a Cell<u32>,
}

impl Receiver<'_> {
    /// Writes one frame behind `header`. Nothing is taken from the ring when it does not fit.
    #[inline]
    pub(crate) fn write(
        self,
        ring: &mut SplitRing,
        header: &[u8; HEADER_MAX],
        head: &[u8],
        segments: &[Segment],
    ) -> Result<(), Refused> {
        if ring.available()? == 0 {
            return Err(DropReason::GuestRingFull.into());
        }
        let (index, first) = ring.peek(0)?;
        let payload: usize = segments.iter().map(|segment| segment.len()).sum();
        let len = self.header_len + head.len() + payload;
        if first.is_single()
            && first.is_writable()
            && first.len as usize >= len
            && let Some(slice) = ring.memory().slice(first.address, len as u32)
        {
            if self.header_len == HEADER_MAX {
                slice.write(header);
            } else {
                slice.write(&header[..self.header_len]);
            }
            slice.part(self.header_len, head.len()).write_head(head);
            let mut at = self.header_len + head.len();
            for segment in segments {
                at += slice.write_segment(at, *segment);
            }
            ring.log_write(first.address, len);
            ring.finish(index, len as u32);
            return Ok(());
        }
        self.write_scattered(ring, Source { header: &header[..self.header_len], head, segments, at: 0, left: len })
    }

    /// Over the buffers of a chain, and over several chains with `MRG_RXBUF`. Never inlined: single buffers keep their registers.
    #[inline(never)]
    fn write_scattered(self, ring: &mut SplitRing, mut source: Source<'_>) -> Result<(), Refused> {
        let start = ring.position();
        let result = self.write_chains(ring, &mut source);
        if result.is_err() {
            ring.rewind(start);
        }
        result
    }

    fn write_chains(self, ring: &mut SplitRing, source: &mut Source<'_>) -> Result<(), Refused> {
        let mergeable = self.features & features::MRG_RXBUF != 0;
        // Guest addresses of the two octets of `num_buffers`, known only at the end.
        let mut count_at = [0u64; 2];
        let mut chains = 0u16;
        while source.left > 0 {
            // Whoever posts buffers of one octet makes the sender's worker pay for them, and all who share it.
            if ring.available()? == 0 || self.followed.get() >= DESCRIPTORS_MAX {
                return Err(DropReason::GuestRingFull.into());
            }
            let (index, first) = ring.peek(0)?;
            let before = source.at;
            let followed = ring.walk(first, |buffer| {
                if !buffer.is_writable() {
                    return Err(Fault::ReadOnlyInReceive);
                }
                let wanted = (buffer.len as usize).min(source.left) as u32;
                let mut gpa = buffer.address;
                let inside = ring.memory().parts(buffer.address, wanted, |part| {
                    for (octet, at) in count_at.iter_mut().enumerate() {
                        if let Some(offset) = (NUM_BUFFERS + octet).checked_sub(source.at)
                            && offset < part.len()
                        {
                            *at = gpa + offset as u64;
                        }
                    }
                    source.fill(part);
                    ring.log_write(gpa, part.len());
                    gpa = gpa.wrapping_add(part.len() as u64);
                    true
                });
                let outside = Fault::OutsideMemory { address: buffer.address, len: wanted };
                if inside { Ok(source.left > 0) } else { Err(outside) }
            })?;
            self.followed.set(self.followed.get() + u32::from(followed));
            let written = source.at - before;
            if written == 0 || source.at < self.header_len {
                return Err(Fault::ReceiveChainEmpty(written as u32).into());
            }
            if source.left > 0 && !mergeable {
                return Err(DropReason::GuestBufferTooSmall.into());
            }
            ring.finish(index, written as u32);
            chains += 1;
        }
        if chains > 1 {
            for (gpa, octet) in count_at.into_iter().zip(chains.to_le_bytes()) {
                let outside = Fault::OutsideMemory { address: gpa, len: 1 };
                ring.memory().slice(gpa, 1).ok_or(outside)?.write(&[octet]);
                ring.log_write(gpa, 1);
            }
        }
        Ok(())
    }

    /// A frame with a partial checksum or GSO: whole if the receiver takes that, else in software.
    #[inline(never)]
    pub(crate) fn write_offloaded(
        self,
        ring: &mut SplitRing,
        packet: &Packet,
        arena: &[Segment],
    ) -> Result<Written, Refused> {
        let offload = &packet.meta.offload;
        match offload::plan(offload, packet.meta.l3 == L3::V6, self.features) {
            Plan::Whole(header) => {
                self.write(ring, &header, packet.head(), packet.segments(arena)).map(|()| Written::ONE)
            }
            plan => with_scratch(|scratch| self.write_software(ring, packet, arena, plan, scratch)),
        }
    }

    fn write_software(
        self,
        ring: &mut SplitRing,
        packet: &Packet,
        arena: &[Segment],
        plan: Plan,
        scratch: &mut Scratch,
    ) -> Result<Written, Refused> {
        let len = packet.copy_frame(arena, &mut scratch.frame).ok_or(DropReason::FrameTooLong)?;
        let frame = &mut scratch.frame[..len];
        if plan == Plan::Checksum {
            offload::complete_checksum(frame, &packet.meta.offload)?;
            self.write(ring, &offload::PLAIN, frame, &[])?;
            return Ok(Written::ONE);
        }
        let start = ring.position();
        let mut written = Written { frames: 0, lost: 0 };
        let result = offload::segment(frame, &packet.meta.offload, &mut scratch.segment, |segment| {
            // Once the ring is full, the rest of the frame is lost as on any wire: TCP sees a gap and repairs it.
            match self.write(ring, &offload::PLAIN, segment, &[]) {
                Ok(()) => written.frames += 1,
                Err(Refused::Drop(DropReason::GuestRingFull)) if written.frames > 0 => written.lost += 1,
                Err(refused) => return Err(refused),
            }
            Ok(())
        });
        if let Err(refused) = result {
            ring.rewind(start);
            return Err(refused);
        }
        Ok(written)
    }
}

/// What became of one frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Written {
    /// Frames written.
    pub(crate) frames: u32,
    /// Segments of it for which the ring had no room.
    pub(crate) lost: u32,
}

impl Written {
    /// The frame itself.
    pub(crate) const ONE: Self = Self { frames: 1, lost: 0 };
}

/// A frame behind its header, and how much of it was written.
struct Source<'a> {
    header: &'a [u8],
    head: &'a [u8],
    segments: &'a [Segment],
    at: usize,
    left: usize,
}

impl Source<'_> {
    /// Fills `target`, which is at most as long as what is left.
    fn fill(&mut self, target: GuestSlice<'_>) {
        let mut done = 0;
        let mut skip = self.at;
        for octets in [self.header, self.head] {
            let rest = octets.get(skip..).unwrap_or_default();
            skip = skip.saturating_sub(octets.len());
            let count = rest.len().min(target.len() - done);
            target.part(done, count).write(&rest[..count]);
            done += count;
        }
        for segment in self.segments {
            if done == target.len() {
                break;
            }
            match segment.skip(skip) {
                Some(rest) => {
                    done += target.write_segment(done, rest);
                    skip = 0;
                }
                None => skip -= segment.len(),
            }
        }
        self.at += done;
        self.left -= done;
    }
}

/// Private copies for software offload.
struct Scratch {
    frame: Box<[u8]>,
    segment: Box<[u8]>,
}

/// Lends this thread's scratch buffers: made when a worker first meets a receiver without offloads.
fn with_scratch<R>(with: impl FnOnce(&mut Scratch) -> R) -> R {
    thread_local! {
        static SCRATCH: RefCell<Option<Scratch>> = const { RefCell::new(None) };
    }
    let make = || Scratch { frame: vec![0; FRAME_MAX].into(), segment: vec![0; FRAME_MAX].into() };
    SCRATCH.with_borrow_mut(|scratch| with(scratch.get_or_insert_with(make)))
}
