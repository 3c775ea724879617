//! The annotation `hostweave.dev/health-check` (SEMANTICS SV2).

use std::ops::RangeInclusive;
use std::sync::Arc;

use hostweave_switch::wire::proto;
use serde::de::DeserializeOwned;

use super::{Service, ServicePort, Target};
use crate::config::checked::{Metadata, annotations};
use crate::config::kind::Kind;
use crate::config::node::{self, Source};
use crate::config::problem::Problem;
use crate::config::raw::health_check::{HealthCheck as Raw, HealthType};
use crate::config::raw::port::Protocol;
use crate::config::raw::service::TargetPort;
use crate::config::{de, names};
use crate::fabric::spec::{HealthCheck, HealthSpec};

/// From one question to the next, in milliseconds: where nothing is written, the least, and the most.
const INTERVAL_DEFAULT_MS: u32 = 5_000;
const INTERVAL_MIN_MS: u32 = 100;
const INTERVAL_MAX_MS: u32 = 3_600_000;

/// How long an answer is waited for, in milliseconds, where nothing is written and the interval is not shorter, and the least.
const TIMEOUT_DEFAULT_MS: u32 = 2_000;
const TIMEOUT_MIN_MS: u32 = 10;

/// Answers or failures in a row: where nothing is written, and the most.
const STREAK_DEFAULT: u8 = 2;
const FALL_DEFAULT: u8 = 3;
const STREAK_MAX: u8 = 100;

/// Characters of a path, of a name of a gRPC service, and octets of a datagram.
const TEXT_MAX: usize = 1024;
const DATAGRAM_MAX: usize = 512;

/// Statuses that are right, where nothing is written, as Kubernetes has it.
const STATUSES: RangeInclusive<u16> = 200..=399;

/// How it is written, for people.
const FORM: &str = "for example {type: http, path: /healthz, port: 8080, interval: 5s, timeout: 2s, rise: 2, fall: 3}; types are tcp, \
                    http and https (path, host, status), grpc (service), icmp, udp (send, expect)";

/// What is written, if anything is.
pub(super) fn check(metadata: &Metadata, problems: &mut Vec<Problem>) -> Option<HealthSpec> {
    let text = metadata.annotations.get(annotations::HEALTH_CHECK)?;
    let raw: Raw = read_yaml(text, annotations::HEALTH_CHECK, "needs a type", problems, &problem)?;
    let mut checker = Checker { raw: &raw, problems };
    checker.check_fields();
    let check = checker.kind();
    let interval_ms = checker
        .duration("interval", raw.interval.as_deref(), INTERVAL_MIN_MS..=INTERVAL_MAX_MS)
        .unwrap_or(INTERVAL_DEFAULT_MS);
    let timeout_ms = checker
        .duration("timeout", raw.timeout.as_deref(), TIMEOUT_MIN_MS..=interval_ms.max(TIMEOUT_MIN_MS))
        .unwrap_or(TIMEOUT_DEFAULT_MS.min(interval_ms));
    let l4 = checker.number("port", raw.port, 1..=65_535).and_then(|port| u16::try_from(port).ok());
    let rise = checker.streak("rise", raw.rise, STREAK_DEFAULT);
    let fall = checker.streak("fall", raw.fall, FALL_DEFAULT);
    Some(HealthSpec { check, l4, interval_ms, timeout_ms, rise, fall })
}

/// A check without an L4 port of its own asks at those of its protocol: there must be one, and none a range.
pub(super) fn check_ports(service: &Service, problems: &mut Vec<Problem>) {
    let Some(health) = &service.balancing.health else { return };
    if health.l4.is_some() || health.check == HealthCheck::Icmp {
        return;
    }
    let Some(spoken) = health.check.protocol() else { return };
    let word = if spoken == proto::UDP { "UDP" } else { "TCP" };
    let is_asked = |port: &&ServicePort| {
        matches!((port.protocol, spoken), (Protocol::Tcp, proto::TCP) | (Protocol::Udp, proto::UDP))
    };
    if !service.ports.iter().any(|port| is_asked(&port)) {
        let message = format!("field port is missing: the check speaks {word}, and no port of the Service does");
        problems.push(problem("missing_field", &message, "needs port"));
    }
    if let Some(port) = service.ports.iter().filter(is_asked).find(|port| port.target == Target::Same) {
        let message = format!("field port is missing: port {:?} of the Service is a range of L4 ports", port.name);
        problems.push(problem("missing_field", &message, "needs port"));
    }
}

fn problem(code: &'static str, message: &str, label: &str) -> Problem {
    let path = annotations::path_of(annotations::HEALTH_CHECK);
    let message = format!("annotation {}: {message}", annotations::HEALTH_CHECK);
    Problem::value(&path, code, message).label(label).help(FORM)
}

/// A YAML document within an annotation as its strict type; its problems stand at the annotation, as `problem` makes them. `needs`
/// says what an empty one lacks.
pub(super) fn read_yaml<T: DeserializeOwned>(
    text: &str,
    annotation: &str,
    needs: &str,
    problems: &mut Vec<Problem>,
    problem: &dyn Fn(&'static str, &str, &str) -> Problem,
) -> Option<T> {
    let source = Arc::new(Source { name: annotation.to_owned(), text: text.to_owned() });
    let documents = match node::parse(&source) {
        Ok(documents) => documents,
        Err(syntax) => {
            problems.push(problem("syntax", &syntax.message, "not YAML"));
            return None;
        }
    };
    let [document] = documents.as_slice() else {
        problems.push(problem("missing_field", "it is empty", needs));
        return None;
    };
    let (raw, found) = de::read::<T>(document, Kind::Service);
    problems.extend(found.into_iter().map(|found| problem(found.code, &found.message, &found.label)));
    raw
}

struct Checker<'a> {
    raw: &'a Raw,
    problems: &'a mut Vec<Problem>,
}

impl Checker<'_> {
    fn report(&mut self, code: &'static str, message: &str, label: &str) {
        self.problems.push(problem(code, message, label));
    }

    /// No field of another type.
    fn check_fields(&mut self) {
        let raw = self.raw;
        let http = matches!(raw.check_type, HealthType::Http | HealthType::Https);
        let udp = raw.check_type == HealthType::Udp;
        for (written, belongs, field) in [
            (raw.path.is_some(), http, "path"),
            (raw.host.is_some(), http, "host"),
            (raw.status.is_some(), http, "status"),
            (raw.service.is_some(), raw.check_type == HealthType::Grpc, "service"),
            (raw.send.is_some(), udp, "send"),
            (raw.expect.is_some(), udp, "expect"),
            (raw.port.is_some(), raw.check_type != HealthType::Icmp, "port"),
        ] {
            if written && !belongs {
                let name = format!("{:?}", raw.check_type).to_lowercase();
                self.report("conflict", &format!("{field} has no meaning with type {name}"), "remove it");
            }
        }
    }

    fn kind(&mut self) -> HealthCheck {
        let raw = self.raw;
        match raw.check_type {
            HealthType::Tcp => HealthCheck::Tcp,
            HealthType::Icmp => HealthCheck::Icmp,
            HealthType::Http | HealthType::Https => HealthCheck::Http {
                tls: raw.check_type == HealthType::Https,
                path: self.path(),
                host: self.host(),
                statuses: self.statuses(),
            },
            HealthType::Grpc => HealthCheck::Grpc { service: self.service() },
            HealthType::Udp => HealthCheck::Udp {
                send: self.octets("send", raw.send.as_deref()),
                expect: self.octets("expect", raw.expect.as_deref()),
            },
        }
    }

    /// A path that cannot become anything else in a request line (RFC 9112 §3.2.1).
    fn path(&mut self) -> String {
        let path = self.raw.path.as_deref().unwrap_or("/");
        let visible = path.bytes().all(|octet| octet.is_ascii_graphic() && octet != b'#');
        if !path.starts_with('/') || !visible || path.len() > TEXT_MAX {
            let message =
                format!("path {path:?} must begin with / and have at most {TEXT_MAX} visible ASCII characters");
            self.report("invalid_path", &message, "not a path");
        }
        path.to_owned()
    }

    fn host(&mut self) -> Option<String> {
        let host = self.raw.host.as_deref()?;
        let plain = host.parse::<std::net::IpAddr>().is_ok();
        if !plain && let Err(reason) = names::check_dns_subdomain(&host.to_ascii_lowercase()) {
            self.report("invalid_name", &format!("host {host:?} {reason}"), "not a host");
        }
        Some(host.to_owned())
    }

    fn service(&mut self) -> String {
        let service = self.raw.service.as_deref().unwrap_or_default();
        if service.len() > TEXT_MAX || !service.bytes().all(|octet| octet.is_ascii_graphic()) {
            self.report("invalid_name", &format!("service {service:?} is no name of a gRPC service"), "not a name");
        }
        service.to_owned()
    }

    fn statuses(&mut self) -> RangeInclusive<u16> {
        let statuses = match &self.raw.status {
            None => return STATUSES,
            Some(TargetPort::Number(status)) => u16::try_from(*status).ok().map(|status| status..=status),
            Some(TargetPort::Name(text)) => {
                let (first, last) = text.split_once('-').unwrap_or((text, text));
                let parsed = first.trim().parse().ok().zip(last.trim().parse().ok());
                parsed.map(|(first, last): (u16, u16)| first..=last)
            }
        };
        let valid = |statuses: &RangeInclusive<u16>| {
            *statuses.start() >= 100 && *statuses.end() <= 599 && statuses.start() <= statuses.end()
        };
        statuses.filter(valid).unwrap_or_else(|| {
            self.report("out_of_range", "status must be one of 100 to 599 or a range of them: 200-399", "not a status");
            STATUSES
        })
    }

    /// Text, or octets in hexadecimal.
    fn octets(&mut self, field: &str, text: Option<&str>) -> Vec<u8> {
        let text = text.unwrap_or_default();
        let octets = match text.strip_prefix("hex:") {
            None => Some(text.as_bytes().to_vec()),
            Some(hex) => hex_octets(hex),
        };
        match octets {
            Some(octets) if octets.len() <= DATAGRAM_MAX => octets,
            Some(_) => {
                self.report("out_of_range", &format!("{field} has more than {DATAGRAM_MAX} octets"), "too long");
                Vec::new()
            }
            None => {
                self.report("wrong_value", &format!("{field} {text:?} is not hexadecimal"), "not hexadecimal");
                Vec::new()
            }
        }
    }

    fn number(&mut self, field: &str, value: Option<u32>, allowed: RangeInclusive<u32>) -> Option<u32> {
        let value = value?;
        if allowed.contains(&value) {
            return Some(value);
        }
        let (least, most) = (allowed.start(), allowed.end());
        let message = format!("{field} {value} is out of range: {least} to {most} are allowed");
        self.report("out_of_range", &message, &format!("{field}: {least} to {most}"));
        None
    }

    fn streak(&mut self, field: &str, value: Option<u32>, default: u8) -> u8 {
        let value = self.number(field, value, 1..=u32::from(STREAK_MAX));
        value.and_then(|value| u8::try_from(value).ok()).unwrap_or(default)
    }

    fn duration(&mut self, field: &str, text: Option<&str>, allowed: RangeInclusive<u32>) -> Option<u32> {
        let text = text?;
        let Some(ms) = milliseconds(text) else {
            let message = format!("{field} {text:?} is not a time such as 5s, 500ms or 1m");
            self.report("wrong_value", &message, "not a time");
            return None;
        };
        if !allowed.contains(&ms) {
            let message =
                format!("{field} {text} is out of range: {}ms to {}ms are allowed", allowed.start(), allowed.end());
            self.report("out_of_range", &message, &format!("{field}: at most {}ms", allowed.end()));
            return None;
        }
        Some(ms)
    }
}

/// `5s`, `500ms` or `1m`.
pub(super) fn milliseconds(text: &str) -> Option<u32> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let factor = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        _ => return None,
    };
    number.parse::<u32>().ok()?.checked_mul(factor)
}

fn hex_octets(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    let octet = |pair: &[u8]| match pair {
        [high, low] => {
            let digit = |octet: &u8| char::from(*octet).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
            Some(digit(high)? << 4 | digit(low)?)
        }
        _ => None,
    };
    digits.map(octet).collect()
}
