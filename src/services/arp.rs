//! ARP (RFC 826, probes and announcements RFC 5227): the switch answers for the gateway, for the address of metadata (which
//! many guests have on link) and, with default addressing, for every address of the network, always with the router's MAC
//! address (SEMANTICS AR1, AR2).
//!
//! `guard` has checked that sender MAC and address are the port's (AR3). Nothing is learned from what guests say.

use hostweave_switch::MacAddr;
use hostweave_switch::packet::Packet;
use hostweave_switch::payload::Segment;
use hostweave_switch::stage::{DropReason, Verdict};
use hostweave_switch::tables::{AddressKey, Addressing, METADATA_V4};
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
    if target == gateway || target == METADATA_V4 {
        return true;
    }
    if message.is_probe() {
        // RFC 5227 §2.1.1: an answer to a probe means that the address is in use.
        let owner = ctx.tables.owner(AddressKey::v4(ctx.port.network, target));
        return owner.is_some_and(|owner| owner != ctx.port.id);
    }
    ctx.network.addressing == Addressing::Network && range.contains(&target)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{A_V4, B_V4, FREE_V4, GATEWAY_V4, GUEST_A, World, ethernet};
    use super::*;
    use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol};
    use std::net::Ipv4Addr;

    const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

    fn message(operation: ArpOperation, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
        let repr = ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: EthernetAddress(GUEST_A.0),
            source_protocol_addr: sender,
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: target,
        };
        let mut bytes = [0; 28];
        repr.emit(&mut ArpPacket::new_unchecked(&mut bytes));
        let to = if operation == ArpOperation::Request { MacAddr::BROADCAST } else { MacAddr::ROUTER };
        ethernet(to, EthernetProtocol::Arp, &bytes)
    }

    /// Whether a request is answered; the answer is checked.
    fn answered(world: &World, sender: Ipv4Addr, target: Ipv4Addr) -> bool {
        let outcome = world.ask(&message(ArpOperation::Request, sender, target));
        if outcome.verdict == Verdict::Drop(DropReason::NeighborNoAnswer) {
            return false;
        }
        let frame = outcome.reply();
        let frame = EthernetFrame::new_checked(&frame).unwrap();
        assert_eq!(frame.dst_addr().0, GUEST_A.0);
        let reply = ArpRepr::parse(&ArpPacket::new_checked(frame.payload()).unwrap()).unwrap();
        let expected = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr: EthernetAddress(MacAddr::ROUTER.0),
            source_protocol_addr: target,
            target_hardware_addr: EthernetAddress(GUEST_A.0),
            target_protocol_addr: sender,
        };
        assert_eq!(reply, expected);
        true
    }

    #[test]
    fn the_switch_answers_for_what_ar1_and_ar2_say() {
        let mut world = World::new();
        let outside = Ipv4Addr::new(198, 51, 100, 7);
        for (addressing, sender, target, expected) in [
            (Addressing::Network, A_V4, GATEWAY_V4, true),
            (Addressing::Network, A_V4, B_V4, true),
            (Addressing::Network, A_V4, FREE_V4, true),
            (Addressing::Network, A_V4, outside, false),
            (Addressing::Host, A_V4, GATEWAY_V4, true),
            (Addressing::Host, A_V4, B_V4, false),
            // Metadata, also for a guest that is about to take that address for itself (RFC 3927).
            (Addressing::Network, A_V4, METADATA_V4, true),
            (Addressing::Host, A_V4, METADATA_V4, true),
            (Addressing::Network, NOBODY, METADATA_V4, true),
            (Addressing::Network, A_V4, Ipv4Addr::new(169, 254, 169, 253), false),
            // Announcement of the own address, probe for it, probes for others'.
            (Addressing::Network, A_V4, A_V4, false),
            (Addressing::Network, NOBODY, A_V4, false),
            (Addressing::Network, NOBODY, B_V4, true),
            (Addressing::Network, NOBODY, GATEWAY_V4, true),
            (Addressing::Network, NOBODY, FREE_V4, false),
            (Addressing::Host, NOBODY, B_V4, true),
        ] {
            world.network.addressing = addressing;
            assert_eq!(answered(&world, sender, target), expected, "{addressing:?} {sender} {target}");
        }
        world.network.v4 = None;
        assert!(!answered(&world, A_V4, GATEWAY_V4));
    }

    #[test]
    fn replies_and_lies_end_here() {
        let world = World::new();
        let gratuitous = world.ask(&message(ArpOperation::Reply, A_V4, A_V4));
        assert_eq!(gratuitous.verdict, Verdict::Drop(DropReason::NeighborNoAnswer));
        let spoofed = world.ask(&message(ArpOperation::Request, B_V4, GATEWAY_V4));
        assert_eq!(spoofed.verdict, Verdict::Drop(DropReason::SpoofedArp));
    }
}
