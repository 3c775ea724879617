//! The other end of the cable: a router's kernel in a namespace of its own, and somebody who lies.

use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;

use hostweave_switch::MacAddr;
use hostweave_switch::limits::HEAD_FIRST;
use hostweave_switch::packet::{Burst, Meta};
use hostweave_switch::tables::PortId;
use hostweave_uplink::device::Device;
use hostweave_uplink::netlink::interfaces::interface;
use hostweave_uplink::packet_socket::PacketSocket;
use hostweave_uplink::uring::Uring;
use nix::sched::{CloneFlags, setns};

use super::ROUTER;

pub(super) fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split_whitespace()).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// The router at the other end of the cable: a kernel in a namespace of its own.
pub(super) struct Router(pub(super) String);

impl Router {
    /// A router with its addresses, and a cable to `up0` here.
    pub(super) fn new(scenario: &str) -> Self {
        let router = Self(format!("hw-ul-{}-{scenario}", std::process::id()));
        ip(&format!("netns add {}", router.0));
        router.cable();
        router
    }

    pub(super) fn cable(&self) {
        ip(&format!("link add up0 type veth peer name eth0 netns {}", self.0));
        self.sysctl("ipv6/conf/eth0/accept_dad", "0");
        self.ip("link set eth0 up");
        self.ip(&format!("addr add {}/24 dev eth0", ROUTER[0]));
        self.ip(&format!("addr add {}/64 dev eth0 nodad", ROUTER[1]));
        ip("link set up0 up");
    }

    pub(super) fn ip(&self, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.0));
    }

    /// Whether a host answers an echo.
    pub(super) fn ping(&self, target: &str) -> bool {
        let arguments = ["netns", "exec", &self.0, "ping", "-n", "-c", "1", "-W", "1", target];
        Command::new("ip").args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
    }

    /// The link address that its kernel knows of a neighbour.
    pub(super) fn knows(&self, target: &str) -> Option<MacAddr> {
        let arguments = ["-n", &self.0, "neigh", "show", "to", target, "dev", "eth0"];
        let output = Command::new("ip").args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.split("lladdr ").nth(1)?.split_whitespace().next()?.parse().ok()
    }

    pub(super) fn mac(&self) -> MacAddr {
        self.inside(|| interface("eth0").unwrap().unwrap().mac).join().unwrap()
    }

    pub(super) fn sysctl(&self, name: &str, value: &str) {
        let (path, value) = (format!("/proc/sys/net/{name}"), value.to_owned());
        self.inside(move || std::fs::write(path, value).unwrap()).join().unwrap();
    }

    /// Runs `body` on a thread of its own inside the namespace.
    pub(super) fn inside<T: Send + 'static>(&self, body: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let file = File::open(Path::new("/run/netns").join(&self.0)).unwrap();
        std::thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            body()
        })
    }

    /// Somebody else on the same cable.
    pub(super) fn liar(&self) -> Liar {
        let opened = self.inside(|| {
            PacketSocket::open_group("eth0", interface("eth0").unwrap().unwrap().index, None, 1).unwrap().remove(0)
        });
        Liar { device: Device::packet(opened.join().unwrap(), PortId(1)), uring: Uring::new().unwrap() }
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).stderr(Stdio::null()).status();
    }
}

/// Flags of a neighbour advertisement.
const ROUTER_FLAG: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

/// Sends whatever frames it likes.
pub(super) struct Liar {
    pub(super) device: Device,
    pub(super) uring: Uring,
}

impl Liar {
    pub(super) fn send(&mut self, frame: &[u8]) {
        let (device, uring) = (&self.device, &mut self.uring);
        Burst::new().with_frame(Meta::default(), frame, HEAD_FIRST, |packet, arena| {
            let _ = device.transmit(packet, arena, uring);
        });
        self.uring.submit();
        self.uring.poll_completions(&mut drop);
    }

    /// A question (1) or an answer (2), in the protocol of the addresses' family. Who asks for or tells his own address announces it.
    pub(super) fn says(&mut self, operation: u8, link: MacAddr, from: (MacAddr, &str), to: (MacAddr, &str)) {
        if from.1.contains(':') { self.nd(operation, link, from, to.1) } else { self.arp(operation, link, from, to) }
    }

    /// A neighbour solicitation or advertisement (RFC 4861 §4.3, §4.4).
    fn nd(&mut self, operation: u8, link: MacAddr, from: (MacAddr, &str), to: &str) {
        let octets = |address: &str| address.parse::<Ipv6Addr>().unwrap().octets();
        let (source, target) = (octets(from.1), octets(to));
        let (kind, flags, about, option, destination) = if source == target {
            (136, ROUTER_FLAG | OVERRIDE, source, 2, octets("ff02::1"))
        } else if operation == 2 {
            (136, ROUTER_FLAG | SOLICITED | OVERRIDE, source, 2, target)
        } else {
            let mut group = octets("ff02::1:ff00:0");
            group[13..].copy_from_slice(&target[13..]);
            (135, 0, target, 1, group)
        };
        let mut message = vec![kind, 0, 0, 0, flags, 0, 0, 0];
        message.extend(about);
        message.extend([option, 1]);
        message.extend(from.0.0);
        let pseudo = [&source[..], &destination, &[0, 0, 0, message.len() as u8, 0, 0, 0, 58], &message].concat();
        let sum: u32 = pseudo.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
        let [.., a, b, c, d] = destination;
        let link = if destination[0] == 0xff { MacAddr([0x33, 0x33, a, b, c, d]) } else { link };
        let mut frame = Vec::new();
        frame.extend(link.0);
        frame.extend(from.0.0);
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, message.len() as u8, 58, 255]);
        frame.extend(source);
        frame.extend(destination);
        frame.extend(message);
        self.send(&frame);
    }

    /// An ARP message.
    fn arp(&mut self, operation: u8, link: MacAddr, from: (MacAddr, &str), to: (MacAddr, &str)) {
        let octets = |address: &str| address.parse::<Ipv4Addr>().unwrap().octets();
        let mut frame = Vec::new();
        frame.extend(link.0);
        frame.extend(from.0.0);
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, operation]);
        frame.extend(from.0.0);
        frame.extend(octets(from.1));
        frame.extend(to.0.0);
        frame.extend(octets(to.1));
        self.send(&frame);
    }
}
