//! A network device of the host: how frames of a container or of the uplink come in and go out.
//!
//! It is a TAP device ([`crate::netns`]) or a packet socket ([`crate::packet_socket`]). Both put each frame behind a
//! virtio-net header (VIRTIO 1.2 §5.1.6, `IFF_VNET_HDR`, `PACKET_VNET_HDR`), so that GSO frames and partial checksums
//! pass whole in both directions (SEMANTICS VU16). What the header asks for is checked as a guest's is: a packet socket
//! at the other end of a cable can write nearly anything there. This file does not make devices and does not segment.
//!
//! A device may have a VLAN tag (IEEE 802.1Q). It is written into each frame that leaves; of those that come, the
//! kernel has taken the tag out already and let only ours pass.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use hostweave_switch::limits::{FRAME_MAX, GSO_SEGMENTS_MAX, GSO_SIZE_MIN, HEAD_FIRST, HEAD_MAX, HEADROOM};
use hostweave_switch::packet::{Burst, Offload, Packet, virtio_net};
use hostweave_switch::payload::{Segment, gather};
use hostweave_switch::stage::DropReason;
use hostweave_switch::tables::PortId;
use hostweave_switch::wire::checksum::sum;

use crate::Error;
use crate::limits::{DIRECT_MIN, HEADER_LEN, PACKET_HEADER_LEN, VLAN_TAG_LEN, XDP_FRAME};
use crate::netns::{Namespace, TapDevice};
use crate::packet_socket::PacketSocket;
use crate::sys;
use crate::uring::{Frame, Kind, Stream, Uring};
use crate::xdp_socket::XdpSockets;

const ETHERNET: usize = 14;
/// Octets of both link addresses.
const LINK_ADDRESSES: usize = 12;
const ETHERTYPE_VLAN: u16 = 0x8100;
const IPV6_HEADER: usize = 40;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// A device in use. Any worker may transmit; one receives.
#[derive(Debug)]
pub struct Device {
    /// Where frames come from.
    stream: Arc<Stream>,
    /// Where they go.
    sender: Arc<Stream>,
    name: String,
    namespace: Option<Namespace>,
    uso: bool,
    header_len: usize,
    /// IEEE 802.1Q tag of each frame that leaves.
    vlan: Option<u16>,
    /// Where small frames leave.
    xdp: Option<Arc<XdpSockets>>,
}

impl Device {
    /// Puts a TAP device to use for `port`: header format and offloads.
    ///
    /// # Errors
    /// When the kernel refuses them.
    pub fn tap(device: TapDevice, port: PortId) -> Result<Self, Error> {
        let TapDevice { fd, name, namespace } = device;
        let failed = |action: &str, source| Error::Device { name: name.clone(), action: action.to_owned(), source };
        sys::tun_set_header_len(fd.as_fd(), HEADER_LEN).map_err(|error| failed("set its header length", error))?;
        sys::tun_set_little_endian(fd.as_fd()).map_err(|error| failed("set its byte order", error))?;
        let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
        // Linux 6.2 and later; before that the device neither sends nor takes UDP segments.
        let uso = sys::tun_set_offload(fd.as_fd(), tcp | libc::TUN_F_USO4 | libc::TUN_F_USO6).is_ok();
        if !uso {
            sys::tun_set_offload(fd.as_fd(), tcp).map_err(|error| failed("set its offloads", error))?;
        }
        let stream = Arc::new(Stream::new(port, fd, Kind::File, HEADER_LEN));
        Ok(Self {
            sender: Arc::clone(&stream),
            stream,
            name,
            namespace,
            uso,
            header_len: HEADER_LEN,
            vlan: None,
            xdp: None,
        })
    }

    /// Puts a packet socket to use for `port`.
    pub fn packet(socket: PacketSocket, port: PortId) -> Self {
        let PacketSocket { fd, sender, name, vlan, uso, xdp } = socket;
        let before = PACKET_HEADER_LEN + vlan.map_or(0, |_| VLAN_TAG_LEN);
        let stream = |fd| Arc::new(Stream::new(port, fd, Kind::Socket, before));
        let (stream, sender) = (stream(fd), stream(sender));
        Self { stream, sender, name, namespace: None, uso, header_len: PACKET_HEADER_LEN, vlan, xdp }
    }

    /// Name of the interface.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the path of its namespace still names that namespace. When not, the device is only kept by us: drop it,
    /// and open it anew. Reads the file system: not for workers.
    pub fn namespace_is_current(&self) -> bool {
        self.namespace.as_ref().is_none_or(Namespace::is_current)
    }

    /// Frames that the kernel dropped since this was last asked, because nobody read them as fast as they came. `None` for a TAP
    /// device, whose interface counts them ([`crate::netlink::interfaces::send_drops`]). A system call: not for workers.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn take_missed(&self) -> io::Result<Option<u32>> {
        match self.stream.kind {
            Kind::Socket => sys::packet_drops(self.stream.fd.as_fd()).map(Some),
            Kind::File => Ok(None),
        }
    }

    /// Brings frames to this worker, as [`crate::uring::Event::Frame`] with `token`.
    pub fn start(&self, uring: &mut Uring, token: u64) {
        uring.start(token, Arc::clone(&self.stream));
    }

    /// Brings no more frames.
    pub fn stop(&self, uring: &mut Uring, token: u64) {
        uring.stop(token);
    }

    /// `rx`: the frame as the next packet of `burst`. Its first octets are copied; the rest stays in the frame's buffer,
    /// which may be released once the burst is cleared.
    ///
    /// # Errors
    /// `FrameTooShort`, `FrameTooLong`, `ChecksumBad`, `GsoBad`; nothing is added then. `Internal` when the burst is full.
    pub fn receive(&self, port: PortId, frame: &Frame, burst: &mut Burst) -> Result<(), DropReason> {
        receive(port, frame.data(), self.header_len, burst)
    }

    /// `tx`: queues the packet for the device; it is written with the next [`Uring::submit`]. Should the device then not
    /// take it, [`crate::uring::Event::Refused`] says so.
    ///
    /// # Errors
    /// `DeviceQueueFull` when the kernel does not take frames as fast, `FrameTooLong`, and `GsoBad` for UDP segments
    /// that the kernel does not know.
    #[inline]
    pub fn transmit(&self, packet: &Packet, arena: &[Segment], uring: &mut Uring) -> Result<(), DropReason> {
        let offload = packet.meta.offload;
        if offload.gso_type & !virtio_net::GSO_ECN == virtio_net::GSO_UDP_L4 && !self.uso {
            return Err(DropReason::GsoBad);
        }
        if let Some(sockets) = &self.xdp {
            if packet.len() + VLAN_TAG_LEN <= XDP_FRAME && !offload.is_gso() {
                let fill = |buffer: &mut [u8]| write_complete(buffer, self.vlan, offload, packet, arena);
                if let Some(result) = uring.write_xdp(sockets, fill) {
                    return result;
                }
            }
            if !uring.settle_xdp(sockets) {
                return Err(DropReason::DeviceQueueFull);
            }
        }
        if packet.len() >= DIRECT_MIN
            && let Some(result) = self.transmit_large(packet, arena, uring)
        {
            return result;
        }
        uring.write(&self.sender, |buffer| write(buffer, self.header_len, self.vlan, offload, packet, arena))
    }

    /// Only the head is copied. `None` when that cannot be.
    #[inline(never)]
    fn transmit_large(&self, packet: &Packet, arena: &[Segment], uring: &mut Uring) -> Option<Result<(), DropReason>> {
        let mut head = [0; HEADER_LEN + VLAN_TAG_LEN + HEAD_MAX];
        let len = write_head(&mut head, self.header_len, self.vlan, packet.meta.offload, packet)?;
        uring.write_direct(&self.sender, &head[..len], packet.segments(arena).iter().copied())
    }
}

/// Writes header and frame. Returns how many octets, `None` when they do not fit.
#[inline]
fn write(
    buffer: &mut [u8],
    header_len: usize,
    vlan: Option<u16>,
    offload: Offload,
    packet: &Packet,
    arena: &[Segment],
) -> Option<usize> {
    let head_len = write_head(buffer, header_len, vlan, offload, packet)?;
    let rest = buffer.get_mut(head_len..head_len + packet.len() - packet.head().len())?;
    gather(packet.segments(arena), 0, rest);
    Some(head_len + rest.len())
}

/// Writes the frame alone, with a complete checksum. Returns how many octets, `None` when they do not fit.
#[inline]
fn write_complete(
    buffer: &mut [u8],
    vlan: Option<u16>,
    mut offload: Offload,
    packet: &Packet,
    arena: &[Segment],
) -> Option<usize> {
    let len = write(buffer, 0, vlan, offload, packet, arena)?;
    if offload.needs_csum() {
        if vlan.is_some() {
            shift(&mut offload);
        }
        let (start, at) = (usize::from(offload.csum_start), usize::from(offload.csum_offset));
        // The field holds the sum of the pseudo-header.
        let checksum = match !sum(buffer.get(start..len)?) {
            // RFC 768: a computed zero is sent as all ones. In TCP the two mean the same.
            0 => 0xffff,
            checksum => checksum,
        };
        buffer.get_mut(start + at..start + at + 2)?.copy_from_slice(&checksum.to_be_bytes());
    }
    Some(len)
}

/// Writes the header and what the packet has in its own slot. Returns how many octets, `None` when they do not fit.
#[inline]
fn write_head(
    buffer: &mut [u8],
    header_len: usize,
    vlan: Option<u16>,
    mut offload: Offload,
    packet: &Packet,
) -> Option<usize> {
    let (header, frame) = buffer.split_at_mut_checked(header_len)?;
    let head = packet.head();
    let before = vlan.map_or(0, |_| VLAN_TAG_LEN);
    frame.get_mut(before..before + head.len())?.copy_from_slice(head);
    if let Some(vlan) = vlan {
        shift(&mut offload);
        tag(frame, vlan);
    }
    header.copy_from_slice(&header_of(&offload)[..header_len]);
    Some(header_len + before + head.len())
}

/// Everything behind the link addresses moves by the length of a tag.
fn shift(offload: &mut Offload) {
    let by = VLAN_TAG_LEN as u16;
    if offload.needs_csum() {
        offload.csum_start += by;
    }
    if offload.is_gso() {
        offload.hdr_len += by;
    }
}

/// Moves the link addresses of a frame that starts at [`VLAN_TAG_LEN`] to the front, and puts the tag between them and
/// the rest.
fn tag(frame: &mut [u8], vlan: u16) {
    frame.copy_within(VLAN_TAG_LEN..VLAN_TAG_LEN + LINK_ADDRESSES, 0);
    if let Some(tag) = frame.get_mut(LINK_ADDRESSES..LINK_ADDRESSES + VLAN_TAG_LEN) {
        tag[..2].copy_from_slice(&ETHERTYPE_VLAN.to_be_bytes());
        tag[2..].copy_from_slice(&vlan.to_be_bytes());
    }
}

fn receive(port: PortId, data: Segment, header_len: usize, burst: &mut Burst) -> Result<(), DropReason> {
    let frame_len = data.len().checked_sub(header_len).ok_or(DropReason::FrameTooShort)?;
    if frame_len < ETHERNET {
        return Err(DropReason::FrameTooShort);
    }
    if frame_len > FRAME_MAX {
        return Err(DropReason::FrameTooLong);
    }
    if !burst.has_room(1) {
        return Err(DropReason::Internal);
    }
    let head_len = frame_len.min(HEAD_FIRST);
    let (packet, arena) = burst.next_slot(port);
    // One copy for both; the header ends where the frame begins.
    let copied = &mut packet.slot()[HEADROOM - header_len..HEADROOM + head_len];
    data.copy_to(copied);
    let (header, head) = copied.split_at(header_len);
    let offload = check_header(header, frame_len, head)?;
    let first = arena.len();
    arena.extend(data.skip(header_len + head_len));
    packet.set_frame(head_len, first, arena.len() - first, frame_len - head_len);
    packet.meta.offload = offload;
    burst.push();
    Ok(())
}

/// The header before a frame.
fn header_of(offload: &Offload) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[0] = offload.flags;
    header[1] = offload.gso_type;
    for (at, value) in [(2, offload.hdr_len), (4, offload.gso_size), (6, offload.csum_start), (8, offload.csum_offset)]
    {
        header[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    header
}

/// What the sender asks for, if it is possible (SEMANTICS VU12). `DATA_VALID` is not believed.
fn check_header(header: &[u8], frame_len: usize, head: &[u8]) -> Result<Offload, DropReason> {
    let field = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let (flags, gso_type) = (header[0] & virtio_net::NEEDS_CSUM, header[1]);
    let (gso_size, csum_start, csum_offset) = (field(4), field(6), field(8));
    if flags == 0 {
        // VIRTIO 1.2 §5.1.6.2.1: a GSO frame has a partial checksum.
        return if gso_type == virtio_net::GSO_NONE { Ok(Offload::default()) } else { Err(DropReason::GsoBad) };
    }
    let (start, offset) = (usize::from(csum_start), usize::from(csum_offset));
    if start < ETHERNET || start + offset + 2 > frame_len {
        return Err(DropReason::ChecksumBad);
    }
    let partial = Offload { flags, csum_start, csum_offset, ..Offload::default() };
    if gso_type == virtio_net::GSO_NONE {
        return Ok(partial);
    }
    let headers = gso_headers(gso_type, start, offset, head).ok_or(DropReason::GsoBad)?;
    let payload = frame_len.checked_sub(headers).filter(|payload| *payload > 0).ok_or(DropReason::GsoBad)?;
    let size = usize::from(gso_size);
    if size < GSO_SIZE_MIN || payload.div_ceil(size) > GSO_SEGMENTS_MAX {
        return Err(DropReason::GsoBad);
    }
    Ok(Offload { gso_type, hdr_len: headers as u16, gso_size, ..partial })
}

/// Octets of all headers of a GSO frame, if its type agrees with them as far as `head` shows them. The sender's
/// `hdr_len` is only a hint.
fn gso_headers(gso_type: u8, start: usize, offset: usize, head: &[u8]) -> Option<usize> {
    let kind = gso_type & !virtio_net::GSO_ECN;
    let (protocol, checksum) = match kind {
        virtio_net::GSO_TCPV4 | virtio_net::GSO_TCPV6 => (TCP, 16),
        virtio_net::GSO_UDP_L4 if kind == gso_type => (UDP, 6),
        _ => return None,
    };
    let agrees = match head.get(12..ETHERNET + 10)? {
        [0x08, 0x00, ip @ ..] if kind != virtio_net::GSO_TCPV6 => {
            let ip_header = usize::from(ip[0] & 0x0f) * 4;
            ip[0] >> 4 == 4 && ip_header >= 20 && start == ETHERNET + ip_header && ip[9] == protocol
        }
        [0x86, 0xdd, ip @ ..] if kind != virtio_net::GSO_TCPV4 => {
            let direct = ip[6] == protocol && start == ETHERNET + IPV6_HEADER;
            ip[0] >> 4 == 6 && (direct || start > ETHERNET + IPV6_HEADER)
        }
        _ => false,
    };
    if !agrees || offset != checksum {
        return None;
    }
    if protocol == UDP {
        return Some(start + 8);
    }
    // Beyond the first copy only behind IPv6 extension headers; `parse` looks again.
    let tcp_header = head.get(start + 12).map_or(20, |octet| usize::from(octet >> 4) * 4);
    (tcp_header >= 20).then_some(start + tcp_header)
}

#[cfg(test)]
#[path = "device_tests.rs"]
mod tests;
