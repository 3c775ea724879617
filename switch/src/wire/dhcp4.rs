//! DHCPv4 messages (RFC 2131 §2, options RFC 2132): a checked view of what a client sent, and the writer of a reply.
//!
//! The view walks every option once when it is made, so that a lookup cannot run over the end. It does not know what
//! a message means; that is `src/services/dhcp4.rs`. Concatenated options (RFC 3396) are not joined: no option that a
//! server reads is longer than 255 octets.

use std::net::Ipv4Addr;

use super::writer::{Full, Writer};
use crate::stage::DropReason;

/// UDP port of servers.
pub const SERVER_PORT: u16 = 67;
/// UDP port of clients.
pub const CLIENT_PORT: u16 = 68;

/// Option codes (RFC 2132, 3397, 3442).
pub mod option {
    /// Padding, without a length.
    pub const PAD: u8 = 0;
    /// Subnet mask.
    pub const SUBNET_MASK: u8 = 1;
    /// Default routers.
    pub const ROUTER: u8 = 3;
    /// Resolvers.
    pub const DNS: u8 = 6;
    /// Host name.
    pub const HOST_NAME: u8 = 12;
    /// Domain of the client.
    pub const DOMAIN_NAME: u8 = 15;
    /// MTU of the interface.
    pub const MTU: u8 = 26;
    /// Requested address.
    pub const REQUESTED_ADDRESS: u8 = 50;
    /// Lease time in seconds.
    pub const LEASE_TIME: u8 = 51;
    /// `file` and `sname` hold options.
    pub const OVERLOAD: u8 = 52;
    /// Message type.
    pub const MESSAGE_TYPE: u8 = 53;
    /// The server that is meant, or that answers.
    pub const SERVER_ID: u8 = 54;
    /// A sentence for a person, in NAKs.
    pub const MESSAGE: u8 = 56;
    /// Longest message that the client takes.
    pub const MAX_MESSAGE_SIZE: u8 = 57;
    /// T1 in seconds.
    pub const RENEWAL_TIME: u8 = 58;
    /// T2 in seconds.
    pub const REBINDING_TIME: u8 = 59;
    /// Client identifier.
    pub const CLIENT_ID: u8 = 61;
    /// Search list.
    pub const DOMAIN_SEARCH: u8 = 119;
    /// Classless static routes.
    pub const CLASSLESS_ROUTES: u8 = 121;
    /// End of options, without a length.
    pub const END: u8 = 255;
}

/// Message types (RFC 2132 §9.6).
pub mod message_type {
    /// Client looks for servers.
    pub const DISCOVER: u8 = 1;
    /// Server offers.
    pub const OFFER: u8 = 2;
    /// Client asks for what was offered, or to keep what it has.
    pub const REQUEST: u8 = 3;
    /// Client found the address in use.
    pub const DECLINE: u8 = 4;
    /// Server grants.
    pub const ACK: u8 = 5;
    /// Server refuses.
    pub const NAK: u8 = 6;
    /// Client gives the address back.
    pub const RELEASE: u8 = 7;
    /// Client has an address and asks for the rest.
    pub const INFORM: u8 = 8;
}

/// `op` of a client's message.
pub const BOOTREQUEST: u8 = 1;
/// `op` of a server's message.
pub const BOOTREPLY: u8 = 2;
/// The broadcast flag (RFC 2131 §2, figure 2).
pub const FLAG_BROADCAST: u16 = 0x8000;
/// Octets before the options, the magic cookie included.
pub const HEADER_LEN: usize = 240;
/// Shortest message that BOOTP relays and old clients accept (RFC 1542 §2.1).
pub const MESSAGE_LEN_MIN: usize = 300;

/// A message, checked: fixed header, magic cookie, Ethernet, and options that end inside it.
#[derive(Clone, Copy)]
pub struct Message<'a>(&'a [u8]);

impl<'a> Message<'a> {
    /// Checks a UDP payload.
    ///
    /// # Errors
    /// `DhcpInvalid` when it is cut off, has no magic cookie, is not for Ethernet, or an option runs over the end.
    pub fn check(bytes: &'a [u8]) -> Result<Self, DropReason> {
        let message = Self(bytes);
        // RFC 2131 §3: "The first four octets of the 'options' field of the DHCP message contain the (decimal)
        // values 99, 130, 83 and 99". Hardware type 1 and length 6 are Ethernet.
        if bytes.len() < HEADER_LEN || bytes[236..HEADER_LEN] != MAGIC_COOKIE || bytes[1..3] != [1, 6] {
            return Err(DropReason::DhcpInvalid);
        }
        let whole = message.areas().into_iter().all(|area| Options(area).all(|option| option.is_some()));
        if whole { Ok(message) } else { Err(DropReason::DhcpInvalid) }
    }

    /// `BOOTREQUEST` or `BOOTREPLY`.
    pub fn op(&self) -> u8 {
        self.0[0]
    }

    /// Transaction id.
    pub fn xid(&self) -> [u8; 4] {
        [self.0[4], self.0[5], self.0[6], self.0[7]]
    }

    /// Flags; only [`FLAG_BROADCAST`] is defined.
    pub fn flags(&self) -> u16 {
        u16::from_be_bytes([self.0[10], self.0[11]])
    }

    /// The address that the client uses already.
    pub fn ciaddr(&self) -> Ipv4Addr {
        self.address(12)
    }

    /// The address that the server gives.
    pub fn yiaddr(&self) -> Ipv4Addr {
        self.address(16)
    }

    /// The relay.
    pub fn giaddr(&self) -> Ipv4Addr {
        self.address(24)
    }

    /// The client's MAC address.
    pub fn chaddr(&self) -> [u8; 6] {
        let c = &self.0[28..34];
        [c[0], c[1], c[2], c[3], c[4], c[5]]
    }

    /// The first option with this code.
    pub fn option(&self, code: u8) -> Option<&'a [u8]> {
        self.areas().into_iter().flat_map(|area| Options(area).flatten()).find(|option| option.0 == code).map(|o| o.1)
    }

    /// An option that holds one octet.
    pub fn option_u8(&self, code: u8) -> Option<u8> {
        self.option(code).and_then(|data| <[u8; 1]>::try_from(data).ok()).map(|[value]| value)
    }

    /// An option that holds 16 bits.
    pub fn option_u16(&self, code: u8) -> Option<u16> {
        self.option(code).and_then(|data| <[u8; 2]>::try_from(data).ok()).map(u16::from_be_bytes)
    }

    /// An option that holds one address.
    pub fn option_address(&self, code: u8) -> Option<Ipv4Addr> {
        self.option(code).and_then(|data| <[u8; 4]>::try_from(data).ok()).map(Ipv4Addr::from)
    }

    fn address(&self, at: usize) -> Ipv4Addr {
        Ipv4Addr::new(self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3])
    }

    /// The option field, then `file`, then `sname` where option 52 says so: RFC 2131 §4.1, "The options in the
    /// 'options' field MUST be interpreted first", then `file`, then `sname`.
    fn areas(&self) -> [&'a [u8]; 3] {
        let options = &self.0[HEADER_LEN..];
        let overload = Options(options).flatten().find(|option| option.0 == option::OVERLOAD);
        let overload = overload.and_then(|option| option.1.first().copied()).unwrap_or(0);
        let file = if overload & 1 != 0 { &self.0[108..236] } else { &[] };
        let sname = if overload & 2 != 0 { &self.0[44..108] } else { &[] };
        [options, file, sname]
    }
}

/// The options of one area; `None` once, and the end, for one that runs over the end of the area.
struct Options<'a>(&'a [u8]);

impl<'a> Iterator for Options<'a> {
    type Item = Option<(u8, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        while let [option::PAD, rest @ ..] = self.0 {
            self.0 = rest;
        }
        let (code, rest) = match *self.0 {
            [] | [option::END, ..] => return None,
            [code, len, ref rest @ ..] if rest.len() >= usize::from(len) => (code, rest.split_at(usize::from(len))),
            _ => {
                self.0 = &[];
                return Some(None);
            }
        };
        self.0 = rest.1;
        Some(Some((code, rest.0)))
    }
}

/// The fixed part of a reply. What is not named here is zero.
#[derive(Clone, Copy, Debug)]
pub struct Reply {
    /// Echoed transaction id.
    pub xid: [u8; 4],
    /// Echoed flags.
    pub flags: u16,
    /// The client's address as it said itself, in an ACK.
    pub ciaddr: Ipv4Addr,
    /// The address given.
    pub yiaddr: Ipv4Addr,
    /// Echoed relay.
    pub giaddr: Ipv4Addr,
    /// Echoed client MAC.
    pub chaddr: [u8; 6],
}

impl Reply {
    /// Writes the fixed header and the magic cookie; options follow with [`put`].
    ///
    /// # Errors
    /// When it does not fit.
    pub fn emit(&self, writer: &mut Writer<'_>) -> Result<(), Full> {
        writer.bytes(&[BOOTREPLY, 1, 6, 0])?;
        writer.bytes(&self.xid)?;
        writer.u16(0)?;
        writer.u16(self.flags)?;
        for address in [self.ciaddr, self.yiaddr, Ipv4Addr::UNSPECIFIED, self.giaddr] {
            writer.bytes(&address.octets())?;
        }
        writer.bytes(&self.chaddr)?;
        writer.zeros(10 + 64 + 128)?;
        writer.bytes(&MAGIC_COOKIE)
    }
}

/// Appends an option if it fits whole, one octet left for the end mark.
///
/// # Errors
/// When it does not fit, or is longer than 255 octets; then nothing was written.
pub fn put(writer: &mut Writer<'_>, code: u8, data: &[u8]) -> Result<(), Full> {
    let len = u8::try_from(data.len()).map_err(|_| Full)?;
    if writer.room() < 2 + data.len() + 1 {
        return Err(Full);
    }
    writer.bytes(&[code, len])?;
    writer.bytes(data)
}

/// Writes the end mark and pads to [`MESSAGE_LEN_MIN`].
///
/// # Errors
/// When it does not fit.
pub fn finish(writer: &mut Writer<'_>) -> Result<(), Full> {
    writer.u8(option::END)?;
    writer.zeros(MESSAGE_LEN_MIN.saturating_sub(writer.len()))
}

const MAGIC_COOKIE: [u8; 4] = [99, 130, 83, 99];

#[cfg(test)]
mod tests {
    use super::*;

    fn message(options: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_LEN];
        bytes[..3].copy_from_slice(&[BOOTREQUEST, 1, 6]);
        bytes[236..].copy_from_slice(&MAGIC_COOKIE);
        bytes.extend_from_slice(options);
        bytes
    }

    #[test]
    fn options_are_found_behind_padding_and_in_overloaded_fields() {
        let mut bytes = message(&[0, 0, 53, 1, 1, 52, 1, 3, 255, 50, 4, 9, 9, 9, 9]);
        bytes[108..115].copy_from_slice(&[57, 2, 5, 0xdc, 255, 1, 1]);
        bytes[44..51].copy_from_slice(&[50, 4, 10, 0, 0, 7, 255]);
        let view = Message::check(&bytes).unwrap();
        assert_eq!(view.option_u8(option::MESSAGE_TYPE), Some(message_type::DISCOVER));
        assert_eq!(view.option_u16(option::MAX_MESSAGE_SIZE), Some(1500));
        assert_eq!(view.option_address(option::REQUESTED_ADDRESS), Some(Ipv4Addr::new(10, 0, 0, 7)));
        assert_eq!(view.option(option::SUBNET_MASK), None);
    }

    #[test]
    fn malformed_messages_are_refused() {
        for options in [&[53u8][..], &[53, 1], &[53, 2, 1], &[0, 0, 50, 5, 1, 1, 1, 1]] {
            assert_eq!(Message::check(&message(options)).err(), Some(DropReason::DhcpInvalid), "{options:?}");
        }
        let good = message(&[53, 1, 1]);
        assert!(Message::check(&good).is_ok());
        for len in 0..HEADER_LEN {
            assert!(Message::check(&good[..len]).is_err());
        }
        for (at, value) in [(1, 6), (2, 16), (236, 0)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert!(Message::check(&bad).is_err());
        }
        let mut overloaded = message(&[52, 1, 1]);
        overloaded[235] = 53;
        assert!(Message::check(&overloaded).is_err(), "an option without length at the end of `file`");
    }

    #[test]
    fn a_reply_is_padded_and_reads_back() {
        let mut buffer = [0xa5; 400];
        let mut writer = Writer::new(&mut buffer);
        let reply = Reply {
            xid: [1, 2, 3, 4],
            flags: FLAG_BROADCAST,
            ciaddr: Ipv4Addr::UNSPECIFIED,
            yiaddr: Ipv4Addr::new(192, 0, 2, 9),
            giaddr: Ipv4Addr::new(192, 0, 2, 1),
            chaddr: [2, 0, 0, 0, 0, 9],
        };
        reply.emit(&mut writer).unwrap();
        put(&mut writer, option::LEASE_TIME, &3600u32.to_be_bytes()).unwrap();
        assert_eq!(put(&mut writer, option::CLIENT_ID, &[7; 256]), Err(Full));
        finish(&mut writer).unwrap();
        assert_eq!(writer.len(), MESSAGE_LEN_MIN);
        let view = Message::check(writer.written()).unwrap();
        assert_eq!((view.op(), view.xid(), view.flags()), (BOOTREPLY, [1, 2, 3, 4], FLAG_BROADCAST));
        assert_eq!((view.yiaddr(), view.giaddr()), (reply.yiaddr, reply.giaddr));
        assert_eq!((view.ciaddr(), view.chaddr()), (Ipv4Addr::UNSPECIFIED, reply.chaddr));
        assert_eq!(view.option(option::LEASE_TIME), Some(&[0, 0, 0x0e, 0x10][..]));
    }
}
