//! `hostweave bugreport`: what somebody else needs to help.

use std::ffi::OsString;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::SystemTime;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};

use super::Session;
use super::failure::{Failure, code};
use super::output::hint;
use crate::bugreport;
use crate::observe::time::rfc3339;

/// The option, which has this name as every command's `-o` has.
const OUTPUT: &str = "output";

/// Arguments of `bugreport`.
///
/// Written out by hand: `-o` is a file here, and a format for every other command; of an option that all commands share, one
/// of them may give another meaning only below the level at which clap's derive works.
#[derive(Debug)]
pub struct Args {
    /// Where the report goes; a name of its own if left out.
    file: Option<OsString>,
    /// Whether names and addresses are replaced.
    redact: bool,
}

impl clap::Args for Args {
    fn augment_args(command: Command) -> Command {
        let output = Arg::new(OUTPUT).short('o').long(OUTPUT).value_name("FILE").value_parser(any);
        let redact = Arg::new("redact").long("redact").action(ArgAction::SetTrue);
        command
            .arg(output.help("Where to write; - is standard output [default: hostweave-bugreport-TIME.tar.gz]"))
            .arg(redact.help("Replace names, labels and addresses, the same one always by the same"))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// Takes anything: what is written is asked for as it is. The type is that of every command's option.
#[allow(clippy::unnecessary_wraps, reason = "clap wants a parser")]
fn any(_: &str) -> Result<super::output::Format, std::convert::Infallible> {
    Ok(super::output::Format::default())
}

impl FromArgMatches for Args {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = matches.value_source(OUTPUT) == Some(ValueSource::CommandLine);
        let file = matches.get_raw(OUTPUT).and_then(|mut values| values.next()).filter(|_| given);
        Ok(Self { file: file.map(OsString::from), redact: matches.get_flag("redact") })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Writes a report. A daemon that does not answer is no failure: then it is what the report is about.
///
/// # Errors
/// The file cannot be written.
pub fn run(session: &Session, args: &Args) -> Result<(), Failure> {
    let to_stdout = args.file.as_ref().is_some_and(|file| file == "-");
    if to_stdout && std::io::stdout().is_terminal() {
        return Err(Failure::usage("a terminal cannot show a report").help("write it to a file: -o FILE"));
    }
    let now = SystemTime::now();
    let report = bugreport::make(&session.control(), args.redact, now)?;
    report.missing.iter().for_each(|line| hint(&format!("not in the report: {line}")));
    if to_stdout {
        std::io::stdout().lock().write_all(&report.archive)?;
        return Ok(());
    }
    let path = args.file.as_ref().map_or_else(|| default_name(now), PathBuf::from);
    let written = File::options().write(true).create(true).truncate(true).mode(0o600).open(&path);
    let written = written.and_then(|mut file| file.write_all(&report.archive));
    written.map_err(|error| Failure::new(code::NEGATIVE, format!("cannot write {}: {error}", path.display())))?;
    super::output::print(&format!(
        "{} ({} files, {} KiB)\n",
        path.display(),
        report.files.len(),
        report.archive.len().div_ceil(1024)
    ))?;
    hint(if args.redact {
        "next: look through it before you hand it on: names in free text may be left"
    } else {
        "next: look through it before you hand it on; --redact replaces names and addresses"
    });
    Ok(())
}

/// `hostweave-bugreport-20261126T153001Z.tar.gz`.
fn default_name(now: SystemTime) -> PathBuf {
    let time: String = rfc3339(now).chars().take_while(|c| *c != '.').filter(|c| !matches!(c, '-' | ':')).collect();
    PathBuf::from(format!("hostweave-bugreport-{time}Z.tar.gz"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn the_file_is_named_after_the_time() {
        let name = default_name(SystemTime::UNIX_EPOCH);
        assert_eq!(name.to_str(), Some("hostweave-bugreport-19700101T000000Z.tar.gz"));
    }

    #[test]
    fn o_is_a_file_here_and_a_format_elsewhere() {
        let parse = |words: &[&str]| {
            let matches = Cli::command().try_get_matches_from(words).unwrap();
            let sub = matches.subcommand_matches("bugreport").map(|sub| Args::from_arg_matches(sub).unwrap());
            (Cli::from_arg_matches(&matches).unwrap(), sub)
        };
        let (_, args) = parse(&["hostweave", "bugreport", "-o", "report.tar.gz", "--redact"]);
        let args = args.unwrap();
        assert_eq!((args.file.as_deref(), args.redact), (Some("report.tar.gz".as_ref()), true));
        assert_eq!(parse(&["hostweave", "bugreport"]).1.unwrap().file, None);
        assert_eq!(parse(&["hostweave", "status", "-o", "json"]).0.global.output, super::super::output::Format::Json);
        assert!(Cli::command().try_get_matches_from(["hostweave", "status", "-o", "report.tar.gz"]).is_err());
    }
}
