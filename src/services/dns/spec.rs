//! What the DNS server is told: the cluster zone, where other names are asked, and what there is to name.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

/// The cluster zone where nothing is written.
pub const CLUSTER_DOMAIN: &str = "cluster.local";

/// Upstream servers at most; `resolv.conf` has three.
pub const SERVERS_MAX: usize = 8;

/// L4 port of DNS, UDP and TCP (RFC 1035 §4.2).
pub const PORT: u16 = 53;

/// `HostConfig.spec.dns`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DnsSpec {
    /// The cluster zone, lower case, without a dot at its end.
    pub domain: String,
    /// Who is asked for all other names; `None` for the host's own resolvers (`/etc/resolv.conf`), empty for nobody.
    pub upstreams: Option<Vec<SocketAddr>>,
    /// Services of all networks, by namespace and name. Cheap to clone, and to compare with its own clone.
    pub services: Arc<Vec<Arc<ServiceRecords>>>,
    /// Where cluster addresses of Services are.
    pub service_ranges: Vec<ServiceRange>,
}

/// A range of cluster addresses: its reverse names are answered, too.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceRange {
    /// Name of the network.
    pub network: String,
    /// The range.
    pub net: IpNet,
}

impl Default for DnsSpec {
    fn default() -> Self {
        Self {
            domain: CLUSTER_DOMAIN.to_owned(),
            upstreams: None,
            services: Arc::default(),
            service_ranges: Vec::new(),
        }
    }
}

/// A port's names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortRecords {
    /// Namespace.
    pub namespace: String,
    /// Name; dots in it make labels.
    pub name: String,
    /// Its addresses, both families.
    pub addresses: Vec<IpAddr>,
}

/// What DNS has to know of a Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceRecords {
    /// Name of its network.
    pub network: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// What its name stands for.
    pub target: ServiceTarget,
    /// Its L4 ports. Those without a name have no records.
    pub ports: Vec<ServicePort>,
}

impl ServiceRecords {
    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// What a Service's name stands for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ServiceTarget {
    /// Addresses of its own.
    ClusterIp(Vec<IpAddr>),
    /// `clusterIP: None`: those of its endpoints.
    Headless {
        /// The endpoints.
        endpoints: Vec<EndpointRecords>,
        /// `publishNotReadyAddresses`: also those that are not ready.
        not_ready: bool,
    },
    /// `ExternalName`: another name.
    ExternalName(String),
}

/// A named L4 port of a Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePort {
    /// Its name; empty for none.
    pub name: String,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: &'static str,
    /// The Service's number; headless: unless an endpoint has another one.
    pub port: u16,
}

/// An endpoint of a headless Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointRecords {
    /// `hostname` of the endpoint: its name below the Service's. Without one, its address makes one.
    pub hostname: Option<String>,
    /// Its addresses, both families.
    pub addresses: Vec<IpAddr>,
    /// Whether it is ready.
    pub ready: bool,
    /// Its L4 ports where they are not the Service's (SEMANTICS NP15).
    pub ports: Vec<EndpointPort>,
}

/// An L4 port of an endpoint that is not the Service's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointPort {
    /// Name of the Service's port.
    pub name: String,
    /// Its number; `None` if the endpoint has no such port.
    pub port: Option<u16>,
}

/// Everything that the names of one network are made of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ZoneInput {
    /// The cluster zone.
    pub domain: String,
    /// The gateway's addresses: the name server's own.
    pub gateways: Vec<IpAddr>,
    /// Ranges of this network: their reverse names are answered.
    pub ranges: Vec<IpNet>,
    /// Ranges of all networks: their reverse names are never forwarded.
    pub private: Vec<IpNet>,
    /// Its ports.
    pub ports: Vec<PortRecords>,
    /// Its Services.
    pub services: Vec<Arc<ServiceRecords>>,
}
