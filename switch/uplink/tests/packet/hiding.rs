//! What is hidden from the kernel, and what is not.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Command, Stdio};

use hostweave_uplink::device::Device;
use hostweave_uplink::netlink::hide;
use hostweave_uplink::netlink::interfaces::interface;
use hostweave_uplink::uring::Uring;

use super::{Scene, arrived, arrives, oddity, send};

/// What comes in at `peer`'s end of the cable within half a second, after a frame was sent into it.
fn answers(peer: &Device, uring: &mut Uring, frame: &[u8]) -> Vec<Vec<u8>> {
    arrived(uring, peer);
    send(peer, uring, frame);
    arrived(uring, peer)
}

/// The host's kernel forwards between its two cables; the pool lies behind the left one.
fn forwarding(scene: &Scene) {
    scene.host.ip("addr add 192.0.2.254/24 dev left");
    scene.host.ip("addr add 198.51.100.254/24 dev right");
    scene.host.ip("addr add 2001:db8:1::254/64 dev left nodad");
    scene.host.sysctl("ipv4/ip_forward", "1");
    scene.host.sysctl("ipv6/conf/all/forwarding", "1");
    scene.host.sysctl("ipv4/conf/left/proxy_arp", "1");
    scene.host.sysctl("ipv4/neigh/left/proxy_delay", "0");
    scene.host.ip("route add 203.0.113.0/24 via 198.51.100.1 dev right");
    scene.host.ip("neigh add 198.51.100.1 lladdr 02:00:00:00:00:09 dev right");
    scene.host.ip("route add default via 192.0.2.1 dev left");
    scene.host.ip("addr add 2001:db8:2::254/64 dev right nodad");
    scene.host.ip("route add 2001:db8:3::/64 via 2001:db8:2::1 dev right");
    scene.host.ip("neigh add 2001:db8:2::1 lladdr 02:00:00:00:00:09 dev right");
    scene.host.ip("route add default via 2001:db8:1::1 dev left");
    scene.a.ip("addr add 192.0.2.1/24 dev eth0");
    scene.a.ip("addr add 2001:db8:1::1/64 dev eth0 nodad");
}

/// An ARP request for an address of the pool, which proxy ARP answers.
fn request() -> Vec<u8> {
    let mut request = oddity(42);
    request[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    request[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    request[22..28].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    request[28..32].copy_from_slice(&Ipv4Addr::new(192, 0, 2, 1).octets());
    request[32..38].fill(0);
    request[38..42].copy_from_slice(&Ipv4Addr::new(203, 0, 113, 7).octets());
    request
}

pub fn hidden() {
    let scene = Scene::new("hide");
    forwarding(&scene);
    let mac = scene.host.inside(|| interface("left").unwrap().unwrap().mac).join().unwrap();
    let peer = scene.a.open("eth0", None);
    let mut uring = Uring::new().unwrap();
    peer.start(&mut uring, 0);
    uring.submit();
    let ours: IpAddr = "203.0.113.7".parse().unwrap();
    let ours6: [IpAddr; 2] = ["2001:db8:1::7", "2001:db8:3::7"].map(|address| address.parse().unwrap());
    let request = request();
    let answered = |uring: &mut Uring| {
        answers(&peer, uring, &request).iter().any(|frame| frame[12..14] == [8, 6] && frame[21] == 2)
    };
    assert!(answered(&mut uring), "the kernel would answer");
    let segments = [to_pool(mac.0, [203, 0, 113, 7]), to_pool6(mac.0, Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, 7))];
    let watch = scene.b.open("eth0", None);
    let mut behind = Uring::new().unwrap();
    watch.start(&mut behind, 0);
    behind.submit();
    // By sender and destination.
    let same = |frame: &[u8], segment: &[u8]| {
        let addresses = if segment[12..14] == [8, 0] { 26..34 } else { 22..54 };
        frame[12..14] == segment[12..14] && frame.get(addresses.clone()) == segment.get(addresses)
    };
    let forwarded = |uring: &mut Uring, behind: &mut Uring| {
        arrived(behind, &watch);
        segments.iter().for_each(|segment| send(&peer, uring, segment));
        let came = arrived(behind, &watch);
        [0, 1].map(|v6| came.iter().any(|frame| same(frame, &segments[v6])))
    };
    assert_eq!(forwarded(&mut uring, &mut behind), [true; 2], "the kernel would forward");
    let prefixes = move || [ours.into(), ours6[0].into(), ours6[1].into()];
    scene.host.inside(move || hide::install("left", None, &prefixes()).unwrap()).join().unwrap();
    assert!(!answered(&mut uring), "no answer");
    assert_eq!(forwarded(&mut uring, &mut behind), [false; 2], "not forwarded");
    let after: Vec<_> = segments.iter().flat_map(|segment| answers(&peer, &mut uring, segment)).collect();
    // Of IPv6 the kernel asks for neighbours, and reports its groups.
    let quiet = |frame: &Vec<u8>| match frame[12..14] {
        [8, 0] => false,
        [0x86, 0xdd] => frame[20] == 0 || frame[20] == 58 && (133..=136).contains(&frame[54]),
        _ => true,
    };
    assert!(after.iter().all(quiet), "no redirect, no reset: {after:?}");
    // What is not ours goes on, both families.
    assert!(scene.a.ping("192.0.2.254") && scene.a.ping("2001:db8:1::254"));
    // An address of the kernel's own, were it ours: the whole family is looked at.
    let own: IpAddr = "2001:db8:1::254".parse().unwrap();
    scene.host.inside(move || hide::install("left", None, &[own.into()]).unwrap()).join().unwrap();
    assert!(!scene.a.ping("2001:db8:1::254") && scene.a.ping("192.0.2.254"));
    assert!(answered(&mut uring), "replaced as a whole");
    // A packet socket sees it all the same.
    let left = scene.host.open("left", None);
    let mut inside = Uring::new().unwrap();
    left.start(&mut inside, 0);
    inside.submit();
    scene.host.inside(move || hide::install("left", None, &prefixes()).unwrap()).join().unwrap();
    for segment in &segments {
        send(&peer, &mut uring, segment);
        assert!(arrives(&mut inside, &left, |frame| frame == segment.as_slice()));
    }
    scene.host.inside(|| hide::remove("left").unwrap()).join().unwrap();
    assert!(answered(&mut uring), "given back");
    scene.host.inside(|| hide::remove("left").unwrap()).join().unwrap();
    scene.host.inside(|| hide::remove("never").unwrap()).join().unwrap();
}

/// A TCP SYN to an address.
fn to_pool(mac: [u8; 6], to: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![0; 54];
    frame[..6].copy_from_slice(&mac);
    frame[6..14].copy_from_slice(&[2, 0, 0, 0, 0, 1, 8, 0]);
    frame[14..26].copy_from_slice(&[0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0]);
    frame[26..30].copy_from_slice(&[192, 0, 2, 1]);
    frame[30..34].copy_from_slice(&to);
    let sum: u32 = frame[14..34].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame[34..48].copy_from_slice(&[0x13, 0x88, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2]);
    frame
}

/// The same over IPv6, from a neighbour.
fn to_pool6(mac: [u8; 6], to: Ipv6Addr) -> Vec<u8> {
    let mut frame = vec![0; 74];
    frame[..6].copy_from_slice(&mac);
    frame[6..14].copy_from_slice(&[2, 0, 0, 0, 0, 1, 0x86, 0xdd]);
    frame[14..22].copy_from_slice(&[0x60, 0, 0, 0, 0, 20, 6, 64]);
    frame[22..38].copy_from_slice(&Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1).octets());
    frame[38..54].copy_from_slice(&to.octets());
    frame[54..68].copy_from_slice(&[0x13, 0x88, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2]);
    frame
}

pub fn hidden_ranges() {
    for v6 in [false, true] {
        ranges(v6);
    }
}

fn ranges(v6: bool) {
    let scene = Scene::new(if v6 { "range6" } else { "range4" });
    let address = |last: u32| if v6 { format!("2001:db8::{last:x}") } else { format!("192.0.2.{last}") };
    let (subnet, all) = if v6 { ("64", 128) } else { ("24", 32) };
    let prefix = |last: u32, bits: u32| format!("{}/{}", address(last), all - bits);
    let nodad = if v6 { " nodad" } else { "" };
    // The kernel holds every second address of a small range.
    for last in (2..32).step_by(2) {
        scene.host.ip(&format!("addr add {}/{subnet} dev left{nodad}", address(last)));
    }
    scene.a.ip(&format!("addr add {}/{subnet} dev eth0{nodad}", address(200)));
    let hide = |prefixes: &[String]| {
        let prefixes: Vec<ipnet::IpNet> = prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect();
        scene.host.inside(move || hide::install("left", None, &prefixes).unwrap()).join().unwrap();
    };
    let visible = || -> Vec<u32> {
        let pings: Vec<_> = (2..32)
            .step_by(2)
            .map(|last| {
                let arguments = ["-n", "-c", "1", "-W", "1"].map(str::to_owned);
                let mut command = Command::new("ip");
                command.args(["netns", "exec", &scene.a.0, "ping"]).args(arguments).arg(address(last));
                (last, command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
            })
            .collect();
        pings.into_iter().filter_map(|(last, mut ping)| ping.wait().unwrap().success().then_some(last)).collect()
    };
    assert_eq!(visible(), (2..32).step_by(2).collect::<Vec<_>>());
    hide(&[prefix(4, 0), prefix(8, 2), prefix(12, 0), prefix(13, 0), prefix(24, 3)]);
    assert_eq!(visible(), [2, 6, 14, 16, 18, 20, 22]);
    hide(&["0.0.0.0/0".to_owned(), "::/0".to_owned()]);
    assert_eq!(visible(), [0; 0]);
    hide(&[]);
    assert_eq!(visible().len(), 15);
    // More than fit one message.
    let other = |n| if v6 { format!("2001:db8:1:{n:x}::1/128") } else { format!("10.{}.{}.1/32", n / 250, n % 250) };
    let many: Vec<String> = (0..3_000).map(other).chain([prefix(6, 0)]).collect();
    hide(&many);
    assert!(!visible().contains(&6) && visible().len() == 14);
}

/// A frame to hidden addresses of every kind that is hidden, without a link header.
fn to_hidden() -> [(u16, Vec<u8>); 4] {
    let (v4, v6) = (Ipv4Addr::new(203, 0, 113, 7), Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 7));
    let mut datagram = vec![0x45, 0, 0, 28, 0, 1, 0x40, 0, 64, 17, 0, 0, 192, 0, 2, 1];
    datagram.extend(v4.octets());
    datagram.extend([0; 8]);
    let mut request = vec![0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0];
    request.extend(v4.octets());
    let v6_header = |len: u8, protocol: u8, to: [u8; 16]| {
        let mut header = vec![0x60, 0, 0, 0, 0, len, protocol, 255];
        header.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        header.extend(to);
        header
    };
    let mut datagram6 = v6_header(8, 17, v6.octets());
    datagram6.extend([0; 8]);
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 7);
    let mut solicitation = v6_header(24, 58, group.octets());
    solicitation.extend([135, 0, 0, 0, 0, 0, 0, 0]);
    solicitation.extend(v6.octets());
    [(0x0800, datagram), (0x0806, request), (0x86dd, datagram6), (0x86dd, solicitation)]
}

/// What comes behind the rules is counted there by rules of another's, as they would reach the kernel's stack: who sent hidden ones, and
/// who sent the last one, to an address of nobody's.
fn counted(netns: &str) -> [u64; 2] {
    let output = Command::new("ip")
        .args(["netns", "exec", netns, "nft", "list", "table", "netdev", "witness"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let counts: Vec<u64> =
        text.split("packets ").skip(1).filter_map(|rest| rest.split(' ').next()?.parse().ok()).collect();
    counts.try_into().unwrap_or_else(|_| panic!("{text}"))
}

pub fn hidden_in_one_vlan() {
    if Command::new("nft").arg("--version").stdout(Stdio::null()).status().is_err() {
        return println!("skipped: packet::hidden_in_one_vlan needs nft");
    }
    let scene = Scene::new("vlan");
    let host = scene.host.name();
    let rules = "table netdev witness { chain seen { type filter hook ingress device \"left\" priority 0; \
                 ether saddr 02:00:00:00:00:01 counter; ether saddr 02:00:00:00:00:02 counter; }; }";
    let done = Command::new("ip").args(["netns", "exec", host, "nft", rules]).status().unwrap();
    assert!(done.success());
    let peer = scene.a.open("eth0", None);
    let mut uring = Uring::new().unwrap();
    let frame = |from: u8, tag: Option<u16>, ether_type: u16, body: &[u8]| {
        let mut frame = vec![0xff; 6];
        frame.extend([2, 0, 0, 0, 0, from]);
        // With a priority, which is not part of the number.
        frame.extend(
            tag.into_iter().flat_map(|id| [0x8100_u16, 0xa000 | id]).chain([ether_type]).flat_map(u16::to_be_bytes),
        );
        frame.extend(body);
        frame
    };
    let prefixes = ["203.0.113.0/24", "2001:db8:1::/64"].map(|prefix| prefix.parse().unwrap());
    let tags = [None, Some(0), Some(7), Some(8), Some(0x107)];
    for (vlan, hidden) in [
        (None, [true, true, false, false, false]),
        (Some(7), [false, false, true, false, false]),
        (Some(8), [false, false, false, true, false]),
    ] {
        scene.host.inside(move || hide::install("left", vlan, &prefixes).unwrap()).join().unwrap();
        for (tag, hidden) in tags.into_iter().zip(hidden) {
            for (ether_type, body) in to_hidden() {
                let before = counted(host);
                send(&peer, &mut uring, &frame(1, tag, ether_type, &body));
                // The last one comes behind it.
                send(&peer, &mut uring, &frame(2, tag, 0x88b5, &[0; 46]));
                let start = std::time::Instant::now();
                while counted(host)[1] == before[1] {
                    assert!(start.elapsed() < super::PATIENCE, "the last frame never came");
                }
                let came = counted(host)[0] - before[0];
                assert_eq!(came, u64::from(!hidden), "{vlan:?}, a frame with {tag:?}, {ether_type:#x}");
            }
        }
    }
}
