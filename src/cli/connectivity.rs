//! `hostweave connectivity`: whether the network of the running host does what it should.

use std::path::PathBuf;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::Session;
use super::failure::{Failure, code};
use super::output::{self, Format, hint, print};
use crate::connectivity::{self, Guests, Report, junit};
use crate::guests::board::{Outcome, Step};

/// What to do about connectivity.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Try the running host with temporary ports and guests of its own; exit code 1 if something does not work
    Test(TestArgs),
}

/// Arguments of `connectivity test`.
#[derive(clap::Args, Debug)]
pub struct TestArgs {
    /// What is attached to the ports
    #[arg(long, value_enum, default_value_t, value_name = "GUESTS")]
    guests: Guests,
    /// Also write the result as JUnit XML
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

/// Tries the running host: DHCP, ping, TCP, UDP, names, policy, isolation, the way out. Whatever happens, what was made for
/// it is removed again.
///
/// # Errors
/// The daemon cannot be reached, or refuses the objects of the test; the file cannot be written.
pub fn run(session: &Session, command: &Command) -> Result<u8, Failure> {
    let Command::Test(args) = command;
    let lines = !matches!(session.global.output, Format::Json | Format::Yaml);
    let began = SystemTime::now();
    let report = connectivity::run(session.control(), args.guests, !lines)?;
    match session.global.output {
        Format::Json => output::print_json(&result(&report))?,
        Format::Yaml => output::print_yaml(&result(&report))?,
        _ => print(&report.summary)?,
    }
    if let Some(path) = &args.junit {
        let written = std::fs::write(path, junit::document(&report, args.guests, began));
        written.map_err(|error| Failure::new(code::NEGATIVE, format!("cannot write {}: {error}", path.display())))?;
    }
    if !report.passed {
        hint("next: hostweave doctor");
    }
    Ok(if report.passed { code::OK } else { code::NEGATIVE })
}

fn result(report: &Report) -> Value {
    let check = |step: &Step| {
        let (outcome, text) = match &step.outcome {
            Outcome::Passed(text) => ("passed", text),
            Outcome::Failed(text) => ("failed", text),
            Outcome::Skipped(text) => ("skipped", text),
            Outcome::Running(text) => ("interrupted", text),
        };
        json!({"name": step.name, "outcome": outcome, "text": text, "seconds": step.took.as_secs_f64()})
    };
    json!({"passed": report.passed, "checks": report.steps.iter().map(check).collect::<Vec<_>>()})
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn programs_get_every_check() {
        let step = |name, outcome| Step { name, outcome, took: Duration::from_millis(250) };
        let steps = vec![step("ping", Outcome::Passed("40 µs".into())), step("TCP", Outcome::Failed("why".into()))];
        let report = Report { steps, passed: false, summary: String::new() };
        let wanted = json!({"passed": false, "checks": [
            {"name": "ping", "outcome": "passed", "text": "40 µs", "seconds": 0.25},
            {"name": "TCP", "outcome": "failed", "text": "why", "seconds": 0.25},
        ]});
        assert_eq!(result(&report), wanted);
    }
}
