//! Whether somebody answers behind each Service.

use super::super::controller::{Controller, Snapshot};
use super::Finding;
use crate::fabric::balance::choice::BackendState;
use crate::fabric::balance::report::ServiceCounts;
use crate::fabric::balance::serving::Serving;

/// Services that a finding names.
const SERVICES_NAMED_MAX: usize = 5;

/// Looks at every Service that spreads connections.
pub fn examine(controller: &Controller, snapshot: &Snapshot) -> Vec<Finding> {
    findings(&controller.parts.fabric.service_counts(), snapshot.desired.services.len())
}

fn findings(services: &[ServiceCounts], total: usize) -> Vec<Finding> {
    let mut findings = Vec::new();
    let down = |service: &&ServiceCounts| service.serving == Some(Serving::Nowhere);
    let only = |service: &ServiceCounts, state| service.backends.iter().all(|(other, _)| *other == state);
    let mut group = |message: &str, help: &str, wanted: &dyn Fn(&ServiceCounts) -> bool| {
        let names: Vec<&str> =
            services.iter().filter(down).filter(|service| wanted(service)).map(|service| &*service.service).collect();
        if let Some(first) = names.first() {
            let help = help.replace("NAME", first);
            findings.push(Finding::error("service", format!("{message}: {}", named(&names)), help));
        }
    };
    let empty = |service: &ServiceCounts| service.backends.is_empty();
    group(
        "Services that select no port of their network",
        "compare spec.selector with the ports' labels: hostweave get service NAME -o yaml; hostweave get ports -o wide",
        &empty,
    );
    group("Services all of whose backends fail their checks", "see why: hostweave service backends NAME", &|service| {
        !empty(service) && only(service, BackendState::Unhealthy)
    });
    group(
        "Services whose backends do not run",
        "see: hostweave service backends NAME; hostweave port list",
        &|service| !empty(service) && only(service, BackendState::Stopped),
    );
    group("Services all of whose backends are drained", "hostweave service undrain BACKEND", &|service| {
        !empty(service) && only(service, BackendState::Drained)
    });
    group("Services none of whose backends takes connections", "see: hostweave service backends NAME", &|service| {
        let states = [BackendState::Unhealthy, BackendState::Stopped, BackendState::Drained];
        !states.into_iter().any(|state| only(service, state))
    });
    let partly: Vec<(&str, &[String])> = services
        .iter()
        .filter_map(|service| Some((&*service.service, service.serving.as_ref()?.gaps())))
        .filter(|(_, gaps)| !gaps.is_empty())
        .collect();
    if let Some((first, _)) = partly.first() {
        let texts: Vec<String> =
            partly.iter().map(|(name, gaps)| format!("{name} at {}", gaps.join(" and "))).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let message = format!("Services that nobody answers for at some of their L4 ports: {}", named(&texts));
        findings.push(Finding::error("service", message, format!("see: hostweave service backends {first}")));
    }
    if findings.is_empty() && total > 0 {
        findings.push(Finding::ok("service", format!("somebody answers behind each of {total} Services")));
    }
    findings
}

fn named(services: &[&str]) -> String {
    let more = services.len().saturating_sub(SERVICES_NAMED_MAX);
    let names = services.iter().take(SERVICES_NAMED_MAX).copied().collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{names} and {more} more") } else { names }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_that_nobody_answers_for_are_grouped_by_cause() {
        let service = |name: &str, serving, backends: &[(BackendState, usize)]| ServiceCounts {
            service: name.into(),
            serving,
            ejections: 0,
            connections: 0,
            backends: backends.to_vec(),
        };
        let services = [
            service("a/empty", Some(Serving::Nowhere), &[]),
            service("a/ill", Some(Serving::Nowhere), &[(BackendState::Unhealthy, 2)]),
            service("a/mixed", Some(Serving::Nowhere), &[(BackendState::Unhealthy, 1), (BackendState::Stopped, 1)]),
            service("a/new", None, &[(BackendState::Unchecked, 1)]),
            service("a/well", Some(Serving::Everywhere), &[(BackendState::Healthy, 1), (BackendState::Unhealthy, 1)]),
            service(
                "a/half",
                Some(Serving::NotAt(vec!["dns (53/UDP) over IPv6".into()])),
                &[(BackendState::Healthy, 1)],
            ),
        ];
        let found: Vec<String> = findings(&services, 5).into_iter().map(|finding| finding.message).collect();
        assert_eq!(
            found,
            [
                "Services that select no port of their network: a/empty",
                "Services all of whose backends fail their checks: a/ill",
                "Services none of whose backends takes connections: a/mixed",
                "Services that nobody answers for at some of their L4 ports: a/half at dns (53/UDP) over IPv6",
            ]
        );
        assert_eq!(findings(&services[3..5], 2)[0].message, "somebody answers behind each of 2 Services");
        assert!(findings(&[], 0).is_empty());
    }
}
