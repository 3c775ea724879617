//! A daemon of one test: its folder, its life, its socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// Nothing takes longer; a test that waits this long fails.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Two ports on one network, in a file.
pub const TWO_PORTS: &str = "\
apiVersion: hostweave.dev/v1alpha1
kind: Network
metadata: {name: default}
spec: {cidrs: [10.64.0.0/24, \"2001:db8:64::/64\"]}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: hostweave.dev/v1alpha1
kind: Port
metadata: {name: file-0, namespace: shop, labels: {app: web}}
spec: {network: default}
";

/// What a command printed, and how it ended.
pub struct Done {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// The binary, with nothing of this machine's environment that would matter.
pub fn hostweave() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hostweave"));
    command
        .env_remove("HOSTWEAVE_CONTROL")
        .env_remove("HOSTWEAVE_LOG")
        .env_remove("NOTIFY_SOCKET")
        .env("NO_COLOR", "1");
    command
}

/// A folder with a daemon, once it was started.
pub struct Daemon {
    dir: TempDir,
    child: Option<Child>,
    /// Socket of a service manager.
    pub notify: Option<PathBuf>,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Daemon {
    /// A folder with `TWO_PORTS` as configuration; nothing runs yet.
    pub fn new() -> Self {
        let daemon = Self { dir: tempfile::tempdir().unwrap(), child: None, notify: None };
        std::fs::create_dir(daemon.path("conf")).unwrap();
        daemon.write("conf/10.yaml", TWO_PORTS);
        daemon
    }

    /// The same, running.
    pub fn started() -> Self {
        let mut daemon = Self::new();
        daemon.start(&[]);
        daemon
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    pub fn control(&self) -> PathBuf {
        self.path("run/control.sock")
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = hostweave();
        command.args(["daemon", "--rootless", "--config"]).arg(self.path("conf"));
        command.arg("--state").arg(self.path("state")).arg("--runtime").arg(self.path("run")).args(more);
        command.envs(self.notify.iter().map(|path| ("NOTIFY_SOCKET", path)));
        command
    }

    /// Starts the daemon and waits until it answers.
    pub fn start(&mut self, more: &[&str]) {
        assert!(self.child.is_none());
        let log = std::fs::File::options().append(true).create(true).open(self.path("log")).unwrap();
        self.child = Some(self.command(more).stderr(log).stdin(Stdio::null()).spawn().unwrap());
        let done = self.cli(&["status", "--wait"]);
        assert_eq!(done.code, 0, "{}{}\n{}", done.stdout, done.stderr, self.log());
    }

    /// Starts a daemon that is expected to end by itself.
    pub fn fails_to_start(&self, more: &[&str]) -> Done {
        let mut child =
            self.command(more).stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
        let started = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if started.elapsed() > TIMEOUT {
                child.kill().unwrap();
                panic!("the daemon started");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        child.wait_with_output().unwrap().into()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// As a crash.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM; the exit code.
    pub fn stop(&mut self) -> i32 {
        self.signal(nix::sys::signal::Signal::SIGTERM);
        let mut child = self.child.take().unwrap();
        let started = Instant::now();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            if started.elapsed() > TIMEOUT {
                child.kill().unwrap();
                panic!("the daemon did not stop: {}", self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = i32::try_from(self.child.as_ref().unwrap().id()).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
    }

    /// Runs a command of the command line.
    pub fn cli(&self, arguments: &[&str]) -> Done {
        self.cli_with(arguments, "")
    }

    /// As [`Self::cli`], with standard input.
    pub fn cli_with(&self, arguments: &[&str], stdin: &str) -> Done {
        let mut command = hostweave();
        command.env("HOSTWEAVE_CONTROL", self.control()).args(["--timeout", "20s"]).args(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // A command that fails early does not read.
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        child.wait_with_output().unwrap().into()
    }

    /// Runs a command that must succeed; what it printed.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let done = self.cli(arguments);
        assert_eq!(done.code, 0, "{arguments:?}: {}{}\n{}", done.stdout, done.stderr, self.log());
        done.stdout
    }

    /// Applies objects, which must succeed.
    pub fn apply(&self, text: &str) -> Done {
        let done = self.cli_with(&["apply", "-f", "-"], text);
        assert_eq!(done.code, 0, "{}{}\n{}", done.stdout, done.stderr, self.log());
        done
    }

    /// Runs a command with `-o json` that must succeed.
    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[arguments, &["-o", "json"]].concat())).unwrap()
    }

    pub fn connect(&self) -> Line {
        Line::connect(&self.control())
    }

    /// Waits until `what` holds.
    pub fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let started = Instant::now();
        while !holds() {
            assert!(started.elapsed() < TIMEOUT, "not in time: {what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A connection that speaks JSON-RPC lines.
pub struct Line(BufReader<UnixStream>);

impl Line {
    pub fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        Self(BufReader::new(stream))
    }

    pub fn send(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
    }

    /// The next line; `None` at the end of the connection.
    pub fn receive(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).unwrap()),
            // The daemon closed with unread octets of ours.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("{error}"),
        }
    }

    pub fn call(&mut self, method: &str, params: Value) -> Value {
        self.send(&format!("{}\n", json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": params})));
        self.receive().unwrap()
    }
}

/// One HTTP request; status and body.
pub fn http(path: &Path, head: &str, body: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let length = body.len();
    let text = format!("{head} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}
