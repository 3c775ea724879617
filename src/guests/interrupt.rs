//! Ctrl-C and its like: whoever brings guests stops in an orderly way, and leaves nothing behind.

use std::sync::Arc;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use super::board::Board;

/// Stops on the signals that ask for it.
///
/// # Errors
/// The system has no thread left.
pub fn on_signals(board: &Arc<Board>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting a runtime")?;
    let board = Arc::clone(board);
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            let kinds = (SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup());
            let (Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)) =
                (signal(kinds.0), signal(kinds.1), signal(kinds.2))
            else {
                return;
            };
            loop {
                tokio::select! {
                    _ = interrupt.recv() => board.stop(),
                    _ = terminate.recv() => board.stop(),
                    _ = hangup.recv() => board.stop(),
                }
            }
        });
    })?;
    Ok(())
}
