//! From files to objects: reading (the client's part), parsing and checking each object (the same code offline and in
//! the daemon). Every problem of every file is reported at once.

use std::path::PathBuf;

use super::checked::Object;
use super::diagnostic::{Diagnostic, Diagnostics};
use super::node::Source;

/// Valid objects, in the order written, and what is dubious about them.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// Each valid by itself; [`super::set::check_set`] checks them together.
    pub objects: Vec<Object>,
    /// Ignored fields and the like.
    pub warnings: Vec<Diagnostic>,
}

/// Reads files, the `.yaml`, `.yml` and `.json` files of folders (sorted by name, not recursive), and `-` as standard
/// input.
///
/// # Errors
/// Every path that cannot be read, is not UTF-8 or is too large.
pub fn read_paths(_paths: &[PathBuf]) -> Result<Vec<Source>, Diagnostics> {
    todo!()
}

/// The objects of `sources`, each with `Origin::File`.
///
/// # Errors
/// All problems of all sources, warnings included.
pub fn load_sources(_sources: Vec<Source>) -> Result<Loaded, Diagnostics> {
    todo!()
}

/// [`read_paths`], then [`load_sources`].
///
/// # Errors
/// All problems of all sources, warnings included.
pub fn load_paths(paths: &[PathBuf]) -> Result<Loaded, Diagnostics> {
    load_sources(read_paths(paths)?)
}
