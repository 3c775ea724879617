//! `hostweave demo`: the network at work, without root, KVM or a network card.

use std::io::IsTerminal;
use std::time::Duration;

use super::Session;
use super::failure::{Failure, code};
use crate::demo::{self, Options};

/// Arguments of `demo`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// No live view: a line for each part of the story; exit code 1 if one failed
    #[arg(long)]
    headless: bool,
    /// Linux guests in QEMU instead of the built-in ones
    #[arg(long)]
    qemu: bool,
    /// How long TCP connections are kept full, such as 30s [default: 10s, with --headless 3s]
    #[arg(long, value_name = "TIME", value_parser = super::parse_duration)]
    duration: Option<Duration>,
    /// Keep daemon and guests running afterwards, and say what to try on them
    #[arg(long)]
    keep: bool,
}

/// Runs the demo.
///
/// # Errors
/// It could not begin.
pub fn run(session: &Session, args: &Args) -> Result<u8, Failure> {
    // A terminal that cannot place the cursor shows lines as well as any other.
    let dumb = std::env::var("TERM").is_ok_and(|term| term == "dumb");
    let headless = args.headless || dumb || !std::io::stdout().is_terminal();
    let Args { qemu, duration, keep, .. } = *args;
    let options = Options { headless, qemu, duration, keep, color: session.global.color.on_stdout() };
    let passed = demo::run(&options).map_err(Failure::from)?;
    Ok(if passed { code::OK } else { code::NEGATIVE })
}
