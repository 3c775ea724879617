//! The host as a neighbour at the uplink: ARP (RFC 826, RFC 5227) and neighbour discovery (RFC 4861) for exactly the
//! addresses that it owns there, and echo to its own and to those of Services; frames that ask for routers and announce addresses.
//!
//! Anybody on that link is hostile. Nothing is learned here: what routers say goes to control by a note, whose state
//! machine ([`crate::fabric`]'s `uplink`) knows whether it was asked for. Notes come only from messages about a router,
//! or in the name of an address of ours; each kind has a budget of its own ([`crate::worker::pace`]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hostweave_switch::MacAddr;
use hostweave_switch::packet::{L3, Packet};
use hostweave_switch::payload::Segment;
use hostweave_switch::stage::{DropReason, Verdict};
use hostweave_switch::tables::{self, NextHop, Owned, Uplink};
use hostweave_switch::wire::arp::{self, Message, Operation};
use hostweave_switch::wire::ndp::{NeighborAdvert, NeighborSolicit, option};
use hostweave_switch::wire::writer::{Full, Writer};
use hostweave_switch::wire::{ethernet, frame, ipv6};

use super::ndp::{ALL_NODES, FLAG_OVERRIDE, FLAG_SOLICITED, MULTICAST_ALL_NODES};
use super::{LocalContext, LocalNote, PROTO_ICMP, PROTO_ICMPV6, PROTO_IGMP, mld, ndp, ping, verdict};

/// Octets of the longest frame that is made here: Ethernet, IPv6, neighbour solicitation with one option.
const FRAME_MAX: usize = 14 + 40 + 24 + 8;

/// A frame of ours.
pub type Frame = Vec<u8>;

/// Answers what came in at the uplink, if it is for the host as a neighbour. `Continue` when it is not.
#[cold]
pub fn answer(
    ctx: &LocalContext<'_>,
    packet: &mut Packet,
    arena: &mut [Segment],
    note: &mut Option<LocalNote>,
) -> Verdict {
    let Some(uplink) = ctx.tables.uplink.as_deref().filter(|uplink| uplink.port == ctx.port.id) else {
        return Verdict::Drop(DropReason::Internal);
    };
    let kind = packet.head().get(usize::from(packet.meta.layers.l4)).copied();
    match (packet.meta.l3, packet.meta.proto) {
        (L3::Arp, _) => verdict(arp(uplink, packet, arena, note)),
        (L3::V4, PROTO_ICMP) => {
            ping::reflect_v4(packet, uplink.mac, |address| answers_echo(uplink, tables::mapped(address.into())))
        }
        (L3::V4, PROTO_IGMP) => Verdict::Drop(DropReason::GroupMembership),
        (L3::V6, PROTO_ICMPV6) => match kind {
            Some(mld::QUERY) if !packet.meta.later_fragment => {
                *note = mld::Query::read(packet, arena).map(LocalNote::ListenersAsked);
                Verdict::Drop(DropReason::GroupMembership)
            }
            Some(131 | 132 | 143) if !packet.meta.later_fragment => Verdict::Drop(DropReason::GroupMembership),
            Some(ndp::ROUTER_SOLICITATION..=ndp::REDIRECT) if !packet.meta.later_fragment => {
                verdict(discovery(uplink, packet, arena, note))
            }
            _ => ping::reflect_v6(packet, uplink.mac, |address| answers_echo(uplink, u128::from(address))),
        },
        _ => Verdict::Continue,
    }
}

/// Whether the host answers pings to an address: behind one that is neither its own nor a Service's somebody else may.
fn answers_echo(uplink: &Uplink, address: u128) -> bool {
    matches!(uplink.owned.get(&address), Some(Owned::Host | Owned::Service))
}

fn arp(
    uplink: &Uplink,
    packet: &mut Packet,
    arena: &mut [Segment],
    note: &mut Option<LocalNote>,
) -> Result<(), DropReason> {
    let start = usize::from(packet.meta.layers.l3);
    packet.extend_head(start + arp::LEN, arena).map_err(|_| DropReason::ArpInvalid)?;
    let message = packet.head().get(start..).and_then(Message::parse).ok_or(DropReason::ArpInvalid)?;
    let link = packet.head().first_chunk::<6>().ok_or(DropReason::ArpInvalid)?;
    let to_us = *link == uplink.mac.0;
    let mac = message.sender_mac;
    // RFC 1812 §3.3.2: "A router MUST not believe any ARP reply that claims that the Link Layer address of another host or
    // router is a broadcast or multicast address." Nor is anybody else us.
    if mac.is_multicast() || mac == MacAddr::default() || mac == uplink.mac {
        return Err(DropReason::ArpInvalid);
    }
    let owned = |address: Ipv4Addr| uplink.owned.contains_key(&tables::mapped(address.into()));
    let unsettled = |address: Ipv4Addr| uplink.unsettled.contains_key(&tables::mapped(address.into()));
    if owned(message.sender_ip) || unsettled(message.sender_ip) {
        claimed(uplink, message.sender_ip.into(), mac, note);
        return Err(DropReason::NeighborNoAnswer);
    }
    if unsettled(message.target_ip) {
        // RFC 5227 §2.1.1: somebody else is about to take it. What switches ask a single host in this form is no such thing.
        let everybody = message.operation == Operation::Request && *link == MacAddr::BROADCAST.0;
        if everybody && message.sender_ip.is_unspecified() {
            claimed(uplink, message.target_ip.into(), mac, note);
        }
        return Err(DropReason::NeighborNoAnswer);
    }
    let answer =
        message.operation == Operation::Reply && to_us && message.target_mac == uplink.mac && owned(message.target_ip);
    neighbor_heard(uplink, &uplink.v4, message.sender_ip.into(), mac, answer, note);
    if message.operation != Operation::Request || !owned(message.target_ip) {
        return Err(DropReason::NeighborNoAnswer);
    }
    let built = frame::replace(packet, |frame| {
        let (header, rest) = frame.split_first_chunk_mut().ok_or(Full)?;
        ethernet::Repr { dst: mac, src: uplink.mac, ether_type: ethernet::ether_type::ARP }.emit(header);
        message.reply(uplink.mac).emit(rest.first_chunk_mut().ok_or(Full)?);
        Ok(ethernet::HEADER_LEN + arp::LEN)
    });
    built.map_err(|_| DropReason::Internal)
}

/// Neighbour discovery. Router advertisements and redirects are not for a host whose routers are written down.
fn discovery(
    uplink: &Uplink,
    packet: &mut Packet,
    arena: &mut [Segment],
    note: &mut Option<LocalNote>,
) -> Result<(), DropReason> {
    let message = ndp::Message::check(packet, arena)?;
    let (l3, l4) = (usize::from(packet.meta.layers.l3), usize::from(packet.meta.layers.l4));
    let link = *packet.head().first_chunk::<12>().ok_or(DropReason::NdInvalid)?;
    let sender = MacAddr(std::array::from_fn(|at| link[6 + at]));
    let octets = packet.head().get(l4..l3 + packet.meta.l3_len as usize).ok_or(DropReason::NdInvalid)?;
    if sender == uplink.mac || sender.is_multicast() {
        return Err(DropReason::NdInvalid);
    }
    match message.kind {
        ndp::NEIGHBOR_SOLICITATION => {
            let solicit = NeighborSolicit::parse(octets).ok_or(DropReason::NdInvalid)?;
            let mac = solicit.options.link_layer(option::SOURCE_LINK_LAYER).unwrap_or(sender);
            answer_solicit(uplink, packet, &message, mac, note)
        }
        ndp::NEIGHBOR_ADVERTISEMENT => {
            let advert = NeighborAdvert::parse(octets).ok_or(DropReason::NdInvalid)?;
            let mac = advert.options.link_layer(option::TARGET_LINK_LAYER).unwrap_or(sender);
            let destination = ndp::address(packet.head(), l3 + 24)?;
            // RFC 4861 §7.1.2: "If the IP Destination Address is a multicast address the Solicited flag is zero."
            if mac.is_multicast() || mac == uplink.mac || (advert.solicited && destination.is_multicast()) {
                return Err(DropReason::NdInvalid);
            }
            let to_us = link[..6] == uplink.mac.0 && uplink.owned.contains_key(&u128::from(destination));
            let target = u128::from(advert.target);
            if uplink.owned.contains_key(&target) || uplink.unsettled.contains_key(&target) {
                claimed(uplink, advert.target.into(), mac, note);
            } else {
                neighbor_heard(uplink, &uplink.v6, advert.target.into(), mac, advert.solicited && to_us, note);
            }
            Err(DropReason::NeighborNoAnswer)
        }
        _ => Err(DropReason::NeighborNoAnswer),
    }
}

fn answer_solicit(
    uplink: &Uplink,
    packet: &mut Packet,
    message: &ndp::Message,
    mac: MacAddr,
    note: &mut Option<LocalNote>,
) -> Result<(), DropReason> {
    let (source, target) = (message.source, message.target);
    let (asks, asked) = (u128::from(source), u128::from(target));
    if uplink.owned.contains_key(&asks) || uplink.unsettled.contains_key(&asks) {
        claimed(uplink, source.into(), mac, note);
        return Err(DropReason::NeighborNoAnswer);
    }
    if uplink.unsettled.contains_key(&asked) {
        // RFC 4862 §5.4.3: somebody else is about to take it.
        if source.is_unspecified() {
            claimed(uplink, target.into(), mac, note);
        }
        return Err(DropReason::NeighborNoAnswer);
    }
    if !uplink.owned.contains_key(&asked) {
        return Err(DropReason::NeighborNoAnswer);
    }
    if mac.is_multicast() || mac == uplink.mac {
        return Err(DropReason::NdInvalid);
    }
    // RFC 4861 §7.2.4: who asks without an address checks for duplicates, and everybody hears that this is one.
    let (mac, to, flags) = match source.is_unspecified() {
        true => (MULTICAST_ALL_NODES, ALL_NODES, FLAG_OVERRIDE),
        false => (mac, source, FLAG_SOLICITED | FLAG_OVERRIDE),
    };
    let built = frame::replace(packet, |frame| advertisement(uplink.mac, mac, target, to, flags, frame));
    built.map_err(|_| DropReason::Internal)
}

/// Somebody else says that an address of ours is his. Notes have a budget; of an address that is not settled, each claim counts.
fn claimed(uplink: &Uplink, address: IpAddr, mac: MacAddr, note: &mut Option<LocalNote>) {
    if let Some(claimed) = uplink.unsettled.get(&tables::mapped(address)) {
        claimed.note(mac);
    }
    *note = Some(LocalNote::AddressConflict(address, mac));
}

/// Control hears what routers and other neighbours answer, and what is said about their link addresses that is not so. `hops` are the
/// routers of the family.
fn neighbor_heard(
    uplink: &Uplink,
    hops: &[NextHop],
    address: IpAddr,
    mac: MacAddr,
    answer: bool,
    note: &mut Option<LocalNote>,
) {
    if let Some(hop) = hops.iter().find(|hop| hop.address == address) {
        if answer || hop.mac != Some(mac) {
            let contradicts = hop.mac.is_some_and(|known| known != mac);
            *note = Some(LocalNote::RouterHeard { address, mac, answer, contradicts });
        }
        return;
    }
    let of = tables::mapped(address);
    if uplink.on_link.has(of) && (answer || uplink.on_link.mac_of(of).is_some_and(|known| known != mac)) {
        *note = Some(LocalNote::NeighborHeard { address, mac, answer });
    }
}

/// The frame that asks who has `target`, from `source`, an address of ours of the same family: everybody, or only `to`.
pub fn question(mac: MacAddr, source: IpAddr, target: IpAddr, to: Option<MacAddr>) -> Option<Frame> {
    match (source, target) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            let message = Message {
                operation: Operation::Request,
                sender_mac: mac,
                sender_ip: source,
                target_mac: to.unwrap_or_default(),
                target_ip: target,
            };
            Some(arp_frame(to.unwrap_or(MacAddr::BROADCAST), &message))
        }
        (IpAddr::V6(source), IpAddr::V6(target)) => {
            let group = ipv6::solicited_node(target);
            let (link, destination) = match to {
                Some(to) => (to, target),
                None => (group_mac(group), group),
            };
            icmp6(mac, |frame| {
                frame::icmp6(frame, link, source, destination, |writer| {
                    writer.bytes(&[ndp::NEIGHBOR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0])?;
                    writer.bytes(&target.octets())?;
                    put_link_address(writer, option::SOURCE_LINK_LAYER, mac)
                })
            })
        }
        _ => None,
    }
}

/// The frame that asks who else has `target`, without saying that we do (RFC 5227 §2.1.1, RFC 4862 §5.4.2).
pub fn probe(mac: MacAddr, target: IpAddr) -> Option<Frame> {
    match target {
        IpAddr::V4(target) => {
            let message = Message {
                operation: Operation::Request,
                sender_mac: mac,
                sender_ip: Ipv4Addr::UNSPECIFIED,
                target_mac: MacAddr::default(),
                target_ip: target,
            };
            Some(arp_frame(MacAddr::BROADCAST, &message))
        }
        IpAddr::V6(target) => {
            let group = ipv6::solicited_node(target);
            icmp6(mac, |frame| {
                frame::icmp6(frame, group_mac(group), Ipv6Addr::UNSPECIFIED, group, |writer| {
                    writer.bytes(&[ndp::NEIGHBOR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0])?;
                    writer.bytes(&target.octets())
                })
            })
        }
    }
}

/// The frames that announce an address: some neighbours believe only requests, some only replies (RFC 5227 §3).
pub fn announcement(mac: MacAddr, address: IpAddr) -> Vec<Frame> {
    match address {
        IpAddr::V4(address) => {
            let message = |operation, target_mac| Message {
                operation,
                sender_mac: mac,
                sender_ip: address,
                target_mac,
                target_ip: address,
            };
            let request = message(Operation::Request, MacAddr::default());
            let reply = message(Operation::Reply, MacAddr::BROADCAST);
            [request, reply].iter().map(|message| arp_frame(MacAddr::BROADCAST, message)).collect()
        }
        IpAddr::V6(address) => {
            let build =
                |frame: &mut [u8]| advertisement(mac, MULTICAST_ALL_NODES, address, ALL_NODES, FLAG_OVERRIDE, frame);
            icmp6(mac, build).into_iter().collect()
        }
    }
}

fn arp_frame(to: MacAddr, message: &Message) -> Frame {
    let (mut header, mut body) = ([0; ethernet::HEADER_LEN], [0; arp::LEN]);
    ethernet::Repr { dst: to, src: message.sender_mac, ether_type: ethernet::ether_type::ARP }.emit(&mut header);
    message.emit(&mut body);
    [&header[..], &body].concat()
}

fn icmp6(mac: MacAddr, build: impl FnOnce(&mut [u8]) -> Result<usize, Full>) -> Option<Frame> {
    let mut frame = vec![0; FRAME_MAX];
    let len = build(&mut frame).ok()?;
    frame.truncate(len);
    come_from(&mut frame, mac);
    Some(frame)
}

/// A neighbour advertisement about `target`. Returns its length.
fn advertisement(
    mac: MacAddr,
    link: MacAddr,
    target: Ipv6Addr,
    to: Ipv6Addr,
    flags: u8,
    frame: &mut [u8],
) -> Result<usize, Full> {
    let len = frame::icmp6(frame, link, target, to, |writer| {
        writer.bytes(&[ndp::NEIGHBOR_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0])?;
        writer.bytes(&target.octets())?;
        put_link_address(writer, option::TARGET_LINK_LAYER, mac)
    })?;
    come_from(frame, mac);
    Ok(len)
}

fn put_link_address(writer: &mut Writer<'_>, option: u8, mac: MacAddr) -> Result<(), Full> {
    writer.bytes(&[option, 1])?;
    writer.bytes(&mac.0)
}

/// At the uplink nothing comes from the router of the networks.
pub fn come_from(frame: &mut [u8], mac: MacAddr) {
    if let Some(source) = frame.get_mut(6..12) {
        source.copy_from_slice(&mac.0);
    }
}

/// Link address of an IPv6 group (RFC 2464 §7).
pub(super) fn group_mac(group: Ipv6Addr) -> MacAddr {
    let [.., a, b, c, d] = group.octets();
    MacAddr([0x33, 0x33, a, b, c, d])
}

#[cfg(test)]
#[path = "uplink_tests.rs"]
mod tests;
