//! The names that a Service asks for by annotations (SEMANTICS CW8).

use std::collections::BTreeMap;

use super::spec::{ExternalDnsSpec, NAMES_MAX};

/// Absolute names, separated by commas: external-dns's way.
pub const HOSTNAME: &str = "external-dns.alpha.kubernetes.io/hostname";

/// Names below the base domain, or absolute ones: CoreWeave's way.
pub const EXTERNAL_HOSTNAME: &str = "service.beta.kubernetes.io/external-hostname";

/// Octets of the longest name (RFC 1035 §2.3.4), without the dot at its end.
const NAME_LEN_MAX: usize = 253;
const LABEL_LEN_MAX: usize = 63;

/// The names that annotations ask for, and what of them cannot be, in sentences.
pub fn of(annotations: &BTreeMap<String, String>, spec: &ExternalDnsSpec) -> (Vec<String>, Vec<String>) {
    let (mut names, mut problems) = (Vec::new(), Vec::new());
    for key in [HOSTNAME, EXTERNAL_HOSTNAME] {
        let written = annotations.get(key).map(String::as_str).unwrap_or_default();
        for text in written.split(',').map(str::trim).filter(|text| !text.is_empty()) {
            let lower = text.to_ascii_lowercase();
            let name = if key == HOSTNAME { lower.trim_end_matches('.').to_owned() } else { below(&lower, spec) };
            match check(&name, &spec.zone) {
                Ok(()) if names.contains(&name) => {}
                Ok(()) => names.push(name),
                Err(reason) => problems.push(format!("annotation {key}: {text:?} {reason}")),
            }
        }
    }
    if names.len() > NAMES_MAX {
        problems.push(format!("{} names are more than the {NAMES_MAX} that a Service may have", names.len()));
        names.truncate(NAMES_MAX);
    }
    (names, problems)
}

/// A name of CoreWeave's annotation: absolute when it ends with a dot or lies in the zone, else below the base domain.
fn below(text: &str, spec: &ExternalDnsSpec) -> String {
    match text.strip_suffix('.') {
        Some(absolute) => absolute.to_owned(),
        None if is_within(text, &spec.zone) => text.to_owned(),
        None => format!("{text}.{}", spec.base_domain),
    }
}

fn is_within(name: &str, zone: &str) -> bool {
    name.strip_suffix(zone).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn check(name: &str, zone: &str) -> Result<(), String> {
    let label = |label: &str| {
        let plain = label.bytes().all(|octet| octet.is_ascii_alphanumeric() || octet == b'-');
        plain && (1..=LABEL_LEN_MAX).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
    };
    let host = name.strip_prefix("*.").unwrap_or(name);
    if name.len() > NAME_LEN_MAX || !host.split('.').all(label) {
        return Err("is no host name".to_owned());
    }
    if !is_within(name, zone) {
        return Err(format!("is not in the zone {zone}"));
    }
    if name == zone {
        return Err("is the zone itself, whose records are its keeper's".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::external_dns::spec::{Algorithm, RecordPolicy, TsigSpec};

    fn ask(key: &str, text: &str) -> (Vec<String>, usize) {
        let spec = ExternalDnsSpec {
            server: "192.0.2.53:53".parse().unwrap(),
            zone: "example.org".to_owned(),
            tsig: TsigSpec { name: "k".into(), algorithm: Algorithm::HmacSha256, secret_file: "/k".into() },
            policy: RecordPolicy::Sync,
            base_domain: "acme.example.org".to_owned(),
            ttl_s: 1,
            owner: "o".to_owned(),
            grace_s: 1,
            interval_s: 1,
            wanted: Vec::new(),
        };
        let (names, problems) = of(&[(key.to_owned(), text.to_owned())].into(), &spec);
        (names, problems.len())
    }

    #[test]
    fn cw8_names_are_short_long_or_wildcards() {
        for (key, text, expected) in [
            (HOSTNAME, "www.example.org", vec!["www.example.org"]),
            (HOSTNAME, "WWW.example.org., *.example.org,www.example.org", vec!["www.example.org", "*.example.org"]),
            (EXTERNAL_HOSTNAME, "foo", vec!["foo.acme.example.org"]),
            (EXTERNAL_HOSTNAME, "*.foo", vec!["*.foo.acme.example.org"]),
            (EXTERNAL_HOSTNAME, "*", vec!["*.acme.example.org"]),
            (EXTERNAL_HOSTNAME, "foo.acme.example.org", vec!["foo.acme.example.org"]),
            (EXTERNAL_HOSTNAME, "www.example.org.", vec!["www.example.org"]),
        ] {
            let expected: Vec<String> = expected.into_iter().map(str::to_owned).collect();
            assert_eq!(ask(key, text), (expected, 0), "{text}");
        }
        let long = format!("{}.example.org", "a".repeat(64));
        for bad in ["www.example.net", "example.org", "a..example.org", "-a.example.org", "a.*.example.org", &long] {
            assert_eq!(ask(HOSTNAME, bad), (vec![], 1), "{bad}");
        }
        assert_eq!(ask(EXTERNAL_HOSTNAME, "www.example.net."), (vec![], 1));
        assert_eq!(ask(EXTERNAL_HOSTNAME, "evilexample.org"), (vec!["evilexample.org.acme.example.org".to_owned()], 0));
    }
}
