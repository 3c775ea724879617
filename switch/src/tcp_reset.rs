//! Turns a TCP segment that nobody takes into the reset that its sender must hear (RFC 9293 §3.10.7.1).
//!
//! It comes from the address that the segment was sent to. Never about another reset, and never to a group of the link (RFC 1122
//! §3.2.2). The caller limits the rate.

use std::ops::Range;

use crate::packet::{L3, Layers, Meta, Packet};
use crate::tables::PortId;
use crate::wire::ethernet::{self, Ethernet, ether_type};
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::{self, Ipv6};
use crate::wire::tcp::{self, Tcp, flags};
use crate::wire::{checksum, proto};

/// Replaces `packet`, parsed but not rewritten, by the reset that answers it, addressed to its sender. `false` when there may be
/// none; the packet is as before then.
#[cold]
pub fn tcp_reset(packet: &mut Packet) -> bool {
    reset(packet).is_some()
}

fn reset(packet: &mut Packet) -> Option<()> {
    let meta = &packet.meta;
    let link = Ethernet::new_checked(packet.head())?;
    let (to, from) = (link.src(), link.dst());
    if from.is_multicast() || meta.later_fragment || meta.proto != proto::TCP {
        return None;
    }
    let segment = Tcp::new_checked(packet.head().get(usize::from(meta.layers.l4)..)?)?;
    if segment.flags() & flags::RST != 0 {
        return None;
    }
    let answer = header(segment, octets(meta, segment.flags()));
    let network = packet.head().get(ethernet::HEADER_LEN..)?;
    let (l3, in_port, hash) = (meta.l3, meta.in_port, meta.hash);
    // Both were sent to an address of one host: `guard` and the lookup have seen to it.
    let (v4, v6) = match l3 {
        L3::V4 => (Some(Ipv4::new_checked(network)?).map(|header| (header.src(), header.dst())), None),
        L3::V6 => (None, Some(Ipv6::new_checked(network)?).map(|header| (header.src(), header.dst()))),
        L3::Arp | L3::None => return None,
    };
    let l4 = ethernet::HEADER_LEN + if l3 == L3::V4 { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN };
    packet.set_head_only(l4 + tcp::HEADER_LEN);
    let head = packet.head_mut();
    let ether_type = if l3 == L3::V4 { ether_type::IPV4 } else { ether_type::IPV6 };
    ethernet::Repr { dst: to, src: from, ether_type }.emit(head.first_chunk_mut()?);
    let payload_len = tcp::HEADER_LEN as u16;
    let mut pseudo = 0;
    if let Some((src, dst)) = v4 {
        let repr = ipv4::Repr { src: dst, dst: src, proto: proto::TCP, ttl: TTL, tos: 0, payload_len };
        repr.emit(head.get_mut(ethernet::HEADER_LEN..)?.first_chunk_mut()?);
        pseudo = checksum::pseudo_v4(dst, src, proto::TCP, u32::from(payload_len));
    }
    if let Some((src, dst)) = v6 {
        let (next_header, hop_limit) = (proto::TCP, TTL);
        let repr = ipv6::Repr { src: dst, dst: src, next_header, hop_limit, traffic_class: 0, payload_len };
        repr.emit(head.get_mut(ethernet::HEADER_LEN..)?.first_chunk_mut()?);
        pseudo = checksum::pseudo_v6(dst, src, proto::TCP, u32::from(payload_len));
    }
    let place = head.get_mut(l4..)?.first_chunk_mut::<{ tcp::HEADER_LEN }>()?;
    *place = answer;
    let mut sum = checksum::Sum::new(pseudo);
    sum.add(place);
    place[CHECKSUM].copy_from_slice(&sum.checksum().to_be_bytes());
    packet.meta = fresh(packet, in_port, hash, l3, l4 as u16);
    Some(())
}

/// What is known of the answer.
fn fresh(packet: &Packet, in_port: PortId, hash: u32, l3: L3, l4: u16) -> Meta {
    let word =
        |at: usize| packet.head().get(at..).and_then(|head| head.first_chunk()).map_or(0, |w| u16::from_be_bytes(*w));
    Meta {
        in_port,
        out_port: in_port,
        layers: Layers { l3: ethernet::HEADER_LEN as u16, l4, l5: l4 + tcp::HEADER_LEN as u16 },
        l3,
        proto: proto::TCP,
        src_port: word(usize::from(l4)),
        dst_port: word(usize::from(l4) + 2),
        l3_len: u32::from(l4) - ethernet::HEADER_LEN as u32 + tcp::HEADER_LEN as u32,
        hash,
        ..Meta::default()
    }
}

/// Sequence numbers that a segment takes (RFC 9293 §3.4): its data, and one each for SYN and FIN.
fn octets(meta: &Meta, of: u8) -> u32 {
    let headers = u32::from(meta.layers.l5.saturating_sub(meta.layers.l3));
    let flag = |flag| u32::from(of & flag != 0);
    meta.l3_len.saturating_sub(headers) + flag(flags::SYN) + flag(flags::FIN)
}

/// "If the ACK bit is off, sequence number zero is used, <SEQ=0><ACK=SEG.SEQ+SEG.LEN><CTL=RST,ACK>. If the ACK bit is on,
/// <SEQ=SEG.ACK><CTL=RST>."
fn header(segment: Tcp<'_>, octets: u32) -> [u8; tcp::HEADER_LEN] {
    let (seq, ack, flags) = match segment.flags() & flags::ACK {
        0 => (0, segment.sequence().wrapping_add(octets), flags::RST | flags::ACK),
        _ => (segment.acknowledgement(), 0, flags::RST),
    };
    let mut header = [0; tcp::HEADER_LEN];
    header[..2].copy_from_slice(&segment.dst_port().to_be_bytes());
    header[2..4].copy_from_slice(&segment.src_port().to_be_bytes());
    header[4..8].copy_from_slice(&seq.to_be_bytes());
    header[8..12].copy_from_slice(&ack.to_be_bytes());
    // Five words of header.
    header[12..14].copy_from_slice(&[5 << 4, flags]);
    header
}

/// Where the checksum stands.
const CHECKSUM: Range<usize> = tcp::CHECKSUM_OFFSET as usize..tcp::CHECKSUM_OFFSET as usize + 2;
/// Hop count of packets of ours.
const TTL: u8 = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MacAddr;
    use crate::fuzz::{GUEST_A, GUEST_B, mac, v4, v6};
    use crate::parse::parse;
    use crate::stage::Verdict;
    use crate::testing::{self, ipv4_frame, ipv6_frame};

    fn segment(seq: u32, ack: u32, flags: u8, data: &[u8]) -> Vec<u8> {
        let mut octets = [4000u16.to_be_bytes(), 80u16.to_be_bytes()].concat();
        octets.extend(seq.to_be_bytes());
        octets.extend(ack.to_be_bytes());
        octets.extend([5 << 4, flags, 1, 0, 0, 0, 0, 0]);
        octets.extend(data);
        octets
    }

    fn answer(frame: &[u8]) -> Option<Vec<u8>> {
        testing::with(frame, |packet, arena| {
            assert_eq!(parse(packet, arena), Verdict::Continue);
            let (done, len) = (tcp_reset(packet), packet.len());
            done.then(|| {
                assert_eq!(packet.meta.l3_len as usize + ethernet::HEADER_LEN, len);
                assert_eq!((packet.meta.src_port, packet.meta.dst_port), (80, 4000));
                packet.head().to_vec()
            })
        })
    }

    /// Sequence and acknowledgement number, and flags; everything else is checked.
    fn read(frame: &[u8], v6_: bool) -> (u32, u32, u8) {
        assert_eq!((&frame[..6], &frame[6..12]), (&mac(GUEST_A).0[..], &MacAddr::ROUTER.0[..]));
        let (l4, pseudo) = if v6_ {
            let header = Ipv6::new_checked(&frame[14..]).unwrap();
            assert_eq!((header.src(), header.dst(), header.next_header()), (v6(GUEST_B), v6(GUEST_A), 6));
            (54, checksum::pseudo_v6(header.src(), header.dst(), 6, 20))
        } else {
            let header = Ipv4::new_checked(&frame[14..]).unwrap();
            assert_eq!((header.src(), header.dst(), header.proto()), (v4(GUEST_B), v4(GUEST_A), 6));
            assert_eq!(checksum::ipv4_header_sum(header.octets()), 0xffff);
            (34, checksum::pseudo_v4(header.src(), header.dst(), 6, 20))
        };
        assert_eq!(frame.len(), l4 + 20);
        let mut sum = checksum::Sum::new(pseudo);
        sum.add(&frame[l4..]);
        assert_eq!(sum.folded(), 0xffff);
        let tcp = Tcp::new_checked(&frame[l4..]).unwrap();
        assert_eq!((tcp.src_port(), tcp.dst_port()), (80, 4000));
        (tcp.sequence(), tcp.acknowledgement(), tcp.flags())
    }

    #[test]
    fn resets_are_those_of_rfc_9293() {
        for (flags_, seq, ack, data, expected) in [
            (flags::SYN, 100, 0, &b""[..], Some((0, 101, flags::RST | flags::ACK))),
            (flags::SYN, u32::MAX, 0, &b"abc"[..], Some((0, 3, flags::RST | flags::ACK))),
            (flags::FIN, 100, 0, &b"abc"[..], Some((0, 104, flags::RST | flags::ACK))),
            (flags::ACK, 100, 77, &b"abc"[..], Some((77, 0, flags::RST))),
            (flags::RST, 100, 0, &b""[..], None),
            (flags::RST | flags::ACK, 100, 77, &b""[..], None),
        ] {
            let octets = segment(seq, ack, flags_, data);
            let out = answer(&ipv4_frame(v4(GUEST_A), v4(GUEST_B), 6, 64, &octets));
            assert_eq!(out.map(|frame| read(&frame, false)), expected, "{flags_:#x}");
            let out = answer(&ipv6_frame(v6(GUEST_A), v6(GUEST_B), 6, 64, &octets));
            assert_eq!(out.map(|frame| read(&frame, true)), expected, "{flags_:#x}");
        }
    }

    #[test]
    fn nothing_is_reset_that_was_sent_to_a_group_or_is_not_tcp() {
        let mut broadcast = ipv4_frame(v4(GUEST_A), v4(GUEST_B), 6, 64, &segment(1, 0, flags::SYN, b""));
        broadcast[..6].fill(0xff);
        assert_eq!(answer(&broadcast), None);
        assert_eq!(answer(&ipv4_frame(v4(GUEST_A), v4(GUEST_B), 17, 64, &testing::udp(4000, 80, b"data"))), None);
    }
}
