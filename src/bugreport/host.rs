//! Facts about the machine, as files of `/proc` and `/sys` have them, and the daemon's log.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::{Map, Value, json};

use super::Document;

/// Lines of the log.
const LOG_LINES: &str = "5000";

/// The unit that the log is of.
const UNIT: &str = "hostweave.service";

/// Short files that say what a host is like.
const FILES: [&str; 12] = [
    "/etc/os-release",
    "/proc/loadavg",
    "/proc/uptime",
    "/proc/meminfo",
    "/proc/sys/kernel/io_uring_disabled",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/net/ipv6/conf/all/forwarding",
    "/proc/sys/vm/nr_hugepages",
    "/proc/sys/vm/max_map_count",
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/devices/system/cpu/online",
    "/sys/devices/system/cpu/isolated",
];

/// Files of the daemon's process.
const PROCESS_FILES: [&str; 2] = ["limits", "status"];

/// What the machine is like; with the daemon's process, if it is known.
pub fn facts(daemon: Option<u64>) -> Vec<Document> {
    let mut facts = Map::new();
    if let Ok(system) = nix::sys::utsname::uname() {
        let text = |value: &std::ffi::OsStr| value.to_string_lossy().into_owned();
        facts.insert("kernel".into(), json!(text(system.release())));
        facts.insert("kernelVersion".into(), json!(text(system.version())));
        facts.insert("machine".into(), json!(text(system.machine())));
        facts.insert("hostname".into(), json!(text(system.nodename())));
    }
    facts.insert("cpus".into(), json!(std::thread::available_parallelism().map_or(0, usize::from)));
    facts.insert("cpuModel".into(), json!(cpu_model()));
    facts.insert("uid".into(), json!(nix::unistd::getuid().as_raw()));
    facts.insert("kvm".into(), json!(fs::exists("/dev/kvm").unwrap_or(false)));
    facts.insert("tun".into(), json!(fs::exists("/dev/net/tun").unwrap_or(false)));
    let mut documents = vec![Document::json("host/facts.json", Value::Object(facts))];
    let files = FILES.iter().map(|path| ((*path).to_owned(), path.trim_start_matches('/').replace('/', "-")));
    let of_process = daemon.into_iter().flat_map(|pid| {
        PROCESS_FILES.iter().map(move |name| (format!("/proc/{pid}/{name}"), format!("daemon-{name}")))
    });
    for (path, name) in files.chain(of_process) {
        // A kernel without it, or another user's process.
        if let Ok(text) = fs::read_to_string(&path) {
            documents.push(Document::text(&format!("host/{name}.txt"), text));
        }
    }
    documents
}

fn cpu_model() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// What this machine and its user call themselves.
pub fn own_names() -> Vec<String> {
    let hostname = nix::sys::utsname::uname().map(|system| system.nodename().to_string_lossy().into_owned()).ok();
    let users = ["USER", "SUDO_USER", "LOGNAME"].into_iter().filter_map(|name| std::env::var(name).ok());
    let home = std::env::var("HOME").ok().into_iter();
    hostname.into_iter().chain(users).chain(home).collect()
}

/// The daemon's log as the journal has it.
///
/// # Errors
/// Why it cannot be read.
pub fn log() -> Result<Document, String> {
    let mut command = Command::new("journalctl");
    command.args(["--no-pager", "--output", "short-iso-precise", "--lines", LOG_LINES, "--unit", UNIT]);
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("the log: journalctl: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() || text.lines().all(|line| line.starts_with("-- ")) {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().next().unwrap_or("no entries");
        return Err(format!("the log: journalctl: {said} (elsewhere? please add what the daemon wrote to stderr)"));
    }
    Ok(Document::text("log.txt", text))
}
