//! The way out of the host at run time: the device, the routers behind it, what is announced there, and what the kernel
//! must not see.
//!
//! # Theory of operation
//!
//! The uplink is a port (kind [`PortKind::Uplink`]) in a network of its own that no object can name. It exists as long as
//! it is wanted; its device comes and goes with the interface. Nothing here waits for news: the maintenance thread calls
//! `UplinkRuntime::attend` once a second and whenever something may have happened (a worker left a note, the kernel
//! said that some interface changed), and `attend` looks at the interface as it is then. So an interface that is
//! renamed, deleted, made again or set down in whatever order is one case: what is open does not fit what is there.
//!
//! Packets are the workers' all the time. Questions to routers and announcements are frames that the port's worker is
//! handed; what neighbours say comes back as notes.

pub mod announce;
pub mod conflict;
mod groups;
mod kernel;
pub(super) mod lifecycle;
mod missed;
mod moved;
pub mod neighbor;
mod network;
mod on_link;
pub mod owned;
mod report;
pub(super) mod settle;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hostweave_switch::MacAddr;
use hostweave_switch::counters::{PortCounters, PortTotals};
use hostweave_switch::heard::Heard;
use hostweave_switch::tables::{Network, NetworkId, Owned, Port, PortId, PortKind, Tables, Uplink};
use hostweave_uplink::device::Device;
use hostweave_uplink::netlink::interfaces::{Interface, interface, set_mtu};
use hostweave_uplink::netns::TapRequest;
use hostweave_uplink::packet_socket::PacketSocket;
use hostweave_uplink::tap_queues::open_tap_queues;
use ipnet::IpNet;

use super::plane::{Output, Source, SourceKey, owner};
use super::spec::{FabricEvent, UplinkDriver, UplinkSpec};
use super::{Inner, Message};
use crate::services::LocalNote;
use crate::services::uplink::{Frame, announcement, question};
use announce::Announcements;
use conflict::Conflicts;
use groups::Groups;
use kernel::Hidden;
use missed::Missed;
use moved::Moved;
use neighbor::{Change, Neighbors, Question, Said, Traffic};
use network::network_of;
use on_link::OnLinkNeighbors;
use owned::Outside;
pub use report::UplinkStatus;

/// Identity of the uplink's port, the same in every run: connections that begin there are taken over by it.
pub const UPLINK_UID: u128 = u128::from_be_bytes(*b"hostweave uplink");

/// Name of the port; no object can have it.
const PORT_NAME: &str = "uplink";

/// Octets of IP packet while the interface is unknown.
const MTU_UNKNOWN: u16 = 1_500;

/// Announcements that are sent in one go.
const ANNOUNCE_MAX: usize = 16;

/// Reports of groups that are sent in one go.
const REPORTS_MAX: usize = 16;

/// How soon the uplink is looked after again while more is to be sent there than goes in one go.
const SOON: Duration = Duration::from_millis(10);

/// How soon the uplink is looked after again while workers want to know neighbours.
const SOUGHT_AGAIN: Duration = Duration::from_millis(50);

/// How soon a device that failed is opened again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long at most until an interface is tried again that the kernel refuses.
const AGAIN_MAX: Duration = Duration::from_secs(30);

/// How long until an interface is tried again that the kernel refused so many times in a row.
fn open_again(refused: u32) -> Duration {
    AGAIN.saturating_mul(1 << refused.saturating_sub(1).min(5)).min(AGAIN_MAX)
}

/// A device in use.
struct Open {
    index: u32,
    output: Arc<Output>,
    /// One for each worker that receives.
    sources: Vec<(SourceKey, Source)>,
}

/// The uplink at run time.
pub struct UplinkRuntime {
    outside: Outside,
    spec: UplinkSpec,
    network_id: NetworkId,
    network: Arc<Network>,
    port: Arc<Port>,
    /// As it was when it was last looked at.
    interface: Option<Interface>,
    open: Option<Open>,
    /// Not before then.
    open_after: Option<Instant>,
    /// Times in a row that the kernel refused it.
    refused: u32,
    /// Devices opened so far, so that a source's key is never used twice.
    serial: u32,
    link: bool,
    neighbors: Neighbors,
    on_link: OnLinkNeighbors,
    /// Who of both delivers.
    heard: Arc<Heard>,
    /// Packets that had left when that was last looked at.
    left: u64,
    announcements: Announcements,
    conflicts: Conflicts,
    groups: Groups,
    missed: Missed,
    /// Addresses that were lost or regained, which packets and NAT pools do not know yet.
    moved: Moved,
    owned: HashMap<u128, Owned>,
    routed: Vec<(IpNet, NetworkId)>,
    hidden: Hidden,
    failure: Option<String>,
}

/// What `UplinkRuntime::attend` leaves to its caller.
#[derive(Default)]
pub struct Attended {
    /// The plane must be published anew.
    pub changed: bool,
    /// NAT pools must be compiled anew before that.
    pub pools: bool,
    /// Then these are to be sent.
    pub frames: Vec<Frame>,
    /// When there is more to do, if not within the second.
    pub again: Option<Instant>,
}

impl UplinkRuntime {
    /// An uplink without device.
    pub(super) fn new(inner: &Inner, id: PortId, network_id: NetworkId, spec: &UplinkSpec) -> Self {
        let counters = (0..inner.workers.len()).map(|_| PortCounters::default()).collect();
        Self {
            outside: Outside::default(),
            spec: spec.clone(),
            network_id,
            network: Arc::new(network_of(MTU_UNKNOWN, &[], |_| None)),
            port: Arc::new(port_of(id, network_id, MacAddr::default(), counters)),
            interface: None,
            open: None,
            open_after: None,
            refused: 0,
            serial: 0,
            link: false,
            neighbors: Neighbors::default(),
            on_link: OnLinkNeighbors::new(Arc::clone(&inner.sought)),
            heard: Arc::default(),
            left: 0,
            announcements: Announcements::default(),
            conflicts: Conflicts::default(),
            groups: Groups::default(),
            missed: Missed::default(),
            moved: Moved::default(),
            owned: HashMap::new(),
            routed: Vec::new(),
            hidden: Hidden::new(&inner.config.runtime_dir),
            failure: None,
        }
    }

    /// Its identity in the tables.
    pub fn port(&self) -> &Arc<Port> {
        &self.port
    }

    /// Its network.
    pub fn network(&self) -> (NetworkId, &Arc<Network>) {
        (self.network_id, &self.network)
    }

    /// Where its packets go.
    pub fn output(&self) -> Option<&Arc<Output>> {
        self.open.as_ref().map(|open| &open.output)
    }

    /// Where its packets come from.
    fn sources(&self) -> &[(SourceKey, Source)] {
        self.open.as_ref().map_or(&[], |open| &open.sources)
    }

    fn count_missed(&mut self) {
        let sources = self.open.iter().flat_map(|open| &open.sources);
        self.missed.look(sources.filter_map(|(_, source)| match source {
            Source::Device(device) => Some(&**device),
            _ => None,
        }));
    }

    /// What it counted.
    pub fn totals(&self) -> PortTotals {
        PortTotals::of(&self.port.counters)
    }

    /// Takes over what is wanted. The device is closed if it is not the one that is wanted any more.
    pub fn set(&mut self, outside: &Outside, owned: HashMap<u128, Owned>, routed: Vec<(IpNet, NetworkId)>) {
        let Some(spec) = &outside.uplink else { return };
        let now = Instant::now();
        let other = |spec: &UplinkSpec| (spec.interface.clone(), spec.driver, spec.vlan);
        if other(spec) != other(&self.spec) {
            self.count_missed();
            // Workers let go of the old device before a new one takes its name.
            self.open_after = self.open.take().map(|_| now + AGAIN);
            self.refused = 0;
            self.link = false;
            self.interface = None;
            self.forget_neighbors(now);
            self.hidden.remove();
        }
        self.neighbors.set(&spec.gateways, now);
        self.set_addresses(spec, &owned, now);
        self.groups.set(groups::of(owned.keys()), now);
        (self.spec, self.outside, self.owned, self.routed) = (spec.clone(), outside.clone(), owned, routed);
        self.on_link.set(&self.spec.addresses, |address| is_other(&self.spec, &self.owned, address));
        self.set_network();
    }

    /// Looks at the interface and does what time asks for. `failed`: a worker said that the device brings nothing more.
    pub(super) fn attend(&mut self, inner: &Inner, failed: bool) -> Attended {
        let now = Instant::now();
        self.count_missed();
        let mut attended = Attended { changed: self.look(inner, failed, now), ..Attended::default() };
        if self.link {
            let (mut questions, mut changes) = (Vec::new(), Vec::new());
            // RFC 4862 §5.4.2: who probes listens already.
            attended.frames = self.groups.take(self.port.mac, now, REPORTS_MAX);
            let probes = self.settle(inner, &mut attended.changed, now);
            attended.frames.extend(probes);
            attended.changed |= self.set_network();
            let moves = self.move_addresses(&mut attended, now);
            self.on_link.want(now, |address| is_other(&self.spec, &self.owned, address));
            attended.changed |= self.tick(inner, now, &mut questions, &mut changes);
            attended.changed |= !changes.is_empty();
            changes.iter().for_each(|change| tell(inner, change));
            let mac = self.port.mac;
            attended.frames.extend(questions.iter().filter_map(|asked| {
                let source = source_for(&self.outside, &self.conflicts, asked.address)?;
                question(mac, source, asked.address, asked.to)
            }));
            let due = self.announcements.take(now, ANNOUNCE_MAX);
            attended.frames.extend(due.into_iter().flat_map(|address| announcement(mac, address)));
            let more = self.announcements.is_due(now).then_some(now + SOON);
            let wanted = self.on_link.is_awaited().then_some(now + SOUGHT_AGAIN);
            let asks = |neighbor| source_for(&self.outside, &self.conflicts, neighbor).is_some();
            let due = [
                more,
                wanted,
                self.neighbors.due(asks),
                self.on_link.due(asks),
                self.conflicts.due(),
                self.groups.due(now),
                moves,
            ];
            attended.again = due.into_iter().flatten().min().map(|at| at.max(now + SOON));
        }
        attended
    }

    /// What is to be asked, and what has changed of routers. Returns whether something has of other neighbours.
    fn tick(&mut self, inner: &Inner, now: Instant, questions: &mut Vec<Question>, changes: &mut Vec<Change>) -> bool {
        let totals = self.totals();
        // Not what we ask ourselves.
        let left = totals.transmitted.saturating_sub(totals.originated);
        let leaves = std::mem::replace(&mut self.left, left) != left;
        let second = inner.clock.seconds(now);
        let delivered = |mac, ipv4| {
            let ago = self.heard.ago(mac, ipv4, second)?;
            Some(Duration::from_secs(ago.into()))
        };
        // What asks has an address of its own, that is ours.
        let asks = |neighbor| source_for(&self.outside, &self.conflicts, neighbor).is_some();
        let traffic = Traffic { leaves, delivered: &delivered, asks: &asks };
        self.neighbors.tick(now, &traffic, questions, changes);
        self.on_link.tick(now, &traffic, questions)
    }

    /// A neighbour said something. Returns whether the plane must be published anew.
    pub(super) fn heard(&mut self, inner: &Inner, note: &LocalNote) -> bool {
        match *note {
            LocalNote::RouterHeard { address, mac, answer, .. } if self.link => {
                let change = self.neighbors.heard(&Said { address, mac, answer }, Instant::now());
                change.iter().for_each(|change| tell(inner, change));
                change.is_some()
            }
            LocalNote::NeighborHeard { address, mac, answer } if self.link => {
                self.on_link.heard(&Said { address, mac, answer }, Instant::now())
            }
            LocalNote::ListenersAsked(query) if self.link => {
                self.groups.asked(&query, self.port.mac.0[5], Instant::now());
                false
            }
            LocalNote::AddressConflict(address, mac) => {
                self.claimed(inner, address, mac);
                false
            }
            _ => false,
        }
    }

    /// As packets see it.
    pub fn table(&self) -> Uplink {
        let [owned, kept] = self.lost_addresses().split(&self.owned);
        let [v4, v6] = [true, false].map(|ipv4| self.neighbors.hops(ipv4));
        Uplink {
            port: self.port.id,
            network: self.network_id,
            mac: self.port.mac,
            vlan: self.spec.vlan,
            mtu: self.network.mtu,
            link: self.link,
            on_link: self.on_link.table(&[&v4[..], &v6].concat()),
            v4,
            v6,
            public: Uplink::one_to_one(&owned),
            kept,
            owned,
            routed: self.routed.clone(),
            unsettled: self
                .conflicts
                .unsettled()
                .map(|(address, claimed)| (owned::mapped(address), Arc::clone(claimed)))
                .collect(),
            heard: Arc::clone(&self.heard),
        }
    }

    /// Adds network, port and device to what is about to be published.
    pub fn add_to(
        &self,
        tables: &mut Tables,
        outputs: &mut Vec<Option<Arc<Output>>>,
        sources: &mut [Vec<(SourceKey, Source)>],
    ) {
        let (network, port) = (usize::from(self.network_id.0), self.port.id.0 as usize);
        tables.networks.resize(tables.networks.len().max(network + 1), None);
        tables.networks[network] = Some(Arc::clone(&self.network));
        tables.set_ports([Arc::clone(&self.port)]);
        outputs.resize(outputs.len().max(port + 1), None);
        outputs[port] = self.output().cloned();
        let workers = sources.len();
        for (key, source) in self.sources() {
            sources[owner(self.port.id, usize::from(key.pair), workers)].push((*key, source.clone()));
        }
        tables.uplink = Some(Arc::new(self.table()));
    }

    /// Closes the device. The kernel gets its addresses back.
    pub fn close(&mut self) {
        self.open = None;
        self.link = false;
        self.hidden.remove();
    }

    /// Makes the device fit the interface as it is. Returns whether something changed that packets must see.
    fn look(&mut self, inner: &Inner, failed: bool, now: Instant) -> bool {
        let found = interface(&self.spec.interface);
        let before = (self.interface, self.link, self.open.is_some());
        let fits = |open: &Open, there: &Interface| there.index == open.index && there.up;
        let there = found.as_ref().ok().copied().flatten();
        if failed || self.open.as_ref().is_some_and(|open| !there.is_some_and(|there| fits(open, &there))) {
            self.open = None;
            self.hidden.forget();
            self.open_after = failed.then_some(now + AGAIN);
        }
        let mut result = found.map(|_| ()).map_err(anyhow::Error::from);
        let usable = |interface: Option<Interface>| interface.filter(|there| there.up).map(|there| there.index);
        if self.refused > 0 && usable(there) != usable(self.interface) {
            // What was refused was another interface, or a state of it that is over.
            (self.refused, self.open_after) = (0, None);
        }
        self.interface = there;
        if result.is_ok() && self.open.is_none() {
            if self.open_after.is_none_or(|at| now >= at) {
                result = self.try_open(inner, now);
            } else if self.refused > 0 {
                result = self.failure.clone().map_or(Ok(()), |failure| Err(anyhow::Error::msg(failure)));
            }
        }
        if result.is_ok() && self.open.is_some() {
            result = self.hide().and_then(|()| self.fit_mtu());
        }
        self.note_failure(inner, result.err());
        self.set_port();
        let changed = self.set_network();
        self.set_link(inner, now);
        changed || before != (self.interface, self.link, self.open.is_some())
    }

    /// Opens the device if the interface is there and up.
    fn try_open(&mut self, inner: &Inner, now: Instant) -> anyhow::Result<()> {
        let id = self.port.id;
        let (devices, index): (Vec<Device>, u32) = match self.spec.driver {
            UplinkDriver::AfPacket | UplinkDriver::AfXdp => {
                let Some(there) = self.interface.filter(|there| there.up) else { return Ok(()) };
                owned::refuse_addresses_of_the_kernel(&self.outside)?;
                self.hide()?;
                let (name, vlan) = (&self.spec.interface, self.spec.vlan);
                let open = match self.spec.driver {
                    UplinkDriver::AfXdp => PacketSocket::open_group_with_xdp,
                    _ => PacketSocket::open_group,
                };
                let opened = open(name, there.index, vlan, inner.workers.len());
                self.refused = opened.as_ref().map_or_else(|_| self.refused.saturating_add(1), |_| 0);
                self.open_after = opened.is_err().then(|| now + open_again(self.refused));
                let sockets = opened?;
                (sockets.into_iter().map(|socket| Device::packet(socket, id)).collect(), there.index)
            }
            UplinkDriver::Tap => {
                if self.spec.vlan.is_some() {
                    anyhow::bail!("a TAP uplink has no VLAN: let the kernel tag what it routes");
                }
                owned::refuse_addresses_of_the_kernel(&self.outside)?;
                let mtu = self.spec.mtu.or(self.interface.map(|there| octets(there.mtu))).unwrap_or(MTU_UNKNOWN);
                let mac = self.interface.map_or_else(|| tap_mac(&self.spec.interface), |there| there.mac);
                let request = TapRequest { name: self.spec.interface.clone(), netns: None, mac, mtu };
                let opened = open_tap_queues(&request, inner.workers.len())?;
                if let Some(reason) = opened.fewer {
                    tracing::warn!(reason = display(&reason), "one worker receives all that comes in by the uplink");
                }
                let devices =
                    opened.queues.into_iter().map(|queue| Device::tap(queue, id)).collect::<Result<_, _>>()?;
                self.interface = interface(&self.spec.interface)?;
                let Some(there) = self.interface else { return Ok(()) };
                (devices, there.index)
            }
        };
        let devices: Vec<Arc<Device>> = devices.into_iter().map(Arc::new).collect();
        let Some(first) = devices.first() else { return Ok(()) };
        self.missed.opened(first);
        // Any worker writes to any of them.
        let output = Arc::new(Output::Device(Arc::clone(first)));
        let key = |pair| SourceKey { port: id, attachment: self.serial, pair };
        let sources = (0..).zip(devices).map(|(pair, device)| (key(pair), Source::Device(device))).collect();
        self.serial += 1;
        self.open = Some(Open { index, output, sources });
        Ok(())
    }

    /// The kernel must not see what is ours. Nothing happens when that is so already.
    fn hide(&mut self) -> anyhow::Result<()> {
        if self.spec.driver == UplinkDriver::Tap {
            return Ok(());
        }
        let prefixes = self.outside.hidden(&self.owned, &self.routed);
        Ok(self.hidden.install(&self.spec.interface, self.spec.vlan, prefixes)?)
    }

    /// A TAP device has the MTU that is asked for, also when it is asked for later. Another's interface is left as it is.
    fn fit_mtu(&mut self) -> anyhow::Result<()> {
        let (UplinkDriver::Tap, Some(wanted), Some(there)) = (self.spec.driver, self.spec.mtu, self.interface) else {
            return Ok(());
        };
        if there.mtu != u32::from(wanted) {
            set_mtu(&self.spec.interface, wanted)?;
            self.interface = interface(&self.spec.interface)?;
        }
        Ok(())
    }

    fn note_failure(&mut self, inner: &Inner, error: Option<anyhow::Error>) {
        let failure = error.map(|error| format!("{error:#}"));
        if let Some(reason) = failure.clone().filter(|_| failure != self.failure) {
            inner.event(FabricEvent::UplinkFailed { interface: self.spec.interface.clone(), reason });
        }
        self.failure = failure;
    }

    /// The port has the interface's link address, or, behind a TAP device, one beside it.
    fn set_port(&mut self) {
        let Some(there) = self.interface else { return };
        let mac = match self.spec.driver {
            UplinkDriver::AfPacket | UplinkDriver::AfXdp => there.mac,
            UplinkDriver::Tap => beside(there.mac),
        };
        if mac != self.port.mac {
            let counters = Arc::clone(&self.port.counters);
            self.port = Arc::new(port_of(self.port.id, self.network_id, mac, counters));
            // Neighbours must hear of it as of a new cable.
            self.link = false;
        }
    }

    /// Returns whether packets must see another one.
    fn set_network(&mut self) -> bool {
        let mtu = self.interface.map_or(MTU_UNKNOWN, |there| octets(there.mtu));
        let mtu = self.spec.mtu.map_or(mtu, |wanted| wanted.min(mtu));
        let ours = |address| !self.conflicts.is_lost(address);
        let speaker = |ipv4| self.outside.speaker(ipv4, &self.owned, ours);
        let network = network_of(mtu, &self.spec.addresses, speaker);
        let changed = *self.network != network;
        if changed {
            self.network = Arc::new(network);
        }
        changed
    }

    fn set_link(&mut self, inner: &Inner, now: Instant) {
        let link = self.open.is_some() && self.interface.is_some_and(|there| there.carrier);
        if link == self.link {
            return;
        }
        self.link = link;
        self.forget_neighbors(now);
        let interface = self.spec.interface.clone();
        if link {
            let all = self.owned.keys().map(|address| owned::unmapped(*address)).collect();
            let ours = self.conflicts.arrived(all, now);
            self.announcements.add(ours, now);
            self.groups.restart(now);
            inner.event(FabricEvent::UplinkUp { interface, mtu: self.network.mtu });
        } else {
            let reason = self.why_down().to_owned();
            inner.event(FabricEvent::UplinkDown { interface, reason });
        }
    }

    fn forget_neighbors(&mut self, now: Instant) {
        self.neighbors.forget(now);
        self.on_link.forget();
    }

    fn why_down(&self) -> &'static str {
        match self.interface {
            None => "the interface does not exist",
            Some(there) if !there.up => "the interface is set down",
            Some(there) if !there.carrier => "the interface has no carrier",
            Some(_) => "the interface cannot be used",
        }
    }
}

/// Whether an address is a router's or our own, and no other neighbour's.
fn is_other(spec: &UplinkSpec, owned: &HashMap<u128, Owned>, address: IpAddr) -> bool {
    spec.gateways.contains(&address) || owned.contains_key(&owned::mapped(address))
}

/// Where a question about a neighbour comes from: an address of ours that is known to be nobody else's.
fn source_for(outside: &Outside, conflicts: &Conflicts, neighbor: IpAddr) -> Option<IpAddr> {
    outside.source_for(neighbor, |address| conflicts.is_settled(address))
}

fn tell(inner: &Inner, change: &Change) {
    inner.event(match *change {
        Change::Reachable(address, mac) => FabricEvent::GatewayReachable { address, mac },
        Change::Unreachable(address) => FabricEvent::GatewayUnreachable { address },
    });
}

/// Hands frames to the worker that owns the uplink's port.
fn send(inner: &Inner, port: PortId, frames: Vec<Frame>) {
    if !frames.is_empty() {
        inner.workers[owner(port, 0, inner.workers.len())].mailbox.send(Message::Originate(port, frames.into()));
    }
}

fn octets(mtu: u32) -> u16 {
    u16::try_from(mtu).unwrap_or(u16::MAX)
}

/// The port owns nothing in its network: who owns what out there stands in [`Uplink::owned`].
fn port_of(id: PortId, network: NetworkId, mac: MacAddr, counters: Arc<[PortCounters]>) -> Port {
    Port {
        id,
        name: PORT_NAME.to_owned(),
        kind: PortKind::Uplink,
        network,
        mac,
        v4: Vec::new(),
        v6: Vec::new(),
        hostname: String::new(),
        up: true,
        lease_s: 0,
        limits: None,
        counters,
    }
}

/// The kernel's link address on a TAP device of that name: the same each time, locally administered.
fn tap_mac(name: &str) -> MacAddr {
    // FNV-1a.
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, octet| (hash ^ u32::from(octet)).wrapping_mul(0x0100_0193));
    let [a, b, c, d] = hash.to_be_bytes();
    MacAddr([0x02, 0x68, a, b, c, d & 0xfe])
}

/// The other one of a pair of link addresses, locally administered.
fn beside(MacAddr([a, b, c, d, e, f]): MacAddr) -> MacAddr {
    MacAddr([a | 0x02, b, c, d, e, f ^ 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_addresses_of_a_pair_differ_and_are_nobodys() {
        for name in ["hw-up", "tap0", ""] {
            let (kernel, ours) = (tap_mac(name), beside(tap_mac(name)));
            assert_ne!(kernel, ours);
            for mac in [kernel, ours] {
                assert!(!mac.is_multicast() && mac.0[0] & 2 != 0, "{mac}");
            }
        }
        assert_ne!(tap_mac("tap0"), tap_mac("tap1"));
        assert_eq!(beside(beside(tap_mac("a"))), tap_mac("a"));
    }

    #[test]
    fn an_interface_that_is_refused_is_tried_again_less_and_less_often() {
        for (refused, seconds) in [(1, 1), (2, 2), (3, 4), (5, 16), (6, 30), (7, 30), (u32::MAX, 30)] {
            assert_eq!(open_again(refused), Duration::from_secs(seconds), "{refused}");
        }
    }
}
