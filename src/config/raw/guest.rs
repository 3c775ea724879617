//! `Port.spec.metadata` and `HostConfig.spec.metadata` as written: what guests find at 169.254.169.254.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the guest finds at `http://169.254.169.254` and `http://[fd00:ec2::254]`: EC2's metadata, and the files of cloud-init's
/// NoCloud below `/nocloud/`. Hostname, addresses and MAC address are there without being written.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortMetadata {
    /// `false` refuses this port; `true` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Whether reading needs a token (IMDSv2); `HostConfig.spec.metadata.tokens` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<Tokens>,
    /// What the guest's first boot is to do, such as `#cloud-config`, at most 65536 octets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data: Option<String>,
    /// The same in base64 (RFC 4648 §4), for data that is not text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data_base64: Option<String>,
    /// As user data, from whoever runs the host; at most 65536 octets. User data goes before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vendor_data: Option<String>,
    /// Network configuration in one of cloud-init's formats, at most 16384 octets; DHCP for the port's families if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_config: Option<String>,
    /// SSH keys that may log in, as in `authorized_keys`, at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub ssh_keys: Vec<String>,
}

/// Metadata for the guests of this host.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HostMetadata {
    /// `false` serves nobody; `true` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Whether reading needs a token (IMDSv2), where the port does not say: `required` (default) or `optional`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<Tokens>,
}

/// Whether reading metadata needs a token (IMDSv2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Tokens {
    /// It does. The files of NoCloud are given to cloud-init (by its `User-Agent`) without one.
    Required,
    /// Whoever sends none is answered as well (IMDSv1): any program in the guest that fetches URLs for others can read it.
    Optional,
}
