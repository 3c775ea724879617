//! Why a command failed: what the user reads, and the exit code.

use crate::config::{Diagnostic, Diagnostics};
use crate::control::error::{ErrorKind, RpcError};

/// Exit codes. Stable: scripts rely on them.
pub mod code {
    /// Done.
    pub const OK: u8 = 0;
    /// A negative answer: unhealthy, differs, denied.
    pub const NEGATIVE: u8 = 1;
    /// The command line makes no sense.
    pub const USAGE: u8 = 2;
    /// No such object.
    pub const NOT_FOUND: u8 = 3;
    /// The daemon cannot be reached.
    pub const UNREACHABLE: u8 = 4;
    /// Refused: not valid, or a conflict.
    pub const REJECTED: u8 = 5;
    /// The operating system or the socket forbids it.
    pub const PERMISSION: u8 = 6;
    /// It took too long.
    pub const TIMEOUT: u8 = 7;
    /// A bug of ours.
    pub const INTERNAL: u8 = 70;
}

/// A failed command.
#[derive(Debug)]
pub struct Failure {
    /// Exit code.
    pub code: u8,
    /// What the user reads on stderr.
    pub diagnostics: Diagnostics,
}

impl Failure {
    /// A failure with one sentence.
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, diagnostics: Diagnostic::error("hostweave::cli", message).into() }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        if let Some(first) = self.diagnostics.0.first_mut() {
            first.help = Some(help.into());
        }
        self
    }

    /// A command line that makes no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(code::USAGE, message)
    }
}

impl From<Diagnostics> for Failure {
    fn from(diagnostics: Diagnostics) -> Self {
        Self { code: code::REJECTED, diagnostics }
    }
}

impl From<RpcError> for Failure {
    fn from(error: RpcError) -> Self {
        let code = match error.data.kind {
            ErrorKind::NotFound => code::NOT_FOUND,
            ErrorKind::AlreadyExists | ErrorKind::Conflict | ErrorKind::Invalid | ErrorKind::Exhausted => {
                code::REJECTED
            }
            ErrorKind::Denied => code::PERMISSION,
            ErrorKind::Unavailable => code::NEGATIVE,
            ErrorKind::MethodNotFound
            | ErrorKind::InvalidParams
            | ErrorKind::InvalidRequest
            | ErrorKind::ParseError => code::USAGE,
            ErrorKind::Internal => code::INTERNAL,
        };
        Self { code, diagnostics: error.to_diagnostics() }
    }
}

/// The daemon's own failure to start.
impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        if let Some(rpc) = error.downcast_ref::<RpcError>() {
            let mut failure = Failure::from(rpc.clone());
            if failure.code == code::USAGE || failure.code == code::INTERNAL {
                failure.code = code::NEGATIVE;
            }
            return failure;
        }
        let denied = |cause: &(dyn std::error::Error + 'static)| {
            cause.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::PermissionDenied)
        };
        let code = if error.chain().any(denied) { code::PERMISSION } else { code::NEGATIVE };
        Self::new(code, format!("{error:#}"))
    }
}

/// Writing the result failed: the reader went away.
impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(code::NEGATIVE, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_errors_have_their_exit_codes() {
        for (kind, code) in [
            (ErrorKind::NotFound, 3),
            (ErrorKind::Conflict, 5),
            (ErrorKind::Invalid, 5),
            (ErrorKind::Exhausted, 5),
            (ErrorKind::AlreadyExists, 5),
            (ErrorKind::Denied, 6),
            (ErrorKind::InvalidParams, 2),
            (ErrorKind::Internal, 70),
        ] {
            assert_eq!(Failure::from(RpcError::new(kind, "", "x")).code, code, "{kind:?}");
        }
        let io = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        assert_eq!(Failure::from(anyhow::Error::from(io).context("cannot make a folder")).code, code::PERMISSION);
    }
}
