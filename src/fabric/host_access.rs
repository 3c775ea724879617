//! The host's own side of a port whose TAP device is an interface of the host: addresses and routes.

use std::net::IpAddr;

use anyhow::bail;
use hostweave_uplink::netlink::configure::{Route, configure, kernel_has_ipv6};
use hostweave_uplink::netlink::interfaces::{Held, addresses, interface};
use ipnet::IpNet;

use super::spec::{HostRoute, PortSpec};

/// Looks whether the host has something already that would be taken from it.
///
/// # Errors
/// An interface of that name that no earlier run made, an address whose subnet overlaps; or when the kernel refuses to
/// tell.
pub fn check(spec: &PortSpec, device: &str, routes: &[HostRoute]) -> anyhow::Result<()> {
    if interface(device)?.is_some_and(|there| there.mac != spec.mac) {
        bail!("the host has an interface {device} already; write another name as HostConfig.spec.hostAccess.interface");
    }
    refuse_overlap(&spec.network, device, routes, &addresses()?)
}

/// Gives the device the port's first address of each family, and routes to the port's network.
///
/// # Errors
/// When the kernel refuses, or the host has such a route already.
pub fn set_up(spec: &PortSpec, device: &str, routes: &[HostRoute]) -> anyhow::Result<()> {
    let (own, routes) = plan(spec, routes, kernel_has_ipv6());
    Ok(configure(device, &own, &routes)?)
}

/// The addresses that the device gets, at most one of each family.
pub fn own_addresses(spec: &PortSpec) -> impl Iterator<Item = IpAddr> {
    let v4 = spec.v4.first().copied().map(IpAddr::V4);
    v4.into_iter().chain(spec.v6.first().copied().map(IpAddr::V6))
}

/// What the kernel is told, without what it does not know.
fn plan(spec: &PortSpec, routes: &[HostRoute], has_ipv6: bool) -> (Vec<IpAddr>, Vec<Route>) {
    let own: Vec<IpAddr> = own_addresses(spec).filter(|address| address.is_ipv4() || has_ipv6).collect();
    let route = |route: &HostRoute| {
        let from = own.iter().find(|address| address.is_ipv4() == route.via.is_ipv4())?;
        Some(Route { to: route.to, via: route.via, from: *from })
    };
    let routes = routes.iter().filter_map(route).collect();
    (own, routes)
}

/// A route to a network takes precedence over the host's own subnet around it, and is none for a subnet within it.
fn refuse_overlap(network: &str, device: &str, routes: &[HostRoute], held: &[Held]) -> anyhow::Result<()> {
    for Held { address, prefix, interface, .. } in held.iter().filter(|held| held.interface != device) {
        let Ok(subnet) = IpNet::new(*address, *prefix) else { continue };
        let overlaps = |to: &IpNet| to.contains(&subnet.network()) || subnet.contains(&to.network());
        if let Some(route) = routes.iter().find(|route| overlaps(&route.to)) {
            bail!(
                "the host has {address}/{prefix} on {interface}, and {} belongs to Network {network}: it could not reach \
                 both; give the network other cidrs or serviceCIDRs, or remove HostConfig.spec.hostAccess",
                route.to
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use hostweave_switch::MacAddr;

    use super::*;
    use crate::fabric::spec::BackendSpec;

    fn routes() -> Vec<HostRoute> {
        let route = |to: &str, via: &str| HostRoute { to: to.parse().unwrap(), via: via.parse().unwrap() };
        vec![route("10.64.0.0/16", "10.64.0.1"), route("2001:db8:64::/64", "fe80::1")]
    }

    #[test]
    fn subnets_of_the_host_that_a_network_would_cut_off_are_named() {
        let refused = |address: &str, prefix, interface: &str| {
            let (address, interface) = (address.parse().unwrap(), interface.to_owned());
            let held = Held { address, prefix, interface, secondary: false };
            refuse_overlap("vms", "hostweave0", &routes(), &[held]).map_err(|error| error.to_string())
        };
        for (address, prefix) in
            [("10.64.3.4", 24), ("10.0.0.9", 8), ("10.64.0.7", 32), ("2001:db8:64::7", 128), ("2001:db8::1", 32)]
        {
            let error = refused(address, prefix, "eth0").unwrap_err();
            assert!(error.contains(&format!("{address}/{prefix} on eth0")), "{error}");
            assert!(error.contains("Network vms"), "{error}");
            assert_eq!(refused(address, prefix, "hostweave0"), Ok(()), "its own are no obstacle");
        }
        for (address, prefix) in [("10.65.0.1", 16), ("127.0.0.1", 8), ("fe80::2", 64), ("2001:db8:65::1", 64)] {
            assert_eq!(refused(address, prefix, "eth0"), Ok(()), "{address}");
        }
    }

    #[test]
    fn without_ipv6_in_the_kernel_there_is_ipv4() {
        let spec = PortSpec {
            v4: vec!["10.64.0.2".parse().unwrap()],
            v6: vec!["2001:db8:64::2".parse().unwrap(), "2001:db8:64::99".parse().unwrap()],
            ..example()
        };
        let (own, planned) = plan(&spec, &routes(), true);
        assert_eq!(own, [IpAddr::from(spec.v4[0]), spec.v6[0].into()], "a learned address is somebody else's doing");
        assert_eq!(planned.iter().map(|route| route.from).collect::<Vec<_>>(), own);
        let (own, planned) = plan(&spec, &routes(), false);
        assert_eq!((own, planned.len()), (vec![spec.v4[0].into()], 1));
        let (own, planned) = plan(&PortSpec { v4: Vec::new(), ..spec }, &routes(), true);
        assert_eq!((own.len(), planned.len()), (1, 1), "no route without an address");
    }

    fn example() -> PortSpec {
        PortSpec {
            network: "vms".to_owned(),
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            backend: BackendSpec::Host { name: "hostweave0".to_owned(), mtu: 1500, routes: routes() },
            ..PortSpec::bare("hostweave-system", "host")
        }
    }
}
