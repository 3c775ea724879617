//! Network namespaces, and scenarios that run in them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread::JoinHandle;

use nix::sched::{CloneFlags, setns};

/// A scenario, by its name.
pub type Scenario = (&'static str, fn());

/// Runs the scenarios whose names hold the first argument that is no option, all without one.
pub fn run(program: &str, scenarios: &[Scenario]) -> ExitCode {
    if let Some(missing) = missing() {
        println!("{program}: SKIPPED, this needs {missing}");
        return ExitCode::SUCCESS;
    }
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let mut failed = 0;
    for (name, scenario) in scenarios {
        if filter.as_ref().is_some_and(|filter| !name.contains(filter.as_str())) {
            continue;
        }
        let result = std::panic::catch_unwind(scenario);
        println!("test {program}::{name} ... {}", if result.is_ok() { "ok" } else { "FAILED" });
        failed += u32::from(result.is_err());
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether namespaces can be made here; if not, what that needs.
pub fn missing() -> Option<&'static str> {
    let name = format!("hw-up-{}-try", std::process::id());
    let made = Command::new("ip").args(["netns", "add", &name]).stderr(Stdio::null()).status();
    if !made.is_ok_and(|status| status.success()) {
        return Some("root and `ip netns`");
    }
    let _ = Command::new("ip").args(["netns", "del", &name]).status();
    None
}

pub fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split_whitespace()).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// A network namespace that goes away with the value.
pub struct Netns(pub String);

impl Netns {
    pub fn new(scenario: &str) -> Self {
        let name = format!("hw-up-{}-{scenario}", std::process::id());
        ip(&format!("netns add {name}"));
        let netns = Self(name);
        netns.ip("link set lo up");
        netns
    }

    pub fn name(&self) -> &str {
        &self.0
    }

    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }

    pub fn ip(&self, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.0));
    }

    pub fn ping(&self, target: &str) -> bool {
        let arguments = ["netns", "exec", &self.0, "ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", target];
        Command::new("ip").args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
    }

    /// What a program inside prints.
    pub fn output(&self, arguments: &str) -> String {
        let all = format!("netns exec {} {arguments}", self.0);
        let output = Command::new("ip").args(all.split_whitespace()).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Writes to a file below /proc/sys/net.
    pub fn sysctl(&self, name: &str, value: &str) {
        let (path, value) = (format!("/proc/sys/net/{name}"), value.to_owned());
        self.inside(move || std::fs::write(path, value).unwrap()).join().unwrap();
    }

    /// Runs `body` on a thread of its own inside the namespace.
    pub fn inside<T: Send + 'static>(&self, body: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let file = File::open(self.path()).unwrap();
        std::thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            body()
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).stderr(Stdio::null()).status();
    }
}
