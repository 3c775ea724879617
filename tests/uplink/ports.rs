//! Ports behind NAT that change.

use super::*;
use hostweave::fabric::spec::BackendSpec;

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
