//! What the kernel has to be told for `driver: tap`, as commands, and whether it does it: it routes between its own interfaces and the
//! TAP device, answers for addresses that lie in a subnet of its own interfaces (proxy ARP and proxy ND), and translates private ones.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::path::Path;

use hostweave_switch::tables::{Egress, Owned};
use hostweave_uplink::netlink::interfaces::{self, Held};
use hostweave_uplink::netlink::routing;
use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

use super::Finding;
use crate::config::checked::PoolType;
use crate::config::outside::{address_pools, nat_pools};
use crate::config::ranges::Range;
use crate::config::{ObjectSet, outside};
use crate::fabric::spec::UplinkSpec;
use crate::fabric::uplink::UplinkStatus;

/// The table of nf_tables, of the family `inet`, that translates private addresses.
const TABLE: &str = "hostweave";

/// Addresses of a range that the kernel is to answer for before anybody has them.
const PROXIED_MAX: u128 = 256;

/// Whether the kernel routes to and from the TAP device, with the commands.
pub fn examine(set: &ObjectSet, status: &UplinkStatus) -> Finding {
    let held = interfaces::addresses().unwrap_or_default();
    let owned: Vec<IpAddr> =
        status.owned.iter().filter(|(_, owner)| *owner != Owned::Host).map(|(address, _)| *address).collect();
    let plan = Plan::new(set, &status.spec, &owned, &held, routing::has_table(TABLE).ok());
    let commands = plan.commands().join("\n");
    let missing = plan.missing(&held);
    if !missing.is_empty() {
        return Finding::error("tap", format!("the kernel is not set up to route: {}", missing.join("; ")), commands);
    }
    match plan.mistranslated() {
        Some(message) => Finding::warning("tap", message, commands),
        None => Finding::note("tap", "the kernel routes to and from the TAP device", commands),
    }
}

/// What the kernel is to do.
struct Plan<'a> {
    uplink: &'a UplinkSpec,
    /// Prefixes that come to the device.
    routed: Vec<IpNet>,
    /// Those of them that nobody outside answers, apart from ranges that only some destinations see.
    masqueraded: Vec<IpNet>,
    /// Whether there is the table of rules; `None`: the kernel does not say.
    translates: Option<bool>,
    /// Addresses in subnets of other interfaces, by interface and family (IPv4 or not).
    proxied: BTreeMap<(String, bool), Vec<IpAddr>>,
    /// Interfaces whose router advertisements the kernel would not heed any more once it forwards.
    advertised: Vec<String>,
}

impl<'a> Plan<'a> {
    fn new(set: &ObjectSet, uplink: &'a UplinkSpec, owned: &[IpAddr], held: &[Held], translates: Option<bool>) -> Self {
        let ranges = ranges(set);
        let mut routed: Vec<IpNet> = ranges.iter().flat_map(subnets).collect();
        let mut exempt = Vec::new();
        for (name, network) in set.networks() {
            for ipv4 in [true, false] {
                let range = outside::routed_range(set, name, network, ipv4);
                let routed_all = outside::egress_of(set, name, network, ipv4) == Egress::Routed;
                if routed_all { &mut routed } else { &mut exempt }.extend(range);
            }
        }
        let masqueraded = routed.iter().copied().filter(|net| is_private(*net)).collect();
        // Whom they reach untranslated is not to see another address after all.
        routed.append(&mut exempt);
        let early = ranges.iter().filter(|range| range.count() <= PROXIED_MAX).flat_map(Range::addresses);
        let mut proxied: BTreeMap<_, Vec<IpAddr>> = BTreeMap::new();
        for address in early.chain(owned.iter().copied()) {
            let device = held.iter().find(|held| held.interface != uplink.interface && is_in_subnet(held, address));
            let addresses = device.map(|held| proxied.entry((held.interface.clone(), address.is_ipv4())).or_default());
            addresses.into_iter().for_each(|addresses| addresses.push(address));
        }
        for addresses in proxied.values_mut() {
            addresses.sort_unstable();
            addresses.dedup();
        }
        let mut plan = Self { uplink, routed, masqueraded, translates, proxied, advertised: Vec::new() };
        // Where it forwards already, this is decided.
        if plan.has(false) && setting("net/ipv6/conf/all/forwarding") == "0" {
            let global =
                |address: IpAddr| matches!(address, IpAddr::V6(v6) if !v6.is_loopback() && !v6.is_unicast_link_local());
            let mut devices: Vec<&str> =
                held.iter().filter(|held| global(held.address)).map(|held| held.interface.as_str()).collect();
            devices.sort_unstable();
            devices.dedup();
            let heeds = |device: &&str| {
                *device != uplink.interface && setting(&format!("net/ipv6/conf/{device}/accept_ra")) == "1"
            };
            plan.advertised = devices.into_iter().filter(heeds).map(str::to_owned).collect();
        }
        plan
    }

    /// Whether the uplink has addresses of this family.
    fn has(&self, ipv4: bool) -> bool {
        self.uplink.addresses.iter().any(|net| net.addr().is_ipv4() == ipv4)
    }

    /// The gateways, which are the kernel's own addresses at the device.
    fn gateways(&self) -> impl Iterator<Item = IpAddr> {
        let link_local = |address: &IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        self.uplink.gateways.iter().copied().filter(move |gateway| !link_local(gateway))
    }

    /// What needs a route. What is in the device's own subnet is a neighbour already.
    fn routes(&self) -> impl Iterator<Item = IpNet> {
        self.routed.iter().copied().filter(|net| !self.uplink.addresses.iter().any(|subnet| subnet.contains(net)))
    }

    /// The commands, in order. They may be given again, and then change nothing.
    fn commands(&self) -> Vec<String> {
        let device = &self.uplink.interface;
        let mut commands = vec![format!("ip link set {device} up")];
        for gateway in self.gateways() {
            let length = self.uplink.addresses.iter().find(|net| net.contains(&gateway)).map_or(32, IpNet::prefix_len);
            // Nobody else is there whom duplicate address detection could find.
            let more = if gateway.is_ipv6() { " nodad" } else { "" };
            commands.push(format!("ip address replace {gateway}/{length} dev {device}{more}"));
        }
        for net in self.routes() {
            let own = self.uplink.addresses.iter().map(IpNet::addr).find(|own| own.is_ipv4() == net.addr().is_ipv4());
            let via = own.map(|own| format!(" via {own}")).unwrap_or_default();
            commands.push(format!("ip {} route replace {net}{via} dev {device}", flag(net.addr().is_ipv4())));
        }
        commands.extend(self.advertised.iter().map(|device| format!("sysctl -w net/ipv6/conf/{device}/accept_ra=2")));
        for (ipv4, setting) in FORWARDING {
            if self.has(ipv4) {
                commands.push(format!("sysctl -w {setting}=1"));
            }
        }
        for ((device, ipv4), addresses) in &self.proxied {
            let list: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
            if !ipv4 {
                commands.push(format!("sysctl -w net/ipv6/conf/{device}/proxy_ndp=1"));
            }
            let list = list.join(" ");
            commands.push(format!("for a in {list}; do ip {} neigh replace proxy $a dev {device}; done", flag(*ipv4)));
        }
        commands.extend(self.masquerade());
        commands
    }

    /// One table of rules for all that is private, which takes the place of the one before; none where nothing is.
    fn masquerade(&self) -> Option<String> {
        let device = &self.uplink.interface;
        let rule = |net: &IpNet| {
            let family = if net.addr().is_ipv4() { "ip" } else { "ip6" };
            format!("{family} saddr {net} oifname != \"{device}\" masquerade;")
        };
        let rules: Vec<String> = self.masqueraded.iter().map(rule).collect();
        let emptied = format!("add table inet {TABLE}; delete table inet {TABLE}");
        if rules.is_empty() {
            return (self.translates == Some(true)).then(|| format!("nft '{emptied}'"));
        }
        let (chain, rules) = (self.chain(), rules.join(" "));
        Some(format!(
            "nft '{emptied}; table inet {TABLE} {{ chain {chain} {{ type nat hook postrouting priority srcnat; {rules} }}; }}'"
        ))
    }

    /// Name of the chain of its rules: another one for other ranges, so that rules can be told that are no longer right.
    fn chain(&self) -> String {
        let mut hasher = DefaultHasher::new();
        (&self.uplink.interface, &self.masqueraded).hash(&mut hasher);
        format!("out_{:08x}", hasher.finish() as u32)
    }

    /// What of the rules is wrong. A kernel that does not answer has no fault that could be named.
    fn mistranslated(&self) -> Option<String> {
        let nets: Vec<String> = self.masqueraded.iter().map(IpNet::to_string).collect();
        match self.translates? {
            true if nets.is_empty() => {
                Some(format!("table inet {TABLE} still translates what is to leave as it is: nothing private is left"))
            }
            true if matches!(routing::has_chain(TABLE, &self.chain()), Ok(false)) => {
                Some(format!("the rules of table inet {TABLE} are for other ranges than {}", nets.join(", ")))
            }
            // Rules of other tables may do it as well.
            false if !nets.is_empty() => Some(format!(
                "the private {} leave as they are, unless rules of your own translate them: there is no table inet {TABLE}",
                nets.join(", ")
            )),
            _ => None,
        }
    }

    /// What the kernel does not do, of all but the rules.
    fn missing(&self, held: &[Held]) -> Vec<String> {
        let device = &self.uplink.interface;
        let mut missing = Vec::new();
        for (ipv4, name) in FORWARDING {
            if self.has(ipv4) && setting(name) == "0" {
                missing.push(format!("{}=0: it forwards nothing", name.replace('/', ".")));
            }
        }
        for gateway in self.gateways() {
            if !held.iter().any(|held| held.address == gateway && held.interface == *device) {
                missing.push(format!("it does not have the gateway's address {gateway} on {device}"));
            }
        }
        let index = interfaces::interface(device).ok().flatten().map(|there| there.index);
        for net in self.routes() {
            // A kernel that does not answer has no fault that could be named.
            if routing::leads_to(net.addr()).is_ok_and(|found| found.is_none() || found != index) {
                missing.push(format!("it has no route to {net} by {device}"));
            }
        }
        for ((device, ipv4), addresses) in &self.proxied {
            missing.extend(unanswered(device, *ipv4, addresses));
        }
        missing
    }
}

/// Which of the addresses in an interface's subnet the kernel does not answer for there.
fn unanswered(device: &str, ipv4: bool, addresses: &[IpAddr]) -> Option<String> {
    let on = |name: &str| {
        let family = if ipv4 { "ipv4" } else { "ipv6" };
        ["all", device].iter().any(|place| setting(&format!("net/{family}/conf/{place}/{name}")) == "1")
    };
    if ipv4 && on("proxy_arp") {
        return None;
    }
    if !ipv4 && !on("proxy_ndp") {
        return Some(format!("net.ipv6.conf.{device}.proxy_ndp=0: it answers there for no other's address"));
    }
    let index = interfaces::interface(device).ok().flatten()?.index;
    let proxies = routing::proxies(ipv4).ok()?;
    let mut lacking = addresses.iter().filter(|address| !proxies.contains(&(**address, index)));
    let first = lacking.next()?;
    let more = lacking.count();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Some(format!("it does not answer for {first}{more} on {device}, in whose subnet that is"))
}

/// Settings by which the kernel forwards, IPv4 first.
const FORWARDING: [(bool, &str); 2] = [(true, "net/ipv4/ip_forward"), (false, "net/ipv6/conf/all/forwarding")];

/// A setting of the kernel; empty where it has none.
fn setting(name: &str) -> String {
    std::fs::read_to_string(Path::new("/proc/sys").join(name)).unwrap_or_default().trim().to_owned()
}

fn flag(ipv4: bool) -> &'static str {
    if ipv4 { "-4" } else { "-6" }
}

/// Pools whose addresses have to come to the device.
fn ranges(set: &ObjectSet) -> Vec<Range> {
    let pools = nat_pools(set).flat_map(|(_, pool)| &pool.ranges);
    let public = address_pools(set).filter(|(_, pool)| pool.pool_type == PoolType::Public);
    pools.chain(public.flat_map(|(_, pool)| &pool.ranges)).copied().collect()
}

/// A range as prefixes.
fn subnets(range: &Range) -> Vec<IpNet> {
    match (range.first(), range.last()) {
        (IpAddr::V4(first), IpAddr::V4(last)) => Ipv4Subnets::new(first, last, 0).map(IpNet::V4).collect(),
        (IpAddr::V6(first), IpAddr::V6(last)) => Ipv6Subnets::new(first, last, 0).map(IpNet::V6).collect(),
        _ => Vec::new(),
    }
}

/// Whether whoever is at that interface asks for the link address of this one, and not for that of a router.
fn is_in_subnet(held: &Held, address: IpAddr) -> bool {
    let host = if held.address.is_ipv4() { 32 } else { 128 };
    held.prefix < host && IpNet::new(held.address, held.prefix).is_ok_and(|net| net.contains(&address))
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
    fn prefixes_are_routed_answered_for_in_subnets_and_private_ones_are_masqueraded() {
        let text = "\
{apiVersion: hostweave.dev/v1alpha1, kind: HostConfig, metadata: {name: h}, spec: {uplink: {interface: hw0, driver: tap, \
 addresses: [192.168.77.2/30, \"2001:db8:9::2/64\"], gateways: [192.168.77.1, \"2001:db8:9::1\", \"fe80::1\"]}}}
---
{apiVersion: hostweave.dev/v1alpha1, kind: NatPool, metadata: {name: n}, spec: {addresses: [172.20.0.0-172.20.0.4, \"fd00:20::4\"]}}
---
{apiVersion: hostweave.dev/v1alpha1, kind: AddressPool, metadata: {name: a}, spec: {type: public, addresses: [203.0.113.0/29, \
 \"2001:db8:f::8/126\", \"2001:db8:f:1::/64\"]}}
---
{apiVersion: hostweave.dev/v1alpha1, kind: AddressPool, metadata: {name: b}, spec: {type: private, addresses: [10.96.0.0/20]}}
---
{apiVersion: hostweave.dev/v1alpha1, kind: Network, metadata: {name: r}, \
 spec: {cidrs: [10.1.0.0/24, \"2001:db8:1::/64\"], egress: {ipv6: routed}}}
---
{apiVersion: hostweave.dev/v1alpha1, kind: Network, metadata: {name: u}, \
 spec: {cidrs: [10.2.0.0/24, \"fd00:2::/64\"], egress: {untranslated: [172.31.0.0/16, \"fd00:31::/64\"]}}}
---
{apiVersion: hostweave.dev/v1alpha1, kind: Network, metadata: {name: w}, \
 spec: {cidrs: [10.3.0.0/24, \"fd00:3::/64\"], egress: {untranslated: [\"fd00:31::/64\"]}}}
";
        let source = Source { name: "t".to_owned(), text: text.to_owned() };
        let objects = load_sources(vec![source]).unwrap().objects.into_iter().map(Arc::new);
        let (set, _) = check_set(objects, Path::new("/run")).unwrap();
        let uplink = set.host().uplink.clone().unwrap();
        let held = |address: &str, prefix, interface: &str| Held {
            address: address.parse().unwrap(),
            prefix,
            interface: interface.to_owned(),
            secondary: false,
        };
        let held = [
            held("192.168.77.1", 30, "hw0"),
            held("203.0.113.6", 32, "lo"),
            held("203.0.113.4", 30, "eth0"),
            held("2001:db8:f::1", 62, "eth0.7"),
        ];
        // Of a range that is too large those that somebody has.
        let owned = ["172.20.0.4", "2001:db8:f:1::5"].map(|address| address.parse().unwrap());
        let expected = [
            "ip link set hw0 up",
            "ip address replace 192.168.77.1/30 dev hw0",
            "ip address replace 2001:db8:9::1/64 dev hw0 nodad",
            "ip -4 route replace 172.20.0.0/30 via 192.168.77.2 dev hw0",
            "ip -4 route replace 172.20.0.4/32 via 192.168.77.2 dev hw0",
            "ip -6 route replace fd00:20::4/128 via 2001:db8:9::2 dev hw0",
            "ip -4 route replace 203.0.113.0/29 via 192.168.77.2 dev hw0",
            "ip -6 route replace 2001:db8:f::8/126 via 2001:db8:9::2 dev hw0",
            "ip -6 route replace 2001:db8:f:1::/64 via 2001:db8:9::2 dev hw0",
            "ip -6 route replace 2001:db8:1::/64 via 2001:db8:9::2 dev hw0",
            "ip -4 route replace 10.2.0.0/24 via 192.168.77.2 dev hw0",
            "ip -6 route replace fd00:2::/64 via 2001:db8:9::2 dev hw0",
            "ip -6 route replace fd00:3::/64 via 2001:db8:9::2 dev hw0",
            "sysctl -w net/ipv4/ip_forward=1",
            "sysctl -w net/ipv6/conf/all/forwarding=1",
            "for a in 203.0.113.4 203.0.113.5 203.0.113.6 203.0.113.7; do ip -4 neigh replace proxy $a dev eth0; done",
            "sysctl -w net/ipv6/conf/eth0.7/proxy_ndp=1",
            "for a in 2001:db8:f::8 2001:db8:f::9 2001:db8:f::a 2001:db8:f::b 2001:db8:f:1::5; \
             do ip -6 neigh replace proxy $a dev eth0.7; done",
            "nft 'add table inet hostweave; delete table inet hostweave; table inet hostweave { chain out { type nat hook \
             postrouting priority srcnat; ip saddr 172.20.0.0/30 oifname != \"hw0\" masquerade; \
             ip saddr 172.20.0.4/32 oifname != \"hw0\" masquerade; ip6 saddr fd00:20::4/128 oifname != \"hw0\" masquerade; }; }'",
        ];
        let plan = Plan::new(&set, &uplink, &owned, &held, None);
        let named = plan.commands().into_iter().map(|command| command.replace(&plan.chain(), "out"));
        assert_eq!(named.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn rules_are_told_from_those_for_other_ranges_and_go_with_the_last_one() {
        let uplink = UplinkSpec { interface: "hw0".to_owned(), ..UplinkSpec::default() };
        let plan = |private: &[&str], translates| Plan {
            uplink: &uplink,
            routed: Vec::new(),
            masqueraded: private.iter().map(|net| net.parse().unwrap()).collect(),
            translates,
            proxied: BTreeMap::new(),
            advertised: Vec::new(),
        };
        assert_ne!(plan(&["10.1.0.0/24"], None).chain(), plan(&["10.1.0.0/24", "fd00:1::/64"], None).chain());
        let left = "nft 'add table inet hostweave; delete table inet hostweave'";
        assert_eq!(plan(&[], Some(true)).masquerade().as_deref(), Some(left));
        assert_eq!([None, Some(false)].map(|there| plan(&[], there).masquerade()), [None, None]);
    }
}
