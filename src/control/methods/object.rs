//! `object.*`: objects of any kind, by YAML text or JSON.

use std::str::FromStr;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::checked::{Object, Origin};
use crate::config::{Diagnostic, Diagnostics, Kind, ObjectKey, Source, load_sources};
use crate::control::controller::{Action, Applied, Edit, EditOptions, ObjectChange, Snapshot, not_found};
use crate::control::error::{ErrorKind, RpcError};
use crate::control::method::{Call, Feed, Outcome, Subscription};
use crate::control::selector::Selector;
use crate::control::view;

/// One YAML or JSON text.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Text {
    /// What the user calls it; a file's name.
    name: String,
    /// The text.
    text: String,
}

/// Objects to work with: YAML texts, JSON values, or both.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Sources {
    /// YAML texts.
    sources: Vec<Text>,
    /// JSON values.
    objects: Vec<Value>,
}

/// Parameters of `object.apply`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Apply {
    /// YAML texts.
    sources: Vec<Text>,
    /// JSON values.
    objects: Vec<Value>,
    /// Only say what would change.
    dry_run: bool,
    /// Also delete objects that were applied at run time, match this label selector and are not among those given.
    prune_selector: Option<String>,
}

/// Parameters of `object.get`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Get {
    /// Kind, in any spelling that the command line takes.
    kind: String,
    /// Namespace; `default` if left out.
    namespace: Option<String>,
    /// Name.
    name: String,
}

/// Parameters of `object.list`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct List {
    /// Kind, in any spelling that the command line takes.
    kind: String,
    /// Only this namespace; every one if left out.
    namespace: Option<String>,
    /// Only objects whose labels match.
    selector: Option<String>,
}

/// Parameters of `object.delete`: one object by name, or those that texts name.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Delete {
    /// Kind.
    kind: Option<String>,
    /// Namespace; `default` if left out.
    namespace: Option<String>,
    /// Name.
    name: Option<String>,
    /// YAML texts that name the objects.
    sources: Vec<Text>,
    /// Objects that do not exist are no error.
    if_exists: bool,
}

/// Parameters of `object.watch`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Selection {
    /// Only objects of this kind.
    kind: Option<String>,
    /// Only objects of this namespace.
    namespace: Option<String>,
}

impl Selection {
    /// Whether an object is among them.
    pub fn wants(&self, key: &ObjectKey) -> bool {
        self.kind.as_ref().is_none_or(|kind| kind.parse() == Ok(key.kind))
            && self.namespace.as_ref().is_none_or(|namespace| key.namespace.as_ref() == Some(namespace))
    }
}

/// The notification of one change.
pub fn change_json(change: &ObjectChange) -> Value {
    let word = match change.action {
        Action::Created => "ADDED",
        Action::Updated | Action::Unchanged => "MODIFIED",
        Action::Deleted => "DELETED",
    };
    json!({"type": word, "revision": change.revision, "object": change.object.to_json()})
}

/// A kind by any of its names.
pub fn kind(word: &str) -> Result<Kind, RpcError> {
    Kind::from_str(word).map_err(|unknown| {
        let error = RpcError::new(ErrorKind::InvalidParams, "kind", unknown.to_string());
        match unknown.similar {
            Some(similar) => error.help(format!("did you mean {}?", similar.plural())),
            None => error,
        }
    })
}

/// The objects that texts and values describe, each valid by itself.
pub(super) fn load(sources: Vec<Text>, objects: &[Value]) -> Result<(Vec<Object>, Vec<Diagnostic>), RpcError> {
    let sources: Vec<Source> = sources.into_iter().map(|Text { name, text }| Source { name, text }).collect();
    let loaded = load_sources(sources)?;
    let (mut all, mut warnings) = (loaded.objects, loaded.warnings);
    let mut problems = Vec::new();
    for value in objects {
        match Object::from_json(value, Origin::Store) {
            Ok((object, dubious)) => {
                all.push(object);
                warnings.extend(dubious);
            }
            Err(Diagnostics(found)) => problems.extend(found),
        }
    }
    if !problems.is_empty() {
        return Err(Diagnostics(problems).into());
    }
    if all.is_empty() {
        let error = RpcError::new(ErrorKind::Invalid, "sources", "there are no objects in what was given");
        return Err(error.help("an object begins with apiVersion, kind and metadata. See: hostweave explain"));
    }
    Ok((all, warnings))
}

/// What was changed, as JSON.
pub fn changes_json(applied: &Applied) -> Value {
    let change = |(action, object): &(Action, std::sync::Arc<Object>)| {
        let key = &object.key;
        json!({"action": action, "kind": key.kind, "namespace": key.namespace, "name": key.name})
    };
    let mut value = json!({
        "revision": applied.revision,
        "changes": applied.changes.iter().map(change).collect::<Vec<_>>(),
        "warnings": applied.warnings,
    });
    if let Some(impact) = &applied.impact {
        value["impact"] = view::impact(impact);
    }
    value
}

pub fn apply(call: &Call<'_>, params: Apply) -> Result<Value, RpcError> {
    let prune = params.prune_selector.as_deref().map(Selector::parse).transpose()?;
    let (objects, mut warnings) = load(params.sources, &params.objects)?;
    let edits = objects.into_iter().map(|object| Edit::Put(Box::new(object))).collect();
    let options = EditOptions { dry_run: params.dry_run, impact: params.dry_run, prune };
    let mut applied = call.controller.edit(edits, &options)?;
    warnings.append(&mut applied.warnings);
    applied.warnings = warnings;
    Ok(changes_json(&applied))
}

pub fn diff(call: &Call<'_>, params: Sources) -> Result<Value, RpcError> {
    let (objects, mut warnings) = load(params.sources, &params.objects)?;
    let before = call.controller.snapshot();
    let edits = objects.into_iter().map(|object| Edit::Put(Box::new(object))).collect();
    let applied = call.controller.edit(edits, &EditOptions { dry_run: true, ..EditOptions::default() })?;
    warnings.extend(applied.warnings);
    let differences: Vec<Value> = applied
        .changes
        .iter()
        .filter(|(action, _)| *action != Action::Unchanged)
        .map(|(action, object)| {
            let yaml = |object: &Object| object.with_identity(None, None).to_yaml();
            let old = before.set.get(&object.key).filter(|_| *action == Action::Updated);
            json!({
                "action": action,
                "object": object.key.to_string(),
                "before": old.map(|old| yaml(old)),
                "after": yaml(object),
            })
        })
        .collect();
    Ok(json!({"differs": !differences.is_empty(), "differences": differences, "warnings": warnings}))
}

pub fn get(call: &Call<'_>, params: Get) -> Result<Value, RpcError> {
    let key = ObjectKey::new(kind(&params.kind)?, params.namespace.as_deref(), &params.name);
    let snapshot = call.controller.snapshot();
    let object = snapshot.set.get(&key).ok_or_else(|| not_found(&key, &snapshot))?;
    Ok(view::described(call.controller, &snapshot, object))
}

pub fn list(call: &Call<'_>, params: List) -> Result<Value, RpcError> {
    let kind = kind(&params.kind)?;
    let selector = params.selector.as_deref().map(Selector::parse).transpose()?.unwrap_or_default();
    let snapshot = call.controller.snapshot();
    let items: Vec<Value> = snapshot
        .set
        .of_kind(kind)
        .filter(|object| params.namespace.is_none() || object.key.namespace == params.namespace)
        .filter(|object| selector.matches(&labels(&snapshot, object)))
        .map(|object| view::object(call.controller, &snapshot, object))
        .collect();
    Ok(json!({"items": items, "revision": snapshot.revision}))
}

/// Labels of an object; those of a port include its Pod's.
fn labels(snapshot: &Snapshot, object: &Object) -> std::collections::BTreeMap<String, String> {
    match object.key.kind {
        Kind::Port => snapshot.set.labels(&object.key),
        _ => object.metadata.labels.clone(),
    }
}

pub fn delete(call: &Call<'_>, params: Delete) -> Result<Value, RpcError> {
    let mut keys = Vec::new();
    match (&params.kind, &params.name) {
        (Some(word), Some(name)) => keys.push(ObjectKey::new(kind(word)?, params.namespace.as_deref(), name)),
        (None, None) if !params.sources.is_empty() => {}
        (None, _) => return Err(RpcError::new(ErrorKind::InvalidParams, "kind", "object.delete: kind is missing")),
        (Some(_), None) => {
            return Err(RpcError::new(ErrorKind::InvalidParams, "name", "object.delete: name is missing"));
        }
    }
    if !params.sources.is_empty() {
        keys.extend(load(params.sources, &[])?.0.into_iter().map(|object| object.key));
    }
    let must_exist = !params.if_exists;
    let edits = keys.into_iter().map(|key| Edit::Delete { key, must_exist }).collect();
    call.controller.edit(edits, &EditOptions::default()).map(|applied| changes_json(&applied))
}

pub fn watch(call: &Call<'_>, selection: Selection) -> Result<Outcome, RpcError> {
    if let Some(word) = &selection.kind {
        kind(word)?;
    }
    // First the feed, then the snapshot: what is in both is told once, because its revision is not newer.
    let changes = call.controller.watch();
    let snapshot = call.controller.snapshot();
    let mut first: Vec<Value> = snapshot
        .set
        .iter()
        .filter(|(key, _)| selection.wants(key))
        .map(|(_, object)| json!({"type": "ADDED", "revision": snapshot.revision, "object": object.to_json()}))
        .collect();
    first.push(json!({"type": "SYNCED", "revision": snapshot.revision}));
    let feed = Feed::Objects { changes, after: snapshot.revision, selection };
    Ok(Outcome::Subscription(Subscription { notification: "object.event", first, feed }))
}
