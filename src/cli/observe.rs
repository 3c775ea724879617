//! `hostweave observe` and `monitor`: what happened, and what happens.

use serde_json::{Value, json};

use super::Session;
use super::complete;
use super::failure::Failure;
use super::output::{self, Format, cell, printable};
use crate::observe::events::EventType;

/// Arguments of `observe`. Flags that are given twice mean "or"; different flags mean "and".
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Go on with what happens
    #[arg(short, long)]
    follow: bool,
    /// How many past events [default: 20; 0 with --follow]
    #[arg(long, value_name = "N")]
    last: Option<usize>,
    /// Only events of this type, such as PortFaulted
    #[arg(long = "type", value_name = "TYPE", value_parser = event_type)]
    types: Vec<EventType>,
    /// Only events of this port, NAME or NAMESPACE/NAME
    #[arg(long, alias = "port-name", value_name = "NAME", add = complete::port())]
    pod: Vec<String>,
    /// Only events about this address
    #[arg(long, value_name = "ADDRESS")]
    ip: Vec<std::net::IpAddr>,
    /// Only warnings
    #[arg(long)]
    warnings: bool,
    /// The other events instead
    #[arg(long)]
    not: bool,
}

/// Arguments of `monitor`.
#[derive(clap::Args, Debug)]
pub struct MonitorArgs {
    /// What to show; everything if left out
    #[arg(value_enum)]
    topics: Vec<Topic>,
}

/// What `monitor` shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Topic {
    /// What happens to ports and objects.
    Events,
    /// Objects as they are changed, those that exist first.
    Objects,
}

fn event_type(word: &str) -> Result<EventType, String> {
    let named = |event_type: &&EventType| event_type.name().eq_ignore_ascii_case(word);
    EventType::ALL.iter().find(named).copied().ok_or_else(|| {
        let names: Vec<&str> = EventType::ALL.iter().map(|event_type| event_type.name()).collect();
        format!("{word:?} is not one of {}", names.join(", "))
    })
}

/// Shows events.
///
/// # Errors
/// The daemon's error, or the connection's.
pub fn observe(session: &Session, args: &Args) -> Result<(), Failure> {
    let severity = args.warnings.then_some("warning");
    let filter = json!({
        "types": args.types, "names": args.pod, "ips": args.ip, "namespace": session.global.namespace,
        "severity": severity, "not": args.not,
    });
    let mut client = session.connect()?;
    if !args.follow {
        let last = args.last.unwrap_or(20);
        let result = client.call("event.list", json!({"last": last, "filter": filter}))?;
        return result["events"].as_array().into_iter().flatten().try_for_each(|event| show(session, event));
    }
    client.call("event.subscribe", json!({"last": args.last.unwrap_or(0), "filter": filter}))?;
    loop {
        show(session, &client.notification()?)?;
    }
}

/// Shows everything as JSON lines.
///
/// # Errors
/// The daemon's error, or the connection's.
pub fn monitor(session: &Session, args: &MonitorArgs) -> Result<(), Failure> {
    let wanted = |topic| args.topics.is_empty() || args.topics.contains(&topic);
    let mut client = session.connect()?;
    if wanted(Topic::Events) {
        client.call("event.subscribe", json!({}))?;
    }
    if wanted(Topic::Objects) {
        client.call("object.watch", json!({}))?;
    }
    loop {
        output::print(&format!("{}\n", client.notification()?))?;
    }
}

fn show(session: &Session, event: &Value) -> Result<(), Failure> {
    match session.global.output {
        Format::Json => output::print(&format!("{event}\n")),
        Format::Yaml => output::print(&format!("---\n{}", output::yaml(event))),
        Format::Table | Format::Wide | Format::Name => output::print(&compact(event, session)),
    }
}

/// `TIME OBJECT TYPE MESSAGE`.
fn compact(event: &Value, session: &Session) -> String {
    if let Some(lost) = event.get("lost") {
        return format!("{lost} events were lost: this terminal is too slow\n");
    }
    let object = match (event["kind"].as_str(), event["namespace"].as_str(), event["name"].as_str()) {
        (Some(kind), Some(namespace), Some(name)) => format!("{kind} {namespace}/{name}"),
        (Some(kind), None, Some(name)) => format!("{kind} {name}"),
        _ => "daemon".to_owned(),
    };
    let message = printable(&cell(event, "/message"));
    let word = cell(event, "/type");
    let warning = event["severity"] == "warning" && session.global.color.on_stdout();
    let (start, end) = if warning { ("\u{1b}[33m", "\u{1b}[0m") } else { ("", "") };
    format!("{} {object:24} {start}{word:18}{end} {message}\n", cell(event, "/time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_of_events_are_known_by_name() {
        assert_eq!(event_type("portfaulted"), Ok(EventType::PortFaulted));
        assert!(event_type("nothing").unwrap_err().contains("PortFaulted"));
    }
}
