//! Hides frames from the host's own kernel: those for addresses of ours end at the interface before the kernel's IP
//! stack sees them, so that it neither answers nor forwards nor redirects them. Packet sockets see them all the same,
//! because they come first. Only frames of our VLAN are hidden, as only those are ours: elsewhere the same address may be
//! anybody's, the kernel's too.
//!
//! It is one table of nf_tables for each interface, `netdev hostweave-NAME`, with two sets of addresses; `nft list
//! ruleset` shows it. It is replaced as a whole, in one transaction. It stays when the daemon is killed, so that the
//! kernel does not wake up to connections that it does not know; the next daemon replaces or removes it.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::sys::socket::SockProtocol;

use super::{Message, questions};
use crate::Error;

/// Elements of a set in one message: an attribute has less than 64 KiB.
const ELEMENTS_MAX: usize = 500;

/// Hides frames that come in at `interface` for addresses in `prefixes`, and for no others any more: those with this VLAN tag
/// (1 to 4094), or without one.
///
/// # Errors
/// When the interface is missing, or the kernel has no nf_tables or forbids it.
pub fn install(interface: &str, vlan: Option<u16>, prefixes: &[IpNet]) -> Result<(), Error> {
    let failed = |source| Error::Hide { name: interface.to_owned(), source };
    transact(messages(interface, vlan, prefixes)).map_err(failed)
}

/// Hides nothing any more. Nothing happens when nothing was hidden.
///
/// # Errors
/// When the kernel forbids it.
pub fn remove(interface: &str) -> Result<(), Error> {
    let table = table_of(interface);
    let done = transact(vec![request(NEWTABLE, libc::NLM_F_CREATE, &table), request(DELTABLE, 0, &table)]);
    match done {
        // Without nf_tables nothing can be hidden.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPROTONOSUPPORT | libc::EOPNOTSUPP)) => Ok(()),
        done => done.map_err(|source| Error::Hide { name: interface.to_owned(), source }),
    }
}

fn table_of(interface: &str) -> String {
    format!("hostweave-{interface}")
}

/// The whole table, after whatever was there.
fn messages(interface: &str, vlan: Option<u16>, prefixes: &[IpNet]) -> Vec<Message> {
    let table = table_of(interface);
    let mut messages = vec![
        // So that there is one to delete.
        request(NEWTABLE, libc::NLM_F_CREATE, &table),
        request(DELTABLE, 0, &table),
        request(NEWTABLE, libc::NLM_F_CREATE, &table),
    ];
    let mut chain = request(NEWCHAIN, libc::NLM_F_CREATE, &table);
    chain.text(3, CHAIN).nest(4 | NESTED, |hook| {
        // NF_NETDEV_INGRESS, before everybody else's.
        hook.number(1, 0).put(2, &PRIORITY.to_be_bytes()).text(3, interface);
    });
    chain.text(7, "filter");
    messages.push(chain);
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for prefix in prefixes {
        match prefix {
            IpNet::V4(net) => v4.push(*net),
            IpNet::V6(net) => v6.push(*net),
        }
    }
    let v4 = Ipv4Net::aggregate(&v4);
    let v4 = v4.iter().map(|net| (net.network().octets().to_vec(), after_v4(*net).map(|end| end.to_vec())));
    set(&mut messages, &table, "v4", 1, (7, 4), v4.collect());
    let v6 = Ipv6Net::aggregate(&v6);
    let v6 = v6.iter().map(|net| (net.network().octets().to_vec(), after_v6(*net).map(|end| end.to_vec())));
    set(&mut messages, &table, "v6", 2, (8, 16), v6.collect());
    for rule in RULES {
        match vlan {
            Some(id) => messages.push(rule.hides(&table, Tag::Vlan(id))),
            // A tag of VLAN 0 is none: it only says the priority (IEEE 802.1Q §6.9.1).
            None => messages.extend([Tag::None, Tag::Vlan(0)].map(|tag| rule.hides(&table, tag))),
        }
    }
    messages
}

/// First address behind a range; `None` behind the last one.
fn after_v4(net: Ipv4Net) -> Option<[u8; 4]> {
    u32::from(net.broadcast()).checked_add(1).map(|next| Ipv4Addr::from(next).octets())
}

fn after_v6(net: Ipv6Net) -> Option<[u8; 16]> {
    u128::from(net.broadcast()).checked_add(1).map(|next| Ipv6Addr::from(next).octets())
}

/// A set of ranges, each from its first address to before its second.
fn set(
    messages: &mut Vec<Message>,
    table: &str,
    name: &str,
    id: u32,
    (key_type, key_len): (u32, u32),
    ranges: Vec<(Vec<u8>, Option<Vec<u8>>)>,
) {
    let mut message = request(NEWSET, libc::NLM_F_CREATE, table);
    message.text(2, name).number(3, SET_INTERVAL).number(4, key_type).number(5, key_len).number(10, id);
    messages.push(message);
    let mut elements: Vec<(Vec<u8>, u32)> = Vec::with_capacity(2 * ranges.len());
    for (start, end) in ranges {
        // A range that begins where the one before ends goes on.
        if elements.last().is_some_and(|(last, flags)| *flags == ELEMENT_END && *last == start) {
            elements.pop();
        } else {
            elements.push((start, 0));
        }
        elements.extend(end.map(|end| (end, ELEMENT_END)));
    }
    for chunk in elements.chunks(ELEMENTS_MAX) {
        let mut message = request(NEWSETELEM, libc::NLM_F_CREATE, table);
        message.text(2, name).number(4, id).nest(3 | NESTED, |list| {
            for (key, flags) in chunk {
                list.nest(1 | NESTED, |element| {
                    element.nest(1 | NESTED, |data| {
                        data.put(1, key);
                    });
                    if *flags != 0 {
                        element.number(3, *flags);
                    }
                });
            }
        });
        messages.push(message);
    }
}

/// Which frames are hidden: what must be equal, and the address that must be in a set.
struct Rule {
    wants: &'static [(Field, &'static [u8])],
    address: (u32, u32, u32),
    set: &'static str,
}

/// Which frames of an interface a rule is about.
#[derive(Clone, Copy)]
enum Tag {
    None,
    Vlan(u16),
}

impl Rule {
    /// The rule as a message. What is compared stands in one register after the other, until something is different.
    fn hides(&self, table: &str, tag: Tag) -> Message {
        let mut message = request(NEWRULE, libc::NLM_F_CREATE | libc::NLM_F_APPEND, table);
        message.text(2, CHAIN).nest(4 | NESTED, |expressions| {
            tag.wants(self.ether_type(), expressions);
            for (kind, value) in self.wants {
                kind.load(expressions);
                equals(expressions, value);
            }
            load(expressions, self.address);
            expression(expressions, "lookup", |data| {
                data.text(1, self.set).number(2, REGISTER).number(4, if self.set == "v4" { 1 } else { 2 });
            });
            expression(expressions, "immediate", |data| {
                // The verdict register, NF_DROP.
                data.number(1, 0).nest(2 | NESTED, |data| {
                    data.nest(2 | NESTED, |verdict| {
                        verdict.number(1, 0);
                    });
                });
            });
        });
        message
    }

    fn ether_type(&self) -> &'static [u8] {
        self.wants.iter().find(|(field, _)| matches!(field, Field::EtherType)).map_or(&[], |(_, value)| *value)
    }
}

impl Tag {
    /// The kernel has taken the tag out of the frame, and puts it back where a rule looks at the link header (nft's `vlan id`).
    fn wants(self, ether_type: &[u8], expressions: &mut Message) {
        load(expressions, (LINK, 12, 2));
        match self {
            Tag::None => equals(expressions, ether_type),
            Tag::Vlan(id) => {
                equals(expressions, &ETHER_VLAN);
                load(expressions, (LINK, 14, 2));
                let value = |data: &mut Message, kind: u16, octets: [u8; 2]| {
                    data.nest(kind | NESTED, |inner| {
                        inner.put(1, &octets);
                    });
                };
                expression(expressions, "bitwise", |data| {
                    data.number(1, REGISTER).number(2, REGISTER).number(3, 2);
                    value(data, 4, [0x0f, 0xff]);
                    value(data, 5, [0, 0]);
                });
                equals(expressions, &id.to_be_bytes());
            }
        }
    }
}

/// Something of a frame.
#[derive(Clone, Copy)]
enum Field {
    EtherType,
    L4Protocol,
    IcmpType,
}

/// Offsets count from the network header (1) or the transport header (2); below also from the link header.
const RULES: [Rule; 4] = [
    Rule { wants: &[(Field::EtherType, &[0x08, 0x00])], address: (1, 16, 4), set: "v4" },
    // ARP, whoever asks for one of ours.
    Rule { wants: &[(Field::EtherType, &[0x08, 0x06])], address: (1, 24, 4), set: "v4" },
    Rule { wants: &[(Field::EtherType, &[0x86, 0xdd])], address: (1, 24, 16), set: "v6" },
    // Neighbour solicitations to a group.
    Rule {
        wants: &[(Field::EtherType, &[0x86, 0xdd]), (Field::L4Protocol, &[58]), (Field::IcmpType, &[135])],
        address: (2, 8, 16),
        set: "v6",
    },
];

impl Field {
    fn load(self, expressions: &mut Message) {
        match self {
            Field::EtherType => meta(expressions, 1),
            Field::L4Protocol => meta(expressions, 16),
            Field::IcmpType => load(expressions, (2, 0, 1)),
        }
    }
}

fn meta(expressions: &mut Message, key: u32) {
    expression(expressions, "meta", |data| {
        data.number(2, key).number(1, REGISTER);
    });
}

fn load(expressions: &mut Message, (base, offset, len): (u32, u32, u32)) {
    expression(expressions, "payload", |data| {
        data.number(1, REGISTER).number(2, base).number(3, offset).number(4, len);
    });
}

fn equals(expressions: &mut Message, value: &[u8]) {
    expression(expressions, "cmp", |data| {
        data.number(1, REGISTER).number(2, 0).nest(3 | NESTED, |inner| {
            inner.put(1, value);
        });
    });
}

fn expression(expressions: &mut Message, name: &str, fill: impl FnOnce(&mut Message)) {
    expressions.nest(1 | NESTED, |element| {
        element.text(1, name).nest(2 | NESTED, fill);
    });
}

fn request(kind: u16, flags: libc::c_int, table: &str) -> Message {
    let family = libc::NFPROTO_NETDEV as u8;
    let kind = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8 | kind;
    let mut message = Message::new(kind, libc::NLM_F_ACK | flags, &[family, 0, 0, 0]);
    message.text(1, table);
    message
}

/// All of it or nothing.
fn transact(messages: Vec<Message>) -> io::Result<()> {
    let edge = |kind: libc::c_int| {
        let [high, low] = (libc::NFNL_SUBSYS_NFTABLES as u16).to_be_bytes();
        Message::new(kind as u16, 0, &[libc::AF_UNSPEC as u8, 0, high, low])
    };
    let mut batch = vec![edge(libc::NFNL_MSG_BATCH_BEGIN)];
    batch.extend(messages);
    batch.push(edge(libc::NFNL_MSG_BATCH_END));
    questions(SockProtocol::NetlinkNetFilter)?.ask_all(batch).map(drop)
}

// `linux/netfilter/nf_tables.h`.
const NEWTABLE: u16 = 0;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const NEWRULE: u16 = 6;
const NEWSET: u16 = 9;
const NEWSETELEM: u16 = 12;
const SET_INTERVAL: u32 = 4;
const ELEMENT_END: u32 = 1;
const REGISTER: u32 = 1;
const LINK: u32 = 0;
const ETHER_VLAN: [u8; 2] = [0x81, 0x00];
const NESTED: u16 = 0x8000;
const CHAIN: &str = "ingress";
const PRIORITY: i32 = -500;
