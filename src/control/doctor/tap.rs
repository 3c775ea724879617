//! What the kernel has to be told for `driver: tap`, as commands: it routes between its own interfaces and the TAP device.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

use crate::config::checked::PoolType;
use crate::config::outside::{address_pools, nat_pools};
use crate::config::ranges::Range;
use crate::config::{ObjectSet, outside};
use crate::fabric::spec::UplinkSpec;
use hostweave_switch::tables::Egress;

/// The commands, in order. They may be given again.
pub fn commands(set: &ObjectSet, uplink: &UplinkSpec) -> Vec<String> {
    let device = &uplink.interface;
    let mut commands = vec![format!("ip link set {device} up")];
    for gateway in uplink.gateways.iter().filter(|gateway| !is_link_local(**gateway)) {
        let length = uplink.addresses.iter().find(|net| net.contains(gateway)).map_or(32, IpNet::prefix_len);
        commands.push(format!("ip address replace {gateway}/{length} dev {device}"));
    }
    let mut masqueraded = Vec::new();
    for net in routed(set) {
        let own = uplink.addresses.iter().map(IpNet::addr).find(|own| own.is_ipv4() == net.addr().is_ipv4());
        let family = if net.addr().is_ipv4() { "-4" } else { "-6" };
        let via = own.map(|own| format!(" via {own}")).unwrap_or_default();
        // What is in the device's own subnet is a neighbour already.
        if !uplink.addresses.iter().any(|subnet| subnet.contains(&net)) {
            commands.push(format!("ip {family} route replace {net}{via} dev {device}"));
        }
        if is_private(net) {
            masqueraded.push(net);
        }
    }
    let families = [(true, "net.ipv4.ip_forward=1"), (false, "net.ipv6.conf.all.forwarding=1")];
    for (ipv4, setting) in families {
        if uplink.addresses.iter().any(|net| net.addr().is_ipv4() == ipv4) {
            commands.push(format!("sysctl -w {setting}"));
        }
    }
    if !masqueraded.is_empty() {
        commands.push("nft add table inet hostweave".to_owned());
        commands.push("nft 'add chain inet hostweave out { type nat hook postrouting priority srcnat; }'".to_owned());
        for net in masqueraded {
            let family = if net.addr().is_ipv4() { "ip" } else { "ip6" };
            let rule = format!("{family} saddr {net} oifname != \"{device}\" masquerade");
            commands.push(format!("nft 'add rule inet hostweave out {rule}'"));
        }
    }
    commands
}

/// Every prefix that has to come to the device.
fn routed(set: &ObjectSet) -> Vec<IpNet> {
    let pools = nat_pools(set).flat_map(|(_, pool)| &pool.ranges);
    let public = address_pools(set).filter(|(_, pool)| pool.pool_type == PoolType::Public);
    let ranges = pools.chain(public.flat_map(|(_, pool)| &pool.ranges));
    let mut nets: Vec<IpNet> = ranges.flat_map(subnets).collect();
    for (name, network) in set.networks() {
        if let (Some((net, _)), Egress::Routed) = (network.v6, outside::egress_of(set, name, network, false)) {
            nets.push(net.into());
        }
    }
    nets
}

/// A range as prefixes.
fn subnets(range: &Range) -> Vec<IpNet> {
    match (range.first(), range.last()) {
        (IpAddr::V4(first), IpAddr::V4(last)) => Ipv4Subnets::new(first, last, 0).map(IpNet::V4).collect(),
        (IpAddr::V6(first), IpAddr::V6(last)) => Ipv6Subnets::new(first, last, 0).map(IpNet::V6).collect(),
        _ => Vec::new(),
    }
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// Addresses that nobody outside answers (RFC 1918, RFC 4193, RFC 6598): the kernel must translate once more.
fn is_private(net: IpNet) -> bool {
    match net.addr() {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            v4.is_private() || (a == 100 && b & 0xc0 == 64)
        }
        IpAddr::V6(v6) => v6.is_unique_local(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::config::{Source, check_set, load_sources};

    #[test]
    fn every_prefix_is_routed_and_private_ones_are_masqueraded() {
        let text = "\
{apiVersion: hostweave.dev/v1alpha1, kind: HostConfig, metadata: {name: h}, spec: {uplink: {interface: hw0, driver: tap, \
 addresses: [192.168.77.2/30, \"2001:db8:9::2/64\"], gateways: [192.168.77.1, \"2001:db8:9::1\", \"fe80::1\"]}}}
---
{apiVersion: hostweave.dev/v1alpha1, kind: NatPool, metadata: {name: n}, spec: {addresses: [172.20.0.0-172.20.0.4]}}
---
{apiVersion: hostweave.dev/v1alpha1, kind: AddressPool, metadata: {name: a}, spec: {type: public, addresses: [203.0.113.0/29]}}
---
{apiVersion: hostweave.dev/v1alpha1, kind: AddressPool, metadata: {name: b}, spec: {type: private, addresses: [10.96.0.0/20]}}
---
{apiVersion: hostweave.dev/v1alpha1, kind: Network, metadata: {name: r}, \
 spec: {cidrs: [10.1.0.0/24, \"2001:db8:1::/64\"], egress: {ipv6: routed}}}
";
        let source = Source { name: "t".to_owned(), text: text.to_owned() };
        let objects = load_sources(vec![source]).unwrap().objects.into_iter().map(Arc::new);
        let (set, _) = check_set(objects, Path::new("/run")).unwrap();
        let uplink = set.host().uplink.clone().unwrap();
        let expected = [
            "ip link set hw0 up",
            "ip address replace 192.168.77.1/30 dev hw0",
            "ip address replace 2001:db8:9::1/64 dev hw0",
            "ip -4 route replace 172.20.0.0/30 via 192.168.77.2 dev hw0",
            "ip -4 route replace 172.20.0.4/32 via 192.168.77.2 dev hw0",
            "ip -4 route replace 203.0.113.0/29 via 192.168.77.2 dev hw0",
            "ip -6 route replace 2001:db8:1::/64 via 2001:db8:9::2 dev hw0",
            "sysctl -w net.ipv4.ip_forward=1",
            "sysctl -w net.ipv6.conf.all.forwarding=1",
            "nft add table inet hostweave",
            "nft 'add chain inet hostweave out { type nat hook postrouting priority srcnat; }'",
            "nft 'add rule inet hostweave out ip saddr 172.20.0.0/30 oifname != \"hw0\" masquerade'",
            "nft 'add rule inet hostweave out ip saddr 172.20.0.4/32 oifname != \"hw0\" masquerade'",
        ];
        assert_eq!(commands(&set, &uplink), expected);
    }
}
