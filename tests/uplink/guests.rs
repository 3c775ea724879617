//! Guests behind the uplink: real vhost-user over real sockets, and at the other end of the cable somebody who sees every frame and
//! answers as he likes.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use hostweave::fabric::spec::{BackendSpec, PortSpec, SocketMode};
use hostweave_guest::frames::{Body, Frame, L4, Path, Segment};
use hostweave_guest::{Error, Guest, Profile, VnetHeader};
use hostweave_switch::MacAddr;
use hostweave_switch::counters::PortTotals;
use hostweave_switch::packet::{Burst, Offload};
use hostweave_switch::rate::{Rate, Rates};
use hostweave_switch::stage::DropReason;
use hostweave_switch::tables::{Egress, Network, PortId};
use hostweave_uplink::device::Device;
use hostweave_uplink::uring::{Event, Uring};
use uuid::Uuid;

use super::{Host, Liar, OWN, PATIENCE, POOL, ROUTER, Router, eventually};

/// L4 ports of the guest's socket and of everybody that it talks to.
const OWN_PORT: u16 = 6_000;
const PORT: u16 = 7_000;

/// A router, a host whose ports leave by NAT, and somebody at the other end of its cable.
pub(super) struct Scene {
    pub(super) host: Host,
    pub(super) outside: Outside,
    pub(super) router: Router,
}

impl Scene {
    /// With one port for each name and number of queue pairs. `change` has the last word about them.
    pub(super) fn new(scenario: &str, ports: &[(&str, u16)], change: impl Fn(&mut PortSpec)) -> Self {
        let router = Router::new(scenario);
        // What it cannot send on ends there without a word.
        router.ip("-4 route add blackhole default");
        router.ip("-6 route add blackhole default");
        let mut host = Host::new();
        host.desired.networks = vec![network()];
        let dir = host.dir.path().to_owned();
        host.desired.ports = (10..)
            .zip(ports)
            .map(|(n, (name, queues))| {
                let mut spec = port(&dir, name, n, *queues);
                change(&mut spec);
                spec
            })
            .collect();
        host.desired.nat_pools[0].ports = host.desired.ports.iter().map(|port| port.uid).collect();
        host.fabric.apply(&host.desired).unwrap();
        host.up();
        eventually("the gateways answer", || host.both_gateways() == [Some(router.mac()); 2]);
        let outside = Outside::new(&router);
        Self { host, outside, router }
    }

    pub(super) fn port(&self, n: usize) -> PortSpec {
        (*self.host.desired.ports[n]).clone()
    }

    pub(super) fn guest(&self, n: usize) -> Guest {
        let spec = &self.host.desired.ports[n];
        let BackendSpec::VhostUser { socket, queues, .. } = &spec.backend else { unreachable!() };
        let builder = Guest::builder().profile(Profile::Dpdk).socket(socket).mac(spec.mac.0).timeout(PATIENCE);
        let mut guest = builder.pairs(usize::from(*queues)).ring_size(1_024).connect().unwrap();
        guest.nic().frontend.barrier().unwrap();
        guest
    }

    fn totals(&self, n: usize) -> PortTotals {
        self.host.fabric.port_status(&self.host.desired.ports[n].full_name()).unwrap().totals
    }
}

pub(super) fn network() -> Network {
    Network {
        v4: Some(("10.64.0.0/24".parse().unwrap(), Ipv4Addr::new(10, 64, 0, 1))),
        v6: Some(("fd00:64::/64".parse().unwrap(), "fd00:64::1".parse().unwrap())),
        learning: true,
        egress_v4: Egress::Nat,
        egress_v6: Egress::Nat,
        ..Network::bare("default", 1)
    }
}

pub(super) fn port(dir: &std::path::Path, name: &str, n: u8, queues: u16) -> PortSpec {
    PortSpec {
        uid: Uuid::new_v4(),
        mac: MacAddr([2, 0, 0, 0, 1, n]),
        v4: vec![Ipv4Addr::new(10, 64, 0, n)],
        v6: vec![Ipv6Addr::new(0xfd00, 0x64, 0, 0, 0, 0, 0, n.into())],
        backend: BackendSpec::VhostUser {
            mode: SocketMode::Listen,
            socket: dir.join(format!("{name}.sock")),
            incoming_socket: None,
            queues,
            group: None,
            allowed_uids: Vec::new(),
        },
        ..PortSpec::bare("test", name)
    }
}

/// Who sees every frame on the cable, and sends by another socket.
pub(super) struct Outside {
    device: Device,
    uring: Uring,
    sender: Liar,
}

impl Outside {
    fn new(router: &Router) -> Self {
        let Liar { device, mut uring } = router.liar();
        device.start(&mut uring, 0);
        uring.submit();
        Self { device, uring, sender: router.liar() }
    }

    /// What has come from the host since it was asked last, each with what is left to be done to it.
    fn take(&mut self) -> Vec<(Offload, Vec<u8>)> {
        let Self { device, uring, .. } = self;
        let (mut burst, mut frames, mut events) = (Burst::new(), Vec::new(), Vec::new());
        uring.wait(Some(Duration::from_millis(1)));
        uring.poll_completions(&mut |event| events.push(event));
        for event in events {
            let Event::Frame { frame, .. } = event else { continue };
            device.receive(PortId(1), &frame, &mut burst).unwrap();
            let (packet, arena) = burst.packet_mut(0);
            let mut copy = vec![0; packet.len()];
            packet.copy_frame(arena, &mut copy).unwrap();
            frames.push((packet.meta.offload, copy));
            burst.clear();
            uring.release(frame);
        }
        frames
    }

    /// What of it is to or from an L4 port, and where it comes from and goes to.
    pub(super) fn datagrams(&mut self, port: u16) -> Vec<Seen> {
        let seen = |(offload, frame): (Offload, Vec<u8>)| Seen::of(&offload, &frame);
        self.take().into_iter().filter_map(seen).filter(|seen| [seen.from.1, seen.to.1].contains(&port)).collect()
    }

    /// Sends a frame to the host from beyond the router.
    pub(super) fn send(&mut self, router: MacAddr, make: impl Fn(&Path) -> Vec<u8>, from: IpAddr, to: IpAddr) {
        self.sender.send(&make(&Path::new(router.0, super::ours().0, from, to)));
    }
}

/// A packet. Its checksum is right, or left to the next device.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) from: (IpAddr, u16),
    to: (IpAddr, u16),
    payload: Vec<u8>,
    tcp: Option<Segment>,
    gso_size: u16,
}

impl Seen {
    fn of(offload: &Offload, frame: &[u8]) -> Option<Self> {
        let flags = if offload.needs_csum() { VnetHeader::NEEDS_CSUM } else { 0 };
        let header = VnetHeader { flags, ..VnetHeader::default() };
        let Body::Ip { src, dst, l4, .. } = Frame::parse(&header, frame).unwrap().body else { return None };
        let gso_size = offload.gso_size;
        match l4 {
            L4::Udp { src_port, dst_port, payload } => {
                Some(Self { from: (src, src_port), to: (dst, dst_port), payload, tcp: None, gso_size })
            }
            L4::Tcp { segment, payload } => Some(Self {
                from: (src, segment.src_port),
                to: (dst, segment.dst_port),
                payload,
                tcp: Some(segment),
                gso_size,
            }),
            _ => None,
        }
    }
}

/// The nth of the remotes: none of them is in the subnet of the uplink.
pub(super) fn remote(ipv4: bool, n: u16) -> IpAddr {
    let [high, low] = n.to_be_bytes();
    match ipv4 {
        true => Ipv4Addr::new(198, 18, high, low).into(),
        false => Ipv6Addr::new(0x2001, 0xdb8, 0xee, 0, 0, 0, 0, n).into(),
    }
}

pub(super) fn path(from: &PortSpec, to: IpAddr) -> Path {
    let src = from.addresses().find(|own| own.is_ipv4() == to.is_ipv4()).unwrap();
    Path::new(from.mac.0, MacAddr::ROUTER.0, src, to)
}

/// Datagrams that a guest has got, as [`Seen`].
pub(super) fn received(guest: &mut Guest) -> Vec<Seen> {
    let (mut all, mut frame) = (Vec::new(), Vec::new());
    while let Some((_, header)) = guest.nic().recv_frame(&mut frame).unwrap() {
        let offload = Offload { flags: header.flags, ..Offload::default() };
        all.extend(Seen::of(&offload, &frame));
    }
    all
}

/// The guest spreads one socket over its four queues, two for each worker; answers come to the worker that the kernel chooses.
pub fn queues() {
    const REMOTES: u16 = 1_000;
    const BATCH: u16 = 40;
    let mut scene = Scene::new("queues", &[("a", 4)], |_| ());
    let (spec, router) = (scene.port(0), scene.router.mac());
    let mut guest = scene.guest(0);
    for ipv4 in [true, false] {
        let mut seen: HashMap<(IpAddr, u16), HashSet<IpAddr>> = HashMap::new();
        // Twice: the second time everybody is known.
        for first in (0..REMOTES).step_by(BATCH.into()).chain((0..REMOTES).step_by(BATCH.into())) {
            for n in first..first + BATCH {
                let frame = path(&spec, remote(ipv4, n)).udp(OWN_PORT, PORT, &n.to_be_bytes());
                guest.nic().push_frame(usize::from(n % 4), &VnetHeader::default(), &frame).unwrap();
            }
            (0..4).for_each(|pair| guest.nic().flush(pair).unwrap());
            let mut answers = HashSet::new();
            eventually("all of a batch are answered", || {
                for asked in scene.outside.datagrams(PORT) {
                    seen.entry(asked.from).or_default().insert(asked.to.0);
                    let answer = |path: &Path| path.udp(PORT, asked.from.1, &asked.payload);
                    scene.outside.send(router, answer, asked.to.0, asked.from.0);
                }
                for answer in received(&mut guest) {
                    let n = u16::from_be_bytes(answer.payload[..2].try_into().unwrap());
                    assert_eq!(answer.from, (remote(ipv4, n), PORT));
                    assert_eq!(answer.to, (path(&spec, answer.from.0).src, OWN_PORT));
                    assert!(answers.insert(n), "{n} answers once");
                }
                answers.len() == usize::from(BATCH)
            });
        }
        let outside: Vec<_> = seen.keys().copied().collect();
        assert_eq!(outside.len(), 1, "one socket has one outside address and port: {outside:?}");
        assert_eq!(outside[0].0, POOL[usize::from(!ipv4)].parse::<IpAddr>().unwrap());
        assert_eq!(seen[&outside[0]].len(), usize::from(REMOTES));
    }
    let totals = scene.totals(0);
    assert_eq!((totals.dropped, totals.tx_dropped), (vec![], vec![]));
    let uplink = scene.host.status().totals;
    let wrong =
        |reason: &&(DropReason, u64)| reason.0.name().starts_with("nat_") || reason.0 == DropReason::NoConnection;
    assert_eq!(uplink.dropped.iter().find(wrong), None, "{:?}", uplink.dropped);
    assert!(scene.host.fabric.worker_reports().iter().all(|worker| worker.packets > 100), "both workers took part");
    assert_eq!(guest.nic().violations(), []);
}

/// Frames with other people's sources: MAC and IP addresses, IPv4, IPv6, ARP and neighbour discovery.
fn spoofed_frames(own: &PortSpec, other: &PortSpec) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for ipv4 in [true, false] {
        let number = usize::from(!ipv4);
        let addresses: Vec<IpAddr> = [OWN[number], POOL[number], ROUTER[number]]
            .into_iter()
            .chain(if ipv4 {
                ["10.64.0.1", "10.64.0.77", "198.18.0.1", "127.0.0.1", "224.0.0.1", "0.0.0.0"]
            } else {
                ["fd00:64::1", "fd00:64::77", "2001:db8:ee::1", "::1", "ff02::1", "::"]
            })
            .map(|address| address.parse().unwrap())
            .chain([path(other, remote(ipv4, 1)).src])
            .collect();
        let targets = [remote(ipv4, 1), path(other, remote(ipv4, 1)).src, POOL[number].parse().unwrap()];
        for source in addresses {
            for to in targets {
                let path = Path::new(own.mac.0, MacAddr::ROUTER.0, source, to);
                frames.push(path.udp(OWN_PORT, PORT, b"spoofed"));
                for flags in [2, 16, 4] {
                    let segment = Segment { src_port: OWN_PORT, dst_port: PORT, seq: 1, ack: 1, flags, window: 100 };
                    frames.push(path.tcp(&segment, b""));
                }
                frames.push(path.echo_request(OWN_PORT, PORT, b"spoofed"));
            }
        }
        // The right address, and another's link address.
        for to in targets {
            let own = path(own, to);
            for mac in [other.mac.0, MacAddr::ROUTER.0, [2, 9, 9, 9, 9, 9]] {
                frames.push(Path { src_mac: mac, ..own }.udp(OWN_PORT, PORT, b"spoofed"));
            }
        }
    }
    frames
}

/// Nothing is lost on the way to the switch: the guest waits for room in its ring.
pub fn spoofed() {
    const SENT: usize = 1_000_000;
    let mut scene = Scene::new("spoofed", &[("a", 1), ("b", 1)], |_| ());
    let (own, other) = (scene.port(0), scene.port(1));
    let frames = spoofed_frames(&own, &other);
    let (mut hostile, mut victim) = (scene.guest(0), scene.guest(1));
    let (mut came, mut left) = (Vec::new(), Vec::new());
    for (sent, frame) in frames.iter().cycle().take(SENT).enumerate() {
        let end = Instant::now() + PATIENCE;
        loop {
            match hostile.nic().push_frame(0, &VnetHeader::default(), frame) {
                Ok(()) => break,
                Err(Error::RingFull) => hostile.nic().flush(0).unwrap(),
                Err(error) => panic!("{error}"),
            }
            assert!(Instant::now() < end, "the switch takes no more after {sent}");
            std::thread::yield_now();
        }
        if sent % 50_000 == 0 {
            came.extend(received(&mut victim));
            left.extend(scene.outside.datagrams(PORT));
        }
    }
    hostile.nic().flush(0).unwrap();
    hostile.nic().drain_tx(PATIENCE).unwrap();
    eventually("all are counted", || scene.totals(0).received == SENT as u64 && scene.totals(0).input_closes());
    let totals = scene.totals(0);
    let named = [DropReason::SpoofedIp, DropReason::SpoofedMac, DropReason::AddressNotForwardable];
    let counted: u64 = totals.dropped.iter().filter(|(reason, _)| named.contains(reason)).map(|(_, count)| count).sum();
    assert_eq!(counted, SENT as u64, "each by its name: {:?}", totals.dropped);
    assert_eq!((totals.forwarded, totals.replied), (0, 0));
    // What had been sent before would have come by now.
    std::thread::sleep(Duration::from_millis(200));
    came.extend(received(&mut victim));
    left.extend(scene.outside.datagrams(PORT));
    assert!(came.is_empty() && left.is_empty(), "{came:?} {left:?}");
    assert_eq!(scene.totals(1).transmitted, 0, "the other port got nothing at all");
    // The hostile guest itself is served as before.
    for ipv4 in [true, false] {
        let frame = path(&own, remote(ipv4, 1)).udp(OWN_PORT, PORT, b"honest");
        hostile.send_frame(&frame, &VnetHeader::default()).unwrap();
        eventually("what is its own leaves", || {
            scene.outside.datagrams(PORT).iter().any(|seen| seen.payload == b"honest")
        });
    }
}

const SENT: u16 = 200;

/// Units at once, and nearly none afterwards: what passes does not depend on the time that it takes.
fn burst(burst: u64) -> Option<Rate> {
    Some(Rate { per_s: 1, burst })
}

/// Takes what comes until there has been nothing for a while.
fn until_quiet(mut take: impl FnMut() -> usize) -> usize {
    let (mut sum, mut quiet) = (0, Instant::now());
    while quiet.elapsed() < Duration::from_millis(300) {
        let more = take();
        if more > 0 {
            sum += more;
            quiet = Instant::now();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    sum
}

fn limited(totals: &PortTotals) -> (u64, u64) {
    let of = |list: &[(DropReason, u64)]| {
        list.iter().find(|(reason, _)| *reason == DropReason::RateLimited).map_or(0, |(_, count)| *count)
    };
    (of(&totals.dropped), of(&totals.tx_dropped))
}

fn assert_about(what: &str, got: usize, wanted: usize, since: Instant) {
    let more = since.elapsed().as_secs() as usize + 1;
    assert!((wanted..=wanted + more).contains(&got), "{what}: {got}, not {wanted} and at most {more} more");
}

/// Limits of the uplink concern what passes the uplink, both directions and families together, and nothing else.
pub fn rates() {
    let uplink = |spec: &mut PortSpec| {
        if spec.name == "a" {
            spec.rates.uplink_egress = Rates { packets: burst(50), bits: None };
            spec.rates.uplink_ingress = Rates { packets: burst(30), bits: None };
        }
    };
    let mut scene = Scene::new("rates", &[("a", 1), ("b", 1)], uplink);
    let (a, b, router) = (scene.port(0), scene.port(1), scene.router.mac());
    let (mut limited_guest, mut other) = (scene.guest(0), scene.guest(1));
    let since = Instant::now();
    let mut outside = HashSet::new();
    let flood = |guest: &mut Guest, to: &dyn Fn(bool) -> Path| {
        for n in 0..SENT {
            let frame = to(n % 2 == 0).udp(OWN_PORT, PORT, b"data");
            guest.nic().push_frame(0, &VnetHeader::default(), &frame).unwrap();
        }
        guest.nic().flush(0).unwrap();
        guest.nic().drain_tx(PATIENCE).unwrap();
    };
    flood(&mut limited_guest, &|ipv4| path(&a, remote(ipv4, 1)));
    let left = until_quiet(|| {
        let seen = scene.outside.datagrams(PORT);
        outside.extend(seen.iter().map(|seen| seen.from));
        seen.len()
    });
    assert_about("leaves", left, 50, since);
    assert_eq!(limited(&scene.totals(0)), (u64::from(SENT) - left as u64, 0));
    assert_eq!(outside.len(), 2, "one of each family: {outside:?}");
    // Inside nothing is limited.
    flood(&mut limited_guest, &|ipv4| path(&a, path(&b, remote(ipv4, 1)).src));
    assert_eq!(until_quiet(|| received(&mut other).len()), usize::from(SENT));
    flood(&mut other, &|ipv4| path(&b, path(&a, remote(ipv4, 1)).src));
    assert_eq!(until_quiet(|| received(&mut limited_guest).len()), usize::from(SENT));
    // Answers: in steps that the cable holds.
    let mut came = 0;
    for _ in 0..SENT / 20 {
        for _ in 0..10 {
            for (address, port) in &outside {
                let answer = |path: &Path| path.udp(PORT, *port, b"data");
                scene.outside.send(router, answer, remote(address.is_ipv4(), 1), *address);
            }
        }
        came += until_quiet(|| received(&mut limited_guest).len());
    }
    assert_about("comes", came, 30, since);
    assert_eq!(limited(&scene.totals(0)).1, u64::from(SENT) - came as u64);
    assert_eq!(limited(&scene.totals(1)), (0, 0));
}

/// Bits and packets at the uplink as they will be on the wire: a frame that is to be cut pays for each of its segments.
pub fn rates_of_large_frames() {
    const SIZE: u16 = 1_000;
    const SEGMENTS: u16 = 10;
    for bits in [false, true] {
        for ipv4 in [true, false] {
            let headers = 14 + 20 + if ipv4 { 20 } else { 40 };
            let on_the_wire = u64::from(SEGMENTS * (SIZE + headers)) * 8;
            let limit = |spec: &mut PortSpec| {
                // The handshake pays, too: two frames without data.
                spec.rates.uplink_egress = match bits {
                    false => Rates { packets: burst(u64::from(SEGMENTS) * 8 + 2), bits: None },
                    true => Rates {
                        packets: None,
                        bits: Some(Rate { per_s: 1_000, burst: on_the_wire * 8 + 2 * 8 * u64::from(headers) }),
                    },
                };
            };
            let mut scene = Scene::new("large", &[("a", 1)], limit);
            let (a, router) = (scene.port(0), scene.router.mac());
            let mut guest = scene.guest(0);
            let there = path(&a, remote(ipv4, 1));
            let head =
                |seq, ack, flags| Segment { src_port: OWN_PORT, dst_port: PORT, seq, ack, flags, window: 60_000 };
            guest.send_frame(&there.tcp(&head(100, 0, 2), b""), &VnetHeader::default()).unwrap();
            let mut outside = None;
            eventually("the SYN leaves", || {
                outside = scene.outside.datagrams(PORT).first().map(|seen| seen.from);
                outside.is_some()
            });
            let (address, port) = outside.unwrap();
            let answer = Segment { src_port: PORT, dst_port: port, seq: 500, ack: 101, flags: 18, window: 60_000 };
            scene.outside.send(router, |path| path.tcp(&answer, b""), there.dst, address);
            eventually("and is answered", || !received(&mut guest).is_empty());
            guest.send_frame(&there.tcp(&head(101, 501, 16), b""), &VnetHeader::default()).unwrap();
            let payload = vec![7; usize::from(SEGMENTS * SIZE)];
            let (header, frame) = there.tcp_gso(&head(101, 501, 16), &payload, SIZE);
            for _ in 0..40 {
                guest.nic().push_frame(0, &header, &frame).unwrap();
            }
            guest.nic().flush(0).unwrap();
            guest.nic().drain_tx(PATIENCE).unwrap();
            let mut large = Vec::new();
            until_quiet(|| {
                let seen = scene.outside.datagrams(PORT);
                large.extend(seen.iter().filter(|seen| seen.payload.len() > 100).cloned());
                seen.len()
            });
            // The rate adds a frame in ten seconds, and in eighty.
            assert!((8..=9).contains(&large.len()), "bits: {bits}, ipv4: {ipv4}: {}", large.len());
            assert!(large.iter().all(|seen| seen.gso_size == SIZE && seen.tcp.is_some()), "uncut: {large:?}");
            assert_eq!(limited(&scene.totals(0)).0, 40 - large.len() as u64);
        }
    }
}
