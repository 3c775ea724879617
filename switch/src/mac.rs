//! An Ethernet (EUI-48) address.

use std::fmt;
use std::str::FromStr;

/// An EUI-48 address, in transmission order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// `ff:ff:ff:ff:ff:ff`.
    pub const BROADCAST: MacAddr = MacAddr([0xff; 6]);

    /// The router's address in every network, the same on every host: locally administered, unicast.
    pub const ROUTER: MacAddr = MacAddr([0x02, 0x68, 0x77, 0x00, 0x00, 0x01]);

    /// Group bit set (broadcast included).
    #[inline]
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// The modified EUI-64 interface identifier of this address (RFC 4291, appendix A).
    pub fn eui64(self) -> [u8; 8] {
        let m = self.0;
        [m[0] ^ 0x02, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]]
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A string that is not six hexadecimal octets separated by colons.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a MAC address: six hexadecimal octets separated by colons, like 02:00:0a:40:00:0a")]
pub struct ParseMacError(pub String);

impl FromStr for MacAddr {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, ParseMacError> {
        let error = || ParseMacError(text.to_owned());
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(error)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() { Err(error()) } else { Ok(MacAddr(octets)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_and_display_round_trip() {
        let mac: MacAddr = "02:00:0a:40:00:1F".parse().unwrap();
        assert_eq!(mac.to_string(), "02:00:0a:40:00:1f");
        for bad in
            ["", "02:00:0a:40:00", "02:00:0a:40:00:1f:00", "2:0:a:40:0:1f", "02-00-0a-40-00-1f", "0g:00:0a:40:00:1f"]
        {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn eui64_flips_the_universal_bit() {
        assert_eq!(MacAddr([0x02, 0, 0x0a, 0x40, 0, 0x1f]).eui64(), [0, 0, 0x0a, 0xff, 0xfe, 0x40, 0, 0x1f]);
    }
}
