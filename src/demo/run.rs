//! One run of the demo: the story in a thread of its own, in front of it the live view or nothing.

use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;

use super::daemon::Folder;
use super::{qemu, story, view};
use crate::guests::board::Board;
use crate::guests::interrupt::on_signals;

/// How long each TCP connection of the story is kept full in all, unless said otherwise: for programs, for people.
const DURATION: [Duration; 2] = [Duration::from_secs(3), Duration::from_secs(10)];

/// What the command line says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// No live view, lines instead.
    pub headless: bool,
    /// Linux in QEMU instead of built-in guests.
    pub qemu: bool,
    /// How long TCP connections are kept full, all together.
    pub duration: Option<Duration>,
    /// The network stays until somebody wants to stop.
    pub keep: bool,
    /// Whether the live view uses colours.
    pub color: bool,
}

/// Runs the demo; true when everything went as it must.
///
/// # Errors
/// It could not begin.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    let board = Arc::new(Board::new("hostweave demo", !options.headless));
    let folder = Folder::new()?;
    on_signals(&board)?;
    let duration = options.duration.unwrap_or(DURATION[usize::from(board.live)]);
    let story = {
        let (board, path, Options { qemu, keep, .. }) = (Arc::clone(&board), folder.path().to_owned(), *options);
        let thread = std::thread::Builder::new().name("story".into());
        thread.spawn(move || if qemu { qemu::play } else { story::play }(&board, &path, duration, keep))?
    };
    if board.live {
        // In a thread of its own, so that a view that breaks off does not leave the daemon behind.
        let shown = std::thread::scope(|scope| scope.spawn(|| view::run(&board, &story, options.color)).join());
        // Whatever ended the view, nobody watches any more.
        board.stop();
        let failure = match shown {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(anyhow!(error)),
            Err(_) => Some(anyhow!("it broke off, which is a bug")),
        };
        if let Some(failure) = failure {
            // The story still ends its daemon; what it found out does not matter.
            let _ = story.join();
            return Err(failure.context("the live view (without one: --headless)"));
        }
    }
    story.join().map_err(|_| anyhow!("the story broke off, which is a bug"))?;
    // Ends the sampler.
    board.stop();
    print!("{}", board.summary());
    Ok(board.passed())
}
