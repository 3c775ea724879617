//! `service.list` and `service.get`: Services, with what was given to them and who stands behind them.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::outside::{service, services};
use crate::config::{Kind, ObjectKey};
use crate::control::controller::not_found;
use crate::control::error::RpcError;
use crate::control::method::Call;
use crate::control::selector::Selector;
use crate::control::service_view::ServiceView;
use crate::observe::events::Filter;

/// Events that `service.get` shows.
const EVENTS: usize = 10;

/// Parameters of `service.list`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct List {
    /// Only this namespace; every one if left out.
    namespace: Option<String>,
    /// Only Services whose labels match.
    selector: Option<String>,
    /// Only those of this network.
    network: Option<String>,
}

/// Parameters of `service.get`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Get {
    /// Namespace; `default` if left out.
    namespace: Option<String>,
    /// Name.
    name: String,
}

pub fn list(call: &Call<'_>, params: List) -> Result<Value, RpcError> {
    let selector = params.selector.as_deref().map(Selector::parse).transpose()?.unwrap_or_default();
    let snapshot = call.controller.snapshot();
    let rows: Vec<Value> = services(&snapshot.set)
        .filter(|(object, service)| {
            (params.namespace.is_none() || object.key.namespace == params.namespace)
                && params.network.as_ref().is_none_or(|network| *network == service.network)
                && selector.matches(&object.metadata.labels)
        })
        .map(|(object, service)| ServiceView::new(call.controller, &snapshot, object, service).row())
        .collect();
    Ok(json!({"services": rows, "revision": snapshot.revision}))
}

pub fn get(call: &Call<'_>, params: Get) -> Result<Value, RpcError> {
    let key = ObjectKey::new(Kind::Service, params.namespace.as_deref(), &params.name);
    let snapshot = call.controller.snapshot();
    let (object, service) = service(&snapshot.set, &key).ok_or_else(|| not_found(&key, &snapshot))?;
    let events = call.controller.parts.events.list(&Filter::of_object(&key), EVENTS);
    let mut warnings = crate::config::services::dubious(&snapshot.set, &snapshot.desired.ports, [&key]);
    warnings.extend(crate::config::outside::dubious(&snapshot.set, &snapshot.services, [&key]));
    Ok(json!({
        "service": ServiceView::new(call.controller, &snapshot, object, service).describe(),
        "warnings": warnings,
        "events": events.iter().map(|event| json!(**event)).collect::<Vec<_>>(),
        "revision": snapshot.revision,
    }))
}
