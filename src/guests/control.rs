//! The control socket, as those who bring guests use it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::anyhow;
use serde_json::{Value, json};

use crate::cli::client::Client;

/// How long the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// The control socket of a daemon that may be down at times.
#[derive(Clone, Debug)]
pub struct Control {
    path: PathBuf,
    namespace: String,
}

impl Control {
    /// That of a daemon; ports are those of `namespace`.
    pub fn new(path: PathBuf, namespace: &str) -> Self {
        Self { path, namespace: namespace.to_owned() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Parameters that name a port.
    pub fn named(&self, name: &str) -> Value {
        json!({"namespace": self.namespace, "name": name})
    }

    /// Calls a method on a connection of its own.
    ///
    /// # Errors
    /// The daemon's answer, or that there is none.
    pub fn call(&self, method: &str, params: Value) -> anyhow::Result<Value> {
        let answer = Client::connect(&self.path, PATIENCE).and_then(|mut client| client.call(method, params));
        answer.map_err(|failure| anyhow!("{method}: {}", failure.diagnostics))
    }

    /// One port, with everything that is known about it.
    ///
    /// # Errors
    /// As for [`Control::call`].
    pub fn port(&self, name: &str) -> anyhow::Result<Value> {
        Ok(self.call("port.describe", self.named(name))?["port"].take())
    }

    /// State of a port.
    ///
    /// # Errors
    /// As for [`Control::call`].
    pub fn state(&self, name: &str) -> anyhow::Result<String> {
        Ok(self.port(name)?["state"].as_str().unwrap_or_default().to_owned())
    }

    /// All counters of one port.
    ///
    /// # Errors
    /// As for [`Control::call`].
    pub fn counters(&self, name: &str) -> anyhow::Result<Counters> {
        Ok(Counters(self.port(name)?["counters"].take()))
    }
}

/// Counters of one port, as `port stats` has them.
#[derive(Clone, Debug)]
pub struct Counters(pub Value);

impl Counters {
    /// A counter by name; 0 where it is not there, as drop reasons that never happened.
    pub fn get(&self, pointer: &str) -> u64 {
        self.0.pointer(pointer).and_then(Value::as_u64).unwrap_or(0)
    }

    /// All reasons of one list, `dropped` or `transmitDropped`, together.
    pub fn sum(&self, list: &str) -> u64 {
        self.0[list].as_object().into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum()
    }

    /// The frames of the guest that ended for a reason.
    pub fn dropped(&self, reason: &str) -> u64 {
        self.get(&format!("/dropped/{reason}"))
    }

    /// The reasons in `dropped` and `transmitDropped`, with their counts.
    pub fn all_dropped(&self) -> impl Iterator<Item = (&str, u64)> {
        let lists = ["dropped", "transmitDropped"].into_iter().filter_map(|list| self.0[list].as_object());
        lists.flatten().map(|(reason, count)| (reason.as_str(), count.as_u64().unwrap_or(0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_that_are_not_there_are_zero() {
        let counters = Counters(json!({"forwarded": 7, "dropped": {"spoofed_ip": 2}, "transmitDropped": {"x": 1}}));
        assert_eq!((counters.get("/forwarded"), counters.dropped("spoofed_ip"), counters.dropped("y")), (7, 2, 0));
        assert_eq!(counters.all_dropped().collect::<Vec<_>>(), [("spoofed_ip", 2), ("x", 1)]);
    }
}
