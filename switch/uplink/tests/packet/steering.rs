//! Packet sockets of a group, and queues of a TAP device: who receives what.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use hostweave_switch::packet::Burst;
use hostweave_switch::tables::PortId;
use hostweave_uplink::device::Device;
use hostweave_uplink::uring::{Event, Uring};

use super::{Netns, PATIENCE, cable};

const SOCKETS: usize = 4;
/// L4 ports of a block.
const BLOCK: u16 = 64;
const BLOCKS: u16 = 32;
const FIRST: u16 = 20_480;

/// What each socket received until there are `wanted` frames: by socket, the octets from the IP header on.
fn received(devices: &[Device], uring: &mut Uring, wanted: usize) -> Vec<(usize, Vec<u8>)> {
    let (mut frames, mut events, mut burst) = (Vec::new(), Vec::new(), Burst::new());
    let end = Instant::now() + PATIENCE;
    // A while longer: none may come twice.
    let mut quiet = 0;
    while Instant::now() < end && quiet < 3 {
        uring.poll_completions(&mut |event| events.push(event));
        if events.is_empty() {
            uring.wait(Some(Duration::from_millis(100)));
            quiet += usize::from(frames.len() >= wanted);
        }
        for event in events.drain(..) {
            let Event::Frame { token, frame } = event else { panic!("{event:?}") };
            let socket = token as usize;
            devices[socket].receive(PortId(0), &frame, &mut burst).unwrap();
            frames.extend(burst.packets().iter().map(|packet| (socket, packet.head()[14..].to_vec())));
            burst.clear();
            uring.release(frame);
        }
    }
    frames
}

/// The L4 destination port of a packet without options.
fn destination(packet: &[u8]) -> u16 {
    let l4 = if packet[0] >> 4 == 4 { 20 } else { 40 };
    u16::from_be_bytes([packet[l4 + 2], packet[l4 + 3]])
}

pub fn by_destination() {
    let (host, a) = (Netns::new("steer-h"), Netns::new("steer-a"));
    cable(&host, "left", &a, "eth0");
    a.ip("addr add 192.0.2.1/24 dev eth0");
    a.ip("addr add 2001:db8::1/64 dev eth0 nodad");
    check(&host.open_group("left", None, SOCKETS), &a);
}

/// What `a` sends by its interface `eth0` is received by these, chosen by its destination.
pub fn check(devices: &[Device], a: &Netns) {
    let mut uring = Uring::new().unwrap();
    devices.iter().zip(0..).for_each(|(device, token)| device.start(&mut uring, token));

    // Who asks for a link address is heard by the first.
    let send = |to: SocketAddr, ports: Vec<u16>, len: usize| {
        let sent = a.inside(move || {
            let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
            ports.iter().for_each(|port| assert_eq!(socket.send_to(&vec![7; len], (to.ip(), *port)).unwrap(), len));
        });
        sent.join().unwrap();
    };
    send("192.0.2.9:0".parse().unwrap(), vec![9], 1);
    let frames = received(devices, &mut uring, 1);
    // ARP begins with the kind of link.
    let questions: Vec<_> =
        frames.iter().filter(|(_, packet)| packet[..2] == [0, 1]).map(|(socket, _)| socket).collect();
    assert!(!questions.is_empty() && questions.iter().all(|socket| **socket == 0), "{questions:?}");

    for address in ["192.0.2.2", "2001:db8::2"] {
        a.ip(&format!("neigh replace {address} lladdr 02:00:00:00:00:02 dev eth0"));
        let to = SocketAddr::new(address.parse().unwrap(), 0);
        let udp = if to.is_ipv4() { (9, 17) } else { (6, 17) };
        let is_udp = |packet: &[u8]| packet[udp.0] == udp.1 && (packet[0] >> 4 == 4) == to.is_ipv4();
        // From several sockets: who sends does not matter.
        let ports = |block: u16| (0..BLOCK).map(move |port| FIRST + block * BLOCK + port);
        for _ in 0..3 {
            send(to, (0..BLOCKS).flat_map(ports).collect(), 1);
        }
        let frames = received(devices, &mut uring, usize::from(3 * BLOCK * BLOCKS));
        let mut by_block: BTreeMap<u16, BTreeSet<usize>> = BTreeMap::new();
        let mut count = 0;
        for (socket, packet) in frames.iter().filter(|(_, packet)| is_udp(packet)) {
            by_block.entry(destination(packet) / BLOCK).or_default().insert(*socket);
            count += 1;
        }
        assert_eq!(count, 3 * BLOCK * BLOCKS, "{address}: each frame is received once");
        assert!(by_block.values().all(|sockets| sockets.len() == 1), "{address}: a block has one socket: {by_block:?}");
        let used: BTreeSet<usize> = by_block.values().flatten().copied().collect();
        assert_eq!(used.len(), devices.len(), "{address}: all sockets have work");

        // Of fragments only the first has L4 ports; they stay together all the same.
        send(to, vec![FIRST; 10], 5_000);
        let fragments = received(devices, &mut uring, 40);
        // IPv6 has a header of its own for them.
        let is_mine = |packet: &[u8]| is_udp(packet) || (packet[0] >> 4 == 6 && packet[6] == 44);
        let mine: Vec<_> = fragments.iter().filter(|(_, packet)| is_mine(packet)).collect();
        assert_eq!(mine.len(), 40, "{address}: fragments");
        assert_eq!(mine.iter().map(|(socket, _)| socket).collect::<BTreeSet<_>>().len(), 1, "{address}: one socket");
    }
    devices.iter().zip(0..).for_each(|(device, token)| device.stop(&mut uring, token));
}
