//! Tests of [`super`]: what a sender may write before and into a frame. Devices themselves are tested by
//! `tests/tap.rs` and `tests/packet`.

use std::ptr::NonNull;

use super::*;

#[allow(unsafe_code, reason = "a segment of a test's own buffer")]
fn segment(octets: &[u8]) -> Segment {
    // SAFETY: tests keep the slice alive longer than the segment. JUSTIFICATION: there is no other constructor.
    unsafe { Segment::new(NonNull::from(octets).cast(), octets.len() as u32) }
}

fn accept(octets: &[u8]) -> Result<Offload, DropReason> {
    let mut burst = Burst::new();
    receive(PortId(1), segment(octets), HEADER_LEN, &mut burst)?;
    assert_eq!(burst.len(), 1);
    Ok(burst.packets()[0].meta.offload)
}

/// A frame of `len` octets behind a header that asks for what `offload` says.
fn frame(offload: Offload, ether_type: u16, len: usize) -> Vec<u8> {
    let mut octets = header_of(&offload).to_vec();
    octets.resize(HEADER_LEN + len, 0x5a);
    let frame = &mut octets[HEADER_LEN..];
    frame[12..14].copy_from_slice(&ether_type.to_be_bytes());
    let tcp = match ether_type {
        0x0800 => {
            frame[14] = 0x45;
            frame[23] = if offload.gso_type == virtio_net::GSO_UDP_L4 { UDP } else { TCP };
            34
        }
        _ => {
            frame[14] = 0x60;
            frame[20] = if offload.gso_type == virtio_net::GSO_UDP_L4 { UDP } else { TCP };
            54
        }
    };
    frame[tcp + 12] = 0x80;
    octets
}

fn gso(gso_type: u8, csum_start: u16) -> Offload {
    let csum_offset = if gso_type == virtio_net::GSO_UDP_L4 { 6 } else { 16 };
    let header = if gso_type == virtio_net::GSO_UDP_L4 { 8 } else { 32 };
    let hdr_len = csum_start + header;
    Offload { flags: virtio_net::NEEDS_CSUM, gso_type, hdr_len, gso_size: 1_448, csum_start, csum_offset }
}

#[test]
fn legal_gso_frames_keep_what_they_ask_for() {
    for (gso_type, ether_type, start) in [
        (virtio_net::GSO_TCPV4, 0x0800, 34),
        (virtio_net::GSO_TCPV4 | virtio_net::GSO_ECN, 0x0800, 34),
        (virtio_net::GSO_TCPV6, 0x86dd, 54),
        (virtio_net::GSO_UDP_L4, 0x0800, 34),
        (virtio_net::GSO_UDP_L4, 0x86dd, 54),
    ] {
        let wanted = gso(gso_type, start);
        assert_eq!(accept(&frame(wanted, ether_type, 60_000)), Ok(wanted), "{gso_type:#x}");
        let lying = Offload { hdr_len: 9, ..wanted };
        assert_eq!(accept(&frame(lying, ether_type, 60_000)), Ok(wanted), "hdr_len is found out, not believed");
    }
}

#[test]
fn impossible_requests_are_dropped() {
    let good = gso(virtio_net::GSO_TCPV4, 34);
    for (offload, reason) in [
        (Offload { gso_size: 0, ..good }, DropReason::GsoBad),
        (Offload { gso_size: 47, ..good }, DropReason::GsoBad),
        (Offload { gso_size: 48, ..good }, DropReason::GsoBad), // more than 128 segments
        (Offload { flags: 0, ..good }, DropReason::GsoBad),
        (Offload { gso_type: 2, ..good }, DropReason::GsoBad),
        (Offload { gso_type: 3, ..good }, DropReason::GsoBad), // UFO
        (Offload { gso_type: virtio_net::GSO_ECN, ..good }, DropReason::GsoBad),
        (Offload { gso_type: virtio_net::GSO_TCPV6, ..good }, DropReason::GsoBad),
        (Offload { gso_type: virtio_net::GSO_UDP_L4 | virtio_net::GSO_ECN, ..good }, DropReason::GsoBad),
        (Offload { csum_start: 35, ..good }, DropReason::GsoBad),
        (Offload { csum_offset: 6, ..good }, DropReason::GsoBad),
        (Offload { csum_start: 0, ..good }, DropReason::ChecksumBad),
        (Offload { csum_start: 59_999, ..good }, DropReason::ChecksumBad),
        (Offload { csum_start: u16::MAX, csum_offset: u16::MAX, ..good }, DropReason::ChecksumBad),
    ] {
        assert_eq!(accept(&frame(offload, 0x0800, 60_000)), Err(reason), "{offload:?}");
    }
    assert_eq!(accept(&frame(good, 0x0800, 66)), Err(DropReason::GsoBad), "headers only");
}

#[test]
fn lengths_at_the_edges() {
    for (len, wanted) in [
        (1, Err(DropReason::FrameTooShort)),
        (HEADER_LEN, Err(DropReason::FrameTooShort)),
        (HEADER_LEN + 13, Err(DropReason::FrameTooShort)),
        (HEADER_LEN + 14, Ok(Offload::default())),
        (HEADER_LEN + FRAME_MAX, Ok(Offload::default())),
        (HEADER_LEN + FRAME_MAX + 1, Err(DropReason::FrameTooLong)),
    ] {
        assert_eq!(accept(&vec![0; len]), wanted, "{len}");
    }
}

#[test]
fn data_valid_and_unknown_flags_are_not_believed() {
    let mut octets = frame(Offload::default(), 0x0800, 64);
    octets[0] = !virtio_net::NEEDS_CSUM;
    assert_eq!(accept(&octets), Ok(Offload::default()));
}

#[test]
fn a_full_burst_takes_no_more() {
    let mut burst = Burst::new();
    let octets = frame(Offload::default(), 0x0800, 200);
    while burst.has_room(1) {
        receive(PortId(1), segment(&octets), HEADER_LEN, &mut burst).unwrap();
    }
    assert_eq!(receive(PortId(1), segment(&octets), HEADER_LEN, &mut burst), Err(DropReason::Internal));
}

/// Any octets: never a panic; what is accepted is whole, and what it asks for lies inside it.
fn check(octets: &[u8]) {
    let mut burst = Burst::new();
    if receive(PortId(1), segment(octets), HEADER_LEN, &mut burst).is_err() {
        assert!(burst.is_empty() && burst.segments.is_empty());
        return;
    }
    let frame = &octets[HEADER_LEN..];
    let (packet, arena) = burst.packet_mut(0);
    let mut copy = vec![0; packet.len()];
    assert_eq!(packet.copy_frame(arena, &mut copy), Some(frame.len()));
    assert!(copy == frame);
    let offload = packet.meta.offload;
    if offload.needs_csum() {
        assert!(usize::from(offload.csum_start) + usize::from(offload.csum_offset) + 2 <= frame.len());
    }
    if offload.is_gso() {
        assert!(offload.needs_csum() && usize::from(offload.gso_size) >= GSO_SIZE_MIN);
        assert!(usize::from(offload.hdr_len) < frame.len() && offload.hdr_len > offload.csum_start);
        let payload = frame.len() - usize::from(offload.hdr_len);
        assert!(payload.div_ceil(usize::from(offload.gso_size)) <= GSO_SEGMENTS_MAX);
    }
    assert_eq!(header_of(&offload)[0] & !virtio_net::NEEDS_CSUM, 0);
}

#[test]
fn mutated_frames() {
    let corpus = [
        frame(gso(virtio_net::GSO_TCPV4, 34), 0x0800, 3_000),
        frame(gso(virtio_net::GSO_TCPV6, 54), 0x86dd, 3_000),
        frame(gso(virtio_net::GSO_UDP_L4, 34), 0x0800, 3_000),
        frame(Offload { flags: 1, csum_start: 34, csum_offset: 16, ..Offload::default() }, 0x0800, 90),
        frame(Offload::default(), 0x86dd, 1_514),
    ];
    let mut seed: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut random = move |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 16) as usize % below
    };
    for _ in 0..100_000 {
        let mut octets = corpus[random(corpus.len())].clone();
        if random(4) == 0 {
            octets.truncate(1 + random(octets.len()));
        }
        for _ in 0..1 + random(4) {
            // Mostly where the header and the frame's own headers are.
            let range = if random(8) == 0 { usize::MAX } else { 80 };
            let at = random(octets.len().min(range));
            octets[at] = [0, 1, 0x7f, 0x80, 0xff, random(256) as u8][random(6)];
        }
        check(&octets);
    }
}

#[test]
fn a_tag_stands_behind_the_link_addresses_and_moves_the_checksum() {
    let offload = gso(virtio_net::GSO_TCPV4, 34);
    let octets = frame(offload, 0x0800, 3_000);
    let mut burst = Burst::new();
    receive(PortId(1), segment(&octets), HEADER_LEN, &mut burst).unwrap();
    let (packet, arena) = burst.packet_mut(0);
    let mut buffer = vec![0xa5; 4_000];
    let len = write(&mut buffer, PACKET_HEADER_LEN, Some(0x123), packet.meta.offload, packet, arena).unwrap();
    let (header, tagged) = buffer[..len].split_at(PACKET_HEADER_LEN);
    assert_eq!(header[..10], header_of(&Offload { hdr_len: 70, csum_start: 38, ..offload })[..10]);
    let plain = &octets[HEADER_LEN..];
    assert_eq!((&tagged[..12], &tagged[12..16], &tagged[16..]), (&plain[..12], &[0x81, 0, 1, 0x23][..], &plain[12..]));
    let len = write(&mut buffer, PACKET_HEADER_LEN, None, packet.meta.offload, packet, arena).unwrap();
    assert_eq!(&buffer[PACKET_HEADER_LEN..len], plain);
    assert_eq!(write(&mut buffer[..3_013], PACKET_HEADER_LEN, Some(1), packet.meta.offload, packet, arena), None);
    assert_eq!(write(&mut buffer[..5], PACKET_HEADER_LEN, Some(1), packet.meta.offload, packet, arena), None);
    let mut plain = Offload::default();
    shift(&mut plain);
    assert_eq!(plain, Offload::default(), "what is not asked for stays zero");
}

#[test]
fn a_packet_socket_has_a_shorter_header() {
    let mut octets = frame(gso(virtio_net::GSO_TCPV4, 34), 0x0800, 3_000);
    octets.drain(PACKET_HEADER_LEN..HEADER_LEN);
    let mut burst = Burst::new();
    receive(PortId(1), segment(&octets), PACKET_HEADER_LEN, &mut burst).unwrap();
    let (packet, arena) = burst.packet_mut(0);
    assert_eq!(packet.meta.offload, gso(virtio_net::GSO_TCPV4, 34));
    let mut copy = vec![0; packet.len()];
    packet.copy_frame(arena, &mut copy).unwrap();
    assert_eq!(copy, octets[PACKET_HEADER_LEN..]);
}
