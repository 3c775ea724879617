//! What the system may refuse.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// A request that the system refused, in a sentence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel has no `io_uring`, or forbids it.
    #[error("the kernel refused an io_uring (is kernel.io_uring_disabled set, or a seccomp filter in the way?)")]
    Uring(#[source] io::Error),
    /// A device name that the kernel cannot take.
    #[error("device name {0:?}: use 1 to 15 octets without '/', ':', spaces, and not '.' or '..'")]
    DeviceName(String),
    /// The namespace file is missing or is none.
    #[error("network namespace {path}: {reason}")]
    Namespace {
        /// Path as configured.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The device has another owner.
    #[error("TAP device {0} is in use by another process")]
    Busy(String),
    /// Capabilities are missing.
    #[error(
        "TAP device {name}: no permission to {action}; the daemon needs CAP_NET_ADMIN (and CAP_SYS_ADMIN to enter a namespace)"
    )]
    Permission {
        /// Device.
        name: String,
        /// What was refused.
        action: String,
    },
    /// Another interface, not a TAP device with our header, has that name.
    #[error("device {0} exists and is no TAP device that hostweave can use")]
    NotTap(String),
    /// The device cannot have more queues than one.
    #[error(
        "TAP device {0} was made with a single queue, so that one worker receives all (stop the daemon and \
         `ip link delete {0}`, and it is made anew; its addresses and routes go with it)"
    )]
    SingleQueue(String),
    /// Another call failed.
    #[error("TAP device {name}: cannot {action}")]
    Device {
        /// Device.
        name: String,
        /// What was tried.
        action: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The helper could not be started.
    #[error("cannot start {program} attach-netns")]
    Helper {
        /// Executable.
        program: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The helper ended without an answer, or answered nonsense.
    #[error("the attach-netns helper for device {0} ended without an answer")]
    HelperSilent(String),
    /// The helper did not answer in time and was stopped.
    #[error("the attach-netns helper for device {name} did not answer within {} s", .limit.as_secs())]
    HelperTimeout {
        /// Device.
        name: String,
        /// How long it had.
        limit: Duration,
    },
    /// What the helper reported; the sentence is one of the others.
    #[error("{0}")]
    Reported(String),
    /// Interface or packet socket of the uplink.
    #[error("interface {name}: cannot {action}{}", hint(.source))]
    Interface {
        /// Interface.
        name: String,
        /// What was tried.
        action: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel would see frames that are for us.
    #[error(
        "interface {name}: cannot hide hostweave's addresses from the kernel by nf_tables{}{}",
        hint(.source), no_tables(.source)
    )]
    Hide {
        /// Interface.
        name: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// What to do when the kernel has no nf_tables.
fn no_tables(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPROTONOSUPPORT | libc::EOPNOTSUPP | libc::EAFNOSUPPORT) => {
            "; load the modules nf_tables and nft_chain_filter (`modprobe nf_tables`), or use `driver: tap`"
        }
        _ => "",
    }
}

/// What to do about an answer of the system.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; the daemon needs CAP_NET_ADMIN and CAP_NET_RAW",
        _ => "",
    }
}
