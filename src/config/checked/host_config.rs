//! `HostConfig`, checked.

use std::path::PathBuf;

use super::Account;

/// How the host runs hostweave, defaults filled in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostConfig {
    /// Region or site.
    pub region: Option<String>,
    /// One worker per entry, pinned to that CPU; `None` leaves placement to the kernel.
    pub workers: Vec<Option<usize>>,
    /// Folder of sockets, where written.
    pub runtime_dir: Option<PathBuf>,
    /// Folder of the store, where written.
    pub state_dir: Option<PathBuf>,
    /// Group that may use the control socket, where written.
    pub control_group: Option<Account>,
    /// What ports get that do not say otherwise.
    pub defaults: Defaults,
}

/// What ports get that do not say otherwise.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Defaults {
    /// Queue pairs of a vhost-user port.
    pub queues: u16,
    /// Group that may open vhost-user sockets; `None` is the daemon's own.
    pub group: Option<Account>,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            region: None,
            workers: vec![None],
            runtime_dir: None,
            state_dir: None,
            control_group: None,
            defaults: Defaults { queues: 1, group: None },
        }
    }
}
