//! Gives a packet other addresses and L4 ports (NAT), and keeps every checksum right by its difference (RFC 1624).
//!
//! Only the head is touched: the payload stays where it is, and a GSO frame crosses whole. A partial checksum is the sum of the
//! pseudo-header and stays one: ports lie in what its completion covers (SEMANTICS NA39). A fragment behind the first has no
//! transport header, and the checksum in the first covers the whole datagram: both come out right. IPv4 datagrams that are fragments, or
//! may become some, get another identification, so that those of two insides behind one address are not taken for one (SEMANTICS NA31).

use std::hash::BuildHasher;
use std::sync::LazyLock;

use crate::connection::Change;
use crate::flow::{Kind, query};
use crate::packet::{L3, Packet};
use crate::sctp;
use crate::stage::DropReason;
use crate::wire::checksum::{apply, combine, sum, update};
use crate::wire::{ethernet, ipv4, ipv6, proto, tcp, udp};

/// Protocols whose checksum covers addresses and which have no ports that we change: DCCP (RFC 4340 §9.1) and UDP-Lite
/// (RFC 3828 §3.1). In both it stands where that of UDP does.
const DCCP: u8 = 33;
const UDP_LITE: u8 = 136;

const ICMP_CHECKSUM: usize = 2;
const ICMP_IDENT: usize = 4;
const IPV4_IDENT: usize = 4;
pub(crate) const IPV4_FLAGS: usize = 6;
pub(crate) const DONT_FRAGMENT: u8 = 0x40;
const IPV4_CHECKSUM: usize = 10;
const IPV4_ADDRESSES: usize = 12;
const IPV6_ADDRESSES: usize = 8;

/// Makes a parsed packet what `change` says.
///
/// # Errors
/// `Internal` when its headers are not where `parse` said; `NatUnsupported` of an SCTP fragment that should get other ports, which is
/// left as it is.
#[inline]
pub fn translate(packet: &mut Packet, change: &Change) -> Result<(), DropReason> {
    let meta = &packet.meta;
    let (l3, l4, protocol) = (meta.l3, usize::from(meta.layers.l4), meta.proto);
    let (later, partial) = (meta.later_fragment, meta.offload.needs_csum());
    // First, because it may refuse: whoever hears of it has to recognise the packet. Its checksum covers no addresses.
    if protocol == proto::SCTP && !later {
        sctp::translate(packet, change)?;
    }
    let head = packet.head_mut();
    head.get_mut(ethernet::HEADER_LEN..)
        .and_then(|packet| addresses(packet, l3, change))
        .ok_or(DropReason::Internal)?;
    if later {
        return Ok(());
    }
    let transport = head.get_mut(l4..).ok_or(DropReason::Internal)?;
    match protocol {
        proto::TCP => {
            let header: &mut [u8; tcp::HEADER_LEN] = transport.first_chunk_mut().ok_or(DropReason::Internal)?;
            ports(&mut header[..4], change);
            covered(&mut header[usize::from(tcp::CHECKSUM_OFFSET)..], partial, change.address_sum, change.port_sum);
        }
        proto::UDP => {
            let header: &mut [u8; udp::HEADER_LEN] = transport.first_chunk_mut().ok_or(DropReason::Internal)?;
            ports(&mut header[..4], change);
            udp_covered(&mut header[usize::from(udp::CHECKSUM_OFFSET)..], partial, change);
        }
        proto::SCTP => {}
        _ => other(transport, l3, protocol, partial, change)?,
    }
    Ok(())
}

/// Makes an ICMP error one that its receiver understands: what it quotes becomes what `inner` says, and its own addresses
/// what `outer` says (RFC 5508 §4.2). The quoted packet begins `quote.start` octets into the frame, its transport header `l4`
/// octets further; it ends with the quote, and may be cut off anywhere behind the first eight octets of that header.
///
/// # Errors
/// `Internal` when its headers are not where they were found.
pub fn translate_error(
    packet: &mut Packet,
    outer: &Change,
    inner: &Change,
    quote: std::ops::Range<usize>,
    l4: usize,
    protocol: u8,
) -> Result<(), DropReason> {
    let (l3, partial) = (packet.meta.l3, packet.meta.offload.needs_csum());
    let icmp = usize::from(packet.meta.layers.l4);
    let head = packet.head_mut();
    let quoted = head.get_mut(quote).ok_or(DropReason::Internal)?;
    let before = sum(quoted);
    requote(quoted, l3, l4, protocol, inner).ok_or(DropReason::Internal)?;
    // It begins at an even place of the message that the checksum covers.
    let difference = combine(!before, sum(quoted));
    let message = head.get_mut(icmp..).filter(|message| message.len() >= 8).ok_or(DropReason::Internal)?;
    let address_sum = if l3 == L3::V4 { 0 } else { outer.address_sum };
    covered(&mut message[ICMP_CHECKSUM..], partial, address_sum, difference);
    head.get_mut(ethernet::HEADER_LEN..).and_then(|packet| addresses(packet, l3, outer)).ok_or(DropReason::Internal)
}

fn requote(quoted: &mut [u8], l3: L3, l4: usize, protocol: u8, change: &Change) -> Option<()> {
    addresses(quoted, l3, change)?;
    let transport = quoted.get_mut(l4..)?;
    match protocol {
        proto::TCP => {
            ports(transport.get_mut(..4)?, change);
            let field = transport.get_mut(usize::from(tcp::CHECKSUM_OFFSET)..).filter(|field| field.len() >= 2);
            if let Some(field) = field {
                covered(field, false, change.address_sum, change.port_sum);
            }
        }
        proto::UDP => {
            ports(transport.get_mut(..4)?, change);
            let field = transport.get_mut(usize::from(udp::CHECKSUM_OFFSET)..).filter(|field| field.len() >= 2);
            if let Some(field) = field {
                udp_covered(field, false, change);
            }
        }
        // Nobody looks at the checksum of a quote, of which most is missing.
        proto::SCTP => ports(transport.get_mut(..4)?, change),
        _ => other(transport, l3, protocol, false, change).ok()?,
    }
    Some(())
}

/// Writes the addresses of an IP packet.
#[inline]
fn addresses(packet: &mut [u8], l3: L3, change: &Change) -> Option<()> {
    let [a, b, c, d] = change.addresses;
    match l3 {
        L3::V4 => {
            let header: &mut [u8; ipv4::HEADER_LEN] = packet.first_chunk_mut()?;
            let both = (b & 0xffff_ffff) << 32 | d & 0xffff_ffff;
            if header[IPV4_FLAGS] & DONT_FRAGMENT == 0 {
                identify(header, both, change.port_sum);
            }
            // Before the addresses: a wider load than the two octets would wait for them, and for all that was stored before.
            let [high, low] = [header[IPV4_CHECKSUM], header[IPV4_CHECKSUM + 1]];
            let checksum = apply(u16::from_be_bytes([high, low]), change.address_sum);
            header[IPV4_CHECKSUM..IPV4_CHECKSUM + 2].copy_from_slice(&checksum.to_be_bytes());
            header[IPV4_ADDRESSES..].copy_from_slice(&both.to_be_bytes());
        }
        L3::V6 => {
            let header: &mut [u8; ipv6::HEADER_LEN] = packet.first_chunk_mut()?;
            for (at, word) in [a, b, c, d].into_iter().enumerate() {
                let at = IPV6_ADDRESSES + 8 * at;
                header[at..at + 8].copy_from_slice(&word.to_be_bytes());
            }
        }
        L3::Arp | L3::None => return None,
    }
    Some(())
}

/// Gives the datagram that an IPv4 header belongs to another identification, before its addresses become `new` (RFC 6864 §5.3, RFC
/// 4787 REQ-14). It follows from the old one and what the flow becomes: all fragments of a datagram get the same one on every worker,
/// datagrams of one flow stay apart, those of two are as far apart as if both drew at random, which is what hosts themselves do; and the
/// way back takes the same step, for what an ICMP error quotes. A datagram that is never fragmented (DF) needs none (RFC 6864 §4.1).
#[cold]
fn identify(header: &mut [u8; ipv4::HEADER_LEN], new: u64, port_sum: u16) {
    static KEY: LazyLock<[u64; 2]> = LazyLock::new(|| {
        let random = std::hash::RandomState::new();
        [random.hash_one(0), random.hash_one(1)]
    });
    let fold = |word: u64| {
        let product = u128::from(word ^ KEY[0]) * u128::from(KEY[1] | 1);
        (product >> 64) as u64 ^ product as u64
    };
    // Twice: after one multiplication neighbours are as far apart from each other as all neighbours are.
    let mix = |pair: u64| fold(fold(pair)) >> 48;
    let old = header[IPV4_ADDRESSES..].iter().fold(0, |pair, octet| pair << 8 | u64::from(*octet));
    let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let (ident, checksum) = (word(IPV4_IDENT), word(IPV4_CHECKSUM));
    // Insides of two networks may have one address: then their outside ports are different. On the way back the sum is the complement.
    let ports = mix(port_sum.min(!port_sum).into());
    let other = ident ^ (mix(old) ^ mix(new) ^ ports) as u16;
    header[IPV4_IDENT..IPV4_IDENT + 2].copy_from_slice(&other.to_be_bytes());
    header[IPV4_CHECKSUM..IPV4_CHECKSUM + 2].copy_from_slice(&update(checksum, ident, other).to_be_bytes());
}

#[inline]
fn ports(octets: &mut [u8], change: &Change) {
    let both = u32::from(change.src_port) << 16 | u32::from(change.dst_port);
    octets.copy_from_slice(&both.to_be_bytes());
}

/// Changes the checksum at the start of `field`; one that is partial is a sum of addresses only.
#[inline]
fn covered(field: &mut [u8], partial: bool, address_sum: u16, port_sum: u16) {
    let old = u16::from_be_bytes([field[0], field[1]]);
    let new = if partial { combine(old, address_sum) } else { apply(old, combine(address_sum, port_sum)) };
    field[..2].copy_from_slice(&new.to_be_bytes());
}

/// RFC 768: zero says that there is none, and one that is zero is sent as all ones.
#[inline]
fn udp_covered(field: &mut [u8], partial: bool, change: &Change) {
    if field[..2] == [0, 0] && !partial {
        return;
    }
    covered(field, partial, change.address_sum, change.port_sum);
    if field[..2] == [0, 0] && !partial {
        field[..2].fill(0xff);
    }
}

/// Everything but TCP, UDP and SCTP.
#[cold]
fn other(transport: &mut [u8], l3: L3, protocol: u8, partial: bool, change: &Change) -> Result<(), DropReason> {
    match protocol {
        proto::ICMPV4 | proto::ICMPV6 => {
            let header: &mut [u8; 8] = transport.first_chunk_mut().ok_or(DropReason::Internal)?;
            let ident = match query(protocol, 0, header[0]).2 {
                Kind::Query => Some(change.src_port),
                Kind::Answer => Some(change.dst_port),
                Kind::Ports | Kind::Addresses => None,
            };
            if let Some(ident) = ident {
                header[ICMP_IDENT..ICMP_IDENT + 2].copy_from_slice(&ident.to_be_bytes());
            }
            // That of ICMP for IPv4 covers no addresses.
            let address_sum = if l3 == L3::V4 { 0 } else { change.address_sum };
            covered(&mut header[ICMP_CHECKSUM..], partial, address_sum, change.port_sum);
        }
        DCCP | UDP_LITE => {
            if let Some(field) = transport.get_mut(usize::from(udp::CHECKSUM_OFFSET)..).filter(|field| field.len() >= 2)
            {
                covered(field, partial, change.address_sum, 0);
            }
        }
        _ => {}
    }
    Ok(())
}
