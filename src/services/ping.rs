//! Echo requests to the gateway and to Services (RFC 792, RFC 4443 §4): the request becomes the reply in place.
//!
//! Addresses are swapped, type and hop count rewritten, both checksums updated incrementally (RFC 1624). The payload
//! is not touched and never copied here, whatever its length. A fragmented request is answered fragment by fragment:
//! the fragments of the reply are those of the request with the addresses swapped, only the first has a header to
//! change, and the sender puts them together by the identification that it chose itself.

use std::net::{Ipv4Addr, Ipv6Addr};

use hostweave_switch::MacAddr;
use hostweave_switch::packet::{Offload, Packet, virtio_net};
use hostweave_switch::stage::{DropReason, Verdict};
use hostweave_switch::tables::{METADATA_V4, METADATA_V6, ROUTER_LINK_LOCAL, mapped};
use hostweave_switch::wire::{checksum, icmpv4, icmpv6, ipv6};

use super::LocalContext;

/// Answers an ICMP packet over IPv4 if it is an echo request, or a later fragment of one, to the gateway, metadata or a Service.
pub fn answer_v4(ctx: &LocalContext<'_>, packet: &mut Packet) -> Verdict {
    let gateway = ctx.network.v4.map(|(_, gateway)| gateway);
    let is_service = |address: Ipv4Addr| ctx.is_service(mapped(address.into()));
    reflect_v4(packet, MacAddr::ROUTER, |address| {
        Some(address) == gateway || address == METADATA_V4 || is_service(address)
    })
}

/// Answers one to any of the addresses that are `ours`, behind the link address `mac`.
pub fn reflect_v4(packet: &mut Packet, mac: MacAddr, ours: impl FnOnce(Ipv4Addr) -> bool) -> Verdict {
    let (l3, l4) = (usize::from(packet.meta.layers.l3), usize::from(packet.meta.layers.l4));
    if !is_request(packet, l4, icmpv4::kind::ECHO_REQUEST) {
        return Verdict::Continue;
    }
    let head = packet.head_mut();
    let Some((ethernet, header)) = head.get_mut(..l4).and_then(|headers| headers.split_at_mut_checked(l3)) else {
        return Verdict::Continue;
    };
    let (Some(ethernet), Some(header)) = (ethernet.first_chunk_mut::<14>(), header.first_chunk_mut::<20>()) else {
        return Verdict::Continue;
    };
    let destination = Ipv4Addr::new(header[16], header[17], header[18], header[19]);
    let source = Ipv4Addr::new(header[12], header[13], header[14], header[15]);
    if ethernet[..6] != mac.0 || !ours(destination) || source.is_unspecified() {
        return Verdict::Continue;
    }
    swap_macs(ethernet);
    let (left, right) = header.split_at_mut(16);
    left[12..16].swap_with_slice(&mut right[..4]);
    let [old_ttl, proto] = [header[8], header[9]];
    header[8] = HOP_LIMIT;
    let old = u16::from_be_bytes([old_ttl, proto]);
    update_checksum(&mut header[10..12], old, u16::from_be_bytes([HOP_LIMIT, proto]));
    finish(packet, l4, icmpv4::kind::ECHO_REQUEST, icmpv4::kind::ECHO_REPLY)
}

/// Answers an ICMPv6 packet if it is an echo request, or a later fragment of one, to the gateway, `fe80::1`, metadata or a Service.
pub fn answer_v6(ctx: &LocalContext<'_>, packet: &mut Packet) -> Verdict {
    let gateway = ctx.network.v6.map(|(_, gateway)| gateway);
    let is_service = |address: Ipv6Addr| ctx.is_service(u128::from(address));
    let ours = |address| {
        Some(address) == gateway || [ROUTER_LINK_LOCAL, METADATA_V6].contains(&address) || is_service(address)
    };
    reflect_v6(packet, MacAddr::ROUTER, ours)
}

/// Answers one to any of the addresses that are `ours`, behind the link address `mac`.
pub fn reflect_v6(packet: &mut Packet, mac: MacAddr, ours: impl FnOnce(Ipv6Addr) -> bool) -> Verdict {
    let (l3, l4) = (usize::from(packet.meta.layers.l3), usize::from(packet.meta.layers.l4));
    if !is_request(packet, l4, icmpv6::kind::ECHO_REQUEST) {
        return Verdict::Continue;
    }
    let head = packet.head_mut();
    let Some((ethernet, header)) = head.get_mut(..l4).and_then(|headers| headers.split_at_mut_checked(l3)) else {
        return Verdict::Continue;
    };
    let plain = header.len() == 40;
    let (Some(ethernet), Some(header)) = (ethernet.first_chunk_mut::<14>(), header.first_chunk_mut::<40>()) else {
        return Verdict::Continue;
    };
    // Only a fragment header may stand between: other extension headers are not ours to reflect.
    let fragment_only = header[6] == ipv6::next_header::FRAGMENT && l4 == l3 + 48;
    let octets = |at: usize, header: &[u8; 40]| Ipv6Addr::from(std::array::from_fn(|index| header[at + index]));
    let (source, destination) = (octets(8, header), octets(24, header));
    let whole = plain || fragment_only;
    if ethernet[..6] != mac.0 || !whole || source.is_unspecified() || !ours(destination) {
        return Verdict::Continue;
    }
    swap_macs(ethernet);
    header[7] = HOP_LIMIT;
    let (left, right) = header.split_at_mut(24);
    left[8..].swap_with_slice(right);
    finish(packet, l4, icmpv6::kind::ECHO_REQUEST, icmpv6::kind::ECHO_REPLY)
}

/// A later fragment has no type; to the gateway, it can only belong to an echo request that gets an answer, or to
/// nothing.
fn is_request(packet: &Packet, l4: usize, request: u8) -> bool {
    packet.meta.later_fragment || packet.head().get(l4..l4 + 2) == Some(&[request, 0])
}

/// Rewrites the ICMP header. The sum over both addresses (the pseudo-header of ICMPv6) is the same after the swap.
///
/// The caller has rewritten the outer headers already: from here the packet is answered or dropped, not passed on.
fn finish(packet: &mut Packet, l4: usize, request: u8, reply: u8) -> Verdict {
    let offload = packet.meta.offload;
    if offload.is_gso() {
        return Verdict::Drop(DropReason::GsoBad);
    }
    let partial = offload.needs_csum();
    let at_icmp = usize::from(offload.csum_start) == l4 && offload.csum_offset == 2;
    if partial && (!at_icmp || packet.meta.fragment) {
        return Verdict::Drop(DropReason::ChecksumBad);
    }
    if !packet.meta.later_fragment {
        let Some(icmp) = packet.head_mut().get_mut(l4..).and_then(|icmp| icmp.first_chunk_mut::<8>()) else {
            return Verdict::Drop(DropReason::L4Malformed);
        };
        icmp[0] = reply;
        // A partial checksum holds the pseudo-header alone; the receiver's side adds the message.
        if !partial {
            update_checksum(&mut icmp[2..4], u16::from(request) << 8, u16::from(reply) << 8);
        }
    }
    packet.meta.offload = if partial {
        Offload { flags: virtio_net::NEEDS_CSUM, csum_start: offload.csum_start, csum_offset: 2, ..Offload::default() }
    } else {
        Offload::default()
    };
    Verdict::Reply
}

/// The sender's is its own: checked by `guard`, or at the uplink whatever it says.
fn swap_macs(ethernet: &mut [u8; 14]) {
    let (to, from) = ethernet.split_at_mut(6);
    to.swap_with_slice(&mut from[..6]);
}

fn update_checksum(field: &mut [u8], old: u16, new: u16) {
    let checksum = checksum::update(u16::from_be_bytes([field[0], field[1]]), old, new);
    field.copy_from_slice(&checksum.to_be_bytes());
}

const HOP_LIMIT: u8 = 64;

#[cfg(test)]
mod tests {
    use super::super::testing::{A_LINK_LOCAL, A_V4, A_V6, GATEWAY_V4, GATEWAY_V6, GUEST_A, World, icmpv6, ipv4, ipv6};
    use super::*;
    use hostweave_nat::service::{FrontendSpec, Refusal, Services};
    use hostweave_switch::tables::Owned;
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{
        EthernetFrame, Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv4Packet, Ipv4Repr, Ipv6Packet,
    };

    fn request_v4(data: &[u8]) -> Vec<u8> {
        let repr = Icmpv4Repr::EchoRequest { ident: 7, seq_no: 9, data };
        let mut bytes = vec![0; repr.buffer_len()];
        repr.emit(&mut Icmpv4Packet::new_unchecked(&mut bytes), &ChecksumCapabilities::default());
        bytes
    }

    #[test]
    fn the_gateway_answers_over_ipv4_whatever_the_length() {
        for len in [0, 1, 56, 1400, 9000] {
            let data: Vec<u8> = (0..len).map(|index| index as u8).collect();
            let frame = ipv4(MacAddr::ROUTER, A_V4, GATEWAY_V4, IpProtocol::Icmp, &request_v4(&data));
            let reply = World::new().ask(&frame).reply();
            let frame = EthernetFrame::new_checked(&reply).unwrap();
            assert_eq!(frame.dst_addr().0, GUEST_A.0);
            let packet = Ipv4Packet::new_checked(frame.payload()).unwrap();
            let header = Ipv4Repr::parse(&packet, &ChecksumCapabilities::default()).unwrap();
            assert_eq!((header.src_addr, header.dst_addr, header.hop_limit), (GATEWAY_V4, A_V4, 64));
            let icmp = Icmpv4Packet::new_checked(packet.payload()).unwrap();
            let icmp = Icmpv4Repr::parse(&icmp, &ChecksumCapabilities::default()).unwrap();
            assert_eq!(icmp, Icmpv4Repr::EchoReply { ident: 7, seq_no: 9, data: &data });
        }
    }

    #[test]
    fn the_gateway_and_the_router_answer_over_ipv6() {
        for (from, to) in [(A_V6, GATEWAY_V6), (A_LINK_LOCAL, ROUTER_LINK_LOCAL), (A_V6, ROUTER_LINK_LOCAL)] {
            let data = [0x5a; 300];
            let frame = icmpv6(from, to, 33, &Icmpv6Repr::EchoRequest { ident: 7, seq_no: 9, data: &data });
            let reply = World::new().ask(&frame).reply();
            let frame = EthernetFrame::new_checked(&reply).unwrap();
            let packet = Ipv6Packet::new_checked(frame.payload()).unwrap();
            assert_eq!((packet.src_addr(), packet.dst_addr(), packet.hop_limit()), (to, from, 64));
            let icmp = Icmpv6Packet::new_checked(packet.payload()).unwrap();
            let icmp = Icmpv6Repr::parse(&to, &from, &icmp, &ChecksumCapabilities::default()).unwrap();
            assert_eq!(icmp, Icmpv6Repr::EchoReply { ident: 7, seq_no: 9, data: &data });
        }
    }

    /// A request of 3000 octets in fragments of 1480: put together, the reply is right.
    #[test]
    fn services_answer_in_their_own_network_and_public_ones_in_each() {
        let (v4, v6): (Ipv4Addr, Ipv6Addr) = ("10.96.0.1".parse().unwrap(), "2001:db8:96::1".parse().unwrap());
        let requests = [
            ipv4(MacAddr::ROUTER, A_V4, v4, IpProtocol::Icmp, &request_v4(&[1, 2, 3])),
            icmpv6(A_V6, v6, 33, &Icmpv6Repr::EchoRequest { ident: 7, seq_no: 9, data: &[1, 2, 3] }),
        ];
        let mapped = [u128::from(v4.to_ipv6_mapped()), u128::from(v6)];
        let frontend = |scope, address| FrontendSpec {
            service: "test/web".into(),
            port_name: "".into(),
            scope,
            address,
            proto: 6,
            l4: 80..=80,
            vni: scope,
            sources: [].into(),
            affinity_s: None,
            backends: [].into(),
            refusal: Refusal::Reject,
            begun: Default::default(),
        };
        for (request, address) in requests.iter().zip(mapped) {
            let mut world = World::new();
            assert_eq!(world.ask(request).verdict, Verdict::Continue);
            let vni = world.network.vni;
            world.services = Services::compile(&[frontend(vni + 1, address)], None);
            assert_eq!(world.ask(request).verdict, Verdict::Continue, "of another network");
            world.services = Services::compile(&[frontend(vni, address)], None);
            assert_eq!(world.ask(request).reply().len(), request.len(), "without backends too");
            world.services = Services::default();
            world.tables.uplink = Some(super::super::testing::uplink([(address, Owned::Service)]).into());
            assert_eq!(world.ask(request).reply().len(), request.len());
            world.tables.uplink = Some(super::super::testing::uplink([(address, Owned::Nat)]).into());
            assert_eq!(world.ask(request).verdict, Verdict::Continue);
        }
    }

    #[test]
    fn fragments_are_answered_one_by_one() {
        let data = [0xc3; 2992];
        let whole = request_v4(&data);
        let mut reassembled = Vec::new();
        for (index, part) in whole.chunks(1480).enumerate() {
            let mut frame = ipv4(MacAddr::ROUTER, A_V4, GATEWAY_V4, IpProtocol::Icmp, part);
            let mut packet = Ipv4Packet::new_unchecked(&mut frame[14..]);
            packet.set_ident(77);
            packet.set_dont_frag(false);
            packet.set_more_frags((index + 1) * 1480 < whole.len());
            packet.set_frag_offset((index * 1480) as u16);
            packet.fill_checksum();
            let reply = World::new().ask(&frame).reply();
            let packet = Ipv4Packet::new_checked(&reply[14..]).unwrap();
            assert!(packet.verify_checksum());
            assert_eq!((packet.ident(), usize::from(packet.frag_offset())), (77, index * 1480));
            reassembled.extend_from_slice(packet.payload());
        }
        let icmp = Icmpv4Packet::new_checked(&reassembled[..]).unwrap();
        let icmp = Icmpv4Repr::parse(&icmp, &ChecksumCapabilities::default()).unwrap();
        assert_eq!(icmp, Icmpv4Repr::EchoReply { ident: 7, seq_no: 9, data: &data });
    }

    #[test]
    fn a_partial_checksum_stays_partial() {
        let mut request = request_v4(&[1, 2, 3, 4]);
        request[2..4].fill(0);
        let frame = ipv4(MacAddr::ROUTER, A_V4, GATEWAY_V4, IpProtocol::Icmp, &request);
        let offload = Offload { flags: virtio_net::NEEDS_CSUM, csum_start: 34, csum_offset: 2, ..Offload::default() };
        let outcome = World::new().ask_with(&frame, offload);
        assert_eq!((outcome.verdict, outcome.offload), (Verdict::Reply, offload));
        assert_eq!(outcome.frame[34..38], [0, 0, 0, 0]);
    }

    #[test]
    fn other_messages_to_the_gateway_go_on() {
        let world = World::new();
        let unreachable = ipv4(MacAddr::ROUTER, A_V4, GATEWAY_V4, IpProtocol::Icmp, &[3, 3, 0xfc, 0xfc, 0, 0, 0, 0]);
        let outcome = world.ask(&unreachable);
        assert_eq!((outcome.verdict, outcome.frame), (Verdict::Continue, unreachable));
        let not_to_the_router = ipv4(MacAddr::BROADCAST, A_V4, GATEWAY_V4, IpProtocol::Icmp, &request_v4(&[]));
        assert_eq!(world.ask(&not_to_the_router).verdict, Verdict::Continue);
        let destination_options = ipv6(
            MacAddr::ROUTER,
            A_V6,
            GATEWAY_V6,
            IpProtocol::Unknown(60),
            64,
            &[58, 0, 1, 4, 0, 0, 0, 0, 128, 0, 0, 0, 0, 0, 0, 0],
        );
        assert_eq!(world.ask(&destination_options).verdict, Verdict::Continue);
    }
}
