//! Every limit of the uplink has its name here.

use std::time::Duration;

use hostweave_switch::limits::{BURST, FRAME_MAX};

/// Octets of the virtio-net header before each frame of a TAP device (VIRTIO 1.2 §5.1.6, with `num_buffers`).
pub const HEADER_LEN: usize = 12;

/// Octets of the virtio-net header before each frame of a packet socket (packet(7), without `num_buffers`).
pub const PACKET_HEADER_LEN: usize = 10;

/// Octets of a VLAN tag (IEEE 802.1Q).
pub const VLAN_TAG_LEN: usize = 4;

/// Octets of frames that wait in a packet socket, either way; the kernel counts its own overhead too.
pub const SOCKET_BUFFER: usize = 8 << 20;

/// Requests that are queued before the kernel is called.
pub const SUBMISSIONS: u32 = 1_024;

/// Completions that fit in memory; what exceeds them waits in the kernel.
pub const COMPLETIONS: u32 = 16_384;

/// Octets of a buffer for one frame: whole pages and a few cache lines, so that the first lines of all buffers do not fall
/// into the same few sets of the caches.
pub const FRAME_BUFFER: usize = (HEADER_LEN + VLAN_TAG_LEN + FRAME_MAX).next_multiple_of(4_096) + 3 * 64;

/// Octets of a frame that leaves by AF_XDP, at most: a page, the largest chunk that the kernel takes.
pub const XDP_FRAME: usize = 4_096;

/// Frames of an AF_XDP socket that the kernel has not yet sent. A power of two.
pub const XDP_FRAMES: usize = 256;

/// Frames of an AF_XDP socket that the kernel sends with one call at least, if it can (`TX_BATCH_SIZE`, since Linux 6.17
/// `XDP_MAX_TX_SKB_BUDGET`).
pub const XDP_BATCH: usize = 32;

/// Calls of the kernel to send all frames of an AF_XDP socket: as many as it needs, and one that finds nothing left.
pub const XDP_KICKS_MAX: usize = XDP_FRAMES / XDP_BATCH + 1;

/// How long a worker sleeps at most while the kernel has not taken all frames of its AF_XDP socket.
pub const XDP_AGAIN: Duration = Duration::from_millis(1);

/// AF_XDP sockets that were closed while the kernel had frames of theirs, whose memory is kept (a megabyte each). Beyond
/// that, no more are opened and the packet socket sends all.
pub const XDP_LINGERING_MAX: usize = 4;

/// Frames that go to a packet socket with one system call.
pub const SENDS_MAX: usize = 64;

/// Octets from which on a frame is written from where its sender left it, with a system call of its own.
pub const DIRECT_MIN: usize = 8_192;

/// Parts of such a frame behind its head; one in more parts is copied.
pub const DIRECT_SEGMENTS_MAX: usize = 64;

/// Frames of all devices that a worker has read and not yet handled. A power of two.
pub const READ_BUFFERS: u16 = 64;

/// Buffers that the kernel has while large frames come: few enough that they are still in the CPU's cache when they are copied
/// on, and filled again.
pub const LARGE_READ_BUFFERS: u16 = 8;

/// Octets from which on a frame is a large one then.
pub const LARGE_READ_MIN: usize = 16_384;

/// Frames of all devices that a worker has written and the kernel not yet taken.
pub const WRITE_BUFFERS: u16 = 128;

/// Frames that the kernel has not yet taken, of one device.
pub const DEVICE_IN_FLIGHT_MAX: u32 = 256;

/// Reads that wait at one device, on a kernel without multishot reads.
pub const READS_ONE_SHOT: u32 = 8;

/// Times in a row that the kernel may end the poll of a kick before the kick counts as unusable.
pub const POLLS_ENDED_MAX: u32 = 64;

/// Octets of a network device's name (`IFNAMSIZ` less the final zero).
pub const DEVICE_NAME_MAX: usize = 15;

const _: () = assert!(READ_BUFFERS.is_power_of_two() && READ_BUFFERS as usize >= BURST);
const _: () = assert!(LARGE_READ_BUFFERS > 0 && LARGE_READ_BUFFERS <= READ_BUFFERS);
const _: () = assert!(XDP_FRAMES.is_power_of_two());
const _: () = assert!(WRITE_BUFFERS as usize >= BURST);
const _: () = assert!(FRAME_BUFFER >= HEADER_LEN + VLAN_TAG_LEN + FRAME_MAX && PACKET_HEADER_LEN < HEADER_LEN);
