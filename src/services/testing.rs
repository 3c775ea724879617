//! What the tests of the local stage share: a network with two guests, and builders of what guests send. smoltcp and
//! dhcproto write and read the messages, so that the services are judged by code that is not theirs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hostweave_nat::service::Services;
use hostweave_switch::limits::HEAD_FIRST;
use hostweave_switch::packet::{Burst, Meta, Offload};
use hostweave_switch::stage::Verdict;
use hostweave_switch::tables::{
    AddressKey, Domain, Network, NetworkId, Owned, Port, PortId, PortKind, ROUTER_LINK_LOCAL, Tables, Uplink,
};
use hostweave_switch::{MacAddr, guard, parse};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, Icmpv6Packet, Icmpv6Repr, IpAddress, IpProtocol,
    Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr, UdpPacket, UdpRepr,
};

use super::{LocalContext, LocalNote, local};

pub const GUEST_A: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x0a]);
pub const GUEST_B: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x0b]);
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const A_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
pub const B_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 11);
pub const FREE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 99);
pub const PREFIX: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 0);
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 1);
pub const A_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0xff, 0xfe00, 0x0a);
pub const B_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0xff, 0xfe00, 0x0b);
pub const FREE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0xdead, 0, 0, 1);
pub const A_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 0x0a);

/// A network with an internal port and two guests.
pub struct World {
    pub tables: Tables,
    pub network: Network,
    pub port: Port,
    pub services: Services,
}

/// What became of a frame.
pub struct Outcome {
    pub verdict: Verdict,
    /// The frame as it left the stage.
    pub frame: Vec<u8>,
    pub offload: Offload,
    pub note: Option<LocalNote>,
}

impl World {
    pub fn new() -> Self {
        let network = Network {
            v4: Some(("192.0.2.0/24".parse().unwrap(), GATEWAY_V4)),
            v6: Some((ipnet::Ipv6Net::new(PREFIX, 64).unwrap(), GATEWAY_V6)),
            mtu: 1450,
            learning: true,
            domain: Some(Domain::Zone("cluster.local".to_owned())),
            resolvers: vec![IpAddr::V4(GATEWAY_V4), IpAddr::V6(GATEWAY_V6)],
            internal: PortId(0),
            ..Network::bare("default", 1)
        };
        let port = Port {
            id: PortId(1),
            name: "default/a".to_owned(),
            kind: PortKind::VhostUser,
            network: NetworkId(0),
            mac: GUEST_A,
            v4: vec![A_V4],
            v6: vec![A_V6],
            hostname: "a".to_owned(),
            up: true,
            lease_s: 3600,
            limits: None,
            counters: Arc::new([]),
        };
        let mut tables = Tables::default();
        let owners: [(IpAddr, u32); 7] = [
            (GATEWAY_V4.into(), 0),
            (GATEWAY_V6.into(), 0),
            (ROUTER_LINK_LOCAL.into(), 0),
            (A_V4.into(), 1),
            (A_V6.into(), 1),
            (B_V4.into(), 2),
            (B_V6.into(), 2),
        ];
        for (address, owner) in owners {
            tables.set_addresses([(AddressKey::new(NetworkId(0), address), PortId(owner))]);
        }
        Self { tables, network, port, services: Services::default() }
    }

    /// Runs a frame of guest A through `parse`, `guard` and `local`.
    pub fn ask(&self, frame: &[u8]) -> Outcome {
        self.ask_with(frame, Offload::default())
    }

    pub fn ask_with(&self, frame: &[u8], offload: Offload) -> Outcome {
        let meta = Meta { in_port: self.port.id, offload, ..Meta::default() };
        Burst::new().with_frame(meta, frame, HEAD_FIRST, |packet, arena| {
            let mut note = None;
            let mut verdict = parse::parse(packet, arena);
            if verdict == Verdict::Continue {
                verdict = guard::guard(&self.port, &self.network, packet);
            }
            if verdict == Verdict::Continue {
                let ctx = LocalContext {
                    tables: &self.tables,
                    port: &self.port,
                    network: &self.network,
                    services: &self.services,
                };
                verdict = local(&ctx, packet, arena, &mut note);
            }
            let mut frame = vec![0xa5; packet.len()];
            packet.copy_frame(arena, &mut frame).unwrap();
            Outcome { verdict, frame, offload: packet.meta.offload, note }
        })
    }
}

/// An uplink that owns these addresses and knows no router.
pub fn uplink(owned: impl IntoIterator<Item = (u128, Owned)>) -> Uplink {
    Uplink {
        owned: owned.into_iter().collect(),
        ..Uplink::bare(PortId(9), NetworkId(3), MacAddr([0x02, 0, 0, 0, 0, 0x77]))
    }
}

impl Outcome {
    /// The answer.
    #[track_caller]
    pub fn reply(self) -> Vec<u8> {
        assert_eq!(self.verdict, Verdict::Reply);
        assert_eq!(&self.frame[6..12], MacAddr::ROUTER.0);
        self.frame
    }
}

pub fn ethernet(to: MacAddr, protocol: EthernetProtocol, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 14 + payload.len()];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes);
    let repr =
        EthernetRepr { src_addr: EthernetAddress(GUEST_A.0), dst_addr: EthernetAddress(to.0), ethertype: protocol };
    repr.emit(&mut frame);
    frame.payload_mut().copy_from_slice(payload);
    bytes
}

pub fn ipv4(to: MacAddr, from: Ipv4Addr, dst: Ipv4Addr, protocol: IpProtocol, payload: &[u8]) -> Vec<u8> {
    let repr =
        Ipv4Repr { src_addr: from, dst_addr: dst, next_header: protocol, payload_len: payload.len(), hop_limit: 33 };
    let mut bytes = vec![0; 20 + payload.len()];
    let mut packet = Ipv4Packet::new_unchecked(&mut bytes);
    repr.emit(&mut packet, &ChecksumCapabilities::default());
    packet.payload_mut().copy_from_slice(payload);
    ethernet(to, EthernetProtocol::Ipv4, &bytes)
}

pub fn ipv6(
    to: MacAddr,
    from: Ipv6Addr,
    dst: Ipv6Addr,
    protocol: IpProtocol,
    hop_limit: u8,
    payload: &[u8],
) -> Vec<u8> {
    let repr = Ipv6Repr { src_addr: from, dst_addr: dst, next_header: protocol, payload_len: payload.len(), hop_limit };
    let mut bytes = vec![0; 40 + payload.len()];
    let mut packet = Ipv6Packet::new_unchecked(&mut bytes);
    repr.emit(&mut packet);
    packet.payload_mut().copy_from_slice(payload);
    ethernet(to, EthernetProtocol::Ipv6, &bytes)
}

/// An ICMPv6 message to a group or to the router, with the right checksum.
pub fn icmpv6(from: Ipv6Addr, dst: Ipv6Addr, hop_limit: u8, message: &Icmpv6Repr<'_>) -> Vec<u8> {
    let mut bytes = vec![0; message.buffer_len()];
    let mut packet = Icmpv6Packet::new_unchecked(&mut bytes);
    message.emit(&from, &dst, &mut packet, &ChecksumCapabilities::default());
    ipv6(link_address(dst), from, dst, IpProtocol::Icmpv6, hop_limit, &bytes)
}

/// A UDP datagram to the router or to everybody.
pub fn udp(from: IpAddr, src_port: u16, dst: IpAddr, dst_port: u16, payload: &[u8]) -> Vec<u8> {
    let repr = UdpRepr { src_port, dst_port };
    let mut bytes = vec![0; 8 + payload.len()];
    let (src, to): (IpAddress, IpAddress) = (from.into(), dst.into());
    let fill = |data: &mut [u8]| data.copy_from_slice(payload);
    let mut datagram = UdpPacket::new_unchecked(&mut bytes);
    repr.emit(&mut datagram, &src, &to, payload.len(), fill, &ChecksumCapabilities::default());
    match (from, dst) {
        (IpAddr::V4(from), IpAddr::V4(dst)) => {
            let mac = if dst == GATEWAY_V4 { MacAddr::ROUTER } else { MacAddr::BROADCAST };
            ipv4(mac, from, dst, IpProtocol::Udp, &bytes)
        }
        (IpAddr::V6(from), IpAddr::V6(dst)) => ipv6(link_address(dst), from, dst, IpProtocol::Udp, 64, &bytes),
        _ => panic!("two families"),
    }
}

/// The payload of a UDP reply, its checksums verified by smoltcp, with (source, destination, ports).
pub fn udp_reply(frame: &[u8]) -> (IpAddr, IpAddr, (u16, u16), Vec<u8>) {
    let checks = ChecksumCapabilities::default();
    let frame = EthernetFrame::new_checked(frame).unwrap();
    let (src, dst, bytes): (IpAddress, IpAddress, Vec<u8>) = if frame.ethertype() == EthernetProtocol::Ipv4 {
        let packet = Ipv4Packet::new_checked(frame.payload()).unwrap();
        let repr = Ipv4Repr::parse(&packet, &checks).unwrap();
        (repr.src_addr.into(), repr.dst_addr.into(), packet.payload().to_vec())
    } else {
        let packet = Ipv6Packet::new_checked(frame.payload()).unwrap();
        let repr = Ipv6Repr::parse(&packet).unwrap();
        (repr.src_addr.into(), repr.dst_addr.into(), packet.payload().to_vec())
    };
    let datagram = UdpPacket::new_checked(&bytes[..]).unwrap();
    let repr = UdpRepr::parse(&datagram, &src, &dst, &checks).unwrap();
    (src.into(), dst.into(), (repr.src_port, repr.dst_port), datagram.payload().to_vec())
}

/// The MAC address that a guest sends to.
pub fn link_address(dst: Ipv6Addr) -> MacAddr {
    if dst.is_multicast() { hostweave_switch::wire::ethernet::multicast_v6(dst) } else { MacAddr::ROUTER }
}
