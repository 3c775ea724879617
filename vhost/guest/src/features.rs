//! Feature bits of virtio-net and of the vhost-user protocol, by name.
//!
//! virtio 1.2 §5.1.3 and §6; vhost-user specification, "Protocol features". A set is a plain `u64` mask, as on the wire.

use virtio_bindings::{virtio_config, virtio_net, virtio_ring};

macro_rules! bits {
    ($($(#[$doc:meta])* $name:ident = $bit:expr;)*) => {
        $($(#[$doc])* pub const $name: u64 = 1 << $bit;)*
    };
}

bits! {
    /// The device takes frames with a partial checksum.
    CSUM = virtio_net::VIRTIO_NET_F_CSUM;
    /// The driver takes frames with a partial checksum.
    GUEST_CSUM = virtio_net::VIRTIO_NET_F_GUEST_CSUM;
    /// The device tells the MTU.
    MTU = virtio_net::VIRTIO_NET_F_MTU;
    /// The device tells the MAC.
    MAC = virtio_net::VIRTIO_NET_F_MAC;
    /// The driver takes TCP over IPv4 unsegmented.
    GUEST_TSO4 = virtio_net::VIRTIO_NET_F_GUEST_TSO4;
    /// The driver takes TCP over IPv6 unsegmented.
    GUEST_TSO6 = virtio_net::VIRTIO_NET_F_GUEST_TSO6;
    /// The device takes TCP over IPv4 unsegmented.
    HOST_TSO4 = virtio_net::VIRTIO_NET_F_HOST_TSO4;
    /// The device takes TCP over IPv6 unsegmented.
    HOST_TSO6 = virtio_net::VIRTIO_NET_F_HOST_TSO6;
    /// The driver merges receive buffers.
    MRG_RXBUF = virtio_net::VIRTIO_NET_F_MRG_RXBUF;
    /// The device tells the link's state.
    STATUS = virtio_net::VIRTIO_NET_F_STATUS;
    /// A control queue exists.
    CTRL_VQ = virtio_net::VIRTIO_NET_F_CTRL_VQ;
    /// The driver announces itself when told.
    GUEST_ANNOUNCE = virtio_net::VIRTIO_NET_F_GUEST_ANNOUNCE;
    /// Several queue pairs.
    MQ = virtio_net::VIRTIO_NET_F_MQ;
    /// The driver takes UDP over IPv4 unsegmented.
    GUEST_USO4 = 54u32;
    /// The driver takes UDP over IPv6 unsegmented.
    GUEST_USO6 = 55u32;
    /// The device takes UDP unsegmented.
    HOST_USO = 56u32;
    /// Chains may lie in tables of their own.
    INDIRECT_DESC = virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
    /// Notifications are asked for by index.
    EVENT_IDX = virtio_ring::VIRTIO_RING_F_EVENT_IDX;
    /// virtio 1.x.
    VERSION_1 = virtio_config::VIRTIO_F_VERSION_1;
    /// Buffers are used in the order in which they were made available.
    IN_ORDER = virtio_config::VIRTIO_F_IN_ORDER;
    /// Log every write (live migration).
    LOG_ALL = 26u32;
    /// vhost-user: protocol features exist.
    PROTOCOL_FEATURES = 30u32;
}

/// What a Linux guest under QEMU asks for, but for several queue pairs.
pub const LINUX: u64 = CSUM
    | GUEST_CSUM
    | GUEST_TSO4
    | GUEST_TSO6
    | HOST_TSO4
    | HOST_TSO6
    | MRG_RXBUF
    | STATUS
    | GUEST_ANNOUNCE
    | INDIRECT_DESC
    | EVENT_IDX
    | VERSION_1;

/// All segmentation offloads, both directions.
pub const ALL_GSO: u64 = GUEST_TSO4 | GUEST_TSO6 | HOST_TSO4 | HOST_TSO6 | GUEST_USO4 | GUEST_USO6 | HOST_USO;

/// Segmentation and checksum offloads, both directions.
pub const ALL_OFFLOADS: u64 = ALL_GSO | CSUM | GUEST_CSUM;

/// vhost-user protocol features, as bits of a mask.
pub mod protocol {
    bits! {
        /// Several queues: `GET_QUEUE_NUM`.
        MQ = 0u32;
        /// The dirty log lies in shared memory.
        LOG_SHMFD = 1u32;
        /// Announce by `SEND_RARP`.
        RARP = 2u32;
        /// Any message can be acknowledged.
        REPLY_ACK = 3u32;
        /// `NET_SET_MTU`.
        NET_MTU = 4u32;
        /// A channel from the backend.
        BACKEND_REQ = 5u32;
        /// Configuration space over the socket.
        CONFIG = 9u32;
        /// Buffers in flight are kept in shared memory.
        INFLIGHT_SHMFD = 12u32;
        /// `RESET_DEVICE`.
        RESET_DEVICE = 13u32;
        /// Memory regions come and go one by one.
        CONFIGURE_MEM_SLOTS = 15u32;
        /// `SET_STATUS` and `GET_STATUS`.
        STATUS = 16u32;
    }
}
