//! `HostConfig.spec.externalDNS`, checked.

use super::{absolute_path, dns, range};
use crate::config::names;
use crate::config::node::Path;
use crate::config::problem::Problem;
use crate::config::raw::external_dns as raw;
use crate::services::external_dns::spec::{
    Algorithm, ExternalDnsSpec, GRACE_S, INTERVAL_S, RecordPolicy, TTL_S, TsigSpec,
};

/// The longest of the times, in seconds.
const DAY_S: u32 = 86_400;

/// Checks what is written; values of fields that have a problem are meaningless. `host` is the host's name.
pub(super) fn check(raw: &raw::ExternalDns, host: &str, path: &Path, problems: &mut Vec<Problem>) -> ExternalDnsSpec {
    let zone = domain(&raw.zone, &path.key("zone"), problems);
    let base_domain = match &raw.base_domain {
        Some(text) => domain(text, &path.key("baseDomain"), problems),
        None => zone.clone(),
    };
    if base_domain != zone && !base_domain.ends_with(&format!(".{zone}")) {
        let path = path.key("baseDomain");
        let problem = Problem::value(&path, "conflict", format!("{path} {base_domain} is not in the zone {zone}"));
        problems.push(problem.label("outside of the zone"));
    }
    let server = dns::server(&raw.server).unwrap_or_else(|| {
        let path = path.key("server");
        let message = format!("{path} {:?} is not the address of a DNS server", raw.server);
        let problem = Problem::value(&path, "invalid_address", message).label("not a server");
        problems.push(problem.help("write an address such as 192.0.2.53, with another L4 port 192.0.2.53:5353"));
        (std::net::Ipv4Addr::UNSPECIFIED, 0).into()
    });
    let owner = raw.owner.as_deref().unwrap_or(host);
    if let Some(written) = &raw.owner
        && let Err(reason) = names::check_dns_subdomain(written)
    {
        let path = path.key("owner");
        problems
            .push(Problem::value(&path, "invalid_name", format!("{path} {written:?} {reason}")).label("not a name"));
    }
    let tsig = path.key("tsig");
    ExternalDnsSpec {
        server,
        zone,
        tsig: TsigSpec {
            name: key_name(&raw.tsig.name, &tsig.key("name"), problems),
            algorithm: match raw.tsig.algorithm {
                None | Some(raw::Algorithm::HmacSha256) => Algorithm::HmacSha256,
                Some(raw::Algorithm::HmacSha384) => Algorithm::HmacSha384,
                Some(raw::Algorithm::HmacSha512) => Algorithm::HmacSha512,
            },
            secret_file: absolute_path(&raw.tsig.secret_file, &tsig.key("secretFile"), problems),
        },
        policy: match raw.policy {
            None | Some(raw::Policy::Sync) => RecordPolicy::Sync,
            Some(raw::Policy::UpsertOnly) => RecordPolicy::UpsertOnly,
        },
        base_domain,
        ttl_s: range(raw.ttl, 1, DAY_S, &path.key("ttl"), problems).unwrap_or(TTL_S),
        owner: owner.to_owned(),
        grace_s: range(raw.grace_seconds, 0, DAY_S, &path.key("graceSeconds"), problems).unwrap_or(GRACE_S),
        interval_s: range(raw.interval_seconds, 1, DAY_S, &path.key("intervalSeconds"), problems).unwrap_or(INTERVAL_S),
        wanted: Vec::new(),
    }
}

fn domain(text: &str, path: &Path, problems: &mut Vec<Problem>) -> String {
    let plain = text.strip_suffix('.').unwrap_or(text);
    if let Err(reason) = names::check_dns_subdomain(plain) {
        let problem = Problem::value(path, "invalid_name", format!("{path} {text:?} {reason}"));
        problems.push(problem.label("not a domain"));
    }
    plain.to_owned()
}

/// Names of keys are domain names, which may have underscores.
fn key_name(text: &str, path: &Path, problems: &mut Vec<Problem>) -> String {
    let plain = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    if let Err(reason) = names::check_dns_subdomain(&plain.replace('_', "-")) {
        let problem = Problem::value(path, "invalid_name", format!("{path} {text:?} {reason}"));
        problems.push(problem.label("not the name of a key"));
    }
    plain
}
