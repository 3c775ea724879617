//! `hostweave trace`: what would become of a packet, stage by stage, and why.

use std::path::PathBuf;

use serde_json::json;

use super::Session;
use super::failure::{Failure, code};
use super::output::{self, Format};
use crate::config::read_paths;
use crate::observe::trace::Trace;

/// Arguments of `trace`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Who sends: NAMESPACE/PORT, an address, gateway, or uplink; an address that no network of this host has sends from outside
    #[arg(long, value_name = "END")]
    from: String,
    /// Where to, such as shop/db-0:5432, 10.64.0.31:53/udp, gateway/icmp; a DHCP request is gateway:67/udp, GRE shop/db-0/47
    #[arg(long, value_name = "END[:L4PORT][/tcp|udp|icmp|sctp|arp|nd|rs|NUMBER]")]
    to: String,
    /// Network, where the ends do not say it
    #[arg(long, value_name = "NETWORK")]
    network: Option<String>,
    /// What would happen with this YAML, which is not applied: files, folders, or - for standard input
    #[arg(short, long = "filename", value_name = "FILE|DIR|-")]
    files: Vec<PathBuf>,
}

/// Shows what would become of a packet; exit code 1 if it would be dropped.
///
/// # Errors
/// There is no such port or packet, or the files are not valid.
pub fn run(session: &Session, args: &Args) -> Result<u8, Failure> {
    let sources = if args.files.is_empty() { Vec::new() } else { read_paths(&args.files)? };
    let params = json!({
        "from": args.from, "to": args.to, "namespace": session.global.namespace, "network": args.network,
        "sources": sources,
    });
    let result = session.call("trace.run", params)?;
    session.warn(&result["warnings"]);
    let trace: Trace = serde_json::from_value(result.clone())
        .map_err(|error| Failure::new(code::INTERNAL, format!("the daemon's answer makes no sense: {error}")))?;
    match session.global.output {
        Format::Json => output::print_json(&result)?,
        Format::Yaml => output::print_yaml(&result)?,
        _ => {
            let lines = trace.text();
            output::print(&lines.lines().map(|line| output::printable(line) + "\n").collect::<String>())?;
        }
    }
    Ok(if trace.allowed() { code::OK } else { code::NEGATIVE })
}
