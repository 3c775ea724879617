//! Where a worker's packets come from, and which of those places it polls now.
//!
//! ```text
//!            started, kick, frames            no packet for 100 µs, ring looked at once more
//!   Idle ───────────────────────────► Hot ───────────────────────────────────────────────► Cold
//!    ▲                                 │ ▲                                                   │
//!    └───────── ring stopped ──────────┴─┼──────────────────── kick ─────────────────────────┘
//! ```
//!
//! *Idle*: nothing to poll and no kick to wait for. *Hot*: polled in every loop, the guest is told not to kick.
//! *Cold*: a kick on the eventfd, which the `io_uring` polls, makes it hot again. Tokens carry a generation, so that a completion that was on
//! its way when a source left cannot speak for its successor.

use std::collections::HashMap;
use std::time::Instant;

use hostweave_uplink::uring::Uring;

use super::idle::HOT;
use crate::fabric::plane::{Source, SourceKey};

/// Whether a source is polled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Idle,
    Hot,
    Cold,
}

struct Entry {
    key: SourceKey,
    source: Source,
    state: State,
    /// Last packet; `None` until the first visit.
    last: Option<Instant>,
    /// The guest was told not to kick.
    quiet: bool,
    /// It has no kick (VHOST_USER_SET_VRING_KICK without a file descriptor), and had no packet lately.
    polled: bool,
    generation: u32,
}

/// The sources of one worker.
#[derive(Default)]
pub struct Sources {
    entries: Vec<Option<Entry>>,
    by_key: HashMap<SourceKey, usize>,
    hot: Vec<usize>,
    generation: u32,
}

impl Sources {
    /// Takes over the list of a new plane: forgets what left, learns what came.
    pub fn update(&mut self, mine: &[(SourceKey, Source)], uring: &mut Uring) {
        let gone: Vec<SourceKey> = {
            let listed: std::collections::HashSet<_> = mine.iter().map(|(key, _)| *key).collect();
            self.by_key.keys().filter(|key| !listed.contains(key)).copied().collect()
        };
        for key in gone {
            self.stopped(key, uring);
            if let Some(index) = self.by_key.remove(&key)
                && let Some(Entry { source: Source::Device(device), generation, .. }) = self.entries[index].take()
            {
                device.stop(uring, token(index, generation));
            }
        }
        for (key, source) in mine {
            if !self.by_key.contains_key(key) {
                self.insert(*key, source.clone(), uring);
            }
        }
    }

    fn insert(&mut self, key: SourceKey, source: Source, uring: &mut Uring) {
        let index = self.entries.iter().position(Option::is_none).unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() - 1
        });
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        if let Source::Device(device) = &source {
            device.start(uring, token(index, generation));
        }
        self.entries[index] =
            Some(Entry { key, source, state: State::Idle, last: None, quiet: false, polled: false, generation });
        self.by_key.insert(key, index);
        // It may have started before the worker knew of it.
        self.started(key);
    }

    /// The queue runs (again), or frames of an internal port wait.
    pub fn started(&mut self, key: SourceKey) {
        if let Some(&index) = self.by_key.get(&key) {
            self.heat(index);
        }
    }

    /// The queue stopped: its kick is nobody's any more.
    pub fn stopped(&mut self, key: SourceKey, uring: &mut Uring) {
        let Some(&index) = self.by_key.get(&key) else { return };
        let Some(entry) = &mut self.entries[index] else { return };
        uring.disarm(token(index, entry.generation));
        entry.state = State::Idle;
        entry.quiet = false;
        self.hot.retain(|hot| *hot != index);
    }

    /// A kick arrived.
    pub fn kicked(&mut self, token: u64) {
        if let Some(index) = self.resolve(token) {
            self.heat(index);
        }
    }

    /// The source that a completion speaks of.
    pub fn by_token(&self, token: u64) -> Option<(SourceKey, &Source)> {
        let entry = self.entries[self.resolve(token)?].as_ref()?;
        Some((entry.key, &entry.source))
    }

    /// Index of the `position`-th hot source.
    #[inline]
    pub fn hot(&self, position: usize) -> Option<usize> {
        self.hot.get(position).copied()
    }

    /// What a visit needs: key, source, and whether the guest must still be told not to kick.
    #[inline]
    pub fn visit(&mut self, index: usize) -> Option<(SourceKey, &Source, bool)> {
        let entry = self.entries.get_mut(index)?.as_mut()?;
        let tell = !std::mem::replace(&mut entry.quiet, true);
        Some((entry.key, &entry.source, tell))
    }

    /// After a visit that brought `taken` packets: a source that had none for a while cools down. Returns whether it
    /// left the hot list (another may have taken its position).
    #[inline]
    pub fn rest(&mut self, index: usize, taken: usize, now: Instant, uring: &mut Uring) -> bool {
        let Some(entry) = self.entries.get_mut(index).and_then(Option::as_mut) else { return false };
        let last = *entry.last.get_or_insert(now);
        if taken > 0 {
            entry.last = Some(now);
            entry.polled = false;
            return false;
        }
        if now.saturating_duration_since(last) < HOT {
            return false;
        }
        self.cool(index, uring)
    }

    #[cold]
    fn cool(&mut self, index: usize, uring: &mut Uring) -> bool {
        let Some(entry) = self.entries.get_mut(index).and_then(Option::as_mut) else { return false };
        let next = match &entry.source {
            // Frames are announced by a message each time.
            Source::Device(_) | Source::Internal(_) => State::Idle,
            Source::Vhost(attachment, pair) => {
                let queue = attachment.queues().get(*pair).map(|pair| &pair.from_guest);
                match queue.and_then(|queue| queue.try_claim()) {
                    Some(mut ring) => {
                        if ring.enable_notifications() {
                            ring.disable_notifications();
                            return false;
                        }
                        entry.polled = ring.must_poll();
                        match ring.kick() {
                            Some(kick) => {
                                uring.arm_kick(token(index, entry.generation), kick);
                                State::Cold
                            }
                            None if entry.polled => return false,
                            None => State::Idle,
                        }
                    }
                    None if queue.is_some_and(|queue| queue.is_running()) => return false,
                    None => State::Idle,
                }
            }
        };
        entry.state = next;
        entry.quiet = false;
        self.hot.retain(|hot| *hot != index);
        true
    }

    /// Whether the worker may sleep: everything that is hot is only so because it has no kick.
    pub fn may_sleep(&self) -> bool {
        self.hot.is_empty() || self.poll_only()
    }

    /// Whether only rings without a kick are left to poll, none of which had packets lately.
    pub fn poll_only(&self) -> bool {
        !self.hot.is_empty()
            && self.hot.iter().all(|index| self.entries[*index].as_ref().is_some_and(|entry| entry.polled))
    }

    /// Whether one of the hot sources was not visited since it became hot.
    pub fn has_news(&self) -> bool {
        self.hot.iter().any(|index| self.entries[*index].as_ref().is_some_and(|entry| entry.last.is_none()))
    }

    fn heat(&mut self, index: usize) {
        let Some(entry) = self.entries.get_mut(index).and_then(Option::as_mut) else { return };
        entry.last = None;
        entry.quiet = false;
        entry.polled = false;
        if entry.state != State::Hot {
            entry.state = State::Hot;
            self.hot.push(index);
        }
    }

    fn resolve(&self, token: u64) -> Option<usize> {
        let index = (token & u64::from(u32::MAX)) as usize;
        let entry = self.entries.get(index)?.as_ref()?;
        (u64::from(entry.generation) == token >> 32).then_some(index)
    }
}

fn token(index: usize, generation: u32) -> u64 {
    u64::from(generation) << 32 | index as u64
}
