//! `dns.*`: what the gateways answer.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::kind::DEFAULT_NETWORK;
use crate::control::error::{ErrorKind, RpcError};
use crate::control::method::Call;
use crate::services::dns::RecordText;

/// Parameters of `dns.query`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Query {
    /// The name, from its end on; or an address, for its names.
    name: String,
    /// Type of record, such as `AAAA`; `A`, or `PTR` for an address, if left out.
    #[serde(rename = "type")]
    kind: Option<String>,
    /// Network of the guest in whose place it is asked; `default` if left out.
    network: Option<String>,
}

/// Parameters of `dns.records`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Records {
    /// The network; `default` if left out.
    network: Option<String>,
}

pub fn query(call: &Call<'_>, params: Query) -> Result<Value, RpcError> {
    let address = params.name.parse::<std::net::IpAddr>().is_ok();
    let kind = params.kind.as_deref().unwrap_or(if address { "PTR" } else { "A" });
    let network = params.network.as_deref().unwrap_or(DEFAULT_NETWORK);
    let dns = call.controller.parts.fabric.dns();
    let found = dns.look_up(network, &params.name, kind);
    let found = found.map_err(|reason| RpcError::new(ErrorKind::InvalidParams, "name", reason))?;
    Ok(json!({
        "code": found.code,
        "authoritative": found.authoritative,
        "source": found.source,
        "server": found.server.map(|server| server.to_string()),
        "answers": records_json(&found.answers),
        "authorities": records_json(&found.authorities),
        "milliseconds": found.took.as_secs_f64() * 1e3,
    }))
}

pub fn records(call: &Call<'_>, params: Records) -> Result<Value, RpcError> {
    let network = params.network.as_deref().unwrap_or(DEFAULT_NETWORK);
    let records = call.controller.parts.fabric.dns().records(network);
    let records = records.map_err(|reason| RpcError::new(ErrorKind::NotFound, "network", reason))?;
    Ok(json!({"network": network, "records": records_json(&records)}))
}

fn records_json(records: &[RecordText]) -> Vec<Value> {
    let record =
        |record: &RecordText| json!({"name": record.name, "ttl": record.ttl, "type": record.kind, "data": record.data});
    records.iter().map(record).collect()
}
