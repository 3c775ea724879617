//! Applies what `route` decided: link addresses and TTL, with the IPv4 checksum updated (RFC 1812 §5.3.1, RFC 1624).
//! Transport checksums, partial ones too, cover none of it.

use crate::MacAddr;
use crate::packet::{L3, Packet};
use crate::tables::{Port, PortKind};
use crate::wire::{ethernet, ipv4};

/// Addresses a packet to `out` and takes one off its TTL or hop limit, unless `out` is the host's own: there the packet
/// arrives and is not forwarded.
#[inline]
pub fn rewrite(packet: &mut Packet, out: &Port) {
    let l3 = packet.meta.l3;
    let Some(frame) = packet.head_mut().first_chunk_mut::<{ ethernet::HEADER_LEN + ipv4::HEADER_LEN }>() else {
        return;
    };
    let (link, header) = frame.split_at_mut(ethernet::HEADER_LEN);
    let (Some(link), Some(header)) = (link.first_chunk_mut(), header.first_chunk_mut()) else { return };
    ethernet::set_addresses(link, out.mac, MacAddr::ROUTER);
    if out.kind == PortKind::Internal {
        return;
    }
    match l3 {
        L3::V4 => ipv4::decrement_ttl(header),
        // `route` let none pass at zero.
        L3::V6 => header[HOP_LIMIT] = header[HOP_LIMIT].saturating_sub(1),
        L3::Arp | L3::None => {}
    }
}

const HOP_LIMIT: usize = 7;
