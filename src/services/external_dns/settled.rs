//! A zone that was found as it is to be: while its serial number stays, it need not be read again.

use std::time::{Duration, Instant};

use super::plan::Denied;
use super::spec::ExternalDnsSpec;
use super::wire::Connection;

/// A zone is read again after as long whatever its serial number says: a server ought to change that with every change (RFC 2136 §3.6),
/// and not all who change a zone behind its back do.
const READ_AGAIN: Duration = Duration::from_secs(3600);

/// What was found.
pub struct Settled {
    spec: ExternalDnsSpec,
    serial: u32,
    read: Instant,
    /// Which Services do not get a name, and why.
    pub problems: Vec<Denied>,
}

impl Settled {
    /// At this serial number nothing was to be changed.
    pub fn new(spec: &ExternalDnsSpec, serial: u32, problems: &[Denied], now: Instant) -> Self {
        Self { spec: spec.clone(), serial, read: now, problems: problems.to_vec() }
    }

    /// Whether the same is wanted, and it was not too long ago.
    pub fn is_of(&self, spec: &ExternalDnsSpec, now: Instant) -> bool {
        self.spec == *spec && now.saturating_duration_since(self.read) < READ_AGAIN
    }

    /// Asks the server. When it does not say its serial number, the zone is read as if there were none.
    pub async fn still_holds(&self, spec: &ExternalDnsSpec) -> bool {
        let asked = async { Connection::open(spec).await?.serial().await };
        match asked.await {
            Ok(serial) => serial == self.serial,
            Err(failure) => {
                tracing::debug!(zone = spec.zone, failure, "the zone's SOA could not be asked for");
                false
            }
        }
    }
}
