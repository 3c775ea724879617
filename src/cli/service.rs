//! `hostweave service`: who stands behind a Service, how each backend is and was, and who gets no new connections.

use serde_json::{Value, json};

use super::failure::Failure;
use super::output::{self, Format, cell, hint, print};
use super::service_list::{DescribeArgs, ListArgs};
use super::{Session, complete, service_list};

/// What to do with Services.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Show Services with their addresses and how many backends are ready
    List(ListArgs),
    /// Show everything that is known about a Service: addresses, name, backends, events
    Describe(DescribeArgs),
    /// Show the backends of a Service: how each is, its connections, and the last changes
    Backends(BackendsArgs),
    /// Send no new connections to a backend; those over TCP that it has go on
    Drain(DrainArgs),
    /// Send connections to a backend again
    Undrain(DrainArgs),
}

/// Arguments of `service backends`.
#[derive(clap::Args, Debug)]
pub struct BackendsArgs {
    /// Name of the Service, or NAMESPACE/NAME
    #[arg(add = complete::service())]
    name: String,
}

/// Arguments of `service drain` and `service undrain`.
#[derive(clap::Args, Debug)]
pub struct DrainArgs {
    /// The backend: a port, NAME or NAMESPACE/NAME, or the address of one that is no port here
    #[arg(add = complete::port())]
    backend: String,
    /// Of this Service only, NAME or NAMESPACE/NAME; of all Services if left out
    #[arg(long, value_name = "NAME", add = complete::service())]
    service: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// The daemon's error, or the connection's.
pub fn run(session: &Session, command: &Command) -> Result<(), Failure> {
    match command {
        Command::List(args) => service_list::list(session, args),
        Command::Describe(args) => service_list::describe(session, &args.name),
        Command::Backends(args) => backends(session, args),
        Command::Drain(args) => drain(session, args, true),
        Command::Undrain(args) => drain(session, args, false),
    }
}

fn backends(session: &Session, args: &BackendsArgs) -> Result<(), Failure> {
    let result = session.call("service.backends", session.named(&args.name))?;
    let backends = result["backends"].as_array().map(Vec::as_slice).unwrap_or_default();
    match session.global.output {
        Format::Json => return output::print_json(&result),
        Format::Yaml => return output::print_yaml(&result),
        Format::Name => {
            let names: Vec<String> =
                backends.iter().map(|backend| format!("{}\n", cell(backend, "/backend"))).collect();
            return print(&names.concat());
        }
        _ if backends.is_empty() => {
            hint(&format!("{} has no backends: its selector matches no port", cell(&result, "/service")))
        }
        _ => print(&table(backends))?,
    }
    let history = result["history"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !history.is_empty() {
        print(&format!("\n{}", changes(history)))?;
    }
    Ok(())
}

fn table(backends: &[Value]) -> String {
    let rows = backends.iter().map(|backend| {
        let address = cell(backend, "/address");
        let end = match backend["l4Port"].as_u64() {
            Some(port) if address.contains(':') => format!("[{address}]:{port}"),
            Some(port) => format!("{address}:{port}"),
            None => address,
        };
        let takes = match (backend["internal"] == true, backend["external"] == true) {
            (true, true) => "yes",
            (true, false) => "internal",
            (false, true) => "external",
            (false, false) => "no",
        };
        let state = cell(backend, "/state");
        let state = match (backend["drainedOf"].as_str(), backend["ejection"]["until"].as_str()) {
            (Some(of), _) => format!("{state} ({of})"),
            (_, Some(until)) => format!("{state} (until {until})"),
            _ => state,
        };
        vec![
            cell(backend, "/backend"),
            end,
            cell(backend, "/portName"),
            cell(backend, "/protocol"),
            cell(backend, "/weight"),
            state,
            takes.to_owned(),
            cell(backend, "/connections"),
            cell(backend, if backend["ejection"].is_object() { "/ejection/reason" } else { "/check/last/reason" }),
        ]
    });
    let header = ["BACKEND", "ADDRESS", "PORT", "PROTO", "WEIGHT", "STATE", "NEW", "CONNECTIONS", "LAST CHECK"];
    output::table(&header, rows.collect())
}

fn changes(history: &[Value]) -> String {
    let rows = history.iter().map(|change| {
        let or = |pointer: &str, none: &str| change[pointer].as_str().map_or(none.to_owned(), str::to_owned);
        vec![
            cell(change, "/time"),
            cell(change, "/backend"),
            cell(change, "/address"),
            cell(change, "/portName"),
            format!("{} -> {}", or("from", "new"), or("to", "gone")),
            cell(change, "/reason"),
        ]
    });
    output::table(&["CHANGED", "BACKEND", "ADDRESS", "PORT", "STATE", "WHY"], rows.collect())
}

fn drain(session: &Session, args: &DrainArgs, drained: bool) -> Result<(), Failure> {
    let full = |name: &str| {
        let (namespace, name) = session.qualified(name);
        format!("{namespace}/{name}")
    };
    let is_address = args.backend.parse::<std::net::IpAddr>().is_ok();
    let backend = if is_address { args.backend.clone() } else { full(&args.backend) };
    let service = args.service.as_deref().map(full);
    let method = if drained { "service.drain" } else { "service.undrain" };
    let result = session.call(method, json!({"backend": backend, "service": service}))?;
    match session.global.output {
        Format::Json => return output::print_json(&result),
        Format::Yaml => return output::print_yaml(&result),
        _ => {}
    }
    let of = service.as_ref().map_or("all Services".to_owned(), |name| format!("service {name}"));
    let state = match (drained, result["changed"] == true) {
        (true, true) => "drained",
        (true, false) => "drained already",
        (false, true) => "takes connections again",
        (false, false) => "was not drained",
    };
    print(&format!("{backend} of {of}: {state}\n"))?;
    if drained {
        let name = service.as_deref().unwrap_or("NAME");
        hint(&format!("see when its connections are gone: hostweave service backends {name}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_and_changes_as_people_read_them() {
        let backend = json!({
            "backend": "shop/web-0", "portName": "http", "protocol": "tcp", "address": "2001:db8::10", "l4Port": 8080,
            "weight": 1, "state": "drained", "internal": false, "external": false, "check": null, "connections": 7,
            "drainedOf": "this Service",
        });
        let text = table(&[backend]);
        assert!(
            text.contains(
                "shop/web-0   [2001:db8::10]:8080   http   tcp     1        drained (this Service)   no    7"
            ),
            "{text}"
        );
        let change = json!({
            "time": "2026-11-26T15:00:00Z", "backend": "shop/web-0", "address": "10.64.0.10", "portName": "http",
            "from": null, "to": "unhealthy", "reason": "connection refused",
        });
        let text = changes(&[change]);
        assert!(text.contains("new -> unhealthy   connection refused"), "{text}");
    }
}
