//! `Service` as written: the form that stands for an address.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de};

use super::Metadata;
use super::port::Protocol;

/// A Kubernetes Service, in the form that holds an address for direct attach: `type: LoadBalancer`, selector
/// `coreweave.cloud/ignore: ignore` and one port `{name: attach, port: 1, targetPort: attach}`. Other forms are not supported yet.
///
/// The Port, or the Pod of its name, whose annotation `net.coreweave.cloud/attachLoadbalancerIP` names the Service has the address on
/// its own NIC: DHCP hands it out instead of the private one, DHCPv6 besides it. With the annotation `hostweave.dev/attach-mode: nat`
/// on either, the guest keeps its private address, and packets are translated 1:1.
///
/// The address comes from an AddressPool, and stays until the Service is deleted. Annotations choose the pool:
/// `service.beta.kubernetes.io/coreweave-load-balancer-type: public` or `private` by its type, `metallb.universe.tf/address-pool` by
/// its name; a private one if neither is there. `metallb.universe.tf/loadBalancerIPs` asks for an address, and
/// `metallb.universe.tf/allow-shared-ip` lets Services with the same value have the same one.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Service {
    /// `v1`.
    pub api_version: String,
    /// `Service`.
    pub kind: String,
    /// What identifies and labels it; its annotations choose the address.
    pub metadata: Metadata,
    /// What kind of Service it is.
    pub spec: ServiceSpec,
}

/// What kind of Service it is.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceSpec {
    /// `LoadBalancer`; other types are not supported yet.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub service_type: Option<ServiceType>,
    /// `{coreweave.cloud/ignore: ignore}`: the Service selects nothing, it is attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<BTreeMap<String, String>>,
    /// `[{name: attach, port: 1, targetPort: attach}]`; an attached address has all L4 ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<ServicePort>,
    /// The address that the Service asks for, out of a pool that it may use.
    #[serde(default, rename = "loadBalancerIP", skip_serializing_if = "Option::is_none")]
    pub load_balancer_ip: Option<String>,
    /// `Cluster` or `Local`: without a choice of backends there is no difference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_traffic_policy: Option<TrafficPolicy>,
    /// Families of its addresses; of those that pools have, IPv4 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2))]
    pub ip_families: Option<Vec<IpFamily>>,
    /// How many families: `SingleStack` (default), `PreferDualStack` or `RequireDualStack`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_family_policy: Option<IpFamilyPolicy>,
}

/// A port of a Service.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServicePort {
    /// Name: `attach`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Number: 1.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u32,
    /// `TCP` (default), `UDP` or `SCTP`; an attached address has all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// L4 port of the backend, by number or name: `attach`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<TargetPort>,
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
    /// Not supported yet.
    ClusterIP,
    /// Not supported yet.
    NodePort,
    /// By an address of a pool.
    LoadBalancer,
    /// Not supported yet.
    ExternalName,
}

/// Which backends traffic from outside may reach.
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
    /// Both, if pools have both.
    PreferDualStack,
    /// Both.
    RequireDualStack,
}
