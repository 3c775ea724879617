//! Every limit of the packet path has its name here.

/// Packets taken from one ring in one visit.
pub const BURST: usize = 64;

/// Octets of each frame that `rx` copies at once; the virtio-net header (12 octets) stands before them, so that
/// the copy is two cache lines.
pub const HEAD_FIRST: usize = 116;

/// Octets that `parse` may extend the private copy to. Headers that reach beyond are dropped (`headers_too_long`).
pub const HEAD_MAX: usize = 512;

/// Room before the first octet of a frame, for a virtio-net header and for encapsulation.
pub const HEADROOM: usize = 128;

/// Capacity of the private header slot; replies of ours (the longest is a DHCP message) are built in it.
pub const HEAD_CAPACITY: usize = 1536;

/// Payload segments of all packets of one burst. A chain may have as many descriptors as its ring (at most 32768,
/// VIRTIO 1.2 §2.7); a burst ends early when the next chain may not fit.
pub const BURST_SEGMENTS: usize = 4096;

/// The longest frame, in octets: an Ethernet header, a VLAN tag to spare and a 64 KiB IP packet (GSO).
pub const FRAME_MAX: usize = 14 + 4 + 65_535;

/// Segments that one GSO frame may ask for (SEMANTICS VU12).
pub const GSO_SEGMENTS_MAX: usize = 128;

/// Smallest `gso_size`, in octets (SEMANTICS VU12).
pub const GSO_SIZE_MIN: usize = 48;

/// IPv6 extension headers that `parse` walks (SEMANTICS CT9).
pub const IPV6_EXTENSION_HEADERS_MAX: usize = 8;

/// How long a fragment is remembered or waits, in milliseconds from the first of its datagram that came (SEMANTICS CT6).
pub const FRAGMENT_LIFETIME_MS: u64 = 2_000;

/// Datagrams of one port, and of all ports, of which fragments are remembered; as many for one receiver of what comes from outside,
/// and for all of them.
pub const FRAGMENT_DATAGRAMS_PER_PORT_MAX: usize = 128;
/// See [`FRAGMENT_DATAGRAMS_PER_PORT_MAX`].
pub const FRAGMENT_DATAGRAMS_MAX: usize = 8_192;

/// What comes from outside to addresses that are no port's alone counts as that of so many receivers, by source and destination.
pub const FRAGMENT_SHARED_RECEIVERS: u32 = 16;

/// Fragments of one datagram: 64 KiB in pieces for a link with an MTU of 576 octets (RFC 791) are 119.
pub const FRAGMENTS_PER_DATAGRAM_MAX: usize = 128;

/// Fragments of one port that wait for the first of their datagram (SEMANTICS CT7), and their octets.
pub const FRAGMENTS_QUEUED_PER_PORT_MAX: usize = 256;
/// See [`FRAGMENTS_QUEUED_PER_PORT_MAX`].
pub const FRAGMENT_OCTETS_PER_PORT_MAX: usize = 256 * 1024;

/// Octets of all ports' fragments that wait, and of all from outside.
pub const FRAGMENT_OCTETS_MAX: usize = 32 * 1024 * 1024;

/// Ports of one host. A `PortId` is smaller.
pub const PORTS_MAX: usize = 16_384;

/// Connections of one host that a table may have room for.
pub const CONNECTIONS_MAX: u32 = 1 << 26;

/// Networks of one host.
pub const NETWORKS_MAX: usize = 4_096;

/// Workers of one host.
pub const WORKERS_MAX: usize = 64;

/// IPv6 addresses that a port may form by itself (SEMANTICS RA5).
pub const LEARNED_ADDRESSES_MAX: usize = 8;

/// Smallest and largest MTU of a network, in octets of IP packet (IPv6 minimum, RFC 8200 §5).
pub const MTU_MIN: u16 = 1280;
/// See [`MTU_MIN`].
pub const MTU_MAX: u16 = 65_520;

const _: () = assert!(HEADROOM + HEAD_MAX < HEAD_CAPACITY);
const _: () = assert!(HEAD_FIRST + 12 == 128);
// A port may have one whole datagram wait, and no port may use up the host's share.
const _: () = assert!(2 * FRAME_MAX < FRAGMENT_OCTETS_PER_PORT_MAX);
const _: () = assert!(FRAGMENTS_PER_DATAGRAM_MAX <= FRAGMENTS_QUEUED_PER_PORT_MAX);
const _: () = assert!(64 * FRAGMENT_DATAGRAMS_PER_PORT_MAX <= FRAGMENT_DATAGRAMS_MAX);
const _: () = assert!(64 * FRAGMENT_OCTETS_PER_PORT_MAX <= FRAGMENT_OCTETS_MAX);
// Nor may those receivers that many ports share.
const _: () =
    assert!(2 * FRAGMENT_SHARED_RECEIVERS as usize * FRAGMENT_DATAGRAMS_PER_PORT_MAX <= FRAGMENT_DATAGRAMS_MAX);
