//! May this port use this source? MAC, IPv4, IPv6, ARP and neighbour discovery (SEMANTICS AR2, AR3, ND1–ND3), router
//! advertisements (RA4, RFC 6105, RFC 7113) and DHCP servers (DH6).
//!
//! `parse` came before: headers are where `meta` says, a neighbour discovery message is in the head as a whole, and a
//! first fragment has its transport header. A fragment behind it says nothing about its L4 ports or type; it cannot do
//! harm here, because a router advertisement or a DHCP offer is only received with its first fragment.
//!
//! The common case is one comparison of the source MAC, one of the source address, and two of L4 ports. The pipeline runs
//! the two halves, [`link`] and [`source`], apart: the second only for a flow that is not known yet.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::MacAddr;
use crate::packet::{L3, Packet};
use crate::stage::{DropReason, Verdict};
use crate::tables::{METADATA_V4, METADATA_V6, Network, Port, PortKind, ROUTER_LINK_LOCAL, Uplink};
use crate::wire::ethernet;
use crate::wire::icmpv6::{self, kind};
use crate::wire::ipv4::Ipv4;
use crate::wire::ipv6::{self, Ipv6};
use crate::wire::ndp::{NeighborAdvert, NeighborSolicit, RouterSolicit, option};
use crate::wire::udp::l4_port;
use crate::wire::{arp, array, proto};

/// Checks the source of a parsed packet. `Continue` or `Drop`.
#[inline]
pub fn guard(port: &Port, network: &Network, packet: &Packet) -> Verdict {
    match check(port, network, packet) {
        Ok(()) => Verdict::Continue,
        Err(reason) => Verdict::Drop(reason),
    }
}

#[inline]
fn check(port: &Port, network: &Network, packet: &Packet) -> Result<(), DropReason> {
    link_addresses(port, packet)?;
    source(port, network, packet)
}

/// The first half of [`guard`], for each packet: its MAC addresses.
#[inline(always)]
pub fn link(port: &Port, packet: &Packet) -> Verdict {
    match link_addresses(port, packet) {
        Ok(()) => Verdict::Continue,
        Err(reason) => Verdict::Drop(reason),
    }
}

#[inline(always)]
fn link_addresses(port: &Port, packet: &Packet) -> Result<(), DropReason> {
    let link: &[u8; ethernet::HEADER_LEN] = packet.head().first_chunk().ok_or(DropReason::Internal)?;
    let word = |at: usize| u64::from_le_bytes(array(link, at));
    // Both addresses as numbers: the first six and the next six octets.
    let (dst, src) = (word(0) & MAC_MASK, word(4) >> 16);
    if src != mac_number(port.mac) {
        // Unless it is the uplink's, whose frames come from its neighbours.
        if port.kind != PortKind::Uplink || dst != mac_number(port.mac) || src & GROUP != 0 {
            return foreign(port, dst, src);
        }
        return Ok(());
    }
    // The router is every guest's only neighbour.
    if dst != ROUTER && dst & GROUP == 0 {
        return Err(DropReason::NotForRouter);
    }
    Ok(())
}

/// The link addresses of a frame that does not come from the port's own, and is not simply for the uplink's.
#[cold]
fn foreign(port: &Port, dst: u64, src: u64) -> Result<(), DropReason> {
    if port.kind != PortKind::Uplink || src & GROUP != 0 {
        return Err(DropReason::SpoofedMac);
    }
    if dst != mac_number(port.mac) && dst & GROUP == 0 {
        return Err(DropReason::NotForRouter);
    }
    Ok(())
}

/// The router's MAC address as a number.
const ROUTER: u64 = mac_number(MacAddr::ROUTER);

/// Six octets.
const MAC_MASK: u64 = 0xffff_ffff_ffff;

/// The bit that makes a MAC address that of a group.
const GROUP: u64 = 1;

/// In the order of octets that processors load without turning them round.
#[inline]
const fn mac_number(MacAddr([a, b, c, d, e, f]): MacAddr) -> u64 {
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

/// The second half: everything above. Of a flow that is known, the first packet went through it, and a port whose addresses
/// change gets a new epoch.
///
/// # Errors
/// Why the packet ends.
#[inline]
pub fn source(port: &Port, network: &Network, packet: &Packet) -> Result<(), DropReason> {
    match port.kind {
        PortKind::Internal => return internal(network, packet),
        // Who is behind it nobody knows; `outside` says who is not.
        PortKind::Uplink => return Ok(()),
        PortKind::VhostUser | PortKind::Tap => {}
    }
    match packet.meta.l3 {
        L3::V4 => v4(port, packet),
        L3::V6 => v6(port, packet),
        L3::Arp => arp(port, packet),
        L3::None => Err(DropReason::Internal),
    }
}

/// The source of a packet that came in at the uplink and is for somebody behind it: nobody out there has an address of ours,
/// and some addresses nobody has (RFC 1812 §5.3.7, RFC 6890).
///
/// # Errors
/// `SpoofedIp` or `AddressNotForwardable`.
pub fn outside(uplink: &Uplink, packet: &Packet) -> Result<(), DropReason> {
    let src = crate::route::source(packet).ok_or(DropReason::Internal)?;
    let address = Ipv6Addr::from(src);
    let martian = match address.to_ipv4_mapped() {
        Some(v4) => {
            let first = v4.octets()[0];
            first == 0 || first >= 224 || v4.is_loopback() || v4.is_link_local()
        }
        None => {
            let none = address.is_unspecified() || address.is_loopback() || address.is_multicast();
            none || ipv6::is_link_local(address)
        }
    };
    if martian {
        return Err(DropReason::AddressNotForwardable);
    }
    if uplink.is_ours(src) {
        return Err(DropReason::SpoofedIp);
    }
    Ok(())
}

#[inline]
fn v4(port: &Port, packet: &Packet) -> Result<(), DropReason> {
    let header = v4_header(packet)?;
    let src = header.src();
    // Most ports have one address, and of several the first is used most.
    if port.v4.first() != Some(&src) && !port.v4.contains(&src) {
        may_be_unspecified_v4(packet, src, header.dst())?;
    }
    // Of a fragment behind the first, the L4 ports are zero.
    if packet.meta.src_port == l4_port::DHCPV4_SERVER && packet.meta.proto == proto::UDP {
        return Err(DropReason::DhcpServerFromGuest);
    }
    Ok(())
}

/// Without an address a host may ask for one (RFC 2131 §4.1) and report its groups (RFC 3376 §4.2.13).
#[cold]
fn may_be_unspecified_v4(packet: &Packet, src: Ipv4Addr, dst: Ipv4Addr) -> Result<(), DropReason> {
    let meta = &packet.meta;
    let dhcp = meta.proto == proto::UDP
        && !meta.later_fragment
        && (meta.src_port, meta.dst_port) == (l4_port::DHCPV4_CLIENT, l4_port::DHCPV4_SERVER)
        && dst.is_broadcast();
    let membership = meta.proto == proto::IGMP && dst.is_multicast();
    if src.is_unspecified() && (dhcp || membership) { Ok(()) } else { Err(DropReason::SpoofedIp) }
}

#[inline]
fn v6(port: &Port, packet: &Packet) -> Result<(), DropReason> {
    let header = v6_header(packet)?;
    let src = header.src();
    if port.v6.first() != Some(&src) && !port.v6.contains(&src) {
        not_global(packet, src, header.dst())?;
    }
    match packet.meta.proto {
        proto::ICMPV6 if !packet.meta.later_fragment => icmpv6(port, packet, header),
        proto::UDP if packet.meta.src_port == l4_port::DHCPV6_SERVER => Err(DropReason::DhcpServerFromGuest),
        _ => Ok(()),
    }
}

/// A link-local source stays on the link. Any interface identifier will do: hosts form stable opaque ones (RFC 7217),
/// and nobody but the router hears them. The unspecified address is for those who have none yet.
#[cold]
fn not_global(packet: &Packet, src: Ipv6Addr, dst: Ipv6Addr) -> Result<(), DropReason> {
    if ipv6::is_link_local(src) && src != ROUTER_LINK_LOCAL {
        // RFC 4291 §2.5.6: "Routers must not forward any packets with Link-Local source or destination addresses".
        // Unreachability is probed from there too, at a global address (RFC 4861 §7.3.3); `local` ends every such message.
        let ndp = packet.meta.proto == proto::ICMPV6
            && !packet.meta.later_fragment
            && icmpv6::is_ndp((packet.meta.dst_port >> 8) as u8);
        let on_link = ndp || ipv6::is_link_local(dst) || dst.is_multicast();
        return if on_link { Ok(()) } else { Err(DropReason::AddressNotForwardable) };
    }
    let kind = (packet.meta.dst_port >> 8) as u8;
    let asks = matches!(kind, kind::NEIGHBOR_SOLICIT | kind::ROUTER_SOLICIT) || icmpv6::is_mld_report(kind);
    let icmpv6 = packet.meta.proto == proto::ICMPV6 && !packet.meta.later_fragment;
    if src.is_unspecified() && icmpv6 && asks && dst.is_multicast() { Ok(()) } else { Err(DropReason::SpoofedIp) }
}

#[cold]
fn icmpv6(port: &Port, packet: &Packet, header: Ipv6<'_>) -> Result<(), DropReason> {
    let message = packet.head().get(usize::from(packet.meta.layers.l4)..).ok_or(DropReason::Internal)?;
    let kind = *message.first().ok_or(DropReason::L4Malformed)?;
    if matches!(kind, kind::ROUTER_ADVERT | kind::REDIRECT) {
        return Err(DropReason::RouterAdvertisementFromGuest);
    }
    if !icmpv6::is_ndp(kind) {
        return Ok(());
    }
    // RFC 4861 §7.1.1 and §7.1.2; RFC 6980 §5: "Nodes MUST silently ignore the following Neighbor Discovery ... messages
    // if the packets carrying them include an IPv6 Fragmentation Header".
    let (src, dst) = (header.src(), header.dst());
    if header.hop_limit() != 255 || packet.meta.fragment || !icmpv6::verify(message, src, dst) {
        return Err(DropReason::NdInvalid);
    }
    match kind {
        kind::ROUTER_SOLICIT => router_solicit(port, message, src),
        kind::NEIGHBOR_SOLICIT => neighbor_solicit(port, message, src, dst),
        _ => neighbor_advert(port, message, dst),
    }
}

fn router_solicit(port: &Port, message: &[u8], src: Ipv6Addr) -> Result<(), DropReason> {
    let solicit = RouterSolicit::parse(message).ok_or(DropReason::NdInvalid)?;
    // RFC 4861 §6.1.1: no source link-layer address from the unspecified address.
    if src.is_unspecified() && solicit.options.link_layer(option::SOURCE_LINK_LAYER).is_some() {
        return Err(DropReason::NdInvalid);
    }
    own(solicit.options.all_link_layer(option::SOURCE_LINK_LAYER, port.mac))
}

/// Anybody may be asked for; the asker must be the port (or nobody yet, when it checks for duplicates).
fn neighbor_solicit(port: &Port, message: &[u8], src: Ipv6Addr, dst: Ipv6Addr) -> Result<(), DropReason> {
    let solicit = NeighborSolicit::parse(message).ok_or(DropReason::NdInvalid)?;
    if src.is_unspecified() {
        // RFC 4861 §7.1.1: then "the IP destination address is a solicited-node multicast address" and "there is no
        // source link-layer address option in the message".
        let group = ipv6::solicited_node(solicit.target);
        if dst != group || solicit.options.link_layer(option::SOURCE_LINK_LAYER).is_some() {
            return Err(DropReason::NdInvalid);
        }
    }
    own(solicit.options.all_link_layer(option::SOURCE_LINK_LAYER, port.mac))
}

fn neighbor_advert(port: &Port, message: &[u8], dst: Ipv6Addr) -> Result<(), DropReason> {
    let advert = NeighborAdvert::parse(message).ok_or(DropReason::NdInvalid)?;
    // RFC 4861 §7.1.2: "If the IP Destination Address is a multicast address the Solicited flag is zero."
    if dst.is_multicast() && advert.solicited {
        return Err(DropReason::NdInvalid);
    }
    let target = advert.target;
    let own_target = port.v6.contains(&target) || (ipv6::is_link_local(target) && target != ROUTER_LINK_LOCAL);
    own(own_target && advert.options.all_link_layer(option::TARGET_LINK_LAYER, port.mac))
}

fn own(yes: bool) -> Result<(), DropReason> {
    if yes { Ok(()) } else { Err(DropReason::SpoofedNd) }
}

#[cold]
fn arp(port: &Port, packet: &Packet) -> Result<(), DropReason> {
    let message = arp_message(packet)?;
    let own_sender = port.v4.contains(&message.sender_ip) || message.is_probe();
    if message.sender_mac == port.mac && own_sender { Ok(()) } else { Err(DropReason::SpoofedArp) }
}

/// The host's own services are trusted to be who they are, but only the gateway's addresses and those of metadata are theirs.
fn internal(network: &Network, packet: &Packet) -> Result<(), DropReason> {
    let gateway_v4 = network.v4.map(|(_, gateway)| gateway);
    let gateway_v6 = network.v6.map(|(_, gateway)| gateway);
    let (own, reason) = match packet.meta.l3 {
        L3::V4 => {
            let src = v4_header(packet)?.src();
            (Some(src) == gateway_v4 || src == METADATA_V4, DropReason::SpoofedIp)
        }
        L3::V6 => {
            let src = v6_header(packet)?.src();
            let none_yet = src.is_unspecified() && packet.meta.proto == proto::ICMPV6;
            let own = Some(src) == gateway_v6 || src == METADATA_V6 || ipv6::is_link_local(src);
            (own || none_yet, DropReason::SpoofedIp)
        }
        L3::Arp => {
            let sender = arp_message(packet)?.sender_ip;
            (sender.is_unspecified() || Some(sender) == gateway_v4, DropReason::SpoofedArp)
        }
        L3::None => (false, DropReason::Internal),
    };
    if own { Ok(()) } else { Err(reason) }
}

#[inline]
fn v4_header(packet: &Packet) -> Result<Ipv4<'_>, DropReason> {
    packet.head().get(ethernet::HEADER_LEN..).and_then(Ipv4::new_checked).ok_or(DropReason::Internal)
}

#[inline]
fn v6_header(packet: &Packet) -> Result<Ipv6<'_>, DropReason> {
    packet.head().get(ethernet::HEADER_LEN..).and_then(Ipv6::new_checked).ok_or(DropReason::Internal)
}

fn arp_message(packet: &Packet) -> Result<arp::Message, DropReason> {
    packet.head().get(ethernet::HEADER_LEN..).and_then(arp::Message::parse).ok_or(DropReason::ArpInvalid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::{GATEWAY_V4, GATEWAY_V6, GUEST_A, GUEST_B, INTERNAL, mac, tables, v4, v6};
    use crate::parse::parse;
    use crate::tables::PortId;
    use crate::testing::{self, arp_frame, icmpv6_frame, ipv4_frame, ipv6_frame, neighbor, udp};

    fn verdict_of(port: PortId, frame: &[u8]) -> Verdict {
        let tables = tables();
        let port = tables.port(port).unwrap();
        testing::with(frame, |packet, arena| {
            assert_eq!(parse(packet, arena), Verdict::Continue);
            guard(port, tables.network(port.network).unwrap(), packet)
        })
    }

    /// What becomes of a frame of guest a.
    fn verdict(frame: &[u8]) -> Verdict {
        verdict_of(GUEST_A, frame)
    }

    const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0xdead, 0xbeef, 0, 1);
    const SPOOFED_IP: Verdict = Verdict::Drop(DropReason::SpoofedIp);

    #[test]
    fn own_addresses_pass() {
        assert_eq!(verdict(&ipv4_frame(v4(GUEST_A), v4(GUEST_B), 17, 64, &udp(1, 2, b""))), Verdict::Continue);
        assert_eq!(verdict(&ipv6_frame(v6(GUEST_A), v6(GUEST_B), 17, 64, &udp(1, 2, b""))), Verdict::Continue);
    }

    #[test]
    fn link_addresses() {
        let mut frame = ipv4_frame(v4(GUEST_A), v4(GUEST_B), 17, 64, &udp(1, 2, b""));
        frame[11] ^= 1;
        assert_eq!(verdict(&frame), Verdict::Drop(DropReason::SpoofedMac));
        frame[11] ^= 1;
        frame[..6].copy_from_slice(&mac(GUEST_B).0);
        assert_eq!(verdict(&frame), Verdict::Drop(DropReason::NotForRouter));
    }

    #[test]
    fn addresses_of_others() {
        for src in [v4(GUEST_B), GATEWAY_V4, Ipv4Addr::UNSPECIFIED, Ipv4Addr::LOCALHOST, Ipv4Addr::BROADCAST] {
            assert_eq!(verdict(&ipv4_frame(src, v4(GUEST_B), 17, 64, &udp(1, 2, b""))), SPOOFED_IP, "{src}");
        }
        let multicast = "ff02::1".parse().unwrap();
        for src in [v6(GUEST_B), GATEWAY_V6, Ipv6Addr::UNSPECIFIED, Ipv6Addr::LOCALHOST, ROUTER_LINK_LOCAL, multicast] {
            assert_eq!(verdict(&ipv6_frame(src, v6(GUEST_B), 17, 64, &udp(1, 2, b""))), SPOOFED_IP, "{src}");
        }
    }

    #[test]
    fn link_local_source_stays_on_the_link() {
        let to = |dst| verdict(&ipv6_frame(LINK_LOCAL, dst, 17, 64, &udp(546, 547, b"")));
        assert_eq!(to(ROUTER_LINK_LOCAL), Verdict::Continue);
        assert_eq!(to("ff02::1:2".parse().unwrap()), Verdict::Continue);
        assert_eq!(to(v6(GUEST_B)), Verdict::Drop(DropReason::AddressNotForwardable));
    }

    #[test]
    fn unspecified_source_may_ask_for_an_address() {
        let from_nobody = |dst, src_port, dst_port| {
            verdict(&ipv4_frame(Ipv4Addr::UNSPECIFIED, dst, 17, 64, &udp(src_port, dst_port, b"")))
        };
        assert_eq!(from_nobody(Ipv4Addr::BROADCAST, 68, 67), Verdict::Continue);
        assert_eq!(from_nobody(Ipv4Addr::BROADCAST, 68, 68), SPOOFED_IP);
        assert_eq!(from_nobody(GATEWAY_V4, 68, 67), SPOOFED_IP);
        let igmp = ipv4_frame(Ipv4Addr::UNSPECIFIED, "224.0.0.22".parse().unwrap(), 2, 1, &[0x22; 8]);
        assert_eq!(verdict(&igmp), Verdict::Continue);
        let mld = icmpv6_frame(Ipv6Addr::UNSPECIFIED, "ff02::16".parse().unwrap(), 1, &[143, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(verdict(&mld), Verdict::Continue);
        let echo = icmpv6_frame(Ipv6Addr::UNSPECIFIED, ipv6::ALL_NODES, 64, &[128, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(verdict(&echo), SPOOFED_IP);
    }

    #[test]
    fn dhcp_servers_are_the_hosts() {
        let dropped = Verdict::Drop(DropReason::DhcpServerFromGuest);
        assert_eq!(verdict(&ipv4_frame(v4(GUEST_A), v4(GUEST_B), 17, 64, &udp(67, 68, b""))), dropped);
        assert_eq!(verdict(&ipv6_frame(v6(GUEST_A), v6(GUEST_B), 17, 64, &udp(547, 546, b""))), dropped);
        assert_eq!(verdict(&ipv6_frame(LINK_LOCAL, ROUTER_LINK_LOCAL, 17, 64, &udp(547, 546, b""))), dropped);
    }

    #[test]
    fn arp_senders() {
        let spoofed = Verdict::Drop(DropReason::SpoofedArp);
        assert_eq!(verdict(&arp_frame(|_| ())), Verdict::Continue);
        assert_eq!(verdict(&arp_frame(|arp| arp.sender_ip = Ipv4Addr::UNSPECIFIED)), Verdict::Continue, "probe");
        assert_eq!(verdict(&arp_frame(|arp| arp.target_ip = arp.sender_ip)), Verdict::Continue, "announcement");
        assert_eq!(verdict(&arp_frame(|arp| arp.sender_ip = v4(GUEST_B))), spoofed);
        assert_eq!(verdict(&arp_frame(|arp| arp.sender_ip = GATEWAY_V4)), spoofed);
        assert_eq!(verdict(&arp_frame(|arp| arp.sender_mac = mac(GUEST_B))), spoofed);
        let reply = arp_frame(|arp| {
            arp.operation = arp::Operation::Reply;
            arp.sender_ip = Ipv4Addr::UNSPECIFIED;
        });
        assert_eq!(verdict(&reply), spoofed, "a reply is no probe");
    }

    #[test]
    fn router_advertisements_and_redirects_are_the_hosts() {
        let dropped = Verdict::Drop(DropReason::RouterAdvertisementFromGuest);
        let message = |kind| {
            let mut message = vec![0; 40];
            message[0] = kind;
            message
        };
        for kind in [134, 137] {
            assert_eq!(verdict(&icmpv6_frame(LINK_LOCAL, ipv6::ALL_NODES, 255, &message(kind))), dropped);
            // RFC 7113: behind extension headers and fragment headers too.
            let hidden = [&[58, 0, 1, 4, 0, 0, 0, 0][..], &message(kind)].concat();
            assert_eq!(verdict(&ipv6_frame(LINK_LOCAL, ipv6::ALL_NODES, 60, 255, &hidden)), dropped);
            let fragment = [&[58, 0, 0, 1, 0, 0, 0, 1][..], &message(kind)].concat();
            assert_eq!(verdict(&ipv6_frame(LINK_LOCAL, ipv6::ALL_NODES, 44, 255, &fragment)), dropped);
        }
    }

    fn solicit(src: Ipv6Addr, dst: Ipv6Addr, target: Ipv6Addr, option: Option<(u8, MacAddr)>) -> Verdict {
        verdict(&icmpv6_frame(src, dst, 255, &neighbor(kind::NEIGHBOR_SOLICIT, 0, target, option)))
    }

    #[test]
    fn neighbour_solicitations() {
        let own = Some((option::SOURCE_LINK_LAYER, mac(GUEST_A)));
        let other = Some((option::SOURCE_LINK_LAYER, mac(GUEST_B)));
        let (target, group) = (v6(GUEST_B), ipv6::solicited_node(v6(GUEST_B)));
        let none = Ipv6Addr::UNSPECIFIED;
        assert_eq!(solicit(v6(GUEST_A), group, target, own), Verdict::Continue);
        assert_eq!(solicit(LINK_LOCAL, group, target, own), Verdict::Continue);
        assert_eq!(solicit(v6(GUEST_A), target, target, None), Verdict::Continue, "unicast, for reachability");
        assert_eq!(solicit(none, group, target, None), Verdict::Continue, "duplicate address detection");
        assert_eq!(solicit(v6(GUEST_A), group, target, other), Verdict::Drop(DropReason::SpoofedNd));
        let invalid = Verdict::Drop(DropReason::NdInvalid);
        assert_eq!(solicit(none, group, target, own), invalid, "source link-layer address of nobody");
        assert_eq!(solicit(none, ipv6::ALL_NODES, target, None), invalid, "not the solicited-node group");
    }

    #[test]
    fn neighbour_discovery_is_checked_first() {
        let message = neighbor(kind::NEIGHBOR_SOLICIT, 0, v6(GUEST_B), None);
        let group = ipv6::solicited_node(v6(GUEST_B));
        let invalid = Verdict::Drop(DropReason::NdInvalid);
        assert_eq!(verdict(&icmpv6_frame(v6(GUEST_A), group, 254, &message)), invalid, "hop limit");
        let mut frame = icmpv6_frame(v6(GUEST_A), group, 255, &message);
        frame[56] ^= 1;
        assert_eq!(verdict(&frame), invalid, "checksum");
        assert_eq!(verdict(&icmpv6_frame(v6(GUEST_A), group, 255, &message[..23])), invalid, "cut off");
        let mut complete = message.clone();
        icmpv6::fill_checksum(&mut complete, v6(GUEST_A), group).unwrap();
        let atomic = [&[58, 0, 0, 0, 0, 0, 0, 1][..], &complete].concat();
        assert_eq!(verdict(&ipv6_frame(v6(GUEST_A), group, 44, 255, &atomic)), invalid, "RFC 6980");
    }

    #[test]
    fn neighbour_advertisements() {
        let advert = |flags, dst, target, mac| {
            let message = neighbor(kind::NEIGHBOR_ADVERT, flags, target, Some((option::TARGET_LINK_LAYER, mac)));
            verdict(&icmpv6_frame(v6(GUEST_A), dst, 255, &message))
        };
        let spoofed = Verdict::Drop(DropReason::SpoofedNd);
        assert_eq!(advert(0x20, ipv6::ALL_NODES, v6(GUEST_A), mac(GUEST_A)), Verdict::Continue);
        assert_eq!(advert(0x60, ROUTER_LINK_LOCAL, LINK_LOCAL, mac(GUEST_A)), Verdict::Continue);
        for target in [v6(GUEST_B), GATEWAY_V6, ROUTER_LINK_LOCAL] {
            assert_eq!(advert(0x20, ipv6::ALL_NODES, target, mac(GUEST_A)), spoofed, "{target}");
        }
        assert_eq!(advert(0x20, ipv6::ALL_NODES, v6(GUEST_A), mac(GUEST_B)), spoofed);
        let invalid = Verdict::Drop(DropReason::NdInvalid);
        assert_eq!(advert(0x40, ipv6::ALL_NODES, v6(GUEST_A), mac(GUEST_A)), invalid, "solicited, to all");
    }

    #[test]
    fn router_solicitations() {
        let with = |src, mac: Option<MacAddr>| {
            let mut message = vec![kind::ROUTER_SOLICIT, 0, 0, 0, 0, 0, 0, 0];
            if let Some(mac) = mac {
                message.extend([1, 1]);
                message.extend(mac.0);
            }
            verdict(&icmpv6_frame(src, ipv6::ALL_ROUTERS, 255, &message))
        };
        assert_eq!(with(LINK_LOCAL, Some(mac(GUEST_A))), Verdict::Continue);
        assert_eq!(with(Ipv6Addr::UNSPECIFIED, None), Verdict::Continue);
        assert_eq!(with(LINK_LOCAL, Some(mac(GUEST_B))), Verdict::Drop(DropReason::SpoofedNd));
        assert_eq!(with(Ipv6Addr::UNSPECIFIED, Some(mac(GUEST_A))), Verdict::Drop(DropReason::NdInvalid));
    }

    #[test]
    fn internal_port_is_the_gateway() {
        let from_internal = |mut frame: Vec<u8>| {
            frame[6..12].copy_from_slice(&mac(INTERNAL).0);
            verdict_of(INTERNAL, &frame)
        };
        let to = v4(GUEST_B);
        assert_eq!(from_internal(ipv4_frame(GATEWAY_V4, to, 17, 64, &udp(67, 68, b""))), Verdict::Continue);
        assert_eq!(from_internal(ipv4_frame(METADATA_V4, to, 17, 64, &udp(80, 68, b""))), Verdict::Continue);
        assert_eq!(from_internal(ipv4_frame(v4(GUEST_A), to, 17, 64, &udp(1, 2, b""))), SPOOFED_IP);
        let to = v6(GUEST_B);
        assert_eq!(from_internal(ipv6_frame(GATEWAY_V6, to, 17, 64, &udp(1, 2, b""))), Verdict::Continue);
        assert_eq!(from_internal(ipv6_frame(METADATA_V6, to, 17, 64, &udp(80, 68, b""))), Verdict::Continue);
        assert_eq!(from_internal(ipv6_frame(v6(GUEST_A), to, 17, 64, &udp(1, 2, b""))), SPOOFED_IP);
        assert_eq!(from_internal(arp_frame(|arp| arp.sender_ip = GATEWAY_V4)), Verdict::Continue);
        assert_eq!(from_internal(arp_frame(|_| ())), Verdict::Drop(DropReason::SpoofedArp));
    }
}
