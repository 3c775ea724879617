//! `Port.spec.metadata` and `HostConfig.spec.metadata`, checked.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::config::node::Path;
use crate::config::problem::Problem;
use crate::config::raw::guest as raw;
use crate::services::metadata::spec::{
    MetadataSpec, NETWORK_CONFIG_LEN_MAX, PortMetadata, SSH_KEY_LEN_MAX, SSH_KEYS_MAX, Tokens, USER_DATA_LEN_MAX,
    VENDOR_DATA_LEN_MAX,
};

/// Checks what a host says; `None` for no metadata.
pub(super) fn host(raw: Option<&raw::HostMetadata>, region: Option<&String>) -> Option<MetadataSpec> {
    let tokens = raw.and_then(|raw| raw.tokens).map(tokens).unwrap_or_default();
    let enabled = raw.and_then(|raw| raw.enabled).unwrap_or(true);
    enabled.then(|| MetadataSpec { tokens, region: region.cloned() })
}

/// Checks what a port says; values of fields that have a problem are meaningless. Messages do not repeat the data.
pub(super) fn port(raw: Option<&raw::PortMetadata>, path: &Path, problems: &mut Vec<Problem>) -> PortMetadata {
    let Some(raw) = raw else { return PortMetadata::default() };
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let metadata = PortMetadata {
        disabled: raw.enabled == Some(false),
        tokens: raw.tokens.map(tokens),
        user_data: user_data(raw, path, problems),
        vendor_data: text(&raw.vendor_data),
        network_config: raw.network_config.clone(),
        ssh_keys: raw.ssh_keys.iter().map(|key| key.trim().to_owned()).collect(),
    };
    let user_data = if raw.user_data.is_some() { "userData" } else { "userDataBase64" };
    for (field, len, most) in [
        (user_data, metadata.user_data.len(), USER_DATA_LEN_MAX),
        ("vendorData", metadata.vendor_data.len(), VENDOR_DATA_LEN_MAX),
        ("networkConfig", text(&raw.network_config).len(), NETWORK_CONFIG_LEN_MAX),
    ] {
        if len > most {
            let path = path.key(field);
            let problem = Problem::key(&path, "out_of_range", format!("{path} has {len} octets; {most} are allowed"));
            problems.push(problem.label("too long").help("let the guest fetch the rest, by `#include URL`"));
        }
    }
    check_keys(&metadata.ssh_keys, &path.key("sshKeys"), problems);
    metadata
}

fn tokens(raw: raw::Tokens) -> Tokens {
    match raw {
        raw::Tokens::Required => Tokens::Required,
        raw::Tokens::Optional => Tokens::Optional,
    }
}

fn user_data(raw: &raw::PortMetadata, path: &Path, problems: &mut Vec<Problem>) -> Vec<u8> {
    match (&raw.user_data, &raw.user_data_base64) {
        (Some(_), Some(_)) => {
            let message = format!("{path} has both userData and userDataBase64; write one of them");
            problems.push(Problem::key(path, "conflict", message).label("userData and userDataBase64"));
            Vec::new()
        }
        (Some(text), None) => text.clone().into_bytes(),
        (None, Some(text)) => {
            let text: String = text.split_whitespace().collect();
            STANDARD.decode(text).unwrap_or_else(|error| {
                let path = path.key("userDataBase64");
                let message = format!("{path} is not base64 (RFC 4648 §4): {error}");
                problems.push(Problem::key(&path, "invalid_base64", message).label("not base64"));
                Vec::new()
            })
        }
        (None, None) => Vec::new(),
    }
}

fn check_keys(keys: &[String], path: &Path, problems: &mut Vec<Problem>) {
    if keys.len() > SSH_KEYS_MAX {
        let message = format!("{path} has {} keys; at most {SSH_KEYS_MAX} are allowed", keys.len());
        problems.push(Problem::value(path, "out_of_range", message).label("too many"));
        return;
    }
    for (index, key) in keys.iter().enumerate() {
        if let Err(reason) = check_key(key) {
            let path = path.index(index);
            let problem = Problem::value(&path, "invalid_key", format!("{path} {reason}"));
            let help = "write a line of a .pub file or of authorized_keys, such as `ssh-ed25519 AAAA… name`";
            problems.push(problem.label("not a public SSH key").help(help));
        }
    }
}

/// Whether it is a line of `authorized_keys` (sshd(8)): options, the type, the key in base64, a comment.
fn check_key(key: &str) -> Result<(), String> {
    if key.contains("PRIVATE KEY") {
        return Err("is a private key: it must not leave its owner".to_owned());
    }
    if key.len() > SSH_KEY_LEN_MAX {
        return Err(format!("has {} octets; {SSH_KEY_LEN_MAX} are allowed", key.len()));
    }
    if key.contains(char::is_control) {
        return Err("has more than one line".to_owned());
    }
    let words: Vec<&str> = key.split(' ').filter(|word| !word.is_empty()).collect();
    let kind = |word: &str| ["ssh-", "ecdsa-sha2-", "sk-"].iter().any(|prefix| word.starts_with(prefix));
    let encoded = |word: &str| STANDARD.decode(word).is_ok_and(|octets| octets.len() >= 16);
    if words.windows(2).any(|pair| kind(pair[0]) && encoded(pair[1])) {
        Ok(())
    } else {
        Err("is not a public SSH key".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEpk2wXxzXHVZxUJKbo9PYt8WQkFz0zKqGxVv0pO3K9c ops@example";

    #[test]
    fn public_keys_pass_and_others_do_not() {
        for good in [KEY, &format!("restrict,command=\"date -u\" {KEY}"), KEY.rsplit_once(' ').unwrap().0] {
            assert_eq!(check_key(good), Ok(()), "{good}");
        }
        let long = format!("{KEY}{}", "x".repeat(SSH_KEY_LEN_MAX));
        let private = "-----BEGIN OPENSSH PRIVATE KEY----- AAAA";
        for bad in ["", "ssh-ed25519", "ssh-ed25519 AAAA", "rsa AAAA", private, &long, &format!("{KEY}\n{KEY}")] {
            assert!(check_key(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn user_data_is_text_or_base64_and_has_a_limit() {
        let read = |raw: raw::PortMetadata| {
            let mut problems = Vec::new();
            let metadata = port(Some(&raw), &Path::of("spec.metadata"), &mut problems);
            (metadata.user_data, problems.len())
        };
        let with = |text: &str, base64: &str| {
            let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            read(raw::PortMetadata { user_data: some(text), user_data_base64: some(base64), ..Default::default() })
        };
        assert_eq!(with("#cloud-config\n", ""), (b"#cloud-config\n".to_vec(), 0));
        assert_eq!(with("", "H4sI\n AAA="), (vec![0x1f, 0x8b, 8, 0, 0], 0));
        assert_eq!(with("", "H4sI!").1, 1);
        assert_eq!(with("a", "H4sI").1, 1);
        assert_eq!(with(&"x".repeat(USER_DATA_LEN_MAX), "").1, 0);
        assert_eq!(with(&"x".repeat(USER_DATA_LEN_MAX + 1), "").1, 1);
    }
}
