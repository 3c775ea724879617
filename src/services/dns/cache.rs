//! Answers of upstream servers, kept for as long as they say (RFC 2181 §8, RFC 2308 §5), in bounded memory.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{RData, Record};

/// Answers that are kept.
pub const ENTRIES_MAX: usize = 8_192;
/// Octets, on the wire, of all answers that are kept.
pub const OCTETS_MAX: usize = 8 << 20;
/// Octets of the longest answer that is kept.
const ENTRY_OCTETS_MAX: usize = 16 << 10;
/// The longest that an answer is kept.
const TTL_MAX: Duration = Duration::from_secs(86_400);
/// The longest that is remembered that something does not exist (RFC 2308 §5).
const NEGATIVE_TTL_MAX: Duration = Duration::from_secs(900);
/// How long is remembered that nobody could answer (RFC 9520 §3.2).
const FAILURE_TTL: Duration = Duration::from_secs(1);
/// Answers among which the one that ends first makes room.
const CANDIDATES: usize = 8;

/// What was asked.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Asked {
    /// The name's key.
    pub name: Box<[u8]>,
    /// Type.
    pub kind: u16,
    /// DO and CD: another answer may be right with them.
    pub flags: (bool, bool),
}

/// An upstream server's answer.
#[derive(Clone, Debug)]
pub struct Kept {
    /// RCODE.
    pub code: ResponseCode,
    /// AD.
    pub authentic: bool,
    /// Answer section.
    pub answers: Vec<Record>,
    /// Authority section.
    pub authorities: Vec<Record>,
    /// Octets on the wire.
    pub len: usize,
}

impl Kept {
    /// Nobody could answer.
    pub fn failure() -> Self {
        let code = ResponseCode::ServFail;
        Self { code, authentic: false, answers: Vec::new(), authorities: Vec::new(), len: 0 }
    }

    /// How long it may be kept; not at all when it says nothing.
    pub fn ttl(&self) -> Duration {
        let seconds = |ttl: u32| Duration::from_secs(u64::from(ttl));
        let soa = || {
            self.authorities.iter().find_map(|record| match &record.data {
                RData::SOA(soa) => Some(seconds(record.ttl.min(soa.minimum)).min(NEGATIVE_TTL_MAX)),
                _ => None,
            })
        };
        let positive = self.answers.iter().map(|record| seconds(record.ttl).min(TTL_MAX)).min();
        match self.code {
            ResponseCode::NoError | ResponseCode::NXDomain if !self.is_negative() => positive.unwrap_or_default(),
            // An alias to something that does not exist lasts as long as the shorter of both.
            ResponseCode::NoError | ResponseCode::NXDomain => {
                positive.into_iter().chain([soa().unwrap_or_default()]).min().unwrap_or_default()
            }
            _ => FAILURE_TTL,
        }
    }

    fn is_negative(&self) -> bool {
        self.code == ResponseCode::NXDomain
            || self.answers.is_empty()
            || self.authorities.iter().any(|record| matches!(record.data, RData::SOA(_)))
    }
}

struct Entry {
    asked: Arc<Asked>,
    kept: Arc<Kept>,
    since: Instant,
    end: Instant,
}

/// The cache.
#[derive(Default)]
pub struct Cache {
    entries: Vec<Entry>,
    index: HashMap<Arc<Asked>, usize>,
    octets: usize,
    /// State of a generator (xorshift) that picks candidates for removal.
    state: u64,
}

impl Cache {
    /// An answer that still holds, and its age in whole seconds.
    pub fn get(&mut self, asked: &Asked, now: Instant) -> Option<(Arc<Kept>, u32)> {
        let at = *self.index.get(asked)?;
        let entry = self.entries.get(at)?;
        if entry.end <= now {
            self.remove(at);
            return None;
        }
        let age = now.saturating_duration_since(entry.since).as_secs();
        Some((Arc::clone(&entry.kept), u32::try_from(age).unwrap_or(u32::MAX)))
    }

    /// Keeps an answer for as long as it says.
    pub fn put(&mut self, asked: Asked, kept: Arc<Kept>, now: Instant) {
        let ttl = kept.ttl();
        if ttl.is_zero() || kept.len > ENTRY_OCTETS_MAX {
            return;
        }
        if let Some(at) = self.index.get(&asked).copied() {
            self.remove(at);
        }
        while self.entries.len() >= ENTRIES_MAX || self.octets + kept.len > OCTETS_MAX {
            let Some(at) = self.victim() else { break };
            self.remove(at);
        }
        let asked = Arc::new(asked);
        self.index.insert(Arc::clone(&asked), self.entries.len());
        self.octets += kept.len;
        self.entries.push(Entry { asked, kept, since: now, end: now + ttl });
    }

    /// Answers that are kept.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self { state: self.state, ..Self::default() };
    }

    fn victim(&mut self) -> Option<usize> {
        let mut best: Option<(Instant, usize)> = None;
        for _ in 0..CANDIDATES {
            self.state |= 1;
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            let at = (self.state >> 16) as usize % self.entries.len().max(1);
            let end = self.entries.get(at)?.end;
            if best.is_none_or(|(least, _)| end < least) {
                best = Some((end, at));
            }
        }
        best.map(|(_, at)| at)
    }

    fn remove(&mut self, at: usize) {
        if at >= self.entries.len() {
            return;
        }
        let gone = self.entries.swap_remove(at);
        self.index.remove(&gone.asked);
        self.octets -= gone.kept.len;
        if let Some(moved) = self.entries.get(at) {
            self.index.insert(Arc::clone(&moved.asked), at);
        }
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::Name;
    use hickory_proto::rr::rdata::{CNAME, SOA};

    use super::*;
    use crate::services::dns::zone::address_record;

    fn asked(number: u32) -> Asked {
        Asked { name: number.to_be_bytes().into(), kind: 1, flags: (false, false) }
    }

    fn positive(ttl: u32) -> Kept {
        let record = Record::from_rdata(Name::root(), ttl, address_record("192.0.2.1".parse().unwrap()));
        Kept { code: ResponseCode::NoError, authentic: false, answers: vec![record], authorities: vec![], len: 100 }
    }

    fn negative(code: ResponseCode, ttl: u32, minimum: u32) -> Kept {
        let soa = RData::SOA(SOA::new(Name::root(), Name::root(), 1, 1, 1, 1, minimum));
        let authorities = vec![Record::from_rdata(Name::root(), ttl, soa)];
        Kept { code, authentic: false, answers: vec![], authorities, len: 100 }
    }

    #[test]
    fn answers_are_kept_for_their_ttl_and_grow_old() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        cache.put(asked(1), Arc::new(positive(10)), now);
        let after = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(cache.get(&asked(1), after(9)).unwrap().1, 9);
        assert!(cache.get(&Asked { flags: (true, false), ..asked(1) }, now).is_none());
        assert!(cache.get(&asked(1), after(10)).is_none());
        assert_eq!((cache.len(), cache.octets), (0, 0));
        cache.put(asked(1), Arc::new(positive(0)), now);
        assert_eq!(cache.len(), 0);
    }

    #[test]
    fn rfc2308_negative_answers_last_as_long_as_their_soa_says() {
        let ttl = |kept: Kept| kept.ttl().as_secs();
        assert_eq!(ttl(negative(ResponseCode::NXDomain, 60, 30)), 30);
        assert_eq!(ttl(negative(ResponseCode::NoError, 20, 30)), 20);
        assert_eq!(ttl(negative(ResponseCode::NXDomain, 90_000, 90_000)), NEGATIVE_TTL_MAX.as_secs());
        // Without SOA they are not kept (RFC 2308 §5).
        assert_eq!(ttl(Kept { authorities: vec![], ..negative(ResponseCode::NXDomain, 60, 60) }), 0);
        assert_eq!(ttl(Kept::failure()), 1);
        let alias = Record::from_rdata(Name::root(), 5, RData::CNAME(CNAME(Name::root())));
        assert_eq!(ttl(Kept { answers: vec![alias], ..negative(ResponseCode::NXDomain, 60, 60) }), 5);
    }

    #[test]
    fn memory_is_bounded_and_the_index_stays_right() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        let count = 2 * ENTRIES_MAX as u32;
        for number in 0..count {
            cache.put(asked(number), Arc::new(positive(1 + number)), now);
        }
        assert_eq!((cache.len(), cache.index.len()), (ENTRIES_MAX, ENTRIES_MAX));
        let found = (0..count).filter(|number| cache.get(&asked(*number), now).is_some()).count();
        assert_eq!(found, ENTRIES_MAX);
        // What lasts longest stays with preference.
        assert!((0..100).filter(|number| cache.get(&asked(*number), now).is_some()).count() < 50);
        let long = Kept { len: ENTRY_OCTETS_MAX, ..positive(100) };
        for number in count..2 * count {
            cache.put(asked(number), Arc::new(long.clone()), now);
            assert!(cache.octets <= OCTETS_MAX);
        }
        cache.put(asked(0), Arc::new(Kept { len: ENTRY_OCTETS_MAX + 1, ..positive(5) }), now);
        assert!(cache.get(&asked(0), now).is_none());
        assert_eq!(cache.octets, cache.entries.iter().map(|entry| entry.kept.len).sum::<usize>());
    }
}
