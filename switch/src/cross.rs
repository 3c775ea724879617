//! The last step of a packet that leaves its network: for another network of the host, or for the world behind the uplink.
//! What [`crate::rewrite`] is to a packet that stays.
//!
//! Whatever came before, no packet leaves by the uplink with a source address that is not the host's to use there
//! (SEMANTICS NA35): that is looked up here, in what will be sent.

use crate::MacAddr;
use crate::connection::Change;
use crate::packet::{L3, Packet};
use crate::rewriting::{self, Rewriting};
use crate::route::{self, destination, source};
use crate::stage::DropReason;
use crate::tables::{Egress, NetworkId, NextHop, Owned, Port, PortId, PortKind, Tables, Uplink, mapped};
use crate::translate::translate;
use crate::wire::{ethernet, ipv4, ipv6, proto, tcp};

/// Which way a packet goes out of its network.
#[derive(Clone, Copy, Debug)]
pub struct Hop {
    /// Destination and source at the link.
    pub link: [MacAddr; 2],
    /// Octets of IP packet that the other network takes.
    pub mtu: u16,
}

/// Addresses a packet of `network` to `out`, makes it what `change` says, and takes one off its TTL. Link address, TTL, MTU and
/// next hop are checked first. `hash` is the flow's: it chooses among several gateways. Returns what the next packets of
/// the flow may be rewritten by without another look.
///
/// # Errors
/// Why the packet may not go on. It is as it was received then, unless it is `SourceNotOwned`. For `MtuExceeded`,
/// `meta.out_port` says whose network it is too long for.
#[inline]
pub fn cross(
    packet: &mut Packet,
    tables: &Tables,
    network: NetworkId,
    out: &Port,
    hash: u32,
    change: Option<&Change>,
) -> Result<Option<Rewriting>, DropReason> {
    let uplink = if out.kind == PortKind::Uplink { Some(uplink(tables)?) } else { None };
    let to = change.map_or_else(|| destination(packet).map(mapped), |change| Some(change.dst()));
    let hop = may_cross(packet, tables, uplink, out, to.ok_or(DropReason::Internal)?, hash)?;
    let before = rewriting::shared_of(packet);
    if let Some(change) = change {
        translate(packet, change)?;
    }
    let mtu = tables.network(network).map_or(u16::MAX, |network| network.mtu);
    clamp(packet, mtu, hop.mtu);
    let l3 = packet.meta.l3;
    let frame = packet.head_mut().first_chunk_mut::<{ ethernet::HEADER_LEN + ipv4::HEADER_LEN }>();
    let (link, header) = frame.ok_or(DropReason::Internal)?.split_at_mut(ethernet::HEADER_LEN);
    let (Some(link), Some(header)) = (link.first_chunk_mut(), header.first_chunk_mut()) else {
        return Err(DropReason::Internal);
    };
    let [dst, src] = hop.link;
    ethernet::set_addresses(link, dst, src);
    if out.kind != PortKind::Internal {
        match l3 {
            L3::V4 => ipv4::decrement_ttl(header),
            // It is above one, as the TTL is: `may_cross` has checked.
            L3::V6 => ipv6::decrement_hop_limit(header),
            L3::Arp | L3::None => return Err(DropReason::Internal),
        }
    }
    if uplink.is_some_and(|uplink| !may_leave(tables, uplink, network, packet)) {
        return Err(DropReason::SourceNotOwned);
    }
    // What arrives at the host keeps its TTL.
    let change = change.filter(|_| out.kind != PortKind::Internal);
    Ok(change.and_then(|change| Rewriting::of(packet, before, change, hop.mtu, mtu != hop.mtu)))
}

/// Whether a packet may go to `out` now, and which way; `to` is the address that it will have as its destination there.
///
/// # Errors
/// As [`cross`].
#[inline(always)]
pub fn may_cross(
    packet: &mut Packet,
    tables: &Tables,
    uplink: Option<&Uplink>,
    out: &Port,
    to: u128,
    hash: u32,
) -> Result<Hop, DropReason> {
    let mtu = tables.network(out.network).map_or(0, |network| network.mtu);
    let too_long = route::widest(packet) > u32::from(mtu);
    let frame = packet.head().first_chunk().ok_or(DropReason::Internal)?;
    let l3 = packet.meta.l3;
    route::check(frame, l3, too_long, out).inspect_err(|reason| {
        if *reason == DropReason::MtuExceeded {
            packet.meta.out_port = out.id;
        }
    })?;
    let link = match uplink {
        Some(uplink) => [next_hop(uplink, packet.meta.in_port, l3, to, hash)?, uplink.mac],
        None => [out.mac, MacAddr::ROUTER],
    };
    Ok(Hop { link, mtu })
}

fn uplink(tables: &Tables) -> Result<&Uplink, DropReason> {
    tables.uplink.as_deref().ok_or(DropReason::UplinkDown)
}

/// Where a flow of a port goes next: to the receiver itself if it is on the link and has answered, else by a gateway that has, chosen by
/// hash.
#[inline]
fn next_hop(uplink: &Uplink, port: PortId, l3: L3, to: u128, hash: u32) -> Result<MacAddr, DropReason> {
    if !uplink.link {
        return Err(DropReason::UplinkDown);
    }
    if let Some(neighbor) = uplink.on_link.next_hop(port, to) {
        return Ok(neighbor);
    }
    let gateways = if l3 == L3::V4 { &uplink.v4 } else { &uplink.v6 };
    match gateways.as_slice() {
        [one] => one.mac,
        several => choose(several, hash),
    }
    .ok_or(DropReason::NextHopUnresolved)
}

fn choose(gateways: &[NextHop], hash: u32) -> Option<MacAddr> {
    let resolved = || gateways.iter().filter_map(|gateway| gateway.mac);
    let count = resolved().count() as u64;
    // Of the upper bits: the lower ones choose queues.
    resolved().nth(((u64::from(hash) * count) >> 32) as usize)
}

/// Whether the source of a packet is one that its sender may use out there: an address of a NAT pool or Service, its own attached
/// address, or one of a range that is routed to its network.
#[inline]
fn may_leave(tables: &Tables, uplink: &Uplink, network: NetworkId, packet: &Packet) -> bool {
    let Some(src) = source(packet) else { return false };
    match uplink.known(src) {
        // Nobody sends as these themselves: `guard` lets no port.
        Some(Owned::Nat | Owned::Service) => true,
        Some(Owned::Attached { port, .. }) => *port == packet.meta.in_port,
        Some(Owned::Host) => false,
        None => uplink.is_routed_to(src, network) && leaves_as_it_is(tables, network, packet),
    }
}

/// Whether a packet goes where its network sends packets untranslated.
#[cold]
fn leaves_as_it_is(tables: &Tables, network: NetworkId, packet: &Packet) -> bool {
    let egress = || Some(tables.network(network)?.egress_to(destination(packet)?));
    egress() == Some(Egress::Routed)
}

/// The MSS of a SYN that leaves for a network of a smaller MTU than the sender knows of (RFC 9293 §3.7.1; RFC 8200 §8.3). Where
/// both are equal nothing is touched: path MTU discovery sees to the rest.
#[inline]
fn clamp(packet: &mut Packet, from: u16, to: u16) {
    const FLAGS: usize = 13;
    if packet.meta.proto != proto::TCP || packet.meta.later_fragment || from == to {
        return;
    }
    let l4 = usize::from(packet.meta.layers.l4);
    let syn = packet.head().get(l4 + FLAGS).is_some_and(|flags| flags & tcp::flags::SYN != 0);
    if syn {
        clamp_to(packet, from.min(to));
    }
}

#[cold]
fn clamp_to(packet: &mut Packet, mtu: u16) {
    let headers = if packet.meta.l3 == L3::V4 { 20 } else { 40 } + tcp::HEADER_LEN as u16;
    let partial = packet.meta.offload.needs_csum();
    let (l4, l5) = (usize::from(packet.meta.layers.l4), usize::from(packet.meta.layers.l5));
    if let Some(segment) = packet.head_mut().get_mut(l4..l5) {
        tcp::clamp_mss(segment, mtu.saturating_sub(headers), partial);
    }
}
