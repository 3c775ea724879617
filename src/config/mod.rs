//! Objects and configuration.
//!
//! ```text
//! files ── load::read_paths ──► Source ── node::parse ──► tree with places ── de ──► raw ── checked ──► Object
//! Objects ── set::check_set ──► ObjectSet ── ipam::assign ──► Assignments ── desired::to_desired ──► fabric
//! ```
//!
//! The same functions run offline (`validate`) and in the daemon, and report every problem of every object at once, at
//! its line. Nothing here touches the packet path or the disk, except that `load::read_paths` reads files.

pub mod checked;
mod de;
pub mod desired;
pub mod diagnostic;
pub mod explain;
pub mod external_dns;
mod fate;
pub mod fuzz;
pub mod host_access;
pub mod ipam;
pub mod kind;
pub mod load;
pub mod names;
pub mod node;
pub mod outside;
pub mod policies;
mod problem;
pub mod ranges;
pub mod raw;
pub mod services;
pub mod set;
pub mod words;

#[cfg(test)]
mod tests;

pub use checked::{Object, Origin, Spec};
pub use diagnostic::{Diagnostic, Diagnostics, Place, Severity};
pub use ipam::{Assignment, Assignments};
pub use kind::{Kind, ObjectKey};
pub use load::{Loaded, load_paths, load_sources, read_paths};
pub use node::Source;
pub use set::{ObjectSet, check_set};
