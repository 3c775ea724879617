//! ICMP errors: where the packet that they speak about came from (SEMANTICS CT5, NP23).

use std::net::{Ipv4Addr, Ipv6Addr};

use hostweave_switch::flow::{FlowKey, NO_QUEUE, query};
use hostweave_switch::packet::{L3, Packet};
use hostweave_switch::payload::Segment;
use hostweave_switch::stage::DropReason;
use hostweave_switch::tables::PortId;
use hostweave_switch::wire::ipv4::Ipv4;
use hostweave_switch::wire::ipv6::{self, Ipv6};
use hostweave_switch::wire::{icmpv4, proto};

use super::{Flows, Way};
use crate::datapath::Context;
use crate::observe::recorder::{Detail, Recorder};

/// Octets of an ICMP error before the packet that it quotes.
const ICMP_HEADER: usize = 8;
/// Octets of a quoted transport header that must be there: ports, or the start of an ICMP query (RFC 792, RFC 4443 §3).
const QUOTED: usize = 8;

/// Finds the way of an ICMP error: to the sender of what it quotes, if that belongs to a connection and was on its way to
/// the port that complains.
pub(super) fn related<R: Recorder>(
    ctx: &Context<'_>,
    flows: &mut Flows<'_>,
    packet: &mut Packet,
    arena: &mut [Segment],
    record: &mut R,
) -> Result<Way, DropReason> {
    let key = quoted(packet, arena).ok_or(DropReason::IcmpUnrelated)?;
    // A guest is no router (SEMANTICS RA4); `guard` drops those of IPv6.
    if packet.meta.l3 == L3::V4 && (packet.meta.dst_port >> 8) as u8 == icmpv4::kind::REDIRECT {
        return Err(DropReason::IcmpUnrelated);
    }
    let outer = FlowKey::of(packet, 0).ok_or(DropReason::IcmpUnrelated)?;
    let hash = flows.connections.keys().hash(&key, ctx.network.vni);
    let found = flows.connections.find(&key, hash, ctx.network.vni).ok_or(DropReason::IcmpUnrelated)?;
    let connection = flows.connections.get(found.index, found.generation).ok_or(DropReason::IcmpUnrelated)?;
    // The direction is right: the quoted packet went to the port that now complains, and the complaint to its sender.
    let complains = connection.port(1 - found.direction) == ctx.port.id.0;
    if !complains || outer.dst() != key.src() {
        return Err(DropReason::IcmpUnrelated);
    }
    if connection.epoch() != ctx.epoch {
        super::decide::again(ctx, &mut flows.denied, connection, record)?;
    }
    record.stage("conn", Detail::Related(found));
    let queue = if found.direction == 0 { connection.queue(0) } else { connection.queue(1) };
    Ok(Way { out_port: PortId(connection.port(found.direction)), queue: if R::MASKED { NO_QUEUE } else { queue } })
}

/// The tuple of the packet that an error quotes. The head is extended as far as its headers reach.
fn quoted(packet: &mut Packet, arena: &mut [Segment]) -> Option<FlowKey> {
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
        proto::TCP | proto::UDP | proto::SCTP => (word(0), word(2), hostweave_switch::flow::Kind::Ports),
        proto::ICMPV4 | proto::ICMPV6 => query(protocol, word(4), ports[0]),
        _ => (0, 0, hostweave_switch::flow::Kind::Addresses),
    };
    Some(FlowKey::new(src, dst, src_port, dst_port, protocol, kind))
}

fn quoted_v4(packet: &mut Packet, arena: &mut [Segment], at: usize) -> Option<(u128, u128, u8, usize)> {
    packet.extend_head((at + 20).min(packet.len()), arena).ok()?;
    let octets: &[u8; 20] = packet.head().get(at..)?.first_chunk()?;
    let header = Ipv4::new(octets);
    // A fragment behind the first has no ports to look up.
    if header.version() != 4 || header.header_len() < 20 || header.fragment_offset() != 0 {
        return None;
    }
    let mapped = |address: Ipv4Addr| 0xffff_0000_0000 | u128::from(u32::from(address));
    Some((mapped(header.src()), mapped(header.dst()), header.proto(), at + header.header_len()))
}

fn quoted_v6(packet: &mut Packet, arena: &mut [Segment], at: usize) -> Option<(u128, u128, u8, usize)> {
    packet.extend_head((at + ipv6::HEADER_LEN).min(packet.len()), arena).ok()?;
    let octets: &[u8; ipv6::HEADER_LEN] = packet.head().get(at..)?.first_chunk()?;
    let header = Ipv6::new(octets);
    // What we forward has its extension headers walked once; a quoted packet with some is rare enough to be let go.
    if header.version() != 6 || ipv6::is_extension(header.next_header()) {
        return None;
    }
    let word = |address: Ipv6Addr| u128::from(address);
    Some((word(header.src()), word(header.dst()), header.next_header(), at + ipv6::HEADER_LEN))
}
