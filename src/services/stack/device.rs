//! The internal port as smoltcp sees it.

use std::sync::Arc;

use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium};
use smoltcp::time::Instant as StackInstant;

use crate::services::internal::{InternalPort, Reserved};

/// The internal port as smoltcp sees it: a device that carries IP packets.
pub struct StackDevice {
    /// Where packets come from and go to.
    pub port: Arc<InternalPort>,
    /// Octets of the longest packet.
    pub mtu: usize,
    /// The packet that was taken from the port and not processed yet.
    pub frame: Vec<u8>,
    /// The worker is to be told of packets.
    pub sent: bool,
    /// There was no room for a packet.
    pub starved: bool,
}

/// A received packet.
pub struct RxToken<'a>(&'a mut Vec<u8>);

/// Room for a packet to send.
pub struct TxToken<'a>(Reserved<'a>, &'a mut bool);

impl smoltcp::phy::RxToken for RxToken<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        let result = read(self.0);
        self.0.clear();
        result
    }
}

impl smoltcp::phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        *self.1 = true;
        self.0.send(len, fill)
    }
}

impl StackDevice {
    /// Sends a finished packet. `false` when there is no room now.
    pub fn send(&mut self, packet: &[u8]) -> bool {
        let Some(room) = self.port.reserve() else {
            self.starved = true;
            return false;
        };
        room.send(packet.len(), |octets| octets.copy_from_slice(packet));
        self.sent = true;
        true
    }
}

impl Device for StackDevice {
    type RxToken<'a> = RxToken<'a>;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, _: StackInstant) -> Option<(RxToken<'_>, TxToken<'_>)> {
        if self.frame.is_empty() {
            return None;
        }
        let Some(room) = self.port.reserve() else {
            self.starved = true;
            return None;
        };
        Some((RxToken(&mut self.frame), TxToken(room, &mut self.sent)))
    }

    fn transmit(&mut self, _: StackInstant) -> Option<TxToken<'_>> {
        let room = self.port.reserve();
        self.starved |= room.is_none();
        room.map(|room| TxToken(room, &mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        // A frame from a guest never left the host's memory: its checksum may be partial, and need not be right.
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.udp = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities.checksum.icmpv4 = Checksum::Tx;
        capabilities.checksum.icmpv6 = Checksum::Tx;
        capabilities
    }
}
