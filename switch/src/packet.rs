//! The one structure that travels through the pipeline, and the burst that holds sixty-four of them.
//!
//! A packet is a *head*, copied once out of the sender's memory, on which everything is decided and rewritten, and a
//! *payload*: segments that stay where they are and are copied once, into the receiver. The head's octets come first
//! on the wire, then the payload's.

use crate::limits::{BURST, BURST_SEGMENTS, HEAD_CAPACITY, HEADROOM};
use crate::payload::{Segment, gather};
use crate::stage::DropReason;
use crate::tables::PortId;

/// `virtio_net_hdr` flags and types (VIRTIO 1.2 §5.1.6).
pub mod virtio_net {
    /// `csum_start` and `csum_offset` are valid: the checksum is partial.
    pub const NEEDS_CSUM: u8 = 1;
    /// The checksum was verified.
    pub const DATA_VALID: u8 = 2;
    /// Not a GSO frame.
    pub const GSO_NONE: u8 = 0;
    /// TCP over IPv4.
    pub const GSO_TCPV4: u8 = 1;
    /// TCP over IPv6.
    pub const GSO_TCPV6: u8 = 4;
    /// UDP segmentation (USO), either IP version.
    pub const GSO_UDP_L4: u8 = 5;
    /// ECN bit, or-ed to a TCP type.
    pub const GSO_ECN: u8 = 0x80;
}

/// What the virtio-net header says, after it was checked against the packet. All offsets count from the first octet
/// of the frame.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Offload {
    /// [`virtio_net::NEEDS_CSUM`] and [`virtio_net::DATA_VALID`].
    pub flags: u8,
    /// One of the `GSO_*` types, possibly with [`virtio_net::GSO_ECN`].
    pub gso_type: u8,
    /// Octets of all headers, of a GSO frame.
    pub hdr_len: u16,
    /// Payload octets a segment.
    pub gso_size: u16,
    /// First octet that the checksum covers.
    pub csum_start: u16,
    /// Where the checksum stands, counted from `csum_start`.
    pub csum_offset: u16,
}

impl Offload {
    /// Whether the transport checksum is partial and must be completed before the wire.
    #[inline]
    pub fn needs_csum(&self) -> bool {
        self.flags & virtio_net::NEEDS_CSUM != 0
    }

    /// Whether nothing is asked, once it was checked ([`crate::offload::check_offload`]) or made by us.
    #[inline]
    pub fn is_none(&self) -> bool {
        self.flags | self.gso_type == 0
    }

    /// Whether the frame stands for several segments.
    #[inline]
    pub fn is_gso(&self) -> bool {
        self.gso_type != virtio_net::GSO_NONE
    }
}

/// Start of each header, in octets from the first octet of the frame; zero where there is none.
#[derive(Clone, Copy, Default, Debug)]
pub struct Layers {
    /// The IPv4 or IPv6 header (or ARP message).
    pub l3: u16,
    /// The transport header; for a fragment that is not the first, the payload.
    pub l4: u16,
    /// First octet after the transport header (TCP options included).
    pub l5: u16,
}

/// Which network protocol a frame carries.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub enum L3 {
    /// Not parsed yet.
    #[default]
    None,
    /// ARP (RFC 826).
    Arp,
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What is known so far. One cache line.
#[derive(Clone, Copy, Debug)]
pub struct Meta {
    /// The port that sent it.
    pub in_port: PortId,
    /// Where it goes, once `route` has decided.
    pub out_port: PortId,
    /// What the sender asks the receiver's side to do.
    pub offload: Offload,
    /// Where the headers are.
    pub layers: Layers,
    /// Which network protocol.
    pub l3: L3,
    /// The transport protocol (IANA number), after extension headers.
    pub proto: u8,
    /// TCP, UDP or SCTP source port, or the ICMP identifier; zero where there is none.
    pub src_port: u16,
    /// TCP, UDP or SCTP destination port; for ICMP type and code.
    pub dst_port: u16,
    /// A fragment (IPv4 or IPv6) that is not the first: there is no transport header.
    pub later_fragment: bool,
    /// Any fragment, the first included.
    pub fragment: bool,
    /// Octets of IP packet by its own header; the rest of the frame is padding.
    pub l3_len: u32,
    /// Symmetric hash of the flow, for the choice of a receive queue.
    pub hash: u32,
    /// Receive queue that the destination uses for this flow, [`crate::flow::NO_QUEUE`] while it has not sent.
    pub queue: u8,
}

const _: () = assert!(size_of::<Meta>() <= 64);

impl Default for Meta {
    fn default() -> Self {
        Self {
            in_port: PortId::NONE,
            out_port: PortId::NONE,
            offload: Offload::default(),
            layers: Layers::default(),
            l3: L3::None,
            proto: 0,
            src_port: 0,
            dst_port: 0,
            later_fragment: false,
            fragment: false,
            l3_len: 0,
            hash: 0,
            queue: crate::flow::NO_QUEUE,
        }
    }
}

/// One frame on its way through the host.
#[repr(align(64))]
pub struct Packet {
    /// What is known so far.
    pub meta: Meta,
    head_len: u16,
    /// Payload segments: a range of the burst's arena.
    segment_first: u32,
    segment_count: u32,
    payload_len: u32,
    head: HeadBuf,
}

#[repr(align(64))]
struct HeadBuf([u8; HEAD_CAPACITY]);

impl Packet {
    fn empty() -> Self {
        Self {
            meta: Meta::default(),
            head_len: 0,
            segment_first: 0,
            segment_count: 0,
            payload_len: 0,
            head: HeadBuf([0; HEAD_CAPACITY]),
        }
    }

    /// The private copy of the first octets of the frame.
    #[inline]
    pub fn head(&self) -> &[u8] {
        &self.head.0[HEADROOM..HEADROOM + usize::from(self.head_len)]
    }

    /// The private copy, to rewrite.
    #[inline]
    pub fn head_mut(&mut self) -> &mut [u8] {
        &mut self.head.0[HEADROOM..HEADROOM + usize::from(self.head_len)]
    }

    /// Octets of the frame: head and payload.
    #[inline]
    pub fn len(&self) -> usize {
        usize::from(self.head_len) + self.payload_len as usize
    }

    /// Whether the frame has no octet at all.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Octets that are not in the head.
    #[inline]
    pub fn payload_len(&self) -> usize {
        self.payload_len as usize
    }

    /// The whole private slot: `rx` copies to it so that the frame's first octet stands at [`HEADROOM`].
    #[inline]
    pub fn slot(&mut self) -> &mut [u8; HEAD_CAPACITY] {
        &mut self.head.0
    }

    /// Says where the frame lies after `rx`: `head_len` octets in the slot at [`HEADROOM`], then the segments
    /// `first..first + count` of the burst's arena with `payload_len` octets.
    #[inline]
    pub fn set_frame(&mut self, head_len: usize, first: usize, count: usize, payload_len: usize) {
        debug_assert!(HEADROOM + head_len <= HEAD_CAPACITY);
        self.head_len = head_len as u16;
        self.segment_first = first as u32;
        self.segment_count = count as u32;
        self.payload_len = payload_len as u32;
    }

    /// The payload, in the burst's arena.
    #[inline]
    pub fn segments<'a>(&self, arena: &'a [Segment]) -> &'a [Segment] {
        let first = self.segment_first as usize;
        &arena[first..first + self.segment_count as usize]
    }

    /// Makes sure that at least `len` octets of the frame are in the head, copying each octet once. At most
    /// [`crate::limits::HEAD_MAX`].
    ///
    /// # Errors
    /// `FrameTooShort` when the frame ends before; `HeadersTooLong` beyond the limit.
    #[inline]
    pub fn extend_head(&mut self, len: usize, arena: &mut [Segment]) -> Result<(), DropReason> {
        if len <= usize::from(self.head_len) {
            return Ok(());
        }
        self.extend_head_slow(len, arena)
    }

    #[cold]
    fn extend_head_slow(&mut self, len: usize, arena: &mut [Segment]) -> Result<(), DropReason> {
        if len > self.len() {
            return Err(DropReason::FrameTooShort);
        }
        if len > crate::limits::HEAD_MAX {
            return Err(DropReason::HeadersTooLong);
        }
        let want = len - usize::from(self.head_len);
        let at = HEADROOM + usize::from(self.head_len);
        let first = self.segment_first as usize;
        let segments = &mut arena[first..first + self.segment_count as usize];
        let got = gather(segments, 0, &mut self.head.0[at..at + want]);
        debug_assert_eq!(got, want);
        self.head_len += want as u16;
        self.payload_len -= want as u32;
        let mut left = want;
        for segment in segments {
            if let Some(rest) = segment.skip(left) {
                *segment = rest;
                break;
            }
            left -= segment.len();
            self.segment_first += 1;
            self.segment_count -= 1;
        }
        Ok(())
    }

    /// Replaces the whole frame by `len` octets of ours, to be written through [`Packet::head_mut`]; what was there
    /// is kept as far as it goes. The payload is gone.
    #[inline]
    pub fn set_head_only(&mut self, len: usize) {
        debug_assert!(HEADROOM + len <= HEAD_CAPACITY);
        self.head_len = len as u16;
        self.segment_count = 0;
        self.payload_len = 0;
    }

    /// Cuts octets behind `len` (Ethernet padding after the IP packet). Does nothing to a shorter frame.
    #[inline]
    pub fn truncate(&mut self, len: usize, arena: &mut [Segment]) {
        if len >= self.len() {
            return;
        }
        let head_len = usize::from(self.head_len).min(len);
        self.head_len = head_len as u16;
        self.payload_len = (len - head_len) as u32;
        let first = self.segment_first as usize;
        let mut left = len - head_len;
        let mut count = 0;
        for segment in &mut arena[first..first + self.segment_count as usize] {
            if left == 0 {
                break;
            }
            *segment = segment.take(left);
            left -= segment.len();
            count += 1;
        }
        self.segment_count = count;
    }

    /// Copies the first octets of the frame, as many as fit. Returns how many.
    pub fn copy_prefix(&self, arena: &[Segment], into: &mut [u8]) -> usize {
        let len = self.len().min(into.len());
        let (head, rest) = into[..len].split_at_mut(len.min(usize::from(self.head_len)));
        head.copy_from_slice(&self.head()[..head.len()]);
        head.len() + gather(self.segments(arena), 0, rest)
    }

    /// Copies the whole frame into `into`. Returns its length, or `None` when it does not fit.
    pub fn copy_frame(&self, arena: &[Segment], into: &mut [u8]) -> Option<usize> {
        let into = into.get_mut(..self.len())?;
        let (head, rest) = into.split_at_mut(usize::from(self.head_len));
        head.copy_from_slice(self.head());
        gather(self.segments(arena), 0, rest);
        Some(self.len())
    }
}

/// The packets of one visit to one source, and the arena their payload segments lie in.
pub struct Burst {
    /// Slots; the first `len` are in use.
    packets: Box<[Packet]>,
    /// Arena of payload segments.
    pub segments: Vec<Segment>,
    len: usize,
}

impl Default for Burst {
    fn default() -> Self {
        Self::new()
    }
}

impl Burst {
    /// Allocates the slots, once for a worker's life.
    pub fn new() -> Self {
        Self {
            packets: (0..BURST).map(|_| Packet::empty()).collect(),
            segments: Vec::with_capacity(BURST_SEGMENTS),
            len: 0,
        }
    }

    /// Forgets all packets. Must happen before the source's memory may go away.
    #[inline]
    pub fn clear(&mut self) {
        self.len = 0;
        self.segments.clear();
    }

    /// Packets in the burst.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether another packet with up to `segments` payload segments fits.
    #[inline]
    pub fn has_room(&self, segments: usize) -> bool {
        self.len < BURST && self.segments.len() + segments <= BURST_SEGMENTS
    }

    /// The next free slot, its metadata reset, together with the arena. Call [`Burst::push`] when it is filled.
    ///
    /// # Panics
    /// When the burst is full.
    #[inline]
    pub fn next_slot(&mut self, in_port: PortId) -> (&mut Packet, &mut Vec<Segment>) {
        let packet = &mut self.packets[self.len];
        packet.meta = Meta { in_port, ..Meta::default() };
        (packet, &mut self.segments)
    }

    /// Keeps what was written to the slot of [`Burst::next_slot`].
    #[inline]
    pub fn push(&mut self) {
        debug_assert!(self.len < BURST);
        self.len += 1;
    }

    /// Lends a frame of ours to `with` as a packet: up to `head_len` octets are copied to the head, the rest stays in
    /// `frame`. The burst must be empty, and is empty afterwards.
    pub fn with_frame<R>(
        &mut self,
        meta: Meta,
        frame: &[u8],
        head_len: usize,
        with: impl FnOnce(&mut Packet, &mut Vec<Segment>) -> R,
    ) -> R {
        debug_assert!(self.is_empty() && self.segments.is_empty());
        let (head, rest) = frame.split_at(frame.len().min(head_len));
        let packet = &mut self.packets[0];
        packet.meta = meta;
        packet.slot()[HEADROOM..HEADROOM + head.len()].copy_from_slice(head);
        self.segments.extend(Segment::lend(rest));
        packet.set_frame(head.len(), 0, self.segments.len(), rest.len());
        let result = with(packet, &mut self.segments);
        self.clear();
        result
    }

    /// One packet and the arena.
    #[inline]
    pub fn packet_mut(&mut self, index: usize) -> (&mut Packet, &mut Vec<Segment>) {
        (&mut self.packets[..self.len][index], &mut self.segments)
    }

    /// The packets.
    #[inline]
    pub fn packets(&self) -> &[Packet] {
        &self.packets[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ptr::NonNull;

    #[allow(unsafe_code, reason = "segments of a test's own buffer")]
    fn filled<'a>(burst: &'a mut Burst, head: &[u8], payload: &[&[u8]]) -> (&'a mut Packet, &'a mut Vec<Segment>) {
        let (packet, arena) = burst.next_slot(PortId(1));
        packet.slot()[HEADROOM..HEADROOM + head.len()].copy_from_slice(head);
        for part in payload {
            // SAFETY: the parts outlive the burst in every test. JUSTIFICATION: there is no other constructor.
            arena.push(unsafe { Segment::new(NonNull::from(*part).cast(), part.len() as u32) });
        }
        packet.set_frame(head.len(), 0, payload.len(), payload.iter().map(|part| part.len()).sum());
        (packet, arena)
    }

    #[test]
    fn extend_head_moves_each_octet_once() {
        let mut burst = Burst::new();
        let (packet, arena) = filled(&mut burst, &[1, 2], &[&[3], &[4, 5, 6]]);
        packet.extend_head(4, arena).unwrap();
        assert_eq!(packet.head(), [1, 2, 3, 4]);
        assert_eq!((packet.len(), packet.payload_len(), packet.segments(arena).len()), (6, 2, 1));
        let mut out = [0xa5; 6];
        assert_eq!(packet.copy_frame(arena, &mut out), Some(6));
        for len in 0..=8 {
            let mut prefix = [0xa5; 8];
            assert_eq!(packet.copy_prefix(arena, &mut prefix[..len]), len.min(6));
            assert_eq!(prefix[..len.min(6)], [1, 2, 3, 4, 5, 6][..len.min(6)]);
        }
        assert_eq!(out, [1, 2, 3, 4, 5, 6]);
        assert_eq!(packet.extend_head(7, arena), Err(DropReason::FrameTooShort));
        packet.extend_head(6, arena).unwrap();
        assert_eq!((packet.payload_len(), packet.segments(arena).len()), (0, 0));
    }

    #[test]
    fn truncate_cuts_head_and_segments() {
        let mut burst = Burst::new();
        let (packet, arena) = filled(&mut burst, &[1, 2], &[&[3], &[4, 5, 6]]);
        packet.truncate(4, arena);
        let mut out = [0xa5; 4];
        assert_eq!(packet.copy_frame(arena, &mut out), Some(4));
        assert_eq!(out, [1, 2, 3, 4]);
        packet.truncate(1, arena);
        assert_eq!((packet.head(), packet.payload_len()), (&[1u8][..], 0));
    }
}
