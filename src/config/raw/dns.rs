//! `HostConfig.spec.dns` as written.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// DNS at the gateways of all networks.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Dns {
    /// The zone of Services and ports, and the search domain of networks that have none; `cluster.local` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_domain: Option<String>,
    /// Servers that are asked for all other names, at most 8, each an address, or an address with an L4 port such as
    /// `192.0.2.53:5353` or `[2001:db8::53]:5353`. If left out, the host's own, from `/etc/resolv.conf`; `[]` asks nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8))]
    pub upstream: Option<Vec<String>>,
}
