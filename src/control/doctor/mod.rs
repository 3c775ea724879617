//! What `doctor` finds: whether the host can do what its objects ask for, and what to do where it cannot. Each finding is
//! one sentence about what is so, and one about what to do.

pub mod host;
mod network;
mod pools;
mod service;
mod tap;

use serde::{Deserialize, Serialize};

use super::controller::Controller;

/// How bad a finding is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Works, and could be faster or larger.
    Note,
    /// Something will not work, or not for long.
    Warning,
    /// Something does not work.
    Error,
}

/// One thing that was looked at.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at, in a word.
    pub check: String,
    /// How bad it is.
    pub severity: Severity,
    /// What is so.
    pub message: String,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

impl Finding {
    fn new(check: &str, severity: Severity, message: impl Into<String>) -> Self {
        Self { check: check.to_owned(), severity, message: message.into(), help: None }
    }

    /// As it should be.
    pub fn ok(check: &str, message: impl Into<String>) -> Self {
        Self::new(check, Severity::Ok, message)
    }

    /// Could be better.
    pub fn note(check: &str, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..Self::new(check, Severity::Note, message) }
    }

    /// Will not work, or not for long.
    pub fn warning(check: &str, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..Self::new(check, Severity::Warning, message) }
    }

    /// Does not work.
    pub fn error(check: &str, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..Self::new(check, Severity::Error, message) }
    }
}

/// Everything that can be found out about a running daemon.
pub fn examine(controller: &Controller) -> Vec<Finding> {
    let snapshot = controller.snapshot();
    let mut findings = host::examine(&host::Needs::of(&snapshot.set));
    findings.extend(network::examine(controller, &snapshot));
    findings.extend(service::examine(controller, &snapshot));
    findings
}
