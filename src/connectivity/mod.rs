//! The connectivity test: what the demo shows, on the host as it runs. Temporary ports in a namespace and networks of their own,
//! guests that this program brings itself, and a line for each thing that works or does not.
//!
//! What is tried stands in `checks`, what exists for it in `scene`, the two kinds of guests in `simulated` and `emulated`.
//! Everything is removed again, also when somebody presses Ctrl-C; what a killed run left behind, the next one removes.

mod checks;
mod client;
mod emulated;
pub mod junit;
mod lookup;
mod scene;
mod simulated;

use std::path::PathBuf;
use std::sync::Arc;

use crate::cli::failure::Failure;
use crate::demo::Folder;
use crate::guests::board::{Board, Step};
use crate::guests::interrupt::on_signals;
use checks::Checks;
use scene::Scene;

/// What the ports of the test are attached to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Guests {
    /// The built-in driver and TCP/IP stack.
    #[default]
    Sim,
    /// Linux in QEMU: KVM where it works, else emulated.
    Qemu,
}

impl Guests {
    /// As the command line has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sim => "sim",
            Self::Qemu => "qemu",
        }
    }
}

/// What was tried, and what became of it.
pub struct Report {
    /// Each part, in order.
    pub steps: Vec<Step>,
    /// Whether nothing failed and everything was tried.
    pub passed: bool,
    /// The last lines, for people.
    pub summary: String,
}

/// Tries the running host. Lines are printed while it goes on, unless `quiet`.
///
/// # Errors
/// It could not begin: the daemon cannot be reached, or refuses the objects.
pub fn run(control: PathBuf, guests: Guests, quiet: bool) -> Result<Report, Failure> {
    let board = Arc::new(Board::new("hostweave connectivity test", quiet));
    on_signals(&board)?;
    let folder = Folder::new()?;
    let scene = Scene::create(&control)?;
    let mut checks = Checks::new(&board, scene);
    let began = match guests {
        Guests::Sim => checks.attach_simulated(),
        Guests::Qemu => checks.attach_emulated(folder.path()),
    };
    if began {
        checks.run();
    }
    let complete = began && !board.stopped();
    board.last_step("cleanup", || checks.end());
    board.scene().over = complete;
    let steps = board.scene().steps.clone();
    Ok(Report { steps, passed: board.passed(), summary: board.summary() })
}
