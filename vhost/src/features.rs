//! Feature bits: what is offered, and what follows from what the driver took.

use vhost::vhost_user::message::VhostUserProtocolFeatures;
use virtio_bindings::virtio_net as net;

/// A bit of the feature word.
const fn bit(number: u32) -> u64 {
    1 << number
}

/// `VIRTIO_NET_F_CSUM`: the driver sends partial checksums.
pub const CSUM: u64 = bit(net::VIRTIO_NET_F_CSUM);
/// `VIRTIO_NET_F_GUEST_CSUM`: the driver takes partial checksums.
pub const GUEST_CSUM: u64 = bit(net::VIRTIO_NET_F_GUEST_CSUM);
/// `VIRTIO_NET_F_MTU`.
pub const MTU: u64 = bit(net::VIRTIO_NET_F_MTU);
/// `VIRTIO_NET_F_MAC`.
pub const MAC: u64 = bit(net::VIRTIO_NET_F_MAC);
/// `VIRTIO_NET_F_GUEST_TSO4`.
pub const GUEST_TSO4: u64 = bit(net::VIRTIO_NET_F_GUEST_TSO4);
/// `VIRTIO_NET_F_GUEST_TSO6`.
pub const GUEST_TSO6: u64 = bit(net::VIRTIO_NET_F_GUEST_TSO6);
/// `VIRTIO_NET_F_GUEST_ECN`.
pub const GUEST_ECN: u64 = bit(net::VIRTIO_NET_F_GUEST_ECN);
/// `VIRTIO_NET_F_HOST_TSO4`.
pub const HOST_TSO4: u64 = bit(net::VIRTIO_NET_F_HOST_TSO4);
/// `VIRTIO_NET_F_HOST_TSO6`.
pub const HOST_TSO6: u64 = bit(net::VIRTIO_NET_F_HOST_TSO6);
/// `VIRTIO_NET_F_HOST_ECN`.
pub const HOST_ECN: u64 = bit(net::VIRTIO_NET_F_HOST_ECN);
/// `VIRTIO_NET_F_MRG_RXBUF`.
pub const MRG_RXBUF: u64 = bit(net::VIRTIO_NET_F_MRG_RXBUF);
/// `VIRTIO_NET_F_STATUS`.
pub const STATUS: u64 = bit(net::VIRTIO_NET_F_STATUS);
/// `VIRTIO_NET_F_GUEST_ANNOUNCE`.
pub const GUEST_ANNOUNCE: u64 = bit(net::VIRTIO_NET_F_GUEST_ANNOUNCE);
/// `VIRTIO_NET_F_MQ`.
pub const MQ: u64 = bit(net::VIRTIO_NET_F_MQ);
/// `VIRTIO_NET_F_GUEST_USO4` (VIRTIO 1.3 §5.1.3).
pub const GUEST_USO4: u64 = bit(54);
/// `VIRTIO_NET_F_GUEST_USO6`.
pub const GUEST_USO6: u64 = bit(55);
/// `VIRTIO_NET_F_HOST_USO`.
pub const HOST_USO: u64 = bit(56);
/// `VIRTIO_RING_F_INDIRECT_DESC`.
pub const INDIRECT_DESC: u64 = bit(28);
/// `VIRTIO_RING_F_EVENT_IDX`.
pub const EVENT_IDX: u64 = bit(29);
/// `VHOST_USER_F_PROTOCOL_FEATURES`.
pub const PROTOCOL_FEATURES: u64 = bit(30);
/// `VHOST_F_LOG_ALL`.
pub const LOG_ALL: u64 = bit(26);
/// `VIRTIO_F_VERSION_1`.
pub const VERSION_1: u64 = bit(32);
/// `VIRTIO_F_IN_ORDER`: all rings here are finished in order anyway.
pub const IN_ORDER: u64 = bit(35);

/// The control queue and what hangs on it: the VMM's job in vhost-user, but it hides from the guest what its backend
/// does not offer (QEMU `net/vhost-user.c`, `user_feature_bits`). CTRL_GUEST_OFFLOADS is left out: a guest that turns
/// offloads off there would tell only the VMM, and go on to receive what it no longer takes.
const CONTROL: u64 = bit(net::VIRTIO_NET_F_CTRL_VQ)
    | bit(net::VIRTIO_NET_F_CTRL_RX)
    | bit(net::VIRTIO_NET_F_CTRL_VLAN)
    | bit(net::VIRTIO_NET_F_CTRL_RX_EXTRA)
    | bit(net::VIRTIO_NET_F_CTRL_MAC_ADDR);

/// Everything that is offered. `F_IOMMU_PLATFORM` and `F_RING_PACKED` are not: the message layer handles no IOTLB and
/// no 32-bit ring index.
pub const OFFERED: u64 = CSUM
    | GUEST_CSUM
    | MTU
    | MAC
    | GUEST_TSO4
    | GUEST_TSO6
    | GUEST_ECN
    | HOST_TSO4
    | HOST_TSO6
    | HOST_ECN
    | MRG_RXBUF
    | STATUS
    | GUEST_ANNOUNCE
    | MQ
    | GUEST_USO4
    | GUEST_USO6
    | HOST_USO
    | INDIRECT_DESC
    | EVENT_IDX
    | PROTOCOL_FEATURES
    | LOG_ALL
    | VERSION_1
    | IN_ORDER
    | CONTROL;

/// Protocol features. RARP, NET_MTU, STATUS, BACKEND_REQ and INFLIGHT_SHMFD are missing because `vhost` answers their
/// messages by ending the connection, or because nothing here needs them (every ring is finished in order).
pub fn protocol_features(config_space: bool) -> VhostUserProtocolFeatures {
    let mut features = VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | VhostUserProtocolFeatures::RESET_DEVICE
        | VhostUserProtocolFeatures::LOG_SHMFD;
    features.set(VhostUserProtocolFeatures::CONFIG, config_space);
    features
}

/// Octets of the virtio-net header (VIRTIO 1.2 §5.1.6.1: `num_buffers` is there with VERSION_1 or MRG_RXBUF).
pub fn header_len(features: u64) -> usize {
    if features & (VERSION_1 | MRG_RXBUF) != 0 { 12 } else { 10 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_stand_where_virtio_says() {
        assert_eq!((CSUM, GUEST_CSUM, MTU, MAC), (1, 2, 8, 0x20));
        assert_eq!((GUEST_TSO4, HOST_TSO4, MRG_RXBUF, MQ), (1 << 7, 1 << 11, 1 << 15, 1 << 22));
        assert_eq!(OFFERED & (1 << 33 | 1 << 34 | 1 << 2), 0, "IOMMU, packed rings, CTRL_GUEST_OFFLOADS");
        assert_eq!((header_len(0), header_len(MRG_RXBUF), header_len(VERSION_1)), (10, 12, 12));
    }

    #[test]
    fn nothing_is_offered_that_would_end_the_connection() {
        let refused = VhostUserProtocolFeatures::RARP
            | VhostUserProtocolFeatures::MTU
            | VhostUserProtocolFeatures::STATUS
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::PAGEFAULT;
        assert!(!protocol_features(true).intersects(refused));
        assert!(!protocol_features(false).contains(VhostUserProtocolFeatures::CONFIG));
    }
}
