//! `hostweave daemon`.

use std::io::IsTerminal;
use std::path::PathBuf;

use tracing_subscriber::EnvFilter;

use super::Session;
use super::failure::Failure;
use crate::control::daemon::{self, Options};

/// Arguments of `daemon`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Folder of YAML files, or one file; may be given several times [default: /etc/hostweave/conf.d]
    #[arg(long, value_name = "DIR|FILE")]
    config: Vec<PathBuf>,
    /// Use the user's own folders (XDG) instead of the system's
    #[arg(long)]
    rootless: bool,
    /// Folder of the store [default: /var/lib/hostweave]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Folder of sockets [default: /run/hostweave]
    #[arg(long, value_name = "DIR")]
    runtime: Option<PathBuf>,
    /// Let files take over objects that were applied at run time
    #[arg(long)]
    adopt: bool,
}

/// `--log-format`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// It could not start.
pub fn run(session: &Session, args: Args) -> Result<(), Failure> {
    start_log(session);
    let Args { config, rootless, state, runtime, adopt } = args;
    let control = session.global.control.clone();
    daemon::run(&Options { config, control, runtime, state, rootless, adopt }).map_err(Failure::from)
}

/// Logs go to stderr; a journal adds its own times.
fn start_log(session: &Session) {
    let default = match session.global.verbose {
        0 => "info",
        1 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env("HOSTWEAVE_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let journal = std::env::var_os("JOURNAL_STREAM").is_some() && !std::io::stderr().is_terminal();
    let builder = builder.with_ansi(session.global.color.on_stderr());
    // Fails if a log is there already, which is as good.
    let _ = match (session.global.log_format, journal) {
        (LogFormat::Json, _) => builder.json().try_init(),
        (LogFormat::Text, true) => builder.without_time().with_target(false).try_init(),
        (LogFormat::Text, false) => builder.with_target(false).try_init(),
    };
}
