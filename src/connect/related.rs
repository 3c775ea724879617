//! ICMP errors: where the packet that they speak about came from (SEMANTICS CT5, NP23), and what they must say there if that
//! packet was translated on its way (SEMANTICS NA20, NA21, NA24; RFC 5508 §4.2).

use std::net::Ipv6Addr;

use hostweave_switch::connection::change;
use hostweave_switch::flow::{FlowKey, Kind, NO_QUEUE, query};
use hostweave_switch::limits::IPV6_EXTENSION_HEADERS_MAX;
use hostweave_switch::packet::{L3, Packet};
use hostweave_switch::payload::{Segment, gather};
use hostweave_switch::stage::DropReason;
use hostweave_switch::tables::{PortId, PortKind, mapped};
use hostweave_switch::translate::translate_error;
use hostweave_switch::wire::ipv4::Ipv4;
use hostweave_switch::wire::ipv6::{self, Extension, Ipv6};
use hostweave_switch::wire::{checksum, ethernet, icmpv4, icmpv6, proto};

use super::{Flows, Part, Step, Way};
use crate::datapath::Context;
use crate::observe::recorder::{Detail, Recorder};

/// Octets of an ICMP error before the packet that it quotes.
const ICMP_HEADER: usize = 8;
/// Octets of a quoted transport header that must be there: ports, or the start of an ICMP query (RFC 792, RFC 4443 §3).
const QUOTED: usize = 8;
/// Octets of the shortest extension header.
const EXTENSION_MIN: usize = 8;

/// The packet that an error quotes.
struct Quote {
    /// Its tuple.
    key: FlowKey,
    /// Where it begins, in octets from the first of the frame.
    at: usize,
    /// Where its transport header begins, likewise.
    l4: usize,
}

/// Finds the way of an ICMP error: to the sender of what it quotes, if that belongs to a connection and was on its way to
/// the port that complains.
pub(super) fn related<R: Recorder>(
    ctx: &Context<'_>,
    flows: &mut Flows<'_>,
    packet: &mut Packet,
    arena: &mut [Segment],
    record: &mut R,
) -> Result<Step, DropReason> {
    let quote = quote(packet, arena).ok_or(DropReason::IcmpUnrelated)?;
    let key = quote.key;
    // A guest is no router (SEMANTICS RA4); `guard` drops those of IPv6.
    if packet.meta.l3 == L3::V4 && (packet.meta.dst_port >> 8) as u8 == icmpv4::kind::REDIRECT {
        return Err(DropReason::IcmpUnrelated);
    }
    let outer = FlowKey::of(packet, 0).ok_or(DropReason::IcmpUnrelated)?;
    let hash = flows.connections.keys().hash(&key, ctx.network.vni);
    let found = flows.connections.find(&key, hash, ctx.network.vni).ok_or(DropReason::IcmpUnrelated)?;
    let connection = flows.connections.get(found.index, found.generation).ok_or(DropReason::IcmpUnrelated)?;
    // As it was at one time: another worker may give its record to another connection meanwhile.
    let entry = flows.connections.entry(found.index, found.generation).ok_or(DropReason::IcmpUnrelated)?;
    let (to, complains) = match found.direction {
        0 => (entry.in_port, entry.out_port),
        _ => (entry.out_port, entry.in_port),
    };
    // The direction is right: the quoted packet went to the port that now complains, and the complaint to its sender.
    if complains != ctx.port.id.0 || outer.dst() != key.src() {
        return Err(DropReason::IcmpUnrelated);
    }
    let translation = entry.translation;
    let epoch = if translation.is_some() { ctx.crossing_epoch } else { ctx.epoch };
    if connection.epoch() != epoch {
        super::decide::again(ctx, flows, connection, translation, record)?;
    }
    record.stage("conn", Detail::Related(found));
    // Only the addressee knows whether anybody listens there; a router on the way does not.
    let refuses = found.direction == 0 && key.proto() == proto::UDP && outer.src() == key.dst();
    if refuses && !R::MASKED && !connection.is_replied() && is_port_unreachable(packet) {
        flows.connections.refuse(found.index, found.generation);
        super::failed(ctx, flows, &found);
    }
    let queue = if found.direction == 0 { connection.queue(0) } else { connection.queue(1) };
    let queue = if R::MASKED { NO_QUEUE } else { queue };
    let way = Way { out_port: PortId(to), queue };
    let Some(translation) = translation else { return Ok(Step::Stay(way)) };
    if !R::MASKED {
        let sent = if found.direction == 0 { entry.key } else { translation.reply };
        translate(ctx, packet, arena, &outer, &quote, &sent)?;
    }
    Ok(Step::Cross { way, part: Part::Done })
}

fn is_port_unreachable(packet: &Packet) -> bool {
    let [kind, code] = packet.meta.dst_port.to_be_bytes();
    match packet.meta.l3 {
        L3::V4 => (kind, code) == (icmpv4::kind::UNREACHABLE, icmpv4::unreachable::L4_PORT),
        L3::V6 => (kind, code) == (icmpv6::kind::UNREACHABLE, icmpv6::unreachable::L4_PORT),
        L3::Arp | L3::None => false,
    }
}

/// Makes an error one about the packet as it was sent, `sent`.
fn translate(
    ctx: &Context<'_>,
    packet: &mut Packet,
    arena: &mut [Segment],
    outer: &FlowKey,
    quote: &Quote,
    sent: &FlowKey,
) -> Result<(), DropReason> {
    // Ports, or the identifier, and the checksum of TCP if that is there.
    const TRANSPORT: usize = 18;
    let end = end_of_quote(packet, quote.at);
    if end < quote.l4 + QUOTED {
        return Err(DropReason::IcmpUnrelated);
    }
    packet.extend_head((quote.l4 + TRANSPORT).min(end), arena)?;
    is_right(packet, arena, quote)?;
    // RFC 5508 REQ-5: what an inside host complains of comes from where its peer knows it. A router outside is known by itself.
    let src = if ctx.port.kind == PortKind::Uplink { outer.src() } else { sent.dst() };
    let new = FlowKey::new(src, sent.src(), 0, 0, outer.proto(), Kind::Addresses);
    let old = FlowKey::new(outer.src(), outer.dst(), 0, 0, outer.proto(), Kind::Addresses);
    let range = quote.at..end.min(packet.head().len());
    let (inner, l4) = (change(&quote.key, sent), quote.l4 - quote.at);
    translate_error(packet, &change(&old, &new), &inner, range, l4, quote.key.proto())
}

/// Where the quoted packet ends: with the frame, or where extensions begin (RFC 4884 §4).
fn end_of_quote(packet: &Packet, at: usize) -> usize {
    let end = (ethernet::HEADER_LEN + packet.meta.l3_len as usize).min(packet.len());
    let header = packet.head().get(usize::from(packet.meta.layers.l4)..at).unwrap_or_default();
    let length = match packet.meta.l3 {
        L3::V4 => 4 * header.get(5).map_or(0, |words| usize::from(*words)),
        _ => 8 * header.get(4).map_or(0, |words| usize::from(*words)),
    };
    let has_length = match (packet.meta.l3, header.first().copied().unwrap_or(0)) {
        (L3::V4, kind) => {
            let unreachable = matches!(kind, icmpv4::kind::UNREACHABLE | icmpv4::kind::TIME_EXCEEDED);
            unreachable || kind == icmpv4::kind::PARAMETER_PROBLEM
        }
        (_, kind) => matches!(kind, icmpv6::kind::UNREACHABLE | icmpv6::kind::TIME_EXCEEDED),
    };
    if has_length && length > 0 { end.min(at + length) } else { end }
}

/// RFC 5508 REQ-3: an error whose own checksum is wrong, or that of the quoted IPv4 header, ends. That of the quoted transport
/// header is not looked at: much of what it covers may be missing.
fn is_right(packet: &Packet, arena: &[Segment], quote: &Quote) -> Result<(), DropReason> {
    let wrong = Err(DropReason::ChecksumBad);
    let head = packet.head();
    if packet.meta.l3 == L3::V4 && checksum::sum(head.get(quote.at..quote.l4).unwrap_or_default()) != 0xffff {
        return wrong;
    }
    if packet.meta.offload.needs_csum() {
        return Ok(());
    }
    let l4 = usize::from(packet.meta.layers.l4);
    let end = ethernet::HEADER_LEN + packet.meta.l3_len as usize;
    let mut sum = checksum::Sum::new(pseudo(packet, end.saturating_sub(l4)).unwrap_or(0));
    sum.add(head.get(l4..end.min(head.len())).unwrap_or_default());
    let mut at = 0;
    let mut left = end.saturating_sub(head.len());
    let mut octets = [0; 256];
    while left > 0 {
        let part = octets.get_mut(..left.min(256)).unwrap_or_default();
        if gather(packet.segments(arena), at, part) != part.len() {
            return wrong;
        }
        sum.add(part);
        at += part.len();
        left -= part.len();
    }
    if sum.folded() == 0xffff { Ok(()) } else { wrong }
}

/// The sum of the pseudo-header, which ICMP for IPv4 has none of.
fn pseudo(packet: &Packet, len: usize) -> Option<u16> {
    if packet.meta.l3 == L3::V4 {
        return Some(0);
    }
    let header = Ipv6::new_checked(packet.head().get(ethernet::HEADER_LEN..)?)?;
    Some(checksum::pseudo_v6(header.src(), header.dst(), proto::ICMPV6, len as u32))
}

/// The tuple of the packet that an error quotes. The head is extended as far as its headers reach.
pub fn quoted(packet: &mut Packet, arena: &mut [Segment]) -> Option<FlowKey> {
    quote(packet, arena).map(|quote| quote.key)
}

fn quote(packet: &mut Packet, arena: &mut [Segment]) -> Option<Quote> {
    let at = usize::from(packet.meta.layers.l4) + ICMP_HEADER;
    let (src, dst, protocol, l4) = match packet.meta.l3 {
        L3::V4 => quoted_v4(packet, arena, at)?,
        L3::V6 => quoted_v6(packet, arena, at)?,
        L3::Arp | L3::None => return None,
    };
    let wanted = (l4 + QUOTED).min(packet.len());
    packet.extend_head(wanted, arena).ok()?;
    let ports: &[u8; QUOTED] = packet.head().get(l4..)?.first_chunk()?;
    let word = |i: usize| u16::from_be_bytes([ports[i], ports[i + 1]]);
    let (src_port, dst_port, kind) = match protocol {
        proto::TCP | proto::UDP | proto::SCTP => (word(0), word(2), Kind::Ports),
        proto::ICMPV4 | proto::ICMPV6 => query(protocol, word(4), ports[0]),
        _ => (0, 0, Kind::Addresses),
    };
    Some(Quote { key: FlowKey::new(src, dst, src_port, dst_port, protocol, kind), at, l4 })
}

fn quoted_v4(packet: &mut Packet, arena: &mut [Segment], at: usize) -> Option<(u128, u128, u8, usize)> {
    packet.extend_head((at + 20).min(packet.len()), arena).ok()?;
    let octets: &[u8; 20] = packet.head().get(at..)?.first_chunk()?;
    let header = Ipv4::new(octets);
    // A fragment behind the first has no ports to look up.
    if header.version() != 4 || header.header_len() < 20 || header.fragment_offset() != 0 {
        return None;
    }
    Some((mapped(header.src().into()), mapped(header.dst().into()), header.proto(), at + header.header_len()))
}

fn quoted_v6(packet: &mut Packet, arena: &mut [Segment], at: usize) -> Option<(u128, u128, u8, usize)> {
    packet.extend_head((at + ipv6::HEADER_LEN).min(packet.len()), arena).ok()?;
    let octets: &[u8; ipv6::HEADER_LEN] = packet.head().get(at..)?.first_chunk()?;
    let header = Ipv6::new(octets);
    if header.version() != 6 {
        return None;
    }
    let word = |address: Ipv6Addr| u128::from(address);
    let (src, dst, mut next) = (word(header.src()), word(header.dst()), header.next_header());
    let mut l4 = at + ipv6::HEADER_LEN;
    // As many as a packet has that we forward.
    for _ in 0..=IPV6_EXTENSION_HEADERS_MAX {
        if !ipv6::is_extension(next) {
            return Some((src, dst, next, l4));
        }
        packet.extend_head((l4 + EXTENSION_MIN).min(packet.len()), arena).ok()?;
        let extension = Extension::new_checked(next, packet.head().get(l4..)?)?;
        // A fragment behind the first has no ports to look up.
        if next == ipv6::next_header::FRAGMENT && extension.fragment_offset() != 0 {
            return None;
        }
        next = extension.next_header();
        l4 += extension.len();
    }
    None
}
