//! `HostConfig.spec.externalDNS` as written.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Names of Services in a real zone, kept there by dynamic updates (RFC 2136) signed by TSIG. Services ask for names by the
/// annotations `external-dns.alpha.kubernetes.io/hostname` and `service.beta.kubernetes.io/external-hostname`. Every name gets
/// a TXT record that says it is hostweave's; what others have made is never touched.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExternalDns {
    /// The zone's primary server: an address, or an address with an L4 port such as `192.0.2.53:5353`. It must let the key
    /// transfer (AXFR) and update the zone.
    pub server: String,
    /// The zone, such as `example.org`.
    pub zone: String,
    /// The key that signs.
    pub tsig: Tsig,
    /// `sync` (default) deletes names that no Service wants any more; `upsertOnly` never deletes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// The zone, or a domain in it, below which short names of `external-hostname` are; the zone if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_domain: Option<String>,
    /// Time to live of records in seconds, 1 to 86400; 300 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86400))]
    pub ttl: Option<u32>,
    /// Who this host is among those that keep records in the zone, as a DNS label; the host's name if left out. Hosts with the
    /// same owner must have the same Services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Seconds for which a name stays after no Service wants it any more, 0 to 86400; 60 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 86400))]
    pub grace_seconds: Option<u32>,
    /// Seconds from one look at the zone to the next, 1 to 86400; 60 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86400))]
    pub interval_seconds: Option<u32>,
}

/// A key for TSIG (RFC 8945).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tsig {
    /// Name of the key, as the server knows it.
    pub name: String,
    /// `hmac-sha256` (default), `hmac-sha384` or `hmac-sha512`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<Algorithm>,
    /// File with the secret in base64, absolute; only the daemon should be able to read it.
    pub secret_file: String,
}

/// How a TSIG key is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub enum Algorithm {
    /// HMAC with SHA-256.
    #[serde(rename = "hmac-sha256")]
    HmacSha256,
    /// HMAC with SHA-384.
    #[serde(rename = "hmac-sha384")]
    HmacSha384,
    /// HMAC with SHA-512.
    #[serde(rename = "hmac-sha512")]
    HmacSha512,
}

/// What becomes of names that no Service wants any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Policy {
    /// They are deleted.
    Sync,
    /// They stay.
    UpsertOnly,
}
