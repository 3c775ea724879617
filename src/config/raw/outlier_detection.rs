//! The value of the annotation `hostweave.dev/outlier-detection`, which is YAML in itself.

use serde::Deserialize;

/// When backends that clients cannot connect to are ejected.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OutlierDetection {
    /// Connections in a row that fail.
    #[serde(default)]
    pub consecutive_failures: Option<u32>,
    /// How long the first ejection lasts: `30s`.
    #[serde(default)]
    pub base_ejection_time: Option<String>,
    /// Share of the backends that may be out at once.
    #[serde(default)]
    pub max_ejection_percent: Option<u32>,
}
