//! `metadata`, the same for every kind; a subset of Kubernetes' `ObjectMeta`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What identifies and labels an object.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// Name, unique among objects of its kind in its namespace. Lower case letters, digits, `-` and `.`, at most 253
    /// characters; begins and ends with a letter or digit.
    pub name: String,
    /// Namespace of a namespaced object (Port, Pod, Service, EndpointSlice, NetworkPolicy); `default` if left out. Lower case letters, digits and `-`, at most
    /// 63 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Key/value pairs that selectors match. A key is `name` or `prefix/name`; a value has at most 63 characters.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Key/value pairs that nothing selects by; values are free text. All together at most 256 KiB.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Revision that the object must still have for `apply` to change it; written by `get -o yaml`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
    /// Identity, given by the daemon. A written one must be the one the object has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}
