//! Where to? One exact lookup of (network, destination) in the address table (RFC 1812 §5.2.4: what a router does with a
//! destination), then TTL and MTU.
//!
//! Every local destination is a host route, and the gateway's addresses belong to the network's internal port, so a
//! hit needs no look at address classes; they only say why a miss ends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::packet::{L3, Packet};
use crate::stage::{DropReason, Verdict};
use crate::tables::{AddressKey, Network, NetworkId, ROUTER_LINK_LOCAL, Tables};
use crate::wire::ethernet::{self, Ethernet};
use crate::wire::ipv4::Ipv4;
use crate::wire::ipv6::Ipv6;
use crate::wire::{icmpv6, proto};

/// Finds the port of a packet from `network`. `Forward` with `meta.out_port` set, or `Drop`.
#[inline]
pub fn route(tables: &Tables, network: NetworkId, packet: &mut Packet) -> Verdict {
    match decide(tables, network, packet) {
        Ok(()) => Verdict::Forward,
        Err(reason) => Verdict::Drop(reason),
    }
}

#[inline]
fn decide(tables: &Tables, id: NetworkId, packet: &mut Packet) -> Result<(), DropReason> {
    let network = tables.network(id).ok_or(DropReason::Internal)?;
    let octets = packet.head().get(ethernet::HEADER_LEN..).ok_or(DropReason::Internal)?;
    let (key, ttl) = match packet.meta.l3 {
        L3::V4 => {
            let header = Ipv4::new_checked(octets).ok_or(DropReason::Internal)?;
            (AddressKey::v4(id, header.dst()), header.ttl())
        }
        L3::V6 => {
            let header = Ipv6::new_checked(octets).ok_or(DropReason::Internal)?;
            (AddressKey::v6(id, header.dst()), header.hop_limit())
        }
        // `local` ends all ARP; of a port that it does not serve, nothing is left to do.
        L3::Arp => return Err(DropReason::NeighborNoAnswer),
        L3::None => return Err(DropReason::Internal),
    };
    let Some(out_port) = tables.owner(key) else { return Err(unowned(network, packet)) };
    // RFC 1122 §3.3.6, RFC 1812 §5.3.4: a packet to a group of the link may not be forwarded to one host.
    if Ethernet::new_checked(packet.head()).is_none_or(|header| header.dst().is_multicast()) {
        return Err(DropReason::MulticastNotForwarded);
    }
    // RFC 1812 §5.3.1: "a router MUST NOT ... discard a packet just because it has a TTL of zero or one, if it has
    // otherwise determined that the router is the packet's destination".
    if ttl <= 1 && out_port != network.internal {
        return Err(DropReason::TtlExceeded);
    }
    if widest(packet) > u32::from(network.mtu) {
        return Err(DropReason::MtuExceeded);
    }
    packet.meta.out_port = out_port;
    Ok(())
}

/// Octets of IP packet of the longest packet that the frame stands for (SEMANTICS VU12): a GSO frame is as long as its
/// segments.
#[inline]
fn widest(packet: &Packet) -> u32 {
    let meta = &packet.meta;
    if meta.offload.is_gso() {
        u32::from(meta.layers.l5 - meta.layers.l3) + u32::from(meta.offload.gso_size)
    } else {
        meta.l3_len
    }
}

/// Why a packet ends whose destination no port owns.
#[cold]
fn unowned(network: &Network, packet: &Packet) -> DropReason {
    match destination(packet) {
        Some(IpAddr::V4(dst)) => unowned_v4(network, packet, dst),
        Some(IpAddr::V6(dst)) => unowned_v6(network, packet, dst),
        None => DropReason::Internal,
    }
}

fn unowned_v4(network: &Network, packet: &Packet, dst: Ipv4Addr) -> DropReason {
    if dst.is_multicast() {
        return if packet.meta.proto == proto::IGMP {
            DropReason::GroupMembership
        } else {
            DropReason::MulticastNotForwarded
        };
    }
    if is_broadcast(network, dst) {
        return DropReason::MulticastNotForwarded;
    }
    if network.v4.is_some_and(|(_, gateway)| gateway == dst) {
        return DropReason::GatewayNoService;
    }
    // RFC 1122 §3.2.1.3 (a), (g); RFC 3927 §2.7.
    if dst.octets()[0] == 0 || dst.is_loopback() || dst.is_link_local() {
        return DropReason::AddressNotForwardable;
    }
    DropReason::NoRoute
}

fn unowned_v6(network: &Network, packet: &Packet, dst: Ipv6Addr) -> DropReason {
    if dst.is_multicast() {
        let report = icmpv6::is_mld_report((packet.meta.dst_port >> 8) as u8) && !packet.meta.later_fragment;
        return if packet.meta.proto == proto::ICMPV6 && report {
            DropReason::GroupMembership
        } else {
            DropReason::MulticastNotForwarded
        };
    }
    if dst == ROUTER_LINK_LOCAL || network.v6.is_some_and(|(_, gateway)| gateway == dst) {
        return DropReason::GatewayNoService;
    }
    if dst.is_unspecified() || dst.is_loopback() || dst.is_unicast_link_local() {
        return DropReason::AddressNotForwardable;
    }
    DropReason::NoRoute
}

/// The limited broadcast, and that of the network's range, which RFC 3021 does away with in a /31.
pub(crate) fn is_broadcast(network: &Network, dst: Ipv4Addr) -> bool {
    let directed = network.v4.is_some_and(|(range, _)| range.prefix_len() < 31 && range.broadcast() == dst);
    dst.is_broadcast() || directed
}

/// The destination of a parsed packet.
pub(crate) fn destination(packet: &Packet) -> Option<IpAddr> {
    let octets = packet.head().get(ethernet::HEADER_LEN..)?;
    match packet.meta.l3 {
        L3::V4 => Some(IpAddr::V4(Ipv4::new_checked(octets)?.dst())),
        L3::V6 => Some(IpAddr::V6(Ipv6::new_checked(octets)?.dst())),
        L3::Arp | L3::None => None,
    }
}
