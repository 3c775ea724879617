//! What external DNS is told: the zone, who may change it, and which names are wanted.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// Seconds that others may keep a record, where nothing is written.
pub const TTL_S: u32 = 300;
/// Seconds for which a name stays after nobody wants it any more, where nothing is written.
pub const GRACE_S: u32 = 60;
/// Seconds from one look at the zone to the next, where nothing is written.
pub const INTERVAL_S: u32 = 60;
/// Names of one Service.
pub const NAMES_MAX: usize = 32;

/// `HostConfig.spec.externalDNS`, and what Services ask for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExternalDnsSpec {
    /// The zone's primary server.
    pub server: SocketAddr,
    /// The zone, lower case, without a dot at its end.
    pub zone: String,
    /// What signs updates and transfers.
    pub tsig: TsigSpec,
    /// Whether names that nobody wants any more are deleted.
    pub policy: RecordPolicy,
    /// What short names are below of: the zone or a domain in it.
    pub base_domain: String,
    /// Time to live of records, in seconds.
    pub ttl_s: u32,
    /// Who we are among those that keep records in the zone.
    pub owner: String,
    /// Seconds for which a name stays after nobody wants it any more.
    pub grace_s: u32,
    /// Seconds from one look at the zone to the next.
    pub interval_s: u32,
    /// What Services ask for, by Service.
    pub wanted: Vec<Wanted>,
}

/// A key for TSIG (RFC 8945).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TsigSpec {
    /// Name of the key, as the server knows it.
    pub name: String,
    /// How it is used.
    pub algorithm: Algorithm,
    /// File with the secret in base64. Read each time, so that it can be replaced.
    pub secret_file: PathBuf,
}

/// How a TSIG key is used (RFC 8945 §6).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Algorithm {
    /// `hmac-sha256`.
    #[default]
    HmacSha256,
    /// `hmac-sha384`.
    HmacSha384,
    /// `hmac-sha512`.
    HmacSha512,
}

/// What may be done to names that are ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RecordPolicy {
    /// They are made and changed, and deleted when nobody wants them any more.
    #[default]
    Sync,
    /// They are made and changed, never deleted.
    UpsertOnly,
}

/// What one Service asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// `namespace/name`.
    pub service: String,
    /// Absolute names, lower case, without a dot at their end; the first label may be `*`.
    pub names: Vec<String>,
    /// What they stand for.
    pub addresses: Vec<IpAddr>,
    /// What of the annotations cannot be a name in the zone, in sentences.
    pub problems: Vec<String>,
}
