//! `hostweave dns`: what the gateways answer.

use serde_json::{Value, json};

use super::Session;
use super::failure::{Failure, code};
use super::output::{self, Format, cell, print};

/// What to do with names.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Ask as a guest would, and say where the answer comes from; exit code 1 if there is none
    Query(QueryArgs),
    /// Show every record that guests of a network may see
    Records(RecordsArgs),
}

/// Arguments of `dns query`.
#[derive(clap::Args, Debug)]
pub struct QueryArgs {
    /// The whole name, such as web-0.shop.port.cluster.local, or an address
    #[arg(value_name = "NAME")]
    name: String,
    /// Type of record; A, or PTR for an address, if left out
    #[arg(value_name = "TYPE")]
    kind: Option<String>,
    /// Network of the guest
    #[arg(long, value_name = "NETWORK")]
    network: Option<String>,
}

/// Arguments of `dns records`.
#[derive(clap::Args, Debug)]
pub struct RecordsArgs {
    /// Network of the guests
    #[arg(long, value_name = "NETWORK")]
    network: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// The daemon's error, or the connection's.
pub fn run(session: &Session, command: &Command) -> Result<u8, Failure> {
    match command {
        Command::Query(args) => query(session, args),
        Command::Records(args) => records(session, args).map(|()| code::OK),
    }
}

fn query(session: &Session, args: &QueryArgs) -> Result<u8, Failure> {
    let params = json!({"name": args.name, "type": args.kind, "network": args.network});
    let result = session.call("dns.query", params)?;
    let answers = result["answers"].as_array().map(Vec::as_slice).unwrap_or_default();
    match session.global.output {
        Format::Json => output::print_json(&result)?,
        Format::Yaml => output::print_yaml(&result)?,
        _ => {
            if !answers.is_empty() {
                print(&table(answers))?;
            }
            output::hint(&source(&result, answers.is_empty()));
        }
    }
    Ok(if answers.is_empty() { code::NEGATIVE } else { code::OK })
}

/// `NXDOMAIN, says the zone (0.1 ms)`.
fn source(result: &Value, empty: bool) -> String {
    let code = match cell(result, "/code") {
        code if code == "NOERROR" && empty => "no record of this type".to_owned(),
        code => code,
    };
    let who = match result["source"].as_str() {
        Some("cluster" | "reverse") => "says the zone".to_owned(),
        Some("special") => "the same everywhere".to_owned(),
        Some("cache") => "from the cache".to_owned(),
        Some("upstream") => format!("says {}", cell(result, "/server")),
        _ => "no upstream server answered".to_owned(),
    };
    format!("{code}, {who} ({:.1} ms)", result["milliseconds"].as_f64().unwrap_or(0.0))
}

fn records(session: &Session, args: &RecordsArgs) -> Result<(), Failure> {
    let result = session.call("dns.records", json!({"network": args.network}))?;
    let records = result["records"].as_array().map(Vec::as_slice).unwrap_or_default();
    match session.global.output {
        Format::Json => output::print_json(&json!(records)),
        Format::Yaml => output::print_yaml(&json!(records)),
        _ => print(&table(records)),
    }
}

/// One row for each.
fn table(records: &[Value]) -> String {
    let row = |record: &Value| ["/name", "/ttl", "/type", "/data"].map(|field| cell(record, field)).to_vec();
    output::table(&["NAME", "TTL", "TYPE", "DATA"], records.iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_of_an_answer_is_said() {
        let result = json!({"code": "NOERROR", "source": "cluster", "milliseconds": 0.25});
        assert_eq!(source(&result, false), "NOERROR, says the zone (0.2 ms)");
        assert_eq!(source(&result, true), "no record of this type, says the zone (0.2 ms)");
        let result = json!({"code": "NXDOMAIN", "source": "upstream", "server": "192.0.2.53:53", "milliseconds": 12.0});
        assert_eq!(source(&result, true), "NXDOMAIN, says 192.0.2.53:53 (12.0 ms)");
        let result = json!({"code": "SERVFAIL", "source": "failed", "milliseconds": 4_500.0});
        assert_eq!(source(&result, true), "SERVFAIL, no upstream server answered (4500.0 ms)");
    }
}
