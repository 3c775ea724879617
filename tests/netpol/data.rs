//! The format of the cases: plain JSON, read strictly. What this file does not know is an error of the data, never skipped: a
//! verdict that rests on half of what was written proves nothing.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, bail};
use hostweave_policy::model::{self, Labels};
use serde::Deserialize;

/// A file of cases.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct File {
    /// Where the cases come from, for people.
    #[serde(default, rename = "source")]
    _source: Option<String>,
    /// `IPv4` or `IPv6`; the addresses say it anyway.
    #[serde(default, rename = "family")]
    _family: Option<Family>,
    /// What every pod serves that says nothing else.
    #[serde(default)]
    pub named_ports: Vec<NamedPort>,
    /// The world in which every case without a topology starts.
    #[serde(default)]
    pub pods: Vec<Pod>,
    pub cases: Vec<Case>,
}

#[derive(Deserialize, Debug)]
enum Family {
    IPv4,
    IPv6,
}

#[derive(Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct NamedPort {
    pub name: String,
    pub port: u16,
    pub protocol: Protocol,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// A pod, or an address outside the cluster.
#[derive(Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Pod {
    /// `namespace/name`.
    pub pod: String,
    pub ip: IpAddr,
    #[serde(default)]
    pub labels: Labels,
    /// Those of its namespace.
    #[serde(default)]
    pub ns_labels: Option<Labels>,
    /// What it serves instead of the file's `namedPorts`.
    #[serde(default)]
    pub ports: Option<Vec<NamedPort>>,
    /// Outside the cluster: never policed itself, and no selector matches it.
    #[serde(default)]
    pub external: bool,
}

/// Steps that follow each other.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Case {
    pub id: String,
    #[serde(rename = "name")]
    _name: String,
    #[serde(default, rename = "note")]
    _note: Option<String>,
    #[serde(default, rename = "context")]
    _context: Option<String>,
    #[serde(default, rename = "upstreamFile")]
    _upstream_file: Option<String>,
    #[serde(default, rename = "tags")]
    _tags: Vec<String>,
    /// The part of the file's world that there is.
    #[serde(default)]
    pub pods: Option<Vec<String>>,
    /// A world of its own.
    #[serde(default)]
    pub topology: Option<Vec<Pod>>,
    pub steps: Vec<Step>,
}

/// What changes, and what must then be so.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Step {
    #[serde(default, rename = "note")]
    _note: Option<String>,
    #[serde(default)]
    pub actions: Vec<Action>,
    /// The order of destinations in each row.
    #[serde(default)]
    pods: Option<Vec<String>>,
    /// By `PROTOCOL/PORT`.
    #[serde(default)]
    matrix: BTreeMap<String, Matrix>,
    #[serde(default)]
    probes: Vec<Probe>,
    #[serde(default)]
    expect: Vec<Expect>,
}

/// A row for each source, a character for each destination.
type Matrix = BTreeMap<String, String>;

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Probe {
    protocol: Protocol,
    port: u16,
    matrix: Matrix,
    /// What upstream's suite says where it says nothing, and what it says, from which `matrix` was made.
    #[serde(default, rename = "default")]
    _default: Option<bool>,
    #[serde(default, rename = "upstreamExpect")]
    _upstream_expect: Option<serde_json::Value>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Expect {
    from: String,
    to: String,
    protocol: Protocol,
    port: u16,
    allow: bool,
    #[serde(default, rename = "upstream")]
    _upstream: Option<String>,
}

/// One change of the world.
#[derive(Deserialize, Debug)]
#[serde(tag = "op", deny_unknown_fields, rename_all = "camelCase")]
pub enum Action {
    CreatePolicy {
        policy: serde_json::Value,
    },
    UpdatePolicy {
        policy: serde_json::Value,
    },
    DeletePolicy {
        #[serde(default)]
        namespace: Option<String>,
        name: String,
    },
    CreateNamespace {
        namespace: String,
        #[serde(default)]
        labels: Labels,
    },
    SetNamespaceLabels {
        namespace: String,
        labels: Labels,
    },
    AddNamespaceLabels {
        namespace: String,
        labels: Labels,
    },
    DeleteNamespace {
        namespace: String,
    },
    CreatePod(Pod),
    SetPodLabels {
        pod: String,
        labels: Labels,
    },
    AddPodLabels {
        pod: String,
        labels: Labels,
    },
    DeletePod {
        pod: String,
    },
}

/// What must be so: a new flow gets through, or does not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    pub from: String,
    pub to: String,
    pub protocol: Protocol,
    pub port: u16,
    pub allow: bool,
}

impl Protocol {
    pub const fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    pub const fn of_policy(self) -> model::Protocol {
        match self {
            Protocol::Tcp => model::Protocol::Tcp,
            Protocol::Udp => model::Protocol::Udp,
            Protocol::Sctp => model::Protocol::Sctp,
        }
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Verdict { from, to, protocol, port, allow } = self;
        let must = if *allow { "must pass" } else { "must not pass" };
        write!(f, "{from} -> {to} {protocol:?}/{port} {must}")
    }
}

impl File {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, or says anything that the format does not have.
    pub fn read(path: &Path) -> anyhow::Result<File> {
        let text = std::fs::read_to_string(path).context("reading it")?;
        Self::parse(&text)
    }

    /// As [`File::read`], from text.
    ///
    /// # Errors
    /// Likewise.
    pub fn parse(text: &str) -> anyhow::Result<File> {
        let file: File = serde_json::from_str(text).context("not a file of NetworkPolicy cases")?;
        if file.cases.is_empty() {
            bail!("there is no case in it");
        }
        Ok(file)
    }

    /// Every address that a pod of the cluster has in some case.
    ///
    /// # Errors
    /// When a case names a pod that is not there.
    pub fn addresses(&self) -> anyhow::Result<Vec<IpAddr>> {
        let mut addresses = Vec::new();
        for case in &self.cases {
            let starting = self.pods_of(case)?;
            let actions = case.steps.iter().flat_map(|step| &step.actions);
            let created = actions.filter_map(|action| match action {
                Action::CreatePod(pod) => Some(pod),
                _ => None,
            });
            addresses.extend(starting.iter().chain(created).filter(|pod| !pod.external).map(|pod| pod.ip));
        }
        Ok(addresses)
    }

    /// The world in which a case starts.
    ///
    /// # Errors
    /// When the case names a pod that is not there.
    pub fn pods_of(&self, case: &Case) -> anyhow::Result<Vec<Pod>> {
        match (&case.topology, &case.pods) {
            (Some(topology), None) => Ok(topology.clone()),
            (None, None) => Ok(self.pods.clone()),
            (topology, Some(names)) => {
                let all = topology.as_ref().unwrap_or(&self.pods);
                let find = |name: &String| all.iter().find(|pod| pod.pod == *name).cloned();
                names.iter().map(|name| find(name).with_context(|| format!("no pod {name}"))).collect()
            }
        }
    }
}

impl Step {
    /// Everything that must be so after the step.
    ///
    /// # Errors
    /// When a row does not fit the pods, or holds another character than `.`, `X`, and `-` for the pod itself.
    pub fn verdicts(&self, file: &File, case: &Case) -> anyhow::Result<Vec<Verdict>> {
        let names: Vec<String> = match (&self.pods, &case.pods, &case.topology) {
            (Some(names), ..) | (None, Some(names), _) => names.clone(),
            (None, None, Some(topology)) => topology.iter().map(|pod| pod.pod.clone()).collect(),
            (None, None, None) => file.pods.iter().map(|pod| pod.pod.clone()).collect(),
        };
        let mut verdicts = Vec::new();
        for (place, matrix) in &self.matrix {
            let (protocol, port) = parse_place(place)?;
            read_matrix(&names, protocol, port, matrix, &mut verdicts)?;
        }
        for probe in &self.probes {
            read_matrix(&names, probe.protocol, probe.port, &probe.matrix, &mut verdicts)?;
        }
        verdicts.extend(self.expect.iter().map(|expect| Verdict {
            from: expect.from.clone(),
            to: expect.to.clone(),
            protocol: expect.protocol,
            port: expect.port,
            allow: expect.allow,
        }));
        Ok(verdicts)
    }
}

/// `TCP/80`.
fn parse_place(place: &str) -> anyhow::Result<(Protocol, u16)> {
    let (protocol, port) = place.split_once('/').with_context(|| format!("{place:?} is not PROTOCOL/PORT"))?;
    let protocol = match protocol {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        _ => bail!("{place:?} is of no known protocol"),
    };
    Ok((protocol, port.parse().with_context(|| format!("{place:?} has no L4 port"))?))
}

fn read_matrix(
    names: &[String],
    protocol: Protocol,
    port: u16,
    matrix: &Matrix,
    verdicts: &mut Vec<Verdict>,
) -> anyhow::Result<()> {
    for (from, row) in matrix {
        if !names.contains(from) {
            bail!("{from} has a row in {protocol:?}/{port} and is not among the pods");
        }
        if row.chars().count() != names.len() {
            bail!("the row of {from} in {protocol:?}/{port} is not as long as the list of pods");
        }
        for (to, character) in names.iter().zip(row.chars()) {
            let allow = match (character, from == to) {
                ('-', true) => continue,
                ('.', false) => true,
                ('X', false) => false,
                _ => bail!("{character:?} from {from} to {to} in {protocol:?}/{port} is not a verdict"),
            };
            verdicts.push(Verdict { from: from.clone(), to: to.clone(), protocol, port, allow });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(case: &str) -> anyhow::Result<File> {
        let pods = r#"[{"pod": "x/a", "ip": "10.0.0.1"}, {"pod": "x/b", "ip": "10.0.0.2"}]"#;
        File::parse(&format!(r#"{{"pods": {pods}, "cases": [{{"id": "1", "name": "n", "steps": [{case}]}}]}}"#))
    }

    fn verdicts(case: &str) -> anyhow::Result<Vec<Verdict>> {
        let file = file(case)?;
        file.cases[0].steps[0].verdicts(&file, &file.cases[0])
    }

    #[test]
    fn what_the_format_does_not_have_is_an_error() {
        assert!(file(r#"{"actions": []}"#).is_ok());
        assert!(file(r#"{"actions": [], "matrices": {}}"#).is_err());
        assert!(file(r#"{"actions": [{"op": "renamePod", "pod": "x/a"}]}"#).is_err());
        assert!(file(r#"{"actions": [{"op": "deletePod", "pod": "x/a", "force": true}]}"#).is_err());
        assert!(file(r#"{"actions": [{"op": "createPod", "pod": "x/c", "ip": "10.0.0.3", "node": "n"}]}"#).is_err());
        assert!(
            file(r#"{"expect": [{"from": "x/a", "to": "x/b", "protocol": "ICMP", "port": 1, "allow": true}]}"#)
                .is_err()
        );
        assert!(File::parse(r#"{"cases": []}"#).is_err(), "a file that proves nothing");
    }

    #[test]
    fn a_matrix_is_one_verdict_for_each_pair() {
        let read = verdicts(r#"{"matrix": {"SCTP/81": {"x/a": "-X", "x/b": ".-"}}}"#).unwrap();
        let texts: Vec<String> = read.iter().map(Verdict::to_string).collect();
        assert_eq!(texts, ["x/a -> x/b Sctp/81 must not pass", "x/b -> x/a Sctp/81 must pass"]);
        for wrong in [
            r#"{"matrix": {"TCP/80": {"x/a": "-X."}}}"#,
            r#"{"matrix": {"TCP/80": {"x/a": ".X"}}}"#,
            r#"{"matrix": {"TCP/80": {"x/a": "--"}}}"#,
            r#"{"matrix": {"TCP/80": {"x/a": "-?"}}}"#,
            r#"{"matrix": {"TCP/80": {"x/z": "-X"}}}"#,
            r#"{"matrix": {"TCP/http": {"x/a": "-X"}}}"#,
            r#"{"matrix": {"GRE/1": {"x/a": "-X"}}}"#,
        ] {
            assert!(verdicts(wrong).is_err(), "{wrong}");
        }
    }
}
