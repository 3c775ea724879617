//! Where to? One exact lookup of (network, destination) in the address table (RFC 1812 §5.2.4: what a router does with a
//! destination), for the first packet of a connection; TTL and MTU, for every packet.
//!
//! Every local destination is a host route, and the gateway's addresses belong to the network's internal port, so a
//! hit needs no look at address classes; they only say why a miss ends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::packet::{L3, Packet};
use crate::stage::DropReason;
use crate::tables::{AddressKey, Network, NetworkId, Port, PortId, PortKind, ROUTER_LINK_LOCAL, Tables};
use crate::wire::ethernet;
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::Ipv6;
use crate::wire::{icmpv6, proto};

/// Finds the port of a packet from `network`.
///
/// # Errors
/// No port owns the destination, or it may not be forwarded to one.
#[inline]
pub fn route(tables: &Tables, network: NetworkId, packet: &Packet) -> Result<PortId, DropReason> {
    let key = match destination(packet) {
        Some(IpAddr::V4(dst)) => AddressKey::v4(network, dst),
        Some(IpAddr::V6(dst)) => AddressKey::v6(network, dst),
        // `local` ends all ARP; of a port that it does not serve, nothing is left to do.
        None if packet.meta.l3 == L3::Arp => return Err(DropReason::NeighborNoAnswer),
        None => return Err(DropReason::Internal),
    };
    let Some(out_port) = tables.owner(key) else {
        let network = tables.network(network).ok_or(DropReason::Internal)?;
        return Err(unowned(network, packet));
    };
    Ok(out_port)
}

/// Whether a packet may go on to `out`: link address, TTL and MTU, for each packet anew.
///
/// # Errors
/// `MulticastNotForwarded`, `TtlExceeded` or `MtuExceeded`.
#[inline]
pub fn may_go_on(network: &Network, packet: &Packet, out: &Port) -> Result<(), DropReason> {
    let frame = packet.head().first_chunk().ok_or(DropReason::Internal)?;
    check(frame, packet.meta.l3, widest(packet) > u32::from(network.mtu), out)
}

/// [`may_go_on`] of the first octets of a frame.
#[inline]
pub(crate) fn check(
    frame: &[u8; ethernet::HEADER_LEN + ipv4::HEADER_LEN],
    l3: L3,
    too_long: bool,
    out: &Port,
) -> Result<(), DropReason> {
    const TTL_V4: usize = ethernet::HEADER_LEN + 8;
    const HOP_LIMIT_V6: usize = ethernet::HEADER_LEN + 7;
    /// Bit of the first octet of a MAC address.
    const GROUP: u8 = 1;
    let ttl = if l3 == L3::V4 { frame[TTL_V4] } else { frame[HOP_LIMIT_V6] };
    // RFC 1122 §3.3.6, RFC 1812 §5.3.4: a packet to a group of the link may not be forwarded to one host.
    let group = frame[0] & GROUP != 0;
    // RFC 1812 §5.3.1: "a router MUST NOT ... discard a packet just because it has a TTL of zero or one, if it has
    // otherwise determined that the router is the packet's destination".
    let expired = ttl <= 1 && out.kind != PortKind::Internal;
    if group | expired | too_long {
        return Err(refused(group, expired));
    }
    Ok(())
}

/// Why [`check`] lets a packet not go on.
#[cold]
fn refused(group: bool, expired: bool) -> DropReason {
    match (group, expired) {
        (true, _) => DropReason::MulticastNotForwarded,
        (_, true) => DropReason::TtlExceeded,
        _ => DropReason::MtuExceeded,
    }
}

/// Octets of IP packet of the longest packet that the frame stands for (SEMANTICS VU12): a GSO frame is as long as its
/// segments.
#[inline]
pub(crate) fn widest(packet: &Packet) -> u32 {
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

/// The source of a parsed packet, IPv4-mapped for IPv4.
#[inline]
pub(crate) fn source(packet: &Packet) -> Option<u128> {
    let octets = packet.head().get(ethernet::HEADER_LEN..)?;
    match packet.meta.l3 {
        L3::V4 => Some(0xffff_0000_0000 | u128::from(u32::from(Ipv4::new_checked(octets)?.src()))),
        L3::V6 => Some(u128::from(Ipv6::new_checked(octets)?.src())),
        L3::Arp | L3::None => None,
    }
}

/// Whether a packet whose destination no port of its network owns may be for somebody beyond it: an address that can be
/// forwarded and that does not lie in the network's own range.
pub fn leads_out(network: &Network, packet: &Packet) -> bool {
    unowned(network, packet) == DropReason::NoRoute
        && match destination(packet) {
            Some(IpAddr::V4(dst)) => !network.v4.is_some_and(|(range, _)| range.contains(&dst)),
            Some(IpAddr::V6(dst)) => !network.v6.is_some_and(|(range, _)| range.contains(&dst)),
            None => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::{GATEWAY_V4, GATEWAY_V6, GUEST_A, GUEST_B, INTERNAL, NETWORK, tables, v4, v6};
    use crate::packet::{Offload, virtio_net};
    use crate::parse::parse;
    use crate::stage::Verdict;
    use crate::testing::{self, ipv4_frame, ipv6_frame, udp};

    fn routed(frame: &[u8], offload: Offload) -> Result<PortId, DropReason> {
        testing::with(frame, |packet, arena| {
            packet.meta.offload = offload;
            assert_eq!(parse(packet, arena), Verdict::Continue);
            let tables = tables();
            let out = route(&tables, NETWORK, packet)?;
            may_go_on(tables.network(NETWORK).unwrap(), packet, tables.port(out).unwrap()).map(|()| out)
        })
    }

    fn to_v4(dst: Ipv4Addr, ttl: u8, data: usize) -> Result<PortId, DropReason> {
        routed(&ipv4_frame(v4(GUEST_A), dst, 17, ttl, &udp(1, 2, &vec![0; data])), Offload::default())
    }

    fn to_v6(dst: &str, ttl: u8, data: usize) -> Result<PortId, DropReason> {
        let dst = dst.parse().unwrap();
        routed(&ipv6_frame(v6(GUEST_A), dst, 17, ttl, &udp(1, 2, &vec![0; data])), Offload::default())
    }

    #[test]
    fn owners_of_the_senders_network() {
        assert_eq!(to_v4(v4(GUEST_B), 64, 0), Ok(GUEST_B));
        assert_eq!(to_v6(&v6(GUEST_B).to_string(), 64, 0), Ok(GUEST_B));
        assert_eq!(to_v4(GATEWAY_V4, 64, 0), Ok(INTERNAL));
        assert_eq!(to_v6(&GATEWAY_V6.to_string(), 64, 0), Ok(INTERNAL));
    }

    #[test]
    fn destinations_that_nobody_owns() {
        for (dst, reason) in [
            ([192, 0, 2, 99], DropReason::NoRoute),
            ([203, 0, 113, 1], DropReason::NoRoute),
            ([192, 0, 2, 255], DropReason::MulticastNotForwarded),
            ([255, 255, 255, 255], DropReason::MulticastNotForwarded),
            ([224, 0, 0, 251], DropReason::MulticastNotForwarded),
            ([127, 0, 0, 1], DropReason::AddressNotForwardable),
            ([0, 0, 0, 0], DropReason::AddressNotForwardable),
            ([169, 254, 1, 1], DropReason::AddressNotForwardable),
        ] {
            assert_eq!(to_v4(dst.into(), 64, 0), Err(reason), "{dst:?}");
        }
        for (dst, reason) in [
            ("2001:db8::99", DropReason::NoRoute),
            ("2001:db8:1::1", DropReason::NoRoute),
            ("ff02::fb", DropReason::MulticastNotForwarded),
            ("::1", DropReason::AddressNotForwardable),
            ("::", DropReason::AddressNotForwardable),
            ("fe80::2", DropReason::AddressNotForwardable),
            ("fe80::1", DropReason::GatewayNoService),
        ] {
            assert_eq!(to_v6(dst, 64, 0), Err(reason), "{dst}");
        }
    }

    #[test]
    fn group_reports() {
        let igmp = ipv4_frame(v4(GUEST_A), [224, 0, 0, 22].into(), 2, 1, &[0x22; 8]);
        assert_eq!(routed(&igmp, Offload::default()), Err(DropReason::GroupMembership));
        let mld = testing::icmpv6_frame(v6(GUEST_A), "ff02::16".parse().unwrap(), 1, &[143, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(routed(&mld, Offload::default()), Err(DropReason::GroupMembership));
    }

    #[test]
    fn group_of_the_link_is_not_forwarded_to_one_host() {
        let mut frame = ipv4_frame(v4(GUEST_A), v4(GUEST_B), 17, 64, &udp(1, 2, b""));
        frame[..6].fill(0xff);
        assert_eq!(routed(&frame, Offload::default()), Err(DropReason::MulticastNotForwarded));
    }

    #[test]
    fn ttl_ends_between_ports_but_not_at_the_gateway() {
        for ttl in [0, 1] {
            assert_eq!(to_v4(v4(GUEST_B), ttl, 0), Err(DropReason::TtlExceeded));
            assert_eq!(to_v6(&v6(GUEST_B).to_string(), ttl, 0), Err(DropReason::TtlExceeded));
            assert_eq!(to_v4(GATEWAY_V4, ttl, 0), Ok(INTERNAL));
            assert_eq!(to_v6(&GATEWAY_V6.to_string(), ttl, 0), Ok(INTERNAL));
        }
        assert_eq!(to_v4(v4(GUEST_B), 2, 0), Ok(GUEST_B));
    }

    #[test]
    fn mtu_is_inclusive() {
        assert_eq!(to_v4(v4(GUEST_B), 64, 1472), Ok(GUEST_B));
        assert_eq!(to_v4(v4(GUEST_B), 64, 1473), Err(DropReason::MtuExceeded));
        assert_eq!(to_v6(&v6(GUEST_B).to_string(), 64, 1452), Ok(GUEST_B));
        assert_eq!(to_v6(&v6(GUEST_B).to_string(), 64, 1453), Err(DropReason::MtuExceeded));
    }

    #[test]
    fn gso_frames_are_as_long_as_their_segments() {
        let frame = ipv4_frame(v4(GUEST_A), v4(GUEST_B), 6, 64, &testing::tcp(1, 2, &[0; 60_000]));
        let offload = |gso_size| Offload {
            flags: virtio_net::NEEDS_CSUM,
            gso_type: virtio_net::GSO_TCPV4,
            gso_size,
            csum_start: 34,
            csum_offset: 16,
            ..Offload::default()
        };
        // 20 octets of IPv4 and 32 of TCP.
        assert_eq!(routed(&frame, offload(1448)), Ok(GUEST_B));
        assert_eq!(routed(&frame, offload(1449)), Err(DropReason::MtuExceeded));
    }
}
