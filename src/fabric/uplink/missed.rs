//! Frames from outside that the kernel dropped because no worker took them in time. No port has received them, so no other
//! counter has them.

use hostweave_uplink::device::Device;
use hostweave_uplink::netlink::interfaces;

/// How many there were, whichever device was open.
#[derive(Default, Debug)]
pub struct Missed {
    total: u64,
    /// What the interface of a TAP device had counted when that was last looked at: it is older than the device is open.
    interface: Option<u64>,
}

impl Missed {
    /// All of them, as of the last look.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Another device was opened: what was dropped there before is not counted.
    pub fn opened(&mut self, device: &Device) {
        self.interface = None;
        self.look([device]);
    }

    /// Adds what the kernel has dropped at these devices of one interface since they were last looked at. A kernel that does not
    /// answer has dropped nothing.
    pub fn look<'a>(&mut self, devices: impl IntoIterator<Item = &'a Device>) {
        for device in devices {
            match device.take_missed() {
                Ok(Some(missed)) => self.total += u64::from(missed),
                Ok(None) => return self.look_at_interface(device.name()),
                Err(error) => tracing::debug!(%error, "frames that were missed are not counted"),
            }
        }
    }

    fn look_at_interface(&mut self, name: &str) {
        let Ok(now) = interfaces::send_drops(name) else { return };
        let before = self.interface.replace(now).unwrap_or(now);
        // One that was made anew begins anew.
        self.total += now.checked_sub(before).unwrap_or(now);
    }
}
