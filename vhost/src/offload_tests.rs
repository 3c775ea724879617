//! Tests of [`super`]: checksums and segmentation in software.

use super::*;
use crate::features::*;

const ALL: u64 = OFFERED;

/// A checksum that has nothing in common with the one above: RFC 1071 with end-around carry at each step, octet pairs.
fn reference_checksum(octets: &[u8]) -> u16 {
    let mut sum = 0u16;
    for pair in octets.chunks(2) {
        let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
        let (next, carry) = sum.overflowing_add(word);
        sum = next + u16::from(carry);
    }
    sum
}

/// A GSO frame with `payload` octets that count up, its checksum partial as a driver leaves it.
pub(crate) fn gso_frame(v6: bool, tcp: bool, payload: usize, size: u16) -> (Vec<u8>, Offload) {
    let l4_len = if tcp { 32 } else { 8 };
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    let protocol = if tcp { 6 } else { 17 };
    let total = (l4_len + payload) as u16;
    if v6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend(total.to_be_bytes());
        frame.extend([protocol, 64]);
        frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    } else {
        frame.extend([0x08, 0x00, 0x45, 0]);
        frame.extend((20 + total).to_be_bytes());
        frame.extend([0xff, 0xff, 0x40, 0, 64, protocol, 0, 0, 10, 64, 0, 10, 10, 64, 0, 11]);
    }
    let l4 = frame.len();
    if tcp {
        // Sequence number about to wrap; CWR, ACK, PSH, FIN; twelve octets of options.
        frame.extend([0x12, 0x34, 0, 80, 0xff, 0xff, 0xff, 0x00, 0, 0, 0, 1, 0x80, 0x99, 1, 0, 0, 0, 0, 0]);
        frame.extend([1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]);
    } else {
        frame.extend([0x12, 0x34, 0, 53]);
        frame.extend(total.to_be_bytes());
        frame.extend([0, 0]);
    }
    let offset = if tcp { 16 } else { 6 };
    let pseudo = pseudo(&frame, v6, protocol, total);
    frame[l4 + offset..l4 + offset + 2].copy_from_slice(&reference_checksum(&pseudo).to_be_bytes());
    frame.extend((0..payload).map(|at| (at * 7) as u8));
    let gso_type = match (tcp, v6) {
        (false, _) => virtio_net::GSO_UDP_L4,
        (true, false) => virtio_net::GSO_TCPV4,
        (true, true) => virtio_net::GSO_TCPV6,
    };
    let offload = Offload {
        flags: virtio_net::NEEDS_CSUM,
        gso_type,
        hdr_len: (l4 + l4_len) as u16,
        gso_size: size,
        csum_start: l4 as u16,
        csum_offset: offset as u16,
    };
    (frame, offload)
}

fn pseudo(frame: &[u8], v6: bool, protocol: u8, len: u16) -> Vec<u8> {
    let addresses = if v6 { &frame[22..54] } else { &frame[26..34] };
    [addresses, &[0, protocol], &len.to_be_bytes()].concat()
}

/// Asserts that a frame is complete: lengths, IPv4 header checksum, transport checksum.
pub(crate) fn verify(frame: &[u8]) {
    let v6 = frame[12..14] == [0x86, 0xdd];
    let (l4, protocol, ip_len) = if v6 {
        (54, frame[20], 40 + usize::from(u16::from_be_bytes([frame[18], frame[19]])))
    } else {
        assert_eq!(reference_checksum(&frame[14..34]), 0xffff, "IPv4 header checksum");
        (34, frame[23], usize::from(u16::from_be_bytes([frame[16], frame[17]])))
    };
    assert_eq!(ip_len + 14, frame.len(), "IP length");
    if protocol == 17 {
        assert_eq!(usize::from(u16::from_be_bytes([frame[l4 + 4], frame[l4 + 5]])), frame.len() - l4, "UDP length");
        assert_ne!(frame[l4 + 6..l4 + 8], [0, 0], "UDP checksum is there");
    }
    let pseudo = pseudo(frame, v6, protocol, (frame.len() - l4) as u16);
    assert_eq!(reference_checksum(&[&pseudo, &frame[l4..]].concat()), 0xffff, "transport checksum");
}

fn header(offload: &Offload) -> [u8; 12] {
    let mut header = PLAIN;
    (header[0], header[1]) = (offload.flags, offload.gso_type);
    let fields = [offload.hdr_len, offload.gso_size, offload.csum_start, offload.csum_offset];
    for (at, value) in fields.into_iter().enumerate() {
        header[2 + 2 * at..4 + 2 * at].copy_from_slice(&value.to_le_bytes());
    }
    header
}

fn check(offload: &Offload, frame: &[u8], negotiated: u64) -> Result<Offload, DropReason> {
    check_offload(&header(offload), frame.len(), &frame[..frame.len().min(116)], negotiated)
}

#[test]
fn segments_are_complete_and_add_up() {
    for v6 in [false, true] {
        for tcp in [false, true] {
            for payload in [1, 47, 1000, 1001, 1999, 3000, 60_001] {
                let (frame, offload) = gso_frame(v6, tcp, payload, 1000);
                let mut segments: Vec<Vec<u8>> = vec![];
                let mut buffer = vec![0xa5; 65_553];
                let count = segment::<DropReason>(&frame, &offload, &mut buffer, |segment| {
                    segments.push(segment.to_vec());
                    Ok(())
                });
                assert_eq!(count, Ok(payload.div_ceil(1000) as u32));
                let headers = usize::from(offload.hdr_len);
                let l4 = usize::from(offload.csum_start);
                let mut together = vec![];
                for (index, segment) in segments.iter().enumerate() {
                    verify(segment);
                    let last = index + 1 == segments.len();
                    assert!(last || segment.len() == headers + 1000);
                    if tcp {
                        let expected = 0xffff_ff00u32.wrapping_add(1000 * index as u32);
                        assert_eq!(segment[l4 + 4..l4 + 8], expected.to_be_bytes());
                        let cwr = if index == 0 { 0x80 } else { 0 };
                        assert_eq!(segment[l4 + 13], 0x10 | cwr | if last { 0x09 } else { 0 });
                    }
                    if !v6 {
                        assert_eq!(segment[18..20], 0xffffu16.wrapping_add(index as u16).to_be_bytes());
                    }
                    together.extend_from_slice(&segment[headers..]);
                }
                assert_eq!(together, frame[headers..]);
            }
        }
    }
}

#[test]
fn partial_checksums_are_completed() {
    for v6 in [false, true] {
        for tcp in [false, true] {
            for payload in 1..70 {
                let (mut frame, offload) = gso_frame(v6, tcp, payload, 1000);
                if !v6 {
                    frame[24..26].copy_from_slice(&[0, 0]);
                    let sum = !reference_checksum(&frame[14..34]);
                    frame[24..26].copy_from_slice(&sum.to_be_bytes());
                }
                complete_checksum(&mut frame, &offload).unwrap();
                verify(&frame);
            }
        }
    }
    let bad = Offload { csum_start: 60, csum_offset: 3, ..Offload::default() };
    assert_eq!(complete_checksum(&mut [0; 64], &bad), Err(DropReason::ChecksumBad));
}

#[test]
fn good_headers_pass_and_carry_the_real_header_length() {
    for (v6, tcp) in [(false, false), (false, true), (true, false), (true, true)] {
        let (frame, offload) = gso_frame(v6, tcp, 20_000, 1448);
        // Linux says how much of the frame is linear, not where the headers end.
        assert_eq!(check(&Offload { hdr_len: 200, ..offload }, &frame, ALL), Ok(offload));
        let ecn = Offload { gso_type: offload.gso_type | virtio_net::GSO_ECN, ..offload };
        assert_eq!(check(&ecn, &frame, ALL).is_ok(), tcp);
        let plain = Offload { gso_type: 0, gso_size: 0, hdr_len: 0, ..offload };
        assert_eq!(check(&plain, &frame, ALL), Ok(plain));
    }
    let valid = Offload { flags: virtio_net::DATA_VALID, ..Offload::default() };
    assert_eq!(check(&valid, &[0; 64], ALL), Ok(Offload::default()), "a guest vouches for nothing");
}

#[test]
fn bad_headers_are_dropped() {
    use DropReason::{ChecksumBad, GsoBad};
    let (frame, good) = gso_frame(false, true, 20_000, 1448);
    let cases: &[(&str, Offload, u64, DropReason)] = &[
        ("checksum start in the Ethernet header", Offload { csum_start: 13, ..good }, ALL, ChecksumBad),
        ("checksum start behind the end", Offload { csum_start: 0xffff, ..good }, ALL, ChecksumBad),
        ("checksum offset behind the end", Offload { csum_offset: 0xffff, ..good }, ALL, ChecksumBad),
        ("checksum not negotiated", good, ALL & !CSUM, ChecksumBad),
        ("size 0", Offload { gso_size: 0, ..good }, ALL, GsoBad),
        ("size 47", Offload { gso_size: 47, ..good }, ALL, GsoBad),
        ("129 segments", Offload { gso_size: 156, ..good }, ALL, GsoBad),
        ("header length behind the end", Offload { hdr_len: 0xffff, ..good }, ALL, GsoBad),
        ("no checksum", Offload { flags: 0, ..good }, ALL, GsoBad),
        ("wrong checksum field", Offload { csum_offset: 6, ..good }, ALL, GsoBad),
        ("wrong transport header", Offload { csum_start: 38, ..good }, ALL, GsoBad),
        ("IPv6 type on IPv4", Offload { gso_type: virtio_net::GSO_TCPV6, ..good }, ALL, GsoBad),
        ("UDP type on TCP", Offload { gso_type: virtio_net::GSO_UDP_L4, csum_offset: 6, ..good }, ALL, GsoBad),
        ("UFO", Offload { gso_type: 3, ..good }, ALL, GsoBad),
        ("unknown type", Offload { gso_type: 0x7f, ..good }, ALL, GsoBad),
        ("TSO4 not negotiated", good, ALL & !HOST_TSO4, GsoBad),
        ("ECN not negotiated", Offload { gso_type: 0x81, ..good }, ALL & !HOST_ECN, GsoBad),
    ];
    for (name, offload, negotiated, reason) in cases {
        assert_eq!(check(offload, &frame, *negotiated), Err(*reason), "{name}");
    }
    let mut short = frame.clone();
    short[34 + 12] = 0x40;
    assert_eq!(check(&good, &short, ALL), Err(GsoBad), "TCP header of 16 octets");
    assert_eq!(check(&good, &frame[..66], ALL), Err(GsoBad), "no payload");
    assert_eq!(check(&good, &frame[..20], ALL), Err(ChecksumBad), "cut off");
    let (frame, good) = gso_frame(true, false, 20_000, 1448);
    assert_eq!(check(&good, &frame, ALL & !HOST_USO), Err(GsoBad), "USO not negotiated");
    let (gso_type, csum_offset) = (virtio_net::GSO_TCPV4, 16);
    assert_eq!(check(&Offload { gso_type, csum_offset, ..good }, &frame, ALL), Err(GsoBad), "IPv4 type on IPv6");
}

#[test]
fn segmentation_of_nonsense_is_refused() {
    let (frame, good) = gso_frame(false, true, 3000, 1000);
    let mut buffer = vec![0; 65_553];
    let mut refused = |frame: &[u8], offload: Offload| {
        segment::<DropReason>(frame, &offload, &mut buffer, |_| Ok(())) == Err(DropReason::GsoBad)
    };
    for len in 0..66 {
        assert!(refused(&frame[..len], good), "{len}");
    }
    assert!(refused(&frame, Offload { gso_size: 0, ..good }));
    assert!(refused(&frame, Offload { csum_start: 20, ..good }));
    assert!(refused(&frame, Offload { csum_start: 0xffff, ..good }));
}

#[test]
fn receivers_get_what_they_negotiated() {
    let none = VERSION_1 | MRG_RXBUF;
    for (v6, tcp, feature) in
        [(false, true, GUEST_TSO4), (true, true, GUEST_TSO6), (false, false, GUEST_USO4), (true, false, GUEST_USO6)]
    {
        let (_, gso) = gso_frame(v6, tcp, 3000, 1000);
        let whole = |plan| matches!(plan, Plan::Whole(_));
        assert_eq!(plan(&gso, v6, none), Plan::Segment);
        assert_eq!(plan(&gso, v6, none | GUEST_CSUM), Plan::Segment);
        assert_eq!(plan(&gso, v6, none | feature), Plan::Segment);
        assert!(whole(plan(&gso, v6, none | feature | GUEST_CSUM)));
        assert_eq!(plan(&gso, v6, ALL), Plan::Whole(header(&gso)));
        let ecn = Offload { gso_type: gso.gso_type | virtio_net::GSO_ECN, ..gso };
        assert_eq!(plan(&ecn, v6, ALL & !GUEST_ECN), Plan::Segment);
        let partial = Offload { gso_type: 0, gso_size: 0, hdr_len: 0, ..gso };
        assert_eq!(plan(&partial, v6, none), Plan::Checksum);
        assert_eq!(plan(&partial, v6, none | GUEST_CSUM), Plan::Whole(header(&partial)));
        let valid = Offload { flags: virtio_net::DATA_VALID, ..Offload::default() };
        assert_eq!(plan(&valid, v6, none), Plan::Whole(PLAIN));
        assert_eq!(plan(&valid, v6, none | GUEST_CSUM), Plan::Whole(header(&valid)));
    }
}
