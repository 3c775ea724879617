//! ARP (RFC 826, probes and announcements RFC 5227): the switch answers for the gateway and, with default addressing,
//! for every address of the network, always with the router's MAC address (SEMANTICS AR1, AR2).
//!
//! `guard` has checked that sender MAC and address are the port's (AR3). Nothing is learned from what guests say.

use hostweave_switch::MacAddr;
use hostweave_switch::packet::Packet;
use hostweave_switch::payload::Segment;
use hostweave_switch::stage::{DropReason, Verdict};
use hostweave_switch::tables::{AddressKey, Addressing};
use hostweave_switch::wire::arp::{self, Message, Operation};
use hostweave_switch::wire::writer::Full;
use hostweave_switch::wire::{ethernet, frame};

use super::{LocalContext, verdict};

/// Answers an ARP message.
pub fn answer(ctx: &LocalContext<'_>, packet: &mut Packet, arena: &mut [Segment]) -> Verdict {
    verdict(reply(ctx, packet, arena))
}

fn reply(ctx: &LocalContext<'_>, packet: &mut Packet, arena: &mut [Segment]) -> Result<(), DropReason> {
    let start = usize::from(packet.meta.layers.l3);
    packet.extend_head(start + arp::LEN, arena).map_err(|_| DropReason::ArpInvalid)?;
    let message = packet.head().get(start..).and_then(Message::parse).ok_or(DropReason::ArpInvalid)?;
    if message.operation != Operation::Request || !answers(ctx, &message) {
        return Err(DropReason::NeighborNoAnswer);
    }
    let built = frame::replace(packet, |frame| {
        let (header, rest) = frame.split_first_chunk_mut().ok_or(Full)?;
        let ether_type = ethernet::ether_type::ARP;
        ethernet::Repr { dst: ctx.port.mac, src: MacAddr::ROUTER, ether_type }.emit(header);
        message.reply(MacAddr::ROUTER).emit(rest.first_chunk_mut().ok_or(Full)?);
        Ok(ethernet::HEADER_LEN + arp::LEN)
    });
    built.map_err(|_| DropReason::Internal)
}

fn answers(ctx: &LocalContext<'_>, message: &Message) -> bool {
    let Some((range, gateway)) = ctx.network.v4 else { return false };
    let target = message.target_ip;
    // A probe for the own address must stay unanswered, or the guest would take it for a conflict; an announcement
    // asks for nothing (RFC 5227 §2.1, §2.3).
    if ctx.port.v4.contains(&target) || message.is_announcement() {
        return false;
    }
    if target == gateway {
        return true;
    }
    if message.is_probe() {
        // RFC 5227 §2.1.1: an answer to a probe means that the address is in use.
        let owner = ctx.tables.owner(AddressKey::v4(ctx.port.network, target));
        return owner.is_some_and(|owner| owner != ctx.port.id);
    }
    ctx.network.addressing == Addressing::Network && range.contains(&target)
}
