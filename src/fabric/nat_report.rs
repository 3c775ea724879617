//! NAT for people: who has which outside L4 ports, now or at a time, and how full the addresses are. Readers of the
//! shared table: no worker waits for them.

use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use hostweave_nat::{AddressStats, Entry, Lease, RefusedCounts, Stats, mapped};
use uuid::Uuid;

use super::{Fabric, Inner};

/// A mapping with its times.
#[derive(Clone, Copy, Debug)]
pub struct MappingView {
    /// Its values.
    pub entry: Entry,
    /// Uid of its port.
    pub port: Uuid,
    /// Seconds since it began.
    pub age_s: u32,
    /// Seconds until it ends without connections; `None` while connections hold it.
    pub expires_s: Option<u32>,
}

/// Who has, or had, a block of outside L4 ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeaseView {
    /// Its values.
    pub lease: Lease,
    /// Uid of the port.
    pub port: Uuid,
    /// When the port got it.
    pub since: SystemTime,
    /// When it was free again; `None` while the port has it.
    pub until: Option<SystemTime>,
}

/// Numbers of NAT.
#[derive(Clone, Debug, Default)]
pub struct NatReport {
    /// Of all of it.
    pub stats: Stats,
    /// Of each outside address.
    pub addresses: Vec<AddressStats>,
    /// L4 ports in blocks, by port, most first.
    pub users: Vec<(Uuid, u64)>,
    /// Mappings that were refused, by the pool's name.
    pub refused: Vec<(String, RefusedCounts)>,
}

impl Fabric {
    /// Mappings that are wanted, at most `limit`, and how many are wanted.
    pub fn nat_mappings(&self, limit: usize, wanted: impl Fn(&Entry) -> bool) -> (Vec<MappingView>, usize) {
        let now = self.now_s();
        let mut total = 0;
        let mut views = Vec::new();
        for entry in self.inner.nat.entries().filter(wanted) {
            total += 1;
            if views.len() < limit {
                let expires_s = (entry.holds == 0).then(|| entry.until.saturating_sub(now));
                let age_s = now.saturating_sub(entry.created);
                views.push(MappingView { entry, port: Uuid::from_u128(entry.inside.uid), age_s, expires_s });
            }
        }
        (views, total)
    }

    /// Who has an outside L4 port, or had it at a time (SEMANTICS NA32).
    pub fn nat_lookup(&self, address: IpAddr, l4: u16, at: Option<SystemTime>) -> Option<LeaseView> {
        let at = match at {
            None => None,
            // Before the machine was started nobody had any.
            Some(at) => Some(self.second_of(at)?),
        };
        self.inner.nat.lookup(mapped(address), l4, at).map(|lease| self.inner.lease_view(lease))
    }

    /// Every block of an address that a port has now, or had at a time, by its first L4 port.
    pub fn nat_leases(&self, address: IpAddr, at: Option<SystemTime>) -> Vec<LeaseView> {
        let at = match at.map(|at| self.second_of(at)) {
            None => None,
            // Before the machine was started nobody had any.
            Some(None) => return Vec::new(),
            Some(at) => at,
        };
        let then = |lease: &Lease| match at {
            None => lease.until.is_none(),
            Some(at) => lease.since <= at && lease.until.is_none_or(|until| at < until),
        };
        let wanted = |lease: &Lease| lease.block.address == mapped(address) && then(lease);
        let inner = &self.inner;
        let mut leases: Vec<LeaseView> =
            inner.nat.history().filter(wanted).map(|lease| inner.lease_view(lease)).collect();
        leases.sort_by_key(|view| (view.lease.block.address, view.lease.block.first));
        leases
    }

    /// Every block that a port has or had, as far back as this boot's are known, in no order.
    pub fn nat_history(&self) -> Vec<LeaseView> {
        self.inner.nat.history().map(|lease| self.inner.lease_view(lease)).collect()
    }

    /// Numbers of NAT.
    pub fn nat_report(&self) -> NatReport {
        let nat = &self.inner.nat;
        let mut users = std::collections::HashMap::<Uuid, u64>::new();
        for lease in nat.leases() {
            *users.entry(Uuid::from_u128(lease.block.uid)).or_default() += u64::from(lease.block.size);
        }
        let mut users: Vec<(Uuid, u64)> = users.into_iter().collect();
        users.sort_by_key(|(port, ports)| (std::cmp::Reverse(*ports), *port));
        let mut addresses: Vec<AddressStats> = nat.addresses().collect();
        addresses.sort_by_key(|address| address.address);
        NatReport { stats: nat.stats(), addresses, users, refused: nat.refused_by_pool() }
    }

    /// Second of the monotonic clock now.
    fn now_s(&self) -> u32 {
        self.inner.clock.seconds(Instant::now())
    }

    /// Second of the monotonic clock at a time; `None` before the machine was started. What lies ahead is now.
    fn second_of(&self, time: SystemTime) -> Option<u32> {
        let ago = SystemTime::now().duration_since(time).unwrap_or(Duration::ZERO);
        self.now_s().checked_sub(u32::try_from(ago.as_secs()).ok()?)
    }
}

impl Inner {
    /// The reverse of [`Fabric::second_of`].
    fn time_of(&self, second: u32) -> SystemTime {
        let now = self.clock.seconds(Instant::now());
        SystemTime::now() - Duration::from_secs(now.saturating_sub(second).into())
    }

    /// A lease with the times of the clock of the wall.
    pub(super) fn lease_view(&self, lease: Lease) -> LeaseView {
        LeaseView {
            lease,
            port: Uuid::from_u128(lease.block.uid),
            since: self.time_of(lease.since),
            until: lease.until.map(|until| self.time_of(until)),
        }
    }
}
