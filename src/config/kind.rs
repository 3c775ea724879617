//! Kinds and keys of objects: the names by which files, the store and the command line speak of them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Our own API group and version.
pub const API_VERSION: &str = "hostweave.dev/v1alpha1";

/// The namespace of objects that name none; exists without being written.
pub const DEFAULT_NAMESPACE: &str = "default";

/// The network of ports that name none; exists without being written.
pub const DEFAULT_NETWORK: &str = "default";

/// Kinds that are supported.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Kind {
    /// How the host runs hostweave.
    HostConfig,
    /// A scope for names.
    Namespace,
    /// An isolated L3 network.
    Network,
    /// NAT addresses.
    NatPool,
    /// Addresses for Services.
    AddressPool,
    /// A NIC.
    Port,
    /// The metadata of a port, as Kubernetes writes it.
    Pod,
    /// An address and a name, and the ports behind them, as Kubernetes writes it.
    Service,
    /// Backends of a Service without selector, as Kubernetes writes them.
    EndpointSlice,
    /// Who may talk to the ports of a namespace, in Kubernetes' words.
    NetworkPolicy,
    /// What the operator decides for all namespaces.
    ClusterNetworkPolicy,
}

impl Kind {
    /// Every kind, in the order in which they are applied.
    pub const ALL: [Kind; 11] = [
        Kind::HostConfig,
        Kind::Namespace,
        Kind::Network,
        Kind::NatPool,
        Kind::AddressPool,
        Kind::Port,
        Kind::Pod,
        Kind::Service,
        Kind::EndpointSlice,
        Kind::NetworkPolicy,
        Kind::ClusterNetworkPolicy,
    ];

    /// `kind` as it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::HostConfig => "HostConfig",
            Kind::Namespace => "Namespace",
            Kind::Network => "Network",
            Kind::NatPool => "NatPool",
            Kind::AddressPool => "AddressPool",
            Kind::Port => "Port",
            Kind::Pod => "Pod",
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::NetworkPolicy => "NetworkPolicy",
            Kind::ClusterNetworkPolicy => "ClusterNetworkPolicy",
        }
    }

    /// Lower-case plural, as in `get ports`.
    pub fn plural(self) -> &'static str {
        match self {
            Kind::HostConfig => "hostconfigs",
            Kind::Namespace => "namespaces",
            Kind::Network => "networks",
            Kind::NatPool => "natpools",
            Kind::AddressPool => "addresspools",
            Kind::Port => "ports",
            Kind::Pod => "pods",
            Kind::Service => "services",
            Kind::EndpointSlice => "endpointslices",
            Kind::NetworkPolicy => "networkpolicies",
            Kind::ClusterNetworkPolicy => "clusternetworkpolicies",
        }
    }

    /// Short names, as in kubectl.
    pub fn short_names(self) -> &'static [&'static str] {
        match self {
            Kind::HostConfig => &["hc"],
            Kind::Namespace => &["ns"],
            Kind::Network => &["net"],
            Kind::NatPool => &["nat"],
            Kind::AddressPool => &["ap"],
            Kind::Port => &[],
            Kind::Pod => &["po"],
            Kind::Service => &["svc"],
            Kind::EndpointSlice => &["eps"],
            Kind::NetworkPolicy => &["netpol"],
            Kind::ClusterNetworkPolicy => &["cnp"],
        }
    }

    /// `apiVersion` as it is written.
    pub fn api_version(self) -> &'static str {
        match self {
            Kind::Namespace | Kind::Pod | Kind::Service => "v1",
            Kind::HostConfig | Kind::Network | Kind::NatPool | Kind::AddressPool | Kind::Port => API_VERSION,
            Kind::EndpointSlice => "discovery.k8s.io/v1",
            Kind::NetworkPolicy => "networking.k8s.io/v1",
            Kind::ClusterNetworkPolicy => "policy.networking.k8s.io/v1alpha2",
        }
    }

    /// Whether its objects live in a namespace.
    pub fn is_namespaced(self) -> bool {
        matches!(self, Kind::Port | Kind::Pod | Kind::Service | Kind::EndpointSlice | Kind::NetworkPolicy)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that names no kind.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{word:?} is not a kind of object; there are {}", kinds())]
pub struct UnknownKind {
    /// The word.
    pub word: String,
    /// The kind that looks most like it.
    pub similar: Option<Kind>,
}

/// `HostConfig, Namespace, …`.
fn kinds() -> String {
    Kind::ALL.map(Kind::as_str).join(", ")
}

/// As the command line says it: any case, singular, plural or short.
impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(word: &str) -> Result<Self, UnknownKind> {
        let lower = word.to_ascii_lowercase();
        let named = |kind: &Kind| {
            kind.as_str().eq_ignore_ascii_case(&lower)
                || kind.plural() == lower
                || kind.short_names().contains(&&*lower)
        };
        Kind::ALL.into_iter().find(named).ok_or_else(|| UnknownKind {
            word: word.to_owned(),
            similar: super::names::closest(&lower, Kind::ALL.iter().map(|kind| kind.plural()))
                .and_then(|plural| Kind::ALL.into_iter().find(|kind| kind.plural() == plural)),
        })
    }
}

/// What identifies an object.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace, exactly for kinds that have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl ObjectKey {
    /// Key of an object; `namespace` is taken for namespaced kinds only, `default` where it is left out.
    pub fn new(kind: Kind, namespace: Option<&str>, name: &str) -> Self {
        let namespace = kind.is_namespaced().then(|| namespace.unwrap_or(DEFAULT_NAMESPACE).to_owned());
        Self { kind, namespace, name: name.to_owned() }
    }

    /// Key of a port.
    pub fn port(namespace: &str, name: &str) -> Self {
        Self::new(Kind::Port, Some(namespace), name)
    }

    /// `namespace/name`, or `name` for kinds without namespace.
    pub fn path(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{namespace}/{}", self.name),
            None => self.name.clone(),
        }
    }
}

/// `Port shop/web-0`.
impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_known_by_every_name() {
        for kind in Kind::ALL {
            for word in [kind.as_str(), kind.plural(), &kind.as_str().to_uppercase()].iter().chain(kind.short_names()) {
                assert_eq!(word.parse(), Ok(kind), "{word}");
            }
        }
        let error = "prots".parse::<Kind>().unwrap_err();
        assert_eq!(error.similar, Some(Kind::Port));
    }

    #[test]
    fn keys_have_a_namespace_exactly_where_the_kind_has() {
        assert_eq!(ObjectKey::new(Kind::Port, None, "a").to_string(), "Port default/a");
        assert_eq!(ObjectKey::new(Kind::Network, Some("x"), "a").to_string(), "Network a");
        assert_eq!(ObjectKey::port("shop", "web-0").path(), "shop/web-0");
    }
}
