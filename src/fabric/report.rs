//! Numbers of policy and connections, for `status` and metrics.

use std::time::Duration;

use hostweave_policy::table::Stats;
use hostweave_switch::stage::DropReason;

use super::Fabric;
use crate::services::dns::Dns;
use crate::services::external_dns::ExternalDns;
use crate::services::metadata::Metadata;
use crate::worker::verdicts::VerdictCounts;

/// What policy is, and what it said.
#[derive(Clone, Copy, Debug, Default)]
pub struct PolicyReport {
    /// Sizes of what is compiled.
    pub stats: Stats,
    /// Grows whenever policy says something else.
    pub revision: u64,
    /// How long the last compilation took.
    pub compile_duration: Duration,
    /// Decisions, of all workers.
    pub verdicts: VerdictCounts,
}

/// The table of connections.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConnectionReport {
    /// Connections now.
    pub used: u64,
    /// Connections at most.
    pub capacity: u32,
    /// Connections that made room for newer ones.
    pub evicted: u64,
    /// Connections that were refused because their port had its share.
    pub refused_quota: u64,
    /// Connections that were refused because the table was full.
    pub refused_full: u64,
    /// Packets to Services that had no backend for them.
    pub no_backend: u64,
}

impl Fabric {
    /// DNS at the gateways.
    pub fn dns(&self) -> &Dns {
        &self.inner.dns
    }

    /// Names of Services in a real zone.
    pub fn external_dns(&self) -> &ExternalDns {
        &self.inner.external_dns
    }

    /// Metadata for guests.
    pub fn metadata(&self) -> &Metadata {
        &self.inner.metadata
    }

    /// What policy is, and what it said.
    pub fn policy_report(&self) -> PolicyReport {
        let mut verdicts = VerdictCounts::default();
        self.inner.workers.iter().for_each(|worker| worker.stats.verdicts.add_to(&mut verdicts));
        let state = self.inner.lock();
        PolicyReport {
            stats: state.policy.stats(),
            revision: state.policy_revision,
            compile_duration: state.compile_duration,
            verdicts,
        }
    }

    /// The table of connections.
    pub fn connection_report(&self) -> ConnectionReport {
        let totals = self.totals();
        let refused = |wanted: DropReason| {
            let dropped = totals.iter().flat_map(|totals| &totals.dropped);
            dropped.filter(|(reason, _)| *reason == wanted).map(|(_, count)| count).sum()
        };
        let connections = &self.inner.connections;
        ConnectionReport {
            used: connections.len(),
            capacity: connections.capacity(),
            evicted: connections.evicted(),
            refused_quota: refused(DropReason::ConnectionQuota),
            refused_full: refused(DropReason::ConnectionTableFull),
            no_backend: refused(DropReason::ServiceNoBackend) + refused(DropReason::ServiceNoLocalBackend),
        }
    }
}
