//! Guests, drivers and VMMs that break the rules, each by its name in `hostweave_guest::hostile`: the offender's port
//! stops with a reason or the frame is dropped with its own, the neighbours' traffic goes on, no descriptor is kept.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use hostweave::fabric::spec::{BackendSpec, PortSpec};
use hostweave_guest::frames::{self, BROADCAST, Path};
use hostweave_guest::hostile::{Expect, MESSAGE_ATTACKS, RING_ATTACKS, RingAttack};
use hostweave_guest::{Guest, VnetHeader, features};
use hostweave_switch::MacAddr;
use hostweave_switch::stage::DropReason;

use crate::support::{Host, PATIENCE, Up, addresses, eventually, path_to, paths, within};

/// Two honest neighbours.
struct Neighbours {
    a: PortSpec,
    b: PortSpec,
    guest_a: Guest,
    guest_b: Guest,
}

impl Neighbours {
    fn new(host: &mut Host) -> Self {
        let (a, b) = (host.port("a", 2), host.port("b", 3));
        let (guest_a, guest_b) = (host.guest(&a).up(), host.guest(&b).up());
        Self { a, b, guest_a, guest_b }
    }

    /// Their traffic goes on.
    fn talk(&mut self, after: &str) {
        for path in paths(&self.a, &self.b) {
            let frame = path.udp(7, 7, after.as_bytes());
            self.guest_a.send_frame(&frame, &VnetHeader::default()).unwrap();
            // What the offender sent is not theirs to judge.
            while self.guest_b.recv_frame(PATIENCE).unwrap_or_else(|error| panic!("after {after}: {error}")).1[42..]
                != frame[42..]
            {}
        }
    }
}

fn socket(spec: &PortSpec) -> &std::path::Path {
    let BackendSpec::VhostUser { socket, .. } = &spec.backend else { panic!("not a vhost-user port") };
    socket
}

/// As many ports as there are attacks, so that none waits for the pause after another's fault.
fn offenders(host: &mut Host, count: usize) -> Vec<PortSpec> {
    let specs: Vec<_> = (0..count).map(|n| host.spec("default", &format!("evil{n}"), 10 + n as u8, 1)).collect();
    host.desired.ports.extend(specs.iter().cloned().map(Into::into));
    host.apply();
    specs
}

fn attack(host: &mut Host, neighbours: &mut Neighbours, spec: &PortSpec, attack: &RingAttack, v6: bool) {
    let path = paths(spec, &neighbours.b)[usize::from(v6)];
    let segment = frames::Segment { src_port: 9, dst_port: 9, ..frames::Segment::default() };
    let frame = path.tcp(&segment, b"from a hostile guest");
    let builder = host.guest(spec).ring_size(64).with(features::ALL_OFFLOADS);
    let mut nic = builder.up();
    let before = host.status(&spec.name).totals.dropped_all();
    (attack.run)(nic.nic(), &frame).unwrap();
    if attack.needs_traffic {
        let path = paths(&neighbours.a, spec)[usize::from(v6)];
        for _ in 0..80 {
            neighbours.guest_a.send_frame(&path.udp(7, 7, &[7; 200]), &VnetHeader::default()).unwrap();
            neighbours.guest_a.nic().drain_tx(PATIENCE).unwrap();
        }
    }
    let attachment = |host: &Host| host.status(&spec.name).attachments[0].clone();
    match attack.expect {
        Expect::Stops => {
            eventually(&format!("{}: the port stops", attack.name), || {
                let now = attachment(host);
                now.state == "faulted" && now.fault.is_some_and(|reason| reason.contains(' '))
            });
        }
        Expect::Drops => {
            eventually(&format!("{}: the frame is dropped", attack.name), || {
                host.status(&spec.name).totals.dropped_all() == before + 1
            });
            assert_eq!(attachment(host).state, "running", "{}", attack.name);
        }
        Expect::Survives => {}
    }
    neighbours.talk(attack.name);
}

#[test]
fn hostile_drivers_hurt_only_themselves() {
    let mut host = Host::new(2);
    let mut neighbours = Neighbours::new(&mut host);
    let specs = offenders(&mut host, 2 * RING_ATTACKS.len());
    for (spec, (index, ring_attack)) in specs.iter().zip(RING_ATTACKS.iter().chain(RING_ATTACKS).enumerate()) {
        attack(&mut host, &mut neighbours, spec, ring_attack, index >= RING_ATTACKS.len());
    }
    assert_eq!((neighbours.guest_a.nic().violations(), neighbours.guest_b.nic().violations()), (vec![], vec![]));
}

#[test]
fn hostile_frontends_hurt_only_themselves_and_may_come_back() {
    let mut host = Host::new(1);
    let mut neighbours = Neighbours::new(&mut host);
    let specs = offenders(&mut host, MESSAGE_ATTACKS.len());
    let mut open = Vec::new();
    for (spec, attack) in specs.iter().zip(MESSAGE_ATTACKS) {
        let stream = UnixStream::connect(socket(spec)).unwrap();
        open.push((attack.run)(stream).unwrap_or_else(|error| panic!("{}: {error}", attack.name)));
        neighbours.talk(attack.name);
    }
    drop(open);
    // An honest VMM at the same sockets is served.
    for (spec, attack) in specs.iter().zip(MESSAGE_ATTACKS) {
        let mut guest = host.guest(spec).ring_size(64).without(features::ALL_GSO).up();
        let frame = path_to(spec, neighbours.b.v4[0]).udp(7, 7, b"sorry");
        guest.send_frame(&frame, &VnetHeader::default()).unwrap();
        guest.nic().drain_tx(PATIENCE).unwrap_or_else(|error| panic!("after {}: {error}", attack.name));
    }
    neighbours.talk("all");
}

#[test]
fn no_descriptor_is_kept_of_any_attack() {
    let mut host = Host::alone(1);
    let mut neighbours = Neighbours::new(&mut host);
    let specs = offenders(&mut host, RING_ATTACKS.len() + MESSAGE_ATTACKS.len());
    let count = || {
        let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        (descriptors, maps.lines().filter(|line| line.contains("memfd")).count())
    };
    neighbours.talk("nothing");
    let before = count();
    let (rings, messages) = specs.split_at(RING_ATTACKS.len());
    for (spec, ring_attack) in rings.iter().zip(RING_ATTACKS) {
        attack(&mut host, &mut neighbours, spec, ring_attack, false);
    }
    for (spec, attack) in messages.iter().zip(MESSAGE_ATTACKS) {
        drop((attack.run)(UnixStream::connect(socket(spec)).unwrap()));
    }
    neighbours.talk("all");
    // Other tests run in this process meanwhile, and have hundreds of them for a while.
    within(12 * PATIENCE, "descriptors and mappings are given back", || {
        let now = count();
        now.0 <= before.0 && now.1 <= before.1
    });
}

#[test]
fn a_guest_that_never_reads_loses_only_its_own_frames() {
    let mut host = Host::new(1);
    let mut neighbours = Neighbours::new(&mut host);
    let deaf = host.port("deaf", 10);
    let silent = host.guest(&deaf).ring_size(64).up();
    let path = paths(&neighbours.a, &deaf)[0];
    for _ in 0..500 {
        neighbours.guest_a.send_frame(&path.udp(1, 2, b"?"), &VnetHeader::default()).unwrap();
        neighbours.guest_a.nic().drain_tx(PATIENCE).unwrap();
    }
    neighbours.talk("a flood at a deaf guest");
    let totals = host.status("deaf").totals;
    assert_eq!(totals.tx_dropped, [(DropReason::GuestRingFull, 500 - totals.transmitted)]);
    assert!(totals.transmitted <= 64);
    assert_eq!(host.status("deaf").attachments[0].state, "running");
    drop(silent);
}

#[test]
fn a_flood_of_garbage_is_dropped_frame_by_frame() {
    let mut host = Host::new(1);
    let mut neighbours = Neighbours::new(&mut host);
    let noisy = host.port("noisy", 10);
    let mut guest = host.guest(&noisy).up();
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut octet = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as u8
    };
    let good = path_to(&noisy, neighbours.b.v6[0]).udp(1, 2, &[0; 200]);
    let mut sent = 0;
    for round in 0..3_000usize {
        let mut frame: Vec<u8> = (0..14 + round % 1_400).map(|_| octet()).collect();
        if round % 2 == 0 {
            // Something that gets further: a good frame with a few octets changed, its source left alone.
            frame = good.clone();
            for _ in 0..4 {
                let at = 12 + usize::from(octet()) % (good.len() - 12);
                frame[at] = octet();
            }
        }
        if guest.nic().push_frame(0, &VnetHeader::default(), &frame).is_ok() {
            sent += 1;
        }
        guest.nic().flush(0).unwrap();
        if round % 100 == 0 {
            neighbours.talk("garbage");
        }
    }
    guest.nic().drain_tx(PATIENCE).unwrap();
    assert_eq!(host.status("noisy").totals.received, sent);
    assert!(host.status("noisy").totals.dropped_all() >= sent / 2);
    assert_eq!(host.status("noisy").attachments[0].state, "running");
    assert_eq!(guest.nic().violations(), []);
}

/// Each lie, and the reason for which it ends.
fn lies(me: &PortSpec, other: &PortSpec) -> Vec<(&'static str, Vec<u8>, DropReason)> {
    let (mac, router) = (me.mac.0, MacAddr::ROUTER.0);
    let (v4, v6) = (me.v4[0], me.v6[0]);
    let link_local = frames::link_local(mac);
    let [to_v4, to_v6] = [addresses(other)[0], addresses(other)[1]];
    let from = |src: IpAddr, dst: IpAddr| Path::new(mac, router, src, dst);
    let other_mac = Path { src_mac: other.mac.0, ..from(v4.into(), to_v4) };
    let all_nodes: Ipv6Addr = "ff02::1".parse().unwrap();
    let to_all = Path { dst_mac: frames::multicast_mac(all_nodes), ..from(link_local.into(), all_nodes.into()) };
    let advertised =
        frames::neighbor_advertisement(Path::new(mac, router, v6, other.v6[0]).ttl(255), other.v6[0], mac, 0x20);
    let broadcast = Path { dst_mac: BROADCAST, ..from(v4.into(), Ipv4Addr::BROADCAST.into()) };
    vec![
        ("MAC", other_mac.udp(1, 2, b"x"), DropReason::SpoofedMac),
        ("IPv4", from(other.v4[0].into(), to_v4).udp(1, 2, b"x"), DropReason::SpoofedIp),
        (
            "IPv4 outside the network",
            from(Ipv4Addr::new(8, 8, 8, 8).into(), to_v4).udp(1, 2, b"x"),
            DropReason::SpoofedIp,
        ),
        ("IPv4 of the gateway", from(Ipv4Addr::new(192, 0, 2, 1).into(), to_v4).udp(1, 2, b"x"), DropReason::SpoofedIp),
        ("IPv6", from(other.v6[0].into(), to_v6).udp(1, 2, b"x"), DropReason::SpoofedIp),
        ("ARP of another's address", frames::arp_request(mac, other.v4[0], v4), DropReason::SpoofedArp),
        (
            "ARP of the gateway's address",
            frames::arp_request(mac, Ipv4Addr::new(192, 0, 2, 1), v4),
            DropReason::SpoofedArp,
        ),
        (
            "ARP with another's hardware address",
            frames::arp(2, (mac, BROADCAST), (other.mac.0, v4), (BROADCAST, other.v4[0])),
            DropReason::SpoofedArp,
        ),
        ("ND advertisement of another's address", advertised, DropReason::SpoofedNd),
        (
            "router advertisement",
            to_all.ttl(255).icmp(134, 0, [64, 0, 7, 8], &[0; 8]),
            DropReason::RouterAdvertisementFromGuest,
        ),
        ("redirect", to_all.ttl(255).icmp(137, 0, [0; 4], &[0; 32]), DropReason::RouterAdvertisementFromGuest),
        ("DHCPv4 server", broadcast.udp(67, 68, &[2; 240]), DropReason::DhcpServerFromGuest),
        ("DHCPv6 server", from(v6.into(), to_v6).udp(547, 546, &[7; 40]), DropReason::DhcpServerFromGuest),
    ]
}

#[test]
fn whoever_lies_about_itself_is_not_heard() {
    let mut host = Host::new(1);
    let mut neighbours = Neighbours::new(&mut host);
    let liar = host.port("liar", 10);
    let mut guest = host.guest(&liar).up();
    for (expected, (what, frame, reason)) in (1..).zip(lies(&liar, &neighbours.b)) {
        let before = host.dropped("liar", reason);
        guest.send_frame(&frame, &VnetHeader::default()).unwrap();
        eventually(what, || host.status("liar").totals.received == expected);
        assert_eq!(host.dropped("liar", reason), before + 1, "{what}: {:?}", host.status("liar").totals.dropped);
    }
    assert!(neighbours.guest_b.recv_frame(Duration::from_millis(10)).is_err(), "nobody hears it");
    neighbours.talk("lies");
    // The truth is still heard.
    let truth = path_to(&liar, neighbours.b.v4[0]).udp(1, 2, b"truth");
    guest.send_frame(&truth, &VnetHeader::default()).unwrap();
    neighbours.guest_b.recv_frame(PATIENCE).unwrap();
}

#[test]
fn a_port_that_faulted_is_served_again_after_its_vmm_came_back() {
    let mut host = Host::new(1);
    let mut neighbours = Neighbours::new(&mut host);
    let spec = host.port("evil", 10);
    let named = RING_ATTACKS.iter().find(|attack| attack.name == "memory_shrinks").unwrap();
    attack(&mut host, &mut neighbours, &spec, named, false);
    let reason = host.status("evil").attachments[0].fault.clone().unwrap();
    assert!(reason.contains("shrank"), "{reason}");
    let mut guest = host.guest(&spec).up();
    host.settle(&mut guest, &spec);
    let healed = &host.status("evil").attachments[0];
    assert_eq!((healed.state, &healed.fault), ("running", &None));
}
