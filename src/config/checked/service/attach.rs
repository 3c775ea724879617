//! The form of a Service that holds an address for a port (SEMANTICS CW3).

use super::{NO_NODE_PORTS, ignored_field};
use crate::config::node::Path;
use crate::config::problem::Problem;
use crate::config::raw::service as raw;

/// The label that no port has: a Service that selects it selects nothing.
const IGNORE: &str = "coreweave.cloud/ignore";

/// How the form is written, for people.
const FORM: &str = "the form for direct attach is type: LoadBalancer, selector: {coreweave.cloud/ignore: ignore}, \
                    ports: [{name: attach, port: 1, targetPort: attach}]";

/// Why most of what a Service can say means nothing here.
const NO_CLUSTER_ADDRESS: &str = "an attached Service has no address besides the attached one";
const NO_BACKENDS: &str = "an attached Service has one port and nothing to choose from";

/// Whether the author means this form.
pub(super) fn is_meant(raw: &raw::ServiceSpec) -> bool {
    raw.selector
        .as_ref()
        .is_some_and(|selector| selector.len() == 1 && selector.get(IGNORE).is_some_and(|value| value == "ignore"))
}

/// Checks that the Service says what the form has, and nothing that would be ignored to somebody's harm.
pub(super) fn check(raw: &raw::ServiceSpec, problems: &mut Vec<Problem>) {
    let spec = Path::of("spec");
    let attach = |port: &raw::ServicePort| {
        let named = port.name.as_deref().is_none_or(|name| name == "attach");
        let target = matches!(&port.target_port, Some(raw::TargetPort::Name(name)) if name == "attach");
        port.port == 1 && named && target
    };
    match raw.ports.as_slice() {
        [port] if attach(port) => {}
        ports => {
            let path = if ports.is_empty() { spec.clone() } else { spec.key("ports") };
            let message = "a Service for direct attach has one port, {name: attach, port: 1, targetPort: attach}: \
                           the address has all L4 ports, and NetworkPolicy says which are open";
            problems.push(Problem::value(&path, "wrong_value", message).label("not that port").help(FORM));
        }
    }
    if raw.load_balancer_source_ranges.is_some() {
        let path = spec.key("loadBalancerSourceRanges");
        let message = format!(
            "field {path} is not supported: an attached address is open to what policy lets through: write a \
             NetworkPolicy with ipBlock for its port"
        );
        problems.push(Problem::key(&path, "refused_field", message).label("remove it"));
    }
    let affinity = raw.session_affinity == Some(raw::SessionAffinity::ClientIP);
    let node_port = raw.ports.iter().any(|port| port.node_port.is_some_and(|port| port != 0));
    for (written, field, why) in [
        (raw.cluster_ip.is_some(), "clusterIP", NO_CLUSTER_ADDRESS),
        (raw.cluster_ips.is_some(), "clusterIPs", NO_CLUSTER_ADDRESS),
        (raw.internal_traffic_policy == Some(raw::TrafficPolicy::Local), "internalTrafficPolicy", NO_BACKENDS),
        (affinity, "sessionAffinity", NO_BACKENDS),
        (raw.traffic_distribution.is_some(), "trafficDistribution", NO_BACKENDS),
        (raw.publish_not_ready_addresses == Some(true), "publishNotReadyAddresses", NO_BACKENDS),
        (raw.health_check_node_port.is_some_and(|port| port != 0), "healthCheckNodePort", NO_NODE_PORTS),
        (node_port, "ports", NO_NODE_PORTS),
    ] {
        if written {
            problems.push(ignored_field(&spec.key(field), why));
        }
    }
}
