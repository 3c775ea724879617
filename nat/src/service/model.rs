//! What a Service is to the packet path, fully resolved: addresses, L4 ports, and who stands behind them.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use ipnet::IpNet;

/// One address and range of L4 ports of a Service, and who answers behind it. Several with the same backends share one table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FrontendSpec {
    /// `namespace/name` of the Service.
    pub service: Arc<str>,
    /// Name of the L4 port, as the Service has it; empty for none.
    pub port_name: Arc<str>,
    /// VNI of the network in which the address is known; [`OUTSIDE_VNI`](hostweave_switch::tables::OUTSIDE_VNI) for an address of
    /// the host at its uplink.
    pub scope: u32,
    /// The address, IPv4-mapped for IPv4.
    pub address: u128,
    /// IP protocol: TCP, UDP or SCTP.
    pub proto: u8,
    /// L4 ports, as clients see them.
    pub l4: RangeInclusive<u16>,
    /// VNI of the network of its backends.
    pub vni: u32,
    /// Who may use it from where (`loadBalancerSourceRanges`, SEMANTICS SV18); empty for everybody.
    pub sources: Arc<[IpNet]>,
    /// `sessionAffinity: ClientIP`: for how many seconds after its last connection a client keeps its backend.
    pub affinity_s: Option<u32>,
    /// Who stands behind it.
    pub backends: Arc<[Backend]>,
    /// What a client gets when no backend takes new connections (SEMANTICS SV16).
    pub refusal: Refusal,
    /// Where connections that begin here are counted.
    pub begun: Begun,
}

/// Connections that have begun to a Service so far. Its frontends share it, those to come too: what was counted stays when an address goes.
#[derive(Clone, Default, Debug)]
pub struct Begun(Arc<AtomicU64>);

impl Begun {
    /// How many.
    pub fn count(&self) -> u64 {
        self.0.load(Relaxed)
    }

    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// Where it counts is the same place for a Service, whatever else it says.
impl PartialEq for Begun {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Begun {}

/// Who stands behind a frontend. Only those that connections may go on with: whoever is not in the list has lost them.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Backend {
    /// What tables are keyed by, such as `namespace/port`: the same on every host (SEMANTICS SV8).
    pub name: Arc<str>,
    /// Its address, IPv4-mapped for IPv4.
    pub address: u128,
    /// Its L4 port; `None` for the one that the client asked for.
    pub l4: Option<u16>,
    /// Share of new connections relative to others, 1 to 1000.
    pub weight: u16,
    /// Whether new connections go there. One that takes none is drained: its TCP connections go on, other flows select again
    /// (SEMANTICS SV5).
    pub active: bool,
    /// Whether it takes none only because clients could not connect lately, and is back soon: then whatever it has answered goes on,
    /// over UDP as well.
    pub ejected: bool,
}

/// What a client gets when there is no backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Refusal {
    /// A TCP reset, or ICMP port unreachable.
    #[default]
    Reject,
    /// Nothing (`internalTrafficPolicy: Local` and `externalTrafficPolicy: Local` without local backends: SV14, SV16).
    Drop,
}
