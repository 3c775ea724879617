//! Whether pools have room: NAT pools L4 ports, AddressPools addresses; each family for itself.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use hostweave_nat::{AddressStats, unmapped};

use super::super::controller::{Controller, Snapshot};
use super::Finding;
use crate::config::ObjectKey;
use crate::config::checked::{AddressPool, NatPool};
use crate::config::outside::{address_pools, nat_pools};
use crate::observe::events::{EventLog, EventType, Filter};
use crate::observe::time::rfc3339;

/// From which part on a pool is nearly empty.
const NEARLY_EMPTY: f64 = 0.85;

/// An AddressPool with fewer addresses is meant to be used up.
const SMALL: u128 = 8;

/// How long a refusal is news.
const RECENT: Duration = Duration::from_secs(600);

/// Looks at every pool.
pub fn examine(controller: &Controller, snapshot: &Snapshot) -> Vec<Finding> {
    let report = controller.parts.fabric.nat_report();
    let mut findings = Vec::new();
    let (mut any, mut used) = (false, HashSet::new());
    for (object, pool) in nat_pools(&snapshot.set) {
        any = true;
        findings.extend(nat(&object.key, pool, &report.addresses));
    }
    used.extend(snapshot.services.values().flatten().filter(|given| given.pool().is_some()).map(|given| given.address));
    for (object, pool) in address_pools(&snapshot.set) {
        any = true;
        findings.extend(addresses(&object.key, pool, &used));
    }
    findings.extend(refused(&controller.parts.events, SystemTime::now()));
    if findings.is_empty() && any {
        findings.push(Finding::ok("pool", "every pool has room"));
    }
    findings
}

/// A NAT pool. What drains gives nothing out, and says nothing about what there is.
fn nat(key: &ObjectKey, pool: &NatPool, addresses: &[AddressStats]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (ipv4, family) in [(true, "IPv4"), (false, "IPv6")] {
        let own = || pool.addresses.iter().filter(|address| address.is_ipv4() == ipv4);
        let open: HashSet<IpAddr> = own().filter(|address| !pool.draining.contains(address)).copied().collect();
        if open.is_empty() {
            if own().next().is_some() {
                let message = format!("every {family} address of {key} is draining: new connections are refused");
                findings.push(Finding::error("pool", message, "take one out of spec.draining"));
            }
            continue;
        }
        let stats = addresses.iter().filter(|stats| open.contains(&unmapped(stats.address)));
        let (leased, total) =
            stats.fold((0.0, 0.0), |sum, stats| (sum.0 + f64::from(stats.leased), sum.1 + f64::from(stats.total)));
        if total > 0.0 && leased / total >= NEARLY_EMPTY {
            let share = 100.0 * leased / total;
            let message = format!("{key} is nearly empty: {share:.0}% of its {family} L4 ports are given out");
            let help = "add addresses to the pool, or lower portBlock.max. See: hostweave nat stats";
            findings.push(Finding::warning("pool", message, help));
        }
    }
    findings
}

/// An AddressPool. Addresses that Services share are used once.
fn addresses(key: &ObjectKey, pool: &AddressPool, used: &HashSet<IpAddr>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (ipv4, family) in [(true, "IPv4"), (false, "IPv6")] {
        let ranges = pool.ranges.iter().filter(|range| range.is_ipv4() == ipv4);
        let size = ranges.fold(0_u128, |sum, range| sum.saturating_add(range.count()));
        let count = used.iter().filter(|address| address.is_ipv4() == ipv4 && pool.contains(**address)).count();
        if size >= SMALL && count as f64 >= NEARLY_EMPTY * size as f64 {
            let message = format!("{key} is nearly empty: {count} of {size} {family} addresses are given");
            findings.push(Finding::warning("pool", message, "add addresses to the pool, or delete Services"));
        }
    }
    findings
}

/// Connections that were refused lately because a pool had no L4 ports left, or the host no room for another mapping.
fn refused(events: &EventLog, now: SystemTime) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (what, help) in [
        (EventType::NatExhausted, "see the biggest users: hostweave nat stats"),
        (
            EventType::NatTableFull,
            "raise HostConfig.spec.connections.max, or lower NatPool.spec.limits.mappings. See: hostweave nat stats",
        ),
    ] {
        let events = events.list(&Filter { types: vec![what], ..Filter::default() }, 1);
        let Some(last) = events.first().filter(|event| is_recent(&event.time, now)) else { continue };
        let who = last.object().map(|object| format!("{object}: ")).unwrap_or_default();
        let message = format!("connections were refused at {}: {who}{}", last.time, last.message);
        findings.push(Finding::warning("pool", message, help));
    }
    findings
}

/// Times of one form are in the order of their letters.
fn is_recent(time: &str, now: SystemTime) -> bool {
    now.checked_sub(RECENT).is_none_or(|since| time >= rfc3339(since).as_str())
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use hostweave_nat::mapped;

    use super::*;
    use crate::config::checked::Spec;
    use crate::config::{Source, load_sources};

    fn of<T>(text: &str, pick: impl Fn(&Spec) -> Option<T>) -> (ObjectKey, T) {
        let loaded = load_sources(vec![Source { name: "t.yaml".to_owned(), text: text.to_owned() }]).unwrap();
        loaded.objects.iter().find_map(|object| Some((object.key.clone(), pick(&object.spec)?))).unwrap()
    }

    fn nat_pool(spec: &str) -> (ObjectKey, NatPool) {
        let text =
            format!("{{apiVersion: hostweave.dev/v1alpha1, kind: NatPool, metadata: {{name: p}}, spec: {spec}}}");
        of(&text, |spec| if let Spec::NatPool(pool) = spec { Some(pool.clone()) } else { None })
    }

    fn address_pool(addresses: &str) -> (ObjectKey, AddressPool) {
        let text = format!(
            "{{apiVersion: hostweave.dev/v1alpha1, kind: AddressPool, metadata: {{name: p}}, \
             spec: {{type: public, addresses: [{addresses}]}}}}"
        );
        of(&text, |spec| if let Spec::AddressPool(pool) = spec { Some(pool.clone()) } else { None })
    }

    fn stats(address: &str, leased: u32) -> AddressStats {
        AddressStats { address: mapped(address.parse().unwrap()), leased, total: 64_512, used: [0; 3] }
    }

    fn messages(findings: &[Finding]) -> Vec<&str> {
        findings.iter().map(|finding| finding.message.as_str()).collect()
    }

    #[test]
    fn a_nat_pool_is_nearly_empty_by_family_and_without_what_drains() {
        let (key, pool) =
            nat_pool("{addresses: [203.0.113.1, 203.0.113.2, '2001:db8:aa::1'], draining: [203.0.113.2]}");
        let full = [stats("203.0.113.1", 60_000), stats("203.0.113.2", 0), stats("2001:db8:aa::1", 0)];
        assert_eq!(
            messages(&nat(&key, &pool, &full)),
            ["NatPool p is nearly empty: 93% of its IPv4 L4 ports are given out"]
        );
        let v6 = [stats("203.0.113.1", 0), stats("203.0.113.2", 64_512), stats("2001:db8:aa::1", 64_512)];
        assert_eq!(
            messages(&nat(&key, &pool, &v6)),
            ["NatPool p is nearly empty: 100% of its IPv6 L4 ports are given out"]
        );
        let drained = [stats("203.0.113.1", 0), stats("203.0.113.2", 64_512), stats("2001:db8:aa::1", 0)];
        assert!(nat(&key, &pool, &drained).is_empty());
    }

    #[test]
    fn a_family_that_drains_whole_is_told() {
        let (key, pool) = nat_pool("{addresses: [203.0.113.1, '2001:db8:aa::1'], draining: ['2001:db8:aa::1']}");
        let found = nat(&key, &pool, &[]);
        assert_eq!(messages(&found), ["every IPv6 address of NatPool p is draining: new connections are refused"]);
    }

    #[test]
    fn an_address_pool_in_normal_use_is_no_finding() {
        let used = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<HashSet<IpAddr>>();
        let (key, one) = address_pool("203.0.113.7, '2001:db8::7'");
        assert!(addresses(&key, &one, &used(&["203.0.113.7", "2001:db8::7"])).is_empty());
        let (key, pool) = address_pool("203.0.113.8/29, '2001:db8::/64'");
        let seven: Vec<String> = (8..15).map(|host| format!("203.0.113.{host}")).collect();
        let seven: Vec<&str> = seven.iter().map(String::as_str).collect();
        assert_eq!(
            messages(&addresses(&key, &pool, &used(&seven))),
            ["AddressPool p is nearly empty: 7 of 8 IPv4 addresses are given"]
        );
        assert!(addresses(&key, &pool, &used(&seven[..6])).is_empty());
    }

    #[test]
    fn what_was_refused_for_want_of_ports_or_of_room_is_found() {
        let (log, now) = (EventLog::default(), SystemTime::now());
        assert!(refused(&log, now).is_empty());
        let key = ObjectKey::port("shop", "web-0");
        for kind in [EventType::NatTableFull, EventType::NatExhausted, EventType::NatTableFull] {
            log.add(kind, Some(&key), format!("{kind:?}"), serde_json::Value::Null);
        }
        let found = refused(&log, now);
        let ends: Vec<_> = messages(&found).iter().filter_map(|message| message.rsplit(": ").next()).collect();
        assert_eq!(ends, ["NatExhausted", "NatTableFull"]);
        assert!(messages(&found).iter().all(|message| message.contains("Port shop/web-0")));
        assert!(refused(&log, now + RECENT + Duration::from_secs(2)).is_empty());
    }

    #[test]
    fn an_old_refusal_is_no_news() {
        let time = |second| UNIX_EPOCH + Duration::from_secs(second);
        assert!(is_recent(&rfc3339(time(1_000_000)), time(1_000_600)));
        assert!(!is_recent(&rfc3339(time(1_000_000)), time(1_000_601)));
    }
}
