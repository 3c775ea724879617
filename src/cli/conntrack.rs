//! `hostweave conntrack`: the table of connections.

use serde_json::{Value, json};

use super::Session;
use super::failure::Failure;
use super::output::{self, Format, cell, print};

/// What to do with connections.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Show connections
    List(ListArgs),
    /// Forget connections: their next packets are decided anew, as those of new ones
    Flush(FlushArgs),
}

/// Which connections. The same flag again means "or", different flags mean "and".
#[derive(clap::Args, Debug)]
pub struct Filter {
    /// Of a port at either end, NAME or NAMESPACE/NAME
    #[arg(long, value_name = "NAME")]
    pod: Vec<String>,
    /// With an address, or one of a range, at either end
    #[arg(long, value_name = "ADDRESS")]
    ip: Vec<String>,
    /// tcp, udp, sctp, icmp, icmpv6 or a number
    #[arg(long, value_name = "PROTOCOL")]
    protocol: Vec<String>,
    /// With an L4 port at either end
    #[arg(long, value_name = "PORT")]
    port: Vec<u16>,
    /// In a network
    #[arg(long, value_name = "NETWORK")]
    network: Vec<String>,
    /// TCP: opening, established, closing, time-wait, closed; others: unreplied, replied
    #[arg(long, value_name = "STATE")]
    state: Vec<String>,
}

/// Arguments of `conntrack list`.
#[derive(clap::Args, Debug)]
pub struct ListArgs {
    #[command(flatten)]
    filter: Filter,
    /// How many at most
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    limit: usize,
}

/// Arguments of `conntrack flush`.
#[derive(clap::Args, Debug)]
pub struct FlushArgs {
    #[command(flatten)]
    filter: Filter,
    /// Every connection
    #[arg(long)]
    all: bool,
}

impl Filter {
    fn to_json(&self, session: &Session) -> Value {
        let ports: Vec<String> =
            self.pod.iter().map(|name| session.qualified(name)).map(|(ns, name)| format!("{ns}/{name}")).collect();
        json!({
            "ports": ports, "addresses": self.ip, "protocols": self.protocol, "l4Ports": self.port,
            "networks": self.network, "states": self.state,
        })
    }
}

/// Runs the command.
///
/// # Errors
/// The daemon's error, or the connection's.
pub fn run(session: &Session, command: &Command) -> Result<(), Failure> {
    match command {
        Command::List(args) => list(session, args),
        Command::Flush(args) => flush(session, args),
    }
}

fn list(session: &Session, args: &ListArgs) -> Result<(), Failure> {
    let params = json!({"filter": args.filter.to_json(session), "limit": args.limit});
    let result = session.call("conntrack.list", params)?;
    let connections = result["connections"].as_array().map(Vec::as_slice).unwrap_or_default();
    match session.global.output {
        Format::Json => output::print_json(&json!(connections))?,
        Format::Yaml => output::print_yaml(&json!(connections))?,
        _ if connections.is_empty() => output::hint("no connections"),
        format => print(&table(connections, format == Format::Wide))?,
    }
    let total = result["total"].as_u64().unwrap_or(0);
    if total > connections.len() as u64 {
        output::hint(&format!("{} of {total} connections; show more with --limit", connections.len()));
    }
    Ok(())
}

/// One row for each. Wide: with names, addresses and what allowed it.
fn table(connections: &[Value], wide: bool) -> String {
    let mut header = vec!["NETWORK", "PROTO", "SOURCE", "DESTINATION", "STATE", "AGE", "IDLE", "EXPIRES"];
    if wide {
        header.extend(["SOURCE-PORT", "DESTINATION-PORT", "EGRESS", "INGRESS"]);
    } else {
        header.push("ALLOWED-BY");
    }
    let seconds = |connection: &Value, field: &str| format!("{}s", cell(connection, field));
    let rows = connections.iter().map(|connection| {
        let mut row = vec![
            cell(connection, "/network"),
            cell(connection, "/protocol"),
            end(connection, "source", wide),
            end(connection, "destination", wide),
            cell(connection, "/state"),
            seconds(connection, "/ageSeconds"),
            seconds(connection, "/idleSeconds"),
            seconds(connection, "/expiresSeconds"),
        ];
        let text = |side: &str| cell(connection, &format!("/{side}AllowedBy/text"));
        if wide {
            row.extend([cell(connection, "/source/port"), cell(connection, "/destination/port")]);
            row.extend([text("egress"), text("ingress")]);
        } else {
            row.push(allowed_by(connection));
        }
        row
    });
    output::table(&header, rows.collect())
}

/// The rules alone; `-` where no rule was needed.
fn allowed_by(connection: &Value) -> String {
    let sides = ["egressAllowedBy", "ingressAllowedBy"].map(|side| &connection[side]);
    let rules: Vec<String> = sides
        .iter()
        .filter(|side| side["by"] == "rule" || side["by"] == "builtin")
        .map(|side| cell(side, "/text"))
        .collect();
    if rules.is_empty() { "-".to_owned() } else { rules.join("; ") }
}

/// `shop/web-0:80`; wide, or without a port's name: `10.64.0.10:80`.
fn end(connection: &Value, side: &str, wide: bool) -> String {
    let end = &connection[side];
    let name = end["port"].as_str().filter(|name| !wide && !name.starts_with("network/"));
    let address = cell(end, "/address");
    let port = end["l4Port"].as_u64().map(|port| format!(":{port}")).unwrap_or_default();
    match name {
        Some(name) => format!("{name}{port}"),
        None if address.contains(':') && !port.is_empty() => format!("[{address}]{port}"),
        None => address + &port,
    }
}

fn flush(session: &Session, args: &FlushArgs) -> Result<(), Failure> {
    let params = json!({"filter": args.filter.to_json(session), "all": args.all});
    let result = session.call("conntrack.flush", params)?;
    match session.global.output {
        Format::Json => output::print_json(&result),
        Format::Yaml => output::print_yaml(&result),
        _ => {
            let count = result["flushed"].as_u64().unwrap_or(0);
            print(&format!("{count} connection{} flushed\n", if count == 1 { "" } else { "s" }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_name_ports_and_rules() {
        let connection = json!({
            "network": "default", "protocol": "tcp", "state": "established", "ageSeconds": 5, "idleSeconds": 1,
            "expiresSeconds": 7439, "source": {"port": "shop/web-0", "address": "2001:db8::1", "l4Port": 4000},
            "destination": {"port": "shop/db-0", "address": "2001:db8::2", "l4Port": 5432},
            "egressAllowedBy": {"by": "none", "text": "no policy selects it"},
            "ingressAllowedBy": {"by": "rule", "text": "shop/db rule 1 a.yaml:7"},
        });
        let text = table(std::slice::from_ref(&connection), false);
        assert!(
            text.contains("shop/web-0:4000   shop/db-0:5432") && text.contains("shop/db rule 1 a.yaml:7\n"),
            "{text}"
        );
        assert!(table(&[connection], true).contains("[2001:db8::1]:4000"));
    }
}
