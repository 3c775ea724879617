//! What shells complete: commands, options, and the names of objects, which the daemon is asked for at each TAB.
//!
//! `hostweave completion SHELL` prints a few lines of shell that call this program with `HOSTWEAVE_COMPLETE` set and the
//! words so far. Nothing is completed where the daemon cannot be reached or does not answer at once: a TAB shows no errors.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use clap::CommandFactory;
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use clap_complete::env::{CompleteEnv, Shells};
use serde_json::json;

use super::client::Client;
use super::{Cli, DEFAULT_NAMESPACE, Failure, paths};
use crate::config::Kind;

/// Set by the script, to the name of the shell.
const VARIABLE: &str = "HOSTWEAVE_COMPLETE";

/// How long a TAB waits for the daemon.
const PATIENCE: Duration = Duration::from_secs(1);

/// Answers the shell and ends the process, if this is what the program was called for.
pub fn answer() {
    CompleteEnv::with_factory(Cli::command).var(VARIABLE).complete();
}

/// What a shell has to read once to complete from then on.
///
/// # Errors
/// The shell is not known.
pub fn script(shell: clap_complete::Shell) -> Result<String, Failure> {
    let name = shell.to_string();
    let shells = Shells::builtins();
    let completer = shells.completer(&name).ok_or_else(|| Failure::usage(format!("no completion for {name}")))?;
    let mut text = Vec::new();
    completer.write_registration(VARIABLE, "hostweave", "hostweave", "hostweave", &mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// `NAME` or `NAMESPACE/NAME` of a port.
pub fn port() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| names(Kind::Port, current))
}

/// Name of a network.
pub fn network() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| names(Kind::Network, current))
}

/// Name of a NatPool.
pub fn nat_pool() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| names(Kind::NatPool, current))
}

/// `NAME` or `NAMESPACE/NAME` of a Service.
pub fn service() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| names(Kind::Service, current))
}

/// Name of a namespace.
pub fn namespace() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| names(Kind::Namespace, current))
}

/// `KIND`, or `KIND/NAME`.
pub fn kind() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let current = current.to_string_lossy();
        if let Some((word, name)) = current.split_once('/') {
            let found = word.parse().map(|kind| names(kind, OsStr::new(name))).unwrap_or_default();
            return found.into_iter().map(|candidate| candidate.add_prefix(format!("{word}/"))).collect();
        }
        let plurals = Kind::ALL.into_iter().map(Kind::plural);
        plurals.filter(|plural| plural.starts_with(&*current)).map(CompletionCandidate::new).collect()
    })
}

/// Name of an object whose kind stands before it.
pub fn name() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        // `get` and its like: the first word that is a kind is the kind.
        let kind = words().iter().skip(1).find_map(|word| word.parse::<Kind>().ok());
        kind.map(|kind| names(kind, current)).unwrap_or_default()
    })
}

/// Names that begin as `current` does: those of the chosen namespace, or with their namespace once a `/` was typed.
fn names(kind: Kind, current: &OsStr) -> Vec<CompletionCandidate> {
    let words = words();
    let chosen = option(&words, &["-n", "--namespace"]).unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
    let control = option(&words, &["--control"]).or_else(|| std::env::var("HOSTWEAVE_CONTROL").ok());
    let control = control.map_or_else(paths::find_control, PathBuf::from);
    let current = current.to_string_lossy();
    let list = || Client::connect(&control, PATIENCE)?.call("object.list", json!({"kind": kind}));
    let Ok(answer) = list() else { return Vec::new() };
    let mut found: Vec<String> = Vec::new();
    for item in answer["items"].as_array().into_iter().flatten() {
        let metadata = &item["object"]["metadata"];
        let Some(name) = metadata["name"].as_str() else { continue };
        let namespace = metadata["namespace"].as_str().filter(|_| kind.is_namespaced());
        match namespace {
            Some(namespace) if current.contains('/') => found.push(format!("{namespace}/{name}")),
            Some(namespace) if namespace != chosen => {}
            _ => found.push(name.to_owned()),
        }
    }
    found.retain(|name| name.starts_with(&*current));
    found.into_iter().map(CompletionCandidate::new).collect()
}

/// The words of the command line that is being completed, the program first. The shell hands them over after `--`.
fn words() -> Vec<String> {
    let words = std::env::args_os().skip_while(|word| word != "--").skip(1);
    words.map(|word| word.to_string_lossy().into_owned()).collect()
}

/// Value of an option, written as `-n NS`, `--namespace NS` or `--namespace=NS`.
fn option(words: &[String], names: &[&str]) -> Option<String> {
    words.iter().enumerate().find_map(|(at, word)| match word.split_once('=') {
        Some((name, value)) if names.contains(&name) => Some(value.to_owned()),
        _ if names.contains(&&**word) => words.get(at + 1).cloned(),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_found_however_they_are_written() {
        for line in
            ["hostweave port get -n shop we", "hostweave --namespace shop port", "hostweave --namespace=shop port"]
        {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            assert_eq!(option(&words, &["-n", "--namespace"]).as_deref(), Some("shop"), "{line}");
        }
        assert_eq!(option(&["hostweave".to_owned(), "-n".to_owned()], &["-n"]), None);
    }

    #[test]
    fn kinds_are_completed_without_a_daemon() {
        let values = |text: &str| -> Vec<String> {
            kind().complete(OsStr::new(text)).iter().map(|c| c.get_value().to_string_lossy().into_owned()).collect()
        };
        assert_eq!(values("po"), ["ports", "pods"]);
        assert_eq!(values("nonsense/"), [""; 0]);
    }
}
