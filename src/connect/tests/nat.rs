//! Out of the network and back: NAT (SEMANTICS §5), and what every packet on that way must show. Every frame that comes out is read by the
//! tests' own parser, which verifies each length and each checksum in full.

use std::net::Ipv6Addr;

use hostweave_guest::frames::{Body, Frame, L4};
use hostweave_guest::queue::VnetHeader;
use hostweave_nat::{Filtering, PoolSpec, Pools, Workload};
use hostweave_switch::flow::TRUST_S;
use hostweave_switch::on_link::{Neighbor, OnLink, Sought};
use hostweave_switch::packet::virtio_net;
use hostweave_switch::tables::{Egress, NextHop, Owned, Uplink, mapped};
use ipnet::IpNet;

use super::*;

mod attach;
mod errors;
mod hairpin;
mod kept;
mod life;
mod on_link;
mod required;
mod reused;
mod seen;
mod services;
mod shape;
mod traced;
mod unasked;

/// The way out, and a guest of another network that has the same addresses as `A`.
const UPLINK: u32 = 4;
const D: u32 = 5;
const OUTSIDE: NetworkId = NetworkId(1);
const OTHER: NetworkId = NetworkId(2);
const UPLINK_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0xff, 1]);
const GATEWAY_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0xff, 2]);

/// Addresses at the uplink: the host's own, that of the pool, and one more.
fn public(v6: bool, last: u16) -> IpAddr {
    if v6 { Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, last).into() } else { [203, 0, 113, last as u8].into() }
}

const HOST: u16 = 1;
const POOL: u16 = 7;
const PUBLIC: u16 = 9;

/// Somebody out there.
fn remote(v6: bool, last: u16) -> IpAddr {
    if v6 { Ipv6Addr::new(0x2001, 0xdb8, 0xe, 0, 0, 0, 0, last).into() } else { [198, 51, 100, last as u8].into() }
}

/// A way from a guest to somebody beyond its network.
fn out(from: u32, to: IpAddr) -> Path {
    let address = if from == D { address(A, to.is_ipv6()) } else { address(from, to.is_ipv6()) };
    Path::new(mac(from).0, MacAddr::ROUTER.0, address, to)
}

/// A way from somebody out there to an address of ours.
fn inward(from: IpAddr, to: IpAddr) -> Path {
    Path::new(GATEWAY_MAC.0, UPLINK_MAC.0, from, to)
}

/// What a frame says: addresses, and L4 ports or identifier.
type Seen = (IpAddr, IpAddr, u16, u16);

/// Reads a frame, everything verified.
#[track_caller]
fn read(frame: &[u8]) -> (Frame, Seen) {
    read_with(&VnetHeader::default(), frame)
}

#[track_caller]
fn read_with(header: &VnetHeader, frame: &[u8]) -> (Frame, Seen) {
    let frame = Frame::parse(header, frame).unwrap();
    let Body::Ip { src, dst, l4, .. } = &frame.body else { panic!("{frame:?}") };
    let (a, b) = match l4 {
        L4::Udp { src_port, dst_port, .. } => (*src_port, *dst_port),
        L4::Tcp { segment, .. } => (segment.src_port, segment.dst_port),
        L4::Icmp { rest, .. } => (u16::from_be_bytes([rest[0], rest[1]]), 0),
        L4::Other(..) => (0, 0),
    };
    let seen = (*src, *dst, a, b);
    (frame, seen)
}

fn workload(port: u32) -> Workload {
    Workload { port, uid: u128::from(port) + 1000 }
}

/// A pool of one address of each family that serves all guests.
fn pool() -> PoolSpec {
    PoolSpec {
        name: "pool".to_owned(),
        addresses: [false, true].map(|v6| public(v6, POOL)).to_vec(),
        draining: Vec::new(),
        workloads: [A, B, C, D].map(workload).to_vec(),
        in_family: Default::default(),
        block_size: 64,
        blocks: 1..=4,
        filtering: Filtering::default(),
        overload: false,
        limits: Default::default(),
    }
}

impl Host {
    /// A host with an uplink, a pool that serves all guests, and a second network.
    fn outside() -> Self {
        Self::with_pool(|_| {})
    }

    fn with_pool(edit: impl FnOnce(&mut PoolSpec)) -> Self {
        let mut host = Host::new();
        host.nat.make_available(1024);
        host.connections.make_translatable(1024);
        host.connections.share((0..6).map(|port| (port, 1024)));
        host.add_networks();
        for port in [A, B, C, D] {
            host.connections.set_port_id(port, workload(port).uid);
        }
        let mut spec = pool();
        edit(&mut spec);
        host.plane.pools = Arc::new(Pools::compile(&host.nat, &[spec], host.now).unwrap());
        host.publish();
        host
    }

    fn add_networks(&mut self) {
        let tables = &mut self.plane.tables;
        let first = Network {
            egress_v4: Egress::Nat,
            egress_v6: Egress::Nat,
            ..(**tables.networks[0].as_ref().unwrap()).clone()
        };
        let other = Network { name: "other".to_owned(), vni: 9, ..first.clone() };
        let outside = Network {
            name: "outside".to_owned(),
            vni: 0xff_ffff,
            v4: Some(("203.0.113.0/24".parse().unwrap(), "203.0.113.1".parse().unwrap())),
            v6: Some(("2001:db8:f::/64".parse().unwrap(), "2001:db8:f::1".parse().unwrap())),
            egress_v4: Egress::None,
            egress_v6: Egress::None,
            ..first.clone()
        };
        tables.networks = [first, outside, other].map(|network| Some(Arc::new(network))).to_vec();
        tables.epochs = vec![1; 3];
        let uplink = Port {
            network: OUTSIDE,
            mac: UPLINK_MAC,
            v4: Vec::new(),
            v6: Vec::new(),
            ..port(UPLINK, PortKind::Uplink)
        };
        let twin = port(A, PortKind::VhostUser);
        let twin = Port { network: OTHER, v4: twin.v4, v6: twin.v6, ..port(D, PortKind::VhostUser) };
        for v6 in [false, true] {
            tables.set_addresses([(AddressKey::new(OTHER, address(A, v6)), PortId(D))]);
        }
        tables.set_ports([uplink, twin].map(Arc::new));
        let endpoint = |id: u32, network| {
            let (namespace, name, labels) = ("test".to_owned(), id.to_string(), Labels::new());
            Arc::new(Endpoint { id: PortId(id), network, namespace, name, labels, named_ports: Vec::new() })
        };
        self.world.endpoints.push(endpoint(D, OTHER));
        let gateway = |v6| NextHop { address: public(v6, 254), mac: Some(GATEWAY_MAC) };
        let owned = [false, true]
            .into_iter()
            .flat_map(|v6| [(mapped(public(v6, HOST)), Owned::Host), (mapped(public(v6, POOL)), Owned::Nat)]);
        tables.uplink = Some(Arc::new(Uplink {
            v4: vec![gateway(false)],
            v6: vec![gateway(true)],
            owned: owned.collect(),
            ..Uplink::bare(PortId(UPLINK), OUTSIDE, UPLINK_MAC)
        }));
    }

    /// Changes the uplink; every network gets a new epoch.
    fn edit_uplink(&mut self, edit: impl FnOnce(&mut Uplink)) {
        let mut uplink = (**self.plane.tables.uplink.as_ref().unwrap()).clone();
        edit(&mut uplink);
        uplink.public = Uplink::one_to_one(&uplink.owned);
        self.plane.tables.uplink = Some(Arc::new(uplink));
        self.publish();
    }

    fn edit_network(&mut self, id: NetworkId, edit: impl FnOnce(&mut Network)) {
        let slot = &mut self.plane.tables.networks[usize::from(id.0)];
        let mut network = (**slot.as_ref().unwrap()).clone();
        edit(&mut network);
        *slot = Some(Arc::new(network));
        self.publish();
    }

    /// Sends a frame, and reads what comes out.
    #[track_caller]
    fn through(&mut self, worker: usize, from: u32, frame: &[u8]) -> Result<(u32, Seen), DropReason> {
        let passed = self.pass(worker, from, frame, Offload::default(), &mut Unwatched).map_err(|ended| ended.0)?;
        let (frame, seen) = read(&passed.frame);
        if passed.to == UPLINK {
            assert_eq!((frame.src_mac, frame.dst_mac), (UPLINK_MAC.0, GATEWAY_MAC.0));
        } else {
            assert_eq!((frame.src_mac, frame.dst_mac), (MacAddr::ROUTER.0, mac(passed.to).0));
        }
        let Body::Ip { ttl, .. } = frame.body else { unreachable!() };
        assert_eq!(ttl, 63);
        Ok((passed.to, seen))
    }

    /// From a guest to somebody out there; returns the outside L4 port.
    #[track_caller]
    fn leaves(&mut self, from: u32, to: IpAddr, ports: (u16, u16)) -> u16 {
        let frame = out(from, to).udp(ports.0, ports.1, b"data");
        let (port, seen) = self.through(0, from, &frame).unwrap();
        assert_eq!((port, seen.0, seen.1, seen.3), (UPLINK, public(to.is_ipv6(), POOL), to, ports.1));
        seen.2
    }
}

#[test]
fn out_and_back_through_a_pool() {
    both(|v6| {
        let mut host = Host::outside();
        let (server, pool) = (remote(v6, 1), public(v6, POOL));
        let l4 = host.leaves(A, server, (4000, 53));
        let answer = inward(server, pool).udp(53, l4, b"answer");
        for _ in 0..3 {
            assert_eq!(host.through(0, UPLINK, &answer), Ok((A, (server, address(A, v6), 53, 4000))));
            assert_eq!(host.leaves(A, server, (4000, 53)), l4);
        }
        let entry = host.entry();
        assert_eq!((entry.in_port, entry.out_port, entry.seen), (A, UPLINK, [100, 100]), "one connection");
        assert!(entry.translation.unwrap().held[0].is_some());
        // Nothing else comes in, and nobody hears why.
        let refused = |host: &mut Host, frame: &[u8]| {
            let ended = host.pass(0, UPLINK, frame, Offload::default(), &mut Unwatched).err().unwrap();
            assert!(ended.1.is_none(), "silence (SEMANTICS NA13)");
            ended.0
        };
        for frame in [
            inward(remote(v6, 2), pool).udp(53, l4, b"?"),
            inward(server, pool).udp(54, l4, b"?"),
            inward(server, pool).udp(53, l4 ^ 1, b"?"),
            inward(server, pool).tcp(&TcpHeader { src_port: 53, dst_port: l4, flags: SYN, ..Default::default() }, b""),
            inward(server, pool).echo_request(l4, 1, b"?"),
            // Nor what can begin nothing (SEMANTICS NA36).
            inward(server, pool).tcp(&TcpHeader { src_port: 80, dst_port: l4, flags: ACK, ..Default::default() }, b""),
            inward(server, pool).tcp(&TcpHeader { src_port: 80, dst_port: l4, flags: RST, ..Default::default() }, b""),
            inward(server, pool).icmp(if v6 { 129 } else { 0 }, 0, [0, 7, 0, 1], b"?"),
        ] {
            assert_eq!(refused(&mut host, &frame), DropReason::NatNoMapping);
        }
        assert_eq!(refused(&mut host, &inward(server, public(v6, 99)).udp(53, l4, b"?")), DropReason::NotOurs);
        assert_eq!(host.entries().len(), 1);
    });
}

#[test]
fn na1_one_endpoint_has_one_outside_endpoint_for_all_remotes_on_all_workers() {
    both(|v6| {
        let mut host = Host::outside();
        let first = host.leaves(A, remote(v6, 1), (4000, 53));
        for i in 2..200 {
            let frame = out(A, remote(v6, i)).udp(4000, 1000 + i, b"data");
            let (_, seen) = host.through(usize::from(i % 2 == 0), A, &frame).unwrap();
            assert_eq!(seen.2, first);
            let answer = inward(remote(v6, i), public(v6, POOL)).udp(1000 + i, first, b"answer");
            assert_eq!(host.through(usize::from(i % 3 == 0), UPLINK, &answer).unwrap().0, A);
        }
        let other = host.leaves(B, remote(v6, 1), (4000, 53));
        assert_ne!(other, first, "another guest has a port of its own");
        assert_ne!(
            host.leaves(D, remote(v6, 1), (4000, 53)),
            first,
            "and one with the same address elsewhere (SEMANTICS NA5)"
        );
        let back = inward(remote(v6, 1), public(v6, POOL));
        let answer = back.udp(53, first, b"answer");
        assert_eq!(host.through(0, UPLINK, &answer).unwrap().0, A);
        assert_eq!(host.through(1, UPLINK, &back.udp(53, other, b"answer")).unwrap().0, B);
    });
}

#[test]
fn na6_an_endpoint_independent_filter_lets_strangers_in_as_far_as_ingress_policy_does() {
    both(|v6| {
        let mut host = Host::with_pool(|pool| pool.filtering = Filtering::EndpointIndependent);
        let l4 = host.leaves(A, remote(v6, 1), (4000, 53));
        let stranger = inward(remote(v6, 2), public(v6, POOL)).udp(9, l4, b"hello");
        assert_eq!(host.through(0, UPLINK, &stranger), Ok((A, (remote(v6, 2), address(A, v6), 9, 4000))));
        let entry = host.entries().into_iter().find(|entry| entry.in_port == UPLINK).unwrap();
        assert_eq!(entry.out_port, A);
        assert_eq!(host.connections.used_by(A), 2, "it counts for the guest");
        // The answer is part of it.
        let answer = out(A, remote(v6, 2)).udp(4000, 9, b"hello");
        assert_eq!(host.through(1, A, &answer), Ok((UPLINK, (public(v6, POOL), remote(v6, 2), l4, 9))));
        assert_eq!(host.entries().len(), 2);
        // Policy sees the inside destination: 4000 is allowed, whatever the outside port is.
        host.allow_only(&[4000]);
        assert_eq!(host.through(0, UPLINK, &stranger).unwrap().0, A);
        host.allow_only(&[l4]);
        let denied = Err(DropReason::PolicyDenied);
        assert_eq!(host.through(0, UPLINK, &stranger), denied, "and it is asked again");
        let third = inward(remote(v6, 3), public(v6, POOL)).udp(9, l4, b"hello");
        assert_eq!(host.through(0, UPLINK, &third), denied);
        // What went out goes on.
        assert_eq!(host.leaves(A, remote(v6, 1), (4000, 53)), l4);
    });
}

#[test]
fn nothing_that_is_denied_takes_a_nat_port() {
    both(|v6| {
        let mut host = Host::outside();
        host.world.policies = vec![Arc::new(NetworkPolicy {
            name: PolicyName { namespace: Some("test".to_owned()), name: "none".to_owned() },
            origin: String::new(),
            selector: Selector::default(),
            ingress: None,
            egress: Some(Vec::new()),
            audit: false,
        })];
        host.publish();
        let frame = out(A, remote(v6, 1)).udp(4000, 53, b"data");
        assert_eq!(host.to(A, &frame), Err(DropReason::PolicyDenied));
        assert_eq!((host.entries().len(), host.nat.stats().mappings), (0, 0));
    });
}

#[test]
fn na7_two_guests_behind_one_address_see_each_other_as_from_outside() {
    both(|v6| {
        for to in [B, D] {
            let mut host = Host::with_pool(|pool| pool.filtering = Filtering::EndpointIndependent);
            let pool = public(v6, POOL);
            let theirs = host.leaves(to, remote(v6, 1), (5000, 53));
            let inside = if to == D { address(A, v6) } else { address(B, v6) };
            let (port, seen) = host.through(0, A, &out(A, pool).udp(4000, theirs, b"hello")).unwrap();
            assert_eq!((port, seen.0, seen.1, seen.3), (to, pool, inside, 5000), "the external source is shown");
            let mine = seen.2;
            assert_eq!(host.leaves(A, remote(v6, 1), (4000, 53)), mine, "the one that everybody sees");
            let answer = out(to, pool).udp(5000, mine, b"answer");
            assert_eq!(host.through(1, to, &answer), Ok((A, (pool, address(A, v6), theirs, 4000))));
            assert_eq!(host.through(0, A, &out(A, pool).udp(4000, theirs, b"on")).unwrap().0, to);
        }
    });
}

#[test]
fn tcp_through_a_pool_and_simultaneous_open() {
    both(|v6| {
        let mut host = Host::with_pool(|pool| pool.filtering = Filtering::EndpointIndependent);
        let (server, pool) = (remote(v6, 1), public(v6, POOL));
        let segment =
            |src_port, dst_port, flags, seq, ack| TcpHeader { src_port, dst_port, seq, ack, flags, window: 1000 };
        let syn = out(A, server).tcp(&segment(4000, 80, SYN, 10, 0), b"");
        let (_, seen) = host.through(0, A, &syn).unwrap();
        let l4 = seen.2;
        // Both SYNs cross (SEMANTICS NA12).
        let crossing = inward(server, pool).tcp(&segment(80, l4, SYN, 50, 0), b"");
        assert_eq!(host.through(1, UPLINK, &crossing).unwrap().0, A);
        let both_ways = [(A, SYN | ACK, 10, 51), (UPLINK, SYN | ACK, 50, 11), (A, ACK, 11, 51), (UPLINK, ACK, 51, 11)];
        for (from, flags, seq, ack) in both_ways {
            let frame = match from {
                A => out(A, server).tcp(&segment(4000, 80, flags, seq, ack), b""),
                _ => inward(server, pool).tcp(&segment(80, l4, flags, seq, ack), b""),
            };
            let to = if from == A { UPLINK } else { A };
            assert_eq!(host.through(usize::from(from != A), from, &frame).unwrap().0, to);
        }
        let out_of_window = inward(server, pool).tcp(&segment(80, l4, RST, 90_000, 0), b"");
        assert_eq!(host.through(0, UPLINK, &out_of_window), Err(DropReason::TcpOutOfWindow));
        assert_eq!(host.entries().len(), 1);
        let unasked = inward(server, pool).tcp(&segment(81, l4, ACK, 1, 1), b"");
        assert_eq!(host.through(0, UPLINK, &unasked), Err(DropReason::NatNoMapping), "never picked up in the middle");
    });
}

#[test]
fn na23_exhaustion_is_told_and_nothing_leaves_untranslated() {
    both(|v6| {
        let mut host = Host::with_pool(|pool| pool.blocks = 1..=1);
        let send = |host: &mut Host, port| {
            let frame = out(A, remote(v6, 1)).udp(port, 53, b"data");
            host.pass(0, A, &frame, Offload::default(), &mut Unwatched)
        };
        let refused = (2000..2100).find_map(|port| send(&mut host, port).err()).unwrap();
        assert_eq!(refused.0, DropReason::NatPortLimit);
        let (frame, _) = read(&refused.1.unwrap());
        let Body::Ip { src, dst, l4: L4::Icmp { kind, code, .. }, .. } = frame.body else { panic!() };
        assert_eq!((dst, kind, code), (address(A, v6), if v6 { 1 } else { 3 }, if v6 { 3 } else { 1 }));
        assert_eq!(src, if v6 { "2001:db8:0:1::fe".parse::<IpAddr>().unwrap() } else { [192, 0, 2, 254].into() });
        assert_eq!(host.entries().len(), 64);
        // Another protocol, and another guest, have their own.
        assert!(host.to(A, &out(A, remote(v6, 1)).echo_request(1, 1, b"?")).is_ok());
        assert_eq!(host.to(B, &out(B, remote(v6, 1)).udp(1, 53, b"data")), Ok(UPLINK));
    });
}

#[test]
fn without_egress_or_pool_nothing_leaves() {
    both(|v6| {
        let mut host = Host::with_pool(|pool| pool.workloads.retain(|workload| workload.port != A));
        let frame = out(A, remote(v6, 1)).udp(4000, 53, b"data");
        let ended = host.pass(0, A, &frame, Offload::default(), &mut Unwatched).err().unwrap();
        assert_eq!(ended.0, DropReason::NatNoPool);
        let told = |frame: Vec<u8>| {
            let Body::Ip { l4: L4::Icmp { kind, code, .. }, .. } = read(&frame).0.body else { panic!() };
            (kind, code)
        };
        assert_eq!(told(ended.1.unwrap()), if v6 { (1, 1) } else { (3, 13) }, "prohibited");
        let l4 = host.leaves(B, remote(v6, 1), (4000, 53));
        host.edit_network(NETWORK, |network| (network.egress_v4, network.egress_v6) = (Egress::None, Egress::None));
        let frame = out(B, remote(v6, 1)).udp(4000, 53, b"data");
        let ended = host.pass(0, B, &frame, Offload::default(), &mut Unwatched).err().unwrap();
        assert_eq!(ended.0, DropReason::EgressNone, "connections end with it");
        assert_eq!(told(ended.1.unwrap()), if v6 { (1, 0) } else { (3, 0) }, "no route");
        let answer = inward(remote(v6, 1), public(v6, POOL)).udp(53, l4, b"answer");
        assert_eq!(host.through(0, UPLINK, &answer), Err(DropReason::NatNoMapping));
        // An address of the network that nobody has is not looked for outside.
        assert_eq!(host.to(B, &udp(B, 99, v6, (1, 2))), Err(DropReason::NoRoute));
        host.plane.tables.uplink = None;
        host.edit_network(NETWORK, |network| (network.egress_v4, network.egress_v6) = (Egress::Nat, Egress::Nat));
        assert_eq!(host.to(B, &frame), Err(DropReason::EgressNone), "and without an uplink");
    });
}

#[test]
fn an_uplink_that_is_down_or_has_no_gateway_takes_nothing_and_begins_nothing() {
    both(|v6| {
        let mut host = Host::outside();
        let frame = out(A, remote(v6, 1)).udp(4000, 53, b"data");
        host.edit_uplink(|uplink| uplink.link = false);
        assert_eq!(host.to(A, &frame), Err(DropReason::UplinkDown));
        host.edit_uplink(|uplink| {
            uplink.link = true;
            for gateway in uplink.v4.iter_mut().chain(&mut uplink.v6) {
                gateway.mac = None;
            }
        });
        assert_eq!(host.to(A, &frame), Err(DropReason::NextHopUnresolved));
        assert_eq!((host.entries().len(), host.nat.stats().mappings), (0, 0));
        // Of several, those that answered are used, each by some flows.
        let macs = [GATEWAY_MAC, MacAddr([2, 0, 0, 0, 0xff, 3])];
        host.edit_uplink(|uplink| {
            for gateways in [&mut uplink.v4, &mut uplink.v6] {
                let address = gateways[0].address;
                *gateways = [Some(macs[0]), None, Some(macs[1])].map(|mac| NextHop { address, mac }).to_vec();
            }
        });
        let mut used = std::collections::HashSet::new();
        for port in 1..60 {
            let frame = out(A, remote(v6, 1)).udp(4000, port, b"data");
            let passed = host.pass(0, A, &frame, Offload::default(), &mut Unwatched).ok().unwrap();
            used.insert(MacAddr(*passed.frame.first_chunk().unwrap()));
        }
        assert_eq!(used, macs.into_iter().collect());
    });
}

#[test]
fn a_million_spoofed_packets_none_leaves() {
    both(|v6| {
        let mut host = Host::outside();
        let mut frames = Vec::new();
        for src in [address(B, v6), public(v6, POOL), public(v6, HOST), public(v6, PUBLIC), remote(v6, 9)] {
            let path = Path { src, ..out(A, remote(v6, 1)) };
            frames.push(path.udp(4000, 53, b"data"));
            frames.push(path.tcp(&TcpHeader { src_port: 1, dst_port: 2, flags: SYN, ..Default::default() }, b""));
            frames.push(path.ip(132, &[0; 12]));
            frames.push(path.ip(47, &[0; 12]));
        }
        let Host { plane, connections, nat, workers, .. } = &mut host;
        let (cache, free) = &mut workers[0];
        let port = plane.tables.port(PortId(A)).unwrap();
        let ctx = Context::new(plane, port, plane.tables.network(NETWORK).unwrap(), 0, 100);
        let mut burst = Burst::new();
        let mut spoofed = 0;
        for i in 0..500_000 {
            let meta = Meta { in_port: PortId(A), ..Meta::default() };
            burst.with_frame(meta, &frames[i % frames.len()], HEAD_FIRST, |packet, arena| {
                let verdict = match datapath::classify(&ctx, packet, arena, &mut None, &mut Unwatched) {
                    Verdict::Continue => {
                        let key = FlowKey::of(packet, A as u16).unwrap();
                        let lookup = Lookup::new(connections.keys(), key, 7);
                        let mut flows = Flows { cache, connections, nat, free, denied: None, opened: None };
                        datapath::forward(&ctx, &mut flows, &lookup, packet, arena, &mut Unwatched)
                    }
                    ended => ended,
                };
                spoofed += usize::from(verdict == Verdict::Drop(DropReason::SpoofedIp));
            });
        }
        assert_eq!(spoofed, 500_000);
    });
}

#[test]
fn whoever_comes_from_outside_is_nobody_of_ours() {
    both(|v6| {
        let mut host = Host::with_pool(|pool| pool.filtering = Filtering::EndpointIndependent);
        let l4 = host.leaves(A, remote(v6, 1), (4000, 53));
        let pool = public(v6, POOL);
        let from = |host: &mut Host, src| host.to(UPLINK, &inward(src, pool).udp(53, l4, b"?"));
        for src in [public(v6, POOL), public(v6, HOST), address(B, v6), address(99, v6)] {
            assert_eq!(from(&mut host, src), Err(DropReason::SpoofedIp), "{src}");
        }
        let martians: &[&str] = match v6 {
            false => &["0.0.0.1", "127.0.0.1", "224.0.0.1", "255.255.255.255", "240.0.0.1", "169.254.1.1"],
            true => &["::", "::1", "ff02::1", "fe80::2"],
        };
        for src in martians {
            assert_eq!(from(&mut host, src.parse().unwrap()), Err(DropReason::AddressNotForwardable), "{src}");
        }
        // Its link address is ours, nobody's group, and not another host's.
        let mut frame = inward(remote(v6, 2), pool).udp(53, l4, b"?");
        frame[..6].copy_from_slice(&mac(A).0);
        assert_eq!(host.to(UPLINK, &frame), Err(DropReason::NotForRouter));
        frame[..6].fill(0xff);
        assert_eq!(host.to(UPLINK, &frame), Err(DropReason::MulticastNotForwarded));
        frame[..6].copy_from_slice(&UPLINK_MAC.0);
        frame[6] |= 1;
        assert_eq!(host.to(UPLINK, &frame), Err(DropReason::SpoofedMac));
        frame[6] &= !1;
        assert_eq!(host.to(UPLINK, &frame), Ok(A));
    });
}
