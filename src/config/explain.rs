//! `explain` and `schema`: what the doc comments of [`super::raw`] say, so that help cannot disagree with the program.

use super::diagnostic::Diagnostic;
use super::kind::Kind;

/// JSON Schema (draft 2020-12) of one kind.
pub fn schema(_kind: Kind) -> serde_json::Value {
    todo!()
}

/// Help for `KIND` or `KIND.field.path`.
///
/// # Errors
/// There is no such kind or field; says which one looks like it.
pub fn explain(_path: &str) -> Result<String, Diagnostic> {
    todo!()
}
