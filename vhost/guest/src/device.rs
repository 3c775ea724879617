//! A [`Nic`] as a device of `smoltcp`.
//!
//! What the stack may leave to the card depends on what was negotiated: with `CSUM` TCP and UDP leave with a partial
//! checksum, with `HOST_TSO4` and `HOST_TSO6` TCP leaves in frames of up to 64 KiB. Received frames with a partial
//! checksum are completed here, because the stack verifies every checksum; one that cannot be completed is counted.

use std::num::NonZeroUsize;

use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, PacketMeta, RxToken, TxToken};
use smoltcp::time::Instant;

use crate::features;
use crate::frames::{self, ETHER_BYTES};
use crate::nic::{GSO_FRAME_BYTES_MAX, Nic};
use crate::queue::VnetHeader;

/// Frames that a capture keeps.
pub const CAPTURE_COUNT_MAX: usize = 4096;

/// A frame seen by the stack.
#[derive(Clone, Debug)]
pub struct Captured {
    /// Whether the guest sent it.
    pub sent: bool,
    /// The virtio header.
    pub header: VnetHeader,
    /// The frame.
    pub frame: Vec<u8>,
}

/// The device and what the stack's driver keeps about it.
#[derive(Debug)]
pub struct Phy {
    /// The card.
    pub nic: Nic,
    /// Frames seen, if wanted.
    pub capture: Option<Vec<Captured>>,
    /// Received frames whose partial checksum lies outside the frame.
    pub bad_checksum_fields: u64,
    spare: Vec<u8>,
}

impl Phy {
    /// Wraps a card.
    pub fn new(nic: Nic) -> Self {
        Self { nic, capture: None, bad_checksum_fields: 0, spare: Vec::new() }
    }

    fn record(&mut self, sent: bool, header: VnetHeader, frame: &[u8]) {
        if let Some(list) = self.capture.as_mut().filter(|list| list.len() < CAPTURE_COUNT_MAX) {
            list.push(Captured { sent, header, frame: frame.to_vec() });
        }
    }

    /// The queue pair of a flow: by its L4 ports, so that one flow stays on one queue.
    fn pair_of(&self, frame: &[u8]) -> usize {
        let at = if frame.get(12..14) == Some(&[0x86, 0xdd]) { ETHER_BYTES + 40 } else { ETHER_BYTES + 20 };
        let ports = frame.get(at..at + 4).unwrap_or(&[]);
        ports.iter().fold(0, |sum, &octet| sum + usize::from(octet)) % self.nic.pairs.len().max(1)
    }

    fn send(&mut self, mut frame: Vec<u8>, meta: PacketMeta) {
        let mut header = VnetHeader::default();
        if self.nic.features() & features::CSUM != 0 {
            header = frames::partial_checksum(&mut frame).unwrap_or_default();
        }
        if let Some(size) = meta.segmentation_offload_size {
            let v4 = frame.get(12..14) == Some(&[8, 0]);
            header.gso_type = if v4 { VnetHeader::GSO_TCPV4 } else { VnetHeader::GSO_TCPV6 };
            header.gso_size = size.get();
        }
        self.record(true, header, &frame);
        let pair = self.pair_of(&frame);
        // The stack asked for room before it made the frame; a full ring loses it as a wire would.
        let _ = self.nic.send_frame_on(pair, &header, &frame);
        self.spare = frame;
    }
}

impl Device for Phy {
    type RxToken<'a> = Received;
    type TxToken<'a> = Room<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Received, Room<'_>)> {
        let mut frame = Vec::new();
        let (_, header) = self.nic.recv_frame(&mut frame).ok()??;
        self.record(false, header, &frame);
        if frames::complete_checksum(&header, &mut frame).is_err() {
            self.bad_checksum_fields += 1;
        }
        Some((Received(frame), Room { phy: self, meta: PacketMeta::default() }))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Room<'_>> {
        let all_have_room = self.nic.pairs.iter_mut().all(|pair| pair.tx.has_room());
        all_have_room.then(|| Room { phy: self, meta: PacketMeta::default() })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        let negotiated = self.nic.features();
        caps.medium = Medium::Ethernet;
        caps.max_transmission_unit = self.nic.config.mtu + ETHER_BYTES;
        if negotiated & features::CSUM != 0 {
            caps.checksum.tcp = Checksum::Rx;
            caps.checksum.udp = Checksum::Rx;
            let size = NonZeroUsize::new(GSO_FRAME_BYTES_MAX);
            caps.segmentation.tcpv4 = size.filter(|_| negotiated & features::HOST_TSO4 != 0);
            // smoltcp 0.14 drops an IPv6 packet that is longer than the MTU, also one that is to be segmented.
            caps.segmentation.tcpv6 = None;
        }
        caps
    }
}

/// A received frame.
pub struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

/// Room for one frame.
pub struct Room<'a> {
    phy: &'a mut Phy,
    meta: PacketMeta,
}

impl TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = std::mem::take(&mut self.phy.spare);
        frame.clear();
        frame.resize(len, 0);
        let result = f(&mut frame);
        self.phy.send(frame, self.meta);
        result
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.meta = meta;
    }
}
