//! The one table of methods behind JSON-RPC, HTTP and `rpc --list`: name, doc, parameters, handler.
//!
//! A call has two halves. [`prepare`] finds the method and reads its parameters, refusing what it does not know;
//! only then the handler may run. Handlers are plain blocking functions; the transport runs them off its own threads.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use hostweave_switch::tables::PortId;
use schemars::Schema;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::controller::{Controller, ObjectChange};
use super::error::{ErrorKind, RpcError};
use super::methods::{
    capture, conntrack, dns, doctor, event, flow, nat, object, policy, port, probe, server, service, service_list,
    trace, uplink, whois,
};
use super::socket::Client;
use crate::config::names::closest;
use crate::fabric::capture::CaptureHandle;
use crate::observe::events::{Event, Filter};
use crate::observe::flow_filter::Selection;
use crate::observe::flow_log::Entry;

/// Whether a method changes anything. The read-only socket offers only those that do not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Changes nothing.
    Read,
    /// Changes something; logged with the user who asked.
    Write,
}

/// What a handler works with.
pub struct Call<'a> {
    /// The daemon's state.
    pub controller: &'a std::sync::Arc<Controller>,
    /// Who asks.
    pub client: &'a Client,
}

/// What a method gives.
pub enum Outcome {
    /// A result.
    Value(Value),
    /// A stream of notifications until the connection ends.
    Subscription(Subscription),
    /// The end of a stream of this connection.
    Unsubscribe(u64),
}

impl From<Value> for Outcome {
    fn from(value: Value) -> Self {
        Outcome::Value(value)
    }
}

/// A stream of notifications.
pub struct Subscription {
    /// Method of the notifications.
    pub notification: &'static str,
    /// What is told at once.
    pub first: Vec<Value>,
    /// What follows.
    pub feed: Feed,
}

/// Where a subscription's notifications come from.
pub enum Feed {
    /// Events that a filter wants.
    Events(broadcast::Receiver<std::sync::Arc<Event>>, Box<Filter>),
    /// Flows that a selection wants, as this host names itself.
    Flows {
        /// The flow log's records.
        feed: broadcast::Receiver<std::sync::Arc<Entry>>,
        /// Which ones.
        selection: Box<Selection>,
        /// The host's name.
        node: String,
    },
    /// Changes of objects, newer than a revision, of one kind and namespace where given.
    Objects {
        /// The changes.
        changes: broadcast::Receiver<std::sync::Arc<ObjectChange>>,
        /// Revision of the snapshot that was told first.
        after: u64,
        /// Which ones.
        selection: object::Selection,
    },
    /// Packets of a capture.
    Capture(CaptureFeed),
}

/// A capture and what is to be told of it.
pub struct CaptureFeed {
    /// Ends with the feed.
    handle: Arc<CaptureHandle>,
    /// Its ports, as notifications number them.
    ports: Arc<[PortId]>,
    /// Notifications that wait.
    waiting: VecDeque<Value>,
    /// The last one is among them.
    ended: bool,
}

impl CaptureFeed {
    /// Nothing was told yet.
    pub fn new(handle: CaptureHandle, ports: Vec<PortId>) -> Self {
        Self { handle: Arc::new(handle), ports: ports.into(), waiting: VecDeque::new(), ended: false }
    }

    /// The next notification; `None` after the one that says that the capture has ended.
    pub async fn next(&mut self) -> Option<Value> {
        /// How long packets wait in the workers' rings.
        const FETCH_EVERY: Duration = Duration::from_millis(50);
        loop {
            if let Some(told) = self.waiting.pop_front() {
                return Some(told);
            }
            tokio::time::sleep(FETCH_EVERY).await;
            if self.ended {
                return None;
            }
            let (handle, ports) = (Arc::clone(&self.handle), Arc::clone(&self.ports));
            // Copies and encodes megabytes: not on the runtime's threads.
            let fetch = move || {
                // In this order: what came before the end is told.
                let runs = handle.runs();
                (runs, capture::notifications(&handle, &ports, !runs))
            };
            let (runs, told) = tokio::task::spawn_blocking(fetch).await.ok()?;
            self.ended = !runs;
            self.waiting.extend(told);
        }
    }
}

type Handler = Box<dyn FnOnce(&Call<'_>) -> Result<Outcome, RpcError> + Send>;

/// A method.
pub struct Method {
    /// Its name.
    pub name: &'static str,
    /// One sentence.
    pub doc: &'static str,
    /// Whether it changes anything.
    pub access: Access,
    /// JSON Schema of its parameters.
    pub params: fn() -> Schema,
    prepare: fn(Value) -> Result<Handler, RpcError>,
}

/// A method with parameters that were read; may be called once.
pub struct Prepared {
    /// The method.
    pub method: &'static Method,
    handler: Handler,
}

impl Prepared {
    /// Runs the method. May block on the disk.
    ///
    /// # Errors
    /// As the method says; [`ErrorKind::Denied`] where the client's socket is read-only and the method is not.
    pub fn call(self, call: &Call<'_>) -> Result<Outcome, RpcError> {
        if self.method.access == Access::Write {
            if call.client.read_only {
                let message = format!("{} changes something, and this socket is read-only", self.method.name);
                return Err(RpcError::new(ErrorKind::Denied, "method", message).help("use control.sock"));
            }
            // The log says who changed what.
            let Client { pid, uid, gid, .. } = call.client;
            tracing::info!(method = self.method.name, pid, uid, gid, "a client asks for a change");
        }
        (self.handler)(call)
    }
}

macro_rules! methods {
    ($($name:literal $access:ident $params:ty => $handler:path: $doc:literal,)+) => {
        /// Every method.
        pub const METHODS: &[Method] = &[$(Method {
            name: $name,
            doc: $doc,
            access: Access::$access,
            params: || schemars::schema_for!($params),
            prepare: |value| {
                let params: $params = read_params(value)?;
                Ok(Box::new(move |call: &Call<'_>| $handler(call, params).map(Outcome::from)))
            },
        },)+];
    };
}

methods! {
    "server.hello" Read server::Hello => server::hello: "Says which version answers and what it can do.",
    "server.status" Read server::Empty => server::status: "The daemon, its workers, its ports and what is degraded.",
    "server.reload" Write server::Empty => server::reload: "Reads the configuration files again; what is wrong changes nothing.",
    "port.add" Write port::Add => port::add: "Adds a port.",
    "port.delete" Write port::Delete => port::delete: "Deletes a port; its addresses are free again.",
    "port.list" Read port::List => port::list: "Ports with addresses and state.",
    "port.get" Read port::Name => port::get: "One port with addresses and state.",
    "port.describe" Read port::Name => port::describe: "One port with everything that is known about it, its last events included.",
    "port.stats" Read port::List => port::stats: "Counters of ports, drops by reason included.",
    "port.up" Write port::Name => port::up: "Sets a port's link up.",
    "port.down" Write port::Name => port::down: "Sets a port's link down: no traffic passes.",
    "port.setLabels" Write port::SetLabels => port::set_labels: "Sets and removes labels of a port.",
    "port.attachArgs" Read port::AttachArgs => port::attach_args: "The exact text that attaches a VMM to a port.",
    "object.apply" Write object::Apply => object::apply: "Creates and changes objects, all or none.",
    "object.diff" Read object::Sources => object::diff: "What object.apply would change.",
    "object.get" Read object::Get => object::get: "One object.",
    "object.list" Read object::List => object::list: "Objects of one kind.",
    "object.delete" Write object::Delete => object::delete: "Deletes objects, all or none.",
    "object.watch" Read object::Selection => object::watch: "Subscribes to objects: a snapshot, then every change with its revision.",
    "event.list" Read event::List => event::list: "The last events.",
    "event.subscribe" Read event::List => event::subscribe: "Subscribes to events.",
    "trace.run" Read trace::Run => trace::run: "What would become of a packet, stage by stage, and why.",
    "conntrack.list" Read conntrack::List => conntrack::list: "Connections, with what allowed them.",
    "conntrack.flush" Write conntrack::Flush => conntrack::flush: "Forgets connections: their next packets are decided anew.",
    "dns.query" Read dns::Query => dns::query: "What the gateway of a network answers, and where that comes from.",
    "dns.records" Read dns::Records => dns::records: "Every record that guests of a network may see.",
    "service.list" Read service_list::List => service_list::list: "Services with their addresses and how many backends are ready.",
    "service.get" Read service_list::Get => service_list::get: "One Service: addresses, name, backends in the words of an EndpointSlice, events.",
    "service.backends" Read service::Name => service::backends: "The backends of a Service, how each is, its connections, and the last changes.",
    "service.drain" Write service::Drain => service::drain: "Sends no new connections to a backend, of one Service or of all.",
    "service.undrain" Write service::Drain => service::undrain: "Sends connections to a backend again.",
    "nat.list" Read nat::List => nat::list: "NAT mappings, inside and outside.",
    "nat.pools" Read server::Empty => nat::pools: "NAT pools and their CIDRs, for the allow-lists of others.",
    "nat.stats" Read server::Empty => nat::stats: "Numbers of NAT: mappings, refusals, L4 ports of each address, the biggest users.",
    "nat.lookup" Read nat::Lookup => nat::lookup: "Who has, or had, an outside L4 port.",
    "uplink.get" Read server::Empty => uplink::get: "The uplink: interface, routers, and the addresses that the host owns there.",
    "doctor.run" Read server::Empty => doctor::run: "What is wrong with the host, and what to do.",
    "whois.run" Read whois::Run => whois::run: "Whose an address is, or which port has, or had, an L4 port of it.",
    "flow.list" Read flow::List => flow::list: "The last connections that began, ended or were refused, and dropped packets.",
    "flow.subscribe" Read flow::List => flow::subscribe: "Subscribes to the flow log.",
    "flow.unsubscribe" Read flow::Unsubscribe => flow::unsubscribe: "Ends a subscription of this connection.",
    "probe.run" Write probe::Run => probe::run: "Sends a real packet for a port, and says what became of it and of its answer.",
    "capture.start" Write capture::Start => capture::start: "Subscribes to the packets of ports, with what became of each.",
    "capture.stop" Write capture::Stop => capture::stop: "Ends a capture.",
    "policy.list" Read policy::List => policy::list: "Policies, with what they select and whether they are enforced.",
    "policy.matrix" Read policy::Matrix => policy::matrix: "Which ports may talk to which, as the policies in force decide.",
    "policy.audit" Write policy::Audit => policy::audit: "Has a policy only report what it would deny, or enforce it.",
    "policy.recommend" Read policy::Recommend => policy::recommend: "NetworkPolicies that allow what the flow log has seen, and nothing else.",
    "rpc.discover" Read server::Empty => server::discover: "This table, as OpenRPC.",
}

/// Finds a method and reads its parameters.
///
/// # Errors
/// There is no such method, or a parameter is unknown, missing or of the wrong type.
pub fn prepare(name: &str, params: Value) -> Result<Prepared, RpcError> {
    let Some(method) = METHODS.iter().find(|method| method.name == name) else {
        let error = RpcError::new(ErrorKind::MethodNotFound, "method", format!("there is no method {name:?}"));
        return Err(match closest(name, METHODS.iter().map(|method| method.name)) {
            Some(similar) => error.help(format!("did you mean {similar}?")),
            None => error.help("see the method rpc.discover, or: hostweave rpc --list"),
        });
    };
    let handler = (method.prepare)(params).map_err(|error| match error.data.kind {
        ErrorKind::InvalidParams => complete(method, error),
        _ => error,
    })?;
    Ok(Prepared { method, handler })
}

/// Reads parameters; the error names the parameter.
fn read_params<T: DeserializeOwned>(value: Value) -> Result<T, RpcError> {
    serde_path_to_error::deserialize(&value).map_err(|error| {
        let path = error.path().to_string();
        let text = error.into_inner().to_string();
        // `missing field` and `unknown field` come at the path of the object; the field's name stands in backquotes.
        let named = ["missing field `", "unknown field `"].iter().find_map(|start| text.strip_prefix(start));
        let field = match (named.and_then(|rest| rest.split('`').next()), path.as_str()) {
            (Some(field), ".") => field.to_owned(),
            (Some(field), path) if path == field || path.ends_with(&format!(".{field}")) => path.to_owned(),
            (Some(field), path) => format!("{path}.{field}"),
            (None, ".") => String::new(),
            (None, path) => path.to_owned(),
        };
        RpcError::new(ErrorKind::InvalidParams, field, text)
    })
}

/// Says which method it was, and what its parameters are called.
fn complete(method: &Method, mut error: RpcError) -> RpcError {
    let known = parameter_names(method);
    let similar = closest(&error.data.field, known.iter().map(String::as_str));
    error.data.help = Some(match (error.message.starts_with("unknown field"), similar) {
        (true, Some(similar)) => format!("did you mean {similar}?"),
        _ if known.is_empty() => format!("{} has no parameters", method.name),
        _ => format!("{} has the parameters {}", method.name, known.join(", ")),
    });
    error.message = match error.data.field.as_str() {
        "" => format!("{}: {}", method.name, error.message),
        field => format!("{}: parameter {field}: {}", method.name, error.message),
    };
    error
}

/// Names of a method's parameters.
pub fn parameter_names(method: &Method) -> Vec<String> {
    let schema = (method.params)();
    let properties = schema.get("properties").and_then(Value::as_object);
    properties.map(|properties| properties.keys().cloned().collect()).unwrap_or_default()
}

/// The table as an OpenRPC document.
pub fn openrpc() -> Value {
    let mut schemas = BTreeMap::new();
    let methods: Vec<Value> = METHODS.iter().map(|method| openrpc_method(method, &mut schemas)).collect();
    json!({
        "openrpc": "1.3.2",
        "info": {"title": "hostweave", "version": env!("CARGO_PKG_VERSION"), "license": {"name": "Apache-2.0"}},
        "methods": methods,
        "components": {"schemas": schemas},
    })
}

fn openrpc_method(method: &Method, schemas: &mut BTreeMap<String, Value>) -> Value {
    let schema = serde_json::to_value((method.params)()).unwrap_or_default();
    if let Some(definitions) = schema.get("$defs").and_then(Value::as_object) {
        let moved = definitions.iter().map(|(name, definition)| (name.clone(), with_components(definition)));
        schemas.extend(moved);
    }
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let properties = schema["properties"].as_object().cloned().unwrap_or_default();
    let params: Vec<Value> = properties
        .iter()
        .map(|(name, property)| {
            json!({"name": name, "required": required.contains(&name.as_str()), "schema": with_components(property)})
        })
        .collect();
    json!({
        "name": method.name,
        "summary": method.doc,
        "paramStructure": "by-name",
        "params": params,
        "result": {"name": "result", "schema": true},
        "x-access": match method.access { Access::Read => "read", Access::Write => "write" },
    })
}

/// References to `$defs` as references to OpenRPC's components.
fn with_components(schema: &Value) -> Value {
    match schema {
        Value::String(text) => json!(text.replacen("#/$defs/", "#/components/schemas/", 1)),
        Value::Array(items) => items.iter().map(with_components).collect(),
        Value::Object(fields) => fields.iter().map(|(key, value)| (key.clone(), with_components(value))).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_documented() {
        let mut names: Vec<&str> = METHODS.iter().map(|method| method.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), METHODS.len());
        assert!(METHODS.iter().all(|method| method.doc.ends_with('.') && method.name.contains('.')));
    }

    #[test]
    fn every_method_refuses_a_parameter_that_it_does_not_know() {
        for method in METHODS {
            let error = prepare(method.name, json!({"frobnicate": 1})).err().expect(method.name);
            assert_eq!(error.data.kind, ErrorKind::InvalidParams, "{}", method.name);
            assert!(!error.data.field.is_empty(), "{}: {error}", method.name);
        }
    }

    #[test]
    fn similar_names_are_suggested() {
        let error = prepare("port.lsit", json!({})).err().unwrap();
        assert_eq!(error.data.help.as_deref(), Some("did you mean port.list?"));
        let error = prepare("port.get", json!({"name": "a", "namespcae": "b"})).err().unwrap();
        assert_eq!(error.data.help.as_deref(), Some("did you mean namespace?"));
        assert_eq!(error.data.field, "namespcae");
    }

    #[test]
    fn openrpc_lists_every_method_with_its_parameters() {
        let document = openrpc();
        let methods = document["methods"].as_array().unwrap();
        assert_eq!(methods.len(), METHODS.len());
        let get = methods.iter().find(|method| method["name"] == "port.get").unwrap();
        let name = get["params"].as_array().unwrap().iter().find(|param| param["name"] == "name").unwrap();
        assert_eq!(name["required"], true);
        assert!(!document.to_string().contains("#/$defs/"));
    }
}
