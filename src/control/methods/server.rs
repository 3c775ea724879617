//! `server.*` and `rpc.discover`.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::control::error::RpcError;
use crate::control::method::{self, Call};
use crate::control::uplink_view;
use crate::control::view::PortView;
use crate::fabric::balance::choice::BackendState;
use crate::fabric::balance::report::ServiceCounts;
use crate::fabric::balance::serving::Serving;
use crate::observe::time;

use super::object::changes_json;

/// No parameters.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Empty {}

/// Parameters of `server.hello`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hello {
    /// Name and version of the client, for the log.
    client: Option<String>,
}

pub fn hello(call: &Call<'_>, params: Hello) -> Result<Value, RpcError> {
    tracing::debug!(client = params.client.as_deref(), pid = call.client.pid, uid = call.client.uid, "hello");
    Ok(json!({
        "product": "hostweave",
        "version": env!("CARGO_PKG_VERSION"),
        "api": ["v1alpha1"],
        "features": ["mq", "events", "watch", "tap", "live-migration"],
        "pid": std::process::id(),
    }))
}

pub fn status(call: &Call<'_>, _: Empty) -> Result<Value, RpcError> {
    let controller = call.controller;
    let snapshot = controller.snapshot();
    let mut states = std::collections::BTreeMap::<&str, u64>::new();
    let mut degraded = Vec::new();
    for (key, ..) in snapshot.set.ports() {
        if let Some(view) = PortView::new(controller, &snapshot, key) {
            *states.entry(view.state().0).or_default() += 1;
            degraded.extend(view.degraded());
        }
    }
    if let Some(failure) = controller.reload_failure() {
        degraded.push(format!("the configuration files are not in force: {failure}"));
    }
    let fabric = &controller.parts.fabric;
    let dns = fabric.dns().report();
    let down = dns.upstreams.iter().filter(|(_, up)| !up);
    degraded.extend(down.map(|(server, _)| format!("DNS server {server} does not answer")));
    let services = fabric.service_counts();
    // That nobody is attached yet is as little a fault of a Service's as of a port's.
    let ill = |(state, _): &(BackendState, usize)| *state == BackendState::Unhealthy;
    let down =
        services.iter().filter(|service| service.serving == Some(Serving::Nowhere) && service.backends.iter().any(ill));
    let text =
        |service: &ServiceCounts| format!("Service {}: every backend that runs fails its checks", service.service);
    degraded.extend(down.map(text));
    let uplink = fabric.uplink_status();
    let ill = |status| uplink_view::degraded(status, |ipv4| uplink_view::leaves(&snapshot, status, ipv4));
    degraded.extend(uplink.iter().flat_map(ill));
    let (policy, connections, flow_log) = (fabric.policy_report(), fabric.connection_report(), fabric.flow_log());
    let workers: Vec<Value> = controller.parts.fabric.worker_reports().iter().enumerate().map(worker).collect();
    let host = snapshot.set.of_kind(crate::config::Kind::HostConfig).next().map(|object| object.key.name.clone());
    Ok(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "host": host,
        "uptime": time::short(controller.started.elapsed()),
        "uptimeSeconds": controller.started.elapsed().as_secs(),
        "ready": true,
        "degraded": degraded,
        "revision": snapshot.revision,
        "networks": snapshot.set.networks().count(),
        "uplink": uplink.as_ref().map(uplink_view::summary),
        "ports": {"total": states.values().sum::<u64>(), "states": states},
        "workers": workers,
        "events": {"total": controller.parts.events.count(), "lost": controller.parts.events.lost()},
        "policy": {
            "networkPolicies": snapshot.set.of_kind(crate::config::Kind::NetworkPolicy).count(),
            "clusterNetworkPolicies": snapshot.set.of_kind(crate::config::Kind::ClusterNetworkPolicy).count(),
            "rules": policy.stats.rules,
            "revision": policy.revision,
        },
        "connections": {
            "used": connections.used, "capacity": connections.capacity, "evicted": connections.evicted,
            "refused": connections.refused_quota + connections.refused_full,
        },
        "flows": {"total": flow_log.count(), "lost": flow_log.lost()},
        "dns": {
            "clusterDomain": snapshot.set.host().dns.domain,
            "upstream": dns.upstreams.iter().map(|(server, up)| json!({"server": server, "up": up})).collect::<Vec<_>>(),
            "answers": dns.answers.iter().map(|(.., count)| count).sum::<u64>(),
            "cached": dns.cached,
        },
        "runtimeDir": controller.parts.runtime,
        "config": controller.parts.config,
    }))
}

fn worker((index, report): (usize, &crate::fabric::WorkerReport)) -> Value {
    let total = report.busy_s + report.polling_s + report.asleep_s;
    json!({
        "worker": index,
        "busyRatio": if total > 0.0 { report.busy_s / total } else { 0.0 },
        "busySeconds": report.busy_s,
        "pollingSeconds": report.polling_s,
        "asleepSeconds": report.asleep_s,
        "packets": report.packets,
        "sleeps": report.sleeps,
        "notesLost": report.notes_lost,
    })
}

pub fn reload(call: &Call<'_>, _: Empty) -> Result<Value, RpcError> {
    call.controller.reload().map(|applied| changes_json(&applied))
}

pub fn discover(_: &Call<'_>, _: Empty) -> Result<Value, RpcError> {
    Ok(method::openrpc())
}
