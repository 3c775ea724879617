//! `hostweave service`: Services.

use super::failure::Failure;
use super::service_list::{DescribeArgs, ListArgs};
use super::{Session, service_list};

/// What to show of Services.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Show Services with their addresses and how many backends are ready
    List(ListArgs),
    /// Show everything that is known about a Service: addresses, name, backends, events
    Describe(DescribeArgs),
}

/// Runs the command.
///
/// # Errors
/// The daemon's error, or the connection's.
pub fn run(session: &Session, command: &Command) -> Result<(), Failure> {
    match command {
        Command::List(args) => service_list::list(session, args),
        Command::Describe(args) => service_list::describe(session, &args.name),
    }
}
