//! Runs NetworkPolicy cases that others wrote against the compiled tables and against real packets: `tests/conformance` is the way
//! to call it, `tests/conformance --help` says how.
//!
//! A case is a sequence of steps, each of which changes the world and says which new flows then pass. A file is read as a whole
//! and strictly before anything is judged ([`data`]); the world is kept in [`cluster`].

mod cluster;
mod data;
mod tables;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};

use cluster::Cluster;
use data::{Case, File, Step, Verdict};
use tables::Tables;

const HELP: &str = "\
Runs NetworkPolicy cases from JSON files and compares every verdict.

  tests/conformance [--tables|--packets] [--all] FILE.json...

  --tables   ask the compiled tables only
  --packets  send packets between in-process guests only
  --all      send packets for every step; without it, for a sample that covers every tag

One line a file: cases, verdicts, wrong. Exit 1 if a verdict is wrong or a file cannot be read, 2 for a wrong call.";

/// Wrong verdicts of a file that are told one by one.
const TOLD_MAX: usize = 20;

/// What was asked for.
#[derive(Default)]
struct Call {
    tables: bool,
    packets: bool,
    all: bool,
    files: Vec<PathBuf>,
}

/// What came of a file.
#[derive(Default)]
struct Outcome {
    cases: usize,
    verdicts: usize,
    wrong: Vec<String>,
}

fn main() -> ExitCode {
    let call = match parse(std::env::args().skip(1)) {
        Ok(Some(call)) => call,
        Ok(None) => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("tests/conformance: {error:#}\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    let mut good = true;
    for path in &call.files {
        good &= report(path, run_tables(path));
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// `None` when only help was wanted.
fn parse(arguments: impl Iterator<Item = String>) -> anyhow::Result<Option<Call>> {
    let mut call = Call::default();
    for argument in arguments {
        match argument.as_str() {
            "--tables" => call.tables = true,
            "--packets" => call.packets = true,
            "--all" => call.all = true,
            "-h" | "--help" => return Ok(None),
            option if option.starts_with('-') => bail!("there is no option {option}"),
            file => call.files.push(PathBuf::from(file)),
        }
    }
    if call.files.is_empty() {
        bail!("which files?");
    }
    // Without a choice it is both.
    if !call.tables && !call.packets {
        (call.tables, call.packets) = (true, true);
    }
    Ok(Some(call))
}

/// Tells what came of a file; whether it is as it must be.
fn report(path: &Path, outcome: anyhow::Result<Outcome>) -> bool {
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    match outcome {
        Ok(Outcome { cases, verdicts, wrong }) => {
            for text in wrong.iter().take(TOLD_MAX) {
                println!("  wrong: {text}");
            }
            if wrong.len() > TOLD_MAX {
                println!("  and {} more", wrong.len() - TOLD_MAX);
            }
            println!("{name}: {cases} cases, {verdicts} verdicts, {} wrong", wrong.len());
            wrong.is_empty()
        }
        Err(error) => {
            println!("{name}: error: {error:#}");
            false
        }
    }
}

/// Every verdict, asked of the compiled tables.
fn run_tables(path: &Path) -> anyhow::Result<Outcome> {
    let file = File::read(path)?;
    let mut outcome = Outcome::default();
    for case in &file.cases {
        let mut cluster = Cluster::new(&file, case).with_context(|| case.id.clone())?;
        let mut tables = Tables::default();
        for (number, step) in (1..).zip(&case.steps) {
            let place = format!("{} step {number}", case.id);
            let verdicts = advance(&file, case, step, &mut cluster).with_context(|| place.clone())?;
            tables.update(&cluster);
            for verdict in &verdicts {
                let [from, to] = cluster.ends(verdict).with_context(|| place.clone())?;
                if tables.allows(from, to, verdict) != verdict.allow {
                    outcome.wrong.push(format!("{place}: {verdict}"));
                }
            }
            outcome.verdicts += verdicts.len();
        }
        outcome.cases += 1;
    }
    Ok(outcome)
}

/// Does what a step does; returns what must then be so.
fn advance(file: &File, case: &Case, step: &Step, cluster: &mut Cluster) -> anyhow::Result<Vec<Verdict>> {
    for action in &step.actions {
        cluster.act(action).with_context(|| format!("{action:?}"))?;
    }
    step.verdicts(file, case)
}
