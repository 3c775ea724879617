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
    // Nearly all frames of a guest without offloads, and of one with them each that is neither TCP nor long.
    if packet.meta.offload == Offload::default() {
        return Ok(());
    }
    check_asked(packet)
}

/// The same of a frame whose header says something.
fn check_asked(packet: &mut Packet) -> Result<(), DropReason> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::{GUEST_A, GUEST_B, v4, v6};
    use crate::parse::parse;
    use crate::stage::Verdict;
    use crate::testing::{self, ipv4_frame, ipv6_frame};

    fn tcp_v4(data: usize) -> Vec<u8> {
        ipv4_frame(v4(GUEST_A), v4(GUEST_B), proto::TCP, 64, &testing::tcp(1, 2, &vec![7; data]))
    }

    /// Segmentation into 1000 octets behind the headers of [`tcp_v4`].
    const GSO: Offload = Offload {
        flags: virtio_net::NEEDS_CSUM,
        gso_type: virtio_net::GSO_TCPV4,
        hdr_len: 66,
        gso_size: 1000,
        csum_start: 34,
        csum_offset: 16,
    };
    const PARTIAL: Offload = Offload { gso_type: 0, gso_size: 0, hdr_len: 0, ..GSO };

    fn checked(frame: &[u8], offload: Offload) -> Result<Offload, DropReason> {
        testing::with(frame, |packet, arena| {
            packet.meta.offload = offload;
            match parse(packet, arena) {
                Verdict::Continue => Ok(packet.meta.offload),
                Verdict::Drop(reason) => Err(reason),
                other => panic!("{other:?}"),
            }
        })
    }

    #[test]
    fn what_says_nothing_becomes_zero() {
        let offload = Offload { flags: virtio_net::DATA_VALID, hdr_len: 9, gso_size: 9, ..Offload::default() };
        assert_eq!(checked(&tcp_v4(100), offload), Ok(Offload::default()));
        assert_eq!(checked(&tcp_v4(100), Offload { hdr_len: 9, gso_size: 9, ..PARTIAL }), Ok(PARTIAL));
    }

    #[test]
    fn header_length_is_the_real_one() {
        for hdr_len in [0, 5, 54, 66, 1000] {
            assert_eq!(checked(&tcp_v4(3000), Offload { hdr_len, ..GSO }), Ok(GSO));
        }
        assert_eq!(
            checked(&tcp_v4(3000), Offload { hdr_len: 3067, ..GSO }),
            Err(DropReason::GsoBad),
            "beyond the frame"
        );
    }

    #[test]
    fn partial_checksums_that_are_refused() {
        for (csum_start, csum_offset, case) in
            [(33, 16, "start"), (34, 6, "offset of UDP"), (0, 50, "from the link header"), (34, u16::MAX, "far")]
        {
            let offload = Offload { csum_start, csum_offset, ..PARTIAL };
            assert_eq!(checked(&tcp_v4(100), offload), Err(DropReason::ChecksumBad), "{case}");
        }
        let gre = ipv4_frame(v4(GUEST_A), v4(GUEST_B), 47, 64, &[0; 60]);
        assert_eq!(checked(&gre, PARTIAL), Err(DropReason::ChecksumBad), "no transport checksum");
        assert_eq!(checked(&testing::arp_frame(|_| ()), PARTIAL), Err(DropReason::ChecksumBad), "ARP");
        let fragment = [&[proto::UDP, 0, 0, 1, 0, 0, 0, 1][..], &testing::udp(1, 2, &[0; 16])].concat();
        let fragment = ipv6_frame(v6(GUEST_A), v6(GUEST_B), 44, 64, &fragment);
        let offload = Offload { csum_start: 62, csum_offset: 6, ..PARTIAL };
        assert_eq!(checked(&fragment, offload), Err(DropReason::ChecksumBad), "fragment");
    }

    #[test]
    fn segmentation_that_is_refused() {
        for (offload, case) in [
            (Offload { gso_size: 0, ..GSO }, "size 0"),
            (Offload { gso_size: 47, ..GSO }, "size below 48"),
            (Offload { gso_type: virtio_net::GSO_TCPV6, ..GSO }, "another IP version"),
            (Offload { gso_type: virtio_net::GSO_UDP_L4, ..GSO }, "another protocol"),
            (Offload { gso_type: 3, ..GSO }, "UFO"),
            (Offload { gso_type: virtio_net::GSO_ECN, ..GSO }, "ECN alone"),
            (Offload { flags: 0, ..GSO }, "complete checksum"),
        ] {
            assert_eq!(checked(&tcp_v4(3000), offload), Err(DropReason::GsoBad), "{case}");
        }
        let small = Offload { gso_size: 48, ..GSO };
        assert!(checked(&tcp_v4(48 * GSO_SEGMENTS_MAX), small).is_ok(), "128 segments");
        assert_eq!(checked(&tcp_v4(48 * GSO_SEGMENTS_MAX + 1), small), Err(DropReason::GsoBad), "129 segments");
        assert_eq!(checked(&tcp_v4(0), GSO), Err(DropReason::GsoBad), "nothing to segment");
    }

    #[test]
    fn one_segment_is_no_segmentation() {
        assert_eq!(checked(&tcp_v4(1000), GSO), Ok(PARTIAL));
        assert_eq!(checked(&tcp_v4(1001), GSO), Ok(GSO));
    }

    #[test]
    fn udp_segmentation_over_both() {
        let datagram = testing::udp(1, 2, &[7; 3000]);
        let offload = Offload { gso_type: virtio_net::GSO_UDP_L4, csum_offset: 6, ..GSO };
        let frame = ipv4_frame(v4(GUEST_A), v4(GUEST_B), proto::UDP, 64, &datagram);
        assert_eq!(checked(&frame, offload), Ok(Offload { hdr_len: 42, ..offload }));
        let frame = ipv6_frame(v6(GUEST_A), v6(GUEST_B), proto::UDP, 64, &datagram);
        let offload = Offload { csum_start: 54, ..offload };
        assert_eq!(checked(&frame, offload), Ok(Offload { hdr_len: 62, ..offload }));
        let ecn = Offload { gso_type: virtio_net::GSO_UDP_L4 | virtio_net::GSO_ECN, ..offload };
        assert_eq!(checked(&frame, ecn), Err(DropReason::GsoBad));
    }
}
