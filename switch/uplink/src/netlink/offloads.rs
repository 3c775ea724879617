//! What a device takes off the CPU (ethtool(8) `-k`).

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsFd;

use crate::sys;

const ETHTOOL_GTXCSUM: u32 = 0x16;
const ETHTOOL_GSG: u32 = 0x18;
const ETHTOOL_GTSO: u32 = 0x1e;
const ETHTOOL_GGRO: u32 = 0x2b;

/// What a device takes off the CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Offloads {
    /// It fills in the checksums of what it sends.
    pub tx_checksum: bool,
    /// It sends frames that lie in pieces.
    pub scatter_gather: bool,
    /// It cuts large TCP segments.
    pub tso: bool,
    /// What comes in is put together to large segments.
    pub gro: bool,
}

/// What the device of this name in the calling process's namespace takes off the CPU.
///
/// # Errors
/// There is no such device, or it does not say.
pub fn of(name: &str) -> io::Result<Offloads> {
    // Any socket does; nothing is sent by it.
    let socket = UdpSocket::bind("127.0.0.1:0").or_else(|_| UdpSocket::bind("[::]:0"))?;
    let ask = |question| Ok::<_, io::Error>(sys::ethtool_value(socket.as_fd(), name, question)? != 0);
    Ok(Offloads {
        tx_checksum: ask(ETHTOOL_GTXCSUM)?,
        scatter_gather: ask(ETHTOOL_GSG)?,
        tso: ask(ETHTOOL_GTSO)?,
        gro: ask(ETHTOOL_GGRO)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_takes_everything_and_nothing_is_no_device() {
        let has = of("lo").unwrap();
        assert!(has.tx_checksum && has.scatter_gather && has.tso, "{has:?}");
        assert!(of("no-such-device0").is_err());
    }
}
