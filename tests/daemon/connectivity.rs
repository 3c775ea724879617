//! `connectivity test` against a running daemon: what it says, and that nothing stays behind.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Daemon, hostweave};

/// All that the test could have left.
fn objects(daemon: &Daemon) -> Vec<String> {
    let kinds = ["namespaces", "networks", "ports", "services", "networkpolicies"];
    kinds
        .iter()
        .flat_map(|kind| daemon.ok(&["get", kind, "-A", "-o", "name"]).lines().map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

#[test]
fn the_running_host_is_tried_and_nothing_stays_behind() {
    let daemon = Daemon::started();
    let before = objects(&daemon);
    let junit = daemon.path("junit.xml");
    let done = daemon.cli(&["connectivity", "test", "--junit", junit.to_str().unwrap()]);
    assert_eq!(done.code, 0, "{}{}\n{}", done.stdout, done.stderr, daemon.log());
    let parts =
        ["attach", "addresses", "gateway", "ping", "TCP", "UDP", "DNS", "Service", "policy", "isolation", "spoofing"];
    for part in parts {
        assert!(done.stdout.contains(&format!("PASS  {part}")), "{part}: {}", done.stdout);
    }
    assert!(done.stdout.contains("SKIP  egress     the host has no uplink"), "{}", done.stdout);
    assert!(done.stdout.contains("12 of 12 passed, 1 skipped"), "{}", done.stdout);
    assert_eq!(objects(&daemon), before);
    let xml = std::fs::read_to_string(junit).unwrap();
    assert_eq!((xml.matches("<testcase ").count(), xml.matches("<skipped ").count()), (13, 1), "{xml}");
    assert!(xml.contains("failures=\"0\" errors=\"0\""), "{xml}");
}

#[test]
fn a_host_that_denies_by_default_is_tried_as_well_and_programs_get_json() {
    let mut daemon = Daemon::new();
    let host =
        "{apiVersion: hostweave.dev/v1alpha1, kind: HostConfig, metadata: {name: h}, spec: {defaultPolicy: deny}}";
    daemon.write("conf/05.yaml", host);
    daemon.start(&[]);
    let result = daemon.json(&["connectivity", "test"]);
    assert_eq!(result["passed"], true, "{result}");
    assert_eq!(result["checks"].as_array().unwrap().len(), 13);
}

#[test]
fn what_does_not_work_is_named_with_the_reason_and_leaves_nothing_behind() {
    let daemon = Daemon::started();
    let before = objects(&daemon);
    let wall = "\
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: wall}
spec:
  tier: Admin
  priority: 1
  subject: {namespaces: {}}
  egress: [{name: nobody, action: Deny, to: [{namespaces: {}}]}]
";
    assert_eq!(daemon.cli_with(&["apply", "-f", "-"], wall).code, 0);
    let done = daemon.cli(&["connectivity", "test"]);
    assert_eq!(done.code, 1, "{}{}", done.stdout, done.stderr);
    let line = done.stdout.lines().find(|line| line.starts_with("FAIL  ping")).expect("ping fails");
    assert!(line.contains("trace says policy_denied at egress"), "{line}");
    assert!(done.stdout.contains("PASS  gateway") && done.stdout.contains("PASS  cleanup"), "{}", done.stdout);
    daemon.ok(&["delete", "clusternetworkpolicy", "wall"]);
    assert_eq!(objects(&daemon), before);
}

#[test]
fn without_a_daemon_it_says_so() {
    let mut daemon = Daemon::started();
    daemon.stop();
    assert_eq!(daemon.cli(&["connectivity", "test"]).code, 4);
}

#[test]
fn an_interrupted_test_removes_what_it_made_and_a_killed_one_is_cleaned_up_after() {
    let daemon = Daemon::started();
    let before = objects(&daemon);
    let start = || {
        let mut command: Command = hostweave();
        command.env("HOSTWEAVE_CONTROL", daemon.control()).args(["connectivity", "test"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let signal = |child: &std::process::Child, signal| {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    };
    let mut child = start();
    daemon.until("its ports are there", || objects(&daemon).len() > before.len());
    signal(&child, nix::sys::signal::Signal::SIGINT);
    let asked = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(asked.elapsed() < Duration::from_secs(20), "it does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(child.wait().unwrap().code(), Some(1), "an interrupted test has not passed");
    assert_eq!(objects(&daemon), before);

    let mut child = start();
    daemon.until("its ports are there", || objects(&daemon).len() > before.len());
    signal(&child, nix::sys::signal::Signal::SIGKILL);
    child.wait().unwrap();
    assert!(objects(&daemon).len() > before.len(), "nobody could clean up");
    assert_eq!(daemon.cli(&["connectivity", "test"]).code, 0);
    assert_eq!(objects(&daemon), before);
}
