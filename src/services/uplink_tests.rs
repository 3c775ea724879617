//! Tests of [`super`]: what neighbours at the uplink say, truthful and not. smoltcp writes and reads the messages.

use std::sync::Arc;

use hostweave_switch::limits::HEAD_FIRST;
use hostweave_switch::on_link::{Neighbor, OnLink};
use hostweave_switch::packet::{Burst, Meta};
use hostweave_switch::parse;
use hostweave_switch::tables::{NetworkId, Port, PortId, PortKind, Tables};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, Icmpv4Packet,
    Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr, NdiscNeighborFlags,
    NdiscRepr,
};

use super::*;
use crate::services::testing::World;

const OURS: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x77]);
const ROUTER_MAC: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x01]);
const EVIL: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x66]);
const HOST_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
const NAT_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
const SERVICE_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 8);
const ROUTER_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const OTHER_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 99);
const HOST_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, 2);
const NAT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, 7);
const SERVICE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, 8);
const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xa);
const OTHER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, 0x99);

/// The end of a frame: what it became, as far as it was answered, and the note.
type End = (Result<Vec<u8>, Verdict>, Option<LocalNote>);

/// An uplink whose routers are known, or not.
fn ask_knowing(known: Option<MacAddr>, frame: &[u8]) -> End {
    ask_with(known, &[], frame)
}

/// One some of whose addresses are not known to be its own. What is noted about a claim of these is marked where it has no budget, too.
fn ask_with(known: Option<MacAddr>, unsettled: &[u128], frame: &[u8]) -> End {
    ask_at(known, unsettled, OnLink::default(), frame)
}

/// One with these neighbours.
fn ask_on_link(on_link: OnLink, frame: &[u8]) -> End {
    ask_at(Some(ROUTER_MAC), &[], on_link, frame)
}

fn ask_at(known: Option<MacAddr>, unsettled: &[u128], on_link: OnLink, frame: &[u8]) -> End {
    let mut tables = Tables::default();
    let owned = [
        (tables::mapped(HOST_V4.into()), Owned::Host),
        (tables::mapped(NAT_V4.into()), Owned::Nat),
        (tables::mapped(SERVICE_V4.into()), Owned::Service),
        (u128::from(SERVICE_V6), Owned::Service),
        (u128::from(HOST_V6), Owned::Host),
        (u128::from(NAT_V6), Owned::Nat),
    ];
    tables.uplink = Some(Arc::new(Uplink {
        v4: vec![NextHop { address: ROUTER_V4.into(), mac: known }],
        v6: vec![NextHop { address: ROUTER_V6.into(), mac: known }],
        on_link,
        owned: owned.into_iter().collect(),
        unsettled: unsettled.iter().map(|address| (*address, Default::default())).collect(),
        ..Uplink::bare(PortId(9), NetworkId(3), OURS)
    }));
    let world = World::new();
    let port = Port { id: PortId(9), kind: PortKind::Uplink, mac: OURS, ..world.port };
    let ctx = LocalContext { tables: &tables, port: &port, network: &world.network, services: &world.services };
    let mut note = None;
    let flags = tables.uplink.as_ref().unwrap().unsettled.clone();
    let mut burst = Burst::new();
    let answered = burst.with_frame(Meta::default(), frame, HEAD_FIRST, |packet, arena| {
        match parse::parse(packet, arena) {
            Verdict::Continue => {}
            ended => return Err(ended),
        }
        match crate::services::local(&ctx, packet, arena, &mut note) {
            Verdict::Reply => {
                let mut frame = vec![0; packet.len()];
                packet.copy_frame(arena, &mut frame).unwrap();
                Ok(frame)
            }
            ended => Err(ended),
        }
    });
    for (address, claimed) in &flags {
        let by = match note {
            Some(LocalNote::AddressConflict(at, mac)) if tables::mapped(at) == *address => Some(mac),
            _ => None,
        };
        assert_eq!(claimed.take(), by, "{address:x}");
    }
    (answered, note)
}

fn ask(frame: &[u8]) -> End {
    ask_knowing(Some(ROUTER_MAC), frame)
}

const NO_ANSWER: Result<Vec<u8>, Verdict> = Err(Verdict::Drop(DropReason::NeighborNoAnswer));

fn ethernet(from: MacAddr, to: MacAddr, ether_type: EthernetProtocol, payload: &[u8]) -> Vec<u8> {
    let repr =
        EthernetRepr { src_addr: EthernetAddress(from.0), dst_addr: EthernetAddress(to.0), ethertype: ether_type };
    let mut frame = vec![0; 14 + payload.len()];
    repr.emit(&mut EthernetFrame::new_unchecked(&mut frame));
    frame[14..].copy_from_slice(payload);
    frame
}

fn arp_message(operation: ArpOperation, from: (MacAddr, Ipv4Addr), to: (MacAddr, Ipv4Addr)) -> ArpRepr {
    ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: EthernetAddress(from.0.0),
        source_protocol_addr: from.1,
        target_hardware_addr: EthernetAddress(to.0.0),
        target_protocol_addr: to.1,
    }
}

fn arp_octets(link: MacAddr, repr: &ArpRepr) -> Vec<u8> {
    let ArpRepr::EthernetIpv4 { source_hardware_addr, .. } = repr else { panic!("{repr:?}") };
    let mut octets = [0; 28];
    repr.emit(&mut ArpPacket::new_unchecked(&mut octets));
    ethernet(MacAddr(source_hardware_addr.0), link, EthernetProtocol::Arp, &octets)
}

fn request(from: (MacAddr, Ipv4Addr), target: Ipv4Addr) -> Vec<u8> {
    arp_octets(MacAddr::BROADCAST, &arp_message(ArpOperation::Request, from, (MacAddr::default(), target)))
}

fn reply(link: MacAddr, from: (MacAddr, Ipv4Addr), to: (MacAddr, Ipv4Addr)) -> Vec<u8> {
    arp_octets(link, &arp_message(ArpOperation::Reply, from, to))
}

fn read_arp(frame: &[u8]) -> (MacAddr, MacAddr, ArpRepr) {
    let frame = EthernetFrame::new_checked(frame).unwrap();
    assert_eq!(frame.ethertype(), EthernetProtocol::Arp);
    let repr = ArpRepr::parse(&ArpPacket::new_checked(frame.payload()).unwrap()).unwrap();
    (MacAddr(frame.src_addr().0), MacAddr(frame.dst_addr().0), repr)
}

fn icmp6(link: (MacAddr, MacAddr), from: Ipv6Addr, to: Ipv6Addr, hops: u8, repr: &Icmpv6Repr<'_>) -> Vec<u8> {
    let header = Ipv6Repr {
        src_addr: from,
        dst_addr: to,
        next_header: IpProtocol::Icmpv6,
        payload_len: repr.buffer_len(),
        hop_limit: hops,
    };
    let mut octets = vec![0; 40 + repr.buffer_len()];
    header.emit(&mut Ipv6Packet::new_unchecked(&mut octets));
    repr.emit(&from, &to, &mut Icmpv6Packet::new_unchecked(&mut octets[40..]), &ChecksumCapabilities::default());
    ethernet(link.0, link.1, EthernetProtocol::Ipv6, &octets)
}

fn solicit(from: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let lladdr = (!from.is_unspecified()).then(|| EthernetAddress(ROUTER_MAC.0).into());
    let message = Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { target_addr: target, lladdr });
    let group = ipv6::solicited_node(target);
    icmp6((ROUTER_MAC, group_mac(group)), from, group, 255, &message)
}

fn advert(link: (MacAddr, MacAddr), from: Ipv6Addr, to: Ipv6Addr, target: Ipv6Addr, solicited: bool) -> Vec<u8> {
    let flags = if solicited { NdiscNeighborFlags::SOLICITED } else { NdiscNeighborFlags::OVERRIDE };
    let lladdr = Some(EthernetAddress(link.0.0).into());
    icmp6(link, from, to, 255, &Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert { flags, target_addr: target, lladdr }))
}

/// Link addresses, IP addresses and message of a frame whose checksum is right.
fn read_nd(frame: &[u8]) -> (MacAddr, MacAddr, Ipv6Addr, Ipv6Addr, NdiscRepr<'_>) {
    let frame = EthernetFrame::new_unchecked(frame);
    let packet = Ipv6Packet::new_checked(frame.payload()).unwrap();
    assert_eq!(packet.hop_limit(), 255);
    let (src, dst) = (packet.src_addr(), packet.dst_addr());
    let icmp = Icmpv6Packet::new_checked(packet.payload()).unwrap();
    assert!(icmp.verify_checksum(&src, &dst));
    (MacAddr(frame.src_addr().0), MacAddr(frame.dst_addr().0), src, dst, NdiscRepr::parse(&icmp).unwrap())
}

#[test]
fn arp_is_answered_for_exactly_what_is_owned() {
    for target in [HOST_V4, NAT_V4] {
        for sender in [ROUTER_V4, OTHER_V4, Ipv4Addr::UNSPECIFIED] {
            let (frame, note) = ask(&request((ROUTER_MAC, sender), target));
            let frame = frame.unwrap();
            let wanted = arp_message(ArpOperation::Reply, (OURS, target), (ROUTER_MAC, sender));
            assert_eq!(read_arp(&frame), (OURS, ROUTER_MAC, wanted));
            assert_eq!(note, None);
        }
    }
    for target in [ROUTER_V4, OTHER_V4, Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST] {
        assert_eq!(ask(&request((EVIL, OTHER_V4), target)), (NO_ANSWER, None), "{target}");
    }
}

#[test]
fn only_an_answer_to_us_is_an_answer() {
    let heard =
        |mac, answer| Some(LocalNote::RouterHeard { address: ROUTER_V4.into(), mac, answer, contradicts: mac == EVIL });
    let router = (ROUTER_MAC, ROUTER_V4);
    assert_eq!(ask(&reply(OURS, router, (OURS, HOST_V4))), (NO_ANSWER, heard(ROUTER_MAC, true)));
    // Somebody else claims to be the router: control decides. What is known already costs nothing.
    let evil = (EVIL, ROUTER_V4);
    assert_eq!(ask(&reply(OURS, evil, (OURS, HOST_V4))), (NO_ANSWER, heard(EVIL, true)));
    assert_eq!(ask(&reply(MacAddr::BROADCAST, evil, (MacAddr::BROADCAST, ROUTER_V4))), (NO_ANSWER, heard(EVIL, false)));
    assert_eq!(ask(&request(evil, ROUTER_V4)), (NO_ANSWER, heard(EVIL, false)));
    assert_eq!(ask(&request(router, ROUTER_V4)), (NO_ANSWER, None));
    assert_eq!(ask_knowing(None, &request(router, OTHER_V4)), (NO_ANSWER, heard(ROUTER_MAC, false)));
    for not_to_us in [
        reply(MacAddr::BROADCAST, evil, (OURS, HOST_V4)),
        reply(OURS, evil, (EVIL, HOST_V4)),
        reply(OURS, evil, (OURS, OTHER_V4)),
    ] {
        assert_eq!(ask(&not_to_us), (NO_ANSWER, heard(EVIL, false)));
    }
    // Nobody else is a router, nor a neighbour beyond the subnets.
    for mac in [ROUTER_MAC, EVIL] {
        assert_eq!(ask(&reply(OURS, (mac, OTHER_V4), (OURS, HOST_V4))), (NO_ANSWER, None));
    }
}

#[test]
fn other_neighbours_are_heard_when_they_answer_and_when_they_are_said_to_be_elsewhere() {
    let subnets = ["203.0.113.2/24".parse().unwrap(), "2001:db8:f::2/64".parse().unwrap()];
    let ask = |known: bool, frame: &[u8]| {
        let neighbors =
            [OTHER_V4.into(), OTHER_V6.into()].map(|address| (address, Arc::new(Neighbor::new(ROUTER_MAC))));
        ask_on_link(OnLink::new(&subnets, neighbors.into_iter().filter(|_| known), Arc::default()), frame)
    };
    let heard = |address: IpAddr, mac, answer| Some(LocalNote::NeighborHeard { address, mac, answer });
    for known in [false, true] {
        // What only may be an answer control tells apart: it knows whom it has asked.
        for mac in [ROUTER_MAC, EVIL] {
            assert_eq!(
                ask(known, &reply(OURS, (mac, OTHER_V4), (OURS, HOST_V4))),
                (NO_ANSWER, heard(OTHER_V4.into(), mac, true))
            );
            let advert = advert((mac, OURS), OTHER_V6, HOST_V6, OTHER_V6, true);
            assert_eq!(ask(known, &advert), (NO_ANSWER, heard(OTHER_V6.into(), mac, true)));
        }
        let claims = |note: Option<LocalNote>| (NO_ANSWER, note.filter(|_| known));
        assert_eq!(ask(known, &request((EVIL, OTHER_V4), ROUTER_V4)), claims(heard(OTHER_V4.into(), EVIL, false)));
        let claim = advert((EVIL, MULTICAST_ALL_NODES), OTHER_V6, ALL_NODES, OTHER_V6, false);
        assert_eq!(ask(known, &claim), claims(heard(OTHER_V6.into(), EVIL, false)));
        assert_eq!(ask(known, &request((ROUTER_MAC, OTHER_V4), ROUTER_V4)), (NO_ANSWER, None), "as it is known");
    }
    let beyond = Ipv4Addr::new(198, 51, 100, 9);
    assert_eq!(ask(false, &reply(OURS, (EVIL, beyond), (OURS, HOST_V4))), (NO_ANSWER, None));
}

#[test]
fn who_claims_an_address_of_ours_is_reported_and_not_answered() {
    for target in [NAT_V4, HOST_V4, OTHER_V4] {
        let conflict = Some(LocalNote::AddressConflict(NAT_V4.into(), EVIL));
        assert_eq!(ask(&request((EVIL, NAT_V4), target)), (NO_ANSWER, conflict));
    }
    let conflict = Some(LocalNote::AddressConflict(NAT_V6.into(), EVIL));
    assert_eq!(ask(&advert((EVIL, MULTICAST_ALL_NODES), NAT_V6, ALL_NODES, NAT_V6, false)), (NO_ANSWER, conflict));
}

#[test]
fn an_address_that_is_not_settled_is_not_answered_for_and_who_asks_for_it_without_a_source_wants_it() {
    let unsettled =
        [tables::mapped(NAT_V4.into()), u128::from(NAT_V6), tables::mapped(OTHER_V4.into()), u128::from(OTHER_V6)];
    let ask = |frame: &[u8]| ask_with(Some(ROUTER_MAC), &unsettled, frame);
    // Owned already, or lost to somebody.
    for (v4, v6) in [(NAT_V4, NAT_V6), (OTHER_V4, OTHER_V6)] {
        let taken = |by| Some(LocalNote::AddressConflict(v4.into(), by));
        assert_eq!(ask(&request((ROUTER_MAC, ROUTER_V4), v4)), (NO_ANSWER, None));
        assert_eq!(ask(&request((EVIL, Ipv4Addr::UNSPECIFIED), v4)), (NO_ANSWER, taken(EVIL)), "a probe");
        assert_eq!(ask(&reply(OURS, (EVIL, v4), (OURS, Ipv4Addr::UNSPECIFIED))), (NO_ANSWER, taken(EVIL)), "an answer");
        // What a switch asks us alone, to see whether we are still there.
        let mut tracking = request((EVIL, Ipv4Addr::UNSPECIFIED), v4);
        tracking[..6].copy_from_slice(&OURS.0);
        assert_eq!(ask(&tracking), (NO_ANSWER, None));
        let taken = Some(LocalNote::AddressConflict(v6.into(), ROUTER_MAC));
        assert_eq!(ask(&solicit(ROUTER_V6, v6)), (NO_ANSWER, None));
        // Whoever asks from it has it.
        assert_eq!(ask(&solicit(v6, HOST_V6)), (NO_ANSWER, taken));
        let asks_v4 = Some(LocalNote::AddressConflict(v4.into(), EVIL));
        assert_eq!(ask(&request((EVIL, v4), HOST_V4)), (NO_ANSWER, asks_v4));
        assert_eq!(ask(&solicit(Ipv6Addr::UNSPECIFIED, v6)), (NO_ANSWER, taken));
        let answer = advert((ROUTER_MAC, MULTICAST_ALL_NODES), v6, ALL_NODES, v6, false);
        assert_eq!(ask(&answer), (NO_ANSWER, taken));
    }
    assert!(ask(&request((ROUTER_MAC, ROUTER_V4), HOST_V4)).0.is_ok(), "others are answered for");
    let (from, to, frame) = read_arp(&probe(OURS, NAT_V4.into()).unwrap());
    let wanted = arp_message(ArpOperation::Request, (OURS, Ipv4Addr::UNSPECIFIED), (MacAddr::default(), NAT_V4));
    assert_eq!((from, to, frame), (OURS, MacAddr::BROADCAST, wanted));
    let frame = probe(OURS, NAT_V6.into()).unwrap();
    let (from, to, src, dst, message) = read_nd(&frame);
    let group = ipv6::solicited_node(NAT_V6);
    assert_eq!((from, to, src, dst), (OURS, group_mac(group), Ipv6Addr::UNSPECIFIED, group));
    assert_eq!(message, NdiscRepr::NeighborSolicit { target_addr: NAT_V6, lladdr: None }, "RFC 4861 §4.3: no option");
}

#[test]
fn link_addresses_that_cannot_be() {
    let invalid = (Err(Verdict::Drop(DropReason::ArpInvalid)), None);
    for mac in [MacAddr::BROADCAST, MacAddr([1, 0, 0x5e, 0, 0, 1]), MacAddr::default(), OURS] {
        assert_eq!(ask(&reply(OURS, (mac, ROUTER_V4), (OURS, HOST_V4))), invalid, "{mac}");
        assert_eq!(ask(&request((mac, OTHER_V4), HOST_V4)), invalid, "{mac}");
    }
    let invalid = (Err(Verdict::Drop(DropReason::NdInvalid)), None);
    for mac in [MacAddr::BROADCAST, OURS] {
        assert_eq!(ask(&advert((mac, OURS), ROUTER_V6, HOST_V6, ROUTER_V6, true)), invalid, "{mac}");
    }
}

#[test]
fn solicitations_are_answered_for_exactly_what_is_owned() {
    for target in [HOST_V6, NAT_V6] {
        let frame = ask(&solicit(ROUTER_V6, target)).0.unwrap();
        let (from, to, src, dst, message) = read_nd(&frame);
        assert_eq!((from, to, src, dst), (OURS, ROUTER_MAC, target, ROUTER_V6));
        let flags = NdiscNeighborFlags::SOLICITED | NdiscNeighborFlags::OVERRIDE;
        let lladdr = Some(EthernetAddress(OURS.0).into());
        assert_eq!(message, NdiscRepr::NeighborAdvert { flags, target_addr: target, lladdr });
        // Somebody is about to use it: everybody hears that it is taken.
        let frame = ask(&solicit(Ipv6Addr::UNSPECIFIED, target)).0.unwrap();
        let (from, to, src, dst, message) = read_nd(&frame);
        assert_eq!((from, to, src, dst), (OURS, MULTICAST_ALL_NODES, target, ALL_NODES));
        let flags = NdiscNeighborFlags::OVERRIDE;
        assert_eq!(message, NdiscRepr::NeighborAdvert { flags, target_addr: target, lladdr });
    }
    for target in [OTHER_V6, ROUTER_V6] {
        assert_eq!(ask(&solicit(OTHER_V6, target)), (NO_ANSWER, None));
    }
    let message = Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { target_addr: HOST_V6, lladdr: None });
    let routed = icmp6((ROUTER_MAC, OURS), ROUTER_V6, HOST_V6, 254, &message);
    assert_eq!(ask(&routed), (Err(Verdict::Drop(DropReason::NdInvalid)), None), "from beyond the link");
}

#[test]
fn advertisements_of_routers_are_heard_as_what_they_are() {
    let heard =
        |mac, answer| Some(LocalNote::RouterHeard { address: ROUTER_V6.into(), mac, answer, contradicts: mac == EVIL });
    let answer = advert((ROUTER_MAC, OURS), ROUTER_V6, HOST_V6, ROUTER_V6, true);
    assert_eq!(ask(&answer), (NO_ANSWER, heard(ROUTER_MAC, true)));
    let claim = advert((EVIL, MULTICAST_ALL_NODES), ROUTER_V6, ALL_NODES, ROUTER_V6, false);
    assert_eq!(ask(&claim), (NO_ANSWER, heard(EVIL, false)));
    let lie = advert((EVIL, MULTICAST_ALL_NODES), ROUTER_V6, ALL_NODES, ROUTER_V6, true);
    assert_eq!(ask(&lie), (Err(Verdict::Drop(DropReason::NdInvalid)), None));
    let elsewhere = advert((EVIL, OURS), ROUTER_V6, OTHER_V6, ROUTER_V6, true);
    assert_eq!(ask(&elsewhere), (NO_ANSWER, heard(EVIL, false)));
    assert_eq!(ask(&advert((EVIL, OURS), OTHER_V6, HOST_V6, OTHER_V6, true)), (NO_ANSWER, None));
}

#[test]
fn echo_to_the_host_itself_and_to_services_is_answered_and_to_nobody_else() {
    let echo = |to: Ipv4Addr, link: MacAddr| {
        let repr = Icmpv4Repr::EchoRequest { ident: 7, seq_no: 9, data: &[0x5a; 100] };
        let header = Ipv4Repr {
            src_addr: OTHER_V4,
            dst_addr: to,
            next_header: IpProtocol::Icmp,
            payload_len: repr.buffer_len(),
            hop_limit: 3,
        };
        let mut octets = vec![0; 20 + repr.buffer_len()];
        header.emit(&mut Ipv4Packet::new_unchecked(&mut octets), &ChecksumCapabilities::default());
        repr.emit(&mut Icmpv4Packet::new_unchecked(&mut octets[20..]), &ChecksumCapabilities::default());
        ethernet(ROUTER_MAC, link, EthernetProtocol::Ipv4, &octets)
    };
    for to in [HOST_V4, SERVICE_V4] {
        let frame = ask(&echo(to, OURS)).0.unwrap();
        let frame = EthernetFrame::new_unchecked(&frame);
        assert_eq!((frame.src_addr().0, frame.dst_addr().0), (OURS.0, ROUTER_MAC.0));
        let packet = Ipv4Packet::new_checked(frame.payload()).unwrap();
        assert!(packet.verify_checksum());
        assert_eq!((packet.src_addr(), packet.dst_addr()), (to, OTHER_V4));
        let icmp = Icmpv4Packet::new_checked(packet.payload()).unwrap();
        let icmp = Icmpv4Repr::parse(&icmp, &ChecksumCapabilities::default()).unwrap();
        assert_eq!(icmp, Icmpv4Repr::EchoReply { ident: 7, seq_no: 9, data: &[0x5a; 100] });
    }
    for (to, link) in [(NAT_V4, OURS), (OTHER_V4, OURS), (HOST_V4, EVIL), (HOST_V4, MacAddr::BROADCAST)] {
        assert_eq!(ask(&echo(to, link)), (Err(Verdict::Continue), None), "{to} {link}");
    }
    let message = Icmpv6Repr::EchoRequest { ident: 7, seq_no: 9, data: &[1; 40] };
    for to in [HOST_V6, SERVICE_V6] {
        let frame = ask(&icmp6((ROUTER_MAC, OURS), OTHER_V6, to, 9, &message)).0.unwrap();
        let packet = Ipv6Packet::new_checked(&frame[14..]).unwrap();
        assert_eq!((&frame[..6], &frame[6..12]), (&ROUTER_MAC.0[..], &OURS.0[..]));
        assert_eq!((packet.src_addr(), packet.dst_addr()), (to, OTHER_V6));
    }
    assert_eq!(ask(&icmp6((ROUTER_MAC, OURS), OTHER_V6, NAT_V6, 9, &message)).0, Err(Verdict::Continue));
}

#[test]
fn what_is_sent_unasked_is_what_neighbours_expect() {
    let frame = question(OURS, HOST_V4.into(), ROUTER_V4.into(), None).unwrap();
    let wanted = arp_message(ArpOperation::Request, (OURS, HOST_V4), (MacAddr::default(), ROUTER_V4));
    assert_eq!(read_arp(&frame), (OURS, MacAddr::BROADCAST, wanted));
    let frame = question(OURS, HOST_V4.into(), ROUTER_V4.into(), Some(ROUTER_MAC)).unwrap();
    assert_eq!(read_arp(&frame).1, ROUTER_MAC);
    for (to, link, destination) in [
        (None, MacAddr([0x33, 0x33, 0xff, 0, 0, 0x0a]), ipv6::solicited_node(ROUTER_V6)),
        (Some(ROUTER_MAC), ROUTER_MAC, ROUTER_V6),
    ] {
        let frame = question(OURS, HOST_V6.into(), ROUTER_V6.into(), to).unwrap();
        let (from, at, src, dst, message) = read_nd(&frame);
        assert_eq!((from, at, src, dst), (OURS, link, HOST_V6, destination));
        let lladdr = Some(EthernetAddress(OURS.0).into());
        assert_eq!(message, NdiscRepr::NeighborSolicit { target_addr: ROUTER_V6, lladdr });
    }
    assert_eq!(question(OURS, HOST_V4.into(), ROUTER_V6.into(), None), None);
    let frames = announcement(OURS, NAT_V4.into());
    let forms: Vec<_> = frames.iter().map(|frame| read_arp(frame)).collect();
    let request = arp_message(ArpOperation::Request, (OURS, NAT_V4), (MacAddr::default(), NAT_V4));
    let reply = arp_message(ArpOperation::Reply, (OURS, NAT_V4), (MacAddr::BROADCAST, NAT_V4));
    assert_eq!(forms, [(OURS, MacAddr::BROADCAST, request), (OURS, MacAddr::BROADCAST, reply)]);
    let frames = announcement(OURS, NAT_V6.into());
    let (from, to, src, dst, message) = read_nd(&frames[0]);
    assert_eq!((frames.len(), from, to, src, dst), (1, OURS, MULTICAST_ALL_NODES, NAT_V6, ALL_NODES));
    let lladdr = Some(EthernetAddress(OURS.0).into());
    let flags = NdiscNeighborFlags::OVERRIDE;
    assert_eq!(message, NdiscRepr::NeighborAdvert { flags, target_addr: NAT_V6, lladdr });
}

/// Any octets behind a plausible start: never a panic, and answers only about what is owned.
#[test]
fn mutated_messages() {
    let corpus = [
        request((ROUTER_MAC, ROUTER_V4), HOST_V4),
        reply(OURS, (ROUTER_MAC, ROUTER_V4), (OURS, HOST_V4)),
        solicit(ROUTER_V6, NAT_V6),
        advert((ROUTER_MAC, OURS), ROUTER_V6, HOST_V6, ROUTER_V6, true),
    ];
    let mut seed: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut random = move |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 16) as usize % below
    };
    for _ in 0..20_000 {
        let mut frame = corpus[random(corpus.len())].clone();
        if random(4) == 0 {
            frame.truncate(14 + random(frame.len() - 14));
        }
        for _ in 0..1 + random(3) {
            let at = random(frame.len());
            frame[at] = random(256) as u8;
        }
        if let Ok(answer) = ask(&frame).0 {
            assert_eq!(answer[6..12], OURS.0);
            match answer[12..14] {
                [8, 6] => assert!([HOST_V4, NAT_V4].iter().any(|owned| answer[28..32] == owned.octets())),
                _ => assert!([HOST_V6, NAT_V6].iter().any(|owned| answer[22..38] == owned.octets())),
            }
        }
    }
}
