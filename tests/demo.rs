//! The demo as a person runs it: a process, its lines, its exit code, and nothing left behind.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn demo(temporary: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hostweave"));
    command.arg("demo").args(arguments).env("TMPDIR", temporary).env_remove("HOSTWEAVE_CONTROL");
    command.stdin(Stdio::null()).output().expect("the program starts")
}

fn left_behind(temporary: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(temporary).expect("a readable folder");
    entries.map(|entry| entry.expect("a readable entry").path()).collect()
}

#[test]
fn the_demo_passes_and_says_what_it_saw() {
    let temporary = tempfile::tempdir().unwrap();
    let output = demo(temporary.path(), &["--headless", "--duration", "2s"]);
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}{errors}");
    assert!(!text.contains("FAIL") && !text.contains('\u{1b}'), "{text}");
    let parts = [
        "daemon",
        "addresses",
        "ping",
        "TCP data",
        "TCP IPv4",
        "TCP IPv6",
        "isolation",
        "spoofing",
        "bad ring",
        "restart",
        "unharmed",
        "first sums",
        "kill -9",
        "ledger",
        "stop",
    ];
    let passed: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("PASS  ")).collect();
    assert_eq!(passed.len(), parts.len(), "{text}");
    for (line, part) in passed.iter().zip(parts) {
        assert!(line.starts_with(part), "{part} is not the next part:\n{text}");
    }
    for seen in
        ["15 of 15 passed", "10.77.0.20", "fd77::", "round trip", "Gbit/s", "spoofed_ip 40", "closed", "kill -9"]
    {
        assert!(text.contains(seen), "{seen} was not seen:\n{text}");
    }
    assert_eq!(left_behind(temporary.path()), Vec::<PathBuf>::new());
}

#[test]
fn a_demo_that_cannot_begin_says_why() {
    let output = demo(Path::new("/nonexistent"), &["--headless"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("/nonexistent") && errors.contains("TMPDIR"), "{errors}");
}

#[test]
fn without_its_pieces_the_demo_with_qemu_says_what_to_run() {
    let temporary = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_hostweave"));
    command.args(["demo", "--qemu", "--headless"]).env("TMPDIR", temporary.path());
    let output = command.env("HOSTWEAVE_QEMU_GUEST", "/nonexistent").stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("FAIL  pieces"), "{text}");
    assert!(text.contains("tests/qemu/setup.sh") || text.contains("apt install qemu-system-x86"), "{text}");
    assert_eq!(left_behind(temporary.path()), Vec::<PathBuf>::new());
}
