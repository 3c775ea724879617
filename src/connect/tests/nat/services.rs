//! Services (SEMANTICS §2): which backend a connection gets, what it looks like there, and what becomes of it when backends change.
//! `B` and `C` are backends on L4 port 8080, `A` is a client of their network, `D` one of another network.

use std::collections::BTreeMap;

use hostweave_nat::service::{Backend, FrontendSpec, Refusal, Services};
use hostweave_switch::tables::OUTSIDE_VNI;
use hostweave_switch::wire::proto::{SCTP, TCP, UDP};

use super::errors::{about, quoted, unreachable};
use super::shape::{fragments, offload, partial, reassembled};
use super::*;

mod apart;
mod life;
mod outside;

const PUBLIC_VIP: u16 = 20;

/// The private address of the Service.
pub(super) fn vip(v6: bool) -> IpAddr {
    if v6 { "2001:db8:96::1".parse().unwrap() } else { [10, 96, 0, 1].into() }
}

fn gateway(v6: bool) -> IpAddr {
    if v6 { "2001:db8:0:1::fe".parse().unwrap() } else { [192, 0, 2, 254].into() }
}

pub(super) fn backend(port: u32, v6: bool) -> Backend {
    let name = format!("test/{port}").into();
    Backend { name, address: mapped(address(port, v6)), l4: Some(8080), weight: 1, active: true, ejected: false }
}

fn drained(port: u32, v6: bool) -> Backend {
    Backend { active: false, ..backend(port, v6) }
}

/// L4 port 80 of an address, over a protocol.
fn spec(at: IpAddr, proto: u8, backends: &[Backend]) -> FrontendSpec {
    let public = at == public(at.is_ipv6(), PUBLIC_VIP);
    FrontendSpec {
        service: "test/web".into(),
        port_name: "http".into(),
        scope: if public { OUTSIDE_VNI } else { 7 },
        address: mapped(at),
        proto,
        l4: 80..=80,
        vni: 7,
        sources: [].into(),
        affinity_s: None,
        backends: backends.into(),
        begun: Default::default(),
        refusal: Refusal::Reject,
    }
}

fn tcp(src_port: u16, dst_port: u16, flags: u8, seq: u32, ack: u32) -> TcpHeader {
    TcpHeader { src_port, dst_port, seq, ack, flags, window: 1000 }
}

impl Host {
    /// A host whose Service spreads TCP and UDP at its private and its public address over these backends.
    fn serving(v6: bool, backends: &[Backend]) -> Self {
        Self::serving_as(v6, backends, |_| {})
    }

    pub(super) fn serving_as(v6: bool, backends: &[Backend], edit: impl Fn(&mut FrontendSpec)) -> Self {
        let mut host = Host::outside();
        host.edit_uplink(|uplink| {
            uplink.owned.insert(mapped(public(v6, PUBLIC_VIP)), Owned::Service);
        });
        host.serve(v6, backends, edit);
        host
    }

    pub(super) fn serve(&mut self, v6: bool, backends: &[Backend], edit: impl Fn(&mut FrontendSpec)) {
        let at = [vip(v6), public(v6, PUBLIC_VIP)];
        let specs = at.into_iter().flat_map(|at| [TCP, UDP].map(|proto| spec(at, proto, backends)));
        let mut specs: Vec<FrontendSpec> = specs.collect();
        specs.iter_mut().for_each(edit);
        self.plane.services = Arc::new(Services::compile(&specs, Some(&self.plane.services)));
        self.publish();
    }

    /// A datagram of a port to L4 port 80 of an address: to whom it goes, and as what.
    #[track_caller]
    fn asks(&mut self, from: u32, to: IpAddr, src_port: u16) -> Result<(u32, Seen), DropReason> {
        let frame = if from == UPLINK { inward(remote(to.is_ipv6(), 1), to) } else { out(from, to) };
        self.through(0, from, &frame.udp(src_port, 80, b"question"))
    }

    /// What the sender of a frame that ends is told.
    #[track_caller]
    fn told(&mut self, from: u32, frame: &[u8]) -> (DropReason, Option<Frame>) {
        let ended = self.pass(0, from, frame, Offload::default(), &mut Unwatched).err().expect("it ends");
        (ended.0, ended.1.map(|frame| read(&frame).0))
    }

    /// Three segments of `A` and the backend that it got, which is returned.
    #[track_caller]
    fn opens(&mut self, v6: bool, src_port: u16) -> u32 {
        let syn = out(A, vip(v6)).tcp(&tcp(src_port, 80, SYN, 100, 0), b"");
        let (to, seen) = self.through(0, A, &syn).unwrap();
        assert_eq!(seen, (address(A, v6), address(to, v6), src_port, 8080));
        let answer = path(to, A, v6).tcp(&tcp(8080, src_port, SYN | ACK, 500, 101), b"");
        let (back, seen) = self.through(1, to, &answer).unwrap();
        assert_eq!((back, seen), (A, (vip(v6), address(A, v6), 80, src_port)));
        assert_eq!(self.says(v6, src_port), Ok(to));
        to
    }

    /// A segment of that connection.
    fn says(&mut self, v6: bool, src_port: u16) -> Result<u32, DropReason> {
        let frame = out(A, vip(v6)).tcp(&tcp(src_port, 80, ACK, 101, 501), b"");
        self.through(0, A, &frame).map(|(to, _)| to)
    }
}

/// An L4 port from which `A` gets this backend.
#[track_caller]
fn port_to(host: &mut Host, v6: bool, backend: u32) -> u16 {
    (4000..4100).find(|port| host.asks(A, vip(v6), *port).unwrap().0 == backend).expect("one in a hundred")
}

#[test]
fn connections_are_spread_and_answered_from_the_services_address() {
    both(|v6| {
        let mut host = Host::serving(v6, &[backend(B, v6), backend(C, v6)]);
        let mut got = BTreeMap::new();
        for port in 4000..4200 {
            let (to, seen) = host.asks(A, vip(v6), port).unwrap();
            assert_eq!(seen, (address(A, v6), address(to, v6), port, 8080), "the backend sees the client");
            *got.entry(to).or_insert(0) += 1;
            for worker in [1, 0] {
                let answer = path(to, A, v6).udp(8080, port, b"answer");
                assert_eq!(host.through(worker, to, &answer), Ok((A, (vip(v6), address(A, v6), 80, port))));
            }
            assert_eq!(host.asks(A, vip(v6), port).unwrap().0, to, "it stays there");
        }
        assert_eq!(host.entries().len(), 200);
        assert!(got.len() == 2 && got.values().all(|count| *count > 70), "{got:?}");
        let first = host.entries()[0];
        assert!(first.translation.is_some_and(|t| t.held == [None, None]), "no NAT port is taken");
    });
}

#[test]
fn what_others_say_to_each_other_does_not_change() {
    both(|v6| {
        let mut host = Host::serving(v6, &[backend(B, v6)]);
        assert_eq!(
            host.through(0, A, &udp(A, B, v6, (4000, 80))).unwrap().1,
            (address(A, v6), address(B, v6), 4000, 80)
        );
        assert!(host.entry().translation.is_none());
        host.leaves(A, remote(v6, 1), (4000, 53));
        // In another network the address means nothing.
        assert_eq!(host.asks(D, vip(v6), 4000).unwrap().0, UPLINK);
    });
}

#[test]
fn tcp_is_tracked_through_a_service() {
    both(|v6| {
        let mut host = Host::serving(v6, &[backend(B, v6)]);
        let to = host.opens(v6, 4000);
        let far = path(to, A, v6).tcp(&tcp(8080, 4000, RST, 900_000, 0), b"");
        assert_eq!(host.through(0, to, &far), Err(DropReason::TcpOutOfWindow));
        let unasked = out(A, vip(v6)).tcp(&tcp(4001, 80, ACK, 1, 1), b"");
        assert_eq!(host.through(0, A, &unasked), Err(DropReason::ServiceEnded));
    });
}

#[test]
fn frames_keep_their_offloads() {
    both(|v6| {
        let mut host = Host::serving(v6, &[backend(B, v6)]);
        let mut frame = out(A, vip(v6)).udp(4000, 80, b"some data");
        hostweave_guest::frames::partial_checksum(&mut frame).unwrap();
        let passed = host.pass(0, A, &frame, offload(v6, 6), &mut Unwatched).ok().unwrap();
        assert!(passed.offload.needs_csum());
        assert_eq!(read_with(&partial(), &passed.frame).1, (address(A, v6), address(B, v6), 4000, 8080));
    });
}

#[test]
fn fragments_follow_their_first_one() {
    both(|v6| {
        let mut host = Host::serving(v6, &[backend(B, v6), backend(C, v6)]);
        let path_in = out(A, vip(v6));
        let sent = fragments(&path_in, &path_in.udp(4000, 80, &[0x77; 200]), 9);
        let mut tos = Vec::new();
        let there = sent.map(|frame| {
            let passed = host.pass(0, A, &frame, Offload::default(), &mut Unwatched).ok().unwrap();
            tos.push(passed.to);
            passed.frame
        });
        assert_eq!(tos[0], tos[1]);
        assert_eq!(reassembled(there, v6), (address(A, v6), address(tos[0], v6), 4000, 8080));
    });
}

#[test]
fn sctp_is_spread_too() {
    both(|v6| {
        let mut host = Host::outside();
        let specs = [spec(vip(v6), SCTP, &[backend(B, v6)])];
        host.plane.services = Arc::new(Services::compile(&specs, None));
        host.publish();
        // Source and destination port, tag, CRC32c, and an INIT chunk as far as nobody looks.
        let mut packet = [4000u16.to_be_bytes(), 80u16.to_be_bytes()].concat();
        packet.extend([0; 28]);
        // (Its checksum is zero: there is none, RFC 9653.)
        let passed = host.pass(0, A, &out(A, vip(v6)).ip(SCTP, &packet), Offload::default(), &mut Unwatched);
        let passed = passed.unwrap_or_else(|ended| panic!("{:?}", ended.0));
        let l4 = if v6 { 54 } else { 34 };
        assert_eq!((passed.to, &passed.frame[l4..l4 + 4]), (B, &[0x0f, 0xa0, 0x1f, 0x90][..]));
    });
}

#[test]
fn sv17_what_is_not_declared_is_refused_and_never_routed_on() {
    both(|v6| {
        let mut host = Host::serving(v6, &[backend(B, v6)]);
        for (from, to) in
            [(A, vip(v6)), (A, public(v6, PUBLIC_VIP)), (D, public(v6, PUBLIC_VIP)), (UPLINK, public(v6, PUBLIC_VIP))]
        {
            let path = if from == UPLINK { inward(remote(v6, 1), to) } else { out(from, to) };
            let (reason, told) = host.told(from, &path.udp(4000, 81, b"?"));
            assert_eq!(reason, DropReason::ServiceNoPort);
            let told = told.expect("port unreachable");
            let Body::Ip { src, dst, ref l4, .. } = told.body else { panic!() };
            let L4::Icmp { kind, code, .. } = l4 else { panic!("{l4:?}") };
            assert_eq!((src, dst, (*kind, *code)), (to, path.src, unreachable(v6)));
            assert_eq!((told.src_mac, told.dst_mac), (path.dst_mac, path.src_mac));
            let (reason, told) = host.told(from, &path.tcp(&tcp(4000, 81, SYN, 100, 0), b""));
            assert_eq!(reason, DropReason::ServiceNoPort);
            let told = told.expect("a reset");
            assert_eq!((told.src_mac, told.dst_mac), (path.dst_mac, path.src_mac));
            let Body::Ip { src, dst, .. } = told.body else { panic!() };
            assert_eq!((src, dst), (to, path.src));
            let (segment, _) = told.tcp().expect("TCP");
            assert_eq!((segment.src_port, segment.dst_port, segment.flags, segment.ack), (81, 4000, RST | ACK, 101));
            assert_eq!(host.told(from, &path.ip(47, &[0; 20])).0, DropReason::ServiceNoPort, "another protocol");
        }
        assert_eq!(host.entries(), []);
    });
}

#[test]
fn sv16_without_backends_clients_hear_at_once_or_nothing_as_the_service_says() {
    both(|v6| {
        for backends in [vec![], vec![drained(B, v6)]] {
            let mut host = Host::serving(v6, &backends);
            for (from, to) in [(A, vip(v6)), (UPLINK, public(v6, PUBLIC_VIP))] {
                let path = if from == UPLINK { inward(remote(v6, 1), to) } else { out(from, to) };
                let syn = path.tcp(&tcp(4000, 80, SYN, 100, 0), b"");
                let (reason, told) = host.told(from, &syn);
                assert_eq!(reason, DropReason::ServiceNoBackend);
                assert_eq!(told.and_then(|frame| frame.tcp().map(|(segment, _)| segment.flags)), Some(RST | ACK));
                let (reason, told) = host.told(from, &path.udp(4000, 80, b"?"));
                assert_eq!(
                    (reason, told.and_then(|frame| frame.icmp())),
                    (DropReason::ServiceNoBackend, Some(unreachable(v6)))
                );
            }
            host.serve(v6, &backends, |spec| spec.refusal = Refusal::Drop);
            let (reason, told) = host.told(A, &out(A, vip(v6)).udp(4000, 80, b"?"));
            assert_eq!((reason, told.is_none()), (DropReason::ServiceNoLocalBackend, true));
        }
    });
}

#[test]
fn sv18_source_ranges_keep_others_out_silently() {
    both(|v6| {
        let range: ipnet::IpNet = if v6 { "2001:db8:e::1/128" } else { "198.51.100.1/32" }.parse().unwrap();
        let mut host = Host::serving_as(v6, &[backend(B, v6)], |spec| {
            if spec.scope == OUTSIDE_VNI {
                spec.sources = [range].into();
            }
        });
        let to = public(v6, PUBLIC_VIP);
        assert_eq!(host.asks(UPLINK, to, 4000).unwrap().0, B);
        let (reason, told) = host.told(UPLINK, &inward(remote(v6, 2), to).udp(4000, 80, b"?"));
        assert_eq!((reason, told.is_none()), (DropReason::ServiceSource, true));
        assert_eq!(host.asks(A, to, 4000), Err(DropReason::ServiceSource), "by its real source");
        assert_eq!(host.asks(A, vip(v6), 4000).unwrap().0, B, "not at its private address");
        // Who is narrowed out is cut, unless what is established goes on.
        host.serve(v6, &[backend(B, v6)], |spec| spec.sources = ["192.0.2.77/32".parse().unwrap()].into());
        assert_eq!(host.asks(UPLINK, to, 4000), Err(DropReason::ServiceSource));
    });
}

#[test]
fn sv18_who_comes_from_a_pool_is_known_by_its_address_there_even_if_it_has_none_yet() {
    both(|v6| {
        let of = |last: u16| -> ipnet::IpNet { ipnet::IpNet::from(public(v6, last)) };
        for (range, expected) in [(of(POOL), Ok(B)), (of(99), Err(DropReason::ServiceSource))] {
            let mut host = Host::serving_as(v6, &[backend(B, v6)], |spec| spec.sources = [range].into());
            for _ in 0..2 {
                assert_eq!(host.asks(D, public(v6, PUBLIC_VIP), 4000).map(|(to, _)| to), expected);
            }
        }
    });
}

#[test]
fn sv19_a_backend_reaches_itself_by_its_service_as_the_gateway() {
    both(|v6| {
        for to in [vip(v6), public(v6, PUBLIC_VIP)] {
            let mut host = Host::serving(v6, &[backend(B, v6)]);
            // Nobody may come in (SEMANTICS NP24).
            host.allow_only(&[]);
            assert_eq!(host.asks(B, to, 4000), Ok((B, (gateway(v6), address(B, v6), 4000, 8080))));
            let answer = Path::new(mac(B).0, MacAddr::ROUTER.0, address(B, v6), gateway(v6)).udp(8080, 4000, b"answer");
            for worker in [1, 0] {
                assert_eq!(host.through(worker, B, &answer), Ok((B, (to, address(B, v6), 80, 4000))));
            }
            host.publish();
            assert_eq!(host.asks(B, to, 4000).unwrap().1.0, gateway(v6), "it goes on");
            assert_eq!(host.entries().len(), 1);
            assert_eq!(host.asks(A, to, 4000), Err(DropReason::PolicyDenied), "others may not");
        }
    });
}

#[test]
fn two_services_with_one_backend_are_told_apart_there_by_another_l4_port() {
    both(|v6| {
        let mut host = Host::serving(v6, &[backend(B, v6)]);
        let frame = |to| out(A, to).udp(4000, 80, b"question");
        let (_, first) = host.through(0, A, &frame(vip(v6))).unwrap();
        assert_eq!(first.2, 4000);
        // The same client and L4 port, by the public address.
        let (to, second) = host.through(0, A, &frame(public(v6, PUBLIC_VIP))).unwrap();
        assert_eq!((to, second.0, second.1, second.3), (B, address(A, v6), address(B, v6), 8080));
        assert!(second.2 >= 49152, "another L4 port: {}", second.2);
        for (to, l4) in [(vip(v6), 4000), (public(v6, PUBLIC_VIP), second.2)] {
            let answer = path(B, A, v6).udp(8080, l4, b"answer");
            assert_eq!(host.through(1, B, &answer), Ok((A, (to, address(A, v6), 80, 4000))));
        }
    });
}

#[test]
fn a_client_that_talks_to_its_backend_itself_keeps_both_connections() {
    both(|v6| {
        let mut host = Host::serving(v6, &[backend(B, v6)]);
        let direct = udp(A, B, v6, (4000, 8080));
        assert_eq!(host.to(A, &direct), Ok(B));
        let (_, seen) = host.asks(A, vip(v6), 4000).unwrap();
        assert_ne!(seen.2, 4000);
        let answer = path(B, A, v6).udp(8080, 4000, b"answer");
        assert_eq!(host.through(1, B, &answer).unwrap().1, (address(B, v6), address(A, v6), 8080, 4000));
        // The other way round the one to the backend is the one that gets another.
        let mut host = Host::serving(v6, &[backend(B, v6)]);
        assert_eq!(host.asks(A, vip(v6), 4000).unwrap().0, B);
        let (_, seen) = host.through(0, A, &out(A, address(B, v6)).udp(4000, 8080, b"question")).unwrap();
        assert_ne!(seen.2, 4000);
        assert_eq!(host.to(A, &udp(A, B, v6, (4001, 8080))), Ok(B));
        assert_eq!(host.through(1, B, &answer).unwrap().1, (vip(v6), address(A, v6), 80, 4000));
        let other = path(B, A, v6).udp(8080, seen.2, b"answer");
        assert_eq!(host.through(1, B, &other).unwrap().1, (address(B, v6), address(A, v6), 8080, 4000));
    });
}

#[test]
fn np21_policy_sees_the_backends_l4_port_and_the_real_client() {
    both(|v6| {
        for from in [A, UPLINK] {
            let to = public(v6, PUBLIC_VIP);
            let mut host = Host::serving(v6, &[backend(B, v6)]);
            host.allow_only(&[80]);
            assert_eq!(host.asks(from, to, 4000), Err(DropReason::PolicyDenied));
            host.allow_only(&[8080]);
            assert_eq!(host.asks(from, to, 4000).unwrap().0, B);
            host.allow_only(&[80]);
            assert_eq!(host.asks(from, to, 4000), Err(DropReason::PolicyDenied), "and is asked again");
        }
        // An address as a peer, and egress.
        let allow = |host: &mut Host, address: IpAddr, ingress| {
            let rule = Rule {
                origin: String::new(),
                peers: vec![hostweave_policy::model::Peer::IpBlock {
                    cidr: ipnet::IpNet::from(address),
                    except: vec![],
                }],
                ports: Vec::new(),
            };
            host.world.policies = vec![Arc::new(NetworkPolicy {
                name: PolicyName { namespace: Some("test".to_owned()), name: "block".to_owned() },
                origin: String::new(),
                selector: Selector::default(),
                ingress: if ingress { Some(vec![rule.clone()]) } else { None },
                egress: if ingress { None } else { Some(vec![rule]) },
                audit: false,
            })];
            host.publish();
        };
        let mut host = Host::serving(v6, &[backend(B, v6)]);
        for (from, client, to) in [(A, address(A, v6), vip(v6)), (UPLINK, remote(v6, 1), public(v6, PUBLIC_VIP))] {
            allow(&mut host, client, true);
            assert_eq!(host.asks(from, to, 4000).unwrap().0, B);
            allow(&mut host, address(C, v6), true);
            assert_eq!(host.asks(from, to, 4001), Err(DropReason::PolicyDenied));
        }
        allow(&mut host, address(B, v6), false);
        assert_eq!(host.asks(A, vip(v6), 4002).unwrap().0, B, "egress to the backend");
        allow(&mut host, vip(v6), false);
        assert_eq!(host.asks(A, vip(v6), 4002), Err(DropReason::PolicyDenied), "not to the Service's address");
    });
}

#[test]
fn icmp_errors_of_a_backend_are_about_the_services_address() {
    both(|v6| {
        let mut host = Host::serving(v6, &[backend(B, v6)]);
        let sent = out(A, vip(v6)).udp(4000, 80, b"a question to be quoted");
        let (to, there) = host.frame_through(A, &sent);
        let too_big = if v6 { (2, 0) } else { (3, 4) };
        for said in [unreachable(v6), too_big] {
            let error = about(path(to, A, v6), said, [0, 0, 5, 0], &there, 500);
            let (back, got) = host.frame_through(to, &error);
            assert_eq!(back, A);
            let Body::Ip { src, dst, .. } = read(&got).0.body else { panic!() };
            assert_eq!((src, dst), (vip(v6), address(A, v6)));
            let header = if v6 { 40 } else { 20 };
            let (inner, kind, rest) = quoted(&got);
            assert_eq!((kind, rest), (said, [0, 0, 5, 0]));
            assert_eq!(inner[14 + header..], sent[14 + header..], "as the client sent it");
        }
        // Too big for the backend's network: the switch says so itself, about the Service.
        host.edit_network(NETWORK, |network| network.mtu = 1400);
        let long = out(A, vip(v6)).udp(4000, 80, &[7; 1400]);
        let (reason, told) = host.told(A, &long);
        assert_eq!(reason, DropReason::MtuExceeded);
        let Body::Ip { l4: L4::Icmp { payload, .. }, .. } = told.expect("too big").body else { panic!() };
        assert_eq!(payload[..28], long[14..42]);
    });
}

#[test]
fn a_trace_says_who_would_be_chosen_and_takes_nothing() {
    struct Told(Vec<Detail>);
    impl Recorder for Told {
        const MASKED: bool = true;
        fn stage(&mut self, name: &'static str, detail: Detail) {
            if name == "dnat" {
                self.0.push(detail);
            }
        }
    }
    both(|v6| {
        let mut host = Host::serving(v6, &[backend(B, v6), drained(C, v6)]);
        let mut told = Told(Vec::new());
        let frame = out(A, vip(v6)).udp(4000, 80, b"?");
        assert_eq!(host.send_with(0, A, &frame, &mut told).map(|(to, _)| to), Ok(B));
        let [Detail::Service(given)] = told.0[..] else { panic!("{:?}", told.0) };
        assert_eq!(given.to, (mapped(address(B, v6)), 8080));
        assert_eq!(host.entries(), []);
    });
}
