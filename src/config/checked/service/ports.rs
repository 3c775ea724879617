//! L4 ports of a Service, and ranges of them (`hostweave.dev/port-range`).

use std::collections::{BTreeMap, HashSet};
use std::ops::RangeInclusive;

use super::{Form, ServicePort, Target};
use crate::config::checked::{Metadata, annotations, range};
use crate::config::names::{self, closest};
use crate::config::node::Path;
use crate::config::problem::Problem;
use crate::config::raw::port::Protocol;
use crate::config::raw::service as raw;

/// Ports of one Service.
const PORTS_MAX: usize = 256;

/// How ranges are written, for people.
const FORM: &str = "write NAME=FIRST-LAST or NAME=all, separated by commas; without NAME= where there is one port";

/// Checks the ports; those that have a problem are meaningless.
pub(super) fn check(
    metadata: &Metadata,
    raw: &raw::ServiceSpec,
    form: &Form,
    problems: &mut Vec<Problem>,
) -> Vec<ServicePort> {
    let path = Path::of("spec.ports");
    if raw.ports.is_empty() && matches!(form, Form::ClusterIp | Form::LoadBalancer) {
        let problem = Problem::key(&Path::of("spec"), "missing_field", format!("field {path} is missing"));
        problems.push(problem.label("ports are required here").help("for example [{port: 80, targetPort: 8080}]"));
    }
    if raw.ports.len() > PORTS_MAX {
        let message = format!("{path} has {} ports; at most {PORTS_MAX} are allowed", raw.ports.len());
        problems.push(Problem::value(&path, "out_of_range", message).label("too many"));
    }
    let several = raw.ports.len() > 1;
    let mut names = HashSet::new();
    let mut ports = Vec::new();
    for (index, port) in raw.ports.iter().enumerate().take(PORTS_MAX) {
        let path = path.index(index);
        check_name(port.name.as_deref(), several, &path, &mut names, problems);
        ports.push(port_of(port, &path, problems));
    }
    ranges(metadata, &mut ports, problems);
    check_overlap(&ports, &path, problems);
    ports
}

fn check_name<'a>(
    name: Option<&'a str>,
    several: bool,
    path: &Path,
    names: &mut HashSet<&'a str>,
    problems: &mut Vec<Problem>,
) {
    let name_path = path.key("name");
    let Some(name) = name.filter(|name| !name.is_empty()) else {
        if several {
            let problem = Problem::key(path, "missing_field", format!("field {name_path} is missing"));
            problems.push(problem.label("needs a name").help("each of several ports has a name of its own"));
        }
        return;
    };
    if let Err(reason) = names::check_dns_label(name) {
        let message = format!("{name_path} {name:?} {reason}");
        problems.push(Problem::value(&name_path, "invalid_name", message).label("not a valid name"));
    }
    if !names.insert(name) {
        let message = format!("{name_path} {name:?} is given twice");
        problems.push(Problem::value(&name_path, "duplicate", message).label("second time"));
    }
}

fn port_of(raw: &raw::ServicePort, path: &Path, problems: &mut Vec<Problem>) -> ServicePort {
    let number = |value: u32, path: &Path, problems: &mut Vec<Problem>| {
        range(Some(value), 1, 65_535, path, problems).and_then(|port| u16::try_from(port).ok()).unwrap_or(1)
    };
    let port = number(raw.port, &path.key("port"), problems);
    let target_path = path.key("targetPort");
    let target = match &raw.target_port {
        None => Target::Number(port),
        // Kubernetes takes 0 and empty text for nothing.
        Some(raw::TargetPort::Number(0)) => Target::Number(port),
        Some(raw::TargetPort::Name(name)) if name.is_empty() => Target::Number(port),
        Some(raw::TargetPort::Number(target)) => Target::Number(number(*target, &target_path, problems)),
        Some(raw::TargetPort::Name(name)) => {
            if let Err(reason) = names::check_port_name(name) {
                let message = format!("{target_path} {name:?} {reason}");
                problems.push(Problem::value(&target_path, "invalid_name", message).label("not the name of a port"));
            }
            Target::Named(name.clone())
        }
    };
    ServicePort {
        name: raw.name.clone().unwrap_or_default(),
        protocol: raw.protocol.unwrap_or(Protocol::Tcp),
        port,
        l4: port..=port,
        target,
    }
}

/// Widens the ports that the annotation names.
fn ranges(metadata: &Metadata, ports: &mut [ServicePort], problems: &mut Vec<Problem>) {
    let Some(text) = metadata.annotations.get(annotations::PORT_RANGE) else { return };
    let path = annotations::path_of(annotations::PORT_RANGE);
    let mut seen = HashSet::new();
    for part in text.split(',').map(str::trim) {
        let (name, written) = match part.split_once('=') {
            Some((name, range)) => (Some(name.trim()), range.trim()),
            None => (None, part),
        };
        let wrong = |message: String, label: String| {
            let message = format!("annotation {}: {message}", annotations::PORT_RANGE);
            Problem::value(&path, "invalid_range", message).label(label).help(FORM)
        };
        let Some(l4) = parse_range(written) else {
            problems.push(wrong(format!("{written:?} is not a range of L4 ports"), "not a range".to_owned()));
            continue;
        };
        let known: Vec<String> = ports.iter().map(|port| port.name.clone()).collect();
        let found = match name {
            Some(name) => ports.iter_mut().find(|port| port.name == name),
            None if ports.len() == 1 => ports.first_mut(),
            None => None,
        };
        let Some(port) = found else {
            let (message, label) = match name {
                Some(name) => (format!("the Service has no port {name:?}"), meant(name, &known)),
                None => (format!("{part:?} names no port, and there are {}", known.len()), "of which port?".to_owned()),
            };
            problems.push(wrong(message, label));
            continue;
        };
        if !seen.insert(port.name.clone()) {
            problems.push(wrong(format!("port {:?} has two ranges", port.name), "one for each port".to_owned()));
        } else if !l4.contains(&port.port) {
            let message = format!("port {} of the Service is outside of {}-{}", port.port, l4.start(), l4.end());
            problems.push(wrong(message, "outside".to_owned()));
        } else if port.target != Target::Number(port.port) {
            let message =
                "a backend gets a connection at the L4 port that the client asked for: targetPort means nothing";
            problems.push(wrong(message.to_owned(), "remove targetPort".to_owned()));
        } else {
            port.l4 = l4;
            port.target = Target::Same;
        }
    }
}

fn meant(name: &str, known: &[String]) -> String {
    let similar = closest(name, known.iter().map(String::as_str).filter(|name| !name.is_empty()));
    similar.map_or("not there".to_owned(), |similar| format!("did you mean {similar}?"))
}

/// `30000-32767` or `all`.
fn parse_range(text: &str) -> Option<RangeInclusive<u16>> {
    if text == "all" {
        return Some(1..=u16::MAX);
    }
    let (first, last) = text.split_once('-')?;
    let (first, last): (u16, u16) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (first > 0 && first <= last).then_some(first..=last)
}

/// No L4 port is declared twice.
fn check_overlap(ports: &[ServicePort], path: &Path, problems: &mut Vec<Problem>) {
    let mut taken: BTreeMap<(Protocol, u16), usize> = BTreeMap::new();
    let mut order: Vec<usize> = (0..ports.len()).collect();
    order.sort_by_key(|index| (*ports[*index].l4.start(), *index));
    for index in order {
        let port = &ports[index];
        // Of those that begin before, the one that reaches farthest is the last that was put in.
        let before = taken.range(..=(port.protocol, u16::MAX)).next_back();
        if let Some((&(protocol, last), &other)) = before
            && protocol == port.protocol
            && last >= *port.l4.start()
        {
            let (late, early) = (index.max(other), index.min(other));
            let message = format!(
                "{} {} of {path} is declared by {path}[{early}] and {path}[{late}]",
                format!("{protocol:?}").to_uppercase(),
                port.l4.start()
            );
            let path = path.index(late).key("port");
            problems.push(Problem::value(&path, "duplicate", message).label("second time"));
        }
        taken.insert((port.protocol, *port.l4.end()), index);
    }
}
