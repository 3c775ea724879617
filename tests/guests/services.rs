//! Services and the guests behind them: who takes connections follows what guests and their VMMs do.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use hostweave::fabric::Fabric;
use hostweave::fabric::balance::choice::BackendState;
use hostweave::fabric::balance::known::Drained;
use hostweave::fabric::balance::outlier::Ejection;
use hostweave::fabric::balance::serving::Serving;
use hostweave::fabric::spec::{
    Condition, EndpointSpec, FabricEvent, OutlierSpec, PortSpec, ServicePortSpec, ServiceSpec,
};
use hostweave_guest::Guest;
use hostweave_nat::service::{Backend, Lookup};
use hostweave_switch::tables::mapped;

use crate::support::{Host, PATIENCE, Up, eventually};

const VIPS: [&str; 2] = ["198.51.100.1", "2001:db8:96::1"];

/// VNI of the network `default` of these hosts.
const VNI: u32 = 1;

fn service(ports: &[&PortSpec]) -> Arc<ServiceSpec> {
    let endpoints = ports.iter().flat_map(|port| {
        port.addresses().map(|address| EndpointSpec {
            name: port.full_name(),
            port: Some(port.uid),
            address,
            l4: Some(8080),
            weight: 100,
            condition: Condition::Ready,
            internal: true,
            external: true,
            rank: 0,
        })
    });
    Arc::new(ServiceSpec {
        cluster: VIPS.map(|vip| vip.parse().unwrap()).to_vec(),
        ports: vec![ServicePortSpec { name: "http".into(), proto: 6, l4: 80..=80, endpoints: endpoints.collect() }],
        ..ServiceSpec::bare("test/web")
    })
}

/// Names of the backends that take connections, of each family.
fn active(fabric: &Fabric) -> [Vec<String>; 2] {
    let plane = fabric.plane();
    VIPS.map(|vip| match plane.services.lookup(VNI, mapped(vip.parse().unwrap()), 6, 80) {
        Lookup::Frontend(frontend) => {
            let active = |backend: &&Backend| backend.active;
            frontend.spec().backends.iter().filter(active).map(|backend| backend.name.to_string()).collect()
        }
        other => panic!("{vip}: {other:?}"),
    })
}

fn are(host: &Host, wanted: &[&str]) {
    eventually(&format!("backends {wanted:?}"), || active(&host.fabric).iter().all(|names| *names == wanted));
}

#[test]
fn sv2_a_backend_takes_connections_while_its_guest_runs() {
    let mut host = Host::new(1);
    let (a, b) = (host.port("a", 10), host.port("b", 11));
    host.desired.services = vec![service(&[&a, &b])].into();
    host.apply();
    assert_eq!(active(&host.fabric), [vec![], Vec::<String>::new()]);
    let mut guest = host.guest(&a).up();
    are(&host, &["test/a"]);
    let other = host.guest(&b).up();
    are(&host, &["test/a", "test/b"]);
    guest.nic().stop().unwrap();
    are(&host, &["test/b"]);
    drop(guest);
    let _guest = host.guest(&a).up();
    are(&host, &["test/a", "test/b"]);
    // A VMM that dies says nothing.
    drop(other);
    are(&host, &["test/a"]);
    let gone = |event: &FabricEvent| matches!(event, FabricEvent::ServiceBackend { change, .. } if *change.backend == *"test/b");
    host.event("change of b", gone);
    // Set down, it does not count as running.
    host.desired.ports.edit(0).unwrap().up = false;
    host.apply();
    assert_eq!(active(&host.fabric), [vec![], Vec::<String>::new()]);
    let status = host.fabric.service_status("test/web").unwrap();
    assert_eq!((status.serving, status.backends.len()), (Some(Serving::Nowhere), 4));
}

#[test]
fn what_was_drained_is_in_force_when_that_is_said_and_after_a_restart_of_the_ports() {
    let mut host = Host::new(1);
    let (a, b) = (host.port("a", 10), host.port("b", 11));
    let _guests = [&a, &b].map(|port| host.guest(port).up());
    host.desired.services = vec![service(&[&a, &b])].into();
    host.apply();
    are(&host, &["test/a", "test/b"]);
    let what = Drained { backend: "test/a".into(), service: None };
    assert!(host.fabric.drain(what.clone(), true));
    let only_b = || [vec!["test/b".to_owned()], vec!["test/b".to_owned()]];
    assert_eq!(active(&host.fabric), only_b());
    // Another version of the Service does not forget it.
    host.desired.services = vec![service(&[&a, &b])].into();
    host.apply();
    assert_eq!(active(&host.fabric), only_b());
    // A port that is gone does.
    host.desired.ports = vec![b.clone()].into();
    host.desired.services = vec![service(&[&b])].into();
    host.apply();
    assert!(host.fabric.drained().is_empty());
    assert!(!host.fabric.drain(what, false), "it was let off");
}

/// Connects to both addresses of the Service once.
fn connect(client: &mut Guest) {
    for vip in VIPS {
        if let Ok(handle) = client.tcp_connect(vip.parse::<IpAddr>().unwrap(), 80, PATIENCE) {
            client.close(handle);
        }
    }
}

#[test]
fn a_backend_that_refuses_clients_is_ejected_and_back_in_time() {
    let mut host = Host::new(1);
    let (a, b) = (host.port("a", 10), host.port("b", 11));
    let (c, d) = (host.port("c", 12), host.port("d", 13));
    let mut backends = [&a, &b].map(|port| {
        let mut guest = host.guest(port).up();
        host.settle(&mut guest, port);
        guest
    });
    // Both know everybody, and only one has a server: the other's kernel resets.
    backends[1].tcp_echo_server(8080).unwrap();
    let mut clients = [&c, &d].map(|port| {
        let mut guest = host.guest(port).up();
        host.settle(&mut guest, port);
        guest
    });
    let mut spec = ServiceSpec::clone(&service(&[&a, &b]));
    spec.outlier = Some(OutlierSpec { consecutive_failures: 3, base_ejection_s: 2, max_ejection_percent: 50 });
    host.desired.services = vec![spec.into()].into();
    host.apply();
    are(&host, &["test/a", "test/b"]);
    let running = backends.map(|guest| guest.spawn("backend", false).unwrap());
    // Each family by itself: on a busy machine the first is back before the second is out.
    let mut out = BTreeSet::new();
    eventually("a was out in both families", || {
        clients.iter_mut().for_each(connect);
        let status = host.fabric.service_status("test/web").unwrap();
        for backend in status.backends.iter().filter(|backend| backend.state == BackendState::Ejected) {
            assert_eq!((&*backend.name, backend.internal), ("test/a", false));
            // The moment it is over, its state is worked out anew.
            let said = |ejection: &Ejection| ejection.reason.contains("in a row failed");
            assert!(backend.ejection.as_ref().is_none_or(said), "{backend:?}");
        }
        let ejections = status.changes.iter().filter(|change| change.to == Some(BackendState::Ejected));
        out.extend(ejections.map(|change| change.address.is_ipv4()));
        out.len() == 2
    });
    assert!(host.fabric.service_counts()[0].ejections >= 2);
    let mut told = BTreeSet::new();
    while told.len() < 2 {
        host.event("an ejection", |event| match event {
            FabricEvent::ServiceBackend { change, .. } if change.to == Some(BackendState::Ejected) => {
                assert!(change.reason.is_some());
                told.insert(change.address.is_ipv4())
            }
            _ => false,
        });
    }
    are(&host, &["test/a", "test/b"]);
    let changes = host.fabric.service_status("test/web").unwrap().changes;
    let back = changes.iter().find(|change| change.from == Some(BackendState::Ejected)).unwrap();
    assert_eq!((back.to, back.reason.as_deref()), (Some(BackendState::Healthy), Some("its ejection is over")));
    running.into_iter().for_each(|guest| _ = guest.stop());
}

#[test]
fn a_service_in_the_place_of_a_port_is_refused() {
    let mut host = Host::new(1);
    let a = host.port("a", 10);
    let mut wrong = ServiceSpec::clone(&service(&[&a]));
    wrong.cluster = a.addresses().collect();
    host.desired.services = vec![wrong.into()].into();
    let error = host.fabric.apply(&host.desired).unwrap_err().to_string();
    assert!(error.contains("Service test/web: address") && error.contains("is a port's"), "{error}");
    host.desired.services = Vec::new().into();
    host.apply();
}
