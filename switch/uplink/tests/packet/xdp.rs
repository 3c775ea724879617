//! What leaves by AF_XDP.

use std::time::Instant;

use hostweave_switch::limits::HEAD_FIRST;
use hostweave_switch::packet::{Burst, Meta, Offload, virtio_net};
use hostweave_switch::tables::PortId;
use hostweave_switch::wire::checksum::sum;
use hostweave_uplink::device::Device;
use hostweave_uplink::limits::{XDP_FRAME, XDP_FRAMES};
use hostweave_uplink::netlink::interfaces::interface;
use hostweave_uplink::packet_socket::PacketSocket;
use hostweave_uplink::uring::{Event, Uring};

use super::{Netns, PATIENCE, arrives, cable, collect, oddity, send, try_send};

const ETHERNET: usize = 14;

fn try_open(netns: &Netns, vlan: Option<u16>, count: usize) -> Result<Device, String> {
    let opened = netns.inside(move || {
        let index = interface("left").unwrap().unwrap().index;
        PacketSocket::open_group_with_xdp("left", index, vlan, count).map_err(|error| format!("{error:?}"))
    });
    opened.join().unwrap().map(|mut sockets| Device::packet(sockets.remove(0), PortId(3)))
}

/// The kernel frees the queue of a socket a while after it was closed.
fn open(netns: &Netns, vlan: Option<u16>, count: usize) -> Device {
    let started = Instant::now();
    loop {
        match try_open(netns, vlan, count) {
            Ok(device) => return device,
            Err(error) if error.contains("code: 16") && started.elapsed() < PATIENCE => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

fn scene(name: &str) -> (Netns, Netns) {
    let (here, there) = (Netns::new(&format!("{name}-a")), Netns::new(&format!("{name}-b")));
    cable(&here, "left", &there, "right");
    for (netns, link) in [(&here, "left"), (&there, "right")] {
        netns.ip(&format!("link set {link} mtu 9000"));
    }
    (here, there)
}

/// More frames than the socket has buffers, and among them ones that it cannot take: all arrive, in the order in which they were sent.
pub fn order() {
    let (here, there) = scene("xdp");
    let (left, right) = (open(&here, None, 2), there.open("right", None));
    let (mut uring, mut other) = (Uring::new().unwrap(), Uring::new().unwrap());
    right.start(&mut other, 0);
    other.submit();
    let lens = [60, 64, 1_514, XDP_FRAME - 4, XDP_FRAME - 3, 9_014];
    let frames: Vec<Vec<u8>> = (0..4 * XDP_FRAMES)
        .map(|number| {
            let mut frame = oddity(lens[number % lens.len()]);
            frame[ETHERNET..ETHERNET + 4].copy_from_slice(&(number as u32).to_be_bytes());
            frame
        })
        .collect();
    let mut burst = Burst::new();
    for chunk in frames.chunks(48) {
        for frame in chunk {
            burst.with_frame(Meta::default(), frame, HEAD_FIRST, |packet, arena| {
                left.transmit(packet, arena, &mut uring).unwrap();
            });
        }
        uring.submit();
    }
    uring.poll_completions(&mut |event| assert!(!matches!(event, Event::Refused { .. }), "{event:?}"));
    let seen = ours(&mut other, &right, frames.len());
    assert_eq!(seen.len(), frames.len());
    assert!(seen == frames, "out of order, or changed");
}

/// So many of the frames that nobody else sends.
fn ours(uring: &mut Uring, device: &Device, wanted: usize) -> Vec<Vec<u8>> {
    let (mut seen, is_ours) = (0, |frame: &[u8]| frame[12..14] == [0x88, 0xb5]);
    let mut frames = collect(uring, device, PATIENCE, |frame| {
        seen += usize::from(is_ours(frame));
        seen == wanted
    });
    frames.retain(|frame| is_ours(frame));
    frames
}

fn numbered(number: usize) -> Vec<u8> {
    let mut frame = oddity(60);
    frame[ETHERNET..ETHERNET + 4].copy_from_slice(&(number as u32).to_be_bytes());
    frame
}

/// The kernel sends 32 with each call and says then that it should be called again.
pub fn one_submit() {
    let (here, there) = scene("xdponce");
    let (left, right) = (open(&here, None, 2), there.open("right", None));
    let (mut uring, mut other) = (Uring::new().unwrap(), Uring::new().unwrap());
    right.start(&mut other, 0);
    other.submit();
    let frames: Vec<Vec<u8>> = (0..XDP_FRAMES).map(numbered).collect();
    let mut burst = Burst::new();
    for frame in &frames {
        burst.with_frame(Meta::default(), frame, HEAD_FIRST, |packet, arena| {
            left.transmit(packet, arena, &mut uring).unwrap();
        });
    }
    uring.submit();
    assert!(ours(&mut other, &right, frames.len()) == frames, "not all, or out of order");
}

/// More receive queues than transmit queues: a socket can be bound to each of them, and the kernel takes no frames from most.
pub fn real_queues() {
    let (here, there) = (Netns::new("xdpreal-a"), Netns::new("xdpreal-b"));
    here.ip(&format!("link add left numtxqueues 1 numrxqueues 4 type veth peer name right netns {}", there.name()));
    here.ip("link set left up");
    there.ip("link set right up");
    let (left, right) = (open(&here, None, 4), there.open("right", None));
    let mut other = Uring::new().unwrap();
    right.start(&mut other, 0);
    other.submit();
    for number in 0..4 {
        send(&left, &mut Uring::new().unwrap(), &numbered(number));
    }
    assert_eq!(ours(&mut other, &right, 4), (0..4).map(numbered).collect::<Vec<_>>());
}

/// The first worker has the only queue, another one does not wait for it; each keeps its own order.
pub fn owners() {
    let (here, there) = scene("xdpown");
    let (left, right) = (open(&here, None, 1), there.open("right", None));
    let (mut first, mut second) = (Uring::new().unwrap(), Uring::new().unwrap());
    let mut other = Uring::new().unwrap();
    right.start(&mut other, 0);
    other.submit();
    for number in 0..100 {
        send(&left, if number % 2 == 0 { &mut first } else { &mut second }, &numbered(number));
    }
    assert_eq!(ours(&mut other, &right, 100), (0..100).map(numbered).collect::<Vec<_>>());
}

/// What is sent meanwhile is lost, nobody waits for it for ever, and a later frame leaves, by whichever way.
pub fn down_and_up() {
    let (here, there) = scene("xdpdown");
    let (left, right) = (open(&here, None, 2), there.open("right", None));
    let (mut uring, mut other) = (Uring::new().unwrap(), Uring::new().unwrap());
    right.start(&mut other, 0);
    other.submit();
    here.ip("link set left down");
    for number in 0..2 * XDP_FRAMES {
        let _ = try_send(&left, &mut uring, &numbered(number));
    }
    here.ip("link set left up");
    let started = Instant::now();
    let last = numbered(usize::from(u16::MAX));
    let mut came = false;
    while !came && started.elapsed() < PATIENCE {
        let _ = try_send(&left, &mut uring, &last);
        came = super::arrived(&mut other, &right).contains(&last);
    }
    assert!(came);
}

/// What a guest left to the device is done when the frame leaves, with a tag and without; an odd length too.
pub fn checksums() {
    let (here, there) = scene("xdpsum");
    for (vlan, family) in [(None, 4), (Some(7), 4), (None, 6), (Some(7), 6)] {
        let (left, right) = (open(&here, vlan, 2), there.open("right", vlan));
        let (mut uring, mut other) = (Uring::new().unwrap(), Uring::new().unwrap());
        right.start(&mut other, 0);
        other.submit();
        let header = if family == 4 { 20 } else { 40 };
        let mut frame = oddity(ETHERNET + header + 8 + 333);
        let start = ETHERNET + header;
        // Something stands where the sum of the pseudo-header does.
        frame[start + 6..start + 8].copy_from_slice(&0x1234_u16.to_be_bytes());
        let wanted = !sum(&frame[start..]);
        let (csum_start, csum_offset) = (start as u16, 6);
        let offload = Offload { flags: virtio_net::NEEDS_CSUM, csum_start, csum_offset, ..Offload::default() };
        let mut burst = Burst::new();
        burst.with_frame(Meta { offload, ..Meta::default() }, &frame, HEAD_FIRST, |packet, arena| {
            left.transmit(packet, arena, &mut uring).unwrap();
        });
        uring.submit();
        frame[start + 6..start + 8].copy_from_slice(&wanted.to_be_bytes());
        assert!(arrives(&mut other, &right, |seen| seen == frame), "VLAN {vlan:?}, IPv{family}");
    }
}

/// One user for each queue of the interface, which is told so at once, and who goes leaves nothing behind; nor does who fails.
pub fn one_user() {
    let (here, there) = scene("xdpone");
    let first = open(&here, None, 2);
    let before = mapped();
    for _ in 0..16 {
        let error = try_open(&here, None, 2).unwrap_err();
        assert!(error.contains("driver afPacket does without"), "{error}");
    }
    assert!(mapped() < before + 8 * XDP_FRAME * XDP_FRAMES, "each attempt keeps its memory");
    drop(first);
    let (second, right) = (open(&here, None, 2), there.open("right", None));
    let mut other = Uring::new().unwrap();
    right.start(&mut other, 0);
    other.submit();
    let mut uring = Uring::new().unwrap();
    send(&second, &mut uring, &oddity(60));
    assert!(arrives(&mut other, &right, |frame| frame == oddity(60)));
}

/// Octets of address space.
fn mapped() -> usize {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    status.split(' ').next().unwrap().parse::<usize>().unwrap() * 4_096
}
