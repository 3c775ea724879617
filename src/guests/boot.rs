//! Linux guests come up, with the fastest accelerator that works here.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::board::Board;
use super::control::Control;
use super::member::short;
use super::vm::{Accelerator, Images, Vm};

/// Time between two signs of life while guests boot.
const SIGN: Duration = Duration::from_secs(2);

/// Boots a guest on each of two ports, with the fastest accelerator that works; and says so.
///
/// # Errors
/// They do not boot with any.
pub fn boot(
    board: &Board,
    control: &Control,
    images: &Images,
    folder: &Path,
    names: [&str; 2],
) -> anyhow::Result<([Vm; 2], String)> {
    let started = Instant::now();
    let mut failure = None;
    for accelerator in Accelerator::candidates() {
        let launch = |name| Vm::launch(name, control, images, accelerator, folder);
        let mut vms = [launch(names[0])?, launch(names[1])?];
        match wait_ready(board, &mut vms, accelerator) {
            Ok(took) => {
                let all = started.elapsed();
                let name = accelerator.name().to_uppercase();
                return Ok((
                    vms,
                    format!("two Linux guests in QEMU ({name}) are up after {} ({} in all)", short(took), short(all)),
                ));
            }
            Err(error) => {
                ensure!(!board.stopped(), "stopped");
                board.print(&format!("...   boot       not with {}: {error:#}", accelerator.name()));
                failure = Some(error);
            }
        }
    }
    Err(failure.context("there is nothing to run guests with")?)
}

/// Waits for both, and says what their consoles say.
fn wait_ready(board: &Board, vms: &mut [Vm; 2], accelerator: Accelerator) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let name = accelerator.name();
    let mut last_sign = started;
    for vm in vms {
        let end = started + accelerator.boot_timeout();
        while let Err(error) = vm.wait_ready(board, SIGN / 2) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || board.stopped() || vm.ended() {
                return Err(error);
            }
            let what = format!("with {name} for {}: {}", short(started.elapsed()), vm.console());
            board.progress(what.clone());
            if last_sign.elapsed() >= SIGN {
                board.print(&format!("...   boot       {what}"));
                last_sign = Instant::now();
            }
        }
    }
    Ok(started.elapsed())
}
