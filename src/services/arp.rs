//! ARP (RFC 826, probes and announcements RFC 5227): the switch answers for the gateway and, with default addressing,
//! for every address of the network, always with the router's MAC address (SEMANTICS AR1, AR2).
//!
//! `guard` has checked that sender MAC and address are the port's (AR3). Nothing is learned from what guests say.

use std::net::{IpAddr, Ipv4Addr};

use hostweave_switch::MacAddr;
use hostweave_switch::packet::Packet;
use hostweave_switch::payload::Segment;
use hostweave_switch::stage::{DropReason, Verdict};
use hostweave_switch::tables::{AddressKey, Addressing};
use hostweave_switch::wire::frame;

use super::{LocalContext, verdict};

/// Answers an ARP message.
pub fn answer(ctx: &LocalContext<'_>, packet: &mut Packet, arena: &mut [Segment]) -> Verdict {
    verdict(reply(ctx, packet, arena))
}

fn reply(ctx: &LocalContext<'_>, packet: &mut Packet, arena: &mut [Segment]) -> Result<(), DropReason> {
    let start = usize::from(packet.meta.layers.l3);
    packet.extend_head(start + MESSAGE_LEN, arena).map_err(|_| DropReason::ArpInvalid)?;
    let message = packet.head().get(start..).and_then(|bytes| bytes.first_chunk::<MESSAGE_LEN>());
    let message = *message.ok_or(DropReason::ArpInvalid)?;
    if message[..6] != ETHERNET_IPV4 {
        return Err(DropReason::ArpInvalid);
    }
    let operation = u16::from_be_bytes([message[6], message[7]]);
    let sender = Ipv4Addr::new(message[14], message[15], message[16], message[17]);
    let target = Ipv4Addr::new(message[24], message[25], message[26], message[27]);
    if operation != REQUEST || !answers(ctx, sender, target) {
        return Err(DropReason::NeighborNoAnswer);
    }
    let built = frame::replace(packet, |frame| {
        let mut writer = hostweave_switch::wire::writer::Writer::new(frame);
        writer.bytes(&ctx.port.mac.0)?;
        writer.bytes(&MacAddr::ROUTER.0)?;
        writer.u16(0x0806)?;
        writer.bytes(&ETHERNET_IPV4)?;
        writer.u16(REPLY)?;
        writer.bytes(&MacAddr::ROUTER.0)?;
        writer.bytes(&target.octets())?;
        writer.bytes(&ctx.port.mac.0)?;
        writer.bytes(&sender.octets())?;
        Ok(writer.len())
    });
    built.map_err(|_| DropReason::Internal)
}

fn answers(ctx: &LocalContext<'_>, sender: Ipv4Addr, target: Ipv4Addr) -> bool {
    let Some((range, gateway)) = ctx.network.v4 else { return false };
    // A probe for the own address must stay unanswered, or the guest would take it for a conflict; an announcement
    // (sender and target equal) asks for nothing (RFC 5227 §2.1, §2.3).
    if ctx.port.v4.contains(&target) || sender == target {
        return false;
    }
    if target == gateway {
        return true;
    }
    if sender.is_unspecified() {
        // RFC 5227 §2.1.1: an answer to a probe means that the address is in use.
        let owner = ctx.tables.owner(AddressKey::new(ctx.port.network, IpAddr::V4(target)));
        return owner.is_some_and(|owner| owner != ctx.port.id);
    }
    ctx.network.addressing == Addressing::Network && range.contains(&target)
}

/// Octets of an ARP message for Ethernet and IPv4.
const MESSAGE_LEN: usize = 28;
/// Hardware type, protocol type and both address lengths.
const ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
const REQUEST: u16 = 1;
const REPLY: u16 = 2;
