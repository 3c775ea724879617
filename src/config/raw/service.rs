//! `Service` as written.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de};

use super::Metadata;
use super::port::Protocol;

/// A Kubernetes Service: an address and a DNS name that stay, and the ports behind them that connections are spread over. With a
/// selector those are the Ports of its namespace and network whose labels match (as for policies, a Pod's labels count as its Port's);
/// without one, they come from the EndpointSlices that name the Service.
///
/// It belongs to one network: `default`, or the one that the annotation `hostweave.dev/network` names. Its cluster addresses come
/// from `Network.spec.serviceCIDRs` and are known in that network. A Service of type LoadBalancer has addresses of an AddressPool
/// besides. Annotations choose the pool: `service.beta.kubernetes.io/coreweave-load-balancer-type: public` or `private` by its type,
/// `metallb.universe.tf/address-pool` by its name; a private one if neither is there. `metallb.universe.tf/loadBalancerIPs` asks for
/// an address, and `metallb.universe.tf/allow-shared-ip` lets Services with the same value have the same one, each with L4 ports of
/// its own. Addresses stay until the Service is deleted.
///
/// More annotations. `hostweave.dev/port-range` makes a port of the Service a range of L4 ports, or all of them:
/// `media=30000-32767,control=all`, without `NAME=` where there is one port; a backend gets a connection at the L4 port that the
/// client asked for. `hostweave.dev/health-check` asks each backend whether it is well:
/// `{type: http, path: /healthz, port: 8080, interval: 5s, timeout: 2s, rise: 2, fall: 3}`. Types are `tcp`, `http` and `https`
/// (`path`, `host`, `status: 200-399`), `grpc` (`service`), `icmp`, and `udp` (`send`, `expect`); `port` is the backend's own if left
/// out, and the other values are those shown. `hostweave.dev/outlier-detection`:
/// `{consecutiveFailures: 5, baseEjectionTime: 30s, maxEjectionPercent: 50}`, which is the default, or `off`: a backend that takes no
/// connection of clients any more, whatever its checks say, is out for a time that grows when it happens again. `hostweave.dev/all-down: reject` (default) or `panic`: what happens when every backend
/// fails its checks. `hostweave.dev/drain: keep` (default) or `reset`: what becomes of connections to a backend that takes no new
/// ones. On a Port, `hostweave.dev/weight: "200"` is its share of new connections, 1 to 1000, where others have 100.
///
/// Direct attach: with `type: LoadBalancer`, selector `coreweave.cloud/ignore: ignore` and one port
/// `{name: attach, port: 1, targetPort: attach}` the Service only holds an address. The Port, or the Pod of its name, whose annotation
/// `net.coreweave.cloud/attachLoadbalancerIP` names the Service has it on its own NIC: DHCP hands it out instead of the private one,
/// DHCPv6 besides it. With the annotation `hostweave.dev/attach-mode: nat` on either, the guest keeps its private address, and packets
/// are translated 1:1: whichever of its own addresses of that family the guest sends from (an IPv6 guest forms new ones by itself), it
/// leaves as the public one with its L4 port unchanged; what comes unasked goes to the Port's first address. Two addresses of one guest
/// cannot use the same L4 port towards the same remote endpoint: the second connection is refused (`nat_tuple_taken`).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Service {
    /// `v1`.
    pub api_version: String,
    /// `Service`.
    pub kind: String,
    /// What identifies and labels it. The name is a DNS label.
    pub metadata: Metadata,
    /// Addresses, L4 ports and backends.
    #[serde(default)]
    pub spec: ServiceSpec,
}

/// Addresses, L4 ports and backends of a Service.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceSpec {
    /// `ClusterIP` (default), `LoadBalancer`, `ExternalName`, or `NodePort`, which is a ClusterIP here: no node ports are opened.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub service_type: Option<ServiceType>,
    /// Labels of its backends. Without any, the backends are those of EndpointSlices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<BTreeMap<String, String>>,
    /// Its L4 ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub ports: Vec<ServicePort>,
    /// The cluster address that it asks for, or `None` for a headless Service: a name for the addresses of its backends.
    #[serde(default, rename = "clusterIP", skip_serializing_if = "Option::is_none")]
    pub cluster_ip: Option<String>,
    /// The cluster addresses that it asks for, one of each family; the first is `clusterIP`.
    #[serde(default, rename = "clusterIPs", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2))]
    pub cluster_ips: Option<Vec<String>>,
    /// Families of its addresses, the main one first. If left out, IPv4 where the network and the pools have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2))]
    pub ip_families: Option<Vec<IpFamily>>,
    /// How many families: `SingleStack` (default), `PreferDualStack` or `RequireDualStack`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_family_policy: Option<IpFamilyPolicy>,
    /// The address that a LoadBalancer asks for, out of a pool that it may use.
    #[serde(default, rename = "loadBalancerIP", skip_serializing_if = "Option::is_none")]
    pub load_balancer_ip: Option<String>,
    /// Who gives the Service its address; hostweave if left out or `hostweave.dev/load-balancer`. A Service of another class has
    /// its cluster addresses only. It cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancer_class: Option<String>,
    /// Clients that may use the LoadBalancer's addresses, as CIDRs; everybody if left out. Cluster addresses are not concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub load_balancer_source_ranges: Option<Vec<String>>,
    /// Backends for clients outside the network: `Cluster` (default) for all, `Local` for those of this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_traffic_policy: Option<TrafficPolicy>,
    /// Backends for clients in the network: `Cluster` (default) for all, `Local` for those of this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub internal_traffic_policy: Option<TrafficPolicy>,
    /// Which backends come first: `PreferSameZone` (or `PreferClose`) or `PreferSameNode`; others where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic_distribution: Option<TrafficDistribution>,
    /// `None` (default), or `ClientIP`: a client keeps its backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_affinity: Option<SessionAffinity>,
    /// For how long, with `ClientIP`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_affinity_config: Option<SessionAffinityConfig>,
    /// Whether backends count as ready whatever their state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publish_not_ready_addresses: Option<bool>,
    /// The name that an `ExternalName` stands for, such as `db.example.com`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_name: Option<String>,
    /// No effect: no node ports are opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocate_load_balancer_node_ports: Option<bool>,
    /// No effect: no node ports are opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check_node_port: Option<u32>,
}

/// How long a client keeps its backend.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SessionAffinityConfig {
    /// By the client's address.
    #[serde(default, rename = "clientIP", skip_serializing_if = "Option::is_none")]
    pub client_ip: Option<ClientIp>,
}

/// Affinity by the client's address.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClientIp {
    /// Seconds after its last connection, 1 to 86400; 10800 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86400))]
    pub timeout_seconds: Option<u32>,
}

/// A port of a Service.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServicePort {
    /// Its name, a DNS label; needed where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Number, as clients see it.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u32,
    /// `TCP` (default), `UDP` or `SCTP`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// L4 port of the backend, by number or by a name that each backend has for itself (`Port.spec.namedPorts`); `port` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<TargetPort>,
    /// A hint for people: hostweave does not look into connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
    /// No effect: no node ports are opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_port: Option<u32>,
}

/// An L4 port, by number or name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum TargetPort {
    /// The number.
    Number(u32),
    /// The name.
    Name(String),
}

/// By hand: a derived untagged enum could not say what it wants.
impl<'de> Deserialize<'de> for TargetPort {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = TargetPort;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the number or name of an L4 port")
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<TargetPort, E> {
                let unexpected = de::Unexpected::Unsigned(value);
                u32::try_from(value).map(TargetPort::Number).map_err(|_| E::invalid_value(unexpected, &self))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<TargetPort, E> {
                Ok(TargetPort::Name(value.to_owned()))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

/// How a Service is reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub enum ServiceType {
    /// By addresses inside its network.
    ClusterIP,
    /// As ClusterIP: no node ports are opened.
    NodePort,
    /// By an address of a pool, besides those inside its network.
    LoadBalancer,
    /// By another name.
    ExternalName,
}

/// Which backends traffic may reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub enum TrafficPolicy {
    /// All.
    Cluster,
    /// Those of the host that receives it.
    Local,
}

/// A family of addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub enum IpFamily {
    /// IPv4.
    IPv4,
    /// IPv6.
    IPv6,
}

/// How many families a Service has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub enum IpFamilyPolicy {
    /// One.
    SingleStack,
    /// Both, if the network has both.
    PreferDualStack,
    /// Both.
    RequireDualStack,
}

/// Which backends come first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub enum TrafficDistribution {
    /// The older name of `PreferSameZone`.
    PreferClose,
    /// Those of this host's zone.
    PreferSameZone,
    /// Those of this host.
    PreferSameNode,
}

/// Whether a client keeps its backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub enum SessionAffinity {
    /// Each connection has its own.
    None,
    /// By the client's address.
    ClientIP,
}
