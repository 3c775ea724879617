//! The part of a frame that stays in the sender's memory, and the copies out of it.
//!
//! A [`Segment`] points into memory that a guest may write at any moment (guest RAM) or that is ours (a TAP buffer).
//! It is only ever copied from, octet by octet once, and nothing is decided on it. `unsafe` stands here
//! because `vhost` and `uplink` both make segments and both copy from them, and neither may know the other.

use std::ptr::NonNull;

/// A run of octets of a frame.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    address: NonNull<u8>,
    len: u32,
}

// SAFETY: a segment is an address and a length; whoever made it promised (see `new`) that any thread may read there.
// JUSTIFICATION: bursts live in structures that are handed to a worker's thread when it starts.
unsafe impl Send for Segment {}

impl Segment {
    /// A segment of `len` octets at `address`.
    ///
    /// # Safety
    /// `address..address + len` must be mapped readable, and stay so until the burst that holds the segment is
    /// cleared. It may change under us, but its owner must never be told that it does not (no `&[u8]` over it).
    #[inline]
    pub unsafe fn new(address: NonNull<u8>, len: u32) -> Self {
        Self { address, len }
    }

    /// A segment over octets of ours, for a frame that is lent to the pipeline while `bytes` is borrowed; `None` when
    /// empty. Stays inside this crate, where the borrow is seen to outlive the burst.
    pub(crate) fn lend(bytes: &[u8]) -> Option<Self> {
        let len = u32::try_from(bytes.len()).ok().filter(|len| *len > 0)?;
        // SAFETY: the only caller (`Burst::with_frame`) clears the burst before the borrow of `bytes` ends.
        // JUSTIFICATION: a frame of ours takes the same way as one in guest memory.
        Some(unsafe { Self::new(NonNull::from(bytes).cast(), len) })
    }

    /// Where it starts.
    #[inline]
    pub fn address(self) -> NonNull<u8> {
        self.address
    }

    /// Its length in octets.
    #[inline]
    #[allow(clippy::len_without_is_empty, reason = "an empty segment is never made")]
    pub fn len(self) -> usize {
        self.len as usize
    }

    /// The segment without its first `count` octets; `None` when nothing is left.
    #[inline]
    pub fn skip(self, count: usize) -> Option<Self> {
        if count >= self.len() {
            return None;
        }
        // SAFETY: `count < len`, so the result stays inside the segment that `new` was promised.
        // JUSTIFICATION: pointer arithmetic inside one allocation.
        let address = unsafe { self.address.add(count) };
        Some(Self { address, len: self.len - count as u32 })
    }

    /// The segment cut to at most `count` octets.
    #[inline]
    pub fn take(self, count: usize) -> Self {
        Self { address: self.address, len: self.len.min(count as u32) }
    }

    /// Copies `into.len()` octets from the start of the segment.
    ///
    /// # Panics
    /// When `into` is longer than the segment.
    #[inline]
    pub fn copy_to(self, into: &mut [u8]) {
        assert!(into.len() <= self.len());
        // SAFETY: source is readable for `into.len()` octets (`new`), the destination is ours and cannot overlap
        // guest memory. JUSTIFICATION: guest memory may not be borrowed as a slice.
        unsafe { std::ptr::copy_nonoverlapping(self.address.as_ptr(), into.as_mut_ptr(), into.len()) }
    }
}

/// Copies `into.len()` octets that start `offset` octets into the run of `segments`. Returns how many there were.
pub fn gather(segments: &[Segment], mut offset: usize, into: &mut [u8]) -> usize {
    let mut done = 0;
    for segment in segments {
        let Some(rest) = segment.skip(offset) else {
            offset -= segment.len();
            continue;
        };
        offset = 0;
        let part = rest.take(into.len() - done);
        part.copy_to(&mut into[done..done + part.len()]);
        done += part.len();
        if done == into.len() {
            break;
        }
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(bytes: &[u8]) -> Segment {
        // SAFETY: tests keep the slice alive longer than the segment. JUSTIFICATION: there is no other constructor.
        unsafe { Segment::new(NonNull::from(bytes).cast(), bytes.len() as u32) }
    }

    #[test]
    fn gather_crosses_segments_and_stops_at_the_end() {
        let (a, b) = ([1, 2, 3], [4, 5]);
        let segments = [segment(&a), segment(&b)];
        let mut out = [0xa5; 4];
        assert_eq!(gather(&segments, 1, &mut out), 4);
        assert_eq!(out, [2, 3, 4, 5]);
        let mut out = [0xa5; 4];
        assert_eq!(gather(&segments, 3, &mut out), 2);
        assert_eq!(out, [4, 5, 0xa5, 0xa5]);
        assert_eq!(gather(&segments, 5, &mut out), 0);
    }
}
