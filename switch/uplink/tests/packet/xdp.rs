//! What leaves by AF_XDP.

use std::time::Duration;

use hostweave_switch::limits::HEAD_FIRST;
use hostweave_switch::packet::{Burst, Meta, Offload, virtio_net};
use hostweave_switch::tables::PortId;
use hostweave_switch::wire::checksum::sum;
use hostweave_uplink::device::Device;
use hostweave_uplink::limits::{XDP_FRAME, XDP_FRAMES};
use hostweave_uplink::netlink::interfaces::interface;
use hostweave_uplink::packet_socket::PacketSocket;
use hostweave_uplink::uring::{Event, Uring};

use super::{Netns, arrived, cable, oddity, send};

const ETHERNET: usize = 14;

fn open(netns: &Netns, vlan: Option<u16>) -> Result<Device, String> {
    let opened = netns.inside(move || {
        let index = interface("left").unwrap().unwrap().index;
        PacketSocket::open_group_with_xdp("left", index, vlan, 2).map_err(|error| format!("{error:?}"))
    });
    opened.join().unwrap().map(|mut sockets| Device::packet(sockets.remove(0), PortId(3)))
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
    let (left, right) = (open(&here, None).unwrap(), there.open("right", None));
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
    let mut seen = arrived(&mut other, &right);
    seen.retain(|frame| frame[12..14] == [0x88, 0xb5]);
    assert_eq!(seen.len(), frames.len());
    assert!(seen == frames, "out of order, or changed");
}

/// What a guest left to the device is done when the frame leaves, with a tag and without; an odd length too.
pub fn checksums() {
    let (here, there) = scene("xdpsum");
    for (vlan, family) in [(None, 4), (Some(7), 4), (None, 6), (Some(7), 6)] {
        let (left, right) = (open(&here, vlan).unwrap(), there.open("right", vlan));
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
        assert!(arrived(&mut other, &right).contains(&frame), "VLAN {vlan:?}, IPv{family}");
    }
}

/// One user for each queue of the interface, which is told so, and who goes leaves nothing behind.
pub fn one_user() {
    let (here, there) = scene("xdpone");
    let first = open(&here, None).unwrap();
    let error = open(&here, None).unwrap_err();
    assert!(error.contains("driver afPacket does without"), "{error}");
    drop(first);
    let (second, right) = (open(&here, None).unwrap(), there.open("right", None));
    let mut other = Uring::new().unwrap();
    right.start(&mut other, 0);
    other.submit();
    let mut uring = Uring::new().unwrap();
    send(&second, &mut uring, &oddity(60));
    uring.wait(Some(Duration::from_millis(1)));
    assert!(arrived(&mut other, &right).contains(&oddity(60)));
}
