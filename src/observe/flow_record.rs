//! A record of the flow log: an event of a worker with the names of those that it is about, as they were then. Small enough
//! to keep thousands; it becomes Hubble's JSON ([`FlowRecord::to_flow`]) when somebody asks.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use hostweave_policy::model::{Direction, Endpoint as PolicyEndpoint};
use hostweave_policy::table::RuleId;
use hostweave_switch::MacAddr;
use hostweave_switch::connection::Ending;
use hostweave_switch::flow::{FlowKey, Kind};
use hostweave_switch::stage::DropReason;
use hostweave_switch::tables::{NetworkId, PortId};
use hostweave_switch::wire::proto;
use uuid::Uuid;

use super::drop_reason::hubble;
use super::flow::{
    Addresses, CLOSED, ESTABLISHED, Endpoint, EventType, Flow, Icmp, Interface, Ip, Layer4, Policy, Ports, Service,
    TYPE_DROP, TYPE_POLICY_VERDICT, TYPE_TRACE, Tcp, TcpFlags,
};
use super::flow_event::{FlowEvent, FlowEventKind};
use super::time::rfc3339_nanos;

/// One end of a flow.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Party {
    /// What Hubble calls it.
    pub endpoint: Endpoint,
    /// Its MAC address, of a port.
    pub mac: Option<MacAddr>,
    /// `namespace/name` of a port.
    pub port: Option<String>,
    /// Whether policies select it: a port that is not the host's own.
    pub workload: bool,
    /// Its network, of a port that policies select.
    pub network: Option<NetworkId>,
}

impl Party {
    /// A port that is not the host's own.
    pub fn workload(endpoint: &PolicyEndpoint, identity: u32, mac: Option<MacAddr>) -> Self {
        Self {
            endpoint: Endpoint {
                id: endpoint.id.0,
                identity,
                namespace: endpoint.namespace.clone(),
                labels: endpoint.labels.iter().map(|(key, value)| format!("k8s:{key}={value}")).collect(),
                pod_name: endpoint.name.clone(),
            },
            mac,
            port: Some(format!("{}/{}", endpoint.namespace, endpoint.name)),
            workload: true,
            network: Some(endpoint.network),
        }
    }
}

/// What policies said, by direction: egress of the sender, ingress of the receiver.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Reasons {
    /// What let it pass.
    pub allowed: [Vec<Arc<Policy>>; 2],
    /// What denied it, or would without audit mode.
    pub denied: [Vec<Arc<Policy>>; 2],
}

/// See the file's head.
#[derive(Clone, Debug)]
pub struct FlowRecord {
    /// When.
    pub time: SystemTime,
    /// Names it.
    pub id: Uuid,
    /// What the worker saw.
    pub event: FlowEvent,
    /// Sender.
    pub source: Arc<Party>,
    /// Receiver.
    pub destination: Arc<Party>,
    /// `namespace/name` of the Service whose address and L4 port it was sent to.
    pub service: Option<Arc<str>>,
    /// What policies said.
    pub reasons: Reasons,
}

/// ICMP types of answers, by the type of their query (RFC 792, RFC 4443).
const ANSWERS: [(u8, u16, u16); 3] = [(proto::ICMPV4, 8, 0), (proto::ICMPV4, 13, 14), (proto::ICMPV6, 128, 129)];

fn service(path: &str) -> Service {
    let (namespace, name) = path.split_once('/').unwrap_or(("", path));
    Service { name: name.to_owned(), namespace: namespace.to_owned() }
}

impl FlowRecord {
    /// As Hubble has it.
    pub fn to_flow(&self, node: &str) -> Flow {
        let key = &self.event.key;
        let time = rfc3339_nanos(self.time);
        let address = |bits: u128| Ipv6Addr::from(bits).to_canonical();
        let has_ip = key.src() != 0 || key.dst() != 0;
        let mut flow = Flow {
            time,
            uuid: self.id.to_string(),
            ip: has_ip
                .then(|| Ip { source_xlated: self.source_xlated(), ..ip(address(key.src()), address(key.dst())) }),
            l4: self.l4(),
            ethernet: self.ethernet(),
            source: Some(self.source.endpoint.clone()),
            destination: has_ip.then(|| self.destination.endpoint.clone()),
            destination_service: self.service.as_deref().map(service),
            flow_type: "L3_L4".into(),
            node_name: node.into(),
            is_reply: self.is_reply(),
            interface: self.source.port.clone().map(|name| Interface { index: self.source.endpoint.id, name }),
            ..Flow::default()
        };
        let clone = |policies: &[Arc<Policy>]| policies.iter().map(|policy| Policy::clone(policy)).collect();
        [flow.egress_allowed_by, flow.ingress_allowed_by] = self.reasons.allowed.each_ref().map(|list| clone(list));
        [flow.egress_denied_by, flow.ingress_denied_by] = self.reasons.denied.each_ref().map(|list| clone(list));
        self.verdict(&mut flow);
        flow
    }

    /// What happened.
    fn verdict(&self, flow: &mut Flow) {
        let mut words = Vec::new();
        let direction = match self.event.kind {
            FlowEventKind::Opened { audit, .. } => {
                let audited = audited_at(audit);
                flow.verdict = match audited {
                    Some(_) => "AUDIT",
                    None if self.event.there.is_some() => "TRANSLATED",
                    None => "FORWARDED",
                }
                .into();
                flow.event_type = Some(EventType { kind: TYPE_POLICY_VERDICT, sub_type: 0 });
                audited
            }
            FlowEventKind::Audited { audit, .. } => {
                flow.verdict = "AUDIT".into();
                flow.event_type = Some(EventType { kind: TYPE_POLICY_VERDICT, sub_type: 0 });
                flow.trace_reason = ESTABLISHED.into();
                words.push("goes on".to_owned());
                audited_at(audit)
            }
            FlowEventKind::Closed(why) => {
                passing(flow);
                words.push(format!("{CLOSED}: {}", ended(why)));
                None
            }
            FlowEventKind::Sample => {
                passing(flow);
                flow.trace_reason = ESTABLISHED.into();
                words.push("goes on".to_owned());
                None
            }
            FlowEventKind::Dropped { reason, denied } => {
                let (number, name) = hubble(reason);
                flow.verdict = "DROPPED".into();
                (flow.drop_reason, flow.drop_reason_desc) = (number, name.into());
                let (kind, sub_type) = match reason {
                    DropReason::PolicyDenied => (TYPE_POLICY_VERDICT, 0),
                    // Three digits.
                    _ => (TYPE_DROP, number as i32),
                };
                flow.event_type = Some(EventType { kind, sub_type });
                words.push(reason.name().to_owned());
                // What its destination did not take ended there.
                let taken = if self.event.to == PortId::NONE { Direction::Egress } else { Direction::Ingress };
                Some(denied.map_or(taken, |(direction, _)| direction))
            }
        };
        let usual = if self.destination.workload { Direction::Ingress } else { Direction::Egress };
        flow.traffic_direction = match direction.unwrap_or(usual) {
            Direction::Egress => "EGRESS",
            Direction::Ingress => "INGRESS",
        }
        .into();
        match flow.l4.as_ref() {
            Some(Layer4 { tcp: Some(Tcp { flags: Some(flags), .. }), .. }) => {
                words.push(format!("TCP Flags: {}", flags.names()));
            }
            Some(Layer4 { tcp: None, .. }) => words.extend(flow.protocol().map(str::to_owned)),
            Some(_) => {}
            None if flow.ip.is_some() => words.push(format!("IP protocol {}", self.event.key.proto())),
            None => {}
        }
        words.extend(self.translation());
        flow.summary = words.join("; ");
    }

    /// Address as which the other side sees the sender, if it is another one.
    fn source_xlated(&self) -> String {
        let there = self.event.there.filter(|there| there.src() != self.event.key.src());
        there.map_or_else(String::new, |there| Ipv6Addr::from(there.src()).to_canonical().to_string())
    }

    /// What NAT makes of the tuple: `as 203.0.113.7:40123`, `to 10.64.0.10:22`. Hubble has no place for the L4 ports.
    fn translation(&self) -> Option<String> {
        let (key, there) = (&self.event.key, self.event.there?);
        let end = |key: &FlowKey, source: bool| {
            let (address, l4) = if source { (key.src(), key.src_port()) } else { (key.dst(), key.dst_port()) };
            let address = Ipv6Addr::from(address).to_canonical();
            match (key.kind(), source) {
                (Kind::Ports, _) => SocketAddr::new(address, l4).to_string(),
                (Kind::Query, true) => format!("{address} id {l4}"),
                _ => address.to_string(),
            }
        };
        let changed = |word: &str, source| {
            let now = end(&there, source);
            (now != end(key, source)).then(|| format!("{word} {now}"))
        };
        let words: Vec<String> = [changed("as", true), changed("to", false)].into_iter().flatten().collect();
        let shared = if self.event.shared { " (an L4 port that others use too)" } else { "" };
        (!words.is_empty()).then(|| words.join(" ") + shared)
    }

    fn l4(&self) -> Option<Layer4> {
        let key = &self.event.key;
        let (source_port, destination_port) = (key.src_port(), key.dst_port());
        let ports = || Some(Ports { source_port, destination_port });
        let none = Layer4::default();
        Some(match (key.proto(), key.kind()) {
            (proto::TCP, Kind::Ports) => {
                let flags = Some(self.event.tcp_flags).filter(|flags| *flags != 0).map(TcpFlags::from_octet);
                Layer4 { tcp: Some(Tcp { source_port, destination_port, flags }), ..none }
            }
            (proto::UDP, Kind::Ports) => Layer4 { udp: ports(), ..none },
            (proto::SCTP, Kind::Ports) => Layer4 { sctp: ports(), ..none },
            (proto::ICMPV4, _) => Layer4 { icmpv4: Some(self.icmp()), ..none },
            (proto::ICMPV6, _) => Layer4 { icmpv6: Some(self.icmp()), ..none },
            _ => return None,
        })
    }

    /// From the message, or from the key where there was none.
    fn icmp(&self) -> Icmp {
        let key = &self.event.key;
        let query = |kind| ANSWERS.iter().find(|(proto, query, _)| (*proto, *query) == (key.proto(), kind));
        let kind = match key.kind() {
            _ if self.event.icmp != 0 => self.event.icmp >> 8,
            Kind::Query => key.dst_port(),
            Kind::Answer => query(key.src_port()).map_or(0, |(_, _, answer)| *answer),
            Kind::Ports | Kind::Addresses => 0,
        };
        Icmp { kind: u32::from(kind), code: u32::from(self.event.icmp & 0xff) }
    }

    /// The addresses of the ports: what a packet of which `guard` did not approve had is not known.
    fn ethernet(&self) -> Option<Addresses> {
        if matches!(self.event.kind, FlowEventKind::Dropped { reason: DropReason::SpoofedMac, .. }) {
            return None;
        }
        let (source, destination) = (self.source.mac?, self.destination.mac?);
        Some(Addresses { source: source.to_string(), destination: destination.to_string() })
    }

    fn is_reply(&self) -> Option<bool> {
        match self.event.kind {
            FlowEventKind::Opened { .. } | FlowEventKind::Audited { .. } => Some(false),
            FlowEventKind::Closed(_) | FlowEventKind::Sample => Some(false),
            FlowEventKind::Dropped { reason: DropReason::PolicyDenied, .. } => Some(false),
            FlowEventKind::Dropped { .. } if self.event.key.kind() == Kind::Answer => Some(true),
            FlowEventKind::Dropped { .. } => None,
        }
    }
}

/// Whose policy in audit mode says something; of both, the sender's, as it is asked first.
fn audited_at([egress, ingress]: [Option<RuleId>; 2]) -> Option<Direction> {
    egress.map(|_| Direction::Egress).or(ingress.map(|_| Direction::Ingress))
}

/// What is seen of a connection on its way.
fn passing(flow: &mut Flow) {
    flow.verdict = "FORWARDED".into();
    flow.event_type = Some(EventType { kind: TYPE_TRACE, sub_type: 0 });
    flow.trace_observation_point = "TO_ENDPOINT".into();
}

/// Why a connection ended, in a word or two.
fn ended(why: Ending) -> &'static str {
    match why {
        Ending::Expired => "expired",
        Ending::Evicted => "evicted",
        Ending::Reopened => "reopened",
        Ending::Denied => "no longer allowed",
        Ending::Gone => "port or address gone",
        Ending::Flushed => "flushed",
    }
}

fn ip(source: IpAddr, destination: IpAddr) -> Ip {
    let version = if destination.is_ipv4() { "IPv4" } else { "IPv6" };
    let (source, destination) = (source.to_string(), destination.to_string());
    Ip { source, destination, ip_version: version.into(), ..Ip::default() }
}

#[cfg(test)]
pub(crate) mod tests {
    use hostweave_policy::table::Basis;
    use hostweave_switch::flow::FlowKey;

    use super::*;

    pub fn party(id: u32, name: &str, label: &str) -> Arc<Party> {
        Arc::new(Party {
            endpoint: Endpoint {
                id,
                identity: 1000 + id,
                namespace: "shop".into(),
                labels: vec![format!("k8s:{label}")],
                pod_name: name.into(),
            },
            mac: Some(MacAddr([2, 0, 10, 64, 0, id as u8])),
            port: Some(format!("shop/{name}")),
            workload: true,
            network: Some(NetworkId(0)),
        })
    }

    pub fn key(proto: u8, src_port: u16, dst_port: u16, kind: Kind) -> FlowKey {
        let mapped = |last: u8| u128::from(std::net::Ipv4Addr::new(10, 64, 0, last).to_ipv6_mapped());
        FlowKey::new(mapped(12), mapped(31), src_port, dst_port, proto, kind)
    }

    pub fn record(kind: FlowEventKind, key: FlowKey) -> FlowRecord {
        let tcp_flags = if key.proto() == proto::TCP { 2 } else { 0 };
        FlowRecord {
            time: SystemTime::UNIX_EPOCH + std::time::Duration::new(1_795_447_801, 120_334_567),
            id: Uuid::nil(),
            event: FlowEvent {
                kind,
                key,
                there: None,
                shared: false,
                vni: 1,
                from: PortId(12),
                to: PortId(31),
                tcp_flags,
                icmp: 0,
                at: 0,
            },
            source: party(12, "cache-0", "app=cache"),
            destination: party(31, "db-0", "app=db"),
            service: None,
            reasons: Reasons::default(),
        }
    }

    pub fn denied() -> FlowRecord {
        let kind = FlowEventKind::Dropped {
            reason: DropReason::PolicyDenied,
            denied: Some((Direction::Ingress, Basis::NoRule)),
        };
        let mut record = record(kind, key(proto::TCP, 49152, 5432, Kind::Ports));
        record.reasons.denied[1].push(Arc::new(Policy {
            name: "db-only-from-web".into(),
            namespace: "shop".into(),
            labels: vec!["hostweave:origin=conf.d/20-shop.yaml:9".into()],
            revision: "17".into(),
            kind: "NetworkPolicy".into(),
        }));
        record
    }

    pub fn opened(proto: u8, src_port: u16, dst_port: u16, kind: Kind) -> FlowRecord {
        let opened =
            FlowEventKind::Opened { egress: Basis::NotSelected, ingress: Basis::NotSelected, audit: [None; 2] };
        record(opened, key(proto, src_port, dst_port, kind))
    }

    #[test]
    fn a_denied_packet_is_the_line_of_the_documentation() {
        let flow = serde_json::to_value(denied().to_flow("host-a")).unwrap();
        let expected = serde_json::json!({
            "time": "2026-11-23T15:30:01.120334567Z", "uuid": "00000000-0000-0000-0000-000000000000",
            "verdict": "DROPPED", "drop_reason": 133, "drop_reason_desc": "POLICY_DENIED",
            "ethernet": {"source": "02:00:0a:40:00:0c", "destination": "02:00:0a:40:00:1f"},
            "IP": {"source": "10.64.0.12", "destination": "10.64.0.31", "ipVersion": "IPv4"},
            "l4": {"TCP": {"source_port": 49152, "destination_port": 5432, "flags": {"SYN": true}}},
            "source": {"ID": 12, "identity": 1012, "namespace": "shop", "labels": ["k8s:app=cache"], "pod_name": "cache-0"},
            "destination": {"ID": 31, "identity": 1031, "namespace": "shop", "labels": ["k8s:app=db"], "pod_name": "db-0"},
            "Type": "L3_L4", "node_name": "host-a", "event_type": {"type": 5}, "traffic_direction": "INGRESS",
            "is_reply": false, "interface": {"index": 12, "name": "shop/cache-0"},
            "ingress_denied_by": [{
                "name": "db-only-from-web", "namespace": "shop", "revision": "17", "kind": "NetworkPolicy",
                "labels": ["hostweave:origin=conf.d/20-shop.yaml:9"],
            }],
            "Summary": "policy_denied; TCP Flags: SYN",
        });
        assert_eq!(flow, expected);
    }

    #[test]
    fn a_service_is_named() {
        let mut record = opened(proto::TCP, 7, 8, Kind::Ports);
        assert_eq!(record.to_flow("").destination_service, None);
        record.service = Some("shop/db".into());
        let flow = serde_json::to_value(record.to_flow("")).unwrap();
        assert_eq!(flow["destination_service"], serde_json::json!({"name": "db", "namespace": "shop"}));
    }

    #[test]
    fn every_protocol_is_told_apart() {
        let l4 = |record: FlowRecord| serde_json::to_value(record.to_flow("").l4).unwrap();
        let ports = |name: &str| serde_json::json!({name: {"source_port": 7, "destination_port": 8}});
        assert_eq!(l4(opened(proto::UDP, 7, 8, Kind::Ports)), ports("UDP"));
        assert_eq!(l4(opened(proto::SCTP, 7, 8, Kind::Ports)), ports("SCTP"));
        let icmp = |name: &str, kind: u32| serde_json::json!({name: {"type": kind, "code": 0}});
        assert_eq!(l4(opened(proto::ICMPV4, 7, 8, Kind::Query)), icmp("ICMPv4", 8));
        assert_eq!(l4(opened(proto::ICMPV6, 7, 128, Kind::Query)), icmp("ICMPv6", 128));
        assert_eq!(l4(opened(proto::ICMPV6, 128, 7, Kind::Answer)), icmp("ICMPv6", 129));
        let gre = opened(47, 0, 0, Kind::Addresses).to_flow("");
        assert_eq!((gre.l4, gre.summary.as_str()), (None, "IP protocol 47"));
    }

    #[test]
    fn what_nat_makes_of_a_tuple_is_told() {
        let mut record = opened(proto::UDP, 7, 8, Kind::Ports);
        let pool = u128::from(std::net::Ipv4Addr::new(203, 0, 113, 7).to_ipv6_mapped());
        let key = record.event.key;
        let there = |dst, dst_port| Some(FlowKey::new(pool, dst, 40_123, dst_port, proto::UDP, Kind::Ports));
        record.event.there = there(key.dst(), 8);
        let flow = record.to_flow("");
        assert_eq!(serde_json::to_value(&flow.ip).unwrap()["source_xlated"], "203.0.113.7");
        assert_eq!((flow.verdict.as_str(), flow.summary.as_str()), ("TRANSLATED", "UDP; as 203.0.113.7:40123"));
        assert!(flow.is_new());
        record.event.shared = true;
        assert_eq!(record.to_flow("").summary, "UDP; as 203.0.113.7:40123 (an L4 port that others use too)");
        record.event.shared = false;
        // Both ends, and the destination alone.
        record.event.there = there(1 << 120 | 5, 9);
        assert_eq!(record.to_flow("").summary, "UDP; as 203.0.113.7:40123 to [100::5]:9");
        record.event.there = Some(FlowKey::new(key.src(), key.dst(), 7, 22, proto::UDP, Kind::Ports));
        let flow = record.to_flow("");
        assert_eq!((flow.ip.unwrap().source_xlated.as_str(), flow.summary.as_str()), ("", "UDP; to 10.64.0.31:22"));
        record.event.kind = FlowEventKind::Closed(Ending::Expired);
        let flow = record.to_flow("");
        assert_eq!(
            (flow.verdict.as_str(), flow.summary.as_str()),
            ("FORWARDED", "closed: expired; UDP; to 10.64.0.31:22")
        );
    }

    #[test]
    fn what_happened_decides_verdict_and_type() {
        let flow = opened(proto::UDP, 7, 8, Kind::Ports).to_flow("");
        assert_eq!((flow.verdict.as_str(), flow.is_new(), flow.is_reply), ("FORWARDED", true, Some(false)));
        let flow = record(FlowEventKind::Closed(Ending::Evicted), key(proto::UDP, 7, 8, Kind::Ports)).to_flow("");
        assert!(flow.is_closed() && flow.verdict == "FORWARDED" && flow.summary == "closed: evicted; UDP");
        let flow = record(FlowEventKind::Sample, key(proto::UDP, 7, 8, Kind::Ports)).to_flow("");
        assert!(!flow.is_closed() && !flow.is_new() && flow.trace_reason == "ESTABLISHED", "{flow:?}");
        let reason = DropReason::SpoofedMac;
        let dropped = FlowEventKind::Dropped { reason, denied: None };
        let mut sent = record(dropped, key(proto::UDP, 7, 8, Kind::Ports));
        sent.event.to = PortId::NONE;
        let flow = sent.to_flow("");
        assert_eq!(flow.event_type, Some(EventType { kind: TYPE_DROP, sub_type: 130 }));
        assert_eq!((flow.is_reply, flow.ethernet, flow.traffic_direction.as_str()), (None, None, "EGRESS"));
        assert_eq!(flow.summary, "spoofed_mac; UDP");
        let full = FlowEventKind::Dropped { reason: DropReason::GuestRingFull, denied: None };
        let flow = record(full, key(proto::UDP, 7, 8, Kind::Ports)).to_flow("");
        assert_eq!(flow.traffic_direction, "INGRESS", "its receiver did not take it");
        let audit = [Some(RuleId(3)), Some(RuleId(4))];
        let audited = FlowEventKind::Opened { egress: Basis::NotSelected, ingress: Basis::NotSelected, audit };
        let flow = record(audited, key(proto::UDP, 7, 8, Kind::Ports)).to_flow("");
        assert_eq!((flow.verdict.as_str(), flow.traffic_direction.as_str()), ("AUDIT", "EGRESS"));
        // The same of one that there was is nothing new.
        let again =
            FlowEventKind::Audited { egress: Basis::NotSelected, ingress: Basis::NotSelected, audit: [None, audit[1]] };
        let flow = record(again, key(proto::UDP, 7, 8, Kind::Ports)).to_flow("");
        assert_eq!((flow.verdict.as_str(), flow.traffic_direction.as_str()), ("AUDIT", "INGRESS"));
        assert!(!flow.is_new() && flow.summary.starts_with("goes on"), "{}", flow.summary);
    }
}
