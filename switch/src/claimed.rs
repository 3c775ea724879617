//! Whether somebody else claims an address that is not known to be ours alone. Workers note each claim here, whatever their notes for
//! control may cost: none is overlooked, however many there are.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::MacAddr;

/// Set beside the link address, so that no claim is zero.
const SET: u64 = 1 << 63;

/// Who last claimed an address.
#[derive(Default, Debug)]
pub struct Claimed(AtomicU64);

impl Claimed {
    /// Somebody claims it, from this link address.
    pub fn note(&self, MacAddr([a, b, c, d, e, f]): MacAddr) {
        self.0.store(SET | u64::from_be_bytes([0, 0, a, b, c, d, e, f]), Ordering::Release);
    }

    /// Who has claimed it since this was last asked.
    pub fn take(&self) -> Option<MacAddr> {
        let claim = self.0.swap(0, Ordering::AcqRel);
        let [_, _, a, b, c, d, e, f] = claim.to_be_bytes();
        (claim != 0).then_some(MacAddr([a, b, c, d, e, f]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_told_once_with_who_made_it_last() {
        let claimed = Claimed::default();
        assert_eq!(claimed.take(), None);
        for mac in [MacAddr([2, 0, 0, 0, 0, 1]), MacAddr::default(), MacAddr::BROADCAST] {
            claimed.note(MacAddr([4; 6]));
            claimed.note(mac);
            assert_eq!((claimed.take(), claimed.take()), (Some(mac), None));
        }
    }
}
