//! `hostweave policy`: what policies select, who may talk to whom, audit mode, recommendations.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::Session;
use super::failure::Failure;
use super::output::{self, Format, cell, print, text};
use crate::observe::time::rfc3339_nanos;

/// What to do with policies.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Show policies: what they select, their rules, whether they are enforced
    List,
    /// Show which ports may talk to which, as the policies in force decide; many ports are shown in groups
    Matrix(MatrixArgs),
    /// Have a policy only report what it would deny, or enforce it
    Audit(AuditArgs),
    /// Print NetworkPolicies that allow what the flow log has seen, and nothing else
    Recommend(RecommendArgs),
}

/// Arguments of `policy matrix`.
#[derive(clap::Args, Debug)]
pub struct MatrixArgs {
    /// Only this L4 port, of TCP unless --protocol says otherwise; says why, too
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Only tcp, udp, sctp or icmp
    #[arg(long, value_name = "PROTOCOL")]
    protocol: Option<String>,
    /// Only ports with these labels
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    selector: Option<String>,
}

/// Arguments of `policy audit`.
#[derive(clap::Args, Debug)]
pub struct AuditArgs {
    /// The policy: NAME, NAMESPACE/NAME, or cnp/NAME for a ClusterNetworkPolicy
    name: String,
    /// Whether it only reports
    #[arg(value_enum)]
    mode: Mode,
}

/// Whether a policy only reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Mode {
    /// What it would deny passes and is reported.
    On,
    /// It is enforced.
    Off,
}

/// Arguments of `policy recommend`.
#[derive(clap::Args, Debug)]
pub struct RecommendArgs {
    /// Only from the flow log not before this time: 2026-11-23T15:30:01Z, or how long ago, such as 5m; connections that there are count always
    #[arg(long, value_name = "TIME", value_parser = super::observe::moment)]
    since: Option<SystemTime>,
}

/// Runs the command.
///
/// # Errors
/// The daemon's error, or the connection's.
pub fn run(session: &Session, command: &Command) -> Result<(), Failure> {
    match command {
        Command::List => list(session),
        Command::Matrix(args) => matrix(session, args),
        Command::Audit(args) => audit(session, args),
        Command::Recommend(args) => recommend(session, args),
    }
}

fn list(session: &Session) -> Result<(), Failure> {
    let result = session.call("policy.list", json!({"namespace": session.global.namespace}))?;
    let policies = result["policies"].as_array().map(Vec::as_slice).unwrap_or_default();
    match session.global.output {
        Format::Json => output::print_json(&json!(policies)),
        Format::Yaml => output::print_yaml(&json!(policies)),
        Format::Name => policies.iter().try_for_each(|policy| print(&format!("{}\n", name(policy)))),
        _ if policies.is_empty() => {
            output::hint("no policies");
            Ok(())
        }
        _ => print(&list_table(policies)),
    }
}

/// `networkpolicy/shop/db`.
fn name(policy: &Value) -> String {
    let path = match policy["namespace"].as_str() {
        Some(namespace) => format!("{namespace}/{}", cell(policy, "/name")),
        None => cell(policy, "/name"),
    };
    format!("{}/{path}", cell(policy, "/kind").to_ascii_lowercase())
}

fn list_table(policies: &[Value]) -> String {
    let rows = policies.iter().map(|policy| {
        let is_cluster = policy["tier"].is_string();
        let tier = match is_cluster {
            true => format!("{} {}", cell(policy, "/tier"), cell(policy, "/priority")),
            false => "-".to_owned(),
        };
        let subject = cell(policy, if is_cluster { "/subject" } else { "/podSelector" });
        vec![
            cell(policy, "/namespace"),
            cell(policy, "/name"),
            tier,
            subject,
            cell(policy, "/ports"),
            // A direction that it does not isolate has no rules.
            cell(policy, "/ruleCounts/ingress"),
            cell(policy, "/ruleCounts/egress"),
            cell(policy, "/mode"),
            cell(policy, "/origin"),
        ]
    });
    let header = ["NAMESPACE", "NAME", "TIER", "SELECTS", "PORTS", "INGRESS-RULES", "EGRESS-RULES", "MODE", "ORIGIN"];
    output::table(&header, rows.collect())
}

fn matrix(session: &Session, args: &MatrixArgs) -> Result<(), Failure> {
    let params = json!({
        "namespace": session.global.namespace, "l4Port": args.port, "protocol": args.protocol, "selector": args.selector,
    });
    let result = session.call("policy.matrix", params)?;
    match session.global.output {
        Format::Json => output::print_json(&result),
        Format::Yaml => output::print_yaml(&result),
        Format::Wide => print(&pairs_table(&result)),
        _ => print(&matrix_table(&result)),
    }
}

/// Senders down, receivers across.
fn matrix_table(result: &Value) -> String {
    let groups: Vec<String> =
        result["groups"].as_array().into_iter().flatten().map(|group| cell(group, "/name")).collect();
    let pairs = result["pairs"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut header = vec!["FROM \\ TO"];
    header.extend(groups.iter().map(String::as_str));
    let rows = groups.iter().zip(pairs.chunks(groups.len().max(1))).map(|(from, row)| {
        let cells = row.iter().map(|pair| text(&pair["allows"]));
        std::iter::once(from.clone()).chain(cells).collect()
    });
    output::table(&header, rows.collect())
}

/// A row for each pair, with reasons where one L4 port was asked about.
fn pairs_table(result: &Value) -> String {
    let rows = result["pairs"].as_array().into_iter().flatten().map(|pair| {
        let egress = if pair["reason"].is_string() { cell(pair, "/reason") } else { cell(pair, "/egress") };
        vec![cell(pair, "/from"), cell(pair, "/to"), text(&pair["allows"]), egress, cell(pair, "/ingress")]
    });
    output::table(&["FROM", "TO", "ALLOWS", "EGRESS", "INGRESS"], rows.collect())
}

fn audit(session: &Session, args: &AuditArgs) -> Result<(), Failure> {
    let cluster = ["cnp/", "clusternetworkpolicy/", "clusternetworkpolicies/"];
    let (kind, name) = match cluster.iter().find_map(|prefix| args.name.strip_prefix(prefix)) {
        Some(name) => (Some("ClusterNetworkPolicy"), name),
        None => (None, args.name.as_str()),
    };
    let (namespace, name) = session.qualified(name);
    let on = args.mode == Mode::On;
    let params = json!({"kind": kind, "namespace": namespace, "name": name, "audit": on});
    let result = session.call("policy.audit", params)?;
    session.warn(&result["warnings"]);
    match session.global.output {
        Format::Json => return output::print_json(&result),
        Format::Yaml => return output::print_yaml(&result),
        _ => {}
    }
    let changed = result["changes"].as_array().and_then(|changes| changes.first()).cloned().unwrap_or_default();
    let object = match changed["namespace"].as_str() {
        Some(namespace) => format!("{} {namespace}/{name}", cell(&changed, "/kind")),
        None => format!("{} {name}", cell(&changed, "/kind")),
    };
    let what = if on { "only reports what it would deny" } else { "is enforced" };
    let again = if changed["action"] == "unchanged" { " already" } else { "" };
    print(&format!("{object}{again} {what}\n"))?;
    if on {
        output::hint("see what it would deny: hostweave observe --verdict AUDIT -f");
    }
    Ok(())
}

fn recommend(session: &Session, args: &RecommendArgs) -> Result<(), Failure> {
    let params = json!({"namespace": session.global.namespace, "since": args.since.map(rfc3339_nanos)});
    let result = session.call("policy.recommend", params)?;
    let policies = result["policies"].as_array().map(Vec::as_slice).unwrap_or_default();
    match session.global.output {
        Format::Json => output::print_json(&result)?,
        _ => {
            let documents: Vec<String> = policies.iter().map(output::yaml).collect();
            print(&documents.join("---\n"))?;
        }
    }
    for note in result["notes"].as_array().into_iter().flatten() {
        output::hint(&format!("Warning: {}", output::printable(&text(note))));
    }
    let flows = cell(&result, "/flows");
    match policies.len() {
        0 => output::hint(&format!("nothing to recommend: {flows} connections of these ports were seen")),
        _ => output::hint(&format!("from {flows} connections; try it with audit on: hostweave policy audit NAME on")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn senders_stand_down_and_receivers_across() {
        let result = json!({
            "groups": [{"name": "shop/a"}, {"name": "shop/b"}],
            "pairs": [
                {"from": "shop/a", "to": "shop/a", "allows": ["all"]},
                {"from": "shop/a", "to": "shop/b", "allows": ["tcp/80", "icmp"], "egress": "x", "ingress": "y"},
                {"from": "shop/b", "to": "shop/a", "allows": []},
                {"from": "shop/b", "to": "shop/b", "allows": ["all"]},
            ],
        });
        assert_eq!(
            matrix_table(&result),
            "FROM \\ TO   shop/a   shop/b\nshop/a      all      tcp/80,icmp\nshop/b      -        all\n"
        );
        assert!(pairs_table(&result).contains("shop/a   shop/b   tcp/80,icmp   x        y\n"));
    }
}
