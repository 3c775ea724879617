//! `policy.*`: what policies select, who may talk to whom, audit mode, recommendations.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::object::changes_json;
use crate::config::checked::{Object, Origin};
use crate::config::{Kind, ObjectKey};
use crate::control::controller::{Edit, EditOptions, not_found};
use crate::control::error::{ErrorKind, RpcError};
use crate::control::method::Call;
use crate::control::selector::Selector;
use crate::control::{matrix as who, policy_view, recommend as seen};
use crate::observe::time::{parse_rfc3339, rfc3339_nanos};

/// The annotation that puts a policy in audit mode.
const AUDIT: &str = "hostweave.dev/audit";

/// Parameters of `policy.list`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct List {
    /// Only NetworkPolicies of this namespace.
    namespace: Option<String>,
}

/// Parameters of `policy.matrix`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Matrix {
    /// Only ports of this namespace.
    namespace: Option<String>,
    /// Only ports with these labels.
    selector: Option<String>,
    /// Only this L4 port; everything that may pass if left out.
    l4_port: Option<u16>,
    /// Only `tcp`, `udp`, `sctp` or `icmp`.
    protocol: Option<String>,
}

/// Parameters of `policy.audit`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Audit {
    /// Kind; a NetworkPolicy, or else a ClusterNetworkPolicy of that name, if left out.
    #[serde(default)]
    kind: Option<String>,
    /// Namespace; `default` if left out.
    #[serde(default)]
    namespace: Option<String>,
    /// Name.
    name: String,
    /// Whether it only reports.
    audit: bool,
}

/// Parameters of `policy.recommend`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Recommend {
    /// Only policies for this namespace.
    namespace: Option<String>,
    /// Only from flows of the log not before this time, RFC 3339, and from the connections that there are.
    since: Option<String>,
}

pub fn list(call: &Call<'_>, params: List) -> Result<Value, RpcError> {
    let snapshot = call.controller.snapshot();
    let objects = [Kind::ClusterNetworkPolicy, Kind::NetworkPolicy].map(|kind| snapshot.set.of_kind(kind));
    let wanted = |object: &&std::sync::Arc<Object>| {
        params.namespace.is_none() || object.key.namespace.is_none() || object.key.namespace == params.namespace
    };
    let item = |object: &std::sync::Arc<Object>| {
        let mut item = policy_view::described(&snapshot.set, object);
        let rules = |direction: &str| item["rules"][direction].as_array().map(Vec::len);
        let counts = json!({"ingress": rules("ingress"), "egress": rules("egress")});
        if let Value::Object(fields) = &mut item {
            fields.insert("kind".into(), json!(object.key.kind.as_str()));
            fields.insert("namespace".into(), json!(object.key.namespace));
            fields.insert("name".into(), json!(object.key.name));
            fields.insert("origin".into(), json!(object.origin.to_string()));
            fields.insert("ruleCounts".into(), counts);
        }
        item
    };
    let items: Vec<Value> = objects.into_iter().flatten().filter(wanted).map(item).collect();
    let plane = call.controller.parts.fabric.plane();
    let stats = plane.policy.stats();
    Ok(json!({
        "policies": items,
        "revision": plane.policy_revision,
        "compiled": {
            "ports": stats.ports, "identities": stats.identities, "policies": stats.policies, "rules": stats.rules,
            "tables": stats.tables, "bytes": stats.bytes,
        },
    }))
}

pub fn matrix(call: &Call<'_>, params: Matrix) -> Result<Value, RpcError> {
    let question = who::Question {
        l4_port: params.l4_port,
        protocol: params.protocol,
        namespace: params.namespace,
        selector: params.selector.as_deref().map(Selector::parse).transpose()?.unwrap_or_default(),
    };
    who::matrix(&call.controller.parts.fabric.plane(), &question)
}

pub fn audit(call: &Call<'_>, params: Audit) -> Result<Value, RpcError> {
    let kinds = match params.kind.as_deref().map(super::object::kind).transpose()? {
        None => vec![Kind::NetworkPolicy, Kind::ClusterNetworkPolicy],
        Some(kind @ (Kind::NetworkPolicy | Kind::ClusterNetworkPolicy)) => vec![kind],
        Some(kind) => {
            let message = format!("a {kind} has no audit mode");
            return Err(RpcError::new(ErrorKind::InvalidParams, "kind", message));
        }
    };
    let keys: Vec<ObjectKey> =
        kinds.into_iter().map(|kind| ObjectKey::new(kind, params.namespace.as_deref(), &params.name)).collect();
    // The object is read and written under the same lock: nobody's change in between is lost.
    let applied = call.controller.edit_with(&EditOptions::default(), |before, _| {
        let object = keys.iter().find_map(|key| before.set.get(key)).ok_or_else(|| not_found(&keys[0], before))?;
        let mut json = object.to_json();
        if params.audit {
            json["metadata"]["annotations"][AUDIT] = json!("on");
        } else if let Some(annotations) = json.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
            annotations.remove(AUDIT);
        }
        let (object, _) = Object::from_json(&json, Origin::Store)?;
        Ok(vec![Edit::Put(Box::new(object))])
    })?;
    Ok(changes_json(&applied))
}

pub fn recommend(call: &Call<'_>, params: Recommend) -> Result<Value, RpcError> {
    let since = match params.since.as_deref() {
        None => None,
        Some(text) => Some(parse_rfc3339(text).ok_or_else(|| {
            let error = RpcError::new(ErrorKind::InvalidParams, "since", format!("{text:?} is no time"));
            error.help("write RFC 3339: 2026-11-23T15:30:01Z")
        })?),
    };
    let fabric = &call.controller.parts.fabric;
    let mut entries = fabric.flow_log().entries();
    entries.retain(|entry| since.is_none_or(|since| entry.time() >= since));
    let live: Vec<seen::Live> = fabric.live_connections().iter().filter_map(seen::Live::of).collect();
    let found = seen::recommend(&fabric.plane(), &entries, &live, params.namespace.as_deref());
    let mut notes = found.notes;
    if let Some(first) = fabric.flow_log().reach() {
        notes.push(format!(
            "the flow log is full and reaches back to {}: what began and ended before that is not allowed",
            rfc3339_nanos(first)
        ));
    }
    if fabric.flow_log().lost() > 0 {
        notes.push(format!(
            "{} events are not in the flow log: what they were about is not allowed",
            fabric.flow_log().lost()
        ));
    }
    Ok(json!({"policies": found.policies, "flows": found.flows, "notes": notes}))
}
