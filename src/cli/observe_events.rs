//! `hostweave monitor`, and what `hostweave observe --type port` shows: what happens to ports and objects.

use serde_json::{Value, json};

use super::Session;
use super::failure::Failure;
use super::output::{self, Format, cell, printable};
use crate::observe::events::EventType;

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
    /// Connections that begin, end or are refused, and dropped packets.
    Flows,
}

/// An event's type by its name, whatever its case.
pub fn event_type(word: &str) -> Option<EventType> {
    EventType::ALL.iter().find(|event_type| event_type.name().eq_ignore_ascii_case(word)).copied()
}

/// Which events to show.
#[derive(Debug, Default)]
pub struct Wanted {
    /// Only these types.
    pub types: Vec<EventType>,
    /// Only of these objects.
    pub names: Vec<String>,
    /// Only about these addresses.
    pub ips: Vec<String>,
    /// Only warnings.
    pub warnings: bool,
    /// The other events instead.
    pub not: bool,
    /// Go on with what happens.
    pub follow: bool,
    /// How many past ones.
    pub last: usize,
}

/// Shows events.
///
/// # Errors
/// The daemon's error, or the connection's.
pub fn show_events(session: &Session, wanted: &Wanted) -> Result<(), Failure> {
    let severity = wanted.warnings.then_some("warning");
    let filter = json!({
        "types": wanted.types, "names": wanted.names, "ips": wanted.ips, "namespace": session.global.namespace,
        "severity": severity, "not": wanted.not,
    });
    let mut client = session.connect()?;
    if !wanted.follow {
        let result = client.call("event.list", json!({"last": wanted.last, "filter": filter}))?;
        return result["events"].as_array().into_iter().flatten().try_for_each(|event| show(session, event));
    }
    client.call("event.subscribe", json!({"last": wanted.last, "filter": filter}))?;
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
    for (topic, method) in
        [(Topic::Events, "event.subscribe"), (Topic::Objects, "object.watch"), (Topic::Flows, "flow.subscribe")]
    {
        if wanted(topic) {
            client.call(method, json!({}))?;
        }
    }
    loop {
        output::print(&format!("{}\n", client.notification()?))?;
    }
}

fn show(session: &Session, event: &Value) -> Result<(), Failure> {
    match session.global.output {
        Format::Json => output::print(&format!("{event}\n")),
        Format::Yaml => output::print(&format!("---\n{}", output::yaml(event))),
        _ => output::print(&compact(event, session)),
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
        assert_eq!(event_type("portfaulted"), Some(EventType::PortFaulted));
        assert_eq!(event_type("nothing"), None);
    }
}
