//! A problem of one object, by the path of the field; it becomes a [`Diagnostic`] where the document is known.

use super::diagnostic::{Diagnostic, Severity};
use super::node::{Document, Path};

/// What is marked in the source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum At {
    /// The key of the field.
    Key,
    /// Its value.
    Value,
}

/// A problem of one object.
#[derive(Clone, PartialEq, Debug)]
pub struct Problem {
    /// The field.
    pub path: Path,
    /// What is marked.
    pub at: At,
    /// How bad it is.
    pub severity: Severity,
    /// Last part of the code.
    pub code: &'static str,
    /// One sentence with the values in it.
    pub message: String,
    /// What stands under the mark.
    pub label: String,
    /// What to write instead.
    pub help: Option<String>,
}

impl Problem {
    /// An error at the value of a field.
    pub fn value(path: &Path, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            path: path.clone(),
            at: At::Value,
            severity: Severity::Error,
            code,
            message: message.into(),
            label: String::new(),
            help: None,
        }
    }

    /// An error at the key of a field.
    pub fn key(path: &Path, code: &'static str, message: impl Into<String>) -> Self {
        Self { at: At::Key, ..Self::value(path, code, message) }
    }

    /// Says what stands under the mark.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// Says what to write instead.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Makes it a warning.
    #[must_use]
    pub fn warning(mut self) -> Self {
        self.severity = Severity::Warning;
        self
    }

    /// The diagnostic for `object`, at its place in `document`.
    pub fn diagnose(self, object: &str, document: Option<&Document>) -> Diagnostic {
        let place = document.and_then(|document| match self.at {
            At::Key => document.place_of_key(&self.path, &self.label),
            At::Value => document.place_of_value(&self.path, &self.label),
        });
        let field = (!self.path.0.is_empty()).then(|| self.path.to_string());
        Diagnostic {
            severity: self.severity,
            code: format!("hostweave::config::{}", self.code),
            message: self.message,
            object: (!object.is_empty()).then(|| object.to_owned()),
            field,
            place,
            help: self.help,
        }
    }
}
