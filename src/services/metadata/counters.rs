//! What the metadata server counts, for metrics.

use std::sync::atomic::{AtomicU64, Ordering};

use hyper::StatusCode;

/// Statuses that are counted by themselves; all others are `other`.
const STATUSES: [StatusCode; 9] = [
    StatusCode::OK,
    StatusCode::BAD_REQUEST,
    StatusCode::UNAUTHORIZED,
    StatusCode::FORBIDDEN,
    StatusCode::NOT_FOUND,
    StatusCode::METHOD_NOT_ALLOWED,
    StatusCode::MISDIRECTED_REQUEST,
    StatusCode::TOO_MANY_REQUESTS,
    StatusCode::INTERNAL_SERVER_ERROR,
];

/// Counters, all since the start.
#[derive(Default)]
pub struct Counters {
    answers: [AtomicU64; STATUSES.len() + 1],
    /// Connections that were refused because of a limit.
    pub refused: AtomicU64,
    /// Connections that were cut off: too slow, or no HTTP.
    pub cut: AtomicU64,
}

/// The metadata server at one time.
#[derive(Clone, Debug, Default)]
pub struct MetadataReport {
    /// Answers by status; none that are zero.
    pub answers: Vec<(String, u64)>,
    /// Connections that were refused because of a limit.
    pub refused: u64,
    /// Connections that were cut off: too slow, or no HTTP.
    pub cut: u64,
}

impl Counters {
    /// Counts an answer.
    pub fn answered(&self, status: StatusCode) {
        let index = STATUSES.iter().position(|known| *known == status).unwrap_or(STATUSES.len());
        if let Some(counter) = self.answers.get(index) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What was counted.
    pub fn report(&self) -> MetadataReport {
        let names = STATUSES.iter().map(|status| status.as_str().to_owned()).chain(["other".to_owned()]);
        let counts = self.answers.iter().map(|count| count.load(Ordering::Relaxed));
        MetadataReport {
            answers: names.zip(counts).filter(|(_, count)| *count > 0).collect(),
            refused: self.refused.load(Ordering::Relaxed),
            cut: self.cut.load(Ordering::Relaxed),
        }
    }
}
