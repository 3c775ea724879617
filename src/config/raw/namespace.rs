//! The two kinds that consist of metadata: `Namespace`, and the half of `Pod` that hostweave understands.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Metadata;

/// A scope for the names of ports, with labels that selectors match.
///
/// The namespace `default` exists without being written. Deleting a namespace deletes its policies; it is refused while
/// the namespace has ports. Every namespace has the label `kubernetes.io/metadata.name` with its name.
///
/// The annotation `hostweave.dev/default-policy: allow` or `deny` replaces `HostConfig.spec.defaultPolicy` for its ports.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Namespace {
    /// `v1`.
    pub api_version: String,
    /// `Namespace`.
    pub kind: String,
    /// What identifies and labels it.
    pub metadata: Metadata,
}

/// A Kubernetes Pod, taken for its metadata: its labels and annotations are added to those of the Port with the same
/// namespace and name. Its `spec` and `status` are ignored with a warning.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pod {
    /// `v1`.
    pub api_version: String,
    /// `Pod`.
    pub kind: String,
    /// Labels and annotations for the Port of this namespace and name.
    pub metadata: Metadata,
}
