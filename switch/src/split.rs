//! Cuts an IPv4 datagram that is too long for where it goes into fragments (RFC 791 §3.2, RFC 1812 §4.2.2.7; SEMANTICS NA10). IPv6 leaves
//! that to the sender (RFC 8200 §5).

use crate::packet::{L3, Packet};
use crate::wire::{checksum, ethernet, ipv4};

const LENGTH: usize = 2;
const FLAGS: usize = 6;
const CHECKSUM: usize = 10;
const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
/// Fragments begin at multiples of it.
const UNIT: usize = 8;

/// Whether a parsed packet may be cut: IPv4 without "don't fragment". Of a GSO frame that goes for each of its segments.
pub fn may_split(packet: &Packet) -> bool {
    let flags = packet.head().get(ethernet::HEADER_LEN + FLAGS);
    packet.meta.l3 == L3::V4 && flags.is_some_and(|flags| flags & 0x40 == 0)
}

/// Cuts a whole frame, whose checksums are complete, into frames of which none is longer than `mtu` behind its Ethernet header. What is a
/// fragment already becomes smaller ones. `None` when that cannot be: headers are wrong, or leave no room.
pub fn split(frame: &[u8], mtu: u16) -> Option<Vec<Box<[u8]>>> {
    let (link, packet) = frame.split_at_checked(ethernet::HEADER_LEN)?;
    let view = ipv4::Ipv4::new(packet.first_chunk()?);
    let (header_len, total) = (view.header_len(), usize::from(view.total_len()));
    let header = packet.get(..header_len).filter(|header| header.len() >= ipv4::HEADER_LEN)?;
    let payload = packet.get(header_len..total)?;
    let word = u16::from_be_bytes([header[FLAGS], header[FLAGS + 1]]);
    let room = usize::from(mtu).checked_sub(header_len)? / UNIT * UNIT;
    if room == 0 || word & DONT_FRAGMENT != 0 {
        return None;
    }
    let later = later_header(header);
    let pieces = payload.len().div_ceil(room);
    let piece = |(index, part): (usize, &[u8])| {
        let more = index + 1 < pieces || word & MORE_FRAGMENTS != 0;
        // The whole is at most 64 KiB.
        let offset =
            (word & 0x1fff).checked_add(u16::try_from(index * room / UNIT).ok()?).filter(|offset| *offset <= 0x1fff)?;
        let mut header = if index == 0 { header.to_vec() } else { later.clone() };
        let length = u16::try_from(header.len() + part.len()).ok()?;
        header[LENGTH..LENGTH + 2].copy_from_slice(&length.to_be_bytes());
        let flags = offset | if more { MORE_FRAGMENTS } else { 0 };
        header[FLAGS..FLAGS + 2].copy_from_slice(&flags.to_be_bytes());
        header[CHECKSUM..CHECKSUM + 2].fill(0);
        let sum = !checksum::sum(&header);
        header[CHECKSUM..CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
        Some([link, &header, part].concat().into_boxed_slice())
    };
    payload.chunks(room).enumerate().map(piece).collect()
}

/// The header of the fragments behind the first: of the options, those that say that they are copied (RFC 791 §3.1).
fn later_header(header: &[u8]) -> Vec<u8> {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const COPIED: u8 = 0x80;
    let (fixed, mut options) = header.split_at(ipv4::HEADER_LEN);
    let mut later = fixed.to_vec();
    while let [kind, rest @ ..] = options {
        let len = match (*kind, rest.first()) {
            (NO_OPERATION, _) => 1,
            (END, _) | (_, None) => break,
            (_, Some(len)) => usize::from(*len),
        };
        let Some((option, behind)) = options.split_at_checked(len).filter(|_| len > 0) else { break };
        if kind & COPIED != 0 {
            later.extend(option);
        }
        options = behind;
    }
    later.resize(later.len().next_multiple_of(4), END);
    later[0] = 0x40 | (later.len() / 4) as u8;
    later
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::{GUEST_A, GUEST_B, v4};
    use crate::testing::{ipv4_frame, with};

    /// A datagram of `data` octets that may be cut, with IPv4 options.
    fn datagram(data: usize, options: &[u8]) -> Vec<u8> {
        let payload: Vec<u8> = (0..data).map(|at| at as u8).collect();
        let plain = ipv4_frame(v4(GUEST_A), v4(GUEST_B), 253, 64, &payload);
        let (link, packet) = plain.split_at(ethernet::HEADER_LEN);
        let mut header = [&packet[..20], options].concat();
        let total = (header.len() + data) as u16;
        header[0] = 0x40 | (header.len() / 4) as u8;
        header[LENGTH..LENGTH + 2].copy_from_slice(&total.to_be_bytes());
        header[4..8].copy_from_slice(&[0x12, 0x34, 0, 0]);
        header[CHECKSUM..CHECKSUM + 2].fill(0);
        let sum = !checksum::sum(&header);
        header[CHECKSUM..CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
        [link, &header, &payload].concat()
    }

    /// What receivers make of fragments: the payload, if they fit together and each is right.
    fn together(pieces: &[Box<[u8]>], mtu: usize) -> Vec<u8> {
        let mut payload = Vec::new();
        for (index, piece) in pieces.iter().enumerate() {
            let packet = &piece[ethernet::HEADER_LEN..];
            let view = ipv4::Ipv4::new(packet.first_chunk().unwrap());
            assert_eq!(checksum::sum(&packet[..view.header_len()]), 0xffff);
            assert_eq!((usize::from(view.total_len()), packet[4..6].to_vec()), (packet.len(), vec![0x12, 0x34]));
            assert!(packet.len() <= mtu);
            assert_eq!((view.fragment_offset(), view.more_fragments()), (payload.len(), index + 1 < pieces.len()));
            payload.extend(&packet[view.header_len()..]);
        }
        payload
    }

    #[test]
    fn na10_fragments_fit_the_mtu_and_each_other() {
        for mtu in [68, 576, 1400, 1500] {
            for data in [1, 1480, 1481, 3000, 40_000] {
                let frame = datagram(data, &[]);
                let pieces = split(&frame, mtu).unwrap();
                assert_eq!(together(&pieces, mtu.into()), frame[34..], "{data} octets, MTU {mtu}");
            }
        }
    }

    #[test]
    fn na10_a_fragment_becomes_smaller_ones_in_its_place() {
        let frame = datagram(4000, &[]);
        let first = split(&frame, 1500).unwrap();
        let again: Vec<_> = first.iter().flat_map(|piece| split(piece, 600).unwrap()).collect();
        assert!(again.len() > first.len());
        assert_eq!(together(&again, 600), frame[34..]);
    }

    #[test]
    fn rfc791_options_are_copied_where_they_say_so() {
        // Record route, which is not copied, router alert, which is, and the end.
        let frame = datagram(1000, &[7, 7, 4, 0, 0, 0, 0, 1, 0x94, 4, 0, 0]);
        let pieces = split(&frame, 600).unwrap();
        assert_eq!(together(&pieces, 600), frame[46..]);
        assert_eq!(pieces[0][34..46], frame[34..46]);
        assert_eq!((pieces[1][14], &pieces[1][34..38]), (0x46, &[0x94, 4, 0, 0][..]));
    }

    #[test]
    fn what_must_not_be_cut_is_not() {
        let mut kept = datagram(1000, &[]);
        kept[ethernet::HEADER_LEN + FLAGS] = 0x40;
        assert!(split(&kept, 600).is_none());
        assert!(split(&datagram(1000, &[]), 27).is_none(), "no room");
        assert!(split(&datagram(1000, &[])[..300], 600).is_none(), "cut off");
        for (frame, may) in [(datagram(1000, &[]), true), (kept, false)] {
            with(&frame, |packet, arena| {
                let _ = crate::parse::parse(packet, arena);
                assert_eq!(may_split(packet), may);
            });
        }
    }
}
