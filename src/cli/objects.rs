//! Objects of any kind: `apply`, `diff`, `get`, `describe`, `delete`.

use std::path::PathBuf;

use serde_json::{Map, Value, json};
use similar::TextDiff;

use super::Session;
use super::complete;
use super::failure::{Failure, code};
use super::output::{self, Format, cell, hint, print};
use crate::config::{Kind, read_paths};

/// Arguments of `apply`.
#[derive(clap::Args, Debug)]
pub struct ApplyArgs {
    /// Files, folders, or - for standard input
    #[arg(short, long = "filename", required = true, value_name = "FILE|DIR|-")]
    files: Vec<PathBuf>,
    /// Only say what would change
    #[arg(long, value_name = "server", num_args = 0..=1, require_equals = true, default_missing_value = "server", value_parser = ["server"])]
    dry_run: Option<String>,
    /// Also delete what matches -l, was applied at run time and is not in the files
    #[arg(long, requires = "selector")]
    prune: bool,
    /// Labels for --prune, such as app=web
    #[arg(short = 'l', long, value_name = "SELECTOR", requires = "prune")]
    selector: Option<String>,
}

/// Arguments of `diff`.
#[derive(clap::Args, Debug)]
pub struct DiffArgs {
    /// Files, folders, or - for standard input
    #[arg(short, long = "filename", required = true, value_name = "FILE|DIR|-")]
    files: Vec<PathBuf>,
}

/// Arguments of `get`.
#[derive(clap::Args, Debug)]
pub struct GetArgs {
    /// Kind, or KIND/NAME
    #[arg(add = complete::kind())]
    kind: String,
    /// Name, or NAMESPACE/NAME; every object if left out
    #[arg(add = complete::name())]
    name: Option<String>,
    /// Every namespace
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only objects whose labels match, such as app=web
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    selector: Option<String>,
}

/// Arguments of `describe`.
#[derive(clap::Args, Debug)]
pub struct DescribeArgs {
    /// Kind, or KIND/NAME
    #[arg(add = complete::kind())]
    kind: String,
    /// Name, or NAMESPACE/NAME
    #[arg(add = complete::name())]
    name: Option<String>,
}

/// Arguments of `delete`.
#[derive(clap::Args, Debug)]
pub struct DeleteArgs {
    /// Kind, or KIND/NAME
    #[arg(required_unless_present = "files", add = complete::kind())]
    kind: Option<String>,
    /// Name, or NAMESPACE/NAME
    #[arg(add = complete::name())]
    name: Option<String>,
    /// Delete what these files name
    #[arg(short, long = "filename", value_name = "FILE|DIR|-", conflicts_with_all = ["kind", "name"])]
    files: Vec<PathBuf>,
    /// What does not exist is no error
    #[arg(long)]
    if_exists: bool,
}

/// `KEY=VALUE` arguments as labels.
///
/// # Errors
/// One has no `=`.
pub fn labels_of(arguments: &[String]) -> Result<Map<String, Value>, Failure> {
    let pair = |label: &String| match label.split_once('=') {
        Some((key, value)) => Ok((key.to_owned(), json!(value))),
        None => Err(Failure::usage(format!("{label:?} is not a label: write KEY=VALUE"))),
    };
    arguments.iter().map(pair).collect()
}

/// Kind and name, however they were given.
fn target(session: &Session, kind: &str, name: Option<&str>) -> Result<(Kind, Option<(String, String)>), Failure> {
    let (word, name) = match (kind.split_once('/'), name) {
        (Some((kind, name)), None) => (kind, Some(name)),
        (Some(_), Some(_)) => return Err(Failure::usage("write KIND NAME or KIND/NAME, not both")),
        (None, name) => (kind, name),
    };
    let kind: Kind = word.parse().map_err(|unknown: crate::config::kind::UnknownKind| {
        let failure = Failure::usage(unknown.to_string());
        match unknown.similar {
            Some(similar) => failure.help(format!("did you mean {}?", similar.plural())),
            None => failure,
        }
    })?;
    let qualified = |name: &str| {
        let (namespace, name) = session.qualified(name);
        (namespace.to_owned(), name.to_owned())
    };
    Ok((kind, name.map(qualified)))
}

/// Kind, namespace and name of the one object that is meant.
pub fn one(session: &Session, kind: &str, name: Option<&str>) -> Result<(Kind, String, String), Failure> {
    match target(session, kind, name)? {
        (kind, Some((namespace, name))) => Ok((kind, namespace, name)),
        (kind, None) => Err(Failure::usage(format!("the name of the {kind} is missing"))),
    }
}

/// Applies files.
///
/// # Errors
/// Everything that is wrong with them; nothing was applied then.
pub fn apply(session: &Session, args: &ApplyArgs) -> Result<(), Failure> {
    let sources = read_paths(&args.files)?;
    let dry_run = args.dry_run.is_some();
    let params = json!({"sources": sources, "dryRun": dry_run, "pruneSelector": args.selector});
    let result = session.call("object.apply", params)?;
    session.warn(&result["warnings"]);
    print_changes(session, &result, dry_run)?;
    if dry_run && matches!(session.global.output, Format::Table | Format::Wide) {
        print(&impact_text(&result["impact"]))?;
    }
    let changed = |change: &Value| change["action"] != "unchanged";
    if !dry_run && result["changes"].as_array().is_some_and(|changes| changes.iter().any(changed)) {
        hint("next: hostweave status");
    }
    Ok(())
}

/// What a dry run says about the traffic that there is.
fn impact_text(impact: &Value) -> String {
    let mut text = String::new();
    let mut section = |title: &str, affected: &Value, verb: &str| {
        let flows = affected["flows"].as_array().map(Vec::as_slice).unwrap_or_default();
        let count = affected["count"].as_u64().unwrap_or(0);
        text += &format!("{title}, of which {count} would {verb}{}\n", if count > 0 { ":" } else { "" });
        for flow in flows {
            let [from, source, to, destination, protocol, why] =
                ["/from", "/source", "/to", "/destination", "/protocol", "/why"]
                    .map(|pointer| output::printable(&cell(flow, pointer)));
            text += &format!("  {from} {source} -> {to} {destination} {protocol}  {why}\n");
        }
        if count > flows.len() as u64 {
            text += &format!("  and {} more\n", count - flows.len() as u64);
        }
    };
    section(&format!("live connections: {}", cell(impact, "/connections")), &impact["broken"], "break");
    if impact["denied"].as_u64().is_some_and(|denied| denied > 0) {
        section(&format!("denied lately: {}", cell(impact, "/denied")), &impact["admitted"], "pass");
    }
    text
}

/// Says what was changed.
pub fn print_changes(session: &Session, result: &Value, dry_run: bool) -> Result<(), Failure> {
    match session.global.output {
        Format::Json => return output::print_json(result),
        Format::Yaml => return output::print_yaml(result),
        _ => {}
    }
    let gone = |namespace: &str| {
        let is = |change: &Value| {
            change["kind"] == "Namespace" && change["action"] == "deleted" && change["name"] == namespace
        };
        result["changes"].as_array().is_some_and(|changes| changes.iter().any(is))
    };
    let mut text = String::new();
    for change in result["changes"].as_array().into_iter().flatten() {
        let path = match change["namespace"].as_str() {
            Some(namespace) => format!("{namespace}/{}", cell(change, "/name")),
            None => cell(change, "/name"),
        };
        if session.global.output == Format::Name {
            text += &format!("{}/{}\n", cell(change, "/kind").to_lowercase(), cell(change, "/name"));
            continue;
        }
        let mut end = if dry_run { " (dry run)".to_owned() } else { String::new() };
        if change["action"] == "deleted" && change["namespace"].as_str().is_some_and(&gone) {
            end = format!(" with its namespace{end}");
        }
        text += &format!("{} {path} {}{end}\n", cell(change, "/kind"), cell(change, "/action"));
    }
    print(&text)
}

/// Shows what `apply` would change. Exit code 1 if anything.
///
/// # Errors
/// Everything that is wrong with the files.
pub fn diff(session: &Session, args: &DiffArgs) -> Result<u8, Failure> {
    // 1 means "differs" here, so that errors must be above.
    let result = (|| session.call("object.diff", json!({"sources": read_paths(&args.files)?})))();
    let result = result.map_err(|failure| Failure { code: failure.code.max(code::USAGE), ..failure })?;
    session.warn(&result["warnings"]);
    if session.global.output == Format::Json {
        output::print_json(&result)?;
    } else {
        let color = session.global.color.on_stdout();
        for difference in result["differences"].as_array().into_iter().flatten() {
            print(&unified(difference, color))?;
        }
    }
    Ok(if result["differs"] == true { code::NEGATIVE } else { code::OK })
}

fn unified(difference: &Value, color: bool) -> String {
    let side = |name: &str| difference[name].as_str().unwrap_or_default().to_owned();
    let (before, after, object) = (side("before"), side("after"), cell(difference, "/object"));
    let (old, new) = match difference["action"].as_str() {
        Some("created") => ("/dev/null".to_owned(), object),
        _ => (object.clone(), object),
    };
    let diff = TextDiff::from_lines(&before, &after);
    let text = diff.unified_diff().context_radius(3).header(&old, &new).to_string();
    if !color {
        return text;
    }
    let paint = |line: &str| match line.chars().next() {
        Some('+') => format!("\u{1b}[32m{line}\u{1b}[0m\n"),
        Some('-') => format!("\u{1b}[31m{line}\u{1b}[0m\n"),
        _ => format!("{line}\n"),
    };
    text.lines().map(paint).collect()
}

/// Shows objects.
///
/// # Errors
/// There is none such.
pub fn get(session: &Session, args: &GetArgs) -> Result<(), Failure> {
    let (kind, name) = target(session, &args.kind, args.name.as_deref())?;
    let mut client = session.connect()?;
    let namespace = if kind.is_namespaced() { session.listed_namespace(args.all_namespaces) } else { None };
    let items = match &name {
        Some((namespace, name)) => {
            vec![client.call("object.get", json!({"kind": kind, "namespace": namespace, "name": name}))?]
        }
        None => {
            let params = json!({"kind": kind, "namespace": namespace, "selector": args.selector});
            client.call("object.list", params)?["items"].as_array().cloned().unwrap_or_default()
        }
    };
    match session.global.output {
        Format::Json => {
            let objects: Vec<&Value> = items.iter().map(|item| &item["object"]).collect();
            // One object by name as itself, as kubectl has it; a list as an array.
            output::print_json(&if name.is_some() { json!(objects.first()) } else { json!(objects) })
        }
        Format::Yaml => {
            let texts: Vec<&str> = items.iter().filter_map(|item| item["yaml"].as_str()).collect();
            print(&texts.iter().map(|text| format!("{}\n", text.trim_end())).collect::<Vec<_>>().join("---\n"))
        }
        Format::Name => {
            let word = kind.as_str().to_lowercase();
            print(
                &items
                    .iter()
                    .map(|item| format!("{word}/{}\n", cell(item, "/object/metadata/name")))
                    .collect::<String>(),
            )
        }
        _ if items.is_empty() => {
            let place = namespace.map(|namespace| format!(" in namespace {namespace}")).unwrap_or_default();
            hint(&format!("no {}{place}", kind.plural()));
            Ok(())
        }
        _ => {
            let wide = session.global.output == Format::Wide;
            print(&objects_table(kind, &items, kind.is_namespaced() && namespace.is_none(), wide))
        }
    }
}

/// Objects of one kind as a table.
fn objects_table(kind: Kind, items: &[Value], namespaces: bool, wide: bool) -> String {
    if kind == Kind::Port {
        let ports: Vec<Value> = items.iter().map(|item| item["object"]["status"].clone()).collect();
        return super::port::ports_table(&ports, namespaces, wide);
    }
    let mut columns = vec![("NAME", "/object/metadata/name")];
    if namespaces {
        columns.insert(0, ("NAMESPACE", "/object/metadata/namespace"));
    }
    columns.extend_from_slice(match kind {
        Kind::Network => &[
            ("CIDRS", "/object/status/cidrs"),
            ("GATEWAYS", "/object/status/gateways"),
            ("MTU", "/object/status/mtu"),
            ("VNI", "/object/status/vni"),
            ("PORTS", "/object/status/ports"),
        ],
        Kind::Namespace => &[
            ("PORTS", "/object/status/ports"),
            ("POLICIES", "/object/status/policies"),
            ("DEFAULT", "/object/status/defaultPolicy"),
        ],
        Kind::NetworkPolicy => &[
            ("POD-SELECTOR", "/object/status/podSelector"),
            ("TYPES", "/object/status/policyTypes"),
            ("MODE", "/object/status/mode"),
            ("PORTS", "/object/status/ports"),
        ],
        Kind::ClusterNetworkPolicy => &[
            ("TIER", "/object/status/tier"),
            ("PRIORITY", "/object/status/priority"),
            ("SUBJECT", "/object/status/subject"),
            ("MODE", "/object/status/mode"),
            ("PORTS", "/object/status/ports"),
        ],
        Kind::Pod => &[("PORT", "/object/status/port")],
        Kind::NatPool => &[
            ("ADDRESSES", "/object/spec/addresses"),
            ("NETWORKS", "/object/status/networks"),
            ("PORTS", "/object/status/ports"),
            ("BLOCKS", "/object/status/blocks"),
        ],
        Kind::AddressPool => &[
            ("TYPE", "/object/spec/type"),
            ("ADDRESSES", "/object/spec/addresses"),
            ("IN-USE", "/object/status/inUse"),
        ],
        Kind::Service => &[
            ("TYPE", "/object/status/type"),
            ("CLUSTER-IP", "/object/status/clusterIPs"),
            ("EXTERNAL-IP", "/object/status/addresses"),
            ("PORT(S)", "/object/status/ports"),
            ("BACKENDS", "/object/status/backends"),
        ],
        Kind::EndpointSlice => &[
            ("SERVICE", "/object/status/service"),
            ("ADDRESSTYPE", "/object/addressType"),
            ("PORTS", "/object/status/ports"),
            ("ENDPOINTS", "/object/status/endpoints"),
        ],
        Kind::HostConfig | Kind::Port => &[],
    });
    if wide || kind == Kind::HostConfig {
        columns.push(("ORIGIN", "/origin"));
    }
    if wide {
        columns.push(("LABELS", "/object/metadata/labels"));
    }
    let header: Vec<&str> = columns.iter().map(|(title, _)| *title).collect();
    let rows = items.iter().map(|item| columns.iter().map(|(_, pointer)| cell(item, pointer)).collect());
    output::table(&header, rows.collect())
}

/// Shows everything that is known about an object.
///
/// # Errors
/// There is none such.
pub fn describe(session: &Session, args: &DescribeArgs) -> Result<(), Failure> {
    let (kind, namespace, name) = one(session, &args.kind, args.name.as_deref())?;
    if kind == Kind::Port {
        return super::port::describe(session, &format!("{namespace}/{name}"));
    }
    if kind == Kind::Service {
        return super::service_list::describe(session, &format!("{namespace}/{name}"));
    }
    let mut client = session.connect()?;
    let item = client.call("object.get", json!({"kind": kind, "namespace": namespace, "name": name}))?;
    let namespace = kind.is_namespaced().then_some(namespace);
    let filter = json!({"kind": kind, "namespace": namespace, "names": [name]});
    let events = client.call("event.list", json!({"last": 10, "filter": filter}))?["events"].take();
    match session.global.output {
        Format::Json => {
            output::print_json(&json!({"object": item["object"], "origin": item["origin"], "events": events}))
        }
        Format::Yaml => {
            output::print_yaml(&json!({"object": item["object"], "origin": item["origin"], "events": events}))
        }
        _ if matches!(kind, Kind::NetworkPolicy | Kind::ClusterNetworkPolicy) => {
            print(&super::describe_policy::describe(&item))?;
            print(&events_text(&events))
        }
        _ => {
            let mut object = item["object"].clone();
            object["origin"] = item["origin"].clone();
            print(&output::tree(&object, 0))?;
            print(&events_text(&events))
        }
    }
}

/// Events at the end of `describe`.
pub fn events_text(events: &Value) -> String {
    let events = events.as_array().cloned().unwrap_or_default();
    if events.is_empty() {
        return "Events: none\n".to_owned();
    }
    let row = |event: &Value| ["/time", "/type", "/message"].map(|pointer| cell(event, pointer)).to_vec();
    let table = output::table(&["TIME", "TYPE", "MESSAGE"], events.iter().map(row).collect());
    format!("Events:\n{}", table.lines().map(|line| format!("  {line}\n")).collect::<String>())
}

/// Deletes objects.
///
/// # Errors
/// One does not exist, or may not be deleted; nothing was deleted then.
pub fn delete(session: &Session, args: &DeleteArgs) -> Result<(), Failure> {
    let params = match &args.kind {
        Some(kind) => {
            let (kind, namespace, name) = one(session, kind, args.name.as_deref())?;
            json!({"kind": kind, "namespace": namespace, "name": name, "ifExists": args.if_exists})
        }
        None => json!({"sources": read_paths(&args.files)?, "ifExists": args.if_exists}),
    };
    let result = session.call("object.delete", params)?;
    session.warn(&result["warnings"]);
    print_changes(session, &result, false)?;
    hint("next: hostweave status");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_shown_as_a_unified_diff() {
        let difference =
            json!({"action": "updated", "object": "Port a/b", "before": "x: 1\ny: 2\n", "after": "x: 1\ny: 3\n"});
        assert_eq!(unified(&difference, false), "--- Port a/b\n+++ Port a/b\n@@ -1,2 +1,2 @@\n x: 1\n-y: 2\n+y: 3\n");
        let created = json!({"action": "created", "object": "Port a/b", "before": null, "after": "x: 1\n"});
        assert!(unified(&created, false).starts_with("--- /dev/null\n+++ Port a/b\n"));
    }

    #[test]
    fn labels_need_an_equals_sign() {
        assert_eq!(labels_of(&["a=b=c".to_owned()]).unwrap()["a"], "b=c");
        assert_eq!(labels_of(&["a".to_owned()]).unwrap_err().code, code::USAGE);
    }
}
