//! Packet sockets, interfaces and hiding on veth pairs, TAP devices with several queues, with the kernel's own TCP/IP at the other end.
//!
//! Needs root and `ip`; says so and does nothing where they are missing. Each scenario makes namespaces of its own and
//! removes them.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::net::{IpAddr, UdpSocket};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hostweave_switch::limits::HEAD_FIRST;
use hostweave_switch::packet::{Burst, Meta};
use hostweave_switch::stage::DropReason;
use hostweave_switch::tables::PortId;
use hostweave_uplink::device::Device;
use hostweave_uplink::netlink::interfaces::{Watch, addresses, interface};
use hostweave_uplink::packet_socket::PacketSocket;
use hostweave_uplink::uring::{Event, Uring};

mod hiding;
mod missed;
mod queues;
mod steering;
#[path = "../support/mod.rs"]
mod support;
mod xdp;

use support::netns::{Netns, Scenario, run};
use support::traffic::{echo, transfer};
use support::wire::Wire;

const SCENARIOS: &[Scenario] = &[
    ("datagrams_and_tcp_with_offloads_between_two_kernels", datagrams_and_tcp),
    ("only_frames_with_our_tag_pass_and_all_of_ours_have_it", tags),
    ("what_we_send_we_do_not_receive", own_frames),
    ("an_interface_that_goes_down_or_away_ends_the_socket", down_and_gone),
    ("frames_that_nobody_reads_in_time_are_counted", missed::by_sockets),
    ("a_frame_that_is_too_long_for_the_interface_is_refused", too_long),
    ("interfaces_and_addresses_as_the_kernel_has_them", interfaces),
    ("what_is_hidden_the_kernel_neither_answers_nor_forwards", hiding::hidden),
    ("ranges_of_any_kind_are_hidden_and_nothing_beside_them", hiding::hidden_ranges),
    ("what_is_hidden_is_hidden_in_our_vlan_only", hiding::hidden_in_one_vlan),
    ("what_is_for_one_block_of_ports_comes_to_one_socket_of_a_group", steering::by_destination),
    ("what_is_for_one_block_of_ports_comes_to_one_queue_of_a_tap_device", queues::by_destination),
    ("frames_of_a_tap_device_that_nobody_reads_are_counted_by_its_interface", missed::by_interface),
    ("a_tap_device_with_several_queues_has_one_owner", queues::one_owner),
    ("a_tap_device_with_one_queue_is_used_as_it_is", queues::single_queue),
    ("small_frames_leave_by_af_xdp_and_all_stay_in_order", xdp::order),
    ("what_leaves_by_af_xdp_has_a_complete_checksum", xdp::checksums),
    ("one_submit_sends_all_frames_by_af_xdp", xdp::one_submit),
    ("only_queues_that_the_interface_uses_have_an_af_xdp_socket", xdp::real_queues),
    ("who_owns_no_queue_sends_by_the_packet_socket", xdp::owners),
    ("an_interface_that_is_set_down_and_up_under_af_xdp_is_sent_to_again", xdp::down_and_up),
    ("af_xdp_has_one_user_and_leaves_nothing_behind", xdp::one_user),
];

fn main() -> ExitCode {
    run("packet", SCENARIOS)
}

impl Netns {
    /// Opens a packet socket on an interface.
    fn open(&self, name: &'static str, vlan: Option<u16>) -> Device {
        self.open_group(name, vlan, 1).pop().unwrap()
    }

    /// Opens a group of them.
    fn open_group(&self, name: &'static str, vlan: Option<u16>, count: usize) -> Vec<Device> {
        let opened = self.inside(move || {
            let index = interface(name).unwrap().unwrap().index;
            PacketSocket::open_group(name, index, vlan, count).unwrap()
        });
        opened.join().unwrap().into_iter().map(|socket| Device::packet(socket, PortId(3))).collect()
    }
}

/// Connects `a` and `b`, as `left` and `right`.
fn cable(a: &Netns, left: &str, b: &Netns, right: &str) {
    a.ip(&format!("link add {left} type veth peer name {right} netns {}", b.0));
    a.ip(&format!("link set {left} up"));
    b.ip(&format!("link set {right} up"));
    // Duplicate address detection and router solicitations only make noise here.
    for (netns, name) in [(a, left), (b, right)] {
        netns.sysctl(&format!("ipv6/conf/{name}/accept_dad"), "0");
    }
}

/// Two kernels, `a` and `b`, and a host between them whose wire is made of packet sockets. Its own kernel has no part.
struct Scene {
    a: Netns,
    b: Netns,
    host: Netns,
}

impl Scene {
    fn new(name: &str) -> Self {
        let scene = Self {
            a: Netns::new(&format!("{name}-a")),
            b: Netns::new(&format!("{name}-b")),
            host: Netns::new(&format!("{name}-h")),
        };
        cable(&scene.host, "left", &scene.a, "eth0");
        cable(&scene.host, "right", &scene.b, "eth0");
        scene
    }

    fn addresses(&self, device: &str) {
        for (netns, host) in [(&self.a, 1), (&self.b, 2)] {
            netns.ip(&format!("addr add 192.0.2.{host}/24 dev {device}"));
            netns.ip(&format!("addr add 2001:db8::{host}/64 dev {device} nodad"));
        }
    }
}

fn datagrams_and_tcp() {
    let scene = Scene::new("tcp");
    let wire = Wire::new(scene.host.open("left", None), scene.host.open("right", None));
    scene.addresses("eth0");
    for address in ["192.0.2.2:5000", "[2001:db8::2]:5000"] {
        for len in [1, 100, 1_400, 1_472 - 20 * usize::from(address.starts_with('['))] {
            echo(&scene.a, &scene.b, address, len);
        }
    }
    transfer(&scene.a, &scene.b, "192.0.2.2:5001", 20_000_000);
    transfer(&scene.a, &scene.b, "[2001:db8::2]:5001", 20_000_000);
    let seen = &wire.seen;
    assert!(seen.gso.load(Ordering::Relaxed) > 100, "GSO frames pass whole");
    assert!(seen.partial.load(Ordering::Relaxed) > 100, "partial checksums pass");
    // 40 MB in far fewer frames than segments of 1,448 octets.
    assert!(seen.frames.load(Ordering::Relaxed) < 20_000, "{}", seen.frames.load(Ordering::Relaxed));
    // The first TCP of a fast sender may fill a socket; it is no fault, but not the rule.
    assert!(seen.dropped.load(Ordering::Relaxed) < 100, "{}", seen.dropped.load(Ordering::Relaxed));
}

fn tags() {
    // Two hosts with a trunk between them, each with its own wire: what crosses it gets a tag and loses it.
    let (scene, other) = (Scene::new("vlan"), Netns::new("vlan-o"));
    cable(&other, "trunk", &scene.host, "trunk");
    scene.host.ip("link del right");
    cable(&other, "right", &scene.b, "eth0");
    let _wire = Wire::new(scene.host.open("left", None), scene.host.open("trunk", Some(7)));
    let wire = Wire::new(other.open("trunk", Some(7)), other.open("right", None));
    scene.addresses("eth0");
    for address in ["192.0.2.2:5000", "[2001:db8::2]:5000"] {
        echo(&scene.a, &scene.b, address, 1_452);
        transfer(&scene.a, &scene.b, address, 5_000_000);
    }
    transfer(&scene.b, &scene.a, "192.0.2.1:5001", 5_000_000);
    assert!(wire.seen.gso.load(Ordering::Relaxed) > 100, "GSO frames pass whole");
    drop(wire);
    // Nobody hears another VLAN, or what has no tag, and who wants no tag hears none.
    for (sender, listener, heard) in [
        (Some(7), Some(7), true),
        (Some(8), Some(7), false),
        (None, Some(7), false),
        (Some(7), None, false),
        (None, None, true),
    ] {
        let (from, to) = (other.open("trunk", sender), scene.host.open("trunk", listener));
        let mut uring = Uring::new().unwrap();
        to.start(&mut uring, 0);
        uring.submit();
        send(&from, &mut Uring::new().unwrap(), &oddity(60));
        let came = match heard {
            true => arrives(&mut uring, &to, |frame| frame == oddity(60)),
            false => arrived(&mut uring, &to).contains(&oddity(60)),
        };
        assert_eq!(came, heard, "{sender:?} {listener:?}");
    }
}

/// Frames that arrive at a device within half a second: to see that something does not come, or what comes by itself.
fn arrived(uring: &mut Uring, device: &Device) -> Vec<Vec<u8>> {
    collect(uring, device, Duration::from_millis(500), |_| false)
}

/// Whether a frame arrives at a device that `wanted` says yes to, however long the machine takes.
fn arrives(uring: &mut Uring, device: &Device, wanted: impl Fn(&[u8]) -> bool) -> bool {
    let mut found = false;
    collect(uring, device, PATIENCE, |frame| {
        found |= wanted(frame);
        found
    });
    found
}

/// How long to wait for what must come.
const PATIENCE: Duration = Duration::from_secs(30);

/// Frames that arrive at a device until `last` says yes to one, or time is over.
fn collect(uring: &mut Uring, device: &Device, time: Duration, mut last: impl FnMut(&[u8]) -> bool) -> Vec<Vec<u8>> {
    let mut burst = Burst::new();
    let mut frames = Vec::new();
    let (started, mut done) = (Instant::now(), false);
    while !done && started.elapsed() < time {
        uring.wait(Some(Duration::from_millis(50)));
        let mut events = Vec::new();
        uring.poll_completions(&mut |event| events.push(event));
        for event in events {
            let Event::Frame { frame, .. } = event else { continue };
            device.receive(PortId(1), &frame, &mut burst).unwrap();
            let (packet, arena) = burst.packet_mut(0);
            let mut copy = vec![0; packet.len()];
            packet.copy_frame(arena, &mut copy).unwrap();
            done |= last(&copy);
            frames.push(copy);
            burst.clear();
            uring.release(frame);
        }
    }
    frames
}

/// A frame that nobody else sends.
fn oddity(len: usize) -> Vec<u8> {
    let mut frame = vec![0x5a; len];
    frame[..6].fill(0xff);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

fn send(device: &Device, uring: &mut Uring, frame: &[u8]) {
    try_send(device, uring, frame).unwrap();
}

fn try_send(device: &Device, uring: &mut Uring, frame: &[u8]) -> Result<(), DropReason> {
    let mut burst = Burst::new();
    let sent =
        burst.with_frame(Meta::default(), frame, HEAD_FIRST, |packet, arena| device.transmit(packet, arena, uring));
    uring.submit();
    sent
}

fn own_frames() {
    let scene = Scene::new("own");
    let (left, peer) = (scene.host.open("left", None), scene.a.open("eth0", None));
    let mut uring = Uring::new().unwrap();
    left.start(&mut uring, 0);
    uring.submit();
    let mut other = Uring::new().unwrap();
    peer.start(&mut other, 0);
    other.submit();
    send(&left, &mut uring, &oddity(60));
    assert!(!arrived(&mut uring, &left).contains(&oddity(60)));
    assert!(arrives(&mut other, &peer, |frame| frame == oddity(60)));
    // Nor what the kernel sends there by itself.
    scene.host.ip("addr add 192.0.2.9/24 dev left");
    let asking = scene.host.inside(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(&[1], "192.0.2.77:9").unwrap());
    asking.join().unwrap();
    let is_arp = |frame: &[u8]| frame[12..14] == [8, 6];
    assert!(!arrived(&mut uring, &left).iter().any(|frame| is_arp(frame)));
    assert!(arrives(&mut other, &peer, is_arp));
}

fn fails(uring: &mut Uring, token: u64) -> bool {
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(5) {
        uring.wait(Some(Duration::from_millis(50)));
        let mut failed = false;
        let mut frames = Vec::new();
        uring.poll_completions(&mut |event| match event {
            Event::Failed { token: found, .. } => failed |= found == token,
            Event::Frame { frame, .. } => frames.push(frame),
            _ => {}
        });
        frames.into_iter().for_each(|frame| uring.release(frame));
        if failed {
            return true;
        }
    }
    false
}

fn down_and_gone() {
    let scene = Scene::new("down");
    let watch = scene.host.inside(|| Watch::new(Duration::from_secs(5)).unwrap()).join().unwrap();
    let mut uring = Uring::new().unwrap();
    let left = scene.host.open("left", None);
    left.start(&mut uring, 4);
    uring.submit();
    scene.host.ip("link set left down");
    assert!(fails(&mut uring, 4), "set down");
    assert!(watch.wait().unwrap(), "the kernel tells of it");
    left.stop(&mut uring, 4);
    drop(left);
    scene.host.ip("link set left up");
    let left = scene.host.open("left", None);
    left.start(&mut uring, 5);
    uring.submit();
    let index = move |scene: &Scene| {
        scene.host.inside(|| interface("left").unwrap().map(|there| (there.index, there.carrier))).join().unwrap()
    };
    let (before, carrier) = index(&scene).unwrap();
    assert!(carrier);
    scene.a.ip("link set eth0 down");
    assert_eq!(index(&scene), Some((before, false)), "the other end of the cable");
    scene.host.ip("link del left");
    assert!(fails(&mut uring, 5), "deleted");
    assert_eq!(index(&scene), None);
    left.stop(&mut uring, 5);
    cable(&scene.host, "left", &scene.a, "eth0");
    assert_ne!(index(&scene).unwrap().0, before, "made again it is another one");
    let left = scene.host.open("left", None);
    left.start(&mut uring, 6);
    uring.submit();
    let peer = scene.a.open("eth0", None);
    let mut other = Uring::new().unwrap();
    send(&peer, &mut other, &oddity(60));
    assert!(arrives(&mut uring, &left, |frame| frame == oddity(60)));
}

fn too_long() {
    let scene = Scene::new("long");
    let left = scene.host.open("left", None);
    let mut uring = Uring::new().unwrap();
    // A large one is not queued: the answer comes at once.
    assert_eq!(try_send(&left, &mut uring, &oddity(9_000)), Err(DropReason::DeviceError));
    for (len, fits) in [(1_514, true), (1_515, false), (8_191, false)] {
        send(&left, &mut uring, &oddity(len));
        uring.wait(Some(Duration::from_millis(50)));
        let mut refused = Vec::new();
        uring.poll_completions(&mut |event| match event {
            Event::Refused { port: PortId(3), octets } => refused.push(octets),
            other => panic!("{other:?}"),
        });
        assert_eq!(refused, if fits { vec![] } else { vec![len] }, "{len}");
    }
}

fn interfaces() {
    let scene = Scene::new("facts");
    scene.host.ip("link set left address 02:00:00:00:00:77 mtu 9000");
    scene.host.ip("addr add 203.0.113.9/25 dev left");
    scene.host.ip("addr add 2001:db8::9/64 dev left nodad");
    scene.host.ip("link set right down");
    let (left, right, held) = scene
        .host
        .inside(|| (interface("left").unwrap().unwrap(), interface("right").unwrap().unwrap(), addresses().unwrap()))
        .join()
        .unwrap();
    assert_eq!(
        (left.mac.to_string().as_str(), left.mtu, left.up, left.carrier),
        ("02:00:00:00:00:77", 9_000, true, true)
    );
    assert!(!right.up && !right.carrier && right.index != left.index);
    for (address, prefix) in [("203.0.113.9", 25), ("2001:db8::9", 64)] {
        let address: IpAddr = address.parse().unwrap();
        let found = held.iter().find(|held| held.address == address).unwrap();
        assert_eq!((found.prefix, found.interface.as_str()), (prefix, "left"));
    }
    let refused = scene.host.inside(move || PacketSocket::open_group("left", 99_999, None, 2).unwrap_err().to_string());
    assert_eq!(refused.join().unwrap(), "interface left: cannot receive all groups");
}
