//! Annotations that mean something to hostweave.

use crate::config::kind::Kind;
use crate::config::names::closest;
use crate::config::node::Path;
use crate::config::problem::Problem;

use super::Metadata;

/// What begins annotations that are for us: ours, CoreWeave's, and those of MetalLB that CoreWeave's documentation has.
const PREFIXES: [&str; 5] = [
    "hostweave.dev/",
    "net.coreweave.cloud/",
    "vpc.coreweave.cloud/",
    "service.beta.kubernetes.io/coreweave-",
    "metallb.universe.tf/",
];

/// On a Namespace: `allow` or `deny`, instead of `HostConfig.spec.defaultPolicy`.
pub const DEFAULT_POLICY: &str = "hostweave.dev/default-policy";

/// On a policy: `on` reports what it would deny, and denies nothing.
pub const AUDIT: &str = "hostweave.dev/audit";

/// On a Service: `public` or `private`, the type of the pools that its address may come from (SEMANTICS CW1).
pub const LOAD_BALANCER_TYPE: &str = "service.beta.kubernetes.io/coreweave-load-balancer-type";

/// On a Service: the name of the AddressPool, the older way (SEMANTICS CW1).
pub const POOL: &str = "metallb.universe.tf/address-pool";

/// On a Service: those with the same value may have the same address (SEMANTICS CW2).
pub const SHARE: &str = "metallb.universe.tf/allow-shared-ip";

/// On a Service: the addresses that it asks for, one of each family, separated by commas.
pub const ADDRESSES: &str = "metallb.universe.tf/loadBalancerIPs";

/// On a Service: MetalLB's own note of where its addresses came from, which says nothing here.
const ALLOCATED_FROM: &str = "metallb.universe.tf/ip-allocated-from-pool";

/// On a Port or Pod: VPCs in which it has one more NIC each (SEMANTICS CW12).
const VPC_NAME: &str = "vpc.coreweave.cloud/name";

/// On a Port or Pod: whether it has its ordinary NIC besides (SEMANTICS CW12).
const KUBERNETES_NETWORKING: &str = "vpc.coreweave.cloud/kubernetes-networking";

/// On a Port or Pod: the Service whose address it has (SEMANTICS CW4).
pub const ATTACH: &str = "net.coreweave.cloud/attachLoadbalancerIP";

/// On a Service, Port or Pod: `direct` gives the guest the attached address, `nat` translates it 1:1.
pub const ATTACH_MODE: &str = "hostweave.dev/attach-mode";

/// On a Service: the network that it belongs to (SEMANTICS SV24).
pub const NETWORK: &str = "hostweave.dev/network";

/// On a Service: ports that are ranges of L4 ports, or all of them.
pub const PORT_RANGE: &str = "hostweave.dev/port-range";

/// On a Service: how its backends are asked whether they are well (SEMANTICS SV2).
pub const HEALTH_CHECK: &str = "hostweave.dev/health-check";

/// On a Service: when backends that clients cannot connect to are ejected, or `off`.
pub const OUTLIER_DETECTION: &str = "hostweave.dev/outlier-detection";

/// On a Service: `reject` or `panic`, when all backends fail their checks (SEMANTICS SV4).
pub const ALL_DOWN: &str = "hostweave.dev/all-down";

/// On a Service: `keep` or `reset`, for connections to a backend that takes no new ones (SEMANTICS SV5).
pub const DRAIN: &str = "hostweave.dev/drain";

/// On a Port or Pod: its share of new connections.
pub const WEIGHT: &str = "hostweave.dev/weight";

/// On a Service: clients that may use it, as Kubernetes wrote it before `loadBalancerSourceRanges`.
pub const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

/// Share of new connections: where nothing is written, and the most.
pub const WEIGHT_DEFAULT: u16 = 100;
const WEIGHT_MAX: u16 = 1000;

/// Warns of annotations for us that mean nothing on this kind: a misspelt one would silently not close what it is meant to
/// close. Refuses those whose meaning is known and that are not carried out yet.
pub(super) fn check_known(kind: Kind, metadata: &Metadata, problems: &mut Vec<Problem>) {
    let known: &[&str] = match kind {
        Kind::Namespace => &[DEFAULT_POLICY],
        Kind::NetworkPolicy | Kind::ClusterNetworkPolicy => &[AUDIT],
        Kind::Port | Kind::Pod => &[ATTACH, ATTACH_MODE, WEIGHT, VPC_NAME, KUBERNETES_NETWORKING],
        Kind::Service => &[
            LOAD_BALANCER_TYPE,
            POOL,
            SHARE,
            ADDRESSES,
            ALLOCATED_FROM,
            ATTACH_MODE,
            NETWORK,
            PORT_RANGE,
            HEALTH_CHECK,
            OUTLIER_DETECTION,
            ALL_DOWN,
            DRAIN,
        ],
        Kind::HostConfig | Kind::Network | Kind::NatPool | Kind::AddressPool | Kind::EndpointSlice => &[],
    };
    let for_us = |key: &&String| PREFIXES.iter().any(|prefix| key.starts_with(prefix));
    for key in metadata.annotations.keys().filter(for_us).filter(|key| !known.contains(&key.as_str())) {
        let message = format!("annotation {key} means nothing on a {kind}");
        let label = match closest(key, known.iter().copied()) {
            Some(similar) => format!("did you mean {similar}?"),
            None => "ignored".to_owned(),
        };
        problems.push(Problem::key(&path_of(key), "ignored_field", message).label(label).warning());
    }
    if matches!(kind, Kind::Port | Kind::Pod) {
        refuse_vpc(metadata, problems);
    }
}

/// Refuses other NICs than the ordinary one: a workload that is to be in a VPC, and perhaps nowhere else, must not be left in
/// its network alone.
fn refuse_vpc(metadata: &Metadata, problems: &mut Vec<Problem>) {
    let not_yet = |key: &str, message: &str| {
        let problem = Problem::key(&path_of(key), "not_yet_supported", format!("annotation {key}: {message}"));
        let help = "leave it out for now, and write one Port with a spec.network of its own for each NIC";
        problem.label("not supported yet").help(help)
    };
    if metadata.annotations.contains_key(VPC_NAME) {
        problems.push(not_yet(VPC_NAME, "further NICs of a workload are not supported yet by this version"));
    }
    let choices = [("true", true), ("false", false)];
    if choice(metadata, KUBERNETES_NETWORKING, choices, problems) == Some(false) {
        let message = "a workload without its ordinary NIC is not supported yet by this version";
        problems.push(not_yet(KUBERNETES_NETWORKING, message));
    }
}

/// The meaning of an annotation, if it is there; a problem if it says none of `choices`.
pub(super) fn choice<T: Copy>(
    metadata: &Metadata,
    key: &str,
    choices: [(&str, T); 2],
    problems: &mut Vec<Problem>,
) -> Option<T> {
    let written = metadata.annotations.get(key)?;
    if let Some((_, meaning)) = choices.iter().find(|(word, _)| word == written) {
        return Some(*meaning);
    }
    let words = choices.map(|(word, _)| word);
    let label = match closest(written, words) {
        Some(similar) => format!("did you mean {similar}?"),
        None => format!("one of {}", words.join(", ")),
    };
    let message = format!("annotation {key} {written:?} is not one of {}", words.join(", "));
    problems.push(Problem::value(&path_of(key), "unknown_value", message).label(label));
    None
}

/// Whether a policy is in audit mode.
pub(super) fn audit(metadata: &Metadata, problems: &mut Vec<Problem>) -> bool {
    choice(metadata, AUDIT, [("on", true), ("off", false)], problems).unwrap_or(false)
}

/// Whether an attached address is 1:1 NAT.
pub(super) fn attach_mode(metadata: &Metadata, problems: &mut Vec<Problem>) -> Option<bool> {
    choice(metadata, ATTACH_MODE, [("nat", true), ("direct", false)], problems)
}

/// A share of new connections, if it is one.
pub fn weight(text: &str) -> Option<u16> {
    text.parse().ok().filter(|weight| (1..=WEIGHT_MAX).contains(weight))
}

/// Whether the share of new connections that is written is one.
pub(super) fn check_weight(metadata: &Metadata, problems: &mut Vec<Problem>) {
    let Some(text) = metadata.annotations.get(WEIGHT) else { return };
    if weight(text).is_none() {
        let message = format!("annotation {WEIGHT} {text:?} is not a number from 1 to {WEIGHT_MAX}");
        let problem = Problem::value(&path_of(WEIGHT), "out_of_range", message).label("not a weight");
        problems.push(
            problem.help(format!("others have {WEIGHT_DEFAULT}; to take a port out, write spec.adminState: down")),
        );
    }
}

/// Where an annotation stands.
pub fn path_of(key: &str) -> Path {
    Path::of("metadata").key("annotations").key(key)
}
