//! `HostConfig` as written.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Metadata, NameOrId};

/// How this host runs hostweave. At most one; without one, every field has its default.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HostConfig {
    /// `hostweave.dev/v1alpha1`.
    pub api_version: String,
    /// `HostConfig`.
    pub kind: String,
    /// `name` is the host's name.
    pub metadata: Metadata,
    /// Workers, paths and defaults.
    #[serde(default)]
    pub spec: HostConfigSpec,
}

/// Workers, paths and defaults.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HostConfigSpec {
    /// Region or site of the host, as a DNS label, such as `ord1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Threads that move packets. Changes take effect at the next start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<Workers>,
    /// Folders. Changes take effect at the next start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paths: Option<Paths>,
    /// The control socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<Control>,
    /// What happens to traffic that no policy speaks about. Only `allow` so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_policy: Option<DefaultPolicy>,
    /// What ports get that do not say otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defaults: Option<Defaults>,
    /// Where objects and addresses are kept: `embedded: {}` (default), one file in the state folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<Store>,
}

/// Threads that move packets: either `cpus` or `count`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Workers {
    /// One worker per CPU listed, pinned to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Vec<u32>>,
    /// That many workers, placed by the kernel; 1 if neither is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub count: Option<u32>,
}

/// Folders, absolute.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Paths {
    /// Sockets; `/run/hostweave` (rootless: `$XDG_RUNTIME_DIR/hostweave`) if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// The store; `/var/lib/hostweave` (rootless: `$XDG_STATE_HOME/hostweave`) if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
}

/// The control socket.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Control {
    /// Group (name or number) that may use it; `hostweave` if that group exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<NameOrId>,
}

/// What happens to traffic that no policy speaks about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum DefaultPolicy {
    /// It passes.
    Allow,
    /// It is dropped, on every port. Refused until policies are enforced.
    Deny,
}

/// What ports get that do not say otherwise.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Defaults {
    /// Queue pairs of a vhost-user port, 1 to 16; 1 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16))]
    pub queues: Option<u32>,
    /// Group (name or number) that may open vhost-user sockets; the daemon's own if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<NameOrId>,
}

/// Where objects and addresses are kept.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Store {
    /// One file in the state folder. Has no fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedded: Option<Embedded>,
}

/// One file in the state folder.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Embedded {}
