//! Which words of a report are somebody's own: names, labels, hosts, files. And what stands for each.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value;

use super::secrets::LEFT_OUT;
use super::{Body, Document};
use crate::config::Kind;
use crate::config::explain::schema_of_all;

/// Longest name that is looked for within texts (a DNS name, RFC 1035 §2.3.4).
pub const LEN_MAX: usize = 253;

/// Words of hostweave, Kubernetes and file systems that say nothing about anybody.
const COMMON: [&str; 40] = [
    "default",
    "hostweave",
    "cluster.local",
    "connectivity",
    "true",
    "false",
    "null",
    "none",
    "run",
    "var",
    "lib",
    "etc",
    "tmp",
    "home",
    "root",
    "usr",
    "opt",
    "dev",
    "proc",
    "sys",
    "conf",
    "conf.d",
    "netns",
    "net",
    "ports",
    "state",
    "store",
    "control.sock",
    "hostweave.yaml",
    "yaml",
    "yml",
    "json",
    "kubernetes.io",
    "http",
    "https",
    "dns",
    "metadata",
    "v1",
    "built in",
    "applied at run time",
];

/// Fields whose keys are somebody's words.
const KEYED: [&str; 5] = ["labels", "annotations", "matchLabels", "selector", "nodeSelector"];

/// Prefixes of label keys that are standards.
const STANDARD_KEYS: [&str; 5] = ["kubernetes.io/", "hostweave.dev/", "coreweave", "metallb.universe.tf/", "k8s.io/"];

/// What stands for each name.
pub struct Names {
    tokens: HashMap<String, String>,
    /// Those that are no words, longest first.
    phrases: Vec<String>,
}

impl Names {
    /// Finds the names in the objects of a report, and those of the machine.
    pub fn find(documents: &[Document], own: &[String]) -> Self {
        let mut finder = Finder { vocabulary: vocabulary(), found: Vec::new(), seen: HashSet::new() };
        let of_objects = documents.iter().filter(|document| document.name.starts_with("objects/"));
        let items = of_objects.filter_map(|document| match &document.body {
            Body::Json(value) => value.as_array(),
            Body::Text(_) => None,
        });
        let items: Vec<&Value> = items.flatten().collect();
        // What an object is called first: others refer to it.
        items.iter().for_each(|item| finder.called(&item["object"]));
        items.iter().for_each(|item| finder.object(item));
        for document in documents {
            let Body::Json(value) = &document.body else { continue };
            if document.name == "status.json" {
                finder.texts(&value["runtimeDir"], "dir");
                finder.texts(&value["config"], "dir");
                finder.texts(&value["host"], "host");
            }
        }
        own.iter().for_each(|name| finder.text(name, "host"));
        let mut numbers = BTreeMap::<&str, usize>::new();
        let mut tokens = HashMap::new();
        for (name, role) in &finder.found {
            let token = loop {
                let number = numbers.entry(role).or_default();
                *number += 1;
                let token = format!("{role}-{number}");
                if !finder.seen.contains(&token) {
                    break token;
                }
            };
            tokens.insert(name.clone(), token);
        }
        let mut phrases: Vec<String> = tokens.keys().filter(|name| !is_word(name)).cloned().collect();
        phrases.sort_by_key(|name| std::cmp::Reverse(name.len()));
        Self { tokens, phrases }
    }

    /// What stands for a name, if it is one.
    pub fn token(&self, name: &str) -> Option<&str> {
        self.tokens.get(name).map(String::as_str)
    }

    /// A text without the names that are no words.
    pub fn without_phrases(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for phrase in &self.phrases {
            if text.contains(phrase.as_str()) {
                text = text.replace(phrase.as_str(), &self.tokens[phrase]);
            }
        }
        text
    }
}

/// Whether a field holds keys that are somebody's words.
pub fn is_keyed(field: &str) -> bool {
    KEYED.contains(&field)
}

/// Whether the scanner of texts finds it: it has no spaces and the like, and begins and ends with a letter or digit.
fn is_word(name: &str) -> bool {
    let within = |c: char| c.is_alphanumeric() || is_joint(c);
    let ends = name.starts_with(char::is_alphanumeric) && name.ends_with(char::is_alphanumeric);
    name.len() <= LEN_MAX && ends && name.chars().all(within)
}

/// What may stand between the parts of a name.
pub fn is_joint(c: char) -> bool {
    matches!(c, '.' | '-' | '_' | ':' | '/')
}

/// Words that objects may contain whoever wrote them: the values that the schema lists, and [`COMMON`].
fn vocabulary() -> HashSet<String> {
    let mut words: HashSet<String> = COMMON.iter().map(|word| (*word).to_owned()).collect();
    words.insert(LEFT_OUT.to_owned());
    words.extend(Kind::ALL.iter().flat_map(|kind| [kind.as_str().to_owned(), kind.api_version().to_owned()]));
    listed(&schema_of_all(), &mut words);
    words
}

fn listed(schema: &Value, words: &mut HashSet<String>) {
    match schema {
        Value::Object(fields) => {
            words.extend(fields.get("const").and_then(Value::as_str).map(str::to_owned));
            let choices = fields.get("enum").and_then(Value::as_array).into_iter().flatten();
            words.extend(choices.filter_map(Value::as_str).map(str::to_owned));
            fields.values().for_each(|value| listed(value, words));
        }
        Value::Array(items) => items.iter().for_each(|item| listed(item, words)),
        _ => {}
    }
}

struct Finder {
    vocabulary: HashSet<String>,
    /// In the order in which they were found, with what they are names of.
    found: Vec<(String, &'static str)>,
    seen: HashSet<String>,
}

impl Finder {
    fn called(&mut self, object: &Value) {
        let metadata = &object["metadata"];
        self.texts(&metadata["namespace"], "ns");
        let kind: Option<Kind> = object["kind"].as_str().and_then(|kind| kind.parse().ok());
        self.texts(&metadata["name"], kind.map_or("object", role));
    }

    fn object(&mut self, item: &Value) {
        let object = &item["object"];
        let metadata = &object["metadata"];
        self.keyed(&metadata["labels"], "label");
        self.keyed(&metadata["annotations"], "note");
        self.walk("spec", &object["spec"]);
        if let Some(origin) = item["origin"].as_str() {
            self.text(origin.rsplit_once(':').map_or(origin, |(file, _)| file), "dir");
        }
    }

    fn walk(&mut self, field: &str, value: &Value) {
        match value {
            Value::Object(_) if is_keyed(field) => self.keyed(value, "label"),
            Value::Object(fields) => fields.iter().for_each(|(field, value)| self.walk(field, value)),
            Value::Array(items) => items.iter().for_each(|item| self.walk(field, item)),
            Value::String(text) => self.text(text, "word"),
            _ => {}
        }
    }

    fn keyed(&mut self, map: &Value, role: &'static str) {
        for (key, value) in map.as_object().into_iter().flatten() {
            if !STANDARD_KEYS.iter().any(|prefix| key.contains(prefix)) {
                self.add(key, role);
            }
            match value {
                Value::String(text) => self.text(text, role),
                other => self.walk("", other),
            }
        }
    }

    fn texts(&mut self, value: &Value, role: &'static str) {
        match value {
            Value::String(text) => self.text(text, role),
            Value::Array(items) => items.iter().for_each(|item| self.texts(item, role)),
            _ => {}
        }
    }

    /// A name; of a path, each part.
    fn text(&mut self, text: &str, role: &'static str) {
        if text.starts_with('/') || role == "dir" {
            text.split('/').for_each(|part| self.add(part, role));
        } else {
            self.add(text, role);
        }
    }

    fn add(&mut self, name: &str, role: &'static str) {
        // Numbers and quantities (`8080`, `30s`, `10.64.0.0/24`) are not names.
        let names_something = name.chars().any(char::is_alphabetic) && !is_quantity(name) && !is_address(name);
        if names_something && !self.vocabulary.contains(name) && self.seen.insert(name.to_owned()) {
            self.found.push((name.to_owned(), role));
        }
    }
}

fn role(kind: Kind) -> &'static str {
    match kind {
        Kind::HostConfig => "host",
        Kind::Namespace => "ns",
        Kind::Network => "network",
        Kind::NatPool | Kind::AddressPool => "pool",
        Kind::Service | Kind::EndpointSlice => "service",
        Kind::Port | Kind::Pod => "port",
        Kind::NetworkPolicy | Kind::ClusterNetworkPolicy => "policy",
    }
}

/// Digits with a unit.
fn is_quantity(text: &str) -> bool {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let number = &text[..text.len() - unit.len()];
    // `10.yaml` is a file.
    let is_number = !number.ends_with('.') && number.parse::<f64>().is_ok();
    is_number && unit.len() <= 4 && unit.chars().all(|c| c.is_ascii_alphabetic() || c == '%')
}

/// An address of any kind, with or without a prefix length, or a range of them.
fn is_address(text: &str) -> bool {
    let first = text.split(['/', '-']).next().unwrap_or_default();
    first.parse::<std::net::IpAddr>().is_ok() || super::redact::mac(text).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_and_addresses_are_no_names() {
        for text in ["8080", "30s", "1.5G", "10Mbit", "50%"] {
            assert!(is_quantity(text), "{text}");
        }
        for text in ["10.yaml", "web-0", "s", "7zippers"] {
            assert!(!is_quantity(text), "{text}");
        }
        for text in ["10.64.0.1", "10.64.0.0/24", "10.0.0.1-10.0.0.9", "fd00::/64", "02:00:0a:40:00:0c"] {
            assert!(is_address(text), "{text}");
        }
        assert!(!is_address("web") && !is_address("/run/x"));
    }

    #[test]
    fn words_of_hostweave_stay_and_tokens_are_nobodys_names() {
        let object = serde_json::json!([{"object": {"kind": "Port", "metadata": {"name": "allow", "namespace": "port-1"},
            "spec": {"network": "default", "a": "label-1"}}}, {"object": {"kind": "Port", "metadata": {"name": "x1y"}}}]);
        let names = Names::find(&[Document::json("objects/ports.json", object)], &[]);
        assert_eq!([names.token("allow"), names.token("default")], [None, None]);
        assert_eq!(names.token("x1y"), Some("port-2"), "port-1 is somebody's");
    }
}
