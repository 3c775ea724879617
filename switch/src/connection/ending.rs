//! Why a connection ends, and who is told.

use std::sync::OnceLock;

use super::record::Entry;

/// Why a connection is not there any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// Nothing was heard of it for its timeout.
    Expired,
    /// It made room for a newer one: of the port that it counts for, or, where that one has more than its share and nobody had
    /// answered it, of another that has not.
    Evicted,
    /// Its tuple was used anew: a SYN on a TCP connection that had ended.
    Reopened,
    /// Policy does not allow it any more.
    Denied,
    /// A port or an address of it is gone, or another's.
    Gone,
    /// Somebody asked for it.
    Flushed,
}

/// Told of a connection that ends: the slot of the port that it counts for, why, and its values for who wants them.
pub type OnEnd = Box<dyn Fn(u32, Ending, &dyn Fn() -> Option<Entry>) + Send + Sync>;

/// Who is told.
#[derive(Default)]
pub(super) struct Listener(OnceLock<OnEnd>);

impl Listener {
    pub(super) fn set(&self, told: OnEnd) {
        // A second one would hear nothing.
        let first = self.0.set(told).is_ok();
        debug_assert!(first);
    }

    /// The record is still valid, and its shard locked.
    #[inline]
    pub(super) fn tell(&self, payer: u32, why: Ending, entry: &dyn Fn() -> Option<Entry>) {
        if let Some(told) = self.0.get() {
            told(payer, why, entry);
        }
    }
}
