//! What is asked of the daemon for a report.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Document, host};
use crate::cli::client::Client;
use crate::cli::failure::{Failure, code};
use crate::config::Kind;

/// How long the daemon may take for each answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Events in a report.
const EVENTS_MAX: usize = 1000;

/// Ports that are described one by one; of others there is what `object.list` says.
const PORTS_DESCRIBED_MAX: usize = 256;

/// Connections that the summary counts.
const CONNECTIONS_MAX: usize = 100_000;

/// Ports that the summary of connections names.
const BUSIEST_MAX: usize = 20;

/// Octets of metrics that are read at most.
const METRICS_MAX: u64 = 16 << 20;

/// Methods without parameters, and the file that their answer goes to.
const ANSWERS: [(&str, &str); 6] = [
    ("server.status", "status.json"),
    ("port.stats", "stats.json"),
    ("uplink.get", "uplink.json"),
    ("nat.stats", "nat.json"),
    ("doctor.run", "doctor.json"),
    ("policy.list", "policies.json"),
];

/// Everything that can be had, and why the rest cannot.
pub fn collect(control: &Path) -> (Vec<Document>, Vec<String>) {
    let (mut documents, mut missing) = (Vec::new(), Vec::new());
    let mut version = json!({"client": env!("CARGO_PKG_VERSION"), "revision": option_env!("HOSTWEAVE_GIT_REVISION")});
    let mut pid = None;
    match Client::connect(control, PATIENCE) {
        Ok(mut client) => {
            if let Some(hello) = told(client.call("server.hello", json!({})), "server.hello", &mut missing) {
                pid = hello["pid"].as_u64();
                version["daemon"] = hello;
            }
            of_daemon(&mut client, &mut documents, &mut missing);
            match metrics(control) {
                Ok(text) => documents.push(Document::text("metrics.txt", text)),
                Err(error) => missing.push(format!("metrics: {error}")),
            }
        }
        Err(failure) => missing.push(format!("everything that the daemon knows: {}", one_line(&failure))),
    }
    documents.insert(0, Document::json("version.json", version));
    documents.extend(host::facts(pid));
    match host::log() {
        Ok(log) => documents.push(log),
        Err(error) => missing.push(error),
    }
    (documents, missing)
}

fn of_daemon(client: &mut Client, documents: &mut Vec<Document>, missing: &mut Vec<String>) {
    for (method, file) in ANSWERS {
        if let Some(answer) = told(client.call(method, json!({})), method, missing) {
            documents.push(Document::json(file, answer));
        }
    }
    for kind in Kind::ALL {
        let what = format!("objects of kind {kind}");
        let Some(mut list) = told(client.call("object.list", json!({"kind": kind})), &what, missing) else { continue };
        let mut items = list["items"].take();
        // The text is the same once more, comments and all.
        items.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut).for_each(|item| {
            item.remove("yaml");
        });
        if kind == Kind::Port {
            documents.extend(ports(client, &items, missing));
        }
        documents.push(Document::json(&format!("objects/{}.json", kind.plural()), items));
    }
    let events = client.call("event.list", json!({"last": EVENTS_MAX}));
    documents.extend(told(events, "events", missing).map(|events| Document::json("events.json", events)));
    let connections = client.call("conntrack.list", json!({"limit": CONNECTIONS_MAX}));
    let connections = told(connections, "connections", missing);
    documents.extend(connections.map(|list| Document::json("connections.json", summary(&list))));
}

/// Ports one by one, with their attachments.
fn ports(client: &mut Client, items: &Value, missing: &mut Vec<String>) -> Option<Document> {
    let mut described = Vec::new();
    let names = items.as_array().into_iter().flatten().map(|item| &item["object"]["metadata"]);
    for metadata in names.take(PORTS_DESCRIBED_MAX) {
        let named = json!({"namespace": metadata["namespace"], "name": metadata["name"]});
        described.extend(told(client.call("port.describe", named), "a port", missing).map(|mut it| it["port"].take()));
    }
    (!described.is_empty()).then(|| Document::json("ports.json", json!(described)))
}

/// How many connections there are in which state, and who has most. Whom they are with is nobody's business.
fn summary(list: &Value) -> Value {
    let (mut states, mut ports) = (BTreeMap::<String, u64>::new(), BTreeMap::<String, u64>::new());
    for connection in list["connections"].as_array().into_iter().flatten() {
        let text = |field: &str| connection[field].as_str().unwrap_or("-");
        *states.entry(format!("{} {}", text("protocol"), text("state"))).or_default() += 1;
        *ports.entry(connection["source"]["port"].as_str().unwrap_or("-").to_owned()).or_default() += 1;
    }
    let mut busiest: Vec<(String, u64)> = ports.into_iter().collect();
    busiest.sort_by_key(|(name, count)| (std::cmp::Reverse(*count), name.clone()));
    busiest.truncate(BUSIEST_MAX);
    let busiest: Vec<Value> = busiest.iter().map(|(port, count)| json!({"port": port, "begun": count})).collect();
    json!({
        "total": list["total"], "used": list["used"], "capacity": list["capacity"], "states": states, "busiest": busiest,
    })
}

/// The answer; or a line about why there is none. What does not exist, such as an uplink, is not missing.
fn told(answer: Result<Value, Failure>, what: &str, missing: &mut Vec<String>) -> Option<Value> {
    let failure = match answer {
        Ok(answer) => return Some(answer),
        Err(failure) => failure,
    };
    if failure.code != code::NOT_FOUND {
        missing.push(format!("{what}: {}", one_line(&failure)));
    }
    None
}

fn one_line(failure: &Failure) -> String {
    failure.diagnostics.0.first().map_or_else(|| "it failed".to_owned(), |first| first.message.clone())
}

/// The metrics, over HTTP on the control socket.
fn metrics(control: &Path) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(control)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(METRICS_MAX).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.split(' ').nth(1) == Some("200") => Ok(body.to_owned()),
        _ => Err(std::io::Error::other(answer.lines().next().unwrap_or("no answer").to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_counted_and_not_told() {
        let list = json!({"total": 3, "used": 3, "capacity": 8, "connections": [
            {"protocol": "tcp", "state": "established", "source": {"port": "shop/web"},
                "destination": {"address": "192.0.2.9"}},
            {"protocol": "tcp", "state": "established", "source": {"port": "shop/web"}},
            {"protocol": "udp", "state": "replied", "source": {"port": "shop/db"}},
        ]});
        let summary = summary(&list);
        assert_eq!(summary["states"], json!({"tcp established": 2, "udp replied": 1}));
        assert_eq!(summary["busiest"][0], json!({"port": "shop/web", "begun": 2}));
        assert!(!summary.to_string().contains("192.0.2.9"));
    }

    #[test]
    fn without_a_daemon_there_is_still_the_machine() {
        let (documents, missing) = collect(Path::new("/nonexistent/control.sock"));
        assert!(documents.iter().any(|document| document.name == "host/facts.json"));
        assert!(missing[0].contains("cannot reach the daemon"), "{missing:?}");
    }
}
