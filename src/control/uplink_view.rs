//! What `status` says about the uplink: one line, and what is wrong with it.

use serde_json::{Value, json};

use super::controller::Snapshot;
use crate::config::outside::egress_of;
use crate::fabric::uplink::UplinkStatus;

/// Addresses that one sentence names.
const NAMED_MAX: usize = 5;

/// The uplink in short.
pub fn summary(status: &UplinkStatus) -> Value {
    let up = status.gateways.iter().filter(|hop| hop.mac.is_some()).count();
    json!({
        "interface": status.spec.interface,
        "link": status.link,
        "reason": status.reason,
        "gateways": {"up": up, "total": status.gateways.len()},
        "lost": status.lost.iter().map(|(address, _)| address).collect::<Vec<_>>(),
    })
}

/// Whether packets of a family leave by the uplink: of a network whose egress says so, or from an address that the host owns there for others.
pub fn leaves(snapshot: &Snapshot, status: &UplinkStatus, ipv4: bool) -> bool {
    let own = |address| status.spec.addresses.iter().any(|net| net.addr() == address);
    let mut networks = snapshot.set.networks();
    networks.any(|(name, network)| egress_of(&snapshot.set, name, network, ipv4).leaves())
        || status.owned.iter().any(|(address, _)| address.is_ipv4() == ipv4 && !own(*address))
}

/// What is wrong with it, a sentence each. `leaves`: whether packets of a family leave (IPv4 if `true`). That a family has no routers at all is
/// no fault: neighbours are reached without.
pub fn degraded(status: &UplinkStatus, leaves: impl Fn(bool) -> bool) -> Vec<String> {
    let name = &status.spec.interface;
    let mut degraded = Vec::new();
    if !status.link {
        let reason = status.reason.as_deref().unwrap_or("it is down");
        degraded.push(format!("uplink: nothing passes {name}: {reason}"));
    }
    for ipv4 in [true, false] {
        let hops: Vec<_> = status.gateways.iter().filter(|hop| hop.address.is_ipv4() == ipv4).collect();
        // Without a link nobody can answer.
        if status.link && !hops.is_empty() && hops.iter().all(|hop| hop.mac.is_none()) && leaves(ipv4) {
            let family = if ipv4 { "IPv4" } else { "IPv6" };
            let routers = named(hops.iter().map(|hop| hop.address.to_string()).collect());
            degraded.push(format!("uplink: no {family} router answers at {name} ({routers})"));
        }
    }
    if !status.lost.is_empty() {
        let lost = named(status.lost.iter().map(|(address, mac)| format!("{address}: {mac}")).collect());
        degraded.push(format!("uplink: somebody else has addresses of this host, which are not used ({lost})"));
    }
    degraded
}

fn named(all: Vec<String>) -> String {
    let names = all.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
    let more = all.len().saturating_sub(NAMED_MAX);
    if more > 0 { format!("{names} and {more} more") } else { names }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use hostweave_switch::MacAddr;
    use hostweave_switch::tables::NextHop;

    use super::*;
    use crate::fabric::spec::UplinkSpec;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    /// An uplink in good order, with a router of each family.
    fn good() -> UplinkStatus {
        let hop = |address: &str| NextHop { address: address.parse().unwrap(), mac: Some(MAC) };
        UplinkStatus {
            spec: UplinkSpec { interface: "eth1".to_owned(), ..UplinkSpec::default() },
            link: true,
            mtu: 1500,
            gateways: vec![hop("198.51.100.1"), hop("2001:db8:9::1"), hop("198.51.100.3"), hop("2001:db8:9::3")],
            ..UplinkStatus::default()
        }
    }

    fn silent(status: &mut UplinkStatus, ipv4: bool, count: usize) {
        let hops = status.gateways.iter_mut().filter(|hop| hop.address.is_ipv4() == ipv4);
        hops.take(count).for_each(|hop| hop.mac = None);
    }

    #[test]
    fn routers_that_are_all_silent_degrade_the_host_where_packets_of_their_family_leave() {
        for (ipv4, family) in [(true, "IPv4"), (false, "IPv6")] {
            let mut status = good();
            assert!(degraded(&status, |_| true).is_empty());
            silent(&mut status, ipv4, 1);
            assert!(degraded(&status, |_| true).is_empty(), "one of two is enough");
            assert_eq!(summary(&status)["gateways"], json!({"up": 3, "total": 4}));
            silent(&mut status, ipv4, 2);
            let found = degraded(&status, |_| true);
            assert!(found.len() == 1 && found[0].contains(&format!("no {family} router answers at eth1")), "{found:?}");
            assert!(degraded(&status, |leaves| leaves != ipv4).is_empty(), "nothing of that family leaves");
            status.gateways.retain(|hop| hop.address.is_ipv4() != ipv4);
            assert!(degraded(&status, |_| true).is_empty(), "neighbours only");
        }
    }

    #[test]
    fn a_link_that_is_down_is_one_fault_and_not_one_for_each_router() {
        let mut status =
            UplinkStatus { link: false, reason: Some("the interface has no carrier".to_owned()), ..good() };
        silent(&mut status, true, 2);
        silent(&mut status, false, 2);
        assert_eq!(degraded(&status, |_| true), ["uplink: nothing passes eth1: the interface has no carrier"]);
        assert_eq!(summary(&status)["reason"], "the interface has no carrier");
    }

    #[test]
    fn addresses_that_somebody_else_has_are_named_up_to_five() {
        let addresses: Vec<IpAddr> = (1..=7_u8)
            .map(|last| {
                if last % 2 == 0 {
                    [203, 0, 113, last].into()
                } else {
                    [0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into()].into()
                }
            })
            .collect();
        let status = UplinkStatus { lost: addresses.iter().map(|address| (*address, MAC)).collect(), ..good() };
        let found = degraded(&status, |_| true);
        assert!(found.len() == 1 && found[0].contains("203.0.113.2: 02:00:00:00:00:01"), "{found:?}");
        assert!(found[0].contains("2001:db8::1") && found[0].contains("and 2 more"), "{found:?}");
        assert_eq!(summary(&status)["lost"].as_array().unwrap().len(), 7);
    }
}
