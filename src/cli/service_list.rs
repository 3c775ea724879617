//! `hostweave service list` and `hostweave service describe`.

use serde_json::{Value, json};

use super::failure::Failure;
use super::output::{self, Format, cell, hint, print};
use super::{Session, complete, objects};

/// Fields that `service describe` shows first, in this order.
const DESCRIBE_FIRST: &[&str] = &[
    "namespace",
    "name",
    "type",
    "network",
    "dnsName",
    "clusterIPs",
    "addresses",
    "ports",
    "backends",
    "selector",
    "reason",
];

/// Arguments of `service list`.
#[derive(clap::Args, Debug)]
pub struct ListArgs {
    /// Every namespace
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only Services whose labels match, such as app=web
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    selector: Option<String>,
    /// Only Services of this network
    #[arg(long, value_name = "NETWORK")]
    network: Option<String>,
}

/// Arguments of `service describe`.
#[derive(clap::Args, Debug)]
pub struct DescribeArgs {
    /// Name of the Service, or NAMESPACE/NAME
    #[arg(add = complete::name())]
    pub(super) name: String,
}

/// Lists Services.
///
/// # Errors
/// The daemon's error, or the connection's.
pub fn list(session: &Session, args: &ListArgs) -> Result<(), Failure> {
    let namespace = session.listed_namespace(args.all_namespaces);
    let params = json!({"namespace": namespace, "selector": args.selector, "network": args.network});
    let result = session.call("service.list", params)?;
    let services = result["services"].as_array().cloned().unwrap_or_default();
    match session.global.output {
        Format::Json => output::print_json(&json!(services)),
        Format::Yaml => output::print_yaml(&json!(services)),
        Format::Name => {
            let name =
                |service: &Value| format!("service/{}/{}\n", cell(service, "/namespace"), cell(service, "/name"));
            print(&services.iter().map(name).collect::<String>())
        }
        _ if services.is_empty() => {
            hint(&match namespace {
                Some(namespace) => format!("no Services in namespace {namespace} (-A for every namespace)"),
                None => "no Services: apply one (hostweave explain Service)".to_owned(),
            });
            Ok(())
        }
        format => print(&table(&services, args.all_namespaces, format == Format::Wide)),
    }
}

fn table(services: &[Value], namespaces: bool, wide: bool) -> String {
    let mut header = vec!["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "BACKENDS"];
    if namespaces {
        header.insert(0, "NAMESPACE");
    }
    if wide {
        header.extend(["NETWORK", "POOL", "ORIGIN", "LABELS"]);
    }
    let rows = services.iter().map(|service| {
        let external = match service["externalName"].as_str() {
            Some(name) => name.to_owned(),
            None => cell(service, "/addresses"),
        };
        let mut row = ["/name", "/type", "/clusterIPs"].map(|field| cell(service, field)).to_vec();
        row.extend([external, cell(service, "/ports"), cell(service, "/backends")]);
        if namespaces {
            row.insert(0, cell(service, "/namespace"));
        }
        if wide {
            row.extend(["/network", "/pools", "/origin", "/labels"].map(|field| cell(service, field)));
        }
        row
    });
    output::table(&header, rows.collect())
}

/// Shows one Service.
///
/// # Errors
/// There is none such; the daemon's error, or the connection's.
pub fn describe(session: &Session, name: &str) -> Result<(), Failure> {
    let result = session.call("service.get", session.named(name))?;
    match session.global.output {
        Format::Json => return output::print_json(&result),
        Format::Yaml => return output::print_yaml(&result),
        _ => {}
    }
    session.warn(&result["warnings"]);
    let mut service = result["service"].clone();
    let endpoints = service["endpoints"].take();
    print(&output::ordered(&service, DESCRIBE_FIRST))?;
    if let Some(endpoints) = endpoints.as_array().filter(|endpoints| !endpoints.is_empty()) {
        print(&endpoints_text(endpoints))?;
    }
    print(&objects::events_text(&result["events"]))
}

fn endpoints_text(endpoints: &[Value]) -> String {
    let rows = endpoints.iter().map(|endpoint| {
        let backend = match endpoint["targetRef"]["name"].as_str() {
            Some(_) => format!("{}/{}", cell(endpoint, "/targetRef/namespace"), cell(endpoint, "/targetRef/name")),
            None => cell(endpoint, "/hostname"),
        };
        let conditions = &endpoint["conditions"];
        let known = endpoint["state"].as_str().map(|state| state.replace('-', " "));
        let state = match (conditions["ready"] == true, conditions["terminating"] == true) {
            (true, _) => "ready",
            (false, true) => "terminating",
            (false, false) => "not ready",
        };
        let mut row = vec![backend, cell(endpoint, "/addresses")];
        row.extend(["/portName", "/port", "/weight"].map(|field| cell(endpoint, field)));
        row.push(known.unwrap_or_else(|| state.to_owned()));
        row
    });
    let table = output::table(&["BACKEND", "ADDRESS", "PORT-NAME", "PORT", "WEIGHT", "STATE"], rows.collect());
    format!("endpoints:\n{}", table.lines().map(|line| format!("  {line}\n")).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_of_every_form_have_a_row() {
        let services = [
            json!({"namespace": "shop", "name": "web", "type": "LoadBalancer", "clusterIPs": ["10.104.0.1"],
                   "addresses": ["203.0.113.0", "2001:db8::1"], "ports": ["80/TCP"], "backends": "2/3", "network": "default"}),
            json!({"namespace": "shop", "name": "ip", "type": "LoadBalancer", "addresses": ["203.0.113.1"], "mode": "direct",
                   "ports": ["all"], "backends": "shop/a", "pools": ["public"]}),
            json!({"namespace": "shop", "name": "db", "type": "ExternalName", "addresses": [], "externalName": "db.example.com"}),
        ];
        let text = table(&services, true, true);
        for part in [
            "shop        web    LoadBalancer   10.104.0.1   203.0.113.0,2001:db8::1   80/TCP    2/3",
            "203.0.113.1               all       shop/a",
            "db.example.com",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        let text = endpoints_text(&[
            json!({"addresses": ["10.64.0.2"], "conditions": {"ready": true}, "portName": "http", "port": 80, "weight": 100,
                   "targetRef": {"kind": "Port", "namespace": "shop", "name": "a"}}),
            json!({"addresses": ["192.0.2.1"], "conditions": {"ready": false, "terminating": true}}),
        ]);
        assert!(text.contains("shop/a    10.64.0.2   http        80     100      ready"), "{text}");
        assert!(text.contains("terminating"), "{text}");
    }
}
