//! The command line's side of the control socket: one request, one answer, or a feed.

use std::io::{BufRead, BufReader, ErrorKind as IoKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::failure::{Failure, code};
use crate::control::error::RpcError;

/// A connection to the daemon.
pub struct Client {
    stream: BufReader<UnixStream>,
    path: PathBuf,
    next: u64,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// Exit code 4 where nobody listens, 6 where the socket's permissions forbid it.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self, Failure> {
        let stream = UnixStream::connect(path).map_err(|error| unreachable(path, &error))?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        Ok(Self { stream: BufReader::new(stream), path: path.to_owned(), next: 1 })
    }

    /// Calls a method.
    ///
    /// # Errors
    /// The daemon's error, or the connection's.
    pub fn call(&mut self, method: &str, params: Value) -> Result<Value, Failure> {
        let id = self.next;
        self.next += 1;
        let request = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        let written = self.stream.get_mut().write_all(format!("{request}\n").as_bytes());
        written.map_err(|error| self.broken(&error))?;
        loop {
            let mut answer = self.line()?;
            // Notifications of subscriptions may come first; an answer without id is about the connection itself.
            if answer["id"] != id && answer.get("error").is_none() {
                continue;
            }
            if let Some(error) = answer.get_mut("error").map(Value::take) {
                let error: RpcError = serde_json::from_value(error).map_err(|error| {
                    Failure::new(code::INTERNAL, format!("the daemon's answer makes no sense: {error}"))
                })?;
                return Err(error.into());
            }
            return Ok(answer["result"].take());
        }
    }

    /// Waits for the next notification, for as long as it takes.
    ///
    /// # Errors
    /// The connection ended.
    pub fn notification(&mut self) -> Result<Value, Failure> {
        self.stream.get_ref().set_read_timeout(None)?;
        loop {
            let mut message = self.line()?;
            if message.get("method").is_some() {
                return Ok(message["params"]["result"].take());
            }
        }
    }

    /// The connection, for whoever ends it while this waits.
    ///
    /// # Errors
    /// The process has no file descriptor left.
    pub fn stream(&self) -> std::io::Result<UnixStream> {
        self.stream.get_ref().try_clone()
    }

    fn line(&mut self) -> Result<Value, Failure> {
        let mut line = Vec::new();
        match self.stream.read_until(b'\n', &mut line) {
            Ok(0) => Err(Failure::new(code::UNREACHABLE, "the daemon ended the connection")),
            Ok(_) => serde_json::from_slice(&line)
                .map_err(|error| Failure::new(code::INTERNAL, format!("the daemon's answer is not JSON: {error}"))),
            Err(error) => Err(self.broken(&error)),
        }
    }

    fn broken(&self, error: &std::io::Error) -> Failure {
        match error.kind() {
            IoKind::WouldBlock | IoKind::TimedOut => {
                Failure::new(code::TIMEOUT, format!("the daemon at {} did not answer in time", self.path.display()))
                    .help("wait longer with --timeout")
            }
            _ => Failure::new(code::UNREACHABLE, format!("the connection to the daemon broke: {error}")),
        }
    }
}

fn unreachable(path: &Path, error: &std::io::Error) -> Failure {
    // `Permission denied (os error 13)`: people know the words, not the number.
    let reason = error.to_string();
    let reason = reason.split(" (os error").next().unwrap_or(&reason);
    let message = format!("cannot reach the daemon at {} ({reason})", path.display());
    if error.kind() == IoKind::PermissionDenied {
        return Failure::new(code::PERMISSION, message).help("use sudo, or become a member of group hostweave");
    }
    let help = "start it with `sudo systemctl start hostweave`, or without root: `hostweave daemon --rootless`";
    Failure::new(code::UNREACHABLE, message).help(help)
}
