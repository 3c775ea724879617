//! `capture.*`: packets of ports, live. Only on the socket that may change things: what guests send each other is not for
//! everybody who may look at counters.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hostweave_switch::tables::PortId;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::{Kind, ObjectKey};
use crate::control::endpoint::port_id;
use crate::control::error::{ErrorKind, RpcError};
use crate::control::method::{Call, CaptureFeed, Feed, Outcome, Subscription};
use crate::fabric::capture::CaptureHandle;
use crate::worker::capture::Drops;
use crate::worker::watch::CAPTURES_MAX;

/// Octets of each frame unless said otherwise: all of them.
const SNAPLEN: u32 = 262_144;

/// Packets of one notification.
const PACKETS_MAX: usize = 256;

/// Parameters of `capture.start`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Start {
    /// Which ports: `NAMESPACE/PORT`, or a name in `namespace`.
    ports: Vec<String>,
    /// Namespace of ports that are named without one; `default` if left out.
    namespace: Option<String>,
    /// Octets of each frame; 262144 if left out.
    snaplen: Option<u32>,
    /// Also packets that are dropped.
    #[serde(default)]
    drops: bool,
    /// Only packets that are dropped.
    #[serde(default)]
    drops_only: bool,
}

/// Parameters of `capture.stop`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Stop {
    /// Number of the capture, as its first notification says it.
    capture: u64,
}

pub fn start(call: &Call<'_>, params: Start) -> Result<Outcome, RpcError> {
    if params.ports.is_empty() {
        return Err(RpcError::new(ErrorKind::InvalidParams, "ports", "capture.start: ports is empty"));
    }
    let fabric = &call.controller.parts.fabric;
    let picture = fabric.picture();
    let snapshot = call.controller.snapshot();
    let mut ids = Vec::new();
    let mut ports = Vec::new();
    for name in &params.ports {
        let key = match name.split_once('/') {
            Some((namespace, name)) => ObjectKey::new(Kind::Port, Some(namespace), name),
            None => ObjectKey::new(Kind::Port, params.namespace.as_deref(), name),
        };
        let id = port_id(&picture.plane.tables, &key.path())?;
        if ids.contains(&id) {
            continue;
        }
        let mac = picture.plane.tables.port(id).map(|port| port.mac.to_string());
        ports.push(json!({"port": key.path(), "labels": snapshot.set.labels(&key), "mac": mac}));
        ids.push(id);
    }
    let snaplen = params.snaplen.unwrap_or(SNAPLEN).clamp(1, SNAPLEN);
    let drops = match (params.drops_only, params.drops) {
        (true, _) => Drops::Only,
        (false, true) => Drops::Also,
        (false, false) => Drops::No,
    };
    let handle = fabric.capture(ids.clone(), snaplen as usize, drops).ok_or_else(|| {
        RpcError::new(ErrorKind::Exhausted, "", format!("{CAPTURES_MAX} captures run already, which is the limit"))
    })?;
    let first = vec![json!({"capture": handle.id(), "ports": ports, "snaplen": snaplen})];
    let feed = Feed::Capture(CaptureFeed::new(handle, ids));
    Ok(Outcome::Subscription(Subscription { notification: "capture.packets", first, feed }))
}

pub fn stop(call: &Call<'_>, params: Stop) -> Result<Value, RpcError> {
    if !call.controller.parts.fabric.stop_capture(params.capture) {
        return Err(RpcError::new(ErrorKind::NotFound, "capture", format!("capture {} does not run", params.capture)));
    }
    Ok(json!({}))
}

/// What a feed tells next, as several notifications; the last one of a capture that was stopped says `ended`.
pub fn notifications(handle: &CaptureHandle, ports: &[PortId], ended: bool) -> Vec<Value> {
    let packets: Vec<Value> = handle
        .fetch()
        .iter()
        .map(|packet| {
            let port = ports.iter().position(|id| *id == packet.port);
            json!({
                "at": packet.at.as_nanos() as u64,
                "port": port,
                "toGuest": packet.to_guest,
                "verdict": packet.verdict,
                "comment": packet.comment,
                "len": packet.len,
                "octets": STANDARD.encode(&packet.octets),
            })
        })
        .collect();
    let lost = handle.lost();
    let mut told: Vec<Value> =
        packets.chunks(PACKETS_MAX).map(|packets| json!({"packets": packets, "lost": lost})).collect();
    if ended {
        told.push(json!({"packets": [], "lost": lost, "ended": true}));
    }
    told
}
