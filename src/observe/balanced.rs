//! `trace` of a packet to a Service: which backend it gets, and why.

use hostweave_nat::service::{Lookup, Services, Why};
use hostweave_switch::tables::OUTSIDE_VNI;

use super::recorder::Balanced;
use super::synthetic::Tuple;
use super::trace::{Scene, Stage};
use hostweave_switch::tables::mapped;

/// `10.96.0.20:5432 -> 10.64.0.31:5432 (shop/db-0; maglev 2/2 active)`, and whose address that is.
pub(super) fn stage(scene: &Scene<'_>, tuple: &Tuple, given: &Balanced) -> Stage {
    let services = &scene.plane.services;
    let Balanced { scope, to, why } = *given;
    let address = std::net::Ipv6Addr::from(to.0).to_canonical();
    let backend = Tuple { dst: address, dst_port: to.1, ..*tuple }.destination();
    let mut stage = Stage { stage: "dnat".to_owned(), result: "service".to_owned(), ..Stage::default() };
    let found = services.lookup(scope, mapped(tuple.dst), tuple.proto(), tuple.dst_port);
    let Lookup::Frontend(frontend) = found else { return Stage { detail: backend, ..stage } };
    let name = frontend.backend(tuple.dst_port, to.0, to.1).map_or("", |backend| &*backend.name);
    let why = match why {
        Why::Maglev => {
            let (active, listed) = frontend.counts();
            format!("maglev {active}/{listed} active")
        }
        Why::Affinity => "affinity".to_owned(),
    };
    stage.detail = format!("{} -> {backend} ({name}; {why})", tuple.destination());
    let spec = frontend.spec();
    let port = if spec.port_name.is_empty() { String::new() } else { format!(", port {}", spec.port_name) };
    stage.lines.push(format!("Service {}{port}", spec.service));
    if let Some(others) = scene.unchosen {
        stage.lines.extend(others.unchosen(&spec.service, &spec.port_name, tuple.dst.is_ipv4()));
    }
    stage
}

/// Who answers an echo request.
pub(super) fn echo(services: &Services, gateway: &str, vni: u32, tuple: &Tuple) -> String {
    let is_service = |scope| services.has_address(scope, mapped(tuple.dst));
    match is_service(vni) || is_service(OUTSIDE_VNI) {
        true => format!("echo: the Service at {} answers", tuple.dst),
        false => format!("echo: {gateway} answers"),
    }
}
