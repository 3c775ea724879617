//! `hostweave doctor`: what is wrong with the host, and what to do about it.

use serde_json::{Value, json};

use super::Session;
use super::failure::{Failure, code};
use super::output::{self, Format, print, printable};
use crate::control::doctor::{Finding, Severity, host};

/// Arguments of `doctor`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Show only what is not as it should be
    #[arg(short, long)]
    quiet: bool,
}

/// Looks at everything; exit code 1 if something does not work, or not for long. Without a daemon it looks at the machine.
///
/// # Errors
/// The daemon's error.
pub fn run(session: &Session, args: &Args) -> Result<u8, Failure> {
    let mut findings = match session.call("doctor.run", json!({})) {
        Ok(mut answer) => serde_json::from_value(answer["findings"].take()).unwrap_or_default(),
        Err(failure) if failure.code == code::UNREACHABLE => without_daemon(session),
        Err(failure) => return Err(failure),
    };
    if args.quiet {
        findings.retain(|finding| finding.severity > Severity::Ok);
    }
    let value = || serde_json::to_value(&findings).unwrap_or(Value::Null);
    match session.global.output {
        Format::Json => output::print_json(&value())?,
        Format::Yaml => output::print_yaml(&value())?,
        _ => print(&report(&findings))?,
    }
    let bad = findings.iter().any(|finding| finding.severity >= Severity::Warning);
    Ok(if bad { code::NEGATIVE } else { code::OK })
}

/// The machine, as far as this process sees it.
fn without_daemon(session: &Session) -> Vec<Finding> {
    let mut findings = host::examine(&host::Needs::default());
    let message = format!("no daemon answers at {}: only the machine was looked at", session.control().display());
    findings.push(Finding::warning("daemon", message, "start it: sudo systemctl start hostweave"));
    findings
}

/// One line for each finding, and what to do under it.
fn report(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
    let mut text = String::new();
    for finding in findings {
        let mark = match finding.severity {
            Severity::Ok => "ok     ",
            Severity::Note => "note   ",
            Severity::Warning => "warning",
            Severity::Error => "error  ",
        };
        text += &format!("{mark}  {:width$}  {}\n", finding.check, printable(&finding.message));
        for line in finding.help.iter().flat_map(|help| help.lines()) {
            text += &format!("{:indent$}-> {}\n", "", printable(line), indent = mark.len() + 2 + width + 2);
        }
    }
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    text + &format!("{errors} errors, {warnings} warnings\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_to_do_under_each_finding() {
        let findings = [
            Finding::ok("kernel", "Linux 6.8"),
            Finding::error("tap", "it forwards nothing", "ip link set hw0 up\nsysctl -w net.ipv4.ip_forward=1"),
        ];
        let text = report(&findings);
        assert_eq!(
            text,
            "ok       kernel  Linux 6.8\nerror    tap     it forwards nothing\n                 -> ip link set hw0 up\n\
             \x20                -> sysctl -w net.ipv4.ip_forward=1\n1 errors, 0 warnings\n"
        );
    }
}
