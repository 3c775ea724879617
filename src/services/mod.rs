//! What the switch answers itself.
//!
//! [`local`] is the stage that needs no state: ARP, neighbour discovery, router solicitations, DHCPv4, DHCPv6 and echo
//! requests to the gateway are answered on the worker, from the tables alone. Everything else of ours listens behind
//! the internal port of each network ([`internal`]), through tokio streams ([`sockets`]).

mod arp;
mod datagram;
mod dhcp4;
mod dhcp6;
pub mod internal;
mod ndp;
mod ping;
pub mod sockets;
mod stack;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hostweave_switch::packet::{L3, Packet};
use hostweave_switch::payload::Segment;
use hostweave_switch::stage::{DropReason, Verdict};
use hostweave_switch::tables::{Network, Port, Tables};
use hostweave_switch::wire;

pub use ndp::router_advertisement;

/// What the answer depends on.
#[derive(Clone, Copy)]
pub struct LocalContext<'a> {
    /// The published tables.
    pub tables: &'a Tables,
    /// The port that sent the packet.
    pub port: &'a Port,
    /// Its network.
    pub network: &'a Network,
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
    match (packet.meta.l3, packet.meta.proto) {
        (L3::V4, PROTO_TCP) | (L3::V6, PROTO_TCP) => Verdict::Continue,
        (L3::V4, PROTO_UDP) if packet.meta.dst_port != wire::dhcp4::SERVER_PORT => Verdict::Continue,
        (L3::V6, PROTO_UDP) if packet.meta.dst_port != wire::dhcp6::SERVER_PORT => Verdict::Continue,
        _ => service(ctx, packet, arena, note),
    }
}

#[cold]
fn service(
    ctx: &LocalContext<'_>,
    packet: &mut Packet,
    arena: &mut [Segment],
    note: &mut Option<LocalNote>,
) -> Verdict {
    match (packet.meta.l3, packet.meta.proto) {
        (L3::Arp, _) => arp::answer(ctx, packet, arena),
        (L3::V4, PROTO_ICMP) => ping::answer_v4(ctx, packet),
        (L3::V4, PROTO_IGMP) => Verdict::Drop(DropReason::GroupMembership),
        (L3::V4, PROTO_UDP) if !packet.meta.fragment => dhcp4::answer(ctx, packet, arena, note),
        (L3::V6, PROTO_ICMPV6) => icmpv6(ctx, packet, arena, note),
        (L3::V6, PROTO_UDP) if !packet.meta.fragment => dhcp6::answer(ctx, packet, arena, note),
        _ => Verdict::Continue,
    }
}

fn icmpv6(ctx: &LocalContext<'_>, packet: &mut Packet, arena: &mut [Segment], note: &mut Option<LocalNote>) -> Verdict {
    let kind = packet.head().get(usize::from(packet.meta.layers.l4)).copied();
    match kind {
        _ if packet.meta.later_fragment => ping::answer_v6(ctx, packet),
        Some(ping::ECHO_REQUEST_V6) => ping::answer_v6(ctx, packet),
        // MLD query, reports and done (RFC 2710, RFC 3810).
        Some(130..=132 | 143) => Verdict::Drop(DropReason::GroupMembership),
        Some(ndp::ROUTER_SOLICITATION..=ndp::REDIRECT) => ndp::answer(ctx, packet, arena, note),
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

const PROTO_ICMP: u8 = 1;
const PROTO_IGMP: u8 = 2;
const PROTO_TCP: u8 = 6;
const PROTO_UDP: u8 = 17;
const PROTO_ICMPV6: u8 = 58;
