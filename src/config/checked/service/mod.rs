//! `Service`, checked (SEMANTICS §2, CW1 to CW3), as `ValidateService` of Kubernetes does.

mod addresses;
mod attach;
mod filled;
mod health;
mod outlier;
mod ports;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::{Metadata, annotations, range};
use crate::config::kind::DEFAULT_NETWORK;
use crate::config::names;
use crate::config::node::Path;
use crate::config::problem::Problem;
use crate::config::raw::address_pool::PoolType;
use crate::config::raw::port::Protocol;
use crate::config::raw::service as raw;
use crate::fabric::spec::{AllDown, Drain, HealthSpec, OutlierSpec};

/// The class of the Services that hostweave gives addresses to, where one is written.
pub const CLASS: &str = "hostweave.dev/load-balancer";

/// How Kubernetes writes that a Service has no cluster address.
const HEADLESS: &str = "None";

/// Seconds for which a client keeps its backend, where nothing is written (SEMANTICS SV10), and the most.
const AFFINITY_DEFAULT_S: u32 = 10_800;
const AFFINITY_MAX_S: u32 = 86_400;

/// Characters of a domain name (RFC 1035 §2.3.4).
const EXTERNAL_NAME_MAX: usize = 253;

/// An address and a name, and who stands behind them.
#[derive(Clone, PartialEq, Debug)]
pub struct Service {
    /// How it is reached.
    pub form: Form,
    /// Name of its network.
    pub network: String,
    /// Families of its addresses.
    pub families: Families,
    /// Whether IPv6 is the main one.
    pub ipv6_first: bool,
    /// Cluster addresses that it asks for.
    pub cluster_wanted: Vec<IpAddr>,
    /// Where they are written.
    pub cluster_wanted_at: Path,
    /// Of which pools its address is.
    pub pool: PoolChoice,
    /// Services with this key may have the same address of a pool.
    pub share: Option<String>,
    /// Addresses of pools that it asks for.
    pub wanted: Vec<IpAddr>,
    /// Where they are written.
    pub wanted_at: Path,
    /// Whether it is 1:1 NAT, where written on the Service.
    pub one_to_one: Option<bool>,
    /// Labels of its backends; empty for those of EndpointSlices.
    pub selector: BTreeMap<String, String>,
    /// Its L4 ports.
    pub ports: Vec<ServicePort>,
    /// How connections are spread.
    pub balancing: Balancing,
}

/// How a Service is reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Form {
    /// It holds an address for a port (SEMANTICS CW3).
    Attach,
    /// By cluster addresses.
    ClusterIp,
    /// By addresses of a pool, and by cluster addresses.
    LoadBalancer,
    /// By the addresses of its backends.
    Headless,
    /// By another name, lower case, without a dot at its end.
    ExternalName(String),
}

/// How a Service spreads connections.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Balancing {
    /// For how many seconds a client keeps its backend.
    pub affinity_s: Option<u32>,
    /// Who may use addresses of pools; empty for everybody.
    pub sources: Vec<IpNet>,
    /// Only backends of this host for clients outside the network.
    pub external_local: bool,
    /// Only backends of this host for clients in the network.
    pub internal_local: bool,
    /// Backends that come first.
    pub prefer: Option<Prefer>,
    /// Backends are ready whatever their state.
    pub publish_not_ready: bool,
    /// Active checks.
    pub health: Option<HealthSpec>,
    /// When backends that clients cannot connect to are ejected; `None` for never.
    pub outlier: Option<OutlierSpec>,
    /// What happens when all backends fail them.
    pub all_down: AllDown,
    /// What becomes of connections to a backend that takes no new ones.
    pub drain: Drain,
}

/// Backends that come first (SEMANTICS SV15).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Prefer {
    /// Those of this zone.
    Zone,
    /// Those of this host, then those of this zone.
    Node,
}

/// An L4 port of a Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePort {
    /// Its name; empty for none.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// The number as written: what SRV records say.
    pub port: u16,
    /// All that clients may use.
    pub l4: RangeInclusive<u16>,
    /// Where backends are reached.
    pub target: Target,
}

/// Where backends are reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// At the L4 port that the client asked for.
    Same,
    /// At this one.
    Number(u16),
    /// At the one that each has under this name (SEMANTICS SV7).
    Named(String),
}

/// Of which pools an address is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PoolChoice {
    /// Any of this type.
    Type(PoolType),
    /// This one.
    Named(String),
}

/// Families of a Service's addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Families {
    /// IPv4 if it is there, else IPv6.
    Any,
    /// This one; `true` is IPv4.
    One(bool),
    /// Those that are there.
    Prefer,
    /// Both.
    Both,
}

impl Service {
    /// Checks what is written; values of fields that have a problem are meaningless.
    pub(super) fn check(metadata: &Metadata, raw: &raw::ServiceSpec, problems: &mut Vec<Problem>) -> Self {
        let form = form(raw, problems);
        let (cluster_wanted, cluster_wanted_at) = addresses::cluster_wanted(raw, &form, problems);
        let (wanted, wanted_at) = addresses::wanted(metadata, raw, problems);
        let ports = match form {
            Form::Attach => Vec::new(),
            _ => ports::check(metadata, raw, &form, problems),
        };
        let mut service = Self {
            network: network(metadata, problems),
            families: addresses::families(raw, &form, problems),
            ipv6_first: addresses::ipv6_first(raw, &cluster_wanted),
            cluster_wanted,
            cluster_wanted_at,
            pool: addresses::pool(metadata, problems),
            share: metadata.annotations.get(annotations::SHARE).cloned(),
            wanted,
            wanted_at,
            one_to_one: annotations::attach_mode(metadata, problems),
            selector: selector(raw, problems),
            ports,
            balancing: balancing(metadata, raw, problems),
            form,
        };
        if service.form == Form::Attach {
            attach::check(raw, problems);
            service.selector = BTreeMap::new();
        } else {
            check_effect(raw, &service.form, problems);
            service.check_families(problems);
            if service.has_backends() {
                health::check_ports(&service, problems);
            }
        }
        service.ignore_annotations(metadata, problems);
        if service.form == Form::Headless {
            // Nobody sees its connections: they go to its backends themselves.
            service.balancing.outlier = None;
        }
        service
    }

    /// What it asks for is of the family that it asks for.
    fn check_families(&self, problems: &mut Vec<Problem>) {
        let Families::One(ipv4) = self.families else { return };
        let asked = [(&self.cluster_wanted, &self.cluster_wanted_at), (&self.wanted, &self.wanted_at)];
        for (wanted, path) in asked {
            if let Some(other) = wanted.iter().find(|address| address.is_ipv4() != ipv4) {
                let message = format!("{path} asks for {other}, and spec.ipFamilies has the other family only");
                problems.push(Problem::value(path, "conflict", message).label("not of that family"));
            }
        }
    }

    /// Annotations that mean nothing with this form.
    fn ignore_annotations(&self, metadata: &Metadata, problems: &mut Vec<Problem>) {
        let why = match &self.form {
            Form::ClusterIp | Form::LoadBalancer => return,
            Form::Headless => "a headless Service is a name only: clients connect to its backends themselves",
            Form::ExternalName(_) => "an ExternalName has no backends",
            Form::Attach => "the address is one port's, which gets all connections",
        };
        let of_backends = (self.form != Form::Headless).then_some(annotations::HEALTH_CHECK);
        let of_connections = [annotations::OUTLIER_DETECTION, annotations::ALL_DOWN, annotations::DRAIN];
        for key in of_backends.into_iter().chain(of_connections) {
            if metadata.annotations.contains_key(key) {
                problems.push(ignored_field(&annotations::path_of(key), why));
            }
        }
    }

    /// Whether the name of a headless Service stands for addresses of an IP version, in a network that has IPv4 or not.
    pub fn names(&self, ipv4: bool, network_has_v4: bool) -> bool {
        match self.families {
            Families::One(one) => one == ipv4,
            Families::Prefer | Families::Both => true,
            Families::Any => ipv4 == network_has_v4,
        }
    }

    /// Whether somebody stands behind it, of whom it matters how they are.
    pub fn has_backends(&self) -> bool {
        self.balances() || self.form == Form::Headless
    }

    /// Whether it has addresses of a pool.
    pub fn has_pool_address(&self) -> bool {
        matches!(self.form, Form::Attach | Form::LoadBalancer)
    }

    /// Whether it has cluster addresses, and spreads connections.
    pub fn balances(&self) -> bool {
        matches!(self.form, Form::ClusterIp | Form::LoadBalancer)
    }
}

fn form(raw: &raw::ServiceSpec, problems: &mut Vec<Problem>) -> Form {
    let spec = Path::of("spec");
    let headless = raw.cluster_ip.as_deref() == Some(HEADLESS)
        || raw.cluster_ips.as_deref().is_some_and(|all| all.first().is_some_and(|first| first == HEADLESS));
    match raw.service_type {
        Some(raw::ServiceType::ExternalName) => Form::ExternalName(external_name(raw, problems)),
        Some(raw::ServiceType::LoadBalancer) if attach::is_meant(raw) => Form::Attach,
        Some(written @ (raw::ServiceType::LoadBalancer | raw::ServiceType::NodePort)) if headless => {
            let message = format!("a Service of type {written:?} has an address: it cannot be headless");
            let problem = Problem::value(&spec.key("clusterIP"), "conflict", message).label("headless");
            problems.push(problem.help("remove clusterIP: None, or write type: ClusterIP"));
            Form::Headless
        }
        Some(raw::ServiceType::LoadBalancer) => match raw.load_balancer_class.as_deref() {
            None | Some(CLASS) => Form::LoadBalancer,
            Some(class) => {
                let message = format!("class {class:?} is another load balancer's: it gives this Service its address");
                let problem = Problem::value(&spec.key("loadBalancerClass"), "ignored_field", message).warning();
                problems.push(problem.label("cluster addresses only").help(format!("write {CLASS}, or leave it out")));
                Form::ClusterIp
            }
        },
        _ if headless => Form::Headless,
        _ => Form::ClusterIp,
    }
}

/// The name that an ExternalName stands for.
fn external_name(raw: &raw::ServiceSpec, problems: &mut Vec<Problem>) -> String {
    let path = Path::of("spec.externalName");
    let Some(written) = &raw.external_name else {
        let problem = Problem::key(&Path::of("spec.type"), "missing_field", format!("field {path} is missing"));
        problems.push(problem.label("needs externalName").help("write the name that it stands for: db.example.com"));
        return String::new();
    };
    let plain = written.strip_suffix('.').unwrap_or(written);
    let long = plain.len() > EXTERNAL_NAME_MAX || plain.split('.').any(|label| label.len() > names::LABEL_MAX);
    let result = names::check_dns_subdomain(plain);
    if let Err(reason) = result.and_then(|()| if long { Err("is too long for a name".to_owned()) } else { Ok(()) }) {
        let message = format!("{path} {written:?} {reason}");
        problems.push(Problem::value(&path, "invalid_name", message).label("not a domain name"));
    }
    plain.to_owned()
}

fn network(metadata: &Metadata, problems: &mut Vec<Problem>) -> String {
    let Some(name) = metadata.annotations.get(annotations::NETWORK) else { return DEFAULT_NETWORK.to_owned() };
    if let Err(reason) = names::check_dns_subdomain(name) {
        let message = format!("annotation {} {name:?} {reason}", annotations::NETWORK);
        let path = annotations::path_of(annotations::NETWORK);
        problems.push(Problem::value(&path, "invalid_name", message).label("not the name of a Network"));
    }
    name.clone()
}

fn selector(raw: &raw::ServiceSpec, problems: &mut Vec<Problem>) -> BTreeMap<String, String> {
    let selector = raw.selector.clone().unwrap_or_default();
    for (key, value) in &selector {
        let path = Path::of("spec.selector").key(key);
        if let Err(reason) = names::check_label_key(key) {
            let message = format!("the key of label {key:?} {reason}");
            problems.push(Problem::key(&path, "invalid_label", message).label("not a valid key"));
        }
        if let Err(reason) = names::check_label_value(value) {
            let message = format!("the value of label {key}, {value:?}, {reason}");
            problems.push(Problem::value(&path, "invalid_label", message).label("no label has it"));
        }
    }
    selector
}

fn balancing(metadata: &Metadata, raw: &raw::ServiceSpec, problems: &mut Vec<Problem>) -> Balancing {
    let all_down = [("reject", AllDown::Reject), ("panic", AllDown::Panic)];
    let drain = [("keep", Drain::Keep), ("reset", Drain::Reset)];
    Balancing {
        affinity_s: affinity(raw, problems),
        sources: addresses::sources(metadata, raw, problems),
        external_local: raw.external_traffic_policy == Some(raw::TrafficPolicy::Local),
        internal_local: raw.internal_traffic_policy == Some(raw::TrafficPolicy::Local),
        prefer: raw.traffic_distribution.map(|distribution| match distribution {
            raw::TrafficDistribution::PreferClose | raw::TrafficDistribution::PreferSameZone => Prefer::Zone,
            raw::TrafficDistribution::PreferSameNode => Prefer::Node,
        }),
        publish_not_ready: raw.publish_not_ready_addresses.unwrap_or(false),
        health: health::check(metadata, problems),
        outlier: outlier::detection(metadata, problems),
        all_down: annotations::choice(metadata, annotations::ALL_DOWN, all_down, problems).unwrap_or_default(),
        drain: annotations::choice(metadata, annotations::DRAIN, drain, problems).unwrap_or_default(),
    }
}

/// `sessionAffinity` (SEMANTICS SV10).
fn affinity(raw: &raw::ServiceSpec, problems: &mut Vec<Problem>) -> Option<u32> {
    let path = Path::of("spec.sessionAffinityConfig");
    let timeout = raw.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
    if raw.session_affinity != Some(raw::SessionAffinity::ClientIP) {
        if raw.session_affinity_config.is_some() {
            let message = format!("{path} has no meaning without sessionAffinity: ClientIP");
            problems.push(Problem::key(&path, "conflict", message).label("remove it"));
        }
        return None;
    }
    let path = path.key("clientIP").key("timeoutSeconds");
    Some(range(timeout, 1, AFFINITY_MAX_S, &path, problems).unwrap_or(AFFINITY_DEFAULT_S))
}

/// Fields that mean nothing with this type: refused where Kubernetes refuses them, else a warning.
fn check_effect(raw: &raw::ServiceSpec, form: &Form, problems: &mut Vec<Problem>) {
    let spec = Path::of("spec");
    let load_balancer = raw.service_type == Some(raw::ServiceType::LoadBalancer);
    for (written, field) in [
        (raw.load_balancer_source_ranges.is_some(), "loadBalancerSourceRanges"),
        (raw.load_balancer_class.is_some(), "loadBalancerClass"),
    ] {
        if written && !load_balancer {
            let path = spec.key(field);
            let message = format!("{path} has no meaning without type: LoadBalancer");
            problems.push(Problem::key(&path, "conflict", message).label("remove it"));
        }
    }
    let outside = load_balancer || raw.service_type == Some(raw::ServiceType::NodePort);
    let external = matches!(form, Form::ExternalName(_));
    for (ignored, field, why) in [
        (
            raw.service_type == Some(raw::ServiceType::NodePort),
            "type",
            "hostweave opens no node ports: it is a ClusterIP; write type: LoadBalancer to be reached from outside",
        ),
        (raw.load_balancer_ip.is_some() && !load_balancer, "loadBalancerIP", "only a LoadBalancer has such an address"),
        (
            raw.external_traffic_policy == Some(raw::TrafficPolicy::Local) && !outside,
            "externalTrafficPolicy",
            "cluster addresses are not reached from outside",
        ),
        (raw.health_check_node_port.is_some_and(|port| port != 0), "healthCheckNodePort", NO_NODE_PORTS),
        (raw.external_name.is_some() && !external, "externalName", "only an ExternalName stands for another name"),
        (raw.selector.is_some() && external, "selector", "an ExternalName stands for another name"),
    ] {
        if ignored {
            let path = spec.key(field);
            problems.push(ignored_field(&path, why));
        }
    }
    for (index, port) in raw.ports.iter().enumerate() {
        if port.node_port.is_some_and(|port| port != 0) {
            problems.push(ignored_field(&spec.key("ports").index(index).key("nodePort"), NO_NODE_PORTS));
        }
    }
}

const NO_NODE_PORTS: &str = "hostweave opens no node ports";

/// A field without effect.
fn ignored_field(path: &Path, why: &str) -> Problem {
    Problem::key(path, "ignored_field", format!("field {path} is ignored: {why}")).warning().label("ignored")
}
