//! Addresses of a Service: those that it asks for, of which families and pools, and who may use them.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Families, Form, HEADLESS, PoolChoice, ignored_field};
use crate::config::checked::{Metadata, annotations};
use crate::config::names;
use crate::config::node::Path;
use crate::config::problem::Problem;
use crate::config::ranges::Range;
use crate::config::raw::address_pool::PoolType;
use crate::config::raw::service as raw;

/// CIDRs of `loadBalancerSourceRanges`.
const SOURCES_MAX: usize = 256;

pub(super) fn pool(metadata: &Metadata, problems: &mut Vec<Problem>) -> PoolChoice {
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

/// The addresses of pools that it asks for, and where.
pub(super) fn wanted(metadata: &Metadata, raw: &raw::ServiceSpec, problems: &mut Vec<Problem>) -> (Vec<IpAddr>, Path) {
    let field = Path::of("spec.loadBalancerIP");
    let annotation = annotations::path_of(annotations::ADDRESSES);
    let written = raw.load_balancer_ip.as_ref().filter(|text| !text.is_empty());
    let (text, path) = match (metadata.annotations.get(annotations::ADDRESSES), written) {
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
    let parts: Vec<&str> = text.split(',').map(str::trim).collect();
    (one_of_each(&parts, &path, problems), path)
}

/// The cluster addresses that it asks for, and where.
pub(super) fn cluster_wanted(raw: &raw::ServiceSpec, form: &Form, problems: &mut Vec<Problem>) -> (Vec<IpAddr>, Path) {
    let (one, all) = (Path::of("spec.clusterIP"), Path::of("spec.clusterIPs"));
    // Kubernetes takes empty text for nothing.
    let first = raw.cluster_ip.as_deref().filter(|text| !text.is_empty());
    let listed: Vec<&str> = raw.cluster_ips.iter().flatten().map(String::as_str).collect();
    if let (Some(first), Some(other)) = (first, listed.first())
        && first != *other
    {
        let message = format!("{one} {first} is not the first of {all}, which is {other}");
        problems.push(Problem::value(&one, "conflict", message).label("not the first").help("leave one of them out"));
        return (Vec::new(), one);
    }
    let (texts, path) = if listed.is_empty() { (first.into_iter().collect(), one) } else { (listed, all) };
    match form {
        // An address of another cluster means nothing for these.
        Form::Attach => return (Vec::new(), path),
        Form::ExternalName(_) => {
            if !texts.is_empty() && texts != [HEADLESS] {
                problems.push(ignored_field(&path, "an ExternalName has no address"));
            }
            return (Vec::new(), path);
        }
        Form::Headless => {
            if texts.len() > 1 {
                let message = format!("{path} has {HEADLESS} beside an address: a headless Service has none");
                problems.push(Problem::value(&path, "conflict", message).label("headless"));
            }
            return (Vec::new(), path);
        }
        Form::ClusterIp | Form::LoadBalancer => {}
    }
    (one_of_each(&texts, &path, problems), path)
}

/// Addresses, at most one of each family.
fn one_of_each(texts: &[&str], path: &Path, problems: &mut Vec<Problem>) -> Vec<IpAddr> {
    let mut wanted: Vec<IpAddr> = Vec::new();
    for part in texts {
        let address: Option<IpAddr> = part.parse().ok();
        let Some(address) = address.filter(|address| Range::from(*address).special().is_none()) else {
            let message = format!("{path} asks for {part:?}, which is no address that a Service can have");
            problems.push(Problem::value(path, "invalid_address", message).label("not an address"));
            continue;
        };
        if wanted.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
            let message = format!("{path} asks for two addresses of one family; a Service has one of each");
            problems.push(Problem::value(path, "duplicate", message).label("one of each family"));
            continue;
        }
        wanted.push(address);
    }
    wanted
}

pub(super) fn families(raw: &raw::ServiceSpec, form: &Form, problems: &mut Vec<Problem>) -> Families {
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
        // As in Kubernetes: nobody can tell of which family the endpoints will be.
        (None, []) if *form == Form::Headless && raw.selector.as_ref().is_none_or(|all| all.is_empty()) => {
            Families::Prefer
        }
        (_, []) => Families::Any,
    }
}

/// Whether IPv6 is the main family: as written, else that of the first address.
pub(super) fn ipv6_first(raw: &raw::ServiceSpec, wanted: &[IpAddr]) -> bool {
    let family = raw.ip_families.as_deref().unwrap_or_default().first();
    match (family, wanted.first()) {
        (Some(family), _) => *family == raw::IpFamily::IPv6,
        (None, Some(address)) => address.is_ipv6(),
        (None, None) => false,
    }
}

/// Who may use addresses of pools (SEMANTICS SV18). The annotation is what Kubernetes had before the field.
pub(super) fn sources(metadata: &Metadata, raw: &raw::ServiceSpec, problems: &mut Vec<Problem>) -> Vec<IpNet> {
    let field = Path::of("spec.loadBalancerSourceRanges");
    let written = raw.load_balancer_source_ranges.iter().flatten();
    let mut texts: Vec<(Path, &str)> =
        written.enumerate().map(|(index, text)| (field.index(index), text.trim())).collect();
    if texts.is_empty()
        && let Some(annotation) = metadata.annotations.get(annotations::SOURCE_RANGES)
    {
        let path = annotations::path_of(annotations::SOURCE_RANGES);
        texts = annotation
            .split(',')
            .map(|text| (path.clone(), text.trim()))
            .filter(|(_, text)| !text.is_empty())
            .collect();
    }
    if texts.len() > SOURCES_MAX {
        let message = format!("{field} has {} ranges; at most {SOURCES_MAX} are allowed", texts.len());
        problems.push(Problem::value(&field, "out_of_range", message).label("too many"));
    }
    let mut sources = Vec::new();
    for (path, text) in texts.into_iter().take(SOURCES_MAX) {
        match text.parse::<IpNet>() {
            Ok(net) => sources.push(net.trunc()),
            Err(_) => {
                let message = format!("{path} {text:?} is not a CIDR");
                let problem = Problem::value(&path, "invalid_cidr", message).label("not a CIDR");
                problems.push(problem.help("write an address and a prefix length, like 192.0.2.0/24 or 2001:db8::/32"));
            }
        }
    }
    sources
}
