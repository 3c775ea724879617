//! Which link addresses at the uplink delivered parts of known connections lately: whoever sends such a packet from a router's link
//! address is that router, and it is there (the reachability confirmation of RFC 4861 §7.3.1, by traffic instead of questions).
//!
//! Workers note it once per flow and round, off the hit path; a collision of two link addresses only loses a note.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::MacAddr;

/// Link addresses that are remembered at once, of each family.
const SLOTS: usize = 16;

/// Bits of a note that are seconds.
const SECONDS: u32 = 16;

/// The notes: link address in the upper 48 bits, seconds of the monotonic clock in the lower 16; zero is none.
#[derive(Default, Debug)]
pub struct Heard([[AtomicU64; SLOTS]; 2]);

impl Heard {
    /// A packet of a known connection came from `mac`; `now` in seconds of the monotonic clock.
    pub fn note(&self, mac: MacAddr, ipv4: bool, now: u32) {
        let slot = self.slot(mac, ipv4);
        let new = word(mac) << SECONDS | u64::from(now as u16);
        // Many flows say the same: the line stays everybody's.
        if slot.load(Relaxed) != new {
            slot.store(new, Relaxed);
        }
    }

    /// Seconds since the last such packet, if there was one within a few hours.
    pub fn ago(&self, mac: MacAddr, ipv4: bool, now: u32) -> Option<u32> {
        let noted = self.slot(mac, ipv4).load(Relaxed);
        (noted >> SECONDS == word(mac)).then(|| u32::from((now as u16).wrapping_sub(noted as u16)))
    }

    fn slot(&self, mac: MacAddr, ipv4: bool) -> &AtomicU64 {
        &self.0[usize::from(ipv4)][usize::from(mac.0[5]) % SLOTS]
    }
}

fn word(MacAddr([a, b, c, d, e, f]): MacAddr) -> u64 {
    u64::from_be_bytes([0, 0, a, b, c, d, e, f])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_heard_of_whom_and_when() {
        let (heard, a, b) = (Heard::default(), MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 1, 1]));
        assert_eq!(heard.ago(a, true, 5), None);
        heard.note(a, true, 65_534);
        assert_eq!((heard.ago(a, true, 65_534), heard.ago(a, true, 65_540)), (Some(0), Some(6)));
        assert_eq!((heard.ago(a, false, 65_534), heard.ago(b, true, 65_534)), (None, None));
        heard.note(b, true, 65_535);
        assert_eq!((heard.ago(a, true, 65_535), heard.ago(b, true, 65_535)), (None, Some(0)), "they share a slot");
    }
}
