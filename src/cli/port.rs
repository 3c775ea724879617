//! `hostweave port …`: ports without YAML.

use serde_json::{Value, json};

use super::Session;
use super::complete;
use super::failure::Failure;
use super::objects::labels_of;
use super::output::{self, Format, cell, hint, print};
use crate::control::attach_args::Vmm;

/// What `describe` shows first, in this order.
const DESCRIBE_FIRST: &[&str] = &[
    "name",
    "namespace",
    "labels",
    "state",
    "reason",
    "adminState",
    "network",
    "addresses",
    "learned",
    "mac",
    "mtu",
    "gateways",
    "hostname",
    "backend",
    "mode",
    "socketPath",
    "incomingSocketPath",
    "queues",
    "device",
    "netns",
    "uid",
    "origin",
];

/// What to do with ports.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Add a port
    Add(AddArgs),
    /// List ports
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show a port
    Get(NameArgs),
    /// Show everything that is known about a port
    Describe(NameArgs),
    /// Delete a port
    #[command(visible_alias = "rm")]
    Delete(DeleteArgs),
    /// Set labels (KEY=VALUE) and remove them (KEY-)
    SetLabels(LabelArgs),
    /// Set the link up
    Up(NameArgs),
    /// Set the link down: no traffic passes
    Down(NameArgs),
    /// Show counters, with what was dropped and why
    Stats(StatsArgs),
    /// Print what attaches a VMM to a port, ready to paste
    AttachArgs(AttachArgs),
}

/// Arguments of `port add`.
#[derive(clap::Args, Debug)]
pub struct AddArgs {
    /// Name, or NAMESPACE/NAME
    name: String,
    /// Label, KEY=VALUE
    #[arg(short = 'l', long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// Network [default: default]
    #[arg(long, add = complete::network())]
    network: Option<String>,
    /// Fixed address; may be given several times
    #[arg(long, value_name = "ADDRESS")]
    ip: Vec<String>,
    /// Fixed MAC address
    #[arg(long)]
    mac: Option<String>,
    /// Whether hostweave listens or connects [default: listen]
    #[arg(long, value_parser = ["listen", "connect"])]
    mode: Option<String>,
    /// Socket path; needed with --mode connect
    #[arg(long, value_name = "PATH")]
    socket: Option<String>,
    /// A TAP device for a container, instead of a VM
    #[arg(long, value_name = "DEVICE", conflicts_with_all = ["mode", "socket", "queues", "group"])]
    tap: Option<String>,
    /// Network namespace file of the TAP device
    #[arg(long, value_name = "PATH", requires = "tap")]
    netns: Option<String>,
    /// Queue pairs, 1 to 16
    #[arg(long)]
    queues: Option<u32>,
    /// Group that may open the socket
    #[arg(long)]
    group: Option<String>,
    /// A port that exists already is no error
    #[arg(long)]
    may_exist: bool,
}

/// Arguments of `port list`.
#[derive(clap::Args, Debug)]
pub struct ListArgs {
    /// Every namespace
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only ports whose labels match, such as app=web
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    selector: Option<String>,
}

/// Arguments of commands for one port.
#[derive(clap::Args, Debug)]
pub struct NameArgs {
    /// Name, or NAMESPACE/NAME
    #[arg(add = complete::port())]
    name: String,
}

/// Arguments of `port delete`.
#[derive(clap::Args, Debug)]
pub struct DeleteArgs {
    /// Name, or NAMESPACE/NAME
    #[arg(add = complete::port())]
    name: String,
    /// A port that does not exist is no error
    #[arg(long)]
    if_exists: bool,
}

/// Arguments of `port set-labels`.
#[derive(clap::Args, Debug)]
pub struct LabelArgs {
    /// Name, or NAMESPACE/NAME
    #[arg(add = complete::port())]
    name: String,
    /// KEY=VALUE sets, KEY- removes
    #[arg(required = true, value_name = "LABEL")]
    labels: Vec<String>,
}

/// Arguments of `port stats`.
#[derive(clap::Args, Debug)]
pub struct StatsArgs {
    /// Name, or NAMESPACE/NAME; every port of the namespace if left out
    #[arg(add = complete::port())]
    name: Option<String>,
    /// Every namespace
    #[arg(short = 'A', long, conflicts_with = "name")]
    all_namespaces: bool,
    /// Only ports whose labels match
    #[arg(short = 'l', long, value_name = "SELECTOR", conflicts_with = "name")]
    selector: Option<String>,
}

/// Arguments of `port attach-args`.
#[derive(clap::Args, Debug)]
pub struct AttachArgs {
    /// Name, or NAMESPACE/NAME
    #[arg(add = complete::port())]
    name: String,
    /// Which VMM
    #[arg(long, value_enum, default_value = "qemu")]
    vmm: Vmm,
    /// For the VMM that a live migration on this host goes to
    #[arg(long)]
    incoming: bool,
}

/// Runs a command.
///
/// # Errors
/// The daemon's error, or the connection's.
pub fn run(session: &Session, command: Command) -> Result<(), Failure> {
    match command {
        Command::Add(args) => add(session, &args),
        Command::List(args) => list(session, &args),
        Command::Get(args) => get(session, &args.name),
        Command::Describe(args) => describe(session, &args.name),
        Command::Delete(args) => delete(session, &args),
        Command::SetLabels(args) => set_labels(session, &args),
        Command::Up(args) => link(session, &args.name, "up"),
        Command::Down(args) => link(session, &args.name, "down"),
        Command::Stats(args) => stats(session, &args),
        Command::AttachArgs(args) => attach_args(session, &args),
    }
}

fn add(session: &Session, args: &AddArgs) -> Result<(), Failure> {
    let (namespace, name) = session.qualified(&args.name);
    let result = session.call(
        "port.add",
        json!({
            "namespace": namespace, "name": name, "labels": labels_of(&args.labels)?, "network": args.network,
            "addresses": args.ip, "mac": args.mac, "mode": args.mode, "socketPath": args.socket, "tap": args.tap,
            "netns": args.netns, "queues": args.queues, "group": args.group, "mayExist": args.may_exist,
        }),
    )?;
    let port = &result["port"];
    if structured(session, port)? {
        return Ok(());
    }
    let word = if result["changed"] == true { "added" } else { "exists already" };
    let addresses = output::text(&port["addresses"]).replace(',', ", ");
    print(&format!("port {namespace}/{name} {word}: {addresses}, MAC {}\n", cell(port, "/mac")))?;
    if port["backend"] == "vhostUser" {
        hint(&format!("next: hostweave port attach-args {namespace}/{name} --vmm qemu"));
    } else {
        hint(&format!("next: hostweave port describe {namespace}/{name}"));
    }
    Ok(())
}

/// Prints a result for programs. `false` if people want it.
fn structured(session: &Session, value: &Value) -> Result<bool, Failure> {
    match session.global.output {
        Format::Json => output::print_json(value)?,
        Format::Yaml => output::print_yaml(value)?,
        Format::Name => print(&format!("port/{}\n", cell(value, "/name")))?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn list(session: &Session, args: &ListArgs) -> Result<(), Failure> {
    let namespace = session.listed_namespace(args.all_namespaces);
    let mut client = session.connect()?;
    let result = client.call("port.list", json!({"namespace": namespace, "selector": args.selector}))?;
    let ports = result["ports"].as_array().cloned().unwrap_or_default();
    match session.global.output {
        Format::Json => return output::print_json(&json!(ports)),
        Format::Yaml => return output::print_yaml(&json!(ports)),
        Format::Name => {
            return print(&ports.iter().map(|port| format!("port/{}\n", cell(port, "/name"))).collect::<String>());
        }
        _ => {}
    }
    if ports.is_empty() {
        let all = client.call("port.list", json!({}))?["ports"].as_array().map_or(0, Vec::len);
        match namespace {
            Some(namespace) if all > 0 && args.selector.is_none() => {
                hint(&format!("no ports in namespace {namespace}; there are {all} in others: use -A"));
            }
            _ => hint("no ports; add one: hostweave port add NAME"),
        }
        return Ok(());
    }
    print(&ports_table(&ports, namespace.is_none(), session.global.output == Format::Wide))
}

/// Ports as a table.
pub fn ports_table(ports: &[Value], namespaces: bool, wide: bool) -> String {
    let mut columns =
        vec![("NAME", "/name"), ("STATE", "/state"), ("IP", "/ip"), ("MAC", "/mac"), ("NETWORK", "/network")];
    if namespaces {
        columns.insert(0, ("NAMESPACE", "/namespace"));
    }
    if wide {
        columns.extend([
            ("ADDRESSES", "/addresses"),
            ("BACKEND", "/backend"),
            ("SOCKET", "/socketPath"),
            ("LABELS", "/labels"),
            ("ORIGIN", "/origin"),
        ]);
    }
    let header: Vec<&str> = columns.iter().map(|(title, _)| *title).collect();
    let rows = ports.iter().map(|port| columns.iter().map(|(_, pointer)| cell(port, pointer)).collect());
    output::table(&header, rows.collect())
}

fn get(session: &Session, name: &str) -> Result<(), Failure> {
    let result = session.call("port.get", session.named(name))?;
    if structured(session, &result["port"])? {
        return Ok(());
    }
    print(&ports_table(&[result["port"].clone()], true, session.global.output == Format::Wide))
}

/// `port describe`, also for `describe port`.
///
/// # Errors
/// The daemon's error, or the connection's.
pub fn describe(session: &Session, name: &str) -> Result<(), Failure> {
    let result = session.call("port.describe", session.named(name))?;
    if session.global.output == Format::Json {
        return output::print_json(&result);
    }
    if session.global.output == Format::Yaml {
        return output::print_yaml(&result);
    }
    print(&output::ordered(&result["port"], DESCRIBE_FIRST))?;
    print(&super::objects::events_text(&result["events"]))?;
    let (namespace, name) = session.qualified(name);
    if result["port"]["state"] == "faulted" {
        hint(&format!("what attaches a VMM: hostweave port attach-args {namespace}/{name} --vmm qemu"));
    }
    Ok(())
}

fn delete(session: &Session, args: &DeleteArgs) -> Result<(), Failure> {
    let (namespace, name) = session.qualified(&args.name);
    let params = json!({"namespace": namespace, "name": name, "ifExists": args.if_exists});
    let result = session.call("port.delete", params)?;
    if structured(session, &result)? {
        return Ok(());
    }
    let word = if result["deleted"] == true { "deleted" } else { "does not exist" };
    print(&format!("port {namespace}/{name} {word}\n"))?;
    hint("next: hostweave port list");
    Ok(())
}

fn set_labels(session: &Session, args: &LabelArgs) -> Result<(), Failure> {
    let (namespace, name) = session.qualified(&args.name);
    let mut labels = serde_json::Map::new();
    for label in &args.labels {
        match (label.split_once('='), label.strip_suffix('-')) {
            (Some((key, value)), _) => labels.insert(key.to_owned(), json!(value)),
            (None, Some(key)) => labels.insert(key.to_owned(), Value::Null),
            (None, None) => return Err(Failure::usage(format!("{label:?} is neither KEY=VALUE nor KEY-"))),
        };
    }
    let params = json!({"namespace": namespace, "name": name, "labels": labels});
    changed(session, &session.call("port.setLabels", params)?, "labelled", "hostweave port list -o wide")
}

fn link(session: &Session, name: &str, direction: &str) -> Result<(), Failure> {
    let result = session.call(&format!("port.{direction}"), session.named(name))?;
    changed(session, &result, &format!("set {direction}"), "hostweave port list")
}

/// What a method changed, and one next step.
fn changed(session: &Session, result: &Value, word: &str, next: &str) -> Result<(), Failure> {
    let port = &result["port"];
    if structured(session, port)? {
        return Ok(());
    }
    let word = if result["changed"] == true { word } else { "unchanged" };
    print(&format!("port {}/{} {word}\n", cell(port, "/namespace"), cell(port, "/name")))?;
    hint(&format!("next: {next}"));
    Ok(())
}

fn stats(session: &Session, args: &StatsArgs) -> Result<(), Failure> {
    let params = match &args.name {
        Some(name) => session.named(name),
        None => json!({"namespace": session.listed_namespace(args.all_namespaces), "selector": args.selector}),
    };
    let result = session.call("port.stats", params)?;
    let ports = result["ports"].as_array().cloned().unwrap_or_default();
    match session.global.output {
        Format::Json => return output::print_json(&json!(ports)),
        Format::Yaml => return output::print_yaml(&json!(ports)),
        _ => {}
    }
    let columns = [
        ("NAMESPACE", "/namespace"),
        ("NAME", "/name"),
        ("RX PACKETS", "/counters/receivedPackets"),
        ("RX BYTES", "/counters/receivedBytes"),
        ("TX PACKETS", "/counters/transmittedPackets"),
        ("TX BYTES", "/counters/transmittedBytes"),
        ("DROPPED", "/counters/dropped"),
        ("TX DROPPED", "/counters/transmitDropped"),
    ];
    let rows = ports.iter().map(|port| columns.iter().map(|(_, pointer)| cell(port, pointer)).collect());
    print(&output::table(&columns.map(|(title, _)| title), rows.collect()))
}

fn attach_args(session: &Session, args: &AttachArgs) -> Result<(), Failure> {
    let (namespace, name) = session.qualified(&args.name);
    let params = json!({"namespace": namespace, "name": name, "vmm": args.vmm, "incoming": args.incoming});
    let result = session.call("port.attachArgs", params)?;
    match session.global.output {
        Format::Json => output::print_json(&result),
        Format::Yaml => output::print_yaml(&result),
        _ => print(result["text"].as_str().unwrap_or_default()),
    }
}
