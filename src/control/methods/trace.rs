//! `trace.run`: what would become of a packet.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::object::{Text, load};
use crate::control::endpoint::{Endpoint, Ends};
use crate::control::error::{ErrorKind, RpcError};
use crate::control::method::Call;
use crate::observe::trace;

/// Parameters of `trace.run`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Run {
    /// Who sends: `NAMESPACE/PORT`, an address, `gateway`, or `uplink` for whoever is out there; with `:L4PORT` for a certain
    /// source port. An address that no network of the host has sends from out there.
    from: String,
    /// Where to: as `from`, with `:L4PORT` and `/tcp`, `/udp`, `/sctp`, `/icmp`, `/arp`, `/nd`, `/rs` or
    /// the number of an IP protocol.
    to: String,
    /// Namespace of ports that are named without one; `default` if left out.
    namespace: Option<String>,
    /// Network, where the ends do not say it; `default` if left out.
    network: Option<String>,
    /// YAML texts that are not applied: what would happen if they were.
    #[serde(default)]
    sources: Vec<Text>,
    /// The same as JSON values.
    #[serde(default)]
    objects: Vec<Value>,
}

pub fn run(call: &Call<'_>, params: Run) -> Result<Value, RpcError> {
    let namespace = params.namespace.as_deref();
    let from = Endpoint::parse("from", &params.from, namespace)?;
    let to = Endpoint::parse("to", &params.to, namespace)?;
    let fabric = &call.controller.parts.fabric;
    let (picture, warnings) = if params.sources.is_empty() && params.objects.is_empty() {
        (fabric.picture(), Vec::new())
    } else {
        let (objects, warnings) = load(params.sources, &params.objects)?;
        (call.controller.what_if(objects)?, warnings)
    };
    let scene = fabric.scene(&picture);
    let ends = Ends { from: &from, to: &to, network: params.network.as_deref() };
    let request = ends.resolve(&picture, &scene)?;
    let trace = trace::run(&scene, &request)
        .map_err(|error| RpcError::new(ErrorKind::Unavailable, "from", error.to_string()))?;
    let mut value = json!(trace);
    if !warnings.is_empty() {
        value["warnings"] = json!(warnings);
    }
    Ok(value)
}
