//! Ports behind NAT that change.

use super::guests::{Scene, path, received, remote};
use super::*;
use hostweave::fabric::spec::BackendSpec;
use hostweave_guest::frames::Segment;
use hostweave_guest::{Guest, VnetHeader};

pub(super) fn replaced() {
    let _router = Router::new("ports");
    let mut host = Host::new();
    host.desired.networks = vec![guests::network()];
    let dir = host.dir.path().to_owned();
    let port = guests::port(&dir, "a", 10, 1);
    host.desired.ports = vec![port.clone()].into();
    host.desired.nat_pools[0].ports = vec![port.uid];
    host.fabric.apply(&host.desired).unwrap();
    let served = |host: &Host| {
        let plane = host.fabric.plane();
        let port = plane.tables.ports.iter().flatten().find(|it| *it.name == *port.full_name()).unwrap();
        (port.id, [0, 1].map(|family| plane.pools.serves(port.id, family)))
    };
    let (before, by_pool) = served(&host);
    assert_eq!(by_pool, [true; 2]);
    let spec = Arc::make_mut(host.desired.ports.last_mut().unwrap());
    let BackendSpec::VhostUser { socket, .. } = &mut spec.backend else { unreachable!() };
    *socket = dir.join("another.sock");
    host.fabric.apply(&host.desired).unwrap();
    let (after, by_pool) = served(&host);
    assert_eq!(by_pool, [true; 2], "slot {after:?} in the place of {before:?}");
    assert_ne!(before, after, "the same slot shows nothing");
}

/// L4 ports of guests and of servers.
const OWN_PORT: u16 = 6_000;
const PORT: u16 = 7_000;

/// A TCP connection of a port to a server, of which both sides have acknowledged each other's SYN.
fn establish(scene: &mut Scene, n: usize, guest: &mut Guest, ipv4: bool) {
    let segment =
        |(src_port, dst_port), flags, seq, ack| Segment { src_port, dst_port, seq, ack, flags, window: 1_000 };
    let there = path(&scene.port(n), remote(ipv4, 1));
    let ends = (OWN_PORT, PORT);
    guest.send_frame(&there.tcp(&segment(ends, 2, 100, 0), b""), &VnetHeader::default()).unwrap();
    let mut asked = None;
    eventually("the SYN leaves", || {
        asked = scene.outside.datagrams(PORT).first().map(|seen| seen.from);
        asked.is_some()
    });
    let (address, l4) = asked.unwrap();
    let answer = segment((PORT, l4), 18, 500, 101);
    scene.outside.send(scene.router.mac(), |path| path.tcp(&answer, b""), there.dst, address);
    eventually("and is answered", || !received(guest).is_empty());
    guest.send_frame(&there.tcp(&segment(ends, 16, 101, 501), b""), &VnetHeader::default()).unwrap();
    eventually("and that acknowledged", || !scene.outside.datagrams(PORT).is_empty());
}

/// Whatever its connections were, the outside ports of a port that is gone must be free for others after their quarantine, and not in two
/// hours.
pub(super) fn deleted() {
    let mut scene = Scene::new("deleted", &[("a", 1), ("b", 1)], |_| ());
    let uids = [0, 1].map(|n| scene.port(n).uid);
    let mappings = |scene: &Scene, n: usize| {
        scene.host.fabric.nat_mappings(usize::MAX, |entry| entry.inside.uid == uids[n].as_u128()).0
    };
    for n in 0..2 {
        let mut guest = scene.guest(n);
        [true, false].into_iter().for_each(|ipv4| establish(&mut scene, n, &mut guest, ipv4));
        assert_eq!(mappings(&scene, n).len(), 2);
    }
    // The second one moves: its connections end, but a guest that opens them again is still who it was.
    let spec = Arc::make_mut(scene.host.desired.ports.last_mut().unwrap());
    let BackendSpec::VhostUser { socket, .. } = &mut spec.backend else { unreachable!() };
    socket.set_extension("moved");
    scene.host.fabric.apply(&scene.host.desired).unwrap();
    let kept: Vec<_> = mappings(&scene, 1).iter().map(|view| view.expires_s).collect();
    assert!(kept.iter().all(|left| left.is_some_and(|left| left > 7_000)) && kept.len() == 2, "{kept:?}");
    // The first one goes, and its network stays.
    scene.host.desired.ports.retain(|port| port.uid != uids[0]);
    scene.host.desired.nat_pools[0].ports.retain(|port| *port != uids[0]);
    scene.host.fabric.apply(&scene.host.desired).unwrap();
    assert_eq!([0, 1].map(|n| mappings(&scene, n).len()), [0, 2]);
    // Both at once with all that is left: not by a few ports, but the long way.
    scene.host.desired.ports = Vec::new().into();
    scene.host.desired.networks.clear();
    scene.host.desired.nat_pools[0].ports.clear();
    scene.host.fabric.apply(&scene.host.desired).unwrap();
    assert_eq!(mappings(&scene, 1).len(), 0);
}
