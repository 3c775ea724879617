//! Which flows somebody wants: Hubble's `flow.FlowFilter` and what it means. Values of one field are joined by "or", fields by
//! "and"; a flow is told if one of the filters of the white list wants it (or there is none), and none of the black list.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use hostweave_switch::stage::DropReason;
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::flow::{Endpoint, ExportEvent, Flow, Service, TYPE_DROP, TYPE_POLICY_VERDICT, TYPE_TRACE, TcpFlags};
use super::flow_log::Entry;
use crate::control::selector::Selector;

/// Verdicts that a filter may name.
pub const VERDICTS: &[&str] = &["FORWARDED", "DROPPED", "AUDIT", "TRANSLATED", "REDIRECTED", "ERROR", "TRACED"];

/// Types of events that a filter may name: Hubble's, and ours in shorter words.
pub const EVENT_TYPES: &[&str] = &["new", "closed", "dropped", "policy-verdict", "trace", "drop"];

/// Protocols that a filter may name.
pub const PROTOCOLS: &[&str] = &["tcp", "udp", "sctp", "icmp", "icmpv4", "icmpv6"];

/// Conditions that must all hold; of the values of one, any.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct FlowFilter {
    /// The sender's name begins so: `NAMESPACE/NAME`; `NAME` is in namespace default, `NAMESPACE/` all of it, `/NAME` anywhere.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub source_pod: Vec<String>,
    /// As `sourcePod`, of the receiver.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destination_pod: Vec<String>,
    /// The sender has this address, or one of this range.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub source_ip: Vec<String>,
    /// NAT shows the sender as one of these, or within.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub source_ip_xlated: Vec<String>,
    /// As `sourceIp`, of the receiver.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destination_ip: Vec<String>,
    /// The sender's labels match this selector.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub source_label: Vec<String>,
    /// As `sourceLabel`, of the receiver.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destination_label: Vec<String>,
    /// From this L4 port.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub source_port: Vec<u16>,
    /// To this L4 port.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destination_port: Vec<u16>,
    /// The sender's identity.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub source_identity: Vec<u32>,
    /// The receiver's identity.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destination_identity: Vec<u32>,
    /// It was sent from the address of a Service whose name begins so; `NAMESPACE/NAME` as in `sourcePod`. Only Hubble's files
    /// say that.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub source_service: Vec<String>,
    /// As `sourceService`, of the receiver.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destination_service: Vec<String>,
    /// Name of the port that sent it, `NAMESPACE/NAME`, or of Hubble's interface.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interface: Vec<String>,
    /// Name of the host; `*` stands for any octets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub node_name: Vec<String>,
    /// `tcp`, `udp`, `sctp`, `icmp` (both), `icmpv4`, `icmpv6`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub protocol: Vec<String>,
    /// `FORWARDED`, `DROPPED`, `AUDIT`, ….
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub verdict: Vec<String>,
    /// Hubble's name of the reason, such as `POLICY_DENIED`, or our own, such as `spoofed_mac`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub drop_reason_desc: Vec<String>,
    /// `new`, `closed`, `dropped`; Hubble's `policy-verdict`, `trace`, `drop`; `trace:to-endpoint` and the like, `drop:REASON`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub event_type: Vec<String>,
    /// `ingress` or `egress`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub traffic_direction: Vec<String>,
    /// `4`, `6`, or `none` for what is no IP packet.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ip_version: Vec<String>,
    /// All of these flags are set, such as `SYN,ACK`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tcp_flags: Vec<String>,
    /// The event with this name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub uuid: Vec<String>,
}

/// A value of a filter that makes no sense.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct BadFilter {
    /// The field.
    pub field: &'static str,
    /// What is wrong.
    pub message: String,
}

/// A filter that was understood.
#[derive(Clone, Debug, Default)]
pub struct Compiled {
    filter: FlowFilter,
    nets: [Vec<IpNet>; 3],
    labels: [Vec<Selector>; 2],
    flags: Vec<u8>,
}

/// Which flows somebody wants.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// One of these must want it, if there are any.
    pub whitelist: Vec<Compiled>,
    /// None of these may want it.
    pub blacklist: Vec<Compiled>,
    /// Not before.
    pub since: Option<SystemTime>,
    /// Not after.
    pub until: Option<SystemTime>,
}

impl Selection {
    /// A record as it is told, if it is wanted. What was lost is always wanted.
    pub fn pick(&self, entry: &Arc<Entry>, node: &str) -> Option<ExportEvent> {
        if !self.in_time(entry.time()) {
            return None;
        }
        let event = entry.export(node);
        event.flow.as_ref().is_none_or(|flow| self.wants(flow)).then_some(event)
    }

    /// Whether a moment is within what was asked for.
    pub fn in_time(&self, time: SystemTime) -> bool {
        self.since.is_none_or(|since| time >= since) && self.until.is_none_or(|until| time <= until)
    }

    /// Whether the lists want a flow.
    pub fn wants(&self, flow: &Flow) -> bool {
        (self.whitelist.is_empty() || self.whitelist.iter().any(|filter| filter.matches(flow)))
            && !self.blacklist.iter().any(|filter| filter.matches(flow))
    }
}

impl FlowFilter {
    /// Understands it.
    ///
    /// # Errors
    /// Which field has a value that makes no sense.
    pub fn compile(self) -> Result<Compiled, BadFilter> {
        let word = |field, values: &[String], known: &[&str]| match values.iter().find(|value| !is_in(value, known)) {
            Some(value) => Err(BadFilter { field, message: format!("{value:?} is not one of {}", known.join(", ")) }),
            None => Ok(()),
        };
        word("verdict", &self.verdict, VERDICTS)?;
        self.event_type.iter().try_for_each(|word| check_type(word))?;
        word("protocol", &self.protocol, PROTOCOLS)?;
        word("trafficDirection", &self.traffic_direction, &["ingress", "egress"])?;
        word("ipVersion", &self.ip_version, &["4", "6", "v4", "v6", "ipv4", "ipv6", "none"])?;
        self.drop_reason_desc.iter().try_for_each(|word| check_reason("dropReasonDesc", word))?;
        let flags: Result<Vec<u8>, BadFilter> = self.tcp_flags.iter().map(|flags| tcp_flags(flags)).collect();
        Ok(Compiled {
            nets: [
                nets("sourceIp", &self.source_ip)?,
                nets("destinationIp", &self.destination_ip)?,
                nets("sourceIpXlated", &self.source_ip_xlated)?,
            ],
            labels: [
                selectors("sourceLabel", &self.source_label)?,
                selectors("destinationLabel", &self.destination_label)?,
            ],
            flags: flags?,
            filter: self,
        })
    }
}

/// Hubble's names of where a packet may be seen.
const TRACE_POINTS: &[&str] = &[
    "from-endpoint",
    "from-host",
    "from-network",
    "from-overlay",
    "from-proxy",
    "from-stack",
    "to-endpoint",
    "to-host",
    "to-network",
    "to-overlay",
    "to-proxy",
    "to-stack",
];

/// `TYPE`, `trace:POINT` or `drop:REASON`.
fn check_type(word: &str) -> Result<(), BadFilter> {
    let bad = |message| Err(BadFilter { field: "eventType", message });
    match word.split_once(':') {
        None if is_in(word, EVENT_TYPES) => Ok(()),
        None => bad(format!("{word:?} is not one of {}", EVENT_TYPES.join(", "))),
        Some((kind, point)) if kind.eq_ignore_ascii_case("trace") => match is_in(point, TRACE_POINTS) {
            true => Ok(()),
            false => bad(format!("{point:?} is not one of {}", TRACE_POINTS.join(", "))),
        },
        Some((kind, reason)) if is_in(kind, &["drop", "dropped"]) => check_reason("eventType", reason),
        Some((kind, _)) => bad(format!("{kind:?} has no subtypes: trace and drop have")),
    }
}

/// Hubble's name of a reason, or ours.
fn check_reason(field: &'static str, word: &str) -> Result<(), BadFilter> {
    let known = |reason: &DropReason| {
        reason.name().eq_ignore_ascii_case(word) || super::drop_reason::hubble(*reason).1.eq_ignore_ascii_case(word)
    };
    if DropReason::ALL.iter().any(known) {
        return Ok(());
    }
    let similar = crate::config::names::closest(word, DropReason::ALL.iter().map(|reason| reason.name()));
    let hint = similar.map(|similar| format!("; did you mean {similar}?")).unwrap_or_default();
    Err(BadFilter { field, message: format!("{word:?} is no drop reason{hint}") })
}

fn is_in(value: &str, known: &[&str]) -> bool {
    known.iter().any(|known| known.eq_ignore_ascii_case(value))
}

fn tcp_flags(text: &str) -> Result<u8, BadFilter> {
    let flag = |name: &str| {
        let message = format!("{name:?} is no TCP flag");
        TcpFlags::named(name.trim()).map(TcpFlags::to_octet).ok_or(BadFilter { field: "tcpFlags", message })
    };
    text.split(',').try_fold(0, |flags, name| Ok(flags | flag(name)?))
}

fn nets(field: &'static str, texts: &[String]) -> Result<Vec<IpNet>, BadFilter> {
    let net = |text: &String| {
        let address = || text.parse::<IpAddr>().map(IpNet::from);
        text.parse::<IpNet>().or_else(|_| address()).map_err(|_| {
            let message = format!("{text:?} is neither an address nor a range such as 10.0.0.0/8");
            BadFilter { field, message }
        })
    };
    texts.iter().map(net).collect()
}

/// `app=web`, also as Hubble writes it: `k8s:app=web`.
fn selectors(field: &'static str, texts: &[String]) -> Result<Vec<Selector>, BadFilter> {
    let plain =
        |text: &str| text.split(',').map(|part| part.trim().trim_start_matches("k8s:")).collect::<Vec<_>>().join(",");
    let one = |text: &String| {
        let text = text.trim();
        // `reserved:world` is a label without key.
        let text =
            if let Some(name) = text.strip_prefix("reserved:") { format!("reserved.{name}") } else { plain(text) };
        Selector::parse(&text).map_err(|error| BadFilter { field, message: error.message })
    };
    texts.iter().map(one).collect()
}

fn labels_of(endpoint: &Endpoint) -> BTreeMap<String, String> {
    let one = |label: &String| {
        if let Some(name) = label.strip_prefix("reserved:") {
            return (format!("reserved.{name}"), String::new());
        }
        let label = label.strip_prefix("k8s:").unwrap_or(label);
        let (key, value) = label.split_once('=').unwrap_or((label, ""));
        (key.to_owned(), value.to_owned())
    };
    endpoint.labels.iter().map(one).collect()
}

fn any<T>(values: &[T], holds: impl FnMut(&T) -> bool) -> bool {
    values.is_empty() || values.iter().any(holds)
}

impl Compiled {
    /// Whether every condition holds.
    pub fn matches(&self, flow: &Flow) -> bool {
        let filter = &self.filter;
        let ports = flow.ports();
        let port = |wanted: &[u16], port: Option<u16>| any(wanted, |wanted| port == Some(*wanted));
        let ends = [&flow.source, &flow.destination].map(Option::as_ref);
        let addresses = flow
            .ip
            .as_ref()
            .map_or([None; 3], |ip| [&ip.source, &ip.destination, &ip.source_xlated].map(|ip| ip.parse().ok()));
        any(&filter.verdict, |verdict| verdict.eq_ignore_ascii_case(&flow.verdict))
            && any(&filter.event_type, |word| is_type(flow, word))
            && any(&filter.drop_reason_desc, |word| is_reason(flow, word))
            && any(&filter.protocol, |word| is_protocol(flow, word))
            && any(&filter.traffic_direction, |word| word.eq_ignore_ascii_case(&flow.traffic_direction))
            && any(&filter.ip_version, |word| is_version(flow, word))
            && any(&filter.uuid, |uuid| *uuid == flow.uuid)
            && any(&filter.source_service, |name| flow.source_service.as_ref().is_some_and(|of| is_service(of, name)))
            && any(&filter.destination_service, |name| {
                flow.destination_service.as_ref().is_some_and(|of| is_service(of, name))
            })
            && any(&filter.interface, |name| flow.interface.as_ref().is_some_and(|of| of.name == *name))
            && any(&filter.node_name, |pattern| is_like(&flow.node_name, pattern))
            && any(&self.flags, |wanted| has_flags(flow, *wanted))
            && port(&filter.source_port, ports.map(|ports| ports.0))
            && port(&filter.destination_port, ports.map(|ports| ports.1))
            && any(&filter.source_identity, |id| ends[0].is_some_and(|end| end.identity == *id))
            && any(&filter.destination_identity, |id| ends[1].is_some_and(|end| end.identity == *id))
            && [&filter.source_pod, &filter.destination_pod]
                .iter()
                .zip(ends)
                .all(|(pods, end)| any(pods, |pod| end.is_some_and(|end| is_pod(end, pod))))
            && self
                .nets
                .iter()
                .zip(addresses)
                .all(|(nets, address)| any(nets, |net| address.is_some_and(|address: IpAddr| net.contains(&address))))
            && self.labels.iter().zip(ends).all(|(selectors, end)| {
                any(selectors, |selector| end.is_some_and(|end| selector.matches(&labels_of(end))))
            })
    }
}

/// See [`FlowFilter::source_pod`].
fn is_pod(end: &Endpoint, pod: &str) -> bool {
    is_named(&end.namespace, &end.pod_name, pod)
}

fn is_service(service: &Service, name: &str) -> bool {
    is_named(&service.namespace, &service.name, name)
}

fn is_named(namespace: &str, name: &str, wanted: &str) -> bool {
    match wanted.split_once('/') {
        Some(("", begin)) => !name.is_empty() && name.starts_with(begin),
        Some((within, begin)) => namespace == within && name.starts_with(begin),
        None => namespace == "default" && name.starts_with(wanted),
    }
}

/// Whether a text is one of a pattern, in which `*` stands for anything.
fn is_like(text: &str, pattern: &str) -> bool {
    let Some((begin, rest)) = pattern.split_once('*') else { return text == pattern };
    let Some(mut text) = text.strip_prefix(begin) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let end = parts.pop().unwrap_or_default();
    // The first place of each part leaves most for the others.
    for part in parts {
        let Some((_, behind)) = text.split_once(part) else { return false };
        text = behind;
    }
    text.ends_with(end)
}

fn is_type(flow: &Flow, word: &str) -> bool {
    if let Some((kind, sub)) = word.split_once(':') {
        let point = sub.to_ascii_uppercase().replace('-', "_");
        let right = if kind.eq_ignore_ascii_case("trace") {
            flow.trace_observation_point == point
        } else {
            is_reason(flow, sub)
        };
        return is_type(flow, kind) && right;
    }
    match word.to_ascii_lowercase().as_str() {
        "new" => flow.is_new(),
        "closed" => flow.is_closed(),
        "dropped" => flow.verdict == "DROPPED",
        "policy-verdict" => flow.kind() == TYPE_POLICY_VERDICT,
        "trace" => flow.kind() == TYPE_TRACE,
        // A denied packet is a drop, although its event is policy's.
        "drop" => flow.kind() == TYPE_DROP || flow.verdict == "DROPPED",
        _ => false,
    }
}

fn is_reason(flow: &Flow, word: &str) -> bool {
    let own = flow.summary.split(';').next().unwrap_or_default();
    flow.verdict == "DROPPED" && (word.eq_ignore_ascii_case(&flow.drop_reason_desc) || word.eq_ignore_ascii_case(own))
}

fn is_protocol(flow: &Flow, word: &str) -> bool {
    let protocol = flow.protocol();
    protocol.is_some_and(|protocol| {
        word.eq_ignore_ascii_case(protocol) || word.eq_ignore_ascii_case("icmp") && protocol.starts_with("ICMP")
    })
}

/// `4`, `v4` and `ipv4` are IPv4. A line of a file need not name a version.
fn is_version(flow: &Flow, word: &str) -> bool {
    if word.eq_ignore_ascii_case("none") {
        return flow.ip.is_none();
    }
    let version = flow.ip.as_ref().and_then(|ip| ip.ip_version.chars().last());
    version.is_some_and(|version| word.ends_with(version))
}

fn has_flags(flow: &Flow, wanted: u8) -> bool {
    let tcp = flow.l4.as_ref().and_then(|l4| l4.tcp.as_ref());
    tcp.and_then(|tcp| tcp.flags).is_some_and(|flags| flags.to_octet() & wanted == wanted)
}

#[cfg(test)]
mod tests {
    use hostweave_switch::flow::Kind;
    use hostweave_switch::wire::proto;
    use serde_json::{Value, json};

    use super::super::flow_record::tests::{denied, opened};
    use super::*;

    fn compiled(filter: Value) -> Compiled {
        serde_json::from_value::<FlowFilter>(filter).unwrap().compile().unwrap()
    }

    #[test]
    fn services_and_where_a_packet_was_seen() {
        let line = r#"{"flow":{"verdict":"FORWARDED","event_type":{"type":4},"trace_observation_point":"TO_ENDPOINT",
            "source_service":{"name":"web","namespace":"default"},"destination_service":{"name":"db-sql","namespace":"shop"}}}"#;
        let flow = serde_json::from_str::<ExportEvent>(line).unwrap().flow.unwrap();
        for (field, yes, no) in [
            ("destinationService", "shop/db", "shop/sql"),
            ("destinationService", "/db-sql", "db"),
            ("sourceService", "web", "shop/web"),
            ("eventType", "trace:to-endpoint", "trace:from-endpoint"),
            ("eventType", "trace:TO-ENDPOINT", "drop:policy_denied"),
            ("ipVersion", "none", "4"),
        ] {
            assert!(compiled(json!({field: [yes]})).matches(&flow), "{field} {yes}");
            assert!(!compiled(json!({field: [no]})).matches(&flow), "{field} {no}");
        }
        for bad in ["trace:there", "policy-verdict:x", "drop:nothing", "l7"] {
            let error = FlowFilter { event_type: vec![bad.into()], ..FlowFilter::default() }.compile().unwrap_err();
            assert_eq!(error.field, "eventType", "{bad}");
        }
    }

    #[test]
    fn a_line_without_a_version_is_of_none() {
        for line in
            [r#"{"flow":{"IP":{}}}"#, r#"{"flow":{"IP":{"ipVersion":"4"}}}"#, r#"{"flow":{"IP":{"ipVersion":"Ipé"}}}"#]
        {
            let flow = serde_json::from_str::<ExportEvent>(line).unwrap().flow.unwrap();
            assert_eq!(compiled(json!({"ipVersion": ["4"]})).matches(&flow), line.contains('4'), "{line}");
            assert!(!compiled(json!({"ipVersion": ["v6"]})).matches(&flow), "{line}");
        }
    }

    #[test]
    fn each_condition_matches_and_does_not() {
        let flow = denied().to_flow("host-a");
        for (field, yes, no) in [
            ("sourcePod", json!("shop/cache"), json!("shop/db")),
            ("sourcePod", json!("shop/"), json!("cache-0")),
            ("destinationPod", json!("/db-0"), json!("/cache")),
            ("sourceIp", json!("10.64.0.12"), json!("10.64.0.31")),
            ("destinationIp", json!("10.64.0.16/28"), json!("2001:db8::/32")),
            ("sourceLabel", json!("app=cache"), json!("app=db")),
            ("sourceLabel", json!("k8s:app in (x,cache)"), json!("!app")),
            ("destinationLabel", json!("k8s:app=db"), json!("reserved:world")),
            ("sourcePort", json!(49152), json!(5432)),
            ("destinationPort", json!(5432), json!(49152)),
            ("sourceIdentity", json!(1012), json!(1031)),
            ("destinationIdentity", json!(1031), json!(1012)),
            ("interface", json!("shop/cache-0"), json!("shop/db-0")),
            ("nodeName", json!("host-*"), json!("host-b")),
            ("nodeName", json!("*st*a"), json!("h*b*a")),
            ("eventType", json!("drop:policy_denied"), json!("drop:spoofed_mac")),
            ("eventType", json!("dropped:POLICY_DENIED"), json!("trace:to-endpoint")),
            ("ipVersion", json!("v4"), json!("none")),
            ("protocol", json!("tcp"), json!("udp")),
            ("verdict", json!("DROPPED"), json!("FORWARDED")),
            ("dropReasonDesc", json!("POLICY_DENIED"), json!("INVALID_SOURCE_MAC")),
            ("dropReasonDesc", json!("policy_denied"), json!("spoofed_mac")),
            ("eventType", json!("policy-verdict"), json!("trace")),
            ("eventType", json!("drop"), json!("new")),
            ("trafficDirection", json!("ingress"), json!("egress")),
            ("ipVersion", json!("4"), json!("6")),
            ("tcpFlags", json!("SYN"), json!("SYN,ACK")),
        ] {
            assert!(compiled(json!({field: [yes]})).matches(&flow), "{field} {yes}");
            assert!(!compiled(json!({field: [no]})).matches(&flow), "{field} {no}");
            assert!(compiled(json!({field: [no, yes]})).matches(&flow), "{field}: any of its values");
            assert!(!compiled(json!({field: [yes], "uuid": ["x"]})).matches(&flow), "{field} and another");
        }
    }

    #[test]
    fn lists_join_and_negate() {
        let (drop, ping) = (denied().to_flow(""), opened(proto::ICMPV6, 7, 128, Kind::Query).to_flow(""));
        let selection = |white: &[Value], black: &[Value]| Selection {
            whitelist: white.iter().cloned().map(compiled).collect(),
            blacklist: black.iter().cloned().map(compiled).collect(),
            ..Selection::default()
        };
        let wants = |white: &[Value], black: &[Value]| {
            let selection = selection(white, black);
            [selection.wants(&drop), selection.wants(&ping)]
        };
        let (dropped, icmp) = (json!({"verdict": ["DROPPED"]}), json!({"protocol": ["icmp"]}));
        assert_eq!(wants(&[], &[]), [true, true]);
        assert_eq!(wants(std::slice::from_ref(&dropped), &[]), [true, false]);
        assert_eq!(wants(&[dropped.clone(), icmp.clone()], &[]), [true, true]);
        assert_eq!(wants(&[], &[icmp]), [true, false]);
        assert_eq!(wants(std::slice::from_ref(&dropped), std::slice::from_ref(&dropped)), [false, false]);
    }

    #[test]
    fn values_that_make_no_sense_are_refused_with_the_field() {
        for (field, value) in [
            ("verdict", json!("DENIED")),
            ("eventType", json!("l9")),
            ("protocol", json!("tpc")),
            ("sourceIp", json!("10.0.0")),
            ("destinationIp", json!("10.0.0.0/33")),
            ("sourceLabel", json!("app in web")),
            ("dropReasonDesc", json!("spoofed")),
            ("tcpFlags", json!("SYM")),
            ("trafficDirection", json!("up")),
            ("ipVersion", json!("5")),
        ] {
            let filter: FlowFilter = serde_json::from_value(json!({field: [value]})).unwrap();
            assert_eq!(filter.compile().unwrap_err().field, field);
        }
    }

    #[test]
    fn moments_are_inclusive() {
        let (entry, time) = (denied(), denied().time);
        let entry = Arc::new(Entry::Flow(Box::new(entry)));
        let second = std::time::Duration::from_secs(1);
        let within = |since: Option<SystemTime>, until: Option<SystemTime>| {
            Selection { since, until, ..Selection::default() }.pick(&entry, "").is_some()
        };
        assert!(within(Some(time), Some(time)) && within(None, Some(time + second)));
        assert!(!within(Some(time + second), None) && !within(None, Some(time - second)));
    }
}
