//! The value of the annotation `hostweave.dev/health-check`, which is YAML in itself.

use serde::Deserialize;

use super::service::TargetPort;

/// What a backend is asked, and how often.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HealthCheck {
    /// What is asked.
    #[serde(rename = "type")]
    pub check_type: HealthType,
    /// L4 port; the backend's own if left out.
    #[serde(default)]
    pub port: Option<u32>,
    /// From one question to the next: `5s`.
    #[serde(default)]
    pub interval: Option<String>,
    /// How long an answer is waited for: `2s`.
    #[serde(default)]
    pub timeout: Option<String>,
    /// Answers in a row that make it healthy.
    #[serde(default)]
    pub rise: Option<u32>,
    /// Failures in a row that make it unhealthy.
    #[serde(default)]
    pub fall: Option<u32>,
    /// HTTP: path and query.
    #[serde(default)]
    pub path: Option<String>,
    /// HTTP: `Host`.
    #[serde(default)]
    pub host: Option<String>,
    /// HTTP: statuses that are right, `200-399` or one.
    #[serde(default)]
    pub status: Option<TargetPort>,
    /// gRPC: name of the service.
    #[serde(default)]
    pub service: Option<String>,
    /// UDP: what is sent; `hex:` begins octets in hexadecimal.
    #[serde(default)]
    pub send: Option<String>,
    /// UDP: what the answer begins with, likewise.
    #[serde(default)]
    pub expect: Option<String>,
}

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HealthType {
    /// A TCP connection.
    Tcp,
    /// An HTTP request.
    Http,
    /// The same over TLS.
    Https,
    /// `grpc.health.v1.Health/Check`.
    Grpc,
    /// An echo.
    Icmp,
    /// A datagram.
    Udp,
}
