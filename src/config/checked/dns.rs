//! `HostConfig.spec.dns`, checked.

use std::net::{IpAddr, SocketAddr};

use crate::config::names;
use crate::config::node::Path;
use crate::config::problem::Problem;
use crate::config::raw::dns::Dns;
use crate::services::dns::spec::{DnsSpec, PORT, SERVERS_MAX};

/// Characters of the longest cluster zone: names of Services and ports must fit below it.
const DOMAIN_LEN_MAX: usize = 100;

/// Characters of a label (RFC 1035 §2.3.4).
const LABEL_LEN_MAX: usize = 63;

/// Checks what is written; values of fields that have a problem are meaningless.
pub(super) fn check(raw: &Dns, path: &Path, problems: &mut Vec<Problem>) -> DnsSpec {
    let mut spec = DnsSpec::default();
    if let Some(domain) = &raw.cluster_domain {
        let path = path.key("clusterDomain");
        let plain = domain.strip_suffix('.').unwrap_or(domain);
        let long = plain.len() > DOMAIN_LEN_MAX || plain.split('.').any(|label| label.len() > LABEL_LEN_MAX);
        let result = names::check_dns_subdomain(plain);
        match result.and_then(|()| if long { Err("is too long for a zone".to_owned()) } else { Ok(()) }) {
            Ok(()) => spec.domain = plain.to_owned(),
            Err(reason) => {
                let message = format!("{path} {domain:?} {reason}");
                problems.push(Problem::value(&path, "invalid_name", message).label("not a zone"));
            }
        }
    }
    let Some(servers) = &raw.upstream else { return spec };
    let path = path.key("upstream");
    if servers.len() > SERVERS_MAX {
        let message = format!("{path} has {} servers; at most {SERVERS_MAX} are allowed", servers.len());
        problems.push(Problem::value(&path, "out_of_range", message).label("too many"));
    }
    let mut upstreams = Vec::with_capacity(servers.len());
    for (index, text) in servers.iter().enumerate() {
        let path = path.index(index);
        match server(text) {
            Some(server) => upstreams.push(server),
            None => {
                let message = format!("{path} {text:?} is not the address of a DNS server");
                let problem = Problem::value(&path, "invalid_address", message).label("not a server");
                problems
                    .push(problem.help("write an address such as 192.0.2.53, with another L4 port 192.0.2.53:5353"));
            }
        }
    }
    spec.upstreams = Some(upstreams);
    spec
}

/// An address, with or without an L4 port.
pub(super) fn server(text: &str) -> Option<SocketAddr> {
    let address = text.parse::<IpAddr>().map(|address| SocketAddr::new(address, PORT));
    let server = address.or_else(|_| text.parse()).ok()?;
    let usable = !server.ip().is_unspecified() && !server.ip().is_multicast() && server.port() != 0;
    usable.then_some(server)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(domain: Option<&str>, upstream: Option<&[&str]>) -> (DnsSpec, usize) {
        let upstream = upstream.map(|servers| servers.iter().map(|&text| text.to_owned()).collect());
        let raw = Dns { cluster_domain: domain.map(str::to_owned), upstream };
        let mut problems = Vec::new();
        let spec = check(&raw, &Path::of("spec.dns"), &mut problems);
        (spec, problems.len())
    }

    #[test]
    fn servers_are_addresses_with_or_without_a_port() {
        let (spec, problems) = checked(Some("k8s.example."), Some(&["192.0.2.53", "[2001:db8::53]:5353", "::1"]));
        let upstreams = ["192.0.2.53:53", "[2001:db8::53]:5353", "[::1]:53"].map(|text| text.parse().unwrap());
        assert_eq!((spec.domain.as_str(), spec.upstreams, problems), ("k8s.example", Some(upstreams.into()), 0));
        assert_eq!(checked(None, None), (DnsSpec::default(), 0));
        assert_eq!(checked(None, Some(&[])).0.upstreams, Some(Vec::new()));
        for bad in ["dns.example", "0.0.0.0", "224.0.0.1", "192.0.2.1:0", "192.0.2.1:99999", ""] {
            assert_eq!(checked(None, Some(&[bad])).1, 1, "{bad}");
        }
        assert_eq!(checked(None, Some(&["192.0.2.1"; SERVERS_MAX + 1])).1, 1);
    }

    #[test]
    fn a_zone_is_a_domain_that_leaves_room_for_names() {
        let long = "a".repeat(64);
        for bad in ["", ".", "Cluster.local", "a..b", "under_score.local", &long, &["abcdefghi"; 11].join(".")] {
            assert_eq!(checked(Some(bad), None).1, 1, "{bad}");
        }
    }
}
