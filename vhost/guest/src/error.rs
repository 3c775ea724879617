//! What can go wrong on the driver's side.

/// An error of the frontend or of the driver.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("{what} failed")]
    Io {
        /// The call or step.
        what: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The range is not guest memory.
    #[error("guest address {gpa:#x} + {len} is not in one piece of guest memory")]
    OutOfMemory {
        /// Guest physical address.
        gpa: u64,
        /// Octets from there.
        len: usize,
    },
    /// A ring was placed at an address which is not a multiple of 16.
    #[error("guest address {gpa:#x} is not a multiple of 16")]
    Misaligned {
        /// Guest physical address.
        gpa: u64,
    },
    /// The backend answered something that does not fit the question.
    #[error("the backend's answer to {request} is malformed: {why}")]
    BadReply {
        /// Name of the request.
        request: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The backend acknowledged with a failure code.
    #[error("the backend refused {request} with code {code}")]
    Refused {
        /// Name of the request.
        request: &'static str,
        /// The code in the acknowledgement, never 0.
        code: u64,
    },
    /// The backend does not offer what the test insists on.
    #[error("the backend does not offer {what}")]
    NotOffered {
        /// The feature or capacity.
        what: String,
    },
    /// The backend closed the connection.
    #[error("the backend closed the connection")]
    Disconnected,
    /// Something did not happen in time.
    #[error("no {what} within {ms} ms")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long, in ms.
        ms: u128,
    },
    /// The transmit ring or its buffers are in use.
    #[error("the transmit ring is full")]
    RingFull,
    /// The frame fits into no transmit buffer.
    #[error("a frame of {len} octets does not fit into a transmit buffer of {room}")]
    FrameTooLong {
        /// Octets of the frame.
        len: usize,
        /// Octets that a buffer has behind the header.
        room: usize,
    },
    /// The stack refused an operation.
    #[error("the guest's stack refused {what}")]
    Stack {
        /// The operation and the reason.
        what: String,
    },
}

impl Error {
    /// Wraps a system call's error.
    pub fn io(what: &'static str, source: std::io::Error) -> Self {
        match source.kind() {
            std::io::ErrorKind::BrokenPipe
            | std::io::ErrorKind::ConnectionReset
            | std::io::ErrorKind::UnexpectedEof => Self::Disconnected,
            _ => Self::Io { what, source },
        }
    }

    pub(crate) fn timeout(what: impl Into<String>, time: std::time::Duration) -> Self {
        Self::Timeout { what: what.into(), ms: time.as_millis() }
    }
}
