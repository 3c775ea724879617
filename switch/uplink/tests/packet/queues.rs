//! TAP devices with several queues.

use std::time::{Duration, Instant};

use hostweave_switch::MacAddr;
use hostweave_switch::tables::PortId;
use hostweave_uplink::Error;
use hostweave_uplink::device::Device;
use hostweave_uplink::netlink::interfaces::interface;
use hostweave_uplink::netns::{TapRequest, open_tap};
use hostweave_uplink::tap_queues::{TapQueues, open_tap_queues};

use super::{Netns, PATIENCE, steering};

fn request() -> TapRequest {
    TapRequest { name: "eth0".to_owned(), netns: None, mac: MacAddr([2, 0, 0, 0, 0, 9]), mtu: 1_500 }
}

/// Opens the device, and waits until the kernel sends by it: where nobody had it, it had no carrier.
fn open(netns: &Netns, count: usize) -> Result<TapQueues, Error> {
    let opened = netns.inside(move || open_tap_queues(&request(), count)).join().unwrap()?;
    let end = Instant::now() + PATIENCE;
    while !netns.inside(|| interface("eth0").unwrap().unwrap().carrier).join().unwrap() {
        assert!(Instant::now() < end, "no carrier");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(opened)
}

fn devices(opened: TapQueues) -> Vec<Device> {
    opened.queues.into_iter().map(|queue| Device::tap(queue, PortId(3)).unwrap()).collect()
}

/// A namespace whose kernel sends by a TAP device with that many queues.
pub fn scene(name: &str, count: usize) -> (Netns, Vec<Device>) {
    let a = Netns::new(name);
    let opened = open(&a, count).unwrap();
    assert!(opened.fewer.is_none(), "{:?}", opened.fewer);
    a.sysctl("ipv6/conf/eth0/accept_dad", "0");
    a.ip("addr add 192.0.2.1/24 dev eth0");
    a.ip("addr add 2001:db8::1/64 dev eth0 nodad");
    // All that is sent before the first is read.
    a.ip("link set eth0 txqueuelen 10000");
    (a, devices(opened))
}

pub fn by_destination() {
    let (a, first) = scene("queues", 4);
    assert_eq!(first.len(), 4);
    steering::check(&first, &a);
    drop(first);
    // The next owner, with other queues: the device, its addresses and its neighbours are as they were.
    for count in [2, 1, 3] {
        let opened = open(&a, count).unwrap();
        assert!(opened.fewer.is_none() && opened.queues.len() == count);
        steering::check(&devices(opened), &a);
    }
    assert!(a.inside(|| std::net::UdpSocket::bind("[2001:db8::1]:0").is_ok()).join().unwrap());
}

pub fn one_owner() {
    let (a, first) = scene("owner", 2);
    let started = Instant::now();
    let refused = open(&a, 2).unwrap_err();
    assert!(matches!(&refused, Error::Busy(name) if name == "eth0"), "{refused}");
    assert!(started.elapsed() > Duration::from_secs(1), "whoever ends gets a moment for it");
    // Who is refused has taken nothing.
    steering::check(&first, &a);
    drop(first);
    assert_eq!(open(&a, 2).unwrap().queues.len(), 2);
}

pub fn single_queue() {
    let a = Netns::new("single");
    drop(a.inside(|| open_tap("/nonexistent".as_ref(), &request()).unwrap()).join().unwrap());
    a.ip("addr add 192.0.2.1/24 dev eth0");
    a.ip("addr add 2001:db8::1/64 dev eth0 nodad");
    a.ip("link set eth0 txqueuelen 10000");
    let opened = open(&a, 2).unwrap();
    let why = opened.fewer.as_ref().unwrap().to_string();
    assert!(why.contains("single queue") && why.contains("`ip link delete eth0`"), "{why}");
    let only = devices(opened);
    assert_eq!(only.len(), 1);
    steering::check(&only, &a);
    drop(only);
    assert!(open(&a, 1).unwrap().fewer.is_none());
    // What is no TAP device is refused.
    a.ip("link del eth0");
    a.ip("link add eth0 type veth peer name other");
    assert!(matches!(open(&a, 2), Err(Error::NotTap(_))));
}
