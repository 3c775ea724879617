//! `hostweave observe`: the flow log, live, past or from a file, with Hubble's flags.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::Session;
use super::failure::{Failure, code};
use super::observe_events::{self, Wanted};
use super::observe_filter::{Flags, Lists};
use super::output::{self, Format};
use crate::observe::events::EventType;
use crate::observe::flow::ExportEvent;
use crate::observe::flow_filter::{FlowFilter, Selection};
use crate::observe::flow_log::FLOWS_KEPT;
use crate::observe::flow_text;
use crate::observe::time::{parse_rfc3339, rfc3339_nanos};

/// Flows that are shown unless said otherwise.
const LAST_DEFAULT: usize = 20;

/// The word that asks for events of ports and objects instead of flows.
const PORT_EVENTS: &str = "port";

/// Arguments of `observe`. The same filter given again means "or"; different filters mean "and"; --not negates the next.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Go on with what happens
    #[arg(short, long)]
    follow: bool,
    /// How many past flows [default: 20; 0 with --follow; all with --since, --until or --input-file]
    #[arg(long, value_name = "N")]
    last: Option<usize>,
    /// How many of the oldest flows instead
    #[arg(long, value_name = "N", conflicts_with_all = ["last", "follow", "all"])]
    first: Option<usize>,
    /// All flows that are kept
    #[arg(long, conflicts_with = "last")]
    all: bool,
    /// Not before this time: 2026-11-23T15:30:01Z, or how long ago, such as 5m
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<SystemTime>,
    /// Not after this time
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<SystemTime>,
    /// Read flows as JSON lines from a file (- for standard input), such as hubble writes, instead of asking the daemon
    #[arg(long, value_name = "FILE", conflicts_with = "follow")]
    input_file: Option<PathBuf>,
    /// With --type port: only warnings
    #[arg(long)]
    warnings: bool,
    #[command(flatten)]
    filters: Flags,
}

/// A time, or how long ago.
///
/// # Errors
/// It is neither.
pub fn moment(text: &str) -> Result<SystemTime, String> {
    if let Some(time) = parse_rfc3339(text) {
        return Ok(time);
    }
    let ago: Duration = super::parse_duration(text)
        .map_err(|_| "write a time such as 2026-11-23T15:30:01Z, or how long ago, such as 5m".to_owned())?;
    SystemTime::now().checked_sub(ago).ok_or_else(|| "that is before there was time".to_owned())
}

/// Shows flows, or with `--type port` events.
///
/// # Errors
/// A filter makes no sense; the daemon's error, or the connection's; the file cannot be read.
pub fn observe(session: &Session, args: &Args) -> Result<(), Failure> {
    if let Some(wanted) = events_wanted(args)? {
        return observe_events::show_events(session, &wanted);
    }
    if args.warnings {
        return Err(Failure::usage("--warnings is about events of ports").help("add --type port"));
    }
    let lists = args.filters.lists(session.global.namespace.as_deref())?;
    let limited = args.all || args.since.is_some() || args.until.is_some() || args.input_file.is_some();
    let last = args.last.unwrap_or(match (args.follow, limited) {
        (_, true) => FLOWS_KEPT,
        (true, false) => 0,
        (false, false) => LAST_DEFAULT,
    });
    if let Some(file) = &args.input_file {
        return from_file(session, args, lists, file);
    }
    let time = |time: Option<SystemTime>| time.map(rfc3339_nanos);
    let params = json!({
        "last": args.first.is_none().then_some(last), "first": args.first, "since": time(args.since), "until": time(args.until),
        "whitelist": lists.whitelist, "blacklist": lists.blacklist,
    });
    let mut client = session.connect()?;
    if args.follow {
        client.call("flow.subscribe", params)?;
        loop {
            show(session, &[client.notification()?])?;
        }
    }
    let result = client.call("flow.list", params)?;
    show(session, result["flows"].as_array().map(Vec::as_slice).unwrap_or_default())
}

/// The events that are asked for, if it is events that are asked for.
fn events_wanted(args: &Args) -> Result<Option<Wanted>, Failure> {
    let types: Vec<&str> =
        args.filters.0.iter().filter(|given| given.flag == "type").map(|given| given.value.as_str()).collect();
    let is_event = |word: &&&str| **word == PORT_EVENTS || observe_events::event_type(word).is_some();
    match types.iter().filter(is_event).count() {
        0 => return Ok(None),
        count if count < types.len() => {
            let message = "events of ports and flows are two lists: ask for one of them";
            return Err(Failure::usage(message).help("call observe twice, or: hostweave monitor events flows"));
        }
        _ => {}
    }
    let values = |flag: &str| -> Vec<String> {
        args.filters.0.iter().filter(|given| given.flag == flag).map(|given| given.value.clone()).collect()
    };
    if let Some(other) = args.filters.0.iter().find(|given| !["type", "pod", "ip"].contains(&given.flag)) {
        let message = format!("--{} is about flows, and --type {} asks for events", other.flag, types[0]);
        return Err(Failure::usage(message).help("events have the filters --pod, --ip, --namespace and --warnings"));
    }
    let types: Vec<EventType> = types.iter().filter_map(|word| observe_events::event_type(word)).collect();
    Ok(Some(Wanted {
        types,
        names: values("pod"),
        ips: values("ip"),
        warnings: args.warnings,
        not: args.filters.0.iter().any(|given| given.not),
        follow: args.follow,
        last: args.last.unwrap_or(if args.follow { 0 } else { LAST_DEFAULT }),
    }))
}

/// Shows what a file has, with the same filters.
fn from_file(session: &Session, args: &Args, lists: Lists, file: &Path) -> Result<(), Failure> {
    let failed = |error: std::io::Error| {
        let name = file.display();
        let code = if error.kind() == std::io::ErrorKind::NotFound { code::NOT_FOUND } else { code::NEGATIVE };
        Failure::new(code, format!("{name} cannot be read: {error}"))
    };
    let compile = |list: Vec<FlowFilter>| -> Result<Vec<_>, Failure> {
        list.into_iter().map(|filter| filter.compile().map_err(|error| Failure::usage(error.to_string()))).collect()
    };
    let selection = Selection {
        whitelist: compile(lists.whitelist)?,
        blacklist: compile(lists.blacklist)?,
        since: args.since,
        until: args.until,
    };
    let reader: Box<dyn BufRead> = match file.to_str() {
        Some("-") => Box::new(std::io::stdin().lock()),
        _ => Box::new(BufReader::new(std::fs::File::open(file).map_err(failed)?)),
    };
    let mut kept = VecDeque::new();
    let mut left = args.first.unwrap_or(usize::MAX);
    for (number, line) in reader.lines().enumerate() {
        let line = line.map_err(failed)?;
        if line.trim().is_empty() {
            continue;
        }
        let Some(event) = read_line(&line) else {
            output::hint(&format!("Warning: {}:{}: this is no flow as JSON", file.display(), number + 1));
            continue;
        };
        if !wants(&selection, &event) {
            continue;
        }
        if event.flow.is_some() {
            let Some(after) = left.checked_sub(1) else { break };
            left = after;
        }
        match args.last {
            None => show(session, &[json!(event)])?,
            Some(last) => {
                kept.push_back(json!(event));
                if kept.len() > last {
                    kept.pop_front();
                }
            }
        }
    }
    show(session, kept.make_contiguous())
}

/// An `ExportEvent`, or a flow alone, which older Hubbles write.
fn read_line(line: &str) -> Option<ExportEvent> {
    let value: Value = serde_json::from_str(line).ok()?;
    if value.get("flow").is_some() || value.get("lost_events").is_some() {
        return serde_json::from_value(value).ok();
    }
    value.get("verdict")?;
    let time = value["time"].as_str().unwrap_or_default().to_owned();
    let node_name = value["node_name"].as_str().unwrap_or_default().to_owned();
    let flow = serde_json::from_value(value).ok()?;
    Some(ExportEvent { flow: Some(flow), time, node_name, ..ExportEvent::default() })
}

fn wants(selection: &Selection, event: &ExportEvent) -> bool {
    let in_time = parse_rfc3339(&event.time).is_none_or(|time| selection.in_time(time));
    in_time && event.flow.as_ref().is_none_or(|flow| selection.wants(flow))
}

/// Prints flows.
fn show(session: &Session, events: &[Value]) -> Result<(), Failure> {
    let typed = |event: &Value| serde_json::from_value::<ExportEvent>(event.clone()).unwrap_or_default();
    match session.global.output {
        Format::Json => events.iter().try_for_each(|event| output::print(&format!("{event}\n"))),
        Format::Yaml => events.iter().try_for_each(|event| output::print(&format!("---\n{}", output::yaml(event)))),
        Format::Name => {
            events.iter().try_for_each(|event| output::print(&format!("{}\n", output::cell(event, "/flow/uuid"))))
        }
        Format::Dict => events.iter().try_for_each(|event| {
            let block: Vec<String> = flow_text::dict(&typed(event)).lines().map(output::printable).collect();
            output::print(&format!("------------\n{}\n", block.join("\n")))
        }),
        Format::Table | Format::Wide if events.is_empty() => Ok(()),
        Format::Table | Format::Wide => {
            let rows = events.iter().map(|event| flow_text::row(&typed(event))).collect();
            output::print(&output::table(&flow_text::COLUMNS, rows))
        }
        Format::Compact => {
            let color = session.global.color.on_stdout();
            events.iter().try_for_each(|event| {
                let dropped = event["flow"]["verdict"] == "DROPPED" || event.get("lost_events").is_some();
                let (start, end) = if dropped && color { ("\u{1b}[31m", "\u{1b}[0m") } else { ("", "") };
                let line = output::printable(&flow_text::compact(&typed(event)));
                output::print(&format!("{start}{line}{end}\n"))
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_hubble_are_understood() {
        let line =
            r#"{"flow":{"time":"2023-01-01T00:00:00Z","verdict":"FORWARDED","unknown_field":1},"node_name":"a"}"#;
        assert_eq!(read_line(line).unwrap().flow.unwrap().verdict, "FORWARDED");
        let old =
            r#"{"time":"2023-01-01T00:00:00.5Z","verdict":"DROPPED","node_name":"a","l4":{"UDP":{"source_port":1}}}"#;
        let event = read_line(old).unwrap();
        assert_eq!((event.time.as_str(), event.flow.unwrap().ports()), ("2023-01-01T00:00:00.5Z", Some((1, 0))));
        assert!(read_line("{}").is_none() && read_line("nonsense").is_none());
    }

    #[test]
    fn times_are_absolute_or_ago() {
        assert_eq!(moment("1970-01-01T00:00:01Z"), Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(1)));
        let ago = SystemTime::now().duration_since(moment("5m").unwrap()).unwrap();
        assert!(ago > Duration::from_secs(290) && ago < Duration::from_secs(310));
        assert!(moment("yesterday").is_err());
    }
}
