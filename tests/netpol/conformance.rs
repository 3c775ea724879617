//! Runs NetworkPolicy cases that others wrote against the compiled tables and against real packets: `tests/conformance` is the way
//! to call it, `tests/conformance --help` says how.
//!
//! A case is a sequence of steps, each of which changes the world and says which new flows then pass. A file is read as a whole
//! and strictly before anything is judged ([`data`]); the world is kept in [`cluster`].

mod cluster;
mod data;
mod lab;
mod outside;
mod packets;
mod tables;
mod trace;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};

use cluster::Cluster;
use data::{Case, File, Step, Verdict};
use packets::Packets;
use tables::Tables;

const HELP: &str = "\
Runs NetworkPolicy cases from JSON files and compares every verdict.

  tests/conformance [--tables|--packets] FILE.json...

  --tables   ask the compiled tables only
  --packets  send packets between in-process guests only, and compare what `trace` says of each

Every case, every verdict. One line a file: cases, verdicts, wrong. Exit 1 if a verdict is wrong or a file cannot be read, 2 for a
wrong call.";

/// Wrong verdicts of a file that are told one by one.
const TOLD_MAX: usize = 20;

/// Which verdicts are not asked with packets.
const WITHOUT_PACKETS: &str = "SCTP from outside, or between two addresses there";

/// What was asked for.
#[derive(Default)]
struct Call {
    tables: bool,
    packets: bool,
    files: Vec<PathBuf>,
}

/// What came of a file.
#[derive(Default)]
struct Outcome {
    cases: usize,
    verdicts: usize,
    wrong: Vec<String>,
    /// Verdicts that packets were not asked for.
    without_packets: usize,
}

fn main() -> ExitCode {
    let call = match parse(std::env::args().skip(1)) {
        Ok(Some(call)) => call,
        Ok(None) => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("tests/conformance: {error:#}\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    let mut good = true;
    for path in &call.files {
        good &= report(path, run(path, &call));
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// `None` when only help was wanted.
fn parse(arguments: impl Iterator<Item = String>) -> anyhow::Result<Option<Call>> {
    let mut call = Call::default();
    for argument in arguments {
        match argument.as_str() {
            "--tables" => call.tables = true,
            "--packets" => call.packets = true,
            "-h" | "--help" => return Ok(None),
            option if option.starts_with('-') => bail!("there is no option {option}"),
            file => call.files.push(PathBuf::from(file)),
        }
    }
    if call.files.is_empty() {
        bail!("which files?");
    }
    // Without a choice it is both.
    if !call.tables && !call.packets {
        (call.tables, call.packets) = (true, true);
    }
    Ok(Some(call))
}

/// Judges a file in the ways that were asked for.
fn run(path: &Path, call: &Call) -> anyhow::Result<Outcome> {
    let file = File::read(path)?;
    let tables = call.tables.then(|| run_tables(&file)).transpose()?;
    let packets = call.packets.then(|| run_packets(&file)).transpose()?;
    let (Some(tables), Some(packets)) = (&tables, &packets) else { return Ok(tables.or(packets).unwrap_or_default()) };
    let told =
        |how, outcome: &Outcome| -> Vec<String> { outcome.wrong.iter().map(|text| format!("{how}: {text}")).collect() };
    let wrong = [told("tables", tables), told("packets", packets)].concat();
    Ok(Outcome { cases: tables.cases, verdicts: tables.verdicts, wrong, without_packets: packets.without_packets })
}

/// Tells what came of a file; whether it is as it must be.
fn report(path: &Path, outcome: anyhow::Result<Outcome>) -> bool {
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    match outcome {
        Ok(Outcome { cases, verdicts, wrong, without_packets }) => {
            for text in wrong.iter().take(TOLD_MAX) {
                println!("  wrong: {text}");
            }
            if wrong.len() > TOLD_MAX {
                println!("  wrong: and {} more", wrong.len() - TOLD_MAX);
            }
            let note = match without_packets {
                0 => String::new(),
                count => format!(" ({count} not asked with packets: {WITHOUT_PACKETS})"),
            };
            println!("{name}: {cases} cases, {verdicts} verdicts, {} wrong{note}", wrong.len());
            wrong.is_empty()
        }
        Err(error) => {
            println!("{name}: error: {error:#}");
            false
        }
    }
}

/// Every verdict, asked of the compiled tables.
fn run_tables(file: &File) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    for case in &file.cases {
        let mut cluster = Cluster::new(file, case).with_context(|| case.id.clone())?;
        let mut tables = Tables::default();
        for (number, step) in (1..).zip(&case.steps) {
            let place = format!("{} step {number}", case.id);
            let verdicts = advance(file, case, step, &mut cluster).with_context(|| place.clone())?;
            tables.update(&cluster);
            for verdict in &verdicts {
                let [from, to] = cluster.ends(verdict).with_context(|| place.clone())?;
                if tables.allows(from, to, verdict) != verdict.allow {
                    outcome.wrong.push(format!("{place}: {verdict}"));
                }
            }
            outcome.verdicts += verdicts.len();
        }
        outcome.cases += 1;
    }
    Ok(outcome)
}

/// Verdicts between pods, each asked with packets.
fn run_packets(file: &File) -> anyhow::Result<Outcome> {
    let mut packets = Packets::new(&file.addresses()?)?;
    let mut outcome = Outcome::default();
    for (at, case) in file.cases.iter().enumerate() {
        let mut cluster = Cluster::new(file, case).with_context(|| case.id.clone())?;
        for (number, step) in (1..).zip(&case.steps) {
            let place = format!("{} step {number}", case.id);
            let verdicts = advance(file, case, step, &mut cluster).with_context(|| place.clone())?;
            packets.update(at, &cluster).with_context(|| place.clone())?;
            judge_packets(&mut packets, &cluster, &verdicts, &place, &mut outcome).with_context(|| place.clone())?;
        }
        outcome.cases += 1;
    }
    Ok(outcome)
}

/// Asks for the verdicts of a step with packets.
fn judge_packets(
    packets: &mut Packets,
    cluster: &Cluster,
    verdicts: &[Verdict],
    place: &str,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let mut inside = Vec::new();
    let mut answers = Vec::new();
    for verdict in verdicts {
        if cluster.ends(verdict)?.iter().all(|pod| !pod.external) {
            inside.push(verdict);
        } else {
            match packets.allows_outside(cluster, verdict)? {
                Some(answer) => answers.push((verdict, answer)),
                None => outcome.without_packets += 1,
            }
        }
    }
    let answered = packets.allows(cluster, &inside)?;
    answers.extend(inside.into_iter().zip(answered));
    for (verdict, answer) in &answers {
        if answer.passed != verdict.allow {
            outcome.wrong.push(format!("{place}: {verdict}"));
        } else if answer.traced != answer.passed {
            outcome.wrong.push(format!("{place}: {verdict}, and trace says otherwise"));
        } else if answer.behind.is_some_and(|[passed, _]| passed != verdict.allow) {
            outcome.wrong.push(format!("{place}: {verdict}, also through a Service"));
        } else if answer.behind.is_some_and(|[passed, traced]| passed != traced) {
            outcome.wrong.push(format!("{place}: {verdict}, and trace says otherwise through a Service"));
        }
    }
    outcome.verdicts += answers.len();
    Ok(())
}

/// Does what a step does; returns what must then be so.
fn advance(file: &File, case: &Case, step: &Step, cluster: &mut Cluster) -> anyhow::Result<Vec<Verdict>> {
    for action in &step.actions {
        cluster.act(action).with_context(|| format!("{action:?}"))?;
    }
    step.verdicts(file, case)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two pods, of which `x/b` admits nobody from the second step on.
    fn file(first: &str, second: &str) -> File {
        let text = serde_json::json!({
            "pods": [{"pod": "x/a", "ip": "10.0.0.1"}, {"pod": "x/b", "ip": "10.0.0.2"}],
            "cases": [{"id": "1", "name": "deny", "steps": [
                {"matrix": {"TCP/80": {"x/a": first}, "SCTP/80": {"x/a": first}}},
                {
                    "actions": [{"op": "createPolicy", "policy": {
                        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                        "metadata": {"name": "deny", "namespace": "x"},
                        "spec": {"podSelector": {"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}},
                    }}],
                    "matrix": {"UDP/80": {"x/a": second}},
                },
                {"actions": [{"op": "setPodLabels", "pod": "x/b", "labels": {"app": "b"}}], "matrix": {"UDP/80": {"x/a": "-."}}},
            ]}],
        });
        File::parse(&text.to_string()).unwrap()
    }

    #[test]
    fn right_and_wrong_verdicts_are_told_apart() {
        for run in [run_tables, run_packets] {
            let outcome = run(&file("-.", "-X")).unwrap();
            assert_eq!((outcome.cases, outcome.verdicts, outcome.wrong), (1, 4, Vec::new()));
            let outcome = run(&file("-X", "-.")).unwrap();
            let wrong = [
                "1 step 1: x/a -> x/b Sctp/80 must not pass",
                "1 step 1: x/a -> x/b Tcp/80 must not pass",
                "1 step 2: x/a -> x/b Udp/80 must pass",
            ];
            assert_eq!((outcome.verdicts, outcome.wrong), (4, wrong.map(String::from).to_vec()));
            assert!(!report(Path::new("f"), run(&file("-X", "-X"))));
            assert!(report(Path::new("f"), run(&file("-.", "-X"))));
        }
    }

    #[test]
    fn the_outside_is_an_address_to_policy_and_no_pod() {
        for [pod, outside, block] in
            [["10.0.0.1", "192.0.2.1", "192.0.2.0/24"], ["fd00::1", "2001:db8::1", "2001:db8::/64"]]
        {
            let policy = |name: &str, rules: serde_json::Value| {
                serde_json::json!({"op": "createPolicy", "policy": {
                    "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                    "metadata": {"name": name, "namespace": "x"},
                    "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": rules, "egress": []},
                }})
            };
            let expect = |from: &str, to: &str, protocol: &str, port: u16, allow: bool| serde_json::json!({"from": from, "to": to, "protocol": protocol, "port": port, "allow": allow});
            let all = |allow: [bool; 4]| {
                let [tcp_in, udp_in, tcp_out, udp_out] = allow;
                [
                    expect("o/o", "x/a", "TCP", 80, tcp_in),
                    expect("o/o", "x/a", "UDP", 80, udp_in),
                    expect("o/o", "x/a", "SCTP", 80, tcp_in && udp_in),
                    expect("x/a", "o/o", "TCP", 81, tcp_out),
                    expect("x/a", "o/o", "UDP", 81, udp_out),
                ]
            };
            let by_block = serde_json::json!([{"from": [{"ipBlock": {"cidr": block}}], "ports": [{"port": 80}]}]);
            let by_label = serde_json::json!([{"from": [{"namespaceSelector": {}}]}]);
            let text = serde_json::json!({"cases": [{
                "id": "1", "name": "outside",
                "topology": [{"pod": "x/a", "ip": pod}, {"pod": "o/o", "ip": outside, "external": true}],
                "steps": [
                    {"expect": all([true; 4])},
                    {"actions": [policy("labels", by_label)], "expect": all([false; 4])},
                    {"actions": [policy("block", by_block)], "expect": all([true, false, false, false])},
                ],
            }]});
            let file = File::parse(&text.to_string()).unwrap();
            let tables = run_tables(&file).unwrap();
            assert_eq!((tables.verdicts, tables.wrong), (15, Vec::new()));
            let packets = run_packets(&file).unwrap();
            assert_eq!((packets.verdicts, packets.without_packets, packets.wrong), (12, 3, Vec::new()));
        }
    }

    #[test]
    fn a_wrong_call_is_refused() {
        let call = |words: &[&str]| parse(words.iter().map(|word| (*word).to_owned()));
        assert!(
            call(&["--tables"]).is_err()
                && call(&["--quick", "a.json"]).is_err()
                && call(&["--help"]).unwrap().is_none()
        );
        let both = call(&["a.json", "b.json"]).unwrap().unwrap();
        assert!(both.tables && both.packets && both.files.len() == 2);
        let one = call(&["--packets", "a.json"]).unwrap().unwrap();
        assert!(!one.tables && one.packets);
    }
}
