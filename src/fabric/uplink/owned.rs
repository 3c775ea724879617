//! What the host owns at the uplink, worked out from what is to exist.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::bail;
use hostweave_switch::tables::{Egress, Network, NetworkId, Owned, PortId};
use hostweave_uplink::netlink::interfaces::{self, Held};
use ipnet::IpNet;
use uuid::Uuid;

use super::super::spec::{AttachSpec, Desired, NatPoolSpec, PortSpec, UplinkDriver, UplinkSpec};
pub use hostweave_switch::tables::{mapped, unmapped};

/// What is wanted outside of the networks.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Outside {
    /// The way out.
    pub uplink: Option<UplinkSpec>,
    /// NAT addresses.
    pub nat_pools: Vec<NatPoolSpec>,
    /// Ranges of public addresses, given to Services or not. Of those that nobody has no packet is the kernel's either.
    pub public: Vec<IpNet>,
    /// Addresses on one port each.
    pub attached: Vec<AttachSpec>,
    /// Public addresses of Services, in order, each once: several Services may share one.
    pub services: Vec<IpAddr>,
}

impl Outside {
    /// The part of `desired` that lies outside.
    pub fn of(desired: &Desired) -> Self {
        let Desired { uplink, nat_pools, public, attached, .. } = desired;
        let mut services: Vec<IpAddr> = public_addresses(desired).map(|(_, address)| address).collect();
        services.sort_unstable();
        services.dedup();
        let (uplink, nat_pools, public) = (uplink.clone(), nat_pools.clone(), public.clone());
        Self { uplink, nat_pools, public, attached: attached.clone(), services }
    }

    /// Whether this is the part of `desired` that lies outside, apart from Services.
    pub fn is_of(&self, desired: &Desired) -> bool {
        let Desired { uplink, nat_pools, public, attached, .. } = desired;
        (&self.uplink, &self.nat_pools, &self.public, &self.attached) == (uplink, nat_pools, public, attached)
    }

    /// As [`Outside::is_of`], whomever the pools serve.
    pub fn has_places_of(&self, desired: &Desired) -> bool {
        let place = |pool: &NatPoolSpec| {
            let NatPoolSpec { name, addresses, draining, block_size, blocks, filtering, overload, limits, .. } = pool;
            let NatPoolSpec { ports: _, hosts: _, .. } = pool;
            (
                name.clone(),
                addresses.clone(),
                draining.clone(),
                *block_size,
                blocks.clone(),
                *filtering,
                *overload,
                *limits,
            )
        };
        (&self.uplink, &self.public, &self.attached) == (&desired.uplink, &desired.public, &desired.attached)
            && self.nat_pools.iter().map(place).eq(desired.nat_pools.iter().map(place))
    }

    /// Whether the Services of `desired` have these public addresses.
    pub fn has_services_of(&self, desired: &Desired) -> bool {
        self.services == Self::of(desired).services
    }

    /// What the host's own kernel must not see: all that is owned here or routed to here, and what Services may yet be given. Of that last
    /// part nothing answers for the addresses that nobody has.
    pub fn hidden(&self, owned: &HashMap<u128, Owned>, routed: &[(IpNet, NetworkId)]) -> Vec<IpNet> {
        let owned = owned.keys().map(|address| IpNet::from(unmapped(*address)));
        owned.chain(routed.iter().map(|(prefix, _)| *prefix)).chain(self.public.iter().copied()).collect()
    }

    /// Every address that somebody has, in order.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let host = self.uplink.iter().flat_map(|uplink| uplink.addresses.iter().map(IpNet::addr));
        let pools = self.nat_pools.iter().flat_map(|pool| pool.addresses.iter().copied());
        let attached = self.attached.iter().map(|attach| attach.address);
        let mut all: Vec<IpAddr> = host.chain(pools).chain(attached).chain(self.services.iter().copied()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Whose each address is. `port` finds a port's slot and spec by its uid. An address of a pool that is attached to a
    /// port is the port's.
    pub fn owners<'a>(&self, port: impl Fn(&Uuid) -> Option<(PortId, &'a PortSpec)>) -> HashMap<u128, Owned> {
        let mut owned = HashMap::new();
        for address in self.uplink.iter().flat_map(|uplink| &uplink.addresses) {
            owned.insert(mapped(address.addr()), Owned::Host);
        }
        for address in self.nat_pools.iter().flat_map(|pool| &pool.addresses) {
            owned.insert(mapped(*address), Owned::Nat);
        }
        for address in &self.services {
            owned.insert(mapped(*address), Owned::Service);
        }
        for attach in &self.attached {
            let Some((id, spec)) = port(&attach.port) else { continue };
            let private = match attach.address {
                IpAddr::V4(_) => spec.v4.first().map(|address| mapped((*address).into())),
                IpAddr::V6(_) => spec.v6.first().map(|address| mapped((*address).into())),
            };
            // Without an address of that family there is nobody to hand the packets to.
            if attach.one_to_one && private.is_none() {
                continue;
            }
            let inside = private.filter(|_| attach.one_to_one);
            owned.insert(mapped(attach.address), Owned::Attached { port: id, inside });
        }
        owned
    }

    /// Whom ICMP errors to the outside come from: the first address of the host in that family, else the first that NAT has, that is
    /// `ours` and not somebody else's. An attached one is the guest's voice.
    pub fn speaker(&self, ipv4: bool, owned: &HashMap<u128, Owned>, ours: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        let mut host = self.uplink.iter().flat_map(|uplink| &uplink.addresses).map(IpNet::addr);
        let nat = self.nat_pools.iter().flat_map(|pool| &pool.addresses).copied();
        let mut nat = nat.filter(|address| owned.get(&mapped(*address)) == Some(&Owned::Nat));
        let usable = |address: &IpAddr| address.is_ipv4() == ipv4 && ours(*address);
        host.find(usable).or_else(|| nat.find(usable))
    }

    /// Where a question about `target` comes from: an address of the host in the same subnet, else any of the host, else
    /// any that it owns. Only such that `usable` lets pass.
    pub fn source_for(&self, target: IpAddr, usable: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        let host = || self.uplink.iter().flat_map(|uplink| &uplink.addresses).filter(|net| usable(net.addr()));
        let near = host().find(|net| net.contains(&target)).map(IpNet::addr);
        let family = |address: &IpAddr| address.is_ipv4() == target.is_ipv4() && usable(*address);
        near.or_else(|| host().map(IpNet::addr).find(family)).or_else(|| self.addresses().into_iter().find(family))
    }
}

/// Public addresses of Services, with the names of these.
pub fn public_addresses(desired: &Desired) -> impl Iterator<Item = (&str, IpAddr)> {
    desired.services.iter().flat_map(|spec| {
        let public = spec.load_balancer.iter().filter(|given| given.public);
        public.map(|given| (spec.name.as_str(), given.address))
    })
}

/// Refuses addresses of Services that are somebody else's at the uplink.
///
/// # Errors
/// The first such address, with both owners.
pub fn refuse_shared(desired: &Desired) -> anyhow::Result<()> {
    let host = desired.uplink.iter().flat_map(|uplink| &uplink.addresses);
    let host = host.map(|net| (net.addr(), "the host itself".to_owned()));
    let pools = desired.nat_pools.iter().flat_map(|pool| {
        let name = format!("NatPool {}", pool.name);
        pool.addresses.iter().map(move |address| (*address, name.clone()))
    });
    let attached = desired.attached.iter().map(|attach| (attach.address, format!("Service {}", attach.service)));
    let owners: HashMap<IpAddr, String> = host.chain(pools).chain(attached).collect();
    for (name, address) in public_addresses(desired) {
        if let Some(owner) = owners.get(&address) {
            bail!("Service {name}: address {address} has another owner, {owner}");
        }
    }
    Ok(())
}

/// The ranges that are routed to the host, with their networks: of which packets leave as they are, wherever they go or for some destinations.
pub fn routed<'a>(networks: impl Iterator<Item = (NetworkId, &'a Network)>) -> Vec<(IpNet, NetworkId)> {
    let mut routed = Vec::new();
    for (id, network) in networks {
        let untranslated = |v4: bool| network.untranslated.iter().any(|range| range.addr().is_ipv4() == v4);
        let is_routed = |egress, v4| egress == Egress::Routed || egress == Egress::Nat && untranslated(v4);
        if let Some((range, _)) = network.v4.filter(|_| is_routed(network.egress_v4, true)) {
            routed.push((IpNet::V4(range), id));
        }
        if let Some((range, _)) = network.v6.filter(|_| is_routed(network.egress_v6, false)) {
            routed.push((IpNet::V6(range), id));
        }
    }
    routed.sort_unstable();
    routed
}

/// Refuses addresses that the host's own kernel holds: it would answer for them too, or keep their packets.
///
/// # Errors
/// The first such address, with what to do; or the kernel does not answer.
pub fn refuse_addresses_of_the_kernel(outside: &Outside) -> anyhow::Result<()> {
    if outside.uplink.is_none() {
        return Ok(());
    }
    refuse_held(outside, &interfaces::addresses()?)
}

fn refuse_held(outside: &Outside, held: &[Held]) -> anyhow::Result<()> {
    let Some(uplink) = &outside.uplink else { return Ok(()) };
    let addresses = outside.addresses();
    let is_ours = |one: &Held| {
        addresses.binary_search(&one.address).is_ok() || outside.public.iter().any(|net| net.contains(&one.address))
    };
    match held.iter().find(|one| is_ours(one)) {
        Some(found) => bail!("{}; {}", refusal(found), cure(found, held, uplink.driver)),
        None => Ok(()),
    }
}

/// Why an address that the kernel holds cannot be ours, in a sentence.
pub fn refusal(Held { address, interface, .. }: &Held) -> String {
    format!("address {address} cannot be hostweave's: the kernel of this host holds it on {interface}")
}

/// Whether both have the same addresses at the uplink, whoever has which.
pub fn same_addresses(a: &Desired, b: &Desired) -> bool {
    let pools = |desired: &'_ Desired| -> Vec<IpAddr> {
        desired.nat_pools.iter().flat_map(|pool| &pool.addresses).copied().collect()
    };
    let attached =
        |desired: &'_ Desired| -> Vec<IpAddr> { desired.attached.iter().map(|attach| attach.address).collect() };
    (&a.uplink, &a.public) == (&b.uplink, &b.public)
        && (pools(a), attached(a)) == (pools(b), attached(b))
        && (Arc::ptr_eq(&a.services, &b.services) || public_addresses(a).eq(public_addresses(b)))
}

/// What to do about an address of ours that the kernel holds, too. An interface without any address of that family would be of no
/// use to the host, and whoever is logged in by it would be cut off. The first IPv4 address of a subnet takes the others with it
/// (`net.ipv4.conf.*.promote_secondaries` is 0 by default).
pub fn cure(found: &Held, held: &[Held], driver: UplinkDriver) -> String {
    let Held { address, prefix, interface, secondary } = found;
    let subnet = IpNet::new(*address, *prefix).map(|net| net.trunc()).ok();
    let goes_with_it = |other: &Held| {
        !secondary && other.secondary && subnet == IpNet::new(other.address, other.prefix).map(|net| net.trunc()).ok()
    };
    let link_local = |address: &IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let another = |other: &&Held| {
        other.interface == *interface
            && other.address != *address
            && other.address.is_ipv4() == address.is_ipv4()
            && !link_local(&other.address)
            && !goes_with_it(other)
    };
    if held.iter().any(|other| another(&other)) {
        return format!(
            "take it away there (`ip address del {address}/{prefix} dev {interface}`), or give hostweave another one"
        );
    }
    let driver = if driver == UplinkDriver::Tap { "" } else { "use `driver: tap`, and " };
    let (family, private) = if address.is_ipv4() { ("IPv4", "RFC 1918") } else { ("IPv6", "RFC 4193") };
    format!(
        "it is the only {family} address there: {driver}give hostweave private ones ({private}), which the kernel translates to its own; \
         `hostweave doctor` prints the commands"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fabric::spec::BackendSpec;

    fn outside() -> Outside {
        Outside {
            uplink: Some(UplinkSpec {
                interface: "eth1".to_owned(),
                addresses: ["203.0.113.2/24", "192.0.2.2/24", "2001:db8::2/64"]
                    .map(|net| net.parse().unwrap())
                    .to_vec(),
                ..UplinkSpec::default()
            }),
            nat_pools: vec![NatPoolSpec {
                name: "pool".to_owned(),
                addresses: ["203.0.113.7", "203.0.113.8"].map(|address| address.parse().unwrap()).to_vec(),
                draining: Vec::new(),
                ports: Vec::new(),
                hosts: Default::default(),
                block_size: 64,
                blocks: 1..=1,
                filtering: Default::default(),
                overload: false,
                limits: Default::default(),
            }],
            attached: vec![AttachSpec {
                address: "203.0.113.8".parse().unwrap(),
                port: Uuid::from_u128(5),
                service: "a/b".to_owned(),
                one_to_one: true,
            }],
            public: ["198.51.100.0/26", "2001:db8:aa::/48"].map(|net| net.parse().unwrap()).to_vec(),
            services: vec!["203.0.113.9".parse().unwrap()],
        }
    }

    fn port() -> PortSpec {
        PortSpec {
            uid: Uuid::from_u128(5),
            v4: vec!["10.0.0.9".parse().unwrap()],
            backend: BackendSpec::Tap { name: "t".to_owned(), netns: None },
            ..PortSpec::bare("a", "web")
        }
    }

    fn key(address: &str) -> u128 {
        mapped(address.parse().unwrap())
    }

    #[test]
    fn every_address_has_one_owner() {
        let (mut outside, spec) = (outside(), port());
        let find = |uid: &Uuid| (*uid == spec.uid).then_some((PortId(3), &spec));
        let owned = outside.owners(find);
        assert_eq!(owned.len(), 6);
        assert_eq!(owned[&key("203.0.113.9")], Owned::Service);
        assert_eq!(owned[&key("2001:db8::2")], Owned::Host);
        assert_eq!(owned[&key("203.0.113.7")], Owned::Nat);
        let attached = Owned::Attached { port: PortId(3), inside: Some(key("10.0.0.9")) };
        assert_eq!(owned[&key("203.0.113.8")], attached, "of a pool, and attached");
        outside.attached[0].one_to_one = false;
        assert_eq!(outside.owners(find)[&key("203.0.113.8")], Owned::Attached { port: PortId(3), inside: None });
        outside.attached[0].address = "2001:db8::9".parse().unwrap();
        outside.attached[0].one_to_one = true;
        assert_eq!(outside.owners(find).get(&key("2001:db8::9")), None, "the port has no address of that family");
        assert_eq!(unmapped(key("203.0.113.8")), "203.0.113.8".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn an_address_of_a_service_is_nobody_elses() {
        use crate::fabric::spec::{LoadBalancerAddress, ServiceSpec};
        let outside = outside();
        let desired = |address: &str| {
            let address = LoadBalancerAddress { address: address.parse().unwrap(), public: true };
            let service = ServiceSpec {
                load_balancer: vec![address, LoadBalancerAddress { public: false, ..address }],
                ..ServiceSpec::bare("shop/web")
            };
            let Outside { uplink, nat_pools, public, attached, .. } = outside.clone();
            let services = vec![service.into()].into();
            Desired { uplink, nat_pools, public, attached, services, ..Desired::default() }
        };
        refuse_shared(&desired("203.0.113.9")).unwrap();
        assert!(outside.is_of(&desired("203.0.113.9")) && outside.has_services_of(&desired("203.0.113.9")));
        assert!(!outside.has_services_of(&desired("203.0.113.11")));
        for (address, owner) in
            [("203.0.113.2", "the host itself"), ("203.0.113.7", "NatPool pool"), ("203.0.113.8", "Service a/b")]
        {
            let error = refuse_shared(&desired(address)).unwrap_err().to_string();
            assert_eq!(error, format!("Service shop/web: address {address} has another owner, {owner}"));
        }
    }

    #[test]
    fn questions_come_from_the_nearest_address() {
        let mut outside = outside();
        let from = |outside: &Outside, target: &str| {
            outside.source_for(target.parse().unwrap(), |address| address != "192.0.2.3".parse::<IpAddr>().unwrap())
        };
        let address = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        assert_eq!(from(&outside, "192.0.2.1"), address("192.0.2.2"));
        assert_eq!(from(&outside, "198.51.100.1"), address("203.0.113.2"));
        assert_eq!(from(&outside, "fe80::1"), address("2001:db8::2"));
        outside.uplink.as_mut().unwrap().addresses.clear();
        assert_eq!(from(&outside, "192.0.2.1"), address("203.0.113.7"));
        assert_eq!(from(&outside, "fe80::1"), None);
    }

    #[test]
    fn errors_come_from_an_address_that_nobody_else_has() {
        let (mut outside, spec) = (outside(), port());
        outside.nat_pools[0].addresses = ["203.0.113.8", "2001:db8::8", "203.0.113.7", "2001:db8::7", "2001:db8::6"]
            .map(|address| address.parse().unwrap())
            .to_vec();
        let owned = |outside: &Outside| outside.owners(|uid| (*uid == spec.uid).then_some((PortId(3), &spec)));
        let from = |outside: &Outside, ipv4, taken: &[&str]| {
            let ours = |address: IpAddr| !taken.contains(&address.to_string().as_str());
            outside.speaker(ipv4, &owned(outside), ours).map(|address| address.to_string())
        };
        let is = |address: &str| Some(address.to_owned());
        assert_eq!(from(&outside, true, &[]), is("203.0.113.2"));
        assert_eq!(from(&outside, true, &["203.0.113.2"]), is("192.0.2.2"));
        // The first of the pool is attached.
        assert_eq!(from(&outside, true, &["203.0.113.2", "192.0.2.2"]), is("203.0.113.7"));
        assert_eq!(from(&outside, true, &["203.0.113.2", "192.0.2.2", "203.0.113.7"]), None);
        assert_eq!(from(&outside, false, &[]), is("2001:db8::2"));
        outside.attached[0] =
            AttachSpec { address: "2001:db8::8".parse().unwrap(), one_to_one: false, ..outside.attached[0].clone() };
        assert_eq!(from(&outside, false, &["2001:db8::2"]), is("2001:db8::7"));
        assert_eq!(from(&outside, false, &["2001:db8::2", "2001:db8::7"]), is("2001:db8::6"));
        // Behind a router that is known by its link-local address, none of the host's own is needed.
        outside.uplink.as_mut().unwrap().addresses.clear();
        assert_eq!((from(&outside, true, &[]), from(&outside, false, &[])), (is("203.0.113.8"), is("2001:db8::7")));
        outside.nat_pools.clear();
        assert_eq!((from(&outside, true, &[]), from(&outside, false, &[])), (None, None));
    }

    fn held(address: &str, interface: &str) -> Held {
        Held { address: address.parse().unwrap(), prefix: 24, interface: interface.to_owned(), secondary: false }
    }

    /// The last two are nobody's yet.
    const OURS: [&str; 7] =
        ["203.0.113.9", "203.0.113.2", "203.0.113.7", "203.0.113.8", "2001:db8::2", "198.51.100.63", "2001:db8:aa:1::"];

    #[test]
    fn an_address_of_the_kernel_is_refused_with_the_cure() {
        let mut outside = outside();
        let others = [held("203.0.113.10", "eth0"), held("2001:db8::10", "eth0"), held("127.0.0.1", "lo")];
        assert!(refuse_held(&outside, &others).is_ok());
        // In whatever VLAN: the kernel takes packets for its addresses by any interface, and sends from them by any.
        for vlan in [None, Some(7)] {
            outside.uplink.as_mut().unwrap().vlan = vlan;
            for (address, interface) in OURS.iter().flat_map(|address| [(address, "eth0"), (address, "eth1.8")]) {
                let kernels: Vec<Held> =
                    others.iter().map(|other| Held { interface: interface.to_owned(), ..*other }).collect();
                let error = refuse_held(&outside, &[&kernels[..], &[held(address, interface)]].concat());
                let error = error.unwrap_err().to_string();
                assert!(error.contains(&format!("`ip address del {address}/24 dev {interface}`")), "{error}");
            }
        }
    }

    #[test]
    fn what_services_may_yet_be_given_is_hidden_as_ranges_and_answered_for_by_nobody() {
        let (outside, spec) = (outside(), port());
        let owned = outside.owners(|uid| (*uid == spec.uid).then_some((PortId(3), &spec)));
        let routed = [("2001:db8:64::/64".parse().unwrap(), NetworkId(1))];
        let hidden = outside.hidden(&owned, &routed);
        assert_eq!(hidden.len(), owned.len() + routed.len() + outside.public.len());
        for public in &outside.public {
            assert!(hidden.contains(public) && !owned.keys().any(|address| public.contains(&unmapped(*address))));
        }
        let mut desired =
            Desired { uplink: outside.uplink.clone(), nat_pools: outside.nat_pools.clone(), ..Desired::default() };
        (desired.public, desired.attached) = (outside.public.clone(), outside.attached.clone());
        assert!(outside.is_of(&desired) && outside.has_places_of(&desired));
        for at in [0, 1] {
            let mut other = desired.clone();
            other.public.remove(at);
            assert!(!outside.is_of(&other) && !outside.has_places_of(&other) && !same_addresses(&desired, &other));
        }
    }

    #[test]
    fn nobody_is_told_to_take_away_the_only_address_of_an_interface() {
        let mut outside = outside();
        for address in OURS {
            // Of the other family, of another interface, or of the link alone.
            let family = if address.contains(':') { "203.0.113.10" } else { "2001:db8::10" };
            let held =
                [held(address, "eth0"), held(family, "eth0"), held("203.0.113.11", "eth1"), held("fe80::1", "eth0")];
            for driver in [UplinkDriver::AfPacket, UplinkDriver::AfXdp, UplinkDriver::Tap] {
                outside.uplink.as_mut().unwrap().driver = driver;
                let error = refuse_held(&outside, &held).unwrap_err().to_string();
                assert!(!error.contains("ip address del") && error.contains("`hostweave doctor`"), "{error}");
                assert_eq!(error.contains("use `driver: tap`"), driver != UplinkDriver::Tap, "{error}");
            }
        }
        // What goes with it does not stay; what it goes with does.
        for (ours_is_first, alone) in [(true, true), (false, false)] {
            let mut held = [held("203.0.113.7", "eth0"), held("203.0.113.10", "eth0")];
            held[usize::from(ours_is_first)].secondary = true;
            let error = refuse_held(&outside, &held).unwrap_err().to_string();
            assert_eq!(!error.contains("ip address del"), alone, "{error}");
        }
    }
}
