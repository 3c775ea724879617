//! The command line. Each command is defined in one place: its arguments, its help and what it does stand in one file.
//!
//! Everything but `daemon`, `validate`, `explain`, `schema` and `completion` is a client of the control socket and
//! nothing more. Results go to stdout, everything else to stderr.

mod attach_netns;
mod bugreport;
mod capture;
pub(crate) mod client;
mod complete;
mod connectivity;
mod conntrack;
mod daemon;
mod demo;
mod describe_policy;
mod dns;
mod doctor;
mod edit;
pub mod failure;
mod nat;
mod objects;
mod observe;
mod observe_events;
mod observe_filter;
mod offline;
pub mod output;
mod ping;
mod policy;
mod port;
mod rpc;
mod service;
mod service_list;
mod status;
mod trace;
mod uplink;
mod whois;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use serde_json::{Value, json};

use crate::config::kind::DEFAULT_NAMESPACE;
use crate::control::paths;
use client::Client;
use failure::{Failure, code};
use output::{Color, Format};

/// The network of a hypervisor host in one binary.
#[derive(Parser, Debug)]
#[command(name = "hostweave", version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(clap::Args, Clone, Debug)]
pub struct Global {
    /// Control socket of the daemon
    #[arg(long, global = true, env = "HOSTWEAVE_CONTROL", value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// Namespace of the objects
    #[arg(short, long, global = true, value_name = "NS", add = complete::namespace())]
    pub namespace: Option<String>,
    /// How results look
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
    /// How long to wait for the daemon, such as 30, 30s or 5m
    #[arg(short = 'T', long, global = true, default_value = "30s", value_parser = parse_duration, value_name = "TIME")]
    pub timeout: Duration,
    /// Say more; twice: say everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Whether text is coloured
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN")]
    pub color: Color,
    /// How log lines look
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub log_format: daemon::LogFormat,
}

/// What to do.
#[derive(Subcommand, Debug)]
enum Command {
    /// Run the daemon
    Daemon(daemon::Args),
    /// Show the network at work, with guests of its own; needs no root, KVM or network card
    Demo(demo::Args),
    /// Say how the daemon is; exit code 1 if something is degraded
    Status(status::Args),
    /// Look for what is wrong with the host, and say what to do; exit code 1 if something does not work
    Doctor(doctor::Args),
    /// Work with ports, the NICs of VMs and containers
    #[command(subcommand)]
    Port(port::Command),
    /// Create and change objects, all or none
    Apply(objects::ApplyArgs),
    /// Show what apply would change; exit code 1 if anything
    Diff(objects::DiffArgs),
    /// Show objects
    Get(objects::GetArgs),
    /// Show everything that is known about an object
    Describe(objects::DescribeArgs),
    /// Delete objects, all or none
    Delete(objects::DeleteArgs),
    /// Change an object in $EDITOR
    Edit(edit::EditArgs),
    /// Check files without a daemon
    Validate(offline::ValidateArgs),
    /// Explain a kind of object or a field, such as Port.spec.backend
    Explain(offline::ExplainArgs),
    /// Say what would become of a packet, stage by stage, and why; exit code 1 if it would be dropped
    Trace(trace::Args),
    /// Send real probes through the packet path; exit code 1 if one was denied or not answered
    Ping(ping::Args),
    /// Write packets of ports as pcapng, with verdict and rule of each
    Capture(capture::Args),
    /// Show connections that began, ended or were refused, and dropped packets; with --type port what happened to ports
    Observe(observe::Args),
    /// Work with policies: who may talk to whom, audit mode, recommendations
    #[command(subcommand)]
    Policy(policy::Command),
    /// Show and forget connections
    #[command(subcommand)]
    Conntrack(conntrack::Command),
    /// Try what the network of the running host should do, with temporary ports and guests of its own
    #[command(subcommand)]
    Connectivity(connectivity::Command),
    /// Write what somebody else needs to help: versions, objects, counters, events, log; never secrets
    Bugreport(bugreport::Args),
    /// Ask for names as guests do
    #[command(subcommand)]
    Dns(dns::Command),
    /// Show Services and their backends, and drain these
    #[command(subcommand)]
    Service(service::Command),
    /// Show NAT mappings, how full the addresses are, and who had which L4 port
    #[command(subcommand)]
    Nat(nat::Command),
    /// Show the way out of the host
    #[command(subcommand)]
    Uplink(uplink::Command),
    /// Say whose an address is, or was: port, Service, network, NAT mapping
    Whois(whois::Args),
    /// Show everything that happens, as JSON lines
    Monitor(observe_events::MonitorArgs),
    /// Call a method of the control socket
    Rpc(rpc::Args),
    /// Print the JSON Schema of objects
    Schema(offline::SchemaArgs),
    /// Print completions for a shell
    Completion(offline::CompletionArgs),
    /// Write man pages
    #[command(hide = true)]
    Man(offline::ManArgs),
    /// Enter a network namespace for the daemon
    #[command(hide = true)]
    AttachNetns(attach_netns::Args),
}

/// What commands work with.
pub struct Session {
    /// Options of every command.
    pub global: Global,
}

impl Session {
    /// The control socket.
    pub fn control(&self) -> PathBuf {
        self.global.control.clone().unwrap_or_else(paths::find_control)
    }

    /// Connects to the daemon.
    ///
    /// # Errors
    /// It cannot be reached.
    pub fn connect(&self) -> Result<Client, Failure> {
        Client::connect(&self.control(), self.global.timeout)
    }

    /// Calls one method.
    ///
    /// # Errors
    /// The daemon's error, or the connection's.
    pub fn call(&self, method: &str, params: Value) -> Result<Value, Failure> {
        self.connect()?.call(method, params)
    }

    /// Namespace and name of what the user calls `name` or `namespace/name`.
    pub fn qualified<'a>(&'a self, name: &'a str) -> (&'a str, &'a str) {
        let given = self.global.namespace.as_deref();
        match name.split_once('/') {
            Some((namespace, name)) => (namespace, name),
            None => (given.unwrap_or(DEFAULT_NAMESPACE), name),
        }
    }

    /// Parameters that name an object in a namespace.
    pub fn named(&self, name: &str) -> Value {
        let (namespace, name) = self.qualified(name);
        json!({"namespace": namespace, "name": name})
    }

    /// The namespace that a list is limited to.
    pub fn listed_namespace(&self, all: bool) -> Option<&str> {
        if all { None } else { Some(self.global.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE)) }
    }

    /// Prints warnings that came with a result.
    pub fn warn(&self, warnings: &Value) {
        let warnings: Vec<crate::config::Diagnostic> = serde_json::from_value(warnings.clone()).unwrap_or_default();
        let color = self.global.color.on_stderr();
        warnings.iter().for_each(|warning| output::hint(warning.render(color).trim_end()));
    }
}

/// The program.
pub fn main() -> ExitCode {
    complete::answer();
    let matches = Cli::command().get_matches();
    let mut cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let chosen = matches.value_source("output") == Some(clap::parser::ValueSource::CommandLine);
    if matches!(cli.command, Command::Observe(_)) && !chosen {
        cli.global.output = Format::Compact;
    }
    let color = cli.global.color.on_stderr();
    match run(cli) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            output::hint(failure.diagnostics.render(color).trim_end());
            ExitCode::from(failure.code)
        }
    }
}

fn run(cli: Cli) -> Result<u8, Failure> {
    let session = Session { global: cli.global };
    let lines = matches!(session.global.output, Format::Compact | Format::Dict);
    if lines && !matches!(cli.command, Command::Observe(_)) {
        return Err(
            Failure::usage("-o compact and -o dict are for observe").help("use table, wide, json, yaml or name")
        );
    }
    let done = |result: Result<(), Failure>| result.map(|()| code::OK);
    match cli.command {
        Command::Daemon(args) => done(daemon::run(&session, args)),
        Command::Demo(args) => demo::run(&session, &args),
        Command::Status(args) => status::run(&session, &args),
        Command::Doctor(args) => doctor::run(&session, &args),
        Command::Port(command) => done(port::run(&session, command)),
        Command::Apply(args) => done(objects::apply(&session, &args)),
        Command::Diff(args) => objects::diff(&session, &args),
        Command::Get(args) => done(objects::get(&session, &args)),
        Command::Describe(args) => done(objects::describe(&session, &args)),
        Command::Delete(args) => done(objects::delete(&session, &args)),
        Command::Edit(args) => done(edit::edit(&session, &args)),
        Command::Validate(args) => done(offline::validate(&session, &args)),
        Command::Explain(args) => done(offline::explain(&args)),
        Command::Trace(args) => trace::run(&session, &args),
        Command::Ping(args) => ping::run(&session, &args),
        Command::Capture(args) => done(capture::run(&session, &args)),
        Command::Observe(args) => done(observe::observe(&session, &args)),
        Command::Policy(command) => done(policy::run(&session, &command)),
        Command::Conntrack(command) => done(conntrack::run(&session, &command)),
        Command::Connectivity(command) => connectivity::run(&session, &command),
        Command::Bugreport(args) => done(bugreport::run(&session, &args)),
        Command::Dns(command) => dns::run(&session, &command),
        Command::Service(command) => done(service::run(&session, &command)),
        Command::Nat(command) => done(nat::run(&session, &command)),
        Command::Uplink(command) => done(uplink::run(&session, &command)),
        Command::Whois(args) => done(whois::run(&session, &args)),
        Command::Monitor(args) => done(observe_events::monitor(&session, &args)),
        Command::Rpc(args) => done(rpc::run(&session, &args)),
        Command::Schema(args) => done(offline::schema(&args)),
        Command::Completion(args) => done(offline::completion(&args)),
        Command::Man(args) => done(offline::man(&args)),
        Command::AttachNetns(args) => done(attach_netns::run(args).map_err(Failure::from)),
    }
}

/// `30`, `30s`, `5m`, `1h`, `500ms`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| "write a number with a unit, such as 30s, 5m or 500ms".to_owned())?;
    let factor_ms = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(format!("{unit:?} is not one of ms, s, m, h")),
    };
    match number.checked_mul(factor_ms) {
        Some(0) | None => Err("must be more than nothing and less than forever".to_owned()),
        Some(ms) => Ok(Duration::from_millis(ms)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations() {
        for (text, ms) in [("30", 30_000), ("30s", 30_000), ("5m", 300_000), ("500ms", 500), ("1h", 3_600_000)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "s", "5x", "0", "-1", "99999999999999999999", "1.5s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_visible_command_has_help() {
        let command = Cli::command();
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            assert!(sub.get_about().is_some(), "{}", sub.get_name());
        }
    }
}
