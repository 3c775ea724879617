//! A frame that a guest sends in several buffers, or in one across memory regions.

use hostweave_switch::limits::{BURST_SEGMENTS, FRAME_MAX, HEAD_FIRST, HEADROOM};
use hostweave_switch::packet::Packet;
use hostweave_switch::payload::{Segment, gather};
use hostweave_switch::stage::DropReason;

use crate::fault::Fault;
use crate::offload;
use crate::ring::{Descriptor, SplitRing};

/// The octets of a chain, header included, as segments behind what the arena holds; their number of octets, or some
/// number above what a frame may have. `None` when they do not fit. A chain that is too long is not followed further.
pub(crate) fn collect(
    ring: &SplitRing,
    first: Descriptor,
    arena: &mut Vec<Segment>,
    followed: &mut u32,
) -> Result<Option<usize>, Fault> {
    let mut len = 0;
    let mut full = false;
    let count = ring.walk(first, |descriptor| {
        if descriptor.is_writable() {
            return Err(Fault::WritableInTransmit);
        }
        let inside = ring.memory().parts(descriptor.address, descriptor.len, |part| {
            full |= arena.len() == BURST_SEGMENTS;
            if !full && len <= FRAME_MAX + offload::HEADER_MAX {
                arena.push(part.segment());
                len += part.len();
            }
            true
        });
        let outside = Fault::OutsideMemory { address: descriptor.address, len: descriptor.len };
        if inside { Ok(!full && len <= FRAME_MAX + offload::HEADER_MAX) } else { Err(outside) }
    })?;
    *followed += u32::from(count);
    Ok((!full).then_some(len))
}

/// Copies the first octets of the run that begins at `start` in the arena, and leaves the rest as the payload.
pub(crate) fn fill(
    packet: &mut Packet,
    arena: &mut [Segment],
    start: usize,
    len: usize,
    header_len: usize,
) -> Result<(), DropReason> {
    let copied = len.min(header_len + HEAD_FIRST);
    let into = &mut packet.slot()[HEADROOM - header_len..HEADROOM - header_len + copied];
    if gather(&arena[start..], 0, into) != copied {
        return Err(DropReason::Internal);
    }
    let (mut at, mut left) = (start, copied);
    while let Some(segment) = arena.get_mut(at) {
        if let Some(rest) = segment.skip(left) {
            *segment = rest;
            break;
        }
        left -= segment.len();
        at += 1;
    }
    packet.set_frame(copied - header_len, at, arena.len() - at, len - copied);
    Ok(())
}
