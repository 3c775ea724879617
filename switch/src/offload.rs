//! What a guest asks for in its virtio-net header, checked against the headers of its packet (VIRTIO 1.2 §5.1.6.2,
//! SEMANTICS VU12). Feature negotiation is not looked at here: the port has stripped what was not negotiated.
//!
//! A partial checksum is accepted only where the transport header has its checksum, and segmentation only of the
//! protocol that the packet really carries: whatever completes or segments it later relies on that.

use crate::limits::{GSO_SEGMENTS_MAX, GSO_SIZE_MIN};
use crate::packet::{L3, Offload, Packet, virtio_net};
use crate::stage::DropReason;
use crate::wire::{proto, tcp, udp};

/// Checks `meta.offload` of a parsed packet and puts it in order: `hdr_len` becomes the real length of the headers, and
/// what says nothing becomes zero.
///
/// # Errors
/// `ChecksumBad` or `GsoBad`.
#[inline]
pub fn check_offload(packet: &mut Packet) -> Result<(), DropReason> {
    let offload = packet.meta.offload;
    if !offload.needs_csum() && !offload.is_gso() {
        // `DATA_VALID` is a receiver's bit: nobody verified what a guest sends.
        packet.meta.offload = Offload::default();
        return Ok(());
    }
    if offload.needs_csum() {
        check_checksum(packet)?;
    }
    let (gso_type, gso_size, hdr_len) = if offload.is_gso() { check_gso(packet)? } else { (0, 0, 0) };
    packet.meta.offload = Offload { flags: virtio_net::NEEDS_CSUM, gso_type, gso_size, hdr_len, ..offload };
    Ok(())
}

#[inline]
fn check_checksum(packet: &Packet) -> Result<(), DropReason> {
    let meta = &packet.meta;
    let place = match (meta.l3, meta.proto) {
        (L3::V4 | L3::V6, proto::TCP) => tcp::CHECKSUM_OFFSET,
        (L3::V4 | L3::V6, proto::UDP) => udp::CHECKSUM_OFFSET,
        (L3::V4, proto::ICMPV4) | (L3::V6, proto::ICMPV6) => ICMP_CHECKSUM_OFFSET,
        _ => return Err(DropReason::ChecksumBad),
    };
    // A fragment does not hold all octets that the checksum covers.
    if meta.fragment || meta.offload.csum_start != meta.layers.l4 || meta.offload.csum_offset != place {
        return Err(DropReason::ChecksumBad);
    }
    Ok(())
}

/// Returns type, size and length of the headers.
#[inline]
fn check_gso(packet: &Packet) -> Result<(u8, u16, u16), DropReason> {
    let meta = &packet.meta;
    let offload = meta.offload;
    let fits = match offload.gso_type & !virtio_net::GSO_ECN {
        virtio_net::GSO_TCPV4 => meta.l3 == L3::V4 && meta.proto == proto::TCP,
        virtio_net::GSO_TCPV6 => meta.l3 == L3::V6 && meta.proto == proto::TCP,
        virtio_net::GSO_UDP_L4 => meta.proto == proto::UDP && offload.gso_type & virtio_net::GSO_ECN == 0,
        _ => false,
    };
    // VIRTIO 1.2 §5.1.6.2.1: a driver that asks for segmentation "MUST also set the VIRTIO_NET_HDR_F_NEEDS_CSUM bit".
    if !fits || meta.fragment || !offload.needs_csum() || usize::from(offload.hdr_len) > packet.len() {
        return Err(DropReason::GsoBad);
    }
    let size = usize::from(offload.gso_size);
    let payload = packet.len().saturating_sub(usize::from(meta.layers.l5));
    if size < GSO_SIZE_MIN || payload == 0 || payload > size * GSO_SEGMENTS_MAX {
        return Err(DropReason::GsoBad);
    }
    // One segment is no segmentation: the receiver need not be able to do any.
    if payload <= size {
        return Ok((virtio_net::GSO_NONE, 0, 0));
    }
    Ok((offload.gso_type, offload.gso_size, meta.layers.l5))
}

const ICMP_CHECKSUM_OFFSET: u16 = 2;
