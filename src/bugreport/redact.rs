//! Names and addresses of a report, replaced wherever they stand: in values, in keys, within sentences and lines of the log.

use std::cell::RefCell;
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde_json::{Map, Value};

use super::address::{self, Scrambler};
use super::names::{self, Names, is_joint};
use super::{Body, Document};

/// How often another key is tried when an address would be replaced by one that is somebody's in the same report.
const KEYS_MAX: usize = 64;

/// Labels of a name below `ip6.arpa`, one for each half octet.
const NIBBLES: usize = 32;

/// Replaces what is somebody's own.
pub struct Redactor {
    names: Names,
    scrambler: Scrambler,
    /// Addresses, and prefixes with their lengths.
    seen: RefCell<HashSet<(IpAddr, Option<u8>)>>,
}

impl Redactor {
    /// For a report, and what its machine calls itself.
    pub fn new(documents: &[Document], own: &[String]) -> Self {
        let mut redactor =
            Self { names: Names::find(documents, own), scrambler: Scrambler::default(), seen: RefCell::default() };
        // What is replaced by an address of somebody else could be taken for that, and short prefixes may come out as they
        // were. With few addresses a key without such an accident is soon found; with a great many there may be none.
        documents.iter().for_each(|document| drop(redactor.document(document.clone())));
        let seen = redactor.seen.take();
        let stays = |(address, len): &(IpAddr, Option<u8>)| bits(*address, *len) <= address::kept(*address);
        let free: Vec<(IpAddr, Option<u8>)> = seen.into_iter().filter(|one| !stays(one)).collect();
        let originals: HashSet<IpAddr> = free.iter().map(|(address, _)| *address).collect();
        for _ in 0..KEYS_MAX {
            if !free.iter().any(|(address, len)| originals.contains(&redactor.image(*address, *len))) {
                break;
            }
            redactor.scrambler = Scrambler::default();
        }
        redactor
    }

    /// All documents.
    pub fn all(&self, documents: Vec<Document>) -> Vec<Document> {
        documents.into_iter().map(|document| self.document(document)).collect()
    }

    fn document(&self, document: Document) -> Document {
        let Document { name, body } = document;
        let body = match body {
            Body::Json(value) => Body::Json(self.value("", value)),
            // The names of metrics and of their labels are not somebody's.
            Body::Text(text) if name == "metrics.txt" => Body::Text(self.quoted(&text)),
            Body::Text(text) if name == "README.txt" => Body::Text(self.missing(&text)),
            Body::Text(text) => Body::Text(self.text(&text)),
        };
        Document { name, body }
    }

    fn value(&self, field: &str, value: Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.text(&text)),
            Value::Array(items) => Value::Array(items.into_iter().map(|item| self.value(field, item)).collect()),
            Value::Object(fields) => {
                let renamed = |(key, value): (String, Value)| {
                    let value = self.value(&key, value);
                    (if names::is_keyed(field) || !is_field(&key) { self.text(&key) } else { key }, value)
                };
                Value::Object(fields.into_iter().map(renamed).collect::<Map<_, _>>())
            }
            other => other,
        }
    }

    /// What stands between quotes.
    fn quoted(&self, text: &str) -> String {
        let parts = text.split('"').enumerate();
        let parts = parts.map(|(i, part)| if i % 2 == 1 { self.text(part) } else { part.to_owned() });
        parts.collect::<Vec<_>>().join("\"")
    }

    /// What follows the sentences that are the same in every report.
    fn missing(&self, text: &str) -> String {
        match text.split_once("\nNot in it:\n") {
            Some((about, missing)) => format!("{about}\nNot in it:\n{}", self.text(missing)),
            None => text.to_owned(),
        }
    }

    /// A text with everything replaced that is somebody's.
    fn text(&self, text: &str) -> String {
        if let Some(token) = self.names.token(text) {
            return token.to_owned();
        }
        let text = self.names.without_phrases(text);
        let mut out = String::with_capacity(text.len());
        let mut rest = text.as_str();
        let mut before = ' ';
        while let Some(first) = rest.chars().next() {
            // `::1` begins without a letter or digit.
            let begins = !before.is_alphanumeric() && (first.is_alphanumeric() || rest.starts_with("::"));
            let found = if begins { self.at(rest) } else { None };
            let (len, image) = found.unwrap_or((first.len_utf8(), first.to_string()));
            out += &image;
            before = rest[..len].chars().next_back().unwrap_or(' ');
            rest = &rest[len..];
        }
        out
    }

    /// The longest name or address at the beginning of a text: its length, and what stands for it.
    fn at(&self, text: &str) -> Option<(usize, String)> {
        let within = |(_, c): &(usize, char)| c.is_alphanumeric() || is_joint(*c);
        let mut ends = Vec::new();
        let mut chars = text.char_indices().take(names::LEN_MAX).take_while(within).peekable();
        while let Some((at, c)) = chars.next() {
            let goes_on = chars.peek().is_some_and(|(_, next)| next.is_alphanumeric());
            let end = at + c.len_utf8();
            // A name ends with a letter or digit; `fd00::` with two colons.
            if c.is_alphanumeric() && !goes_on || text[..end].ends_with("::") {
                ends.push(end);
            }
        }
        ends.into_iter().rev().find_map(|end| {
            let word = &text[..end];
            if let Some(token) = self.names.token(word) {
                return Some((end, token.to_owned()));
            }
            if let Some(mac) = mac(word) {
                return Some((end, mac_text(self.scrambler.mac(mac))));
            }
            if let Some(arpa) = arpa(word) {
                return Some((end, arpa));
            }
            let image = self.address(word, &text[end..])?;
            Some((end, image))
        })
    }

    /// What stands for an address, or for a prefix of that length.
    fn image(&self, address: IpAddr, len: Option<u8>) -> IpAddr {
        let image = self.scrambler.ip(address);
        let net = len.and_then(|len| IpNet::new(image, len).ok());
        net.map_or(image, |net| net.network())
    }

    /// What stands for an address. Where a prefix length follows that leaves no bits of a host, there are none afterwards.
    fn address(&self, word: &str, after: &str) -> Option<String> {
        if let Ok(address) = word.parse::<IpAddr>() {
            let len: Option<u8> = after.strip_prefix('/').and_then(|rest| {
                let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
                digits.parse().ok()
            });
            let net = len.and_then(|len| IpNet::new(address, len).ok()).filter(|net| net.network() == address);
            let len = net.map(|net| net.prefix_len());
            self.seen.borrow_mut().insert((address, len));
            return Some(self.image(address, len).to_string());
        }
        // As names of DNS have it: `10-64-0-12`, `2001-db8--1`.
        if !word.contains('-') || word.contains(['.', ':']) {
            return None;
        }
        let v4 = word.replace('-', ".").parse::<Ipv4Addr>().map(IpAddr::from);
        let address = v4.or_else(|_| word.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::from)).ok()?;
        Some(self.scrambler.ip(address).to_string().replace(['.', ':'], "-"))
    }
}

/// Bits of an address that are not those of hosts.
fn bits(address: IpAddr, len: Option<u8>) -> u32 {
    len.map_or(if address.is_ipv6() { 128 } else { 32 }, u32::from)
}

/// Whether a key is a field's name, such as `socketPath` or `policy_denied`, and not an object's, such as `shop/web-0`.
fn is_field(key: &str) -> bool {
    key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// `02:00:0a:40:00:0c`.
pub fn mac(text: &str) -> Option<[u8; 6]> {
    let octet = |part: &str| if part.len() == 2 { u8::from_str_radix(part, 16).ok() } else { None };
    let octets: Vec<u8> = text.split(':').map(octet).collect::<Option<_>>()?;
    octets.try_into().ok()
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}

/// A name of the reverse zone (RFC 1035 §3.5, RFC 3596 §2.5): what it is of is not said.
fn arpa(word: &str) -> Option<String> {
    let zone = ["in-addr.arpa", "ip6.arpa"].into_iter().find(|zone| word.ends_with(&format!(".{zone}")))?;
    let labels = word.strip_suffix(zone)?.split('.').count();
    (labels <= NIBBLES + 1).then(|| format!("redacted.{zone}"))
}
