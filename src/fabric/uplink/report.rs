//! What `uplink get` and `doctor` show.

use std::net::IpAddr;

use hostweave_switch::MacAddr;
use hostweave_switch::counters::PortTotals;
use hostweave_switch::tables::{NextHop, Owned};
use ipnet::IpNet;

use super::UplinkRuntime;
use super::owned::unmapped;
use crate::fabric::Fabric;
use crate::fabric::spec::UplinkSpec;

/// The uplink as it is.
#[derive(Clone, Debug, Default)]
pub struct UplinkStatus {
    /// What was asked for.
    pub spec: UplinkSpec,
    /// Whether frames pass.
    pub link: bool,
    /// Why not, in a sentence.
    pub reason: Option<String>,
    /// Its link address; `None` while the interface is unknown.
    pub mac: Option<MacAddr>,
    /// Octets of IP packet.
    pub mtu: u16,
    /// Routers of both families, with their link addresses.
    pub gateways: Vec<NextHop>,
    /// Other neighbours that packets are for, with their link addresses; those that do not answer are reached by a router, if at all.
    pub neighbors: Vec<NextHop>,
    /// Addresses that it answers for, in order.
    pub owned: Vec<(IpAddr, Owned)>,
    /// Those of them that somebody else has, so that they are not used, with that one's link address.
    pub lost: Vec<(IpAddr, MacAddr)>,
    /// Those that are used and that somebody else claims, with that one's link address.
    pub contested: Vec<(IpAddr, MacAddr)>,
    /// Prefixes that are routed to the host.
    pub routed: Vec<IpNet>,
    /// What its port counted.
    pub totals: PortTotals,
    /// Frames from outside that the kernel dropped because no worker took them in time; its port has not received them.
    pub missed: u64,
}

impl Fabric {
    /// The uplink as it is; `None` when none is wanted.
    pub fn uplink_status(&self) -> Option<UplinkStatus> {
        self.inner.lock().uplink.as_ref().map(UplinkRuntime::status)
    }
}

impl UplinkRuntime {
    fn status(&self) -> UplinkStatus {
        let mut owned: Vec<(IpAddr, Owned)> =
            self.owned.iter().map(|(address, owned)| (unmapped(*address), *owned)).collect();
        owned.sort_unstable_by_key(|(address, _)| *address);
        let down = (!self.link).then(|| self.why_down().to_owned());
        UplinkStatus {
            spec: self.spec.clone(),
            link: self.link,
            reason: self.failure.clone().or(down),
            mac: self.interface.map(|_| self.port.mac),
            mtu: self.network.mtu,
            gateways: self.neighbors.hops(true).into_iter().chain(self.neighbors.hops(false)).collect(),
            neighbors: self.on_link.hops(),
            owned,
            lost: self.lost(),
            contested: self.contested(),
            routed: self.routed.iter().map(|(prefix, _)| *prefix).collect(),
            totals: self.totals(),
            missed: self.missed.total(),
        }
    }
}
