//! The virtio-net header (VIRTIO 1.2 §5.1.6): checking what a sender asks for, saying it to a receiver, and doing it
//! in software for a receiver that did not negotiate it.
//!
//! A GSO frame and a partial checksum normally pass from guest to guest untouched. Software works on a private copy of
//! the whole frame: one octet is read from the sender once, so that checksum and data agree.

use hostweave_switch::limits::{GSO_SEGMENTS_MAX, GSO_SIZE_MIN};
use hostweave_switch::packet::{Offload, virtio_net};
use hostweave_switch::stage::DropReason;

use crate::features;

/// Octets of the longest virtio-net header.
pub const HEADER_MAX: usize = 12;
const ETHERNET: usize = 14;
const IPV4_ADDRESSES: usize = 12;
const IPV6_HEADER: usize = 40;
const TCP: u8 = 6;
const UDP: u8 = 17;
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;
const TCP_FIN_PSH: u8 = 0x09;
const TCP_CWR: u8 = 0x80;

/// The header of a frame that asks for nothing, in one buffer.
pub const PLAIN: [u8; HEADER_MAX] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// Whether a header asks for nothing: the common case, seen without parsing.
#[inline]
pub fn is_plain(header: &[u8]) -> bool {
    header[0] & virtio_net::NEEDS_CSUM == 0 && header[1] == virtio_net::GSO_NONE
}

/// Checks a sender's header against its frame of `frame_len` octets, of which `head` are the first ones copied
/// (SEMANTICS VU12). `DATA_VALID` is stripped: a guest cannot vouch for another guest's packet.
///
/// # Errors
/// `ChecksumBad` and `GsoBad`, for what is impossible or was not negotiated.
pub fn check_offload(header: &[u8], frame_len: usize, head: &[u8], negotiated: u64) -> Result<Offload, DropReason> {
    let field = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let (flags, gso_type) = (header[0] & virtio_net::NEEDS_CSUM, header[1]);
    let (hdr_len, gso_size, csum_start, csum_offset) = (field(2), field(4), field(6), field(8));
    if gso_type != virtio_net::GSO_NONE && flags == 0 {
        // VIRTIO 1.2 §5.1.6.2.1: a GSO frame has a partial checksum.
        return Err(DropReason::GsoBad);
    }
    if flags == 0 {
        return Ok(Offload::default());
    }
    let (start, offset) = (usize::from(csum_start), usize::from(csum_offset));
    if negotiated & features::CSUM == 0 || start < ETHERNET || start + offset + 2 > frame_len {
        return Err(DropReason::ChecksumBad);
    }
    let plain = Offload { flags, csum_start, csum_offset, ..Offload::default() };
    if gso_type == virtio_net::GSO_NONE {
        return Ok(plain);
    }
    let headers = gso_headers(gso_type, start, offset, head, negotiated).ok_or(DropReason::GsoBad)?;
    let size = usize::from(gso_size);
    let payload = frame_len.checked_sub(headers).filter(|payload| *payload > 0).ok_or(DropReason::GsoBad)?;
    if size < GSO_SIZE_MIN || payload.div_ceil(size) > GSO_SEGMENTS_MAX || usize::from(hdr_len) > frame_len {
        return Err(DropReason::GsoBad);
    }
    // The driver's `hdr_len` is a hint (Linux says how much is linear); the receiver gets the real length.
    Ok(Offload { gso_type, hdr_len: headers as u16, gso_size, ..plain })
}

/// Octets of all headers of a GSO frame, if its type was negotiated and agrees with the headers as far as `head`
/// shows them.
fn gso_headers(gso_type: u8, start: usize, offset: usize, head: &[u8], negotiated: u64) -> Option<usize> {
    let ecn = gso_type & virtio_net::GSO_ECN != 0;
    let (feature, protocol, checksum) = match gso_type & !virtio_net::GSO_ECN {
        virtio_net::GSO_TCPV4 => (features::HOST_TSO4, TCP, TCP_CHECKSUM),
        virtio_net::GSO_TCPV6 => (features::HOST_TSO6, TCP, TCP_CHECKSUM),
        virtio_net::GSO_UDP_L4 if !ecn => (features::HOST_USO, UDP, UDP_CHECKSUM),
        _ => return None,
    };
    if negotiated & feature == 0 || (ecn && negotiated & features::HOST_ECN == 0) || offset != checksum {
        return None;
    }
    let type_v4 = gso_type & !virtio_net::GSO_ECN == virtio_net::GSO_TCPV4;
    let type_v6 = gso_type & !virtio_net::GSO_ECN == virtio_net::GSO_TCPV6;
    match head.get(12..ETHERNET + 10)? {
        [0x08, 0x00, ip @ ..] if !type_v6 => {
            let header = usize::from(ip[0] & 0x0f) * 4;
            if ip[0] >> 4 != 4 || header < 20 || start != ETHERNET + header || ip[9] != protocol {
                return None;
            }
        }
        [0x86, 0xdd, ip @ ..] if !type_v4 => {
            let direct = ip[6] == protocol && start == ETHERNET + IPV6_HEADER;
            if ip[0] >> 4 != 6 || (start <= ETHERNET + IPV6_HEADER && !direct) {
                return None;
            }
        }
        _ => return None,
    }
    if protocol == UDP {
        return Some(start + 8);
    }
    // Beyond the first copy only behind IPv6 extension headers; `parse` looks again.
    let data_offset = head.get(start + 12).map_or(20, |octet| usize::from(octet >> 4) * 4);
    (data_offset >= 20).then_some(start + data_offset)
}

/// How a frame reaches a receiver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plan {
    /// As it is, behind this header.
    Whole([u8; HEADER_MAX]),
    /// The checksum must be completed first.
    Checksum,
    /// It must be cut into segments, each with its checksum.
    Segment,
}

/// What a receiver with these features can take. `v6` tells UDP segmentation apart.
pub fn plan(offload: &Offload, v6: bool, receiver: u64) -> Plan {
    let has = |feature: u64| receiver & feature != 0;
    if offload.is_gso() {
        let takes = match offload.gso_type & !virtio_net::GSO_ECN {
            virtio_net::GSO_TCPV4 => has(features::GUEST_TSO4),
            virtio_net::GSO_TCPV6 => has(features::GUEST_TSO6),
            _ if v6 => has(features::GUEST_USO6),
            _ => has(features::GUEST_USO4),
        };
        let ecn = offload.gso_type & virtio_net::GSO_ECN == 0 || has(features::GUEST_ECN);
        if !(takes && ecn && has(features::GUEST_CSUM)) {
            return Plan::Segment;
        }
    } else if offload.needs_csum() && !has(features::GUEST_CSUM) {
        return Plan::Checksum;
    }
    let mut header = PLAIN;
    if has(features::GUEST_CSUM) {
        header[0] = offload.flags;
    }
    header[1] = offload.gso_type;
    for (at, value) in [(2, offload.hdr_len), (4, offload.gso_size), (6, offload.csum_start), (8, offload.csum_offset)]
    {
        header[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    Plan::Whole(header)
}

/// Completes the partial checksum of a whole frame. The field holds the sum of the pseudo-header.
///
/// # Errors
/// `ChecksumBad` when the range is not in the frame.
pub fn complete_checksum(frame: &mut [u8], offload: &Offload) -> Result<(), DropReason> {
    let (start, offset) = (usize::from(offload.csum_start), usize::from(offload.csum_offset));
    if start + offset + 2 > frame.len() {
        return Err(DropReason::ChecksumBad);
    }
    let sum = !fold(sum(&frame[start..]));
    // RFC 768: a computed zero is sent as all ones. In TCP the two mean the same.
    let sum = if sum == 0 && offset == UDP_CHECKSUM { 0xffff } else { sum };
    frame[start + offset..start + offset + 2].copy_from_slice(&sum.to_be_bytes());
    Ok(())
}

/// Cuts a GSO frame into complete frames, each built in `buffer` and handed to `emit`. Returns how many.
///
/// # Errors
/// `GsoBad` when headers and header fields disagree; whatever `emit` says.
pub fn segment<E: From<DropReason>>(
    frame: &[u8],
    offload: &Offload,
    buffer: &mut [u8],
    mut emit: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<u32, E> {
    let cut = Cut::new(frame, offload).ok_or(DropReason::GsoBad)?;
    let (headers, payload) = frame.split_at(cut.headers);
    let count = payload.len().div_ceil(cut.size);
    for (index, part) in payload.chunks(cut.size).enumerate() {
        let segment = buffer.get_mut(..headers.len() + part.len()).ok_or(DropReason::GsoBad)?;
        segment[..headers.len()].copy_from_slice(headers);
        segment[headers.len()..].copy_from_slice(part);
        cut.finish(segment, index, index + 1 == count);
        emit(segment)?;
    }
    Ok(count as u32)
}

/// Where the headers of a GSO frame are.
struct Cut {
    l4: usize,
    headers: usize,
    size: usize,
    v6: bool,
    tcp: bool,
}

impl Cut {
    fn new(frame: &[u8], offload: &Offload) -> Option<Self> {
        let l4 = usize::from(offload.csum_start);
        let tcp = offload.gso_type & !virtio_net::GSO_ECN != virtio_net::GSO_UDP_L4;
        let v6 = match frame.get(12..14)? {
            [0x08, 0x00] => false,
            [0x86, 0xdd] => true,
            _ => return None,
        };
        let l3 = if v6 { IPV6_HEADER } else { usize::from(frame.get(ETHERNET)? & 0x0f) * 4 };
        let l4_len = if tcp { usize::from(frame.get(l4 + 12)? >> 4) * 4 } else { 8 };
        let headers = l4 + l4_len;
        let size = usize::from(offload.gso_size);
        let sane = l3 >= 20 && l4 >= ETHERNET + l3 && l4_len >= if tcp { 20 } else { 8 } && size >= GSO_SIZE_MIN;
        (sane && headers < frame.len()).then_some(Self { l4, headers, size, v6, tcp })
    }

    /// Makes the copied headers those of segment `index`.
    fn finish(&self, segment: &mut [u8], index: usize, last: bool) {
        let ip_len = (segment.len() - ETHERNET) as u16;
        let l4_len = (segment.len() - self.l4) as u16;
        if self.v6 {
            put(segment, ETHERNET + 4, ip_len.wrapping_sub(IPV6_HEADER as u16));
        } else {
            put(segment, ETHERNET + 2, ip_len);
            let id = u16::from_be_bytes([segment[ETHERNET + 4], segment[ETHERNET + 5]]);
            // RFC 6864 asks for unique ids only of fragmentable packets; counting up is what Linux does for all.
            put(segment, ETHERNET + 4, id.wrapping_add(index as u16));
            put(segment, ETHERNET + 10, 0);
            let header = usize::from(segment[ETHERNET] & 0x0f) * 4;
            let checksum = !fold(sum(&segment[ETHERNET..ETHERNET + header]));
            put(segment, ETHERNET + 10, checksum);
        }
        if self.tcp {
            let at = self.l4 + 4;
            let sequence = u32::from_be_bytes([segment[at], segment[at + 1], segment[at + 2], segment[at + 3]]);
            let sequence = sequence.wrapping_add((index * self.size) as u32);
            segment[at..at + 4].copy_from_slice(&sequence.to_be_bytes());
            if !last {
                segment[self.l4 + 13] &= !TCP_FIN_PSH;
            }
            if index > 0 {
                // RFC 3168 §6.1.2: CWR goes out once.
                segment[self.l4 + 13] &= !TCP_CWR;
            }
        } else {
            put(segment, self.l4 + 4, l4_len);
        }
        self.checksum(segment, l4_len);
    }

    fn checksum(&self, segment: &mut [u8], l4_len: u16) {
        let (offset, protocol) = if self.tcp { (TCP_CHECKSUM, TCP) } else { (UDP_CHECKSUM, UDP) };
        put(segment, self.l4 + offset, 0);
        let addresses = if self.v6 {
            &segment[ETHERNET + 8..ETHERNET + IPV6_HEADER]
        } else {
            &segment[ETHERNET + IPV4_ADDRESSES..ETHERNET + 20]
        };
        let pseudo = sum(addresses) + u64::from(protocol) + u64::from(l4_len);
        let checksum = !fold(pseudo + sum(&segment[self.l4..]));
        let checksum = if checksum == 0 && !self.tcp { 0xffff } else { checksum };
        put(segment, self.l4 + offset, checksum);
    }
}

fn put(frame: &mut [u8], at: usize, value: u16) {
    frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Sum of 16-bit words in network order (RFC 1071), not folded; an odd octet counts as the upper half.
fn sum(octets: &[u8]) -> u64 {
    let mut words = octets.chunks_exact(2);
    let total: u64 = words.by_ref().map(|word| u64::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    total + words.remainder().first().map_or(0, |octet| u64::from(*octet) << 8)
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
#[path = "offload_tests.rs"]
pub(crate) mod tests;
