//! Gives an SCTP packet other L4 ports (RFC 9260). Its checksum is a CRC over the whole packet, of which only the head is at hand: but a
//! CRC is linear, so what changes in four octets changes it by something that depends on how much follows, and not on what.

use crate::connection::Change;
use crate::packet::Packet;
use crate::stage::DropReason;
use crate::wire::ethernet;

/// Octets of the common header: ports, verification tag, checksum.
const HEADER: usize = 12;
const PORTS: usize = 4;
const CHECKSUM: usize = 8;

/// Changes the ports of a packet that is no later fragment.
///
/// # Errors
/// `NatUnsupported` of a first fragment: how much follows it does not say.
#[cold]
pub(crate) fn translate(packet: &mut Packet, change: &Change) -> Result<(), DropReason> {
    let (l4, fragment) = (usize::from(packet.meta.layers.l4), packet.meta.fragment);
    let len = (ethernet::HEADER_LEN + packet.meta.l3_len as usize).saturating_sub(l4);
    let header = packet.head_mut().get_mut(l4..).and_then(|octets| octets.first_chunk_mut::<HEADER>());
    let header = header.ok_or(DropReason::Internal)?;
    let new = u32::from(change.src_port) << 16 | u32::from(change.dst_port);
    let old: [u8; PORTS] = std::array::from_fn(|at| header[at]);
    let difference = std::array::from_fn(|at| old[at] ^ new.to_be_bytes()[at]);
    if difference == [0; PORTS] {
        return Ok(());
    }
    if fragment {
        return Err(DropReason::NatUnsupported);
    }
    header[..PORTS].copy_from_slice(&new.to_be_bytes());
    let checksum = u32::from_le_bytes(std::array::from_fn(|at| header[CHECKSUM + at]));
    // RFC 9653: zero says that there is none.
    if checksum != 0 {
        let checksum = checksum ^ followed_by(linear(difference), len.saturating_sub(PORTS));
        header[CHECKSUM..].copy_from_slice(&checksum.to_le_bytes());
    }
    Ok(())
}

/// The polynomial of CRC32c (RFC 9260 appendix A), lowest bit first.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// The remainder of four octets, without what the CRC adds before and after.
fn linear(octets: [u8; PORTS]) -> u32 {
    let one = |crc: u32, octet: u8| (0..8).fold(crc ^ u32::from(octet), |crc, _| times_x(crc));
    octets.into_iter().fold(0, one)
}

/// What a remainder becomes with that many octets of zero behind it.
fn followed_by(crc: u32, zeros: usize) -> u32 {
    // One octet is x to the eighth; its squares are 2, 4, 8 ... octets.
    let (mut crc, mut power, mut left) = (crc, ONE >> 8, zeros);
    while left != 0 {
        if left & 1 != 0 {
            crc = times(crc, power);
        }
        power = times(power, power);
        left >>= 1;
    }
    crc
}

/// The polynomial 1: the highest power is the lowest bit.
const ONE: u32 = 1 << 31;

fn times_x(a: u32) -> u32 {
    if a & 1 != 0 { a >> 1 ^ POLYNOMIAL } else { a >> 1 }
}

fn times(a: u32, b: u32) -> u32 {
    let step =
        |(product, b): (u32, u32), bit: u32| (if a & ONE >> bit != 0 { product ^ b } else { product }, times_x(b));
    (0..32).fold((0, b), step).0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::change;
    use crate::flow::{FlowKey, Kind};
    use crate::fuzz::{GUEST_A, GUEST_B, v4, v6};
    use crate::parse::parse;
    use crate::stage::Verdict;
    use crate::testing::{self, ipv4_frame, ipv6_frame};
    use proptest::prelude::*;

    /// By the definition, over every octet.
    fn crc32c(octets: &[u8]) -> u32 {
        let one = |crc: u32, octet: &u8| (0..8).fold(crc ^ u32::from(*octet), |crc, _| times_x(crc));
        !octets.iter().fold(!0, one)
    }

    fn packet(ports: [u16; 2], data: &[u8]) -> Vec<u8> {
        let mut octets =
            [&ports[0].to_be_bytes()[..], &ports[1].to_be_bytes(), &[1, 2, 3, 4, 0, 0, 0, 0], data].concat();
        let checksum = crc32c(&octets);
        octets[CHECKSUM..HEADER].copy_from_slice(&checksum.to_le_bytes());
        octets
    }

    fn to(ports: [u16; 2]) -> Change {
        let key = |[a, b]: [u16; 2]| FlowKey::new(1, 2, a, b, 132, Kind::Ports);
        change(&key([1, 2]), &key(ports))
    }

    #[test]
    fn crc32c_is_that_of_the_standard() {
        // RFC 3720 B.4 and every implementation.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    proptest! {
        #[test]
        fn the_checksum_is_that_of_the_new_packet(
            before in any::<[u16; 2]>(), after in any::<[u16; 2]>(), data in proptest::collection::vec(any::<u8>(), 0..3000),
        ) {
            let octets = packet(before, &data);
            for frame in [ipv4_frame(v4(GUEST_A), v4(GUEST_B), 132, 64, &octets), ipv6_frame(v6(GUEST_A), v6(GUEST_B), 132, 64, &octets)] {
                let out = testing::with(&frame, |packet, arena| {
                    assert_eq!(parse(packet, arena), Verdict::Continue);
                    translate(packet, &to(after)).map(|()| {
                        let mut out = vec![0; packet.len()];
                        packet.copy_frame(arena, &mut out);
                        out
                    })
                });
                let l4 = frame.len() - octets.len();
                prop_assert_eq!(&out.unwrap()[l4..], packet(after, &data));
            }
        }
    }

    #[test]
    fn without_a_checksum_there_is_none_afterwards() {
        let mut octets = packet([1, 2], b"data");
        octets[CHECKSUM..HEADER].fill(0);
        testing::with(&ipv4_frame(v4(GUEST_A), v4(GUEST_B), 132, 64, &octets), |packet, arena| {
            assert_eq!(parse(packet, arena), Verdict::Continue);
            assert_eq!(translate(packet, &to([7, 8])), Ok(()));
            assert_eq!(packet.head()[34..46], [0, 7, 0, 8, 1, 2, 3, 4, 0, 0, 0, 0]);
        });
    }

    #[test]
    fn a_first_fragment_that_is_refused_stays_as_it_was_sent() {
        let octets = packet([1, 2], b"the first half of something");
        for frame in [
            ipv4_frame(v4(GUEST_A), v4(GUEST_B), 132, 64, &octets),
            ipv6_frame(v6(GUEST_A), v6(GUEST_B), 132, 64, &octets),
        ] {
            testing::with(&frame, |packet, arena| {
                assert_eq!(parse(packet, arena), Verdict::Continue);
                packet.meta.fragment = true;
                assert_eq!(crate::translate::translate(packet, &to([7, 8])), Err(DropReason::NatUnsupported));
                assert_eq!(packet.head(), &frame[..packet.head().len()]);
            });
        }
    }
}
