//! What the metadata server is told of the host and of each port.

use std::fmt;

/// Octets of user data, decoded.
pub const USER_DATA_LEN_MAX: usize = 64 * 1024;
/// Octets of vendor data.
pub const VENDOR_DATA_LEN_MAX: usize = 64 * 1024;
/// Octets of a network configuration.
pub const NETWORK_CONFIG_LEN_MAX: usize = 16 * 1024;
/// SSH keys of a port.
pub const SSH_KEYS_MAX: usize = 64;
/// Octets of an SSH key with its comment; 16384 bits of RSA have 2,800.
pub const SSH_KEY_LEN_MAX: usize = 4096;

/// Whether reading needs a token (IMDSv2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Tokens {
    /// It does.
    #[default]
    Required,
    /// Whoever sends none is answered as well (IMDSv1).
    Optional,
}

/// `HostConfig.spec.metadata`, and what else of the host is told to guests.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MetadataSpec {
    /// For ports that do not say.
    pub tokens: Tokens,
    /// Region or site of the host.
    pub region: Option<String>,
}

/// `Port.spec.metadata`. Its user data may hold secrets: `Debug` tells lengths only.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct PortMetadata {
    /// Whether the port is answered at all.
    pub disabled: bool,
    /// Whether reading needs a token; `None` for what the host says.
    pub tokens: Option<Tokens>,
    /// What the guest's first boot is to do; any octets.
    pub user_data: Vec<u8>,
    /// As user data, from whoever runs the host: user data goes before it.
    pub vendor_data: String,
    /// Network configuration (cloud-init's version 1 or 2), in place of the one that is made.
    pub network_config: Option<String>,
    /// Lines of `authorized_keys`.
    pub ssh_keys: Vec<String>,
}

impl PortMetadata {
    /// Whether there is something for a first boot.
    pub fn is_seed(&self) -> bool {
        let Self { user_data, vendor_data, network_config, ssh_keys, .. } = self;
        let empty = user_data.is_empty() && vendor_data.is_empty() && network_config.is_none() && ssh_keys.is_empty();
        !self.disabled && !empty
    }
}

impl fmt::Debug for PortMetadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PortMetadata")
            .field("disabled", &self.disabled)
            .field("tokens", &self.tokens)
            .field("user_data_len", &self.user_data.len())
            .field("vendor_data_len", &self.vendor_data.len())
            .field("network_config_len", &self.network_config.as_ref().map(String::len))
            .field("ssh_keys", &self.ssh_keys.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_in_debug_output() {
        let metadata = PortMetadata {
            user_data: b"password: hunter2".to_vec(),
            vendor_data: "token: hunter2".to_owned(),
            network_config: Some("wifi: hunter2".to_owned()),
            ssh_keys: vec!["ssh-ed25519 hunter2".to_owned()],
            ..PortMetadata::default()
        };
        let text = format!("{metadata:?}");
        assert!(!text.contains("hunter2") && text.contains("user_data_len: 17"), "{text}");
    }
}
