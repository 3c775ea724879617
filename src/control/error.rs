//! Errors as they travel through the control socket: a code and a kind that are stable, a sentence that is
//! not, the field they are about, and full diagnostics where YAML is wrong.

use serde::{Deserialize, Serialize};

use crate::config::{Diagnostic, Diagnostics};

/// What kind of error it is. Names and codes are stable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ErrorKind {
    /// Not JSON.
    ParseError,
    /// JSON, but not a JSON-RPC 2.0 request.
    InvalidRequest,
    /// No such method.
    MethodNotFound,
    /// A parameter is unknown, missing or of the wrong type.
    InvalidParams,
    /// A bug of ours, or a failing disk.
    Internal,
    /// The object is there already.
    AlreadyExists,
    /// There is no such object.
    NotFound,
    /// It contradicts something that exists: another origin, another revision.
    Conflict,
    /// What was written is not valid.
    Invalid,
    /// A limit or a range is used up.
    Exhausted,
    /// The socket or user may not do this.
    Denied,
    /// Not now: starting, stopping, or something below fails.
    Unavailable,
}

impl ErrorKind {
    /// The JSON-RPC code.
    pub fn code(self) -> i32 {
        match self {
            ErrorKind::ParseError => -32700,
            ErrorKind::InvalidRequest => -32600,
            ErrorKind::MethodNotFound => -32601,
            ErrorKind::InvalidParams => -32602,
            ErrorKind::Internal => -32603,
            ErrorKind::AlreadyExists => -32010,
            ErrorKind::NotFound => -32011,
            ErrorKind::Conflict => -32012,
            ErrorKind::Invalid => -32013,
            ErrorKind::Exhausted => -32014,
            ErrorKind::Denied => -32015,
            ErrorKind::Unavailable => -32016,
        }
    }

    /// The nearest HTTP status.
    pub fn http_status(self) -> u16 {
        match self {
            ErrorKind::ParseError | ErrorKind::InvalidRequest | ErrorKind::InvalidParams => 400,
            ErrorKind::MethodNotFound | ErrorKind::NotFound => 404,
            ErrorKind::Denied => 403,
            ErrorKind::AlreadyExists | ErrorKind::Conflict => 409,
            ErrorKind::Invalid => 422,
            ErrorKind::Exhausted => 429,
            ErrorKind::Internal => 500,
            ErrorKind::Unavailable => 503,
        }
    }
}

/// `error` of a JSON-RPC response.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct RpcError {
    /// See [`ErrorKind::code`].
    pub code: i32,
    /// One sentence with the values in it.
    pub message: String,
    /// What programs read.
    pub data: ErrorData,
}

/// `error.data`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ErrorData {
    /// What kind of error it is.
    pub kind: ErrorKind,
    /// The parameter or field it is about; empty where it is about the request as a whole.
    pub field: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// Every problem of what was written, at its line.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub diagnostics: Vec<Diagnostic>,
}

impl RpcError {
    /// An error about `field`.
    pub fn new(kind: ErrorKind, field: impl Into<String>, message: impl Into<String>) -> Self {
        let data = ErrorData { kind, field: field.into(), help: None, diagnostics: Vec::new() };
        Self { code: kind.code(), message: message.into(), data }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.data.help = Some(help.into());
        self
    }

    /// What is wrong with something written. The message is the first error's.
    pub fn diagnostics(kind: ErrorKind, diagnostics: Diagnostics) -> Self {
        let first = diagnostics.0.iter().find(|diagnostic| diagnostic.is_error()).or(diagnostics.0.first());
        let (field, message, help) = match first {
            Some(first) => (first.field.clone().unwrap_or_default(), first.to_string(), first.help.clone()),
            None => (String::new(), "the objects are not valid".to_owned(), None),
        };
        let data = ErrorData { kind, field, help, diagnostics: diagnostics.0 };
        Self { code: kind.code(), message, data }
    }

    /// What a person reads: the diagnostics where there are some, else the message and what to do about it.
    pub fn to_diagnostics(&self) -> Diagnostics {
        if !self.data.diagnostics.is_empty() {
            return Diagnostics(self.data.diagnostics.clone());
        }
        let mut diagnostic = Diagnostic::error("hostweave::rpc", &self.message);
        diagnostic.help.clone_from(&self.data.help);
        diagnostic.into()
    }
}

impl From<Diagnostics> for RpcError {
    fn from(diagnostics: Diagnostics) -> Self {
        Self::diagnostics(ErrorKind::Invalid, diagnostics)
    }
}

/// A failure below that nobody asked for; its whole chain of causes is told.
impl From<anyhow::Error> for RpcError {
    fn from(error: anyhow::Error) -> Self {
        Self::new(ErrorKind::Internal, "", format!("{error:#}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_always_names_kind_and_field() {
        let error =
            RpcError::new(ErrorKind::AlreadyExists, "name", "port shop/web-0 already exists").help("use mayExist");
        let json = serde_json::to_value(&error).unwrap();
        assert_eq!(json["code"], -32010);
        assert_eq!(json["data"]["kind"], "AlreadyExists");
        assert_eq!(json["data"]["field"], "name");
        assert_eq!(serde_json::from_value::<RpcError>(json).unwrap(), error);
    }

    #[test]
    fn remote_and_offline_diagnostics_are_the_same() {
        let mut one = Diagnostic::error("hostweave::config::unknown_field", "no such field");
        one.field = Some("spec.x".to_owned());
        let error = RpcError::from(Diagnostics::from(one.clone()));
        let travelled: RpcError = serde_json::from_str(&serde_json::to_string(&error).unwrap()).unwrap();
        assert_eq!(travelled.to_diagnostics(), Diagnostics::from(one));
        assert_eq!(travelled.data.field, "spec.x");
    }
}
