//! DHCPv6 messages between clients and servers (RFC 8415 §8, options §21): a checked view, and the writer of a reply.
//!
//! Options nest (an address lies in an identity association); `Options` walks one level. Relay messages have another
//! header and are not read here. What a message means is decided in `src/services/dhcp6.rs`.

use std::net::Ipv6Addr;

use super::writer::{Full, Writer};
use crate::stage::DropReason;

/// UDP port of clients.
pub const CLIENT_PORT: u16 = 546;
/// UDP port of servers.
pub const SERVER_PORT: u16 = 547;
/// `All_DHCP_Relay_Agents_and_Servers` (RFC 8415 §7.1).
pub const ALL_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// Option codes (RFC 8415 §21, RFC 3646).
pub mod option {
    /// DUID of the client.
    pub const CLIENT_ID: u16 = 1;
    /// DUID of the server.
    pub const SERVER_ID: u16 = 2;
    /// Identity association for non-temporary addresses.
    pub const IA_NA: u16 = 3;
    /// Identity association for temporary addresses.
    pub const IA_TA: u16 = 4;
    /// An address, inside of an association.
    pub const IA_ADDRESS: u16 = 5;
    /// Options that the client wants.
    pub const OPTION_REQUEST: u16 = 6;
    /// Preference of the server.
    pub const PREFERENCE: u16 = 7;
    /// Status code.
    pub const STATUS_CODE: u16 = 13;
    /// Two messages instead of four.
    pub const RAPID_COMMIT: u16 = 14;
    /// Resolvers.
    pub const DNS_SERVERS: u16 = 23;
    /// Search list.
    pub const DOMAIN_LIST: u16 = 24;
    /// Identity association for prefix delegation.
    pub const IA_PD: u16 = 25;
    /// When to ask again after an Information-request.
    pub const INFORMATION_REFRESH_TIME: u16 = 32;
}

/// Message types (RFC 8415 §7.3).
pub mod message_type {
    /// Client looks for servers.
    pub const SOLICIT: u8 = 1;
    /// Server offers.
    pub const ADVERTISE: u8 = 2;
    /// Client asks for what was offered.
    pub const REQUEST: u8 = 3;
    /// Client asks whether its addresses still fit the link.
    pub const CONFIRM: u8 = 4;
    /// Client extends its lease with its server.
    pub const RENEW: u8 = 5;
    /// Client extends its lease with any server.
    pub const REBIND: u8 = 6;
    /// Server answers.
    pub const REPLY: u8 = 7;
    /// Client gives addresses back.
    pub const RELEASE: u8 = 8;
    /// Client found an address in use.
    pub const DECLINE: u8 = 9;
    /// Client wants no address, only the rest.
    pub const INFORMATION_REQUEST: u8 = 11;
}

/// Status codes (RFC 8415 §21.13).
pub mod status {
    /// All is well.
    pub const SUCCESS: u16 = 0;
    /// No address for this association.
    pub const NO_ADDRS_AVAIL: u16 = 2;
    /// The server knows no such association.
    pub const NO_BINDING: u16 = 3;
    /// The address does not belong on this link.
    pub const NOT_ON_LINK: u16 = 4;
    /// Ask by multicast.
    pub const USE_MULTICAST: u16 = 5;
    /// No prefix to delegate.
    pub const NO_PREFIX_AVAIL: u16 = 6;
}

/// Octets of a DUID: a two-octet type and 1 to 128 octets (RFC 8415 §11.1).
const DUID_LEN: std::ops::RangeInclusive<usize> = 3..=130;

/// A message, checked: its options end exactly at its end.
#[derive(Clone, Copy)]
pub struct Message<'a>(&'a [u8]);

impl<'a> Message<'a> {
    /// Checks a UDP payload.
    ///
    /// # Errors
    /// `DhcpInvalid` when it is cut off or an option runs over the end.
    pub fn check(bytes: &'a [u8]) -> Result<Self, DropReason> {
        if bytes.len() < 4 || !Options(&bytes[4..]).all(|option| option.is_some()) {
            return Err(DropReason::DhcpInvalid);
        }
        Ok(Self(bytes))
    }

    /// Message type.
    pub fn message_type(&self) -> u8 {
        self.0[0]
    }

    /// Transaction id.
    pub fn transaction_id(&self) -> [u8; 3] {
        [self.0[1], self.0[2], self.0[3]]
    }

    /// Options of the first level, in order.
    pub fn options(&self) -> impl Iterator<Item = (u16, &'a [u8])> + use<'a> {
        Options(&self.0[4..]).flatten()
    }

    /// The first option with this code.
    pub fn option(&self, code: u16) -> Option<&'a [u8]> {
        self.options().find(|option| option.0 == code).map(|option| option.1)
    }

    /// An option that holds a DUID. `None` when there is none.
    ///
    /// # Errors
    /// `DhcpInvalid` when its length is no DUID's.
    pub fn duid(&self, code: u16) -> Result<Option<&'a [u8]>, DropReason> {
        match self.option(code) {
            Some(duid) if DUID_LEN.contains(&duid.len()) => Ok(Some(duid)),
            Some(_) => Err(DropReason::DhcpInvalid),
            None => Ok(None),
        }
    }

    /// Whether the client asks for this option, or does not say what it asks for.
    pub fn requests(&self, code: u16) -> bool {
        let list = self.option(option::OPTION_REQUEST);
        list.is_none_or(|list| list.chunks_exact(2).any(|entry| entry == code.to_be_bytes()))
    }
}

/// An identity association (IA_NA, IA_TA or IA_PD) as the client sent it.
#[derive(Clone, Copy)]
pub struct Association<'a> {
    /// Its identifier, unique among those of the client and of one type.
    pub iaid: [u8; 4],
    options: &'a [u8],
}

impl<'a> Association<'a> {
    /// Checks the data of an option `code`.
    ///
    /// # Errors
    /// `DhcpInvalid` when it is cut off.
    pub fn check(code: u16, data: &'a [u8]) -> Result<Self, DropReason> {
        // IA_TA has no T1 and T2 (RFC 8415 §21.5).
        let fixed = if code == option::IA_TA { 4 } else { 12 };
        let options = data.get(fixed..).ok_or(DropReason::DhcpInvalid)?;
        if !Options(options).all(|option| option.is_some_and(|o| o.0 != option::IA_ADDRESS || o.1.len() >= 24)) {
            return Err(DropReason::DhcpInvalid);
        }
        Ok(Self { iaid: [data[0], data[1], data[2], data[3]], options })
    }

    /// The addresses in it.
    pub fn addresses(&self) -> impl Iterator<Item = Ipv6Addr> + use<'a> {
        let addresses = Options(self.options).flatten().filter(|option| option.0 == option::IA_ADDRESS);
        addresses.filter_map(|option| option.1.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets)))
    }
}

/// The options of one level; `None` once, and the end, for one that runs over the end.
struct Options<'a>(&'a [u8]);

impl<'a> Iterator for Options<'a> {
    type Item = Option<(u16, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let parsed = self.0.split_first_chunk::<4>().and_then(|(header, rest)| {
            let [c0, c1, l0, l1] = *header;
            let (data, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes([l0, l1])))?;
            Some((u16::from_be_bytes([c0, c1]), data, rest))
        });
        let Some((code, data, rest)) = parsed else {
            self.0 = &[];
            return Some(None);
        };
        self.0 = rest;
        Some(Some((code, data)))
    }
}

/// Appends an option.
///
/// # Errors
/// When it does not fit; then nothing was written.
pub fn put(writer: &mut Writer<'_>, code: u16, data: &[u8]) -> Result<(), Full> {
    put_with(writer, code, |writer| writer.bytes(data))
}

/// Appends an option whose data `fill` writes; options nest this way.
///
/// # Errors
/// When it does not fit; then nothing was written.
pub fn put_with(
    writer: &mut Writer<'_>,
    code: u16,
    fill: impl FnOnce(&mut Writer<'_>) -> Result<(), Full>,
) -> Result<(), Full> {
    let start = writer.len();
    let result = (|| {
        writer.u16(code)?;
        writer.u16(0)?;
        fill(writer)?;
        u16::try_from(writer.len() - start - 4).map_err(|_| Full)
    })();
    match result {
        Ok(len) => writer.patch_u16(start + 2, len),
        Err(Full) => writer.rewind(start),
    }
    result.map(|_| ())
}

/// Appends a status code, with a sentence for a person.
///
/// # Errors
/// When it does not fit; then nothing was written.
pub fn put_status(writer: &mut Writer<'_>, code: u16, text: &str) -> Result<(), Full> {
    put_with(writer, option::STATUS_CODE, |writer| {
        writer.u16(code)?;
        writer.bytes(text.as_bytes())
    })
}

/// Appends an address option; lifetimes in seconds.
///
/// # Errors
/// When it does not fit; then nothing was written.
pub fn put_address(writer: &mut Writer<'_>, address: Ipv6Addr, preferred_s: u32, valid_s: u32) -> Result<(), Full> {
    put_with(writer, option::IA_ADDRESS, |writer| {
        writer.bytes(&address.octets())?;
        writer.u32(preferred_s)?;
        writer.u32(valid_s)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);

    #[test]
    fn nested_options_are_written_and_read_back() {
        let mut buffer = [0xa5; 128];
        let mut writer = Writer::new(&mut buffer);
        writer.bytes(&[message_type::REPLY, 1, 2, 3]).unwrap();
        put(&mut writer, option::CLIENT_ID, &[0, 3, 0, 1, 2]).unwrap();
        put_with(&mut writer, option::IA_NA, |writer| {
            writer.bytes(&[9, 9, 9, 9])?;
            writer.u32(50)?;
            writer.u32(80)?;
            put_address(writer, ADDRESS, 100, 100)?;
            put_status(writer, status::SUCCESS, "ok")
        })
        .unwrap();
        let len = writer.len();
        assert_eq!(put(&mut writer, option::DNS_SERVERS, &[0; 64]), Err(Full));
        assert_eq!(writer.len(), len);
        let view = Message::check(writer.written()).unwrap();
        assert_eq!((view.message_type(), view.transaction_id()), (message_type::REPLY, [1, 2, 3]));
        assert_eq!(view.duid(option::CLIENT_ID), Ok(Some(&[0, 3, 0, 1, 2][..])));
        assert_eq!(view.duid(option::SERVER_ID), Ok(None));
        let association = Association::check(option::IA_NA, view.option(option::IA_NA).unwrap()).unwrap();
        assert_eq!(association.iaid, [9, 9, 9, 9]);
        assert_eq!(association.addresses().collect::<Vec<_>>(), [ADDRESS]);
    }

    #[test]
    fn malformed_messages_are_refused() {
        let good = [1, 0, 0, 0, 0, 1, 0, 4, 0, 3, 0, 1];
        assert!(Message::check(&good).is_ok());
        for len in (0..good.len()).filter(|len| *len != 4) {
            assert!(Message::check(&good[..len]).is_err(), "{len}");
        }
        let short_duid = [1, 0, 0, 0, 0, 1, 0, 2, 0, 3];
        assert!(Message::check(&short_duid).unwrap().duid(option::CLIENT_ID).is_err());
        assert!(Association::check(option::IA_NA, &[0; 11]).is_err());
        assert!(Association::check(option::IA_TA, &[0; 4]).is_ok());
        let mut short_address = [0; 12 + 4 + 23];
        short_address[12..16].copy_from_slice(&[0, 5, 0, 23]);
        assert!(Association::check(option::IA_NA, &short_address).is_err());
    }

    #[test]
    fn an_option_request_is_honoured_and_its_absence_asks_for_all() {
        let all = [11, 0, 0, 0];
        assert!(Message::check(&all).unwrap().requests(option::DNS_SERVERS));
        let only_dns = [11, 0, 0, 0, 0, 6, 0, 2, 0, 23];
        let view = Message::check(&only_dns).unwrap();
        assert!(view.requests(option::DNS_SERVERS) && !view.requests(option::DOMAIN_LIST));
    }
}
