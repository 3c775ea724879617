//! `HostConfig.spec.hostAccess`: what follows from it is a port like any other.

use std::path::Path;

use uuid::Uuid;

use super::*;
use crate::config::desired::{HostFacts, to_desired};
use crate::config::outside::ServiceAddresses;
use crate::config::services::Told;
use crate::fabric::spec::{BackendSpec, PortSpec};

/// What the packet path is told of the host's port; `None` if there is none.
fn host_port(set: &ObjectSet, remembered: &Assignments) -> (Option<PortSpec>, Assignments) {
    let plan = crate::config::ipam::assign(set, remembered, &mut Uuid::new_v4);
    assert_eq!(plan.problems, []);
    let told = Told::default();
    let facts = HostFacts::system(Path::new("/run/hostweave"));
    let (desired, problems) = to_desired(set, &plan.assignments, &ServiceAddresses::default(), told, &facts);
    assert_eq!(problems, []);
    let port = desired
        .ports
        .iter()
        .find(|port| matches!(port.backend, BackendSpec::Host { .. }))
        .map(|port| PortSpec::clone(port));
    (port, plan.assignments)
}

#[test]
fn the_host_has_a_port_with_addresses_a_label_and_routes() {
    let (port, remembered) = host_port(&valid(&host("{hostAccess: {network: default}}")), &Assignments::new());
    let port = port.unwrap();
    assert_eq!(port.full_name(), "hostweave-system/host");
    assert_eq!(port.labels, [("hostweave.dev/host-access".to_owned(), "true".to_owned())].into());
    assert_eq!((port.v4.len(), port.v6.len()), (1, 1));
    let BackendSpec::Host { name, mtu, routes } = &port.backend else { panic!("{port:?}") };
    assert_eq!((name.as_str(), *mtu), ("hostweave0", 1500));
    let routes: Vec<String> = routes.iter().map(|route| format!("{} {}", route.to, route.via)).collect();
    assert_eq!(
        routes,
        [
            "10.64.0.0/16 10.64.0.1",
            "10.104.0.0/16 10.64.0.1",
            "fd68:7700:64::/64 fe80::1",
            "fd68:7700:68::/112 fe80::1",
        ]
    );

    // Whatever else comes and goes, and however the device is called, its addresses stay.
    let text = host("{hostAccess: {network: default, interface: vms}}") + "---\n" + &super::port("{}");
    let (again, remembered) = host_port(&valid(&text), &remembered);
    let again = again.unwrap();
    assert_eq!((again.uid, again.mac, &again.v4, &again.v6), (port.uid, port.mac, &port.v4, &port.v6));
    assert_ne!(again.backend, port.backend);
    let (none, remembered) = host_port(&valid(&host("{}")), &remembered);
    assert_eq!((none, remembered.len()), (None, 0), "freed with the port");
}

#[test]
fn a_network_of_one_family_has_routes_of_that_family() {
    let text = network("{cidrs: ['2001:db8:1::/64']}") + "---\n" + &host("{hostAccess: {network: n}}");
    let (port, _) = host_port(&valid(&text), &Assignments::new());
    let BackendSpec::Host { routes, .. } = port.unwrap().backend else { panic!("not the host's") };
    assert_eq!(routes.len(), 2, "its own and that of its Services");
    assert!(routes.iter().all(|route| route.via.is_ipv6()));
}

#[test]
fn its_namespace_is_there_and_gives_way_to_a_written_one() {
    let namespace = |set: &ObjectSet| set.get(&ObjectKey::new(Kind::Namespace, None, "hostweave-system")).cloned();
    assert!(namespace(&valid("")).is_none());
    let access = host("{hostAccess: {network: default}}");
    assert_eq!(namespace(&valid(&access)).unwrap().origin, Origin::BuiltIn);
    let written =
        access + "---\n{apiVersion: v1, kind: Namespace, metadata: {name: hostweave-system, labels: {a: b}}}\n";
    let set = valid(&written);
    assert_eq!(namespace(&set).unwrap().metadata.labels["a"], "b");
    assert_eq!(set.ports().count(), 1);
}

#[test]
fn what_is_refused() {
    check(&[
        (host("{hostAccess: {}}"), &["missing_field 4 hostAccess"]),
        (host("{hostAccess: {network: defualt}}"), &["not_found 4 defualt"]),
        (host("{hostAccess: {network: Default}}"), &["invalid_name 4 Default"]),
        (host("{hostAccess: {network: default, interface: sixteen-octets-x}}"), &["invalid_name 4 sixteen-octets-x"]),
        (host("{hostAccess: {network: default, interface: all}}"), &["invalid_name 4 all"]),
        (
            host("{uplink: {interface: hostweave0, addresses: [192.0.2.2/24]}, hostAccess: {network: default}}"),
            &["conflict 4 hostAccess"],
        ),
        (
            host("{hostAccess: {network: default}}") + "---\n" + &port("{backend: {tap: {name: hostweave0}}}"),
            &["conflict"],
        ),
        (
            host("{hostAccess: {network: default}}")
                + "---\n"
                + &port("{}").replace("{name: p}", "{name: host, namespace: hostweave-system}"),
            &["conflict 8 host"],
        ),
    ]);
}
