//! Metadata as EC2 lays it out: a tree of paths, with what clients such as cloud-init ask for. Names are those of the EC2 User
//! Guide, "Instance metadata categories".

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::json;

use super::directory::Workload;

/// Versions that are answered, all alike; cloud-init wants the ones with dates.
pub const VERSIONS: [&str; 6] = ["1.0", "2009-04-04", "2016-09-02", "2018-09-24", "2021-03-23", "latest"];

/// Where the keys lie. A list of this folder is not of names, but of numbers with the keys' names.
const KEYS: &str = "public-keys";

/// Leaves by path.
pub struct Tree(BTreeMap<String, String>);

impl Tree {
    /// What lies below `meta-data`.
    pub fn meta_data(workload: &Workload<'_>) -> Self {
        let port = workload.port;
        let mut tree = Self(BTreeMap::new());
        let id = workload.instance_id();
        let mac = port.mac.to_string();
        tree.leaf("instance-id", &id);
        tree.leaf("hostname", &port.hostname);
        tree.leaf("local-hostname", &port.hostname);
        tree.leaf("mac", &mac);
        if let Some(region) = &workload.spec.region {
            tree.leaf("placement/region", region);
            tree.leaf("placement/availability-zone", region);
        }
        for (index, key) in port.metadata.ssh_keys.iter().enumerate() {
            tree.leaf(&format!("{KEYS}/{index}/openssh-key"), key);
        }
        let of = |name: &str| format!("network/interfaces/macs/{mac}/{name}");
        tree.leaf(&of("mac"), &mac);
        tree.leaf(&of("device-number"), "0");
        tree.leaf(&of("interface-id"), &id.replacen("i-", "eni-", 1));
        tree.leaf(&of("local-hostname"), &port.hostname);
        tree.list(&of("local-ipv4s"), port.v4.iter());
        tree.list(&of("ipv6s"), port.v6.iter());
        tree.list(&of("public-ipv4s"), workload.public(true));
        let (v4, v6) = workload.ranges();
        tree.list(&of("subnet-ipv4-cidr-block"), v4);
        tree.list(&of("subnet-ipv6-cidr-blocks"), v6);
        tree.list("local-ipv4", port.v4.first());
        tree.list("ipv6", port.v6.first());
        tree.list("public-ipv4", workload.public(true).next());
        tree.list("public-ipv6", workload.public(false).next());
        tree
    }

    /// What lies below `dynamic`.
    pub fn dynamic(workload: &Workload<'_>) -> Self {
        let document = json!({
            "version": "2017-09-30",
            "instanceId": workload.instance_id(),
            "region": workload.spec.region,
            "availabilityZone": workload.spec.region,
            "privateIp": workload.port.v4.first(),
        });
        let mut tree = Self(BTreeMap::new());
        tree.leaf("instance-identity/document", &format!("{document:#}"));
        tree
    }

    /// What a path stands for: the value of a leaf, or what lies below it, a folder with a slash. `None` for nothing.
    pub fn read(&self, path: &[&str]) -> Option<String> {
        let path = path.join("/");
        if let Some(value) = self.0.get(&path) {
            return Some(value.clone());
        }
        let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
        let below = self.0.iter().filter_map(|(leaf, value)| Some((leaf.strip_prefix(&prefix)?, value)));
        let mut names: Vec<String> = Vec::new();
        for (rest, value) in below {
            let name = match rest.split_once('/') {
                Some((index, _)) if path == KEYS => format!("{index}={}", name_of_key(value)),
                Some((folder, _)) => format!("{folder}/"),
                None => rest.to_owned(),
            };
            if names.last() != Some(&name) {
                names.push(name);
            }
        }
        (!names.is_empty()).then(|| names.join("\n"))
    }

    fn leaf(&mut self, path: &str, value: &str) {
        self.0.insert(path.to_owned(), value.to_owned());
    }

    /// A line for each; no leaf where there is none.
    fn list<T: std::fmt::Display>(&mut self, path: &str, values: impl IntoIterator<Item = T>) {
        let mut text = String::new();
        for value in values {
            let _ = write!(text, "{}{value}", if text.is_empty() { "" } else { "\n" });
        }
        if !text.is_empty() {
            self.leaf(path, &text);
        }
    }
}

/// A name for a key in a list: its comment, as far as it can stand there.
fn name_of_key(key: &str) -> String {
    let comment = key.split_whitespace().nth(2).unwrap_or_default();
    let plain = |c: &char| c.is_ascii_alphanumeric() || "-_.@".contains(*c);
    let name: String = comment.chars().filter(plain).take(64).collect();
    if name.is_empty() { "key".to_owned() } else { name }
}
