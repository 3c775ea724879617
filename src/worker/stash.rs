//! Packets whose destination queue another thread held when their burst ended.
//!
//! A copy of the whole frame in buffers that were allocated when the worker started, kept in order, retried at the
//! end of this and the next burst, then dropped as `guest_ring_busy`. Bounded in frames, in octets by its two sizes
//! of buffer, and per destination by time.

use std::time::{Duration, Instant};

use hostweave_switch::limits::{FRAME_MAX, HEAD_FIRST};
use hostweave_switch::packet::{Burst, Meta, Packet};
use hostweave_switch::payload::Segment;
use hostweave_switch::tables::PortId;

/// Frames of up to [`SMALL_OCTETS`].
const SMALL_FRAMES: usize = 192;
/// Octets of a small buffer.
const SMALL_OCTETS: usize = 2_048;
/// GSO and jumbo frames.
const LARGE_FRAMES: usize = 16;
/// How long a frame may wait. A holder is a worker's burst or a control operation, both of microseconds, unless the
/// kernel took the CPU from it: then it is a few time slices of other threads.
const AGE_MAX: Duration = Duration::from_millis(50);

/// One frame, copied.
struct Kept {
    to: PortId,
    meta: Meta,
    since: Instant,
    buffer: Box<[u8]>,
    len: usize,
}

/// The stash of one worker.
pub struct Stash {
    waiting: Vec<Kept>,
    small: Vec<Box<[u8]>>,
    large: Vec<Box<[u8]>>,
    /// Slot for the frame that is being retried.
    slot: Burst,
}

/// What the destination said to a retried frame.
pub enum Retry {
    /// Gone: written, or dropped and counted.
    Over,
    /// Still busy.
    Busy,
}

impl Stash {
    /// Allocates all buffers. A single worker has nobody to wait for but control, and gets the same.
    pub fn new() -> Self {
        let buffers = |count: usize, octets: usize| (0..count).map(|_| vec![0; octets].into_boxed_slice()).collect();
        Self {
            waiting: Vec::with_capacity(SMALL_FRAMES + LARGE_FRAMES),
            small: buffers(SMALL_FRAMES, SMALL_OCTETS),
            large: buffers(LARGE_FRAMES, FRAME_MAX),
            slot: Burst::new(),
        }
    }

    /// Whether nothing waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether a frame for `to` waits.
    pub fn holds(&self, to: PortId) -> bool {
        self.waiting.iter().any(|entry| entry.to == to)
    }

    /// Keeps a copy of `packet` for `to`. False when there is no room.
    pub fn push(&mut self, packet: &Packet, arena: &[Segment], to: PortId, now: Instant) -> bool {
        let pool = if packet.len() <= SMALL_OCTETS { &mut self.small } else { &mut self.large };
        let Some(mut buffer) = pool.pop() else { return false };
        match packet.copy_frame(arena, &mut buffer) {
            Some(len) => {
                self.waiting.push(Kept { to, meta: packet.meta, since: now, buffer, len });
                true
            }
            None => {
                self.give_back(buffer);
                false
            }
        }
    }

    /// Offers every waiting frame again, in order. A frame behind a busy one of the same destination waits with it.
    /// `expired` is told of frames that waited too long, and for whom.
    pub fn retry(
        &mut self,
        now: Instant,
        mut offer: impl FnMut(&Packet, &[Segment], PortId) -> Retry,
        mut expired: impl FnMut(&Packet, PortId),
    ) {
        let mut kept = 0;
        for index in 0..self.waiting.len() {
            let entry = &self.waiting[index];
            let behind = self.waiting[..kept].iter().any(|earlier| earlier.to == entry.to);
            let to = entry.to;
            let over = if now.saturating_duration_since(entry.since) > AGE_MAX {
                let frame = &entry.buffer[..entry.len];
                self.slot.with_frame(entry.meta, frame, HEAD_FIRST, |packet, _| expired(packet, to));
                true
            } else {
                !behind && matches!(Self::offer_one(&mut self.slot, entry, &mut offer), Retry::Over)
            };
            if !over {
                self.waiting.swap(kept, index);
                kept += 1;
            }
        }
        while self.waiting.len() > kept {
            if let Some(entry) = self.waiting.pop() {
                self.give_back(entry.buffer);
            }
        }
    }

    fn offer_one(
        slot: &mut Burst,
        entry: &Kept,
        offer: &mut impl FnMut(&Packet, &[Segment], PortId) -> Retry,
    ) -> Retry {
        let frame = &entry.buffer[..entry.len];
        slot.with_frame(entry.meta, frame, HEAD_FIRST, |packet, arena| offer(packet, arena, entry.to))
    }

    fn give_back(&mut self, buffer: Box<[u8]>) {
        if buffer.len() == SMALL_OCTETS { self.small.push(buffer) } else { self.large.push(buffer) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(stash: &mut Stash, octet: u8, len: usize, to: u32, now: Instant) -> bool {
        let frame = vec![octet; len];
        let mut burst = Burst::new();
        burst
            .with_frame(Meta::default(), &frame, HEAD_FIRST, |packet, arena| stash.push(packet, arena, PortId(to), now))
    }

    #[test]
    fn retries_in_order_and_keeps_order_behind_a_busy_destination() {
        let (mut stash, now) = (Stash::new(), Instant::now());
        for (octet, to) in [(1, 1), (2, 2), (3, 1), (4, 2)] {
            assert!(push(&mut stash, octet, 3_000 * usize::from(octet), to, now));
        }
        assert!(stash.holds(PortId(1)) && !stash.holds(PortId(3)));
        let mut seen = Vec::new();
        stash.retry(
            now,
            |packet, arena, to| {
                let mut frame = vec![0; packet.len()];
                packet.copy_frame(arena, &mut frame).unwrap();
                assert!(frame.iter().all(|octet| *octet == frame[0]));
                seen.push((frame[0], frame.len()));
                if to == PortId(1) { Retry::Busy } else { Retry::Over }
            },
            |_, _| panic!("nothing is old"),
        );
        assert_eq!(seen, [(1, 3_000), (2, 6_000), (4, 12_000)]);
        seen.clear();
        stash.retry(
            now,
            |packet, _, _| {
                seen.push((packet.head()[0], packet.len()));
                Retry::Over
            },
            |_, _| panic!("nothing is old"),
        );
        assert_eq!(seen, [(1, 3_000), (3, 9_000)]);
        assert!(stash.is_empty());
    }

    #[test]
    fn full_stash_refuses_and_old_frames_expire() {
        let (mut stash, now) = (Stash::new(), Instant::now());
        let kept = (0..SMALL_FRAMES + 10).filter(|_| push(&mut stash, 1, 64, 1, now)).count();
        assert_eq!(kept, SMALL_FRAMES);
        let mut expired = 0;
        stash.retry(now + AGE_MAX * 2, |_, _, _| panic!("too old to offer"), |_, _| expired += 1);
        assert_eq!(expired, SMALL_FRAMES);
        assert!(stash.is_empty());
        assert!(push(&mut stash, 1, 64, 1, now), "buffers came back");
    }
}
