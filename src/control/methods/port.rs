//! `port.*`: ports without YAML.

use std::collections::BTreeMap;

use hostweave_switch::counters::PortTotals;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::checked::{Object, Origin};
use crate::config::kind::API_VERSION;
use crate::config::{Kind, ObjectKey};
use crate::control::attach_args::{self, Vmm};
use crate::control::controller::{Edit, EditOptions, Snapshot, not_found};
use crate::control::error::{ErrorKind, RpcError};
use crate::control::method::Call;
use crate::control::selector::Selector;
use crate::control::view::{PortView, counters};
use crate::observe::events::Filter;

/// Events that `port.describe` shows.
const DESCRIBE_EVENTS: usize = 10;

/// Parameters of methods that concern one port.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Name {
    /// Namespace; `default` if left out.
    namespace: Option<String>,
    /// Name.
    name: String,
}

impl Name {
    fn key(&self) -> ObjectKey {
        ObjectKey::new(Kind::Port, self.namespace.as_deref(), &self.name)
    }
}

/// Parameters of `port.add`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Add {
    /// Namespace; `default` if left out.
    namespace: Option<String>,
    /// Name.
    name: String,
    /// What selectors match.
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// Network; `default` if left out.
    network: Option<String>,
    /// Fixed addresses; automatic ones if left out.
    #[serde(default)]
    addresses: Vec<String>,
    /// Fixed MAC address; an automatic one if left out.
    mac: Option<String>,
    /// `listen` (default) or `connect`.
    mode: Option<String>,
    /// Socket path; needed with mode `connect`.
    socket_path: Option<String>,
    /// Name of a TAP device, for a container instead of a VM.
    tap: Option<String>,
    /// Network namespace file in which the TAP device stands.
    netns: Option<String>,
    /// Queue pairs, 1 to 16.
    queues: Option<u32>,
    /// Group that may open the socket.
    group: Option<String>,
    /// A port that exists already is no error; it stays as it is.
    #[serde(default)]
    may_exist: bool,
}

impl Add {
    /// The object that these parameters describe.
    fn to_object(&self) -> Value {
        let vhost_user = prune(json!({
            "mode": self.mode, "socketPath": self.socket_path, "queues": self.queues, "group": self.group,
        }));
        // Parameters that contradict each other make an object that says why it is not valid.
        let mut backend = serde_json::Map::new();
        if let Some(tap) = &self.tap {
            backend.insert("tap".into(), prune(json!({"name": tap, "netns": self.netns})));
        }
        if self.tap.is_none() || vhost_user.as_object().is_some_and(|fields| !fields.is_empty()) {
            backend.insert("vhostUser".into(), vhost_user);
        }
        let metadata = json!({"name": self.name, "namespace": self.namespace, "labels": self.labels});
        let spec = json!({"network": self.network, "mac": self.mac, "addresses": self.addresses, "backend": backend});
        json!({"apiVersion": API_VERSION, "kind": "Port", "metadata": prune(metadata), "spec": prune(spec)})
    }
}

/// Without fields that say nothing.
fn prune(mut value: Value) -> Value {
    if let Value::Object(fields) = &mut value {
        let empty = |value: &Value| match value {
            Value::Null => true,
            Value::Array(items) => items.is_empty(),
            _ => false,
        };
        fields.retain(|_, value| !empty(value));
    }
    value
}

/// Parameters of `port.delete`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Delete {
    /// Namespace; `default` if left out.
    namespace: Option<String>,
    /// Name.
    name: String,
    /// A port that does not exist is no error.
    #[serde(default)]
    if_exists: bool,
}

/// Parameters of `port.list` and `port.stats`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct List {
    /// Only this namespace; every one if left out.
    namespace: Option<String>,
    /// Only the port with this name.
    name: Option<String>,
    /// Only ports whose labels match.
    selector: Option<String>,
}

/// Parameters of `port.setLabels`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SetLabels {
    /// Namespace; `default` if left out.
    namespace: Option<String>,
    /// Name.
    name: String,
    /// Labels to set; `null` removes one.
    labels: BTreeMap<String, Option<String>>,
}

/// Parameters of `port.attachArgs`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AttachArgs {
    /// Namespace; `default` if left out.
    namespace: Option<String>,
    /// Name.
    name: String,
    /// Which VMM.
    vmm: Vmm,
    /// For the VMM that a live migration on this host goes to.
    #[serde(default)]
    incoming: bool,
}

fn viewed<'a>(call: &'a Call<'_>, snapshot: &'a Snapshot, key: &ObjectKey) -> Result<PortView<'a>, RpcError> {
    PortView::new(call.controller, snapshot, key).ok_or_else(|| not_found(key, snapshot))
}

/// The answer of methods that change one port.
fn answer(call: &Call<'_>, key: &ObjectKey, changed: bool) -> Result<Value, RpcError> {
    let snapshot = call.controller.snapshot();
    let port = viewed(call, &snapshot, key)?.to_json();
    Ok(json!({"port": port, "revision": snapshot.revision, "changed": changed}))
}

pub fn add(call: &Call<'_>, params: Add) -> Result<Value, RpcError> {
    let (object, _) = Object::from_json(&params.to_object(), Origin::Store)?;
    let key = object.key.clone();
    let mut exists = false;
    call.controller.edit_with(&EditOptions::default(), |snapshot, _| {
        exists = snapshot.set.get(&key).is_some();
        match (exists, params.may_exist) {
            (true, true) => Ok(Vec::new()),
            (true, false) => {
                let message = format!("port {} already exists", key.path());
                Err(RpcError::new(ErrorKind::AlreadyExists, "name", message)
                    .help("use --may-exist (mayExist:true), or look at it: hostweave port get"))
            }
            (false, _) => Ok(vec![Edit::Put(Box::new(object))]),
        }
    })?;
    answer(call, &key, !exists)
}

pub fn delete(call: &Call<'_>, params: Delete) -> Result<Value, RpcError> {
    let key = ObjectKey::new(Kind::Port, params.namespace.as_deref(), &params.name);
    let edit = Edit::Delete { key: key.clone(), must_exist: !params.if_exists };
    let applied = call.controller.edit(vec![edit], &EditOptions::default())?;
    Ok(json!({"deleted": !applied.changes.is_empty(), "port": key.path(), "revision": applied.revision}))
}

/// The ports that `params` selects.
fn selected<'a>(call: &'a Call<'_>, snapshot: &'a Snapshot, params: &List) -> Result<Vec<PortView<'a>>, RpcError> {
    if let Some(name) = &params.name {
        let key = ObjectKey::new(Kind::Port, params.namespace.as_deref(), name);
        return Ok(vec![viewed(call, snapshot, &key)?]);
    }
    let selector = params.selector.as_deref().map(Selector::parse).transpose()?.unwrap_or_default();
    let wanted = |key: &&ObjectKey| {
        (params.namespace.is_none() || key.namespace == params.namespace) && selector.matches(&snapshot.set.labels(key))
    };
    let keys = snapshot.set.ports().map(|(key, ..)| key).filter(wanted);
    Ok(keys.filter_map(|key| PortView::new(call.controller, snapshot, key)).collect())
}

pub fn list(call: &Call<'_>, params: List) -> Result<Value, RpcError> {
    let snapshot = call.controller.snapshot();
    let ports: Vec<Value> = selected(call, &snapshot, &params)?.iter().map(PortView::to_json).collect();
    Ok(json!({"ports": ports, "revision": snapshot.revision}))
}

pub fn get(call: &Call<'_>, params: Name) -> Result<Value, RpcError> {
    let snapshot = call.controller.snapshot();
    let port = viewed(call, &snapshot, &params.key())?.to_json();
    Ok(json!({"port": port, "revision": snapshot.revision}))
}

pub fn describe(call: &Call<'_>, params: Name) -> Result<Value, RpcError> {
    let snapshot = call.controller.snapshot();
    let key = params.key();
    let port = viewed(call, &snapshot, &key)?.describe();
    let events = call.controller.parts.events.list(&Filter::of_object(&key), DESCRIBE_EVENTS);
    let events: Vec<Value> = events.iter().map(|event| json!(**event)).collect();
    Ok(json!({"port": port, "events": events, "revision": snapshot.revision}))
}

pub fn stats(call: &Call<'_>, params: List) -> Result<Value, RpcError> {
    let snapshot = call.controller.snapshot();
    let row = |view: &PortView<'_>| {
        let key = &view.object.key;
        json!({"namespace": key.namespace, "name": key.name, "state": view.state().0, "counters": view.counters()})
    };
    let ports: Vec<Value> = selected(call, &snapshot, &params)?.iter().map(row).collect();
    // The output sum closes over all of the host: the networks' own ports and ports that were deleted count, too.
    let mut host = PortTotals::default();
    call.controller.parts.fabric.totals().iter().for_each(|totals| host.add(totals));
    Ok(json!({"ports": ports, "host": counters(&host)}))
}

pub fn up(call: &Call<'_>, params: Name) -> Result<Value, RpcError> {
    // `up` is the default: the object says nothing then, as before `down`.
    change(call, &params.key(), |object| {
        if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
            spec.remove("adminState");
        }
    })
}

pub fn down(call: &Call<'_>, params: Name) -> Result<Value, RpcError> {
    change(call, &params.key(), |object| object["spec"]["adminState"] = json!("down"))
}

pub fn set_labels(call: &Call<'_>, params: SetLabels) -> Result<Value, RpcError> {
    let key = ObjectKey::new(Kind::Port, params.namespace.as_deref(), &params.name);
    change(call, &key, |object| {
        for (label, value) in params.labels {
            match (value, &mut object["metadata"]["labels"]) {
                (Some(value), labels) => labels[label] = json!(value),
                (None, Value::Object(labels)) => drop(labels.remove(&label)),
                (None, _) => {}
            }
        }
    })
}

/// Changes what a port's object says.
fn change(call: &Call<'_>, key: &ObjectKey, edit: impl FnOnce(&mut Value)) -> Result<Value, RpcError> {
    let applied = call.controller.edit_with(&EditOptions::default(), |snapshot, _| {
        let object = snapshot.set.get(key).ok_or_else(|| not_found(key, snapshot))?;
        let mut json = object.with_identity(None, None).to_json();
        edit(&mut json);
        let (object, _) = Object::from_json(&json, Origin::Store)?;
        Ok(vec![Edit::Put(Box::new(object))])
    })?;
    let changed = applied.changes.iter().any(|(action, _)| *action != crate::control::controller::Action::Unchanged);
    answer(call, key, changed)
}

pub fn attach_args(call: &Call<'_>, params: AttachArgs) -> Result<Value, RpcError> {
    let snapshot = call.controller.snapshot();
    let key = ObjectKey::new(Kind::Port, params.namespace.as_deref(), &params.name);
    let view = viewed(call, &snapshot, &key)?;
    let Some((mode, mut socket)) = view.socket() else {
        let message = format!("port {} is a TAP device: no VMM attaches to it over vhost-user", key.path());
        return Err(RpcError::new(ErrorKind::Invalid, "name", message));
    };
    if params.incoming {
        socket = view.incoming().ok_or_else(|| {
            let message = format!("port {} is in mode connect: its VMM listens, there is no second socket", key.path());
            RpcError::new(ErrorKind::Invalid, "incoming", message)
                .help("for a live migration on this host the port must be in mode listen")
        })?;
    }
    let Some(assignment) = snapshot.assignments.get(&key) else {
        let message = format!("port {} has no addresses yet", key.path());
        return Err(RpcError::new(ErrorKind::Unavailable, "name", message));
    };
    let mtu = snapshot.set.network(&view.port.network).map_or(1500, |network| network.mtu);
    let facts = attach_args::Facts {
        name: &key.path(),
        socket: &socket,
        mode,
        mac: assignment.mac,
        mtu,
        queues: view.queues(),
        incoming: params.incoming,
        seeded: view.port.metadata.is_seed(),
    };
    Ok(json!({"vmm": params.vmm, "socketPath": socket, "text": attach_args::text(params.vmm, &facts)}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object_of(params: Value) -> Result<Object, RpcError> {
        let params: Add = serde_json::from_value(params).unwrap();
        Ok(Object::from_json(&params.to_object(), Origin::Store)?.0)
    }

    #[test]
    fn parameters_become_an_object() {
        let object =
            object_of(json!({"name": "web-0", "namespace": "shop", "labels": {"app": "web"}, "queues": 2})).unwrap();
        assert_eq!(object.key, ObjectKey::port("shop", "web-0"));
        assert_eq!(object.metadata.labels["app"], "web");
        let object = object_of(json!({"name": "c", "tap": "hw0", "netns": "/run/netns/x"})).unwrap();
        assert_eq!(object.to_json()["spec"]["backend"]["tap"]["netns"], "/run/netns/x");
    }

    #[test]
    fn parameters_that_contradict_each_other_are_refused() {
        assert!(object_of(json!({"name": "c", "tap": "hw0", "queues": 2})).is_err());
        assert!(object_of(json!({"name": "c", "mode": "connect"})).is_err());
        let error = object_of(json!({"name": "c", "addresses": ["10.64.0.300"]})).unwrap_err();
        assert_eq!(error.data.field, "spec.addresses[0]");
    }
}
