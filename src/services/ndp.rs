//! Neighbour discovery (RFC 4861), duplicate address detection (RFC 4862) and router advertisements (RFC 8106): the
//! switch is the router `fe80::1` of every network and, with default addressing, the neighbour for every address of
//! its range (SEMANTICS RA1–RA5, ND1–ND3).
//!
//! It keeps no neighbour table: guests' addresses come from the tables, and an address that a guest is about to form
//! is reported to control by a note. `guard` has dropped advertisements and redirects that guests must not send.

use std::net::{IpAddr, Ipv6Addr};

use hostweave_switch::packet::Packet;
use hostweave_switch::payload::Segment;
use hostweave_switch::stage::{DropReason, Verdict};
use hostweave_switch::tables::{AddressKey, Addressing, METADATA_V6, Network, Port, ROUTER_LINK_LOCAL};
use hostweave_switch::wire::frame::{self, checksum_valid};
use hostweave_switch::wire::icmpv6::kind::ROUTER_ADVERT as ROUTER_ADVERTISEMENT;
pub use hostweave_switch::wire::icmpv6::kind::{
    NEIGHBOR_ADVERT as NEIGHBOR_ADVERTISEMENT, NEIGHBOR_SOLICIT as NEIGHBOR_SOLICITATION, REDIRECT,
    ROUTER_SOLICIT as ROUTER_SOLICITATION,
};
pub use hostweave_switch::wire::ipv6::ALL_NODES;
use hostweave_switch::wire::ndp::option;
use hostweave_switch::wire::writer::{Full, Writer};
use hostweave_switch::{MacAddr, limits};

use super::{LocalContext, LocalNote, search, verdict};

/// Answers a neighbour discovery message.
pub fn answer(
    ctx: &LocalContext<'_>,
    packet: &mut Packet,
    arena: &mut [Segment],
    note: &mut Option<LocalNote>,
) -> Verdict {
    verdict(reply(ctx, packet, arena, note))
}

fn reply(
    ctx: &LocalContext<'_>,
    packet: &mut Packet,
    arena: &mut [Segment],
    note: &mut Option<LocalNote>,
) -> Result<(), DropReason> {
    let message = Message::check(packet, arena)?;
    match message.kind {
        ROUTER_SOLICITATION => {
            if ctx.network.v6.is_none() {
                return Err(DropReason::NeighborNoAnswer);
            }
            // RFC 4861 §6.2.6: "A router MAY choose to unicast the response directly to the soliciting host's address
            // (if the solicitation's source address is not the unspecified address)".
            let to = if message.source.is_unspecified() { ALL_NODES } else { message.source };
            let mac = if message.source.is_unspecified() { MULTICAST_ALL_NODES } else { ctx.port.mac };
            let (network, port) = (ctx.network, ctx.port);
            let built = frame::replace(packet, |frame| router_advertisement(network, port, mac, to, frame));
            built.map_err(|_| DropReason::Internal)
        }
        NEIGHBOR_SOLICITATION => {
            let answer = neighbor(ctx, &message, note).ok_or(DropReason::NeighborNoAnswer)?;
            let built = frame::replace(packet, |frame| answer.emit(ctx.port.mac, frame));
            built.map_err(|_| DropReason::Internal)
        }
        // Unsolicited, for an owned address (ND3): nothing to learn.
        NEIGHBOR_ADVERTISEMENT => Err(DropReason::NeighborNoAnswer),
        _ => Err(DropReason::RouterAdvertisementFromGuest),
    }
}

/// What a message says that survived the checks of RFC 4861 §6.1.1 and §7.1.1.
pub(super) struct Message {
    pub(super) kind: u8,
    pub(super) source: Ipv6Addr,
    /// Of a neighbour solicitation; unspecified for the others.
    pub(super) target: Ipv6Addr,
}

impl Message {
    pub(super) fn check(packet: &mut Packet, arena: &mut [Segment]) -> Result<Self, DropReason> {
        let invalid = DropReason::NdInvalid;
        let (l3, l4) = (usize::from(packet.meta.layers.l3), usize::from(packet.meta.layers.l4));
        let end = l3 + packet.meta.l3_len as usize;
        // RFC 6980 §5: "Nodes MUST silently ignore" fragmented neighbour discovery messages.
        if packet.meta.fragment || packet.meta.offload.is_gso() || end > limits::HEAD_MAX {
            return Err(invalid);
        }
        packet.extend_head(end, arena).map_err(|_| invalid)?;
        let header = packet.head().get(l3..).and_then(|bytes| bytes.first_chunk::<40>()).ok_or(invalid)?;
        let body = packet.head().get(l4..end).ok_or(invalid)?;
        let (source, destination) = (address(header, 8)?, address(header, 24)?);
        let partial = packet.meta.offload.needs_csum();
        // "The IP Hop Limit field has a value of 255, i.e., the packet could not possibly have been forwarded by a
        // router. ICMP Checksum is valid. ICMP Code is 0." A checksum left to the device cannot be wrong.
        if header[7] != 255 || body.len() < 8 || body[1] != 0 {
            return Err(invalid);
        }
        if !partial && !checksum_valid(58, &header[8..], body) {
            return Err(invalid);
        }
        let kind = body[0];
        let solicits_neighbor = kind == NEIGHBOR_SOLICITATION;
        let target = if solicits_neighbor { address(body, 8)? } else { Ipv6Addr::UNSPECIFIED };
        if target.is_multicast() {
            return Err(invalid);
        }
        let fixed = match kind {
            ROUTER_SOLICITATION => 8,
            NEIGHBOR_SOLICITATION | NEIGHBOR_ADVERTISEMENT => 24,
            _ => return Ok(Self { kind, source, target }),
        };
        let link_address = check_options(body.get(fixed..).ok_or(invalid)?)?;
        // "If the IP source address is the unspecified address, the IP destination address is a solicited-node
        // multicast address", and "there is no source link-layer address option in the message."
        if source.is_unspecified() {
            let solicited_node = destination.octets()[..13] == SOLICITED_NODE;
            if link_address || (solicits_neighbor && !solicited_node) {
                return Err(invalid);
            }
        }
        Ok(Self { kind, source, target })
    }
}

/// "All included options have a length that is greater than zero." Returns whether there is a source link-layer
/// address among them.
fn check_options(mut options: &[u8]) -> Result<bool, DropReason> {
    let mut link_address = false;
    while let [kind, len, ..] = *options {
        let rest = options.get(usize::from(len) * 8..).filter(|_| len > 0);
        options = rest.ok_or(DropReason::NdInvalid)?;
        link_address |= kind == option::SOURCE_LINK_LAYER;
    }
    if options.is_empty() { Ok(link_address) } else { Err(DropReason::NdInvalid) }
}

/// The address at `at`.
pub(super) fn address(bytes: &[u8], at: usize) -> Result<Ipv6Addr, DropReason> {
    let octets = bytes.get(at..).and_then(|rest| rest.first_chunk::<16>());
    octets.map(|octets| Ipv6Addr::from(*octets)).ok_or(DropReason::NdInvalid)
}

/// A neighbour advertisement of ours.
struct Advertisement {
    to: Ipv6Addr,
    target: Ipv6Addr,
    flags: u8,
}

impl Advertisement {
    fn emit(&self, guest: MacAddr, frame: &mut [u8]) -> Result<usize, Full> {
        let mac = if self.to == ALL_NODES { MULTICAST_ALL_NODES } else { guest };
        // From the address that is asked for: some stacks (smoltcp) learn the sender instead of the target.
        frame::icmp6(frame, mac, self.target, self.to, |writer| {
            writer.bytes(&[NEIGHBOR_ADVERTISEMENT, 0, 0, 0, self.flags, 0, 0, 0])?;
            writer.bytes(&self.target.octets())?;
            put_link_address(writer, option::TARGET_LINK_LAYER)
        })
    }
}

/// Whether and how a neighbour solicitation is answered.
fn neighbor(ctx: &LocalContext<'_>, message: &Message, note: &mut Option<LocalNote>) -> Option<Advertisement> {
    let target = message.target;
    // DAD for the own address stays unanswered, or the guest could never use it. Link-local addresses are shared with
    // nobody but the router.
    if ctx.port.v6.contains(&target) || (target.is_unicast_link_local() && target != ROUTER_LINK_LOCAL) {
        return None;
    }
    let router = target == ROUTER_LINK_LOCAL
        || target == METADATA_V6
        || ctx.network.v6.is_some_and(|(_, gateway)| gateway == target);
    let in_range = ctx.network.v6.is_some_and(|(range, _)| range.contains(&target));
    if message.source.is_unspecified() {
        if !router && (!in_range || !taken(ctx, target, note)) {
            return None;
        }
        // RFC 4861 §7.2.4: "If the source of the solicitation is the unspecified address, the node MUST set the
        // Solicited flag to zero and multicast the advertisement to the all-nodes address."
        let flags = if router { FLAG_ROUTER | FLAG_OVERRIDE } else { 0 };
        return Some(Advertisement { to: ALL_NODES, target, flags });
    }
    // For other guests' addresses the switch is a proxy: RFC 4861 §7.2.8, "the Override flag SHOULD be set to zero".
    let flags = if router { FLAG_ROUTER | FLAG_SOLICITED | FLAG_OVERRIDE } else { FLAG_SOLICITED };
    let ours = router || (in_range && ctx.network.addressing == Addressing::Network);
    ours.then_some(Advertisement { to: message.source, target, flags })
}

/// Whether a guest must not form this address of the range. One that is free is reported instead (SEMANTICS RA5).
fn taken(ctx: &LocalContext<'_>, target: Ipv6Addr, note: &mut Option<LocalNote>) -> bool {
    // The subnet-router anycast address is the router's (RFC 4291 §2.6.1), except where RFC 6164 §4 does away with it.
    let anycast = ctx.network.v6.is_some_and(|(range, _)| range.prefix_len() < 127 && range.network() == target);
    let owner = ctx.tables.owner(AddressKey::new(ctx.port.network, IpAddr::V6(target)));
    // `addressLearning: off` refuses what guests form by themselves; a refusal here makes the guest's own DAD fail,
    // so that it does not try to use an address that `guard` would drop.
    if anycast || owner.is_some_and(|owner| owner != ctx.port.id) || (owner.is_none() && !ctx.network.learning) {
        return true;
    }
    if owner.is_none() {
        *note = Some(LocalNote::AddressSeen(target));
    }
    false
}

/// Writes the router advertisement of a network as a frame to `mac` and `to`, and returns its length. Sent in answer
/// to a solicitation, and unsolicited to [`ALL_NODES`] so that guests' lifetimes never run out. To a port with an attached
/// address the prefix is deprecated (RFC 4862 §5.5.4): its guest keeps the private address, and prefers the attached one,
/// which DHCPv6 hands out, as the source of what it begins (RFC 6724 §5, rule 3; SEMANTICS DA2).
///
/// # Errors
/// When it does not fit `frame`.
pub fn router_advertisement(
    network: &Network,
    port: &Port,
    mac: MacAddr,
    to: Ipv6Addr,
    frame: &mut [u8],
) -> Result<usize, Full> {
    frame::icmp6(frame, mac, ROUTER_LINK_LOCAL, to, |writer| {
        writer.bytes(&[ROUTER_ADVERTISEMENT, 0, 0, 0, HOP_LIMIT, FLAG_MANAGED | FLAG_OTHER])?;
        writer.u16(ROUTER_LIFETIME_S)?;
        writer.zeros(8)?;
        put_link_address(writer, option::SOURCE_LINK_LAYER)?;
        writer.bytes(&[OPTION_MTU, 1, 0, 0])?;
        writer.u32(u32::from(network.mtu))?;
        put_prefix(writer, network, port)?;
        put_resolvers(writer, network)?;
        put_search_list(writer, network, port)
    })
}

fn put_link_address(writer: &mut Writer<'_>, option: u8) -> Result<(), Full> {
    writer.bytes(&[option, 1])?;
    writer.bytes(&MacAddr::ROUTER.0)
}

fn put_prefix(writer: &mut Writer<'_>, network: &Network, port: &Port) -> Result<(), Full> {
    let Some((range, _)) = network.v6 else { return Ok(()) };
    // SEMANTICS RA3: A only for a /64, whose interface identifiers are 64 bits long; not on link with host addressing.
    let autonomous = if range.prefix_len() == 64 { FLAG_AUTONOMOUS } else { 0 };
    let on_link = if network.addressing == Addressing::Network { FLAG_ON_LINK } else { 0 };
    if autonomous | on_link == 0 {
        return Ok(());
    }
    writer.bytes(&[OPTION_PREFIX, 4, range.prefix_len(), on_link | autonomous])?;
    writer.u32(VALID_LIFETIME_S)?;
    let attached = port.v6.first().is_some_and(|first| !range.contains(first));
    writer.u32(if attached { 0 } else { PREFERRED_LIFETIME_S })?;
    writer.zeros(4)?;
    writer.bytes(&range.network().octets())
}

fn put_resolvers(writer: &mut Writer<'_>, network: &Network) -> Result<(), Full> {
    let resolvers = || resolvers_v6(network).take(RESOLVERS_MAX);
    let count = resolvers().count() as u8;
    if count == 0 {
        return Ok(());
    }
    writer.bytes(&[OPTION_RDNSS, 1 + 2 * count, 0, 0])?;
    writer.u32(DNS_LIFETIME_S)?;
    resolvers().try_for_each(|resolver| writer.bytes(&resolver.octets()))
}

fn put_search_list(writer: &mut Writer<'_>, network: &Network, port: &Port) -> Result<(), Full> {
    let start = writer.len();
    // Whole units of eight octets, so that what is written can be padded.
    let room = writer.room() / 8 * 8;
    if room < DNSSL_HEADER_LEN {
        return Ok(());
    }
    writer.bytes(&[OPTION_DNSSL, 0, 0, 0])?;
    writer.u32(DNS_LIFETIME_S)?;
    let mut names = [0; DNSSL_LEN_MAX];
    let mut list = Writer::new(&mut names[..(room - DNSSL_HEADER_LEN).min(DNSSL_LEN_MAX)]);
    if !search::put(&mut list, network, port) {
        writer.rewind(start);
        return Ok(());
    }
    writer.bytes(list.written())?;
    // RFC 8106 §5.2: "this field MUST be padded with zeros" to a multiple of 8 octets.
    writer.zeros((writer.len() - start).next_multiple_of(8) - (writer.len() - start))?;
    let units = (writer.len() - start) / 8;
    writer.patch_u16(start, u16::from_be_bytes([OPTION_DNSSL, units as u8]));
    Ok(())
}

/// The resolvers that IPv6 options can carry.
pub fn resolvers_v6(network: &Network) -> impl Iterator<Item = Ipv6Addr> {
    network.resolvers.iter().filter_map(|resolver| match resolver {
        IpAddr::V6(resolver) => Some(*resolver),
        IpAddr::V4(_) => None,
    })
}

/// The Ethernet group of [`ALL_NODES`] (RFC 2464 §7).
pub const MULTICAST_ALL_NODES: MacAddr = MacAddr([0x33, 0x33, 0, 0, 0, 1]);
const SOLICITED_NODE: [u8; 13] = [0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff];
const OPTION_PREFIX: u8 = 3;
const OPTION_MTU: u8 = 5;
const OPTION_RDNSS: u8 = 25;
const OPTION_DNSSL: u8 = 31;
const DNSSL_HEADER_LEN: usize = 8;
/// Octets of the three longest names, in units of eight.
const DNSSL_LEN_MAX: usize = 768;
const FLAG_ROUTER: u8 = 0x80;
/// It answers a solicitation.
pub const FLAG_SOLICITED: u8 = 0x40;
/// It replaces what is known.
pub const FLAG_OVERRIDE: u8 = 0x20;
/// Addresses by DHCPv6, which serves every port (RA2).
const FLAG_MANAGED: u8 = 0x80;
/// The rest by DHCPv6.
const FLAG_OTHER: u8 = 0x40;
const FLAG_ON_LINK: u8 = 0x80;
const FLAG_AUTONOMOUS: u8 = 0x40;
const HOP_LIMIT: u8 = 64;
/// RFC 8319 §4 allows the whole field; the longest keeps guests that miss many advertisements.
const ROUTER_LIFETIME_S: u16 = 65_535;
/// RFC 4861 §6.2.1, `AdvValidLifetime`: 30 days.
const VALID_LIFETIME_S: u32 = 2_592_000;
/// RFC 4861 §6.2.1, `AdvPreferredLifetime`: 7 days.
const PREFERRED_LIFETIME_S: u32 = 604_800;
/// As long as the router itself.
const DNS_LIFETIME_S: u32 = ROUTER_LIFETIME_S as u32;
/// Resolvers in one advertisement; RFC 8106 §5.3.1 has hosts keep three.
const RESOLVERS_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::super::testing::{
        A_LINK_LOCAL, A_V6, B_V6, FREE_V6, GATEWAY_V6, GUEST_A, Outcome, PREFIX, World, icmpv6, link_address,
    };
    use super::*;
    use hostweave_switch::wire::ipv6::solicited_node;
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{
        EthernetAddress, EthernetFrame, Icmpv6Packet, Icmpv6Repr, Ipv6Packet, NdiscNeighborFlags, NdiscPrefixInfoFlags,
        NdiscRepr, NdiscRouterFlags, RawHardwareAddress,
    };

    const NOBODY: Ipv6Addr = Ipv6Addr::UNSPECIFIED;
    const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

    fn solicit(world: &World, from: Ipv6Addr, target: Ipv6Addr, to: Ipv6Addr) -> Outcome {
        let mac = EthernetAddress(GUEST_A.0);
        let lladdr = (!from.is_unspecified()).then(|| RawHardwareAddress::from(mac));
        let message = NdiscRepr::NeighborSolicit { target_addr: target, lladdr };
        world.ask(&icmpv6(from, to, 255, &Icmpv6Repr::Ndisc(message)))
    }

    /// Destination MAC and address of the answer, and what smoltcp reads in it.
    fn read(frame: &[u8], from: Ipv6Addr, check: impl FnOnce(MacAddr, Ipv6Addr, NdiscRepr<'_>)) {
        let frame = EthernetFrame::new_checked(frame).unwrap();
        let packet = Ipv6Packet::new_checked(frame.payload()).unwrap();
        assert_eq!((packet.src_addr(), packet.hop_limit()), (from, 255));
        let icmp = Icmpv6Packet::new_checked(packet.payload()).unwrap();
        let checks = ChecksumCapabilities::default();
        let repr = Icmpv6Repr::parse(&packet.src_addr(), &packet.dst_addr(), &icmp, &checks).unwrap();
        let Icmpv6Repr::Ndisc(repr) = repr else { panic!("{repr:?}") };
        check(MacAddr(frame.dst_addr().0), packet.dst_addr(), repr);
    }

    fn advertised(outcome: Outcome, to: Ipv6Addr, target: Ipv6Addr, flags: NdiscNeighborFlags) {
        read(&outcome.reply(), target, |mac, dst, repr| {
            let router = EthernetAddress(MacAddr::ROUTER.0);
            let expected = NdiscRepr::NeighborAdvert { flags, target_addr: target, lladdr: Some(router.into()) };
            assert_eq!((dst, repr), (to, expected));
            assert_eq!(mac, if to == ALL_NODES { link_address(to) } else { GUEST_A });
        });
    }

    #[test]
    fn address_resolution_is_answered_for_router_and_range() {
        let mut world = World::new();
        let router = NdiscNeighborFlags::ROUTER | NdiscNeighborFlags::SOLICITED | NdiscNeighborFlags::OVERRIDE;
        let proxy = NdiscNeighborFlags::SOLICITED;
        let router_has = [ROUTER_LINK_LOCAL, GATEWAY_V6, METADATA_V6].map(|target| (target, router));
        for (target, flags) in router_has.into_iter().chain([(B_V6, proxy), (FREE_V6, proxy)]) {
            for from in [A_V6, A_LINK_LOCAL] {
                advertised(solicit(&world, from, target, solicited_node(target)), from, target, flags);
                // NUD: unicast.
                advertised(solicit(&world, from, target, target), from, target, flags);
            }
        }
        let silence = Verdict::Drop(DropReason::NeighborNoAnswer);
        let outside = "2001:db8:0:2::7".parse().unwrap();
        let neighbor = "fe80::ff:fe00:b".parse().unwrap();
        for target in [outside, neighbor, A_V6] {
            assert_eq!(solicit(&world, A_LINK_LOCAL, target, solicited_node(target)).verdict, silence, "{target}");
        }
        world.network.addressing = Addressing::Host;
        assert_eq!(solicit(&world, A_V6, B_V6, solicited_node(B_V6)).verdict, silence);
        advertised(solicit(&world, A_V6, GATEWAY_V6, solicited_node(GATEWAY_V6)), A_V6, GATEWAY_V6, router);
    }

    #[test]
    fn duplicate_address_detection_fails_for_what_others_own() {
        let mut world = World::new();
        let silence = Verdict::Drop(DropReason::NeighborNoAnswer);
        let ask = |world: &World, target| solicit(world, NOBODY, target, solicited_node(target));
        for target in [A_V6, A_LINK_LOCAL, "2001:db8:0:2::7".parse().unwrap()] {
            let outcome = ask(&world, target);
            assert_eq!((outcome.verdict, outcome.note), (silence, None), "{target}");
        }
        let router = NdiscNeighborFlags::ROUTER | NdiscNeighborFlags::OVERRIDE;
        advertised(ask(&world, GATEWAY_V6), ALL_NODES, GATEWAY_V6, router);
        advertised(ask(&world, ROUTER_LINK_LOCAL), ALL_NODES, ROUTER_LINK_LOCAL, router);
        advertised(ask(&world, B_V6), ALL_NODES, B_V6, NdiscNeighborFlags::empty());
        advertised(ask(&world, PREFIX), ALL_NODES, PREFIX, NdiscNeighborFlags::empty());
        let free = ask(&world, FREE_V6);
        assert_eq!((free.verdict, free.note), (silence, Some(LocalNote::AddressSeen(FREE_V6))));
        world.network.learning = false;
        let refused = ask(&world, FREE_V6);
        assert_eq!(refused.note, None);
        advertised(refused, ALL_NODES, FREE_V6, NdiscNeighborFlags::empty());
        advertised(ask(&world, B_V6), ALL_NODES, B_V6, NdiscNeighborFlags::empty());
    }

    #[test]
    fn a_router_solicitation_is_answered_at_once() {
        let world = World::new();
        let mac = RawHardwareAddress::from(EthernetAddress(GUEST_A.0));
        for (from, to, lladdr) in [(A_LINK_LOCAL, A_LINK_LOCAL, Some(mac)), (NOBODY, ALL_NODES, None)] {
            let message = Icmpv6Repr::Ndisc(NdiscRepr::RouterSolicit { lladdr });
            let frame = world.ask(&icmpv6(from, ALL_ROUTERS, 255, &message)).reply();
            read(&frame, ROUTER_LINK_LOCAL, |_, dst, repr| {
                assert_eq!(dst, to);
                let NdiscRepr::RouterAdvert { hop_limit, flags, router_lifetime, lladdr, mtu, prefix_info, .. } = repr
                else {
                    panic!("{repr:?}")
                };
                assert_eq!((hop_limit, mtu), (64, Some(1450)));
                assert_eq!(flags, NdiscRouterFlags::MANAGED | NdiscRouterFlags::OTHER);
                assert!(router_lifetime.secs() > 0);
                assert_eq!(lladdr, Some(EthernetAddress(MacAddr::ROUTER.0).into()));
                let prefix = prefix_info.unwrap();
                assert_eq!((prefix.prefix, prefix.prefix_len), (PREFIX, 64));
                assert_eq!(prefix.flags, NdiscPrefixInfoFlags::ON_LINK | NdiscPrefixInfoFlags::ADDRCONF);
                assert!(prefix.valid_lifetime >= prefix.preferred_lifetime);
            });
            // RFC 8106 §5.1, §5.2, behind the header and link address, MTU and prefix.
            let options = &frame[14 + 40 + 16 + 8 + 8 + 32..];
            let resolver = [&[25, 3, 0, 0, 0, 0, 0xff, 0xff], &GATEWAY_V6.octets()[..]].concat();
            let zone = &b"\x07cluster\x05local\0"[..];
            let services = [b"\x03svc", zone].concat();
            let names = [&b"\x07default"[..], &services, &services, zone, &[0; 3]].concat();
            let search = [&[31, 9, 0, 0, 0, 0, 0xff, 0xff][..], &names].concat();
            assert_eq!(options, [resolver, search].concat());
        }
    }

    #[test]
    fn the_prefix_follows_the_addressing() {
        let mut world = World::new();
        let flags = |world: &World| {
            let mut frame = [0; 512];
            let len = router_advertisement(&world.network, &world.port, GUEST_A, ALL_NODES, &mut frame).unwrap();
            let mut found = None;
            read(&frame[..len], ROUTER_LINK_LOCAL, |_, _, repr| match repr {
                NdiscRepr::RouterAdvert { prefix_info, .. } => found = prefix_info.map(|prefix| prefix.flags),
                _ => panic!("{repr:?}"),
            });
            found
        };
        world.network.addressing = Addressing::Host;
        assert_eq!(flags(&world), Some(NdiscPrefixInfoFlags::ADDRCONF));
        world.network.v6 = Some(("2001:db8:0:1::/112".parse().unwrap(), GATEWAY_V6));
        assert_eq!(flags(&world), None);
        world.network.addressing = Addressing::Network;
        assert_eq!(flags(&world), Some(NdiscPrefixInfoFlags::ON_LINK));
        world.network.v6 = None;
        let message = Icmpv6Repr::Ndisc(NdiscRepr::RouterSolicit { lladdr: None });
        let outcome = world.ask(&icmpv6(A_LINK_LOCAL, ALL_ROUTERS, 255, &message));
        assert_eq!(outcome.verdict, Verdict::Drop(DropReason::NeighborNoAnswer));
    }

    #[test]
    fn da2_the_prefix_is_deprecated_where_an_address_is_attached() {
        let mut world = World::new();
        let preferred = |world: &World| {
            let message = Icmpv6Repr::Ndisc(NdiscRepr::RouterSolicit { lladdr: None });
            let mut found = (0, 0);
            let frame = world.ask(&icmpv6(A_LINK_LOCAL, ALL_ROUTERS, 255, &message)).reply();
            read(&frame, ROUTER_LINK_LOCAL, |_, _, repr| match repr {
                NdiscRepr::RouterAdvert { prefix_info: Some(prefix), .. } => {
                    found = (prefix.preferred_lifetime.secs(), prefix.valid_lifetime.secs());
                }
                _ => panic!("{repr:?}"),
            });
            found
        };
        let plain = preferred(&world);
        assert!(plain.0 > 0);
        world.port.v6.insert(0, "2001:db8:aa::7".parse().unwrap());
        assert_eq!(preferred(&world), (0, plain.1));
    }

    #[test]
    fn what_rfc_4861_tells_to_discard_is_discarded() {
        let world = World::new();
        let invalid = Verdict::Drop(DropReason::NdInvalid);
        let message = Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { target_addr: GATEWAY_V6, lladdr: None });
        let good = icmpv6(A_V6, solicited_node(GATEWAY_V6), 255, &message);
        assert_eq!(world.ask(&good).verdict, Verdict::Reply);
        let routed = icmpv6(A_V6, solicited_node(GATEWAY_V6), 254, &message);
        assert_eq!(world.ask(&routed).verdict, invalid);
        let mut bad_checksum = good.clone();
        bad_checksum[56] ^= 1;
        assert_eq!(world.ask(&bad_checksum).verdict, invalid);
        let to_a_host = icmpv6(NOBODY, GATEWAY_V6, 255, &message);
        assert_ne!(world.ask(&to_a_host).verdict, Verdict::Reply);
        assert_eq!(check_options(&[1, 1, 0, 0, 0, 0, 0, 0]), Ok(true));
        assert_eq!(check_options(&[14, 1, 0, 0, 0, 0, 0, 0]), Ok(false));
        for bad in [&[1u8, 0, 0, 0, 0, 0, 0, 0][..], &[1, 2, 0, 0, 0, 0, 0, 0], &[1]] {
            assert_eq!(check_options(bad), Err(DropReason::NdInvalid));
        }
    }

    #[test]
    fn an_advertisement_of_the_own_address_ends_here() {
        let message = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
            flags: NdiscNeighborFlags::OVERRIDE,
            target_addr: A_V6,
            lladdr: Some(EthernetAddress(GUEST_A.0).into()),
        });
        let outcome = World::new().ask(&icmpv6(A_V6, ALL_NODES, 255, &message));
        assert_eq!(outcome.verdict, Verdict::Drop(DropReason::NeighborNoAnswer));
    }
}
