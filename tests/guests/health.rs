//! Health checks of guests through the whole packet path: rings, policy, connections.

use std::net::IpAddr;
use std::sync::Arc;

use hostweave::fabric::spec::{HealthCheck, HealthSpec};
use hostweave::services::health::{Change, Health, Target};
use hostweave_policy::model::DefaultPolicy;
use hostweave_switch::stage::DropReason;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::support::{Host, PATIENCE, Up};

const GATEWAYS: [&str; 2] = ["192.0.2.1", "2001:db8:1::1"];

fn target(address: IpAddr, check: HealthCheck) -> Target {
    let spec = HealthSpec { check, l4: None, interval_ms: 200, timeout_ms: 150, rise: 2, fall: 3 };
    Target::new("default".into(), address, Some(7), Arc::new(spec)).unwrap()
}

/// Waits until every target has this verdict. The reasons of the last changes.
fn until(host: &Host, health: &Health, changes: &mut UnboundedReceiver<Change>, healthy: bool) -> Vec<String> {
    let mut reasons = Vec::new();
    host.runtime.block_on(async {
        let all = |health: &Health| {
            let report = health.report();
            report.unknown == 0 && (if healthy { report.unhealthy } else { report.healthy }) == 0
        };
        while !all(health) {
            let change = tokio::time::timeout(PATIENCE, changes.recv()).await.unwrap().unwrap();
            if change.healthy == healthy {
                reasons.push(change.reason.to_string());
            }
        }
    });
    reasons
}

#[test]
fn checks_pass_where_nobody_else_does_and_see_a_guest_that_stops() {
    let mut host = Host::new(1);
    host.desired.policy.default = DefaultPolicy::Deny;
    let spec = host.port("web", 10);
    let mut guest = host.guest(&spec).up();
    host.settle(&mut guest, &spec);
    guest.tcp_echo_server(7).unwrap();
    guest.udp_echo_server(7).unwrap();
    // The guest's stack then knows the router, and answers before anything is sent again.
    for gateway in GATEWAYS {
        guest.ping(gateway.parse::<IpAddr>().unwrap(), PATIENCE).unwrap();
    }
    let other = host.port("other", 11);
    let mut outsider = host.guest(&other).up();
    host.settle(&mut outsider, &other);
    let running = guest.spawn("web", false).unwrap();
    assert!(outsider.tcp_connect(spec.v4[0].into(), 7, std::time::Duration::from_millis(300)).is_err());
    assert!(host.dropped("other", DropReason::PolicyDenied) > 0);

    let (health, mut changes) = {
        let _inside = host.runtime.enter();
        Health::new(host.fabric.sockets())
    };
    let udp = HealthCheck::Udp { send: b"ping".to_vec(), expect: b"ping".to_vec() };
    let kinds = [HealthCheck::Tcp, HealthCheck::Icmp, udp];
    let ask = |address: IpAddr| kinds.clone().map(|check| target(address, check));
    health.replace(spec.addresses().flat_map(ask));
    until(&host, &health, &mut changes, true);
    assert_eq!(health.report().healthy, 6);

    // The exemption is what lets them pass (SEMANTICS NP28).
    host.desired.policy.infrastructure.health_probes = false;
    host.apply();
    until(&host, &health, &mut changes, false);
    host.desired.policy.infrastructure.health_probes = true;
    host.apply();
    until(&host, &health, &mut changes, true);

    // A virtual processor that stands still: the socket is open, the rings are there, nobody answers.
    let frozen = running.stop().unwrap();
    let reasons = until(&host, &health, &mut changes, false);
    assert!(reasons.iter().all(|reason| reason.starts_with("no ")), "{reasons:?}");
    let report = health.target(&target(spec.v4[0].into(), HealthCheck::Tcp)).unwrap();
    assert_eq!(report.history.last().map(|entry| entry.healthy), Some(false));
    drop(health);
    drop(frozen);
    host.assert_ledger();
}
