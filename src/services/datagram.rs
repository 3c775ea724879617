//! A private, contiguous copy of a UDP datagram for the services that must read more than headers.
//!
//! Each octet is copied out of the guest's memory once (the head already was), so that what was checked cannot change.

use hostweave_switch::packet::{L3, Packet};
use hostweave_switch::payload::Segment;
use hostweave_switch::stage::DropReason;
use hostweave_switch::wire::frame::checksum_valid;

/// Octets of the longest frame that a DHCP client may send us.
pub const COPY_LEN: usize = 1_600;

/// Copies the frame into `buffer` and returns the payload of its UDP datagram.
///
/// # Errors
/// `DhcpInvalid` when the frame is too long, the UDP length is wrong, or the checksum does not fit.
pub fn udp_payload<'b>(
    packet: &Packet,
    arena: &[Segment],
    buffer: &'b mut [u8; COPY_LEN],
) -> Result<&'b [u8], DropReason> {
    let invalid = DropReason::DhcpInvalid;
    let len = packet.copy_frame(arena, buffer).ok_or(invalid)?;
    let (l3, l4) = (usize::from(packet.meta.layers.l3), usize::from(packet.meta.layers.l4));
    let addresses = match packet.meta.l3 {
        L3::V4 => l3 + 12..l3 + 20,
        L3::V6 => l3 + 8..l3 + 40,
        L3::None | L3::Arp => return Err(invalid),
    };
    let frame = &buffer[..len];
    let rest = frame.get(l4..).ok_or(invalid)?;
    let header = rest.first_chunk::<8>().ok_or(invalid)?;
    let datagram = rest.get(..usize::from(u16::from_be_bytes([header[4], header[5]]))).ok_or(invalid)?;
    let payload = datagram.get(8..).ok_or(invalid)?;
    // A partial checksum comes from a guest that leaves it to the device (virtio-net), zero over IPv4 means none.
    let none = header[6..8] == [0, 0] && packet.meta.l3 == L3::V4;
    if !none && !packet.meta.offload.needs_csum() {
        let addresses = frame.get(addresses).ok_or(invalid)?;
        if !checksum_valid(17, addresses, datagram) {
            return Err(invalid);
        }
    }
    Ok(payload)
}
