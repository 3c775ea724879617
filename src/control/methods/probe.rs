//! `probe.run`: a real packet through the packet path, and its answer.

use std::time::Duration;

use hostweave_switch::tables::PortKind;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::control::endpoint::{Endpoint, Ends};
use crate::control::error::{ErrorKind, RpcError};
use crate::control::method::Call;
use crate::fabric::probe::{ProbeError, answer_text, is_positive};
use crate::observe::synthetic::Protocol;

/// How long an answer is awaited unless said otherwise.
const TIMEOUT_MS: u32 = 1_000;

/// The longest that somebody may have the daemon wait.
const TIMEOUT_MS_MAX: u32 = 10_000;

/// Parameters of `probe.run`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Run {
    /// The port for which it is sent: `NAMESPACE/PORT`, its address, or `gateway`.
    from: String,
    /// Where to: as `from`, or any address; with `:L4PORT` a TCP SYN, else an echo request.
    to: String,
    /// Namespace of ports that are named without one; `default` if left out.
    namespace: Option<String>,
    /// Network, where the ends do not say it; `default` if left out.
    network: Option<String>,
    /// Milliseconds to wait for the answer; 1000 if left out, 10000 at most.
    timeout_ms: Option<u32>,
    /// Sequence number of an echo request.
    sequence: Option<u16>,
}

pub fn run(call: &Call<'_>, params: Run) -> Result<Value, RpcError> {
    let namespace = params.namespace.as_deref();
    let from = Endpoint::parse("from", &params.from, namespace)?;
    let to = Endpoint::parse("to", &params.to, namespace)?;
    let fabric = &call.controller.parts.fabric;
    let picture = fabric.picture();
    let ends = Ends { from: &from, to: &to, network: params.network.as_deref() };
    let mut request = ends.resolve(&picture, &fabric.scene(&picture))?;
    let sender = picture.plane.tables.port(request.from);
    if sender.is_some_and(|port| port.kind == PortKind::Uplink) {
        let error =
            RpcError::new(ErrorKind::InvalidParams, "from", "a probe is sent for a port, and nobody outside is one");
        return Err(error.help("see what would become of a packet from there: hostweave trace"));
    }
    match request.tuple.protocol {
        Protocol::Icmp => request.tuple.dst_port = params.sequence.unwrap_or(1),
        Protocol::Tcp => {}
        other => {
            let message = format!("a probe is an echo request or a TCP SYN, not {other}: only they have an answer");
            return Err(RpcError::new(ErrorKind::InvalidParams, "to", message));
        }
    }
    let timeout = params.timeout_ms.unwrap_or(TIMEOUT_MS).clamp(1, TIMEOUT_MS_MAX);
    let report = fabric.ping(&request, Duration::from_millis(u64::from(timeout))).map_err(|error| match error {
        ProbeError::TooMany => RpcError::new(ErrorKind::Exhausted, "", error.to_string()),
        ProbeError::Trace(_) | ProbeError::Stuck => RpcError::new(ErrorKind::Unavailable, "from", error.to_string()),
    })?;
    let answer = report.answer.map(|(answer, rtt)| {
        json!({
            "text": answer_text(request.tuple.protocol, answer.kind),
            "reached": is_positive(answer.kind),
            "ttl": answer.ttl,
            "rttMicroseconds": rtt.as_nanos() as f64 / 1e3,
        })
    });
    let why = match (&report.answer, report.refused) {
        (Some(_), _) => None,
        (None, Some(reason)) => Some(format!("{}: {}", reason.name(), reason.help().trim())),
        (None, None) => match &report.path.help {
            Some(help) => Some(format!("{}: {help}", report.path.reason.as_deref().unwrap_or_default())),
            None => Some(format!("no answer in {timeout} ms: the guest got the probe, and did not answer")),
        },
    };
    Ok(json!({"path": report.path, "answer": answer, "why": why}))
}
