//! What the DNS server counts, for metrics.

use std::sync::atomic::{AtomicU64, Ordering};

use hickory_proto::op::ResponseCode;

use super::message::Origin;

/// Codes that are counted by themselves; all others are `other`.
pub const CODES: [(ResponseCode, &str); 6] = [
    (ResponseCode::NoError, "noerror"),
    (ResponseCode::FormErr, "formerr"),
    (ResponseCode::ServFail, "servfail"),
    (ResponseCode::NXDomain, "nxdomain"),
    (ResponseCode::NotImp, "notimp"),
    (ResponseCode::Refused, "refused"),
];

/// Counters, all since the start.
#[derive(Default)]
pub struct Counters {
    answers: [[AtomicU64; CODES.len() + 1]; Origin::ALL.len()],
    /// What was no query.
    pub ignored: AtomicU64,
    /// Answers that did not fit and were cut off.
    pub truncated: AtomicU64,
    /// Queries that were not forwarded because of a limit.
    pub limited: AtomicU64,
    /// Answers that found no room on their way back.
    pub lost: AtomicU64,
    /// TCP connections that were refused, cut off, or too slow.
    pub connections_cut: AtomicU64,
    /// Questions to upstream servers.
    pub exchanges: AtomicU64,
    /// Those without an answer.
    pub upstream_failures: AtomicU64,
}

/// Adds one.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Counters {
    /// Counts an answer.
    pub fn answered(&self, origin: Origin, code: ResponseCode) {
        let code = CODES.iter().position(|(known, _)| *known == code).unwrap_or(CODES.len());
        count(&self.answers[origin as usize][code]);
    }

    /// What was counted.
    pub fn report(&self) -> DnsReport {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut answers = Vec::new();
        for (origin, codes) in Origin::ALL.iter().zip(&self.answers) {
            let names = CODES.iter().map(|(_, name)| *name).chain(["other"]);
            for (code, counter) in names.zip(codes) {
                answers.push((origin.name(), code, load(counter)));
            }
        }
        answers.retain(|(.., count)| *count > 0);
        DnsReport {
            answers,
            ignored: load(&self.ignored),
            truncated: load(&self.truncated),
            limited: load(&self.limited),
            lost: load(&self.lost),
            connections_cut: load(&self.connections_cut),
            exchanges: load(&self.exchanges),
            upstream_failures: load(&self.upstream_failures),
            cached: 0,
            upstreams: Vec::new(),
        }
    }
}

/// The DNS server at one time.
#[derive(Clone, Debug, Default)]
pub struct DnsReport {
    /// Answers by origin and code; none that are zero.
    pub answers: Vec<(&'static str, &'static str, u64)>,
    /// What was no query.
    pub ignored: u64,
    /// Answers that were cut off.
    pub truncated: u64,
    /// Queries that were not forwarded because of a limit.
    pub limited: u64,
    /// Answers that found no room.
    pub lost: u64,
    /// TCP connections that were refused, cut off, or too slow.
    pub connections_cut: u64,
    /// Questions to upstream servers.
    pub exchanges: u64,
    /// Those without an answer.
    pub upstream_failures: u64,
    /// Answers that are kept.
    pub cached: usize,
    /// Upstream servers, and whether each answers.
    pub upstreams: Vec<(String, bool)>,
}
