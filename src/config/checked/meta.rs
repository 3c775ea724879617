//! `metadata`, checked as Kubernetes checks it.

use std::collections::BTreeMap;

use uuid::Uuid;

/// Labels and what else `metadata` says, beyond the key.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Metadata {
    /// What selectors match.
    pub labels: BTreeMap<String, String>,
    /// Free text.
    pub annotations: BTreeMap<String, String>,
    /// Revision that the stored object must have, where one was written.
    pub resource_version: Option<u64>,
    /// Identity that the stored object must have, where one was written.
    pub uid: Option<Uuid>,
}
