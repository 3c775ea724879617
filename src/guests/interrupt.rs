//! Ctrl-C and its like: whoever brings guests stops in an orderly way, and leaves nothing behind.

use std::sync::Arc;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use super::board::Board;

/// Stops on the signals that ask for it, from the moment it returns.
///
/// # Errors
/// The system has no thread left, or does not let signals be handled.
pub fn on_signals(board: &Arc<Board>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting a runtime")?;
    let handled = {
        // Registered here, not in the thread: who has made something must be able to rely on it.
        let _entered = runtime.enter();
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        kinds.map(signal)
    };
    let [interrupt, terminate, hangup] = handled;
    let (mut interrupt, mut terminate, mut hangup) = (interrupt?, terminate?, hangup?);
    let board = Arc::clone(board);
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
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
