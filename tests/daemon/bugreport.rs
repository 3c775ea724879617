//! `bugreport` of a running daemon, and of one that is gone.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::support::Daemon;

const OBJECTS: &str = "\
apiVersion: hostweave.dev/v1alpha1
kind: Port
metadata: {name: quokka-0, namespace: shop, labels: {team: wombats}, annotations: {example.com/contact: numbat}}
spec: {network: default, addresses: [10.64.0.77]}
";

/// What somebody would know again.
const ORIGINAL: [&str; 12] = [
    "quokka",
    "wombats",
    "numbat",
    "example.com",
    "shop",
    "file-0",
    "10.64.0.77",
    "10.64.0.1\"",
    "10.64.0.0/24",
    "2001:db8:64::/64",
    "10.yaml",
    "02:00:0a:40:00:4d",
];

fn unpacked(path: &Path) -> BTreeMap<String, String> {
    let file = std::fs::File::open(path).unwrap();
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "nobody else may read it");
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(file));
    let read = |entry: std::io::Result<tar::Entry<'_, _>>| {
        let mut entry = entry.unwrap();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        (entry.path().unwrap().strip_prefix("hostweave-bugreport").unwrap().display().to_string(), text)
    };
    archive.entries().unwrap().map(read).collect()
}

#[test]
fn a_report_has_everything_and_redacted_nothing_of_the_original() {
    let daemon = Daemon::started();
    assert_eq!(daemon.cli_with(&["apply", "-f", "-"], OBJECTS).code, 0);
    let (plain, redacted) = (daemon.path("plain.tar.gz"), daemon.path("redacted.tar.gz"));
    let said = daemon.ok(&["bugreport", "-o", plain.to_str().unwrap()]);
    assert!(said.starts_with(plain.to_str().unwrap()), "{said}");
    let plain = unpacked(&plain);
    assert!(!plain["README.txt"].contains("uplink"), "a host without uplink lacks nothing");
    for file in [
        "README.txt",
        "version.json",
        "status.json",
        "stats.json",
        "nat.json",
        "doctor.json",
        "policies.json",
        "ports.json",
        "events.json",
        "connections.json",
        "metrics.txt",
        "objects/ports.json",
        "objects/networks.json",
        "host/facts.json",
    ] {
        assert!(plain.contains_key(file), "{file} is not among {:?}", plain.keys());
    }
    let all = |report: &BTreeMap<String, String>| report.values().cloned().collect::<String>();
    let text = all(&plain);
    for original in ORIGINAL {
        assert!(text.contains(original), "{original} is in a report that is not redacted");
    }
    daemon.ok(&["bugreport", "--redact", "-o", redacted.to_str().unwrap()]);
    let report = unpacked(&redacted);
    assert_eq!(report.keys().collect::<Vec<_>>(), plain.keys().collect::<Vec<_>>());
    let folder = daemon.path("").file_name().unwrap().to_string_lossy().into_owned();
    for original in ORIGINAL.into_iter().chain([folder.as_str()]) {
        for (file, text) in &report {
            let line = text.lines().find(|line| line.contains(original));
            assert_eq!(line, None, "{original} is in {file}");
        }
    }
    for file in report.keys().filter(|file| file.ends_with(".json")) {
        assert!(serde_json::from_str::<serde_json::Value>(&report[file]).is_ok(), "{file} is JSON");
    }
    // What is replaced still fits together: the address of the port lies in its network.
    let ports: serde_json::Value = serde_json::from_str(&report["objects/ports.json"]).unwrap();
    let networks: serde_json::Value = serde_json::from_str(&report["objects/networks.json"]).unwrap();
    let cidr = networks[0]["object"]["spec"]["cidrs"][0].as_str().unwrap();
    let network: ipnet::Ipv4Net = cidr.parse().unwrap();
    let port = ports.as_array().unwrap().iter().find(|item| item["object"]["spec"]["addresses"].is_array()).unwrap();
    let address = port["object"]["spec"]["addresses"][0].as_str().unwrap();
    assert!(network.contains(&address.parse::<std::net::Ipv4Addr>().unwrap()), "{address} is not in {cidr}");
}

#[test]
fn a_daemon_that_is_gone_is_reported_as_well() {
    let mut daemon = Daemon::started();
    daemon.stop();
    let path = daemon.path("report.tar.gz");
    let done = daemon.cli(&["bugreport", "-o", path.to_str().unwrap()]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(done.stderr.contains("cannot reach the daemon"), "{}", done.stderr);
    let report = unpacked(&path);
    assert!(report["README.txt"].contains("cannot reach the daemon") && report.contains_key("host/facts.json"));
    let nowhere = daemon.path("none/report.tar.gz");
    let done = daemon.cli(&["bugreport", "-o", nowhere.to_str().unwrap()]);
    assert!(done.code == 1 && done.stderr.contains("cannot write"), "{}", done.stderr);
}
