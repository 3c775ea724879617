//! Fields and kinds that are known but not used (SEMANTICS NP32). Ignoring a field silently could open something that
//! its author closed, so each has a fate of its own: ignored with a warning, or refused with the reason.

use super::kind::Kind;

/// What becomes of a known field that is not used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Ignored, with a warning that says why that is safe.
    Ignored(&'static str),
    /// Refused: it has a meaning here, but not yet.
    NotYet,
    /// Refused: ignoring it would promise something.
    Refused(&'static str),
}

/// Fields of every kind.
const EVERY_KIND: &[(&str, Fate)] = &[
    ("status", Fate::Ignored("status is written by hostweave")),
    ("metadata.managedFields", Fate::Ignored("it says who wrote which field in another cluster")),
    ("metadata.creationTimestamp", Fate::Ignored("it is written by hostweave")),
    ("metadata.generation", Fate::Ignored("it is written by hostweave")),
    ("metadata.selfLink", Fate::Ignored("Kubernetes no longer uses it")),
    ("metadata.generateName", Fate::Refused("hostweave makes up no names: write metadata.name")),
    ("metadata.finalizers", Fate::Refused("nothing here would wait for them: a deleted object is gone")),
    ("metadata.ownerReferences", Fate::Refused("objects are deleted only by name or with their file")),
    ("metadata.deletionTimestamp", Fate::Refused("use `hostweave delete`")),
    ("metadata.deletionGracePeriodSeconds", Fate::Refused("use `hostweave delete`")),
];

/// Fields of one kind.
const ONE_KIND: &[(Kind, &str, Fate)] = &[
    (Kind::HostConfig, "spec.overlay", Fate::NotYet),
    (Kind::HostConfig, "spec.store.etcd", Fate::NotYet),
    (Kind::HostConfig, "spec.dns.publicZones", Fate::NotYet),
    (Kind::HostConfig, "spec.ingress", Fate::NotYet),
    (Kind::HostConfig, "spec.dashboard", Fate::NotYet),
    (Kind::HostConfig, "spec.metrics", Fate::NotYet),
    (Kind::HostConfig, "spec.nat", Fate::NotYet),
    (Kind::HostConfig, "spec.limits", Fate::NotYet),
    (Kind::Network, "spec.bridged", Fate::NotYet),
    // SEMANTICS CW11.
    (Kind::Network, "spec.hostPrefixes", Fate::NotYet),
    (Kind::Network, "spec.ipam", Fate::NotYet),
    (Kind::Network, "spec.gatewayAddressPolicy", Fate::NotYet),
    (Kind::Network, "spec.egress.disablePublicAccess", Fate::Refused("write egress: {ipv4: none, ipv6: none}")),
    (Kind::Network, "spec.ingress", Fate::NotYet),
    (Kind::Port, "spec.limits.txMbps", Fate::Refused("write egress: {bitsPerSecond: …}")),
    (Kind::Port, "spec.limits.rxMbps", Fate::Refused("write ingress: {bitsPerSecond: …}")),
    (Kind::Port, "spec.workload", Fate::NotYet),
    (Kind::Port, "spec.primary", Fate::NotYet),
    (Kind::Namespace, "spec", Fate::Ignored("a namespace is its name and labels")),
    (
        Kind::Service,
        "spec.externalIPs",
        Fate::Refused(
            "anybody could claim anybody's address (CVE-2020-8554): write type: LoadBalancer, and the address \
             in the annotation metallb.universe.tf/loadBalancerIPs",
        ),
    ),
    (Kind::Service, "spec.topologyKeys", Fate::Refused("Kubernetes no longer has it: write trafficDistribution")),
    (Kind::ClusterNetworkPolicy, "spec.ingress.ports", OLDER_PORTS),
    (Kind::ClusterNetworkPolicy, "spec.egress.ports", OLDER_PORTS),
    (Kind::Pod, "spec", Fate::Ignored("hostweave runs no containers; it takes a Pod for its labels and annotations")),
];

/// How AdminNetworkPolicy and older drafts of ClusterNetworkPolicy wrote L4 ports.
const OLDER_PORTS: Fate = Fate::Refused("v1alpha2 writes protocols: [{tcp: {destinationPort: {number: 80}}}]");

/// Kinds that exist, by name, with their `apiVersion`, but are not supported yet.
pub const KINDS_NOT_YET: &[(&str, &str)] = &[
    ("Secret", "v1"),
    ("Ingress", "networking.k8s.io/v1"),
    // SEMANTICS CW5.
    ("VirtualServer", "virtualservers.coreweave.com/v1alpha1"),
];

/// What becomes of a field that the strict types do not have; `None` for one that nobody knows.
pub fn of_field(kind: Kind, path: &str) -> Option<Fate> {
    let every = EVERY_KIND.iter().find(|(field, _)| *field == path).map(|(_, fate)| *fate);
    every.or_else(|| ONE_KIND.iter().find(|(of, field, _)| *of == kind && *field == path).map(|(_, _, fate)| *fate))
}
