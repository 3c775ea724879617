//! `Service`, checked: the form that stands for an address (SEMANTICS CW1 to CW3).

use std::net::IpAddr;

use super::{Metadata, annotations};
use crate::config::names;
use crate::config::node::Path;
use crate::config::problem::Problem;
use crate::config::ranges::Range;
use crate::config::raw::address_pool::PoolType;
use crate::config::raw::service as raw;

/// The label that no port has: a Service that selects it selects nothing (SEMANTICS CW3).
const IGNORE: &str = "coreweave.cloud/ignore";

/// How the form is written, for people.
const FORM: &str = "the form for direct attach is type: LoadBalancer, selector: {coreweave.cloud/ignore: ignore}, \
                    ports: [{name: attach, port: 1, targetPort: attach}]";

/// An address that a port can have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// Of which pools the address is.
    pub pool: PoolChoice,
    /// Services with this key may have the same address.
    pub share: Option<String>,
    /// Addresses that it asks for.
    pub wanted: Vec<IpAddr>,
    /// Where they are written.
    pub wanted_at: Path,
    /// Families.
    pub families: Families,
    /// Whether it is 1:1 NAT, where written on the Service.
    pub one_to_one: Option<bool>,
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
    /// IPv4 if a pool has it, else IPv6.
    Any,
    /// This one; `true` is IPv4.
    One(bool),
    /// Those that pools have.
    Prefer,
    /// Both.
    Both,
}

impl Service {
    /// Checks what is written; values of fields that have a problem are meaningless.
    pub(super) fn check(metadata: &Metadata, raw: &raw::ServiceSpec, problems: &mut Vec<Problem>) -> Self {
        check_form(raw, problems);
        let (wanted, wanted_at) = wanted(metadata, raw, problems);
        Self {
            pool: pool(metadata, problems),
            share: metadata.annotations.get(annotations::SHARE).cloned(),
            wanted,
            wanted_at,
            families: families(raw, problems),
            one_to_one: annotations::attach_mode(metadata, problems),
        }
    }
}

/// Only what stands for an address.
fn check_form(raw: &raw::ServiceSpec, problems: &mut Vec<Problem>) {
    let spec = Path::of("spec");
    let not_yet = |path: &Path, message: String| {
        let problem = Problem::value(path, "not_yet_supported", message).label("not supported yet");
        problem.help(format!("{FORM}; Services that spread connections come with a later version"))
    };
    if raw.service_type != Some(raw::ServiceType::LoadBalancer) {
        let written = raw.service_type.unwrap_or(raw::ServiceType::ClusterIP);
        let path = if raw.service_type.is_some() { spec.key("type") } else { spec };
        return problems.push(not_yet(&path, format!("a Service of type {written:?} is not supported yet")));
    }
    let ignored = raw
        .selector
        .as_ref()
        .is_some_and(|selector| selector.len() == 1 && selector.get(IGNORE).is_some_and(|value| value == "ignore"));
    if !ignored {
        let path = if raw.selector.is_some() { spec.key("selector") } else { spec };
        return problems.push(not_yet(&path, "a Service that selects ports is not supported yet".to_owned()));
    }
    let path = spec.key("ports");
    let attach = |port: &raw::ServicePort| {
        let named = port.name.as_deref().is_none_or(|name| name == "attach");
        let target = matches!(&port.target_port, Some(raw::TargetPort::Name(name)) if name == "attach");
        port.port == 1 && named && target
    };
    match raw.ports.as_slice() {
        [port] if attach(port) => {}
        ports => {
            let path = if ports.is_empty() { spec } else { path };
            let message = "a Service for direct attach has one port, {name: attach, port: 1, targetPort: attach}: \
                           the address has all L4 ports, and NetworkPolicy says which are open";
            problems.push(Problem::value(&path, "wrong_value", message).label("not that port").help(FORM));
        }
    }
}

fn pool(metadata: &Metadata, problems: &mut Vec<Problem>) -> PoolChoice {
    let choices = [("public", PoolType::Public), ("private", PoolType::Private)];
    let by_type = annotations::choice(metadata, annotations::LOAD_BALANCER_TYPE, choices, problems);
    let Some(name) = metadata.annotations.get(annotations::POOL) else {
        return PoolChoice::Type(by_type.unwrap_or(PoolType::Private));
    };
    let path = annotations::path_of(annotations::POOL);
    if by_type.is_some() {
        let message = format!(
            "annotations {} and {} both choose a pool; write one of them",
            annotations::POOL,
            annotations::LOAD_BALANCER_TYPE
        );
        problems.push(Problem::key(&path, "conflict", message).label("remove one"));
    }
    if let Err(reason) = names::check_dns_subdomain(name) {
        let message = format!("annotation {} {name:?} {reason}", annotations::POOL);
        problems.push(Problem::value(&path, "invalid_name", message).label("not the name of an AddressPool"));
    }
    PoolChoice::Named(name.clone())
}

/// The addresses that it asks for, and where.
fn wanted(metadata: &Metadata, raw: &raw::ServiceSpec, problems: &mut Vec<Problem>) -> (Vec<IpAddr>, Path) {
    let field = Path::of("spec.loadBalancerIP");
    let annotation = annotations::path_of(annotations::ADDRESSES);
    let (text, path) = match (metadata.annotations.get(annotations::ADDRESSES), &raw.load_balancer_ip) {
        (None, None) => return (Vec::new(), field),
        (None, Some(text)) => (text, field),
        (Some(text), other) => {
            if other.is_some() {
                let message = format!("{field} and annotation {} both ask for an address", annotations::ADDRESSES);
                problems.push(Problem::key(&field, "conflict", message).label("remove one"));
            }
            (text, annotation)
        }
    };
    let mut wanted: Vec<IpAddr> = Vec::new();
    for part in text.split(',').map(str::trim) {
        let address: Option<IpAddr> = part.parse().ok();
        let Some(address) = address.filter(|address| Range::from(*address).special().is_none()) else {
            let message = format!("{path} asks for {part:?}, which is no address that a Service can have");
            problems.push(Problem::value(&path, "invalid_address", message).label("not an address"));
            continue;
        };
        if wanted.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
            let message = format!("{path} asks for two addresses of one family; a Service has one of each");
            problems.push(Problem::value(&path, "duplicate", message).label("one of each family"));
            continue;
        }
        wanted.push(address);
    }
    (wanted, path)
}

fn families(raw: &raw::ServiceSpec, problems: &mut Vec<Problem>) -> Families {
    let path = Path::of("spec.ipFamilies");
    let families = raw.ip_families.as_deref().unwrap_or_default();
    let both = matches!(families, [first, second] if first != second);
    if families.len() > 2 || (families.len() == 2 && !both) {
        let message = format!("{path} names a family twice");
        problems.push(Problem::value(&path, "duplicate", message).label("one of each"));
    }
    match (raw.ip_family_policy, families) {
        (Some(raw::IpFamilyPolicy::RequireDualStack), _) => Families::Both,
        (Some(raw::IpFamilyPolicy::PreferDualStack), _) => Families::Prefer,
        (None, _) if both => Families::Both,
        (Some(raw::IpFamilyPolicy::SingleStack), _) if both => {
            let message = format!("{path} names two families, and ipFamilyPolicy is SingleStack");
            problems.push(Problem::value(&path, "conflict", message).label("two families"));
            Families::Any
        }
        (_, [first, ..]) => Families::One(*first == raw::IpFamily::IPv4),
        (_, []) => Families::Any,
    }
}
