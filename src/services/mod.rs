//! What the switch answers itself.
//!
//! [`local`] is the stage that needs no state: ARP, neighbour discovery, router solicitations, DHCPv4, DHCPv6 and echo
//! requests to the gateway and to Services are answered on the worker, from the tables alone. Everything else of ours listens behind
//! the internal port of each network ([`internal`]), through tokio streams ([`sockets`]).

mod arp;
mod datagram;
mod dhcp4;
mod dhcp6;
pub mod dns;
pub mod external_dns;
pub mod health;
#[cfg(test)]
mod hostile_tests;
pub mod internal;
#[cfg(test)]
mod lab;
pub mod metadata;
pub mod mld;
mod ndp;
mod ping;
mod search;
#[cfg(test)]
mod socket_tests;
pub mod sockets;
mod stack;
#[cfg(test)]
mod testing;
pub mod uplink;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hostweave_nat::service::Services;
use hostweave_switch::packet::{L3, Meta, Packet};
use hostweave_switch::payload::Segment;
use hostweave_switch::stage::{DropReason, Verdict};
use hostweave_switch::tables::{Network, Owned, Port, PortKind, Tables};
use hostweave_switch::wire::icmpv6::{self, kind};
use hostweave_switch::wire::proto::{
    ICMPV4 as PROTO_ICMP, ICMPV6 as PROTO_ICMPV6, IGMP as PROTO_IGMP, TCP as PROTO_TCP, UDP as PROTO_UDP,
};
use hostweave_switch::{MacAddr, wire};

pub use ndp::{ALL_NODES, MULTICAST_ALL_NODES, router_advertisement};

/// What the answer depends on.
#[derive(Clone, Copy)]
pub struct LocalContext<'a> {
    /// The published tables.
    pub tables: &'a Tables,
    /// The port that sent the packet.
    pub port: &'a Port,
    /// Its network.
    pub network: &'a Network,
    /// Addresses of Services.
    pub services: &'a Services,
}

impl LocalContext<'_> {
    /// Whether an address, IPv4-mapped for IPv4, is a Service's that the sender can reach: of its own network, or of the host at
    /// its uplink.
    fn is_service(&self, address: u128) -> bool {
        let uplink = || self.tables.uplink.as_ref().is_some_and(|up| up.owned.get(&address) == Some(&Owned::Service));
        self.services.has_address(self.network.vni, address) || uplink()
    }
}

/// What control must hear of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LocalNote {
    /// The guest is about to use an address of its network that nobody owns (SEMANTICS RA5).
    AddressSeen(Ipv6Addr),
    /// The guest found its address in use and declined it.
    AddressDeclined(Ipv4Addr),
    /// A lease was confirmed to the guest.
    LeaseConfirmed(IpAddr),
    /// At the uplink somebody told which link address a router has.
    RouterHeard {
        /// The router's address.
        address: IpAddr,
        /// The link address.
        mac: MacAddr,
        /// Whether it may be an answer.
        answer: bool,
        /// Whether packets go to another one now.
        contradicts: bool,
    },
    /// The same of another neighbour.
    NeighborHeard {
        /// Its address.
        address: IpAddr,
        /// The link address.
        mac: MacAddr,
        /// Whether it may be an answer.
        answer: bool,
    },
    /// At the uplink somebody else claims an address of ours.
    AddressConflict(IpAddr, MacAddr),
    /// At the uplink a router asks who listens to which groups.
    ListenersAsked(mld::Query),
}

/// Answers a packet that `parse` and `guard` let pass, if it is for one of the stateless services. `Continue` when it
/// is not; `Reply` leaves the complete answer in the packet.
#[inline]
pub fn local(
    ctx: &LocalContext<'_>,
    packet: &mut Packet,
    arena: &mut [Segment],
    note: &mut Option<LocalNote>,
) -> Verdict {
    // Nearly all packets are TCP or UDP to somewhere else and leave here.
    if is_for_others(packet) { Verdict::Continue } else { service(ctx, packet, arena, note) }
}

/// Whether no service here has anything to do with a packet: TCP, or UDP that is not to a DHCP server.
#[inline]
pub fn is_for_others(packet: &Packet) -> bool {
    let meta = &packet.meta;
    let dhcp = if meta.l3 == L3::V4 { wire::dhcp4::SERVER_PORT } else { wire::dhcp6::SERVER_PORT };
    meta.l3 != L3::Arp && (meta.proto == PROTO_TCP || (meta.proto == PROTO_UDP && meta.dst_port != dhcp))
}

/// Whether what is asked is ARP or neighbour discovery.
pub fn is_of_neighbours(meta: &Meta) -> bool {
    meta.l3 == L3::Arp || meta.proto == PROTO_ICMPV6 && icmpv6::is_ndp((meta.dst_port >> 8) as u8)
}

#[cold]
fn service(
    ctx: &LocalContext<'_>,
    packet: &mut Packet,
    arena: &mut [Segment],
    note: &mut Option<LocalNote>,
) -> Verdict {
    let on = ctx.tables.local;
    if ctx.port.kind == PortKind::Uplink {
        return uplink::answer(ctx, packet, arena, note);
    }
    match (packet.meta.l3, packet.meta.proto) {
        (L3::Arp, _) if !on.arp => Verdict::Drop(DropReason::LocalDisabled),
        (L3::Arp, _) => arp::answer(ctx, packet, arena),
        (L3::V4, PROTO_ICMP) if on.ping => ping::answer_v4(ctx, packet),
        (L3::V4, PROTO_IGMP) => Verdict::Drop(DropReason::GroupMembership),
        (L3::V4, PROTO_UDP) if on.dhcp && !packet.meta.fragment => dhcp4::answer(ctx, packet, arena, note),
        (L3::V6, PROTO_ICMPV6) => icmpv6(ctx, packet, arena, note),
        (L3::V6, PROTO_UDP) if on.dhcp && !packet.meta.fragment => dhcp6::answer(ctx, packet, arena, note),
        _ => Verdict::Continue,
    }
}

fn icmpv6(ctx: &LocalContext<'_>, packet: &mut Packet, arena: &mut [Segment], note: &mut Option<LocalNote>) -> Verdict {
    let on = ctx.tables.local;
    match packet.head().get(usize::from(packet.meta.layers.l4)).copied() {
        _ if packet.meta.later_fragment && on.ping => ping::answer_v6(ctx, packet),
        _ if packet.meta.later_fragment => Verdict::Continue,
        Some(kind::ECHO_REQUEST) if on.ping => ping::answer_v6(ctx, packet),
        Some(kind::ECHO_REQUEST) => Verdict::Continue,
        Some(kind::ROUTER_SOLICIT) if !on.ra => Verdict::Drop(DropReason::LocalDisabled),
        Some(kind::NEIGHBOR_SOLICIT) if !on.nd => Verdict::Drop(DropReason::LocalDisabled),
        Some(kind) if icmpv6::is_mld(kind) => Verdict::Drop(DropReason::GroupMembership),
        Some(kind) if icmpv6::is_ndp(kind) => ndp::answer(ctx, packet, arena, note),
        _ => Verdict::Continue,
    }
}

/// What a service decided: a finished answer in the packet, or why there is none.
fn verdict(result: Result<(), DropReason>) -> Verdict {
    match result {
        Ok(()) => Verdict::Reply,
        Err(reason) => Verdict::Drop(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{A_V4, A_V6, B_V4, GATEWAY_V4, World, ipv4, ipv6};
    use super::*;
    use hostweave_switch::MacAddr;
    use smoltcp::wire::IpProtocol;

    #[test]
    fn traffic_that_is_not_for_the_switch_goes_on_untouched() {
        let world = World::new();
        let mut tcp = [0; 20];
        tcp[12] = 0x50;
        let udp = [0x10, 0, 0, 53, 0, 8, 0, 0];
        let frames = [
            ipv4(MacAddr::ROUTER, A_V4, B_V4, IpProtocol::Tcp, &tcp),
            ipv4(MacAddr::ROUTER, A_V4, GATEWAY_V4, IpProtocol::Udp, &udp),
            ipv6(MacAddr::ROUTER, A_V6, testing::GATEWAY_V6, IpProtocol::Tcp, 64, &tcp),
            // An echo request to another guest.
            ipv4(MacAddr::ROUTER, A_V4, B_V4, IpProtocol::Icmp, &[8, 0, 0xf7, 0xff, 0, 0, 0, 0]),
            // DHCP to a server in another guest.
            testing::udp(A_V4.into(), 68, B_V4.into(), 67, &[0; 240]),
        ];
        for frame in frames {
            let mut frame = frame;
            // `testing::udp` sends everything that is not for the gateway to everybody.
            frame[..6].copy_from_slice(&MacAddr::ROUTER.0);
            let outcome = world.ask(&frame);
            assert_eq!((outcome.verdict, outcome.note), (Verdict::Continue, None));
            assert_eq!(outcome.frame, frame);
        }
    }

    #[test]
    fn np34_arp_and_neighbour_discovery_can_be_switched_off() {
        use hostweave_switch::wire::arp::{LEN, Message, Operation};
        use smoltcp::wire::{Icmpv6Repr, NdiscRepr};
        let mut message = [0; LEN];
        Message {
            operation: Operation::Request,
            sender_mac: testing::GUEST_A,
            sender_ip: A_V4,
            target_mac: MacAddr([0; 6]),
            target_ip: GATEWAY_V4,
        }
        .emit(&mut message);
        let arp = testing::ethernet(MacAddr::BROADCAST, smoltcp::wire::EthernetProtocol::Arp, &message);
        let node: Ipv6Addr = "ff02::1:ff00:1".parse().unwrap();
        let message = NdiscRepr::NeighborSolicit { target_addr: testing::GATEWAY_V6, lladdr: None };
        let nd = testing::icmpv6(A_V6, node, 255, &Icmpv6Repr::Ndisc(message));
        let message = NdiscRepr::RouterSolicit { lladdr: None };
        let rs = testing::icmpv6(A_V6, "ff02::2".parse().unwrap(), 255, &Icmpv6Repr::Ndisc(message));
        let mut world = World::new();
        for (arp_on, nd_on, ra_on) in
            [(true, true, true), (false, true, true), (true, false, true), (true, true, false)]
        {
            (world.tables.local.arp, world.tables.local.nd, world.tables.local.ra) = (arp_on, nd_on, ra_on);
            for (frame, on) in [(&arp, arp_on), (&nd, nd_on), (&rs, ra_on)] {
                let expected = if on { Verdict::Reply } else { Verdict::Drop(DropReason::LocalDisabled) };
                assert_eq!(world.ask(frame).verdict, expected, "{arp_on} {nd_on} {ra_on}");
            }
        }
    }

    #[test]
    fn group_membership_is_accepted() {
        let world = World::new();
        let group: Ipv4Addr = "224.0.0.251".parse().unwrap();
        let igmp =
            ipv4(MacAddr([1, 0, 0x5e, 0, 0, 0xfb]), A_V4, group, IpProtocol::Igmp, &[0x16, 0, 9, 4, 224, 0, 0, 251]);
        assert_eq!(world.ask(&igmp).verdict, Verdict::Drop(DropReason::GroupMembership));
        let routers: Ipv6Addr = "ff02::16".parse().unwrap();
        for source in [Ipv6Addr::UNSPECIFIED, testing::A_LINK_LOCAL] {
            let report = ipv6(
                testing::link_address(routers),
                source,
                routers,
                IpProtocol::Icmpv6,
                1,
                &[143, 0, 0, 0, 0, 0, 0, 0],
            );
            assert_eq!(world.ask(&report).verdict, Verdict::Drop(DropReason::GroupMembership));
        }
    }
}
