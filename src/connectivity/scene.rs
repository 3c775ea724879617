//! What exists for the test, and only for it: two networks with the same addresses, a namespace, four ports, two Services, a policy.
//!
//! Every object carries a label with the process that made it, so that a later run finds what a killed one left behind.

use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;

use anyhow::{Context, anyhow};
use serde_json::{Value, json};

use crate::cli::client::Client;
use crate::cli::failure::{Failure, code};
use crate::config::Kind;
use crate::config::checked::annotations;
use crate::guests::control::Control;
use crate::guests::linux::IPERF;
use crate::guests::member::ECHO;

/// Label of everything that the test makes; its value is the process.
pub const LABEL: &str = "hostweave.dev/connectivity-test";

/// How long the daemon may take to answer.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

/// IPv4 prefixes for the networks, the first that nobody else has: those for benchmarks (RFC 2544), for providers (RFC 6598), private.
const CIDRS_V4: [&str; 4] = ["198.18.0.0/24", "198.19.255.0/24", "100.127.255.0/24", "10.255.255.0/24"];

/// Kinds of objects of the test, in an order in which they may be deleted.
const KINDS: [Kind; 5] = [Kind::Port, Kind::Service, Kind::NetworkPolicy, Kind::Namespace, Kind::Network];

/// The port that talks.
pub const CLIENT: &str = "client";
/// The port that is talked to.
pub const SERVER: &str = "server";
/// The Service in front of it, for the L4 ports at which guests of either kind serve.
pub const SERVICE: &str = "service";
/// Another port that is talked to, beside [`SERVER`] behind one Service.
pub const SECOND: &str = "second";
/// The Service in front of both, for the L4 port at which built-in guests serve.
pub const SPREAD: &str = "spread";
/// An L4 port that no Service here has.
pub const UNDECLARED: u16 = 9;
/// The port in the other network.
pub const STRANGER: &str = "stranger";

/// The objects, as long as they exist.
pub struct Scene {
    /// Ports of the scene's namespace.
    pub control: Control,
    /// Name of the namespace and of the network.
    pub name: String,
    /// Prefixes of both networks.
    pub cidrs: [String; 2],
    process: String,
    removed: bool,
}

impl Scene {
    /// Creates everything, and removes what runs left behind that were killed.
    ///
    /// # Errors
    /// The daemon cannot be reached, or refuses.
    pub fn create(control: &Path) -> Result<Self, Failure> {
        let mut client = Client::connect(control, PATIENCE)?;
        remove_leftovers(&mut client)?;
        let process = std::process::id().to_string();
        let name = format!("connectivity-{process}");
        let mut refused = None;
        for v4 in CIDRS_V4 {
            let cidrs = [v4.to_owned(), format!("{}/64", unique_local(std::process::id()))];
            let mut scene = Self {
                control: Control::new(control.to_owned(), &name),
                name: name.clone(),
                cidrs,
                process: process.clone(),
                removed: true,
            };
            match client.call("object.apply", json!({"objects": scene.objects()})) {
                Ok(_) => {
                    scene.removed = false;
                    return Ok(scene);
                }
                // Somebody else may have these addresses.
                Err(failure) if failure.code == code::REJECTED => refused = Some(failure),
                Err(failure) => return Err(failure),
            }
        }
        Err(refused.unwrap_or_else(|| Failure::new(code::INTERNAL, "there is no prefix to try")))
    }

    fn object(&self, version: &str, kind: Kind, name: &str, spec: Value) -> Value {
        let mut object = json!({
            "apiVersion": version,
            "kind": kind,
            "metadata": {"name": name, "labels": {LABEL: self.process}},
        });
        if kind.is_namespaced() {
            object["metadata"]["namespace"] = json!(self.name);
        }
        if !spec.is_null() {
            object["spec"] = spec;
        }
        object
    }

    fn objects(&self) -> Vec<Value> {
        const OURS: &str = "hostweave.dev/v1alpha1";
        let other = format!("{}-other", self.name);
        let port = |name: &str, network: &str| {
            let mut port = self.object(OURS, Kind::Port, name, json!({"network": network}));
            port["metadata"]["labels"]["role"] = json!(name);
            port["metadata"]["labels"]["spread"] = json!([SERVER, SECOND].contains(&name).to_string());
            port
        };
        vec![
            self.object("v1", Kind::Namespace, &self.name, Value::Null),
            self.object(OURS, Kind::Network, &self.name, json!({"cidrs": self.cidrs})),
            self.object(OURS, Kind::Network, &other, json!({"cidrs": self.cidrs})),
            self.policy(true),
            port(CLIENT, &self.name),
            port(SERVER, &self.name),
            port(SECOND, &self.name),
            port(STRANGER, &other),
            self.service(SERVICE, &[SERVER], &[ECHO, IPERF]),
            self.service(SPREAD, &[SERVER, SECOND], &[ECHO]),
        ]
    }

    /// A Service in front of one port, or of all that spread.
    fn service(&self, name: &str, backends: &[&str], l4: &[u16]) -> Value {
        let port = |(l4, protocol): (u16, &str)| json!({"name": format!("{}-{l4}", protocol.to_lowercase()), "port": l4, "protocol": protocol});
        let both = l4.iter().flat_map(|l4| ["TCP", "UDP"].map(|protocol| (*l4, protocol)));
        let selector = match backends {
            [one] => json!({"role": one}),
            _ => json!({"spread": "true"}),
        };
        let spec = json!({
            "selector": selector,
            "ipFamilyPolicy": "RequireDualStack",
            "ports": both.map(port).collect::<Vec<_>>(),
        });
        let mut service = self.object("v1", Kind::Service, name, spec);
        service["metadata"]["annotations"] = json!({annotations::NETWORK: self.name});
        service
    }

    /// The policy of the test's ports: they may be reached from each other, or by nobody. Where the host denies by default, it
    /// is what lets them talk.
    fn policy(&self, open: bool) -> Value {
        let ingress = if open { json!([{"from": [{"podSelector": {}}]}]) } else { json!([]) };
        let spec = json!({
            "podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": ingress, "egress": [{}],
        });
        self.object("networking.k8s.io/v1", Kind::NetworkPolicy, "inside", spec)
    }

    /// Lets the ports talk to each other, or denies it.
    ///
    /// # Errors
    /// The daemon refuses.
    pub fn admit(&self, open: bool) -> anyhow::Result<()> {
        self.control.call("object.apply", json!({"objects": [self.policy(open)]})).map(drop)
    }

    /// Gateways of the network of `client` and `server`, IPv4 first.
    ///
    /// # Errors
    /// The daemon does not say.
    pub fn gateways(&self) -> anyhow::Result<Vec<IpAddr>> {
        let said = self.control.port(CLIENT)?["gateways"].take();
        let texts = said.as_array().context("gateways of the network")?;
        let mut gateways: Vec<IpAddr> = texts.iter().filter_map(|text| text.as_str()?.parse().ok()).collect();
        gateways.sort();
        Ok(gateways)
    }

    /// Backends of a Service that have connections at UDP, over one version of IP.
    ///
    /// # Errors
    /// The daemon does not say.
    pub fn backends_in_use(&self, service: &str, ipv6: bool) -> anyhow::Result<usize> {
        let said = self.control.call("service.backends", json!({"namespace": self.name, "name": service}))?;
        let backends = said["backends"].as_array().context("backends of the Service")?;
        let is_in_use = |backend: &&Value| {
            backend["protocol"] == "udp"
                && backend["address"].as_str().is_some_and(|address| address.contains(':') == ipv6)
                && backend["connections"].as_u64().is_some_and(|count| count > 0)
        };
        Ok(backends.iter().filter(is_in_use).count())
    }

    /// What the daemon says would become of a packet from `client`, if it would be dropped; else nothing.
    pub fn why(&self, to: &str) -> Option<String> {
        let trace = json!({"from": format!("{}/{CLIENT}", self.name), "to": to});
        let trace = self.control.call("trace.run", trace).ok()?;
        let reason = trace["reason"].as_str()?;
        let last = trace["stages"].as_array()?.last()?;
        let text = |field: &str| last[field].as_str();
        let policy = match (text("policy"), text("origin")) {
            (Some(policy), Some(origin)) => format!(", {policy} ({origin})"),
            (Some(policy), None) => format!(", {policy}"),
            (None, _) => String::new(),
        };
        Some(format!("{reason} at {}{policy}", text("stage").unwrap_or("-")))
    }

    /// Removes everything again.
    ///
    /// # Errors
    /// The daemon does not answer, or refuses.
    pub fn remove(&mut self) -> anyhow::Result<usize> {
        if self.removed {
            return Ok(0);
        }
        let failed = |failure: Failure| {
            anyhow!("{} (namespace {} stays; the next test removes it)", failure.diagnostics, self.name)
        };
        let mut client = Client::connect(self.control.path(), PATIENCE).map_err(failed)?;
        let gone = remove(&mut client, |process| process == self.process).map_err(failed)?;
        self.removed = true;
        Ok(gone)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // Where this fails, the next run does it.
        let _ = self.remove();
    }
}

/// A unique local prefix (RFC 4193) of this process.
fn unique_local(process: u32) -> Ipv6Addr {
    Ipv6Addr::from(0xfd68_7763_0000_0000_u128 << 64 | u128::from(process) << 64)
}

/// Removes what processes left behind that run no more.
fn remove_leftovers(client: &mut Client) -> Result<usize, Failure> {
    remove(client, |process| process.parse::<u32>().is_ok_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()))
}

/// Removes all objects with the label, of processes that are wanted, at once.
fn remove(client: &mut Client, wanted: impl Fn(&str) -> bool) -> Result<usize, Failure> {
    let mut sources = Vec::new();
    for kind in KINDS {
        let listed = client.call("object.list", json!({"kind": kind, "selector": LABEL}))?;
        for item in listed["items"].as_array().into_iter().flatten() {
            let process = item["object"]["metadata"]["labels"][LABEL].as_str().unwrap_or_default();
            if wanted(process) {
                sources.push(json!({"name": "connectivity test", "text": item["yaml"]}));
            }
        }
    }
    if !sources.is_empty() {
        client.call("object.delete", json!({"sources": sources, "ifExists": true}))?;
    }
    Ok(sources.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_process_has_a_prefix_of_its_own() {
        assert_eq!(unique_local(1).to_string(), "fd68:7763:0:1::");
        assert_eq!(unique_local(0x12_3456).to_string(), "fd68:7763:12:3456::");
    }

    #[test]
    fn the_objects_are_valid() {
        let scene = Scene {
            control: Control::new("/none".into(), "connectivity-1"),
            name: "connectivity-1".into(),
            cidrs: [CIDRS_V4[0].into(), "fd68:7763:0:1::/64".into()],
            process: "1".into(),
            removed: true,
        };
        let texts = scene.objects().iter().map(Value::to_string).collect::<Vec<_>>().join("\n---\n");
        let source = crate::config::Source { name: "t".into(), text: texts };
        assert_eq!(crate::config::load_sources(vec![source]).unwrap().objects.len(), 10);
    }
}
