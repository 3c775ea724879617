//! systemd's notification protocol (sd_notify(3)). Without a service manager every call does nothing.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;

use super::controller::Controller;
use super::view::PortView;

/// How often `STATUS=` is looked at when there is no watchdog.
const STATUS_PERIOD: Duration = Duration::from_secs(10);

/// Tells the service manager something.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager could not be told");
    }
}

/// The daemon is ready.
pub fn ready() {
    notify(&[NotifyState::Ready]);
}

/// The daemon reads its configuration again; [`ready`] follows.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(_) => notify(&[NotifyState::Reloading]),
    }
}

/// The daemon stops.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Feeds the watchdog as long as control and the packet path answer, and says how things are.
pub async fn watch(controller: Arc<Controller>) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    // Half the time, as sd_watchdog_enabled(3) recommends.
    let period = sd_notify::watchdog_enabled().map_or(STATUS_PERIOD, |timeout| timeout / 2);
    let mut told = String::new();
    loop {
        let asked = Arc::clone(&controller);
        // Takes the fabric's lock: a daemon that hangs there is not fed.
        let Ok(status) = tokio::task::spawn_blocking(move || status_line(&asked)).await else { return };
        notify(&[NotifyState::Watchdog]);
        if status != told {
            notify(&[NotifyState::Status(&status)]);
            told = status;
        }
        tokio::time::sleep(period).await;
    }
}

/// `12 ports, 0 degraded`.
fn status_line(controller: &Controller) -> String {
    let snapshot = controller.snapshot();
    let views = || snapshot.set.ports().filter_map(|(key, ..)| PortView::new(controller, &snapshot, key));
    let degraded = views().filter(|view| view.degraded().is_some()).count();
    format!("{} ports, {degraded} degraded", views().count())
}
